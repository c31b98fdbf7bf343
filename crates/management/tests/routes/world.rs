//! Management in a directory of its own: real keys, real policies, a plan of one step, and the routes of the process.

use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;
use std::sync::Arc;

use audit::log::Log;
use audit::record::Record;
use identity::keyring::HeldSet;
use identity::{KeySet, Keyring, PeerClass, SpiffeId};
use keys::Digest;
use management::bootstrap::{self, KeysAt};
use management::control::{Control, Home};
use management::database::Database;
use management::joiner::{Joiner, replay};
use management::log_files::LogFiles;
use management::plan::{Plan, PortfolioPlan, PortfolioStep, Step};
use management::registry::Member;
use management::response::{ApprovedModules, Watch};
use management::routes::{Shared, member_routes, operator_routes};
use management::run::{NAME, load_policy, log_origin};
use management::state::State;
use sentinel::{Playbook, Playbooks, Sentinel};
use serde_json::json;
use testkit::denials::Place;
use testkit::house::TRUST_DOMAIN;
use wire::journal::{Journal, read_entries, unix_ms};
use wire::layout::Layout;
use wire::server::Connections;
use wire::tls::{Identity, Peer};

/// How management knows whoever asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Standing {
    Enrolled,
    Unknown,
    OldEpoch,
    OtherKey,
    Revoked,
    /// Two people let it go on, and it has not enrolled anew.
    Reinstated,
}

pub(crate) fn agent(name: &str) -> SpiffeId {
    SpiffeId::agent(TRUST_DOMAIN, name).unwrap()
}

pub(crate) fn operator(name: &str) -> SpiffeId {
    SpiffeId::operator(TRUST_DOMAIN, name).unwrap()
}

/// One portfolio of one symbol, and as many steps as there are days.
fn plan(days: &[&str]) -> Plan {
    let name = || "core".to_owned();
    let portfolio = PortfolioPlan {
        name: name(),
        source: "sample".into(),
        symbols: vec!["AAPL".into()],
        cash: 1_000_000_000_000,
        start: "2005-03-16".into(),
        cost_bps: 6,
        construction: json!({}),
        order_max_bps: 1_000,
    };
    let part = || PortfolioStep { portfolio: name(), after: None, rebalance: true, report: true };
    let step = |day: &&str| Step { day: (*day).to_owned(), days: 1, portfolios: vec![part()] };
    Plan {
        seed: 7,
        days_per_second: None,
        portfolios: vec![portfolio],
        steps: days.iter().map(step).collect(),
    }
}

fn policies() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../policies")
}

fn copy(from: &Path, to: &Path) {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        match entry.file_type().unwrap() {
            kind if kind.is_file() => {
                std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
            }
            kind if kind.is_dir() => copy(&entry.path(), &to.join(entry.file_name())),
            _ => {}
        }
    }
}

fn watch(layout: &Layout) -> Watch {
    let read = |path: &Path| std::fs::read_to_string(path).unwrap();
    let thresholds = sentinel::Config::parse(&read(&policies().join("sentinel.toml"))).unwrap();
    let books = std::fs::read_dir(policies().join("playbooks")).unwrap();
    let books = books.map(|entry| Playbook::parse(&read(&entry.unwrap().path())).unwrap());
    let (_, bundle) = bootstrap::bundle(layout).unwrap();
    Watch::new(
        Sentinel::new(thresholds),
        Playbooks::new(books.collect::<Vec<_>>()).unwrap(),
        ApprovedModules::new(layout, &bundle),
    )
}

/// Management in a directory of its own, with the routes that its process serves.
pub(crate) struct World {
    pub(crate) control: Arc<Control>,
    pub(crate) members: Place,
    pub(crate) operators: Place,
    pub(crate) layout: Layout,
    journal: Arc<Journal>,
    joiner: Joiner,
    directory: tempfile::TempDir,
}

