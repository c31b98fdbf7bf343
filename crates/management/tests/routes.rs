//! Every route of management and every class of caller: who is allowed, who is refused and with which word.
//!
//! The rows say who may; the routes are the process's own. The answers to everybody are in `permissions.golden`, so that a
//! change of rights is read as a change of lines. After a wanted change: `TRADER_BLESS=1 cargo test -p management --test
//! routes`, then read the difference. A route without a row fails.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test stops at the first surprise"
)]

#[path = "routes/crashes.rs"]
mod crashes;
#[path = "routes/enrolment.rs"]
mod enrolment;
#[path = "routes/isolation.rs"]
mod isolation;
#[path = "routes/rotation.rs"]
mod rotation;
#[path = "routes/secrets.rs"]
mod secrets;
#[path = "routes/world.rs"]
mod world;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::time::Duration;

use audit::record::Record;
use identity::{PeerClass, SpiffeId};
use management::cases::{Approval, Proposal};
use serde_json::{Value, json};
use testkit::denials::{Asked, Place, Sample, gaps, peer_of, send};
use testkit::house::{House, TRUST_DOMAIN};
use tokio::net::TcpListener;
use tokio::sync::watch;
use wire::client::{Client, ClientError, Reached};
use wire::http::Method;
use wire::problem::Problem;
use wire::renew::{ACTIVATE_PATH, OFFER_PATH};
use wire::secrets::OPEN_PATH;
use wire::server::{Connections, ServerOptions, serve};
use wire::tls::{Peer, server_config};
use world::{Standing, World, agent, operator};

/// Whoever asks for something that members may do.
const MEMBERS: [(&str, PeerClass, Standing); 16] = [
    ("agent", PeerClass::Agents, Standing::Enrolled),
    ("desk", PeerClass::Desk, Standing::Enrolled),
    ("unit-market", PeerClass::Market, Standing::Enrolled),
    ("unit-news", PeerClass::News, Standing::Enrolled),
    ("unit-research", PeerClass::Research, Standing::Enrolled),
    ("unit-ledger", PeerClass::Ledger, Standing::Enrolled),
    ("operator", PeerClass::Operators, Standing::Unknown),
    ("agent, stranger", PeerClass::Agents, Standing::Unknown),
    ("agent, old epoch", PeerClass::Agents, Standing::OldEpoch),
    ("agent, other key", PeerClass::Agents, Standing::OtherKey),
    ("agent, revoked", PeerClass::Agents, Standing::Revoked),
    ("agent, reinstated", PeerClass::Agents, Standing::Reinstated),
    ("desk, old epoch", PeerClass::Desk, Standing::OldEpoch),
    ("desk, revoked", PeerClass::Desk, Standing::Revoked),
    ("unit-ledger, old epoch", PeerClass::Ledger, Standing::OldEpoch),
    ("unit-ledger, revoked", PeerClass::Ledger, Standing::Revoked),
];

const UNITS: [PeerClass; 4] = [PeerClass::Market, PeerClass::News, PeerClass::Research, PeerClass::Ledger];

/// A good request of one route.
struct Row {
    method: Method,
    path: &'static str,
    /// What is asked; told the approval of the proposal that waits for a second person.
    ask: fn(&Approval) -> Option<Value>,
    /// Whether this class of members may; for operators' routes, see [`OWN`].
    may: fn(PeerClass) -> bool,
    /// With which word the handler refuses what is asked, once the door has let it in.
    then: Option<&'static str>,
}

fn get(path: &'static str, may: fn(PeerClass) -> bool) -> Row {
    Row { method: Method::GET, path, ask: |_| None, may, then: None }
}

fn post(path: &'static str, ask: fn(&Approval) -> Option<Value>, may: fn(PeerClass) -> bool) -> Row {
    Row { method: Method::POST, path, ask, may, then: None }
}

