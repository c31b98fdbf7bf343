//! The keys of members: certified, proven, followed, retired.

use std::collections::BTreeMap;

use access::vocabulary::RevocationKind;
use audit::record::Record;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use identity::attest::Attested;
use identity::keyring::{HeldSet, KeyRefusal};
use identity::{KeySet, KeyUse, PeerClass, SpiffeId};
use keys::sealing::{Channel, Context, SealingPublicKey};
use wire::api::{KeyChallenge, KeyOffer, KeyProof, StatusReply};
use wire::journal::unix_ms;
use wire::tls::Peer;

use super::{Control, ControlError, SCHEDULER, Struck, put_member, random, refused};
use crate::bootstrap::LEAF_TTL_S;
use crate::database::{Table, Writes};
use crate::registry::Member;
use crate::state::{RENEW_BEFORE, State};

impl Control {
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
        let challenge = self.certify(&mut state, &Warrant::Renewed(&peer.id, &active), offer);
        drop(state);
        self.settle();
        challenge
    }

    /// Certifies a set of keys and seals a challenge to each of its sealing keys. Kept, not settled.
    pub(super) fn certify(
        &self,
        state: &mut State,
        warrant: &Warrant<'_>,
        offer: &KeyOffer,
    ) -> Result<KeyChallenge, ControlError> {
        let (id, epoch) = match warrant {
            Warrant::Attested(attested) => (attested.id(), state.registry.next_epoch(attested.id())),
            Warrant::Renewed(id, active) => (*id, active.epoch),
        };
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
        match warrant {
            // What was attested is what is certified.
            Warrant::Attested(attested) if *attested.keys() != offer.keys => return Err(unproven()),
            Warrant::Attested(_) => {}
            Warrant::Renewed(_, current) => {
                let endorsement = offer.endorsement.as_deref().unwrap_or_default();
                signed(&current.keys.signing, endorsement).ok_or_else(unproven)?;
            }
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
        let mut member = state.registry.get(id).cloned().unwrap_or_else(|| Member::new(id.clone()));
        if let Warrant::Attested(attested) = warrant {
            member.certificate_ttl_s = Some(attested.limits().certificate_ttl_s);
        }
        let ttl_s = member.certificate_ttl_s.unwrap_or(LEAF_TTL_S).min(LEAF_TTL_S);
        let certificate =
            authority.issue(&spki, id, epoch, now, ttl_s, random::<16>()?).map_err(|error| match error {
                identity::IdentityError::Make(why) => {
                    ControlError::Unavailable(format!("the authority of {class} does not sign: {why}"))
                }
                error => refused("keys_malformed", error.to_string()),
            })?;
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
            expires: now.saturating_add(ttl_s),
            authority: keys::Digest::of(authority.certificate()).to_string(),
        };
        member.keys.offer(set, &answer).map_err(|why| refused(why.as_str(), why.to_string()))?;
        if let Warrant::Attested(attested) = warrant {
            self.journal.record(&Record::Attested {
                id: id.to_string(),
                epoch,
                by: attested.by().into_iter().map(str::to_owned).collect(),
                facts: attested.facts().clone(),
            })?;
        }
        self.journal.record(&Record::KeysCertified {
            id: id.to_string(),
            epoch,
            sequence,
            keys: named(&offer.keys),
            expires: now.saturating_add(ttl_s),
        })?;
        let mut writes = Writes::default();
        put_member(state, &mut writes, member)?;
        self.keep(writes);
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
                // Whoever was removed and enrolled anew is back.
                member.removed &= member.is_revoked();
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
                self.journal.record(&record)?;
                None
            }
            Err(why) => {
                self.journal.record(&Record::EnrolmentRefused { reason: why.as_str().into(), count: 1 })?;
                Some(why)
            }
        };
        put_member(&mut state, &mut writes, member)?;
        self.keep(writes);
        drop(state);
        self.settle();
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
        self.store(writes);
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
        let mut writes = Writes::default();
        writes.put(Table::Tasks, RENEW_BEFORE, &state.renew_before)?;
        self.store(writes);
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
        state.registry.get(&peer.id).is_some_and(|member| {
            let now = unix_ms() / 1_000;
            member.keys.is_due(now, before, &authority) || is_half_over(member, now)
        })
    }
}

/// Whether more than half of a certificate's life is over, for a member whose certificates live shorter than usual.
fn is_half_over(member: &Member, now: i64) -> bool {
    let short = member.certificate_ttl_s.is_some_and(|ttl_s| ttl_s < LEAF_TTL_S);
    short
        && member
            .keys
            .active()
            .is_some_and(|set| now.saturating_sub(set.since) > set.expires.saturating_sub(set.since) / 2)
}

/// By what right keys are certified.
pub(super) enum Warrant<'a> {
    /// A newcomer showed what its entry demands.
    Attested(&'a Attested),
    /// A member follows its active keys with new ones.
    Renewed(&'a SpiffeId, &'a HeldSet),
}

/// The first 16 digits of each key, by its use: enough to tell keys apart in the log.
fn named(set: &KeySet) -> BTreeMap<String, String> {
    KeyUse::ALL
        .iter()
        .map(|usage| (usage.as_str().to_owned(), set.key(*usage).get(..16).unwrap_or_default().to_owned()))
        .collect()
}
