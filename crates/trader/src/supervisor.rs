//! Starts, watches and stops the processes of the system.
//!
//! A process that ends by itself is started again: killing any of them at any instant loses nothing, so that is always safe.
//! One whose identity was revoked stays down until two people have reinstated it.
//!
//! INVARIANT: children are started by the main thread only: they are told to end when the thread that started them ends.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt as _;
use std::process::Stdio;
use std::time::{Duration, Instant};

use identity::entry::UnixProgram;
use identity::{Limits, Requirements};
use management::bootstrap;
use management::routes::{AgentView, Summary, TicketBody};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::AsyncWriteExt as _;
use tokio::process::{Child, Command};
use wire::files;
use wire::journal::unix_ms;
use wire::layout::{Layout, SERVICES};
use wire::tls::Identity;

use crate::operator::Operator;
use crate::output::{Failure, say};
use crate::processes::Process;

/// Node agents on one machine.
const AGENTS: u32 = 3;
/// How long a process may take to end before it is killed.
const STOP_WAIT: Duration = Duration::from_secs(5);
/// How long management may take to come up.
const MANAGEMENT_WAIT: Duration = Duration::from_secs(30);
/// Pause before a process that ended is started again: the first, and the longest.
const RESTART: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));
/// A process that ran this long begins with the first pause again.
const STEADY: Duration = Duration::from_secs(10);
/// An identity with less life than this is made anew before its process starts, in seconds. One that runs renews its own.
const RENEW_BELOW_S: i64 = 600;
/// How often it is asked whether a revoked process was reinstated.
const ASK_AFTER_REVOKED: Duration = Duration::from_secs(1);
/// Exit status of a process whose identity is no longer good.
const REVOKED: i32 = 3;

/// Every process of the system, in the order in which they are started; they are stopped in the opposite order.
pub(crate) fn all_processes() -> Vec<Process> {
    let mut units: Vec<Process> = Vec::new();
    for (domain, _, count) in SERVICES.iter().filter(|(domain, ..)| *domain != "desk") {
        for number in 1..=u32::try_from(*count).unwrap_or(1) {
            let unit = Process::Unit { domain: (*domain).to_owned(), number };
            if !units.contains(&unit) {
                units.push(unit);
            }
        }
    }
    let mut all = vec![Process::Management, Process::Balancer];
    all.append(&mut units);
    all.push(Process::Desk);
    all.extend((1..=AGENTS).map(|number| Process::Agent { name: format!("agent-{number}") }));
    all
}

/// One process under supervision.
struct Watched {
    process: Process,
    child: Option<Child>,
    started: Instant,
    pause: Duration,
    restart_at: Option<Instant>,
    /// Its identity was revoked: it waits for two people.
    revoked: bool,
}

/// The supervisor.
pub(crate) struct Supervisor {
    layout: Layout,
    trust_domain: String,
    operator: Operator,
    /// What its processes must show besides their tickets: that they are this very program, of this very user.
    own_program: Option<UnixProgram>,
    watched: Vec<Watched>,
    /// When it was last asked whether a revoked process was reinstated.
    asked: Instant,
}

impl Supervisor {
    /// Starts everything, in order.
    pub(crate) async fn start(layout: Layout) -> Result<Self, Failure> {
        let (_, bundle) = bootstrap::bundle(&layout).map_err(Failure::broken)?;
        let operator = Operator::connect(&layout, "owner")?;
        let mut supervisor = Self {
            layout,
            trust_domain: bundle.trust_domain,
            operator,
            own_program: own_program()?,
            watched: Vec::new(),
            asked: Instant::now(),
        };
        for process in all_processes() {
            let is_management = process == Process::Management;
            supervisor.watched.push(Watched {
                process,
                child: None,
                started: Instant::now(),
                pause: RESTART.0,
                restart_at: None,
                revoked: false,
            });
            let index = supervisor.watched.len() - 1;
            match supervisor.launch(index).await {
                Ok(()) if is_management => supervisor.wait_for_management().await?,
                Ok(()) => {}
                Err(failure) if is_management => return Err(failure),
                // One that cannot be started, such as an agent in quarantine, keeps nobody else from working.
                Err(failure) => supervisor.try_again(index, &failure),
            }
        }
        Ok(supervisor)
    }

    /// The way to management.
    pub(crate) fn operator(&self) -> &Operator {
        &self.operator
    }

    /// How many processes are up.
    pub(crate) fn running(&self) -> usize {
        self.watched.iter().filter(|watched| watched.child.is_some()).count()
    }

