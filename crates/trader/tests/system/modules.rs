//! Modules that were tampered with do not start; modules that try what they may not do are stopped, alone.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use keys::Digest;
use nix::sys::signal::{Signal, kill};
use sandbox::release::{Manifest, SignedManifest};
use serde_json::Value;
use testkit::hostile;
use testkit::system::System;
use wire::layout::{Layout, read_json};

use crate::attacks::{PACED, undisturbed};
use crate::{SHORT, outcome, short_run, trader};

const AGENTS: [&str; 3] = ["agent-1", "agent-2", "agent-3"];

/// Every record of a kind in the agents' journals, oldest first.
fn of_agents(system: &System, kind: &str) -> Vec<Value> {
    let mut journals: Vec<Value> = AGENTS.iter().flat_map(|agent| system.journal(agent)).collect();
    journals.sort_by_key(|entry| entry["at_ms"].as_i64());
    journals
        .into_iter()
        .map(|mut entry| entry["record"].take())
        .filter(|record| record["kind"] == kind)
        .collect()
}

fn manifest_of(layout: &Layout) -> SignedManifest {
    read_json(&layout.modules().join("manifest.json")).unwrap()
}

fn store(layout: &Layout, signed: &SignedManifest) {
    let bytes = serde_json::to_vec_pretty(signed).unwrap();
    wire::files::write_private_atomic(&layout.modules().join("manifest.json"), &bytes).unwrap();
}

/// Releases other bytes under a module's name, properly signed by both keys: what the signers could be tricked into.
fn release(layout: &Layout, module: &str, program: &Path) {
    let bytes = fs::read(program).unwrap();
    let mut manifest: Manifest = serde_json::from_str(&manifest_of(layout).payload).unwrap();
    manifest.version += 1;
    manifest.modules.insert(module.to_owned(), Digest::of(&bytes).to_string());
    let mut signed = SignedManifest::new(&manifest).unwrap();
    for key in management::bootstrap::release_keys(layout).unwrap() {
        signed.sign(&key);
    }
    wire::files::write_private_atomic(&layout.modules().join(module), &bytes).unwrap();
    store(layout, &signed);
}

#[test]
fn a_module_that_was_tampered_with_does_not_start_and_restored_the_run_goes_on() {
    let expected = undisturbed();
    let mut system = short_run();
    system.wait_for_fills(4);
    let _ = system.stop();
    let layout = system.layout();
    let (analyst, manifest) = (layout.modules().join("analyst"), layout.modules().join("manifest.json"));
    let (good_analyst, good_manifest) = (fs::read(&analyst).unwrap(), fs::read(&manifest).unwrap());

    let flip = || {
        let mut bytes = good_analyst.clone();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(&analyst, bytes).unwrap();
    };
    let one_signature = || {
        let mut signed = manifest_of(&layout);
        signed.signatures.truncate(1);
        store(&layout, &signed);
    };
    let same_key_twice = || {
        let mut signed = manifest_of(&layout);
        signed.signatures[1] = signed.signatures[0].clone();
        store(&layout, &signed);
    };
    let attacks: [(&str, &dyn Fn(), &str); 3] = [
        ("a flipped byte", &flip, "has digest"),
        ("one signature", &one_signature, "signatures of 1 different release keys, 2 are needed"),
        ("the same key twice", &same_key_twice, "signatures of 1 different release keys, 2 are needed"),
    ];
    for (name, tamper, reason) in attacks {
        let started = of_agents(&system, "module_started").len();
        let refused = of_agents(&system, "module_refused").len();
        tamper();
        system.up(SHORT);
        // Every agent refuses, so the run stands still and asks for a person; it is not waited for in vain.
        let (ended_well, summary) = system.finish();
        assert!(!ended_well && summary["ended"] == false, "{name}: {summary}");
        let halted = summary["halted"].as_str().unwrap_or_default();
        assert!(halted.contains("failed 20 times") && halted.contains(reason), "{name}: {summary}");
        let status = system.json(&["status"]);
        assert!(status["state"].as_str().unwrap().contains(halted), "{name}: {status}");
        let refusals = of_agents(&system, "module_refused").split_off(refused);
        let said = |refusal: &Value| refusal["reason"].as_str().is_some_and(|said| said.contains(reason));
        assert!(!refusals.is_empty() && refusals.iter().all(said), "{name}: {refusals:?}");
        let new = of_agents(&system, "module_started").split_off(started);
        assert!(
            new.iter().all(|start| name == "a flipped byte" && start["module"] != "analyst"),
            "{name}: a module started nevertheless: {new:?}"
        );
        fs::write(&analyst, &good_analyst).unwrap();
        fs::write(&manifest, &good_manifest).unwrap();
    }
    system.up(SHORT);
    let (ended_well, summary) = system.finish();
    assert!(ended_well, "{summary}\n{}", system.outputs());
    assert_eq!(outcome(&system, &summary), *expected);
}

