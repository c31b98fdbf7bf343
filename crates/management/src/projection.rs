//! What the log says, summed up: orders, grants, equity, counts.
//!
//! A pure fold over the records of the log in their order. It decides nothing: it is what operators are shown, and it is
//! rebuilt from the log whenever management starts.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use audit::record::Record;
use serde::{Deserialize, Serialize};

use crate::cases::Incident;
use crate::control::SCHEDULER;
use crate::schedule::{ATTEMPTS_MAX, reason_of, stuck_words};

/// Grants remembered for showing, at most; older ones have expired long since.
const GRANTS_MAX: usize = 2_000;
/// Latest notable events remembered for showing.
const EVENTS_MAX: usize = 200;

/// An order, as operators see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OrderView {
    /// Client order id.
    pub id: String,
    /// Portfolio.
    pub portfolio: String,
    /// Symbol.
    pub symbol: String,
    /// `buy` or `sell`.
    pub side: String,
    /// Shares.
    pub quantity: i64,
    /// Reference price, or the price of the fill once there is one; millionths of a dollar.
    pub price: i64,
    /// Market day of the decision.
    pub market_time: String,
    /// `approved`, `sent`, `filled`, `expired`, `cancelled` or `rejected`.
    pub status: String,
    /// Reason code.
    pub reason: String,
    /// Task. Which agent did it is no property of the order: `trader explain` tells.
    pub task: String,
    /// What the broker filled.
    pub fills: Vec<FillView>,
}

/// A fill, as operators see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FillView {
    /// Fill.
    pub id: String,
    /// Shares.
    pub quantity: i64,
    /// Price, millionths of a dollar.
    pub price: i64,
    /// Fee, millionths of a dollar.
    pub fee: i64,
    /// Market day of the fill.
    pub market_time: String,
}

/// A member, as far as the log tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberView {
    /// Epoch of its identity.
    pub epoch: u32,
    /// When its certificate ends, in seconds since the Unix epoch.
    pub expires: i64,
    /// `active`, `quarantined` or `reinstated` (to be enrolled anew).
    pub status: &'static str,
}

/// A grant, as operators see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GrantView {
    /// Grant.
    pub id: String,
    /// Task.
    pub task: String,
    /// SPIFFE ID of the holder.
    pub holder: String,
    /// Audience.
    pub audience: String,
    /// Actions.
    pub actions: Vec<String>,
    /// Portfolio.
    pub portfolio: Option<String>,
    /// Market day.
    pub market_time: String,
    /// Seconds since the Unix epoch.
    pub expires: i64,
    /// `active`, `ended` (its task ended), `revoked` or `expired`.
    pub status: String,
}

/// Counts of a run.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Market days closed.
    pub days: u64,
    /// Orders that reached the desk.
    pub orders: u64,
    /// Orders sent to the broker.
    pub sent: u64,
    /// Fills.
    pub fills: u64,
    /// Orders that a check refused.
    pub rejected: u64,
    /// Grants issued.
    pub grants_issued: u64,
    /// Grants that policy refused to issue.
    pub grants_denied: u64,
    /// Requests of members that were refused, with a grant or without.
    pub requests_refused: u64,
    /// Connections that a listener refused, and requests that reached no door.
    #[serde(default)]
    pub handshakes_refused: u64,
    /// Revocations asked for by people or playbooks; the end of a task is none.
    pub revocations: u64,
    /// Tasks done.
    pub tasks_done: u64,
    /// Tasks that were lost or failed and given to another.
    pub tasks_lost: u64,
    /// Incidents opened.
    pub incidents: u64,
    /// Modules started.
    pub modules: u64,
    /// Modules stopped or refused.
    pub modules_stopped: u64,
}

/// A notable event, as operators see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventView {
    /// Milliseconds since the Unix epoch.
    pub at_ms: i64,
    /// Process that recorded it.
    pub process: String,
    /// What happened.
    pub text: String,
}

/// Equity of one portfolio on one day: market day, equity, cash.
pub type DayView = (String, i64, i64);

