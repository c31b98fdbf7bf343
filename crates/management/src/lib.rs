//! The control plane: identity authority, policy decisions, scheduler, audit log, sentinel, operator API.
//!
//! Owns: every decision that gives or takes a right, and the log that proves them. Knows nothing of prices or positions:
//! it hands out work and permissions, and never touches data or orders itself.
//!
//! INVARIANT: no right leaves before policy allowed it and the journal has it.
//! Read on in [`control`], [`schedule`], [`routes`].

pub mod bootstrap;
pub mod cases;
pub mod control;
pub mod custody;
pub mod database;
pub mod door;
pub mod joiner;
pub mod log_files;
pub mod needs;
pub mod plan;
pub mod projection;
pub mod registry;
pub mod response;
pub mod routes;
pub mod run;
pub mod schedule;
pub mod secrets;
pub mod state;
pub mod vault;
