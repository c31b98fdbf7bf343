//! How often one peer was refused of late.
//!
//! Owns a short memory of moments and counts those near the newest. It remembers four times as many as make
//! an alarm, so that two guards whose clocks differ cannot push each other's out.

use std::collections::VecDeque;

use crate::clock::Moment;

/// The last refusals of one peer.
#[derive(Debug, Default)]
pub(crate) struct Recent {
    moments: VecDeque<Moment>,
}

impl Recent {
    /// Notes a refusal and answers how many there were within the window that ends with it, itself included.
    pub(crate) fn note(&mut self, now: Moment, most: usize, window_ms: u64) -> usize {
        self.moments.push_back(now);
        while self.moments.len() > most.saturating_add(1).saturating_mul(4) {
            self.moments.pop_front();
        }
        self.moments.iter().filter(|moment| moment.is_near(&now, window_ms)).count()
    }

    /// Forgets all of them.
    pub(crate) fn clear(&mut self) {
        self.moments.clear();
    }
}
