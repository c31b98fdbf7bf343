//! One concept, one word. The glossary's table of words not used is the rule; this reads it.
//!
//! Looks at names in code only, split at underscores and capitals; prose may explain a word by another.

use crate::source::Source;
use crate::tidy::Finding;

/// The page whose section "Not said" holds the table.
pub(crate) const PAGE: &str = "docs/glossary.md";

/// A word that is not used, and the one that is.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Banned {
    word: String,
    instead: String,
}

/// Reads the rows of the table under the heading "Not said".
pub(crate) fn banned(page: &str) -> Vec<Banned> {
    let section = page.split("\n## ").find(|section| section.starts_with("Not said")).unwrap_or_default();
    let rows = section.lines().filter_map(|line| {
        let mut cells = line.strip_prefix("| `")?.split('|').map(|cell| cell.trim().trim_matches('`'));
        Some(Banned { word: cells.next()?.to_lowercase(), instead: cells.next()?.to_owned() })
    });
    rows.collect()
}

/// Refuses names that hold a word not used.
pub(crate) fn check(source: &Source, banned: &[Banned]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (index, line) in source.lines.iter().enumerate() {
        let names =
            line.code.split(|c: char| !(c.is_alphanumeric() || c == '_')).filter(|name| !name.is_empty());
        for name in names {
            let spelled = format!("_{}_", snake(name));
            for ban in banned.iter().filter(|ban| spelled.contains(&format!("_{}_", ban.word))) {
                let text = format!("`{name}`: say {} instead of {}", ban.instead, ban.word);
                findings.push(Finding::new("words", &source.path, index + 1, text));
            }
        }
    }
    findings
}

/// `OrderGateway` and `ORDER_GATEWAY` as `order_gateway`.
fn snake(name: &str) -> String {
    let shouted = !name.chars().any(char::is_lowercase);
    let mut snake = String::with_capacity(name.len() + 4);
    for c in name.chars() {
        if c.is_uppercase() && !shouted && !snake.is_empty() && !snake.ends_with('_') {
            snake.push('_');
        }
        snake.extend(c.to_lowercase());
    }
    snake
}

#[cfg(test)]
mod tests {
    use super::*;

    const GLOSSARY: &str = "# Words\n\n| `gateway` | fine here |\n\n## Not said\n\n| not | but |\n|---|---|\n| `gateway` | desk |\n\n## More\n\n| `jail` | x |\n";

    #[test]
    fn only_the_rows_of_the_section_are_the_rule() {
        assert_eq!(banned(GLOSSARY), [Banned { word: "gateway".to_owned(), instead: "desk".to_owned() }]);
    }

    #[test]
    fn a_name_with_a_banned_word_is_refused_and_prose_is_free() {
        let banned = banned(GLOSSARY);
        for name in ["gateway", "OrderGateway", "ORDER_GATEWAY", "gateway_open"] {
            let source =
                Source::new("crates/desk/src/lib.rs", &format!("//! The gateway.\nlet a = {name};\n"));
            let findings = check(&source, &banned);
            assert_eq!(findings.len(), 1, "{name}");
            assert_eq!(findings[0].line, 2);
        }
        let source = Source::new("crates/desk/src/lib.rs", "//! Doc.\nlet gateways = \"gateway\";\n");
        assert!(check(&source, &banned).is_empty());
    }
}
