//! One-time enrolment tickets, and the book in which management keeps their digests.
//!
//! A ticket is 256 random bits and the root's public key: the bits prove the newcomer to management, the key
//! proves management to the newcomer. The book holds SHA-256 of the bits only; who reads the book cannot
//! enrol.
//!
//! INVARIANT: a ticket is redeemed at most once, for the id it was made for, before it expires.

use std::collections::BTreeMap;
use std::fmt;

use keys::VerifyingKey;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::{IdentityError, PeerClass, SpiffeId};

/// Usual and longest life of a ticket. Seconds.
pub const TICKET_TTL_S: i64 = 30 * 60;

/// Wrong secrets after which an entry is locked.
pub const FAILURES_MAX: u32 = 5;

/// Most entries in a book, the dead ones included.
pub const ENTRIES_MAX: usize = 4096;

const PREFIX: &str = "trader-ticket-1";

/// A ticket in the hands of a newcomer.
pub struct Ticket {
    secret: Zeroizing<[u8; 32]>,
    root: VerifyingKey,
}

impl Ticket {
    /// Makes a ticket from 32 random bytes.
    #[must_use]
    pub fn new(secret: [u8; 32], root: VerifyingKey) -> Self {
        Self { secret: Zeroizing::new(secret), root }
    }

    /// Parses `trader-ticket-1.<secret>.<root key>`, both of 64 hexadecimal digits.
    ///
    /// # Errors
    /// [`IdentityError::Ticket`] when the text is anything else. The text is not repeated in the error.
    pub fn parse(text: &str) -> Result<Self, IdentityError> {
        let mut parts = text.trim().split('.');
        let (Some(PREFIX), Some(secret), Some(root), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(IdentityError::Ticket("it must be trader-ticket-1.<secret>.<root key>"));
        };
        let secret = keys::from_hex(secret).map_err(|_| IdentityError::Ticket("its secret is unreadable"))?;
        let root =
            VerifyingKey::from_hex(root).map_err(|_| IdentityError::Ticket("its root key is unreadable"))?;
        Ok(Self::new(secret, root))
    }

    /// The ticket as text. A secret: for the newcomer only.
    #[must_use]
    pub fn to_text(&self) -> Zeroizing<String> {
        let secret = Zeroizing::new(keys::to_hex(&*self.secret));
        Zeroizing::new(format!("{PREFIX}.{}.{}", secret.as_str(), self.root.to_hex()))
    }

    /// The secret that management checks.
    #[must_use]
    pub fn secret(&self) -> &[u8; 32] {
        &self.secret
    }

    /// The root that management must prove to stand under.
    #[must_use]
    pub fn root(&self) -> &VerifyingKey {
        &self.root
    }
}

impl fmt::Debug for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Ticket(root {})", self.root.id())
    }
}

/// What a redeemed ticket was made for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Who may enrol.
    pub id: SpiffeId,
    /// The class of that id.
    pub class: PeerClass,
    /// When the ticket would have expired, in seconds since the Unix epoch.
    pub expires: i64,
}

/// Why a ticket was not redeemed. For the log only: to the newcomer all of these look the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// No ticket was made for the id.
    #[error("no ticket was made for this id")]
    Unknown,
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
            Self::Locked => "ticket_locked",
            Self::WrongSecret => "ticket_wrong",
            Self::Used => "ticket_used",
            Self::Expired => "ticket_expired",
        }
    }
}

/// Every ticket that management has made, as digests. Pure state: whoever holds it stores it, and stores it
/// before acting on a redeemed ticket.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TicketBook {
    entries: BTreeMap<SpiffeId, Line>,
}

/// One ticket. An id has one at a time: making another replaces it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    secret_digest: String,
    expires: i64,
    failures: u32,
    used: bool,
}

impl TicketBook {
    /// An empty book.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Notes a ticket for an id, in the place of any earlier one. `now` and `ttl_s` in seconds.
    ///
    /// # Errors
    /// [`IdentityError::Class`] when the id is of no class, [`IdentityError::Lifetime`] when the life is not
    /// within [`TICKET_TTL_S`], [`IdentityError::Ticket`] when the book is full.
    pub fn create(
        &mut self,
        id: &SpiffeId,
        secret: &[u8; 32],
        now: i64,
        ttl_s: i64,
    ) -> Result<Entry, IdentityError> {
        let Some(class) = PeerClass::of(id) else {
            return Err(IdentityError::Class { id: id.clone(), class: "peers" });
        };
        let expires = match now.checked_add(ttl_s) {
            Some(expires) if (1..=TICKET_TTL_S).contains(&ttl_s) => expires,
            _ => return Err(IdentityError::Lifetime { ttl_s }),
        };
        self.entries.retain(|_, line| line.expires > now);
        if self.entries.len() >= ENTRIES_MAX {
            return Err(IdentityError::Ticket("the book is full"));
        }
        let secret_digest = keys::Digest::of(secret).to_string();
        self.entries.insert(id.clone(), Line { secret_digest, expires, failures: 0, used: false });
        Ok(Entry { id: id.clone(), class, expires })
    }

