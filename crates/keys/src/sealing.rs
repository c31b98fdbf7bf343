//! Secrets on their way to one agent: HPKE (RFC 9180) in base mode, X25519 with HKDF-SHA256 and AES-256-GCM.
//!
//! Owns: an agent's sealing keys, one per channel, and what is sealed to them. Refuses to know who may seal,
//! which key is current, and how a sealed message travels. Randomness is handed in.
//!
//! INVARIANT: what was sealed for one recipient, channel, epoch and sequence number opens for nothing else,
//! and no part of it is handed out before all of it was verified.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hpke::aead::{AeadTag, AesGcm256};
use hpke::kdf::HkdfSha256;
use hpke::kem::{Kem as _, X25519HkdfSha256};
use hpke::rand_core::{TryCryptoRng, TryRng};
use hpke::{Deserializable as _, OpModeR, OpModeS, Serializable as _};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::aead::{TAG, derive, join};
use crate::{Digest, from_hex, leaving_nothing, to_hex};

/// Longest plaintext that is sealed. Bytes.
pub const PLAINTEXT_MAX: usize = 48_000;

/// Longest text of a [`Sealed`] that is read. Bytes.
pub const SEALED_TEXT_MAX: usize = 64 * 1024;

/// Longest name of a recipient. Bytes.
pub const RECIPIENT_MAX: usize = 512;

/// What separates our use of HPKE from everybody else's.
const LABEL: &str = "trader-seal-1";

/// What a sealed text begins with.
const PREFIX: &str = "trader-sealed-1";

type PrivateKey = <X25519HkdfSha256 as hpke::Kem>::PrivateKey;
type PublicKey = <X25519HkdfSha256 as hpke::Kem>::PublicKey;
type Encapsulated = <X25519HkdfSha256 as hpke::Kem>::EncappedKey;

/// Why nothing was sealed or opened. Never says anything of the contents.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// The text is no private sealing key. It is not repeated here.
    #[error("a sealing key is written as 64 hexadecimal digits")]
    SecretText,
    /// The bytes are no public sealing key, are one of low order, or spell one otherwise than everybody else
    /// does.
    #[error("not a valid X25519 public key")]
    PublicKey,
    /// There is no such channel.
    #[error("the channels are control, data and alerts")]
    Channel,
    /// The recipient's name is empty or longer than [`RECIPIENT_MAX`].
    #[error("a recipient's name has 1 to {RECIPIENT_MAX} bytes")]
    Recipient,
    /// The plaintext is longer than [`PLAINTEXT_MAX`].
    #[error("at most {PLAINTEXT_MAX} bytes are sealed at once")]
    TooLong,
    /// The text is nothing that was sealed.
    #[error("a sealed text is {PREFIX}.<encapsulated key>.<ciphertext>")]
    Text,
    /// Sealed to another key or context, or changed since. Which of these is not known.
    #[error("it does not open with this key in this context")]
    Refused,
}

impl SealError {
    /// The reason's one spelling in the log.
    #[must_use]
    pub fn code(self) -> &'static str {
        match self {
            Self::SecretText => "sealing_key_unreadable",
            Self::PublicKey => "sealing_public_key",
            Self::Channel => "sealing_channel",
            Self::Recipient => "sealing_recipient",
            Self::TooLong => "sealing_too_long",
            Self::Text => "sealed_unreadable",
            Self::Refused => "sealed_refused",
        }
    }
}

/// What a sealing key is for. An agent has one key for each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Channel {
    /// What management orders: tasks, settings, keys.
    Control,
    /// What a module works with: vendors' credentials, confidential data.
    Data,
    /// What must be heard when the rest is silent.
    Alerts,
}

impl Channel {
    /// Every channel there is.
    pub const ALL: [Self; 3] = [Self::Control, Self::Data, Self::Alerts];

    /// The channel's one spelling.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Control => "control",
            Self::Data => "data",
            Self::Alerts => "alerts",
        }
    }

    /// Reads what [`Channel::as_str`] wrote.
    ///
    /// # Errors
    /// [`SealError::Channel`] when it is anything else, another case or blanks included.
    pub fn parse(text: &str) -> Result<Self, SealError> {
        Self::ALL.into_iter().find(|channel| channel.as_str() == text).ok_or(SealError::Channel)
    }
}

