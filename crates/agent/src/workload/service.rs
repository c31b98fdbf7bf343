//! What a request is answered: the order of the refusals, and the streams that follow the identity.
//!
//! Owns the methods of the service. Knows nothing of sockets and limits of connections; is told whether the
//! caller may ask. A stream always sends the newest identity: a slow client misses what was replaced
//! meanwhile, and nothing piles up.
//!
//! INVARIANT: whether the caller may ask is looked at before anything that the caller has sent.

use std::future::{Future, ready};
use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::body::Incoming;
use hyper::header::CONTENT_TYPE;
use hyper::{Method, Request, StatusCode};
use tokio::sync::watch;
use tokio::time::timeout;
use tonic::body::Body;
use tonic::codegen::tokio_stream::Stream;
use tonic::server::{Grpc, ServerStreamingService};
use tonic::{Code, Status};
use tonic_prost::ProstCodec;
use wire::journal::told;

use crate::workload::Svid;
use crate::workload::connections::Open;
use crate::workload::messages::{BundlesResponse, Nothing, SvidResponse};

/// Largest message of a request, in bytes. No request has a field.
pub const MESSAGE_BYTES_MAX: usize = 4 * 1024;

/// How long a client may take to send the message of a request.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// The header that shows that a request was meant for this API: a web page, or a proxy made to fetch an
/// address, cannot set it.
const SECURITY_HEADER: &str = "workload.spiffe.io";

/// What is served, and whether it still is.
#[derive(Clone)]
pub(super) struct Feed {
    svids: watch::Receiver<Option<Arc<Svid>>>,
    stop: watch::Receiver<bool>,
}

impl Feed {
    pub(super) fn new(svids: watch::Receiver<Option<Arc<Svid>>>, stop: watch::Receiver<bool>) -> Self {
        Self { svids, stop }
    }

    /// The identity now. One whose maker is gone is nobody's to serve.
    fn now(&mut self) -> Result<Arc<Svid>, Status> {
        if self.svids.has_changed().is_err() {
            return Err(unavailable());
        }
        let now = self.svids.borrow_and_update().clone();
        // Clients know these very words, and wait longer before they ask again.
        now.ok_or_else(|| Status::permission_denied("no identity issued"))
    }

    /// Waits for another identity, or says why there will be none.
    async fn changed(&mut self) -> Result<(), Status> {
        tokio::select! {
            biased;
            () = told(&mut self.stop) => Err(unavailable()),
            changed = self.svids.changed() => changed.map_err(|_| unavailable()),
        }
    }
}

fn unavailable() -> Status {
    Status::unavailable("the agent is stopping")
}

/// Answers one request. `open` counts as an open request until the answer has been sent.
pub(super) async fn answer(
    request: Request<Incoming>,
    allowed: bool,
    feed: Feed,
    open: Open,
) -> hyper::Response<Body> {
    if !allowed {
        return Status::permission_denied("this user may not ask").into_http();
    }
    let content = request.headers().get(CONTENT_TYPE).map_or(&b""[..], |value| value.as_bytes());
    if request.method() != Method::POST || !content.starts_with(b"application/grpc") {
        let mut refusal = hyper::Response::new(Body::empty());
        *refusal.status_mut() = StatusCode::UNSUPPORTED_MEDIA_TYPE;
        return refusal;
    }
    let mut header = request.headers().get_all(SECURITY_HEADER).iter();
    if header.next().is_none_or(|value| value != "true") || header.next().is_some() {
        return Status::invalid_argument("the request must carry the metadata workload.spiffe.io: true")
            .into_http();
    }
    match request.uri().path() {
        "/SpiffeWorkloadAPI/FetchX509SVID" => {
            stream::<SvidResponse>(request, Updates::new(feed, open, Svid::same)).await
        }
        "/SpiffeWorkloadAPI/FetchX509Bundles" => {
            stream::<BundlesResponse>(request, Updates::new(feed, open, Svid::same_bundle)).await
        }
        "/SpiffeWorkloadAPI/FetchJWTSVID"
        | "/SpiffeWorkloadAPI/FetchJWTBundles"
        | "/SpiffeWorkloadAPI/ValidateJWTSVID" => {
            Status::unimplemented("no JWT-SVIDs are issued here; fetch an X.509-SVID").into_http()
        }
        _ => Status::unimplemented("no such method").into_http(),
    }
}

