//! Attestation: whether a newcomer is what its entry demands, judged from what it shows and from nothing else.
//!
//! Every attestor is a function of the bytes that were shown, of the entry, and of a challenge that was made for this one
//! connection: nothing is fetched, and what is read is read from the very bytes that were verified. Evidence that is
//! demanded and missing, wrong, or shown though nobody asked for it refuses the newcomer.
//!
//! What each proves: the *ticket*, that an operator let this name in; *unix*, which program of which user is at the other
//! end of the socket (not that nobody steers it: that user can); *x509pop*, possession of a host's key that a named
//! authority certified; *tpm2*, that a certain chip is at hand, and what it measured when its machine started.
//!
//! INVARIANT: [`Attested`] is made by [`attest`] alone, for one entry, one TLS key and one set of keys; without one,
//! nobody is certified for the first time.

pub mod challenge;
mod credential;
pub mod host;
pub mod tpm;

use std::collections::BTreeMap;

use keys::Digest;
use serde::{Deserialize, Serialize};

use self::challenge::Challenge;
use crate::danger::{Defence, Switches};
use crate::entry::{Entry, Limits, Redeemed, UnixProgram};
use crate::{KeySet, SpiffeId};

/// What a newcomer shows besides its ticket.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Evidence {
    /// A host's certificate, and a signature by its key.
    pub host: Option<host::HostEvidence>,
    /// What a TPM said.
    pub tpm: Option<tpm::TpmEvidence>,
}

/// The program at the other end of a socket of this machine, as the kernel tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LocalProgram {
    /// The user that runs it.
    pub uid: u32,
    /// SHA-256 of the program.
    pub executable: Digest,
}

/// Everything that is known of a newcomer when it is judged.
#[derive(Debug)]
pub struct Shown<'a> {
    /// SHA-256 of the TLS key that its connection proved.
    pub tls_key: [u8; 32],
    /// The keys that it offers.
    pub keys: &'a KeySet,
    /// What the kernel says of it; nothing for who came over the network.
    pub local: Option<LocalProgram>,
    /// The challenge that was made for its TLS key, taken out for good.
    pub challenge: Option<Challenge>,
    /// What it shows.
    pub evidence: &'a Evidence,
}

/// Why a newcomer is not what its entry demands. For the log only: outside, all of these look like a wrong ticket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unattested {
    /// The offered TLS key is not that of the connection.
    #[error("the offered TLS key is another than the connection's")]
    TlsKey,
    /// Evidence was shown that the entry does not ask for.
    #[error("evidence that the entry does not ask for")]
    Surplus,
    /// There is no challenge for this connection, or it is too old.
    #[error("no fresh challenge")]
    NotFresh,
    /// It came over the network, or the kernel does not tell who it is.
    #[error("unix: not known to the kernel")]
    UnixMissing,
    /// Another user runs it.
    #[error("unix: another user")]
    UnixUser,
    /// It is another program.
    #[error("unix: another program")]
    UnixProgram,
    /// No host certificate was shown.
    #[error("x509pop: none shown")]
    HostMissing,
    /// Certificates or signature are too many, too large, unreadable, or of keys that are too weak.
    #[error("x509pop: not acceptable in form")]
    HostForm,
    /// The chain does not lead to a root of the entry.
    #[error("x509pop: no chain to a root of the entry")]
    HostChain,
    /// The certificate names another host.
    #[error("x509pop: another host")]
    HostName,
    /// The signature over the challenge does not verify.
    #[error("x509pop: wrong signature")]
    HostSignature,
    /// No TPM was shown.
    #[error("tpm2: none shown")]
    TpmMissing,
    /// Something that the TPM said cannot be read.
    #[error("tpm2: not acceptable in form")]
    TpmForm,
    /// It is another TPM.
    #[error("tpm2: another endorsement key")]
    TpmEk,
    /// The attestation key may leave its TPM, or may sign what did not come from it.
    #[error("tpm2: the attestation key is not bound to its TPM")]
    TpmAk,
    /// The attestation key is not in the TPM with the endorsement key.
    #[error("tpm2: the credential was not activated")]
    TpmActivation,
    /// The quote is not signed by the attestation key.
    #[error("tpm2: wrong signature")]
    TpmSignature,
    /// The quote is not about this challenge.
    #[error("tpm2: the quote is for another challenge")]
    TpmChallenge,
    /// The machine started in another state.
    #[error("tpm2: other measurements")]
    TpmPcrs,
}

