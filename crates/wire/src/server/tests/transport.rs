//! Attacks on the handshake, each on a listener as it is and on one whose defence is switched off: refused with a record of
//! the reason on the first, and successful on the second.

use std::io::{Read as _, Write as _};
use std::process::{Command, Stdio};

use audit::record::Record;
use rustls::{HandshakeKind, SignatureScheme};
use webpki::KeyUsage;

use super::*;
use crate::danger::{Clock, Defence};
use crate::journal::read_entries;
use crate::refusals::Refusals;
use crate::tls::{Credentials, server_config_with};

const PROCESS: &str = "unit-market-1";
const GET: &[u8] = b"GET /who HTTP/1.1\r\nhost: unit\r\nconnection: close\r\n\r\n";

/// A listener whose refusals are journalled.
struct Edge {
    running: Running,
    credentials: Credentials,
    clock: Clock,
    journal: tempfile::TempDir,
}

impl Edge {
    /// A unit that accepts a class, without these defences.
    async fn accepting(house: &House, accepts: PeerClass, off: &'static [Defence]) -> Self {
        Self::lasting(house, accepts, off, CONNECTION_AGE_MAX).await
    }

    async fn lasting(house: &House, accepts: PeerClass, off: &'static [Defence], age: Duration) -> Self {
        let credentials = Credentials::new(house.identity(&house.unit()));
        let tls = server_config_with(credentials.clone(), accepts, Switches::without(off)).unwrap();
        Self::of(tls, credentials, age).await
    }

    async fn of(tls: ServerTls, credentials: Credentials, age: Duration) -> Self {
        let journal = tempfile::tempdir().unwrap();
        let refusals = Refusals::new("market/agents", Journal::open(journal.path(), PROCESS).unwrap());
        let clock = tls.clock.clone();
        let options =
            ServerOptions { refusals: Some(refusals), connection_age_max: age, ..ServerOptions::default() };
        Self { running: start(tls, options).await, credentials, clock, journal }
    }

    /// What was refused so far: by reason, and by whose authority.
    fn refused(&self) -> (BTreeMap<String, u64>, Vec<String>) {
        let (mut all, mut by) = (BTreeMap::new(), Vec::new());
        for entry in read_entries(self.journal.path(), PROCESS).unwrap() {
            let Record::HandshakesRefused { listener, reasons, signed_by } = entry.record else { panic!() };
            assert_eq!(listener, "market/agents");
            assert!(
                Record::HandshakesRefused { listener, reasons: reasons.clone(), signed_by: Vec::new() }
                    .may_come_from(PROCESS)
            );
            reasons.into_iter().for_each(|(reason, count)| *all.entry(reason).or_insert(0) += count);
            by.extend(signed_by);
        }
        (all, by)
    }

    /// Waits until so many refusals of a kind are in the journal, and no other kind is.
    async fn has_refused(&self, count: u64, refusal: Refusal) {
        let wanted = BTreeMap::from([(refusal.as_str().to_owned(), count)]);
        let mut found = self.refused().0;
        for _ in 0..2_000 {
            if found == wanted {
                assert_eq!(self.running.calls.load(Ordering::SeqCst), 0, "a stranger's request was handled");
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
            found = self.refused().0;
        }
        panic!("{found:?} instead of {wanted:?}");
    }

    /// Whether a request of who shows this chain is answered.
    async fn answers(&self, config: Arc<rustls::ClientConfig>) -> bool {
        who(&Client::with_config(config, self.running.address)).await.is_ok()
    }

    /// What one of the system's own programs says about a connection to here, and what came back on it.
    async fn openssl(&self, arguments: &[&str]) -> Option<String> {
        let arguments: Vec<String> = arguments.iter().map(|text| (*text).to_owned()).collect();
        let address = self.running.address.to_string();
        let asked = tokio::task::spawn_blocking(move || {
            let mut openssl = Command::new("openssl")
                .args(["s_client", "-ign_eof", "-connect", &address])
                .args(arguments)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .ok()?;
            let _ = openssl.stdin.take().unwrap().write_all(GET);
            let said = openssl.wait_with_output().ok()?;
            Some(String::from_utf8_lossy(&[said.stdout, said.stderr].concat()).into_owned())
        });
        let said = asked.await.unwrap();
        if said.is_none() {
            println!("skipped: there is no openssl here");
        }
        said
    }
}

fn id_of(class: PeerClass) -> SpiffeId {
    match class {
        PeerClass::Management => SpiffeId::management("home.test"),
        PeerClass::Agents => SpiffeId::agent("home.test", "agent-1"),
        PeerClass::Operators => SpiffeId::operator("home.test", "ann"),
        PeerClass::Desk => SpiffeId::desk("home.test", 1),
        domain => SpiffeId::unit("home.test", domain.as_str(), 1),
    }
    .unwrap()
}

fn private(key: &rcgen::KeyPair) -> PrivateKeyDer<'static> {
    PrivatePkcs8KeyDer::from(key.serialize_der()).into()
}

