//! The auditor: recomputes a whole log and every journal from their bytes, and names what does not fit.
//!
//! Owns the judgement only. It trusts one public key and nothing that it reads: every bundle is hashed again,
//! every tile file compared, every chain followed, and every journal compared with the log entry by entry. It
//! stops at nothing it can step over, so the first fault is the earliest, and it reads a log of which another
//! process is the owner.
//!
//! What it cannot see: journal lines that were never joined are covered by their chain only, so a change in
//! the very last of them is invisible; and an old but genuine checkpoint with its old files is a valid log:
//! journals that are ahead of it (`unjoined`) are the only trace. Both are counted in the report.

use std::collections::{BTreeMap, BTreeSet};

use keys::{Digest, VerifyingKey};
use serde::Serialize;

use crate::checkpoint::Checkpoint;
use crate::error::AuditError;
use crate::journal::{Chain, Entry, parse_line, split_lines};
use crate::log::{CHECKPOINT_PATH, LogStorage, read_bundle, read_checkpoint};
use crate::merkle::{Tree, leaf_hash};
use crate::tiles::{self, Kind, TileFile, WIDTH_MAX};

/// The most faults that are listed; one is enough to fail.
pub const FAULTS_MAX: usize = 100;

/// One thing that does not fit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Fault {
    /// Where: `log entry 1234 (desk-1 seq 56)`, `journal desk-1 entry 56`, `checkpoint`, or a path inside the
    /// log.
    pub place: String,
    /// What is wrong there.
    pub problem: String,
}

/// What the auditor found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Entries in the log.
    pub entries: u64,
    /// Root computed from the entries, in hexadecimal.
    pub root: String,
    /// Whether nothing at all is wrong.
    pub verified: bool,
    /// What is wrong, the earliest first.
    pub faults: Vec<Fault>,
    /// Journal lines that the log does not have yet. Not a fault while the system runs or after a crash;
    /// after an orderly end there should be none.
    pub unjoined: u64,
    /// Files that the checkpoint does not cover: the leavings of a batch that a crash cut short. They prove
    /// nothing.
    pub leftover: u64,
}

/// Where a fault is, in the order in which a reader wants to hear of them.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    Checkpoint,
    Entry(u64),
    Root,
    File(TileFile),
    Journal(String, u64),
}

/// What is known of a log while it is read.
#[derive(Default)]
struct Audit {
    /// The first problem of each place.
    faults: BTreeMap<Place, String>,
    tree: Tree,
    chains: BTreeMap<String, Chain>,
    /// Per process, the index in the log of each of its entries.
    places: BTreeMap<String, BTreeMap<u64, u64>>,
}

impl Audit {
    fn fault(&mut self, place: Place, problem: impl Into<String>) {
        self.faults.entry(place).or_insert_with(|| problem.into());
        // Those that are dropped are the last in reading order, so the first stays.
        if self.faults.len() > FAULTS_MAX {
            self.faults.pop_last();
        }
    }

    /// The name of an entry, with its process where it could be read.
    fn entry_name(&self, index: u64) -> String {
        for (process, places) in &self.places {
            if let Some((seq, _)) = places.iter().find(|(_, place)| **place == index) {
                return format!("log entry {index} ({process} seq {seq})");
            }
        }
        format!("log entry {index}")
    }

    fn place_name(&self, place: &Place) -> String {
        match place {
            Place::Checkpoint | Place::Root => "checkpoint".to_owned(),
            Place::Entry(index) => self.entry_name(*index),
            Place::File(file) => file.path(),
            Place::Journal(process, seq) => format!("journal {process} entry {seq}"),
        }
    }
}

