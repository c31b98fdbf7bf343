//! What the first start puts into the state directory, and what every later start checks.
//!
//! Policies, playbooks, sources and modules are carried in the program. Files that operators may edit are written once and
//! then left alone; modules are released anew only when this program carries others than the signed manifest names, so that
//! a module that somebody changed stays changed, and is refused.

use std::collections::BTreeMap;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;

use analyst::construct::Construction;
use feeds::Source;
use keys::Digest;
use management::bootstrap::{self, FIRST_OPERATORS};
use management::plan::{Plan, PortfolioPlan, PortfolioStep, Step};
use market::{Day, MICROS_PER_DOLLAR};
use sandbox::release::{Manifest, SignedManifest};
use wire::files;
use wire::layout::{Layout, MANAGEMENT_CLASSES, SERVICES, Service, Topology, read_json};

use crate::output::{Failure, say};

/// The lock that `trader up` holds on a state directory.
pub(crate) const LOCK: &str = "up.lock";
/// Written when the operators of the first start have their identities: later starts make nobody an operator.
const OPERATORS_MADE: &str = "operators-made";

/// Market days between two steps: a month.
const STEP_DAYS: usize = 21;
/// Market days of a portfolio's history before it is opened: the least that the model can be trained on.
const WARM_UP_DAYS: usize = 546;
/// Steps between two reports: a year.
const REPORT_STEPS: usize = 12;

/// Ports that are listened at: below those that the operating system gives to outgoing connections, so that none of these
/// stands in the way when a process starts again.
const PORTS: std::ops::Range<u16> = 15_000..32_000;
/// How many ports are tried before there is said to be none.
const PORT_TRIES: u32 = 1_000;

/// Files that operators may edit, below `config/`.
const CONFIG: [(&str, &str); 7] = [
    ("policies/schema.cedarschema", include_str!("../../../policies/schema.cedarschema")),
    ("policies/standing.cedar", include_str!("../../../policies/standing.cedar")),
    ("policies/grants.cedar", include_str!("../../../policies/grants.cedar")),
    ("policies/operators.cedar", include_str!("../../../policies/operators.cedar")),
    ("policies/sentinel.toml", include_str!("../../../policies/sentinel.toml")),
    ("policies/playbooks/quarantine.toml", include_str!("../../../policies/playbooks/quarantine.toml")),
    ("policies/playbooks/stop-module.toml", include_str!("../../../policies/playbooks/stop-module.toml")),
];

/// Sources that come with the program.
const SOURCES: [(&str, &[u8]); 2] = [
    ("large20.csv.gz", include_bytes!("../../../sample/large20.csv.gz")),
    ("tech5.csv.gz", include_bytes!("../../../sample/tech5.csv.gz")),
];

/// Modules that come with the program.
const MODULES: [(&str, &[u8]); 4] = [
    ("collector", include_bytes!(concat!(env!("TRADER_MODULES"), "/collector"))),
    ("analyst", include_bytes!(concat!(env!("TRADER_MODULES"), "/analyst"))),
    ("strategist", include_bytes!(concat!(env!("TRADER_MODULES"), "/strategist"))),
    ("reporter", include_bytes!(concat!(env!("TRADER_MODULES"), "/reporter"))),
];

/// What a run is to be, as asked for on the command line.
#[derive(Debug, Clone)]
pub(crate) struct RunRequest {
    /// Seed of the simulated market.
    pub(crate) seed: u64,
    /// Market days per second; `None` as fast as possible.
    pub(crate) days_per_second: Option<u32>,
    /// Last market day.
    pub(crate) until: Option<Day>,
}

/// Makes or checks the state directory.
pub(crate) fn prepare(layout: &Layout, request: &RunRequest) -> Result<(), Failure> {
    files::create_private_dir(layout.root()).map_err(Failure::broken)?;
    if !bootstrap::is_done(layout) {
        bootstrap::create(layout).map_err(Failure::broken)?;
    }
    if !layout.config().join(OPERATORS_MADE).exists() {
        for name in FIRST_OPERATORS {
            crate::operator::issue(layout, name)?;
        }
        write_once(
            &layout.config().join(OPERATORS_MADE),
            b"the operators of the first start have their identities\n",
        )?;
    }
    for (path, text) in CONFIG {
        write_once(&layout.config().join(path), text.as_bytes())?;
    }
    // Whoever imported data of their own before the first start trades that, and not the sample.
    if !layout.sources().exists() {
        // All of them or none: a start that is cut off in between must not leave a sample with one of its parts.
        let unfinished = layout.root().join("sources.new");
        for (name, bytes) in SOURCES {
            write_once(&unfinished.join(name), bytes)?;
        }
        fs::rename(&unfinished, layout.sources()).map_err(Failure::broken)?;
    }
    release(layout)?;
    if !layout.plan().exists() {
        let plan = plan(layout, request)?;
        write_once(&layout.config().join("desk.toml"), crate::data::desk_config(&plan)?.as_bytes())?;
        write_json(&layout.plan(), &plan)?;
    } else {
        let mut plan: Plan = read_json(&layout.plan()).map_err(Failure::refused)?;
        plan.days_per_second = request.days_per_second;
        write_json(&layout.plan(), &plan)?;
    }
    for (domain, ..) in SERVICES {
        if let Some(parent) = layout.database(domain).parent() {
            files::create_private_dir(parent).map_err(Failure::broken)?;
        }
    }
    topology(layout)
}

