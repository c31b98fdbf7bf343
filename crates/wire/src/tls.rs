//! Who is at the other end: identities on disk, and TLS 1.3 with certificates on both sides.
//!
//! Every listener accepts one class of peers and every client expects one; the trust anchor is that class's
//! authority from the signed bundle, and whatever else a peer sends along is ignored. The name checked is the
//! SPIFFE ID, never a host name. There is no TLS 1.2, no session ticket, no resumption and no early data, so
//! every connection proves its key anew. X25519MLKEM768 is preferred. The provider is named at every
//! configuration: no process-wide default is relied on.
//!
//! INVARIANT: a [`Peer`] exists only for a connection whose certificate was verified against its class's
//! authority.

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use identity::{AuthorityCertificate, Bundle, IdentityError, Leaf, PeerClass, SignedBundle, SpiffeId};
use keys::VerifyingKey;
use rcgen::PublicKeyData as _;
use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, aws_lc_rs};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, OtherError, ServerConfig,
    SignatureScheme,
};
use rustls_pki_types::{
    CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, TrustAnchor, UnixTime,
};
use serde::{Deserialize, Serialize};
use webpki::{EndEntityCert, KeyUsage};

use crate::client::ClientError;
use crate::files::{self, FileError};

/// Most certificates that a peer may send: its own and its authority's.
pub const CHAIN_MAX: usize = 2;

/// The file of an [`Identity`] within its directory.
const IDENTITY_FILE: &str = "identity.json";

/// The only application protocol spoken.
const ALPN: &[u8] = b"http/1.1";

/// What can go wrong between a process and its place in the installation.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// An id, certificate, ticket or bundle is not acceptable.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// A file is not acceptable.
    #[error(transparent)]
    File(#[from] FileError),
    /// The stored identity cannot be parsed.
    #[error("the stored identity is unreadable; enrol again with a new ticket")]
    Stored,
    /// A key cannot be made or used.
    #[error("the key cannot be used: {0}")]
    Key(String),
    /// The bundle names no authority for a class.
    #[error("the trust bundle has no authority for {class}")]
    NoAuthority {
        /// The class.
        class: PeerClass,
    },
    /// The TLS library refused the configuration.
    #[error("TLS cannot be set up: {0}")]
    Tls(#[from] rustls::Error),
    /// Management could not be asked, or refused.
    #[error("enrolment failed: {0}")]
    Enrolment(ClientError),
}

/// A P-256 key pair for TLS. Its private half is never printed.
pub struct Key(rcgen::KeyPair);

/// Makes a key from the operating system's randomness.
///
/// # Errors
/// [`WireError::Key`] when there is none to be had.
pub fn new_key() -> Result<Key, WireError> {
    rcgen::KeyPair::generate().map(Key).map_err(|error| WireError::Key(error.to_string()))
}

impl Key {
    /// The public half: SubjectPublicKeyInfo, DER. This is what [`identity::Authority::issue`] certifies.
    #[must_use]
    pub fn spki(&self) -> Vec<u8> {
        self.0.subject_public_key_info()
    }

    /// A certificate by which a newcomer shows this key; it names nobody.
    pub(crate) fn self_signed(&self) -> Result<CertificateDer<'static>, WireError> {
        let mut params = rcgen::CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(rcgen::DnType::CommonName, "newcomer");
        let certificate = params.self_signed(&self.0).map_err(|error| WireError::Key(error.to_string()))?;
        Ok(certificate.der().clone())
    }

    pub(crate) fn private(&self) -> PrivateKeyDer<'static> {
        PrivatePkcs8KeyDer::from(self.0.serialize_der()).into()
    }

    fn from_pkcs8(der: Vec<u8>) -> Result<Self, WireError> {
        let der = PrivatePkcs8KeyDer::from(der);
        rcgen::KeyPair::from_pkcs8_der_and_sign_algo(&der, &rcgen::PKCS_ECDSA_P256_SHA256)
            .map(Key)
            .map_err(|_| WireError::Stored)
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({})", keys::Digest::of(&self.spki()))
    }
}

/// What a process is and whom it trusts: its key, its certificate, the signed bundle, the root.
#[derive(Debug)]
pub struct Identity {
    key: Key,
    certificate: Vec<u8>,
    leaf: Leaf,
    authority: AuthorityCertificate,
    root: VerifyingKey,
    signed: SignedBundle,
    bundle: Bundle,
}

/// An identity as it is stored.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    key: String,
    certificate: String,
    root: String,
    bundle: SignedBundle,
}

