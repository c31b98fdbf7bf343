//! The desk as a process: one listener for agents, and one worker for sessions.
//!
//! Owns: the way of an order from the socket to [`Desk::place`], and of a session from management's queue to
//! the ledger. Orders and sessions take turns by one lock; an order that comes while a session runs is sent
//! away to come again. A desk that fails ends its process, so that it starts again from its journal.
//!
//! INVARIANT: no order reaches the desk but through the guard in front of the one route.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use access::guard::{Cost, Guard, GuardConfig};
use access::vocabulary::{Action, Audience, MarketDay};
use audit::record::Record;
use axum::response::Response;
use brokers::AccountKey;
use identity::PeerClass;
use keys::VerifyingKey;
use market::{Series, Symbol};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::watch;
use wire::api::{GrantForHolder, OrderBody, OrderReply, QueueReply, QueueRequest, Task, TaskEnd};
use wire::client::{Client, ClientError, repeat};
use wire::guard::{
    GRANT_HEADER, GrantDoor, Needs, Operation, Pass, Routes, Touched, from_json, json as answer,
};
use wire::http::Method;
use wire::journal::{Journal, JournalError, read_entries, report, ship};
use wire::layout::{Layout, Topology};
use wire::problem::Problem;
use wire::renew::Membership;
use wire::server::{Connections, ServerOptions, serve};
use wire::tls::{Identity, WireError};

use crate::desk::PortfolioSeries;
use crate::{Account, Authorized, Desk, DeskConfig, DeskError, KillSwitch, Session, Wish};

/// The name under which management keeps the key of the account at the broker.
pub const BROKER_SECRET: &str = "paper-broker";

/// How long a request for a task waits at management.
const QUEUE_WAIT: Duration = Duration::from_secs(2);
/// Pause after management could not be asked.
const ASK_AGAIN: Duration = Duration::from_millis(100);
/// Longest pause between two tries to have the broker's key opened.
const PAUSE_MAX: Duration = Duration::from_secs(10);
/// How long one request to a unit may take.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(15);
/// How long the last journal lines may take to be shipped.
const LAST_WORDS: Duration = Duration::from_secs(5);
/// Entries in one request to the ledger.
const ENTRIES_MAX: usize = 1_000;

/// Why a desk does not run, or stops.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// Connections and identity.
    #[error(transparent)]
    Wire(#[from] wire::tls::WireError),
    /// Memory, books, journal, broker.
    #[error("the desk stops: {0}")]
    Desk(#[from] DeskError),
    /// It failed while it was running; started again, it continues from its journal.
    #[error("the desk stops: {0}")]
    Failed(String),
    /// A file of the configuration.
    #[error("{0}")]
    Config(String),
    /// The listener.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// Where.
        address: std::net::SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// The identity was revoked or replaced.
    #[error("this desk's identity is no longer good: {0}; two operators must reinstate it")]
    Revoked(String),
}

/// What the routes and the worker share: one desk, behind a lock.
pub struct Shared {
    desk: Mutex<Desk>,
    door: Arc<GrantDoor>,
    kill: Arc<KillSwitch>,
    /// The last closed day of each portfolio: the one day that orders may be for.
    days: Mutex<BTreeMap<String, MarketDay>>,
    /// Whether a session is under way.
    session: AtomicBool,
    /// Why the desk can't go on.
    failed: watch::Sender<Option<String>>,
}

impl Shared {
    /// Does something with the desk, in a thread that may block. The kill switch is read under the lock.
    async fn with_desk<R: Send + 'static>(
        self: &Arc<Self>,
        act: impl FnOnce(&mut Desk, &risk::KillLatch) -> Result<R, DeskError> + Send + 'static,
    ) -> Result<R, DeskError> {
        let shared = self.clone();
        let done = tokio::task::spawn_blocking(move || {
            let Ok(mut desk) = shared.desk.lock() else { return (Err(DeskError::Poisoned), true) };
            let kill = shared.kill.latch(shared.door.with(|guard| guard.is_killed()));
            let result = act(&mut desk, &kill);
            shared.note_days(&desk);
            (result, desk.is_poisoned())
        });
        // A panic in there is an invariant that doesn't hold.
        let (result, poisoned) = done.await.unwrap_or((Err(DeskError::Poisoned), true));
        if poisoned {
            let reason = result.as_ref().err().map_or_else(String::new, ToString::to_string);
            self.failed.send_if_modified(|failed| {
                let first = failed.is_none();
                failed.get_or_insert(reason);
                first
            });
        }
        result
    }

    fn note_days(&self, desk: &Desk) {
        let mut days = wire::guard::lock(&self.days);
        for (portfolio, day) in desk.memory().last_closed_days() {
            if let Some(day) = MarketDay::parse(&day.to_string()) {
                days.insert(portfolio.to_owned(), day);
            }
        }
    }
}

