//! What the machine can do at all: bare cryptography, without anything of the system around it.

use std::sync::Arc;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, Ed25519KeyPair};
use identity::SpiffeId;
use keys::SigningKey;
use keys::sealing::{Channel, Context, SealingKey};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection};
use wire::own_keys::OwnKeys;

use crate::rate;

/// As long as what is signed of a leaf certificate.
const MESSAGE: [u8; 400] = [7; 400];

/// P-256 signatures a second.
pub(crate) fn p256_signs(rounds: usize) -> f64 {
    let key = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING).unwrap();
    let random = SystemRandom::new();
    rate(rounds, || {
        key.sign(&random, &MESSAGE).unwrap();
    })
}

/// Ed25519 signatures a second: what an authority makes of each leaf.
pub(crate) fn ed25519_signs(rounds: usize) -> f64 {
    let key = Ed25519KeyPair::generate().unwrap();
    rate(rounds, || {
        key.sign(&MESSAGE);
    })
}

/// Rotations a second by one thread that does their cryptography and nothing else: five keys, three signatures and their
/// verification, three secrets sealed and opened, one handshake with certificates on both sides.
pub(crate) fn rotations(rounds: usize) -> f64 {
    let authority = SigningKey::from_seed(&[3; 32]);
    let (client, server) = configs();
    let id = SpiffeId::agent("floor.test", "agent-1").unwrap();
    rate(rounds, || {
        let own = OwnKeys::generate().unwrap();
        for _ in 0..2 {
            own.sign(&MESSAGE);
        }
        authority.sign(&MESSAGE);
        let signature = authority.sign(&MESSAGE);
        for _ in 0..3 {
            authority.verifying_key().verify(&MESSAGE, &signature).unwrap();
        }
        for channel in Channel::ALL {
            let key = SealingKey::from_seed(&[5; 32]);
            let context = Context { channel, recipient: id.as_str(), epoch: 1, sequence: 1 };
            let sealed = key.public_key().seal(&[9; 32], &context, &[1; 32]).unwrap();
            key.open(&context, &sealed).unwrap();
        }
        handshake(&client, &server);
    })
}

fn configs() -> (Arc<ClientConfig>, Arc<ServerConfig>) {
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    let certificate = certificate.self_signed(&key).unwrap().der().clone();
    let private = || PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let mut roots = RootCertStore::empty();
    roots.add(certificate.clone()).unwrap();
    let roots = Arc::new(roots);
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier =
        WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone()).build().unwrap();
    let mut client = ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_client_auth_cert(vec![certificate.clone()], private())
        .unwrap();
    client.resumption = rustls::client::Resumption::disabled();
    let mut server = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_client_cert_verifier(verifier)
        .with_single_cert(vec![certificate], private())
        .unwrap();
    server.send_tls13_tickets = 0;
    (Arc::new(client), Arc::new(server))
}

/// Both ends of a handshake, over nothing but memory.
fn handshake(client: &Arc<ClientConfig>, server: &Arc<ServerConfig>) {
    let name = ServerName::try_from("localhost").unwrap();
    let mut client = ClientConnection::new(client.clone(), name).unwrap();
    let mut server = ServerConnection::new(server.clone()).unwrap();
    while client.is_handshaking() || server.is_handshaking() {
        let mut bytes = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut bytes).unwrap();
        }
        server_reads(&mut server, &bytes);
        bytes.clear();
        while server.wants_write() {
            server.write_tls(&mut bytes).unwrap();
        }
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            client.read_tls(&mut rest).unwrap();
            client.process_new_packets().unwrap();
        }
    }
}

fn server_reads(server: &mut ServerConnection, mut bytes: &[u8]) {
    while !bytes.is_empty() {
        server.read_tls(&mut bytes).unwrap();
        server.process_new_packets().unwrap();
    }
}
