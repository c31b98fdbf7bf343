//! Attacks on the guard. Each defence is shown twice: the attack is denied, and with that defence off it is
//! allowed, so the defence is what stops it.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::grant::mint;
use crate::grant::tests::{HOLDER, claims, day, issuer, signed_by_a_stranger, with_unsigned_header};

/// A request with everything that leads to its decision; good until a test changes one thing.
struct Scene {
    claims: Claims,
    sign: fn(&Claims) -> SignedGrant,
    peer_id: &'static str,
    peer_epoch: u32,
    peer_key: [u8; 32],
    action: Action,
    portfolio: Option<&'static str>,
    symbols: Vec<&'static str>,
    market_day: Option<MarketDay>,
    cost: Cost,
    now: Now,
    heard: Vec<(u64, FeedReply)>,
    times: u32,
}

const SENT_MS: u64 = 10_000;
const NOW: Now = Now { unix: 1_100, mono_ms: SENT_MS + 100 };
const ORDER: Cost = Cost { rows: 0, orders: 1, notional: 500 };

fn signed(claims: &Claims) -> SignedGrant {
    mint(claims, &issuer()).unwrap()
}

fn quiet(head: u64) -> FeedReply {
    FeedReply { head, entries: vec![] }
}

fn struck(kind: RevocationKind, id: &str) -> FeedReply {
    FeedReply { head: 5, entries: vec![Revocation { revision: 5, kind, id: id.into(), until: None }] }
}

fn order() -> Scene {
    Scene {
        claims: claims(),
        sign: signed,
        peer_id: HOLDER,
        peer_epoch: 3,
        peer_key: [9; 32],
        action: Action::PlaceOrders,
        portfolio: Some("core"),
        symbols: vec!["AAPL"],
        market_day: Some(day("2010-03-16")),
        cost: ORDER,
        now: NOW,
        heard: vec![(SENT_MS, quiet(5))],
        times: 1,
    }
}

/// The same, for reading.
fn read() -> Scene {
    let mut scene = order();
    scene.claims.actions = BTreeSet::from([Action::ReadBars]);
    (scene.action, scene.cost) = (Action::ReadBars, Cost { rows: 4, ..Cost::default() });
    scene
}

impl Scene {
    fn guard(&self, switches: Switches) -> Guard {
        let config = GuardConfig { audience: Audience::Desk, issuer_keys: vec![issuer().verifying_key()] };
        let mut guard = Guard::new(config);
        guard.switches = switches;
        for (sent_ms, reply) in &self.heard {
            let _ = guard.hear(*sent_ms, reply);
        }
        guard
    }

    fn ask(&self, guard: &mut Guard) -> Decision {
        let text = (self.sign)(&self.claims).to_text();
        let request = Request {
            grant: Some(&text),
            peer_id: self.peer_id,
            peer_epoch: self.peer_epoch,
            peer_key: &self.peer_key,
            action: self.action,
            portfolio: self.portfolio,
            symbols: &self.symbols,
            market_day: self.market_day,
            cost: self.cost,
        };
        guard.decide(self.now, &request)
    }

    /// Asks as often as the scene says, and answers with the last decision.
    fn run(&self, switches: Switches) -> Result<Permit, Reason> {
        let mut guard = self.guard(switches);
        (1..self.times).for_each(|_| drop(reason(self.ask(&mut guard))));
        reason(self.ask(&mut guard))
    }
}

fn reason(decision: Decision) -> Result<Permit, Reason> {
    match decision {
        Decision::Allow(permit) => Ok(permit),
        Decision::Deny(denial) => Err(denial.reason),
    }
}

