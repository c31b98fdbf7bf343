//! Commands around enrolment: who may, with what; how a node does it; how a member goes for good.

use std::collections::BTreeSet;
use std::future::Future;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use clap::{Args, Subcommand, ValueEnum};
use identity::entry::{HostCertificate, Pcrs, TpmState, UnixProgram};
use identity::{Limits, PeerClass, Requirements, SpiffeId};
use management::bootstrap;
use management::cases::RevocationProof;
use management::routes::{AgentView, Aim, EntryView, TicketBody, process_name};
use nix::sys::prctl::set_dumpable;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use serde_json::json;
use wire::enrol::At;
use wire::files;
use wire::journal::unix_ms;
use wire::layout::{Layout, Topology, read_json};
use wire::proofs::{EkKind, HostKey, Proofs, TpmTools};

use crate::cli::Ask;
use crate::operator::Operator;
use crate::output::{Failure, Outcome, json, line, say, table};
use crate::processes::digest_of;
use crate::show::proven;

/// Tickets with which a node enrols.
#[derive(Subcommand)]
pub(crate) enum TicketCommand {
    /// Make a ticket: good once, for 30 minutes, for this name alone
    ///
    /// Whoever shows it can enrol under the name, unless more is asked for: a program of a user on management's own
    /// machine, a host's certificate, a TPM. What is asked for must be shown, all of it.
    Create(TicketArgs),
    /// List who may enrol, what they must show, and whether they have
    List(Ask),
}

/// For whom, and what they must show.
#[derive(Args)]
pub(crate) struct TicketArgs {
    /// Name of the agent, such as agent-4, or a SPIFFE ID
    pub(crate) name: String,
    /// Only a program of this user, on the machine of management
    #[arg(long, value_name = "UID", requires = "executable")]
    pub(crate) unix_uid: Option<u32>,
    /// With --unix-uid: the program's file, or its SHA-256; may be given several times
    #[arg(long, value_name = "FILE|DIGEST", requires = "unix_uid")]
    pub(crate) executable: Vec<String>,
    /// Only a host with a certificate of this authority: file in PEM; may be given several times
    #[arg(long, value_name = "FILE", requires = "host_name")]
    pub(crate) host_root: Vec<PathBuf>,
    /// With --host-root: the host's DNS name in its certificate
    #[arg(long, value_name = "NAME", requires = "host_root")]
    pub(crate) host_name: Option<String>,
    /// Only the machine with this TPM: its endorsement key as `tpm2_createek -u` writes it, or the SHA-256 of that file
    #[arg(long, value_name = "FILE|DIGEST")]
    pub(crate) tpm_ek: Option<String>,
    /// With --tpm-ek: registers of the SHA-256 bank, and the SHA-256 of their values one after the other
    #[arg(long, value_name = "sha256:0,1,7=DIGEST", requires = "tpm_ek")]
    pub(crate) tpm_pcrs: Option<String>,
    /// Life of the ticket, in minutes: 30 at most
    #[arg(long, value_name = "MINUTES", default_value_t = 30)]
    pub(crate) ttl: u32,
    /// Longest life of its certificates, in hours: 24 at most
    #[arg(long, value_name = "HOURS", default_value_t = 24)]
    pub(crate) certificate_ttl: u32,
    #[command(flatten)]
    pub(crate) ask: Ask,
}

/// Which of a TPM's endorsement keys.
#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum Ek {
    Rsa,
    Ecc,
}

