//! Who is at the other end: identities on disk, and TLS 1.3 with certificates on both sides.
//!
//! Every listener accepts one class of peers and every client expects one; the trust anchor is that class's
//! authority from the signed bundle, and whatever else a peer sends along is ignored. The name checked is the
//! SPIFFE ID, never a host name. There is no TLS 1.2, no session ticket, no resumption and no early data, so
//! every connection proves its key anew. X25519MLKEM768 is preferred; an installation whose bundle says so takes nothing
//! else. The provider is named at every configuration: no process-wide default is relied on.
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
use rustls::client::danger::ServerCertVerifier;
use rustls::client::{ResolvesClientCert, Resumption};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::server::ResolvesServerCert;
use rustls::server::danger::ClientCertVerifier;
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, ServerConfig, SignatureScheme};
use rustls_pki_types::{CertificateDer, UnixTime};
use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use webpki::KeyUsage;
use zeroize::Zeroizing;

use crate::client::ClientError;
use crate::danger::{Clock, Defence, Switches};
use crate::files::{self, FileError};
use crate::own_keys::{OwnKeys, StoredKeys};
pub use crate::verify::CHAIN_MAX;
pub(crate) use crate::verify::{
    ClassVerifier, Trust, check_chain_size, no_tls12, refused, schemes, seconds, verify_signature,
};

/// The file of an [`Identity`] within its directory.
pub(crate) const IDENTITY_FILE: &str = "identity.json";

