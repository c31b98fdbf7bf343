//! Every relative link in a document leads somewhere: to a file or directory of this tree, and to a heading where it
//! names one; and every file of this tree that a document names in code exists, so that a test which a document promises
//! is there.
//!
//! Links to other hosts are left alone, because a build does not ask the network.

use std::fs;
use std::path::Path;

use crate::tidy::Finding;
use crate::workspace::Document;

/// Refuses links that lead nowhere.
pub(crate) fn check(document: &Document, root: &Path) -> Vec<Finding> {
    let directory = root.join(&document.path).parent().unwrap_or(root).to_path_buf();
    let mut findings = Vec::new();
    for (line, target) in targets(&document.text) {
        let outside = ["http:", "https:", "mailto:"].iter().any(|scheme| target.starts_with(scheme));
        if outside {
            continue;
        }
        let (path, heading) = target.split_once('#').unwrap_or((&target, ""));
        let file = if path.is_empty() { root.join(&document.path) } else { directory.join(path) };
        if !path.is_empty() && !file.exists() {
            findings.push(Finding::new("links", &document.path, line, format!("`{target}` leads nowhere")));
        } else if !heading.is_empty() && is_document(&file) {
            let text = if path.is_empty() {
                document.text.clone()
            } else {
                fs::read_to_string(&file).unwrap_or_default()
            };
            if !headings(&text).iter().any(|found| found == heading) {
                let text = format!("`{target}`: no such heading");
                findings.push(Finding::new("links", &document.path, line, text));
            }
        }
    }
    for (line, path) in named_files(&document.text) {
        if !root.join(&path).exists() {
            findings.push(Finding::new("links", &document.path, line, format!("`{path}` does not exist")));
        }
    }
    findings
}

/// Code spans that spell a path of this tree, with their line numbers, outside fenced blocks.
fn named_files(text: &str) -> Vec<(usize, String)> {
    const ROOTS: &[&str] =
        &["crates/", "xtask/", "docs/", "policies/", "sample/", "web/", ".ci/", ".github/"];
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-".contains(c);
    let mut files = Vec::new();
    for (number, line) in unfenced(text) {
        let spans = line.split('`').skip(1).step_by(2);
        let paths =
            spans.filter(|span| span.chars().all(plain) && ROOTS.iter().any(|root| span.starts_with(root)));
        files.extend(paths.map(|path| (number, path.to_owned())));
    }
    files
}

fn is_document(file: &Path) -> bool {
    file.extension().is_some_and(|extension| extension == "md")
}

/// Targets of `[text](target)` with their line numbers, outside code.
fn targets(text: &str) -> Vec<(usize, String)> {
    let mut targets = Vec::new();
    for (number, line) in prose(text) {
        let mut rest = line.as_str();
        while let Some((_, after)) = rest.split_once("](") {
            let Some((target, remaining)) = after.split_once(')') else { break };
            let target = target.split_whitespace().next().unwrap_or_default();
            targets.push((number, target.trim_matches(['<', '>']).to_owned()));
            rest = remaining;
        }
    }
    targets
}

/// Lines outside fenced blocks, with code spans cut out.
fn prose(text: &str) -> Vec<(usize, String)> {
    let cut = |line: &str| line.split('`').step_by(2).collect::<Vec<_>>().join("");
    unfenced(text).into_iter().map(|(number, line)| (number, cut(line))).collect()
}

/// Lines outside fenced blocks, with their numbers.
fn unfenced(text: &str) -> Vec<(usize, &str)> {
    let mut fenced = false;
    let mut lines = Vec::new();
    for (index, line) in text.lines().enumerate() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
        } else if !fenced {
            lines.push((index + 1, line));
        }
    }
    lines
}

/// Anchors of a document's headings, as hosting platforms spell them.
fn headings(text: &str) -> Vec<String> {
    let lines = unfenced(text).into_iter().map(|(_, line)| line).filter(|line| line.starts_with('#'));
    let titles = lines.map(|line| line.trim_start_matches('#').trim().to_lowercase());
    let kept = |c: &char| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_');
    let anchor = |title: String| title.chars().filter(kept).map(|c| if c == ' ' { '-' } else { c }).collect();
    titles.map(anchor).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(text: &str) -> Vec<String> {
        let document = Document { path: "xtask/page.md".to_owned(), text: text.to_owned() };
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        check(&document, root)
            .into_iter()
            .map(|finding| format!("{}: {}", finding.line, finding.text))
            .collect()
    }

    #[test]
    fn a_link_that_leads_nowhere_is_refused() {
        assert_eq!(
            texts("# A\n[here](src/main.rs), [gone](src/gone.rs)\n"),
            ["2: `src/gone.rs` leads nowhere"]
        );
        assert!(texts("[out](https://example.org/a) [up](../Cargo.toml) `[code](gone.md)`\n").is_empty());
        assert!(texts("```text\n[fenced](gone.md)\n```\n").is_empty());
    }

    #[test]
    fn a_heading_that_does_not_exist_is_refused() {
        assert!(texts("# What it is, today\n[a](#what-it-is-today)\n").is_empty());
        assert_eq!(texts("# A\n[b](#b)\n"), ["2: `#b`: no such heading"]);
    }

    #[test]
    fn a_test_that_a_document_promises_and_that_is_not_there_is_refused() {
        assert_eq!(
            texts("| control | `xtask/src/main.rs`, `xtask/tests/gone.rs` |\n"),
            ["1: `xtask/tests/gone.rs` does not exist"]
        );
        assert!(texts("`crates/*/src` and `cargo test xtask/` and `order/kill`\n").is_empty());
    }
}
