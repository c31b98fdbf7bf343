//! What is found, and what is not.

use proptest::prelude::*;

use super::*;
use crate::config::tests::config;

const AGENT: &str = "spiffe://home.test/agent/agent-2";
const OTHER: &str = "spiffe://home.test/agent/agent-1";
const EQUITY: i64 = 1_000_000_000_000;
const DOLLAR: i64 = 1_000_000;

fn sentinel() -> Sentinel {
    let mut sentinel = Sentinel::new(config());
    sentinel.approve_module("aa");
    for id in [AGENT, OTHER] {
        let (id, key) = (id.to_owned(), String::new());
        sentinel.observe(0, "management", &Record::Enrolled { id, epoch: 1, key, expires: 0 });
    }
    sentinel
}

fn refused(peer: &str, reason: &str) -> Record {
    Record::Decision {
        action: "read_bars".to_owned(),
        route: "GET /bars".to_owned(),
        peer: peer.to_owned(),
        key: String::new(),
        grant: None,
        task: Some("task-1".to_owned()),
        allowed: false,
        reason: reason.to_owned(),
    }
}

/// An order of this many thousandths of equity.
fn order(id: &str, agent: &str, thousandths: i64, day: &str, approved: bool) -> Record {
    Record::OrderDecided {
        order: id.to_owned(),
        portfolio: "core".to_owned(),
        symbol: "AAPL".to_owned(),
        side: "buy".to_owned(),
        quantity: thousandths * (EQUITY / 1000 / DOLLAR),
        price: DOLLAR,
        market_day: day.to_owned(),
        task: "task-1".to_owned(),
        grant: String::new(),
        agent: agent.to_owned(),
        forecast: None,
        checks: Vec::new(),
        approved,
        reason: String::new(),
        equity: EQUITY,
    }
}

fn sent(id: &str) -> Record {
    Record::OrderSent { order: id.to_owned() }
}

fn filled(id: &str, fill: &str, quantity: i64, price: i64) -> Record {
    Record::OrderFilled {
        order: id.to_owned(),
        fill: fill.to_owned(),
        portfolio: "core".to_owned(),
        symbol: "AAPL".to_owned(),
        side: "buy".to_owned(),
        quantity,
        price,
        fee: 0,
        market_day: "2001-01-02".to_owned(),
    }
}

fn started(digest: &str) -> Record {
    let (task, module) = ("task-1".to_owned(), "analyst".to_owned());
    Record::ModuleStarted { task, module, digest: digest.to_owned() }
}

fn ended(violation: bool) -> Record {
    let (task, module) = ("task-1".to_owned(), "analyst".to_owned());
    Record::ModuleEnded { task, module, outcome: "tried socket".to_owned(), violation }
}

/// The rules found, in order.
fn rules(findings: &[Finding]) -> Vec<Rule> {
    findings.iter().map(|finding| finding.rule).collect()
}

/// A sentinel that knows 40 orders of one agent, between 2 and 10 % of equity.
fn accustomed(agent: &str) -> Sentinel {
    let mut sentinel = sentinel();
    for number in 0..40 {
        let thousandths = [20, 30, 40, 45, 100][number % 5];
        let day = format!("2000-01-{:02}", number / 5 + 1);
        let record = order(&format!("{agent}-{number}"), agent, thousandths, &day, true);
        assert_eq!(sentinel.observe(0, "desk", &record), []);
    }
    sentinel
}

#[test]
fn a_burst_of_refusals_is_found_once_while_its_incident_is_open() {
    let mut sentinel = sentinel();
    for number in 0..20 {
        assert_eq!(sentinel.observe(number * 40, "unit-market-1", &refused(AGENT, "no_grant")), []);
    }
    let findings = sentinel.observe(820, "unit-market-1", &refused(AGENT, "no_grant"));
    assert_eq!(rules(&findings), [Rule::RefusalBurst]);
    assert_eq!((findings[0].subject.as_str(), findings[0].task.as_deref()), (AGENT, Some("task-1")));
    for number in 0..100 {
        assert_eq!(sentinel.observe(830 + number, "unit-market-1", &refused(AGENT, "revoked")), []);
    }
    assert!(sentinel.close(&findings[0].incident) && !sentinel.close(&findings[0].incident));
    assert_eq!(sentinel.observe(931, "unit-market-1", &refused(AGENT, "revoked")), []);
    let again = (0..20)
        .flat_map(|number| sentinel.observe(932 + number, "unit-market-1", &refused(AGENT, "revoked")));
    assert_eq!(again.map(|finding| finding.incident).collect::<Vec<_>>(), ["incident-2"]);
}

