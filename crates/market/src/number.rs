//! Prices, money, quantities and sides.
//!
//! Owns: scaled integers and their checked arithmetic. One unit of price or money is a millionth of a dollar;
//! one unit of quantity is a share. Rounding is named in each method. No floating-point number decides
//! anything here.
//!
//! INVARIANT: a `Price` is greater than zero. No operation wraps: what doesn't fit is `None`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::MarketError;

/// How many units of [`Price`] and [`Money`] make a dollar.
pub const MICROS_PER_DOLLAR: i64 = 1_000_000;

/// How many basis points make a whole.
pub const BPS_ONE: i64 = 10_000;

/// The longest decimal text that is read, in bytes.
const DECIMAL_LENGTH_MAX: usize = 64;

/// A price per share. Units: millionths of a dollar, greater than zero.
///
/// ```
/// let price: market::Price = "118.56".parse()?;
/// assert_eq!(price.micros(), 118_560_000);
/// # Ok::<(), market::MarketError>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "i64", into = "i64")]
pub struct Price(i64);

impl Price {
    /// The price of a number of millionths of a dollar.
    ///
    /// # Errors
    /// [`MarketError::Zero`] or [`MarketError::Negative`].
    pub fn from_micros(micros: i64) -> Result<Self, MarketError> {
        match micros {
            0 => Err(MarketError::Zero),
            ..0 => Err(MarketError::Negative),
            _ => Ok(Self(micros)),
        }
    }

    /// Millionths of a dollar.
    #[must_use]
    pub fn micros(self) -> i64 {
        self.0
    }

    /// Dollars, for models and display only; never for accounting.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "a model's input, not an amount of money")]
    pub fn as_f64(self) -> f64 {
        self.0 as f64 / MICROS_PER_DOLLAR as f64
    }

    /// Price times quantity; `None` when it doesn't fit.
    #[must_use]
    pub fn checked_mul(self, quantity: Quantity) -> Option<Money> {
        self.0.checked_mul(quantity.0).map(Money)
    }

    /// The price times a ratio, rounded half to even; `None` when it is zero or doesn't fit.
    #[must_use]
    pub fn checked_ratio(self, numerator: i64, denominator: i64) -> Option<Price> {
        let exact = i128::from(self.0).checked_mul(i128::from(numerator))?;
        let rounded = divide_half_even(exact, i128::from(denominator))?;
        Price::from_micros(i64::try_from(rounded).ok()?).ok()
    }
}

impl FromStr for Price {
    type Err = MarketError;

    /// Exact to six places, half to even beyond. A sign, an exponent and a thousands mark are not part of a
    /// price.
    fn from_str(text: &str) -> Result<Self, MarketError> {
        Self::from_micros(parse_micros(text)?)
    }
}

impl fmt::Display for Price {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&micros_text(self.0))
    }
}

impl TryFrom<i64> for Price {
    type Error = MarketError;

    fn try_from(micros: i64) -> Result<Self, MarketError> {
        Self::from_micros(micros)
    }
}

impl From<Price> for i64 {
    fn from(price: Price) -> Self {
        price.0
    }
}

/// An amount of money. Units: millionths of a dollar; may be negative.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Money(i64);

impl Money {
    /// Nothing.
    pub const ZERO: Money = Money(0);

    /// The amount of a number of millionths of a dollar.
    #[must_use]
    pub const fn from_micros(micros: i64) -> Self {
        Self(micros)
    }

    /// A whole number of dollars; `None` when it doesn't fit.
    #[must_use]
    pub fn from_dollars(dollars: i64) -> Option<Self> {
        dollars.checked_mul(MICROS_PER_DOLLAR).map(Self)
    }

    /// Millionths of a dollar.
    #[must_use]
    pub const fn micros(self) -> i64 {
        self.0
    }

    /// Dollars, for models and display only; never for accounting.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "a model's input, not an amount of money")]
    pub fn as_f64(self) -> f64 {
        self.0 as f64 / MICROS_PER_DOLLAR as f64
    }

    /// The sum; `None` when it doesn't fit.
    #[must_use]
    pub fn checked_add(self, other: Money) -> Option<Money> {
        self.0.checked_add(other.0).map(Money)
    }