/// The fold.
#[derive(Debug, Default)]
pub struct Projection {
    /// Counts.
    pub counts: Counts,
    /// Orders by id.
    pub orders: BTreeMap<String, OrderView>,
    /// Fills seen.
    fills: BTreeSet<String>,
    /// Grants, oldest first.
    pub grants: VecDeque<GrantView>,
    /// Closed days by portfolio.
    pub equity: BTreeMap<String, Vec<DayView>>,
    /// Results of reports by portfolio: the latest.
    pub reports: BTreeMap<String, serde_json::Value>,
    /// Latest notable events.
    pub events: VecDeque<EventView>,
    /// Latest market day closed.
    pub market_day: String,
    /// Whether the run's end is in the log.
    pub ended: bool,
    /// Whether everything was stopped and not cleared since.
    pub killed: bool,
    /// Position of the revocation log.
    pub revision: u64,
    /// Market day of the step whose tasks were announced last.
    pub step_day: String,
    /// Incidents by id.
    pub incidents: BTreeMap<String, Incident>,
    /// Who enrolled, by SPIFFE ID.
    pub members: BTreeMap<String, MemberView>,
    /// Latest revision of each domain's key: an older document is not taken.
    pub domain_keys: BTreeMap<String, u64>,
    /// Every grant that was ever issued: 16 bytes each.
    issued: BTreeSet<[u8; 16]>,
    /// Tasks that were lost since management started, how often, and why the last time.
    lost: BTreeMap<String, (u32, String)>,
}

impl Projection {
    /// Takes the next record of the log.
    pub fn apply(&mut self, at_ms: i64, process: &str, record: &Record) {
        self.count(record);
        if let Some(text) = notable(record) {
            if self.events.len() == EVENTS_MAX {
                self.events.pop_front();
            }
            self.events.push_back(EventView { at_ms, process: process.to_owned(), text });
        }
        match record {
            Record::OrderDecided { order, approved: false, .. } if self.orders.contains_key(order) => {}
            Record::OrderDecided {
                order,
                portfolio,
                symbol,
                side,
                quantity,
                price,
                market_day,
                task,
                approved,
                reason,
                ..
            } => {
                let view = OrderView {
                    id: order.clone(),
                    portfolio: portfolio.clone(),
                    symbol: symbol.clone(),
                    side: side.clone(),
                    quantity: *quantity,
                    price: *price,
                    market_time: market_day.clone(),
                    status: if *approved { "approved" } else { "rejected" }.to_owned(),
                    reason: reason.clone(),
                    task: task.clone(),
                    fills: Vec::new(),
                };
                self.orders.insert(order.clone(), view);
            }
            Record::OrderSent { order } => self.set_status(order, "sent", None),
            Record::DomainKeyChanged { domain, revision, .. } => {
                let known = self.domain_keys.entry(domain.clone()).or_default();
                *known = (*known).max(*revision);
            }
            Record::OrderFilled { order, fill, quantity, price, fee, market_day, .. } => {
                self.set_status(order, "filled", Some(*price));
                if let Some(view) = self.orders.get_mut(order)
                    && view.fills.iter().all(|known| known.id != *fill)
                {
                    view.fills.push(FillView {
                        id: fill.clone(),
                        quantity: *quantity,
                        price: *price,
                        fee: *fee,
                        market_time: market_day.clone(),
                    });
                }
            }
            Record::OrderEnded { order, status, .. } => self.set_status(order, status, None),
            Record::GrantIssued {
                grant,
                task,
                holder,
                audience,
                actions,
                portfolio,
                market_day,
                expires,
                ..
            } => {
                self.issued.extend(grant_bytes(grant));
                if self.grants.len() == GRANTS_MAX {
                    self.grants.pop_front();
                }
                self.grants.push_back(GrantView {
                    id: grant.clone(),
                    task: task.clone(),
                    holder: holder.clone(),
                    audience: audience.clone(),
                    actions: actions.clone(),
                    portfolio: portfolio.clone(),
                    market_time: market_day.clone(),
                    expires: *expires,
                    status: "active".to_owned(),
                });
            }
            Record::Revoked { revision, revoked, id, by, .. } => {
                self.revision = self.revision.max(*revision);
                self.strike(revoked, id, by);
            }
            Record::TaskCreated { market_day, .. } => {
                if *market_day != self.step_day {
                    self.step_day.clone_from(market_day);
                    self.lost.clear();
                }
            }
            Record::TaskEnded { task, outcome, detail, .. } if outcome == "failed" || outcome == "lost" => {
                let (times, why) = self.lost.entry(task.clone()).or_default();
                *times += 1;
                *why = reason_of(detail);
            }
            Record::TaskEnded { task, outcome, detail, .. } if outcome == "done" => {
                self.lost.remove(task);
                if let Some(("report", portfolio)) =
                    task.split_once('/').and_then(|(_, rest)| rest.split_once('/'))
                {
                    self.reports.insert(portfolio.to_owned(), detail.clone());
                }
            }
            Record::DayClosed { portfolio, market_day, equity, cash, .. } => {
                let days = self.equity.entry(portfolio.clone()).or_default();
                // A desk that was killed between recording and reporting closes its last day again, the same.
                if days.last().is_none_or(|(last, ..)| last < market_day) {
                    days.push((market_day.clone(), *equity, *cash));
                }
                if *market_day > self.market_day {
                    self.market_day.clone_from(market_day);
                    self.counts.days += 1;
                }
            }
            Record::RunEnded { .. } => self.ended = true,
            _ => self.note_people(at_ms, process, record),
        }
    }

