//! `trader data`: checks and imports market-data files; and the desk's limits for the portfolios of a plan.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use desk::DeskConfig;
use engine::FillModel;
use feeds::Source;
use management::bootstrap;
use management::plan::Plan;
use market::import::{Action, Imported};
use market::{Money, Quantity};
use risk::Limits;
use serde_json::json;
use wire::files;
use wire::layout::Layout;

use crate::cli::Dir;
use crate::output::{Failure, Outcome, json, line, say};

/// Commands on market data.
#[derive(Subcommand)]
pub(crate) enum DataCommand {
    /// Read a file and name every row that is refused or conspicuous
    Check(FileArgs),
    /// Check a file and make it a source of a system that has not been started yet
    Import(FileArgs),
}

/// Which file.
#[derive(Args)]
pub(crate) struct FileArgs {
    /// CSV file, plain or gzip: `Date,AAPL,MSFT,…` with closes, or `Symbol,Date,Open,High,Low,Close,Volume[,Split]`
    file: PathBuf,
    #[command(flatten)]
    dir: Dir,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Runs a command on market data.
pub(crate) fn run(command: &DataCommand) -> Outcome {
    match command {
        DataCommand::Check(args) => {
            let imported = read(args)?;
            print(args, &imported)
        }
        DataCommand::Import(args) => import(args),
    }
}

fn read(args: &FileArgs) -> Result<Imported, Failure> {
    let source = Source::open(&args.file).map_err(Failure::refused)?;
    let Some(last) = source.days().last().copied() else {
        return Err(Failure::refused(format!("{} holds no row with a readable date", args.file.display())));
    };
    market::import::read(&source.slice(None, last)).map_err(Failure::refused)
}

fn import(args: &FileArgs) -> Outcome {
    let layout = Layout::new(&args.dir.dir);
    if bootstrap::is_done(&layout) {
        return Err(Failure::refused(format!(
            "the system in {} has a plan already; import into a new directory, then start it with `trader up --dir`",
            layout.root().display()
        )));
    }
    let imported = read(args)?;
    if imported.bars == 0 {
        print(args, &imported)?;
        return Err(Failure::refused("no row was good enough to be imported"));
    }
    let name = args.file.file_name().unwrap_or_default();
    let bytes = std::fs::read(&args.file).map_err(Failure::broken)?;
    files::create_private_dir(&layout.sources()).map_err(Failure::broken)?;
    // The file is kept as it is: collectors check every row again in their cells, and refuse the same ones.
    files::write_private_atomic(&layout.sources().join(name), &bytes).map_err(Failure::broken)?;
    print(args, &imported)?;
    say(&format!("`trader up --dir {}` trades it", layout.root().display()));
    Ok(())
}

fn print(args: &FileArgs, imported: &Imported) -> Outcome {
    if args.json {
        let findings: Vec<serde_json::Value> = imported
            .findings
            .iter()
            .map(|finding| {
                json!({
                    "row": finding.row,
                    "symbol": finding.symbol,
                    "day": finding.day,
                    "fault": finding.fault.as_str(),
                    "action": finding.action.as_str(),
                    "detail": finding.detail,
                })
            })
            .collect();
        return json(&json!({
            "file": args.file, "symbols": imported.series.len(), "bars": imported.bars,
            "refused": imported.refused, "flagged": imported.flagged, "findings": findings,
        }));
    }
    for finding in &imported.findings {
        let symbol = finding.symbol.as_ref().map(ToString::to_string).unwrap_or_default();
        let day = finding.day.map(|day| day.to_string()).unwrap_or_default();
        let action = if finding.action == Action::Refused { "refused" } else { "flagged" };
        line(&format!(
            "line {:<7} {symbol:<8} {day:<10} {action} {}: {}",
            finding.row,
            finding.fault.as_str(),
            finding.detail
        ));
    }
    line(&format!(
        "{} bars of {} symbols are good; {} findings refused, {} flagged",
        imported.bars,
        imported.series.len(),
        imported.refused,
        imported.flagged
    ));
    Ok(())
}

/// The desk's configuration for the portfolios of a plan, as it is written at the first start; operators edit it then.
///
/// One order may be a tenth larger than the strategist's own cap, since prices move between the close and the order. A
/// position may grow to twice the cap that it was bought under before more of it is refused.
pub(crate) fn desk_config(plan: &Plan) -> Result<String, Failure> {
    let limits = plan
        .portfolios
        .iter()
        .map(|portfolio| {
            let cap_bps =
                portfolio.construction.get("cap_bps").and_then(serde_json::Value::as_i64).unwrap_or(1_000);
            let limits = Limits {
                quantity_max: Quantity::new(100_000_000),
                order_notional_max: Money::from_micros(portfolio.cash.saturating_mul(20)),
                order_notional_bps_max: portfolio.order_max_bps * 11 / 10,
                collar_bps: 100,
                price_age_days_max: 7,
                position_bps_max: (cap_bps * 2).min(10_000),
                messages_per_day_max: 200,
                buy_buffer_bps: 100,
                sell_credit_bps: 9_500,
            };
            (portfolio.name.clone(), limits)
        })
        .collect();
    let broker = FillModel { slippage_bps: 5, fee_bps: 5, seed: plan.seed };
    DeskConfig { broker, limits }.to_toml().map_err(Failure::broken)
}
