//! Nothing secret in the clear: every private key and passphrase of a running system is looked for in all its files, in the
//! arguments and environments of its processes, and in their memory.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use keys::envelope::{Wrap as _, WrappingKey};
use keys::sealed_file::SealedFile;
use management::database::{Database, Table};
use management::secrets::StoredSecret;
use management::vault::Vault;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use testkit::canary::{Canary, Hit, Scanner, family, identity_canaries};
use testkit::system::System;

use crate::keys::private_file;
use crate::trader;

/// Stays up, and trades slowly enough that everybody has work.
const STAYING: &[&str] = &["--quiet", "--until", "1994-03-31", "--speed", "30"];
/// Owner of what lies in a file and is nobody's while the system runs.
const NOBODY: &str = "nobody";
/// The name that `trader up` goes by here.
const SUPERVISOR: &str = "up";

/// The members of a system of one machine.
fn members() -> Vec<String> {
    let units = ["market", "news", "research", "ledger"];
    let units = units.iter().flat_map(|domain| [1, 2].map(|number| format!("unit-{domain}-{number}")));
    let agents = (1..=3).map(|number| format!("agent-{number}"));
    units.chain(["desk-1".to_owned()]).chain(agents).collect()
}

/// What is looked for, with the one file in which each may stand.
#[derive(Default)]
struct Wanted {
    canaries: Vec<Canary>,
    homes: Vec<Option<PathBuf>>,
}

impl Wanted {
    fn add(&mut self, canaries: Vec<Canary>, home: Option<&Path>) {
        self.homes.resize(self.homes.len() + canaries.len(), home.map(Path::to_owned));
        self.canaries.extend(canaries);
    }

    fn identity(&mut self, owner: &str, directory: &Path) {
        self.add(identity_canaries(owner, directory), Some(&directory.join("identity.json")));
    }

    /// The keys of members, which are where they belong until they are replaced.
    fn members(&mut self, system: &System) {
        for member in members() {
            self.identity(&member, &system.layout().identity(&member));
        }
    }

    /// The keys of a store in files, which stand nowhere in the clear, and the passphrase that opens it.
    fn store(&mut self, owner: &str, directory: &Path, passphrase_file: &Path) {
        let passphrase = std::fs::read_to_string(passphrase_file).unwrap();
        let what = format!("the passphrase of {}", directory.display());
        self.add(vec![Canary::text(NOBODY, &what, &passphrase)], Some(passphrase_file));
        let document: serde_json::Value =
            serde_json::from_slice(&std::fs::read(directory.join("keystore.json")).unwrap()).unwrap();
        let id = document["id"].as_str().unwrap();
        let sealed = std::fs::read_to_string(directory.join(format!("root-{id}.sealed"))).unwrap();
        let root = SealedFile::parse(&sealed).unwrap().open(&passphrase).unwrap();
        self.add(vec![Canary::bytes(owner, "the key above the store", &*root)], None);
        let root = WrappingKey::from_bytes(&root);
        for file in std::fs::read_dir(directory.join("keys")).unwrap().flatten() {
            let name = file.file_name().into_string().unwrap();
            let label = name.trim_end_matches(".key").replace('_', "/");
            let wrapped = std::fs::read(file.path()).unwrap();
            let wrapped = wrapped.strip_prefix(b"trader-key-1\n").unwrap();
            let binding = format!("trader keystore signing key\n{id}\n{label}");
            let seed = root.unwrap(binding.as_bytes(), wrapped).unwrap();
            let seed: &[u8; 32] = seed.as_slice().try_into().unwrap();
            self.add(vec![Canary::ed25519(owner, &label, seed)], None);
        }
    }

    /// What management keeps for the desk, which the desk alone has in the clear.
    fn account_key(&mut self, system: &System) {
        let layout = system.layout();
        let passphrase = keystore::Secret::from_file(&layout.root().join("passphrase")).unwrap();
        let store = keystore::KeyStore::open(&layout.authorities(), &passphrase).unwrap();
        let database = Database::open(&layout.process("management").join("management.db")).unwrap();
        let secret: StoredSecret = database.get(Table::Secrets, "paper-broker").unwrap().unwrap();
        let now = wire::journal::unix_ms() / 1_000;
        let mut unlocked = Vault::new(Arc::new(store)).unlock("desk", now).unwrap();
        let value = secret.open(&mut unlocked).unwrap();
        let text = std::str::from_utf8(&value).unwrap();
        self.add(vec![Canary::text("desk-1", "the key of the account", text)], None);
    }

