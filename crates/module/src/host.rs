//! A module's view of the world: its agent, over two streams.
//!
//! Owns: the module's side of the protocol. One call is under way at a time; its answer has its number and
//! its kind, or the talk is over. It knows nothing of what is allowed.
//!
//! INVARIANT: no line, however long or wrong, makes it panic or take more than [`LINE_BYTES_MAX`] into
//! memory.

use std::collections::BTreeMap;
use std::io::{self, BufRead, Read as _, Write};

use market::{Day, Money, Panel, Series, Symbol};
use serde::Serialize;
use serde_json::Value;

use crate::protocol::{
    Answer, Call, CallLine, Done, Failed, ForecastRecord, FromAgent, FromModule, LINE_BYTES_MAX, Ledger,
    LineError, OrderRequest, OrderStatus, Refusal, Reply, Report, Start, parse, to_line,
};

/// The longest error text that is sent, in bytes.
const ERROR_BYTES_MAX: usize = 2_048;

/// Why the talk with the agent came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// The agent has closed the stream.
    #[error("the agent is gone")]
    Closed,
    /// The stream failed.
    #[error("the stream to the agent failed: {0}")]
    Stream(#[from] io::Error),
    /// A line is not what the protocol allows.
    #[error(transparent)]
    Line(#[from] LineError),
    /// The agent sent another line than the one that is due.
    #[error("the agent sent something else than {due}")]
    OutOfTurn {
        /// What was due.
        due: &'static str,
    },
    /// The agent refused the call.
    #[error("refused ({}): {}", .0.code, .0.detail)]
    Refused(Refusal),
}

/// A blocking client of the agent.
pub struct Host<R, W> {
    reader: R,
    writer: W,
    calls: u64,
}

impl<R: BufRead, W: Write> Host<R, W> {
    /// A host over two streams.
    pub fn new(reader: R, writer: W) -> Self {
        Self { reader, writer, calls: 0 }
    }

    /// Reads the first line: the task.
    ///
    /// # Errors
    /// [`HostError`] when it is not a task.
    pub fn start(&mut self) -> Result<Start, HostError> {
        match self.receive()? {
            FromAgent::Start(start) => Ok(start),
            FromAgent::Reply(_) => Err(HostError::OutOfTurn { due: "a start" }),
        }
    }

    /// Makes a call and waits for its answer.
    ///
    /// # Errors
    /// [`HostError::Refused`] when the agent says no; the others when the talk is broken.
    pub fn call(&mut self, call: Call) -> Result<Answer, HostError> {
        call.check()?;
        self.calls += 1;
        let id = self.calls;
        self.send(&FromModule::Call(CallLine { id, call }))?;
        match self.receive()? {
            FromAgent::Reply(Reply { id: of, outcome }) if of == id => outcome.map_err(HostError::Refused),
            FromAgent::Reply(_) | FromAgent::Start(_) => {
                Err(HostError::OutOfTurn { due: "the reply to this call" })
            }
        }
    }

    /// The text of a source and its digest.
    ///
    /// # Errors
    /// As [`Host::call`].
    pub fn fetch_source(
        &mut self,
        source: String,
        after: Option<Day>,
        through: Day,
    ) -> Result<(String, String), HostError> {
        match self.call(Call::FetchSource { source, after, through })? {
            Answer::Source { text, digest } => Ok((text, digest)),
            _ => Err(HostError::OutOfTurn { due: "a source" }),
        }
    }

    /// Stores bars and splits; returns how many.
    ///
    /// # Errors
    /// As [`Host::call`].
    pub fn write_bars(&mut self, source: String, series: BTreeMap<Symbol, Series>) -> Result<u64, HostError> {
        self.written(Call::WriteBars { source, series })
    }

    /// Closes of several stocks.
    ///
    /// # Errors
    /// As [`Host::call`].
    pub fn read_panel(&mut self, symbols: Vec<Symbol>, from: Day, through: Day) -> Result<Panel, HostError> {
        match self.call(Call::ReadPanel { symbols, from, through })? {
            Answer::Panel(panel) => Ok(panel),
            _ => Err(HostError::OutOfTurn { due: "a panel" }),
        }
    }

    /// Stores a forecast.
    ///
    /// # Errors
    /// As [`Host::call`].
    pub fn write_forecast(&mut self, forecast: ForecastRecord) -> Result<u64, HostError> {
        self.written(Call::WriteForecast { forecast })
    }

    /// A stored forecast.
    ///
    /// # Errors
    /// As [`Host::call`].
    pub fn read_forecast(&mut self, id: String) -> Result<ForecastRecord, HostError> {
        match self.call(Call::ReadForecast { id })? {
            Answer::Forecast(forecast) => Ok(forecast),
            _ => Err(HostError::OutOfTurn { due: "a forecast" }),
        }
    }

    /// What the portfolio has.
    ///
    /// # Errors
    /// As [`Host::call`].
    pub fn read_ledger(&mut self) -> Result<Ledger, HostError> {
        match self.call(Call::ReadLedger {})? {
            Answer::Ledger(ledger) => Ok(ledger),
            _ => Err(HostError::OutOfTurn { due: "a ledger" }),
        }
    }

    /// Places an order; says what became of it and, if it was rejected, why.
    ///
    /// # Errors
    /// As [`Host::call`].
    pub fn place_order(&mut self, order: OrderRequest) -> Result<(OrderStatus, Option<String>), HostError> {
        match self.call(Call::PlaceOrder(order))? {
            Answer::Order { status, reason } => Ok((status, reason)),
            _ => Err(HostError::OutOfTurn { due: "an order's status" }),
        }
    }

    /// Stores a report.
    ///
    /// # Errors
    /// As [`Host::call`].
    pub fn write_report(&mut self, id: String, report: Report) -> Result<u64, HostError> {
        self.written(Call::WriteReport { id, report })
    }

    /// The portfolio's equity, day by day.
    ///
    /// # Errors
    /// As [`Host::call`].
    pub fn read_equity(&mut self) -> Result<Vec<(Day, Money)>, HostError> {
        match self.call(Call::ReadEquity {})? {
            Answer::Equity(equity) => Ok(equity),
            _ => Err(HostError::OutOfTurn { due: "an equity curve" }),
        }
    }

    /// Ends the talk with a result.
    ///
    /// # Errors
    /// [`HostError`] when it can't be sent.
    pub fn done(&mut self, result: Value) -> Result<(), HostError> {
        self.send(&FromModule::Done(Done { result }))
    }

    /// Ends the talk without a result.
    ///
    /// # Errors
    /// [`HostError`] when it can't be sent.
    pub fn failed(&mut self, error: &str) -> Result<(), HostError> {
        let error = error.get(..error.floor_char_boundary(ERROR_BYTES_MAX)).unwrap_or_default().to_owned();
        self.send(&FromModule::Failed(Failed { error }))
    }

    fn written(&mut self, call: Call) -> Result<u64, HostError> {
        match self.call(call)? {
            Answer::Written { rows } => Ok(rows),
            _ => Err(HostError::OutOfTurn { due: "a count of rows" }),
        }
    }

    fn send<T: Serialize>(&mut self, line: &T) -> Result<(), HostError> {
        self.writer.write_all(&to_line(line)?)?;
        self.writer.flush()?;
        Ok(())
    }

    fn receive(&mut self) -> Result<FromAgent, HostError> {
        let mut line = Vec::new();
        let limit = u64::try_from(LINE_BYTES_MAX + 1).unwrap_or(u64::MAX);
        self.reader.by_ref().take(limit).read_until(b'\n', &mut line)?;
        match line.last() {
            None => Err(HostError::Closed),
            Some(b'\n') => Ok(parse(&line)?),
            // A line without an end is one that was cut: by the limit, or by the agent's death.
            Some(_) if line.len() > LINE_BYTES_MAX => Err(LineError::TooLong.into()),
            Some(_) => Err(HostError::Closed),
        }
    }
}