impl House {
    /// The authority's certificate of a class.
    fn authority(&self, class: PeerClass) -> CertificateDer<'static> {
        CertificateDer::from(self.authorities[&class].certificate().to_vec())
    }

    /// A client with a genuine certificate of a class.
    fn member(&self, class: PeerClass) -> Arc<rustls::ClientConfig> {
        let key = rcgen::KeyPair::generate().unwrap();
        self.client_with(vec![self.forge(class, &id_of(class), &key)], private(&key))
    }

    /// The bundle that follows, changed.
    fn next_bundle(&self, change: impl FnOnce(&mut Bundle)) -> SignedBundle {
        let mut bundle = self.signed.verify(&self.root.verifying_key(), 0).unwrap();
        bundle.version += 1;
        change(&mut bundle);
        self.root.sign_bundle(&bundle).unwrap()
    }

    /// The bundle in which the agents have another authority.
    fn without_the_agents_authority(&self) -> SignedBundle {
        let key = SigningKey::from_seed(&[99; 32]);
        let other = self.root.authority(PeerClass::Agents, key, unix_now() - 60, 86_400, [99; 16]).unwrap();
        self.next_bundle(|bundle| {
            bundle.authorities.insert(PeerClass::Agents, vec![Bundle::encode(other.certificate())]);
        })
    }
}

/// Signs nothing, and says that it did.
#[derive(Debug)]
struct Scribbler;

impl rustls::sign::SigningKey for Scribbler {
    fn choose_scheme(&self, _offered: &[SignatureScheme]) -> Option<Box<dyn rustls::sign::Signer>> {
        Some(Box::new(Scribbler))
    }

    fn algorithm(&self) -> rustls::SignatureAlgorithm {
        rustls::SignatureAlgorithm::ECDSA
    }
}

impl rustls::sign::Signer for Scribbler {
    fn sign(&self, _message: &[u8]) -> Result<Vec<u8>, rustls::Error> {
        Ok(vec![0x30; 70])
    }

    fn scheme(&self) -> SignatureScheme {
        SignatureScheme::ECDSA_NISTP256_SHA256
    }
}

/// A client that shows certificates without their key.
fn thief(house: &House, chain: Vec<CertificateDer<'static>>) -> Arc<rustls::ClientConfig> {
    let authorities = house.identity(&house.agent()).bundle().authorities(PeerClass::Market);
    let verifier = ClassVerifier::new(Trust::Fixed(authorities), PeerClass::Market, None);
    let shown = tls::fixed(chain, Arc::new(Scribbler));
    tls::client(Arc::new(verifier), shown, tls::Groups::HybridFirst).unwrap()
}

#[tokio::test]
async fn a01_a_stolen_certificate_without_its_key_is_refused_for_that() {
    let house = House::home();
    let stolen = || {
        let key = rcgen::KeyPair::generate().unwrap();
        thief(&house, vec![house.forge(PeerClass::Agents, &house.agent(), &key)])
    };
    let edge = Edge::accepting(&house, PeerClass::Agents, &[]).await;
    assert!(!edge.answers(stolen()).await);
    edge.has_refused(1, Refusal::KeyNotProven).await;
    let open = Edge::accepting(&house, PeerClass::Agents, &[Defence::Possession]).await;
    assert!(open.answers(stolen()).await);
}

