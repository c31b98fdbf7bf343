//! What is known about a stock on a day, from the past only.
//!
//! Owns: the ten figures the model sees, all of them textbook: momentum (Jegadeesh and Titman 1993),
//! short-term reversal (Jegadeesh 1990), nearness to the 52-week high (George and Hwang 2004), low volatility
//! (Ang et al. 2006) and the greatest daily gain (Bali, Cakici and Whitelaw 2011). Each is replaced by its
//! rank among the stocks of the same day, so that neither an outlier nor the market's own move can speak.
//!
//! INVARIANT: no feature of day t changes when any data after t changes.
#![expect(clippy::indexing_slicing, reason = "windows of a checked, constant length; indices are constants")]

use crate::levels::Levels;

/// Days of history before a stock has features: one year.
pub const LOOKBACK_DAYS: usize = 252;

/// Fewer stocks than this have no ranks worth the name.
pub const STOCKS_MIN: usize = 3;

/// How many features there are.
pub const COUNT: usize = 10;

/// The features' names, in the order of their values.
pub const NAMES: [&str; COUNT] = [
    "momentum_252_21",
    "momentum_126",
    "momentum_63",
    "return_21",
    "return_5",
    "volatility_63",
    "volatility_252",
    "nearness_to_high_252",
    "greatest_gain_21",
    "momentum_per_risk",
];

/// The features of one stock on one day.
pub type Features = [f64; COUNT];

/// The ranked features of every stock on day number `index`.
///
/// *Shape*: one entry per symbol of `levels`; `None` for a stock with less than [`LOOKBACK_DAYS`] of history,
/// and for all when fewer than [`STOCKS_MIN`] have it. *Units*: ranks, centred on 0, with a standard
/// deviation near 1.
/// *Known at*: the close of that day; later entries of `levels` are never read.
#[must_use]
pub fn cross_section(levels: &Levels, index: usize) -> Vec<Option<Features>> {
    let raw: Vec<Option<Features>> = levels.values.iter().map(|column| raw(column, index)).collect();
    if raw.iter().flatten().count() < STOCKS_MIN {
        return vec![None; raw.len()];
    }
    let mut ranked = raw.clone();
    for feature in 0..COUNT {
        let mut order: Vec<(f64, usize)> = raw
            .iter()
            .enumerate()
            .filter_map(|(stock, row)| row.as_ref().map(|row| (row[feature], stock)))
            .collect();
        order.sort_by(|left, right| left.0.total_cmp(&right.0).then(left.1.cmp(&right.1)));
        let values: Vec<f64> = order.iter().map(|entry| entry.0).collect();
        for ((_, stock), rank) in order.iter().zip(ranks(&values)) {
            if let Some(row) = &mut ranked[*stock] {
                row[feature] = rank;
            }
        }
    }
    ranked
}

/// The figures of one stock before ranking; `None` without a full window.
fn raw(column: &[Option<f64>], index: usize) -> Option<Features> {
    let first = index.checked_sub(LOOKBACK_DAYS)?;
    let window: Vec<f64> = column.get(first..=index)?.iter().copied().collect::<Option<_>>()?;
    let last = window[LOOKBACK_DAYS];
    let back = |days: usize| window[LOOKBACK_DAYS - days];
    let returns: Vec<f64> = window.windows(2).map(|pair| pair[1] / pair[0] - 1.0).collect();
    let high = window.iter().copied().fold(last, f64::max);
    let momentum = back(21) / back(252) - 1.0;
    let volatility = deviation(&returns);
    let features = [
        momentum,
        last / back(126) - 1.0,
        last / back(63) - 1.0,
        last / back(21) - 1.0,
        last / back(5) - 1.0,
        deviation(&returns[LOOKBACK_DAYS - 63..]),
        volatility,
        last / high,
        returns[LOOKBACK_DAYS - 21..].iter().copied().fold(f64::NEG_INFINITY, f64::max),
        // A stock that never moved has no risk to divide by; it also has no momentum.
        if volatility > 0.0 { momentum / volatility } else { 0.0 },
    ];
    features.iter().all(|value| value.is_finite()).then_some(features)
}

/// The standard deviation of at least one figure, around their mean.
fn deviation(values: &[f64]) -> f64 {
    let count = values.len() as f64;
    let mean = values.iter().sum::<f64>() / count;
    (values.iter().map(|value| (value - mean) * (value - mean)).sum::<f64>() / count).sqrt()
}

/// The ranks of ascending values, centred on 0 with a standard deviation near 1; equal values share their
/// mean rank.
fn ranks(ascending: &[f64]) -> Vec<f64> {
    let count = ascending.len();
    let mut ranks = Vec::with_capacity(count);
    while ranks.len() < count {
        let start = ranks.len();
        let equal =
            ascending[start..].iter().take_while(|value| value.total_cmp(&ascending[start]).is_eq()).count();
        let middle = start as f64 + (equal as f64 - 1.0) / 2.0;
        // A uniform variable of width 1 has variance 1/12.
        let rank = ((middle + 0.5) / count as f64 - 0.5) * 12.0_f64.sqrt();
        ranks.extend(std::iter::repeat_n(rank, equal));
    }
    ranks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_values_share_a_rank_and_ranks_sum_to_nothing() {
        let ranks = ranks(&[1.0, 2.0, 2.0, 5.0]);
        assert!((ranks[1] - ranks[2]).abs() < 1e-12);
        assert!(ranks[0] < ranks[1] && ranks[2] < ranks[3]);
        assert!(ranks.iter().sum::<f64>().abs() < 1e-12);
    }

    #[test]
    fn a_stock_without_a_full_year_has_no_features() {
        let rising: Vec<Option<f64>> = (0..300).map(|day| Some(100.0 + f64::from(day))).collect();
        assert!(raw(&rising, LOOKBACK_DAYS - 1).is_none());
        assert!(raw(&rising, LOOKBACK_DAYS).is_some());
        let mut holed = rising.clone();
        holed[100] = None;
        assert!(raw(&holed, 299).is_none());
        assert!(raw(&rising, 300).is_none(), "a day that isn't there has no features");
    }

    #[test]
    fn the_figures_are_what_their_names_say() {
        let mut column: Vec<Option<f64>> = vec![Some(100.0); 253];
        column[231] = Some(150.0); // 21 days before the last
        column[247] = Some(80.0); // 5 days before the last
        let row = raw(&column, 252).unwrap();
        assert!((row[0] - 0.5).abs() < 1e-12);
        assert!((row[3] - (100.0 / 150.0 - 1.0)).abs() < 1e-12);
        assert!((row[4] - 0.25).abs() < 1e-12);
        assert!((row[7] - 100.0 / 150.0).abs() < 1e-12);
        assert!((row[8] - 0.25).abs() < 1e-12);
    }
}
