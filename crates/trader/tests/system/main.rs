//! The whole system, as a stranger meets it: the real binary, real processes, real connections.
//!
//! Each test starts a system of its own in a fresh directory and attacks, kills or just watches it. They run one at a time.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test stops at the first surprise")]

mod anomalies;
mod attacks;
mod canaries;
mod crashes;
mod drill;
mod enrolment;
mod keys;
mod metrics;
mod modules;
mod runs;
mod secrets;
mod transport;

use std::path::Path;

use testkit::system::System;

/// The last market day of a short run: some two years of trading.
const SHORT: &[&str] = &["--exit-when-done", "--json", "--until", "1994-03-31"];

fn trader() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_trader"))
}

fn short_run() -> System {
    System::start(trader(), SHORT)
}

/// What must be the same in every run with the same seed, to the byte: the whole list of orders with their fills, and the
/// equity.
fn outcome(system: &System, summary: &serde_json::Value) -> (Vec<String>, String) {
    let output = system.command(&["order", "list", "--json"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    // A line for each order, so that a difference can be read.
    (text.split_inclusive("},{").map(str::to_owned).collect(), summary["equity_end"].to_string())
}
