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
/// Pause before a task that was lost once is tried again, in milliseconds; each further loss doubles it.
pub const RETRY_FIRST_MS: i64 = 50;
/// The longest pause between two tries of one task, in milliseconds: all tries together take about half a minute.
pub const RETRY_MAX_MS: i64 = 2_000;
/// Longest reason that is kept of a task that failed, in characters: it may be in a module's own words.
const REASON_CHARS_MAX: usize = 300;

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

/// How often a task was lost since management started, and when it may be tried again.
#[derive(Debug, Clone, Copy, Default)]
struct Tries {
    lost: u32,
    /// Milliseconds since the Unix epoch.
    not_before_ms: i64,
}

/// The scheduler's state.
pub struct Schedule {
    plan: Plan,
    /// Index of the step that is under way.
    step: usize,
    tasks: BTreeMap<String, ScheduledTask>,
    /// Tasks of the step that were lost. Not stored: who starts again after mending the cause has all tries anew.
    tries: BTreeMap<String, Tries>,
    halted: Option<String>,
    /// Whether it stands still because a task was lost too often, and not because a person stopped it.
    stuck: bool,
}

impl Schedule {
    /// Starts at a step, with what is known of its tasks from before a restart.
    #[must_use]
    pub fn new(plan: Plan, step: usize, known: Vec<ScheduledTask>) -> Self {
        let mut schedule =
            Self { plan, step, tasks: BTreeMap::new(), tries: BTreeMap::new(), halted: None, stuck: false };
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

    /// Which task was lost too often and why, when that is what the run stands still for; nothing while a person has
    /// stopped it.
    #[must_use]
    pub fn stuck(&self) -> Option<&str> {
        self.halted.as_deref().filter(|_| self.stuck)
    }

    /// Hands out no task any more.
    pub fn halt(&mut self, reason: &str) {
        self.halted = Some(reason.to_owned());
        self.stuck = false;
    }

    /// Hands out tasks again, each as if it had never been lost.
    pub fn resume(&mut self) {
        self.halted = None;
        self.stuck = false;
        self.tries.clear();
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
        self.tries.clear();
        self.tasks = match self.plan.steps.get(self.step) {
            Some(step) => {
                tasks_of(&self.plan, step).into_iter().map(|task| (task.id.clone(), task)).collect()
            }
            None => BTreeMap::new(),
        };
    }

    /// The first task that this holder could take now, if any.
    #[must_use]
    pub fn next_for(&self, taker: Taker, now_ms: i64) -> Option<&ScheduledTask> {
        self.ready_for(taker).find(|task| self.pause_of(&task.id, now_ms) == 0)
    }

    /// In how many milliseconds the first of the tasks that only wait for their next try may be taken.
    #[must_use]
    pub fn pause_for(&self, taker: Taker, now_ms: i64) -> Option<i64> {
        self.ready_for(taker).map(|task| self.pause_of(&task.id, now_ms)).min()
    }

    /// Tasks that nothing keeps from this holder, but for the pause between two tries.
    fn ready_for(&self, taker: Taker) -> impl Iterator<Item = &ScheduledTask> {
        self.tasks.values().filter(move |task| {
            self.halted.is_none()
                && task.state == TaskState::Ready
                && taker_of(task.kind) == taker
                && task.waits_for.iter().all(|id| self.is_done(id))
        })
    }

    fn pause_of(&self, id: &str, now_ms: i64) -> i64 {
        let pause = self.tries.get(id).map_or(0, |tries| tries.not_before_ms.saturating_sub(now_ms));
        // A pause longer than the longest was made by a clock that has been set back since: it is over.
        if (0..=RETRY_MAX_MS).contains(&pause) { pause } else { 0 }
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

    /// Takes a task back that could not be handed out, through no fault of its holder: the attempt does not count.
    pub fn untake(&mut self, id: &str, holder: &str) {
        if let Some(task) = self.tasks.get_mut(id).filter(|task| task.is_with(holder)) {
            task.state = TaskState::Ready;
            task.attempt = task.attempt.saturating_sub(1);
        }
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

    /// A holder gives a task back undone, and says why. Returns what was lost by it, or nothing when it was not his.
    pub fn give_back(
        &mut self,
        id: &str,
        holder: &str,
        attempt: u32,
        (now_ms, why): (i64, &str),
    ) -> Option<Lost> {
        if !self.holds(id, holder, attempt) {
            return None;
        }
        self.release_where(|task| task.id == id, now_ms, why).pop()
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
    pub fn release(&mut self, holder: &str, now_ms: i64, why: &str) -> Vec<Lost> {
        self.release_where(|task| task.is_with(holder), now_ms, why)
    }

    /// Tasks whose time is up go back to the queue.
    pub fn expire(&mut self, now_ms: i64, why: &str) -> Vec<Lost> {
        let over = |task: &ScheduledTask| matches!(&task.state, TaskState::Taken { until_ms, .. } if *until_ms < now_ms);
        self.release_where(over, now_ms, why)
    }

    fn release_where(&mut self, lost: impl Fn(&ScheduledTask) -> bool, now_ms: i64, why: &str) -> Vec<Lost> {
        let mut all = Vec::new();
        for task in self.tasks.values_mut().filter(|task| lost(task)) {
            if let TaskState::Taken { holder, .. } = &task.state {
                let grants = std::mem::take(&mut task.grants);
                all.push(Lost { task: task.id.clone(), holder: holder.clone(), grants });
            }
            task.state = TaskState::Ready;
            let tries = self.tries.entry(task.id.clone()).or_default();
            tries.lost = tries.lost.saturating_add(1);
            tries.not_before_ms = now_ms.saturating_add(retry_pause_ms(tries.lost));
            // Who was stopped by a person stays so, whatever fails meanwhile: only people clear that.
            if tries.lost >= ATTEMPTS_MAX && self.halted.is_none() {
                self.halted = Some(stuck_words(&task.id, why));
                self.stuck = true;
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

/// The pause after a task was lost for the n-th time, in milliseconds.
fn retry_pause_ms(lost: u32) -> i64 {
    let doubled = 1_i64.checked_shl(lost.saturating_sub(1)).unwrap_or(i64::MAX);
    RETRY_FIRST_MS.saturating_mul(doubled).clamp(RETRY_FIRST_MS, RETRY_MAX_MS)
}

/// What is said of a task that was lost too often; the last reason may be a module's words.
pub(crate) fn stuck_words(task: &str, why: &str) -> String {
    let why: String = why.chars().filter(|letter| !letter.is_control()).take(REASON_CHARS_MAX).collect();
    format!("task {task} failed {ATTEMPTS_MAX} times; the last reason: {why}")
}

/// Why a task ended undone, as its holder said it: in words, or as an object with an `error`.
pub(crate) fn reason_of(detail: &Value) -> String {
    let said = detail.get("error").unwrap_or(detail);
    said.as_str().map_or_else(|| said.to_string(), str::to_owned)
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
        let id = schedule.next_for(taker, 0)?.id.clone();
        let attempt = schedule.take(&id, holder, 0)?.attempt;
        assert!(schedule.done(&id, holder, attempt));
        Some(id)
    }

    #[test]
    fn a_step_goes_collect_session_analyse_rebalance_then_the_next_step() {
        let mut schedule = Schedule::new(plan(), 0, Vec::new());
        assert!(schedule.next_for(Taker::Desk, 0).is_none());
        assert_eq!(run(&mut schedule, Taker::Agent, "a").as_deref(), Some("1993-01-04/collect/core"));
        assert!(schedule.next_for(Taker::Agent, 0).is_none());
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
        assert!(schedule.expire(TASK_LEASE_MS, "late").is_empty());
        assert_eq!(schedule.expire(TASK_LEASE_MS + 1, "late").len(), 1);
        assert_eq!(schedule.take(id, "b", 0).unwrap().attempt, 2);
        assert!(!schedule.done(id, "a", 1), "the old attempt is dead");
        assert!(!schedule.done(id, "b", 1));
        schedule.note_grants(id, vec!["g".into()]);
        let lost = Lost { task: id.into(), holder: "b".into(), grants: vec!["g".into()] };
        assert_eq!(schedule.release("b", 0, "crashed"), vec![lost], "the grants of an attempt die with it");
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
        assert!(schedule.next_for(Taker::Desk, 0).is_some(), "the step goes on without it");
    }

    /// Fails the first task over and over, each time as soon as it may be tried; the times at which it was.
    fn fail_until_stuck(schedule: &mut Schedule, holder: &str) -> Vec<i64> {
        let (mut now, mut times) = (1_000, Vec::new());
        while schedule.halted().is_none() {
            let Some(task) = schedule.next_for(Taker::Agent, now) else {
                now += schedule.pause_for(Taker::Agent, now).unwrap();
                continue;
            };
            let id = task.id.clone();
            let attempt = schedule.take(&id, holder, now).unwrap().attempt;
            assert!(schedule.give_back(&id, holder, attempt, (now, "no\u{1b}such source")).is_some());
            times.push(now);
        }
        times
    }

    #[test]
    fn a_task_that_always_fails_is_tried_less_and_less_often_and_then_halts_the_run() {
        let mut schedule = Schedule::new(plan(), 0, Vec::new());
        let times = fail_until_stuck(&mut schedule, "a");
        let pauses: Vec<i64> = times.windows(2).map(|pair| pair[1] - pair[0]).collect();
        assert_eq!(pauses[..7], [50, 100, 200, 400, 800, 1_600, 2_000]);
        assert!(pauses[7..].iter().all(|pause| *pause == RETRY_MAX_MS), "{pauses:?}");
        assert_eq!(times.len(), ATTEMPTS_MAX as usize);
        let said = "task 1993-01-04/collect/core failed 20 times; the last reason: nosuch source";
        assert_eq!((schedule.halted(), schedule.stuck()), (Some(said), Some(said)));
        assert!(schedule.next_for(Taker::Agent, i64::MAX).is_none());
        schedule.resume();
        assert!(schedule.next_for(Taker::Agent, 0).is_some(), "who goes on has all tries anew");
        assert_eq!(fail_until_stuck(&mut schedule, "a").len(), ATTEMPTS_MAX as usize);
    }

    #[test]
    fn who_starts_again_has_all_tries_anew_and_old_attempts_stay_dead() {
        let mut schedule = Schedule::new(plan(), 0, Vec::new());
        fail_until_stuck(&mut schedule, "a");
        let mut again = Schedule::new(plan(), 0, schedule.tasks().cloned().collect());
        let id = again.next_for(Taker::Agent, 0).unwrap().id.clone();
        assert_eq!(again.take(&id, "a", 0).unwrap().attempt, ATTEMPTS_MAX + 1);
        again.give_back(&id, "a", ATTEMPTS_MAX + 1, (0, "again")).unwrap();
        assert!(again.halted().is_none());
    }

    #[test]
    fn another_task_is_not_kept_waiting_by_one_that_failed() {
        let mut schedule = Schedule::new(plan(), 0, Vec::new());
        let id = "1993-01-04/collect/core";
        schedule.take(id, "a", 0).unwrap();
        schedule.give_back(id, "a", 1, (0, "failed")).unwrap();
        assert_eq!(
            (schedule.pause_for(Taker::Agent, 0), schedule.pause_for(Taker::Desk, 0)),
            (Some(50), None)
        );
        assert!(schedule.next_for(Taker::Agent, 49).is_none());
        assert!(schedule.next_for(Taker::Agent, 50).is_some());
        assert!(schedule.next_for(Taker::Agent, -100_000).is_some(), "the clock was set back");
    }

    #[test]
    fn what_a_person_stopped_is_not_taken_for_a_failure() {
        let mut schedule = Schedule::new(plan(), 0, Vec::new());
        let id = "1993-01-04/collect/core";
        for attempt in 1..ATTEMPTS_MAX {
            schedule.take(id, "a", 0).unwrap();
            schedule.give_back(id, "a", attempt, (0, "failed")).unwrap();
        }
        schedule.take(id, "a", 0).unwrap();
        schedule.halt("stopped by a person");
        schedule.give_back(id, "a", ATTEMPTS_MAX, (0, "failed")).unwrap();
        assert_eq!((schedule.halted(), schedule.stuck()), (Some("stopped by a person"), None));
    }
}
