//! The one place where management decides: who is a member, who gets which task with which grants, what is revoked.
//!
//! Everything that changes goes through [`Control`], in the order: decide, journal, store, then let it be seen. The lock is
//! held for the whole of a decision, so that two decisions never overlap; what one decision stores becomes true at once.
//!
//! INVARIANT: a grant leaves only after policy allowed it, the journal has it on disk, and its task is with its holder.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use access::policy::{GrantQuery, PolicySet};
use access::revocation::FeedReply;
use access::vocabulary::{Claims, MarketDay, Revocation, RevocationKind};
use audit::record::Record;
use identity::{PeerClass, SpiffeId};
use tokio::sync::watch;
use wire::api::{GrantForHolder, QueueReply, Task, TaskEnd};
use wire::journal::{Journal, JournalError, unix_ms};
use wire::problem::Problem;
use wire::server::Connections;
use wire::tls::Peer;

use crate::cases::{Incident, Proposal, RevocationProof};
use crate::database::{Database, DatabaseError, Table, Writes};
use crate::needs::{self, GRANT_LIFETIME_S, Need};
use crate::projection::Projection;
use crate::registry::Member;
use crate::schedule::{Schedule, TASK_LEASE_MS, Taker};
use crate::state::{Authorities, Progress, State};

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

