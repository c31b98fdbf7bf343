//! Runs that nobody disturbs.

use std::collections::BTreeSet;

use crate::{SHORT, outcome, short_run, trader};
use testkit::system::System;

#[test]
fn a_run_trades_ends_and_proves_what_it_did() {
    let mut system = short_run();
    let (ended_well, summary) = system.finish();
    assert!(ended_well, "{summary}");
    for field in [
        "days",
        "orders",
        "fills",
        "rejected",
        "grants_issued",
        "grants_denied",
        "requests_refused",
        "revocations",
        "processes",
        "equity_start",
        "equity_end",
        "benchmark_end",
        "max_drawdown",
        "sharpe",
    ] {
        assert!(summary[field].is_number(), "{field} in {summary}");
    }
    assert!(summary["days"].as_u64() > Some(400), "{summary}");
    assert!(summary["orders"].as_u64() > Some(20), "{summary}");
    assert!(summary["fills"].as_u64() > Some(20), "{summary}");
    assert_eq!(summary["processes"], 14);
    assert_eq!(summary["grants_denied"], 0, "an undisturbed run is refused nothing: {summary}");
    assert_eq!(summary["requests_refused"], 0, "an undisturbed run is refused nothing: {summary}");
    assert_eq!(summary["incidents"], 0, "an undisturbed run raises no incident: {summary}");
    assert_eq!(summary["revocations"], 0);
    assert_eq!(summary["audit"]["verified"], true);
    assert!(summary["audit"]["entries"].as_u64() > Some(500));
    assert_eq!(summary["audit"]["root"].as_str().map(str::len), Some(64));

    let orders = system.json(&["order", "list"]);
    let filled = orders.as_array().unwrap().iter().find(|order| order["status"] == "filled").unwrap();
    let chain = system.json(&["explain", filled["id"].as_str().unwrap()]);
    let links: BTreeSet<&str> =
        chain.as_array().unwrap().iter().filter_map(|link| link["what"].as_str()).collect();
    assert_eq!(links, BTreeSet::from(["data", "fill", "grant", "model", "module", "order", "task"]));
    assert!(!system.command(&["explain", "no-such-order"]).status.success());

    // The fills are in the list; who made an order is not.
    let fills = filled["fills"].as_array().unwrap();
    assert_eq!(fills.len(), 1, "{filled}");
    assert_eq!((&fills[0]["price"], &fills[0]["quantity"]), (&filled["price"], &filled["quantity"]));
    assert!(filled.get("agent").is_none() && !orders.to_string().contains("spiffe://"), "{filled}");

    // Nothing runs any more, and the log answers.
    let status = system.json(&["status"]);
    assert_eq!((&status["state"], &status["ended"]), (&"ended".into(), &true.into()), "{status}");
    assert_eq!(status["steps"][0], status["steps"][1], "{status}");
    assert_eq!(
        (&status["counts"]["orders"], &status["counts"]["days"]),
        (&summary["orders"], &summary["days"])
    );
    let agents = system.json(&["agent", "list"]);
    assert_eq!(agents.as_array().unwrap().len(), 12, "everybody but management and the balancer: {agents}");
    assert!(agents.as_array().unwrap().iter().all(|agent| agent["status"] == "active"), "{agents}");
    assert_eq!(system.json(&["incident", "list"]), serde_json::json!([]));
    let approvals = system.command(&["approval", "list"]);
    assert!(String::from_utf8_lossy(&approvals.stderr).contains("is the system running?"));
}

#[test]
fn the_same_seed_gives_the_same_orders_fills_and_equity_and_another_seed_does_not() {
    let mut outcomes = Vec::new();
    for seed in ["7", "7", "8"] {
        let mut system = System::start(trader(), &[SHORT, &["--seed", seed]].concat());
        let (_, summary) = system.finish();
        outcomes.push(outcome(&system, &summary));
    }
    assert_eq!(outcomes[0], outcomes[1]);
    assert_ne!(outcomes[0], outcomes[2]);
}

#[test]
fn a_run_that_is_stopped_goes_on_where_it_was() {
    let mut whole = short_run();
    let (_, summary) = whole.finish();
    let undisturbed = outcome(&whole, &summary);
    drop(whole);

    let mut system = short_run();
    system.wait_for_fills(10);
    let _ = system.stop();
    let verified = system.json(&["audit", "verify"]);
    assert_eq!(verified["verified"], true, "{verified}");
    system.up(SHORT);
    let (ended_well, summary) = system.finish();
    assert!(ended_well, "{summary}");
    assert_eq!(outcome(&system, &summary), undisturbed);
}