impl Identity {
    /// Puts an identity together, and checks that its parts belong to each other and stand under the root.
    ///
    /// # Errors
    /// [`WireError::Identity`], [`WireError::NoAuthority`] or [`WireError::Key`] when they do not. Whether
    /// the certificate has expired is not asked here: see [`Identity::expires`].
    pub fn new(
        key: Key,
        certificate: Vec<u8>,
        signed: SignedBundle,
        root: VerifyingKey,
    ) -> Result<Self, WireError> {
        let bundle = signed.verify(&root, 0)?;
        let leaf = Leaf::parse(&certificate)?;
        if leaf.key != keys::Digest::of(&key.spki()).0 {
            return Err(WireError::Key("the certificate is for another one".to_owned()));
        }
        if leaf.id.trust_domain() != bundle.trust_domain {
            let trust_domain = bundle.trust_domain.clone();
            return Err(IdentityError::TrustDomain { id: leaf.id, trust_domain }.into());
        }
        let authority = bundle.authority(leaf.class).ok_or(WireError::NoAuthority { class: leaf.class })?;
        let at = UnixTime::since_unix_epoch(std::time::Duration::from_secs(leaf.not_before.unsigned_abs()));
        let verifier = ClassVerifier::new(authority.clone(), None)?;
        verifier.check(&CertificateDer::from(certificate.as_slice()), &[], at, KeyUsage::client_auth())?;
        Ok(Self { key, certificate, leaf, authority, root, signed, bundle })
    }

    /// Loads an identity from its directory.
    ///
    /// # Errors
    /// [`WireError::File`] when the file is missing or open to others, [`WireError::Stored`] when it is
    /// unreadable, or what [`Identity::new`] says.
    pub fn load(directory: &Path) -> Result<Self, WireError> {
        let bytes = files::read_private(&directory.join(IDENTITY_FILE))?;
        let stored: Stored = serde_json::from_slice(&bytes).map_err(|_| WireError::Stored)?;
        let decode = |text: &str| BASE64_STANDARD.decode(text).map_err(|_| WireError::Stored);
        let root = VerifyingKey::from_hex(&stored.root).map_err(|_| WireError::Stored)?;
        Self::new(Key::from_pkcs8(decode(&stored.key)?)?, decode(&stored.certificate)?, stored.bundle, root)
    }

    /// Stores the identity in a directory that only its owner can enter, as one file, whole or not at all.
    ///
    /// # Errors
    /// [`WireError::File`].
    pub fn save(&self, directory: &Path) -> Result<(), WireError> {
        let stored = Stored {
            key: BASE64_STANDARD.encode(self.key.0.serialized_der()),
            certificate: BASE64_STANDARD.encode(&self.certificate),
            root: self.root.to_hex(),
            bundle: self.signed.clone(),
        };
        let bytes = serde_json::to_vec(&stored).map_err(|_| WireError::Stored)?;
        files::create_private_dir(directory)?;
        files::write_private_atomic(&directory.join(IDENTITY_FILE), &bytes)?;
        Ok(())
    }

    /// Who this is.
    #[must_use]
    pub fn id(&self) -> &SpiffeId {
        &self.leaf.id
    }

    /// Its class.
    #[must_use]
    pub fn class(&self) -> PeerClass {
        self.leaf.class
    }

    /// Its enrolment epoch.
    #[must_use]
    pub fn epoch(&self) -> u32 {
        self.leaf.epoch
    }

    /// SHA-256 of its public key (SubjectPublicKeyInfo, DER).
    #[must_use]
    pub fn key(&self) -> [u8; 32] {
        self.leaf.key
    }

    /// When its certificate ends, in seconds since the Unix epoch.
    #[must_use]
    pub fn expires(&self) -> i64 {
        self.leaf.expires
    }

    /// Whom it trusts.
    #[must_use]
    pub fn bundle(&self) -> &Bundle {
        &self.bundle
    }

    /// The bundle as the root signed it, to be handed on to newcomers.
    #[must_use]
    pub fn signed_bundle(&self) -> &SignedBundle {
        &self.signed
    }

    /// The root that it stands under.
    #[must_use]
    pub fn root(&self) -> &VerifyingKey {
        &self.root
    }

    fn authority_of(&self, class: PeerClass) -> Result<AuthorityCertificate, WireError> {
        self.bundle.authority(class).ok_or(WireError::NoAuthority { class })
    }
}

