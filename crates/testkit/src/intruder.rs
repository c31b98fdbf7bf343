//! Somebody who should not be there: with a stolen identity, with a certificate of their own making, or with none.
//!
//! Nothing is faked: an [`Intruder`] speaks the real protocol over real connections with the very key of a member of a
//! running system, and [`knock`] and [`old_hello`] are handshakes by hand.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use identity::PeerClass;
use market::{Panel, Symbol};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::aws_lc_rs;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, ClientConnection, DigitallySignedStruct, SignatureScheme, StreamOwned};
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use serde_json::{Value, json};
use wire::api::{OrderBody, QueueReply};
use wire::client::{Client, ClientError};
use wire::guard::GRANT_HEADER;
use wire::http::Method;
use wire::layout::Topology;
use wire::problem::Problem;
use wire::tls::Identity;

use crate::forger::Forged;

/// How long one request may take.
const TIMEOUT: Duration = Duration::from_secs(10);
/// How long it is waited for a task.
const PATIENCE: Duration = Duration::from_secs(60);

/// What was answered.
#[derive(Debug)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// The body; `null` when it is no JSON.
    pub body: Value,
    /// Code of the problem, empty when it went well.
    pub code: String,
}

/// The bearer of somebody's identity.
pub struct Intruder {
    identity: Arc<Identity>,
    topology: Topology,
    runtime: tokio::runtime::Runtime,
    clients: Mutex<BTreeMap<(PeerClass, SocketAddr), Client>>,
}

impl Intruder {
    /// Takes the identity in a directory.
    ///
    /// # Panics
    /// When there is none.
    #[must_use]
    pub fn with_identity(directory: &Path, topology: Topology) -> Self {
        let identity =
            Identity::load(directory).unwrap_or_else(|error| panic!("{}: {error}", directory.display()));
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        Self { identity: Arc::new(identity), topology, runtime: runtime.unwrap(), clients: Mutex::default() }
    }

    /// SPIFFE ID.
    #[must_use]
    pub fn id(&self) -> String {
        self.identity.id().to_string()
    }

    /// Enrolment epoch.
    #[must_use]
    pub fn epoch(&self) -> u32 {
        self.identity.epoch()
    }

    /// Who listens where.
    #[must_use]
    pub fn topology(&self) -> &Topology {
        &self.topology
    }

    /// Asks somebody of a class at an address.
    ///
    /// # Errors
    /// When there is no answer at all.
    pub fn ask(
        &self,
        (class, address): (PeerClass, SocketAddr),
        method: Method,
        path: &str,
        grant: Option<&str>,
        body: Option<&Value>,
    ) -> Result<Answer, ClientError> {
        let client = {
            let mut clients = self.clients.lock().unwrap();
            let fresh = || Client::new(self.identity.clone(), class, None, address).unwrap();
            clients.entry((class, address)).or_insert_with(fresh).clone()
        };
        let headers: Vec<(&str, &str)> = grant.map(|grant| (GRANT_HEADER, grant)).into_iter().collect();
        let body = body.map(|body| body.to_string().into_bytes());
        let reply = self.runtime.block_on(client.call(method, path, &headers, body, TIMEOUT))?;
        let code =
            if reply.status < 300 { String::new() } else { Problem::parse(reply.status, &reply.body).code };
        Ok(Answer {
            status: reply.status,
            body: serde_json::from_slice(&reply.body).unwrap_or_default(),
            code,
        })
    }

    /// Asks management, at the listener of this identity's class.
    ///
    /// # Errors
    /// When there is no answer at all.
    ///
    /// # Panics
    /// When the class has no listener.
    pub fn ask_management(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Answer, ClientError> {
        let address = self.topology.management[self.identity.class().as_str()];
        self.ask((PeerClass::Management, address), method, path, None, body)
    }

    /// Asks a service through the balancer.
    ///
    /// # Panics
    /// When there is no answer, or the service is not for this identity's class.
    pub fn ask_service(
        &self,
        service: PeerClass,
        method: Method,
        path: &str,
        grant: Option<&str>,
        body: Option<&Value>,
    ) -> Answer {
        let address = self.topology.services[&format!("{service}/{}", self.identity.class())].listen;
        self.ask((service, address), method, path, grant, body)
            .unwrap_or_else(|error| panic!("{service} does not answer to {path}: {error}"))
    }

    /// Asks for a task; whatever this identity had goes back to the queue.
    ///
    /// # Panics
    /// When that is refused.
    #[must_use]
    pub fn queue(&self, wait_ms: u64) -> QueueReply {
        let answer =
            self.ask_management(Method::POST, "/v1/queue", Some(&json!({ "wait_ms": wait_ms }))).unwrap();
        assert_eq!(answer.status, 200, "{answer:?}");
        serde_json::from_value(answer.body).unwrap()
    }

    /// Takes a task of a kind; what else is offered is given back.
    ///
    /// # Panics
    /// When none comes.
    #[must_use]
    pub fn take(&self, kind: &str) -> QueueReply {
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            let reply = self.queue(1_000);
            match &reply.task {
                Some(task) if task.kind == kind => return reply,
                Some(_) => self.give_back(&reply),
                None => {}
            }
            // Whoever else waits for what was given back is to have it.
            std::thread::sleep(Duration::from_millis(20));
        }
        panic!("no {kind} task came")
    }

