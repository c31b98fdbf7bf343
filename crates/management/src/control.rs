//! The one place where management decides: who is a member, who gets which task with which grants, what is revoked.
//!
//! Everything that changes goes through [`Control`], in the order: decide, journal, store, then let it be seen. The lock is
//! held for the whole of a decision, so that two decisions never overlap; what one decision stores becomes true at once.
//!
//! The disk is waited for after the lock: decisions that come meanwhile share the next flush. INVARIANT: nobody is told of a
//! decision, and no guard hears of what it struck, before its records and then what it stores are on the disk.
//!
//! INVARIANT: a grant leaves only after policy allowed it, the journal has it on disk, and its task is with its holder.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use access::policy::PolicySet;
use access::vocabulary::{Revocation, RevocationKind};
use audit::record::Record;
use identity::PeerClass;
use tokio::sync::watch;
use wire::journal::{Journal, JournalError, unix_ms};
use wire::layout::Layout;
use wire::problem::Problem;
use wire::server::Connections;
use wire::tls::Credentials;

use crate::cases::Incident;
use crate::database::{Database, DatabaseError, Table, Writes};
use crate::needs::GRANT_LIFETIME_S;
use crate::projection::Projection;
use crate::registry::Member;
use crate::state::{Authorities, Progress, State};

mod bundles;
mod enabling;
mod enrolling;
mod issued;
mod members;
mod revoking;
mod secrets;
mod tasks;

pub use enrolling::Admission;
pub use secrets::{DomainKeyView, SecretView};

/// How long a revocation waits for its proof before it answers that there is none yet; far above lease and margin.
const PROOF_WAIT: Duration = Duration::from_secs(5);

