//! `trader up`: the whole system on one machine.

use std::path::Path;
use std::time::{Duration, Instant};

use clap::Args;
use management::routes::Summary;
use market::Day;
use tokio::signal::unix::{SignalKind, signal};
use wire::layout::Layout;

use crate::audit_log;
use crate::cli::Dir;
use crate::console::Console;
use crate::first_start::{self, RunRequest};
use crate::output::{Failure, Outcome, dollars, json, say};
use crate::show::MEND;
use crate::summary::RunSummary;
use crate::supervisor::{Supervisor, all_processes};

/// How often the processes are looked after.
const LOOK: Duration = Duration::from_millis(50);
/// How often progress is asked for.
const PROGRESS: Duration = Duration::from_millis(500);

/// How to run.
#[derive(Args)]
pub(crate) struct UpArgs {
    #[command(flatten)]
    dir: Dir,
    /// Start over: remove all state in the directory first
    #[arg(long)]
    fresh: bool,
    /// Stop and print the summary when the run has reached its end
    #[arg(long)]
    exit_when_done: bool,
    /// Print the summary as JSON
    #[arg(long)]
    json: bool,
    /// Market days per second, or `max`
    #[arg(long, value_name = "DAYS", default_value = "max", value_parser = speed)]
    speed: Speed,
    /// Seed of the simulated market, 1 unless given; counts at the first start only
    #[arg(long)]
    seed: Option<u64>,
    /// Last market day; counts at the first start only
    #[arg(long, value_name = "YYYY-MM-DD")]
    until: Option<Day>,
    /// Take no key exchange but the hybrid post-quantum one; at the first start
    #[arg(long)]
    require_pq: bool,
    /// Say nothing but errors on standard error
    #[arg(long)]
    quiet: bool,
    /// Port of the console on this machine; 0 takes a free one
    #[arg(long, value_name = "PORT", default_value_t = 0)]
    console_port: u16,
}

/// Market days per second; `None` as fast as possible.
#[derive(Debug, Clone, Copy)]
struct Speed(Option<u32>);

fn speed(text: &str) -> Result<Speed, String> {
    match text {
        "max" => Ok(Speed(None)),
        number => match number.parse() {
            Ok(days) if days > 0 => Ok(Speed(Some(days))),
            _ => Err("a number of market days per second above 0, or max".to_owned()),
        },
    }
}

/// Runs the whole system.
pub(crate) async fn up(args: UpArgs) -> Outcome {
    let root = std::path::absolute(&args.dir.dir).map_err(Failure::broken)?;
    let layout = Layout::new(&root);
    // The lock first: whoever starts over must not pull the state from under a system that runs.
    if args.fresh {
        first_start::check_removable(&layout)?;
    }
    // What is asked for is checked before anything is made or removed: a mistyped day must not cost a state, nor leave one.
    let request = RunRequest {
        seed: args.seed,
        days_per_second: args.speed.0,
        until: args.until,
        require_pq: args.require_pq,
    };
    let plan = first_start::plan_for(&layout, &request, args.fresh)?;
    let lock = lock(&root)?;
    if args.fresh {
        first_start::remove(&layout)?;
    }
    first_start::prepare(&layout, &request, plan)?;
    let started = Instant::now();
    let mut terminate = signal(SignalKind::terminate()).map_err(Failure::broken)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(Failure::broken)?;
    let mut supervisor = tokio::select! {
        supervisor = Supervisor::start(layout.clone()) => supervisor?,
        _ = interrupt.recv() => return Err(Failure::refused("interrupted while starting")),
        _ = terminate.recv() => return Err(Failure::refused("told to stop while starting")),
    };
    let console = Console::start(&layout, args.console_port).await?;
    let talk = Talk { quiet: args.quiet };
    talk.say(&format!("state directory   {}", root.display()));
    talk.say(&format!(
        "processes         {} (their output: processes/NAME/output.log)",
        supervisor.running()
    ));
    talk.say(&format!("console           {}", console.url()));
    talk.say("Ctrl-C stops everything in order; the next `trader up` goes on from there.");

    let mut progress = Progress::new(started, !args.exit_when_done);
    let mut look = tokio::time::interval(LOOK);
    let mut ask = tokio::time::interval(PROGRESS);
    let end = loop {
        tokio::select! {
            _ = look.tick() => supervisor.look_after().await,
            _ = ask.tick() => {
                if let Ok(summary) = supervisor.operator().get::<Summary>("/v1/summary").await {
                    progress.show(&talk, &summary);
                    // A person can clear what a person stopped while this waits; what failed needs a new start.
                    if args.exit_when_done && (summary.ended || summary.halted.is_some()) {
                        break if summary.ended { End::Reached } else { End::Halted };
                    }
                }
            }
            _ = interrupt.recv() => break End::Interrupted,
            _ = terminate.recv() => break End::Interrupted,
        }
    };
    let last: Option<Summary> = supervisor.operator().get("/v1/summary").await.ok();
    let curve: Option<Vec<(String, i64)>> = supervisor.operator().get("/v1/equity").await.ok();
    talk.say("stopping");
    supervisor.stop().await;
    drop(console);
    let (Some(last), Some(curve)) = (last, curve) else {
        return Err(Failure::broken("management did not answer at the end; run `trader audit verify`"));
    };
    let report = audit_log::verify_files(&layout)?;
    let summary = RunSummary::new(&last, &curve, all_processes().len(), &report)?;
    if args.json {
        json(&summary)?;
    } else {
        summary.print(&last);
    }
    drop(lock);
    if !report.verified {
        return Err(Failure::broken("the audit log does not verify; `trader audit verify` says where"));
    }
    match end {
        End::Halted => {
            let why = last.halted.as_deref().unwrap_or("a task failed too often");
            Err(Failure::broken(format!("the run stands still: {why}\n{MEND}")))
        }
        End::Interrupted if args.exit_when_done => {
            Err(Failure::refused("interrupted before the run had reached its end"))
        }
        End::Interrupted | End::Reached => Ok(()),
    }
}

