//! The revocation log, management's side: what was struck, and the proof that every guard knows or has
//! closed.
//!
//! Owns: revisions without gaps, the feed's replies, and the accounting of leases. It refuses to know sockets
//! and clocks; both times are handed in by the caller. What a guard does with a reply is in [`crate::guard`].
//!
//! INVARIANT: a revision counts as settled only when no guard can still be allowing what it struck.
//!
//! # Why a lapse at management implies a lapse at the guard
//!
//! Let the guard send a poll at true time *s*, management process it at *p*, and the guard hear the reply at
//! *h*. Nothing is heard before it is sent, so s ≤ p ≤ h. The guard's lease from that reply ends 2 s after *s*,
//! whenever the reply arrives; management counts it as possible until 2 s and [`MARGIN_MS`] after *p*, which is
//! later by at least the margin. The margin covers the rounding of both clocks to milliseconds and their drift
//! apart (2.4 % over 2 s).
//!
//! A reply that states head *H* tells the guard everything up to *H* before it renews the lease. So a guard
//! that does not enforce revision *r* can only hold a lease from a reply whose head was below *r*; and once
//! *r* is appended, no reply's head is below *r* any more. Therefore `settled` looks at the last poll
//! answered with a head below *r*, not at the last poll: it is done 2 s + margin after the append, even when
//! a guard keeps polling and its replies are lost on the way.
//!
//! A management process that came up after another one died does not know whom its predecessor answered, so
//! nothing is proven until a lease that the predecessor may have granted has lapsed
//! ([`RevocationLog::restore`]).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::vocabulary::{Revocation, RevocationKind};

/// How long a guard may go on deciding after it sent the last poll that was answered, in milliseconds.
pub const LEASE_MS: u64 = 2_000;
/// How much longer management waits before it takes a lease for lapsed, in milliseconds.
pub const MARGIN_MS: u64 = 50;
/// How long a guard that polls no more is remembered, in milliseconds; far longer than its lease.
pub const GUARD_MEMORY_MS: u64 = 60_000;
/// Most guards that may poll.
pub const GUARDS_MAX: usize = 1_024;
/// Longest name of a guard and longest id in an entry, in bytes.
pub const ID_BYTES_MAX: usize = 320;
/// Most entries in one reply; beyond it a guard closes.
pub const ENTRIES_MAX: usize = 200_000;

/// Heads remembered for each guard; when there are more, two are merged to the side of waiting longer.
const HEADS_MAX: usize = 256;

/// What can be wrong with the log or with a poll.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RevocationError {
    /// Stored entries are not numbered from 1 without gaps.
    #[error("revocation {found} stands where {expected} belongs")]
    Gap {
        /// Revision that belongs there.
        expected: u64,
        /// Revision that stands there.
        found: u64,
    },
    /// The id does not fit the kind.
    #[error("{id:?} names nothing of the kind {kind}")]
    Id {
        /// Kind of the revocation.
        kind: RevocationKind,
        /// The id.
        id: String,
    },
    /// The guard's name is empty or too long.
    #[error("a guard's name has 1 to {ID_BYTES_MAX} bytes")]
    GuardName,
    /// More guards than can be accounted for.
    #[error("no more than {GUARDS_MAX} guards can be accounted for")]
    TooManyGuards,
    /// The guard knows a later revision than the log has: the log was rolled back. To be alarmed.
    #[error("a guard knows revision {acked}, the log ends at {head}: the log was rolled back")]
    RolledBack {
        /// What the guard acknowledged.
        acked: u64,
        /// Where the log ends.
        head: u64,
    },
}

/// What the feed answers to a poll.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FeedReply {
    /// The log's last revision; 0 when nothing was ever revoked.
    pub head: u64,
    /// Entries after the one acknowledged, in order, without those that are moot.
    pub entries: Vec<Revocation>,
}

/// How far a revision has got.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settled {
    /// Guards that enforce it.
    pub acknowledged: Vec<String>,
    /// Guards that have no lease any more and so deny everything.
    pub lapsed: Vec<String>,
    /// Guards that may still be deciding without it.
    pub waiting: Vec<String>,
    /// Whether guards that polled an earlier management process may still hold a lease from it.
    pub unknown_guards: bool,
}