fn write_once(path: &Path, bytes: &[u8]) -> Result<(), Failure> {
    if path.exists() {
        return Ok(());
    }
    if let Some(parent) = path.parent() {
        files::create_private_dir(parent).map_err(Failure::broken)?;
    }
    files::write_private_atomic(path, bytes).map_err(Failure::broken)
}

fn write_json<T: serde::Serialize>(path: &Path, value: &T) -> Result<(), Failure> {
    let bytes = serde_json::to_vec_pretty(value).map_err(Failure::broken)?;
    files::write_private_atomic(path, &bytes).map_err(Failure::broken)
}

/// Releases the modules that this program carries, once: a manifest that was signed since then, and a module that somebody
/// changed since then, stay as they are.
fn release(layout: &Layout) -> Result<(), Failure> {
    let path = layout.modules().join("manifest.json");
    let carried = layout.config().join("carried-modules.json");
    let ours: BTreeMap<String, String> =
        MODULES.iter().map(|(name, bytes)| ((*name).to_owned(), Digest::of(bytes).to_string())).collect();
    if carried.exists() && path.exists() {
        let last: BTreeMap<String, String> = read_json(&carried).map_err(Failure::refused)?;
        if last == ours {
            return Ok(());
        }
    }
    let mut version = 1;
    if path.exists() {
        let (_, bundle) = bootstrap::bundle(layout).map_err(Failure::broken)?;
        let keys: Vec<keys::VerifyingKey> =
            bundle.release_keys.iter().filter_map(|key| keys::VerifyingKey::from_hex(key).ok()).collect();
        let signed: SignedManifest = read_json(&path).map_err(Failure::refused)?;
        // A manifest that was not released properly is not replaced in silence.
        let known = signed.verify(&keys, bundle.release_threshold as usize, 0).map_err(Failure::refused)?;
        version = known.version() + 1;
    }
    let mut signed =
        SignedManifest::new(&Manifest { version, modules: ours.clone() }).map_err(Failure::broken)?;
    for key in bootstrap::release_keys(layout).map_err(Failure::broken)? {
        signed.sign(&key);
    }
    files::create_private_dir(&layout.modules()).map_err(Failure::broken)?;
    for (name, bytes) in MODULES {
        files::write_private_atomic(&layout.modules().join(name), bytes).map_err(Failure::broken)?;
    }
    write_json(&path, &signed)?;
    write_json(&carried, &ours)
}

/// Keeps the addresses of the last start where they are free, and finds others where they are not.
fn topology(layout: &Layout) -> Result<(), Failure> {
    if layout.topology().exists() {
        let known: Topology = read_json(&layout.topology()).map_err(Failure::refused)?;
        if all_free(&known) {
            return Ok(());
        }
    }
    let mut held = Vec::new();
    let mut free = || -> Result<SocketAddr, Failure> {
        let (listener, address) = free_address()?;
        held.push(listener);
        Ok(address)
    };
    let mut management = BTreeMap::new();
    for class in MANAGEMENT_CLASSES {
        management.insert((*class).to_owned(), free()?);
    }
    let mut services = BTreeMap::new();
    for (service, class, count) in SERVICES {
        let backends = (0..*count).map(|_| free()).collect::<Result<_, _>>()?;
        services.insert(format!("{service}/{class}"), Service { listen: free()?, backends });
    }
    write_json(&layout.topology(), &Topology { enrolment: free()?, management, services })
}

