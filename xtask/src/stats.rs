//! Calibration: how the code of each crate looks in numbers, beside the band that we are comfortable in.
//!
//! The figures describe; nothing fails on them. They are counted from text, and the legend below the table says how, so
//! that they can be compared with other code bases counted the same way.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::source::{Comment, Function, Source};
use crate::workspace::Workspace;

const LEGEND: &str = "
band         medians 100-350, p90 < 900; functions <= 8 / <= 35, > 70 lines <= 2 %; comments 5-15; documented 100 %;
             tests 40-60 %; unwrap < 2; asserts >= 8 in the safety kernel; async 0 in cores, <= 15 % overall
k lines      lines of production code in thousands: not blank, not only comment, outside test items and test files
file         lines of each file under src/, median and 90th percentile, everything counted
fn           lines of each production function, from `fn` to its closing brace; share of those longer than 70
comments     production lines with a plain comment (not a doc comment), per 100 lines of code
documented   share of `pub` items (fn, struct, enum, trait, const, static, type, macro) under a doc comment
tests        share of all lines that belong to test items or test files
unwrap       `.unwrap()` and `.expect(` per 1,000 lines of production code
asserts      `assert!` and its relatives per 1,000 lines of production code
async        share of production functions that are async
";

/// What is counted for one crate.
#[derive(Debug, Default)]
struct Figures {
    code: usize,
    comments: usize,
    lines: usize,
    test_lines: usize,
    files: Vec<usize>,
    functions: Vec<Function>,
    items: usize,
    documented: usize,
    unwraps: usize,
    asserts: usize,
}

impl Figures {
    fn add(&mut self, source: &Source) {
        self.lines += source.lines.len();
        self.test_lines += source.lines.iter().filter(|line| line.test).count();
        if !source.path.contains("/tests/") {
            self.files.push(source.lines.len());
        }
        let mut doc_above = false;
        for (_, line) in source.production() {
            let code = line.code.trim();
            self.comments += usize::from(line.comment == Comment::Plain);
            if code.is_empty() {
                doc_above = (line.comment == Comment::Doc) || (doc_above && line.comment == Comment::Plain);
                continue;
            }
            self.code += 1;
            self.unwraps += code.matches(".unwrap()").count() + code.matches(".expect(").count();
            self.asserts += ["assert!(", "assert_eq!(", "assert_ne!("]
                .map(|name| code.matches(name).count())
                .iter()
                .sum::<usize>();
            if is_public_item(code) {
                self.items += 1;
                self.documented += usize::from(doc_above);
            }
            doc_above &= code.starts_with("#[") || code.ends_with(']') && !code.contains('{');
        }
        self.functions.extend(source.functions());
    }

    fn row(&self, name: &str) -> String {
        let mut functions: Vec<usize> = self.functions.iter().map(|function| function.lines).collect();
        let mut files = self.files.clone();
        files.sort_unstable();
        functions.sort_unstable();
        let long = functions.iter().filter(|&&lines| lines > 70).count();
        let awaiting = self.functions.iter().filter(|function| function.awaits).count();
        format!(
            "{name:<11} {:>7.1} {:>5} /{:>5} {:>4} /{:>4} {:>6} {:>8.1} {:>10} {:>6} {:>7.1} {:>8.1} {:>6}",
            self.code as f64 / 1000.0,
            percentile(&files, 50),
            percentile(&files, 90),
            percentile(&functions, 50),
            percentile(&functions, 90),
            share(long, functions.len()),
            ratio(self.comments, self.code, 100.0),
            share(self.documented, self.items),
            share(self.test_lines, self.lines),
            ratio(self.unwraps, self.code, 1000.0),
            ratio(self.asserts, self.code, 1000.0),
            share(awaiting, functions.len()),
        )
    }
}

/// The table with its legend.
pub(crate) fn table(workspace: &Workspace) -> String {
    let mut crates: BTreeMap<&str, Figures> = BTreeMap::new();
    let mut all = Figures::default();
    for source in workspace
        .sources
        .iter()
        .filter(|source| source.path.contains("/src/") || source.path.contains("/tests/"))
    {
        crates.entry(source.package()).or_default().add(source);
        all.add(source);
    }
    let mut table = format!(
        "{:<11} {:>7} {:>12} {:>10} {:>6} {:>8} {:>10} {:>6} {:>7} {:>8} {:>6}\n",
        "crate",
        "k lines",
        "file 50/90",
        "fn 50/90",
        "fn>70",
        "comments",
        "documented",
        "tests",
        "unwrap",
        "asserts",
        "async"
    );
    for (name, figures) in &crates {
        let _ = writeln!(table, "{}", figures.row(name));
    }
    let _ = writeln!(table, "{}", all.row("all"));
    table + LEGEND
}

/// Whether a line of code begins an item that the crate shows to others.
fn is_public_item(code: &str) -> bool {
    const ITEMS: &[&str] =
        &["fn", "struct", "enum", "trait", "const", "static", "type", "union", "macro", "async"];
    let word = code.strip_prefix("pub ").and_then(|rest| rest.split_whitespace().next());
    word.is_some_and(|word| ITEMS.contains(&word))
}

/// The smallest value that so many per cent of the sorted values do not exceed; zero when there are none.
fn percentile(sorted: &[usize], percent: usize) -> usize {
    let place = (sorted.len() * percent).div_ceil(100).saturating_sub(1);
    sorted.get(place).copied().unwrap_or(0)
}

fn share(part: usize, whole: usize) -> String {
    if whole == 0 { "-".to_owned() } else { format!("{:.0} %", ratio(part, whole, 100.0)) }
}

fn ratio(part: usize, whole: usize, per: f64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 * per / whole as f64 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crate_is_counted_as_the_legend_says() {
        let text = "//! Doc.\n\n/// Said.\n#[must_use]\npub fn a() -> u8 {\n    // Why.\n    assert!(b().unwrap() > 0);\n    1\n}\n\
                    pub struct Unsaid;\npub(crate) async fn b() {}\n#[cfg(test)]\nmod tests {\n    fn c() {}\n}\n";
        let mut figures = Figures::default();
        figures.add(&Source::new("crates/risk/src/lib.rs", text));
        assert_eq!((figures.code, figures.comments), (7, 1));
        assert_eq!((figures.lines, figures.test_lines), (15, 4));
        assert_eq!((figures.items, figures.documented), (2, 1));
        assert_eq!((figures.unwraps, figures.asserts), (1, 1));
        let functions: Vec<_> =
            figures.functions.iter().map(|function| (function.lines, function.awaits)).collect();
        assert_eq!(functions, [(5, false), (1, true)]);
    }

    #[test]
    fn percentiles_are_taken_from_the_values_themselves() {
        assert_eq!(percentile(&[], 50), 0);
        assert_eq!(percentile(&[3], 90), 3);
        assert_eq!(percentile(&[1, 2, 3, 4, 5, 6, 7, 8, 9, 10], 50), 5);
        assert_eq!(percentile(&[1, 2, 3, 4, 5, 6, 7, 8, 9, 10], 90), 9);
    }
}