#[tokio::test]
async fn a02_older_versions_are_refused_with_the_alert_for_it() {
    let house = House::home();
    let edge = Edge::accepting(&house, PeerClass::Agents, &[]).await;
    let mut refused = 0;
    for version in ["-tls1", "-tls1_1", "-tls1_2"] {
        let Some(said) = edge.openssl(&[version, "-cipher", "DEFAULT@SECLEVEL=0"]).await else { return };
        assert!(said.contains("alert protocol version"), "{version}: {said}");
        refused += 1;
        edge.has_refused(refused, Refusal::TlsVersion).await;
    }
    // SSL 3.0 is spoken by no program any more: its hello, by hand.
    let mut hello = vec![0x16, 0x03, 0x00, 0x00, 0x2d, 0x01, 0x00, 0x00, 0x29, 0x03, 0x00];
    hello.extend([7; 32]);
    hello.extend([0x00, 0x00, 0x02, 0x00, 0x2f, 0x01, 0x00]);
    let mut stream = TcpStream::connect(edge.running.address).await.unwrap();
    stream.write_all(&hello).await.unwrap();
    let mut alert = Vec::new();
    let _ = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut alert)).await.unwrap();
    assert_eq!((alert.first(), alert.get(5..)), (Some(&0x15), Some([2, 70].as_slice())), "{alert:?}");
    edge.has_refused(refused + 1, Refusal::TlsVersion).await;
}

#[tokio::test]
async fn a03_no_certificate_a_strangers_and_a_self_made_one_are_refused_for_that() {
    let house = House::home();
    let directory = tempfile::tempdir().unwrap();
    let key = rcgen::KeyPair::generate().unwrap();
    let own = leaf_params(&house.agent()).self_signed(&key).unwrap();
    let (certificate, secret) = (directory.path().join("own.pem"), directory.path().join("own.key"));
    std::fs::write(&certificate, own.pem()).unwrap();
    std::fs::write(&secret, key.serialize_pem()).unwrap();
    let own_files = ["-cert", certificate.to_str().unwrap(), "-key", secret.to_str().unwrap()];
    for (shown, refusal) in
        [(&[] as &[&str], Refusal::NoCertificate), (&own_files, Refusal::UnknownAuthority)]
    {
        let edge = Edge::accepting(&house, PeerClass::Agents, &[]).await;
        let Some(said) = edge.openssl(&[&["-tls1_3"], shown].concat()).await else { return };
        assert!(said.contains("alert") && !said.contains("HTTP/1.1 200"), "{said}");
        edge.has_refused(1, refusal).await;
    }
    let stranger = House::new("away.test", 50);
    let namesake = House::new("home.test", 50);
    for (from, refusal) in [(&stranger, Refusal::OtherTrustDomain), (&namesake, Refusal::UnknownAuthority)] {
        let edge = Edge::accepting(&house, PeerClass::Agents, &[]).await;
        let chain =
            vec![from.forge(PeerClass::Agents, &from.agent(), &key), from.authority(PeerClass::Agents)];
        assert!(!edge.answers(house.client_with(chain, private(&key))).await);
        edge.has_refused(1, refusal).await;
    }
    // Without the authority's signature any of these would do.
    let open = Edge::accepting(&house, PeerClass::Agents, &[Defence::Authority]).await;
    let chain = vec![own.der().clone()];
    assert!(open.answers(house.client_with(chain, private(&key))).await);
    let said = open.openssl(&[&["-tls1_3"], own_files.as_slice()].concat()).await.unwrap_or_default();
    assert!(said.contains("HTTP/1.1 200"), "{said}");
}

#[tokio::test]
async fn a04_every_class_is_refused_at_the_listener_of_every_other() {
    let house = House::home();
    let mut edges = Vec::new();
    for accepts in PeerClass::ALL {
        let edge = Edge::accepting(&house, accepts, &[]).await;
        for class in PeerClass::ALL.into_iter().filter(|class| *class != accepts) {
            assert!(!edge.answers(house.member(class)).await, "{class} at the listener of {accepts}");
        }
        edges.push((accepts, edge));
    }
    for (accepts, edge) in edges {
        edge.has_refused(7, Refusal::OtherClass).await;
        assert!(edge.answers(house.member(accepts)).await, "{accepts} at its own listener");
    }
    let open = Edge::accepting(&house, PeerClass::Agents, &[Defence::Class]).await;
    assert!(open.answers(house.member(PeerClass::Operators)).await);
}

/// What became of a second connection that shows the tickets of the first.
struct Resumed {
    kind: Option<HandshakeKind>,
    early: bool,
    reply: String,
}

