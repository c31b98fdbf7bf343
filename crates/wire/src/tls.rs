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

use std::path::Path;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use identity::{AuthorityCertificate, Bundle, IdentityError, Leaf, PeerClass, SignedBundle, SpiffeId};
use keys::VerifyingKey;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ResolvesClientCert, Resumption};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, aws_lc_rs};
use rustls::server::ResolvesServerCert;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::sign::CertifiedKey;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, OtherError, ServerConfig,
    SignatureScheme,
};
use rustls_pki_types::{CertificateDer, ServerName, TrustAnchor, UnixTime};
use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use webpki::{EndEntityCert, KeyUsage};
use zeroize::Zeroizing;

use crate::client::ClientError;
use crate::files::{self, FileError};
use crate::own_keys::{OwnKeys, StoredKeys};

/// Most certificates that a peer may send: its own and its authority's.
pub const CHAIN_MAX: usize = 2;

/// The file of an [`Identity`] within its directory.
pub(crate) const IDENTITY_FILE: &str = "identity.json";

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
    /// What a newcomer wants to show besides its ticket cannot be shown.
    #[error("{0}")]
    Proof(String),
    /// Management could not be asked about new keys, or refused them.
    #[error("the keys were not taken: {0}")]
    Renewal(ClientError),
    /// Management did not open a secret.
    #[error("the secret {name} was not opened: {source}")]
    Secret {
        /// Its name.
        name: String,
        /// Why.
        source: ClientError,
    },
}

/// What a process is and whom it trusts: its key, its certificate, the signed bundle, the root.
#[derive(Debug)]
pub struct Identity {
    keys: Arc<OwnKeys>,
    certificate: Vec<u8>,
    leaf: Leaf,
    authority: AuthorityCertificate,
    root: VerifyingKey,
    signed: SignedBundle,
    bundle: Bundle,
    certified: Arc<CertifiedKey>,
}

/// An identity as it is stored.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    keys: StoredKeys,
    certificate: String,
    root: String,
    bundle: SignedBundle,
}

/// A stored identity without what is secret in it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Shell {
    #[serde(rename = "keys")]
    _keys: IgnoredAny,
    certificate: String,
    #[serde(rename = "root")]
    _root: IgnoredAny,
    #[serde(rename = "bundle")]
    _bundle: IgnoredAny,
}

