//! Commands that show how the system stands, and those that stop or enable something.

use std::collections::BTreeMap;

use identity::{PeerClass, SpiffeId};
use management::cases::{Approval, Incident, Proposal, RevocationProof};
use management::plan::Plan;
use management::projection::{GrantView, MemberView, OrderView, Projection};
use management::routes::{AgentView, Aim, ProposeBody, Summary, process_name};
use wire::journal::unix_ms;
use wire::layout::{Layout, read_json};

use crate::cli::{Ask, KillArgs, ListArgs, TargetArgs};
use crate::explain::read_log;
use crate::operator::Operator;
use crate::output::{Failure, Outcome, dollars, json, line, say, table};

/// How the run stands.
pub(crate) async fn status(ask: &Ask) -> Outcome {
    let summary: Summary = match Operator::of(ask)?.get_if_running("/v1/summary").await? {
        Some(summary) => summary,
        None => {
            let layout = Layout::new(&ask.dir.dir);
            let plan: Plan = read_json(&layout.plan()).map_err(Failure::broken)?;
            summary_of_log(&plan, &from_log(ask)?, layout.kill_latch().exists())
        }
    };
    if ask.json {
        return json(&summary);
    }
    let counts = &summary.counts;
    line(&format!("state        {}", summary.state));
    line(&format!("market day   {} (step {} of {})", summary.market_day, summary.steps.0, summary.steps.1));
    line(&format!("equity       {} (start {})", dollars(summary.equity), dollars(summary.equity_start)));
    line(&format!("orders       {} ({} filled, {} rejected)", counts.orders, counts.fills, counts.rejected));
    line(&format!("grants       {} issued, {} denied", counts.grants_issued, counts.grants_denied));
    line(&format!("refused      {} requests", counts.requests_refused));
    line(&format!("turned away  {} connections at the listeners", counts.handshakes_refused));
    line(&format!("tasks        {} done, {} given to another", counts.tasks_done, counts.tasks_lost));
    line(&format!("revocations  {} (log at {})", counts.revocations, summary.revision));
    line(&format!("incidents    {} open", summary.incidents_open));
    if summary.halted.is_some() {
        say(MEND);
    }
    Ok(())
}

/// What to do when a task failed too often.
pub(crate) const MEND: &str = "mend the cause and start `trader up` anew (stop it first where it still runs): it tries \
                               again from there; the agents' words are in processes/NAME/output.log";

/// What management would have answered, as far as its log tells.
fn summary_of_log(plan: &Plan, log: &Projection, latched: bool) -> Summary {
    let start: BTreeMap<String, i64> =
        plan.portfolios.iter().map(|portfolio| (portfolio.name.clone(), portfolio.cash)).collect();
    let halted = log.stuck();
    let step = plan.steps.iter().position(|step| step.day == log.step_day).unwrap_or(0);
    Summary {
        state: match &halted {
            _ if log.killed || latched => {
                "not running; everything was stopped, two people must clear it".into()
            }
            Some(why) => format!("not running; {why}"),
            None if log.ended => "ended".to_owned(),
            None => "not running".to_owned(),
        },
        market_day: log.market_day.clone(),
        steps: (if log.ended { plan.steps.len() } else { step }, plan.steps.len()),
        counts: log.counts.clone(),
        equity: log.equity_now(&start),
        equity_start: start.values().fold(0_i64, |sum, cash| sum.saturating_add(*cash)),
        reports: log.reports.clone(),
        ended: log.ended,
        revision: log.revision,
        incidents_open: log.incidents.values().filter(|incident| incident.open).count(),
        halted,
    }
}

/// Everyone who has an identity.
pub(crate) async fn agents(ask: &Ask) -> Outcome {
    let agents: Vec<AgentView> = match Operator::of(ask)?.get_if_running("/v1/agents").await? {
        Some(agents) => agents,
        None => agents_of_log(&from_log(ask)?),
    };
    if ask.json {
        return json(&agents);
    }
    let now = unix_ms() / 1_000;
    let rows: Vec<Vec<String>> = agents
        .into_iter()
        .map(|agent| {
            let hours = (agent.expires - now) / 3_600;
            vec![
                agent.name,
                agent.class,
                agent.status,
                agent.epoch.to_string(),
                format!("{hours} h"),
                agent.task.unwrap_or_default(),
            ]
        })
        .collect();
    table(&["name", "class", "status", "epoch", "expires in", "task"], &rows);
    Ok(())
}

