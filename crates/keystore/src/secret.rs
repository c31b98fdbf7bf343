//! What opens a key store: the passphrase of a sealed file or the PIN of a token.
//!
//! Owns: taking it from a file that only its owner can read, and its limits. It knows nothing of what it
//! opens.
//!
//! INVARIANT: the text is erased when dropped and is in no error and no `Debug` output.

use std::fmt;
use std::path::Path;

use zeroize::Zeroizing;

use crate::KeyStoreError;
use crate::files;

/// Shortest passphrase of a sealed file. Characters.
pub const PASSPHRASE_CHARS_MIN: usize = 12;

/// Longest secret. Bytes.
pub const SECRET_BYTES_MAX: usize = 1024;

/// A passphrase or a PIN.
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// Takes a passphrase or a PIN as it was typed.
    #[must_use]
    pub fn new(text: Zeroizing<String>) -> Self {
        Self(text)
    }

    /// Reads it from a file of mode 0600 or stricter. One newline at the end is no part of it.
    ///
    /// # Errors
    /// [`KeyStoreError::File`] when the file cannot be read or others can read it too,
    /// [`KeyStoreError::Secret`] when it is no UTF-8 text.
    pub fn from_file(path: &Path) -> Result<Self, KeyStoreError> {
        let bytes = files::read_private(path)?;
        let text =
            std::str::from_utf8(&bytes).map_err(|_| KeyStoreError::Secret("its file is not UTF-8 text"))?;
        let text = text.strip_suffix('\n').unwrap_or(text);
        let text = text.strip_suffix('\r').unwrap_or(text);
        Ok(Self(Zeroizing::new(text.to_owned())))
    }

    /// The text, when it may be a passphrase.
    pub(crate) fn passphrase(&self) -> Result<&str, KeyStoreError> {
        if self.0.chars().count() < PASSPHRASE_CHARS_MIN {
            return Err(KeyStoreError::Secret("a passphrase has 12 characters or more"));
        }
        self.text()
    }

    /// The text, when it may be a PIN.
    pub(crate) fn pin(&self) -> Result<&str, KeyStoreError> {
        if self.0.is_empty() || self.0.contains('\0') {
            return Err(KeyStoreError::Secret("a PIN is not empty and has no zero byte"));
        }
        self.text()
    }

    fn text(&self) -> Result<&str, KeyStoreError> {
        if self.0.len() > SECRET_BYTES_MAX {
            return Err(KeyStoreError::Secret("it is longer than 1024 bytes"));
        }
        Ok(&self.0)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn file(content: &[u8], mode: u32) -> (tempfile::TempDir, std::path::PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("secret");
        std::fs::write(&path, content).unwrap();
        std::fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
        (directory, path)
    }

    #[test]
    fn exactly_one_newline_is_trimmed() {
        for (content, text) in
            [("a b c ", "a b c "), ("abc\n", "abc"), ("abc\r\n", "abc"), ("abc\n\n", "abc\n"), ("\n", "")]
        {
            let (_keep, path) = file(content.as_bytes(), 0o600);
            assert_eq!(Secret::from_file(&path).unwrap().0.as_str(), text);
        }
    }

    #[test]
    fn a_secret_that_others_can_read_is_refused() {
        for mode in [0o640, 0o604, 0o620, 0o666] {
            let (_keep, path) = file(b"a long enough passphrase", mode);
            let error = Secret::from_file(&path).unwrap_err();
            assert!(error.to_string().contains("chmod 600"), "{error}");
        }
        let (_keep, path) = file(b"a long enough passphrase", 0o400);
        assert!(Secret::from_file(&path).is_ok());
    }

    #[test]
    fn a_passphrase_has_twelve_characters_and_a_pin_one() {
        let secret = |text: &str| Secret::new(Zeroizing::new(text.to_owned()));
        assert!(secret("ääääääääääää").passphrase().is_ok());
        assert!(secret("ääääääääää1").passphrase().is_err(), "eleven characters of 21 bytes");
        assert!(secret("1").pin().is_ok());
        assert!(secret("").pin().is_err());
        assert!(secret("12\u{0}4").pin().is_err());
        assert!(secret(&"x".repeat(1025)).passphrase().is_err());
    }

    #[test]
    fn a_secret_is_never_printed() {
        let secret = Secret::new(Zeroizing::new("canary-7f".to_owned()));
        assert_eq!(format!("{secret:?}"), "Secret");
        let (_keep, path) = file(b"canary-7f\xff", 0o600);
        assert!(!Secret::from_file(&path).unwrap_err().to_string().contains("canary"));
    }
}
