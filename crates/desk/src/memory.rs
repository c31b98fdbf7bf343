//! What the desk knows, and how it follows from its journal.
//!
//! Owns: the books, the orders and how far each has come, what each grant has used, closed days, entries for the
//! ledger. Live events and events that are read back end in the same functions, so that a desk which starts
//! again knows what it knew. No file, no clock, no broker.
//!
//! INVARIANT: orders sent ≤ orders approved, and an order is sent once. Both are asserted, in release builds too.

use std::collections::{BTreeMap, BTreeSet};

use audit::journal::Entry;
use audit::record::Record;
use engine::{Fill, OrderId, OrderIntent};
use market::{Day, Money, Price, Quantity, Side, Split, Symbol};
use risk::{Applied, Book, Check, Limits, Seen};
use wire::api::LedgerEntry;

use crate::DeskError;
use crate::authorized::forecast_name;

/// How far an approved order has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Progress {
    /// Approved and journalled; whether the broker has it must be looked up.
    Approved,
    /// At the broker.
    Sent,
    /// Filled; terminal.
    Filled,
    /// Ended without a fill; terminal.
    Ended {
        /// `expired`, `cancelled` or `rejected`.
        status: String,
        /// Why.
        reason: String,
    },
}

#[derive(Debug)]
struct Known {
    intent: OrderIntent,
    progress: Progress,
}

/// What the approved orders of one grant add up to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Used {
    /// Orders.
    pub orders: u32,
    /// Quantity times reference.
    pub notional: Money,
}

/// What is known of an id that was asked for before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Before {
    /// The same order was approved; this is where it is.
    Approved(Progress),
    /// The same order was refused.
    Rejected(Check),
    /// The id stands for another order.
    Conflict,
}

/// The desk's memory.
#[derive(Debug, Default)]
pub struct Memory {
    limits: BTreeMap<String, Limits>,
    books: BTreeMap<String, Book>,
    orders: BTreeMap<OrderId, Known>,
    unsent: BTreeSet<OrderId>,
    sent: BTreeSet<OrderId>,
    grants: BTreeMap<String, Used>,
    splits: BTreeSet<(String, Symbol, Day)>,
    closed: BTreeMap<String, BTreeMap<Day, Money>>,
    entries: BTreeMap<String, Vec<(Day, LedgerEntry)>>,
}

/// The limits of a portfolio that has none: nothing passes.
const CLOSED: Limits = Limits {
    quantity_max: Quantity::ZERO,
    order_notional_max: Money::ZERO,
    order_notional_bps_max: 0,
    collar_bps: 0,
    price_age_days_max: 0,
    position_bps_max: 0,
    messages_per_day_max: 0,
    buy_buffer_bps: 0,
    sell_credit_bps: 0,
};

fn disagree(problem: impl Into<String>) -> DeskError {
    DeskError::Disagree(problem.into())
}

impl Memory {
    /// Remembers from the entries of a journal, in the order in which they were written.
    ///
    /// # Errors
    /// [`DeskError::Record`] for the first entry that doesn't follow from those before it.
    pub fn replay(limits: BTreeMap<String, Limits>, entries: &[Entry]) -> Result<Self, DeskError> {
        let mut memory = Self { limits, ..Self::default() };
        for entry in entries {
            memory.fold(&entry.record).map_err(|error| DeskError::Record {
                seq: entry.seq,
                problem: match &error {
                    DeskError::Risk(source) => source.to_string(),
                    other => other.to_string(),
                },
            })?;
        }
        Ok(memory)
    }

