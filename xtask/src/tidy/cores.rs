//! Cores are functions of what they are handed: no clock, file, network, environment, randomness, thread or await.
//!
//! That is what makes a backtest, a paper run and a replay agree to the byte, and every core testable by a plain call.
//! Checked twice: the manifest may not link the means, and the production code may not name them.

use crate::source::{Source, has_word};
use crate::tidy::Finding;
use crate::workspace::Manifest;

const CORES: &[&str] =
    &["market", "engine", "risk", "analyst", "keys", "identity", "access", "audit", "sentinel"];

/// What no core's production code may link, and why.
const MEANS: &[(&str, &str)] = &[
    ("axum", "no network"),
    ("getrandom", "no randomness"),
    ("hyper", "no network"),
    ("hyper-util", "no network"),
    ("landlock", "no operating system"),
    ("nix", "no operating system"),
    ("rand", "no randomness"),
    ("rusqlite", "no files"),
    ("rustls", "no network"),
    ("seccompiler", "no operating system"),
    ("tempfile", "no files"),
    ("tokio", "no runtime"),
    ("tokio-rustls", "no network"),
    ("tracing-subscriber", "no output"),
];

/// Modules of the standard library that reach outside, and why a core has none of them.
const STANDARD: &[(&str, &str)] = &[
    ("fs", "no files"),
    ("net", "no network"),
    ("env", "no environment"),
    ("process", "no processes"),
    ("thread", "no threads"),
    ("os", "no operating system"),
];

/// Other names that a core may not say.
const NAMES: &[(&str, &str)] = &[
    ("SystemTime", "no clock"),
    ("Instant", "no clock"),
    ("now_utc", "no clock"),
    ("now_local", "no clock"),
    ("getrandom", "no randomness"),
    ("rand", "no randomness"),
    ("thread_rng", "no randomness"),
    ("OsRng", "no randomness"),
    ("RandomState", "no randomness"),
    ("tokio", "no runtime"),
    ("async", "no awaiting"),
    (".await", "no awaiting"),
    ("stdin", "no input"),
    ("stdout", "no output"),
    ("stderr", "no output"),
];

/// Whether a crate is a core.
pub(crate) fn is_core(name: &str) -> bool {
    CORES.contains(&name)
}

/// Refuses the means in the manifests of cores.
pub(crate) fn check_manifests(manifests: &[Manifest]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for manifest in manifests.iter().filter(|manifest| is_core(&manifest.name)) {
        for dependency in manifest.dependencies.iter().filter(|dependency| !dependency.for_tests) {
            if let Some((name, why)) = MEANS.iter().find(|(name, _)| *name == dependency.name) {
                let text = format!("core `{}` may not link `{name}`: {why} in a core", manifest.name);
                findings.push(Finding::new("cores", &manifest.path, 1, text));
            }
        }
    }
    findings
}

/// Refuses the names in the production code of cores.
pub(crate) fn check(source: &Source) -> Vec<Finding> {
    if !is_core(source.package()) {
        return Vec::new();
    }
    let mut findings = Vec::new();
    let mut inside_use_of_std = false;
    for (number, line) in source.production() {
        let code = line.code.as_str();
        inside_use_of_std |= code.trim_start().starts_with("use std::{");
        let mut refuse = |name: &str, why: &str| {
            let text = format!("`{name}` in a core: {why}");
            findings.push(Finding::new("cores", &source.path, number, text));
        };
        for (name, why) in STANDARD {
            let full = format!("std::{name}");
            if has_word(code, &full) || (inside_use_of_std && has_word(code, name)) {
                refuse(&full, why);
            }
        }
        for (name, why) in NAMES {
            if has_word(code, name) {
                refuse(name, why);
            }
        }
        inside_use_of_std &= !code.contains(';');
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings(path: &str, text: &str) -> Vec<(usize, String)> {
        check(&Source::new(path, text)).into_iter().map(|finding| (finding.line, finding.text)).collect()
    }

    #[test]
    fn a_core_that_reads_the_clock_is_refused_with_its_line() {
        let text = "//! Doc.\nuse std::time::Instant;\n";
        assert_eq!(
            findings("crates/risk/src/lib.rs", text),
            [(2, "`Instant` in a core: no clock".to_owned())]
        );
        assert!(findings("crates/wire/src/lib.rs", text).is_empty());
    }

    #[test]
    fn every_forbidden_name_is_found() {
        let standard = STANDARD.iter().map(|(name, _)| format!("let a = std::{name}::b();"));
        let names = NAMES.iter().map(|(name, _)| format!("let a = b {name};"));
        for planted in standard.chain(names) {
            assert_eq!(findings("crates/engine/src/a.rs", &planted).len(), 1, "{planted}");
        }
    }

    #[test]
    fn an_import_in_braces_is_found() {
        let text = "use std::{\n    collections::BTreeMap,\n    fs,\n};\nlet fs = 1;\n";
        assert_eq!(
            findings("crates/audit/src/a.rs", text),
            [(3, "`std::fs` in a core: no files".to_owned())]
        );
        assert_eq!(findings("crates/audit/src/a.rs", "use std::{env, fmt};").len(), 1);
    }

    #[test]
    fn tests_comments_and_strings_of_a_core_are_free() {
        let text = "// std::fs\nlet a = \"SystemTime\";\n#[cfg(test)]\nmod tests {\n    use std::fs;\n}\nlet random = 1;\n";
        assert!(findings("crates/keys/src/lib.rs", text).is_empty());
        assert!(findings("crates/keys/tests/a.rs", "use std::fs;\n").is_empty());
    }

    #[test]
    fn a_core_that_links_a_runtime_is_refused() {
        let text = "[package]\nname = \"access\"\n[dependencies]\ntokio.workspace = true\n[dev-dependencies]\ntempfile.workspace = true\n";
        let manifest = Manifest::parse("crates/access/Cargo.toml", text).unwrap();
        let findings = check_manifests(&[manifest]);
        assert_eq!(findings.len(), 1);
        assert_eq!(findings[0].text, "core `access` may not link `tokio`: no runtime in a core");
    }
}
