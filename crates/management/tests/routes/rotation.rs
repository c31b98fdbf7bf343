//! Keys that follow each other: under load, with a member that dies at every moment, and in the hands of a thief.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use access::vocabulary::RevocationKind;
use audit::record::Record;
use identity::keyring::{DRAIN_S, KeyState};
use identity::{PeerClass, SpiffeId};
use management::bootstrap;
use management::run::newcomers_router;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::watch;
use wire::client::{Client, ClientError};
use wire::enrol::{At, enrol, enrolment_server_config};
use wire::http::Method;
use wire::journal::unix_ms;
use wire::listener::Listener;
use wire::renew::{Membership, Moment};
use wire::server::{Connections, ServerOptions, serve};
use wire::tls::{Identity, WireError, server_config};

use crate::world::World;

pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Management with its doors open.
pub(crate) struct Open {
    pub(crate) world: Arc<World>,
    pub(crate) enrolment: SocketAddr,
    pub(crate) members: Vec<SocketAddr>,
    pub(crate) own: Arc<Identity>,
    stop: watch::Sender<bool>,
}

impl Open {
    /// Listens for newcomers, and for agents at so many places.
    pub(crate) async fn new(places: usize) -> Self {
        let world = Arc::new(World::new());
        let authorities = world.control.authorities();
        let id = SpiffeId::management(&authorities.trust_domain).unwrap();
        let own = bootstrap::issue_here(&authorities, &id, &world.layout.identity("management")).unwrap();
        let own = Arc::new(own);
        let (stop, stopped) = watch::channel(false);
        let router = newcomers_router(&world.control);
        let listen = async |tls, router| {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            let options = ServerOptions::default();
            tokio::spawn(serve(listener, tls, router, options, Connections::new(), stopped.clone()));
            address
        };
        let enrolment = listen(enrolment_server_config(&own).unwrap(), router).await;
        let mut members = Vec::new();
        for _ in 0..places {
            let tls = server_config(&own, PeerClass::Agents).unwrap();
            members.push(listen(tls, world.members.router.clone()).await);
        }
        Self { world, enrolment, members, own, stop }
    }

    /// Listens for another class as well.
    pub(crate) async fn listen(&self, class: PeerClass) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let tls = server_config(&self.own, class).unwrap();
        let router = self.world.members.router.clone();
        let (options, stopped) = (ServerOptions::default(), self.stop.subscribe());
        tokio::spawn(serve(listener, tls, router, options, Connections::new(), stopped));
        address
    }

    /// Enrols anybody, by ticket, and takes up the identity.
    pub(crate) async fn member(&self, id: &SpiffeId, at: SocketAddr, directory: &Path) -> Membership {
        let ticket = self.world.control.create_ticket(id).unwrap();
        enrol(self.enrolment, at, &ticket.to_text(), id, directory).await.unwrap();
        Membership::resume(directory, at).await.unwrap()
    }

    /// Listens for newcomers at a socket of this machine as well.
    pub(crate) fn at_socket(&self, socket: &Path) -> At {
        let listener = Listener::at_socket(socket).unwrap();
        let (tls, router) =
            (enrolment_server_config(&self.own).unwrap(), newcomers_router(&self.world.control));
        let (options, stop) = (ServerOptions::default(), self.stop.subscribe());
        tokio::spawn(serve(listener, tls, router, options, Connections::new(), stop));
        At::socket(self.enrolment, socket.to_owned())
    }

    pub(crate) fn id(&self, name: &str) -> SpiffeId {
        SpiffeId::agent(&self.world.control.authorities().trust_domain, name).unwrap()
    }

    /// Enrols an agent, by ticket and over real connections.
    pub(crate) async fn enrol(&self, name: &str, directory: &Path) -> Identity {
        let id = self.id(name);
        let ticket = self.world.control.create_ticket(&id).unwrap();
        enrol(self.enrolment, self.members[0], &ticket.to_text(), &id, directory).await.unwrap()
    }

    fn states(&self, id: &SpiffeId) -> Vec<(String, KeyState)> {
        let state = self.world.control.state();
        let rows = state.registry.get(id).unwrap().keys.rows(unix_ms() / 1_000);
        rows.map(|(set, key_state)| (set.keys.tls.clone(), key_state)).collect()
    }

    fn active(&self, id: &SpiffeId) -> String {
        let states = self.states(id);
        let mut active = states.iter().filter(|(_, state)| *state == KeyState::Active);
        let (Some((tls, _)), None) = (active.next(), active.next()) else { panic!("{id}: {states:?}") };
        tls.clone()
    }
}

