//! An installation for a test: root, class authorities, bundle, and identities of whoever is needed.
//!
//! Keys come from fixed seeds, so that a failing test fails again. Peers are made by real handshakes, for
//! there is no other way to make one.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::extract::Extension;
use identity::{Authority, Bundle, PeerClass, Root, SignedBundle, SpiffeId};
use keys::SigningKey;
use tokio::net::TcpListener;
use tokio::sync::watch;
use wire::client::Client;
use wire::http::Method;
use wire::journal::unix_ms;
use wire::own_keys::OwnKeys;
use wire::server::{Connections, ServerOptions, serve};
use wire::tls::{Identity, Peer, server_config};

/// The trust domain of every house.
pub const TRUST_DOMAIN: &str = "house.test";
/// Life of a certificate, in seconds.
const TTL_S: i64 = 3_600;

/// An installation.
pub struct House {
    root: Root,
    authorities: BTreeMap<PeerClass, Authority>,
    signed: SignedBundle,
}

impl Default for House {
    fn default() -> Self {
        Self::new()
    }
}

impl House {
    /// The key that signs grants.
    #[must_use]
    pub fn grant_key() -> SigningKey {
        SigningKey::from_seed(&[201; 32])
    }

    /// Makes an installation.
    ///
    /// # Panics
    /// When it cannot be made.
    #[must_use]
    pub fn new() -> Self {
        let now = unix_ms() / 1_000;
        let root = Root::new(TRUST_DOMAIN, SigningKey::from_seed(&[1; 32])).unwrap();
        let mut authorities = BTreeMap::new();
        for (number, class) in (2..).zip(PeerClass::ALL) {
            let key = SigningKey::from_seed(&[number; 32]);
            authorities.insert(class, root.authority(class, key, now, 86_400, [number; 16]).unwrap());
        }
        let public = |seed: u8| SigningKey::from_seed(&[seed; 32]).verifying_key().to_hex();
        let bundle = Bundle {
            trust_domain: TRUST_DOMAIN.to_owned(),
            version: 1,
            authorities: authorities
                .iter()
                .map(|(class, own)| (*class, vec![Bundle::encode(own.certificate())]))
                .collect(),
            grant_keys: vec![Self::grant_key().verifying_key().to_hex()],
            log_key: public(202),
            release_keys: vec![public(203), public(204)],
            release_threshold: 2,
            require_pq: false,
        };
        let signed = root.sign_bundle(&bundle).unwrap();
        Self { root, authorities, signed }
    }

    /// A new identity, in its first epoch.
    ///
    /// # Panics
    /// When the id belongs to no class.
    #[must_use]
    pub fn identity(&self, id: &SpiffeId) -> Arc<Identity> {
        let key = OwnKeys::generate().unwrap();
        let authority = self.authorities.get(&id.class().unwrap()).unwrap();
        let certificate = authority.issue(&key.spki(), id, 1, unix_ms() / 1_000, TTL_S, [5; 16]).unwrap();
        Arc::new(Identity::new(key, certificate, self.signed.clone(), self.root.verifying_key()).unwrap())
    }

    /// A peer of this id as a listener sees it, after a real handshake.
    ///
    /// # Panics
    /// When the handshake fails.
    pub async fn peer(&self, id: &SpiffeId) -> Peer {
        let server = self.identity(&SpiffeId::management(TRUST_DOMAIN).unwrap());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let seen: Arc<Mutex<Option<Peer>>> = Arc::default();
        let kept = seen.clone();
        let router = Router::new().fallback(move |Extension(peer): Extension<Peer>| async move {
            *kept.lock().unwrap() = Some(peer);
        });
        let (stop, stopped) = watch::channel(false);
        let tls = server_config(&server, id.class().unwrap()).unwrap();
        let serving =
            tokio::spawn(serve(listener, tls, router, ServerOptions::default(), Connections::new(), stopped));
        let client = Client::new(self.identity(id), PeerClass::Management, None, address).unwrap();
        client.call(Method::GET, "/", &[], None, Duration::from_secs(10)).await.unwrap();
        drop(client);
        stop.send(true).unwrap();
        serving.await.unwrap();
        let peer = seen.lock().unwrap().take();
        peer.unwrap()
    }
}