#[test]
fn a_burst_over_many_guards_is_one_burst() {
    let mut sentinel = sentinel();
    let found = (0..21).flat_map(|number| {
        let guard = format!("unit-{}", number % 7);
        sentinel.observe(number * 10, &guard, &refused(AGENT, "wrong_portfolio"))
    });
    assert_eq!(rules(&found.collect::<Vec<_>>()), [Rule::RefusalBurst]);
}

#[test]
fn refusals_that_are_slow_retryable_or_of_different_peers_are_no_burst() {
    let mut sentinel = sentinel();
    for number in 0..200 {
        assert_eq!(sentinel.observe(number * 50, "unit-1", &refused(AGENT, "no_grant")), []);
    }
    for number in 0..500 {
        assert_eq!(sentinel.observe(20_000 + number, "unit-1", &refused(AGENT, "lease_lapsed")), []);
        assert_eq!(sentinel.observe(20_000 + number, "unit-1", &refused(AGENT, "behind_revision")), []);
    }
    for number in 0..200 {
        let peer = format!("spiffe://home.test/agent/agent-{}", number % 20);
        assert_eq!(sentinel.observe(40_000 + number, "unit-1", &refused(&peer, "no_grant")), []);
    }
    let mut granted = refused(AGENT, "granted");
    let Record::Decision { allowed, .. } = &mut granted else { panic!() };
    *allowed = true;
    for number in 0..500 {
        assert_eq!(sentinel.observe(60_000 + number, "unit-1", &granted), []);
    }
}

#[test]
fn the_third_grant_that_is_not_its_own_is_found() {
    for reason in ["wrong_holder", "wrong_key", "bad_signature"] {
        let mut sentinel = sentinel();
        assert_eq!(sentinel.observe(0, "desk", &refused(AGENT, reason)), []);
        assert_eq!(sentinel.observe(4_000, "unit-1", &refused(AGENT, reason)), []);
        assert_eq!(rules(&sentinel.observe(8_000, "desk", &refused(AGENT, reason))), [Rule::ForgedGrant]);
    }
    let mut sentinel = sentinel();
    for number in 0..50 {
        assert_eq!(sentinel.observe(number * 6_000, "desk", &refused(AGENT, "wrong_key")), []);
        assert_eq!(sentinel.observe(number * 6_000 + 1, "desk", &refused(AGENT, "expired")), []);
    }
}

#[test]
fn the_first_order_beyond_its_grant_is_found() {
    for reason in ["order_too_large", "notional_exhausted", "orders_exhausted"] {
        let mut sentinel = sentinel();
        assert_eq!(rules(&sentinel.observe(0, "desk-1", &refused(AGENT, reason))), [Rule::OverLimit]);
        assert_eq!(sentinel.observe(1, "desk-1", &refused(AGENT, reason)), []);
    }
    assert_eq!(sentinel().observe(0, "desk-1", &refused(AGENT, "wrong_symbol")), []);
}

#[test]
fn a_clock_that_jumps_back_hides_no_burst() {
    let mut sentinel = sentinel();
    let found: Vec<Finding> = (0..21)
        .flat_map(|number| {
            sentinel.observe(1_000_000 - number * 5_000, "unit-1", &refused(AGENT, "no_grant"))
        })
        .collect();
    assert_eq!(rules(&found), [Rule::RefusalBurst]);
    let mut sentinel = self::sentinel();
    sentinel.observe(i64::MAX, "unit-1", &refused(AGENT, "no_grant"));
    sentinel.observe(i64::MIN, "unit-1", &refused(AGENT, "no_grant"));
    let found =
        (0..21).flat_map(|number| sentinel.observe(number * 20, "unit-1", &refused(AGENT, "no_grant")));
    assert_eq!(rules(&found.collect::<Vec<_>>()), [Rule::RefusalBurst]);
}

