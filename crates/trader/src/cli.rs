//! The commands and their flags.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::enrol_command::{EnrolArgs, RemoveArgs, TicketCommand};
use crate::keys_command::KeysCommand;
use crate::output::{Failure, Outcome, say};
use crate::secret_command::SecretCommand;
use crate::{audit_log, data, enrol_command, explain, keys_command, processes, secret_command, show, up};

/// Trades stocks by itself, in processes that do not trust each other.
#[derive(Parser)]
#[command(name = "trader", version, about, propagate_version = true, max_term_width = 110)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

/// Where the state is.
#[derive(Args, Clone, Debug)]
pub(crate) struct Dir {
    /// State directory
    #[arg(long, value_name = "DIR", default_value = ".trader", global = true)]
    pub(crate) dir: PathBuf,
}

/// Who asks, and how the answer is printed.
#[derive(Args, Clone, Debug)]
pub(crate) struct Ask {
    #[command(flatten)]
    pub(crate) dir: Dir,
    /// Operator in whose name it is asked; his identity lies in DIR/operators/NAME
    #[arg(long = "as", value_name = "NAME", default_value = "owner")]
    pub(crate) operator: String,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Subcommand)]
enum Command {
    /// Start the whole system on this machine, as separate processes
    Up(up::UpArgs),
    /// Make a state directory, and choose where the authorities' keys live: in a sealed file or in an HSM
    Init(keys_command::InitArgs),
    /// Show how the run stands; money in its JSON is in millionths of a dollar
    Status(Ask),
    /// Agents: list, enrol, revoke, reinstate, remove
    #[command(subcommand)]
    Agent(AgentCommand),
    /// Keys: status, rotate, taint; of domains: domains, rewrap, destroy; of the stores: shares, recover
    #[command(subcommand)]
    Keys(KeysCommand),
    /// Tickets: create, list
    #[command(subcommand)]
    Ticket(TicketCommand),
    /// Secrets that management keeps for the desk and agents: put, list, remove
    #[command(subcommand)]
    Secret(SecretCommand),
    /// Grants: list, revoke
    #[command(subcommand)]
    Grant(GrantCommand),
    /// Orders: list
    #[command(subcommand)]
    Order(OrderCommand),
    /// What waits for a second person: list
    #[command(subcommand)]
    Approval(ApprovalCommand),
    /// Incidents: list
    #[command(subcommand)]
    Incident(IncidentCommand),
    /// Stop everything: no grant is good any more, no order leaves
    Kill(KillArgs),
    /// Audit log: verify
    #[command(subcommand)]
    Audit(AuditCommand),
    /// Print the whole chain behind an order: data, model, module, grant, checks, fill
    Explain(explain::ExplainArgs),
    /// Market data: check and import files
    #[command(subcommand)]
    Data(data::DataCommand),
    /// Run one process of the system; started by `trader up`
    #[command(hide = true)]
    Process(processes::ProcessArgs),
}

#[derive(Subcommand)]
enum AgentCommand {
    /// List everyone who has an identity
    List(Ask),
    /// Revoke an agent's identity; its work goes to the others
    Revoke(TargetArgs),
    /// Bring a quarantined agent back; takes a second person
    Reinstate(TwoPersonArgs),
    /// Redeem a ticket for an identity, on the node that it was made for
    Enrol(EnrolArgs),
    /// End a member's identity for good; a new ticket lets its name enrol anew
    Remove(RemoveArgs),
}

#[derive(Subcommand)]
enum GrantCommand {
    /// List the latest grants
    List(ListArgs),
    /// Revoke a grant
    Revoke(TargetArgs),
}

#[derive(Subcommand)]
enum OrderCommand {
    /// List orders by market day, with their fills: the same in every run with the same seed
    ///
    /// In JSON every price and fee is a whole number of millionths of a dollar (25000000 is $25.00), and quantities are
    /// shares. `price` is the price of the fill once there is one, and the reference price before. Which agent made an
    /// order is no part of it; `trader explain ORDER` tells.
    List(ListArgs),
}

#[derive(Subcommand)]
enum ApprovalCommand {
    /// List open proposals: what a second person would sign
    List(Ask),
}

#[derive(Subcommand)]
enum IncidentCommand {
    /// List incidents
    List(Ask),
}

