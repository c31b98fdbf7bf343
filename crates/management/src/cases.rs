//! What people look at and decide on: incidents, proposals that wait for a second person, the proof of a revocation.

use access::vocabulary::{Revocation, RevocationKind};
use serde::{Deserialize, Serialize};

/// An incident, as it is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Incident {
    /// Identifier.
    pub id: String,
    /// Rule that found it.
    pub rule: String,
    /// SPIFFE ID of whom it concerns.
    pub subject: String,
    /// What was expected.
    pub expected: String,
    /// What was seen.
    pub seen: String,
    /// What was done about it.
    pub response: Vec<String>,
    /// Milliseconds since the Unix epoch.
    pub opened_ms: i64,
    /// Whether it is open.
    pub open: bool,
}

/// Something that one person asked for and a second one must approve.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Proposal {
    /// Identifier.
    pub id: String,
    /// `reinstate_agent` or `clear_kill`.
    pub action: String,
    /// On what.
    pub target: String,
    /// SPIFFE ID of who asked.
    pub proposer: String,
    /// Where the revocation log stood when it was made: what is revoked later is not enabled by it.
    pub revision: u64,
    /// Until when it can be approved, in seconds since the Unix epoch.
    pub expires: i64,
    /// Whether it was carried out.
    pub done: bool,
}

impl Proposal {
    /// Whether a revocation came after the proposal and strikes what the proposal would enable.
    #[must_use]
    pub fn is_overtaken_by(&self, entry: &Revocation) -> bool {
        entry.revision > self.revision
            && match entry.kind {
                RevocationKind::Everything => self.action == "clear_kill",
                RevocationKind::Agent => entry.id.split('#').next() == Some(self.target.as_str()),
                RevocationKind::Grant | RevocationKind::Task | RevocationKind::Clearance => false,
            }
    }
}

/// What the proof of a revocation says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RevocationProof {
    /// Position in the revocation log.
    pub revision: u64,
    /// Whether every guard acknowledged or lost its lease.
    pub proven: bool,
    /// Guards that acknowledged.
    pub acknowledged: Vec<String>,
    /// Guards whose lease lapsed.
    pub lapsed: Vec<String>,
    /// From asked to proven, in milliseconds.
    pub took_ms: u64,
}