/// Places an order.
struct PlaceOrder(Wish);

impl Operation for PlaceOrder {
    type State = Shared;
    const METHOD: Method = Method::POST;
    const PATH: &'static str = "/v1/orders";
    const NEEDS: Needs = Needs::Grant(Action::PlaceOrders);

    fn parse(_query: &str, body: &[u8]) -> Result<Self, Problem> {
        from_json::<OrderBody>(body).and_then(Wish::parse).map(Self)
    }

    fn touched(&self, state: &Shared) -> Touched {
        let Self(wish) = self;
        Touched {
            portfolio: Some(wish.portfolio().to_owned()),
            symbols: vec![wish.symbol().to_string()],
            // The guard wants the grant's own day: an order that was decided before the market moved on is
            // refused by it.
            market_day: wire::guard::lock(&state.days).get(wish.portfolio()).copied(),
            cost: Cost { rows: 0, orders: 1, notional: wish.notional().micros() },
            ..Touched::default()
        }
    }

    async fn run(self, state: Arc<Shared>, pass: Pass) -> Result<Response, Problem> {
        if state.session.load(Ordering::SeqCst) {
            return Err(Problem::unavailable("session_running", "market days are being run; ask again"));
        }
        let (permit, peer) = pass.permit()?;
        let order = Authorized::new(self.0, permit, &peer.id.to_string())?;
        let placed: Result<(OrderReply, bool), DeskError> =
            state.with_desk(move |desk, kill| Ok((desk.place(order, kill)?, kill.is_engaged()))).await;
        match placed {
            // Says nothing of the order, only of this moment: a module that took it for an answer would end its task
            // without the order.
            Ok((reply, true)) if reply.reason == risk::Check::KillLatch.as_str() => {
                Err(Problem::forbidden(&reply.reason, "everything is stopped: no order leaves"))
            }
            Ok((reply, _)) => answer(&reply),
            Err(error) => {
                tracing::error!(%error, "an order could not be decided");
                Err(Problem::unavailable("desk_failed", "the order could not be decided; ask again"))
            }
        }
    }
}

/// The desk's routes, with the door in front of each, and what the routes share with the worker of sessions. There are no
/// others: the process serves exactly these.
#[must_use]
pub fn routes(
    desk: Desk,
    door: &Arc<GrantDoor>,
    journal: &Arc<Journal>,
    kill: &Arc<KillSwitch>,
) -> (Routes<Shared>, Arc<Shared>) {
    let shared = Arc::new(Shared {
        desk: Mutex::new(desk),
        door: door.clone(),
        kill: kill.clone(),
        days: Mutex::new(BTreeMap::new()),
        session: AtomicBool::new(false),
        failed: watch::Sender::new(None),
    });
    if let Ok(desk) = shared.desk.lock() {
        shared.note_days(&desk);
    }
    let routes = Routes::new(shared.clone(), door.clone(), journal.clone()).with::<PlaceOrder>();
    (routes, shared)
}

/// The clients of the worker.
struct Ways {
    journal: Arc<Journal>,
    membership: Arc<Membership>,
    market: Client,
    ledger: Client,
}

