//! What a module tried when it hit the wall, in words that a reader of the log understands.
//!
//! Owns: names of system calls, and reading their paths and addresses out of a stopped process. It decides
//! nothing.
//!
//! INVARIANT: everything here comes from a hostile process; text is bounded and holds no control characters.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};

use nix::libc;
use nix::sys::ptrace;
use nix::unistd::Pid;

use crate::arch::{self, Call};

/// The longest path or address that is read out of a process, in bytes.
const TEXT_BYTES_MAX: usize = 256;

/// Something that a module tried and mustn't.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// Name of the system call: `openat`, `socket`.
    pub syscall: String,
    /// On what: a path, an address, a kind of socket. Empty where nothing more is known.
    pub detail: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.detail.is_empty() {
            true => f.write_str(&self.syscall),
            false => write!(f, "{} {}", self.syscall, self.detail),
        }
    }
}

/// Says in words what a stopped process is about to do.
pub(crate) fn describe(pid: Pid, call: Call) -> Violation {
    Violation { syscall: name(call.number), detail: detail(pid, call) }
}

/// Whether the call is one that a C library makes at its start, asking for its own path or its own memory
/// map. The answer "no such file" is good enough for it.
pub(crate) fn is_start_up_question(pid: Pid, call: Call) -> bool {
    let [first, second, ..] = call.args;
    if call.number == libc::SYS_openat {
        text(pid, second) == "/proc/self/maps"
    } else if call.number == libc::SYS_readlinkat {
        text(pid, second) == "/proc/self/exe"
    } else if Some(call.number) == arch::READLINK {
        text(pid, first) == "/proc/self/exe"
    } else {
        false
    }
}

fn detail(pid: Pid, call: Call) -> String {
    let [first, second, third, _] = call.args;
    let path_second = [
        libc::SYS_openat,
        libc::SYS_openat2,
        libc::SYS_newfstatat,
        libc::SYS_statx,
        libc::SYS_faccessat,
        libc::SYS_faccessat2,
        libc::SYS_readlinkat,
        libc::SYS_unlinkat,
        libc::SYS_mkdirat,
        libc::SYS_renameat2,
        libc::SYS_fchmodat,
        libc::SYS_fchownat,
        libc::SYS_execveat,
        libc::SYS_name_to_handle_at,
    ];
    let path_first = [
        libc::SYS_execve,
        libc::SYS_chdir,
        libc::SYS_chroot,
        libc::SYS_mount,
        libc::SYS_truncate,
        libc::SYS_memfd_create,
    ];
    match call.number {
        libc::SYS_openat => match low_bits(third) & libc::O_ACCMODE {
            libc::O_RDONLY => text(pid, second),
            _ => format!("{} for writing", text(pid, second)),
        },
        libc::SYS_socket | libc::SYS_socketpair => format!("{} {}", family(first), socket_kind(second)),
        libc::SYS_connect | libc::SYS_bind => address(pid, second, third),
        libc::SYS_clone => created(first),
        libc::SYS_clone3 => match ptrace::read(pid, pointer(first)) {
            Ok(flags) => created(flags.cast_unsigned()),
            Err(_) => String::new(),
        },
        libc::SYS_kill | libc::SYS_tkill => {
            format!("process {} with signal {}", low_bits(first), low_bits(second))
        }
        libc::SYS_tgkill => format!("process {} with signal {}", low_bits(first), low_bits(third)),
        libc::SYS_mmap | libc::SYS_mprotect => "executable memory".to_owned(),
        libc::SYS_prlimit64 => "another process or a new limit".to_owned(),
        libc::SYS_ioctl => format!("descriptor {} request {second:#x}", low_bits(first)),
        number if path_second.contains(&number) => text(pid, second),
        number if path_first.contains(&number) || arch::PATH_FIRST.contains(&number) => text(pid, first),
        _ => String::new(),
    }
}

/// The part of a register that the kernel reads for an `int`.
fn low_bits(register: u64) -> i32 {
    u32::try_from(register & 0xffff_ffff).unwrap_or_default().cast_signed()
}

fn pointer(register: u64) -> *mut libc::c_void {
    std::ptr::without_provenance_mut(usize::try_from(register).unwrap_or_default())
}

fn family(register: u64) -> String {
    match low_bits(register) {
        libc::AF_UNIX => "AF_UNIX".to_owned(),
        libc::AF_INET => "AF_INET".to_owned(),
        libc::AF_INET6 => "AF_INET6".to_owned(),
        libc::AF_NETLINK => "AF_NETLINK".to_owned(),
        libc::AF_PACKET => "AF_PACKET".to_owned(),
        libc::AF_VSOCK => "AF_VSOCK".to_owned(),
        libc::AF_ALG => "AF_ALG".to_owned(),
        other => format!("family {other}"),
    }
}

