//! The client: requests to one peer over connections that are kept, and errors that say whether the request
//! arrived.
//!
//! Owns a small pool of idle connections to one address. It never repeats a request that may have been seen:
//! only one that provably was not written is sent again. Everything else is the caller's decision, which is
//! why every error answers "did it reach the peer?" with no, yes or unknown.

use std::error::Error;
use std::future::Future;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::{CONNECTION, CONTENT_TYPE, HOST, HeaderName, HeaderValue};
use hyper::{Method, Request, Response, Uri};
use hyper_util::rt::TokioIo;
use identity::{PeerClass, SpiffeId};
use rustls::{AlertDescription, ClientConfig};
use rustls_pki_types::ServerName;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_rustls::TlsConnector;

use crate::listener::{self, Stream};
use crate::problem::Problem;
use crate::server::{BODY_BYTES_MAX, HEADER_READ_TIMEOUT};
use crate::tls::{ClientTls, Credentials, Identity, WireError};

/// Most idle connections that are kept.
pub const IDLE_MAX: usize = 8;

/// How long an idle connection is used again; shorter than the server waits for the next request, so that it
/// is seldom cut under a request.
pub const IDLE_FOR: Duration = Duration::from_secs(7);

/// Largest reply, in bytes.
pub const REPLY_BYTES_MAX: usize = 64 * 1024 * 1024;

/// How long [`repeat`] repeats a request that does not get through.
pub const REPEAT_FOR: Duration = Duration::from_secs(30);

/// Pause of [`repeat`] before a repetition: from the first to the longest.
const REPEAT_PAUSE: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(500));

/// How long connecting and the handshake may take.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

const _: () = assert!(IDLE_FOR.as_secs() < HEADER_READ_TIMEOUT.as_secs());

type Sender = SendRequest<Full<Bytes>>;

/// Whether a request reached the peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reached {
    /// It did not: it may be sent again, to this peer or another.
    No,
    /// It did: the peer answered.
    Yes,
    /// Nobody can tell: only an idempotent request may be sent again, and anything else must be reconciled.
    Unknown,
}

/// Why a call brought no reply, or not the wanted one.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The request cannot be put into words.
    #[error("the request cannot be sent: {0}")]
    Unusable(&'static str),
    /// No connection came about.
    #[error("cannot connect to {address}: {source}")]
    Connect {
        /// Whom to.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// One of the two did not accept the other's certificate.
    #[error("no trust between here and {address}: {source}")]
    Handshake {
        /// Whom with.
        address: SocketAddr,
        /// Why.
        source: Box<dyn Error + Send + Sync>,
    },
    /// No reply came in time.
    #[error("no reply within {after:?}")]
    Timeout {
        /// How long it was waited for.
        after: Duration,
        /// Whether the request arrived.
        reached: Reached,
    },
    /// The connection broke.
    #[error("the connection broke: {source}")]
    Lost {
        /// Whether the request arrived.
        reached: Reached,
        /// Why.
        source: Box<dyn Error + Send + Sync>,
    },
    /// The reply is larger than [`REPLY_BYTES_MAX`].
    #[error("the reply is too large")]
    TooLarge,
    /// The reply is not what was expected of it.
    #[error("the reply is unreadable: {0}")]
    Unreadable(String),
    /// The peer refused.
    #[error("refused: {0}")]
    Refused(Problem),
}

impl ClientError {
    /// Whether the request reached the peer.
    #[must_use]
    pub fn reached(&self) -> Reached {
        match self {
            Self::Unusable(_) | Self::Connect { .. } | Self::Handshake { .. } => Reached::No,
            Self::Timeout { reached, .. } | Self::Lost { reached, .. } => *reached,
            Self::TooLarge | Self::Unreadable(_) | Self::Refused(_) => Reached::Yes,
        }
    }

    /// Whether the same request may succeed later. Says nothing of whether it is safe to repeat: see
    /// [`ClientError::reached`].
    #[must_use]
    pub fn retryable(&self) -> bool {
        match self {
            Self::Connect { .. } | Self::Timeout { .. } | Self::Lost { .. } => true,
            Self::Refused(problem) => problem.retryable,
            Self::Unusable(_) | Self::Handshake { .. } | Self::TooLarge | Self::Unreadable(_) => false,
        }
    }

    /// The peer's refusal, where there was one.
    #[must_use]
    pub fn problem(&self) -> Option<&Problem> {
        match self {
            Self::Refused(problem) => Some(problem),
            _ => None,
        }
    }
}

/// What a peer answered, whatever the status.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// HTTP status.
    pub status: u16,
    /// The whole body.
    pub body: Vec<u8>,
}

