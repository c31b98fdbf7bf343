//! The whole sample, walked forward: a model trained every 21 days on the past alone, its portfolio after
//! costs, and what equal-weight buy and hold would have made. `cargo test -p analyst --release --test
//! walk_forward -- --nocapture` prints it.
//!
//! Nothing here asserts that the strategy wins: that is a fact about the sample, not about the code.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "a test may fail by panicking, and prints what it measured"
)]

use std::collections::BTreeMap;
use std::io::Read as _;
use std::time::{Duration, Instant};

use analyst::construct::{Book, Construction, Proposal, construct};
use analyst::forecast::{Training, forecast};
use analyst::metrics::{benchmark, daily_returns, drawdown_max, growth_per_year, sharpe};
use market::{Day, Money, Panel, Price, Quantity, Side, Symbol};

const STEP_DAYS: usize = 21;
const FEE_BPS: i64 = 5;
const SLIPPAGE_BPS: i64 = 5;
const CASH: i64 = 1_000_000;

/// A sample as a panel; `None` where it is absent.
fn sample(name: &str) -> Option<Panel> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../sample/");
    let Ok(file) = std::fs::File::open(format!("{folder}{name}")) else {
        println!("skipped: sample/{name} is absent");
        return None;
    };
    let mut text = String::new();
    flate2::read::GzDecoder::new(file).read_to_string(&mut text).unwrap();
    Some(Panel::from_series(&market::import::read(&text).unwrap().series))
}

/// What a walk has come to.
struct Walk {
    curve: Vec<(Day, Money)>,
    proposals: Vec<(Day, Proposal)>,
    traded: i64,
    /// Rank correlation of score and what came, per step.
    correlations: Vec<f64>,
    slowest: Duration,
    cash_min: i64,
}

/// Where a walk's scores come from.
#[derive(Clone, Copy)]
enum Scores {
    /// The model.
    Learned,
    /// From this day on, all are the same.
    Even(Day),
}

/// Walks the days up to `end`: decides at a close, fills at the next day's close, 5 bps worse, and pays 5
/// bps.
fn walk(panel: &Panel, construction: &Construction, end: usize, source: Scores) -> Walk {
    let mut walk = Walk {
        curve: Vec::new(),
        proposals: Vec::new(),
        traded: 0,
        correlations: Vec::new(),
        slowest: Duration::ZERO,
        cash_min: i64::MAX,
    };
    let mut cash = CASH * 1_000_000;
    let mut shares: BTreeMap<Symbol, i64> = BTreeMap::new();
    let mut last: BTreeMap<Symbol, Price> = BTreeMap::new();
    let mut pending: Vec<Proposal> = Vec::new();
    let mut first: Option<usize> = None;
    for (index, day) in panel.days.iter().copied().enumerate().take(end) {
        for (symbol, split) in panel.splits.iter().filter(|(_, split)| split.day() == day) {
            let Some(held) = shares.get_mut(symbol) else { continue };
            let all = *held * i64::from(split.numerator());
            *held = all / i64::from(split.denominator());
            // What is left of a share is paid out at the last close.
            cash +=
                all % i64::from(split.denominator()) * last[symbol].micros() / i64::from(split.numerator());
        }
        last.extend(
            panel.symbols.iter().filter_map(|symbol| Some((symbol.clone(), panel.close(symbol, day)?))),
        );
        for order in pending.drain(..) {
            // Nothing in the samples splits in the night after a decision; the run would stop here if it did.
            assert!(!panel.splits.iter().any(|(of, split)| *of == order.symbol && split.day() == day));
            let close = panel.close(&order.symbol, day).unwrap().micros();
            let quantity = order.quantity.shares();
            let (signed, price) = match order.side {
                Side::Buy => (quantity, close + close * SLIPPAGE_BPS / 10_000),
                Side::Sell => (-quantity, close - close * SLIPPAGE_BPS / 10_000),
            };
            let amount = price * quantity;
            cash -= price * signed + amount * FEE_BPS / 10_000;
            *shares.entry(order.symbol).or_default() += signed;
            walk.traded += amount / 1_000_000;
        }
        walk.cash_min = walk.cash_min.min(cash);
        let prices: BTreeMap<Symbol, Price> = panel
            .symbols
            .iter()
            .filter_map(|symbol| Some((symbol.clone(), panel.close(symbol, day)?)))
            .collect();
        let equity = cash + shares.iter().map(|(symbol, held)| last[symbol].micros() * held).sum::<i64>();
        if first.is_some() {
            walk.curve.push((day, Money::from_micros(equity)));
        }
        if index % STEP_DAYS != 0 {
            continue;
        }
        let scores = match source {
            Scores::Learned => learned(panel, index, end, &mut walk),
            Scores::Even(from) => {
                (day >= from).then(|| panel.symbols.iter().map(|symbol| (symbol.clone(), 0)).collect())
            }
        };
        let Some(scores) = scores else { continue };
        if first.is_none() {
            first = Some(index);
            walk.curve.push((day, Money::from_micros(equity)));
        }
        let holdings = shares.iter().map(|(symbol, held)| (symbol.clone(), Quantity::new(*held))).collect();
        let book =
            Book { cash: Money::from_micros(cash), equity: Money::from_micros(equity), holdings, prices };
        pending = construct(&scores, &book, construction).unwrap();
        walk.proposals.extend(pending.iter().cloned().map(|one| (day, one)));
    }
    walk
}

