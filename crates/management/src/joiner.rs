//! Joins the journals of all processes in the one log, and shows every new record to the projection and the sentinel.
//!
//! One thread owns the log. What arrives while it writes is joined together in the next write, so that many processes
//! share one flush.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

use audit::AuditError;
use audit::journal::parse_line;
use audit::log::Log;
use tokio::sync::oneshot;
use wire::journal::REPORT_LINES_MAX;

use crate::control::Control;
use crate::log_files::LogFiles;
use crate::response::Watch;
use crate::run::NAME;

/// Lines joined in one write at most.
const BATCH_LINES_MAX: usize = 2_048;

/// Why lines were not joined.
#[derive(Debug, Clone, thiserror::Error)]
pub enum JoinError {
    /// The lines do not continue the process's chain.
    #[error("{0}")]
    Refused(String),
    /// The log failed or the joiner is gone; the same lines may be sent again.
    #[error("the log cannot take entries now: {0}")]
    Failed(String),
}

struct Job {
    process: String,
    lines: Vec<Vec<u8>>,
    reply: oneshot::Sender<Result<u64, JoinError>>,
}

/// The way to the joining thread.
#[derive(Clone)]
pub struct Joiner {
    jobs: Sender<Job>,
}

impl Joiner {
    /// Starts the thread.
    ///
    /// # Errors
    /// When the operating system gives no thread.
    pub fn start(log: Log<LogFiles>, control: Arc<Control>, watch: Watch) -> std::io::Result<Self> {
        let (jobs, queue) = channel();
        std::thread::Builder::new()
            .name("joiner".into())
            .spawn(move || Work { log, control, watch }.run(&queue))?;
        Ok(Self { jobs })
    }

    /// Joins lines of one process; answers with the sequence number that is expected next once they are durable.
    ///
    /// # Errors
    /// When they do not continue the chain, or the log fails.
    pub async fn join(&self, process: String, lines: Vec<Vec<u8>>) -> Result<u64, JoinError> {
        let (reply, answer) = oneshot::channel();
        let gone = || JoinError::Failed("the joiner has stopped".into());
        self.jobs.send(Job { process, lines, reply }).map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }
}

struct Work {
    log: Log<LogFiles>,
    control: Arc<Control>,
    watch: Watch,
}

impl Work {
    fn run(mut self, queue: &Receiver<Job>) {
        while let Ok(first) = queue.recv() {
            let mut jobs = vec![first];
            let mut lines = jobs.iter().map(|job| job.lines.len()).sum::<usize>();
            while lines < BATCH_LINES_MAX {
                match queue.try_recv() {
                    Ok(job) => {
                        lines += job.lines.len();
                        jobs.push(job);
                    }
                    Err(_) => break,
                }
            }
            self.join_all(jobs);
        }
    }

    /// Joins everything in one write; when one process's lines are refused, each process is tried by itself, so that a
    /// liar hurts nobody else.
    fn join_all(&mut self, mut jobs: Vec<Job>) {
        // What management had recorded by now comes first: whoever reads the log meets a key as certified before
        // anybody uses it.
        if jobs.iter().any(|job| job.process != NAME) {
            let (reply, _) = oneshot::channel();
            jobs.insert(0, Job { process: NAME.to_owned(), lines: self.own_lines(), reply });
        }
        let all: Vec<Vec<u8>> = jobs.iter().flat_map(|job| job.lines.iter().cloned()).collect();
        let whole = if all.len() <= BATCH_LINES_MAX && jobs.iter().all(Job::is_own) {
            self.append(&all)
        } else {
            Err(JoinError::Refused("to be tried one by one".into()))
        };
        for job in jobs {
            let result = match &whole {
                Ok(()) => Ok(()),
                Err(_) if !job.is_own() => {
                    Err(JoinError::Refused("lines that this process may not write".into()))
                }
                Err(_) => self.append(&job.lines),
            };
            let answer = result.map(|()| self.log.joined(&job.process));
            let _ = job.reply.send(answer);
        }
    }

    /// The lines of management's own journal that are not joined yet; when there are more than one batch takes, all but
    /// the last of them are joined.
    fn own_lines(&mut self) -> Vec<Vec<u8>> {
        loop {
            let lines: Vec<Vec<u8>> =
                self.control.journal.unjoined().into_iter().map(String::into_bytes).collect();
            if lines.len() < REPORT_LINES_MAX || self.append(&lines).is_err() {
                return lines;
            }
            self.control.journal.joined(self.log.joined(NAME));
        }
    }

    fn append(&mut self, lines: &[Vec<u8>]) -> Result<(), JoinError> {
        let before = self.log.size();
        let indices = self.log.append(lines).map_err(|error| match error {
            AuditError::Poisoned | AuditError::Storage { .. } => {
                // What is on disk is unknown: only opening the log again can tell. The supervisor starts management again,
                // and until then every guard closes within its lease.
                tracing::error!(%error, "the log failed; management stops and starts again");
                std::process::abort()
            }
            error => JoinError::Refused(error.to_string()),
        })?;
        let mut next = before;
        for (line, index) in lines.iter().zip(indices) {
            // A line that came twice is shown once.
            if index == next {
                next += 1;
                self.show(line);
            }
        }
        Ok(())
    }

    /// Shows a line that is new in the log.
    fn show(&mut self, line: &[u8]) {
        let Ok(entry) = parse_line(line) else { return };
        self.control.projection().apply(entry.at_ms, &entry.process, &entry.record);
        self.watch.observe(&self.control, &entry.process, &entry.record);
    }
}

impl Job {
    /// Whether every line is of the process that sent it, and says what that process can know: nobody speaks for another.
    fn is_own(&self) -> bool {
        self.lines.iter().all(|line| {
            parse_line(line)
                .is_ok_and(|entry| entry.process == self.process && entry.record.may_come_from(&self.process))
        })
    }
}

/// Shows the whole log to the projection and the sentinel, without any response: what happened before a restart has been
/// responded to.
///
/// # Errors
/// When the log cannot be read.
pub fn replay(
    log: &Log<LogFiles>,
    control: &Control,
    watch: &mut Watch,
) -> Result<BTreeMap<String, u64>, AuditError> {
    const CHUNK: u64 = 4_096;
    let mut from = 0;
    while from < log.size() {
        let to = (from + CHUNK).min(log.size());
        for line in log.entries(from..to)? {
            let entry = parse_line(&line)?;
            control.projection().apply(entry.at_ms, &entry.process, &entry.record);
            watch.remember(entry.at_ms, &entry.process, &entry.record);
        }
        from = to;
    }
    Ok(log.processes().map(|(process, joined)| (process.to_owned(), joined)).collect())
}
