//! A day of market time.
//!
//! Owns: the calendar day that bars, orders and fills are dated with, and its one spelling. It doesn't know
//! which days the market is open: the bars tell.
//!
//! INVARIANT: the year is from 1900 to 2999, the same range that a grant's market day has.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use time::{Date, Duration, Month};

use crate::MarketError;

/// A day of market time, ordered like the calendar; written `YYYY-MM-DD`.
///
/// ```
/// let day: market::Day = "2000-09-29".parse()?;
/// assert_eq!(day.to_string(), "2000-09-29");
/// # Ok::<(), market::MarketError>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Day(Date);

impl Day {
    /// The day of a year, a month (1 to 12) and a day of the month.
    ///
    /// # Errors
    /// [`MarketError::Day`] when there is no such day, or the year is not from 1900 to 2999.
    pub fn new(year: i32, month: u8, day: u8) -> Result<Self, MarketError> {
        if !(1900..=2999).contains(&year) {
            return Err(MarketError::Day);
        }
        let month = Month::try_from(month).map_err(|_| MarketError::Day)?;
        Date::from_calendar_date(year, month, day).map(Self).map_err(|_| MarketError::Day)
    }

    /// The calendar date.
    #[must_use]
    pub fn date(self) -> Date {
        self.0
    }

    /// The calendar year.
    #[must_use]
    pub fn year(self) -> i32 {
        self.0.year()
    }

    /// How many calendar days this day is after another; negative when it is before.
    #[must_use]
    pub fn days_since(self, earlier: Day) -> i64 {
        (self.0 - earlier.0).whole_days()
    }

    /// The day a number of calendar days later (earlier when negative); `None` outside the years 1900 to
    /// 2999.
    #[must_use]
    pub fn plus_days(self, days: i64) -> Option<Day> {
        // A million days is more than the whole range; beyond it the duration itself could overflow.
        if days.unsigned_abs() > 1_000_000 {
            return None;
        }
        let date = self.0.checked_add(Duration::days(days))?;
        (1900..=2999).contains(&date.year()).then_some(Self(date))
    }
}

impl FromStr for Day {
    type Err = MarketError;

    fn from_str(text: &str) -> Result<Self, MarketError> {
        let number = |part: &str, length: usize| {
            let digits = part.len() == length && part.bytes().all(|byte| byte.is_ascii_digit());
            if digits { part.parse::<u16>().ok() } else { None }
        };
        let mut parts = text.split('-');
        let (Some(year), Some(month), Some(day), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(MarketError::Day);
        };
        let (Some(year), Some(month), Some(day)) = (number(year, 4), number(month, 2), number(day, 2)) else {
            return Err(MarketError::Day);
        };
        let small = |value: u16| u8::try_from(value).map_err(|_| MarketError::Day);
        Self::new(i32::from(year), small(month)?, small(day)?)
    }
}

impl fmt::Display for Day {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04}-{:02}-{:02}", self.0.year(), u8::from(self.0.month()), self.0.day())
    }
}

impl fmt::Debug for Day {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Day({self})")
    }
}

impl TryFrom<String> for Day {
    type Error = MarketError;

    fn try_from(text: String) -> Result<Self, MarketError> {
        text.parse()
    }
}

impl From<Day> for String {
    fn from(day: Day) -> Self {
        day.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_day_has_one_spelling() {
        for text in ["1900-01-01", "2000-02-29", "2999-12-31"] {
            assert_eq!(text.parse::<Day>().unwrap().to_string(), text);
        }
        for text in [
            "",
            "2001-02-29",
            "2001-2-03",
            "2001-02-3",
            "1899-12-31",
            "3000-01-01",
            "2001-02-03 ",
            "+201-02-03",
        ] {
            assert_eq!(text.parse::<Day>(), Err(MarketError::Day), "{text:?}");
        }
    }

    #[test]
    fn days_are_counted_on_the_calendar() {
        let (first, last): (Day, Day) = ("2000-02-28".parse().unwrap(), "2000-03-01".parse().unwrap());
        assert_eq!(last.days_since(first), 2);
        assert_eq!(first.plus_days(2), Some(last));
        assert_eq!(first.plus_days(i64::MAX), None);
        assert_eq!("2999-12-31".parse::<Day>().unwrap().plus_days(1), None);
    }
}
