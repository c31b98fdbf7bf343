//! A unit as a process, over real connections: what it needs to start, and how management stops it.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test stops at the first surprise"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::os::fd::AsRawFd as _;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use access::revocation::FeedReply;
use access::vocabulary::{Action, Audience, Revocation, RevocationKind};
use audit::journal::parse_line;
use audit::record::Record;
use axum::Router;
use axum::body::Bytes;
use axum::http::Method;
use axum::routing::post;
use identity::{PeerClass, SpiffeId};
use market::{Series, Symbol};
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use serde_json::{Value, json};
use testkit::denials::{claims, peer_of, signed};
use testkit::house::{House, TRUST_DOMAIN};
use tokio::net::TcpListener;
use tokio::sync::watch;
use wire::api::{StatusReply, StatusReport, Written};
use wire::client::{Client, ClientError};
use wire::guard::GRANT_HEADER;
use wire::journal::JournalError;
use wire::layout::{Layout, Service, Topology};
use wire::server::{Connections, ServerOptions, serve};
use wire::tls::server_config;

const PATIENCE: Duration = Duration::from_secs(20);

/// A management that hears journals and tells of one revocation when it is asked to.
#[derive(Default)]
struct Management {
    killed: AtomicBool,
    acknowledged: AtomicU64,
    lines: Mutex<Vec<Vec<u8>>>,
}

impl Management {
    fn router(self: &Arc<Self>) -> Router {
        let (feed, status) = (self.clone(), self.clone());
        let revocations = move |body: Bytes| async move {
            let poll: Value = serde_json::from_slice(&body).unwrap();
            let acknowledged = poll["acknowledged"].as_u64().unwrap();
            feed.acknowledged.store(acknowledged, Ordering::SeqCst);
            let killed = feed.killed.load(Ordering::SeqCst);
            let id = "test".to_owned();
            let strike = Revocation { revision: 1, kind: RevocationKind::Everything, id, until: None };
            let entries = if killed && acknowledged == 0 { vec![strike] } else { vec![] };
            serde_json::to_vec(&FeedReply { head: u64::from(killed), entries }).unwrap()
        };
        let report = move |body: Bytes| async move {
            let report: StatusReport = serde_json::from_slice(&body).unwrap();
            let mut lines = status.lines.lock().unwrap();
            for line in report.journal {
                let seq = parse_line(line.as_bytes()).unwrap().seq;
                if seq == lines.len() as u64 {
                    lines.push(line.into_bytes());
                }
            }
            serde_json::to_vec(&StatusReply { joined: lines.len() as u64, ..StatusReply::default() }).unwrap()
        };
        Router::new().route("/v1/revocations", post(revocations)).route("/v1/status", post(report))
    }

    fn records(&self) -> Vec<Record> {
        self.lines.lock().unwrap().iter().map(|line| parse_line(line).unwrap().record).collect()
    }
}

async fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap()
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let waited = tokio::time::timeout(PATIENCE, async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    waited.await.unwrap_or_else(|_| panic!("{what} did not come about"));
}

fn unit_id() -> SpiffeId {
    SpiffeId::unit(TRUST_DOMAIN, "market", 1).unwrap()
}

/// A unit that runs, with a management of its own.
struct Running {
    management: Arc<Management>,
    management_stop: watch::Sender<bool>,
    stop: watch::Sender<bool>,
    unit: tokio::task::JoinHandle<Result<(), unit::RunError>>,
    agents: SocketAddr,
    desk: SocketAddr,
}

