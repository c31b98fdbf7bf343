//! What the log can say: one typed record for every decision, written before its effect.
//!
//! Records carry words and whole numbers only, so that the log can be read without any other crate of the system. Money is
//! in millionths of a dollar. A new kind of decision gets a new variant here; old variants never change their meaning.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// One decision or event, as it stands in a journal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Record {
    /// A process came up.
    Started {
        /// SHA-256 of the program.
        program: String,
    },
    /// An identity was issued.
    Enrolled {
        /// SPIFFE ID.
        id: String,
        /// Epoch of the identity.
        epoch: u32,
        /// SHA-256 of the TLS public key.
        key: String,
        /// When the certificate ends, in seconds since the Unix epoch.
        expires: i64,
    },
    /// An enrolment was refused.
    EnrolmentRefused {
        /// Why.
        reason: String,
        /// How many for this reason since the last record of it; one where nothing is said.
        #[serde(default = "one", skip_serializing_if = "is_one")]
        count: u32,
    },
    /// An operator let somebody enrol.
    EntryMade {
        /// SPIFFE ID of who may.
        id: String,
        /// What must be shown: `ticket`, `unix`, `x509pop`, `tpm2`.
        requires: Vec<String>,
        /// Until when, in seconds since the Unix epoch.
        expires: i64,
        /// Who let them.
        by: String,
    },
    /// A newcomer showed what its entry demands.
    Attested {
        /// SPIFFE ID.
        id: String,
        /// Epoch that its keys are certified for.
        epoch: u32,
        /// What was shown.
        by: Vec<String>,
        /// What was found, by the attestor and its fact.
        facts: BTreeMap<String, String>,
    },
    /// A member's identity ended for good; a new one takes a new ticket.
    Removed {
        /// SPIFFE ID.
        id: String,
        /// Who removed it.
        by: String,
        /// Why.
        reason: String,
    },
    /// The scheduler made a task.
    TaskCreated {
        /// Task.
        task: String,
        /// Kind of task.
        task_kind: String,
        /// Portfolio, where it concerns one.
        portfolio: Option<String>,
        /// Market day.
        market_day: String,
    },
    /// A holder took a task.
    TaskTaken {
        /// Task.
        task: String,
        /// SPIFFE ID of who took it.
        holder: String,
        /// How many have taken it, this one included.
        attempt: u32,
    },
    /// A task ended.
    TaskEnded {
        /// Task.
        task: String,
        /// SPIFFE ID of who had it.
        holder: String,
        /// `done`, `failed` or `lost`.
        outcome: String,
        /// What it brought, or why not.
        detail: serde_json::Value,
    },
    /// A grant was issued.
    GrantIssued {
        /// Grant.
        grant: String,
        /// Task that is its reason.
        task: String,
        /// SPIFFE ID of the holder.
        holder: String,
        /// Audience.
        audience: String,
        /// Actions.
        actions: Vec<String>,
        /// Portfolio.
        portfolio: Option<String>,
        /// Market day.
        market_day: String,
        /// Seconds since the Unix epoch.
        expires: i64,
        /// Digest of the policy set.
        policy: String,
        /// Policies that decided.
        policies: Vec<String>,
        /// SHA-256 of the signed grant.
        digest: String,
    },
    /// A grant was denied by policy.
    GrantDenied {
        /// Task.
        task: String,
        /// SPIFFE ID of who asked.
        holder: String,
        /// Audience.
        audience: String,
        /// Why.
        reason: String,
    },
    /// A guard decided on a request.
    Decision {
        /// Action asked for.
        action: String,
        /// Method and path.
        route: String,
        /// SPIFFE ID of who asked.
        peer: String,
        /// The first digits of the key of the certificate that was shown; lines of older versions say none.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        key: String,
        /// Grant shown, where one was.
        grant: Option<String>,
        /// Task of the grant.
        task: Option<String>,
        /// Whether it was allowed.
        allowed: bool,
        /// Reason code: `granted`, or why not.
        reason: String,
    },
    /// A listener refused connections, or requests before any door, since it said so last.
    HandshakesRefused {
        /// Listener, as the topology names it: `management/agents`, `market/desk`, `management/enrolment`.
        listener: String,
        /// How many, by reason code.
        reasons: BTreeMap<String, u64>,
        /// Classes of those authorities of ours that had signed a certificate which is not theirs to sign.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        signed_by: Vec<String>,
    },
    /// Management was told that a certificate was issued on its machine by an authority's own hand: its own, or an
    /// operator's.
    CertificateIssued {
        /// SPIFFE ID.
        id: String,
        /// The first digits of the TLS key.
        key: String,
        /// When the certificate ends, in seconds since the Unix epoch.
        expires: i64,
    },
    /// A set of keys was certified; it counts once it is proven.
    KeysCertified {
        /// SPIFFE ID of the member.
        id: String,
        /// Epoch.
        epoch: u32,
        /// How many sets the member had before.
        sequence: u64,
        /// The first digits of each key, by its use.
        keys: BTreeMap<String, String>,
        /// When the certificate ends, in seconds since the Unix epoch.
        expires: i64,
    },
    /// A member's keys were followed by new ones.
    KeysRotated {
        /// SPIFFE ID of the member.
        id: String,
        /// Epoch.
        epoch: u32,
        /// The first digits of each key in use now, by its use.
        keys: BTreeMap<String, String>,
        /// The same of those that they follow.
        followed: BTreeMap<String, String>,
    },
    /// An operator asked a member for new keys.
    RotationAsked {
        /// SPIFFE ID of the member.
        id: String,
        /// Who asked.
        by: String,
    },
    /// A trust bundle was published: whom everybody trusts from now on.
    BundlePublished {
        /// Its version.
        version: u64,
        /// SHA-256 of each authority's certificate, by class, the one that issues first.
        authorities: BTreeMap<String, Vec<String>>,
        /// Who brought it; the root has signed it.
        by: String,
    },
    /// A secret was stored; nothing of its contents is told.
    SecretStored {
        /// Name.
        secret: String,
        /// `broker` or `vendor`.
        secret_kind: String,
        /// For whom: the desk's SPIFFE ID, or the source that agents fetch from.
        holder: String,
        /// How often it was stored under this name, this time included.
        version: u64,
        /// SPIFFE ID of who did it.
        by: String,
    },
    /// A stored secret was removed.
    SecretRemoved {
        /// Name.
        secret: String,
        /// SPIFFE ID of who did it.
        by: String,
    },
    /// A stored secret was opened for a member, sealed to its key.
    SecretOpened {
        /// Name.
        secret: String,
        /// Version.
        version: u64,
        /// SPIFFE ID of the member.
        peer: String,
        /// What it was opened for, once: `keys:` and the first digits of the member's TLS key, or `task:` and the attempt.
        reason: String,
    },
    /// A stored secret was asked for a second time, for something that it had been opened for.
    SecretReopened {
        /// Name.
        secret: String,
        /// Version.
        version: u64,
        /// SPIFFE ID of who asked.
        peer: String,
        /// What it had been opened for.
        reason: String,
    },
    /// The key of a domain changed.
    DomainKeyChanged {
        /// Domain.
        domain: String,
        /// Revision of its document; an older one is never taken again.
        revision: u64,
        /// `created`, `found` (at a start), `used`, `rotated`, `raised` or `destroyed`.
        change: String,
        /// Version that seals; none when all were destroyed.
        active: Option<u32>,
        /// Who did it.
        by: String,
    },
    /// Management opened the store of the authorities' keys.
    KeyStoreOpened {
        /// Identifier of the store.
        store: String,
        /// SHA-256 of what seals its root key, where a file does: another passphrase, another digest.
        seal: Option<String>,
    },
    /// Something was revoked.
    Revoked {
        /// Position in the revocation log.
        revision: u64,
        /// What kind of thing.
        revoked: String,
        /// Which one.
        id: String,
        /// SPIFFE ID of the person or part that did it.
        by: String,
        /// Why.
        reason: String,
    },
    /// A revocation is proven: every guard has heard it or lost its lease.
    RevocationProven {
        /// Position in the revocation log.
        revision: u64,
        /// Guards that acknowledged.
        acknowledged: Vec<String>,
        /// Guards whose lease lapsed instead.
        lapsed: Vec<String>,
        /// From asked to proven, in milliseconds.
        took_ms: u64,
    },
    /// An agent started a module.
    ModuleStarted {
        /// Task.
        task: String,
        /// Module.
        module: String,
        /// SHA-256 of the very bytes that run.
        digest: String,
    },
    /// An agent refused to start a module.
    ModuleRefused {
        /// Task.
        task: String,
        /// Module.
        module: String,
        /// Why.
        reason: String,
    },
    /// A module ended.
    ModuleEnded {
        /// Task.
        task: String,
        /// Module.
        module: String,
        /// `done`, or what stopped it and what it tried.
        outcome: String,
        /// Whether it was stopped for something it may not do.
        violation: bool,
    },
    /// An agent read an outside source for its module.
    SourceFetched {
        /// Task.
        task: String,
        /// Source.
        source: String,
        /// Whether the grant names the source.
        allowed: bool,
        /// SHA-256 of what came back.
        digest: Option<String>,
    },
    /// A unit stored data.
    Stored {
        /// What was stored: `bars`, `forecast`, `report`, `article`, `entries`.
        what: String,
        /// Its identifier.
        id: String,
        /// Rows new to the database.
        rows: u64,
        /// SHA-256 of the content.
        digest: String,
        /// Task.
        task: String,
    },
    /// The desk decided on an order.
    OrderDecided {
        /// Client order id, one for ever.
        order: String,
        /// Portfolio.
        portfolio: String,
        /// Symbol.
        symbol: String,
        /// `buy` or `sell`.
        side: String,
        /// Shares.
        quantity: i64,
        /// Reference price, millionths of a dollar.
        price: i64,
        /// Market day of the decision.
        market_day: String,
        /// Task.
        task: String,
        /// Grant.
        grant: String,
        /// SPIFFE ID of the agent.
        agent: String,
        /// Forecast that the order follows from.
        forecast: Option<String>,
        /// Every check made, in order.
        checks: Vec<Check>,
        /// Whether it was approved.
        approved: bool,
        /// `approved`, or the reason code of the check that refused.
        reason: String,
        /// Equity of the portfolio at the decision, millionths of a dollar.
        equity: i64,
    },
    /// The desk sent an approved order to the broker, once.
    OrderSent {
        /// Client order id.
        order: String,
    },
    /// The broker filled an order.
    OrderFilled {
        /// Client order id.
        order: String,
        /// Fill.
        fill: String,
        /// Portfolio.
        portfolio: String,
        /// Symbol.
        symbol: String,
        /// `buy` or `sell`.
        side: String,
        /// Shares.
        quantity: i64,
        /// Price, millionths of a dollar.
        price: i64,
        /// Fee, millionths of a dollar.
        fee: i64,
        /// Market day of the fill.
        market_day: String,
    },
    /// The broker ended an order without a fill.
    OrderEnded {
        /// Client order id.
        order: String,
        /// `expired`, `cancelled` or `rejected`.
        status: String,
        /// Why.
        reason: String,
        /// Market day.
        market_day: String,
    },
    /// The desk closed a market day.
    DayClosed {
        /// Portfolio.
        portfolio: String,
        /// Market day.
        market_day: String,
        /// Equity at the close, millionths of a dollar.
        equity: i64,
        /// Cash, millionths of a dollar.
        cash: i64,
        /// Closes of the day by symbol, millionths of a dollar: what the equity was valued with.
        closes: BTreeMap<String, i64>,
    },
    /// The desk opened a portfolio.
    PortfolioOpened {
        /// Portfolio.
        portfolio: String,
        /// Market day.
        market_day: String,
        /// Cash, millionths of a dollar.
        cash: i64,
    },
    /// The desk applied a split, before anything else on that day.
    SplitApplied {
        /// Portfolio.
        portfolio: String,
        /// Market day.
        market_day: String,
        /// Symbol.
        symbol: String,
        /// New shares …
        numerator: u32,
        /// … for so many old ones.
        denominator: u32,
        /// Shares held afterwards.
        quantity: i64,
        /// Cash paid for a fraction of a share, millionths of a dollar.
        cash: i64,
    },
    /// The sentinel opened an incident.
    IncidentOpened {
        /// Incident.
        incident: String,
        /// Rule that found it.
        rule: String,
        /// SPIFFE ID of whom it concerns.
        subject: String,
        /// What was expected.
        expected: String,
        /// What was seen.
        seen: String,
        /// What the playbook does about it.
        response: Vec<String>,
    },
    /// An agent was quarantined: it gets no task until two people reinstate it.
    Quarantined {
        /// SPIFFE ID.
        agent: String,
        /// Why.
        reason: String,
    },
    /// Two people reinstated an agent, or cleared a kill.
    Enabled {
        /// What was enabled.
        what: String,
        /// Who asked.
        asked_by: String,
        /// Who approved.
        approved_by: String,
    },
    /// An operator asked for something.
    OperatorAction {
        /// SPIFFE ID.
        operator: String,
        /// The first digits of the key of the certificate that was shown; lines of older versions say none.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        key: String,
        /// What.
        action: String,
        /// On what.
        target: String,
        /// Whether policy allowed it.
        allowed: bool,
        /// Why not, or the policy that allowed.
        reason: String,
    },
    /// Everything was stopped.
    Killed {
        /// Who did it.
        by: String,
        /// Why.
        reason: String,
    },
    /// The run reached its end.
    RunEnded {
        /// Market day of the end.
        market_day: String,
    },
}

