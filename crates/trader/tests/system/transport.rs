//! Every listener of a running system, as strangers and other people's programs meet it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use identity::{PeerClass, SpiffeId};
use serde_json::Value;
use testkit::forger::{forged, pem, self_signed};
use testkit::intruder::{Shown, key_exchange, knock, old_hello};
use testkit::system::System;
use wire::layout::Topology;
use wire::tls::Identity;

use crate::trader;

/// A run that stays up when it has reached its end.
const STAYING: &[&str] = &["--quiet", "--until", "1992-06-30"];

/// One listener of a process.
struct Listener {
    /// As the topology names it.
    name: String,
    /// Class of its peers; none where newcomers knock.
    class: Option<PeerClass>,
    process: String,
    address: SocketAddr,
}

/// Every listener that speaks TLS. What the balancer listens on leads to the same ones.
fn listeners(topology: &Topology) -> Vec<Listener> {
    let mut all = vec![Listener {
        name: "management/enrolment".into(),
        class: None,
        process: "management".into(),
        address: topology.enrolment,
    }];
    for (class, address) in &topology.management {
        let name = format!("management/{class}");
        let (class, process) = (PeerClass::parse(class), "management".into());
        all.push(Listener { name, class, process, address: *address });
    }
    for (name, service) in &topology.services {
        let (domain, class) = name.split_once('/').unwrap();
        for (number, address) in (1..).zip(&service.backends) {
            let process =
                if domain == "desk" { format!("desk-{number}") } else { format!("unit-{domain}-{number}") };
            let (name, class) = (name.clone(), PeerClass::parse(class));
            all.push(Listener { name, class, process, address: *address });
        }
    }
    all
}

fn has_refused(system: &System, listener: &Listener, reason: &str) {
    let what = format!("{reason} at {}", listener.name);
    system.wait_for_record(&listener.process, &what, |record| {
        record["kind"] == "handshakes_refused"
            && record["listener"] == listener.name.as_str()
            && record["reasons"][reason].as_u64() > Some(0)
    });
}

