//! The TLS and HTTP edge that every process shares.
//!
//! Owns: peer identity on every connection, the accept loop and its limits, the client, the guard in front of every
//! route, the journal file, the revocation feed. Knows nothing of trading.
//!
//! INVARIANT: a handler behind [`guard`] runs only after an allowing decision was journalled.

pub mod api;
pub mod client;
mod danger;
pub mod enrol;
pub mod files;
pub mod guard;
mod hello;
pub mod journal;
pub mod layout;
pub mod listener;
pub mod own_keys;
pub mod problem;
pub mod proofs;
pub mod refusals;
pub mod renew;
pub mod revocations;
pub mod secrets;
pub mod server;
pub mod tls;
mod verify;

pub use axum::http;
