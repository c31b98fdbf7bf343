//! The attacks that every guarded route must refuse, tried on every route that there is.
//!
//! A process hands in its real routers and one [`Sample`] per route: a good request. Each [`Attack`] changes
//! one thing about it, and must be answered with 403 and its reason, leave no effect, and be journalled. A
//! route without a sample fails the test, so that a new route cannot be forgotten.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use access::grant::mint;
use access::guard::{Guard, GuardConfig, Reason};
use access::revocation::{FeedReply, LEASE_MS};
use access::vocabulary::{Action, Audience, Claims, Limits, MarketDay, Revocation, RevocationKind};
use audit::record::Record;
use axum::Router;
use axum::body::{Body, to_bytes};
use hyper::service::Service as _;
use hyper_util::service::TowerToHyperService;
use identity::{PeerClass, SpiffeId};
use keys::{Digest, SigningKey};
use serde_json::Value;
use wire::guard::{GRANT_HEADER, GrantDoor, Needs, RouteInfo};
use wire::http::{Method, Request};
use wire::journal::{Journal, read_entries, unix_ms};
use wire::problem::Problem;
use wire::tls::Peer;

use crate::house::{House, TRUST_DOMAIN};

/// The process that the tests' journal is of.
const PROCESS: &str = "under-test";
/// Largest reply that is read, in bytes.
const REPLY_BYTES_MAX: usize = 64 << 20;

/// What a request is about: the good one, or one of its changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct About {
    /// Portfolio: `core`.
    pub portfolio: String,
    /// Symbol: `AAPL`.
    pub symbol: String,
    /// Market day, the grant's: `2005-03-16`.
    pub day: String,
}

impl About {
    /// What the grants of these tests allow.
    #[must_use]
    pub fn good() -> Self {
        Self { portfolio: "core".into(), symbol: "AAPL".into(), day: "2005-03-16".into() }
    }
}

/// A query, without `?`, and a body.
pub type Asked = (String, Option<Value>);

/// A good request of one route.
pub struct Sample {
    /// Method.
    pub method: Method,
    /// Path.
    pub path: &'static str,
    /// The request about something. Whatever of portfolio, symbol and day the route carries must be taken
    /// from there: this is how it is found out which attacks there are.
    pub ask: fn(&About) -> Asked,
}

impl Sample {
    /// A request without a body.
    #[must_use]
    pub fn get(path: &'static str, ask: fn(&About) -> Asked) -> Self {
        Self { method: Method::GET, path, ask }
    }

    /// A request with a body.
    #[must_use]
    pub fn post(path: &'static str, ask: fn(&About) -> Asked) -> Self {
        Self { method: Method::POST, path, ask }
    }
}

/// The real routes for one class of peers.
pub struct Place {
    /// Class.
    pub class: PeerClass,
    /// Its table.
    pub table: Vec<RouteInfo>,
    /// Its router.
    pub router: Router,
}

/// Builds the routes of a process in a directory, behind a door and over a journal.
pub type Build<'a> = dyn Fn(&Path, &Arc<GrantDoor>, &Arc<Journal>) -> Vec<Place> + 'a;

/// A process under test: how its routes are built in a directory, and how to see whether anything was done
/// there.
pub struct Subject<'a> {
    /// Whom its grants are shown to.
    pub audience: Audience,
    /// One good request per route, in an order in which all of them succeed.
    pub samples: &'a [Sample],
    /// Builds the routes, in an empty directory.
    pub build: &'a Build<'a>,
    /// A digest of everything that a handler could change.
    pub effects: &'a dyn Fn(&Path) -> Digest,
}