/// Waits until an incident of a rule is open on a subject; how long that took.
fn incident(system: &System, rule: &str, subject: &str) -> Duration {
    let begun = Instant::now();
    loop {
        let incidents = system.json(&["incident", "list"]);
        let is_it = |incident: &Value| incident["rule"] == rule && incident["subject"] == subject;
        if incidents.as_array().unwrap().iter().any(is_it) {
            return begun.elapsed();
        }
        assert!(begun.elapsed() < Duration::from_secs(60), "no {rule} on {subject}: {incidents}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn rules(system: &System) -> BTreeSet<String> {
    let incidents = system.json(&["incident", "list"]);
    incidents.as_array().unwrap().iter().map(|found| found["rule"].as_str().unwrap().to_owned()).collect()
}

/// What openssl says when it offers no other key exchange, and no certificate.
fn with_x25519_alone(address: SocketAddr) -> String {
    let said = Command::new("openssl")
        .args(["s_client", "-tls1_3", "-groups", "X25519", "-ign_eof", "-connect", &address.to_string()])
        .stdin(std::process::Stdio::null())
        .output()
        .unwrap();
    String::from_utf8_lossy(&said.stderr).into_owned()
}

#[test]
fn a03_a10_k07_k08_every_listener_journals_whom_it_refuses_and_a_stolen_authority_is_an_alarm() {
    let system = System::start(trader(), &[STAYING, &["--require-pq"]].concat());
    system.wait_for_fills(1);
    let listeners = listeners(&system.topology());
    assert_eq!(listeners.len(), 8 + 13, "seven classes and the newcomers at management, and every server");
    for listener in &listeners {
        assert_eq!(key_exchange(listener.address), "X25519MLKEM768", "{}", listener.name);
        assert!(knock(listener.address, Shown::Nothing).is_err());
        assert_eq!(old_hello(listener.address).get(5..7), Some([2, 70].as_slice()), "{}", listener.name);
    }
    let old = Command::new("openssl").args(["version"]).output().is_ok_and(|said| said.status.success());
    for listener in &listeners {
        has_refused(&system, listener, "no_certificate");
        has_refused(&system, listener, "tls_version");
        if old {
            let said = with_x25519_alone(listener.address);
            assert!(said.contains("handshake failure"), "{}: {said}", listener.name);
            has_refused(&system, listener, "key_exchange");
        }
    }
    assert!(system.json(&["status"])["counts"]["handshakes_refused"].as_u64() > Some(40));
    assert_eq!(rules(&system), BTreeSet::new(), "to be refused is no incident yet");

    // Somebody has the key of an authority. What they sign outside its constraint opens no door.
    let layout = system.layout();
    let store = management::bootstrap::open_store(&layout).unwrap();
    let hand = |class: PeerClass| store.signer(&format!("authority/{class}/1")).unwrap();
    let agent: SpiffeId = system.steal("agent-2").id().parse().unwrap();
    let outside = forged(hand(PeerClass::Desk).as_ref(), PeerClass::Desk, &agent);
    for listener in &listeners {
        assert!(knock(listener.address, Shown::Forged(&outside)).is_err(), "{}", listener.name);
        has_refused(&system, listener, "outside_constraint");
    }
    incident(&system, "rogue_authority", "authority/desk");

    // What they sign within it passes the handshake, and is seen at its first use: the log knows nothing of it.
    let unlogged = forged(hand(PeerClass::Agents).as_ref(), PeerClass::Agents, &agent);
    let unit = listeners.iter().find(|listener| listener.name == "market/agents").unwrap();
    let refused = knock(unit.address, Shown::Forged(&unlogged)).unwrap();
    assert!(refused.starts_with("HTTP/1.1 40"), "{refused}");
    let took = incident(&system, "unlogged_certificate", agent.as_str());
    assert!(took < Duration::from_secs(5), "{took:?}");
    let owner = SpiffeId::operator(agent.trust_domain(), "owner").unwrap();
    let unlogged = forged(hand(PeerClass::Operators).as_ref(), PeerClass::Operators, &owner);
    let door = listeners.iter().find(|listener| listener.name == "management/operators").unwrap();
    assert!(knock(door.address, Shown::Forged(&unlogged)).is_ok());
    let took = incident(&system, "unlogged_certificate", owner.as_str());
    assert!(took < Duration::from_secs(5), "{took:?}");
    if old {
        // It can be changed while everything runs, and every member goes by it.
        for (what, says) in [("off", "certificate required"), ("on", "handshake failure")] {
            assert_eq!(system.json(&["keys", "require-pq", what, "--yes"])["require_pq"], what == "on");
            for listener in &listeners {
                let begun = Instant::now();
                while !with_x25519_alone(listener.address).contains(says) {
                    assert!(begun.elapsed() < Duration::from_secs(60), "{what}: {}", listener.name);
                    std::thread::sleep(Duration::from_millis(50));
                }
            }
        }
    }
    let expected = ["rogue_authority", "unlogged_certificate"].map(str::to_owned);
    assert_eq!(rules(&system), BTreeSet::from(expected));
}

/// The scanner, where it is installed; `.ci/run` does that.
fn sslyze() -> Option<PathBuf> {
    let place = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap().join("sslyze/bin/sslyze");
    if !place.exists() {
        eprintln!("skipped: sslyze is not here; `.ci/run` installs it");
        return None;
    }
    Some(place)
}

/// Writes a client certificate with its key as PEM; the arguments that name them.
fn credentials(directory: &Path, system: &System, class: Option<PeerClass>) -> Vec<String> {
    let layout = system.layout();
    let (certificate, key) = match class {
        None => self_signed(&system.steal("agent-1").id().parse().unwrap()).pem(),
        Some(class) => {
            let home = match class {
                PeerClass::Operators => layout.operator("owner"),
                PeerClass::Agents => layout.identity("agent-1"),
                PeerClass::Desk => layout.identity("desk-1"),
                domain => layout.identity(&format!("unit-{domain}-1")),
            };
            let identity = Identity::load(&home).unwrap();
            let key = pem("PRIVATE KEY", &identity.own_keys().tls_pkcs8());
            (pem("CERTIFICATE", identity.certificate()), key)
        }
    };
    let (shown, secret) = (directory.join("certificate.pem"), directory.join("key.pem"));
    std::fs::write(&shown, certificate).unwrap();
    std::fs::write(&secret, key).unwrap();
    vec!["--cert".into(), shown.display().to_string(), "--key".into(), secret.display().to_string()]
}

#[test]
fn a02_a07_a_scanner_finds_tls_1_3_alone_at_every_listener_and_neither_tickets_nor_early_data() {
    let Some(sslyze) = sslyze() else { return };
    let system = System::start(trader(), STAYING);
    system.wait_for_fills(1);
    let topology = system.topology();
    let mut by_class: BTreeMap<Option<PeerClass>, Vec<SocketAddr>> = BTreeMap::new();
    for listener in listeners(&topology) {
        by_class.entry(listener.class).or_default().push(listener.address);
    }
    // Through the balancer it is the same.
    for (name, service) in &topology.services {
        let class = PeerClass::parse(name.split_once('/').unwrap().1);
        by_class.entry(class).or_default().push(service.listen);
    }
    let mut scanned = 0;
    for (class, addresses) in by_class {
        let directory = tempfile::tempdir().unwrap();
        let output = directory.path().join("found.json");
        let said = Command::new(&sslyze)
            .args(["--quiet", "--sslv2", "--sslv3", "--tlsv1", "--tlsv1_1", "--tlsv1_2", "--tlsv1_3"])
            .args(["--early_data", "--resum", "--mozilla_config", "disable", "--json_out"])
            .arg(&output)
            .args(credentials(directory.path(), &system, class))
            .args(addresses.iter().map(SocketAddr::to_string))
            .output()
            .unwrap();
        let text =
            std::fs::read(&output).unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&said.stderr)));
        let found: Value = serde_json::from_slice(&text).unwrap();
        for server in found["server_scan_results"].as_array().unwrap() {
            let results = &server["scan_result"];
            assert_eq!(server["scan_status"], "COMPLETED", "{class:?}: {server}");
            let accepted = |version: &str| {
                let suites = &results[format!("{version}_cipher_suites")]["result"]["accepted_cipher_suites"];
                suites.as_array().unwrap_or_else(|| panic!("{version}: {results}")).len()
            };
            for version in ["ssl_2_0", "ssl_3_0", "tls_1_0", "tls_1_1", "tls_1_2"] {
                assert_eq!(accepted(version), 0, "{class:?}: {version}");
            }
            assert!(accepted("tls_1_3") > 0, "{class:?}");
            assert_eq!(results["tls_1_3_early_data"]["result"]["supports_early_data"], false);
            let resumption = &results["session_resumption"]["result"];
            for way in ["session_id_resumption_result", "tls_ticket_resumption_result"] {
                assert_eq!(resumption[way], "SERVER_IS_TLS_1_3_ONLY", "{resumption}");
            }
            scanned += 1;
        }
    }
    assert_eq!(scanned, 8 + 13 + 7);
    for listener in listeners(&topology) {
        assert_eq!(key_exchange(listener.address), "X25519MLKEM768", "{}", listener.name);
    }
}
