//! The market domain: bars and splits, as they were first known.
//!
//! A bar that was written once stays: a vendor that changes history later meets a conflict, not a quiet
//! rewrite. The caller says through which day it may see; nothing later is read.
//!
//! INVARIANT: one bar per data set, symbol and day; one split likewise.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::Path;

use market::{Bar, Day, Panel, Price, Split, Symbol};
use rusqlite::{OptionalExtension as _, params};

use crate::database::{Database, day_number, day_of, price_of, symbol_of};
use crate::error::damaged;
use crate::{PutOutcome, StoreError};

/// Rows that are taken at once.
const ROWS_MAX: usize = 200_000;
/// Conflicts that are named one by one.
const CONFLICTS_MAX: usize = 100;
/// Length of a data set's name, in bytes.
const DATASET_LENGTH_MAX: usize = 64;

const MIGRATIONS: &[&str] = &["
    CREATE TABLE bars (
        dataset TEXT NOT NULL,
        symbol  TEXT NOT NULL,
        day     INTEGER NOT NULL,                        -- yyyymmdd
        open    INTEGER NOT NULL CHECK (open > 0),       -- millionths of a dollar
        high    INTEGER NOT NULL CHECK (high > 0),
        low     INTEGER NOT NULL CHECK (low > 0),
        close   INTEGER NOT NULL CHECK (close > 0),
        volume  INTEGER NOT NULL CHECK (volume >= 0),
        PRIMARY KEY (dataset, symbol, day)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE splits (
        dataset     TEXT NOT NULL,
        symbol      TEXT NOT NULL,
        day         INTEGER NOT NULL,
        numerator   INTEGER NOT NULL CHECK (numerator > 0),
        denominator INTEGER NOT NULL CHECK (denominator > 0),
        PRIMARY KEY (dataset, symbol, day)
    ) STRICT, WITHOUT ROWID;
"];

/// A row that was refused because another stands in its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conflict {
    /// `bar`, `split` or `article`.
    pub kind: &'static str,
    /// Which: `DATASET SYMBOL DAY`, or an article's id.
    pub key: String,
}

impl fmt::Display for Conflict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind, self.key)
    }
}

impl PutOutcome {
    /// Counts a row: whether it is new, and if not, whether the one that stands is the same.
    pub(crate) fn count(&mut self, new: bool, same: bool, kind: &'static str, key: impl FnOnce() -> String) {
        match (new, same) {
            (true, _) => self.new_rows += 1,
            (false, true) => self.same_rows += 1,
            (false, false) => {
                self.conflict_rows += 1;
                if self.conflicts.len() < CONFLICTS_MAX {
                    self.conflicts.push(Conflict { kind, key: key() });
                }
            }
        }
    }
}

/// Bars and splits of several symbols, ordered by symbol and day.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Bars {
    /// Bars.
    pub bars: Vec<(Symbol, Bar)>,
    /// Splits.
    pub splits: Vec<(Symbol, Split)>,
}

/// What the database has of one symbol.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Coverage {
    /// Data set.
    pub dataset: String,
    /// Symbol.
    pub symbol: Symbol,
    /// Day of the first bar.
    pub first: Day,
    /// Day of the last bar.
    pub last: Day,
    /// How many bars.
    pub rows: u64,
}

/// The database of the market domain.
#[derive(Debug)]
pub struct Market(Database);