impl fmt::Display for Channel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The one place and moment that a sealed message is for. Both ends must know it; none of it travels with the
/// message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Context<'a> {
    /// The channel whose key it is sealed to.
    pub channel: Channel,
    /// Who opens it: the agent's SPIFFE id.
    pub recipient: &'a str,
    /// The agent's enrolment epoch.
    pub epoch: u32,
    /// The message's number on this channel in this epoch.
    pub sequence: u64,
}

impl Context<'_> {
    /// The context as HPKE's `info`: label, channel, recipient, epoch and sequence number (both big-endian),
    /// each behind its length in eight big-endian bytes.
    ///
    /// # Errors
    /// [`SealError::Recipient`] when the recipient's name is empty or too long.
    pub fn info(&self) -> Result<Vec<u8>, SealError> {
        if self.recipient.is_empty() || self.recipient.len() > RECIPIENT_MAX {
            return Err(SealError::Recipient);
        }
        Ok(join(&[
            LABEL.as_bytes(),
            self.channel.as_str().as_bytes(),
            self.recipient.as_bytes(),
            &self.epoch.to_be_bytes(),
            &self.sequence.to_be_bytes(),
        ]))
    }
}

/// The private half of a sealing key pair. Erased from memory when dropped.
///
/// Behind a pointer, so that a key that moves leaves no copy of itself behind.
pub struct SealingKey(Box<PrivateKey>);

impl SealingKey {
    /// Makes the key that belongs to a seed of 32 random bytes (RFC 9180, `DeriveKeyPair`).
    #[must_use]
    pub fn from_seed(seed: &[u8; 32]) -> Self {
        leaving_nothing(|| Self(Box::new(X25519HkdfSha256::derive_keypair(seed).0)))
    }

    /// Reads a key from the text that [`SealingKey::to_secret_text`] wrote.
    ///
    /// # Errors
    /// [`SealError::SecretText`] when the text is anything else.
    pub fn from_secret_text(text: &str) -> Result<Self, SealError> {
        leaving_nothing(|| {
            let scalar: Zeroizing<[u8; 32]> =
                Zeroizing::new(from_hex(text.trim()).map_err(|_| SealError::SecretText)?);
            let key = PrivateKey::from_bytes(scalar.as_slice()).map_err(|_| SealError::SecretText)?;
            Ok(Self(Box::new(key)))
        })
    }

    /// The private key (not the seed) as text, for a file that only its owner may read.
    #[must_use]
    pub fn to_secret_text(&self) -> Zeroizing<String> {
        leaving_nothing(|| {
            let mut scalar = Zeroizing::new([0; 32]);
            self.0.write_exact(scalar.as_mut_slice());
            Zeroizing::new(to_hex(scalar.as_slice()))
        })
    }

    /// The public half.
    #[must_use]
    pub fn public_key(&self) -> SealingPublicKey {
        leaving_nothing(|| SealingPublicKey(X25519HkdfSha256::sk_to_pk(&self.0).to_bytes().into()))
    }

    /// Opens what was sealed to this key in this context.
    ///
    /// # Errors
    /// [`SealError::Recipient`] for a context that cannot be, [`SealError::Refused`] for anything that was
    /// not sealed to this key in this very context.
    pub fn open(&self, context: &Context<'_>, sealed: &Sealed) -> Result<Zeroizing<Vec<u8>>, SealError> {
        let info = context.info()?;
        leaving_nothing(|| self.open_raw(&info, b"", sealed))
    }

    fn open_raw(&self, info: &[u8], aad: &[u8], sealed: &Sealed) -> Result<Zeroizing<Vec<u8>>, SealError> {
        let refused = |_| SealError::Refused;
        let encapsulated = Encapsulated::from_bytes(&sealed.encapsulated).map_err(refused)?;
        let (body, tag) = sealed.ciphertext.split_last_chunk::<TAG>().ok_or(SealError::Refused)?;
        let tag = AeadTag::<AesGcm256>::from_bytes(tag).map_err(refused)?;
        let mut opener = hpke::setup_receiver::<AesGcm256, HkdfSha256, X25519HkdfSha256>(
            &OpModeR::Base,
            &self.0,
            &encapsulated,
            info,
        )
        .map_err(refused)?;
        let mut plaintext = Zeroizing::new(body.to_vec());
        opener.open_inout_detached(plaintext.as_mut_slice().into(), aad, &tag).map_err(refused)?;
        Ok(plaintext)
    }
}

