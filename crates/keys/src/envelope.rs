//! Envelope encryption of records at rest: a root wraps a key per domain, which wraps a fresh data key per
//! record.
//!
//! Owns: the primitive and its trait, the place that a ciphertext is bound to, and the ciphertext itself; the
//! versions of a domain's key are in [`domain`]. Refuses to know where anything is stored and who may ask.
//! Randomness is handed in.
//!
//! INVARIANT: a ciphertext opens only at the domain, table, row and row version that it was sealed for;
//! whatever cannot be decided, a root that is gone included, is refused.

pub mod domain;

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::aead::{self, NONCE, TAG, join};

pub use domain::{DomainKey, Keyring, State, VersionInfo};

/// Longest plaintext of one record. Bytes.
pub const PLAINTEXT_MAX: usize = 1024 * 1024;

/// Longest JSON of one [`Ciphertext`] that is read. Bytes.
pub const CIPHERTEXT_JSON_MAX: usize = (PLAINTEXT_MAX / 3 + 1) * 4 + 1024;

/// Longest name of a domain or a table. Bytes.
pub const NAME_MAX: usize = 64;

/// Longest name of a row. Bytes.
pub const ROW_MAX: usize = 512;

/// Seals under one version of a domain's key, data keys wrapped again included: the bound of NIST SP 800-38D
/// for nonces drawn at random.
pub const USES_MAX: u64 = 1 << 32;

/// A wrapped data key: nonce, 256 bits, tag. Bytes.
const WRAPPED_DATA_KEY: usize = NONCE + 32 + TAG;

/// What a ciphertext says it is.
const FORMAT: &str = "trader-envelope-1";

/// Why nothing was sealed or opened. Holds no secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EnvelopeError {
    /// A name is empty, too long or of letters that names don't have.
    #[error("not a name: {0}")]
    Name(&'static str),
    /// The plaintext is longer than [`PLAINTEXT_MAX`].
    #[error("at most {PLAINTEXT_MAX} bytes are sealed at once")]
    TooLong,
    /// The document is not one of ours, or contradicts itself.
    #[error("unreadable: {0}")]
    Document(&'static str),
    /// The ciphertext was sealed for another domain, table, row or row version, or its data key was changed.
    #[error("the ciphertext does not belong here, or its data key was changed")]
    WrongPlace,
    /// The data key opened here, but the payload is not what was sealed with it.
    #[error("the payload is not the one that was sealed here")]
    Tampered,
    /// The domain's key has no such version.
    #[error("the domain's key has no version {0}")]
    UnknownVersion(u32),
    /// The version was destroyed: what was sealed under it is gone for ever.
    #[error("version {0} of the domain's key was destroyed")]
    Destroyed(u32),
    /// The version is below the domain's minimum.
    #[error("version {version} of the domain's key is below the minimum, {minimum}")]
    BelowMinimum {
        /// The version that the ciphertext was sealed under.
        version: u32,
        /// The lowest version that opens.
        minimum: u32,
    },
    /// The active version is destroyed only together with all others.
    #[error("version {0} is the active one; rotate first, or destroy everything")]
    ActiveVersion(u32),
    /// The minimum would be above the active version, or below what it may be.
    #[error("{0} cannot be the minimum version")]
    Minimum(u32),
    /// The active version was used [`USES_MAX`] times.
    #[error("version {0} of the domain's key was used too often; rotate it")]
    Exhausted(u32),
    /// The domain's key has as many versions as it can have.
    #[error("the domain's key has as many versions as it can have")]
    TooManyVersions,
    /// The root cannot be asked.
    #[error("the root key is out of reach: {0}")]
    RootUnavailable(String),
    /// The root answered, and refuses what it is shown: another root wrapped it, or it was changed.
    #[error("the root key does not open this")]
    RootRefused,
}

impl EnvelopeError {
    /// The reason's one spelling in the log and in answers.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Name(_) => "bad_name",
            Self::TooLong => "too_long",
            Self::Document(_) => "unreadable",
            Self::WrongPlace => "wrong_place",
            Self::Tampered => "tampered",
            Self::UnknownVersion(_) => "unknown_version",
            Self::Destroyed(_) => "destroyed",
            Self::BelowMinimum { .. } => "below_minimum",
            Self::ActiveVersion(_) => "active_version",
            Self::Minimum(_) => "bad_minimum",
            Self::Exhausted(_) => "exhausted",
            Self::TooManyVersions => "too_many_versions",
            Self::RootUnavailable(_) => "root_unavailable",
            Self::RootRefused => "root_refused",
        }
    }
}

