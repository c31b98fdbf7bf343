//! An operator's way to management: the identity of a person, and one connection.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use identity::{PeerClass, SpiffeId};
use management::bootstrap;
use serde::Serialize;
use serde::de::DeserializeOwned;
use wire::client::{Client, ClientError};
use wire::http::Method;
use wire::journal::unix_ms;
use wire::layout::{Layout, Topology, read_json};
use wire::tls::Identity;

use crate::cli::Ask;
use crate::output::Failure;

/// An identity with less life than this is renewed before it is used, in seconds.
const RENEW_BELOW_S: i64 = 12 * 3_600;
/// How long an answer may take; a revocation's proof takes 2 s when a guard is gone.
const TIMEOUT: Duration = Duration::from_secs(8);

/// One operator, connected to management. The connection is made anew when its identity is about to end.
pub(crate) struct Operator {
    layout: Layout,
    name: String,
    held: Mutex<Held>,
}

/// A connection, and until when its identity is good, in seconds since the Unix epoch.
struct Held {
    client: Client,
    expires: i64,
    /// When the trust bundle was published that it goes by.
    bundle: Option<SystemTime>,
}

impl Operator {
    /// Connects in the name of the operator that was asked for.
    pub(crate) fn of(ask: &Ask) -> Result<Self, Failure> {
        Self::connect(&Layout::new(&ask.dir.dir), &ask.operator)
    }

    /// Connects in the name of an operator. An identity that is about to end is issued anew where the authorities' keys
    /// are at hand, which is on the machine that runs management.
    pub(crate) fn connect(layout: &Layout, name: &str) -> Result<Self, Failure> {
        let held = Mutex::new(connect(layout, name)?);
        Ok(Self { layout: layout.clone(), name: name.to_owned(), held })
    }

    fn client(&self) -> Result<Client, Failure> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let stale = held.bundle != published(&self.layout);
        if stale || held.expires <= unix_ms() / 1_000 + RENEW_BELOW_S {
            *held = connect(&self.layout, &self.name)?;
        }
        Ok(held.client.clone())
    }

    /// Reads something.
    pub(crate) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Failure> {
        self.client()?.call_json(Method::GET, path, &[], None::<&()>, TIMEOUT).await.map_err(failure)
    }

    /// Reads something, if management answers at all.
    pub(crate) async fn get_if_running<T: DeserializeOwned>(&self, path: &str) -> Result<Option<T>, Failure> {
        match self.client()?.call_json(Method::GET, path, &[], None::<&()>, TIMEOUT).await {
            Ok(value) => Ok(Some(value)),
            // Who is refused is refused: only who finds nobody looks for themselves.
            Err(ClientError::Refused(problem)) => Err(failure(ClientError::Refused(problem))),
            Err(error) => {
                tracing::debug!(%error, "management does not answer");
                Ok(None)
            }
        }
    }

    /// Asks for something.
    pub(crate) async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, Failure> {
        self.client()?.call_json(Method::POST, path, &[], Some(body), TIMEOUT).await.map_err(failure)
    }
}

/// When the trust bundle of the moment was published.
fn published(layout: &Layout) -> Option<SystemTime> {
    layout.bundle().metadata().and_then(|file| file.modified()).ok()
}

fn connect(layout: &Layout, name: &str) -> Result<Held, Failure> {
    let published = published(layout);
    if !bootstrap::is_done(layout) {
        return Err(Failure::refused(format!(
            "there is no system in {}; start one with `trader up`, or name its directory with --dir",
            layout.root().display()
        )));
    }
    let directory = layout.operator(name);
    let fresh =
        Identity::load(&directory).ok().filter(|held| held.expires() > unix_ms() / 1_000 + RENEW_BELOW_S);
    let (signed, bundle) = bootstrap::bundle(layout).map_err(Failure::broken)?;
    // While an authority is being replaced the bundle changes; an identity that the new one does not know is made anew.
    let fresh = match fresh {
        Some(identity) if identity.bundle().version < bundle.version => {
            let newer = identity.with_bundle(signed).ok();
            if let Some(newer) = &newer {
                newer.save(&directory).map_err(Failure::broken)?;
            }
            newer
        }
        fresh => fresh,
    };
    let identity = match fresh {
        Some(identity) => identity,
        // Renewed, never made: a directory alone makes nobody an operator.
        None if directory.join("identity.json").exists() => issue(layout, name)?,
        None => {
            return Err(Failure::refused(format!("there is no operator {name} in {}", directory.display())));
        }
    };
    let topology: Topology = read_json(&layout.topology()).map_err(Failure::broken)?;
    let address = topology
        .management
        .get(PeerClass::Operators.as_str())
        .ok_or_else(|| Failure::broken("the topology names no listener for operators"))?;
    let expires = identity.expires();
    let client = Client::new(Arc::new(identity), PeerClass::Management, None, *address);
    Ok(Held { client: client.map_err(Failure::broken)?, expires, bundle: published })
}

/// Issues an operator's identity with the authority at hand.
pub(crate) fn issue(layout: &Layout, name: &str) -> Result<Identity, Failure> {
    let authorities = bootstrap::authorities(layout).map_err(Failure::broken)?;
    let id = SpiffeId::operator(&authorities.trust_domain, name).map_err(Failure::refused)?;
    bootstrap::issue_noted(layout, &authorities, &id, &layout.operator(name)).map_err(Failure::broken)
}

fn failure(error: ClientError) -> Failure {
    match error {
        ClientError::Refused(problem) if problem.status < 500 && problem.detail.is_empty() => {
            Failure::refused(format!("{}: management does not say more; its log does", problem.code))
        }
        ClientError::Refused(problem) if problem.status < 500 => {
            Failure::refused(format!("{}: {}", problem.code, problem.detail))
        }
        ClientError::Connect { .. } => {
            Failure::refused("management does not answer: is the system running? Start it with `trader up`")
        }
        error => Failure::broken(error),
    }
}
