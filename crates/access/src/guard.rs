//! The guard: decides on every request in front of a unit or of the desk.
//!
//! Owns: the order of the checks, the local index of revocations, the lease, the cache of verified grants and
//! the counters of what each grant has used up. It refuses to know sockets, clocks and journals; the caller
//! hands it the time and journals the decision before it acts on it.
//!
//! INVARIANT: without a fresh lease nothing is allowed, whatever the grant says.
//! INVARIANT: a [`Permit`] is made here only, by a decision in which every check passed.
//!
//! The counters live as long as the guard. A guard that starts again counts from zero, and each guard counts
//! for itself; so the desk keeps order counters of its own in its durable state, and a grant for orders is
//! never spread over guards.
//! Where to read next: [`crate::revocation`] for the proof that a lapsed lease and a settled revocation fit
//! together.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use keys::{Digest, VerifyingKey};

use crate::danger::{Defence, Switches};
use crate::grant::{GRANT_TEXT_MAX, GrantError, SignedGrant, VerifiedGrant, verify_with};
use crate::revocation::{ENTRIES_MAX, FeedReply, LEASE_MS, agent_id, check_id, cleared_revision};
use crate::vocabulary::{Action, Audience, Claims, Limits, MarketDay, Revocation, RevocationKind, words};

/// Longest life of a grant, in seconds.
pub const LIFETIME_MAX_S: i64 = 900;
/// Most verified grants kept for being shown again.
pub const CACHE_MAX: usize = 4_096;
/// Most grants whose use is counted at a time; a further one is denied, for forgetting a counter would refill
/// it.
pub const COUNTERS_MAX: usize = 65_536;

/// After how many decisions what has expired is swept out.
const SWEEP_EVERY: u32 = 1_024;
/// How long after its end something is still remembered, in seconds.
const MEMORY_S: i64 = LIFETIME_MAX_S;

words! {
    /// Why a guard refuses. The words are stable: people, scripts and the sentinel go by them.
    Reason {
        /// The guard has not heard the revocation feed for as long as its lease.
        LeaseLapsed = "lease_lapsed",
        /// The request carries no grant.
        NoGrant = "no_grant",
        /// What it carries is no grant.
        MalformedGrant = "malformed_grant",
        /// The grant names a signing key that is not known.
        UnknownKey = "unknown_key",
        /// The grant's signature does not verify.
        BadSignature = "bad_signature",
        /// The grant is another's.
        WrongHolder = "wrong_holder",
        /// The grant is for another key of its holder.
        WrongKey = "wrong_key",
        /// The grant is of another enrolment of its holder.
        WrongEpoch = "wrong_epoch",
        /// The grant is to be shown elsewhere.
        WrongAudience = "wrong_audience",
        /// The grant's time has not begun.
        NotYetValid = "not_yet_valid",
        /// The grant's time is over.
        Expired = "expired",
        /// The grant was made to live longer than any grant may.
        LifetimeTooLong = "lifetime_too_long",
        /// The guard has not heard all that was revoked when the grant was issued.
        BehindRevision = "behind_revision",
        /// Everything is stopped.
        Killed = "killed",
        /// The grant is revoked.
        Revoked = "revoked",
        /// The grant's task has ended.
        TaskEnded = "task_ended",
        /// The grant's holder is revoked.
        AgentRevoked = "agent_revoked",
        /// The peer came with a key that its holder has replaced: whoever uses it has stolen it.
        KeyRetired = "key_retired",
        /// The grant is not for this action.
        WrongAction = "wrong_action",
        /// The grant is not for this portfolio, or the request doesn't say which it is about.
        WrongPortfolio = "wrong_portfolio",
        /// The grant is not for one of these symbols, or the request doesn't say which they are.
        WrongSymbol = "wrong_symbol",
        /// The request is about a later market day than the grant is for.
        LaterThanMarketDay = "later_than_market_day",
        /// The request writes for another market day than the grant's, or doesn't say for which.
        WrongMarketDay = "wrong_market_day",
        /// The request's cost makes no sense for its action.
        BadCost = "bad_cost",
        /// One order's notional is above the limit for one.
        OrderTooLarge = "order_too_large",
        /// The grant has been used as often as it may.
        UsesExhausted = "uses_exhausted",
        /// The grant's rows are used up.
        RowsExhausted = "rows_exhausted",
        /// The grant's orders are used up.
        OrdersExhausted = "orders_exhausted",
        /// The grant's notional is used up.
        NotionalExhausted = "notional_exhausted",
        /// The guard counts as many grants as it can.
        TooManyGrants = "too_many_grants",
    }
}

