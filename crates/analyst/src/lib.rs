//! Forecasts from the past, and portfolios from forecasts.
//!
//! Owns: the features of a stock on a day ([`features`]), the learned ranker ([`ridge`], [`forecast`]), the
//! way from scores to proposed orders ([`construct`](mod@construct)) and the figures a result is judged by
//! ([`metrics`]). It places nothing and holds no money: what it says is a proposal that others check. Floats
//! end at [`forecast`]: scores leave it as integers, and every weight, amount and quantity after that is an
//! integer.
//!
//! INVARIANT: nothing computed for day t depends on any figure of a later day.
//! INVARIANT: the same panel gives the same forecast to the bit: only `+ - * /` and square roots, in fixed orders.

pub mod construct;
pub mod convert;
pub mod features;
pub mod forecast;
pub mod levels;
pub mod metrics;
pub mod ridge;

/// Why the analyst can't answer.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum AnalystError {
    /// Fewer labelled past weeks than a model needs.
    #[error("too little history: {weeks} labelled weeks, {needed} needed")]
    TooLittleHistory {
        /// Weeks with at least [`features::STOCKS_MIN`] stocks that have features and a label.
        weeks: usize,
        /// Weeks needed.
        needed: usize,
    },
    /// The equations of the model have no unique solution (a figure is not finite, or the penalty not
    /// positive).
    #[error("the model's equations have no unique solution")]
    Singular,
    /// A computed figure is not a number, or too large to be an exact integer.
    #[error("{what} is out of range")]
    OutOfRange {
        /// Which figure.
        what: &'static str,
    },
    /// A panel's columns and days don't agree in length.
    #[error("the panel is ragged: {symbols} symbols, {columns} columns")]
    Ragged {
        /// Symbols named.
        symbols: usize,
        /// Columns of the right length.
        columns: usize,
    },
    /// A parameter lies outside its range.
    #[error("the parameter {name} is out of range")]
    Parameter {
        /// Which parameter.
        name: &'static str,
    },
}
