//! Price levels that can be compared across splits, built from the past alone.
//!
//! Owns: the way from a panel of raw closes to one level per stock and day. A level is the close times the
//! splits so far: what one share bought on the first day has become. Adjusting forwards like this, not
//! backwards from the latest price, is what keeps the past still: a later split can't move an earlier level,
//! not even by a rounding error.

use market::{Day, Panel, Split, Symbol};

use crate::AnalystError;

/// How many days without a close a level is carried on for, in days of the panel; then the stock has none.
pub const CARRIED_DAYS_MAX: usize = 5;

/// Levels of several stocks. `Known at`: the level of a day uses closes and splits up to that day only.
#[derive(Debug, Clone, PartialEq)]
pub struct Levels {
    /// The days, ascending.
    pub days: Vec<Day>,
    /// The stocks, in the panel's order.
    pub symbols: Vec<Symbol>,
    /// Shape `[symbol][day]`; `None` where a stock has had no close lately.
    pub values: Vec<Vec<Option<f64>>>,
}

impl Levels {
    /// The levels of a panel, up to and including `through`.
    ///
    /// # Errors
    /// [`AnalystError::Ragged`] when the panel is not one column per symbol and one close per day.
    pub fn of(panel: &Panel, through: Day) -> Result<Self, AnalystError> {
        let whole = panel.closes.iter().filter(|column| column.len() == panel.days.len()).count();
        if whole != panel.symbols.len() || whole != panel.closes.len() {
            return Err(AnalystError::Ragged { symbols: panel.symbols.len(), columns: whole });
        }
        let count = panel.days.partition_point(|day| *day <= through);
        let days: Vec<Day> = panel.days.iter().take(count).copied().collect();
        let values = panel
            .symbols
            .iter()
            .zip(&panel.closes)
            .map(|(symbol, closes)| column(&days, closes, &splits_of(panel, symbol)))
            .collect();
        Ok(Self { days, symbols: panel.symbols.clone(), values })
    }
}

/// The splits of one symbol, by day.
pub(crate) fn splits_of(panel: &Panel, symbol: &Symbol) -> Vec<Split> {
    let mut splits: Vec<Split> =
        panel.splits.iter().filter(|(of, _)| of == symbol).map(|(_, split)| *split).collect();
    splits.sort_by_key(|split| split.day());
    splits
}

fn column(days: &[Day], closes: &[Option<i64>], splits: &[Split]) -> Vec<Option<f64>> {
    let mut splits = splits.iter().peekable();
    let mut factor = 1.0;
    let mut last: Option<(usize, f64)> = None;
    days.iter()
        .zip(closes)
        .enumerate()
        .map(|(index, (day, close))| {
            while let Some(split) = splits.next_if(|split| split.day() <= *day) {
                factor = factor * f64::from(split.numerator()) / f64::from(split.denominator());
            }
            if let Some(micros) = close.filter(|micros| *micros > 0) {
                last = Some((index, micros as f64 * factor));
            }
            last.filter(|(since, _)| index - since <= CARRIED_DAYS_MAX).map(|(_, level)| level)
        })
        .collect()
}