/// One thing that is wrong about a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attack {
    /// It shows no grant.
    NoGrant,
    /// What it shows is no grant.
    MalformedGrant,
    /// A grant that a stranger signed.
    StrangersGrant,
    /// A grant of another holder.
    GrantOfAnother,
    /// A grant for another key of its holder.
    OtherKey,
    /// A grant of another enrolment of its holder.
    OtherEpoch,
    /// A grant to be shown elsewhere.
    WrongAudience,
    /// A grant for every other action.
    ActionNotGranted,
    /// A grant whose time is over.
    Expired,
    /// A grant whose time has not begun.
    NotYetValid,
    /// A grant from after a revocation that the guard has not heard of.
    BehindRevision,
    /// A revoked grant.
    Revoked,
    /// A grant of a task that ended.
    TaskEnded,
    /// A grant of a revoked agent.
    AgentRevoked,
    /// Everything is killed.
    Killed,
    /// The guard has heard nothing for longer than its lease.
    LapsedLease,
    /// A guard that never heard anything.
    NeverHeard,
    /// A request about a later market day.
    LaterMarketDay,
    /// A request about another portfolio.
    OtherPortfolio,
    /// A request about another symbol.
    OtherSymbol,
}

impl Attack {
    /// Every one of them.
    pub const ALL: [Self; 20] = [
        Self::NoGrant,
        Self::MalformedGrant,
        Self::StrangersGrant,
        Self::GrantOfAnother,
        Self::OtherKey,
        Self::OtherEpoch,
        Self::WrongAudience,
        Self::ActionNotGranted,
        Self::Expired,
        Self::NotYetValid,
        Self::BehindRevision,
        Self::Revoked,
        Self::TaskEnded,
        Self::AgentRevoked,
        Self::Killed,
        Self::LapsedLease,
        Self::NeverHeard,
        Self::LaterMarketDay,
        Self::OtherPortfolio,
        Self::OtherSymbol,
    ];

    /// The word with which it is refused.
    #[must_use]
    pub fn reason(self) -> Reason {
        match self {
            Self::NoGrant => Reason::NoGrant,
            Self::MalformedGrant => Reason::MalformedGrant,
            Self::StrangersGrant => Reason::UnknownKey,
            Self::GrantOfAnother => Reason::WrongHolder,
            Self::OtherKey => Reason::WrongKey,
            Self::OtherEpoch => Reason::WrongEpoch,
            Self::WrongAudience => Reason::WrongAudience,
            Self::ActionNotGranted => Reason::WrongAction,
            Self::Expired => Reason::Expired,
            Self::NotYetValid => Reason::NotYetValid,
            Self::BehindRevision => Reason::BehindRevision,
            Self::Revoked => Reason::Revoked,
            Self::TaskEnded => Reason::TaskEnded,
            Self::AgentRevoked => Reason::AgentRevoked,
            Self::Killed => Reason::Killed,
            Self::LapsedLease | Self::NeverHeard => Reason::LeaseLapsed,
            Self::LaterMarketDay => Reason::LaterThanMarketDay,
            Self::OtherPortfolio => Reason::WrongPortfolio,
            Self::OtherSymbol => Reason::WrongSymbol,
        }
    }

    /// What the attacking request is about.
    fn about(self) -> About {
        let good = About::good();
        match self {
            Self::LaterMarketDay => About { day: "2005-03-17".into(), ..good },
            Self::OtherPortfolio => About { portfolio: "tech".into(), ..good },
            Self::OtherSymbol => About { symbol: "MSFT".into(), ..good },
            _ => good,
        }
    }

    /// Whether it can be made with this request: a route that carries no symbol cannot be asked about
    /// another.
    fn applies(self, sample: &Sample) -> bool {
        let about = self.about();
        about == About::good() || (sample.ask)(&about) != (sample.ask)(&About::good())
    }

    /// Changes the grant's claims.
    fn twist(self, claims: &mut Claims, needed: Action) {
        let now = unix_ms() / 1_000;
        match self {
            Self::GrantOfAnother => {
                claims.holder = SpiffeId::agent(TRUST_DOMAIN, "agent-9").unwrap().to_string()
            }
            Self::OtherKey => claims.holder_key = [77; 32],
            Self::OtherEpoch => claims.epoch += 1,
            Self::WrongAudience => {
                claims.audience =
                    *Audience::ALL.iter().find(|audience| **audience != claims.audience).unwrap();
            }
            Self::ActionNotGranted => {
                claims.actions = Action::ALL.iter().copied().filter(|action| *action != needed).collect();
            }
            Self::Expired => (claims.not_before, claims.expires) = (now - 300, now - 1),
            Self::NotYetValid => (claims.not_before, claims.expires) = (now + 60, now + 300),
            Self::BehindRevision => claims.revision = 2,
            _ => {}
        }
    }

