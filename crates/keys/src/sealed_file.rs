//! A 32-byte root key sealed with a passphrase: Argon2id makes the key, AES-256-GCM seals with it.
//!
//! Owns: the JSON document. Refuses to know where it is stored and whom the passphrase was asked of. Salt and
//! nonce are handed in.
//!
//! INVARIANT: a document that was changed and a passphrase that is wrong look the same; and no document,
//! whoever wrote it, makes its reader use more than 1 GiB and ten passes, or less than 19 MiB and two.

use std::fmt;
use std::ops::RangeInclusive;

use argon2::{Algorithm, Argon2, Block, Params, Version};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize as _, Zeroizing};

use crate::aead::{self, NONCE, TAG, join};
use crate::leaving_nothing;

/// Memory that is accepted. KiB.
pub const MEMORY_KIB: RangeInclusive<u32> = 19 * 1024..=1024 * 1024;

/// Passes over the memory that are accepted.
pub const PASSES: RangeInclusive<u32> = 2..=10;

/// Lanes that are accepted.
pub const LANES: RangeInclusive<u32> = 1..=4;

/// Shortest passphrase that is sealed with. Bytes.
pub const PASSPHRASE_MIN: usize = 12;

/// Longest passphrase. Bytes.
pub const PASSPHRASE_MAX: usize = 1024;

/// Longest document that is read. Bytes.
pub const DOCUMENT_MAX: usize = 4096;

const FORMAT: &str = "trader-sealed-root-1";
const KDF: &str = "argon2id";
const SALT: usize = 16;
const SECRET: usize = 32;

/// Why a root key was not sealed or opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SealedFileError {
    /// The document is not one of ours.
    #[error("not a sealed root key")]
    Document,
    /// The parameters are outside of what is accepted.
    #[error("its parameters are weaker or costlier than what is accepted")]
    Parameters,
    /// The passphrase is too short to seal with, or too long.
    #[error("a passphrase has {PASSPHRASE_MIN} to {PASSPHRASE_MAX} bytes")]
    Passphrase,
    /// This machine has not the memory that the parameters ask for.
    #[error("there is not enough memory to open it")]
    Memory,
    /// The passphrase is wrong, or the document was changed. Which of the two is not known.
    #[error("the passphrase is wrong, or the sealed root key was changed")]
    Refused,
}

impl SealedFileError {
    /// The reason's one spelling in the log.
    #[must_use]
    pub fn code(self) -> &'static str {
        match self {
            Self::Document => "sealed_root_unreadable",
            Self::Parameters => "sealed_root_parameters",
            Self::Passphrase => "passphrase_length",
            Self::Memory => "sealed_root_memory",
            Self::Refused => "sealed_root_refused",
        }
    }
}

/// What making the key from a passphrase costs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cost {
    memory_kib: u32,
    passes: u32,
    lanes: u32,
}

impl Cost {
    /// A cost within [`MEMORY_KIB`], [`PASSES`] and [`LANES`].
    ///
    /// # Errors
    /// [`SealedFileError::Parameters`] when it is outside.
    pub fn new(memory_kib: u32, passes: u32, lanes: u32) -> Result<Self, SealedFileError> {
        let accepted = MEMORY_KIB.contains(&memory_kib) && PASSES.contains(&passes) && LANES.contains(&lanes);
        if accepted { Ok(Self { memory_kib, passes, lanes }) } else { Err(SealedFileError::Parameters) }
    }

    /// The least that is accepted: 19 MiB, 2 passes, 1 lane. For tests and for very small machines.
    #[must_use]
    pub fn least() -> Self {
        Self { memory_kib: *MEMORY_KIB.start(), passes: *PASSES.start(), lanes: *LANES.start() }
    }
}

impl Default for Cost {
    /// 64 MiB, 3 passes, 1 lane.
    fn default() -> Self {
        Self { memory_kib: 64 * 1024, passes: 3, lanes: 1 }
    }
}

/// A sealed root key, as it is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Document", into = "Document")]
pub struct SealedFile {
    cost: Cost,
    salt: [u8; SALT],
    sealed: Vec<u8>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    format: String,
    kdf: String,
    memory_kib: u32,
    passes: u32,
    lanes: u32,
    salt: String,
    sealed: String,
}

impl SealedFile {
    /// Seals a root key. `salt` and `nonce` are random bytes, used for this document only.
    ///
    /// # Errors
    /// [`SealedFileError::Passphrase`] when it is too short or too long, [`SealedFileError::Memory`].
    pub fn seal(
        secret: &[u8; 32],
        passphrase: &str,
        cost: Cost,
        salt: &[u8; 16],
        nonce: &[u8; 12],
    ) -> Result<Self, SealedFileError> {
        if passphrase.len() < PASSPHRASE_MIN {
            return Err(SealedFileError::Passphrase);
        }
        let sealed = leaving_nothing(|| {
            let key = stretch(passphrase, cost, salt)?;
            aead::encrypt(&key, nonce, &aad(cost, salt), secret).map_err(|_| SealedFileError::Refused)
        })?;
        Ok(Self { cost, salt: *salt, sealed })
    }

