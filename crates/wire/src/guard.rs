//! The door in front of every route.
//!
//! Owns: the one way in which a request becomes a call of a handler. A route is a type that implements [`Operation`]: it
//! says what it needs, how its input is parsed, and what it touches. [`Routes`] puts the door in front; there is no other
//! way to make a route, so there is none without a door.
//!
//! INVARIANT: a handler runs only after its door allowed the request and the decision was journalled; an error while
//! deciding or journalling is a denial.

use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use access::guard::{Cost, Decision, Guard, Now, Permit, Reason, Request};
use access::policy::{OperatorAction, StandingAction};
use access::vocabulary::{Action, MarketDay};
use audit::record::Record;
use axum::Router;
use axum::body::Bytes;
use axum::extract::{Extension, State};
use axum::http::{HeaderMap, Method, Uri};
use axum::response::{IntoResponse, Response};

use tokio::sync::watch;

use crate::enrol::{ENROL_PATH, EnrolReply, EnrolRequest, Newcomer};
use crate::journal::{Journal, told, unix_ms};
use crate::problem::Problem;
use crate::tls::Peer;

/// The header that carries a grant.
pub const GRANT_HEADER: &str = "x-grant";

/// What a route demands of whoever calls it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Needs {
    /// A grant for this action.
    Grant(Action),
    /// One of the standing permissions.
    Standing(StandingAction),
    /// An operator's right.
    Operator(OperatorAction),
}

impl Needs {
    /// The right's name, for the record.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Needs::Grant(action) => action.as_str(),
            Needs::Standing(action) => action.as_str(),
            Needs::Operator(action) => action.as_str(),
        }
    }
}

/// What a request touches, as parsed from it; the door compares it with what the caller may touch.
#[derive(Debug, Clone, Default)]
pub struct Touched {
    /// Portfolio.
    pub portfolio: Option<String>,
    /// Symbols.
    pub symbols: Vec<String>,
    /// The latest market day of anything that is read or written.
    pub market_day: Option<MarketDay>,
    /// What it uses up.
    pub cost: Cost,
    /// What an operator's action is aimed at.
    pub target: String,
    /// Who proposed it, where two people are needed.
    pub proposer: Option<String>,
}

/// A request, as a door sees it.
pub struct Ask<'a> {
    /// What the route needs.
    pub needs: Needs,
    /// Method and path.
    pub route: &'a str,
    /// Who asks: proven by the handshake.
    pub peer: &'a Peer,
    /// The grant shown.
    pub grant: Option<&'a str>,
    /// What is touched.
    pub touched: &'a Touched,
}

/// A door's answer.
pub enum Verdict {
    /// Let through. The permit is there when the right is a grant.
    Allow {
        /// Proof of an allowing decision by a guard.
        permit: Option<Permit>,
        /// Why.
        reason: String,
    },
    /// Refused.
    Deny {
        /// Reason code.
        code: String,
        /// What to know about it.
        detail: String,
        /// Whether the same request may succeed a moment later.
        retryable: bool,
        /// The grant's own identifier, when one was readable.
        grant: Option<String>,
    },
}

/// Decides who may pass.
pub trait Door: Send + Sync + 'static {
    /// Decides on one request.
    fn decide(&self, ask: &Ask<'_>) -> Verdict;

    /// Changes whenever the door has learnt something by which a retryable denial may turn.
    fn learning(&self) -> Option<watch::Receiver<u64>> {
        None
    }
}

/// The door of a data unit and of the desk: a [`Guard`] behind a lock, with the process's clocks.
pub struct GrantDoor {
    guard: Mutex<Guard>,
    started: Instant,
    /// How often the feed was heard.
    heard: watch::Sender<u64>,
}

impl GrantDoor {
    /// Puts a guard behind a door.
    #[must_use]
    pub fn new(guard: Guard) -> Self {
        Self::started_at(guard, Instant::now())
    }

    /// Puts a guard behind a door whose monotonic clock began earlier: what the guard heard at 0 was heard then.
    #[must_use]
    pub fn started_at(guard: Guard, started: Instant) -> Self {
        Self { guard: Mutex::new(guard), started, heard: watch::Sender::new(0) }
    }

