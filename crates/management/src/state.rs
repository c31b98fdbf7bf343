//! What management knows: the state behind the one lock, the keys it signs with, and the progress that is stored.

use std::collections::BTreeMap;
use std::time::Instant;

use access::revocation::RevocationLog;
use identity::{Authority, PeerClass, TicketBook};
use keys::SigningKey;
use serde::{Deserialize, Serialize};

use crate::cases::{Incident, Proposal};
use crate::registry::Registry;
use crate::schedule::Schedule;

/// State behind the lock.
pub struct State {
    /// Tasks.
    pub schedule: Schedule,
    /// Members.
    pub registry: Registry,
    /// Tickets.
    pub tickets: TicketBook,
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
}

/// Keys that management signs with, and what it trusts.
pub struct Authorities {
    /// Trust domain of the installation.
    pub trust_domain: String,
    /// One authority per peer class.
    pub classes: BTreeMap<PeerClass, Authority>,
    /// Key that signs grants.
    pub grant_key: SigningKey,
    /// Public half of the root key.
    pub root: keys::VerifyingKey,
    /// The signed trust bundle.
    pub bundle: identity::SignedBundle,
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
