//! Attacks on a running system, from outside and from within: each is refused with its reason, and what was refused is in
//! the log.

use std::sync::OnceLock;
use std::time::{Duration, Instant};

use identity::{PeerClass, SpiffeId};
use nix::sys::signal::{Signal, kill};
use serde_json::{Value, json};
use testkit::intruder::{Intruder, Shown, grant_for, knock, old_hello, panel_path};
use testkit::system::System;
use wire::api::{OrderBody, QueueReply};
use wire::client::ClientError;
use wire::http::Method;

use crate::{outcome, short_run, trader};

/// A short run with a pause after every step, so that there is time to attack it.
pub(crate) const PACED: &[&str] = &["--exit-when-done", "--json", "--until", "1994-03-31", "--speed", "100"];
/// One that stays up when it has reached its end.
const STAYING: &[&str] = &["--quiet", "--until", "1994-03-31", "--speed", "100"];

/// The outcome of a short run that nobody disturbs. Ask for it before a system of your own is started: they run one at a
/// time.
pub(crate) fn undisturbed() -> &'static (Vec<String>, String) {
    static OUTCOME: OnceLock<(Vec<String>, String)> = OnceLock::new();
    OUTCOME.get_or_init(|| {
        let mut system = short_run();
        let (ended_well, summary) = system.finish();
        assert!(ended_well, "{summary}");
        outcome(&system, &summary)
    })
}

/// A read that the grants of a task allow, about its own portfolio and day.
fn read_of(reply: &QueueReply) -> String {
    let task = reply.task.as_ref().unwrap();
    panel_path(task.portfolio.as_deref().unwrap(), "KO", &task.market_day)
}

fn read(intruder: &Intruder, path: &str, grant: Option<&str>) -> (u16, String) {
    let answer = intruder.ask_service(PeerClass::Market, Method::GET, path, grant, None);
    (answer.status, answer.code)
}

fn refused(code: &str) -> (u16, String) {
    (403, code.to_owned())
}

