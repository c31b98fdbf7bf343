//! The paper broker: the simulated market behind a file.
//!
//! Owns: one append-only file of JSON lines (a header, then orders and days in the order in which they were
//! acknowledged) and the markets that follow from it. A line is synced before its call returns. Reading the
//! file runs the same days again and compares the reports, so a file that was tampered with doesn't open.
//!
//! INVARIANT: the file is ahead of every answer. Only its last line may be torn, and a torn line was never
//! answered.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{BufRead, BufReader, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use engine::{EngineError, FillModel, OrderId, OrderIntent, OrderStatus, PaperMarket, Placed, Report};
use keys::Digest;
use market::{Bar, Day, Split, Symbol};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::BrokerError;

/// The version of the file's format.
const FORMAT: u32 = 2;

/// What opens the account. Whoever has it can trade; the broker keeps its digest only.
pub struct AccountKey(Zeroizing<Vec<u8>>);

impl AccountKey {
    /// Takes the key as it was agreed with the broker.
    #[must_use]
    pub fn new(key: &[u8]) -> Self {
        Self(Zeroizing::new(key.to_vec()))
    }

    /// What the broker knows of it: SHA-256, hexadecimal.
    fn digest(&self) -> String {
        Digest::of_parts(&[b"paper account", &self.0]).to_string()
    }
}

impl fmt::Debug for AccountKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AccountKey")
    }
}

/// The broker has the order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ack {
    /// The order.
    pub order: OrderId,
    /// The broker's own number for it, from 1; the same whenever the order is placed again.
    pub number: u64,
}

/// Bars by portfolio: the same symbol may be an adjusted series in one and a raw one in another.
type Bars = BTreeMap<String, BTreeMap<Symbol, Bar>>;
/// Splits by portfolio.
type Splits = BTreeMap<String, Vec<(Symbol, Split)>>;

/// A line of the file.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum Line {
    /// The first line.
    Header { format: u32, model: FillModel, account: String },
    /// An order that was taken.
    Order(OrderIntent),
    /// A day that was run, with what concerned a resting order of it, and the reports that were given.
    Day { day: Day, bars: Bars, splits: Splits, reports: Vec<Report> },
}

/// The paper broker.
#[derive(Debug)]
pub struct PaperBroker {
    path: PathBuf,
    file: File,
    poisoned: bool,
    state: State,
}

/// What follows from the lines.
#[derive(Debug)]
struct State {
    model: FillModel,
    markets: BTreeMap<String, PaperMarket>,
    orders: BTreeMap<OrderId, (String, u64)>,
    days: BTreeMap<Day, Vec<Report>>,
}

