//! Broker connections: the paper broker.
//!
//! Owns: the paper broker, which stands for the world outside. It has a file of its own and outlives a crash
//! of the desk, as a real broker would. It trusts no one to be right: an order is taken once per id, whatever
//! the desk remembers. It checks no limit and knows no account: that is the desk's.
//!
//! INVARIANT: what was acknowledged is on the disk. One id stands for one order for ever; one day is run
//! once, and gives the same reports whenever it is asked for again.

mod paper;

pub use engine::{FillModel, Report};
pub use paper::{AccountKey, Ack, PaperBroker};

use std::path::PathBuf;

use engine::EngineError;
use market::Day;

/// Why the broker doesn't do what was asked.
///
/// Did the order arrive? [`BrokerError::reached`] answers it.
#[derive(Debug, thiserror::Error)]
pub enum BrokerError {
    /// The order or the day is refused; nothing has changed.
    #[error("the paper market refuses it")]
    Refused(#[from] EngineError),
    /// The day was never run, and a later one was.
    #[error("the day {day} was not run before {last}")]
    DayOver {
        /// The day asked for.
        day: Day,
        /// The last day that was run.
        last: Day,
    },
    /// The key is not the account's.
    #[error("the broker does not know this key; store the account's with `trader secret put`")]
    WrongKey,
    /// Another process has the file open.
    #[error("{path}: another process has it open")]
    Locked {
        /// The file.
        path: PathBuf,
    },
    /// The file can't be read or written.
    #[error("{path}: cannot be read or written")]
    File {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// A line of the file is not what was written, or doesn't lead to the reports that were given.
    #[error("{path}, line {line}: {reason}")]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: u64,
        /// What is wrong.
        reason: &'static str,
    },
    /// A write failed before; nothing is taken until the file is opened anew.
    #[error("an earlier write failed; the broker must be opened anew")]
    Poisoned,
}

/// Whether an order reached the broker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reached {
    /// It didn't; it may be sent again.
    No,
    /// It isn't known; its status must be looked up after the broker was opened anew.
    Unknown,
}

impl BrokerError {
    /// Whether the order that this error is the answer to reached the broker.
    #[must_use]
    pub fn reached(&self) -> Reached {
        match self {
            BrokerError::Refused(_)
            | BrokerError::DayOver { .. }
            | BrokerError::WrongKey
            | BrokerError::Locked { .. }
            | BrokerError::Corrupt { .. }
            | BrokerError::Poisoned => Reached::No,
            BrokerError::File { .. } => Reached::Unknown,
        }
    }
}
