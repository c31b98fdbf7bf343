//! Who has an identity, which one is current, and who gets no tasks.

use std::collections::BTreeMap;

use identity::{PeerClass, SpiffeId};
use serde::{Deserialize, Serialize};
use wire::tls::Peer;

/// A holder of an identity.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Member {
    /// SPIFFE ID.
    pub id: SpiffeId,
    /// Epoch of the current identity; every enrolment raises it.
    pub epoch: u32,
    /// SHA-256 of the current TLS public key, hexadecimal.
    pub key: String,
    /// When the current certificate ends, in seconds since the Unix epoch.
    pub expires: i64,
    /// Highest epoch that was revoked.
    pub revoked_through: Option<u32>,
    /// Whether it gets no task and no new ticket until two people reinstate it.
    pub quarantined: bool,
}

/// Why a peer is not who the registry knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stranger {
    /// Nobody of that name enrolled.
    Unknown,
    /// The certificate is not the current one.
    NotCurrent,
    /// The identity was revoked.
    Revoked,
}

impl Stranger {
    /// Reason code.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Stranger::Unknown => "not_enrolled",
            Stranger::NotCurrent => "identity_not_current",
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
        self.members.get(id).map_or(1, |member| member.epoch.saturating_add(1))
    }

    /// Puts a member as it now is.
    pub fn put(&mut self, member: Member) {
        self.members.insert(member.id.clone(), member);
    }

    /// The member that a peer proved to be, by the current certificate and key of its name.
    ///
    /// # Errors
    /// Why it is none.
    pub fn identify(&self, peer: &Peer) -> Result<&Member, Stranger> {
        let member = self.members.get(&peer.id).ok_or(Stranger::Unknown)?;
        if member.epoch != peer.epoch || member.key != keys::to_hex(&peer.key) {
            return Err(Stranger::NotCurrent);
        }
        if member.is_revoked() {
            return Err(Stranger::Revoked);
        }
        Ok(member)
    }
}

impl Member {
    /// Whether the current identity is revoked.
    #[must_use]
    pub fn is_revoked(&self) -> bool {
        self.revoked_through.is_some_and(|through| self.epoch <= through)
    }
}
