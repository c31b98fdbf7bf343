//! Who gets an identity.

use std::collections::BTreeMap;

use access::vocabulary::RevocationKind;
use audit::record::Record;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use identity::keyring::{HeldSet, KeyRefusal};
use identity::{KeySet, KeyUse, Keyring, PeerClass, SpiffeId};
use keys::sealing::{Channel, Context, SealingPublicKey};
use wire::api::{KeyChallenge, KeyOffer, KeyProof, StatusReply};
use wire::enrol::Newcomer;
use wire::journal::unix_ms;
use wire::tls::Peer;

use super::{Control, ControlError, SCHEDULER, Struck, put_member, random, refused};
use crate::bootstrap::LEAF_TTL_S;
use crate::database::{Table, Writes};
use crate::registry::Member;
use crate::state::State;

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
        Ok(identity::Ticket::new(secret, self.authorities().root))
    }

    /// Redeems a ticket: certifies the keys that come with it. They count once they are proven; see
    /// [`Control::activate_keys`].
    ///
    /// # Errors
    /// When the ticket is not good for that id; outside, every refusal looks the same.
    pub fn enrol(
        &self,
        secret: &[u8; 32],
        id: &SpiffeId,
        newcomer: &Newcomer,
        offer: &KeyOffer,
    ) -> Result<KeyChallenge, ControlError> {
        let mut state = self.state();
        let now = unix_ms() / 1_000;
        let redeemed = state.tickets.redeem(secret, id, now);
        let mut writes = Writes::default();
        writes.put(Table::Tickets, "book", &state.tickets)?;
        // Used is used, whatever comes of it.
        self.store(&writes);
        let quarantined = state.registry.get(id).is_some_and(|member| member.quarantined);
        match redeemed {
            Ok(_) if quarantined => return self.refuse_enrolment("quarantined"),
            Err(refusal) => return self.refuse_enrolment(refusal.as_str()),
            Ok(_) => {}
        }
        if offer.keys.tls != keys::to_hex(&newcomer.key) {
            return self.refuse_enrolment("keys_unproven");
        }
        let epoch = state.registry.next_epoch(id);
        match self.certify(&mut state, id, epoch, offer, None) {
            Err(ControlError::Refused { code, .. }) => self.refuse_enrolment(code),
            other => other,
        }
    }

    fn refuse_enrolment<T>(&self, reason: &str) -> Result<T, ControlError> {
        self.journal.record_durably(&Record::EnrolmentRefused { reason: reason.into() })?;
        Err(refused("enrolment_refused", "the ticket is not good for this identity"))
    }

    /// A member offers the keys that are to follow those it has.
    ///
    /// # Errors
    /// When they are not its own, not new, or the authority cannot sign.
    pub fn offer_keys(&self, peer: &Peer, offer: &KeyOffer) -> Result<KeyChallenge, ControlError> {
        let mut state = self.state();
        let now = unix_ms() / 1_000;
        let member = state
            .registry
            .identify(peer, now)
            .map_err(|why| refused(why.as_str(), "no current identity of this name"))?;
        let Some(active) = member.keys.active().cloned() else {
            return Err(refused("identity_not_current", "no keys are active"));
        };
        if active.keys.tls != keys::to_hex(&peer.key) {
            return Err(refused("identity_not_current", "only the active keys endorse the next ones"));
        }
        self.certify(&mut state, &peer.id, active.epoch, offer, Some(&active))
    }

    /// Certifies a set of keys and seals a challenge to each of its sealing keys.
    fn certify(
        &self,
        state: &mut State,
        id: &SpiffeId,
        epoch: u32,
        offer: &KeyOffer,
        endorsed_by: Option<&HeldSet>,
    ) -> Result<KeyChallenge, ControlError> {
        let now = unix_ms() / 1_000;
        let unproven = || refused("keys_unproven", "the keys are not shown to be the offerer's");
        let spki = BASE64_STANDARD.decode(&offer.spki).map_err(|_| unproven())?;
        if keys::Digest::of(&spki).to_string() != offer.keys.tls {
            return Err(unproven());
        }
        let statement = offer.keys.statement(id);
        let signed = |key: &str, signature: &str| -> Option<()> {
            let signature: [u8; 64] = keys::from_hex(signature).ok()?;
            keys::VerifyingKey::from_hex(key).ok()?.verify(&statement, &signature).ok()
        };
        signed(&offer.keys.signing, &offer.proof).ok_or_else(unproven)?;
        if let Some(current) = endorsed_by {
            let endorsement = offer.endorsement.as_deref().unwrap_or_default();
            signed(&current.keys.signing, endorsement).ok_or_else(unproven)?;
        }
        if state.registry.knows(&offer.keys) {
            return Err(refused(KeyRefusal::Reused.as_str(), KeyRefusal::Reused.to_string()));
        }
        let class = PeerClass::of(id).ok_or_else(|| refused("no_authority", "the id is of no class"))?;
        let authorities = self.authorities();
        let authority = authorities
            .classes
            .get(&class)
            .ok_or_else(|| refused("no_authority", format!("there is no authority for {class}")))?;
        let certificate = authority.issue(&spki, id, epoch, now, LEAF_TTL_S, random::<16>()?).map_err(
            |error| match error {
                identity::IdentityError::Make(why) => {
                    ControlError::Unavailable(format!("the authority of {class} does not sign: {why}"))
                }
                error => refused("keys_malformed", error.to_string()),
            },
        )?;
        let mut member = state.registry.get(id).cloned().unwrap_or_else(|| Member {
            id: id.clone(),
            keys: Keyring::default(),
            revoked_through: None,
            quarantined: false,
        });
        let sequence = member.keys.next_sequence();
        let seal = |channel: Channel, key: &str| -> Result<(String, String), ControlError> {
            let key = SealingPublicKey::from_hex(key)
                .map_err(|error| refused("keys_malformed", error.to_string()))?;
            let answer = zeroize::Zeroizing::new(random::<32>()?);
            let context = Context { channel, recipient: id.as_str(), epoch, sequence };
            let sealed = key.seal(&random::<32>()?, &context, &*answer);
            let sealed = sealed.map_err(|error| refused("keys_malformed", error.to_string()))?;
            Ok((sealed.to_text(), keys::to_hex(&*answer)))
        };
        let (control, opened_control) = seal(Channel::Control, &offer.keys.control)?;
        let (data, opened_data) = seal(Channel::Data, &offer.keys.data)?;
        let (alerts, opened_alerts) = seal(Channel::Alerts, &offer.keys.alerts)?;
        let answer = KeyProof { control: opened_control, data: opened_data, alerts: opened_alerts }.digest();
        let set = HeldSet {
            keys: offer.keys.clone(),
            epoch,
            sequence,
            since: now,
            expires: now.saturating_add(LEAF_TTL_S),
            authority: keys::Digest::of(authority.certificate()).to_string(),
        };
        member.keys.offer(set, &answer).map_err(|why| refused(why.as_str(), why.to_string()))?;
        self.journal.record_durably(&Record::KeysCertified {
            id: id.to_string(),
            epoch,
            sequence,
            keys: named(&offer.keys),
            expires: now.saturating_add(LEAF_TTL_S),
        })?;
        let mut writes = Writes::default();
        put_member(state, &mut writes, member)?;
        self.store(&writes);
        let certificate = BASE64_STANDARD.encode(certificate);
        Ok(KeyChallenge { certificate, sequence, control, data, alerts })
    }

    /// Makes an offered set the active one, for who came with its TLS key and has opened what was sealed to it.
    ///
    /// # Errors
    /// When there is no such offer, or a proof is wrong.
    pub fn activate_keys(&self, peer: &Peer, proof: &KeyProof) -> Result<(), ControlError> {
        let mut state = self.state();
        let now = unix_ms() / 1_000;
        let member = state
            .registry
            .identify_offered(peer)
            .map_err(|why| refused(why.as_str(), "no keys of this name wait for proofs"))?;
        let mut member = member.clone();
        let tls = keys::to_hex(&peer.key);
        let was_active = member.keys.active().is_some_and(|set| set.keys.tls == tls);
        let activated = member.keys.activate(&tls, &proof.digest(), now);
        let mut writes = Writes::default();
        let refusal = match activated {
            Ok(_) if was_active => return Ok(()),
            Ok(followed) => {
                let active = member.keys.active();
                let record =
                    match followed.filter(|set| active.is_some_and(|active| active.epoch == set.epoch)) {
                        None => Record::Enrolled {
                            id: peer.id.to_string(),
                            epoch: peer.epoch,
                            key: tls,
                            expires: active.map_or(0, |set| set.expires),
                        },
                        Some(followed) => Record::KeysRotated {
                            id: peer.id.to_string(),
                            epoch: peer.epoch,
                            keys: active.map(|set| named(&set.keys)).unwrap_or_default(),
                            followed: named(&followed.keys),
                        },
                    };
                self.journal.record_durably(&record)?;
                None
            }
            Err(why) => {
                self.journal.record_durably(&Record::EnrolmentRefused { reason: why.as_str().into() })?;
                Some(why)
            }
        };
        put_member(&mut state, &mut writes, member)?;
        self.store(&writes);
        match refusal {
            None => Ok(()),
            Some(why) => Err(refused(why.as_str(), why.to_string())),
        }
    }

    /// Retires the sets whose draining is over at `now`, in seconds since the Unix epoch: every guard hears of it.
    ///
    /// # Errors
    /// When that cannot be recorded.
    pub fn retire_keys(&self, now: i64) -> Result<(), ControlError> {
        let mut state = self.state();
        let members: Vec<Member> = state.registry.members().cloned().collect();
        let mut writes = Writes::default();
        for mut member in members {
            let retired = member.keys.retire(now);
            for set in &retired {
                // Forgotten when no certificate for it can be good any more.
                let struck = Struck {
                    kind: RevocationKind::Key,
                    id: &set.keys.tls,
                    until: Some(set.expires),
                    by: SCHEDULER,
                    reason: "followed by new keys",
                };
                self.strike(&mut state, &mut writes, &struck)?;
            }
            if !retired.is_empty() {
                put_member(&mut state, &mut writes, member)?;
            }
        }
        self.store(&writes);
        Ok(())
    }

    /// Asks members to replace their keys: one of them, or all.
    ///
    /// # Errors
    /// When there is no such member, or it cannot be recorded.
    pub fn ask_for_rotation(&self, id: Option<&SpiffeId>, by: &str) -> Result<usize, ControlError> {
        let mut state = self.state();
        let now = unix_ms() / 1_000;
        let asked: Vec<SpiffeId> = match id {
            Some(id) if state.registry.get(id).is_none() => {
                return Err(refused("no_such_member", format!("nobody enrolled as {id}")));
            }
            Some(id) => vec![id.clone()],
            None => state.registry.members().map(|member| member.id.clone()).collect(),
        };
        for id in &asked {
            self.journal.record(&Record::RotationAsked { id: id.to_string(), by: by.to_owned() })?;
            // Keys that became active in this very second are old, too: one second more.
            state.renew_before.insert(id.clone(), now.saturating_add(1));
        }
        Ok(asked.len())
    }

    /// What a member is told when it has reported: how far its journal has joined the log, the bundle when it goes by an
    /// older one, and whether it is to replace its keys.
    #[must_use]
    pub fn answer_report(&self, peer: &Peer, joined: u64, held: u64) -> StatusReply {
        self.state().bundles_held.insert(peer.id.clone(), held);
        let authorities = self.authorities();
        let bundle = (held < authorities.version).then(|| authorities.bundle.clone());
        StatusReply { joined, bundle, renew: self.is_renewal_due(peer) }
    }

    /// Whether a member is to replace its keys.
    fn is_renewal_due(&self, peer: &Peer) -> bool {
        let authorities = self.authorities();
        let issuing =
            authorities.classes.get(&peer.class).map(|authority| keys::Digest::of(authority.certificate()));
        let state = self.state();
        let before = state.renew_before.get(&peer.id).copied().unwrap_or(0);
        let authority = issuing.map(|digest| digest.to_string()).unwrap_or_default();
        state
            .registry
            .get(&peer.id)
            .is_some_and(|member| member.keys.is_due(unix_ms() / 1_000, before, &authority))
    }
}

/// The first 16 digits of each key, by its use: enough to tell keys apart in the log.
fn named(set: &KeySet) -> BTreeMap<String, String> {
    KeyUse::ALL
        .iter()
        .map(|usage| (usage.as_str().to_owned(), set.key(*usage).get(..16).unwrap_or_default().to_owned()))
        .collect()
}