impl Reason {
    /// Whether the same request may be allowed a moment later, without anything being changed about it.
    #[must_use]
    pub fn retryable(self) -> bool {
        matches!(self, Reason::LeaseLapsed | Reason::BehindRevision)
    }
}

/// What a guard is made for.
#[derive(Debug, Clone)]
pub struct GuardConfig {
    /// Whom grants must be meant for.
    pub audience: Audience,
    /// The keys that management signs grants with. With none, everything is denied.
    pub issuer_keys: Vec<VerifyingKey>,
}

/// The moment of a request. Read both clocks after the guard is at hand: after waiting for its lock, not
/// before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// Seconds since the Unix epoch.
    pub unix: i64,
    /// Milliseconds of the process's monotonic clock, the one that [`Guard::hear`] is told.
    pub mono_ms: u64,
}

/// What a request uses up.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Cost {
    /// Rows read or written, as far as known before; see [`Guard::charge_rows`] for the others.
    pub rows: u64,
    /// Orders placed.
    pub orders: u32,
    /// Notional of the orders together, in millionths of a dollar.
    pub notional: i64,
}

/// What is asked of the guard. Everything about the peer comes from the TLS handshake, never from the
/// request.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// The grant shown, as unpadded base64url.
    pub grant: Option<&'a str>,
    /// SPIFFE ID of the peer's certificate.
    pub peer_id: &'a str,
    /// Epoch of the peer's certificate.
    pub peer_epoch: u32,
    /// SHA-256 of the peer's TLS public key.
    pub peer_key: &'a [u8; 32],
    /// What it wants to do.
    pub action: Action,
    /// Portfolio that it concerns.
    pub portfolio: Option<&'a str>,
    /// Symbols that it names. A read that names none is served those of [`Permit::symbols`].
    pub symbols: &'a [&'a str],
    /// Latest market day that it concerns. A read that names none is served up to [`Permit::market_day`].
    pub market_day: Option<MarketDay>,
    /// What it uses up.
    pub cost: Cost,
}

/// The guard's answer.
#[derive(Debug)]
#[must_use]
pub enum Decision {
    /// Go on, within the permit.
    Allow(Permit),
    /// Refused.
    Deny(Denial),
}

/// Proof that a guard allowed one request. What may be touched is read from here, not from the request.
#[derive(Debug)]
pub struct Permit {
    grant: Arc<VerifiedGrant>,
    action: Action,
    rows_left: u64,
}

impl Permit {
    /// The grant's identifier.
    #[must_use]
    pub fn grant(&self) -> &str {
        &self.claims().grant
    }

    /// SHA-256 of the signed grant.
    #[must_use]
    pub fn grant_digest(&self) -> Digest {
        self.grant.digest()
    }

    /// The task that is the grant's reason.
    #[must_use]
    pub fn task(&self) -> &str {
        &self.claims().task
    }

    /// SPIFFE ID of the holder, who is the peer.
    #[must_use]
    pub fn holder(&self) -> &str {
        &self.claims().holder
    }

    /// The action that was allowed.
    #[must_use]
    pub fn action(&self) -> Action {
        self.action
    }

    /// The last market day that may be served or accepted.
    #[must_use]
    pub fn market_day(&self) -> MarketDay {
        self.claims().market_day
    }

    /// The one portfolio.
    #[must_use]
    pub fn portfolio(&self) -> Option<&str> {
        self.claims().portfolio.as_deref()
    }

    /// The symbols, in order.
    pub fn symbols(&self) -> impl Iterator<Item = &str> {
        self.claims().symbols.iter().map(String::as_str)
    }