/// A client of one peer. Cheap to clone; the clones share their connections.
#[derive(Clone)]
pub struct Client {
    shared: Arc<Shared>,
}

struct Shared {
    tls: ClientTls,
    /// Whose connections these are; a client with one identity for ever has none.
    credentials: Option<Credentials>,
    address: SocketAddr,
    /// The peer's socket on this machine, where it is asked there.
    socket: Option<PathBuf>,
    idle: Mutex<Vec<Idle>>,
}

struct Idle {
    sender: Sender,
    since: Instant,
    /// The identity that it was made with. Only looked at, never held: replaced keys are erased at once.
    identity: Option<Weak<Identity>>,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Client({})", self.shared.address)
    }
}

impl Client {
    /// A client that accepts only a peer of the expected class, and only this very one where an id is given.
    /// Connects when first called; a connection made with an identity that was replaced is not used again.
    ///
    /// # Errors
    /// [`WireError`] when the bundle has no authority for the class or TLS cannot be set up.
    pub fn new(
        credentials: impl Into<Credentials>,
        expects: PeerClass,
        id: Option<SpiffeId>,
        address: SocketAddr,
    ) -> Result<Self, WireError> {
        let credentials = credentials.into();
        let tls = ClientTls::new(&credentials, expects, id)?;
        Ok(Self::assemble(tls, Some(credentials), address, None))
    }

    pub(crate) fn with_config(tls: Arc<ClientConfig>, address: SocketAddr) -> Self {
        Self::assemble(tls.into(), None, address, None)
    }

    /// A client that asks at a socket of this machine what listens at the address as well.
    pub(crate) fn at_socket(tls: Arc<ClientConfig>, address: SocketAddr, socket: PathBuf) -> Self {
        Self::assemble(tls.into(), None, address, Some(socket))
    }

    fn assemble(
        tls: ClientTls,
        credentials: Option<Credentials>,
        address: SocketAddr,
        socket: Option<PathBuf>,
    ) -> Self {
        Self { shared: Arc::new(Shared { tls, credentials, address, socket, idle: Mutex::new(Vec::new()) }) }
    }

    fn identity(&self) -> Option<Weak<Identity>> {
        self.shared.credentials.as_ref().map(|credentials| Arc::downgrade(&credentials.current()))
    }