/// Why a root did not wrap or unwrap.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RootError {
    /// It cannot be asked; says why, without any secret.
    #[error("out of reach: {0}")]
    Unavailable(String),
    /// It refuses what it was shown.
    #[error("not wrapped by this root for this purpose, or changed")]
    Refused,
}

impl From<RootError> for EnvelopeError {
    fn from(error: RootError) -> Self {
        match error {
            RootError::Unavailable(why) => Self::RootUnavailable(why),
            RootError::Refused => Self::RootRefused,
        }
    }
}

/// A key that wraps other keys with AES-256-GCM: one in memory, or one in a device that never lets it out.
pub trait Wrap: Send + Sync {
    /// Encrypts `plaintext` so that it opens only with the same `aad`. The nonce is used once. What comes
    /// back is read by [`Wrap::unwrap`] of the same root only, and carries whatever that needs.
    ///
    /// # Errors
    /// [`RootError::Unavailable`] when the root is gone; never another key instead.
    fn wrap(&self, aad: &[u8], plaintext: &[u8], nonce: &[u8; 12]) -> Result<Vec<u8>, RootError>;

    /// Decrypts what [`Wrap::wrap`] made.
    ///
    /// # Errors
    /// [`RootError::Unavailable`] when the root is gone, [`RootError::Refused`] for a wrong `aad` or changed
    /// bytes.
    fn unwrap(&self, aad: &[u8], wrapped: &[u8]) -> Result<Zeroizing<Vec<u8>>, RootError>;
}

/// A key of 256 bits in memory, for AES-256-GCM. Erased when dropped.
///
/// Behind a pointer, so that a key that moves leaves no copy of itself behind.
pub struct WrappingKey(Box<Zeroizing<[u8; 32]>>);

impl WrappingKey {
    /// Makes a key from 32 random bytes.
    #[must_use]
    pub fn from_bytes(bytes: &[u8; 32]) -> Self {
        let mut key = Box::new(Zeroizing::new([0; 32]));
        key.copy_from_slice(bytes);
        Self(key)
    }

    fn from_slice(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self::from_bytes)
    }

    fn bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Debug for WrappingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("WrappingKey(secret)")
    }
}

impl Wrap for WrappingKey {
    /// The result is `nonce ‖ ciphertext ‖ tag`.
    fn wrap(&self, aad: &[u8], plaintext: &[u8], nonce: &[u8; 12]) -> Result<Vec<u8>, RootError> {
        if plaintext.len() > PLAINTEXT_MAX {
            return Err(RootError::Refused);
        }
        aead::encrypt(self.bytes(), nonce, aad, plaintext).map_err(|_| RootError::Refused)
    }

    fn unwrap(&self, aad: &[u8], wrapped: &[u8]) -> Result<Zeroizing<Vec<u8>>, RootError> {
        aead::decrypt(self.bytes(), aad, wrapped).map_err(|_| RootError::Refused)
    }
}

/// Where a record is. A ciphertext opens nowhere else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place<'a> {
    /// The security domain, such as `ledger`.
    pub domain: &'a str,
    /// The table.
    pub table: &'a str,
    /// The row's key, as text.
    pub row: &'a str,
    /// The row's version: higher each time that the row is written.
    pub version: u64,
}

