//! Attacks on the edge, over real sockets and with real handshakes: identities, limits, cutting, enrolment.

mod rogue;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::routing::{get, post};
use axum::{Extension, Json};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use hyper::Method;
use hyper::body::Bytes;
use identity::{
    Authority, Bundle, EntryBook, KeySet, Limits, PeerClass, Requirements, Root, SignedBundle, SpiffeId,
    Ticket,
};
use keys::SigningKey;
use keys::sealing::{Channel, Context, SealingPublicKey};
use rcgen::PublicKeyData as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::*;
use crate::api::{KeyChallenge, KeyProof};
use crate::client::{Client, ClientError, Reached};
use crate::enrol::{ENROL_PATH, EnrolReply, EnrolRequest, enrol, enrolment_server_config};
use crate::own_keys::OwnKeys;
use crate::renew::ACTIVATE_PATH;
use crate::tls::{self, ClassVerifier, Identity, Trust, WireError, client_config, server_config, unix_now};

const PATIENCE: Duration = Duration::from_secs(20);

/// An installation: root, authorities, bundle.
struct House {
    trust_domain: &'static str,
    seed: u8,
    authorities: BTreeMap<PeerClass, Authority>,
    root: Root,
    signed: SignedBundle,
}

impl House {
    fn new(trust_domain: &'static str, seed: u8) -> Self {
        let root = Root::new(trust_domain, SigningKey::from_seed(&[seed; 32])).unwrap();
        let mut authorities = BTreeMap::new();
        for (number, class) in (1..).zip(PeerClass::ALL) {
            let key = SigningKey::from_seed(&[seed + number; 32]);
            authorities
                .insert(class, root.authority(class, key, unix_now() - 3600, 86_400, [number; 16]).unwrap());
        }
        let public = |seed: u8| SigningKey::from_seed(&[seed; 32]).verifying_key().to_hex();
        let certificates =
            authorities.iter().map(|(class, own)| (*class, vec![Bundle::encode(own.certificate())]));
        let bundle = Bundle {
            trust_domain: trust_domain.to_owned(),
            version: 1,
            authorities: certificates.collect(),
            grant_keys: vec![public(201)],
            log_key: public(202),
            release_keys: vec![public(203), public(204)],
            release_threshold: 2,
            require_pq: false,
        };
        let signed = root.sign_bundle(&bundle).unwrap();
        Self { trust_domain, seed, authorities, root, signed }
    }

    fn home() -> Self {
        Self::new("home.test", 1)
    }

    fn identity_until(&self, id: &SpiffeId, ttl_s: i64, now: i64) -> Arc<Identity> {
        let key = OwnKeys::generate().unwrap();
        let authority = &self.authorities[&id.class().unwrap()];
        let certificate = authority.issue(&key.spki(), id, 1, now, ttl_s, [5; 16]).unwrap();
        let root = self.root.verifying_key();
        Arc::new(Identity::new(key, certificate, self.signed.clone(), root).unwrap())
    }

    fn identity(&self, id: &SpiffeId) -> Arc<Identity> {
        self.identity_until(id, 600, unix_now())
    }

    fn agent(&self) -> SpiffeId {
        SpiffeId::agent(self.trust_domain, "agent-1").unwrap()
    }

    fn unit(&self) -> SpiffeId {
        SpiffeId::unit(self.trust_domain, "market", 1).unwrap()
    }

    fn management(&self) -> SpiffeId {
        SpiffeId::management(self.trust_domain).unwrap()
    }

    /// A client of `unit` with any certificate and key that an attacker may have put together.
    fn client_with(
        &self,
        certificate: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
    ) -> Arc<rustls::ClientConfig> {
        let authorities = self.identity(&self.agent()).bundle().authorities(PeerClass::Market);
        let verifier = ClassVerifier::new(Trust::Fixed(authorities), PeerClass::Market, None);
        let key = rustls::crypto::aws_lc_rs::sign::any_supported_type(&key).unwrap();
        tls::client(Arc::new(verifier), tls::fixed(certificate, key), tls::Groups::HybridFirst).unwrap()
    }

    /// A leaf that the class's real authority key signed, in spite of what our code would issue.
    fn forge(&self, class: PeerClass, id: &SpiffeId, key: &rcgen::KeyPair) -> CertificateDer<'static> {
        let number = PeerClass::ALL.iter().position(|other| *other == class).unwrap() as u8 + 1;
        let mut pkcs8 = keys::from_hex::<16>("302e020100300506032b657004220420").unwrap().to_vec();
        pkcs8.extend([self.seed + number; 32]);
        let pkcs8 = PrivatePkcs8KeyDer::from(pkcs8);
        let signer = rcgen::KeyPair::from_pkcs8_der_and_sign_algo(&pkcs8, &rcgen::PKCS_ED25519).unwrap();
        let authority = CertificateDer::from(self.authorities[&class].certificate());
        let issuer = rcgen::Issuer::from_ca_cert_der(&authority, signer).unwrap();
        leaf_params(id).signed_by(key, &issuer).unwrap().der().clone()
    }
}

