//! What the sentinel can find: a closed set of rules, and one finding.
//!
//! Owns the rules' spelling, which is the same in code, playbook, log and console.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A rule that was broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rule {
    /// One peer was refused far more often than an honest one is.
    RefusalBurst,
    /// One peer showed grants that are not its own, or not genuine.
    ForgedGrant,
    /// An order went beyond the limits of the agent's own grant.
    OverLimit,
    /// A key was used that its owner had replaced.
    RetiredKey,
    /// A stored secret was asked for again, for something that it had been opened for.
    SecretReopened,
    /// The root key of the store of keys is sealed with another passphrase than before.
    KeyStoreResealed,
    /// An authority of ours signed a certificate that is not its to sign: its key is in other hands.
    RogueAuthority,
    /// A certificate was used of whose issue the log knows nothing.
    UnloggedCertificate,
    /// An order was sent or filled that was never approved.
    OrderNotApproved,
    /// An order was sent twice.
    OrderSentTwice,
    /// More was filled than approved.
    OrderOverfilled,
    /// A module was started whose digest is not among the approved.
    ModuleNotApproved,
    /// A module was stopped for something that it may not do.
    ModuleViolation,
    /// An order is far larger than the agent's orders are.
    OrderSize,
    /// A market day has far more orders than the agent's days have.
    OrderRate,
}

impl Rule {
    /// Every rule.
    pub const ALL: &'static [Self] = &[
        Self::RefusalBurst,
        Self::ForgedGrant,
        Self::OverLimit,
        Self::RetiredKey,
        Self::SecretReopened,
        Self::KeyStoreResealed,
        Self::RogueAuthority,
        Self::UnloggedCertificate,
        Self::OrderNotApproved,
        Self::OrderSentTwice,
        Self::OrderOverfilled,
        Self::ModuleNotApproved,
        Self::ModuleViolation,
        Self::OrderSize,
        Self::OrderRate,
    ];

    /// The rule's one spelling.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::RefusalBurst => "refusal_burst",
            Self::ForgedGrant => "forged_grant",
            Self::OverLimit => "over_limit",
            Self::RetiredKey => "retired_key",
            Self::SecretReopened => "secret_reopened",
            Self::KeyStoreResealed => "key_store_resealed",
            Self::RogueAuthority => "rogue_authority",
            Self::UnloggedCertificate => "unlogged_certificate",
            Self::OrderNotApproved => "order_not_approved",
            Self::OrderSentTwice => "order_sent_twice",
            Self::OrderOverfilled => "order_overfilled",
            Self::ModuleNotApproved => "module_not_approved",
            Self::ModuleViolation => "module_violation",
            Self::OrderSize => "order_size",
            Self::OrderRate => "order_rate",
        }
    }

    /// Parses the one spelling; anything else is `None`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|rule| rule.as_str() == text)
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One rule broken by one subject: the content of an incident.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// Incident, unique within the log: `incident-1`, `incident-2`, ....
    pub incident: String,
    /// Rule.
    pub rule: Rule,
    /// SPIFFE ID of whom it concerns; the name of a process whose enrolment was never seen.
    pub subject: String,
    /// Task in which it was seen, where the record names one.
    pub task: Option<String>,
    /// What was expected.
    pub expected: String,
    /// What was seen.
    pub seen: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_has_one_spelling_everywhere() {
        for rule in Rule::ALL {
            assert_eq!(Rule::parse(rule.as_str()), Some(*rule));
            let parsed: std::collections::BTreeMap<String, Rule> =
                toml::from_str(&format!("rule = \"{rule}\"")).unwrap();
            assert_eq!(parsed["rule"], *rule);
        }
        assert_eq!(Rule::parse("Order_size"), None);
    }
}
