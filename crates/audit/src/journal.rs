//! One process's journal: a file of lines, each chained to the one before it by SHA-256.
//!
//! Owns the line format `{"process":…,"seq":…,"at_ms":…,"prev":…,"record":…}`, one JSON object per line, and
//! the chain's rule: `seq` counts from 0 without gaps, `prev` is the digest of the previous line's bytes (64
//! zeros before the first). It knows no file and no clock: the owner of the file writes what [`Chain::seal`]
//! returns plus a newline, and hands the time in.
//!
//! INVARIANT: a journal has one spelling. The envelope is compared byte for byte, a control character is
//! refused, and an unknown or repeated field is refused, so that equal entries have equal digests.

use keys::Digest;
use serde::{Deserialize, Serialize};

use crate::error::AuditError;
use crate::record::Record;

/// The longest line in bytes, newline not counted. A C2SP entry bundle can hold 65,535.
pub const LINE_BYTES_MAX: usize = 60_000;

/// The longest process name in bytes.
pub const NAME_BYTES_MAX: usize = 64;

/// `prev` of the first line of a journal.
pub const NO_LINE: Digest = Digest([0; 32]);

#[derive(Serialize)]
struct LineOut<'a> {
    process: &'a str,
    seq: u64,
    at_ms: i64,
    prev: String,
    record: &'a Record,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LineIn {
    process: String,
    seq: u64,
    at_ms: i64,
    prev: String,
    record: Record,
}

/// One parsed line. That it parses says nothing about its place in a chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Process that wrote it.
    pub process: String,
    /// Number within the process, from 0.
    pub seq: u64,
    /// Wall time of the process, in milliseconds since the Unix epoch. A claim, not a proof.
    pub at_ms: i64,
    /// Digest of the line before.
    pub prev: Digest,
    /// What happened.
    pub record: Record,
    /// Digest of this line's bytes, newline not counted.
    pub digest: Digest,
}

/// Whether the text can name a process: 1 to 64 of `A-Z a-z 0-9 . _ -`.
#[must_use]
pub fn is_process_name(name: &str) -> bool {
    let ok = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    (1..=NAME_BYTES_MAX).contains(&name.len()) && name.bytes().all(ok)
}

/// Parses one line, without its newline.
///
/// # Errors
/// [`AuditError::LineTooLong`], [`AuditError::Name`], or [`AuditError::Line`] for anything but the one
/// spelling.
pub fn parse_line(line: &[u8]) -> Result<Entry, AuditError> {
    if line.len() > LINE_BYTES_MAX {
        return Err(AuditError::LineTooLong { bytes: line.len() });
    }
    let wrong = |problem: String| AuditError::Line { problem };
    if line.iter().any(u8::is_ascii_control) {
        return Err(wrong("it holds a control character".to_owned()));
    }
    let parsed: LineIn = serde_json::from_slice(line).map_err(|error| wrong(error.to_string()))?;
    if !is_process_name(&parsed.process) {
        return Err(AuditError::Name { name: parsed.process });
    }
    let envelope = format!(
        "{{\"process\":\"{}\",\"seq\":{},\"at_ms\":{},\"prev\":\"{}\",\"record\":{{",
        parsed.process, parsed.seq, parsed.at_ms, parsed.prev
    );
    if !line.starts_with(envelope.as_bytes()) || !line.ends_with(b"}}") {
        return Err(wrong("its envelope is not spelled the one way".to_owned()));
    }
    let prev = Digest::from_hex(&parsed.prev).map_err(|error| wrong(format!("prev: {error}")))?;
    if prev.to_string() != parsed.prev {
        return Err(wrong("prev: digits must be lower-case".to_owned()));
    }
    let LineIn { process, seq, at_ms, record, .. } = parsed;
    Ok(Entry { process, seq, at_ms, prev, record, digest: Digest::of(line) })
}

/// Splits a journal's bytes into its complete lines and, where the last has no newline, the torn rest.
///
/// A torn rest is what a crash leaves in the middle of a write: nobody was told that it is durable, so it may
/// be cut off.
#[must_use]
pub fn split_lines(bytes: &[u8]) -> (Vec<&[u8]>, Option<&[u8]>) {
    let mut pieces: Vec<&[u8]> = bytes.split(|byte| *byte == b'\n').collect();
    let rest = pieces.pop().filter(|rest| !rest.is_empty());
    (pieces, rest)
}

/// The growing end of one process's journal.
///
/// ```
/// let mut chain = audit::journal::Chain::new("desk-1").unwrap();
/// let record = audit::record::Record::Started { program: "00".repeat(32) };
/// let line = chain.seal(1_700_000_000_000, &record).unwrap();
/// let entry = audit::journal::parse_line(line.as_bytes()).unwrap();
/// assert_eq!((entry.seq, chain.next_seq()), (0, 1));
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    process: String,
    next_seq: u64,
    prev: Digest,
}