fn leaf_params(id: &SpiffeId) -> rcgen::CertificateParams {
    let mut params = rcgen::CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(rcgen::DnType::CommonName, "epoch=1");
    params.subject_alt_names = vec![rcgen::SanType::URI(id.as_str().try_into().unwrap())];
    params.key_usages = vec![rcgen::KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth, rcgen::ExtendedKeyUsagePurpose::ServerAuth];
    params
}

/// A running server, and what its handlers saw.
struct Running {
    address: SocketAddr,
    connections: Arc<Connections>,
    calls: Arc<AtomicUsize>,
    slow: Arc<Notify>,
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

async fn start(tls: ServerTls, options: ServerOptions) -> Running {
    let calls = Arc::new(AtomicUsize::new(0));
    let slow = Arc::new(Notify::new());
    let (count, begun) = (calls.clone(), slow.clone());
    let router = Router::new()
        .route(
            "/who",
            get(async move |Extension(peer): Extension<Peer>| {
                count.fetch_add(1, Ordering::SeqCst);
                Json((peer.id.to_string(), peer.class.as_str(), peer.epoch, keys::to_hex(&peer.key)))
            }),
        )
        .route("/length", post(async |body: Bytes| Json(body.len())))
        .route("/panic", get(async || -> String { panic!("a bug") }))
        .route(
            "/slow",
            get(async move || {
                begun.notify_one();
                std::future::pending::<()>().await;
            }),
        )
        .route("/refuse", get(async || Problem::forbidden("no_grant", "not for you")));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let connections = Connections::new();
    let (stop, stopped) = watch::channel(false);
    let task = tokio::spawn(serve(listener, tls, router, options, connections.clone(), stopped));
    Running { address, connections, calls, slow, stop, task }
}

/// A unit that accepts agents.
async fn unit(house: &House) -> Running {
    let tls = server_config(house.identity(&house.unit()), PeerClass::Agents).unwrap();
    start(tls, ServerOptions::default()).await
}

fn client(house: &House, identity: Arc<Identity>, running: &Running) -> Client {
    Client::new(identity, PeerClass::Market, Some(house.unit()), running.address).unwrap()
}

type Who = (String, String, u32, String);

async fn who(client: &Client) -> Result<Who, ClientError> {
    client.call_json(Method::GET, "/who", &[], None::<&()>, PATIENCE).await
}

async fn is_refused(running: &Running, client: &Client) {
    let error = who(client).await.expect_err("a stranger was let in");
    // A refusal that arrives as a reset instead of an alert leaves it open whether the request arrived.
    assert!(matches!(error, ClientError::Handshake { .. } | ClientError::Lost { .. }), "{error}");
    assert_eq!(running.calls.load(Ordering::SeqCst), 0, "a stranger's request was handled");
}

async fn raw(house: &House, running: &Running) -> TlsStream<TcpStream> {
    let config = client_config(house.identity(&house.agent()), PeerClass::Market, None).unwrap();
    let stream = TcpStream::connect(running.address).await.unwrap();
    let name = ServerName::IpAddress(running.address.ip().into());
    TlsConnector::from(config).connect(name, stream).await.unwrap()
}

/// Sends bytes as they are and returns the status line and all that follows it.
async fn raw_reply(house: &House, running: &Running, request: &[u8]) -> String {
    let mut stream = raw(house, running).await;
    let _ = stream.write_all(request).await;
    let _ = stream.flush().await;
    let mut reply = vec![0; 4096];
    let read = tokio::time::timeout(PATIENCE, stream.read(&mut reply)).await.unwrap().unwrap_or(0);
    String::from_utf8_lossy(&reply[..read]).into_owned()
}

async fn wait_for_count(connections: &Connections, count: usize) {
    let reached = async {
        while connections.count() != count {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, reached).await.unwrap();
}

#[tokio::test]
async fn a_peer_of_the_class_is_let_in_and_known_by_its_certificate() {
    let house = House::home();
    let running = unit(&house).await;
    let identity = house.identity(&house.agent());
    let who = who(&client(&house, identity.clone(), &running)).await.unwrap();
    assert_eq!(who, (house.agent().to_string(), "agents".to_owned(), 1, keys::to_hex(&identity.key())));
}

#[tokio::test]
async fn no_certificate_is_refused() {
    let house = House::home();
    let running = unit(&house).await;
    let authorities = house.identity(&house.agent()).bundle().authorities(PeerClass::Market);
    let verifier = ClassVerifier::new(Trust::Fixed(authorities), PeerClass::Market, None);
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    is_refused(&running, &Client::with_config(Arc::new(config), running.address)).await;
}

#[tokio::test]
async fn a_certificate_of_another_class_is_refused() {
    let house = House::home();
    let running = unit(&house).await;
    for id in [
        house.management(),
        house.unit(),
        SpiffeId::desk("home.test", 1).unwrap(),
        SpiffeId::operator("home.test", "ann").unwrap(),
    ] {
        is_refused(&running, &client(&house, house.identity(&id), &running)).await;
    }
}

#[tokio::test]
async fn a_certificate_of_another_trust_domain_or_another_root_is_refused() {
    let house = House::home();
    let running = unit(&house).await;
    // Another installation, and one that gave itself the same name.
    for stranger in [House::new("away.test", 50), House::new("home.test", 50)] {
        let agent = rcgen::KeyPair::generate().unwrap();
        let certificate = stranger.forge(PeerClass::Agents, &stranger.agent(), &agent);
        let authority = CertificateDer::from(stranger.authorities[&PeerClass::Agents].certificate().to_vec());
        for chain in [vec![certificate.clone()], vec![certificate.clone(), authority]] {
            let config = house.client_with(chain, PrivatePkcs8KeyDer::from(agent.serialize_der()).into());
            is_refused(&running, &Client::with_config(config, running.address)).await;
        }
    }
}

#[tokio::test]
async fn a_class_whose_authority_is_stolen_cannot_speak_for_another() {
    let house = House::home();
    let running = unit(&house).await;
    let key = rcgen::KeyPair::generate().unwrap();
    let private = || PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
    // The desk's authority certifies an agent; the agents' authority certifies a desk.
    let desk = SpiffeId::desk("home.test", 1).unwrap();
    for (class, id) in [(PeerClass::Desk, house.agent()), (PeerClass::Agents, desk)] {
        let certificate = house.forge(class, &id, &key);
        let authority = CertificateDer::from(house.authorities[&class].certificate().to_vec());
        let config = house.client_with(vec![certificate, authority], private());
        is_refused(&running, &Client::with_config(config, running.address)).await;
    }
    // The forgery itself is sound: with its own class's authority and name it is let in.
    let certificate = house.forge(PeerClass::Agents, &house.agent(), &key);
    let config = house.client_with(vec![certificate], private());
    assert!(who(&Client::with_config(config, running.address)).await.is_ok());
}

#[tokio::test]
async fn a_self_signed_certificate_is_refused() {
    let house = House::home();
    let running = unit(&house).await;
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = leaf_params(&house.agent()).self_signed(&key).unwrap().der().clone();
    let config = house.client_with(vec![certificate], PrivatePkcs8KeyDer::from(key.serialize_der()).into());
    is_refused(&running, &Client::with_config(config, running.address)).await;
}

#[tokio::test]
async fn a_stolen_certificate_without_its_key_is_refused() {
    let house = House::home();
    let running = unit(&house).await;
    let (own, other) = (rcgen::KeyPair::generate().unwrap(), rcgen::KeyPair::generate().unwrap());
    let certificate = house.forge(PeerClass::Agents, &house.agent(), &own);
    // The library refuses a pair that does not match, so the resolver is told to say nothing about the match.
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    let key = provider
        .key_provider
        .load_private_key(PrivatePkcs8KeyDer::from(other.serialize_der()).into())
        .unwrap();
    let certified = Arc::new(rustls::sign::CertifiedKey::new(vec![certificate], key));
    let authorities = house.identity(&house.agent()).bundle().authorities(PeerClass::Market);
    let verifier = ClassVerifier::new(Trust::Fixed(authorities), PeerClass::Market, None);
    let config = rustls::ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_client_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(certified)));
    is_refused(&running, &Client::with_config(Arc::new(config), running.address)).await;
}

