//! A session task: which market days are run for which portfolios.
//!
//! Owns: the task's parameters, and what bars may be handed in for them. How the days are run is the desk's.
//!
//! INVARIANT: no bar is used that is not of the session's days and symbols.

use std::collections::BTreeSet;

use market::{Day, Money, Symbol};
use serde::Deserialize;
use wire::api::Task;

use crate::DeskError;
use crate::desk::PortfolioSeries;

/// The market days through which a session goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Session {
    /// The last one.
    pub day: Day,
    /// The portfolios.
    pub portfolios: Vec<Part>,
}

/// A session's part for one portfolio.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Part {
    /// The portfolio.
    pub portfolio: String,
    /// The day of its session before; `None` when it is opened, with the session's day as its first.
    pub after: Option<Day>,
    /// Its symbols.
    pub symbols: BTreeSet<Symbol>,
    /// The cash that it is opened with, in millionths of a dollar.
    pub cash: Money,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Params {
    portfolios: Vec<Part>,
}

impl Session {
    /// Reads a task.
    ///
    /// # Errors
    /// [`DeskError::Session`] when it is no session.
    pub fn of(task: &Task) -> Result<Self, DeskError> {
        let wrong = |problem: String| DeskError::Session(problem);
        if task.kind != access::vocabulary::TaskKind::Session.as_str() {
            return Err(wrong(format!("{} is no task for a desk", task.kind)));
        }
        let day: Day = task.market_day.parse().map_err(|_| wrong("the task names no day".to_owned()))?;
        let params: Params =
            serde_json::from_value(task.params.clone()).map_err(|error| wrong(error.to_string()))?;
        let names: BTreeSet<&str> = params.portfolios.iter().map(|part| part.portfolio.as_str()).collect();
        if names.len() != params.portfolios.len() {
            return Err(wrong("a portfolio is named twice".to_owned()));
        }
        if params.portfolios.iter().any(|part| part.after.is_some_and(|after| after >= day)) {
            return Err(wrong("the session ends before it begins".to_owned()));
        }
        Ok(Self { day, portfolios: params.portfolios })
    }

    /// The day after which the session begins for a portfolio.
    #[must_use]
    pub fn after(&self, portfolio: &str) -> Option<Day> {
        self.portfolios.iter().find(|part| part.portfolio == portfolio)?.after
    }

    /// Checks that bars and splits are of this session.
    ///
    /// # Errors
    /// [`DeskError::Session`] for the first that isn't.
    pub fn check(&self, series: &PortfolioSeries) -> Result<(), DeskError> {
        for (portfolio, series) in series {
            let strange = |what: &str| DeskError::Session(format!("{portfolio}: {what}"));
            let part = self.portfolios.iter().find(|part| part.portfolio == *portfolio);
            let part = part.ok_or_else(|| strange("not a portfolio of this session"))?;
            let within = |day: Day| match part.after {
                Some(after) => after < day && day <= self.day,
                None => day == self.day,
            };
            for (symbol, series) in series {
                if !part.symbols.contains(symbol) {
                    return Err(strange("a symbol that was not asked for"));
                }
                let days = series.bars.iter().map(|bar| bar.day);
                let days: Vec<Day> = days.chain(series.splits.iter().map(|split| split.day())).collect();
                if !days.into_iter().all(within) {
                    return Err(strange("a bar or split of another day"));
                }
            }
        }
        Ok(())
    }
}