    /// Reads what [`SealedFile::to_json`] wrote.
    ///
    /// # Errors
    /// [`SealedFileError::Document`], [`SealedFileError::Parameters`]; nothing was computed then.
    pub fn parse(json: &str) -> Result<Self, SealedFileError> {
        if json.len() > DOCUMENT_MAX {
            return Err(SealedFileError::Document);
        }
        let document: Document = serde_json::from_str(json).map_err(|_| SealedFileError::Document)?;
        Self::try_from(document)
    }

    /// The document as JSON.
    #[must_use]
    pub fn to_json(&self) -> String {
        // Strings and integers only: there is nothing that could not be written.
        serde_json::to_string_pretty(self).unwrap_or_default()
    }

    /// Opens the root key. Takes as long and as much memory as the document's cost says.
    ///
    /// # Errors
    /// [`SealedFileError::Refused`] for a wrong passphrase or a changed document,
    /// [`SealedFileError::Passphrase`] for one that is longer than any, [`SealedFileError::Memory`].
    pub fn open(&self, passphrase: &str) -> Result<Zeroizing<[u8; 32]>, SealedFileError> {
        leaving_nothing(|| self.open_with(&*stretch(passphrase, self.cost, &self.salt)?))
    }

    fn open_with(&self, key: &[u8; 32]) -> Result<Zeroizing<[u8; 32]>, SealedFileError> {
        let opened = aead::decrypt(key, &aad(self.cost, &self.salt), &self.sealed)
            .map_err(|_| SealedFileError::Refused)?;
        let mut secret = Zeroizing::new([0; SECRET]);
        if opened.len() != SECRET {
            return Err(SealedFileError::Refused);
        }
        secret.copy_from_slice(&opened);
        Ok(secret)
    }

    /// What opening it costs.
    #[must_use]
    pub fn cost(&self) -> Cost {
        self.cost
    }
}

impl fmt::Display for Cost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} MiB, {} passes, {} lanes", self.memory_kib / 1024, self.passes, self.lanes)
    }
}

/// Makes the key from the passphrase. The memory that it was made in is erased.
fn stretch(passphrase: &str, cost: Cost, salt: &[u8; SALT]) -> Result<Zeroizing<[u8; 32]>, SealedFileError> {
    if passphrase.len() > PASSPHRASE_MAX {
        return Err(SealedFileError::Passphrase);
    }
    let params = Params::new(cost.memory_kib, cost.passes, cost.lanes, Some(SECRET))
        .map_err(|_| SealedFileError::Parameters)?;
    let mut blocks: Vec<Block> = Vec::new();
    blocks.try_reserve_exact(params.block_count()).map_err(|_| SealedFileError::Memory)?;
    blocks.resize(params.block_count(), Block::new());
    let mut key = Zeroizing::new([0; SECRET]);
    let made = Argon2::new(Algorithm::Argon2id, Version::V0x13, params).hash_password_into_with_memory(
        passphrase.as_bytes(),
        salt,
        key.as_mut_slice(),
        &mut blocks,
    );
    blocks.iter_mut().for_each(zeroize::Zeroize::zeroize);
    if made.is_err() {
        key.zeroize();
        return Err(SealedFileError::Refused);
    }
    Ok(key)
}

/// What the sealed key is bound to: every word of the document.
fn aad(cost: Cost, salt: &[u8; SALT]) -> Vec<u8> {
    join(&[
        FORMAT.as_bytes(),
        KDF.as_bytes(),
        &cost.memory_kib.to_be_bytes(),
        &cost.passes.to_be_bytes(),
        &cost.lanes.to_be_bytes(),
        salt,
    ])
}

impl TryFrom<Document> for SealedFile {
    type Error = SealedFileError;

    fn try_from(document: Document) -> Result<Self, SealedFileError> {
        if document.format != FORMAT || document.kdf != KDF {
            return Err(SealedFileError::Document);
        }
        let cost = Cost::new(document.memory_kib, document.passes, document.lanes)?;
        let decode = |text: &str| URL_SAFE_NO_PAD.decode(text).map_err(|_| SealedFileError::Document);
        let salt = decode(&document.salt)?.try_into().map_err(|_| SealedFileError::Document)?;
        let sealed = decode(&document.sealed)?;
        if sealed.len() != NONCE + SECRET + TAG {
            return Err(SealedFileError::Document);
        }
        Ok(Self { cost, salt, sealed })
    }
}

impl From<SealedFile> for Document {
    fn from(file: SealedFile) -> Self {
        Self {
            format: FORMAT.to_owned(),
            kdf: KDF.to_owned(),
            memory_kib: file.cost.memory_kib,
            passes: file.cost.passes,
            lanes: file.cost.lanes,
            salt: URL_SAFE_NO_PAD.encode(file.salt),
            sealed: URL_SAFE_NO_PAD.encode(&file.sealed),
        }
    }
}

#[cfg(test)]
mod tests;
