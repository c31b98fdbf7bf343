//! The thread that starts a cell, watches it as its tracer, and says how it ended.
//!
//! A tracer is one thread, not a process: the thread that starts the launcher must be the one that waits for
//! it. It sleeps in the kernel until something happens. A second thread collects what the process says on
//! standard error and rings at the deadline.
//!
//! INVARIANT: the process is killed before it runs a forbidden call, and this thread never signals a number
//! that might by now belong to another process.

use std::io::Read as _;
use std::os::fd::AsFd as _;
use std::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::ptrace;
use nix::sys::signal::{Signal, kill, killpg};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid};
use nix::unistd::Pid;

use crate::CellError;
use crate::arch;
use crate::cell::{CellLimits, Outcome, Report};
use crate::image::Image;
use crate::launch::{REFUSED, Seccomp, WALLS};
use crate::violation::{self, Violation};

/// What is kept of standard error, in bytes.
const STDERR_BYTES_MAX: usize = 16 << 10;
/// What is read of standard error before the pipe is closed, in bytes.
const STDERR_READ_MAX: usize = 1 << 20;
/// How often a program may ask the questions of a C library's start before it counts as a violation.
const START_UP_QUESTIONS_MAX: u32 = 16;
/// Ticks of `/proc/PID/stat` in a second, the same on every Linux.
const TICKS_PER_SECOND: u64 = 100;

/// Why the agent's side killed a process.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Verdict {
    Asked,
    TimedOut,
    CpuLimit,
    Violation(Violation),
}

/// The process, as far as several threads may act on it.
#[derive(Debug, Default)]
struct State {
    /// Set from its start until just before it is reaped.
    pid: Option<Pid>,
    /// Asked to stop before it started.
    stop_asked: bool,
    verdict: Option<Verdict>,
}

/// A handle to the process that any thread may use to end it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Process(Arc<Mutex<State>>);

impl Process {
    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing that holds this lock can panic half-way through a change.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Kills the process. What was said first about why, stands.
    fn end(&self, verdict: Verdict) {
        let mut state = self.state();
        state.stop_asked = true;
        if let Some(pid) = state.pid {
            state.verdict.get_or_insert(verdict);
            let _ = kill(pid, Signal::SIGKILL);
        }
    }

    /// Kills the process because the agent wants it.
    pub(crate) fn stop(&self) {
        self.end(Verdict::Asked);
    }

    fn started(&self, pid: Pid) -> bool {
        let mut state = self.state();
        state.pid = Some(pid);
        !state.stop_asked
    }
}

/// The pipes of a started cell.
pub(crate) type Pipes = (ChildStdin, ChildStdout);

/// Starts the launcher, reports on `started` when the module runs or why it doesn't, and returns when it has
/// ended.
pub(crate) fn run(
    mut command: Command,
    image: &Image,
    limits: CellLimits,
    seccomp: Seccomp,
    process: &Process,
    started: &SyncSender<Result<Pipes, CellError>>,
) -> Option<Report> {
    let begun = Instant::now();
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(error) => {
            let _ = started.send(Err(CellError::Launcher(error)));
            return None;
        }
    };
    let pid = Pid::from_raw(child.id().cast_signed());
    if !process.started(pid) {
        process.stop();
    }
    let pipes = pipes(&mut child);
    let (over, ended) = channel();
    let listener = child.stderr.take().and_then(|stderr| {
        let process = process.clone();
        let deadline = begun.checked_add(limits.wall);
        thread::Builder::new()
            .name("cell-clock".into())
            .stack_size(128 << 10)
            .spawn(move || listen(stderr, deadline, &process, &ended))
            .ok()
    });
    if pipes.is_none() || listener.is_none() {
        process.stop();
    }

    let mut tracer =
        Tracer { pid, image, seccomp, process, phase: Phase::Launching, questions: 0, took: None };
    let mut pipes = pipes;
    let end = tracer.watch(begun, || match pipes.take() {
        Some(pipes) => started.send(Ok(pipes)).is_ok(),
        None => false,
    });
    drop::<Sender<()>>(over);
    let said = listener.and_then(|listener| listener.join().ok()).unwrap_or_default();
    let took = tracer.took;
    let report = report(&said, end, process, limits, took);
    if took.is_none() {
        let _ = started.send(Err(refusal(&said, &report.outcome)));
    }
    Some(report)
}

fn pipes(child: &mut Child) -> Option<Pipes> {
    Some((child.stdin.take()?, child.stdout.take()?))
}

/// Where a cell is on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// The launcher builds the walls, not yet traced.
    Launching,
    /// The launcher is traced, the last wall not yet seen.
    Traced,
    /// The last wall has been seen to stand; the launcher's one permitted execution is on its way.
    Walled,
    /// The module runs.
    Running,
}