fn socket_kind(register: u64) -> String {
    match low_bits(register) & 0xf {
        libc::SOCK_STREAM => "SOCK_STREAM".to_owned(),
        libc::SOCK_DGRAM => "SOCK_DGRAM".to_owned(),
        libc::SOCK_RAW => "SOCK_RAW".to_owned(),
        libc::SOCK_SEQPACKET => "SOCK_SEQPACKET".to_owned(),
        other => format!("type {other}"),
    }
}

fn created(flags: u64) -> String {
    let thread = u64::from(libc::CLONE_THREAD.cast_unsigned());
    if flags & thread == 0 { "a process".to_owned() } else { "a thread".to_owned() }
}

fn address(pid: Pid, at: u64, length: u64) -> String {
    let wanted = usize::try_from(length).unwrap_or_default().min(TEXT_BYTES_MAX);
    let bytes = memory(pid, at, wanted, |_| false);
    let Some((head, rest)) = bytes.split_at_checked(2) else {
        return String::new();
    };
    let head: [u8; 2] = head.try_into().unwrap_or_default();
    match i32::from(u16::from_ne_bytes(head)) {
        libc::AF_INET => match *rest {
            [p, q, a, b, c, d, ..] => format!("{}:{}", Ipv4Addr::new(a, b, c, d), u16::from_be_bytes([p, q])),
            _ => "AF_INET".to_owned(),
        },
        libc::AF_INET6 => {
            let ip: Option<[u8; 16]> = rest.get(6..22).and_then(|ip| ip.try_into().ok());
            match (ip, rest) {
                (Some(ip), [p, q, ..]) => {
                    format!("[{}]:{}", Ipv6Addr::from(ip), u16::from_be_bytes([*p, *q]))
                }
                _ => "AF_INET6".to_owned(),
            }
        }
        libc::AF_UNIX => format!("AF_UNIX {}", printable(rest)),
        other => format!("family {other}"),
    }
}

/// The text that a process points at, up to its end or [`TEXT_BYTES_MAX`].
fn text(pid: Pid, at: u64) -> String {
    let bytes = memory(pid, at, TEXT_BYTES_MAX, |byte| byte == 0);
    printable(&bytes)
}

/// Memory of a stopped process, up to `wanted` bytes or the first that ends it. Shorter where it can't be
/// read.
fn memory(pid: Pid, at: u64, wanted: usize, ends: fn(u8) -> bool) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut next = at;
    while bytes.len() < wanted {
        let Ok(word) = ptrace::read(pid, pointer(next)) else { break };
        for byte in word.to_ne_bytes() {
            if ends(byte) || bytes.len() == wanted {
                return bytes;
            }
            bytes.push(byte);
        }
        next = next.wrapping_add(8);
    }
    bytes
}

/// Text with everything that isn't a plain character replaced.
pub(crate) fn printable(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes)
        .chars()
        .map(|c| if c.is_control() || ('\u{200b}'..='\u{206f}').contains(&c) { '?' } else { c })
        .collect()
}

macro_rules! names {
    ($($name:ident => $number:path),* $(,)?) => {
        &[$(($number, stringify!($name))),*]
    };
}