/// An address of this machine that nobody listens at, and the listener that keeps it so.
fn free_address() -> Result<(TcpListener, SocketAddr), Failure> {
    let span = u64::from(PORTS.end - PORTS.start);
    for _ in 0..PORT_TRIES {
        let mut bytes = [0; 8];
        getrandom::fill(&mut bytes).map_err(Failure::broken)?;
        let offset = u16::try_from(u64::from_le_bytes(bytes) % span).unwrap_or(0);
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, PORTS.start + offset));
        if let Ok(listener) = TcpListener::bind(address) {
            return Ok((listener, address));
        }
    }
    Err(Failure::refused(format!("no port from {} to {} is free on this machine", PORTS.start, PORTS.end)))
}

fn all_free(topology: &Topology) -> bool {
    let services =
        topology.services.values().flat_map(|service| service.backends.iter().chain([&service.listen]));
    topology
        .management
        .values()
        .chain([&topology.enrolment])
        .chain(services)
        .all(|at| TcpListener::bind(at).is_ok())
}

/// More stocks than this need more orders than `policies/grants.cedar` allows one task: two for each stock.
const STOCKS_MAX: usize = 100;
/// Fewer stocks than this cannot be ranked.
const STOCKS_MIN: usize = 3;
/// A portfolio is small below this many stocks, and may then hold more of each.
const SMALL_BELOW: usize = 10;

/// Name, cash and manner of the portfolio that a source is traded in.
fn portfolio_of(source: &str, symbols: usize) -> (String, i64, Construction) {
    match source {
        "large20" => ("core".to_owned(), 1_000_000, Construction::CORE),
        "tech5" => ("tech".to_owned(), 250_000, Construction::TECH),
        other if symbols < SMALL_BELOW => (other.to_lowercase(), 1_000_000, Construction::TECH),
        other => (other.to_lowercase(), 1_000_000, Construction::CORE),
    }
}

fn open_sources(layout: &Layout) -> Result<Vec<Source>, Failure> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(layout.sources()).map_err(Failure::broken)? {
        let path = entry.map_err(Failure::broken)?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name.ends_with(".csv") || name.ends_with(".csv.gz") {
            paths.push(path);
        }
    }
    paths.sort();
    paths.iter().map(|path| Source::open(path).map_err(Failure::refused)).collect()
}

fn plan(layout: &Layout, request: &RunRequest) -> Result<Plan, Failure> {
    let mut portfolios = Vec::new();
    let mut calendars = Vec::new();
    for source in open_sources(layout)? {
        let days: Vec<Day> = source
            .days()
            .iter()
            .copied()
            .filter(|day| request.until.is_none_or(|until| *day <= until))
            .collect();
        // A portfolio whose history is too short to be opened is left out.
        let (Some(start), Some(last)) = (days.get(WARM_UP_DAYS).copied(), days.last().copied()) else {
            continue;
        };
        let whole = market::import::read(&source.slice(None, last)).map_err(Failure::refused)?;
        if whole.series.len() > STOCKS_MAX {
            return Err(Failure::refused(format!(
                "{} has {} symbols; a portfolio may have {STOCKS_MAX}: policy grants no task more orders than that many \
                 stocks need. Import a file with fewer",
                source.name(),
                whole.series.len()
            )));
        }
        if whole.series.len() < STOCKS_MIN {
            say(&format!(
                "{} has {} symbols; the model ranks {STOCKS_MIN} or more, so nothing is bought",
                source.name(),
                whole.series.len()
            ));
        }
        let (name, cash_dollars, construction) = portfolio_of(source.name(), whole.series.len());
        portfolios.push(PortfolioPlan {
            name: name.clone(),
            source: source.name().to_owned(),
            symbols: whole.series.keys().map(ToString::to_string).collect(),
            cash: cash_dollars * MICROS_PER_DOLLAR,
            start: start.to_string(),
            cost_bps: construction.cost_bps,
            order_max_bps: construction.order_max_bps,
            construction: serde_json::to_value(construction).map_err(Failure::broken)?,
        });
        calendars.push((name, start, days));
    }
    if portfolios.is_empty() {
        return Err(Failure::refused(format!(
            "there are fewer than {WARM_UP_DAYS} market days before the last day asked for: nothing to learn from"
        )));
    }
    let steps = steps(&calendars);
    // A portfolio is opened on the day of its first step.
    for portfolio in &mut portfolios {
        let first =
            steps.iter().find(|step| step.portfolios.iter().any(|part| part.portfolio == portfolio.name));
        if let Some(first) = first {
            portfolio.start.clone_from(&first.day);
        }
    }
    Ok(Plan { seed: request.seed, days_per_second: request.days_per_second, portfolios, steps })
}

