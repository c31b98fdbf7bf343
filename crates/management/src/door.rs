//! Management's own door: standing permissions for members, rights for operators, both by policy.

use std::sync::Arc;

use access::policy::{OperatorQuery, PolicyDecision, StandingAction};
use identity::PeerClass;
use wire::guard::{Ask, Door, Needs, Verdict};
use wire::journal::unix_ms;

use crate::control::Control;
use crate::registry::Stranger;

/// The door.
pub struct ControlDoor {
    control: Arc<Control>,
}

impl ControlDoor {
    /// The door to a control plane.
    #[must_use]
    pub fn new(control: Arc<Control>) -> Self {
        Self { control }
    }

    fn standing(&self, ask: &Ask<'_>, action: StandingAction, offered: bool) -> Verdict {
        let now = unix_ms() / 1_000;
        let state = self.control.state();
        let identified = match offered {
            true => state.registry.identify_offered(ask.peer),
            false => state.registry.identify(ask.peer, now),
        };
        match identified.map(drop) {
            Ok(()) => {}
            // Who was revoked may still say what it did: evidence is not cut off with the rest. Reporting changes nothing
            // but the log.
            Err(Stranger::Revoked) if action == StandingAction::ReportStatus => {}
            Err(stranger) => return deny(stranger.as_str(), "no current identity of this name"),
        }
        drop(state);
        let id = ask.peer.id.to_string();
        verdict(&self.control.policy.standing(&id, ask.peer.class.as_str(), action))
    }

    fn secret(&self, ask: &Ask<'_>) -> Verdict {
        let identified = self.control.state().registry.identify(ask.peer, unix_ms() / 1_000).map(drop);
        match identified {
            Ok(()) => verdict(&self.control.may_open_secret(ask.peer, &ask.touched.target)),
            Err(stranger) => deny(stranger.as_str(), "no current identity of this name"),
        }
    }
}

impl Door for ControlDoor {
    fn decide(&self, ask: &Ask<'_>) -> Verdict {
        match ask.needs {
            Needs::Standing(action) => self.standing(ask, action, false),
            Needs::Proof(action) => self.standing(ask, action, true),
            Needs::Secret => self.secret(ask),
            // The listener takes operators only; a right of theirs is no reason to rely on that.
            Needs::Operator(_) if ask.peer.class != PeerClass::Operators => {
                deny("not_permitted", "only operators may")
            }
            Needs::Operator(_) if self.control.meet(ask.peer).is_err() => {
                deny("journal_failed", "what was issued could not be recorded")
            }
            Needs::Operator(action) => verdict(&self.control.policy.operator(OperatorQuery {
                operator: ask.peer.id.as_str(),
                action,
                target: &ask.touched.target,
                proposer: ask.touched.proposer.as_deref(),
            })),
            Needs::Grant(_) => deny("no_such_right", "management serves no grants"),
        }
    }
}

fn verdict(decision: &PolicyDecision) -> Verdict {
    if decision.allowed {
        Verdict::Allow { permit: None, reason: decision.policies.join(",") }
    } else {
        deny(&decision.reason, &decision.policies.join(","))
    }
}

fn deny(code: &str, detail: &str) -> Verdict {
    Verdict::Deny { code: code.into(), detail: detail.into(), retryable: false, grant: None }
}