    async fn wait_for_management(&mut self) -> Result<(), Failure> {
        let deadline = Instant::now() + MANAGEMENT_WAIT;
        loop {
            let error = match self.operator.get::<Summary>("/v1/summary").await {
                Ok(_) => return Ok(()),
                Err(error) => error,
            };
            let ended = match self.watched.first_mut().and_then(|watched| watched.child.as_mut()) {
                Some(child) => child.try_wait().map_err(Failure::broken)?,
                None => None,
            };
            if ended.is_some() || Instant::now() > deadline {
                return Err(Failure::broken(format!(
                    "management does not come up ({}); its log is {}",
                    error.words(),
                    self.log_path(&Process::Management).display()
                )));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn log_path(&self, process: &Process) -> std::path::PathBuf {
        self.layout.process(&process.name()).join("output.log")
    }

    /// Starts one process, with a ticket when it has no identity that lasts.
    async fn launch(&mut self, index: usize) -> Result<(), Failure> {
        let Some(process) = self.watched.get(index).map(|watched| watched.process.clone()) else {
            return Ok(());
        };
        let ticket = self.ticket(&process).await?;
        let name = process.name();
        files::create_private_dir(&self.layout.process(&name)).map_err(Failure::broken)?;
        let output = OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o600)
            .open(self.log_path(&process))
            .map_err(Failure::broken)?;
        let program = std::env::current_exe().map_err(Failure::broken)?;
        let mut child = Command::new(program)
            .arg("process")
            .args(process.arguments())
            .arg("--dir")
            .arg(self.layout.root())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(output)
            // Ctrl-C reaches the supervisor alone, which then stops the others in order.
            .process_group(0)
            .spawn()
            .map_err(Failure::broken)?;
        let pid = child.id().unwrap_or_default().to_string();
        files::write_private_atomic(&self.layout.process(&name).join("pid"), pid.as_bytes())
            .map_err(Failure::broken)?;
        if let Some(mut stdin) = child.stdin.take() {
            let line = format!("{}\n", ticket.unwrap_or_default());
            // A child that is gone already is found by the next look at it.
            let _ = stdin.write_all(line.as_bytes()).await;
        }
        if let Some(watched) = self.watched.get_mut(index) {
            watched.child = Some(child);
            watched.started = Instant::now();
            watched.restart_at = None;
        }
        Ok(())
    }

    async fn ticket(&self, process: &Process) -> Result<Option<String>, Failure> {
        let Some(id) = process.id(&self.trust_domain) else { return Ok(None) };
        let expiry = Identity::stored_expiry(&self.layout.identity(&process.name())).ok();
        let lasts = expiry.is_some_and(|expiry| expiry > unix_ms() / 1_000 + RENEW_BELOW_S);
        if lasts && !self.is_watched_as_revoked(process) {
            return Ok(None);
        }
        let body = TicketBody {
            target: id.to_string(),
            reason: "to be started".into(),
            requires: Requirements { unix: self.own_program.clone(), ..Requirements::default() },
            limits: Limits::default(),
            ttl_s: None,
            keep_removed: true,
        };
        let answer: serde_json::Value = self.operator.post("/v1/tickets", &body).await?;
        Ok(answer.get("ticket").and_then(serde_json::Value::as_str).map(str::to_owned))
    }

    fn is_watched_as_revoked(&self, process: &Process) -> bool {
        self.watched.iter().any(|watched| watched.process == *process && watched.revoked)
    }

    /// Notes that a process could not be started, and when to try again; one that waits for two people is asked after like
    /// any revoked one.
    fn try_again(&mut self, index: usize, failure: &Failure) {
        let Some(watched) = self.watched.get_mut(index) else { return };
        let name = watched.process.name();
        say(&format!("{name} cannot be started: {}", failure.words()));
        let waits = |code: &&str| failure.words().starts_with(*code);
        watched.revoked |= ["quarantined", "removed"].iter().any(waits);
        watched.restart_at = Some(Instant::now() + watched.pause);
        watched.pause = (watched.pause * 2).min(RESTART.1);
    }

    /// Looks after every process once: starts again what ended, and what was reinstated.
    pub(crate) async fn look_after(&mut self) {
        let mut reinstated: Option<Vec<AgentView>> = None;
        // Every question is an entry of the log: once a second is soon enough for what takes two people.
        let ask = self.asked.elapsed() >= ASK_AFTER_REVOKED;
        for index in 0..self.watched.len() {
            let Some(watched) = self.watched.get_mut(index) else { continue };
            let name = watched.process.name();
            if let Some(child) = watched.child.as_mut() {
                match child.try_wait() {
                    Ok(Some(status)) => {
                        watched.child = None;
                        watched.revoked = status.code() == Some(REVOKED);
                        if watched.revoked {
                            say(&format!(
                                "{name} was revoked; `trader agent reinstate {name}` brings it back, or a new ticket if \
                                 it was removed"
                            ));
                            continue;
                        }
                        if watched.started.elapsed() > STEADY {
                            watched.pause = RESTART.0;
                        }
                        say(&format!("{name} ended ({status}); it is started again"));
                        watched.restart_at = Some(Instant::now() + watched.pause);
                        watched.pause = (watched.pause * 2).min(RESTART.1);
                    }
                    Ok(None) => {}
                    Err(error) => say(&format!("{name} cannot be watched: {error}")),
                }
                continue;
            }
            let due = watched.restart_at.is_some_and(|at| Instant::now() >= at);
            let mut enrolled = false;
            let launch = if watched.revoked {
                if reinstated.is_none() && ask {
                    self.asked = Instant::now();
                    reinstated = self.operator.get("/v1/agents").await.ok();
                }
                let agent =
                    reinstated.as_ref().and_then(|agents| agents.iter().find(|agent| agent.name == name));
                // Somebody enrolled it anew by hand, and its identity lies there: it needs no ticket.
                enrolled = agent.is_some_and(|agent| {
                    let held = Identity::load(&self.layout.identity(&name));
                    agent.status == "active" && held.is_ok_and(|held| held.epoch() == agent.epoch)
                });
                enrolled || agent.is_some_and(|agent| agent.status == "reinstated")
            } else {
                due
            };
            if launch {
                if let Some(watched) = self.watched.get_mut(index).filter(|_| enrolled) {
                    watched.revoked = false;
                }
                match self.launch(index).await {
                    Ok(()) => {
                        if let Some(watched) = self.watched.get_mut(index) {
                            watched.revoked = false;
                        }
                    }
                    Err(failure) => self.try_again(index, &failure),
                }
            }
        }
    }

    /// Stops everything in order: those who ask first, those who answer last.
    pub(crate) async fn stop(&mut self) {
        let mut groups: Vec<Vec<usize>> = Vec::new();
        let rank = |process: &Process| match process {
            Process::Agent { .. } => 0,
            Process::Desk => 1,
            Process::Unit { .. } => 2,
            Process::Balancer => 3,
            Process::Management => 4,
        };
        for wanted in 0..=4 {
            let members =
                self.watched.iter().enumerate().filter(|(_, watched)| rank(&watched.process) == wanted);
            groups.push(members.map(|(index, _)| index).collect());
        }
        for group in groups {
            for index in &group {
                if let Some(child) = self.watched.get(*index).and_then(|watched| watched.child.as_ref()) {
                    terminate(child);
                }
            }
            for index in group {
                let Some(watched) = self.watched.get_mut(index) else { continue };
                if let Some(mut child) = watched.child.take()
                    && tokio::time::timeout(STOP_WAIT, child.wait()).await.is_err()
                {
                    say(&format!("{} did not end in time; it is killed", watched.process.name()));
                    let _ = child.kill().await;
                }
            }
        }
    }
}

/// What the processes of this machine must show. A kernel that cannot tell who is at the other end of a socket leaves
/// them with their tickets, which say so.
fn own_program() -> Result<Option<UnixProgram>, Failure> {
    if !wire::listener::kernel_tells_programs() {
        say(
            "this kernel cannot tell programs apart (Linux 6.5 can): processes enrol with their tickets alone",
        );
        return Ok(None);
    }
    let executables = [crate::processes::digest_of_program()?].into();
    Ok(Some(UnixProgram { uid: nix::unistd::geteuid().as_raw(), executables }))
}

fn terminate(child: &Child) {
    if let Some(pid) = child.id().and_then(|id| i32::try_from(id).ok()) {
        let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_two_units_of_each_domain_one_desk_and_three_agents() {
        let names: Vec<String> = all_processes().iter().map(Process::name).collect();
        let expected = [
            "management",
            "balancer",
            "unit-market-1",
            "unit-market-2",
            "unit-news-1",
            "unit-news-2",
            "unit-research-1",
            "unit-research-2",
            "unit-ledger-1",
            "unit-ledger-2",
            "desk-1",
            "agent-1",
            "agent-2",
            "agent-3",
        ];
        assert_eq!(names, expected);
    }
}
