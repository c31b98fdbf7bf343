//! Every route of every unit: what is refused, what is allowed, and what a query can never bring to light.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test stops at the first surprise"
)]

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use access::revocation::FeedReply;
use access::vocabulary::{Action, Audience, MarketDay};
use audit::record::Record;
use identity::PeerClass;
use keys::Digest;
use market::{Panel, Series, Symbol};
use proptest::prelude::*;
use serde_json::{Value, json};
use testkit::denials::{
    self, About, Asked, Place, Sample, Subject, claims, door, every_attack_is_refused,
    every_good_request_is_allowed, gaps, peer_of, records, send, signed,
};
use testkit::house::House;
use wire::guard::{GRANT_HEADER, GrantDoor};
use wire::http::{Method, Request};
use wire::journal::Journal;
use wire::problem::Problem;
use wire::tls::Peer;

const DOMAINS: [Audience; 4] = [Audience::Market, Audience::News, Audience::Research, Audience::Ledger];
/// The market day of the grants.
const DAY: &str = "2005-03-16";

fn range(about: &About) -> Asked {
    let About { portfolio, symbol, day } = about;
    (format!("portfolio={portfolio}&symbols={symbol}&from=2001-01-02&through={day}"), None)
}

fn through(about: &About) -> Asked {
    (format!("portfolio={}&through={}", about.portfolio, about.day), None)
}

fn named(about: &About, what: &str) -> Asked {
    let About { portfolio, day, .. } = about;
    let body =
        json!({ "id": format!("{portfolio}/{day}"), "portfolio": portfolio, "day": day, what: { "a": 1 } });
    (String::new(), Some(body))
}

fn bar(day: &str) -> Value {
    json!({ "day": day, "open": 5, "high": 9, "low": 4, "close": 7, "volume": 1 })
}

fn bars(about: &About) -> Asked {
    let About { portfolio, symbol, day } = about;
    let series = json!({ symbol.as_str(): { "bars": [bar("2005-03-15"), bar(day)], "splits": [] } });
    (String::new(), Some(json!({ "portfolio": portfolio, "source": "sample", "series": series })))
}

fn entries(about: &About) -> Asked {
    let About { portfolio, symbol, day } = about;
    let body = json!({ "portfolio": portfolio, "day": day, "entries": [
        { "entry": "open", "portfolio": portfolio, "day": "2005-03-14", "cash": 1_000_000_000 },
        { "entry": "fill", "id": "f1", "order": "o1", "portfolio": portfolio, "day": "2005-03-15",
          "symbol": symbol, "side": "buy", "quantity": 10, "price": 1_000_000, "fee": 5_000 },
        { "entry": "split", "portfolio": portfolio, "day": day, "symbol": symbol, "quantity": 20, "cash": 0 },
        { "entry": "close", "portfolio": portfolio, "day": day, "equity": 999_995_000, "cash": 989_995_000 },
    ] });
    (String::new(), Some(body))
}

fn articles(about: &About) -> Asked {
    let About { portfolio, symbol, day } = about;
    let article = json!({ "id": "a1", "symbols": [symbol], "day": day, "second": 34_200, "source": "wire",
                          "title": "Title", "body": "Body" });
    (String::new(), Some(json!({ "portfolio": portfolio, "day": day, "articles": [article] })))
}

/// One good request for every route, in an order in which all of them succeed. A new route gets a line here.
fn samples(domain: Audience) -> Vec<Sample> {
    match domain {
        Audience::Market => vec![
            Sample::post("/v1/bars", bars),
            Sample::get("/v1/bars", range),
            Sample::get("/v1/panel", range),
        ],
        Audience::News => vec![Sample::post("/v1/articles", articles), Sample::get("/v1/articles", range)],
        Audience::Research => vec![
            Sample::post("/v1/forecasts", |about| named(about, "forecast")),
            Sample::get("/v1/forecast", |about| {
                (format!("portfolio={}&id=core/{DAY}", about.portfolio), None)
            }),
            Sample::post("/v1/reports", |about| named(about, "report")),
        ],
        Audience::Ledger => vec![
            Sample::post("/v1/entries", entries),
            Sample::get("/v1/holdings", through),
            Sample::get("/v1/equity", through),
        ],
        Audience::Desk => Vec::new(),
    }
}

