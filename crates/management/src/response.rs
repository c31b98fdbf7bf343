//! The sentinel at its post: it sees every record that joins the log, and its playbooks are carried out.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use audit::record::Record;
use identity::{Bundle, SpiffeId};
use keys::VerifyingKey;
use sandbox::release::SignedManifest;
use sentinel::{Finding, Playbooks, Sentinel, Step};
use wire::journal::unix_ms;
use wire::layout::{Layout, read_json};

use crate::cases::Incident;
use crate::control::{Control, ControlError};

/// The modules that the release keys let run, read from the signed manifest whenever an unknown one is started.
pub struct ApprovedModules {
    manifest: PathBuf,
    keys: Vec<VerifyingKey>,
    threshold: usize,
    known: BTreeSet<String>,
    /// Where the digests that were ever approved are kept: what ran before is judged by the release that it ran under, also
    /// when today's manifest is not to be believed.
    kept: PathBuf,
}

impl ApprovedModules {
    /// The manifest of a state directory, with the release keys of its trust bundle.
    #[must_use]
    pub fn new(layout: &Layout, bundle: &Bundle) -> Self {
        let keys = bundle.release_keys.iter().filter_map(|key| VerifyingKey::from_hex(key).ok()).collect();
        let threshold = bundle.release_threshold as usize;
        let kept = layout.process("management").join("approved-modules.json");
        let known = read_json(&kept).unwrap_or_default();
        Self { manifest: layout.modules().join("manifest.json"), keys, threshold, known, kept }
    }

    /// Digests that are approved now and were not known before; none when the manifest is not properly signed.
    fn news(&mut self) -> Vec<String> {
        let signed = read_json::<SignedManifest>(&self.manifest).ok();
        let Some(Ok(release)) = signed.map(|signed| signed.verify(&self.keys, self.threshold, 0)) else {
            return Vec::new();
        };
        let new: Vec<String> = release
            .digests()
            .filter(|digest| self.known.insert((*digest).to_owned()))
            .map(str::to_owned)
            .collect();
        let kept = serde_json::to_vec(&self.known).unwrap_or_default();
        if let Err(error) = wire::files::write_private_atomic(&self.kept, &kept) {
            tracing::error!(%error, "the digests of approved modules could not be kept");
        }
        new
    }
}

/// The sentinel with its playbooks.
pub struct Watch {
    sentinel: Sentinel,
    playbooks: Playbooks,
    modules: ApprovedModules,
    /// Findings from before a restart to which no incident was recorded.
    unanswered: BTreeMap<String, Finding>,
}

impl Watch {
    /// Puts the sentinel at its post.
    #[must_use]
    pub fn new(mut sentinel: Sentinel, playbooks: Playbooks, modules: ApprovedModules) -> Self {
        modules.known.iter().for_each(|digest| sentinel.approve_module(digest));
        Self { sentinel, playbooks, modules, unanswered: BTreeMap::new() }
    }

    /// Lets the sentinel know of a release before it judges a module's start by it.
    fn learn_release(&mut self, record: &Record) {
        if let Record::ModuleStarted { digest, .. } = record
            && !self.modules.known.contains(digest)
        {
            for digest in self.modules.news() {
                self.sentinel.approve_module(&digest);
            }
        }
    }

    /// Lets the sentinel see a record from before a restart: it learns. What it finds was answered then, unless management
    /// died between the finding and the answer.
    pub fn remember(&mut self, at_ms: i64, process: &str, record: &Record) {
        self.learn_release(record);
        for finding in self.sentinel.observe(at_ms, process, record) {
            self.unanswered.insert(finding.incident.clone(), finding);
        }
        if let Record::IncidentOpened { incident, .. } = record {
            self.unanswered.remove(incident);
        }
    }

    /// Answers what was found before a restart and never answered.
    pub fn catch_up(&mut self, control: &Control) {
        for (_, finding) in std::mem::take(&mut self.unanswered) {
            let steps = self.playbooks.respond(unix_ms(), &finding);
            carry_out(control, &finding, &steps);
        }
    }

    /// Lets the sentinel see a new record, and carries out what the playbooks say about its findings.
    pub fn observe(&mut self, control: &Control, process: &str, record: &Record) {
        self.learn_release(record);
        // By the time of arrival: what a process says of the time could hide a burst.
        let now = unix_ms();
        for finding in self.sentinel.observe(now, process, record) {
            let steps = self.playbooks.respond(now, &finding);
            carry_out(control, &finding, &steps);
        }
    }
}

/// Takes the playbook's steps in their order, then keeps the incident. A step that fails is said, and the others are taken
/// all the same: stopping is never made to wait for bookkeeping.
fn carry_out(control: &Control, finding: &Finding, steps: &[Step]) {
    tracing::warn!(rule = %finding.rule, subject = %finding.subject, seen = %finding.seen, "the sentinel found an anomaly");
    let reason = format!("incident {} ({}): {}", finding.incident, finding.rule, finding.seen);
    for step in steps {
        let result = match step {
            Step::RevokeAgent | Step::QuarantineAgent => quarantine(control, &finding.subject, &reason),
            Step::CancelTask => finding
                .task
                .as_deref()
                .map_or(Ok(()), |task| control.cancel_task(task, &finding.subject, &reason)),
            Step::Notify => Ok(()),
        };
        if let Err(error) = result {
            tracing::error!(%error, ?step, "a playbook step failed");
        }
    }
    let incident = Incident {
        id: finding.incident.clone(),
        rule: finding.rule.to_string(),
        subject: finding.subject.clone(),
        expected: finding.expected.clone(),
        seen: finding.seen.clone(),
        response: steps.iter().map(|step| step.as_str().to_owned()).collect(),
        opened_ms: unix_ms(),
        open: true,
    };
    if let Err(error) = control.open_incident(incident) {
        tracing::error!(%error, "an incident could not be kept");
    }
}

/// Revoking an agent quarantines it as well, and doing it twice is doing it once. A subject that is no agent, such as the
/// desk itself, cannot be quarantined: then everything is stopped, since nobody else sends orders.
fn quarantine(control: &Control, subject: &str, reason: &str) -> Result<(), ControlError> {
    let Ok(agent) = subject.parse::<SpiffeId>() else { return control.kill("sentinel", reason).map(|_| ()) };
    let already = control.state().registry.get(&agent).is_none_or(|member| member.quarantined);
    if already { Ok(()) } else { control.revoke_agent(&agent, "sentinel", reason).map(|_| ()) }
}
