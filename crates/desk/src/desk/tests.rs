//! The desk with a real journal, a real paper broker and permits of a real guard; killed at every place where it
//! can be, it ends in the state of a desk that was never killed.

use std::collections::BTreeSet;

use access::grant::mint;
use access::guard::{Cost, Decision, Guard, GuardConfig, Now, Permit, Request};
use access::revocation::FeedReply;
use access::vocabulary::{Action, Audience, Claims, Limits as GrantLimits, MarketDay};
use keys::SigningKey;
use market::Quantity;
use proptest::prelude::*;
use risk::Limits;
use wire::api::OrderBody;
use wire::journal::read_entries;

use super::*;
use crate::session::Part;
use crate::{KillSwitch, Wish};

const AGENT: &str = "spiffe://trader.test/agent/agent-1";
const GRANT: &str = "00112233445566778899aabbccddeeff";

fn day(number: u8) -> Day {
    Day::new(2001, 1, number).unwrap()
}

fn symbol(text: &str) -> Symbol {
    text.parse().unwrap()
}

fn config() -> DeskConfig {
    let limits = Limits {
        quantity_max: Quantity::new(10_000),
        order_notional_max: Money::from_dollars(100_000).unwrap(),
        order_notional_bps_max: 2_000,
        collar_bps: 500,
        price_age_days_max: 5,
        position_bps_max: 5_000,
        messages_per_day_max: 20,
        buy_buffer_bps: 200,
        sell_credit_bps: 9_500,
    };
    let limits = [("core".to_owned(), limits.clone()), ("tech".to_owned(), limits)].into();
    DeskConfig { broker: FillModel { slippage_bps: 10, fee_bps: 5, seed: 7 }, limits }
}

/// A directory in which desks live and die.
struct World(tempfile::TempDir);

impl World {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn broker(&self) -> Account {
        Account { path: self.0.path().join("paper.jsonl"), key: AccountKey::new(b"account") }
    }

    fn try_open(&self, kill: &KillLatch) -> Result<Desk, DeskError> {
        let journal = Journal::open(self.0.path(), "desk-1")?;
        let entries = read_entries(self.0.path(), "desk-1")?;
        Desk::open(&config(), journal, &entries, self.broker(), kill)
    }

    fn open(&self) -> Desk {
        self.try_open(&KillLatch::open()).unwrap()
    }

    /// A desk after its first session.
    fn opened(&self) -> Desk {
        let mut desk = self.open();
        run(&mut desk, None, 2).unwrap();
        desk
    }

    fn records(&self) -> Vec<Record> {
        read_entries(self.0.path(), "desk-1").unwrap().into_iter().map(|entry| entry.record).collect()
    }
}

fn session(after: Option<u8>, through: u8) -> Session {
    let part = |portfolio: &str, symbols: &[&str]| Part {
        portfolio: portfolio.to_owned(),
        after: after.map(day),
        symbols: symbols.iter().map(|text| symbol(text)).collect(),
        cash: Money::from_dollars(1_000_000).unwrap(),
    };
    let portfolios = vec![part("core", &["AAPL", "KO"]), part("tech", &["AAPL"]), part("idle", &["KO"])];
    Session { day: day(through), portfolios }
}

/// Bars of a session: prices move a little, the tech series is split on the 4th.
fn bars(session: &Session) -> PortfolioSeries {
    let mut all = PortfolioSeries::new();
    for part in &session.portfolios {
        let first = part.after.map_or(session.day, |after| after.plus_days(1).unwrap());
        for symbol in &part.symbols {
            let mut series = Series::default();
            let mut today = first;
            while today <= session.day {
                let number = today.days_since(day(1));
                let split = part.portfolio == "tech" && today >= day(4);
                let cents = (1_000 + number * 7) / if split { 2 } else { 1 };
                let price = Price::from_micros(cents * 10_000).unwrap();
                series.bars.push(Bar::from_close(today, price));
                if part.portfolio == "tech" && today == day(4) {
                    series.splits.push(Split::new(today, 2, 1).unwrap());
                }
                today = today.plus_days(1).unwrap();
            }
            all.entry(part.portfolio.clone()).or_default().insert(symbol.clone(), series);
        }
    }
    all
}

