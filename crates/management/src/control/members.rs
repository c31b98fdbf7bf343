//! Who gets an identity.

use audit::record::Record;
use identity::{PeerClass, SpiffeId};
use wire::journal::unix_ms;

use super::{Control, ControlError, put_member, random, refused};
use crate::database::{Table, Writes};
use crate::registry::Member;

impl Control {
    /// Makes a ticket. Nobody gets one who is quarantined.
    ///
    /// # Errors
    /// When the id is quarantined or of no class that enrols.
    pub fn create_ticket(&self, id: &SpiffeId) -> Result<identity::Ticket, ControlError> {
        let mut state = self.state();
        if state.registry.get(id).is_some_and(|member| member.quarantined) {
            return Err(refused("quarantined", format!("{id} gets no ticket until two people reinstate it")));
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
        state
            .tickets
            .create(id, &secret, now, identity::ticket::TICKET_TTL_S)
            .map_err(|error| refused("no_ticket", error.to_string()))?;
        let mut writes = Writes::default();
        writes.put(Table::Tickets, "book", &state.tickets)?;
        self.store(&writes);
        Ok(identity::Ticket::new(secret, self.authorities.root))
    }

    /// Redeems a ticket for a certificate.
    ///
    /// # Errors
    /// When the ticket is not good for that id; outside, every refusal looks the same.
    pub fn enrol(
        &self,
        secret: &[u8; 32],
        id: &SpiffeId,
        spki: &[u8],
        ttl_s: i64,
    ) -> Result<Vec<u8>, ControlError> {
        let mut state = self.state();
        let now = unix_ms() / 1_000;
        let redeemed = state.tickets.redeem(secret, id, now);
        let mut writes = Writes::default();
        writes.put(Table::Tickets, "book", &state.tickets)?;
        // Used is used, whatever comes of it.
        self.store(&writes);
        let quarantined = state.registry.get(id).is_some_and(|member| member.quarantined);
        let entry = match redeemed {
            Ok(entry) if !quarantined => entry,
            Ok(_) => return self.refuse_enrolment("quarantined"),
            Err(refusal) => return self.refuse_enrolment(refusal.as_str()),
        };
        let Some(authority) = self.authorities.classes.get(&entry.class) else {
            return self.refuse_enrolment("no_authority");
        };
        let epoch = state.registry.next_epoch(id);
        let certificate = authority
            .issue(spki, id, epoch, now, ttl_s, random::<16>()?)
            .map_err(|error| refused("enrolment_refused", error.to_string()))?;
        let key = keys::Digest::of(spki).to_string();
        let member = Member {
            id: id.clone(),
            epoch,
            key: key.clone(),
            expires: now + ttl_s,
            revoked_through: state.registry.get(id).and_then(|member| member.revoked_through),
            quarantined: false,
        };
        self.journal.record_durably(&Record::Enrolled {
            id: id.to_string(),
            epoch,
            key,
            expires: now + ttl_s,
        })?;
        let mut writes = Writes::default();
        put_member(&mut state, &mut writes, member)?;
        self.store(&writes);
        Ok(certificate)
    }

    fn refuse_enrolment<T>(&self, reason: &str) -> Result<T, ControlError> {
        self.journal.record_durably(&Record::EnrolmentRefused { reason: reason.into() })?;
        Err(refused("enrolment_refused", "the ticket is not good for this identity"))
    }
}
