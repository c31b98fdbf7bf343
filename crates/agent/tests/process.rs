//! An agent as a process, over real connections: what it does when it can no longer say what it does.

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::collections::BTreeMap;
use std::os::fd::AsRawFd as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use agent::run::{RunError, run};
use audit::journal::parse_line;
use audit::record::Record;
use axum::Router;
use axum::body::Bytes;
use axum::routing::post;
use identity::{PeerClass, SpiffeId};
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use serde_json::json;
use testkit::house::{House, TRUST_DOMAIN};
use tokio::net::TcpListener;
use tokio::sync::watch;
use wire::api::{QueueReply, StatusReply, StatusReport, Task, TaskEnd};
use wire::journal::JournalError;
use wire::layout::{Layout, Topology};
use wire::server::{Connections, ServerOptions, serve};
use wire::tls::server_config;

const PATIENCE: Duration = Duration::from_secs(20);

/// A management that hands out one task again and again, once it is told to.
#[derive(Default)]
struct Management {
    hands_out: AtomicBool,
    records: Mutex<Vec<Record>>,
    ended: Mutex<Vec<TaskEnd>>,
}

impl Management {
    fn router(self: &Arc<Self>) -> Router {
        let (queue, status) = (self.clone(), self.clone());
        let ask = move || async move {
            let task = Task {
                id: "2005-03-16/collect/core".into(),
                kind: "collect".into(),
                portfolio: Some("core".into()),
                market_day: "2005-03-16".into(),
                attempt: 1,
                params: json!({}),
            };
            tokio::time::sleep(Duration::from_millis(10)).await;
            let task = queue.hands_out.swap(false, Ordering::SeqCst).then_some(task);
            serde_json::to_vec(&QueueReply { task, grants: vec![], lease_ms: 60_000 }).unwrap()
        };
        let report = move |body: Bytes| async move {
            let report: StatusReport = serde_json::from_slice(&body).unwrap();
            let mut records = status.records.lock().unwrap();
            for entry in report.journal.iter().map(|line| parse_line(line.as_bytes()).unwrap()) {
                if entry.seq == records.len() as u64 {
                    records.push(entry.record);
                }
            }
            status.ended.lock().unwrap().extend(report.ended);
            serde_json::to_vec(&StatusReply { joined: records.len() as u64, ..StatusReply::default() })
                .unwrap()
        };
        Router::new().route("/v1/queue", post(ask)).route("/v1/status", post(report))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_whose_journal_fails_ends_so_that_it_is_started_again() {
    let house = House::new();
    let directory = tempfile::tempdir().unwrap();
    let layout = Layout::new(directory.path());
    let management = Arc::new(Management::default());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let topology = Topology {
        enrolment: listener.local_addr().unwrap(),
        management: BTreeMap::from([("agents".to_owned(), listener.local_addr().unwrap())]),
        services: BTreeMap::new(),
    };
    let identity = house.identity(&SpiffeId::management(TRUST_DOMAIN).unwrap());
    let tls = server_config(&identity, PeerClass::Agents).unwrap();
    let (management_stop, stopped) = watch::channel(false);
    let (options, router) = (ServerOptions::default(), management.router());
    tokio::spawn(serve(listener, tls, router, options, Connections::new(), stopped));

    // A journal in memory, which can be kept from growing while it is open: a disk that fills up.
    let disk = memfd_create(c"journal", MFdFlags::MFD_ALLOW_SEALING | MFdFlags::MFD_CLOEXEC).unwrap();
    let journal = layout.journal("agent-1");
    for made in [&layout.config(), &layout.sources(), &layout.modules(), &journal] {
        std::fs::create_dir_all(made).unwrap();
    }
    let opened = format!("/proc/self/fd/{}", disk.as_raw_fd());
    std::os::unix::fs::symlink(opened, journal.join("agent-1.journal")).unwrap();
    std::fs::write(layout.topology(), serde_json::to_vec(&topology).unwrap()).unwrap();
    let id = SpiffeId::agent(TRUST_DOMAIN, "agent-1").unwrap();
    house.identity(&id).save(&layout.identity("agent-1")).unwrap();
    let (_stop, stopped) = watch::channel(false);
    let agent = tokio::spawn({
        let layout = layout.clone();
        async move { run(layout, "agent-1", "00".into(), stopped).await }
    });

    // There is no module, which is a failed attempt and leaves a record.
    management.hands_out.store(true, Ordering::SeqCst);
    let first = tokio::time::timeout(PATIENCE, async {
        while management.ended.lock().unwrap().is_empty() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    first.await.unwrap();
    assert!(!management.ended.lock().unwrap().iter().any(|end| end.done));
    fcntl(&disk, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_GROW)).unwrap();
    management.hands_out.store(true, Ordering::SeqCst);
    let ended = tokio::time::timeout(PATIENCE, agent).await.unwrap().unwrap();
    assert!(matches!(ended, Err(RunError::Journal(JournalError::Closed))), "{ended:?}");
    let records = management.records.lock().unwrap();
    assert!(matches!(records.as_slice(), [Record::Started { .. }, Record::ModuleRefused { .. }]));
    management_stop.send(true).unwrap();
}
