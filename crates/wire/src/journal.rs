//! The journal file of a process, and its way to the log.
//!
//! Owns: one append-only file per process, in which every line carries the digest of the line before it. A decision is
//! written here before its effect. The lines are shipped to management in order, again and again until it says that they
//! are joined to the log.
//!
//! INVARIANT: one process at a time writes a journal, and only at its end.
//! INVARIANT: a journal that cannot be written refuses every later record, so that whoever must record before acting
//! stops acting.

use std::collections::VecDeque;
use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use audit::journal::{Chain, Entry, parse_line};
use audit::record::Record;
use tokio::sync::{Notify, watch};

use crate::api::{StatusReply, StatusReport, TaskEnd};
use crate::client::ClientError;
use crate::renew::Membership;

/// Lines in one report at most.
pub const REPORT_LINES_MAX: usize = 512;
/// Bytes of lines in one report at most.
pub const REPORT_BYTES_MAX: usize = 2 * 1024 * 1024;
/// How often an idle process reports, so that management knows that it lives.
const REPORT_IDLE: Duration = Duration::from_millis(1_000);
/// How long to wait after a report that failed.
const REPORT_RETRY: Duration = Duration::from_millis(100);
/// How long a predecessor that is just ending may still hold the file.
const LOCK_PATIENCE: Duration = Duration::from_secs(10);
/// How often it is looked whether the file is free.
const LOCK_RETRY: Duration = Duration::from_millis(50);

/// Why a record could not be kept.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The file cannot be opened, read or written.
    #[error(
        "the journal {path} cannot be used: {source}; free disk space or mend permissions, then start again"
    )]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Somebody else has it open to write: two writers would break its chain.
    #[error("another process writes this journal: {path}; end that process first, then start again")]
    Held {
        /// The file.
        path: PathBuf,
    },
    /// The file has been changed by somebody.
    #[error("the journal {path} has been tampered with: {problem}; run `trader audit verify`")]
    Tampered {
        /// The file.
        path: PathBuf,
        /// Which line, and what about it.
        problem: String,
    },
    /// A write failed earlier, so nothing more is accepted.
    #[error("the journal failed earlier and accepts nothing more until the process starts again")]
    Closed,
    /// The record cannot be written as a line.
    #[error("the record cannot be journalled: {0}")]
    Record(String),
}

/// The journal of one process.
pub struct Journal {
    path: PathBuf,
    inner: Mutex<Inner>,
    /// Sequence number up to which the disk has everything; guards the group commit.
    synced: Mutex<u64>,
    grown: Notify,
    /// Becomes true once, when a write has failed.
    closed: watch::Sender<bool>,
}

struct Inner {
    file: File,
    chain: Chain,
    /// Lines that management has not confirmed, with their sequence numbers.
    pending: VecDeque<(u64, String)>,
    closed: bool,
}

impl Journal {
    /// Opens the journal of `process` in `directory`, cutting off a last line that a crash left half-written. Blocks for up
    /// to 10 s while another process has it.
    ///
    /// # Errors
    /// When the file cannot be used, another process keeps it, or its chain is broken.
    pub fn open(directory: &Path, process: &str) -> Result<Arc<Self>, JournalError> {
        Self::open_within(directory, process, LOCK_PATIENCE)
    }

    fn open_within(directory: &Path, process: &str, patience: Duration) -> Result<Arc<Self>, JournalError> {
        let path = directory.join(format!("{process}.journal"));
        let failed = |source| JournalError::File { path: path.clone(), source };
        DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(failed)?;
        let opened = OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(&path);
        let mut file = opened.map_err(failed)?;
        // Before the first look: until then its last line may be one that the predecessor is still writing.
        take_lock(&file, &path, patience)?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(failed)?;
        let whole = bytes.iter().rposition(|&byte| byte == b'\n').map_or(0, |last| last + 1);
        if whole < bytes.len() {
            // The torn line was never acknowledged to anybody: its write did not return.
            tracing::warn!(journal = %path.display(), bytes = bytes.len() - whole, "cut a half-written last line");
            file.set_len(whole as u64).map_err(failed)?;
            bytes.truncate(whole);
        }
        let lines: Vec<&[u8]> = bytes.split(|&byte| byte == b'\n').filter(|line| !line.is_empty()).collect();
        let (chain, _) = Chain::resume(process, lines.iter().copied())
            .map_err(|error| JournalError::Tampered { path: path.clone(), problem: error.to_string() })?;
        let pending = lines
            .iter()
            .enumerate()
            .map(|(seq, line)| (seq as u64, String::from_utf8_lossy(line).into_owned()))
            .collect();
        Ok(Arc::new(Self {
            path,
            inner: Mutex::new(Inner { file, chain, pending, closed: false }),
            synced: Mutex::new(0),
            grown: Notify::new(),
            closed: watch::Sender::new(false),
        }))
    }

