//! Cells that lack a wall. For tests only: they show that the wall, and nothing else, stops what it is there
//! to stop.
//!
//! Nothing here is compiled without the feature `danger`, and nothing here is called by accident: both halves
//! must ask.

use std::path::Path;
use std::process::ExitCode;

use crate::CellError;
use crate::cell::{self, Cell, CellLimits};
use crate::image::Image;
use crate::launch;

/// The launcher's half without the seccomp wall. See [`crate::cell_main`].
pub fn cell_main_without_seccomp(args: impl IntoIterator<Item = String>) -> ExitCode {
    launch::run(args, launch::Seccomp::Off)
}

/// Starts a cell whose launcher builds no seccomp wall. See [`Cell::start`].
///
/// # Errors
/// As [`Cell::start`].
pub fn start_without_seccomp(image: &Image, launcher: &Path, limits: &CellLimits) -> Result<Cell, CellError> {
    cell::start(image, launcher, limits, launch::Seccomp::Off)
}