    /// Everything but the members' keys.
    fn installation(&mut self, system: &System) {
        let layout = system.layout();
        self.identity("management", &layout.identity("management"));
        self.identity(SUPERVISOR, &layout.operator("owner"));
        self.identity(NOBODY, &layout.operator("second"));
        self.store("management", &layout.authorities(), &layout.root().join("passphrase"));
        self.store(NOBODY, &layout.offline_root(), &layout.offline_root().join("passphrase"));
        for name in ["first", "second"] {
            let file = layout.root().join("release-keys").join(name).join("release.key");
            let seed = keys::from_hex(std::fs::read_to_string(&file).unwrap().trim()).unwrap();
            self.add(vec![Canary::ed25519(NOBODY, &format!("release key {name}"), &seed)], Some(&file));
        }
    }
}

/// What a system must not show, and what it must.
struct Search {
    scanner: Scanner,
    homes: Vec<Option<PathBuf>>,
}

impl Search {
    fn new(wanted: Wanted) -> Self {
        Self { scanner: Scanner::new(wanted.canaries), homes: wanted.homes }
    }

    fn say(&self, where_found: &str, hit: &Hit) -> String {
        format!("{where_found}: {}, {}, {}", self.scanner.canaries()[hit.canary], hit.spelled, hit.place)
    }

    /// Secrets in files that are not theirs; and every secret that has a file is in it.
    fn in_files(&self, directory: &Path) -> Vec<String> {
        let mut wrong = Vec::new();
        let mut at_home = BTreeSet::new();
        for (path, hits) in self.scanner.below(directory) {
            for hit in hits {
                if self.homes[hit.canary].as_deref() == Some(&path) {
                    at_home.insert(hit.canary);
                } else {
                    wrong.push(self.say(&path.display().to_string(), &hit));
                }
            }
        }
        let homes = self.homes.iter().enumerate().filter(|(_, home)| home.is_some());
        for (number, _) in homes.filter(|(number, _)| !at_home.contains(number)) {
            wrong.push(format!("{} is not found where it lives", self.scanner.canaries()[number]));
        }
        wrong
    }

    /// Secrets in what a process was started with.
    fn in_starts(&self, processes: &BTreeMap<Pid, String>) -> Vec<String> {
        let mut wrong = Vec::new();
        for (pid, name) in processes {
            for file in ["cmdline", "environ"] {
                // A module's process may have ended.
                let Ok(bytes) = std::fs::read(format!("/proc/{pid}/{file}")) else { continue };
                let hits = self.scanner.in_bytes(&bytes);
                wrong.extend(hits.iter().map(|hit| self.say(&format!("{file} of {name}"), hit)));
            }
        }
        wrong
    }

    /// Secrets in the memory of a process that does not own them; and how many of its own each process has there.
    fn in_memory(&self, processes: &BTreeMap<Pid, String>) -> (Vec<String>, BTreeMap<String, usize>) {
        let mut wrong = Vec::new();
        let mut own: BTreeMap<String, usize> = BTreeMap::new();
        for (pid, name) in processes {
            let Ok(hits) = self.scanner.in_memory(*pid) else { continue };
            let mine = |hit: &Hit| self.scanner.canaries()[hit.canary].owner == *name;
            let found: BTreeSet<usize> = hits.iter().filter(|hit| mine(hit)).map(|hit| hit.canary).collect();
            own.insert(name.clone(), found.len());
            wrong.extend(hits.iter().filter(|hit| !mine(hit)).map(|hit| self.say(name, hit)));
        }
        (wrong, own)
    }
}

/// Every process of a system by its name; modules by the name of their agent.
fn processes(system: &System) -> BTreeMap<Pid, String> {
    let names = members().into_iter().chain(["management".to_owned(), "balancer".to_owned()]);
    let named: BTreeMap<Pid, String> = names.map(|name| (system.pid(&name), name)).collect();
    let mut all = BTreeMap::from([(system.up_pid(), SUPERVISOR.to_owned())]);
    for pid in family(system.up_pid()) {
        all.entry(pid).or_insert_with(|| named.get(&pid).cloned().unwrap_or_else(|| format!("child {pid}")));
    }
    all
}