    /// What the guard has heard, at 0 of its clock.
    fn heard(self, claims: &Claims) -> Option<FeedReply> {
        let struck = |kind, id: &str| {
            Some(FeedReply {
                head: 1,
                entries: vec![Revocation { revision: 1, kind, id: id.to_owned(), until: None }],
            })
        };
        match self {
            Self::Revoked => struck(RevocationKind::Grant, &claims.grant),
            Self::TaskEnded => struck(RevocationKind::Task, &claims.task),
            Self::AgentRevoked => {
                struck(RevocationKind::Agent, &format!("{}#{}", claims.holder, claims.epoch))
            }
            Self::Killed => struck(RevocationKind::Everything, "test"),
            Self::NeverHeard => None,
            _ => Some(FeedReply { head: 0, entries: Vec::new() }),
        }
    }
}

/// Claims of a good grant for one action.
#[must_use]
pub fn claims(audience: Audience, action: Action, peer: &Peer) -> Claims {
    let good = About::good();
    let now = unix_ms() / 1_000;
    Claims {
        grant: "00112233445566778899aabbccddeeff".into(),
        task: format!("{}/test/{}", good.day, good.portfolio),
        holder: peer.id.to_string(),
        epoch: peer.epoch,
        holder_key: peer.key,
        audience,
        actions: BTreeSet::from([action]),
        portfolio: Some(good.portfolio),
        symbols: BTreeSet::from([good.symbol]),
        sources: BTreeSet::new(),
        limits: Limits {
            notional: Some(1_000_000_000_000),
            order_notional: Some(1_000_000_000_000),
            orders: Some(1_000),
            rows: Some(1_000_000),
        },
        max_uses: 1_000_000,
        market_day: MarketDay::parse(&good.day).unwrap(),
        not_before: now - 10,
        expires: now + 300,
        policy: [4; 32],
        revision: 0,
    }
}

/// A grant as it is shown.
///
/// # Panics
/// When the claims are none that can be signed.
#[must_use]
pub fn signed(claims: &Claims, key: &SigningKey) -> String {
    mint(claims, key).unwrap().to_text()
}

/// A door whose guard has heard `heard` when its clock began, `ago` before now.
///
/// # Panics
/// When what it is to hear makes no sense.
#[must_use]
pub fn door(audience: Audience, heard: Option<&FeedReply>, ago: Duration) -> Arc<GrantDoor> {
    let mut guard =
        Guard::new(GuardConfig { audience, issuer_keys: vec![House::grant_key().verifying_key()] });
    if let Some(heard) = heard {
        guard.hear(0, heard).unwrap();
    }
    Arc::new(GrantDoor::started_at(guard, Instant::now().checked_sub(ago).unwrap()))
}

/// Renews the lease, as a guard does in a running system: on a slow machine it would lapse in the middle of a
/// test.
///
/// # Panics
/// When the guard does not believe it.
pub fn hear_on(door: &GrantDoor) {
    let now = door.mono_ms();
    let heard = door.with(|guard| {
        let nothing_new = FeedReply { head: guard.revision(), entries: Vec::new() };
        guard.hear(now, &nothing_new)
    });
    heard.unwrap().unwrap();
}

/// A peer of a class.
pub async fn peer_of(house: &House, class: PeerClass) -> Peer {
    let id = match class {
        PeerClass::Desk => SpiffeId::desk(TRUST_DOMAIN, 1),
        PeerClass::Management => SpiffeId::management(TRUST_DOMAIN),
        PeerClass::Operators => SpiffeId::operator(TRUST_DOMAIN, "owner"),
        PeerClass::Agents => SpiffeId::agent(TRUST_DOMAIN, "agent-1"),
        PeerClass::Market | PeerClass::News | PeerClass::Research | PeerClass::Ledger => {
            SpiffeId::unit(TRUST_DOMAIN, class.as_str(), 1)
        }
    };
    house.peer(&id.unwrap()).await
}

