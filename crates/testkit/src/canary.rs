//! Canaries: secrets that are looked for where they must not be, in files and in the memory of running processes.
//!
//! A secret is looked for in every spelling in which it could stand: as it is, backwards (as big numbers lie in memory), in
//! hexadecimal, in base64 of both alphabets and of any alignment, as a list of numbers. Memory is read as whoever has root
//! reads it, from `/proc/PID/mem`, while the process goes on.
//!
//! INVARIANT: a scanner that finds nothing has been shown, in the same test, to find what is there.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE};
use nix::unistd::Pid;
use sha2::{Digest as _, Sha512};

/// Shortest spelling that is looked for, in bytes: a shorter one stands anywhere by chance.
const LEAST: usize = 16;
/// How much is looked at in one go, in bytes.
const PIECE: usize = 1 << 20;
/// What tells spellings apart at first sight, in bytes.
const HEAD: usize = 8;

/// A secret, and how it may be spelled.
#[derive(Clone)]
pub struct Canary {
    /// Whose it is: a process's name, or a word for who is no process.
    pub owner: String,
    /// Which of its secrets.
    pub what: String,
    spellings: Vec<(&'static str, Vec<u8>)>,
}

impl Canary {
    /// A secret of some bytes.
    #[must_use]
    pub fn bytes(owner: &str, what: &str, raw: &[u8]) -> Self {
        let mut canary = Self { owner: owner.to_owned(), what: what.to_owned(), spellings: Vec::new() };
        canary.spell("as it is", raw);
        canary
    }

    /// A secret text, such as a passphrase.
    #[must_use]
    pub fn text(owner: &str, what: &str, text: &str) -> Self {
        Self::bytes(owner, what, text.as_bytes())
    }

    /// An Ed25519 key by its seed: the scalar that the seed stands for signs as well.
    #[must_use]
    pub fn ed25519(owner: &str, what: &str, seed: &[u8; 32]) -> Self {
        let mut canary = Self::bytes(owner, what, seed);
        let expanded = Sha512::digest(seed);
        let mut scalar = expanded[..32].to_vec();
        canary.spell("half of the expanded seed", &scalar);
        scalar[0] &= 0b1111_1000;
        scalar[31] = (scalar[31] & 0b0111_1111) | 0b0100_0000;
        canary.spell("the scalar of the seed", &scalar);
        canary
    }

    /// A P-256 key by its PKCS #8.
    ///
    /// # Panics
    /// When it is none.
    #[must_use]
    pub fn p256(owner: &str, what: &str, pkcs8: &[u8]) -> Self {
        // ECPrivateKey: version 1, then 32 bytes.
        let mark = [2, 1, 1, 4, 32];
        let at = pkcs8.windows(mark.len()).position(|window| window == mark).expect("a P-256 key");
        Self::bytes(owner, what, &pkcs8[at + mark.len()..at + mark.len() + 32])
    }

    fn spell(&mut self, how: &'static str, raw: &[u8]) {
        let hex = keys::to_hex(raw);
        let numbers: Vec<String> = raw.iter().map(u8::to_string).collect();
        let mut spelled = vec![
            (how, raw.to_vec()),
            ("backwards", raw.iter().rev().copied().collect()),
            ("in upper-case hexadecimal", hex.to_uppercase().into_bytes()),
            ("in hexadecimal", hex.into_bytes()),
            ("as numbers", numbers.join(",").into_bytes()),
            ("as printed numbers", numbers.join(", ").into_bytes()),
        ];
        for alignment in 0..3 {
            // Letters that no neighbour has a part in.
            let shifted = [&vec![0; alignment][..], raw].concat();
            let (from, to) = ((alignment * 8).div_ceil(6), shifted.len() * 8 / 6);
            for text in [BASE64_STANDARD.encode(&shifted), BASE64_URL_SAFE.encode(&shifted)] {
                spelled.push(("in base64", text.as_bytes()[from..to].to_vec()));
            }
        }
        self.spellings.extend(spelled.into_iter().filter(|(_, spelling)| spelling.len() >= LEAST));
    }
}

impl std::fmt::Display for Canary {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} of {}", self.what, self.owner)
    }
}