    /// Whether a symbol is among them.
    #[must_use]
    pub fn covers_symbol(&self, symbol: &str) -> bool {
        self.claims().symbols.contains(symbol)
    }

    /// The outside sources, in order.
    pub fn sources(&self) -> impl Iterator<Item = &str> {
        self.claims().sources.iter().map(String::as_str)
    }

    /// The limits of the whole grant, not what is left of them.
    #[must_use]
    pub fn limits(&self) -> Limits {
        self.claims().limits
    }

    /// How many more rows the grant gave when this request was allowed, its own cost taken off.
    #[must_use]
    pub fn rows_left(&self) -> u64 {
        self.rows_left
    }

    fn claims(&self) -> &Claims {
        self.grant.claims()
    }
}

/// Why a request was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Denial {
    /// The reason, a stable word.
    pub reason: Reason,
    /// The reason for a person, with the values that differ.
    pub detail: String,
    /// The grant's identifier, where a verified grant was shown.
    pub grant: Option<String>,
    /// The grant's task, where a verified grant was shown.
    pub task: Option<String>,
}

impl Denial {
    fn new(reason: Reason, detail: impl Into<String>) -> Self {
        Self { reason, detail: detail.into(), grant: None, task: None }
    }

    fn of(mut self, claims: &Claims) -> Self {
        self.grant = Some(claims.grant.clone());
        self.task = Some(claims.task.clone());
        self
    }
}

/// Why a reply of the feed was not believed. Each deserves an alarm, except [`HearError::OutOfDate`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HearError {
    /// The reply belongs to a poll sent before the one last heard. It changes nothing.
    #[error("the reply is to an older poll than the one heard last")]
    OutOfDate,
    /// The log ends before what was already heard: it was rolled back. The guard stays closed until its
    /// process starts again and hears everything anew.
    #[error("the log was rolled back from revision {known} to {head}; the guard stays closed")]
    RolledBack {
        /// What the guard had heard.
        known: u64,
        /// What the feed now calls its end.
        head: u64,
    },
    /// The entries are not in order, not new, or beyond the head; or one names nothing. The lease isn't
    /// renewed.
    #[error("the feed's reply makes no sense at revision {revision}")]
    Malformed {
        /// Where.
        revision: u64,
    },
    /// More entries than a reply may have.
    #[error("a reply has at most {ENTRIES_MAX} entries")]
    TooMany,
}

/// What has been revoked, as far as it was heard.
#[derive(Debug, Default)]
struct Index {
    /// Grants and tasks with the time after which they may be forgotten, in seconds since the Unix epoch.
    grants: HashMap<String, Option<i64>>,
    tasks: HashMap<String, Option<i64>>,
    /// Holders with the last epoch that is struck.
    agents: HashMap<String, (u32, Option<i64>)>,
    /// TLS keys that were replaced.
    keys: HashMap<[u8; 32], Option<i64>>,
    /// The last revision that stopped everything.
    killed: Option<u64>,
}

impl Index {
    fn apply(&mut self, entry: &Revocation) {
        match entry.kind {
            RevocationKind::Grant => strike(&mut self.grants, &entry.id, entry.until),
            RevocationKind::Task => strike(&mut self.tasks, &entry.id, entry.until),
            RevocationKind::Agent => {
                if let Some((holder, epoch)) = agent_id(&entry.id) {
                    let struck = self.agents.entry(holder.to_owned()).or_insert((epoch, entry.until));
                    *struck = (struck.0.max(epoch), later(struck.1, entry.until));
                }
            }
            RevocationKind::Key => {
                if let Ok(key) = keys::from_hex::<32>(&entry.id) {
                    let struck = self.keys.entry(key).or_insert(entry.until);
                    *struck = later(*struck, entry.until);
                }
            }
            RevocationKind::Everything => self.killed = Some(entry.revision),
            RevocationKind::Clearance => {
                let cleared = cleared_revision(&entry.id).unwrap_or(0);
                self.killed = self.killed.filter(|killed| *killed > cleared);
            }
        }
    }