/// Connects to one listener, then to another with whatever tickets the first one gave, offering early data.
async fn resume(house: &House, first: &Edge, second: &Edge) -> Resumed {
    let mut config = (*house.member(PeerClass::Agents)).clone();
    config.resumption = rustls::client::Resumption::in_memory_sessions(8);
    config.enable_early_data = true;
    let config = Arc::new(config);
    let addresses = [first.running.address, second.running.address];
    let connecting = tokio::task::spawn_blocking(move || {
        let name = ServerName::IpAddress(std::net::IpAddr::from([127, 0, 0, 1]).into());
        addresses.map(|address| {
            let mut session = rustls::ClientConnection::new(config.clone(), name.clone()).unwrap();
            let offered = session.early_data().is_some_and(|mut early| early.write_all(GET).is_ok());
            let mut socket = std::net::TcpStream::connect(address).unwrap();
            socket.set_read_timeout(Some(PATIENCE)).unwrap();
            let mut reply = Vec::new();
            let mut stream = rustls::Stream::new(&mut session, &mut socket);
            let _ = stream.write_all(GET);
            let _ = stream.read_to_end(&mut reply);
            let early = offered && session.is_early_data_accepted();
            Resumed {
                kind: session.handshake_kind(),
                early,
                reply: String::from_utf8_lossy(&reply).into_owned(),
            }
        })
    });
    let [first, second] = connecting.await.unwrap();
    assert!(first.reply.starts_with("HTTP/1.1 200"), "{}", first.reply);
    second
}

#[tokio::test]
async fn a07_no_ticket_is_given_and_none_is_taken_that_another_listener_gave() {
    const TICKETS: &[Defence] = &[Defence::NoTickets];
    let house = House::home();
    for giver in [&[] as &'static [Defence], TICKETS] {
        let first = Edge::accepting(&house, PeerClass::Agents, giver).await;
        let second = Edge::accepting(&house, PeerClass::Agents, &[]).await;
        let resumed = resume(&house, &first, &second).await;
        assert_ne!(resumed.kind, Some(HandshakeKind::Resumed));
        assert!(!resumed.early && resumed.reply.starts_with("HTTP/1.1 200"), "{}", resumed.reply);
    }
    let first = Edge::accepting(&house, PeerClass::Agents, TICKETS).await;
    let second = Edge::accepting(&house, PeerClass::Agents, TICKETS).await;
    let resumed = resume(&house, &first, &second).await;
    assert_eq!(resumed.kind, Some(HandshakeKind::Resumed), "the ticket of one listener is good at the other");
}

#[tokio::test]
async fn a07_a_ticket_does_not_outlive_its_authority() {
    const TICKETS: &[Defence] = &[Defence::NoTickets];
    let house = House::home();
    for second_is in [&[] as &'static [Defence], TICKETS] {
        let first = Edge::accepting(&house, PeerClass::Agents, TICKETS).await;
        let second = Edge::accepting(&house, PeerClass::Agents, second_is).await;
        let newer = second.credentials.current().with_bundle(house.without_the_agents_authority()).unwrap();
        second.credentials.replace(Arc::new(newer));
        let resumed = resume(&house, &first, &second).await;
        let got_in = resumed.reply.starts_with("HTTP/1.1 200");
        assert_eq!(got_in, second_is == TICKETS, "{}", resumed.reply);
        if !got_in {
            second.has_refused(1, Refusal::UnknownAuthority).await;
        }
    }
}