/// The private keys that an identity's file holds.
///
/// # Panics
/// When there is no identity.
#[must_use]
pub fn identity_canaries(owner: &str, directory: &Path) -> Vec<Canary> {
    let text = std::fs::read(directory.join("identity.json")).unwrap();
    let stored: serde_json::Value = serde_json::from_slice(&text).unwrap();
    let field = |name: &str| stored["keys"][name].as_str().unwrap().to_owned();
    let key = |name: &str| keys::from_hex::<32>(&field(name)).unwrap();
    let mut canaries = vec![
        Canary::p256(owner, "tls", &BASE64_STANDARD.decode(field("tls")).unwrap()),
        Canary::ed25519(owner, "signing", &key("signing")),
    ];
    for channel in ["control", "data", "alerts"] {
        canaries.push(Canary::bytes(owner, channel, &key(channel)));
    }
    canaries
}

/// Where a secret was found.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Hit {
    /// Number of the canary, in the order in which the scanner was given them.
    pub canary: usize,
    /// How it was spelled.
    pub spelled: &'static str,
    /// The part of the memory, or nothing for bytes that have no parts.
    pub place: String,
}

/// Looks for many secrets at once.
pub struct Scanner {
    canaries: Vec<Canary>,
    heads: HashMap<[u8; HEAD], Vec<(usize, usize)>>,
    /// Whether any spelling begins with these two bytes.
    begins: Vec<bool>,
    longest: usize,
}

impl Scanner {
    /// A scanner for these secrets.
    #[must_use]
    pub fn new(canaries: Vec<Canary>) -> Self {
        let mut scanner =
            Self { canaries: Vec::new(), heads: HashMap::new(), begins: vec![false; 1 << 16], longest: 0 };
        for (number, canary) in canaries.iter().enumerate() {
            for (which, (_, spelling)) in canary.spellings.iter().enumerate() {
                let head: [u8; HEAD] = spelling[..HEAD].try_into().unwrap();
                scanner.heads.entry(head).or_default().push((number, which));
                scanner.begins[usize::from(u16::from_le_bytes([head[0], head[1]]))] = true;
                scanner.longest = scanner.longest.max(spelling.len());
            }
        }
        scanner.canaries = canaries;
        scanner
    }

    /// The secrets.
    #[must_use]
    pub fn canaries(&self) -> &[Canary] {
        &self.canaries
    }

    fn look(&self, bytes: &[u8], place: &str, hits: &mut BTreeSet<Hit>) {
        for at in 0..bytes.len().saturating_sub(LEAST - 1) {
            if !self.begins[usize::from(u16::from_le_bytes([bytes[at], bytes[at + 1]]))] {
                continue;
            }
            let head: [u8; HEAD] = bytes[at..at + HEAD].try_into().unwrap();
            for (canary, which) in self.heads.get(&head).into_iter().flatten() {
                let (spelled, spelling) = &self.canaries[*canary].spellings[*which];
                if bytes[at..].starts_with(spelling) {
                    hits.insert(Hit { canary: *canary, spelled, place: place.to_owned() });
                }
            }
        }
    }

    /// What stands in some bytes.
    #[must_use]
    pub fn in_bytes(&self, bytes: &[u8]) -> BTreeSet<Hit> {
        let mut hits = BTreeSet::new();
        self.look(bytes, "", &mut hits);
        hits
    }

