//! The lines between an agent and a module: one JSON object per line, each with a single key that names what
//! it is.
//!
//! `{"start":…}` comes first, from the agent. Then the module sends
//! `{"call":{"id":1,"call":{"read_ledger":{}}}}`, the agent answers `{"reply":{"id":1,"ok":{"ledger":…}}}` or
//! `{"reply":{"id":1,"error":{"code":…,"detail":…}}}`, as often as the module likes, one call at a time. It
//! ends with `{"done":{"result":…}}` or `{"failed":{"error":…}}`.
//!
//! Owns: the types of these lines and their limits. It decides nothing: both sides treat what the other says
//! as a claim.
//!
//! INVARIANT: an unknown field, an unknown call or a line above [`LINE_BYTES_MAX`] is an error, never
//! ignored.

use std::collections::BTreeMap;

use analyst::construct::Construction;
use analyst::forecast::Forecast;
use market::import::Finding;
use market::{Day, Money, Panel, Price, Quantity, Series, Side, Symbol};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The longest line, without its end, in bytes.
pub const LINE_BYTES_MAX: usize = 8 * 1024 * 1024;

/// The most bars and splits in one [`Call::WriteBars`].
pub const ROWS_MAX: usize = 2_000;

/// The longest identifier (task, portfolio, source, forecast, order), in bytes.
pub const NAME_BYTES_MAX: usize = 128;

/// The most symbols in one read.
pub const SYMBOLS_MAX: usize = 1_000;

/// What is wrong with a line.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum LineError {
    /// Longer than [`LINE_BYTES_MAX`].
    #[error("the line is longer than {LINE_BYTES_MAX} bytes")]
    TooLong,
    /// Not one of the lines that belong here.
    #[error("the line is unreadable: {0}")]
    Malformed(String),
    /// A well-formed line whose contents exceed a limit.
    #[error("{0} exceeds its limit")]
    Limit(&'static str),
}

/// A line from the agent to the module.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum FromAgent {
    /// The first line: the task.
    Start(Start),
    /// The answer to a call.
    Reply(Reply),
}

/// A line from the module to the agent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum FromModule {
    /// A request.
    Call(CallLine),
    /// The last line of a module that has a result.
    Done(Done),
    /// The last line of a module that has none.
    Failed(Failed),
}

/// The task that a module is started for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Start {
    /// The task's identifier.
    pub task: String,
    /// The kind of task.
    pub kind: String,
    /// The portfolio it is for.
    pub portfolio: String,
    /// The market day it is for: nothing later can be read.
    pub market_day: Day,
    /// What else this kind of task needs: one of the `…Params` of this module.
    pub params: Value,
}

/// A call and its number.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CallLine {
    /// Counts from 1.
    pub id: u64,
    /// What is asked for.
    pub call: Call,
}

/// What a module may ask its agent for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Call {
    /// The text of a source for the days in (after, through]. Answer: [`Answer::Source`].
    FetchSource {
        /// The source's name.
        source: String,
        /// Days up to this one are left out.
        after: Option<Day>,
        /// The last day wanted.
        through: Day,
    },
    /// Stores bars and splits, at most [`ROWS_MAX`]. Answer: [`Answer::Written`].
    WriteBars {
        /// Where they came from.
        source: String,
        /// The bars and splits.
        series: BTreeMap<Symbol, Series>,
    },
    /// Closes of several stocks. Answer: [`Answer::Panel`].
    ReadPanel {
        /// Which stocks.
        symbols: Vec<Symbol>,
        /// The first day wanted.
        from: Day,
        /// The last day wanted.
        through: Day,
    },
    /// Whole bars of several stocks. Answer: [`Answer::Bars`].
    ReadBars {
        /// Which stocks.
        symbols: Vec<Symbol>,
        /// The first day wanted.
        from: Day,
        /// The last day wanted.
        through: Day,
    },
    /// Stores a forecast. Answer: [`Answer::Written`].
    WriteForecast {
        /// The forecast.
        forecast: ForecastRecord,
    },
    /// A stored forecast. Answer: [`Answer::Forecast`], or an error with the code [`NOT_FOUND`].
    ReadForecast {
        /// Its identifier.
        id: String,
    },
    /// The portfolio's cash, positions and equity. Answer: [`Answer::Ledger`].
    ReadLedger {},
    /// Places an order. Answer: [`Answer::Order`], or an error with the code [`DENIED`].
    PlaceOrder(OrderRequest),
    /// Stores a report. Answer: [`Answer::Written`].
    WriteReport {
        /// The report's identifier.
        id: String,
        /// The report.
        report: Report,
    },
    /// The portfolio's equity, day by day. Answer: [`Answer::Equity`].
    ReadEquity {},
}

