//! The shapes that cross a connection between our own processes: JSON in, JSON out.
//!
//! They mirror the domain types and stay apart from them, so that a change inside is not a change of the protocol by
//! accident. Every shape refuses unknown fields.

use std::collections::BTreeMap;

use identity::{KeySet, SignedBundle};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// A piece of work for one holder, and the reason for its grants.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Task {
    /// Identifier, the same whoever does it: `2005-03-16/rebalance/core`.
    pub id: String,
    /// `collect`, `session`, `analyse`, `rebalance` or `report`.
    pub kind: String,
    /// Portfolio, where it concerns one.
    pub portfolio: Option<String>,
    /// The market day it is for; nothing later may be seen.
    pub market_day: String,
    /// How many have taken it, this time included.
    pub attempt: u32,
    /// What else the module needs to know.
    pub params: Value,
}

/// A grant as it is handed to its holder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GrantForHolder {
    /// Identifier.
    pub id: String,
    /// Whom it is shown to.
    pub audience: String,
    /// Portfolio it is for.
    pub portfolio: Option<String>,
    /// What it allows.
    pub actions: Vec<String>,
    /// Outside sources that the holder may fetch.
    pub sources: Vec<String>,
    /// The signed grant, base64url.
    pub text: String,
    /// Seconds since the Unix epoch.
    pub expires: i64,
}

/// Asks for the next task: the standing permission *check queue*.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QueueRequest {
    /// How long to wait for one, in milliseconds.
    pub wait_ms: u64,
}

/// The next task with its grants, or nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QueueReply {
    /// The task.
    pub task: Option<Task>,
    /// One grant for each audience that it needs.
    pub grants: Vec<GrantForHolder>,
    /// How long the holder has, in milliseconds, before the task goes to another.
    pub lease_ms: u64,
}

/// Reports status: the standing permission by which journal lines and ended tasks reach management.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StatusReport {
    /// Journal lines not yet joined, in order.
    pub journal: Vec<String>,
    /// A task that ended.
    pub ended: Option<TaskEnd>,
    /// Version of the trust bundle that the reporter goes by.
    #[serde(default)]
    pub bundle: u64,
}

/// How a task ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TaskEnd {
    /// Task.
    pub task: String,
    /// Attempt that ended.
    pub attempt: u32,
    /// Whether it was done.
    pub done: bool,
    /// What it brought, or why not.
    pub detail: Value,
}

/// Answer to a status report.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StatusReply {
    /// Sequence number of the next journal line that management expects.
    pub joined: u64,
    /// The trust bundle, where the reporter has an older one.
    #[serde(default)]
    pub bundle: Option<SignedBundle>,
    /// Whether the reporter is to replace its keys.
    #[serde(default)]
    pub renew: bool,
}

/// A new set of keys, offered to be certified.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyOffer {
    /// Public halves.
    pub keys: KeySet,
    /// The TLS key's SubjectPublicKeyInfo: DER, base64.
    pub spki: String,
    /// The new signing key's signature over [`KeySet::statement`], 128 hexadecimal digits.
    pub proof: String,
    /// The current signing key's signature over the same; a newcomer has none.
    pub endorsement: Option<String>,
}

/// The certificate for an offered set, and what its sealing keys must open before it counts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyChallenge {
    /// Certificate: DER, base64.
    pub certificate: String,
    /// Number of the set, which is part of what was sealed.
    pub sequence: u64,
    /// 32 random bytes, sealed to the key of the channel `control`.
    pub control: String,
    /// The same for `data`.
    pub data: String,
    /// The same for `alerts`.
    pub alerts: String,
}

/// What was sealed in a [`KeyChallenge`], 64 hexadecimal digits each.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyProof {
    /// Of `control`.
    pub control: String,
    /// Of `data`.
    pub data: String,
    /// Of `alerts`.
    pub alerts: String,
}

impl KeyProof {
    /// What management keeps of a challenge until it is answered: a digest of all of it.
    #[must_use]
    pub fn digest(&self) -> String {
        let parts = [self.control.as_bytes(), self.data.as_bytes(), self.alerts.as_bytes()];
        keys::Digest::of_parts(&parts).to_string()
    }
}

/// Asks that a stored secret be opened, sealed to the asker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SecretRequest {
    /// The secret's name.
    pub name: String,
}