    fn sweep(&mut self, now_unix: i64) {
        let keep = |until: Option<i64>| until.is_none_or(|until| until.saturating_add(MEMORY_S) >= now_unix);
        self.grants.retain(|_, until| keep(*until));
        self.tasks.retain(|_, until| keep(*until));
        self.agents.retain(|_, (_, until)| keep(*until));
        self.keys.retain(|_, until| keep(*until));
    }
}

fn strike(struck: &mut HashMap<String, Option<i64>>, id: &str, until: Option<i64>) {
    let kept = struck.entry(id.to_owned()).or_insert(until);
    *kept = later(*kept, until);
}

/// The later of two ends; `None` is for ever.
fn later(left: Option<i64>, right: Option<i64>) -> Option<i64> {
    Some(left?.max(right?))
}

/// What a grant has used up at this guard.
#[derive(Debug, Clone, Copy)]
struct Used {
    uses: u32,
    rows: u64,
    orders: u32,
    notional: i64,
    expires: i64,
}

impl Used {
    fn nothing(claims: &Claims) -> Self {
        Self { uses: 0, rows: 0, orders: 0, notional: 0, expires: claims.expires }
    }
}

/// The policy enforcement point of one process. Deny is its default; see the module's text for what it
/// checks.
pub struct Guard {
    config: GuardConfig,
    index: Index,
    /// The last revision heard.
    revision: u64,
    /// When the poll that was answered last was sent, in monotonic milliseconds.
    lease_ms: Option<u64>,
    /// A rollback was seen: closed for as long as the process lives.
    rolled_back: bool,
    /// The latest times seen: neither clock goes back for this guard.
    latest: Now,
    cache: HashMap<Digest, Arc<VerifiedGrant>>,
    cache_order: VecDeque<Digest>,
    used: HashMap<String, Used>,
    decisions: u32,
    switches: Switches,
}

impl Guard {
    /// A guard that has heard nothing yet and so denies everything.
    #[must_use]
    pub fn new(config: GuardConfig) -> Self {
        Self {
            config,
            index: Index::default(),
            revision: 0,
            lease_ms: None,
            rolled_back: false,
            latest: Now { unix: i64::MIN, mono_ms: 0 },
            cache: HashMap::new(),
            cache_order: VecDeque::new(),
            used: HashMap::new(),
            decisions: 0,
            switches: Switches::default(),
        }
    }

    /// The last revision heard, which the next poll acknowledges.
    #[must_use]
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// Whether everything is stopped, as far as heard.
    #[must_use]
    pub fn is_killed(&self) -> bool {
        self.index.killed.is_some()
    }

    /// Hears a reply of the revocation feed: first enforces what it says, then renews the lease.
    ///
    /// `sent_at_ms` is when the poll that it answers was *sent*, in monotonic milliseconds: the lease runs
    /// from there, so that a reply that was long under way is worth less, not more.
    ///
    /// # Errors
    /// [`HearError`]; the lease is then not renewed and runs out.
    pub fn hear(&mut self, sent_at_ms: u64, reply: &FeedReply) -> Result<(), HearError> {
        if self.lease_ms.is_some_and(|lease_ms| sent_at_ms < lease_ms) {
            return Err(HearError::OutOfDate);
        }
        if self.switches.on(Defence::Rollback) && (self.rolled_back || reply.head < self.revision) {
            self.rolled_back = true;
            return Err(HearError::RolledBack { known: self.revision, head: reply.head });
        }
        if reply.entries.len() > ENTRIES_MAX {
            return Err(HearError::TooMany);
        }
        let mut last = self.revision;
        for entry in &reply.entries {
            let in_order = entry.revision > last && entry.revision <= reply.head;
            if !in_order || check_id(entry.kind, &entry.id).is_err() {
                return Err(HearError::Malformed { revision: entry.revision });
            }
            last = entry.revision;
        }
        reply.entries.iter().for_each(|entry| self.index.apply(entry));
        assert!(last <= reply.head.max(self.revision), "no entry lies beyond the head");
        self.revision = self.revision.max(reply.head);
        self.lease_ms = Some(sent_at_ms);
        Ok(())
    }

