//! Orders, fills, accounting and the simulated market: the deterministic trading core.
//!
//! Owns: what an order is, what a fill does to an account, what a split does to both, and how the simulated
//! market fills. It reads no clock, no file and no random source: the slippage of an order follows from a
//! seed and the order's id. It decides nothing about permission or limits; `risk` does.
//!
//! INVARIANT: the same events in the same order give the same state and the same reports, to the byte.
//! Positions are the sum of fills and splits; cash is what these leave. Nothing wraps and nothing rounds in
//! the trader's favour.

mod account;
mod order;
mod paper;

pub use account::{Account, Position, SplitEffect};
pub use order::{ExpiryReason, Fill, OrderId, OrderIntent, OrderStatus, Report, split_quantity};
pub use paper::{FillModel, PaperMarket, Placed};

use market::{Day, Symbol};

/// Why the core refuses an event.
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
pub enum EngineError {
    /// The text is no order id.
    #[error("an order id is 1 to 64 characters of a-z, A-Z, 0-9, '.', '_', ':' and '-'")]
    OrderId,
    /// The order is none.
    #[error("not an order: {reason}")]
    Intent {
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The id stands for another order already.
    #[error("the id {id} stands for another order")]
    Conflict {
        /// The id.
        id: OrderId,
    },
    /// More shares would be sold than are held.
    #[error("{symbol}: more shares sold than held")]
    Short {
        /// The instrument.
        symbol: Symbol,
    },
    /// A price is needed and not known.
    #[error("{symbol}: no price is known")]
    NoPrice {
        /// The instrument.
        symbol: Symbol,
    },
    /// An amount doesn't fit.
    #[error("an amount is too large")]
    Overflow,
    /// Days must be run in order, each once.
    #[error("the day {day} is not after {last}, the last one")]
    DayOrder {
        /// The day asked for.
        day: Day,
        /// The last day that was run.
        last: Day,
    },
    /// The fill model is out of range.
    #[error("slippage and fee are from 0 to 1000 basis points")]
    Model,
}