    /// The difference; `None` when it doesn't fit.
    #[must_use]
    pub fn checked_sub(self, other: Money) -> Option<Money> {
        self.0.checked_sub(other.0).map(Money)
    }

    /// A number of basis points of the amount, rounded towards minus infinity; `None` when it doesn't fit.
    #[must_use]
    pub fn checked_bps_down(self, bps: i64) -> Option<Money> {
        self.checked_ratio_down(bps, BPS_ONE)
    }

    /// A number of basis points of the amount, rounded towards plus infinity; `None` when it doesn't fit.
    #[must_use]
    pub fn checked_bps_up(self, bps: i64) -> Option<Money> {
        let exact = i128::from(self.0).checked_mul(i128::from(bps))?;
        let down = (-exact).div_euclid(i128::from(BPS_ONE));
        i64::try_from(-down).ok().map(Money)
    }

    /// The amount times a ratio, rounded towards minus infinity; `None` when it doesn't fit or the ratio has
    /// a denominator that isn't positive.
    #[must_use]
    pub fn checked_ratio_down(self, numerator: i64, denominator: i64) -> Option<Money> {
        if denominator <= 0 {
            return None;
        }
        let exact = i128::from(self.0).checked_mul(i128::from(numerator))?;
        i64::try_from(exact.div_euclid(i128::from(denominator))).ok().map(Money)
    }
}

impl FromStr for Money {
    type Err = MarketError;

    /// Exact to six places, half to even beyond; a minus sign is allowed.
    fn from_str(text: &str) -> Result<Self, MarketError> {
        parse_micros(text).map(Self)
    }
}

impl fmt::Display for Money {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&micros_text(self.0))
    }
}

/// A number of whole shares. A position may not be negative, a difference may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Quantity(i64);

impl Quantity {
    /// No shares.
    pub const ZERO: Quantity = Quantity(0);

    /// A number of shares.
    #[must_use]
    pub const fn new(shares: i64) -> Self {
        Self(shares)
    }

    /// The number of shares.
    #[must_use]
    pub const fn shares(self) -> i64 {
        self.0
    }

    /// The sum; `None` when it doesn't fit.
    #[must_use]
    pub fn checked_add(self, other: Quantity) -> Option<Quantity> {
        self.0.checked_add(other.0).map(Quantity)
    }

    /// The difference; `None` when it doesn't fit.
    #[must_use]
    pub fn checked_sub(self, other: Quantity) -> Option<Quantity> {
        self.0.checked_sub(other.0).map(Quantity)
    }
}

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Which way an order goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Side {
    /// Money for shares.
    Buy,
    /// Shares for money.
    Sell,
}

impl Side {
    /// The side's one spelling.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Side::Buy => "buy",
            Side::Sell => "sell",
        }
    }
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Divides with rounding half to even; `None` when the denominator isn't positive.
fn divide_half_even(numerator: i128, denominator: i128) -> Option<i128> {
    if denominator <= 0 {
        return None;
    }
    let (whole, rest) = (numerator.div_euclid(denominator), numerator.rem_euclid(denominator));
    let up = match (rest.checked_mul(2)?).cmp(&denominator) {
        std::cmp::Ordering::Less => false,
        std::cmp::Ordering::Greater => true,
        std::cmp::Ordering::Equal => whole.rem_euclid(2) == 1,
    };
    Some(if up { whole + 1 } else { whole })
}

/// Reads `[-]digits[.digits]` as millionths, half to even beyond six places.
fn parse_micros(text: &str) -> Result<i64, MarketError> {
    let (negative, digits) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    if text.len() > DECIMAL_LENGTH_MAX {
        return Err(MarketError::NotANumber);
    }
    let (whole, fraction) = match digits.split_once('.') {
        Some((whole, fraction)) => (whole, fraction),
        None => (digits, ""),
    };
    let all_digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
    if !all_digits(whole) || !all_digits(fraction) || (whole.is_empty() && fraction.is_empty()) {
        return Err(MarketError::NotANumber);
    }
    let mut micros: i128 = 0;
    for byte in whole.bytes() {
        micros = micros * 10 + i128::from(byte - b'0');
        if micros > i128::from(i64::MAX) {
            return Err(MarketError::TooLarge);
        }
    }
    let mut places = fraction.trim_end_matches('0').bytes();
    for _ in 0..6 {
        micros = micros * 10 + i128::from(places.next().unwrap_or(b'0') - b'0');
    }
    let up = match (places.next(), places.next()) {
        (None | Some(b'0'..=b'4'), _) => false,
        (Some(b'5'), None) => micros % 2 == 1,
        (Some(_), _) => true,
    };
    if up {
        micros += 1;
    }
    i64::try_from(if negative { -micros } else { micros }).map_err(|_| MarketError::TooLarge)
}

