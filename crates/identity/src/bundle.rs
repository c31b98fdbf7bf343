//! The trust bundle: every public key and authority of the installation, in one signed statement.
//!
//! Signed as the very bytes that are sent, so that nobody has to agree on how JSON is written. A receiver
//! checks the root's signature before it parses, and the version before it replaces what it holds.
//!
//! INVARIANT: a [`Bundle`] that left [`SignedBundle::verify`] was signed by the root and holds only
//! authorities that the root signed, each under its own class.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use keys::{Signer, VerifyingKey};
use serde::{Deserialize, Serialize};

use crate::spiffe::is_trust_domain;
use crate::{AuthorityCertificate, IdentityError, PeerClass};

/// Longest bundle, in bytes of its text.
pub const BUNDLE_BYTES_MAX: usize = 64 * 1024;

/// Most keys in a list.
const KEYS_MAX: usize = 32;

/// Most authorities of one class: the one that issues, and those that it replaces.
const AUTHORITIES_MAX: usize = 3;

/// Keeps a bundle's signature from being taken for that of anything else the root might sign.
const CONTEXT: &[u8] = b"trader-bundle-1\n";

/// Whom everybody trusts for what.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bundle {
    /// The installation.
    pub trust_domain: String,
    /// Grows with every change; never decreases.
    pub version: u64,
    /// Certificates (DER, base64) of each class's authorities, the one that issues first. There are two while one is
    /// being replaced.
    pub authorities: BTreeMap<PeerClass, Vec<String>>,
    /// Keys that sign grants, 64 hexadecimal digits each.
    pub grant_keys: Vec<String>,
    /// Key that signs the log's heads, 64 hexadecimal digits.
    pub log_key: String,
    /// Keys that sign the manifest of modules, 64 hexadecimal digits each.
    pub release_keys: Vec<String>,
    /// How many different release keys must have signed.
    pub release_threshold: u32,
    /// Whether no connection is made or taken without the hybrid post-quantum key exchange.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub require_pq: bool,
}

impl Bundle {
    /// The certificates of a class's authorities, the one that issues first; none when the class has none.
    #[must_use]
    pub fn authorities(&self, class: PeerClass) -> Vec<AuthorityCertificate> {
        let encoded = self.authorities.get(&class).map(Vec::as_slice).unwrap_or_default();
        encoded.iter().filter_map(|text| decode(text)).collect()
    }

    /// A certificate as it stands in [`Bundle::authorities`].
    #[must_use]
    pub fn encode(certificate_der: &[u8]) -> String {
        BASE64_STANDARD.encode(certificate_der)
    }

    fn check(&self, root: &VerifyingKey) -> Result<(), IdentityError> {
        let wrong = |what| Err(IdentityError::Bundle(what));
        if !is_trust_domain(&self.trust_domain) {
            return wrong("its trust domain is not well formed");
        }
        for (class, encoded) in &self.authorities {
            if encoded.is_empty() || encoded.len() > AUTHORITIES_MAX {
                return wrong("a class has no authority, or too many");
            }
            for (index, text) in encoded.iter().enumerate() {
                let Some(authority) = decode(text) else { return wrong("an authority is unreadable") };
                if authority.class() != *class || authority.trust_domain() != self.trust_domain {
                    return wrong("an authority stands under another's name");
                }
                if encoded.iter().skip(index + 1).any(|other| other == text) {
                    return wrong("an authority stands twice");
                }
                authority.verify_signature(root)?;
            }
        }
        for keys in [&self.grant_keys, &self.release_keys, &vec![self.log_key.clone()]] {
            if keys.len() > KEYS_MAX {
                return wrong("too many keys");
            }
            for (index, key) in keys.iter().enumerate() {
                let canonical = VerifyingKey::from_hex(key).is_ok_and(|parsed| parsed.to_hex() == *key);
                if !canonical || keys.iter().skip(index + 1).any(|other| other == key) {
                    return wrong("a key is unreadable or stands twice");
                }
            }
        }
        let keys = u32::try_from(self.release_keys.len()).unwrap_or(0);
        match self.release_threshold {
            0 => wrong("the release threshold is 0"),
            threshold if threshold > keys => wrong("fewer release keys than the threshold asks for"),
            _ => Ok(()),
        }
    }
}

fn decode(text: &str) -> Option<AuthorityCertificate> {
    AuthorityCertificate::parse(&BASE64_STANDARD.decode(text).ok()?).ok()
}

/// A bundle with the root's signature, as it is sent and stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SignedBundle {
    /// The bundle as JSON: the very bytes that were signed.
    pub payload: String,
    /// The root's signature, 128 hexadecimal digits.
    pub signature: String,
}

impl SignedBundle {
    pub(crate) fn sign(bundle: &Bundle, root: &dyn Signer) -> Result<Self, IdentityError> {
        bundle.check(&root.verifying_key())?;
        let payload =
            serde_json::to_string(bundle).map_err(|_| IdentityError::Bundle("it cannot be written down"))?;
        if payload.len() > BUNDLE_BYTES_MAX {
            return Err(IdentityError::Bundle("larger than 64 KiB"));
        }
        let signature = root
            .sign(&[CONTEXT, payload.as_bytes()].concat())
            .map_err(|error| IdentityError::Make(error.to_string()))?;
        let signature = keys::to_hex(&signature);
        Ok(Self { payload, signature })
    }

