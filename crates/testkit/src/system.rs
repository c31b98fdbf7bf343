//! A whole system under test: the real binary, started in a fresh directory, with everything that a test wants to do to it.
//!
//! Nothing is faked: the processes are separate, the connections are TLS, the files are files. A system that is dropped is
//! stopped.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use wire::layout::{Layout, Topology, read_json};

use crate::intruder::Intruder;

/// Whole systems run one at a time: they are measured by what they do, and share two cores.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// How long anything may take before the test gives up on it.
const PATIENCE: Duration = Duration::from_secs(180);

/// How long a question of an agent for a task stays with management.
const QUESTION: Duration = Duration::from_secs(2);

/// A running system.
pub struct System {
    trader: PathBuf,
    directory: tempfile::TempDir,
    up: Option<Child>,
    environment: Vec<(String, String)>,
    _alone: MutexGuard<'static, ()>,
}

impl System {
    /// Starts `trader up` with more arguments.
    ///
    /// # Panics
    /// When it cannot be started.
    #[must_use]
    pub fn start(trader: &Path, arguments: &[&str]) -> Self {
        let mut system = Self::prepare(trader);
        system.up(arguments);
        system
    }

    /// A fresh directory in which nothing is started yet.
    ///
    /// # Panics
    /// When there can be none.
    #[must_use]
    pub fn prepare(trader: &Path) -> Self {
        let alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        let directory = tempfile::tempdir().unwrap_or_else(|error| panic!("no temporary directory: {error}"));
        Self { trader: trader.to_owned(), directory, up: None, environment: Vec::new(), _alone: alone }
    }

    /// Gives an environment variable to every command that is started from now on.
    pub fn environment(&mut self, name: &str, value: &str) {
        self.environment.push((name.to_owned(), value.to_owned()));
    }

    fn trader(&self) -> Command {
        let mut command = Command::new(&self.trader);
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command
    }

