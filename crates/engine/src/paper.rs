//! The simulated market: resting orders meet the next day's open.
//!
//! Owns: the orders of one portfolio at the market, and how they fill. It knows neither cash nor limits: a
//! market fills what it was sent. Worse than the open by the slippage, with a fee on top; sells before buys,
//! then by id.
//!
//! INVARIANT: one id stands for one order and fills at most once; no order fills on the day it was decided or
//! before; the same calls give the same reports.

use std::collections::{BTreeMap, BTreeSet};

use market::{BPS_ONE, Bar, Day, Price, Quantity, Side, Split, Symbol};
use serde::{Deserialize, Serialize};

use crate::{EngineError, ExpiryReason, Fill, OrderId, OrderIntent, OrderStatus, Report, split_quantity};

/// After how many days without a bar an order ends.
const DAYS_WITHOUT_BAR_MAX: u32 = 5;
/// The most slippage or fee, in basis points.
const MODEL_BPS_MAX: i64 = 1_000;
/// Parts of a millionth: the scale of an order's own factor on the slippage.
const FACTOR_ONE: i128 = 1_000_000;

/// How the simulated market fills.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FillModel {
    /// How much worse than the open, on average, in basis points; each order gets 0.5 to 1.5 times this.
    pub slippage_bps: i64,
    /// The fee on the value of a fill, in basis points, rounded up.
    pub fee_bps: i64,
    /// Where each order's own factor follows from.
    pub seed: u64,
}

/// What placing an order did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Placed {
    /// It is at the market now.
    New,
    /// It was there already, or had been.
    Again,
}

/// One order at the market.
#[derive(Debug, Clone)]
struct Held {
    intent: OrderIntent,
    /// What is to be traded now; differs from the intent after a split.
    quantity: Quantity,
    days_without_bar: u32,
    status: OrderStatus,
}

/// The simulated market for one portfolio's orders.
#[derive(Debug, Clone)]
pub struct PaperMarket {
    model: FillModel,
    orders: BTreeMap<OrderId, Held>,
    resting: BTreeSet<OrderId>,
    last_day: Option<Day>,
}

impl PaperMarket {
    /// A market without orders.
    ///
    /// # Errors
    /// [`EngineError::Model`] when slippage or fee isn't from 0 to 1,000 basis points.
    pub fn new(model: FillModel) -> Result<Self, EngineError> {
        let range = 0..=MODEL_BPS_MAX;
        if !range.contains(&model.slippage_bps) || !range.contains(&model.fee_bps) {
            return Err(EngineError::Model);
        }
        Ok(Self { model, orders: BTreeMap::new(), resting: BTreeSet::new(), last_day: None })
    }

    /// Takes an order; the same one again changes nothing.
    ///
    /// # Errors
    /// [`EngineError::Conflict`] when the id stands for another order, [`EngineError::Intent`] when it is
    /// none.
    pub fn place(&mut self, intent: &OrderIntent) -> Result<Placed, EngineError> {
        intent.check()?;
        match self.orders.get(&intent.id) {
            Some(held) if held.intent == *intent => Ok(Placed::Again),
            Some(_) => Err(EngineError::Conflict { id: intent.id.clone() }),
            None => {
                let held = Held {
                    intent: intent.clone(),
                    quantity: intent.quantity,
                    days_without_bar: 0,
                    status: OrderStatus::Sent,
                };
                self.orders.insert(intent.id.clone(), held);
                self.resting.insert(intent.id.clone());
                Ok(Placed::New)
            }
        }
    }

    /// Where an order is; `None` when it never arrived.
    #[must_use]
    pub fn status(&self, id: &OrderId) -> Option<OrderStatus> {
        self.orders.get(id).map(|held| held.status)
    }

    /// The instruments that have a resting order.
    #[must_use]
    pub fn symbols(&self) -> BTreeSet<&Symbol> {
        self.resting.iter().filter_map(|id| self.orders.get(id)).map(|held| &held.intent.symbol).collect()
    }

    /// Runs one market day: splits first, then the open. Splits that are not of the days since the last one
    /// are ignored.
    ///
    /// # Errors
    /// [`EngineError::DayOrder`] when the day isn't after the last one; nothing has happened then.
    pub fn step(
        &mut self,
        day: Day,
        bars: &BTreeMap<Symbol, Bar>,
        splits: &[(Symbol, Split)],
    ) -> Result<Vec<Report>, EngineError> {
        if let Some(last) = self.last_day.filter(|last| day <= *last) {
            return Err(EngineError::DayOrder { day, last });
        }
        let mut due: Vec<(Side, OrderId)> = Vec::with_capacity(self.resting.len());
        for id in &self.resting {
            if let Some(held) = self.orders.get(id).filter(|held| held.intent.day < day) {
                due.push((held.intent.side, id.clone()));
            }
        }
        // Sells first, so that their money is there when the buys need it.
        due.sort_by_key(|(side, id)| (*side == Side::Buy, id.clone()));
        let mut reports = Vec::new();
        for (_, id) in due {
            let Some(held) = self.orders.get_mut(&id) else { continue };
            let report = held.step(day, self.last_day, bars, splits, self.model);
            if let Some(report) = report {
                held.status = match report {
                    Report::Filled(_) => OrderStatus::Filled,
                    Report::Expired { .. } => OrderStatus::Expired,
                };
                self.resting.remove(&id);
                reports.push(report);
            }
        }
        self.last_day = Some(day);
        Ok(reports)
    }
}

