//! The keys of domains: one document each, beside the authorities' keys and apart from every database.
//!
//! Owns: where these documents are, and that a key in memory lives for one decision only. What is sealed under them lies in
//! the management database, so a copy of the database alone opens nothing, and what was sealed under a version that was
//! destroyed opens for nobody, whatever copy of the database is put back.
//!
//! INVARIANT: a document is on the disk before what follows from its change is put to use.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use keys::envelope::domain::DOMAIN_KEY_JSON_MAX;
use keys::envelope::{DomainKey, EnvelopeError, Keyring};
use keystore::KeyStore;
use wire::files::{self, FileError};

use crate::control::{ControlError, random};

/// Age at which a domain's key is followed by a new version when it is next used, in seconds: a day.
pub const DOMAIN_KEY_AGE_S: i64 = 24 * 3_600;

/// The ending of a document's file that is to follow the one in use.
const NEXT: &str = "next";
/// The ending of a document's file that was followed, until it is erased.
const FORMER: &str = "former";

/// Why a domain's key cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum VaultError {
    /// Its document.
    #[error(transparent)]
    File(#[from] FileError),
    /// The key itself, or the root above it.
    #[error(transparent)]
    Envelope(#[from] EnvelopeError),
    /// The operating system gave no random bytes.
    #[error("the operating system gives no random bytes: {0}")]
    Random(String),
    /// The document's file is not readable as one.
    #[error("{path}: {problem}")]
    Document {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
}

/// The keys of all domains.
pub struct Vault {
    directory: PathBuf,
    store: Arc<KeyStore>,
}

/// A domain's key, unlocked for one decision.
pub struct Unlocked {
    ring: Keyring,
    /// Revision of the document on the disk; 0 while there is none.
    stored: u64,
}

impl Vault {
    /// The vault beside a store of authorities' keys.
    #[must_use]
    pub fn new(store: Arc<KeyStore>) -> Self {
        Self { directory: store.describe().directory.join("domains"), store }
    }

    /// Every domain's key, as its document.
    ///
    /// # Errors
    /// When a document cannot be read.
    pub fn domains(&self) -> Result<Vec<DomainKey>, VaultError> {
        let entries = match std::fs::read_dir(&self.directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(self.unreadable(&self.directory, error)),
        };
        let mut domains = BTreeSet::new();
        for entry in entries {
            let path = entry.map_err(|error| self.unreadable(&self.directory, error))?.path();
            // A writer that died between its two renames left the newer document alone.
            let ours = path.extension().is_some_and(|extension| extension == "json" || extension == NEXT);
            if let Some(domain) = path.file_stem().and_then(|stem| stem.to_str()).filter(|_| ours) {
                domains.insert(domain.to_owned());
            }
        }
        let documents = domains.iter().map(|domain| self.find(domain));
        Ok(documents.collect::<Result<Vec<_>, _>>()?.into_iter().flatten().collect())
    }

    /// Unlocks a domain's key; with none yet, makes one. A version older than [`DOMAIN_KEY_AGE_S`] is followed by a new one.
    /// `now` in seconds since the Unix epoch.
    ///
    /// # Errors
    /// When the root is out of reach, refuses, or the document cannot be read.
    pub fn unlock(&self, domain: &str, now: i64) -> Result<Unlocked, VaultError> {
        let root = self.store.root();
        let Some(document) = self.find(domain)? else {
            let document = DomainKey::create(domain, &root, &*entropy()?, now)?;
            return Ok(Unlocked { ring: Keyring::unlock(document, &root)?, stored: 0 });
        };
        let stored = document.revision();
        let mut ring = Keyring::unlock(document, &root)?;
        let newest = ring.document().versions().last();
        if newest.is_some_and(|version| {
            Some(version.version) == ring.document().active()
                && now.saturating_sub(version.created) > DOMAIN_KEY_AGE_S
        }) {
            ring.rotate(&root, &*entropy()?, now)?;
        }
        Ok(Unlocked { ring, stored })
    }

    /// A domain's key as it is, never made.
    ///
    /// # Errors
    /// When the document cannot be read.
    pub fn find(&self, domain: &str) -> Result<Option<DomainKey>, VaultError> {
        let path = self.path(domain);
        let next = path.with_extension(NEXT);
        if !path.exists() && next.exists() {
            // The writer died between two renames; the newer document is whole.
            files::rename_durably(&next, &path)?;
        }
        if path.exists() { self.read(&path).map(Some) } else { Ok(None) }
    }

    /// Makes a new version of an unlocked key.
    ///
    /// # Errors
    /// When the root is out of reach or refuses.
    pub fn rotate(&self, unlocked: &mut Unlocked, now: i64) -> Result<u32, VaultError> {
        Ok(unlocked.ring.rotate(&self.store.root(), &*entropy()?, now)?)
    }

    /// Writes the document of an unlocked key, if it changed; says whether it did.
    ///
    /// # Errors
    /// When it cannot be written: then nothing that follows from the change may be put to use.
    pub fn keep(&self, unlocked: &mut Unlocked) -> Result<bool, VaultError> {
        let document = unlocked.ring.document();
        if document.revision() == unlocked.stored {
            return Ok(false);
        }
        self.write(document)?;
        unlocked.stored = document.revision();
        Ok(true)
    }

    /// Writes a document that was changed without its key: narrowed, or destroyed.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&self, document: &DomainKey) -> Result<(), VaultError> {
        files::create_private_dir(&self.directory)?;
        let path = self.path(document.domain());
        // What a destroyed version was wrapped as must not stay in blocks that the file system gives back. A medium that
        // writes elsewhere what is overwritten keeps it all the same: the wrapped key opens with the store's root only.
        let (next, former) = (path.with_extension(NEXT), path.with_extension(FORMER));
        // One that a writer left that died before it was erased.
        files::erase(&former)?;
        files::write_private_atomic(&next, document.to_json().as_bytes())?;
        if path.exists() {
            files::rename_durably(&path, &former)?;
        }
        files::rename_durably(&next, &path)?;
        files::erase(&former)?;
        Ok(())
    }

    fn path(&self, domain: &str) -> PathBuf {
        self.directory.join(format!("{domain}.json"))
    }

    fn read(&self, path: &Path) -> Result<DomainKey, VaultError> {
        let bytes = files::read_private(path)?;
        let text = std::str::from_utf8(&bytes).map_err(|error| self.unreadable(path, error))?;
        if text.len() > DOMAIN_KEY_JSON_MAX {
            return Err(self.unreadable(path, "a domain's key is never that long"));
        }
        let document = DomainKey::parse(text)?;
        if self.path(document.domain()) != path {
            return Err(self.unreadable(path, "it is the key of another domain"));
        }
        Ok(document)
    }

    #[expect(clippy::unused_self, reason = "reads as what the vault says of one of its files")]
    fn unreadable(&self, path: &Path, problem: impl ToString) -> VaultError {
        VaultError::Document { path: path.to_owned(), problem: problem.to_string() }
    }
}

impl Unlocked {
    /// The key.
    pub fn ring(&mut self) -> &mut Keyring {
        &mut self.ring
    }

    /// Its document.
    #[must_use]
    pub fn document(&self) -> &DomainKey {
        self.ring.document()
    }

    /// Revision of the document on the disk; 0 while there is none.
    #[must_use]
    pub fn stored(&self) -> u64 {
        self.stored
    }

    /// Whether there was no such key before.
    #[must_use]
    pub fn is_new(&self) -> bool {
        self.stored == 0
    }
}

/// 32 random bytes, for one use.
///
/// # Errors
/// When the operating system gives none.
pub fn entropy() -> Result<zeroize::Zeroizing<[u8; 32]>, VaultError> {
    match random::<32>() {
        Ok(bytes) => Ok(zeroize::Zeroizing::new(bytes)),
        Err(error) => Err(VaultError::Random(error.to_string())),
    }
}

impl From<VaultError> for ControlError {
    fn from(error: VaultError) -> Self {
        match error {
            VaultError::Envelope(why @ (EnvelopeError::RootUnavailable(_) | EnvelopeError::RootRefused)) => {
                Self::Unavailable(format!("the store of keys does not answer: {why}"))
            }
            VaultError::Envelope(why) => Self::Refused { code: why.code(), detail: why.to_string() },
            VaultError::Random(why) => Self::Random(why),
            error => Self::Unavailable(error.to_string()),
        }
    }
}
