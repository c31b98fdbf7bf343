//! Signed notes and checkpoints in the C2SP forms, so that other people's verifiers work on our log.
//!
//! Owns the text form of a checkpoint (origin, size, root), its Ed25519 signature line, and verifier keys as
//! text. It does not know where a checkpoint is kept. The parser is strict: one spelling of every number and
//! every base64 text, no control characters; a signature of an unknown key is ignored, a failing one of the
//! known key refuses the note.
//!
//! Source: C2SP signed-note v1.0.0, tlog-checkpoint v1.0.0.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use keys::{Digest, SigningKey, VerifyingKey};

use crate::error::AuditError;

/// The longest checkpoint that is read, in bytes.
pub const CHECKPOINT_BYTES_MAX: usize = 16 * 1024;

/// The most signature lines that are read; C2SP asks for at least 16.
pub const SIGNATURES_MAX: usize = 64;

/// Signature type of plain Ed25519 in C2SP notes.
const ED25519: u8 = 1;

/// How many entries a log has, and their root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkpoint {
    /// Name of the log, for ever.
    pub origin: String,
    /// Number of entries.
    pub size: u64,
    /// Root over all of them.
    pub root: Digest,
}

impl Checkpoint {
    /// The text that is signed.
    #[must_use]
    pub fn body(&self) -> String {
        format!("{}\n{}\n{}\n", self.origin, self.size, STANDARD.encode(self.root.0))
    }

    /// The checkpoint as a signed note; the key's name is the origin.
    ///
    /// # Errors
    /// [`AuditError::Checkpoint`] when the origin can name no key.
    pub fn sign(&self, key: &SigningKey) -> Result<String, AuditError> {
        check_name(&self.origin)?;
        let body = self.body();
        let mut signature = key_id(&self.origin, &key.verifying_key()).to_vec();
        signature.extend(key.sign(body.as_bytes()));
        Ok(format!("{body}\n\u{2014} {} {}\n", self.origin, STANDARD.encode(signature)))
    }

    /// Verifies a signed note and parses its checkpoint.
    ///
    /// # Errors
    /// [`AuditError::Signature`] when no signature of this key verifies, or one fails;
    /// [`AuditError::Checkpoint`] when the note is malformed or names another log.
    pub fn open(note: &[u8], origin: &str, key: &VerifyingKey) -> Result<Self, AuditError> {
        let (body, signatures) = split_note(note)?;
        let id = key_id(origin, key);
        let mut verified = false;
        for (name, signature) in signatures {
            let Some((signature_id, signature)) = signature.split_first_chunk::<4>() else { continue };
            if name != origin || *signature_id != id {
                continue;
            }
            key.verify(body.as_bytes(), signature).map_err(|_| AuditError::Signature)?;
            verified = true;
        }
        if !verified {
            return Err(AuditError::Signature);
        }
        let checkpoint = parse_body(body)?;
        if checkpoint.origin != origin {
            return Err(AuditError::Checkpoint { problem: "it is of another log" });
        }
        Ok(checkpoint)
    }
}

/// A log's public key as other people's verifiers take it: `<name>+<id>+<base64>`.
#[must_use]
pub fn verifier_text(name: &str, key: &VerifyingKey) -> String {
    let mut bytes = vec![ED25519];
    bytes.extend(key.as_bytes());
    format!("{name}+{}+{}", keys::to_hex(&key_id(name, key)), STANDARD.encode(bytes))
}

/// Parses what [`verifier_text`] writes.
///
/// # Errors
/// [`AuditError::Checkpoint`] when it is anything else, or of another signature type.
pub fn parse_verifier_text(text: &str) -> Result<(String, VerifyingKey), AuditError> {
    let wrong = AuditError::Checkpoint { problem: "not a verifier key" };
    let mut parts = text.splitn(3, '+');
    let (Some(name), Some(id), Some(bytes)) = (parts.next(), parts.next(), parts.next()) else {
        return Err(wrong);
    };
    check_name(name)?;
    let bytes = STANDARD.decode(bytes).unwrap_or_default();
    let Some((&ED25519, bytes)) = bytes.split_first() else { return Err(wrong) };
    let key = bytes.try_into().ok().and_then(|bytes| VerifyingKey::from_bytes(bytes).ok());
    match key {
        Some(key) if keys::to_hex(&key_id(name, &key)) == id => Ok((name.to_owned(), key)),
        _ => Err(wrong),
    }
}

