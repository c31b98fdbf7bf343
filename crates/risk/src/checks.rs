//! The pre-trade checks, one small function each, in one order.
//!
//! Owns: what is checked, against which limit, and how it is named in records. A check sees the book and the
//! order and changes nothing. It doesn't know who asks: permission arrives as an [`Authorisation`] that the
//! guard made.
//!
//! INVARIANT: the kill latch is first. The first check that fails ends the matter; a value that doesn't fit
//! counts as above every limit.

use std::collections::BTreeSet;
use std::fmt;

use engine::OrderIntent;
use market::{BPS_ONE, Day, Money, Price, Quantity, Side, Symbol};
use serde::{Deserialize, Serialize};

use crate::{Book, RiskError};

/// What a portfolio may do at most. There is no default: whoever trades says each of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// Shares of one order.
    pub quantity_max: Quantity,
    /// Value of one order, absolute.
    pub order_notional_max: Money,
    /// Value of one order, in basis points of equity.
    pub order_notional_bps_max: i64,
    /// How far an order's reference may be from the last close, in basis points of the close.
    pub collar_bps: i64,
    /// How old the last close may be, in calendar days.
    pub price_age_days_max: i64,
    /// Value of one position with all its working buys, in basis points of equity.
    pub position_bps_max: i64,
    /// Orders of one market day, refused ones included.
    pub messages_per_day_max: u32,
    /// What a buy holds back beyond its value, in basis points: for slippage, fee and a rise until the open.
    pub buy_buffer_bps: i64,
    /// How much of the value of working sells may be spent before they are filled, in basis points.
    pub sell_credit_bps: i64,
}

impl Limits {
    /// Says whether the limits make sense.
    ///
    /// # Errors
    /// [`RiskError::Limits`] when one is negative, or more of the sells may be spent than they bring.
    pub fn check(&self) -> Result<(), RiskError> {
        let negative = self.quantity_max < Quantity::ZERO
            || self.order_notional_max < Money::ZERO
            || self.order_notional_bps_max < 0
            || self.collar_bps < 0
            || self.price_age_days_max < 0
            || self.position_bps_max < 0
            || self.buy_buffer_bps < 0
            || self.sell_credit_bps < 0;
        if negative {
            return Err(RiskError::Limits { reason: "a limit is below zero" });
        }
        if self.sell_credit_bps > BPS_ONE {
            return Err(RiskError::Limits { reason: "more than the whole value of the sells may be spent" });
        }
        Ok(())
    }
}

/// The switch that stops everything. There is no method that opens it again: whoever may enable trading (a
/// quorum of people, proven to the desk) makes a new latch. A new market day changes nothing about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KillLatch {
    reason: Option<String>,
}

impl KillLatch {
    /// A latch that lets orders pass.
    #[must_use]
    pub fn open() -> Self {
        Self { reason: None }
    }

    /// Stops everything. The first reason stays.
    pub fn engage(&mut self, reason: &str) {
        self.reason.get_or_insert_with(|| reason.to_owned());
    }

    /// Why everything is stopped; `None` when it isn't.
    #[must_use]
    pub fn reason(&self) -> Option<&str> {
        self.reason.as_deref()
    }

    /// Whether everything is stopped.
    #[must_use]
    pub fn is_engaged(&self) -> bool {
        self.reason.is_some()
    }
}

/// What the grant of the asking task allows; made by the desk from a grant that its guard has verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Authorisation {
    /// For which portfolio.
    pub portfolio: String,
    /// Which instruments.
    pub symbols: BTreeSet<Symbol>,
    /// How much value is left of the grant.
    pub notional_left: Money,
}

/// What a decision is made against, besides the book.
#[derive(Debug, Clone, Copy)]
pub struct Context<'a> {
    /// The switch, consulted first.
    pub kill: &'a KillLatch,
    /// The market day.
    pub day: Day,
    /// What the task may do.
    pub authorisation: &'a Authorisation,
    /// The instruments that may be traded in this portfolio at all.
    pub tradable: &'a BTreeSet<Symbol>,
}

