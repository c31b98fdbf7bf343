//! The one thread that calls a PKCS#11 module, and the queue in front of it.
//!
//! A module is loaded and initialised once per process, and a call into it cannot be broken off. So one
//! thread makes all calls, one after the other, and whoever wants one waits for the answer for a limited
//! time. A call whose caller has gone is not made.
//!
//! INVARIANT: nobody waits longer than [`CALL_WAIT`], whatever the module does.

use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender, TrySendError};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::KeyStoreError;
use crate::pkcs11::module::Module;

/// Longest time that a call of a token takes, its time in the queue included; then it has failed.
pub const CALL_WAIT: Duration = Duration::from_secs(10);

/// How long a module may hang and a session is still ended afterwards.
const END_KEPT: Duration = Duration::from_secs(24 * 60 * 60);

const QUEUE_MAX: usize = 4096;

const MODULES_MAX: usize = 8;

struct Job {
    deadline: Instant,
    run: Box<dyn FnOnce(&mut Module) + Send>,
}

/// The way to a module's thread.
pub(crate) struct Worker {
    jobs: SyncSender<Job>,
}

impl Worker {
    /// The thread of the module at a canonical path. It is started at the first call and ends with the
    /// process: a module that was let go and loaded again in the same process is more trouble than one that
    /// idles.
    pub(crate) fn of(path: &Path) -> Result<Arc<Self>, KeyStoreError> {
        static WORKERS: Mutex<BTreeMap<PathBuf, Arc<Worker>>> = Mutex::new(BTreeMap::new());
        let mut workers = WORKERS.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(worker) = workers.get(path) {
            return Ok(Arc::clone(worker));
        }
        if workers.len() >= MODULES_MAX {
            return Err(KeyStoreError::TooMuch { what: "8 PKCS#11 modules in one process" });
        }
        let (jobs, queue) = mpsc::sync_channel(QUEUE_MAX);
        let module = Module::new(path.to_owned());
        std::thread::Builder::new()
            .name("keystore-token".to_owned())
            .spawn(move || serve(module, &queue))
            .map_err(|error| KeyStoreError::unavailable(format!("no thread for the module: {error}")))?;
        let worker = Arc::new(Self { jobs });
        workers.insert(path.to_owned(), Arc::clone(&worker));
        Ok(worker)
    }

    /// Has a job done in the module's thread and waits for its answer.
    pub(crate) fn call<T, F>(&self, job: F) -> Result<T, KeyStoreError>
    where
        T: Send + 'static,
        F: FnOnce(&mut Module) -> Result<T, KeyStoreError> + Send + 'static,
    {
        self.submit(CALL_WAIT, CALL_WAIT, job)
    }

    /// Has something ended, however late, and waits for it as long as for anything else.
    pub(crate) fn end(&self, job: impl FnOnce(&mut Module) + Send + 'static) {
        let done = move |module: &mut Module| {
            job(module);
            Ok(())
        };
        let _ = self.submit(CALL_WAIT, END_KEPT, done);
    }

    /// Waits for the answer for one time; the job is not begun after the other.
    fn submit<T, F>(&self, wait: Duration, keep: Duration, job: F) -> Result<T, KeyStoreError>
    where
        T: Send + 'static,
        F: FnOnce(&mut Module) -> Result<T, KeyStoreError> + Send + 'static,
    {
        let (reply, answer) = mpsc::sync_channel(1);
        let run = Box::new(move |module: &mut Module| {
            // Its caller may have gone in the meantime; then the answer is nobody's.
            let _ = reply.send(job(module));
        });
        self.jobs.try_send(Job { deadline: Instant::now() + keep, run }).map_err(|error| match error {
            TrySendError::Full(_) => KeyStoreError::unavailable("too many calls wait for the token"),
            TrySendError::Disconnected(_) => KeyStoreError::unavailable("the module's thread has ended"),
        })?;
        match answer.recv_timeout(wait) {
            Ok(answer) => answer,
            Err(RecvTimeoutError::Timeout) => Err(KeyStoreError::unavailable(format!(
                "no answer from the token for {} s",
                wait.as_secs_f32()
            ))),
            Err(RecvTimeoutError::Disconnected) => {
                Err(KeyStoreError::unavailable("the call of the module was dropped"))
            }
        }
    }
}

fn serve(mut module: Module, queue: &Receiver<Job>) {
    while let Ok(job) = queue.recv() {
        if Instant::now() >= job.deadline {
            continue;
        }
        // A binding that panics must not take the thread along; what it left behind is not used again.
        if std::panic::catch_unwind(AssertUnwindSafe(|| (job.run)(&mut module))).is_err() {
            module.disconnect_all("a call of the module panicked");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    fn worker() -> Worker {
        let (jobs, queue) = mpsc::sync_channel(2);
        std::thread::spawn(move || serve(Module::new("/nonexistent".into()), &queue));
        Worker { jobs }
    }

    #[test]
    fn a_module_that_hangs_makes_its_callers_fail_not_hang() {
        let worker = worker();
        let wait = Duration::from_millis(100);
        let (release, hung) = mpsc::channel::<()>();
        let stuck = worker.submit(wait, wait, move |_| {
            let _ = hung.recv();
            Ok(())
        });
        assert!(stuck.unwrap_err().to_string().contains("no answer"));
        // Whoever comes while it hangs fails as well, and no call is made for those who have gone.
        let late = Arc::new(AtomicBool::new(false));
        for _ in 0..2 {
            let late = Arc::clone(&late);
            let made = worker.submit(wait, wait, move |_| {
                late.store(true, Ordering::Relaxed);
                Ok(())
            });
            assert!(made.is_err());
        }
        let full = worker.submit(wait, wait, |_| Ok(())).unwrap_err();
        assert!(full.to_string().contains("too many"), "{full}");
        release.send(()).unwrap();
        let until = Instant::now() + Duration::from_secs(5);
        while worker.submit(wait, wait, |_| Ok(7)).is_err() {
            assert!(Instant::now() < until, "it works again");
        }
        assert!(!late.load(Ordering::Relaxed));
    }

    #[test]
    fn a_panic_in_a_call_is_an_error_of_that_call_alone() {
        let worker = worker();
        assert!(worker.call(|_| -> Result<(), _> { panic!("a binding's bug") }).is_err());
        assert_eq!(worker.call(|_| Ok(7)).unwrap(), 7);
    }
}
