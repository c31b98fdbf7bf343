//! The scheduler: which tasks a step has, what each waits for, who has which.
//!
//! Pure: it is told what happened and the time, and answers what to do. A task is the same whoever does it and however
//! often it is tried, so that losing its holder costs time and nothing else.
//!
//! INVARIANT: a task is with one holder at most, and a step begins only when every task of the step before is done.

use std::collections::{BTreeMap, BTreeSet};

use access::vocabulary::TaskKind;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::plan::{Plan, PortfolioStep, Step};

/// How long a holder has for a task before it goes to another, in milliseconds.
pub const TASK_LEASE_MS: i64 = 60_000;
/// How often a task is tried before the run stops and asks for a person.
pub const ATTEMPTS_MAX: u32 = 20;

/// Where a task stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case", deny_unknown_fields)]
pub enum TaskState {
    /// Waits for a holder.
    Ready,
    /// Somebody has it.
    Taken {
        /// SPIFFE ID.
        holder: String,
        /// Until when, in milliseconds since the Unix epoch.
        until_ms: i64,
    },
    /// Done.
    Done,
}

/// One task.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScheduledTask {
    /// Identifier.
    pub id: String,
    /// Kind.
    pub kind: TaskKind,
    /// Portfolio, where it concerns one.
    pub portfolio: Option<String>,
    /// Market day.
    pub market_day: String,
    /// What the module needs to know.
    pub params: Value,
    /// How many have taken it.
    pub attempt: u32,
    /// Tasks that must be done before.
    pub waits_for: BTreeSet<String>,
    /// Where it stands.
    pub state: TaskState,
    /// Grants of the attempt under way: they die with it.
    #[serde(default)]
    pub grants: Vec<String>,
}

/// Who may take a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Taker {
    /// A node agent.
    Agent,
    /// The desk.
    Desk,
}

/// Somebody lost a task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lost {
    /// Task.
    pub task: String,
    /// SPIFFE ID of who had it.
    pub holder: String,
    /// Grants of that attempt.
    pub grants: Vec<String>,
}

/// The scheduler's state.
pub struct Schedule {
    plan: Plan,
    /// Index of the step that is under way.
    step: usize,
    tasks: BTreeMap<String, ScheduledTask>,
    halted: Option<String>,
}

impl Schedule {
    /// Starts at a step, with what is known of its tasks from before a restart.
    #[must_use]
    pub fn new(plan: Plan, step: usize, known: Vec<ScheduledTask>) -> Self {
        let mut schedule = Self { plan, step, tasks: BTreeMap::new(), halted: None };
        schedule.load_step();
        for task in known {
            if schedule.tasks.contains_key(&task.id) {
                schedule.tasks.insert(task.id.clone(), task);
            }
        }
        schedule
    }

    /// The plan.
    #[must_use]
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Index of the step under way.
    #[must_use]
    pub fn step(&self) -> usize {
        self.step
    }

    /// Whether every step is done.
    #[must_use]
    pub fn finished(&self) -> bool {
        self.step >= self.plan.steps.len()
    }

    /// Why no task is handed out, if so.
    #[must_use]
    pub fn halted(&self) -> Option<&str> {
        self.halted.as_deref()
    }

    /// Hands out no task any more.
    pub fn halt(&mut self, reason: &str) {
        self.halted = Some(reason.to_owned());
    }

    /// Hands out tasks again.
    pub fn resume(&mut self) {
        self.halted = None;
    }

    /// The tasks of the step under way.
    pub fn tasks(&self) -> impl Iterator<Item = &ScheduledTask> {
        self.tasks.values()
    }

    /// One task of the step under way.
    #[must_use]
    pub fn task(&self, id: &str) -> Option<&ScheduledTask> {
        self.tasks.get(id)
    }

    /// Begins the next step when the one under way is done. Returns whether there is a new one.
    pub fn advance(&mut self) -> bool {
        if self.finished() || self.tasks.values().any(|task| task.state != TaskState::Done) {
            return false;
        }
        self.step += 1;
        self.load_step();
        !self.finished()
    }