    /// Decides on a request, and counts it when it is allowed. Nothing is counted for a request that is
    /// refused.
    pub fn decide(&mut self, now: Now, request: &Request<'_>) -> Decision {
        let now = self.advance(now);
        let grant = match self.admit(now, request) {
            Ok(grant) => grant,
            Err(denial) => return Decision::Deny(denial),
        };
        let verdict =
            self.examine(now, request, grant.claims()).and_then(|()| self.spend(request, grant.claims()));
        match verdict {
            Ok(rows_left) => Decision::Allow(Permit { grant, action: request.action, rows_left }),
            Err(denial) => Decision::Deny(denial.of(grant.claims())),
        }
    }

    /// Whether a request that was allowed may go on: asked for each batch of a long answer, so that a
    /// revocation cuts it.
    ///
    /// # Errors
    /// The [`Denial`] with which to cut it.
    pub fn recheck(&mut self, now: Now, permit: &Permit) -> Result<(), Denial> {
        let now = self.advance(now);
        let claims = permit.claims();
        self.lease(now)
            .and_then(|()| self.in_time(now, claims))
            .and_then(|()| self.unrevoked(claims))
            .map_err(|denial| denial.of(claims))
    }

    /// Counts rows that a request turned out to have, beyond those in its cost.
    ///
    /// # Errors
    /// [`Reason::RowsExhausted`] when the grant does not give that many: they must not be served. Nothing is
    /// counted then.
    pub fn charge_rows(&mut self, permit: &Permit, rows: u64) -> Result<(), Denial> {
        let claims = permit.claims();
        // A counter that is gone is of a grant long expired.
        let used = self.used.get_mut(&claims.grant);
        let used = used.ok_or_else(|| Denial::new(Reason::Expired, "the grant has expired").of(claims))?;
        used.rows = self.switches.rows(used.rows, rows, claims.limits).map_err(|denial| denial.of(claims))?;
        Ok(())
    }

    /// Takes note of the time. A clock that goes back does not bring back what has expired or lapsed.
    fn advance(&mut self, now: Now) -> Now {
        self.latest.unix = self.latest.unix.max(now.unix);
        self.latest.mono_ms = self.latest.mono_ms.max(now.mono_ms);
        self.decisions = self.decisions.wrapping_add(1);
        if self.decisions.is_multiple_of(SWEEP_EVERY) {
            self.sweep();
        }
        Now { unix: now.unix, mono_ms: self.latest.mono_ms }
    }

    /// Forgets what has long expired.
    fn sweep(&mut self) {
        let now = self.latest.unix;
        self.index.sweep(now);
        self.used.retain(|_, used| used.expires.saturating_add(MEMORY_S) >= now);
        self.cache.retain(|_, grant| grant.claims().expires > now);
        self.cache_order.retain(|digest| self.cache.contains_key(digest));
    }

    /// Lease and grant: what needs to hold before there are any claims to speak of.
    fn admit(&mut self, now: Now, request: &Request<'_>) -> Result<Arc<VerifiedGrant>, Denial> {
        self.lease(now)?;
        self.key_in_use(request.peer_key)?;
        match request.grant {
            Some(text) => self.verified(text),
            None => Err(Denial::new(Reason::NoGrant, "the request carries no grant")),
        }
    }

    /// A key that was replaced opens nothing, whatever is shown with it.
    fn key_in_use(&self, key: &[u8; 32]) -> Result<(), Denial> {
        if self.switches.on(Defence::KeyRevocation) && self.index.keys.contains_key(key) {
            return Err(Denial::new(Reason::KeyRetired, "the peer's key was replaced by a new one"));
        }
        Ok(())
    }

    fn lease(&self, now: Now) -> Result<(), Denial> {
        if !self.switches.on(Defence::Lease) {
            return Ok(());
        }
        let Some(lease_ms) = self.lease_ms.filter(|_| !self.rolled_back) else {
            return Err(Denial::new(Reason::LeaseLapsed, "the guard has no lease of the revocation feed"));
        };
        let age_ms = now.mono_ms.saturating_sub(lease_ms);
        if age_ms < LEASE_MS {
            return Ok(());
        }
        Err(Denial::new(Reason::LeaseLapsed, format!("the revocation feed was last heard {age_ms} ms ago")))
    }