/// Who may do what without a grant. A new route gets a line here.
fn member_rows() -> Vec<Row> {
    let agents_or_desk = |class| matches!(class, PeerClass::Agents | PeerClass::Desk);
    let member = |class| matches!(class, PeerClass::Agents | PeerClass::Desk) || UNITS.contains(&class);
    let guards = |class| class == PeerClass::Desk || UNITS.contains(&class);
    vec![
        post("/v1/status", |_| Some(json!({ "journal": [], "ended": null })), member),
        get("/v1/role", member),
        Row { then: Some("keys_unproven"), ..post(OFFER_PATH, |_| Some(unproven_offer()), member) },
        post(ACTIVATE_PATH, |_| Some(json!({ "control": "", "data": "", "alerts": "" })), member),
        post("/v1/queue", |_| Some(json!({ "wait_ms": 0 })), agents_or_desk),
        // The desk of these tests is not the one that it is stored for; `secrets.rs` has the one that is.
        post(OPEN_PATH, |_| Some(json!({ "name": "paper-broker" })), |_| false),
        post("/v1/revocations", |_| Some(json!({ "acknowledged": 0, "wait_ms": 0 })), guards),
    ]
}

/// The one thing that who was revoked may still do.
const LAST_WORDS: &str = "/v1/status";
/// The one thing that an operator may not do with what they proposed.
const OWN: &str = "/v1/approvals";

/// A grant that was issued.
const GRANT: &str = "00112233445566778899aabbccddeeff";

/// What operators may do, in an order in which all of it succeeds. A new route gets a line here.
fn operator_rows() -> Vec<Row> {
    let operator = |class| class == PeerClass::Operators;
    vec![
        get("/v1/summary", operator),
        get("/v1/agents", operator),
        get("/v1/grants", operator),
        get("/v1/orders", operator),
        get("/v1/incidents", operator),
        get("/v1/events", operator),
        get("/v1/proposals", operator),
        get("/v1/equity", operator),
        get("/v1/keys", operator),
        get("/v1/entries", operator),
        post("/v1/keys/rotate", |_| aim("all"), operator),
        Row {
            then: Some("bad_bundles"),
            ..post("/v1/bundles", |_| Some(json!({ "bundles": [] })), operator)
        },
        Row { then: Some("bad_secret"), ..post("/v1/secrets", |_| Some(put_secret()), operator) },
        get("/v1/secrets/key", operator),
        get("/v1/secrets", operator),
        get("/v1/keys/domains", operator),
        post("/v1/keys/rewrap", |_| Some(json!({ "domain": "desk" })), operator),
        post("/v1/keys/destroy", |_| Some(json!({ "domain": "desk", "version": 1 })), operator),
        post("/v1/secrets/remove", |_| Some(json!({ "name": "paper-broker" })), operator),
        post("/v1/approvals", |approval| Some(json!(approval)), operator),
        post("/v1/proposals", |_| propose(&agent("agent-3")), operator),
        post("/v1/tickets", |_| aim(agent("agent-5").as_str()), operator),
        post("/v1/remove/agent", |_| aim(agent("agent-6").as_str()), operator),
        post("/v1/revoke/grant", |_| aim(GRANT), operator),
        post("/v1/revoke/agent", |_| aim(agent("agent-4").as_str()), operator),
        post("/v1/kill", |_| aim("everything"), operator),
    ]
}

/// Keys that nobody has shown to be theirs.
fn unproven_offer() -> Value {
    let key = |digit: &str| digit.repeat(64);
    let keys = json!({
        "tls": key("1"), "signing": key("2"), "control": key("3"), "data": key("4"), "alerts": key("5"),
    });
    json!({ "keys": keys, "spki": "", "proof": "", "endorsement": null })
}

fn put_secret() -> Value {
    json!({ "name": "vendor", "kind": "vendor", "holder": "sample", "sequence": 1, "sealed": "nothing" })
}

fn aim(target: &str) -> Option<Value> {
    Some(json!({ "target": target, "reason": "test" }))
}

/// An approval of something by its number alone.
fn approval(proposal: &str) -> Approval {
    let (action, target) = ("reinstate_agent".to_owned(), agent("agent-2").to_string());
    Approval { proposal: proposal.to_owned(), action, target, digest: String::new() }
}

fn propose(target: &SpiffeId) -> Option<Value> {
    Some(json!({ "action": "reinstate_agent", "target": target }))
}

