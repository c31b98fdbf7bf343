//! The desk's two acts: deciding on an order, and running market days.
//!
//! Owns: memory, journal and broker together, and the order in which they are touched: decide, journal, send,
//! journal. It needs no network: grants come in as permits, bars as values.
//!
//! INVARIANT: the broker hears of an order only after the disk has the approval. When memory may be ahead of the
//! journal, the desk does nothing more until it is started again.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

use audit::journal::Entry;
use audit::record::{Check as RecordedCheck, Record};
use brokers::{AccountKey, BrokerError, PaperBroker, Report};
use engine::{FillModel, OrderId, OrderIntent};
use market::{Bar, Day, Money, Price, Series, Split, Symbol};
use risk::{Applied, Authorisation, Check, CheckOutcome, Context, KillLatch, RiskApproved};
use serde_json::{Value, json};
use wire::api::{LedgerEntry, OrderReply};
use wire::journal::Journal;

use crate::memory::{Before, Memory, Progress, record_of};
use crate::{Authorized, DeskConfig, DeskError, Session};

/// Bars and splits by portfolio and symbol.
pub type PortfolioSeries = BTreeMap<String, BTreeMap<Symbol, Series>>;

/// The desk.
pub struct Desk {
    journal: Arc<Journal>,
    memory: Memory,
    /// Gone after a failed write, until it is opened anew.
    broker: Option<PaperBroker>,
    account: Account,
    model: FillModel,
    poisoned: bool,
    #[cfg(test)]
    crash_after: Option<u32>,
}

/// The account at the broker.
#[derive(Debug)]
pub struct Account {
    /// The paper broker's file.
    pub path: PathBuf,
    /// What opens it.
    pub key: AccountKey,
}

impl Account {
    fn open(&self, model: FillModel) -> Result<PaperBroker, BrokerError> {
        PaperBroker::open(&self.path, model, &self.key)
    }
}

/// An order that is not sent, and why.
struct Refusal {
    intent: OrderIntent,
    reason: String,
    checks: Vec<RecordedCheck>,
}

impl Desk {
    /// Remembers from the journal's entries, opens the broker and looks up what became of every order that was
    /// approved and isn't known to be sent.
    ///
    /// # Errors
    /// When the entries don't follow from each other, or the broker or the journal can't be used.
    pub fn open(
        config: &DeskConfig,
        journal: Arc<Journal>,
        entries: &[Entry],
        account: Account,
        kill: &KillLatch,
    ) -> Result<Self, DeskError> {
        let mut desk = Self {
            journal,
            memory: Memory::replay(config.limits.clone(), entries)?,
            broker: Some(account.open(config.broker)?),
            account,
            model: config.broker,
            poisoned: false,
            #[cfg(test)]
            crash_after: None,
        };
        desk.guarded(|desk| desk.reconcile(kill))?;
        Ok(desk)
    }

    /// What the desk knows.
    #[must_use]
    pub fn memory(&self) -> &Memory {
        &self.memory
    }

    /// Whether the desk has failed and must be started again.
    #[must_use]
    pub fn is_poisoned(&self) -> bool {
        self.poisoned
    }

    /// Decides on an order, and sends it if it is approved. The same order again gets the same answer, and
    /// nothing is sent again.
    ///
    /// # Errors
    /// When the decision can't be journalled or memory and world disagree; what can be decided is no error.
    pub fn place(&mut self, order: Authorized, kill: &KillLatch) -> Result<OrderReply, DeskError> {
        self.guarded(|desk| desk.try_place(order, kill))
    }

    /// Runs the market days of a session that are not closed yet: splits, then fills, then closes of each day.
    /// Interrupted anywhere and called again, it ends in the same state.
    ///
    /// # Errors
    /// When the bars aren't those of the session, or the broker or the journal can't be used.
    pub fn run_session(
        &mut self,
        session: &Session,
        series: &PortfolioSeries,
        kill: &KillLatch,
    ) -> Result<(), DeskError> {
        session.check(series)?;
        self.guarded(|desk| desk.try_session(session, series, kill))
    }

