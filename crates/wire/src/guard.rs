//! The door in front of every route.
//!
//! Owns: the one way in which a request becomes a call of a handler. A route is a type that implements [`Operation`]: it
//! says what it needs, how its input is parsed, and what it touches. [`Routes`] puts the door in front; there is no other
//! way to make a route, so there is none without a door.
//!
//! INVARIANT: a handler runs only after its door allowed the request and the decision was journalled; an error while
//! deciding or journalling is a denial. A request that reaches no handler at all (nothing at its path, not to be parsed) is
//! a refusal too, and journalled: whoever feels their way along the doors is seen.

use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use access::grant::{GrantError, SignedGrant, verify};
use access::guard::{Cost, Decision, Guard, Now, Permit, Reason, Request};
use access::policy::{OperatorAction, StandingAction};
use access::vocabulary::{Action, MarketDay};
use audit::record::Record;
use axum::Router;
use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{DefaultBodyLimit, Extension, State};
use axum::http::{HeaderMap, Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};

use tokio::sync::watch;

use crate::enrol::{
    CHALLENGE_PATH, ENROL_BYTES_MAX, ENROL_PATH, EnrolReply, EnrolRequest, Newcomer, REFUSED_AFTER,
};
use crate::journal::{Journal, JournalError, told, unix_ms};
use crate::problem::Problem;
use crate::tls::Peer;
use identity::attest::challenge::{ChallengeReply, ChallengeRequest};

/// The header that carries a grant.
pub const GRANT_HEADER: &str = "x-grant";

/// What the record of a request that could not be parsed says.
const BAD_REQUEST: &str = "bad_request";
/// What the record and the answer say of a request to which no route belongs.
const NO_SUCH_ROUTE: &str = "no_such_route";
/// How much of a stranger's path is journalled, in bytes.
const PATH_BYTES_MAX: usize = 128;
/// How much of a stranger's method is journalled, in bytes.
const METHOD_BYTES_MAX: usize = 16;

/// What a route demands of whoever calls it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Needs {
    /// A grant for this action.
    Grant(Action),
    /// One of the standing permissions.
    Standing(StandingAction),
    /// A standing permission of who comes with keys that are offered and not active yet, to prove them.
    Proof(StandingAction),
    /// That the stored secret it names may be opened for the caller.
    Secret,
    /// An operator's right.
    Operator(OperatorAction),
}

impl Needs {
    /// The right's name, for the record.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Needs::Grant(action) => action.as_str(),
            Needs::Standing(action) | Needs::Proof(action) => action.as_str(),
            Needs::Secret => access::policy::OPEN_SECRET,
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

    /// The finished router; what is not in its table is answered with 404, or 405 where only the method is not, and
    /// journalled as refused.
    pub fn into_router(self) -> Router {
        self.router
            .method_not_allowed_fallback(no_such_method::<S>)
            .fallback(no_such_path::<S>)
            .with_state(self.shared)
    }
}

async fn no_such_path<S>(
    State(shared): State<Arc<Shared<S>>>,
    Extension(peer): Extension<Peer>,
    method: Method,
    uri: Uri,
) -> Response {
    let problem = Problem::not_found(NO_SUCH_ROUTE, "there is nothing at this path");
    stray(&shared.journal, &peer, &method, &uri, problem).into_response()
}

async fn no_such_method<S>(
    State(shared): State<Arc<Shared<S>>>,
    Extension(peer): Extension<Peer>,
    method: Method,
    uri: Uri,
) -> Response {
    let problem = Problem::new(405, NO_SUCH_ROUTE, "what is at this path has no such method");
    stray(&shared.journal, &peer, &method, &uri, problem).into_response()
}

/// Journals a request to which no route belongs, and returns what to answer.
fn stray(journal: &Journal, peer: &Peer, method: &Method, uri: &Uri, problem: Problem) -> Problem {
    let (method, path) = (escaped(method.as_str(), METHOD_BYTES_MAX), escaped(uri.path(), PATH_BYTES_MAX));
    let record = Record::Decision {
        action: "none".into(),
        route: format!("{method} {path}"),
        peer: peer.id.to_string(),
        key: peer.key_digits(),
        grant: None,
        task: None,
        allowed: false,
        reason: NO_SUCH_ROUTE.into(),
    };
    match journal.record(&record) {
        Ok(_) => problem,
        Err(error) => not_journalled(&error),
    }
}