/// Enrols with a ticket.
#[derive(Args)]
pub(crate) struct EnrolArgs {
    /// Name of the agent, as the ticket was made for
    pub(crate) name: String,
    /// File with the ticket, or - for standard input
    #[arg(long, value_name = "FILE", default_value = "-")]
    pub(crate) ticket: String,
    /// Show a host's certificate: file in PEM, the host's own first
    #[arg(long, value_name = "FILE", requires = "host_key")]
    pub(crate) host_cert: Option<PathBuf>,
    /// With --host-cert: file with its key in PEM, which only its owner can read
    #[arg(long, value_name = "FILE", requires = "host_cert")]
    pub(crate) host_key: Option<PathBuf>,
    /// Show the TPM that the TPM tools reach in this way
    #[arg(long, value_name = "TCTI", num_args = 0..=1, default_missing_value = "device:/dev/tpmrm0")]
    pub(crate) tpm: Option<String>,
    /// With --tpm: which endorsement key the ticket was made for
    #[arg(long, value_name = "KIND", default_value = "rsa", requires = "tpm")]
    pub(crate) tpm_ek_kind: Ek,
    /// With --tpm: the registers to quote, as the ticket was made for
    #[arg(long, value_name = "sha256:0,1,7", default_value = "sha256:0,1,2,3,4,5,6,7", requires = "tpm")]
    pub(crate) tpm_pcrs: String,
    #[command(flatten)]
    pub(crate) ask: Ask,
}

/// Ends an identity for good.
#[derive(Args)]
pub(crate) struct RemoveArgs {
    /// A member, such as agent-2
    pub(crate) name: String,
    /// Do it; without it, what would be done is shown
    #[arg(long)]
    pub(crate) yes: bool,
    /// Why; it is recorded
    #[arg(long, default_value = "by hand")]
    pub(crate) reason: String,
    #[command(flatten)]
    pub(crate) ask: Ask,
}

fn agent_id(layout: &Layout, name: &str) -> Result<SpiffeId, Failure> {
    if name.starts_with("spiffe://") {
        return name.parse().map_err(Failure::refused);
    }
    let (_, bundle) = bootstrap::bundle(layout).map_err(Failure::refused)?;
    SpiffeId::agent(&bundle.trust_domain, name).map_err(Failure::refused)
}

