//! The sentinel itself: one record in, findings out.
//!
//! Owns who may say what. A record counts against somebody only if its process is entitled to say so: guards
//! and the desk on requests and orders, management on enrolments and incidents, an agent's process on itself
//! alone. Otherwise one compromised agent could have another quarantined by journalling lies. One incident
//! per rule and subject is open at a time; a module's violations are told apart by their tasks, since each task
//! has to be taken off the run.
//!
//! INVARIANT: the same records in the same order give the same findings, so a restarted sentinel that is
//! shown the log again stands where it stood. The records of incidents and reinstatements in the log open and
//! close what they opened and closed then.

use std::collections::{BTreeMap, BTreeSet};

use audit::record::Record;

use crate::certified::Certified;
use crate::clock::{Clocks, Moment};
use crate::config::Config;
use crate::finding::{Finding, Rule};
use crate::orders::{Decided, Orders, Wrong};
use crate::refusals::Recent;
use crate::sizes::{Rate, Sizes};

/// The most portfolios of one agent that have a statistic of their own; the rest share one.
const PORTFOLIOS_MAX: usize = 64;

/// The most authorities of which one record is believed to speak.
const CLASSES_MAX: usize = 16;

/// The most incidents that are open on one subject at a time before its modules' violations open no more.
const OPEN_MAX: usize = 1024;

/// What is known of one subject.
#[derive(Debug, Default)]
struct Subject {
    /// Number of the record that last concerned it.
    heard: u64,
    refusals: Recent,
    forgeries: Recent,
    habits: BTreeMap<String, Habit>,
    /// The incident that is open, by rule, and by task where the rule is about a module's violation.
    open: BTreeMap<(Rule, String), String>,
}

#[derive(Debug, Default)]
struct Habit {
    sizes: Sizes,
    rate: Rate,
}

/// Watches the stream of decisions.
#[derive(Debug)]
pub struct Sentinel {
    config: Config,
    clocks: Clocks,
    subjects: BTreeMap<String, Subject>,
    orders: Orders,
    /// The orders of all agents together, by portfolio: what an agent is measured by until it has a habit of
    /// its own.
    pools: BTreeMap<String, Sizes>,
    modules: BTreeSet<String>,
    /// SPIFFE ID of each agent's process.
    names: BTreeMap<String, String>,
    /// What seals the root key of each store of keys.
    seals: BTreeMap<String, String>,
    /// Keys that the log says were certified.
    certified: Certified,
    records: u64,
    incidents: u64,
}

impl Sentinel {
    /// A sentinel that has seen nothing and approves of no module; see [`Sentinel::approve_module`].
    #[must_use]
    pub fn new(config: Config) -> Self {
        Self {
            config,
            clocks: Clocks::default(),
            subjects: BTreeMap::new(),
            orders: Orders::default(),
            pools: BTreeMap::new(),
            modules: BTreeSet::new(),
            names: BTreeMap::new(),
            seals: BTreeMap::new(),
            certified: Certified::default(),
            records: 0,
            incidents: 0,
        }
    }

    /// Approves of a module, by the SHA-256 of its bytes in lower-case hexadecimal.
    pub fn approve_module(&mut self, digest: &str) {
        self.modules.insert(digest.to_owned());
    }