#[tokio::test]
async fn a_certificate_that_expired_a_second_ago_is_refused() {
    let house = House::home();
    let running = unit(&house).await;
    let expired = house.identity_until(&house.agent(), 60, unix_now() - 61);
    is_refused(&running, &client(&house, expired, &running)).await;
}

#[tokio::test]
async fn a_certificate_that_is_not_valid_yet_is_refused() {
    let house = House::home();
    let running = unit(&house).await;
    let early = house.identity_until(&house.agent(), 600, unix_now() + 60);
    is_refused(&running, &client(&house, early, &running)).await;
}

#[tokio::test]
async fn an_overlong_chain_or_an_oversized_certificate_is_refused() {
    let house = House::home();
    let running = unit(&house).await;
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = house.forge(PeerClass::Agents, &house.agent(), &key);
    let authority = CertificateDer::from(house.authorities[&PeerClass::Agents].certificate().to_vec());
    let mut large = leaf_params(&house.agent());
    large.custom_extensions =
        vec![rcgen::CustomExtension::from_oid_content(&[1, 3, 6, 1, 4, 1, 9], vec![0; 9000])];
    let large = large.self_signed(&key).unwrap().der().clone();
    for chain in [vec![certificate, authority.clone(), authority], vec![large]] {
        let config = house.client_with(chain, PrivatePkcs8KeyDer::from(key.serialize_der()).into());
        is_refused(&running, &Client::with_config(config, running.address)).await;
    }
}