impl World {
    pub(crate) fn new() -> Self {
        Self::with_steps(&["2005-03-16"])
    }

    /// A new directory, and a plan with a step for each of these days.
    pub(crate) fn with_steps(days: &[&str]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let layout = Layout::new(&directory.path().join("state"));
        bootstrap::create(&layout, &KeysAt::default()).unwrap();
        copy(&policies(), &layout.config().join("policies"));
        Self::start(directory, plan(days))
    }

    /// Everything as it lies on the disk now.
    pub(crate) fn image(&self) -> tempfile::TempDir {
        let image = tempfile::tempdir().unwrap();
        copy(self.directory.path(), image.path());
        image
    }

    /// Management started again on what one image holds, but for the database, which is another's.
    pub(crate) fn restarted(image: &tempfile::TempDir, database: &tempfile::TempDir, days: &[&str]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        copy(image.path(), directory.path());
        let process = |root: &Path| Layout::new(&root.join("state")).process(NAME);
        for file in ["management.db", "management.db-wal", "management.db-shm"] {
            let _ = std::fs::remove_file(process(directory.path()).join(file));
            let from = process(database.path()).join(file);
            if from.exists() {
                std::fs::copy(from, process(directory.path()).join(file)).unwrap();
            }
        }
        Self::start(directory, plan(days))
    }

    /// Management with nothing in its database, that has read the log in which another's journal is.
    pub(crate) fn with_log_of(other: &Self) -> Self {
        let world = Self::new();
        let journal = other.layout.journal(NAME).join(format!("{NAME}.journal"));
        let lines: Vec<Vec<u8>> =
            std::fs::read_to_string(journal).unwrap().lines().map(|line| line.as_bytes().to_vec()).collect();
        let files = LogFiles::open(&world.directory.path().join("log")).unwrap();
        let key = bootstrap::log_key(&world.layout, &world.control.authorities().store).unwrap();
        let mut log = Log::open(files, "test", key).unwrap();
        log.append(&lines).unwrap();
        replay(&log, &world.control, &mut watch(&world.layout)).unwrap();
        world
    }

    fn start(directory: tempfile::TempDir, plan: Plan) -> Self {
        let layout = Layout::new(&directory.path().join("state"));
        let journal = Journal::open(&layout.journal(NAME), NAME).unwrap();
        let database = Database::open(&layout.process(NAME).join("management.db")).unwrap();
        let state = State::restore(&database, plan, layout.kill_latch().exists(), 0).unwrap();
        let authorities = bootstrap::authorities(&layout).unwrap();
        let id = SpiffeId::management(&authorities.trust_domain).unwrap();
        let own = bootstrap::issue_here(&authorities, &id, &layout.identity(NAME)).unwrap();
        let credentials = wire::tls::Credentials::new(Arc::new(own));
        let (origin, store) = (log_origin(&authorities.trust_domain), authorities.store.clone());
        let control = Arc::new(Control::new(
            state,
            load_policy(&layout).unwrap(),
            authorities,
            journal.clone(),
            database,
            Connections::new(),
            Home { layout: layout.clone(), credentials: Some(credentials) },
        ));
        let own = journal.clone();
        let files = LogFiles::open(&layout.log()).unwrap();
        let log = Log::open(files, &origin, bootstrap::log_key(&layout, &store).unwrap()).unwrap();
        let joiner = Joiner::start(log, control.clone(), watch(&layout)).unwrap();
        let shared = Arc::new(Shared { control: control.clone(), joiner: joiner.clone() });
        let place = |class, routes: wire::guard::Routes<Shared>| Place {
            class,
            table: routes.table().to_vec(),
            router: routes.into_router(),
        };
        let members = place(PeerClass::Agents, member_routes(shared.clone(), journal.clone()));
        let operators = place(PeerClass::Operators, operator_routes(shared, journal));
        Self { control, members, operators, layout, journal: own, joiner, directory }
    }

