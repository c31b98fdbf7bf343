//! From scores to proposed orders.
//!
//! Owns: target weights, the no-trade band, the size of one step, and the budget. All of it is integer
//! arithmetic: weights are millionths of equity, money is millionths of a dollar. What comes out are
//! proposals; whether one becomes an order is decided elsewhere.
//!
//! The target weight of a stock is the equal weight, tilted in proportion to the stock's rank: with a full
//! tilt the last gets nothing and the first gets twice the equal weight. Ranks, not scores, because a
//! forecast's order is worth more than its size.
//!
//! INVARIANT: no proposal sells more than is held, no proposal is above the order limit, and all buys
//! together fit in the budget.

use std::collections::BTreeMap;

use market::{BPS_ONE, Money, Price, Quantity, Side, Symbol};
use serde::{Deserialize, Serialize};

use crate::AnalystError;

/// A weight of one: all of the equity, in millionths.
const WHOLE_PPM: i128 = 1_000_000;

/// Millionths in a basis point.
const PPM_PER_BPS: i128 = 100;

/// How a portfolio is built. Units: basis points, of equity unless said otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Construction {
    /// The most that one stock is meant to weigh.
    pub cap_bps: i64,
    /// The most that one order moves; a bigger change takes several steps.
    pub order_max_bps: i64,
    /// A smaller change is left alone, unless it ends a position.
    pub trade_min_bps: i64,
    /// What stays in cash.
    pub cash_bps: i64,
    /// What a trade costs, of its own amount: fee and slippage.
    pub cost_bps: i64,
    /// How much of sales not yet made may be spent, of their amount.
    pub proceeds_bps: i64,
    /// How far ranks move weights: 0 keeps all equal, 10,000 gives the last nothing.
    pub tilt_bps: i64,
}

impl Construction {
    /// For a portfolio of about twenty stocks.
    pub const CORE: Self = Self {
        cap_bps: 1_200,
        order_max_bps: 800,
        trade_min_bps: 200,
        cash_bps: 150,
        cost_bps: 10,
        proceeds_bps: 9_500,
        tilt_bps: 10_000,
    };

    /// For a portfolio of about five stocks.
    pub const TECH: Self = Self { cap_bps: 3_500, order_max_bps: 2_000, ..Self::CORE };

    fn check(&self) -> Result<(), AnalystError> {
        let share = |value: i64, name| match value {
            0..=BPS_ONE => Ok(()),
            _ => Err(AnalystError::Parameter { name }),
        };
        share(self.cap_bps, "cap_bps")?;
        share(self.order_max_bps, "order_max_bps")?;
        share(self.trade_min_bps, "trade_min_bps")?;
        share(self.cash_bps, "cash_bps")?;
        share(self.cost_bps, "cost_bps")?;
        share(self.proceeds_bps, "proceeds_bps")?;
        share(self.tilt_bps, "tilt_bps")
    }
}

/// What a portfolio has, and what its stocks cost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Book {
    /// Money not in stocks.
    pub cash: Money,
    /// Cash and stocks together.
    pub equity: Money,
    /// Shares held.
    pub holdings: BTreeMap<Symbol, Quantity>,
    /// The last raw close of each stock that can be traded now. A stock without one is left as it is.
    pub prices: BTreeMap<Symbol, Price>,
}

/// An order that the analyst would place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Proposal {
    /// Which stock.
    pub symbol: Symbol,
    /// Which way.
    pub side: Side,
    /// How many shares, above zero.
    pub quantity: Quantity,
    /// The close that the quantity was worked out with.
    pub reference_price: Price,
}

/// A stock that has a score and a price, on its way to an order.
struct Candidate<'a> {
    symbol: &'a Symbol,
    price: i128,
    shares: i128,
    /// The present weight.
    weight: i128,
    /// The score, with the cost of replacing what is already held.
    score: i128,
    target: i128,
}