    /// The guard has heard the revocation feed.
    pub(crate) fn note_heard(&self) {
        self.heard.send_modify(|times| *times = times.wrapping_add(1));
    }

    /// Waits until the guard has heard the revocation feed: before that it refuses everything, so there is no use in
    /// listening. Returns as well when told to stop.
    pub async fn first_heard(&self, stop: &watch::Receiver<bool>) {
        let (mut heard, mut stop) = (self.heard.subscribe(), stop.clone());
        tokio::select! {
            _ = heard.wait_for(|times| *times > 0) => {}
            () = told(&mut stop) => {}
        }
    }

    /// Milliseconds of the monotonic clock that leases are measured with.
    #[must_use]
    pub fn mono_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Both clocks as they are now. Read them inside [`GrantDoor::with`], after the wait for the lock.
    #[must_use]
    pub fn now(&self) -> Now {
        Now { unix: unix_ms() / 1_000, mono_ms: self.mono_ms() }
    }

    /// Calls the guard. A guard in which somebody panicked is used no more.
    pub fn with<R>(&self, call: impl FnOnce(&mut Guard) -> R) -> Option<R> {
        self.guard.lock().ok().map(|mut guard| call(&mut guard))
    }
}

impl Door for GrantDoor {
    fn learning(&self) -> Option<watch::Receiver<u64>> {
        Some(self.heard.subscribe())
    }

    fn decide(&self, ask: &Ask<'_>) -> Verdict {
        let Needs::Grant(action) = ask.needs else {
            return deny("no_such_right", "this door knows grants only");
        };
        let symbols: Vec<&str> = ask.touched.symbols.iter().map(String::as_str).collect();
        let request = Request {
            grant: ask.grant,
            peer_id: &ask.peer.id.to_string(),
            peer_epoch: ask.peer.epoch,
            peer_key: &ask.peer.key,
            action,
            portfolio: ask.touched.portfolio.as_deref(),
            symbols: &symbols,
            market_day: ask.touched.market_day,
            cost: ask.touched.cost,
        };
        // Both clocks are read under the lock: time spent waiting for it counts against lease and expiry.
        match self.with(|guard| guard.decide(self.now(), &request)) {
            Some(Decision::Allow(permit)) => {
                Verdict::Allow { permit: Some(permit), reason: "granted".into() }
            }
            Some(Decision::Deny(denial)) => Verdict::Deny {
                code: denial.reason.as_str().into(),
                retryable: denial.reason.retryable(),
                detail: denial.detail,
                grant: denial.grant,
            },
            None => deny("guard_failed", "the guard failed earlier; the process must start again"),
        }
    }
}

fn deny(code: &str, detail: &str) -> Verdict {
    Verdict::Deny { code: code.into(), detail: detail.into(), retryable: false, grant: None }
}

/// What a handler is given: proof that its door let the request through.
pub struct Pass {
    permit: Option<Permit>,
    /// Who asked.
    pub peer: Peer,
}

impl Pass {
    /// The guard's permit.
    ///
    /// # Errors
    /// When the route's right is no grant, which is a mistake in the route.
    pub fn permit(self) -> Result<(Permit, Peer), Problem> {
        match self.permit {
            Some(permit) => Ok((permit, self.peer)),
            None => Err(Problem::forbidden("no_grant", "this route needs a grant")),
        }
    }
}

/// One route.
pub trait Operation: Sized + Send + 'static {
    /// What the handlers of this router share.
    type State: Send + Sync + 'static;
    /// HTTP method.
    const METHOD: Method;
    /// Path.
    const PATH: &'static str;
    /// What a caller needs.
    const NEEDS: Needs;

    /// Parses the request: from here on nothing is text from a stranger any more.
    ///
    /// # Errors
    /// A problem with status 400 that says what is wrong.
    fn parse(query: &str, body: &[u8]) -> Result<Self, Problem>;

    /// What the request touches.
    fn touched(&self, state: &Self::State) -> Touched;

    /// Does it.
    fn run(
        self,
        state: Arc<Self::State>,
        pass: Pass,
    ) -> impl Future<Output = Result<Response, Problem>> + Send;
}

/// A route's line in the table of routes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RouteInfo {
    /// HTTP method.
    pub method: Method,
    /// Path.
    pub path: &'static str,
    /// What a caller needs.
    pub needs: Needs,
}

