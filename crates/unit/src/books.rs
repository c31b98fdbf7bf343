//! The ledger domain: what a portfolio holds, what it was worth, and the entries from which both follow.
//! Entries come from the desk alone.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use access::vocabulary::Action;
use axum::http::Method;
use axum::response::Response;
use market::{Day, Money, Price, Quantity, Side, Symbol};
use serde::{Deserialize, Serialize};
use store::{DayClose, Entry, Ledger, StoreError};
use wire::api::{EquityCurve, Holdings, LedgerEntry, Written};
use wire::guard::{Needs, Operation, Pass, Touched, from_json};
use wire::problem::Problem;

use crate::parse::{self, Query};
use crate::shared::{Json, Shared, Write, problem, written};

/// Whose books, and up to which day.
struct Asked {
    portfolio: String,
    through: Day,
}

impl Asked {
    fn parse(query: &str) -> Result<Self, Problem> {
        let query = Query::parse(query, &["portfolio", "through"])?;
        Ok(Self { portfolio: query.portfolio()?, through: query.day("through")? })
    }

    fn touched(&self) -> Touched {
        Touched {
            portfolio: Some(self.portfolio.clone()),
            market_day: parse::market_day(self.through),
            ..Touched::default()
        }
    }

    /// The closes up to a day, and never beyond the last that may be served.
    fn closes(&self, ledger: &Ledger, last: Day) -> Result<Vec<DayClose>, Problem> {
        let first = Day::new(1900, 1, 1).map_err(|_| Problem::internal())?;
        ledger.day_closes(&self.portfolio, first, self.through.min(last)).map_err(|error| problem(&error))
    }
}

/// `GET /v1/holdings`: cash, positions, and equity at the last close.
pub(crate) struct ReadHoldings(Asked);

impl Operation for ReadHoldings {
    type State = Shared<Ledger>;
    const METHOD: Method = Method::GET;
    const PATH: &'static str = "/v1/holdings";
    const NEEDS: Needs = Needs::Grant(Action::ReadLedger);

    fn parse(query: &str, _body: &[u8]) -> Result<Self, Problem> {
        Asked::parse(query).map(Self)
    }

    fn touched(&self, _state: &Self::State) -> Touched {
        self.0.touched()
    }

    async fn run(self, state: Arc<Self::State>, pass: Pass) -> Result<Response, Problem> {
        let Self(asked) = self;
        state
            .read::<Self, _>(pass, move |ledger, last| {
                let held = ledger
                    .positions(&asked.portfolio, asked.through.min(last))
                    .map_err(|error| problem(&error))?;
                // Before its first close a portfolio has cash only.
                let equity = asked.closes(ledger, last)?.last().map_or(held.cash, |close| close.equity);
                let positions: BTreeMap<String, i64> = held
                    .positions
                    .into_iter()
                    .map(|(symbol, quantity)| (symbol.to_string(), quantity.shares()))
                    .collect();
                let rows = positions.len() + 1;
                Ok((Json(Holdings { cash: held.cash.micros(), equity: equity.micros(), positions }), rows))
            })
            .await
    }
}

/// `GET /v1/equity`: equity at each close.
pub(crate) struct ReadEquity(Asked);

impl Operation for ReadEquity {
    type State = Shared<Ledger>;
    const METHOD: Method = Method::GET;
    const PATH: &'static str = "/v1/equity";
    const NEEDS: Needs = Needs::Grant(Action::ReadLedger);

    fn parse(query: &str, _body: &[u8]) -> Result<Self, Problem> {
        Asked::parse(query).map(Self)
    }

    fn touched(&self, _state: &Self::State) -> Touched {
        self.0.touched()
    }

    async fn run(self, state: Arc<Self::State>, pass: Pass) -> Result<Response, Problem> {
        let Self(asked) = self;
        state
            .read::<Self, _>(pass, move |ledger, last| {
                let closes = asked.closes(ledger, last)?;
                let days: Vec<(String, i64)> =
                    closes.iter().map(|close| (close.day.to_string(), close.equity.micros())).collect();
                let rows = days.len();
                Ok((Json(EquityCurve { days }), rows))
            })
            .await
    }
}

/// `POST /v1/entries`: what happened to a portfolio, up to a day.
pub(crate) struct WriteEntries {
    portfolio: String,
    day: Day,
    opening: Option<(Day, Money)>,
    entries: Vec<Entry>,
    closes: Vec<DayClose>,
    content: Vec<u8>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Body {
    portfolio: String,
    day: Day,
    entries: Vec<LedgerEntry>,
}

fn symbol_of(entry: &Entry) -> Option<&Symbol> {
    match entry {
        Entry::Open { .. } => None,
        Entry::Fill { symbol, .. } | Entry::Split { symbol, .. } => Some(symbol),
    }
}

fn bad(detail: impl std::fmt::Display) -> Problem {
    Problem::bad_request("bad_entry", &detail.to_string())
}

impl WriteEntries {
    fn rows(&self) -> usize {
        usize::from(self.opening.is_some()) + self.entries.len() + self.closes.len()
    }

