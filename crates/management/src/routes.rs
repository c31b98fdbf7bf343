//! Management's routes: what members may do by standing permission, and what operators may do.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use access::policy::{OperatorAction, StandingAction};
use axum::http::Method;
use axum::response::Response;
use identity::entry::{EntryState, TICKET_TTL_S};
use identity::keyring::{KeyState, KeyUse};
use identity::{Entry, Limits, PeerClass, Requirements, SignedBundle, SpiffeId};
use serde::{Deserialize, Serialize};
use wire::api::{KeyOffer, KeyProof, QueueRequest, RevocationPoll, RoleReply, StatusReport};
use wire::guard::{
    Ask, Door, Needs, Operation, Pass, Routes, Touched, Verdict, from_json, json, query_value,
};
use wire::journal::Journal;
use wire::problem::Problem;
use wire::renew::{ACTIVATE_PATH, OFFER_PATH};

use crate::cases::{Approval, Incident, NO_SUCH_PROPOSAL, OWN_PROPOSAL, Proposal, RevocationProof};
use crate::control::{Admission, Control, ControlError};
use crate::door::ControlDoor;
use crate::joiner::{JoinError, Joiner};
use crate::projection::{Counts, EventView, GrantView, OrderView};
use crate::schedule::TaskState;

mod secrets;

use secrets::{
    DestroyKeys, OpenSecret, PutSecret, ReadDomainKeys, ReadSealTo, ReadSecrets, RemoveSecret, RewrapKeys,
};

pub use secrets::{DestroyBody, DomainAim, SealTo, SecretAim, SecretBody};

/// A guard's poll is held this long at most.
const POLL_WAIT_MAX_MS: u64 = 1_000;
/// A request for a task is held this long at most.
const QUEUE_WAIT_MAX_MS: u64 = 5_000;

/// Bytes of a task's result at most; a longer one is a failed attempt, since no journal line could hold it.
const DETAIL_BYTES_MAX: usize = 32 * 1024;

/// What the routes share.
pub struct Shared {
    /// The control plane.
    pub control: Arc<Control>,
    /// The way to the log.
    pub joiner: Joiner,
}

/// Routes for members: exactly the standing permissions.
pub fn member_routes(shared: Arc<Shared>, journal: Arc<Journal>) -> Routes<Shared> {
    let door = Arc::new(ControlDoor::new(shared.control.clone()));
    Routes::new(shared, door, journal)
        .with::<ReportStatus>()
        .with::<VerifyRole>()
        .with::<OfferKeys>()
        .with::<ActivateKeys>()
        .with::<CheckQueue>()
        .with::<OpenSecret>()
        .with::<Hear>()
}

/// Routes for operators.
pub fn operator_routes(shared: Arc<Shared>, journal: Arc<Journal>) -> Routes<Shared> {
    let door = Arc::new(OperatorsDoor(ControlDoor::new(shared.control.clone())));
    Routes::new(shared, door, journal)
        .with::<ReadSummary>()
        .with::<ReadAgents>()
        .with::<ReadGrants>()
        .with::<ReadOrders>()
        .with::<ReadIncidents>()
        .with::<ReadEvents>()
        .with::<ReadProposals>()
        .with::<ReadEquity>()
        .with::<RevokeAgent>()
        .with::<RevokeGrant>()
        .with::<Kill>()
        .with::<CreateTicket>()
        .with::<ReadEntries>()
        .with::<RemoveAgent>()
        .with::<ReadKeys>()
        .with::<RotateKeys>()
        .with::<PublishBundles>()
        .with::<ReadDomainKeys>()
        .with::<RewrapKeys>()
        .with::<DestroyKeys>()
        .with::<ReadSecrets>()
        .with::<ReadSealTo>()
        .with::<PutSecret>()
        .with::<RemoveSecret>()
        .with::<Propose>()
        .with::<Approve>()
}

/// Management's door, with words for a person whose approval policy refuses. It changes no decision.
struct OperatorsDoor(ControlDoor);