fn run(desk: &mut Desk, after: Option<u8>, through: u8) -> Result<(), DeskError> {
    let session = session(after, through);
    desk.run_session(&session, &bars(&session), &KillLatch::open())
}

fn limits() -> GrantLimits {
    let dollars = |amount| Money::from_dollars(amount).map(Money::micros);
    GrantLimits { notional: dollars(500_000), order_notional: dollars(500_000), orders: Some(9), rows: None }
}

fn permit(portfolio: &str, on: u8, limits: GrantLimits) -> Permit {
    let issuer = SigningKey::from_seed(&[1; 32]);
    let market_day = MarketDay::parse(&day(on).to_string()).unwrap();
    let claims = Claims {
        grant: GRANT.into(),
        task: "2001-01-02/rebalance/core".into(),
        holder: AGENT.into(),
        epoch: 1,
        holder_key: [9; 32],
        audience: Audience::Desk,
        actions: BTreeSet::from([Action::PlaceOrders]),
        portfolio: Some(portfolio.into()),
        symbols: ["AAPL", "KO", "MSFT"].map(str::to_owned).into(),
        sources: BTreeSet::new(),
        limits,
        max_uses: 9,
        market_day,
        not_before: 1_000,
        expires: 1_300,
        policy: [4; 32],
        revision: 0,
    };
    let text = mint(&claims, &issuer).unwrap().to_text();
    let config = GuardConfig { audience: Audience::Desk, issuer_keys: vec![issuer.verifying_key()] };
    let mut guard = Guard::new(config);
    guard.hear(10, &FeedReply { head: 0, entries: vec![] }).unwrap();
    let request = Request {
        grant: Some(&text),
        peer_id: AGENT,
        peer_epoch: 1,
        peer_key: &[9; 32],
        action: Action::PlaceOrders,
        portfolio: Some(portfolio),
        symbols: &["AAPL"],
        market_day: Some(market_day),
        cost: Cost { rows: 0, orders: 1, notional: 1 },
    };
    match guard.decide(Now { unix: 1_100, mono_ms: 20 }, &request) {
        Decision::Allow(permit) => permit,
        Decision::Deny(denial) => panic!("{denial:?}"),
    }
}

/// An order: `core-20010102-AAPL buy 100` for one portfolio and day, at about the last close.
#[derive(Debug, Clone, Copy)]
struct Wished {
    id: &'static str,
    portfolio: &'static str,
    symbol: &'static str,
    side: &'static str,
    quantity: i64,
    cents: i64,
    on: u8,
}

const BUY: Wished = Wished {
    id: "core-AAPL",
    portfolio: "core",
    symbol: "AAPL",
    side: "buy",
    quantity: 100,
    cents: 1_007,
    on: 2,
};

fn authorized(wished: Wished, limits: GrantLimits) -> Authorized {
    let body = OrderBody {
        id: wished.id.into(),
        portfolio: wished.portfolio.into(),
        symbol: wished.symbol.into(),
        side: wished.side.into(),
        quantity: wished.quantity,
        price: wished.cents * 10_000,
        forecast: Some(format!("{}/{}", wished.portfolio, day(wished.on))),
    };
    let wish = Wish::parse(body).unwrap();
    Authorized::new(wish, permit(wished.portfolio, wished.on, limits), AGENT).unwrap()
}

fn place(desk: &mut Desk, wished: Wished) -> (String, String) {
    let reply = desk.place(authorized(wished, limits()), &KillLatch::open()).unwrap();
    (reply.status, reply.reason)
}

fn is(answer: (String, String), status: &str, reason: &str) {
    assert_eq!((answer.0.as_str(), answer.1.as_str()), (status, reason));
}

fn sent(records: &[Record]) -> usize {
    records.iter().filter(|record| matches!(record, Record::OrderSent { .. })).count()
}