#[tokio::test]
async fn a07_early_data_is_refused() {
    const EARLY: &[Defence] = &[Defence::NoTickets, Defence::NoEarlyData];
    let house = House::home();
    for (second_is, taken) in [(&[Defence::NoTickets] as &'static [Defence], false), (EARLY, true)] {
        let first = Edge::accepting(&house, PeerClass::Agents, EARLY).await;
        let second = Edge::accepting(&house, PeerClass::Agents, second_is).await;
        assert_eq!(resume(&house, &first, &second).await.early, taken);
    }
}

#[tokio::test]
async fn a08_a_certificate_is_good_from_its_first_second_to_its_last() {
    let house = House::home();
    let now = unix_now();
    let authorities = || house.identity(&house.agent()).bundle().authorities(PeerClass::Agents);
    let verifier = ClassVerifier::new(Trust::Fixed(authorities()), PeerClass::Agents, None);
    let judged = |issued: i64, at: i64| {
        let certificate = house.identity_until(&house.agent(), 600, issued).certificate().to_vec();
        let at = rustls_pki_types::UnixTime::since_unix_epoch(Duration::from_secs(at as u64));
        let judged = verifier.check(&certificate.into(), &[], at, KeyUsage::client_auth());
        judged.map_err(|refused| refused.refusal)
    };
    assert_eq!(judged(now, now + 600), Ok(()));
    assert_eq!(judged(now, now + 601), Err(Refusal::Expired));
    // Another clock may be 30 seconds ahead, and no more.
    assert_eq!(judged(now + 30, now), Ok(()));
    assert_eq!(judged(now + 31, now), Err(Refusal::NotYetValid));

    for (issued, refusal) in [(now - 601, Refusal::Expired), (now + 120, Refusal::NotYetValid)] {
        let shown = house.identity_until(&house.agent(), 600, issued);
        let config = client_config(&shown, PeerClass::Market, None).unwrap();
        let edge = Edge::accepting(&house, PeerClass::Agents, &[]).await;
        assert!(!edge.answers(config.clone()).await);
        edge.has_refused(1, refusal).await;
        let open = Edge::accepting(&house, PeerClass::Agents, &[Defence::Validity]).await;
        assert!(open.answers(config).await);
    }
}

/// A self-signed certificate of an agent, made by openssl with options; DER.
fn made_by_openssl(options: &[&str], id: &SpiffeId) -> Option<CertificateDer<'static>> {
    let directory = tempfile::tempdir().unwrap();
    let output = directory.path().join("certificate");
    let made = Command::new("openssl")
        .args(["req", "-x509", "-nodes", "-subj", "/CN=epoch=1", "-outform", "DER", "-days", "2"])
        .args(["-addext", &format!("subjectAltName=URI:{id}"), "-addext", "basicConstraints=CA:FALSE"])
        .arg("-keyout")
        .arg(directory.path().join("key"))
        .arg("-out")
        .arg(&output)
        .args(options)
        .output();
    let Ok(made) = made else {
        println!("skipped: there is no openssl here");
        return None;
    };
    assert!(made.status.success(), "{options:?}: {}", String::from_utf8_lossy(&made.stderr));
    Some(std::fs::read(output).unwrap().into())
}

/// None of these is signed by anybody of ours, nor is a handshake signed with its key: had a signature been looked at, the
/// reason would be another.
#[tokio::test]
async fn a09_weak_keys_are_refused_before_any_signature_is_looked_at() {
    let house = House::home();
    for options in [
        &["-newkey", "rsa:1024", "-sha256"] as &[&str],
        &["-newkey", "rsa:2048", "-sha1"],
        &["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime192v1", "-sha256"],
        &["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-sha1"],
    ] {
        let Some(certificate) = made_by_openssl(options, &house.agent()) else { return };
        let edge = Edge::accepting(&house, PeerClass::Agents, &[]).await;
        assert!(!edge.answers(thief(&house, vec![certificate])).await);
        edge.has_refused(1, Refusal::WeakKey).await;
    }
    // A key of another kind than ours, under our authority's signature, is what would get in.
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
    let config = house.client_with(vec![house.forge(PeerClass::Agents, &house.agent(), &key)], private(&key));
    let edge = Edge::accepting(&house, PeerClass::Agents, &[]).await;
    assert!(!edge.answers(config.clone()).await);
    let open = Edge::accepting(&house, PeerClass::Agents, &[Defence::KeyStrength]).await;
    assert!(open.answers(config).await);
}

#[tokio::test]
async fn a09_a_chain_that_is_too_large_is_refused_before_any_signature_is_looked_at() {
    let house = House::home();
    let key = rcgen::KeyPair::generate().unwrap();
    let mut large = leaf_params(&house.agent());
    large.custom_extensions =
        vec![rcgen::CustomExtension::from_oid_content(&[1, 3, 6, 1, 4, 1, 9], vec![0; 9_000])];
    let large = large.self_signed(&key).unwrap().der().clone();
    let ten_megabytes = vec![large.clone(); 1_150];
    assert!(ten_megabytes.iter().map(|certificate| certificate.len()).sum::<usize>() > 10_000_000);
    let small = leaf_params(&house.agent()).self_signed(&key).unwrap().der().clone();
    for chain in [vec![large], vec![small; 3], ten_megabytes] {
        let edge = Edge::accepting(&house, PeerClass::Agents, &[]).await;
        assert!(!edge.answers(thief(&house, chain)).await);
        edge.has_refused(1, Refusal::ChainTooLarge).await;
    }
    let authority = house.authority(PeerClass::Agents);
    let long = vec![house.forge(PeerClass::Agents, &house.agent(), &key), authority.clone(), authority];
    let config = house.client_with(long, private(&key));
    let edge = Edge::accepting(&house, PeerClass::Agents, &[]).await;
    assert!(!edge.answers(config.clone()).await);
    let open = Edge::accepting(&house, PeerClass::Agents, &[Defence::ChainSize]).await;
    assert!(open.answers(config).await);
}

