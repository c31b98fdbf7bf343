//! A data unit: the REST server in front of one processing database.
//!
//! Owns: the routes of the four data domains, one listener per class of peers, and the life of the process. A
//! request is parsed strictly, passes the one guard of the process, and only then reaches the database. It
//! refuses to know who may have what: grants say it, and [`wire::guard`] asks them.
//!
//! INVARIANT: nothing later than the grant's market day leaves a unit, whatever the query.
//! INVARIANT: a write is announced in the journal before it is done; a read is paid for before it is
//! answered.
//!
//! Where to read next: `shared` for what every route does, then the routes of one domain.

mod articles;
mod bars;
mod books;
mod parse;
mod research;
mod run;
mod service;
mod shared;

pub use run::{RunError, run};
pub use service::{Listener, listeners, name_of};
