//! The store in files: a root key that a passphrase seals, and signing keys wrapped under it.
//!
//! `root-<id>.sealed` is the root key, `root-<id>.check` says whether a key is that root key,
//! `keys/<label>.key` is the seed of a signing key. Each wrapped seed is bound to the store's identifier and
//! its label, so a file that was moved to another name or another store does not open. Opened keys are in
//! memory until their last signer is dropped.
//!
//! INVARIANT: no seed, no root key and no passphrase is ever written in the clear; a destroyed key signs no
//! more, not even with a signer that was handed out before.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, Weak};

use keys::envelope::{Wrap as _, WrappingKey};
use keys::shares::{self, Share};
use keys::{Digest, SignError, Signer, SigningKey, VerifyingKey};
use zeroize::Zeroizing;

use crate::files::{self, FileError};
use crate::{KEYS_MAX, KeyStoreError, MESSAGE_BYTES_MAX, label, random, sealed};

const KEYS: &str = "keys";

/// First bytes of a key's file.
const MAGIC: &[u8] = b"trader-key-1\n";

/// Keys of one store in files.
pub(crate) struct FileStore {
    directory: PathBuf,
    id: String,
    root: WrappingKey,
    /// Digest of the sealed root key that was opened.
    sealed: Digest,
    opened: Mutex<BTreeMap<String, Weak<FileKey>>>,
}

struct FileKey {
    public: VerifyingKey,
    /// Taken out when the key is destroyed.
    key: RwLock<Option<SigningKey>>,
}

impl FileStore {
    pub(crate) fn create(directory: &Path, id: &str, passphrase: &str) -> Result<Self, KeyStoreError> {
        files::create_private_dir(&directory.join(KEYS))?;
        let mut root = Zeroizing::new([0; 32]);
        random(&mut *root)?;
        let text = sealed::seal(passphrase, &root)?;
        let mut nonce = [0; 12];
        random(&mut nonce)?;
        let check = WrappingKey::from_bytes(&root).wrap(&check_binding(id), b"", &nonce);
        let check = check.map_err(|_| KeyStoreError::WrongPassphrase)?;
        files::create_private(&check_path(directory, id), &check)?;
        files::create_private(&root_path(directory, id), text.as_bytes())?;
        // Read back: what cannot be opened must not become a store.
        Self::open(directory, id, passphrase)
    }

    pub(crate) fn open(directory: &Path, id: &str, passphrase: &str) -> Result<Self, KeyStoreError> {
        files::check_private_dir(&directory.join(KEYS))?;
        let text = files::read_private(&root_path(directory, id))?;
        let root = WrappingKey::from_bytes(&*sealed::open(passphrase, &text)?);
        check_root(&root, directory, id)?;
        Ok(Self {
            directory: directory.to_owned(),
            id: id.to_owned(),
            root,
            sealed: Digest::of(&text),
            opened: Mutex::default(),
        })
    }

    /// Removes the root key of a store that could not be made to the end.
    pub(crate) fn discard(&self) {
        let _ = files::remove(&root_path(&self.directory, &self.id));
        let _ = files::remove(&check_path(&self.directory, &self.id));
    }

    /// Seals the root key anew with another passphrase. It must be this store's.
    pub(crate) fn recover(
        directory: &Path,
        id: &str,
        root: &[u8; 32],
        passphrase: &str,
    ) -> Result<Self, KeyStoreError> {
        check_root(&WrappingKey::from_bytes(root), directory, id)?;
        let text = sealed::seal(passphrase, root)?;
        files::replace_private(&root_path(directory, id), text.as_bytes())?;
        Self::open(directory, id, passphrase)
    }

    /// Splits the root key, which only the passphrase brings out.
    pub(crate) fn root_shares(
        &self,
        passphrase: &str,
        needed: u8,
        count: u8,
    ) -> Result<Vec<Share>, KeyStoreError> {
        let text = files::read_private(&root_path(&self.directory, &self.id))?;
        let root = sealed::open(passphrase, &text)?;
        check_root(&WrappingKey::from_bytes(&root), &self.directory, &self.id)?;
        let mut entropy = Zeroizing::new([0; 32]);
        random(&mut *entropy)?;
        Ok(shares::split(&root, needed, count, &entropy)?)
    }

    /// Digest of the sealed root key that was opened.
    pub(crate) fn seal(&self) -> &Digest {
        &self.sealed
    }

    pub(crate) fn root(&self) -> &WrappingKey {
        &self.root
    }

    pub(crate) fn signer(&self, label: &str) -> Result<Arc<dyn Signer>, KeyStoreError> {
        let mut opened = self.opened();
        // Read each time, so that a file that has gone or was exchanged is noticed.
        let key = Arc::new(FileKey::new(self.read(label)?));
        if let Some(known) = opened.get(label).and_then(Weak::upgrade)
            && known.public == key.public
        {
            return Ok(known);
        }
        Ok(self.remember(&mut opened, label, key))
    }

