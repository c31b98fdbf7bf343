//! The SPIFFE Workload API on a unix socket: other people's programs on this node get an identity from their
//! agent.
//!
//! Owns: which certificates, key and authorities are served ([`Svid`]), who may ask ([`Callers`]), and the
//! limits of the service. Stock clients work with it: they fetch, keep the stream open, and are sent the next
//! identity when there is one. It makes no key and asks for no certificate; it is handed what it serves, and
//! serves nothing while it has nothing.
//!
//! INVARIANT: a private key leaves only over a connection whose opener, as the kernel names it, is an allowed
//! user and, since Linux 6.5, still lives. Every other answer, the one to an error included, is a refusal.
//!
//! Specification: SPIFFE Workload API and SPIFFE Workload Endpoint, X.509 profile. There are no JWT-SVIDs
//! here: a bearer token is not bound to a key. Read on in `workload/service.rs`, `workload/connections.rs`,
//! `workload/socket.rs`.

mod connections;
mod messages;
mod service;
mod socket;

use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use identity::{AuthorityCertificate, IdentityError, Leaf, SpiffeId};
use nix::unistd::geteuid;
use tokio::sync::watch;
use wire::files::FileError;
use zeroize::Zeroizing;

pub use connections::{
    CONNECTIONS_MAX, FIRST_REQUEST_TIMEOUT, HEADER_BYTES_MAX, IDLE_TIMEOUT, REFUSED_MAX, STREAMS_MAX,
};
pub use service::{MESSAGE_BYTES_MAX, REQUEST_TIMEOUT};

/// The name to give the socket's file, whatever its directory, which should have no `@` in its own path.
///
/// gRPC for C++ and Python calls the server by the socket's path, with a percent sign and digits for every
/// slash; the HTTP/2 library refuses such a name before this crate sees the request. It accepts one whose
/// percent signs all stand before an `@`, as in a user's name. So a stock client of those languages reaches a
/// socket of this name, and none without an `@`.
pub const SOCKET_NAME: &str = "workload@agent.sock";

/// Most certificates in a chain, the leaf included.
pub const CHAIN_MAX: usize = 4;

/// Most authorities in a bundle.
pub const BUNDLE_MAX: usize = 32;

/// Largest private key, in bytes.
pub const KEY_BYTES_MAX: usize = 4 * 1024;