/// The checks, in their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Check {
    /// Is everything stopped? 1 against 0.
    KillLatch,
    /// Does the grant cover portfolio, instrument and day? 1 against 0 for each that it doesn't, added up.
    Permission,
    /// Is the instrument tradable, with a close that is recent enough? Days against days.
    Instrument,
    /// Shares of the order.
    Quantity,
    /// Value of the order in millionths of a dollar, against the least of three limits.
    Notional,
    /// Distance of the reference from the last close in basis points, rounded up.
    PriceCollar,
    /// For a buy the position's value with working buys, in millionths of a dollar; for a sell the shares on
    /// sale against the shares held.
    Position,
    /// Orders of the market day, this one included.
    MessageRate,
    /// Orders with the same id, or with the same content on the same day.
    Duplicate,
    /// For a buy what it holds back in millionths of a dollar, against what is free.
    BuyingPower,
}

impl Check {
    /// The check's one spelling, which is also the reason code of a refusal.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Check::KillLatch => "kill_latch",
            Check::Permission => "permission",
            Check::Instrument => "instrument",
            Check::Quantity => "quantity",
            Check::Notional => "notional",
            Check::PriceCollar => "price_collar",
            Check::Position => "position",
            Check::MessageRate => "message_rate",
            Check::Duplicate => "duplicate",
            Check::BuyingPower => "buying_power",
        }
    }
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// What one check found. Units: see [`Check`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckOutcome {
    /// Which check.
    pub name: Check,
    /// What was found.
    pub value: i64,
    /// What is allowed at most.
    pub limit: i64,
    /// Whether the order may go on.
    pub passed: bool,
}

/// An order that passed every check, and what is held back for it. Holding one proves that a [`Book`]
/// approved this very order and reserved for it; it doesn't prove that it was journalled. Not to be copied,
/// and not to be read from text, so that a restart checks again.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct RiskApproved {
    intent: OrderIntent,
    reserved: Money,
    checks: Vec<CheckOutcome>,
}

impl RiskApproved {
    pub(crate) fn new(intent: OrderIntent, reserved: Money, checks: Vec<CheckOutcome>) -> Self {
        Self { intent, reserved, checks }
    }

    /// The order.
    #[must_use]
    pub fn intent(&self) -> &OrderIntent {
        &self.intent
    }

    /// The money that is held back for it; zero for a sell.
    #[must_use]
    pub fn reserved(&self) -> Money {
        self.reserved
    }

    /// Every check and what it found.
    #[must_use]
    pub fn checks(&self) -> &[CheckOutcome] {
        &self.checks
    }
}

/// An order that was refused. It never reaches a broker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Rejected {
    /// The order.
    pub intent: OrderIntent,
    /// The check that failed; the last one of `checks`.
    pub reason: Check,
    /// The checks up to the one that failed.
    pub checks: Vec<CheckOutcome>,
}

impl fmt::Display for Rejected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (value, limit) = self.checks.last().map_or((0, 0), |last| (last.value, last.limit));
        write!(f, "{}: {} ({value}, at most {limit})", self.intent.id, self.reason)
    }
}

