//! The agent as a process: takes a task, runs its module in a cell, says how it ended, takes the next.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use access::vocabulary::{Audience, TaskKind};
use audit::record::Record;
use feeds::Source;
use identity::PeerClass;
use keys::VerifyingKey;
use module::protocol::{
    CallLine, FromAgent, FromModule, LINE_BYTES_MAX, Refusal, Reply, Start, parse, to_line,
};
use sandbox::{Cell, CellLimits, Outcome};
use serde_json::{Value, json};
use tokio::sync::watch;
use wire::api::{QueueReply, QueueRequest, TaskEnd};
use wire::client::{Client, ClientError, repeat};
use wire::http::Method;
use wire::journal::{Journal, JournalError, report, ship, told};
use wire::layout::{Layout, Topology};
use wire::renew::Membership;
use wire::tls::{Credentials, Identity};

use crate::modules::{Modules, Ready, module_for};
use crate::speaker::{Services, Speaker};
use crate::workload::{self, Callers, Svid};

/// What a module may use.
const LIMITS: CellLimits =
    CellLimits { memory_bytes: 512 * 1024 * 1024, cpu_seconds: 30, wall: Duration::from_secs(50) };
/// How long a request for a task waits at management.
const QUEUE_WAIT: Duration = Duration::from_secs(2);
/// Pause after management could not be asked.
const ASK_AGAIN: Duration = Duration::from_millis(100);
/// The longest result of a module, in bytes as JSON: it becomes part of one line of the log.
const RESULT_BYTES_MAX: usize = 16 * 1024;
/// The longest account of a failure, in characters: it may be in the module's own words.
const PROBLEM_CHARS_MAX: usize = 1_000;

/// Why an agent does not run.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// Connections and identity.
    #[error(transparent)]
    Wire(#[from] wire::tls::WireError),
    /// The journal.
    #[error(transparent)]
    Journal(#[from] wire::journal::JournalError),
    /// A source.
    #[error(transparent)]
    Feed(#[from] feeds::FeedError),
    /// A file of the configuration.
    #[error("{0}")]
    Config(String),
    /// The identity was revoked or replaced: only people can bring this agent back.
    #[error(
        "this agent's identity is no longer good: {0}; two operators can reinstate it: `trader agent reinstate NAME`"
    )]
    Revoked(String),
}

/// One agent.
struct Agent {
    journal: Arc<Journal>,
    membership: Arc<Membership>,
    services: Services,
    sources: Arc<BTreeMap<String, Source>>,
    modules: Modules,
    launcher: std::path::PathBuf,
}

/// Runs an agent until told to stop, until its identity is no longer good, or until its journal fails.
///
/// # Errors
/// As [`RunError`] says.
pub async fn run(
    layout: Layout,
    name: &str,
    program: String,
    stop: watch::Receiver<bool>,
) -> Result<(), RunError> {
    let topology: Topology =
        wire::layout::read_json(&layout.topology()).map_err(|error| RunError::Config(error.to_string()))?;
    let journal = Journal::open(&layout.journal(name), name)?;
    journal.record(&Record::Started { program })?;
    let membership =
        Arc::new(Membership::resume(&layout.identity(name), management_address(&topology)?).await?);
    // Not the identity, which holds the keys: these are to go when others follow them.
    let bundle = membership.credentials().current().bundle().clone();
    let keys: Vec<VerifyingKey> = bundle
        .release_keys
        .iter()
        .map(|key| VerifyingKey::from_hex(key).map_err(|error| RunError::Config(error.to_string())))
        .collect::<Result<_, _>>()?;
    let agent = Arc::new(Agent {
        journal: journal.clone(),
        membership: membership.clone(),
        services: services(membership.credentials(), &topology)?,
        sources: Arc::new(open_sources(&layout.sources())?),
        modules: Modules::new(&layout.modules(), keys, bundle.release_threshold as usize),
        launcher: "/proc/self/exe".into(),
    });
    let shipping = tokio::spawn(ship(journal.clone(), membership.clone(), stop.clone()));
    let socket = layout.process(name).join("workload").join(workload::SOCKET_NAME);
    let serving = tokio::spawn(serve_workloads(socket, membership.credentials().clone(), stop.clone()));
    let ended = tokio::select! {
        ended = work(&agent, stop) => ended,
        () = journal.closed() => Err(JournalError::Closed.into()),
    };
    serving.abort();
    if ended.is_err() {
        // Evidence goes out even when nothing else may.
        let _ = report(&journal, &membership, None).await;
        shipping.abort();
    } else {
        let _ = shipping.await;
    }
    ended
}