/// A client that knows no other key exchange than X25519.
fn x25519_only(
    house: &House,
    leaf: CertificateDer<'static>,
    key: &rcgen::KeyPair,
) -> Arc<rustls::ClientConfig> {
    let mut provider = rustls::crypto::aws_lc_rs::default_provider();
    provider.kx_groups = vec![rustls::crypto::aws_lc_rs::kx_group::X25519];
    let authorities = house.identity(&house.agent()).bundle().authorities(PeerClass::Market);
    let verifier = ClassVerifier::new(Trust::Fixed(authorities), PeerClass::Market, None);
    let signer = rustls::crypto::aws_lc_rs::sign::any_supported_type(&private(key)).unwrap();
    let config = rustls::ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_client_cert_resolver(tls::fixed(vec![leaf], signer));
    Arc::new(config)
}

#[tokio::test]
async fn a10_without_the_hybrid_key_exchange_nobody_gets_in_where_it_is_required() {
    let house = House::home();
    let directory = tempfile::tempdir().unwrap();
    let key = rcgen::KeyPair::generate().unwrap();
    let leaf = house.forge(PeerClass::Agents, &house.agent(), &key);
    let old = x25519_only(&house, leaf.clone(), &key);
    let required = house.next_bundle(|bundle| bundle.require_pq = true);
    let edge = Edge::accepting(&house, PeerClass::Agents, &[]).await;
    assert!(edge.answers(old.clone()).await, "preferred only, X25519 will do");
    edge.running.calls.store(0, Ordering::SeqCst);
    // From the next handshake on.
    let newer = Arc::new(edge.credentials.current().with_bundle(required.clone()).unwrap());
    edge.credentials.replace(newer);
    assert!(!edge.answers(old.clone()).await);
    edge.has_refused(1, Refusal::KeyExchange).await;
    // So is a program that others wrote: this openssl knows no hybrid.
    let (certificate, secret) = (directory.path().join("agent.pem"), directory.path().join("agent.key"));
    let text = BASE64_STANDARD.encode(&leaf);
    std::fs::write(&certificate, format!("-----BEGIN CERTIFICATE-----\n{text}\n-----END CERTIFICATE-----\n"))
        .unwrap();
    std::fs::write(&secret, key.serialize_pem()).unwrap();
    let files = ["-cert", certificate.to_str().unwrap(), "-key", secret.to_str().unwrap()];
    if let Some(said) = edge.openssl(&[&["-tls1_3", "-groups", "X25519"], files.as_slice()].concat()).await {
        assert!(said.contains("handshake failure"), "{said}");
        edge.has_refused(2, Refusal::KeyExchange).await;
    }
    assert!(edge.answers(house.member(PeerClass::Agents)).await, "who offers the hybrid gets in");

    let open = Edge::accepting(&house, PeerClass::Agents, &[Defence::HybridOnly]).await;
    let newer = Arc::new(open.credentials.current().with_bundle(required).unwrap());
    open.credentials.replace(newer);
    assert!(open.answers(old).await);
}

#[tokio::test]
async fn a10_a_client_that_must_have_the_hybrid_key_exchange_takes_no_server_without_it() {
    let house = House::home();
    let required = house.next_bundle(|bundle| bundle.require_pq = true);
    // A server that knows nothing better than X25519.
    let mut tls = server_config(house.identity(&house.unit()), PeerClass::Agents).unwrap();
    let mut provider = rustls::crypto::aws_lc_rs::default_provider();
    provider.kx_groups = vec![rustls::crypto::aws_lc_rs::kx_group::X25519];
    let verifier = ClassVerifier::new(
        Trust::Fixed(house.identity(&house.unit()).bundle().authorities(PeerClass::Agents)),
        PeerClass::Agents,
        None,
    );
    let resolver = tls.config.cert_resolver.clone();
    let config = rustls::ServerConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_client_cert_verifier(Arc::new(verifier))
        .with_cert_resolver(resolver);
    tls.config = Arc::new(config);
    let running = start(tls, ServerOptions::default()).await;
    let credentials = Credentials::new(house.identity(&house.agent()));
    let client = Client::new(&credentials, PeerClass::Market, None, running.address).unwrap();
    who(&client).await.unwrap();
    credentials.replace(Arc::new(credentials.current().with_bundle(required).unwrap()));
    let error = who(&client).await.unwrap_err();
    assert!(matches!(error, ClientError::Handshake { .. }), "{error}");
}

