//! Secrets of brokers and vendors while the system trades: stolen, replaced, destroyed; and root keys that come back by shares.

use std::path::{Path, PathBuf};
use std::process::Output;

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use testkit::system::System;
use wire::http::Method;

use crate::keys::{private_file, undisturbed};
use crate::{SHORT, outcome, trader};

/// What must be found nowhere.
const CANARY: &str = "canary-9b27c5d1e640";

fn words(output: &Output) -> String {
    let (out, err) = (&output.stdout, &output.stderr);
    format!("{}{}", String::from_utf8_lossy(out), String::from_utf8_lossy(err))
}

/// Files below a directory that have a text in them.
fn files_with(directory: &Path, text: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).unwrap().flatten() {
        let path = entry.path();
        match entry.file_type().unwrap() {
            kind if kind.is_dir() => found.extend(files_with(&path, text)),
            kind if kind.is_file() => {
                let bytes = std::fs::read(&path).unwrap_or_default();
                if bytes.windows(text.len()).any(|window| window == text.as_bytes()) {
                    found.push(path);
                }
            }
            _ => {}
        }
    }
    found
}

#[test]
fn a_secret_is_seen_by_nobody_but_whom_it_is_for_and_a_thief_is_found_out() {
    let expected = undisturbed();
    let mut system = System::start(trader(), &[SHORT, &["--speed", "15"]].concat());
    system.wait_for_fills(1);
    let listed = system.json(&["secret", "list"]);
    let broker = |listed: &Value| {
        listed.as_array().unwrap().iter().find(|row| row["name"] == "paper-broker").cloned().unwrap()
    };
    assert_eq!((&broker(&listed)["kind"], &broker(&listed)["opened"]), (&json!("broker"), &json!(1)));

    // A vendor's key goes in and comes out nowhere.
    let file = system.dir().parent().unwrap().join("vendor-key");
    private_file(&file, &format!("{CANARY}\n"));
    let file = file.to_str().unwrap();
    let stored = system.json(&["secret", "put", "vendor", "--vendor-of", "large20", "--file", file]);
    assert_eq!(stored["version"], 1);
    let to_an_agent = system.command(&["secret", "put", "x", "--broker-of", "agent-1", "--file", file]);
    assert!(!to_an_agent.status.success() && words(&to_an_agent).contains("for a desk"), "{to_an_agent:?}");

    // Whoever stole the desk's files comes second, and is found out.
    let thief = system.steal("desk-1");
    let body = json!({ "name": "paper-broker" });
    let refused = thief.ask_management(Method::POST, "/v1/secrets/open", Some(&body)).unwrap();
    assert_eq!((refused.status, refused.code.as_str()), (403, "already_opened"));
    system.wait_for_record("management", "the incident", |record| {
        record["kind"] == "incident_opened" && record["rule"] == "secret_reopened"
    });
    // The desk itself starts again and is given it, with new keys.
    system.signal("desk-1", Signal::SIGKILL);
    system.wait_until("the next opening", |_| broker(&system.json(&["secret", "list"]))["opened"] == 2);

    let shown = system.command(&["keys", "destroy", "desk", "--key-version", "1"]);
    assert!(shown.status.success() && words(&shown).contains("paper-broker"), "{shown:?}");
    let wrapped = system.json(&["keys", "rewrap", "desk"]);
    assert_eq!((&wrapped["active"], &wrapped["rewrapped"]), (&json!(2), &json!(1)));
    let lost = system.json(&["keys", "destroy", "desk", "--key-version", "1", "--yes"]);
    assert_eq!(lost["secrets_lost"], 0);
    system.signal("desk-1", Signal::SIGKILL);
    system.wait_until("one more opening", |_| broker(&system.json(&["secret", "list"]))["opened"] == 3);
    let removed = system.command(&["secret", "remove", "vendor", "--yes"]);
    assert!(removed.status.success(), "{removed:?}");

    let (ended_well, summary) = system.finish();
    assert!(ended_well, "{summary}\n{}", system.outputs());
    assert_eq!((&summary["incidents"], &summary["audit"]["verified"]), (&json!(1), &json!(true)));
    assert_eq!(outcome(&system, &summary), expected);
    assert_eq!(files_with(&system.dir(), CANARY), Vec::<PathBuf>::new());
    assert!(!files_with(&system.dir(), "secret_stored").is_empty(), "the scan reads what is there");
}

fn recover(system: &System, passphrase: &Path, shares: &[&String]) -> Output {
    let mut arguments = vec!["keys", "recover", "--passphrase-file", passphrase.to_str().unwrap()];
    arguments.extend(shares.iter().flat_map(|share| ["--share", share.as_str()]));
    system.command(&arguments)
}

#[test]
fn k11_a_lost_passphrase_comes_back_with_three_of_five_shares_and_everybody_hears_of_it() {
    let mut system = System::prepare(trader());
    let home = system.dir().parent().unwrap().to_owned();
    let (lost, new) = (home.join("lost"), home.join("new"));
    private_file(&lost, "a passphrase that will be lost");
    private_file(&new, "a passphrase that is remembered");
    let text = |path: &Path| path.to_str().unwrap().to_owned();
    let made = system.command(&["init", "--passphrase-file", &text(&lost)]);
    assert!(made.status.success(), "{made:?}");
    let shares = system.json(&["keys", "shares", "--out", &text(&home.join("shares"))]);
    let shares: Vec<String> =
        shares["shares"].as_array().unwrap().iter().map(|path| path.as_str().unwrap().to_owned()).collect();
    assert_eq!(shares.len(), 5);
    system.up(&["--until", "1993-03-31", "--speed", "200"]);
    system.wait_for_fills(1);
    let running = recover(&system, &new, &[&shares[0], &shares[1], &shares[2]]);
    assert!(!running.status.success() && words(&running).contains("stop it first"), "{running:?}");
    system.stop();

    std::fs::remove_file(&lost).unwrap();
    let up = system.command(&["up", "--exit-when-done"]);
    assert!(!up.status.success(), "{up:?}");
    let two = recover(&system, &new, &[&shares[3], &shares[1]]);
    assert!(!two.status.success(), "{two:?}");
    let three = recover(&system, &new, &[&shares[3], &shares[1], &shares[4]]);
    assert!(three.status.success(), "{three:?}");
    system.up(&["--exit-when-done", "--json"]);
    let (ended_well, summary) = system.finish();
    assert!(ended_well, "{summary}\n{}", system.outputs());
    assert_eq!(summary["audit"]["verified"], true);
    let incidents = system.json(&["incident", "list"]);
    let rules: Vec<&Value> = incidents.as_array().unwrap().iter().map(|incident| &incident["rule"]).collect();
    assert_eq!(rules, [&json!("key_store_resealed")]);
}