async fn stream<M>(request: Request<Incoming>, updates: Updates<M>) -> hyper::Response<Body>
where
    M: prost::Message + for<'a> From<&'a Svid> + 'static,
{
    let mut grpc =
        Grpc::new(ProstCodec::<M, Nothing>::default()).max_decoding_message_size(MESSAGE_BYTES_MAX);
    match timeout(REQUEST_TIMEOUT, grpc.server_streaming(Once(Some(updates)), request)).await {
        Ok(response) => response,
        Err(_) => Status::new(Code::DeadlineExceeded, "the request did not arrive in time").into_http(),
    }
}

/// The service behind one request.
struct Once<M>(Option<Updates<M>>);

impl<M> ServerStreamingService<Nothing> for Once<M>
where
    M: prost::Message + for<'a> From<&'a Svid> + 'static,
{
    type Response = M;
    type ResponseStream = Updates<M>;
    type Future = std::future::Ready<Result<tonic::Response<Updates<M>>, Status>>;

    fn call(&mut self, _: tonic::Request<Nothing>) -> Self::Future {
        let Some(mut updates) = self.0.take() else { return ready(Err(Status::internal("asked twice"))) };
        // A refusal that is known now is told without a stream.
        ready(
            updates
                .state
                .as_mut()
                .map_or(Ok(()), |state| state.feed.now().map(|_| ()))
                .map(|()| tonic::Response::new(updates)),
        )
    }
}

/// Whether two identities are the same to a stream.
type Same = fn(&Svid, &Svid) -> bool;

type Step = Pin<Box<dyn Future<Output = (Result<Arc<Svid>, Status>, State)> + Send>>;

/// The messages of one stream: one now, and one after every change that concerns it, until a refusal ends it.
struct Updates<M> {
    /// Between two messages.
    state: Option<State>,
    /// While the next message is awaited.
    step: Option<Step>,
    message: PhantomData<fn() -> M>,
}

struct State {
    feed: Feed,
    told: Option<Arc<Svid>>,
    same: Same,
    _open: Open,
}

impl<M> Updates<M> {
    fn new(feed: Feed, open: Open, same: Same) -> Self {
        let state = State { feed, told: None, same, _open: open };
        Self { state: Some(state), step: None, message: PhantomData }
    }
}

impl State {
    async fn next(mut self) -> (Result<Arc<Svid>, Status>, Self) {
        loop {
            let now = match self.feed.now() {
                Ok(now) => now,
                Err(refusal) => return (Err(refusal), self),
            };
            if !self.told.as_ref().is_some_and(|told| (self.same)(told, &now)) {
                self.told = Some(now.clone());
                return (Ok(now), self);
            }
            if let Err(refusal) = self.feed.changed().await {
                return (Err(refusal), self);
            }
        }
    }
}

impl<M: for<'a> From<&'a Svid>> Stream for Updates<M> {
    type Item = Result<M, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let mut step = match (self.step.take(), self.state.take()) {
            (Some(step), _) => step,
            (None, Some(state)) => Box::pin(state.next()),
            (None, None) => return Poll::Ready(None),
        };
        match step.as_mut().poll(context) {
            Poll::Pending => {
                self.step = Some(step);
                Poll::Pending
            }
            Poll::Ready((Ok(svid), state)) => {
                self.state = Some(state);
                Poll::Ready(Some(Ok(M::from(&svid))))
            }
            Poll::Ready((Err(refusal), _)) => Poll::Ready(Some(Err(refusal))),
        }
    }
}
