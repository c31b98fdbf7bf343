//! The ledger domain: double-entry books of every portfolio.
//!
//! Owns: how a fill, a split or an opening becomes postings to accounts. Money never appears or vanishes: the
//! postings of an entry add up to nothing. Accounts: `cash`, `capital`, `fees`, and `position:SYMBOL`, which
//! holds what was paid for the shares less what they brought.
//!
//! INVARIANT: an entry is posted whole, once, and balanced; shares never go below zero.

use std::collections::BTreeMap;
use std::path::Path;

use market::{Day, Money, Price, Quantity, Side, Symbol};
use rusqlite::{OptionalExtension as _, Transaction, params};
use serde::{Deserialize, Serialize};

use crate::database::{Database, day_number, day_of, symbol_of};
use crate::error::damaged;
use crate::{PutOutcome, StoreError};

/// Entries or closes that are taken at once.
const ENTRIES_MAX: usize = 100_000;
/// Length of an id or a portfolio's name, in bytes.
const NAME_BYTES_MAX: usize = 256;

const MIGRATIONS: &[&str] = &["
    CREATE TABLE portfolios (
        portfolio TEXT NOT NULL PRIMARY KEY,
        opened    INTEGER NOT NULL,                              -- yyyymmdd
        cash      INTEGER NOT NULL                               -- millionths of a dollar
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE entries (
        number    INTEGER PRIMARY KEY,
        id        TEXT NOT NULL UNIQUE,
        portfolio TEXT NOT NULL REFERENCES portfolios (portfolio),
        day       INTEGER NOT NULL,
        content   TEXT NOT NULL                                  -- JSON
    ) STRICT;
    CREATE INDEX entries_by_day ON entries (portfolio, day);
    CREATE TABLE postings (
        entry     INTEGER NOT NULL REFERENCES entries (number),
        account   TEXT NOT NULL,
        amount    INTEGER NOT NULL,                              -- millionths of a dollar
        shares    INTEGER NOT NULL,
        PRIMARY KEY (entry, account)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE day_closes (
        portfolio TEXT NOT NULL REFERENCES portfolios (portfolio),
        day       INTEGER NOT NULL,
        equity    INTEGER NOT NULL,
        cash      INTEGER NOT NULL,
        PRIMARY KEY (portfolio, day)
    ) STRICT, WITHOUT ROWID;
"];

/// Something that happened to a portfolio.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "entry", rename_all = "snake_case", deny_unknown_fields)]
pub enum Entry {
    /// Cash was paid in. Written by [`Ledger::open_portfolio`] alone.
    Open {
        /// Entry id.
        id: String,
        /// Market day.
        day: Day,
        /// How much.
        cash: Money,
    },
    /// Shares were bought or sold.
    Fill {
        /// Entry id: the fill's.
        id: String,
        /// Order that was filled.
        order: String,
        /// Market day.
        day: Day,
        /// Symbol.
        symbol: Symbol,
        /// Side.
        side: Side,
        /// Shares, above zero.
        quantity: Quantity,
        /// Price per share.
        price: Price,
        /// Fee, not below zero.
        fee: Money,
    },
    /// Shares were split, and a fraction paid out.
    Split {
        /// Entry id.
        id: String,
        /// Market day.
        day: Day,
        /// Symbol.
        symbol: Symbol,
        /// Shares that are held after it, not below zero.
        quantity: Quantity,
        /// What the fraction brought, not below zero.
        cash: Money,
    },
}

/// One line of an entry.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Posting {
    account: String,
    amount: i64,
    shares: i64,
}

impl Entry {
    /// The entry's id, one for ever over all portfolios.
    #[must_use]
    pub fn id(&self) -> &str {
        match self {
            Self::Open { id, .. } | Self::Fill { id, .. } | Self::Split { id, .. } => id,
        }
    }

    /// The market day on which it happened.
    #[must_use]
    pub fn day(&self) -> Day {
        match self {
            Self::Open { day, .. } | Self::Fill { day, .. } | Self::Split { day, .. } => *day,
        }
    }

    fn symbol(&self) -> Option<&Symbol> {
        match self {
            Self::Open { .. } => None,
            Self::Fill { symbol, .. } | Self::Split { symbol, .. } => Some(symbol),
        }
    }

    /// The lines of this entry, given how many shares of its symbol are held before it. They add up to
    /// nothing.
    fn postings(&self, held: i64) -> Result<Vec<Posting>, StoreError> {
        let wrong = || StoreError::Amount(self.id().to_owned());
        let line =
            |account: &str, amount: i64, shares: i64| Posting { account: account.to_owned(), amount, shares };
        let lines = match self {
            Self::Open { cash, .. } => {
                let cash = cash.micros();
                if cash < 0 {
                    return Err(wrong());
                }
                vec![line("cash", cash, 0), line("capital", -cash, 0)]
            }
            Self::Fill { symbol, side, quantity, price, fee, .. } => {
                let (shares, fee) = (quantity.shares(), fee.micros());
                if shares <= 0 || fee < 0 {
                    return Err(wrong());
                }
                let value = price.checked_mul(*quantity).ok_or_else(wrong)?.micros();
                let (into, shares) = match side {
                    Side::Buy => (value, shares),
                    Side::Sell => (-value, -shares),
                };
                let cash = into.checked_add(fee).and_then(i64::checked_neg).ok_or_else(wrong)?;
                vec![line("cash", cash, 0), line(&account(symbol), into, shares), line("fees", fee, 0)]
            }
            Self::Split { symbol, quantity, cash, .. } => {
                let (after, cash) = (quantity.shares(), cash.micros());
                if after < 0 || cash < 0 {
                    return Err(wrong());
                }
                let shares = after.checked_sub(held).ok_or_else(wrong)?;
                vec![line("cash", cash, 0), line(&account(symbol), -cash, shares)]
            }
        };
        let (amount, shares) = lines.iter().fold((0_i128, i128::from(held)), |(amount, shares), line| {
            (amount + i128::from(line.amount), shares + i128::from(line.shares))
        });
        match (amount, shares) {
            (0, 0..) => Ok(lines),
            (0, ..0) => Err(StoreError::NegativePosition(self.id().to_owned())),
            (..0 | 1.., _) => Err(StoreError::Unbalanced(self.id().to_owned())),
        }
    }
}

fn account(symbol: &Symbol) -> String {
    format!("position:{symbol}")
}

/// What a portfolio holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Holdings {
    /// Cash.
    pub cash: Money,
    /// Shares by symbol; none with zero.
    pub positions: BTreeMap<Symbol, Quantity>,
}

/// The close of a market day.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DayClose {
    /// Market day.
    pub day: Day,
    /// What the portfolio was worth.
    pub equity: Money,
    /// Its cash part.
    pub cash: Money,
}

