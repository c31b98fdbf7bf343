//! The accept loop: TLS, limits, who is asking, and a way to cut a peer off at once.
//!
//! Owns everything between the socket and the router. A request reaches the router only with a verified
//! caller in its extensions, a path of one spelling and bounded size; a handler that panics costs its
//! request, not the process. Decides nothing about permission.
//!
//! INVARIANT: no connection outlives its peer's certificate, nor [`Connections::cut`].

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::DefaultBodyLimit;
use axum::response::{IntoResponse as _, Response};
use http_body_util::Limited;
use hyper::body::{Body as _, Incoming};
use hyper::header::{CONNECTION, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper::{Request, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use identity::attest::LocalProgram;
use identity::{PeerClass, SpiffeId};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::danger::{Defence, Switches};
use crate::enrol::Newcomer;
use crate::hello;
use crate::journal::{Journal, told};
use crate::listener::{Listener, Stream};
use crate::problem::Problem;
use crate::refusals::{self, Refusal, Refusals};
use crate::tls::{Door, Peer, ServerTls};

/// How long a handshake may take.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);

/// Most connections of one listener, those in their handshake included; the next is closed at once.
pub const CONNECTIONS_MAX: usize = 512;

/// Most connections of one peer to one process.
pub const CONNECTIONS_PER_PEER_MAX: usize = 128;

/// How long a peer may take to send the head of a request, and to send the next request on a kept connection.
pub const HEADER_READ_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a request may take as a whole, from its head to the head of its reply.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);

/// Most headers of a request (431 beyond).
pub const HEADERS_MAX: usize = 64;

/// Largest head of a request, in bytes (431 beyond).
pub const HEAD_BYTES_MAX: usize = 32 * 1024;

/// Longest path with query, in bytes (400 beyond).
pub const PATH_BYTES_MAX: usize = 4096;

/// Largest body of a request, in bytes (413 beyond).
pub const BODY_BYTES_MAX: usize = 8 * 1024 * 1024;

/// Longest life of a connection, so that certificates are looked at again.
pub const CONNECTION_AGE_MAX: Duration = Duration::from_secs(15 * 60);

/// How long requests that are under way may take when a connection is to end.
pub const STOP_GRACE: Duration = Duration::from_secs(3);

/// How long to rest when the operating system has no more sockets to give.
const ACCEPT_REST: Duration = Duration::from_millis(50);

/// Limits that a listener may tighten. They cannot be loosened beyond this module's constants.
#[derive(Debug, Clone)]
pub struct ServerOptions {
    /// Most connections at once.
    pub connections_max: usize,
    /// Longest life of a connection.
    pub connection_age_max: Duration,
    /// Where refused connections are counted, on their way to the journal. Every listener of a process has one.
    pub refusals: Option<Arc<Refusals>>,
}

impl Default for ServerOptions {
    fn default() -> Self {
        Self { connections_max: CONNECTIONS_MAX, connection_age_max: CONNECTION_AGE_MAX, refusals: None }
    }
}

impl ServerOptions {
    /// The options of a listener, named as the topology names it, whose refusals go to its process's journal.
    #[must_use]
    pub fn recorded(listener: &str, journal: &Arc<Journal>) -> Self {
        Self { refusals: Some(Refusals::new(listener, journal.clone())), ..Self::default() }
    }
}

/// The connections of a process that are open now. One may be shared by all its listeners.
#[derive(Debug, Default)]
pub struct Connections {
    open: Mutex<Open>,
}

#[derive(Debug, Default)]
struct Open {
    next: u64,
    /// By peer; newcomers, who have no id, under `None`.
    by_peer: BTreeMap<Option<SpiffeId>, BTreeMap<u64, watch::Sender<bool>>>,
}

impl Connections {
    /// No connection yet.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Cuts every connection of a peer at once, requests under way included. Returns how many there were. A
    /// connection that is made afterwards is the guard's to refuse.
    pub fn cut(&self, id: &SpiffeId) -> usize {
        // A cut connection is unregistered when its task ends, so its sender stays in the map until then.
        self.lock().by_peer.get(&Some(id.clone())).map_or(0, |open| {
            open.values().for_each(|cut| {
                let _ = cut.send(true);
            });
            open.len()
        })
    }

    /// Cuts every connection at once. Returns how many there were.
    pub fn cut_all(&self) -> usize {
        let open = self.lock();
        open.by_peer
            .values()
            .flat_map(BTreeMap::values)
            .map(|cut| {
                let _ = cut.send(true);
            })
            .count()
    }

    /// How many connections are open.
    #[must_use]
    pub fn count(&self) -> usize {
        self.lock().by_peer.values().map(BTreeMap::len).sum()
    }

    fn enter(self: &Arc<Self>, id: Option<SpiffeId>) -> Option<Entered> {
        let mut open = self.lock();
        let number = open.next;
        open.next += 1;
        let of_peer = open.by_peer.entry(id.clone()).or_default();
        if id.is_some() && of_peer.len() >= CONNECTIONS_PER_PEER_MAX {
            return None;
        }
        let (sender, cut) = watch::channel(false);
        of_peer.insert(number, sender);
        Some(Entered { connections: self.clone(), id, number, cut })
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection's place in the list; dropping it gives the place up.
struct Entered {
    connections: Arc<Connections>,
    id: Option<SpiffeId>,
    number: u64,
    cut: watch::Receiver<bool>,
}

impl Drop for Entered {
    fn drop(&mut self) {
        let mut open = self.connections.lock();
        if let Some(of_peer) = open.by_peer.get_mut(&self.id) {
            of_peer.remove(&self.number);
            if of_peer.is_empty() {
                open.by_peer.remove(&self.id);
            }
        }
    }
}

/// Who is at the other end of a connection.
#[derive(Clone)]
enum Caller {
    Peer(Peer),
    Newcomer(Newcomer),
}

impl Caller {
    fn of(door: Door, certificate: &[u8], switches: Switches) -> Option<Self> {
        match door {
            Door::Peers(_) => door.peer(certificate, switches).map(Self::Peer),
            Door::Newcomers => Newcomer::of(certificate).map(Self::Newcomer),
        }
    }

    /// The same, and which program it is, where the kernel told.
    fn at(self, local: Option<LocalProgram>) -> Self {
        match self {
            Self::Newcomer(newcomer) => Self::Newcomer(Newcomer { local, ..newcomer }),
            peer @ Self::Peer(_) => peer,
        }
    }

    fn id(&self) -> Option<&SpiffeId> {
        match self {
            Self::Peer(peer) => Some(&peer.id),
            Self::Newcomer(_) => None,
        }
    }

    /// When its certificate ends; a newcomer's says nothing.
    fn expires(&self) -> Option<i64> {
        match self {
            Self::Peer(peer) => Some(peer.expires),
            Self::Newcomer(_) => None,
        }
    }
}

/// What every connection of a listener shares.
struct Shared {
    tls: ServerTls,
    service: TowerToHyperService<Router>,
    connections: Arc<Connections>,
    age_max: Duration,
    refusals: Option<Arc<Refusals>>,
}

impl Shared {
    fn refused(&self, refusal: Refusal, signed_by: Option<PeerClass>) {
        if let Some(refusals) = &self.refusals {
            refusals.count(refusal, signed_by);
        }
    }

    /// When the certificate of a caller ends, where that is looked at.
    fn end_of(&self, caller: &Caller) -> Option<i64> {
        caller.expires().filter(|_| self.tls.switches.on(Defence::Validity))
    }
}

/// Serves a router until told to stop (or until the sender of `stop` is gone), then lets requests under way
/// finish for [`STOP_GRACE`]. Requests carry an `Extension<Peer>`, at the newcomers' door an
/// `Extension<Newcomer>`.
pub async fn serve(
    listener: impl Into<Listener>,
    tls: ServerTls,
    router: Router,
    options: ServerOptions,
    connections: Arc<Connections>,
    mut stop: watch::Receiver<bool>,
) {
    let listener = listener.into();
    let permits = Arc::new(Semaphore::new(options.connections_max.min(CONNECTIONS_MAX)));
    let shared = Arc::new(Shared {
        service: TowerToHyperService::new(router.layer(DefaultBodyLimit::max(BODY_BYTES_MAX))),
        connections,
        age_max: options.connection_age_max.min(CONNECTION_AGE_MAX),
        refusals: options.refusals,
        tls,
    });
    let keeping = shared.refusals.clone().map(|refusals| tokio::spawn(refusals.keep(stop.clone())));
    let stop_for_connections = stop.clone();
    let mut tasks = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            biased;
            () = told(&mut stop) => break,
            Some(_) = tasks.join_next(), if !tasks.is_empty() => continue,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok(stream) => match permits.clone().try_acquire_owned() {
                Ok(permit) => {
                    let (shared, stop) = (shared.clone(), stop_for_connections.clone());
                    tasks.spawn(async move {
                        connection(stream, &shared, stop).await;
                        drop(permit);
                    });
                }
                Err(_) => shared.refused(Refusal::ConnectionLimit, None),
            },
            Err(error) => {
                tracing::warn!(%error, "no connection could be accepted");
                tokio::time::sleep(ACCEPT_REST).await;
            }
        }
    }
    drop(listener);
    let ended = async { while tasks.join_next().await.is_some() {} };
    // What has not ended by itself is aborted when the set is dropped.
    let _ = tokio::time::timeout(STOP_GRACE * 2, ended).await;
    if let (Some(keeping), Some(refusals)) = (keeping, &shared.refusals) {
        let _ = keeping.await;
        refusals.write().await;
    }
}

/// Makes the handshake. Nobody comes of it when it fails; what is refused is counted.
async fn greet(stream: Stream, shared: &Shared) -> Option<(TlsStream<Stream>, Caller)> {
    let local = match stream.arrive().await {
        Ok(local) => local,
        Err(error) => {
            tracing::debug!(%error, "a connection ended before its handshake");
            return None;
        }
    };
    let acceptor = TlsAcceptor::from(shared.tls.current());
    let handshake = async {
        let mut first = [0; hello::LOOKED_AT];
        let there = stream.peek(&mut first).await?;
        if hello::is_too_old(first.get(..there).unwrap_or_default()) {
            return Ok(Err(stream));
        }
        acceptor.accept(stream).await.map(Ok)
    };
    let stream = match tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake).await {
        Ok(Ok(Ok(stream))) => stream,
        Ok(Ok(Err(mut stream))) => {
            shared.refused(Refusal::TlsVersion, None);
            // What was sent is read, so that the alert is not lost to a reset.
            let _ = stream.read(&mut [0; hello::LOOKED_AT]).await;
            let _ = stream.write_all(&hello::TOO_OLD).await;
            return None;
        }
        Ok(Err(error)) => {
            // A balancer looks whether anybody listens: it connects and says nothing. That is no refusal.
            if let Some((refusal, signed_by)) = refusals::of_handshake(&error) {
                tracing::debug!(%error, "a handshake failed");
                shared.refused(refusal, signed_by);
            }
            return None;
        }
        Err(_) => {
            shared.refused(Refusal::Timeout, None);
            return None;
        }
    };
    let certificate = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
    let switches = shared.tls.switches;
    let Some(caller) = certificate.and_then(|shown| Caller::of(shared.tls.door, shown, switches)) else {
        shared.refused(Refusal::MalformedCertificate, None);
        return None;
    };
    Some((stream, caller.at(local)))
}

