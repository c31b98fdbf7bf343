//! Time as the records tell it, made safe to count with.
//!
//! Owns one rule: within a process, time that is told to run backwards stands still instead. A process whose
//! clock jumps back, or that lies so, cannot spread a burst over windows in which nobody looks; everything it
//! does then counts as done at once.

use std::collections::BTreeMap;

/// A moment of a process: its own running time, and the wall time that it told. Both in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Moment {
    process: u32,
    running: u64,
    told: i64,
}

impl Moment {
    /// Whether two moments lie within a window. Two processes have only the told time in common.
    pub(crate) fn is_near(&self, other: &Self, window_ms: u64) -> bool {
        if self.process == other.process {
            self.running.abs_diff(other.running) < window_ms
        } else {
            self.told.abs_diff(other.told) < window_ms
        }
    }
}

/// The clocks of all processes.
#[derive(Debug, Default)]
pub(crate) struct Clocks {
    processes: BTreeMap<String, Moment>,
}

impl Clocks {
    /// The most processes with a clock of their own; the rest share one, which only makes them look busier.
    const PROCESSES_MAX: usize = 1024;

    /// Notes the time that a process tells.
    pub(crate) fn tell(&mut self, process: &str, told: i64) -> Moment {
        let known = self.processes.contains_key(process) || self.processes.len() < Self::PROCESSES_MAX;
        let name = if known { process } else { "" };
        let number = u32::try_from(self.processes.len()).unwrap_or(u32::MAX);
        let last =
            self.processes.entry(name.to_owned()).or_insert(Moment { process: number, running: 0, told });
        if told > last.told {
            last.running = last.running.saturating_add(told.abs_diff(last.told));
        }
        last.told = told;
        *last
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_that_runs_backwards_stands_still() {
        let mut clocks = Clocks::default();
        let first = clocks.tell("a", 5_000);
        let back = clocks.tell("a", -9_000_000);
        let on = clocks.tell("a", -8_999_900);
        assert!(first.is_near(&back, 1) && first.is_near(&on, 101) && !first.is_near(&on, 100));
    }

    #[test]
    fn the_ends_of_time_do_not_overflow() {
        let mut clocks = Clocks::default();
        for told in [i64::MIN, i64::MAX, i64::MIN, i64::MAX, 0] {
            let moment = clocks.tell("a", told);
            let other = clocks.tell("b", -told.max(i64::MIN + 1));
            let _ = moment.is_near(&other, u64::MAX);
        }
    }

    #[test]
    fn there_are_never_more_clocks_than_the_bound() {
        let mut clocks = Clocks::default();
        for number in 0..5_000 {
            clocks.tell(&format!("p{number}"), 0);
        }
        assert!(clocks.processes.len() <= Clocks::PROCESSES_MAX + 1);
    }
}
