//! A member's own private keys: made here, never shown, erased when dropped.
//!
//! One set holds one key for each use; the set is made, proven, used and destroyed together. Only public halves leave it.
//!
//! INVARIANT: a private key is in this process's memory and in its identity file, and nowhere else.

use std::fmt;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use identity::{KeySet, SpiffeId};
use keys::SigningKey;
use keys::sealing::{Channel, Context, SealError, Sealed, SealingKey};
use rcgen::PublicKeyData as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize as _, Zeroizing};

use crate::tls::WireError;

/// One key for each use. Its private halves are never printed.
pub struct OwnKeys {
    tls: rcgen::KeyPair,
    signing: SigningKey,
    control: SealingKey,
    data: SealingKey,
    alerts: SealingKey,
}

/// The keys as they are stored, in a file that only its owner can read.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct StoredKeys {
    tls: Zeroizing<String>,
    signing: Zeroizing<String>,
    control: Zeroizing<String>,
    data: Zeroizing<String>,
    alerts: Zeroizing<String>,
}

fn random() -> Result<Zeroizing<[u8; 32]>, WireError> {
    let mut bytes = Zeroizing::new([0; 32]);
    getrandom::fill(&mut *bytes).map_err(|error| WireError::Key(error.to_string()))?;
    Ok(bytes)
}

impl OwnKeys {
    /// Makes a set from the operating system's randomness.
    ///
    /// # Errors
    /// [`WireError::Key`] when there is none to be had.
    pub fn generate() -> Result<Self, WireError> {
        keys::leaving_nothing(|| {
            Ok(Self {
                tls: rcgen::KeyPair::generate().map_err(|error| WireError::Key(error.to_string()))?,
                signing: SigningKey::from_seed(&*random()?),
                control: SealingKey::from_seed(&*random()?),
                data: SealingKey::from_seed(&*random()?),
                alerts: SealingKey::from_seed(&*random()?),
            })
        })
    }

    /// The public half of the TLS key: SubjectPublicKeyInfo, DER. This is what [`identity::Authority::issue`] certifies.
    #[must_use]
    pub fn spki(&self) -> Vec<u8> {
        self.tls.subject_public_key_info()
    }

    /// The public halves.
    #[must_use]
    pub fn public(&self) -> KeySet {
        KeySet {
            tls: keys::Digest::of(&self.spki()).to_string(),
            signing: self.signing.verifying_key().to_hex(),
            control: self.control.public_key().to_hex(),
            data: self.data.public_key().to_hex(),
            alerts: self.alerts.public_key().to_hex(),
        }
    }

    /// Signs with the signing key.
    #[must_use]
    pub fn sign(&self, message: &[u8]) -> [u8; 64] {
        self.signing.sign(message)
    }

    /// Opens what was sealed to the key of the context's channel.
    ///
    /// # Errors
    /// [`SealError`] when it was sealed for another key, recipient, channel, epoch or number.
    pub fn open(&self, context: &Context<'_>, sealed: &Sealed) -> Result<Zeroizing<Vec<u8>>, SealError> {
        let key = match context.channel {
            Channel::Control => &self.control,
            Channel::Data => &self.data,
            Channel::Alerts => &self.alerts,
        };
        key.open(context, sealed)
    }

    /// Shows that the holder of the signing key made all of the set, for this identity.
    pub(crate) fn proof(&self, id: &SpiffeId) -> String {
        keys::to_hex(&self.sign(&self.public().statement(id)))
    }

    /// A certificate by which a newcomer shows its TLS key; it names nobody.
    pub(crate) fn self_signed(&self) -> Result<CertificateDer<'static>, WireError> {
        let mut params = rcgen::CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(rcgen::DnType::CommonName, "newcomer");
        let certificate = params.self_signed(&self.tls).map_err(|error| WireError::Key(error.to_string()))?;
        Ok(certificate.der().clone())
    }

    /// The private TLS key, PKCS #8.
    #[must_use]
    pub fn tls_pkcs8(&self) -> Zeroizing<Vec<u8>> {
        Zeroizing::new(self.tls.serialize_der())
    }

    /// The TLS key as the TLS library takes it, which keeps it as long as it is used.
    pub(crate) fn tls_signer(&self) -> Result<std::sync::Arc<dyn rustls::sign::SigningKey>, WireError> {
        keys::leaving_nothing(|| {
            let mut der = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(self.tls.serialize_der()));
            let signer = rustls::crypto::aws_lc_rs::sign::any_supported_type(&der);
            der.zeroize();
            Ok(signer?)
        })
    }

    pub(crate) fn store(&self) -> StoredKeys {
        keys::leaving_nothing(|| StoredKeys {
            tls: Zeroizing::new(BASE64_STANDARD.encode(&*self.tls_pkcs8())),
            signing: self.signing.to_secret_text(),
            control: self.control.to_secret_text(),
            data: self.data.to_secret_text(),
            alerts: self.alerts.to_secret_text(),
        })
    }

    pub(crate) fn restore(stored: &StoredKeys) -> Result<Self, WireError> {
        keys::leaving_nothing(|| Self::parse(stored))
    }

    fn parse(stored: &StoredKeys) -> Result<Self, WireError> {
        let der = Zeroizing::new(BASE64_STANDARD.decode(&*stored.tls).map_err(|_| WireError::Stored)?);
        let pkcs8 = PrivatePkcs8KeyDer::from(der.as_slice());
        let sealing = |text: &str| SealingKey::from_secret_text(text).map_err(|_| WireError::Stored);
        Ok(Self {
            tls: rcgen::KeyPair::from_pkcs8_der_and_sign_algo(&pkcs8, &rcgen::PKCS_ECDSA_P256_SHA256)
                .map_err(|_| WireError::Stored)?,
            signing: SigningKey::from_secret_text(&stored.signing).map_err(|_| WireError::Stored)?,
            control: sealing(&stored.control)?,
            data: sealing(&stored.data)?,
            alerts: sealing(&stored.alerts)?,
        })
    }
}

impl Drop for OwnKeys {
    fn drop(&mut self) {
        // The others erase themselves.
        self.tls.zeroize();
    }
}

impl fmt::Debug for OwnKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "OwnKeys({})", keys::Digest::of(&self.spki()))
    }
}