async fn connection(stream: Stream, shared: &Shared, mut stop: watch::Receiver<bool>) {
    let Some((stream, caller)) = greet(stream, shared).await else { return };
    let Some(mut entered) = shared.connections.enter(caller.id().cloned()) else {
        shared.refused(Refusal::PeerLimit, None);
        return;
    };

    let ends = shared.end_of(&caller);
    let (soft, hard) = life(Instant::now(), shared.tls.clock.seconds(), ends, shared.age_max);
    let (soft, hard) = match shared.tls.switches.on(Defence::ConnectionAge) {
        true => (soft, hard),
        false => (soft + REQUEST_TIMEOUT, hard + REQUEST_TIMEOUT),
    };
    let service = service_fn(|request| answer(request, shared, caller.clone()));
    let mut connection = pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .half_close(false)
            .header_read_timeout(HEADER_READ_TIMEOUT)
            .max_headers(HEADERS_MAX)
            .max_header_size(HEAD_BYTES_MAX)
            .max_buf_size(2 * HEAD_BYTES_MAX)
            .serve_connection(TokioIo::new(stream), service)
    );
    let mut ending = false;
    let mut soft = pin!(tokio::time::sleep_until(soft));
    let mut hard = pin!(tokio::time::sleep_until(hard));
    loop {
        tokio::select! {
            biased;
            () = told(&mut entered.cut) => {
                tracing::info!(peer = ?caller.id(), "a connection was cut");
                return;
            }
            () = hard.as_mut() => {
                if ends.is_some_and(|ends| shared.tls.clock.seconds() >= ends) {
                    shared.refused(Refusal::CertificateEnded, None);
                }
                return;
            }
            () = told(&mut stop), if !ending => {
                ending = true;
                connection.as_mut().graceful_shutdown();
                let until = hard.deadline().min(Instant::now() + STOP_GRACE);
                hard.as_mut().reset(until);
            }
            () = soft.as_mut(), if !ending => {
                ending = true;
                connection.as_mut().graceful_shutdown();
            }
            result = connection.as_mut() => {
                if let Err(error) = result {
                    if error.is_parse() || error.is_parse_too_large() {
                        shared.refused(Refusal::BadHead, None);
                    }
                    tracing::debug!(%error, "a connection ended");
                }
                return;
            }
        }
    }
}

