//! The node agent: takes tasks, runs modules in cells, speaks for them.
//!
//! Owns: the node's identity, the modules' cells, and the one way from a module to the rest of the system. A module has no
//! network and no files; what it asks for, its agent asks for it, with the grant of the task and nothing more. The agent
//! believes neither the module nor itself: every answer comes from behind a guard.
//!
//! INVARIANT: no module starts but from bytes that a threshold of release keys signed, and the journal says which.
//! Read on in [`run`], [`modules`], [`speaker`].

pub mod modules;
pub mod run;
pub mod speaker;
pub mod workload;