    /// Starts `trader up` on the directory as it is.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn up(&mut self, arguments: &[&str]) {
        let child = self
            .trader()
            .arg("up")
            .arg("--dir")
            .arg(self.dir())
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn();
        self.up = Some(child.unwrap_or_else(|error| panic!("trader does not start: {error}")));
    }

    /// The address of the console, with its token, as `trader up` says it on standard error; what it says later is not kept.
    ///
    /// # Panics
    /// When it does not say it.
    pub fn console(&mut self) -> String {
        let said = self.up.as_mut().unwrap().stderr.take().unwrap();
        let mut lines = BufReader::new(said).lines();
        let url = lines
            .by_ref()
            .map_while(Result::ok)
            .find_map(|line| line.strip_prefix("console").map(|url| url.trim().to_owned()));
        std::thread::spawn(move || lines.for_each(drop));
        url.unwrap_or_else(|| panic!("no console\n{}", self.outputs()))
    }

    /// The state directory.
    #[must_use]
    pub fn dir(&self) -> PathBuf {
        self.directory.path().join("state")
    }

    /// Runs a command on the system and returns what it printed.
    ///
    /// # Panics
    /// When it cannot be started.
    #[must_use]
    pub fn command(&self, arguments: &[&str]) -> Output {
        let output = self.trader().args(arguments).arg("--dir").arg(self.dir()).output();
        output.unwrap_or_else(|error| panic!("trader does not start: {error}"))
    }

    /// Runs a command with `--json` and returns the value.
    ///
    /// # Panics
    /// When it fails or prints something else.
    pub fn json(&self, arguments: &[&str]) -> Value {
        let output = self.command(&[arguments, &["--json"]].concat());
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        parse(&output.stdout)
    }

    /// Waits until the system's status is as wanted, and returns it.
    ///
    /// # Panics
    /// When that does not come.
    pub fn wait_until(&self, what: &str, mut wanted: impl FnMut(&Value) -> bool) -> Value {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let output = self.command(&["status", "--json"]);
            if output.status.success() {
                let status = parse(&output.stdout);
                if wanted(&status) {
                    return status;
                }
            }
            assert!(Instant::now() < deadline, "this did not come: {what}\n{}", self.outputs());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits until so many orders were filled.
    pub fn wait_for_fills(&self, fills: u64) -> Value {
        self.wait_until(&format!("{fills} fills"), |status| {
            status.pointer("/counts/fills").and_then(Value::as_u64).is_some_and(|found| found >= fills)
        })
    }

    /// The process id of one of the system's processes.
    ///
    /// # Panics
    /// When it is not known.
    #[must_use]
    pub fn pid(&self, process: &str) -> Pid {
        let path = self.dir().join("processes").join(process).join("pid");
        let text =
            std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        Pid::from_raw(
            text.trim().parse().unwrap_or_else(|_| panic!("{} holds no process id", path.display())),
        )
    }

    /// The processes that one of the system's processes has started: of an agent, its modules. None when it is gone.
    #[must_use]
    pub fn children(&self, process: &str) -> Vec<Pid> {
        let Ok(threads) = std::fs::read_dir(format!("/proc/{}/task", self.pid(process))) else {
            return Vec::new();
        };
        let of = |thread: std::fs::DirEntry| {
            std::fs::read_to_string(thread.path().join("children")).unwrap_or_default()
        };
        let children: Vec<String> = threads.flatten().map(of).collect();
        children
            .iter()
            .flat_map(|text| text.split_whitespace())
            .filter_map(|pid| pid.parse().ok())
            .map(Pid::from_raw)
            .collect()
    }

    /// Sends a signal to one of the system's processes.
    ///
    /// # Panics
    /// When there is no such process.
    pub fn signal(&self, process: &str, signal: Signal) {
        if let Err(error) = kill(self.pid(process), signal) {
            panic!("{process} cannot be sent {signal}: {error}");
        }
    }

    /// The process id of `trader up`.
    ///
    /// # Panics
    /// When it was not started.
    #[must_use]
    pub fn up_pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.up.as_ref().unwrap().id()).unwrap())
    }

    /// Starts a command on the system and does not wait for it.
    ///
    /// # Panics
    /// When it cannot be started.
    #[must_use]
    pub fn spawn(&self, arguments: &[&str]) -> Child {
        let mut command = self.trader();
        command.args(arguments).arg("--dir").arg(self.dir());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }

    /// Where things are.
    #[must_use]
    pub fn layout(&self) -> Layout {
        Layout::new(&self.dir())
    }

    /// Who listens where.
    ///
    /// # Panics
    /// When it is not known.
    #[must_use]
    pub fn topology(&self) -> Topology {
        read_json(&self.layout().topology()).unwrap_or_else(|error| panic!("{error}"))
    }

    /// Steals the identity of a process, which goes on as if nothing had happened.
    #[must_use]
    pub fn steal(&self, process: &str) -> Intruder {
        Intruder::with_identity(&self.layout().identity(process), self.topology())
    }

    /// The identity of an operator.
    #[must_use]
    pub fn operator(&self, name: &str) -> Intruder {
        Intruder::with_identity(&self.layout().operator(name), self.topology())
    }

    /// Takes the place of an agent: its process is held, and whatever task it had goes back to the queue.
    /// `signal(name, Signal::SIGCONT)` lets it go on.
    pub fn take_over(&self, agent: &str) -> Intruder {
        self.signal(agent, Signal::SIGSTOP);
        // Its last question for a task is still with management, and would compete with ours.
        std::thread::sleep(QUESTION + Duration::from_millis(200));
        let intruder = self.steal(agent);
        let reply = intruder.queue(0);
        if reply.task.is_some() {
            intruder.give_back(&reply);
        }
        intruder
    }

    /// Waits until a process has journalled a certain record, and returns its entry.
    ///
    /// # Panics
    /// When that does not come.
    pub fn wait_for_record(&self, process: &str, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(entry) = self.journal(process).into_iter().find(|entry| wanted(&entry["record"])) {
                return entry;
            }
            assert!(Instant::now() < deadline, "{process} did not journal {what}\n{}", self.outputs());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Waits until `trader up` ends by itself, and returns its exit status and what it printed.
    ///
    /// # Panics
    /// When it does not end.
    pub fn finish(&mut self) -> (bool, Value) {
        let Some(mut up) = self.up.take() else { panic!("nothing was started") };
        let deadline = Instant::now() + PATIENCE;
        while matches!(up.try_wait(), Ok(None)) {
            if Instant::now() > deadline {
                let _ = up.kill();
                panic!("the run does not end\n{}", self.outputs());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let output = up.wait_with_output().unwrap_or_else(|error| panic!("no output: {error}"));
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.stdout.is_empty(), "nothing was printed; it said:\n{said}\n{}", self.outputs());
        (output.status.success(), parse(&output.stdout))
    }

    /// Tells `trader up` to stop, and waits until it has.
    ///
    /// # Panics
    /// When it does not stop.
    pub fn stop(&mut self) -> Output {
        let Some(up) = self.up.take() else { panic!("nothing was started") };
        interrupt(&up);
        up.wait_with_output().unwrap_or_else(|error| panic!("no output: {error}"))
    }

    /// The last words of every process, for a test that fails.
    #[must_use]
    pub fn outputs(&self) -> String {
        let mut all = String::new();
        let Ok(processes) = std::fs::read_dir(self.dir().join("processes")) else { return all };
        for process in processes.flatten() {
            let text = std::fs::read_to_string(process.path().join("output.log")).unwrap_or_default();
            let lines: Vec<&str> = text.lines().collect();
            let last = lines.get(lines.len().saturating_sub(5)..).unwrap_or_default();
            if !last.is_empty() {
                all.push_str(&format!(
                    "{}:\n  {}\n",
                    process.file_name().to_string_lossy(),
                    last.join("\n  ")
                ));
            }
        }
        all
    }

    /// Every entry that a process has journalled, oldest first.
    ///
    /// # Panics
    /// When the journals cannot be read.
    #[must_use]
    pub fn journal(&self, process: &str) -> Vec<Value> {
        let path =
            self.dir().join("processes").join(process).join("journal").join(format!("{process}.journal"));
        let text =
            std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }
}

impl Drop for System {
    fn drop(&mut self) {
        if let Some(mut up) = self.up.take() {
            interrupt(&up);
            let _ = up.wait();
        }
    }
}

fn interrupt(up: &Child) {
    if let Ok(id) = i32::try_from(up.id()) {
        let _ = kill(Pid::from_raw(id), Signal::SIGTERM);
    }
}

fn parse(bytes: &[u8]) -> Value {
    serde_json::from_slice(bytes)
        .unwrap_or_else(|error| panic!("not one JSON value ({error}): {}", String::from_utf8_lossy(bytes)))
}
