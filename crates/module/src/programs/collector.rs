//! The collector: brings a source's rows in, judged by the import.

use std::collections::BTreeMap;
use std::io::{BufRead, Write};

use market::{Series, Symbol, import};
use serde_json::Value;

use super::{params, result};
use crate::ModuleError;
use crate::host::Host;
use crate::protocol::{CollectorParams, CollectorResult, ROWS_MAX, Start};

/// How many findings the result names; all are counted.
pub const FINDINGS_SENT_MAX: usize = 50;

/// Fetches a source's new rows, imports them, stores what is good, and says what was not.
///
/// # Errors
/// [`ModuleError`] when the parameters or the header are unreadable, or a call is refused. A bad row is a
/// finding, never an error.
pub fn collector<R: BufRead, W: Write>(host: &mut Host<R, W>, start: &Start) -> Result<Value, ModuleError> {
    let params: CollectorParams = params(start)?;
    let through = params.through.unwrap_or(start.market_day);
    let (text, digest) = host.fetch_source(params.source.clone(), params.after, through)?;
    let mut imported = import::read_after(&text, &params.known)?;
    drop(text);
    let mut rows = 0;
    for chunk in chunks(&imported.series) {
        rows += host.write_bars(params.source.clone(), chunk)?;
    }
    imported.findings.truncate(FINDINGS_SENT_MAX);
    let (findings, refused, flagged) = (imported.findings, imported.refused, imported.flagged);
    result(&CollectorResult { rows, findings, refused, flagged, digest })
}

/// Cuts series into parts of at most [`ROWS_MAX`] bars and splits, in order. A stock's splits go first, so
/// that no reader finds a bar after a split without the split.
fn chunks(series: &BTreeMap<Symbol, Series>) -> Vec<BTreeMap<Symbol, Series>> {
    let mut chunks = Vec::new();
    let mut chunk: BTreeMap<Symbol, Series> = BTreeMap::new();
    let mut rows = 0;
    for (symbol, one) in series {
        let splits = one.splits.iter().map(|split| (Some(*split), None));
        let bars = one.bars.iter().map(|bar| (None, Some(*bar)));
        for (split, bar) in splits.chain(bars) {
            if rows == ROWS_MAX {
                chunks.push(std::mem::take(&mut chunk));
                rows = 0;
            }
            let part = chunk.entry(symbol.clone()).or_default();
            part.splits.extend(split);
            part.bars.extend(bar);
            rows += 1;
        }
    }
    if rows > 0 {
        chunks.push(chunk);
    }
    chunks
}