#[test]
fn a_module_that_somebody_kills_is_run_again_and_nobody_is_accused() {
    let expected = undisturbed();
    let mut system = System::start(trader(), PACED);
    system.wait_for_fills(1);
    let lost = |system: &System| {
        of_agents(system, "module_ended")
            .iter()
            .filter(|end| end["outcome"].as_str().is_some_and(|end| end.contains("signal 9")))
            .count()
    };
    // A module lives for some ten milliseconds, and its cell is built in the first of them: the search must do nothing else
    // meanwhile, and strikes sooner or later after it has found one.
    let mut delays = (0..10).cycle();
    let deadline = Instant::now() + Duration::from_secs(120);
    while lost(&system) < 1 {
        assert!(Instant::now() < deadline, "no module could be killed");
        let mut tries = 0..20_000;
        let found = tries.find_map(|_| AGENTS.iter().flat_map(|agent| system.children(agent)).next());
        if let Some(module) = found {
            std::thread::sleep(Duration::from_millis(delays.next().unwrap()));
            let _ = kill(module, Signal::SIGKILL);
            std::thread::sleep(Duration::from_millis(300));
        }
    }
    let (ended_well, summary) = system.finish();
    assert!(ended_well, "{summary}\n{}", system.outputs());
    assert_eq!(summary["incidents"], 0, "{summary}");
    assert_eq!(outcome(&system, &summary), *expected);
}

#[test]
fn a_module_that_opens_a_socket_reads_a_key_or_forks_is_stopped_alone_and_the_log_says_what_it_tried() {
    let expected = undisturbed();
    let mut system = System::prepare(trader());
    let programs = tempfile::tempdir().unwrap();
    let key = system.layout().authorities().join("keystore.json");
    let hostile =
        ["socket", "read_key", "fork_bomb"].map(|name| hostile::compile(name, programs.path(), Some(&key)));

    // The reporter is due after a year, after two, and at the end.
    system.up(PACED);
    system.wait_for_fills(1);
    let layout = system.layout();
    let mut stopped = Vec::new();
    for (number, program) in hostile.iter().enumerate() {
        release(&layout, "reporter", program);
        system.wait_until("a stopped module", |_| {
            let ended = of_agents(&system, "module_ended");
            stopped = ended.into_iter().filter(|record| record["violation"] == true).collect();
            stopped.len() > number
        });
    }
    let (ended_well, summary) = system.finish();
    assert!(ended_well, "{summary}\n{}", system.outputs());
    let tried: Vec<&str> = stopped.iter().filter_map(|record| record["outcome"].as_str()).collect();
    println!("{tried:?}");
    assert_eq!(tried.len(), 3, "each was tried once: {tried:?}");
    assert!(tried[0].contains("socket AF_INET"), "{tried:?}");
    assert!(tried[1].contains("open") && tried[1].contains("keystore.json"), "{tried:?}");
    assert!(["clone", "fork", "pipe"].iter().any(|call| tried[2].contains(call)), "{tried:?}");
    assert!(stopped.iter().all(|record| record["module"] == "reporter"));
    let others = of_agents(&system, "module_ended");
    let others = others.iter().filter(|record| record["module"] != "reporter");
    assert!(others.clone().count() > 60);
    let undone: Vec<&Value> = others.filter(|record| record["outcome"] != "done").collect();
    assert!(undone.is_empty(), "{undone:?}");

    // Nobody else was touched: the same orders, nobody revoked, and an incident for each.
    assert_eq!(outcome(&system, &summary), *expected);
    assert_eq!((&summary["revocations"], &summary["incidents"]), (&0.into(), &3.into()), "{summary}");
    assert_eq!(summary["audit"]["verified"], true);
    let journal = system.journal("management");
    let count = |kind: &str, field: &str, value: &str| {
        journal
            .iter()
            .filter(|entry| entry["record"]["kind"] == kind && entry["record"][field] == value)
            .count()
    };
    assert_eq!(count("incident_opened", "rule", "module_violation"), 3);
    assert_eq!(count("task_ended", "outcome", "cancelled"), 3);
}