#[test]
fn an_order_that_was_sent_or_filled_without_approval_is_found() {
    let mut sentinel = sentinel();
    let findings = sentinel.observe(0, "desk", &sent("o1"));
    assert_eq!((rules(&findings), findings[0].subject.as_str()), (vec![Rule::OrderNotApproved], "desk"));
    sentinel.observe(0, "desk", &order("o2", AGENT, 40, "2000-01-03", false));
    let findings = sentinel.observe(0, "desk", &sent("o2"));
    assert_eq!((rules(&findings), findings[0].subject.as_str()), (vec![Rule::OrderNotApproved], AGENT));
    sentinel.close_all("desk");
    assert_eq!(rules(&sentinel.observe(0, "desk", &filled("o9", "f1", 1, 1))), [Rule::OrderNotApproved]);
}

#[test]
fn an_order_that_was_sent_twice_is_found() {
    let mut sentinel = sentinel();
    sentinel.observe(0, "desk", &order("o1", AGENT, 40, "2000-01-03", true));
    assert_eq!(sentinel.observe(0, "desk", &sent("o1")), []);
    assert_eq!(rules(&sentinel.observe(0, "desk", &sent("o1"))), [Rule::OrderSentTwice]);
}

#[test]
fn an_order_that_lives_as_it_should_is_not_found() {
    let mut sentinel = sentinel();
    let shares = 40 * (EQUITY / 1000 / DOLLAR);
    for _ in 0..2 {
        // The desk may tell a decision and a fill again after a crash.
        assert_eq!(sentinel.observe(0, "desk", &order("o1", AGENT, 40, "2000-01-03", true)), []);
    }
    assert_eq!(sentinel.observe(0, "desk", &sent("o1")), []);
    for _ in 0..3 {
        assert_eq!(sentinel.observe(0, "desk", &filled("o1", "f1", shares / 2, DOLLAR)), []);
        assert_eq!(sentinel.observe(0, "desk", &filled("o1", "f2", shares / 2, DOLLAR)), []);
    }
}

#[test]
fn more_shares_than_approved_are_found_unless_a_split_made_them() {
    let shares = 40 * (EQUITY / 1000 / DOLLAR);
    let mut sentinel = sentinel();
    let mut fill = |id: &str, quantity: i64, price: i64| {
        sentinel.observe(0, "desk", &order(id, AGENT, 40, "2000-01-03", true));
        let findings = sentinel.observe(0, "desk", &filled(id, "f", quantity, price));
        sentinel.close_all(AGENT);
        rules(&findings)
    };
    assert_eq!(fill("whole", shares, DOLLAR), []);
    assert_eq!(fill("one more", shares + 1, DOLLAR), [Rule::OrderOverfilled]);
    assert_eq!(fill("one more, cheap", shares + 1, DOLLAR / 2), [Rule::OrderOverfilled]);
    assert_eq!(fill("twice", shares * 2, DOLLAR), [Rule::OrderOverfilled]);
    assert_eq!(fill("split 2:1", shares * 2, DOLLAR * 52 / 100), []);
    assert_eq!(fill("split 3:2", shares * 3 / 2, DOLLAR * 64 / 100), []);
    assert_eq!(fill("split 7:1 and a fall", shares * 7, DOLLAR * 12 / 100), []);
    assert_eq!(fill("twice for nothing", shares * 2, 0), [Rule::OrderOverfilled]);
    assert_eq!(fill("everything", i64::MAX, i64::MAX), [Rule::OrderOverfilled]);
    assert_eq!(fill("less than nothing", i64::MIN, DOLLAR), []);
    sentinel.observe(0, "desk", &order("pieces", AGENT, 40, "2000-01-03", true));
    assert_eq!(sentinel.observe(0, "desk", &filled("pieces", "f1", shares, DOLLAR)), []);
    let findings = sentinel.observe(0, "desk", &filled("pieces", "f2", 1, DOLLAR));
    assert_eq!(rules(&findings), [Rule::OrderOverfilled]);
}

#[test]
fn an_approval_cannot_be_widened_afterwards() {
    let mut sentinel = sentinel();
    sentinel.observe(0, "desk", &order("o1", AGENT, 10, "2000-01-03", true));
    sentinel.observe(0, "desk", &order("o1", AGENT, 90, "2000-01-03", true));
    let shares = 90 * (EQUITY / 1000 / DOLLAR);
    assert_eq!(
        rules(&sentinel.observe(0, "desk", &filled("o1", "f", shares, DOLLAR))),
        [Rule::OrderOverfilled]
    );
}

