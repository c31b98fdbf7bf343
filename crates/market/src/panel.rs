//! A panel: the closes of several instruments, column by column.
//!
//! Owns: the shape that models read. A panel holds raw closes and the splits between them; the adjusted
//! closes are made from these, so that a split never looks like a loss. It knows nothing of features.
//!
//! INVARIANT: days and symbols are in strict order, every column has one entry per day, every close is above
//! zero. A panel that came as text is refused unless this holds; [`Panel::check`] says it of one that was put
//! together.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::{Day, MarketError, Price, Series, Split, Symbol};

/// Closes of several instruments. *Shape*: `closes` is `[symbols, days]`. *Units*: millionths of a dollar.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "PanelFields")]
pub struct Panel {
    /// The days, each once, in order.
    pub days: Vec<Day>,
    /// The symbols, each once, in order.
    pub symbols: Vec<Symbol>,
    /// For each symbol, for each day, the raw close; `None` when there is no bar.
    pub closes: Vec<Vec<Option<i64>>>,
    /// The splits of these symbols, in any order.
    pub splits: Vec<(Symbol, Split)>,
}

impl Panel {
    /// Puts several series together: the days are all days on which any of them has a bar.
    #[must_use]
    pub fn from_series(series: &BTreeMap<Symbol, Series>) -> Self {
        let days: BTreeSet<Day> =
            series.values().flat_map(|one| one.bars.iter().map(|bar| bar.day)).collect();
        let mut panel = Panel { days: days.into_iter().collect(), ..Panel::default() };
        for (symbol, one) in series {
            let closes: BTreeMap<Day, i64> =
                one.bars.iter().map(|bar| (bar.day, bar.close.micros())).collect();
            panel.closes.push(panel.days.iter().map(|day| closes.get(day).copied()).collect());
            panel.splits.extend(one.splits.iter().map(|split| (symbol.clone(), *split)));
            panel.symbols.push(symbol.clone());
        }
        panel
    }

    /// Says whether the parts fit together.
    ///
    /// # Errors
    /// [`MarketError::Panel`] with the rule that is broken.
    pub fn check(&self) -> Result<(), MarketError> {
        let broken = |reason| Err(MarketError::Panel { reason });
        if !self.days.is_sorted_by(|a, b| a < b) {
            return broken("the days are not in strict order");
        }
        if !self.symbols.is_sorted_by(|a, b| a < b) {
            return broken("the symbols are not in strict order");
        }
        if self.closes.len() != self.symbols.len() {
            return broken("there is not one column per symbol");
        }
        if self.closes.iter().any(|column| column.len() != self.days.len()) {
            return broken("a column has not one entry per day");
        }
        if self.closes.iter().flatten().flatten().any(|close| *close <= 0) {
            return broken("a close is not above zero");
        }
        if self.splits.iter().any(|(symbol, _)| self.symbols.binary_search(symbol).is_err()) {
            return broken("a split belongs to no column");
        }
        Ok(())
    }

    /// The raw close of a symbol on a day, if there is one.
    #[must_use]
    pub fn close(&self, symbol: &Symbol, day: Day) -> Option<Price> {
        let column = self.symbols.binary_search(symbol).ok()?;
        let row = self.days.binary_search(&day).ok()?;
        Price::from_micros((*self.closes.get(column)?.get(row)?)?).ok()
    }

    /// The panel as it was known at the close of a day: nothing later is left, splits included.
    #[must_use]
    pub fn through(&self, day: Day) -> Panel {
        let kept = self.days.partition_point(|other| *other <= day);
        Panel {
            days: self.days.iter().take(kept).copied().collect(),
            symbols: self.symbols.clone(),
            closes: self.closes.iter().map(|column| column.iter().take(kept).copied().collect()).collect(),
            splits: self.splits.iter().filter(|(_, split)| split.day() <= day).cloned().collect(),
        }
    }

