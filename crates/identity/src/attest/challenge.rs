//! Challenges: what evidence must be about, so that none is good twice or for another connection.
//!
//! A challenge is made before anybody has shown a ticket: it depends on nothing but what the newcomer sends, so it tells
//! nothing about which entries there are.
//!
//! INVARIANT: a challenge is for one TLS key, is taken out of the book by the first use, and is good for a minute.

use std::collections::BTreeMap;

use keys::Digest;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::tpm::{TpmKeys, TpmPublics};
use super::{Unattested, credential};
use crate::{KeySet, SpiffeId};

/// How long a challenge is good. Milliseconds.
pub const CHALLENGE_TTL_MS: i64 = 60_000;

/// Most challenges that wait for their evidence; the oldest makes way for the next.
pub const CHALLENGES_MAX: usize = 4096;

/// What a newcomer sends to get a challenge.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ChallengeRequest {
    /// Public halves of its TPM's keys, where it wants to show one.
    pub tpm: Option<TpmPublics>,
}

/// What it gets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChallengeReply {
    /// 64 hexadecimal digits.
    pub nonce: String,
    /// For the TPM, if one was shown: the credential in base64, as `tpm2_activatecredential` reads it.
    pub credential: Option<String>,
}

/// Random bytes for one challenge.
pub struct Randomness {
    /// The nonce.
    pub nonce: [u8; 32],
    /// The secret that the TPM must open.
    pub secret: [u8; 32],
    /// What the credential is encrypted with.
    pub seed: [u8; 32],
}

/// A challenge that was made for one TLS key.
#[derive(PartialEq, Eq)]
pub struct Challenge {
    nonce: [u8; 32],
    issued_ms: i64,
    pub(super) tpm: Option<Credentialed>,
}

/// A TPM that was given a credential.
#[derive(PartialEq, Eq)]
pub(super) struct Credentialed {
    pub(super) keys: TpmKeys,
    pub(super) secret: Zeroizing<[u8; 32]>,
}

impl std::fmt::Debug for Challenge {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Challenge(at {} ms, tpm {})", self.issued_ms, self.tpm.is_some())
    }
}

impl Challenge {
    /// Makes a challenge, and what the newcomer is told of it. `now_ms` in milliseconds since the Unix epoch.
    ///
    /// # Errors
    /// [`Unattested::TpmForm`] or [`Unattested::TpmAk`] when the TPM's keys are none that a TPM could attest with.
    pub fn issue(
        random: &Randomness,
        request: &ChallengeRequest,
        now_ms: i64,
    ) -> Result<(Self, ChallengeReply), Unattested> {
        let mut reply = ChallengeReply { nonce: keys::to_hex(&random.nonce), credential: None };
        let tpm = match &request.tpm {
            None => None,
            Some(publics) => {
                let keys = TpmKeys::parse(publics)?;
                let secret = Zeroizing::new(random.secret);
                reply.credential = Some(credential::make(&keys, &secret, &random.seed)?);
                Some(Credentialed { keys, secret })
            }
        };
        Ok((Self { nonce: random.nonce, issued_ms: now_ms, tpm }, reply))
    }

    /// The nonce.
    #[must_use]
    pub fn nonce(&self) -> &[u8; 32] {
        &self.nonce
    }

    pub(super) fn is_fresh(&self, now_ms: i64) -> bool {
        (0..CHALLENGE_TTL_MS).contains(&now_ms.saturating_sub(self.issued_ms))
    }
}

/// What evidence is about: the nonce, who wants to enrol, and every key that it offers, the connection's among them.
#[must_use]
pub fn binding(nonce: &[u8; 32], id: &SpiffeId, keys: &KeySet) -> [u8; 32] {
    Digest::of_parts(&[b"trader-attestation-1\n", nonce, &keys.statement(id)]).0
}

/// Challenges that wait for their evidence, by the TLS key that they were made for. In memory only: a restart makes
/// newcomers ask again.
#[derive(Debug, Default)]
pub struct ChallengeBook {
    waiting: BTreeMap<[u8; 32], Challenge>,
}

impl ChallengeBook {
    /// Keeps a challenge, in the place of an earlier one for the same key.
    pub fn put(&mut self, tls_key: [u8; 32], challenge: Challenge) {
        let now_ms = challenge.issued_ms;
        if self.waiting.len() >= CHALLENGES_MAX {
            self.waiting.retain(|_, waiting| waiting.is_fresh(now_ms));
        }
        if self.waiting.len() >= CHALLENGES_MAX {
            let oldest = self.waiting.iter().min_by_key(|(_, waiting)| waiting.issued_ms);
            if let Some(key) = oldest.map(|(key, _)| *key) {
                self.waiting.remove(&key);
            }
        }
        self.waiting.insert(tls_key, challenge);
    }

    /// Takes the challenge for a key out, for good.
    pub fn take(&mut self, tls_key: &[u8; 32]) -> Option<Challenge> {
        self.waiting.remove(tls_key)
    }

    /// How many wait.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }
}