/// Names of the calls that a module is most likely to try.
const NAMES: &[(i64, &str)] = names![
    accept => libc::SYS_accept, accept4 => libc::SYS_accept4, add_key => libc::SYS_add_key,
    bind => libc::SYS_bind, bpf => libc::SYS_bpf, capset => libc::SYS_capset, chdir => libc::SYS_chdir,
    chroot => libc::SYS_chroot, clock_nanosleep => libc::SYS_clock_nanosleep, clone => libc::SYS_clone,
    clone3 => libc::SYS_clone3, connect => libc::SYS_connect, copy_file_range => libc::SYS_copy_file_range,
    delete_module => libc::SYS_delete_module, dup => libc::SYS_dup, dup3 => libc::SYS_dup3,
    epoll_create1 => libc::SYS_epoll_create1, eventfd2 => libc::SYS_eventfd2, execve => libc::SYS_execve,
    execveat => libc::SYS_execveat, faccessat => libc::SYS_faccessat, faccessat2 => libc::SYS_faccessat2,
    fallocate => libc::SYS_fallocate, fanotify_init => libc::SYS_fanotify_init, fchmod => libc::SYS_fchmod,
    fchmodat => libc::SYS_fchmodat, fchownat => libc::SYS_fchownat, fcntl => libc::SYS_fcntl,
    finit_module => libc::SYS_finit_module, flock => libc::SYS_flock, ftruncate => libc::SYS_ftruncate,
    getcwd => libc::SYS_getcwd, getdents64 => libc::SYS_getdents64, geteuid => libc::SYS_geteuid,
    getppid => libc::SYS_getppid, getsockopt => libc::SYS_getsockopt, getuid => libc::SYS_getuid,
    init_module => libc::SYS_init_module, inotify_init1 => libc::SYS_inotify_init1,
    io_setup => libc::SYS_io_setup, io_uring_setup => libc::SYS_io_uring_setup, ioctl => libc::SYS_ioctl,
    kcmp => libc::SYS_kcmp, kexec_load => libc::SYS_kexec_load, keyctl => libc::SYS_keyctl,
    kill => libc::SYS_kill, listen => libc::SYS_listen, lseek => libc::SYS_lseek,
    memfd_create => libc::SYS_memfd_create, mkdirat => libc::SYS_mkdirat, mmap => libc::SYS_mmap,
    mount => libc::SYS_mount, mprotect => libc::SYS_mprotect, msgget => libc::SYS_msgget,
    name_to_handle_at => libc::SYS_name_to_handle_at, nanosleep => libc::SYS_nanosleep,
    newfstatat => libc::SYS_newfstatat, open_by_handle_at => libc::SYS_open_by_handle_at,
    openat => libc::SYS_openat, openat2 => libc::SYS_openat2, perf_event_open => libc::SYS_perf_event_open,
    personality => libc::SYS_personality, pidfd_getfd => libc::SYS_pidfd_getfd,
    pidfd_open => libc::SYS_pidfd_open, pipe2 => libc::SYS_pipe2, pivot_root => libc::SYS_pivot_root,
    prctl => libc::SYS_prctl, pread64 => libc::SYS_pread64, prlimit64 => libc::SYS_prlimit64,
    process_vm_readv => libc::SYS_process_vm_readv, process_vm_writev => libc::SYS_process_vm_writev,
    ptrace => libc::SYS_ptrace, pwrite64 => libc::SYS_pwrite64, quotactl => libc::SYS_quotactl,
    readlinkat => libc::SYS_readlinkat, reboot => libc::SYS_reboot, recvfrom => libc::SYS_recvfrom,
    recvmsg => libc::SYS_recvmsg, renameat2 => libc::SYS_renameat2, request_key => libc::SYS_request_key,
    seccomp => libc::SYS_seccomp, sendfile => libc::SYS_sendfile, sendmsg => libc::SYS_sendmsg,
    sendto => libc::SYS_sendto, setgid => libc::SYS_setgid, setns => libc::SYS_setns,
    setpgid => libc::SYS_setpgid, setpriority => libc::SYS_setpriority, setresuid => libc::SYS_setresuid,
    setrlimit => libc::SYS_setrlimit, setsid => libc::SYS_setsid, setsockopt => libc::SYS_setsockopt,
    setuid => libc::SYS_setuid, shmget => libc::SYS_shmget, shutdown => libc::SYS_shutdown,
    signalfd4 => libc::SYS_signalfd4, socket => libc::SYS_socket, socketpair => libc::SYS_socketpair,
    splice => libc::SYS_splice, statfs => libc::SYS_statfs, statx => libc::SYS_statx,
    swapon => libc::SYS_swapon, sysinfo => libc::SYS_sysinfo, syslog => libc::SYS_syslog,
    tgkill => libc::SYS_tgkill, timer_create => libc::SYS_timer_create,
    timerfd_create => libc::SYS_timerfd_create, tkill => libc::SYS_tkill, truncate => libc::SYS_truncate,
    umask => libc::SYS_umask, umount2 => libc::SYS_umount2, uname => libc::SYS_uname,
    unlinkat => libc::SYS_unlinkat, unshare => libc::SYS_unshare, userfaultfd => libc::SYS_userfaultfd,
    vmsplice => libc::SYS_vmsplice, wait4 => libc::SYS_wait4, waitid => libc::SYS_waitid,
];

fn name(number: i64) -> String {
    match NAMES.iter().chain(arch::NAMES).find(|(known, _)| *known == number) {
        Some((_, name)) => (*name).to_owned(),
        None => format!("syscall number {number}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_call_is_named_by_its_number() {
        assert_eq!(name(libc::SYS_socket), "socket");
        assert_eq!(name(100_000), "syscall number 100000");
    }

    #[test]
    fn hostile_text_loses_its_control_characters() {
        assert_eq!(printable(b"/etc/\x1b[2Jpasswd\n"), "/etc/?[2Jpasswd?");
    }

    #[test]
    fn a_violation_reads_as_call_and_detail() {
        let tried = Violation { syscall: "openat".into(), detail: "/etc/passwd".into() };
        assert_eq!(tried.to_string(), "openat /etc/passwd");
    }
}