#[derive(Subcommand)]
enum AuditCommand {
    /// Recompute the whole log and every journal from the files, and name the first entry that was changed
    Verify(audit_log::VerifyArgs),
}

/// Lists the latest.
#[derive(Args)]
pub(crate) struct ListArgs {
    #[command(flatten)]
    pub(crate) ask: Ask,
    /// Only the latest so many
    #[arg(long, value_name = "N")]
    pub(crate) limit: Option<usize>,
}

/// Aims at one thing.
#[derive(Args)]
pub(crate) struct TargetArgs {
    /// Which one
    pub(crate) target: String,
    /// Why; it is recorded
    #[arg(long, default_value = "by hand")]
    pub(crate) reason: String,
    #[command(flatten)]
    pub(crate) ask: Ask,
}

/// Aims at one thing that takes two people.
#[derive(Args)]
pub(crate) struct TwoPersonArgs {
    /// Which one
    pub(crate) target: String,
    /// Approve the proposal with this number, which another person made of exactly this; `trader approval list` shows it
    #[arg(long, value_name = "PROPOSAL")]
    pub(crate) approve: Option<String>,
    #[command(flatten)]
    pub(crate) ask: Ask,
}

/// Stops everything, or asks that it go on.
#[derive(Args)]
pub(crate) struct KillArgs {
    /// Why; it is recorded
    #[arg(long, default_value = "by hand")]
    pub(crate) reason: String,
    /// Ask that everything go on; takes a second person
    #[arg(long)]
    pub(crate) clear: bool,
    /// With --clear: approve the proposal with this number, which another person made
    #[arg(long, value_name = "PROPOSAL", requires = "clear")]
    pub(crate) approve: Option<String>,
    #[command(flatten)]
    pub(crate) ask: Ask,
}

pub(crate) fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(u8::from(error.use_stderr()));
        }
    };
    match run(cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            say(&format!("error: {}", failure.words()));
            ExitCode::from(failure.status())
        }
    }
}

fn run(command: Command) -> Outcome {
    match command {
        Command::Up(args) => current_thread()?.block_on(up::up(args)),
        Command::Process(args) => processes::run(&args),
        Command::Audit(AuditCommand::Verify(args)) => audit_log::verify_command(&args),
        Command::Explain(args) => explain::explain(&args),
        Command::Data(command) => data::run(&command),
        Command::Init(args) => keys_command::init(&args),
        Command::Keys(command) => current_thread()?.block_on(keys_command::keys(&command)),
        Command::Secret(command) => current_thread()?.block_on(secret_command::secret(&command)),
        Command::Ticket(command) => current_thread()?.block_on(enrol_command::ticket(&command)),
        Command::Agent(AgentCommand::Enrol(args)) => current_thread()?.block_on(enrol_command::enrol(&args)),
        Command::Agent(AgentCommand::Remove(args)) => {
            current_thread()?.block_on(enrol_command::remove(&args))
        }
        Command::Status(ask) => current_thread()?.block_on(show::status(&ask)),
        Command::Agent(AgentCommand::List(ask)) => current_thread()?.block_on(show::agents(&ask)),
        Command::Agent(AgentCommand::Revoke(args)) => {
            current_thread()?.block_on(show::strike(&args, "/v1/revoke/agent"))
        }
        Command::Agent(AgentCommand::Reinstate(args)) => current_thread()?.block_on(show::enable(
            &args.ask,
            "reinstate_agent",
            &args.target,
            args.approve.as_deref(),
        )),
        Command::Grant(GrantCommand::List(args)) => current_thread()?.block_on(show::grants(&args)),
        Command::Grant(GrantCommand::Revoke(args)) => {
            current_thread()?.block_on(show::strike(&args, "/v1/revoke/grant"))
        }
        Command::Order(OrderCommand::List(args)) => current_thread()?.block_on(show::orders(&args)),
        Command::Approval(ApprovalCommand::List(ask)) => current_thread()?.block_on(show::approvals(&ask)),
        Command::Incident(IncidentCommand::List(ask)) => current_thread()?.block_on(show::incidents(&ask)),
        Command::Kill(args) => current_thread()?.block_on(show::kill(&args)),
    }
}

/// A runtime on this very thread: children are tied to the thread that started them.
fn current_thread() -> Result<tokio::runtime::Runtime, Failure> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Failure::broken)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_flags_are_consistent() {
        <Cli as clap::CommandFactory>::command().debug_assert();
    }
}
