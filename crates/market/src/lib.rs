//! Instruments, prices, bars, splits: the language of the trading half.
//!
//! Owns: the words that every trading crate speaks (a day, a symbol, a price, an amount of money, a bar, a
//! split, a panel of closes) and the import that turns a vendor's text into them. It reads no file and no
//! clock, and it knows nothing of orders.
//!
//! INVARIANT: a value of these types is valid. Text and numbers from outside become one only through a parser
//! that refuses what is wrong. Money is counted in whole millionths of a dollar and added with a check.

mod bar;
mod day;
pub mod import;
mod number;
mod panel;
mod symbol;

pub use bar::{Bar, Series, Split};
pub use day::Day;
pub use number::{BPS_ONE, MICROS_PER_DOLLAR, Money, Price, Quantity, Side};
pub use panel::Panel;
pub use symbol::Symbol;

/// What can be wrong with a word of this crate that came from outside.
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
pub enum MarketError {
    /// The text is no day.
    #[error("not a day between 1900-01-01 and 2999-12-31, written YYYY-MM-DD")]
    Day,
    /// The text is no symbol.
    #[error("not a symbol: 1 to 12 characters of A-Z, 0-9, '.' and '-', the first a letter or a digit")]
    Symbol,
    /// The text is no decimal number.
    #[error("not a decimal number")]
    NotANumber,
    /// A price below zero.
    #[error("a price cannot be negative")]
    Negative,
    /// A price of zero, or so small that it rounds to zero.
    #[error("a price cannot be zero")]
    Zero,
    /// The number doesn't fit.
    #[error("the number is too large")]
    TooLarge,
    /// The two numbers are no split.
    #[error("a split is two different whole numbers from 1 to {most}, written NEW:OLD")]
    Split {
        /// The largest number allowed on either side.
        most: u32,
    },
    /// The parts of a panel don't fit together.
    #[error("not a panel: {reason}")]
    Panel {
        /// Which rule is broken.
        reason: &'static str,
    },
}