    /// What stands in each file below a directory, its name included. Files that go away meanwhile are passed over.
    ///
    /// # Panics
    /// When a file that is there cannot be read.
    #[must_use]
    pub fn below(&self, directory: &Path) -> BTreeMap<PathBuf, BTreeSet<Hit>> {
        let mut found = BTreeMap::new();
        let Ok(entries) = std::fs::read_dir(directory) else { return found };
        for entry in entries.flatten() {
            let (path, Ok(kind)) = (entry.path(), entry.file_type()) else { continue };
            if kind.is_dir() {
                found.append(&mut self.below(&path));
            }
            let mut bytes = path.as_os_str().as_encoded_bytes().to_vec();
            if kind.is_file() {
                match File::open(&path).and_then(|mut file| file.read_to_end(&mut bytes)) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => {
                        panic!("{}: {error}", path.display())
                    }
                    _ => {}
                }
            }
            found.insert(path, self.in_bytes(&bytes));
        }
        found
    }

    /// What stands in the memory of a process: in all of it that can be read, but for the unchanged parts of files.
    ///
    /// # Errors
    /// When the process is gone, or this one may not look into it.
    pub fn in_memory(&self, pid: Pid) -> io::Result<BTreeSet<Hit>> {
        let maps = std::fs::read_to_string(format!("/proc/{pid}/maps"))?;
        let memory = File::open(format!("/proc/{pid}/mem"))?;
        let mut hits = BTreeSet::new();
        let mut seen = 0;
        for map in maps.lines() {
            let words: Vec<&str> = map.split_whitespace().collect();
            let (range, rights) = (words[0], words[1]);
            let name = words.get(5).copied().unwrap_or("without a name");
            let of_a_file = words[4] != "0" && !rights.contains('w');
            if !rights.starts_with('r') || of_a_file || name.starts_with("[v") {
                continue;
            }
            let (from, to) = range.split_once('-').unwrap();
            let [from, to] = [from, to].map(|number| u64::from_str_radix(number, 16).unwrap());
            seen += self.in_range(&memory, from..to, &format!("{name} {range}"), &mut hits);
        }
        if seen == 0 { Err(io::Error::other("none of its memory can be read")) } else { Ok(hits) }
    }

    /// Bytes that were looked at. A part that is unmapped meanwhile ends the look at this range.
    fn in_range(
        &self,
        memory: &File,
        range: std::ops::Range<u64>,
        place: &str,
        hits: &mut BTreeSet<Hit>,
    ) -> usize {
        let mut piece = vec![0; PIECE + self.longest];
        let (mut at, mut seen) = (range.start, 0);
        while at < range.end {
            let left = usize::try_from(range.end - at).unwrap().min(piece.len());
            let Ok(read) = memory.read_at(&mut piece[..left], at) else { return seen };
            if read == 0 {
                return seen;
            }
            self.look(&piece[..read], place, hits);
            seen += read;
            // The end again, with what follows it: a secret may lie across.
            let again = if at + (read as u64) < range.end { self.longest.min(read - 1) } else { 0 };
            at += (read - again) as u64;
        }
        seen
    }
}

/// Every process below one, itself included.
#[must_use]
pub fn family(of: Pid) -> Vec<Pid> {
    let mut all = vec![of];
    let Ok(threads) = std::fs::read_dir(format!("/proc/{of}/task")) else { return all };
    for thread in threads.flatten() {
        let children = std::fs::read_to_string(thread.path().join("children")).unwrap_or_default();
        for child in children.split_whitespace().filter_map(|child| child.parse().ok()) {
            all.append(&mut family(Pid::from_raw(child)));
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_found_in_every_spelling_and_nothing_else_is() {
        let secret: Vec<u8> = (0..32).map(|number| number * 7 + 3).collect();
        let scanner = Scanner::new(vec![Canary::bytes("me", "key", &secret)]);
        let found = |bytes: &[u8]| !scanner.in_bytes(bytes).is_empty();
        let pad = |bytes: &[u8]| [b"before ", bytes, b" after"].concat();
        for front in 0..4_usize {
            let wrapped = [&vec![9; front][..], &secret, b"xyz"].concat();
            for text in [BASE64_STANDARD.encode(&wrapped), BASE64_URL_SAFE.encode(&wrapped)] {
                assert!(found(text.as_bytes()), "{front} bytes in front");
            }
        }
        assert!(found(&pad(&secret)));
        assert!(found(&pad(keys::to_hex(&secret).as_bytes())));
        assert!(found(format!("{secret:?}").as_bytes()));
        let mut other = secret.clone();
        other[31] ^= 1;
        assert!(!found(&pad(&other)) && !found(&pad(keys::to_hex(&other).as_bytes())));
        assert!(!found(b"") && !found(&secret[..31]));
    }
}
