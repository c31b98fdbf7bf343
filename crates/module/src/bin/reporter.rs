//! The module `reporter`. Sums a portfolio up.
//!
//! It runs in a cell, talks to its agent over standard input and output, and has no other way out.

use std::process::ExitCode;

fn main() -> ExitCode {
    module::run(module::programs::reporter)
}
