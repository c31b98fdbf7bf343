//! Bars, splits and the series that they make.
//!
//! Owns: what is known of one instrument on one day, and how a split changes shares and prices. It doesn't
//! judge whether a bar is plausible: the import does.
//!
//! INVARIANT: a split's two numbers are different and from 1 to 1,000.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::{Day, MarketError, Price};

/// The largest number on either side of a split.
const SPLIT_SIDE_MAX: u32 = 1_000;

/// One day of one instrument. A source that has closes only gives four equal prices and a volume of zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bar {
    /// The day.
    pub day: Day,
    /// The first price of the day.
    pub open: Price,
    /// The highest price of the day.
    pub high: Price,
    /// The lowest price of the day.
    pub low: Price,
    /// The last price of the day.
    pub close: Price,
    /// How many shares were traded.
    pub volume: u64,
}

impl Bar {
    /// The bar of a source that has closes only.
    #[must_use]
    pub fn from_close(day: Day, close: Price) -> Self {
        Self { day, open: close, high: close, low: close, close, volume: 0 }
    }
}

/// A split: `numerator` new shares for `denominator` old ones, effective before the open of `day`.
///
/// ```
/// let split = market::Split::parse("2005-02-28".parse()?, "2:1")?;
/// assert_eq!((split.numerator(), split.denominator()), (2, 1));
/// # Ok::<(), market::MarketError>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "SplitFields", into = "SplitFields")]
pub struct Split {
    day: Day,
    numerator: u32,
    denominator: u32,
}

impl Split {
    /// The split of a day.
    ///
    /// # Errors
    /// [`MarketError::Split`] when a number is zero or above 1,000, or both are the same.
    pub fn new(day: Day, numerator: u32, denominator: u32) -> Result<Self, MarketError> {
        let side = 1..=SPLIT_SIDE_MAX;
        if side.contains(&numerator) && side.contains(&denominator) && numerator != denominator {
            Ok(Self { day, numerator, denominator })
        } else {
            Err(MarketError::Split { most: SPLIT_SIDE_MAX })
        }
    }

    /// Reads `NEW:OLD`, such as `2:1`.
    ///
    /// # Errors
    /// [`MarketError::Split`] for any other text.
    pub fn parse(day: Day, ratio: &str) -> Result<Self, MarketError> {
        let side = |text: &str| {
            let digits =
                !text.is_empty() && text.len() <= 4 && text.bytes().all(|byte| byte.is_ascii_digit());
            if digits { u32::from_str(text).ok() } else { None }
        };
        match ratio.split_once(':').map(|(new, old)| (side(new), side(old))) {
            Some((Some(numerator), Some(denominator))) => Self::new(day, numerator, denominator),
            _ => Err(MarketError::Split { most: SPLIT_SIDE_MAX }),
        }
    }

    /// The first day on which the new shares are traded.
    #[must_use]
    pub fn day(self) -> Day {
        self.day
    }

    /// New shares.
    #[must_use]
    pub fn numerator(self) -> u32 {
        self.numerator
    }

    /// Old shares.
    #[must_use]
    pub fn denominator(self) -> u32 {
        self.denominator
    }

    /// A price of the day before, as it counts after the split; half to even. `None` when it rounds to zero.
    #[must_use]
    pub fn adjust(self, price: Price) -> Option<Price> {
        price.checked_ratio(i64::from(self.denominator), i64::from(self.numerator))
    }
}

impl fmt::Display for Split {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.numerator, self.denominator)
    }
}

/// How a split is written, before it is known to be one.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SplitFields {
    day: Day,
    numerator: u32,
    denominator: u32,
}

impl TryFrom<SplitFields> for Split {
    type Error = MarketError;

    fn try_from(fields: SplitFields) -> Result<Self, MarketError> {
        Self::new(fields.day, fields.numerator, fields.denominator)
    }
}

impl From<Split> for SplitFields {
    fn from(split: Split) -> Self {
        Self { day: split.day, numerator: split.numerator, denominator: split.denominator }
    }
}

/// What is known of one instrument: bars in the order of their days, each day once, and splits.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Series {
    /// The bars, as traded on their day (not adjusted by us).
    pub bars: Vec<Bar>,
    /// The splits, in the order of their days.
    pub splits: Vec<Split>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_two_different_whole_numbers_are_a_split() {
        let day: Day = "2005-02-28".parse().unwrap();
        assert_eq!(Split::parse(day, "3:2").unwrap().to_string(), "3:2");
        for text in ["", "2", "2:2", "0:1", "2:0", "-2:1", "2:1:1", "2 :1", "1001:1", "2/1", "99999999999:1"]
        {
            assert!(Split::parse(day, text).is_err(), "{text:?}");
        }
        assert!(
            serde_json::from_str::<Split>(r#"{"day":"2005-02-28","numerator":2,"denominator":0}"#).is_err()
        );
        assert!(
            serde_json::from_str::<Split>(r#"{"day":"2005-02-28","numerator":2,"denominator":1}"#).is_ok()
        );
    }

    #[test]
    fn a_two_for_one_split_halves_the_price() {
        let split = Split::parse("2005-02-28".parse().unwrap(), "2:1").unwrap();
        assert_eq!(split.adjust("88.99".parse().unwrap()), Some("44.495".parse().unwrap()));
        assert_eq!(split.adjust(Price::from_micros(1).unwrap()), None);
    }
}