fn one() -> u32 {
    1
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands it over so")]
fn is_one(count: &u32) -> bool {
    *count == 1
}

impl Record {
    /// Whether a process may say this at all: nobody's word counts on what only another can know. What an agent says of an
    /// order, or a unit of a grant, would otherwise be believed because it stands in the log.
    #[must_use]
    pub fn may_come_from(&self, process: &str) -> bool {
        let is_management = process == "management";
        let (is_desk, is_unit) = (process.starts_with("desk-"), process.starts_with("unit-"));
        let is_agent = process.starts_with("agent-");
        match self {
            Record::Started { .. } => true,
            Record::Enrolled { .. }
            | Record::EnrolmentRefused { .. }
            | Record::EntryMade { .. }
            | Record::Attested { .. }
            | Record::Removed { .. }
            | Record::TaskCreated { .. }
            | Record::TaskTaken { .. }
            | Record::TaskEnded { .. }
            | Record::GrantIssued { .. }
            | Record::GrantDenied { .. }
            | Record::CertificateIssued { .. }
            | Record::KeysCertified { .. }
            | Record::KeysRotated { .. }
            | Record::RotationAsked { .. }
            | Record::BundlePublished { .. }
            | Record::SecretStored { .. }
            | Record::SecretRemoved { .. }
            | Record::SecretOpened { .. }
            | Record::SecretReopened { .. }
            | Record::DomainKeyChanged { .. }
            | Record::KeyStoreOpened { .. }
            | Record::Revoked { .. }
            | Record::RevocationProven { .. }
            | Record::IncidentOpened { .. }
            | Record::Quarantined { .. }
            | Record::Enabled { .. }
            | Record::OperatorAction { .. }
            | Record::Killed { .. }
            | Record::RunEnded { .. } => is_management,
            Record::Decision { .. } | Record::HandshakesRefused { .. } => is_unit || is_desk || is_management,
            Record::Stored { .. } => is_unit,
            Record::ModuleStarted { .. }
            | Record::ModuleRefused { .. }
            | Record::ModuleEnded { .. }
            | Record::SourceFetched { .. } => is_agent,
            Record::OrderDecided { .. }
            | Record::OrderSent { .. }
            | Record::OrderFilled { .. }
            | Record::OrderEnded { .. }
            | Record::PortfolioOpened { .. }
            | Record::SplitApplied { .. }
            | Record::DayClosed { .. } => is_desk,
        }
    }
}

/// One pre-trade check, as it was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Check {
    /// Name of the check.
    pub name: String,
    /// What was found.
    pub value: String,
    /// What is allowed.
    pub limit: String,
    /// Whether it passed.
    pub passed: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_speaks_of_what_only_another_can_know() {
        let ended = Record::RunEnded { market_day: "2099-12-31".into() };
        let closed = Record::DayClosed {
            portfolio: "core".into(),
            market_day: "2099-12-31".into(),
            equity: 1,
            cash: 1,
            closes: BTreeMap::new(),
        };
        let sent = Record::OrderSent { order: "x".into() };
        for process in ["agent-2", "unit-market-1", "balancer", "desk", "management-2"] {
            assert!(!ended.may_come_from(process) && !closed.may_come_from(process), "{process}");
            assert!(!sent.may_come_from(process), "{process}");
        }
        assert!(ended.may_come_from("management") && closed.may_come_from("desk-1"));
    }
}