/// What a check found: the value, and the most that is allowed.
type Measured = (i64, i64);
/// One check.
type Measure = fn(&Book, &OrderIntent, &Context<'_>) -> Measured;

/// The checks in the order in which they are made.
pub(crate) const CHECKS: [(Check, Measure); 10] = [
    (Check::KillLatch, kill_latch),
    (Check::Permission, permission),
    (Check::Instrument, instrument),
    (Check::Quantity, quantity),
    (Check::Notional, notional),
    (Check::PriceCollar, price_collar),
    (Check::Position, position),
    (Check::MessageRate, message_rate),
    (Check::Duplicate, duplicate),
    (Check::BuyingPower, buying_power),
];

/// A check that can't be computed fails: no limit is as large as this, for even `i64::MAX` is above the limit
/// given.
const IMPOSSIBLE: Measured = (i64::MAX, 0);

fn kill_latch(_: &Book, _: &OrderIntent, context: &Context<'_>) -> Measured {
    (i64::from(context.kill.is_engaged()), 0)
}

fn permission(book: &Book, intent: &OrderIntent, context: &Context<'_>) -> Measured {
    let granted = context.authorisation;
    let outside = [
        intent.portfolio != granted.portfolio,
        intent.portfolio != book.portfolio(),
        !granted.symbols.contains(&intent.symbol),
        intent.day != context.day,
        book.day().is_some_and(|day| context.day < day),
    ];
    (outside.into_iter().map(i64::from).sum(), 0)
}

fn instrument(book: &Book, intent: &OrderIntent, context: &Context<'_>) -> Measured {
    if !context.tradable.contains(&intent.symbol) {
        return IMPOSSIBLE;
    }
    match book.close(&intent.symbol) {
        // A close of a later day would be a look into the future.
        Some((day, _)) if day > context.day => IMPOSSIBLE,
        Some((day, _)) => (context.day.days_since(day), book.limits().price_age_days_max),
        None => IMPOSSIBLE,
    }
}

fn quantity(book: &Book, intent: &OrderIntent, _: &Context<'_>) -> Measured {
    match intent.check() {
        Ok(()) => (intent.quantity.shares(), book.limits().quantity_max.shares()),
        Err(_) => IMPOSSIBLE,
    }
}

/// The price an order is valued at: its reference or the last close, whichever is higher, so that a low
/// reference hides nothing.
pub(crate) fn valuation(book: &Book, intent: &OrderIntent) -> Option<Price> {
    book.close(&intent.symbol).map(|(_, close)| close.max(intent.reference))
}

fn value_of(book: &Book, intent: &OrderIntent) -> Option<Money> {
    valuation(book, intent)?.checked_mul(intent.quantity)
}

fn notional(book: &Book, intent: &OrderIntent, context: &Context<'_>) -> Measured {
    let limits = book.limits();
    let share = book.equity().and_then(|equity| equity.checked_bps_down(limits.order_notional_bps_max));
    match (value_of(book, intent), share) {
        (Some(value), Some(share)) => {
            let limit = share.min(limits.order_notional_max).min(context.authorisation.notional_left);
            (value.micros(), limit.micros())
        }
        _ => IMPOSSIBLE,
    }
}

fn price_collar(book: &Book, intent: &OrderIntent, _: &Context<'_>) -> Measured {
    let Some((_, close)) = book.close(&intent.symbol) else { return IMPOSSIBLE };
    let close = i128::from(close.micros());
    let distance = (i128::from(intent.reference.micros()) - close).abs() * i128::from(BPS_ONE);
    match i64::try_from((distance + close - 1) / close) {
        Ok(bps) => (bps, book.limits().collar_bps),
        Err(_) => IMPOSSIBLE,
    }
}

fn position(book: &Book, intent: &OrderIntent, _: &Context<'_>) -> Measured {
    let held = book.account().held(&intent.symbol);
    let working = book.working_shares(&intent.symbol, intent.side);
    let measured = match intent.side {
        // No shorting: the shares of all working sells together must be there.
        Side::Sell => working
            .and_then(|working| working.checked_add(intent.quantity))
            .map(|on_sale| (on_sale.shares(), held.shares())),
        Side::Buy => working.and_then(|working| {
            let shares = held.checked_add(working)?.checked_add(intent.quantity)?;
            let value = valuation(book, intent)?.checked_mul(shares)?;
            let limit = book.equity()?.checked_bps_down(book.limits().position_bps_max)?;
            Some((value.micros(), limit.micros()))
        }),
    };
    measured.unwrap_or(IMPOSSIBLE)
}

fn message_rate(book: &Book, _: &OrderIntent, context: &Context<'_>) -> Measured {
    (i64::from(book.messages(context.day)) + 1, i64::from(book.limits().messages_per_day_max))
}

fn duplicate(book: &Book, intent: &OrderIntent, _: &Context<'_>) -> Measured {
    let known = book.seen(intent).is_some() || book.repeats(intent);
    (i64::from(known), 0)
}

fn buying_power(book: &Book, intent: &OrderIntent, _: &Context<'_>) -> Measured {
    match intent.side {
        Side::Sell => (0, 0),
        Side::Buy => match (book.reservation_for(intent), book.free_cash()) {
            (Some(needed), Some(free)) => (needed.micros(), free.micros()),
            _ => IMPOSSIBLE,
        },
    }
}