/// The attack that a defence is there for, and the word with which it is refused.
fn attack(defence: Defence) -> (Reason, Scene) {
    let mut scene = order();
    let reason = match defence {
        Defence::Signature => {
            scene.sign = signed_by_a_stranger;
            Reason::BadSignature
        }
        Defence::Canonical => {
            scene.sign = with_unsigned_header;
            Reason::MalformedGrant
        }
        Defence::Lease => {
            scene.now.mono_ms = SENT_MS + LEASE_MS;
            Reason::LeaseLapsed
        }
        Defence::Rollback => {
            scene.heard = vec![(SENT_MS, quiet(6)), (SENT_MS + 1, quiet(5))];
            Reason::LeaseLapsed
        }
        Defence::Holder => {
            scene.peer_id = "spiffe://trader.test/agent/collector/0bad";
            Reason::WrongHolder
        }
        Defence::Key => {
            scene.peer_key = [8; 32];
            Reason::WrongKey
        }
        Defence::Epoch => {
            scene.peer_epoch = 4;
            Reason::WrongEpoch
        }
        Defence::Audience => {
            scene.claims.audience = Audience::Ledger;
            Reason::WrongAudience
        }
        Defence::NotBefore => {
            scene.now.unix = 999;
            Reason::NotYetValid
        }
        Defence::Expiry => {
            scene.now.unix = 1_300;
            Reason::Expired
        }
        Defence::Lifetime => {
            scene.claims.expires = scene.claims.not_before + LIFETIME_MAX_S + 1;
            Reason::LifetimeTooLong
        }
        Defence::Revision => {
            scene.claims.revision = 6;
            Reason::BehindRevision
        }
        Defence::GrantRevocation => {
            scene.heard = vec![(SENT_MS, struck(RevocationKind::Grant, &scene.claims.grant))];
            Reason::Revoked
        }
        Defence::TaskRevocation => {
            scene.heard = vec![(SENT_MS, struck(RevocationKind::Task, &scene.claims.task))];
            Reason::TaskEnded
        }
        Defence::AgentRevocation => {
            scene.heard = vec![(SENT_MS, struck(RevocationKind::Agent, &format!("{HOLDER}#3")))];
            Reason::AgentRevoked
        }
        Defence::KeyRevocation => {
            let key = keys::to_hex(&scene.peer_key);
            scene.heard = vec![(SENT_MS, struck(RevocationKind::Key, &key))];
            Reason::KeyRetired
        }
        Defence::KillSwitch => {
            scene.heard = vec![(SENT_MS, struck(RevocationKind::Everything, "everything"))];
            Reason::Killed
        }
        Defence::Action => {
            scene.claims.actions = BTreeSet::from([Action::ReadLedger]);
            Reason::WrongAction
        }
        Defence::Portfolio => {
            scene.portfolio = Some("tech");
            Reason::WrongPortfolio
        }
        Defence::Symbols => {
            scene.symbols = vec!["AAPL", "MSFT"];
            Reason::WrongSymbol
        }
        Defence::MarketDay => {
            scene.market_day = Some(day("2010-03-17"));
            Reason::LaterThanMarketDay
        }
        Defence::MarketDayOfWrites => {
            scene.market_day = Some(day("2010-03-15"));
            Reason::WrongMarketDay
        }
        Defence::Uses => {
            scene = read();
            (scene.claims.max_uses, scene.times) = (2, 3);
            scene.cost.rows = 1;
            Reason::UsesExhausted
        }
        Defence::Rows => {
            scene = read();
            scene.times = 3;
            Reason::RowsExhausted
        }
        Defence::Orders => {
            (scene.cost.notional, scene.times) = (1, 4);
            Reason::OrdersExhausted
        }
        Defence::Notional => {
            scene.times = 3;
            Reason::NotionalExhausted
        }
        Defence::OrderSize => {
            scene.cost.notional = 601;
            Reason::OrderTooLarge
        }
        Defence::OrderCost => {
            scene.cost = Cost::default();
            Reason::BadCost
        }
    };
    (reason, scene)
}