#[test]
fn a_module_that_is_not_approved_is_found_and_an_approved_one_is_not() {
    let mut sentinel = sentinel();
    assert_eq!(sentinel.observe(0, "agent-2", &started("aa")), []);
    let findings = sentinel.observe(0, "agent-2", &started("ab"));
    assert_eq!((rules(&findings), findings[0].subject.as_str()), (vec![Rule::ModuleNotApproved], AGENT));
    assert_eq!(
        rules(&Sentinel::new(config()).observe(0, "agent-2", &started("aa"))),
        [Rule::ModuleNotApproved]
    );
}

#[test]
fn a_module_that_was_stopped_for_a_violation_is_found_and_one_that_failed_is_not() {
    let mut sentinel = sentinel();
    assert_eq!(sentinel.observe(0, "agent-2", &ended(false)), []);
    assert_eq!(rules(&sentinel.observe(0, "agent-2", &ended(true))), [Rule::ModuleViolation]);
    assert_eq!(sentinel.observe(0, "agent-2", &ended(true)), []);
}

#[test]
fn a_module_that_does_it_again_in_another_task_is_found_again_and_silences_no_other_rule() {
    let mut sentinel = sentinel();
    let ended_in = |number: usize| Record::ModuleEnded {
        task: format!("task-{number}"),
        module: "analyst".to_owned(),
        outcome: "tried socket".to_owned(),
        violation: true,
    };
    for number in 0..OPEN_MAX {
        let findings = sentinel.observe(0, "agent-2", &ended_in(number));
        assert_eq!(findings[0].task.as_deref(), Some(format!("task-{number}").as_str()));
        let Finding { incident, rule, subject, expected, seen, .. } = findings[0].clone();
        let (rule, response) = (rule.to_string(), Vec::new());
        let opened = Record::IncidentOpened { incident, rule, subject, expected, seen, response };
        sentinel.observe(0, "management", &opened);
    }
    assert_eq!(sentinel.open_incidents().count(), OPEN_MAX);
    assert_eq!(sentinel.observe(0, "agent-2", &ended_in(OPEN_MAX)), []);
    let findings = sentinel.observe(1, "desk-1", &refused(AGENT, "order_too_large"));
    assert_eq!(rules(&findings), [Rule::OverLimit]);
}

#[test]
fn an_agent_cannot_have_another_one_accused() {
    let mut sentinel = sentinel();
    for number in 0..100 {
        assert_eq!(sentinel.observe(number, "agent-1", &refused(AGENT, "wrong_key")), []);
        assert_eq!(sentinel.observe(number, "agent-1", &sent("o1")), []);
        assert_eq!(sentinel.observe(number, "agent-1", &filled("o1", "f", 1, 1)), []);
    }
    // What it says of its own modules counts against itself, whatever enrolment it claims.
    let claim = Record::Enrolled {
        id: "spiffe://x/agent/agent-1".to_owned(),
        epoch: 9,
        key: String::new(),
        expires: 0,
    };
    sentinel.observe(0, "agent-1", &claim);
    assert_eq!(sentinel.observe(0, "agent-1", &ended(true))[0].subject, OTHER);
}

#[test]
fn an_agent_cannot_close_its_own_incident_or_teach_the_sentinel() {
    let mut sentinel = accustomed(AGENT);
    sentinel.observe(0, "agent-2", &ended(true));
    let enabled = |what: &str| Record::Enabled {
        what: what.to_owned(),
        asked_by: String::new(),
        approved_by: String::new(),
    };
    sentinel.observe(0, "agent-2", &enabled(AGENT));
    assert_eq!(sentinel.open_incidents().count(), 1);
    for number in 0..64 {
        sentinel.observe(0, "agent-2", &order(&format!("x{number}"), AGENT, 500, "2000-02-01", true));
    }
    assert_eq!(
        rules(&sentinel.observe(0, "desk", &order("y", AGENT, 400, "2000-02-01", true))),
        [Rule::OrderSize]
    );
    sentinel.observe(0, "management", &enabled(AGENT));
    assert_eq!(sentinel.open_incidents().count(), 0);
}

#[test]
fn orders_ten_times_their_usual_size_are_found_approved_or_not() {
    for approved in [true, false] {
        let mut sentinel = accustomed(AGENT);
        let findings: Vec<Finding> = [200, 300, 400, 450, 1000]
            .iter()
            .flat_map(|size| {
                sentinel.observe(0, "desk", &order(&format!("x{size}"), AGENT, *size, "2000-02-01", approved))
            })
            .collect();
        assert_eq!((rules(&findings), findings[0].subject.as_str()), (vec![Rule::OrderSize], AGENT));
    }
}

