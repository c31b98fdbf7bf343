//! The one log into which the journals of all processes are joined, durable before it answers.
//!
//! Owns the order of writing and the rule of joining: per process, `seq` and `prev` must continue what is
//! already there. It knows no file: paths and bytes go to a [`LogStorage`]. It draws the signature of each
//! checkpoint itself and trusts nothing that it reads back: opening recomputes the whole tree.
//!
//! INVARIANT: tiles are durable before the checkpoint that names them, and the checkpoint before
//! [`Log::append`] returns. A crash in between leaves files that no checkpoint names; opening removes them.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::Range;

use keys::{Digest, SigningKey};

use crate::checkpoint::{CHECKPOINT_BYTES_MAX, Checkpoint};
use crate::error::AuditError;
use crate::journal::{NO_LINE, parse_line};
use crate::merkle::{Tree, leaf_hash};
use crate::tiles::{self, Kind, TileFile};

/// Path of the checkpoint inside the log.
pub const CHECKPOINT_PATH: &str = "checkpoint";

/// The most processes whose journals one log joins.
pub const PROCESSES_MAX: usize = 1024;

/// The most lines in one call of [`Log::append`].
pub const BATCH_LINES_MAX: usize = 16_384;

/// Where a log lives. Paths are relative, with `/` between their parts, and never hold `..`.
pub trait LogStorage {
    /// The bytes of a file; `None` when there is none.
    ///
    /// # Errors
    /// When the storage fails.
    fn read(&self, path: &str) -> io::Result<Option<Vec<u8>>>;

    /// The paths of all files, without those that a crash left half-written under a temporary name.
    ///
    /// # Errors
    /// When the storage fails.
    fn list(&self) -> io::Result<Vec<String>>;

    /// Writes a whole file: afterwards, and after a crash at any instant, a reader finds the old bytes or the
    /// new ones.
    ///
    /// # Errors
    /// When the storage fails; which bytes stand there is unknown then.
    fn write_atomic(&mut self, path: &str, bytes: &[u8]) -> io::Result<()>;

    /// Removes a file; no error when there is none.
    ///
    /// # Errors
    /// When the storage fails.
    fn remove(&mut self, path: &str) -> io::Result<()>;

    /// Returns when everything written so far survives a loss of power.
    ///
    /// # Errors
    /// When the storage fails; what is durable is unknown then.
    fn sync(&mut self) -> io::Result<()>;
}

/// A storage in memory, for tests and for looking at a copy.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MemoryStorage {
    /// Every file by its path.
    pub files: BTreeMap<String, Vec<u8>>,
}