#[tokio::test]
async fn a_client_sends_nothing_to_a_server_that_is_not_the_expected_one() {
    let house = House::home();
    let running = unit(&house).await;
    let agent = house.identity(&house.agent());
    let second = SpiffeId::unit("home.test", "market", 2).unwrap();
    let stranger = House::new("home.test", 50);
    let strangers_agent = stranger.identity(&stranger.agent());
    for client in [
        Client::new(agent.clone(), PeerClass::Ledger, None, running.address).unwrap(),
        Client::new(agent, PeerClass::Market, Some(second), running.address).unwrap(),
        Client::new(strangers_agent, PeerClass::Market, None, running.address).unwrap(),
    ] {
        let error = who(&client).await.unwrap_err();
        assert!(matches!(error, ClientError::Handshake { .. }), "{error}");
        assert_eq!(error.reached(), Reached::No);
    }
    assert_eq!(running.calls.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn tls_1_2_is_refused_with_the_alert_for_it() {
    let house = House::home();
    let running = unit(&house).await;
    // supported_groups P-256, ec_point_formats, signature_algorithms ECDSA P-256 and RSA; no
    // supported_versions.
    let extensions: &[u8] = &[
        0x00, 0x0a, 0x00, 0x04, 0x00, 0x02, 0x00, 0x17, 0x00, 0x0b, 0x00, 0x02, 0x01, 0x00, 0x00, 0x0d, 0x00,
        0x06, 0x00, 0x04, 0x04, 0x03, 0x08, 0x04,
    ];
    let mut hello = vec![0x03, 0x03];
    hello.extend([7; 32]);
    hello.push(0);
    hello.extend([0x00, 0x04, 0xc0, 0x2b, 0xc0, 0x2f, 0x01, 0x00]);
    hello.extend((extensions.len() as u16).to_be_bytes());
    hello.extend(extensions);
    let mut record = vec![0x16, 0x03, 0x01];
    record.extend((hello.len() as u16 + 4).to_be_bytes());
    record.extend([0x01, 0x00]);
    record.extend((hello.len() as u16).to_be_bytes());
    record.extend(hello);
    let mut stream = TcpStream::connect(running.address).await.unwrap();
    stream.write_all(&record).await.unwrap();
    let mut alert = Vec::new();
    let _ = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut alert)).await.unwrap();
    // A fatal (2) protocol_version (70) alert.
    assert_eq!((alert[0], &alert[3..]), (0x15, [0x00, 0x02, 0x02, 70].as_slice()));
}

#[tokio::test]
async fn the_key_exchange_is_post_quantum_and_no_session_ticket_is_issued() {
    let house = House::home();
    let running = unit(&house).await;
    let mut stream = raw(&house, &running).await;
    stream.write_all(b"GET /who HTTP/1.1\r\nconnection: close\r\n\r\n").await.unwrap();
    let mut reply = Vec::new();
    stream.read_to_end(&mut reply).await.unwrap();
    assert!(reply.starts_with(b"HTTP/1.1 200"));
    let session = stream.get_ref().1;
    assert_eq!(session.negotiated_key_exchange_group().unwrap().name(), rustls::NamedGroup::X25519MLKEM768);
    assert_eq!(session.protocol_version(), Some(rustls::ProtocolVersion::TLSv1_3));
    assert_eq!(session.tls13_tickets_received(), 0);
    assert!(!session.is_early_data_accepted());
}

#[tokio::test]
async fn a_head_that_is_too_large_is_refused() {
    let house = House::home();
    let running = unit(&house).await;
    let headers = |count: usize| (0..count).map(|number| format!("x-{number}: 1\r\n")).collect::<String>();
    let many = format!("GET /who HTTP/1.1\r\n{}\r\n", headers(HEADERS_MAX + 1));
    assert!(raw_reply(&house, &running, many.as_bytes()).await.starts_with("HTTP/1.1 431"));
    // The server answers 431 and closes without reading on, so the answer may be lost to a reset.
    let long = format!("GET /who HTTP/1.1\r\nx: {}\r\n\r\n", "a".repeat(HEAD_BYTES_MAX));
    let reply = raw_reply(&house, &running, long.as_bytes()).await;
    assert!(reply.is_empty() || reply.starts_with("HTTP/1.1 431"), "{reply}");
    let path = format!("GET /who?{} HTTP/1.1\r\n\r\n", "a".repeat(PATH_BYTES_MAX));
    assert!(raw_reply(&house, &running, path.as_bytes()).await.starts_with("HTTP/1.1 400"));
    assert_eq!(running.calls.load(Ordering::SeqCst), 0);
    let fits = format!("GET /who HTTP/1.1\r\n{}\r\n", headers(HEADERS_MAX));
    assert!(raw_reply(&house, &running, fits.as_bytes()).await.starts_with("HTTP/1.1 200"));
}

