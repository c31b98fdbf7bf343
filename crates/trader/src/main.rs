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
mod metrics;
mod operator;
mod output;
mod processes;
mod secret_command;
mod show;
mod summary;
mod supervisor;
mod up;

use std::process::ExitCode;

/// Has the kernel write no core image of this process, and lets no process without its privileges look into its memory or
/// its open files: every command may come to hold keys. Root can still read it.
fn keep_memory_in() -> Result<(), nix::errno::Errno> {
    nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_CORE, 0, 0)?;
    // A program that takes core images over a pipe is not asked for the limit's opinion, but for this.
    nix::sys::prctl::set_dumpable(false)
}

fn main() -> ExitCode {
    // The cell comes before anything else: it must be a process with a single thread and nothing in it.
    let mut args = std::env::args().skip(1);
    if args.next().as_deref() == Some("cell") {
        return sandbox::cell_main(args);
    }
    // Whatever is written is its owner's alone, also where nobody thought of it.
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o077));
    if let Err(error) = keep_memory_in() {
        eprintln!("trader: {error}; a core image could carry keys out, so nothing is started");
        return ExitCode::from(2);
    }
    cli::main()
}