/// When a connection takes no more requests, and when it is closed whatever happens: after its longest life
/// and a grace, and never past the end of the peer's certificate.
fn life(start: Instant, now: i64, expires: Option<i64>, age_max: Duration) -> (Instant, Instant) {
    let hard = match expires {
        Some(expires) => {
            let left = u64::try_from(expires.saturating_sub(now)).unwrap_or(0);
            (age_max + STOP_GRACE).min(Duration::from_secs(left))
        }
        None => age_max + STOP_GRACE,
    };
    (start + hard.saturating_sub(STOP_GRACE), start + hard)
}

async fn answer(request: Request<Incoming>, shared: &Shared, caller: Caller) -> Result<Response, Infallible> {
    if let Err((refusal, detail)) = check(&request) {
        shared.refused(refusal, None);
        let problem = match refusal {
            Refusal::BodyTooLarge => Problem::too_large(refusal.as_str(), detail),
            _ => Problem::bad_request(refusal.as_str(), detail),
        };
        return Ok(problem.into_response());
    }
    // The timer ends the connection too, but a machine that slept wakes up with late timers and a right
    // clock.
    if shared.end_of(&caller).is_some_and(|ends| shared.tls.clock.seconds() >= ends) {
        shared.refused(Refusal::CertificateEnded, None);
        let detail = "the certificate of this connection has expired";
        let mut response = Problem::unauthorized(Refusal::CertificateEnded.as_str(), detail).into_response();
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        return Ok(response);
    }
    let at_door = matches!(caller, Caller::Newcomer(_));
    let response = handle(request, shared.service.clone(), caller).await?;
    if at_door && let Some(refusal) = unanswered(response.status()) {
        shared.refused(refusal, None);
    }
    Ok(response)
}

