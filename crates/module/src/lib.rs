//! The contract between an agent and a module, and the built-in modules.
//!
//! Owns: the lines that an agent and a module exchange ([`protocol`]), the module's side of that talk
//! ([`host`]), and the four built-in programs ([`programs`]). A module runs in a cell where nothing but its
//! standard input and output exists, so nothing here reads a file, a clock, the environment or a random
//! source, or starts a thread.
//!
//! INVARIANT: a module acts only through calls, one at a time; whether a call is allowed is decided outside,
//! never here.

pub mod host;
pub mod programs;
pub mod protocol;

use std::io;
use std::panic::{self, AssertUnwindSafe};
use std::process::ExitCode;

use host::{Host, HostError};
use protocol::Start;
use serde_json::Value;

/// Why a program ended without a result.
#[derive(Debug, thiserror::Error)]
pub enum ModuleError {
    /// The talk with the agent failed, or a call was refused.
    #[error(transparent)]
    Host(#[from] HostError),
    /// The parameters of the task are not what this program takes.
    #[error("the task's parameters are unreadable: {0}")]
    Params(String),
    /// The source's text has no readable header.
    #[error("the source can't be imported: {0}")]
    Import(#[from] market::import::ImportError),
    /// The forecast, the portfolio or the figures can't be computed.
    #[error(transparent)]
    Analyst(#[from] analyst::AnalystError),
    /// What was read can't be used together.
    #[error("unusable data: {0}")]
    Data(&'static str),
    /// A day computed from the task's day lies outside the calendar.
    #[error("a day is out of the calendar's range")]
    Calendar,
}

/// A program: what a module does with its one task.
pub type Program<R, W> = fn(&mut Host<R, W>, &Start) -> Result<Value, ModuleError>;

/// Runs a program over standard input and output, as a module's `main` does.
#[must_use]
pub fn run(program: Program<io::StdinLock<'static>, io::StdoutLock<'static>>) -> ExitCode {
    // The agent hears of a panic by a line of its own; the default message would go to a stream that nobody
    // reads.
    panic::set_hook(Box::new(|_| {}));
    match run_over(io::stdin().lock(), io::stdout().lock(), program) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) | Err(_) => ExitCode::FAILURE,
    }
}

/// Runs a program over any pair of streams. `true` when it sent a result, `false` when it said that it
/// failed.
///
/// # Errors
/// [`HostError`] when not even the failure could be told.
pub fn run_over<R: io::BufRead, W: io::Write>(
    reader: R,
    writer: W,
    program: Program<R, W>,
) -> Result<bool, HostError> {
    let mut host = Host::new(reader, writer);
    let outcome = panic::catch_unwind(AssertUnwindSafe(|| {
        let start = host.start()?;
        program(&mut host, &start)
    }));
    match outcome {
        Ok(Ok(result)) => host.done(result).map(|()| true),
        Ok(Err(error)) => host.failed(&error.to_string()).map(|()| false),
        // INVARIANT: after a panic the host is used once more, to say so; it holds no state that a half-made
        // call could break.
        Err(_) => host.failed("the module panicked").map(|()| false),
    }
}
