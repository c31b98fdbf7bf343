//! The built-in programs against a scripted agent: every answer is written down beforehand, every call is
//! looked at afterwards.

#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may fail by panicking")]

use std::cell::RefCell;
use std::io::{self, Cursor, Write};
use std::rc::Rc;

use analyst::construct::Construction;
use analyst::forecast::{Forecast, ModelCard};
use market::import::Fault;
use market::{Bar, Day, Money, Panel, Price, Quantity, Series, Side, Split, Symbol};
use module::host::{Host, HostError};
use module::programs;
use module::protocol::{
    Answer, Call, CollectorResult, DENIED, ForecastRecord, FromAgent, FromModule, LINE_BYTES_MAX, Ledger,
    LineError, NOT_FOUND, OrderRequest, OrderStatus, ROWS_MAX, Refusal, RefusedOrder, Reply, Report, Start,
    StrategistResult, parse, to_line,
};
use module::{ModuleError, Program, run_over};
use serde_json::{Value, json};

type Outcome = Result<Answer, Refusal>;
type Reader = Cursor<Vec<u8>>;

fn day(text: &str) -> Day {
    text.parse().unwrap()
}

fn symbol(text: &str) -> Symbol {
    text.parse().unwrap()
}

fn refusal(code: &str) -> Outcome {
    Err(Refusal { code: code.to_owned(), detail: format!("it is {code}") })
}

fn start(market_day: &str, params: Value) -> Start {
    let (task, kind, portfolio) = ("t-1".to_owned(), "any".to_owned(), "core".to_owned());
    Start { task, kind, portfolio, market_day: day(market_day), params }
}

/// What the agent says, line by line.
fn script(start: &Start, outcomes: Vec<Outcome>) -> Vec<u8> {
    let mut text = to_line(&FromAgent::Start(start.clone())).unwrap();
    for (id, outcome) in (1..).zip(outcomes) {
        text.extend(to_line(&FromAgent::Reply(Reply { id, outcome })).unwrap());
    }
    text
}

/// Keeps what is written, for whoever holds a clone.
#[derive(Clone, Default)]
struct Written(Rc<RefCell<Vec<u8>>>);

impl Write for Written {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.borrow_mut().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Runs a program over the agent's words; gives its calls and its last line.
fn talk(words: Vec<u8>, program: Program<Reader, Written>) -> (Vec<Call>, FromModule) {
    let written = Written::default();
    let ended_well = run_over(Cursor::new(words), written.clone(), program).unwrap();
    let text = written.0.take();
    let mut calls = Vec::new();
    let mut last = None;
    for (id, line) in (1..).zip(text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty())) {
        assert!(last.is_none(), "nothing comes after the last line");
        match parse::<FromModule>(line).unwrap() {
            FromModule::Call(call) => {
                assert_eq!(call.id, id);
                calls.push(call.call);
            }
            end => last = Some(end),
        }
    }
    let last = last.expect("a last line");
    assert_eq!(ended_well, matches!(last, FromModule::Done(_)));
    (calls, last)
}

fn result(last: FromModule) -> Value {
    match last {
        FromModule::Done(done) => done.result,
        other => panic!("{other:?}"),
    }
}

fn error(last: FromModule) -> String {
    match last {
        FromModule::Failed(failed) => failed.error,
        other => panic!("{other:?}"),
    }
}

/// Four stocks that wander, the same every time.
fn panel(from: &str, days: usize) -> Panel {
    let first = day(from);
    let mut state = 11_u64;
    let mut panel =
        Panel { days: (0..).map(|n| first.plus_days(n).unwrap()).take(days).collect(), ..Panel::default() };
    for name in ["AAA", "BBB", "CCC", "DDD"] {
        let mut close = 50_000_000_i64;
        let column = (0..days).map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            close += close / 200 * (((state >> 33) % 5) as i64 - 2);
            Some(close)
        });
        panel.closes.push(column.collect());
        panel.symbols.push(symbol(name));
    }
    panel
}