#[test]
fn a_changed_byte_anywhere_in_the_stored_log_is_found_and_named() {
    let mut system = short_run();
    system.finish();
    let mut files = Vec::new();
    let mut open = vec![system.dir().join("processes")];
    while let Some(directory) = open.pop() {
        for entry in std::fs::read_dir(directory).unwrap().flatten() {
            let path = entry.path();
            if path.is_dir() {
                open.push(path);
            } else if path.to_string_lossy().contains("/management/log/")
                || path.extension().is_some_and(|is| is == "journal")
            {
                files.push(path);
            }
        }
    }
    files.sort();
    assert!(files.len() > 15, "{files:?}");
    for path in files {
        let good = std::fs::read(&path).unwrap();
        let mut bad = good.clone();
        let middle = bad.len() / 2;
        bad[middle] ^= 1;
        std::fs::write(&path, &bad).unwrap();
        let output = system.command(&["audit", "verify", "--json"]);
        assert!(!output.status.success(), "a changed byte of {} went unseen", path.display());
        let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(report["verified"], false);
        assert!(report["faults"][0]["place"].as_str().is_some_and(|place| !place.is_empty()), "{report}");
        std::fs::write(&path, &good).unwrap();
    }
    assert_eq!(system.json(&["audit", "verify"])["verified"], true);
}

#[test]
fn a_second_up_on_the_same_state_is_refused_and_fresh_removes_nothing_foreign() {
    let mut system = short_run();
    system.wait_for_fills(1);
    let second = system.command(&["up", "--exit-when-done"]);
    assert_eq!(second.status.code(), Some(1), "{}", String::from_utf8_lossy(&second.stderr));
    let _ = system.stop();

    let foreign = tempfile::tempdir().unwrap();
    std::fs::write(foreign.path().join("thesis.txt"), "ten years of work").unwrap();
    let output = std::process::Command::new(trader())
        .args(["up", "--fresh", "--dir"])
        .arg(foreign.path())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(foreign.path().join("thesis.txt").exists());
}

#[test]
fn bad_rows_of_a_file_are_named_and_the_rest_is_imported() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("mine.csv");
    let mut text = "Symbol,Date,Open,High,Low,Close,Volume\n".to_owned();
    for day in 1..=28 {
        text.push_str(&format!("ACME,2001-01-{day:02},10.0,10.5,9.5,10.1,1000\n"));
    }
    text.push_str("ACME,2001-02-01,10,11,9,-10,1000\n"); // negative
    text.push_str("ACME,2001-01-28,10.0,10.5,9.5,10.2,1000\n"); // duplicate
    text.push_str("ACME,2001-01-05,10.0,10.5,9.5,10.1,1000\n"); // out of order
    text.push_str("ACME,2001-02-02,10,11,9,,1000\n"); // missing
    text.push_str("ACME,2001-02-05,1010,1011,1009,1010,1000\n"); // 100x
    text.push_str("ACME,2001-02-06,10,11,9,10.3,1000\n");
    std::fs::write(&file, text).unwrap();
    let output = std::process::Command::new(trader())
        .args(["data", "import", "--json", "--dir"])
        .arg(directory.path().join("state"))
        .arg(&file)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let faults: Vec<&str> = report["findings"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|finding| finding["fault"].as_str())
        .collect();
    for fault in ["negative_price", "duplicate_day", "missing_field", "jump"] {
        assert!(faults.contains(&fault), "{fault} in {faults:?}");
    }
    assert!(faults.iter().any(|fault| ["out_of_order", "duplicate_day"].contains(fault)));
    assert_eq!(report["bars"], 29, "{report}");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("mine is left out") && said.contains("nothing of mine is ever bought"), "{said}");
    assert!(!said.contains("trades it"), "{said}");
    let state = directory.path().join("state");
    let refused = |arguments: &[&str]| {
        let output =
            std::process::Command::new(trader()).args(arguments).arg("--dir").arg(&state).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let again = refused(&["data", "import", file.to_str().unwrap()]);
    assert!(again.contains("is imported already"), "{again}");
    // Too short, it is not passed over in silence, and nothing is made for a run that cannot be.
    let up = refused(&["up", "--exit-when-done"]);
    assert!(up.contains("mine is left out"), "{up}");
    assert!(!state.join("offline-root").exists(), "{up}");
}