    /// Gives a task back undone.
    ///
    /// # Panics
    /// When there is no answer.
    pub fn give_back(&self, reply: &QueueReply) {
        self.end(reply, false);
    }

    /// Says that a task ended.
    ///
    /// # Panics
    /// When there is no answer.
    pub fn end(&self, reply: &QueueReply, done: bool) -> Answer {
        let task = reply.task.as_ref().unwrap();
        let end = json!({ "task": task.id, "attempt": task.attempt, "done": done, "detail": {} });
        let body = json!({ "journal": [], "ended": end });
        self.ask_management(Method::POST, "/v1/status", Some(&body)).unwrap()
    }

    /// The close of a symbol on the market day of a task, in millionths of a dollar.
    ///
    /// # Panics
    /// When it cannot be read.
    #[must_use]
    pub fn close(&self, reply: &QueueReply, symbol: &str) -> i64 {
        let task = reply.task.as_ref().unwrap();
        let portfolio = task.portfolio.as_deref().unwrap();
        let path = panel_path(portfolio, symbol, &task.market_day);
        let answer =
            self.ask_service(PeerClass::Market, Method::GET, &path, Some(grant_for(reply, "market")), None);
        assert_eq!(answer.status, 200, "{answer:?}");
        let panel: Panel = serde_json::from_value(answer.body).unwrap();
        let symbol: Symbol = symbol.parse().unwrap();
        panel.close(&symbol, task.market_day.parse().unwrap()).unwrap().micros()
    }

    /// Places an order at the desk with the grant of a task.
    ///
    /// # Panics
    /// When there is no answer.
    pub fn place(&self, reply: &QueueReply, order: &OrderBody) -> Answer {
        let body = serde_json::to_value(order).unwrap();
        let grant = grant_for(reply, "desk");
        self.ask_service(PeerClass::Desk, Method::POST, "/v1/orders", Some(grant), Some(&body))
    }
}

/// The path of the closes of one symbol on one day.
#[must_use]
pub fn panel_path(portfolio: &str, symbol: &str, day: &str) -> String {
    format!("/v1/panel?portfolio={portfolio}&symbols={symbol}&from={day}&through={day}")
}

/// The grant of a task for an audience.
///
/// # Panics
/// When it has none.
#[must_use]
pub fn grant_for<'a>(reply: &'a QueueReply, audience: &str) -> &'a str {
    let grant = reply.grants.iter().find(|grant| grant.audience == audience);
    &grant.unwrap_or_else(|| panic!("no grant for {audience}")).text
}

/// What is shown in a handshake.
#[derive(Debug, Clone, Copy)]
pub enum Shown<'a> {
    /// No certificate.
    Nothing,
    /// A certificate that its bearer signed, in the name of this SPIFFE ID.
    SelfSigned(&'a str),
    /// Somebody's certificate, DER, with another one's private key, PKCS #8.
    Borrowed(&'a [u8], &'a [u8]),
    /// A certificate that somebody else signed.
    Forged(&'a Forged),
}

/// The key exchange that a listener chooses from everything that there is, the hybrid among it, and whether it gives
/// tickets.
///
/// # Panics
/// When there is nobody at the address, or no handshake comes about.
#[must_use]
pub fn key_exchange(address: SocketAddr) -> String {
    let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Gullible))
        .with_no_client_auth();
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(TIMEOUT)).unwrap();
    let name = ServerName::IpAddress(address.ip().into());
    let mut session = ClientConnection::new(Arc::new(config), name).unwrap();
    // The group is settled with the server's first words; that it refuses who shows no certificate comes later.
    while session.negotiated_key_exchange_group().is_none() {
        session.complete_io(&mut stream).unwrap();
    }
    format!("{:?}", session.negotiated_key_exchange_group().unwrap().name())
}

