//! Commands around keys: where they live, how old they are, how they are replaced.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::{Args, Subcommand};
use identity::{PeerClass, SignedBundle};
use management::bootstrap::{self, KeysAt};
use management::routes::{Aim, BundlesBody, KeysView};
use serde_json::json;
use wire::files;
use wire::layout::Layout;

use crate::cli::{Ask, Dir};
use crate::operator::Operator;
use crate::output::{Failure, Outcome, json, line, say, table};
use crate::secret_command::{self, DestroyArgs, RecoverArgs, RewrapArgs, SharesArgs};

/// How long the command waits until what it asked for is done.
const DONE_WITHIN: Duration = Duration::from_secs(90);
const LOOK_AGAIN: Duration = Duration::from_millis(250);

/// Makes a state directory, and says where the authorities' keys live.
#[derive(Args)]
pub(crate) struct InitArgs {
    #[command(flatten)]
    pub(crate) dir: Dir,
    /// Keep the authorities' keys in a device: path of its PKCS#11 module
    #[arg(long, value_name = "MODULE", requires = "token", requires = "pin_file")]
    pub(crate) hsm: Option<PathBuf>,
    /// With --hsm: label of the token
    #[arg(long, value_name = "LABEL", requires = "hsm")]
    pub(crate) token: Option<String>,
    /// With --hsm: file with the token's PIN, which only its owner can read
    #[arg(long, value_name = "FILE", requires = "hsm")]
    pub(crate) pin_file: Option<PathBuf>,
    /// Without --hsm: file with the passphrase that seals the keys; without it, one is made in the state directory
    #[arg(long, value_name = "FILE", conflicts_with = "hsm")]
    pub(crate) passphrase_file: Option<PathBuf>,
    /// Take no key exchange but the hybrid post-quantum one
    #[arg(long)]
    pub(crate) require_pq: bool,
}

/// Keys of the members, and the authorities above them.
#[derive(Subcommand)]
pub(crate) enum KeysCommand {
    /// A row for each member and channel: key, age, epoch, state
    Status(Ask),
    /// Have members replace their keys now; waits until they have
    Rotate(RotateArgs),
    /// Replace the authority of one class: a new one is made, every member gets keys from it, the old one is trusted no more
    Taint(TaintArgs),
    /// A row for each version of each domain's key, with the secrets that are sealed under it
    Domains(Ask),
    /// Make a new version of a domain's key and wrap its secrets again under it; older versions open nothing more
    Rewrap(RewrapArgs),
    /// Destroy versions of a domain's key, and with them what is sealed under them
    Destroy(DestroyArgs),
    /// Split the root key of a store in files among people; needs its passphrase
    Shares(SharesArgs),
    /// Open a store in files with shares of its root key, and seal it with a new passphrase
    Recover(RecoverArgs),
    /// Say whether connections are made and taken with the hybrid post-quantum key exchange alone
    RequirePq(RequirePqArgs),
}

/// Whose keys.
#[derive(Args)]
pub(crate) struct RotateArgs {
    /// A member, such as agent-2 or unit-market-1; all of them unless said otherwise
    #[arg(default_value = "all")]
    pub(crate) member: String,
    #[command(flatten)]
    pub(crate) ask: Ask,
}

/// Which authority.
#[derive(Args)]
pub(crate) struct TaintArgs {
    /// Peer class: agents, operators, management, desk, market, news, research or ledger
    pub(crate) class: String,
    /// Do it; without it, what would be done is shown
    #[arg(long)]
    pub(crate) yes: bool,
    #[command(flatten)]
    pub(crate) ask: Ask,
}

/// Whether the hybrid key exchange is demanded.
#[derive(Args)]
pub(crate) struct RequirePqArgs {
    /// `on`: X25519MLKEM768 alone; `off`: preferred, with X25519 for who knows nothing better
    #[arg(value_parser = ["on", "off"])]
    pub(crate) what: String,
    /// Do it; without it, what would be done is shown
    #[arg(long)]
    pub(crate) yes: bool,
    #[command(flatten)]
    pub(crate) ask: Ask,
}