    /// Writes a record; the operating system has it when this returns, so that killing the process loses nothing.
    /// Returns its sequence number.
    ///
    /// # Errors
    /// When it cannot be written: then nothing may be done that the record announces.
    pub fn record(&self, record: &Record) -> Result<u64, JournalError> {
        let mut inner = self.lock();
        if inner.closed {
            return Err(JournalError::Closed);
        }
        let seq = inner.chain.next_seq();
        let mut line =
            inner.chain.seal(unix_ms(), record).map_err(|error| JournalError::Record(error.to_string()))?;
        line.push('\n');
        if let Err(source) = inner.file.write_all(line.as_bytes()) {
            self.close(&mut inner);
            return Err(JournalError::File { path: self.path.clone(), source });
        }
        line.pop();
        inner.pending.push_back((seq, line));
        drop(inner);
        self.grown.notify_one();
        Ok(seq)
    }

    /// Writes a record and waits until the disk has it. Several callers share one flush.
    ///
    /// # Errors
    /// As [`Journal::record`].
    pub fn record_durably(&self, record: &Record) -> Result<u64, JournalError> {
        let seq = self.record(record)?;
        self.flush_through(seq)?;
        Ok(seq)
    }

    /// Waits until the disk has everything that was recorded before the call. Several callers share one flush.
    ///
    /// # Errors
    /// When it cannot be flushed: then nothing may be done that those records announce.
    pub fn flush(&self) -> Result<(), JournalError> {
        let next = self.lock().chain.next_seq();
        next.checked_sub(1).map_or(Ok(()), |last| self.flush_through(last))
    }

    fn flush_through(&self, seq: u64) -> Result<(), JournalError> {
        let mut synced = self.synced.lock().unwrap_or_else(PoisonError::into_inner);
        if *synced > seq {
            return Ok(());
        }
        let (file, next) = {
            let inner = self.lock();
            (inner.file.try_clone(), inner.chain.next_seq())
        };
        match file.and_then(|file| file.sync_data()) {
            Ok(()) => {
                *synced = next;
                Ok(())
            }
            Err(source) => {
                self.close(&mut self.lock());
                Err(JournalError::File { path: self.path.clone(), source })
            }
        }
    }

    /// Lines that are not joined yet, oldest first, bounded by [`REPORT_LINES_MAX`] and [`REPORT_BYTES_MAX`].
    #[must_use]
    pub fn unjoined(&self) -> Vec<String> {
        let inner = self.lock();
        let mut bytes = 0;
        inner
            .pending
            .iter()
            .take(REPORT_LINES_MAX)
            .take_while(|(_, line)| {
                bytes += line.len();
                bytes <= REPORT_BYTES_MAX
            })
            .map(|(_, line)| line.clone())
            .collect()
    }

    /// Management has joined every line below `joined`.
    pub fn joined(&self, joined: u64) {
        let mut inner = self.lock();
        while inner.pending.front().is_some_and(|(seq, _)| *seq < joined) {
            inner.pending.pop_front();
        }
    }

    /// How many lines are not joined yet.
    #[must_use]
    pub fn unjoined_count(&self) -> usize {
        self.lock().pending.len()
    }

    /// Waits until something new is written, or for `at_most`.
    pub async fn grown(&self, at_most: Duration) {
        if self.unjoined_count() == 0 {
            let _ = tokio::time::timeout(at_most, self.grown.notified()).await;
        }
    }

