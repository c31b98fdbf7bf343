//! What the first start puts into the state directory, and what every later start checks.
//!
//! Policies, playbooks, sources and modules are carried in the program. Files that operators may edit are written once and
//! then left alone; modules are released anew only when this program carries others than the signed manifest names, so that
//! a module that somebody changed stays changed, and is refused.

use std::collections::BTreeMap;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};

use analyst::construct::Construction;
use feeds::Source;
use keys::Digest;
use management::bootstrap::{self, FIRST_OPERATORS, KeysAt};
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

/// The seed of a run for which none was asked.
const SEED: u64 = 1;

/// Ports that are listened at: below those that the operating system gives to outgoing connections, so that none of these
/// stands in the way when a process starts again.
const PORTS: std::ops::Range<u16> = 15_000..32_000;
/// How many ports are tried before there is said to be none.
const PORT_TRIES: u32 = 1_000;

/// Files that operators may edit, below `config/`.
const CONFIG: [(&str, &str); 11] = [
    ("policies/schema.cedarschema", include_str!("../../../policies/schema.cedarschema")),
    ("policies/standing.cedar", include_str!("../../../policies/standing.cedar")),
    ("policies/grants.cedar", include_str!("../../../policies/grants.cedar")),
    ("policies/operators.cedar", include_str!("../../../policies/operators.cedar")),
    ("policies/secrets.cedar", include_str!("../../../policies/secrets.cedar")),
    ("policies/sentinel.toml", include_str!("../../../policies/sentinel.toml")),
    ("policies/playbooks/quarantine.toml", include_str!("../../../policies/playbooks/quarantine.toml")),
    (
        "policies/playbooks/secret-at-risk.toml",
        include_str!("../../../policies/playbooks/secret-at-risk.toml"),
    ),
    ("policies/playbooks/stolen-key.toml", include_str!("../../../policies/playbooks/stolen-key.toml")),
    (
        "policies/playbooks/stolen-authority.toml",
        include_str!("../../../policies/playbooks/stolen-authority.toml"),
    ),
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
    /// Seed of the simulated market; `None` for the usual one.
    pub(crate) seed: Option<u64>,
    /// Market days per second; `None` as fast as possible.
    pub(crate) days_per_second: Option<u32>,
    /// Last market day.
    pub(crate) until: Option<Day>,
    /// Whether the installation is to take no key exchange but the hybrid post-quantum one.
    pub(crate) require_pq: bool,
}

/// The plan that a first start would make; nothing where there is a plan already. It says what of the request counts for
/// nothing then, and which source is left out. It writes nothing.
///
/// # Errors
/// Refused when there is nothing to trade with.
pub(crate) fn plan_for(layout: &Layout, request: &RunRequest, fresh: bool) -> Result<Option<Plan>, Failure> {
    if layout.plan().exists() && !fresh {
        let plan: Plan = read_json(&layout.plan()).map_err(Failure::refused)?;
        for words in ignored(&plan, request) {
            say(&words);
        }
        return Ok(None);
    }
    // Whoever imported data of their own before the first start trades that, and not the sample. Starting over removes it.
    let sources = if layout.sources().exists() && !fresh {
        open_sources(layout)?
    } else {
        SOURCES
            .iter()
            .map(|(name, bytes)| Source::from_bytes(Path::new(name), bytes).map_err(Failure::refused))
            .collect::<Result<_, _>>()?
    };
    let (plan, notes) = plan(sources, request)?;
    for words in notes {
        say(&words);
    }
    Ok(Some(plan))
}

/// What of a request counts for nothing, since there is a plan already.
fn ignored(plan: &Plan, request: &RunRequest) -> Vec<String> {
    let mut words = Vec::new();
    if let Some(seed) = request.seed.filter(|seed| *seed != plan.seed) {
        words.push(format!(
            "--seed {seed} is ignored: it counts at the first start only, and this directory's run has seed {}; --fresh \
             starts over",
            plan.seed
        ));
    }
    let last = plan.steps.last().map(|step| step.day.as_str()).unwrap_or_default();
    if let Some(until) = request.until.filter(|until| until.to_string() != last) {
        words.push(format!(
            "--until {until} is ignored: it counts at the first start only, and this directory's run ends on {last}; \
             --fresh starts over"
        ));
    }
    words
}

