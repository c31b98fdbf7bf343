//! The thresholds, as an operator can read and change them.
//!
//! Owns the shape of `policies/sentinel.toml`. Nothing has a default: a threshold that nobody wrote down is a
//! threshold that nobody chose. An unknown key is refused, because it is a misspelt known one.

use std::collections::BTreeSet;

use serde::Deserialize;

use crate::SentinelError;

/// All thresholds.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Process whose word on enrolments, incidents and reinstatements counts.
    pub authority: String,
    /// How the names of processes begin that run agents.
    pub agent_processes: String,
    /// How many subjects are remembered at once.
    pub subjects_max: usize,
    /// How many orders are remembered at once.
    pub orders_max: usize,
    /// Refused requests of one peer.
    pub refusals: Refusals,
    /// Grants that are not the bearer's own, or not genuine.
    pub forgeries: Forgeries,
    /// When an order beyond its grant is conspicuous.
    pub over_limit: OverLimit,
    /// When a key that was replaced is used.
    pub stolen_keys: StolenKeys,
    /// Fills beyond what was approved.
    pub overfill: Overfill,
    /// Value of an order.
    pub order_size: OrderSize,
    /// Orders per market day.
    pub order_rate: OrderRate,
}

/// When refusals are a burst.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Refusals {
    /// As many within the window are no alarm; one more is.
    pub most: usize,
    /// Length of the window in milliseconds.
    pub window_ms: u64,
    /// Reasons that do not count.
    pub retryable: BTreeSet<String>,
}

/// When refusals show forged or stolen grants.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Forgeries {
    /// Reasons that count.
    pub reasons: BTreeSet<String>,
    /// As many within the window are no alarm; one more is.
    pub most: usize,
    /// Length of the window in milliseconds.
    pub window_ms: u64,
}

/// When an order beyond its grant is conspicuous: at once, for an honest module knows its limits.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OverLimit {
    /// Reasons of refusals that say so.
    pub reasons: BTreeSet<String>,
}

/// When a refusal shows a stolen key: at once, for a key that was replaced has been destroyed by its owner.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StolenKeys {
    /// Reasons of refusals that say so.
    pub reasons: BTreeSet<String>,
}

/// How a split is told from an overfill.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Overfill {
    /// The least by which a split multiplies a quantity.
    pub split_ratio_min: f64,
    /// The most by which the value of the fills may then differ from the approved value, either way, as a
    /// ratio.
    pub notional_ratio_max: f64,
}

/// When an order is too large for its agent's habit.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OrderSize {
    /// How many orders are remembered.
    pub remembered: usize,
    /// No alarm before so many orders.
    pub orders_min: usize,
    /// How many times the median is conspicuous, at least.
    pub median_times: f64,
    /// How many robust standard deviations of the logarithm above the median are conspicuous.
    pub deviations: f64,
    /// How many times the median is conspicuous in any case.
    pub median_times_max: f64,
    /// How many times the largest order so far it must be as well.
    pub largest_times: f64,
}

/// When a day has too many orders for its agent's habit.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OrderRate {
    /// How many market days are remembered.
    pub remembered: usize,
    /// No alarm before so many days.
    pub days_min: usize,
    /// How many times the median day is conspicuous.
    pub median_times: f64,
    /// How many times the largest day so far it must be as well.
    pub largest_times: f64,
    /// Never an alarm below so many orders.
    pub orders_min: u32,
}

/// The largest value of any number of things to remember.
const REMEMBERED_MAX: usize = 1_000_000;