    /// Puts a member into the registry under an epoch and a key, as enrolling does.
    pub(crate) fn enrol(&self, id: &SpiffeId, epoch: u32, key: [u8; 32]) {
        let now = unix_ms() / 1_000;
        let made = |usage: u8| Digest::of(&[&key[..], &[usage]].concat()).to_string();
        let keys = KeySet {
            tls: keys::to_hex(&key),
            signing: made(1),
            control: made(2),
            data: made(3),
            alerts: made(4),
        };
        self.put(id, epoch, keys, now);
    }

    /// Puts a member into the registry with the keys that it really has.
    pub(crate) fn register(&self, identity: &Identity) {
        let keys = identity.own_keys().public();
        self.put(identity.id(), identity.epoch(), keys, unix_ms() / 1_000);
    }

    fn put(&self, id: &SpiffeId, epoch: u32, keys: KeySet, now: i64) {
        let tls = keys.tls.clone();
        let set =
            HeldSet { keys, epoch, sequence: 0, since: now, expires: now + 3_600, authority: String::new() };
        let mut ring = Keyring::default();
        ring.offer(set, "opened").unwrap();
        ring.activate(&tls, "opened", now).unwrap();
        let member = Member { keys: ring, ..Member::new(id.clone()) };
        self.control.state().registry.put(member);
    }

    pub(crate) fn stand(&self, peer: &Peer, standing: Standing) {
        let (id, owner) = (&peer.id, operator("owner").to_string());
        match standing {
            Standing::Unknown => return,
            Standing::OldEpoch => return self.enrol(id, peer.epoch + 1, peer.key),
            Standing::OtherKey => return self.enrol(id, peer.epoch, [7; 32]),
            Standing::Enrolled | Standing::Revoked | Standing::Reinstated => {}
        }
        self.enrol(id, peer.epoch, peer.key);
        if standing != Standing::Enrolled {
            self.control.revoke_agent(id, &owner, "test").unwrap();
        }
        if standing == Standing::Reinstated {
            let proposal = self.control.propose("reinstate_agent", id.as_str(), &owner).unwrap();
            self.control.approve(&proposal.approval(), operator("second").as_str()).unwrap();
        }
    }

    /// Joins what management has journalled into the log, where the sentinel sees it.
    pub(crate) async fn join(&self) {
        let lines: Vec<Vec<u8>> = self.journal.unjoined().into_iter().map(String::into_bytes).collect();
        if !lines.is_empty() {
            let joined = self.joiner.join(NAME.to_owned(), lines).await.unwrap();
            self.journal.joined(joined);
        }
    }

    /// Puts a grant into the log's summary, as if it had been issued long ago.
    pub(crate) fn issued(&self, grant: &str) {
        let record = Record::GrantIssued {
            grant: grant.to_owned(),
            task: "2005-03-15/collect/core".into(),
            holder: agent("agent-1").to_string(),
            audience: "market".into(),
            actions: vec!["write_bars".into()],
            portfolio: Some("core".into()),
            market_day: "2005-03-15".into(),
            expires: 0,
            policy: String::new(),
            policies: Vec::new(),
            digest: String::new(),
        };
        self.control.projection().apply(0, NAME, &record);
    }

    pub(crate) fn records(&self) -> Vec<Record> {
        let entries = read_entries(&self.layout.journal(NAME), NAME).unwrap();
        entries.into_iter().map(|entry| entry.record).collect()
    }

    /// Whatever a handler changes: the database, the latch, and the guards that are known.
    pub(crate) fn effects(&self) -> Digest {
        let file = |name| std::fs::read(self.layout.process(NAME).join(name)).unwrap_or_default();
        let guards = self.control.state().revocations.settled(0, 0).acknowledged.join(",");
        let latch = [u8::from(self.layout.kill_latch().exists())];
        Digest::of_parts(&[&file("management.db"), &file("management.db-wal"), guards.as_bytes(), &latch])
    }
}
