//! The reporter: sums a portfolio up, beside the yardstick.

use std::io::{BufRead, Write};

use analyst::metrics::{benchmark, daily_returns, drawdown_max, sharpe};
use market::{Day, Money, Panel};
use serde_json::Value;

use super::{join, params, result};
use crate::ModuleError;
use crate::host::Host;
use crate::protocol::{Report, ReporterParams, Start};

/// Calendar days of closes per read, so that one answer stays far below the limit of a line: about five
/// years.
const READ_CALENDAR_DAYS: i64 = 1_826;

/// Reads the portfolio's equity and all closes since its start, computes the figures of both, and stores the
/// report as `<portfolio>/<day>`.
///
/// # Errors
/// [`ModuleError`] when the parameters are unreadable, a figure doesn't fit, or a call is refused.
pub fn reporter<R: BufRead, W: Write>(host: &mut Host<R, W>, start: &Start) -> Result<Value, ModuleError> {
    let params: ReporterParams = params(start)?;
    let mut equity = host.read_equity()?;
    equity.retain(|(day, _)| (params.start..=start.market_day).contains(day));
    let panel = read_all(host, &params, start.market_day)?;
    let yardstick = benchmark(&panel, params.start, params.cash, params.cost_bps)?;
    let end = |curve: &[(Day, Money)]| curve.last().map_or(params.cash, |(_, money)| *money);
    let report = Report {
        equity_end: end(&equity),
        benchmark_end: end(&yardstick),
        max_drawdown: six_places(drawdown_max(&equity)),
        sharpe: sharpe(&daily_returns(&equity)).map(six_places),
        benchmark_sharpe: sharpe(&daily_returns(&yardstick)).map(six_places),
        benchmark_max_drawdown: six_places(drawdown_max(&yardstick)),
        days: u64::try_from(equity.len()).unwrap_or(u64::MAX),
    };
    host.write_report(format!("{}/{}", start.portfolio, start.market_day), report.clone())?;
    result(&report)
}

fn read_all<R: BufRead, W: Write>(
    host: &mut Host<R, W>,
    params: &ReporterParams,
    through: Day,
) -> Result<Panel, ModuleError> {
    let mut panels = Vec::new();
    let mut from = params.start;
    while from <= through {
        let last = from.plus_days(READ_CALENDAR_DAYS - 1).map_or(through, |last| last.min(through));
        panels.push(host.read_panel(params.symbols.clone(), from, last)?);
        from = last.plus_days(1).ok_or(ModuleError::Calendar)?;
    }
    Ok(join(&panels))
}

/// Short enough that every reader of JSON gets the very same number.
fn six_places(value: f64) -> f64 {
    (value * 1e6).round() / 1e6
}
