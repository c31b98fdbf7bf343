//! The market domain: bars and splits, as a panel of closes or whole. A portfolio's data set has the
//! portfolio's name.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use access::vocabulary::Action;
use axum::http::Method;
use axum::response::Response;
use market::{Bar, Day, Series, Split, Symbol};
use serde::{Deserialize, Serialize};
use store::{Bars, Market, StoreError};
use wire::api::Written;
use wire::guard::{Needs, Operation, Pass, Touched, from_json};
use wire::problem::Problem;

use crate::parse::{self, Range};
use crate::shared::{Json, Shared, Write, problem, written};

/// `GET /v1/panel`: closes and splits as a [`market::Panel`].
pub(crate) struct ReadPanel(Range);

impl Operation for ReadPanel {
    type State = Shared<Market>;
    const METHOD: Method = Method::GET;
    const PATH: &'static str = "/v1/panel";
    const NEEDS: Needs = Needs::Grant(Action::ReadBars);

    fn parse(query: &str, _body: &[u8]) -> Result<Self, Problem> {
        Range::parse(query).map(Self)
    }

    fn touched(&self, _state: &Self::State) -> Touched {
        touched(&self.0)
    }

    async fn run(self, state: Arc<Self::State>, pass: Pass) -> Result<Response, Problem> {
        let Self(range) = self;
        state
            .read::<Self, _>(pass, move |market, last| {
                let through = range.through.min(last);
                let panel = market
                    .panel(&range.portfolio, &range.symbol_list(), range.from, through)
                    .map_err(|error| problem(&error))?;
                let rows = panel.closes.iter().flatten().flatten().count() + panel.splits.len();
                Ok((Json(panel), rows))
            })
            .await
    }
}

/// `GET /v1/bars`: whole bars and splits by symbol; every symbol asked for is there, if with nothing.
pub(crate) struct ReadBars(Range);

impl Operation for ReadBars {
    type State = Shared<Market>;
    const METHOD: Method = Method::GET;
    const PATH: &'static str = "/v1/bars";
    const NEEDS: Needs = Needs::Grant(Action::ReadBars);

    fn parse(query: &str, _body: &[u8]) -> Result<Self, Problem> {
        Range::parse(query).map(Self)
    }

    fn touched(&self, _state: &Self::State) -> Touched {
        touched(&self.0)
    }

    async fn run(self, state: Arc<Self::State>, pass: Pass) -> Result<Response, Problem> {
        let Self(range) = self;
        state
            .read::<Self, _>(pass, move |market, last| {
                let through = range.through.min(last);
                let found = between(market, &range.portfolio, &range.symbol_list(), range.from, through)
                    .map_err(|error| problem(&error))?;
                let rows = found.bars.len() + found.splits.len();
                let mut series: BTreeMap<Symbol, Series> =
                    range.symbols.into_iter().map(|symbol| (symbol, Series::default())).collect();
                for (symbol, bar) in found.bars {
                    series.entry(symbol).or_default().bars.push(bar);
                }
                for (symbol, split) in found.splits {
                    series.entry(symbol).or_default().splits.push(split);
                }
                Ok((Json(series), rows))
            })
            .await
    }
}

fn touched(range: &Range) -> Touched {
    Touched {
        portfolio: Some(range.portfolio.clone()),
        symbols: parse::texts(&range.symbols),
        market_day: parse::market_day(range.through),
        ..Touched::default()
    }
}

/// Bars from one day through another, both included.
fn between(
    market: &Market,
    portfolio: &str,
    symbols: &[Symbol],
    from: Day,
    through: Day,
) -> Result<Bars, StoreError> {
    // Before the first day that there is, nothing can be.
    market.bars(portfolio, symbols, from.plus_days(-1), through)
}

/// `POST /v1/bars`: bars and splits that have become known.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct WriteBars {
    portfolio: String,
    source: String,
    series: BTreeMap<Symbol, Series>,
}

impl WriteBars {
    fn days(&self) -> impl Iterator<Item = Day> {
        self.series.values().flat_map(|one| {
            one.bars.iter().map(|bar| bar.day).chain(one.splits.iter().map(|split| split.day()))
        })
    }

    fn rows(&self) -> usize {
        self.days().count()
    }
}

impl Operation for WriteBars {
    type State = Shared<Market>;
    const METHOD: Method = Method::POST;
    const PATH: &'static str = "/v1/bars";
    const NEEDS: Needs = Needs::Grant(Action::WriteBars);

    fn parse(query: &str, body: &[u8]) -> Result<Self, Problem> {
        parse::Query::parse(query, &[])?;
        let write: Self = from_json(body)?;
        parse::portfolio(&write.portfolio)?;
        parse::name("source", &write.source)?;
        parse::some_rows(write.rows())?;
        let in_order = write.series.values().all(|one| {
            one.bars.is_sorted_by(|left, right| left.day < right.day)
                && one.splits.is_sorted_by(|left, right| left.day() < right.day())
        });
        if !in_order {
            return Err(Problem::bad_request(
                "bad_series",
                "the rows of a symbol are in order, each day once",
            ));
        }
        Ok(write)
    }

    fn touched(&self, _state: &Self::State) -> Touched {
        let mut touched = Touched {
            portfolio: Some(self.portfolio.clone()),
            symbols: parse::texts(self.series.keys()),
            market_day: self.days().max().and_then(parse::market_day),
            ..Touched::default()
        };
        touched.cost.rows = u64::try_from(self.rows()).unwrap_or(u64::MAX);
        touched
    }

    async fn run(self, state: Arc<Self::State>, pass: Pass) -> Result<Response, Problem> {
        state.write::<Self>(pass, self).await
    }
}

impl Write<Market> for WriteBars {
    const WHAT: &'static str = "bars";

    fn id(&self) -> String {
        let last = self.days().max().map(|day| day.to_string()).unwrap_or_default();
        format!("{}/{last}", self.portfolio)
    }

    fn content(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_default()
    }

    fn new_rows(&self, store: &Market) -> Result<u64, StoreError> {
        let (Some(first), Some(last)) = (self.days().min(), self.days().max()) else { return Ok(0) };
        let symbols: Vec<Symbol> = self.series.keys().cloned().collect();
        let stored = between(store, &self.portfolio, &symbols, first, last)?;
        let bars: BTreeSet<(&Symbol, Day)> =
            stored.bars.iter().map(|(symbol, bar)| (symbol, bar.day)).collect();
        let splits: BTreeSet<(&Symbol, Day)> =
            stored.splits.iter().map(|(symbol, split)| (symbol, split.day())).collect();
        let mut rows = 0;
        for (symbol, one) in &self.series {
            rows += one.bars.iter().filter(|bar| !bars.contains(&(symbol, bar.day))).count();
            rows += one.splits.iter().filter(|split| !splits.contains(&(symbol, split.day()))).count();
        }
        Ok(u64::try_from(rows).unwrap_or(u64::MAX))
    }

    fn commit(&self, store: &Market) -> Result<Written, StoreError> {
        let each = || self.series.iter();
        let bars: Vec<(Symbol, Bar)> =
            each().flat_map(|(symbol, one)| one.bars.iter().map(|bar| (symbol.clone(), *bar))).collect();
        let splits: Vec<(Symbol, Split)> = each()
            .flat_map(|(symbol, one)| one.splits.iter().map(|split| (symbol.clone(), *split)))
            .collect();
        store.put_bars(&self.portfolio, &bars, &splits).map(written)
    }
}
