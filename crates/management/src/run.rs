//! Management as a process: puts the parts together, opens the listeners, and stops in order.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use access::policy::PolicySet;
use audit::log::Log;
use audit::record::Record;
use identity::{Bundle, PeerClass, SpiffeId};
use sentinel::{Playbook, Playbooks, Sentinel};
use tokio::net::TcpListener;
use tokio::sync::watch;
use wire::enrol::{EnrolReply, EnrolRequest, Newcomer};
use wire::journal::{Journal, told, unix_ms};
use wire::layout::{ConfigError, Layout, Topology, read_json};
use wire::listener::Listener;
use wire::problem::Problem;
use wire::server::{Connections, ServerOptions, serve};
use wire::tls::Credentials;

use crate::bootstrap::{self, BootstrapError};
use crate::control::{Control, Home};
use crate::database::{Database, Table};
use crate::joiner::{Joiner, replay};
use crate::log_files::LogFiles;
use crate::plan::Plan;
use crate::response::{ApprovedModules, Watch};
use crate::routes::{Shared, member_routes, operator_routes};
use crate::state::{State, is_killed};

/// The process's name in journals and directories.
pub const NAME: &str = "management";

/// Why management does not run.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// Keys and identities.
    #[error(transparent)]
    Bootstrap(#[from] BootstrapError),
    /// The journal.
    #[error(transparent)]
    Journal(#[from] wire::journal::JournalError),
    /// The database.
    #[error(transparent)]
    Database(#[from] crate::database::DatabaseError),
    /// The log.
    #[error("the log cannot be used: {0}; run `trader audit verify`")]
    Log(#[from] audit::AuditError),
    /// What was stored.
    #[error(transparent)]
    Restore(#[from] crate::state::RestoreError),
    /// A connection's identity.
    #[error(transparent)]
    Wire(#[from] wire::tls::WireError),
    /// A file of the configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The operating system.
    #[error("{0}")]
    Io(#[from] std::io::Error),
}

fn config(path: &Path, problem: impl ToString) -> RunError {
    ConfigError::new(path, problem).into()
}

fn read_text(path: &Path) -> Result<String, RunError> {
    std::fs::read_to_string(path).map_err(|error| config(path, error))
}

/// Loads the policies of the state directory: one schema and every `.cedar` file beside it.
///
/// # Errors
/// When they cannot be read, or are not valid: then nothing is allowed and management does not start.
pub fn load_policy(layout: &Layout) -> Result<PolicySet, RunError> {
    let directory = layout.config().join("policies");
    let schema = read_text(&directory.join("schema.cedarschema"))?;
    let mut files = BTreeMap::new();
    for entry in std::fs::read_dir(&directory).map_err(|error| config(&directory, error))? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "cedar") {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            files.insert(name, read_text(&path)?);
        }
    }
    let files: Vec<(&str, &str)> = files.iter().map(|(name, text)| (name.as_str(), text.as_str())).collect();
    PolicySet::load(&schema, &files).map_err(|error| config(&directory, error))
}

fn load_watch(layout: &Layout, bundle: &Bundle) -> Result<Watch, RunError> {
    let directory = layout.config().join("policies");
    let path = directory.join("sentinel.toml");
    let thresholds = sentinel::Config::parse(&read_text(&path)?).map_err(|error| config(&path, error))?;
    let mut playbooks = Vec::new();
    let books = directory.join("playbooks");
    for entry in std::fs::read_dir(&books).map_err(|error| config(&books, error))? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "toml") {
            playbooks.push(Playbook::parse(&read_text(&path)?).map_err(|error| config(&path, error))?);
        }
    }
    let playbooks = Playbooks::new(playbooks).map_err(|error| config(&books, error))?;
    Ok(Watch::new(Sentinel::new(thresholds), playbooks, ApprovedModules::new(layout, bundle)))
}

/// Runs management until told to stop.
///
/// # Errors
/// When it cannot start; once it runs it goes on, and denies what it cannot record.
pub async fn run(layout: Layout, program: String, stop: watch::Receiver<bool>) -> Result<(), RunError> {
    let topology: Topology = read_json(&layout.topology())?;
    let plan: Plan = read_json(&layout.plan())?;
    let authorities = bootstrap::authorities(&layout)?;
    let log_key = bootstrap::log_key(&layout, &authorities.store)?;
    let (_, bundle) = bootstrap::bundle(&layout)?;
    let own_id = SpiffeId::management(&bundle.trust_domain).map_err(BootstrapError::from)?;
    let identity = Arc::new(bootstrap::issue_here(&authorities, &own_id, &layout.identity(NAME))?);
    let credentials = Credentials::new(identity);
    let journal = Journal::open(&layout.journal(NAME), NAME)?;
    let database = Database::open(&layout.process(NAME).join("management.db"))?;
    let mut watcher = load_watch(&layout, &bundle)?;
    let latched_only = layout.kill_latch().exists() && !is_killed(&database.all(Table::Revocations)?);
    let state = State::restore(&database, plan, layout.kill_latch().exists(), 0)?;
    let first_start = state.schedule.step() == 0 && !state.schedule.tasks().any(|task| task.attempt > 0);
    let connections = Connections::new();
    let control = Arc::new(Control::new(
        state,
        load_policy(&layout)?,
        authorities,
        journal.clone(),
        database,
        connections.clone(),
        Home { layout: layout.clone(), credentials: Some(credentials.clone()) },
    ));
    let log = Log::open(LogFiles::open(&layout.log())?, &log_origin(&bundle.trust_domain), log_key)?;
    let joined = replay(&log, &control, &mut watcher)?;
    journal.joined(joined.get(NAME).copied().unwrap_or(0));
    journal.record_durably(&Record::Started { program })?;
    let described = control.authorities().store.describe();
    journal.record_durably(&Record::KeyStoreOpened { store: described.id, seal: described.seal })?;
    control.check_domain_keys(first_start).map_err(BootstrapError::from)?;
    control.record_own(&credentials.current()).map_err(BootstrapError::from)?;
    control.record_issued().map_err(BootstrapError::from)?;
    if first_start {
        control.announce_tasks(&control.state()).map_err(BootstrapError::from)?;
    }
    watcher.catch_up(&control);
    if latched_only {
        // Stopped by the latch file while management was gone: the guards must hear of it as well.
        control.kill("latch", "the kill latch of this host was set").map_err(BootstrapError::from)?;
    }
    let joiner = Joiner::start(log, control.clone(), watcher)?;
    let shared = Arc::new(Shared { control: control.clone(), joiner: joiner.clone() });

    // Before anybody can hear that management is up: a newcomer that found no socket would come over the network.
    let at_socket = socket_listener(&layout);
    let closed = journal.clone();
    let mut servers = tokio::task::JoinSet::new();
    for (class, address) in &topology.management {
        let Some(class) = PeerClass::parse(class) else {
            return Err(config(&layout.topology(), format!("{class} is no peer class")));
        };
        let routes = match class {
            PeerClass::Operators => operator_routes(shared.clone(), journal.clone()),
            _ => member_routes(shared.clone(), journal.clone()),
        };
        let tls = wire::tls::server_config(&credentials, class)?;
        let listener = TcpListener::bind(*address).await?;
        let options = ServerOptions::recorded(&format!("{NAME}/{class}"), &journal);
        servers.spawn(serve(listener, tls, routes.into_router(), options, connections.clone(), stop.clone()));
    }
    let enrolment = wire::enrol::enrolment_server_config(&credentials)?;
    let listener = TcpListener::bind(topology.enrolment).await?;
    let options = ServerOptions::recorded(&format!("{NAME}/enrolment"), &journal);
    let router = newcomers_router(&control);
    let serving = |listener| {
        serve(listener, enrolment.clone(), router.clone(), options.clone(), connections.clone(), stop.clone())
    };
    servers.spawn(serving(Listener::from(listener)));
    if let Some(listener) = at_socket {
        servers.spawn(serving(listener));
    }
    servers.spawn(join_own(journal, joiner, stop.clone()));
    servers.spawn(sweep(control, stop));
    tokio::select! {
        () = async { while servers.join_next().await.is_some() {} } => Ok(()),
        // What cannot be recorded is not decided; starting again is the one way to find out whether it can be by now.
        () = closed.closed() => Err(wire::journal::JournalError::Closed.into()),
    }
}

/// The log's name, for ever: it stands in every checkpoint.
#[must_use]
pub fn log_origin(trust_domain: &str) -> String {
    format!("{trust_domain}/audit")
}

/// The routes for newcomers.
pub fn newcomers_router(control: &Arc<Control>) -> axum::Router {
    let (asked, told) = (control.clone(), control.clone());
    wire::guard::enrolment_router(
        move |newcomer, request| Ok(asked.challenge(&newcomer, &request)?),
        move |newcomer, request| enrol(&told, &newcomer, &request),
    )
}

fn enrol(control: &Control, newcomer: &Newcomer, request: &EnrolRequest) -> Result<EnrolReply, Problem> {
    let refused = || Problem::forbidden("enrolment_refused", "the ticket is not good for this identity");
    let ticket = identity::Ticket::parse(&request.ticket).map_err(|_| refused())?;
    let challenge = control.enrol(ticket.secret(), newcomer, request)?;
    Ok(EnrolReply { challenge, bundle: control.authorities().bundle.clone() })
}

/// The socket for newcomers of this machine. Without it nobody can be told apart by their program, so an entry that
/// demands one lets nobody in; everything else works.
fn socket_listener(layout: &Layout) -> Option<Listener> {
    let path = layout.enrolment_socket();
    match Listener::at_socket(&path) {
        Ok(listener) => Some(listener),
        Err(error) => {
            tracing::warn!(%error, path = %path.display(), "there is no socket for newcomers of this machine");
            None
        }
    }
}

/// Joins management's own journal like everybody else's.
async fn join_own(journal: Arc<Journal>, joiner: Joiner, mut stop: watch::Receiver<bool>) {
    loop {
        let lines: Vec<Vec<u8>> = journal.unjoined().into_iter().map(String::into_bytes).collect();
        if lines.is_empty() {
            if *stop.borrow() {
                return;
            }
            tokio::select! {
                () = journal.grown(Duration::from_secs(1)) => {}
                _ = stop.changed() => {}
            }
            continue;
        }
        match joiner.join(NAME.to_owned(), lines).await {
            Ok(joined) => journal.joined(joined),
            Err(error) => {
                tracing::error!(%error, "management's own journal cannot be joined");
                if *stop.borrow() {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
        }
    }
}

/// Looks after tasks that are held too long, and keys whose time is over.
async fn sweep(control: Arc<Control>, mut stop: watch::Receiver<bool>) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(Duration::from_secs(1)) => {
                if let Err(error) = control.expire_tasks() {
                    tracing::error!(%error, at_ms = unix_ms(), "tasks could not be given to others");
                }
                if let Err(error) = control.retire_keys(unix_ms() / 1_000) {
                    tracing::error!(%error, "keys that were followed could not be retired");
                }
                if let Err(error) = control.record_refusals() {
                    tracing::error!(%error, "refused enrolments could not be recorded");
                }
                if let Err(error) = control.go_on_publishing() {
                    tracing::error!(%error, "the next trust bundle could not be published");
                }
            }
            () = told(&mut stop) => return,
        }
    }
}