/// The steps: every month of market days of all calendars together, and the last day of each.
fn steps(calendars: &[(String, Day, Vec<Day>)]) -> Vec<Step> {
    let all: std::collections::BTreeSet<Day> = calendars
        .iter()
        .flat_map(|(_, start, days)| days.iter().filter(move |day| *day >= start))
        .copied()
        .collect();
    let all: Vec<Day> = all.into_iter().collect();
    let mut last_step: BTreeMap<&str, Day> = BTreeMap::new();
    let mut finished: BTreeMap<&str, bool> = BTreeMap::new();
    let mut steps: Vec<Step> = Vec::new();
    let mut before = 0;
    for (index, day) in all.iter().enumerate() {
        let last_of_all = index + 1 == all.len();
        if index % STEP_DAYS != 0 && !last_of_all {
            continue;
        }
        let report_due = steps.len() % REPORT_STEPS == REPORT_STEPS - 1;
        let mut portfolios = Vec::new();
        for (name, start, days) in calendars {
            let ends = days.last().is_some_and(|last| last <= day);
            if day < start || finished.get(name.as_str()).copied().unwrap_or(false) {
                continue;
            }
            portfolios.push(PortfolioStep {
                portfolio: name.clone(),
                after: last_step.get(name.as_str()).map(ToString::to_string),
                rebalance: !ends,
                report: ends || (report_due && last_step.contains_key(name.as_str())),
            });
            last_step.insert(name, *day);
            finished.insert(name, ends);
        }
        let days = u32::try_from(index - before).unwrap_or(u32::MAX);
        steps.push(Step { day: day.to_string(), days, portfolios });
        before = index;
    }
    steps
}

/// Makes sure that a directory holds the state of a system, or nothing, before anything in it is removed.
pub(crate) fn check_removable(layout: &Layout) -> Result<(), Failure> {
    let root = layout.root();
    let Ok(entries) = fs::read_dir(root) else { return Ok(()) };
    let is_empty = entries.flatten().all(|entry| entry.file_name() == LOCK);
    // A first start that was cut off has the root key and no bundle yet.
    let is_ours = bootstrap::bundle(layout).is_ok() || layout.offline_root().join("root.key").is_file();
    if is_empty || is_ours {
        return Ok(());
    }
    Err(Failure::refused(format!(
        "{} holds something else than the state of a system; it is not removed",
        root.display()
    )))
}

/// Removes the whole state, for `--fresh`; the lock stays, since whoever removes holds it.
pub(crate) fn remove(layout: &Layout) -> Result<(), Failure> {
    check_removable(layout)?;
    for entry in fs::read_dir(layout.root()).map_err(Failure::broken)? {
        let entry = entry.map_err(Failure::broken)?;
        if entry.file_name() == LOCK {
            continue;
        }
        let path = entry.path();
        let removed = if entry.file_type().map_err(Failure::broken)?.is_dir() {
            fs::remove_dir_all(&path)
        } else {
            fs::remove_file(&path)
        };
        removed.map_err(|error| Failure::broken(format!("{}: {error}", path.display())))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn days(count: i64) -> Vec<Day> {
        let first: Day = "2000-01-01".parse().unwrap();
        (0..count).map(|offset| first.plus_days(offset).unwrap()).collect()
    }

    #[test]
    fn every_portfolio_begins_after_its_warm_up_and_ends_on_its_last_day() {
        let long = days(1_000);
        let short: Vec<Day> = long.get(100..900).unwrap().to_vec();
        let calendars =
            [("long".to_owned(), long[546], long.clone()), ("short".to_owned(), short[546], short.clone())];
        let steps = steps(&calendars);
        let of = |name: &str| -> Vec<(&str, &PortfolioStep)> {
            steps
                .iter()
                .flat_map(|step| step.portfolios.iter().map(move |part| (step.day.as_str(), part)))
                .filter(|(_, part)| part.portfolio == name)
                .collect()
        };
        for (name, start, last) in [("long", long[546], long[999]), ("short", short[546], short[799])] {
            let parts = of(name);
            assert!(parts[0].0 >= start.to_string().as_str());
            assert_eq!(parts[0].1.after, None);
            assert!(parts.windows(2).all(|two| two[1].1.after.as_deref() == Some(two[0].0)));
            let (day, end) = parts.last().unwrap();
            assert!(*day >= last.to_string().as_str());
            assert!(end.report && !end.rebalance);
            assert!(parts.iter().rev().skip(1).all(|(_, part)| part.rebalance));
        }
    }
}