#[tokio::test]
async fn a_body_that_is_too_large_is_refused_announced_or_not() {
    let house = House::home();
    let running = unit(&house).await;
    let announced = format!("POST /length HTTP/1.1\r\ncontent-length: {}\r\n\r\n", BODY_BYTES_MAX + 1);
    assert!(raw_reply(&house, &running, announced.as_bytes()).await.starts_with("HTTP/1.1 413"));
    let size = BODY_BYTES_MAX + 1;
    let mut chunked =
        format!("POST /length HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n{size:x}\r\n").into_bytes();
    chunked.extend(vec![b'a'; size]);
    assert!(raw_reply(&house, &running, &chunked).await.starts_with("HTTP/1.1 413"));
    // The largest that fits.
    let client = client(&house, house.identity(&house.agent()), &running);
    let reply =
        client.call(Method::POST, "/length", &[], Some(vec![b'a'; BODY_BYTES_MAX]), PATIENCE).await.unwrap();
    assert_eq!(reply.body, BODY_BYTES_MAX.to_string().as_bytes());
    let error = client.call(Method::POST, "/length", &[], Some(vec![0; BODY_BYTES_MAX + 1]), PATIENCE).await;
    assert!(matches!(error, Err(ClientError::Unusable(_))));
}

#[tokio::test]
async fn a_path_of_another_spelling_is_refused_before_it_is_routed() {
    let house = House::home();
    let running = unit(&house).await;
    for path in [
        "/x/../who",
        "/./who",
        "//who",
        "/who/",
        "/%77ho",
        "/%2e%2e/who",
        "/who%00",
        "/who\\",
        "/who;a",
        "/wh\u{e9}",
        "http://evil.test/who",
        "*",
    ] {
        let request = format!("GET {path} HTTP/1.1\r\n\r\n");
        let reply = raw_reply(&house, &running, request.as_bytes()).await;
        assert!(reply.starts_with("HTTP/1.1 400"), "{path}: {reply}");
    }
    assert_eq!(running.calls.load(Ordering::SeqCst), 0);
    assert!(is_canonical("/"));
    assert!(is_canonical("/v1/orders/core-2001.a_b~c:d"));
    assert!(!is_canonical(""));
}

#[tokio::test]
async fn cutting_a_peer_ends_its_requests_at_once_and_nobody_elses() {
    let house = House::home();
    let running = unit(&house).await;
    let other = SpiffeId::agent("home.test", "agent-2").unwrap();
    let victim = client(&house, house.identity(&house.agent()), &running);
    let bystander = client(&house, house.identity(&other), &running);
    who(&bystander).await.unwrap();
    let call = tokio::spawn(async move { victim.call(Method::GET, "/slow", &[], None, PATIENCE).await });
    running.slow.notified().await;
    assert_eq!(running.connections.count(), 2);
    assert_eq!(running.connections.cut(&house.agent()), 1);
    let error = tokio::time::timeout(Duration::from_secs(5), call).await.unwrap().unwrap().unwrap_err();
    assert_eq!(error.reached(), Reached::Unknown);
    wait_for_count(&running.connections, 1).await;
    who(&bystander).await.unwrap();
    assert_eq!(running.connections.cut(&house.agent()), 0);
    assert_eq!(running.connections.cut_all(), 1);
    wait_for_count(&running.connections, 0).await;
}

#[tokio::test]
async fn a_kept_connection_that_died_is_replaced() {
    let house = House::home();
    let running = unit(&house).await;
    let client = client(&house, house.identity(&house.agent()), &running);
    for round in 1..=5 {
        who(&client).await.unwrap();
        who(&client).await.unwrap();
        assert_eq!(running.connections.count(), 1, "one connection serves requests that follow each other");
        running.connections.cut_all();
        wait_for_count(&running.connections, 0).await;
        assert_eq!(running.calls.load(Ordering::SeqCst), 2 * round, "a request was handled twice");
    }
}

