//! Detectors, incidents and playbooks.
//!
//! Owns the judgement on the stream of decisions: rules that may never be broken, and one online statistic
//! per agent and portfolio. It refuses to act: a [`Finding`] says what was seen, a [`Playbooks`] says which
//! steps answer it, and management takes them. It knows no clock; each record comes with a time that may lie,
//! and a lie costs precision, never sight.
//!
//! INVARIANT: memory is bounded by the configuration, whatever the records say.

mod certified;
mod clock;
pub mod config;
pub mod finding;
mod orders;
pub mod playbook;
mod refusals;
mod sizes;
mod watch;

pub use config::Config;
pub use finding::{Finding, Rule};
pub use playbook::{Playbook, Playbooks, Step};
pub use watch::Sentinel;

/// Why a configuration or a playbook is refused.
#[derive(Debug, thiserror::Error)]
pub enum SentinelError {
    /// The text is no TOML of the expected shape.
    #[error("not a valid {what}: {problem}")]
    Syntax {
        /// `sentinel configuration` or `playbook`.
        what: &'static str,
        /// What the parser says.
        problem: String,
    },
    /// A value is outside what makes sense.
    #[error("{name} must be {demand}")]
    Value {
        /// Which one.
        name: &'static str,
        /// What it must be.
        demand: &'static str,
    },
    /// A rule that no playbook answers, or that two do.
    #[error("{count} playbooks answer the rule {rule}; it must be exactly one")]
    Answers {
        /// The rule.
        rule: Rule,
        /// How many answer it.
        count: usize,
    },
}
