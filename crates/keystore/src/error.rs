//! What can go wrong with a key store.
//!
//! INVARIANT: no error repeats a secret, a wrapped key or what was to be signed.

use std::path::PathBuf;

use keys::shares::ShareError;

use crate::FileError;

/// What can go wrong with a key store.
#[derive(Debug, thiserror::Error)]
pub enum KeyStoreError {
    /// The label is no label.
    #[error("a label has 1 to 64 characters of a-z, 0-9, `-`, `.` and `/`")]
    Label,
    /// No key has this label.
    #[error("there is no key {label}")]
    NoSuchKey {
        /// Which label.
        label: String,
    },
    /// A key has this label already.
    #[error("there is a key {label} already")]
    KeyExists {
        /// Which label.
        label: String,
    },
    /// The directory has a store already.
    #[error("{} has a key store already", directory.display())]
    StoreExists {
        /// Which directory.
        directory: PathBuf,
    },
    /// The token is gone, its session dead or its module silent. Nothing was done in its place; ask again
    /// later.
    #[error("the key store is unavailable: {why}")]
    Unavailable {
        /// What the module said.
        why: String,
    },
    /// The token refused the PIN. It is not tried again until the store is opened again, because a token
    /// locks after some wrong ones.
    #[error("the token refused the PIN; it will not be tried again until the key store is opened again")]
    WrongPin,
    /// The passphrase is wrong, or the sealed root key was altered: the two cannot be told apart.
    #[error("the passphrase does not open the root key, or its file was altered")]
    WrongPassphrase,
    /// A wrapped key was altered, or belongs elsewhere.
    #[error("{what} was altered or does not belong here")]
    Refused {
        /// What did not open.
        what: String,
    },
    /// The token's key is not what we make: it could leave the token, came from outside, or is there twice.
    #[error("the token's key {label} is unfit: {why}")]
    Unfit {
        /// Which label.
        label: String,
        /// Why.
        why: &'static str,
    },
    /// The passphrase or the PIN cannot be one.
    #[error("the secret is unusable: {0}")]
    Secret(&'static str),
    /// `keystore.json` is not as we write it.
    #[error("{} is unusable: {why}", path.display())]
    Document {
        /// Where it stands.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// More than the store takes.
    #[error("the key store takes {what} at most")]
    TooMuch {
        /// The limit, with its unit.
        what: &'static str,
    },
    /// The root key cannot be split so.
    #[error(transparent)]
    Shares(#[from] ShareError),
    /// A root key in a token never leaves it: it has neither shares nor a passphrase.
    #[error("the root key is in a token and never leaves it; copy the token with its maker's tool")]
    InToken,
    /// A private file or directory.
    #[error(transparent)]
    File(#[from] FileError),
}

impl KeyStoreError {
    pub(crate) fn unavailable(why: impl Into<String>) -> Self {
        Self::Unavailable { why: why.into() }
    }

    pub(crate) fn no_such_key(label: &str) -> Self {
        Self::NoSuchKey { label: label.to_owned() }
    }
}
