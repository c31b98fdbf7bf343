//! What differs between processors: registers, and the system calls that only one of them has.
//!
//! Everything else in this crate reads the same on all of them. A processor that isn't listed doesn't
//! compile, because a wall that nobody looked at is none.

use nix::errno::Errno;
use nix::libc;
use nix::sys::ptrace;
use nix::unistd::Pid;

/// A system call that a traced process is about to make.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Call {
    /// Its number on this processor.
    pub(crate) number: i64,
    /// Its first four arguments.
    pub(crate) args: [u64; 4],
}

#[cfg(target_arch = "x86_64")]
mod processor {
    use super::{Call, Errno, Pid, libc, ptrace};

    /// Reads the call that a process is stopped at.
    pub(crate) fn call(pid: Pid) -> Result<Call, Errno> {
        let registers = ptrace::getregs(pid)?;
        let args = [registers.rdi, registers.rsi, registers.rdx, registers.r10];
        Ok(Call { number: registers.orig_rax.cast_signed(), args })
    }

    /// Makes the call that a process is stopped at fail: it is never made, and "no such file" is its answer.
    pub(crate) fn refuse(pid: Pid) -> Result<(), Errno> {
        let mut registers = ptrace::getregs(pid)?;
        registers.orig_rax = u64::MAX;
        registers.rax = (-i64::from(libc::ENOENT)).cast_unsigned();
        ptrace::setregs(pid, registers)
    }

    /// Calls that a static program makes at its start and that no other processor has.
    pub(crate) const ALLOWED: &[i64] = &[libc::SYS_arch_prctl, libc::SYS_poll];

    /// Calls with a path as the first argument.
    pub(crate) const PATH_FIRST: &[i64] = &[
        libc::SYS_open,
        libc::SYS_creat,
        libc::SYS_stat,
        libc::SYS_lstat,
        libc::SYS_access,
        libc::SYS_readlink,
        libc::SYS_unlink,
        libc::SYS_mkdir,
        libc::SYS_rmdir,
        libc::SYS_rename,
        libc::SYS_link,
        libc::SYS_symlink,
        libc::SYS_chmod,
        libc::SYS_chown,
    ];

    /// The call by which a C library asks for its own path.
    pub(crate) const READLINK: Option<i64> = Some(libc::SYS_readlink);

    /// The names of calls that no other processor has.
    pub(crate) const NAMES: &[(i64, &str)] = &[
        (libc::SYS_open, "open"),
        (libc::SYS_creat, "creat"),
        (libc::SYS_stat, "stat"),
        (libc::SYS_lstat, "lstat"),
        (libc::SYS_access, "access"),
        (libc::SYS_readlink, "readlink"),
        (libc::SYS_unlink, "unlink"),
        (libc::SYS_mkdir, "mkdir"),
        (libc::SYS_rmdir, "rmdir"),
        (libc::SYS_rename, "rename"),
        (libc::SYS_link, "link"),
        (libc::SYS_symlink, "symlink"),
        (libc::SYS_chmod, "chmod"),
        (libc::SYS_chown, "chown"),
        (libc::SYS_fork, "fork"),
        (libc::SYS_vfork, "vfork"),
        (libc::SYS_pipe, "pipe"),
        (libc::SYS_dup2, "dup2"),
        (libc::SYS_select, "select"),
        (libc::SYS_alarm, "alarm"),
        (libc::SYS_pause, "pause"),
        (libc::SYS_ioperm, "ioperm"),
        (libc::SYS_iopl, "iopl"),
        (libc::SYS_modify_ldt, "modify_ldt"),
    ];
}

#[cfg(target_arch = "aarch64")]
mod processor {
    use super::{Call, Errno, Pid, ptrace};

    /// Reads the call that a process is stopped at.
    pub(crate) fn call(pid: Pid) -> Result<Call, Errno> {
        let registers = ptrace::getregs(pid)?;
        let [a, b, c, d, _, _, _, _, number, ..] = registers.regs;
        Ok(Call { number: number.cast_signed(), args: [a, b, c, d] })
    }

    /// Makes the call that a process is stopped at fail, by taking away the path that it names.
    pub(crate) fn refuse(pid: Pid) -> Result<(), Errno> {
        let mut registers = ptrace::getregs(pid)?;
        let [_, path, ..] = &mut registers.regs;
        *path = 0;
        ptrace::setregs(pid, registers)
    }

    /// Calls that a static program makes at its start and that no other processor has.
    pub(crate) const ALLOWED: &[i64] = &[];
    /// Calls with a path as the first argument.
    pub(crate) const PATH_FIRST: &[i64] = &[];
    /// The call by which a C library asks for its own path.
    pub(crate) const READLINK: Option<i64> = None;
    /// The names of calls that no other processor has.
    pub(crate) const NAMES: &[(i64, &str)] = &[];
}

pub(crate) use processor::{ALLOWED, NAMES, PATH_FIRST, READLINK, call, refuse};