fn database(directory: &Path, domain: Audience) -> std::path::PathBuf {
    directory.join(format!("{domain}.db"))
}

fn places(domain: Audience, directory: &Path, door: &Arc<GrantDoor>, journal: &Arc<Journal>) -> Vec<Place> {
    let listeners = unit::listeners(domain, &database(directory, domain), door, journal).unwrap();
    let place = |unit::Listener { class, table, router }| Place { class, table, router };
    listeners.into_iter().map(place).collect()
}

/// The database's own files: whatever a handler writes is in one of them.
fn effects(directory: &Path, domain: Audience) -> Digest {
    let file = |name: String| std::fs::read(directory.join(name)).unwrap_or_default();
    Digest::of_parts(&[&file(format!("{domain}.db")), &file(format!("{domain}.db-wal"))])
}

async fn with_subject(domain: Audience, allowed: bool) -> usize {
    let (house, samples) = (House::new(), samples(domain));
    let subject = Subject {
        audience: domain,
        samples: &samples,
        build: &|directory, door, journal| places(domain, directory, door, journal),
        effects: &|directory| effects(directory, domain),
    };
    if allowed {
        every_good_request_is_allowed(&subject, &house).await;
        return 0;
    }
    every_attack_is_refused(&subject, &house).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_route_refuses_every_attack() {
    let mut tried = Vec::new();
    for domain in DOMAINS {
        tried.push(with_subject(domain, false).await);
    }
    // For each route and class 17 attacks, and one more for each of portfolio, symbol and day it carries.
    assert_eq!(tried, [4 * 17 + 12, 2 * 17 + 6, 3 * 17 + 5, 3 * 17 + 7]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_route_allows_its_good_request() {
    for domain in DOMAINS {
        with_subject(domain, true).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_route_without_a_sample_is_noticed_and_so_is_a_sample_without_a_route() {
    let bench = Bench::new(Audience::Market).await;
    let gone = [Sample::get("/v1/gone", range)];
    let gaps = gaps(&bench.places, &gone);
    assert!(
        gaps.contains(&"the route GET /v1/panel has no sample: add one to the table of samples".to_owned())
    );
    assert!(gaps.contains(&"there is no route GET /v1/gone: take its sample away".to_owned()));
    assert_eq!(gaps.len(), 5);
}

/// One unit with grants that are good until a test changes them.
struct Bench {
    domain: Audience,
    directory: tempfile::TempDir,
    door: Arc<GrantDoor>,
    places: Vec<Place>,
    peers: BTreeMap<&'static str, Peer>,
}

impl Bench {
    async fn new(domain: Audience) -> Self {
        let house = House::new();
        let mut peers = BTreeMap::new();
        for class in [PeerClass::Agents, PeerClass::Desk] {
            peers.insert(class.as_str(), peer_of(&house, class).await);
        }
        let directory = tempfile::tempdir().unwrap();
        let door = door(domain, Some(&FeedReply { head: 0, entries: vec![] }), Duration::ZERO);
        let journal = Journal::open(directory.path(), "under-test").unwrap();
        let places = places(domain, directory.path(), &door, &journal);
        Self { domain, directory, door, places, peers }
    }

    async fn ask(
        &self,
        class: PeerClass,
        action: Action,
        (method, path): (Method, &str),
        asked: &Asked,
        change: impl FnOnce(&mut access::vocabulary::Claims),
    ) -> (u16, Vec<u8>) {
        let now = self.door.mono_ms();
        let heard = FeedReply { head: 0, entries: vec![] };
        self.door.with(|guard| guard.hear(now, &heard)).unwrap().unwrap();
        let peer = &self.peers[class.as_str()];
        let place = self.places.iter().find(|place| place.class == class).unwrap();
        let mut claims = claims(self.domain, action, peer);
        claims.symbols.extend(["MSFT".to_owned(), "IBM".to_owned()]);
        change(&mut claims);
        let grant = signed(&claims, &House::grant_key());
        send(&place.router, peer, &method, path, Some(&grant), asked).await
    }

    fn stored(&self) -> Vec<(String, String, u64)> {
        let stored = |record| match record {
            Record::Stored { what, id, rows, .. } => Some((what, id, rows)),
            _ => None,
        };
        records(self.directory.path()).into_iter().filter_map(stored).collect()
    }
}

fn code((status, body): &(u16, Vec<u8>)) -> (u16, String) {
    (*status, Problem::parse(*status, body).code)
}

fn value((status, body): &(u16, Vec<u8>)) -> Value {
    assert_eq!(*status, 200, "{}", String::from_utf8_lossy(body));
    serde_json::from_slice(body).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_written_is_announced_once_and_read_back() {
    let bench = Bench::new(Audience::Market).await;
    let write = || (Method::POST, "/v1/bars");
    let first = bench.ask(PeerClass::Agents, Action::WriteBars, write(), &bars(&About::good()), |_| {}).await;
    assert_eq!(value(&first), json!({ "new": 2, "same": 0, "conflicts": [] }));
    let again = bench.ask(PeerClass::Agents, Action::WriteBars, write(), &bars(&About::good()), |_| {}).await;
    assert_eq!(value(&again), json!({ "new": 0, "same": 2, "conflicts": [] }));
    assert_eq!(
        bench.stored(),
        [("bars".to_owned(), format!("core/{DAY}"), 2)],
        "a repetition changes nothing"
    );
    let (query, mut changed) = bars(&About::good());
    changed.as_mut().unwrap()["series"]["AAPL"]["bars"][0]["close"] = json!(8);
    let third = bench.ask(PeerClass::Agents, Action::WriteBars, write(), &(query, changed), |_| {}).await;
    assert_eq!(value(&third), json!({ "new": 0, "same": 1, "conflicts": ["bar core AAPL 2005-03-15"] }));
    for class in [PeerClass::Agents, PeerClass::Desk] {
        let read = bench
            .ask(class, Action::ReadBars, (Method::GET, "/v1/bars"), &range(&About::good()), |_| {})
            .await;
        let series: BTreeMap<Symbol, Series> = serde_json::from_value(value(&read)).unwrap();
        assert_eq!(series.values().map(|one| one.bars.len()).collect::<Vec<_>>(), [2]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_desk_reaches_no_route_of_agents_and_agents_none_of_the_desk() {
    let market = Bench::new(Audience::Market).await;
    let ledger = Bench::new(Audience::Ledger).await;
    let (panel, entries) = (range(&About::good()), entries(&About::good()));
    let asked =
        market.ask(PeerClass::Desk, Action::ReadBars, (Method::GET, "/v1/panel"), &panel, |_| {}).await;
    assert_eq!(code(&asked), (404, "no_such_route".into()));
    let post = (Method::POST, "/v1/bars");
    let asked = market.ask(PeerClass::Desk, Action::WriteBars, post, &bars(&About::good()), |_| {}).await;
    assert_eq!(code(&asked), (405, "no_such_route".into()));
    let post = (Method::POST, "/v1/entries");
    let asked = ledger.ask(PeerClass::Agents, Action::WriteLedger, post, &entries, |_| {}).await;
    assert_eq!(code(&asked), (404, "no_such_route".into()));
    assert!(market.stored().is_empty() && ledger.stored().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_are_paid_for_before_they_are_served() {
    let bench = Bench::new(Audience::Market).await;
    let (post, get) = ((Method::POST, "/v1/bars"), (Method::GET, "/v1/panel"));
    let few = |rows| move |claims: &mut access::vocabulary::Claims| claims.limits.rows = Some(rows);
    let refused =
        bench.ask(PeerClass::Agents, Action::WriteBars, post.clone(), &bars(&About::good()), few(1)).await;
    assert_eq!(code(&refused), (403, "rows_exhausted".into()));
    assert!(bench.stored().is_empty());
    bench.ask(PeerClass::Agents, Action::WriteBars, post, &bars(&About::good()), |_| {}).await;
    let other = |claims: &mut access::vocabulary::Claims| {
        claims.grant = "f".repeat(32);
        claims.limits.rows = Some(3);
    };
    let read = || bench.ask(PeerClass::Agents, Action::ReadBars, get.clone(), &Q, other);
    static Q: std::sync::LazyLock<Asked> = std::sync::LazyLock::new(|| range(&About::good()));
    assert_eq!(read().await.0, 200, "two of three rows");
    let second = read().await;
    assert_eq!(code(&second), (403, "rows_exhausted".into()));
    let last = records(bench.directory.path()).pop().unwrap();
    assert!(
        matches!(&last, Record::Decision { allowed: false, reason, route, .. }
            if reason == "rows_exhausted" && route == "GET /v1/panel"),
        "{last:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_forecast_of_a_later_day_or_another_portfolio_is_not_there() {
    let bench = Bench::new(Audience::Research).await;
    let post = || (Method::POST, "/v1/forecasts");
    let later = About { day: "2005-04-14".into(), ..About::good() };
    let tech = About { portfolio: "tech".into(), ..About::good() };
    for about in [&About::good(), &later, &tech] {
        let asked = named(about, "forecast");
        let written = bench
            .ask(PeerClass::Agents, Action::WriteForecasts, post(), &asked, |claims| {
                claims.market_day = MarketDay::parse(&about.day).unwrap();
                claims.portfolio = Some(about.portfolio.clone());
            })
            .await;
        assert_eq!(written.0, 200);
    }
    let read = |id: &'static str| {
        let asked = (format!("portfolio=core&id={id}"), None);
        let bench = &bench;
        async move {
            bench
                .ask(PeerClass::Agents, Action::ReadForecasts, (Method::GET, "/v1/forecast"), &asked, |_| {})
                .await
        }
    };
    assert_eq!(value(&read("core/2005-03-16").await), json!({ "a": 1 }));
    for id in ["core/2005-04-14", "tech/2005-03-16", "core/1999-01-01"] {
        assert_eq!(code(&read(id).await), (404, "not_found".into()), "{id}");
    }
    let mut changed = named(&About::good(), "forecast");
    changed.1.as_mut().unwrap()["forecast"] = json!({ "a": 2 });
    let conflict = bench.ask(PeerClass::Agents, Action::WriteForecasts, post(), &changed, |_| {}).await;
    assert_eq!(code(&conflict), (409, "conflict".into()));
    assert_eq!(bench.stored().len(), 3, "a conflict is announced by nobody");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_books_are_read_up_to_a_day() {
    let bench = Bench::new(Audience::Ledger).await;
    let post = || (Method::POST, "/v1/entries");
    let get = |path| (Method::GET, path);
    let nobody = bench
        .ask(PeerClass::Agents, Action::ReadLedger, get("/v1/holdings"), &through(&About::good()), |_| {})
        .await;
    assert_eq!(code(&nobody), (404, "no_portfolio".into()));
    for (new, same) in [(4, 0), (0, 4)] {
        let written =
            bench.ask(PeerClass::Desk, Action::WriteLedger, post(), &entries(&About::good()), |_| {}).await;
        assert_eq!(value(&written), json!({ "new": new, "same": same, "conflicts": [] }));
    }
    assert_eq!(bench.stored(), [("entries".to_owned(), format!("core/{DAY}"), 4)]);
    let held = |day: &str| through(&About { day: day.into(), ..About::good() });
    let expected = [
        ("2005-03-14", json!({ "cash": 1_000_000_000, "equity": 1_000_000_000, "positions": {} })),
        ("2005-03-16", json!({ "cash": 989_995_000, "equity": 999_995_000, "positions": { "AAPL": 20 } })),
    ];
    for (day, expected) in expected {
        let read =
            bench.ask(PeerClass::Agents, Action::ReadLedger, get("/v1/holdings"), &held(day), |_| {}).await;
        assert_eq!(value(&read), expected);
    }
    let curve = bench.ask(PeerClass::Agents, Action::ReadLedger, get("/v1/equity"), &held(DAY), |_| {}).await;
    assert_eq!(value(&curve), json!({ "days": [[DAY, 999_995_000]] }));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_that_says_something_else_than_it_should_is_refused_with_the_reason() {
    let market = Bench::new(Audience::Market).await;
    let ledger = Bench::new(Audience::Ledger).await;
    let research = Bench::new(Audience::Research).await;
    let news = Bench::new(Audience::News).await;
    let changed = |asked: fn(&About) -> Asked, change: fn(&mut Value)| {
        let (query, mut body) = asked(&About::good());
        change(body.as_mut().unwrap());
        (query, body)
    };
    let forecast: fn(&About) -> Asked = |about| named(about, "forecast");
    let (agents, desk) = (PeerClass::Agents, PeerClass::Desk);
    let cases: Vec<(&Bench, PeerClass, Action, &str, Asked, &str)> = vec![
        (
            &market,
            agents,
            Action::WriteBars,
            "/v1/bars",
            changed(bars, |body| body["series"] = json!({})),
            "no_rows",
        ),
        (
            &market,
            agents,
            Action::WriteBars,
            "/v1/bars",
            changed(bars, |body| body["more"] = json!(1)),
            "bad_body",
        ),
        (
            &market,
            agents,
            Action::WriteBars,
            "/v1/bars",
            changed(bars, |body| body["source"] = json!("a b")),
            "bad_name",
        ),
        (
            &market,
            agents,
            Action::WriteBars,
            "/v1/bars",
            changed(bars, |body| body["series"]["AAPL"]["bars"][0]["day"] = json!(DAY)),
            "bad_series",
        ),
        (
            &market,
            agents,
            Action::WriteBars,
            "/v1/bars",
            ("portfolio=core".into(), bars(&About::good()).1),
            "bad_query",
        ),
        (
            &ledger,
            desk,
            Action::WriteLedger,
            "/v1/entries",
            changed(entries, |body| body["entries"] = json!([])),
            "no_rows",
        ),
        (
            &ledger,
            desk,
            Action::WriteLedger,
            "/v1/entries",
            changed(entries, |body| body["entries"][1]["portfolio"] = json!("tech")),
            "other_portfolio",
        ),
        (
            &ledger,
            desk,
            Action::WriteLedger,
            "/v1/entries",
            changed(entries, |body| body["entries"][3]["day"] = json!("2005-03-17")),
            "later_day",
        ),
        (
            &ledger,
            desk,
            Action::WriteLedger,
            "/v1/entries",
            changed(entries, |body| body["entries"][1]["side"] = json!("short")),
            "bad_entry",
        ),
        (
            &research,
            agents,
            Action::WriteForecasts,
            "/v1/forecasts",
            changed(forecast, |body| body["id"] = json!("tech/2005-03-16")),
            "bad_id",
        ),
        (
            &news,
            agents,
            Action::WriteArticles,
            "/v1/articles",
            changed(articles, |body| body["articles"][0]["day"] = json!("2005-03-17")),
            "later_day",
        ),
        (
            &news,
            agents,
            Action::WriteArticles,
            "/v1/articles",
            changed(articles, |body| body["articles"][0]["symbols"] = json!([])),
            "no_symbols",
        ),
    ];
    for (bench, class, action, path, asked, expected) in cases {
        let refused = bench.ask(class, action, (Method::POST, path), &asked, |_| {}).await;
        assert_eq!(code(&refused), (400, expected.into()), "{path} {asked:?}");
        let stranger = denials::send(
            &bench.places.iter().find(|place| place.class == class).unwrap().router,
            &bench.peers[class.as_str()],
            &Method::POST,
            path,
            None,
            &asked,
        );
        assert_eq!(
            code(&stranger.await),
            (403, "no_grant".into()),
            "who has no grant learns nothing of the shape"
        );
    }
    for bench in [&market, &ledger, &research, &news] {
        assert!(bench.stored().is_empty());
    }
}

/// Sends a request as an agent with the grant header given so many times.
async fn send_raw(bench: &Bench, method: &str, uri: &str, grants: &[&str], body: &[u8]) -> (u16, Vec<u8>) {
    use hyper::service::Service as _;
    let mut request = Request::builder().method(method).uri(uri);
    for grant in grants {
        request = request.header(GRANT_HEADER, *grant);
    }
    let mut request = request.body(axum::body::Body::from(body.to_vec())).unwrap();
    request.extensions_mut().insert(bench.peers[PeerClass::Agents.as_str()].clone());
    let place = bench.places.iter().find(|place| place.class == PeerClass::Agents).unwrap();
    let service = hyper_util::service::TowerToHyperService::new(place.router.clone());
    let Ok(response) = service.call(request).await;
    let status = response.status().as_u16();
    (status, axum::body::to_bytes(response.into_body(), 1 << 20).await.unwrap().to_vec())
}

/// The one record that was journalled since `before`: a refused decision. Its route, its reason.
fn refused_since(bench: &Bench, before: usize) -> (String, String) {
    let new = records(bench.directory.path()).split_off(before);
    match new.as_slice() {
        [Record::Decision { allowed: false, route, reason, peer, task: None, .. }] => {
            assert_eq!(*peer, bench.peers[PeerClass::Agents.as_str()].id.to_string());
            (route.clone(), reason.clone())
        }
        other => panic!("one refusal was expected: {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_parsed_is_a_refusal_in_the_journal() {
    let bench = Bench::new(Audience::Market).await;
    let peer = &bench.peers[PeerClass::Agents.as_str()];
    let good = signed(&claims(Audience::Market, Action::WriteBars, peer), &House::grant_key());
    let strangers =
        signed(&claims(Audience::Market, Action::WriteBars, peer), &keys::SigningKey::from_seed(&[99; 32]));
    let body = b"{\"portfolio\":".as_slice();
    let grants: [(&[&str], u16, &str); 6] = [
        (&[&good], 400, "bad_body"),
        (&[&strangers], 400, "bad_body"),
        (&[], 403, "no_grant"),
        (&["not base64!"], 403, "malformed_grant"),
        (&["dGhpcyBpcyBubyBncmFudA"], 403, "malformed_grant"),
        (&[&good, &good], 400, "several_grants"),
    ];
    for (shown, status, expected) in grants {
        let before = records(bench.directory.path()).len();
        let answer = send_raw(&bench, "POST", "/v1/bars", shown, body).await;
        assert_eq!(code(&answer), (status, expected.into()), "{shown:?}");
        let says_where = String::from_utf8_lossy(&answer.1).contains("column");
        assert_eq!(says_where, expected == "bad_body", "only who shows a grant hears the parser: {shown:?}");
        let reason = if expected == "bad_body" { "bad_request" } else { expected };
        assert_eq!(refused_since(&bench, before), ("POST /v1/bars".into(), reason.into()), "{shown:?}");
    }
    let before = records(bench.directory.path()).len();
    let large = vec![b' '; 3 << 20];
    let answer = send_raw(&bench, "POST", "/v1/bars", &[&good], &large).await;
    assert_eq!(code(&answer), (413, "body_too_large".into()));
    assert_eq!(refused_since(&bench, before).1, "bad_request");
    assert!(bench.stored().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn feeling_along_the_doors_is_a_refusal_in_the_journal() {
    let bench = Bench::new(Audience::Market).await;
    let long = format!("/{}", "a/".repeat(2_000));
    let cut: String = long.chars().take(128).collect();
    let cases = [
        ("GET", "/", 404, "GET /".to_owned()),
        ("GET", "/v1/gone?secret=1", 404, "GET /v1/gone".to_owned()),
        ("POST", "/v1/orders", 404, "POST /v1/orders".to_owned()),
        ("DELETE", "/v1/bars", 405, "DELETE /v1/bars".to_owned()),
        ("POST", "/v1/panel", 405, "POST /v1/panel".to_owned()),
        ("ABCDEFGHIJKLMNOPQRSTUVWXYZ", "/v1/bars", 405, "ABCDEFGHIJKLMNOP /v1/bars".to_owned()),
        ("GET", &long, 404, format!("GET {cut}")),
    ];
    for (method, uri, status, route) in cases {
        let before = records(bench.directory.path()).len();
        let answer = send_raw(&bench, method, uri, &[], b"").await;
        assert_eq!(code(&answer), (status, "no_such_route".into()), "{method} {uri}");
        assert_eq!(refused_since(&bench, before), (route, "no_such_route".into()));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_that_fails_after_its_announcement_is_said_to_have_failed() {
    let bench = Bench::new(Audience::Ledger).await;
    // More shares are sold than held: announced, refused by the books, and said so in the journal.
    let (query, mut body) = entries(&About::good());
    body.as_mut().unwrap()["entries"][1]["side"] = json!("sell");
    let asked = (query, body);
    let post = (Method::POST, "/v1/entries");
    let refused = bench.ask(PeerClass::Desk, Action::WriteLedger, post, &asked, |_| {}).await;
    assert_eq!(code(&refused), (422, "negative_position".into()));
    let records = records(bench.directory.path());
    let last = records.last().unwrap();
    assert!(matches!(last, Record::Decision { allowed: false, reason, .. } if reason == "negative_position"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn books_and_news_of_later_days_are_not_served() {
    let (ledger, news) = (Bench::new(Audience::Ledger).await, Bench::new(Audience::News).await);
    let days = ["2005-03-15", "2005-03-16", "2005-03-17", "2019-12-31"];
    let until_the_end =
        |claims: &mut access::vocabulary::Claims| claims.market_day = MarketDay::parse("2019-12-31").unwrap();
    for day in days {
        let about = About { day: day.into(), ..About::good() };
        let mut article = articles(&about);
        article.1.as_mut().unwrap()["articles"][0]["id"] = json!(day);
        let post = (Method::POST, "/v1/articles");
        let wrote = news.ask(PeerClass::Agents, Action::WriteArticles, post, &article, until_the_end).await;
        assert_eq!(wrote.0, 200);
        let fill = json!({ "entry": "fill", "id": day, "order": day, "portfolio": "core", "day": day,
                           "symbol": "AAPL", "side": "buy", "quantity": 1, "price": 1_000_000, "fee": 0 });
        let body = json!({ "portfolio": "core", "day": day, "entries": [
            { "entry": "open", "portfolio": "core", "day": "2005-03-14", "cash": 1_000_000_000 }, fill,
            { "entry": "close", "portfolio": "core", "day": day, "equity": 1_000_000_000, "cash": 0 },
        ] });
        let post = (Method::POST, "/v1/entries");
        let asked = (String::new(), Some(body));
        let wrote = ledger.ask(PeerClass::Desk, Action::WriteLedger, post, &asked, until_the_end).await;
        assert_eq!(wrote.0, 200, "{}", String::from_utf8_lossy(&wrote.1));
    }
    for (place, day) in days.into_iter().enumerate() {
        let about = About { day: day.into(), ..About::good() };
        let read = (Method::GET, "/v1/articles");
        let found = news.ask(PeerClass::Agents, Action::ReadArticles, read, &range(&about), |_| {}).await;
        let books =
            |path| ledger.ask(PeerClass::Agents, Action::ReadLedger, (Method::GET, path), &Q[place], |_| {});
        static Q: std::sync::LazyLock<Vec<Asked>> = std::sync::LazyLock::new(|| {
            let days = ["2005-03-15", "2005-03-16", "2005-03-17", "2019-12-31"];
            days.map(|day| through(&About { day: day.into(), ..About::good() })).into()
        });
        let (holdings, equity) = (books("/v1/holdings").await, books("/v1/equity").await);
        if day > DAY {
            for refused in [&found, &holdings, &equity] {
                assert_eq!(code(refused), (403, "later_than_market_day".into()));
            }
        } else {
            assert_eq!(value(&found).as_array().unwrap().len(), place + 1);
            assert_eq!(value(&holdings)["positions"]["AAPL"], json!(place + 1));
            assert_eq!(value(&equity)["days"].as_array().unwrap().len(), place + 1);
        }
    }
}

/// A market with a bar on each of these days for each symbol, and a split on some.
async fn full_market(days: &[&str]) -> Bench {
    let bench = Bench::new(Audience::Market).await;
    let mut series = serde_json::Map::new();
    for symbol in ["AAPL", "MSFT"] {
        let bars: Vec<Value> = days.iter().map(|day| bar(day)).collect();
        let splits: Vec<Value> = days
            .iter()
            .step_by(2)
            .map(|day| json!({ "day": day, "numerator": 2, "denominator": 1 }))
            .collect();
        series.insert(symbol.into(), json!({ "bars": bars, "splits": splits }));
    }
    let body = json!({ "portfolio": "core", "source": "sample", "series": series });
    let written = bench
        .ask(
            PeerClass::Agents,
            Action::WriteBars,
            (Method::POST, "/v1/bars"),
            &(String::new(), Some(body)),
            |claims| {
                claims.market_day = MarketDay::parse(days.last().unwrap()).unwrap();
            },
        )
        .await;
    assert_eq!(written.0, 200);
    bench
}

/// Parts of a query, good ones and bad ones, that are put together in any way.
fn part() -> impl Strategy<Value = String> {
    let day = prop::sample::select(vec![
        "1999-01-04",
        "2005-03-15",
        "2005-03-16",
        "2005-03-17",
        "2005-3-16",
        "2019-12-31",
        "2999-12-31",
        "9999-12-31",
        "20050317",
        "2005-02-30",
        "",
        "2005-03-17%00",
        "+2005-03-16",
    ]);
    prop_oneof![
        4 => day.clone().prop_map(|day| format!("through={day}")),
        3 => day.clone().prop_map(|day| format!("from={day}")),
        1 => day.prop_map(|day| format!("Through={day}")),
        4 => Just("portfolio=core".to_owned()),
        1 => Just("portfolio=tech".to_owned()),
        4 => Just("symbols=AAPL".to_owned()),
        3 => Just("symbols=MSFT,AAPL".to_owned()),
        1 => "[a-z&=,%-]{0,12}".prop_map(String::from),
    ]
}

#[test]
fn nothing_later_than_the_market_day_is_ever_served() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let days = ["2005-03-14", "2005-03-15", "2005-03-16", "2005-03-17", "2005-03-18", "2019-12-31"];
    let bench = runtime.block_on(full_market(&days));
    let last: market::Day = DAY.parse().unwrap();
    let served = std::cell::Cell::new(0_u32);
    let parts = prop::collection::vec(part(), 0..7).prop_map(|parts| parts.join("&"));
    let whole = (part(), part()).prop_map(|(one, two)| format!("portfolio=core&symbols=AAPL&{one}&{two}"));
    let dates = (0..6_usize, 0..6_usize).prop_map(move |(from, through)| {
        format!("portfolio=core&symbols=AAPL,MSFT&from={}&through={}", days[from], days[through])
    });
    let query = prop_oneof![parts, whole, dates];
    let mut runner =
        proptest::test_runner::TestRunner::new(ProptestConfig { cases: 400, ..ProptestConfig::default() });
    runner
        .run(&(query, any::<bool>()), |(query, desk)| {
            let class = if desk { PeerClass::Desk } else { PeerClass::Agents };
            let ask = |path| {
                runtime.block_on(bench.ask(
                    class,
                    Action::ReadBars,
                    (Method::GET, path),
                    &(query.clone(), None),
                    |_| {},
                ))
            };
            let (status, body) = ask("/v1/bars");
            if status == 200 {
                let series: BTreeMap<Symbol, Series> = serde_json::from_slice(&body).unwrap();
                for one in series.values() {
                    prop_assert!(one.bars.iter().all(|bar| bar.day <= last));
                    prop_assert!(one.splits.iter().all(|split| split.day() <= last));
                    served.set(served.get() + u32::try_from(one.bars.len()).unwrap());
                }
            } else {
                prop_assert!(status == 400 || status == 403, "{status}");
            }
            if !desk {
                let (status, body) = ask("/v1/panel");
                if status == 200 {
                    let panel: Panel = serde_json::from_slice(&body).unwrap();
                    prop_assert!(panel.days.iter().all(|day| *day <= last));
                    prop_assert!(panel.splits.iter().all(|(_, split)| split.day() <= last));
                }
            }
            Ok(())
        })
        .unwrap();
    assert!(served.get() > 0, "some queries must be good, or nothing was tested");
}
