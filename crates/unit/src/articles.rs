//! The news domain: articles. They are text from outside, stored and served and never obeyed.

use std::collections::BTreeSet;
use std::sync::Arc;

use access::vocabulary::Action;
use axum::http::Method;
use axum::response::Response;
use market::{Day, Symbol};
use serde::{Deserialize, Serialize};
use store::{Article, News, StoreError};
use wire::api::Written;
use wire::guard::{Needs, Operation, Pass, Touched, from_json};
use wire::problem::Problem;

use crate::parse::{self, Query, Range};
use crate::shared::{Json, Shared, Write, problem, written};

/// `GET /v1/articles`: articles about some symbols, in the order in which they became public.
pub(crate) struct ReadArticles(Range);

impl Operation for ReadArticles {
    type State = Shared<News>;
    const METHOD: Method = Method::GET;
    const PATH: &'static str = "/v1/articles";
    const NEEDS: Needs = Needs::Grant(Action::ReadArticles);

    fn parse(query: &str, _body: &[u8]) -> Result<Self, Problem> {
        Range::parse(query).map(Self)
    }

    fn touched(&self, _state: &Self::State) -> Touched {
        Touched {
            portfolio: Some(self.0.portfolio.clone()),
            symbols: parse::texts(&self.0.symbols),
            market_day: parse::market_day(self.0.through),
            ..Touched::default()
        }
    }

    async fn run(self, state: Arc<Self::State>, pass: Pass) -> Result<Response, Problem> {
        let Self(range) = self;
        state
            .read::<Self, _>(pass, move |news, last| {
                let found = news
                    .articles(&range.symbol_list(), range.from, range.through.min(last))
                    .map_err(|error| problem(&error))?;
                let rows = found.len();
                Ok((Json(found), rows))
            })
            .await
    }
}

/// `POST /v1/articles`: articles that became public on a day or before.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct WriteArticles {
    portfolio: String,
    day: Day,
    articles: Vec<Article>,
}

impl WriteArticles {
    fn symbols(&self) -> BTreeSet<&Symbol> {
        self.articles.iter().flat_map(|article| &article.symbols).collect()
    }
}

impl Operation for WriteArticles {
    type State = Shared<News>;
    const METHOD: Method = Method::POST;
    const PATH: &'static str = "/v1/articles";
    const NEEDS: Needs = Needs::Grant(Action::WriteArticles);

    fn parse(query: &str, body: &[u8]) -> Result<Self, Problem> {
        Query::parse(query, &[])?;
        let write: Self = from_json(body)?;
        parse::portfolio(&write.portfolio)?;
        parse::some_rows(write.articles.len())?;
        for article in &write.articles {
            parse::name("an article's id", &article.id)?;
            if article.symbols.is_empty() {
                return Err(Problem::bad_request("no_symbols", "an article is about one symbol at least"));
            }
            if article.day > write.day {
                let detail = "no article is of a later day than the one named above";
                return Err(Problem::bad_request("later_day", detail));
            }
        }
        Ok(write)
    }

    fn touched(&self, _state: &Self::State) -> Touched {
        let mut touched = Touched {
            portfolio: Some(self.portfolio.clone()),
            symbols: parse::texts(self.symbols()),
            market_day: parse::market_day(self.day),
            ..Touched::default()
        };
        touched.cost.rows = u64::try_from(self.articles.len()).unwrap_or(u64::MAX);
        touched
    }

    async fn run(self, state: Arc<Self::State>, pass: Pass) -> Result<Response, Problem> {
        state.write::<Self>(pass, self).await
    }
}

impl Write<News> for WriteArticles {
    const WHAT: &'static str = "article";

    fn id(&self) -> String {
        format!("{}/{}", self.portfolio, self.day)
    }

    fn content(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_default()
    }

    fn new_rows(&self, store: &News) -> Result<u64, StoreError> {
        let mut rows = 0;
        for article in &self.articles {
            let symbols: Vec<Symbol> = article.symbols.iter().cloned().collect();
            let stands = store.articles(&symbols, article.day, article.day)?;
            rows += u64::from(!stands.iter().any(|stands| stands.id == article.id));
        }
        Ok(rows)
    }

    fn commit(&self, store: &News) -> Result<Written, StoreError> {
        store.put_articles(&self.articles).map(written)
    }
}
