//! The socket's file: made where only its owner can reach it, taken over from the dead, never from the
//! living.
//!
//! Owns the file from binding to removal. Knows nothing of what is spoken over it.
//!
//! INVARIANT: nothing is removed but a socket that nobody listens at, and, at the end, the very one that was
//! made here.

use std::fs::{File, Permissions};
use std::io::ErrorKind;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::unistd::geteuid;
use tokio::net::{UnixListener, UnixStream};
use tokio::time::timeout;
use wire::files::create_private_dir;

use crate::workload::WorkloadError;

/// How long a listener that is found may take to be reached. One that is too busy lives.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// A listener and its file. Dropping it removes the file.
pub(super) struct Bound {
    listener: UnixListener,
    path: PathBuf,
    /// Device and inode of the file.
    file: (u64, u64),
}

impl Bound {
    /// Binds a socket at a path that is free or held by nobody alive.
    pub(super) async fn new(path: &Path) -> Result<Self, WorkloadError> {
        let system = |action| move |source| WorkloadError::System { action, path: path.to_owned(), source };
        let directory = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        create_private_dir(directory)?;
        let opened = File::open(directory).map_err(system("open the directory of"))?;
        if opened.metadata().map_err(system("look at the directory of"))?.uid() != geteuid().as_raw() {
            return Err(WorkloadError::ForeignDirectory { path: directory.to_owned() });
        }
        // Of two that start at once, the second must not take the first one's new socket for a dead one's.
        // The lock goes with the directory's handle, when this function returns.
        if opened.try_lock().is_err() {
            return Err(WorkloadError::Taken { path: path.to_owned() });
        }
        clear(path).await?;
        let listener = UnixListener::bind(path).map_err(system("bind"))?;
        std::fs::set_permissions(path, Permissions::from_mode(0o600)).map_err(system("close to others"))?;
        let made = path.symlink_metadata().map_err(system("look at"))?;
        Ok(Self { listener, path: path.to_owned(), file: (made.dev(), made.ino()) })
    }

    pub(super) fn listener(&self) -> &UnixListener {
        &self.listener
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        let ours = self.path.symlink_metadata().is_ok_and(|found| (found.dev(), found.ino()) == self.file);
        if ours {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Removes what a dead process left at the path.
async fn clear(path: &Path) -> Result<(), WorkloadError> {
    let system = |action| move |source| WorkloadError::System { action, path: path.to_owned(), source };
    let found = match path.symlink_metadata() {
        Ok(found) => found,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(system("look at")(error)),
    };
    if !found.file_type().is_socket() {
        return Err(WorkloadError::NotASocket { path: path.to_owned() });
    }
    match timeout(CONNECT_TIMEOUT, UnixStream::connect(path)).await {
        Ok(Err(error)) if error.kind() == ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path).map_err(system("remove"))
        }
        // Reached, too busy to be reached, or in a state that only a living process can be in.
        _ => Err(WorkloadError::Taken { path: path.to_owned() }),
    }
}