impl Held {
    fn step(
        &mut self,
        day: Day,
        last_day: Option<Day>,
        bars: &BTreeMap<Symbol, Bar>,
        splits: &[(Symbol, Split)],
        model: FillModel,
    ) -> Option<Report> {
        let expired = |reason| Some(Report::Expired { order: self.intent.id.clone(), reason, day });
        let mut quantity = self.quantity;
        let due = |split: &Split| {
            split.day() > self.intent.day
                && split.day() <= day
                && last_day.is_none_or(|last| split.day() > last)
        };
        for (_, split) in splits.iter().filter(|(symbol, split)| *symbol == self.intent.symbol && due(split))
        {
            match split_quantity(quantity, split) {
                Some((after, _)) if after > Quantity::ZERO => quantity = after,
                Some(_) => return expired(ExpiryReason::SplitToNothing),
                None => return expired(ExpiryReason::Unpriceable),
            }
        }
        let Some(bar) = bars.get(&self.intent.symbol) else {
            self.quantity = quantity;
            self.days_without_bar += 1;
            if self.days_without_bar >= DAYS_WITHOUT_BAR_MAX {
                return Some(Report::Expired {
                    order: self.intent.id.clone(),
                    reason: ExpiryReason::NoBar,
                    day,
                });
            }
            return None;
        };
        let price = fill_price(bar.open, self.intent.side, &self.intent.id, model);
        let fee = price.and_then(|price| price.checked_mul(quantity)?.checked_bps_up(model.fee_bps));
        let (Some(price), Some(fee)) = (price, fee) else { return expired(ExpiryReason::Unpriceable) };
        let fill = Fill {
            id: format!("{}.fill", self.intent.id),
            order: self.intent.id.clone(),
            portfolio: self.intent.portfolio.clone(),
            symbol: self.intent.symbol.clone(),
            side: self.intent.side,
            quantity,
            price,
            fee,
            day,
        };
        self.quantity = quantity;
        Some(Report::Filled(fill))
    }
}

/// The open, worse by the order's own slippage, rounded against the trader; `None` when it doesn't fit.
fn fill_price(open: Price, side: Side, id: &OrderId, model: FillModel) -> Option<Price> {
    let draw =
        id.as_str().bytes().fold(splitmix64(model.seed), |state, byte| splitmix64(state ^ u64::from(byte)));
    let factor = FACTOR_ONE / 2 + i128::from(draw) % (FACTOR_ONE + 1);
    let one = i128::from(BPS_ONE) * FACTOR_ONE;
    let slip = i128::from(model.slippage_bps) * factor;
    let open = i128::from(open.micros());
    let micros = match side {
        Side::Buy => (open * (one + slip) + one - 1).div_euclid(one),
        Side::Sell => (open * (one - slip)).div_euclid(one).max(1),
    };
    Price::from_micros(i64::try_from(micros).ok()?).ok()
}

