//! The online statistic: what an agent's orders in one portfolio are usually like.
//!
//! Owns two short memories with their median and spread: the value of an order as a fraction of equity, and
//! the number of orders per market day. Only what was approved and raised no alarm is learnt, so that an
//! attacker cannot teach it his own habit with orders that were refused anyway.

use std::collections::VecDeque;

use crate::config::{OrderRate, OrderSize};

/// A median's distance in a normal distribution, as a standard deviation.
const MAD_TO_DEVIATION: f64 = 1.4826;

/// A bounded memory of numbers.
#[derive(Debug, Default, Clone)]
struct Memory {
    last: VecDeque<f64>,
    largest: f64,
}

impl Memory {
    fn learn(&mut self, value: f64, remembered: usize) {
        self.last.push_back(value);
        while self.last.len() > remembered {
            self.last.pop_front();
        }
        self.largest = self.largest.max(value);
    }

    fn median(&self) -> f64 {
        median(self.last.iter().copied().collect())
    }

    /// Robust standard deviation of the logarithms.
    fn log_deviation(&self) -> f64 {
        let centre = self.median().ln();
        MAD_TO_DEVIATION * median(self.last.iter().map(|value| (value.ln() - centre).abs()).collect())
    }
}

/// The upper median; 0 of nothing.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}

/// What is expected and what was seen, both as text.
pub(crate) type Contrast = (String, String);

/// The sizes of orders.
#[derive(Debug, Default, Clone)]
pub(crate) struct Sizes(Memory);

impl Sizes {
    /// Whether there is enough to judge by.
    pub(crate) fn knows_enough(&self, config: &OrderSize) -> bool {
        self.0.last.len() >= config.orders_min
    }

    /// Judges an order of this fraction of equity.
    pub(crate) fn judge(&self, fraction: f64, config: &OrderSize) -> Option<Contrast> {
        if !self.knows_enough(config) {
            return None;
        }
        let (median, largest) = (self.0.median(), self.0.largest);
        let spread = (config.deviations * self.0.log_deviation()).exp();
        let times = spread.clamp(config.median_times, config.median_times_max);
        let limit = (median * times).max(largest * config.largest_times);
        (fraction >= limit).then(|| {
            (
                format!(
                    "orders below {} of equity (median {}, largest {})",
                    percent(limit),
                    percent(median),
                    percent(largest)
                ),
                format!("an order of {} of equity", percent(fraction)),
            )
        })
    }

    pub(crate) fn learn(&mut self, fraction: f64, config: &OrderSize) {
        self.0.learn(fraction, config.remembered);
    }
}

fn percent(fraction: f64) -> String {
    format!("{:.1} %", fraction * 100.0)
}

/// The number of orders per market day. Days are ordered as text; one that lies before the current day counts
/// to the current one, because otherwise two days in turn would each begin at nothing.
#[derive(Debug, Default, Clone)]
pub(crate) struct Rate {
    day: String,
    orders: u32,
    days: Memory,
}

impl Rate {
    /// Counts an order and judges its day so far. A day that raised an alarm is not learnt.
    pub(crate) fn count(&mut self, day: &str, config: &OrderRate) -> Option<Contrast> {
        if day > self.day.as_str() {
            if self.orders > 0 && self.judge(config).is_none() {
                self.days.learn(f64::from(self.orders), config.remembered);
            }
            self.orders = 0;
            day.clone_into(&mut self.day);
        }
        self.orders = self.orders.saturating_add(1);
        self.judge(config)
    }

    fn judge(&self, config: &OrderRate) -> Option<Contrast> {
        if self.days.last.len() < config.days_min || self.orders < config.orders_min {
            return None;
        }
        let (median, largest) = (self.days.median(), self.days.largest);
        let limit = (median * config.median_times).max(largest * config.largest_times);
        (f64::from(self.orders) >= limit).then(|| {
            (
                format!(
                    "fewer than {limit:.0} orders in a market day (median {median:.0}, largest {largest:.0})"
                ),
                format!("{} orders on {}", self.orders, self.day),
            )
        })
    }
}
