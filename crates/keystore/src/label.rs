//! Labels of signing keys, and the file names made of them.
//!
//! INVARIANT: two labels never share a file name, and no file name leaves its directory.

use crate::KeyStoreError;

/// Longest label. Bytes.
pub const LABEL_BYTES_MAX: usize = 64;

const SUFFIX: &str = ".key";

/// Refuses what is no label.
pub(crate) fn check(label: &str) -> Result<(), KeyStoreError> {
    let fits = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'/');
    if label.is_empty() || label.len() > LABEL_BYTES_MAX || !label.bytes().all(fits) {
        return Err(KeyStoreError::Label);
    }
    Ok(())
}

/// The file name of a checked label. No label has an underscore, so one can stand for the slash.
pub(crate) fn file_name(label: &str) -> String {
    format!("{}{SUFFIX}", label.replace('/', "_"))
}

/// The label of a file name; `None` when it is no file of ours.
pub(crate) fn of_file_name(name: &str) -> Option<String> {
    let stem = name.strip_suffix(SUFFIX)?;
    if stem.contains('/') {
        return None;
    }
    let label = stem.replace('_', "/");
    check(&label).is_ok().then_some(label)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_is_short_and_of_a_small_alphabet() {
        for label in ["a", "ca/agents.2026-11", "..", "/", &"x".repeat(64)] {
            assert!(check(label).is_ok(), "{label}");
        }
        for label in ["", "A", "a b", "a_b", "a\0", "ä", "a\n", &"x".repeat(65)] {
            assert!(check(label).is_err(), "{label}");
        }
    }

    #[test]
    fn a_file_name_stays_in_its_directory_and_gives_its_label_back() {
        for label in ["a", "ca/agents", "..", "../../etc/passwd", "/", ".", "a.key", "-x"] {
            let name = file_name(label);
            assert!(!name.contains('/') && name != "." && name != "..", "{name}");
            assert_eq!(of_file_name(&name).as_deref(), Some(label));
        }
        assert_eq!(of_file_name(".a.key.17-0.new"), None);
        assert_eq!(of_file_name("A.key"), None);
        assert_eq!(of_file_name(".key"), None);
    }
}