impl LogStorage for MemoryStorage {
    fn read(&self, path: &str) -> io::Result<Option<Vec<u8>>> {
        Ok(self.files.get(path).cloned())
    }

    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.files.keys().cloned().collect())
    }

    fn write_atomic(&mut self, path: &str, bytes: &[u8]) -> io::Result<()> {
        self.files.insert(path.to_owned(), bytes.to_vec());
        Ok(())
    }

    fn remove(&mut self, path: &str) -> io::Result<()> {
        self.files.remove(path);
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What the log has of one process.
#[derive(Debug, Clone)]
struct Joined {
    /// Where in the log its entries stand, by their number in the process.
    indices: Vec<u64>,
    /// Digest of the last line.
    prev: Digest,
}

impl Default for Joined {
    fn default() -> Self {
        Self { indices: Vec::new(), prev: NO_LINE }
    }
}

/// The log, open for appending. There may be only one at a time for one storage; its owner sees to that.
#[derive(Debug)]
pub struct Log<S> {
    storage: S,
    origin: String,
    key: SigningKey,
    tree: Tree,
    processes: BTreeMap<String, Joined>,
    /// The entries of the last bundle while it is partial, because it is written again with every batch.
    tail: Vec<Vec<u8>>,
    checkpoint: String,
    poisoned: bool,
}

impl<S: LogStorage> Log<S> {
    /// Opens the log, or begins it where the storage is empty. Recomputes every hash, removes what a crash
    /// left behind, and costs one read of every file.
    ///
    /// # Errors
    /// [`AuditError::Signature`], [`AuditError::Checkpoint`], [`AuditError::Missing`], [`AuditError::Tile`]
    /// or an error of a chain when what is stored is not what was signed; [`AuditError::Storage`].
    pub fn open(storage: S, origin: &str, key: SigningKey) -> Result<Self, AuditError> {
        let mut log = Self {
            storage,
            origin: origin.to_owned(),
            key,
            tree: Tree::default(),
            processes: BTreeMap::new(),
            tail: Vec::new(),
            checkpoint: String::new(),
            poisoned: false,
        };
        let Some(note) = log.storage.read(CHECKPOINT_PATH)? else {
            // The very first thing written is the checkpoint of the empty log, so files without one mean that
            // it was taken.
            if log.storage.list()?.iter().any(|path| TileFile::parse(path).is_some()) {
                return Err(AuditError::Missing { path: CHECKPOINT_PATH.to_owned() });
            }
            log.write_checkpoint()?;
            return Ok(log);
        };
        let checkpoint = Checkpoint::open(&note, origin, &log.key.verifying_key())?;
        log.load(&checkpoint)?;
        log.checkpoint = String::from_utf8_lossy(&note).into_owned();
        let wanted: BTreeSet<TileFile> = tiles::files(checkpoint.size).into_iter().collect();
        for path in log.storage.list()? {
            if TileFile::parse(&path).is_some_and(|file| !wanted.contains(&file)) {
                log.storage.remove(&path)?;
            }
        }
        Ok(log)
    }

    /// Reads every file that the checkpoint names and recomputes the tree and the chains from the entries.
    fn load(&mut self, checkpoint: &Checkpoint) -> Result<(), AuditError> {
        for file in tiles::files(checkpoint.size) {
            match file.kind {
                Kind::Entries => {
                    let entries = read_bundle(&self.storage, &file)?;
                    for line in &entries {
                        let entry = parse_line(line)?;
                        let leaf = leaf_hash(line);
                        self.place(&entry.process, entry.seq, entry.prev, leaf, entry.digest)?;
                        self.tree.push(leaf);
                    }
                    self.tail = if file.width < tiles::WIDTH_MAX { entries } else { Vec::new() };
                }
                Kind::Hashes { .. } => {
                    let path = file.path();
                    let stored = self
                        .storage
                        .read(&path)?
                        .ok_or_else(|| AuditError::Missing { path: path.clone() })?;
                    if Some(stored) != file.hashes(&self.tree) {
                        return Err(AuditError::Tile {
                            path,
                            problem: "its hashes are not those of the entries".to_owned(),
                        });
                    }
                }
            }
        }
        if self.tree.root() != checkpoint.root {
            let problem = "the entries have another root than the one that was signed".to_owned();
            return Err(AuditError::Tile { path: CHECKPOINT_PATH.to_owned(), problem });
        }
        Ok(())
    }

    /// Decides where an entry belongs: `None` when it is the next of its process (and it is noted as such),
    /// its index when this very entry is there already.
    fn place(
        &mut self,
        process: &str,
        seq: u64,
        prev: Digest,
        leaf: Digest,
        digest: Digest,
    ) -> Result<Option<u64>, AuditError> {
        if !self.processes.contains_key(process) && self.processes.len() >= PROCESSES_MAX {
            return Err(AuditError::TooMany { what: "processes", most: PROCESSES_MAX });
        }
        let index = self.tree.size();
        let joined = self.processes.entry(process.to_owned()).or_default();
        let process = process.to_owned();
        let expected = joined.indices.len() as u64;
        if seq > expected {
            return Err(AuditError::Gap { process, seq, expected });
        }
        if seq < expected {
            let there = usize::try_from(seq).ok().and_then(|seq| joined.indices.get(seq)).copied();
            return match there {
                Some(there) if self.tree.leaf(there) == Some(leaf) => Ok(Some(there)),
                _ => Err(AuditError::Fork {
                    process,
                    seq,
                    problem: "is in the log already with other content",
                }),
            };
        }
        if prev != joined.prev {
            return Err(AuditError::Fork {
                process,
                seq,
                problem: "does not follow from the entry before it",
            });
        }
        joined.indices.push(index);
        joined.prev = digest;
        Ok(None)
    }

    /// Joins lines, in this order, and returns the index of each when all of them are durable. A line that is
    /// in the log already is not joined again; its old index is returned. All lines are joined, or none.
    ///
    /// # Errors
    /// [`AuditError::Gap`], [`AuditError::Fork`] or a parser's error for the first line that cannot be
    /// joined: the log is unchanged then. [`AuditError::Storage`]: whether the lines are durable is unknown,
    /// and the log answers [`AuditError::Poisoned`] until it is opened again; sending the lines again then is
    /// safe.
    pub fn append(&mut self, lines: &[Vec<u8>]) -> Result<Vec<u64>, AuditError> {
        if self.poisoned {
            return Err(AuditError::Poisoned);
        }
        if lines.len() > BATCH_LINES_MAX {
            return Err(AuditError::TooMany { what: "lines at once", most: BATCH_LINES_MAX });
        }
        let old_size = self.tree.size();
        let mut undo: Vec<(String, Digest)> = Vec::new();
        let indices = match self.join(lines, &mut undo) {
            Ok(indices) => indices,
            Err(error) => {
                self.take_back(old_size, undo);
                return Err(error);
            }
        };
        if self.tree.size() == old_size {
            return Ok(indices);
        }
        if let Err(error) = self.write(old_size, lines, &indices) {
            self.take_back(old_size, undo);
            self.poisoned = true;
            return Err(error);
        }
        Ok(indices)
    }

    /// Puts the lines into the tree and the chains, in memory only, and notes how to take them back.
    fn join(&mut self, lines: &[Vec<u8>], undo: &mut Vec<(String, Digest)>) -> Result<Vec<u64>, AuditError> {
        let mut indices = Vec::with_capacity(lines.len());
        for line in lines {
            let entry = parse_line(line)?;
            let leaf = leaf_hash(line);
            let index = match self.place(&entry.process, entry.seq, entry.prev, leaf, entry.digest)? {
                Some(there) => there,
                None => {
                    undo.push((entry.process, entry.prev));
                    self.tree.push(leaf);
                    self.tree.size() - 1
                }
            };
            indices.push(index);
        }
        Ok(indices)
    }

    fn take_back(&mut self, old_size: u64, undo: Vec<(String, Digest)>) {
        self.tree.truncate(old_size);
        for (process, prev) in undo.into_iter().rev() {
            if let Some(joined) = self.processes.get_mut(&process) {
                joined.indices.pop();
                joined.prev = prev;
            }
        }
        self.processes.retain(|_, joined| !joined.indices.is_empty());
    }

    /// Writes what is new: bundles and tiles, durably; then the checkpoint, durably; then removes what is
    /// superseded.
    fn write(&mut self, old_size: u64, lines: &[Vec<u8>], indices: &[u64]) -> Result<(), AuditError> {
        let new_size = self.tree.size();
        let mut next = old_size;
        let mut fresh: Vec<&[u8]> = Vec::new();
        for (line, index) in lines.iter().zip(indices) {
            // A line that came twice in one batch is joined once: its second index is not the next.
            if *index == next {
                fresh.push(line);
                next += 1;
            }
        }
        assert_eq!(next, new_size, "every new leaf has its line");
        let first = old_size - self.tail.len() as u64;
        let entries: Vec<&[u8]> = self.tail.iter().map(Vec::as_slice).chain(fresh).collect();
        for file in tiles::grown(old_size, new_size) {
            let bytes = match file.kind {
                Kind::Entries => {
                    let skip = usize::try_from(file.first() - first).unwrap_or(usize::MAX);
                    let take = usize::try_from(file.width).unwrap_or(usize::MAX);
                    tiles::encode_bundle(entries.iter().copied().skip(skip).take(take))?
                }
                Kind::Hashes { .. } => file.hashes(&self.tree).ok_or_else(|| AuditError::Tile {
                    path: file.path(),
                    problem: "the tree is smaller than the tile".to_owned(),
                })?,
            };
            self.storage.write_atomic(&file.path(), &bytes)?;
        }
        let kept = usize::try_from(new_size % tiles::WIDTH_MAX).unwrap_or(0);
        let tail = entries.iter().skip(entries.len() - kept).map(|entry| entry.to_vec()).collect();
        self.storage.sync()?;
        self.write_checkpoint()?;
        self.tail = tail;
        for file in tiles::superseded(old_size, new_size) {
            self.storage.remove(&file.path())?;
        }
        Ok(())
    }

    fn write_checkpoint(&mut self) -> Result<(), AuditError> {
        let checkpoint =
            Checkpoint { origin: self.origin.clone(), size: self.tree.size(), root: self.tree.root() };
        let note = checkpoint.sign(&self.key)?;
        self.storage.write_atomic(CHECKPOINT_PATH, note.as_bytes())?;
        self.storage.sync()?;
        self.checkpoint = note;
        Ok(())
    }

    /// Number of the next entry that the log expects of a process, which is how many it has; 0 for one it has
    /// never heard of.
    #[must_use]
    pub fn joined(&self, process: &str) -> u64 {
        self.processes.get(process).map_or(0, |joined| joined.indices.len() as u64)
    }

    /// Every process with entries in the log, and how many.
    pub fn processes(&self) -> impl Iterator<Item = (&str, u64)> {
        self.processes.iter().map(|(process, joined)| (process.as_str(), joined.indices.len() as u64))
    }

    /// Index in the log of entry `seq` of a process.
    #[must_use]
    pub fn index_of(&self, process: &str, seq: u64) -> Option<u64> {
        self.processes.get(process)?.indices.get(usize::try_from(seq).ok()?).copied()
    }

    /// Number of entries.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.tree.size()
    }

    /// Root over all entries.
    #[must_use]
    pub fn root(&self) -> Digest {
        self.tree.root()
    }

    /// The last checkpoint, as signed.
    #[must_use]
    pub fn checkpoint(&self) -> &str {
        &self.checkpoint
    }

    /// The tree, for proofs.
    #[must_use]
    pub fn tree(&self) -> &Tree {
        &self.tree
    }

    /// The lines of a range of entries, checked against the tree; shorter where the log ends.
    ///
    /// # Errors
    /// [`AuditError::Missing`] or [`AuditError::Tile`] when what is stored is no longer what was written;
    /// [`AuditError::Storage`].
    pub fn entries(&self, range: Range<u64>) -> Result<Vec<Vec<u8>>, AuditError> {
        let (from, to) = (range.start, range.end.min(self.size()));
        let mut lines = Vec::new();
        let bundles = tiles::files(to.max(from)).into_iter().filter(|file| file.kind == Kind::Entries);
        for file in bundles.filter(|file| from < to && file.first() + file.width > from && file.first() < to)
        {
            let width = (self.size() - file.first()).min(tiles::WIDTH_MAX);
            let stored = read_bundle(&self.storage, &TileFile { width, ..file })?;
            for (index, line) in (file.first()..).zip(stored) {
                if !(from..to).contains(&index) {
                    continue;
                }
                if self.tree.leaf(index) != Some(leaf_hash(&line)) {
                    return Err(AuditError::Tile {
                        path: file.path(),
                        problem: format!("entry {index} was changed"),
                    });
                }
                lines.push(line);
            }
        }
        Ok(lines)
    }

    /// Gives the storage back.
    #[must_use]
    pub fn into_storage(self) -> S {
        self.storage
    }
}