    /// Checks the signature, then the content. `held` is the version already held, 0 for none.
    ///
    /// # Errors
    /// [`IdentityError::Bundle`] when the root did not sign it or its content contradicts itself,
    /// [`IdentityError::OldBundle`] when its version is below `held`.
    pub fn verify(&self, root: &VerifyingKey, held: u64) -> Result<Bundle, IdentityError> {
        if self.payload.len() > BUNDLE_BYTES_MAX {
            return Err(IdentityError::Bundle("larger than 64 KiB"));
        }
        let signature: [u8; 64] = keys::from_hex(&self.signature)
            .map_err(|_| IdentityError::Bundle("its signature is unreadable"))?;
        root.verify(&[CONTEXT, self.payload.as_bytes()].concat(), &signature)
            .map_err(|_| IdentityError::Bundle("the root did not sign it"))?;
        let bundle: Bundle =
            serde_json::from_str(&self.payload).map_err(|_| IdentityError::Bundle("it cannot be parsed"))?;
        bundle.check(root)?;
        if bundle.version < held {
            return Err(IdentityError::OldBundle { offered: bundle.version, held });
        }
        Ok(bundle)
    }
}

#[cfg(test)]
mod tests {
    use keys::SigningKey;

    use super::*;
    use crate::Root;

    const NOW: i64 = 1_800_000_000;

    fn root(seed: u8) -> Root {
        Root::new("home.test", SigningKey::from_seed(&[seed; 32])).unwrap()
    }

    fn public(seed: u8) -> String {
        SigningKey::from_seed(&[seed; 32]).verifying_key().to_hex()
    }

    fn bundle() -> Bundle {
        let authority = |class, seed| {
            let key = SigningKey::from_seed(&[seed; 32]);
            Bundle::encode(root(1).authority(class, key, NOW, 86_400, [1; 16]).unwrap().certificate())
        };
        Bundle {
            trust_domain: "home.test".to_owned(),
            version: 4,
            authorities: BTreeMap::from([
                (PeerClass::Agents, vec![authority(PeerClass::Agents, 2), authority(PeerClass::Agents, 9)]),
                (PeerClass::Ledger, vec![authority(PeerClass::Ledger, 3)]),
            ]),
            grant_keys: vec![public(4)],
            log_key: public(5),
            release_keys: vec![public(6), public(7)],
            release_threshold: 2,
            require_pq: false,
        }
    }

    #[test]
    fn a_bundle_is_taken_from_the_root_alone() {
        let signed = root(1).sign_bundle(&bundle()).unwrap();
        assert_eq!(signed.verify(&root(1).verifying_key(), 4).unwrap(), bundle());
        assert!(signed.verify(&root(8).verifying_key(), 0).is_err());
        for place in [0, signed.payload.len() / 2, signed.payload.len() - 2] {
            let mut changed = signed.clone();
            let mut bytes = changed.payload.into_bytes();
            bytes[place] ^= 1;
            changed.payload = String::from_utf8(bytes).unwrap();
            assert!(changed.verify(&root(1).verifying_key(), 0).is_err());
        }
    }

    #[test]
    fn an_older_bundle_never_replaces_a_newer_one() {
        let signed = root(1).sign_bundle(&bundle()).unwrap();
        let refused = signed.verify(&root(1).verifying_key(), 5);
        assert_eq!(refused, Err(IdentityError::OldBundle { offered: 4, held: 5 }));
    }

    #[test]
    fn a_bundle_that_contradicts_itself_is_not_even_signed() {
        let refuse = |change: &dyn Fn(&mut Bundle)| {
            let mut bundle = bundle();
            change(&mut bundle);
            assert!(root(1).sign_bundle(&bundle).is_err());
        };
        refuse(&|bundle| bundle.trust_domain = "Home".to_owned());
        refuse(&|bundle| bundle.trust_domain = "away.test".to_owned());
        refuse(&|bundle| bundle.release_threshold = 0);
        refuse(&|bundle| bundle.release_threshold = 3);
        refuse(&|bundle| bundle.release_keys = vec![public(6), public(6)]);
        refuse(&|bundle| bundle.log_key = "00".repeat(32));
        refuse(&|bundle| bundle.grant_keys = vec![public(4).to_uppercase()]);
        // A class's authority under another class's name would let one class speak for the other.
        refuse(&|bundle| {
            let agents = bundle.authorities[&PeerClass::Agents].clone();
            bundle.authorities.insert(PeerClass::Management, agents);
        });
        refuse(&|bundle| drop(bundle.authorities.insert(PeerClass::Ledger, Vec::new())));
        refuse(&|bundle| {
            let twice = vec![bundle.authorities[&PeerClass::Ledger][0].clone(); 2];
            bundle.authorities.insert(PeerClass::Ledger, twice);
        });
        // An authority of another root.
        refuse(&|bundle| {
            let key = SigningKey::from_seed(&[2; 32]);
            let stranger = root(8).authority(PeerClass::Agents, key, NOW, 86_400, [1; 16]).unwrap();
            bundle.authorities.insert(PeerClass::Agents, vec![Bundle::encode(stranger.certificate())]);
        });
    }

    #[test]
    fn an_unknown_field_is_refused() {
        let key = SigningKey::from_seed(&[1; 32]);
        let signed = root(1).sign_bundle(&bundle()).unwrap();
        let payload = signed.payload.replacen('{', "{\"extra\":1,", 1);
        let signature = keys::to_hex(&key.sign(&[CONTEXT, payload.as_bytes()].concat()));
        let refused = SignedBundle { payload, signature }.verify(&key.verifying_key(), 0);
        assert_eq!(refused, Err(IdentityError::Bundle("it cannot be parsed")));
    }
}