    fn load_step(&mut self) {
        self.tasks = match self.plan.steps.get(self.step) {
            Some(step) => {
                tasks_of(&self.plan, step).into_iter().map(|task| (task.id.clone(), task)).collect()
            }
            None => BTreeMap::new(),
        };
    }

    /// The first task that this holder could take, if any.
    #[must_use]
    pub fn next_for(&self, taker: Taker) -> Option<&ScheduledTask> {
        if self.halted.is_some() {
            return None;
        }
        self.tasks.values().find(|task| {
            task.state == TaskState::Ready
                && taker_of(task.kind) == taker
                && task.waits_for.iter().all(|id| self.is_done(id))
        })
    }

    fn is_done(&self, id: &str) -> bool {
        self.tasks.get(id).is_none_or(|task| task.state == TaskState::Done)
    }

    /// Gives a task to a holder. Returns the task as it now stands, or nothing when it is not to be had.
    pub fn take(&mut self, id: &str, holder: &str, now_ms: i64) -> Option<&ScheduledTask> {
        let task = self.tasks.get_mut(id)?;
        if task.state != TaskState::Ready {
            return None;
        }
        task.attempt = task.attempt.saturating_add(1);
        task.state =
            TaskState::Taken { holder: holder.to_owned(), until_ms: now_ms.saturating_add(TASK_LEASE_MS) };
        Some(task)
    }

    /// Whether a task is with this holder, in this attempt.
    #[must_use]
    pub fn holds(&self, id: &str, holder: &str, attempt: u32) -> bool {
        self.tasks.get(id).is_some_and(|task| task.attempt == attempt && task.is_with(holder))
    }

    /// Remembers the grants of the attempt under way.
    pub fn note_grants(&mut self, id: &str, grants: Vec<String>) {
        if let Some(task) = self.tasks.get_mut(id) {
            task.grants = grants;
        }
    }

    /// A holder says that a task is done. Returns whether it was his to end.
    pub fn done(&mut self, id: &str, holder: &str, attempt: u32) -> bool {
        match self.tasks.get_mut(id) {
            Some(task) if task.attempt == attempt && task.is_with(holder) => {
                task.state = TaskState::Done;
                true
            }
            _ => false,
        }
    }

    /// A holder gives a task back undone. Returns what was lost by it, or nothing when it was not his.
    pub fn give_back(&mut self, id: &str, holder: &str, attempt: u32) -> Option<Lost> {
        if !self.holds(id, holder, attempt) {
            return None;
        }
        self.release_where(|task| task.id == id).pop()
    }

    /// Takes a task off the run, if it is with this holder: nobody has a task cancelled by what they say of it, unless
    /// it is theirs. Returns whether it was.
    pub fn cancel(&mut self, id: &str, holder: &str) -> bool {
        match self.tasks.get_mut(id) {
            Some(task) if task.is_with(holder) => {
                task.state = TaskState::Done;
                true
            }
            _ => false,
        }
    }

    /// Everything that a holder has goes back to the queue: it asks for a new task, or must have none.
    pub fn release(&mut self, holder: &str) -> Vec<Lost> {
        self.release_where(|task| task.is_with(holder))
    }

    /// Tasks whose time is up go back to the queue.
    pub fn expire(&mut self, now_ms: i64) -> Vec<Lost> {
        self.release_where(
            |task| matches!(&task.state, TaskState::Taken { until_ms, .. } if *until_ms < now_ms),
        )
    }

    fn release_where(&mut self, lost: impl Fn(&ScheduledTask) -> bool) -> Vec<Lost> {
        let mut all = Vec::new();
        for task in self.tasks.values_mut().filter(|task| lost(task)) {
            if let TaskState::Taken { holder, .. } = &task.state {
                let grants = std::mem::take(&mut task.grants);
                all.push(Lost { task: task.id.clone(), holder: holder.clone(), grants });
            }
            task.state = TaskState::Ready;
            if task.attempt >= ATTEMPTS_MAX {
                self.halted = Some(format!("task {} failed {ATTEMPTS_MAX} times", task.id));
            }
        }
        all
    }
}

impl ScheduledTask {
    fn is_with(&self, who: &str) -> bool {
        matches!(&self.state, TaskState::Taken { holder, .. } if holder == who)
    }
}