    /// Waits until a write has failed. Nothing more can be recorded then, so the process can do nothing but end and be
    /// started again. Waits for ever while all is well.
    pub async fn closed(&self) {
        let mut closed = self.closed.subscribe();
        // The sender lives as long as the journal.
        let _ = closed.wait_for(|closed| *closed).await;
    }

    fn close(&self, inner: &mut Inner) {
        inner.closed = true;
        self.closed.send_replace(true);
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Makes the file this process's alone, until it is closed. The kernel frees it however the process ends.
fn take_lock(file: &File, path: &Path, patience: Duration) -> Result<(), JournalError> {
    let start = Instant::now();
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(()),
            Err(TryLockError::WouldBlock) if start.elapsed() < patience => std::thread::sleep(LOCK_RETRY),
            Err(TryLockError::WouldBlock) => return Err(JournalError::Held { path: path.to_owned() }),
            Err(TryLockError::Error(source)) => {
                return Err(JournalError::File { path: path.to_owned(), source });
            }
        }
    }
}

/// Every whole entry of a process's journal, oldest first: for a process whose memory the journal is.
///
/// # Errors
/// When the file cannot be read, or its chain is broken.
pub fn read_entries(directory: &Path, process: &str) -> Result<Vec<Entry>, JournalError> {
    let path = directory.join(format!("{process}.journal"));
    let bytes = match std::fs::read(&path) {
        Ok(bytes) => bytes,
        Err(source) if source.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(JournalError::File { path, source }),
    };
    let (lines, _torn) = audit::journal::split_lines(&bytes);
    let tampered =
        |error: audit::AuditError| JournalError::Tampered { path: path.clone(), problem: error.to_string() };
    Chain::resume(process, lines.iter().copied()).map_err(tampered)?;
    lines.into_iter().map(|line| parse_line(line).map_err(tampered)).collect()
}

/// Milliseconds since the Unix epoch.
#[must_use]
pub fn unix_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// Reports to management: sends unjoined lines, and the end of a task where there is one; hears what management has to
/// say of keys and authorities.
///
/// # Errors
/// When management cannot be reached or refuses; nothing is lost, the lines stay.
pub async fn report(
    journal: &Journal,
    membership: &Membership,
    ended: Option<TaskEnd>,
) -> Result<(), ClientError> {
    let bundle = membership.credentials().current().bundle().version;
    let report = StatusReport { journal: journal.unjoined(), ended, bundle };
    let reply: StatusReply = membership
        .management()
        .call_json(hyper::Method::POST, "/v1/status", &[], Some(&report), Duration::from_secs(10))
        .await?;
    journal.joined(reply.joined);
    membership.heard(&reply);
    Ok(())
}

/// Ships lines for as long as the process lives, and once more when it is told to stop.
pub async fn ship(journal: Arc<Journal>, membership: Arc<Membership>, mut stop: watch::Receiver<bool>) {
    loop {
        let wait = match report(&journal, &membership, None).await {
            Ok(()) => REPORT_IDLE,
            Err(error) => {
                tracing::debug!(%error, "report failed, will be repeated");
                tokio::time::sleep(REPORT_RETRY).await;
                REPORT_RETRY
            }
        };
        let stopping = tokio::select! {
            () = journal.grown(wait) => false,
            () = told(&mut stop) => true,
        };
        if stopping {
            while journal.unjoined_count() > 0 {
                if report(&journal, &membership, None).await.is_err() {
                    return;
                }
            }
            return;
        }
    }
}