impl World {
    /// Sends a row's request and returns status and code, having seen that a refusal changed nothing but the journal, and
    /// that the journal says what was decided of whom.
    async fn ask(&self, place: &Place, row: &Row, peer: &Peer, approval: &Approval) -> (u16, String) {
        let what = format!("{} {} for {}", row.method, row.path, peer.id);
        let (effects, before) = (self.effects(), self.records().len());
        let asked: Asked = (String::new(), (row.ask)(approval));
        let (status, body) = send(&place.router, peer, &row.method, row.path, None, &asked).await;
        let code = if status == 200 { String::new() } else { Problem::parse(status, &body).code };
        let new: Vec<Record> = self.records().split_off(before);
        if row.then == Some(&code) {
            let done =
                new.iter().any(|record| !matches!(record, Record::OperatorAction { allowed: true, .. }));
            assert_eq!((done, self.effects()), (false, effects), "{what}: something was done: {new:?}");
            return (status, code);
        }
        let decided = new.first().and_then(|record| match record {
            Record::Decision { peer, allowed, reason, .. }
            | Record::OperatorAction { operator: peer, allowed, reason, .. } => {
                Some((peer, *allowed, reason))
            }
            _ => None,
        });
        if status == 200 {
            // Standing permissions that are allowed leave no decision behind, but what they did.
            let is_operator = place.class == PeerClass::Operators;
            assert_eq!(decided.is_some_and(|(_, allowed, _)| allowed), is_operator, "{what}: {new:?}");
        } else {
            assert_eq!(decided, Some((&peer.id.to_string(), false, &code)), "{what}: {new:?}");
            assert_eq!((new.len(), self.effects()), (1, effects), "{what}: something was done: {new:?}");
        }
        (status, code)
    }
}

fn missing(place: &Place, rows: &[Row]) -> Vec<String> {
    let sample =
        |row: &Row| Sample { method: row.method.clone(), path: row.path, ask: |_| (String::new(), None) };
    let samples: Vec<Sample> = rows.iter().map(sample).collect();
    let place = Place { class: place.class, table: place.table.clone(), router: place.router.clone() };
    gaps(&[place], &samples)
}

/// What a row must be answered with: no code when it is allowed.
fn expected(row: &Row, class: PeerClass, standing: Standing) -> &'static str {
    match standing {
        Standing::Enrolled if (row.may)(class) => row.then.unwrap_or_default(),
        // A guardrail, not the lack of a permit: no later permit changes it.
        Standing::Enrolled if row.path == OPEN_PATH && class == PeerClass::Agents => "forbidden",
        Standing::Enrolled => "not_permitted",
        Standing::Unknown => "not_enrolled",
        Standing::OldEpoch | Standing::OtherKey if row.path == ACTIVATE_PATH => "no_such_offer",
        Standing::OldEpoch | Standing::OtherKey => "identity_not_current",
        Standing::Revoked | Standing::Reinstated if row.path == LAST_WORDS => "",
        Standing::Revoked | Standing::Reinstated => "agent_revoked",
    }
}

/// Lines of the matrix: by route, then by caller.
type Matrix = BTreeMap<usize, Vec<String>>;

fn line(
    matrix: &mut Matrix,
    number: usize,
    place: &Place,
    row: &Row,
    who: &str,
    (status, code): &(u16, String),
) {
    let mut routes = place.table.iter();
    let route = routes.find(|route| route.method == row.method && route.path == row.path).unwrap();
    let route = format!("{:<4} {:<17} {:<16}", row.method.as_str(), row.path, route.needs.as_str());
    let answer = if *status == 200 { "allowed" } else { code };
    matrix.entry(number).or_default().push(format!("{route} {who:<24} {answer}"));
}

fn check(row: &Row, who: &str, answer: &(u16, String), code: &str) {
    let status = if code.is_empty() { 200 } else { 403 };
    assert_eq!(*answer, (status, code.to_owned()), "{} {} for {who}", row.method, row.path);
}

async fn members() -> Matrix {
    let (house, rows, mut matrix) = (House::new(), member_rows(), Matrix::new());
    let none = approval("");
    for (who, class, standing) in MEMBERS {
        let world = World::new();
        let peer = peer_of(&house, class).await;
        world.stand(&peer, standing);
        assert_eq!(missing(&world.members, &rows), [""; 0]);
        for (number, row) in rows.iter().enumerate() {
            let answer = world.ask(&world.members, row, &peer, &none).await;
            check(row, who, &answer, expected(row, class, standing));
            line(&mut matrix, number, &world.members, row, who, &answer);
        }
    }
    matrix
}

