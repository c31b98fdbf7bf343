//! The numbers for other monitoring systems, read by one of them.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;
use testkit::system::System;

use crate::trader;

/// Asks the console; the head of the answer and its body.
fn get(url: &str, path: &str, headers: &str) -> (String, String) {
    let host = url.strip_prefix("http://").unwrap().split('/').next().unwrap();
    let mut stream = TcpStream::connect(host).unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n{headers}\r\n");
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.to_owned(), body.to_owned())
}

/// A Python with the library of Prometheus, made once; none where there is no Python or no way to the library.
fn prometheus() -> Option<PathBuf> {
    let home = Path::new(env!("CARGO_TARGET_TMPDIR")).join("prometheus-client");
    let python = home.join("bin/python");
    let does = |command: &mut Command| {
        command.stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
    };
    let there = || does(Command::new(&python).args(["-c", "import prometheus_client"]));
    let made = there()
        || does(Command::new("python3").args(["-m", "venv"]).arg(&home))
            && does(Command::new(&python).args(["-m", "pip", "install", "--quiet", "prometheus_client"]))
            && there();
    if !made {
        eprintln!("skipped: the parser of prometheus_client is not here and cannot be installed with pip");
    }
    made.then_some(python)
}

/// Reads the text as Prometheus does, strictly; prints every sample and the type of every family as one JSON object.
const PARSE: &str = "
import json, sys
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse
samples, families = {}, {}
for family in parse(sys.stdin.read()):
    families[family.name] = [family.type, family.unit, family.documentation]
    for sample in family.samples:
        samples[sample.name + ''.join('/' + value for value in sample.labels.values())] = sample.value
print(json.dumps({'samples': samples, 'families': families}))
";

#[test]
fn what_is_counted_is_read_by_prometheus_and_only_with_the_token() {
    let mut system = System::start(trader(), &["--until", "1994-03-31"]);
    let url = system.console();
    let token = url.split_once("token=").unwrap().1.to_owned();
    system.wait_until("the end of the run", |status| status["state"] == "ended");

    for (path, headers) in [("/metrics", ""), ("/metrics?token=00", ""), ("/metrics", "x-token: 00\r\n")] {
        let (head, body) = get(&url, path, headers);
        assert!(head.starts_with("HTTP/1.1 403 ") && !body.contains("trader_"), "{head}");
    }
    let (head, text) = get(&url, "/metrics", &format!("x-token: {token}\r\n"));
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    assert!(head.contains("content-type: application/openmetrics-text; version=1.0.0"), "{head}");
    assert!(!text.contains(&token));
    let (head, _) = get(&url, &format!("/metrics?token={token}"), "");
    assert!(head.starts_with("HTTP/1.1 200 "), "as a scraper is told it: {head}");

    let status = system.json(&["status"]);
    let keys = system.json(&["keys", "status"]);
    let active = keys.as_array().unwrap().iter().filter(|key| key["state"] == "active");
    let oldest = active.map(|key| key["age_s"].as_f64().unwrap()).fold(0.0, f64::max);
    let Some(python) = prometheus() else { return };
    let mut parser = Command::new(python)
        .args(["-c", PARSE])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    parser.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let output = parser.wait_with_output().unwrap();
    assert!(output.status.success(), "not OpenMetrics:\n{text}");
    let read: Value = serde_json::from_slice(&output.stdout).unwrap();
    let sample = |name: &str| read["samples"][name].as_f64().unwrap_or_else(|| panic!("{name}: {text}"));
    let age = sample("trader_oldest_active_key_age_seconds");
    assert!(0.0 < age && age <= oldest, "{age} {oldest}");
    assert_eq!(read["families"]["trader_oldest_active_key_age_seconds"][1], "seconds");
    for (name, count) in [("orders", "orders"), ("fills", "fills"), ("grants_issued", "grants_issued")] {
        let counted = status["counts"][count].as_f64().unwrap();
        assert!(counted > 0.0 && (sample(&format!("trader_{name}_total")) - counted).abs() < 0.5, "{name}");
    }
    assert!((sample("trader_members/active") - 12.0).abs() < 0.5);
    assert!((sample("trader_equity_dollars") - status["equity"].as_f64().unwrap() / 1e6).abs() < 0.01);
    assert!(read["families"].as_object().unwrap().values().all(|family| family[2] != ""), "{text}");
}