/// How a process ended, as the kernel says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct End {
    code: Option<i32>,
    signal: Option<Signal>,
    cpu_ticks: u64,
}

struct Tracer<'a> {
    pid: Pid,
    image: &'a Image,
    seccomp: Seccomp,
    process: &'a Process,
    phase: Phase,
    questions: u32,
    took: Option<Duration>,
}

impl Tracer<'_> {
    /// Follows the process to its end. `running` is called once, when the module runs.
    fn watch(&mut self, begun: Instant, mut running: impl FnMut() -> bool) -> End {
        loop {
            match waitid(
                Id::Pid(self.pid),
                WaitPidFlag::WEXITED | WaitPidFlag::WSTOPPED | WaitPidFlag::WNOWAIT,
            ) {
                Ok(WaitStatus::Exited(..) | WaitStatus::Signaled(..)) => return self.reap(),
                Ok(_) => {}
                Err(Errno::EINTR) => continue,
                Err(Errno::ECHILD) => return self.reap(),
                // A signal that has no name: nothing of ours sends one.
                Err(_) => self.process.stop(),
            }
            // It is stopped, not ended: taking the news off the queue doesn't free its number.
            let news = waitpid(self.pid, Some(WaitPidFlag::WUNTRACED));
            let signal = match news {
                Ok(WaitStatus::PtraceEvent(_, _, libc::PTRACE_EVENT_SECCOMP)) => {
                    self.call();
                    None
                }
                Ok(WaitStatus::PtraceEvent(_, _, libc::PTRACE_EVENT_EXEC)) => {
                    if self.executed() {
                        self.took = Some(begun.elapsed());
                        if !running() {
                            self.process.stop();
                        }
                    } else {
                        self.process.stop();
                    }
                    None
                }
                Ok(WaitStatus::Stopped(_, signal)) => self.signalled(signal),
                Ok(WaitStatus::Exited(_, code)) => return self.ended(Some(code), None, 0),
                Ok(WaitStatus::Signaled(_, signal, _)) => return self.ended(None, Some(signal), 0),
                Ok(_) | Err(_) => None,
            };
            // Fails only when the process has been killed meanwhile, which the next round sees.
            let _ = ptrace::cont(self.pid, signal);
        }
    }

    /// The process is about to make a call that isn't on the list.
    fn call(&mut self) {
        let Ok(call) = arch::call(self.pid) else {
            self.process.stop();
            return;
        };
        if self.phase == Phase::Traced && call.number == libc::SYS_execveat {
            self.phase = Phase::Walled;
            return;
        }
        if violation::is_start_up_question(self.pid, call) && self.questions < START_UP_QUESTIONS_MAX {
            self.questions += 1;
            if arch::refuse(self.pid).is_ok() {
                return;
            }
        }
        self.process.end(Verdict::Violation(violation::describe(self.pid, call)));
    }

    /// A program was executed. Whether it is the image, behind its wall.
    fn executed(&mut self) -> bool {
        let wall_stands = match (self.phase, self.seccomp) {
            (Phase::Walled, _) | (Phase::Traced, Seccomp::Off) => true,
            (Phase::Launching | Phase::Traced | Phase::Running, _) => false,
        };
        self.phase = Phase::Running;
        wall_stands && self.image.is_run_by(self.pid).unwrap_or(false)
    }

    /// The process got a signal. Which one it is to see.
    fn signalled(&mut self, signal: Signal) -> Option<Signal> {
        match signal {
            Signal::SIGSTOP if self.phase == Phase::Launching => {
                let options = ptrace::Options::PTRACE_O_TRACESECCOMP
                    | ptrace::Options::PTRACE_O_TRACEEXEC
                    | ptrace::Options::PTRACE_O_EXITKILL;
                match ptrace::setoptions(self.pid, options) {
                    Ok(()) => self.phase = Phase::Traced,
                    Err(_) => self.process.stop(),
                }
                None
            }
            Signal::SIGXCPU => {
                self.process.end(Verdict::CpuLimit);
                None
            }
            Signal::SIGSTOP | Signal::SIGTSTP | Signal::SIGTTIN | Signal::SIGTTOU => None,
            other => Some(other),
        }
    }

    /// The process has ended but still has its number: whatever else is in its group goes too, then the
    /// number is given up.
    fn reap(&self) -> End {
        let ticks = cpu_ticks(self.pid);
        let _ = killpg(self.pid, Signal::SIGKILL);
        self.process.state().pid = None;
        match waitpid(self.pid, None) {
            Ok(WaitStatus::Exited(_, code)) => self.ended(Some(code), None, ticks),
            Ok(WaitStatus::Signaled(_, signal, _)) => self.ended(None, Some(signal), ticks),
            Ok(_) | Err(_) => self.ended(None, Some(Signal::SIGKILL), ticks),
        }
    }

    fn ended(&self, code: Option<i32>, signal: Option<Signal>, cpu_ticks: u64) -> End {
        self.process.state().pid = None;
        End { code, signal, cpu_ticks }
    }
}