/// Why the Workload API cannot be served, or an identity not be served by it.
#[derive(Debug, thiserror::Error)]
pub enum WorkloadError {
    /// A certificate or the id is not acceptable.
    #[error("the identity cannot be served: {0}")]
    Identity(#[from] IdentityError),
    /// The parts of the identity do not belong together, or there are too many or too few.
    #[error("the identity cannot be served: {0}")]
    Svid(&'static str),
    /// The socket's directory is not acceptable.
    #[error(transparent)]
    Directory(#[from] FileError),
    /// The socket's directory is another user's.
    #[error("{} belongs to another user", path.display())]
    ForeignDirectory {
        /// Which directory.
        path: PathBuf,
    },
    /// Something that is no socket stands in the socket's place.
    #[error("{} is not a socket; move it away", path.display())]
    NotASocket {
        /// Where.
        path: PathBuf,
    },
    /// Another process serves there, or is about to.
    #[error("another process serves at {}", path.display())]
    Taken {
        /// Where.
        path: PathBuf,
    },
    /// The operating system refused.
    #[error("cannot {action} {}: {source}", path.display())]
    System {
        /// What was tried.
        action: &'static str,
        /// With which file.
        path: PathBuf,
        /// Why it failed.
        source: std::io::Error,
    },
}

/// An X.509-SVID as clients get it: id, chain, private key, and the authorities of the trust domain.
///
/// Holding one proves that its certificates have our form and name this id and trust domain; not that anybody
/// vouched for them, nor that the key is the leaf's. That is its maker's to know, who verified the identity
/// under the root.
#[derive(PartialEq, Eq)]
pub struct Svid {
    spiffe_id: SpiffeId,
    chain_der: Vec<Vec<u8>>,
    key_pkcs8: Zeroizing<Vec<u8>>,
    bundle_der: Vec<Vec<u8>>,
}

impl Svid {
    /// Puts an identity together: the chain leaf first and then its authority, the key as unencrypted PKCS
    /// #8, the bundle as the certificates of the authorities that its holder shall trust. All of it DER.
    ///
    /// A stock client trusts every authority of the bundle for every id of the trust domain; it knows nothing
    /// of classes of peers. So a bundle should hold no more authorities than its holder has to do with.
    ///
    /// # Errors
    /// [`WorkloadError::Identity`] when a certificate is not of our form, [`WorkloadError::Svid`] when the
    /// parts do not belong to one id and trust domain, or are outside the limits.
    pub fn new(
        spiffe_id: &str,
        chain_der: Vec<Vec<u8>>,
        key_pkcs8: Zeroizing<Vec<u8>>,
        bundle_der: Vec<Vec<u8>>,
    ) -> Result<Self, WorkloadError> {
        let spiffe_id = SpiffeId::parse(spiffe_id)?;
        let Some((leaf, authorities)) = chain_der.split_first() else {
            return Err(WorkloadError::Svid("the chain is empty"));
        };
        if chain_der.len() > CHAIN_MAX {
            return Err(WorkloadError::Svid("the chain is too long"));
        }
        if bundle_der.is_empty() || bundle_der.len() > BUNDLE_MAX {
            return Err(WorkloadError::Svid("the bundle is empty or too large"));
        }
        if key_pkcs8.is_empty() || key_pkcs8.len() > KEY_BYTES_MAX {
            return Err(WorkloadError::Svid("the key is empty or too large"));
        }
        if Leaf::parse(leaf)?.id != spiffe_id {
            return Err(WorkloadError::Svid("the leaf names another id"));
        }
        for authority in authorities.iter().chain(&bundle_der) {
            if AuthorityCertificate::parse(authority)?.trust_domain() != spiffe_id.trust_domain() {
                return Err(WorkloadError::Svid("an authority is of another trust domain"));
            }
        }
        Ok(Self { spiffe_id, chain_der, key_pkcs8, bundle_der })
    }

    /// Whom it names.
    #[must_use]
    pub fn spiffe_id(&self) -> &SpiffeId {
        &self.spiffe_id
    }

    /// Whether another one carries the same authorities.
    fn same_bundle(&self, other: &Self) -> bool {
        self.spiffe_id.trust_domain() == other.spiffe_id.trust_domain() && self.bundle_der == other.bundle_der
    }

    /// Whether a client would be told the same. A key has one certificate, so the key itself is not compared.
    fn same(&self, other: &Self) -> bool {
        self.chain_der == other.chain_der && self.same_bundle(other)
    }
}

impl fmt::Debug for Svid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Svid({}, {} authorities)", self.spiffe_id, self.bundle_der.len())
    }
}

/// Which users of this machine may ask. Nobody else gets an identity, the superuser included.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Callers {
    uids: BTreeSet<u32>,
}

impl Callers {
    /// The user that this process runs as, and nobody else.
    #[must_use]
    pub fn own() -> Self {
        Self::only([geteuid().as_raw()])
    }

    /// These users, by number. None at all is possible, and refuses everybody.
    #[must_use]
    pub fn only(uids: impl IntoIterator<Item = u32>) -> Self {
        Self { uids: uids.into_iter().collect() }
    }

    /// Whether a user may ask.
    #[must_use]
    pub fn allow(&self, uid: u32) -> bool {
        self.uids.contains(&uid)
    }
}

impl Default for Callers {
    fn default() -> Self {
        Self::own()
    }
}

/// Serves the Workload API at `socket`, a file that should be called [`SOCKET_NAME`], until told to stop (or
/// until the sender of `stop` is gone), then removes the socket.
///
/// The socket's directory is made, or must be, one that only its owner can enter, and this user's own; other
/// users that `callers` allows must be given a way in by whoever set them up. A socket that a dead process
/// left is replaced.
///
/// What is served is the newest value of `svids`; while that is `None`, and once its sender is gone, nobody
/// gets anything.
///
/// # Errors
/// [`WorkloadError::Directory`], [`WorkloadError::ForeignDirectory`], [`WorkloadError::NotASocket`],
/// [`WorkloadError::Taken`] or [`WorkloadError::System`] when it cannot be begun. Nothing ends it afterwards
/// but `stop`.
pub async fn serve(
    socket: &Path,
    svids: watch::Receiver<Option<Arc<Svid>>>,
    callers: Callers,
    stop: watch::Receiver<bool>,
) -> Result<(), WorkloadError> {
    let bound = socket::Bound::new(socket).await?;
    connections::accept(bound.listener(), service::Feed::new(svids, stop.clone()), callers, stop).await;
    Ok(())
}
