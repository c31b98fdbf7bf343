//! The keys of one member: the set in use, the set that is to follow it, and those that were used before.
//!
//! A member makes all its keys together, one for each use, and offers their public halves. The offer becomes the active
//! set when the member has proven that it holds every private half: the TLS key by a handshake, the signing key by a
//! signature, each sealing key by opening what was sealed to it. The set before it drains for a while, so that what is
//! under way can end, and is then retired for ever.
//!
//! Ages count from the moment that a set became active here, not from what a certificate says.
//!
//! INVARIANT: at every moment a member has one active set at most; a key that was ever seen never becomes active again.

use serde::{Deserialize, Serialize};

/// Longest that a set may be in use. Seconds.
pub const KEY_AGE_MAX_S: i64 = 24 * 3_600;

/// When a set is to be followed by the next. Seconds, give or take a tenth.
pub const KEY_AGE_DUE_S: i64 = 12 * 3_600;

/// How long a set that was followed may still be used for what was under way. Seconds.
pub const DRAIN_S: i64 = 60;

/// How long an offer waits to be made active. Seconds.
pub const OFFER_TTL_S: i64 = 10 * 60;

/// Most sets that are remembered as retired; an older one is long past its certificate.
pub const RETIRED_MAX: usize = 64;

/// What a key is for: one key, one purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum KeyUse {
    /// Proves the member in TLS handshakes (P-256).
    #[serde(rename = "tls")]
    Tls,
    /// Signs what the member says (Ed25519).
    #[serde(rename = "signing")]
    Signing,
    /// Opens what management sends: instructions and grants (X25519).
    #[serde(rename = "sealing/control")]
    SealControl,
    /// Opens secrets of data vendors and brokers (X25519).
    #[serde(rename = "sealing/data")]
    SealData,
    /// Opens notices of the sentinel (X25519).
    #[serde(rename = "sealing/alerts")]
    SealAlerts,
}

impl KeyUse {
    /// Every use.
    pub const ALL: [Self; 5] =
        [Self::Tls, Self::Signing, Self::SealControl, Self::SealData, Self::SealAlerts];

    /// The use's one spelling, which is also the channel's name in `trader keys status`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tls => "tls",
            Self::Signing => "signing",
            Self::SealControl => "sealing/control",
            Self::SealData => "sealing/data",
            Self::SealAlerts => "sealing/alerts",
        }
    }
}

/// Public halves of the keys that a member made together, 64 hexadecimal digits each: of the TLS key the SHA-256 of its
/// SubjectPublicKeyInfo, of the others the key itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeySet {
    /// For [`KeyUse::Tls`].
    pub tls: String,
    /// For [`KeyUse::Signing`].
    pub signing: String,
    /// For [`KeyUse::SealControl`].
    pub control: String,
    /// For [`KeyUse::SealData`].
    pub data: String,
    /// For [`KeyUse::SealAlerts`].
    pub alerts: String,
}

impl KeySet {
    /// The key of one use.
    #[must_use]
    pub fn key(&self, usage: KeyUse) -> &str {
        match usage {
            KeyUse::Tls => &self.tls,
            KeyUse::Signing => &self.signing,
            KeyUse::SealControl => &self.control,
            KeyUse::SealData => &self.data,
            KeyUse::SealAlerts => &self.alerts,
        }
    }

    /// What the set's signing key signs to show that one member made all of it, for this identity and no other.
    #[must_use]
    pub fn statement(&self, id: &crate::SpiffeId) -> Vec<u8> {
        let mut text = format!("trader-keys-1\n{id}\n");
        for usage in KeyUse::ALL {
            text.push_str(self.key(usage));
            text.push('\n');
        }
        text.into_bytes()
    }

    fn shares_a_key_with(&self, other: &Self) -> bool {
        let theirs: Vec<&str> = KeyUse::ALL.map(|usage| other.key(usage)).to_vec();
        KeyUse::ALL.iter().any(|usage| theirs.contains(&self.key(*usage)))
    }

    fn is_well_formed(&self) -> bool {
        let keys = KeyUse::ALL.map(|usage| self.key(usage));
        let digits =
            |key: &&str| key.len() == 64 && key.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        let distinct = keys
            .iter()
            .enumerate()
            .all(|(index, key)| !keys.iter().skip(index + 1).any(|other| other == key));
        keys.iter().all(digits) && distinct
    }
}

