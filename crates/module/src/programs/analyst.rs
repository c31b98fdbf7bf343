//! The analyst: trains on the past of its day and stores a forecast.

use std::io::{BufRead, Write};

use analyst::AnalystError;
use analyst::forecast::{Training, forecast};
use keys::Digest;
use serde_json::Value;

use super::{forecast_id, params, result};
use crate::ModuleError;
use crate::host::Host;
use crate::protocol::{AnalystParams, AnalystResult, ForecastRecord, Start};

/// Reads the closes that a training needs, trains, and stores the forecast as `<portfolio>/<day>`.
///
/// # Errors
/// [`ModuleError`] when the parameters are unreadable, the data make no sense, or a call is refused. Too
/// little history is a result.
pub fn analyst<R: BufRead, W: Write>(host: &mut Host<R, W>, start: &Start) -> Result<Value, ModuleError> {
    let params: AnalystParams = params(start)?;
    let training = Training::TEXTBOOK;
    // 252 market days take about 365 calendar days; half as much again is always enough.
    let calendar_days = i64::try_from(training.days_read() * 3 / 2).map_err(|_| ModuleError::Calendar)?;
    let from = start.market_day.plus_days(-calendar_days).ok_or(ModuleError::Calendar)?;
    let panel = host.read_panel(params.symbols, from, start.market_day)?;
    let data_digest = digest(&panel)?;
    let forecast = match forecast(&panel, start.market_day, &training) {
        Ok(forecast) => forecast,
        Err(error @ AnalystError::TooLittleHistory { .. }) => {
            let reason = Some(error.to_string());
            return result(&AnalystResult { forecast: None, model: None, data_digest, reason });
        }
        Err(error) => return Err(error.into()),
    };
    let id = forecast_id(&start.portfolio, start.market_day);
    let model_digest = digest(&forecast.model)?;
    let model = Some(model_digest.clone());
    host.write_forecast(ForecastRecord {
        id: id.clone(),
        forecast,
        data_digest: data_digest.clone(),
        model_digest,
    })?;
    result(&AnalystResult { forecast: Some(id), model, data_digest, reason: None })
}

fn digest<T: serde::Serialize>(value: &T) -> Result<String, ModuleError> {
    let text = serde_json::to_vec(value).map_err(|_| ModuleError::Data("the data have no JSON form"))?;
    Ok(Digest::of(&text).to_string())
}
