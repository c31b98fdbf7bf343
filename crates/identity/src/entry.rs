//! Entries: who may enrol, what they must show, and within which limits; and the book in which management keeps them.
//!
//! An entry is made with a ticket. The book holds SHA-256 of the ticket's bits only; who reads the book cannot enrol. A
//! newcomer shows the ticket first; what else the entry demands is judged in [`crate::attest`], on the [`Redeemed`] that
//! only this book makes.
//!
//! INVARIANT: a ticket is redeemed at most once, for the id it was made for, before it expires; at most once a second it is
//! tried at all, and after five wrong secrets never again.

use std::collections::{BTreeMap, BTreeSet};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde::{Deserialize, Serialize};

use crate::attest::host;
use crate::danger::{Defence, Switches};
use crate::{IdentityError, PeerClass, SpiffeId};

/// Usual and longest life of a ticket. Seconds.
pub const TICKET_TTL_S: i64 = 30 * 60;

/// Wrong secrets after which an entry is locked, unless it says fewer.
pub const FAILURES_MAX: u32 = 5;

/// How long after a try the next one is not even looked at. Milliseconds.
pub const TRY_PAUSE_MS: i64 = 1_000;

/// Most entries in a book, the dead ones included.
pub const ENTRIES_MAX: usize = 4096;

/// Most programs, and most roots, that one entry names.
pub const CHOICES_MAX: usize = 16;

/// Longest life of a certificate that an entry may ask for. Seconds.
pub const CERTIFICATE_TTL_MAX_S: i64 = 24 * 3_600;

/// Shortest one: a member renews at half of it at the latest, and has to have the time. Seconds.
pub const CERTIFICATE_TTL_MIN_S: i64 = 10 * 60;

/// What a newcomer must show besides its ticket. What is not named is not needed, and must not be shown.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Requirements {
    /// That it is a certain program of a certain user, on management's own machine.
    pub unix: Option<UnixProgram>,
    /// That it runs on a host with a certain certificate.
    pub host: Option<HostCertificate>,
    /// That it runs on the machine with a certain TPM, in a certain state.
    pub tpm: Option<TpmState>,
}

/// A program on management's machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UnixProgram {
    /// The user that runs it.
    pub uid: u32,
    /// SHA-256 of the program, 64 hexadecimal digits; one of these.
    pub executables: BTreeSet<String>,
}

/// A certificate that somebody else gave the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostCertificate {
    /// Certificates of the authorities that may have given it: DER in base64.
    pub roots: BTreeSet<String>,
    /// The host's name in it, letter by letter.
    pub name: String,
}

/// A TPM 2.0.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TpmState {
    /// SHA-256 of its endorsement key as `tpm2_createek` writes it (`TPM2B_PUBLIC`), 64 hexadecimal digits.
    pub ek: String,
    /// The state that the machine must have started in; any, where none is named.
    pub pcrs: Option<Pcrs>,
}

/// Platform configuration registers of the SHA-256 bank.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pcrs {
    /// Their numbers.
    pub selection: BTreeSet<u8>,
    /// SHA-256 of their values one after the other, 64 hexadecimal digits.
    pub digest: String,
}

/// Within which limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Longest life of the member's certificates. Seconds.
    pub certificate_ttl_s: i64,
    /// Wrong secrets after which the entry is locked.
    pub tries: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self { certificate_ttl_s: CERTIFICATE_TTL_MAX_S, tries: FAILURES_MAX }
    }
}

fn is_digest(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
}

impl Requirements {
    /// Names of what is demanded, the ticket first.
    #[must_use]
    pub fn names(&self) -> Vec<&'static str> {
        let mut names = vec!["ticket"];
        names.extend(self.unix.as_ref().map(|_| "unix"));
        names.extend(self.host.as_ref().map(|_| "x509pop"));
        names.extend(self.tpm.as_ref().map(|_| "tpm2"));
        names
    }

    /// Refuses what nobody could show, or what anybody could.
    fn check(&self) -> Result<(), IdentityError> {
        if let Some(unix) = &self.unix {
            if unix.executables.is_empty() || unix.executables.len() > CHOICES_MAX {
                return Err(IdentityError::Entry("name from 1 to 16 programs"));
            }
            if !unix.executables.iter().all(|digest| is_digest(digest)) {
                return Err(IdentityError::Entry(
                    "a program is named by its SHA-256, 64 digits in small letters",
                ));
            }
        }
        if let Some(host) = &self.host {
            host.check()?;
        }
        if let Some(tpm) = &self.tpm {
            if !is_digest(&tpm.ek) {
                return Err(IdentityError::Entry("an endorsement key is named by its SHA-256"));
            }
            if let Some(pcrs) = &tpm.pcrs {
                let known = pcrs.selection.iter().all(|number| *number < 24);
                if pcrs.selection.is_empty() || !known || !is_digest(&pcrs.digest) {
                    return Err(IdentityError::Entry(
                        "name registers from 0 to 23 and the SHA-256 of their values",
                    ));
                }
            }
        }
        Ok(())
    }
}