    fn fold(&mut self, record: &Record) -> Result<(), DeskError> {
        let changed = |applied| match applied {
            Applied::New => Ok(()),
            Applied::Again => Err(disagree("it had happened before")),
        };
        match record {
            Record::PortfolioOpened { portfolio, market_day, cash } => {
                self.open(portfolio, parse(market_day)?, Money::from_micros(*cash))
            }
            Record::OrderDecided { approved: true, grant, .. } => {
                let intent = intent_of(record)?;
                self.book_mut(&intent.portfolio)?.readmit(&intent)?;
                self.note_approved(grant, &intent)
            }
            Record::OrderDecided { approved: false, reason, portfolio, .. } => {
                let check = serde_json::from_value(serde_json::Value::String(reason.clone())).ok();
                // The desk's own refusals leave nothing in a book.
                if let (Some(check), Some(book)) = (check, self.books.get_mut(portfolio)) {
                    book.readmit_rejected(&intent_of(record)?, check);
                }
                Ok(())
            }
            Record::OrderSent { order } => self.note_sent(&parse(order)?),
            Record::OrderFilled { .. } => {
                let fill = fill_of(record)?;
                changed(self.apply_fill(&fill)?)
            }
            Record::OrderEnded { order, status, reason, .. } => {
                changed(self.apply_end(&parse(order)?, status, reason)?)
            }
            Record::SplitApplied { portfolio, market_day, symbol, numerator, denominator, .. } => {
                let split = Split::new(parse(market_day)?, *numerator, *denominator)
                    .map_err(|error| disagree(error.to_string()))?;
                let again = self.apply_split(portfolio, &parse(symbol)?, &split)?;
                same(again.as_ref() == Some(record), "the split has another effect")
            }
            Record::DayClosed { portfolio, market_day, closes, .. } => {
                let closes = closes
                    .iter()
                    .map(|(symbol, close)| Ok((parse(symbol)?, price(*close)?)))
                    .collect::<Result<BTreeMap<Symbol, Price>, DeskError>>()?;
                let again = self.apply_close(portfolio, parse(market_day)?, &closes)?;
                same(again == *record, "the day closes otherwise")
            }
            _ => Ok(()),
        }
    }

    /// Opens a portfolio.
    ///
    /// # Errors
    /// [`DeskError::Disagree`] when it is open, [`DeskError::Risk`] when the cash is below zero.
    pub fn open(&mut self, portfolio: &str, day: Day, cash: Money) -> Result<(), DeskError> {
        same(!self.books.contains_key(portfolio), "the portfolio is open")?;
        let limits = self.limits.get(portfolio).unwrap_or(&CLOSED).clone();
        self.books.insert(portfolio.to_owned(), Book::new(portfolio, limits, cash)?);
        let entry =
            LedgerEntry::Open { portfolio: portfolio.to_owned(), day: day.to_string(), cash: cash.micros() };
        self.keep(portfolio, day, entry);
        Ok(())
    }

    /// Notes an order that its book has admitted and the journal has.
    ///
    /// # Errors
    /// [`DeskError::Disagree`] when a sum doesn't fit.
    pub fn note_approved(&mut self, grant: &str, intent: &OrderIntent) -> Result<(), DeskError> {
        let used = self.grants.entry(grant.to_owned()).or_default();
        let value = intent.reference.checked_mul(intent.quantity);
        let sum = value.and_then(|value| used.notional.checked_add(value));
        let notional = sum.ok_or_else(|| disagree("a sum doesn't fit"))?;
        *used = Used { orders: used.orders.saturating_add(1), notional };
        let known = Known { intent: intent.clone(), progress: Progress::Approved };
        same(self.orders.insert(intent.id.clone(), known).is_none(), "the id is taken")?;
        self.unsent.insert(intent.id.clone());
        Ok(())
    }

    /// Notes that the broker has an order.
    ///
    /// # Errors
    /// [`DeskError::Disagree`] when it wasn't approved, or was sent or ended before.
    pub fn note_sent(&mut self, id: &OrderId) -> Result<(), DeskError> {
        match self.orders.get_mut(id) {
            Some(known) if known.progress == Progress::Approved => known.progress = Progress::Sent,
            Some(_) => return Err(disagree(format!("{id} was sent or had ended before"))),
            None => return Err(disagree(format!("{id} was never approved"))),
        }
        self.unsent.remove(id);
        assert!(self.sent.insert(id.clone()), "an order is sent once");
        assert!(self.sent.len() <= self.orders.len(), "no more orders are sent than approved");
        Ok(())
    }

    /// Books a fill.
    ///
    /// # Errors
    /// When the order wasn't sent, or its book refuses the fill.
    pub fn apply_fill(&mut self, fill: &Fill) -> Result<Applied, DeskError> {
        same(self.sent.contains(&fill.order), "a fill of an order that was never sent")?;
        let applied = self.book_mut(&fill.portfolio)?.on_fill(fill)?;
        if applied == Applied::New {
            if let Some(known) = self.orders.get_mut(&fill.order) {
                known.progress = Progress::Filled;
            }
            let entry = LedgerEntry::Fill {
                id: fill.id.clone(),
                order: fill.order.to_string(),
                portfolio: fill.portfolio.clone(),
                day: fill.day.to_string(),
                symbol: fill.symbol.to_string(),
                side: fill.side.to_string(),
                quantity: fill.quantity.shares(),
                price: fill.price.micros(),
                fee: fill.fee.micros(),
            };
            self.keep(&fill.portfolio, fill.day, entry);
        }
        Ok(applied)
    }

