//! Signing keys, digests and secrets that cannot leak by accident.
//!
//! Owns: Ed25519 signing and verifying keys, SHA-256 digests, hexadecimal text; what is sealed to one agent
//! ([`sealing`]), records at rest under a key per domain ([`envelope`]), a root key in a file
//! ([`sealed_file`]) and among people ([`shares`]). It draws no randomness: a key is made from a seed that
//! the caller was handed, so that a test can hand in its own.
//!
//! INVARIANT: no secret is printed. `Debug` of a signing key shows its public identifier only.

mod aead;
pub mod envelope;
pub mod sealed_file;
pub mod sealing;
pub mod shares;
pub mod signer;

use std::fmt;

use ed25519_dalek::Signer as _;
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

pub use sealing::{Channel, Sealed, SealingKey, SealingPublicKey};
pub use signer::{SignError, Signer};

/// What can be wrong with a key, a digest or a signature that came from outside.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum KeyError {
    /// The text is not hexadecimal of the expected length.
    #[error("expected {expected} hexadecimal digits")]
    Hex {
        /// How many digits were expected.
        expected: usize,
    },
    /// The bytes are no valid public key.
    #[error("not a valid Ed25519 public key")]
    PublicKey,
    /// The signature does not verify.
    #[error("the signature does not verify")]
    Signature,
}

/// A SHA-256 digest.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest(pub [u8; 32]);

impl Digest {
    /// The digest of some bytes.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }

    /// The digest of several pieces, as if they were one.
    #[must_use]
    pub fn of_parts(parts: &[&[u8]]) -> Self {
        let mut hasher = Sha256::new();
        for part in parts {
            hasher.update(part);
        }
        Self(hasher.finalize().into())
    }

    /// Parses 64 hexadecimal digits.
    ///
    /// # Errors
    /// [`KeyError::Hex`] when the text is anything else.
    pub fn from_hex(text: &str) -> Result<Self, KeyError> {
        from_hex(text).map(Self)
    }
}

/// A SHA-256 digest in the making, of bytes that come in pieces: whoever hands them in need not hold them all.
#[derive(Clone, Debug, Default)]
pub struct Hasher(Sha256);

impl Hasher {
    /// Takes the next piece.
    pub fn update(&mut self, piece: &[u8]) {
        self.0.update(piece);
    }

    /// The digest of all pieces, as if they were one.
    #[must_use]
    pub fn finish(self) -> Digest {
        Digest(self.0.finalize().into())
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&to_hex(&self.0))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Digest({self})")
    }
}

/// Stack that work with secrets may use, in bytes; measured below a quarter of it.
const SCRATCH_BYTES: usize = 64 * 1024;

/// Does some work with secrets, and erases the stack that it used: keys that were moved or expanded on the way leave copies
/// there, which nobody else overwrites for a long time. What comes back must hold its secrets behind a pointer.
pub fn leaving_nothing<T>(work: impl FnOnce() -> T) -> T {
    // A frame of its own, so that it lies in what is erased.
    #[inline(never)]
    fn apart<T>(work: impl FnOnce() -> T) -> T {
        work()
    }
    let done = apart(work);
    zeroize::zeroize_stack::<SCRATCH_BYTES>();
    done
}

/// The private half of an Ed25519 key pair. Erased from memory when dropped.
///
/// Behind a pointer, so that a key that moves leaves no copy of itself behind.
pub struct SigningKey(Box<ed25519_dalek::SigningKey>);

impl SigningKey {
    /// Makes the key that belongs to a seed of 32 random bytes.
    #[must_use]
    pub fn from_seed(seed: &[u8; 32]) -> Self {
        leaving_nothing(|| Self(Box::new(ed25519_dalek::SigningKey::from_bytes(seed))))
    }

    /// Reads a key from the text that [`SigningKey::to_secret_text`] wrote.
    ///
    /// # Errors
    /// [`KeyError::Hex`] when the text is anything else.
    pub fn from_secret_text(text: &str) -> Result<Self, KeyError> {
        leaving_nothing(|| {
            let seed: Zeroizing<[u8; 32]> = Zeroizing::new(from_hex(text.trim())?);
            Ok(Self::from_seed(&seed))
        })
    }

    /// The seed as text, for a file that only its owner may read.
    #[must_use]
    pub fn to_secret_text(&self) -> Zeroizing<String> {
        Zeroizing::new(to_hex(self.0.as_bytes()))
    }

    /// Signs a message (RFC 8032, section 5.1.6).
    #[must_use]
    pub fn sign(&self, message: &[u8]) -> [u8; 64] {
        leaving_nothing(|| self.0.sign(message).to_bytes())
    }

    /// The public half.
    #[must_use]
    pub fn verifying_key(&self) -> VerifyingKey {
        VerifyingKey(self.0.verifying_key())
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SigningKey({})", self.verifying_key().id())
    }
}