/// Asks again until the answer is as wanted; how long that took.
fn until(
    what: &str,
    at_most: Duration,
    mut asked: impl FnMut() -> (u16, String),
    wanted: &(u16, String),
) -> Duration {
    let since = Instant::now();
    loop {
        let answer = asked();
        if answer == *wanted {
            return since.elapsed();
        }
        assert!(since.elapsed() < at_most, "{what}: {answer:?} instead of {wanted:?} after {at_most:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn status_of(system: &System, agent: &str) -> String {
    let agents = system.json(&["agent", "list"]);
    let found = agents.as_array().unwrap().iter().find(|found| found["name"] == agent).cloned();
    found.unwrap()["status"].as_str().unwrap().to_owned()
}

fn denied(system: &System) -> u64 {
    system.json(&["status"])["counts"]["requests_refused"].as_u64().unwrap()
}

fn sent(system: &System) -> usize {
    system.journal("desk-1").iter().filter(|entry| entry["record"]["kind"] == "order_sent").count()
}

/// A small order that the desk has nothing against.
fn small_order(intruder: &Intruder, reply: &QueueReply, symbol: &str) -> OrderBody {
    OrderBody {
        id: format!("probe-{symbol}"),
        portfolio: reply.task.as_ref().unwrap().portfolio.clone().unwrap(),
        symbol: symbol.to_owned(),
        side: "buy".to_owned(),
        quantity: 1,
        price: intruder.close(reply, symbol),
        forecast: None,
    }
}

#[test]
fn without_a_certificate_of_the_right_class_nobody_gets_past_the_handshake() {
    let system = System::start(trader(), STAYING);
    system.wait_for_fills(1);
    let agent = system.steal("agent-1");
    let operator = system.operator("owner");
    let unit = system.steal("unit-market-1");
    let me = agent.id();
    for (name, class) in
        [("market", PeerClass::Market), ("ledger", PeerClass::Ledger), ("desk", PeerClass::Desk)]
    {
        let service = &agent.topology().services[&format!("{name}/agents")];
        for address in service.backends.iter().chain([&service.listen]).copied() {
            for shown in [Shown::Nothing, Shown::SelfSigned(&me)] {
                let answer = knock(address, shown);
                assert!(answer.is_err(), "{name} {shown:?}: {answer:?}");
            }
            for stranger in [&operator, &unit] {
                let answer = stranger.ask((class, address), Method::GET, "/v1/panel", None, None);
                // The refusal may overtake the request; either way nothing was answered.
                assert!(
                    matches!(answer, Err(ClientError::Handshake { .. } | ClientError::Lost { .. })),
                    "{name}, {}: {answer:?}",
                    stranger.id()
                );
            }
            // A fatal alert, protocol_version.
            let answer = old_hello(address);
            assert_eq!(
                (answer.first(), answer.get(5..7)),
                (Some(&0x15), Some([2, 70].as_slice())),
                "{answer:?}"
            );
            // The right class gets in, and no further.
            let answer = agent.ask((class, address), Method::GET, "/v1/nothing", None, None).unwrap();
            assert_eq!(answer.status, 404);
        }
    }
    let management = &agent.topology().management;
    for (class, address) in management {
        for shown in [Shown::Nothing, Shown::SelfSigned(&me)] {
            assert!(knock(*address, shown).is_err(), "management for {class}");
        }
        let answer = agent.ask((PeerClass::Management, *address), Method::GET, "/v1/summary", None, None);
        assert_eq!(answer.is_ok(), class == "agents", "{class}: {answer:?}");
    }
    // Whoever listens in the place of a unit, without being one, is not spoken to either.
    let answer = agent.ask((PeerClass::Market, management["agents"]), Method::GET, "/v1/panel", None, None);
    assert!(matches!(answer, Err(ClientError::Handshake { .. })), "{answer:?}");
}

#[test]
fn without_a_good_grant_an_agent_is_refused_with_the_reason_and_the_log_has_it() {
    let system = System::start(trader(), STAYING);
    system.wait_for_fills(1);
    let before = denied(&system);
    let thief = system.steal("agent-2");
    let agent = system.take_over("agent-3");
    let reply = agent.take("analyse");
    let task = reply.task.clone().unwrap();
    let (path, grant) = (read_of(&reply), grant_for(&reply, "market"));
    assert_eq!(read(&agent, &path, Some(grant)).0, 200);

    // No grant: in the journal of the very unit that refused, and then in the log.
    let unit = agent.topology().services["market/agents"].backends[0];
    let answer = agent.ask((PeerClass::Market, unit), Method::GET, &path, None, None).unwrap();
    assert_eq!((answer.status, answer.code.as_str()), (403, "no_grant"));
    let written = system.journal("unit-market-1");
    let entry = written.iter().find(|entry| entry["record"]["reason"] == "no_grant").unwrap();
    assert_eq!(entry["record"]["peer"], agent.id());
    assert_eq!(
        (&entry["record"]["allowed"], &entry["record"]["route"]),
        (&json!(false), &json!("GET /v1/panel"))
    );
    system.wait_until("the refusal in the log", |status| {
        status["counts"]["requests_refused"].as_u64() > Some(before)
    });

    // Another's grant; another portfolio, symbol, audience, action; a later day; what is none at all.
    assert_eq!(read(&thief, &path, Some(grant)), refused("wrong_holder"));
    let tomorrow = task.market_day.parse::<market::Day>().unwrap().plus_days(1).unwrap().to_string();
    for (path, code) in [
        (panel_path("tech", "KO", &task.market_day), "wrong_portfolio"),
        (panel_path("core", "NFLX", &task.market_day), "wrong_symbol"),
        (panel_path("core", "KO", &tomorrow), "later_than_market_day"),
        (panel_path("core", "KO", "2019-12-31"), "later_than_market_day"),
    ] {
        assert_eq!(read(&agent, &path, Some(grant)), refused(code), "{path}");
    }
    let holdings = format!("/v1/holdings?portfolio=core&through={}", task.market_day);
    let answer = agent.ask_service(PeerClass::Ledger, Method::GET, &holdings, Some(grant), None);
    assert_eq!((answer.status, answer.code.as_str()), (403, "wrong_audience"));
    assert_eq!(read(&agent, &path, Some("bm90IGEgZ3JhbnQ")), refused("malformed_grant"));
    let bars = json!({ "portfolio": "core", "source": "large20", "series": { "KO": { "bars": [{
        "day": task.market_day, "open": "1.0", "high": "1.0", "low": "1.0", "close": "1.0", "volume": 0,
    }], "splits": [] } } });
    let answer = agent.ask_service(PeerClass::Market, Method::POST, "/v1/bars", Some(grant), Some(&bars));
    assert!(
        answer.code == "wrong_action" || answer.status == 400,
        "a grant for reading must not write: {answer:?}"
    );

    // Management serves the standing permissions and nothing else. More knocking than this within a second would rightly
    // have the agent quarantined.
    std::thread::sleep(Duration::from_millis(1_500));
    let aim = json!({ "target": "agent-1", "reason": "mutiny" });
    for path in
        ["/v1/revoke/agent", "/v1/revoke/grant", "/v1/kill", "/v1/tickets", "/v1/proposals", "/v1/approvals"]
    {
        let answer = agent.ask_management(Method::POST, path, Some(&aim)).unwrap();
        assert!([403, 404].contains(&answer.status), "{path}: {answer:?}");
    }
    for path in ["/v1/summary", "/v1/agents", "/v1/grants", "/v1/orders", "/v1/events"] {
        let answer = agent.ask_management(Method::GET, path, None).unwrap();
        assert!([403, 404].contains(&answer.status), "{path}: {answer:?}");
    }
    let feed = json!({ "acknowledged": 0, "wait_ms": 0 });
    let answer = agent.ask_management(Method::POST, "/v1/revocations", Some(&feed)).unwrap();
    assert_eq!(answer.status, 403, "an agent has three standing permissions, and this is none: {answer:?}");
    let role = agent.ask_management(Method::GET, "/v1/role", None).unwrap();
    assert_eq!((&role.body["id"], &role.body["quarantined"]), (&json!(agent.id()), &json!(false)));

    // A revoked grant is refused by the time that the command returns; the task's other grants are not.
    let id = reply.grants.iter().find(|grant| grant.audience == "market").unwrap().id.clone();
    assert_eq!(read(&agent, &path, Some(grant)).0, 200);
    let proof = system.json(&["grant", "revoke", &id]);
    assert_eq!(proof["proven"], true, "{proof}");
    assert_eq!(read(&agent, &path, Some(grant)), refused("revoked"));
    let grants = system.json(&["grant", "list"]);
    let listed =
        grants.as_array().unwrap().iter().find(|listed| listed["id"] == id.as_str()).unwrap().clone();
    assert_eq!(listed["status"], "revoked");
    agent.give_back(&reply);

    // After its task ended, a grant is dead within 2 s.
    let reply = agent.take("analyse");
    let (path, grant) = (read_of(&reply), grant_for(&reply, "market"));
    assert_eq!(read(&agent, &path, Some(grant)).0, 200);
    assert_eq!(agent.end(&reply, true).status, 200);
    let took = until(
        "the end of a task",
        Duration::from_secs(2),
        || read(&agent, &path, Some(grant)),
        &refused("task_ended"),
    );
    println!("the grant of an ended task was dead after {took:?}");
    assert_eq!(status_of(&system, "agent-3"), "active");
    system.signal("agent-3", Signal::SIGCONT);
    for _ in 0..20 {
        // While everybody writes.
        assert_eq!(system.json(&["audit", "verify"])["verified"], true);
    }
}

#[test]
fn a_revoked_agent_is_refused_everything_and_another_does_its_work() {
    let expected = undisturbed();
    let mut system = System::start(trader(), PACED);
    system.wait_for_fills(4);
    let agent = system.take_over("agent-2");
    let reply = agent.take("analyse");
    let task = reply.task.clone().unwrap().id;
    let (path, grant) = (read_of(&reply), grant_for(&reply, "market"));
    assert_eq!(read(&agent, &path, Some(grant)).0, 200);

    let asked = Instant::now();
    let proof = system.json(&["agent", "revoke", "agent-2", "--reason", "test"]);
    assert!(asked.elapsed() < Duration::from_millis(2_500), "{:?}: {proof}", asked.elapsed());
    assert_eq!(proof["proven"], true, "{proof}");
    println!("proven after {} ms, {:?} with the command", proof["took_ms"], asked.elapsed());
    // The grants of the attempt die as well as the identity: either is reason enough.
    let answer = read(&agent, &path, Some(grant));
    assert!([refused("agent_revoked"), refused("revoked")].contains(&answer), "{answer:?}");
    for (method, path, body) in
        [(Method::POST, "/v1/queue", Some(json!({ "wait_ms": 0 }))), (Method::GET, "/v1/role", None)]
    {
        let answer = system.steal("agent-2").ask_management(method, path, body.as_ref()).unwrap();
        assert_eq!((answer.status, answer.code.as_str()), (403, "agent_revoked"), "{path}");
    }
    assert_eq!(agent.end(&reply, true).code, "not_your_task");
    assert_eq!(status_of(&system, "agent-2"), "quarantined");
    system.signal("agent-2", Signal::SIGCONT);

    let (ended_well, summary) = system.finish();
    assert!(ended_well, "{summary}\n{}", system.outputs());
    assert_eq!(outcome(&system, &summary), *expected);
    let ends: Vec<(String, String)> = system
        .journal("management")
        .iter()
        .map(|entry| &entry["record"])
        .filter(|record| record["kind"] == "task_ended" && record["task"] == task.as_str())
        .map(|record| {
            (record["outcome"].as_str().unwrap().to_owned(), record["holder"].as_str().unwrap().to_owned())
        })
        .collect();
    assert!(ends.contains(&("lost".to_owned(), agent.id())), "{ends:?}");
    let (last, holder) = ends.last().unwrap();
    assert!(last == "done" && *holder != agent.id(), "{ends:?}");
}

#[test]
fn reinstating_an_agent_takes_a_second_person() {
    let system = System::start(trader(), STAYING);
    system.wait_for_fills(1);
    let first = system.steal("agent-2");
    system.json(&["agent", "revoke", "agent-2"]);
    assert_eq!(status_of(&system, "agent-2"), "quarantined");

    let proposal = system.json(&["agent", "reinstate", "agent-2", "--as", "owner"]);
    let id = proposal["id"].as_str().unwrap();
    assert_eq!(proposal["done"], false);
    assert_eq!(status_of(&system, "agent-2"), "quarantined", "one person reinstates nobody");
    let own = system.command(&["agent", "reinstate", "agent-2", "--approve", id, "--as", "owner"]);
    assert_eq!(own.status.code(), Some(1), "nobody approves their own");
    let wrong =
        system.command(&["agent", "reinstate", "agent-2", "--approve", "0011223344556677", "--as", "second"]);
    assert_eq!(wrong.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&wrong.stderr).contains("no_such_proposal: the proposal is unknown"));
    // The number of the proposal, for another agent than the second person sees in it.
    let open = system.json(&["approval", "list", "--as", "second"]);
    assert_eq!((open.as_array().unwrap().len(), &open[0]), (1, &proposal));
    let other = system.command(&["agent", "reinstate", "agent-3", "--approve", id, "--as", "second"]);
    assert_eq!(other.status.code(), Some(1));
    let said = String::from_utf8_lossy(&other.stderr).into_owned();
    assert!(said.contains("not_what_was_proposed") && said.contains("agent-2"), "{said}");
    assert_eq!(status_of(&system, "agent-2"), "quarantined");

    let done = system.json(&["agent", "reinstate", "agent-2", "--approve", id, "--as", "second"]);
    assert_eq!(done["done"], true);
    let again = system.command(&["agent", "reinstate", "agent-2", "--approve", id, "--as", "second"]);
    assert_eq!(again.status.code(), Some(1), "a proposal is carried out once");
    let me = first.id();
    let enrolled = system.wait_for_record("management", "a new enrolment", |record| {
        record["kind"] == "enrolled"
            && record["id"] == me.as_str()
            && record["epoch"].as_u64() > Some(first.epoch().into())
    });
    let seq = enrolled["seq"].as_u64();
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let journal = system.journal("management");
        let took = |entry: &Value| {
            entry["seq"].as_u64() > seq
                && entry["record"]["kind"] == "task_taken"
                && entry["record"]["holder"] == me.as_str()
        };
        if journal.iter().any(took) {
            break;
        }
        assert!(Instant::now() < deadline, "agent-2 takes no task again\n{}", system.outputs());
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(status_of(&system, "agent-2"), "active");
    let answer = first.ask_management(Method::GET, "/v1/role", None).unwrap();
    assert_eq!(answer.status, 403, "the identity from before stays dead: {answer:?}");
}

#[test]
fn after_a_kill_no_order_leaves_until_two_people_clear_it() {
    let expected = undisturbed();
    let mut system = System::start(trader(), PACED);
    system.wait_for_fills(4);
    let agent = system.take_over("agent-3");
    let reply = agent.take("rebalance");
    let order = small_order(&agent, &reply, "KO");
    let proof = system.json(&["kill", "--reason", "test"]);
    assert_eq!(proof["proven"], true, "{proof}");
    let before = sent(&system);
    assert!(system.layout().kill_latch().exists());
    assert_eq!(read(&agent, &read_of(&reply), Some(grant_for(&reply, "market"))), refused("killed"));
    let answer = agent.place(&reply, &order);
    assert_eq!((answer.status, answer.code.as_str()), (403, "killed"));
    assert!(agent.queue(300).task.is_none(), "no task is handed out");
    let stopped = |status: &Value| status["state"].as_str().is_some_and(|state| state.contains("stopped"));
    assert!(stopped(&system.json(&["status"])));

    let proposal = system.json(&["kill", "--clear", "--as", "owner"]);
    let id = proposal["id"].as_str().unwrap();
    let own = system.command(&["kill", "--clear", "--approve", id, "--as", "owner"]);
    assert_eq!(own.status.code(), Some(1), "nobody approves their own");
    std::thread::sleep(Duration::from_millis(700));
    assert!(stopped(&system.json(&["status"])), "one person clears nothing");
    assert_eq!(sent(&system), before, "no order was sent");
    let done = system.json(&["kill", "--clear", "--approve", id, "--as", "second"]);
    assert_eq!(done["done"], true);
    assert!(!system.layout().kill_latch().exists());
    system.signal("agent-3", Signal::SIGCONT);

    let (ended_well, summary) = system.finish();
    assert!(ended_well, "{summary}\n{}", system.outputs());
    assert_eq!(summary["incidents"], 0, "{summary}");
    assert_eq!(outcome(&system, &summary), *expected);
}

#[test]
fn killing_while_orders_are_placed_loses_none_of_them() {
    let expected = undisturbed();
    let mut system = System::start(trader(), PACED);
    system.wait_for_fills(1);
    for round in 1..=3_u64 {
        // Into the middle of a rebalance: as soon as the desk has sent more orders.
        let before = sent(&system);
        let deadline = Instant::now() + Duration::from_secs(60);
        while sent(&system) == before {
            assert!(Instant::now() < deadline, "no order comes in round {round}\n{}", system.outputs());
            std::thread::sleep(Duration::from_millis(1));
        }
        system.json(&["kill", "--reason", "test"]);
        let proposal = system.json(&["kill", "--clear", "--as", "owner"]);
        system.json(&["kill", "--clear", "--approve", proposal["id"].as_str().unwrap(), "--as", "second"]);
    }
    let (ended_well, summary) = system.finish();
    assert!(ended_well, "{summary}\n{}", system.outputs());
    assert_eq!(outcome(&system, &summary), *expected);
}

#[test]
fn the_latch_alone_stops_orders_when_management_does_not_answer() {
    let system = System::start(trader(), STAYING);
    system.wait_for_fills(1);
    let agent = system.take_over("agent-3");
    let reply = agent.take("rebalance");
    let orders = ["KO", "GE"].map(|symbol| small_order(&agent, &reply, symbol));
    let answer = agent.place(&reply, &orders[0]);
    assert_eq!((answer.status, &answer.body["status"]), (200, &json!("sent")), "{answer:?}");
    let before = sent(&system);

    // Nobody brings management back, and it does not answer.
    let up = system.up_pid();
    kill(up, Signal::SIGSTOP).unwrap();
    system.signal("management", Signal::SIGSTOP);
    let stopped = Instant::now();
    let command = system.spawn(&["kill", "--reason", "test"]);
    while !system.layout().kill_latch().exists() {
        assert!(stopped.elapsed() < Duration::from_secs(2), "the latch is not set");
        std::thread::sleep(Duration::from_millis(5));
    }
    let answer = agent.place(&reply, &orders[1]);
    assert!(stopped.elapsed() < Duration::from_secs(2), "this must be seen within the guards' lease");
    assert_ne!(answer.code, "lease_lapsed", "the latch was to be seen alone");
    assert!(answer.status == 403 && answer.code == "kill_latch", "{answer:?}");
    let output = command.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("latch"), "{said}");
    // By now the guards have not heard the feed for longer than their lease.
    assert_eq!(read(&agent, &read_of(&reply), Some(grant_for(&reply, "market"))), refused("lease_lapsed"));

    // Killed, and started again by the supervisor, management finds the latch.
    system.signal("management", Signal::SIGKILL);
    kill(up, Signal::SIGCONT).unwrap();
    system.signal("agent-3", Signal::SIGCONT);
    system.wait_until("the run stands still", |status| {
        status["state"].as_str().is_some_and(|state| state.contains("stopped"))
    });
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(sent(&system), before, "no order was sent");
}

