//! Measures the system beside the floor (what this machine can do at all, measured in the same run) and beside a real peer.
//!
//! `cargo run --release -- keys [--agents N] [--rounds N] [--no-peer]`, in `bench/`. A table goes to standard error, one JSON
//! object to standard output. Ratios travel between machines; the figures themselves do not.
//!
//! INVARIANT: each figure is the median of several rounds, and a peer that cannot be had is left out with a line that says so.

#![allow(dead_code, reason = "a world that tests share has more than is needed here")]

mod floor;
mod keys_bench;
mod openbao;

// The very management that its tests attack: real keys, policies, journal, database and routes.
#[path = "../../../crates/management/tests/routes/rotation.rs"]
mod rotation;
#[path = "../../../crates/management/tests/routes/world.rs"]
mod world;

use std::process::ExitCode;
use std::time::{Duration, Instant};

/// How long one round of something small is repeated.
const ROUND: Duration = Duration::from_millis(500);

/// What is to be measured.
pub(crate) struct Request {
    pub(crate) agents: usize,
    pub(crate) rounds: usize,
    pub(crate) peer: bool,
}

fn request(args: &[String]) -> Option<Request> {
    let mut request = Request { agents: 1_000, rounds: 5, peer: true };
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--agents" => request.agents = args.next()?.parse().ok()?,
            "--rounds" => request.rounds = args.next()?.parse().ok().filter(|rounds| *rounds > 0)?,
            "--no-peer" => request.peer = false,
            _ => return None,
        }
    }
    Some(request)
}

/// The one in the middle.
pub(crate) fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures.get(figures.len() / 2).copied().unwrap_or(f64::NAN)
}

/// How often something is done in a second, by one thread: the median of the rounds.
pub(crate) fn rate(rounds: usize, mut work: impl FnMut()) -> f64 {
    work();
    let round = |_| {
        let (begun, mut done) = (Instant::now(), 0_u32);
        while begun.elapsed() < ROUND {
            work();
            done += 1;
        }
        f64::from(done) / begun.elapsed().as_secs_f64()
    };
    median((0..rounds).map(round).collect())
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let asked = match args.split_first() {
        Some((what, rest)) if what == "keys" => request(rest),
        _ => None,
    };
    let Some(asked) = asked else {
        eprintln!("usage: bench keys [--agents N] [--rounds N] [--no-peer]");
        return ExitCode::from(1);
    };
    println!("{}", keys_bench::run(&asked));
    ExitCode::SUCCESS
}