#[test]
fn the_good_requests_are_allowed_and_their_permits_say_what_the_grant_says() {
    let permit = order().run(Switches::default()).unwrap();
    assert_eq!((permit.grant(), permit.task(), permit.holder()), (&*claims().grant, &*claims().task, HOLDER));
    assert_eq!((permit.portfolio(), permit.market_day()), (Some("core"), day("2010-03-16")));
    assert_eq!((permit.limits(), permit.action()), (claims().limits, Action::PlaceOrders));
    assert_eq!(permit.symbols().collect::<Vec<_>>(), ["AAPL", "BRK.B"]);
    assert_eq!(permit.grant_digest(), signed(&claims()).digest());
    assert!(
        permit.covers_symbol("AAPL") && !permit.covers_symbol("MSFT") && permit.sources().next().is_none()
    );
    assert_eq!(read().run(Switches::default()).unwrap().rows_left(), 6);
}

#[test]
fn each_defence_stops_its_attack_and_nothing_else_does() {
    for defence in Defence::ALL {
        let (word, scene) = attack(*defence);
        assert_eq!(scene.run(Switches::default()).err(), Some(word), "{defence:?} on");
        assert_eq!(scene.run(Switches::without(*defence)).err(), None, "{defence:?} off");
    }
}

#[test]
fn a_guard_that_has_heard_nothing_denies_everything() {
    let mut scene = order();
    scene.heard.clear();
    assert_eq!(scene.run(Switches::default()).err(), Some(Reason::LeaseLapsed));
}

#[test]
fn without_issuer_keys_without_grant_or_with_nonsense_the_answer_is_no() {
    let scene = order();
    let mut guard = scene.guard(Switches::default());
    let ask = |guard: &mut Guard, grant: Option<&str>| {
        let request = Request {
            grant,
            peer_id: HOLDER,
            peer_epoch: 3,
            peer_key: &[9; 32],
            action: Action::PlaceOrders,
            portfolio: Some("core"),
            symbols: &["AAPL"],
            market_day: None,
            cost: ORDER,
        };
        reason(guard.decide(NOW, &request)).unwrap_err()
    };
    assert_eq!(ask(&mut guard, None), Reason::NoGrant);
    assert_eq!(ask(&mut guard, Some("")), Reason::MalformedGrant);
    assert_eq!(ask(&mut guard, Some("not a grant")), Reason::MalformedGrant);
    assert_eq!(ask(&mut guard, Some(&"A".repeat(1 << 20))), Reason::MalformedGrant);
    guard.config.issuer_keys.clear();
    assert_eq!(scene.ask(&mut guard).denied(), Reason::UnknownKey);
}

impl Decision {
    fn denied(self) -> Reason {
        reason(self).unwrap_err()
    }
}

#[test]
fn the_lease_runs_from_the_sending_of_the_poll_and_ends_after_two_seconds() {
    let mut scene = order();
    scene.claims.max_uses = 100;
    scene.claims.limits.notional = Some(i64::MAX);
    let mut guard = scene.guard(Switches::default());
    scene.now.mono_ms = SENT_MS + LEASE_MS - 1;
    assert!(reason(scene.ask(&mut guard)).is_ok());
    // A reply that took 1.9 s is worth 0.1 s.
    guard.hear(SENT_MS + 90, &quiet(5)).unwrap();
    scene.now.mono_ms = SENT_MS + 90 + LEASE_MS - 1;
    assert!(reason(scene.ask(&mut guard)).is_ok());
    scene.now.mono_ms += 1;
    assert_eq!(scene.ask(&mut guard).denied(), Reason::LeaseLapsed);
    // A clock that goes back doesn't bring the lease back.
    scene.now.mono_ms = SENT_MS + 100;
    assert_eq!(scene.ask(&mut guard).denied(), Reason::LeaseLapsed);
}