    /// The ledger entries of one portfolio that belong to a session.
    #[must_use]
    pub fn entries(&self, session: &Session, portfolio: &str) -> Vec<LedgerEntry> {
        self.memory.entries(portfolio, session.after(portfolio), session.day)
    }

    /// What a session brought; the same however often it was interrupted.
    #[must_use]
    pub fn summary(&self, session: &Session) -> Value {
        let (mut equity, mut days, mut fills) = (BTreeMap::new(), BTreeSet::new(), 0_usize);
        for part in &session.portfolios {
            let closed = self.memory.closed(&part.portfolio, part.after, session.day);
            if let Some((_, last)) = closed.last() {
                equity.insert(part.portfolio.as_str(), last.micros());
            }
            days.extend(closed.iter().map(|(day, _)| *day));
            let entries = self.memory.entries(&part.portfolio, part.after, session.day);
            fills += entries.iter().filter(|entry| matches!(entry, LedgerEntry::Fill { .. })).count();
        }
        json!({ "equity": equity, "days": days.len(), "fills": fills })
    }

    /// Nothing is done by a desk that failed; and one that fails while memory may be ahead of the journal has
    /// failed for good.
    fn guarded<R>(&mut self, act: impl FnOnce(&mut Self) -> Result<R, DeskError>) -> Result<R, DeskError> {
        if self.poisoned {
            return Err(DeskError::Poisoned);
        }
        let result = act(self);
        self.poisoned = match &result {
            Ok(_) | Err(DeskError::Broker(_) | DeskError::Session(_)) => false,
            Err(
                DeskError::Journal(_)
                | DeskError::Risk(_)
                | DeskError::Record { .. }
                | DeskError::Disagree(_)
                | DeskError::Poisoned,
            ) => true,
        };
        result
    }

    fn try_place(&mut self, order: Authorized, kill: &KillLatch) -> Result<OrderReply, DeskError> {
        if self.memory.unsent().next().is_some() {
            self.reconcile_if_possible(kill)?;
        }
        match self.memory.before(&order.intent) {
            Some(Before::Approved(progress)) => return Ok(reply(&order.intent.id, &progress)),
            Some(Before::Rejected(check)) => return Ok(rejected(&order.intent.id, check.as_str())),
            Some(Before::Conflict) | None => {}
        }
        let (grant, task) = (order.permit.grant().to_owned(), order.permit.task().to_owned());
        let (agent, forecast) = (order.agent.clone(), order.forecast.clone());
        let equity = self.memory.book(&order.intent.portfolio).and_then(risk::Book::equity);
        let decision = self.decide(order, kill)?;
        let (intent, checks, reason) = match &decision {
            Ok(approved) => (approved.intent(), recorded(approved.checks()), "approved"),
            Err(refusal) => (&refusal.intent, refusal.checks.clone(), refusal.reason.as_str()),
        };
        let record = Record::OrderDecided {
            order: intent.id.to_string(),
            portfolio: intent.portfolio.clone(),
            symbol: intent.symbol.to_string(),
            side: intent.side.to_string(),
            quantity: intent.quantity.shares(),
            price: intent.reference.micros(),
            market_day: intent.day.to_string(),
            task,
            grant: grant.clone(),
            agent,
            forecast,
            checks,
            approved: decision.is_ok(),
            reason: reason.to_owned(),
            equity: equity.unwrap_or(Money::ZERO).micros(),
        };
        match decision {
            Ok(approved) => {
                self.journal.record_durably(&record)?;
                self.memory.note_approved(&grant, approved.intent())?;
                self.breakpoint()?;
                self.send(approved)
            }
            Err(refusal) => {
                self.journal.record(&record)?;
                Ok(rejected(&refusal.intent.id, &refusal.reason))
            }
        }
    }