/// Who does tasks of a kind.
#[must_use]
pub fn taker_of(kind: TaskKind) -> Taker {
    match kind {
        TaskKind::Session => Taker::Desk,
        TaskKind::Collect | TaskKind::Analyse | TaskKind::Rebalance | TaskKind::Report => Taker::Agent,
    }
}

/// The tasks of a step: collect for each portfolio, then one session, then analyse, rebalance and report for each.
fn tasks_of(plan: &Plan, step: &Step) -> Vec<ScheduledTask> {
    let name = |kind: TaskKind, portfolio: &str| format!("{}/{kind}/{portfolio}", step.day);
    let mut tasks = Vec::new();
    let session = name(TaskKind::Session, "all");
    let mut collects = BTreeSet::new();
    for part in &step.portfolios {
        let collect = name(TaskKind::Collect, &part.portfolio);
        collects.insert(collect.clone());
        tasks.push(task(plan, step, TaskKind::Collect, Some(part), collect, BTreeSet::new()));
    }
    tasks.push(task(plan, step, TaskKind::Session, None, session.clone(), collects));
    for part in &step.portfolios {
        let mut last = session.clone();
        if part.rebalance {
            let analyse = name(TaskKind::Analyse, &part.portfolio);
            tasks.push(task(plan, step, TaskKind::Analyse, Some(part), analyse.clone(), [last].into()));
            last = name(TaskKind::Rebalance, &part.portfolio);
            tasks.push(task(plan, step, TaskKind::Rebalance, Some(part), last.clone(), [analyse].into()));
        }
        if part.report {
            let report = name(TaskKind::Report, &part.portfolio);
            tasks.push(task(plan, step, TaskKind::Report, Some(part), report, [last].into()));
        }
    }
    tasks
}

fn task(
    plan: &Plan,
    step: &Step,
    kind: TaskKind,
    part: Option<&PortfolioStep>,
    id: String,
    waits_for: BTreeSet<String>,
) -> ScheduledTask {
    ScheduledTask {
        id,
        kind,
        portfolio: part.map(|part| part.portfolio.clone()),
        market_day: step.day.clone(),
        params: params_of(plan, step, kind, part),
        attempt: 0,
        waits_for,
        state: TaskState::Ready,
        grants: Vec::new(),
    }
}