#[test]
fn an_order_is_decided_then_sent_and_asked_again_has_the_same_answer() {
    let world = World::new();
    let mut desk = world.opened();
    is(place(&mut desk, BUY), "sent", "approved");
    is(place(&mut desk, BUY), "sent", "approved");
    let records = world.records();
    let tail: Vec<&Record> = records.iter().rev().take(2).collect();
    assert!(matches!(tail[0], Record::OrderSent { .. }), "{tail:?}");
    let Record::OrderDecided { approved: true, checks, grant, agent, forecast, .. } = tail[1] else {
        panic!("{tail:?}")
    };
    assert_eq!((checks.len(), grant.as_str(), agent.as_str()), (10, GRANT, AGENT));
    assert_eq!(forecast.as_deref(), Some("core/2001-01-02"));
    assert_eq!(sent(&records), 1);
    run(&mut desk, Some(2), 3).unwrap();
    assert_eq!(desk.summary(&session(Some(2), 3))["fills"], 1);
    let entries = desk.entries(&session(Some(2), 3), "core");
    assert!(matches!(entries[..], [LedgerEntry::Fill { .. }, LedgerEntry::Close { .. }]), "{entries:?}");
}

#[test]
fn an_id_never_stands_for_two_orders() {
    let world = World::new();
    let mut desk = world.opened();
    is(place(&mut desk, BUY), "sent", "approved");
    is(place(&mut desk, Wished { quantity: 90, ..BUY }), "rejected", "duplicate");
    is(place(&mut desk, Wished { portfolio: "tech", ..BUY }), "rejected", "duplicate");
    is(place(&mut desk, Wished { id: "other", ..BUY }), "rejected", "duplicate");
    assert_eq!(sent(&world.records()), 1);
    let before = format!("{:?}", desk.memory());
    drop(desk);
    assert_eq!(format!("{:?}", world.open().memory()), before);
}

#[test]
fn while_the_latch_file_is_there_no_order_leaves() {
    let world = World::new();
    let mut desk = world.opened();
    let switch = KillSwitch::new(world.0.path().join("KILLED"));
    std::fs::write(world.0.path().join("KILLED"), "").unwrap();
    let reply = desk.place(authorized(BUY, limits()), &switch.latch(Some(false))).unwrap();
    is((reply.status, reply.reason), "rejected", "kill_latch");
    assert_eq!(sent(&world.records()), 0);
    std::fs::remove_file(world.0.path().join("KILLED")).unwrap();
    let reply = desk.place(authorized(BUY, limits()), &switch.latch(Some(false))).unwrap();
    is((reply.status, reply.reason), "sent", "approved");
}

#[test]
fn an_order_beyond_a_limit_is_refused_with_its_reason() {
    let world = World::new();
    let mut desk = world.opened();
    let cases = [
        (Wished { quantity: 9_999, cents: 1_050, ..BUY }, "notional"),
        (Wished { quantity: 10_001, ..BUY }, "quantity"),
        (Wished { cents: 1_200, ..BUY }, "price_collar"),
        (Wished { symbol: "MSFT", ..BUY }, "instrument"),
        (Wished { side: "sell", ..BUY }, "position"),
        (Wished { on: 1, ..BUY }, "permission"),
        (Wished { portfolio: "idle", symbol: "KO", ..BUY }, "no_limits"),
    ];
    let ids = ["a", "b", "c", "d", "e", "f", "g"];
    for ((wished, reason), id) in cases.into_iter().zip(ids) {
        is(place(&mut desk, Wished { id, ..wished }), "rejected", reason);
    }
    assert_eq!(desk.memory().counts(), (0, 0));
    let before = format!("{:?}", desk.memory());
    drop(desk);
    let mut desk = world.open();
    assert_eq!(format!("{:?}", desk.memory()), before, "refusals are remembered as they were");
    is(place(&mut desk, Wished { id: "b", quantity: 10_001, ..BUY }), "rejected", "quantity");
}

#[test]
fn a_grant_is_not_refilled_by_starting_again() {
    let world = World::new();
    let mut desk = world.opened();
    let two = GrantLimits { orders: Some(2), notional: Some(2_500_000_000), ..limits() };
    let ask = |desk: &mut Desk, wished| {
        let reply = desk.place(authorized(wished, two), &KillLatch::open()).unwrap();
        (reply.status, reply.reason)
    };
    is(ask(&mut desk, BUY), "sent", "approved");
    drop(desk);
    let mut desk = world.open();
    is(ask(&mut desk, Wished { id: "b", quantity: 150, ..BUY }), "rejected", "notional");
    is(ask(&mut desk, Wished { id: "c", quantity: 50, ..BUY }), "sent", "approved");
    drop(desk);
    let mut desk = world.open();
    is(ask(&mut desk, Wished { id: "d", quantity: 1, ..BUY }), "rejected", "grant_orders");
}