    /// Who is there, and what people were told and decided.
    fn note_people(&mut self, at_ms: i64, process: &str, record: &Record) {
        match record {
            // Management started again tries everything anew.
            Record::Started { .. } if process == crate::run::NAME => self.lost.clear(),
            Record::Enrolled { id, epoch, expires, .. } => {
                let member = MemberView { epoch: *epoch, expires: *expires, status: "active" };
                self.members.insert(id.clone(), member);
            }
            Record::Quarantined { agent, .. } => {
                if let Some(member) = self.members.get_mut(agent) {
                    member.status = "quarantined";
                }
            }
            Record::Removed { id, .. } => {
                if let Some(member) = self.members.get_mut(id).filter(|member| member.status != "quarantined")
                {
                    member.status = "removed";
                }
            }
            Record::Killed { .. } => self.killed = true,
            Record::Enabled { what, .. } if what == "clear_kill" => {
                self.killed = false;
                self.lost.clear();
            }
            Record::Enabled { what, .. } => {
                if let Some(member) = self.members.get_mut(what) {
                    member.status = "reinstated";
                }
                for incident in self.incidents.values_mut().filter(|incident| incident.subject == *what) {
                    incident.open = false;
                }
            }
            Record::IncidentOpened { incident, rule, subject, expected, seen, response } => {
                let opened = Incident {
                    id: incident.clone(),
                    rule: rule.clone(),
                    subject: subject.clone(),
                    expected: expected.clone(),
                    seen: seen.clone(),
                    response: response.clone(),
                    opened_ms: at_ms,
                    open: true,
                };
                self.incidents.insert(incident.clone(), opened);
            }
            _ => {}
        }
    }

    fn count(&mut self, record: &Record) {
        let counts = &mut self.counts;
        match record {
            // An order that is asked for again after a crash is the same order.
            Record::OrderDecided { order, approved, .. } if !self.orders.contains_key(order) => {
                counts.orders += 1;
                counts.rejected += u64::from(!approved);
            }
            Record::OrderSent { .. } => counts.sent += 1,
            Record::OrderFilled { fill, .. } => counts.fills += u64::from(self.fills.insert(fill.clone())),
            Record::GrantIssued { .. } => counts.grants_issued += 1,
            Record::GrantDenied { .. } => counts.grants_denied += 1,
            Record::Decision { allowed: false, .. } => counts.requests_refused += 1,
            Record::HandshakesRefused { reasons, .. } => {
                let refused = reasons.values().fold(0_u64, |sum, count| sum.saturating_add(*count));
                counts.handshakes_refused = counts.handshakes_refused.saturating_add(refused);
            }
            Record::Revoked { revoked, by, .. } if by != SCHEDULER && revoked != "task" => {
                counts.revocations += 1;
            }
            Record::TaskEnded { outcome, .. } if outcome == "done" => counts.tasks_done += 1,
            Record::TaskEnded { outcome, .. } if outcome != "cancelled" => counts.tasks_lost += 1,
            Record::IncidentOpened { .. } => counts.incidents += 1,
            Record::ModuleStarted { .. } => counts.modules += 1,
            Record::ModuleRefused { .. } | Record::ModuleEnded { violation: true, .. } => {
                counts.modules_stopped += 1;
            }
            _ => {}
        }
    }

