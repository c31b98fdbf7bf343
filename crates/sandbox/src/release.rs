//! What may run in a cell: the release manifest.
//!
//! Owns: the list of module programs by name and SHA-256, signed by a threshold of release keys, and the one check that
//! turns bytes into something that may run. Refuses to know where manifests and bytes come from.
//!
//! INVARIANT: an [`Admitted`] module's bytes have the digest that the manifest names, and the manifest was signed by as
//! many *different* release keys as the threshold asks for.

use std::collections::{BTreeMap, BTreeSet};

use keys::{Digest, SigningKey, VerifyingKey};
use serde::{Deserialize, Serialize};

/// Bytes of a manifest at most.
pub const MANIFEST_BYTES_MAX: usize = 256 * 1024;
/// Signatures on a manifest at most; more are refused before any is verified.
pub const SIGNATURES_MAX: usize = 16;
/// Keeps a manifest's signature from being taken for that of anything else.
const CONTEXT: &[u8] = b"trader-release-1\n";

/// Why a module does not run.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ReleaseError {
    /// The manifest is not readable.
    #[error("the manifest cannot be read: {0}")]
    Unreadable(String),
    /// Too few release keys signed it.
    #[error("the manifest has valid signatures of {found} different release keys, {needed} are needed")]
    TooFewSignatures {
        /// Different release keys with a valid signature.
        found: usize,
        /// Threshold.
        needed: usize,
    },
    /// The manifest is older than one already accepted.
    #[error("the manifest has version {found}, version {known} was accepted before")]
    Rollback {
        /// Its version.
        found: u64,
        /// The newest accepted.
        known: u64,
    },
    /// The manifest names no such module.
    #[error("the manifest names no module {0}")]
    NoSuchModule(String),
    /// The bytes are not those that were signed.
    #[error("the module {module} has digest {found}, the manifest says {expected}")]
    WrongDigest {
        /// Module.
        module: String,
        /// Digest of the bytes.
        found: String,
        /// Digest in the manifest.
        expected: String,
    },
}

/// Module programs by name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Grows with every release.
    pub version: u64,
    /// SHA-256 of each program, 64 hexadecimal digits.
    pub modules: BTreeMap<String, String>,
}

/// One release key's signature.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReleaseSignature {
    /// Identifier of the key.
    pub key: String,
    /// The signature, 128 hexadecimal digits.
    pub signature: String,
}

/// A manifest with its signatures, as it is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SignedManifest {
    /// The manifest as JSON: the very bytes that were signed.
    pub payload: String,
    /// Signatures.
    pub signatures: Vec<ReleaseSignature>,
}

impl SignedManifest {
    /// Writes a manifest down, unsigned.
    ///
    /// # Errors
    /// When it cannot be written as JSON.
    pub fn new(manifest: &Manifest) -> Result<Self, ReleaseError> {
        let payload =
            serde_json::to_string(manifest).map_err(|error| ReleaseError::Unreadable(error.to_string()))?;
        Ok(Self { payload, signatures: Vec::new() })
    }

    /// Adds a release key's signature.
    pub fn sign(&mut self, key: &SigningKey) {
        let signature = keys::to_hex(&key.sign(&message(&self.payload)));
        self.signatures.push(ReleaseSignature { key: key.verifying_key().id(), signature });
    }

    /// Checks the signatures, then the content.
    ///
    /// `keys` are the release keys of the trust bundle, `threshold` how many different ones must have signed, `known` the
    /// version of the newest manifest accepted before.
    ///
    /// # Errors
    /// As the variants of [`ReleaseError`] say.
    pub fn verify(
        &self,
        keys: &[VerifyingKey],
        threshold: usize,
        known: u64,
    ) -> Result<Release, ReleaseError> {
        if self.payload.len() > MANIFEST_BYTES_MAX || self.signatures.len() > SIGNATURES_MAX {
            return Err(ReleaseError::Unreadable("larger than a manifest may be".into()));
        }
        let message = message(&self.payload);
        // Keys are counted by their bytes, not by names: one key under two names is one key, and so is one that signs twice.
        let signed: BTreeSet<[u8; 32]> = keys
            .iter()
            .filter(|key| self.signatures.iter().any(|by| by.key == key.id() && verifies(key, &message, by)))
            .map(|key| *key.as_bytes())
            .collect();
        let needed = threshold.max(1);
        if signed.len() < needed {
            return Err(ReleaseError::TooFewSignatures { found: signed.len(), needed });
        }
        let manifest: Manifest = serde_json::from_str(&self.payload)
            .map_err(|error| ReleaseError::Unreadable(error.to_string()))?;
        if manifest.version < known {
            return Err(ReleaseError::Rollback { found: manifest.version, known });
        }
        Ok(Release { manifest })
    }
}

