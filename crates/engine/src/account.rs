//! What a portfolio has: cash and shares.
//!
//! Owns: the effect of fills and splits on cash, positions and their cost. It knows no reservation and no
//! limit; `risk` does. An event either happens as a whole or, with an error, not at all.
//!
//! INVARIANT: positions are the sum of fills and splits, none is negative, none of zero shares is kept. Cash
//! may fall below zero when a price rises between decision and open: the account says so, and `risk` then
//! lets nothing more be bought.

use std::collections::BTreeMap;

use market::{Money, Price, Quantity, Side, Split, Symbol};
use serde::{Deserialize, Serialize};

use crate::{EngineError, Fill, split_quantity};

/// Shares of one instrument.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Position {
    /// How many shares; above zero.
    pub quantity: Quantity,
    /// What they cost, fees included.
    pub cost: Money,
}

/// What a split did to an account.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SplitEffect {
    /// Shares before.
    pub before: Quantity,
    /// Shares after.
    pub after: Quantity,
    /// Money paid for the part of a share that was over.
    pub paid: Money,
}

/// Cash and positions of one portfolio.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Account {
    /// The money. Below zero it is owed.
    pub cash: Money,
    /// The shares, by instrument.
    pub positions: BTreeMap<Symbol, Position>,
}

impl Account {
    /// An account with money only.
    #[must_use]
    pub fn new(cash: Money) -> Self {
        Self { cash, positions: BTreeMap::new() }
    }

    /// How many shares of an instrument are held.
    #[must_use]
    pub fn held(&self, symbol: &Symbol) -> Quantity {
        self.positions.get(symbol).map_or(Quantity::ZERO, |position| position.quantity)
    }

    /// Books a fill. The caller sees to it that each fill is booked once.
    ///
    /// # Errors
    /// [`EngineError::Short`] when more is sold than held, [`EngineError::Intent`] when the quantity isn't
    /// above zero or the fee is below, [`EngineError::Overflow`].
    pub fn apply_fill(&mut self, fill: &Fill) -> Result<(), EngineError> {
        if fill.quantity <= Quantity::ZERO {
            return Err(EngineError::Intent { reason: "the quantity is not above zero" });
        }
        if fill.fee < Money::ZERO {
            return Err(EngineError::Intent { reason: "the fee is below zero" });
        }
        let value = fill.price.checked_mul(fill.quantity).ok_or(EngineError::Overflow)?;
        let position = self
            .positions
            .get(&fill.symbol)
            .copied()
            .unwrap_or(Position { quantity: Quantity::ZERO, cost: Money::ZERO });
        let (cash, position) = match fill.side {
            Side::Buy => {
                let paid = value.checked_add(fill.fee);
                (
                    paid.and_then(|paid| self.cash.checked_sub(paid)),
                    paid.and_then(|paid| position.cost.checked_add(paid))
                        .zip(position.quantity.checked_add(fill.quantity)),
                )
            }
            Side::Sell => {
                if fill.quantity > position.quantity {
                    return Err(EngineError::Short { symbol: fill.symbol.clone() });
                }
                let left = position.quantity.checked_sub(fill.quantity).ok_or(EngineError::Overflow)?;
                (
                    value.checked_sub(fill.fee).and_then(|got| self.cash.checked_add(got)),
                    position
                        .cost
                        .checked_ratio_down(left.shares(), position.quantity.shares())
                        .zip(Some(left)),
                )
            }
        };
        let (cash, (cost, quantity)) = cash.zip(position).ok_or(EngineError::Overflow)?;
        self.cash = cash;
        if quantity == Quantity::ZERO {
            self.positions.remove(&fill.symbol);
        } else {
            self.positions.insert(fill.symbol.clone(), Position { quantity, cost });
        }
        Ok(())
    }

    /// Books a split of an instrument whose last close before it was `last_close`. What is over a whole share
    /// is paid out at that close as it counts after the split, rounded down. The cost stays with the whole
    /// shares.
    ///
    /// # Errors
    /// [`EngineError::Overflow`].
    pub fn apply_split(
        &mut self,
        symbol: &Symbol,
        split: &Split,
        last_close: Price,
    ) -> Result<SplitEffect, EngineError> {
        let Some(position) = self.positions.get(symbol).copied() else {
            return Ok(SplitEffect { before: Quantity::ZERO, after: Quantity::ZERO, paid: Money::ZERO });
        };
        let (after, over) = split_quantity(position.quantity, split).ok_or(EngineError::Overflow)?;
        // `over / denominator` of a new share, each worth `last_close * denominator / numerator`.
        let paid = Money::from_micros(last_close.micros())
            .checked_ratio_down(over, i64::from(split.numerator()))
            .ok_or(EngineError::Overflow)?;
        self.cash = self.cash.checked_add(paid).ok_or(EngineError::Overflow)?;
        if after == Quantity::ZERO {
            self.positions.remove(symbol);
        } else {
            self.positions.insert(symbol.clone(), Position { quantity: after, cost: position.cost });
        }
        Ok(SplitEffect { before: position.quantity, after, paid })
    }