/// Serves the agent's identity to programs of its own user on this node, as the SPIFFE Workload API says, and tells them
/// when it is replaced. The agent works without it.
async fn serve_workloads(socket: PathBuf, credentials: Credentials, stop: watch::Receiver<bool>) {
    let mut replaced = credentials.subscribe();
    let (offer, svids) = watch::channel(svid(&credentials.current()));
    let following = async {
        while replaced.changed().await.is_ok() {
            let identity = replaced.borrow_and_update().clone();
            offer.send_replace(svid(&identity));
        }
    };
    let serving = workload::serve(&socket, svids, Callers::own(), stop);
    tokio::select! {
        ended = serving => if let Err(error) = ended {
            tracing::warn!(%error, "the workload API is not served");
        },
        () = following => {}
    }
}

/// What other people's clients are given: the chain, the key, and the authorities of the agents. No other class's: to a
/// client that knows no classes, an authority vouches for every id.
fn svid(identity: &Identity) -> Option<Arc<Svid>> {
    let authorities = identity.bundle().authorities(identity.class());
    let bundle = authorities.iter().map(|authority| authority.der().to_vec()).collect();
    let chain = vec![identity.certificate().to_vec(), identity.authority().der().to_vec()];
    match Svid::new(identity.id().as_str(), chain, identity.own_keys().tls_pkcs8(), bundle) {
        Ok(svid) => Some(Arc::new(svid)),
        Err(error) => {
            tracing::error!(%error, "the identity cannot be served to others");
            None
        }
    }
}

fn management_address(topology: &Topology) -> Result<std::net::SocketAddr, RunError> {
    let address = topology.management.get(PeerClass::Agents.as_str()).copied();
    address.ok_or_else(|| RunError::Config("the topology names no management listener for agents".into()))
}

fn services(credentials: &Credentials, topology: &Topology) -> Result<Services, RunError> {
    let mut clients = BTreeMap::new();
    for audience in Audience::ALL {
        let class = match audience {
            Audience::Market => PeerClass::Market,
            Audience::News => PeerClass::News,
            Audience::Research => PeerClass::Research,
            Audience::Ledger => PeerClass::Ledger,
            Audience::Desk => PeerClass::Desk,
        };
        if let Some(service) = topology.services.get(&format!("{audience}/{}", PeerClass::Agents)) {
            clients.insert(*audience, Client::new(credentials, class, None, service.listen)?);
        }
    }
    Ok(Services { clients })
}

fn open_sources(directory: &Path) -> Result<BTreeMap<String, Source>, RunError> {
    let mut sources = BTreeMap::new();
    let failed = |error: std::io::Error| RunError::Config(format!("{}: {error}", directory.display()));
    for entry in std::fs::read_dir(directory).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name.ends_with(".csv") || name.ends_with(".csv.gz") {
            let source = Source::open(&path)?;
            sources.insert(source.name().to_owned(), source);
        }
    }
    Ok(sources)
}

async fn work(agent: &Arc<Agent>, mut stop: watch::Receiver<bool>) -> Result<(), RunError> {
    let ask = QueueRequest { wait_ms: u64::try_from(QUEUE_WAIT.as_millis()).unwrap_or(0) };
    loop {
        // Between two tasks nothing is under way that is bound to the old keys.
        agent.membership.renew_if_due().await;
        let asked = agent.membership.management().call_json(
            Method::POST,
            "/v1/queue",
            &[],
            Some(&ask),
            QUEUE_WAIT * 3,
        );
        let reply: Result<QueueReply, ClientError> = tokio::select! {
            reply = asked => reply,
            () = told(&mut stop) => return Ok(()),
        };
        match reply {
            Ok(reply) if reply.task.is_some() => do_task(agent, reply).await?,
            Ok(_) => {}
            Err(ClientError::Refused(problem)) if !problem.retryable && problem.status == 403 => {
                return Err(RunError::Revoked(problem.code));
            }
            Err(error) => {
                tracing::debug!(%error, "management does not answer");
                tokio::time::sleep(ASK_AGAIN).await;
            }
        }
        if *stop.borrow() {
            return Ok(());
        }
    }
}

