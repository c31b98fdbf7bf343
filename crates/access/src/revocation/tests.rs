//! The proof, tested: management's log and a real guard on one timeline with arbitrary delays, losses and
//! clock drift.

use proptest::prelude::*;

use super::*;
use crate::grant::mint;
use crate::grant::tests::{claims, issuer};
use crate::guard::{Decision, Guard, GuardConfig, Now, Request};
use crate::vocabulary::{Action, Audience, Claims};

fn long_claims() -> Claims {
    let mut claims = claims();
    (claims.actions, claims.max_uses, claims.revision) = ([Action::ReadBars].into(), u32::MAX, 0);
    claims
}

/// A guard with its own clock, and a peer that asks it again and again.
struct Side {
    guard: Guard,
    grant: String,
    /// What the guard's monotonic clock shows at true time 0, and its speed in thousandths.
    offset_ms: u64,
    speed: u64,
}

impl Side {
    fn new(offset_ms: u64, speed: u64) -> Self {
        let config = GuardConfig { audience: Audience::Desk, issuer_keys: vec![issuer().verifying_key()] };
        let grant = mint(&long_claims(), &issuer()).unwrap().to_text();
        Self { guard: Guard::new(config), grant, offset_ms, speed }
    }

    fn clock(&self, true_ms: u64) -> u64 {
        self.offset_ms + true_ms * self.speed / 1_000
    }

    fn allows(&mut self, true_ms: u64) -> bool {
        let claims = long_claims();
        let request = Request {
            grant: Some(&self.grant),
            peer_id: &claims.holder,
            peer_epoch: claims.epoch,
            peer_key: &claims.holder_key,
            action: Action::ReadBars,
            portfolio: None,
            symbols: &[],
            market_day: None,
            cost: crate::guard::Cost::default(),
        };
        let now = Now { unix: 1_100, mono_ms: self.clock(true_ms) };
        matches!(self.guard.decide(now, &request), Decision::Allow(_))
    }
}

/// One poll: pause before it, way there, way back, and whether the reply is lost.
type Poll = (u64, u64, u64, bool);

/// What happens on the timeline; the order of variants is the order at the same millisecond.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Append,
    Process(usize),
    Hear(usize),
    Look,
}

/// Runs the polls one after the other, revokes at `append_ms`, and looks at both sides all the time. Answers
/// with whether management ever called the revision proven while the guard still allowed, and when it was
/// first proven.
fn run(
    polls: &[Poll],
    append_ms: u64,
    offset_ms: u64,
    speed: u64,
    lease_from_sending: bool,
) -> (bool, Option<u64>) {
    let mut events = vec![(append_ms, Event::Append)];
    let mut sent = Vec::new();
    let mut free_ms = 0;
    for (index, (pause, there, back, lost)) in polls.iter().enumerate() {
        let sent_ms = free_ms + pause;
        sent.push(sent_ms);
        events.push((sent_ms + there, Event::Process(index)));
        free_ms = sent_ms + there + back;
        if !lost {
            events.push((free_ms, Event::Hear(index)));
        }
    }
    let end_ms = free_ms.max(append_ms) + LEASE_MS + MARGIN_MS + 20;
    events.extend((0..end_ms).step_by(7).map(|at_ms| (at_ms, Event::Look)));
    events.sort();

    let mut side = Side::new(offset_ms, speed);
    let mut log = RevocationLog::new();
    let mut revision = None;
    let mut replies = vec![None; polls.len()];
    let (mut violated, mut proven_ms) = (false, None);
    for (at_ms, event) in events {
        match event {
            Event::Append => {
                revision =
                    Some(log.append(RevocationKind::Task, &long_claims().task, None).unwrap().revision);
            }
            Event::Process(index) => {
                log.poll("guard", side.guard.revision(), at_ms).unwrap();
                replies[index] = Some(log.entries_after(side.guard.revision(), 0));
            }
            Event::Hear(index) => {
                let from_ms = if lease_from_sending { sent[index] } else { at_ms };
                let from_ms = side.clock(from_ms);
                side.guard.hear(from_ms, replies[index].as_ref().unwrap()).unwrap();
            }
            Event::Look => {}
        }
        if revision.is_some_and(|revision| log.settled(revision, at_ms).is_proven()) {
            proven_ms = proven_ms.or(Some(at_ms));
            violated |= side.allows(at_ms);
        } else {
            side.allows(at_ms);
        }
    }
    (violated, proven_ms)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn a_revision_is_settled_only_when_the_guard_denies_and_always_within_the_bound(
        polls in proptest::collection::vec((0..600_u64, 0..2_500_u64, 0..2_500_u64, prop::bool::weighted(0.3)), 0..8),
        append_ms in 0..6_000_u64,
        offset_ms in 0..1_000_000_u64,
        speed in 980..=1_020_u64,
    ) {
        let (violated, proven_ms) = run(&polls, append_ms, offset_ms, speed, true);
        prop_assert!(!violated);
        let took_ms = proven_ms.unwrap() - append_ms;
        prop_assert!(took_ms <= LEASE_MS + MARGIN_MS + 7, "took {} ms", took_ms);
    }
}

#[test]
fn a_lease_counted_from_the_hearing_would_break_the_proof() {
    let polls = [(0, 1, 1_900, false)];
    assert_eq!(run(&polls, 10, 0, 1_000, true), (false, Some(2_058)));
    assert!(run(&polls, 10, 0, 1_000, false).0);
}