/// Makes the state directory's keys.
pub(crate) fn init(args: &InitArgs) -> Outcome {
    let layout = Layout::new(&args.dir.dir);
    if bootstrap::is_done(&layout) {
        return Err(Failure::refused(format!(
            "{} has its keys already; `trader up --fresh` starts over",
            layout.root().display()
        )));
    }
    let absolute = |path: &PathBuf| std::path::absolute(path).map_err(Failure::broken);
    let (store, secret) = match (&args.hsm, &args.token, &args.pin_file) {
        (Some(module), Some(token), Some(pin)) => {
            let module = absolute(module)?;
            (keystore::Config::Pkcs11 { module, token_label: token.clone() }, Some(pin))
        }
        _ => (keystore::Config::File, args.passphrase_file.as_ref()),
    };
    let secret_file = secret.map(absolute).transpose()?;
    files::create_private_dir(layout.root()).map_err(Failure::broken)?;
    let keys_at = KeysAt { store, secret_file: secret_file.clone(), require_pq: args.require_pq };
    bootstrap::create(&layout, &keys_at).map_err(Failure::refused)?;
    line(&format!("state directory   {}", layout.root().display()));
    match (&args.hsm, secret_file) {
        (Some(_), _) => line("keys              in the token; they cannot be read out of it"),
        (None, Some(file)) => {
            line(&format!("keys              sealed with the passphrase in {}", file.display()))
        }
        (None, None) => line("keys              sealed with the passphrase in `passphrase`, beside them"),
    }
    line(
        "offline root      offline-root/: take it off this machine, it is needed to replace an authority only",
    );
    Ok(())
}

pub(crate) async fn keys(command: &KeysCommand) -> Outcome {
    match command {
        KeysCommand::Status(ask) => status(ask).await,
        KeysCommand::Rotate(args) => rotate(args).await,
        KeysCommand::Taint(args) => taint(args).await,
        KeysCommand::Domains(ask) => secret_command::domains(ask).await,
        KeysCommand::Rewrap(args) => secret_command::rewrap(args).await,
        KeysCommand::Destroy(args) => secret_command::destroy(args).await,
        KeysCommand::Shares(args) => secret_command::shares(args),
        KeysCommand::Recover(args) => secret_command::recover(args),
        KeysCommand::RequirePq(args) => require_pq(args).await,
    }
}

async fn status(ask: &Ask) -> Outcome {
    let view: KeysView = Operator::of(ask)?.get("/v1/keys").await?;
    if ask.json {
        return json(&view.keys);
    }
    let rows: Vec<Vec<String>> = view
        .keys
        .into_iter()
        .map(|key| {
            let age = age(key.age_s);
            vec![key.agent, key.channel, key.key_id, age, key.epoch.to_string(), key.state, key.authority]
        })
        .collect();
    table(&["agent", "channel", "key", "age", "epoch", "state", "authority"], &rows);
    line(&format!("oldest active key {}", age(view.oldest_active_key_age_s)));
    Ok(())
}

fn age(seconds: i64) -> String {
    match seconds {
        ..120 => format!("{seconds} s"),
        120..7_200 => format!("{} min", seconds / 60),
        _ => format!("{} h", seconds / 3_600),
    }
}