fn is_digest(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// A digest as it was given, or that of a file.
fn digest(text: &str, what: &str) -> Result<String, Failure> {
    if is_digest(text) {
        return Ok(text.to_lowercase());
    }
    let unreadable = |error| {
        Failure::refused(format!(
            "{text} is neither a SHA-256 of 64 digits nor a readable file of {what}: {error}"
        ))
    };
    let file = std::fs::File::open(text).map_err(unreadable)?;
    digest_of(file).map(|digest| digest.to_string()).map_err(unreadable)
}

/// Registers and the digest of their values: `sha256:0,1,7=DIGEST`.
fn pcrs(text: &str) -> Result<Pcrs, Failure> {
    let parsed =
        text.strip_prefix("sha256:").and_then(|rest| rest.split_once('=')).and_then(|(list, digest)| {
            let selection =
                list.split(',').map(|number| number.trim().parse().ok()).collect::<Option<BTreeSet<u8>>>()?;
            is_digest(digest).then(|| Pcrs { selection, digest: digest.to_lowercase() })
        });
    parsed.ok_or_else(|| {
        Failure::refused(
            "--tpm-pcrs is sha256:NUMBERS=DIGEST; on the machine: tpm2_pcrread -o values sha256:0,1,7 && sha256sum values",
        )
    })
}

fn roots(paths: &[PathBuf]) -> Result<BTreeSet<String>, Failure> {
    let read = |path: &PathBuf| {
        CertificateDer::from_pem_file(path).map(|certificate| BASE64_STANDARD.encode(certificate)).map_err(
            |_| Failure::refused(format!("{}: no certificate in PEM can be read from it", path.display())),
        )
    };
    paths.iter().map(read).collect()
}

fn requirements(args: &TicketArgs) -> Result<Requirements, Failure> {
    let unix = args.unix_uid.map(|uid| {
        let executables =
            args.executable.iter().map(|text| digest(text, "a program")).collect::<Result<_, _>>()?;
        Ok::<_, Failure>(UnixProgram { uid, executables })
    });
    let host = args
        .host_name
        .as_ref()
        .map(|name| Ok::<_, Failure>(HostCertificate { roots: roots(&args.host_root)?, name: name.clone() }));
    let tpm = args.tpm_ek.as_ref().map(|ek| {
        let pcrs = args.tpm_pcrs.as_deref().map(pcrs).transpose()?;
        Ok::<_, Failure>(TpmState { ek: digest(ek, "an endorsement key")?, pcrs })
    });
    Ok(Requirements { unix: unix.transpose()?, host: host.transpose()?, tpm: tpm.transpose()? })
}

pub(crate) async fn ticket(command: &TicketCommand) -> Outcome {
    match command {
        TicketCommand::Create(args) => create(args).await,
        TicketCommand::List(ask) => list(ask).await,
    }
}

async fn create(args: &TicketArgs) -> Outcome {
    let id = agent_id(&Layout::new(&args.ask.dir.dir), &args.name)?;
    let limits = Limits {
        certificate_ttl_s: i64::from(args.certificate_ttl).saturating_mul(3_600),
        ..Limits::default()
    };
    let body = TicketBody {
        target: id.to_string(),
        reason: "by hand".into(),
        requires: requirements(args)?,
        limits,
        ttl_s: Some(i64::from(args.ttl).saturating_mul(60)),
        keep_removed: false,
    };
    let answer: serde_json::Value = Operator::of(&args.ask)?.post("/v1/tickets", &body).await?;
    if args.ask.json {
        return json(&answer);
    }
    line(answer.get("ticket").and_then(serde_json::Value::as_str).unwrap_or_default());
    let shows = body.requires.names().join(", ");
    say(&format!("good once, within {} minutes, for {id}, who must show: {shows}", args.ttl));
    Ok(())
}

async fn list(ask: &Ask) -> Outcome {
    let entries: Vec<EntryView> = Operator::of(ask)?.get("/v1/entries").await?;
    if ask.json {
        return json(&entries);
    }
    let now = unix_ms() / 1_000;
    let rows: Vec<Vec<String>> = entries
        .into_iter()
        .map(|entry| {
            let minutes = format!("{} min", (entry.expires - now + 59).max(0) / 60);
            vec![entry.name, entry.class, entry.shows.join(","), entry.state, minutes]
        })
        .collect();
    table(&["name", "class", "shows", "state", "expires in"], &rows);
    Ok(())
}

/// Where newcomers of this machine, or of others, ask management.
pub(crate) fn newcomers_at(layout: &Layout, topology: &Topology) -> At {
    let socket = layout.enrolment_socket();
    if socket.exists() { At::socket(topology.enrolment, socket) } else { At::from(topology.enrolment) }
}

fn proofs(args: &EnrolArgs, directory: &Path) -> Result<Proofs, Failure> {
    let host = match (&args.host_cert, &args.host_key) {
        (Some(certificate), Some(key)) => Some(HostKey::load(certificate, key).map_err(Failure::refused)?),
        _ => None,
    };
    let tpm = args.tpm.as_ref().map(|tcti| TpmTools {
        tcti: tcti.clone(),
        ek: match args.tpm_ek_kind {
            Ek::Rsa => EkKind::Rsa,
            Ek::Ecc => EkKind::Ecc,
        },
        registers: args.tpm_pcrs.clone(),
        directory: directory.join("tpm"),
    });
    Ok(Proofs { host, tpm })
}

/// Lets this user's other processes see which program this is, for as long as it enrols: management's attestor reads it from
/// the process itself, and no process may that has shut itself off. See `keep_memory_in`.
pub(crate) async fn seen<T>(enrolling: impl Future<Output = T>) -> Result<T, Failure> {
    set_dumpable(true).map_err(Failure::broken)?;
    let done = enrolling.await;
    set_dumpable(false).map_err(Failure::broken)?;
    Ok(done)
}

/// Redeems a ticket for an identity in the state directory.
pub(crate) async fn enrol(args: &EnrolArgs) -> Outcome {
    let layout = Layout::new(&args.ask.dir.dir);
    let id = agent_id(&layout, &args.name)?;
    let mut text = zeroize::Zeroizing::new(String::new());
    if args.ticket == "-" {
        std::io::stdin().read_line(&mut text).map_err(Failure::broken)?;
    } else {
        let bytes = files::read_private(Path::new(&args.ticket)).map_err(Failure::refused)?;
        *text = String::from_utf8_lossy(&bytes).into_owned();
    }
    let topology: Topology = read_json(&layout.topology()).map_err(Failure::refused)?;
    let members = topology.management.get(PeerClass::Agents.as_str()).copied();
    let members = members.ok_or_else(|| Failure::broken("management has no listener for agents"))?;
    let directory = layout.identity(&process_name(&id));
    files::create_private_dir(&directory).map_err(Failure::broken)?;
    let (at, proofs) = (newcomers_at(&layout, &topology), proofs(args, &directory)?);
    let enrolling = wire::enrol::enrol_showing(at, members, text.trim(), &id, &directory, proofs);
    let identity = seen(enrolling).await?.map_err(Failure::refused)?;
    if args.ask.json {
        return json(&json!({ "id": id, "epoch": identity.epoch(), "expires": identity.expires() }));
    }
    line(&format!("{id} is enrolled, epoch {}; its keys are in {}", identity.epoch(), directory.display()));
    Ok(())
}

/// Ends an identity for good, or shows what that would be.
pub(crate) async fn remove(args: &RemoveArgs) -> Outcome {
    let operator = Operator::of(&args.ask)?;
    if args.yes {
        let aim = Aim { target: args.name.clone(), reason: args.reason.clone() };
        let proof: RevocationProof = operator.post("/v1/remove/agent", &aim).await?;
        return proven(&args.ask, &proof);
    }
    let agents: Vec<AgentView> = operator.get("/v1/agents").await?;
    let found = agents.into_iter().find(|agent| agent.name == args.name || agent.id == args.name);
    let agent = found.ok_or_else(|| {
        Failure::refused(format!("nobody enrolled as {}; see `trader agent list`", args.name))
    })?;
    if args.ask.json {
        return json(&agent);
    }
    line(&format!(
        "{} ({}), epoch {}: its identity ends, now and for good",
        agent.id, agent.status, agent.epoch
    ));
    line("its grants and its ticket are void, its task goes to another");
    if agent.status == "quarantined" {
        line("it stays in quarantine: a new ticket for its name takes two people, as before");
    } else {
        line("a new ticket for its name lets it enrol anew, under the next epoch");
    }
    let layout = Layout::new(&args.ask.dir.dir);
    say(&format!("to do it: trader agent remove {} --yes --dir {}", args.name, layout.root().display()));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registers_are_named_with_the_digest_of_their_values_or_refused_with_what_to_do() {
        let digest = "ab".repeat(32);
        let read = pcrs(&format!("sha256:0, 7,23={digest}")).unwrap();
        assert_eq!((read.selection, read.digest), (BTreeSet::from([0, 7, 23]), digest.clone()));
        for wrong in ["", "sha1:0=", "sha256:0", "sha256:=", &format!("sha256:={digest}"), "sha256:300=ab"] {
            assert!(pcrs(wrong).unwrap_err().words().contains("tpm2_pcrread"), "{wrong}");
        }
    }

    #[test]
    fn a_digest_is_given_or_taken_of_a_file() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), b"program").unwrap();
        let taken = digest(file.path().to_str().unwrap(), "a program").unwrap();
        assert_eq!(taken, keys::Digest::of(b"program").to_string());
        assert_eq!(digest(&taken.to_uppercase(), "a program").unwrap(), taken);
        assert!(digest("no-such-file", "a program").unwrap_err().words().contains("a program"));
    }
}
