//! Enrolment: how a newcomer with a ticket gets its first certificate.
//!
//! The newcomer makes its key, connects with a self-signed certificate (so the handshake itself proves that
//! it holds the key), and accepts only a server whose certificate leads through a management authority to the
//! root named in the ticket. Only then does it send the ticket. What comes back is checked against the same
//! root before it is stored.
//!
//! INVARIANT: the ticket's secret is sent to nobody who did not prove to be management under the ticket's
//! root.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use identity::attest::challenge::ChallengeReply;
use identity::attest::{Evidence, LocalProgram};
use identity::{AuthorityCertificate, IdentityError, PeerClass, SignedBundle, SpiffeId, Ticket};
use keys::VerifyingKey;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use webpki::KeyUsage;

use crate::api::{KeyChallenge, KeyOffer};
use crate::client::{Client, ClientError};
use crate::own_keys::OwnKeys;
use crate::proofs::Proofs;
use crate::refusals::CertificateRefused;
use crate::renew;
use crate::tls::{self, ClassVerifier, Credentials, Groups, Identity, ServerTls, Trust, WireError};

/// The route of enrolment; a POST of [`EnrolRequest`], answered with [`EnrolReply`].
pub const ENROL_PATH: &str = "/v1/enrol";

/// The route of the step before, for who has more to show than a ticket; a POST of a
/// [`ChallengeRequest`](identity::attest::challenge::ChallengeRequest), answered with
/// [`ChallengeReply`].
pub const CHALLENGE_PATH: &str = "/v1/enrol/challenge";

/// Every refusal at the newcomers' door is answered this long after its request has arrived, so that the time says
/// nothing of the reason.
pub const REFUSED_AFTER: Duration = Duration::from_millis(250);

/// Largest body at the newcomers' door, in bytes.
pub const ENROL_BYTES_MAX: usize = 64 * 1024;

/// How long a newcomer waits for management to come up.
pub const WAIT_MAX: Duration = Duration::from_secs(30);

const RETRY: Duration = Duration::from_millis(100);
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// The other end of a connection at the newcomers' door. It has proven that it holds the key, and nothing
/// else.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Newcomer {
    /// The public key to be certified: SubjectPublicKeyInfo, DER.
    pub spki_der: Vec<u8>,
    /// Its SHA-256.
    pub key: [u8; 32],
    /// Which program it is, where it came by the socket and the kernel told.
    pub local: Option<LocalProgram>,
}

impl Newcomer {
    /// What the certificate of a connection at the newcomers' door says.
    pub(crate) fn of(certificate: &[u8]) -> Option<Self> {
        let spki_der = identity::leaf::newcomer_key(certificate).ok()?;
        let key = keys::Digest::of(&spki_der).0;
        Some(Self { spki_der, key, local: None })
    }
}

/// What a newcomer sends.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EnrolRequest {
    /// The ticket, as it was handed out.
    pub ticket: String,
    /// Who the newcomer says it is; must be whom the ticket was made for.
    pub id: SpiffeId,
    /// Its keys; the TLS key is the one that it connected with.
    pub offer: KeyOffer,
    /// What else it shows.
    #[serde(default)]
    pub evidence: Evidence,
}

/// Where management listens to newcomers.
#[derive(Debug, Clone)]
pub struct At {
    address: SocketAddr,
    socket: Option<PathBuf>,
}

impl From<SocketAddr> for At {
    fn from(address: SocketAddr) -> Self {
        Self { address, socket: None }
    }
}

impl At {
    /// The socket of this machine, rather than the address.
    #[must_use]
    pub fn socket(address: SocketAddr, socket: PathBuf) -> Self {
        Self { address, socket: Some(socket) }
    }
}

/// What it gets.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EnrolReply {
    /// Its certificate, and what it must open before the certificate counts.
    pub challenge: KeyChallenge,
    /// Whom it may trust from now on.
    pub bundle: SignedBundle,
}

/// TLS for management's listener of newcomers. Requests carry a [`Newcomer`] in their extensions, and no
/// peer.
///
/// # Errors
/// [`WireError::Tls`] when the library refuses.
pub fn enrolment_server_config(credentials: impl Into<Credentials>) -> Result<ServerTls, WireError> {
    let credentials = credentials.into();
    let trust = Trust::Current(credentials.clone());
    tls::newcomers_config(credentials, Arc::new(NewcomerVerifier { trust }))
}

/// Enrols with a ticket, proves the new keys at `members` (where management listens to its class), and stores the
/// identity in `directory`. Waits for management to come up, at most [`WAIT_MAX`].
///
/// # Errors
/// [`WireError::Identity`] when the ticket is unreadable or the reply does not stand under its root,
/// [`WireError::Enrolment`] when management cannot be reached, is not management, or refuses,
/// [`WireError::Renewal`] when it does not take the keys.
pub async fn enrol(
    at: impl Into<At>,
    members: SocketAddr,
    ticket: &str,
    id: &SpiffeId,
    directory: &Path,
) -> Result<Identity, WireError> {
    enrol_showing(at, members, ticket, id, directory, Proofs::default()).await
}