/// The public half of an Ed25519 key pair.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct VerifyingKey(ed25519_dalek::VerifyingKey);

impl VerifyingKey {
    /// Parses the 32 bytes of a public key.
    ///
    /// # Errors
    /// [`KeyError::PublicKey`] when they are no point of the curve, or one of low order.
    pub fn from_bytes(bytes: &[u8; 32]) -> Result<Self, KeyError> {
        let key = ed25519_dalek::VerifyingKey::from_bytes(bytes).map_err(|_| KeyError::PublicKey)?;
        if key.is_weak() { Err(KeyError::PublicKey) } else { Ok(Self(key)) }
    }

    /// Parses 64 hexadecimal digits.
    ///
    /// # Errors
    /// [`KeyError::Hex`] or [`KeyError::PublicKey`].
    pub fn from_hex(text: &str) -> Result<Self, KeyError> {
        Self::from_bytes(&from_hex(text)?)
    }

    /// The 32 bytes of the key.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 32] {
        self.0.as_bytes()
    }

    /// The key as 64 hexadecimal digits.
    #[must_use]
    pub fn to_hex(&self) -> String {
        to_hex(self.0.as_bytes())
    }

    /// The key's identifier: the first 16 hexadecimal digits of its SHA-256 digest.
    #[must_use]
    pub fn id(&self) -> String {
        to_hex(Digest::of(self.0.as_bytes()).0.get(..8).unwrap_or_default())
    }

    /// Verifies a signature, refusing malleable and low-order encodings.
    ///
    /// # Errors
    /// [`KeyError::Signature`] when it does not verify.
    pub fn verify(&self, message: &[u8], signature: &[u8]) -> Result<(), KeyError> {
        let signature = ed25519_dalek::Signature::from_slice(signature).map_err(|_| KeyError::Signature)?;
        self.0.verify_strict(message, &signature).map_err(|_| KeyError::Signature)
    }
}

impl fmt::Debug for VerifyingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VerifyingKey({})", self.id())
    }
}

/// Whether two secrets are equal, in time that does not depend on where they differ.
#[must_use]
pub fn equal_in_constant_time(left: &[u8], right: &[u8]) -> bool {
    subtle::ConstantTimeEq::ct_eq(left, right).into()
}

/// Bytes as lower-case hexadecimal text.
#[must_use]
pub fn to_hex(bytes: &[u8]) -> String {
    use fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Parses exactly `2 * N` hexadecimal digits.
///
/// # Errors
/// [`KeyError::Hex`] when the text is anything else.
pub fn from_hex<const N: usize>(text: &str) -> Result<[u8; N], KeyError> {
    let wrong = KeyError::Hex { expected: N * 2 };
    if text.len() != N * 2 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err(wrong);
    }
    let mut bytes = [0; N];
    for (index, byte) in bytes.iter_mut().enumerate() {
        let digits = text.get(index * 2..index * 2 + 2).unwrap_or_default();
        *byte = u8::from_str_radix(digits, 16).map_err(|_| KeyError::Hex { expected: N * 2 })?;
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_verifies_only_for_its_message_and_key() {
        let key = SigningKey::from_seed(&[7; 32]);
        let other = SigningKey::from_seed(&[8; 32]);
        let signature = key.sign(b"message");
        assert_eq!(key.verifying_key().verify(b"message", &signature), Ok(()));
        assert_eq!(key.verifying_key().verify(b"massage", &signature), Err(KeyError::Signature));
        assert_eq!(other.verifying_key().verify(b"message", &signature), Err(KeyError::Signature));
        assert_eq!(key.verifying_key().verify(b"message", &signature[..63]), Err(KeyError::Signature));
    }

    #[test]
    fn a_digest_of_pieces_is_the_digest_of_the_whole() {
        let mut hasher = Hasher::default();
        for piece in [&b"mes"[..], b"", b"sage"] {
            hasher.update(piece);
        }
        assert_eq!(hasher.finish(), Digest::of(b"message"));
        assert_eq!(Hasher::default().finish(), Digest::of(b""));
    }

    #[test]
    fn a_secret_is_never_printed() {
        let key = SigningKey::from_seed(&[7; 32]);
        assert!(!format!("{key:?}").contains(&*key.to_secret_text()));
        assert!(!format!("{key:?}").contains("0707"));
    }

    #[test]
    fn text_and_key_are_the_same_thing() {
        let key = SigningKey::from_seed(&[9; 32]);
        let again = SigningKey::from_secret_text(&key.to_secret_text()).unwrap();
        assert_eq!(key.verifying_key(), again.verifying_key());
        let public = key.verifying_key();
        assert_eq!(VerifyingKey::from_hex(&public.to_hex()), Ok(public));
        assert_eq!(VerifyingKey::from_hex("zz"), Err(KeyError::Hex { expected: 64 }));
        assert_eq!(VerifyingKey::from_bytes(&[0; 32]), Err(KeyError::PublicKey));
    }
}
