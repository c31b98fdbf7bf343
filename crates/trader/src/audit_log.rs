//! `trader audit verify`: recomputes the whole log and every journal from the files, trusting one public key only.

use std::fs;

use audit::verify::{Report, verify};
use clap::Args;
use keys::VerifyingKey;
use management::bootstrap;
use management::log_files::LogFiles;
use management::run::log_origin;
use wire::layout::Layout;

use crate::cli::Dir;
use crate::output::{Failure, Outcome, json, line};

/// What to verify.
#[derive(Args)]
pub(crate) struct VerifyArgs {
    #[command(flatten)]
    dir: Dir,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Verifies and prints.
pub(crate) fn verify_command(args: &VerifyArgs) -> Outcome {
    let report = verify_files(&Layout::new(&args.dir.dir))?;
    if args.json {
        json(&report)?;
    } else {
        line(&format!("entries   {}", report.entries));
        line(&format!("root      {}", report.root));
        if report.unjoined > 0 {
            line(&format!(
                "unjoined  {} (the system is running, or was cut off; it joins them when it runs)",
                report.unjoined
            ));
        }
        for fault in &report.faults {
            line(&format!("FAULT     {}: {}", fault.place, fault.problem));
        }
        line(if report.verified { "verified" } else { "NOT VERIFIED" });
    }
    if report.verified { Ok(()) } else { Err(Failure::refused("the log does not verify")) }
}

/// Verifies the log and the journals of a state directory.
pub(crate) fn verify_files(layout: &Layout) -> Result<Report, Failure> {
    if !bootstrap::is_done(layout) {
        return Err(Failure::refused(format!("there is no system in {}", layout.root().display())));
    }
    let (_, bundle) = bootstrap::bundle(layout).map_err(Failure::broken)?;
    let key = VerifyingKey::from_hex(&bundle.log_key).map_err(Failure::broken)?;
    let storage = LogFiles::open(&layout.log()).map_err(Failure::broken)?;
    verify(&storage, &key, &log_origin(&bundle.trust_domain), &journals(layout)?).map_err(Failure::broken)
}

/// Every journal by its process. Read before the log: what is joined in between is in the log and not missed.
fn journals(layout: &Layout) -> Result<Vec<(String, Vec<u8>)>, Failure> {
    let mut journals = Vec::new();
    let Ok(processes) = fs::read_dir(layout.root().join("processes")) else { return Ok(journals) };
    for process in processes {
        let name = process.map_err(Failure::broken)?.file_name().to_string_lossy().into_owned();
        let path = layout.journal(&name).join(format!("{name}.journal"));
        if path.exists() {
            journals.push((name, fs::read(&path).map_err(Failure::broken)?));
        }
    }
    journals.sort();
    Ok(journals)
}