/// Verifies a log and the journals of all processes that it joins. `journals` are the processes' names with
/// the bytes of their files; a process with entries in the log and no journal is a fault.
///
/// While another process appends to the log, a partial file may be replaced between two reads; then the
/// verification starts over with the new checkpoint, up to three times.
///
/// # Errors
/// [`AuditError::Storage`] when the storage cannot be read. Everything else is a fault in the report.
pub fn verify<S: LogStorage>(
    storage: &S,
    key: &VerifyingKey,
    origin: &str,
    journals: &[(String, Vec<u8>)],
) -> Result<Report, AuditError> {
    let (mut report, mut note) = verify_once(storage, key, origin, journals)?;
    for _ in 0..3 {
        if report.verified || storage.read(CHECKPOINT_PATH)? == note {
            break;
        }
        (report, note) = verify_once(storage, key, origin, journals)?;
    }
    Ok(report)
}

fn verify_once<S: LogStorage>(
    storage: &S,
    key: &VerifyingKey,
    origin: &str,
    journals: &[(String, Vec<u8>)],
) -> Result<(Report, Option<Vec<u8>>), AuditError> {
    let mut audit = Audit::default();
    let note = match read_checkpoint(storage) {
        Err(AuditError::Storage(error)) => return Err(error.into()),
        other => other,
    };
    let opened = match &note {
        Ok(note) => Checkpoint::open(note, origin, key).map_err(|error| error.to_string()),
        Err(error) => Err(error.to_string()),
    };
    let present: BTreeSet<TileFile> =
        storage.list()?.iter().filter_map(|path| TileFile::parse(path)).collect();
    let (size, signed_root) = match opened {
        Ok(checkpoint) => (checkpoint.size, Some(checkpoint.root)),
        Err(problem) => {
            audit.fault(Place::Checkpoint, problem);
            (size_of(&present), None)
        }
    };
    let mut leftover = present.len() as u64;
    let mut differences = Vec::new();
    let mut complete = true;
    for file in tiles::files(size) {
        leftover = leftover.saturating_sub(u64::from(present.contains(&file)));
        match file.kind {
            Kind::Entries if complete => complete = read_entries(storage, &file, &mut audit)?,
            Kind::Hashes { .. } if complete => differences.extend(check_tile(storage, &file, &audit.tree)?),
            // Behind an entry that is gone nothing can be recomputed.
            Kind::Entries | Kind::Hashes { .. } => break,
        }
    }
    // A narrower file than the one in force says the same, or lies.
    for file in present.iter().filter(|file| complete && is_superseded(file, size)) {
        leftover = leftover.saturating_sub(1);
        match file.kind {
            Kind::Entries => check_old_bundle(storage, file, &mut audit)?,
            Kind::Hashes { .. } => differences.extend(check_tile(storage, file, &audit.tree)?),
        }
    }
    let root = audit.tree.root();
    let genuine = complete && signed_root == Some(root);
    judge_tiles(differences, genuine, &mut audit);
    if let Some(signed) = signed_root.filter(|_| complete && !genuine) {
        audit.fault(Place::Root, format!("the entries have the root {root}, but {signed} was signed"));
    }
    let unjoined = check_journals(journals, &mut audit);
    let faults = audit.faults.iter();
    let faults =
        faults.map(|(place, problem)| Fault { place: audit.place_name(place), problem: problem.clone() });
    let faults: Vec<Fault> = faults.collect();
    let report = Report {
        entries: audit.tree.size(),
        root: root.to_string(),
        verified: faults.is_empty(),
        faults,
        unjoined,
        leftover,
    };
    Ok((report, note.ok()))
}

/// How many entries are there without a gap, for a log whose checkpoint says nothing that can be believed.
fn size_of(present: &BTreeSet<TileFile>) -> u64 {
    let bundle = |index, width| TileFile { kind: Kind::Entries, index, width };
    let full = (0..).find(|index| !present.contains(&bundle(*index, WIDTH_MAX))).unwrap_or(0);
    let partial = (1..WIDTH_MAX).rev().find(|width| present.contains(&bundle(full, *width))).unwrap_or(0);
    full * WIDTH_MAX + partial
}

/// Whether a file is a partial one that the log of this size has outgrown.
fn is_superseded(file: &TileFile, size: u64) -> bool {
    let size = match file.kind {
        Kind::Entries => size,
        Kind::Hashes { level } => size >> (level * 8),
    };
    file.width < WIDTH_MAX && file.first().saturating_add(file.width) < size
}

