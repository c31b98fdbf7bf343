//! What an operator sets: how the paper broker fills, and what each portfolio may do at most.
//!
//! INVARIANT: no limit has a default, and a portfolio that is not named here gets no order.

use std::collections::BTreeMap;
use std::path::Path;

use engine::FillModel;
use risk::Limits;
use serde::{Deserialize, Serialize};
use wire::layout::ConfigError;

/// The file's name in the configuration directory.
pub const FILE: &str = "desk.toml";

/// The content of `config/desk.toml`: one table `[broker]`, one table `[limits.PORTFOLIO]` for each portfolio.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeskConfig {
    /// How the paper broker fills.
    pub broker: FillModel,
    /// What each portfolio may do at most.
    pub limits: BTreeMap<String, Limits>,
}

impl DeskConfig {
    /// Reads the file of a configuration directory.
    ///
    /// # Errors
    /// When it can't be read, has a field too many or too few, or limits that make no sense.
    pub fn read(directory: &Path) -> Result<Self, ConfigError> {
        let path = directory.join(FILE);
        let text = std::fs::read_to_string(&path).map_err(|error| ConfigError::new(&path, error))?;
        Self::parse(&text).map_err(|problem| ConfigError::new(&path, problem))
    }

    /// Reads the file's text.
    ///
    /// # Errors
    /// What is wrong with it, in words.
    pub fn parse(text: &str) -> Result<Self, String> {
        let config: Self = toml::from_str(text).map_err(|error| error.to_string())?;
        for (portfolio, limits) in &config.limits {
            limits.check().map_err(|error| format!("limits.{portfolio}: {error}"))?;
        }
        Ok(config)
    }

    /// The file's text.
    ///
    /// # Errors
    /// When a number doesn't fit into TOML: a seed above the largest `i64`.
    pub fn to_toml(&self) -> Result<String, String> {
        toml::to_string(self).map_err(|error| error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use market::{Money, Quantity};

    use super::*;

    fn config() -> DeskConfig {
        let limits = Limits {
            quantity_max: Quantity::new(1_000_000),
            order_notional_max: Money::from_micros(100_000_000_000),
            order_notional_bps_max: 1_100,
            collar_bps: 100,
            price_age_days_max: 5,
            position_bps_max: 2_500,
            messages_per_day_max: 100,
            buy_buffer_bps: 200,
            sell_credit_bps: 9_500,
        };
        DeskConfig {
            broker: FillModel { slippage_bps: 5, fee_bps: 1, seed: 7 },
            limits: [("core".to_owned(), limits)].into(),
        }
    }

    #[test]
    fn a_configuration_survives_its_file() {
        let text = config().to_toml().unwrap();
        assert_eq!(DeskConfig::parse(&text).unwrap(), config());
        assert!(text.contains("[limits.core]"), "{text}");
    }

    #[test]
    fn a_limit_left_out_misspelt_or_negative_is_an_error() {
        let text = config().to_toml().unwrap();
        for (from, to) in [
            ("collar_bps = 100\n", ""),
            ("collar_bps", "colar_bps"),
            ("collar_bps = 100", "collar_bps = -1"),
            ("seed = 7\n", ""),
            ("[limits.core]", "[limit.core]"),
        ] {
            assert!(text.contains(from), "{from}");
            assert!(DeskConfig::parse(&text.replace(from, to)).is_err(), "{from} → {to}");
        }
    }
}
