//! Records, journals, the Merkle log, checkpoints and proofs.
//!
//! Owns: what a decision looks like on disk ([`record`], [`journal`]), how the journals of all processes
//! become one append-only log in the C2SP tile format ([`merkle`], [`tiles`], [`checkpoint`], [`log`]), and
//! how a stranger checks all of it with nothing but a public key ([`verify`]). It refuses to know a clock, a
//! file or a network: bytes come in, bytes go out, and whoever owns a disk hands in a [`log::LogStorage`].
//!
//! INVARIANT: no byte of a joined entry can change without [`verify::verify`] naming it.

pub mod checkpoint;
pub mod error;
pub mod journal;
pub mod log;
pub mod merkle;
pub mod record;
pub mod tiles;
pub mod verify;

pub use error::AuditError;