impl HostCertificate {
    fn check(&self) -> Result<(), IdentityError> {
        let letter = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-.".contains(&byte);
        if self.name.is_empty() || self.name.len() > 253 || !self.name.bytes().all(letter) {
            return Err(IdentityError::Entry("a host's name has small letters, digits, hyphens and dots"));
        }
        if self.roots.is_empty() || self.roots.len() > CHOICES_MAX {
            return Err(IdentityError::Entry("name from 1 to 16 authorities of hosts"));
        }
        for root in &self.roots {
            let der = BASE64_STANDARD.decode(root);
            let der = der.map_err(|_| IdentityError::Entry("an authority's certificate is unreadable"))?;
            host::check_certificate(&der).map_err(|_| {
                IdentityError::Entry("an authority's certificate or its key is not acceptable")
            })?;
        }
        Ok(())
    }
}

impl Limits {
    fn check(self) -> Result<(), IdentityError> {
        if !(CERTIFICATE_TTL_MIN_S..=CERTIFICATE_TTL_MAX_S).contains(&self.certificate_ttl_s) {
            return Err(IdentityError::Lifetime { ttl_s: self.certificate_ttl_s });
        }
        if !(1..=FAILURES_MAX).contains(&self.tries) {
            return Err(IdentityError::Entry("from 1 to 5 wrong secrets lock an entry"));
        }
        Ok(())
    }
}

/// Who may enrol, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Who.
    pub id: SpiffeId,
    /// The class of that id.
    pub class: PeerClass,
    /// What must be shown.
    pub requires: Requirements,
    /// Within which limits.
    pub limits: Limits,
    /// Until when, in seconds since the Unix epoch.
    pub expires: i64,
}

/// How an entry stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EntryState {
    /// Its ticket can be redeemed.
    Open,
    /// Its ticket was redeemed.
    Used,
    /// Too many wrong secrets were tried.
    Locked,
    /// Its time is over.
    Expired,
}

impl EntryState {
    /// The state's one spelling.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Used => "used",
            Self::Locked => "locked",
            Self::Expired => "expired",
        }
    }
}

/// An entry whose ticket was shown, in time and for the first time. Made by [`EntryBook::redeem`] alone, and used up by
/// [`crate::attest::attest`].
#[derive(Debug, PartialEq, Eq)]
pub struct Redeemed {
    entry: Entry,
}

impl Redeemed {
    /// The entry.
    #[must_use]
    pub fn entry(&self) -> &Entry {
        &self.entry
    }

    pub(crate) fn into_entry(self) -> Entry {
        self.entry
    }
}

/// Why a ticket was not redeemed. For the log only: to the newcomer all of these look the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// There is no entry for the id.
    #[error("there is no entry for this id")]
    Unknown,
    /// The last try was less than a second ago; this one was not looked at.
    #[error("tried again too soon")]
    Throttled,
    /// Too many wrong secrets were tried for the id.
    #[error("locked after too many wrong secrets")]
    Locked,
    /// The secret is wrong; this try was counted.
    #[error("wrong secret")]
    WrongSecret,
    /// The ticket was redeemed before.
    #[error("already redeemed")]
    Used,
    /// The ticket has expired.
    #[error("expired")]
    Expired,
}

impl Refusal {
    /// The reason's one spelling in the log.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "ticket_unknown",
            Self::Throttled => "ticket_throttled",
            Self::Locked => "ticket_locked",
            Self::WrongSecret => "ticket_wrong",
            Self::Used => "ticket_used",
            Self::Expired => "ticket_expired",
        }
    }

    /// Whether the try changed the book, so that it has to be stored.
    #[must_use]
    pub fn was_counted(self) -> bool {
        self == Self::WrongSecret
    }
}

/// Every entry that management has made. Pure state: whoever holds it stores it, and stores it before acting on a redeemed
/// ticket.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EntryBook {
    entries: BTreeMap<SpiffeId, Line>,
    #[serde(skip)]
    switches: Switches,
}

/// One entry. An id has one at a time: making another replaces it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    secret_digest: String,
    #[serde(default)]
    requires: Requirements,
    #[serde(default)]
    limits: Limits,
    expires: i64,
    failures: u32,
    used: bool,
    /// When it was tried last, in milliseconds since the Unix epoch. Not stored: a restart allows one try more.
    #[serde(skip)]
    tried_ms: Option<i64>,
}

/// What no ticket hashes to: for the comparison that an unknown id gets all the same.
const NO_DIGEST: &str = "0000000000000000000000000000000000000000000000000000000000000000";

