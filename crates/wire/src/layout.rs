//! Where things are: the state directory, and who listens where.
//!
//! One directory holds everything, readable by its owner only. Every process has a directory of its own in it and touches
//! no other's.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// The state directory.
#[derive(Debug, Clone)]
pub struct Layout {
    root: PathBuf,
}

impl Layout {
    /// The layout below a directory.
    #[must_use]
    pub fn new(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    /// The directory itself.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The directory of one process: `management`, `desk-1`, `unit-market-1`, `agent-2`, `balancer`.
    #[must_use]
    pub fn process(&self, name: &str) -> PathBuf {
        self.root.join("processes").join(name)
    }

    /// Keys and certificate of one process.
    #[must_use]
    pub fn identity(&self, name: &str) -> PathBuf {
        self.process(name).join("identity")
    }

    /// The journal directory of one process.
    #[must_use]
    pub fn journal(&self, name: &str) -> PathBuf {
        self.process(name).join("journal")
    }

    /// The database of one domain: opened by that domain's units only.
    #[must_use]
    pub fn database(&self, domain: &str) -> PathBuf {
        self.root.join("databases").join(domain).join(format!("{domain}.db"))
    }

    /// The Merkle log: written by management only, read by anyone who verifies.
    #[must_use]
    pub fn log(&self) -> PathBuf {
        self.process("management").join("log")
    }

    /// The socket at which management listens to newcomers of this machine.
    #[must_use]
    pub fn enrolment_socket(&self) -> PathBuf {
        self.process("management").join("enrolment.sock")
    }

    /// Class authorities and the grant and log keys: read by management only.
    #[must_use]
    pub fn authorities(&self) -> PathBuf {
        self.process("management").join("authorities")
    }

    /// Certificates that were issued on this machine by an authority's own hand, until management has recorded them.
    #[must_use]
    pub fn issued(&self) -> PathBuf {
        self.process("management").join("issued")
    }

    /// The root key: needed to make authorities, never while the system runs. Take it off the machine.
    #[must_use]
    pub fn offline_root(&self) -> PathBuf {
        self.root.join("offline-root")
    }

    /// The signed trust bundle, which is public.
    #[must_use]
    pub fn bundle(&self) -> PathBuf {
        self.root.join("bundle.json")
    }

    /// Keys and certificate of one operator.
    #[must_use]
    pub fn operator(&self, name: &str) -> PathBuf {
        self.root.join("operators").join(name)
    }

    /// Modules and their signed manifest.
    #[must_use]
    pub fn modules(&self) -> PathBuf {
        self.root.join("modules")
    }

    /// Configuration that operators edit.
    #[must_use]
    pub fn config(&self) -> PathBuf {
        self.root.join("config")
    }

    /// Sources that collectors may fetch.
    #[must_use]
    pub fn sources(&self) -> PathBuf {
        self.root.join("sources")
    }

    /// Who listens where.
    #[must_use]
    pub fn topology(&self) -> PathBuf {
        self.config().join("topology.json")
    }

    /// What is traded, and when the system steps.
    #[must_use]
    pub fn plan(&self) -> PathBuf {
        self.config().join("plan.json")
    }

    /// The kill latch of this host: while the file is there, no order leaves.
    #[must_use]
    pub fn kill_latch(&self) -> PathBuf {
        self.root.join("KILLED")
    }
}

/// Who listens where.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Topology {
    /// Management's enrolment listener.
    pub enrolment: SocketAddr,
    /// Management's listeners, one for each peer class: `agents`, `operators`, `desk`, `market`, …
    pub management: BTreeMap<String, SocketAddr>,
    /// Services behind the balancer, by `SERVICE/CLASS`: `market/agents`, `market/desk`, `desk/agents`, …
    pub services: BTreeMap<String, Service>,
}

/// One service behind the balancer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Service {
    /// Where the balancer listens.
    pub listen: SocketAddr,
    /// Where the servers listen, in the order of their numbers.
    pub backends: Vec<SocketAddr>,
}

/// The connection matrix: which class reaches which service. Whatever is not here has no listener at all.
pub const SERVICES: &[(&str, &str, usize)] = &[
    ("market", "agents", 2),
    ("market", "desk", 2),
    ("news", "agents", 2),
    ("research", "agents", 2),
    ("ledger", "agents", 2),
    ("ledger", "desk", 2),
    ("desk", "agents", 1),
];

/// Peer classes that management has a listener for.
pub const MANAGEMENT_CLASSES: &[&str] =
    &["agents", "operators", "desk", "market", "news", "research", "ledger"];

/// Why a configuration file cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {problem}")]
pub struct ConfigError {
    /// The file.
    pub path: String,
    /// What is wrong with it.
    pub problem: String,
}

impl ConfigError {
    /// What is wrong with a file.
    pub fn new(path: &Path, problem: impl ToString) -> Self {
        Self { path: path.display().to_string(), problem: problem.to_string() }
    }
}

/// Reads a JSON file of the configuration.
///
/// # Errors
/// When it cannot be read or says something else than it should.
pub fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T, ConfigError> {
    let text = std::fs::read_to_string(path).map_err(|error| ConfigError::new(path, error))?;
    serde_json::from_str(&text).map_err(|error| ConfigError::new(path, error))
}