impl Door for OperatorsDoor {
    fn decide(&self, ask: &Ask<'_>) -> Verdict {
        let verdict = self.0.decide(ask);
        let is_approval = ask.needs == Needs::Operator(OperatorAction::Approve);
        match verdict {
            Verdict::Deny { code, detail, retryable, grant }
                if is_approval && ask.peer.class == PeerClass::Operators =>
            {
                let (code, detail) = match &ask.touched.proposer {
                    // Policy lets nobody approve what nobody proposed.
                    None => (NO_SUCH_PROPOSAL.0.to_owned(), NO_SUCH_PROPOSAL.1.to_owned()),
                    Some(proposer) if proposer == ask.peer.id.as_str() => {
                        (code, format!("{OWN_PROPOSAL} (policy {detail})"))
                    }
                    Some(_) => (code, detail),
                };
                Verdict::Deny { code, detail, retryable, grant }
            }
            verdict => verdict,
        }
    }
}

/// The process name that an identity journals under.
#[must_use]
pub fn process_name(id: &SpiffeId) -> String {
    let parts: Vec<&str> = id.path().split('/').filter(|part| !part.is_empty()).collect();
    match parts.as_slice() {
        ["agent", name] => (*name).to_owned(),
        parts => parts.join("-"),
    }
}

/// Decides in a thread that may block: for what signs, which a device may take long for, and waits for the disk. Many such
/// decisions share one flush.
async fn decide<T: Send + 'static>(
    control: &Arc<Control>,
    decision: impl FnOnce(&Control) -> Result<T, ControlError> + Send + 'static,
) -> Result<T, Problem> {
    let control = control.clone();
    match tokio::task::spawn_blocking(move || decision(&control)).await {
        Ok(decided) => Ok(decided?),
        Err(error) => {
            tracing::error!(%error, "a decision ended without an answer");
            Err(Problem::unavailable("management_failed", "management could not decide; ask again"))
        }
    }
}

struct ReportStatus(StatusReport);

impl Operation for ReportStatus {
    type State = Shared;
    const METHOD: Method = Method::POST;
    const PATH: &'static str = "/v1/status";
    const NEEDS: Needs = Needs::Standing(StandingAction::ReportStatus);

    fn parse(_query: &str, body: &[u8]) -> Result<Self, Problem> {
        from_json(body).map(Self)
    }

    fn touched(&self, _state: &Shared) -> Touched {
        Touched::default()
    }

    async fn run(self, state: Arc<Shared>, pass: Pass) -> Result<Response, Problem> {
        let held = self.0.bundle;
        let lines: Vec<Vec<u8>> = self.0.journal.into_iter().map(String::into_bytes).collect();
        let joined =
            state.joiner.join(process_name(&pass.peer.id), lines).await.map_err(|error| match error {
                JoinError::Refused(detail) => Problem::conflict("journal_refused", &detail),
                JoinError::Failed(detail) => Problem::unavailable("log_failed", &detail),
            })?;
        if let Some(mut end) = self.0.ended {
            if end.detail.to_string().len() > DETAIL_BYTES_MAX {
                end.done = false;
                end.detail = "the result is longer than a result may be".into();
            }
            state.control.end_task(&pass.peer, &end)?;
        }
        json(&state.control.answer_report(&pass.peer, joined, held))
    }
}

struct VerifyRole;

impl Operation for VerifyRole {
    type State = Shared;
    const METHOD: Method = Method::GET;
    const PATH: &'static str = "/v1/role";
    const NEEDS: Needs = Needs::Standing(StandingAction::VerifyRole);

    fn parse(_query: &str, _body: &[u8]) -> Result<Self, Problem> {
        Ok(Self)
    }

    fn touched(&self, _state: &Shared) -> Touched {
        Touched::default()
    }

    async fn run(self, state: Arc<Shared>, pass: Pass) -> Result<Response, Problem> {
        let quarantined =
            state.control.state().registry.get(&pass.peer.id).is_none_or(|member| member.quarantined);
        json(&RoleReply {
            id: pass.peer.id.to_string(),
            class: pass.peer.class.as_str().into(),
            epoch: pass.peer.epoch,
            quarantined,
        })
    }
}

struct OfferKeys(KeyOffer);

impl Operation for OfferKeys {
    type State = Shared;
    const METHOD: Method = Method::POST;
    const PATH: &'static str = OFFER_PATH;
    const NEEDS: Needs = Needs::Standing(StandingAction::VerifyRole);

    fn parse(_query: &str, body: &[u8]) -> Result<Self, Problem> {
        from_json(body).map(Self)
    }

