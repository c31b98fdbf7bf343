//! The processing databases: one SQLite file per security domain.
//!
//! Owns: the schema of each domain, and what writing twice means. It decides nothing about who may ask: a
//! data unit asks a guard first, and is the only process that opens the file. Several units of one domain may
//! have the same file open.
//!
//! INVARIANT: every write is atomic, durable before it returns, and safe to repeat: the same content again
//! changes nothing, other content under the same name is refused and the first stays.

mod database;
mod error;
mod ledger;
mod market_data;
mod news;
mod research;

pub use error::StoreError;
pub use ledger::{Audited, DayClose, Entry, Holdings, Ledger};
pub use market_data::{Bars, Conflict, Coverage, Market};
pub use news::{Article, News};
pub use research::{Forecast, Report, Research};

/// What became of rows that were written.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PutOutcome {
    /// How many are new.
    pub new_rows: u64,
    /// How many were there already, the same.
    pub same_rows: u64,
    /// How many were refused because other content stands in their place.
    pub conflict_rows: u64,
    /// Which were refused: the first hundred.
    pub conflicts: Vec<Conflict>,
}
