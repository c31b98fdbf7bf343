//! Commands that show how the system stands, and those that stop or enable something.

use management::cases::{Incident, Proposal, RevocationProof};
use management::projection::{GrantView, OrderView, Projection};
use management::routes::{AgentView, Aim, ProposeBody, Summary, process_name};
use wire::journal::unix_ms;
use wire::layout::Layout;

use crate::cli::{Ask, KillArgs, ListArgs, TargetArgs};
use crate::explain::read_log;
use crate::operator::Operator;
use crate::output::{Failure, Outcome, dollars, json, line, say, table};

/// How the run stands.
pub(crate) async fn status(ask: &Ask) -> Outcome {
    let summary: Summary = Operator::of(ask)?.get("/v1/summary").await?;
    if ask.json {
        return json(&summary);
    }
    let counts = &summary.counts;
    line(&format!("state        {}", summary.state));
    line(&format!("market day   {} (step {} of {})", summary.market_day, summary.steps.0, summary.steps.1));
    line(&format!("equity       {} (start {})", dollars(summary.equity), dollars(summary.equity_start)));
    line(&format!("orders       {} ({} filled, {} rejected)", counts.orders, counts.fills, counts.rejected));
    line(&format!("grants       {} issued, {} denied", counts.grants_issued, counts.grants_denied));
    line(&format!("tasks        {} done, {} given to another", counts.tasks_done, counts.tasks_lost));
    line(&format!("revocations  {} (log at {})", counts.revocations, summary.revision));
    line(&format!("incidents    {} open", summary.incidents_open));
    Ok(())
}

/// Everyone who has an identity.
pub(crate) async fn agents(ask: &Ask) -> Outcome {
    let agents: Vec<AgentView> = Operator::of(ask)?.get("/v1/agents").await?;
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
fn from_log(ask: &Ask, failure: Failure) -> Result<Projection, Failure> {
    let layout = Layout::new(&ask.dir.dir);
    let Ok(entries) = read_log(&layout) else { return Err(failure) };
    say("the system is not running; this is what its log says");
    let mut projection = Projection::default();
    for entry in &entries {
        projection.apply(entry.at_ms, &entry.process, &entry.record);
    }
    Ok(projection)
}

fn sorted(mut orders: Vec<OrderView>) -> Vec<OrderView> {
    orders.sort_by(|left, right| (&left.market_time, &left.id).cmp(&(&right.market_time, &right.id)));
    orders
}

fn latest<T>(mut rows: Vec<T>, limit: Option<usize>) -> Vec<T> {
    rows.drain(..rows.len().saturating_sub(limit.unwrap_or(usize::MAX)));
    rows
}

/// The latest grants.
pub(crate) async fn grants(args: &ListArgs) -> Outcome {
    let grants: Vec<GrantView> = match Operator::of(&args.ask)?.get(&listed("/v1/grants", args)).await {
        Ok(grants) => grants,
        Err(failure) => latest(from_log(&args.ask, failure)?.grants_at(unix_ms() / 1_000), args.limit),
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
    let orders: Vec<OrderView> = match Operator::of(&args.ask)?.get(&listed("/v1/orders", args)).await {
        Ok(orders) => orders,
        Err(failure) => {
            latest(sorted(from_log(&args.ask, failure)?.orders.into_values().collect()), args.limit)
        }
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
    let incidents: Vec<Incident> = Operator::of(ask)?.get("/v1/incidents").await?;
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

fn proven(ask: &Ask, proof: &RevocationProof) -> Outcome {
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

/// Proposes something that takes two people, or approves another person's proposal.
pub(crate) async fn enable(ask: &Ask, action: &str, target: &str, approve: Option<&str>) -> Outcome {
    let operator = Operator::of(ask)?;
    let proposal: Proposal = match approve {
        Some(id) => operator.post("/v1/approvals", &Aim { target: id.into(), reason: String::new() }).await?,
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
        line(&format!("done: {} {}", proposal.action, proposal.target));
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
