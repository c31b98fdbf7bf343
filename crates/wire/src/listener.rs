//! Where a process listens: at a port, or at a socket of this machine, where the kernel tells who is at the other end.
//!
//! A program is named by the SHA-256 of its file, read through the process that connected. The kernel hands out a handle
//! of that very process (`SO_PEERPIDFD`, Linux 6.5): as long as the handle says that it lives, its number is nobody
//! else's.
//!
//! INVARIANT: a [`LocalProgram`] is told only of a process that lived, and ran the same file, from before its program was
//! read until after.

use std::fs::File;
use std::io::{self, Error, Read as _};
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::task::{Context, Poll};

use identity::attest::LocalProgram;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{getsockopt, sockopt};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};

/// How much of a program is in memory at once while its digest is taken, in bytes.
const PIECE_BYTES: usize = 64 * 1024;

/// Largest program that is read, in bytes.
const PROGRAM_BYTES_MAX: u64 = 1 << 30;

/// Where a process listens.
#[derive(Debug)]
pub enum Listener {
    /// At a port.
    Network(TcpListener),
    /// At a socket of this machine.
    Local(UnixListener),
}

impl From<TcpListener> for Listener {
    fn from(listener: TcpListener) -> Self {
        Self::Network(listener)
    }
}

impl From<UnixListener> for Listener {
    fn from(listener: UnixListener) -> Self {
        Self::Local(listener)
    }
}

impl Listener {
    /// Listens at a socket that only this user can reach, in the place of one that a dead process left there.
    ///
    /// # Errors
    /// When the path is taken by something else.
    pub fn at_socket(path: &Path) -> io::Result<Self> {
        match path.symlink_metadata() {
            Ok(found) if found.file_type().is_socket() => std::fs::remove_file(path)?,
            Ok(_) => return Err(Error::other(format!("{} is no socket; move it away", path.display()))),
            Err(_) => {}
        }
        let (_directory, short) = within_reach(path)?;
        let listener = UnixListener::bind(short)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
        Ok(Self::Local(listener))
    }

    pub(crate) async fn accept(&self) -> io::Result<Stream> {
        match self {
            Self::Network(listener) => listener.accept().await.map(|(stream, _)| Stream::Network(stream)),
            Self::Local(listener) => listener.accept().await.map(|(stream, _)| Stream::Local(stream)),
        }
    }
}

/// One connection, of either kind.
#[derive(Debug)]
pub(crate) enum Stream {
    Network(TcpStream),
    Local(UnixStream),
}

impl Stream {
    /// Makes it ready, and says which program is at the other end, where the kernel can tell.
    pub(crate) async fn arrive(&self) -> io::Result<Option<LocalProgram>> {
        let socket = match self {
            Self::Network(stream) => return stream.set_nodelay(true).map(|()| None),
            Self::Local(stream) => stream.as_fd().try_clone_to_owned()?,
        };
        let told = tokio::task::spawn_blocking(move || program_at(&socket)).await;
        match told.map_err(Error::other).and_then(|told| told) {
            Ok(program) => Ok(Some(program)),
            Err(error) => {
                tracing::warn!(%error, "it cannot be told which program has connected");
                Ok(None)
            }
        }
    }
}

impl Stream {
    /// The first bytes that the other end sent, which stay to be read; none of them at a socket of this machine.
    pub(crate) async fn peek(&self, first: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Network(stream) => stream.peek(first).await,
            Self::Local(_) => Ok(0),
        }
    }
}

/// Longest path that a socket can be named by, in bytes, with room to spare.
const SOCKET_PATH_MAX: usize = 100;

/// A socket's path as a socket can be named by. A long one goes by a handle of its directory, which has to live as long.
fn within_reach(path: &Path) -> io::Result<(Option<File>, PathBuf)> {
    if path.as_os_str().len() <= SOCKET_PATH_MAX {
        return Ok((None, path.to_owned()));
    }
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(Error::other("the socket's path names no file"));
    };
    let directory = File::open(parent)?;
    let short = PathBuf::from(format!("/proc/self/fd/{}", directory.as_raw_fd())).join(name);
    Ok((Some(directory), short))
}

/// Connects to a socket of this machine.
pub(crate) async fn connect(path: &Path) -> io::Result<Stream> {
    let (_directory, short) = within_reach(path)?;
    UnixStream::connect(short).await.map(Stream::Local)
}

