//! Fakes and helpers for tests.
//!
//! Owns: an installation made on the spot ([`house`]), and the attacks that every guarded route must refuse
//! ([`denials`]). Nothing here is part of the product; what surprises a helper ends the test.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a helper of tests stops at the first surprise")]

pub mod denials;
pub mod house;
pub mod system;
