//! Agents that are made to misbehave are quarantined by themselves within a second, and nobody else is.

use identity::PeerClass;
use nix::sys::signal::Signal;
use serde_json::Value;
use testkit::intruder::panel_path;
use testkit::system::System;
use wire::api::OrderBody;
use wire::http::Method;

use crate::attacks::{PACED, undisturbed};
use crate::{outcome, trader};

/// Refusals within a second that are no alarm yet, as `policies/sentinel.toml` says.
const REFUSALS_MAX: usize = 20;

fn at_ms(entry: &Value) -> i64 {
    entry["at_ms"].as_i64().unwrap()
}

/// The revocation of an agent, from management's journal.
fn revoked(system: &System, agent: &str) -> Value {
    system.wait_for_record("management", "the revocation", |record| {
        record["kind"] == "revoked"
            && record["id"].as_str().is_some_and(|id| id.starts_with(&format!("{agent}#")))
    })
}

fn refusals(system: &System, process: &str, agent: &str) -> Vec<Value> {
    let journal = system.journal(process).into_iter();
    journal.filter(|entry| entry["record"]["allowed"] == false && entry["record"]["peer"] == agent).collect()
}

/// The run ended as if nothing had happened, with one incident and one agent in quarantine.
fn nobody_else_was_touched(system: &System, summary: &Value, agent: &str, rule: &str) {
    let journal = system.journal("management");
    let of_kind = |kind: &str| -> Vec<&Value> {
        journal.iter().map(|entry| &entry["record"]).filter(|record| record["kind"] == kind).collect()
    };
    let opened = of_kind("incident_opened");
    assert_eq!(opened.len(), 1, "{opened:?}");
    assert_eq!((&opened[0]["rule"], &opened[0]["subject"]), (&rule.into(), &agent.into()));
    let quarantined = of_kind("quarantined");
    assert!(quarantined.iter().all(|record| record["agent"] == agent), "{quarantined:?}");
    assert_eq!((&summary["incidents"], &summary["revocations"]), (&1.into(), &1.into()), "{summary}");
    assert_eq!(summary["audit"]["verified"], true);
}

fn listed(system: &System, agent: &str, rule: &str) {
    system.wait_until("the incident", |status| status["incidents_open"] == 1);
    let incidents = system.json(&["incident", "list"]);
    assert_eq!(
        (&incidents[0]["rule"], &incidents[0]["subject"]),
        (&rule.into(), &agent.into()),
        "{incidents}"
    );
    for listed in system.json(&["agent", "list"]).as_array().unwrap() {
        let expected = if listed["id"] == agent { "quarantined" } else { "active" };
        assert_eq!(listed["status"], expected, "{listed}");
    }
}

#[test]
fn a_burst_of_refused_requests_gets_an_agent_quarantined_within_a_second() {
    let expected = undisturbed();
    let mut system = System::start(trader(), PACED);
    system.wait_for_fills(4);
    let thief = system.steal("agent-2");
    let unit = thief.topology().services["market/agents"].backends[0];
    let path = panel_path("core", "KO", "1993-01-04");
    for _ in 0..40 {
        // Once the agent is revoked, its connection is cut.
        let _ = thief.ask((PeerClass::Market, unit), Method::GET, &path, None, None);
    }
    let revoked = revoked(&system, &thief.id());
    let refusals = refusals(&system, "unit-market-1", &thief.id());
    let alarm = &refusals[REFUSALS_MAX];
    let took = at_ms(&revoked) - at_ms(alarm);
    println!("revoked {took} ms after the refusal that was too many");
    assert!((0..1_000).contains(&took), "{took} ms: {alarm} {revoked}");
    assert_eq!(revoked["record"]["by"], "sentinel");
    listed(&system, &thief.id(), "refusal_burst");
    let (ended_well, summary) = system.finish();
    assert!(ended_well, "{summary}\n{}", system.outputs());
    nobody_else_was_touched(&system, &summary, &thief.id(), "refusal_burst");
    assert_eq!(outcome(&system, &summary), *expected);
}

#[test]
fn an_order_ten_times_the_usual_is_refused_and_its_agent_quarantined_within_a_second() {
    let expected = undisturbed();
    let mut system = System::start(trader(), PACED);
    system.wait_for_fills(8);
    let agent = system.take_over("agent-3");
    let reply = agent.take("rebalance");
    let orders = system.json(&["order", "list"]);
    let filled: Vec<&Value> =
        orders.as_array().unwrap().iter().filter(|order| order["status"] == "filled").collect();
    let value = |order: &Value| order["quantity"].as_i64().unwrap() * order["price"].as_i64().unwrap();
    let mut values: Vec<i64> = filled.iter().map(|order| value(order)).collect();
    values.sort_unstable();
    let usual = values[values.len() / 2];
    let price = agent.close(&reply, "KO");
    let order = OrderBody {
        id: "far-too-large".to_owned(),
        portfolio: "core".to_owned(),
        symbol: "KO".to_owned(),
        side: "buy".to_owned(),
        quantity: usual * 10 / price,
        price,
        forecast: None,
    };
    let answer = agent.place(&reply, &order);
    assert_eq!(answer.status, 403, "{answer:?}");
    assert_eq!(answer.code, "order_too_large");
    let revoked = revoked(&system, &agent.id());
    let refusals = refusals(&system, "desk-1", &agent.id());
    let took = at_ms(&revoked) - at_ms(&refusals[0]);
    println!("revoked {took} ms after the order");
    assert!((0..1_000).contains(&took), "{took} ms");
    listed(&system, &agent.id(), "over_limit");
    system.signal("agent-3", Signal::SIGCONT);
    let (ended_well, summary) = system.finish();
    assert!(ended_well, "{summary}\n{}", system.outputs());
    nobody_else_was_touched(&system, &summary, &agent.id(), "over_limit");
    let sent = system
        .journal("desk-1")
        .iter()
        .any(|entry| entry["record"]["kind"] == "order_sent" && entry["record"]["order"] == "far-too-large");
    assert!(!sent);
    assert_eq!(outcome(&system, &summary), *expected);
}
