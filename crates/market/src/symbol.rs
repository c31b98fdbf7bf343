//! The ticker symbol of an instrument.
//!
//! Owns: which text is a symbol. It doesn't know which symbols exist: that is the market's data.
//!
//! INVARIANT: a symbol is 1 to 12 characters of `A-Z 0-9 . -` and starts with a letter or a digit, so that it
//! is safe in a file name, a URL, a policy and a log line without any quoting.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::MarketError;

/// The longest symbol, in characters.
const SYMBOL_LENGTH_MAX: usize = 12;

/// A ticker symbol.
///
/// ```
/// let symbol: market::Symbol = "BRK.B".parse()?;
/// assert_eq!(symbol.as_str(), "BRK.B");
/// assert!("../etc".parse::<market::Symbol>().is_err());
/// # Ok::<(), market::MarketError>(())
/// ```
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Symbol(Box<str>);

impl Symbol {
    /// The symbol's text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Symbol {
    type Err = MarketError;

    fn from_str(text: &str) -> Result<Self, MarketError> {
        let first =
            text.bytes().next().is_some_and(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit());
        let all = text
            .bytes()
            .all(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit() || matches!(byte, b'.' | b'-'));
        if first && all && text.len() <= SYMBOL_LENGTH_MAX {
            Ok(Self(text.into()))
        } else {
            Err(MarketError::Symbol)
        }
    }
}

impl fmt::Display for Symbol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for Symbol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Symbol({self})")
    }
}

impl AsRef<str> for Symbol {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for Symbol {
    type Error = MarketError;

    fn try_from(text: String) -> Result<Self, MarketError> {
        text.parse()
    }
}

impl From<Symbol> for String {
    fn from(symbol: Symbol) -> Self {
        symbol.0.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_upper_case_text_is_a_symbol() {
        for text in ["A", "BRK.B", "BF-B", "600519.SS"] {
            assert_eq!(text.parse::<Symbol>().unwrap().to_string(), text);
        }
        for text in ["", "aapl", ".A", "-A", "A B", "A/B", "ABCDEFGHIJKLM", "Ä", "A\0"] {
            assert_eq!(text.parse::<Symbol>(), Err(MarketError::Symbol), "{text:?}");
        }
    }
}
