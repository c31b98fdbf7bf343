//! Private files: directories only their owner can enter, files only their owner can read, replaced whole or
//! not at all.
//!
//! A file is written beside its place, made durable, renamed over it, and the directory made durable: after a
//! crash the old content or the new one is there, never a part. Reading refuses a file that others may read,
//! because its secrets are then no secrets, and says how to put that right.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// Largest private file that is read, in bytes.
pub const FILE_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// What can go wrong with a private file, and what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// There is no such file.
    #[error("{} does not exist", path.display())]
    Missing {
        /// Where it was looked for.
        path: PathBuf,
    },
    /// Others than the owner may read or enter it.
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
///
/// # Errors
/// A [`FileError`] that says what to do.
pub fn create_private_dir(path: &Path) -> Result<(), FileError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(system("create the directory", path))?;
    let metadata = path.metadata().map_err(system("look at", path))?;
    if !metadata.is_dir() {
        return Err(FileError::WrongKind { path: path.to_owned(), wanted: "a directory" });
    }
    refuse_open(path, metadata.mode(), 0o700)
}

/// Replaces a file as a whole with one that only its owner can read, and makes it durable.
///
/// # Errors
/// [`FileError::System`]; the file then has its old content or the new one.
pub fn write_private_atomic(path: &Path, bytes: &[u8]) -> Result<(), FileError> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let wrong = || FileError::WrongKind { path: path.to_owned(), wanted: "a regular file" };
    let name = path.file_name().and_then(|name| name.to_str()).ok_or_else(wrong)?;
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let beside = directory.join(format!(".{name}.{}-{number}.new", std::process::id()));
    // A crashed process of the same number may have left one; it is nobody's any more.
    let _ = std::fs::remove_file(&beside);
    let written = write_durably(&beside, bytes)
        .and_then(|()| std::fs::rename(&beside, path).map_err(system("replace", path)))
        .and_then(|()| {
            File::open(directory).and_then(|file| file.sync_all()).map_err(system("sync", directory))
        });
    if written.is_err() {
        let _ = std::fs::remove_file(&beside);
    }
    written
}

/// Overwrites a file with zeros and removes it, so that a secret does not stay in the place where it was. One that is not
/// there is fine.
///
/// # Errors
/// [`FileError::System`].
pub fn erase(path: &Path) -> Result<(), FileError> {
    let mut file = match OpenOptions::new().write(true).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(system("open", path)(error)),
    };
    let length = file.metadata().map_err(system("look at", path))?.len().min(FILE_BYTES_MAX);
    let zeros = vec![0; usize::try_from(length).unwrap_or(0)];
    file.write_all(&zeros).and_then(|()| file.sync_all()).map_err(system("overwrite", path))?;
    std::fs::remove_file(path).map_err(system("remove", path))
}

/// Moves a file over another, and makes that durable.
///
/// # Errors
/// [`FileError::System`].
pub fn rename_durably(from: &Path, to: &Path) -> Result<(), FileError> {
    std::fs::rename(from, to).map_err(system("replace", to))?;
    let directory = to.parent().unwrap_or(Path::new("."));
    File::open(directory).and_then(|file| file.sync_all()).map_err(system("sync", directory))
}

/// Reads a file that only its owner can read.
///
/// # Errors
/// [`FileError::Missing`], [`FileError::OpenToOthers`], [`FileError::WrongKind`], [`FileError::TooLarge`] or
/// [`FileError::System`].
pub fn read_private(path: &Path) -> Result<Vec<u8>, FileError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
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
    // Room for all of it at once: a vector that grows would leave copies of a secret behind.
    let length = usize::try_from(metadata.len().min(FILE_BYTES_MAX + 1)).unwrap_or(0);
    let mut bytes = Vec::with_capacity(length + 1);
    file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(system("read", path))?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(FileError::TooLarge { path: path.to_owned(), max: FILE_BYTES_MAX });
    }
    Ok(bytes)
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

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn what_is_written_is_private_whole_and_alone() {
        let directory = tempfile::tempdir().unwrap();
        let home = directory.path().join("a/b");
        create_private_dir(&home).unwrap();
        assert_eq!(home.metadata().unwrap().mode() & 0o777, 0o700);
        let path = home.join("secret");
        assert!(matches!(read_private(&path), Err(FileError::Missing { .. })));
        write_private_atomic(&path, b"one").unwrap();
        write_private_atomic(&path, b"two").unwrap();
        assert_eq!(read_private(&path).unwrap(), b"two");
        assert_eq!(path.metadata().unwrap().mode() & 0o777, 0o600);
        assert_eq!(home.read_dir().unwrap().count(), 1);
    }

    #[test]
    fn a_file_that_others_can_read_is_refused_with_the_remedy() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("secret");
        write_private_atomic(&path, b"x").unwrap();
        for mode in [0o640, 0o604, 0o660, 0o622] {
            std::fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            let error = read_private(&path).unwrap_err();
            assert!(error.to_string().contains("chmod 600"), "{error}");
        }
        std::fs::set_permissions(directory.path(), Permissions::from_mode(0o755)).unwrap();
        let error = create_private_dir(directory.path()).unwrap_err();
        assert!(error.to_string().contains("chmod 700"), "{error}");
    }

    #[test]
    fn a_directory_is_no_file_and_a_file_no_directory() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x");
        write_private_atomic(&path, b"x").unwrap();
        assert!(create_private_dir(&path).is_err());
        assert!(matches!(read_private(directory.path()), Err(FileError::WrongKind { .. })));
    }
}