impl Market {
    /// Opens the file, and makes it where there is none.
    ///
    /// # Errors
    /// [`StoreError::Open`], [`StoreError::NewerSchema`], [`StoreError::Damaged`], [`StoreError::Busy`].
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        Database::open(path, MIGRATIONS).map(Self)
    }

    /// Writes bars and splits of a data set. Rows that stand already are counted; differing ones are refused
    /// and named (the first hundred), and the others are still written.
    ///
    /// # Errors
    /// [`StoreError::TooLarge`] above 200,000 rows; otherwise the file's.
    pub fn put_bars(
        &self,
        dataset: &str,
        bars: &[(Symbol, Bar)],
        splits: &[(Symbol, Split)],
    ) -> Result<PutOutcome, StoreError> {
        if bars.len().saturating_add(splits.len()) > ROWS_MAX {
            return Err(StoreError::TooLarge { what: "rows at once", limit: ROWS_MAX });
        }
        if dataset.is_empty() || dataset.len() > DATASET_LENGTH_MAX {
            return Err(StoreError::TooLarge { what: "the name of a data set", limit: DATASET_LENGTH_MAX });
        }
        self.0.write(|t| {
            let mut outcome = PutOutcome::default();
            let mut put =
                t.prepare("INSERT INTO bars VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8) ON CONFLICT DO NOTHING")?;
            let mut same = t.prepare(
                "SELECT 1 FROM bars WHERE dataset = ?1 AND symbol = ?2 AND day = ?3
                 AND open = ?4 AND high = ?5 AND low = ?6 AND close = ?7 AND volume = ?8",
            )?;
            for (symbol, bar) in bars {
                let volume = i64::try_from(bar.volume)
                    .map_err(|_| StoreError::TooLarge { what: "a volume", limit: usize::MAX >> 1 })?;
                let row = params![
                    dataset,
                    symbol.as_str(),
                    day_number(bar.day),
                    bar.open.micros(),
                    bar.high.micros(),
                    bar.low.micros(),
                    bar.close.micros(),
                    volume
                ];
                let new = put.execute(row)? == 1;
                let same = !new && same.exists(row)?;
                outcome.count(new, same, "bar", || format!("{dataset} {symbol} {}", bar.day));
            }
            let mut put =
                t.prepare("INSERT INTO splits VALUES (?1, ?2, ?3, ?4, ?5) ON CONFLICT DO NOTHING")?;
            let mut same = t.prepare(
                "SELECT 1 FROM splits WHERE dataset = ?1 AND symbol = ?2 AND day = ?3
                 AND numerator = ?4 AND denominator = ?5",
            )?;
            for (symbol, split) in splits {
                let row = params![
                    dataset,
                    symbol.as_str(),
                    day_number(split.day()),
                    split.numerator(),
                    split.denominator()
                ];
                let new = put.execute(row)? == 1;
                let same = !new && same.exists(row)?;
                outcome.count(new, same, "split", || format!("{dataset} {symbol} {}", split.day()));
            }
            Ok(outcome)
        })
    }

    /// The closes of some symbols from one day through another, both included, with the splits of these days.
    /// A symbol without any bar has an empty column.
    ///
    /// # Errors
    /// The file's.
    pub fn panel(
        &self,
        dataset: &str,
        symbols: &[Symbol],
        from: Day,
        through: Day,
    ) -> Result<Panel, StoreError> {
        let symbols: BTreeSet<&Symbol> = symbols.iter().collect();
        self.0.read(|t| {
            let mut question = t.prepare(
                "SELECT day, close FROM bars WHERE dataset = ?1 AND symbol = ?2 AND day BETWEEN ?3 AND ?4",
            )?;
            let mut columns: Vec<BTreeMap<i64, i64>> = Vec::with_capacity(symbols.len());
            for symbol in &symbols {
                let range = params![dataset, symbol.as_str(), day_number(from), day_number(through)];
                let column = question.query_map(range, |row| Ok((row.get(0)?, row.get(1)?)))?;
                columns.push(column.collect::<Result<_, _>>()?);
            }
            let days: BTreeSet<i64> = columns.iter().flat_map(|column| column.keys().copied()).collect();
            let mut splits = Vec::new();
            for symbol in &symbols {
                splits.extend(splits_between(t, dataset, symbol, day_number(from), day_number(through))?);
            }
            let panel = Panel {
                days: days.iter().map(|day| day_of(*day)).collect::<Result<_, _>>()?,
                symbols: symbols.into_iter().cloned().collect(),
                closes: columns
                    .iter()
                    .map(|column| days.iter().map(|day| column.get(day).copied()).collect())
                    .collect(),
                splits,
            };
            panel.check().map_err(damaged)?;
            Ok(panel)
        })
    }

    /// Whole bars and splits of some symbols, after one day (from the first, where there is none) through
    /// another, the latter included.
    ///
    /// # Errors
    /// The file's.
    pub fn bars(
        &self,
        dataset: &str,
        symbols: &[Symbol],
        after: Option<Day>,
        through: Day,
    ) -> Result<Bars, StoreError> {
        let symbols: BTreeSet<&Symbol> = symbols.iter().collect();
        let first = after.map_or(0, |after| day_number(after).saturating_add(1));
        self.0.read(|t| {
            let mut found = Bars::default();
            let mut question = t.prepare(
                "SELECT day, open, high, low, close, volume FROM bars
                 WHERE dataset = ?1 AND symbol = ?2 AND day BETWEEN ?3 AND ?4 ORDER BY day",
            )?;
            for symbol in symbols {
                let range = params![dataset, symbol.as_str(), first, day_number(through)];
                let mut rows = question.query(range)?;
                while let Some(row) = rows.next()? {
                    let price = |column: usize| price_of(row.get(column)?);
                    let bar = Bar {
                        day: day_of(row.get(0)?)?,
                        open: price(1)?,
                        high: price(2)?,
                        low: price(3)?,
                        close: price(4)?,
                        volume: u64::try_from(row.get::<_, i64>(5)?).map_err(damaged)?,
                    };
                    found.bars.push((symbol.clone(), bar));
                }
                found.splits.extend(splits_between(t, dataset, symbol, first, day_number(through))?);
            }
            Ok(found)
        })
    }

    /// The last close of each symbol through a day, and its day. A symbol without any bar is left out.
    ///
    /// # Errors
    /// The file's.
    pub fn last_closes(
        &self,
        dataset: &str,
        symbols: &[Symbol],
        through: Day,
    ) -> Result<BTreeMap<Symbol, (Day, Price)>, StoreError> {
        self.0.read(|t| {
            let mut question = t.prepare(
                "SELECT day, close FROM bars WHERE dataset = ?1 AND symbol = ?2 AND day <= ?3
                 ORDER BY day DESC LIMIT 1",
            )?;
            let mut found = BTreeMap::new();
            for symbol in symbols {
                let row: Option<(i64, i64)> = question
                    .query_row(params![dataset, symbol.as_str(), day_number(through)], |row| {
                        Ok((row.get(0)?, row.get(1)?))
                    })
                    .optional()?;
                if let Some((day, close)) = row {
                    found.insert(symbol.clone(), (day_of(day)?, price_of(close)?));
                }
            }
            Ok(found)
        })
    }

    /// What the database has, by data set and symbol.
    ///
    /// # Errors
    /// The file's.
    pub fn coverage(&self) -> Result<Vec<Coverage>, StoreError> {
        self.0.read(|t| {
            let mut question = t.prepare(
                "SELECT dataset, symbol, min(day), max(day), count(*) FROM bars
                 GROUP BY dataset, symbol ORDER BY dataset, symbol",
            )?;
            let mut rows = question.query([])?;
            let mut all = Vec::new();
            while let Some(row) = rows.next()? {
                all.push(Coverage {
                    dataset: row.get(0)?,
                    symbol: symbol_of(&row.get::<_, String>(1)?)?,
                    first: day_of(row.get(2)?)?,
                    last: day_of(row.get(3)?)?,
                    rows: u64::try_from(row.get::<_, i64>(4)?).map_err(damaged)?,
                });
            }
            Ok(all)
        })
    }
}