/// Whether this kernel can tell which program is at the other end of a socket.
#[must_use]
pub fn kernel_tells_programs() -> bool {
    std::os::unix::net::UnixStream::pair()
        .is_ok_and(|(one, _other)| getsockopt(&one, sockopt::PeerPidfd).is_ok())
}

/// Which program is at the other end of a socket.
fn program_at(socket: &OwnedFd) -> io::Result<LocalProgram> {
    let handle = getsockopt(socket, sockopt::PeerPidfd)?;
    let credentials = getsockopt(socket, sockopt::PeerCredentials)?;
    let pid = process_of(&handle)?;
    if pid != credentials.pid() {
        return Err(Error::other("the process is gone, or of another name space"));
    }
    let link = format!("/proc/{pid}/exe");
    let file = File::open(&link)?;
    let opened = file.metadata()?;
    if opened.len() > PROGRAM_BYTES_MAX {
        return Err(Error::other("the program is too large"));
    }
    let executable = digest_of(file)?;
    let now = std::fs::metadata(&link)?;
    if (now.dev(), now.ino()) != (opened.dev(), opened.ino()) {
        return Err(Error::other("the process runs another program by now"));
    }
    let mut ended = [PollFd::new(handle.as_fd(), PollFlags::POLLIN)];
    if poll(&mut ended, PollTimeout::ZERO)? != 0 {
        return Err(Error::other("the process has ended"));
    }
    Ok(LocalProgram { uid: credentials.uid(), executable })
}

/// The number of the process that a handle is of.
fn process_of(handle: &OwnedFd) -> io::Result<i32> {
    let told = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", handle.as_raw_fd()))?;
    let pid = told.lines().find_map(|line| line.strip_prefix("Pid:"));
    pid.and_then(|pid| pid.trim().parse().ok()).ok_or_else(|| Error::other("the kernel names no process"))
}

/// SHA-256 of a program's file, piece by piece.
fn digest_of(file: File) -> io::Result<keys::Digest> {
    let (mut file, mut hasher) = (file.take(PROGRAM_BYTES_MAX), keys::Hasher::default());
    let mut piece = vec![0; PIECE_BYTES];
    loop {
        match file.read(&mut piece) {
            Ok(0) => return Ok(hasher.finish()),
            Ok(count) => hasher.update(piece.get(..count).unwrap_or_default()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Network(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Local(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Network(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Local(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Network(stream) => Pin::new(stream).poll_flush(cx),
            Self::Local(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Network(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Local(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_at_the_other_end_is_this_one() {
        if !kernel_tells_programs() {
            eprintln!("skipped: this kernel does not tell programs; it needs Linux 6.5");
            return;
        }
        let (here, _there) = std::os::unix::net::UnixStream::pair().unwrap();
        let told = program_at(&here.into()).unwrap();
        let own = std::fs::read("/proc/self/exe").unwrap();
        assert_eq!(told.executable, keys::Digest::of(&own));
        assert_eq!(told.uid, std::fs::metadata("/proc/self").unwrap().uid());
    }

    #[tokio::test]
    async fn a_long_path_is_within_reach_and_what_is_no_socket_stays() {
        let directory = tempfile::tempdir().unwrap();
        let long = directory.path().join("a".repeat(120));
        std::fs::create_dir(&long).unwrap();
        let path = long.join("enrolment.sock");
        for _ in 0..2 {
            let listener = Listener::at_socket(&path).unwrap();
            let (connected, accepted) = tokio::join!(connect(&path), listener.accept());
            assert!(connected.is_ok() && accepted.is_ok());
            assert_eq!(path.metadata().unwrap().mode() & 0o777, 0o600);
        }
        let file = directory.path().join("file");
        std::fs::write(&file, b"somebody's").unwrap();
        assert!(Listener::at_socket(&file).is_err());
        assert_eq!(std::fs::read(&file).unwrap(), b"somebody's");
    }

    #[test]
    fn a_process_that_is_gone_is_not_told_by_its_number() {
        if !kernel_tells_programs() {
            eprintln!("skipped: this kernel does not tell programs; it needs Linux 6.5");
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let child = std::process::Command::new("python3")
            .args(["-c", "import socket,sys;s=socket.socket(socket.AF_UNIX);s.connect(sys.argv[1])"])
            .arg(&path)
            .spawn();
        let Ok(mut child) = child else {
            eprintln!("skipped: python3 is not here");
            return;
        };
        let (socket, _) = listener.accept().unwrap();
        child.wait().unwrap();
        assert!(program_at(&socket.into()).is_err());
    }
}