    fn touched(&self, _state: &Shared) -> Touched {
        Touched::default()
    }

    async fn run(self, state: Arc<Shared>, pass: Pass) -> Result<Response, Problem> {
        json(&decide(&state.control, move |control| control.offer_keys(&pass.peer, &self.0)).await?)
    }
}

struct ActivateKeys(KeyProof);

impl Operation for ActivateKeys {
    type State = Shared;
    const METHOD: Method = Method::POST;
    const PATH: &'static str = ACTIVATE_PATH;
    const NEEDS: Needs = Needs::Proof(StandingAction::VerifyRole);

    fn parse(_query: &str, body: &[u8]) -> Result<Self, Problem> {
        from_json(body).map(Self)
    }

    fn touched(&self, _state: &Shared) -> Touched {
        Touched::default()
    }

    async fn run(self, state: Arc<Shared>, pass: Pass) -> Result<Response, Problem> {
        json(&decide(&state.control, move |control| control.activate_keys(&pass.peer, &self.0)).await?)
    }
}

struct CheckQueue(QueueRequest);

impl Operation for CheckQueue {
    type State = Shared;
    const METHOD: Method = Method::POST;
    const PATH: &'static str = "/v1/queue";
    const NEEDS: Needs = Needs::Standing(StandingAction::CheckQueue);

    fn parse(_query: &str, body: &[u8]) -> Result<Self, Problem> {
        from_json(body).map(Self)
    }

    fn touched(&self, _state: &Shared) -> Touched {
        Touched::default()
    }

    async fn run(self, state: Arc<Shared>, pass: Pass) -> Result<Response, Problem> {
        let wait = Duration::from_millis(self.0.wait_ms.min(QUEUE_WAIT_MAX_MS));
        json(&state.control.take_task(&pass.peer, wait).await?)
    }
}

struct Hear(RevocationPoll);

impl Operation for Hear {
    type State = Shared;
    const METHOD: Method = Method::POST;
    const PATH: &'static str = "/v1/revocations";
    const NEEDS: Needs = Needs::Standing(StandingAction::HearRevocations);

    fn parse(_query: &str, body: &[u8]) -> Result<Self, Problem> {
        from_json(body).map(Self)
    }

    fn touched(&self, _state: &Shared) -> Touched {
        Touched::default()
    }

    async fn run(self, state: Arc<Shared>, pass: Pass) -> Result<Response, Problem> {
        let wait = Duration::from_millis(self.0.wait_ms.min(POLL_WAIT_MAX_MS));
        json(&state.control.hear_guard(pass.peer.id.as_str(), self.0.acknowledged, wait).await?)
    }
}

/// What operators see first.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Summary {
    /// `running`, `ended`, or why the run stands still.
    pub state: String,
    /// Latest market day closed.
    pub market_day: String,
    /// Steps done and steps in all.
    pub steps: (usize, usize),
    /// Counts.
    pub counts: Counts,
    /// Equity of all portfolios together, millionths of a dollar.
    pub equity: i64,
    /// Cash at the start, all portfolios together, millionths of a dollar.
    pub equity_start: i64,
    /// Latest report of each portfolio.
    pub reports: BTreeMap<String, serde_json::Value>,
    /// Whether the run's end is in the log.
    pub ended: bool,
    /// Position of the revocation log.
    pub revision: u64,
    /// Open incidents.
    pub incidents_open: usize,
    /// Which task failed too often and why, when the run stands still for that, and not because a person stopped it.
    pub halted: Option<String>,
}

/// A member, as operators see it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct AgentView {
    /// Name.
    pub name: String,
    /// SPIFFE ID.
    pub id: String,
    /// Peer class.
    pub class: String,
    /// Epoch of the identity.
    pub epoch: u32,
    /// `active`, `quarantined`, `reinstated` (to be enrolled anew) or `removed`.
    pub status: String,
    /// When the certificate ends, in seconds since the Unix epoch.
    pub expires: i64,
    /// Task that it has.
    pub task: Option<String>,
}

fn start_cash(control: &Control) -> BTreeMap<String, i64> {
    let state = control.state();
    state
        .schedule
        .plan()
        .portfolios
        .iter()
        .map(|portfolio| (portfolio.name.clone(), portfolio.cash))
        .collect()
}