/// Everyone who enrolled, as far as the log tells; nobody has a task while nothing runs.
fn agents_of_log(log: &Projection) -> Vec<AgentView> {
    let view = |(id, member): (&String, &MemberView)| {
        let id: SpiffeId = id.parse().ok()?;
        Some(AgentView {
            name: process_name(&id),
            id: id.to_string(),
            class: PeerClass::of(&id).map_or("", PeerClass::as_str).to_owned(),
            epoch: member.epoch,
            status: member.status.to_owned(),
            expires: member.expires,
            task: None,
        })
    };
    log.members.iter().filter_map(view).collect()
}

/// The name that a process goes by, from its SPIFFE ID.
fn short_name(id: &str) -> String {
    id.parse().map_or_else(|_| id.to_owned(), |id| process_name(&id))
}

fn listed(path: &str, args: &ListArgs) -> String {
    match args.limit {
        Some(limit) => format!("{path}?limit={limit}"),
        None => path.to_owned(),
    }
}

/// What the log says when management does not answer. The log is on this machine, and it is what management would have
/// answered from.
fn from_log(ask: &Ask) -> Result<Projection, Failure> {
    let entries = read_log(&Layout::new(&ask.dir.dir)).map_err(|failure| {
        Failure::refused(format!(
            "the system is not running (start it with `trader up`), and its log cannot be read: {}",
            failure.words()
        ))
    })?;
    say("the system is not running; this is what its log says");
    let mut projection = Projection::default();
    for entry in &entries {
        projection.apply(entry.at_ms, &entry.process, &entry.record);
    }
    Ok(projection)
}

fn latest<T>(mut rows: Vec<T>, limit: Option<usize>) -> Vec<T> {
    rows.drain(..rows.len().saturating_sub(limit.unwrap_or(usize::MAX)));
    rows
}

/// The latest grants.
pub(crate) async fn grants(args: &ListArgs) -> Outcome {
    let path = listed("/v1/grants", args);
    let grants: Vec<GrantView> = match Operator::of(&args.ask)?.get_if_running(&path).await? {
        Some(grants) => grants,
        None => latest(from_log(&args.ask)?.grants_at(unix_ms() / 1_000), args.limit),
    };
    if args.ask.json {
        return json(&grants);
    }
    let rows: Vec<Vec<String>> = grants
        .into_iter()
        .map(|grant| {
            let holder = short_name(&grant.holder);
            vec![grant.id, grant.status, holder, grant.audience, grant.actions.join(","), grant.task]
        })
        .collect();
    table(&["id", "status", "holder", "audience", "actions", "task"], &rows);
    Ok(())
}

/// Orders.
pub(crate) async fn orders(args: &ListArgs) -> Outcome {
    let path = listed("/v1/orders", args);
    let orders: Vec<OrderView> = match Operator::of(&args.ask)?.get_if_running(&path).await? {
        Some(orders) => orders,
        None => latest(from_log(&args.ask)?.orders_in_order(), args.limit),
    };
    if args.ask.json {
        return json(&orders);
    }
    let rows: Vec<Vec<String>> = orders
        .into_iter()
        .map(|order| {
            vec![
                order.id,
                order.symbol,
                order.side,
                order.quantity.to_string(),
                dollars(order.price),
                order.market_time,
                order.status,
                order.reason,
            ]
        })
        .collect();
    table(&["id", "symbol", "side", "quantity", "price", "market time", "status", "reason"], &rows);
    Ok(())
}

/// Incidents.
pub(crate) async fn incidents(ask: &Ask) -> Outcome {
    let incidents: Vec<Incident> = match Operator::of(ask)?.get_if_running("/v1/incidents").await? {
        Some(incidents) => incidents,
        None => from_log(ask)?.incidents.into_values().collect(),
    };
    if ask.json {
        return json(&incidents);
    }
    let rows: Vec<Vec<String>> = incidents
        .into_iter()
        .map(|incident| {
            let state = if incident.open { "open" } else { "closed" };
            let subject = short_name(&incident.subject);
            vec![
                incident.id,
                state.to_owned(),
                incident.rule,
                subject,
                incident.expected,
                incident.seen,
                incident.response.join(","),
            ]
        })
        .collect();
    table(&["id", "state", "rule", "subject", "expected", "seen", "response"], &rows);
    Ok(())
}