    /// The verified grant that belongs to a text: from the cache, whose key is the digest of the whole text,
    /// or by verifying it now. Only what depends on the text and the issuer's keys alone is remembered.
    fn verified(&mut self, text: &str) -> Result<Arc<VerifiedGrant>, Denial> {
        if text.len() > GRANT_TEXT_MAX {
            return Err(refused(&GrantError::TooLong));
        }
        let digest = Digest::of(text.as_bytes());
        if let Some(grant) = self.cache.get(&digest) {
            return Ok(Arc::clone(grant));
        }
        let signed = SignedGrant::from_text(text).map_err(|error| refused(&error))?;
        let grant = verify_with(signed.bytes(), &self.config.issuer_keys, self.switches);
        let grant = Arc::new(grant.map_err(|error| refused(&error))?);
        while self.cache.len() >= CACHE_MAX {
            let Some(oldest) = self.cache_order.pop_front() else { break };
            self.cache.remove(&oldest);
        }
        self.cache.insert(digest, Arc::clone(&grant));
        self.cache_order.push_back(digest);
        assert!(
            self.cache.len() <= CACHE_MAX && self.cache.len() == self.cache_order.len(),
            "the cache is bounded"
        );
        Ok(grant)
    }

    /// Every check that counts nothing, in a fixed order: who, where, when, whether revoked, what.
    fn examine(&self, now: Now, request: &Request<'_>, claims: &Claims) -> Result<(), Denial> {
        self.held_by_peer(request, claims)?;
        if self.switches.on(Defence::Audience) && claims.audience != self.config.audience {
            let detail = format!("the grant is for {}, this is {}", claims.audience, self.config.audience);
            return Err(Denial::new(Reason::WrongAudience, detail));
        }
        self.in_time(now, claims)?;
        if self.switches.on(Defence::Revision) && claims.revision > self.revision {
            let detail = format!("revision {} is heard, the grant is of {}", self.revision, claims.revision);
            return Err(Denial::new(Reason::BehindRevision, detail));
        }
        self.unrevoked(claims)?;
        self.covers(request, claims)?;
        self.covers_market_day(request, claims)
    }

    fn held_by_peer(&self, request: &Request<'_>, claims: &Claims) -> Result<(), Denial> {
        if self.switches.on(Defence::Holder) && claims.holder != request.peer_id {
            let detail = format!("the grant is held by {}, the peer is {}", claims.holder, request.peer_id);
            return Err(Denial::new(Reason::WrongHolder, detail));
        }
        if self.switches.on(Defence::Key) && claims.holder_key != *request.peer_key {
            return Err(Denial::new(Reason::WrongKey, "the grant is bound to another key of its holder"));
        }
        if self.switches.on(Defence::Epoch) && claims.epoch != request.peer_epoch {
            let detail =
                format!("the grant is of epoch {}, the peer of {}", claims.epoch, request.peer_epoch);
            return Err(Denial::new(Reason::WrongEpoch, detail));
        }
        Ok(())
    }

    fn in_time(&self, now: Now, claims: &Claims) -> Result<(), Denial> {
        if self.switches.on(Defence::NotBefore) && now.unix < claims.not_before {
            let detail = format!("valid from {}, it is {}", claims.not_before, now.unix);
            return Err(Denial::new(Reason::NotYetValid, detail));
        }
        if self.switches.on(Defence::Expiry) && self.latest.unix >= claims.expires {
            let detail = format!("expired at {}, it is {}", claims.expires, self.latest.unix);
            return Err(Denial::new(Reason::Expired, detail));
        }
        let lifetime_s = claims.expires.saturating_sub(claims.not_before);
        if self.switches.on(Defence::Lifetime) && lifetime_s > LIFETIME_MAX_S {
            let detail = format!("it lives {lifetime_s} s, {LIFETIME_MAX_S} s is the most");
            return Err(Denial::new(Reason::LifetimeTooLong, detail));
        }
        Ok(())
    }

