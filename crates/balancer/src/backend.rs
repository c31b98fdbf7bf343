//! The backends of a route: how busy and how well each is, and which is asked first.
//!
//! Of two backends taken at random the less busy one is asked: nearly as good as asking the least busy of
//! all, and no herd follows one number. One failure takes a backend out, two successes in a row bring it
//! back.
//!
//! INVARIANT: a backend that is out is asked last, not never: when all are out, being wrong costs less than
//! giving up.

use std::hash::{BuildHasher as _, RandomState};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};

use tokio::net::TcpStream;
use tokio::time::{MissedTickBehavior, interval, timeout};

use crate::{CONNECT_TIME_MAX, HEALTH_INTERVAL};

/// Successes in a row that bring a backend back.
const SUCCESSES_TO_RETURN: u32 = 2;

#[derive(Debug)]
pub(crate) struct Backend {
    address: SocketAddr,
    in_flight: AtomicUsize,
    well: AtomicBool,
    successes: AtomicU32,
}

/// Counts a connection as long as it lives.
pub(crate) struct InFlight<'a>(&'a AtomicUsize);

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Backend {
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Counts a connection in, until the value is dropped.
    pub(crate) fn count_in(&self) -> InFlight<'_> {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        InFlight(&self.in_flight)
    }

    /// It didn't take a connection.
    pub(crate) fn failed(&self, route: &str) {
        self.successes.store(0, Ordering::Relaxed);
        if self.well.swap(false, Ordering::Relaxed) {
            tracing::warn!(route, backend = %self.address, "backend is out");
        }
    }

    /// It took one.
    fn succeeded(&self, route: &str) {
        let successes = self.successes.fetch_add(1, Ordering::Relaxed).saturating_add(1);
        if successes >= SUCCESSES_TO_RETURN && !self.well.swap(true, Ordering::Relaxed) {
            tracing::info!(route, backend = %self.address, "backend is back");
        }
    }
}

#[derive(Debug)]
pub(crate) struct Backends {
    all: Vec<Backend>,
    chance: RandomState,
    turn: AtomicUsize,
}

impl Backends {
    pub(crate) fn new(addresses: &[SocketAddr]) -> Self {
        let backend = |address: &SocketAddr| Backend {
            address: *address,
            in_flight: AtomicUsize::new(0),
            // Until it has been asked, it is taken for well.
            well: AtomicBool::new(true),
            successes: AtomicU32::new(0),
        };
        Self {
            all: addresses.iter().map(backend).collect(),
            chance: RandomState::new(),
            turn: AtomicUsize::new(0),
        }
    }

    pub(crate) fn count(&self) -> usize {
        self.all.len()
    }

    pub(crate) fn get(&self, index: usize) -> Option<&Backend> {
        self.all.get(index)
    }

    /// The order in which to ask: one of two well ones at random, then the other well ones by how busy they
    /// are, then those that are out.
    pub(crate) fn order(&self) -> Vec<usize> {
        let mut drawn: Vec<(bool, u64, usize, usize)> = self
            .all
            .iter()
            .enumerate()
            .map(|(index, backend)| {
                let turn = self.turn.fetch_add(1, Ordering::Relaxed);
                let out = !backend.well.load(Ordering::Relaxed);
                (out, self.chance.hash_one(turn), backend.in_flight.load(Ordering::Relaxed), index)
            })
            .collect();
        drawn.sort_unstable();
        let well = drawn.iter().filter(|(out, ..)| !out).count();
        let pair = well.min(2);
        if let Some(pair) = drawn.get_mut(..pair) {
            pair.sort_by_key(|(_, _, busy, _)| *busy);
        }
        if let Some(rest) = drawn.get_mut(1.min(well)..well) {
            rest.sort_by_key(|(_, _, busy, _)| *busy);
        }
        drawn.into_iter().map(|(_, _, _, index)| index).collect()
    }

    /// Asks a backend again and again whether it takes connections.
    pub(crate) async fn check_for_ever(&self, index: usize, route: &str) {
        let Some(backend) = self.get(index) else { return };
        let mut ticks = interval(HEALTH_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            match timeout(CONNECT_TIME_MAX, TcpStream::connect(backend.address)).await {
                Ok(Ok(_)) => backend.succeeded(route),
                Ok(Err(_)) | Err(_) => backend.failed(route),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn backends(count: u16) -> Backends {
        let addresses: Vec<SocketAddr> =
            (1..=count).map(|port| SocketAddr::from(([127, 0, 0, 1], port))).collect();
        Backends::new(&addresses)
    }

    #[test]
    fn the_less_busy_of_two_is_asked_first() {
        let backends = backends(2);
        let _busy = backends.get(0).unwrap().count_in();
        for _ in 0..50 {
            assert_eq!(backends.order(), [1, 0]);
        }
    }

    #[test]
    fn idle_backends_share_the_work() {
        let backends = backends(3);
        let mut firsts = [0; 3];
        for _ in 0..300 {
            firsts[backends.order()[0]] += 1;
        }
        assert!(firsts.iter().all(|times| *times > 30), "{firsts:?}");
    }

    #[test]
    fn one_failure_takes_a_backend_out_and_two_successes_bring_it_back() {
        let backends = backends(2);
        let first = backends.get(0).unwrap();
        let _busy = backends.get(1).unwrap().count_in();
        assert_eq!(backends.order(), [0, 1]);
        first.failed("r");
        assert_eq!(backends.order(), [1, 0]);
        first.succeeded("r");
        assert_eq!(backends.order(), [1, 0]);
        first.failed("r");
        first.succeeded("r");
        assert_eq!(backends.order(), [1, 0], "the successes must be in a row");
        first.succeeded("r");
        assert_eq!(backends.order(), [0, 1]);
    }

    #[test]
    fn every_backend_is_asked_once_even_when_all_are_out() {
        let backends = backends(5);
        for index in 0..5 {
            backends.get(index).unwrap().failed("r");
        }
        let mut order = backends.order();
        order.sort_unstable();
        assert_eq!(order, [0, 1, 2, 3, 4]);
    }

    #[test]
    fn a_connection_counts_as_long_as_it_lives() {
        let backends = backends(1);
        let backend = backends.get(0).unwrap();
        let one = backend.count_in();
        assert_eq!(backend.in_flight.load(Ordering::Relaxed), 1);
        drop(one);
        assert_eq!(backend.in_flight.load(Ordering::Relaxed), 0);
    }
}