/// What a module is told beyond its task. Everything follows from the plan, so that a task tried again is the same task.
fn params_of(plan: &Plan, step: &Step, kind: TaskKind, part: Option<&PortfolioStep>) -> Value {
    let Some((part, portfolio)) = part.and_then(|part| Some((part, plan.portfolio(&part.portfolio)?))) else {
        let portfolios: Vec<Value> = step
            .portfolios
            .iter()
            .filter_map(|part| Some((part, plan.portfolio(&part.portfolio)?)))
            .map(|(part, portfolio)| {
                json!({
                    "portfolio": part.portfolio, "after": part.after, "symbols": portfolio.symbols,
                    "cash": portfolio.cash,
                })
            })
            .collect();
        return json!({ "portfolios": portfolios });
    };
    match kind {
        TaskKind::Collect => json!({ "source": portfolio.source, "after": part.after }),
        TaskKind::Analyse => json!({ "symbols": portfolio.symbols }),
        TaskKind::Rebalance => {
            json!({ "symbols": portfolio.symbols, "construction": portfolio.construction })
        }
        TaskKind::Report => json!({
            "symbols": portfolio.symbols, "start": portfolio.start, "cash": portfolio.cash,
            "cost_bps": portfolio.cost_bps,
        }),
        TaskKind::Session => json!({}),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::PortfolioPlan;

    fn plan() -> Plan {
        let portfolio = PortfolioPlan {
            name: "core".into(),
            source: "large20".into(),
            symbols: vec!["KO".into()],
            cash: 1_000_000,
            start: "1993-01-04".into(),
            cost_bps: 1,
            construction: json!({}),
            order_max_bps: 500,
        };
        let step = |day: &str, rebalance| Step {
            day: day.into(),
            days: 21,
            portfolios: vec![PortfolioStep {
                portfolio: "core".into(),
                after: None,
                rebalance,
                report: !rebalance,
            }],
        };
        Plan {
            seed: 1,
            days_per_second: None,
            portfolios: vec![portfolio],
            steps: vec![step("1993-01-04", true), step("1993-02-03", false)],
        }
    }

    fn run(schedule: &mut Schedule, taker: Taker, holder: &str) -> Option<String> {
        let id = schedule.next_for(taker)?.id.clone();
        let attempt = schedule.take(&id, holder, 0)?.attempt;
        assert!(schedule.done(&id, holder, attempt));
        Some(id)
    }

    #[test]
    fn a_step_goes_collect_session_analyse_rebalance_then_the_next_step() {
        let mut schedule = Schedule::new(plan(), 0, Vec::new());
        assert!(schedule.next_for(Taker::Desk).is_none());
        assert_eq!(run(&mut schedule, Taker::Agent, "a").as_deref(), Some("1993-01-04/collect/core"));
        assert!(schedule.next_for(Taker::Agent).is_none());
        assert_eq!(run(&mut schedule, Taker::Desk, "d").as_deref(), Some("1993-01-04/session/all"));
        assert_eq!(run(&mut schedule, Taker::Agent, "a").as_deref(), Some("1993-01-04/analyse/core"));
        assert!(!schedule.advance());
        assert_eq!(run(&mut schedule, Taker::Agent, "b").as_deref(), Some("1993-01-04/rebalance/core"));
        assert!(schedule.advance());
        assert_eq!(run(&mut schedule, Taker::Agent, "b").as_deref(), Some("1993-02-03/collect/core"));
        assert_eq!(run(&mut schedule, Taker::Desk, "d").as_deref(), Some("1993-02-03/session/all"));
        assert_eq!(run(&mut schedule, Taker::Agent, "b").as_deref(), Some("1993-02-03/report/core"));
        assert!(!schedule.advance());
        assert!(schedule.finished());
    }

    #[test]
    fn a_lost_task_goes_to_another_and_its_old_holder_cannot_end_it() {
        let mut schedule = Schedule::new(plan(), 0, Vec::new());
        let id = "1993-01-04/collect/core";
        assert_eq!(schedule.take(id, "a", 0).unwrap().attempt, 1);
        assert!(schedule.take(id, "b", 0).is_none(), "a task is with one holder at most");
        assert!(schedule.expire(TASK_LEASE_MS).is_empty());
        assert_eq!(schedule.expire(TASK_LEASE_MS + 1).len(), 1);
        assert_eq!(schedule.take(id, "b", 0).unwrap().attempt, 2);
        assert!(!schedule.done(id, "a", 1), "the old attempt is dead");
        assert!(!schedule.done(id, "b", 1));
        schedule.note_grants(id, vec!["g".into()]);
        let lost = Lost { task: id.into(), holder: "b".into(), grants: vec!["g".into()] };
        assert_eq!(schedule.release("b"), vec![lost], "the grants of an attempt die with it");
    }

    #[test]
    fn a_task_is_cancelled_only_while_it_is_with_the_one_named() {
        let mut schedule = Schedule::new(plan(), 0, Vec::new());
        let id = "1993-01-04/collect/core";
        assert!(!schedule.cancel(id, "a"), "nobody has it yet");
        schedule.take(id, "a", 0).unwrap();
        assert!(!schedule.cancel(id, "b"));
        assert!(schedule.cancel(id, "a"));
        assert!(!schedule.cancel(id, "a"), "it is done with");
        assert!(schedule.next_for(Taker::Desk).is_some(), "the step goes on without it");
    }

    #[test]
    fn a_task_that_always_fails_halts_the_run() {
        let mut schedule = Schedule::new(plan(), 0, Vec::new());
        for attempt in 1..=ATTEMPTS_MAX {
            let id = schedule.next_for(Taker::Agent).unwrap().id.clone();
            schedule.take(&id, "a", 0).unwrap();
            assert!(schedule.give_back(&id, "a", attempt).is_some());
        }
        assert!(schedule.halted().is_some());
        assert!(schedule.next_for(Taker::Agent).is_none());
    }
}
