//! From a request's text to an order that a grant covers.
//!
//! Owns: two of the types that an order goes through. A [`Wish`] is parsed and means nothing yet. [`Authorized`]
//! is made from a wish and a guard's permit, and only when the permit covers the wish; there is no other way to
//! a decision. Neither limits nor what is left of the grant is known here.
//!
//! INVARIANT: the order of an [`Authorized`] is of its permit's portfolio, symbols and market day.

use access::guard::Permit;
use access::vocabulary::{Action, Limits};
use engine::{OrderId, OrderIntent};
use market::{Day, Money, Price, Quantity, Side, Symbol};
use wire::api::OrderBody;
use wire::problem::Problem;

/// The longest forecast id, in bytes.
const FORECAST_BYTES_MAX: usize = 128;

/// An order as a module wishes it, parsed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wish {
    id: OrderId,
    portfolio: String,
    symbol: Symbol,
    side: Side,
    quantity: Quantity,
    reference: Price,
    notional: Money,
    forecast: Option<String>,
}

impl Wish {
    /// Parses what came over the wire.
    ///
    /// # Errors
    /// 400 `bad_order`, with the field that is wrong.
    pub fn parse(body: OrderBody) -> Result<Self, Problem> {
        let bad = |field: &str| Problem::bad_request("bad_order", &format!("{field} is not acceptable"));
        let side = match body.side.as_str() {
            "buy" => Side::Buy,
            "sell" => Side::Sell,
            _ => return Err(bad("side")),
        };
        let quantity = Quantity::new(body.quantity);
        let reference = Price::from_micros(body.price).map_err(|_| bad("price"))?;
        if quantity <= Quantity::ZERO {
            return Err(bad("quantity"));
        }
        if !body.forecast.as_deref().is_none_or(is_forecast) {
            return Err(bad("forecast"));
        }
        Ok(Self {
            id: body.id.parse().map_err(|_| bad("id"))?,
            symbol: body.symbol.parse().map_err(|_| bad("symbol"))?,
            notional: reference.checked_mul(quantity).ok_or_else(|| bad("quantity"))?,
            portfolio: body.portfolio,
            side,
            quantity,
            reference,
            forecast: body.forecast,
        })
    }

    /// The portfolio.
    #[must_use]
    pub fn portfolio(&self) -> &str {
        &self.portfolio
    }

    /// The symbol.
    #[must_use]
    pub fn symbol(&self) -> &Symbol {
        &self.symbol
    }

    /// Quantity times reference.
    #[must_use]
    pub fn notional(&self) -> Money {
        self.notional
    }
}

/// An order that a grant covers. Made only from a guard's permit, used up by the decision on it.
#[derive(Debug)]
pub struct Authorized {
    pub(crate) intent: OrderIntent,
    /// The forecast as it was named; the intent has it without slashes.
    pub(crate) forecast: Option<String>,
    pub(crate) permit: Permit,
    pub(crate) agent: String,
}

impl Authorized {
    /// Puts a wish under a permit; `agent` is the peer that the permit was given to.
    ///
    /// # Errors
    /// 403 `not_covered` when the permit doesn't cover the wish; 400 `bad_order` when it is no order.
    pub fn new(wish: Wish, permit: Permit, agent: &str) -> Result<Self, Problem> {
        let covered = permit.action() == Action::PlaceOrders
            && permit.portfolio() == Some(wish.portfolio.as_str())
            && permit.covers_symbol(wish.symbol.as_str())
            && permit.holder() == agent;
        if !covered {
            return Err(Problem::forbidden("not_covered", "the grant doesn't cover this order"));
        }
        let day: Day = permit.market_day().to_string().parse().map_err(|_| Problem::internal())?;
        let intent = OrderIntent {
            id: wish.id,
            portfolio: wish.portfolio,
            symbol: wish.symbol,
            side: wish.side,
            quantity: wish.quantity,
            reference: wish.reference,
            day,
            forecast: wish.forecast.as_deref().map(forecast_name),
        };
        intent.check().map_err(|error| Problem::bad_request("bad_order", &error.to_string()))?;
        Ok(Self { intent, forecast: wish.forecast, permit, agent: agent.to_owned() })
    }

    pub(crate) fn limits(&self) -> Limits {
        self.permit.limits()
    }
}

/// A forecast's id as an order carries it: an order's names have no slash.
pub(crate) fn forecast_name(id: &str) -> String {
    id.replace('/', ":")
}

fn is_forecast(id: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b':' | b'-' | b'/');
    (1..=FORECAST_BYTES_MAX).contains(&id.len()) && id.bytes().all(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_order_is_refused_before_anything_else() {
        let good = OrderBody {
            id: "core-20010102-AAPL".into(),
            portfolio: "core".into(),
            symbol: "AAPL".into(),
            side: "buy".into(),
            quantity: 3,
            price: 2_000_000,
            forecast: Some("core/2001-01-02".into()),
        };
        assert_eq!(Wish::parse(good.clone()).unwrap().notional(), Money::from_micros(6_000_000));
        let bad = [
            OrderBody { id: "a b".into(), ..good.clone() },
            OrderBody { symbol: "aapl".into(), ..good.clone() },
            OrderBody { side: "BUY".into(), ..good.clone() },
            OrderBody { quantity: 0, ..good.clone() },
            OrderBody { quantity: -1, ..good.clone() },
            OrderBody { quantity: i64::MAX, ..good.clone() },
            OrderBody { price: 0, ..good.clone() },
            OrderBody { price: -1, ..good.clone() },
            OrderBody { forecast: Some(String::new()), ..good.clone() },
            OrderBody { forecast: Some("x\n".into()), ..good.clone() },
            OrderBody { forecast: Some("x".repeat(129)), ..good },
        ];
        for body in bad {
            assert_eq!(Wish::parse(body.clone()).unwrap_err().code, "bad_order", "{body:?}");
        }
    }
}