/// Why management cannot do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The decision could not be journalled, so it was not made.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The decision could not be stored.
    #[error(transparent)]
    Database(#[from] DatabaseError),
    /// The revocation log refused.
    #[error(transparent)]
    Revocation(#[from] access::revocation::RevocationError),
    /// A grant could not be made.
    #[error(transparent)]
    Grant(#[from] access::grant::GrantError),
    /// The operating system gave no random bytes.
    #[error("the operating system gives no random bytes: {0}")]
    Random(String),
    /// Something that management needs is not there now: the device with its keys, for one.
    #[error("{0}")]
    Unavailable(String),
    /// The asker may not have it; the reason code is the first word.
    #[error("{code}: {detail}")]
    Refused {
        /// Reason code.
        code: &'static str,
        /// What to know about it.
        detail: String,
    },
}

impl From<ControlError> for Problem {
    fn from(error: ControlError) -> Self {
        match error {
            ControlError::Refused { code, detail } => Problem::forbidden(code, &detail),
            ControlError::Unavailable(detail) => {
                tracing::error!(detail, "management cannot decide now");
                Problem::unavailable("management_unavailable", &detail)
            }
            ControlError::Grant(access::grant::GrantError::Signer(error)) => {
                tracing::error!(%error, "no grant can be signed");
                Problem::unavailable("management_unavailable", "grants cannot be signed now")
            }
            error => {
                tracing::error!(%error, "management failed");
                Problem::unavailable("management_failed", "management could not record or store the decision")
            }
        }
    }
}

fn refused(code: &'static str, detail: impl Into<String>) -> ControlError {
    ControlError::Refused { code, detail: detail.into() }
}

/// Where a control plane is at home.
pub struct Home {
    /// The state directory.
    pub layout: Layout,
    /// Management's own identity, where it has listeners.
    pub credentials: Option<Credentials>,
}

/// The control plane.
pub struct Control {
    state: Mutex<State>,
    /// What the log says, summed up.
    pub view: Mutex<Projection>,
    /// Policies.
    pub policy: PolicySet,
    /// Keys, as they are now.
    authorities: Mutex<Arc<Authorities>>,
    /// Journal.
    pub journal: Arc<Journal>,
    /// Live connections of every listener, for cutting.
    pub connections: Arc<Connections>,
    /// The kill latch of this host, written when everything is stopped.
    pub kill_latch: std::path::PathBuf,
    home: Home,
    enrolments: Mutex<enrolling::Enrolments>,
    database: Database,
    /// Revision of each domain's key that was written last: an older document was put back.
    domain_revisions: Mutex<std::collections::BTreeMap<String, u64>>,
    /// Decisions on their way to the disk.
    kept: Mutex<Kept>,
    /// Number of the last decision that is on the disk; guards the group commit.
    settled: Mutex<u64>,
    /// Keys of operators that were met.
    met: Mutex<std::collections::BTreeSet<[u8; 32]>>,
    queue_changed: watch::Sender<u64>,
    feed_changed: watch::Sender<u64>,
    started: Instant,
}

impl Control {
    /// Puts the control plane together from what was stored.
    #[must_use]
    pub fn new(
        state: State,
        policy: PolicySet,
        authorities: Authorities,
        journal: Arc<Journal>,
        database: Database,
        connections: Arc<Connections>,
        home: Home,
    ) -> Self {
        Self {
            state: Mutex::new(state),
            view: Mutex::new(Projection::default()),
            policy,
            authorities: Mutex::new(Arc::new(authorities)),
            journal,
            connections,
            kill_latch: home.layout.kill_latch(),
            home,
            enrolments: Mutex::default(),
            database,
            domain_revisions: Mutex::default(),
            kept: Mutex::default(),
            settled: Mutex::default(),
            met: Mutex::default(),
            queue_changed: watch::Sender::new(0),
            feed_changed: watch::Sender::new(0),
            started: Instant::now(),
        }
    }

    /// The state. A decision that panicked half-way leaves it unusable: management then stops deciding and restarts.
    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|_| {
            tracing::error!(
                "a decision panicked half-way; management stops and starts again from what is stored"
            );
            std::process::abort()
        })
    }

    /// The keys that management signs with now.
    #[must_use]
    pub fn authorities(&self) -> Arc<Authorities> {
        self.authorities.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// From now on, these. Management's own identity follows when its authority is another, and its listeners trust whom
    /// the new bundle names.
    fn use_authorities(&self, next: Authorities, now: i64) -> Result<(), ControlError> {
        if let Some(credentials) = &self.home.credentials {
            let current = credentials.current();
            let issuing = next.classes.get(&PeerClass::Management);
            let same = issuing.is_some_and(|authority| authority.certificate() == current.authority().der());
            let identity = if same {
                current.with_bundle(next.bundle.clone()).map_err(|error| error.to_string())
            } else {
                crate::bootstrap::issue_for(&next, current.id(), now).map_err(|error| error.to_string())
            };
            let identity = identity.map_err(ControlError::Unavailable)?;
            if !same {
                self.record_own(&identity)?;
            }
            credentials.replace(Arc::new(identity));
        }
        *self.authorities.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(next);
        Ok(())
    }

    /// What the log says, for reading.
    pub fn projection(&self) -> MutexGuard<'_, Projection> {
        self.view.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Milliseconds of the monotonic clock that leases are measured with.
    #[must_use]
    pub fn mono_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn queue_tick(&self) {
        self.queue_changed.send_modify(|tick| *tick = tick.wrapping_add(1));
    }

    fn feed_tick(&self) {
        self.feed_changed.send_modify(|tick| *tick = tick.wrapping_add(1));
    }

    /// Whether everything has been stopped.
    #[must_use]
    pub fn is_killed(&self) -> bool {
        self.state().schedule.halted() == Some(KILLED)
    }

    /// Stores what a decision changed, and tells the guards. On the disk when it returns, and its records before it.
    fn store(&self, writes: Writes) {
        let revoked = writes.touches(Table::Revocations);
        self.keep(writes);
        self.settle();
        if revoked {
            self.feed_tick();
        }
    }

    /// Puts what a decision changed behind what earlier ones did, on its way to the disk. Under the lock of the decision;
    /// [`Control::settle`] is called before anybody is told of it. For what strikes something there is [`Control::store`]:
    /// a guard must never know more than the disk.
    fn keep(&self, writes: Writes) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.writes.append(writes);
        kept.last += 1;
    }

    /// Waits until everything that was kept before the call is on the disk, the records first. Decisions that come while
    /// another is being written share the next flush.
    ///
    /// What is in memory is ahead of the disk until then: when it cannot be stored, going on would leave a gap that no
    /// restart could mend. Stopping closes every guard within its lease; the supervisor starts management again.
    fn settle(&self) {
        let mine = self.kept.lock().unwrap_or_else(PoisonError::into_inner).last;
        let mut settled = self.settled.lock().unwrap_or_else(PoisonError::into_inner);
        if *settled >= mine {
            return;
        }
        let (writes, last) = {
            let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
            (std::mem::take(&mut kept.writes), kept.last)
        };
        // What was kept was recorded before: the flush has the records of all of it.
        let stored = self
            .journal
            .flush()
            .map_err(ControlError::from)
            .and_then(|()| Ok(self.database.commit(&writes)?));
        if let Err(error) = stored {
            tracing::error!(%error, "a decision could not be stored; management stops");
            std::process::abort();
        }
        *settled = last;
    }

    /// Keeps an incident.
    ///
    /// # Errors
    /// When it cannot be recorded or stored.
    pub fn open_incident(&self, incident: Incident) -> Result<(), ControlError> {
        self.journal.record_durably(&Record::IncidentOpened {
            incident: incident.id.clone(),
            rule: incident.rule.clone(),
            subject: incident.subject.clone(),
            expected: incident.expected.clone(),
            seen: incident.seen.clone(),
            response: incident.response.clone(),
        })?;
        let mut writes = Writes::default();
        writes.put(Table::Incidents, &incident.id, &incident)?;
        self.store(writes);
        self.state().incidents.insert(incident.id.clone(), incident);
        Ok(())
    }
}