    /// Redeems a ticket, once and for ever.
    ///
    /// # Errors
    /// A [`Refusal`]; a wrong secret counts against the id's ticket and locks it after [`FAILURES_MAX`].
    pub fn redeem(&mut self, secret: &[u8; 32], id: &SpiffeId, now: i64) -> Result<Entry, Refusal> {
        let class = PeerClass::of(id).ok_or(Refusal::Unknown)?;
        let line = self.entries.get_mut(id).ok_or(Refusal::Unknown)?;
        if line.failures >= FAILURES_MAX {
            return Err(Refusal::Locked);
        }
        let shown = keys::Digest::of(secret).to_string();
        if !keys::equal_in_constant_time(shown.as_bytes(), line.secret_digest.as_bytes()) {
            line.failures += 1;
            return Err(Refusal::WrongSecret);
        }
        if line.used {
            return Err(Refusal::Used);
        }
        if now >= line.expires {
            return Err(Refusal::Expired);
        }
        line.used = true;
        Ok(Entry { id: id.clone(), class, expires: line.expires })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    const NOW: i64 = 1_800_000_000;

    fn agent() -> SpiffeId {
        SpiffeId::agent("home.test", "agent-1").unwrap()
    }

    fn book() -> TicketBook {
        let mut book = TicketBook::new();
        book.create(&agent(), &[7; 32], NOW, TICKET_TTL_S).unwrap();
        book
    }

    #[test]
    fn of_a_thousand_redeems_at_once_exactly_one_succeeds() {
        let book = Mutex::new(book());
        let redeemed = AtomicU32::new(0);
        std::thread::scope(|scope| {
            for _ in 0..10 {
                scope.spawn(|| {
                    for _ in 0..100 {
                        if book.lock().unwrap().redeem(&[7; 32], &agent(), NOW).is_ok() {
                            redeemed.fetch_add(1, Ordering::SeqCst);
                        }
                    }
                });
            }
        });
        assert_eq!(redeemed.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn a_ticket_is_for_one_id_for_a_while() {
        let other = SpiffeId::agent("home.test", "agent-2").unwrap();
        assert_eq!(book().redeem(&[7; 32], &other, NOW), Err(Refusal::Unknown));
        assert_eq!(book().redeem(&[7; 32], &agent(), NOW + TICKET_TTL_S), Err(Refusal::Expired));
        assert_eq!(book().redeem(&[8; 32], &agent(), NOW), Err(Refusal::WrongSecret));
        let entry = book().redeem(&[7; 32], &agent(), NOW + TICKET_TTL_S - 1).unwrap();
        assert_eq!((entry.id, entry.class), (agent(), PeerClass::Agents));
    }

    #[test]
    fn guessing_locks_the_entry_even_for_the_right_secret() {
        let mut book = book();
        for _ in 0..FAILURES_MAX {
            assert_eq!(book.redeem(&[8; 32], &agent(), NOW), Err(Refusal::WrongSecret));
        }
        assert_eq!(book.redeem(&[7; 32], &agent(), NOW), Err(Refusal::Locked));
    }

    #[test]
    fn a_redeemed_ticket_stays_redeemed_across_a_restart() {
        let mut book = book();
        book.redeem(&[7; 32], &agent(), NOW).unwrap();
        let text = serde_json::to_string(&book).unwrap();
        assert!(!text.contains(&keys::to_hex(&[7; 32])), "the book holds the secret");
        let mut book: TicketBook = serde_json::from_str(&text).unwrap();
        assert_eq!(book.redeem(&[7; 32], &agent(), NOW), Err(Refusal::Used));
    }

    #[test]
    fn a_new_ticket_replaces_the_old_one() {
        let mut book = book();
        book.create(&agent(), &[9; 32], NOW + 1, 60).unwrap();
        assert_eq!(book.redeem(&[7; 32], &agent(), NOW + 1), Err(Refusal::WrongSecret));
        assert!(book.redeem(&[9; 32], &agent(), NOW + 1).is_ok());
    }

    #[test]
    fn a_ticket_has_limits() {
        let mut book = TicketBook::new();
        let nobody = SpiffeId::parse("spiffe://home.test/nobody").unwrap();
        assert!(book.create(&nobody, &[1; 32], NOW, 60).is_err());
        for ttl_s in [0, -1, TICKET_TTL_S + 1, i64::MAX] {
            assert!(book.create(&agent(), &[1; 32], NOW, ttl_s).is_err());
        }
        for number in 0..ENTRIES_MAX {
            let id = SpiffeId::agent("h", &number.to_string()).unwrap();
            book.create(&id, &[1; 32], NOW, 60).unwrap();
        }
        assert!(book.create(&agent(), &[1; 32], NOW, 60).is_err());
        assert!(book.create(&agent(), &[1; 32], NOW + 60, 60).is_ok());
    }

    #[test]
    fn ticket_and_text_are_the_same_thing_and_debug_tells_no_secret() {
        let root = keys::SigningKey::from_seed(&[1; 32]).verifying_key();
        let ticket = Ticket::new([7; 32], root);
        let again = Ticket::parse(&ticket.to_text()).unwrap();
        assert_eq!((again.secret(), again.root()), (ticket.secret(), ticket.root()));
        assert!(!format!("{ticket:?}").contains("0707"));
        let text = ticket.to_text();
        for wrong in ["", "trader-ticket-1", &text[1..], &text[..text.len() - 1], &format!("{}.x", *text)] {
            let error = Ticket::parse(wrong).unwrap_err();
            assert!(!error.to_string().contains("0707"));
        }
    }
}
