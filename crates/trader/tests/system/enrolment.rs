//! Enrolment as a person does it: with the program's own commands, on the machine of a running system.

use std::os::unix::fs::MetadataExt as _;
use std::process::Output;

use serde_json::Value;
use testkit::system::System;

use crate::trader;

/// Slow enough that it does not end while it is looked at.
const STAYING: &[&str] = &["--json", "--speed", "15"];

fn words(output: &Output) -> String {
    String::from_utf8_lossy(&[&output.stdout[..], &output.stderr].concat()).into_owned()
}

/// Makes a ticket with these flags in a private file.
fn ticket(system: &System, name: &str, flags: &[&str]) -> String {
    let made = system.json(&[&["ticket", "create", name], flags].concat());
    let path = system.dir().join(format!("{name}.ticket"));
    wire::files::write_private_atomic(&path, made["ticket"].as_str().unwrap().as_bytes()).unwrap();
    path.display().to_string()
}

fn agent(system: &System, name: &str) -> Value {
    let agents = system.json(&["agent", "list"]);
    agents.as_array().unwrap().iter().find(|agent| agent["name"] == name).cloned().unwrap_or_default()
}

fn refusals(system: &System, reason: &str) -> usize {
    let journal = system.journal("management");
    journal.iter().filter(|entry| entry["record"]["reason"] == reason).count()
}

#[test]
fn members_enrol_as_this_very_program_and_one_that_was_removed_comes_back_in_a_new_epoch() {
    if !wire::listener::kernel_tells_programs() {
        eprintln!("skipped: this kernel does not tell programs; it needs Linux 6.5");
        return;
    }
    let system = System::start(trader(), STAYING);
    system.wait_for_fills(1);
    let journal = system.journal("management");
    let attested: Vec<&Value> =
        journal.iter().map(|entry| &entry["record"]).filter(|record| record["kind"] == "attested").collect();
    assert_eq!(attested.len(), 12, "eight units, a desk, three agents");
    assert!(
        attested.iter().all(|record| record["by"] == serde_json::json!(["ticket", "unix"])),
        "{attested:?}"
    );

    // The right ticket in the hands of another program, and then of this one.
    let uid = std::fs::metadata("/proc/self").unwrap().uid().to_string();
    let of_other = ticket(&system, "agent-4", &["--unix-uid", &uid, "--executable", "/bin/sh"]);
    let refused = system.command(&["agent", "enrol", "agent-4", "--ticket", &of_other]);
    assert!(
        !refused.status.success() && words(&refused).contains("not good for this identity"),
        "{refused:?}"
    );
    assert_eq!(refusals(&system, "unix_program"), 1);
    let binary = trader().to_str().unwrap();
    let of_own = ticket(&system, "agent-4", &["--unix-uid", &uid, "--executable", binary]);
    let entries = system.json(&["ticket", "list"]);
    let entry = entries.as_array().unwrap().iter().find(|entry| entry["name"] == "agent-4").unwrap();
    assert_eq!((&entry["state"], &entry["shows"]), (&"open".into(), &serde_json::json!(["ticket", "unix"])));
    assert_eq!(system.json(&["agent", "enrol", "agent-4", "--ticket", &of_own])["epoch"], 1);

    // Without --yes it is shown and not done.
    let shown = system.command(&["agent", "remove", "agent-2"]);
    assert!(shown.status.success() && words(&shown).contains("--yes"), "{shown:?}");
    assert_eq!(agent(&system, "agent-2")["status"], "active");
    let stolen = system.steal("agent-2");
    assert_eq!(system.json(&["agent", "remove", "agent-2", "--yes"])["proven"], true);
    assert_eq!(agent(&system, "agent-2")["status"], "removed");
    let role = stolen.ask_management(wire::http::Method::GET, "/v1/role", None).unwrap();
    assert_eq!(role.code, "agent_revoked");
    let done = system.json(&["status"])["counts"]["tasks_done"].as_u64();
    system.wait_until("work without it", |status| status["counts"]["tasks_done"].as_u64() > done);
    assert_eq!(agent(&system, "agent-2")["epoch"], 1, "the supervisor brings nobody back");

    let taken = || {
        let journal = system.journal("management");
        let of_agent =
            |record: &Value| record["kind"] == "task_taken" && record["holder"] == stolen.id().as_str();
        journal.iter().filter(|entry| of_agent(&entry["record"])).count()
    };
    let before = taken();
    let anew = ticket(&system, "agent-2", &[]);
    assert_eq!(system.json(&["agent", "enrol", "agent-2", "--ticket", &anew])["epoch"], 2);
    system.wait_until("a task of the agent that came back", |_| taken() > before);
    assert_eq!(agent(&system, "agent-2")["status"], "active");
    assert_eq!(system.json(&["audit", "verify"])["verified"], true);
}
