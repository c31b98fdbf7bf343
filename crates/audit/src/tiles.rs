//! The files of a log in the C2SP tlog-tiles layout: their paths, their contents, and which of them a given
//! size demands.
//!
//! Owns names and encodings only: hash tiles (`tile/<level>/<N>`, up to 256 hashes of 32 bytes) and entry
//! bundles (`tile/entries/<N>`, up to 256 entries with a 16-bit length before each). The last file of a level
//! that is not full is partial and carries its width in its path (`….p/<W>`), so growing a log never
//! overwrites a file that an earlier checkpoint needs.
//!
//! Source: C2SP tlog-tiles v0.1.0.

use keys::Digest;

use crate::error::AuditError;
use crate::merkle::Tree;

/// Entries or hashes in a full file.
pub const WIDTH_MAX: u64 = 256;

/// What a file of the log holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Entries.
    Entries,
    /// Hashes of the complete subtrees of 256^level leaves.
    Hashes {
        /// The level, from 0.
        level: u32,
    },
}

/// One file of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TileFile {
    /// What it holds.
    pub kind: Kind,
    /// Its number on its level, from 0.
    pub index: u64,
    /// How many hashes or entries it holds, from 1 to 256.
    pub width: u64,
}

impl TileFile {
    /// The path inside the log.
    #[must_use]
    pub fn path(&self) -> String {
        let mut groups = vec![format!("{:03}", self.index % 1000)];
        let mut rest = self.index / 1000;
        while rest > 0 {
            groups.push(format!("x{:03}", rest % 1000));
            rest /= 1000;
        }
        groups.reverse();
        let number = groups.join("/");
        let kind = match self.kind {
            Kind::Entries => "entries".to_owned(),
            Kind::Hashes { level } => level.to_string(),
        };
        let partial = if self.width < WIDTH_MAX { format!(".p/{}", self.width) } else { String::new() };
        format!("tile/{kind}/{number}{partial}")
    }

    /// Parses a path; `None` for anything but the one spelling.
    #[must_use]
    pub fn parse(path: &str) -> Option<Self> {
        let (kind, rest) = path.strip_prefix("tile/")?.split_once('/')?;
        let kind = match kind {
            "entries" => Kind::Entries,
            level => Kind::Hashes { level: level.parse().ok().filter(|level| *level < 8)? },
        };
        let (number, width) = match rest.split_once(".p/") {
            Some((number, width)) => {
                (number, width.parse().ok().filter(|width| (1..WIDTH_MAX).contains(width))?)
            }
            None => (rest, WIDTH_MAX),
        };
        let mut index = 0u64;
        for group in number.split('/') {
            let digits: u64 = group.strip_prefix('x').unwrap_or(group).parse().ok()?;
            index = index.checked_mul(1000)?.checked_add(digits)?;
        }
        let file = Self { kind, index, width };
        (file.path() == path).then_some(file)
    }

    /// Position of its first hash or entry on its level.
    #[must_use]
    pub fn first(&self) -> u64 {
        self.index.saturating_mul(WIDTH_MAX)
    }

    /// The bytes of a hash tile as the tree has them; `None` for a bundle, or when the tree is too small.
    #[must_use]
    pub fn hashes(&self, tree: &Tree) -> Option<Vec<u8>> {
        let Kind::Hashes { level } = self.kind else { return None };
        let mut bytes = Vec::with_capacity(8192);
        for index in self.first()..self.first() + self.width {
            bytes.extend(tree.node(level * 8, index)?.0);
        }
        Some(bytes)
    }
}

/// Every file that a log of `size` entries consists of, bundles first, then hashes level by level.
#[must_use]
pub fn files(size: u64) -> Vec<TileFile> {
    grown(0, size)
}

/// The files that a log of `new` entries has and one of `old` entries does not: what growing must write.
#[must_use]
pub fn grown(old: u64, new: u64) -> Vec<TileFile> {
    let mut all = Vec::new();
    let mut add = |kind, old: u64, new: u64| {
        if new <= old {
            return;
        }
        for index in old / WIDTH_MAX..new.div_ceil(WIDTH_MAX) {
            all.push(TileFile { kind, index, width: (new - index * WIDTH_MAX).min(WIDTH_MAX) });
        }
    };
    add(Kind::Entries, old, new);
    for level in (0..8).take_while(|level| new >> (level * 8) > 0) {
        add(Kind::Hashes { level }, old >> (level * 8), new >> (level * 8));
    }
    all
}

/// The partial files of a log of `old` entries that one of `new` entries no longer needs.
#[must_use]
pub fn superseded(old: u64, new: u64) -> Vec<TileFile> {
    let partial = |kind, old: u64, new: u64| {
        let width = old % WIDTH_MAX;
        (width > 0 && new > old).then_some(TileFile { kind, index: old / WIDTH_MAX, width })
    };
    let levels =
        (0..8).filter_map(|level| partial(Kind::Hashes { level }, old >> (level * 8), new >> (level * 8)));
    partial(Kind::Entries, old, new).into_iter().chain(levels).collect()
}

/// Encodes entries as a bundle.
///
/// # Errors
/// [`AuditError::LineTooLong`] when an entry has more than 65,535 bytes.
pub fn encode_bundle<'a>(entries: impl IntoIterator<Item = &'a [u8]>) -> Result<Vec<u8>, AuditError> {
    let mut bytes = Vec::new();
    for entry in entries {
        let length =
            u16::try_from(entry.len()).map_err(|_| AuditError::LineTooLong { bytes: entry.len() })?;
        bytes.extend(length.to_be_bytes());
        bytes.extend(entry);
    }
    Ok(bytes)
}