#[test]
fn a_late_reply_changes_nothing_and_a_senseless_one_renews_nothing() {
    let mut guard = order().guard(Switches::default());
    assert_eq!(guard.hear(SENT_MS - 1, &quiet(3)), Err(HearError::OutOfDate));
    let entry = |revision| Revocation { revision, kind: RevocationKind::Task, id: "t".into(), until: None };
    for revisions in [vec![5], vec![7, 6], vec![6, 6], vec![8]] {
        let reply = FeedReply { head: 7, entries: revisions.into_iter().map(entry).collect() };
        assert!(matches!(guard.hear(SENT_MS + 1, &reply), Err(HearError::Malformed { .. })), "{reply:?}");
    }
    let mut nameless = entry(6);
    (nameless.kind, nameless.id) = (RevocationKind::Agent, "agent-2".into());
    let reply = FeedReply { head: 6, entries: vec![nameless] };
    assert_eq!(guard.hear(SENT_MS + 1, &reply), Err(HearError::Malformed { revision: 6 }));
    assert_eq!((guard.lease_ms, guard.revision()), (Some(SENT_MS), 5));
}

#[test]
fn after_a_rollback_the_guard_stays_closed_even_when_the_log_grows_again() {
    let mut guard = order().guard(Switches::default());
    assert_eq!(guard.hear(SENT_MS + 1, &quiet(4)), Err(HearError::RolledBack { known: 5, head: 4 }));
    assert!(matches!(guard.hear(SENT_MS + 2, &quiet(9)), Err(HearError::RolledBack { .. })));
    assert_eq!(order().ask(&mut guard).denied(), Reason::LeaseLapsed);
}

#[test]
fn a_new_epoch_of_a_revoked_agent_and_other_grants_and_tasks_go_on() {
    let mut scene = order();
    let other = format!("{HOLDER}x#9");
    for (kind, id) in [
        (RevocationKind::Agent, format!("{HOLDER}#2")),
        (RevocationKind::Agent, other),
        (RevocationKind::Grant, "f".repeat(32)),
        (RevocationKind::Task, "another".into()),
    ] {
        scene.heard = vec![(SENT_MS, struck(kind, &id))];
        assert!(scene.run(Switches::default()).is_ok(), "{kind} {id}");
    }
}

#[test]
fn a_clearance_lifts_only_the_stops_up_to_its_revision() {
    let entry = |revision, kind, id: &str| Revocation { revision, kind, id: id.into(), until: None };
    let everything = |revision| entry(revision, RevocationKind::Everything, "everything");
    let heard = |entries: Vec<Revocation>| {
        let mut scene = order();
        scene.heard = vec![(SENT_MS, FeedReply { head: 9, entries })];
        scene.run(Switches::default()).err()
    };
    let clearance = |revision, of: &str| entry(revision, RevocationKind::Clearance, of);
    assert_eq!(heard(vec![everything(6), clearance(7, "6")]), None);
    assert_eq!(heard(vec![everything(6), clearance(7, "5")]), Some(Reason::Killed));
    assert_eq!(heard(vec![everything(6), clearance(7, "6"), everything(8)]), Some(Reason::Killed));
}

#[test]
fn a_request_in_flight_is_cut_by_a_revocation_by_expiry_and_by_a_lapsed_lease() {
    let mut guard = order().guard(Switches::default());
    let permit = reason(order().ask(&mut guard)).unwrap();
    assert_eq!(guard.recheck(NOW, &permit), Ok(()));
    let late = Now { mono_ms: SENT_MS + LEASE_MS, ..NOW };
    let reply = FeedReply { head: 6, ..struck(RevocationKind::Task, &claims().task) };
    let reply = FeedReply { entries: vec![Revocation { revision: 6, ..reply.entries[0].clone() }], ..reply };
    guard.hear(SENT_MS + 50, &reply).unwrap();
    let denial = guard.recheck(NOW, &permit).unwrap_err();
    assert_eq!(
        (denial.reason, denial.grant, denial.task),
        (Reason::TaskEnded, Some(claims().grant), Some(claims().task))
    );
    assert_eq!(guard.recheck(Now { unix: 1_300, ..NOW }, &permit).unwrap_err().reason, Reason::Expired);
    let late = Now { mono_ms: late.mono_ms + 50, ..late };
    assert_eq!(guard.recheck(late, &permit).unwrap_err().reason, Reason::LeaseLapsed);
}

