//! The steps that call Cargo: `ci` and `test`.
//!
//! Output of the tests passes through unchanged and stays last, so that whoever reads the end of a log reads Cargo's own
//! result line. No step asks for anything but the Rust toolchain and a C compiler, and none reads standard input.

use std::error::Error;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};

/// Format, lints, house rules, tests, in the order of what fails fastest. `false` at the first failure.
pub(crate) fn ci(root: &Path) -> Result<bool, Box<dyn Error>> {
    const FORMAT: &[&str] = &["fmt", "--all", "--check"];
    const LINTS: &[&str] = &["clippy", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"];
    Ok(crate::tidy()? && cargo(root, FORMAT)? && cargo(root, LINTS)? && test(root)?)
}

/// Every test of the workspace; `false` when one fails.
///
/// # Errors
/// When Cargo cannot be started or its output cannot be passed on.
pub(crate) fn test(root: &Path) -> Result<bool, Box<dyn Error>> {
    let arguments = ["test", "--workspace", "--locked", "--no-fail-fast"];
    eprintln!("== cargo {}", arguments.join(" "));
    let mut child =
        command(root, &arguments).stdout(Stdio::piped()).spawn().map_err(|error| starting(&error))?;
    let output = child.stdout.take().ok_or("cargo has no standard output")?;
    let mut tally = Tally::default();
    let mut stdout = std::io::stdout().lock();
    for line in BufReader::new(output).lines() {
        for line in tally.pass(line?) {
            writeln!(stdout, "{line}")?;
        }
        stdout.flush()?;
    }
    let passed = child.wait()?.success();
    eprintln!("{}", tally.summary());
    for line in tally.held {
        writeln!(stdout, "{line}")?;
    }
    Ok(passed)
}

fn cargo(root: &Path, arguments: &[&str]) -> Result<bool, Box<dyn Error>> {
    eprintln!("== cargo {}", arguments.join(" "));
    let status = command(root, arguments).status().map_err(|error| starting(&error))?;
    Ok(status.success())
}

fn command(root: &Path, arguments: &[&str]) -> Command {
    let program = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(program);
    command.args(arguments).current_dir(root).stdin(Stdio::null());
    command
}

fn starting(error: &std::io::Error) -> String {
    format!("cargo could not be started: {error}")
}

/// Adds up the result lines of the test programs and holds the latest back, so that the sum can be said before it.
#[derive(Debug, Default)]
struct Tally {
    programs: u32,
    passed: u32,
    failed: u32,
    held: Vec<String>,
}

impl Tally {
    /// Takes one line; returns the lines that may be printed now.
    fn pass(&mut self, line: String) -> Vec<String> {
        if let Some(result) = line.strip_prefix("test result: ") {
            self.programs += 1;
            self.passed += number_before(result, "passed");
            self.failed += number_before(result, "failed");
            let before = std::mem::take(&mut self.held);
            self.held = vec![line];
            return before;
        }
        if line.is_empty() && !self.held.is_empty() {
            self.held.push(line);
            return Vec::new();
        }
        let mut now = std::mem::take(&mut self.held);
        now.push(line);
        now
    }

    fn summary(&self) -> String {
        format!("test: {} passed, {} failed, in {} test programs", self.passed, self.failed, self.programs)
    }
}

/// The number in front of a word in `ok. 12 passed; 0 failed; …`; zero when there is none.
fn number_before(result: &str, word: &str) -> u32 {
    let words: Vec<&str> = result.split([' ', ';']).filter(|part| !part.is_empty()).collect();
    words
        .windows(2)
        .find_map(|pair| match pair {
            [number, found] if *found == word => number.parse().ok(),
            _ => None,
        })
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_added_up_and_the_last_one_is_held_back() {
        let mut tally = Tally::default();
        let mut printed = Vec::new();
        for line in [
            "running 3 tests",
            "test result: ok. 3 passed; 0 failed; 0 ignored",
            "",
            "running 2 tests",
            "test result: FAILED. 1 passed; 1 failed; 0 ignored",
            "",
        ] {
            printed.extend(tally.pass(line.to_owned()));
        }
        assert_eq!(
            printed,
            ["running 3 tests", "test result: ok. 3 passed; 0 failed; 0 ignored", "", "running 2 tests"]
        );
        assert_eq!(tally.held.len(), 2);
        assert_eq!(tally.summary(), "test: 4 passed, 1 failed, in 2 test programs");
    }
}
