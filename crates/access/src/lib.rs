//! Policy, grants, revocation; the guard's decision.
//!
//! Owns: what a permission says ([`vocabulary`]), how it is signed and parsed ([`grant`]), how it is struck
//! and how that is proven ([`revocation`]), how a guard decides on one request ([`guard`]), what stored secrets
//! are called ([`secret`]), and what the operator's policy files allow ([`policy`]). It refuses to know sockets, files, clocks and randomness: time
//! and bytes are handed in.
//!
//! There are no child grants in this version: every grant is minted by management from policy, so nothing is
//! ever narrowed and nothing could be widened on the way.
//!
//! INVARIANT: deny is the default; an error while deciding is a deny.

pub mod grant;
pub mod guard;
pub mod policy;
pub mod revocation;
pub mod secret;
pub mod vocabulary;

mod danger;