#[test]
fn an_order_that_may_have_arrived_blocks_its_portfolio_until_it_is_looked_up() {
    let world = World::new();
    let mut desk = world.opened();
    // Somebody else has the broker's file: whether an order arrives can't be told.
    desk.broker = None;
    let other = world.broker().open(config().broker).unwrap();
    is(place(&mut desk, BUY), "unknown", "reconciling");
    is(place(&mut desk, BUY), "unknown", "reconciling");
    is(place(&mut desk, Wished { id: "b", quantity: 50, ..BUY }), "rejected", "reconciling");
    assert!(run(&mut desk, Some(2), 3).is_err(), "no day is run meanwhile");
    assert!(!desk.is_poisoned());
    drop(other);
    is(place(&mut desk, Wished { id: "b", quantity: 50, ..BUY }), "sent", "approved");
    is(place(&mut desk, BUY), "sent", "approved");
    assert_eq!(desk.memory().counts(), (2, 2));
}

#[test]
fn an_approved_order_that_never_left_is_cancelled_when_everything_is_stopped() {
    let world = World::new();
    let mut desk = world.opened();
    desk.crash_after = Some(0);
    assert!(desk.place(authorized(BUY, limits()), &KillLatch::open()).is_err());
    drop(desk);
    let mut kill = KillLatch::open();
    kill.engage("a test");
    let mut desk = world.try_open(&kill).unwrap();
    is(place(&mut desk, BUY), "rejected", "kill_latch");
    assert_eq!(sent(&world.records()), 0);
    assert_eq!(desk.memory().book("core").unwrap().reserved(), Some(Money::ZERO));
    run(&mut desk, Some(2), 3).unwrap();
    assert_eq!(desk.summary(&session(Some(2), 3))["fills"], 0);
}

#[test]
fn a_desk_that_failed_does_nothing_more() {
    let world = World::new();
    let mut desk = world.opened();
    desk.crash_after = Some(0);
    assert!(desk.place(authorized(BUY, limits()), &KillLatch::open()).is_err());
    desk.crash_after = None;
    assert!(desk.is_poisoned());
    assert!(matches!(desk.place(authorized(BUY, limits()), &KillLatch::open()), Err(DeskError::Poisoned)));
    assert!(matches!(run(&mut desk, Some(2), 3), Err(DeskError::Poisoned)));
}

#[test]
fn a_journal_that_does_not_follow_from_itself_is_not_believed() {
    let opened =
        |cash| Record::PortfolioOpened { portfolio: "core".into(), market_day: day(2).to_string(), cash };
    let close = |equity| Record::DayClosed {
        portfolio: "core".into(),
        market_day: day(2).to_string(),
        equity,
        cash: 5,
        closes: BTreeMap::new(),
    };
    let order_sent = || Record::OrderSent { order: "never".into() };
    let fill = || Record::OrderFilled {
        order: "never".into(),
        fill: "f".into(),
        portfolio: "core".into(),
        symbol: "KO".into(),
        side: "buy".into(),
        quantity: 1,
        price: 1,
        fee: 0,
        market_day: day(2).to_string(),
    };
    for (records, good) in [
        (vec![opened(5), close(5)], true),
        (vec![opened(5), close(6)], false),
        (vec![close(5)], false),
        (vec![opened(5), opened(5)], false),
        (vec![opened(5), close(5), close(5)], false),
        (vec![opened(-5)], false),
        (vec![opened(5), order_sent()], false),
        (vec![opened(5), fill()], false),
    ] {
        let world = World::new();
        let journal = Journal::open(world.0.path(), "desk-1").unwrap();
        for record in &records {
            journal.record(record).unwrap();
        }
        drop(journal);
        let opened = world.try_open(&KillLatch::open());
        assert_eq!(opened.is_ok(), good, "{records:?}");
        assert!(good || matches!(opened, Err(DeskError::Record { .. })), "{records:?}");
    }
}

