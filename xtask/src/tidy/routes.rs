//! Routes are made in one place. A route table of `wire::guard` names the permission that each route demands; a route
//! added to a bare router would have none.
//!
//! INVARIANT: outside `wire`, production code neither makes a router nor adds to one.

use crate::source::Source;
use crate::tidy::Finding;

const MEANS: &[&str] = &[
    "Router::new",
    "Router::default",
    "Router::<",
    ".route(",
    ".route_service(",
    ".nest(",
    ".nest_service(",
    ".fallback(",
    ".fallback_service(",
    "axum::serve",
];

/// Refuses routers outside `wire`.
pub(crate) fn check(source: &Source) -> Vec<Finding> {
    if matches!(source.package(), "wire" | "xtask") {
        return Vec::new();
    }
    let mut findings = Vec::new();
    for (number, line) in source.production() {
        for means in MEANS.iter().filter(|means| line.code.contains(*means)) {
            let text = format!("`{means}` outside `wire`: a route comes from a table of `wire::guard`");
            findings.push(Finding::new("routes", &source.path, number, text));
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_route_beside_the_guard_is_refused() {
        for means in MEANS {
            let planted = Source::new("crates/unit/src/lib.rs", &format!("//! Doc.\nlet app = a{means}b;\n"));
            let findings = check(&planted);
            assert_eq!((findings.len(), findings[0].line), (1, 2), "{means}");
            let at_home = Source::new("crates/wire/src/guard.rs", &format!("let app = a{means}b;\n"));
            assert!(check(&at_home).is_empty());
        }
    }
}