fn splits_between(
    t: &rusqlite::Transaction<'_>,
    dataset: &str,
    symbol: &Symbol,
    first: i64,
    last: i64,
) -> Result<Vec<(Symbol, Split)>, StoreError> {
    let mut question = t.prepare(
        "SELECT day, numerator, denominator FROM splits
         WHERE dataset = ?1 AND symbol = ?2 AND day BETWEEN ?3 AND ?4 ORDER BY day",
    )?;
    let mut rows = question.query(params![dataset, symbol.as_str(), first, last])?;
    let mut splits = Vec::new();
    while let Some(row) = rows.next()? {
        let split = Split::new(day_of(row.get(0)?)?, row.get(1)?, row.get(2)?).map_err(damaged)?;
        splits.push((symbol.clone(), split));
    }
    Ok(splits)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn day(text: &str) -> Day {
        text.parse().unwrap()
    }

    fn row(symbol: &str, date: &str, close: &str) -> (Symbol, Bar) {
        (symbol.parse().unwrap(), Bar::from_close(day(date), close.parse().unwrap()))
    }

    fn filled(directory: &Path) -> Market {
        let market = Market::open(&directory.join("market.db")).unwrap();
        let rows = [
            row("MSFT", "2005-02-25", "25.25"),
            row("AAPL", "2005-02-24", "88.93"),
            row("AAPL", "2005-02-25", "88.99"),
            row("AAPL", "2005-02-28", "44.86"),
        ];
        let split = ("AAPL".parse().unwrap(), Split::new(day("2005-02-28"), 2, 1).unwrap());
        let outcome = market.put_bars("tech", &rows, &[split]).unwrap();
        assert_eq!(outcome, PutOutcome { new_rows: 5, ..PutOutcome::default() });
        market
    }

    #[test]
    fn the_same_rows_again_change_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let market = filled(directory.path());
        let again = market.put_bars("tech", &[row("AAPL", "2005-02-24", "88.93")], &[]).unwrap();
        assert_eq!(again, PutOutcome { same_rows: 1, ..PutOutcome::default() });
        // The same row of another data set is another row.
        assert_eq!(market.put_bars("core", &[row("AAPL", "2005-02-24", "88.93")], &[]).unwrap().new_rows, 1);
    }

    #[test]
    fn a_rewritten_past_is_refused_and_the_first_stays() {
        let directory = tempfile::tempdir().unwrap();
        let market = filled(directory.path());
        let rows = [row("AAPL", "2005-02-24", "1.00"), row("AAPL", "2005-03-01", "44.50")];
        let outcome = market.put_bars("tech", &rows, &[]).unwrap();
        assert_eq!((outcome.new_rows, outcome.same_rows, outcome.conflict_rows), (1, 0, 1));
        assert_eq!(outcome.conflicts[0].to_string(), "bar tech AAPL 2005-02-24");
        let known = market.last_closes("tech", &["AAPL".parse().unwrap()], day("2005-02-24")).unwrap();
        assert_eq!(known.values().next().unwrap().1, "88.93".parse().unwrap());
    }

    #[test]
    fn a_panel_holds_nothing_from_after_its_last_day() {
        let directory = tempfile::tempdir().unwrap();
        let market = filled(directory.path());
        let symbols = ["MSFT".parse().unwrap(), "AAPL".parse().unwrap(), "NONE".parse().unwrap()];
        let early = market.panel("tech", &symbols, day("1990-01-01"), day("2005-02-25")).unwrap();
        assert_eq!(early.days, [day("2005-02-24"), day("2005-02-25")]);
        assert!(early.splits.is_empty());
        assert_eq!(early.closes[0], [Some(88_930_000), Some(88_990_000)]);
        assert_eq!(early.closes[1], [None, Some(25_250_000)]);
        assert_eq!(early.closes[2], [None, None]);
        let late = market.panel("tech", &symbols, day("2005-02-25"), day("2005-02-28")).unwrap();
        assert_eq!((late.days.len(), late.splits.len()), (2, 1));
    }

    #[test]
    fn bars_come_after_one_day_and_through_another() {
        let directory = tempfile::tempdir().unwrap();
        let market = filled(directory.path());
        let symbols = ["AAPL".parse().unwrap()];
        let all = market.bars("tech", &symbols, None, day("2010-01-01")).unwrap();
        assert_eq!((all.bars.len(), all.splits.len()), (3, 1));
        let some = market.bars("tech", &symbols, Some(day("2005-02-24")), day("2005-02-25")).unwrap();
        assert_eq!(some.bars, [row("AAPL", "2005-02-25", "88.99")]);
        assert!(some.splits.is_empty());
    }

    #[test]
    fn text_is_never_part_of_a_query() {
        let directory = tempfile::tempdir().unwrap();
        let market = filled(directory.path());
        let evil = "tech'; DROP TABLE bars; --";
        market.put_bars(evil, &[row("AAPL", "2005-02-24", "1.00")], &[]).unwrap();
        let coverage = market.coverage().unwrap();
        assert_eq!(coverage.iter().map(|one| one.rows).sum::<u64>(), 5);
        assert!(coverage.iter().any(|one| one.dataset == evil));
    }

    #[test]
    fn two_units_share_one_file() {
        let directory = tempfile::tempdir().unwrap();
        let (one, two) =
            (filled(directory.path()), Market::open(&directory.path().join("market.db")).unwrap());
        std::thread::scope(|scope| {
            for (market, symbol) in [(&one, "A"), (&two, "B")] {
                scope.spawn(move || {
                    for number in 1..=28 {
                        let date = format!("2006-02-{number:02}");
                        market.put_bars("tech", &[row(symbol, &date, "1.00")], &[]).unwrap();
                    }
                });
            }
        });
        assert_eq!(one.coverage().unwrap(), two.coverage().unwrap());
        assert_eq!(one.coverage().unwrap().iter().map(|one| one.rows).sum::<u64>(), 4 + 56);
    }

    #[test]
    fn too_many_rows_at_once_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        let market = filled(directory.path());
        let rows = vec![row("AAPL", "2005-02-24", "88.93"); ROWS_MAX + 1];
        assert!(matches!(market.put_bars("tech", &rows, &[]), Err(StoreError::TooLarge { .. })));
    }

    #[test]
    fn a_full_disk_keeps_what_was_there() {
        let directory = tempfile::tempdir().unwrap();
        let market = filled(directory.path());
        market.0.fill_up();
        let rows: Vec<_> = (1..=28)
            .flat_map(|number| {
                (0..100).map(move |n| row(&format!("S{n}"), &format!("2006-02-{number:02}"), "1.00"))
            })
            .collect();
        assert!(matches!(market.put_bars("tech", &rows, &[]), Err(StoreError::DiskFull)));
        assert_eq!(market.coverage().unwrap().len(), 2);
    }
}
