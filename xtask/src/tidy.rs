//! The house rules that no compiler checks. Each rule is a module with its reasons beside it and a planted violation among
//! its tests.
//!
//! INVARIANT: a rule names file and line of what it refuses, and an exception is a line in its table, in review.

mod arrows;
mod cores;
mod dependencies;
mod files;
mod links;
mod routes;
mod words;

use std::fmt;

use crate::workspace::Workspace;

/// One broken rule at one place.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Finding {
    path: String,
    line: usize,
    rule: &'static str,
    text: String,
}

impl Finding {
    fn new(rule: &'static str, path: &str, line: usize, text: impl Into<String>) -> Self {
        Self { path: path.to_owned(), line, rule, text: text.into() }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}: {}", self.path, self.line, self.rule, self.text)
    }
}

/// Every broken rule, in the order of the files.
pub(crate) fn check(workspace: &Workspace) -> Vec<Finding> {
    let document = |path: &str| {
        workspace
            .documents
            .iter()
            .find(|document| document.path == path)
            .map_or("", |document| &document.text)
    };
    let mut findings = arrows::check(&workspace.manifests);
    findings.extend(cores::check_manifests(&workspace.manifests));
    findings.extend(dependencies::check(
        &workspace.external,
        document(dependencies::PAGE),
        &workspace.manifests,
    ));
    let banned = words::banned(document(words::PAGE));
    if banned.is_empty() {
        findings.push(Finding::new("words", words::PAGE, 1, "the table of words not used is missing"));
    }
    for source in &workspace.sources {
        findings.extend(cores::check(source));
        findings.extend(routes::check(source));
        findings.extend(files::check(source));
        findings.extend(words::check(source, &banned));
    }
    findings.extend(files::check_exceptions(&workspace.sources));
    for document in &workspace.documents {
        findings.extend(links::check(document, &workspace.root));
    }
    findings.sort();
    findings
}