impl Chain {
    /// An empty journal of this process.
    ///
    /// # Errors
    /// [`AuditError::Name`] when the text can name no process.
    pub fn new(process: &str) -> Result<Self, AuditError> {
        if !is_process_name(process) {
            return Err(AuditError::Name { name: process.to_owned() });
        }
        Ok(Self { process: process.to_owned(), next_seq: 0, prev: NO_LINE })
    }

    /// Verifies the complete lines of a journal (see [`split_lines`]) and returns its growing end, with the
    /// length in bytes of those lines including their newlines: cut the file there before writing to it
    /// again.
    ///
    /// # Errors
    /// The first line that does not parse, belongs to another process, or does not follow from the one
    /// before.
    pub fn resume<'a>(
        process: &str,
        lines: impl IntoIterator<Item = &'a [u8]>,
    ) -> Result<(Self, u64), AuditError> {
        let mut chain = Self::new(process)?;
        let mut bytes = 0u64;
        for line in lines {
            chain.accept(&parse_line(line)?)?;
            bytes += line.len() as u64 + 1;
        }
        Ok((chain, bytes))
    }

    /// Takes an entry that somebody else wrote as the next one.
    ///
    /// # Errors
    /// [`AuditError::WrongProcess`], [`AuditError::Gap`] or [`AuditError::Fork`]; the chain is unchanged
    /// then.
    pub fn accept(&mut self, entry: &Entry) -> Result<(), AuditError> {
        let (process, seq) = (entry.process.clone(), entry.seq);
        if process != self.process {
            return Err(AuditError::WrongProcess { expected: self.process.clone(), found: process, seq });
        }
        if seq > self.next_seq {
            return Err(AuditError::Gap { process, seq, expected: self.next_seq });
        }
        if seq < self.next_seq {
            return Err(AuditError::Fork { process, seq, problem: "stands there already" });
        }
        if entry.prev != self.prev {
            return Err(AuditError::Fork {
                process,
                seq,
                problem: "does not follow from the entry before it",
            });
        }
        self.next_seq += 1;
        self.prev = entry.digest;
        Ok(())
    }

    /// Goes on as if this entry had been accepted: for an auditor who has noted that it should not have been.
    pub(crate) fn go_on_after(&mut self, entry: &Entry) {
        self.next_seq = entry.seq.saturating_add(1);
        self.prev = entry.digest;
    }

    /// Makes the next line, without its newline. The chain moves on: the line must be written, or the chain
    /// thrown away.
    ///
    /// # Errors
    /// [`AuditError::LineTooLong`], or [`AuditError::Line`] when the record cannot be written as JSON; the
    /// chain is unchanged then.
    pub fn seal(&mut self, at_ms: i64, record: &Record) -> Result<String, AuditError> {
        let prev = self.prev.to_string();
        let out = LineOut { process: &self.process, seq: self.next_seq, at_ms, prev, record };
        let mut line =
            serde_json::to_string(&out).map_err(|error| AuditError::Line { problem: error.to_string() })?;
        // JSON escapes U+0000 to U+001F but leaves U+007F as it is; a reader refuses every control character.
        if line.contains('\u{7f}') {
            line = line.replace('\u{7f}', "\\u007f");
        }
        if line.len() > LINE_BYTES_MAX {
            return Err(AuditError::LineTooLong { bytes: line.len() });
        }
        self.next_seq += 1;
        self.prev = Digest::of(line.as_bytes());
        Ok(line)
    }

    /// Name of the process.
    #[must_use]
    pub fn process(&self) -> &str {
        &self.process
    }

    /// Number of the next line, which is the number of lines so far.
    #[must_use]
    pub fn next_seq(&self) -> u64 {
        self.next_seq
    }

    /// Digest of the last line; [`NO_LINE`] before the first.
    #[must_use]
    pub fn prev(&self) -> Digest {
        self.prev
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    pub(crate) fn note(text: &str) -> Record {
        Record::Started { program: text.to_owned() }
    }

    /// `count` lines of one process.
    pub(crate) fn lines(process: &str, count: usize) -> Vec<Vec<u8>> {
        let mut chain = Chain::new(process).unwrap();
        (0..count)
            .map(|n| chain.seal(n as i64, &note(&format!("reason {n}"))).unwrap().into_bytes())
            .collect()
    }

    fn slices(lines: &[Vec<u8>]) -> impl Iterator<Item = &[u8]> {
        lines.iter().map(Vec::as_slice)
    }

    #[test]
    fn a_resumed_chain_goes_on_where_it_stopped() {
        let written = lines("desk-1", 5);
        let (chain, bytes) = Chain::resume("desk-1", slices(&written[..3])).unwrap();
        assert_eq!(bytes, written[..3].iter().map(|line| line.len() as u64 + 1).sum::<u64>());
        let mut chain = chain;
        assert_eq!(chain.seal(3, &note("reason 3")).unwrap().as_bytes(), written[3]);
        assert_eq!(chain.seal(4, &note("reason 4")).unwrap().as_bytes(), written[4]);
    }

    #[test]
    fn the_first_line_has_64_zeros_before_it() {
        let entry = parse_line(&lines("a", 1)[0]).unwrap();
        assert_eq!((entry.seq, entry.prev), (0, NO_LINE));
    }

    #[test]
    fn a_lost_swapped_repeated_or_foreign_line_breaks_the_chain() {
        let good = lines("desk-1", 4);
        let resume = |order: &[usize]| Chain::resume("desk-1", order.iter().map(|n| good[*n].as_slice()));
        assert!(resume(&[0, 1, 2, 3]).is_ok());
        assert!(matches!(resume(&[0, 1, 3]), Err(AuditError::Gap { seq: 3, expected: 2, .. })));
        assert!(matches!(resume(&[1, 2]), Err(AuditError::Gap { seq: 1, expected: 0, .. })));
        assert!(matches!(resume(&[0, 1, 1]), Err(AuditError::Fork { seq: 1, .. })));
        assert!(matches!(resume(&[0, 2, 1]), Err(AuditError::Gap { .. })));
        assert!(matches!(Chain::resume("desk-2", slices(&good)), Err(AuditError::WrongProcess { .. })));
        let mut other = Chain::new("desk-1").unwrap();
        other.seal(0, &note("another past")).unwrap();
        let forged = other.seal(1, &note("reason 1")).unwrap();
        let forked = Chain::resume("desk-1", [good[0].as_slice(), forged.as_bytes()]);
        assert!(matches!(forked, Err(AuditError::Fork { seq: 1, .. })));
    }

    #[test]
    fn a_torn_last_line_is_told_apart_from_complete_ones() {
        assert_eq!(split_lines(b""), (vec![], None));
        assert_eq!(split_lines(b"a\nb\n"), (vec![&b"a"[..], b"b"], None));
        assert_eq!(split_lines(b"a\nb"), (vec![&b"a"[..]], Some(&b"b"[..])));
    }

    #[test]
    fn only_the_one_spelling_of_a_line_is_read() {
        let line = String::from_utf8(lines("desk-1", 1).remove(0)).unwrap();
        assert!(parse_line(line.as_bytes()).is_ok());
        let spoilt = [
            line.replacen("\"seq\":0", "\"seq\": 0", 1),
            line.replacen("\"seq\":0", "\"seq\":00", 1),
            line.replacen("\"seq\":0,\"at_ms\":0", "\"at_ms\":0,\"seq\":0", 1),
            line.replacen("\"seq\":0", "\"seq\":0,\"seq\":0", 1),
            line.replacen("\"seq\":0", "\"seq\":0,\"more\":0", 1),
            line.replacen("\"program\"", "\"more\":1,\"program\"", 1),
            line.replacen("\"program\"", "\"progress\"", 1),
            line.replacen("started", "unheard_of", 1),
            line.replacen("000", "00A", 1),
            line.replacen("desk-1", "desk 1", 1),
            line.replacen("desk-1", "", 1),
            line.replacen("desk-1", "d\\u0065sk-1", 1),
            format!("{line} "),
            format!(" {line}"),
            format!("{line}\n"),
            format!("{line}{line}"),
            line.replacen("reason 0", "reason\t0", 1),
            line.replacen("\"record\":{", "\"record\":\n{", 1),
            String::new(),
        ];
        for text in spoilt {
            assert!(parse_line(text.as_bytes()).is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_line_that_is_too_long_is_refused_and_the_chain_stays() {
        let mut chain = Chain::new("desk-1").unwrap();
        let long = note(&"x".repeat(LINE_BYTES_MAX));
        assert!(matches!(chain.seal(0, &long), Err(AuditError::LineTooLong { .. })));
        assert_eq!((chain.next_seq(), chain.prev()), (0, NO_LINE));
        assert!(matches!(parse_line(&vec![b'x'; LINE_BYTES_MAX + 1]), Err(AuditError::LineTooLong { .. })));
    }

    proptest! {
        #[test]
        fn any_text_in_a_record_stays_on_one_line_and_comes_back(
            text in any::<String>(), at_ms in any::<i64>(),
        ) {
            let record = note(&format!("{text}\n\r\u{7f}\u{0}\u{2028}\"}}}}"));
            let line = Chain::new("p").unwrap().seal(at_ms, &record).unwrap();
            prop_assert!(!line.chars().any(|character| character.is_ascii_control()));
            let entry = parse_line(line.as_bytes()).unwrap();
            prop_assert_eq!((entry.record, entry.at_ms), (record, at_ms));
        }

        #[test]
        fn no_bytes_make_the_parser_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = parse_line(&bytes);
            let _ = split_lines(&bytes);
        }
    }
}
