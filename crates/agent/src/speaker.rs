//! Speaks for a module: turns each of its calls into one request with the grant of its task.
//!
//! The module names no address, no credential and no grant; it cannot ask for anything that its task's grants do not
//! carry. Requests that did not arrive are repeated: all of them may be, since every write names what it writes.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use access::vocabulary::Audience;
use audit::record::Record;
use feeds::Source;
use keys::Digest;
use market::{Day, Money, Panel, Quantity, Series, Symbol};
use module::protocol::{Answer, Call, ForecastRecord, Ledger, OrderRequest, OrderStatus, Refusal};
use serde_json::{Value, json};
use wire::api::{EquityCurve, GrantForHolder, Holdings, OrderReply, Task, Written};
use wire::client::{Client, ClientError, repeat};
use wire::guard::GRANT_HEADER;
use wire::http::Method;
use wire::journal::Journal;

/// How long one request may take.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(15);

/// The ways to the guarded services, by audience.
#[derive(Clone)]
pub struct Services {
    /// One client per audience.
    pub clients: BTreeMap<Audience, Client>,
}

/// Speaks for the module of one task.
pub struct Speaker {
    services: Services,
    sources: Arc<BTreeMap<String, Source>>,
    journal: Arc<Journal>,
    task: Task,
    portfolio: String,
    market_day: Day,
    grants: Vec<GrantForHolder>,
}

fn refusal(code: &str, detail: impl Into<String>) -> Refusal {
    Refusal { code: code.to_owned(), detail: detail.into() }
}

impl Speaker {
    /// Speaks for one task.
    ///
    /// # Errors
    /// When the task is not one that a module can do.
    pub fn new(
        services: Services,
        sources: Arc<BTreeMap<String, Source>>,
        journal: Arc<Journal>,
        task: Task,
        grants: Vec<GrantForHolder>,
    ) -> Result<Self, Refusal> {
        let market_day =
            task.market_day.parse().map_err(|_| refusal("bad_task", "the task names no market day"))?;
        let portfolio =
            task.portfolio.clone().ok_or_else(|| refusal("bad_task", "the task names no portfolio"))?;
        Ok(Self { services, sources, journal, task, portfolio, market_day, grants })
    }

    /// Portfolio of the task.
    #[must_use]
    pub fn portfolio(&self) -> &str {
        &self.portfolio
    }

    /// Market day of the task.
    #[must_use]
    pub fn market_day(&self) -> Day {
        self.market_day
    }

    /// Answers one call of the module.
    ///
    /// # Errors
    /// What the module is told instead.
    pub async fn answer(&self, call: Call) -> Result<Answer, Refusal> {
        call.check().map_err(|error| refusal("bad_call", error.to_string()))?;
        match call {
            Call::FetchSource { source, after, through } => self.fetch(&source, after, through),
            Call::WriteBars { source, series } => self.write_bars(&source, &series).await,
            Call::ReadPanel { symbols, from, through } => {
                let path = format!("/v1/panel?{}&from={from}", self.range(&symbols, through));
                self.get::<Panel>(Audience::Market, &path).await.map(Answer::Panel)
            }
            Call::ReadBars { symbols, from, through } => {
                let path = format!("/v1/bars?{}&from={from}", self.range(&symbols, through));
                self.get(Audience::Market, &path).await.map(Answer::Bars)
            }
            Call::WriteForecast { forecast } => self.write_forecast(&forecast).await,
            Call::ReadForecast { id } => {
                let path = format!("/v1/forecast?portfolio={}&id={id}", self.portfolio);
                self.get(Audience::Research, &path).await.map(Answer::Forecast)
            }
            Call::ReadLedger {} => self.read_ledger().await,
            Call::PlaceOrder(order) => self.place(&order).await,
            Call::WriteReport { id, report } => {
                let body = json!({ "id": id, "portfolio": self.portfolio, "day": self.market_day, "report": report });
                self.post::<Written>(Audience::Research, "/v1/reports", &body).await.map(written)
            }
            Call::ReadEquity {} => self.read_equity().await,
        }
    }

    fn range(&self, symbols: &[Symbol], through: Day) -> String {
        let symbols: Vec<&str> = symbols.iter().map(Symbol::as_str).collect();
        format!("portfolio={}&symbols={}&through={through}", self.portfolio, symbols.join(","))
    }

    /// An outside source is fetched only when a grant names it, and nothing after the task's market day.
    fn fetch(&self, source: &str, after: Option<Day>, through: Day) -> Result<Answer, Refusal> {
        let named = self.grants.iter().any(|grant| grant.sources.iter().any(|name| name == source));
        let allowed = named && through <= self.market_day;
        let text = self.sources.get(source).filter(|_| allowed).map(|source| source.slice(after, through));
        let digest = text.as_ref().map(|text| Digest::of(text.as_bytes()));
        let record = Record::SourceFetched {
            task: self.task.id.clone(),
            source: source.to_owned(),
            allowed,
            digest: digest.map(|digest| digest.to_string()),
        };
        self.journal.record(&record).map_err(|error| refusal("journal_failed", error.to_string()))?;
        match text {
            Some(text) => {
                let digest = digest.map(|digest| digest.to_string()).unwrap_or_default();
                Ok(Answer::Source { text, digest })
            }
            None if allowed => Err(refusal("no_such_source", format!("this node has no source {source}"))),
            None => Err(refusal("source_not_granted", format!("no grant names {source} up to {through}"))),
        }
    }