    /// Takes one record of a process, with the time in milliseconds since the Unix epoch, and answers what it
    /// reveals. `process` must be the one whose journal the record comes from. The time is best the one at
    /// which the record arrived; the process's own may lie.
    pub fn observe(&mut self, at_ms: i64, process: &str, record: &Record) -> Vec<Finding> {
        self.records = self.records.saturating_add(1);
        let now = self.clocks.tell(process, at_ms);
        if process.starts_with(&self.config.agent_processes) {
            return self.observe_agent(process, record).into_iter().collect();
        }
        if process == self.config.authority {
            self.learn_key(record);
        }
        match record {
            Record::Decision { allowed, peer, key, reason, task, .. } => {
                let unlogged = self.shown(peer, key, task.as_deref());
                let refused = if *allowed { None } else { self.refused(now, peer, reason, task.as_deref()) };
                unlogged.into_iter().chain(refused).collect()
            }
            Record::OperatorAction { operator, key, .. } if process == self.config.authority => {
                self.shown(operator, key, None).into_iter().collect()
            }
            Record::HandshakesRefused { listener, signed_by, .. } => self.signed_outside(listener, signed_by),
            Record::OrderDecided { .. } => self.order_decided(record),
            Record::OrderSent { order } => {
                let outcome = self.orders.sent(order);
                self.order_wrong(process, outcome).into_iter().collect()
            }
            Record::OrderFilled { order, fill, quantity, price, .. } => {
                let outcome = self.orders.filled(order, fill, *quantity, *price, &self.config.overfill);
                self.order_wrong(process, outcome).into_iter().collect()
            }
            Record::ModuleStarted { .. } | Record::ModuleEnded { .. } => {
                self.observe_agent(process, record).into_iter().collect()
            }
            Record::Enrolled { id, .. } if process == self.config.authority => {
                self.learn_name(id);
                Vec::new()
            }
            Record::IncidentOpened { incident, rule, subject, .. } if process == self.config.authority => {
                self.reopen(incident, rule, subject);
                Vec::new()
            }
            Record::SecretReopened { secret, peer, reason, .. } if process == self.config.authority => {
                let expected = "each stored secret opened once for the same".to_owned();
                let seen = format!("{secret} asked for again, for {reason}");
                self.open_incident(Rule::SecretReopened, peer, None, expected, seen).into_iter().collect()
            }
            Record::KeyStoreOpened { store, seal: Some(seal) } if process == self.config.authority => {
                self.store_opened(store, seal).into_iter().collect()
            }
            Record::Enabled { what, .. } if process == self.config.authority => {
                self.close_all(what);
                Vec::new()
            }
            _ => Vec::new(),
        }
    }

    /// What a process that runs an agent may say: what its own modules did.
    fn observe_agent(&mut self, process: &str, record: &Record) -> Option<Finding> {
        let (rule, task, expected, seen) = match record {
            Record::ModuleStarted { task, module, digest } if !self.modules.contains(digest) => (
                Rule::ModuleNotApproved,
                task,
                "a module whose digest is approved".to_owned(),
                format!("{module} with the digest {digest}"),
            ),
            Record::ModuleEnded { task, module, outcome, violation: true } => {
                (Rule::ModuleViolation, task, format!("{module} within its cell"), outcome.clone())
            }
            _ => return None,
        };
        let subject = self.names.get(process).cloned().unwrap_or_else(|| process.to_owned());
        self.open_incident(rule, &subject, Some(task), expected, seen)
    }

    /// The first seal of a store is taken as it is; another one later means that somebody brought its root key back without
    /// its passphrase, or changed the passphrase.
    fn store_opened(&mut self, store: &str, seal: &str) -> Option<Finding> {
        let known = self.seals.get(store).cloned();
        if known.is_some() || self.seals.len() < self.config.subjects_max {
            self.seals.insert(store.to_owned(), seal.to_owned());
        }
        let known = known.filter(|known| known != seal)?;
        let short = |seal: &str| seal.get(..16).unwrap_or(seal).to_owned();
        let (expected, seen) = (format!("sealed as {}", short(&known)), format!("sealed as {}", short(seal)));
        self.open_incident(Rule::KeyStoreResealed, &format!("store {store}"), None, expected, seen)
    }

    /// Learns which keys are certified, and for whom: management says so before the key can be used.
    fn learn_key(&mut self, record: &Record) {
        match record {
            Record::KeysCertified { id, keys, .. } | Record::KeysRotated { id, keys, .. } => {
                if let Some(key) = keys.get("tls") {
                    self.certified.note(key, id);
                }
            }
            Record::Enrolled { id, key, .. } | Record::CertificateIssued { id, key, .. } => {
                self.certified.note(key, id);
            }
            _ => {}
        }
    }

    /// Somebody came with a certificate. Lines of older versions do not say with which.
    fn shown(&mut self, peer: &str, key: &str, task: Option<&str>) -> Option<Finding> {
        if key.is_empty() || self.certified.knows(key, peer) {
            return None;
        }
        let expected = "a certificate whose issue is in the log".to_owned();
        let seen = format!("one of the key {}", key.chars().take(16).collect::<String>());
        self.open_incident(Rule::UnloggedCertificate, peer, task, expected, seen)
    }