    /// Decides. The outer error is a failure; the inner one is a refusal.
    fn decide(
        &mut self,
        order: Authorized,
        kill: &KillLatch,
    ) -> Result<Result<RiskApproved, Refusal>, DeskError> {
        let used = self.memory.used(order.permit.grant());
        // The kill latch is the first check of all, so that its refusal never hides behind another.
        if !kill.is_engaged()
            && let Some((reason, value, limit)) = self.desk_check(&order)
        {
            if reason == Check::Duplicate.as_str() {
                let book = self.memory.book_mut(&order.intent.portfolio)?;
                book.readmit_rejected(&order.intent, Check::Duplicate);
            }
            let check = RecordedCheck {
                name: reason.to_owned(),
                value: value.to_string(),
                limit: limit.to_string(),
                passed: false,
            };
            return Ok(Err(Refusal { intent: order.intent, reason: reason.to_owned(), checks: vec![check] }));
        }
        let granted = Money::from_micros(order.limits().notional.unwrap_or(0));
        let authorisation = Authorisation {
            portfolio: order.permit.portfolio().unwrap_or_default().to_owned(),
            symbols: order.permit.symbols().filter_map(|symbol| symbol.parse().ok()).collect(),
            notional_left: granted.checked_sub(used.notional).unwrap_or(Money::ZERO),
        };
        let book = self.memory.book_mut(&order.intent.portfolio)?;
        let Some(day) = book.day() else {
            return Err(DeskError::Disagree("a portfolio without a closed day got an order".to_owned()));
        };
        // What a session brought closes of is what may be traded; how old they may be is the book's check.
        let tradable = book.prices().into_keys().collect();
        let context = Context { kill, day, authorisation: &authorisation, tradable: &tradable };
        Ok(book.approve(order.intent, &context).map_err(|refused| Refusal {
            reason: refused.reason.as_str().to_owned(),
            checks: recorded(&refused.checks),
            intent: refused.intent,
        }))
    }

    /// What the desk refuses before it asks the book: reason code, value, limit.
    fn desk_check(&self, order: &Authorized) -> Option<(&'static str, u64, u64)> {
        let portfolio = &order.intent.portfolio;
        if self.memory.before(&order.intent) == Some(Before::Conflict) {
            return Some((Check::Duplicate.as_str(), 1, 0));
        }
        if !self.memory.has_limits(portfolio) {
            return Some(("no_limits", 1, 0));
        }
        let unsent = self.memory.unsent().filter(|intent| intent.portfolio == *portfolio).count() as u64;
        if unsent > 0 {
            return Some(("reconciling", unsent, 0));
        }
        // The guard counts too, but forgets when the process ends.
        let limit = u64::from(order.limits().orders.unwrap_or(0));
        let orders = u64::from(self.memory.used(order.permit.grant()).orders) + 1;
        (orders > limit).then_some(("grant_orders", orders, limit))
    }

    /// Sends an order whose approval is on the disk.
    fn send(&mut self, approved: RiskApproved) -> Result<OrderReply, DeskError> {
        let intent = approved.intent();
        self.hand_over(intent)?;
        Ok(match self.memory.progress(&intent.id) {
            Some(progress) => reply(&intent.id, progress),
            None => reply(&intent.id, &Progress::Approved),
        })
    }

    /// Gives a journalled order to the broker and notes what came of it. An order that may or may not have
    /// arrived stays as it is.
    fn hand_over(&mut self, intent: &OrderIntent) -> Result<(), DeskError> {
        let placed = match self.broker() {
            Ok(broker) => broker.place(intent),
            Err(error) => Err(error),
        };
        match placed {
            Ok(_) => {
                self.breakpoint()?;
                self.note_sent(&intent.id)
            }
            Err(BrokerError::Refused(error)) => {
                tracing::error!(order = %intent.id, %error, "the broker refuses an approved order");
                self.end(&intent.id, "rejected", "broker_refused", intent.day)
            }
            Err(
                error @ (BrokerError::DayOver { .. }
                | BrokerError::WrongKey
                | BrokerError::Locked { .. }
                | BrokerError::File { .. }
                | BrokerError::Corrupt { .. }
                | BrokerError::Poisoned),
            ) => {
                tracing::error!(order = %intent.id, %error, "it isn't known whether an order arrived");
                self.broker = None;
                Ok(())
            }
        }
    }

