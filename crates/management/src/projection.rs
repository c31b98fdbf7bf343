//! What the log says, summed up: orders, grants, equity, counts.
//!
//! A pure fold over the records of the log in their order. It decides nothing: it is what operators are shown, and it is
//! rebuilt from the log whenever management starts.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use audit::record::Record;
use serde::{Deserialize, Serialize};

use crate::control::SCHEDULER;

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
    /// SPIFFE ID of the agent.
    pub agent: String,
    /// Task.
    pub task: String,
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
    /// Requests refused by a guard, and grants refused by policy.
    pub grants_denied: u64,
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
                agent,
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
                    agent: agent.clone(),
                    task: task.clone(),
                };
                self.orders.insert(order.clone(), view);
            }
            Record::OrderSent { order } => self.set_status(order, "sent", None),
            Record::OrderFilled { order, price, .. } => self.set_status(order, "filled", Some(*price)),
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
            Record::Revoked { revoked, id, by, .. } => self.strike(revoked, id, by),
            Record::TaskEnded { task, outcome, detail, .. } if outcome == "done" => {
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
            Record::Decision { allowed: false, .. } => counts.grants_denied += 1,
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

/// What an operator should read as it happens.
fn notable(record: &Record) -> Option<String> {
    Some(match record {
        Record::Decision { allowed: false, action, peer, reason, route, .. } => {
            format!("refused {action} to {peer} at {route}: {reason}")
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
        Record::EnrolmentRefused { reason } => format!("enrolment refused: {reason}"),
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
}