    fn set_status(&mut self, order: &str, status: &str, price: Option<i64>) {
        if let Some(view) = self.orders.get_mut(order) {
            status.clone_into(&mut view.status);
            view.price = price.unwrap_or(view.price);
        }
    }

    fn strike(&mut self, kind: &str, id: &str, by: &str) {
        let struck = |grant: &GrantView| match kind {
            "grant" => grant.id == id,
            "task" => grant.task == id,
            "agent" => id.split('#').next() == Some(grant.holder.as_str()),
            "everything" => true,
            _ => false,
        };
        let status = if by == SCHEDULER || kind == "task" { "ended" } else { "revoked" };
        for grant in self.grants.iter_mut().filter(|grant| grant.status == "active" && struck(grant)) {
            status.clone_into(&mut grant.status);
        }
    }

    /// Whether a grant of this identifier was ever issued.
    #[must_use]
    pub fn was_issued(&self, grant: &str) -> bool {
        grant_bytes(grant).is_some_and(|bytes| self.issued.contains(&bytes))
    }

    /// Which task failed too often and why, when the run stands still for that.
    #[must_use]
    pub fn stuck(&self) -> Option<String> {
        let stuck = self.lost.iter().find(|(_, (times, _))| *times >= ATTEMPTS_MAX);
        stuck.filter(|_| !self.killed).map(|(task, (_, why))| stuck_words(task, why))
    }

    /// The orders by market day and id: the same in every run with the same seed.
    #[must_use]
    pub fn orders_in_order(&self) -> Vec<OrderView> {
        let mut orders: Vec<OrderView> = self.orders.values().cloned().collect();
        orders.sort_by(|left, right| (&left.market_time, &left.id).cmp(&(&right.market_time, &right.id)));
        orders
    }

    /// Equity of all portfolios together at their last closes; one without a close counts with `start`.
    #[must_use]
    pub fn equity_now(&self, start: &BTreeMap<String, i64>) -> i64 {
        start
            .iter()
            .map(|(name, cash)| {
                self.equity.get(name).and_then(|days| days.last()).map_or(*cash, |(_, equity, _)| *equity)
            })
            .fold(0_i64, i64::saturating_add)
    }

    /// The grants, with those whose time is up marked as expired.
    #[must_use]
    pub fn grants_at(&self, now: i64) -> Vec<GrantView> {
        let mut grants: Vec<GrantView> = self.grants.iter().cloned().collect();
        for grant in grants.iter_mut().filter(|grant| grant.status == "active" && grant.expires <= now) {
            "expired".clone_into(&mut grant.status);
        }
        grants
    }

    /// Equity of all portfolios together, day by day: a portfolio that has no close on a day counts with its last one,
    /// and one that has not begun with `start`.
    #[must_use]
    pub fn total_equity(&self, start: &BTreeMap<String, i64>) -> Vec<(String, i64)> {
        let mut days: BTreeMap<&str, BTreeMap<&str, i64>> = BTreeMap::new();
        for (portfolio, closes) in &self.equity {
            for (day, equity, _) in closes {
                days.entry(day).or_default().insert(portfolio, *equity);
            }
        }
        let mut last: BTreeMap<&str, i64> = start.iter().map(|(name, cash)| (name.as_str(), *cash)).collect();
        days.into_iter()
            .map(|(day, closes)| {
                last.extend(closes);
                (day.to_owned(), last.values().fold(0_i64, |sum, equity| sum.saturating_add(*equity)))
            })
            .collect()
    }
}