/// Why `trader up` comes to an end.
enum End {
    /// The run has reached its last day.
    Reached,
    /// A task failed too often.
    Halted,
    /// A person or the system told it to stop.
    Interrupted,
}

/// What is said while it runs.
struct Talk {
    quiet: bool,
}

impl Talk {
    fn say(&self, text: &str) {
        if !self.quiet {
            say(text);
        }
    }
}

/// Progress: one line a market year, and whenever something happened that a person should know.
struct Progress {
    started: Instant,
    /// Whether `trader up` stays up when the run stands still.
    stays: bool,
    year: String,
    incidents: usize,
    state: String,
}

impl Progress {
    fn new(started: Instant, stays: bool) -> Self {
        Self { started, stays, year: String::new(), incidents: 0, state: String::new() }
    }

    fn show(&mut self, talk: &Talk, summary: &Summary) {
        if summary.incidents_open != self.incidents {
            self.incidents = summary.incidents_open;
            talk.say(&format!("open incidents: {}; `trader incident list` says which", self.incidents));
        }
        if summary.state != self.state {
            self.state.clone_from(&summary.state);
            if summary.state != "running" {
                talk.say(&summary.state);
                if summary.halted.is_some() && self.stays {
                    talk.say(MEND);
                }
            }
        }
        let year = summary.market_day.get(..4).unwrap_or_default();
        if year.is_empty() || year == self.year {
            return;
        }
        year.clone_into(&mut self.year);
        let counts = &summary.counts;
        talk.say(&format!(
            "{:>6.1} s  {}  equity {:>15}  orders {:>5}  fills {:>5}  grants {:>6} issued {:>3} denied",
            self.started.elapsed().as_secs_f64(),
            summary.market_day,
            dollars(summary.equity),
            counts.orders,
            counts.fills,
            counts.grants_issued,
            counts.grants_denied,
        ));
    }
}

/// Makes sure that no second `trader up` runs on the same state. The lock goes when the file is closed, however that comes.
pub(crate) fn lock(root: &Path) -> Result<std::fs::File, Failure> {
    wire::files::create_private_dir(root).map_err(Failure::broken)?;
    let path = root.join(first_start::LOCK);
    let file = std::fs::File::options()
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .map_err(Failure::broken)?;
    file.try_lock().map_err(|_| {
        Failure::refused(format!(
            "a `trader up` is running on {} already; stop it first, or use --dir",
            root.display()
        ))
    })?;
    Ok(file)
}