#[test]
fn an_agent_without_a_habit_is_measured_by_the_others() {
    let mut sentinel = accustomed(OTHER);
    assert_eq!(sentinel.observe(0, "desk", &order("a", AGENT, 100, "2000-02-01", true)), []);
    let findings = sentinel.observe(0, "desk", &order("b", AGENT, 400, "2000-02-01", true));
    assert_eq!((rules(&findings), findings[0].subject.as_str()), (vec![Rule::OrderSize], AGENT));
}

#[test]
fn nothing_is_said_of_sizes_before_there_are_enough() {
    let mut sentinel = sentinel();
    for number in 0..19 {
        sentinel.observe(0, "desk", &order(&format!("a{number}"), AGENT, 1, "2000-01-03", true));
    }
    assert_eq!(sentinel.observe(0, "desk", &order("b", AGENT, 900, "2000-01-03", true)), []);
}

#[test]
fn refused_orders_teach_nothing_so_that_a_slow_ramp_fails() {
    let mut sentinel = accustomed(AGENT);
    let mut findings = Vec::new();
    for number in 0..200 {
        let size = 100 + number * 4;
        findings.extend(sentinel.observe(
            0,
            "desk",
            &order(&format!("r{number}"), AGENT, size, "2000-02-01", false),
        ));
    }
    assert!(rules(&findings).contains(&Rule::OrderSize));
}

#[test]
fn a_day_of_far_more_orders_is_found_and_the_busiest_honest_one_is_not() {
    let mut sentinel = sentinel();
    let mut day = |day: usize, orders: usize| {
        let mut findings = Vec::new();
        for number in 0..orders {
            let record = order(&format!("{day}-{number}"), AGENT, 40, &format!("2000-01-{day:02}"), true);
            findings.extend(sentinel.observe(0, "desk", &record));
        }
        rules(&findings)
    };
    for number in 1..=10 {
        assert_eq!(day(number, [1, 2, 20][number % 3]), []);
    }
    assert_eq!(day(11, 40), []);
    assert_eq!(day(12, 100), [Rule::OrderRate]);
}

#[test]
fn going_back_and_forth_between_days_does_not_reset_the_count() {
    let mut sentinel = sentinel();
    for day in 1..=10 {
        for number in 0..10 {
            sentinel.observe(
                0,
                "desk",
                &order(&format!("{day}-{number}"), AGENT, 40, &format!("2000-01-{day:02}"), true),
            );
        }
    }
    let found = (0..100).flat_map(|number| {
        let day = ["2000-02-01", "2000-01-05"][number % 2];
        sentinel.observe(0, "desk", &order(&format!("x{number}"), AGENT, 40, day, true))
    });
    assert_eq!(rules(&found.collect::<Vec<_>>()), [Rule::OrderRate]);
}

#[test]
fn orders_out_of_nothing_are_out_of_proportion() {
    let mut sentinel = accustomed(AGENT);
    let Record::OrderDecided { .. } = order("x", AGENT, 10, "2000-02-01", true) else { panic!() };
    let mut broke = order("x", AGENT, 10, "2000-02-01", true);
    if let Record::OrderDecided { equity, .. } = &mut broke {
        *equity = -5;
    }
    assert_eq!(rules(&sentinel.observe(0, "desk", &broke)), [Rule::OrderSize]);
}

#[test]
fn a_sentinel_that_is_shown_the_log_again_stands_where_it_stood() {
    let mut log: Vec<(i64, &str, Record)> = Vec::new();
    for number in 0..30 {
        log.push((number, "unit-1", refused(AGENT, "no_grant")));
    }
    let mut first = sentinel();
    let mut found = Vec::new();
    for (at_ms, process, record) in &log {
        found.extend(first.observe(*at_ms, process, record));
    }
    let opened = Record::IncidentOpened {
        incident: found[0].incident.clone(),
        rule: found[0].rule.to_string(),
        subject: found[0].subject.clone(),
        expected: String::new(),
        seen: String::new(),
        response: Vec::new(),
    };
    log.push((30, "management", opened));
    let mut again = sentinel();
    for (at_ms, process, record) in &log {
        again.observe(*at_ms, process, record);
    }
    first.observe(30, "management", &log[30].2);
    assert_eq!(again.open_incidents().collect::<Vec<_>>(), first.open_incidents().collect::<Vec<_>>());
    // The record alone opens it as well, and its number is not given out again.
    let mut third = sentinel();
    third.observe(30, "management", &log[30].2);
    assert_eq!(third.open_incidents().count(), 1);
    assert_eq!(third.observe(0, "agent-2", &ended(true))[0].incident, "incident-2");
}

