//! What can go wrong with a database, in kinds that a caller can act on.
//!
//! It tells apart what passes by itself (busy), what a person must see to (full, damaged, too new), and what
//! the caller did wrong (a conflict, too much at once). No message holds data of a row.

use std::path::PathBuf;

use rusqlite::ErrorCode;

/// Why a database refused or failed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The file or its directory couldn't be made or opened.
    #[error("the database {path} could not be opened")]
    Open {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The file was written by a newer version of this program.
    #[error("the database has schema {found}, this program knows {known}: use a newer program")]
    NewerSchema {
        /// Version in the file.
        found: i64,
        /// Newest version known here.
        known: i64,
    },
    /// No room is left on the disk. Nothing of the write was kept.
    #[error("the disk is full; nothing was written")]
    DiskFull,
    /// Another process held the database for too long. Nothing was written; to try again is safe.
    #[error("the database is busy; try again")]
    Busy,
    /// The file is damaged, or no database.
    #[error("the database is damaged: {0}")]
    Damaged(String),
    /// Other content stands under this name. The first stays.
    #[error("other content stands under {0}")]
    Conflict(String),
    /// More than the store takes at once.
    #[error("{what} is limited to {limit}")]
    TooLarge {
        /// What.
        what: &'static str,
        /// How many, or how many bytes.
        limit: usize,
    },
    /// There is no such portfolio.
    #[error("there is no portfolio {0}")]
    NoPortfolio(String),
    /// More shares would leave than are there.
    #[error("entry {0} would make a position negative")]
    NegativePosition(String),
    /// An amount doesn't fit.
    #[error("an amount of entry {0} is too large or not positive")]
    Amount(String),
    /// The books don't balance: something outside this program wrote to the file.
    #[error("the books don't balance: {0}")]
    Unbalanced(String),
    /// SQLite said something else.
    #[error("the database failed")]
    Sqlite(#[source] rusqlite::Error),
}

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> Self {
        match error.sqlite_error_code() {
            Some(ErrorCode::DiskFull) => Self::DiskFull,
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => Self::Busy,
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => Self::Damaged(error.to_string()),
            _ => Self::Sqlite(error),
        }
    }
}

/// A row holds what this program would never have written.
pub(crate) fn damaged(what: impl std::fmt::Display) -> StoreError {
    StoreError::Damaged(what.to_string())
}