fn summary(control: &Control) -> Summary {
    let start = start_cash(control);
    let state = control.state();
    let view = control.projection();
    let equity_start = start.values().fold(0_i64, |sum, cash| sum.saturating_add(*cash));
    let equity = view.equity_now(&start);
    Summary {
        state: match state.schedule.halted() {
            Some(why) => why.to_owned(),
            None if view.ended => "ended".to_owned(),
            None => "running".to_owned(),
        },
        market_day: view.market_day.clone(),
        steps: (state.schedule.step(), state.schedule.plan().steps.len()),
        counts: view.counts.clone(),
        equity,
        equity_start,
        reports: view.reports.clone(),
        ended: view.ended,
        revision: state.revocations.head(),
        incidents_open: state.incidents.values().filter(|incident| incident.open).count(),
        halted: state.schedule.stuck().map(str::to_owned),
    }
}

fn agents(control: &Control) -> Vec<AgentView> {
    let state = control.state();
    let holding = |id: &SpiffeId| {
        state
            .schedule
            .tasks()
            .find(|task| matches!(&task.state, TaskState::Taken { holder, .. } if holder == id.as_str()))
            .map(|task| task.id.clone())
    };
    state
        .registry
        .members()
        .map(|member| AgentView {
            name: process_name(&member.id),
            id: member.id.to_string(),
            class: PeerClass::of(&member.id).map_or("", PeerClass::as_str).to_owned(),
            epoch: member.epoch(),
            status: match (member.quarantined, member.is_revoked()) {
                (true, _) => "quarantined",
                (false, true) if member.removed => "removed",
                (false, true) => "reinstated",
                (false, false) => "active",
            }
            .to_owned(),
            expires: member.keys.active().map_or(0, |set| set.expires),
            task: holding(&member.id),
        })
        .collect()
}

/// Makes a route by which operators read something.
macro_rules! read_route {
    ($name:ident, $path:literal, |$control:ident, $query:ident| $value:expr) => {
        struct $name(String);

        impl Operation for $name {
            type State = Shared;
            const METHOD: Method = Method::GET;
            const PATH: &'static str = $path;
            const NEEDS: Needs = Needs::Operator(OperatorAction::ReadStatus);

            fn parse(query: &str, _body: &[u8]) -> Result<Self, Problem> {
                Ok(Self(query.to_owned()))
            }

            fn touched(&self, _state: &Shared) -> Touched {
                Touched { target: $path.to_owned(), ..Touched::default() }
            }

            async fn run(self, state: Arc<Shared>, _pass: Pass) -> Result<Response, Problem> {
                let $control = &*state.control;
                let $query = self.0.as_str();
                json(&$value)
            }
        }
    };
}

/// Rows answered to an operator at most.
const ROWS_MAX: usize = 100_000;

fn limit(query: &str) -> usize {
    query_value(query, "limit").and_then(|text| text.parse().ok()).unwrap_or(ROWS_MAX).min(ROWS_MAX)
}

read_route!(ReadSummary, "/v1/summary", |control, _query| summary(control));
read_route!(ReadAgents, "/v1/agents", |control, _query| agents(control));
read_route!(ReadGrants, "/v1/grants", |control, query| {
    let grants: Vec<GrantView> = control.projection().grants_at(wire::journal::unix_ms() / 1_000);
    let from = grants.len().saturating_sub(limit(query));
    grants.into_iter().skip(from).collect::<Vec<_>>()
});
read_route!(ReadOrders, "/v1/orders", |control, query| {
    let orders: Vec<OrderView> = control.projection().orders_in_order();
    let from = orders.len().saturating_sub(limit(query));
    orders.into_iter().skip(from).collect::<Vec<_>>()
});
read_route!(ReadIncidents, "/v1/incidents", |control, _query| {
    control.state().incidents.values().cloned().collect::<Vec<Incident>>()
});
read_route!(ReadEvents, "/v1/events", |control, _query| {
    control.projection().events.iter().cloned().collect::<Vec<EventView>>()
});
read_route!(ReadProposals, "/v1/proposals", |control, _query| {
    control.state().proposals.values().cloned().collect::<Vec<Proposal>>()
});
read_route!(ReadEquity, "/v1/equity", |control, _query| {
    let start = start_cash(control);
    control.projection().total_equity(&start)
});

