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

/// Code and words for a proposal that cannot be approved.
pub(crate) const NO_SUCH_PROPOSAL: (&str, &str) =
    ("no_such_proposal", "the proposal is unknown, done or older than 30 minutes");
/// Words for whoever approves what they asked for themselves.
pub(crate) const OWN_PROPOSAL: &str = "nobody approves their own proposal";

/// A second person's approval: names what is approved, so that nobody signs for something else than they saw.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Approval {
    /// Identifier of the proposal.
    pub proposal: String,
    /// Action, as the approver wants it done.
    pub action: String,
    /// Target, as the approver wants it done to.
    pub target: String,
    /// [`Proposal::digest`] of the proposal that the approver was shown.
    pub digest: String,
}

impl Proposal {
    /// Whether it can be approved at this time, in seconds since the Unix epoch.
    #[must_use]
    pub fn is_open(&self, now: i64) -> bool {
        !self.done && self.expires > now
    }

    /// SHA-256, hexadecimal, of everything that was proposed: id, action, target, proposer, revision and expiry, each with
    /// its length in front.
    #[must_use]
    pub fn digest(&self) -> String {
        let (revision, expires) = (self.revision.to_string(), self.expires.to_string());
        let parts = ["proposal", &self.id, &self.action, &self.target, &self.proposer, &revision, &expires];
        let canonical: String = parts.iter().map(|part| format!("{}:{part}", part.len())).collect();
        keys::Digest::of(canonical.as_bytes()).to_string()
    }

    /// The approval of exactly this proposal.
    #[must_use]
    pub fn approval(&self) -> Approval {
        Approval {
            proposal: self.id.clone(),
            action: self.action.clone(),
            target: self.target.clone(),
            digest: self.digest(),
        }
    }

    /// Whether a revocation came after the proposal and strikes what the proposal would enable.
    #[must_use]
    pub fn is_overtaken_by(&self, entry: &Revocation) -> bool {
        entry.revision > self.revision
            && match entry.kind {
                RevocationKind::Everything => self.action == "clear_kill",
                RevocationKind::Agent => entry.id.split('#').next() == Some(self.target.as_str()),
                RevocationKind::Grant
                | RevocationKind::Task
                | RevocationKind::Key
                | RevocationKind::Clearance => false,
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