/// JSON in one buffer that has room for all of it from the start and erases itself: a growing one would leave copies of the
/// secrets in it behind.
fn to_json(stored: &Stored) -> Result<Zeroizing<Vec<u8>>, WireError> {
    struct Count(usize);
    impl std::io::Write for Count {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0 = self.0.saturating_add(bytes.len());
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let mut count = Count(0);
    serde_json::to_writer(&mut count, stored).map_err(|_| WireError::Stored)?;
    let mut bytes = Zeroizing::new(Vec::with_capacity(count.0));
    serde_json::to_writer(&mut *bytes, stored).map_err(|_| WireError::Stored)?;
    Ok(bytes)
}

impl Identity {
    /// Puts an identity together, and checks that its parts belong to each other and stand under the root.
    ///
    /// # Errors
    /// [`WireError::Identity`], [`WireError::NoAuthority`] or [`WireError::Key`] when they do not. Whether
    /// the certificate has expired is not asked here: see [`Identity::expires`].
    pub fn new(
        keys: OwnKeys,
        certificate: Vec<u8>,
        signed: SignedBundle,
        root: VerifyingKey,
    ) -> Result<Self, WireError> {
        Self::assemble(Arc::new(keys), certificate, signed, root, 0)
    }

    fn assemble(
        keys: Arc<OwnKeys>,
        certificate: Vec<u8>,
        signed: SignedBundle,
        root: VerifyingKey,
        held: u64,
    ) -> Result<Self, WireError> {
        let bundle = signed.verify(&root, held)?;
        let leaf = Leaf::parse(&certificate)?;
        if leaf.key != keys::Digest::of(&keys.spki()).0 {
            return Err(WireError::Key("the certificate is for another one".to_owned()));
        }
        if leaf.id.trust_domain() != bundle.trust_domain {
            let trust_domain = bundle.trust_domain.clone();
            return Err(IdentityError::TrustDomain { id: leaf.id, trust_domain }.into());
        }
        let authorities = bundle.authorities(leaf.class);
        if authorities.is_empty() {
            return Err(WireError::NoAuthority { class: leaf.class });
        }
        let at = UnixTime::since_unix_epoch(std::time::Duration::from_secs(leaf.not_before.unsigned_abs()));
        let shown = CertificateDer::from(certificate.as_slice());
        let mut refusal = WireError::NoAuthority { class: leaf.class };
        let issuer = authorities.into_iter().find(|authority| {
            let trust = Trust::Fixed(vec![authority.clone()]);
            match ClassVerifier::new(trust, leaf.class, None).check(&shown, &[], at, KeyUsage::client_auth())
            {
                Ok(()) => true,
                Err(error) => {
                    refusal = error.into();
                    false
                }
            }
        });
        let Some(authority) = issuer else { return Err(refusal) };
        let chain = vec![shown.into_owned()];
        let certified = Arc::new(CertifiedKey::new(chain, keys.tls_signer()?));
        Ok(Self { keys, certificate, leaf, authority, root, signed, bundle, certified })
    }

    /// The same identity with a newer bundle.
    ///
    /// # Errors
    /// As [`Identity::new`], and when the bundle is not newer, or no longer knows the authority of this identity's
    /// certificate.
    pub fn with_bundle(&self, signed: SignedBundle) -> Result<Self, WireError> {
        let newer = self.bundle.version.saturating_add(1);
        Self::assemble(self.keys.clone(), self.certificate.clone(), signed, self.root, newer)
    }

    /// Loads an identity from its directory.
    ///
    /// # Errors
    /// [`WireError::File`] when the file is missing or open to others, [`WireError::Stored`] when it is
    /// unreadable, or what [`Identity::new`] says.
    pub fn load(directory: &Path) -> Result<Self, WireError> {
        let bytes = Zeroizing::new(files::read_private(&directory.join(IDENTITY_FILE))?);
        let stored: Stored = serde_json::from_slice(&bytes).map_err(|_| WireError::Stored)?;
        let certificate = BASE64_STANDARD.decode(&stored.certificate).map_err(|_| WireError::Stored)?;
        let root = VerifyingKey::from_hex(&stored.root).map_err(|_| WireError::Stored)?;
        Self::new(OwnKeys::restore(&stored.keys)?, certificate, stored.bundle, root)
    }

    /// Stores the identity in a directory that only its owner can enter, as one file, whole or not at all.
    ///
    /// # Errors
    /// [`WireError::File`].
    pub fn save(&self, directory: &Path) -> Result<(), WireError> {
        let stored = Stored {
            keys: self.keys.store(),
            certificate: BASE64_STANDARD.encode(&self.certificate),
            root: self.root.to_hex(),
            bundle: self.signed.clone(),
        };
        let bytes = to_json(&stored)?;
        files::create_private_dir(directory)?;
        files::write_private_atomic(&directory.join(IDENTITY_FILE), &bytes)?;
        Ok(())
    }

    /// When the certificate of a stored identity ends, in seconds since the Unix epoch: for who looks after a process and
    /// has no business with its keys, which are passed over.
    ///
    /// # Errors
    /// As [`Identity::load`].
    pub fn stored_expiry(directory: &Path) -> Result<i64, WireError> {
        let bytes = Zeroizing::new(files::read_private(&directory.join(IDENTITY_FILE))?);
        let shown: Shell = serde_json::from_slice(&bytes).map_err(|_| WireError::Stored)?;
        let certificate = BASE64_STANDARD.decode(&shown.certificate).map_err(|_| WireError::Stored)?;
        Ok(Leaf::parse(&certificate)?.expires)
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

    /// Its private keys.
    #[must_use]
    pub fn own_keys(&self) -> &OwnKeys {
        &self.keys
    }

    /// Its certificate, DER.
    #[must_use]
    pub fn certificate(&self) -> &[u8] {
        &self.certificate
    }

    /// The authority that certified it.
    #[must_use]
    pub fn authority(&self) -> &AuthorityCertificate {
        &self.authority
    }

    fn knows(&self, class: PeerClass) -> Result<(), WireError> {
        if self.bundle.authorities(class).is_empty() { Err(WireError::NoAuthority { class }) } else { Ok(()) }
    }
}

/// The identity that a process has now. Cheap to clone; the clones share it. Listeners and clients made from it show
/// whatever it holds at their next handshake, and trust whom it trusts then: keys and authorities are replaced without
/// closing a listener.
#[derive(Debug, Clone)]
pub struct Credentials(Arc<watch::Sender<Arc<Identity>>>);

impl Credentials {
    /// Credentials that begin with an identity.
    #[must_use]
    pub fn new(identity: Arc<Identity>) -> Self {
        Self(Arc::new(watch::Sender::new(identity)))
    }

    /// The identity now.
    #[must_use]
    pub fn current(&self) -> Arc<Identity> {
        self.0.borrow().clone()
    }

    /// From now on, this one.
    pub fn replace(&self, identity: Arc<Identity>) {
        self.0.send_replace(identity);
    }

    /// Hears of every replacement.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<Arc<Identity>> {
        self.0.subscribe()
    }
}

impl From<Arc<Identity>> for Credentials {
    fn from(identity: Arc<Identity>) -> Self {
        Self::new(identity)
    }
}

impl From<&Arc<Identity>> for Credentials {
    fn from(identity: &Arc<Identity>) -> Self {
        Self::new(identity.clone())
    }
}

impl From<&Credentials> for Credentials {
    fn from(credentials: &Credentials) -> Self {
        credentials.clone()
    }
}

/// Shows the certificate of the moment in a handshake, on either side.
#[derive(Debug)]
struct Shown {
    credentials: Credentials,
    /// Whether the authority's certificate is sent along.
    with_authority: bool,
}

impl Shown {
    fn certified(&self) -> Arc<CertifiedKey> {
        let identity = self.credentials.current();
        if !self.with_authority {
            return identity.certified.clone();
        }
        let chain = vec![
            CertificateDer::from(identity.certificate.clone()),
            CertificateDer::from(identity.authority.der().to_vec()),
        ];
        Arc::new(CertifiedKey::new(chain, identity.certified.key.clone()))
    }
}

impl ResolvesServerCert for Shown {
    fn resolve(&self, _hello: rustls::server::ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.certified())
    }
}

