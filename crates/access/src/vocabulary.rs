//! The words of permission: audiences, actions, task kinds, market days, grant claims and their limits.
//!
//! Every other module of this crate speaks these words; nothing here decides anything. A new action is added here, in
//! `policies/`, and in the route that demands it.

use std::collections::BTreeSet;
use std::fmt;

use serde::{Deserialize, Serialize};

/// Declares a closed set of words: an enum with one fixed spelling each, the same in code, policy, API and log.
macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$word_doc:meta])* $word:ident = $text:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[derive(serde::Serialize, serde::Deserialize)]
        pub enum $name { $($(#[$word_doc])* #[serde(rename = $text)] $word,)+ }

        impl $name {
            /// Every word of the set.
            pub const ALL: &'static [$name] = &[$($name::$word,)+];

            /// The word's one spelling.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self { $($name::$word => $text,)+ }
            }

            /// Parses the one spelling; anything else is `None`.
            #[must_use]
            pub fn parse(text: &str) -> Option<Self> {
                match text { $($text => Some($name::$word),)+ _ => None }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result { f.write_str(self.as_str()) }
        }
    };
}

pub(crate) use words;

words! {
    /// Whom a grant is shown to: one data domain, or the desk.
    Audience {
        /// Bars and splits.
        Market = "market",
        /// Articles.
        News = "news",
        /// Forecasts and reports.
        Research = "research",
        /// Fills, positions, cash, equity.
        Ledger = "ledger",
        /// The market-access gateway.
        Desk = "desk",
    }
}

words! {
    /// What a grant lets its holder do.
    Action {
        /// Read bars and splits up to the grant's market day.
        ReadBars = "read_bars",
        /// Write bars and splits up to the grant's market day.
        WriteBars = "write_bars",
        /// Read articles published up to the grant's market day.
        ReadArticles = "read_articles",
        /// Write articles published up to the grant's market day.
        WriteArticles = "write_articles",
        /// Read forecasts made up to the grant's market day.
        ReadForecasts = "read_forecasts",
        /// Write forecasts of the grant's market day.
        WriteForecasts = "write_forecasts",
        /// Write the report of the grant's market day.
        WriteReports = "write_reports",
        /// Read positions, cash and equity of the grant's portfolio.
        ReadLedger = "read_ledger",
        /// Write fills and closes of market days; the desk only.
        WriteLedger = "write_ledger",
        /// Place orders for the grant's portfolio, within its limits.
        PlaceOrders = "place_orders",
    }
}

words! {
    /// What a task is, which decides the module that does it and the grants it needs.
    TaskKind {
        /// Bring in the bars that have become known since the last step.
        Collect = "collect",
        /// The desk's own: run the market days since the last step.
        Session = "session",
        /// Train on the past, forecast.
        Analyse = "analyse",
        /// Turn forecasts into orders.
        Rebalance = "rebalance",
        /// Sum up a period.
        Report = "report",
    }
}

words! {
    /// What a revocation strikes.
    RevocationKind {
        /// One grant.
        Grant = "grant",
        /// Every grant of one task.
        Task = "task",
        /// Every grant of one agent up to an epoch; the id is `SPIFFE-ID#EPOCH`.
        Agent = "agent",
        /// One TLS key, which its holder has replaced; the id is the SHA-256 of its SubjectPublicKeyInfo.
        Key = "key",
        /// Everything, until two people clear it.
        Everything = "everything",
        /// Lifts every `everything` up to the revision that is its id, in decimal digits; the work of two people.
        Clearance = "clearance",
    }
}

/// A day of market time, ordered like the calendar. Units: the number yyyymmdd.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MarketDay(u32);

impl MarketDay {
    /// Parses `YYYY-MM-DD`; anything else, and any day that no month has, is `None`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (year, rest) = text.split_once('-')?;
        let (month, day) = rest.split_once('-')?;
        let digits =
            |part: &str, length| part.len() == length && part.bytes().all(|byte| byte.is_ascii_digit());
        if !digits(year, 4) || !digits(month, 2) || !digits(day, 2) {
            return None;
        }
        let (year, month, day): (u32, u32, u32) =
            (year.parse().ok()?, month.parse().ok()?, day.parse().ok()?);
        Self::from_number(year * 10_000 + month * 100 + day)
    }

    /// Takes the number yyyymmdd; `None` when it is no day.
    #[must_use]
    pub fn from_number(number: u32) -> Option<Self> {
        let (year, month, day) = (number / 10_000, number / 100 % 100, number % 100);
        let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
        let days = match month {
            1 | 3 | 5 | 7 | 8 | 10 | 12 => 31,
            4 | 6 | 9 | 11 => 30,
            2 if leap => 29,
            2 => 28,
            _ => return None,
        };
        ((1900..=2999).contains(&year) && (1..=days).contains(&day)).then_some(Self(number))
    }

    /// The number yyyymmdd.
    #[must_use]
    pub fn number(self) -> u32 {
        self.0
    }
}