impl Settled {
    /// Whether nobody can be deciding without the revision any more.
    #[must_use]
    pub fn is_proven(&self) -> bool {
        self.waiting.is_empty() && !self.unknown_guards
    }
}

/// One guard, as management accounts for it.
#[derive(Debug, Default)]
struct Lease {
    /// The latest revision that it said it enforces.
    acked: u64,
    /// For each head that it was told, when it was last told that head. Times rise with the heads.
    told: BTreeMap<u64, u64>,
    /// When it polled last.
    polled_ms: u64,
}

impl Lease {
    fn note(&mut self, head: u64, acked: u64, now_ms: u64) {
        self.acked = self.acked.max(acked);
        self.polled_ms = self.polled_ms.max(now_ms);
        self.told.insert(head, self.polled_ms);
        self.told.retain(|_, told_ms| may_hold(*told_ms, now_ms));
        while self.told.len() > HEADS_MAX {
            // The two oldest become one that is told as late as the newer of them: never a lapse too early.
            let (Some((oldest, _)), Some((next, told_ms))) = (self.told.pop_first(), self.told.pop_first())
            else {
                return;
            };
            assert!(oldest < next, "heads are kept in order");
            self.told.insert(oldest, told_ms);
        }
    }

    /// Whether a lease from a reply with a head below the revision may still run.
    fn may_hold_without(&self, revision: u64, now_ms: u64) -> bool {
        self.told.range(..revision).next_back().is_some_and(|(_, told_ms)| may_hold(*told_ms, now_ms))
    }
}

/// Whether the lease of a poll that was processed at `told_ms` may still run at the guard.
fn may_hold(told_ms: u64, now_ms: u64) -> bool {
    now_ms <= told_ms.saturating_add(LEASE_MS + MARGIN_MS)
}

/// Everything that was ever revoked, and who has heard it.
///
/// The caller makes an appended entry durable before it answers a poll, and is the only one who appends.
#[derive(Debug, Default)]
pub struct RevocationLog {
    entries: Vec<Revocation>,
    guards: BTreeMap<String, Lease>,
    /// When leases that an earlier process may have granted have lapsed.
    predecessor_until_ms: Option<u64>,
}

impl RevocationLog {
    /// The log of an installation that never ran before.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes up the stored log of an earlier process.
    ///
    /// `now_ms` is this process's monotonic clock, in milliseconds.
    ///
    /// # Errors
    /// [`RevocationError::Gap`] or [`RevocationError::Id`] when the stored entries are no log.
    pub fn restore(entries: Vec<Revocation>, now_ms: u64) -> Result<Self, RevocationError> {
        for (entry, expected) in entries.iter().zip(1..) {
            if entry.revision != expected {
                return Err(RevocationError::Gap { expected, found: entry.revision });
            }
            check_id(entry.kind, &entry.id)?;
        }
        let predecessor_until_ms = Some(now_ms.saturating_add(LEASE_MS + MARGIN_MS));
        Ok(Self { entries, guards: BTreeMap::new(), predecessor_until_ms })
    }

    /// The last revision; 0 when nothing was ever revoked. A grant is minted with this as its revision.
    #[must_use]
    pub fn head(&self) -> u64 {
        self.entries.last().map_or(0, |entry| entry.revision)
    }

    /// Every entry, for `list` and for keeping.
    #[must_use]
    pub fn entries(&self) -> &[Revocation] {
        &self.entries
    }

    /// Revokes.
    ///
    /// `until` is when everything that it strikes has expired, in seconds since the Unix epoch; `None` for
    /// ever. An
    /// [`RevocationKind::Everything`] and its clearance are for ever.
    ///
    /// # Errors
    /// [`RevocationError::Id`] when the id does not fit the kind: nothing would be struck by it.
    pub fn append(
        &mut self,
        kind: RevocationKind,
        id: &str,
        until: Option<i64>,
    ) -> Result<Revocation, RevocationError> {
        check_id(kind, id)?;
        let until = match kind {
            RevocationKind::Grant | RevocationKind::Task | RevocationKind::Agent | RevocationKind::Key => {
                until
            }
            RevocationKind::Everything | RevocationKind::Clearance => None,
        };
        let entry = Revocation { revision: self.head().saturating_add(1), kind, id: id.to_owned(), until };
        self.entries.push(entry.clone());
        Ok(entry)
    }