impl Call {
    /// Says whether the call keeps within the limits that its shape alone can't express.
    ///
    /// # Errors
    /// [`LineError::Limit`] with what is too large.
    pub fn check(&self) -> Result<(), LineError> {
        let name =
            |text: &str| if text.len() <= NAME_BYTES_MAX { Ok(()) } else { Err(LineError::Limit("a name")) };
        match self {
            Call::FetchSource { source, .. } => name(source),
            Call::WriteBars { source, series } => {
                name(source)?;
                let rows: usize = series.values().map(|one| one.bars.len() + one.splits.len()).sum();
                if rows <= ROWS_MAX { Ok(()) } else { Err(LineError::Limit("the number of rows")) }
            }
            Call::ReadPanel { symbols, .. } | Call::ReadBars { symbols, .. } => {
                if symbols.len() <= SYMBOLS_MAX {
                    Ok(())
                } else {
                    Err(LineError::Limit("the number of symbols"))
                }
            }
            Call::WriteForecast { forecast } => {
                name(&forecast.id)?;
                let scores = forecast.forecast.scores_ppm.len();
                if scores <= SYMBOLS_MAX { Ok(()) } else { Err(LineError::Limit("the number of scores")) }
            }
            Call::ReadForecast { id } | Call::WriteReport { id, .. } => name(id),
            Call::PlaceOrder(order) => {
                name(&order.id)?;
                name(&order.forecast)
            }
            Call::ReadLedger {} | Call::ReadEquity {} => Ok(()),
        }
    }
}

/// An order as a module asks for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OrderRequest {
    /// The order's identifier for ever: the same task asks under the same one again.
    pub id: String,
    /// Which stock.
    pub symbol: Symbol,
    /// Which way.
    pub side: Side,
    /// How many shares.
    pub quantity: Quantity,
    /// The close that the quantity was worked out with.
    pub reference: Price,
    /// The forecast behind it.
    pub forecast: String,
}

/// The code of an error that is a final "no" to this one call: asking again would get the same answer. To the
/// strategist such an answer to an order is a refused order; every other error ends the task, which may then
/// be run again.
pub const DENIED: &str = "denied";

/// The code of an error that says that the thing asked for doesn't exist.
pub const NOT_FOUND: &str = "not_found";

/// An agent's answer: exactly one of the two.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "ReplyFields", into = "ReplyFields")]
pub struct Reply {
    /// The number of the call.
    pub id: u64,
    /// What came of it.
    pub outcome: Result<Answer, Refusal>,
}

/// Why a call has no answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Refusal {
    /// A stable word, such as [`DENIED`].
    pub code: String,
    /// The reason, for people and records.
    pub detail: String,
}

/// What a call gave.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Answer {
    /// A source's text, untrusted.
    Source {
        /// The text.
        text: String,
        /// Its SHA-256 digest, in hexadecimal.
        digest: String,
    },
    /// How many rows were stored, those already there included.
    Written {
        /// The number.
        rows: u64,
    },
    /// Closes.
    Panel(Panel),
    /// Bars and splits.
    Bars(BTreeMap<Symbol, Series>),
    /// A forecast.
    Forecast(ForecastRecord),
    /// What the portfolio has.
    Ledger(Ledger),
    /// What became of an order.
    Order {
        /// Its state.
        status: OrderStatus,
        /// Why it was rejected, as a stable word.
        reason: Option<String>,
    },
    /// Equity at the close of each day, in the order of the days.
    Equity(Vec<(Day, Money)>),
}

/// What a portfolio has at a close.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ledger {
    /// Money not in stocks.
    pub cash: Money,
    /// Shares held.
    pub positions: BTreeMap<Symbol, Quantity>,
    /// Cash and stocks together.
    pub equity: Money,
}

/// The state of an order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OrderStatus {
    /// Passed every check.
    Approved,
    /// On its way to, or at, the broker.
    Sent,
    /// Done.
    Filled,
    /// Given up by the market.
    Expired,
    /// Refused by a check.
    Rejected,
    /// Nobody knows yet; the desk is finding out.
    Unknown,
}