/// Waits until told to stop, or until whoever could tell is gone.
pub async fn told(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn started() -> Record {
        Record::Started { program: "00".into() }
    }

    #[test]
    fn a_journal_goes_on_where_it_was_and_cuts_a_torn_line() {
        let directory = tempfile::tempdir().unwrap();
        let journal = Journal::open(directory.path(), "desk-1").unwrap();
        assert_eq!(journal.record(&started()).unwrap(), 0);
        assert_eq!(journal.record_durably(&started()).unwrap(), 1);
        drop(journal);
        let path = directory.path().join("desk-1.journal");
        let whole = std::fs::read(&path).unwrap();
        std::fs::write(&path, [whole.as_slice(), b"{\"process\":\"de"].concat()).unwrap();
        let journal = Journal::open(directory.path(), "desk-1").unwrap();
        assert_eq!(journal.record(&started()).unwrap(), 2);
        assert_eq!(journal.unjoined_count(), 3);
        journal.joined(2);
        assert_eq!(journal.unjoined_count(), 1);
    }

    #[test]
    fn a_changed_journal_is_not_continued() {
        let directory = tempfile::tempdir().unwrap();
        let journal = Journal::open(directory.path(), "desk-1").unwrap();
        journal.record(&started()).unwrap();
        journal.record(&started()).unwrap();
        drop(journal);
        let path = directory.path().join("desk-1.journal");
        let text = std::fs::read_to_string(&path).unwrap().replacen("\"00\"", "\"01\"", 1);
        std::fs::write(&path, text).unwrap();
        assert!(matches!(Journal::open(directory.path(), "desk-1"), Err(JournalError::Tampered { .. })));
    }

    #[test]
    fn a_journal_has_one_writer_and_the_next_waits_until_it_has_gone() {
        let directory = tempfile::tempdir().unwrap();
        let first = Journal::open(directory.path(), "desk-1").unwrap();
        first.record(&started()).unwrap();
        let second = Journal::open_within(directory.path(), "desk-1", Duration::ZERO);
        assert!(matches!(second, Err(JournalError::Held { .. })));
        assert_eq!(first.record(&started()).unwrap(), 1, "who has it is not disturbed");
        let going = std::thread::spawn(move || {
            std::thread::sleep(LOCK_RETRY * 2);
            assert_eq!(first.record(&started()).unwrap(), 2);
        });
        let second = Journal::open(directory.path(), "desk-1").unwrap();
        going.join().unwrap();
        assert_eq!(second.record(&started()).unwrap(), 3, "what the first wrote last is known");
    }

    #[test]
    fn a_journal_is_written_at_its_end_whoever_else_wrote_to_the_file() {
        let directory = tempfile::tempdir().unwrap();
        let journal = Journal::open(directory.path(), "desk-1").unwrap();
        journal.record(&started()).unwrap();
        let path = directory.path().join("desk-1.journal");
        let mut other = OpenOptions::new().append(true).open(&path).unwrap();
        other.write_all(b"evidence\n").unwrap();
        journal.record(&started()).unwrap();
        drop(journal);
        let bytes = std::fs::read(&path).unwrap();
        let (lines, torn) = audit::journal::split_lines(&bytes);
        assert_eq!((lines.len(), lines[1], torn), (3, &b"evidence"[..], None), "nothing is written over");
        assert!(matches!(Journal::open(directory.path(), "desk-1"), Err(JournalError::Tampered { .. })));
    }

    #[test]
    fn nobody_else_reads_a_journal_or_its_directory() {
        use std::os::unix::fs::PermissionsExt as _;
        let directory = tempfile::tempdir().unwrap();
        let made = directory.path().join("state").join("desk-1");
        let _journal = Journal::open(&made, "desk-1").unwrap();
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&made), 0o700);
        assert_eq!(mode(&made.join("desk-1.journal")), 0o600);
    }

    #[tokio::test]
    async fn a_failed_write_closes_the_journal_and_says_so() {
        let directory = tempfile::tempdir().unwrap();
        let journal = Journal::open(directory.path(), "desk-1").unwrap();
        journal.record(&started()).unwrap();
        let early = tokio::time::timeout(Duration::from_millis(20), journal.closed()).await;
        assert!(early.is_err(), "nothing has failed yet");
        let watching = tokio::spawn({
            let journal = journal.clone();
            async move { journal.closed().await }
        });
        // A file that takes no bytes, as on a full disk.
        journal.lock().file = File::open(directory.path().join("desk-1.journal")).unwrap();
        assert!(matches!(journal.record(&started()), Err(JournalError::File { .. })));
        tokio::time::timeout(Duration::from_secs(10), watching).await.unwrap().unwrap();
        journal.closed().await;
        assert!(matches!(journal.record(&started()), Err(JournalError::Closed)));
        assert_eq!(journal.unjoined_count(), 1, "what was not written is not shipped");
    }
}