/// Says of every tile that differs from the entries which of the two was changed.
fn judge_tiles(differences: Vec<Difference>, genuine: bool, audit: &mut Audit) {
    let of_leaf = |difference: &Difference| difference.file.kind == Kind::Hashes { level: 0 };
    let leaf_differs = differences.iter().any(|difference| of_leaf(difference) && difference.entry.is_some());
    for difference in differences {
        let path = difference.file.path();
        match difference.entry {
            // Without the signed root it is the entry that was changed, and the tile of its own hash is the
            // one that knows.
            Some(entry) if !genuine && of_leaf(&difference) => {
                audit.fault(Place::Entry(entry), format!("it does not have the hash that {path} has for it"));
            }
            Some(_) if !genuine && leaf_differs => {}
            // With the signed root recomputed from the entries, it is the tile.
            Some(entry) => {
                let problem = format!("{}, first at {}", difference.problem, audit.entry_name(entry));
                audit.fault(Place::File(difference.file), problem);
            }
            None => audit.fault(Place::File(difference.file), difference.problem),
        }
    }
}

/// A hash tile that does not say what the entries say.
struct Difference {
    file: TileFile,
    /// The first entry below the first hash that differs.
    entry: Option<u64>,
    problem: &'static str,
}

/// Hashes a bundle's entries and follows the chains of their processes. Answers whether the tree could be
/// continued.
fn read_entries<S: LogStorage>(storage: &S, file: &TileFile, audit: &mut Audit) -> Result<bool, AuditError> {
    let entries = match read_bundle(storage, file) {
        Ok(entries) => entries,
        Err(AuditError::Storage(error)) => return Err(error.into()),
        Err(error) => {
            let bytes = storage.read(&file.path())?.unwrap_or_default();
            let hashes = storage.read(&TileFile { kind: Kind::Hashes { level: 0 }, ..*file }.path())?;
            let hashes =
                hashes.and_then(|hashes| tiles::decode_hashes(&hashes, file.width)).unwrap_or_default();
            let sound = sound_entries(&bytes, &hashes).min(file.width - 1);
            audit.fault(Place::Entry(file.first() + sound), error.to_string());
            return Ok(false);
        }
    };
    for line in entries {
        let index = audit.tree.size();
        audit.tree.push(leaf_hash(&line));
        match parse_line(&line) {
            Ok(entry) => {
                if !entry.record.may_come_from(&entry.process) {
                    let problem = format!("{} may not say this", entry.process);
                    audit.fault(Place::Entry(index), problem);
                }
                follow(&entry, index, audit);
            }
            Err(error) => audit.fault(Place::Entry(index), error.to_string()),
        }
    }
    Ok(true)
}

/// How many entries of a damaged bundle can be told apart and have the hash that their tile has for them.
fn sound_entries(bytes: &[u8], hashes: &[Digest]) -> u64 {
    let (mut rest, mut sound) = (bytes, 0);
    for hash in hashes {
        let Some((length, behind)) = rest.split_first_chunk::<2>() else { break };
        let Some((entry, behind)) = behind.split_at_checked(usize::from(u16::from_be_bytes(*length))) else {
            break;
        };
        if leaf_hash(entry) != *hash {
            break;
        }
        sound += 1;
        rest = behind;
    }
    sound
}

/// Checks that an entry continues its process's chain inside the log. After a break it goes on from this
/// entry, so that one fault is reported once.
fn follow(entry: &Entry, index: u64, audit: &mut Audit) {
    let chain = match audit.chains.get_mut(&entry.process) {
        Some(chain) => chain,
        None => match Chain::new(&entry.process) {
            Ok(chain) => audit.chains.entry(entry.process.clone()).or_insert(chain),
            Err(error) => return audit.fault(Place::Entry(index), error.to_string()),
        },
    };
    let accepted = chain.accept(entry);
    if accepted.is_err() {
        chain.go_on_after(entry);
    }
    audit.places.entry(entry.process.clone()).or_default().entry(entry.seq).or_insert(index);
    if let Err(error) = accepted {
        audit.fault(Place::Entry(index), error.to_string());
    }
}