/// The orders that move a portfolio towards a forecast: sells first (by symbol), then buys (best score first,
/// then by symbol).
///
/// `scores_ppm` are expected returns beyond the peers', in millionths, known at the prices' day.
///
/// # Errors
/// [`AnalystError::Parameter`] for a share outside 0 to 10,000; [`AnalystError::OutOfRange`] when equity is
/// not above zero or a figure doesn't fit.
pub fn construct(
    scores_ppm: &BTreeMap<Symbol, i64>,
    book: &Book,
    construction: &Construction,
) -> Result<Vec<Proposal>, AnalystError> {
    construction.check()?;
    let equity = i128::from(book.equity.micros());
    if equity <= 0 {
        return Err(AnalystError::OutOfRange { what: "equity" });
    }
    let mut candidates = candidates(scores_ppm, book, equity, construction)?;
    let kept = kept_aside(scores_ppm, book, equity)?;
    let investable = WHOLE_PPM - i128::from(construction.cash_bps) * PPM_PER_BPS - kept;
    aim(&mut candidates, investable.max(0), construction);

    let order_max = equity * i128::from(construction.order_max_bps) / i128::from(BPS_ONE);
    let trade_min = equity * i128::from(construction.trade_min_bps) / i128::from(BPS_ONE);
    let mut proposals = Vec::new();
    let mut budget =
        i128::from(book.cash.micros()) - equity * i128::from(construction.cash_bps) / i128::from(BPS_ONE);
    for candidate in &candidates {
        let surplus = (candidate.weight - candidate.target) * equity / WHOLE_PPM;
        let ends = candidate.target == 0;
        if candidate.shares <= 0 || surplus <= 0 || (surplus < trade_min && !ends) {
            continue;
        }
        let wanted = if ends { candidate.shares } else { surplus / candidate.price };
        let shares = wanted.min(candidate.shares).min(order_max / candidate.price);
        if shares > 0 {
            budget += shares * candidate.price * i128::from(construction.proceeds_bps) / i128::from(BPS_ONE);
            proposals.push(proposal(candidate, Side::Sell, shares)?);
        }
    }
    candidates.sort_by(|left, right| right.score.cmp(&left.score).then(left.symbol.cmp(right.symbol)));
    for candidate in &candidates {
        let lack = (candidate.target - candidate.weight) * equity / WHOLE_PPM;
        if lack < trade_min || lack <= 0 {
            continue;
        }
        // One share costs its price and what trading it costs.
        let scale = i128::from(BPS_ONE);
        let affordable =
            budget.max(0) * scale / (candidate.price * (scale + i128::from(construction.cost_bps)));
        let shares = (lack.min(order_max) / candidate.price).min(affordable);
        let amount = shares * candidate.price;
        // What the order limit or whole shares cut off is no reason to stay out; an empty purse is.
        let cut_by_budget = shares == affordable && amount < trade_min;
        if shares > 0 && !cut_by_budget {
            budget -= (amount * (scale + i128::from(construction.cost_bps)) + scale - 1) / scale;
            proposals.push(proposal(candidate, Side::Buy, shares)?);
        }
    }
    Ok(proposals)
}

/// The stocks with a score and a price, by symbol.
fn candidates<'a>(
    scores_ppm: &'a BTreeMap<Symbol, i64>,
    book: &Book,
    equity: i128,
    construction: &Construction,
) -> Result<Vec<Candidate<'a>>, AnalystError> {
    let tradable = scores_ppm.keys().filter(|symbol| book.prices.contains_key(*symbol)).count();
    let base = WHOLE_PPM / i128::try_from(tradable.max(1)).unwrap_or(WHOLE_PPM);
    // Replacing a holding costs a sale and a purchase, so a newcomer has to promise more than that.
    let replacement = 2 * i128::from(construction.cost_bps) * PPM_PER_BPS;
    let mut candidates = Vec::with_capacity(tradable);
    for (symbol, score) in scores_ppm {
        let Some(price) = book.prices.get(symbol) else { continue };
        let price = i128::from(price.micros());
        let shares = book.holdings.get(symbol).map_or(0, |quantity| i128::from(quantity.shares()));
        let weight = weight(shares, price, equity)?;
        let credit = replacement * weight.clamp(0, base) / base.max(1);
        let score = i128::from(*score) + credit;
        candidates.push(Candidate { symbol, price, shares, weight, score, target: 0 });
    }
    Ok(candidates)
}

/// The weight of what is held but can't be judged: it stays, and the rest makes room for it.
fn kept_aside(scores_ppm: &BTreeMap<Symbol, i64>, book: &Book, equity: i128) -> Result<i128, AnalystError> {
    let mut kept = 0;
    for (symbol, quantity) in &book.holdings {
        if let (None, Some(price)) = (scores_ppm.get(symbol), book.prices.get(symbol)) {
            kept += weight(i128::from(quantity.shares()), i128::from(price.micros()), equity)?.max(0);
        }
    }
    Ok(kept)
}

fn weight(shares: i128, price: i128, equity: i128) -> Result<i128, AnalystError> {
    let scaled = shares.checked_mul(price).and_then(|value| value.checked_mul(WHOLE_PPM));
    scaled.map(|value| value / equity).ok_or(AnalystError::OutOfRange { what: "a weight" })
}