    /// The feed after a revision, at `now_unix` seconds since the Unix epoch. Moot entries are left out; the
    /// head is always the log's own.
    #[must_use]
    pub fn entries_after(&self, revision: u64, now_unix: i64) -> FeedReply {
        let after = usize::try_from(revision).unwrap_or(usize::MAX);
        let moot = |entry: &&Revocation| entry.until.is_none_or(|until| until >= now_unix);
        FeedReply {
            head: self.head(),
            entries: self.entries.iter().skip(after).filter(moot).cloned().collect(),
        }
    }

    /// Accounts for a guard's poll, at `now_ms` of the monotonic clock. Call it for each poll *before* its
    /// reply is built, or in the same breath: the reply may tell more than was noted here, never less.
    ///
    /// A guard's name must be one process's alone: a process that takes the place of another has another
    /// name, or is started only after the other has ended.
    ///
    /// # Errors
    /// [`RevocationError::RolledBack`] when the guard knows more than this log,
    /// [`RevocationError::TooManyGuards`],
    /// [`RevocationError::GuardName`]. Such a poll must not be answered with a [`FeedReply`].
    pub fn poll(&mut self, guard: &str, acked: u64, now_ms: u64) -> Result<(), RevocationError> {
        if guard.is_empty() || guard.len() > ID_BYTES_MAX {
            return Err(RevocationError::GuardName);
        }
        let head = self.head();
        if acked > head {
            return Err(RevocationError::RolledBack { acked, head });
        }
        self.guards.retain(|_, lease| now_ms <= lease.polled_ms.saturating_add(GUARD_MEMORY_MS));
        if self.guards.len() >= GUARDS_MAX && !self.guards.contains_key(guard) {
            return Err(RevocationError::TooManyGuards);
        }
        self.guards.entry(guard.to_owned()).or_default().note(head, acked, now_ms);
        Ok(())
    }

    /// Who enforces a revision, who has closed, and who may still be deciding without it, at `now_ms` of the
    /// monotonic clock.
    #[must_use]
    pub fn settled(&self, revision: u64, now_ms: u64) -> Settled {
        let unknown_guards = self.predecessor_until_ms.is_some_and(|until_ms| now_ms <= until_ms);
        let mut settled = Settled { acknowledged: vec![], lapsed: vec![], waiting: vec![], unknown_guards };
        for (guard, lease) in &self.guards {
            let list = if lease.acked >= revision {
                &mut settled.acknowledged
            } else if lease.may_hold_without(revision, now_ms) {
                &mut settled.waiting
            } else {
                &mut settled.lapsed
            };
            list.push(guard.clone());
        }
        settled
    }
}

/// The two halves of an agent's id in the log, `SPIFFE-ID#EPOCH`.
pub(crate) fn agent_id(id: &str) -> Option<(&str, u32)> {
    let (holder, epoch) = id.rsplit_once('#')?;
    let digits = !epoch.is_empty() && epoch.bytes().all(|byte| byte.is_ascii_digit());
    (holder.starts_with("spiffe://") && digits).then_some((holder, epoch.parse().ok()?))
}

/// The revision up to which a clearance lifts.
pub(crate) fn cleared_revision(id: &str) -> Option<u64> {
    let digits = !id.is_empty() && id.bytes().all(|byte| byte.is_ascii_digit());
    if digits { id.parse().ok() } else { None }
}

/// An id that no guard could match would strike nothing, silently; so it is refused at the source and at the
/// guard.
fn is_hex(text: &str, digits: usize) -> bool {
    text.len() == digits && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

pub(crate) fn check_id(kind: RevocationKind, id: &str) -> Result<(), RevocationError> {
    let fits = match kind {
        RevocationKind::Grant => is_hex(id, 32),
        RevocationKind::Key => is_hex(id, 64),
        RevocationKind::Task => !id.is_empty(),
        RevocationKind::Agent => agent_id(id).is_some(),
        RevocationKind::Everything => true,
        RevocationKind::Clearance => cleared_revision(id).is_some(),
    };
    if fits && id.len() <= ID_BYTES_MAX {
        Ok(())
    } else {
        Err(RevocationError::Id { kind, id: id.chars().take(80).collect() })
    }
}

#[cfg(test)]
mod tests;
