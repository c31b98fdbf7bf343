//! Keys and authorities that follow each other while the system trades, and a device that goes away.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use testkit::system::System;
use wire::http::Method;

use crate::attacks::PACED;
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

const PIN: &str = "123456";

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
        PIN,
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

/// A system whose keys are in a device, where there is one; with the place of the tokens and the file with the PIN.
fn with_a_device(home: &Path) -> Option<(System, PathBuf, PathBuf)> {
    let module = softhsm()?;
    let (tokens, config) = token(home);
    let pin = home.join("pin");
    private_file(&pin, PIN);
    let mut system = System::prepare(trader());
    system.environment("SOFTHSM2_CONF", config.to_str().unwrap());
    let init =
        ["init", "--hsm", module.to_str().unwrap(), "--token", "trader", "--pin-file", pin.to_str().unwrap()];
    let made = system.command(&init);
    assert!(made.status.success(), "{made:?}");
    no_soft_keys(&system);
    Some((system, tokens, pin))
}

/// No key of the authorities lies in a file.
fn no_soft_keys(system: &System) {
    let keys: Vec<_> = std::fs::read_dir(system.layout().authorities()).unwrap().flatten().collect();
    assert!(!keys.iter().any(|file| file.file_name().to_string_lossy().ends_with(".key")), "{keys:?}");
}

fn issued(system: &System) -> u64 {
    system.json(&["status"])["counts"]["grants_issued"].as_u64().unwrap()
}

/// What holds for every trouble with a device: the run ends as if there had been none, and no key came to lie in a file.
fn ends_as_expected(mut system: System, expected: &(Vec<String>, String)) {
    let (ended_well, summary) = system.finish();
    assert!(ended_well, "{summary}\n{}", system.outputs());
    assert_eq!(summary["audit"]["verified"], true);
    assert_eq!(outcome(&system, &summary), *expected);
    no_soft_keys(&system);
}

#[test]
fn k09_without_the_device_nothing_is_issued_and_the_work_goes_on_when_it_is_back() {
    let (expected, home) = (undisturbed(), tempfile::tempdir().unwrap());
    let Some((mut system, tokens, _)) = with_a_device(home.path()) else { return };
    system.up(SHORT);
    system.wait_for_fills(1);
    let away = home.path().join("away");
    std::fs::rename(&tokens, &away).unwrap();
    std::thread::sleep(Duration::from_secs(2));
    let before = issued(&system);
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(issued(&system), before, "a grant was signed without the device");
    std::fs::rename(&away, &tokens).unwrap();
    goes_on(&system, before);
    ends_as_expected(system, &expected);
}

/// Waits until grants are issued again.
fn goes_on(system: &System, before: u64) {
    let back = Instant::now();
    system.wait_until("the next grant", |status| status["counts"]["grants_issued"].as_u64() > Some(before));
    assert!(back.elapsed() < Duration::from_secs(60));
}

#[test]
fn k09_a_wrong_pin_is_refused_again_and_again_and_the_right_one_lets_the_work_go_on() {
    const TIMES: usize = 4;
    let (expected, home) = (undisturbed(), tempfile::tempdir().unwrap());
    let Some((mut system, _, pin)) = with_a_device(home.path()) else { return };
    system.up(PACED);
    system.wait_for_fills(1);
    private_file(&pin, "000000");
    system.signal("management", Signal::SIGKILL);
    let output = system.layout().process("management").join("output.log");
    let refused = || std::fs::read_to_string(&output).unwrap().matches("refused the PIN").count();
    let signed = || {
        let journal = system.journal("management");
        journal.iter().filter(|entry| entry["record"]["kind"] == "grant_issued").count()
    };
    let (before, deadline) = (signed(), Instant::now() + Duration::from_secs(60));
    while refused() < TIMES {
        assert!(Instant::now() < deadline, "{}", system.outputs());
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(signed(), before, "a grant was signed without the device");
    no_soft_keys(&system);
    private_file(&pin, PIN);
    goes_on(&system, u64::try_from(before).unwrap());
    ends_as_expected(system, &expected);
}

/// Holds every file of the tokens, so that the device's library waits whenever it looks at one, until it is dropped.
fn hold(directory: &Path, held: &mut Vec<std::fs::File>) {
    for entry in std::fs::read_dir(directory).unwrap().flatten() {
        if entry.file_type().unwrap().is_dir() {
            hold(&entry.path(), held);
            continue;
        }
        let file = std::fs::OpenOptions::new().read(true).write(true).open(entry.path()).unwrap();
        let whole = nix::libc::flock {
            l_type: nix::libc::F_WRLCK as i16,
            l_whence: nix::libc::SEEK_SET as i16,
            l_start: 0,
            l_len: 0,
            l_pid: 0,
        };
        let deadline = Instant::now() + Duration::from_secs(10);
        while nix::fcntl::fcntl(&file, nix::fcntl::FcntlArg::F_SETLK(&whole)).is_err() {
            assert!(Instant::now() < deadline, "{} is not let go", entry.path().display());
            std::thread::yield_now();
        }
        held.push(file);
    }
}

#[test]
fn k09_while_the_device_does_not_answer_nothing_is_issued_and_then_the_work_goes_on() {
    let (expected, home) = (undisturbed(), tempfile::tempdir().unwrap());
    let Some((mut system, tokens, _)) = with_a_device(home.path()) else { return };
    system.up(PACED);
    system.wait_for_fills(1);
    let mut held = Vec::new();
    hold(&tokens, &mut held);
    // What was being signed at that moment may still come.
    std::thread::sleep(Duration::from_secs(2));
    let before = issued(&system);
    std::thread::sleep(Duration::from_secs(8));
    assert_eq!(issued(&system), before, "a grant was signed without the device");
    assert_eq!(system.json(&["status"])["incidents_open"], 0);
    drop(held);
    goes_on(&system, before);
    ends_as_expected(system, &expected);
}

#[test]
fn k09_a_wrong_passphrase_starts_nothing() {
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