/// A secret, sealed to who asked for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SecretReply {
    /// How often it was stored under its name.
    pub version: u64,
    /// Number of the sealed message, which is part of what it was sealed for.
    pub sequence: u64,
    /// Name, version and secret, sealed to the key of the channel `data`; see [`crate::secrets`].
    pub sealed: String,
}

/// Verifies the asker's role: the standing permission *verify role*.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RoleReply {
    /// SPIFFE ID.
    pub id: String,
    /// Peer class.
    pub class: String,
    /// Epoch of the identity.
    pub epoch: u32,
    /// Whether tasks are withheld.
    pub quarantined: bool,
}

/// A guard asks for revocations after those it knows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RevocationPoll {
    /// Highest revision that this guard enforces: its acknowledgement.
    pub acknowledged: u64,
    /// How long to hold the answer when there is nothing new, in milliseconds.
    pub wait_ms: u64,
}

/// A forecast to be stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ForecastBody {
    /// Forecast id: `PORTFOLIO/DAY`.
    pub id: String,
    /// Portfolio.
    pub portfolio: String,
    /// Content.
    pub forecast: Value,
}

/// Bars and splits of several symbols, as rows of whole numbers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BarsBody {
    /// Data set.
    pub dataset: String,
    /// Rows by symbol: `[day, open, high, low, close, volume]`, day as yyyymmdd, prices in millionths of a dollar.
    pub bars: BTreeMap<String, Vec<[i64; 6]>>,
    /// Splits by symbol: `[day, numerator, denominator]`.
    pub splits: BTreeMap<String, Vec<[i64; 3]>>,
}

/// What became of rows that were written.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Written {
    /// Rows new to the database.
    pub new: u64,
    /// Rows that were there already, the same.
    pub same: u64,
    /// Rows refused because another value stands there.
    pub conflicts: Vec<String>,
}

/// An order as a module proposes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OrderBody {
    /// Client order id, one for ever.
    pub id: String,
    /// Portfolio.
    pub portfolio: String,
    /// Symbol.
    pub symbol: String,
    /// `buy` or `sell`.
    pub side: String,
    /// Shares.
    pub quantity: i64,
    /// Reference price, millionths of a dollar.
    pub price: i64,
    /// Forecast that it follows from.
    pub forecast: Option<String>,
}

/// What the desk answers to an order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OrderReply {
    /// Client order id.
    pub id: String,
    /// `sent`, `rejected`, `filled`, `expired` or `unknown`.
    pub status: String,
    /// Reason code.
    pub reason: String,
}

/// One entry for the ledger: a fill, a split, or the close of a day.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "entry", rename_all = "snake_case", deny_unknown_fields)]
pub enum LedgerEntry {
    /// Opens a portfolio with cash.
    Open {
        /// Portfolio.
        portfolio: String,
        /// Market day.
        day: String,
        /// Cash, millionths of a dollar.
        cash: i64,
    },
    /// A fill.
    Fill {
        /// Fill id.
        id: String,
        /// Order id.
        order: String,
        /// Portfolio.
        portfolio: String,
        /// Market day.
        day: String,
        /// Symbol.
        symbol: String,
        /// `buy` or `sell`.
        side: String,
        /// Shares.
        quantity: i64,
        /// Price, millionths of a dollar.
        price: i64,
        /// Fee, millionths of a dollar.
        fee: i64,
    },
    /// A split: shares change, and a fraction is paid out in cash.
    Split {
        /// Portfolio.
        portfolio: String,
        /// Market day.
        day: String,
        /// Symbol.
        symbol: String,
        /// Shares after the split.
        quantity: i64,
        /// Cash paid for the fraction, millionths of a dollar.
        cash: i64,
    },
    /// The close of a market day.
    Close {
        /// Portfolio.
        portfolio: String,
        /// Market day.
        day: String,
        /// Equity, millionths of a dollar.
        equity: i64,
        /// Cash, millionths of a dollar.
        cash: i64,
    },
}

/// Holdings of a portfolio.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Holdings {
    /// Cash, millionths of a dollar.
    pub cash: i64,
    /// Equity at the last close, millionths of a dollar.
    pub equity: i64,
    /// Shares by symbol.
    pub positions: BTreeMap<String, i64>,
}

/// Equity of a portfolio, day by day.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EquityCurve {
    /// Market day and equity, millionths of a dollar.
    pub days: Vec<(String, i64)>,
}