/// The other end of a connection, as its verified certificate says. Found in the extensions of every request.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Peer {
    /// SPIFFE ID.
    pub id: SpiffeId,
    /// Class, which is the one that the listener accepts.
    pub class: PeerClass,
    /// SHA-256 of the public key (SubjectPublicKeyInfo, DER).
    pub key: [u8; 32],
    /// Enrolment epoch.
    pub epoch: u32,
    /// When the certificate ends, in seconds since the Unix epoch.
    pub expires: i64,
}

/// How a listener speaks TLS, and whom it lets in. Kept in one value so that a listener for newcomers, whose
/// certificates prove a key and no name, can never be served as one for peers.
#[derive(Debug, Clone)]
pub struct ServerTls {
    pub(crate) config: Arc<ServerConfig>,
    pub(crate) door: Door,
}

/// Who comes through a listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Door {
    /// Peers of one class; requests carry a [`Peer`].
    Peers(PeerClass),
    /// Newcomers; requests carry a [`crate::enrol::Newcomer`].
    Newcomers,
}

impl Door {
    /// What a verified certificate says at this door; `None` when it says nothing that this door takes.
    pub(crate) fn peer(self, certificate: &[u8]) -> Option<Peer> {
        let Leaf { id, class, key, epoch, expires, .. } = Leaf::parse(certificate).ok()?;
        (self == Self::Peers(class)).then_some(Peer { id, class, key, epoch, expires })
    }
}

/// TLS for a listener that accepts one class of peers.
///
/// # Errors
/// [`WireError::NoAuthority`] when the bundle has none for the class, [`WireError::Tls`] when the library
/// refuses.
pub fn server_config(identity: &Identity, accepts: PeerClass) -> Result<ServerTls, WireError> {
    let verifier = ClassVerifier::new(identity.authority_of(accepts)?, None)?;
    let chain = vec![CertificateDer::from(identity.certificate.clone())];
    let config = server(Arc::new(verifier), chain, identity)?;
    Ok(ServerTls { config: Arc::new(config), door: Door::Peers(accepts) })
}

/// TLS for a client that expects a peer of one class, and this very peer where an id is given.
///
/// # Errors
/// As [`server_config`].
pub fn client_config(
    identity: &Identity,
    expects: PeerClass,
    id: Option<SpiffeId>,
) -> Result<Arc<ClientConfig>, WireError> {
    let verifier = ClassVerifier::new(identity.authority_of(expects)?, id)?;
    let chain = vec![CertificateDer::from(identity.certificate.clone())];
    client(Arc::new(verifier), chain, identity.key.private())
}

/// TLS for the listener of newcomers. Sends the authority along, which the newcomer checks against its
/// ticket's root.
pub(crate) fn newcomers_config(
    identity: &Identity,
    verifier: Arc<dyn ClientCertVerifier>,
) -> Result<ServerTls, WireError> {
    let chain = vec![
        CertificateDer::from(identity.certificate.clone()),
        CertificateDer::from(identity.authority.der().to_vec()),
    ];
    Ok(ServerTls { config: Arc::new(server(verifier, chain, identity)?), door: Door::Newcomers })
}

fn server(
    verifier: Arc<dyn ClientCertVerifier>,
    chain: Vec<CertificateDer<'static>>,
    identity: &Identity,
) -> Result<ServerConfig, WireError> {
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, identity.key.private())?;
    config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    config.alpn_protocols = vec![ALPN.to_vec()];
    Ok(config)
}