    /// Cash and the value of all shares at the prices given.
    ///
    /// # Errors
    /// [`EngineError::NoPrice`] when a share has none, [`EngineError::Overflow`].
    pub fn equity(&self, prices: &BTreeMap<Symbol, Price>) -> Result<Money, EngineError> {
        let mut equity = self.cash;
        for (symbol, position) in &self.positions {
            let price = prices.get(symbol).ok_or_else(|| EngineError::NoPrice { symbol: symbol.clone() })?;
            let value = price.checked_mul(position.quantity).ok_or(EngineError::Overflow)?;
            equity = equity.checked_add(value).ok_or(EngineError::Overflow)?;
        }
        Ok(equity)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn fill(side: Side, quantity: i64, cents: i64) -> Fill {
        Fill {
            id: "f".to_owned(),
            order: "o".parse().unwrap(),
            portfolio: "core".to_owned(),
            symbol: "AAPL".parse().unwrap(),
            side,
            quantity: Quantity::new(quantity),
            price: Price::from_micros(cents * 10_000).unwrap(),
            fee: Money::from_micros(7),
            day: "2001-01-01".parse().unwrap(),
        }
    }

    fn account() -> Account {
        Account::new(Money::from_dollars(1_000_000).unwrap())
    }

    #[test]
    fn a_sale_of_more_than_is_held_changes_nothing() {
        let mut account = account();
        account.apply_fill(&fill(Side::Buy, 5, 1_000)).unwrap();
        let before = account.clone();
        assert!(matches!(account.apply_fill(&fill(Side::Sell, 6, 1_000)), Err(EngineError::Short { .. })));
        assert!(account.apply_fill(&fill(Side::Buy, i64::MAX, 1_000)).is_err());
        assert!(account.apply_fill(&fill(Side::Buy, -5, 1_000)).is_err());
        assert!(
            account.apply_fill(&Fill { fee: Money::from_micros(-1), ..fill(Side::Buy, 5, 1_000) }).is_err()
        );
        assert_eq!(account, before);
    }

    #[test]
    fn a_position_without_a_price_has_no_equity() {
        let mut account = account();
        account.apply_fill(&fill(Side::Buy, 5, 1_000)).unwrap();
        assert!(matches!(account.equity(&BTreeMap::new()), Err(EngineError::NoPrice { .. })));
    }

    #[test]
    fn a_fraction_left_by_a_split_is_paid_out() {
        let mut account = account();
        account.apply_fill(&fill(Side::Buy, 5, 1_000)).unwrap();
        let cash = account.cash;
        let split = Split::new("2001-01-02".parse().unwrap(), 3, 2).unwrap();
        let effect = account.apply_split(&"AAPL".parse().unwrap(), &split, "12".parse().unwrap()).unwrap();
        // 5 old shares are 7.5 new ones at 8 dollars: half a share is worth 4.
        assert_eq!(effect.after, Quantity::new(7));
        assert_eq!(effect.paid, Money::from_dollars(4).unwrap());
        assert_eq!(account.cash, cash.checked_add(effect.paid).unwrap());
    }

    proptest! {
        #[test]
        fn positions_are_the_sum_of_fills_and_cash_is_the_rest(
            trades in proptest::collection::vec((any::<bool>(), 1_i64..1_000, 1_i64..100_000), 0..50),
        ) {
            let mut account = account();
            let (mut shares, mut cash) = (0, account.cash.micros());
            for (buy, quantity, cents) in trades {
                let trade = fill(if buy { Side::Buy } else { Side::Sell }, quantity, cents);
                if account.apply_fill(&trade).is_ok() {
                    let sign = if buy { 1 } else { -1 };
                    shares += sign * quantity;
                    cash -= sign * quantity * cents * 10_000 + 7;
                }
            }
            prop_assert_eq!(account.held(&"AAPL".parse().unwrap()), Quantity::new(shares));
            prop_assert_eq!(account.cash.micros(), cash);
            prop_assert!(account.positions.values().all(|one| one.quantity > Quantity::ZERO));
        }

        #[test]
        fn a_split_neither_makes_nor_loses_money(
            quantity in 1_i64..100_000,
            cents in 100_i64..1_000_000,
            numerator in 1_u32..20,
            denominator in 1_u32..20,
        ) {
            prop_assume!(numerator != denominator);
            let symbol: Symbol = "AAPL".parse().unwrap();
            let mut account = account();
            account.apply_fill(&fill(Side::Buy, quantity, 1)).unwrap();
            let close = Price::from_micros(cents * 10_000).unwrap();
            let before = account.equity(&BTreeMap::from([(symbol.clone(), close)])).unwrap();
            let split = Split::new("2001-01-02".parse().unwrap(), numerator, denominator).unwrap();
            let effect = account.apply_split(&symbol, &split, close).unwrap();
            let adjusted = split.adjust(close).unwrap();
            let after = account.equity(&BTreeMap::from([(symbol, adjusted)])).unwrap();
            // The adjusted price is rounded by at most half a millionth per share, the payout by one
            // millionth.
            let most = effect.after.shares() / 2 + 2;
            prop_assert!((after.micros() - before.micros()).abs() <= most);
        }
    }
}