/// A stranger's text in printable ASCII, cut where the next letter would make it longer than `bytes_max`.
fn escaped(text: &str, bytes_max: usize) -> String {
    let mut out = String::new();
    for letter in text.chars() {
        let letter = letter.escape_default();
        if out.len() + letter.len() > bytes_max {
            break;
        }
        out.extend(letter);
    }
    out
}

fn not_journalled(error: &JournalError) -> Problem {
    tracing::error!(%error, "a decision could not be journalled: refused");
    let detail = "the decision could not be journalled, so it was not carried out";
    Problem::unavailable("journal_failed", detail)
}

/// How long a request waits for its guard to hear what the request's grant was issued after.
const CATCH_UP: Duration = Duration::from_millis(100);

async fn enter<O: Operation>(
    State(shared): State<Arc<Shared<O::State>>>,
    Extension(peer): Extension<Peer>,
    uri: Uri,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Response {
    let body = match body {
        Ok(body) => Ok(body),
        Err(rejection) if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE => {
            Err(Problem::too_large("body_too_large", "the body is too large"))
        }
        // The connection ended in the middle of it: there is no request to decide on, and nobody to answer.
        Err(_) => return Problem::bad_request("bad_body", "the body ended too early").into_response(),
    };
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
    body: &Result<Bytes, Problem>,
    last: bool,
) -> Admitted<O> {
    let route = format!("{} {}", O::METHOD, O::PATH);
    let grants: Vec<_> = headers.get_all(GRANT_HEADER).iter().collect();
    let grant = match grants.as_slice() {
        [one] => one.to_str().ok(),
        _ => None,
    };
    let parsed = match body {
        Ok(body) => O::parse(uri.query().unwrap_or_default(), body),
        Err(problem) => Err(problem.clone()),
    };
    let touched = parsed.as_ref().map(|operation| operation.touched(&shared.state)).unwrap_or_default();
    let ask = Ask { needs: O::NEEDS, route: &route, peer: &peer, grant, touched: &touched };
    let (verdict, parsed) = match parsed {
        _ if grants.len() > 1 => {
            let problem = Problem::bad_request("several_grants", "a request carries one grant");
            (deny(&problem.code, &problem.detail), Err(problem))
        }
        Ok(operation) => (shared.door.decide(&ask), Ok(operation)),
        Err(problem) => match shows_no_grant(&ask) {
            // A stranger without any right learns nothing about the shape of requests.
            Some((reason, detail)) => {
                (deny(reason.as_str(), detail), Err(Problem::forbidden(reason.as_str(), detail)))
            }
            None => (deny(BAD_REQUEST, &problem.detail), Err(problem)),
        },
    };
    if !last && matches!(&verdict, Verdict::Deny { code, .. } if code == Reason::BehindRevision.as_str()) {
        return Admitted::NotYet;
    }
    if let Some(record) = &decision(&ask, &verdict)
        && let Err(error) = shared.journal.record(record)
    {
        return Admitted::Decided(Err(not_journalled(&error)));
    }
    Admitted::Decided(match (verdict, parsed) {
        (Verdict::Allow { permit, .. }, Ok(operation)) => Ok((operation, Pass { permit, peer })),
        (_, Err(problem)) => Err(problem),
        (Verdict::Deny { code, detail, retryable, .. }, Ok(_)) => {
            Err(Problem::forbidden(&code, &detail).retryable_if(retryable))
        }
    })
}

/// Why a request for a route that needs a grant shows none, whoever may have signed it. For requests that cannot be parsed:
/// the guard decides on the others.
fn shows_no_grant(ask: &Ask<'_>) -> Option<(Reason, &'static str)> {
    let Needs::Grant(_) = ask.needs else { return None };
    let Some(text) = ask.grant else { return Some((Reason::NoGrant, "this route needs a grant")) };
    // Without any issuer's key, a grant that has the form of one gets as far as this error and no further.
    match SignedGrant::from_text(text).and_then(|grant| verify(grant.bytes(), &[])) {
        Err(GrantError::UnknownKey) => None,
        Ok(_) | Err(_) => Some((Reason::MalformedGrant, "what the request carries is no grant")),
    }
}

/// The record of a decision. Standing permissions that are allowed leave the record of what they did instead: reporting
/// and polling many times a second would drown everything else.
fn decision(ask: &Ask<'_>, verdict: &Verdict) -> Option<Record> {
    let (allowed, reason, grant, task) = match verdict {
        Verdict::Allow { .. } if matches!(ask.needs, Needs::Standing(_) | Needs::Proof(_)) => return None,
        Verdict::Allow { permit: Some(permit), reason } => {
            (true, reason.clone(), Some(permit.grant().to_owned()), Some(permit.task().to_owned()))
        }
        Verdict::Allow { permit: None, reason } => (true, reason.clone(), None, None),
        Verdict::Deny { code, grant, .. } => (false, code.clone(), grant.clone(), None),
    };
    Some(match ask.needs {
        Needs::Operator(action) => Record::OperatorAction {
            operator: ask.peer.id.to_string(),
            key: ask.peer.key_digits(),
            action: action.as_str().into(),
            target: ask.touched.target.clone(),
            allowed,
            reason,
        },
        Needs::Grant(_) | Needs::Standing(_) | Needs::Proof(_) | Needs::Secret => Record::Decision {
            action: ask.needs.as_str().into(),
            route: ask.route.into(),
            peer: ask.peer.id.to_string(),
            key: ask.peer.key_digits(),
            grant,
            task,
            allowed,
            reason,
        },
    })
}

/// The routes of the enrolment listener. Its door is the ticket: whoever has none gets nothing, and a refusal says no
/// more than that, in words or by the time that it takes.
pub fn enrolment_router<C, E>(challenge: C, enrol: E) -> Router
where
    C: Fn(Newcomer, ChallengeRequest) -> Result<ChallengeReply, Problem> + Clone + Send + Sync + 'static,
    E: Fn(Newcomer, EnrolRequest) -> Result<EnrolReply, Problem> + Clone + Send + Sync + 'static,
{
    let challenge = move |Extension(newcomer): Extension<Newcomer>, body: Bytes| {
        let challenge = challenge.clone();
        async move { at_the_door(&body, |request| challenge(newcomer, request)).await }
    };
    let enrol = move |Extension(newcomer): Extension<Newcomer>, body: Bytes| {
        let enrol = enrol.clone();
        async move { at_the_door(&body, |request| enrol(newcomer, request)).await }
    };
    Router::new()
        .route(CHALLENGE_PATH, axum::routing::post(challenge))
        .route(ENROL_PATH, axum::routing::post(enrol))
        .layer(DefaultBodyLimit::max(ENROL_BYTES_MAX))
        .fallback(|| async {
            Problem::not_found("no_such_route", "there is nothing at this path").into_response()
        })
}

/// Answers a newcomer; with a refusal, after a time that says nothing.
async fn at_the_door<Q, R>(body: &[u8], answer: impl FnOnce(Q) -> Result<R, Problem>) -> Response
where
    Q: serde::de::DeserializeOwned,
    R: serde::Serialize,
{
    let arrived = tokio::time::Instant::now();
    match from_json(body).and_then(answer).and_then(|reply| json(&reply)) {
        Ok(reply) => reply,
        Err(problem) => {
            tokio::time::sleep_until(arrived + REFUSED_AFTER).await;
            problem.into_response()
        }
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_strangers_path_is_journalled_short_and_in_plain_letters() {
        assert_eq!(escaped("/v1/bars", PATH_BYTES_MAX), "/v1/bars");
        assert_eq!(escaped("/a\u{1b}[31m\n\u{e9}\"\\", PATH_BYTES_MAX), r#"/a\u{1b}[31m\n\u{e9}\"\\"#);
        for letter in ["x", "\u{1b}", "\u{10ffff}", "\n"] {
            let cut = escaped(&letter.repeat(5_000), PATH_BYTES_MAX);
            assert!(cut.len() <= PATH_BYTES_MAX && cut.len() > PATH_BYTES_MAX - 10, "{cut}");
            assert!(cut.bytes().all(|byte| byte.is_ascii_graphic()), "{cut}");
            assert!(cut.ends_with(|last| "x}n".contains(last)), "no letter is cut in two: {cut}");
        }
    }
}