/// How many digits of a key the log tells.
const KEY_DIGITS: usize = 16;

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
                    refusal = rustls::Error::from(error).into();
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

    /// Whether the installation takes no key exchange but the hybrid one.
    pub(crate) fn requires_pq(&self) -> bool {
        self.0.borrow().bundle.require_pq
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

impl Peer {
    /// The first 16 digits of its key, by which the log tells keys apart.
    #[must_use]
    pub fn key_digits(&self) -> String {
        let mut digits = keys::to_hex(&self.key);
        digits.truncate(KEY_DIGITS);
        digits
    }
}

/// How a listener speaks TLS, and whom it lets in. Kept in one value so that a listener for newcomers, whose
/// certificates prove a key and no name, can never be served as one for peers.
#[derive(Debug, Clone)]
pub struct ServerTls {
    pub(crate) config: Arc<ServerConfig>,
    /// The same, with the hybrid key exchange alone.
    hybrid: Arc<ServerConfig>,
    credentials: Credentials,
    pub(crate) door: Door,
    pub(crate) switches: Switches,
    pub(crate) clock: Clock,
}

impl ServerTls {
    fn new(
        credentials: Credentials,
        verifier: Arc<dyn ClientCertVerifier>,
        (door, with_authority): (Door, bool),
        switches: Switches,
    ) -> Result<Self, WireError> {
        let clock = Clock::default();
        let server = |groups: Groups| -> Result<_, WireError> {
            let shown = Shown { credentials: credentials.clone(), with_authority };
            Ok(Arc::new(server(verifier.clone(), shown, groups, (switches, &clock))?))
        };
        let (config, hybrid) = (server(Groups::HybridFirst)?, server(Groups::HybridOnly)?);
        Ok(Self { config, hybrid, credentials, door, switches, clock })
    }

    /// The configuration of the moment: the bundle may ask for more than it did when the listener was made.
    pub(crate) fn current(&self) -> Arc<ServerConfig> {
        let hybrid_only = self.switches.on(Defence::HybridOnly) && self.credentials.requires_pq();
        if hybrid_only { self.hybrid.clone() } else { self.config.clone() }
    }
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
    pub(crate) fn peer(self, certificate: &[u8], switches: Switches) -> Option<Peer> {
        let leaf = crate::verify::leaf(certificate, switches).ok()?;
        let Leaf { id, class, key, epoch, expires, .. } = leaf;
        let door = if switches.on(Defence::Class) { self } else { Self::Peers(class) };
        (door == Self::Peers(class)).then_some(Peer { id, class, key, epoch, expires })
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
    server_config_with(credentials.into(), accepts, Switches::default())
}

pub(crate) fn server_config_with(
    credentials: Credentials,
    accepts: PeerClass,
    switches: Switches,
) -> Result<ServerTls, WireError> {
    credentials.current().knows(accepts)?;
    let trust = Trust::Current(credentials.clone());
    let verifier = ClassVerifier::new(trust, accepts, None).with_switches(switches);
    ServerTls::new(credentials, Arc::new(verifier), (Door::Peers(accepts), false), switches)
}

/// TLS for a client that expects a peer of one class, and this very peer where an id is given, by the bundle of now.
///
/// # Errors
/// As [`server_config`].
pub fn client_config(
    credentials: impl Into<Credentials>,
    expects: PeerClass,
    id: Option<SpiffeId>,
) -> Result<Arc<ClientConfig>, WireError> {
    Ok(ClientTls::new(&credentials.into(), expects, id)?.current())
}

/// How a client speaks TLS, and with whom.
#[derive(Debug, Clone)]
pub(crate) struct ClientTls {
    config: Arc<ClientConfig>,
    /// The same, with the hybrid key exchange alone; and whose bundle says which of the two it is. A client without
    /// an identity has no bundle yet.
    hybrid: Option<(Arc<ClientConfig>, Credentials)>,
}

impl ClientTls {
    pub(crate) fn new(
        credentials: &Credentials,
        expects: PeerClass,
        id: Option<SpiffeId>,
    ) -> Result<Self, WireError> {
        credentials.current().knows(expects)?;
        let one = |groups| {
            let trust = Trust::Current(credentials.clone());
            let verifier = ClassVerifier::new(trust, expects, id.clone());
            let shown = Shown { credentials: credentials.clone(), with_authority: false };
            client(Arc::new(verifier), Arc::new(shown), groups)
        };
        let hybrid = Some((one(Groups::HybridOnly)?, credentials.clone()));
        Ok(Self { config: one(Groups::HybridFirst)?, hybrid })
    }

    /// The configuration of the moment.
    pub(crate) fn current(&self) -> Arc<ClientConfig> {
        match &self.hybrid {
            Some((hybrid, credentials)) if credentials.requires_pq() => hybrid.clone(),
            _ => self.config.clone(),
        }
    }
}

impl From<Arc<ClientConfig>> for ClientTls {
    fn from(config: Arc<ClientConfig>) -> Self {
        Self { config, hybrid: None }
    }
}

/// TLS for the listener of newcomers. Sends the authority along, which the newcomer checks against its
/// ticket's root.
pub(crate) fn newcomers_config(
    credentials: Credentials,
    verifier: Arc<dyn ClientCertVerifier>,
) -> Result<ServerTls, WireError> {
    ServerTls::new(credentials, verifier, (Door::Newcomers, true), Switches::default())
}

fn server(
    verifier: Arc<dyn ClientCertVerifier>,
    shown: Shown,
    groups: Groups,
    (switches, clock): (Switches, &Clock),
) -> Result<ServerConfig, WireError> {
    let mut config = ServerConfig::builder_with_details(provider(groups), Arc::new(clock.clone()))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(Arc::new(shown));
    if switches.on(Defence::NoTickets) {
        config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
    }
    if switches.on(Defence::NoEarlyData) {
        config.max_early_data_size = 0;
    }
    config.alpn_protocols = vec![ALPN.to_vec()];
    #[cfg(test)]
    crate::danger::weaken(&mut config, switches);
    Ok(config)
}

pub(crate) fn client(
    verifier: Arc<dyn ServerCertVerifier>,
    shown: Arc<dyn ResolvesClientCert>,
    groups: Groups,
) -> Result<Arc<ClientConfig>, WireError> {
    let mut config = ClientConfig::builder_with_provider(provider(groups))
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

/// Which key exchanges are offered and taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Groups {
    /// The post-quantum hybrid first, X25519 where the other end knows nothing better.
    HybridFirst,
    /// The hybrid alone.
    HybridOnly,
}

/// The one provider.
pub(crate) fn provider(groups: Groups) -> Arc<CryptoProvider> {
    let mut provider = aws_lc_rs::default_provider();
    provider.kx_groups = match groups {
        Groups::HybridFirst => vec![aws_lc_rs::kx_group::X25519MLKEM768, aws_lc_rs::kx_group::X25519],
        Groups::HybridOnly => vec![aws_lc_rs::kx_group::X25519MLKEM768],
    };
    Arc::new(provider)
}

/// The wall clock, in seconds since the Unix epoch.
pub(crate) fn unix_now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}