impl PaperBroker {
    /// Opens the account with its key, or makes one: its file is the broker's. A torn last line is cut off: it was never
    /// acknowledged.
    ///
    /// # Errors
    /// [`BrokerError::WrongKey`], [`BrokerError::Refused`] when the model is out of range, [`BrokerError::Locked`] when another process
    /// has the file, [`BrokerError::Corrupt`] when it isn't what was written or was written with another
    /// model, [`BrokerError::File`].
    pub fn open(path: &Path, model: FillModel, key: &AccountKey) -> Result<Self, BrokerError> {
        let file_error = |source| BrokerError::File { path: path.to_owned(), source };
        let mut state = State::new(model)?;
        let account = key.digest();
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .map_err(file_error)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(BrokerError::Locked { path: path.to_owned() }),
            Err(TryLockError::Error(source)) => return Err(file_error(source)),
        }
        let (mut whole, mut number) = (0_u64, 0_u64);
        let mut reader = BufReader::new(&mut file);
        let mut bytes = Vec::new();
        loop {
            bytes.clear();
            let read = reader.read_until(b'\n', &mut bytes).map_err(file_error)?;
            if read == 0 || bytes.last() != Some(&b'\n') {
                break;
            }
            number += 1;
            let corrupt = |reason| BrokerError::Corrupt { path: path.to_owned(), line: number, reason };
            let line: Line =
                serde_json::from_slice(&bytes).map_err(|_| corrupt("not a line of this file"))?;
            if let Line::Header { account: known, .. } = &line
                && !keys::equal_in_constant_time(known.as_bytes(), account.as_bytes())
            {
                return Err(BrokerError::WrongKey);
            }
            state.replay(number, line).map_err(corrupt)?;
            whole += read as u64;
        }
        file.set_len(whole).map_err(file_error)?;
        file.seek(SeekFrom::Start(whole)).map_err(file_error)?;
        let mut broker = Self { path: path.to_owned(), file, poisoned: false, state };
        if number == 0 {
            broker.append(&Line::Header { format: FORMAT, model, account })?;
            // The name of a new file is only safe once its directory is synced.
            let parent =
                path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
            File::open(parent).and_then(|directory| directory.sync_all()).map_err(file_error)?;
        }
        Ok(broker)
    }

    /// Takes an order. The same order again gives the same answer and changes nothing.
    ///
    /// # Errors
    /// [`BrokerError::Refused`] when it is no order or its id stands for another; [`BrokerError::File`] when
    /// it can't be written: then it isn't known whether it arrived, and the broker refuses everything until
    /// it is opened anew.
    pub fn place(&mut self, intent: &OrderIntent) -> Result<Ack, BrokerError> {
        if self.poisoned {
            return Err(BrokerError::Poisoned);
        }
        let (ack, placed) = self.state.place(intent)?;
        if placed == Placed::New {
            self.append(&Line::Order(intent.clone()))?;
        }
        Ok(ack)
    }

    /// Where an order is; `None` when it never arrived.
    #[must_use]
    pub fn status(&self, id: &OrderId) -> Option<OrderStatus> {
        let (portfolio, _) = self.state.orders.get(id)?;
        self.state.markets.get(portfolio)?.status(id)
    }

    /// The last day that was run; `None` before the first.
    #[must_use]
    pub fn last_day(&self) -> Option<Day> {
        self.state.days.keys().next_back().copied()
    }

    /// Runs a market day for all portfolios: splits, then the open. A day that was run already is not run
    /// again: its reports are given as they were, whatever bars are handed in.
    ///
    /// # Errors
    /// [`BrokerError::DayOver`] when a later day was run and this one wasn't; [`BrokerError::File`] and
    /// [`BrokerError::Poisoned`] as for [`PaperBroker::place`].
    pub fn run_day(
        &mut self,
        day: Day,
        bars: &BTreeMap<String, BTreeMap<Symbol, Bar>>,
        splits: &BTreeMap<String, Vec<(Symbol, Split)>>,
    ) -> Result<Vec<Report>, BrokerError> {
        if self.poisoned {
            return Err(BrokerError::Poisoned);
        }
        if let Some(reports) = self.state.days.get(&day) {
            return Ok(reports.clone());
        }
        if let Some(last) = self.last_day().filter(|last| day < *last) {
            return Err(BrokerError::DayOver { day, last });
        }
        let (bars, splits) = self.state.concerning(bars, splits);
        let reports = self.state.run_day(day, &bars, &splits)?;
        self.append(&Line::Day { day, bars, splits, reports: reports.clone() })?;
        Ok(reports)
    }

    /// Writes a line and syncs it. When that fails, memory and file may differ, so nothing more is answered.
    fn append(&mut self, line: &Line) -> Result<(), BrokerError> {
        let written = serde_json::to_vec(line).map_err(std::io::Error::from).and_then(|mut bytes| {
            bytes.push(b'\n');
            self.file.write_all(&bytes)?;
            self.file.sync_data()
        });
        written.map_err(|source| {
            self.poisoned = true;
            BrokerError::File { path: self.path.clone(), source }
        })
    }
}

impl State {
    fn new(model: FillModel) -> Result<Self, EngineError> {
        // Made only to have the model checked before anything else happens.
        PaperMarket::new(model)?;
        Ok(Self { model, markets: BTreeMap::new(), orders: BTreeMap::new(), days: BTreeMap::new() })
    }