/// The first four bytes of SHA-256 over name, newline, signature type and public key.
fn key_id(name: &str, key: &VerifyingKey) -> [u8; 4] {
    let digest = Digest::of_parts(&[name.as_bytes(), b"\n", &[ED25519], key.as_bytes()]);
    digest.0.first_chunk().copied().unwrap_or_default()
}

fn check_name(name: &str) -> Result<(), AuditError> {
    let fault = |character: char| character.is_whitespace() || character == '+' || character.is_control();
    if name.is_empty() || name.len() > 256 || name.chars().any(fault) {
        return Err(AuditError::Checkpoint {
            problem: "its name is empty, too long, or has a space, a plus or a control",
        });
    }
    Ok(())
}

/// The name of a key, and its ID with the signature behind it.
type SignatureLine<'a> = (&'a str, Vec<u8>);

/// Splits a note into the signed text and its signatures.
fn split_note(note: &[u8]) -> Result<(&str, Vec<SignatureLine<'_>>), AuditError> {
    let wrong = |problem| AuditError::Checkpoint { problem };
    if note.len() > CHECKPOINT_BYTES_MAX {
        return Err(wrong("it is too long"));
    }
    let note = std::str::from_utf8(note).map_err(|_| wrong("it is not UTF-8"))?;
    if note.chars().any(|character| character.is_ascii_control() && character != '\n') {
        return Err(wrong("it holds a control character"));
    }
    let middle = note.rfind("\n\n").ok_or_else(|| wrong("it has no signature"))?;
    let (body, rest) = note.split_at_checked(middle + 1).ok_or_else(|| wrong("it has no signature"))?;
    let lines = rest.strip_prefix('\n').and_then(|rest| rest.strip_suffix('\n'));
    let lines = lines.ok_or_else(|| wrong("it does not end in a newline"))?;
    let mut signatures = Vec::new();
    for line in lines.split('\n') {
        if signatures.len() == SIGNATURES_MAX {
            return Err(wrong("it has too many signatures"));
        }
        let signature = line.strip_prefix("\u{2014} ").and_then(|line| line.split_once(' '));
        let (name, signature) = signature.ok_or_else(|| wrong("a signature line is malformed"))?;
        check_name(name)?;
        let signature = STANDARD.decode(signature).map_err(|_| wrong("a signature is not base64"))?;
        if signature.len() < 5 {
            return Err(wrong("a signature is too short"));
        }
        signatures.push((name, signature));
    }
    Ok((body, signatures))
}

