//! Whom everybody trusts: how an authority is replaced without a request that fails.
//!
//! The root signs three bundles in advance. The first adds the new authority behind the old one; once every member goes
//! by it, the second has the new one issue, and the members of the class replace their keys; once all have, the third
//! leaves the old one out. A member that is silent holds the others up for a while only: it enrols anew.
//!
//! INVARIANT: a bundle is published only with the root's signature and a higher version than the one before.

use std::time::Instant;

use audit::record::Record;
use identity::{Bundle, PeerClass, SignedBundle};
use wire::journal::unix_ms;

use super::{Control, ControlError, refused};
use crate::bootstrap;
use crate::database::{Table, Writes};
use crate::state::{State, WaitingBundles};

/// How long a step waits for members that are silent, in seconds.
const STEP_MAX_S: u64 = 15;
/// Most bundles that are published in a row.
const BUNDLES_MAX: usize = 8;

impl Control {
    /// Publishes the first of these bundles now, and each of the others when everybody is ready for it.
    ///
    /// # Errors
    /// When the root did not sign one of them, or its version is not higher than the one before.
    pub fn publish_bundles(&self, bundles: Vec<SignedBundle>, by: &str) -> Result<u64, ControlError> {
        if bundles.is_empty() || bundles.len() > BUNDLES_MAX {
            return Err(refused("bad_bundles", format!("give 1 to {BUNDLES_MAX} bundles")));
        }
        let authorities = self.authorities();
        let mut held = authorities.version;
        for signed in &bundles {
            let bundle = signed
                .verify(&authorities.root, held.saturating_add(1))
                .map_err(|error| refused("bad_bundle", error.to_string()))?;
            if bundle.trust_domain != authorities.trust_domain {
                return Err(refused("bad_bundle", "it is for another installation"));
            }
            held = bundle.version;
        }
        let mut state = self.state();
        if state.waiting_bundles.is_some() {
            return Err(refused("busy", "an authority is being replaced already; it takes a minute at most"));
        }
        state.waiting_bundles =
            Some(WaitingBundles { bundles: bundles.into(), by: by.to_owned(), since: Instant::now() });
        self.publish_next(&mut state)
    }

    /// How many bundles wait to be published.
    #[must_use]
    pub fn bundles_waiting(&self) -> usize {
        self.state().waiting_bundles.as_ref().map_or(0, |waiting| waiting.bundles.len())
    }

    /// Publishes the next bundle, if there is one and everybody is ready for it.
    ///
    /// # Errors
    /// When it cannot be recorded or stored.
    pub fn go_on_publishing(&self) -> Result<(), ControlError> {
        let mut state = self.state();
        let Some(waiting) = &state.waiting_bundles else { return Ok(()) };
        let late = waiting.since.elapsed().as_secs() >= STEP_MAX_S;
        if late || self.everybody_is_ready(&state) {
            self.publish_next(&mut state)?;
        }
        Ok(())
    }

    /// Whether every member goes by the bundle of the moment, and has keys from the authority that issues.
    fn everybody_is_ready(&self, state: &State) -> bool {
        let authorities = self.authorities();
        state.registry.members().filter(|member| !member.quarantined && !member.is_revoked()).all(|member| {
            let holds = state.bundles_held.get(&member.id).is_some_and(|held| *held >= authorities.version);
            let issuing = PeerClass::of(&member.id).and_then(|class| authorities.classes.get(&class));
            let issuing = issuing.map(|authority| keys::Digest::of(authority.certificate()).to_string());
            let issued = member.keys.active().map(|set| set.authority.clone());
            holds && (issued.is_none() || issued == issuing)
        })
    }

    fn publish_next(&self, state: &mut State) -> Result<u64, ControlError> {
        let before = self.authorities();
        let Some(waiting) = state.waiting_bundles.as_mut() else { return Ok(before.version) };
        let (Some(signed), by) = (waiting.bundles.pop_front(), waiting.by.clone()) else {
            return Ok(before.version);
        };
        waiting.since = Instant::now();
        if waiting.bundles.is_empty() {
            state.waiting_bundles = None;
        }
        let bundle = signed
            .verify(&before.root, before.version.saturating_add(1))
            .map_err(|error| refused("bad_bundle", error.to_string()))?;
        let next = bootstrap::authorities_of(before.root, before.store.clone(), signed.clone())
            .map_err(|error| ControlError::Unavailable(error.to_string()))?;
        self.journal.record_durably(&Record::BundlePublished {
            version: bundle.version,
            authorities: named(&bundle),
            by,
        })?;
        bootstrap::write_bundle(&self.home.layout, &signed)
            .map_err(|error| ControlError::Unavailable(error.to_string()))?;
        let mut writes = Writes::default();
        writes.put(Table::Tasks, "bundles_waiting", &stored(state))?;
        self.store(writes);
        self.use_authorities(next, unix_ms() / 1_000)?;
        tracing::info!(version = bundle.version, "a new trust bundle is published");
        Ok(bundle.version)
    }
}

fn stored(state: &State) -> Vec<SignedBundle> {
    state.waiting_bundles.iter().flat_map(|waiting| waiting.bundles.iter().cloned()).collect()
}

fn named(bundle: &Bundle) -> std::collections::BTreeMap<String, Vec<String>> {
    PeerClass::ALL
        .iter()
        .map(|class| {
            let digests = bundle.authorities(*class);
            let digests = digests.iter().map(|authority| keys::Digest::of(authority.der()).to_string());
            (class.as_str().to_owned(), digests.collect())
        })
        .collect()
}