impl EntryBook {
    /// An empty book.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    #[cfg(test)]
    pub(crate) fn without(defence: Defence) -> Self {
        Self { switches: Switches::without(defence), ..Self::default() }
    }

    /// Notes an entry with its ticket, in the place of any earlier one of the id. `now` and `ttl_s` in seconds.
    ///
    /// # Errors
    /// [`IdentityError::Class`] when the id is of no class, [`IdentityError::Lifetime`] when the life is not
    /// within [`TICKET_TTL_S`], [`IdentityError::Entry`] when nobody could meet it or the book is full.
    pub fn create(
        &mut self,
        id: &SpiffeId,
        secret: &[u8; 32],
        requires: Requirements,
        limits: Limits,
        (now, ttl_s): (i64, i64),
    ) -> Result<Entry, IdentityError> {
        let Some(class) = PeerClass::of(id) else {
            return Err(IdentityError::Class { id: id.clone(), class: "peers" });
        };
        let expires = match now.checked_add(ttl_s) {
            Some(expires) if (1..=TICKET_TTL_S).contains(&ttl_s) => expires,
            _ => return Err(IdentityError::Lifetime { ttl_s }),
        };
        requires.check()?;
        limits.check()?;
        self.entries.retain(|_, line| line.expires > now);
        if self.entries.len() >= ENTRIES_MAX {
            return Err(IdentityError::Entry("the book is full"));
        }
        let secret_digest = keys::Digest::of(secret).to_string();
        let line = Line {
            secret_digest,
            requires: requires.clone(),
            limits,
            expires,
            failures: 0,
            used: false,
            tried_ms: None,
        };
        self.entries.insert(id.clone(), line);
        Ok(Entry { id: id.clone(), class, requires, limits, expires })
    }

    /// Redeems a ticket, once and for ever. `now_ms` in milliseconds since the Unix epoch.
    ///
    /// # Errors
    /// A [`Refusal`]; a wrong secret counts against the entry and locks it in the end.
    pub fn redeem(&mut self, secret: &[u8; 32], id: &SpiffeId, now_ms: i64) -> Result<Redeemed, Refusal> {
        let switches = self.switches;
        let shown = keys::Digest::of(secret).to_string();
        let found = match PeerClass::of(id).zip(self.entries.get_mut(id)) {
            None if !switches.on(Defence::ForItsEntry) => {
                let any = self.entries.iter_mut().next();
                any.and_then(|(id, line)| Some((PeerClass::of(id)?, line)))
            }
            found => found,
        };
        let known = found.as_ref().map_or(NO_DIGEST, |(_, line)| line.secret_digest.as_str());
        // Also for who is unknown: the time that this takes says nothing.
        let right = keys::equal_in_constant_time(shown.as_bytes(), known.as_bytes());
        let Some((class, line)) = found else { return Err(Refusal::Unknown) };
        let too_soon =
            line.tried_ms.is_some_and(|last| (0..TRY_PAUSE_MS).contains(&now_ms.saturating_sub(last)));
        if too_soon && switches.on(Defence::Throttle) {
            return Err(Refusal::Throttled);
        }
        line.tried_ms = Some(now_ms);
        if line.failures >= line.limits.tries && switches.on(Defence::LockOut) {
            return Err(Refusal::Locked);
        }
        if !right {
            line.failures = line.failures.saturating_add(1);
            return Err(Refusal::WrongSecret);
        }
        if line.used && switches.on(Defence::SingleUse) {
            return Err(Refusal::Used);
        }
        if now_ms / 1_000 >= line.expires && switches.on(Defence::Expiry) {
            return Err(Refusal::Expired);
        }
        line.used = true;
        let (requires, limits) = (line.requires.clone(), line.limits);
        Ok(Redeemed { entry: Entry { id: id.clone(), class, requires, limits, expires: line.expires } })
    }

    /// Strikes the entry of an id out; whether there was one.
    pub fn void(&mut self, id: &SpiffeId) -> bool {
        self.entries.remove(id).is_some()
    }

    /// Every entry and how it stands at `now`, in seconds since the Unix epoch, by id.
    pub fn entries(&self, now: i64) -> impl Iterator<Item = (Entry, EntryState)> {
        self.entries.iter().filter_map(move |(id, line)| {
            let state = match line {
                Line { used: true, .. } => EntryState::Used,
                line if line.failures >= line.limits.tries => EntryState::Locked,
                line if now >= line.expires => EntryState::Expired,
                _ => EntryState::Open,
            };
            let (class, requires, limits) = (PeerClass::of(id)?, line.requires.clone(), line.limits);
            Some((Entry { id: id.clone(), class, requires, limits, expires: line.expires }, state))
        })
    }
}

#[cfg(test)]
mod tests;