    /// Books the end of an order without a fill.
    ///
    /// # Errors
    /// When it was never approved.
    pub fn apply_end(&mut self, id: &OrderId, status: &str, reason: &str) -> Result<Applied, DeskError> {
        let known = self.orders.get_mut(id).ok_or_else(|| disagree(format!("{id} was never approved")))?;
        let book =
            self.books.get_mut(&known.intent.portfolio).ok_or_else(|| disagree("no such portfolio"))?;
        let applied = book.on_ended(id)?;
        if applied == Applied::New {
            known.progress = Progress::Ended { status: status.to_owned(), reason: reason.to_owned() };
            self.unsent.remove(id);
        }
        Ok(applied)
    }

    /// Books a split, once. The record of it; `None` when it was booked before.
    ///
    /// # Errors
    /// When the book refuses it.
    pub fn apply_split(
        &mut self,
        portfolio: &str,
        symbol: &Symbol,
        split: &Split,
    ) -> Result<Option<Record>, DeskError> {
        let key = (portfolio.to_owned(), symbol.clone(), split.day());
        if self.splits.contains(&key) {
            return Ok(None);
        }
        let effect = self.book_mut(portfolio)?.on_split(symbol, split)?;
        self.splits.insert(key);
        let (quantity, cash) = (effect.after.shares(), effect.paid.micros());
        if effect.before > Quantity::ZERO {
            let entry = LedgerEntry::Split {
                portfolio: portfolio.to_owned(),
                day: split.day().to_string(),
                symbol: symbol.to_string(),
                quantity,
                cash,
            };
            self.keep(portfolio, split.day(), entry);
        }
        Ok(Some(Record::SplitApplied {
            portfolio: portfolio.to_owned(),
            market_day: split.day().to_string(),
            symbol: symbol.to_string(),
            numerator: split.numerator(),
            denominator: split.denominator(),
            quantity,
            cash,
        }))
    }

    /// Closes a market day of a portfolio. The record of it.
    ///
    /// # Errors
    /// When the day isn't after the last one that was closed, or the book refuses it.
    pub fn apply_close(
        &mut self,
        portfolio: &str,
        day: Day,
        closes: &BTreeMap<Symbol, Price>,
    ) -> Result<Record, DeskError> {
        same(self.last_closed(portfolio).is_none_or(|last| last < day), "the day is closed")?;
        let book = self.book_mut(portfolio)?;
        let (equity, cash) = (book.on_day_close(day, closes)?, book.account().cash.micros());
        self.closed.entry(portfolio.to_owned()).or_default().insert(day, equity);
        let (portfolio, market_day, equity) = (portfolio.to_owned(), day.to_string(), equity.micros());
        let entry =
            LedgerEntry::Close { portfolio: portfolio.clone(), day: market_day.clone(), equity, cash };
        self.keep(&portfolio, day, entry);
        let closes = closes.iter().map(|(symbol, close)| (symbol.to_string(), close.micros())).collect();
        Ok(Record::DayClosed { portfolio, market_day, equity, cash, closes })
    }

    fn keep(&mut self, portfolio: &str, day: Day, entry: LedgerEntry) {
        self.entries.entry(portfolio.to_owned()).or_default().push((day, entry));
    }

    /// What is known of an order that was asked for before; `None` when the id is new.
    #[must_use]
    pub fn before(&self, intent: &OrderIntent) -> Option<Before> {
        if let Some(known) = self.orders.get(&intent.id) {
            let same = known.intent == *intent;
            return Some(if same { Before::Approved(known.progress.clone()) } else { Before::Conflict });
        }
        match self.books.get(&intent.portfolio)?.seen(intent)? {
            Seen::Rejected(check) => Some(Before::Rejected(check)),
            Seen::Approved | Seen::Conflict => Some(Before::Conflict),
        }
    }

    /// The book of a portfolio.
    #[must_use]
    pub fn book(&self, portfolio: &str) -> Option<&Book> {
        self.books.get(portfolio)
    }

    /// The book of a portfolio, to be changed.
    ///
    /// # Errors
    /// [`DeskError::Disagree`] when it isn't open.
    pub fn book_mut(&mut self, portfolio: &str) -> Result<&mut Book, DeskError> {
        self.books.get_mut(portfolio).ok_or_else(|| disagree(format!("portfolio {portfolio} is not open")))
    }

    /// Whether anybody said what a portfolio may do.
    #[must_use]
    pub fn has_limits(&self, portfolio: &str) -> bool {
        self.limits.contains_key(portfolio)
    }

    /// How far an approved order has come.
    #[must_use]
    pub fn progress(&self, id: &OrderId) -> Option<&Progress> {
        self.orders.get(id).map(|known| &known.progress)
    }