impl Place<'_> {
    /// Refuses names that cannot be.
    fn check(&self) -> Result<(), EnvelopeError> {
        check_name(self.domain, "a domain")?;
        check_name(self.table, "a table")?;
        if self.row.is_empty() || self.row.len() > ROW_MAX {
            return Err(EnvelopeError::Name("a row's has 1 to 512 bytes"));
        }
        Ok(())
    }

    /// The associated data of a data key wrapped under one version of the domain's key.
    fn data_key_aad(&self, key_version: u32) -> Vec<u8> {
        self.joined("data key", &key_version.to_be_bytes())
    }

    /// The associated data of a payload. Without the key's version: it stays when the data key is wrapped
    /// again.
    fn payload_aad(&self) -> Vec<u8> {
        self.joined("payload", &[])
    }

    fn joined(&self, purpose: &str, more: &[u8]) -> Vec<u8> {
        join(&[
            FORMAT.as_bytes(),
            purpose.as_bytes(),
            self.domain.as_bytes(),
            self.table.as_bytes(),
            self.row.as_bytes(),
            &self.version.to_be_bytes(),
            more,
        ])
    }
}

/// Names of domains and tables: lower-case letters, digits, `-` and `_`, a letter first.
fn check_name(name: &str, whose: &'static str) -> Result<(), EnvelopeError> {
    let letters =
        |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'_');
    let first = name.bytes().next().is_some_and(|byte| byte.is_ascii_lowercase());
    if first && name.len() <= NAME_MAX && name.bytes().all(letters) {
        Ok(())
    } else {
        Err(EnvelopeError::Name(whose))
    }
}

/// A sealed record: the payload under a data key of its own, and that data key under the domain's key.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "CiphertextDocument", into = "CiphertextDocument")]
pub struct Ciphertext {
    key_version: u32,
    data_key: Vec<u8>,
    payload: Vec<u8>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct CiphertextDocument {
    format: String,
    key_version: u32,
    data_key: String,
    payload: String,
}

impl Ciphertext {
    /// Reads what [`Ciphertext::to_json`] wrote.
    ///
    /// # Errors
    /// [`EnvelopeError::Document`] when the text is anything else, or longer than [`CIPHERTEXT_JSON_MAX`].
    pub fn parse(json: &str) -> Result<Self, EnvelopeError> {
        if json.len() > CIPHERTEXT_JSON_MAX {
            return Err(EnvelopeError::Document("a ciphertext that long was never sealed"));
        }
        serde_json::from_str(json).map_err(|_| EnvelopeError::Document("not a ciphertext"))
    }

    /// The ciphertext as JSON on one line.
    #[must_use]
    pub fn to_json(&self) -> String {
        // Strings and an integer only: there is nothing that could not be written.
        serde_json::to_string(self).unwrap_or_default()
    }

    /// The version of the domain's key that it was sealed under.
    #[must_use]
    pub fn key_version(&self) -> u32 {
        self.key_version
    }
}

impl fmt::Debug for Ciphertext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Ciphertext(key version {}, {} bytes)", self.key_version, self.payload.len())
    }
}

impl TryFrom<CiphertextDocument> for Ciphertext {
    type Error = EnvelopeError;

    fn try_from(document: CiphertextDocument) -> Result<Self, EnvelopeError> {
        if document.format != FORMAT {
            return Err(EnvelopeError::Document("not a ciphertext of this format"));
        }
        let data_key = from_base64(&document.data_key, WRAPPED_DATA_KEY)?;
        let payload = from_base64(&document.payload, NONCE + PLAINTEXT_MAX + TAG)?;
        if data_key.len() != WRAPPED_DATA_KEY || payload.len() < NONCE + TAG || document.key_version == 0 {
            return Err(EnvelopeError::Document("a ciphertext's parts have other lengths"));
        }
        Ok(Self { key_version: document.key_version, data_key, payload })
    }
}

impl From<Ciphertext> for CiphertextDocument {
    fn from(ciphertext: Ciphertext) -> Self {
        Self {
            format: FORMAT.to_owned(),
            key_version: ciphertext.key_version,
            data_key: URL_SAFE_NO_PAD.encode(&ciphertext.data_key),
            payload: URL_SAFE_NO_PAD.encode(&ciphertext.payload),
        }
    }
}

/// Decodes base64url without padding, in its one spelling, of at most `most` bytes.
fn from_base64(text: &str, most: usize) -> Result<Vec<u8>, EnvelopeError> {
    let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| EnvelopeError::Document("not base64url"))?;
    if bytes.len() > most { Err(EnvelopeError::Document("too long")) } else { Ok(bytes) }
}

#[cfg(test)]
mod tests;
