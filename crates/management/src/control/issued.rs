//! Certificates that no member asked for: management's own, and those of the operators of this machine.
//!
//! Operators are certified by the command line, with the authorities' keys at hand, whether or not management runs. It
//! leaves the certificate as a note; management records every note when it starts, and before it decides on a key that it
//! has not met. A certificate that was made elsewhere has no note, so its first use is an alarm.
//!
//! INVARIANT: a note is believed only with the signature of the operators' authority.

use std::path::Path;

use audit::record::Record;
use identity::{Leaf, PeerClass};
use wire::files;
use wire::tls::{Identity, Peer};

use super::{Control, ControlError};

/// The most notes that are looked at in a row.
const NOTES_MAX: usize = 64;
/// The most keys that are remembered as met.
const MET_MAX: usize = 4_096;

impl Control {
    /// Records what was issued on this machine and not recorded yet.
    ///
    /// # Errors
    /// When it cannot be recorded; what is no certificate of ours is left where it is.
    pub fn record_issued(&self) -> Result<(), ControlError> {
        let Ok(notes) = std::fs::read_dir(self.home.layout.issued()) else { return Ok(()) };
        for note in notes.flatten().take(NOTES_MAX) {
            let Some(leaf) = self.noted(&note.path()) else {
                tracing::error!(note = %note.path().display(), "this is no certificate that was issued here");
                continue;
            };
            self.journal.record_durably(&issued(&leaf.id.to_string(), &leaf.key, leaf.expires))?;
            if let Err(error) = std::fs::remove_file(note.path()) {
                tracing::warn!(%error, "a note of an issued certificate stays, and will be recorded again");
            }
        }
        Ok(())
    }

    fn noted(&self, path: &Path) -> Option<Leaf> {
        let certificate = files::read_private(path).ok()?;
        let leaf = Leaf::parse(&certificate).ok()?;
        let authorities = self.authorities();
        let issuer = authorities.classes.get(&PeerClass::Operators)?;
        let signed =
            identity::AuthorityCertificate::parse(issuer.certificate()).ok()?.has_signed(&certificate);
        (signed && leaf.class == PeerClass::Operators && leaf.id.trust_domain() == authorities.trust_domain)
            .then_some(leaf)
    }

    /// Looks for the note of a key that is met for the first time, before anything is decided about it.
    ///
    /// # Errors
    /// As [`Control::record_issued`].
    pub fn meet(&self, peer: &Peer) -> Result<(), ControlError> {
        let is_new = {
            let mut met = self.met.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            if met.len() >= MET_MAX {
                met.clear();
            }
            met.insert(peer.key)
        };
        if is_new { self.record_issued() } else { Ok(()) }
    }

    /// Records management's own certificate.
    ///
    /// # Errors
    /// When it cannot be recorded.
    pub fn record_own(&self, identity: &Identity) -> Result<(), ControlError> {
        let record = issued(identity.id().as_str(), &identity.key(), identity.expires());
        self.journal.record_durably(&record)?;
        Ok(())
    }
}

fn issued(id: &str, key: &[u8; 32], expires: i64) -> Record {
    let mut key = keys::to_hex(key);
    key.truncate(16);
    Record::CertificateIssued { id: id.to_owned(), key, expires }
}