    /// The approved orders of which it isn't known whether the broker has them.
    pub fn unsent(&self) -> impl Iterator<Item = &OrderIntent> {
        self.unsent.iter().filter_map(|id| self.orders.get(id)).map(|known| &known.intent)
    }

    /// How many orders were approved, and how many of them were sent.
    #[must_use]
    pub fn counts(&self) -> (usize, usize) {
        (self.orders.len(), self.sent.len())
    }

    /// What the approved orders of a grant add up to.
    #[must_use]
    pub fn used(&self, grant: &str) -> Used {
        self.grants.get(grant).copied().unwrap_or_default()
    }

    /// The last closed day of a portfolio.
    #[must_use]
    pub fn last_closed(&self, portfolio: &str) -> Option<Day> {
        self.closed.get(portfolio)?.keys().next_back().copied()
    }

    /// The last closed day of every portfolio that has one.
    pub fn last_closed_days(&self) -> impl Iterator<Item = (&str, Day)> {
        self.closed.iter().filter_map(|(name, days)| Some((name.as_str(), *days.keys().next_back()?)))
    }

    /// The closed days of a portfolio within a range, with the equity of each.
    pub fn closed(&self, portfolio: &str, after: Option<Day>, through: Day) -> Vec<(Day, Money)> {
        let days = self.closed.get(portfolio).into_iter().flatten();
        days.filter(|(day, _)| within(**day, after, through)).map(|(day, equity)| (*day, *equity)).collect()
    }

    /// The ledger entries of a portfolio within a range of days, in the order in which they happened.
    #[must_use]
    pub fn entries(&self, portfolio: &str, after: Option<Day>, through: Day) -> Vec<LedgerEntry> {
        let entries = self.entries.get(portfolio).into_iter().flatten();
        entries.filter(|(day, _)| within(*day, after, through)).map(|(_, entry)| entry.clone()).collect()
    }
}

fn within(day: Day, after: Option<Day>, through: Day) -> bool {
    after.is_none_or(|after| after < day) && day <= through
}

fn same(holds: bool, otherwise: &str) -> Result<(), DeskError> {
    if holds { Ok(()) } else { Err(disagree(otherwise)) }
}

fn parse<T: std::str::FromStr>(text: &str) -> Result<T, DeskError> {
    text.parse().map_err(|_| disagree(format!("{text:?} is not what belongs there")))
}

fn price(micros: i64) -> Result<Price, DeskError> {
    Price::from_micros(micros).map_err(|error| disagree(error.to_string()))
}

fn side(text: &str) -> Result<Side, DeskError> {
    match text {
        "buy" => Ok(Side::Buy),
        "sell" => Ok(Side::Sell),
        _ => Err(disagree(format!("{text:?} is no side"))),
    }
}

/// The order that a decision was about.
fn intent_of(record: &Record) -> Result<OrderIntent, DeskError> {
    match record {
        Record::OrderDecided {
            order,
            portfolio,
            symbol,
            side: way,
            quantity,
            price: reference,
            market_day,
            forecast,
            ..
        } => Ok(OrderIntent {
            id: parse(order)?,
            portfolio: portfolio.clone(),
            symbol: parse(symbol)?,
            side: side(way)?,
            quantity: Quantity::new(*quantity),
            reference: price(*reference)?,
            day: parse(market_day)?,
            forecast: forecast.as_deref().map(forecast_name),
        }),
        _ => Err(disagree("no decision")),
    }
}

/// The record of a fill.
#[must_use]
pub fn record_of(fill: &Fill) -> Record {
    Record::OrderFilled {
        order: fill.order.to_string(),
        fill: fill.id.clone(),
        portfolio: fill.portfolio.clone(),
        symbol: fill.symbol.to_string(),
        side: fill.side.to_string(),
        quantity: fill.quantity.shares(),
        price: fill.price.micros(),
        fee: fill.fee.micros(),
        market_day: fill.day.to_string(),
    }
}

fn fill_of(record: &Record) -> Result<Fill, DeskError> {
    match record {
        Record::OrderFilled {
            order,
            fill,
            portfolio,
            symbol,
            side: way,
            quantity,
            price: paid,
            fee,
            market_day,
        } => Ok(Fill {
            id: fill.clone(),
            order: parse(order)?,
            portfolio: portfolio.clone(),
            symbol: parse(symbol)?,
            side: side(way)?,
            quantity: Quantity::new(*quantity),
            price: price(*paid)?,
            fee: Money::from_micros(*fee),
            day: parse(market_day)?,
        }),
        _ => Err(disagree("no fill")),
    }
}
