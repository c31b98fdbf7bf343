//! The processes of the system, as subcommands: `trader process management`, `… unit market 1`, `… agent agent-1`.
//!
//! Each enrols with the ticket that it finds on standard input, if there is one, and ends when its parent ends or tells it
//! to.

use std::io::{self, BufRead as _, Read};

use clap::{Args, Subcommand};
use identity::SpiffeId;
use nix::sys::signal::Signal;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use wire::layout::{Layout, Topology, read_json};

use crate::cli::Dir;
use crate::output::{Failure, Outcome};

/// How much of the program is in memory at once while its digest is taken, in bytes.
const PIECE_BYTES: usize = 64 * 1024;

/// Which process to run.
#[derive(Args)]
pub(crate) struct ProcessArgs {
    #[command(flatten)]
    dir: Dir,
    #[command(subcommand)]
    process: Process,
}

/// A process of the system.
#[derive(Subcommand, Clone, Debug, PartialEq, Eq)]
pub(crate) enum Process {
    /// The management system
    Management,
    /// The balancer
    Balancer,
    /// A data unit
    Unit {
        /// Domain
        domain: String,
        /// Number
        number: u32,
    },
    /// The desk
    Desk,
    /// A node agent
    Agent {
        /// Name
        name: String,
    },
}

impl Process {
    /// Its name in directories and journals.
    pub(crate) fn name(&self) -> String {
        match self {
            Process::Management => "management".to_owned(),
            Process::Balancer => "balancer".to_owned(),
            Process::Unit { domain, number } => format!("unit-{domain}-{number}"),
            Process::Desk => "desk-1".to_owned(),
            Process::Agent { name } => name.clone(),
        }
    }

    /// The arguments that start it.
    pub(crate) fn arguments(&self) -> Vec<String> {
        match self {
            Process::Management => vec!["management".into()],
            Process::Balancer => vec!["balancer".into()],
            Process::Unit { domain, number } => vec!["unit".into(), domain.clone(), number.to_string()],
            Process::Desk => vec!["desk".into()],
            Process::Agent { name } => vec!["agent".into(), name.clone()],
        }
    }

    /// The identity that it enrols for; management issues its own, and the balancer has none.
    pub(crate) fn id(&self, trust_domain: &str) -> Option<SpiffeId> {
        match self {
            Process::Management | Process::Balancer => None,
            Process::Unit { domain, number } => SpiffeId::unit(trust_domain, domain, *number).ok(),
            Process::Desk => SpiffeId::desk(trust_domain, 1).ok(),
            Process::Agent { name } => SpiffeId::agent(trust_domain, name).ok(),
        }
    }
}

/// Runs one process until it is told to stop.
pub(crate) fn run(args: &ProcessArgs) -> Outcome {
    // Whoever started this process is the one that answers for it: without it, this one ends too.
    nix::sys::prctl::set_pdeathsig(Signal::SIGTERM).map_err(Failure::broken)?;
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_max_level(tracing::Level::INFO)
        .with_ansi(false)
        .init();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(Failure::broken)?;
    let result = runtime.block_on(run_process(args));
    runtime.shutdown_timeout(std::time::Duration::from_secs(2));
    result
}

async fn run_process(args: &ProcessArgs) -> Outcome {
    let layout = Layout::new(&args.dir.dir);
    let program = digest_of_program()?;
    let stop = stop_signal()?;
    enrol(&layout, &args.process).await?;
    let name = args.process.name();
    match &args.process {
        Process::Management => management::run::run(layout, program, stop).await.map_err(Failure::broken),
        Process::Balancer => run_balancer(&layout, stop).await,
        Process::Unit { domain, number } => {
            unit::run(layout, domain, *number, program, stop).await.map_err(Failure::broken)
        }
        Process::Desk => desk::run(layout, &name, program, stop).await.map_err(Failure::broken),
        Process::Agent { .. } => match agent::run::run(layout, &name, program, stop).await {
            Err(error @ agent::run::RunError::Revoked(_)) => Err(Failure::Revoked(error.to_string())),
            other => other.map_err(Failure::broken),
        },
    }
}