/// A set that is or was in use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HeldSet {
    /// The keys.
    pub keys: KeySet,
    /// Enrolment epoch that its certificate carries.
    pub epoch: u32,
    /// How many sets this member had before, those never used included.
    pub sequence: u64,
    /// When it became active, in seconds since the Unix epoch; of an offer, when it was made.
    pub since: i64,
    /// When its certificate ends, in seconds since the Unix epoch.
    pub expires: i64,
    /// SHA-256 of the certificate of the authority that certified it.
    pub authority: String,
}

/// A set that waits for its proofs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Offer {
    set: HeldSet,
    /// SHA-256 of what was sealed to the set's sealing keys, put together.
    answer: String,
}

/// A set whose time is over, or nearly.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Former {
    set: HeldSet,
    /// When the next set became active, in seconds since the Unix epoch.
    followed: i64,
    /// Whether everybody has been told that it is retired.
    retired: bool,
}

/// Where a set stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyState {
    /// Waits for its proofs.
    Offered,
    /// In use.
    Active,
    /// Followed by another; what was under way may end.
    Draining,
    /// Over. Whoever uses it has stolen it.
    Retired,
}

impl KeyState {
    /// The state's one spelling.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Offered => "offered",
            Self::Active => "active",
            Self::Draining => "draining",
            Self::Retired => "retired",
        }
    }
}

/// Why a set was not taken, or a key does not speak for its member.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyRefusal {
    /// The set is not five different keys of the accepted form.
    #[error("a key set is five different keys")]
    Malformed,
    /// One of the keys was seen before.
    #[error("a key was used before; make new ones")]
    Reused,
    /// There is no such offer, or it is too old.
    #[error("there is no such offer; make a new one")]
    NoOffer,
    /// The proofs are wrong; the offer is gone.
    #[error("what was sealed to the new keys was not opened")]
    Unproven,
    /// The key is none of this member's.
    #[error("the key is not this member's")]
    Unknown,
    /// The key's set waits for its proofs.
    #[error("the key is not active yet")]
    NotActive,
    /// The key's set is retired.
    #[error("the key is retired")]
    Retired,
    /// The key's set has been in use for too long.
    #[error("the key is older than a key may be")]
    TooOld,
}

impl KeyRefusal {
    /// Reason code.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Malformed => "keys_malformed",
            Self::Reused => "keys_reused",
            Self::NoOffer => "no_such_offer",
            Self::Unproven => "keys_unproven",
            Self::Unknown => "identity_not_current",
            Self::NotActive => "keys_not_active",
            Self::Retired => "key_retired",
            Self::TooOld => "key_too_old",
        }
    }
}

/// All sets of one member. Pure state: whoever holds it stores it before anybody hears of the change.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Keyring {
    active: Option<HeldSet>,
    offer: Option<Offer>,
    former: Vec<Former>,
    /// Sets that there have been.
    sequence: u64,
}

impl Keyring {
    /// The set in use.
    #[must_use]
    pub fn active(&self) -> Option<&HeldSet> {
        self.active.as_ref()
    }

    /// The set that waits for its proofs.
    #[must_use]
    pub fn offered(&self) -> Option<&HeldSet> {
        self.offer.as_ref().map(|offer| &offer.set)
    }

    /// Number of the set that is offered next; part of what is sealed to its keys.
    #[must_use]
    pub fn next_sequence(&self) -> u64 {
        self.sequence.saturating_add(1)
    }

    /// Highest epoch that any set of this member has or had.
    #[must_use]
    pub fn epoch(&self) -> u32 {
        self.rows(i64::MIN).map(|(set, _)| set.epoch).max().unwrap_or(0)
    }

    /// Every set that is remembered, with its state at `now`, newest first.
    pub fn rows(&self, now: i64) -> impl Iterator<Item = (&HeldSet, KeyState)> {
        let offered = self.offer.iter().map(|offer| (&offer.set, KeyState::Offered));
        let active = self.active.iter().map(|set| (set, KeyState::Active));
        let former = self.former.iter().rev().map(move |former| (&former.set, former.state(now)));
        offered.chain(active).chain(former)
    }