/// Runs the desk until told to stop, or until it fails.
///
/// # Errors
/// As [`RunError`] says. A desk that failed may be started again: it continues from its journal.
pub async fn run(
    layout: Layout,
    name: &str,
    program: String,
    mut stop: watch::Receiver<bool>,
) -> Result<(), RunError> {
    let config_error = |error: wire::layout::ConfigError| RunError::Config(error.to_string());
    let topology: Topology = wire::layout::read_json(&layout.topology()).map_err(config_error)?;
    let config = DeskConfig::read(&layout.config()).map_err(config_error)?;
    let address = backend(&topology)?;
    let ways = ways(&topology, &layout, name).await?;
    let journal = ways.journal.clone();

    let kill = Arc::new(KillSwitch::new(layout.kill_latch()));
    let door = Arc::new(GrantDoor::new(Guard::new(GuardConfig {
        audience: Audience::Desk,
        issuer_keys: issuer_keys(&ways.membership.credentials().current())?,
    })));
    journal.record(&Record::Started { program }).map_err(DeskError::from)?;
    let entries = read_entries(&layout.journal(name), name).map_err(DeskError::from)?;
    let broker = layout.process(name).join("broker").join("paper.jsonl");
    make_directory(broker.parent().unwrap_or(&broker))?;
    let Some(key) = account_key(&ways.membership, &mut stop).await? else { return Ok(()) };
    let account = Account { path: broker, key };
    // The feed has not been heard yet; until it is, the latch file says whether orders may leave.
    let desk = Desk::open(&config, journal.clone(), &entries, account, &kill.latch(Some(false)))?;
    drop(entries);
    let (routes, shared) = routes(desk, &door, &journal, &kill);
    let mut failure = shared.failed.subscribe();

    let tls = wire::tls::server_config(ways.membership.credentials(), PeerClass::Agents)?;
    let connections = Connections::new();
    let (halt, halted) = watch::channel(false);
    let on_kill = {
        let (door, kill) = (door.clone(), kill.clone());
        move || {
            // A desk that starts again hears old stops too, with their clearance; the guard knows which count.
            if door.with(|guard| guard.is_killed()) != Some(false) {
                kill.engage();
                tracing::error!("everything is stopped: no order leaves");
            }
        }
    };
    let following = tokio::spawn(wire::revocations::follow(
        ways.membership.management().clone(),
        door.clone(),
        connections.clone(),
        on_kill,
        halted.clone(),
    ));
    // The log is told last: what an order that is still under way decides must get there too.
    let (quiet, all_quiet) = watch::channel(false);
    let shipping = tokio::spawn(ship(journal.clone(), ways.membership.clone(), all_quiet));
    door.first_heard(&stop).await;
    let listener = TcpListener::bind(address).await.map_err(|source| RunError::Listen { address, source })?;
    let serving = tokio::spawn(serve(
        listener,
        tls,
        routes.into_router(),
        ServerOptions::recorded("desk/agents", &journal),
        connections,
        halted,
    ));

    let ended = tokio::select! {
        ended = work(&shared, &ways) => ended,
        _ = stop.wait_for(|stop| *stop) => Ok(()),
        // The guard in front of the route writes to it as well, and the desk may not have noticed.
        () = journal.closed() => Err(DeskError::from(JournalError::Closed).into()),
        reason = failure.wait_for(Option::is_some) => {
            let reason = reason.ok().and_then(|reason| reason.clone()).unwrap_or_default();
            Err(RunError::Failed(reason))
        }
    };
    let _ = halt.send(true);
    let _ = serving.await;
    following.abort();
    let _ = quiet.send(true);
    // Evidence goes out even when nothing else may.
    let _ = tokio::time::timeout(LAST_WORDS, shipping).await;
    ended
}

