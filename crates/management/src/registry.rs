//! Who has an identity, which one is current, and who gets no tasks.

use std::collections::BTreeMap;

use identity::keyring::{HeldSet, KeyRefusal};
use identity::{KeySet, Keyring, PeerClass, SpiffeId};
use serde::{Deserialize, Serialize};
use wire::tls::Peer;

/// A holder of an identity.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Member {
    /// SPIFFE ID.
    pub id: SpiffeId,
    /// Its keys: those in use, those that are to follow, those that were.
    pub keys: Keyring,
    /// Highest epoch that was revoked.
    pub revoked_through: Option<u32>,
    /// Whether it gets no task and no new ticket until two people reinstate it.
    pub quarantined: bool,
    /// Whether it was removed: it is gone for good, unless somebody makes a new ticket for its name.
    #[serde(default)]
    pub removed: bool,
    /// Longest life of its certificates, where its entry said one. Seconds.
    #[serde(default)]
    pub certificate_ttl_s: Option<i64>,
}

/// Why a peer is not who the registry knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stranger {
    /// Nobody of that name enrolled.
    Unknown,
    /// Its key does not speak for it.
    Key(KeyRefusal),
    /// The identity was revoked.
    Revoked,
}

impl Stranger {
    /// Reason code.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Stranger::Unknown => "not_enrolled",
            Stranger::Key(refusal) => refusal.as_str(),
            Stranger::Revoked => "agent_revoked",
        }
    }
}

/// All members.
#[derive(Debug, Default)]
pub struct Registry {
    members: BTreeMap<SpiffeId, Member>,
}

impl Registry {
    /// The registry as it was stored.
    #[must_use]
    pub fn new(members: Vec<Member>) -> Self {
        Self { members: members.into_iter().map(|member| (member.id.clone(), member)).collect() }
    }

    /// Every member, in the order of their ids.
    pub fn members(&self) -> impl Iterator<Item = &Member> {
        self.members.values()
    }

    /// Members of a class.
    pub fn of_class(&self, class: PeerClass) -> impl Iterator<Item = &Member> {
        self.members.values().filter(move |member| PeerClass::of(&member.id) == Some(class))
    }

    /// One member.
    #[must_use]
    pub fn get(&self, id: &SpiffeId) -> Option<&Member> {
        self.members.get(id)
    }

    /// The epoch that the next enrolment of an id gets.
    #[must_use]
    pub fn next_epoch(&self, id: &SpiffeId) -> u32 {
        self.members.get(id).map_or(1, |member| member.keys.epoch().saturating_add(1))
    }

    /// Puts a member as it now is.
    pub fn put(&mut self, member: Member) {
        self.members.insert(member.id.clone(), member);
    }

    /// The member that a peer proved to be, by a key that speaks for it at `now`, in seconds since the Unix epoch.
    ///
    /// # Errors
    /// Why it is none.
    pub fn identify(&self, peer: &Peer, now: i64) -> Result<&Member, Stranger> {
        let member = self.members.get(&peer.id).ok_or(Stranger::Unknown)?;
        member.keys.judge(&keys::to_hex(&peer.key), peer.epoch, now).map_err(Stranger::Key)?;
        if member.revoked_through.is_some_and(|through| peer.epoch <= through) {
            return Err(Stranger::Revoked);
        }
        Ok(member)
    }

    /// The member whose offered set a peer comes with.
    ///
    /// # Errors
    /// When it comes with another key, or is revoked.
    pub fn identify_offered(&self, peer: &Peer) -> Result<&Member, Stranger> {
        let member = self.members.get(&peer.id).ok_or(Stranger::Unknown)?;
        let key = keys::to_hex(&peer.key);
        let is_theirs = |set: &&HeldSet| set.keys.tls == key && set.epoch == peer.epoch;
        let offered = member.keys.offered().filter(is_theirs);
        if offered.or(member.keys.active().filter(is_theirs)).is_none() {
            return Err(Stranger::Key(KeyRefusal::NoOffer));
        }
        if member.revoked_through.is_some_and(|through| peer.epoch <= through) {
            return Err(Stranger::Revoked);
        }
        Ok(member)
    }

    /// Whether anybody ever had a key of this set.
    #[must_use]
    pub fn knows(&self, set: &KeySet) -> bool {
        self.members.values().any(|member| member.keys.knows(set))
    }
}

impl Member {
    /// Somebody who has no keys yet.
    #[must_use]
    pub fn new(id: SpiffeId) -> Self {
        let keys = Keyring::default();
        Self { id, keys, revoked_through: None, quarantined: false, removed: false, certificate_ttl_s: None }
    }

    /// Whether the current identity is revoked.
    #[must_use]
    pub fn is_revoked(&self) -> bool {
        self.revoked_through.is_some_and(|through| self.epoch() <= through)
    }

    /// Epoch of the set in use; 0 while there is none.
    #[must_use]
    pub fn epoch(&self) -> u32 {
        self.keys.active().map_or(0, |set| set.epoch)
    }
}
