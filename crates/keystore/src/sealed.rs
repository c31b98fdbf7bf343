//! The root key of a store in files, sealed with its passphrase.
//!
//! Hands randomness to [`keys::sealed_file`] and says in our words what went wrong.
//!
//! INVARIANT: a wrong passphrase and an altered document are one and the same error.

use keys::sealed_file::{Cost, SealedFile, SealedFileError};
use zeroize::Zeroizing;

use crate::{KeyStoreError, random};

/// The sealed root key, as text.
pub(crate) fn seal(passphrase: &str, root: &[u8; 32]) -> Result<String, KeyStoreError> {
    let (mut salt, mut nonce) = ([0; 16], [0; 12]);
    random(&mut salt)?;
    random(&mut nonce)?;
    // Tests of this crate open hundreds of stores.
    let cost = if cfg!(test) { Cost::least() } else { Cost::default() };
    let sealed = SealedFile::seal(root, passphrase, cost, &salt, &nonce).map_err(|error| said(&error))?;
    Ok(sealed.to_json())
}

/// The root key.
pub(crate) fn open(passphrase: &str, text: &[u8]) -> Result<Zeroizing<[u8; 32]>, KeyStoreError> {
    let text = std::str::from_utf8(text).map_err(|_| KeyStoreError::WrongPassphrase)?;
    SealedFile::parse(text).and_then(|sealed| sealed.open(passphrase)).map_err(|error| said(&error))
}

fn said(error: &SealedFileError) -> KeyStoreError {
    match error {
        SealedFileError::Memory => {
            KeyStoreError::unavailable("there is not enough memory to open the root key")
        }
        SealedFileError::Passphrase => KeyStoreError::Secret("a passphrase has 12 characters to 1024 bytes"),
        SealedFileError::Document | SealedFileError::Parameters | SealedFileError::Refused => {
            KeyStoreError::WrongPassphrase
        }
    }
}
