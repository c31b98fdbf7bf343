//! Market-data sources.
//!
//! Owns: reading a source's file, plain or compressed, once, and handing out its lines by market day, so that
//! whoever collects at day `d` never sees a line of a later day. It judges no row: what a line says is the
//! import's matter, inside the cell of a module.
//!
//! INVARIANT: a slice holds the header and lines of the days asked for, nothing else, in the order of the
//! file. A line whose date can't be read goes with the line before it, so that a bad row reaches the import
//! and is named there.

use std::fs::File;
use std::io::Read;
use std::ops::Range;
use std::path::{Path, PathBuf};

use market::Day;

/// The largest source, in bytes after decompression.
pub const SOURCE_BYTES_MAX: u64 = 256 * 1024 * 1024;
/// The longest name of a source, in characters.
const NAME_LENGTH_MAX: usize = 64;

/// Why a source can't be opened.
#[derive(Debug, thiserror::Error)]
pub enum FeedError {
    /// The file's name doesn't end in `.csv` or `.csv.gz`, or what is before that is no plain name.
    #[error(
        "{path}: a source is named NAME.csv or NAME.csv.gz, NAME of a-z, A-Z, 0-9, '-' and '_', 64 at most"
    )]
    Name {
        /// The file.
        path: PathBuf,
    },
    /// The file can't be read or decompressed.
    #[error("{path}: cannot be read")]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// The content is larger than [`SOURCE_BYTES_MAX`].
    #[error("{path}: larger than {SOURCE_BYTES_MAX} bytes")]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
    /// The first line names no column `Date`.
    #[error("{path}: the first line names no column Date")]
    Header {
        /// The file.
        path: PathBuf,
    },
}

/// A source of bars: one table in one file, read once.
#[derive(Debug)]
pub struct Source {
    name: String,
    text: String,
    header: Range<usize>,
    /// Where each line is and which day it goes with, by day; within a day in the order of the file.
    lines: Vec<(Day, Range<usize>)>,
    days: Vec<Day>,
}

impl Source {
    /// Reads a source. Bytes that are no UTF-8 become replacement characters, which cost their own row only.
    ///
    /// # Errors
    /// [`FeedError`] when the name, the size or the header is wrong, or the file can't be read.
    pub fn open(path: &Path) -> Result<Self, FeedError> {
        Self::read(path, || File::open(path))
    }

    /// As [`Source::open`], of a file that is at hand as bytes; the path counts for its name only.
    ///
    /// # Errors
    /// As [`Source::open`].
    pub fn from_bytes(path: &Path, bytes: &[u8]) -> Result<Self, FeedError> {
        Self::read(path, || Ok(bytes))
    }

    fn read<R: Read>(path: &Path, open: impl FnOnce() -> std::io::Result<R>) -> Result<Self, FeedError> {
        let file_name = path.file_name().and_then(|name| name.to_str()).unwrap_or("");
        let (name, compressed) = match (file_name.strip_suffix(".csv.gz"), file_name.strip_suffix(".csv")) {
            (Some(name), _) => (name, true),
            (None, Some(name)) => (name, false),
            (None, None) => return Err(FeedError::Name { path: path.to_owned() }),
        };
        let plain = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'));
        if name.is_empty() || name.len() > NAME_LENGTH_MAX || !plain {
            return Err(FeedError::Name { path: path.to_owned() });
        }
        let read_error = |source| FeedError::Read { path: path.to_owned(), source };
        let file = open().map_err(read_error)?;
        let mut bytes = Vec::new();
        // One byte more than allowed tells a file that is too large from one that just fits.
        let read = if compressed {
            flate2::read::MultiGzDecoder::new(file).take(SOURCE_BYTES_MAX + 1).read_to_end(&mut bytes)
        } else {
            file.take(SOURCE_BYTES_MAX + 1).read_to_end(&mut bytes)
        };
        read.map_err(read_error)?;
        if bytes.len() as u64 > SOURCE_BYTES_MAX {
            return Err(FeedError::TooLarge { path: path.to_owned() });
        }
        let text = match String::from_utf8(bytes) {
            Ok(text) => text,
            Err(error) => String::from_utf8_lossy(error.as_bytes()).into_owned(),
        };
        Self::of_text(name, text).ok_or_else(|| FeedError::Header { path: path.to_owned() })
    }