    fn unrevoked(&self, claims: &Claims) -> Result<(), Denial> {
        let struck_epoch = self.index.agents.get(&claims.holder).map(|(epoch, _)| *epoch);
        if self.switches.on(Defence::KillSwitch) && self.index.killed.is_some() {
            return Err(Denial::new(Reason::Killed, "everything is stopped until two people clear it"));
        }
        if self.switches.on(Defence::GrantRevocation) && self.index.grants.contains_key(&claims.grant) {
            return Err(Denial::new(Reason::Revoked, format!("grant {} is revoked", claims.grant)));
        }
        if self.switches.on(Defence::TaskRevocation) && self.index.tasks.contains_key(&claims.task) {
            return Err(Denial::new(Reason::TaskEnded, format!("task {} has ended", claims.task)));
        }
        if self.switches.on(Defence::AgentRevocation)
            && struck_epoch.is_some_and(|epoch| claims.epoch <= epoch)
        {
            return Err(Denial::new(Reason::AgentRevoked, format!("{} is revoked", claims.holder)));
        }
        self.key_in_use(&claims.holder_key)
    }

    fn covers(&self, request: &Request<'_>, claims: &Claims) -> Result<(), Denial> {
        if self.switches.on(Defence::Action) && !claims.actions.contains(&request.action) {
            return Err(Denial::new(Reason::WrongAction, format!("the grant is not for {}", request.action)));
        }
        let portfolio_fits = match request.portfolio {
            Some(portfolio) => claims.portfolio.as_deref() == Some(portfolio),
            None => !scope(request.action).names_portfolio,
        };
        if self.switches.on(Defence::Portfolio) && !portfolio_fits {
            let asked = request.portfolio.unwrap_or("none");
            return Err(Denial::new(
                Reason::WrongPortfolio,
                format!("the grant is not for portfolio {asked}"),
            ));
        }
        if self.switches.on(Defence::Symbols) {
            if request.symbols.is_empty() && scope(request.action).names_symbols {
                return Err(Denial::new(Reason::WrongSymbol, "the request names no symbol"));
            }
            if let Some(symbol) = request.symbols.iter().find(|symbol| !claims.symbols.contains(**symbol)) {
                return Err(Denial::new(
                    Reason::WrongSymbol,
                    format!("the grant is not for symbol {symbol}"),
                ));
            }
        }
        Ok(())
    }

    fn covers_market_day(&self, request: &Request<'_>, claims: &Claims) -> Result<(), Denial> {
        let later = request.market_day.is_some_and(|day| day > claims.market_day);
        if self.switches.on(Defence::MarketDay) && later {
            let detail = format!("the grant ends with market day {}", claims.market_day);
            return Err(Denial::new(Reason::LaterThanMarketDay, detail));
        }
        let fits = match scope(request.action).market_day {
            DayRule::UpTo => true,
            DayRule::NamedUpTo => request.market_day.is_some(),
            // A later day is the check above's to refuse.
            DayRule::Exactly => request.market_day.is_some_and(|day| day >= claims.market_day),
        };
        if self.switches.on(Defence::MarketDayOfWrites) && !fits {
            let detail = format!("{} needs the grant's market day, {}", request.action, claims.market_day);
            return Err(Denial::new(Reason::WrongMarketDay, detail));
        }
        Ok(())
    }

    /// Takes the cost off the grant: all of it or nothing. Answers how many rows are left.
    fn spend(&mut self, request: &Request<'_>, claims: &Claims) -> Result<u64, Denial> {
        if self.used.len() >= COUNTERS_MAX && !self.used.contains_key(&claims.grant) {
            self.sweep();
            if self.used.len() >= COUNTERS_MAX {
                return Err(Denial::new(Reason::TooManyGrants, "the guard counts as many grants as it can"));
            }
        }
        let before = self.used.get(&claims.grant).copied().unwrap_or(Used::nothing(claims));
        let after = self.switches.spent(before, request, claims)?;
        assert!(after.uses > before.uses || after.uses == u32::MAX, "an allowed request is counted");
        self.used.insert(claims.grant.clone(), after);
        Ok(claims.limits.rows.unwrap_or(0).saturating_sub(after.rows))
    }
}

