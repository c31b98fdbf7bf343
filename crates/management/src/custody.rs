//! Custody of the root keys: shares among people, and the way back when a passphrase is lost.
//!
//! Works on the files of a system that stands still. Whoever brings a root key back seals it with a passphrase of their own;
//! management notices that at its next start and opens an incident.

use std::path::{Path, PathBuf};

use keys::shares::{Share, recover_from_texts};
use keystore::{KeyStore, KeyStoreError, Secret};
use wire::files;
use wire::layout::{Layout, read_json};

use crate::bootstrap::{BootstrapError, KeysConfig, keys_config, secret};

/// How many shares bring a root key back, unless said otherwise.
pub const SHARES_NEEDED: u8 = 3;
/// How many shares there are, unless said otherwise.
pub const SHARES: u8 = 5;

/// One of the two stores of an installation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Custody {
    /// The store of the authorities' keys, which management opens.
    Authorities,
    /// The store of the root of trust, which lies off the machine.
    Root,
}

impl Custody {
    /// Parses `authorities` or `root`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "authorities" => Some(Self::Authorities),
            "root" => Some(Self::Root),
            _ => None,
        }
    }

    /// The directory of the store.
    #[must_use]
    pub fn directory(self, layout: &Layout) -> PathBuf {
        match self {
            Self::Authorities => layout.authorities(),
            Self::Root => layout.offline_root(),
        }
    }

    fn secret_file(self, config: &mut KeysConfig) -> &mut PathBuf {
        match self {
            Self::Authorities => &mut config.secret_file,
            Self::Root => &mut config.root_secret_file,
        }
    }
}

/// Splits a store's root key among people. Needs the store's passphrase.
///
/// # Errors
/// When the store is in a device, its passphrase is not at hand, or the numbers make no sense.
pub fn shares(
    layout: &Layout,
    custody: Custody,
    needed: u8,
    count: u8,
) -> Result<Vec<Share>, BootstrapError> {
    let mut config: KeysConfig = read_json(&keys_config(layout))?;
    let secret = secret(layout, custody.secret_file(&mut config))?;
    let store = KeyStore::open(&custody.directory(layout), &secret)?;
    Ok(store.root_shares(&secret, needed, count)?)
}

/// Opens a store with shares of its root key, and seals it with the passphrase in a file; the old one opens it no more.
/// `shares` are the shares' texts.
///
/// # Errors
/// When they are too few, do not belong together or to this store, or the store is in a device.
pub fn recover<T: AsRef<str>>(
    layout: &Layout,
    custody: Custody,
    shares: &[T],
    passphrase_file: &Path,
) -> Result<(), BootstrapError> {
    let root = recover_from_texts(shares).map_err(KeyStoreError::from)?;
    let mut config: KeysConfig = read_json(&keys_config(layout))?;
    let passphrase = Secret::from_file(passphrase_file)?;
    KeyStore::recover(&custody.directory(layout), &root, &passphrase)?;
    // From here on the old passphrase opens nothing; where the new one is must be known at the next start.
    passphrase_file.clone_into(custody.secret_file(&mut config));
    let text =
        serde_json::to_vec_pretty(&config).map_err(|error| BootstrapError::Content(error.to_string()))?;
    files::write_private_atomic(&keys_config(layout), &text)?;
    Ok(())
}
