//! The research domain: forecasts and reports. Their content is JSON that other parts give meaning to; the
//! name of each is `PORTFOLIO/DAY`, so that nobody can take the name of another portfolio's.

use std::sync::Arc;

use access::vocabulary::Action;
use axum::http::Method;
use axum::response::Response;
use keys::Digest;
use market::Day;
use serde::Deserialize;
use serde_json::Value;
use store::{Forecast, Research, StoreError};
use wire::api::Written;
use wire::guard::{Needs, Operation, Pass, Touched, from_json};
use wire::problem::Problem;

use crate::parse::{self, Query};
use crate::shared::{Shared, StoredJson, Write, problem};

/// `GET /v1/forecast`: the content of one forecast, as it was stored.
pub(crate) struct ReadForecast {
    portfolio: String,
    id: String,
}

impl Operation for ReadForecast {
    type State = Shared<Research>;
    const METHOD: Method = Method::GET;
    const PATH: &'static str = "/v1/forecast";
    const NEEDS: Needs = Needs::Grant(Action::ReadForecasts);

    fn parse(query: &str, _body: &[u8]) -> Result<Self, Problem> {
        let query = Query::parse(query, &["portfolio", "id"])?;
        Ok(Self { portfolio: query.portfolio()?, id: query.id()? })
    }

    fn touched(&self, _state: &Self::State) -> Touched {
        Touched { portfolio: Some(self.portfolio.clone()), ..Touched::default() }
    }

    async fn run(self, state: Arc<Self::State>, pass: Pass) -> Result<Response, Problem> {
        state
            .read::<Self, _>(pass, move |research, last| {
                let found = research.forecast(&self.id).map_err(|error| problem(&error))?;
                // The name says nothing for sure: what was stored decides whose it is and since when it is
                // known.
                match found.filter(|found| found.portfolio == self.portfolio && found.day <= last) {
                    Some(found) => Ok((StoredJson(found.json), 1)),
                    None => Err(Problem::not_found("not_found", "there is no such forecast")),
                }
            })
            .await
    }
}

/// A forecast or a report, on its way in.
struct Content(Forecast);

impl Content {
    fn new(id: String, portfolio: &str, day: Day, content: &Value) -> Result<Self, Problem> {
        let portfolio = parse::portfolio(portfolio)?;
        if id != format!("{portfolio}/{day}") {
            return Err(Problem::bad_request(
                "bad_id",
                "the id must be PORTFOLIO/DAY, of this portfolio and day",
            ));
        }
        let json = content.to_string();
        let digest = Digest::of(json.as_bytes()).to_string();
        Ok(Self(Forecast { id, portfolio, day, json, digest }))
    }

    fn touched(&self) -> Touched {
        let mut touched = Touched {
            portfolio: Some(self.0.portfolio.clone()),
            market_day: parse::market_day(self.0.day),
            ..Touched::default()
        };
        touched.cost.rows = 1;
        touched
    }

    /// How many rows it would bring, given what stands under its name.
    fn new_rows(&self, stands: Option<Forecast>) -> Result<u64, StoreError> {
        match stands {
            None => Ok(1),
            Some(stands) if stands == self.0 => Ok(0),
            Some(_) => Err(StoreError::Conflict(self.0.id.clone())),
        }
    }
}

fn one(new: bool) -> Written {
    Written { new: u64::from(new), same: u64::from(!new), conflicts: Vec::new() }
}

/// Makes a route that stores one thing under its name.
macro_rules! write_route {
    (
        $(#[$doc:meta])*
        $name:ident, $path:literal, $action:ident, $what:literal, $field:ident, $find:ident, $put:ident
    ) => {
        $(#[$doc])*
        pub(crate) struct $name(Content);

        impl Operation for $name {
            type State = Shared<Research>;
            const METHOD: Method = Method::POST;
            const PATH: &'static str = $path;
            const NEEDS: Needs = Needs::Grant(Action::$action);

            fn parse(query: &str, body: &[u8]) -> Result<Self, Problem> {
                #[derive(Deserialize)]
                #[serde(deny_unknown_fields)]
                struct Body {
                    id: String,
                    portfolio: String,
                    day: Day,
                    $field: Value,
                }
                Query::parse(query, &[])?;
                let Body { id, portfolio, day, $field: content } = from_json(body)?;
                Content::new(id, &portfolio, day, &content).map(Self)
            }

            fn touched(&self, _state: &Self::State) -> Touched {
                self.0.touched()
            }

            async fn run(self, state: Arc<Self::State>, pass: Pass) -> Result<Response, Problem> {
                state.write::<Self>(pass, self).await
            }
        }

        impl Write<Research> for $name {
            const WHAT: &'static str = $what;

            fn id(&self) -> String {
                self.0.0.id.clone()
            }

            fn content(&self) -> Vec<u8> {
                self.0.0.json.clone().into_bytes()
            }

            fn new_rows(&self, store: &Research) -> Result<u64, StoreError> {
                self.0.new_rows(store.$find(&self.0.0.id)?)
            }

            fn commit(&self, store: &Research) -> Result<Written, StoreError> {
                store.$put(&self.0.0).map(one)
            }
        }
    };
}

write_route!(
    /// `POST /v1/forecasts`: the forecast of the grant's market day.
    WriteForecast, "/v1/forecasts", WriteForecasts, "forecast", forecast, forecast, put_forecast
);
write_route!(
    /// `POST /v1/reports`: the report of the grant's market day.
    WriteReport, "/v1/reports", WriteReports, "report", report, report, put_report
);