/// User and system time of a process that has ended and isn't reaped yet.
fn cpu_ticks(pid: Pid) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The name in brackets may hold anything; the numbers come after the last bracket.
    let Some((_, numbers)) = text.rsplit_once(')') else { return 0 };
    numbers.split_whitespace().skip(11).take(2).filter_map(|ticks| ticks.parse::<u64>().ok()).sum()
}

fn report(said: &str, end: End, process: &Process, limits: CellLimits, took: Option<Duration>) -> Report {
    let (walls, stderr) = match said.strip_prefix(WALLS).and_then(|rest| rest.split_once('\n')) {
        Some((walls, stderr)) => (walls.split(' ').map(str::to_owned).collect(), stderr),
        None => (Vec::new(), said),
    };
    let cpu_spent = end.cpu_ticks >= limits.cpu_seconds.saturating_mul(TICKS_PER_SECOND);
    let verdict = process.state().verdict.take();
    let outcome = match (verdict, end.code, end.signal) {
        (Some(Verdict::Violation(violation)), _, _) => Outcome::Violation(violation),
        // It ended by itself before the kill reached it.
        (_, Some(code), _) => Outcome::Exited(code),
        (Some(Verdict::TimedOut), ..) => Outcome::TimedOut,
        (Some(Verdict::CpuLimit), ..) => Outcome::CpuLimit,
        (Some(Verdict::Asked), ..) => Outcome::Killed { signal: libc::SIGKILL },
        (None, None, Some(Signal::SIGKILL)) if cpu_spent => Outcome::CpuLimit,
        (None, None, Some(Signal::SIGABRT)) if stderr.contains("memory allocation of ") => {
            Outcome::MemoryLimit
        }
        (None, None, Some(signal)) => Outcome::Killed { signal: signal as i32 },
        (None, None, None) => Outcome::Killed { signal: libc::SIGKILL },
    };
    Report { outcome, stderr: stderr.to_owned(), walls, started_after: took.unwrap_or_default() }
}

fn refusal(said: &str, outcome: &Outcome) -> CellError {
    let reason = match said.rsplit_once(REFUSED) {
        Some((_, reason)) => reason.trim().to_owned(),
        None => match outcome {
            Outcome::TimedOut => "the launcher took too long".to_owned(),
            other => format!("the launcher ended before the module ran: {other}"),
        },
    };
    CellError::Refused { reason }
}

/// Collects standard error until the process has ended, and rings at the deadline.
fn listen(
    mut stderr: ChildStderr,
    deadline: Option<Instant>,
    process: &Process,
    ended: &Receiver<()>,
) -> String {
    let mut said = Vec::new();
    let mut read = 0_usize;
    let mut buffer = [0_u8; 4096];
    let mut rung = false;
    while read < STDERR_READ_MAX {
        let timeout = match (rung, deadline) {
            (false, Some(deadline)) => deadline.saturating_duration_since(Instant::now()),
            (true, _) | (_, None) => Duration::from_secs(1),
        };
        let timeout =
            PollTimeout::try_from(timeout.min(Duration::from_secs(3600))).unwrap_or(PollTimeout::MAX);
        let ready = poll(&mut [PollFd::new(stderr.as_fd(), PollFlags::POLLIN)], timeout);
        if !rung && deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            process.end(Verdict::TimedOut);
            rung = true;
        }
        match ready {
            Ok(0) if rung => break,
            Ok(0) | Err(Errno::EINTR) => continue,
            Ok(_) => {}
            Err(_) => break,
        }
        let Ok(count) = stderr.read(&mut buffer) else { break };
        if count == 0 {
            break;
        }
        read = read.saturating_add(count);
        let room = STDERR_BYTES_MAX.saturating_sub(said.len()).min(count);
        said.extend_from_slice(buffer.get(..room).unwrap_or_default());
    }
    drop(stderr);
    loop {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        match ended.recv_timeout(left.filter(|_| !rung).unwrap_or(Duration::from_secs(3600))) {
            Ok(()) | Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => {
                process.end(Verdict::TimedOut);
                rung = true;
            }
        }
    }
    said.split(|byte| *byte == b'\n').map(violation::printable).collect::<Vec<_>>().join("\n")
}
