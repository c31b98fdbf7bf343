//! What is traded, and on which market days the system steps. Written once at the start of a run, read by management and
//! the desk.

use serde::{Deserialize, Serialize};

/// A run's plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// Seed of everything that is drawn at random in the simulated market.
    pub seed: u64,
    /// Market days per second, or as fast as possible.
    pub days_per_second: Option<u32>,
    /// Portfolios.
    pub portfolios: Vec<PortfolioPlan>,
    /// The steps, in order of their days.
    pub steps: Vec<Step>,
}

/// One portfolio.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PortfolioPlan {
    /// Name.
    pub name: String,
    /// Source that its bars come from, and the data set that they are stored in.
    pub source: String,
    /// Symbols.
    pub symbols: Vec<String>,
    /// Cash at the start, millionths of a dollar.
    pub cash: i64,
    /// Market day on which it is opened.
    pub start: String,
    /// What a trade costs, fee and slippage, in basis points of its amount: for the reporter's benchmark.
    pub cost_bps: i64,
    /// How the strategist turns forecasts into a portfolio, in the strategist's own terms.
    pub construction: serde_json::Value,
    /// Largest single order, basis points of equity.
    pub order_max_bps: i64,
}

/// One step: the market days since the last step are run, then the portfolios are looked after.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Step {
    /// Market day of the step.
    pub day: String,
    /// Number of market days since the last step.
    pub days: u32,
    /// What happens to each portfolio.
    pub portfolios: Vec<PortfolioStep>,
}

/// What happens to one portfolio at one step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PortfolioStep {
    /// Portfolio.
    pub portfolio: String,
    /// Day of its step before, if there was one: bars after it are new.
    pub after: Option<String>,
    /// Whether it is forecast and rebalanced.
    pub rebalance: bool,
    /// Whether it is reported on.
    pub report: bool,
}

impl Plan {
    /// The plan of one portfolio.
    #[must_use]
    pub fn portfolio(&self, name: &str) -> Option<&PortfolioPlan> {
        self.portfolios.iter().find(|portfolio| portfolio.name == name)
    }

    /// Market day of the last step.
    #[must_use]
    pub fn last_day(&self) -> &str {
        self.steps.last().map_or("", |step| step.day.as_str())
    }
}