#[test]
fn a_connection_never_outlives_its_certificate() {
    let (start, age) = (Instant::now(), CONNECTION_AGE_MAX);
    let lives = |expires| {
        let (soft, hard) = life(start, 1000, expires, age);
        (soft - start, hard - start)
    };
    let seconds = Duration::from_secs;
    assert_eq!(lives(None), (age, age + STOP_GRACE));
    assert_eq!(lives(Some(1_000_000)), (age, age + STOP_GRACE));
    assert_eq!(lives(Some(1060)), (seconds(60) - STOP_GRACE, seconds(60)));
    assert_eq!(lives(Some(1001)), (seconds(0), seconds(1)));
    assert_eq!(lives(Some(900)), (seconds(0), seconds(0)));
    assert_eq!(lives(Some(i64::MIN)), (seconds(0), seconds(0)));
}

#[tokio::test]
async fn a_handler_that_panics_costs_its_request_and_no_more() {
    let house = House::home();
    let running = unit(&house).await;
    let client = client(&house, house.identity(&house.agent()), &running);
    let error = client.call_json::<(), ()>(Method::GET, "/panic", &[], None, PATIENCE).await.unwrap_err();
    assert_eq!(error.problem().unwrap(), &Problem::internal());
    who(&client).await.unwrap();
    assert_eq!(running.connections.count(), 1);
}

#[tokio::test]
async fn a_refusal_arrives_with_its_reason() {
    let house = House::home();
    let running = unit(&house).await;
    let client = client(&house, house.identity(&house.agent()), &running);
    let error = client.call_json::<(), ()>(Method::GET, "/refuse", &[], None, PATIENCE).await.unwrap_err();
    assert_eq!(error.problem(), Some(&Problem::forbidden("no_grant", "not for you")));
    assert_eq!(error.reached(), Reached::Yes);
}

#[tokio::test]
async fn connections_beyond_the_limit_are_closed_at_once() {
    let house = House::home();
    let tls = server_config(house.identity(&house.unit()), PeerClass::Agents).unwrap();
    let running = start(tls, ServerOptions { connections_max: 1, ..ServerOptions::default() }).await;
    let first = client(&house, house.identity(&house.agent()), &running);
    who(&first).await.unwrap();
    let second = client(&house, house.identity(&house.agent()), &running);
    assert!(who(&second).await.is_err());
    who(&first).await.unwrap();
}

#[test]
fn one_peer_cannot_take_every_connection() {
    let house = House::home();
    let connections = Connections::new();
    let held: Vec<_> =
        (0..CONNECTIONS_PER_PEER_MAX).map(|_| connections.enter(Some(house.agent())).unwrap()).collect();
    assert!(connections.enter(Some(house.agent())).is_none());
    assert!(connections.enter(Some(house.unit())).is_some());
    drop(held);
    assert_eq!(connections.count(), 0);
    assert!(connections.enter(Some(house.agent())).is_some());
}

#[tokio::test]
async fn a_call_that_takes_too_long_says_that_nobody_knows() {
    let house = House::home();
    let running = unit(&house).await;
    let client = client(&house, house.identity(&house.agent()), &running);
    let brief = Duration::from_millis(500);
    let error = client.call(Method::GET, "/slow", &[], None, brief).await.unwrap_err();
    assert!(matches!(error, ClientError::Timeout { reached: Reached::Unknown, .. }), "{error}");
    // Nobody listens here any more.
    let address = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let nobody = Client::new(house.identity(&house.agent()), PeerClass::Market, None, address).unwrap();
    let error = who(&nobody).await.unwrap_err();
    assert_eq!((error.reached(), error.retryable()), (Reached::No, true));
}

#[tokio::test]
async fn stopping_ends_the_loop_and_its_connections() {
    let house = House::home();
    let running = unit(&house).await;
    let client = client(&house, house.identity(&house.agent()), &running);
    who(&client).await.unwrap();
    running.stop.send(true).unwrap();
    tokio::time::timeout(PATIENCE, running.task).await.unwrap().unwrap();
    assert_eq!(running.connections.count(), 0);
    assert_eq!(who(&client).await.unwrap_err().reached(), Reached::No);
}

#[tokio::test]
async fn a_stored_identity_is_the_same_one_and_private() {
    use std::os::unix::fs::PermissionsExt as _;

    let house = House::home();
    let identity = house.identity(&house.agent());
    let directory = tempfile::tempdir().unwrap();
    let home = directory.path().join("identity");
    identity.save(&home).unwrap();
    let again = Identity::load(&home).unwrap();
    assert_eq!((again.id(), again.key(), again.epoch()), (identity.id(), identity.key(), identity.epoch()));
    let running = unit(&house).await;
    who(&client(&house, Arc::new(again), &running)).await.unwrap();
    let file = home.join("identity.json");
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).unwrap();
    assert!(matches!(Identity::load(&home), Err(WireError::File(_))));
}

