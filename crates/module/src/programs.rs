//! The four built-in programs.
//!
//! Owns: what each does with its one task, as a function of what the agent answers and of nothing else. Run
//! twice on the same answers, a program makes the same calls with the same identifiers, so a task that died
//! half-way can simply be run again.

use std::collections::BTreeMap;

use market::{Bar, Day, Panel, Price, Series, Symbol};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::ModuleError;
use crate::protocol::Start;

mod analyst;
mod collector;
mod reporter;
mod strategist;

pub use self::analyst::analyst;
pub use collector::{FINDINGS_SENT_MAX, collector};
pub use reporter::reporter;
pub use strategist::strategist;

/// The identifier of a portfolio's forecast of a day.
#[must_use]
pub fn forecast_id(portfolio: &str, day: Day) -> String {
    format!("{portfolio}/{day}")
}

/// The identifier of a portfolio's order for a stock on a day: there is at most one.
#[must_use]
pub fn order_id(portfolio: &str, day: Day, symbol: &Symbol) -> String {
    format!("{portfolio}-{}-{symbol}", day.to_string().replace('-', ""))
}

fn params<T: DeserializeOwned>(start: &Start) -> Result<T, ModuleError> {
    serde_json::from_value(start.params.clone()).map_err(|error| ModuleError::Params(error.to_string()))
}

fn result<T: Serialize>(result: &T) -> Result<Value, ModuleError> {
    serde_json::to_value(result).map_err(|_| ModuleError::Data("the result has no JSON form"))
}

/// Puts panels of consecutive spans together.
fn join(panels: &[Panel]) -> Panel {
    let mut series: BTreeMap<Symbol, Series> = BTreeMap::new();
    for panel in panels {
        for (symbol, closes) in panel.symbols.iter().zip(&panel.closes) {
            let one = series.entry(symbol.clone()).or_default();
            for (day, close) in panel.days.iter().zip(closes) {
                if let Some(Ok(close)) = close.map(Price::from_micros) {
                    one.bars.push(Bar::from_close(*day, close));
                }
            }
        }
        for (symbol, split) in &panel.splits {
            let one = series.entry(symbol.clone()).or_default();
            if !one.splits.contains(split) {
                one.splits.push(*split);
            }
        }
    }
    Panel::from_series(&series)
}