/// Sends one request through a real router, as this peer, and returns status and body.
///
/// # Panics
/// When the request cannot be built.
pub async fn send(
    router: &Router,
    peer: &Peer,
    method: &Method,
    path: &str,
    grant: Option<&str>,
    (query, body): &Asked,
) -> (u16, Vec<u8>) {
    let uri = if query.is_empty() { path.to_owned() } else { format!("{path}?{query}") };
    let mut request = Request::builder().method(method.clone()).uri(uri);
    if let Some(grant) = grant {
        request = request.header(GRANT_HEADER, grant);
    }
    let body = body.as_ref().map(Value::to_string).unwrap_or_default();
    let mut request = request.body(Body::from(body)).unwrap();
    request.extensions_mut().insert(peer.clone());
    let Ok(response) = TowerToHyperService::new(router.clone()).call(request).await;
    let status = response.status().as_u16();
    (status, to_bytes(response.into_body(), REPLY_BYTES_MAX).await.unwrap().to_vec())
}

/// What is wrong with a table of samples: routes that have none, and samples of no route.
#[must_use]
pub fn gaps(places: &[Place], samples: &[Sample]) -> Vec<String> {
    let has = |route: &RouteInfo, sample: &Sample| route.method == sample.method && route.path == sample.path;
    let routes: Vec<&RouteInfo> = places.iter().flat_map(|place| &place.table).collect();
    let mut gaps = Vec::new();
    for route in &routes {
        if !samples.iter().any(|sample| has(route, sample)) {
            gaps.push(format!(
                "the route {} {} has no sample: add one to the table of samples",
                route.method, route.path
            ));
        }
    }
    for sample in samples {
        if !routes.iter().any(|route| has(route, sample)) {
            gaps.push(format!("there is no route {} {}: take its sample away", sample.method, sample.path));
        }
    }
    gaps
}

/// Every record of the journal in a directory.
///
/// # Panics
/// When it cannot be read.
#[must_use]
pub fn records(directory: &Path) -> Vec<Record> {
    read_entries(directory, PROCESS).unwrap().into_iter().map(|entry| entry.record).collect()
}

/// A subject built in a directory of its own.
struct Built {
    directory: tempfile::TempDir,
    places: Vec<(Place, Peer)>,
}

impl Subject<'_> {
    fn built(&self, peers: &[Peer], door: &Arc<GrantDoor>) -> Built {
        let directory = tempfile::tempdir().unwrap();
        let journal = Journal::open(directory.path(), PROCESS).unwrap();
        let places = (self.build)(directory.path(), door, &journal);
        let gaps = gaps(&places, self.samples);
        assert!(gaps.is_empty(), "{}: {}", self.audience, gaps.join("; "));
        let of = |class| peers.iter().find(|peer| peer.class == class).unwrap().clone();
        let places =
            places.into_iter().map(|place| (of(place.class), place)).map(|(peer, place)| (place, peer));
        Built { directory, places: places.collect() }
    }
}

impl Built {
    /// Every sample with every place that has its route, in the order of the samples.
    fn cases<'b>(
        &'b self,
        samples: &'b [Sample],
    ) -> impl Iterator<Item = (&'b Sample, &'b Place, &'b Peer, Action)> {
        samples.iter().flat_map(move |sample| {
            self.places.iter().filter_map(move |(place, peer)| {
                let mut routes = place.table.iter();
                let route =
                    routes.find(|route| route.method == sample.method && route.path == sample.path)?;
                match route.needs {
                    Needs::Grant(action) => Some((sample, place, peer, action)),
                    other => panic!("{} {} needs {other:?}, which is no grant", sample.method, sample.path),
                }
            })
        })
    }
}

/// Asserts that one decision, and nothing else, was journalled since `before` records.
fn assert_decided(
    directory: &Path,
    before: usize,
    what: &str,
    (action, peer): (Action, &Peer),
    expected: (bool, &str),
) {
    let records = records(directory);
    let new: Vec<&Record> = records.iter().skip(before).collect();
    let Some(Record::Decision { action: decided, peer: of, allowed, reason, .. }) = new.first() else {
        panic!("{what}: no decision was journalled but {new:?}");
    };
    assert_eq!((decided.as_str(), of.as_str()), (action.as_str(), peer.id.as_str()), "{what}");
    assert_eq!((*allowed, reason.as_str()), expected, "{what}");
    assert!(expected.0 || new.len() == 1, "{what}: a refusal left more than its decision: {new:?}");
}

