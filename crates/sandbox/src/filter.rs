//! The seccomp wall: the system calls that a module may make. All others stop it and are reported.
//!
//! The list is what a static, single-threaded program needs to compute and to talk through pipes that are
//! already open. None of it opens, creates, connects, starts or signals anything.
//!
//! INVARIANT: a call that isn't listed never happens. With a tracer it is reported and the module killed;
//! without one the kernel itself refuses it.

use std::collections::BTreeMap;

use nix::libc;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
};

use crate::arch;

/// Calls that are allowed whatever their arguments are.
const ALLOWED: &[i64] = &[
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_close,
    libc::SYS_fstat,
    libc::SYS_brk,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_restart_syscall,
    libc::SYS_sigaltstack,
    libc::SYS_ppoll,
    libc::SYS_futex,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_getrandom,
    libc::SYS_clock_gettime,
    libc::SYS_clock_getres,
    libc::SYS_gettimeofday,
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_set_tid_address,
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_yield,
];

/// Builds the wall for the process with this number.
///
/// # Errors
/// The compiler's, as text.
pub(crate) fn program(pid: i32) -> Result<BpfProgram, String> {
    rules(pid)
        .and_then(|rules| {
            let arch = std::env::consts::ARCH.try_into()?;
            SeccompFilter::new(rules, SeccompAction::Trace(0), SeccompAction::Allow, arch)?.try_into()
        })
        .map_err(|error: seccompiler::BackendError| error.to_string())
}

fn rules(pid: i32) -> Result<BTreeMap<i64, Vec<SeccompRule>>, seccompiler::BackendError> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
        ALLOWED.iter().chain(arch::ALLOWED).map(|number| (*number, Vec::new())).collect();

    // Memory may be mapped and protected, but none may be made executable: the program is all the code there
    // is.
    let exec = u64::from(libc::PROT_EXEC.cast_unsigned());
    let not_executable = SeccompCondition::new(2, SeccompCmpArgLen::Dword, SeccompCmpOp::MaskedEq(exec), 0)?;
    rules.insert(libc::SYS_mmap, vec![SeccompRule::new(vec![not_executable.clone()])?]);
    rules.insert(libc::SYS_mprotect, vec![SeccompRule::new(vec![not_executable])?]);

    // Limits of the process itself may be read, never set.
    let own = SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, 0)?;
    let read_only = SeccompCondition::new(2, SeccompCmpArgLen::Qword, SeccompCmpOp::Eq, 0)?;
    rules.insert(libc::SYS_prlimit64, vec![SeccompRule::new(vec![own, read_only])?]);

    // A program that gives up signals itself. It may signal nobody else, and nothing else.
    let itself = u64::from(pid.cast_unsigned());
    let abort = u64::from(libc::SIGABRT.cast_unsigned());
    let to_itself = SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, itself)?;
    let only_abort = SeccompCondition::new(2, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, abort)?;
    rules.insert(libc::SYS_tgkill, vec![SeccompRule::new(vec![to_itself, only_abort])?]);
    Ok(rules)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_opens_connects_or_starts_is_listed() {
        let rules = rules(1).unwrap();
        for number in [
            libc::SYS_openat,
            libc::SYS_openat2,
            libc::SYS_socket,
            libc::SYS_socketpair,
            libc::SYS_connect,
            libc::SYS_bind,
            libc::SYS_clone,
            libc::SYS_clone3,
            libc::SYS_execve,
            libc::SYS_execveat,
            libc::SYS_ptrace,
            libc::SYS_bpf,
            libc::SYS_io_uring_setup,
            libc::SYS_keyctl,
            libc::SYS_userfaultfd,
            libc::SYS_perf_event_open,
            libc::SYS_memfd_create,
            libc::SYS_ioctl,
            libc::SYS_kill,
            libc::SYS_prctl,
            libc::SYS_seccomp,
        ] {
            assert!(!rules.contains_key(&number), "system call {number} is on the list");
        }
    }

    #[test]
    fn the_wall_compiles() {
        assert!(!program(1).unwrap().is_empty());
    }
}
