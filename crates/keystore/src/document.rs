//! `keystore.json`: which kind of store a directory has, and where its token is.
//!
//! It has no secret in it, but says which module is loaded into the process: the directory is its owner's
//! alone, and the document is read only while it is so.
//!
//! INVARIANT: a document of a later version, or with a field we do not know, is refused.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::files;
use crate::{FileError, KeyStoreError};

const NAME: &str = "keystore.json";
const VERSION: u32 = 1;
const ID_DIGITS: usize = 16;
const TOKEN_LABEL_BYTES_MAX: usize = 32;

/// Where the keys are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub(crate) enum Place {
    File {},
    #[serde(rename_all = "kebab-case")]
    Pkcs11 {
        module: PathBuf,
        token_label: String,
        token_serial: String,
    },
}

/// The document as it stands in the file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) struct Document {
    version: u32,
    id: String,
    keys: Place,
}

impl Document {
    pub(crate) fn new(id: String, keys: Place) -> Self {
        Self { version: VERSION, id, keys }
    }

    pub(crate) fn id(&self) -> &str {
        &self.id
    }

    pub(crate) fn place(&self) -> &Place {
        &self.keys
    }

    pub(crate) fn path(directory: &Path) -> PathBuf {
        directory.join(NAME)
    }

    /// Whether the directory has one, of whatever content.
    pub(crate) fn exists(directory: &Path) -> bool {
        Self::path(directory).symlink_metadata().is_ok()
    }

    pub(crate) fn write(&self, directory: &Path) -> Result<(), KeyStoreError> {
        let path = Self::path(directory);
        let mut text = serde_json::to_vec_pretty(self)
            .map_err(|error| KeyStoreError::Document { path: path.clone(), why: error.to_string() })?;
        text.push(b'\n');
        Ok(files::create_private(&path, &text)?)
    }

    pub(crate) fn read(directory: &Path) -> Result<Self, KeyStoreError> {
        let path = Self::path(directory);
        let bytes = match files::read_private(&path) {
            Err(FileError::Missing { path }) => {
                return Err(KeyStoreError::Document { path, why: "it is not there".to_owned() });
            }
            other => other?,
        };
        let wrong = |why: String| KeyStoreError::Document { path: path.clone(), why };
        let document: Self = serde_json::from_slice(&bytes).map_err(|error| wrong(error.to_string()))?;
        if document.version != VERSION {
            return Err(wrong(format!("its version is {}, not {VERSION}", document.version)));
        }
        let hex = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        if document.id.len() != ID_DIGITS || !document.id.bytes().all(hex) {
            return Err(wrong("its id is not 16 hexadecimal digits".to_owned()));
        }
        if let Place::Pkcs11 { module, token_label, token_serial } = &document.keys {
            if !module.is_absolute() {
                return Err(wrong("the path of its module is not absolute".to_owned()));
            }
            if token_label.len() > TOKEN_LABEL_BYTES_MAX || token_serial.len() > TOKEN_LABEL_BYTES_MAX {
                return Err(wrong("its token has no such label or serial number".to_owned()));
            }
        }
        Ok(document)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Document, KeyStoreError> {
        let directory = tempfile::tempdir().unwrap();
        files::create_private(&Document::path(directory.path()), text.as_bytes()).unwrap();
        Document::read(directory.path())
    }

    #[test]
    fn a_document_reads_as_it_was_written() {
        let pkcs11 = Place::Pkcs11 {
            module: "/usr/lib/x.so".into(),
            token_label: "label".to_owned(),
            token_serial: "serial".to_owned(),
        };
        for place in [Place::File {}, pkcs11] {
            let directory = tempfile::tempdir().unwrap();
            let document = Document::new("0123456789abcdef".to_owned(), place);
            document.write(directory.path()).unwrap();
            assert_eq!(Document::read(directory.path()).unwrap(), document);
            assert!(matches!(
                document.write(directory.path()),
                Err(KeyStoreError::File(FileError::Exists { .. }))
            ));
        }
    }

    #[test]
    fn a_document_that_is_not_ours_is_refused() {
        let good = r#"{"version":1,"id":"0123456789abcdef","keys":{"file":{}}}"#;
        assert!(read(good).is_ok());
        for (from, to) in [
            (r#""version":1"#, r#""version":2"#),
            ("abcdef", "abcdeg"),
            ("abcdef", "abcde"),
            ("0123", "../3"),
            ("{}", r#"{"passphrase":"x"}"#),
            (r#""version":1,"#, r#""version":1,"pin":"1234","#),
            (r#"{"file":{}}"#, r#"{"pkcs11":{"module":"x.so","token-label":"a","token-serial":"b"}}"#),
            (r#"{"file":{}}"#, r#"{"cloud":{}}"#),
            ("}}}", "}}"),
        ] {
            assert!(read(&good.replace(from, to)).is_err(), "{from} -> {to}");
        }
    }
}