    /// Where the peer is.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.shared.address
    }

    /// Sends a request and waits for the whole reply, at most `timeout` in all. A body is sent as JSON unless
    /// a header says otherwise.
    ///
    /// # Errors
    /// A [`ClientError`] that knows whether the request arrived. A reply of any status is no error here.
    pub async fn call(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Option<Vec<u8>>,
        timeout: Duration,
    ) -> Result<Reply, ClientError> {
        let request = self.request(method, path, headers, body)?;
        let sent = AtomicBool::new(false);
        match tokio::time::timeout(timeout, self.exchange(request, &sent)).await {
            Ok(result) => result,
            Err(_) => {
                let reached = if sent.load(Ordering::Relaxed) { Reached::Unknown } else { Reached::No };
                Err(ClientError::Timeout { after: timeout, reached })
            }
        }
    }

    /// Sends a value as JSON and reads the reply as JSON; an empty reply reads as `null`.
    ///
    /// # Errors
    /// As [`Client::call`]; a status other than 2xx is [`ClientError::Refused`], another shape
    /// [`ClientError::Unreadable`].
    pub async fn call_json<T: Serialize + ?Sized, R: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Option<&T>,
        timeout: Duration,
    ) -> Result<R, ClientError> {
        let body = match body {
            Some(value) => {
                Some(serde_json::to_vec(value).map_err(|_| ClientError::Unusable("it is no JSON"))?)
            }
            None => None,
        };
        let reply = self.call(method, path, headers, body, timeout).await?;
        if !(200..300).contains(&reply.status) {
            return Err(ClientError::Refused(Problem::parse(reply.status, &reply.body)));
        }
        let bytes = if reply.body.is_empty() { b"null" } else { reply.body.as_slice() };
        serde_json::from_slice(bytes).map_err(|error| ClientError::Unreadable(error.to_string()))
    }

    fn request(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Option<Vec<u8>>,
    ) -> Result<Request<Full<Bytes>>, ClientError> {
        if !path.starts_with('/') {
            return Err(ClientError::Unusable("the path must begin with a slash"));
        }
        let uri = Uri::try_from(path).map_err(|_| ClientError::Unusable("the path is malformed"))?;
        let has_body = body.is_some();
        let body = body.unwrap_or_default();
        if body.len() > BODY_BYTES_MAX {
            return Err(ClientError::Unusable("the body is larger than any server takes"));
        }
        let mut request = Request::new(Full::new(Bytes::from(body)));
        *request.method_mut() = method;
        *request.uri_mut() = uri;
        let host = HeaderValue::from_str(&self.shared.address.to_string());
        request.headers_mut().insert(HOST, host.map_err(|_| ClientError::Unusable("the address is odd"))?);
        if has_body {
            request.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        }
        for (name, value) in headers {
            let name = HeaderName::try_from(*name);
            let (Ok(name), Ok(value)) = (name, HeaderValue::from_str(value)) else {
                return Err(ClientError::Unusable("a header is malformed"));
            };
            request.headers_mut().insert(name, value);
        }
        Ok(request)
    }

    async fn exchange(
        &self,
        mut request: Request<Full<Bytes>>,
        sent: &AtomicBool,
    ) -> Result<Reply, ClientError> {
        // A kept connection may have died. As long as the request comes back unwritten, the next one is
        // tried, and at last a new one; no request is ever written twice.
        let identity = self.identity();
        while let Some(mut sender) = self.take_idle(identity.as_ref()) {
            if sender.ready().await.is_err() {
                continue;
            }
            sent.store(true, Ordering::Relaxed);
            match sender.try_send_request(request).await {
                Ok(response) => return self.finish(sender, identity, response).await,
                Err(mut error) => match error.take_message() {
                    Some(unwritten) => {
                        sent.store(false, Ordering::Relaxed);
                        request = unwritten;
                    }
                    None => return Err(lost(Reached::Unknown, error.into_error())),
                },
            }
        }
        let mut sender = self.connect().await?;
        sent.store(true, Ordering::Relaxed);
        match sender.try_send_request(request).await {
            Ok(response) => self.finish(sender, identity, response).await,
            Err(mut error) => {
                let reached = if error.take_message().is_some() { Reached::No } else { Reached::Unknown };
                let error = error.into_error();
                // With TLS 1.3 a server's refusal of our certificate arrives after our first request has
                // left.
                if refused_by_tls(&error) {
                    let address = self.shared.address;
                    return Err(ClientError::Handshake { address, source: error.into() });
                }
                Err(lost(reached, error))
            }
        }
    }

    async fn finish(
        &self,
        sender: Sender,
        identity: Option<Weak<Identity>>,
        response: Response<Incoming>,
    ) -> Result<Reply, ClientError> {
        let status = response.status().as_u16();
        let close = response.headers().get(CONNECTION).is_some_and(|value| value == "close");
        let body = match Limited::new(response.into_body(), REPLY_BYTES_MAX).collect().await {
            Ok(collected) => collected.to_bytes().to_vec(),
            Err(error) if error.is::<LengthLimitError>() => return Err(ClientError::TooLarge),
            Err(source) => return Err(ClientError::Lost { reached: Reached::Yes, source }),
        };
        let mut idle = self.idle();
        if !close && idle.len() < IDLE_MAX {
            idle.push(Idle { sender, since: Instant::now(), identity });
        }
        Ok(Reply { status, body })
    }

    /// The connection used last, if it is young enough and still open; older ones are let go.
    fn take_idle(&self, identity: Option<&Weak<Identity>>) -> Option<Sender> {
        let same = |idle: &Idle| match (&idle.identity, identity) {
            (Some(then), Some(now)) => Weak::ptr_eq(then, now),
            (then, now) => then.is_none() && now.is_none(),
        };
        let mut idle = self.idle();
        idle.retain(|idle| idle.since.elapsed() < IDLE_FOR && !idle.sender.is_closed() && same(idle));
        idle.pop().map(|idle| idle.sender)
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Idle>> {
        self.shared.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn connect(&self) -> Result<Sender, ClientError> {
        let address = self.shared.address;
        let connecting = async {
            let stream = match &self.shared.socket {
                Some(path) => listener::connect(path).await,
                None => TcpStream::connect(address).await.and_then(|stream| {
                    stream.set_nodelay(true)?;
                    Ok(Stream::Network(stream))
                }),
            };
            let stream = match stream {
                Ok(stream) => stream,
                Err(source) => return Err(ClientError::Connect { address, source }),
            };
            // The name is not used: the verifier asks for a SPIFFE ID.
            let name = ServerName::IpAddress(address.ip().into());
            let stream = match TlsConnector::from(self.shared.tls.current()).connect(name, stream).await {
                Ok(stream) => stream,
                Err(error) if tls_error(&error).is_some() => {
                    return Err(ClientError::Handshake { address, source: error.into() });
                }
                Err(source) => return Err(ClientError::Connect { address, source }),
            };
            let (sender, connection) =
                http1::handshake(TokioIo::new(stream)).await.map_err(|error| lost(Reached::No, error))?;
            tokio::spawn(async move {
                if let Err(error) = connection.await {
                    tracing::debug!(%error, "a connection ended");
                }
            });
            Ok(sender)
        };
        match tokio::time::timeout(CONNECT_TIMEOUT, connecting).await {
            Ok(result) => result,
            Err(_) => Err(ClientError::Connect { address, source: std::io::ErrorKind::TimedOut.into() }),
        }
    }
}

fn lost(reached: Reached, error: hyper::Error) -> ClientError {
    ClientError::Lost { reached, source: error.into() }
}

/// Whether the server ended the handshake because of our certificate. It cannot have read a request by then.
fn refused_by_tls(error: &(dyn Error + 'static)) -> bool {
    use AlertDescription as Alert;
    matches!(
        tls_error(error),
        Some(rustls::Error::AlertReceived(
            Alert::CertificateRequired
                | Alert::BadCertificate
                | Alert::UnsupportedCertificate
                | Alert::CertificateExpired
                | Alert::CertificateUnknown
                | Alert::UnknownCA
                | Alert::AccessDenied
                | Alert::DecryptError
        ))
    )
}

/// The TLS library's error somewhere inside another.
fn tls_error<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a rustls::Error> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref::<rustls::Error>() {
            return Some(found);
        }
        let inner: Option<&'a (dyn Error + 'static)> = match error.downcast_ref::<std::io::Error>() {
            Some(error) => error.get_ref().map(|inner| inner as &(dyn Error + 'static)),
            None => None,
        };
        next = inner.or_else(|| error.source());
    }
    None
}

/// Repeats a request for as long as it may still succeed: the other side was not reached, or said to try
/// again. Only for requests that may be repeated whether or not they arrived.
///
/// # Errors
/// The last error, when it is final or time is up.
pub async fn repeat<T, F>(mut request: impl FnMut() -> F) -> Result<T, ClientError>
where
    F: Future<Output = Result<T, ClientError>>,
{
    let deadline = Instant::now() + REPEAT_FOR;
    let (mut pause, longest) = REPEAT_PAUSE;
    loop {
        match request().await {
            Err(error) if may_succeed_later(&error) && Instant::now() < deadline => {
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(longest);
            }
            result => return result,
        }
    }
}

fn may_succeed_later(error: &ClientError) -> bool {
    match error {
        ClientError::Refused(problem) => problem.retryable || problem.status == 503,
        _ => true,
    }
}