/// Reads the entries of one bundle.
pub(crate) fn read_bundle<S: LogStorage>(storage: &S, file: &TileFile) -> Result<Vec<Vec<u8>>, AuditError> {
    let path = file.path();
    let bytes = storage.read(&path)?.ok_or_else(|| AuditError::Missing { path: path.clone() })?;
    let entries = tiles::decode_bundle(&bytes, file.width);
    let entries = entries
        .ok_or_else(|| AuditError::Tile { path, problem: "it is no bundle of its width".to_owned() })?;
    Ok(entries.into_iter().map(<[u8]>::to_vec).collect())
}

/// Reads the checkpoint's bytes, bounded.
pub(crate) fn read_checkpoint<S: LogStorage>(storage: &S) -> Result<Vec<u8>, AuditError> {
    let note = storage.read(CHECKPOINT_PATH)?;
    let note = note.ok_or_else(|| AuditError::Missing { path: CHECKPOINT_PATH.to_owned() })?;
    if note.len() > CHECKPOINT_BYTES_MAX {
        return Err(AuditError::Checkpoint { problem: "it is too long" });
    }
    Ok(note)
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::journal::Chain;
    use crate::journal::tests::{lines, note};

    pub(crate) fn key() -> SigningKey {
        SigningKey::from_seed(&[5; 32])
    }

    pub(crate) fn open<S: LogStorage>(storage: S) -> Result<Log<S>, AuditError> {
        Log::open(storage, "trader/audit", key())
    }

    fn empty() -> Log<MemoryStorage> {
        open(MemoryStorage::default()).unwrap()
    }

    /// A storage whose machine dies after so many operations, and forgets some of what was not synced.
    #[derive(Debug, Clone, Default)]
    struct Mortal {
        durable: BTreeMap<String, Option<Vec<u8>>>,
        pending: Vec<(String, Option<Vec<u8>>)>,
        operations_left: usize,
    }

    impl Mortal {
        fn spend(&mut self) -> io::Result<()> {
            self.operations_left =
                self.operations_left.checked_sub(1).ok_or_else(|| io::Error::other("dead"))?;
            Ok(())
        }

        /// What the disk holds after the power came back: of what was pending, those whose bit is set.
        fn reborn(&self, kept: u64) -> MemoryStorage {
            let mut files = self.durable.clone();
            for (number, (path, bytes)) in self.pending.iter().enumerate() {
                if kept >> (number % 64) & 1 == 1 {
                    files.insert(path.clone(), bytes.clone());
                }
            }
            MemoryStorage {
                files: files.into_iter().filter_map(|(path, bytes)| Some((path, bytes?))).collect(),
            }
        }
    }

    impl LogStorage for Mortal {
        fn read(&self, path: &str) -> io::Result<Option<Vec<u8>>> {
            Ok(self.reborn(u64::MAX).files.get(path).cloned())
        }

        fn list(&self) -> io::Result<Vec<String>> {
            self.reborn(u64::MAX).list()
        }

        fn write_atomic(&mut self, path: &str, bytes: &[u8]) -> io::Result<()> {
            self.spend()?;
            self.pending.push((path.to_owned(), Some(bytes.to_vec())));
            Ok(())
        }

        fn remove(&mut self, path: &str) -> io::Result<()> {
            self.spend()?;
            self.pending.push((path.to_owned(), None));
            Ok(())
        }

        fn sync(&mut self) -> io::Result<()> {
            self.spend()?;
            self.durable.extend(std::mem::take(&mut self.pending));
            Ok(())
        }
    }

    #[test]
    fn lines_get_their_indices_and_come_back() {
        let mut log = empty();
        let (desk, agent) = (lines("desk", 400), lines("agent-1", 300));
        assert_eq!(log.append(&desk[..3]).unwrap(), [0, 1, 2]);
        assert_eq!(log.append(&agent[..250]).unwrap(), (3..253).collect::<Vec<_>>());
        assert_eq!(log.append(&desk[3..]).unwrap(), (253..650).collect::<Vec<_>>());
        assert_eq!(log.append(&agent[250..]).unwrap(), (650..700).collect::<Vec<_>>());
        assert_eq!((log.joined("desk"), log.joined("agent-1"), log.joined("news-1")), (400, 300, 0));
        assert_eq!(log.index_of("agent-1", 250), Some(650));
        assert_eq!(log.entries(0..3).unwrap(), desk[..3]);
        assert_eq!(log.entries(250..256).unwrap(), [&agent[247..250], &desk[3..6]].concat());
        assert_eq!(log.entries(640..9_000).unwrap().len(), 60);
        assert_eq!(log.entries(0..700).unwrap().len(), 700);
        assert!(log.entries(700..800).unwrap().is_empty());
        assert!(log.entries(5..5).unwrap().is_empty());
        let root = log.root();
        let log = open(log.into_storage()).unwrap();
        assert_eq!((log.root(), log.size(), log.joined("agent-1")), (root, 700, 300));
    }

    #[test]
    fn the_files_of_a_log_are_exactly_those_that_its_size_demands() {
        let mut log = empty();
        let all = lines("desk", 600);
        for batch in all.chunks(37) {
            log.append(batch).unwrap();
            let mut wanted: Vec<String> = tiles::files(log.size()).iter().map(TileFile::path).collect();
            wanted.push(CHECKPOINT_PATH.to_owned());
            wanted.sort();
            assert_eq!(log.storage.list().unwrap(), wanted);
        }
    }

    #[test]
    fn batches_of_any_size_make_the_same_log() {
        let all = lines("desk", 600);
        let mut once = empty();
        once.append(&all).unwrap();
        let mut often = empty();
        for batch in all.chunks(7) {
            often.append(batch).unwrap();
        }
        assert_eq!(once.into_storage(), often.into_storage());
    }

    #[test]
    fn a_line_that_is_sent_again_is_joined_once() {
        let mut log = empty();
        let desk = lines("desk", 10);
        log.append(&desk[..6]).unwrap();
        let before = log.storage.clone();
        assert_eq!(log.append(&desk[2..5]).unwrap(), [2, 3, 4]);
        assert_eq!(log.storage, before);
        assert_eq!(log.append(&[&desk[4..8], &desk[5..8]].concat()).unwrap(), [4, 5, 6, 7, 5, 6, 7]);
        assert_eq!(log.size(), 8);
        assert_eq!(open(log.into_storage()).unwrap().entries(0..8).unwrap(), desk[..8]);
    }

    #[test]
    fn a_gap_a_fork_and_a_rewritten_line_are_refused_by_name_and_nothing_is_joined() {
        let mut log = empty();
        let (desk, agent) = (lines("desk", 10), lines("agent-1", 3));
        log.append(&desk[..4]).unwrap();
        let before = (log.root(), log.storage.clone());
        let gap = log.append(&[agent[0].clone(), agent[1].clone(), desk[5].clone()]);
        assert!(matches!(&gap, Err(AuditError::Gap { process, seq: 5, expected: 4 }) if process == "desk"));
        let mut other = Chain::new("desk").unwrap();
        let forged: Vec<Vec<u8>> =
            (0..6).map(|n| other.seal(9, &note(&format!("{n}"))).unwrap().into_bytes()).collect();
        let rewritten = log.append(&[desk[4].clone(), forged[1].clone()]);
        assert!(matches!(&rewritten, Err(AuditError::Fork { process, seq: 1, .. }) if process == "desk"));
        let fork = log.append(&[agent[0].clone(), forged[4].clone()]);
        assert!(matches!(&fork, Err(AuditError::Fork { process, seq: 4, .. }) if process == "desk"));
        assert!(matches!(log.append(&[b"{}".to_vec()]), Err(AuditError::Line { .. })));
        assert_eq!((log.root(), log.storage.clone(), log.joined("agent-1")), (before.0, before.1, 0));
        assert_eq!(log.append(&desk[4..5]).unwrap(), [4]);
        assert_eq!(log.append(&agent).unwrap(), [5, 6, 7]);
    }

    #[test]
    fn after_a_failure_of_the_storage_nothing_is_taken_until_the_log_is_opened_again() {
        let mut log = open(Mortal { operations_left: 4, ..Mortal::default() }).unwrap();
        let desk = lines("desk", 3);
        assert!(matches!(log.append(&desk), Err(AuditError::Storage(_))));
        assert_eq!((log.size(), log.joined("desk")), (0, 0));
        log.storage.operations_left = 1_000;
        assert!(matches!(log.append(&desk), Err(AuditError::Poisoned)));
        let mut log = open(log.into_storage()).unwrap();
        assert_eq!(log.append(&desk).unwrap(), [0, 1, 2]);
    }

    #[test]
    fn a_log_that_lost_its_checkpoint_or_any_file_does_not_open() {
        let mut log = empty();
        log.append(&lines("desk", 300)).unwrap();
        let storage = log.into_storage();
        for path in storage.list().unwrap() {
            let mut robbed = storage.clone();
            robbed.remove(&path).unwrap();
            assert!(matches!(open(robbed), Err(AuditError::Missing { path: missing }) if missing == path));
        }
    }

    #[test]
    fn another_key_or_origin_does_not_open_the_log() {
        let storage = empty().into_storage();
        let other = Log::open(storage.clone(), "trader/audit", SigningKey::from_seed(&[6; 32]));
        assert!(matches!(other, Err(AuditError::Signature)));
        assert!(matches!(Log::open(storage, "another/audit", key()), Err(AuditError::Signature)));
        assert!(Log::open(MemoryStorage::default(), "no name", key()).is_err());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]

        /// INVARIANT: tiles are durable before the checkpoint that names them, and the checkpoint before
        /// append returns.
        #[test]
        fn a_crash_at_any_instant_loses_nothing_that_was_acknowledged_and_heals(
            operations in 2usize..60, batch in 20usize..300, kept in any::<u64>(),
        ) {
            let all = lines("desk", 700);
            let mut acknowledged = 0;
            let mortal = Mortal { operations_left: operations, ..Mortal::default() };
            let mut log = open(mortal).unwrap();
            for piece in all.chunks(batch) {
                match log.append(piece) {
                    Ok(_) => acknowledged += piece.len() as u64,
                    Err(error) => {
                        prop_assert!(matches!(error, AuditError::Storage(_)), "{}", error);
                        break;
                    }
                }
            }
            let mut log = open(log.into_storage().reborn(kept)).unwrap();
            prop_assert!(log.joined("desk") >= acknowledged);
            for piece in all.chunks(batch) {
                log.append(piece).unwrap();
            }
            let mut undisturbed = empty();
            undisturbed.append(&all).unwrap();
            prop_assert_eq!(log.into_storage(), undisturbed.into_storage());
        }
    }
}
