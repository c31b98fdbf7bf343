//! Fakes and helpers for tests.
//!
//! Owns: an installation made on the spot ([`house`]), the attacks that every guarded route must refuse ([`denials`]), a
//! whole running system ([`system`]) and whoever attacks it ([`intruder`], [`hostile`]). Nothing here is part of the
//! product; what surprises a helper ends the test.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a helper of tests stops at the first surprise"
)]

pub mod denials;
pub mod forger;
pub mod hostile;
pub mod house;
pub mod intruder;
pub mod system;