    /// Takes in an entry of this portfolio.
    fn take(&mut self, entry: LedgerEntry) -> Result<(), Problem> {
        match entry {
            LedgerEntry::Open { portfolio, day, cash } => {
                let day = self.belongs(&portfolio, &day)?;
                if self.opening.replace((day, Money::from_micros(cash))).is_some() {
                    return Err(bad("a portfolio is opened once"));
                }
            }
            LedgerEntry::Fill { id, order, portfolio, day, symbol, side, quantity, price, fee } => {
                parse::name("a fill's id", &id)?;
                parse::name("an order's id", &order)?;
                let day = self.belongs(&portfolio, &day)?;
                let side = match side.as_str() {
                    "buy" => Side::Buy,
                    "sell" => Side::Sell,
                    _ => return Err(bad("a side is buy or sell")),
                };
                self.entries.push(Entry::Fill {
                    id,
                    order,
                    day,
                    symbol: symbol.parse::<Symbol>().map_err(bad)?,
                    side,
                    quantity: Quantity::new(quantity),
                    price: Price::from_micros(price).map_err(bad)?,
                    fee: Money::from_micros(fee),
                });
            }
            LedgerEntry::Split { portfolio, day, symbol, quantity, cash } => {
                let day = self.belongs(&portfolio, &day)?;
                let symbol: Symbol = symbol.parse().map_err(bad)?;
                self.entries.push(Entry::Split {
                    id: format!("split/{portfolio}/{day}/{symbol}"),
                    day,
                    symbol,
                    quantity: Quantity::new(quantity),
                    cash: Money::from_micros(cash),
                });
            }
            LedgerEntry::Close { portfolio, day, equity, cash } => {
                let day = self.belongs(&portfolio, &day)?;
                let (equity, cash) = (Money::from_micros(equity), Money::from_micros(cash));
                self.closes.push(DayClose { day, equity, cash });
            }
        }
        Ok(())
    }

    /// The day of an entry, if the entry is of the named portfolio and not of a later day than the named one.
    fn belongs(&self, portfolio: &str, day: &str) -> Result<Day, Problem> {
        if portfolio != self.portfolio {
            return Err(Problem::bad_request(
                "other_portfolio",
                "every entry is of the portfolio named above",
            ));
        }
        let day: Day = day.parse().map_err(|_| bad("an entry's day has the form YYYY-MM-DD"))?;
        if day > self.day {
            return Err(Problem::bad_request(
                "later_day",
                "no entry is of a later day than the one named above",
            ));
        }
        Ok(day)
    }
}

impl Operation for WriteEntries {
    type State = Shared<Ledger>;
    const METHOD: Method = Method::POST;
    const PATH: &'static str = "/v1/entries";
    const NEEDS: Needs = Needs::Grant(Action::WriteLedger);

    fn parse(query: &str, body: &[u8]) -> Result<Self, Problem> {
        Query::parse(query, &[])?;
        let body: Body = from_json(body)?;
        let content = serde_json::to_vec(&body).map_err(|_| Problem::internal())?;
        let Body { portfolio, day, entries } = body;
        parse::some_rows(entries.len())?;
        let mut write = Self {
            portfolio: parse::portfolio(&portfolio)?,
            day,
            opening: None,
            entries: Vec::new(),
            closes: Vec::new(),
            content,
        };
        entries.into_iter().try_for_each(|entry| write.take(entry))?;
        Ok(write)
    }

    fn touched(&self, _state: &Self::State) -> Touched {
        let mut touched = Touched {
            portfolio: Some(self.portfolio.clone()),
            symbols: parse::texts(self.entries.iter().filter_map(symbol_of)),
            market_day: parse::market_day(self.day),
            ..Touched::default()
        };
        touched.cost.rows = u64::try_from(self.rows()).unwrap_or(u64::MAX);
        touched
    }

    async fn run(self, state: Arc<Self::State>, pass: Pass) -> Result<Response, Problem> {
        state.write::<Self>(pass, self).await
    }
}

impl Write<Ledger> for WriteEntries {
    const WHAT: &'static str = "entries";

    fn id(&self) -> String {
        format!("{}/{}", self.portfolio, self.day)
    }

    fn content(&self) -> Vec<u8> {
        self.content.clone()
    }

    fn new_rows(&self, store: &Ledger) -> Result<u64, StoreError> {
        let first =
            self.entries.iter().map(Entry::day).chain(self.closes.iter().map(|close| close.day)).min();
        let first = first.unwrap_or(self.day);
        let entries = match store.entries(&self.portfolio, first, self.day) {
            Ok(entries) => entries,
            Err(StoreError::NoPortfolio(_)) if self.opening.is_some() => {
                return Ok(u64::try_from(self.rows()).unwrap_or(u64::MAX));
            }
            Err(error) => return Err(error),
        };
        let closes = store.day_closes(&self.portfolio, first, self.day)?;
        let ids: BTreeMap<&str, &Entry> = entries.iter().map(|entry| (entry.id(), entry)).collect();
        let days: BTreeSet<Day> = closes.iter().map(|close| close.day).collect();
        let mut rows = 0_u64;
        for entry in &self.entries {
            match ids.get(entry.id()) {
                Some(stands) if *stands == entry => {}
                Some(_) => return Err(StoreError::Conflict(format!("entry {}", entry.id()))),
                None => rows += 1,
            }
        }
        for close in &self.closes {
            match days.contains(&close.day) {
                true if closes.contains(close) => {}
                true => return Err(StoreError::Conflict(format!("close {} {}", self.portfolio, close.day))),
                false => rows += 1,
            }
        }
        Ok(rows)
    }

    fn commit(&self, store: &Ledger) -> Result<Written, StoreError> {
        // Three steps, each whole and safe to repeat: who is interrupted between them does all of them again.
        let mut all = Written::default();
        if let Some((day, cash)) = self.opening {
            match store.open_portfolio(&self.portfolio, cash, day)? {
                true => all.new += 1,
                false => all.same += 1,
            }
        }
        for outcome in [
            store.post(&self.portfolio, &self.entries)?,
            store.put_day_closes(&self.portfolio, &self.closes)?,
        ] {
            let Written { new, same, conflicts } = written(outcome);
            all.new = all.new.saturating_add(new);
            all.same = all.same.saturating_add(same);
            all.conflicts.extend(conflicts);
        }
        Ok(all)
    }
}