    fn of_text(name: &str, text: String) -> Option<Self> {
        let mut ranges = Vec::new();
        let mut start = 0;
        for line in text.split_inclusive('\n') {
            ranges.push(start..start + line.len());
            start += line.len();
        }
        let mut ranges = ranges.into_iter();
        let header = ranges.next()?;
        let date_column = text
            .get(header.clone())?
            .trim_start_matches('\u{feff}')
            .split(',')
            .position(|column| field(column).eq_ignore_ascii_case("date"))?;
        let mut lines: Vec<(Option<Day>, Range<usize>)> = Vec::new();
        let mut before = None;
        for range in ranges {
            let own = text
                .get(range.clone())?
                .split(',')
                .nth(date_column)
                .and_then(|text| field(text).parse().ok());
            before = own.or(before);
            lines.push((before, range));
        }
        // Lines before the first readable date go with that date; a table without any date is all "first
        // day".
        let first = lines.iter().find_map(|(day, _)| *day).or_else(|| Day::new(1900, 1, 1).ok())?;
        let mut lines: Vec<(Day, Range<usize>)> =
            lines.into_iter().map(|(day, range)| (day.unwrap_or(first), range)).collect();
        lines.sort_by_key(|(day, _)| *day);
        let mut days: Vec<Day> = lines.iter().map(|(day, _)| *day).collect();
        days.dedup();
        Some(Self { name: name.to_owned(), text, header, lines, days })
    }

    /// The source's name: its file's name without the ending.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Every day that has a line, each once, in order.
    #[must_use]
    pub fn days(&self) -> &[Day] {
        &self.days
    }

    /// The header and the lines of the days after `after` (from the beginning if `None`) up to and including
    /// `through`, in the order of the file. Each line ends with a line feed.
    #[must_use]
    pub fn slice(&self, after: Option<Day>, through: Day) -> String {
        let from = after.map_or(0, |after| self.lines.partition_point(|(day, _)| *day <= after));
        let to = self.lines.partition_point(|(day, _)| *day <= through);
        let mut picked: Vec<&Range<usize>> =
            self.lines.get(from..to).unwrap_or(&[]).iter().map(|(_, range)| range).collect();
        picked.sort_by_key(|range| range.start);
        let mut slice = String::new();
        for range in std::iter::once(&self.header).chain(picked) {
            let line = self.text.get(range.clone()).unwrap_or("");
            slice.push_str(line);
            if !line.ends_with('\n') {
                slice.push('\n');
            }
        }
        slice
    }
}

