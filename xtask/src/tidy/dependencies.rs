//! Every external dependency has its reason on one page, and dangerous ones have one door.
//!
//! Owns the comparison of the root manifest with `docs/dependencies.md` in both directions, the table of doors (the crates
//! that may link what opens sockets, databases, cells or keys), and the rule that the feature `danger` is for tests.

use std::collections::BTreeSet;

use crate::tidy::Finding;
use crate::workspace::Manifest;

/// The page with one line for each dependency.
pub(crate) const PAGE: &str = "docs/dependencies.md";

/// External crates that only some of ours may link outside tests, and why.
const DOORS: &[(&str, &[&str], &str)] = &[
    ("aes-gcm", &["keys"], "what is encrypted is bound to its place in one way"),
    ("argon2", &["keys"], "a passphrase is stretched in one way"),
    ("aws-lc-rs", &["identity"], "what a TPM says is verified in one place"),
    ("cryptoki", &["keystore"], "a device with keys has one door"),
    ("hpke", &["keys"], "what is sealed is sealed in one way"),
    ("cedar-policy", &["access"], "policy is decided in one place"),
    ("coset", &["access"], "grants are read and written in one place"),
    ("ed25519-dalek", &["keys"], "signing keys are held by one type"),
    ("landlock", &["sandbox"], "cells are built in one place"),
    ("rcgen", &["identity", "wire"], "certificates are made in identity; wire draws the peers' TLS keys"),
    ("rusqlite", &["store", "management"], "a database is opened by its own domain only"),
    ("rustls-webpki", &["identity", "wire"], "of peers in wire, of hosts that enrol in identity"),
    ("seccompiler", &["sandbox"], "cells are built in one place"),
    ("tokio-rustls", &["wire"], "connections are made in one place"),
];

/// Compares root manifest, page and crates.
pub(crate) fn check(external: &BTreeSet<String>, page: &str, manifests: &[Manifest]) -> Vec<Finding> {
    let mut findings = Vec::new();
    let listed = listed(page);
    let names: BTreeSet<&str> = listed.iter().map(|(_, name)| name.as_str()).collect();
    for name in external.iter().filter(|name| !names.contains(name.as_str())) {
        let text =
            format!("`{name}` has no line in {PAGE}: why, who maintains it, what we would write instead");
        findings.push(Finding::new("dependencies", "Cargo.toml", 1, text));
    }
    for (line, name) in listed.iter().filter(|(_, name)| !external.contains(name)) {
        let text = format!("`{name}` is not in the workspace's dependencies");
        findings.push(Finding::new("dependencies", PAGE, *line, text));
    }
    let used: BTreeSet<&str> =
        manifests.iter().flat_map(|manifest| &manifest.dependencies).map(|used| used.name.as_str()).collect();
    for name in external.iter().filter(|name| !used.contains(name.as_str())) {
        findings.push(Finding::new("dependencies", "Cargo.toml", 1, format!("`{name}` is used by no crate")));
    }
    for manifest in manifests {
        for dependency in &manifest.dependencies {
            if !dependency.inherited && dependency.name != manifest.name {
                let text = format!("`{}` does not take its version from the workspace", dependency.name);
                findings.push(Finding::new("dependencies", &manifest.path, 1, text));
            }
            if dependency.danger && !dependency.for_tests {
                let text = format!(
                    "`{}` with feature `danger`: a defence is switched off in tests only",
                    dependency.name
                );
                findings.push(Finding::new("dependencies", &manifest.path, 1, text));
            }
            let door = DOORS.iter().find(|(name, _, _)| *name == dependency.name);
            if let Some((name, doors, why)) = door
                && !dependency.for_tests
                && manifest.name != "testkit"
                && !doors.contains(&manifest.name.as_str())
            {
                let text = format!("`{name}` is linked by {} only: {why}", doors.join(", "));
                findings.push(Finding::new("dependencies", &manifest.path, 1, text));
            }
        }
    }
    findings
}

/// Names in the first column of the page's tables, with their line numbers.
fn listed(page: &str) -> Vec<(usize, String)> {
    let rows = page.lines().enumerate().filter_map(|(index, line)| {
        let (name, _) = line.strip_prefix("| `")?.split_once('`')?;
        Some((index + 1, name.to_owned()))
    });
    rows.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(external: &[&str], page: &str, dependencies: &str) -> Vec<String> {
        let external = external.iter().map(|name| (*name).to_owned()).collect();
        let text = format!("[package]\nname = \"agent\"\n[dependencies]\n{dependencies}");
        let manifest = Manifest::parse("crates/agent/Cargo.toml", &text).unwrap();
        check(&external, page, &[manifest]).into_iter().map(|finding| finding.text).collect()
    }

    #[test]
    fn a_dependency_without_a_reason_is_refused() {
        let texts = texts(&["serde"], "| dependency | why |\n", "serde.workspace = true\n");
        assert!(texts[0].starts_with("`serde` has no line in"), "{texts:?}");
    }

    #[test]
    fn a_reason_without_a_dependency_is_refused() {
        let page = "| `serde` | why |\n| `gone` | why |\n";
        assert_eq!(
            texts(&["serde"], page, "serde.workspace = true\n"),
            ["`gone` is not in the workspace's dependencies"]
        );
    }

    #[test]
    fn a_dependency_nobody_uses_is_refused() {
        assert_eq!(texts(&["serde"], "| `serde` | why |\n", ""), ["`serde` is used by no crate"]);
    }

    #[test]
    fn a_version_of_its_own_is_refused() {
        let texts = texts(&["serde"], "| `serde` | why |\n", "serde = \"1\"\n");
        assert_eq!(texts, ["`serde` does not take its version from the workspace"]);
    }

    #[test]
    fn a_second_door_is_refused() {
        let page = "| `rusqlite` | why |\n";
        let texts = texts(&["rusqlite"], page, "rusqlite.workspace = true\n");
        assert_eq!(
            texts,
            ["`rusqlite` is linked by store, management only: a database is opened by its own domain only"]
        );
    }

    #[test]
    fn a_defence_is_switched_off_in_tests_only() {
        let danger = "sandbox = { workspace = true, features = [\"danger\"] }\n";
        let found = texts(&[], "", danger);
        assert_eq!(found, ["`sandbox` with feature `danger`: a defence is switched off in tests only"]);
        assert!(texts(&[], "", &format!("[dev-dependencies]\n{danger}")).is_empty());
    }
}