/// Names something, and why.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Aim {
    /// What it is aimed at.
    pub target: String,
    /// Why.
    pub reason: String,
}

/// Makes a route by which one operator restricts something; answered once the revocation is proven.
macro_rules! strike_route {
    ($name:ident, $path:literal, $action:ident, |$control:ident, $aim:ident, $by:ident| $strike:expr) => {
        struct $name(Aim);

        impl Operation for $name {
            type State = Shared;
            const METHOD: Method = Method::POST;
            const PATH: &'static str = $path;
            const NEEDS: Needs = Needs::Operator(OperatorAction::$action);

            fn parse(_query: &str, body: &[u8]) -> Result<Self, Problem> {
                from_json(body).map(Self)
            }

            fn touched(&self, _state: &Shared) -> Touched {
                Touched { target: self.0.target.clone(), ..Touched::default() }
            }

            async fn run(self, state: Arc<Shared>, pass: Pass) -> Result<Response, Problem> {
                let asked = Instant::now();
                let ($control, $aim, $by) = (&*state.control, &self.0, pass.peer.id.as_str());
                let revision = $strike?;
                let proof: RevocationProof = $control.prove(revision, asked).await?;
                json(&proof)
            }
        }
    };
}

strike_route!(RevokeAgent, "/v1/revoke/agent", RevokeAgent, |control, aim, by| {
    let id = agent_id(control, &aim.target)?;
    control.revoke_agent(&id, by, &aim.reason)
});
strike_route!(RemoveAgent, "/v1/remove/agent", RemoveAgent, |control, aim, by| {
    let id = member_id(control, &aim.target)?;
    control.remove_agent(&id, by, &aim.reason)
});
strike_route!(RevokeGrant, "/v1/revoke/grant", RevokeGrant, |control, aim, by| {
    control.revoke_grant(&aim.target, by, &aim.reason)
});
strike_route!(Kill, "/v1/kill", Kill, |control, aim, by| control.kill(by, &aim.reason));

/// An agent by its name or by its SPIFFE ID.
fn agent_id(control: &Control, name: &str) -> Result<SpiffeId, Problem> {
    let wrong = |_| Problem::bad_request("no_such_agent", "name an agent, such as agent-2, or its SPIFFE ID");
    if name.starts_with("spiffe://") {
        name.parse().map_err(wrong)
    } else {
        SpiffeId::agent(&control.authorities().trust_domain, name).map_err(wrong)
    }
}

struct CreateTicket(TicketBody);

/// Lets somebody enrol.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TicketBody {
    /// SPIFFE ID of who.
    pub target: String,
    /// Why.
    pub reason: String,
    /// What must be shown besides the ticket.
    #[serde(default)]
    pub requires: Requirements,
    /// Within which limits.
    #[serde(default)]
    pub limits: Limits,
    /// Life of the ticket, in seconds; the usual one where nothing is said.
    #[serde(default)]
    pub ttl_s: Option<i64>,
    /// Whether who was removed stays so.
    #[serde(default)]
    pub keep_removed: bool,
}

impl Operation for CreateTicket {
    type State = Shared;
    const METHOD: Method = Method::POST;
    const PATH: &'static str = "/v1/tickets";
    const NEEDS: Needs = Needs::Operator(OperatorAction::CreateTicket);

    fn parse(_query: &str, body: &[u8]) -> Result<Self, Problem> {
        from_json(body).map(Self)
    }

    fn touched(&self, _state: &Shared) -> Touched {
        Touched { target: self.0.target.clone(), ..Touched::default() }
    }

    async fn run(self, state: Arc<Shared>, pass: Pass) -> Result<Response, Problem> {
        let TicketBody { target, requires, limits, ttl_s, keep_removed, .. } = self.0;
        let id: SpiffeId =
            target.parse().map_err(|_| Problem::bad_request("bad_id", "the target must be a SPIFFE ID"))?;
        let ttl_s = ttl_s.unwrap_or(TICKET_TTL_S);
        let admission = Admission { requires, limits, ttl_s, keep_removed };
        let (entry, ticket) = state.control.create_entry(&id, admission, pass.peer.id.as_str())?;
        let view = EntryView::of(&entry, EntryState::Open);
        json(&serde_json::json!({ "id": id, "ticket": *ticket.to_text(), "entry": view }))
    }
}