/// A grant's identifier in bytes, when it is written as one: 32 hexadecimal digits in lower case.
fn grant_bytes(grant: &str) -> Option<[u8; 16]> {
    keys::from_hex(grant).ok().filter(|bytes: &[u8; 16]| keys::to_hex(bytes) == grant)
}

/// What an operator should read as it happens.
fn notable(record: &Record) -> Option<String> {
    Some(match record {
        Record::Decision { allowed: false, action, peer, reason, route, .. } => {
            format!("refused {action} to {peer} at {route}: {reason}")
        }
        Record::HandshakesRefused { listener, reasons, signed_by } => {
            let reasons: Vec<String> =
                reasons.iter().map(|(reason, count)| format!("{reason} {count}")).collect();
            let by = if signed_by.is_empty() { "" } else { ", signed by an authority of ours" };
            format!("refused at {listener}: {}{by}", reasons.join(", "))
        }
        Record::OrderDecided { approved: false, order, reason, .. } => {
            format!("order {order} rejected: {reason}")
        }
        Record::GrantDenied { task, holder, reason, .. } => {
            format!("no grant for {holder} on {task}: {reason}")
        }
        Record::Revoked { revoked, id, by, reason, .. } if by != SCHEDULER && revoked != "task" => {
            format!("revoked {revoked} {id} by {by}: {reason}")
        }
        Record::IncidentOpened { rule, subject, expected, seen, .. } => {
            format!("incident {rule} on {subject}: expected {expected}, saw {seen}")
        }
        Record::Quarantined { agent, reason } => format!("quarantined {agent}: {reason}"),
        Record::Enabled { what, asked_by, approved_by } => {
            format!("enabled {what}: asked by {asked_by}, approved by {approved_by}")
        }
        Record::ModuleRefused { module, reason, .. } => format!("module {module} refused: {reason}"),
        Record::ModuleEnded { module, outcome, violation: true, .. } => {
            format!("module {module} stopped: {outcome}")
        }
        Record::TaskEnded { task, holder, outcome, .. } if outcome != "done" => {
            format!("task {task} {outcome} by {holder}")
        }
        Record::Killed { by, reason } => format!("everything stopped by {by}: {reason}"),
        Record::Started { .. } => "started".to_owned(),
        Record::Enrolled { id, epoch, .. } => format!("enrolled {id}, epoch {epoch}"),
        Record::EnrolmentRefused { reason, count: 1 } => format!("enrolment refused: {reason}"),
        Record::EnrolmentRefused { reason, count } => format!("enrolment refused {count} times: {reason}"),
        Record::Removed { id, reason, .. } => format!("removed {id}: {reason}"),
        Record::RunEnded { market_day } => format!("the run ended at {market_day}"),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(portfolio: &str, day: &str, equity: i64) -> Record {
        Record::DayClosed {
            portfolio: portfolio.into(),
            market_day: day.into(),
            equity,
            cash: 0,
            closes: BTreeMap::new(),
        }
    }

    #[test]
    fn the_total_carries_a_portfolio_that_has_no_close() {
        let mut projection = Projection::default();
        for record in [
            close("core", "2000-01-03", 10),
            close("core", "2000-01-04", 11),
            close("tech", "2000-01-04", 5),
            close("core", "2000-01-05", 12),
            close("core", "2000-01-05", 12),
        ] {
            projection.apply(0, "desk-1", &record);
        }
        let start = BTreeMap::from([("core".to_owned(), 10), ("tech".to_owned(), 4)]);
        let expected = [("2000-01-03", 14), ("2000-01-04", 16), ("2000-01-05", 17)];
        assert_eq!(projection.total_equity(&start), expected.map(|(day, equity)| (day.to_owned(), equity)));
        assert_eq!(projection.counts.days, 3);
    }

    fn issued(grant: &str) -> Record {
        Record::GrantIssued {
            grant: grant.into(),
            task: "2000-01-03/collect/core".into(),
            holder: "spiffe://t/agent/agent-1".into(),
            audience: "market".into(),
            actions: vec!["write_bars".into()],
            portfolio: Some("core".into()),
            market_day: "2000-01-03".into(),
            expires: 300,
            policy: String::new(),
            policies: Vec::new(),
            digest: String::new(),
        }
    }

    #[test]
    fn every_grant_that_was_issued_is_known_however_many_came_after_it() {
        let mut projection = Projection::default();
        for number in 0..=GRANTS_MAX {
            projection.apply(0, "management", &issued(&format!("{number:032x}")));
        }
        assert_eq!(projection.grants.len(), GRANTS_MAX);
        assert!(projection.was_issued(&format!("{:032x}", 0)), "the oldest is not shown any more, but known");
        assert!(projection.was_issued(&format!("{:032x}", 10)));
        for never in ["zzz", "", &format!("{:032X}", 10), &format!("{:032x}", GRANTS_MAX + 1), "0a"] {
            assert!(!projection.was_issued(never), "{never}");
        }
    }

    #[test]
    fn refused_requests_and_denied_grants_are_counted_apart() {
        let mut projection = Projection::default();
        let refused = Record::Decision {
            action: "read_bars".into(),
            route: "GET /v1/panel".into(),
            peer: "spiffe://t/agent/agent-1".into(),
            key: String::new(),
            grant: None,
            task: None,
            allowed: false,
            reason: "no_grant".into(),
        };
        projection.apply(0, "unit-market-1", &refused);
        projection.apply(0, "unit-market-1", &refused);
        assert_eq!((projection.counts.grants_denied, projection.counts.requests_refused), (0, 2));
        let denied = Record::GrantDenied {
            task: "t".into(),
            holder: "spiffe://t/agent/agent-1".into(),
            audience: "market".into(),
            reason: "forbidden".into(),
        };
        projection.apply(0, "management", &denied);
        assert_eq!((projection.counts.grants_denied, projection.counts.requests_refused), (1, 2));
    }

    #[test]
    fn the_log_alone_tells_who_is_there_what_was_found_and_why_the_run_stands_still() {
        let agent = "spiffe://t/agent/agent-1";
        let mut projection = Projection::default();
        let failed = Record::TaskEnded {
            task: "2000-01-03/collect/core".into(),
            holder: agent.into(),
            outcome: "failed".into(),
            detail: serde_json::json!({ "error": "no such source" }),
        };
        for record in [
            Record::Enrolled { id: agent.into(), epoch: 2, key: String::new(), expires: 9 },
            Record::IncidentOpened {
                incident: "i".into(),
                rule: "refusal_burst".into(),
                subject: agent.into(),
                expected: "few".into(),
                seen: "many".into(),
                response: vec!["notify".into()],
            },
            Record::Quarantined { agent: agent.into(), reason: "test".into() },
            Record::Killed { by: "owner".into(), reason: "test".into() },
        ] {
            projection.apply(7, "management", &record);
        }
        let status = |projection: &Projection| projection.members.get(agent).map(|member| member.status);
        let open = |projection: &Projection| projection.incidents.get("i").map(|incident| incident.open);
        assert_eq!((status(&projection), open(&projection)), (Some("quarantined"), Some(true)));
        assert!(projection.killed);
        for what in ["clear_kill", agent] {
            let enabled =
                Record::Enabled { what: what.into(), asked_by: "a".into(), approved_by: "b".into() };
            projection.apply(8, "management", &enabled);
        }
        assert_eq!((status(&projection), open(&projection)), (Some("reinstated"), Some(false)));
        assert!(!projection.killed);
        (1..ATTEMPTS_MAX).for_each(|_| projection.apply(9, "management", &failed));
        assert_eq!(projection.stuck(), None);
        projection.apply(9, "management", &failed);
        let said = "task 2000-01-03/collect/core failed 20 times; the last reason: no such source";
        assert_eq!(projection.stuck().as_deref(), Some(said));
        projection.apply(9, "agent-1", &Record::Started { program: String::new() });
        assert!(projection.stuck().is_some(), "an agent that starts again mends nothing");
        projection.apply(9, "management", &Record::Started { program: String::new() });
        assert_eq!(projection.stuck(), None, "whoever starts again tries again");
    }
}
