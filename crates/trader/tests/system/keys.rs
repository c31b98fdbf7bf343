//! Keys and authorities that follow each other while the system trades, and a device that goes away.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;
use testkit::system::System;
use wire::http::Method;

use crate::{SHORT, outcome, short_run, trader};

/// What an undisturbed run of the same seed brings.
pub(crate) fn undisturbed() -> (Vec<String>, String) {
    let mut system = short_run();
    let (_, summary) = system.finish();
    outcome(&system, &summary)
}

fn active(system: &System, channel: &str) -> BTreeSet<(String, String)> {
    let keys = system.json(&["keys", "status"]);
    let rows = keys.as_array().unwrap().iter();
    rows.filter(|key| key["state"] == "active" && key["channel"] == channel)
        .map(|key| (key["agent"].as_str().unwrap().to_owned(), key["key_id"].as_str().unwrap().to_owned()))
        .collect()
}

#[test]
fn keys_and_an_authority_are_replaced_mid_run_and_nobody_notices() {
    let expected = undisturbed();
    // Slow enough that it all happens while the system trades.
    let mut system = System::start(trader(), &[SHORT, &["--speed", "15"]].concat());
    system.wait_for_fills(1);
    let before = active(&system, "tls");
    assert_eq!(before.len(), 12, "eight units, a desk, three agents: {before:?}");
    for channel in ["signing", "sealing/control", "sealing/data", "sealing/alerts"] {
        assert_eq!(active(&system, channel).len(), 12);
    }
    let stolen = system.steal("agent-1");
    let rotated = system.json(&["keys", "rotate"]);
    assert_eq!(rotated["rotated"], 12);
    assert!(active(&system, "tls").is_disjoint(&before), "every key is another");

    // Without --yes it is shown and not done.
    let shown = system.command(&["keys", "taint", "agents"]);
    assert!(shown.status.success() && String::from_utf8_lossy(&shown.stdout).contains("cannot be undone"));
    let tainted = system.json(&["keys", "taint", "agents", "--yes"]);
    assert!(tainted["took_ms"].as_u64() < Some(60_000), "{tainted}");
    assert_eq!(tainted["bundle"], 4);
    // What the old authority has certified opens no door any more.
    let refused = stolen.ask_management(Method::GET, "/v1/role", None);
    assert!(refused.is_err(), "the old chain is trusted: {refused:?}");

    let (ended_well, summary) = system.finish();
    assert!(ended_well, "{summary}\n{}", system.outputs());
    assert_eq!(summary["incidents"], 0, "{summary}");
    assert_eq!(summary["audit"]["verified"], true);
    assert_eq!(outcome(&system, &summary), expected);
}

/// SoftHSM2, where it is installed.
fn softhsm() -> Option<PathBuf> {
    let places = ["/usr/lib/softhsm/libsofthsm2.so", "/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so"];
    let found = places.iter().map(PathBuf::from).find(|path| path.exists());
    if found.is_none() {
        eprintln!("skipped: SoftHSM2 is not here; install it with: apt-get install softhsm2");
    }
    found
}

fn run(program: &mut Command) {
    let output = program.output().unwrap();
    assert!(output.status.success(), "{output:?}");
}

/// A token in a directory of its own, and the environment in which a process finds it.
fn token(home: &Path) -> (PathBuf, PathBuf) {
    let tokens = home.join("tokens");
    std::fs::create_dir(&tokens).unwrap();
    let config = home.join("softhsm2.conf");
    std::fs::write(&config, format!("directories.tokendir = {}\n", tokens.display())).unwrap();
    run(Command::new("softhsm2-util").env("SOFTHSM2_CONF", &config).args([
        "--init-token",
        "--free",
        "--label",
        "trader",
        "--pin",
        "123456",
        "--so-pin",
        "654321",
    ]));
    (tokens, config)
}

pub(crate) fn private_file(path: &Path, text: &str) {
    use std::io::Write as _;
    use std::os::unix::fs::OpenOptionsExt as _;
    let mut file =
        std::fs::OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(path).unwrap();
    file.write_all(text.as_bytes()).unwrap();
}

#[test]
fn with_the_keys_in_a_device_nothing_is_issued_while_it_is_gone_and_the_work_goes_on_when_it_is_back() {
    let Some(module) = softhsm() else { return };
    let expected = undisturbed();
    let home = tempfile::tempdir().unwrap();
    let (tokens, config) = token(home.path());
    let pin = home.path().join("pin");
    private_file(&pin, "123456");
    let mut system = System::prepare(trader());
    system.environment("SOFTHSM2_CONF", config.to_str().unwrap());
    let init =
        ["init", "--hsm", module.to_str().unwrap(), "--token", "trader", "--pin-file", pin.to_str().unwrap()];
    let made = system.command(&init);
    assert!(made.status.success(), "{made:?}");
    let keys: Vec<_> = std::fs::read_dir(system.layout().authorities()).unwrap().flatten().collect();
    assert!(!keys.iter().any(|file| file.file_name().to_string_lossy().ends_with(".key")), "{keys:?}");

    system.up(SHORT);
    system.wait_for_fills(1);
    let away = home.path().join("away");
    std::fs::rename(&tokens, &away).unwrap();
    std::thread::sleep(Duration::from_secs(2));
    let issued = |status: &Value| status["counts"]["grants_issued"].as_u64().unwrap();
    let before = issued(&system.json(&["status"]));
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(issued(&system.json(&["status"])), before, "a grant was signed without the device");
    std::fs::rename(&away, &tokens).unwrap();
    let back = Instant::now();
    system.wait_until("the next grant", |status| issued(status) > before);
    assert!(back.elapsed() < Duration::from_secs(30));
    let (ended_well, summary) = system.finish();
    assert!(ended_well, "{summary}\n{}", system.outputs());
    assert_eq!(summary["audit"]["verified"], true);
    assert_eq!(outcome(&system, &summary), expected);
}

#[test]
fn a_wrong_pin_or_passphrase_starts_nothing() {
    let mut system = System::prepare(trader());
    let secret = system.dir().parent().unwrap().join("secret");
    private_file(&secret, "correct horse battery");
    let made = system.command(&["init", "--passphrase-file", secret.to_str().unwrap()]);
    assert!(made.status.success(), "{made:?}");
    private_file(&secret, "wrong horse, battery!");
    let up = system.command(&["up", "--exit-when-done", "--until", "1993-03-31"]);
    assert!(!up.status.success());
    assert!(String::from_utf8_lossy(&up.stderr).contains("passphrase"), "{up:?}");
    private_file(&secret, "correct horse battery");
    system.up(SHORT);
    system.wait_for_fills(1);
}
