//! SPIFFE IDs, peer classes, certificate authorities, enrolment tickets, the trust bundle.
//!
//! Owns who is who: what an id looks like, which class it belongs to, who may certify it, how a newcomer gets
//! its first certificate, and what everybody is told to trust. Refuses to know sockets, files, the clock and
//! randomness: the time, random bytes and key seeds are handed in.
//!
//! INVARIANT: the class of an id follows from its path alone, and only that class's authority may certify it.
//!
//! Read on in [`spiffe`], [`authority`], [`leaf`], [`bundle`], [`ticket`], [`entry`], [`attest`], [`keyring`].

pub mod attest;
pub mod authority;
pub mod bundle;
mod danger;
pub mod entry;
pub mod keyring;
pub mod leaf;
pub mod spiffe;
pub mod ticket;

pub use authority::{Authority, AuthorityCertificate, Root};
pub use bundle::{Bundle, SignedBundle};
pub use entry::{Entry, EntryBook, Limits, Requirements};
pub use keyring::{KeySet, KeyUse, Keyring};
pub use leaf::Leaf;
pub use spiffe::{PeerClass, SpiffeId};
pub use ticket::Ticket;

/// What can be wrong with an identity that came from outside, or with a request to make one.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum IdentityError {
    /// The text is no SPIFFE ID of the strict form.
    #[error("not a SPIFFE ID: {0}")]
    SpiffeId(&'static str),
    /// The id belongs to no class of peers, or not to the one at hand.
    #[error("{id} is not of the class {class}")]
    Class {
        /// The id.
        id: SpiffeId,
        /// The class that was asked for; `peers` where any would do.
        class: &'static str,
    },
    /// The id belongs to another installation.
    #[error("{id} is not of the trust domain {trust_domain}")]
    TrustDomain {
        /// The id.
        id: SpiffeId,
        /// The installation's own trust domain.
        trust_domain: String,
    },
    /// The certificate does not have the one form that is accepted.
    #[error("not an acceptable certificate: {0}")]
    Certificate(&'static str),
    /// The public key does not have the one form that is accepted.
    #[error("not an acceptable public key: {0}")]
    PublicKey(&'static str),
    /// The life asked for is not positive, too long, or longer than the authority's own.
    #[error("a life of {ttl_s} s is outside what may be issued")]
    Lifetime {
        /// Seconds asked for.
        ttl_s: i64,
    },
    /// The trust bundle is not acceptable.
    #[error("not an acceptable trust bundle: {0}")]
    Bundle(&'static str),
    /// The bundle is older than the one already held.
    #[error("the trust bundle has version {offered}, but version {held} is already held")]
    OldBundle {
        /// Version offered.
        offered: u64,
        /// Version held.
        held: u64,
    },
    /// The text is no ticket, or the ticket cannot be written down.
    #[error("not an acceptable ticket: {0}")]
    Ticket(&'static str),
    /// What an entry demands can be shown by nobody, or says nothing.
    #[error("not an acceptable entry: {0}")]
    Entry(&'static str),
    /// The certificate could not be made.
    #[error("the certificate could not be made: {0}")]
    Make(String),
}