    /// Authorities signed what they may not. No more than there are classes are told.
    fn signed_outside(&mut self, listener: &str, signed_by: &[String]) -> Vec<Finding> {
        let expected = "certificates of its own class and installation".to_owned();
        let of = |class: &String| {
            let subject = format!("authority/{class}");
            let seen = format!("another, shown at {listener}");
            self.open_incident(Rule::RogueAuthority, &subject, None, expected.clone(), seen)
        };
        signed_by.iter().take(CLASSES_MAX).filter_map(of).collect()
    }

    fn refused(&mut self, now: Moment, peer: &str, reason: &str, task: Option<&str>) -> Option<Finding> {
        let (burst, forged) = (self.config.refusals.clone(), self.config.forgeries.clone());
        if burst.retryable.contains(reason) {
            return None;
        }
        if self.config.stolen_keys.reasons.contains(reason) {
            let expected = "the keys that are in use; those before them were destroyed".to_owned();
            let finding = self.open_incident(Rule::RetiredKey, peer, task, expected, reason.to_owned());
            if finding.is_some() {
                return finding;
            }
        }
        if self.config.over_limit.reasons.contains(reason) {
            let expected = "orders within the limits of its grant".to_owned();
            let finding = self.open_incident(Rule::OverLimit, peer, task, expected, reason.to_owned());
            if finding.is_some() {
                return finding;
            }
        }
        let subject = self.subject(peer);
        let refusals = subject.refusals.note(now, burst.most, burst.window_ms);
        let is_forgery = forged.reasons.contains(reason);
        let forgeries =
            if is_forgery { subject.forgeries.note(now, forged.most, forged.window_ms) } else { 0 };
        // The worse of the two is told when both come true at once; either alone brings the agent down.
        if forgeries > forged.most {
            let expected = format!(
                "at most {} grants in {} ms that are not its own or not genuine",
                forged.most, forged.window_ms
            );
            let finding = self.open_incident(
                Rule::ForgedGrant,
                peer,
                task,
                expected,
                format!("{forgeries}, the last {reason}"),
            );
            if finding.is_some() {
                return finding;
            }
        }
        if refusals > burst.most {
            let expected = format!("at most {} refusals in {} ms", burst.most, burst.window_ms);
            let seen = format!("{refusals}, the last {reason}");
            return self.open_incident(Rule::RefusalBurst, peer, task, expected, seen);
        }
        None
    }

    #[expect(clippy::cast_precision_loss, reason = "a fraction is compared with a multiple of a median")]
    fn order_decided(&mut self, record: &Record) -> Vec<Finding> {
        let Record::OrderDecided {
            order,
            portfolio,
            quantity,
            price,
            market_day,
            task,
            agent,
            approved,
            equity,
            ..
        } = record
        else {
            return Vec::new();
        };
        let (quantity, price, approved) = (*quantity, *price, *approved);
        let decided = Decided { order, agent, task, quantity, price, approved };
        if !self.orders.decided(decided, self.config.orders_max) {
            return Vec::new();
        }
        let notional = i128::from(quantity.max(0)) * i128::from(price.max(0));
        // Nothing is left of an equity below zero: any order then is out of all proportion.
        let fraction = notional as f64 / (*equity).max(1) as f64;
        let (size, rate) = (self.config.order_size.clone(), self.config.order_rate.clone());
        let pool = self.pool(portfolio).clone();
        let frozen = self.subject(agent).open.keys().any(|(rule, _)| *rule == Rule::OrderSize);
        let habit = self.habit(agent, portfolio);
        let too_many = habit.rate.count(market_day, &rate);
        let measure = if habit.sizes.knows_enough(&size) { &habit.sizes } else { &pool };
        let too_large = measure.judge(fraction, &size);
        if approved && too_large.is_none() && !frozen && fraction > 0.0 {
            habit.sizes.learn(fraction, &size);
            self.pool(portfolio).learn(fraction, &size);
        }
        let mut findings = Vec::new();
        for (rule, contrast) in [(Rule::OrderSize, too_large), (Rule::OrderRate, too_many)] {
            if let Some((expected, seen)) = contrast {
                let seen = format!("{seen} in {portfolio}, the last {order}");
                findings.extend(self.open_incident(rule, agent, Some(task), expected, seen));
            }
        }
        findings
    }

    fn order_wrong(&mut self, process: &str, outcome: Result<(), Wrong>) -> Option<Finding> {
        let Err(Wrong { rule, agent, task, expected, seen }) = outcome else { return None };
        let subject = agent.unwrap_or_else(|| process.to_owned());
        self.open_incident(rule, &subject, task.as_deref(), expected, seen)
    }

