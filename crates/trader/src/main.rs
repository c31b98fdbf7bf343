//! The command line: one binary, one subcommand per process, `trader up` to run them all.
//!
//! Owns: what a person types and reads. Data goes to standard output, talk to standard error. Exit status: 0 done, 1 refused
//! or wrong input, 2 our fault, 3 (of a process) an identity that is no longer good.

mod audit_log;
mod cli;
mod console;
mod data;
mod enrol_command;
mod explain;
mod first_start;
mod keys_command;
mod operator;
mod output;
mod processes;
mod show;
mod summary;
mod supervisor;
mod up;

use std::process::ExitCode;

fn main() -> ExitCode {
    // The cell comes before anything else: it must be a process with a single thread and nothing in it.
    let mut args = std::env::args().skip(1);
    if args.next().as_deref() == Some("cell") {
        return sandbox::cell_main(args);
    }
    // Whatever is written is its owner's alone, also where nobody thought of it.
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o077));
    cli::main()
}
