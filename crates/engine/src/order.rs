//! Orders and what becomes of them.
//!
//! Owns: the words for an order, its states, its fill and its end. An intent is a wish: it holds no
//! permission and no approval. One id stands for one order for ever, so that sending it again is harmless.
//!
//! INVARIANT: a terminal state is never left.

use std::fmt;
use std::str::FromStr;

use market::{Day, Money, Price, Quantity, Side, Split, Symbol};
use serde::{Deserialize, Serialize};

use crate::EngineError;

/// The longest order id and the longest portfolio name, in characters.
const NAME_LENGTH_MAX: usize = 64;
/// The longest forecast id, in characters.
const FORECAST_LENGTH_MAX: usize = 128;

/// The one name of an order, chosen by whoever wants it, the same at every retry.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct OrderId(Box<str>);

impl OrderId {
    /// The id's text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for OrderId {
    type Err = EngineError;

    fn from_str(text: &str) -> Result<Self, EngineError> {
        if plain(text, NAME_LENGTH_MAX) { Ok(Self(text.into())) } else { Err(EngineError::OrderId) }
    }
}

impl fmt::Display for OrderId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for OrderId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "OrderId({self})")
    }
}

impl TryFrom<String> for OrderId {
    type Error = EngineError;

    fn try_from(text: String) -> Result<Self, EngineError> {
        text.parse()
    }
}

impl From<OrderId> for String {
    fn from(id: OrderId) -> Self {
        id.0.into()
    }
}

/// A wish to trade at the next open after `day`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OrderIntent {
    /// Its one name.
    pub id: OrderId,
    /// For which portfolio.
    pub portfolio: String,
    /// Which instrument.
    pub symbol: Symbol,
    /// Which way.
    pub side: Side,
    /// How many shares; more than zero.
    pub quantity: Quantity,
    /// The price it was decided at.
    pub reference: Price,
    /// The market day it was decided on. It never fills on this day or before.
    pub day: Day,
    /// The forecast that it follows from, if any.
    #[serde(default)]
    pub forecast: Option<String>,
}

impl OrderIntent {
    /// Says whether the fields make an order.
    ///
    /// # Errors
    /// [`EngineError::Intent`] when the quantity isn't above zero, a name isn't plain or too long, or the
    /// value doesn't fit.
    pub fn check(&self) -> Result<(), EngineError> {
        let wrong = |reason| Err(EngineError::Intent { reason });
        if self.quantity <= Quantity::ZERO {
            return wrong("the quantity is not above zero");
        }
        if !plain(&self.portfolio, NAME_LENGTH_MAX) {
            return wrong("the portfolio is no plain name");
        }
        if !self.forecast.as_ref().is_none_or(|forecast| plain(forecast, FORECAST_LENGTH_MAX)) {
            return wrong("the forecast is no plain name");
        }
        if self.reference.checked_mul(self.quantity).is_none() {
            return wrong("the value doesn't fit");
        }
        Ok(())
    }
}

/// Where an order is on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OrderStatus {
    /// Approved and journalled, not yet acknowledged by the broker.
    Approved,
    /// At the broker.
    Sent,
    /// Done; terminal.
    Filled,
    /// Ended without a fill; terminal.
    Expired,
    /// Refused by the desk; terminal. It never reached the broker.
    Rejected,
    /// Sent, and not known whether it arrived; it must be looked up, not sent anew.
    Unknown,
}

impl OrderStatus {
    /// The status' one spelling.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            OrderStatus::Approved => "approved",
            OrderStatus::Sent => "sent",
            OrderStatus::Filled => "filled",
            OrderStatus::Expired => "expired",
            OrderStatus::Rejected => "rejected",
            OrderStatus::Unknown => "unknown",
        }
    }

    /// Whether nothing more can happen to the order.
    #[must_use]
    pub fn is_terminal(self) -> bool {
        match self {
            OrderStatus::Filled | OrderStatus::Expired | OrderStatus::Rejected => true,
            OrderStatus::Approved | OrderStatus::Sent | OrderStatus::Unknown => false,
        }
    }
}