async fn operators() -> Matrix {
    let (house, rows, mut matrix) = (House::new(), operator_rows(), Matrix::new());
    let peer = peer_of(&house, PeerClass::Operators).await;
    for (who, proposer) in [("operator", operator("second")), ("operator, own proposal", peer.id.clone())] {
        let world = World::new();
        for name in ["agent-2", "agent-3", "agent-4", "agent-6"] {
            world.enrol(&agent(name), 1, [1; 32]);
        }
        for name in ["agent-2", "agent-3"] {
            world.control.revoke_agent(&agent(name), operator("second").as_str(), "test").unwrap();
        }
        world.issued(GRANT);
        let target = agent("agent-2").to_string();
        let proposal = world.control.propose("reinstate_agent", &target, proposer.as_str()).unwrap();
        assert_eq!(missing(&world.operators, &rows), [""; 0]);
        for (number, row) in rows.iter().enumerate() {
            let answer = world.ask(&world.operators, row, &peer, &proposal.approval()).await;
            let own = row.path == OWN && proposer == peer.id;
            assert!((row.may)(peer.class), "operators' routes are for operators");
            let code = if own { "forbidden" } else { row.then.unwrap_or_default() };
            check(row, who, &answer, code);
            line(&mut matrix, number, &world.operators, row, who, &answer);
        }
        assert_eq!(world.control.open_proposal(&proposal.id).is_some(), proposer == peer.id);
    }
    matrix
}

