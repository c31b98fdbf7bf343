//! Fakes and helpers for tests.
//!
//! Owns: an installation made on the spot ([`house`]), the attacks that every guarded route must refuse ([`denials`]), a
//! whole running system ([`system`]), whoever attacks it ([`intruder`], [`hostile`]), and secrets that are looked for where
//! they must not be ([`canary`]). Nothing here is part of the
//! product; what surprises a helper ends the test.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a helper of tests stops at the first surprise"
)]

pub mod canary;
pub mod denials;
pub mod forger;
pub mod hostile;
pub mod house;
pub mod intruder;
pub mod system;