/// Who may enrol, as operators see it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct EntryView {
    /// Name.
    pub name: String,
    /// SPIFFE ID.
    pub id: String,
    /// Peer class.
    pub class: String,
    /// What must be shown: `ticket`, `unix`, `x509pop`, `tpm2`.
    pub shows: Vec<String>,
    /// The same in full, but for the ticket.
    pub requires: Requirements,
    /// Within which limits.
    pub limits: Limits,
    /// `open`, `used`, `locked` or `expired`.
    pub state: String,
    /// Until when, in seconds since the Unix epoch.
    pub expires: i64,
}

impl EntryView {
    fn of(entry: &Entry, state: EntryState) -> Self {
        Self {
            name: process_name(&entry.id),
            id: entry.id.to_string(),
            class: entry.class.as_str().to_owned(),
            shows: entry.requires.names().into_iter().map(str::to_owned).collect(),
            requires: entry.requires.clone(),
            limits: entry.limits,
            state: state.as_str().to_owned(),
            expires: entry.expires,
        }
    }
}

read_route!(ReadEntries, "/v1/entries", |control, _query| {
    control.entries().iter().map(|(entry, state)| EntryView::of(entry, *state)).collect::<Vec<_>>()
});

/// One key of one member, as operators see it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct KeyView {
    /// Name of the member: of an agent, a unit or the desk.
    pub agent: String,
    /// What the key is for: `tls`, `signing`, `sealing/control`, `sealing/data` or `sealing/alerts`.
    pub channel: String,
    /// First 16 digits of the public key; of the TLS key, of its SHA-256.
    pub key_id: String,
    /// Seconds since it became active; since it was offered, where it is not.
    pub age_s: i64,
    /// Enrolment epoch.
    pub epoch: u32,
    /// `offered`, `active`, `draining` or `retired`.
    pub state: String,
    /// When its certificate ends, in seconds since the Unix epoch.
    pub expires: i64,
    /// First 16 digits of the SHA-256 of the authority's certificate.
    pub authority: String,
}

/// Keys of every member, and the age of the oldest that is active.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct KeysView {
    /// The keys.
    pub keys: Vec<KeyView>,
    /// Age of the oldest active key, in seconds.
    pub oldest_active_key_age_s: i64,
    /// Version of the trust bundle.
    pub bundle: u64,
    /// Bundles that wait to be published, while an authority is being replaced.
    pub bundles_waiting: usize,
}

fn keys_view(control: &Control) -> KeysView {
    let now = wire::journal::unix_ms() / 1_000;
    let bundle = control.authorities().version;
    let bundles_waiting = control.bundles_waiting();
    let state = control.state();
    let mut keys = Vec::new();
    let mut oldest = 0;
    for member in state.registry.members() {
        for (set, key_state) in member.keys.rows(now) {
            let age_s = now.saturating_sub(set.since).max(0);
            if key_state == KeyState::Active {
                oldest = oldest.max(age_s);
            }
            for usage in KeyUse::ALL {
                keys.push(KeyView {
                    agent: process_name(&member.id),
                    channel: usage.as_str().to_owned(),
                    key_id: set.keys.key(usage).chars().take(16).collect(),
                    age_s,
                    epoch: set.epoch,
                    state: key_state.as_str().to_owned(),
                    expires: set.expires,
                    authority: set.authority.chars().take(16).collect(),
                });
            }
        }
    }
    KeysView { keys, oldest_active_key_age_s: oldest, bundle, bundles_waiting }
}

read_route!(ReadKeys, "/v1/keys", |control, _query| keys_view(control));

struct RotateKeys(Aim);

impl Operation for RotateKeys {
    type State = Shared;
    const METHOD: Method = Method::POST;
    const PATH: &'static str = "/v1/keys/rotate";
    const NEEDS: Needs = Needs::Operator(OperatorAction::RotateKeys);

    fn parse(_query: &str, body: &[u8]) -> Result<Self, Problem> {
        from_json(body).map(Self)
    }

    fn touched(&self, _state: &Shared) -> Touched {
        Touched { target: self.0.target.clone(), ..Touched::default() }
    }