/// What an audit of the books looked at.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Audited {
    /// Portfolios.
    pub portfolios: u64,
    /// Entries.
    pub entries: u64,
    /// Postings.
    pub postings: u64,
}

/// The database of the ledger domain.
#[derive(Debug)]
pub struct Ledger(Database);

impl Ledger {
    /// Opens the file, and makes it where there is none.
    ///
    /// # Errors
    /// As [`crate::Market::open`].
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        Database::open(path, MIGRATIONS).map(Self)
    }

    /// Opens a portfolio with cash. True when it is new, false when it stands already with the same cash and
    /// day.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] when it was opened otherwise.
    pub fn open_portfolio(&self, portfolio: &str, cash: Money, day: Day) -> Result<bool, StoreError> {
        check_name(portfolio)?;
        let entry = Entry::Open { id: format!("open/{portfolio}"), day, cash };
        self.0.write(|t| {
            let new = t.execute(
                "INSERT INTO portfolios VALUES (?1, ?2, ?3) ON CONFLICT DO NOTHING",
                params![portfolio, day_number(day), cash.micros()],
            )? == 1;
            Ok(post(t, portfolio, &entry)? && new)
        })
    }

    /// Posts entries of a portfolio, in this order: all of them, or none. Entries that stand already are
    /// counted.
    ///
    /// # Errors
    /// [`StoreError::NoPortfolio`]; [`StoreError::Conflict`] when other content stands under an id;
    /// [`StoreError::NegativePosition`] or [`StoreError::Amount`] for what can't be;
    /// [`StoreError::TooLarge`].
    pub fn post(&self, portfolio: &str, entries: &[Entry]) -> Result<PutOutcome, StoreError> {
        if entries.len() > ENTRIES_MAX {
            return Err(StoreError::TooLarge { what: "entries at once", limit: ENTRIES_MAX });
        }
        self.0.write(|t| {
            must_exist(t, portfolio)?;
            let mut outcome = PutOutcome::default();
            for entry in entries {
                if matches!(entry, Entry::Open { .. }) {
                    return Err(StoreError::Conflict(format!("portfolio {portfolio}")));
                }
                match post(t, portfolio, entry)? {
                    true => outcome.new_rows += 1,
                    false => outcome.same_rows += 1,
                }
            }
            Ok(outcome)
        })
    }

    /// What a portfolio holds after everything that happened through a day.
    ///
    /// # Errors
    /// [`StoreError::NoPortfolio`].
    pub fn positions(&self, portfolio: &str, through: Day) -> Result<Holdings, StoreError> {
        self.0.read(|t| {
            must_exist(t, portfolio)?;
            let mut question = t.prepare(
                "SELECT account, sum(amount), sum(shares) FROM postings JOIN entries ON entry = number
                 WHERE portfolio = ?1 AND day <= ?2 GROUP BY account",
            )?;
            let mut rows = question.query(params![portfolio, day_number(through)])?;
            let mut holdings = Holdings::default();
            while let Some(row) = rows.next()? {
                let account: String = row.get(0)?;
                if account == "cash" {
                    holdings.cash = Money::from_micros(row.get(1)?);
                } else if let Some(symbol) = account.strip_prefix("position:") {
                    let shares: i64 = row.get(2)?;
                    if shares != 0 {
                        holdings.positions.insert(symbol_of(symbol)?, Quantity::new(shares));
                    }
                }
            }
            Ok(holdings)
        })
    }

    /// The entries of a portfolio from one day through another, both included, in the order in which they
    /// were posted.
    ///
    /// # Errors
    /// [`StoreError::NoPortfolio`].
    pub fn entries(&self, portfolio: &str, from: Day, through: Day) -> Result<Vec<Entry>, StoreError> {
        self.0.read(|t| {
            must_exist(t, portfolio)?;
            let mut question = t.prepare(
                "SELECT content FROM entries WHERE portfolio = ?1 AND day BETWEEN ?2 AND ?3 ORDER BY number",
            )?;
            let range = params![portfolio, day_number(from), day_number(through)];
            let texts = question.query_map(range, |row| row.get::<_, String>(0))?;
            texts.map(|text| serde_json::from_str(&text?).map_err(damaged)).collect()
        })
    }

    /// Writes closes of market days. A close that stands already is counted.
    ///
    /// # Errors
    /// [`StoreError::NoPortfolio`]; [`StoreError::Conflict`] when a day closed otherwise: then none is
    /// written.
    pub fn put_day_closes(&self, portfolio: &str, closes: &[DayClose]) -> Result<PutOutcome, StoreError> {
        if closes.len() > ENTRIES_MAX {
            return Err(StoreError::TooLarge { what: "closes at once", limit: ENTRIES_MAX });
        }
        self.0.write(|t| {
            must_exist(t, portfolio)?;
            let mut outcome = PutOutcome::default();
            let mut put =
                t.prepare("INSERT INTO day_closes VALUES (?1, ?2, ?3, ?4) ON CONFLICT DO NOTHING")?;
            let mut same = t.prepare(
                "SELECT 1 FROM day_closes WHERE portfolio = ?1 AND day = ?2 AND equity = ?3 AND cash = ?4",
            )?;
            for close in closes {
                let row =
                    params![portfolio, day_number(close.day), close.equity.micros(), close.cash.micros()];
                if put.execute(row)? == 1 {
                    outcome.new_rows += 1;
                } else if same.exists(row)? {
                    outcome.same_rows += 1;
                } else {
                    return Err(StoreError::Conflict(format!("close {portfolio} {}", close.day)));
                }
            }
            Ok(outcome)
        })
    }

    /// The closes of a portfolio from one day through another, both included, in order.
    ///
    /// # Errors
    /// [`StoreError::NoPortfolio`].
    pub fn day_closes(&self, portfolio: &str, from: Day, through: Day) -> Result<Vec<DayClose>, StoreError> {
        self.0.read(|t| {
            must_exist(t, portfolio)?;
            let mut question = t.prepare(
                "SELECT day, equity, cash FROM day_closes
                 WHERE portfolio = ?1 AND day BETWEEN ?2 AND ?3 ORDER BY day",
            )?;
            let mut rows = question.query(params![portfolio, day_number(from), day_number(through)])?;
            let mut closes = Vec::new();
            while let Some(row) = rows.next()? {
                closes.push(DayClose {
                    day: day_of(row.get(0)?)?,
                    equity: Money::from_micros(row.get(1)?),
                    cash: Money::from_micros(row.get(2)?),
                });
            }
            Ok(closes)
        })
    }

    /// Goes through all the books: every entry's postings are those that its content demands, every entry
    /// adds up to nothing, no position is ever below zero, and every portfolio was opened once with the cash
    /// it says.
    ///
    /// # Errors
    /// [`StoreError::Unbalanced`] with the first fault.
    pub fn audit_balance(&self) -> Result<Audited, StoreError> {
        self.0.read(|t| {
            let mut audited = Audited::default();
            let mut held: BTreeMap<(String, Symbol), i64> = BTreeMap::new();
            let mut opened: BTreeMap<String, (i64, i64)> = BTreeMap::new();
            let mut question =
                t.prepare("SELECT number, id, portfolio, day, content FROM entries ORDER BY number")?;
            let mut rows = question.query([])?;
            while let Some(row) = rows.next()? {
                let (number, id, portfolio): (i64, String, String) = (row.get(0)?, row.get(1)?, row.get(2)?);
                let unbalanced = || StoreError::Unbalanced(format!("entry {id}"));
                let entry: Entry =
                    serde_json::from_str(&row.get::<_, String>(4)?).map_err(|_| unbalanced())?;
                if entry.id() != id || day_number(entry.day()) != row.get::<_, i64>(3)? {
                    return Err(unbalanced());
                }
                if let Entry::Open { day, cash, .. } = &entry
                    && opened.insert(portfolio.clone(), (day_number(*day), cash.micros())).is_some()
                {
                    return Err(unbalanced());
                }
                let before = match entry.symbol() {
                    Some(symbol) => held.entry((portfolio.clone(), symbol.clone())).or_default(),
                    None => &mut 0,
                };
                let mut expected = entry.postings(*before).map_err(|_| unbalanced())?;
                expected.sort_by(|left, right| left.account.cmp(&right.account));
                let found = postings_of(t, number)?;
                if expected != found {
                    return Err(unbalanced());
                }
                *before += expected.iter().map(|line| line.shares).sum::<i64>();
                audited.entries += 1;
                audited.postings += u64::try_from(found.len()).map_err(damaged)?;
            }
            let total: i64 = t.query_row("SELECT count(*) FROM postings", [], |row| row.get(0))?;
            if u64::try_from(total).ok() != Some(audited.postings) {
                return Err(StoreError::Unbalanced("there are postings of no entry".into()));
            }
            let mut question = t.prepare("SELECT portfolio, opened, cash FROM portfolios")?;
            let mut rows = question.query([])?;
            while let Some(row) = rows.next()? {
                let portfolio: String = row.get(0)?;
                if opened.get(&portfolio) != Some(&(row.get(1)?, row.get(2)?)) {
                    return Err(StoreError::Unbalanced(format!("portfolio {portfolio}")));
                }
                audited.portfolios += 1;
            }
            Ok(audited)
        })
    }
}