/// Has the broker's key opened, with keys that were made for this start: a set of keys opens it once. Tries for as long as
/// management does not answer; nothing when told to stop.
async fn account_key(
    membership: &Membership,
    stop: &mut watch::Receiver<bool>,
) -> Result<Option<AccountKey>, RunError> {
    let mut pause = ASK_AGAIN;
    loop {
        let opened = async {
            membership.renew(&mut |_| Ok(())).await?;
            wire::secrets::open(membership, BROKER_SECRET).await
        };
        let error = tokio::select! {
            opened = opened => match opened {
                Ok(secret) => return Ok(Some(AccountKey::new(secret.bytes()))),
                Err(error) => error,
            },
            _ = stop.wait_for(|stop| *stop) => return Ok(None),
        };
        match &error {
            WireError::Renewal(ClientError::Refused(problem))
                if problem.status == 403 && !problem.retryable =>
            {
                return Err(RunError::Revoked(problem.code.clone()));
            }
            WireError::Secret { source: ClientError::Refused(problem), .. }
                if problem.status == 403 && !problem.retryable =>
            {
                return Err(RunError::Failed(format!(
                    "{error}; store the broker's key with `trader secret put {BROKER_SECRET} --broker-of desk-1`"
                )));
            }
            _ => tracing::warn!(%error, "the broker's key is not opened yet"),
        }
        // Each try is a set of keys.
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

fn backend(topology: &Topology) -> Result<std::net::SocketAddr, RunError> {
    let service = topology.services.get("desk/agents");
    let address = service.and_then(|service| service.backends.first()).copied();
    address.ok_or_else(|| RunError::Config("the topology names no desk".into()))
}

async fn ways(topology: &Topology, layout: &Layout, name: &str) -> Result<Ways, RunError> {
    let service = |key: &str| {
        let service = topology.services.get(key).map(|service| service.listen);
        service.ok_or_else(|| RunError::Config(format!("the topology names no {key}")))
    };
    let management =
        topology.management.get(PeerClass::Desk.as_str()).copied().ok_or_else(|| {
            RunError::Config("the topology names no management listener for the desk".into())
        })?;
    let membership = Arc::new(Membership::resume(&layout.identity(name), management).await?);
    let client = |class, address| Client::new(membership.credentials(), class, None, address);
    Ok(Ways {
        journal: Journal::open(&layout.journal(name), name).map_err(DeskError::from)?,
        market: client(PeerClass::Market, service("market/desk")?)?,
        ledger: client(PeerClass::Ledger, service("ledger/desk")?)?,
        membership: membership.clone(),
    })
}

fn issuer_keys(identity: &Identity) -> Result<Vec<VerifyingKey>, RunError> {
    let key = |key: &String| VerifyingKey::from_hex(key).map_err(|error| RunError::Config(error.to_string()));
    identity.bundle().grant_keys.iter().map(key).collect()
}

fn make_directory(path: &Path) -> Result<(), RunError> {
    std::fs::create_dir_all(path).map_err(|error| RunError::Config(format!("{}: {error}", path.display())))
}

/// Takes sessions from management, one after the other.
async fn work(shared: &Arc<Shared>, ways: &Ways) -> Result<(), RunError> {
    let ask = QueueRequest { wait_ms: u64::try_from(QUEUE_WAIT.as_millis()).unwrap_or(0) };
    loop {
        // Between two sessions nothing is under way that is bound to the old keys.
        ways.membership.renew_if_due().await;
        let asked = ways.membership.management().call_json(
            Method::POST,
            "/v1/queue",
            &[],
            Some(&ask),
            QUEUE_WAIT * 3,
        );
        let reply: Result<QueueReply, ClientError> = asked.await;
        match reply {
            Ok(QueueReply { task: Some(task), grants, .. }) => do_task(shared, ways, task, &grants).await,
            Ok(_) => {}
            Err(ClientError::Refused(problem)) if !problem.retryable && problem.status == 403 => {
                return Err(RunError::Revoked(problem.code));
            }
            Err(error) => {
                tracing::debug!(%error, "management does not answer");
                tokio::time::sleep(ASK_AGAIN).await;
            }
        }
    }
}

async fn do_task(shared: &Arc<Shared>, ways: &Ways, task: Task, grants: &[GrantForHolder]) {
    let (done, detail) = match perform(shared, ways, &task, grants).await {
        Ok(detail) => (true, detail),
        Err(problem) => {
            tracing::warn!(task = task.id, problem, "the session is given back");
            (false, json!({ "error": problem }))
        }
    };
    let end = TaskEnd { task: task.id, attempt: task.attempt, done, detail };
    let ended = repeat(|| report(&ways.journal, &ways.membership, Some(end.clone()))).await;
    if let Err(error) = ended {
        tracing::warn!(%error, "the end of the session was not accepted");
    }
}

/// Lowers the flag whatever happens.
struct Running<'a>(&'a AtomicBool);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::SeqCst);
    }
}

