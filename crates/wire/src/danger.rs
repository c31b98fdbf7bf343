//! Switches that turn off one defence of the edge at a time, so that a test can show that the defence is what stops the
//! attack.
//!
//! INVARIANT: outside this crate's own tests there is no switch; `on` is then the constant `true`, and the clock is the
//! machine's.

use rustls::time_provider::TimeProvider;
use rustls_pki_types::UnixTime;

macro_rules! defences {
    ($($defence:ident,)+) => {
        /// One check of the edge, by the attack that it stops.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(crate) enum Defence { $($defence,)+ }

    };
}

defences! {
    Class,
    Authority,
    Constraint,
    PinnedAuthorities,
    Validity,
    KeyStrength,
    ChainSize,
    Possession,
    NoTickets,
    NoEarlyData,
    HybridOnly,
    ConnectionAge,
}

/// Which defences are on: all of them, except in a test that turned some off.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Switches {
    #[cfg(test)]
    off: &'static [Defence],
}

impl Switches {
    /// Whether the defence is on.
    pub(crate) fn on(self, defence: Defence) -> bool {
        #[cfg(test)]
        if self.off.contains(&defence) {
            return false;
        }
        let _ = defence;
        true
    }

    /// Every defence but these.
    #[cfg(test)]
    pub(crate) fn without(off: &'static [Defence]) -> Self {
        Self { off }
    }
}

/// The wall clock of a listener; a test may set it ahead.
#[derive(Debug, Clone, Default)]
pub(crate) struct Clock {
    #[cfg(test)]
    ahead_s: std::sync::Arc<std::sync::atomic::AtomicU64>,
}

impl Clock {
    /// Now.
    pub(crate) fn unix(&self) -> UnixTime {
        let now = UnixTime::now();
        #[cfg(test)]
        let now = UnixTime::since_unix_epoch(std::time::Duration::from_secs(
            now.as_secs() + self.ahead_s.load(std::sync::atomic::Ordering::SeqCst),
        ));
        now
    }

    /// Now, in seconds since the Unix epoch.
    pub(crate) fn seconds(&self) -> i64 {
        i64::try_from(self.unix().as_secs()).unwrap_or(i64::MAX)
    }

    /// From now on it is so much later.
    #[cfg(test)]
    pub(crate) fn go_on(&self, seconds: u64) {
        self.ahead_s.fetch_add(seconds, std::sync::atomic::Ordering::SeqCst);
    }
}

impl TimeProvider for Clock {
    fn current_time(&self) -> Option<UnixTime> {
        Some(self.unix())
    }
}

/// Lets a listener do what it never does: issue session tickets, with one memory for all listeners, and take early data.
#[cfg(test)]
pub(crate) fn weaken(config: &mut rustls::ServerConfig, switches: Switches) {
    use std::sync::{Arc, OnceLock};

    use rustls::server::{ServerSessionMemoryCache, StoresServerSessions};

    static SESSIONS: OnceLock<Arc<dyn StoresServerSessions>> = OnceLock::new();
    if !switches.on(Defence::NoTickets) {
        let sessions = SESSIONS.get_or_init(|| ServerSessionMemoryCache::new(1_024));
        config.session_storage = sessions.clone();
        config.send_tls13_tickets = 2;
    }
    if !switches.on(Defence::NoEarlyData) {
        config.max_early_data_size = 16_384;
    }
}

/// A leaf whatever its key is.
#[cfg(test)]
pub(crate) fn leaf_of_any_key(der: &[u8]) -> Option<identity::Leaf> {
    use x509_parser::prelude::{FromDer as _, GeneralName};

    let (_, certificate) = x509_parser::certificate::X509Certificate::from_der(der).ok()?;
    let names = certificate.subject_alternative_name().ok()??;
    let [GeneralName::URI(uri)] = names.value.general_names.as_slice() else { return None };
    let id = identity::SpiffeId::parse(uri).ok()?;
    Some(identity::Leaf {
        class: id.class()?,
        id,
        key: keys::Digest::of(certificate.public_key().raw).0,
        epoch: 1,
        not_before: certificate.validity().not_before.timestamp(),
        expires: certificate.validity().not_after.timestamp(),
    })
}
