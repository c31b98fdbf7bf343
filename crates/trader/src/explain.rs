//! `trader explain ORDER`: the whole chain behind an order, read from the log and nothing else.
//!
//! Data, model, module, grant, checks, fill: each line is an entry of the log, named by its index, and the log is verified
//! by `trader audit verify`. The chain is followed by identifiers: order → task and grant → forecast → the task that made
//! the forecast → the data that it read.

use audit::journal::{Entry, parse_line};
use audit::log::LogStorage as _;
use audit::record::Record;
use audit::tiles::{self, Kind};
use clap::Args;
use management::bootstrap;
use serde::Serialize;
use wire::layout::Layout;

use crate::audit_log::{Snapshot, log_identity};
use crate::cli::Dir;
use crate::output::{Failure, Outcome, dollars, json, line};

/// Which order.
#[derive(Args)]
pub(crate) struct ExplainArgs {
    /// Order id, as `trader order list` shows it
    order: String,
    #[command(flatten)]
    dir: Dir,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// One entry of the chain.
#[derive(Debug, Serialize)]
struct Link {
    /// What it says about the order: `data`, `model`, `module`, `grant`, `task`, `order`, `fill`.
    what: &'static str,
    /// Index in the log.
    index: u64,
    /// Process that recorded it.
    process: String,
    /// Sequence number within that process.
    seq: u64,
    /// The record.
    record: Record,
}

/// Prints the chain.
pub(crate) fn explain(args: &ExplainArgs) -> Outcome {
    let layout = Layout::new(&args.dir.dir);
    if !bootstrap::is_done(&layout) {
        return Err(Failure::refused(format!("there is no system in {}", layout.root().display())));
    }
    let entries = read_log(&layout)?;
    let links = chain(&entries, &args.order);
    if !links.iter().any(|link| matches!(link.record, Record::OrderDecided { .. })) {
        return Err(Failure::refused(format!(
            "the log knows no order {}; `trader order list` shows what there is",
            args.order
        )));
    }
    if args.json {
        return json(&links);
    }
    for link in &links {
        line(&format!("{:<7} {:>7}  {:<16} {}", link.what, link.index, link.process, describe(&link.record)));
        if let Record::OrderDecided { checks, .. } = &link.record {
            for check in checks {
                let verdict = if check.passed { "passed" } else { "REFUSED" };
                line(&format!("{:36}{:<14} {verdict}: {} of {}", "", check.name, check.value, check.limit));
            }
        }
    }
    Ok(())
}

/// Every entry of the log, straight from its files, as far as its signed checkpoint reaches; works while management is
/// running, and when it is not.
pub(crate) fn read_log(layout: &Layout) -> Result<Vec<Entry>, Failure> {
    let (key, origin) = log_identity(layout)?;
    let snapshot = Snapshot::take(layout, &key, &origin)?;
    let missing = || Failure::refused("the log is incomplete: `trader audit verify` says what is wrong");
    let mut entries = Vec::new();
    for file in tiles::files(snapshot.size).into_iter().filter(|file| file.kind == Kind::Entries) {
        let bytes = snapshot.read(&file.path()).map_err(Failure::broken)?.ok_or_else(missing)?;
        for text in tiles::decode_bundle(&bytes, file.width).ok_or_else(missing)? {
            entries.push(parse_line(text).map_err(Failure::refused)?);
        }
    }
    Ok(entries)
}

/// The entries that concern an order, in the order of the log.
fn chain(entries: &[Entry], order: &str) -> Vec<Link> {
    let decided = entries.iter().find_map(|entry| match &entry.record {
        Record::OrderDecided { order: id, task, grant, forecast, .. } if id == order => {
            Some((task.as_str(), grant.as_str(), forecast.as_deref()))
        }
        _ => None,
    });
    let Some((task, grant, forecast)) = decided else { return Vec::new() };
    let maker = forecast.and_then(|forecast| {
        entries.iter().find_map(|entry| match &entry.record {
            Record::Stored { what, id, task, .. } if what == "forecast" && id == forecast => {
                Some(task.as_str())
            }
            _ => None,
        })
    });
    let concerns = |record: &Record| -> Option<&'static str> {
        let of_maker = |id: &str| maker == Some(id);
        match record {
            Record::OrderDecided { order: id, .. } | Record::OrderSent { order: id } if id == order => {
                Some("order")
            }
            Record::OrderFilled { order: id, .. } | Record::OrderEnded { order: id, .. } if id == order => {
                Some("fill")
            }
            Record::GrantIssued { grant: id, .. } if id == grant => Some("grant"),
            Record::GrantIssued { task: id, .. } if of_maker(id) => Some("grant"),
            Record::ModuleStarted { task: id, .. } if id == task || of_maker(id) => Some("module"),
            Record::TaskEnded { task: id, outcome, .. } if of_maker(id) && outcome == "done" => Some("model"),
            Record::Stored { task: id, .. } if of_maker(id) => Some("model"),
            Record::Decision { task: Some(id), action, .. } if of_maker(id) && action == "read_bars" => {
                Some("data")
            }
            Record::TaskTaken { task: id, .. } if id == task => Some("task"),
            Record::TaskEnded { task: id, .. } if id == task => Some("task"),
            _ => None,
        }
    };
    entries
        .iter()
        .zip(0..)
        .filter_map(|(entry, index)| {
            concerns(&entry.record).map(|what| Link {
                what,
                index,
                process: entry.process.clone(),
                seq: entry.seq,
                record: entry.record.clone(),
            })
        })
        .collect()
}

fn describe(record: &Record) -> String {
    match record {
        Record::OrderDecided {
            order, side, quantity, symbol, price, market_day, approved, reason, ..
        } => {
            let verdict = if *approved { "approved" } else { "rejected" };
            format!(
                "{order}: {side} {quantity} {symbol} at {} on {market_day}: {verdict} ({reason})",
                dollars(*price)
            )
        }
        Record::OrderSent { order } => format!("{order} sent to the broker"),
        Record::OrderFilled { quantity, symbol, price, fee, market_day, .. } => {
            format!(
                "filled {quantity} {symbol} at {} on {market_day}, fee {}",
                dollars(*price),
                dollars(*fee)
            )
        }
        Record::OrderEnded { status, reason, market_day, .. } => {
            format!("{status} on {market_day}: {reason}")
        }
        Record::GrantIssued { grant, audience, actions, holder, policies, .. } => {
            format!(
                "{grant} for {audience} ({}) to {holder} by policy {}",
                actions.join(", "),
                policies.join(", ")
            )
        }
        Record::ModuleStarted { module, digest, task } => format!("{module} {digest} for {task}"),
        Record::TaskTaken { task, holder, attempt } => format!("{task} taken by {holder}, attempt {attempt}"),
        Record::TaskEnded { task, outcome, detail, .. } => format!("{task} {outcome}: {detail}"),
        Record::Stored { what, id, digest, .. } => format!("{what} {id}, digest {digest}"),
        Record::Decision { action, peer, reason, .. } => format!("{action} by {peer}: {reason}"),
        other => format!("{other:?}"),
    }
}
