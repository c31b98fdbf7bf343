//! Whoever signs: a key in memory, or one in a device that never lets it out.
//!
//! A device can be gone at any moment, so signing can fail; whoever asked then has no signature, and nothing
//! falls back to another key.

use std::sync::Arc;

use crate::{SigningKey, VerifyingKey};

/// Why nothing was signed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the key {key} cannot sign: {why}")]
pub struct SignError {
    /// The key's identifier, as [`VerifyingKey::id`] writes it.
    pub key: String,
    /// What its holder said.
    pub why: String,
}

/// Holds one Ed25519 key and signs with it.
pub trait Signer: Send + Sync {
    /// The public half.
    fn verifying_key(&self) -> VerifyingKey;

    /// Signs a message (RFC 8032, section 5.1.6).
    ///
    /// # Errors
    /// [`SignError`] when the key's holder is gone or refuses.
    fn sign(&self, message: &[u8]) -> Result<[u8; 64], SignError>;
}

impl Signer for SigningKey {
    fn verifying_key(&self) -> VerifyingKey {
        SigningKey::verifying_key(self)
    }

    fn sign(&self, message: &[u8]) -> Result<[u8; 64], SignError> {
        Ok(SigningKey::sign(self, message))
    }
}

impl From<SigningKey> for Arc<dyn Signer> {
    fn from(key: SigningKey) -> Self {
        Arc::new(key)
    }
}

impl std::fmt::Debug for dyn Signer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Signer({})", self.verifying_key().id())
    }
}