#[test]
fn bars_that_are_not_of_the_session_are_refused() {
    let world = World::new();
    let mut desk = world.opened();
    let wrong = [bars(&session(Some(2), 4)), bars(&session(None, 2))];
    for bars in wrong {
        let result = desk.run_session(&session(Some(2), 3), &bars, &KillLatch::open());
        assert!(matches!(result, Err(DeskError::Session(_))), "{result:?}");
    }
    run(&mut desk, Some(2), 3).unwrap();
}

/// One thing that the desk is asked to do.
#[derive(Debug, Clone, Copy)]
enum Step {
    Session(Option<u8>, u8),
    Order(Wished),
}

/// Buys before a split, sells after it, with a refusal in between.
fn script() -> Vec<Step> {
    let tech = Wished { id: "tech-AAPL", portfolio: "tech", ..BUY };
    let sell = |wished: Wished, id, cents| Wished { id, side: "sell", quantity: 40, on: 5, cents, ..wished };
    vec![
        Step::Session(None, 2),
        Step::Order(BUY),
        Step::Order(Wished { id: "core-KO", symbol: "KO", quantity: 50, ..BUY }),
        Step::Order(Wished { id: "core-too-much", quantity: 10_001, ..BUY }),
        Step::Order(Wished { quantity: 33, ..tech }),
        Step::Session(Some(2), 5),
        Step::Order(sell(BUY, "core-AAPL-out", 1_028)),
        Step::Order(sell(tech, "tech-AAPL-out", 514)),
        Step::Session(Some(5), 7),
    ]
}

/// Everything that can be seen of a run.
#[derive(Debug, PartialEq)]
struct Outcome {
    memory: String,
    records: Vec<Record>,
    broker: Vec<u8>,
    answers: Vec<String>,
}

/// Runs the script, killing the desk after so many breakpoints each. A step that was interrupted is asked for
/// again, as its task would be.
fn play(crashes: &[u32]) -> (Outcome, usize) {
    let world = World::new();
    let mut crashes = crashes.iter().copied();
    let mut crashed = 0;
    let mut desk = world.open();
    desk.crash_after = crashes.next();
    let mut answers = Vec::new();
    for step in script() {
        loop {
            let answer = match step {
                Step::Session(after, through) => run(&mut desk, after, through).map(|()| {
                    let session = session(after, through);
                    let entries: Vec<_> =
                        ["core", "tech", "idle"].map(|name| desk.entries(&session, name)).into();
                    format!("{} {entries:?}", desk.summary(&session))
                }),
                Step::Order(wished) => desk
                    .place(authorized(wished, limits()), &KillLatch::open())
                    .map(|reply| format!("{reply:?}")),
            };
            if let Ok(answer) = answer {
                answers.push(answer);
                break;
            }
            crashed += 1;
            drop(desk);
            desk = world.open();
            desk.crash_after = crashes.next();
        }
    }
    let (approved, sent) = desk.memory().counts();
    assert_eq!((approved, sent), (5, 5));
    let (memory, broker) = (format!("{:?}", desk.memory()), std::fs::read(world.broker().path).unwrap());
    (Outcome { memory, records: world.records(), broker, answers }, crashed)
}

#[test]
fn a_desk_killed_anywhere_ends_in_the_state_of_one_that_was_not() {
    let (undisturbed, _) = play(&[]);
    let mut point = 0;
    loop {
        let (outcome, crashed) = play(&[point]);
        assert_eq!(outcome, undisturbed, "killed at breakpoint {point}");
        if crashed == 0 {
            break;
        }
        point += 1;
    }
    assert!(point > 40, "the script goes through {point} breakpoints");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]
    #[test]
    fn a_desk_killed_again_and_again_ends_in_the_state_of_one_that_was_not(
        crashes in proptest::collection::vec(0_u32..12, 1..12),
    ) {
        let (undisturbed, _) = play(&[]);
        let (outcome, crashed) = play(&crashes);
        prop_assert!(crashed > 0);
        prop_assert_eq!(outcome, undisturbed);
    }
}