/// What a newcomer asked for that reached no decision; decisions are journalled by who makes them.
fn unanswered(status: StatusCode) -> Option<Refusal> {
    match status {
        StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED => Some(Refusal::NoSuchRoute),
        StatusCode::PAYLOAD_TOO_LARGE => Some(Refusal::BodyTooLarge),
        StatusCode::BAD_REQUEST | StatusCode::UNSUPPORTED_MEDIA_TYPE => Some(Refusal::BadRequest),
        _ => None,
    }
}

async fn handle(
    request: Request<Incoming>,
    service: TowerToHyperService<Router>,
    caller: Caller,
) -> Result<Response, Infallible> {
    let mut request = request.map(|body| Body::new(Limited::new(body, BODY_BYTES_MAX)));
    match caller {
        Caller::Peer(peer) => drop(request.extensions_mut().insert(peer)),
        Caller::Newcomer(newcomer) => drop(request.extensions_mut().insert(newcomer)),
    }
    let mut response = Box::pin(async move { service.call(request).await });
    let guarded = std::future::poll_fn(move |context| {
        match catch_unwind(AssertUnwindSafe(|| response.as_mut().poll(context))) {
            Ok(Poll::Ready(response)) => Poll::Ready(Some(response)),
            Ok(Poll::Pending) => Poll::Pending,
            Err(_) => Poll::Ready(None),
        }
    });
    match tokio::time::timeout(REQUEST_TIMEOUT, guarded).await {
        Ok(Some(response)) => response,
        Ok(None) => {
            tracing::error!("a handler panicked");
            Ok(Problem::internal().into_response())
        }
        Err(_) => Ok(Problem::unavailable("too_slow", "the request took too long").into_response()),
    }
}

/// Refuses what no router should have to think about, and says why.
fn check(request: &Request<Incoming>) -> Result<(), (Refusal, &'static str)> {
    let uri = request.uri();
    if uri.scheme().is_some() || uri.authority().is_some() {
        return Err((Refusal::BadTarget, "a request names a path, nothing more"));
    }
    if uri.path_and_query().map_or(0, |path| path.as_str().len()) > PATH_BYTES_MAX {
        return Err((Refusal::BadTarget, "the path is too long"));
    }
    if !is_canonical(uri.path()) {
        return Err((Refusal::BadPath, "the path does not have the one accepted spelling"));
    }
    if request.body().size_hint().lower() > BODY_BYTES_MAX as u64 {
        return Err((Refusal::BodyTooLarge, "a body has at most 8 MiB"));
    }
    Ok(())
}

/// Whether a path has one spelling only: plain characters, no percent signs, no empty segment, no `.` or
/// `..`. Two parts of a system that read one path differently are how a check is walked around.
fn is_canonical(path: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~:@+,=".contains(&byte);
    match path.strip_prefix('/') {
        Some("") => true,
        Some(rest) => rest.split('/').all(|segment| {
            !segment.is_empty() && segment != "." && segment != ".." && segment.bytes().all(plain)
        }),
        None => false,
    }
}

#[cfg(test)]
mod tests;