impl Unattested {
    /// The reason's one spelling in the log.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::TlsKey => "keys_unproven",
            Self::Surplus => "evidence_surplus",
            Self::NotFresh => "challenge_missing",
            Self::UnixMissing => "unix_missing",
            Self::UnixUser => "unix_user",
            Self::UnixProgram => "unix_program",
            Self::HostMissing => "host_missing",
            Self::HostForm => "host_form",
            Self::HostChain => "host_chain",
            Self::HostName => "host_name",
            Self::HostSignature => "host_signature",
            Self::TpmMissing => "tpm_missing",
            Self::TpmForm => "tpm_form",
            Self::TpmEk => "tpm_ek",
            Self::TpmAk => "tpm_ak",
            Self::TpmActivation => "tpm_activation",
            Self::TpmSignature => "tpm_signature",
            Self::TpmChallenge => "tpm_challenge",
            Self::TpmPcrs => "tpm_pcrs",
        }
    }
}

/// What an attestor found, for the log.
pub(crate) type Facts = BTreeMap<String, String>;

/// A newcomer that is what its entry demands. It lets these very keys be certified for this very id, once.
#[derive(Debug)]
pub struct Attested {
    entry: Entry,
    keys: KeySet,
    facts: Facts,
}

impl Attested {
    /// Who.
    #[must_use]
    pub fn id(&self) -> &SpiffeId {
        &self.entry.id
    }

    /// The keys that were judged, and may be certified.
    #[must_use]
    pub fn keys(&self) -> &KeySet {
        &self.keys
    }

    /// Within which limits.
    #[must_use]
    pub fn limits(&self) -> Limits {
        self.entry.limits
    }

    /// By what: `ticket` and the names of the attestors.
    #[must_use]
    pub fn by(&self) -> Vec<&'static str> {
        self.entry.requires.names()
    }

    /// What the attestors found, by name: words for the log.
    #[must_use]
    pub fn facts(&self) -> &BTreeMap<String, String> {
        &self.facts
    }
}

/// Judges a newcomer whose ticket was redeemed. `now_ms` in milliseconds since the Unix epoch.
///
/// # Errors
/// Why it is not what the entry demands. The ticket is used up all the same.
pub fn attest(redeemed: Redeemed, shown: Shown<'_>, now_ms: i64) -> Result<Attested, Unattested> {
    judge(redeemed, shown, now_ms, Switches::default())
}

fn judge(
    redeemed: Redeemed,
    shown: Shown<'_>,
    now_ms: i64,
    switches: Switches,
) -> Result<Attested, Unattested> {
    let entry = redeemed.into_entry();
    if shown.keys.tls != keys::to_hex(&shown.tls_key) && switches.on(Defence::TlsKey) {
        return Err(Unattested::TlsKey);
    }
    let (demanded, evidence) = (&entry.requires, shown.evidence);
    let surplus = (evidence.host.is_some() && demanded.host.is_none())
        || (evidence.tpm.is_some() && demanded.tpm.is_none());
    if surplus && switches.on(Defence::Surplus) {
        return Err(Unattested::Surplus);
    }
    let mut facts = Facts::new();
    if let Some(unix) = &demanded.unix {
        is_program(unix, shown.local, switches, &mut facts)?;
    }
    if demanded.host.is_none() && demanded.tpm.is_none() {
        return Ok(Attested { entry, keys: shown.keys.clone(), facts });
    }
    let challenge = shown.challenge.ok_or(Unattested::NotFresh)?;
    if !challenge.is_fresh(now_ms) && switches.on(Defence::Fresh) {
        return Err(Unattested::NotFresh);
    }
    let bound = challenge::binding(challenge.nonce(), &entry.id, shown.keys);
    if let Some(host) = &demanded.host {
        let shown = evidence.host.as_ref().ok_or(Unattested::HostMissing)?;
        host::is_host(host, shown, &bound, now_ms / 1_000, switches, &mut facts)?;
    }
    if let Some(state) = &demanded.tpm {
        let shown = evidence.tpm.as_ref().ok_or(Unattested::TpmMissing)?;
        tpm::is_tpm(state, shown, &challenge, &bound, switches, &mut facts)?;
    }
    Ok(Attested { entry, keys: shown.keys.clone(), facts })
}

fn is_program(
    demanded: &UnixProgram,
    local: Option<LocalProgram>,
    switches: Switches,
    facts: &mut Facts,
) -> Result<(), Unattested> {
    let local = local.ok_or(Unattested::UnixMissing)?;
    if local.uid != demanded.uid && switches.on(Defence::Uid) {
        return Err(Unattested::UnixUser);
    }
    let executable = local.executable.to_string();
    if !demanded.executables.contains(&executable) && switches.on(Defence::Executable) {
        return Err(Unattested::UnixProgram);
    }
    facts.insert("unix.uid".to_owned(), local.uid.to_string());
    facts.insert("unix.executable".to_owned(), executable);
    Ok(())
}

#[cfg(test)]
mod tests;
