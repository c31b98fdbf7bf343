//! Where the keys of authorities live: a device behind PKCS#11, or a file sealed with a passphrase.
//!
//! Owns: making, finding, using and destroying the signing keys of authorities, and the root key under which
//! the keys of domains are wrapped. Which of the two places it is stands in `keystore.json` in the store's
//! directory; no secret does. It refuses to know what is signed and what is wrapped.
//!
//! Calls block. A token's module is called from one thread of its own, one call at a time, and a caller waits
//! for it [`CALL_WAIT`] at most: a token that hangs makes its callers fail, not hang.
//!
//! INVARIANT: no soft fallback. When the token is gone, its PIN wrong or its session dead, every operation
//! fails; the key that signs is the key that was asked for, or nothing is signed.

mod document;
mod error;
mod file;
mod files;
mod label;
mod pkcs11;
mod sealed;
mod secret;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use keys::Signer;
use keys::envelope::{RootError, Wrap};
use keys::shares::Share;
use zeroize::Zeroizing;

use crate::document::{Document, Place};
use crate::file::FileStore;
use crate::pkcs11::TokenStore;

pub use error::KeyStoreError;
pub use files::FileError;
pub use label::LABEL_BYTES_MAX;
pub use pkcs11::{CALL_WAIT, RECONNECT_EVERY};
pub use secret::{PASSPHRASE_CHARS_MIN, SECRET_BYTES_MAX, Secret};

/// Most signing keys in one store.
pub const KEYS_MAX: usize = 1024;

/// Longest message that a signer signs. Bytes.
pub const MESSAGE_BYTES_MAX: usize = 1024 * 1024;

/// Longest secret that the root key wraps, and longest data that it is bound to. Bytes.
pub const WRAPPED_BYTES_MAX: usize = 16 * 1024;

/// Where a new store keeps its keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Config {
    /// In files, under a root key that a passphrase seals.
    File,
    /// In a token, which makes the keys itself and never lets them out.
    Pkcs11 {
        /// Absolute path of the PKCS#11 module. It is loaded into this process: nobody else may be able to
        /// write it.
        module: PathBuf,
        /// Label of the token. Exactly one token of the module may have it.
        token_label: String,
    },
}

/// What a store is; nothing secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Description {
    /// `file` or `pkcs11`.
    pub kind: &'static str,
    /// The store's identifier: 16 hexadecimal digits, random. A token's objects have it in their labels.
    pub id: String,
    /// The directory of `keystore.json`.
    pub directory: PathBuf,
    /// Path of the PKCS#11 module; `None` for a file.
    pub module: Option<PathBuf>,
    /// Label of the token; `None` for a file.
    pub token_label: Option<String>,
    /// Serial number of the token; `None` for a file.
    pub token_serial: Option<String>,
    /// SHA-256 of the sealed root key that was opened: another as soon as another passphrase seals it. `None`
    /// for a token.
    pub seal: Option<String>,
}

/// The keys of authorities, opened. Shared between threads as it is.
///
/// Drop it, its signers and its [`Root`]s before the process ends: the last of them ends the session, and a
/// module that is still at work while the process comes down may crash it.
pub struct KeyStore {
    directory: PathBuf,
    document: Document,
    place: Opened,
}

enum Opened {
    File(Arc<FileStore>),
    Token(Arc<TokenStore>),
}

impl KeyStore {
    /// Makes a store with a new root key, and opens it. The directory is made when it is not there.
    ///
    /// # Errors
    /// [`KeyStoreError::StoreExists`] when the directory has a store already; [`KeyStoreError::Secret`] when
    /// the secret is too short; [`KeyStoreError::WrongPin`], [`KeyStoreError::Unavailable`] and
    /// [`KeyStoreError::Unfit`] from the token; [`KeyStoreError::File`].
    pub fn create(directory: &Path, config: &Config, secret: &Secret) -> Result<Self, KeyStoreError> {
        keys::leaving_nothing(|| Self::make(directory, config, secret))
    }

    fn make(directory: &Path, config: &Config, secret: &Secret) -> Result<Self, KeyStoreError> {
        files::create_private_dir(directory)?;
        if Document::exists(directory) {
            return Err(KeyStoreError::StoreExists { directory: directory.to_owned() });
        }
        let mut id = [0; 8];
        random(&mut id)?;
        let id = keys::to_hex(&id);
        let (place, document) = match config {
            Config::File => {
                let store = FileStore::create(directory, &id, secret.passphrase()?)?;
                (Opened::File(Arc::new(store)), Document::new(id, Place::File {}))
            }
            Config::Pkcs11 { module, token_label } => {
                let (store, serial) = TokenStore::create(module, token_label, &id, secret.pin()?)?;
                let place = Place::Pkcs11 {
                    module: store.module().to_owned(),
                    token_label: token_label.clone(),
                    token_serial: serial,
                };
                (Opened::Token(Arc::new(store)), Document::new(id, place))
            }
        };
        // Written last: a store without its document does not exist. Of two makers one gets the name.
        if let Err(error) = document.write(directory) {
            match &place {
                Opened::File(store) => store.discard(),
                Opened::Token(store) => store.discard(),
            }
            return Err(match error {
                KeyStoreError::File(FileError::Exists { .. }) => {
                    KeyStoreError::StoreExists { directory: directory.to_owned() }
                }
                error => error,
            });
        }
        Ok(Self { directory: directory.to_owned(), document, place })
    }