    async fn run(self, state: Arc<Shared>, pass: Pass) -> Result<Response, Problem> {
        let control = &state.control;
        let id = match self.0.target.as_str() {
            "all" => None,
            name => Some(member_id(control, name)?),
        };
        let asked = control.ask_for_rotation(id.as_ref(), pass.peer.id.as_str())?;
        json(&serde_json::json!({ "asked": asked }))
    }
}

/// A member by the name that its process goes by, or by its SPIFFE ID.
fn member_id(control: &Control, name: &str) -> Result<SpiffeId, Problem> {
    let state = control.state();
    let named = |id: &&SpiffeId| id.as_str() == name || process_name(id) == name;
    let found = state.registry.members().map(|member| &member.id).find(named).cloned();
    found.ok_or_else(|| {
        Problem::bad_request("no_such_member", "name a member as `trader agent list` does, or say all")
    })
}

/// Bundles that follow each other while an authority is replaced, each signed by the root.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BundlesBody {
    /// In the order in which they are published.
    pub bundles: Vec<SignedBundle>,
}

struct PublishBundles(BundlesBody);

impl Operation for PublishBundles {
    type State = Shared;
    const METHOD: Method = Method::POST;
    const PATH: &'static str = "/v1/bundles";
    const NEEDS: Needs = Needs::Operator(OperatorAction::ReplaceAuthority);

    fn parse(_query: &str, body: &[u8]) -> Result<Self, Problem> {
        from_json(body).map(Self)
    }

    fn touched(&self, _state: &Shared) -> Touched {
        Touched { target: format!("{} bundles", self.0.bundles.len()), ..Touched::default() }
    }

    async fn run(self, state: Arc<Shared>, pass: Pass) -> Result<Response, Problem> {
        let published = state.control.publish_bundles(self.0.bundles, pass.peer.id.as_str())?;
        json(&serde_json::json!({ "version": published }))
    }
}

struct Propose(ProposeBody);

/// Asks for something that takes two people.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProposeBody {
    /// `reinstate_agent` or `clear_kill`.
    pub action: String,
    /// On what.
    pub target: String,
}

impl Operation for Propose {
    type State = Shared;
    const METHOD: Method = Method::POST;
    const PATH: &'static str = "/v1/proposals";
    const NEEDS: Needs = Needs::Operator(OperatorAction::Propose);

    fn parse(_query: &str, body: &[u8]) -> Result<Self, Problem> {
        from_json(body).map(Self)
    }

    fn touched(&self, _state: &Shared) -> Touched {
        Touched { target: format!("{} {}", self.0.action, self.0.target), ..Touched::default() }
    }

    async fn run(self, state: Arc<Shared>, pass: Pass) -> Result<Response, Problem> {
        let control = &state.control;
        let target = target_of(control, &self.0.action, &self.0.target)?;
        json(&control.propose(&self.0.action, &target, pass.peer.id.as_str())?)
    }
}

/// What takes two people is done to: an agent by its SPIFFE ID, however the person named it.
fn target_of(control: &Control, action: &str, target: &str) -> Result<String, Problem> {
    match action {
        "reinstate_agent" => Ok(agent_id(control, target)?.to_string()),
        _ => Ok(target.to_owned()),
    }
}

struct Approve(Approval);

impl Operation for Approve {
    type State = Shared;
    const METHOD: Method = Method::POST;
    const PATH: &'static str = "/v1/approvals";
    const NEEDS: Needs = Needs::Operator(OperatorAction::Approve);

    fn parse(_query: &str, body: &[u8]) -> Result<Self, Problem> {
        from_json(body).map(Self)
    }

    fn touched(&self, state: &Shared) -> Touched {
        let Approval { proposal, action, target, .. } = &self.0;
        let open = state.control.open_proposal(proposal);
        Touched {
            // What the person meant to approve, for the log.
            target: format!("{proposal} {action} {target}"),
            proposer: open.map(|proposal| proposal.proposer),
            ..Touched::default()
        }
    }

    async fn run(self, state: Arc<Shared>, pass: Pass) -> Result<Response, Problem> {
        let target = target_of(&state.control, &self.0.action, &self.0.target)?;
        json(&state.control.approve(&Approval { target, ..self.0 }, pass.peer.id.as_str())?)
    }
}
