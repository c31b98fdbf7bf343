//! The book of one portfolio: account, working orders, reservations, what was seen.
//!
//! Owns: the state that decisions are made on and the events that change it. Each event is folded in the same
//! way when it happens and when it is read back from the record, so that a restarted desk has the same book.
//!
//! INVARIANT: a reservation is never negative, belongs to a working order, and ends with it. One id stands
//! for one order for ever. A new market day forgets counts and repetitions, nothing else.

use std::collections::{BTreeMap, BTreeSet};

use engine::{Account, Fill, OrderId, OrderIntent, SplitEffect, split_quantity};
use market::{BPS_ONE, Day, Money, Price, Quantity, Side, Split, Symbol};

use crate::RiskError;
use crate::checks::{CHECKS, Check, CheckOutcome, Context, Limits, Rejected, RiskApproved, valuation};

/// What is known of an order that was asked for before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seen {
    /// It was approved; ask the order's state for what became of it.
    Approved,
    /// It was refused, and stays so.
    Rejected(Check),
    /// The id stands for another order.
    Conflict,
}

/// Whether an event changed the book.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Applied {
    /// It did.
    New,
    /// It had been booked already; nothing changed.
    Again,
}

/// An order at the broker, or on its way there.
#[derive(Debug, Clone)]
struct Working {
    quantity: Quantity,
    /// What a buy holds back.
    reserved: Money,
    /// What a sell is expected to bring, at the price it was approved at.
    expected: Money,
}

#[derive(Debug, Clone)]
enum Outcome {
    Approved,
    Rejected(Check),
}

/// What an order is besides its id; two approved orders of one day may not have the same.
type Content = (Symbol, Side, Quantity);

/// The book of one portfolio.
#[derive(Debug, Clone)]
pub struct Book {
    portfolio: String,
    limits: Limits,
    account: Account,
    closes: BTreeMap<Symbol, (Day, Price)>,
    orders: BTreeMap<OrderId, (OrderIntent, Outcome)>,
    working: BTreeMap<OrderId, Working>,
    fills: BTreeSet<String>,
    day: Option<Day>,
    messages: u32,
    contents: BTreeSet<Content>,
}

impl Book {
    /// An empty book with some money.
    ///
    /// # Errors
    /// [`RiskError::Limits`] when the limits make no sense or the money is below zero.
    pub fn new(portfolio: &str, limits: Limits, cash: Money) -> Result<Self, RiskError> {
        limits.check()?;
        if cash < Money::ZERO {
            return Err(RiskError::Limits { reason: "a book can't start with debts" });
        }
        Ok(Self {
            portfolio: portfolio.to_owned(),
            limits,
            account: Account::new(cash),
            closes: BTreeMap::new(),
            orders: BTreeMap::new(),
            working: BTreeMap::new(),
            fills: BTreeSet::new(),
            day: None,
            messages: 0,
            contents: BTreeSet::new(),
        })
    }