/// Redeems the ticket on standard input, if there is one.
async fn enrol(layout: &Layout, process: &Process) -> Outcome {
    let mut ticket = String::new();
    std::io::stdin().lock().read_line(&mut ticket).map_err(Failure::broken)?;
    let ticket = ticket.trim();
    if ticket.is_empty() {
        return Ok(());
    }
    let topology: Topology = read_json(&layout.topology()).map_err(Failure::broken)?;
    let (_, bundle) = management::bootstrap::bundle(layout).map_err(Failure::broken)?;
    let Some(id) = process.id(&bundle.trust_domain) else { return Ok(()) };
    let directory = layout.identity(&process.name());
    let class = id.class().map(identity::PeerClass::as_str).unwrap_or_default();
    let members = topology.management.get(class).copied();
    let members =
        members.ok_or_else(|| Failure::broken(format!("management has no listener for {class}")))?;
    let at = crate::enrol_command::newcomers_at(layout, &topology);
    let enrolling = wire::enrol::enrol(at, members, ticket, &id, &directory);
    crate::enrol_command::seen(enrolling).await?.map_err(Failure::refused)?;
    Ok(())
}

async fn run_balancer(layout: &Layout, stop: watch::Receiver<bool>) -> Outcome {
    let topology: Topology = read_json(&layout.topology()).map_err(Failure::broken)?;
    let routes = topology
        .services
        .into_iter()
        .map(|(name, service)| balancer::RouteConfig {
            name,
            listen: service.listen,
            backends: service.backends,
        })
        .collect();
    balancer::run(routes, stop).await.map_err(Failure::broken)
}

/// SHA-256 of the running program, for the record of its start.
pub(crate) fn digest_of_program() -> Result<String, Failure> {
    let program = std::fs::File::open("/proc/self/exe").map_err(Failure::broken)?;
    digest_of(program).map(|digest| digest.to_string()).map_err(Failure::broken)
}

/// SHA-256 of all that can be read, piece by piece: every process does this while it starts, all at the same time, and the
/// program is tens of megabytes.
pub(crate) fn digest_of(mut from: impl Read) -> io::Result<keys::Digest> {
    let mut hasher = keys::Hasher::default();
    let mut piece = vec![0; PIECE_BYTES];
    loop {
        match from.read(&mut piece) {
            Ok(0) => return Ok(hasher.finish()),
            Ok(count) => hasher.update(piece.get(..count).unwrap_or_default()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Turns true when the process is told to stop.
fn stop_signal() -> Result<watch::Receiver<bool>, Failure> {
    let (sender, receiver) = watch::channel(false);
    let mut terminate = signal(SignalKind::terminate()).map_err(Failure::broken)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(Failure::broken)?;
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        let _ = sender.send(true);
        // The receiver must outlive this task, and the sender must not be dropped before it.
        std::future::pending::<()>().await;
    });
    Ok(receiver)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes that come as slowly as they like, and remember the most that was asked for at once.
    struct Trickle<'a> {
        left: usize,
        most: &'a mut usize,
    }

    impl Read for Trickle<'_> {
        fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
            *self.most = into.len().max(*self.most);
            let count = self.left.min(into.len()).min(50_021);
            into[..count].fill(7);
            self.left -= count;
            Ok(count)
        }
    }

    #[test]
    fn the_digest_of_a_large_program_takes_little_memory() {
        let (mut most, size) = (0, 20_000_003);
        let digest = digest_of(Trickle { left: size, most: &mut most }).unwrap();
        assert_eq!(digest, keys::Digest::of(&vec![7; size]));
        assert!(most <= PIECE_BYTES, "{most} bytes at once");
    }
}
