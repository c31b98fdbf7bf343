//! Who gets an identity: entries and their tickets, challenges, the first certificate; and who loses it for good.
//!
//! INVARIANT: the newcomers' door tells nothing but yes or no. Whatever is refused, the answer is the same, and the log has
//! one record for each reason and second at most.

use std::collections::BTreeMap;
use std::sync::{MutexGuard, PoisonError};

use audit::record::Record;
use identity::attest::challenge::{Challenge, ChallengeBook, ChallengeReply, ChallengeRequest, Randomness};
use identity::attest::{Attested, Shown, attest};
use identity::entry::{EntryState, TICKET_TTL_S};
use identity::{Entry, Limits, PeerClass, Requirements, SpiffeId};
use wire::api::KeyChallenge;
use wire::enrol::{EnrolRequest, Newcomer};
use wire::journal::unix_ms;

use super::members::Warrant;
use super::{Control, ControlError, random, refused};
use crate::database::{Table, Writes};

/// Refusals of one reason within so much time are one record. Milliseconds.
const RECORD_EVERY_MS: i64 = 1_000;

/// What the newcomers' door remembers, in memory only.
#[derive(Debug, Default)]
pub(super) struct Enrolments {
    challenges: ChallengeBook,
    refusals: Refusals,
}

/// Refusals that were not recorded yet, by reason.
#[derive(Debug, Default)]
struct Refusals {
    by_reason: BTreeMap<&'static str, Window>,
}

#[derive(Debug)]
struct Window {
    recorded_ms: i64,
    waiting: u32,
}

impl Refusals {
    /// Counts a refusal; how many are to be recorded now.
    fn note(&mut self, reason: &'static str, now_ms: i64) -> Option<u32> {
        let never = Window { recorded_ms: i64::MIN, waiting: 0 };
        let window = self.by_reason.entry(reason).or_insert(never);
        window.waiting = window.waiting.saturating_add(1);
        window.due(now_ms)
    }

    /// What waited long enough.
    fn due(&mut self, now_ms: i64) -> Vec<(&'static str, u32)> {
        let windows = self.by_reason.iter_mut();
        windows.filter_map(|(reason, window)| Some((*reason, window.due(now_ms)?))).collect()
    }
}

impl Window {
    fn due(&mut self, now_ms: i64) -> Option<u32> {
        let over = !(0..RECORD_EVERY_MS).contains(&now_ms.saturating_sub(self.recorded_ms));
        if self.waiting == 0 || !over {
            return None;
        }
        self.recorded_ms = now_ms;
        Some(std::mem::take(&mut self.waiting))
    }
}

/// What an operator asks for: who may enrol, and how.
#[derive(Debug, Clone)]
pub struct Admission {
    /// What the newcomer must show besides the ticket.
    pub requires: Requirements,
    /// Within which limits.
    pub limits: Limits,
    /// Life of the ticket. Seconds.
    pub ttl_s: i64,
    /// Whether nobody is to be brought back by this who was removed: for who asks without being told to by a person.
    pub keep_removed: bool,
}

impl Default for Admission {
    fn default() -> Self {
        let (requires, limits) = (Requirements::default(), Limits::default());
        Self { requires, limits, ttl_s: TICKET_TTL_S, keep_removed: false }
    }
}

impl Control {
    fn enrolments(&self) -> MutexGuard<'_, Enrolments> {
        self.enrolments.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes an entry that demands a ticket alone, and the ticket.
    ///
    /// # Errors
    /// As [`Control::create_entry`].
    pub fn create_ticket(&self, id: &SpiffeId) -> Result<identity::Ticket, ControlError> {
        self.create_entry(id, Admission::default(), "management").map(|(_, ticket)| ticket)
    }

    /// Makes an entry and its ticket. Nobody gets one who is quarantined.
    ///
    /// # Errors
    /// When the id is quarantined or of no class that enrols, or nobody could show what is demanded.
    pub fn create_entry(
        &self,
        id: &SpiffeId,
        admission: Admission,
        by: &str,
    ) -> Result<(Entry, identity::Ticket), ControlError> {
        let mut state = self.state();
        let member = state.registry.get(id);
        if member.is_some_and(|member| member.quarantined) {
            return Err(refused("quarantined", format!("{id} gets no ticket until two people reinstate it")));
        }
        if admission.keep_removed && member.is_some_and(|member| member.removed) {
            return Err(refused("removed", format!("{id} was removed; a person has to make its ticket")));
        }
        // Journals and the sentinel go by these names: an agent that could call itself otherwise would be taken for another.
        let fits = match PeerClass::of(id) {
            None | Some(PeerClass::Management | PeerClass::Operators) => false,
            Some(PeerClass::Agents) => id.name().starts_with("agent-"),
            Some(_) => true,
        };
        if !fits {
            return Err(refused("wrong_name", "tickets are for units, the desk and agents named agent-…"));
        }
        let secret = random::<32>()?;
        let now = unix_ms() / 1_000;
        let Admission { requires, limits, ttl_s, .. } = admission;
        let mut entries = state.entries.clone();
        let entry = entries
            .create(id, &secret, requires, limits, (now, ttl_s))
            .map_err(|error| refused("no_ticket", error.to_string()))?;
        self.journal.record_durably(&Record::EntryMade {
            id: id.to_string(),
            requires: entry.requires.names().into_iter().map(str::to_owned).collect(),
            expires: entry.expires,
            by: by.to_owned(),
        })?;
        state.entries = entries;
        self.store_entries(&state)?;
        Ok((entry, identity::Ticket::new(secret, self.authorities().root)))
    }