/// Asks on one connection again and again, until it is closed; how long that took.
async fn used_until_closed(house: &House, edge: &Edge, at_most: Duration) -> Option<Duration> {
    let config = client_config(house.identity(&house.agent()), PeerClass::Market, None).unwrap();
    let stream = TcpStream::connect(edge.running.address).await.unwrap();
    let name = ServerName::IpAddress(edge.running.address.ip().into());
    let mut stream = TlsConnector::from(config).connect(name, stream).await.unwrap();
    let begun = Instant::now();
    let mut reply = [0; 4_096];
    while begun.elapsed() < at_most {
        let asked = stream.write_all(b"GET /who HTTP/1.1\r\nhost: unit\r\n\r\n").await;
        let answered = tokio::time::timeout(PATIENCE, stream.read(&mut reply)).await.unwrap();
        if asked.is_err() || !matches!(answered, Ok(1..)) {
            return Some(begun.elapsed());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    None
}

#[tokio::test]
async fn a11_a_connection_that_is_kept_busy_is_closed_at_its_greatest_age() {
    let house = House::home();
    let age = Duration::from_millis(400);
    let edge = Edge::lasting(&house, PeerClass::Agents, &[], age).await;
    let closed = used_until_closed(&house, &edge, PATIENCE).await.expect("it is never closed");
    assert!(closed >= age, "{closed:?}");
    wait_for_count(&edge.running.connections, 0).await;
    // No listener can be told to keep them longer.
    let options = ServerOptions { connection_age_max: Duration::MAX, ..ServerOptions::default() };
    assert_eq!(options.connection_age_max.min(CONNECTION_AGE_MAX), Duration::from_secs(15 * 60));
    let open = Edge::lasting(&house, PeerClass::Agents, &[Defence::ConnectionAge], age).await;
    assert_eq!(used_until_closed(&house, &open, age * 4 + STOP_GRACE).await, None);
}

#[tokio::test]
async fn a11_a_connection_ends_with_its_certificate_even_when_it_is_in_the_middle_of_a_request() {
    let house = House::home();
    for (off, outlives) in [(&[] as &'static [Defence], false), (&[Defence::Validity], true)] {
        let edge = Edge::accepting(&house, PeerClass::Agents, off).await;
        let brief = house.identity_until(&house.agent(), 2, unix_now());
        let client = client(&house, brief, &edge.running);
        let asked = client.call(Method::GET, "/slow", &[], None, Duration::from_secs(5)).await.unwrap_err();
        assert_eq!(matches!(asked, ClientError::Timeout { .. }), outlives, "{asked}");
        if !outlives {
            edge.has_refused(1, Refusal::CertificateEnded).await;
        }
    }
}

#[tokio::test]
async fn a11_a_clock_that_went_on_ends_a_connection_whose_timers_slept() {
    let house = House::home();
    for (off, status) in [(&[] as &'static [Defence], 401), (&[Defence::Validity], 200)] {
        let edge = Edge::accepting(&house, PeerClass::Agents, off).await;
        let client = client(&house, house.identity(&house.agent()), &edge.running);
        who(&client).await.unwrap();
        assert_eq!(edge.running.connections.count(), 1);
        edge.running.calls.store(0, Ordering::SeqCst);
        edge.clock.go_on(599);
        assert_eq!(client.call(Method::GET, "/length", &[], None, PATIENCE).await.unwrap().status, 405);
        edge.clock.go_on(2);
        let reply = client.call(Method::GET, "/who", &[], None, PATIENCE).await.unwrap();
        assert_eq!(reply.status, status);
        if status == 401 {
            edge.has_refused(1, Refusal::CertificateEnded).await;
            wait_for_count(&edge.running.connections, 0).await;
        }
    }
}

#[tokio::test]
async fn k07_what_an_authority_may_not_sign_is_refused_at_every_listener_and_the_record_says_whose_it_is() {
    let house = House::home();
    let key = rcgen::KeyPair::generate().unwrap();
    let mut edges = Vec::new();
    for accepts in PeerClass::ALL {
        let edge = Edge::accepting(&house, accepts, &[]).await;
        // Another class's authority names a peer of this listener's, and this listener's names one of another class.
        let other = PeerClass::ALL.into_iter().find(|class| *class != accepts).unwrap();
        for (signer, named) in [(other, accepts), (accepts, other)] {
            let chain = vec![house.forge(signer, &id_of(named), &key), house.authority(signer)];
            assert!(!edge.answers(house.client_with(chain, private(&key))).await, "{signer} for {named}");
        }
        // Its own class, of another installation.
        let away = House::new("away.test", 50);
        let abroad = vec![house.forge(accepts, &away.agent(), &key)];
        assert!(!edge.answers(house.client_with(abroad, private(&key))).await);
        edges.push((accepts, other, edge));
    }
    for (accepts, other, edge) in edges {
        edge.has_refused(3, Refusal::OutsideConstraint).await;
        let mut signed_by = edge.refused().1;
        signed_by.sort();
        signed_by.dedup();
        let mut expected = vec![accepts.as_str().to_owned(), other.as_str().to_owned()];
        expected.sort();
        assert_eq!(signed_by, expected);
    }
    // The newcomers' door, where nobody comes with an authority's signature.
    let credentials = Credentials::new(house.identity(&house.management()));
    let door =
        Edge::of(enrolment_server_config(&credentials).unwrap(), credentials, CONNECTION_AGE_MAX).await;
    let chain = vec![house.forge(PeerClass::Agents, &house.management(), &key)];
    let authorities = house.identity(&house.agent()).bundle().authorities(PeerClass::Management);
    let verifier = ClassVerifier::new(Trust::Fixed(authorities), PeerClass::Management, None);
    let signer = rustls::crypto::aws_lc_rs::sign::any_supported_type(&private(&key)).unwrap();
    let config = tls::client(Arc::new(verifier), tls::fixed(chain, signer), tls::Groups::HybridFirst);
    assert!(!door.answers(config.unwrap()).await);
    door.has_refused(1, Refusal::OutsideConstraint).await;
    assert_eq!(door.refused().1, ["agents"]);
    let open = Edge::accepting(&house, PeerClass::Agents, &[Defence::Constraint]).await;
    let chain = vec![house.forge(PeerClass::Desk, &house.agent(), &key)];
    assert!(open.answers(house.client_with(chain, private(&key))).await);
}

#[tokio::test]
async fn an_authority_that_a_peer_brings_along_is_ignored() {
    let house = House::home();
    let key = rcgen::KeyPair::generate().unwrap();
    let leaf = house.forge(PeerClass::Agents, &house.agent(), &key);
    let config = house.client_with(vec![leaf, house.authority(PeerClass::Agents)], private(&key));
    for (off, gets_in) in [(&[] as &'static [Defence], false), (&[Defence::PinnedAuthorities], true)] {
        let edge = Edge::accepting(&house, PeerClass::Agents, off).await;
        assert!(edge.answers(config.clone()).await);
        edge.running.calls.store(0, Ordering::SeqCst);
        let newer = edge.credentials.current().with_bundle(house.without_the_agents_authority()).unwrap();
        edge.credentials.replace(Arc::new(newer));
        assert_eq!(edge.answers(config.clone()).await, gets_in);
        if !gets_in {
            edge.has_refused(1, Refusal::UnknownAuthority).await;
        }
    }
}

#[tokio::test]
async fn what_no_door_decides_on_is_counted_as_well() {
    let house = House::home();
    for (request, refusal) in [
        ("GET /x/../who HTTP/1.1\r\n\r\n", Refusal::BadPath),
        ("GET http://evil.test/who HTTP/1.1\r\n\r\n", Refusal::BadTarget),
        ("POST /length HTTP/1.1\r\ncontent-length: 9999999999\r\n\r\n", Refusal::BodyTooLarge),
        ("nonsense\r\n\r\n", Refusal::BadHead),
    ] {
        let edge = Edge::accepting(&house, PeerClass::Agents, &[]).await;
        raw_reply(&house, &edge.running, request.as_bytes()).await;
        edge.has_refused(1, refusal).await;
    }
    let edge = Edge::accepting(&house, PeerClass::Agents, &[]).await;
    let mut stream = TcpStream::connect(edge.running.address).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    let mut rest = Vec::new();
    let _ = stream.read_to_end(&mut rest).await;
    edge.has_refused(1, Refusal::NotTls).await;
    // Who connects and says nothing, as a balancer does, was refused nothing.
    let edge = Edge::accepting(&house, PeerClass::Agents, &[]).await;
    drop(TcpStream::connect(edge.running.address).await.unwrap());
    edge.running.stop.send(true).unwrap();
    tokio::time::timeout(PATIENCE, edge.running.task).await.unwrap().unwrap();
    assert!(read_entries(edge.journal.path(), PROCESS).unwrap().is_empty());
}
