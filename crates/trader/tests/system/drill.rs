//! The drill for a leaked authority, with members that ask all the time and count what fails.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use identity::{PeerClass, SpiffeId};
use serde_json::json;
use testkit::intruder::Intruder;
use testkit::system::System;
use tokio::sync::watch;
use wire::client::Client;
use wire::http::Method;
use wire::journal::{Journal, ship};
use wire::renew::Membership;
use wire::tls::Credentials;

use crate::trader;

/// Stays up and trades while the drill goes on.
const STAYING: &[&str] = &["--quiet", "--until", "1994-03-31", "--speed", "15"];
const PATIENCE: Duration = Duration::from_secs(60);
/// Members of this test.
const MEMBERS: [&str; 3] = ["agent-7", "agent-8", "agent-9"];

/// What was sent and what became of it.
#[derive(Default)]
struct Tally {
    kept: AtomicUsize,
    fresh: AtomicUsize,
    failed: Mutex<Vec<String>>,
}

impl Tally {
    fn sent(&self) -> [usize; 2] {
        [&self.kept, &self.fresh].map(|count| count.load(Ordering::SeqCst))
    }

    /// Waits until so much more was sent in both ways.
    fn wait_for_more(&self, more: usize) {
        let (before, deadline) = (self.sent(), Instant::now() + PATIENCE);
        while self.sent().iter().zip(before).any(|(now, before)| *now < before + more) {
            assert!(Instant::now() < deadline, "nothing is sent: {:?}", self.failed.lock().unwrap());
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// Where a request goes, and which answer is the right one.
#[derive(Clone, Copy)]
struct Place {
    class: PeerClass,
    address: SocketAddr,
    path: &'static str,
    status: u16,
    /// Between two requests of one connection.
    pause: Duration,
    /// How many connections a member keeps, and makes anew for each request.
    at_once: usize,
}

impl Place {
    fn client(&self, credentials: &Credentials) -> Client {
        Client::new(credentials, self.class, None, self.address).unwrap()
    }

    /// Asks once. A failure is one, whatever could be done about it.
    async fn ask(&self, client: &Client) -> Result<(), String> {
        match client.call(Method::GET, self.path, &[], None, PATIENCE).await {
            Ok(reply) if reply.status == self.status => Ok(()),
            Ok(reply) => Err(format!("{}: {}", self.class, reply.status)),
            Err(error) => Err(format!("{}: {error}", self.class)),
        }
    }
}

/// Sends until told to stop: over one connection that is kept, or over a new one each time.
async fn send(
    place: Place,
    credentials: Credentials,
    kept: bool,
    tally: Arc<Tally>,
    stop: watch::Receiver<bool>,
) {
    let client = place.client(&credentials);
    while !*stop.borrow() {
        let answer =
            if kept { place.ask(&client).await } else { place.ask(&place.client(&credentials)).await };
        if let Err(error) = answer {
            tally.failed.lock().unwrap().push(format!("{} {error}", if kept { "kept" } else { "fresh" }));
        }
        let count = if kept { &tally.kept } else { &tally.fresh };
        count.fetch_add(1, Ordering::SeqCst);
        tokio::time::sleep(place.pause).await;
    }
}

/// Enrols a member of this test with a ticket.
async fn enrol(system: &System, trust_domain: &str, name: &str, home: &Path) -> PathBuf {
    let topology = system.topology();
    let id = SpiffeId::agent(trust_domain, name).unwrap();
    let ticket = system.json(&["ticket", "create", name]);
    let (ticket, directory) = (ticket["ticket"].as_str().unwrap(), home.join(name));
    let members = topology.management["agents"];
    wire::enrol::enrol(topology.enrolment, members, ticket, &id, &directory).await.unwrap();
    directory
}

/// Authorities that certified the keys that are in use by members with such a name.
fn authorities(system: &System, prefix: &str) -> BTreeSet<String> {
    let keys = system.json(&["keys", "status"]);
    let active = keys.as_array().unwrap().iter().filter(|key| key["state"] == "active");
    let theirs = active.filter(|key| key["agent"].as_str().unwrap().starts_with(prefix));
    theirs.map(|key| key["authority"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn k06_authorities_are_replaced_under_traffic_within_a_minute_and_no_request_fails() {
    let system = System::start(trader(), STAYING);
    system.wait_for_fills(1);
    let (home, topology) = (tempfile::tempdir().unwrap(), system.topology());
    let management = Place {
        class: PeerClass::Management,
        address: topology.management["agents"],
        path: "/v1/role",
        status: 200,
        pause: Duration::from_millis(10),
        at_once: 3,
    };
    // Nobody has a grant here; that there is no such route is an answer of the unit behind the balancer all the same. More of
    // these in a second, and the sentinel takes the member for one who tries doors.
    let market = Place {
        class: PeerClass::Market,
        address: topology.services["market/agents"].listen,
        path: "/v1/nothing",
        status: 404,
        pause: Duration::from_millis(250),
        at_once: 1,
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let (halt, stop) = watch::channel(false);
    let tally = Arc::new(Tally::default());
    let mut tasks = Vec::new();
    let mut stolen = Vec::new();
    let own = system.steal("agent-1").id().parse::<SpiffeId>().unwrap();
    for name in MEMBERS {
        let directory = runtime.block_on(enrol(&system, own.trust_domain(), name, home.path()));
        stolen.push(Intruder::with_identity(&directory, system.topology()));
        let resumed = runtime.block_on(Membership::resume(&directory, management.address));
        let member = Arc::new(resumed.unwrap());
        let journal = Journal::open(&home.path().join(format!("{name}-journal")), name).unwrap();
        tasks.push(runtime.spawn(ship(journal, member.clone(), stop.clone())));
        let (renewed, told) = (member.clone(), stop.clone());
        tasks.push(runtime.spawn(async move { renewed.keep_renewed(told).await }));
        for place in [management, market] {
            for number in 0..2 * place.at_once {
                let credentials = member.credentials().clone();
                let sending = send(place, credentials, number % 2 == 0, tally.clone(), stop.clone());
                tasks.push(runtime.spawn(sending));
            }
        }
    }
    tally.wait_for_more(50);
    for (class, prefix) in [("agents", "agent-"), ("market", "unit-market-")] {
        let before = authorities(&system, prefix);
        let tainted = system.json(&["keys", "taint", class, "--yes"]);
        assert!(tainted["took_ms"].as_u64() < Some(60_000), "{tainted}");
        let after = authorities(&system, prefix);
        assert_eq!((before.len(), after.len()), (1, 1), "{before:?} {after:?}");
        assert!(before.is_disjoint(&after), "every leaf of {class} is from the new authority");
        println!("{class}: {} ms, {:?} requests so far", tainted["took_ms"], tally.sent());
        tally.wait_for_more(50);
    }
    let _ = halt.send(true);
    for task in tasks {
        runtime.block_on(task).unwrap();
    }
    assert_eq!(*tally.failed.lock().unwrap(), Vec::<String>::new(), "of {:?}", tally.sent());
    // What the old authority has certified opens no door any more, neither of management nor of a unit.
    for thief in stolen {
        let refused = thief.ask_management(Method::GET, "/v1/role", None);
        assert!(refused.is_err(), "the old chain is trusted: {refused:?}");
        let refused = thief.ask((market.class, market.address), Method::GET, market.path, None, None);
        assert!(refused.is_err(), "the old chain is trusted: {refused:?}");
    }
    assert_eq!(system.json(&["status"])["incidents_open"], json!(0));
}