fn message(payload: &str) -> Vec<u8> {
    [CONTEXT, payload.as_bytes()].concat()
}

fn verifies(key: &VerifyingKey, message: &[u8], by: &ReleaseSignature) -> bool {
    keys::from_hex::<64>(&by.signature).is_ok_and(|signature| key.verify(message, &signature).is_ok())
}

/// A manifest whose signatures were checked. Made by [`SignedManifest::verify`] only.
#[derive(Debug)]
pub struct Release {
    manifest: Manifest,
}

impl Release {
    /// Version of the manifest.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.manifest.version
    }

    /// Digests of every module that may run.
    pub fn digests(&self) -> impl Iterator<Item = &str> {
        self.manifest.modules.values().map(String::as_str)
    }

    /// Checks a module's bytes.
    ///
    /// # Errors
    /// When the manifest does not name it, or names other bytes.
    pub fn admit(&self, module: &str, bytes: Vec<u8>) -> Result<Admitted, ReleaseError> {
        let Some(expected) = self.manifest.modules.get(module) else {
            return Err(ReleaseError::NoSuchModule(module.to_owned()));
        };
        let digest = Digest::of(&bytes);
        if digest.to_string() == *expected {
            Ok(Admitted { module: module.to_owned(), digest, bytes })
        } else {
            Err(ReleaseError::WrongDigest {
                module: module.to_owned(),
                found: digest.to_string(),
                expected: expected.clone(),
            })
        }
    }
}

/// A module that may run: proof that its bytes are the ones that were released. Made by [`Release::admit`] only.
pub struct Admitted {
    module: String,
    digest: Digest,
    bytes: Vec<u8>,
}

impl Admitted {
    /// Name of the module.
    #[must_use]
    pub fn module(&self) -> &str {
        &self.module
    }

    /// SHA-256 of its bytes.
    #[must_use]
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// The very bytes that were checked.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(seed: u8) -> SigningKey {
        SigningKey::from_seed(&[seed; 32])
    }

    fn signed(by: &[u8]) -> SignedManifest {
        let modules = [("analyst".to_owned(), Digest::of(b"program").to_string())].into();
        let mut signed = SignedManifest::new(&Manifest { version: 3, modules }).unwrap();
        by.iter().for_each(|seed| signed.sign(&key(*seed)));
        signed
    }

    fn release_keys() -> Vec<VerifyingKey> {
        vec![key(1).verifying_key(), key(2).verifying_key(), key(3).verifying_key()]
    }

    #[test]
    fn two_different_release_keys_let_exactly_the_signed_bytes_run() {
        let release = signed(&[1, 3]).verify(&release_keys(), 2, 3).unwrap();
        assert_eq!(release.admit("analyst", b"program".to_vec()).unwrap().module(), "analyst");
        let flipped = release.admit("analyst", b"progran".to_vec());
        assert!(matches!(flipped, Err(ReleaseError::WrongDigest { .. })));
        let unknown = release.admit("stranger", b"program".to_vec());
        assert!(matches!(unknown, Err(ReleaseError::NoSuchModule(_))));
    }

    #[test]
    fn one_signature_or_the_same_key_twice_or_a_strange_key_is_not_enough() {
        let too_few = |by: &[u8], keys: &[VerifyingKey]| match signed(by).verify(keys, 2, 0) {
            Err(ReleaseError::TooFewSignatures { found, .. }) => found,
            other => panic!("{other:?}"),
        };
        assert_eq!(too_few(&[], &release_keys()), 0);
        assert_eq!(too_few(&[1], &release_keys()), 1);
        assert_eq!(too_few(&[1, 1], &release_keys()), 1);
        assert_eq!(too_few(&[1, 9], &release_keys()), 1);
        let same_twice = [key(1).verifying_key(), key(1).verifying_key()];
        assert_eq!(too_few(&[1, 1], &same_twice), 1);
    }

    #[test]
    fn a_changed_or_older_manifest_is_refused() {
        let mut changed = signed(&[1, 2]);
        changed.payload = changed.payload.replace("analyst", "analysu");
        assert!(matches!(changed.verify(&release_keys(), 2, 0), Err(ReleaseError::TooFewSignatures { .. })));
        assert!(matches!(signed(&[1, 2]).verify(&release_keys(), 2, 4), Err(ReleaseError::Rollback { .. })));
    }
}
