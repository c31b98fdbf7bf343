//! The launcher's half: a fresh process builds the walls around itself and becomes the module.
//!
//! Owns: the order of the walls. The image is opened and checked first, while that is still possible; then
//! each step takes something away, the seccomp wall last. What the machine doesn't permit is left out and
//! reported, except for that last wall and the privilege lock: without them nothing runs.
//!
//! INVARIANT: what is executed is the open file whose digest was checked, and it is sealed.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::process::ExitCode;

use keys::Digest;
use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, Ruleset, RulesetAttr, RulesetStatus, Scope,
};
use nix::sched::{CloneFlags, unshare};
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{Signal, raise};
use nix::sys::{prctl, ptrace};
use nix::unistd::{self, Gid, Uid};

use crate::{filter, image};

/// What the launcher says before a refusal.
pub(crate) const REFUSED: &str = "cell refused: ";
/// What the launcher says before the list of walls that stand.
pub(crate) const WALLS: &str = "cell walls: ";
/// The user and group that nobody is.
const NOBODY: u32 = 65_534;
/// Open files that a module may have: three pipes and a little room for its start.
const OPEN_FILES_MAX: u64 = 8;

/// Whether the last wall is built. Only tests leave it out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Seccomp {
    On,
    #[cfg_attr(not(feature = "danger"), expect(dead_code, reason = "made by the feature alone"))]
    Off,
}

#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error("the arguments are not --image PATH --digest HEX --memory-bytes N --cpu-seconds N --agent PID")]
    Arguments,
    #[error("the image could not be read: {0}")]
    Unreadable(io::Error),
    #[error("the image is not sealed")]
    NotSealed,
    #[error("the image's digest is not {0}")]
    Digest(Digest),
    #[error("the agent that asked for the cell is gone")]
    Orphan,
    #[error("{0} was not permitted: {1}")]
    Step(&'static str, nix::Error),
    #[error("the seccomp wall could not be built: {0}")]
    Seccomp(String),
}

/// Runs a module in a cell: builds the walls around this process and becomes the module. Returns only when it
/// refuses; the reason has then been written to standard error.
///
/// The arguments are those that [`crate::Cell::start`] passes after `cell`. The process must have a single
/// thread, and its parent must be the agent that made the image.
pub fn cell_main(args: impl IntoIterator<Item = String>) -> ExitCode {
    run(args, Seccomp::On)
}

pub(crate) fn run(args: impl IntoIterator<Item = String>, seccomp: Seccomp) -> ExitCode {
    let Err(refused) = become_module(args, seccomp);
    let _ = writeln!(io::stderr(), "{REFUSED}{refused}");
    ExitCode::from(125)
}

struct Order {
    agent: i32,
    image: String,
    digest: Digest,
    memory_bytes: u64,
    cpu_seconds: u64,
}

fn become_module(
    args: impl IntoIterator<Item = String>,
    seccomp: Seccomp,
) -> Result<std::convert::Infallible, Refused> {
    let order = parse(args).ok_or(Refused::Arguments)?;
    let program = open(&order)?;
    let agent = unistd::getppid();
    if order.agent != agent.as_raw() || !order.image.starts_with(image::OWN_FILES) {
        return Err(Refused::Orphan);
    }
    let wall = filter::program(unistd::getpid().as_raw()).map_err(Refused::Seccomp)?;

    close_others(&program);
    let mut walls = vec!["seccomp"];
    walls.extend(separate());
    walls.extend(become_nobody()?);
    // A change of user clears the death signal, so it is set afterwards; the agent may have died before.
    prctl::set_pdeathsig(Signal::SIGKILL).map_err(|errno| Refused::Step("the death signal", errno))?;
    if unistd::getppid() != agent {
        return Err(Refused::Orphan);
    }
    prctl::set_no_new_privs().map_err(|errno| Refused::Step("the privilege lock", errno))?;
    walls.push(landlock());
    let _ = writeln!(io::stderr(), "{WALLS}{}", walls.join(" "));

    // From here on the agent's tracer watches.
    ptrace::traceme().map_err(|errno| Refused::Step("tracing", errno))?;
    raise(Signal::SIGSTOP).map_err(|errno| Refused::Step("the first stop", errno))?;
    limit(&order)?;
    match seccomp {
        Seccomp::On => {
            seccompiler::apply_filter(&wall).map_err(|error| Refused::Seccomp(error.to_string()))?;
        }
        Seccomp::Off => {}
    }
    unistd::fexecve::<_, _, &std::ffi::CStr>(&program, &[c"module"], &[])
        .map_err(|errno| Refused::Step("execution", errno))
}

fn parse(args: impl IntoIterator<Item = String>) -> Option<Order> {
    let (mut agent, mut image, mut digest) = (None, None, None);
    let (mut memory_bytes, mut cpu_seconds) = (None, None);
    let mut args = args.into_iter();
    while let Some(name) = args.next() {
        let value = args.next()?;
        match name.as_str() {
            "--agent" if agent.is_none() => agent = Some(value.parse().ok()?),
            "--image" if image.is_none() => image = Some(value),
            "--digest" if digest.is_none() => digest = Some(Digest::from_hex(&value).ok()?),
            "--memory-bytes" if memory_bytes.is_none() => memory_bytes = Some(value.parse().ok()?),
            "--cpu-seconds" if cpu_seconds.is_none() => cpu_seconds = Some(value.parse().ok()?),
            _ => return None,
        }
    }
    Some(Order {
        agent: agent?,
        image: image?,
        digest: digest?,
        memory_bytes: memory_bytes?,
        cpu_seconds: cpu_seconds?,
    })
}