fn check_name(name: &str) -> Result<(), StoreError> {
    match name.len() {
        1..=NAME_BYTES_MAX => Ok(()),
        _ => Err(StoreError::TooLarge { what: "the length of a name", limit: NAME_BYTES_MAX }),
    }
}

fn must_exist(t: &Transaction<'_>, portfolio: &str) -> Result<(), StoreError> {
    match t.prepare("SELECT 1 FROM portfolios WHERE portfolio = ?1")?.exists([portfolio])? {
        true => Ok(()),
        false => Err(StoreError::NoPortfolio(portfolio.chars().take(64).collect())),
    }
}

/// Posts one entry. True when it is new, false when the same one stands already.
fn post(t: &Transaction<'_>, portfolio: &str, entry: &Entry) -> Result<bool, StoreError> {
    check_name(entry.id())?;
    let content = serde_json::to_string(entry).map_err(damaged)?;
    let stands: Option<(String, String)> = t
        .query_row("SELECT portfolio, content FROM entries WHERE id = ?1", [entry.id()], |row| {
            Ok((row.get(0)?, row.get(1)?))
        })
        .optional()?;
    match stands {
        Some((owner, known)) if owner == portfolio && known == content => return Ok(false),
        Some(_) => return Err(StoreError::Conflict(format!("entry {}", entry.id()))),
        None => {}
    }
    let held: i64 = match entry.symbol() {
        Some(symbol) => t.query_row(
            "SELECT coalesce(sum(shares), 0) FROM postings JOIN entries ON entry = number
             WHERE portfolio = ?1 AND account = ?2",
            params![portfolio, account(symbol)],
            |row| row.get(0),
        )?,
        None => 0,
    };
    let postings = entry.postings(held)?;
    t.execute(
        "INSERT INTO entries (id, portfolio, day, content) VALUES (?1, ?2, ?3, ?4)",
        params![entry.id(), portfolio, day_number(entry.day()), content],
    )?;
    let number = t.last_insert_rowid();
    let mut put = t.prepare("INSERT INTO postings VALUES (?1, ?2, ?3, ?4)")?;
    for line in postings {
        put.execute(params![number, line.account, line.amount, line.shares])?;
    }
    Ok(true)
}