/// A forecast and where it came from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ForecastRecord {
    /// `<portfolio>/<day>`.
    pub id: String,
    /// Scores and model card.
    pub forecast: Forecast,
    /// SHA-256 of the panel it was made from, as JSON, in hexadecimal.
    pub data_digest: String,
    /// SHA-256 of the model card, coefficients included, as JSON, in hexadecimal.
    pub model_digest: String,
}

/// The result of a module, and its last line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Done {
    /// One of the `…Result` of this module.
    pub result: Value,
}

/// The reason why a module has no result, and its last line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Failed {
    /// In words.
    pub error: String,
}

/// The parameters of a collector.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CollectorParams {
    /// The source's name.
    pub source: String,
    /// Days up to this one were collected before.
    pub after: Option<Day>,
    /// The last day to collect; the task's market day where it is not given.
    #[serde(default)]
    pub through: Option<Day>,
    /// The last close taken of each symbol, where it is known, so that the first row of this slice can be
    /// compared with it.
    #[serde(default)]
    pub known: BTreeMap<Symbol, (Day, Price)>,
}

/// The result of a collector.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CollectorResult {
    /// Rows stored.
    pub rows: u64,
    /// The first findings.
    pub findings: Vec<Finding>,
    /// Findings that refused something.
    pub refused: u64,
    /// Findings that flagged something.
    pub flagged: u64,
    /// The digest of the text, as the agent gave it.
    pub digest: String,
}

/// The parameters of an analyst.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AnalystParams {
    /// The stocks to rank.
    pub symbols: Vec<Symbol>,
}

/// The result of an analyst. Either a forecast with its model and digests, or a reason.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AnalystResult {
    /// The stored forecast's identifier; `None` when there is too little history.
    pub forecast: Option<String>,
    /// The model's digest.
    pub model: Option<String>,
    /// The digest of the panel read.
    pub data_digest: String,
    /// Why there is no forecast.
    pub reason: Option<String>,
}

/// The parameters of a strategist.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StrategistParams {
    /// The stocks that may be traded.
    pub symbols: Vec<Symbol>,
    /// How the portfolio is built.
    pub construction: Construction,
}

/// The result of a strategist.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StrategistResult {
    /// Orders that were taken.
    pub placed: u64,
    /// Orders that were refused.
    pub refused: Vec<RefusedOrder>,
    /// Why nothing was tried.
    pub reason: Option<String>,
}

/// An order that was refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RefusedOrder {
    /// Which stock.
    pub symbol: Symbol,
    /// Why.
    pub reason: String,
}

/// The parameters of a reporter.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReporterParams {
    /// The stocks of the yardstick.
    pub symbols: Vec<Symbol>,
    /// The day after which the yardstick buys, and from which the equity counts.
    pub start: Day,
    /// The money that both began with.
    pub cash: Money,
    /// What the yardstick pays for buying, in basis points of the amount.
    pub cost_bps: i64,
}

/// The result of a reporter, and the report itself. Ratios are rounded to six places.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Report {
    /// The portfolio's equity at the end.
    pub equity_end: Money,
    /// The equity of equal-weight buy and hold, after costs.
    pub benchmark_end: Money,
    /// The portfolio's deepest fall from an earlier high, a fraction.
    pub max_drawdown: f64,
    /// The portfolio's Sharpe ratio per year; `None` without any variation.
    pub sharpe: Option<f64>,
    /// The yardstick's.
    pub benchmark_sharpe: Option<f64>,
    /// The yardstick's.
    pub benchmark_max_drawdown: f64,
    /// Market days in the portfolio's curve.
    pub days: u64,
}

/// Reads a line, with or without its end.
///
/// # Errors
/// [`LineError::TooLong`] or [`LineError::Malformed`].
pub fn parse<T: DeserializeOwned>(line: &[u8]) -> Result<T, LineError> {
    if line.len() > LINE_BYTES_MAX + 1 {
        return Err(LineError::TooLong);
    }
    serde_json::from_slice(line).map_err(|error| LineError::Malformed(error.to_string()))
}

/// Writes a line, its end included. JSON escapes line ends inside, so there is exactly one.
///
/// # Errors
/// [`LineError::TooLong`], or [`LineError::Malformed`] when a value has no JSON form.
pub fn to_line<T: Serialize>(value: &T) -> Result<Vec<u8>, LineError> {
    let mut line = serde_json::to_vec(value).map_err(|error| LineError::Malformed(error.to_string()))?;
    if line.len() > LINE_BYTES_MAX {
        return Err(LineError::TooLong);
    }
    line.push(b'\n');
    Ok(line)
}

