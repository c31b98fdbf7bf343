//! What management knows: the state behind the one lock, the keys it signs with, and the progress that is stored.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use access::revocation::{RevocationError, RevocationLog};
use access::secret::SecretName;
use access::vocabulary::{Revocation, RevocationKind};
use identity::{Authority, EntryBook, PeerClass, SpiffeId};
use keys::Signer;
use serde::{Deserialize, Serialize};

use crate::cases::{Incident, Proposal};
use crate::control::KILLED;
use crate::database::{Database, DatabaseError, Table};
use crate::plan::Plan;
use crate::registry::Registry;
use crate::schedule::Schedule;
use crate::secrets::StoredSecret;

/// The document of who was asked for new keys.
pub(crate) const RENEW_BEFORE: &str = "renew_before";

/// State behind the lock.
pub struct State {
    /// Tasks.
    pub schedule: Schedule,
    /// Members.
    pub registry: Registry,
    /// Who may enrol.
    pub entries: EntryBook,
    /// Revocations and the guards' leases.
    pub revocations: RevocationLog,
    /// Incidents.
    pub incidents: BTreeMap<String, Incident>,
    /// Proposals.
    pub proposals: BTreeMap<String, Proposal>,
    /// Equity of each portfolio at the last session.
    pub equity: BTreeMap<String, i64>,
    /// When the next task may be handed out, for a run that is slowed down.
    pub not_before: Option<Instant>,
    /// Whether the run's end was recorded.
    pub ended: bool,
    /// Members whose keys are to be replaced when they became active before this moment, in seconds since the Unix epoch.
    pub renew_before: BTreeMap<SpiffeId, i64>,
    /// Version of the trust bundle that each member goes by, as it said last.
    pub bundles_held: BTreeMap<SpiffeId, u64>,
    /// Stored secrets, sealed.
    pub secrets: BTreeMap<SecretName, StoredSecret>,
    /// Bundles that are to be published, while an authority is being replaced.
    pub waiting_bundles: Option<WaitingBundles>,
}

/// Bundles that the root has signed, in the order in which they are to be published.
#[derive(Debug)]
pub struct WaitingBundles {
    /// The bundles.
    pub bundles: VecDeque<identity::SignedBundle>,
    /// Who brought them.
    pub by: String,
    /// When the one before was published.
    pub since: Instant,
}

/// Why what was stored cannot be gone on from.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The database.
    #[error(transparent)]
    Database(#[from] DatabaseError),
    /// The revocation log in it has a gap.
    #[error(transparent)]
    Revocation(#[from] RevocationError),
}

impl State {
    /// What was stored, as management goes on from it; `killed` when this host's kill latch is set, `now_ms` on the clock
    /// that leases are measured with.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn restore(database: &Database, plan: Plan, killed: bool, now_ms: u64) -> Result<Self, RestoreError> {
        let progress: Option<Progress> = database.get(Table::Tasks, "progress")?;
        let progress = progress.unwrap_or(Progress {
            step: 0,
            tasks: Vec::new(),
            equity: BTreeMap::new(),
            ended: false,
        });
        let mut schedule = Schedule::new(plan, progress.step, progress.tasks);
        let revocations: Vec<Revocation> = database.all(Table::Revocations)?;
        // The guards go by the revocation log; the latch file adds to it, and removing the file takes nothing away.
        if killed || is_killed(&revocations) {
            schedule.halt(KILLED);
        }
        let waiting: Vec<identity::SignedBundle> =
            database.get(Table::Tasks, "bundles_waiting")?.unwrap_or_default();
        let incidents: Vec<Incident> = database.all(Table::Incidents)?;
        let proposals: Vec<Proposal> = database.all(Table::Proposals)?;
        let secrets: Vec<StoredSecret> = database.all(Table::Secrets)?;
        Ok(Self {
            schedule,
            registry: Registry::new(database.all(Table::Members)?),
            entries: database.get(Table::Tickets, "book")?.unwrap_or_default(),
            revocations: RevocationLog::restore(revocations, now_ms)?,
            incidents: incidents.into_iter().map(|incident| (incident.id.clone(), incident)).collect(),
            proposals: proposals.into_iter().map(|proposal| (proposal.id.clone(), proposal)).collect(),
            equity: progress.equity,
            not_before: None,
            ended: progress.ended,
            renew_before: database.get(Table::Tasks, RENEW_BEFORE)?.unwrap_or_default(),
            bundles_held: BTreeMap::new(),
            secrets: secrets.into_iter().map(|secret| (secret.name.clone(), secret)).collect(),
            waiting_bundles: (!waiting.is_empty()).then(|| WaitingBundles {
                bundles: waiting.into(),
                by: "management".to_owned(),
                since: Instant::now(),
            }),
        })
    }
}

/// Whether everything was stopped and not cleared since.
pub(crate) fn is_killed(revocations: &[Revocation]) -> bool {
    let cleared = revocations
        .iter()
        .filter(|entry| entry.kind == RevocationKind::Clearance)
        .filter_map(|entry| entry.id.parse::<u64>().ok())
        .max()
        .unwrap_or(0);
    revocations.iter().any(|entry| entry.kind == RevocationKind::Everything && entry.revision > cleared)
}

/// Keys that management signs with, and what it trusts.
pub struct Authorities {
    /// Trust domain of the installation.
    pub trust_domain: String,
    /// One authority per peer class.
    pub classes: BTreeMap<PeerClass, Authority>,
    /// Key that signs grants.
    pub grant_key: Arc<dyn Signer>,
    /// Public half of the root key.
    pub root: keys::VerifyingKey,
    /// The signed trust bundle.
    pub bundle: identity::SignedBundle,
    /// Its version.
    pub version: u64,
    /// Where the private keys live.
    pub store: Arc<keystore::KeyStore>,
}

/// The step under way, as it is stored.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Progress {
    pub(crate) step: usize,
    pub(crate) tasks: Vec<crate::schedule::ScheduledTask>,
    pub(crate) equity: BTreeMap<String, i64>,
    pub(crate) ended: bool,
}