#[test]
fn memory_is_bounded_whatever_the_records_say() {
    let mut small = config();
    small.subjects_max = 8;
    small.orders_max = 16;
    let mut sentinel = Sentinel::new(small);
    for number in 0..2_000 {
        let name = format!("n{number}");
        sentinel.observe(number, &name, &refused(&name, "no_grant"));
        let mut record = order(&name, &name, 40, &name, true);
        if let Record::OrderDecided { portfolio, .. } = &mut record {
            portfolio.clone_from(&name);
        }
        sentinel.observe(number, "desk", &record);
        if let Record::OrderDecided { agent, .. } = &mut record {
            AGENT.clone_into(agent);
        }
        sentinel.observe(number, "desk", &record);
    }
    assert!(sentinel.subjects.len() <= 8);
    assert!(sentinel.orders.len() <= 16);
    assert!(sentinel.pools.len() <= PORTFOLIOS_MAX + 1);
    assert!(sentinel.subjects.values().all(|subject| subject.habits.len() <= PORTFOLIOS_MAX + 1));
    assert!(sentinel.names.len() <= 8);
}

#[test]
fn an_open_incident_outlives_a_flood_of_new_subjects() {
    let mut small = config();
    small.subjects_max = 8;
    let mut sentinel = Sentinel::new(small);
    for number in 0..21 {
        sentinel.observe(number, "unit-1", &refused(AGENT, "no_grant"));
    }
    for number in 0..100 {
        sentinel.observe(50, "unit-1", &refused(&format!("n{number}"), "no_grant"));
    }
    assert_eq!(sentinel.open_incidents().map(|(_, _, subject)| subject).collect::<Vec<_>>(), [AGENT]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    /// Median 4 %, at most 10 % of equity: wild, but normal.
    #[test]
    fn wild_but_normal_trading_raises_no_alarm(
        sizes in proptest::collection::vec(prop_oneof![20i64..40, 40i64..60, 60i64..=100], 300),
        per_day in proptest::collection::vec(1usize..=20, 300),
    ) {
        let mut sentinel = sentinel();
        let (mut day, mut left) = (0, 0);
        for (number, size) in sizes.iter().enumerate() {
            if left == 0 {
                day += 1;
                left = per_day[day];
            }
            left -= 1;
            let (agent, id) = ([AGENT, OTHER][day % 2], format!("o{number}"));
            let market_day = format!("{:04}-01-05", 1990 + day);
            let shares = size * (EQUITY / 1000 / DOLLAR);
            let approved = number % 7 != 0;
            prop_assert_eq!(sentinel.observe(0, "desk", &order(&id, agent, *size, &market_day, approved)), []);
            if approved {
                prop_assert_eq!(sentinel.observe(0, "desk", &sent(&id)), []);
                let fill = filled(&id, &format!("f{number}"), shares, DOLLAR);
                prop_assert_eq!(sentinel.observe(0, "desk", &fill), []);
            }
        }
    }

    #[test]
    fn no_figures_make_it_panic(
        quantity in any::<i64>(), price in any::<i64>(), worth in any::<i64>(),
        times in proptest::collection::vec(any::<i64>(), 30),
    ) {
        let mut sentinel = sentinel();
        for (number, at_ms) in times.iter().enumerate() {
            let mut record = order(&format!("o{number}"), AGENT, 1, "2000-01-03", true);
            if let Record::OrderDecided { quantity: shares, price: each, equity, .. } = &mut record {
                (*shares, *each, *equity) = (quantity.rotate_left(number as u32), price, worth);
            }
            sentinel.observe(*at_ms, "desk", &record);
            sentinel.observe(*at_ms, "desk", &filled(&format!("o{number}"), "f", quantity, price));
            sentinel.observe(*at_ms, "desk", &refused(AGENT, "bad_signature"));
        }
    }
}

fn decided_with(key: &str, allowed: bool) -> Record {
    let mut record = refused(AGENT, "granted");
    if let Record::Decision { key: shown, allowed: was, .. } = &mut record {
        *shown = key.to_owned();
        *was = allowed;
    }
    record
}

fn certified(id: &str, key: &str) -> Record {
    Record::KeysCertified {
        id: id.to_owned(),
        epoch: 1,
        sequence: 1,
        keys: BTreeMap::from([("tls".to_owned(), key.to_owned()), ("signing".to_owned(), "9".repeat(16))]),
        expires: 0,
    }
}

const KEY: &str = "00112233445566aa";

#[test]
fn k08_the_first_use_of_a_certificate_that_is_not_in_the_log_opens_an_incident() {
    for allowed in [true, false] {
        let mut sentinel = sentinel();
        let findings = sentinel.observe(0, "unit-market-1", &decided_with(KEY, allowed));
        assert_eq!(rules(&findings), [Rule::UnloggedCertificate]);
        assert_eq!(findings[0].subject, AGENT);
        assert!(findings[0].seen.contains(KEY), "{}", findings[0].seen);
        // One incident, however often it is used; and what else is to be said is said beside it.
        let again = sentinel.observe(1, "unit-market-1", &decided_with(KEY, allowed));
        assert_eq!(again, []);
    }
    let mut sentinel = sentinel();
    let action = Record::OperatorAction {
        operator: OTHER.to_owned(),
        key: KEY.to_owned(),
        action: "kill".to_owned(),
        target: String::new(),
        allowed: true,
        reason: String::new(),
    };
    assert_eq!(rules(&sentinel.observe(0, "management", &action)), [Rule::UnloggedCertificate]);
    assert_eq!(sentinel.observe(0, "unit-1", &action), [], "nobody else knows what operators do");
}

#[test]
fn a_certificate_whose_issue_management_logged_is_no_alarm_and_nobody_elses_word_makes_it_so() {
    let (id, key) = (AGENT.to_owned(), KEY.to_owned());
    for logged in [
        certified(AGENT, KEY),
        Record::Enrolled { id: id.clone(), epoch: 2, key: format!("{KEY}{}", "0".repeat(48)), expires: 0 },
        Record::KeysRotated {
            id: id.clone(),
            epoch: 1,
            keys: BTreeMap::from([("tls".to_owned(), key.clone())]),
            followed: BTreeMap::new(),
        },
        Record::CertificateIssued { id: id.clone(), key: key.clone(), expires: 0 },
    ] {
        let mut sentinel = sentinel();
        sentinel.observe(0, "management", &logged);
        assert_eq!(sentinel.observe(1, "unit-1", &decided_with(KEY, true)), []);
        let mut other = self::sentinel();
        other.observe(0, "desk-1", &logged);
        assert_eq!(rules(&other.observe(1, "unit-1", &decided_with(KEY, true))), [Rule::UnloggedCertificate]);
    }
    // The key of another, in this name.
    let mut sentinel = sentinel();
    sentinel.observe(0, "management", &certified(OTHER, KEY));
    assert_eq!(rules(&sentinel.observe(1, "unit-1", &decided_with(KEY, true))), [Rule::UnloggedCertificate]);
    // A line of an older version says nothing of the key.
    assert_eq!(self::sentinel().observe(1, "unit-1", &decided_with("", true)), []);
}

#[test]
fn k07_an_authority_that_signed_what_it_may_not_opens_an_incident() {
    let refused = |signed_by: &[&str]| Record::HandshakesRefused {
        listener: "market/agents".to_owned(),
        reasons: BTreeMap::from([("outside_constraint".to_owned(), 3)]),
        signed_by: signed_by.iter().map(|class| (*class).to_owned()).collect(),
    };
    let mut sentinel = sentinel();
    assert_eq!(sentinel.observe(0, "unit-1", &refused(&[])), [], "others are refused every day");
    let findings = sentinel.observe(1, "unit-1", &refused(&["desk", "agents"]));
    assert_eq!(rules(&findings), [Rule::RogueAuthority; 2]);
    assert_eq!(findings[0].subject, "authority/desk");
    assert_eq!(sentinel.observe(2, "unit-2", &refused(&["desk"])), [], "one incident is open already");
    assert_eq!(sentinel.observe(2, "agent-1", &refused(&["ledger"])), [], "an agent listens to nobody");
    let many: Vec<String> = (0..5_000).map(|number| number.to_string()).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    assert_eq!(sentinel.observe(3, "unit-1", &refused(&many)).len(), 16);
}
