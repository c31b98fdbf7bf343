//! The words of stored secrets: their names and what they are for. The secrets themselves are never here.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::vocabulary::words;

/// Longest name of a secret. Bytes.
pub const NAME_MAX: usize = 64;

words! {
    /// What a secret opens, which decides who may ever have it.
    SecretKind {
        /// A broker's account: for the desk and for nobody else.
        Broker = "broker",
        /// A vendor's data: for whichever agent has a task that fetches from that vendor's source.
        Vendor = "vendor",
    }
}

/// The name of a secret: lower-case letters, digits and `-`, a letter first, at most [`NAME_MAX`] bytes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SecretName(String);

/// The text is no name of a secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "a secret's name is of lower-case letters, digits and -, begins with a letter, and has {NAME_MAX} at most"
)]
pub struct NotAName;

impl SecretName {
    /// Reads a name.
    ///
    /// # Errors
    /// [`NotAName`] when the text is anything else.
    pub fn parse(text: &str) -> Result<Self, NotAName> {
        let letters = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        let first = text.bytes().next().is_some_and(|byte| byte.is_ascii_lowercase());
        if first && text.len() <= NAME_MAX && text.bytes().all(letters) {
            Ok(Self(text.to_owned()))
        } else {
            Err(NotAName)
        }
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for SecretName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for SecretName {
    type Error = NotAName;

    fn try_from(text: String) -> Result<Self, NotAName> {
        Self::parse(&text)
    }
}

impl From<SecretName> for String {
    fn from(name: SecretName) -> Self {
        name.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_has_one_spelling_and_no_path_in_it() {
        assert_eq!(SecretName::parse("paper-broker").map(String::from), Ok("paper-broker".to_owned()));
        for text in ["", "-a", "1a", "A", "a/b", "a.b", "a b", "ä", "a\n", &"a".repeat(NAME_MAX + 1)] {
            assert_eq!(SecretName::parse(text), Err(NotAName), "{text:?}");
        }
    }
}