    /// Decides on an order. An approval holds back what the order may need, at once.
    ///
    /// Ask [`Book::seen`] first: an order that was asked for before has its answer already, and asking for it
    /// here is refused as a duplicate. Every call that gets past the kill latch and permission counts as a
    /// message.
    ///
    /// # Errors
    /// [`Rejected`] with the check that failed. Nothing is held back then; a refusal of a new id is kept for
    /// [`Book::seen`].
    #[expect(
        clippy::result_large_err,
        reason = "both answers carry the order and its checks; they are equally large"
    )]
    pub fn approve(&mut self, intent: OrderIntent, context: &Context<'_>) -> Result<RiskApproved, Rejected> {
        let mut checks = Vec::with_capacity(CHECKS.len());
        for (name, measure) in CHECKS {
            let (value, limit) = measure(self, &intent, context);
            let passed = value <= limit;
            checks.push(CheckOutcome { name, value, limit, passed });
            if !passed {
                self.note_rejected(&intent, name, context.day);
                return Err(Rejected { intent, reason: name, checks });
            }
        }
        // The last check computed the same reservation, so this can't be `None` for a buy; if it ever is,
        // nothing is sent.
        let Some(reserved) = self.admit(&intent) else {
            checks.push(CheckOutcome { name: Check::BuyingPower, value: i64::MAX, limit: 0, passed: false });
            self.note_rejected(&intent, Check::BuyingPower, context.day);
            return Err(Rejected { intent, reason: Check::BuyingPower, checks });
        };
        Ok(RiskApproved::new(intent, reserved, checks))
    }

    /// Takes back, while the record is read after a restart, an order that is journalled as approved. It
    /// isn't checked again: it may be at the broker already. **Only for orders that the record says were
    /// approved.**
    ///
    /// # Errors
    /// [`RiskError::Taken`] when the id is taken, [`RiskError::Mismatch`] when the order can't be valued:
    /// then the record was folded in another order than it was written.
    pub fn readmit(&mut self, intent: &OrderIntent) -> Result<(), RiskError> {
        if self.orders.contains_key(&intent.id) {
            return Err(RiskError::Taken { order: intent.id.clone() });
        }
        match self.admit(intent) {
            Some(_) => Ok(()),
            None => Err(RiskError::Mismatch { order: intent.id.clone(), reason: "it can't be valued" }),
        }
    }

    /// Takes back, while the record is read after a restart, an order that is journalled as refused, so that
    /// the same question gets the same answer and counts as a message as it did.
    pub fn readmit_rejected(&mut self, intent: &OrderIntent, reason: Check) {
        self.note_rejected(intent, reason, intent.day);
    }

    /// What is known of an order that was asked for before; `None` when the id is new. Asking changes
    /// nothing.
    #[must_use]
    pub fn seen(&self, intent: &OrderIntent) -> Option<Seen> {
        self.orders.get(&intent.id).map(|(known, outcome)| match outcome {
            _ if known != intent => Seen::Conflict,
            Outcome::Approved => Seen::Approved,
            Outcome::Rejected(check) => Seen::Rejected(*check),
        })
    }

    /// Books a fill and gives back what was held back for it.
    ///
    /// # Errors
    /// [`RiskError`] when the fill is for no approved order or doesn't fit it, or the account refuses it;
    /// nothing has changed then, and the desk should stop: the broker did something that nobody approved.
    pub fn on_fill(&mut self, fill: &Fill) -> Result<Applied, RiskError> {
        if self.fills.contains(&fill.id) {
            return Ok(Applied::Again);
        }
        let mismatch = |reason| Err(RiskError::Mismatch { order: fill.order.clone(), reason });
        let intent = match self.orders.get(&fill.order) {
            Some((intent, Outcome::Approved)) => intent,
            _ => return Err(RiskError::NeverApproved { order: fill.order.clone() }),
        };
        if intent.symbol != fill.symbol || intent.side != fill.side || intent.portfolio != fill.portfolio {
            return mismatch("another instrument, side or portfolio");
        }
        let Some(working) = self.working.get(&fill.order) else { return mismatch("it had ended") };
        if fill.quantity > working.quantity {
            return mismatch("more shares than ordered");
        }
        let rest = |amount: Money, left: Quantity| {
            amount.checked_ratio_down(left.shares(), working.quantity.shares())
        };
        let left = working.quantity.checked_sub(fill.quantity).ok_or(engine::EngineError::Overflow)?;
        let after = match (left, rest(working.reserved, left), rest(working.expected, left)) {
            (Quantity::ZERO, _, _) => None,
            (quantity, Some(reserved), Some(expected)) => Some(Working { quantity, reserved, expected }),
            _ => return Err(engine::EngineError::Overflow.into()),
        };
        self.account.apply_fill(fill)?;
        match after {
            Some(after) => self.working.insert(fill.order.clone(), after),
            None => self.working.remove(&fill.order),
        };
        self.fills.insert(fill.id.clone());
        Ok(Applied::New)
    }

    /// Gives back what was held back for an order that ended without a (further) fill.
    ///
    /// # Errors
    /// [`RiskError::NeverApproved`].
    pub fn on_ended(&mut self, order: &OrderId) -> Result<Applied, RiskError> {
        match self.orders.get(order) {
            Some((_, Outcome::Approved)) => match self.working.remove(order) {
                Some(_) => Ok(Applied::New),
                None => Ok(Applied::Again),
            },
            _ => Err(RiskError::NeverApproved { order: order.clone() }),
        }
    }

    /// Books a split, before the fills of its day: the position, the last close, and the working orders that
    /// were decided before it. The caller sees to it that each split is booked once.
    ///
    /// # Errors
    /// [`RiskError::Account`] when shares are held without a known close, or an amount doesn't fit.
    pub fn on_split(&mut self, symbol: &Symbol, split: &Split) -> Result<SplitEffect, RiskError> {
        let mut resized = Vec::new();
        for (id, working) in &self.working {
            let concerned =
                |(intent, _): &&(OrderIntent, Outcome)| intent.symbol == *symbol && intent.day < split.day();
            if self.orders.get(id).filter(concerned).is_some() {
                let (quantity, _) =
                    split_quantity(working.quantity, split).ok_or(engine::EngineError::Overflow)?;
                resized.push((id.clone(), quantity));
            }
        }
        let held = self.account.held(symbol);
        let effect = match self.closes.get(symbol).copied() {
            Some((day, close)) => {
                let adjusted = split.adjust(close).ok_or(engine::EngineError::Overflow)?;
                let effect = self.account.apply_split(symbol, split, close)?;
                self.closes.insert(symbol.clone(), (day, adjusted));
                effect
            }
            None if held == Quantity::ZERO => {
                SplitEffect { before: Quantity::ZERO, after: Quantity::ZERO, paid: Money::ZERO }
            }
            None => return Err(engine::EngineError::NoPrice { symbol: symbol.clone() }.into()),
        };
        for (id, quantity) in resized {
            if let Some(working) = self.working.get_mut(&id) {
                working.quantity = quantity;
            }
        }
        Ok(effect)
    }

    /// Takes the closes of a market day and gives the equity at them.
    ///
    /// # Errors
    /// [`RiskError::DayOrder`] when the day is before the book's, [`RiskError::Account`] when the equity
    /// doesn't fit.
    pub fn on_day_close(&mut self, day: Day, prices: &BTreeMap<Symbol, Price>) -> Result<Money, RiskError> {
        if let Some(last) = self.day.filter(|last| day < *last) {
            return Err(RiskError::DayOrder { day, last });
        }
        self.roll_to(day);
        for (symbol, price) in prices {
            self.closes.insert(symbol.clone(), (day, *price));
        }
        Ok(self.account.equity(&self.prices())?)
    }

    /// The portfolio's name.
    #[must_use]
    pub fn portfolio(&self) -> &str {
        &self.portfolio
    }

    /// The limits.
    #[must_use]
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Cash and positions.
    #[must_use]
    pub fn account(&self) -> &Account {
        &self.account
    }

    /// The market day of the last event; `None` before the first.
    #[must_use]
    pub fn day(&self) -> Option<Day> {
        self.day
    }

    /// The last close of an instrument and its day.
    #[must_use]
    pub fn close(&self, symbol: &Symbol) -> Option<(Day, Price)> {
        self.closes.get(symbol).copied()
    }

    /// The last closes.
    #[must_use]
    pub fn prices(&self) -> BTreeMap<Symbol, Price> {
        self.closes.iter().map(|(symbol, (_, price))| (symbol.clone(), *price)).collect()
    }

    /// Cash and the value of all shares at the last closes; `None` when it doesn't fit.
    #[must_use]
    pub fn equity(&self) -> Option<Money> {
        let mut equity = self.account.cash;
        for (symbol, position) in &self.account.positions {
            let (_, close) = self.closes.get(symbol)?;
            equity = equity.checked_add(close.checked_mul(position.quantity)?)?;
        }
        Some(equity)
    }

    /// The orders that are at the broker or on their way there.
    pub fn working(&self) -> impl Iterator<Item = &OrderIntent> {
        self.working.keys().filter_map(|id| self.orders.get(id)).map(|(intent, _)| intent)
    }

    /// What all working buys hold back together; `None` when it doesn't fit.
    #[must_use]
    pub fn reserved(&self) -> Option<Money> {
        let mut sum = Money::ZERO;
        for working in self.working.values() {
            assert!(working.reserved >= Money::ZERO, "a reservation is never negative");
            sum = sum.checked_add(working.reserved)?;
        }
        Some(sum)
    }

    /// What a new buy may hold back: cash, less what working buys hold back, plus the allowed part of what
    /// working sells are expected to bring. `None` when it doesn't fit.
    #[must_use]
    pub fn free_cash(&self) -> Option<Money> {
        let mut expected = Money::ZERO;
        for working in self.working.values() {
            expected = expected.checked_add(working.expected)?;
        }
        let credit = expected.checked_bps_down(self.limits.sell_credit_bps)?;
        self.account.cash.checked_sub(self.reserved()?)?.checked_add(credit)
    }

    /// The shares of one instrument in working orders of one side; `None` when it doesn't fit.
    #[must_use]
    pub fn working_shares(&self, symbol: &Symbol, side: Side) -> Option<Quantity> {
        let mut shares = Quantity::ZERO;
        for (id, working) in &self.working {
            if self.orders.get(id).is_some_and(|(intent, _)| intent.symbol == *symbol && intent.side == side)
            {
                shares = shares.checked_add(working.quantity)?;
            }
        }
        Some(shares)
    }

    /// How many orders were asked for on a market day, refused ones included.
    #[must_use]
    pub fn messages(&self, day: Day) -> u32 {
        if self.day == Some(day) { self.messages } else { 0 }
    }

    /// Whether an order of the same content was approved on the same day under another id.
    pub(crate) fn repeats(&self, intent: &OrderIntent) -> bool {
        self.day == Some(intent.day) && self.contents.contains(&content(intent))
    }

    /// What an order would hold back: nothing for a sell; for a buy its value and the buffer.
    pub(crate) fn reservation_for(&self, intent: &OrderIntent) -> Option<Money> {
        match intent.side {
            Side::Sell => Some(Money::ZERO),
            Side::Buy => {
                let value = valuation(self, intent)?.checked_mul(intent.quantity)?;
                value.checked_bps_up(BPS_ONE.checked_add(self.limits.buy_buffer_bps)?)
            }
        }
    }

    /// Makes an order a working one. `None`, and nothing has changed, when it can't be valued.
    fn admit(&mut self, intent: &OrderIntent) -> Option<Money> {
        let reserved = self.reservation_for(intent)?;
        let expected = match intent.side {
            Side::Buy => Money::ZERO,
            // The lower of reference and close: what a sell brings is not to be overstated.
            Side::Sell => self.close(&intent.symbol)?.1.min(intent.reference).checked_mul(intent.quantity)?,
        };
        assert!(reserved >= Money::ZERO && expected >= Money::ZERO, "a reservation is never negative");
        self.roll_to(intent.day);
        self.messages = self.messages.saturating_add(1);
        self.contents.insert(content(intent));
        self.working.insert(intent.id.clone(), Working { quantity: intent.quantity, reserved, expected });
        self.orders.insert(intent.id.clone(), (intent.clone(), Outcome::Approved));
        Some(reserved)
    }

    /// Keeps a refusal. A question that has no business here (stopped, or not permitted) leaves no trace in
    /// the book: it could otherwise use up the ids and the messages of another task.
    fn note_rejected(&mut self, intent: &OrderIntent, reason: Check, day: Day) {
        match reason {
            Check::KillLatch | Check::Permission => {}
            // Counted, but not kept: what is kept of a day is bounded by the day's number of messages.
            Check::MessageRate => self.messages = self.messages.saturating_add(1),
            _ => {
                self.roll_to(day);
                self.messages = self.messages.saturating_add(1);
                self.orders
                    .entry(intent.id.clone())
                    .or_insert_with(|| (intent.clone(), Outcome::Rejected(reason)));
            }
        }
    }

    /// Begins a market day if it is a new one.
    fn roll_to(&mut self, day: Day) {
        if self.day.is_none_or(|last| last < day) {
            self.day = Some(day);
            self.messages = 0;
            self.contents.clear();
        }
    }
}

fn content(intent: &OrderIntent) -> Content {
    (intent.symbol.clone(), intent.side, intent.quantity)
}

#[cfg(test)]
mod tests;