async fn do_task(agent: &Arc<Agent>, reply: QueueReply) -> Result<(), RunError> {
    let Some(task) = reply.task.clone() else { return Ok(()) };
    let result = perform(agent, reply).await;
    let (done, detail) = match result {
        Ok(detail) => (true, detail),
        Err(problem) => {
            let problem: String = problem.chars().take(PROBLEM_CHARS_MAX).collect();
            tracing::warn!(task = task.id, problem, "the task is given back");
            (false, json!({ "error": problem }))
        }
    };
    let end = TaskEnd { task: task.id, attempt: task.attempt, done, detail };
    let ended = repeat(|| report(&agent.journal, &agent.membership, Some(end.clone()))).await;
    if let Err(error) = ended {
        // The task went to another, or this agent was revoked: the next question for a task tells which.
        tracing::warn!(%error, "the end of the task was not accepted");
    }
    Ok(())
}

/// Runs the task's module and returns its result, or what went wrong.
async fn perform(agent: &Arc<Agent>, reply: QueueReply) -> Result<Value, String> {
    let task = reply.task.ok_or("no task")?;
    let kind = TaskKind::parse(&task.kind).ok_or_else(|| format!("{} is no kind of task", task.kind))?;
    let module = module_for(kind).ok_or_else(|| format!("no module does {kind}"))?;
    let ready = match agent.modules.ready(module) {
        Ok(ready) => ready,
        Err(error) => {
            let reason = error.to_string();
            let refused = Record::ModuleRefused {
                task: task.id.clone(),
                module: module.into(),
                reason: reason.clone(),
            };
            agent.journal.record(&refused).map_err(|error| error.to_string())?;
            return Err(reason);
        }
    };
    let speaker = Speaker::new(
        agent.services.clone(),
        agent.sources.clone(),
        agent.journal.clone(),
        task.clone(),
        reply.grants,
    )
    .map_err(|refusal| refusal.detail)?;
    let start = Start {
        task: task.id.clone(),
        kind: task.kind.clone(),
        portfolio: speaker.portfolio().to_owned(),
        market_day: speaker.market_day(),
        params: task.params.clone(),
    };
    let started = Record::ModuleStarted {
        task: task.id.clone(),
        module: module.into(),
        digest: ready.digest.to_string(),
    };
    agent.journal.record(&started).map_err(|error| error.to_string())?;
    let (agent_here, runtime) = (agent.clone(), tokio::runtime::Handle::current());
    let (said, outcome) = tokio::task::spawn_blocking(move || {
        converse(&agent_here.launcher, &ready, &start, &speaker, &runtime)
    })
    .await
    .map_err(|error| error.to_string())?;
    let said = said.and_then(bounded);
    let (text, violation) = describe(&outcome, &said);
    let ended =
        Record::ModuleEnded { task: task.id, module: module.into(), outcome: text.clone(), violation };
    agent.journal.record(&ended).map_err(|error| error.to_string())?;
    match said {
        // A module that was stopped has failed, even when it had said its result before.
        Ok(result) if outcome == Outcome::Exited(0) => Ok(result),
        Ok(_) => Err(text),
        Err(problem) => Err(format!("{problem}; {text}")),
    }
}

/// A module's result, if it is short enough for the log.
fn bounded(result: Value) -> Result<Value, String> {
    let text = result.to_string();
    // The log spells this one character with six.
    let bytes = text.len() + 5 * text.matches('\u{7f}').count();
    if bytes > RESULT_BYTES_MAX {
        return Err(format!("the module's result has {bytes} bytes; at most {RESULT_BYTES_MAX} are kept"));
    }
    Ok(result)
}

/// What became of the cell, and whether it was stopped for something that it may not do.
fn describe(outcome: &Outcome, said: &Result<Value, String>) -> (String, bool) {
    match outcome {
        Outcome::Exited(0) if said.is_ok() => ("done".to_owned(), false),
        Outcome::Exited(code) => (format!("exited with {code}"), false),
        // Its own fault, somebody's on this machine, or this agent's once the module has failed: nothing that it tried.
        Outcome::Killed { .. } => (outcome.to_string(), false),
        // A slow machine, or a service that did not answer, takes as long.
        Outcome::TimedOut => (format!("stopped: {outcome}"), false),
        Outcome::Violation(violation) => (format!("stopped: tried {violation}"), true),
        Outcome::MemoryLimit | Outcome::CpuLimit => (format!("stopped: {outcome}"), true),
    }
}

/// Holds the conversation with the module: it calls, the speaker answers, until it is done.
fn converse(
    launcher: &Path,
    ready: &Ready,
    start: &Start,
    speaker: &Speaker,
    runtime: &tokio::runtime::Handle,
) -> (Result<Value, String>, Outcome) {
    let mut cell = match Cell::start(&ready.image, launcher, &LIMITS) {
        Ok(cell) => cell,
        Err(error) => return (Err(error.to_string()), Outcome::Exited(1)),
    };
    let said = match (cell.stdin.take(), cell.stdout.take()) {
        (Some(mut to), Some(from)) => dialogue(&mut to, from, start, speaker, runtime),
        _ => Err("the cell has no pipes".to_owned()),
    };
    if said.is_err() {
        cell.kill();
    }
    (said, cell.wait())
}

