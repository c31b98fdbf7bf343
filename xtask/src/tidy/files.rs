//! How a file opens, how long it may grow, and what it never holds.
//!
//! The length is a ratchet: an exception names the file and the length it may not pass, and goes when the file shrinks.
//! Attributes that switch a test off and macros that stand for missing work are refused in test code too.

use crate::source::{Source, has_word};
use crate::tidy::Finding;

const LINES_MAX: usize = 900;

/// Files that are longer than [`LINES_MAX`], the length they may not pass, and why.
const LONGER: &[(&str, usize, &str)] = &[];

/// What no code holds, and why.
const NEVER: &[(&str, &str)] = &[
    ("unsafe", "no memory outside the checker's sight"),
    ("todo!", "work that is missing is not merged"),
    ("unimplemented!", "work that is missing is not merged"),
];

/// Notes of unfinished work, spelled apart so that this file passes its own rule.
const NOTES: &[&str] = &[concat!("TO", "DO"), concat!("FIX", "ME"), concat!("X", "XX")];

/// Checks one file.
pub(crate) fn check(source: &Source) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut refuse = |line: usize, text: String| {
        findings.push(Finding::new("files", &source.path, line, text));
    };
    if !source.lines.first().is_some_and(|line| line.text.starts_with("//!")) {
        refuse(
            1,
            "does not open with `//!`: what it owns, what it refuses to know, its invariant".to_owned(),
        );
    }
    if source.path.ends_with("/mod.rs") {
        refuse(1, "a module is `name.rs` beside `name/`".to_owned());
    }
    let most =
        LONGER.iter().find(|(path, _, _)| *path == source.path).map_or(LINES_MAX, |(_, most, _)| *most);
    if source.lines.len() > most {
        refuse(most + 1, format!("{} lines; at most {most}", source.lines.len()));
    }
    for (number, line) in source.lines.iter().enumerate().map(|(index, line)| (index + 1, line)) {
        for (word, why) in NEVER.iter().filter(|(word, _)| has_word(&line.code, word)) {
            refuse(number, format!("`{word}`: {why}"));
        }
        if line.code.contains("#[ignore") {
            refuse(
                number,
                "an ignored test proves nothing: make it run, or let it skip and say so".to_owned(),
            );
        }
        for note in NOTES.iter().filter(|note| has_word(&line.text, note)) {
            refuse(number, format!("`{note}`: open work belongs in an issue"));
        }
    }
    findings
}

/// Refuses exceptions that are no longer needed.
pub(crate) fn check_exceptions(sources: &[Source]) -> Vec<Finding> {
    let needed =
        |path: &str| sources.iter().any(|source| source.path == path && source.lines.len() > LINES_MAX);
    let stale = LONGER.iter().filter(|(path, _, _)| !needed(path));
    stale.map(|(path, _, _)| Finding::new("files", path, 1, "the exception for its length can go")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(path: &str, text: &str) -> Vec<String> {
        check(&Source::new(path, text)).into_iter().map(|finding| finding.text).collect()
    }

    #[test]
    fn a_file_opens_with_its_purpose() {
        assert!(texts("crates/risk/src/a.rs", "use std::fmt;\n")[0].starts_with("does not open"));
        assert!(texts("crates/risk/src/a.rs", "").len() == 1);
        assert!(texts("crates/risk/src/a.rs", "//! Purpose.\nuse std::fmt;\n").is_empty());
    }

    #[test]
    fn a_file_ends_before_it_is_too_long() {
        let text = format!("//! Purpose.\n{}", "fn a() {}\n".repeat(LINES_MAX));
        assert_eq!(texts("crates/risk/src/a.rs", &text), ["901 lines; at most 900"]);
    }

    #[test]
    fn what_no_code_holds_is_found_in_tests_too() {
        let planted = [
            "unsafe { a() }",
            concat!("to", "do!()"),
            "unimplemented!()",
            "#[ignore]",
            "#[ignore = \"slow\"]",
            concat!("// TO", "DO: later"),
        ];
        for planted in planted {
            let text = format!("//! Purpose.\n#[cfg(test)]\nmod tests {{\n    {planted}\n}}\n");
            assert_eq!(texts("crates/risk/src/a.rs", &text).len(), 1, "{planted}");
        }
        assert!(texts("crates/risk/src/a.rs", "//! Purpose.\n#![forbid(unsafe_code)]\n").is_empty());
    }

    #[test]
    fn a_mod_rs_is_refused() {
        assert_eq!(texts("crates/risk/src/checks/mod.rs", "//! Purpose.\n").len(), 1);
    }
}