    /// Opens the store that a directory has.
    ///
    /// # Errors
    /// [`KeyStoreError::Document`] when `keystore.json` is not as we write it;
    /// [`KeyStoreError::WrongPassphrase`]; [`KeyStoreError::WrongPin`], [`KeyStoreError::Unavailable`] and
    /// [`KeyStoreError::Unfit`] from the token; [`KeyStoreError::File`].
    pub fn open(directory: &Path, secret: &Secret) -> Result<Self, KeyStoreError> {
        files::check_private_dir(directory)?;
        let document = Document::read(directory)?;
        let place = match document.place() {
            Place::File {} => {
                let opened = || FileStore::open(directory, document.id(), secret.passphrase()?);
                Opened::File(Arc::new(keys::leaving_nothing(opened)?))
            }
            Place::Pkcs11 { module, token_label, token_serial } => {
                let store =
                    TokenStore::open(module, token_label, token_serial, document.id(), secret.pin()?)?;
                Opened::Token(Arc::new(store))
            }
        };
        Ok(Self { directory: directory.to_owned(), document, place })
    }

    /// The existing key with a label.
    ///
    /// The signer holds the public key; its private key stays where it is, in the token or, for the file, in
    /// memory. A signer of a token looks at every signature before it hands it out: one that does not verify
    /// under the public key is an error.
    ///
    /// # Errors
    /// [`KeyStoreError::Label`], [`KeyStoreError::NoSuchKey`], [`KeyStoreError::Refused`] when its file was
    /// altered or belongs to another label, [`KeyStoreError::Unfit`] when the token would let the key out,
    /// [`KeyStoreError::Unavailable`], [`KeyStoreError::WrongPin`], [`KeyStoreError::File`].
    pub fn signer(&self, label: &str) -> Result<Arc<dyn Signer>, KeyStoreError> {
        label::check(label)?;
        match &self.place {
            Opened::File(store) => keys::leaving_nothing(|| store.signer(label)),
            Opened::Token(store) => store.signer(label),
        }
    }

    /// Makes a key with a label that has none. Of several callers with the same label exactly one succeeds.
    ///
    /// After [`KeyStoreError::Unavailable`] the key may have been made all the same; [`KeyStore::signer`]
    /// tells.
    ///
    /// # Errors
    /// [`KeyStoreError::KeyExists`], and those of [`KeyStore::signer`].
    pub fn create_signer(&self, label: &str) -> Result<Arc<dyn Signer>, KeyStoreError> {
        label::check(label)?;
        match &self.place {
            Opened::File(store) => keys::leaving_nothing(|| store.create_signer(label)),
            Opened::Token(store) => store.create_signer(label),
        }
    }

    /// Destroys a key for ever. Signers of this store that have it fail from now on.
    ///
    /// # Errors
    /// Those of [`KeyStore::signer`]. A damaged or unfit key is destroyed without complaint.
    pub fn destroy_signer(&self, label: &str) -> Result<(), KeyStoreError> {
        label::check(label)?;
        match &self.place {
            Opened::File(store) => store.destroy_signer(label),
            Opened::Token(store) => store.destroy_signer(label),
        }
    }

    /// The labels of all signing keys, sorted.
    ///
    /// # Errors
    /// [`KeyStoreError::Unavailable`], [`KeyStoreError::WrongPin`], [`KeyStoreError::File`].
    pub fn labels(&self) -> Result<Vec<String>, KeyStoreError> {
        match &self.place {
            Opened::File(store) => store.labels(),
            Opened::Token(store) => store.labels(),
        }
    }

    /// The root key, for wrapping the keys of domains.
    #[must_use]
    pub fn root(&self) -> Root {
        Root(match &self.place {
            Opened::File(store) => Opened::File(Arc::clone(store)),
            Opened::Token(store) => Opened::Token(Arc::clone(store)),
        })
    }

    /// Splits the root key of a store in files among people: `needed` of `count` shares bring it back. Asks
    /// for the passphrase again, because an open store is not enough for this.
    ///
    /// # Errors
    /// [`KeyStoreError::InToken`], [`KeyStoreError::WrongPassphrase`], [`KeyStoreError::Shares`],
    /// [`KeyStoreError::File`].
    pub fn root_shares(&self, secret: &Secret, needed: u8, count: u8) -> Result<Vec<Share>, KeyStoreError> {
        match &self.place {
            Opened::File(store) => store.root_shares(secret.passphrase()?, needed, count),
            Opened::Token(_) => Err(KeyStoreError::InToken),
        }
    }