/// Builds a router in which every route has the door in front.
pub struct Routes<S> {
    shared: Arc<Shared<S>>,
    router: Router<Arc<Shared<S>>>,
    table: Vec<RouteInfo>,
}

struct Shared<S> {
    state: Arc<S>,
    door: Arc<dyn Door>,
    journal: Arc<Journal>,
}

impl<S: Send + Sync + 'static> Routes<S> {
    /// Starts with no route at all.
    pub fn new(state: Arc<S>, door: Arc<dyn Door>, journal: Arc<Journal>) -> Self {
        Self { shared: Arc::new(Shared { state, door, journal }), router: Router::new(), table: Vec::new() }
    }

    /// Adds a route.
    #[must_use]
    pub fn with<O: Operation<State = S>>(mut self) -> Self {
        let filter = axum::routing::MethodFilter::try_from(O::METHOD);
        if let Ok(filter) = filter {
            self.router = self.router.route(O::PATH, axum::routing::on(filter, enter::<O>));
            self.table.push(RouteInfo { method: O::METHOD, path: O::PATH, needs: O::NEEDS });
        }
        self
    }

    /// Every route that exists.
    #[must_use]
    pub fn table(&self) -> &[RouteInfo] {
        &self.table
    }

    /// The finished router; what is not in its table is answered with 404.
    pub fn into_router(self) -> Router {
        self.router.with_state(self.shared).fallback(|| async {
            Problem::not_found("no_such_route", "there is nothing at this path").into_response()
        })
    }
}

/// How long a request waits for its guard to hear what the request's grant was issued after.
const CATCH_UP: Duration = Duration::from_millis(100);

async fn enter<O: Operation>(
    State(shared): State<Arc<Shared<O::State>>>,
    Extension(peer): Extension<Peer>,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let deadline = tokio::time::Instant::now() + CATCH_UP;
    let mut learning = shared.door.learning();
    let admitted = loop {
        let last = tokio::time::Instant::now() >= deadline;
        match (admit::<O>(&shared, peer.clone(), &uri, &headers, &body, last), &mut learning) {
            (Admitted::NotYet, Some(learning)) => {
                let _ = tokio::time::timeout_at(deadline, learning.changed()).await;
            }
            (Admitted::NotYet, None) => tokio::time::sleep_until(deadline).await,
            (Admitted::Decided(result), _) => break result,
        }
    };
    match admitted {
        Ok((operation, pass)) => match operation.run(shared.state.clone(), pass).await {
            Ok(response) => response,
            Err(problem) => problem.into_response(),
        },
        Err(problem) => problem.into_response(),
    }
}

/// What became of a request at the door.
enum Admitted<O> {
    /// The guard has not heard yet what the grant was issued after; nothing was decided.
    NotYet,
    /// Decided, and journalled.
    Decided(Result<(O, Pass), Problem>),
}

fn admit<O: Operation>(
    shared: &Shared<O::State>,
    peer: Peer,
    uri: &Uri,
    headers: &HeaderMap,
    body: &[u8],
    last: bool,
) -> Admitted<O> {
    let route = format!("{} {}", O::METHOD, O::PATH);
    let grants: Vec<_> = headers.get_all(GRANT_HEADER).iter().collect();
    let grant = match grants.as_slice() {
        [] => None,
        [one] => one.to_str().ok(),
        _ => {
            let problem = Problem::bad_request("several_grants", "a request carries one grant");
            return Admitted::Decided(Err(problem));
        }
    };
    let parsed = O::parse(uri.query().unwrap_or_default(), body);
    let touched = parsed.as_ref().map(|operation| operation.touched(&shared.state)).unwrap_or_default();
    let ask = Ask { needs: O::NEEDS, route: &route, peer: &peer, grant, touched: &touched };
    let verdict = match &parsed {
        Ok(_) => shared.door.decide(&ask),
        // A stranger without any right learns nothing about the shape of requests.
        Err(_) if grant.is_none() && matches!(O::NEEDS, Needs::Grant(_)) => {
            deny("no_grant", "this route needs a grant")
        }
        Err(problem) => return Admitted::Decided(Err(problem.clone())),
    };
    if !last && matches!(&verdict, Verdict::Deny { code, .. } if code == Reason::BehindRevision.as_str()) {
        return Admitted::NotYet;
    }
    if let Some(record) = &decision(&ask, &verdict)
        && let Err(error) = shared.journal.record(record)
    {
        tracing::error!(%error, "a decision could not be journalled: refused");
        let detail = "the decision could not be journalled, so it was not carried out";
        return Admitted::Decided(Err(Problem::unavailable("journal_failed", detail)));
    }
    Admitted::Decided(match (verdict, parsed) {
        (Verdict::Allow { permit, .. }, Ok(operation)) => Ok((operation, Pass { permit, peer })),
        (Verdict::Allow { .. }, Err(problem)) => Err(problem),
        (Verdict::Deny { code, detail, retryable, .. }, _) => {
            Err(Problem::forbidden(&code, &detail).retryable_if(retryable))
        }
    })
}