/// Sets the target weights: equal, tilted by rank, capped; what a cap cuts off goes to the others in
/// proportion.
fn aim(candidates: &mut [Candidate<'_>], investable: i128, construction: &Construction) {
    let last = candidates.len() as i128 - 1;
    let tilt = i128::from(construction.tilt_bps);
    let cap = i128::from(construction.cap_bps) * PPM_PER_BPS;
    let scores: Vec<i128> = candidates.iter().map(|candidate| candidate.score).collect();
    // Below and above are counted, not sorted, so that equal scores get equal weights. The sum of all parts
    // is n * (n - 1) * 10,000.
    let parts: Vec<i128> = scores
        .iter()
        .map(|score| {
            let below = scores.iter().filter(|other| *other < score).count() as i128;
            let above = scores.iter().filter(|other| *other > score).count() as i128;
            if last == 0 { 1 } else { last * i128::from(BPS_ONE) + tilt * (below - above) }
        })
        .collect();
    let mut free: Vec<bool> = vec![true; parts.len()];
    let mut rest = investable;
    // Each round caps at least one stock or is the last.
    for _ in 0..parts.len() {
        let sum: i128 = parts.iter().zip(&free).filter(|(_, free)| **free).map(|(part, _)| *part).sum();
        if sum <= 0 {
            break;
        }
        let round = rest;
        let mut capped = false;
        for ((candidate, part), free) in candidates.iter_mut().zip(&parts).zip(&mut free) {
            if *free {
                candidate.target = round * part / sum;
                if candidate.target >= cap {
                    candidate.target = cap;
                    rest = (rest - cap).max(0);
                    *free = false;
                    capped = true;
                }
            }
        }
        if !capped {
            break;
        }
    }
}

fn proposal(candidate: &Candidate<'_>, side: Side, shares: i128) -> Result<Proposal, AnalystError> {
    let out = |what| AnalystError::OutOfRange { what };
    Ok(Proposal {
        symbol: candidate.symbol.clone(),
        side,
        quantity: Quantity::new(i64::try_from(shares).map_err(|_| out("a quantity"))?),
        reference_price: i64::try_from(candidate.price)
            .ok()
            .and_then(|micros| Price::from_micros(micros).ok())
            .ok_or(out("a price"))?,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn symbol(index: usize) -> Symbol {
        format!("S{index:02}").parse().unwrap()
    }

    fn book(dollars: i64, stocks: &[(i64, i64)]) -> Book {
        let price = |dollars: i64| Price::from_micros(dollars * 1_000_000).unwrap();
        let worth: i64 = stocks.iter().map(|(shares, dollars)| shares * dollars).sum();
        Book {
            cash: Money::from_dollars(dollars).unwrap(),
            equity: Money::from_dollars(dollars + worth).unwrap(),
            holdings: (0..)
                .map(symbol)
                .zip(stocks)
                .map(|(name, (shares, _))| (name, Quantity::new(*shares)))
                .collect(),
            prices: (0..)
                .map(symbol)
                .zip(stocks)
                .map(|(name, (_, dollars))| (name, price(*dollars)))
                .collect(),
        }
    }

    fn scores(values: &[i64]) -> BTreeMap<Symbol, i64> {
        (0..).map(symbol).zip(values.iter().copied()).collect()
    }

    #[test]
    fn the_best_gets_most_and_the_last_gets_nothing() {
        let proposals =
            construct(&scores(&[10, -5, 300, 0, 20]), &book(100_000, &[(0, 10); 5]), &Construction::TECH)
                .unwrap();
        let bought: Vec<(&str, i64)> =
            proposals.iter().map(|one| (one.symbol.as_str(), one.quantity.shares())).collect();
        // Ranks give 39.4, 29.5, 19.7, 9.8 and 0 % of 98.5 %; the cap is 35 %, one order is at most 20 %.
        assert_eq!(bought[0], ("S02", 2_000));
        assert_eq!(bought[1], ("S04", 2_000));
        assert_eq!(bought[2].0, "S00");
        assert_eq!(bought[3].0, "S03");
        assert_eq!(bought.len(), 4);
    }

    #[test]
    fn sells_come_before_buys_and_a_last_place_is_sold_whole() {
        let book = book(1_000, &[(30, 10), (1_000, 10), (900, 10), (0, 10), (0, 10)]);
        let proposals = construct(&scores(&[-900, 0, 100, 200, 300]), &book, &Construction::TECH).unwrap();
        let sides: Vec<Side> = proposals.iter().map(|one| one.side).collect();
        assert!(sides.is_sorted_by_key(|side| *side == Side::Buy));
        assert_eq!((proposals[0].symbol.as_str(), proposals[0].quantity.shares()), ("S00", 30));
    }

    #[test]
    fn a_small_change_is_left_alone() {
        let even = Construction { tilt_bps: 0, ..Construction::TECH };
        // 19.7 % is the target of each; 19 % is near enough.
        let near = book(5_000, &[(1_900, 10); 5]);
        assert_eq!(construct(&scores(&[1, 2, 3, 4, 5]), &near, &even), Ok(Vec::new()));
        let far = book(22_000, &[(1_900, 10), (1_900, 10), (1_900, 10), (1_900, 10), (200, 10)]);
        assert_eq!(construct(&scores(&[1, 2, 3, 4, 5]), &far, &even).unwrap().len(), 1);
    }

    #[test]
    fn a_newcomer_must_promise_more_than_the_exchange_costs() {
        let held = book(1_000, &[(2_000, 10), (0, 10), (0, 10)]);
        let of = |newcomer| {
            let mut scores = scores(&[1_000, newcomer, -9_000]);
            scores.retain(|_, score| *score != 0);
            candidates(&scores, &held, i128::from(held.equity.micros()), &Construction::TECH)
                .unwrap()
                .iter()
                .max_by_key(|candidate| candidate.score)
                .map(|candidate| candidate.symbol.to_string())
        };
        // Ten basis points each way are 2,000 millionths.
        assert_eq!(of(2_900).as_deref(), Some("S00"));
        assert_eq!(of(3_100).as_deref(), Some("S01"));
    }

    #[test]
    fn equal_scores_get_equal_weights() {
        let proposals =
            construct(&scores(&[7; 5]), &book(100_000, &[(0, 10); 5]), &Construction::TECH).unwrap();
        assert_eq!(proposals.len(), 5);
        // The costs come out of the last one.
        let shares: Vec<i64> = proposals.iter().map(|one| one.quantity.shares()).collect();
        assert_eq!(shares, [1_970, 1_970, 1_970, 1_970, 1_960]);
    }

    #[test]
    fn what_has_no_score_or_no_price_is_left_as_it_is() {
        let mut book = book(10_000, &[(500, 10), (500, 10), (0, 10), (0, 10)]);
        book.prices.remove(&symbol(1));
        let mut scores = scores(&[0, -100, 100, 50]);
        scores.remove(&symbol(0));
        let proposals = construct(&scores, &book, &Construction::TECH).unwrap();
        assert!(!proposals.is_empty());
        assert!(proposals.iter().all(|one| one.symbol != symbol(0) && one.symbol != symbol(1)));
    }

    #[test]
    fn nonsense_is_refused() {
        let mut broke = book(100, &[(0, 10); 3]);
        broke.equity = Money::ZERO;
        let scores = scores(&[1, 2, 3]);
        assert_eq!(
            construct(&scores, &broke, &Construction::CORE),
            Err(AnalystError::OutOfRange { what: "equity" })
        );
        let wild = Construction { cap_bps: 10_001, ..Construction::CORE };
        let wrong = construct(&scores, &book(100, &[(0, 10); 3]), &wild);
        assert_eq!(wrong, Err(AnalystError::Parameter { name: "cap_bps" }));
    }

    proptest! {
        #[test]
        fn whatever_the_scores_the_limits_hold(
            stocks in prop::collection::vec((0_i64..5_000, 1_i64..900, -50_000_i64..50_000), 1..25),
            cash in 0_i64..1_000_000,
            core in any::<bool>(),
        ) {
            let shape: Vec<(i64, i64)> = stocks.iter().map(|(shares, price, _)| (*shares, *price)).collect();
            let book = book(cash + 1, &shape);
            let scores = scores(&stocks.iter().map(|stock| stock.2).collect::<Vec<_>>());
            let construction = if core { Construction::CORE } else { Construction::TECH };
            let proposals = construct(&scores, &book, &construction).unwrap();
            prop_assert_eq!(&proposals, &construct(&scores, &book, &construction).unwrap());
            let equity = book.equity.micros();
            let (mut spent, mut earned) = (0_i64, 0_i64);
            for one in &proposals {
                let amount = one.quantity.shares() * one.reference_price.micros();
                prop_assert!(one.quantity.shares() > 0);
                prop_assert!(amount <= equity / 10_000 * construction.order_max_bps + 10_000);
                match one.side {
                    Side::Buy => {
                        spent += amount;
                        let held = book.holdings[&one.symbol].shares() * one.reference_price.micros();
                        // Weights are counted in millionths.
                        let cap = equity / 10_000 * construction.cap_bps + equity / 1_000_000 + 10_000;
                        prop_assert!(held + amount <= cap);
                    }
                    Side::Sell => {
                        earned += amount;
                        prop_assert!(one.quantity <= book.holdings[&one.symbol]);
                    }
                }
            }
            prop_assert!(spent == 0 || spent <= book.cash.micros() + earned / 100 * 95 + 100);
        }
    }
}