/// A field without the spaces and quotes around it.
fn field(text: &str) -> &str {
    text.trim().trim_matches('"').trim()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::io::Write;

    use super::*;

    fn day(text: &str) -> Day {
        text.parse().unwrap()
    }

    fn written(name: &str, bytes: &[u8]) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        (dir, path)
    }

    const TABLE: &str =
        "Date,A\n2001-01-01,1\n2001-01-02,2\nbroken,3\n2001-01-03,4\n2001-01-02,5\n2001-01-04,6";

    #[test]
    fn a_slice_holds_no_line_of_a_later_day() {
        let (_dir, path) = written("t.csv", TABLE.as_bytes());
        let source = Source::open(&path).unwrap();
        assert_eq!(source.name(), "t");
        assert_eq!(source.days().len(), 4);
        assert_eq!(source.slice(None, day("2001-01-01")), "Date,A\n2001-01-01,1\n");
        assert_eq!(
            source.slice(Some(day("2001-01-01")), day("2001-01-02")),
            "Date,A\n2001-01-02,2\nbroken,3\n2001-01-02,5\n"
        );
        assert_eq!(source.slice(Some(day("2001-01-03")), day("2001-12-31")), "Date,A\n2001-01-04,6\n");
        assert_eq!(source.slice(Some(day("2001-01-04")), day("2001-01-01")), "Date,A\n");
    }

    #[test]
    fn slices_one_after_the_other_give_each_line_once() {
        let (_dir, path) = written("t.csv", TABLE.as_bytes());
        let source = Source::open(&path).unwrap();
        let mut after = None;
        let mut seen: Vec<String> = Vec::new();
        for through in source.days() {
            seen.extend(source.slice(after, *through).lines().skip(1).map(str::to_owned));
            after = Some(*through);
        }
        seen.sort();
        let mut all: Vec<&str> = TABLE.lines().skip(1).collect();
        all.sort_unstable();
        assert_eq!(seen, all);
    }

    #[test]
    fn a_compressed_table_reads_like_a_plain_one() {
        let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        packed.write_all(TABLE.as_bytes()).unwrap();
        let packed = packed.finish().unwrap();
        let (_dir, path) = written("t.csv.gz", &packed);
        assert_eq!(Source::open(&path).unwrap().slice(None, day("2001-01-01")), "Date,A\n2001-01-01,1\n");
        let carried = Source::from_bytes(Path::new("t.csv.gz"), &packed).unwrap();
        assert_eq!((carried.name(), carried.days().len()), ("t", 4));
        let (_dir, path) = written("t.csv.gz", &packed[..packed.len() / 2]);
        assert!(matches!(Source::open(&path), Err(FeedError::Read { .. })));
    }

    #[test]
    fn a_bomb_of_zeros_is_refused_before_it_fills_the_memory() {
        let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        let zeros = vec![0; 1024 * 1024];
        for _ in 0..=SOURCE_BYTES_MAX / (1024 * 1024) {
            packed.write_all(&zeros).unwrap();
        }
        let (_dir, path) = written("bomb.csv.gz", &packed.finish().unwrap());
        assert!(matches!(Source::open(&path), Err(FeedError::TooLarge { .. })));
    }

    #[test]
    fn names_and_headers_that_are_none_are_refused() {
        for name in ["t.txt", ".csv", "a b.csv", "csv"] {
            let (_dir, path) = written(name, TABLE.as_bytes());
            assert!(matches!(Source::open(&path), Err(FeedError::Name { .. })), "{name}");
        }
        for content in ["", "A,B\n2001-01-01,1\n"] {
            let (_dir, path) = written("t.csv", content.as_bytes());
            assert!(matches!(Source::open(&path), Err(FeedError::Header { .. })), "{content}");
        }
        assert!(matches!(Source::open(Path::new("no/such.csv")), Err(FeedError::Read { .. })));
    }

    #[test]
    fn bytes_that_are_no_text_cost_their_own_row_only() {
        let (_dir, path) = written("t.csv", b"Date,A\n2001-01-01,1\n\xff\xfe,2\n2001-01-02,3\n");
        let slice = Source::open(&path).unwrap().slice(None, day("2001-01-02"));
        let imported = market::import::read(&slice).unwrap();
        assert_eq!((imported.bars, imported.refused), (2, 1));
    }

    /// The sample of this repository: what the import says of it, and that the known splits are in it.
    #[test]
    fn the_sample_is_imported_with_nothing_refused() {
        let sample = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../sample");
        let import = |name: &str| {
            let source = Source::open(&sample.join(name)).unwrap();
            assert!(source.days().last() <= Some(&day("2019-12-31")));
            market::import::read(&source.slice(None, day("2019-12-31"))).unwrap()
        };
        let large = import("large20.csv.gz");
        assert_eq!((large.series.len(), large.bars, large.refused), (20, 20 * 7_559, 0));
        let tech = import("tech5.csv.gz");
        assert_eq!((tech.series.len(), tech.bars, tech.refused), (5, 12_154, 0));
        let splits: Vec<String> = tech
            .series
            .iter()
            .flat_map(|(symbol, one)| {
                one.splits.iter().map(move |split| format!("{symbol} {} {split}", split.day()))
            })
            .collect();
        assert_eq!(splits, ["AAPL 2000-06-21 2:1", "AAPL 2005-02-28 2:1", "MSFT 2003-02-18 2:1"]);
        let apple = &tech.series[&"AAPL".parse().unwrap()];
        assert!(apple.bars.iter().any(|bar| bar.day == day("2000-09-29")), "a fall by half is no error");
        // As the system reads it: slice by slice, each knowing the last closes or nothing.
        for (name, bars) in [("large20.csv.gz", large.bars), ("tech5.csv.gz", tech.bars)] {
            let source = Source::open(&sample.join(name)).unwrap();
            for tell in [true, false] {
                let (mut after, mut known, mut taken) = (None, BTreeMap::new(), 0);
                for days in source.days().chunks(21) {
                    let through = days.last().copied().unwrap();
                    let slice = market::import::read_after(&source.slice(after, through), &known).unwrap();
                    assert_eq!(slice.refused, 0, "{name} through {through}: {:?}", slice.findings);
                    taken += slice.bars;
                    let last = slice
                        .series
                        .into_iter()
                        .filter_map(|(symbol, one)| Some((symbol, *one.bars.last()?)));
                    known.extend(last.map(|(symbol, bar)| (symbol, (bar.day, bar.close))).filter(|_| tell));
                    after = Some(through);
                }
                assert_eq!(taken, bars, "{name}, last closes told: {tell}");
            }
        }
        for finding in large.findings.iter().chain(&tech.findings) {
            println!("{finding:?}");
        }
    }
}
