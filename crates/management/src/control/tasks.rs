//! Who does which task, and with which grants.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use access::policy::GrantQuery;
use access::vocabulary::{Claims, MarketDay};
use audit::record::Record;
use identity::PeerClass;
use wire::api::{GrantForHolder, QueueReply, Task, TaskEnd};
use wire::journal::unix_ms;
use wire::tls::Peer;

use super::{Control, ControlError, SCHEDULER, Struck, put_progress, random, refused};
use crate::database::Writes;
use crate::needs::{self, GRANT_LIFETIME_S, Need};
use crate::schedule::{Schedule, TASK_LEASE_MS, Taker, reason_of};
use crate::state::State;

/// Why a task goes to another when its holder never came back.
const HELD_TOO_LONG: &str = "held too long";

impl Control {
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
                self.settle();
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
        let member = state
            .registry
            .identify(peer, unix_ms() / 1_000)
            .map_err(|why| refused(why.as_str(), "no current identity"))?;
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
        let now = unix_ms();
        let why = "asked for another task";
        self.record_lost(&mut state, |schedule| schedule.release(&holder, now, why), why)?;
        self.record_lost(&mut state, |schedule| schedule.expire(now, HELD_TOO_LONG), HELD_TOO_LONG)?;
        if let Some(at) = state.not_before.filter(|at| *at > Instant::now()) {
            return Ok((QueueReply::default(), Some(at)));
        }
        let Some(id) = state.schedule.next_for(taker, now).map(|task| task.id.clone()) else {
            let pause = state.schedule.pause_for(taker, now).and_then(|pause| u64::try_from(pause).ok());
            return Ok((
                QueueReply::default(),
                pause.map(|pause| Instant::now() + Duration::from_millis(pause)),
            ));
        };
        let handed = self.hand_out(&mut state, &id, peer);
        if handed.is_err() {
            // The device with the keys is gone, say: nobody is to blame, and the task waits for its return.
            state.schedule.untake(&id, &holder);
        }
        handed.map(|reply| (reply, None))
    }

    /// Gives one task to one holder, with the grants that policy allows. Kept, not settled.
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
        self.keep(writes);
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
            self.journal.record(&Record::GrantDenied {
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
        let signed = access::grant::mint(&claims, self.authorities().grant_key.as_ref())?;
        let actions: Vec<String> = claims.actions.iter().map(ToString::to_string).collect();
        self.journal.record(&Record::GrantIssued {
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
        self.journal.record(&Record::TaskEnded {
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
        } else if let Some(lost) =
            state.schedule.give_back(&end.task, &holder, end.attempt, (unix_ms(), &reason_of(&end.detail)))
        {
            self.strike_grants(&mut state, &mut writes, &lost)?;
        }
        put_progress(&state, &mut writes)?;
        self.store(writes);
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

    pub(super) fn record_lost(
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
            self.store(writes);
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
        let now = unix_ms();
        self.record_lost(&mut state, |schedule| schedule.expire(now, HELD_TOO_LONG), HELD_TOO_LONG)
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
        self.store(writes);
        drop(state);
        self.queue_tick();
        Ok(())
    }
}
