//! The figures that a result is judged by, and the yardstick beside it.
//!
//! Owns: daily returns, Sharpe ratio, drawdown, growth per year, and the equal-weight buy-and-hold portfolio
//! after costs. It judges what happened; nothing here decides an order. The yardstick's money is counted in
//! integers.

use market::{BPS_ONE, Day, Money, Panel, Price, Symbol};

use crate::AnalystError;
use crate::levels::splits_of;

/// Trading days in a year, by convention.
pub const DAYS_PER_YEAR: f64 = 252.0;

/// The relative change from each day to the next. *Units*: fractions, 0.01 = 1 %. A day that starts at zero
/// or below has none.
#[must_use]
pub fn daily_returns(equity: &[(Day, Money)]) -> Vec<f64> {
    equity
        .iter()
        .zip(equity.iter().skip(1))
        .filter(|((_, before), _)| before.micros() > 0)
        .map(|((_, before), (_, after))| after.as_f64() / before.as_f64() - 1.0)
        .collect()
}

/// The Sharpe ratio per year: mean daily return over its standard deviation, times the square root of 252;
/// the riskless rate is taken as zero. `None` with fewer than two returns or without any variation. Source:
/// Sharpe 1994.
#[must_use]
pub fn sharpe(returns: &[f64]) -> Option<f64> {
    if returns.len() < 2 {
        return None;
    }
    let count = returns.len() as f64;
    let mean = returns.iter().sum::<f64>() / count;
    let variance = returns.iter().map(|gain| (gain - mean) * (gain - mean)).sum::<f64>() / (count - 1.0);
    let deviation = variance.sqrt();
    (deviation > 0.0).then(|| mean / deviation * DAYS_PER_YEAR.sqrt())
}

/// The deepest fall from an earlier high. *Units*: a fraction of that high, 0 to 1.
#[must_use]
pub fn drawdown_max(equity: &[(Day, Money)]) -> f64 {
    let mut high = 0.0_f64;
    let mut deepest = 0.0_f64;
    for (_, value) in equity {
        let value = value.as_f64();
        high = high.max(value);
        if high > 0.0 {
            deepest = deepest.max(1.0 - value / high);
        }
    }
    deepest
}

/// Growth per year of 365.25 days. *Units*: a fraction. `None` when the curve is shorter than a day or not
/// above zero. For display: the last digits of a power may differ between machines.
#[must_use]
pub fn growth_per_year(equity: &[(Day, Money)]) -> Option<f64> {
    let ((first, before), (last, after)) = (equity.first()?, equity.last()?);
    let years = last.days_since(*first) as f64 / 365.25;
    (years > 0.0 && before.micros() > 0 && after.micros() > 0)
        .then(|| (after.as_f64() / before.as_f64()).powf(1.0 / years) - 1.0)
}

/// One holding of the yardstick.
struct Holding<'a> {
    closes: &'a [Option<i64>],
    splits: Vec<market::Split>,
    shares: i64,
    /// The last raw close.
    close: i64,
}

/// The equity, day by day, of buying every stock in equal amounts at the close of the first day after
/// `start`, and holding.
///
/// Pays `cost_bps` of each purchase, buys whole shares, and applies splits; a fraction of a share that a
/// split leaves is paid out at the last close. Only stocks that have a close on that first day are bought.
/// The curve begins with `cash` on the last day up to `start`, or on the first day bought when there is none.
///
/// # Errors
/// [`AnalystError::OutOfRange`] when an amount doesn't fit; [`AnalystError::Parameter`] for a cost outside 0
/// to 10,000.
pub fn benchmark(
    panel: &Panel,
    start: Day,
    cash: Money,
    cost_bps: i64,
) -> Result<Vec<(Day, Money)>, AnalystError> {
    let out = AnalystError::OutOfRange { what: "the benchmark's money" };
    if !(0..=BPS_ONE).contains(&cost_bps) {
        return Err(AnalystError::Parameter { name: "cost_bps" });
    }
    let first = panel.days.partition_point(|day| *day <= start);
    let mut curve = Vec::new();
    if let Some(before) = first.checked_sub(1).and_then(|index| panel.days.get(index)) {
        curve.push((*before, cash));
    }
    let Some(bought) = panel.days.get(first).copied() else { return Ok(curve) };
    let mut holdings: Vec<Holding<'_>> = panel
        .symbols
        .iter()
        .zip(&panel.closes)
        .filter_map(|(symbol, closes)| holding(panel, symbol, closes, first, bought))
        .collect();
    let mut money = cash.micros();
    let share = money / i64::try_from(holdings.len().max(1)).map_err(|_| out)?;
    let out = || AnalystError::OutOfRange { what: "the benchmark's money" };
    for holding in &mut holdings {
        let price_and_cost =
            Money::from_micros(holding.close).checked_bps_up(BPS_ONE + cost_bps).ok_or_else(out)?;
        holding.shares = (share / price_and_cost.micros()).max(0);
        let amount = holding.shares.checked_mul(holding.close).ok_or_else(out)?;
        let cost = Money::from_micros(amount).checked_bps_up(cost_bps).ok_or_else(out)?;
        money = money.checked_sub(amount).and_then(|rest| rest.checked_sub(cost.micros())).ok_or_else(out)?;
    }
    for (index, day) in panel.days.iter().enumerate().skip(first) {
        let mut equity = money;
        for holding in &mut holdings {
            let paid = holding.advance(index, *day).ok_or_else(out)?;
            money = money.checked_add(paid).ok_or_else(out)?;
            let worth = holding.shares.checked_mul(holding.close).ok_or_else(out)?;
            equity = equity.checked_add(paid).and_then(|sum| sum.checked_add(worth)).ok_or_else(out)?;
        }
        curve.push((*day, Money::from_micros(equity)));
    }
    Ok(curve)
}

