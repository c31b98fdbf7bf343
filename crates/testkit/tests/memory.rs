//! What a process that has replaced its keys still has of the old ones in its memory: nothing.
//!
//! The process is this program once more, so that what is looked for is not in the memory that is looked at.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test stops at the first surprise")]

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use identity::{PeerClass, SpiffeId};
use nix::unistd::Pid;
use testkit::canary::{Canary, Scanner, identity_canaries};
use testkit::house::{House, TRUST_DOMAIN};
use wire::tls::{Credentials, Identity, client_config, server_config};

/// Tells the child what to do, and where.
const TASK: &str = "MEMORY_TEST_TASK";
const PLACE: &str = "MEMORY_TEST_PLACE";

fn agent() -> SpiffeId {
    SpiffeId::agent(TRUST_DOMAIN, "agent-1").unwrap()
}

/// Uses an identity for all that it is there for.
fn use_keys(credentials: &Credentials) {
    let identity = credentials.current();
    let _ = identity.own_keys().sign(b"message");
    let _ = identity.own_keys().public();
    client_config(credentials, PeerClass::Management, None).unwrap();
    server_config(credentials, PeerClass::Agents).unwrap();
}

/// What runs in the other process; does nothing where it is not asked to.
#[test]
fn the_other_process() {
    let (Ok(task), Ok(place)) = (std::env::var(TASK), std::env::var(PLACE)) else { return };
    let place = Path::new(&place);
    let house = House::new();
    // Made here, so that all that is left of making them is here too.
    house.identity(&agent()).save(&place.join("old")).unwrap();
    let old = Arc::new(Identity::load(&place.join("old")).unwrap());
    let credentials = Credentials::new(old.clone());
    use_keys(&credentials);
    house.identity(&agent()).save(&place.join("new")).unwrap();
    credentials.replace(Arc::new(Identity::load(&place.join("new")).unwrap()));
    use_keys(&credentials);
    match task.as_str() {
        "erase" => drop(old),
        // The defence switched off: what is never dropped is never erased.
        _ => std::mem::forget(old),
    }
    println!("ready");
    std::io::stdout().flush().unwrap();
    let _ = std::io::stdin().read(&mut [0]);
    use_keys(&credentials);
}

/// Whether the old keys and the new ones are in the memory of a process that does a task: what of them, and where.
fn found(task: &str) -> [Vec<String>; 2] {
    let place = tempfile::tempdir().unwrap();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "the_other_process", "--nocapture", "--test-threads=1"])
        .env(TASK, task)
        .env(PLACE, place.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(said.any(|line| line.unwrap().ends_with("ready")), "the other process ended");
    let canaries: Vec<Canary> =
        ["old", "new"].iter().flat_map(|which| identity_canaries(which, &place.path().join(which))).collect();
    let scanner = Scanner::new(canaries);
    let pid = Pid::from_raw(i32::try_from(child.id()).unwrap());
    let hits = scanner.in_memory(pid).unwrap();
    drop(child.stdin.take());
    assert!(child.wait().unwrap().success());
    ["old", "new"].map(|owner| {
        let of_owner = hits.iter().filter(|hit| scanner.canaries()[hit.canary].owner == owner);
        of_owner
            .map(|hit| format!("{} {} in {}", scanner.canaries()[hit.canary], hit.spelled, hit.place))
            .collect()
    })
}

#[test]
fn k01_keys_that_were_replaced_are_in_no_part_of_the_memory() {
    let [old, new] = found("erase");
    assert!(old.is_empty(), "{old:#?}");
    assert!(new.len() >= 5, "the scan finds the keys that are in use: {new:#?}");
}

#[test]
fn k01_without_erasing_the_replaced_keys_are_found() {
    let [old, _] = found("keep");
    assert!(old.len() >= 5, "{old:#?}");
}