/// The control plane.
pub struct Control {
    state: Mutex<State>,
    /// What the log says, summed up.
    pub view: Mutex<Projection>,
    /// Policies.
    pub policy: PolicySet,
    /// Keys.
    pub authorities: Authorities,
    /// Journal.
    pub journal: Arc<Journal>,
    /// Live connections of every listener, for cutting.
    pub connections: Arc<Connections>,
    /// The kill latch of this host, written when everything is stopped.
    pub kill_latch: std::path::PathBuf,
    database: Database,
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
        kill_latch: std::path::PathBuf,
    ) -> Self {
        Self {
            state: Mutex::new(state),
            view: Mutex::new(Projection::default()),
            policy,
            authorities,
            journal,
            connections,
            kill_latch,
            database,
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

    // Tasks and grants.

    /// Hands out the next task, waiting for one if need be.
    ///
    /// # Errors
    /// When the asker is nobody's, or the decision cannot be recorded.
    pub async fn take_task(&self, peer: &Peer, wait: Duration) -> Result<QueueReply, ControlError> {
        let deadline = tokio::time::Instant::now() + wait;
        let mut changed = self.queue_changed.subscribe();
        loop {
            changed.borrow_and_update();
            let (reply, not_before) = self.try_take(peer)?;
            if reply.task.is_some() {
                return Ok(reply);
            }
            let paced = not_before.map(tokio::time::Instant::from_std);
            let wake = paced.map_or(deadline, |at| at.min(deadline));
            tokio::select! {
                _ = changed.changed() => {}
                () = tokio::time::sleep_until(wake) => {
                    if tokio::time::Instant::now() >= deadline {
                        return Ok(QueueReply::default());
                    }
                }
            }
        }
    }

    fn try_take(&self, peer: &Peer) -> Result<(QueueReply, Option<Instant>), ControlError> {
        let mut state = self.state();
        let member =
            state.registry.identify(peer).map_err(|why| refused(why.as_str(), "no current identity"))?;
        if member.quarantined {
            return Ok((QueueReply::default(), None));
        }
        let taker = match peer.class {
            PeerClass::Agents => Taker::Agent,
            PeerClass::Desk => Taker::Desk,
            _ => return Err(refused("no_tasks", "only agents and the desk take tasks")),
        };
        let holder = peer.id.to_string();
        // Who asks for a task has none: whatever it had before it crashed goes to the first who asks, itself included.
        self.record_lost(&mut state, |schedule| schedule.release(&holder), "asked for another task")?;
        self.record_lost(&mut state, |schedule| schedule.expire(unix_ms()), "held too long")?;
        if let Some(at) = state.not_before.filter(|at| *at > Instant::now()) {
            return Ok((QueueReply::default(), Some(at)));
        }
        let Some(id) = state.schedule.next_for(taker).map(|task| task.id.clone()) else {
            return Ok((QueueReply::default(), None));
        };
        self.hand_out(&mut state, &id, peer).map(|reply| (reply, None))
    }

    /// Gives one task to one holder, with the grants that policy allows.
    fn hand_out(&self, state: &mut State, id: &str, peer: &Peer) -> Result<QueueReply, ControlError> {
        let holder = peer.id.to_string();
        let Some(scheduled) = state.schedule.take(id, &holder, unix_ms()).cloned() else {
            return Ok(QueueReply::default());
        };
        let task = Task {
            id: scheduled.id.clone(),
            kind: scheduled.kind.to_string(),
            portfolio: scheduled.portfolio.clone(),
            market_day: scheduled.market_day.clone(),
            attempt: scheduled.attempt,
            params: scheduled.params.clone(),
        };
        self.journal.record(&Record::TaskTaken { task: task.id.clone(), holder, attempt: task.attempt })?;
        let portfolios: Vec<String> = match &scheduled.portfolio {
            Some(portfolio) => vec![portfolio.clone()],
            None => state.schedule.plan().portfolios.iter().map(|portfolio| portfolio.name.clone()).collect(),
        };
        let mut grants: Vec<GrantForHolder> = Vec::new();
        for portfolio in &portfolios {
            for need in needs::of(scheduled.kind) {
                if let Some(grant) = self.issue(state, &scheduled, portfolio, need, peer)? {
                    grants.push(grant);
                }
            }
        }
        state.schedule.note_grants(&task.id, grants.iter().map(|grant| grant.id.clone()).collect());
        let mut writes = Writes::default();
        put_progress(state, &mut writes)?;
        self.store(&writes);
        Ok(QueueReply { task: Some(task), grants, lease_ms: u64::try_from(TASK_LEASE_MS).unwrap_or(0) })
    }

    /// Issues one grant, when policy allows it.
    fn issue(
        &self,
        state: &State,
        task: &crate::schedule::ScheduledTask,
        portfolio: &str,
        need: &Need,
        peer: &Peer,
    ) -> Result<Option<GrantForHolder>, ControlError> {
        let Some(plan) = state.schedule.plan().portfolio(portfolio) else { return Ok(None) };
        let equity = state.equity.get(portfolio).copied().unwrap_or(plan.cash);
        let (limits, max_uses) = needs::limits(need, plan, equity);
        let actions: BTreeSet<_> = need.actions.iter().copied().collect();
        let sources: BTreeSet<String> =
            if need.source { [plan.source.clone()].into() } else { BTreeSet::new() };
        let holder = peer.id.to_string();
        let decision = self.policy.grant(&GrantQuery {
            holder: &holder,
            class: peer.class.as_str(),
            quarantined: false,
            task: &task.id,
            task_kind: task.kind,
            audience: need.audience,
            actions: &actions,
            portfolio: Some(portfolio),
            sources: &sources,
            lifetime_s: GRANT_LIFETIME_S,
            limits,
        });
        if !decision.allowed {
            self.journal.record_durably(&Record::GrantDenied {
                task: task.id.clone(),
                holder,
                audience: need.audience.to_string(),
                reason: decision.reason,
            })?;
            return Ok(None);
        }
        let now = unix_ms() / 1_000;
        let claims = Claims {
            grant: keys::to_hex(&random::<16>()?),
            task: task.id.clone(),
            holder: holder.clone(),
            epoch: peer.epoch,
            holder_key: peer.key,
            audience: need.audience,
            actions,
            portfolio: Some(portfolio.to_owned()),
            symbols: plan.symbols.iter().cloned().collect(),
            sources,
            limits,
            max_uses,
            market_day: MarketDay::parse(&task.market_day)
                .ok_or_else(|| refused("bad_plan", format!("{} is no market day", task.market_day)))?,
            not_before: now,
            expires: now + GRANT_LIFETIME_S,
            policy: self.policy.digest().0,
            revision: state.revocations.head(),
        };
        let signed = access::grant::mint(&claims, &self.authorities.grant_key)?;
        let actions: Vec<String> = claims.actions.iter().map(ToString::to_string).collect();
        self.journal.record_durably(&Record::GrantIssued {
            grant: claims.grant.clone(),
            task: claims.task.clone(),
            holder,
            audience: claims.audience.to_string(),
            actions: actions.clone(),
            portfolio: claims.portfolio.clone(),
            market_day: claims.market_day.to_string(),
            expires: claims.expires,
            policy: self.policy.digest().to_string(),
            policies: decision.policies,
            digest: signed.digest().to_string(),
        })?;
        Ok(Some(GrantForHolder {
            id: claims.grant,
            audience: claims.audience.to_string(),
            portfolio: claims.portfolio,
            actions,
            sources: claims.sources.into_iter().collect(),
            text: signed.to_text(),
            expires: claims.expires,
        }))
    }

    /// A holder says how its task ended.
    ///
    /// # Errors
    /// When it is not its task, or the end cannot be recorded.
    pub fn end_task(&self, peer: &Peer, end: &TaskEnd) -> Result<(), ControlError> {
        let mut state = self.state();
        let holder = peer.id.to_string();
        if !state.schedule.holds(&end.task, &holder, end.attempt) {
            return Err(refused("not_your_task", "the task went to another, or this attempt is over"));
        }
        let outcome = if end.done { "done" } else { "failed" };
        self.journal.record_durably(&Record::TaskEnded {
            task: end.task.clone(),
            holder: holder.clone(),
            outcome: outcome.into(),
            detail: end.detail.clone(),
        })?;
        // Journalled: from here on it is so. What follows from it is stored as one: a management that died before has the
        // task still with its holder, who says again how it ended; one that died after has the step that comes next.
        let mut writes = Writes::default();
        if end.done {
            state.schedule.done(&end.task, &holder, end.attempt);
            if peer.class == PeerClass::Desk {
                self.note_equity(&mut state, end);
            }
            let struck = Struck::task(&end.task, SCHEDULER, "task ended");
            self.strike(&mut state, &mut writes, &struck)?;
            self.advance(&mut state)?;
        } else if let Some(lost) = state.schedule.give_back(&end.task, &holder, end.attempt) {
            self.strike_grants(&mut state, &mut writes, &lost)?;
        }
        put_progress(&state, &mut writes)?;
        self.store(&writes);
        drop(state);
        self.queue_tick();
        Ok(())
    }

    /// The grants of an attempt that is over die with it.
    fn strike_grants(
        &self,
        state: &mut State,
        writes: &mut Writes,
        lost: &crate::schedule::Lost,
    ) -> Result<(), ControlError> {
        for grant in &lost.grants {
            self.strike(state, writes, &Struck::grant(grant, SCHEDULER, "its attempt is over"))?;
        }
        Ok(())
    }

    /// The desk's session carries the equity that the next grants' limits follow from; nobody else's word counts.
    fn note_equity(&self, state: &mut State, end: &TaskEnd) {
        let Some(equity) = end.detail.get("equity").and_then(serde_json::Value::as_object) else { return };
        for (portfolio, value) in equity {
            if let (Some(value), true) =
                (value.as_i64(), state.schedule.plan().portfolio(portfolio).is_some())
            {
                state.equity.insert(portfolio.clone(), value);
            }
        }
    }

    fn advance(&self, state: &mut State) -> Result<(), ControlError> {
        let days = state.schedule.plan().steps.get(state.schedule.step()).map_or(0, |step| step.days);
        if state.schedule.advance() {
            let pace = state.schedule.plan().days_per_second.filter(|pace| *pace > 0);
            state.not_before = pace.map(|pace| Instant::now() + Duration::from_secs(u64::from(days)) / pace);
            self.announce_tasks(state)?;
        } else if state.schedule.finished() && !state.ended {
            state.ended = true;
            let market_day = state.schedule.plan().last_day().to_owned();
            self.journal.record_durably(&Record::RunEnded { market_day })?;
        }
        Ok(())
    }

    /// Records the tasks of the step under way.
    ///
    /// # Errors
    /// When they cannot be recorded.
    pub fn announce_tasks(&self, state: &State) -> Result<(), ControlError> {
        for task in state.schedule.tasks() {
            self.journal.record(&Record::TaskCreated {
                task: task.id.clone(),
                task_kind: task.kind.to_string(),
                portfolio: task.portfolio.clone(),
                market_day: task.market_day.clone(),
            })?;
        }
        Ok(())
    }

    fn record_lost(
        &self,
        state: &mut State,
        lose: impl FnOnce(&mut Schedule) -> Vec<crate::schedule::Lost>,
        why: &str,
    ) -> Result<(), ControlError> {
        let lost = lose(&mut state.schedule);
        let mut writes = Writes::default();
        for lost in &lost {
            self.journal.record_durably(&Record::TaskEnded {
                task: lost.task.clone(),
                holder: lost.holder.clone(),
                outcome: "lost".into(),
                detail: why.into(),
            })?;
            self.strike_grants(state, &mut writes, lost)?;
        }
        if !lost.is_empty() {
            put_progress(state, &mut writes)?;
            self.store(&writes);
            self.queue_tick();
        }
        Ok(())
    }

    /// Gives tasks that were held too long to others.
    ///
    /// # Errors
    /// When that cannot be recorded.
    pub fn expire_tasks(&self) -> Result<(), ControlError> {
        let mut state = self.state();
        self.record_lost(&mut state, |schedule| schedule.expire(unix_ms()), "held too long")
    }

    /// Takes a task off the run, if it is still with this holder: nobody does it any more, and the step goes on without
    /// it. The task of an agent that was revoked is with nobody: another does it.
    ///
    /// # Errors
    /// When that cannot be recorded.
    pub fn cancel_task(&self, task: &str, holder: &str, reason: &str) -> Result<(), ControlError> {
        let mut state = self.state();
        if !state.schedule.cancel(task, holder) {
            return Ok(());
        }
        self.journal.record_durably(&Record::TaskEnded {
            task: task.to_owned(),
            holder: holder.to_owned(),
            outcome: "cancelled".into(),
            detail: reason.into(),
        })?;
        let mut writes = Writes::default();
        self.strike(&mut state, &mut writes, &Struck::task(task, "sentinel", reason))?;
        self.advance(&mut state)?;
        put_progress(&state, &mut writes)?;
        self.store(&writes);
        drop(state);
        self.queue_tick();
        Ok(())
    }

    /// Stores what a decision changed, and tells the guards.
    ///
    /// What is in memory is ahead of the disk until then: when it cannot be stored, going on would leave a gap that no
    /// restart could mend. Stopping closes every guard within its lease; the supervisor starts management again.
    fn store(&self, writes: &Writes) {
        if let Err(error) = self.database.commit(writes) {
            tracing::error!(%error, "a decision could not be stored; management stops");
            std::process::abort();
        }
        if writes.touches(Table::Revocations) {
            self.feed_tick();
        }
    }

    // Revocation.

    /// A guard polls: its acknowledgement is counted, and it is answered at once when there is something new.
    ///
    /// # Errors
    /// When the guard claims to know more than there is.
    pub async fn hear_guard(
        &self,
        guard: &str,
        acknowledged: u64,
        wait: Duration,
    ) -> Result<FeedReply, ControlError> {
        let mut changed = self.feed_changed.subscribe();
        changed.borrow_and_update();
        self.state().revocations.poll(guard, acknowledged, self.mono_ms())?;
        if self.state().revocations.head() <= acknowledged {
            let _ = tokio::time::timeout(wait, changed.changed()).await;
        }
        Ok(self.state().revocations.entries_after(acknowledged, unix_ms() / 1_000))
    }

    /// Strikes something: journalled here, stored with the rest of the decision, before any guard hears of it.
    fn strike(
        &self,
        state: &mut State,
        writes: &mut Writes,
        struck: &Struck<'_>,
    ) -> Result<u64, ControlError> {
        let entry: Revocation = state.revocations.append(struck.kind, struck.id, struck.until)?;
        let recorded = self.journal.record_durably(&Record::Revoked {
            revision: entry.revision,
            revoked: struck.kind.to_string(),
            id: struck.id.to_owned(),
            by: struck.by.to_owned(),
            reason: struck.reason.to_owned(),
        });
        if let Err(error) = recorded {
            // The log in memory is ahead of the journal, and a guard might hear of it: as in `store`.
            tracing::error!(%error, "a revocation could not be journalled; management stops");
            std::process::abort();
        }
        put_revocation(&entry, writes)?;
        Ok(entry.revision)
    }

    /// Waits until a revocation is proven: every guard acknowledged it or lost its lease.
    ///
    /// # Errors
    /// When the proof cannot be recorded.
    pub async fn prove(&self, revision: u64, asked: Instant) -> Result<RevocationProof, ControlError> {
        let settled = loop {
            let settled = self.state().revocations.settled(revision, self.mono_ms());
            if settled.is_proven() || asked.elapsed() > PROOF_WAIT {
                break settled;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        };
        let proof = RevocationProof {
            revision,
            proven: settled.is_proven(),
            acknowledged: settled.acknowledged,
            lapsed: settled.lapsed,
            took_ms: u64::try_from(asked.elapsed().as_millis()).unwrap_or(u64::MAX),
        };
        if proof.proven {
            self.journal.record_durably(&Record::RevocationProven {
                revision,
                acknowledged: proof.acknowledged.clone(),
                lapsed: proof.lapsed.clone(),
                took_ms: proof.took_ms,
            })?;
        }
        Ok(proof)
    }

    /// Revokes one grant.
    ///
    /// # Errors
    /// When it is no grant's identifier, or cannot be recorded.
    pub fn revoke_grant(&self, grant: &str, by: &str, reason: &str) -> Result<u64, ControlError> {
        let mut state = self.state();
        let mut writes = Writes::default();
        let revision = self.strike(&mut state, &mut writes, &Struck::grant(grant, by, reason))?;
        self.store(&writes);
        Ok(revision)
    }

    /// Revokes an agent's identity, cuts its connections, gives its tasks to others and withholds new ones.
    ///
    /// # Errors
    /// When nobody of that name enrolled, or it cannot be recorded.
    pub fn revoke_agent(&self, agent: &SpiffeId, by: &str, reason: &str) -> Result<u64, ControlError> {
        let mut state = self.state();
        let Some(mut member) = state.registry.get(agent).cloned() else {
            return Err(refused("no_such_agent", format!("nobody enrolled as {agent}")));
        };
        let struck = format!("{agent}#{}", member.epoch);
        let struck = Struck { kind: RevocationKind::Agent, id: &struck, until: None, by, reason };
        let mut writes = Writes::default();
        let revision = self.strike(&mut state, &mut writes, &struck)?;
        member.revoked_through = Some(member.epoch);
        member.quarantined = true;
        self.journal
            .record_durably(&Record::Quarantined { agent: agent.to_string(), reason: reason.into() })?;
        put_member(&mut state, &mut writes, member)?;
        self.store(&writes);
        let holder = agent.to_string();
        self.record_lost(&mut state, |schedule| schedule.release(&holder), reason)?;
        drop(state);
        self.connections.cut(agent);
        self.queue_tick();
        Ok(revision)
    }

    /// Stops everything: no grant is good any more, no task is handed out, and the host's kill latch is set.
    ///
    /// # Errors
    /// When it cannot be recorded; the latch is set all the same.
    pub fn kill(&self, by: &str, reason: &str) -> Result<u64, ControlError> {
        // The latch first: it needs nothing but the file system, and every order reads it.
        if let Err(error) = std::fs::write(&self.kill_latch, format!("stopped by {by}: {reason}\n")) {
            tracing::error!(%error, "the kill latch could not be written; the revocation is sent all the same");
        }
        let mut state = self.state();
        state.schedule.halt(KILLED);
        let recorded = self.journal.record_durably(&Record::Killed { by: by.into(), reason: reason.into() });
        if let Err(error) = recorded {
            // Stopping waits for no bookkeeping: the guards are told all the same.
            tracing::error!(%error, "the stop could not be journalled; it is sent all the same");
            let entry = state.revocations.append(RevocationKind::Everything, "everything", None)?;
            let mut writes = Writes::default();
            put_revocation(&entry, &mut writes)?;
            if let Err(error) = self.database.commit(&writes) {
                tracing::error!(%error, "the stop could not be stored; the latch file keeps it");
            }
            self.feed_tick();
            return Ok(entry.revision);
        }
        let struck = Struck { kind: RevocationKind::Everything, id: "everything", until: None, by, reason };
        let mut writes = Writes::default();
        let revision = self.strike(&mut state, &mut writes, &struck)?;
        self.store(&writes);
        Ok(revision)
    }

    // Enabling: takes two people.

    /// One person asks for something that enables.
    ///
    /// # Errors
    /// When there is nothing to enable, or it cannot be stored.
    pub fn propose(&self, action: &str, target: &str, proposer: &str) -> Result<Proposal, ControlError> {
        let mut state = self.state();
        let proposal = Proposal {
            id: keys::to_hex(&random::<8>()?),
            action: action.to_owned(),
            target: target.to_owned(),
            proposer: proposer.to_owned(),
            revision: state.revocations.head(),
            expires: unix_ms() / 1_000 + 1_800,
            done: false,
        };
        match action {
            "reinstate_agent" => {
                let known = target.parse().ok().and_then(|id| state.registry.get(&id));
                if !known.is_some_and(|member| member.quarantined) {
                    return Err(refused("not_quarantined", format!("{target} is no quarantined agent")));
                }
            }
            "clear_kill" if state.schedule.halted() == Some(KILLED) || self.kill_latch.exists() => {}
            "clear_kill" => return Err(refused("not_killed", "nothing is stopped")),
            _ => {
                return Err(refused("no_such_action", "only reinstate_agent and clear_kill take two people"));
            }
        }
        let mut writes = Writes::default();
        writes.put(Table::Proposals, &proposal.id, &proposal)?;
        self.store(&writes);
        state.proposals.insert(proposal.id.clone(), proposal.clone());
        Ok(proposal)
    }

    /// A proposal that can still be approved.
    #[must_use]
    pub fn open_proposal(&self, id: &str) -> Option<Proposal> {
        let now = unix_ms() / 1_000;
        self.state().proposals.get(id).filter(|proposal| !proposal.done && proposal.expires > now).cloned()
    }

    /// A second person approves; policy has already made sure that it is a second one.
    ///
    /// # Errors
    /// When the proposal is gone, or cannot be carried out.
    pub fn approve(&self, id: &str, approver: &str) -> Result<Proposal, ControlError> {
        let mut state = self.state();
        let now = unix_ms() / 1_000;
        let open = state.proposals.get(id).filter(|proposal| !proposal.done && proposal.expires > now);
        let Some(mut proposal) = open.cloned() else {
            return Err(refused(
                "no_such_proposal",
                "the proposal is unknown, done or older than 30 minutes",
            ));
        };
        if proposal.proposer == approver {
            return Err(refused("same_person", "nobody approves their own proposal"));
        }
        if state.revocations.entries().iter().any(|entry| proposal.is_overtaken_by(entry)) {
            return Err(refused(
                "overtaken",
                "it was revoked again since the proposal was made: propose anew",
            ));
        }
        // The sentinel closes its incidents of a subject when two people enable exactly that subject.
        let what = match proposal.action.as_str() {
            "reinstate_agent" => proposal.target.clone(),
            action => action.to_owned(),
        };
        self.journal.record_durably(&Record::Enabled {
            what,
            asked_by: proposal.proposer.clone(),
            approved_by: approver.into(),
        })?;
        let mut writes = Writes::default();
        match proposal.action.as_str() {
            "reinstate_agent" => {
                let member = proposal.target.parse().ok().and_then(|id| state.registry.get(&id).cloned());
                if let Some(mut member) = member {
                    member.quarantined = false;
                    put_member(&mut state, &mut writes, member)?;
                }
                for incident in state.incidents.values_mut() {
                    if incident.open && incident.subject == proposal.target {
                        incident.open = false;
                        writes.put(Table::Incidents, &incident.id, incident)?;
                    }
                }
            }
            _ => {
                let cleared = proposal.revision.to_string();
                let struck = Struck {
                    kind: RevocationKind::Clearance,
                    id: &cleared,
                    until: None,
                    by: approver,
                    reason: "cleared by two people",
                };
                self.strike(&mut state, &mut writes, &struck)?;
            }
        }
        proposal.done = true;
        writes.put(Table::Proposals, &proposal.id, &proposal)?;
        self.store(&writes);
        if proposal.action == "clear_kill" {
            let _ = std::fs::remove_file(&self.kill_latch);
            state.schedule.resume();
        }
        state.proposals.insert(proposal.id.clone(), proposal.clone());
        drop(state);
        self.queue_tick();
        Ok(proposal)
    }

    // Identity.

    /// Makes a ticket. Nobody gets one who is quarantined.
    ///
    /// # Errors
    /// When the id is quarantined or of no class that enrols.
    pub fn create_ticket(&self, id: &SpiffeId) -> Result<identity::Ticket, ControlError> {
        let mut state = self.state();
        if state.registry.get(id).is_some_and(|member| member.quarantined) {
            return Err(refused("quarantined", format!("{id} gets no ticket until two people reinstate it")));
        }
        // Journals and the sentinel go by these names: an agent that could call itself otherwise would be taken for another.
        let fits = match PeerClass::of(id) {
            None | Some(PeerClass::Management | PeerClass::Operators) => false,
            Some(PeerClass::Agents) => id.name().starts_with("agent-"),
            Some(_) => true,
        };
        if !fits {
            return Err(refused("wrong_name", "tickets are for units, the desk and agents named agent-…"));
        }
        let secret = random::<32>()?;
        let now = unix_ms() / 1_000;
        state
            .tickets
            .create(id, &secret, now, identity::ticket::TICKET_TTL_S)
            .map_err(|error| refused("no_ticket", error.to_string()))?;
        let mut writes = Writes::default();
        writes.put(Table::Tickets, "book", &state.tickets)?;
        self.store(&writes);
        Ok(identity::Ticket::new(secret, self.authorities.root))
    }

    /// Redeems a ticket for a certificate.
    ///
    /// # Errors
    /// When the ticket is not good for that id; outside, every refusal looks the same.
    pub fn enrol(
        &self,
        secret: &[u8; 32],
        id: &SpiffeId,
        spki: &[u8],
        ttl_s: i64,
    ) -> Result<Vec<u8>, ControlError> {
        let mut state = self.state();
        let now = unix_ms() / 1_000;
        let redeemed = state.tickets.redeem(secret, id, now);
        let mut writes = Writes::default();
        writes.put(Table::Tickets, "book", &state.tickets)?;
        // Used is used, whatever comes of it.
        self.store(&writes);
        let quarantined = state.registry.get(id).is_some_and(|member| member.quarantined);
        let entry = match redeemed {
            Ok(entry) if !quarantined => entry,
            Ok(_) => return self.refuse_enrolment("quarantined"),
            Err(refusal) => return self.refuse_enrolment(refusal.as_str()),
        };
        let Some(authority) = self.authorities.classes.get(&entry.class) else {
            return self.refuse_enrolment("no_authority");
        };
        let epoch = state.registry.next_epoch(id);
        let certificate = authority
            .issue(spki, id, epoch, now, ttl_s, random::<16>()?)
            .map_err(|error| refused("enrolment_refused", error.to_string()))?;
        let key = keys::Digest::of(spki).to_string();
        let member = Member {
            id: id.clone(),
            epoch,
            key: key.clone(),
            expires: now + ttl_s,
            revoked_through: state.registry.get(id).and_then(|member| member.revoked_through),
            quarantined: false,
        };
        self.journal.record_durably(&Record::Enrolled {
            id: id.to_string(),
            epoch,
            key,
            expires: now + ttl_s,
        })?;
        let mut writes = Writes::default();
        put_member(&mut state, &mut writes, member)?;
        self.store(&writes);
        Ok(certificate)
    }

    fn refuse_enrolment<T>(&self, reason: &str) -> Result<T, ControlError> {
        self.journal.record_durably(&Record::EnrolmentRefused { reason: reason.into() })?;
        Err(refused("enrolment_refused", "the ticket is not good for this identity"))
    }

    // Incidents.

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
        self.store(&writes);
        self.state().incidents.insert(incident.id.clone(), incident);
        Ok(())
    }
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