pub(crate) async fn role(client: &Client) -> Result<serde_json::Value, ClientError> {
    client.call_json(Method::GET, "/v1/role", &[], None::<&()>, PATIENCE).await
}

/// Every file below a directory, one after the other.
pub(crate) fn bytes_below(directory: &Path) -> Vec<u8> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir(directory).unwrap().flatten() {
        match entry.file_type().unwrap() {
            kind if kind.is_dir() => all.extend(bytes_below(&entry.path())),
            _ => all.extend(std::fs::read(entry.path()).unwrap()),
        }
    }
    all
}

pub(crate) fn contains(all: &[u8], part: &str) -> bool {
    all.windows(part.len()).any(|window| window == part.as_bytes())
}

/// What the identity file keeps of the TLS key.
fn secret(directory: &Path) -> String {
    let stored: serde_json::Value =
        serde_json::from_slice(&std::fs::read(directory.join("identity.json")).unwrap()).unwrap();
    stored["keys"]["tls"].as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn k04_whenever_a_member_dies_exactly_one_set_is_active_and_it_goes_on() {
    let open = Open::new(1).await;
    for (number, moment) in Moment::ALL.into_iter().enumerate() {
        let home = tempfile::tempdir().unwrap();
        let directory = home.path().join("identity");
        let name = format!("agent-{number}");
        let id = open.id(&name);
        let enrolled = open.enrol(&name, &directory).await;
        let old = secret(&directory);
        let member = Membership::resume(&directory, open.members[0]).await.unwrap();
        let died = member
            .renew(&mut |at| if at == moment { Err(WireError::Key("died".into())) } else { Ok(()) })
            .await;
        assert!(died.is_err());
        drop(member);
        let activated = matches!(moment, Moment::Activated | Moment::Promoted);
        assert_eq!(open.active(&id) != keys::to_hex(&enrolled.key()), activated, "{moment:?}");

        // Started again, it has the set that is active, and nothing of another lies about.
        let member = Membership::resume(&directory, open.members[0]).await.unwrap();
        assert_eq!(keys::to_hex(&member.credentials().current().key()), open.active(&id), "{moment:?}");
        role(member.management()).await.unwrap();
        let all = bytes_below(home.path());
        assert_eq!(contains(&all, &old), !activated, "{moment:?}");
        assert_eq!(String::from_utf8_lossy(&all).matches("\"signing\"").count(), 1, "{moment:?}");

        // And it replaces its keys again.
        member.renew(&mut |_| Ok(())).await.unwrap();
        assert_eq!(keys::to_hex(&member.credentials().current().key()), open.active(&id), "{moment:?}");
        role(member.management()).await.unwrap();
        assert!(!contains(&bytes_below(home.path()), &old), "{moment:?}: an old key stayed on the disk");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn k04_a_thousand_agents_replace_all_their_keys_and_no_request_fails() {
    const AGENTS: usize = 1_000;
    const REQUESTS: usize = 4;
    // Renewals are spread over hours; here so many are under way at once.
    const AT_ONCE: usize = 32;
    let turns = Arc::new(tokio::sync::Semaphore::new(AT_ONCE));
    let open = Arc::new(Open::new(4).await);
    let homes = Arc::new(tempfile::tempdir().unwrap());
    let authorities = open.world.control.authorities();
    for number in 0..AGENTS {
        // Enrolled by the authority's own hand; what is measured is what comes afterwards.
        let id = open.id(&format!("agent-{number}"));
        let directory = homes.path().join(number.to_string());
        let identity = bootstrap::issue_here(&authorities, &id, &directory).unwrap();
        open.world.register(&identity);
    }
    let failed = Arc::new(AtomicUsize::new(0));
    let started = Instant::now();
    let mut agents = tokio::task::JoinSet::new();
    for number in 0..AGENTS {
        let (open, homes, failed, turns) = (open.clone(), homes.clone(), failed.clone(), turns.clone());
        agents.spawn(async move {
            let _turn = turns.acquire().await.unwrap();
            let directory = homes.path().join(number.to_string());
            let address = open.members[number % open.members.len()];
            let member = Arc::new(Membership::resume(&directory, address).await.unwrap());
            let asking = tokio::spawn({
                let (member, failed) = (member.clone(), failed.clone());
                async move {
                    for _ in 0..REQUESTS {
                        if let Err(error) = role(member.management()).await {
                            eprintln!("agent-{number}: {error}");
                            failed.fetch_add(1, Ordering::SeqCst);
                        }
                        tokio::time::sleep(Duration::from_millis(5)).await;
                    }
                }
            });
            member.renew(&mut |_| Ok(())).await.unwrap();
            asking.await.unwrap();
            role(member.management()).await.unwrap();
            keys::to_hex(&member.credentials().current().key())
        });
    }
    let mut used = std::collections::BTreeSet::new();
    while let Some(key) = agents.join_next().await {
        used.insert(key.unwrap());
    }
    let took = started.elapsed();
    println!(
        "{AGENTS} agents replaced their keys in {took:?}: {:.0} a second",
        AGENTS as f64 / took.as_secs_f64()
    );
    assert_eq!(failed.load(Ordering::SeqCst), 0, "requests failed");
    let active: std::collections::BTreeSet<String> =
        (0..AGENTS).map(|number| open.active(&open.id(&format!("agent-{number}")))).collect();
    assert_eq!((active.len(), active == used), (AGENTS, true));
}

#[tokio::test(flavor = "multi_thread")]
async fn k02_a_key_that_was_replaced_drains_and_whoever_uses_it_a_second_later_is_found_out() {
    let open = Open::new(1).await;
    let home = tempfile::tempdir().unwrap();
    let directory = home.path().join("identity");
    let stolen = Arc::new(open.enrol("agent-1", &directory).await);
    let id = open.id("agent-1");
    let member = Membership::resume(&directory, open.members[0]).await.unwrap();
    member.renew(&mut |_| Ok(())).await.unwrap();
    let thief = Client::new(&stolen, PeerClass::Management, None, open.members[0]).unwrap();

    // What was under way may end, but the old keys endorse no new ones.
    role(&thief).await.unwrap();
    assert_eq!(open.states(&id)[1].1, KeyState::Draining);
    let again = Membership::resume(&stolen_copy(&stolen, home.path()), open.members[0]).await.unwrap();
    assert!(again.renew(&mut |_| Ok(())).await.is_err());

    // The defence switched off: as long as nobody retires the key, it is let in, and nobody hears of it.
    open.world.join().await;
    role(&thief).await.unwrap();
    assert!(open.world.control.state().incidents.is_empty());

    open.world.control.retire_keys(unix_ms() / 1_000 + DRAIN_S + 1).unwrap();
    let Err(ClientError::Refused(problem)) = role(&thief).await else { panic!("a retired key was taken") };
    assert_eq!((problem.status, problem.code.as_str()), (403, "key_retired"));
    let records = open.world.records();
    let refused = |record: &&Record| matches!(record, Record::Decision { reason, allowed: false, .. } if reason == "key_retired");
    assert_eq!(records.iter().filter(refused).count(), 1);
    let struck = open.world.control.state().revocations.entries().to_vec();
    let key = keys::to_hex(&stolen.key());
    assert!(
        struck.iter().any(|entry| entry.kind == RevocationKind::Key && entry.id == key),
        "guards are told"
    );
    role(member.management()).await.unwrap();

    // The sentinel takes it for what it is.
    let deadline = Instant::now() + PATIENCE;
    loop {
        let incidents: Vec<String> =
            open.world.control.state().incidents.values().map(|incident| incident.rule.clone()).collect();
        if incidents == ["retired_key"] {
            break;
        }
        assert!(Instant::now() < deadline, "no incident: {incidents:?}");
        open.world.join().await;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A thief's copy of the files.
fn stolen_copy(stolen: &Arc<Identity>, home: &Path) -> std::path::PathBuf {
    let directory = home.join("stolen");
    stolen.save(&directory).unwrap();
    directory
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_are_taken_from_who_holds_them_and_from_nobody_else() {
    let open = Open::new(1).await;
    let home = tempfile::tempdir().unwrap();
    let (one, two) = (home.path().join("1"), home.path().join("2"));
    open.enrol("agent-1", &one).await;
    open.enrol("agent-2", &two).await;
    let member = Membership::resume(&one, open.members[0]).await.unwrap();
    let offered = |offer: serde_json::Value| {
        let client = member.management().clone();
        async move {
            let path = wire::renew::OFFER_PATH;
            let answer: Result<serde_json::Value, ClientError> =
                client.call_json(Method::POST, path, &[], Some(&offer), PATIENCE).await;
            match answer {
                Err(ClientError::Refused(problem)) => problem.code,
                other => panic!("{other:?}"),
            }
        }
    };
    let good = || {
        let keys = wire::own_keys::OwnKeys::generate().unwrap();
        let id = open.id("agent-1");
        let statement = keys.public().statement(&id);
        let current = member.credentials().current();
        json!({
            "keys": keys.public(),
            "spki": base64(&keys.spki()),
            "proof": keys::to_hex(&keys.sign(&statement)),
            "endorsement": keys::to_hex(&current.own_keys().sign(&statement)),
        })
    };
    let spoilt = |field: &str, value: serde_json::Value| {
        let mut offer = good();
        offer[field] = value;
        offer
    };
    let zeros = json!("00".repeat(64));
    assert_eq!(offered(spoilt("proof", zeros.clone())).await, "keys_unproven");
    assert_eq!(offered(spoilt("endorsement", zeros)).await, "keys_unproven");
    assert_eq!(offered(spoilt("endorsement", json!(null))).await, "keys_unproven");
    assert_eq!(offered(spoilt("spki", good()["spki"].clone())).await, "keys_unproven");
    // Another member's keys, offered as one's own.
    let theirs = Identity::load(&two).unwrap();
    assert_eq!(offered(spoilt("keys", json!(theirs.own_keys().public()))).await, "keys_unproven");
    // A number that nobody opened.
    let other = Arc::new(Identity::load(&two).unwrap());
    let client = Client::new(&other, PeerClass::Management, None, open.members[0]).unwrap();
    let guess = json!({ "control": "00".repeat(32), "data": "00".repeat(32), "alerts": "00".repeat(32) });
    let answer: Result<(), ClientError> =
        client.call_json(Method::POST, wire::renew::ACTIVATE_PATH, &[], Some(&guess), PATIENCE).await;
    answer.unwrap(); // Its keys are active already: said again, it changes nothing.
    assert_eq!(open.active(&open.id("agent-2")), keys::to_hex(&other.key()));
}

fn base64(bytes: &[u8]) -> String {
    use ::base64::Engine as _;
    ::base64::prelude::BASE64_STANDARD.encode(bytes)
}
