//! A writer that is killed at any instant loses nothing that it had acknowledged, and keeps nothing by
//! halves.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test's helpers are test code too"
)]

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use market::{Day, Money, Quantity, Side};
use store::{Entry, Ledger};

const PATH: &str = "STORE_TEST_LEDGER";

fn day() -> Day {
    "2005-01-03".parse().unwrap()
}

/// The writer that the other test starts and kills. By itself it does nothing.
#[test]
fn writer_to_be_killed() {
    let Some(path) = std::env::var_os(PATH) else { return };
    let ledger = Ledger::open(&PathBuf::from(path)).unwrap();
    ledger.open_portfolio("p", Money::from_micros(1_000_000_000_000), day()).unwrap();
    let known = ledger.audit_balance().unwrap().entries;
    for number in known.. {
        // Two entries each time, so that half a write would show.
        let entries = ["a", "b"].map(|part| Entry::Fill {
            id: format!("{number}{part}"),
            order: "o".into(),
            day: day(),
            symbol: "AAPL".parse().unwrap(),
            side: Side::Buy,
            quantity: Quantity::new(1),
            price: "1".parse().unwrap(),
            fee: Money::ZERO,
        });
        ledger.post("p", &entries).unwrap();
        println!("\nacknowledged {number}");
    }
}

fn shares(path: &Path) -> i64 {
    let ledger = Ledger::open(path).unwrap();
    ledger.audit_balance().unwrap();
    ledger.positions("p", day()).unwrap().positions.values().map(|shares| shares.shares()).sum()
}

#[test]
fn what_was_acknowledged_survives_a_kill() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("ledger.db");
    let mut acknowledged = 0;
    for round in 1..=5 {
        let mut writer = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "writer_to_be_killed", "--nocapture"])
            .env(PATH, &path)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(writer.stdout.take().unwrap()).lines();
        for line in lines.by_ref() {
            if line.unwrap().starts_with("acknowledged ") {
                acknowledged += 2;
            }
            if acknowledged >= round * 20 {
                break;
            }
        }
        assert!(acknowledged >= round * 20, "the writer died by itself");
        writer.kill().unwrap();
        writer.wait().unwrap();
        let late = lines.filter(|line| line.as_ref().is_ok_and(|line| line.starts_with("acknowledged ")));
        acknowledged += 2 * late.count();
        let kept = usize::try_from(shares(&path)).unwrap();
        assert!(kept == acknowledged || kept == acknowledged + 2, "{acknowledged} acknowledged, {kept} kept");
        acknowledged = kept;
    }
}