    /// Opens a store in files whose passphrase was lost, with the root key that shares brought back, and
    /// gives it a new passphrase. The old one opens it no more.
    ///
    /// # Errors
    /// [`KeyStoreError::Refused`] when it is not this store's root key; [`KeyStoreError::InToken`],
    /// [`KeyStoreError::Secret`], [`KeyStoreError::Document`], [`KeyStoreError::File`].
    pub fn recover(directory: &Path, root: &[u8; 32], new_secret: &Secret) -> Result<Self, KeyStoreError> {
        files::check_private_dir(directory)?;
        let document = Document::read(directory)?;
        match document.place() {
            Place::Pkcs11 { .. } => Err(KeyStoreError::InToken),
            Place::File {} => {
                let store = FileStore::recover(directory, document.id(), root, new_secret.passphrase()?)?;
                let place = Opened::File(Arc::new(store));
                Ok(Self { directory: directory.to_owned(), document, place })
            }
        }
    }

    /// Whether the store could be used right now: the token answers, is logged in and has its root key; the
    /// files are there, private and those that were opened. Cheap: fit to be asked every second.
    ///
    /// # Errors
    /// [`KeyStoreError::Unavailable`], [`KeyStoreError::WrongPin`], [`KeyStoreError::File`],
    /// [`KeyStoreError::Document`] when `keystore.json` is no longer the one that was opened.
    pub fn health(&self) -> Result<(), KeyStoreError> {
        files::check_private_dir(&self.directory)?;
        if Document::read(&self.directory)? != self.document {
            return Err(KeyStoreError::Document {
                path: Document::path(&self.directory),
                why: "it was changed after the store was opened".to_owned(),
            });
        }
        match &self.place {
            Opened::File(store) => store.health(),
            Opened::Token(store) => store.health(),
        }
    }

    /// What this store is. Asks neither token nor files.
    #[must_use]
    pub fn describe(&self) -> Description {
        let (kind, module, token_label, token_serial) = match self.document.place() {
            Place::File {} => ("file", None, None, None),
            Place::Pkcs11 { module, token_label, token_serial } => {
                ("pkcs11", Some(module.clone()), Some(token_label.clone()), Some(token_serial.clone()))
            }
        };
        Description {
            kind,
            id: self.document.id().to_owned(),
            directory: self.directory.clone(),
            module,
            token_label,
            token_serial,
            seal: match &self.place {
                Opened::File(store) => Some(store.seal().to_string()),
                Opened::Token(_) => None,
            },
        }
    }
}

impl fmt::Debug for KeyStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("KeyStore").field(&self.describe()).finish()
    }
}

/// The root key of a store. It wraps the keys of domains and is seen by nobody.
pub struct Root(Opened);

impl Wrap for Root {
    fn wrap(&self, aad: &[u8], plaintext: &[u8], nonce: &[u8; 12]) -> Result<Vec<u8>, RootError> {
        if plaintext.len() > WRAPPED_BYTES_MAX || aad.len() > WRAPPED_BYTES_MAX {
            return Err(RootError::Refused);
        }
        match &self.0 {
            Opened::File(store) => store.root().wrap(aad, plaintext, nonce),
            Opened::Token(store) => store.wrap(aad, plaintext, nonce).map_err(root_error),
        }
    }

    fn unwrap(&self, aad: &[u8], wrapped: &[u8]) -> Result<Zeroizing<Vec<u8>>, RootError> {
        if wrapped.len() > WRAPPED_BYTES_MAX + 64 || aad.len() > WRAPPED_BYTES_MAX {
            return Err(RootError::Refused);
        }
        match &self.0 {
            Opened::File(store) => store.root().unwrap(aad, wrapped),
            Opened::Token(store) => store.unwrap(aad, wrapped).map_err(root_error),
        }
    }
}

impl fmt::Debug for Root {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Root")
    }
}

fn root_error(error: KeyStoreError) -> RootError {
    match error {
        KeyStoreError::Refused { .. } => RootError::Refused,
        // Everything else is the token's trouble, and may pass.
        other => RootError::Unavailable(other.to_string()),
    }
}

fn random(bytes: &mut [u8]) -> Result<(), KeyStoreError> {
    getrandom::fill(bytes).map_err(|error| KeyStoreError::Unavailable {
        why: format!("the operating system gives no random numbers: {error}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_share_a_store_and_what_it_hands_out() {
        fn shared<T: Send + Sync>() {}
        shared::<KeyStore>();
        shared::<Root>();
        shared::<KeyStoreError>();
    }
}
