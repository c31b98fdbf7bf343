//! What can be wrong with a journal, a log or a checkpoint, as one type.
//!
//! Every variant names the place, because an auditor's first question is "which entry?". Errors about chains
//! carry the process and the sequence number; errors about files carry the path inside the log.

use std::io;

/// Why a line, a batch, a file or a whole log is refused.
#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    /// A process name is empty, too long or has characters outside `A-Z a-z 0-9 . _ -`.
    #[error("{name:?} is no process name")]
    Name {
        /// The text that is no name.
        name: String,
    },
    /// A journal line is longer than [`crate::journal::LINE_BYTES_MAX`].
    #[error("a journal line has {bytes} bytes; the most is {most}", most = crate::journal::LINE_BYTES_MAX)]
    LineTooLong {
        /// Its length in bytes.
        bytes: usize,
    },
    /// Bytes are no journal line.
    #[error("not a journal line: {problem}")]
    Line {
        /// What is wrong with them.
        problem: String,
    },
    /// A line of another process stands where only one process may write.
    #[error("entry {seq} of {found} stands among the entries of {expected}")]
    WrongProcess {
        /// Whose entries are expected.
        expected: String,
        /// Whose entry was found.
        found: String,
        /// Its sequence number.
        seq: u64,
    },
    /// One or more entries are missing before this one.
    #[error("gap: entry {seq} of {process} came, but {expected} is next")]
    Gap {
        /// Process.
        process: String,
        /// Sequence number that came.
        seq: u64,
        /// Sequence number that is next.
        expected: u64,
    },
    /// An entry does not follow from the one before it, or another entry with its number is already there.
    #[error("fork: entry {seq} of {process} {problem}")]
    Fork {
        /// Process.
        process: String,
        /// Sequence number.
        seq: u64,
        /// What contradicts what.
        problem: &'static str,
    },
    /// More processes or more lines at once than the log takes.
    #[error("too many {what}; the most is {most}")]
    TooMany {
        /// What there is too much of.
        what: &'static str,
        /// The most that is taken.
        most: usize,
    },
    /// A signed note or checkpoint is malformed.
    #[error("malformed checkpoint: {problem}")]
    Checkpoint {
        /// What is wrong with it.
        problem: &'static str,
    },
    /// A checkpoint carries no valid signature of the log's key, or an invalid one.
    #[error("the checkpoint's signature does not verify")]
    Signature,
    /// A file of the log contradicts the checkpoint, or itself.
    #[error("{path}: {problem}")]
    Tile {
        /// Path inside the log.
        path: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A file that the checkpoint demands is not there.
    #[error("{path} is missing")]
    Missing {
        /// Path inside the log.
        path: String,
    },
    /// Storage failed. Whether the last batch is durable is unknown until the log is opened again.
    #[error("the log's storage failed")]
    Storage(#[from] io::Error),
    /// An earlier failure of storage left the log in doubt; it takes nothing until it is opened again.
    #[error("the log takes nothing since its storage failed; open it again")]
    Poisoned,
}
