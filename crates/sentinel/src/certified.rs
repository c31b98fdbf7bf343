//! Which certificates the log knows: the keys that management says it certified, and for whom.
//!
//! INVARIANT: a key is known for one id alone. Memory is bounded: the key certified longest ago goes first, and by then its
//! certificate has ended long since.

use std::collections::{BTreeMap, VecDeque};

/// How many digits of a key the log tells.
const DIGITS: usize = 16;
/// The most keys that are remembered.
const KEYS_MAX: usize = 65_536;

/// The keys that were certified.
#[derive(Debug, Default)]
pub(crate) struct Certified {
    /// Whom each key is for.
    keys: BTreeMap<String, String>,
    order: VecDeque<String>,
}

impl Certified {
    /// Notes that a key was certified for an id.
    pub(crate) fn note(&mut self, key: &str, id: &str) {
        let Some(digits) = key.get(..DIGITS) else { return };
        if self.keys.insert(digits.to_owned(), id.to_owned()).is_none() {
            self.order.push_back(digits.to_owned());
        }
        while self.order.len() > KEYS_MAX {
            if let Some(oldest) = self.order.pop_front() {
                self.keys.remove(&oldest);
            }
        }
    }

    /// Whether this very key was certified for this id.
    pub(crate) fn knows(&self, key: &str, id: &str) -> bool {
        key.get(..DIGITS).and_then(|digits| self.keys.get(digits)).is_some_and(|of| of == id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_known_for_one_id_and_the_oldest_is_forgotten_first() {
        let mut certified = Certified::default();
        for number in 0..=KEYS_MAX {
            certified.note(&format!("{number:016x}"), "a");
        }
        assert!(!certified.knows(&format!("{:016x}", 0), "a"));
        assert!(certified.knows(&format!("{:016x}", 1), "a"));
        assert!(certified.knows(&format!("{:016x}ffff", 1), "a"), "longer digits of the same key");
        assert!(!certified.knows(&format!("{:016x}", 1), "b"));
        assert!(!certified.knows("", "a") && !certified.knows("01", "a"));
        assert_eq!(certified.keys.len(), KEYS_MAX);
    }
}