    fn place(&mut self, intent: &OrderIntent) -> Result<(Ack, Placed), EngineError> {
        intent.check()?;
        let known = self.orders.get(&intent.id);
        // One id stands for one order over all portfolios, not only within one.
        if known.is_some_and(|(portfolio, _)| *portfolio != intent.portfolio) {
            return Err(EngineError::Conflict { id: intent.id.clone() });
        }
        let number = known.map_or(self.orders.len() as u64 + 1, |(_, number)| *number);
        if !self.markets.contains_key(&intent.portfolio) {
            self.markets.insert(intent.portfolio.clone(), PaperMarket::new(self.model)?);
        }
        let Some(market) = self.markets.get_mut(&intent.portfolio) else {
            return Err(EngineError::Intent { reason: "the portfolio has no market" });
        };
        let placed = market.place(intent)?;
        self.orders.insert(intent.id.clone(), (intent.portfolio.clone(), number));
        Ok((Ack { order: intent.id.clone(), number }, placed))
    }

    /// What of a day's bars and splits concerns a resting order: that is all the file has to keep.
    fn concerning(&self, bars: &Bars, splits: &Splits) -> (Bars, Splits) {
        let (mut kept_bars, mut kept_splits) = (Bars::new(), Splits::new());
        for (portfolio, market) in &self.markets {
            let symbols: BTreeSet<&Symbol> = market.symbols();
            let of_market = |symbol: &Symbol| symbols.contains(symbol);
            let bars = bars.get(portfolio).into_iter().flatten().filter(|(symbol, _)| of_market(symbol));
            let bars: BTreeMap<Symbol, Bar> = bars.map(|(symbol, bar)| (symbol.clone(), *bar)).collect();
            let splits = splits.get(portfolio).into_iter().flatten().filter(|(symbol, _)| of_market(symbol));
            let splits: Vec<(Symbol, Split)> = splits.cloned().collect();
            if !bars.is_empty() {
                kept_bars.insert(portfolio.clone(), bars);
            }
            if !splits.is_empty() {
                kept_splits.insert(portfolio.clone(), splits);
            }
        }
        (kept_bars, kept_splits)
    }

    fn run_day(&mut self, day: Day, bars: &Bars, splits: &Splits) -> Result<Vec<Report>, EngineError> {
        let (no_bars, no_splits) = (BTreeMap::new(), Vec::new());
        let mut reports = Vec::new();
        for (portfolio, market) in &mut self.markets {
            let bars = bars.get(portfolio).unwrap_or(&no_bars);
            let splits = splits.get(portfolio).unwrap_or(&no_splits);
            reports.extend(market.step(day, bars, splits)?);
        }
        self.days.insert(day, reports.clone());
        Ok(reports)
    }