/// Compares a hash tile with the tree.
fn check_tile<S: LogStorage>(
    storage: &S,
    file: &TileFile,
    tree: &Tree,
) -> Result<Option<Difference>, AuditError> {
    let Kind::Hashes { level } = file.kind else { return Ok(None) };
    let difference = |entry, problem| Ok(Some(Difference { file: *file, entry, problem }));
    let Some(bytes) = storage.read(&file.path())? else { return difference(None, "it is missing") };
    let Some(hashes) = tiles::decode_hashes(&bytes, file.width) else {
        return difference(None, "it does not hold as many hashes as its name says");
    };
    let mut numbered = (file.first()..).zip(hashes);
    match numbered.find(|(index, hash)| tree.node(level * 8, *index) != Some(*hash)) {
        Some((index, _)) => difference(Some(index << (level * 8)), "a hash was changed"),
        None => Ok(None),
    }
}

/// Compares a superseded bundle with the tree.
fn check_old_bundle<S: LogStorage>(
    storage: &S,
    file: &TileFile,
    audit: &mut Audit,
) -> Result<(), AuditError> {
    let same = match read_bundle(storage, file) {
        Ok(entries) => {
            let mut numbered = (file.first()..).zip(entries);
            numbered.all(|(index, line)| audit.tree.leaf(index) == Some(leaf_hash(&line)))
        }
        Err(AuditError::Storage(error)) => return Err(error.into()),
        Err(_) => false,
    };
    if !same {
        audit.fault(Place::File(*file), "an outgrown bundle has other entries than the one in force");
    }
    Ok(())
}

/// Compares every journal with the log, and follows its chain beyond. Answers how many lines are not in the
/// log yet.
fn check_journals(journals: &[(String, Vec<u8>)], audit: &mut Audit) -> u64 {
    let mut unjoined = 0;
    let mut unseen = audit.places.clone();
    for (process, bytes) in journals {
        let places = unseen.remove(process).unwrap_or_default();
        match check_journal(process, bytes, &places, &audit.tree) {
            Ok(more) => unjoined += more,
            Err((seq, problem)) => audit.fault(Place::Journal(process.clone(), seq), problem),
        }
    }
    for (process, places) in unseen {
        let problem = format!("there is no journal, but the log has {} of its entries", places.len());
        audit.fault(Place::Journal(process, 0), problem);
    }
    unjoined
}

