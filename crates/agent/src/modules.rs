//! The modules of this node: which may run, and their sealed images.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use access::vocabulary::TaskKind;
use keys::{Digest, VerifyingKey};
use sandbox::release::{Admitted, Release, ReleaseError, SignedManifest};
use sandbox::{CellError, Image};

/// Bytes of a module at most.
const MODULE_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// Why a module does not start.
#[derive(Debug, thiserror::Error)]
pub enum ModuleError {
    /// A file cannot be read.
    #[error("{path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is larger than a module may be.
    #[error("{path} has {bytes} bytes, a module has at most {MODULE_BYTES_MAX}")]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its size.
        bytes: u64,
    },
    /// The release keys did not sign it.
    #[error(transparent)]
    Release(#[from] ReleaseError),
    /// It could not be sealed.
    #[error(transparent)]
    Cell(#[from] CellError),
}

/// The module that does tasks of a kind; the desk does its own.
#[must_use]
pub fn module_for(kind: TaskKind) -> Option<&'static str> {
    match kind {
        TaskKind::Collect => Some("collector"),
        TaskKind::Analyse => Some("analyst"),
        TaskKind::Rebalance => Some("strategist"),
        TaskKind::Report => Some("reporter"),
        TaskKind::Session => None,
    }
}

/// A module that may run, sealed in memory.
#[derive(Clone)]
pub struct Ready {
    /// Its image.
    pub image: Arc<Image>,
    /// SHA-256 of the image.
    pub digest: Digest,
}

/// Modules by name. A module is read and checked when it is first needed and whenever its file or the manifest changed.
pub struct Modules {
    directory: PathBuf,
    keys: Vec<VerifyingKey>,
    threshold: usize,
    cache: Mutex<Cache>,
}

#[derive(Default)]
struct Cache {
    newest: u64,
    ready: BTreeMap<String, (Stamp, Ready)>,
}

/// What tells that a file is still the same one.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Stamp([FileStamp; 2]);

/// Inode, size, time of the last change of the content and of the inode, in seconds and nanoseconds.
type FileStamp = (u64, u64, (i64, i64), (i64, i64));

impl Modules {
    /// The modules in a directory: `manifest.json` and one file per module.
    #[must_use]
    pub fn new(directory: &Path, keys: Vec<VerifyingKey>, threshold: usize) -> Self {
        Self { directory: directory.to_owned(), keys, threshold, cache: Mutex::new(Cache::default()) }
    }

    /// A module, if it may run.
    ///
    /// # Errors
    /// When its bytes are not those that enough release keys signed.
    pub fn ready(&self, module: &str) -> Result<Ready, ModuleError> {
        let manifest = self.directory.join("manifest.json");
        let program = self.directory.join(module);
        let stamp = Stamp([stamp(&manifest)?, stamp(&program)?]);
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((known, ready)) = cache.ready.get(module)
            && *known == stamp
        {
            return Ok(ready.clone());
        }
        let release = self.release(&manifest, cache.newest)?;
        let admitted = admit(&release, module, &program)?;
        let image = Arc::new(Image::from_bytes(admitted.bytes())?);
        let ready = Ready { image, digest: admitted.digest() };
        cache.newest = release.version();
        cache.ready.insert(module.to_owned(), (stamp, ready.clone()));
        Ok(ready)
    }

    fn release(&self, manifest: &Path, newest: u64) -> Result<Release, ModuleError> {
        let bytes = read(manifest)?;
        let signed: SignedManifest =
            serde_json::from_slice(&bytes).map_err(|error| ReleaseError::Unreadable(error.to_string()))?;
        Ok(signed.verify(&self.keys, self.threshold, newest)?)
    }
}

fn admit(release: &Release, module: &str, program: &Path) -> Result<Admitted, ModuleError> {
    Ok(release.admit(module, read(program)?)?)
}

fn stamp(path: &Path) -> Result<FileStamp, ModuleError> {
    let found = fs::metadata(path).map_err(|source| ModuleError::File { path: path.to_owned(), source })?;
    Ok((found.ino(), found.size(), (found.mtime(), found.mtime_nsec()), (found.ctime(), found.ctime_nsec())))
}

fn read(path: &Path) -> Result<Vec<u8>, ModuleError> {
    let failed = |source| ModuleError::File { path: path.to_owned(), source };
    let bytes = fs::metadata(path).map_err(failed)?.size();
    if bytes > MODULE_BYTES_MAX {
        return Err(ModuleError::TooLarge { path: path.to_owned(), bytes });
    }
    fs::read(path).map_err(failed)
}