#[test]
fn revisions_rise_without_gaps_and_the_feed_leaves_out_what_is_moot() {
    let mut log = RevocationLog::new();
    assert_eq!(log.entries_after(0, 0), FeedReply { head: 0, entries: vec![] });
    for (task, until) in [("a", Some(100)), ("b", None), ("c", Some(200))] {
        log.append(RevocationKind::Task, task, until).unwrap();
    }
    let ids = |reply: FeedReply| {
        reply.entries.into_iter().map(|entry| (entry.revision, entry.id)).collect::<Vec<_>>()
    };
    assert_eq!(ids(log.entries_after(0, 100)).len(), 3);
    assert_eq!(ids(log.entries_after(0, 101)), [(2, "b".to_owned()), (3, "c".to_owned())]);
    assert_eq!(log.entries_after(2, 201), FeedReply { head: 3, entries: vec![] });
    assert_eq!(log.entries_after(u64::MAX, 0), FeedReply { head: 3, entries: vec![] });
    let again = RevocationLog::restore(log.entries().to_vec(), 0).unwrap();
    assert_eq!((again.head(), again.entries()), (3, log.entries()));
    let gap = RevocationLog::restore(log.entries()[1..].to_vec(), 0).unwrap_err();
    assert_eq!(gap, RevocationError::Gap { expected: 1, found: 2 });
}

#[test]
fn an_id_that_would_strike_nothing_is_refused() {
    let mut log = RevocationLog::new();
    for (kind, id) in [
        (RevocationKind::Agent, "agent-2"),
        (RevocationKind::Agent, "spiffe://trader.test/agent/x"),
        (RevocationKind::Agent, "spiffe://trader.test/agent/x#+1"),
        (RevocationKind::Agent, "spiffe://trader.test/agent/x#99999999999"),
        (RevocationKind::Grant, "0011"),
        (RevocationKind::Grant, "00112233445566778899AABBCCDDEEFF"),
        (RevocationKind::Task, ""),
        (RevocationKind::Clearance, ""),
        (RevocationKind::Clearance, "-1"),
    ] {
        assert!(matches!(log.append(kind, id, None), Err(RevocationError::Id { .. })), "{kind} {id}");
    }
    assert_eq!(log.head(), 0);
    let stop = log.append(RevocationKind::Everything, "everything", Some(5)).unwrap();
    assert_eq!(stop.until, None, "a stop never becomes moot");
}

#[test]
fn guards_are_told_apart_as_acknowledged_lapsed_and_waiting() {
    let mut log = RevocationLog::new();
    for guard in ["heard", "silent", "lost"] {
        log.poll(guard, 0, 0).unwrap();
    }
    let revision = log.append(RevocationKind::Task, "t", None).unwrap().revision;
    log.poll("heard", 0, 10).unwrap();
    assert_eq!(log.settled(revision, 10).waiting, ["heard", "lost", "silent"]);
    log.poll("heard", 1, 20).unwrap();
    // It polls on and on, but its replies are lost, so its lease lapses all the same.
    (20..2_100).step_by(100).for_each(|at_ms| log.poll("lost", 0, at_ms).unwrap());
    // It came up later: it was told of the revision with its first reply.
    log.poll("new", 0, 2_040).unwrap();
    let settled = log.settled(revision, 2_050);
    assert_eq!(
        (settled.acknowledged.as_slice(), settled.is_proven()),
        (["heard".to_owned()].as_slice(), false)
    );
    assert_eq!(settled.waiting, ["lost", "silent"]);
    let settled = log.settled(revision, 2_051);
    assert_eq!(
        (settled.lapsed, settled.waiting.is_empty()),
        (["lost", "new", "silent"].map(str::to_owned).to_vec(), true)
    );
}

#[test]
fn after_a_restart_nothing_is_proven_until_leases_of_the_predecessor_have_lapsed() {
    let mut log = RevocationLog::restore(vec![], 500).unwrap();
    let revision = log.append(RevocationKind::Task, "t", None).unwrap().revision;
    assert!(!log.settled(revision, 500 + LEASE_MS + MARGIN_MS).is_proven());
    assert!(log.settled(revision, 501 + LEASE_MS + MARGIN_MS).is_proven());
}

#[test]
fn a_guard_that_knows_more_than_the_log_uncovers_a_rollback() {
    let mut log = RevocationLog::new();
    assert_eq!(log.poll("guard", 3, 0), Err(RevocationError::RolledBack { acked: 3, head: 0 }));
    assert_eq!(log.poll("", 0, 0), Err(RevocationError::GuardName));
    for number in 0..GUARDS_MAX {
        log.poll(&number.to_string(), 0, 0).unwrap();
    }
    assert_eq!(log.poll("one more", 0, GUARD_MEMORY_MS), Err(RevocationError::TooManyGuards));
    assert_eq!(log.poll("one more", 0, GUARD_MEMORY_MS + 1), Ok(()), "those that poll no more are forgotten");
}

#[test]
fn heads_that_are_merged_make_the_wait_longer_never_shorter() {
    let mut log = RevocationLog::new();
    for at_ms in 0..HEADS_MAX as u64 * 2 {
        log.poll("guard", 0, at_ms).unwrap();
        log.append(RevocationKind::Task, "t", None).unwrap();
    }
    assert!(log.guards["guard"].told.len() <= HEADS_MAX);
    for revision in 1..=HEADS_MAX as u64 * 2 {
        // The last reply without it was given at `revision - 1`.
        assert!(
            !log.settled(revision, revision - 1 + LEASE_MS + MARGIN_MS).is_proven(),
            "revision {revision}"
        );
    }
}