/// What decisions changed that is not on the disk yet.
#[derive(Default)]
struct Kept {
    writes: Writes,
    /// Number of the last of these decisions.
    last: u64,
}

/// What is struck, by whom and why.
struct Struck<'a> {
    kind: RevocationKind,
    id: &'a str,
    /// When it may be forgotten, since nothing of it can be good any more; seconds since the Unix epoch.
    until: Option<i64>,
    by: &'a str,
    reason: &'a str,
}

impl<'a> Struck<'a> {
    fn grant(id: &'a str, by: &'a str, reason: &'a str) -> Self {
        let until = Some(unix_ms() / 1_000 + GRANT_LIFETIME_S);
        Self { kind: RevocationKind::Grant, id, until, by, reason }
    }

    fn task(id: &'a str, by: &'a str, reason: &'a str) -> Self {
        Self { kind: RevocationKind::Task, ..Self::grant(id, by, reason) }
    }
}

fn put_revocation(entry: &Revocation, writes: &mut Writes) -> Result<(), DatabaseError> {
    writes.put(Table::Revocations, &format!("{:020}", entry.revision), entry)
}

fn put_member(state: &mut State, writes: &mut Writes, member: Member) -> Result<(), DatabaseError> {
    writes.put(Table::Members, member.id.as_str(), &member)?;
    state.registry.put(member);
    Ok(())
}

fn put_progress(state: &State, writes: &mut Writes) -> Result<(), DatabaseError> {
    let progress = Progress {
        step: state.schedule.step(),
        tasks: state.schedule.tasks().cloned().collect(),
        equity: state.equity.clone(),
        ended: state.ended,
    };
    writes.put(Table::Tasks, "progress", &progress)
}

/// Who ends tasks and the grants of their attempts: part of the daily work, no revocation by anybody.
pub(crate) const SCHEDULER: &str = "scheduler";

/// Why the schedule stands still when everything was stopped.
pub(crate) const KILLED: &str = "everything was stopped; two people must clear it";

/// Random bytes of the operating system.
pub(crate) fn random<const N: usize>() -> Result<[u8; N], ControlError> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|error| ControlError::Random(error.to_string()))?;
    Ok(bytes)
}