impl fmt::Debug for SealingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SealingKey({})", self.public_key().id())
    }
}

/// The public half of a sealing key pair: whoever has it can seal to its owner.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct SealingPublicKey([u8; 32]);

impl SealingPublicKey {
    /// Parses the 32 bytes of a public key.
    ///
    /// # Errors
    /// [`SealError::PublicKey`] when the point is of low order, so that anybody could open what is sealed to
    /// it, or is not written in its one shortest form, so that one key had two identifiers.
    pub fn from_bytes(bytes: &[u8; 32]) -> Result<Self, SealError> {
        if !is_reduced(bytes) {
            return Err(SealError::PublicKey);
        }
        // Encapsulation multiplies by a multiple of eight and refuses when the result is zero: every point of
        // low order, and no other. What it is tried with is no secret, and nothing of it is used.
        let point = PublicKey::from_bytes(bytes).map_err(|_| SealError::PublicKey)?;
        X25519HkdfSha256::encap_with_rng(&point, None, &mut HandedIn::new(Zeroizing::new([1; 32])))
            .map_err(|_| SealError::PublicKey)?;
        Ok(Self(*bytes))
    }

    /// Parses 64 hexadecimal digits.
    ///
    /// # Errors
    /// [`SealError::PublicKey`] when they are anything but a public key.
    pub fn from_hex(text: &str) -> Result<Self, SealError> {
        Self::from_bytes(&from_hex(text).map_err(|_| SealError::PublicKey)?)
    }

    /// The 32 bytes of the key.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The key as 64 hexadecimal digits.
    #[must_use]
    pub fn to_hex(&self) -> String {
        to_hex(&self.0)
    }

    /// The key's identifier: the first 16 hexadecimal digits of its SHA-256 digest.
    #[must_use]
    pub fn id(&self) -> String {
        to_hex(Digest::of(&self.0).0.get(..8).unwrap_or_default())
    }

    /// Seals a message to this key for one context. `entropy` is 32 random bytes, used for this message only.
    ///
    /// # Errors
    /// [`SealError::TooLong`], [`SealError::Recipient`].
    pub fn seal(
        &self,
        entropy: &[u8; 32],
        context: &Context<'_>,
        plaintext: &[u8],
    ) -> Result<Sealed, SealError> {
        if plaintext.len() > PLAINTEXT_MAX {
            return Err(SealError::TooLong);
        }
        let info = context.info()?;
        let ephemeral = derive(entropy, LABEL, &[&self.0, &info, plaintext]);
        self.seal_raw(ephemeral, &info, b"", plaintext)
    }

    fn seal_raw(
        &self,
        ephemeral: Zeroizing<[u8; 32]>,
        info: &[u8],
        aad: &[u8],
        plaintext: &[u8],
    ) -> Result<Sealed, SealError> {
        let refused = |_| SealError::Refused;
        let (encapsulated, mut sealer) =
            hpke::setup_sender_with_rng::<AesGcm256, HkdfSha256, X25519HkdfSha256>(
                &OpModeS::Base,
                &PublicKey::from_bytes(&self.0).map_err(|_| SealError::PublicKey)?,
                info,
                &mut HandedIn::new(ephemeral),
            )
            .map_err(refused)?;
        // Encrypted in a buffer that erases itself: after an error it might still hold the plaintext.
        let mut body = Zeroizing::new(plaintext.to_vec());
        let tag = sealer.seal_inout_detached(body.as_mut_slice().into(), aad).map_err(refused)?;
        let mut ciphertext = Vec::with_capacity(body.len() + TAG);
        ciphertext.extend_from_slice(&body);
        ciphertext.extend_from_slice(&tag.to_bytes());
        Ok(Sealed { encapsulated: encapsulated.to_bytes().into(), ciphertext })
    }
}

