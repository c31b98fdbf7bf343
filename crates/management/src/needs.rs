//! Which grants a task needs, and the limits inside them.
//!
//! Policy decides whether a grant may be issued; this table says which ones are asked for, so that a task gets exactly
//! what its kind needs and nothing else.

use access::vocabulary::{Action, Audience, Limits, TaskKind};

use crate::plan::PortfolioPlan;

/// How long a grant lives, in seconds.
pub const GRANT_LIFETIME_S: i64 = 300;
/// Rows that a grant may read or write.
const ROWS_MAX: u64 = 2_000_000;
/// Requests that may be made with one grant.
const USES_MAX: u32 = 2_000;

/// One grant that a task needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Need {
    /// Whom it is shown to.
    pub audience: Audience,
    /// What it must allow.
    pub actions: &'static [Action],
    /// Whether the holder fetches an outside source with it.
    pub source: bool,
}

const fn need(audience: Audience, actions: &'static [Action]) -> Need {
    Need { audience, actions, source: false }
}

/// What a kind of task needs.
#[must_use]
pub fn of(kind: TaskKind) -> &'static [Need] {
    const COLLECT: &[Need] =
        &[Need { audience: Audience::Market, actions: &[Action::WriteBars], source: true }];
    const SESSION: &[Need] =
        &[need(Audience::Market, &[Action::ReadBars]), need(Audience::Ledger, &[Action::WriteLedger])];
    const ANALYSE: &[Need] =
        &[need(Audience::Market, &[Action::ReadBars]), need(Audience::Research, &[Action::WriteForecasts])];
    const REBALANCE: &[Need] = &[
        need(Audience::Market, &[Action::ReadBars]),
        need(Audience::Research, &[Action::ReadForecasts]),
        need(Audience::Ledger, &[Action::ReadLedger]),
        need(Audience::Desk, &[Action::PlaceOrders]),
    ];
    const REPORT: &[Need] = &[
        need(Audience::Market, &[Action::ReadBars]),
        need(Audience::Ledger, &[Action::ReadLedger]),
        need(Audience::Research, &[Action::WriteReports]),
    ];
    match kind {
        TaskKind::Collect => COLLECT,
        TaskKind::Session => SESSION,
        TaskKind::Analyse => ANALYSE,
        TaskKind::Rebalance => REBALANCE,
        TaskKind::Report => REPORT,
    }
}

/// The limits inside a grant.
///
/// Order limits follow the portfolio's equity at its last close: one order may reach the portfolio's cap on single orders
/// with a tenth to spare, since prices move between the close and the order; all orders of a task together may turn the
/// portfolio over once in each direction.
#[must_use]
pub fn limits(need: &Need, portfolio: &PortfolioPlan, equity: i64) -> (Limits, u32) {
    if need.audience != Audience::Desk {
        return (Limits { rows: Some(ROWS_MAX), ..Limits::default() }, USES_MAX);
    }
    let orders = u32::try_from(portfolio.symbols.len()).unwrap_or(u32::MAX).saturating_mul(2);
    let cap = i128::from(equity.max(0)) * i128::from(portfolio.order_max_bps) * 11 / 100_000;
    let limits = Limits {
        notional: Some(equity.max(0).saturating_mul(2)),
        order_notional: Some(i64::try_from(cap).unwrap_or(i64::MAX)),
        orders: Some(orders),
        rows: None,
    };
    (limits, orders)
}