    async fn write_bars(&self, source: &str, series: &BTreeMap<Symbol, Series>) -> Result<Answer, Refusal> {
        let body = json!({ "portfolio": self.portfolio, "source": source, "series": series });
        let result: Written = self.post(Audience::Market, "/v1/bars", &body).await?;
        if let Some(first) = result.conflicts.first() {
            tracing::warn!(
                task = self.task.id,
                conflicts = result.conflicts.len(),
                first,
                "other rows stand there"
            );
        }
        Ok(written(result))
    }

    async fn write_forecast(&self, forecast: &ForecastRecord) -> Result<Answer, Refusal> {
        let body = json!({
            "id": forecast.id, "portfolio": self.portfolio, "day": self.market_day, "forecast": forecast,
        });
        self.post::<Written>(Audience::Research, "/v1/forecasts", &body).await.map(written)
    }

    async fn read_ledger(&self) -> Result<Answer, Refusal> {
        let path = format!("/v1/holdings?portfolio={}&through={}", self.portfolio, self.market_day);
        let holdings: Holdings = self.get(Audience::Ledger, &path).await?;
        let strange = || refusal("bad_answer", "the ledger answered with a number out of range");
        let mut positions = BTreeMap::new();
        for (symbol, quantity) in holdings.positions {
            let symbol = symbol.parse().map_err(|_| strange())?;
            positions.insert(symbol, Quantity::new(quantity));
        }
        let (cash, equity) = (Money::from_micros(holdings.cash), Money::from_micros(holdings.equity));
        Ok(Answer::Ledger(Ledger { cash, positions, equity }))
    }

    async fn read_equity(&self) -> Result<Answer, Refusal> {
        let path = format!("/v1/equity?portfolio={}&through={}", self.portfolio, self.market_day);
        let curve: EquityCurve = self.get(Audience::Ledger, &path).await?;
        let days = curve
            .days
            .into_iter()
            .map(|(day, equity)| day.parse().map(|day| (day, Money::from_micros(equity))))
            .collect::<Result<Vec<(Day, Money)>, _>>()
            .map_err(|_| refusal("bad_answer", "the ledger answered with a day that is none"))?;
        Ok(Answer::Equity(days))
    }

    async fn place(&self, order: &OrderRequest) -> Result<Answer, Refusal> {
        let body = wire::api::OrderBody {
            id: order.id.clone(),
            portfolio: self.portfolio.clone(),
            symbol: order.symbol.to_string(),
            side: order.side.to_string(),
            quantity: order.quantity.shares(),
            price: order.reference.micros(),
            forecast: Some(order.forecast.clone()),
        };
        let body = serde_json::to_value(&body).map_err(|error| refusal("bad_call", error.to_string()))?;
        let reply: OrderReply = self.post(Audience::Desk, "/v1/orders", &body).await?;
        let status = match reply.status.as_str() {
            "approved" => OrderStatus::Approved,
            "sent" => OrderStatus::Sent,
            "filled" => OrderStatus::Filled,
            "expired" => OrderStatus::Expired,
            "rejected" => OrderStatus::Rejected,
            _ => OrderStatus::Unknown,
        };
        Ok(Answer::Order { status, reason: Some(reply.reason) })
    }

    async fn get<T: serde::de::DeserializeOwned>(
        &self,
        audience: Audience,
        path: &str,
    ) -> Result<T, Refusal> {
        self.request(audience, Method::GET, path, None).await
    }

    async fn post<T: serde::de::DeserializeOwned>(
        &self,
        audience: Audience,
        path: &str,
        body: &Value,
    ) -> Result<T, Refusal> {
        self.request(audience, Method::POST, path, Some(body)).await
    }

    async fn request<T: serde::de::DeserializeOwned>(
        &self,
        audience: Audience,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<T, Refusal> {
        let Some(client) = self.services.clients.get(&audience) else {
            return Err(refusal("no_service", format!("there is no way to {audience}")));
        };
        let grant = self.grants.iter().find(|grant| {
            grant.audience == audience.as_str() && grant.portfolio.as_deref() == Some(self.portfolio.as_str())
        });
        let headers: Vec<(&str, &str)> =
            grant.map(|grant| (GRANT_HEADER, grant.text.as_str())).into_iter().collect();
        repeat(|| client.call_json(method.clone(), path, &headers, body, REQUEST_TIMEOUT)).await.map_err(
            |error| match error {
                ClientError::Refused(problem) => refusal(&problem.code, problem.detail),
                error => refusal("unreachable", error.to_string()),
            },
        )
    }
}

fn written(written: Written) -> Answer {
    Answer::Written { rows: written.new.saturating_add(written.same) }
}
