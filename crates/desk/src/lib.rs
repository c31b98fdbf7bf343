//! The desk: pre-trade controls, order state, broker connection.
//!
//! Owns: the one way from an order that a module wishes for to the broker, and the way back of fills into the
//! books. An order goes through four types, each made only from the one before: a parsed wish, [`Authorized`]
//! by a grant, `RiskApproved` by its book, sent. The decision is in the journal before the broker hears of the
//! order. It forecasts nothing and chooses nothing.
//!
//! INVARIANT: orders sent ≤ orders approved, and no order is sent twice. The journal is the desk's memory: a
//! desk that is killed anywhere and started again is in the state of one that was never killed.
//! Read on in [`desk`], [`memory`], [`run`].

pub mod authorized;
pub mod config;
pub mod desk;
pub mod kill;
pub mod memory;
pub mod run;
pub mod session;

pub use authorized::{Authorized, Wish};
pub use config::DeskConfig;
pub use desk::{Account, Desk};
pub use kill::KillSwitch;
pub use run::{RunError, run};
pub use session::Session;

use brokers::BrokerError;
use risk::RiskError;
use wire::journal::JournalError;

/// Why the desk doesn't go on.
#[derive(Debug, thiserror::Error)]
pub enum DeskError {
    /// The journal can't be read or written.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The broker doesn't do what it must.
    #[error("the broker: {0}")]
    Broker(#[from] BrokerError),
    /// A book refuses what happened.
    #[error("the books: {0}")]
    Risk(#[from] RiskError),
    /// A record doesn't lead to the state that it says.
    #[error("the journal's entry {seq} doesn't follow from those before it: {problem}")]
    Record {
        /// Number of the entry.
        seq: u64,
        /// What doesn't follow.
        problem: String,
    },
    /// Memory and world disagree.
    #[error("memory and world disagree: {0}")]
    Disagree(String),
    /// A session can't be run.
    #[error("the session can't be run: {0}")]
    Session(String),
    /// Something went wrong earlier, and memory may be ahead of the journal.
    #[error("the desk failed earlier and must start again")]
    Poisoned,
}