async fn start(house: &House, layout: &Layout) -> Running {
    let (stop, stopped) = watch::channel(false);

    let management = Arc::new(Management::default());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let management_address = listener.local_addr().unwrap();
    let management_identity = house.identity(&SpiffeId::management(TRUST_DOMAIN).unwrap());
    let tls = server_config(&management_identity, PeerClass::Market).unwrap();
    let (management_stop, management_stopped) = watch::channel(false);
    tokio::spawn(serve(
        listener,
        tls,
        management.router(),
        ServerOptions::default(),
        Connections::new(),
        management_stopped,
    ));

    let (agents, desk) = (free_address().await, free_address().await);
    let service = |address| Service { listen: address, backends: vec![address] };
    let topology = Topology {
        enrolment: management_address,
        management: BTreeMap::from([("market".to_owned(), management_address)]),
        services: BTreeMap::from([
            ("market/agents".to_owned(), service(agents)),
            ("market/desk".to_owned(), service(desk)),
        ]),
    };
    std::fs::create_dir_all(layout.config()).unwrap();
    std::fs::write(layout.topology(), serde_json::to_vec(&topology).unwrap()).unwrap();
    house.identity(&unit_id()).save(&layout.identity("unit-market-1")).unwrap();
    let unit = tokio::spawn(unit::run(layout.clone(), "market", 1, "00".into(), stopped));
    Running { management, management_stop, stop, unit, agents, desk }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_unit_serves_ships_its_journal_and_stops_allowing_when_everything_is_killed() {
    let house = House::new();
    let directory = tempfile::tempdir().unwrap();
    let layout = Layout::new(directory.path());
    let Running { management, management_stop, stop, unit, agents, desk } = start(&house, &layout).await;

    let agent_identity = house.identity(&SpiffeId::agent(TRUST_DOMAIN, "agent-1").unwrap());
    let agent = Client::new(agent_identity.clone(), PeerClass::Market, Some(unit_id()), agents).unwrap();
    let mut peer = peer_of(&house, PeerClass::Agents).await;
    (peer.key, peer.epoch) = (agent_identity.key(), agent_identity.epoch());
    let mut grant = claims(Audience::Market, Action::WriteBars, &peer);
    grant.actions = BTreeSet::from([Action::WriteBars, Action::ReadBars]);
    let grant = signed(&grant, &House::grant_key());
    let headers = [(GRANT_HEADER, grant.as_str())];
    let bar = json!({ "day": "2005-03-16", "open": 5, "high": 9, "low": 4, "close": 7, "volume": 1 });
    let series = json!({ "AAPL": { "bars": [bar], "splits": [] } });
    let body = json!({ "portfolio": "core", "source": "sample", "series": series });
    let written = tokio::time::timeout(PATIENCE, async {
        loop {
            // Not listening yet, or not heard the feed yet: both pass.
            let written: Result<Written, ClientError> =
                agent.call_json(Method::POST, "/v1/bars", &headers, Some(&body), PATIENCE).await;
            match written {
                Ok(written) => return written,
                Err(error) if error.retryable() => tokio::time::sleep(Duration::from_millis(20)).await,
                Err(error) => panic!("{error}"),
            }
        }
    });
    assert_eq!(written.await.unwrap().new, 1);
    let path = "/v1/bars?portfolio=core&symbols=AAPL&from=2005-01-03&through=2005-03-16";
    let read =
        || agent.call_json::<(), BTreeMap<Symbol, Series>>(Method::GET, path, &headers, None, PATIENCE);
    assert_eq!(read().await.unwrap().values().map(|one| one.bars.len()).sum::<usize>(), 1);

    // An agent has no business at the desk's listener, whatever it shows.
    let wrong = Client::new(agent_identity, PeerClass::Market, None, desk).unwrap();
    let refused = wrong.call_json::<(), Value>(Method::GET, path, &headers, None, PATIENCE).await;
    // In TLS 1.3 the refusal may come when the client already takes the handshake for done: the connection breaks then.
    let unanswered = matches!(refused, Err(ClientError::Handshake { .. } | ClientError::Lost { .. }));
    assert!(unanswered, "{refused:?}");

    management.killed.store(true, Ordering::SeqCst);
    until("the acknowledgement", || management.acknowledged.load(Ordering::SeqCst) == 1).await;
    match read().await {
        Err(ClientError::Refused(problem)) => {
            assert_eq!((problem.status, problem.code.as_str()), (403, "killed"))
        }
        other => panic!("{other:?}"),
    }

    stop.send(true).unwrap();
    tokio::time::timeout(PATIENCE, unit).await.unwrap().unwrap().unwrap();
    let records = management.records();
    assert!(matches!(&records[0], Record::Started { program } if program == "00"));
    assert!(
        records.iter().any(|record| matches!(record, Record::Stored { what, rows: 1, .. } if what == "bars"))
    );
    let last = records.last().unwrap();
    assert!(
        matches!(last, Record::Decision { allowed: false, reason, .. } if reason == "killed"),
        "{last:?}"
    );
    management_stop.send(true).unwrap();
}

#[tokio::test]
async fn a_unit_does_not_start_as_somebody_else() {
    let house = House::new();
    let directory = tempfile::tempdir().unwrap();
    let layout = Layout::new(directory.path());
    let stop = || watch::channel(false).1;
    for domain in ["desk", "orders", ""] {
        let started = unit::run(layout.clone(), domain, 1, "00".into(), stop()).await;
        assert!(matches!(started, Err(unit::RunError::Domain(_))), "{domain}");
    }
    let other = SpiffeId::unit(TRUST_DOMAIN, "news", 1).unwrap();
    house.identity(&other).save(&layout.identity("unit-market-1")).unwrap();
    let started = unit::run(layout.clone(), "market", 1, "00".into(), stop()).await;
    assert!(matches!(started, Err(unit::RunError::Identity { .. })));
    assert!(!layout.database("market").exists(), "nothing was opened");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_unit_whose_journal_fails_ends_so_that_it_is_started_again() {
    let house = House::new();
    let directory = tempfile::tempdir().unwrap();
    let layout = Layout::new(directory.path());
    // A journal in memory, which can be kept from growing while it is open: a disk that fills up.
    let disk = memfd_create(c"journal", MFdFlags::MFD_ALLOW_SEALING | MFdFlags::MFD_CLOEXEC).unwrap();
    let journal = layout.journal("unit-market-1");
    std::fs::create_dir_all(&journal).unwrap();
    let opened = format!("/proc/self/fd/{}", disk.as_raw_fd());
    std::os::unix::fs::symlink(opened, journal.join("unit-market-1.journal")).unwrap();
    let running = start(&house, &layout).await;
    until("the first report", || !running.management.records().is_empty()).await;

    let agent_identity = house.identity(&SpiffeId::agent(TRUST_DOMAIN, "agent-1").unwrap());
    let agent = Client::new(agent_identity, PeerClass::Market, Some(unit_id()), running.agents).unwrap();
    let ask = || agent.call_json::<(), Value>(Method::GET, "/v1/gone", &[], None, PATIENCE);
    match ask().await {
        Err(ClientError::Refused(problem)) => assert_eq!(problem.code, "no_such_route"),
        other => panic!("{other:?}"),
    }
    fcntl(&disk, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_GROW)).unwrap();
    match ask().await {
        Err(ClientError::Refused(problem)) => assert_eq!(problem.code, "journal_failed"),
        // Cut off by the end of the process before the answer was sent.
        Err(error) if error.retryable() => {}
        other => panic!("{other:?}"),
    }
    let ended = tokio::time::timeout(PATIENCE, running.unit).await.unwrap().unwrap();
    assert!(matches!(ended, Err(unit::RunError::Journal(JournalError::Closed))), "{ended:?}");
    let last = running.management.records().pop().unwrap();
    let told = matches!(&last, Record::Decision { allowed: false, reason, .. } if reason == "no_such_route");
    assert!(told, "what was written before has reached the log: {last:?}");
    running.management_stop.send(true).unwrap();
}
