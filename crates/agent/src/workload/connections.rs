//! The accept loop: who opened a connection, how many there may be, and when one ends.
//!
//! Owns everything between the socket and a request: the kernel's word on the caller, the limits of HTTP/2,
//! and which connection gives way when there are too many. Decides nothing about what is served.
//!
//! INVARIANT: no connection outlives the process that opened it, so far as the kernel can say; and
//! connections that ask for nothing never keep out one that does.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io;
use std::os::fd::OwnedFd;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use nix::errno::Errno;
use nix::sys::socket::{getsockopt, sockopt};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Notify, Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use wire::journal::told;

use crate::workload::Callers;
use crate::workload::service::{Feed, answer};

/// Most connections of users that may ask. One more takes the place of one that asks for nothing, or is
/// closed.
pub const CONNECTIONS_MAX: usize = 64;

/// Most connections of users that may not ask, who are told so; the next is closed at once.
pub const REFUSED_MAX: usize = 8;

/// Most requests at once on one connection.
pub const STREAMS_MAX: u32 = 16;

/// Largest head of a request, in bytes.
pub const HEADER_BYTES_MAX: u32 = 8 * 1024;

/// How long a connection may take to its first request, and how long that of a refused user lasts.
pub const FIRST_REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a connection may be without a request after that.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(60);

/// How often, and how long, a silent client is asked whether it is still there.
const KEEP_ALIVE: Duration = Duration::from_secs(20);

/// How long answers under way may take when a connection is to end.
const STOP_GRACE: Duration = Duration::from_secs(1);

/// How long to rest when the operating system has no more sockets to give.
const ACCEPT_REST: Duration = Duration::from_millis(50);

/// Serves connections until told to stop, or until the sender of `stop` is gone.
pub(super) async fn accept(
    listener: &UnixListener,
    feed: Feed,
    callers: Callers,
    mut stop: watch::Receiver<bool>,
) {
    let table = Arc::new(Table::default());
    let refused = Arc::new(Semaphore::new(REFUSED_MAX));
    let mut serving = JoinSet::new();
    let stop_for_connections = stop.clone();
    loop {
        let stream = tokio::select! {
            biased;
            () = told(&mut stop) => break,
            Some(_) = serving.join_next() => continue,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "the workload socket cannot accept");
                    sleep(ACCEPT_REST).await;
                    continue;
                }
            },
        };
        let caller = match Caller::of(&stream) {
            Ok(caller) => caller,
            Err(error) => {
                tracing::warn!(%error, "closed a connection whose opener the kernel does not name");
                continue;
            }
        };
        if callers.allow(caller.uid) {
            let Some(place) = table.enter() else {
                tracing::warn!(caller.uid, caller.pid, "too many connections to the workload socket");
                continue;
            };
            serving.spawn(connection(stream, caller, place, feed.clone(), stop_for_connections.clone()));
        } else {
            let Ok(permit) = refused.clone().try_acquire_owned() else { continue };
            tracing::warn!(caller.uid, caller.pid, "refused a user at the workload socket");
            let (feed, stop) = (feed.clone(), stop_for_connections.clone());
            serving.spawn(async move {
                let (activity, _) = watch::channel(Activity::default());
                let http = http(stream, activity, false, feed, stop);
                let _ = timeout(FIRST_REQUEST_TIMEOUT, http).await;
                drop(permit);
            });
        }
    }
    while serving.join_next().await.is_some() {}
}

/// Who opened a connection, as the kernel recorded it then.
struct Caller {
    uid: u32,
    pid: Option<i32>,
    /// The process itself, which a number may no longer mean; `None` before Linux 6.5.
    process: Option<AsyncFd<OwnedFd>>,
}

impl Caller {
    fn of(stream: &UnixStream) -> io::Result<Self> {
        let credentials = stream.peer_cred()?;
        let process = match getsockopt(stream, sockopt::PeerPidfd) {
            #[expect(deprecated, reason = "only sound for a type that owns its descriptor, as this one does")]
            Ok(process) => Some(AsyncFd::with_interest(process, Interest::READABLE)?),
            Err(Errno::ENOPROTOOPT) => None,
            // It has ended already, or something is wrong: either way nobody is there to be served.
            Err(error) => return Err(error.into()),
        };
        Ok(Self { uid: credentials.uid(), pid: credentials.pid(), process })
    }

    /// Returns when the process has ended.
    async fn gone(&self) {
        match &self.process {
            // An error is no proof that it lives.
            Some(process) => drop(process.readable().await),
            None => std::future::pending().await,
        }
    }
}

