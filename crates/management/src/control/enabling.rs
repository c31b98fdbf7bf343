//! Enabling: takes two people.

use access::vocabulary::RevocationKind;
use audit::record::Record;
use wire::journal::unix_ms;

use super::{Control, ControlError, KILLED, Struck, put_member, random, refused};
use crate::cases::{Approval, NO_SUCH_PROPOSAL, OWN_PROPOSAL, Proposal};
use crate::database::{Table, Writes};

impl Control {
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
        self.store(writes);
        state.proposals.insert(proposal.id.clone(), proposal.clone());
        Ok(proposal)
    }

    /// A proposal that can still be approved.
    #[must_use]
    pub fn open_proposal(&self, id: &str) -> Option<Proposal> {
        let now = unix_ms() / 1_000;
        self.state().proposals.get(id).filter(|proposal| proposal.is_open(now)).cloned()
    }

    /// A second person approves exactly what was proposed; policy has already made sure that it is a second one.
    ///
    /// # Errors
    /// When the proposal is gone, is another than the approver names, or cannot be carried out.
    pub fn approve(&self, approval: &Approval, approver: &str) -> Result<Proposal, ControlError> {
        let mut state = self.state();
        let now = unix_ms() / 1_000;
        let open = state.proposals.get(&approval.proposal).filter(|proposal| proposal.is_open(now));
        let Some(mut proposal) = open.cloned() else {
            return Err(refused(NO_SUCH_PROPOSAL.0, NO_SUCH_PROPOSAL.1));
        };
        if proposal.proposer == approver {
            return Err(refused("same_person", OWN_PROPOSAL));
        }
        if proposal.approval() != *approval {
            let Proposal { id, action, target, .. } = &proposal;
            return Err(refused(
                "not_what_was_proposed",
                format!("proposal {id} is to {action} {target}; nothing was done"),
            ));
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
        self.store(writes);
        if proposal.action == "clear_kill" {
            let _ = std::fs::remove_file(&self.kill_latch);
            state.schedule.resume();
        }
        state.proposals.insert(proposal.id.clone(), proposal.clone());
        drop(state);
        self.queue_tick();
        Ok(proposal)
    }
}