#[test]
fn the_collector_stores_what_is_good_and_names_what_is_not() {
    let text = "Date,AAA,BBB\n2001-01-02,10,20\n2001-01-03,-10,21\n2001-01-04,11,22\n".to_owned();
    let params = json!({"source": "closes", "after": "2001-01-01"});
    let words = script(
        &start("2001-01-05", params),
        vec![Ok(Answer::Source { text, digest: "d1".to_owned() }), Ok(Answer::Written { rows: 5 })],
    );
    let (calls, last) = talk(words.clone(), programs::collector);
    assert_eq!(
        calls[0],
        Call::FetchSource {
            source: "closes".to_owned(),
            after: Some(day("2001-01-01")),
            through: day("2001-01-05")
        }
    );
    let Call::WriteBars { source, series } = &calls[1] else { panic!("{calls:?}") };
    assert_eq!(source, "closes");
    assert_eq!((series[&symbol("AAA")].bars.len(), series[&symbol("BBB")].bars.len()), (2, 3));
    let result: CollectorResult = serde_json::from_value(result(last)).unwrap();
    assert_eq!((result.rows, result.refused, result.digest.as_str()), (5, 1, "d1"));
    assert_eq!(result.findings[0].fault, Fault::NegativePrice);
    assert_eq!(talk(words, programs::collector).0, calls, "the same answers, the same calls");
}

#[test]
fn the_collector_compares_with_the_closes_it_is_told_of() {
    let text = "Date,AAA\n2001-01-02,1000\n".to_owned();
    let params = json!({"source": "closes", "after": null, "known": {"AAA": ["2001-01-01", 5_000_000]}});
    let words =
        script(&start("2001-01-05", params), vec![Ok(Answer::Source { text, digest: String::new() })]);
    let (calls, last) = talk(words, programs::collector);
    assert_eq!(calls.len(), 1, "nothing is left to store");
    assert_eq!(result(last)["findings"][0]["fault"], "jump");
}

