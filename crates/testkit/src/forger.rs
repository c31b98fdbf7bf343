//! Somebody who holds an authority's key: certificates that our own code would never issue.

use identity::{PeerClass, SpiffeId};
use keys::Signer;
use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, Issuer, KeyPair, KeyUsagePurpose,
    PublicKeyData, SanType,
};

/// A certificate with its key, both DER.
#[derive(Debug, Clone)]
pub struct Forged {
    /// Certificate.
    pub certificate: Vec<u8>,
    /// Private key, PKCS #8.
    pub key: Vec<u8>,
}

impl Forged {
    /// Both as PEM, as programs of others want them: certificate and key.
    #[must_use]
    pub fn pem(&self) -> (String, String) {
        (pem("CERTIFICATE", &self.certificate), pem("PRIVATE KEY", &self.key))
    }
}

/// Text form of DER.
#[must_use]
pub fn pem(label: &str, der: &[u8]) -> String {
    use base64::Engine as _;
    let text = base64::prelude::BASE64_STANDARD.encode(der);
    format!("-----BEGIN {label}-----\n{text}\n-----END {label}-----\n")
}

/// A certificate of an id that the authority of `class` signs, whether or not the id is of that class.
///
/// # Panics
/// When it cannot be made.
#[must_use]
pub fn forged(signer: &dyn Signer, class: PeerClass, id: &SpiffeId) -> Forged {
    let key = KeyPair::generate().unwrap();
    let mut issuer = CertificateParams::default();
    issuer.distinguished_name = DistinguishedName::new();
    issuer.distinguished_name.push(DnType::OrganizationName, id.trust_domain());
    issuer.distinguished_name.push(DnType::CommonName, format!("authority={class}"));
    issuer.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let hand = Hand { key: signer, public: *signer.verifying_key().as_bytes() };
    let certificate = params(id).signed_by(&key, &Issuer::from_params(&issuer, &hand)).unwrap();
    Forged { certificate: certificate.der().to_vec(), key: key.serialize_der() }
}

/// A certificate of an id that its bearer signed.
///
/// # Panics
/// When it cannot be made.
#[must_use]
pub fn self_signed(id: &SpiffeId) -> Forged {
    let key = KeyPair::generate().unwrap();
    let certificate = params(id).self_signed(&key).unwrap();
    Forged { certificate: certificate.der().to_vec(), key: key.serialize_der() }
}

fn params(id: &SpiffeId) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "epoch=1");
    params.subject_alt_names = vec![SanType::URI(id.as_str().try_into().unwrap())];
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
    params
}

/// The authority's key, in the shape that the certificate writer asks for.
struct Hand<'a> {
    key: &'a dyn Signer,
    public: [u8; 32],
}

impl PublicKeyData for Hand<'_> {
    fn der_bytes(&self) -> &[u8] {
        &self.public
    }

    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        &rcgen::PKCS_ED25519
    }
}

impl rcgen::SigningKey for Hand<'_> {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        self.key.sign(message).map(|signature| signature.to_vec()).map_err(|_| rcgen::Error::RemoteKeyError)
    }
}