    /// Folds a line that was written before. An error is what is wrong with it.
    fn replay(&mut self, number: u64, line: Line) -> Result<(), &'static str> {
        match line {
            Line::Header { format, model, .. } => match (number, format, model == self.model) {
                (1, FORMAT, true) => Ok(()),
                (1, FORMAT, false) => Err("it was written with another fill model"),
                (1, _, _) => Err("it has another format"),
                _ => Err("a header in the middle"),
            },
            _ if number == 1 => Err("the header is missing"),
            Line::Order(intent) => match self.place(&intent) {
                Ok((_, Placed::New)) => Ok(()),
                Ok((_, Placed::Again)) => Err("an order that was there before"),
                Err(_) => Err("an order that would have been refused"),
            },
            Line::Day { day, bars, splits, reports } => match self.run_day(day, &bars, &splits) {
                Ok(again) if again == reports => Ok(()),
                Ok(_) => Err("the day leads to other reports"),
                Err(_) => Err("the days are out of order"),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use market::{Quantity, Side};
    use proptest::prelude::*;

    use super::*;

    const MODEL: FillModel = FillModel { slippage_bps: 10, fee_bps: 5, seed: 7 };

    fn day(number: u8) -> Day {
        Day::new(2001, 1, number).unwrap()
    }

    fn intent(id: &str, portfolio: &str, on: u8) -> OrderIntent {
        OrderIntent {
            id: id.parse().unwrap(),
            portfolio: portfolio.to_owned(),
            symbol: "AAPL".parse().unwrap(),
            side: Side::Buy,
            quantity: Quantity::new(100),
            reference: "10".parse().unwrap(),
            day: day(on),
            forecast: None,
        }
    }

    /// The same symbol at two prices: adjusted in one portfolio, raw in the other.
    fn bars(on: u8) -> Bars {
        let bar = |close: &str| {
            BTreeMap::from([("AAPL".parse().unwrap(), Bar::from_close(day(on), close.parse().unwrap()))])
        };
        BTreeMap::from([("core".to_owned(), bar("1")), ("tech".to_owned(), bar("100"))])
    }

    fn run(broker: &mut PaperBroker, on: u8) -> Vec<Report> {
        broker.run_day(day(on), &bars(on), &Splits::new()).unwrap()
    }

    fn key() -> AccountKey {
        AccountKey::new(b"account")
    }

    fn path() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("broker.jsonl");
        (dir, path)
    }

    #[test]
    fn each_portfolio_fills_at_its_own_bars() {
        let (_dir, path) = path();
        let mut broker = PaperBroker::open(&path, MODEL, &key()).unwrap();
        broker.place(&intent("a", "core", 1)).unwrap();
        broker.place(&intent("b", "tech", 1)).unwrap();
        let dollars: Vec<i64> = run(&mut broker, 2)
            .iter()
            .map(|report| match report {
                Report::Filled(fill) => fill.price.micros() / market::MICROS_PER_DOLLAR,
                Report::Expired { .. } => 0,
            })
            .collect();
        assert_eq!(dollars, [1, 100]);
    }

    #[test]
    fn placing_again_gives_the_same_ack_and_another_order_of_that_id_is_refused() {
        let (_dir, path) = path();
        let mut broker = PaperBroker::open(&path, MODEL, &key()).unwrap();
        let ack = broker.place(&intent("a", "core", 1)).unwrap();
        assert_eq!(broker.place(&intent("a", "core", 1)).unwrap(), ack);
        for other in [intent("a", "core", 2), intent("a", "tech", 1)] {
            let error = broker.place(&other).unwrap_err();
            assert!(matches!(error, BrokerError::Refused(EngineError::Conflict { .. })));
            assert_eq!(error.reached(), crate::Reached::No);
        }
        drop(broker);
        let mut broker = PaperBroker::open(&path, MODEL, &key()).unwrap();
        assert_eq!(broker.status(&"a".parse().unwrap()), Some(OrderStatus::Sent));
        assert_eq!(broker.place(&intent("a", "core", 1)).unwrap(), ack);
        assert_eq!(run(&mut broker, 2).len(), 1);
        assert_eq!(broker.place(&intent("a", "core", 1)).unwrap(), ack);
        assert_eq!(run(&mut broker, 3).len(), 0, "an order fills once");
    }

    #[test]
    fn a_day_asked_for_again_gives_the_same_reports_even_after_a_restart() {
        let (_dir, path) = path();
        let mut broker = PaperBroker::open(&path, MODEL, &key()).unwrap();
        broker.place(&intent("a", "core", 1)).unwrap();
        let reports = run(&mut broker, 2);
        assert_eq!(run(&mut broker, 2), reports);
        drop(broker);
        let mut broker = PaperBroker::open(&path, MODEL, &key()).unwrap();
        assert_eq!(broker.last_day(), Some(day(2)));
        assert_eq!(broker.run_day(day(2), &Bars::new(), &Splits::new()).unwrap(), reports);
        let early = broker.run_day(day(1), &Bars::new(), &Splits::new());
        assert!(matches!(early, Err(BrokerError::DayOver { .. })));
    }

    #[test]
    fn an_account_opens_with_its_own_key_only_and_does_not_hold_it() {
        let (_dir, path) = path();
        let secret = AccountKey::new(b"canary-of-the-account");
        drop(PaperBroker::open(&path, MODEL, &secret).unwrap());
        let other = PaperBroker::open(&path, MODEL, &key());
        assert!(matches!(other, Err(BrokerError::WrongKey)), "{other:?}");
        PaperBroker::open(&path, MODEL, &secret).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(!text.contains("canary") && !format!("{secret:?}").contains("canary"));
    }

    #[test]
    fn two_processes_cannot_have_the_file_open() {
        let (_dir, path) = path();
        let _broker = PaperBroker::open(&path, MODEL, &key()).unwrap();
        assert!(matches!(PaperBroker::open(&path, MODEL, &key()), Err(BrokerError::Locked { .. })));
    }

    #[test]
    fn a_file_cut_off_anywhere_opens_with_what_was_acknowledged() {
        let (_dir, path) = path();
        let mut broker = PaperBroker::open(&path, MODEL, &key()).unwrap();
        broker.place(&intent("a", "core", 1)).unwrap();
        let before = std::fs::metadata(&path).unwrap().len();
        broker.place(&intent("b", "core", 1)).unwrap();
        drop(broker);
        let whole = std::fs::read(&path).unwrap();
        for length in (0..whole.len()).step_by(7) {
            std::fs::write(&path, &whole[..length]).unwrap();
            let mut broker = PaperBroker::open(&path, MODEL, &key()).unwrap();
            let known = broker.status(&"a".parse().unwrap());
            assert_eq!(known.is_some(), length as u64 >= before, "cut at {length}");
            assert_eq!(broker.status(&"b".parse().unwrap()), None);
            broker.place(&intent("b", "core", 1)).unwrap();
            drop(broker);
            PaperBroker::open(&path, MODEL, &key()).unwrap();
        }
    }

    #[test]
    fn a_file_that_was_changed_or_belongs_to_another_model_does_not_open() {
        let (_dir, path) = path();
        let mut broker = PaperBroker::open(&path, MODEL, &key()).unwrap();
        broker.place(&intent("a", "core", 1)).unwrap();
        run(&mut broker, 2);
        drop(broker);
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(matches!(
            PaperBroker::open(&path, FillModel { seed: 8, ..MODEL }, &key()),
            Err(BrokerError::Corrupt { line: 1, .. })
        ));
        for (from, to) in [
            ("\"quantity\":100", "\"quantity\":101"),
            ("\"fee\":", "\"fee\":1"),
            ("{\"order\"", "{\"odrer\""),
        ] {
            assert!(text.contains(from), "{from}");
            std::fs::write(&path, text.replacen(from, to, 1)).unwrap();
            assert!(
                matches!(PaperBroker::open(&path, MODEL, &key()), Err(BrokerError::Corrupt { .. })),
                "{from}"
            );
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]
        /// Killed and opened again at any point, the broker gives the reports that it would have given
        /// undisturbed.
        #[test]
        fn restarts_change_nothing(
            orders in proptest::collection::vec((0_u8..8, any::<bool>()), 0..8), restarts in any::<u16>(),
        ) {
            let (_dir, path) = path();
            let (_other_dir, other_path) = super::tests::path();
            let mut steady = Some(PaperBroker::open(&other_path, MODEL, &key()).unwrap());
            let mut broker = Some(PaperBroker::open(&path, MODEL, &key()).unwrap());
            for today in 1..10_u8 {
                if restarts >> today & 1 == 1 {
                    drop(broker.take());
                    broker = Some(PaperBroker::open(&path, MODEL, &key()).unwrap());
                }
                for (number, (_, core)) in orders.iter().enumerate().filter(|(_, (on, _))| *on == today) {
                    let order = intent(&format!("o{number}"), if *core { "core" } else { "tech" }, today);
                    let ack = steady.as_mut().unwrap().place(&order).unwrap();
                    prop_assert_eq!(broker.as_mut().unwrap().place(&order).unwrap(), ack);
                }
                let expected = run(steady.as_mut().unwrap(), today);
                prop_assert_eq!(run(broker.as_mut().unwrap(), today), expected);
            }
        }
    }
}