fn dialogue(
    to: &mut impl std::io::Write,
    from: impl std::io::Read,
    start: &Start,
    speaker: &Speaker,
    runtime: &tokio::runtime::Handle,
) -> Result<Value, String> {
    let mut from = BufReader::with_capacity(64 * 1024, from);
    send(to, &FromAgent::Start(start.clone()))?;
    loop {
        let mut line = Vec::new();
        let limit = LINE_BYTES_MAX as u64 + 2;
        from.by_ref().take(limit).read_until(b'\n', &mut line).map_err(|error| error.to_string())?;
        if line.is_empty() {
            return Err("the module ended without a word".to_owned());
        }
        match parse::<FromModule>(&line).map_err(|error| error.to_string())? {
            FromModule::Call(CallLine { id, call }) => {
                let outcome = runtime.block_on(speaker.answer(call));
                let reply = FromAgent::Reply(Reply { id, outcome });
                if let Err(problem) = send(to, &reply) {
                    let refusal = Refusal { code: "answer_failed".into(), detail: problem };
                    send(to, &FromAgent::Reply(Reply { id, outcome: Err(refusal) }))?;
                }
            }
            FromModule::Done(done) => return Ok(done.result),
            FromModule::Failed(failed) => return Err(format!("the module failed: {}", failed.error)),
        }
    }
}

fn send(to: &mut impl std::io::Write, line: &FromAgent) -> Result<(), String> {
    let line = to_line(line).map_err(|error| error.to_string())?;
    to.write_all(&line).and_then(|()| to.flush()).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use sandbox::Violation;

    use super::*;

    #[test]
    fn only_what_a_module_tried_or_used_up_is_a_violation() {
        let socket = Violation { syscall: "socket".into(), detail: String::new() };
        let killed = |signal| Outcome::Killed { signal };
        for (outcome, text, violation) in [
            (Outcome::Exited(0), "done", false),
            (Outcome::Exited(3), "exited with 3", false),
            (killed(9), "killed by signal 9", false),
            (killed(11), "killed by signal 11", false),
            (Outcome::TimedOut, "stopped: reached its time limit", false),
            (Outcome::Violation(socket), "stopped: tried socket", true),
            (Outcome::MemoryLimit, "stopped: reached its memory limit", true),
            (Outcome::CpuLimit, "stopped: reached its processor limit", true),
        ] {
            assert_eq!(describe(&outcome, &Ok(json!({}))), (text.to_owned(), violation), "{outcome:?}");
        }
        let nothing = describe(&Outcome::Exited(0), &Err("no word".into()));
        assert_eq!(nothing, ("exited with 0".to_owned(), false));
    }

    #[test]
    fn a_result_that_is_too_long_for_the_log_is_a_failure_with_its_reason() {
        // The quotes are part of it.
        let longest = json!("x".repeat(RESULT_BYTES_MAX - 2));
        assert_eq!(bounded(longest.clone()), Ok(longest));
        let refused = bounded(json!("x".repeat(RESULT_BYTES_MAX - 1))).unwrap_err();
        assert_eq!(refused, "the module's result has 16385 bytes; at most 16384 are kept");
        for grows in ["\u{7f}", "\u{1}", "\"", "\u{1f600}"] {
            let result = bounded(json!({ "text": grows.repeat(RESULT_BYTES_MAX / 2) }));
            assert!(result.is_err(), "{grows:?}");
        }
    }

    #[test]
    fn every_result_that_is_kept_fits_into_a_line_of_the_log() {
        for letter in ["\u{7f}", "\u{1}", "\"", "\\", "x", "\u{1f600}"] {
            let kept = (0..RESULT_BYTES_MAX)
                .rev()
                .step_by(64)
                .find_map(|count| bounded(json!({ "text": letter.repeat(count) })).ok());
            let record = Record::TaskEnded {
                task: "2005-03-16/analyse/core".into(),
                holder: "spiffe://example.test/agent/agent-1".into(),
                outcome: "done".into(),
                detail: kept.unwrap(),
            };
            let line = audit::journal::Chain::new("management").unwrap().seal(0, &record);
            assert!(line.is_ok(), "{letter:?}");
        }
    }
}
