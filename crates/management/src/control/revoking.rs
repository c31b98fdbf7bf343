//! Stopping: takes one person, and is proven.

use std::time::{Duration, Instant};

use access::revocation::FeedReply;
use access::vocabulary::{Revocation, RevocationKind};
use audit::record::Record;
use identity::SpiffeId;
use wire::journal::unix_ms;

use super::{Control, ControlError, KILLED, PROOF_WAIT, Struck, put_member, put_revocation, refused};
use crate::cases::RevocationProof;
use crate::database::{Table, Writes};
use crate::state::State;

/// How an identity ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// Until two people reinstate it.
    Quarantined,
    /// For good.
    Removed,
}

impl Control {
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

    /// Strikes something: recorded here, on the disk with the rest of the decision, before any guard hears of it.
    pub(super) fn strike(
        &self,
        state: &mut State,
        writes: &mut Writes,
        struck: &Struck<'_>,
    ) -> Result<u64, ControlError> {
        let entry: Revocation = state.revocations.append(struck.kind, struck.id, struck.until)?;
        let recorded = self.journal.record(&Record::Revoked {
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
    /// When no such grant was ever issued, or it cannot be recorded.
    pub fn revoke_grant(&self, grant: &str, by: &str, reason: &str) -> Result<u64, ControlError> {
        let mut state = self.state();
        // The log knows every grant, also those from before a restart; those of the moment may not have reached it yet.
        let is_of_now = || state.schedule.tasks().any(|task| task.grants.iter().any(|id| id == grant));
        if !self.projection().was_issued(grant) && !is_of_now() {
            return Err(refused(
                "no_such_grant",
                "no grant with this identifier was ever issued; `trader grant list` shows the latest",
            ));
        }
        let mut writes = Writes::default();
        let revision = self.strike(&mut state, &mut writes, &Struck::grant(grant, by, reason))?;
        self.store(writes);
        Ok(revision)
    }

    /// Revokes an agent's identity, cuts its connections, gives its tasks to others and withholds new ones.
    ///
    /// # Errors
    /// When nobody of that name enrolled, or it cannot be recorded.
    pub fn revoke_agent(&self, agent: &SpiffeId, by: &str, reason: &str) -> Result<u64, ControlError> {
        self.end_identity(agent, by, reason, End::Quarantined)
    }

    /// Revokes the epoch of an identity, and withholds the next.
    pub(super) fn end_identity(
        &self,
        agent: &SpiffeId,
        by: &str,
        reason: &str,
        end: End,
    ) -> Result<u64, ControlError> {
        let mut state = self.state();
        let Some(mut member) = state.registry.get(agent).cloned() else {
            return Err(refused("no_such_agent", format!("nobody enrolled as {agent}")));
        };
        if end == End::Removed && member.removed && member.is_revoked() {
            return Err(refused("removed", format!("{agent} is removed already")));
        }
        let epoch = member.keys.epoch();
        let struck = format!("{agent}#{epoch}");
        let struck = Struck { kind: RevocationKind::Agent, id: &struck, until: None, by, reason };
        let mut writes = Writes::default();
        let revision = self.strike(&mut state, &mut writes, &struck)?;
        member.revoked_through = Some(epoch);
        match end {
            End::Quarantined => {
                member.quarantined = true;
                let record = Record::Quarantined { agent: agent.to_string(), reason: reason.into() };
                self.journal.record_durably(&record)?;
            }
            // A quarantine stays: removing must not be a way round the two people.
            End::Removed => {
                member.removed = true;
                let (id, by, reason) = (agent.to_string(), by.to_owned(), reason.to_owned());
                self.journal.record_durably(&Record::Removed { id, by, reason })?;
                state.entries.void(agent);
                writes.put(Table::Tickets, "book", &state.entries)?;
            }
        }
        put_member(&mut state, &mut writes, member)?;
        self.store(writes);
        let holder = agent.to_string();
        let now = unix_ms();
        self.record_lost(&mut state, |schedule| schedule.release(&holder, now, reason), reason)?;
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
        self.store(writes);
        Ok(revision)
    }
}