#[test]
fn the_parts_of_an_identity_must_belong_together() {
    let (house, stranger) = (House::home(), House::new("home.test", 50));
    let issue = |house: &House, key: &OwnKeys| {
        house.authorities[&PeerClass::Agents]
            .issue(&key.spki(), &house.agent(), 1, unix_now(), 60, [1; 16])
            .unwrap()
    };
    let root = house.root.verifying_key();
    let key = OwnKeys::generate().unwrap();
    let own = issue(&house, &key);
    let theirs = issue(&stranger, &key);
    assert!(Identity::new(OwnKeys::generate().unwrap(), own.clone(), house.signed.clone(), root).is_err());
    assert!(Identity::new(OwnKeys::generate().unwrap(), own.clone(), stranger.signed.clone(), root).is_err());
    assert!(Identity::new(key, theirs, house.signed.clone(), root).is_err());
    let key = OwnKeys::generate().unwrap();
    let own = issue(&house, &key);
    let debug = format!("{key:?}");
    assert!(Identity::new(key, own, house.signed.clone(), root).is_ok());
    assert!(debug.starts_with("OwnKeys(") && debug.len() < 80);
}

/// What management answers to an offer: the certificate, and a number sealed to each sealing key.
fn challenge(id: &SpiffeId, keys: &KeySet, certificate: &[u8]) -> KeyChallenge {
    let seal = |channel, key: &str| {
        let context = Context { channel, recipient: id.as_str(), epoch: 1, sequence: 1 };
        SealingPublicKey::from_hex(key).unwrap().seal(&[7; 32], &context, &[8; 32]).unwrap().to_text()
    };
    KeyChallenge {
        certificate: BASE64_STANDARD.encode(certificate),
        sequence: 1,
        control: seal(Channel::Control, &keys.control),
        data: seal(Channel::Data, &keys.data),
        alerts: seal(Channel::Alerts, &keys.alerts),
    }
}

/// Where management listens to members: takes the proofs of whoever opened what was sealed, counting them.
async fn members_door(house: &Arc<House>) -> (SocketAddr, Arc<AtomicUsize>) {
    let proven = Arc::new(AtomicUsize::new(0));
    let count = proven.clone();
    let router = Router::new().route(
        ACTIVATE_PATH,
        post(async move |Json(proof): Json<KeyProof>| {
            let opened = keys::to_hex(&[8; 32]);
            assert_eq!((&proof.control, &proof.data, &proof.alerts), (&opened, &opened, &opened));
            count.fetch_add(1, Ordering::SeqCst);
            Json(())
        }),
    );
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let tls = server_config(house.identity(&house.management()), PeerClass::Agents).unwrap();
    let stop = watch::channel(false);
    tokio::spawn(async move {
        serve(listener, tls, router, ServerOptions::default(), Connections::new(), stop.1).await;
        drop(stop.0);
    });
    (address, proven)
}

/// Management's door for newcomers, with a ticket for the house's agent.
async fn newcomers_door(
    house: &Arc<House>,
    tls: ServerTls,
    listener: TcpListener,
) -> (Ticket, Arc<AtomicUsize>) {
    let mut book = EntryBook::new();
    let (anybody, limits) = (Requirements::default(), Limits::default());
    book.create(&house.agent(), &[9; 32], anybody, limits, (unix_now(), 60)).unwrap();
    let state = Arc::new((house.clone(), Mutex::new(book)));
    let asked = Arc::new(AtomicUsize::new(0));
    let count = asked.clone();
    let router = Router::new().route(
        ENROL_PATH,
        post(async move |Extension(newcomer): Extension<Newcomer>, Json(request): Json<EnrolRequest>| {
            count.fetch_add(1, Ordering::SeqCst);
            let (house, book) = &*state;
            let ticket = Ticket::parse(&request.ticket).unwrap();
            let redeemed = book.lock().unwrap().redeem(ticket.secret(), &request.id, unix_now() * 1_000);
            let Ok(redeemed) = redeemed else { return Err(Problem::forbidden("enrolment_refused", "no")) };
            let entry = redeemed.entry();
            let authority = &house.authorities[&entry.class];
            let issued = authority.issue(&newcomer.spki_der, &entry.id, 1, unix_now(), 600, [3; 16]).unwrap();
            let challenge = challenge(&entry.id, &request.offer.keys, &issued);
            Ok(Json(EnrolReply { challenge, bundle: house.signed.clone() }))
        }),
    );
    let stop = watch::channel(false);
    tokio::spawn(async move {
        serve(listener, tls, router, ServerOptions::default(), Connections::new(), stop.1).await;
        drop(stop.0);
    });
    (Ticket::new([9; 32], house.root.verifying_key()), asked)
}