impl Config {
    /// Parses and checks a configuration.
    ///
    /// # Errors
    /// [`SentinelError::Syntax`] for unknown, missing or ill-typed keys; [`SentinelError::Value`] for numbers
    /// that would blind a rule or use memory without bound.
    pub fn parse(text: &str) -> Result<Self, SentinelError> {
        let config: Self = toml::from_str(text).map_err(|error| SentinelError::Syntax {
            what: "sentinel configuration",
            problem: error.to_string(),
        })?;
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<(), SentinelError> {
        let value = |name, ok, demand| if ok { Ok(()) } else { Err(SentinelError::Value { name, demand }) };
        let count =
            |name, number: usize| value(name, (1..=REMEMBERED_MAX).contains(&number), "from 1 to 1,000,000");
        let few = |name, number: usize| value(name, (1..=1024).contains(&number), "from 1 to 1,024");
        let ratio =
            |name, number: f64| value(name, (1.0..=1e6).contains(&number), "a number from 1 to 1,000,000");
        value("authority", !self.authority.is_empty(), "a process name")?;
        value("agent_processes", !self.agent_processes.is_empty(), "the beginning of a process name")?;
        value(
            "authority",
            !self.authority.starts_with(&self.agent_processes),
            "a process that runs no agent",
        )?;
        count("subjects_max", self.subjects_max)?;
        count("orders_max", self.orders_max)?;
        few("refusals.most", self.refusals.most)?;
        few("forgeries.most", self.forgeries.most)?;
        value("refusals.window_ms", self.refusals.window_ms > 0, "positive")?;
        value("forgeries.window_ms", self.forgeries.window_ms > 0, "positive")?;
        value("forgeries.reasons", !self.forgeries.reasons.is_empty(), "at least one reason")?;
        value(
            "refusals.retryable",
            self.refusals.retryable.is_disjoint(&self.forgeries.reasons),
            "without the reasons of forgeries",
        )?;
        value("stolen_keys.reasons", !self.stolen_keys.reasons.is_empty(), "at least one reason")?;
        value("over_limit.reasons", !self.over_limit.reasons.is_empty(), "at least one reason")?;
        ratio("overfill.split_ratio_min", self.overfill.split_ratio_min)?;
        ratio("overfill.notional_ratio_max", self.overfill.notional_ratio_max)?;
        few("order_size.remembered", self.order_size.remembered)?;
        few("order_size.orders_min", self.order_size.orders_min)?;
        value(
            "order_size.orders_min",
            self.order_size.orders_min <= self.order_size.remembered,
            "no more than are remembered",
        )?;
        ratio("order_size.median_times", self.order_size.median_times)?;
        ratio("order_size.median_times_max", self.order_size.median_times_max)?;
        value(
            "order_size.median_times_max",
            self.order_size.median_times_max >= self.order_size.median_times,
            "no less than median_times",
        )?;
        value(
            "order_size.deviations",
            (0.0..=100.0).contains(&self.order_size.deviations),
            "a number from 0 to 100",
        )?;
        ratio("order_size.largest_times", self.order_size.largest_times)?;
        few("order_rate.remembered", self.order_rate.remembered)?;
        few("order_rate.days_min", self.order_rate.days_min)?;
        value(
            "order_rate.days_min",
            self.order_rate.days_min <= self.order_rate.remembered,
            "no more than are remembered",
        )?;
        ratio("order_rate.median_times", self.order_rate.median_times)?;
        ratio("order_rate.largest_times", self.order_rate.largest_times)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    const TEXT: &str = include_str!("../../../policies/sentinel.toml");

    pub(crate) fn config() -> Config {
        Config::parse(TEXT).unwrap()
    }

    #[test]
    fn every_key_must_be_there_and_none_else() {
        assert!(Config::parse(&format!("surprise = 1\n{TEXT}")).is_err());
        assert!(Config::parse(&format!("{TEXT}\nsurprise = 1\n")).is_err());
        let keys: Vec<&str> =
            TEXT.lines().filter(|line| line.contains(" = ")).filter(|l| !l.starts_with('#')).collect();
        assert!(keys.len() > 20);
        for key in keys {
            assert!(Config::parse(&TEXT.replacen(&format!("\n{key}\n"), "\n", 1)).is_err(), "{key}");
        }
    }

    #[test]
    fn a_value_that_would_blind_a_rule_is_refused() {
        for (good, bad) in [
            ("subjects_max = 4096", "subjects_max = 0"),
            ("orders_max = 200000", "orders_max = 99999999"),
            ("most = 20", "most = 0"),
            ("most = 20", "most = 5000"),
            ("window_ms = 1000\n", "window_ms = 0\n"),
            ("reasons = [\"wrong_holder\", \"wrong_key\", \"bad_signature\"]", "reasons = []"),
            ("retryable = [\"lease_lapsed\"", "retryable = [\"wrong_key\""),
            ("median_times = 6.0", "median_times = nan"),
            ("median_times = 6.0", "median_times = inf"),
            ("median_times_max = 9.0", "median_times_max = 5.0"),
            ("orders_min = 20", "orders_min = 65"),
            ("deviations = 2.5", "deviations = -1.0"),
            ("authority = \"management\"", "authority = \"agent-1\""),
            ("agent_processes = \"agent-\"", "agent_processes = \"\""),
        ] {
            assert!(TEXT.contains(good), "{good}");
            assert!(Config::parse(&TEXT.replacen(good, bad, 1)).is_err(), "{bad}");
        }
    }
}