pub(crate) fn client(
    verifier: Arc<dyn ServerCertVerifier>,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<Arc<ClientConfig>, WireError> {
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_client_auth_cert(chain, key)?;
    config.resumption = Resumption::disabled();
    config.enable_sni = false;
    config.enable_early_data = false;
    config.alpn_protocols = vec![ALPN.to_vec()];
    Ok(Arc::new(config))
}

/// The one provider, with the post-quantum hybrid first.
fn provider() -> Arc<CryptoProvider> {
    let mut provider = aws_lc_rs::default_provider();
    provider.kx_groups = vec![aws_lc_rs::kx_group::X25519MLKEM768, aws_lc_rs::kx_group::X25519];
    Arc::new(provider)
}

/// Accepts certificates of one class's authority, on either side of a connection.
#[derive(Debug)]
pub(crate) struct ClassVerifier {
    authority: AuthorityCertificate,
    anchor: TrustAnchor<'static>,
    id: Option<SpiffeId>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ClassVerifier {
    pub(crate) fn new(authority: AuthorityCertificate, id: Option<SpiffeId>) -> Result<Self, WireError> {
        let der = CertificateDer::from(authority.der());
        let anchor = webpki::anchor_from_trusted_cert(&der)
            .map_err(|_| IdentityError::Certificate("the authority is no trust anchor"))?
            .to_owned();
        Ok(Self { authority, anchor, id, algorithms: algorithms() })
    }

    /// Form and size first, then who it is, then the signature: nothing is computed for what is refused
    /// anyway.
    pub(crate) fn check(
        &self,
        end_entity: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        now: UnixTime,
        usage: KeyUsage,
    ) -> Result<(), rustls::Error> {
        check_chain_size(end_entity, others)?;
        let leaf = Leaf::parse(end_entity).map_err(refused)?;
        let class = self.authority.class();
        if leaf.class != class {
            return Err(refused(IdentityError::Class { id: leaf.id, class: class.as_str() }));
        }
        if leaf.id.trust_domain() != self.authority.trust_domain() {
            let trust_domain = self.authority.trust_domain().to_owned();
            return Err(refused(IdentityError::TrustDomain { id: leaf.id, trust_domain }));
        }
        if self.id.as_ref().is_some_and(|wanted| *wanted != leaf.id) {
            return Err(CertificateError::NotValidForName.into());
        }
        if !self.authority.valid_at(seconds(now)) {
            return Err(CertificateError::Expired.into());
        }
        // What else the peer sent is not looked at: the only issuer is the authority of the bundle.
        EndEntityCert::try_from(end_entity)
            .and_then(|certificate| {
                let anchors = std::slice::from_ref(&self.anchor);
                certificate
                    .verify_for_usage(self.algorithms.all, anchors, &[], now, usage, None, None)
                    .map(drop)
            })
            .map_err(from_webpki)
    }
}

impl ClientCertVerifier for ClassVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.check(end_entity, intermediates, now, KeyUsage::client_auth())?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(no_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        schemes()
    }
}

impl ServerCertVerifier for ClassVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.check(end_entity, intermediates, now, KeyUsage::server_auth())?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(no_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        schemes()
    }
}

/// Refuses a chain that is too long or too large, before anything is computed from it.
pub(crate) fn check_chain_size(
    end_entity: &CertificateDer<'_>,
    others: &[CertificateDer<'_>],
) -> Result<(), rustls::Error> {
    let too_large =
        |certificate: &CertificateDer<'_>| certificate.len() > identity::leaf::CERTIFICATE_BYTES_MAX;
    if others.len() >= CHAIN_MAX || too_large(end_entity) || others.iter().any(too_large) {
        return Err(refused(IdentityError::Certificate("the chain is too long or too large")));
    }
    Ok(())
}

/// Checks that the peer holds the key of its certificate.
pub(crate) fn verify_signature(
    message: &[u8],
    certificate: &CertificateDer<'_>,
    signature: &DigitallySignedStruct,
) -> Result<HandshakeSignatureValid, rustls::Error> {
    rustls::crypto::verify_tls13_signature(message, certificate, signature, &algorithms())
}

/// Leaves have P-256 keys; authorities sign with Ed25519.
pub(crate) fn schemes() -> Vec<SignatureScheme> {
    vec![SignatureScheme::ECDSA_NISTP256_SHA256, SignatureScheme::ED25519]
}

pub(crate) fn no_tls12() -> rustls::Error {
    rustls::Error::General("TLS 1.2 is not spoken".to_owned())
}

pub(crate) fn refused(error: IdentityError) -> rustls::Error {
    CertificateError::Other(OtherError(Arc::new(error))).into()
}

pub(crate) fn seconds(time: UnixTime) -> i64 {
    i64::try_from(time.as_secs()).unwrap_or(i64::MAX)
}

/// The wall clock, in seconds since the Unix epoch.
pub(crate) fn unix_now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

fn algorithms() -> WebPkiSupportedAlgorithms {
    aws_lc_rs::default_provider().signature_verification_algorithms
}

fn from_webpki(error: webpki::Error) -> rustls::Error {
    match error {
        webpki::Error::CertExpired { .. } => CertificateError::Expired,
        webpki::Error::CertNotValidYet { .. } => CertificateError::NotValidYet,
        webpki::Error::UnknownIssuer => CertificateError::UnknownIssuer,
        webpki::Error::InvalidSignatureForPublicKey => CertificateError::BadSignature,
        webpki::Error::RequiredEkuNotFoundContext(_) => CertificateError::InvalidPurpose,
        other => CertificateError::Other(OtherError(Arc::new(other))),
    }
    .into()
}