    /// Opens an incident, unless the same is open already.
    fn open_incident(
        &mut self,
        rule: Rule,
        subject: &str,
        task: Option<&str>,
        expected: String,
        seen: String,
    ) -> Option<Finding> {
        let incident = format!("incident-{}", self.incidents.saturating_add(1));
        let of_module = rule == Rule::ModuleViolation;
        let key = (rule, if of_module { task.unwrap_or_default() } else { "" }.to_owned());
        let open = &mut self.subject(subject).open;
        // Only what an agent can have as many of as it likes is bounded: no other rule is ever silenced by it.
        if open.contains_key(&key) || (of_module && open.len() >= OPEN_MAX) {
            return None;
        }
        open.insert(key, incident.clone());
        self.incidents = self.incidents.saturating_add(1);
        let (subject, task) = (subject.to_owned(), task.map(str::to_owned));
        Some(Finding { incident, rule, subject, task, expected, seen })
    }

    /// Takes over what the log says of an incident.
    fn reopen(&mut self, incident: &str, rule: &str, subject: &str) {
        let number = incident.strip_prefix("incident-").and_then(|number| number.parse().ok()).unwrap_or(0);
        self.incidents = self.incidents.max(number);
        if let Some(rule) = Rule::parse(rule) {
            let open = &mut self.subject(subject).open;
            // The record names no task: what is open here already keeps its own.
            if !open.values().any(|known| known == incident) {
                let of_task = if rule == Rule::ModuleViolation { incident } else { "" };
                open.insert((rule, of_task.to_owned()), incident.to_owned());
            }
        }
    }

    /// Closes an incident: the rule watches this subject again, from nothing. Answers whether it was open.
    pub fn close(&mut self, incident: &str) -> bool {
        for subject in self.subjects.values_mut() {
            let key =
                subject.open.iter().find(|(_, open)| open.as_str() == incident).map(|(key, _)| key.clone());
            if let Some(key) = key {
                subject.open.remove(&key);
                subject.refusals.clear();
                subject.forgeries.clear();
                return true;
            }
        }
        false
    }

    /// Closes every incident of a subject: two people have reinstated it.
    pub fn close_all(&mut self, subject: &str) {
        if let Some(subject) = self.subjects.get_mut(subject) {
            subject.open.clear();
            subject.refusals.clear();
            subject.forgeries.clear();
        }
    }

    /// The open incidents: incident, rule, subject.
    pub fn open_incidents(&self) -> impl Iterator<Item = (&str, Rule, &str)> {
        self.subjects.iter().flat_map(|(name, subject)| {
            subject.open.iter().map(move |((rule, _), incident)| (incident.as_str(), *rule, name.as_str()))
        })
    }

    fn learn_name(&mut self, id: &str) {
        let Some((_, process)) = id.rsplit_once('/') else { return };
        let agent = process.starts_with(&self.config.agent_processes);
        let known = self.names.contains_key(process) || self.names.len() < self.config.subjects_max;
        if agent && known {
            self.names.insert(process.to_owned(), id.to_owned());
        }
    }

    fn pool(&mut self, portfolio: &str) -> &mut Sizes {
        let known = self.pools.contains_key(portfolio) || self.pools.len() < PORTFOLIOS_MAX;
        self.pools.entry(if known { portfolio.to_owned() } else { String::new() }).or_default()
    }

    fn habit(&mut self, agent: &str, portfolio: &str) -> &mut Habit {
        let habits = &mut self.subject(agent).habits;
        let known = habits.contains_key(portfolio) || habits.len() < PORTFOLIOS_MAX;
        habits.entry(if known { portfolio.to_owned() } else { String::new() }).or_default()
    }

    /// The memory of a subject. The one longest unheard of makes room; among those, one without an open
    /// incident.
    fn subject(&mut self, name: &str) -> &mut Subject {
        if !self.subjects.contains_key(name) && self.subjects.len() >= self.config.subjects_max {
            let oldest =
                self.subjects.iter().min_by_key(|(_, subject)| (!subject.open.is_empty(), subject.heard));
            if let Some(oldest) = oldest.map(|(name, _)| name.clone()) {
                self.subjects.remove(&oldest);
            }
        }
        let subject = self.subjects.entry(name.to_owned()).or_default();
        subject.heard = self.records;
        subject
    }
}

#[cfg(test)]
mod tests;