    /// Whether a key of the set was ever seen here.
    #[must_use]
    pub fn knows(&self, keys: &KeySet) -> bool {
        self.rows(i64::MIN).any(|(set, _)| set.keys.shares_a_key_with(keys))
    }

    /// Takes an offer, in the place of an earlier one. `answer` is the SHA-256 of what its sealing keys must open.
    ///
    /// # Errors
    /// [`KeyRefusal::Malformed`] or [`KeyRefusal::Reused`].
    pub fn offer(&mut self, mut set: HeldSet, answer: &str) -> Result<(), KeyRefusal> {
        if !set.keys.is_well_formed() {
            return Err(KeyRefusal::Malformed);
        }
        if self.knows(&set.keys) {
            return Err(KeyRefusal::Reused);
        }
        self.sequence = self.next_sequence();
        set.sequence = self.sequence;
        self.offer = Some(Offer { set, answer: answer.to_owned() });
        Ok(())
    }

    /// Makes the offered set the active one, for who came with its TLS key and the right answer. Says which set it
    /// follows. Said again by the same key it changes nothing.
    ///
    /// # Errors
    /// [`KeyRefusal::NoOffer`] or [`KeyRefusal::Unproven`]; after the second the offer is gone.
    pub fn activate(&mut self, tls: &str, answer: &str, now: i64) -> Result<Option<HeldSet>, KeyRefusal> {
        if self.active.as_ref().is_some_and(|active| active.keys.tls == tls) {
            return Ok(None);
        }
        let Some(offer) = self.offer.take_if(|offer| offer.set.keys.tls == tls) else {
            return Err(KeyRefusal::NoOffer);
        };
        if now.saturating_sub(offer.set.since) > OFFER_TTL_S {
            return Err(KeyRefusal::NoOffer);
        }
        if !keys::equal_in_constant_time(offer.answer.as_bytes(), answer.as_bytes()) {
            return Err(KeyRefusal::Unproven);
        }
        let followed = self.active.replace(HeldSet { since: now, ..offer.set });
        if let Some(set) = &followed {
            self.former.push(Former { set: set.clone(), followed: now, retired: false });
            let over = self.former.len().saturating_sub(RETIRED_MAX);
            self.former.drain(..over);
        }
        Ok(followed)
    }

    /// Whether a key speaks for this member at `now`.
    ///
    /// # Errors
    /// Why it does not.
    pub fn judge(&self, tls: &str, epoch: u32, now: i64) -> Result<KeyState, KeyRefusal> {
        let (set, state) = self
            .rows(now)
            .find(|(set, _)| set.keys.tls == tls && set.epoch == epoch)
            .ok_or(KeyRefusal::Unknown)?;
        match state {
            KeyState::Offered => Err(KeyRefusal::NotActive),
            KeyState::Retired => Err(KeyRefusal::Retired),
            KeyState::Active | KeyState::Draining if now.saturating_sub(set.since) > KEY_AGE_MAX_S => {
                Err(KeyRefusal::TooOld)
            }
            KeyState::Active | KeyState::Draining => Ok(state),
        }
    }

    /// Sets whose draining is over and of which nobody has been told yet; they count as told from now on.
    pub fn retire(&mut self, now: i64) -> Vec<HeldSet> {
        let over = |former: &&mut Former| !former.retired && former.state(now) == KeyState::Retired;
        self.former
            .iter_mut()
            .filter(over)
            .map(|former| {
                former.retired = true;
                former.set.clone()
            })
            .collect()
    }

    /// Whether the active set should be followed by a new one: it is past its half-life, or became active before
    /// `renew_all_before`, or was certified by an authority that is not among `authorities`.
    #[must_use]
    pub fn is_due(&self, now: i64, renew_all_before: i64, authority: &str) -> bool {
        self.active.as_ref().is_some_and(|set| {
            now.saturating_sub(set.since) >= due_after(&set.keys.tls)
                || set.since < renew_all_before
                || set.authority != authority
        })
    }
}

