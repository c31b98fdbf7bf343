//! Every route of the desk: every attack is refused with its reason, journalled and without effect; a good order reaches
//! the broker. What an order is about that no request names, the market day, is attacked by the grant.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test stops at the first surprise")]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use access::revocation::FeedReply;
use access::vocabulary::{Action, Audience, Claims, MarketDay};
use audit::record::Record;
use brokers::AccountKey;
use desk::desk::PortfolioSeries;
use desk::run::routes;
use desk::session::Part;
use desk::{Account, Desk, DeskConfig, KillSwitch, Session};
use engine::FillModel;
use identity::PeerClass;
use keys::Digest;
use market::{Bar, Day, Money, Price, Quantity, Series, Symbol};
use risk::Limits;
use serde_json::{Value, json};
use testkit::denials::{
    self, About, Asked, Place, Sample, Subject, claims, door, every_attack_is_refused,
    every_good_request_is_allowed, gaps, hear_on, peer_of, records, send, signed,
};
use testkit::house::House;
use wire::guard::GrantDoor;
use wire::http::Method;
use wire::journal::Journal;
use wire::problem::Problem;
use wire::tls::Peer;

/// The market day of the grants, and the last one that the desk has closed.
const DAY: &str = "2005-03-16";
const PORTFOLIOS: [&str; 2] = ["core", "tech"];
const SYMBOLS: [&str; 2] = ["AAPL", "MSFT"];
/// The close of every symbol, in dollars.
const CLOSE: i64 = 40;

fn order(about: &About) -> Asked {
    let body = json!({
        "id": "core-20050316-1", "portfolio": about.portfolio, "symbol": about.symbol, "side": "buy",
        "quantity": 100, "price": CLOSE * 1_000_000, "forecast": "core/2005-03-16",
    });
    (String::new(), Some(body))
}

/// One good request for every route. A new route gets a line here.
fn samples() -> Vec<Sample> {
    vec![Sample::post("/v1/orders", order)]
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
    let limits = PORTFOLIOS.map(|portfolio| (portfolio.to_owned(), limits.clone())).into();
    DeskConfig { broker: FillModel { slippage_bps: 10, fee_bps: 5, seed: 7 }, limits }
}

fn broker(directory: &Path) -> PathBuf {
    directory.join("paper.jsonl")
}

fn kill_latch(directory: &Path) -> PathBuf {
    directory.join("KILLED")
}

/// A desk that has closed its first market day in both portfolios, so that an order can be good.
fn traded_desk(directory: &Path, journal: &Arc<Journal>) -> Desk {
    let open = KillSwitch::new(kill_latch(directory)).latch(Some(false));
    let mut desk = {
        let account = Account { path: broker(directory), key: AccountKey::new(b"account") };
        Desk::open(&config(), journal.clone(), &[], account, &open).unwrap()
    };
    let day: Day = DAY.parse().unwrap();
    let symbols = SYMBOLS.map(|symbol| symbol.parse::<Symbol>().unwrap());
    let part = |portfolio: &str| Part {
        portfolio: portfolio.to_owned(),
        after: None,
        symbols: symbols.clone().into(),
        cash: Money::from_dollars(1_000_000).unwrap(),
    };
    let bar = Bar::from_close(day, Price::from_micros(CLOSE * 1_000_000).unwrap());
    let series = || Series { bars: vec![bar], splits: Vec::new() };
    let bars: PortfolioSeries = PORTFOLIOS
        .map(|portfolio| (portfolio.to_owned(), symbols.clone().map(|symbol| (symbol, series())).into()))
        .into();
    let session = Session { day, portfolios: PORTFOLIOS.map(part).into() };
    desk.run_session(&session, &bars, &open).unwrap();
    desk
}

/// The process's own routes.
fn places(directory: &Path, door: &Arc<GrantDoor>, journal: &Arc<Journal>) -> Vec<Place> {
    let kill = Arc::new(KillSwitch::new(kill_latch(directory)));
    let (routes, _) = routes(traded_desk(directory, journal), door, journal, &kill);
    vec![Place { class: PeerClass::Agents, table: routes.table().to_vec(), router: routes.into_router() }]
}

/// What an order leaves behind: the broker's file, and every record but the door's own.
fn effects(directory: &Path) -> Digest {
    let mut left = records(directory);
    left.retain(|record| !matches!(record, Record::Decision { .. }));
    let left = serde_json::to_vec(&left).unwrap();
    Digest::of_parts(&[&std::fs::read(broker(directory)).unwrap_or_default(), &left])
}

