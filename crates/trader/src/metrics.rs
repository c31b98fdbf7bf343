//! What the system counts, as OpenMetrics text (version 1.0) for other monitoring systems.
//!
//! Owns the names of the metrics, which others' dashboards are built on. Knows no secret and no name of a person: numbers and
//! the states of members only.

use std::fmt::Write as _;

use management::routes::{AgentView, KeysView, Summary};

/// The content type of the text.
pub(crate) const KIND: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// A text in the making.
#[derive(Default)]
struct Text(String);

impl Text {
    fn family(&mut self, name: &str, kind: &str, unit: Option<&str>, help: &str) {
        let _ = writeln!(self.0, "# TYPE {name} {kind}");
        if let Some(unit) = unit {
            let _ = writeln!(self.0, "# UNIT {name} {unit}");
        }
        let _ = writeln!(self.0, "# HELP {name} {help}");
    }

    fn gauge(&mut self, name: &str, unit: Option<&str>, help: &str, value: impl std::fmt::Display) {
        self.family(name, "gauge", unit, help);
        let _ = writeln!(self.0, "{name} {value}");
    }

    fn counter(&mut self, name: &str, help: &str, value: u64) {
        self.family(name, "counter", None, help);
        let _ = writeln!(self.0, "{name}_total {value}");
    }
}

/// Millionths as a decimal number, exactly.
fn decimal(micros: i64) -> String {
    let (whole, part) = (micros.unsigned_abs() / 1_000_000, micros.unsigned_abs() % 1_000_000);
    format!("{}{whole}.{part:06}", if micros < 0 { "-" } else { "" })
}

/// Everything that is counted, at this moment.
pub(crate) fn text(summary: &Summary, keys: &KeysView, agents: &[AgentView]) -> String {
    let mut text = Text::default();
    security(&mut text, summary, keys, agents);
    trading(&mut text, summary);
    text.0.push_str("# EOF\n");
    text.0
}

fn security(text: &mut Text, summary: &Summary, keys: &KeysView, agents: &[AgentView]) {
    let counts = &summary.counts;
    text.gauge(
        "trader_oldest_active_key_age_seconds",
        Some("seconds"),
        "Age of the oldest active key of any member; keys above 86400 are refused.",
        keys.oldest_active_key_age_s,
    );
    text.gauge("trader_trust_bundle_version", None, "Version of the trust bundle.", keys.bundle);
    text.gauge("trader_revocation_revision", None, "Position of the revocation log.", summary.revision);
    text.gauge("trader_incidents_open", None, "Incidents that are open.", summary.incidents_open);
    text.family("trader_members", "gauge", None, "Members by the state of their identity.");
    for state in ["active", "quarantined", "reinstated", "removed"] {
        let count = agents.iter().filter(|agent| agent.status == state).count();
        let _ = writeln!(text.0, "trader_members{{state=\"{state}\"}} {count}");
    }
    text.counter("trader_incidents", "Incidents opened.", counts.incidents);
    text.counter("trader_grants_issued", "Grants issued.", counts.grants_issued);
    text.counter("trader_grants_denied", "Grants that policy refused to issue.", counts.grants_denied);
    text.counter(
        "trader_requests_refused",
        "Requests of members that were refused.",
        counts.requests_refused,
    );
    text.counter("trader_revocations", "Revocations by people or playbooks.", counts.revocations);
    text.counter("trader_modules_started", "Modules started.", counts.modules);
    text.counter("trader_modules_stopped", "Modules stopped or refused.", counts.modules_stopped);
}

fn trading(text: &mut Text, summary: &Summary) {
    let counts = &summary.counts;
    text.counter("trader_market_days", "Market days closed.", counts.days);
    text.counter("trader_orders", "Orders that reached the desk.", counts.orders);
    text.counter("trader_orders_sent", "Orders sent to the broker.", counts.sent);
    text.counter("trader_orders_rejected", "Orders that a check refused.", counts.rejected);
    text.counter("trader_fills", "Fills.", counts.fills);
    text.counter("trader_tasks_done", "Tasks done.", counts.tasks_done);
    text.counter("trader_tasks_lost", "Tasks lost or failed and given to another.", counts.tasks_lost);
    let (done, all) = summary.steps;
    text.gauge("trader_steps_done", None, "Steps of the plan that are done.", done);
    text.gauge("trader_steps_planned", None, "Steps of the plan.", all);
    let running = u8::from(summary.state == "running");
    text.gauge(
        "trader_run_active",
        None,
        "Whether the run goes on: 1, or 0 when it ended or stands still.",
        running,
    );
    let dollars = Some("dollars");
    text.gauge("trader_equity_dollars", dollars, "Equity of all portfolios.", decimal(summary.equity));
    let start = decimal(summary.equity_start);
    text.gauge("trader_equity_start_dollars", dollars, "Cash of all portfolios at the start.", start);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn money_is_written_exactly() {
        assert_eq!(decimal(0), "0.000000");
        assert_eq!(decimal(1_250_000_000_001), "1250000.000001");
        assert_eq!(decimal(-1), "-0.000001");
        assert_eq!(decimal(i64::MIN), "-9223372036854.775808");
    }
}
