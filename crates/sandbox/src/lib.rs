//! The cell that a module runs in: a process that can compute, talk to its agent, and nothing else.
//!
//! Owns: the image (the very bytes that were verified, sealed in memory), the start of a cell, the walls
//! around it, and the report of what a module tried when it hit one. It doesn't know what a module is for,
//! who signed it, or what it says.
//!
//! Two halves. The agent's half is [`Image`] and [`Cell`]: a thread of its own starts the launcher and
//! watches it as its tracer. The launcher's half is [`cell_main`]: it runs in the new process, builds the
//! walls around itself and then becomes the module.
//!
//! INVARIANT: no module runs without its seccomp wall, and the agent's half sees for itself that the wall
//! stands and that the running program is the sealed image. The other walls are built where the machine
//! permits; [`Report::walls`] says which stand.

mod arch;
mod cell;
mod filter;
mod image;
mod launch;
pub mod release;
mod violation;
mod watch;

#[cfg(feature = "danger")]
pub mod danger;

pub use cell::{Cell, CellLimits, Outcome, Report, Stopper};
pub use image::{IMAGE_BYTES_MAX, Image};
pub use launch::cell_main;
pub use violation::Violation;

/// Why a cell couldn't be made.
#[derive(Debug, thiserror::Error)]
pub enum CellError {
    /// The image is empty or larger than [`IMAGE_BYTES_MAX`].
    #[error("a module image has 1 to {IMAGE_BYTES_MAX} bytes, this one has {bytes}")]
    ImageSize {
        /// How many it has.
        bytes: usize,
    },
    /// The image couldn't be put into sealed memory.
    #[error("the module image could not be sealed in memory")]
    Seal(#[source] std::io::Error),
    /// The launcher couldn't be started.
    #[error("the launcher could not be started")]
    Launcher(#[source] std::io::Error),
    /// The launcher refused to run the image, and why.
    #[error("the cell was refused: {reason}")]
    Refused {
        /// What the launcher said.
        reason: String,
    },
    /// The tracer lost its hold on the process.
    #[error("the cell could not be watched")]
    Watch(#[source] std::io::Error),
}