async fn rotate(args: &RotateArgs) -> Outcome {
    let operator = Operator::of(&args.ask)?;
    let begun = Instant::now();
    let before: KeysView = operator.get("/v1/keys").await?;
    let aim = Aim { target: args.member.clone(), reason: "asked for".into() };
    let _: serde_json::Value = operator.post("/v1/keys/rotate", &aim).await?;
    let wanted = |agent: &str| args.member == "all" || args.member == agent || args.member.ends_with(agent);
    let active = |view: &KeysView| -> Vec<(String, String)> {
        let rows = view.keys.iter().filter(|key| key.state == "active" && key.channel == "tls");
        rows.filter(|key| wanted(&key.agent)).map(|key| (key.agent.clone(), key.key_id.clone())).collect()
    };
    let old = active(&before);
    loop {
        let now = active(&operator.get("/v1/keys").await?);
        let waiting: Vec<&str> =
            old.iter().filter(|key| now.contains(key)).map(|(agent, _)| agent.as_str()).collect();
        if waiting.is_empty() {
            let took_ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
            return if args.ask.json {
                json(&json!({ "rotated": old.len(), "took_ms": took_ms }))
            } else {
                line(&format!("{} members have new keys, after {took_ms} ms", old.len()));
                Ok(())
            };
        }
        if begun.elapsed() > DONE_WITHIN {
            return Err(Failure::broken(format!(
                "not yet: {}; they replace their keys when they can, see `trader keys status`",
                waiting.join(", ")
            )));
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

async fn taint(args: &TaintArgs) -> Outcome {
    let layout = Layout::new(&args.ask.dir.dir);
    let class = PeerClass::parse(&args.class).ok_or_else(|| {
        let all: Vec<&str> = PeerClass::ALL.iter().map(|class| class.as_str()).collect();
        Failure::refused(format!("{} is no peer class; they are {}", args.class, all.join(", ")))
    })?;
    let operator = Operator::of(&args.ask)?;
    let view: KeysView = operator.get("/v1/keys").await?;
    if !args.yes {
        line(&format!(
            "authority of {class}: a new one is made and signed by the root, which must be at hand"
        ));
        line(
            "every member first trusts both, then gets keys from the new one, then trusts the new one alone",
        );
        line("what the old one has certified is refused from then on; this cannot be undone");
        say(&format!("to do it: trader keys taint {class} --yes --dir {}", layout.root().display()));
        return Ok(());
    }
    if view.bundles_waiting > 0 {
        return Err(Failure::refused("an authority is being replaced already; try again in a minute"));
    }
    let bundles = bootstrap::replace_authority(&layout, class).map_err(Failure::refused)?;
    let late = "the old authority is still trusted; see `trader keys status`";
    let (bundle, took_ms) = publish(&args.ask, &operator, view.bundle, bundles, late).await?;
    if args.ask.json {
        return json(&json!({ "class": class.as_str(), "bundle": bundle, "took_ms": took_ms }));
    }
    line(&format!("the authority of {class} is replaced, after {took_ms} ms; trust bundle {bundle}"));
    Ok(())
}

/// Has bundles published, and waits until the last of them is. Answers with its version and how long that took, in
/// milliseconds.
async fn publish(
    ask: &Ask,
    operator: &Operator,
    held: u64,
    bundles: Vec<SignedBundle>,
    late: &str,
) -> Result<(u64, u64), Failure> {
    let begun = Instant::now();
    let last = held.saturating_add(bundles.len() as u64);
    let _: serde_json::Value = operator.post("/v1/bundles", &BundlesBody { bundles }).await?;
    loop {
        let now: KeysView = Operator::of(ask)?.get("/v1/keys").await?;
        if now.bundle >= last {
            return Ok((now.bundle, u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX)));
        }
        if begun.elapsed() > DONE_WITHIN {
            return Err(Failure::broken(late));
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

async fn require_pq(args: &RequirePqArgs) -> Outcome {
    let layout = Layout::new(&args.ask.dir.dir);
    let require = args.what == "on";
    let operator = Operator::of(&args.ask)?;
    let view: KeysView = operator.get("/v1/keys").await?;
    if !args.yes {
        line(
            "the root, which must be at hand, signs a bundle that says so; every member goes by it within seconds",
        );
        line("connections that are open end within 15 minutes, and the next ones go by it");
        let root = layout.root().display();
        say(&format!("to do it: trader keys require-pq {} --yes --dir {root}", args.what));
        return Ok(());
    }
    if view.bundles_waiting > 0 {
        return Err(Failure::refused("an authority is being replaced; try again in a minute"));
    }
    let bundle = bootstrap::require_pq(&layout, require).map_err(Failure::refused)?;
    let late = "the new bundle is not published yet; see `trader keys status`";
    let (bundle, took_ms) = publish(&args.ask, &operator, view.bundle, vec![bundle], late).await?;
    if args.ask.json {
        return json(&json!({ "require_pq": require, "bundle": bundle, "took_ms": took_ms }));
    }
    let what = if require { "demanded" } else { "preferred" };
    line(&format!("the hybrid key exchange is {what}; trust bundle {bundle}"));
    Ok(())
}