/// Connects, completes a handshake as far as it goes, and sends a request. What came back, or what ended it.
///
/// # Errors
/// Why nothing came back.
///
/// # Panics
/// When there is nobody at the address, or the handshake cannot even be begun.
pub fn knock(address: SocketAddr, shown: Shown<'_>) -> Result<String, String> {
    let builder = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Gullible));
    let config = match shown {
        Shown::Nothing => builder.with_no_client_auth(),
        Shown::SelfSigned(id) => {
            let key = rcgen::KeyPair::generate().unwrap();
            let mut params = rcgen::CertificateParams::default();
            params.subject_alt_names = vec![rcgen::SanType::URI(id.try_into().unwrap())];
            let certificate = params.self_signed(&key).unwrap();
            let key = PrivatePkcs8KeyDer::from(key.serialize_der());
            builder.with_client_auth_cert(vec![certificate.der().clone()], key.into()).unwrap()
        }
        Shown::Borrowed(certificate, pkcs8) => {
            let chain = vec![CertificateDer::from(certificate.to_vec())];
            let key = PrivatePkcs8KeyDer::from(pkcs8.to_vec()).into();
            let key = aws_lc_rs::sign::any_supported_type(&key).unwrap();
            // The library would notice if it were asked to compare the two.
            let shown = SingleCertAndKey::from(CertifiedKey::new(chain, key));
            builder.with_client_cert_resolver(Arc::new(shown))
        }
        Shown::Forged(forged) => {
            let key = PrivatePkcs8KeyDer::from(forged.key.clone());
            let chain = vec![CertificateDer::from(forged.certificate.clone())];
            builder.with_client_auth_cert(chain, key.into()).unwrap()
        }
    };
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(TIMEOUT)).unwrap();
    let name = ServerName::IpAddress(address.ip().into());
    let mut stream = StreamOwned::new(ClientConnection::new(Arc::new(config), name).unwrap(), stream);
    let request = b"GET /v1/panel HTTP/1.1\r\nhost: unit\r\nconnection: close\r\n\r\n";
    stream.write_all(request).map_err(|error| error.to_string())?;
    let mut said = String::new();
    stream.read_to_string(&mut said).map_err(|error| error.to_string())?;
    Ok(said)
}

/// Offers TLS 1.2 and nothing newer; the first bytes of the answer.
///
/// # Panics
/// When there is nobody at the address.
#[must_use]
pub fn old_hello(address: SocketAddr) -> Vec<u8> {
    let mut hello = vec![0x03, 0x03];
    hello.extend([7_u8; 32]);
    hello.push(0);
    // ECDHE with AES-GCM, for both kinds of keys; no compression.
    hello.extend([0x00, 0x04, 0xc0, 0x2b, 0xc0, 0x2f, 0x01, 0x00]);
    // Groups: x25519, P-256. Signatures: ECDSA P-256, Ed25519. Points: uncompressed.
    let groups = [0x00, 0x0a, 0x00, 0x06, 0x00, 0x04, 0x00, 0x1d, 0x00, 0x17];
    let signatures = [0x00, 0x0d, 0x00, 0x06, 0x00, 0x04, 0x04, 0x03, 0x08, 0x07];
    let points = [0x00, 0x0b, 0x00, 0x02, 0x01, 0x00];
    let extensions = [groups.as_slice(), &signatures, &points].concat();
    hello.extend(u16::try_from(extensions.len()).unwrap().to_be_bytes());
    hello.extend(extensions);
    let body = [[0x01, 0x00].as_slice(), &u16::try_from(hello.len()).unwrap().to_be_bytes(), &hello].concat();
    let length = u16::try_from(body.len()).unwrap().to_be_bytes();
    let record = [[0x16, 0x03, 0x01].as_slice(), &length, &body].concat();
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(TIMEOUT)).unwrap();
    stream.write_all(&record).unwrap();
    let mut answer = Vec::new();
    let _ = stream.take(64).read_to_end(&mut answer);
    answer
}

/// Believes every server: the intruder wants in, not to be safe.
#[derive(Debug)]
struct Gullible;

impl ServerCertVerifier for Gullible {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ECDSA_NISTP256_SHA256, SignatureScheme::ED25519]
    }
}