/// One step of SplitMix64. *Source*: Steele, Lea, Flood, "Fast Splittable Pseudorandom Number Generators",
/// 2014.
fn splitmix64(state: u64) -> u64 {
    let mut mixed = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MODEL: FillModel = FillModel { slippage_bps: 10, fee_bps: 5, seed: 7 };

    fn day(number: u8) -> Day {
        Day::new(2001, 1, number).unwrap()
    }

    fn intent(id: &str, side: Side, on: u8) -> OrderIntent {
        OrderIntent {
            id: id.parse().unwrap(),
            portfolio: "core".to_owned(),
            symbol: "AAPL".parse().unwrap(),
            side,
            quantity: Quantity::new(100),
            reference: "10".parse().unwrap(),
            day: day(on),
            forecast: None,
        }
    }

    fn bars(on: u8) -> BTreeMap<Symbol, Bar> {
        BTreeMap::from([("AAPL".parse().unwrap(), Bar::from_close(day(on), "10".parse().unwrap()))])
    }

    fn fill_of(report: &Report) -> &Fill {
        match report {
            Report::Filled(fill) => fill,
            Report::Expired { .. } => panic!("{report:?}"),
        }
    }

    #[test]
    fn an_order_fills_once_at_the_next_open_and_not_on_its_own_day() {
        let mut market = PaperMarket::new(MODEL).unwrap();
        market.place(&intent("o", Side::Buy, 2)).unwrap();
        assert_eq!(market.step(day(1), &bars(1), &[]), Ok(Vec::new()));
        assert_eq!(market.step(day(2), &bars(2), &[]), Ok(Vec::new()));
        let reports = market.step(day(3), &bars(3), &[]).unwrap();
        let price = fill_of(&reports[0]).price.micros();
        assert!((10_005_000..=10_015_000).contains(&price), "{price}");
        assert_eq!(market.place(&intent("o", Side::Buy, 2)), Ok(Placed::Again));
        assert_eq!(market.step(day(4), &bars(4), &[]), Ok(Vec::new()));
        assert_eq!(market.status(&"o".parse().unwrap()), Some(OrderStatus::Filled));
        assert_eq!(market.status(&"p".parse().unwrap()), None);
    }

    #[test]
    fn an_id_never_stands_for_two_orders() {
        let mut market = PaperMarket::new(MODEL).unwrap();
        assert_eq!(market.place(&intent("o", Side::Buy, 2)), Ok(Placed::New));
        assert!(matches!(market.place(&intent("o", Side::Sell, 2)), Err(EngineError::Conflict { .. })));
    }

    #[test]
    fn sells_go_before_buys() {
        let mut market = PaperMarket::new(MODEL).unwrap();
        for (id, side) in [("a", Side::Buy), ("c", Side::Sell), ("b", Side::Sell)] {
            market.place(&intent(id, side, 1)).unwrap();
        }
        let reports = market.step(day(2), &bars(2), &[]).unwrap();
        let order: Vec<&str> = reports.iter().map(|report| report.order().as_str()).collect();
        assert_eq!(order, ["b", "c", "a"]);
        assert!(fill_of(&reports[0]).price < "10".parse().unwrap());
        // 5 basis points of the value, rounded up.
        let bought = fill_of(&reports[2]);
        assert_eq!(bought.fee.micros(), (bought.price.micros() * 100 * 5 + 9_999) / 10_000);
    }

    #[test]
    fn an_order_without_a_bar_for_five_days_ends() {
        let mut market = PaperMarket::new(MODEL).unwrap();
        market.place(&intent("o", Side::Buy, 1)).unwrap();
        for number in 2..=5 {
            assert_eq!(market.step(day(number), &BTreeMap::new(), &[]), Ok(Vec::new()));
        }
        let reports = market.step(day(6), &BTreeMap::new(), &[]).unwrap();
        assert!(matches!(reports[..], [Report::Expired { reason: ExpiryReason::NoBar, .. }]));
        assert_eq!(market.step(day(7), &bars(7), &[]), Ok(Vec::new()));
    }

    #[test]
    fn a_split_changes_a_resting_order_once() {
        let mut market = PaperMarket::new(MODEL).unwrap();
        market.place(&intent("o", Side::Sell, 1)).unwrap();
        let splits = [("AAPL".parse().unwrap(), Split::new(day(2), 2, 1).unwrap())];
        assert_eq!(market.step(day(2), &BTreeMap::new(), &splits), Ok(Vec::new()));
        let reports = market.step(day(3), &bars(3), &splits).unwrap();
        assert_eq!(fill_of(&reports[0]).quantity, Quantity::new(200));
        let mut market = PaperMarket::new(MODEL).unwrap();
        market.place(&intent("after", Side::Sell, 2)).unwrap();
        let reports = market.step(day(3), &bars(3), &splits).unwrap();
        assert_eq!(fill_of(&reports[0]).quantity, Quantity::new(100));
    }

    #[test]
    fn a_day_that_is_not_the_next_is_refused() {
        let mut market = PaperMarket::new(MODEL).unwrap();
        market.step(day(2), &bars(2), &[]).unwrap();
        assert!(matches!(market.step(day(2), &bars(2), &[]), Err(EngineError::DayOrder { .. })));
        assert!(matches!(PaperMarket::new(FillModel { fee_bps: -1, ..MODEL }), Err(EngineError::Model)));
    }

    proptest! {
        #[test]
        fn the_market_is_deterministic_and_placing_again_changes_nothing(
            orders in proptest::collection::btree_map("[a-z]{1,4}", (any::<bool>(), 1_u8..10), 0..20),
            seed in any::<u64>(),
        ) {
            let run = |twice: bool| {
                let mut market = PaperMarket::new(FillModel { seed, ..MODEL }).unwrap();
                let mut reports = Vec::new();
                for today in 1..=12 {
                    for (id, (buy, on)) in orders.iter().filter(|(_, (_, on))| *on < today) {
                        let one = intent(id, if *buy { Side::Buy } else { Side::Sell }, *on);
                        if twice || *on + 1 == today {
                            market.place(&one).unwrap();
                        }
                    }
                    reports.extend(market.step(day(today), &bars(today), &[]).unwrap());
                }
                reports
            };
            let reports = run(false);
            prop_assert_eq!(reports.len(), orders.len());
            prop_assert_eq!(&reports, &run(true));
            for report in &reports {
                let fill = fill_of(report);
                let off = (fill.price.micros() - 10_000_000).abs();
                prop_assert!((5_000..=15_000).contains(&off), "0.5 to 1.5 times 10 basis points, {}", off);
            }
        }
    }
}
