//! A module's program as sealed memory: what was verified is what runs.
//!
//! Owns: the anonymous file that holds the bytes, and their digest. A sealed file can't be written, grown or
//! shrunk by anybody, its owner included, so there is no moment between the check and the start at which the
//! program could be swapped.
//!
//! INVARIANT: an [`Image`] is sealed before anybody else can see it.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::MetadataExt as _;

use keys::Digest;
use nix::fcntl::{FcntlArg, FdFlag, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};

use crate::CellError;

/// The largest module image, in bytes.
pub const IMAGE_BYTES_MAX: usize = 64 << 20;

/// Where a process finds its own open files.
pub(crate) const OWN_FILES: &str = "/proc/self/fd/";

/// A program in sealed memory, with its digest.
#[derive(Debug)]
pub struct Image {
    file: File,
    digest: Digest,
}

impl Image {
    /// Copies a program into sealed memory.
    ///
    /// # Errors
    /// [`CellError::ImageSize`] or [`CellError::Seal`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, CellError> {
        if bytes.is_empty() || bytes.len() > IMAGE_BYTES_MAX {
            return Err(CellError::ImageSize { bytes: bytes.len() });
        }
        let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
        let memory = memfd_create(c"module", flags).map_err(|errno| CellError::Seal(errno.into()))?;
        let mut file = File::from(memory);
        file.write_all(bytes).map_err(CellError::Seal)?;
        fcntl(&file, FcntlArg::F_ADD_SEALS(seals())).map_err(|errno| CellError::Seal(errno.into()))?;
        Ok(Self { file, digest: Digest::of(bytes) })
    }

    /// SHA-256 of the program.
    #[must_use]
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// Where a child finds the sealed memory, if it was handed this image; see [`Image::to_hand_on`].
    pub(crate) fn path(&self) -> String {
        format!("{OWN_FILES}{}", self.file.as_raw_fd())
    }

    /// Another handle to the same sealed memory, which children inherit: a process that holds keys lets nobody look into
    /// its own files from outside, its children included.
    pub(crate) fn to_hand_on(&self) -> io::Result<Self> {
        let file = self.file.try_clone()?;
        fcntl(&file, FcntlArg::F_SETFD(FdFlag::empty()))?;
        Ok(Self { file, digest: self.digest })
    }

    /// Whether the program that a process runs is this very memory.
    pub(crate) fn is_run_by(&self, pid: nix::unistd::Pid) -> io::Result<bool> {
        let running = std::fs::metadata(format!("/proc/{pid}/exe"))?;
        let own = self.file.metadata()?;
        Ok((running.dev(), running.ino()) == (own.dev(), own.ino()))
    }
}

/// The seals of an image.
fn seals() -> SealFlag {
    SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_SEAL
}

/// Whether a file is memory that nobody can change any more.
pub(crate) fn is_sealed(file: &File) -> bool {
    match fcntl(file, FcntlArg::F_GET_SEALS) {
        Ok(bits) => SealFlag::from_bits_truncate(bits).contains(seals()),
        Err(_) => false,
    }
}

/// The digest of a whole file, and nothing when it is larger than an image may be.
pub(crate) fn digest_of(file: &mut File) -> io::Result<Option<Digest>> {
    let mut bytes =
        Vec::with_capacity(usize::try_from(file.metadata()?.len()).unwrap_or(0).min(IMAGE_BYTES_MAX));
    let limit = u64::try_from(IMAGE_BYTES_MAX).unwrap_or(u64::MAX).saturating_add(1);
    file.take(limit).read_to_end(&mut bytes)?;
    Ok(if bytes.len() > IMAGE_BYTES_MAX { None } else { Some(Digest::of(&bytes)) })
}

#[cfg(test)]
mod tests {
    use std::fs::OpenOptions;

    use super::*;

    #[test]
    fn nobody_can_change_a_sealed_image() {
        let image = Image::from_bytes(b"program").unwrap();
        assert!(is_sealed(&image.file));
        assert!((&image.file).write_all(b"x").is_err());
        assert!(image.file.set_len(1).is_err());
        if let Ok(mut again) = OpenOptions::new().write(true).open(image.path()) {
            assert!(again.write_all(b"x").is_err());
        }
        let mut copy = File::open(image.path()).unwrap();
        assert_eq!(digest_of(&mut copy).unwrap(), Some(image.digest()));
    }

    #[test]
    fn an_empty_image_is_refused() {
        assert!(matches!(Image::from_bytes(b""), Err(CellError::ImageSize { bytes: 0 })));
    }

    #[test]
    fn an_ordinary_file_is_not_sealed() {
        assert!(!is_sealed(&tempfile::tempfile().unwrap()));
    }
}
