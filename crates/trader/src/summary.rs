//! The summary of a run: what `trader up --json` prints at the end.

use analyst::metrics;
use audit::verify::Report;
use management::routes::Summary;
use market::{Day, Money};
use serde::Serialize;

use crate::output::{Failure, dollars, line};

/// The log's part of the summary.
#[derive(Debug, Serialize)]
pub(crate) struct AuditSummary {
    /// Entries of the log.
    entries: u64,
    /// Root over all of them.
    root: String,
    /// Whether everything verifies.
    verified: bool,
}

/// The summary. Money is in dollars, ratios are plain numbers.
#[derive(Debug, Serialize)]
pub(crate) struct RunSummary {
    days: u64,
    orders: u64,
    fills: u64,
    rejected: u64,
    grants_issued: u64,
    grants_denied: u64,
    revocations: u64,
    incidents: u64,
    processes: usize,
    equity_start: f64,
    equity_end: f64,
    benchmark_end: Option<f64>,
    max_drawdown: f64,
    sharpe: Option<f64>,
    ai_beats_benchmark: Option<bool>,
    ended: bool,
    audit: AuditSummary,
}

fn to_dollars(micros: i64) -> f64 {
    // Cents are all that a person reads; a float carries them exactly enough for any sum that fits the ledger.
    (micros / 10_000) as f64 / 100.0
}

impl RunSummary {
    /// Puts the summary together.
    ///
    /// `curve` is the equity of all portfolios together, day by day.
    pub(crate) fn new(
        summary: &Summary,
        curve: &[(String, i64)],
        processes: usize,
        audit: &Report,
    ) -> Result<Self, Failure> {
        let equity = curve
            .iter()
            .map(|(day, micros)| {
                Ok((day.parse::<Day>().map_err(Failure::broken)?, Money::from_micros(*micros)))
            })
            .collect::<Result<Vec<_>, Failure>>()?;
        let number =
            |report: &serde_json::Value, key: &str| report.get(key).and_then(serde_json::Value::as_i64);
        // Until the run has ended some portfolios were never reported on, and a sum over the others would mislead.
        let benchmark_end: Option<i64> = summary
            .ended
            .then_some(!summary.reports.is_empty())
            .filter(|reported| *reported)
            .map(|_| summary.reports.values().filter_map(|report| number(report, "benchmark_end")).sum());
        let counts = &summary.counts;
        Ok(Self {
            days: counts.days,
            orders: counts.orders,
            fills: counts.fills,
            rejected: counts.rejected,
            grants_issued: counts.grants_issued,
            grants_denied: counts.grants_denied,
            revocations: counts.revocations,
            incidents: counts.incidents,
            processes,
            equity_start: to_dollars(summary.equity_start),
            equity_end: to_dollars(summary.equity),
            benchmark_end: benchmark_end.map(to_dollars),
            max_drawdown: metrics::drawdown_max(&equity),
            sharpe: metrics::sharpe(&metrics::daily_returns(&equity)),
            ai_beats_benchmark: benchmark_end.map(|benchmark| summary.equity > benchmark),
            ended: summary.ended,
            audit: AuditSummary {
                entries: audit.entries,
                root: audit.root.clone(),
                verified: audit.verified,
            },
        })
    }

    /// Prints it for a person.
    pub(crate) fn print(&self, summary: &Summary) {
        let percent = |value: f64| format!("{:.1} %", value * 100.0);
        line(&format!("days              {}", self.days));
        line(&format!(
            "orders            {} ({} filled, {} rejected)",
            self.orders, self.fills, self.rejected
        ));
        line(&format!("grants            {} issued, {} denied", self.grants_issued, self.grants_denied));
        line(&format!("revocations       {}, incidents {}", self.revocations, self.incidents));
        line(&format!("equity            {} -> {}", dollars(summary.equity_start), dollars(summary.equity)));
        if let Some(benchmark) = self.benchmark_end {
            line(&format!(
                "equal-weight hold {benchmark:.2} (bought on the first day, after the same costs)"
            ));
        }
        line(&format!("max drawdown      {}", percent(self.max_drawdown)));
        line(&format!(
            "sharpe            {}",
            self.sharpe.map_or("-".to_owned(), |value| format!("{value:.2}"))
        ));
        for (portfolio, report) in &summary.reports {
            let text = |key: &str| report.get(key).map_or("-".to_owned(), ToString::to_string);
            line(&format!(
                "  {portfolio:<15} sharpe {} against {}, drawdown {} against {}",
                text("sharpe"),
                text("benchmark_sharpe"),
                text("max_drawdown"),
                text("benchmark_max_drawdown"),
            ));
        }
        if let Some(above) = self.ai_beats_benchmark {
            let where_it_ended = if above { "above" } else { "BELOW" };
            line(&format!(
                "The portfolio ended {where_it_ended} equal-weight buy and hold of the same stocks."
            ));
            line(
                "Stocks that are known today were chosen in hindsight: neither figure could have been earned.",
            );
        } else {
            line("The run has not reached its end; the next `trader up` goes on from here.");
        }
        let verdict = if self.audit.verified { "verified" } else { "NOT VERIFIED" };
        line(&format!(
            "audit             {} entries, root {}, {verdict}",
            self.audit.entries, self.audit.root
        ));
    }
}