fn subject(samples: &[Sample]) -> Subject<'_> {
    Subject { audience: Audience::Desk, samples, build: &places, effects: &effects }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_route_refuses_every_attack() {
    let samples = samples();
    let tried = every_attack_is_refused(&subject(&samples), &House::new()).await;
    // 17 attacks, and one more for each of portfolio and symbol: an order names no market day.
    assert_eq!(tried, 17 + 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_route_allows_its_good_request() {
    every_good_request_is_allowed(&subject(&samples()), &House::new()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_route_without_a_sample_is_noticed_and_so_is_a_sample_without_a_route() {
    let bench = Bench::new().await;
    assert_eq!(
        gaps(&bench.places, &[Sample::get("/v1/gone", order)]),
        [
            "the route POST /v1/orders has no sample: add one to the table of samples",
            "there is no route GET /v1/gone: take its sample away",
        ]
    );
}

/// A desk with grants that are good until a test changes them.
struct Bench {
    directory: tempfile::TempDir,
    door: Arc<GrantDoor>,
    places: Vec<Place>,
    agent: Peer,
}

impl Bench {
    async fn new() -> Self {
        let agent = peer_of(&House::new(), PeerClass::Agents).await;
        let directory = tempfile::tempdir().unwrap();
        let door = door(Audience::Desk, Some(&FeedReply { head: 0, entries: vec![] }), Duration::ZERO);
        let journal = Journal::open(directory.path(), "under-test").unwrap();
        let places = places(directory.path(), &door, &journal);
        Self { directory, door, places, agent }
    }

    async fn order(&self, about: &About, change: impl FnOnce(&mut Claims)) -> (u16, Vec<u8>) {
        hear_on(&self.door);
        let mut claims = claims(Audience::Desk, Action::PlaceOrders, &self.agent);
        change(&mut claims);
        let grant = signed(&claims, &House::grant_key());
        let router = &self.places[0].router;
        send(router, &self.agent, &Method::POST, "/v1/orders", Some(&grant), &order(about)).await
    }

    fn effects(&self) -> Digest {
        effects(self.directory.path())
    }
}

fn code((status, body): &(u16, Vec<u8>)) -> (u16, String) {
    (*status, Problem::parse(*status, body).code)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_good_order_is_at_the_broker_and_asked_again_changes_nothing() {
    let bench = Bench::new().await;
    let before = bench.effects();
    let expected = json!({ "id": "core-20050316-1", "status": "sent", "reason": "approved" });
    let (status, body) = bench.order(&About::good(), |_| {}).await;
    assert_eq!((status, serde_json::from_slice::<Value>(&body).unwrap()), (200, expected.clone()));
    let after = bench.effects();
    assert_ne!(after, before, "or the attacks would be shown to have no effect by blindness");
    let file = std::fs::read_to_string(broker(bench.directory.path())).unwrap();
    assert!(file.contains("core-20050316-1"), "{file}");
    let (status, body) = bench.order(&About::good(), |_| {}).await;
    assert_eq!((status, serde_json::from_slice::<Value>(&body).unwrap()), (200, expected));
    assert_eq!(bench.effects(), after);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_grant_of_another_market_day_than_the_last_closed_one_places_no_order() {
    let bench = Bench::new().await;
    let before = bench.effects();
    for (day, reason) in [("2005-03-15", "later_than_market_day"), ("2005-03-17", "wrong_market_day")] {
        let refused =
            bench.order(&About::good(), |claims| claims.market_day = MarketDay::parse(day).unwrap()).await;
        assert_eq!(code(&refused), (403, reason.into()), "{day}");
    }
    // A portfolio of which no market day was closed has no day that a grant could be for.
    let idle = About { portfolio: "idle".into(), ..About::good() };
    let refused = bench.order(&idle, |claims| claims.portfolio = Some("idle".into())).await;
    assert_eq!(code(&refused), (403, "wrong_market_day".into()));
    assert_eq!(bench.effects(), before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_order_beyond_what_its_grant_has_left_is_refused_before_the_desk_hears_of_it() {
    let bench = Bench::new().await;
    let before = bench.effects();
    let value = 100 * CLOSE * 1_000_000;
    type Change = fn(&mut Claims, i64);
    let cases: [(Change, &str); 3] = [
        (|claims, value| claims.limits.order_notional = Some(value - 1), "order_too_large"),
        (
            |claims, value| {
                claims.limits.notional = Some(value - 1);
                claims.limits.order_notional = Some(value - 1);
            },
            "order_too_large",
        ),
        (|claims, _| claims.limits.orders = Some(0), "orders_exhausted"),
    ];
    for (change, reason) in cases {
        let refused = bench.order(&About::good(), |claims| change(claims, value)).await;
        assert_eq!(code(&refused), (403, reason.into()));
    }
    assert_eq!(bench.effects(), before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_the_latch_file_there_a_good_grant_places_no_order() {
    let bench = Bench::new().await;
    let file = || std::fs::read(broker(bench.directory.path())).unwrap_or_default();
    let before = file();
    std::fs::write(kill_latch(bench.directory.path()), "").unwrap();
    let refused = bench.order(&About::good(), |_| {}).await;
    assert_eq!(code(&refused), (403, "kill_latch".into()));
    assert_eq!(file(), before);
    let last = records(bench.directory.path()).pop().unwrap();
    assert!(
        matches!(&last, Record::OrderDecided { approved: false, reason, .. } if reason == "kill_latch"),
        "{last:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_has_no_grant_learns_nothing_of_the_shape_of_an_order() {
    let bench = Bench::new().await;
    let wrong = (String::new(), Some(json!({ "portfolio": 1 })));
    let router = &bench.places[0].router;
    let ask = |grant| denials::send(router, &bench.agent, &Method::POST, "/v1/orders", grant, &wrong);
    assert_eq!(code(&ask(None).await), (403, "no_grant".into()));
    let grant = signed(&claims(Audience::Desk, Action::PlaceOrders, &bench.agent), &House::grant_key());
    assert_eq!(code(&ask(Some(&grant)).await), (400, "bad_body".into()));
}