    fn note_sent(&mut self, id: &OrderId) -> Result<(), DeskError> {
        self.journal.record_durably(&Record::OrderSent { order: id.to_string() })?;
        self.memory.note_sent(id)?;
        self.breakpoint()
    }

    fn end(&mut self, id: &OrderId, status: &str, reason: &str, day: Day) -> Result<(), DeskError> {
        if self.memory.apply_end(id, status, reason)? == Applied::New {
            self.journal.record(&Record::OrderEnded {
                order: id.to_string(),
                status: status.to_owned(),
                reason: reason.to_owned(),
                market_day: day.to_string(),
            })?;
            self.breakpoint()?;
        }
        Ok(())
    }

    /// The broker, opened anew when a write to it had failed.
    fn broker(&mut self) -> Result<&mut PaperBroker, BrokerError> {
        let broker = match self.broker.take() {
            Some(broker) => broker,
            None => self.account.open(self.model)?,
        };
        Ok(self.broker.insert(broker))
    }

    /// Finds out what became of every order that was approved and isn't known to be sent. What the broker
    /// doesn't have is sent now under the same id, or cancelled when everything is stopped.
    fn reconcile(&mut self, kill: &KillLatch) -> Result<(), DeskError> {
        let unsent: Vec<OrderIntent> = self.memory.unsent().cloned().collect();
        for intent in unsent {
            match self.broker()?.status(&intent.id) {
                Some(_) => self.note_sent(&intent.id)?,
                None if kill.is_engaged() => {
                    self.end(&intent.id, "cancelled", Check::KillLatch.as_str(), intent.day)?;
                }
                None => self.hand_over(&intent)?,
            }
        }
        Ok(())
    }

    /// Reconciles; a broker that still can't be asked leaves everything as it is.
    fn reconcile_if_possible(&mut self, kill: &KillLatch) -> Result<(), DeskError> {
        match self.reconcile(kill) {
            Err(DeskError::Broker(error)) => {
                tracing::warn!(%error, "orders can't be looked up at the broker yet");
                Ok(())
            }
            result => result,
        }
    }

    fn try_session(
        &mut self,
        session: &Session,
        series: &PortfolioSeries,
        kill: &KillLatch,
    ) -> Result<(), DeskError> {
        self.reconcile(kill)?;
        if self.memory.unsent().next().is_some() {
            // A day that is run without an order that may rest at the broker would be run wrongly.
            return Err(DeskError::Session("orders must be looked up first".to_owned()));
        }
        for part in &session.portfolios {
            match (self.memory.book(&part.portfolio), part.after) {
                (Some(_), _) => {}
                (None, None) => self.open_portfolio(&part.portfolio, session.day, part.cash)?,
                (None, Some(after)) => {
                    let portfolio = &part.portfolio;
                    return Err(DeskError::Session(format!("{portfolio} should be open since {after}")));
                }
            }
        }
        let bars = by_day(series);
        let last = bars.keys().next_back().copied();
        for (day, bars) in bars {
            self.run_day(day, bars, series, last == Some(day))?;
        }
        Ok(())
    }

    fn open_portfolio(&mut self, portfolio: &str, day: Day, cash: Money) -> Result<(), DeskError> {
        self.memory.open(portfolio, day, cash)?;
        self.journal.record(&Record::PortfolioOpened {
            portfolio: portfolio.to_owned(),
            market_day: day.to_string(),
            cash: cash.micros(),
        })?;
        self.breakpoint()
    }