fn open(order: &Order) -> Result<File, Refused> {
    let mut file = File::open(&order.image).map_err(Refused::Unreadable)?;
    if !image::is_sealed(&file) {
        return Err(Refused::NotSealed);
    }
    match image::digest_of(&mut file).map_err(Refused::Unreadable)? {
        Some(digest) if digest == order.digest => Ok(file),
        Some(_) | None => Err(Refused::Digest(order.digest)),
    }
}

/// Closes every descriptor that was inherited by mistake.
fn close_others(image: &File) {
    use std::os::fd::AsRawFd as _;

    let Ok(entries) = fs::read_dir("/proc/self/fd") else { return };
    let open: Vec<i32> =
        entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    for descriptor in
        open.into_iter().filter(|descriptor| *descriptor > 2 && *descriptor != image.as_raw_fd())
    {
        let _ = unistd::close(descriptor);
    }
}

/// Leaves the machine's network, message queues, host name and file tree behind.
fn separate() -> Vec<&'static str> {
    let own = CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWNS;
    let separated = match unistd::geteuid().is_root() {
        true => unshare(own),
        false => unshare(own | CloneFlags::CLONE_NEWUSER),
    };
    let mut walls = Vec::new();
    if separated.is_ok() {
        walls.push("namespaces");
    }
    // A directory that holds nothing but notes on this process's own descriptors, and in which nothing can be
    // made.
    if unistd::chroot("/proc/self/fdinfo").is_ok() && unistd::chdir("/").is_ok() {
        walls.push("root");
    }
    walls
}

/// Gives up the superuser, where this process is it. To stay it is no option.
fn become_nobody() -> Result<Option<&'static str>, Refused> {
    if !unistd::geteuid().is_root() {
        return Ok(None);
    }
    let (user, group) = (Uid::from_raw(NOBODY), Gid::from_raw(NOBODY));
    unistd::setgroups(&[])
        .and_then(|()| unistd::setresgid(group, group, group))
        .and_then(|()| unistd::setresuid(user, user, user))
        .map_err(|errno| Refused::Step("the change of user", errno))?;
    Ok(Some("nobody"))
}

/// Denies every file, every port and every other process, as far as this kernel knows how.
fn landlock() -> &'static str {
    let abi = ABI::V7;
    let status = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(abi))
        .and_then(|rules| rules.handle_access(AccessNet::from_all(abi)))
        .and_then(|rules| rules.scope(Scope::from_all(abi)))
        .and_then(Ruleset::create)
        .and_then(landlock::RulesetCreated::restrict_self);
    match status.map(|status| status.ruleset) {
        Ok(RulesetStatus::FullyEnforced) => "landlock",
        Ok(RulesetStatus::PartiallyEnforced) => "landlock-in-part",
        Ok(RulesetStatus::NotEnforced) | Err(_) => "no-landlock",
    }
}

/// Sets the limits, none of which can be raised again.
fn limit(order: &Order) -> Result<(), Refused> {
    let limits = [
        (Resource::RLIMIT_CORE, 0, 0),
        (Resource::RLIMIT_FSIZE, 0, 0),
        (Resource::RLIMIT_NOFILE, OPEN_FILES_MAX, OPEN_FILES_MAX),
        (Resource::RLIMIT_NPROC, 1, 1),
        (Resource::RLIMIT_MEMLOCK, 0, 0),
        (Resource::RLIMIT_MSGQUEUE, 0, 0),
        // The second is for a program that doesn't heed the first.
        (Resource::RLIMIT_CPU, order.cpu_seconds, order.cpu_seconds.saturating_add(1)),
        (Resource::RLIMIT_AS, order.memory_bytes, order.memory_bytes),
    ];
    limits.into_iter().try_for_each(|(resource, soft, hard)| {
        setrlimit(resource, soft, hard).map_err(|errno| Refused::Step("a resource limit", errno))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split(' ').map(str::to_owned).collect()
    }

    #[test]
    fn only_complete_and_unrepeated_arguments_are_understood() {
        let digest = Digest::of(b"x");
        let good =
            format!("--agent 1 --image /proc/self/fd/3 --digest {digest} --memory-bytes 1 --cpu-seconds 2");
        assert!(parse(words(&good)).is_some());
        assert!(parse(words(&format!("{good} --image /etc/passwd"))).is_none());
        assert!(parse(words(&format!("{good} --keep-root yes"))).is_none());
        assert!(parse(words(&format!("{good} --image"))).is_none());
        assert!(parse(words("--image /proc/self/fd/3")).is_none());
        assert!(parse(words(&good.replace(&digest.to_string(), "00"))).is_none());
    }
}
