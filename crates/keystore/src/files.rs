//! Private files: directories only their owner can enter, files only their owner can read, whole or not
//! there.
//!
//! A file is written beside its place and made durable, then given its name, then its directory is made
//! durable. A new file gets its name by a hard link, which fails when the name is taken: of two who make the
//! same file at once, in one process or in two, exactly one succeeds.
//!
//! INVARIANT: nothing is read from a file that others than its owner may read or write.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use zeroize::Zeroizing;

/// Largest file that is read. Bytes.
pub(crate) const FILE_BYTES_MAX: u64 = 64 * 1024;

/// What can go wrong with a private file, and what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// There is no such file.
    #[error("{} does not exist", path.display())]
    Missing {
        /// Where it was looked for.
        path: PathBuf,
    },
    /// The name is taken.
    #[error("{} exists already", path.display())]
    Exists {
        /// Which name.
        path: PathBuf,
    },
    /// Others than the owner may read, write or enter it.
    #[error("{} is open to others than its owner (mode {mode:03o}); run: chmod {wanted:03o} {}", path.display(), path.display())]
    OpenToOthers {
        /// Which file or directory.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
        /// What they must be.
        wanted: u32,
    },
    /// Something else stands in its place.
    #[error("{} is not {wanted}; move it away", path.display())]
    WrongKind {
        /// Where.
        path: PathBuf,
        /// `a directory` or `a regular file`.
        wanted: &'static str,
    },
    /// The file is larger than any of ours.
    #[error("{} is larger than {max} bytes", path.display())]
    TooLarge {
        /// Which file.
        path: PathBuf,
        /// Limit in bytes.
        max: u64,
    },
    /// The operating system refused.
    #[error("cannot {action} {}: {source}", path.display())]
    System {
        /// What was tried.
        action: &'static str,
        /// With which file.
        path: PathBuf,
        /// Why it failed.
        source: std::io::Error,
    },
}

/// Makes a directory, and those above it, that only its owner can enter. One that exists must be so already.
pub(crate) fn create_private_dir(path: &Path) -> Result<(), FileError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(system("create the directory", path))?;
    check_private_dir(path)
}

/// Refuses a directory that others than its owner can enter.
pub(crate) fn check_private_dir(path: &Path) -> Result<(), FileError> {
    let metadata = match path.metadata() {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == ErrorKind::NotFound => {
            return Err(FileError::Missing { path: path.to_owned() });
        }
        Err(error) => return Err(system("look at", path)(error)),
    };
    if !metadata.is_dir() {
        return Err(FileError::WrongKind { path: path.to_owned(), wanted: "a directory" });
    }
    refuse_open(path, metadata.mode(), 0o700)
}

/// Makes a new file that only its owner can read. Fails with [`FileError::Exists`] when the name is taken.
pub(crate) fn create_private(path: &Path, bytes: &[u8]) -> Result<(), FileError> {
    place(path, bytes, |beside| match std::fs::hard_link(beside, path) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            Err(FileError::Exists { path: path.to_owned() })
        }
        other => other.map_err(system("create", path)),
    })
}

/// Replaces a file as a whole with one that only its owner can read.
pub(crate) fn replace_private(path: &Path, bytes: &[u8]) -> Result<(), FileError> {
    place(path, bytes, |beside| std::fs::rename(beside, path).map_err(system("replace", path)))
}

/// Writes a file beside a path, durably, and has it put there.
fn place(
    path: &Path,
    bytes: &[u8],
    put: impl FnOnce(&Path) -> Result<(), FileError>,
) -> Result<(), FileError> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let wrong = || FileError::WrongKind { path: path.to_owned(), wanted: "a regular file" };
    let name = path.file_name().and_then(|name| name.to_str()).ok_or_else(wrong)?;
    let directory = path.parent().ok_or_else(wrong)?;
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let beside = directory.join(format!(".{name}.{}-{number}.new", std::process::id()));
    // A crashed process of the same number may have left one; it is nobody's any more.
    let _ = std::fs::remove_file(&beside);
    let placed = write_durably(&beside, bytes).and_then(|()| put(&beside)).and_then(|()| sync_dir(directory));
    let _ = std::fs::remove_file(&beside);
    placed
}

/// Reads a file that only its owner can read.
pub(crate) fn read_private(path: &Path) -> Result<Zeroizing<Vec<u8>>, FileError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => {
            return Err(FileError::Missing { path: path.to_owned() });
        }
        Err(error) => return Err(system("open", path)(error)),
    };
    // Asked of the open file, so that it cannot be exchanged between the question and the reading.
    let metadata = file.metadata().map_err(system("look at", path))?;
    if !metadata.is_file() {
        return Err(FileError::WrongKind { path: path.to_owned(), wanted: "a regular file" });
    }
    refuse_open(path, metadata.mode(), 0o600)?;
    let too_large = || FileError::TooLarge { path: path.to_owned(), max: FILE_BYTES_MAX };
    let length = usize::try_from(metadata.len().min(FILE_BYTES_MAX + 1)).map_err(|_| too_large())?;
    // Room for all of it at once: a growing vector would leave copies of a secret behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(length + 1));
    file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(system("read", path))?;
    if bytes.len() as u64 > FILE_BYTES_MAX { Err(too_large()) } else { Ok(bytes) }
}

/// Removes a file, durably.
pub(crate) fn remove(path: &Path) -> Result<(), FileError> {
    match std::fs::remove_file(path) {
        Ok(()) => path.parent().map_or(Ok(()), sync_dir),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            Err(FileError::Missing { path: path.to_owned() })
        }
        Err(error) => Err(system("remove", path)(error)),
    }
}

/// The names in a directory, unsorted; those that are no UTF-8 are left out.
pub(crate) fn names(path: &Path) -> Result<Vec<String>, FileError> {
    let mut names = Vec::new();
    for entry in path.read_dir().map_err(system("list", path))? {
        let entry = entry.map_err(system("list", path))?;
        if let Ok(name) = entry.file_name().into_string() {
            names.push(name);
        }
    }
    Ok(names)
}

fn sync_dir(path: &Path) -> Result<(), FileError> {
    File::open(path).and_then(|file| file.sync_all()).map_err(system("sync", path))
}

fn write_durably(path: &Path, bytes: &[u8]) -> Result<(), FileError> {
    let open = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    let mut file = open.map_err(system("create", path))?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(system("write", path))
}

fn refuse_open(path: &Path, mode: u32, wanted: u32) -> Result<(), FileError> {
    if mode & 0o077 == 0 {
        Ok(())
    } else {
        Err(FileError::OpenToOthers { path: path.to_owned(), mode: mode & 0o777, wanted })
    }
}

fn system(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> FileError {
    let path = path.to_owned();
    move |source| FileError::System { action, path, source }
}