/// What a connection has asked for so far.
#[derive(Default, Clone, Copy)]
struct Activity {
    /// Requests whose answer is not complete.
    open: usize,
    /// Requests so far.
    ever: u64,
}

/// One open request; dropping it closes it.
pub(super) struct Open(watch::Sender<Activity>);

impl Open {
    fn new(activity: &watch::Sender<Activity>) -> Self {
        activity.send_modify(|activity| {
            activity.open = activity.open.saturating_add(1);
            activity.ever = activity.ever.saturating_add(1);
        });
        Self(activity.clone())
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.send_modify(|activity| activity.open = activity.open.saturating_sub(1));
    }
}

/// The connections of users that may ask.
#[derive(Default)]
struct Table {
    open: Mutex<Places>,
}

#[derive(Default)]
struct Places {
    next: u64,
    taken: BTreeMap<u64, (watch::Sender<Activity>, Arc<Notify>)>,
}

impl Table {
    /// A place for one more connection. When all are taken, the longest idle gives way: first one that never
    /// asked anything. `None` when all have a request open.
    fn enter(self: &Arc<Self>) -> Option<Place> {
        let mut places = self.lock();
        if places.taken.len() >= CONNECTIONS_MAX {
            let idle = places.taken.iter().filter_map(|(number, (activity, _))| {
                let activity = *activity.borrow();
                (activity.open == 0).then_some((activity.ever > 0, *number))
            });
            let (_, number) = idle.min()?;
            if let Some((_, give_way)) = places.taken.remove(&number) {
                give_way.notify_one();
            }
        }
        let number = places.next;
        places.next = places.next.saturating_add(1);
        let (activity, _) = watch::channel(Activity::default());
        let give_way = Arc::new(Notify::new());
        places.taken.insert(number, (activity.clone(), give_way.clone()));
        Some(Place { table: self.clone(), number, activity, give_way })
    }

    fn lock(&self) -> MutexGuard<'_, Places> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection's place in the table; dropping it gives the place up.
struct Place {
    table: Arc<Table>,
    number: u64,
    activity: watch::Sender<Activity>,
    give_way: Arc<Notify>,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.table.lock().taken.remove(&self.number);
    }
}

/// Serves one connection of a user that may ask.
async fn connection(
    stream: UnixStream,
    caller: Caller,
    place: Place,
    feed: Feed,
    stop: watch::Receiver<bool>,
) {
    tokio::select! {
        biased;
        () = caller.gone() => {}
        () = place.give_way.notified() => {}
        () = idle(place.activity.subscribe()) => {}
        () = http(stream, place.activity.clone(), true, feed, stop) => {}
    }
}

/// Returns when a connection has asked for nothing for too long.
async fn idle(mut activity: watch::Receiver<Activity>) {
    let mut seen = 0;
    let mut patience = FIRST_REQUEST_TIMEOUT;
    loop {
        let asked = activity.wait_for(|activity| activity.open > 0 || activity.ever > seen);
        // Copied at once: what it is copied from must not be held while waiting.
        let now = timeout(patience, asked).await.map(|asked| asked.map(|activity| *activity));
        let Ok(Ok(now)) = now else { return };
        seen = now.ever;
        patience = IDLE_TIMEOUT;
        if activity.wait_for(|activity| activity.open == 0).await.map(drop).is_err() {
            return;
        }
    }
}

/// Speaks HTTP/2 on a connection until either side ends it, or a short while after it is told to stop. What
/// is no HTTP/2 ends it at once.
async fn http(
    stream: UnixStream,
    activity: watch::Sender<Activity>,
    allowed: bool,
    feed: Feed,
    mut stop: watch::Receiver<bool>,
) {
    let service = service_fn(|request| {
        let (feed, open) = (feed.clone(), Open::new(&activity));
        async move { Ok::<_, Infallible>(answer(request, allowed, feed, open).await) }
    });
    let mut protocol = http2::Builder::new(TokioExecutor::new());
    protocol
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_MAX)
        .max_header_list_size(HEADER_BYTES_MAX)
        .max_frame_size(16 * 1024)
        .initial_stream_window_size(16 * 1024)
        .initial_connection_window_size(64 * 1024)
        .max_send_buf_size(64 * 1024)
        .keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE);
    let mut serving = pin!(protocol.serve_connection(TokioIo::new(stream), service));
    tokio::select! {
        ended = &mut serving => {
            if let Err(error) = ended {
                tracing::debug!(%error, "a connection to the workload socket ended");
            }
            return;
        }
        () = told(&mut stop) => {}
    }
    // The streams hear of the stop too, and end with a reason that clients understand.
    serving.as_mut().graceful_shutdown();
    let _ = timeout(STOP_GRACE, serving).await;
}