async fn perform(
    shared: &Arc<Shared>,
    ways: &Ways,
    task: &Task,
    grants: &[GrantForHolder],
) -> Result<Value, String> {
    let session = Session::of(task).map_err(|error| error.to_string())?;
    shared.session.store(true, Ordering::SeqCst);
    let _running = Running(&shared.session);
    let mut series = PortfolioSeries::new();
    for part in &session.portfolios {
        let symbols: Vec<&str> = part.symbols.iter().map(Symbol::as_str).collect();
        let from = match part.after {
            None => session.day,
            Some(after) => after.plus_days(1).ok_or("the calendar ends")?,
        };
        let path = format!(
            "/v1/bars?portfolio={}&symbols={}&from={from}&through={}",
            part.portfolio,
            symbols.join(","),
            session.day
        );
        let grant = grant_for(grants, Audience::Market, &part.portfolio)?;
        let bars: BTreeMap<Symbol, Series> =
            call::<(), _>(&ways.market, Method::GET, &path, grant, None).await?;
        series.insert(part.portfolio.clone(), bars);
    }
    let ran = session.clone();
    let (entries, summary) = shared
        .with_desk(move |desk, kill| {
            desk.run_session(&ran, &series, kill)?;
            let entries: Vec<_> = ran
                .portfolios
                .iter()
                .map(|part| (part.portfolio.clone(), desk.entries(&ran, &part.portfolio)))
                .collect();
            Ok((entries, desk.summary(&ran)))
        })
        .await
        .map_err(|error| error.to_string())?;
    for (portfolio, entries) in entries {
        let grant = grant_for(grants, Audience::Ledger, &portfolio)?;
        for entries in entries.chunks(ENTRIES_MAX) {
            let body = json!({ "portfolio": portfolio, "day": session.day, "entries": entries });
            let written: Value = call(&ways.ledger, Method::POST, "/v1/entries", grant, Some(&body)).await?;
            match written.get("conflicts").and_then(Value::as_array) {
                Some(conflicts) if !conflicts.is_empty() => {
                    return Err(format!("the ledger has other entries: {}", json!(conflicts)));
                }
                _ => {}
            }
        }
    }
    Ok(summary)
}

fn grant_for<'a>(
    grants: &'a [GrantForHolder],
    audience: Audience,
    portfolio: &str,
) -> Result<&'a str, String> {
    let fits = |grant: &&GrantForHolder| {
        grant.audience == audience.as_str() && grant.portfolio.as_deref() == Some(portfolio)
    };
    let grant = grants.iter().find(fits);
    grant.map(|grant| grant.text.as_str()).ok_or_else(|| format!("no grant for {portfolio} at {audience}"))
}

/// One request to a unit, repeated while it may still succeed: reading is harmless, and what is written has ids.
async fn call<T: serde::Serialize, R: serde::de::DeserializeOwned>(
    client: &Client,
    method: Method,
    path: &str,
    grant: &str,
    body: Option<&T>,
) -> Result<R, String> {
    let headers = [(GRANT_HEADER, grant)];
    repeat(|| client.call_json(method.clone(), path, &headers, body, REQUEST_TIMEOUT))
        .await
        .map_err(|error| error.to_string())
}
