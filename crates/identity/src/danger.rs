//! Switches that turn off one defence of enrolment at a time, so that a test can show that the defence is what stops the
//! attack.
//!
//! INVARIANT: outside this crate's own tests there is no switch; `on` is then the constant `true`.

/// One check of the ticket or of the evidence, by what it stops.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Defence {
    SingleUse,
    Expiry,
    ForItsEntry,
    Throttle,
    LockOut,
    TlsKey,
    Uid,
    Executable,
    HostCaps,
    HostChain,
    HostName,
    HostSignature,
    Fresh,
    Surplus,
    PinnedEk,
    Attributes,
    Activation,
    QuoteSignature,
    QuoteChallenge,
    Pcrs,
}

/// Which defences are on: all of them, except in a test that turned one off.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Switches {
    #[cfg(test)]
    off: Option<Defence>,
}

impl Switches {
    /// Whether the defence is on.
    pub(crate) fn on(self, defence: Defence) -> bool {
        #[cfg(test)]
        if self.off == Some(defence) {
            return false;
        }
        let _ = defence;
        true
    }

    /// Every defence but one.
    #[cfg(test)]
    pub(crate) fn without(defence: Defence) -> Self {
        Self { off: Some(defence) }
    }
}