/// Parses the signed text of a checkpoint. Extension lines carry no meaning here, but must not be empty.
fn parse_body(body: &str) -> Result<Checkpoint, AuditError> {
    let wrong = |problem| AuditError::Checkpoint { problem };
    let body = body.strip_suffix('\n').ok_or_else(|| wrong("its text does not end in a newline"))?;
    let mut lines = body.split('\n');
    let (Some(origin), Some(size), Some(root)) = (lines.next(), lines.next(), lines.next()) else {
        return Err(wrong("it has fewer than three lines"));
    };
    if origin.is_empty() || lines.any(str::is_empty) {
        return Err(wrong("it has an empty line"));
    }
    let number: u64 = size.parse().map_err(|_| wrong("its size is not a number"))?;
    if number.to_string() != size {
        return Err(wrong("its size is not spelled the one way"));
    }
    let root = STANDARD.decode(root).map_err(|_| wrong("its root is not base64"))?;
    let root = root.try_into().map_err(|_| wrong("its root is not 32 bytes"))?;
    Ok(Checkpoint { origin: origin.to_owned(), size: number, root: Digest(root) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> SigningKey {
        SigningKey::from_seed(&[3; 32])
    }

    fn signed() -> (Checkpoint, String) {
        let checkpoint =
            Checkpoint { origin: "trader/audit".to_owned(), size: 42, root: Digest::of(b"root") };
        let note = checkpoint.sign(&key()).unwrap();
        (checkpoint, note)
    }

    #[test]
    fn a_signed_checkpoint_comes_back() {
        let (checkpoint, note) = signed();
        assert_eq!(
            Checkpoint::open(note.as_bytes(), "trader/audit", &key().verifying_key()).unwrap(),
            checkpoint
        );
    }

    #[test]
    fn another_key_or_another_log_opens_nothing() {
        let (_, note) = signed();
        let other = SigningKey::from_seed(&[4; 32]).verifying_key();
        assert!(matches!(
            Checkpoint::open(note.as_bytes(), "trader/audit", &other),
            Err(AuditError::Signature)
        ));
        let elsewhere = Checkpoint::open(note.as_bytes(), "other/audit", &key().verifying_key());
        assert!(matches!(elsewhere, Err(AuditError::Signature)));
        // A genuine signature under our name over a checkpoint of another origin.
        let body = "other/audit\n1\n47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=\n";
        let mut signature = key_id("trader/audit", &key().verifying_key()).to_vec();
        signature.extend(key().sign(body.as_bytes()));
        let note = format!("{body}\n\u{2014} trader/audit {}\n", STANDARD.encode(signature));
        let crossed = Checkpoint::open(note.as_bytes(), "trader/audit", &key().verifying_key());
        assert!(matches!(crossed, Err(AuditError::Checkpoint { .. })));
    }

    #[test]
    fn a_change_of_any_bit_is_refused() {
        let (_, note) = signed();
        for index in 0..note.len() {
            for bit in 0..8 {
                let mut changed = note.clone().into_bytes();
                changed[index] ^= 1 << bit;
                let opened = Checkpoint::open(&changed, "trader/audit", &key().verifying_key());
                assert!(opened.is_err(), "byte {index} bit {bit}");
            }
        }
    }

    #[test]
    fn unknown_signatures_are_ignored_and_a_failing_known_one_refuses() {
        let (checkpoint, note) = signed();
        let stranger = "\u{2014} witness.example AAAAAAAA\n";
        let open = |note: String| Checkpoint::open(note.as_bytes(), "trader/audit", &key().verifying_key());
        assert_eq!(open(format!("{note}{stranger}")).unwrap(), checkpoint);
        let failing = Checkpoint { size: 43, ..checkpoint }.sign(&key()).unwrap();
        let failing = failing.split_once("\n\n").unwrap().1.to_owned();
        assert!(matches!(open(format!("{note}{failing}")), Err(AuditError::Signature)));
        assert!(open(format!("{note}{}", stranger.repeat(SIGNATURES_MAX))).is_err());
    }

    #[test]
    fn malformed_notes_are_refused_even_when_signed() {
        let root = "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=";
        let open = |body: &str| {
            let mut signature = key_id("a", &key().verifying_key()).to_vec();
            signature.extend(key().sign(body.as_bytes()));
            let note = format!("{body}\n\u{2014} a {}\n", STANDARD.encode(signature));
            Checkpoint::open(note.as_bytes(), "a", &key().verifying_key())
        };
        assert!(open(&format!("a\n7\n{root}\n")).is_ok());
        assert!(open(&format!("a\n7\n{root}\nextension\n")).is_ok());
        for body in [
            format!("a\n07\n{root}\n"),
            format!("a\n+7\n{root}\n"),
            format!("a\n-7\n{root}\n"),
            format!("a\n99999999999999999999\n{root}\n"),
            format!("a\n\n{root}\n"),
            format!("a\n7\n{}\n", &root[..43]),
            "a\n7\nAAAA\n".to_owned(),
            "a\n7\n".to_owned(),
            format!("a\r\n7\n{root}\n"),
            format!("\n7\n{root}\n"),
        ] {
            assert!(open(&body).is_err(), "{body:?}");
        }
        for note in ["", "\n\n", "a", "a\n\n\u{2014} a AAAA", "\u{2014}\n\n\u{2014} a\n"] {
            assert!(Checkpoint::open(note.as_bytes(), "a", &key().verifying_key()).is_err());
        }
    }

    #[test]
    fn a_verifier_key_comes_back_and_only_unchanged() {
        let text = verifier_text("trader/audit", &key().verifying_key());
        assert_eq!(parse_verifier_text(&text).unwrap(), ("trader/audit".to_owned(), key().verifying_key()));
        for index in 0..text.len() {
            let mut changed = text.clone().into_bytes();
            changed[index] ^= 1;
            assert!(parse_verifier_text(&String::from_utf8(changed).unwrap()).is_err(), "{index}");
        }
    }
}
