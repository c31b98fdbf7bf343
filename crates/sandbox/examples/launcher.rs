//! The smallest launcher: what `trader cell` does, for this crate's own tests.
//!
//! It also offers the cell that lacks its seccomp wall, so that a test can show what the wall is there for,
//! and a small agent (`agent MODULE [TIMES]`), so that a test can run the agent's half as another user and a
//! person can time it.

use std::io::{Read as _, Write as _};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use sandbox::{Cell, CellLimits, Image};

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    match args.next().as_deref() {
        Some("cell") => sandbox::cell_main(args),
        Some("cell-without-seccomp") => sandbox::danger::cell_main_without_seccomp(args),
        Some("agent") => match agent(args) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                let _ = writeln!(std::io::stderr(), "{error}");
                ExitCode::FAILURE
            }
        },
        _ => ExitCode::from(2),
    }
}

/// Runs a module some times, sends it one line each time, and says how it went.
fn agent(mut args: impl Iterator<Item = String>) -> Result<(), Box<dyn std::error::Error>> {
    let module = std::fs::read(args.next().unwrap_or_default())?;
    let times: u32 = args.next().map_or(Ok(1), |times| times.parse())?;
    let line = args.next().unwrap_or_else(|| "hello".to_owned());
    let image = Image::from_bytes(&module)?;
    let launcher = std::env::current_exe()?;
    let (mut to_exec, mut to_byte, mut to_end) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..times {
        let begun = Instant::now();
        let mut cell = Cell::start(&image, &launcher, &CellLimits::BUILT_IN)?;
        if let Some(stdin) = &mut cell.stdin {
            let _ = stdin.write_all(format!("{line}\n").as_bytes());
        }
        let mut first = [0];
        let read = match &mut cell.stdout {
            Some(stdout) => stdout.read(&mut first)?,
            None => 0,
        };
        let byte = begun.elapsed();
        let report = cell.wait_for_report();
        to_exec.push(report.started_after);
        to_byte.push(byte);
        to_end.push(begun.elapsed());
        if times == 1 {
            let mut out = std::io::stdout();
            writeln!(out, "bytes={read} outcome={} walls={}", report.outcome, report.walls.join(","))?;
            writeln!(out, "{}", report.stderr)?;
        }
    }
    if times > 1 {
        let mut out = std::io::stdout();
        for (what, mut times) in [("running", to_exec), ("first byte", to_byte), ("ended", to_end)] {
            times.sort_unstable();
            let at = |share: usize| times.get(times.len() * share / 100).copied().unwrap_or(Duration::ZERO);
            writeln!(out, "{what}: p50 {:?} p99 {:?}", at(50), at(99))?;
        }
    }
    Ok(())
}