/// Decodes a bundle of exactly `width` entries; `None` when the bytes hold fewer or more.
#[must_use]
pub fn decode_bundle(mut bytes: &[u8], width: u64) -> Option<Vec<&[u8]>> {
    let mut entries = Vec::new();
    for _ in 0..width {
        let (length, rest) = bytes.split_first_chunk::<2>()?;
        let (entry, rest) = rest.split_at_checked(usize::from(u16::from_be_bytes(*length)))?;
        entries.push(entry);
        bytes = rest;
    }
    bytes.is_empty().then_some(entries)
}

/// Decodes a hash tile of exactly `width` hashes; `None` when the bytes hold fewer or more.
#[must_use]
pub fn decode_hashes(bytes: &[u8], width: u64) -> Option<Vec<Digest>> {
    let (hashes, rest) = bytes.as_chunks::<32>();
    (rest.is_empty() && hashes.len() as u64 == width)
        .then(|| hashes.iter().map(|hash| Digest(*hash)).collect())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn paths_are_those_of_the_specification() {
        let path = |kind, index, width| TileFile { kind, index, width }.path();
        assert_eq!(path(Kind::Hashes { level: 0 }, 1_234_067, 256), "tile/0/x001/x234/067");
        assert_eq!(path(Kind::Hashes { level: 1 }, 0, 256), "tile/1/000");
        assert_eq!(path(Kind::Hashes { level: 0 }, 273, 112), "tile/0/273.p/112");
        assert_eq!(path(Kind::Entries, 5, 256), "tile/entries/005");
        assert_eq!(path(Kind::Entries, 1000, 3), "tile/entries/x001/000.p/3");
    }

    #[test]
    fn only_the_one_spelling_of_a_path_is_read() {
        let wrong = [
            "tile/0/0",
            "tile/0/0000",
            "tile/00/000",
            "tile/0/000.p/0",
            "tile/0/000.p/256",
            "tile/0/000.p/01",
            "tile/8/000",
            "tile/entries/x000/001",
            "tile/entries/001/000",
            "tile/x/000",
            "tile/0/../000",
            "tile/0/000/",
            "checkpoint",
            "tile/0/000.p/3.tmp",
            "tile/0/x999/x999/x999/x999/x999/x999/x999/999",
            "tile/0/-01",
            "tile/0/+01",
        ];
        for path in wrong {
            assert_eq!(TileFile::parse(path), None, "{path}");
        }
    }

    #[test]
    fn the_files_of_a_size_are_those_of_the_specification() {
        // C2SP tlog-tiles' own example: 70,000 entries are 273 full level-0 tiles, one of 112, one full
        // level-1 tile, ....
        let paths: Vec<String> = files(70_000).iter().map(TileFile::path).collect();
        assert!(paths.contains(&"tile/0/272".to_owned()) && paths.contains(&"tile/0/273.p/112".to_owned()));
        assert!(paths.contains(&"tile/1/000".to_owned()) && paths.contains(&"tile/1/001.p/17".to_owned()));
        assert!(paths.contains(&"tile/2/000.p/1".to_owned()));
        assert_eq!(paths.len(), 274 + 274 + 2 + 1);
        assert!(files(0).is_empty());
    }

    proptest! {
        #[test]
        fn growing_is_what_was_without_what_is_superseded_and_with_what_is_new(
            old in 0u64..140_000, more in 0u64..70_000,
        ) {
            let new = old + more;
            let mut grew: BTreeSet<TileFile> = files(old).into_iter().collect();
            for file in superseded(old, new) {
                prop_assert!(grew.remove(&file), "{}", file.path());
            }
            for file in grown(old, new) {
                prop_assert!(grew.insert(file), "{} is written twice", file.path());
            }
            prop_assert_eq!(grew, files(new).into_iter().collect::<BTreeSet<_>>());
        }

        #[test]
        fn a_path_and_its_file_are_the_same_thing(
            level in 0u32..8, index in 0u64..10_000_000, width in 1u64..=256,
        ) {
            for kind in [Kind::Entries, Kind::Hashes { level }] {
                let file = TileFile { kind, index, width };
                prop_assert_eq!(TileFile::parse(&file.path()), Some(file));
            }
        }

        #[test]
        fn a_bundle_comes_back_and_only_at_its_width(
            entries in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..40), 0..20),
        ) {
            let bytes = encode_bundle(entries.iter().map(Vec::as_slice)).unwrap();
            let width = entries.len() as u64;
            let slices: Vec<&[u8]> = entries.iter().map(Vec::as_slice).collect();
            prop_assert_eq!(decode_bundle(&bytes, width).unwrap(), slices);
            prop_assert!(decode_bundle(&bytes, width + 1).is_none());
            prop_assert!(width == 0 || decode_bundle(&bytes, width - 1).is_none());
        }
    }

    #[test]
    fn an_entry_of_more_than_16_bits_is_refused() {
        assert!(encode_bundle([vec![0; 65_535].as_slice()]).is_ok());
        assert!(matches!(encode_bundle([vec![0; 65_536].as_slice()]), Err(AuditError::LineTooLong { .. })));
    }
}