    fn store_entries(&self, state: &crate::state::State) -> Result<(), ControlError> {
        let mut writes = Writes::default();
        writes.put(Table::Tickets, "book", &state.entries)?;
        self.store(writes);
        Ok(())
    }

    /// Every entry, and how it stands.
    #[must_use]
    pub fn entries(&self) -> Vec<(Entry, EntryState)> {
        self.state().entries.entries(unix_ms() / 1_000).collect()
    }

    /// Makes a challenge for a newcomer's connection. It depends on no entry, so it tells of none.
    ///
    /// # Errors
    /// When the keys of its TPM are none that could attest.
    pub fn challenge(
        &self,
        newcomer: &Newcomer,
        request: &ChallengeRequest,
    ) -> Result<ChallengeReply, ControlError> {
        let random = Randomness { nonce: random()?, secret: random()?, seed: random()? };
        match Challenge::issue(&random, request, unix_ms()) {
            Ok((challenge, reply)) => {
                self.enrolments().challenges.put(newcomer.key, challenge);
                Ok(reply)
            }
            Err(why) => self.refuse_enrolment(why.as_str()),
        }
    }

    /// Lets a newcomer in that shows a ticket and what else its entry demands: certifies the keys that come with it. They
    /// count once they are proven; see [`Control::activate_keys`].
    ///
    /// # Errors
    /// When the ticket or the evidence is not good for that id; outside, every refusal looks the same.
    pub fn enrol(
        &self,
        secret: &[u8; 32],
        newcomer: &Newcomer,
        request: &EnrolRequest,
    ) -> Result<KeyChallenge, ControlError> {
        // Taken out whatever comes of it: evidence is judged once.
        let challenge = self.enrolments().challenges.take(&newcomer.key);
        let now_ms = unix_ms();
        let mut state = self.state();
        let redeemed = match state.entries.redeem(secret, &request.id, now_ms) {
            Ok(redeemed) => redeemed,
            Err(refusal) => {
                if refusal.was_counted() {
                    self.store_entries(&state)?;
                }
                drop(state);
                return self.refuse_enrolment(refusal.as_str());
            }
        };
        // Used is used, whatever comes of it.
        self.store_entries(&state)?;
        if state.registry.get(&request.id).is_some_and(|member| member.quarantined) {
            return self.refuse_enrolment("quarantined");
        }
        let shown = Shown {
            tls_key: newcomer.key,
            keys: &request.offer.keys,
            local: newcomer.local,
            challenge,
            evidence: &request.evidence,
        };
        let attested: Attested = match attest(redeemed, shown, now_ms) {
            Ok(attested) => attested,
            Err(why) => return self.refuse_enrolment(why.as_str()),
        };
        let certified = self.certify(&mut state, &Warrant::Attested(&attested), &request.offer);
        drop(state);
        self.settle();
        match certified {
            Err(ControlError::Refused { code, .. }) => self.refuse_enrolment(code),
            other => other,
        }
    }

    fn refuse_enrolment<T>(&self, reason: &'static str) -> Result<T, ControlError> {
        let count = self.enrolments().refusals.note(reason, unix_ms());
        if let Some(count) = count {
            self.journal.record_durably(&Record::EnrolmentRefused { reason: reason.into(), count })?;
        }
        Err(refused("enrolment_refused", "the ticket is not good for this identity"))
    }

    /// Records the refusals that were counted and not recorded yet.
    ///
    /// # Errors
    /// When they cannot be recorded.
    pub fn record_refusals(&self) -> Result<(), ControlError> {
        let due = self.enrolments().refusals.due(unix_ms());
        for (reason, count) in due {
            self.journal.record(&Record::EnrolmentRefused { reason: reason.into(), count })?;
        }
        Ok(())
    }

    /// Ends a member's identity for good: its epoch is revoked, its entry and ticket are void. Lifts no quarantine.
    ///
    /// # Errors
    /// When nobody of that name enrolled, it is gone already, or it cannot be recorded.
    pub fn remove_agent(&self, id: &SpiffeId, by: &str, reason: &str) -> Result<u64, ControlError> {
        self.end_identity(id, by, reason, super::revoking::End::Removed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn e03_ten_thousand_refusals_in_ten_seconds_are_ten_records_of_each_reason() {
        let mut refusals = Refusals::default();
        let mut recorded = Vec::new();
        for number in 0..10_000_i64 {
            let now_ms = 1_000_000 + number;
            recorded.extend(refusals.note("ticket_wrong", now_ms));
            recorded.extend(refusals.note("ticket_unknown", now_ms));
        }
        assert_eq!(recorded.len(), 20);
        let waiting: u32 = refusals.due(1_020_000).into_iter().map(|(_, count)| count).sum();
        assert_eq!(recorded.iter().sum::<u32>() + waiting, 20_000, "none is lost");
        assert!(refusals.due(1_030_000).is_empty());
    }
}