/// The model's scores at a close, and what came of them later; `None` while there is too little history.
fn learned(panel: &Panel, index: usize, end: usize, walk: &mut Walk) -> Option<BTreeMap<Symbol, i64>> {
    // Only what a full training reads is handed in, as the module does it.
    let from = (index + 1).saturating_sub(Training::TEXTBOOK.days_read());
    let window = Panel {
        days: panel.days[from..=index].to_vec(),
        symbols: panel.symbols.clone(),
        closes: panel.closes.iter().map(|column| column[from..=index].to_vec()).collect(),
        splits: panel.splits.clone(),
    };
    let started = Instant::now();
    let made = forecast(&window, panel.days[index], &Training::TEXTBOOK).ok()?;
    walk.slowest = walk.slowest.max(started.elapsed());
    if index + 1 + STEP_DAYS < end {
        let came: Vec<(i64, f64)> = panel
            .symbols
            .iter()
            .zip(&panel.adjusted_closes())
            .filter_map(|(symbol, column)| {
                let gain = column[index + 1 + STEP_DAYS]? / column[index + 1]?;
                Some((*made.scores_ppm.get(symbol)?, gain))
            })
            .collect();
        walk.correlations.push(rank_correlation(&came));
    }
    Some(made.scores_ppm)
}

fn rank_correlation(pairs: &[(i64, f64)]) -> f64 {
    let ranks = |less: &dyn Fn(usize, usize) -> bool| -> Vec<f64> {
        (0..pairs.len()).map(|of| (0..pairs.len()).filter(|other| less(*other, of)).count() as f64).collect()
    };
    let left = ranks(&|a, b| pairs[a].0 < pairs[b].0);
    let right = ranks(&|a, b| pairs[a].1 < pairs[b].1);
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
    let (x, y) = (mean(&left), mean(&right));
    let with =
        |a: &[f64], b: &[f64], p: f64, q: f64| a.iter().zip(b).map(|(a, b)| (a - p) * (b - q)).sum::<f64>();
    with(&left, &right, x, y) / (with(&left, &left, x, x) * with(&right, &right, y, y)).sqrt().max(1e-9)
}

fn line(name: &str, curve: &[(Day, Money)]) -> String {
    format!(
        "{name:<34} {:>16} CAGR {:>5.2} %  Sharpe {:.3}  greatest drawdown {:.1} %",
        curve.last().unwrap().1,
        growth_per_year(curve).unwrap() * 100.0,
        sharpe(&daily_returns(curve)).unwrap(),
        drawdown_max(curve) * 100.0,
    )
}

#[test]
fn twenty_stocks_are_walked_forward_after_costs() {
    let Some(panel) = sample("large20.csv.gz") else { return };
    tell(&panel, &Construction::CORE, &["1992-01-01", "2000-01-01", "2010-01-01", "2020-01-01"]);
}

#[test]
fn five_stocks_are_walked_forward_after_costs() {
    let Some(panel) = sample("tech5.csv.gz") else { return };
    tell(&panel, &Construction::TECH, &[]);
}

/// Walks a sample and prints what came of it.
fn tell(panel: &Panel, construction: &Construction, spans: &[&str]) {
    let made = walk(panel, construction, panel.days.len(), Scores::Learned);
    let start = made.curve[0].0;
    let evenly = Construction { tilt_bps: 0, ..*construction };
    let even = walk(panel, &evenly, panel.days.len(), Scores::Even(start));
    let cash = Money::from_dollars(CASH).unwrap();
    let held = benchmark(panel, start, cash, FEE_BPS + SLIPPAGE_BPS).unwrap();
    println!(
        "{} to {}, {} stocks, {} trading days",
        start,
        panel.days.last().unwrap(),
        panel.symbols.len(),
        made.curve.len()
    );
    println!("{}", line("strategy", &made.curve));
    println!("{}", line("equal weight, bought and held", &held));
    println!("{}", line("equal weight, kept equal", &even.curve));
    for (from, until) in spans.iter().zip(spans.iter().skip(1)) {
        let (from, until): (Day, Day) = (from.parse().unwrap(), until.parse().unwrap());
        let part = |curve: &[(Day, Money)]| -> Vec<(Day, Money)> {
            curve.iter().filter(|(day, _)| (from..until).contains(day)).copied().collect()
        };
        println!("{from} until {until}");
        println!("{}", line("  strategy", &part(&made.curve)));
        println!("{}", line("  equal weight, bought and held", &part(&held)));
        println!("{}", line("  equal weight, kept equal", &part(&even.curve)));
    }
    let count = made.correlations.len() as f64;
    let mean = made.correlations.iter().sum::<f64>() / count;
    let spread =
        (made.correlations.iter().map(|one| (one - mean) * (one - mean)).sum::<f64>() / (count - 1.0)).sqrt();
    let worth: f64 =
        made.curve.iter().map(|(_, money)| money.as_f64()).sum::<f64>() / made.curve.len() as f64;
    println!(
        "rank correlation of forecast and outcome: mean {mean:.4}, t {:.2} over {count} steps",
        mean / spread * count.sqrt()
    );
    println!(
        "{} orders, traded {:.2} times the mean equity a year, slowest training {:?}, least cash {}",
        made.proposals.len(),
        made.traded as f64 / worth / (made.curve.len() as f64 / 252.0),
        made.slowest,
        Money::from_micros(made.cash_min),
    );
    assert!(made.curve.iter().all(|(_, money)| money.micros() > 0));
}

#[test]
fn the_same_days_give_the_same_proposals_whatever_comes_later() {
    let Some(panel) = sample("large20.csv.gz") else { return };
    let shorter = walk(&panel, &Construction::CORE, 1_000, Scores::Learned);
    let longer = walk(&panel, &Construction::CORE, 1_200, Scores::Learned);
    assert!(shorter.proposals.len() > 20);
    assert_eq!(shorter.proposals, longer.proposals[..shorter.proposals.len()]);
    assert_eq!(shorter.curve, longer.curve[..shorter.curve.len()]);
}