/// Writes millionths as a decimal number with two to six places, exactly.
fn micros_text(micros: i64) -> String {
    let (sign, magnitude) = (if micros < 0 { "-" } else { "" }, micros.unsigned_abs());
    let unit = MICROS_PER_DOLLAR.unsigned_abs();
    let mut text = format!("{sign}{}.{:06}", magnitude / unit, magnitude % unit);
    for _ in 0..4 {
        if text.ends_with('0') {
            text.pop();
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn prices_are_exact_to_six_places_and_half_even_beyond() {
        let micros = |text: &str| text.parse::<Price>().map(Price::micros);
        assert_eq!(micros("118.56"), Ok(118_560_000));
        assert_eq!(micros(".5"), Ok(500_000));
        assert_eq!(micros("7."), Ok(7_000_000));
        assert_eq!(micros("0.0000005"), Err(MarketError::Zero));
        assert_eq!(micros("0.0000015"), Ok(2));
        assert_eq!(micros("0.0000025"), Ok(2));
        assert_eq!(micros("0.00000250000000001"), Ok(3));
        assert_eq!(micros("4.186662803811"), Ok(4_186_663));
        assert_eq!(micros("9223372036854.775807"), Ok(i64::MAX));
        assert_eq!(micros("9223372036854.775808"), Err(MarketError::TooLarge));
        assert_eq!(micros("0"), Err(MarketError::Zero));
        assert_eq!(micros("-1.5"), Err(MarketError::Negative));
        for text in ["", ".", "-", "--1", "+1", "1e3", "1,000", " 1", "NaN", "inf", "1.2.3", "१"] {
            assert_eq!(micros(text), Err(MarketError::NotANumber), "{text:?}");
        }
    }

    #[test]
    fn basis_points_round_the_way_their_name_says() {
        let amount = Money::from_micros(15);
        assert_eq!(amount.checked_bps_down(1_000), Some(Money::from_micros(1)));
        assert_eq!(amount.checked_bps_up(1_000), Some(Money::from_micros(2)));
        assert_eq!(Money::from_micros(-15).checked_bps_down(1_000), Some(Money::from_micros(-2)));
        assert_eq!(Money::from_micros(-15).checked_bps_up(1_000), Some(Money::from_micros(-1)));
        assert_eq!(Money::from_micros(i64::MAX).checked_bps_up(20_000), None);
        assert_eq!(Money::from_micros(1).checked_ratio_down(1, 0), None);
    }

    #[test]
    fn a_price_that_is_not_positive_does_not_deserialise() {
        assert_eq!(serde_json::from_str::<Price>("5").unwrap().micros(), 5);
        assert!(serde_json::from_str::<Price>("0").is_err());
        assert!(serde_json::from_str::<Price>("-5").is_err());
        assert_eq!(serde_json::to_string(&Side::Sell).unwrap(), "\"sell\"");
    }

    proptest! {
        #[test]
        fn parsing_what_was_displayed_gives_the_same_price(micros in 1..=i64::MAX) {
            let price = Price::from_micros(micros).unwrap();
            prop_assert_eq!(price.to_string().parse::<Price>(), Ok(price));
        }

        #[test]
        fn parsing_what_was_displayed_gives_the_same_money(micros in -i64::MAX..=i64::MAX) {
            let money = Money::from_micros(micros);
            prop_assert_eq!(money.to_string().parse::<Money>(), Ok(money));
        }

        #[test]
        fn no_text_panics_the_number_parser(text in ".{0,80}") {
            let _ = text.parse::<Price>();
            let _ = text.parse::<Money>();
        }
    }
}