impl ResolvesClientCert for Shown {
    fn resolve(&self, _hints: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.certified())
    }

    fn has_certs(&self) -> bool {
        true
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
pub fn server_config(
    credentials: impl Into<Credentials>,
    accepts: PeerClass,
) -> Result<ServerTls, WireError> {
    let credentials = credentials.into();
    credentials.current().knows(accepts)?;
    let verifier = ClassVerifier::new(Trust::Current(credentials.clone()), accepts, None);
    let shown = Shown { credentials, with_authority: false };
    Ok(ServerTls { config: Arc::new(server(Arc::new(verifier), shown)?), door: Door::Peers(accepts) })
}

/// TLS for a client that expects a peer of one class, and this very peer where an id is given.
///
/// # Errors
/// As [`server_config`].
pub fn client_config(
    credentials: impl Into<Credentials>,
    expects: PeerClass,
    id: Option<SpiffeId>,
) -> Result<Arc<ClientConfig>, WireError> {
    let credentials = credentials.into();
    credentials.current().knows(expects)?;
    let verifier = ClassVerifier::new(Trust::Current(credentials.clone()), expects, id);
    client(Arc::new(verifier), Arc::new(Shown { credentials, with_authority: false }))
}

/// TLS for the listener of newcomers. Sends the authority along, which the newcomer checks against its
/// ticket's root.
pub(crate) fn newcomers_config(
    credentials: Credentials,
    verifier: Arc<dyn ClientCertVerifier>,
) -> Result<ServerTls, WireError> {
    let shown = Shown { credentials, with_authority: true };
    Ok(ServerTls { config: Arc::new(server(verifier, shown)?), door: Door::Newcomers })
}

fn server(verifier: Arc<dyn ClientCertVerifier>, shown: Shown) -> Result<ServerConfig, WireError> {
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(Arc::new(shown));
    config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    config.alpn_protocols = vec![ALPN.to_vec()];
    Ok(config)
}

pub(crate) fn client(
    verifier: Arc<dyn ServerCertVerifier>,
    shown: Arc<dyn ResolvesClientCert>,
) -> Result<Arc<ClientConfig>, WireError> {
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_client_cert_resolver(shown);
    config.resumption = Resumption::disabled();
    config.enable_sni = false;
    config.enable_early_data = false;
    config.alpn_protocols = vec![ALPN.to_vec()];
    Ok(Arc::new(config))
}

/// What a client shows who has one certificate and keeps it.
pub(crate) fn fixed(
    chain: Vec<CertificateDer<'static>>,
    key: Arc<dyn rustls::sign::SigningKey>,
) -> Arc<dyn ResolvesClientCert> {
    Arc::new(rustls::sign::SingleCertAndKey::from(CertifiedKey::new(chain, key)))
}

/// The one provider, with the post-quantum hybrid first.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    let mut provider = aws_lc_rs::default_provider();
    provider.kx_groups = vec![aws_lc_rs::kx_group::X25519MLKEM768, aws_lc_rs::kx_group::X25519];
    Arc::new(provider)
}