impl Former {
    fn state(&self, now: i64) -> KeyState {
        let drained = now.saturating_sub(self.followed) > DRAIN_S || now < self.followed;
        if self.retired || drained { KeyState::Retired } else { KeyState::Draining }
    }
}

/// Half a life, give or take a tenth: which part of that follows from the key, so that members do not all renew at once.
fn due_after(tls: &str) -> i64 {
    let spread = KEY_AGE_DUE_S / 5;
    let digit = i64::from_str_radix(tls.get(..8).unwrap_or_default(), 16).unwrap_or(0);
    KEY_AGE_DUE_S - spread / 2 + digit % spread
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOW: i64 = 1_800_000_000;

    fn keys_of(number: u8) -> KeySet {
        let key = |usage: u8| keys::Digest::of(&[number, usage]).to_string();
        KeySet { tls: key(0), signing: key(1), control: key(2), data: key(3), alerts: key(4) }
    }

    fn set(number: u8, epoch: u32, now: i64) -> HeldSet {
        HeldSet {
            keys: keys_of(number),
            epoch,
            sequence: 0,
            since: now,
            expires: now + KEY_AGE_MAX_S,
            authority: "a".into(),
        }
    }

    fn ring() -> Keyring {
        let mut ring = Keyring::default();
        ring.offer(set(1, 1, NOW), "answer").unwrap();
        assert_eq!(ring.activate(&keys_of(1).tls, "answer", NOW), Ok(None));
        ring
    }

    #[test]
    fn a_set_speaks_once_it_is_proven_and_until_the_next_has_drained_it() {
        let mut ring = ring();
        let judge = |ring: &Keyring, number, at| ring.judge(&keys_of(number).tls, 1, at);
        assert_eq!(judge(&ring, 1, NOW), Ok(KeyState::Active));
        ring.offer(set(2, 1, NOW + 10), "opened").unwrap();
        assert_eq!(judge(&ring, 2, NOW + 10), Err(KeyRefusal::NotActive));
        assert_eq!(judge(&ring, 1, NOW + 10), Ok(KeyState::Active));
        let followed = ring.activate(&keys_of(2).tls, "opened", NOW + 20).unwrap();
        assert_eq!(followed.map(|set| set.keys), Some(keys_of(1)));
        assert_eq!(judge(&ring, 2, NOW + 20), Ok(KeyState::Active));
        assert_eq!(judge(&ring, 1, NOW + 20 + DRAIN_S), Ok(KeyState::Draining));
        assert_eq!(judge(&ring, 1, NOW + 21 + DRAIN_S), Err(KeyRefusal::Retired));
        assert_eq!(ring.retire(NOW + 20 + DRAIN_S).len(), 0);
        assert_eq!(ring.retire(NOW + 21 + DRAIN_S).len(), 1);
        assert_eq!(ring.retire(NOW + 22 + DRAIN_S).len(), 0, "everybody is told once");
        // A clock that goes back does not bring a retired key back.
        assert_eq!(judge(&ring, 1, NOW + 20), Err(KeyRefusal::Retired));
        assert_eq!(judge(&ring, 3, NOW), Err(KeyRefusal::Unknown));
        assert_eq!(ring.judge(&keys_of(2).tls, 2, NOW + 20), Err(KeyRefusal::Unknown), "of another epoch");
    }

    #[test]
    fn age_counts_from_the_registry_whatever_the_certificate_says() {
        let mut ring = ring();
        ring.active.as_mut().unwrap().expires = i64::MAX;
        let judge = |at| ring.judge(&keys_of(1).tls, 1, at);
        assert_eq!(judge(NOW + KEY_AGE_MAX_S), Ok(KeyState::Active));
        assert_eq!(judge(NOW + KEY_AGE_MAX_S + 1), Err(KeyRefusal::TooOld));
    }

    #[test]
    fn no_key_comes_back() {
        let mut ring = ring();
        assert_eq!(ring.offer(set(1, 2, NOW), "again"), Err(KeyRefusal::Reused));
        ring.offer(set(2, 1, NOW), "opened").unwrap();
        ring.activate(&keys_of(2).tls, "opened", NOW).unwrap();
        assert_eq!(ring.offer(set(1, 2, NOW), "again"), Err(KeyRefusal::Reused));
        // Not even one key of it, and not even for another use.
        let mut mixed = set(3, 1, NOW);
        mixed.keys.data = keys_of(1).alerts;
        assert_eq!(ring.offer(mixed, "again"), Err(KeyRefusal::Reused));
    }

    #[test]
    fn an_offer_is_taken_with_every_proof_in_time_or_not_at_all() {
        let tls = keys_of(2).tls;
        let offered = || {
            let mut ring = ring();
            ring.offer(set(2, 1, NOW), "opened").unwrap();
            ring
        };
        assert_eq!(offered().activate(&keys_of(3).tls, "opened", NOW), Err(KeyRefusal::NoOffer));
        assert_eq!(offered().activate(&tls, "opened", NOW + OFFER_TTL_S + 1), Err(KeyRefusal::NoOffer));
        let mut guessed = offered();
        assert_eq!(guessed.activate(&tls, "guessed", NOW), Err(KeyRefusal::Unproven));
        assert_eq!(guessed.activate(&tls, "opened", NOW), Err(KeyRefusal::NoOffer), "one try");
        assert_eq!(guessed.active().map(|set| &set.keys), Some(&keys_of(1)));
        let mut twice = offered();
        assert!(twice.activate(&tls, "opened", NOW).unwrap().is_some());
        assert_eq!(twice.activate(&tls, "opened", NOW + 5), Ok(None), "said again");
    }

    #[test]
    fn a_set_is_five_different_keys() {
        for spoil in [
            |set: &mut KeySet| set.tls.clear(),
            |set: &mut KeySet| set.signing = set.signing.to_uppercase(),
            |set: &mut KeySet| set.control = "zz".repeat(32),
            |set: &mut KeySet| set.data = set.alerts.clone(),
        ] {
            let mut set = set(1, 1, NOW);
            spoil(&mut set.keys);
            assert_eq!(Keyring::default().offer(set, "answer"), Err(KeyRefusal::Malformed));
        }
    }

    #[test]
    fn renewal_is_due_at_half_a_life_or_when_asked_for() {
        let ring = ring();
        let half = due_after(&keys_of(1).tls);
        assert!((KEY_AGE_DUE_S * 9 / 10..KEY_AGE_DUE_S * 11 / 10).contains(&half));
        assert!(!ring.is_due(NOW + half - 1, 0, "a") && ring.is_due(NOW + half, 0, "a"));
        assert!(ring.is_due(NOW, NOW + 1, "a") && !ring.is_due(NOW, NOW, "a"));
        assert!(ring.is_due(NOW, 0, "b"));
        let spread: std::collections::BTreeSet<i64> =
            (0..100).map(|number| due_after(&keys_of(number).tls)).collect();
        assert!(spread.len() > 90, "members renew at different times");
    }

    proptest! {
        /// Whatever is asked in whatever order, with whatever time between: one set at most is active, only proven sets
        /// ever are, and a set that was followed never is again.
        #[test]
        fn one_set_at_most_is_active_at_every_moment(steps in prop::collection::vec((0_u8..4, 0_u8..6, 0_i64..200), 1..60)) {
            let mut ring = Keyring::default();
            let (mut now, mut gone) = (NOW, std::collections::BTreeSet::new());
            for (what, number, passes) in steps {
                now += passes;
                let before = ring.active().map(|set| set.keys.tls.clone());
                match what {
                    0 => drop(ring.offer(set(number, 1, now), "opened")),
                    1 => drop(ring.activate(&keys_of(number).tls, "opened", now)),
                    2 => drop(ring.activate(&keys_of(number).tls, "guessed", now)),
                    _ => drop(ring.retire(now)),
                }
                let after = ring.active().map(|set| set.keys.tls.clone());
                if before != after {
                    prop_assert_eq!(what, 1, "only a proven activation changes the active set");
                    gone.extend(before);
                }
                prop_assert!(after.is_none_or(|tls| !gone.contains(&tls)));
                let active = ring.rows(now).filter(|(_, state)| *state == KeyState::Active).count();
                prop_assert!(active <= 1);
                let stored: Keyring = serde_json::from_str(&serde_json::to_string(&ring).unwrap()).unwrap();
                prop_assert_eq!(&stored, &ring);
            }
        }
    }
}