/// Tries every attack on every route. Returns how many were tried.
///
/// # Panics
/// At the first route that does not refuse, or refuses for another reason, or does something all the same.
pub async fn every_attack_is_refused(subject: &Subject<'_>, house: &House) -> usize {
    let peers = [peer_of(house, PeerClass::Agents).await, peer_of(house, PeerClass::Desk).await];
    let stranger = SigningKey::from_seed(&[99; 32]);
    let mut tried = 0;
    for attack in Attack::ALL {
        // Revocations name the holder, so each class of peers gets a guard of its own.
        for class in [PeerClass::Agents, PeerClass::Desk] {
            let peer = peers.iter().find(|peer| peer.class == class).unwrap();
            let heard = attack.heard(&claims(subject.audience, Action::ReadBars, peer));
            let ago = match attack {
                Attack::LapsedLease => Duration::from_millis(LEASE_MS),
                _ => Duration::ZERO,
            };
            let door = door(subject.audience, heard.as_ref(), ago);
            let built = subject.built(&peers, &door);
            let directory = built.directory.path();
            for (sample, place, peer, action) in built.cases(subject.samples) {
                if place.class != class || !attack.applies(sample) {
                    continue;
                }
                let what = format!(
                    "{} for {}: {} {}: {attack:?}",
                    subject.audience, class, sample.method, sample.path
                );
                if !matches!(attack, Attack::LapsedLease | Attack::NeverHeard) {
                    hear_on(&door);
                }
                let mut claims = claims(subject.audience, action, peer);
                attack.twist(&mut claims, action);
                let grant = match attack {
                    Attack::NoGrant => None,
                    Attack::MalformedGrant => Some("dGhpcyBpcyBubyBncmFudA".to_owned()),
                    Attack::StrangersGrant => Some(signed(&claims, &stranger)),
                    _ => Some(signed(&claims, &House::grant_key())),
                };
                let (effects, before) = ((subject.effects)(directory), records(directory).len());
                let asked = (sample.ask)(&attack.about());
                let (status, body) =
                    send(&place.router, peer, &sample.method, sample.path, grant.as_deref(), &asked).await;
                let problem = Problem::parse(status, &body);
                let reason = attack.reason();
                assert_eq!((status, problem.code.as_str()), (403, reason.as_str()), "{what}: {problem}");
                assert_eq!(problem.retryable, reason.retryable(), "{what}");
                assert_eq!((subject.effects)(directory), effects, "{what}: something was done");
                assert_decided(directory, before, &what, (action, peer), (false, reason.as_str()));
                tried += 1;
            }
        }
    }
    tried
}

/// Sends the good request of every route. Without it the refusals would prove nothing.
///
/// # Panics
/// At the first route that refuses.
pub async fn every_good_request_is_allowed(subject: &Subject<'_>, house: &House) {
    let peers = [peer_of(house, PeerClass::Agents).await, peer_of(house, PeerClass::Desk).await];
    let heard = FeedReply { head: 0, entries: Vec::new() };
    let door = door(subject.audience, Some(&heard), Duration::ZERO);
    let built = subject.built(&peers, &door);
    for (number, (sample, place, peer, action)) in built.cases(subject.samples).enumerate() {
        hear_on(&door);
        let what = format!("{} for {}: {} {}", subject.audience, place.class, sample.method, sample.path);
        let mut claims = claims(subject.audience, action, peer);
        claims.grant = format!("{number:032x}");
        let grant = signed(&claims, &House::grant_key());
        let before = records(built.directory.path()).len();
        let asked = (sample.ask)(&About::good());
        let (status, body) =
            send(&place.router, peer, &sample.method, sample.path, Some(&grant), &asked).await;
        assert_eq!(status, 200, "{what}: {}", String::from_utf8_lossy(&body));
        assert_decided(built.directory.path(), before, &what, (action, peer), (true, "granted"));
    }
}