#[tokio::test]
async fn a_ticket_enrols_once_and_the_identity_works() {
    let house = Arc::new(House::home());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let tls = enrolment_server_config(house.identity(&house.management())).unwrap();
    let (ticket, _) = newcomers_door(&house, tls, listener).await;
    let directory = tempfile::tempdir().unwrap();
    let home = directory.path().join("identity");
    let (members, proven) = members_door(&house).await;
    let identity = Arc::new(enrol(address, members, &ticket.to_text(), &house.agent(), &home).await.unwrap());
    assert_eq!((identity.id(), proven.load(Ordering::SeqCst)), (&house.agent(), 1));
    let stored = Arc::new(Identity::load(&home).unwrap());
    who(&client(&house, stored, &unit(&house).await)).await.unwrap();

    let beside = directory.path().join("b");
    let again = enrol(address, members, &ticket.to_text(), &house.agent(), &beside).await.unwrap_err();
    let WireError::Enrolment(ClientError::Refused(problem)) = again else { panic!("{again}") };
    assert_eq!(problem.code, "enrolment_refused");
    // The newcomers' door takes newcomers only: an enrolled peer's certificate is refused there.
    let config = client_config(&identity, PeerClass::Management, None).unwrap();
    let peer = Client::with_config(config, address);
    assert!(peer.call(Method::GET, "/", &[], None, PATIENCE).await.is_err());
}

#[tokio::test]
async fn a_newcomer_waits_for_management_to_come_up() {
    let house = Arc::new(House::home());
    let address = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let ticket = Ticket::new([9; 32], house.root.verifying_key()).to_text();
    let directory = tempfile::tempdir().unwrap();
    let (agent, home) = (house.agent(), directory.path().join("identity"));
    let (members, _) = members_door(&house).await;
    let enrolling = tokio::spawn(async move { enrol(address, members, &ticket, &agent, &home).await });
    tokio::time::sleep(Duration::from_millis(250)).await;
    let listener = TcpListener::bind(address).await.unwrap();
    let tls = enrolment_server_config(house.identity(&house.management())).unwrap();
    newcomers_door(&house, tls, listener).await;
    tokio::time::timeout(PATIENCE, enrolling).await.unwrap().unwrap().unwrap();
}

#[tokio::test]
async fn e09_a_ticket_is_not_shown_to_a_rogue_management() {
    let house = Arc::new(House::home());
    let rogue = Arc::new(House::new("home.test", 50));
    let directory = tempfile::tempdir().unwrap();
    let ticket = Ticket::new([9; 32], house.root.verifying_key());

    // An installation of the same name under another root; a real unit; and a server whose name of management
    // was certified by the real agents' authority.
    let key = rcgen::KeyPair::generate().unwrap();
    let chain = vec![
        house.forge(PeerClass::Agents, &house.management(), &key),
        CertificateDer::from(house.authorities[&PeerClass::Agents].certificate().to_vec()),
    ];
    let mut stolen = enrolment_server_config(house.identity(&house.management())).unwrap();
    let certified = rustls::sign::CertifiedKey::from_der(
        chain,
        PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
        &rustls::crypto::aws_lc_rs::default_provider(),
    );
    let mut config = (*stolen.config).clone();
    config.cert_resolver = Arc::new(rustls::sign::SingleCertAndKey::from(certified.unwrap()));
    stolen.config = Arc::new(config);
    for tls in [
        enrolment_server_config(rogue.identity(&rogue.management())).unwrap(),
        enrolment_server_config(house.identity(&house.unit())).unwrap(),
        stolen,
    ] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (_, asked) = newcomers_door(&house, tls, listener).await;
        let enrolled = enrol(address, address, &ticket.to_text(), &house.agent(), directory.path()).await;
        let error = enrolled.unwrap_err();
        assert!(matches!(error, WireError::Enrolment(ClientError::Handshake { .. })), "{error}");
        assert_eq!(asked.load(Ordering::SeqCst), 0, "the ticket was shown");
    }
}

#[test]
fn the_doors_cannot_be_confused() {
    let house = House::home();
    let key = rcgen::KeyPair::generate().unwrap();
    // A self-signed certificate that names an agent passes the newcomers' verifier; no peer comes of it
    // there.
    let named = leaf_params(&house.agent()).self_signed(&key).unwrap().der().clone();
    assert!(Door::Newcomers.peer(&named, Switches::default()).is_none());
    assert!(matches!(Caller::of(Door::Newcomers, &named, Switches::default()), Some(Caller::Newcomer(_))));
    let newcomer = Newcomer::of(&named).unwrap();
    assert_eq!(newcomer.spki_der, key.subject_public_key_info());
    let desk = house.forge(PeerClass::Desk, &SpiffeId::desk("home.test", 1).unwrap(), &key);
    assert!(Door::Peers(PeerClass::Agents).peer(&desk, Switches::default()).is_none());
}

mod transport;