/// Whom the operators' listener lets in, by real handshakes: the routes behind it know operators only.
async fn doors() -> Vec<String> {
    let (house, world) = (House::new(), World::new());
    let here = house.identity(&SpiffeId::management(TRUST_DOMAIN).unwrap());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, stopped) = watch::channel(false);
    let tls = server_config(&here, PeerClass::Operators).unwrap();
    let (router, options) = (world.operators.router.clone(), ServerOptions::default());
    let serving = tokio::spawn(serve(listener, tls, router, options, Connections::new(), stopped));
    let mut lines = Vec::new();
    for class in PeerClass::ALL {
        let identity = house.identity(&peer_of(&house, class).await.id);
        let client = Client::new(identity, PeerClass::Management, None, address).unwrap();
        let called = client.call(Method::GET, "/v1/summary", &[], None, Duration::from_secs(10)).await;
        let answer = match called {
            Ok(reply) => reply.status.to_string(),
            Err(error) => {
                assert!(!matches!(error, ClientError::Timeout { .. }), "{class}: {error}");
                assert_ne!(error.reached(), Reached::Yes, "{class}: {error}");
                "no connection".to_owned()
            }
        };
        assert_eq!(answer == "200", class == PeerClass::Operators, "{class}: {answer}");
        lines.push(format!("{class:<11} {answer}"));
    }
    assert_eq!(world.records().len(), 1, "nobody but the operator got as far as a decision");
    stop.send(true).unwrap();
    serving.await.unwrap();
    lines
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everybody_is_answered_as_the_reviewed_matrix_says() {
    let mut found = String::from("# What management answers to whom. All that is not listed has no route.\n");
    found.push_str("# Route, right, who asks, answer; a refusal is a 403 with this word.\n");
    for (title, matrix) in [("members", members().await), ("operators", operators().await)] {
        let _ = writeln!(found, "\n# {title}");
        matrix.values().flatten().for_each(|line| _ = writeln!(found, "{line}"));
    }
    found.push_str("\n# whom the operators' listener lets in\n");
    doors().await.iter().for_each(|line| _ = writeln!(found, "{line}"));
    if std::env::var_os("TRADER_BLESS").is_some() {
        std::fs::write(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/permissions.golden"), &found).unwrap();
        return;
    }
    let reviewed = include_str!("permissions.golden");
    let new: Vec<_> = found.lines().filter(|line| !reviewed.lines().any(|old| old == *line)).collect();
    let gone: Vec<_> = reviewed.lines().filter(|line| !found.lines().any(|new| new == *line)).collect();
    assert!(
        found == reviewed,
        "management answers otherwise than tests/permissions.golden\nnew: {new:#?}\ngone: {gone:#?}"
    );
}

#[test]
fn an_agent_has_exactly_three_standing_permissions() {
    let world = World::new();
    let needs = |path: &str| {
        let mut routes = world.members.table.iter();
        routes.find(|route| route.path == path).unwrap().needs.as_str()
    };
    let may = |class| -> BTreeSet<&str> {
        member_rows().iter().filter(|row| (row.may)(class)).map(|row| needs(row.path)).collect()
    };
    let three = BTreeSet::from(["check_queue", "report_status", "verify_role"]);
    assert_eq!(may(PeerClass::Agents), three);
    assert_eq!(may(PeerClass::Desk), &three | &BTreeSet::from(["hear_revocations"]));
    for unit in UNITS {
        assert_eq!(may(unit), BTreeSet::from(["hear_revocations", "report_status", "verify_role"]));
    }
    for nobody in [PeerClass::Operators, PeerClass::Management] {
        assert!(may(nobody).is_empty());
    }
}

#[test]
fn a_route_without_a_row_is_noticed_and_so_is_a_row_without_a_route() {
    let world = World::new();
    for (place, rows) in [(&world.members, member_rows()), (&world.operators, operator_rows())] {
        let mut rows = rows;
        let taken = rows.pop().unwrap();
        rows.push(get("/v1/gone", |_| true));
        let route = format!("the route {} {} has no sample", taken.method, taken.path);
        assert_eq!(
            missing(place, &rows),
            [
                format!("{route}: add one to the table of samples"),
                "there is no route GET /v1/gone: take its sample away".to_owned(),
            ]
        );
    }
}

/// An operator's request, with the answer's status and problem.
async fn post_as(world: &World, peer: &Peer, path: &str, body: Value) -> (u16, Problem) {
    let asked: Asked = (String::new(), Some(body));
    let (status, body) = send(&world.operators.router, peer, &Method::POST, path, None, &asked).await;
    (status, Problem::parse(status, &body))
}

/// An agent of the system's own trust domain, as a name alone means it.
fn here(world: &World, name: &str) -> SpiffeId {
    SpiffeId::agent(&world.control.authorities().trust_domain, name).unwrap()
}

/// A stopped system with an agent in quarantine, and two proposals of another person: to let each go on.
async fn two_proposals() -> (World, Peer, Proposal, Proposal) {
    let (house, world) = (House::new(), World::new());
    let peer = peer_of(&house, PeerClass::Operators).await;
    let (second, bad) = (operator("second"), here(&world, "agent-2"));
    world.enrol(&bad, 1, [1; 32]);
    world.control.revoke_agent(&bad, second.as_str(), "test").unwrap();
    world.control.kill(second.as_str(), "test").unwrap();
    let reinstate = world.control.propose("reinstate_agent", bad.as_str(), second.as_str()).unwrap();
    let clear = world.control.propose("clear_kill", "everything", second.as_str()).unwrap();
    (world, peer, reinstate, clear)
}

#[tokio::test]
async fn nobody_approves_something_else_than_what_they_were_shown() {
    let (world, peer, reinstate, clear) = two_proposals().await;
    let bad = here(&world, "agent-2");
    let good = reinstate.approval();
    let (id, action, target) = (clear.id.clone(), clear.action.clone(), clear.target.clone());
    let other = Proposal { expires: reinstate.expires + 1, ..reinstate.clone() };
    for wrong in [
        // The number of another proposal, in the place of the one that was meant.
        Approval { proposal: id, ..good.clone() },
        Approval { action, ..good.clone() },
        Approval { target: agent("agent-3").to_string(), ..good.clone() },
        Approval { digest: other.digest(), ..good.clone() },
        Approval { digest: String::new(), ..good.clone() },
        Approval { target, ..good.clone() },
    ] {
        let effects = world.effects();
        let (status, problem) = post_as(&world, &peer, "/v1/approvals", json!(wrong)).await;
        assert_eq!((status, problem.code.as_str()), (403, "not_what_was_proposed"), "{wrong:?}");
        assert_eq!(world.effects(), effects, "{wrong:?}");
    }
    assert!(world.control.is_killed());
    assert!(world.control.state().registry.get(&bad).unwrap().quarantined);
    // What the second person meant to sign is in the log, whatever came of it.
    let meant = format!("{} reinstate_agent {}", clear.id, bad);
    let named = |record: &Record| matches!(record, Record::OperatorAction { target, .. } if *target == meant);
    assert!(world.records().iter().any(named));

    // An agent by its name is the same agent; nothing but what was named is done.
    let by_name = Approval { target: "agent-2".into(), ..good };
    let (status, problem) = post_as(&world, &peer, "/v1/approvals", json!(by_name)).await;
    assert_eq!(status, 200, "{problem}");
    assert!(!world.control.state().registry.get(&bad).unwrap().quarantined);
    assert!(world.control.is_killed());
    let (status, problem) = post_as(&world, &peer, "/v1/approvals", json!(clear.approval())).await;
    assert_eq!(status, 200, "{problem}");
    assert!(!world.control.is_killed());
}

#[tokio::test]
async fn a_refused_approval_says_what_is_wrong_with_it() {
    let (world, peer, reinstate, _) = two_proposals().await;
    let mut spent = world.control.propose("clear_kill", "everything", operator("second").as_str()).unwrap();
    spent.done = true;
    world.control.state().proposals.insert(spent.id.clone(), spent.clone());
    let old = Proposal { expires: 1, ..reinstate.clone() };
    world.control.state().proposals.insert(old.id.clone(), old.clone());
    for gone in [approval("0011223344556677"), spent.approval(), old.approval()] {
        let (status, problem) = post_as(&world, &peer, "/v1/approvals", json!(gone)).await;
        let said = "no_such_proposal: the proposal is unknown, done or older than 30 minutes";
        assert_eq!((status, problem.to_string().as_str()), (403, said));
    }
    let own = world.control.propose("clear_kill", "everything", peer.id.as_str()).unwrap();
    let (status, problem) = post_as(&world, &peer, "/v1/approvals", json!(own.approval())).await;
    let said = "forbidden: nobody approves their own proposal (policy nobody-approves-their-own)";
    assert_eq!((status, problem.to_string().as_str()), (403, said));
    // Policy is asked first: who proposed it is refused as such, whatever else is wrong.
    let wrong = Approval { action: "reinstate_agent".into(), ..own.approval() };
    let (_, problem) = post_as(&world, &peer, "/v1/approvals", json!(wrong)).await;
    assert_eq!(problem.code, "forbidden");
}

#[tokio::test]
async fn only_a_grant_that_was_issued_can_be_revoked_and_every_one_that_was() {
    let (house, world) = (House::new(), World::new());
    let peer = peer_of(&house, PeerClass::Operators).await;
    let revoke = |grant: &str| json!({ "target": grant, "reason": "test" });
    world.issued(GRANT);
    for never in ["zzz", "", "ffffffffffffffffffffffffffffffff", "00112233445566778899AABBCCDDEEFF"] {
        let effects = world.effects();
        let (status, problem) = post_as(&world, &peer, "/v1/revoke/grant", revoke(never)).await;
        assert_eq!((status, problem.code.as_str()), (403, "no_such_grant"), "{never}");
        assert!(!problem.detail.is_empty());
        assert_eq!(world.effects(), effects, "{never}: something was revoked");
    }
    let (status, problem) = post_as(&world, &peer, "/v1/revoke/grant", revoke(GRANT)).await;
    assert_eq!(status, 200, "{problem}");

    // One that was issued a moment ago, which the log may not have yet.
    let asker = peer_of(&house, PeerClass::Agents).await;
    world.enrol(&asker.id, asker.epoch, asker.key);
    let reply = world.control.take_task(&asker, Duration::ZERO).await.unwrap();
    let grant = &reply.grants.first().unwrap().id;
    let (status, problem) = post_as(&world, &peer, "/v1/revoke/grant", revoke(grant)).await;
    assert_eq!(status, 200, "{problem}");

    // And after a restart, when nothing but the log knows it.
    let again = World::with_log_of(&world);
    assert!(again.control.state().schedule.tasks().all(|task| task.grants.is_empty()));
    let (status, problem) = post_as(&again, &peer, "/v1/revoke/grant", revoke(grant)).await;
    assert_eq!(status, 200, "{problem}");
}
