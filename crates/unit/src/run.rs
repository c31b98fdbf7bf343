//! A unit as a process: identity, database, one listener per class of peers, the revocation feed, the way to
//! the log.
//!
//! A unit keeps nothing that its database and its journal do not have, so it may be killed and started again
//! at any time.
//!
//! INVARIANT: it serves its own domain and no other, under the identity that says so.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use access::guard::{Guard, GuardConfig};
use access::vocabulary::Audience;
use audit::record::Record;
use identity::{PeerClass, SpiffeId};
use keys::VerifyingKey;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use wire::guard::GrantDoor;
use wire::journal::{Journal, JournalError, ship};
use wire::layout::{ConfigError, Layout, Topology, read_json};
use wire::renew::Membership;
use wire::revocations::follow;
use wire::server::{Connections, ServerOptions, serve};
use wire::tls::{Identity, server_config};

use crate::service::{Listener, listeners, name_of};

/// How long the last journal lines of a unit that failed may take to be shipped.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// Why a unit does not run.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// Connections and identity.
    #[error(transparent)]
    Wire(#[from] wire::tls::WireError),
    /// The journal.
    #[error(transparent)]
    Journal(#[from] wire::journal::JournalError),
    /// The database.
    #[error(transparent)]
    Store(#[from] store::StoreError),
    /// A file of the configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// There is no such domain.
    #[error("{0:?} is no data domain; name market, news, research or ledger")]
    Domain(String),
    /// The stored identity is another's.
    #[error("the identity stored for {expected} is of {found}; enrol this unit again")]
    Identity {
        /// Who this process is to be.
        expected: String,
        /// Whose identity it found.
        found: SpiffeId,
    },
    /// A listener's address cannot be had.
    #[error("cannot listen at {address}: {source}")]
    Listen {
        /// The address.
        address: std::net::SocketAddr,
        /// Why.
        source: std::io::Error,
    },
}

/// Runs unit `number` of a domain until told to stop. `program` is the SHA-256 of this program, for the log.
///
/// # Errors
/// When it cannot start, or when its journal fails while it runs: it denies what it cannot record, and ends, to be started
/// again.
pub async fn run(
    layout: Layout,
    domain: &str,
    number: u32,
    program: String,
    stop: watch::Receiver<bool>,
) -> Result<(), RunError> {
    let domain = Audience::parse(domain)
        .filter(|domain| *domain != Audience::Desk)
        .ok_or_else(|| RunError::Domain(domain.to_owned()))?;
    let name = name_of(domain, number);
    check_identity(&Identity::load(&layout.identity(&name))?, domain, number)?;
    let topology: Topology = read_json(&layout.topology())?;
    let management = management_address(&topology, domain, &layout.topology())?;
    let membership = Arc::new(Membership::resume(&layout.identity(&name), management).await?);
    let journal = Journal::open(&layout.journal(&name), &name)?;
    let door = Arc::new(GrantDoor::new(Guard::new(GuardConfig {
        audience: domain,
        issuer_keys: grant_keys(&membership.credentials().current(), &layout.bundle())?,
    })));
    let served = listeners(domain, &layout.database(domain.as_str()), &door, &journal)?;
    journal.record_durably(&Record::Started { program })?;
    let connections = Connections::new();

    // A unit does nothing about a kill itself: its guard allows nothing any more.
    let on_kill = || tracing::warn!("everything is stopped: this unit allows nothing");
    let mut servers = JoinSet::new();
    servers.spawn(follow(
        membership.management().clone(),
        door.clone(),
        connections.clone(),
        on_kill,
        stop.clone(),
    ));
    {
        // A unit shows its keys and is bound to none of them: they may follow each other at any time.
        let (membership, stop) = (membership.clone(), stop.clone());
        servers.spawn(async move { membership.keep_renewed(stop).await });
    }
    door.first_heard(&stop).await;
    for Listener { class, router, .. } in served {
        let address = address_of(&topology, domain, class, number, &layout.topology())?;
        let tls = server_config(membership.credentials(), class)?;
        let listener =
            TcpListener::bind(address).await.map_err(|source| RunError::Listen { address, source })?;
        let options = ServerOptions::recorded(&format!("{domain}/{class}"), &journal);
        servers.spawn(serve(listener, tls, router, options, connections.clone(), stop.clone()));
    }
    // The log is told last: what a request that is still under way decides must get there too.
    let (quiet, all_quiet) = watch::channel(false);
    let shipping = tokio::spawn(ship(journal.clone(), membership.clone(), all_quiet));
    let failed = tokio::select! {
        () = async { while servers.join_next().await.is_some() {} } => false,
        () = journal.closed() => true,
    };
    if failed {
        servers.shutdown().await;
    }
    let _ = quiet.send(true);
    if failed {
        // Evidence goes out even when nothing else may.
        let _ = tokio::time::timeout(LAST_WORDS, shipping).await;
        return Err(JournalError::Closed.into());
    }
    if let Err(error) = shipping.await {
        tracing::error!(%error, "the way to the log broke; the journal keeps what was not joined");
    }
    Ok(())
}

fn check_identity(identity: &Identity, domain: Audience, number: u32) -> Result<(), RunError> {
    let expected = SpiffeId::unit(identity.id().trust_domain(), domain.as_str(), number)
        .map_err(wire::tls::WireError::from)?;
    if *identity.id() == expected {
        Ok(())
    } else {
        Err(RunError::Identity { expected: expected.to_string(), found: identity.id().clone() })
    }
}

fn grant_keys(identity: &Identity, path: &Path) -> Result<Vec<VerifyingKey>, RunError> {
    let keys = identity.bundle().grant_keys.iter().map(|key| VerifyingKey::from_hex(key));
    keys.collect::<Result<_, _>>().map_err(|error| ConfigError::new(path, error).into())
}

fn management_address(
    topology: &Topology,
    domain: Audience,
    path: &Path,
) -> Result<std::net::SocketAddr, RunError> {
    let address = topology.management.get(domain.as_str()).copied();
    address.ok_or_else(|| {
        let missing = format!("management has no listener for {domain}; add management.{domain}");
        ConfigError::new(path, missing).into()
    })
}

/// Where this unit listens for one class.
fn address_of(
    topology: &Topology,
    domain: Audience,
    class: PeerClass,
    number: u32,
    path: &Path,
) -> Result<std::net::SocketAddr, RunError> {
    let service = format!("{domain}/{}", class.as_str());
    let place = usize::try_from(number).ok().and_then(|number| number.checked_sub(1));
    let backends =
        topology.services.get(&service).map(|service| service.backends.as_slice()).unwrap_or_default();
    let address = place.and_then(|place| backends.get(place)).ok_or_else(|| {
        ConfigError::new(path, format!("{service} has no backend {number}; add its address to the backends"))
    })?;
    Ok(*address)
}
