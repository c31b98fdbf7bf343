//! The summary of a run: what `trader up --json` prints at the end.

use std::cmp::Ordering;

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
    requests_refused: u64,
    revocations: u64,
    incidents: u64,
    processes: usize,
    equity_start: f64,
    equity_end: f64,
    benchmark_end: Option<f64>,
    /// The same, in millionths of a dollar, for printing.
    #[serde(skip)]
    benchmark_micros: Option<i64>,
    max_drawdown: f64,
    sharpe: Option<f64>,
    ai_beats_benchmark: Option<bool>,
    ended: bool,
    /// Which task failed too often and why, when the run stood still for that.
    halted: Option<String>,
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
            requests_refused: counts.requests_refused,
            revocations: counts.revocations,
            incidents: counts.incidents,
            processes,
            equity_start: to_dollars(summary.equity_start),
            equity_end: to_dollars(summary.equity),
            benchmark_end: benchmark_end.map(to_dollars),
            benchmark_micros: benchmark_end,
            max_drawdown: metrics::drawdown_max(&equity),
            sharpe: metrics::sharpe(&metrics::daily_returns(&equity)),
            ai_beats_benchmark: benchmark_end.map(|benchmark| summary.equity > benchmark),
            ended: summary.ended,
            halted: summary.halted.clone(),
            audit: AuditSummary {
                entries: audit.entries,
                root: audit.root.clone(),
                verified: audit.verified,
            },
        })
    }

    /// Prints it for a person.
    pub(crate) fn print(&self, summary: &Summary) {
        self.lines(summary).iter().for_each(|text| line(text));
    }

    fn lines(&self, summary: &Summary) -> Vec<String> {
        let mut lines = vec![
            format!("days              {}", self.days),
            format!("orders            {} ({} filled, {} rejected)", self.orders, self.fills, self.rejected),
            format!("grants            {} issued, {} denied", self.grants_issued, self.grants_denied),
            format!("requests refused  {}", self.requests_refused),
            format!("revocations       {}, incidents {}", self.revocations, self.incidents),
            format!("equity            {} -> {}", dollars(summary.equity_start), dollars(summary.equity)),
        ];
        if let Some(benchmark) = self.benchmark_micros {
            lines.push(format!(
                "equal-weight hold {} (bought on the first day, after the same costs)",
                dollars(benchmark)
            ));
        }
        lines.push(format!("max drawdown      {:.1} %", self.max_drawdown * 100.0));
        lines.push(format!(
            "sharpe            {}",
            self.sharpe.map_or("-".to_owned(), |value| format!("{value:.2}"))
        ));
        match self.benchmark_micros {
            Some(benchmark) => {
                lines.extend(summary.reports.iter().map(report_line));
                let where_it_ended = match summary.equity.cmp(&benchmark) {
                    Ordering::Greater => "ended above",
                    Ordering::Equal => "ended exactly at",
                    Ordering::Less => "ended BELOW",
                };
                lines.push(format!(
                    "The portfolio {where_it_ended} equal-weight buy and hold of the same stocks."
                ));
                lines.push(
                    "Stocks that are known today were chosen in hindsight: neither figure could have been earned."
                        .to_owned(),
                );
            }
            None if self.ended => {
                lines.push("Nothing was traded, so there is nothing to compare.".to_owned())
            }
            None => lines.push(match &self.halted {
                Some(why) => format!("The run stands still: {why}"),
                None => "The run has not reached its end; the next `trader up` goes on from here.".to_owned(),
            }),
        }
        let verdict = if self.audit.verified { "verified" } else { "NOT VERIFIED" };
        lines.push(format!(
            "audit             {} entries, root {}, {verdict}",
            self.audit.entries, self.audit.root
        ));
        lines
    }
}

/// One portfolio's report against its benchmark; what has no value, such as the Sharpe ratio of one day, is a dash.
fn report_line((portfolio, report): (&String, &serde_json::Value)) -> String {
    let text = |key: &str| match report.get(key) {
        None | Some(serde_json::Value::Null) => "-".to_owned(),
        Some(value) => value.to_string(),
    };
    format!(
        "  {portfolio:<15} sharpe {} against {}, drawdown {} against {}",
        text("sharpe"),
        text("benchmark_sharpe"),
        text("max_drawdown"),
        text("benchmark_max_drawdown"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A run of one portfolio.
    fn printed(ended: bool, equity: i64, benchmark: i64) -> (String, serde_json::Value) {
        let report = serde_json::json!({ "sharpe": null, "max_drawdown": 0.1, "benchmark_end": benchmark });
        let summary = Summary {
            state: String::new(),
            market_day: "2000-01-04".into(),
            steps: (1, 2),
            counts: management::projection::Counts { requests_refused: 3, ..Default::default() },
            equity,
            equity_start: 1_250_000_000_000,
            reports: [("core".to_owned(), report)].into(),
            ended,
            revision: 0,
            incidents_open: 0,
            halted: (!ended).then(|| "task t failed 20 times; the last reason: none".to_owned()),
        };
        let audit = Report {
            entries: 1,
            root: "00".into(),
            verified: true,
            unjoined: 0,
            leftover: 0,
            faults: Vec::new(),
        };
        let run = RunSummary::new(&summary, &[], 14, &audit).unwrap();
        (run.lines(&summary).join("\n"), serde_json::to_value(&run).unwrap())
    }

    #[test]
    fn an_ended_run_is_compared_in_readable_money_and_without_null() {
        let (text, _) = printed(true, 42_309_799_290_001, 42_309_799_290_000);
        assert!(text.contains("equal-weight hold 42,309,799.29 ("), "{text}");
        assert!(text.contains("The portfolio ended above equal-weight"), "{text}");
        assert!(text.contains("sharpe - against -, drawdown 0.1 against -"), "{text}");
        assert!(!text.contains("null"), "{text}");
        assert!(printed(true, 4, 5).0.contains("ended BELOW"));
    }

    #[test]
    fn equal_results_are_not_below() {
        let (text, json) = printed(true, 5, 5);
        assert!(text.contains("ended exactly at") && !text.contains("BELOW"), "{text}");
        assert_eq!(json["ai_beats_benchmark"], false);
    }

    #[test]
    fn a_run_that_has_not_ended_is_compared_with_nothing_and_says_why_it_stands_still() {
        let (text, json) = printed(false, 5, 6);
        assert!(!text.contains("against") && !text.contains("hold"), "{text}");
        assert!(text.contains("stands still: task t failed 20 times; the last reason: none"), "{text}");
        assert_eq!((&json["ended"], &json["benchmark_end"]), (&false.into(), &serde_json::Value::Null));
        assert!(json["halted"].as_str().is_some_and(|why| why.contains("failed 20 times")), "{json}");
    }

    #[test]
    fn denied_grants_and_refused_requests_are_told_apart() {
        let (text, json) = printed(true, 5, 5);
        assert!(text.contains("0 denied\nrequests refused  3"), "{text}");
        assert_eq!((&json["grants_denied"], &json["requests_refused"]), (&0.into(), &3.into()));
    }
}
