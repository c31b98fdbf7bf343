//! Switches that turn off one defence at a time, so that a test can show that the defence is what stops the
//! attack.
//!
//! INVARIANT: outside this crate's own tests there is no switch; `on` is then the constant `true`.

macro_rules! defences {
    ($($defence:ident,)+) => {
        /// One check of the grant or of the guard, by the attack that it stops.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(crate) enum Defence { $($defence,)+ }

        #[cfg(test)]
        impl Defence {
            /// Every one of them.
            pub(crate) const ALL: &'static [Self] = &[$(Self::$defence,)+];
        }
    };
}

defences! {
    Signature,
    Canonical,
    Lease,
    Rollback,
    Holder,
    Key,
    Epoch,
    Audience,
    NotBefore,
    Expiry,
    Lifetime,
    Revision,
    GrantRevocation,
    TaskRevocation,
    AgentRevocation,
    KeyRevocation,
    KillSwitch,
    Action,
    Portfolio,
    Symbols,
    MarketDay,
    MarketDayOfWrites,
    Uses,
    Rows,
    Orders,
    Notional,
    OrderSize,
    OrderCost,
}

/// Which defences are on: all of them, except in a test that turned one off.
#[derive(Debug, Clone, Copy, Default)]
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
