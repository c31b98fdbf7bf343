//! `trader audit verify`: recomputes the whole log and every journal from the files, trusting one public key only.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::time::Duration;

use audit::checkpoint::Checkpoint;
use audit::log::LogStorage;
use audit::tiles;
use audit::verify::{Report, verify};
use clap::Args;
use keys::VerifyingKey;
use management::bootstrap;
use management::log_files::LogFiles;
use management::run::log_origin;
use wire::layout::Layout;

use crate::cli::Dir;
use crate::output::{Failure, Outcome, json, line};

/// Path of the checkpoint within the log.
const CHECKPOINT: &str = "checkpoint";
/// Entries or hashes of a full tile.
const TILE_WIDTH: u64 = 256;

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

/// Verifies the log and the journals of a state directory, also while the system is running.
pub(crate) fn verify_files(layout: &Layout) -> Result<Report, Failure> {
    if !bootstrap::is_done(layout) {
        return Err(Failure::refused(format!("there is no system in {}", layout.root().display())));
    }
    let (key, origin) = log_identity(layout)?;
    let snapshot = Snapshot::take(layout, &key, &origin)?;
    // Journals are read after the log: every entry of the log was in its journal before.
    verify(&snapshot, &key, &origin, &journals(layout)?).map_err(Failure::broken)
}

/// The log's public key and its name, from the signed trust bundle.
pub(crate) fn log_identity(layout: &Layout) -> Result<(VerifyingKey, String), Failure> {
    let (_, bundle) = bootstrap::bundle(layout).map_err(Failure::broken)?;
    let key = VerifyingKey::from_hex(&bundle.log_key).map_err(Failure::broken)?;
    Ok((key, log_origin(&bundle.trust_domain)))
}

/// How often a snapshot of a growing log is tried.
const SNAPSHOT_TRIES: u32 = 200;

/// A log as it was at one checkpoint. Full tiles never change and are read from the files; the few that are not full yet are
/// replaced as the log grows, so they are read at once, together with the checkpoint that they belong to.
pub(crate) struct Snapshot {
    files: LogFiles,
    held: BTreeMap<String, Vec<u8>>,
    paths: Vec<String>,
    /// Number of entries; 0 when there is no checkpoint that can be believed, and all files are shown as they are.
    pub(crate) size: u64,
}

impl Snapshot {
    /// Takes a snapshot. When none is whole after many tries, or the checkpoint is not to be believed, everything is shown as
    /// it is, and whoever verifies it says what is wrong.
    pub(crate) fn take(layout: &Layout, key: &VerifyingKey, origin: &str) -> Result<Self, Failure> {
        let files = LogFiles::open(&layout.log()).map_err(Failure::broken)?;
        for _ in 0..SNAPSHOT_TRIES {
            let Some(note) = files.read(CHECKPOINT).map_err(Failure::broken)? else { break };
            let Ok(checkpoint) = Checkpoint::open(&note, origin, key) else { break };
            let mut held = BTreeMap::from([(CHECKPOINT.to_owned(), note)]);
            let mut paths = vec![CHECKPOINT.to_owned()];
            let mut whole = true;
            for file in tiles::files(checkpoint.size) {
                let path = file.path();
                paths.push(path.clone());
                if file.width < TILE_WIDTH {
                    match files.read(&path).map_err(Failure::broken)? {
                        Some(bytes) => drop(held.insert(path, bytes)),
                        None => whole = false,
                    }
                }
            }
            if whole {
                return Ok(Self { files, held, paths, size: checkpoint.size });
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        let paths = files.list().map_err(Failure::broken)?;
        Ok(Self { files, held: BTreeMap::new(), paths, size: 0 })
    }
}

impl LogStorage for Snapshot {
    fn read(&self, path: &str) -> io::Result<Option<Vec<u8>>> {
        match self.held.get(path) {
            Some(bytes) => Ok(Some(bytes.clone())),
            None => self.files.read(path),
        }
    }

    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.paths.clone())
    }

    fn write_atomic(&mut self, _path: &str, _bytes: &[u8]) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn remove(&mut self, _path: &str) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn sync(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Every journal by its process, without a last line that is just being written: it has not been acknowledged to anybody.
fn journals(layout: &Layout) -> Result<Vec<(String, Vec<u8>)>, Failure> {
    let mut journals = Vec::new();
    let Ok(processes) = fs::read_dir(layout.root().join("processes")) else { return Ok(journals) };
    for process in processes {
        let name = process.map_err(Failure::broken)?.file_name().to_string_lossy().into_owned();
        let path = layout.journal(&name).join(format!("{name}.journal"));
        if path.exists() {
            let mut bytes = fs::read(&path).map_err(Failure::broken)?;
            let whole = bytes.iter().rposition(|&byte| byte == b'\n').map_or(0, |last| last + 1);
            bytes.truncate(whole);
            journals.push((name, bytes));
        }
    }
    journals.sort();
    Ok(journals)
}