fn holding<'a>(
    panel: &Panel,
    symbol: &Symbol,
    closes: &'a [Option<i64>],
    first: usize,
    bought: Day,
) -> Option<Holding<'a>> {
    let close = closes.get(first).copied().flatten().filter(|close| *close > 0)?;
    let mut splits = splits_of(panel, symbol);
    splits.retain(|split| split.day() > bought);
    // Taken from the end, the earliest first.
    splits.reverse();
    Some(Holding { closes, splits, shares: 0, close })
}

impl Holding<'_> {
    /// Goes to a day: splits before its open, then its close. Returns what a split paid out; `None` when a
    /// number doesn't fit.
    fn advance(&mut self, index: usize, day: Day) -> Option<i64> {
        let mut paid = 0_i64;
        while let Some(split) = self.splits.pop_if(|split| split.day() <= day) {
            let (new, old) = (i64::from(split.numerator()), i64::from(split.denominator()));
            let all = self.shares.checked_mul(new)?;
            // A close too small to split further stays as it is.
            let close = split.adjust(Price::from_micros(self.close).ok()?).map_or(self.close, Price::micros);
            self.shares = all / old;
            paid = paid.checked_add((all % old).checked_mul(close)? / old)?;
            self.close = close;
        }
        if let Some(close) = self.closes.get(index).copied().flatten() {
            self.close = close;
        }
        Some(paid)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use market::{Bar, Series, Split};

    use super::*;

    fn day(text: &str) -> Day {
        text.parse().unwrap()
    }

    fn curve(dollars: &[i64]) -> Vec<(Day, Money)> {
        let first = day("2001-01-01");
        (0..)
            .zip(dollars)
            .map(|(n, value)| (first.plus_days(n).unwrap(), Money::from_dollars(*value).unwrap()))
            .collect()
    }

    #[test]
    fn the_figures_of_a_known_curve_are_known() {
        let curve = curve(&[100, 110, 99, 99, 198]);
        let returns = daily_returns(&curve);
        for (found, known) in returns.iter().zip([0.1, -0.1, 0.0, 1.0]) {
            assert!((found - known).abs() < 1e-12);
        }
        assert!((drawdown_max(&curve) - 0.1).abs() < 1e-12);
        // Mean 0.25, deviation (with n - 1) sqrt(0.77 / 3).
        assert!(
            (sharpe(&returns).unwrap() - 0.25 / (0.77_f64 / 3.0).sqrt() * 252.0_f64.sqrt()).abs() < 1e-12
        );
    }

    #[test]
    fn a_curve_without_variation_has_no_sharpe_ratio() {
        assert_eq!(sharpe(&daily_returns(&curve(&[100, 100, 100]))), None);
        assert_eq!(sharpe(&[0.1]), None);
        assert_eq!(growth_per_year(&curve(&[100])), None);
    }

    #[test]
    fn the_yardstick_pays_its_costs_and_lives_through_splits() {
        let bar = |text: &str, close: &str| Bar::from_close(day(text), close.parse().unwrap());
        let one = Series {
            bars: vec![
                bar("2001-01-01", "9"),
                bar("2001-01-02", "10"),
                bar("2001-01-03", "4"),
                bar("2001-01-04", "5"),
            ],
            splits: vec![Split::new(day("2001-01-03"), 5, 2).unwrap()],
        };
        let two =
            Series { bars: vec![bar("2001-01-02", "100"), bar("2001-01-04", "110")], splits: Vec::new() };
        let late = Series { bars: vec![bar("2001-01-04", "1")], splits: Vec::new() };
        let series: BTreeMap<_, _> = [("AAA", one), ("BBB", two), ("CCC", late)]
            .map(|(name, series)| (name.parse().unwrap(), series))
            .into();
        let panel = Panel::from_series(&series);
        let curve = benchmark(&panel, day("2001-01-01"), Money::from_dollars(1_000).unwrap(), 100).unwrap();
        // 500 each: 49 of AAA at 10.10 with cost, 4 of BBB at 101; 1000 - 494.90 - 404 = 101.10 in cash.
        // 5:2 makes 122.5 of AAA; the half share pays 4 / 2 = 2.
        let dollars: Vec<String> = curve.iter().map(|(_, money)| money.to_string()).collect();
        assert_eq!(dollars, ["1000.00", "991.10", "991.10", "1153.10"]);
    }

    #[test]
    fn a_yardstick_without_days_or_stocks_is_cash() {
        let cash = Money::from_dollars(10).unwrap();
        assert_eq!(benchmark(&Panel::default(), day("2001-01-01"), cash, 5), Ok(Vec::new()));
        assert_eq!(
            benchmark(&Panel::default(), day("2001-01-01"), cash, -1),
            Err(AnalystError::Parameter { name: "cost_bps" })
        );
    }
}