/// The arithmetic of the counters: checked, and without any effect of its own.
impl Switches {
    fn spent(self, used: Used, request: &Request<'_>, claims: &Claims) -> Result<Used, Denial> {
        let (cost, limits) = (request.cost, claims.limits);
        let is_order = request.action == Action::PlaceOrders;
        let sensible = if is_order {
            cost.orders > 0 && cost.notional > 0
        } else {
            cost.orders == 0 && cost.notional == 0
        };
        if self.on(Defence::OrderCost) && !sensible {
            let detail =
                format!("{} orders of {} make no sense for {}", cost.orders, cost.notional, request.action);
            return Err(Denial::new(Reason::BadCost, detail));
        }
        // Several orders in one request are held to the limit for one: their sizes are not known apart.
        let order_limit = limits.order_notional.unwrap_or(0);
        if self.on(Defence::OrderSize) && cost.notional > order_limit {
            let detail = format!("notional {} is above {order_limit} for one order", cost.notional);
            return Err(Denial::new(Reason::OrderTooLarge, detail));
        }
        let uses =
            used.uses.checked_add(1).filter(|uses| *uses <= claims.max_uses || !self.on(Defence::Uses));
        let uses = uses.ok_or_else(|| exhausted(Reason::UsesExhausted, claims.max_uses))?;
        let rows = self.rows(used.rows, cost.rows, limits)?;
        let limit = limits.orders.unwrap_or(0);
        let orders =
            used.orders.checked_add(cost.orders).filter(|sum| *sum <= limit || !self.on(Defence::Orders));
        let orders = orders.ok_or_else(|| exhausted(Reason::OrdersExhausted, limit))?;
        let limit = limits.notional.unwrap_or(0);
        let notional = used.notional.checked_add(cost.notional);
        let notional = notional.filter(|sum| *sum <= limit || !self.on(Defence::Notional));
        let notional = notional.ok_or_else(|| exhausted(Reason::NotionalExhausted, limit))?;
        Ok(Used { uses, rows, orders, notional, expires: used.expires })
    }

    fn rows(self, used: u64, more: u64, limits: Limits) -> Result<u64, Denial> {
        let limit = limits.rows.unwrap_or(0);
        let rows = used.checked_add(more).filter(|sum| *sum <= limit || !self.on(Defence::Rows));
        rows.ok_or_else(|| exhausted(Reason::RowsExhausted, limit))
    }
}

fn exhausted(reason: Reason, limit: impl std::fmt::Display) -> Denial {
    Denial::new(reason, format!("the grant gives {limit} in all"))
}

fn refused(error: &GrantError) -> Denial {
    let reason = match error {
        GrantError::UnknownKey => Reason::UnknownKey,
        GrantError::Signature => Reason::BadSignature,
        GrantError::TooLong
        | GrantError::Text
        | GrantError::Envelope
        | GrantError::Algorithm
        | GrantError::ContentType
        | GrantError::UnknownClaim
        | GrantError::Missing(_)
        | GrantError::Claim(_)
        | GrantError::Encoding
        | GrantError::Signer(_) => Reason::MalformedGrant,
    };
    Denial::new(reason, error.to_string())
}

/// Which market days an action may be about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum DayRule {
    /// Up to the grant's; a request that names none is served up to it.
    UpTo,
    /// Up to the grant's, and the request must name its last.
    NamedUpTo,
    /// The grant's own and no other.
    Exactly,
}

/// What a request for an action must say about itself.
struct Scope {
    names_portfolio: bool,
    names_symbols: bool,
    market_day: DayRule,
}

fn scope(action: Action) -> Scope {
    let (names_portfolio, names_symbols, market_day) = match action {
        Action::ReadBars | Action::ReadArticles | Action::ReadForecasts => (false, false, DayRule::UpTo),
        Action::WriteBars => (false, true, DayRule::NamedUpTo),
        Action::WriteArticles => (false, false, DayRule::NamedUpTo),
        Action::WriteForecasts | Action::WriteReports => (false, false, DayRule::Exactly),
        Action::ReadLedger => (true, false, DayRule::UpTo),
        Action::WriteLedger => (true, false, DayRule::NamedUpTo),
        Action::PlaceOrders => (true, true, DayRule::Exactly),
    };
    Scope { names_portfolio, names_symbols, market_day }
}

#[cfg(test)]
mod tests;
