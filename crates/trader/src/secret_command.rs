//! Commands around stored secrets, the keys of domains above them, and the shares of the root keys.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use access::secret::{SecretKind, SecretName};
use clap::{Args, Subcommand};
use keys::sealing::{Channel, Context, SealingPublicKey};
use management::bootstrap;
use management::control::{DomainKeyView, SecretView};
use management::custody::{self, Custody, SHARES, SHARES_NEEDED};
use management::routes::{DestroyBody, DomainAim, SealTo, SecretAim, SecretBody};
use serde_json::{Value, json};
use wire::files;
use wire::layout::Layout;
use zeroize::Zeroizing;

use crate::cli::{Ask, Dir};
use crate::operator::Operator;
use crate::output::{Failure, Outcome, json as print_json, line, say, table};

/// Longest secret that is read.
const SECRET_BYTES_MAX: u64 = 8 * 1024;

/// Secrets that management keeps for the desk and for agents.
#[derive(Subcommand)]
pub(crate) enum SecretCommand {
    /// Store a secret, read from standard input; the one of that name before it is replaced
    Put(PutArgs),
    /// List what is stored; the secrets themselves are shown to nobody
    List(Ask),
    /// Remove a secret
    Remove(RemoveArgs),
}

/// What is stored, and for whom.
#[derive(Args)]
pub(crate) struct PutArgs {
    /// Name, such as paper-broker
    pub(crate) name: String,
    /// It is a broker's key, for this desk and nobody else
    #[arg(long, value_name = "DESK", required_unless_present = "vendor_of", conflicts_with = "vendor_of")]
    pub(crate) broker_of: Option<String>,
    /// It is a vendor's key, for whichever agent has a task that fetches from this source
    #[arg(long, value_name = "SOURCE")]
    pub(crate) vendor_of: Option<String>,
    /// File with the secret, which only its owner can read; standard input unless said otherwise
    #[arg(long, value_name = "FILE")]
    pub(crate) file: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) ask: Ask,
}

/// Which secret.
#[derive(Args)]
pub(crate) struct RemoveArgs {
    /// Name
    pub(crate) name: String,
    /// Do it; without it, what would be done is shown
    #[arg(long)]
    pub(crate) yes: bool,
    #[command(flatten)]
    pub(crate) ask: Ask,
}

/// Which domain.
#[derive(Args)]
pub(crate) struct RewrapArgs {
    /// Domain, as `trader keys domains` lists it
    pub(crate) domain: String,
    #[command(flatten)]
    pub(crate) ask: Ask,
}

/// What is destroyed.
#[derive(Args)]
pub(crate) struct DestroyArgs {
    /// Domain, as `trader keys domains` lists it
    pub(crate) domain: String,
    /// One version of its key
    #[arg(long, value_name = "N", required_unless_present = "everything", conflicts_with = "everything")]
    pub(crate) key_version: Option<u32>,
    /// Every version of its key
    #[arg(long)]
    pub(crate) everything: bool,
    /// Do it; without it, what would be lost is shown
    #[arg(long)]
    pub(crate) yes: bool,
    #[command(flatten)]
    pub(crate) ask: Ask,
}