/// The record of a decision. Standing permissions that are allowed leave the record of what they did instead: reporting
/// and polling many times a second would drown everything else.
fn decision(ask: &Ask<'_>, verdict: &Verdict) -> Option<Record> {
    let (allowed, reason, grant, task) = match verdict {
        Verdict::Allow { .. } if matches!(ask.needs, Needs::Standing(_)) => return None,
        Verdict::Allow { permit: Some(permit), reason } => {
            (true, reason.clone(), Some(permit.grant().to_owned()), Some(permit.task().to_owned()))
        }
        Verdict::Allow { permit: None, reason } => (true, reason.clone(), None, None),
        Verdict::Deny { code, grant, .. } => (false, code.clone(), grant.clone(), None),
    };
    Some(match ask.needs {
        Needs::Operator(action) => Record::OperatorAction {
            operator: ask.peer.id.to_string(),
            action: action.as_str().into(),
            target: ask.touched.target.clone(),
            allowed,
            reason,
        },
        Needs::Grant(_) | Needs::Standing(_) => Record::Decision {
            action: ask.needs.as_str().into(),
            route: ask.route.into(),
            peer: ask.peer.id.to_string(),
            grant,
            task,
            allowed,
            reason,
        },
    })
}

/// The one route of the enrolment listener. Its door is the ticket: whoever has none gets nothing, and a refusal says no
/// more than that.
pub fn enrolment_router<F>(enrol: F) -> Router
where
    F: Fn(Newcomer, EnrolRequest) -> Result<EnrolReply, Problem> + Clone + Send + Sync + 'static,
{
    let handler = move |Extension(newcomer): Extension<Newcomer>, body: Bytes| {
        let enrol = enrol.clone();
        async move {
            let reply =
                from_json(&body).and_then(|request| enrol(newcomer, request)).and_then(|reply| json(&reply));
            reply.unwrap_or_else(IntoResponse::into_response)
        }
    };
    Router::new().route(ENROL_PATH, axum::routing::post(handler)).fallback(|| async {
        Problem::not_found("no_such_route", "there is nothing at this path").into_response()
    })
}

/// Answers with JSON.
///
/// # Errors
/// A problem with status 500 when the value cannot be written, which is a mistake of ours.
pub fn json<T: serde::Serialize>(value: &T) -> Result<Response, Problem> {
    let body = serde_json::to_vec(value).map_err(|_| Problem::internal())?;
    Ok(([(axum::http::header::CONTENT_TYPE, "application/json")], body).into_response())
}

/// Parses a JSON body.
///
/// # Errors
/// A problem with status 400 that says where the body is wrong.
pub fn from_json<T: serde::de::DeserializeOwned>(body: &[u8]) -> Result<T, Problem> {
    serde_json::from_slice(body).map_err(|error| Problem::bad_request("bad_body", &error.to_string()))
}

/// The value of a key in a query string, with `%XX` not decoded: our own values need none.
#[must_use]
pub fn query_value<'a>(query: &'a str, key: &str) -> Option<&'a str> {
    let mut found = query.split('&').filter_map(|pair| pair.split_once('=')).filter(|(name, _)| *name == key);
    match (found.next(), found.next()) {
        (Some((_, value)), None) => Some(value),
        _ => None,
    }
}

/// Lets a poisoned lock be used for reading state that no decision depends on.
pub fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
