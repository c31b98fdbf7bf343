//! `trader data`: checks and imports market-data files; and the desk's limits for the portfolios of a plan.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use desk::DeskConfig;
use engine::FillModel;
use feeds::Source;
use management::plan::Plan;
use market::import::{Action, Imported};
use market::{Money, Quantity};
use risk::Limits;
use serde_json::json;
use wire::files;
use wire::layout::Layout;

use crate::cli::Dir;
use crate::first_start;
use crate::output::{Failure, Outcome, json, line, say};

/// Commands on market data.
#[derive(Subcommand)]
pub(crate) enum DataCommand {
    /// Read files and name every row that is refused or conspicuous; fails when one holds no good row
    Check(CheckArgs),
    /// Check a file and make it a source of a system that has not been started yet
    Import(FileArgs),
}

/// Which files.
#[derive(Args)]
pub(crate) struct CheckArgs {
    /// CSV files, plain or gzip: `Date,AAPL,MSFT,…` with closes, or `Symbol,Date,Open,High,Low,Close,Volume[,Split]`
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Print JSON, an object a line for each file
    #[arg(long)]
    json: bool,
}

/// Which file, and for which system.
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
        DataCommand::Check(args) => check(args),
        DataCommand::Import(args) => import(args),
    }
}

/// A source, and what the import says of all its rows.
fn read(file: &Path) -> Result<(Source, Imported), Failure> {
    let source = Source::open(file).map_err(Failure::refused)?;
    let Some(last) = source.days().last().copied() else {
        return Err(Failure::refused(format!("{} holds no row with a readable date", file.display())));
    };
    let imported = market::import::read(&source.slice(None, last)).map_err(Failure::refused)?;
    Ok((source, imported))
}

fn check(args: &CheckArgs) -> Outcome {
    let mut useless = Vec::new();
    for file in &args.files {
        if args.files.len() > 1 && !args.json {
            line(&format!("{}:", file.display()));
        }
        match read(file) {
            Ok((_, imported)) => {
                print(file, args.json, &imported)?;
                if imported.bars == 0 {
                    useless.push(format!("{} holds no good row", file.display()));
                }
            }
            // The other files are still worth a look.
            Err(failure) => useless.push(failure.words().to_owned()),
        }
    }
    if useless.is_empty() { Ok(()) } else { Err(Failure::refused(useless.join("; "))) }
}

fn import(args: &FileArgs) -> Outcome {
    let layout = Layout::new(&args.dir.dir);
    if layout.plan().exists() {
        return Err(Failure::refused(format!(
            "the system in {} has a plan already; import into a new directory, then start it with `trader up --dir`",
            layout.root().display()
        )));
    }
    let (source, imported) = read(&args.file)?;
    if imported.bars == 0 {
        print(&args.file, args.json, &imported)?;
        return Err(Failure::refused("no row was good enough to be imported"));
    }
    // A portfolio is named after its source's file: a second one of that name would replace the first, or be taken for it.
    if let Some(other) = first_start::same_portfolio(&layout, source.name())? {
        return Err(Failure::refused(format!(
            "{} is imported already, and {} would be traded in the portfolio of the same name, {}: rename the new file, or \
             remove the old one first if the new one is to replace it",
            other.display(),
            args.file.display(),
            first_start::portfolio_name(source.name()),
        )));
    }
    first_start::check_symbols(source.name(), imported.series.len())?;
    let name = args.file.file_name().unwrap_or_default();
    let bytes = std::fs::read(&args.file).map_err(Failure::broken)?;
    files::create_private_dir(&layout.sources()).map_err(Failure::broken)?;
    // The file is kept as it is: collectors check every row again in their cells.
    files::write_private_atomic(&layout.sources().join(name), &bytes).map_err(Failure::broken)?;
    print(&args.file, args.json, &imported)?;
    let objections = [
        first_start::too_short(source.name(), source.days().len()),
        first_start::too_few_symbols(source.name(), imported.series.len()),
    ];
    let mut objections = objections.into_iter().flatten().peekable();
    if objections.peek().is_none() {
        say(&format!("`trader up --dir {}` trades it", layout.root().display()));
    }
    for words in objections {
        say(&format!("imported, but {words}"));
    }
    Ok(())
}

fn print(file: &Path, as_json: bool, imported: &Imported) -> Outcome {
    if as_json {
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
            "file": file, "symbols": imported.series.len(), "bars": imported.bars,
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Four good days of three symbols, written to a file of this name in a new folder below a directory.
    fn file(directory: &Path, folder: &str, name: &str, text: &str) -> PathBuf {
        let folder = directory.join(folder);
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join(name), text).unwrap();
        folder.join(name)
    }

    const GOOD: &str = "Date,A,B,C\n2001-01-01,1,2,3\n2001-01-02,1,2,3\n";

    #[test]
    fn a_second_source_of_one_name_is_refused_and_the_first_stays() {
        let directory = tempfile::tempdir().unwrap();
        let dir = Dir { dir: directory.path().join("state") };
        let import = |file: PathBuf| import(&FileArgs { file, dir: dir.clone(), json: true });
        import(file(directory.path(), "one", "good.csv", GOOD)).unwrap();
        for name in ["good.csv", "Good.csv"] {
            let other = file(directory.path(), "two", name, &GOOD.replace(",3", ",4"));
            let refused = import(other).unwrap_err();
            assert_eq!(refused.status(), 1);
            assert!(refused.words().contains("rename the new file"), "{}", refused.words());
        }
        let kept = Layout::new(&dir.dir).sources().join("good.csv");
        assert_eq!(std::fs::read_to_string(kept).unwrap(), GOOD);
        import(file(directory.path(), "two", "better.csv", GOOD)).unwrap();
        // Packed, it is the same source.
        let sources = Layout::new(&dir.dir).sources();
        std::fs::rename(sources.join("good.csv"), sources.join("good.csv.gz")).unwrap();
        import(file(directory.path(), "one", "good.csv", GOOD)).unwrap_err();
    }

    #[test]
    fn a_file_of_too_many_symbols_is_refused_before_it_is_a_source() {
        let directory = tempfile::tempdir().unwrap();
        let dir = Dir { dir: directory.path().join("state") };
        let names: Vec<String> = (0..101).map(|index| format!("S{index}")).collect();
        let text = format!("Date,{}\n2001-01-01{}\n", names.join(","), ",1".repeat(101));
        let file = file(directory.path(), "one", "many.csv", &text);
        assert_eq!(import(&FileArgs { file, dir: dir.clone(), json: true }).unwrap_err().status(), 1);
        assert!(!dir.dir.exists());
    }

    #[test]
    fn a_check_fails_when_any_of_its_files_holds_no_good_row() {
        let directory = tempfile::tempdir().unwrap();
        let good = file(directory.path(), "one", "good.csv", GOOD);
        let none = file(directory.path(), "one", "none.csv", "Date,A\n2001-01-01,-1\n");
        let check = |files: &[&PathBuf]| {
            check(&CheckArgs { files: files.iter().map(|file| (*file).clone()).collect(), json: true })
        };
        check(&[&good, &good]).unwrap();
        for files in [vec![&none], vec![&none, &good], vec![&good, &none]] {
            let failure = check(&files).unwrap_err();
            assert_eq!(failure.status(), 1);
            assert!(failure.words().contains("none.csv holds no good row"), "{}", failure.words());
        }
        let missing = directory.path().join("missing.csv");
        assert!(check(&[&missing, &none]).unwrap_err().words().contains("none.csv"));
    }
}