impl fmt::Display for OrderStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// A trade that happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fill {
    /// The fill's one name.
    pub id: String,
    /// The order.
    pub order: OrderId,
    /// Its portfolio.
    pub portfolio: String,
    /// The instrument.
    pub symbol: Symbol,
    /// Which way.
    pub side: Side,
    /// How many shares.
    pub quantity: Quantity,
    /// The price per share.
    pub price: Price,
    /// What the broker took for it.
    pub fee: Money,
    /// The market day.
    pub day: Day,
}

/// Why an order ended without a fill.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExpiryReason {
    /// The instrument wasn't traded for too many days.
    NoBar,
    /// A split left less than one share of it.
    SplitToNothing,
    /// The price or the value doesn't fit.
    Unpriceable,
}

impl ExpiryReason {
    /// The reason's one spelling.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            ExpiryReason::NoBar => "no_bar",
            ExpiryReason::SplitToNothing => "split_to_nothing",
            ExpiryReason::Unpriceable => "unpriceable",
        }
    }
}

/// What the market says of an order; both are terminal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Report {
    /// It was filled.
    Filled(Fill),
    /// It ended without a fill.
    Expired {
        /// The order.
        order: OrderId,
        /// Why.
        reason: ExpiryReason,
        /// The market day.
        day: Day,
    },
}

impl Report {
    /// The order it is about.
    #[must_use]
    pub fn order(&self) -> &OrderId {
        match self {
            Report::Filled(fill) => &fill.order,
            Report::Expired { order, .. } => order,
        }
    }
}

/// The whole shares that a number of shares becomes in a split, and what is over, in parts of the split's
/// denominator. `None` when it doesn't fit or the number is negative.
#[must_use]
pub fn split_quantity(quantity: Quantity, split: &Split) -> Option<(Quantity, i64)> {
    if quantity < Quantity::ZERO {
        return None;
    }
    let parts = quantity.shares().checked_mul(i64::from(split.numerator()))?;
    let denominator = i64::from(split.denominator());
    Some((Quantity::new(parts.checked_div(denominator)?), parts.checked_rem(denominator)?))
}

/// Whether a text is a plain name: safe in a path, a URL, a policy and a log line without quoting.
fn plain(text: &str, most: usize) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b':' | b'-');
    !text.is_empty() && text.len() <= most && text.bytes().all(allowed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_plain_short_name_is_an_order_id() {
        for text in ["a", "task-1.AAPL:2", "A_b"] {
            assert_eq!(text.parse::<OrderId>().unwrap().to_string(), text);
        }
        for text in ["", "a b", "a/b", "a\n", "é", &"x".repeat(65)] {
            assert_eq!(text.parse::<OrderId>(), Err(EngineError::OrderId), "{text:?}");
        }
    }

    #[test]
    fn an_order_for_nothing_or_for_too_much_is_none() {
        let intent = OrderIntent {
            id: "o".parse().unwrap(),
            portfolio: "core".to_owned(),
            symbol: "AAPL".parse().unwrap(),
            side: Side::Buy,
            quantity: Quantity::new(1),
            reference: "10".parse().unwrap(),
            day: "2001-01-01".parse().unwrap(),
            forecast: None,
        };
        assert_eq!(intent.check(), Ok(()));
        let bad = [
            OrderIntent { quantity: Quantity::ZERO, ..intent.clone() },
            OrderIntent { quantity: Quantity::new(-5), ..intent.clone() },
            OrderIntent { quantity: Quantity::new(i64::MAX), ..intent.clone() },
            OrderIntent { portfolio: "../core".to_owned(), ..intent.clone() },
            OrderIntent { forecast: Some("f f".to_owned()), ..intent },
        ];
        for one in bad {
            assert!(matches!(one.check(), Err(EngineError::Intent { .. })), "{one:?}");
        }
    }
}
