//! Killing any process at any instant loses nothing and sends nothing twice.

use std::collections::BTreeMap;

use crate::{outcome, short_run};
use nix::sys::signal::Signal;
use testkit::system::System;

/// Every order was sent to the broker once, and filled once.
fn nothing_twice(system: &System) {
    let mut sent: BTreeMap<String, u32> = BTreeMap::new();
    let mut filled: BTreeMap<String, u32> = BTreeMap::new();
    for entry in system.journal("desk-1") {
        let record = &entry["record"];
        let order = record["order"].as_str().unwrap_or_default().to_owned();
        match record["kind"].as_str() {
            Some("order_sent") => *sent.entry(order).or_default() += 1,
            Some("order_filled") => *filled.entry(order).or_default() += 1,
            _ => {}
        }
    }
    assert!(sent.values().all(|count| *count == 1), "sent twice: {sent:?}");
    assert!(filled.values().all(|count| *count == 1), "filled twice: {filled:?}");
    assert!(filled.keys().all(|order| sent.contains_key(order)), "filled without being sent");
}

#[test]
fn killing_desk_units_management_balancer_or_agents_changes_nothing() {
    let mut whole = short_run();
    let (_, summary) = whole.finish();
    let undisturbed = outcome(&whole, &summary);
    drop(whole);

    let mut system = short_run();
    let victims = [
        "desk-1",
        "unit-market-1",
        "management",
        "agent-1",
        "unit-ledger-2",
        "desk-1",
        "agent-3",
        "balancer",
        "unit-research-1",
        "management",
        "unit-ledger-1",
    ];
    for (number, victim) in victims.into_iter().enumerate() {
        system.wait_for_fills(2 + 8 * number as u64);
        system.signal(victim, Signal::SIGKILL);
    }
    let (ended_well, summary) = system.finish();
    assert!(ended_well, "{summary}\n{}", system.outputs());
    assert_eq!(summary["audit"]["verified"], true);
    nothing_twice(&system);
    assert_eq!(outcome(&system, &summary), undisturbed);
}
