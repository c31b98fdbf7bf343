//! The strategist: turns a forecast into orders.

use std::collections::BTreeMap;
use std::io::{BufRead, Write};

use analyst::construct::{Book, construct};
use market::{Panel, Price, Symbol};
use serde_json::Value;

use super::{forecast_id, order_id, params, result};
use crate::ModuleError;
use crate::host::{Host, HostError};
use crate::protocol::{
    DENIED, NOT_FOUND, OrderRequest, OrderStatus, RefusedOrder, Start, StrategistParams, StrategistResult,
};

/// Calendar days of closes that are read to find the last one: more than the longest closure of the market.
const CLOSES_CALENDAR_DAYS: i64 = 10;

/// Reads the forecast of its day, prices and positions, and places the orders that lead there, one after
/// another.
///
/// # Errors
/// [`ModuleError`] when the parameters are unreadable or a call fails. A refused order, or no forecast at
/// all, is a result.
pub fn strategist<R: BufRead, W: Write>(host: &mut Host<R, W>, start: &Start) -> Result<Value, ModuleError> {
    let params: StrategistParams = params(start)?;
    let forecast = forecast_id(&start.portfolio, start.market_day);
    let record = match host.read_forecast(forecast.clone()) {
        Ok(record) => record,
        Err(HostError::Refused(refusal)) if refusal.code == NOT_FOUND => {
            let reason = Some(format!("there is no forecast {forecast}"));
            return result(&StrategistResult { placed: 0, refused: Vec::new(), reason });
        }
        Err(error) => return Err(error.into()),
    };
    if record.id != forecast || record.forecast.day > start.market_day {
        return Err(ModuleError::Data("the forecast is another one than asked for"));
    }
    let from = start.market_day.plus_days(-CLOSES_CALENDAR_DAYS).ok_or(ModuleError::Calendar)?;
    let panel = host.read_panel(params.symbols.clone(), from, start.market_day)?;
    let ledger = host.read_ledger()?;
    let book = Book {
        cash: ledger.cash,
        equity: ledger.equity,
        holdings: ledger.positions,
        prices: last_closes(&panel, &params.symbols),
    };
    let mut placed = 0;
    let mut refused = Vec::new();
    for proposal in construct(&record.forecast.scores_ppm, &book, &params.construction)? {
        let order = OrderRequest {
            id: order_id(&start.portfolio, start.market_day, &proposal.symbol),
            symbol: proposal.symbol.clone(),
            side: proposal.side,
            quantity: proposal.quantity,
            reference: proposal.reference_price,
            forecast: forecast.clone(),
        };
        let symbol = proposal.symbol;
        match host.place_order(order) {
            Ok((OrderStatus::Rejected, reason)) => {
                let reason = reason.unwrap_or_else(|| "no reason given".to_owned());
                refused.push(RefusedOrder { symbol, reason });
            }
            Ok((
                OrderStatus::Approved
                | OrderStatus::Sent
                | OrderStatus::Filled
                | OrderStatus::Expired
                | OrderStatus::Unknown,
                _,
            )) => placed += 1,
            Err(HostError::Refused(refusal)) if refusal.code == DENIED => {
                refused.push(RefusedOrder { symbol, reason: refusal.detail });
            }
            Err(error) => return Err(error.into()),
        }
    }
    result(&StrategistResult { placed, refused, reason: None })
}

/// The closes of the panel's last day. A stock without one that day is left out: it may have split or stopped
/// since its last.
fn last_closes(panel: &Panel, symbols: &[Symbol]) -> BTreeMap<Symbol, Price> {
    let Some(last) = panel.days.last() else { return BTreeMap::new() };
    symbols.iter().filter_map(|symbol| Some((symbol.clone(), panel.close(symbol, *last)?))).collect()
}
