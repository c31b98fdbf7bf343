//! The files of the Merkle log: one directory, each file replaced as a whole.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use audit::log::LogStorage;

/// Ending of a file that is being written; a crash may leave one behind, and the next write of that file replaces it.
const TEMPORARY: &str = ".new";

/// A directory of log files.
pub struct LogFiles {
    root: PathBuf,
}

impl LogFiles {
    /// The files below a directory, which is made when it is not there.
    ///
    /// # Errors
    /// When the directory cannot be made.
    pub fn open(root: &Path) -> io::Result<Self> {
        fs::create_dir_all(root)?;
        Ok(Self { root: root.to_owned() })
    }

    /// Resolves one of the log's own paths; anything that would leave the directory is refused.
    fn resolve(&self, path: &str) -> io::Result<PathBuf> {
        let plain =
            !path.is_empty() && path.split('/').all(|part| !part.is_empty() && part != "." && part != "..");
        if plain {
            Ok(self.root.join(path))
        } else {
            Err(io::Error::new(io::ErrorKind::InvalidInput, "not a path of the log"))
        }
    }
}

impl LogStorage for LogFiles {
    fn read(&self, path: &str) -> io::Result<Option<Vec<u8>>> {
        match fs::read(self.resolve(path)?) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    fn list(&self) -> io::Result<Vec<String>> {
        let mut found = Vec::new();
        let mut open = vec![String::new()];
        while let Some(directory) = open.pop() {
            for entry in fs::read_dir(self.root.join(&directory))? {
                let entry = entry?;
                let Some(name) = entry.file_name().to_str().map(str::to_owned) else { continue };
                let path = if directory.is_empty() { name } else { format!("{directory}/{name}") };
                if entry.file_type()?.is_dir() {
                    open.push(path);
                } else if !path.ends_with(TEMPORARY) {
                    found.push(path);
                }
            }
        }
        found.sort();
        Ok(found)
    }

    fn write_atomic(&mut self, path: &str, bytes: &[u8]) -> io::Result<()> {
        let target = self.resolve(path)?;
        if let Some(parent) = target.parent() {
            fs::create_dir_all(parent)?;
        }
        let mut name = target.as_os_str().to_owned();
        name.push(TEMPORARY);
        let temporary = PathBuf::from(name);
        let mut file =
            File::options().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        file.write_all(bytes)?;
        file.sync_data()?;
        fs::rename(&temporary, &target)
    }

    fn remove(&mut self, path: &str) -> io::Result<()> {
        match fs::remove_file(self.resolve(path)?) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    fn sync(&mut self) -> io::Result<()> {
        File::open(&self.root)?.sync_all()
    }
}