    /// Runs one market day for the portfolios that have not closed it. A portfolio's close is its last event of
    /// the day, and no portfolio closes before every report is booked: so a day that all have closed is done.
    fn run_day(
        &mut self,
        day: Day,
        mut bars: BTreeMap<String, BTreeMap<Symbol, Bar>>,
        series: &PortfolioSeries,
        durable: bool,
    ) -> Result<(), DeskError> {
        bars.retain(|portfolio, _| self.memory.last_closed(portfolio).is_none_or(|last| last < day));
        if bars.is_empty() {
            return Ok(());
        }
        let mut splits: BTreeMap<String, Vec<(Symbol, Split)>> = BTreeMap::new();
        for portfolio in bars.keys() {
            // Before its first close a portfolio has nothing that could be split.
            let Some(last) = self.memory.last_closed(portfolio) else { continue };
            for (symbol, series) in series.get(portfolio).into_iter().flatten() {
                let due = series.splits.iter().filter(|split| split.day() > last && split.day() <= day);
                splits
                    .entry(portfolio.clone())
                    .or_default()
                    .extend(due.map(|split| (symbol.clone(), *split)));
            }
        }
        let ran = self.broker()?.run_day(day, &bars, &splits);
        let reports = ran.inspect_err(|_| self.broker = None)?;
        self.breakpoint()?;
        for (portfolio, (symbol, split)) in
            splits.iter().flat_map(|(name, splits)| splits.iter().map(move |split| (name, split)))
        {
            if let Some(record) = self.memory.apply_split(portfolio, symbol, split)? {
                self.journal.record(&record)?;
                self.breakpoint()?;
            }
        }
        for report in &reports {
            match report {
                Report::Filled(fill) => {
                    if self.memory.apply_fill(fill)? == Applied::New {
                        self.journal.record(&record_of(fill))?;
                        self.breakpoint()?;
                    }
                }
                Report::Expired { order, reason, day } => {
                    self.end(order, "expired", reason.as_str(), *day)?;
                }
            }
        }
        let last = bars.keys().next_back().cloned();
        for (portfolio, bars) in &bars {
            let closes: BTreeMap<Symbol, Price> =
                bars.iter().map(|(symbol, bar)| (symbol.clone(), bar.close)).collect();
            let record = self.memory.apply_close(portfolio, day, &closes)?;
            if durable && last.as_ref() == Some(portfolio) {
                self.journal.record_durably(&record)?;
            } else {
                self.journal.record(&record)?;
            }
            self.breakpoint()?;
        }
        Ok(())
    }

    /// A place where the process may be killed; tests do so.
    #[cfg(test)]
    fn breakpoint(&mut self) -> Result<(), DeskError> {
        match &mut self.crash_after {
            Some(0) => Err(DeskError::Poisoned),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }

    #[cfg(not(test))]
    #[expect(clippy::unnecessary_wraps, clippy::unused_self, reason = "only tests break here")]
    fn breakpoint(&mut self) -> Result<(), DeskError> {
        Ok(())
    }
}

/// The bars of each day by portfolio.
fn by_day(series: &PortfolioSeries) -> BTreeMap<Day, BTreeMap<String, BTreeMap<Symbol, Bar>>> {
    let mut days: BTreeMap<Day, BTreeMap<String, BTreeMap<Symbol, Bar>>> = BTreeMap::new();
    for (portfolio, series) in series {
        for (symbol, series) in series {
            for bar in &series.bars {
                let of_day = days.entry(bar.day).or_default().entry(portfolio.clone()).or_default();
                of_day.insert(symbol.clone(), *bar);
            }
        }
    }
    days
}

fn recorded(checks: &[CheckOutcome]) -> Vec<RecordedCheck> {
    let recorded = |check: &CheckOutcome| RecordedCheck {
        name: check.name.as_str().to_owned(),
        value: check.value.to_string(),
        limit: check.limit.to_string(),
        passed: check.passed,
    };
    checks.iter().map(recorded).collect()
}

fn rejected(id: &OrderId, reason: &str) -> OrderReply {
    OrderReply { id: id.to_string(), status: "rejected".to_owned(), reason: reason.to_owned() }
}

/// The answer about an approved order.
fn reply(id: &OrderId, progress: &Progress) -> OrderReply {
    let (status, reason) = match progress {
        Progress::Approved => ("unknown", "reconciling"),
        Progress::Sent => ("sent", "approved"),
        Progress::Filled => ("filled", "approved"),
        Progress::Ended { status, reason } if status == "expired" => ("expired", reason.as_str()),
        Progress::Ended { reason, .. } => ("rejected", reason.as_str()),
    };
    OrderReply { id: id.to_string(), status: status.to_owned(), reason: reason.to_owned() }
}

#[cfg(test)]
mod tests;