#[test]
fn an_expired_grant_stays_expired_when_the_clock_goes_back() {
    let mut scene = order();
    let mut guard = scene.guard(Switches::default());
    scene.now.unix = 1_300;
    assert_eq!(scene.ask(&mut guard).denied(), Reason::Expired);
    scene.now.unix = 1_100;
    assert_eq!(scene.ask(&mut guard).denied(), Reason::Expired);
}

#[test]
fn a_request_that_keeps_silent_about_what_it_touches_is_denied_where_it_matters() {
    let silent = |action: Action, change: fn(&mut Scene)| {
        let mut scene = if action == Action::PlaceOrders { order() } else { read() };
        (scene.claims.actions, scene.action) = (BTreeSet::from([action]), action);
        change(&mut scene);
        scene.run(Switches::default()).err()
    };
    assert_eq!(silent(Action::PlaceOrders, |scene| scene.portfolio = None), Some(Reason::WrongPortfolio));
    assert_eq!(silent(Action::ReadLedger, |scene| scene.portfolio = None), Some(Reason::WrongPortfolio));
    assert_eq!(silent(Action::WriteLedger, |scene| scene.portfolio = None), Some(Reason::WrongPortfolio));
    assert_eq!(silent(Action::ReadBars, |scene| scene.claims.portfolio = None), Some(Reason::WrongPortfolio));
    assert_eq!(silent(Action::PlaceOrders, |scene| scene.symbols.clear()), Some(Reason::WrongSymbol));
    assert_eq!(silent(Action::WriteBars, |scene| scene.symbols.clear()), Some(Reason::WrongSymbol));
    assert_eq!(silent(Action::ReadBars, |scene| scene.symbols.clear()), None);
    for action in [Action::PlaceOrders, Action::WriteBars, Action::WriteForecasts, Action::WriteReports] {
        assert_eq!(silent(action, |scene| scene.market_day = None), Some(Reason::WrongMarketDay), "{action}");
    }
    assert_eq!(silent(Action::ReadBars, |scene| scene.market_day = None), None);
    assert_eq!(silent(Action::ReadBars, |scene| scene.cost.orders = 1), Some(Reason::BadCost));
    assert_eq!(silent(Action::PlaceOrders, |scene| scene.cost.notional = -1), Some(Reason::BadCost));
}

#[test]
fn a_limit_that_the_grant_does_not_carry_is_none_not_unlimited() {
    let without = |scene: fn() -> Scene, change: fn(&mut Limits)| {
        let mut scene = scene();
        change(&mut scene.claims.limits);
        scene.run(Switches::default()).err()
    };
    assert_eq!(without(read, |limits| limits.rows = None), Some(Reason::RowsExhausted));
    assert_eq!(without(order, |limits| limits.orders = None), Some(Reason::OrdersExhausted));
    assert_eq!(without(order, |limits| limits.notional = None), Some(Reason::NotionalExhausted));
    assert_eq!(without(order, |limits| limits.order_notional = None), Some(Reason::OrderTooLarge));
}

#[test]
fn rows_that_turn_up_later_are_charged_or_refused() {
    let mut guard = read().guard(Switches::default());
    let permit = reason(read().ask(&mut guard)).unwrap();
    assert_eq!(guard.charge_rows(&permit, 7).unwrap_err().reason, Reason::RowsExhausted);
    assert_eq!(guard.charge_rows(&permit, u64::MAX).unwrap_err().reason, Reason::RowsExhausted);
    assert_eq!(guard.charge_rows(&permit, 6), Ok(()));
    assert_eq!(guard.charge_rows(&permit, 1).unwrap_err().reason, Reason::RowsExhausted);
}