/// How a reply is written, before it is known to be one.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ReplyFields {
    id: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ok: Option<Answer>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    error: Option<Refusal>,
}

impl TryFrom<ReplyFields> for Reply {
    type Error = &'static str;

    fn try_from(fields: ReplyFields) -> Result<Self, Self::Error> {
        let outcome = match (fields.ok, fields.error) {
            (Some(answer), None) => Ok(answer),
            (None, Some(refusal)) => Err(refusal),
            (Some(_), Some(_)) | (None, None) => return Err("a reply has either `ok` or `error`"),
        };
        Ok(Self { id: fields.id, outcome })
    }
}

impl From<Reply> for ReplyFields {
    fn from(reply: Reply) -> Self {
        let (ok, error) = match reply.outcome {
            Ok(answer) => (Some(answer), None),
            Err(refusal) => (None, Some(refusal)),
        };
        Self { id: reply.id, ok, error }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_read_as_documented() {
        let line = br#"{"call":{"id":1,"call":{"read_ledger":{}}}}"#;
        let call = FromModule::Call(CallLine { id: 1, call: Call::ReadLedger {} });
        assert_eq!(parse::<FromModule>(line), Ok(call.clone()));
        assert_eq!(to_line(&call).unwrap(), [line.as_slice(), b"\n"].concat());
        let line = br#"{"reply":{"id":1,"error":{"code":"denied","detail":"no"}}}"#;
        let refusal = Refusal { code: DENIED.to_owned(), detail: "no".to_owned() };
        let reply = FromAgent::Reply(Reply { id: 1, outcome: Err(refusal) });
        assert_eq!(parse::<FromAgent>(line), Ok(reply.clone()));
        assert_eq!(to_line(&reply).unwrap(), [line.as_slice(), b"\n"].concat());
    }

    #[test]
    fn anything_else_is_refused() {
        for line in [
            r#""#,
            r#"{"call":{"id":1,"call":{"read_ledger":{"of":"core"}}}}"#,
            r#"{"call":{"id":1,"call":{"run":{}}}}"#,
            r#"{"call":{"id":-1,"call":{"read_ledger":{}}}}"#,
            r#"{"call":{"id":1,"call":{"read_ledger":{}},"as":"root"}}"#,
            r#"{"done":{"result":1},"failed":{"error":""}}"#,
            r#"{"done":{"result":1}} {"done":{"result":1}}"#,
        ] {
            assert!(parse::<FromModule>(line.as_bytes()).is_err(), "{line}");
        }
        for line in [
            r#"{"reply":{"id":1}}"#,
            r#"{"reply":{"id":1,"ok":{"written":{"rows":1}},"error":{"code":"","detail":""}}}"#,
            r#"{"reply":{"id":1,"ok":{"written":{"rows":1,"more":1}}}}"#,
            r#"{"start":{"task":"t","kind":"k","portfolio":"p","market_day":"2001-02-30","params":{}}}"#,
        ] {
            assert!(parse::<FromAgent>(line.as_bytes()).is_err(), "{line}");
        }
        let deep = format!("{}{}", r#"{"done":{"result":"#, "[".repeat(100_000));
        assert!(parse::<FromModule>(deep.as_bytes()).is_err());
        assert_eq!(parse::<FromModule>(&vec![b' '; LINE_BYTES_MAX + 2]), Err(LineError::TooLong));
        assert_eq!(to_line(&"x".repeat(LINE_BYTES_MAX)), Err(LineError::TooLong));
    }

    #[test]
    fn what_the_shape_allows_the_limits_may_still_refuse() {
        let symbols: Vec<Symbol> = (0..=SYMBOLS_MAX).map(|n| format!("S{n}").parse().unwrap()).collect();
        let day = "2001-01-01".parse().unwrap();
        let call = Call::ReadPanel { symbols, from: day, through: day };
        assert_eq!(call.check(), Err(LineError::Limit("the number of symbols")));
        assert_eq!(Call::ReadForecast { id: "x".repeat(129) }.check(), Err(LineError::Limit("a name")));
        assert_eq!(Call::ReadForecast { id: "x".repeat(128) }.check(), Ok(()));
    }
}