#[test]
fn a_ticket_works_once_for_its_own_name_and_guessing_locks_it() {
    let system = System::start(trader(), STAYING);
    system.wait_for_fills(1);
    let (owner, topology) = (system.operator("owner"), system.topology());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let directory = tempfile::tempdir().unwrap();
    let domain = system.steal("agent-1").id().parse::<SpiffeId>().unwrap().trust_domain().to_owned();
    let enrol = |ticket: &str, name: &str, into: &str| {
        let id = SpiffeId::agent(&domain, name).unwrap();
        runtime.block_on(wire::enrol::enrol(
            topology.enrolment,
            topology.management["agents"],
            ticket,
            &id,
            &directory.path().join(into),
        ))
    };
    let ticket = |name: &str| -> String {
        let aim = json!({ "target": SpiffeId::agent(&domain, name).unwrap(), "reason": "test" });
        let answer = owner.ask_management(Method::POST, "/v1/tickets", Some(&aim)).unwrap();
        answer.body["ticket"].as_str().unwrap_or_else(|| panic!("{answer:?}")).to_owned()
    };
    let journalled = |reason: &str| {
        let journal = system.journal("management");
        journal.iter().filter(|entry| entry["record"]["reason"] == reason).count()
    };

    // An entry is not looked at again within a second.
    let pause = || std::thread::sleep(std::time::Duration::from_millis(1_050));
    let good = ticket("agent-8");
    assert!(enrol(&good, "agent-9", "other").is_err(), "a ticket is for one name");
    assert_eq!(
        enrol(&good, "agent-8", "first").unwrap().id().to_string(),
        format!("spiffe://{domain}/agent/agent-8")
    );
    pause();
    assert!(enrol(&good, "agent-8", "second").is_err(), "a ticket works once");
    assert_eq!(journalled("ticket_used"), 1);
    assert_eq!(journalled("ticket_unknown"), 1);

    let good = ticket("agent-9");
    let parts: Vec<&str> = good.split('.').collect();
    for guess in 0..5_u8 {
        let wrong = format!("{}.{}.{}", parts[0], keys::to_hex(&[guess; 32]), parts[2]);
        assert!(enrol(&wrong, "agent-9", "guessed").is_err());
        pause();
    }
    assert_eq!(journalled("ticket_wrong"), 5);
    assert!(enrol(&good, "agent-9", "late").is_err(), "five wrong secrets lock it");
    assert_eq!(journalled("ticket_locked"), 1);

    // A newcomer whose ticket names another root does not hand its secret to this management.
    let stranger = format!(
        "{}.{}.{}",
        parts[0],
        parts[1],
        keys::SigningKey::from_seed(&[9; 32]).verifying_key().to_hex()
    );
    assert!(enrol(&stranger, "agent-9", "stranger").is_err());
    assert_eq!(journalled("ticket_locked"), 1, "the secret was sent");
    assert!(enrol("trader-ticket-1.00.00", "agent-9", "torn").is_err());

    // Only the one who got in has an identity, and it works.
    let files = std::fs::read_dir(directory.path()).unwrap().count();
    assert_eq!(files, 1);
    let newcomer = Intruder::with_identity(&directory.path().join("first"), system.topology());
    assert_eq!(newcomer.ask_management(Method::GET, "/v1/role", None).unwrap().status, 200);
    assert_eq!(system.json(&["audit", "verify"])["verified"], true);
}
