//! The agent's half: start a cell, talk to the module through its pipes, stop it, learn how it ended.
//!
//! It knows nothing of tasks or grants. A module can do nothing to the agent but send bytes, which the agent
//! bounds, and end.
//!
//! INVARIANT: a cell that is dropped is killed; no module outlives its agent.

use std::fmt;
use std::path::Path;
use std::process::{ChildStdin, ChildStdout, Command, Stdio};
use std::sync::mpsc::{Receiver, channel, sync_channel};
use std::thread;
use std::time::Duration;

use std::os::unix::process::CommandExt as _;

use crate::CellError;
use crate::image::Image;
use crate::launch::Seccomp;
use crate::violation::Violation;
use crate::watch::{self, Process};

/// What a module may use up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CellLimits {
    /// Address space, in bytes.
    pub memory_bytes: u64,
    /// Processor time, in seconds; at least one.
    pub cpu_seconds: u64,
    /// Time from start to end.
    pub wall: Duration,
}

impl CellLimits {
    /// Limits that suit the built-in modules: 512 MiB, one minute of processor time, two minutes in all.
    pub const BUILT_IN: Self =
        Self { memory_bytes: 512 << 20, cpu_seconds: 60, wall: Duration::from_secs(120) };
}

/// How a module ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// By itself, with this code.
    Exited(i32),
    /// It tried something that the cell forbids, and was killed before it happened.
    Violation(Violation),
    /// By a signal: its own fault, the agent's wish, or somebody on the machine.
    Killed {
        /// The signal's number.
        signal: i32,
    },
    /// It asked for more memory than it may have.
    MemoryLimit,
    /// It used up its processor time.
    CpuLimit,
    /// It used up its time.
    TimedOut,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exited(code) => write!(f, "exited with {code}"),
            Self::Violation(violation) => write!(f, "tried {violation}"),
            Self::Killed { signal } => write!(f, "killed by signal {signal}"),
            Self::MemoryLimit => f.write_str("reached its memory limit"),
            Self::CpuLimit => f.write_str("reached its processor limit"),
            Self::TimedOut => f.write_str("reached its time limit"),
        }
    }
}

/// Everything that is known about a cell that ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// How it ended.
    pub outcome: Outcome,
    /// What the module wrote to standard error: at most 16 KiB, without control characters. Not to be
    /// believed.
    pub stderr: String,
    /// The walls that stood: `seccomp` always; `namespaces`, `root`, `nobody` and `landlock` (or
    /// `landlock-in-part`, `no-landlock`) where the machine permits.
    pub walls: Vec<String>,
    /// From the call of [`Cell::start`] until the module ran.
    pub started_after: Duration,
}

/// Stops a cell from any thread.
#[derive(Debug, Clone)]
pub struct Stopper(Process);

impl Stopper {
    /// Kills the module at once. Does nothing when it has ended.
    pub fn stop(&self) {
        self.0.stop();
    }
}

/// A running module.
#[derive(Debug)]
pub struct Cell {
    /// Where the module reads.
    pub stdin: Option<ChildStdin>,
    /// Where the module writes.
    pub stdout: Option<ChildStdout>,
    process: Process,
    report: Receiver<Report>,
}

impl Cell {
    /// Starts an image in a cell and returns when it runs, which takes milliseconds; blocks its thread until
    /// then.
    ///
    /// `launcher` is a program whose argument `cell` leads to [`crate::cell_main`]; the `trader` binary is
    /// one.
    ///
    /// # Errors
    /// [`CellError::Launcher`] when the launcher doesn't start, [`CellError::Refused`] when it doesn't run
    /// the image, [`CellError::Watch`] when there is no thread for it.
    pub fn start(image: &Image, launcher: &Path, limits: &CellLimits) -> Result<Self, CellError> {
        start(image, launcher, limits, Seccomp::On)
    }

    /// A handle with which any thread may stop the module.
    #[must_use]
    pub fn stopper(&self) -> Stopper {
        Stopper(self.process.clone())
    }

    /// Kills the module at once. Does nothing when it has ended.
    pub fn kill(&self) {
        self.process.stop();
    }

    /// Closes the module's input and waits until it has ended.
    #[must_use]
    pub fn wait(self) -> Outcome {
        self.wait_for_report().outcome
    }

    /// As [`Cell::wait`], with all that is known.
    #[must_use]
    pub fn wait_for_report(mut self) -> Report {
        drop(self.stdin.take());
        match self.report.recv() {
            Ok(report) => report,
            // The watching thread is gone, and with it, by the kernel's word, the process.
            Err(_) => Report {
                outcome: Outcome::Killed { signal: nix::libc::SIGKILL },
                stderr: String::new(),
                walls: Vec::new(),
                started_after: Duration::ZERO,
            },
        }
    }
}

impl Drop for Cell {
    fn drop(&mut self) {
        self.process.stop();
    }
}

pub(crate) fn start(
    image: &Image,
    launcher: &Path,
    limits: &CellLimits,
    seccomp: Seccomp,
) -> Result<Cell, CellError> {
    let image = image.to_hand_on().map_err(CellError::Watch)?;
    let mut command = Command::new(launcher);
    command
        .arg(match seccomp {
            Seccomp::On => "cell",
            Seccomp::Off => "cell-without-seccomp",
        })
        .args(["--image", &image.path()])
        .args(["--digest", &image.digest().to_string()])
        .args(["--memory-bytes", &limits.memory_bytes.to_string()])
        .args(["--cpu-seconds", &limits.cpu_seconds.max(1).to_string()])
        .args(["--agent", &std::process::id().to_string()])
        .env_clear()
        .current_dir("/")
        .process_group(0)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());

    let process = Process::default();
    let (started, runs) = sync_channel(1);
    let (ended, report) = channel();
    let (watched, limits) = (process.clone(), *limits);
    thread::Builder::new()
        .name("cell".into())
        .stack_size(256 << 10)
        .spawn(move || {
            if let Some(report) = watch::run(command, &image, limits, seccomp, &watched, &started) {
                let _ = ended.send(report);
            }
        })
        .map_err(CellError::Watch)?;
    match runs.recv() {
        Ok(Ok((stdin, stdout))) => Ok(Cell { stdin: Some(stdin), stdout: Some(stdout), process, report }),
        Ok(Err(error)) => Err(error),
        Err(gone) => Err(CellError::Watch(std::io::Error::other(gone))),
    }
}