/// The postings of an entry, by account.
fn postings_of(t: &Transaction<'_>, number: i64) -> Result<Vec<Posting>, StoreError> {
    let mut question =
        t.prepare("SELECT account, amount, shares FROM postings WHERE entry = ?1 ORDER BY account")?;
    let lines = question.query_map([number], |row| {
        Ok(Posting { account: row.get(0)?, amount: row.get(1)?, shares: row.get(2)? })
    })?;
    Ok(lines.collect::<Result<_, _>>()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn day(text: &str) -> Day {
        text.parse().unwrap()
    }

    fn fill(id: &str, date: &str, side: Side, shares: i64, price: &str) -> Entry {
        Entry::Fill {
            id: id.into(),
            order: format!("order-{id}"),
            day: day(date),
            symbol: "AAPL".parse().unwrap(),
            side,
            quantity: Quantity::new(shares),
            price: price.parse().unwrap(),
            fee: Money::from_micros(1_500_000),
        }
    }

    fn opened(directory: &Path) -> Ledger {
        let ledger = Ledger::open(&directory.join("ledger.db")).unwrap();
        assert!(
            ledger.open_portfolio("tech", Money::from_micros(100_000_000_000), day("2005-01-03")).unwrap()
        );
        ledger
    }

    fn shares(ledger: &Ledger, date: &str) -> i64 {
        ledger.positions("tech", day(date)).unwrap().positions.values().map(|shares| shares.shares()).sum()
    }

    #[test]
    fn money_is_neither_made_nor_lost() {
        let directory = tempfile::tempdir().unwrap();
        let ledger = opened(directory.path());
        let split = Entry::Split {
            id: "split/tech/AAPL/2005-02-28".into(),
            day: day("2005-02-28"),
            symbol: "AAPL".parse().unwrap(),
            quantity: Quantity::new(15),
            cash: Money::from_micros(22_000_000),
        };
        let entries = [
            fill("1", "2005-02-24", Side::Buy, 10, "80"),
            fill("2", "2005-02-25", Side::Sell, 5, "88.99"),
            split,
            fill("3", "2005-03-01", Side::Sell, 15, "45"),
        ];
        assert_eq!(ledger.post("tech", &entries).unwrap().new_rows, 4);
        assert_eq!(ledger.post("tech", &entries).unwrap().same_rows, 4);
        let through = |date: &str| ledger.positions("tech", day(date)).unwrap();
        assert_eq!(through("2005-02-23").cash.micros(), 100_000_000_000);
        assert_eq!(through("2005-02-24").cash.micros(), 100_000_000_000 - 800_000_000 - 1_500_000);
        assert_eq!([shares(&ledger, "2005-02-24"), shares(&ledger, "2005-02-25")], [10, 5]);
        assert_eq!([shares(&ledger, "2005-02-28"), shares(&ledger, "2005-03-01")], [15, 0]);
        let expected =
            100_000_000_000_i64 - 800_000_000 + 444_950_000 + 22_000_000 + 675_000_000 - 3 * 1_500_000;
        assert_eq!(through("2005-03-01").cash.micros(), expected);
        assert!(through("2005-03-01").positions.is_empty());
        assert_eq!(ledger.audit_balance().unwrap(), Audited { portfolios: 1, entries: 5, postings: 13 });
        assert_eq!(ledger.entries("tech", day("2005-02-24"), day("2005-03-01")).unwrap(), entries);
    }

    #[test]
    fn an_entry_is_posted_once_and_never_changed() {
        let directory = tempfile::tempdir().unwrap();
        let ledger = opened(directory.path());
        ledger.open_portfolio("core", Money::from_micros(1), day("2005-01-03")).unwrap();
        ledger.post("tech", &[fill("1", "2005-02-24", Side::Buy, 10, "80")]).unwrap();
        let changed = fill("1", "2005-02-24", Side::Buy, 100, "80");
        assert!(matches!(ledger.post("tech", &[changed]), Err(StoreError::Conflict(_))));
        let elsewhere = fill("1", "2005-02-24", Side::Buy, 10, "80");
        assert!(matches!(ledger.post("core", &[elsewhere]), Err(StoreError::Conflict(_))));
        assert_eq!(shares(&ledger, "2005-02-24"), 10);
    }

    #[test]
    fn entries_are_posted_together_or_not_at_all() {
        let directory = tempfile::tempdir().unwrap();
        let ledger = opened(directory.path());
        let entries =
            [fill("1", "2005-02-24", Side::Buy, 10, "80"), fill("2", "2005-02-24", Side::Sell, 11, "80")];
        assert!(matches!(ledger.post("tech", &entries), Err(StoreError::NegativePosition(_))));
        assert_eq!(shares(&ledger, "2005-02-24"), 0);
        assert_eq!(ledger.audit_balance().unwrap().entries, 1);
    }

    #[test]
    fn amounts_that_cannot_be_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        let ledger = opened(directory.path());
        for bad in [
            fill("1", "2005-02-24", Side::Buy, 0, "80"),
            fill("2", "2005-02-24", Side::Sell, -5, "80"),
            fill("3", "2005-02-24", Side::Buy, i64::MAX, "80"),
        ] {
            assert!(matches!(ledger.post("tech", &[bad]), Err(StoreError::Amount(_))));
        }
        let second = Entry::Open { id: "more".into(), day: day("2005-02-24"), cash: Money::from_micros(1) };
        assert!(matches!(ledger.post("tech", &[second]), Err(StoreError::Conflict(_))));
        assert!(matches!(ledger.post("none", &[]), Err(StoreError::NoPortfolio(_))));
    }

    #[test]
    fn a_portfolio_is_opened_once() {
        let directory = tempfile::tempdir().unwrap();
        let ledger = opened(directory.path());
        let cash = Money::from_micros(100_000_000_000);
        assert!(!ledger.open_portfolio("tech", cash, day("2005-01-03")).unwrap());
        let richer = ledger.open_portfolio("tech", Money::from_micros(1), day("2005-01-03"));
        assert!(matches!(richer, Err(StoreError::Conflict(_))));
        assert_eq!(ledger.positions("tech", day("2005-01-03")).unwrap().cash, cash);
    }

    #[test]
    fn a_day_closes_once() {
        let directory = tempfile::tempdir().unwrap();
        let ledger = opened(directory.path());
        let close = |date: &str, equity: i64| DayClose {
            day: day(date),
            equity: Money::from_micros(equity),
            cash: Money::ZERO,
        };
        let closes = [close("2005-01-03", 5), close("2005-01-04", 6)];
        assert_eq!(ledger.put_day_closes("tech", &closes).unwrap().new_rows, 2);
        assert_eq!(ledger.put_day_closes("tech", &closes).unwrap().same_rows, 2);
        let rewritten = ledger.put_day_closes("tech", &[close("2005-01-05", 7), close("2005-01-04", 9)]);
        assert!(matches!(rewritten, Err(StoreError::Conflict(_))));
        assert_eq!(ledger.day_closes("tech", day("2005-01-01"), day("2006-01-01")).unwrap(), closes);
    }

    #[test]
    fn books_that_somebody_cooked_are_found_out() {
        for recipe in [
            "UPDATE postings SET amount = amount + 1 WHERE account = 'cash' AND entry = 2",
            "UPDATE postings SET shares = 1000 WHERE shares = 10",
            "DELETE FROM postings WHERE account = 'fees'",
            "UPDATE entries SET content = replace(content, '80000000', '8000000') WHERE id = '1'",
            "UPDATE entries SET day = 20050101 WHERE id = '1'",
            "UPDATE portfolios SET cash = 5",
            "INSERT INTO portfolios VALUES ('ghost', 20050101, 5)",
            "DELETE FROM postings WHERE entry = 2; DELETE FROM entries WHERE id = 'open/tech'",
            // Balanced, and still not what happened.
            "UPDATE postings SET amount = amount - 5 WHERE account = 'cash' AND entry = 2;
             UPDATE postings SET amount = amount + 5 WHERE account = 'fees' AND entry = 2",
        ] {
            let directory = tempfile::tempdir().unwrap();
            let ledger = opened(directory.path());
            ledger.post("tech", &[fill("1", "2005-02-24", Side::Buy, 10, "80")]).unwrap();
            ledger.audit_balance().unwrap();
            ledger.0.tamper(&format!("PRAGMA foreign_keys = OFF; {recipe}; PRAGMA foreign_keys = ON"));
            let audit = ledger.audit_balance();
            assert!(matches!(audit, Err(StoreError::Unbalanced(_))), "{recipe}: {audit:?}");
        }
    }
}