    /// The closes in dollars, adjusted backwards for splits: the last day's are raw, and a holder's return
    /// between any two days is the ratio of the two. *Shape*: `[symbols, days]`.
    ///
    /// *Known at*: the last day of the panel. A split after the last day is left out, for it was not known
    /// then.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "a model's input, not an amount of money")]
    pub fn adjusted_closes(&self) -> Vec<Vec<Option<f64>>> {
        let last = self.days.last();
        let column = |(symbol, closes): (&Symbol, &Vec<Option<i64>>)| {
            let mut splits: Vec<Split> = self
                .splits
                .iter()
                .filter(|(owner, split)| owner == symbol && last.is_some_and(|last| split.day() <= *last))
                .map(|(_, split)| *split)
                .collect();
            splits.sort_by_key(|split| split.day());
            let mut factor = 1.0;
            let mut adjusted: Vec<Option<f64>> = Vec::with_capacity(closes.len());
            for (day, close) in self.days.iter().zip(closes).rev() {
                while let Some(split) = splits.pop_if(|split| split.day() > *day) {
                    factor *= f64::from(split.denominator()) / f64::from(split.numerator());
                }
                adjusted.push(close.map(|micros| micros as f64 / 1e6 * factor));
            }
            adjusted.reverse();
            adjusted
        };
        self.symbols.iter().zip(&self.closes).map(column).collect()
    }
}

/// How a panel is written, before it is known to be one.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PanelFields {
    days: Vec<Day>,
    symbols: Vec<Symbol>,
    closes: Vec<Vec<Option<i64>>>,
    splits: Vec<(Symbol, Split)>,
}

impl TryFrom<PanelFields> for Panel {
    type Error = MarketError;

    fn try_from(fields: PanelFields) -> Result<Self, MarketError> {
        let PanelFields { days, symbols, closes, splits } = fields;
        let panel = Panel { days, symbols, closes, splits };
        panel.check()?;
        Ok(panel)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Bar;

    fn day(text: &str) -> Day {
        text.parse().unwrap()
    }

    fn panel() -> Panel {
        let bar = |date: &str, close: &str| Bar::from_close(day(date), close.parse().unwrap());
        let aapl = Series {
            bars: vec![bar("2005-02-24", "88.93"), bar("2005-02-25", "88.99"), bar("2005-02-28", "44.86")],
            splits: vec![Split::new(day("2005-02-28"), 2, 1).unwrap()],
        };
        let msft = Series { bars: vec![bar("2005-02-25", "25.25")], splits: Vec::new() };
        Panel::from_series(&BTreeMap::from([
            ("MSFT".parse().unwrap(), msft),
            ("AAPL".parse().unwrap(), aapl),
        ]))
    }

    #[test]
    fn a_split_is_no_loss_in_adjusted_closes() {
        let panel = panel();
        panel.check().unwrap();
        assert_eq!(
            panel.adjusted_closes(),
            vec![vec![Some(44.465), Some(44.495), Some(44.86)], vec![None, Some(25.25), None]]
        );
    }

    #[test]
    fn a_panel_through_a_day_knows_no_later_split() {
        let early = panel().through(day("2005-02-25"));
        assert_eq!(early.days.len(), 2);
        assert!(early.splits.is_empty());
        assert_eq!(early.adjusted_closes()[0], vec![Some(88.93), Some(88.99)]);
    }

    #[test]
    fn a_panel_whose_parts_do_not_fit_is_refused_as_text() {
        let text = serde_json::to_string(&panel()).unwrap();
        assert_eq!(serde_json::from_str::<Panel>(&text).unwrap(), panel());
        for (from, to) in
            [("2005-02-24", "2005-03-24"), ("88930000", "0"), ("88930000,", ""), ("\"MSFT\"]", "\"AAA\"]")]
        {
            assert!(text.contains(from));
            assert!(serde_json::from_str::<Panel>(&text.replacen(from, to, 1)).is_err(), "{from} -> {to}");
        }
    }
}