/// Checks one journal; answers how many of its lines are not in the log, or the first line that is wrong.
fn check_journal(
    process: &str,
    bytes: &[u8],
    places: &BTreeMap<u64, u64>,
    tree: &Tree,
) -> Result<u64, (u64, String)> {
    let mut chain = Chain::new(process).map_err(|error| (0, error.to_string()))?;
    let (lines, torn) = split_lines(bytes);
    let mut unjoined = 0;
    for (seq, line) in (0..).zip(&lines) {
        parse_line(line).and_then(|entry| chain.accept(&entry)).map_err(|error| (seq, error.to_string()))?;
        match places.get(&seq) {
            Some(index) if tree.leaf(*index) != Some(leaf_hash(line)) => {
                return Err((seq, format!("it differs from log entry {index}")));
            }
            Some(_) => {}
            None => unjoined += 1,
        }
    }
    if let Some((seq, index)) = places.range(chain.next_seq()..).next() {
        return Err((*seq, format!("it is missing or torn, but log entry {index} has it")));
    }
    // A write that was cut short ends inside a line; a whole line with another byte in place of its newline
    // was changed.
    match torn.and_then(<[u8]>::split_last) {
        Some((_, line)) if parse_line(line).is_ok() => {
            Err((chain.next_seq(), "its newline was changed".to_owned()))
        }
        _ => Ok(unjoined),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::journal::tests::lines;
    use crate::log::tests::{key, open};
    use crate::log::{Log, MemoryStorage};

    type Journals = Vec<(String, Vec<u8>)>;

    fn file_of(lines: &[Vec<u8>]) -> Vec<u8> {
        lines.iter().flat_map(|line| line.iter().copied().chain([b'\n'])).collect()
    }

    /// A log of `count` lines of two processes, interleaved, and their journals.
    fn joined(count: usize) -> (MemoryStorage, Journals) {
        let (desk, agent) = (lines("desk-1", count.div_ceil(2)), lines("agent-1", count / 2));
        let mut log: Log<MemoryStorage> = open(MemoryStorage::default()).unwrap();
        let mut mixed: Vec<Vec<u8>> = Vec::new();
        for (number, line) in desk.iter().enumerate() {
            mixed.push(line.clone());
            mixed.extend(agent.get(number).cloned());
        }
        for batch in mixed.chunks(53) {
            log.append(batch).unwrap();
        }
        let journals = vec![("agent-1".to_owned(), file_of(&agent)), ("desk-1".to_owned(), file_of(&desk))];
        (log.into_storage(), journals)
    }

    fn check(storage: &MemoryStorage, journals: &Journals) -> Report {
        verify(storage, &key().verifying_key(), "trader/audit", journals).unwrap()
    }

    /// The place of the first fault.
    fn first(storage: &MemoryStorage, journals: &Journals) -> String {
        let report = check(storage, journals);
        assert!(!report.verified);
        report.faults[0].place.clone()
    }

    /// The index of the entry that a byte of a bundle belongs to.
    fn entry_at(bundle: &[u8], position: usize) -> usize {
        let (mut start, mut entry) = (0, 0);
        loop {
            start += 2 + usize::from(u16::from_be_bytes([bundle[start], bundle[start + 1]]));
            if position < start {
                return entry;
            }
            entry += 1;
        }
    }

    #[test]
    fn a_line_that_its_process_may_not_write_is_a_fault_though_everything_else_fits() {
        let mut chain = crate::journal::Chain::new("agent-1").unwrap();
        let ended = crate::record::Record::RunEnded { market_day: "2099-12-31".into() };
        let line = chain.seal(1, &ended).unwrap().into_bytes();
        let mut log: Log<MemoryStorage> = open(MemoryStorage::default()).unwrap();
        log.append(std::slice::from_ref(&line)).unwrap();
        let journals = vec![("agent-1".to_owned(), file_of(&[line]))];
        assert!(first(&log.into_storage(), &journals).starts_with("log entry 0"));
    }

    #[test]
    fn an_untouched_log_is_verified() {
        for count in [0, 1, 2, 255, 256, 257, 700] {
            let (storage, journals) = joined(count);
            let journals: Journals = journals.into_iter().filter(|(_, bytes)| !bytes.is_empty()).collect();
            let report = check(&storage, &journals);
            assert_eq!(report.faults, []);
            assert!(report.verified);
            assert_eq!((report.entries, report.unjoined, report.leftover), (count as u64, 0, 0));
            assert_eq!(report.root, open(storage).unwrap().root().to_string());
        }
    }

    #[test]
    fn a_change_of_any_byte_of_any_file_is_reported_and_a_changed_entry_is_named() {
        let (storage, journals) = joined(11);
        let bundle = storage.files["tile/entries/000.p/11"].clone();
        for (path, bytes) in &storage.files {
            for position in 0..bytes.len() {
                for mask in [1 << (position % 8), 0xff] {
                    let mut changed = storage.clone();
                    changed.files.get_mut(path).unwrap()[position] ^= mask;
                    let place = first(&changed, &journals);
                    if path.contains("entries") {
                        let entry = entry_at(&bundle, position);
                        let named = format!("log entry {entry}");
                        assert!(
                            place == named || place.starts_with(&format!("{named} (")),
                            "{position}: {place}"
                        );
                    } else {
                        assert_eq!(&place, path);
                    }
                    assert!(open(changed).is_err(), "{path} {position} opens");
                }
            }
        }
    }

    #[test]
    fn a_change_of_any_byte_of_any_journal_is_reported_by_entry() {
        let (storage, journals) = joined(9);
        for number in 0..journals.len() {
            let mut seq = 0;
            for position in 0..journals[number].1.len() {
                for mask in [1 << (position % 8), 0xff] {
                    let mut changed = journals.clone();
                    changed[number].1[position] ^= mask;
                    assert_eq!(
                        first(&storage, &changed),
                        format!("journal {} entry {seq}", journals[number].0)
                    );
                }
                seq += usize::from(journals[number].1[position] == b'\n');
            }
        }
    }

    #[test]
    fn an_entry_that_is_changed_together_with_its_tile_is_still_named() {
        let (storage, journals) = joined(11);
        let mut forged = storage.clone();
        let bundle = forged.files.get_mut("tile/entries/000.p/11").unwrap();
        let position = bundle.windows(10).position(|window| window == b"\"reason 2\"").unwrap() + 8;
        bundle[position] = b'7';
        let entry = entry_at(bundle, position);
        let lines: Vec<Vec<u8>> =
            tiles::decode_bundle(bundle, 11).unwrap().into_iter().map(<[u8]>::to_vec).collect();
        let hashes: Vec<u8> = lines.iter().flat_map(|line| leaf_hash(line).0).collect();
        forged.files.insert("tile/0/000.p/11".to_owned(), hashes);
        let report = check(&forged, &journals);
        // The next entry of the process still has the digest of what stood there.
        assert_eq!(report.faults[0].place, format!("log entry {} (desk-1 seq 3)", entry + 2));
        assert!(report.faults.iter().any(|fault| fault.place == "checkpoint"));
        assert!(report.faults.iter().any(|fault| fault.place == "journal desk-1 entry 2"));
    }

    #[test]
    fn a_removed_or_emptied_file_is_reported() {
        let (storage, journals) = joined(700);
        for path in storage.files.keys() {
            let mut robbed = storage.clone();
            robbed.files.remove(path);
            assert!(!check(&robbed, &journals).verified, "{path}");
            let mut emptied = storage.clone();
            emptied.files.insert(path.clone(), Vec::new());
            assert!(!check(&emptied, &journals).verified, "{path}");
        }
        for number in 0..journals.len() {
            let mut robbed = journals.clone();
            let (process, _) = robbed.remove(number);
            assert_eq!(first(&storage, &robbed), format!("journal {process} entry 0"));
        }
    }

    #[test]
    fn a_file_cut_short_or_lengthened_is_reported() {
        let (storage, journals) = joined(300);
        for (path, bytes) in &storage.files {
            for length in [0, 1, bytes.len() / 2, bytes.len() - 1] {
                let mut cut = storage.clone();
                cut.files.get_mut(path).unwrap().truncate(length);
                assert!(!check(&cut, &journals).verified, "{path} {length}");
            }
            for more in [&b"\n"[..], b"\0", &[0; 32]] {
                let mut longer = storage.clone();
                longer.files.get_mut(path).unwrap().extend(more);
                assert!(!check(&longer, &journals).verified, "{path}");
            }
        }
        let last = journals[1].1.len();
        for length in [0, 1, last / 2, last - 1] {
            let mut cut = journals.clone();
            cut[1].1.truncate(length);
            let lines = cut[1].1.iter().filter(|byte| **byte == b'\n').count();
            assert_eq!(first(&storage, &cut), format!("journal desk-1 entry {lines}"));
        }
    }

    #[test]
    fn swapped_repeated_and_dropped_entries_are_reported() {
        let (storage, journals) = joined(20);
        let path = "tile/entries/000.p/20";
        let bundle = storage.files[path].clone();
        let entries = tiles::decode_bundle(&bundle, 20).unwrap();
        let forge = |entries: &[&[u8]]| {
            let mut forged = storage.clone();
            forged.files.insert(path.to_owned(), tiles::encode_bundle(entries.iter().copied()).unwrap());
            first(&forged, &journals)
        };
        let mut swapped = entries.clone();
        swapped.swap(6, 7);
        assert!(forge(&swapped).starts_with("log entry 6 "));
        let mut repeated = entries.clone();
        repeated[9] = repeated[8];
        assert_eq!(forge(&repeated), "log entry 9");
        let mut dropped = entries.clone();
        dropped.remove(4);
        assert_eq!(forge(&dropped), "log entry 4");
        let text = String::from_utf8(journals[0].1.clone()).unwrap();
        let lines: Vec<&str> = text.split_inclusive('\n').collect();
        for (order, named) in
            [(vec![0, 2, 1, 3], 1), (vec![0, 1, 1, 2], 2), (vec![0, 2, 3], 1), (vec![1, 2, 3], 0)]
        {
            let mut changed = journals.clone();
            changed[0].1 = order.iter().flat_map(|number| lines[*number].bytes()).collect();
            assert_eq!(first(&storage, &changed), format!("journal agent-1 entry {named}"));
        }
    }

    #[test]
    fn lines_that_are_not_joined_yet_and_a_torn_one_are_no_fault_but_counted() {
        let (storage, mut journals) = joined(20);
        journals[1].1 = file_of(&lines("desk-1", 14));
        let report = check(&storage, &journals);
        assert_eq!((report.verified, report.unjoined), (true, 4));
        let torn = journals[1].1.len() - 30;
        journals[1].1.truncate(torn);
        let report = check(&storage, &journals);
        assert_eq!((report.verified, report.unjoined), (true, 3));
    }

    #[test]
    fn an_old_log_under_newer_journals_shows_as_lines_that_are_not_joined() {
        let (old, _) = joined(300);
        let (_, journals) = joined(700);
        assert_eq!(check(&old, &journals).unjoined, 400);
    }

    #[test]
    fn what_a_crash_leaves_behind_is_counted_and_what_is_outgrown_is_checked() {
        let (storage, journals) = joined(300);
        let (longer, _) = joined(420);
        let mut crashed = storage.clone();
        for path in ["tile/entries/001.p/164", "tile/0/001.p/164"] {
            crashed.files.insert(path.to_owned(), longer.files[path].clone());
        }
        let report = check(&crashed, &journals);
        assert_eq!((report.verified, report.leftover), (true, 2));
        assert_eq!(open(crashed).unwrap().into_storage(), storage);
        let mut kept = storage.clone();
        let (shorter, _) = joined(280);
        for path in ["tile/entries/001.p/24", "tile/0/001.p/24"] {
            kept.files.insert(path.to_owned(), shorter.files[path].clone());
            let report = check(&kept, &journals);
            assert_eq!((report.verified, report.leftover), (true, 0));
            kept.files.get_mut(path).unwrap()[40] ^= 1;
            assert_eq!(first(&kept, &journals), path);
            kept.files.remove(path);
        }
    }

    #[test]
    fn a_checkpoint_of_another_key_or_of_an_older_size_is_reported() {
        let (storage, journals) = joined(300);
        let stranger = keys::SigningKey::from_seed(&[9; 32]).verifying_key();
        let report = verify(&storage, &stranger, "trader/audit", &journals).unwrap();
        assert_eq!(report.faults[0].place, "checkpoint");
        let (older, _) = joined(280);
        let mut mixed = storage.clone();
        mixed.files.insert("checkpoint".to_owned(), older.files["checkpoint"].clone());
        assert!(!check(&mixed, &journals).verified);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(150))]

        #[test]
        fn a_random_change_in_a_larger_log_is_reported(
            file in any::<prop::sample::Index>(), position in any::<prop::sample::Index>(), mask in 1u8..,
        ) {
            thread_local!(static LARGE: (MemoryStorage, Journals) = joined(900));
            let (mut storage, mut journals) = LARGE.with(Clone::clone);
            let number = file.index(storage.files.len() + journals.len());
            let bytes = match number.checked_sub(journals.len()) {
                None => &mut journals[number].1,
                Some(number) => storage.files.values_mut().nth(number).unwrap(),
            };
            let position = position.index(bytes.len());
            bytes[position] ^= mask;
            prop_assert!(!check(&storage, &journals).verified);
        }
    }
}
