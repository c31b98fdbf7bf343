//! The learned model: trained on the last years, asked about today.
//!
//! Owns: which past weeks teach, what they teach (the labels), and the forecast with its model card. A label
//! is a stock's return over the horizon from the close after the features' day, less the mean of its peers.
//!
//! INVARIANT: no label's window reaches past the day of the forecast, so training never sees what it is to
//! predict.

use std::collections::BTreeMap;

use market::{Day, Panel, Symbol};
use serde::{Deserialize, Serialize};

use crate::features::{self, Features};
use crate::levels::Levels;
use crate::{AnalystError, convert, ridge};

/// Days between the features' day and the first price of the label: an order decided at a close fills on the
/// next day.
pub const FILL_LAG_DAYS: usize = 1;

/// How the model is trained.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Training {
    /// How many market days of samples to look back on.
    pub window_days: usize,
    /// Market days between two samples.
    pub step_days: usize,
    /// How many market days ahead a forecast looks.
    pub horizon_days: usize,
    /// Fewest samples worth a model.
    pub weeks_min: usize,
    /// The ridge penalty per row. Features have unit variance, so 1 weighs "nothing is predictable" as much
    /// as all the data.
    pub penalty: f64,
    /// Labels beyond this fraction (0.3 = 30 %) are cut off there.
    pub label_limit: f64,
}

impl Training {
    /// Five years of weekly samples, a month ahead. Round figures chosen before any result was seen, and
    /// kept.
    pub const TEXTBOOK: Self = Self {
        window_days: 1_260,
        step_days: 5,
        horizon_days: 21,
        weeks_min: 52,
        penalty: 1.0,
        label_limit: 0.3,
    };

    /// Market days of closes that a full training reads, the forecast's own day included.
    #[must_use]
    pub const fn days_read(&self) -> usize {
        self.window_days + self.horizon_days + FILL_LAG_DAYS + features::LOOKBACK_DAYS + 1
    }
}

/// What a forecast was made by: enough to say where it came from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelCard {
    /// The kind of model.
    pub kind: String,
    /// The day of the earliest sample.
    pub trained_from: Day,
    /// The last day whose close any label has seen.
    pub trained_through: Day,
    /// How many weeks taught.
    pub weeks: usize,
    /// How many stock-weeks taught.
    pub rows: usize,
    /// How many market days ahead it looks.
    pub horizon_days: usize,
    /// The features, in order.
    pub features: Vec<String>,
    /// The coefficient of each feature, in billionths of return per standard deviation of rank.
    pub coefficients_ppb: Vec<i64>,
}

/// What the model expects.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Forecast {
    /// The last day whose close the forecast has seen.
    pub day: Day,
    /// Expected return over the horizon beyond that of the peers, in millionths (10,000 = 1 %). Stocks with
    /// too little history are left out.
    pub scores_ppm: BTreeMap<Symbol, i64>,
    /// The model behind it.
    pub model: ModelCard,
}

/// Trains on the past of `day` and forecasts from its close.
///
/// *Known at*: `day`; later columns of the panel are dropped before anything is computed.
///
/// # Errors
/// [`AnalystError::TooLittleHistory`] when there is too little to learn from; the others when the panel or
/// the training makes no sense.
pub fn forecast(panel: &Panel, day: Day, training: &Training) -> Result<Forecast, AnalystError> {
    if training.step_days == 0 {
        return Err(AnalystError::Parameter { name: "step_days" });
    }
    if training.horizon_days == 0 {
        return Err(AnalystError::Parameter { name: "horizon_days" });
    }
    let levels = Levels::of(panel, day)?;
    let short = |weeks| AnalystError::TooLittleHistory { weeks, needed: training.weeks_min.max(1) };
    let today = levels.days.len().checked_sub(1).ok_or(short(0))?;
    let learnt = learn(&levels, today, training)?.ok_or(short(0))?;
    if learnt.weeks < training.weeks_min {
        return Err(short(learnt.weeks));
    }
    let coefficients = ridge::fit(&learnt.rows, training.penalty)?;
    let mut scores_ppm = BTreeMap::new();
    for (symbol, features) in levels.symbols.iter().zip(features::cross_section(&levels, today)) {
        if let Some(features) = features {
            let score = convert::scaled(ridge::predict(&coefficients, &features), 1e6, "a score")?;
            scores_ppm.insert(symbol.clone(), score);
        }
    }
    let day_at = |index: usize| levels.days.get(index).copied().ok_or(short(learnt.weeks));
    Ok(Forecast {
        day: day_at(today)?,
        scores_ppm,
        model: ModelCard {
            kind: "ridge on ranks".to_owned(),
            trained_from: day_at(learnt.first)?,
            trained_through: day_at(learnt.through)?,
            weeks: learnt.weeks,
            rows: learnt.rows.len(),
            horizon_days: training.horizon_days,
            features: features::NAMES.iter().map(|name| (*name).to_owned()).collect(),
            coefficients_ppb: coefficients
                .iter()
                .map(|coefficient| convert::scaled(*coefficient, 1e9, "a coefficient"))
                .collect::<Result<_, _>>()?,
        },
    })
}

/// The rows a model learns from.
struct Learnt {
    /// Index of the earliest sample's day.
    first: usize,
    /// Index of the last day that a label has seen.
    through: usize,
    weeks: usize,
    rows: Vec<(Features, f64)>,
}

/// Collects samples backwards from the latest whose label ends at `today`; `None` when there is none.
fn learn(levels: &Levels, today: usize, training: &Training) -> Result<Option<Learnt>, AnalystError> {
    let reach = training
        .horizon_days
        .checked_add(FILL_LAG_DAYS)
        .ok_or(AnalystError::Parameter { name: "horizon_days" })?;
    let mut learnt: Option<Learnt> = None;
    let Some(latest) = today.checked_sub(reach) else { return Ok(None) };
    let earliest = latest.saturating_sub(training.window_days).max(features::LOOKBACK_DAYS);
    let mut sample = latest;
    while sample >= earliest {
        let rows = lesson(levels, sample, sample + reach, training);
        if !rows.is_empty() {
            let so_far = learnt.get_or_insert(Learnt {
                first: sample,
                through: sample + reach,
                weeks: 0,
                rows: Vec::new(),
            });
            so_far.first = sample;
            so_far.weeks += 1;
            so_far.rows.extend(rows);
        }
        match sample.checked_sub(training.step_days) {
            Some(before) => sample = before,
            None => break,
        }
    }
    Ok(learnt)
}

/// The rows of one sample day: the stocks with features and a label, if they are enough for a cross-section.
fn lesson(levels: &Levels, sample: usize, end: usize, training: &Training) -> Vec<(Features, f64)> {
    let start = sample + FILL_LAG_DAYS;
    let labelled: Vec<(Features, f64)> = features::cross_section(levels, sample)
        .into_iter()
        .zip(&levels.values)
        .filter_map(|(features, column)| {
            let from = column.get(start).copied().flatten()?;
            let to = column.get(end).copied().flatten()?;
            Some((features?, to / from - 1.0))
        })
        .collect();
    if labelled.len() < features::STOCKS_MIN {
        return Vec::new();
    }
    let mean = labelled.iter().map(|row| row.1).sum::<f64>() / labelled.len() as f64;
    let limit = training.label_limit.abs();
    labelled.into_iter().map(|(features, gain)| (features, (gain - mean).max(-limit).min(limit))).collect()
}
