//! A stored secret: for whom it is, sealed under its domain's key, and for what it was opened.
//!
//! INVARIANT: what is stored opens only for the purpose that it was stored for. The purpose is part of what the ciphertext
//! is bound to, so changing it in the database makes the secret unreadable instead of giving it to another.

use std::collections::BTreeMap;

use access::secret::{SecretKind, SecretName};
use identity::{PeerClass, SpiffeId};
use keys::envelope::{Ciphertext, EnvelopeError, Place};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::vault::{Unlocked, VaultError, entropy};

/// Longest secret. Bytes.
pub const SECRET_BYTES_MAX: usize = 8 * 1024;
/// Most secrets that are stored.
pub const SECRETS_MAX: usize = 1_024;
/// Most openings that are remembered of one secret; the oldest go first. An opening is for a set of keys, which lives a day,
/// or for the attempt of a task, which lives minutes.
const OPENINGS_MAX: usize = 4_096;

/// For whom a secret is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "PurposeText", into = "PurposeText")]
pub enum Purpose {
    /// A broker's account, for one desk.
    Broker {
        /// The desk.
        desk: SpiffeId,
    },
    /// A vendor's data, for agents with a task that fetches from a source.
    Vendor {
        /// The source.
        source: String,
    },
}

/// A purpose as it crosses a border: kind and holder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PurposeText {
    /// `broker` or `vendor`.
    pub kind: SecretKind,
    /// The desk's SPIFFE ID, or the source's name.
    pub holder: String,
}

/// Why a purpose cannot be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NoPurpose {
    /// A broker's key for somebody who is no desk.
    #[error("a broker's key is for a desk and for nobody else")]
    NotADesk,
    /// The name of no source.
    #[error("a source's name is of letters, digits, -, _ and ., and has 64 at most")]
    NotASource,
}

impl TryFrom<PurposeText> for Purpose {
    type Error = NoPurpose;

    fn try_from(text: PurposeText) -> Result<Self, NoPurpose> {
        match text.kind {
            SecretKind::Broker => {
                let desk: SpiffeId = text.holder.parse().map_err(|_| NoPurpose::NotADesk)?;
                let is_desk = PeerClass::of(&desk) == Some(PeerClass::Desk);
                if is_desk { Ok(Self::Broker { desk }) } else { Err(NoPurpose::NotADesk) }
            }
            SecretKind::Vendor => {
                let letters = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
                let is_name = (1..=64).contains(&text.holder.len()) && text.holder.bytes().all(letters);
                if is_name { Ok(Self::Vendor { source: text.holder }) } else { Err(NoPurpose::NotASource) }
            }
        }
    }
}

impl From<Purpose> for PurposeText {
    fn from(purpose: Purpose) -> Self {
        Self { kind: purpose.kind(), holder: purpose.holder().to_owned() }
    }
}

impl Purpose {
    /// What the secret opens.
    #[must_use]
    pub fn kind(&self) -> SecretKind {
        match self {
            Self::Broker { .. } => SecretKind::Broker,
            Self::Vendor { .. } => SecretKind::Vendor,
        }
    }

    /// The desk's SPIFFE ID, or the source's name.
    #[must_use]
    pub fn holder(&self) -> &str {
        match self {
            Self::Broker { desk } => desk.as_str(),
            Self::Vendor { source } => source,
        }
    }

    /// The security domain under whose key it is sealed.
    #[must_use]
    pub fn domain(&self) -> &'static str {
        match self {
            Self::Broker { .. } => PeerClass::Desk.as_str(),
            Self::Vendor { .. } => PeerClass::Agents.as_str(),
        }
    }
}

/// A secret as it is stored. Nothing of it can be read without its domain's key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StoredSecret {
    /// Name.
    pub name: SecretName,
    /// For whom.
    pub purpose: Purpose,
    /// How often it was stored under this name, this time included.
    pub version: u64,
    /// When, in seconds since the Unix epoch.
    pub stored: i64,
    /// SPIFFE ID of who stored it.
    pub by: String,
    /// The secret, sealed.
    pub ciphertext: Ciphertext,
    /// What this version was opened for, and when, in seconds since the Unix epoch.
    pub opened: BTreeMap<String, i64>,
}

impl StoredSecret {
    /// Seals a secret under its domain's key.
    ///
    /// # Errors
    /// As the key says.
    pub fn seal(
        unlocked: &mut Unlocked,
        name: SecretName,
        purpose: Purpose,
        version: u64,
        value: &[u8],
        (by, now): (&str, i64),
    ) -> Result<Self, VaultError> {
        let row = row(&name, &purpose);
        let place = Place { domain: purpose.domain(), table: TABLE, row: &row, version };
        let ciphertext = unlocked.ring().seal(&place, value, &*entropy()?)?;
        Ok(Self {
            name,
            purpose,
            version,
            stored: now,
            by: by.to_owned(),
            ciphertext,
            opened: BTreeMap::new(),
        })
    }

    /// Opens it. The key is the one of its domain.
    ///
    /// # Errors
    /// As the key says.
    pub fn open(&self, unlocked: &mut Unlocked) -> Result<Zeroizing<Vec<u8>>, EnvelopeError> {
        let row = row(&self.name, &self.purpose);
        let place = Place { domain: self.purpose.domain(), table: TABLE, row: &row, version: self.version };
        unlocked.ring().open(&place, &self.ciphertext)
    }

    /// Wraps it under the active version of its domain's key, if it is under another; says whether it was.
    ///
    /// # Errors
    /// As the key says.
    pub fn rewrap(&mut self, unlocked: &mut Unlocked) -> Result<bool, VaultError> {
        if !unlocked.document().needs_rewrap(&self.ciphertext) {
            return Ok(false);
        }
        let row = row(&self.name, &self.purpose);
        let place = Place { domain: self.purpose.domain(), table: TABLE, row: &row, version: self.version };
        self.ciphertext = unlocked.ring().rewrap(&place, &self.ciphertext, &*entropy()?)?;
        Ok(true)
    }

    /// Remembers that it was opened for something.
    pub fn note_opened(&mut self, reason: &str, now: i64) {
        while self.opened.len() >= OPENINGS_MAX {
            let oldest = self.opened.iter().min_by_key(|(_, at)| **at).map(|(reason, _)| reason.clone());
            let Some(oldest) = oldest else { break };
            self.opened.remove(&oldest);
        }
        self.opened.insert(reason.to_owned(), now);
    }
}

const TABLE: &str = "secrets";

/// What a ciphertext is bound to besides its version: the name, and for whom.
fn row(name: &SecretName, purpose: &Purpose) -> String {
    format!("{name}/{}/{}", purpose.kind(), purpose.holder())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(kind: &str, holder: &str) -> String {
        format!(r#"{{"kind":"{kind}","holder":"{holder}"}}"#)
    }

    #[test]
    fn a_brokers_key_can_be_for_nobody_but_a_desk() {
        let parse = |text: &str| serde_json::from_str::<Purpose>(text);
        let desk = "spiffe://trader.test/desk/1";
        assert_eq!(parse(&text("broker", desk)).unwrap().holder(), desk);
        for other in ["agent/agent-1", "unit/market/1", "operator/owner", "management"] {
            assert!(parse(&text("broker", &format!("spiffe://trader.test/{other}"))).is_err(), "{other}");
        }
        assert!(parse(&text("broker", "desk-1")).is_err());
        assert!(parse(&text("vendor", "large20")).is_ok());
        for source in ["", "a/b", "a b", "ä"] {
            assert!(parse(&text("vendor", source)).is_err(), "{source:?}");
        }
        assert!(parse(&text("bank", desk)).is_err());
    }
}
