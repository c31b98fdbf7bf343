//! Limits, reservations, pre-trade checks and the kill latch.
//!
//! Owns: the decision whether an order may be sent, and the [`Book`] of one portfolio that the decision is
//! made on: its account, its working orders and what they hold back. It journals nothing and sends nothing:
//! the desk does, in this order: approve, journal, send. After a restart the desk folds what it journalled
//! into a new book.
//!
//! INVARIANT: no order passes without every check, and only an approval made here is a [`RiskApproved`]. What
//! is held back is never negative, equals the sum over the working orders, and is given back by a terminal
//! report alone. A check that can't be computed is a check that fails.

mod book;
mod checks;

pub use book::{Applied, Book, Seen};
pub use checks::{Authorisation, Check, CheckOutcome, Context, KillLatch, Limits, Rejected, RiskApproved};

use engine::{EngineError, OrderId};
use market::Day;

/// Why a book refuses an event. Each of these means that the record and the world disagree; the desk stops
/// then.
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
pub enum RiskError {
    /// The account refuses the event.
    #[error("the account refuses the event")]
    Account(#[from] EngineError),
    /// The limits make no sense.
    #[error("not a set of limits: {reason}")]
    Limits {
        /// Which rule is broken.
        reason: &'static str,
    },
    /// A report is about an order that was never approved.
    #[error("{order}: a report for an order that was never approved")]
    NeverApproved {
        /// The order.
        order: OrderId,
    },
    /// A report doesn't fit its order: another instrument or side, more shares than ordered, or after its
    /// end.
    #[error("{order}: a report that doesn't fit its order: {reason}")]
    Mismatch {
        /// The order.
        order: OrderId,
        /// What doesn't fit.
        reason: &'static str,
    },
    /// The id is taken.
    #[error("{order}: the id is taken")]
    Taken {
        /// The order.
        order: OrderId,
    },
    /// A day that is over.
    #[error("{day} is before {last}, the book's last day")]
    DayOrder {
        /// The day asked for.
        day: Day,
        /// The book's last day.
        last: Day,
    },
}