impl fmt::Display for MarketDay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04}-{:02}-{:02}", self.0 / 10_000, self.0 / 100 % 100, self.0 % 100)
    }
}

impl TryFrom<String> for MarketDay {
    type Error = String;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        Self::parse(&text).ok_or_else(|| format!("{text:?} is no day of the form YYYY-MM-DD"))
    }
}

impl From<MarketDay> for String {
    fn from(day: MarketDay) -> Self {
        day.to_string()
    }
}

/// Numeric limits inside a grant. `None` means that the grant does not carry that right at all, never "unlimited".
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// Sum of the notionals of all orders, in millionths of a dollar.
    pub notional: Option<i64>,
    /// Notional of one order, in millionths of a dollar.
    pub order_notional: Option<i64>,
    /// Number of orders.
    pub orders: Option<u32>,
    /// Rows read or written.
    pub rows: Option<u64>,
}

/// What a grant says. Signed as deterministic CBOR; see [`crate::grant`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claims {
    /// The grant's own identifier, 32 hexadecimal digits.
    pub grant: String,
    /// The task that is the reason for the grant.
    pub task: String,
    /// SPIFFE ID of the holder.
    pub holder: String,
    /// The holder's enrolment epoch: grants of an earlier one are dead.
    pub epoch: u32,
    /// SHA-256 of the holder's TLS public key (SubjectPublicKeyInfo, DER).
    pub holder_key: [u8; 32],
    /// Whom the grant is shown to.
    pub audience: Audience,
    /// What it lets the holder do.
    pub actions: BTreeSet<Action>,
    /// Portfolio it is for, where the action concerns one.
    pub portfolio: Option<String>,
    /// Symbols it is for.
    pub symbols: BTreeSet<String>,
    /// Outside sources that the holder may fetch for its module.
    pub sources: BTreeSet<String>,
    /// Limits in numbers.
    pub limits: Limits,
    /// How many requests may be made with it.
    pub max_uses: u32,
    /// Nothing that became known after this market day is served or accepted.
    pub market_day: MarketDay,
    /// Valid from, in seconds since the Unix epoch.
    pub not_before: i64,
    /// Valid until, in seconds since the Unix epoch.
    pub expires: i64,
    /// Digest of the policy set under which it was issued.
    pub policy: [u8; 32],
    /// The revocation log's position at issue: a guard that has not heard as much waits.
    pub revision: u64,
}

/// One line of the revocation log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Revocation {
    /// Position in the log, from 1, without gaps.
    pub revision: u64,
    /// What is struck.
    pub kind: RevocationKind,
    /// Which one of that kind.
    pub id: String,
    /// When it is of no more use because everything it strikes has expired, in seconds since the Unix epoch;
    /// `None` for ever.
    pub until: Option<i64>,
}