/// As [`enrol`], and shows more than the ticket.
///
/// # Errors
/// As [`enrol`], and [`WireError::Proof`] when it cannot be shown.
pub async fn enrol_showing(
    at: impl Into<At>,
    members: SocketAddr,
    ticket: &str,
    id: &SpiffeId,
    directory: &Path,
    proofs: Proofs,
) -> Result<Identity, WireError> {
    let ticket = Ticket::parse(ticket)?;
    let verifier =
        ManagementVerifier { root: *ticket.root(), management: SpiffeId::management(id.trust_domain())? };
    let keys = OwnKeys::generate()?;
    let client = newcomers_client(Arc::new(verifier), &keys, at.into())?;
    let offer = renew::first_offer(&keys, id);
    let evidence = evidence(&client, proofs, id, &offer).await?;
    let request = EnrolRequest { ticket: ticket.to_text().to_string(), id: id.clone(), offer, evidence };
    let reply: EnrolReply = ask(&client, ENROL_PATH, &request).await?;

    let certificate = BASE64_STANDARD
        .decode(&reply.challenge.certificate)
        .map_err(|_| IdentityError::Certificate("the reply's certificate is unreadable"))?;
    let identity = Arc::new(Identity::new(keys, certificate, reply.bundle, *ticket.root())?);
    if identity.id() != id {
        return Err(IdentityError::Certificate("the reply's certificate is for another id").into());
    }
    identity.save(directory)?;
    renew::activate(&identity, members, &reply.challenge).await?;
    Arc::into_inner(identity).map_or_else(|| Identity::load(directory), Ok)
}

/// A client with nothing but a key, which trusts whom the verifier says.
pub(crate) fn newcomers_client(
    verifier: Arc<dyn ServerCertVerifier>,
    keys: &OwnKeys,
    at: At,
) -> Result<Client, WireError> {
    let shown = tls::fixed(vec![keys.self_signed()?], keys.tls_signer()?);
    let tls = tls::client(verifier, shown, Groups::HybridFirst)?;
    Ok(match at.socket {
        Some(socket) => Client::at_socket(tls, at.address, socket),
        None => Client::with_config(tls, at.address),
    })
}

/// What there is to show, for a challenge that management makes for this connection's key.
async fn evidence(
    client: &Client,
    proofs: Proofs,
    id: &SpiffeId,
    offer: &KeyOffer,
) -> Result<Evidence, WireError> {
    if proofs.is_empty() {
        return Ok(Evidence::default());
    }
    let ended = |_| WireError::Proof("what was to be shown could not be made".to_owned());
    let making = tokio::task::spawn_blocking(move || proofs.request().map(|request| (proofs, request)));
    let (proofs, request) = making.await.map_err(ended)??;
    let challenge: ChallengeReply = ask(client, CHALLENGE_PATH, &request).await?;
    let (id, keys) = (id.clone(), offer.keys.clone());
    let showing = tokio::task::spawn_blocking(move || proofs.show(&challenge, &id, &keys));
    showing.await.map_err(ended)?
}

/// Asks until management listens. Only a connection that never came about is tried again: a ticket works
/// once, so after anything else a second try would be refused and hide the first error.
async fn ask<T: serde::de::DeserializeOwned>(
    client: &Client,
    path: &str,
    request: &impl Serialize,
) -> Result<T, WireError> {
    let until = Instant::now() + WAIT_MAX;
    loop {
        match client.call_json(hyper::Method::POST, path, &[], Some(request), REQUEST_TIMEOUT).await {
            Err(ClientError::Connect { .. }) if Instant::now() < until => tokio::time::sleep(RETRY).await,
            other => return other.map_err(WireError::Enrolment),
        }
    }
}

/// Accepts a certificate that shows a P-256 key and was made by the one who shows it.
#[derive(Debug)]
struct NewcomerVerifier {
    /// What it looks a refused certificate over by.
    trust: Trust,
}

impl NewcomerVerifier {
    fn check(
        &self,
        end_entity: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
    ) -> Result<(), CertificateRefused> {
        tls::check_chain_size(end_entity, others)?;
        if !others.is_empty() {
            return Err(IdentityError::Certificate("a newcomer has no authority").into());
        }
        Ok(identity::leaf::newcomer_key(end_entity).map(drop)?)
    }
}

impl ClientCertVerifier for NewcomerVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.check(end_entity, intermediates).map_err(|refused| self.trust.look_into(refused, end_entity))?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(tls::no_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        tls::verify_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ECDSA_NISTP256_SHA256]
    }
}

/// Accepts management alone, by a chain that ends in the ticket's root.
#[derive(Debug)]
struct ManagementVerifier {
    root: VerifyingKey,
    management: SpiffeId,
}

impl ServerCertVerifier for ManagementVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        tls::check_chain_size(end_entity, intermediates)?;
        let [authority] = intermediates else {
            return Err(tls::refused(IdentityError::Certificate("management must send its authority along")));
        };
        let authority = AuthorityCertificate::parse(authority).map_err(tls::refused)?;
        // The class stands in the authority's own certificate, under the root's signature: an authority for
        // agents that certified the name of management would be refused here.
        if authority.class() != PeerClass::Management {
            return Err(tls::refused(IdentityError::Certificate("the authority is not management's")));
        }
        authority.verify(&self.root, tls::seconds(now)).map_err(tls::refused)?;
        let trust = Trust::Fixed(vec![authority]);
        let verifier = ClassVerifier::new(trust, PeerClass::Management, Some(self.management.clone()));
        verifier.check(end_entity, &[], now, KeyUsage::server_auth())?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(tls::no_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        tls::verify_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        tls::schemes()
    }
}