#[test]
fn a_refused_request_uses_nothing_up() {
    let mut scene = order();
    let mut guard = scene.guard(Switches::default());
    for change in [
        |scene: &mut Scene| scene.cost.notional = 601,
        |scene: &mut Scene| scene.cost.rows = 11,
        |scene: &mut Scene| scene.cost.orders = 4,
        |scene: &mut Scene| scene.symbols = vec!["MSFT"],
    ] {
        let mut bad = order();
        change(&mut bad);
        (0..10).for_each(|_| assert!(reason(bad.ask(&mut guard)).is_err()));
    }
    scene.cost = Cost { rows: 10, orders: 3, notional: 600 };
    assert!(reason(scene.ask(&mut guard)).is_ok());
}

#[test]
fn the_cache_is_bounded_and_the_counters_outlive_it() {
    let mut scene = order();
    let mut guard = scene.guard(Switches::default());
    scene.cost.notional = 400;
    assert!(reason(scene.ask(&mut guard)).is_ok());
    assert!(reason(scene.ask(&mut guard)).is_ok());
    assert_eq!(scene.ask(&mut guard).denied(), Reason::NotionalExhausted);
    let mut others = order();
    for number in 0..CACHE_MAX + 10 {
        others.claims.grant = format!("{number:032x}");
        assert!(reason(others.ask(&mut guard)).is_ok());
    }
    assert_eq!(guard.cache.len(), CACHE_MAX);
    assert!(!guard.cache.contains_key(&Digest::of(signed(&claims()).to_text().as_bytes())));
    assert_eq!(scene.ask(&mut guard).denied(), Reason::NotionalExhausted);
}

#[test]
fn what_has_long_expired_is_forgotten() {
    let mut scene = order();
    let mut guard = scene.guard(Switches::default());
    let entry = Revocation { revision: 6, kind: RevocationKind::Task, id: "t".into(), until: Some(1_300) };
    guard.hear(SENT_MS, &FeedReply { head: 6, entries: vec![entry] }).unwrap();
    assert!(reason(scene.ask(&mut guard)).is_ok());
    scene.now.unix = 1_300 + MEMORY_S + 1;
    (0..SWEEP_EVERY).for_each(|_| assert_eq!(scene.ask(&mut guard).denied(), Reason::Expired));
    assert!(guard.used.is_empty() && guard.index.tasks.is_empty());
}

#[test]
fn only_what_passes_by_itself_is_retryable() {
    let retryable: Vec<_> = Reason::ALL.iter().filter(|reason| reason.retryable()).collect();
    assert_eq!(retryable, [&Reason::LeaseLapsed, &Reason::BehindRevision]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn no_sequence_of_orders_exceeds_the_grant(
        costs in proptest::collection::vec((0..3_u32, -50..700_i64, 0..6_u64), 1..40)
    ) {
        let mut scene = order();
        let mut guard = scene.guard(Switches::default());
        let (mut uses, mut orders, mut notional, mut rows) = (0, 0, 0, 0);
        for cost in costs {
            scene.cost = Cost { orders: cost.0, notional: cost.1, rows: cost.2 };
            if reason(scene.ask(&mut guard)).is_ok() {
                (uses, orders) = (uses + 1, orders + cost.0);
                (notional, rows) = (notional + cost.1, rows + cost.2);
                prop_assert!(cost.1 > 0 && cost.1 <= 600 && cost.0 > 0);
            }
            prop_assert!(uses <= 5 && orders <= 3 && notional <= 1_000 && rows <= 10);
        }
    }

    #[test]
    fn with_and_without_the_cache_the_answers_are_the_same(
        steps in proptest::collection::vec((0..27_usize, any::<bool>()), 1..30)
    ) {
        let mut cached = order().guard(Switches::default());
        let mut uncached = order().guard(Switches::default());
        for (which, good) in steps {
            let (_, mut scene) = attack(Defence::ALL[which % Defence::ALL.len()]);
            if good {
                scene = order();
            }
            // Time stays where it is, for a step into the future would close both.
            scene.now = NOW;
            uncached.cache.clear();
            uncached.cache_order.clear();
            let answers = (scene.ask(&mut cached), scene.ask(&mut uncached));
            prop_assert_eq!(reason(answers.0).err(), reason(answers.1).err());
        }
    }
}
