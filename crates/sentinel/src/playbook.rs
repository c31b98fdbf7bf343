//! What is done about a finding: files that an operator can read, each naming rules and steps.
//!
//! Owns the closed set of steps and the choice among them. It takes none of them: management does, and
//! journals each before. Every rule has exactly one playbook, checked when they are loaded; a budget per hour
//! keeps a faulty detector from emptying the fleet.

use std::collections::{BTreeSet, VecDeque};

use serde::{Deserialize, Serialize};

use crate::SentinelError;
use crate::finding::{Finding, Rule};

/// One step of a response.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// All grants of the agent's epoch die.
    RevokeAgent,
    /// The agent gets no task until two people reinstate it.
    QuarantineAgent,
    /// The task in hand ends.
    CancelTask,
    /// The operators are told.
    Notify,
}

impl Step {
    /// The step's one spelling.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::RevokeAgent => "revoke_agent",
            Self::QuarantineAgent => "quarantine_agent",
            Self::CancelTask => "cancel_task",
            Self::Notify => "notify",
        }
    }
}

/// One playbook.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Playbook {
    name: String,
    rules: BTreeSet<Rule>,
    steps: Vec<Step>,
    budget_per_hour: usize,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PlaybookText {
    name: String,
    when: When,
    steps: Vec<Step>,
    budget_per_hour: usize,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct When {
    rule: BTreeSet<Rule>,
}

impl Playbook {
    /// Parses and checks a playbook.
    ///
    /// # Errors
    /// [`SentinelError::Syntax`] for unknown, missing or ill-typed keys, rules or steps;
    /// [`SentinelError::Value`] for a name, a budget, rules or steps that are empty or too many.
    pub fn parse(text: &str) -> Result<Self, SentinelError> {
        let PlaybookText { name, when, steps, budget_per_hour } = toml::from_str(text)
            .map_err(|error| SentinelError::Syntax { what: "playbook", problem: error.to_string() })?;
        let value = |name, ok, demand| if ok { Ok(()) } else { Err(SentinelError::Value { name, demand }) };
        value("name", (1..=64).contains(&name.len()), "from 1 to 64 bytes long")?;
        value("when.rule", !when.rule.is_empty(), "at least one rule")?;
        value("steps", !steps.is_empty(), "at least one step")?;
        let different: BTreeSet<Step> = steps.iter().copied().collect();
        value("steps", different.len() == steps.len(), "different from each other")?;
        value("steps", different.contains(&Step::Notify), "with notify: no response goes untold")?;
        value("budget_per_hour", (1..=1000).contains(&budget_per_hour), "from 1 to 1,000")?;
        Ok(Self { name, rules: when.rule, steps, budget_per_hour })
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its steps, in order.
    #[must_use]
    pub fn steps(&self) -> &[Step] {
        &self.steps
    }
}

/// All playbooks, with what is left of their budgets.
#[derive(Debug)]
pub struct Playbooks {
    playbooks: Vec<(Playbook, VecDeque<i64>)>,
}

/// One hour in milliseconds.
const HOUR_MS: u64 = 3_600_000;

impl Playbooks {
    /// Takes the playbooks that there are.
    ///
    /// # Errors
    /// [`SentinelError::Answers`] when a rule has no playbook, or more than one.
    pub fn new(playbooks: impl IntoIterator<Item = Playbook>) -> Result<Self, SentinelError> {
        let playbooks: Vec<(Playbook, VecDeque<i64>)> =
            playbooks.into_iter().map(|playbook| (playbook, VecDeque::new())).collect();
        for rule in Rule::ALL {
            let count = playbooks.iter().filter(|(playbook, _)| playbook.rules.contains(rule)).count();
            if count != 1 {
                return Err(SentinelError::Answers { rule: *rule, count });
            }
        }
        Ok(Self { playbooks })
    }

    /// The steps that answer a finding at this wall time (milliseconds since the Unix epoch). Beyond a
    /// playbook's budget the operators are told and nothing else is done.
    pub fn respond(&mut self, at_ms: i64, finding: &Finding) -> Vec<Step> {
        let answers = self.playbooks.iter_mut().find(|(playbook, _)| playbook.rules.contains(&finding.rule));
        let Some((playbook, used)) = answers else { return vec![Step::Notify] };
        used.retain(|used| used.abs_diff(at_ms) < HOUR_MS);
        if used.len() >= playbook.budget_per_hour {
            return vec![Step::Notify];
        }
        used.push_back(at_ms);
        playbook.steps.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUARANTINE: &str = include_str!("../../../policies/playbooks/quarantine.toml");
    const STOP_MODULE: &str = include_str!("../../../policies/playbooks/stop-module.toml");

    const STOLEN_KEY: &str = include_str!("../../../policies/playbooks/stolen-key.toml");
    const SECRET_AT_RISK: &str = include_str!("../../../policies/playbooks/secret-at-risk.toml");

    const STOLEN_AUTHORITY: &str = include_str!("../../../policies/playbooks/stolen-authority.toml");

    fn playbooks() -> Playbooks {
        let books = [QUARANTINE, STOP_MODULE, STOLEN_KEY, SECRET_AT_RISK, STOLEN_AUTHORITY];
        Playbooks::new(books.map(|text| Playbook::parse(text).unwrap())).unwrap()
    }

    fn finding(rule: Rule) -> Finding {
        Finding {
            incident: "incident-1".to_owned(),
            rule,
            subject: "spiffe://home.test/agent/agent-2".to_owned(),
            task: None,
            expected: String::new(),
            seen: String::new(),
        }
    }

    #[test]
    fn every_rule_has_exactly_one_playbook() {
        let mut playbooks = playbooks();
        for rule in Rule::ALL {
            assert!(playbooks.respond(0, &finding(*rule)).contains(&Step::Notify));
        }
        let quarantine = Playbook::parse(QUARANTINE).unwrap();
        let stolen = Playbook::parse(STOLEN_KEY).unwrap();
        let at_risk = Playbook::parse(SECRET_AT_RISK).unwrap();
        let authority = Playbook::parse(STOLEN_AUTHORITY).unwrap();
        let others = [stolen, at_risk, authority];
        let missing = Playbooks::new([quarantine.clone()].into_iter().chain(others.clone()));
        assert!(matches!(missing, Err(SentinelError::Answers { rule: Rule::ModuleViolation, count: 0 })));
        let stop = Playbook::parse(STOP_MODULE).unwrap();
        let twice = Playbooks::new([quarantine.clone(), quarantine, stop].into_iter().chain(others));
        assert!(matches!(twice, Err(SentinelError::Answers { count: 2, .. })));
    }

    #[test]
    fn an_agent_that_misbehaves_loses_everything_and_one_whose_module_did_only_the_task() {
        let mut playbooks = playbooks();
        let all = [Step::RevokeAgent, Step::QuarantineAgent, Step::CancelTask, Step::Notify];
        assert_eq!(playbooks.respond(0, &finding(Rule::RefusalBurst)), all);
        assert_eq!(playbooks.respond(0, &finding(Rule::ModuleViolation)), [Step::CancelTask, Step::Notify]);
    }

    #[test]
    fn beyond_its_budget_a_playbook_only_tells() {
        let mut playbooks = playbooks();
        for number in 0..20 {
            assert_eq!(playbooks.respond(number, &finding(Rule::OrderSize)).len(), 4);
        }
        assert_eq!(playbooks.respond(21, &finding(Rule::OrderSize)), [Step::Notify]);
        assert_eq!(playbooks.respond(i64::MIN, &finding(Rule::OrderSize)).len(), 4);
        assert_eq!(playbooks.respond(i64::MAX, &finding(Rule::OrderSize)).len(), 4);
    }

    #[test]
    fn a_playbook_with_an_unknown_step_rule_or_key_is_refused() {
        for (good, bad) in [
            ("\"notify\"", "\"email\""),
            ("\"order_size\"", "\"order_sizes\""),
            ("name =", "title ="),
            ("budget_per_hour = 20", "budget_per_hour = 0"),
            ("budget_per_hour = 20", "budget_per_hour = -1"),
            ("budget_per_hour = 20\n", ""),
            ("[\"revoke_agent\", ", "[\"notify\", "),
            (", \"notify\"]", "]"),
            ("[when]", "shell = \"true\"\n[when]"),
        ] {
            assert!(QUARANTINE.contains(good), "{good}");
            assert!(Playbook::parse(&QUARANTINE.replacen(good, bad, 1)).is_err(), "{bad}");
        }
        assert!(
            Playbook::parse("name = \"x\"\nsteps = [\"notify\"]\nbudget_per_hour = 1\n[when]\nrule = []")
                .is_err()
        );
    }
}