/// How a root key is split.
#[derive(Args)]
pub(crate) struct SharesArgs {
    #[command(flatten)]
    pub(crate) dir: Dir,
    /// New directory for the shares, one file each
    #[arg(long, value_name = "DIR")]
    pub(crate) out: PathBuf,
    /// How many bring the key back
    #[arg(long, value_name = "N", default_value_t = SHARES_NEEDED)]
    pub(crate) needed: u8,
    /// How many there are
    #[arg(long, value_name = "N", default_value_t = SHARES)]
    pub(crate) of: u8,
    /// Which store: authorities, or root
    #[arg(long, value_name = "STORE", default_value = "authorities")]
    pub(crate) store: String,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// With what a store is opened again.
#[derive(Args)]
pub(crate) struct RecoverArgs {
    #[command(flatten)]
    pub(crate) dir: Dir,
    /// File with a share; as often as there are shares needed
    #[arg(long = "share", value_name = "FILE", required = true)]
    pub(crate) shares: Vec<PathBuf>,
    /// File with the new passphrase, which only its owner can read; it stays in use where it is
    #[arg(long, value_name = "FILE")]
    pub(crate) passphrase_file: PathBuf,
    /// Which store: authorities, or root
    #[arg(long, value_name = "STORE", default_value = "authorities")]
    pub(crate) store: String,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

pub(crate) async fn secret(command: &SecretCommand) -> Outcome {
    match command {
        SecretCommand::Put(args) => put(args).await,
        SecretCommand::List(ask) => list(ask).await,
        SecretCommand::Remove(args) => remove(args).await,
    }
}

fn name(text: &str) -> Result<SecretName, Failure> {
    SecretName::parse(text).map_err(Failure::refused)
}

async fn put(args: &PutArgs) -> Outcome {
    let (kind, holder) = match (&args.broker_of, &args.vendor_of) {
        (Some(desk), _) => (SecretKind::Broker, desk.clone()),
        (None, Some(source)) => (SecretKind::Vendor, source.clone()),
        (None, None) => return Err(Failure::refused("say for whom: --broker-of DESK or --vendor-of SOURCE")),
    };
    let name = name(&args.name)?;
    let operator = Operator::of(&args.ask)?;
    let value = read_secret(args.file.as_deref())?;
    let to: SealTo = operator.get("/v1/secrets/key").await?;
    let (sequence, sealed) = seal(&to, &name, &value)?;
    let body = SecretBody { name, kind, holder, sequence, sealed };
    let answer: Value = operator.post("/v1/secrets", &body).await?;
    if args.ask.json {
        return print_json(&answer);
    }
    let version = answer.get("version").and_then(Value::as_u64).unwrap_or_default();
    line(&format!("stored as {}, version {version}, for {}", body.name, body.holder));
    Ok(())
}

/// The secret, sealed to management: nobody on the way sees it, and no buffer of a connection holds it.
fn seal(to: &SealTo, name: &SecretName, value: &str) -> Result<(u64, String), Failure> {
    let mut entropy = Zeroizing::new([0; 40]);
    getrandom::fill(&mut *entropy).map_err(Failure::broken)?;
    let (sequence, seed) = entropy.split_at(8);
    let sequence = u64::from_be_bytes(sequence.try_into().map_err(Failure::broken)?);
    let seed: Zeroizing<[u8; 32]> = Zeroizing::new(seed.try_into().map_err(Failure::broken)?);
    let key = SealingPublicKey::from_hex(&to.key).map_err(Failure::broken)?;
    let context = Context { channel: Channel::Control, recipient: &to.recipient, epoch: to.epoch, sequence };
    let message = wire::secrets::message(name.as_str(), 0, value.as_bytes());
    Ok((sequence, key.seal(&seed, &context, &message).map_err(Failure::broken)?.to_text()))
}

/// The secret, without the end of its last line.
fn read_secret(file: Option<&Path>) -> Result<Zeroizing<String>, Failure> {
    let bytes = match file {
        Some(path) => Zeroizing::new(files::read_private(path).map_err(Failure::refused)?),
        None => {
            // Room for all of it from the start: a buffer that grows leaves copies behind.
            let mut bytes = Zeroizing::new(Vec::with_capacity(2 * 8 * 1024));
            std::io::stdin().take(SECRET_BYTES_MAX + 2).read_to_end(&mut bytes).map_err(Failure::broken)?;
            bytes
        }
    };
    let text = std::str::from_utf8(&bytes).map_err(|_| Failure::refused("a secret is text"))?;
    let text = text.strip_suffix('\n').map_or(text, |text| text.strip_suffix('\r').unwrap_or(text));
    if text.is_empty() || text.len() as u64 > SECRET_BYTES_MAX {
        return Err(Failure::refused(format!("a secret has 1 to {SECRET_BYTES_MAX} bytes")));
    }
    Ok(Zeroizing::new(text.to_owned()))
}

async fn list(ask: &Ask) -> Outcome {
    let secrets: Vec<SecretView> = Operator::of(ask)?.get("/v1/secrets").await?;
    if ask.json {
        return print_json(&secrets);
    }
    let rows: Vec<Vec<String>> = secrets
        .into_iter()
        .map(|secret| {
            let key = format!("{} {}", secret.domain, secret.key_version);
            let state =
                if secret.readable { format!("opened {} times", secret.opened) } else { "destroyed".into() };
            vec![
                secret.name.to_string(),
                secret.kind.to_string(),
                secret.holder,
                secret.version.to_string(),
                key,
                state,
            ]
        })
        .collect();
    table(&["secret", "kind", "for", "version", "sealed under", "state"], &rows);
    Ok(())
}

async fn remove(args: &RemoveArgs) -> Outcome {
    let aim = SecretAim { name: name(&args.name)? };
    let operator = Operator::of(&args.ask)?;
    if !args.yes {
        let secrets: Vec<SecretView> = operator.get("/v1/secrets").await?;
        let secret = secrets.into_iter().find(|secret| secret.name == aim.name);
        let secret = secret.ok_or_else(|| Failure::refused(format!("no secret {} is stored", args.name)))?;
        line(&format!("{}, a {}'s key for {}, would be removed", secret.name, secret.kind, secret.holder));
        line("whoever has had it opened keeps it until it ends or starts anew; change it at whoever gave it");
        say(&format!("to do it: trader secret remove {} --yes", args.name));
        return Ok(());
    }
    let answer: Value = operator.post("/v1/secrets/remove", &aim).await?;
    if args.ask.json {
        return print_json(&answer);
    }
    line(&format!("{} is removed", args.name));
    Ok(())
}

/// Lists the versions of the domains' keys.
pub(crate) async fn domains(ask: &Ask) -> Outcome {
    let keys: Vec<DomainKeyView> = Operator::of(ask)?.get("/v1/keys/domains").await?;
    if ask.json {
        return print_json(&keys);
    }
    let rows: Vec<Vec<String>> = keys
        .into_iter()
        .map(|key| {
            let secrets: Vec<String> = key.secrets.iter().map(ToString::to_string).collect();
            vec![key.domain, key.version.to_string(), key.state, secrets.join(", ")]
        })
        .collect();
    table(&["domain", "version", "state", "secrets under it"], &rows);
    Ok(())
}

/// Wraps a domain's secrets again under a new version of its key.
pub(crate) async fn rewrap(args: &RewrapArgs) -> Outcome {
    let aim = DomainAim { domain: args.domain.clone() };
    let answer: Value = Operator::of(&args.ask)?.post("/v1/keys/rewrap", &aim).await?;
    if args.ask.json {
        return print_json(&answer);
    }
    let number = |key: &str| answer.get(key).and_then(Value::as_u64).unwrap_or_default();
    line(&format!(
        "{}: version {} seals from now on, {} secrets are wrapped under it, older versions open nothing",
        args.domain,
        number("active"),
        number("rewrapped")
    ));
    say("an older version is still there; `trader keys destroy` destroys it");
    Ok(())
}

/// Destroys versions of a domain's key.
pub(crate) async fn destroy(args: &DestroyArgs) -> Outcome {
    let operator = Operator::of(&args.ask)?;
    let body = DestroyBody { domain: args.domain.clone(), version: args.key_version };
    if !args.yes {
        let keys: Vec<DomainKeyView> = operator.get("/v1/keys/domains").await?;
        let hit = |key: &&DomainKeyView| {
            key.domain == args.domain && args.key_version.is_none_or(|one| one == key.version)
        };
        let hit: Vec<&DomainKeyView> = keys.iter().filter(hit).collect();
        if hit.is_empty() {
            return Err(Failure::refused("there is no such key; see `trader keys domains`"));
        }
        for key in hit {
            let secrets: Vec<String> = key.secrets.iter().map(ToString::to_string).collect();
            let lost = if secrets.is_empty() { "nothing".to_owned() } else { secrets.join(", ") };
            line(&format!("{} version {} ({}): lost with it: {lost}", key.domain, key.version, key.state));
        }
        line("nobody can open that again, not even from a backup of the database; this cannot be undone");
        say("to do it, add --yes");
        return Ok(());
    }
    let answer: Value = operator.post("/v1/keys/destroy", &body).await?;
    if args.ask.json {
        return print_json(&answer);
    }
    let lost = answer.get("secrets_lost").and_then(Value::as_u64).unwrap_or_default();
    line(&format!("destroyed; {lost} secrets are lost with it"));
    Ok(())
}

fn custody(text: &str) -> Result<Custody, Failure> {
    Custody::parse(text)
        .ok_or_else(|| Failure::refused(format!("{text} is no store; they are authorities and root")))
}

/// Splits the root key of a store.
pub(crate) fn shares(args: &SharesArgs) -> Outcome {
    let layout = Layout::new(&args.dir.dir);
    must_be_made(&layout)?;
    if args.out.exists() {
        return Err(Failure::refused(format!(
            "{} is there already; name a new directory",
            args.out.display()
        )));
    }
    let shares =
        custody::shares(&layout, custody(&args.store)?, args.needed, args.of).map_err(Failure::refused)?;
    files::create_private_dir(&args.out).map_err(Failure::refused)?;
    let mut paths = Vec::new();
    for share in &shares {
        let path = args.out.join(format!("share-{}-of-{}", share.index(), args.of));
        files::write_private_atomic(&path, share.to_text().as_bytes()).map_err(Failure::broken)?;
        paths.push(path);
    }
    if args.json {
        return print_json(&json!({ "needed": args.needed, "shares": paths }));
    }
    for path in &paths {
        line(&path.display().to_string());
    }
    say(&format!(
        "any {} of them open the store and all that it signs with; give each to another person, and keep none here",
        args.needed
    ));
    Ok(())
}

/// Opens a store with shares, and gives it a new passphrase.
pub(crate) fn recover(args: &RecoverArgs) -> Outcome {
    let layout = Layout::new(&args.dir.dir);
    must_be_made(&layout)?;
    // Held to the end: nothing may start on keys that change.
    let _still = crate::up::lock(layout.root())?;
    let texts = args
        .shares
        .iter()
        .map(|path| {
            let bytes = Zeroizing::new(files::read_private(path).map_err(Failure::refused)?);
            Ok(Zeroizing::new(String::from_utf8_lossy(&bytes).trim().to_owned()))
        })
        .collect::<Result<Vec<_>, Failure>>()?;
    let texts: Vec<&str> = texts.iter().map(|text| text.as_str()).collect();
    let passphrase = std::path::absolute(&args.passphrase_file).map_err(Failure::broken)?;
    custody::recover(&layout, custody(&args.store)?, &texts, &passphrase).map_err(Failure::refused)?;
    if args.json {
        return print_json(&json!({ "store": args.store, "passphrase_file": passphrase }));
    }
    line(&format!("the store of {} opens with the passphrase in {}", args.store, passphrase.display()));
    say("the next start tells everybody: it opens an incident, which is as it should be");
    Ok(())
}

fn must_be_made(layout: &Layout) -> Result<(), Failure> {
    if bootstrap::is_done(layout) {
        return Ok(());
    }
    Err(Failure::refused(format!(
        "there is no system in {}; name its directory with --dir",
        layout.root().display()
    )))
}