    pub(crate) fn create_signer(&self, label: &str) -> Result<Arc<dyn Signer>, KeyStoreError> {
        let mut opened = self.opened();
        if self.labels()?.len() >= KEYS_MAX {
            return Err(KeyStoreError::TooMuch { what: "1024 signing keys" });
        }
        let (mut seed, mut nonce) = (Zeroizing::new([0; 32]), [0; 12]);
        random(&mut *seed)?;
        random(&mut nonce)?;
        let wrapped = self.root.wrap(&self.binding(label), &*seed, &nonce).map_err(|_| refused(label))?;
        match files::create_private(&self.path(label), &[MAGIC, &wrapped].concat()) {
            Err(FileError::Exists { .. }) => Err(KeyStoreError::KeyExists { label: label.to_owned() }),
            Err(error) => Err(error.into()),
            Ok(()) => {
                let key = Arc::new(FileKey::new(SigningKey::from_seed(&seed)));
                Ok(self.remember(&mut opened, label, key))
            }
        }
    }

    pub(crate) fn destroy_signer(&self, label: &str) -> Result<(), KeyStoreError> {
        let mut opened = self.opened();
        match files::remove(&self.path(label)) {
            Err(FileError::Missing { .. }) => return Err(self.missing(label)),
            other => other?,
        }
        if let Some(key) = opened.remove(label).and_then(|key| key.upgrade()) {
            *key.key.write().unwrap_or_else(PoisonError::into_inner) = None;
        }
        Ok(())
    }

    pub(crate) fn labels(&self) -> Result<Vec<String>, KeyStoreError> {
        let directory = self.directory.join(KEYS);
        files::check_private_dir(&directory)?;
        let names = files::names(&directory)?;
        let mut labels: Vec<_> = names.iter().filter_map(|name| label::of_file_name(name)).collect();
        labels.sort_unstable();
        Ok(labels)
    }

    pub(crate) fn health(&self) -> Result<(), KeyStoreError> {
        files::check_private_dir(&self.directory.join(KEYS))?;
        let path = root_path(&self.directory, &self.id);
        match files::read_private(&path) {
            Ok(text) if Digest::of(&text) == self.sealed => Ok(()),
            Ok(_) => Err(KeyStoreError::Refused { what: path.display().to_string() }),
            Err(FileError::Missing { path }) => {
                Err(KeyStoreError::unavailable(format!("{} is gone", path.display())))
            }
            Err(error) => Err(error.into()),
        }
    }

    fn read(&self, label: &str) -> Result<SigningKey, KeyStoreError> {
        let bytes = match files::read_private(&self.path(label)) {
            Err(FileError::Missing { .. }) => return Err(self.missing(label)),
            other => other?,
        };
        let wrapped = bytes.strip_prefix(MAGIC).ok_or_else(|| refused(label))?;
        let seed = self.root.unwrap(&self.binding(label), wrapped).map_err(|_| refused(label))?;
        let seed: &[u8; 32] = seed.as_slice().try_into().map_err(|_| refused(label))?;
        Ok(SigningKey::from_seed(seed))
    }

    /// A file that is not there is no key only while the store is there.
    fn missing(&self, label: &str) -> KeyStoreError {
        self.health().err().unwrap_or_else(|| KeyStoreError::no_such_key(label))
    }

    fn remember(
        &self,
        opened: &mut MutexGuard<'_, BTreeMap<String, Weak<FileKey>>>,
        label: &str,
        key: Arc<FileKey>,
    ) -> Arc<dyn Signer> {
        opened.retain(|_, key| key.strong_count() > 0);
        opened.insert(label.to_owned(), Arc::downgrade(&key));
        key
    }

    fn opened(&self) -> MutexGuard<'_, BTreeMap<String, Weak<FileKey>>> {
        self.opened.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn path(&self, label: &str) -> PathBuf {
        self.directory.join(KEYS).join(label::file_name(label))
    }

    fn binding(&self, label: &str) -> Vec<u8> {
        format!("trader keystore signing key\n{}\n{label}", self.id).into_bytes()
    }
}

impl FileKey {
    fn new(key: SigningKey) -> Self {
        Self { public: key.verifying_key(), key: RwLock::new(Some(key)) }
    }
}

impl Signer for FileKey {
    fn verifying_key(&self) -> VerifyingKey {
        self.public
    }

    fn sign(&self, message: &[u8]) -> Result<[u8; 64], SignError> {
        let fail = |why: &str| SignError { key: self.public.id(), why: why.to_owned() };
        if message.len() > MESSAGE_BYTES_MAX {
            return Err(fail("the message is longer than 1 MiB"));
        }
        let key = self.key.read().unwrap_or_else(PoisonError::into_inner);
        key.as_ref().map(|key| key.sign(message)).ok_or_else(|| fail("the key was destroyed"))
    }
}

fn root_path(directory: &Path, id: &str) -> PathBuf {
    directory.join(format!("root-{id}.sealed"))
}

fn check_path(directory: &Path, id: &str) -> PathBuf {
    directory.join(format!("root-{id}.check"))
}

fn check_binding(id: &str) -> Vec<u8> {
    format!("trader keystore root key\n{id}").into_bytes()
}

/// Refuses a key that is not the root key of this store.
fn check_root(root: &WrappingKey, directory: &Path, id: &str) -> Result<(), KeyStoreError> {
    let path = check_path(directory, id);
    let check = files::read_private(&path)?;
    match root.unwrap(&check_binding(id), &check) {
        Ok(_) => Ok(()),
        Err(_) => Err(KeyStoreError::Refused { what: path.display().to_string() }),
    }
}

fn refused(label: &str) -> KeyStoreError {
    KeyStoreError::Refused { what: format!("the key file of {label}") }
}

#[cfg(test)]
mod tests;
