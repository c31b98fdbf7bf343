//! Which crate may depend on which. The order of the table is the order of the layers: an arrow points up it, and only to
//! what its line names.
//!
//! INVARIANT: trading cores and trust cores do not know each other; they meet in `desk`, `unit` and `agent`.
//! A crate that is not in the table is refused, so that a new one begins with a line and a reason here.

use crate::tidy::Finding;
use crate::workspace::Manifest;

/// One crate's line.
struct Entry {
    name: &'static str,
    may_use: &'static [&'static str],
    why: &'static str,
}

const fn entry(name: &'static str, may_use: &'static [&'static str], why: &'static str) -> Entry {
    Entry { name, may_use, why }
}

/// The crates that a process built on every guarded edge needs.
const TRUST: &[&str] = &["keys", "identity", "access", "audit", "sentinel"];

#[rustfmt::skip]
const TABLE: &[Entry] = &[
    entry("market", &[], "the language of the trading half depends on nothing of ours"),
    entry("engine", &["market"], "orders and fills know prices, and neither limits nor models"),
    entry("risk", &["market", "engine"], "limits judge orders and know no permission"),
    entry("analyst", &["market"], "a model sees prices only; it holds no authority"),
    entry("keys", &[], "keys know nothing of what they sign"),
    entry("identity", &["keys"], "who somebody is says nothing of what they may do"),
    entry("access", &["keys", "identity"], "permission knows identities and nothing of trading"),
    entry("audit", &["keys"], "the log can be read and verified without the rest of the system"),
    entry("sentinel", &["keys", "audit"], "it watches records, and only records"),
    entry("module", &["market", "analyst", "keys"], "what runs in a cell links neither permission nor network"),
    entry("wire", TRUST, "the edge every process shares knows nothing of trading"),
    entry("store", &["market"], "a database holds rows; who may see them is decided in front of it"),
    entry("keystore", &["keys"], "it holds keys and knows nothing of what they sign"),
    entry("sandbox", &["keys"], "a cell holds any program, so it knows none of ours"),
    entry("brokers", &["market", "engine", "keys"], "a broker sees orders that others have approved, and the key of an account"),
    entry("feeds", &["market"], "a source brings data and decides nothing"),
    // Of the sandbox it takes the release manifest alone: which modules the release keys let run.
    entry("management", &["keys", "identity", "access", "audit", "sentinel", "wire", "keystore", "sandbox"],
        "the control plane cannot trade"),
    entry("agent", &["market", "keys", "identity", "access", "audit", "module", "wire", "sandbox", "feeds"],
        "an agent runs modules and speaks for them; no database and no broker is within its reach"),
    entry("unit", &["market", "keys", "identity", "access", "audit", "wire", "store"],
        "a data unit is the only way to a processing database"),
    entry("balancer", &[], "it carries bytes; with no key and no parser of ours it need not be trusted"),
    entry("desk", &["market", "engine", "risk", "keys", "identity", "access", "audit", "wire", "brokers"],
        "the only holder of a broker connection"),
    entry("trader", &["market", "engine", "risk", "analyst", "keys", "identity", "access", "audit", "sentinel", "module",
        "wire", "keystore", "sandbox", "feeds", "management", "agent", "unit", "balancer", "desk"],
        "the command line assembles; brokers and databases stay behind desk and unit"),
    entry("testkit", &["market", "engine", "risk", "analyst", "keys", "identity", "access", "audit", "sentinel", "module",
        "wire", "store", "keystore", "sandbox", "brokers", "feeds", "management", "agent", "unit", "balancer", "desk"],
        "helpers for tests may use everything but the command line"),
    entry("xtask", &[], "automation reads the workspace as text"),
];

/// Refuses every arrow that the table does not name.
pub(crate) fn check(manifests: &[Manifest]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for manifest in manifests {
        let Some(place) = TABLE.iter().position(|entry| entry.name == manifest.name) else {
            let text = format!("crate `{}` has no line in the table of arrows", manifest.name);
            findings.push(Finding::new("arrows", &manifest.path, 1, text));
            continue;
        };
        let Some(entry) = TABLE.get(place) else { continue };
        for dependency in &manifest.dependencies {
            let ours = TABLE.iter().any(|other| other.name == dependency.name);
            if ours
                && dependency.name != entry.name
                && !allowed(place, entry, &dependency.name, dependency.for_tests)
            {
                let text = format!("`{}` may not use `{}`: {}", entry.name, dependency.name, entry.why);
                findings.push(Finding::new("arrows", &manifest.path, 1, text));
            }
        }
    }
    findings
}

/// Tests of adapters and processes may reach for any crate above their own and for `testkit`; tests of cores may not,
/// because a core is tested by a plain function call.
fn allowed(place: usize, entry: &Entry, dependency: &str, for_tests: bool) -> bool {
    if entry.may_use.contains(&dependency) {
        return true;
    }
    let above = TABLE.iter().take(place).any(|other| other.name == dependency);
    for_tests && !super::cores::is_core(entry.name) && (above || dependency == "testkit")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest(name: &str, table: &str, dependency: &str) -> Manifest {
        let text = format!("[package]\nname = \"{name}\"\n[{table}]\n{dependency}.workspace = true\n");
        Manifest::parse(&format!("crates/{name}/Cargo.toml"), &text).unwrap()
    }

    fn refused(name: &str, table: &str, dependency: &str) -> bool {
        !check(&[manifest(name, table, dependency)]).is_empty()
    }

    #[test]
    fn the_table_itself_only_points_up() {
        for (place, entry) in TABLE.iter().enumerate() {
            for used in entry.may_use {
                assert!(TABLE[..place].iter().any(|above| above.name == *used), "{} uses {used}", entry.name);
            }
        }
    }

    #[test]
    fn trading_cores_and_trust_cores_do_not_know_each_other() {
        for trading in ["market", "engine", "risk", "analyst"] {
            for trust in TRUST {
                assert!(refused(trading, "dependencies", trust));
                assert!(refused(trust, "dependencies", trading));
                assert!(refused(trust, "dev-dependencies", trading));
            }
        }
    }

    #[test]
    fn an_arrow_down_the_list_is_refused() {
        assert!(refused("engine", "dependencies", "risk"));
        assert!(refused("wire", "dependencies", "desk"));
        assert!(refused("unit", "build-dependencies", "management"));
        assert!(!refused("risk", "dependencies", "engine"));
    }

    #[test]
    fn nobody_but_the_desk_links_a_broker() {
        for entry in TABLE.iter().filter(|entry| !["desk", "brokers", "testkit"].contains(&entry.name)) {
            assert!(refused(entry.name, "dependencies", "brokers"), "{}", entry.name);
        }
    }

    #[test]
    fn a_crate_without_a_line_is_refused() {
        let findings = check(&[manifest("shortcut", "dependencies", "market")]);
        assert_eq!(findings[0].text, "crate `shortcut` has no line in the table of arrows");
    }

    #[test]
    fn tests_of_processes_may_use_the_testkit_and_tests_of_cores_may_not() {
        assert!(!refused("unit", "dev-dependencies", "testkit"));
        assert!(refused("unit", "dependencies", "testkit"));
        assert!(refused("engine", "dev-dependencies", "testkit"));
    }
}