impl fmt::Debug for SealingPublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SealingPublicKey({})", self.id())
    }
}

/// Whether 32 little-endian bytes are below the field's prime, 2^255 - 19.
fn is_reduced(bytes: &[u8; 32]) -> bool {
    let mut prime = [0xff; 32];
    prime[0] = 0xed;
    prime[31] = 0x7f;
    bytes.iter().rev().lt(prime.iter().rev())
}

/// A sealed message: nobody but the holder of one private key can read it, and only in one context.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Sealed {
    encapsulated: [u8; 32],
    ciphertext: Vec<u8>,
}

impl Sealed {
    /// Puts together what came apart on the way.
    ///
    /// # Errors
    /// [`SealError::Text`] when the ciphertext is shorter than its tag or longer than anything that is
    /// sealed.
    pub fn new(encapsulated: [u8; 32], ciphertext: Vec<u8>) -> Result<Self, SealError> {
        if !(TAG..=PLAINTEXT_MAX + TAG).contains(&ciphertext.len()) {
            return Err(SealError::Text);
        }
        Ok(Self { encapsulated, ciphertext })
    }

    /// Parses `trader-sealed-1.<encapsulated key>.<ciphertext>`, both in base64url without padding.
    ///
    /// # Errors
    /// [`SealError::Text`] when the text is anything else, or longer than [`SEALED_TEXT_MAX`].
    pub fn parse(text: &str) -> Result<Self, SealError> {
        if text.len() > SEALED_TEXT_MAX {
            return Err(SealError::Text);
        }
        let mut parts = text.split('.');
        let (Some(PREFIX), Some(encapsulated), Some(ciphertext), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(SealError::Text);
        };
        let decode = |part: &str| URL_SAFE_NO_PAD.decode(part).map_err(|_| SealError::Text);
        let encapsulated = decode(encapsulated)?.try_into().map_err(|_| SealError::Text)?;
        Self::new(encapsulated, decode(ciphertext)?)
    }

    /// The message as text, as [`Sealed::parse`] reads it.
    #[must_use]
    pub fn to_text(&self) -> String {
        let (key, body) = (&self.encapsulated, &self.ciphertext);
        format!("{PREFIX}.{}.{}", URL_SAFE_NO_PAD.encode(key), URL_SAFE_NO_PAD.encode(body))
    }

    /// The sender's key for this one message, as it travels.
    #[must_use]
    pub fn encapsulated(&self) -> &[u8; 32] {
        &self.encapsulated
    }

    /// The ciphertext with its tag.
    #[must_use]
    pub fn ciphertext(&self) -> &[u8] {
        &self.ciphertext
    }
}

impl TryFrom<String> for Sealed {
    type Error = SealError;

    fn try_from(text: String) -> Result<Self, SealError> {
        Self::parse(&text)
    }
}

impl From<Sealed> for String {
    fn from(sealed: Sealed) -> Self {
        sealed.to_text()
    }
}

/// The random bytes that the caller handed in, in the shape that the library wants. It takes 32 of them,
/// once; should it ever want more, they are derived from the first.
struct HandedIn {
    block: Zeroizing<[u8; 32]>,
    taken: usize,
}

impl HandedIn {
    fn new(block: Zeroizing<[u8; 32]>) -> Self {
        Self { block, taken: 0 }
    }

    fn next(&mut self) -> u8 {
        if self.taken == self.block.len() {
            self.block = derive(&self.block, "trader-seal-1 further bytes", &[]);
            self.taken = 0;
        }
        let byte = self.block.get(self.taken).copied().unwrap_or_default();
        self.taken += 1;
        byte
    }
}

impl TryRng for HandedIn {
    type Error = std::convert::Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Self::Error> {
        Ok(u32::from_le_bytes(std::array::from_fn(|_| self.next())))
    }

    fn try_next_u64(&mut self) -> Result<u64, Self::Error> {
        Ok(u64::from_le_bytes(std::array::from_fn(|_| self.next())))
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Self::Error> {
        bytes.iter_mut().for_each(|byte| *byte = self.next());
        Ok(())
    }
}

impl TryCryptoRng for HandedIn {}

#[cfg(test)]
mod tests;
