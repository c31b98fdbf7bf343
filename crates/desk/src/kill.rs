//! The kill switch as the desk reads it, anew for every order.
//!
//! Owns: three sources, each of which stops everything by itself: the host's latch file, the guard's word on
//! what the revocation feed said, and what was heard while the guard couldn't be asked. What can't be told
//! counts as stopped. Nothing here opens it: it is open when the file is gone and the feed said that two people
//! cleared it.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use risk::KillLatch;

/// The kill switch.
#[derive(Debug)]
pub struct KillSwitch {
    heard: AtomicBool,
    file: PathBuf,
}

impl KillSwitch {
    /// A switch that follows a latch file.
    #[must_use]
    pub fn new(file: PathBuf) -> Self {
        Self { heard: AtomicBool::new(false), file }
    }

    /// The feed said that everything is stopped.
    pub fn engage(&self) {
        self.heard.store(true, Ordering::SeqCst);
    }

    /// The latch for one decision. `guard_killed` is the guard's word on whether everything is stopped, which
    /// knows clearances; `None` when it has failed.
    #[must_use]
    pub fn latch(&self, guard_killed: Option<bool>) -> KillLatch {
        let mut latch = KillLatch::open();
        match guard_killed {
            Some(false) => self.heard.store(false, Ordering::SeqCst),
            Some(true) => latch.engage("everything is revoked"),
            None => latch.engage("the guard has failed"),
        }
        if self.heard.load(Ordering::SeqCst) {
            latch.engage("everything was stopped");
        }
        // A file that can't be looked for may be there.
        if self.file.try_exists().unwrap_or(true) {
            latch.engage("the latch file is there");
        }
        latch
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_source_stops_everything_by_itself() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("KILLED");
        let switch = KillSwitch::new(file.clone());
        assert!(!switch.latch(Some(false)).is_engaged());
        assert!(switch.latch(Some(true)).is_engaged());
        assert!(switch.latch(None).is_engaged());
        std::fs::write(&file, "").unwrap();
        assert!(switch.latch(Some(false)).is_engaged());
        std::fs::remove_file(&file).unwrap();
        assert!(!switch.latch(Some(false)).is_engaged());
        switch.engage();
        assert!(switch.latch(Some(true)).is_engaged());
        assert!(!switch.latch(Some(false)).is_engaged(), "the guard has heard a clearance");
    }

    #[test]
    fn a_latch_file_that_cannot_be_looked_for_counts_as_there() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("file");
        std::fs::write(&file, "").unwrap();
        assert!(KillSwitch::new(file.join("KILLED")).latch(Some(false)).is_engaged());
    }
}