/// Revokes something; answers with the proof.
pub(crate) async fn strike(args: &TargetArgs, path: &str) -> Outcome {
    let aim = Aim { target: args.target.clone(), reason: args.reason.clone() };
    let proof: RevocationProof = Operator::of(&args.ask)?.post(path, &aim).await?;
    proven(&args.ask, &proof)
}

pub(crate) fn proven(ask: &Ask, proof: &RevocationProof) -> Outcome {
    if ask.json {
        json(proof)?;
    } else {
        line(&format!(
            "revocation {} {} in {} ms: {} guards acknowledged, {} had lost their lease",
            proof.revision,
            if proof.proven { "proven" } else { "NOT proven" },
            proof.took_ms,
            proof.acknowledged.len(),
            proof.lapsed.len(),
        ));
    }
    if proof.proven { Ok(()) } else { Err(Failure::broken("the revocation is in force, but not proven yet")) }
}

/// Stops everything, or asks that it go on.
pub(crate) async fn kill(args: &KillArgs) -> Outcome {
    if args.clear {
        return enable(&args.ask, "clear_kill", "everything", args.approve.as_deref()).await;
    }
    // The latch needs nothing but this machine's file system, and the desk reads it at every order: it is set even when
    // management is gone.
    let latch = Layout::new(&args.ask.dir.dir).kill_latch();
    let latched = std::fs::write(&latch, format!("stopped by {}: {}\n", args.ask.operator, args.reason));
    let aim = Aim { target: "everything".into(), reason: args.reason.clone() };
    let answer = match Operator::of(&args.ask) {
        Ok(operator) => operator.post::<RevocationProof>("/v1/kill", &aim).await,
        Err(failure) => Err(failure),
    };
    match (answer, latched) {
        (Ok(proof), _) => proven(&args.ask, &proof),
        (Err(failure), Ok(())) => {
            say(&format!("management does not answer ({})", failure.words()));
            line("the kill latch of this machine is set: no order leaves its desk");
            Ok(())
        }
        (Err(failure), Err(error)) => {
            Err(Failure::broken(format!("nothing was stopped: {}; the latch: {error}", failure.words())))
        }
    }
}

/// Proposals that wait for a second person.
pub(crate) async fn approvals(ask: &Ask) -> Outcome {
    let open = open_proposals(&Operator::of(ask)?).await?;
    if ask.json {
        return json(&open);
    }
    let now = unix_ms() / 1_000;
    let rows: Vec<Vec<String>> = open
        .into_iter()
        .map(|proposal| {
            let minutes = format!("{} min", (proposal.expires - now + 59) / 60);
            let by = short_name(&proposal.proposer);
            vec![proposal.id, proposal.action, proposal.target, by, minutes]
        })
        .collect();
    table(&["id", "action", "target", "proposed by", "expires in"], &rows);
    Ok(())
}

async fn open_proposals(operator: &Operator) -> Result<Vec<Proposal>, Failure> {
    let now = unix_ms() / 1_000;
    let mut proposals: Vec<Proposal> = operator.get("/v1/proposals").await?;
    proposals.retain(|proposal| proposal.is_open(now));
    Ok(proposals)
}