/// Waits until nobody is replacing keys: a set that became active in the second of the question is replaced again.
fn settled(system: &System) {
    let deadline = Instant::now() + Duration::from_secs(60);
    let young = || {
        let keys = system.json(&["keys", "status"]);
        let active = keys.as_array().unwrap().iter().filter(|key| key["state"] == "active");
        active.filter(|key| key["age_s"].as_i64().unwrap() < 3).count()
    };
    while young() > 0 {
        assert!(Instant::now() < deadline, "keys are replaced again and again");
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn k01_t06_nothing_secret_is_in_the_clear_in_any_file_or_in_the_memory_of_whom_it_does_not_belong_to() {
    let mut system = System::start(trader(), STAYING);
    system.wait_for_fills(1);
    let mut before = Wanted::default();
    before.members(&system);
    // What was replaced has no place any more, neither on the disk nor in anybody's memory.
    let replaced = before.canaries.into_iter().map(|mut canary| {
        canary.what = format!("the replaced {} of {}", canary.what, canary.owner);
        NOBODY.clone_into(&mut canary.owner);
        canary
    });
    let replaced: Vec<Canary> = replaced.collect();
    assert_eq!(system.json(&["keys", "rotate"])["rotated"], members().len());

    settled(&system);

    let vendor = "canary-of-a-vendor-7d02c4";
    let file = system.dir().parent().unwrap().join("vendor-key");
    private_file(&file, vendor);
    let stored = system.command(&[
        "secret",
        "put",
        "vendor",
        "--vendor-of",
        "large20",
        "--file",
        file.to_str().unwrap(),
    ]);
    assert!(stored.status.success(), "{stored:?}");

    let mut wanted = Wanted::default();
    wanted.members(&system);
    wanted.installation(&system);
    wanted.account_key(&system);
    wanted.add(vec![Canary::text(NOBODY, "a vendor's key", vendor)], None);
    wanted.add(replaced, None);
    let search = Search::new(wanted);
    let processes = processes(&system);
    assert!(processes.len() >= members().len() + 3, "{processes:?}");
    assert_eq!(search.in_starts(&processes), Vec::<String>::new());
    assert_eq!(search.in_files(&system.dir()), Vec::<String>::new());
    // What was under way while keys were replaced may still end.
    let deadline = Instant::now() + Duration::from_secs(20);
    let own = loop {
        let (wrong, own) = search.in_memory(&processes);
        if wrong.is_empty() {
            break own;
        }
        assert!(Instant::now() < deadline, "{}: {wrong:#?}", wrong.len());
    };
    // The scan finds what is there: of each member its five keys, of management those that it signs with as well.
    for member in members() {
        let more = usize::from(member == "desk-1");
        assert_eq!(own[&member], 5 + more, "{member}: {own:?}");
    }
    assert!(own["management"] > 12, "{own:?}");
    assert!(own[SUPERVISOR] >= 1, "{own:?}");
    assert_eq!(own["balancer"], 0);

    // Stopped and started again, nothing has come to lie elsewhere.
    let _ = system.stop();
    assert_eq!(search.in_files(&system.dir()), Vec::<String>::new());
}

/// A program that waits for its standard input, as an unprivileged user where this test may choose.
fn waiting(program: &mut Command) -> Child {
    if nix::unistd::geteuid().is_root() {
        program.uid(65_534).gid(65_534);
    }
    program
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// Whether other processes of the same user may look into a process.
fn is_open_to_its_user(child: &Child) -> bool {
    std::fs::metadata(format!("/proc/{}/mem", child.id())).unwrap().uid() != 0
}

#[test]
fn no_core_image_is_made_of_a_process_and_nobody_else_looks_into_it() {
    let home = tempfile::tempdir().unwrap();
    let copy = home.path().join("trader");
    std::fs::copy(trader(), &copy).unwrap();
    let open = |path: &Path| {
        use std::os::unix::fs::PermissionsExt as _;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
    };
    open(home.path());
    open(&copy);
    let mut process = waiting(Command::new(&copy).args(["process", "agent", "agent-1", "--dir", "/nowhere"]));
    let deadline = Instant::now() + Duration::from_secs(20);
    while is_open_to_its_user(&process) {
        assert!(Instant::now() < deadline && process.try_wait().unwrap().is_none(), "it stays open");
        std::thread::yield_now();
    }
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", process.id())).unwrap();
    let core: Vec<&str> =
        limits.lines().find(|line| line.starts_with("Max core")).unwrap().split_whitespace().collect();
    assert_eq!(core[4..6], ["0", "0"], "{limits}");
    let end = |mut child: Child| {
        kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), Signal::SIGABRT).unwrap();
        child.wait().unwrap()
    };
    assert!(!end(process).core_dumped());

    // A program that does not defend itself stands open.
    let other = waiting(&mut Command::new("cat"));
    let deadline = Instant::now() + Duration::from_secs(20);
    while !is_open_to_its_user(&other) {
        assert!(Instant::now() < deadline, "cat is not open");
    }
    let _ = end(other);
}