#[test]
fn the_collector_stores_many_rows_in_several_calls() {
    let first = day("2001-01-01");
    let mut text = "Date,AAA,BBB\n".to_owned();
    for n in 0..1_500 {
        text += &format!("{},10,x{n}\n", first.plus_days(n).unwrap());
    }
    text += &format!("{},10,10\n", first.plus_days(1_500).unwrap());
    for n in 1_501..2_600 {
        text += &format!("{},10,10\n", first.plus_days(n).unwrap());
    }
    let written = |rows| Ok(Answer::Written { rows });
    let words = script(
        &start("2010-01-01", json!({"source": "closes", "after": null})),
        vec![Ok(Answer::Source { text, digest: String::new() }), written(2_000), written(1_700)],
    );
    let (calls, last) = talk(words, programs::collector);
    let rows: Vec<usize> = calls[1..]
        .iter()
        .map(|call| match call {
            Call::WriteBars { series, .. } => series.values().map(|one| one.bars.len()).sum(),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(rows, [ROWS_MAX, 1_700]);
    let result: CollectorResult = serde_json::from_value(result(last)).unwrap();
    assert_eq!((result.rows, result.refused), (3_700, 1_500));
    assert_eq!(result.findings.len(), programs::FINDINGS_SENT_MAX);
}

#[test]
fn the_analyst_stores_a_forecast_with_its_model_and_digests() {
    let panel = panel("2001-01-01", 700);
    let today = panel.days[699].to_string();
    let params = json!({"symbols": ["AAA", "BBB", "CCC", "DDD"]});
    let words =
        script(&start(&today, params), vec![Ok(Answer::Panel(panel)), Ok(Answer::Written { rows: 1 })]);
    let (calls, last) = talk(words.clone(), programs::analyst);
    let Call::ReadPanel { through, from, .. } = &calls[0] else { panic!("{calls:?}") };
    assert_eq!(*through, day(&today));
    assert!(through.days_since(*from) > 365 * 6);
    let Call::WriteForecast { forecast: record } = &calls[1] else { panic!("{calls:?}") };
    assert_eq!(record.id, format!("core/{today}"));
    assert_eq!(record.forecast.scores_ppm.len(), 4);
    assert!(record.forecast.model.trained_through <= day(&today));
    let result = result(last);
    assert_eq!(result["forecast"], record.id.as_str());
    assert_eq!(result["model"], record.model_digest.as_str());
    assert_eq!(result["data_digest"], record.data_digest.as_str());
    assert_eq!(record.data_digest.len(), 64);
    assert_eq!(talk(words, programs::analyst).0, calls, "the same answers, the same calls");
}

#[test]
fn the_analyst_says_when_there_is_too_little_history() {
    let params = json!({"symbols": ["AAA", "BBB", "CCC", "DDD"]});
    let words = script(&start("2001-06-01", params), vec![Ok(Answer::Panel(panel("2001-01-01", 100)))]);
    let (calls, last) = talk(words, programs::analyst);
    assert_eq!(calls.len(), 1);
    let result = result(last);
    assert_eq!(result["forecast"], Value::Null);
    assert_eq!(result["reason"], "too little history: 0 labelled weeks, 52 needed");
}

fn record(id: &str, today: &str) -> ForecastRecord {
    let scores = [("AAA", 900), ("BBB", 500), ("CCC", -500), ("DDD", -9_000)];
    let model = ModelCard {
        kind: "test".to_owned(),
        trained_from: day("2000-01-01"),
        trained_through: day(today),
        weeks: 1,
        rows: 1,
        horizon_days: 21,
        features: Vec::new(),
        coefficients_ppb: Vec::new(),
    };
    let scores_ppm = scores.iter().map(|(name, score)| (symbol(name), *score)).collect();
    ForecastRecord {
        id: id.to_owned(),
        forecast: Forecast { day: day(today), scores_ppm, model },
        data_digest: String::new(),
        model_digest: String::new(),
    }
}

fn strategist_start() -> Start {
    let params = json!({"symbols": ["AAA", "BBB", "CCC", "DDD"], "construction": Construction::TECH});
    start("2001-01-10", params)
}

fn strategist_answers(orders: Vec<Outcome>) -> Vec<Outcome> {
    let mut panel = panel("2001-01-01", 10);
    panel.closes = vec![vec![Some(10_000_000); 10]; 4];
    let ledger = Ledger {
        cash: Money::from_dollars(90_000).unwrap(),
        positions: [(symbol("DDD"), Quantity::new(1_000))].into(),
        equity: Money::from_dollars(100_000).unwrap(),
    };
    let mut answers = vec![
        Ok(Answer::Forecast(record("core/2001-01-10", "2001-01-10"))),
        Ok(Answer::Panel(panel)),
        Ok(Answer::Ledger(ledger)),
    ];
    answers.extend(orders);
    answers
}

#[test]
fn the_strategist_sells_first_and_goes_on_after_a_refusal() {
    let order =
        |status, reason: Option<&str>| Ok(Answer::Order { status, reason: reason.map(str::to_owned) });
    let words = script(
        &strategist_start(),
        strategist_answers(vec![
            order(OrderStatus::Sent, None),
            order(OrderStatus::Rejected, Some("price_collar")),
            refusal(DENIED),
            order(OrderStatus::Unknown, None),
        ]),
    );
    let (calls, last) = talk(words.clone(), programs::strategist);
    let orders: Vec<&OrderRequest> = calls[3..]
        .iter()
        .map(|call| match call {
            Call::PlaceOrder(order) => order,
            other => panic!("{other:?}"),
        })
        .collect();
    let said: Vec<(&str, Side, i64)> =
        orders.iter().map(|order| (order.id.as_str(), order.side, order.quantity.shares())).collect();
    assert_eq!(
        said,
        [
            ("core-20010110-DDD", Side::Sell, 1_000),
            ("core-20010110-AAA", Side::Buy, 2_000),
            ("core-20010110-BBB", Side::Buy, 2_000),
            ("core-20010110-CCC", Side::Buy, 2_000),
        ]
    );
    assert!(
        orders
            .iter()
            .all(|order| order.forecast == "core/2001-01-10" && order.reference.micros() == 10_000_000)
    );
    let refused = |name, reason: &str| RefusedOrder { symbol: symbol(name), reason: reason.to_owned() };
    assert_eq!(
        serde_json::from_value::<StrategistResult>(result(last)).unwrap(),
        StrategistResult {
            placed: 2,
            refused: vec![refused("AAA", "price_collar"), refused("BBB", "it is denied")],
            reason: None
        }
    );
    assert_eq!(talk(words, programs::strategist).0, calls, "the same answers, the same calls");
}

#[test]
fn the_strategist_gives_up_when_an_order_has_no_answer_so_that_the_task_is_run_again() {
    let words = script(&strategist_start(), strategist_answers(vec![refusal("unavailable")]));
    let (calls, last) = talk(words, programs::strategist);
    assert_eq!(calls.len(), 4);
    assert_eq!(error(last), "refused (unavailable): it is unavailable");
}

#[test]
fn the_strategist_does_nothing_without_a_forecast_and_nothing_with_a_wrong_one() {
    let (calls, last) = talk(script(&strategist_start(), vec![refusal(NOT_FOUND)]), programs::strategist);
    assert_eq!(calls.len(), 1);
    assert_eq!(result(last)["placed"], 0);
    for (id, made) in [("tech/2001-01-10", "2001-01-10"), ("core/2001-01-10", "2001-01-11")] {
        let words = script(&strategist_start(), vec![Ok(Answer::Forecast(record(id, made)))]);
        let (calls, last) = talk(words, programs::strategist);
        assert_eq!(calls.len(), 1);
        assert!(error(last).contains("another one"), "{id} {made}");
    }
}

#[test]
fn a_stock_without_a_close_on_the_last_day_is_not_traded() {
    let mut answers =
        strategist_answers(vec![Ok(Answer::Order { status: OrderStatus::Sent, reason: None }); 3]);
    let Ok(Answer::Panel(panel)) = &mut answers[1] else { panic!("the second answer is the panel") };
    panel.closes[0][9] = None;
    let (calls, _) = talk(script(&strategist_start(), answers), programs::strategist);
    let placed = calls.iter().filter_map(|call| match call {
        Call::PlaceOrder(order) => Some(order.symbol.as_str()),
        _ => None,
    });
    assert_eq!(placed.collect::<Vec<_>>(), ["DDD", "BBB", "CCC"]);
}

#[test]
fn the_reporter_reads_long_spans_in_parts_and_compares_with_the_yardstick() {
    let bars = |rows: &[(&str, i64)]| -> Vec<Bar> {
        rows.iter()
            .map(|(text, close)| Bar::from_close(day(text), Price::from_micros(close * 1_000_000).unwrap()))
            .collect()
    };
    let one = |rows: &[(&str, i64)], splits: Vec<Split>| {
        Panel::from_series(&[(symbol("AAA"), Series { bars: bars(rows), splits })].into())
    };
    let split = Split::new(day("2006-01-03"), 2, 1).unwrap();
    let parts = [
        one(&[("2001-01-01", 9), ("2001-01-02", 10), ("2001-01-03", 8)], Vec::new()),
        one(&[("2006-01-03", 6)], vec![split]),
    ];
    let equity: Vec<(Day, Money)> =
        [("2000-12-29", 7), ("2001-01-01", 1_000), ("2001-01-02", 1_100), ("2006-01-03", 990)]
            .iter()
            .map(|(text, dollars)| (day(text), Money::from_dollars(*dollars).unwrap()))
            .collect();
    let params = json!({"symbols": ["AAA"], "start": "2001-01-01", "cash": 1_000_000_000, "cost_bps": 0});
    let mut answers = vec![Ok(Answer::Equity(equity))];
    answers.extend(parts.into_iter().map(|panel| Ok(Answer::Panel(panel))));
    answers.push(Ok(Answer::Written { rows: 1 }));
    let (calls, last) = talk(script(&start("2006-01-03", params), answers), programs::reporter);
    let spans: Vec<(Day, Day)> = calls
        .iter()
        .filter_map(|call| match call {
            Call::ReadPanel { from, through, .. } => Some((*from, *through)),
            _ => None,
        })
        .collect();
    assert_eq!(spans, [(day("2001-01-01"), day("2005-12-31")), (day("2006-01-01"), day("2006-01-03"))]);
    let said: Report = serde_json::from_value(result(last)).unwrap();
    let Some(Call::WriteReport { id, report }) = calls.last() else { panic!("{calls:?}") };
    assert_eq!((id.as_str(), report), ("core/2006-01-03", &said));
    assert_eq!(said.equity_end, Money::from_dollars(990).unwrap());
    // 100 shares at 10 become 200 at 6.
    assert_eq!(said.benchmark_end, Money::from_dollars(1_200).unwrap());
    assert!((said.max_drawdown - 0.1).abs() < 1e-9);
    assert!((said.benchmark_max_drawdown - 0.2).abs() < 1e-9);
    assert_eq!(said.days, 3);
}

#[test]
fn parameters_that_are_not_the_programs_are_refused() {
    let all: [Program<Reader, Written>; 4] =
        [programs::collector, programs::analyst, programs::strategist, programs::reporter];
    for program in all {
        for params in [json!(null), json!({}), json!({"symbols": ["../etc"], "source": 1, "more": true})] {
            let (calls, last) = talk(script(&start("2001-01-10", params), Vec::new()), program);
            assert!(calls.is_empty());
            assert!(error(last).starts_with("the task's parameters are unreadable"));
        }
    }
}

#[test]
fn a_panic_is_told_to_the_agent() {
    fn panicking(_: &mut Host<Reader, Written>, _: &Start) -> Result<Value, ModuleError> {
        panic!("on purpose")
    }
    let (_, last) = talk(script(&start("2001-01-10", json!({})), Vec::new()), panicking);
    assert_eq!(error(last), "the module panicked");
}

#[test]
fn an_agent_that_breaks_the_protocol_ends_the_talk() {
    fn asking(host: &mut Host<Reader, Written>, _: &Start) -> Result<Value, ModuleError> {
        host.read_ledger()?;
        Ok(Value::Null)
    }
    let begin = script(&start("2001-01-10", json!({})), Vec::new());
    let with = |more: &[u8]| error(talk([begin.as_slice(), more].concat(), asking).1);
    assert_eq!(with(b""), "the agent is gone");
    assert_eq!(with(br#"{"reply":{"id":1,"ok":{"written""#), "the agent is gone");
    assert!(with(b"[]\n").starts_with("the line is unreadable"));
    assert!(with(&begin).starts_with("the agent sent something else"));
    let other_call =
        to_line(&FromAgent::Reply(Reply { id: 2, outcome: Ok(Answer::Written { rows: 1 }) })).unwrap();
    assert!(with(&other_call).starts_with("the agent sent something else"));
    let other_kind =
        to_line(&FromAgent::Reply(Reply { id: 1, outcome: Ok(Answer::Written { rows: 1 }) })).unwrap();
    assert_eq!(with(&other_kind), "the agent sent something else than a ledger");
    assert_eq!(with(&vec![b'x'; LINE_BYTES_MAX + 10]), LineError::TooLong.to_string());
}

#[test]
fn a_call_beyond_its_limits_is_never_sent() {
    let mut written = Vec::new();
    let mut host = Host::new(Cursor::new(Vec::new()), &mut written);
    let refused = host.read_forecast("x".repeat(1_000));
    assert!(matches!(refused, Err(HostError::Line(LineError::Limit("a name")))));
    assert!(written.is_empty());
}

#[test]
fn the_built_programs_say_why_they_fail_and_end() {
    for program in [
        env!("CARGO_BIN_EXE_collector"),
        env!("CARGO_BIN_EXE_analyst"),
        env!("CARGO_BIN_EXE_strategist"),
        env!("CARGO_BIN_EXE_reporter"),
    ] {
        let ended = std::process::Command::new(program)
            .stdin(std::process::Stdio::null())
            .env_clear()
            .output()
            .unwrap();
        assert_eq!(ended.status.code(), Some(1), "{program}");
        assert_eq!(ended.stdout, b"{\"failed\":{\"error\":\"the agent is gone\"}}\n", "{program}");
        assert!(ended.stderr.is_empty(), "{program}");
    }
}