/// Makes or checks the state directory; with the plan that [`plan_for`] gave.
pub(crate) fn prepare(layout: &Layout, request: &RunRequest, plan: Option<Plan>) -> Result<(), Failure> {
    files::create_private_dir(layout.root()).map_err(Failure::broken)?;
    if !bootstrap::is_done(layout) {
        let keys_at = KeysAt { require_pq: request.require_pq, ..KeysAt::default() };
        bootstrap::create(layout, &keys_at).map_err(Failure::broken)?;
    }
    let (_, bundle) = bootstrap::bundle(layout).map_err(Failure::broken)?;
    if request.require_pq && !bundle.require_pq {
        return Err(Failure::refused(
            "--require-pq counts at the first start only; for this installation, start it and run \
             `trader keys require-pq on --yes`",
        ));
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
        let plan = plan.ok_or_else(|| Failure::broken("the plan was removed while it was read"))?;
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

fn source_paths(layout: &Layout) -> Result<Vec<PathBuf>, Failure> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(layout.sources()).map_err(Failure::broken)? {
        let path = entry.map_err(Failure::broken)?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name.ends_with(".csv") || name.ends_with(".csv.gz") {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

fn open_sources(layout: &Layout) -> Result<Vec<Source>, Failure> {
    source_paths(layout)?.iter().map(|path| Source::open(path).map_err(Failure::refused)).collect()
}

/// The name of the portfolio that a source is traded in.
pub(crate) fn portfolio_name(source: &str) -> String {
    portfolio_of(source, 0).0
}

/// The source, if any, that is traded in the same portfolio as a new one would be: two cannot be.
pub(crate) fn same_portfolio(layout: &Layout, source: &str) -> Result<Option<PathBuf>, Failure> {
    if !layout.sources().exists() {
        return Ok(None);
    }
    let clashes = |path: &PathBuf| portfolio_name(&source_name(path)) == portfolio_name(source);
    Ok(source_paths(layout)?.into_iter().find(clashes))
}

/// A source's name, by its file's.
fn source_name(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name.trim_end_matches(".gz").trim_end_matches(".csv").to_owned()
}

/// Refuses a source of more symbols than one portfolio may have.
pub(crate) fn check_symbols(source: &str, symbols: usize) -> Result<(), Failure> {
    if symbols <= STOCKS_MAX {
        return Ok(());
    }
    Err(Failure::refused(format!(
        "{source} has {symbols} symbols; a portfolio may have {STOCKS_MAX}: policy grants no task more orders than that many \
         stocks need. Import a file with fewer"
    )))
}

/// Why a source is left out for its length, if it is.
pub(crate) fn too_short(source: &str, days: usize) -> Option<String> {
    (days <= WARM_UP_DAYS).then(|| {
        format!(
            "{source} is left out: it has {days} market days, and the model learns from {WARM_UP_DAYS} before it trades, so it \
             takes {} or more",
            WARM_UP_DAYS + 1
        )
    })
}

/// Why nothing of a source is ever bought, if that is so.
pub(crate) fn too_few_symbols(source: &str, symbols: usize) -> Option<String> {
    (symbols < STOCKS_MIN).then(|| {
        format!(
            "nothing of {source} is ever bought: it has {symbols} symbols, and the model ranks {STOCKS_MIN} or more against \
             each other"
        )
    })
}

/// The plan for some sources, and what a person should know of it.
fn plan(sources: Vec<Source>, request: &RunRequest) -> Result<(Plan, Vec<String>), Failure> {
    let mut portfolios: Vec<PortfolioPlan> = Vec::new();
    let mut calendars = Vec::new();
    let mut notes = Vec::new();
    for source in sources {
        let days: Vec<Day> = source
            .days()
            .iter()
            .copied()
            .filter(|day| request.until.is_none_or(|until| *day <= until))
            .collect();
        let name = portfolio_name(source.name());
        if portfolios.iter().any(|other| other.name == name) {
            return Err(Failure::refused(format!(
                "two sources would be traded in the portfolio {name}; {} is one of them: rename or remove it in sources/",
                source.name()
            )));
        }
        // A portfolio whose history is too short to be opened is left out.
        notes.extend(too_short(source.name(), days.len()));
        let (Some(start), Some(last)) = (days.get(WARM_UP_DAYS).copied(), days.last().copied()) else {
            continue;
        };
        let whole = market::import::read(&source.slice(None, last)).map_err(Failure::refused)?;
        check_symbols(source.name(), whole.series.len())?;
        notes.extend(too_few_symbols(source.name(), whole.series.len()));
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
        let last = request.until.map(|until| format!(" until {until}")).unwrap_or_default();
        notes.insert(0, format!("there is nothing to trade{last}"));
        return Err(Failure::refused(notes.join("; ")));
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
    let seed = request.seed.unwrap_or(SEED);
    Ok((Plan { seed, days_per_second: request.days_per_second, portfolios, steps }, notes))
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
    let is_ours = bootstrap::bundle(layout).is_ok() || layout.offline_root().join("keystore.json").is_file();
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

    /// A source of so many market days and symbols.
    fn source(name: &str, count: i64, symbols: usize) -> Source {
        let names: Vec<String> = (0..symbols).map(|index| format!("S{index}")).collect();
        let mut text = format!("Date,{}\n", names.join(","));
        for day in days(count) {
            text += &format!("{day}{}\n", ",10".repeat(symbols));
        }
        Source::from_bytes(Path::new(&format!("{name}.csv")), text.as_bytes()).unwrap()
    }

    fn request(until: Option<&str>) -> RunRequest {
        let until = until.map(|day| day.parse().unwrap());
        RunRequest { seed: None, days_per_second: None, until, require_pq: false }
    }

    #[test]
    fn a_source_that_is_left_out_or_never_bought_is_named() {
        let sources = vec![source("long", 600, 3), source("short", 546, 3), source("pair", 547, 2)];
        let (plan, notes) = plan(sources, &request(None)).unwrap();
        let names: Vec<&str> = plan.portfolios.iter().map(|portfolio| portfolio.name.as_str()).collect();
        assert_eq!(names, ["long", "pair"]);
        assert_eq!(notes.len(), 2, "{notes:?}");
        assert!(notes[0].starts_with("short is left out: it has 546 market days"), "{notes:?}");
        assert!(notes[1].starts_with("nothing of pair is ever bought: it has 2 symbols"), "{notes:?}");
    }

    #[test]
    fn two_sources_of_one_portfolio_are_refused() {
        for (one, other) in [("good", "good"), ("good", "GOOD"), ("large20", "core")] {
            let refused = plan(vec![source(one, 600, 3), source(other, 600, 3)], &request(None)).unwrap_err();
            assert!(refused.words().starts_with("two sources"), "{}", refused.words());
        }
    }

    #[test]
    fn a_request_that_cannot_be_met_leaves_nothing_behind() {
        let directory = tempfile::tempdir().unwrap();
        let layout = Layout::new(&directory.path().join("state"));
        let refused = plan_for(&layout, &request(Some("1980-01-01")), false).unwrap_err();
        assert!(
            refused.words().starts_with("there is nothing to trade until 1980-01-01"),
            "{}",
            refused.words()
        );
        assert!(!layout.root().exists());
    }

    #[test]
    fn what_counts_at_the_first_start_only_is_not_ignored_silently() {
        let (plan, _) = plan(vec![source("long", 600, 3)], &request(None)).unwrap();
        let last = plan.steps.last().unwrap().day.clone();
        assert_eq!(plan.seed, SEED);
        assert!(ignored(&plan, &request(None)).is_empty());
        assert!(ignored(&plan, &RunRequest { seed: Some(SEED), ..request(Some(&last)) }).is_empty());
        let words = ignored(&plan, &RunRequest { seed: Some(7), ..request(Some("2001-01-01")) });
        assert_eq!(words.len(), 2, "{words:?}");
        assert!(words[0].starts_with("--seed 7 is ignored") && words[1].starts_with("--until 2001-01-01"));
        assert!(words[1].contains(&last), "{words:?}");
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
