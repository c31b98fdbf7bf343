//! The automation of this workspace: `cargo xtask ci`, `test`, `tidy`, `stats`.
//!
//! Owns: the one-command loop that people and machines share, the house rules that the compiler cannot check, and the
//! calibration figures. Knows nothing of trading: it reads manifests, Rust text and documents as text, compiles none of
//! them, and changes no file.

#![expect(clippy::print_stdout, reason = "a command-line tool speaks on standard output")]

mod source;
mod stats;
mod steps;
mod tidy;
mod workspace;

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use workspace::Workspace;

const USAGE: &str = "\
cargo xtask COMMAND

  ci      format, lints, house rules, tests: what `.ci/run` runs
  test    every test of the workspace
  tidy    the house rules: arrows, pure cores, routes, files, dependencies, words, links
  stats   calibration figures for each crate
";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let result = match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["ci"] => steps::ci(&root()),
        ["test"] => steps::test(&root()),
        ["tidy"] => tidy(),
        ["stats"] => stats(),
        ["help" | "--help" | "-h"] => {
            print!("{USAGE}");
            Ok(true)
        }
        _ => {
            eprint!("{USAGE}");
            Ok(false)
        }
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(2)
        }
    }
}

/// The workspace's root: the directory above this crate's, wherever the command was called from.
fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_path_buf()
}

/// Prints every broken rule; `true` when there is none.
fn tidy() -> Result<bool, Box<dyn Error>> {
    let workspace = Workspace::load(&root())?;
    let findings = tidy::check(&workspace);
    for finding in &findings {
        println!("{finding}");
    }
    let (files, count) = (workspace.sources.len() + workspace.documents.len(), findings.len());
    eprintln!("tidy: {files} files read, {count} broken rules");
    Ok(findings.is_empty())
}

/// Prints the calibration table.
fn stats() -> Result<bool, Box<dyn Error>> {
    print!("{}", stats::table(&Workspace::load(&root())?));
    Ok(true)
}