/// Proposes something that takes two people, or approves another person's proposal of exactly that.
pub(crate) async fn enable(ask: &Ask, action: &str, target: &str, approve: Option<&str>) -> Outcome {
    let operator = Operator::of(ask)?;
    let proposal: Proposal = match approve {
        Some(id) => {
            // What the person typed goes with the number, so that management can compare the two; the digest is that of what
            // is listed under the number now.
            let listed = open_proposals(&operator).await?.into_iter().find(|proposal| proposal.id == id);
            let approval = Approval {
                proposal: id.to_owned(),
                action: action.to_owned(),
                target: target.to_owned(),
                digest: listed.map(|proposal| proposal.digest()).unwrap_or_default(),
            };
            operator.post("/v1/approvals", &approval).await?
        }
        None => {
            operator
                .post("/v1/proposals", &ProposeBody { action: action.into(), target: target.into() })
                .await?
        }
    };
    if ask.json {
        return json(&proposal);
    }
    if proposal.done {
        line(&format!(
            "approved and done: {} {} (proposal {} of {})",
            proposal.action,
            proposal.target,
            proposal.id,
            short_name(&proposal.proposer)
        ));
    } else {
        let command = match action {
            "clear_kill" => "kill --clear".to_owned(),
            _ => format!("agent reinstate {target}"),
        };
        line(&format!("proposal {}", proposal.id));
        say(&format!(
            "another person approves it within 30 minutes: trader {command} --approve {} --as NAME --dir {}",
            proposal.id,
            ask.dir.dir.display()
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use audit::record::Record;
    use management::plan::{PortfolioPlan, Step};

    use super::*;

    fn plan() -> Plan {
        let portfolio = |name: &str| PortfolioPlan {
            name: name.into(),
            source: name.into(),
            symbols: vec!["KO".into()],
            cash: 100,
            start: "1993-01-04".into(),
            cost_bps: 1,
            construction: serde_json::json!({}),
            order_max_bps: 500,
        };
        let step = |day: &str| Step { day: day.into(), days: 21, portfolios: Vec::new() };
        Plan {
            seed: 1,
            days_per_second: None,
            portfolios: vec![portfolio("core"), portfolio("tech")],
            steps: ["1993-01-04", "1993-02-03", "1993-03-04"].map(step).into(),
        }
    }

    fn log_of(records: &[Record]) -> Projection {
        let mut log = Projection::default();
        records.iter().for_each(|record| log.apply(0, "management", record));
        log
    }

    #[test]
    fn a_system_that_does_not_run_tells_from_its_log_how_it_stands() {
        let created = Record::TaskCreated {
            task: "1993-02-03/collect/core".into(),
            task_kind: "collect".into(),
            portfolio: Some("core".into()),
            market_day: "1993-02-03".into(),
        };
        let closed = Record::DayClosed {
            portfolio: "core".into(),
            market_day: "1993-01-04".into(),
            equity: 150,
            cash: 0,
            closes: BTreeMap::new(),
        };
        let failed = Record::TaskEnded {
            task: "1993-02-03/collect/core".into(),
            holder: "a".into(),
            outcome: "failed".into(),
            detail: serde_json::json!({ "error": "no such source" }),
        };
        let mut records = vec![created, closed];
        let summary = summary_of_log(&plan(), &log_of(&records), false);
        assert_eq!((summary.state.as_str(), summary.steps, summary.ended), ("not running", (1, 3), false));
        assert_eq!((summary.equity, summary.equity_start), (250, 200));

        records.extend(std::iter::repeat_n(failed, 20));
        let summary = summary_of_log(&plan(), &log_of(&records), false);
        assert!(summary.halted.as_deref().is_some_and(|why| why.ends_with("no such source")), "{summary:?}");
        assert!(summary.state.contains("1993-02-03/collect/core failed 20 times"), "{summary:?}");
        let latched = summary_of_log(&plan(), &log_of(&records), true);
        assert!(latched.state.contains("two people"), "the latch alone stops everything: {latched:?}");

        records.push(Record::RunEnded { market_day: "1993-03-04".into() });
        records.push(Record::Started { program: String::new() });
        let summary = summary_of_log(&plan(), &log_of(&records), false);
        assert_eq!((summary.state.as_str(), summary.steps, summary.ended), ("ended", (3, 3), true));
    }

    #[test]
    fn whoever_enrolled_is_listed_from_the_log() {
        let id = "spiffe://example.test/agent/agent-1";
        let log = log_of(&[
            Record::Enrolled { id: id.into(), epoch: 3, key: String::new(), expires: 9 },
            Record::Quarantined { agent: id.into(), reason: "test".into() },
        ]);
        let agents = agents_of_log(&log);
        let [agent] = agents.as_slice() else { panic!("{agents:?}") };
        assert_eq!((agent.name.as_str(), agent.class.as_str(), agent.epoch), ("agent-1", "agents", 3));
        assert_eq!((agent.status.as_str(), agent.expires), ("quarantined", 9));
    }
}