/// Where the authorities come from that a verifier goes by.
#[derive(Debug)]
pub(crate) enum Trust {
    /// From the bundle of the moment.
    Current(Credentials),
    /// These.
    Fixed(Vec<AuthorityCertificate>),
}

/// Accepts certificates of one class's authorities, on either side of a connection.
#[derive(Debug)]
pub(crate) struct ClassVerifier {
    trust: Trust,
    class: PeerClass,
    id: Option<SpiffeId>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ClassVerifier {
    pub(crate) fn new(trust: Trust, class: PeerClass, id: Option<SpiffeId>) -> Self {
        Self { trust, class, id, algorithms: algorithms() }
    }

    fn authorities(&self) -> Vec<AuthorityCertificate> {
        match &self.trust {
            Trust::Current(credentials) => credentials.current().bundle.authorities(self.class),
            Trust::Fixed(authorities) => authorities.clone(),
        }
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
        if leaf.class != self.class {
            return Err(refused(IdentityError::Class { id: leaf.id, class: self.class.as_str() }));
        }
        if self.id.as_ref().is_some_and(|wanted| *wanted != leaf.id) {
            return Err(CertificateError::NotValidForName.into());
        }
        let authorities = self.authorities();
        let mut anchors: Vec<TrustAnchor<'_>> = Vec::new();
        let ders: Vec<CertificateDer<'_>> =
            authorities.iter().map(|authority| CertificateDer::from(authority.der())).collect();
        for (authority, der) in authorities.iter().zip(&ders) {
            if authority.class() != self.class || leaf.id.trust_domain() != authority.trust_domain() {
                let trust_domain = authority.trust_domain().to_owned();
                return Err(refused(IdentityError::TrustDomain { id: leaf.id, trust_domain }));
            }
            if authority.valid_at(seconds(now)) {
                let anchor = webpki::anchor_from_trusted_cert(der)
                    .map_err(|_| refused(IdentityError::Certificate("the authority is no trust anchor")))?;
                anchors.push(anchor);
            }
        }
        if anchors.is_empty() {
            return Err(CertificateError::Expired.into());
        }
        // What else the peer sent is not looked at: the only issuers are the authorities of the bundle.
        EndEntityCert::try_from(end_entity)
            .and_then(|certificate| {
                certificate
                    .verify_for_usage(self.algorithms.all, &anchors, &[], now, usage, None, None)
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
