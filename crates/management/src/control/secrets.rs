//! Secrets of the desk and of agents: stored under their domain's key, opened once for whoever may have them.
//!
//! A secret leaves management only sealed to the asker's current key of the channel `data`, and once: for a desk, once for
//! each of its sets of keys; for an agent, once for each attempt of a task that needs it. Whoever asks again is refused, and
//! the sentinel opens an incident: either an answer was lost, or somebody else has the keys.
//!
//! INVARIANT: an opening is recorded and stored before the sealed secret leaves.

use std::sync::{Arc, PoisonError};

use access::policy::{PolicyDecision, SecretQuery};
use access::secret::{SecretKind, SecretName};
use access::vocabulary::TaskKind;
use audit::record::Record;
use identity::PeerClass;
use keys::envelope::DomainKey;
use keys::sealing::{Channel, Context, Sealed, SealingPublicKey};
use wire::api::{SecretReply, SecretRequest};
use wire::journal::unix_ms;
use wire::tls::{Identity, Peer};
use zeroize::Zeroizing;

use super::{Control, ControlError, random, refused};
use crate::database::{Table, Writes};
use crate::needs;
use crate::schedule::TaskState;
use crate::secrets::{Purpose, SECRET_BYTES_MAX, SECRETS_MAX, StoredSecret};
use crate::state::State;
use crate::vault::{Unlocked, Vault};

/// What a member may have a secret opened for.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Right {
    /// It is stored for this desk.
    Holder,
    /// This attempt of a task fetches from the source.
    Task(String),
    /// Nothing.
    None,
}

/// What is told of a stored secret: nothing of its contents.
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
pub struct SecretView {
    /// Name.
    pub name: SecretName,
    /// What it opens.
    pub kind: SecretKind,
    /// For whom: the desk's SPIFFE ID, or the source's name.
    pub holder: String,
    /// How often it was stored under this name.
    pub version: u64,
    /// When it was stored last, in seconds since the Unix epoch.
    pub stored: i64,
    /// Who stored it.
    pub by: String,
    /// Domain under whose key it is sealed.
    pub domain: String,
    /// Version of that key.
    pub key_version: u32,
    /// Whether that version still opens.
    pub readable: bool,
    /// How often this version was opened.
    pub opened: usize,
}

/// One version of a domain's key, as operators see it.
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
pub struct DomainKeyView {
    /// Domain.
    pub domain: String,
    /// Version.
    pub version: u32,
    /// `active`, `decrypt_only`, `below_minimum` or `destroyed`.
    pub state: String,
    /// When it was made, in seconds since the Unix epoch.
    pub created: i64,
    /// Names of the secrets that are sealed under it.
    pub secrets: Vec<SecretName>,
}

impl Control {
    fn vault(&self) -> Vault {
        Vault::new(self.authorities().store.clone())
    }

    /// Writes an unlocked key's document if it changed, and records that.
    fn keep_key(
        &self,
        vault: &Vault,
        unlocked: &mut Unlocked,
        change: &str,
        by: &str,
    ) -> Result<(), ControlError> {
        let change = if unlocked.is_new() { "created" } else { change };
        if vault.keep(unlocked)? {
            self.record_key(unlocked.document(), change, by)?;
        }
        Ok(())
    }

    /// Remembers how far a domain's key is, and refuses a document that is behind it: one that was destroyed would open again.
    fn pin(&self, domain: &str, revision: u64) -> Result<(), ControlError> {
        let mut pinned = self.domain_revisions.lock().unwrap_or_else(PoisonError::into_inner);
        let known = pinned.entry(domain.to_owned()).or_default();
        if revision < *known {
            tracing::error!(domain, revision, known, "an older key of a domain was put back");
            return Err(ControlError::Unavailable(format!(
                "the key of the domain {domain} is of revision {revision}, and {known} was written: an older copy was put \
                 back; restore the newest one"
            )));
        }
        *known = revision;
        Ok(())
    }

    /// Unlocks a domain's key, if it is the newest that was written.
    fn unlock(&self, vault: &Vault, domain: &str, now: i64) -> Result<Unlocked, ControlError> {
        let unlocked = vault.unlock(domain, now)?;
        self.pin(domain, unlocked.stored())?;
        Ok(unlocked)
    }

    fn record_key(&self, document: &DomainKey, change: &str, by: &str) -> Result<(), ControlError> {
        self.pin(document.domain(), document.revision())?;
        self.journal.record_durably(&Record::DomainKeyChanged {
            domain: document.domain().to_owned(),
            revision: document.revision(),
            change: change.to_owned(),
            active: document.active(),
            by: by.to_owned(),
        })?;
        Ok(())
    }

    /// Management's own identity, to whose key an operator seals a secret.
    ///
    /// # Errors
    /// Where management has no listeners, it has no identity either.
    pub fn own_identity(&self) -> Result<Arc<Identity>, ControlError> {
        let credentials = self.home.credentials.as_ref();
        let identity = credentials.map(wire::tls::Credentials::current);
        identity.ok_or_else(|| ControlError::Unavailable("management has no identity here".to_owned()))
    }

    /// Opens what an operator sealed for storing.
    ///
    /// # Errors
    /// When it was sealed for another moment, name or key.
    pub fn unseal_for_storing(
        &self,
        name: &SecretName,
        sequence: u64,
        sealed: &str,
    ) -> Result<Zeroizing<Vec<u8>>, ControlError> {
        let unreadable =
            || refused("bad_secret", "it is not sealed to management's key of the moment; try again");
        let identity = self.own_identity()?;
        let (recipient, epoch) = (identity.id().as_str(), identity.epoch());
        let context = Context { channel: Channel::Control, recipient, epoch, sequence };
        let sealed = Sealed::parse(sealed).map_err(|_| unreadable())?;
        let message = identity.own_keys().open(&context, &sealed).map_err(|_| unreadable())?;
        let heading = wire::secrets::heading(name.as_str(), 0);
        let value = message.strip_prefix(heading.as_bytes()).ok_or_else(unreadable)?;
        Ok(Zeroizing::new(value.to_vec()))
    }

    /// Stores a secret, in the place of any earlier one of that name.
    ///
    /// # Errors
    /// When it is empty or too long, there are too many, or the store of keys does not answer.
    pub fn put_secret(
        &self,
        name: &SecretName,
        purpose: &Purpose,
        value: &[u8],
        by: &str,
    ) -> Result<u64, ControlError> {
        if value.is_empty() || value.len() > SECRET_BYTES_MAX {
            return Err(refused("bad_secret", format!("a secret has 1 to {SECRET_BYTES_MAX} bytes")));
        }
        let mut state = self.state();
        let known = state.secrets.get(name).map(|secret| secret.version);
        if known.is_none() && state.secrets.len() >= SECRETS_MAX {
            return Err(refused("too_many_secrets", format!("at most {SECRETS_MAX} are stored")));
        }
        let now = unix_ms() / 1_000;
        let version = known.unwrap_or(0).saturating_add(1);
        let vault = self.vault();
        let mut unlocked = self.unlock(&vault, purpose.domain(), now)?;
        if unlocked.document().active().is_none() {
            vault.rotate(&mut unlocked, now)?;
        }
        let stored =
            StoredSecret::seal(&mut unlocked, name.clone(), purpose.clone(), version, value, (by, now))?;
        self.keep_key(&vault, &mut unlocked, "used", by)?;
        self.record_stored(&stored)?;
        self.put_stored(&mut state, stored)?;
        Ok(version)
    }

    fn put_stored(&self, state: &mut State, stored: StoredSecret) -> Result<(), ControlError> {
        let mut writes = Writes::default();
        writes.put(Table::Secrets, stored.name.as_str(), &stored)?;
        self.store(writes);
        state.secrets.insert(stored.name.clone(), stored);
        Ok(())
    }

    /// Removes a stored secret.
    ///
    /// # Errors
    /// When there is none of that name.
    pub fn remove_secret(&self, name: &SecretName, by: &str) -> Result<(), ControlError> {
        let mut state = self.state();
        if !state.secrets.contains_key(name) {
            return Err(no_such_secret(name));
        }
        self.journal
            .record_durably(&Record::SecretRemoved { secret: name.to_string(), by: by.to_owned() })?;
        let mut writes = Writes::default();
        writes.remove(Table::Secrets, name.as_str());
        self.store(writes);
        state.secrets.remove(name);
        Ok(())
    }

    /// Compares the keys of domains with what the log says of them, and records those of the first start. An older document
    /// than the log knows was put back: what had been destroyed would open again.
    ///
    /// # Errors
    /// When one was put back, cannot be read, or it cannot be recorded.
    pub fn check_domain_keys(&self, first_start: bool) -> Result<(), ControlError> {
        let known = self.projection().domain_keys.clone();
        let domains = self.vault().domains()?;
        for (domain, revision) in &known {
            let held = domains.iter().find(|key| key.domain() == domain).map_or(0, DomainKey::revision);
            if held < *revision {
                return Err(ControlError::Unavailable(format!(
                    "the key of the domain {domain} is of revision {held}, and the log knows {revision}: an older copy was \
                     put back; restore the newest one"
                )));
            }
        }
        for key in &domains {
            self.pin(key.domain(), key.revision())?;
            if known.get(key.domain()).is_none_or(|revision| *revision < key.revision()) {
                self.record_key(key, "found", super::SCHEDULER)?;
            }
        }
        if first_start {
            for secret in self.state().secrets.values() {
                self.record_stored(secret)?;
            }
        }
        Ok(())
    }

    fn record_stored(&self, secret: &StoredSecret) -> Result<(), ControlError> {
        self.journal.record_durably(&Record::SecretStored {
            secret: secret.name.to_string(),
            secret_kind: secret.purpose.kind().to_string(),
            holder: secret.purpose.holder().to_owned(),
            version: secret.version,
            by: secret.by.clone(),
        })?;
        Ok(())
    }

    /// What is told of the stored secrets.
    ///
    /// # Errors
    /// When a domain's key cannot be read.
    pub fn secrets(&self) -> Result<Vec<SecretView>, ControlError> {
        let domains = self.vault().domains()?;
        let state = self.state();
        let view = |secret: &StoredSecret| {
            let domain = secret.purpose.domain();
            let key_version = secret.ciphertext.key_version();
            let key = domains.iter().find(|key| key.domain() == domain);
            SecretView {
                name: secret.name.clone(),
                kind: secret.purpose.kind(),
                holder: secret.purpose.holder().to_owned(),
                version: secret.version,
                stored: secret.stored,
                by: secret.by.clone(),
                domain: domain.to_owned(),
                key_version,
                readable: key.is_some_and(|key| state_of(key, key_version) != "destroyed"),
                opened: secret.opened.len(),
            }
        };
        Ok(state.secrets.values().map(view).collect())
    }

    /// Every version of every domain's key, and what is sealed under it.
    ///
    /// # Errors
    /// When a domain's key cannot be read.
    pub fn domain_keys(&self) -> Result<Vec<DomainKeyView>, ControlError> {
        let domains = self.vault().domains()?;
        let state = self.state();
        let view = |key: &DomainKey, version: &keys::envelope::VersionInfo| DomainKeyView {
            domain: key.domain().to_owned(),
            version: version.version,
            state: state_of(key, version.version).to_owned(),
            created: version.created,
            secrets: sealed_under(&state, key.domain(), |number| number == version.version),
        };
        Ok(domains
            .iter()
            .flat_map(|key| key.versions().map(move |version| (key, version)))
            .map(|(key, version)| view(key, &version))
            .collect())
    }

    /// Whether policy lets a member have a secret opened. A secret that does not exist is nobody's.
    pub fn may_open_secret(&self, peer: &Peer, name: &str) -> PolicyDecision {
        let state = self.state();
        let secret = SecretName::parse(name).ok().and_then(|name| state.secrets.get(&name));
        // Without a secret there is no kind: whoever asks is told what one is told who may not have it.
        let Some(secret) = secret else {
            return PolicyDecision {
                allowed: false,
                policies: Vec::new(),
                reason: access::policy::NOT_PERMITTED.to_owned(),
            };
        };
        let right = right(&state, peer, secret);
        let query = SecretQuery {
            asker: peer.id.as_str(),
            class: peer.class.as_str(),
            secret: name,
            kind: secret.purpose.kind(),
            is_holder: right == Right::Holder,
            has_task: matches!(right, Right::Task(_)),
        };
        self.policy.secret(query)
    }

    /// Opens a secret for a member, once, sealed to its current key of the channel `data`.
    ///
    /// # Errors
    /// When it is not for that member, was opened for the same before, cannot be read any more, or the store of keys does
    /// not answer.
    pub fn open_secret(&self, peer: &Peer, request: &SecretRequest) -> Result<SecretReply, ControlError> {
        let name = SecretName::parse(&request.name).map_err(|why| refused("bad_name", why.to_string()))?;
        let mut state = self.state();
        let now = unix_ms() / 1_000;
        let mut secret = state.secrets.get(&name).cloned().ok_or_else(|| no_such_secret(&name))?;
        let member = state
            .registry
            .identify(peer, now)
            .map_err(|why| refused(why.as_str(), "no current identity of this name"))?;
        let tls = keys::to_hex(&peer.key);
        // Sealed to the keys in use: whoever comes with those before them could not open it, or stole them.
        let active = member.keys.active().filter(|set| set.keys.tls == tls).cloned();
        let active = active.ok_or_else(|| refused("identity_not_current", "only for the keys in use"))?;
        let reason = match right(&state, peer, &secret) {
            Right::Holder => format!("keys:{}", tls.get(..16).unwrap_or_default()),
            Right::Task(attempt) => format!("task:{attempt}"),
            Right::None => return Err(refused("not_permitted", "it is not stored for who asks")),
        };
        let (secret_name, version, peer_id) = (name.to_string(), secret.version, peer.id.to_string());
        if secret.opened.contains_key(&reason) {
            self.journal.record_durably(&Record::SecretReopened {
                secret: secret_name,
                version,
                peer: peer_id,
                reason,
            })?;
            return Err(refused("already_opened", "it was opened for this before; that is reported"));
        }
        let vault = self.vault();
        let mut unlocked = self.unlock(&vault, secret.purpose.domain(), now)?;
        let value = secret.open(&mut unlocked).map_err(crate::vault::VaultError::from)?;
        secret.rewrap(&mut unlocked)?;
        self.keep_key(&vault, &mut unlocked, "used", super::SCHEDULER)?;
        // A number that no other sealed message to this key has: above those of challenges, and random.
        let sequence = u64::from_be_bytes(random::<8>()?) | DELIVERIES_FROM;
        let sealed = seal(&active.keys.data, peer, sequence, &request.name, version, &value)?;
        self.journal.record_durably(&Record::SecretOpened {
            secret: secret_name,
            version,
            peer: peer_id,
            reason: reason.clone(),
        })?;
        secret.note_opened(&reason, now);
        self.put_stored(&mut state, secret)?;
        Ok(SecretReply { version, sequence, sealed })
    }

    /// Makes a new version of a domain's key, wraps everything that is sealed under older ones again, and lets the older
    /// ones open nothing more.
    ///
    /// # Errors
    /// When the domain has no key, or the store of keys does not answer. What was wrapped again until then stays good.
    pub fn rewrap_domain(&self, domain: &str, by: &str) -> Result<(u32, usize), ControlError> {
        let mut state = self.state();
        let vault = self.vault();
        if vault.find(domain)?.is_none() {
            return Err(no_such_domain(domain));
        }
        let now = unix_ms() / 1_000;
        let mut unlocked = self.unlock(&vault, domain, now)?;
        let active = vault.rotate(&mut unlocked, now)?;
        self.keep_key(&vault, &mut unlocked, "rotated", by)?;
        let mut writes = Writes::default();
        let mut wrapped = Vec::new();
        let of_domain = state.secrets.values().filter(|secret| secret.purpose.domain() == domain);
        for secret in of_domain {
            let mut secret = secret.clone();
            // What a destroyed version sealed is gone; it must not keep the rest from being wrapped.
            match secret.rewrap(&mut unlocked) {
                Ok(_) => {
                    writes.put(Table::Secrets, secret.name.as_str(), &secret)?;
                    wrapped.push(secret);
                }
                Err(crate::vault::VaultError::Envelope(
                    keys::envelope::EnvelopeError::Destroyed(_)
                    | keys::envelope::EnvelopeError::BelowMinimum { .. },
                )) => {}
                Err(error) => return Err(error.into()),
            }
        }
        self.keep_key(&vault, &mut unlocked, "used", by)?;
        self.store(writes);
        let count = wrapped.len();
        for secret in wrapped {
            state.secrets.insert(secret.name.clone(), secret);
        }
        unlocked.ring().raise_minimum(active).map_err(crate::vault::VaultError::from)?;
        self.keep_key(&vault, &mut unlocked, "raised", by)?;
        Ok((active, count))
    }

    /// Destroys a version of a domain's key, or all of them: what is sealed under it opens for nobody any more.
    ///
    /// # Errors
    /// When there is no such key or version, or it is the active one.
    pub fn destroy_key(&self, domain: &str, version: Option<u32>, by: &str) -> Result<usize, ControlError> {
        let state = self.state();
        let vault = self.vault();
        let mut document = vault.find(domain)?.ok_or_else(|| no_such_domain(domain))?;
        self.pin(domain, document.revision())?;
        let lost = sealed_under(&state, domain, |number| version.is_none_or(|one| one == number)).len();
        match version {
            Some(version) => document.destroy(version).map_err(crate::vault::VaultError::from)?,
            None => document.destroy_everything(),
        }
        vault.write(&document)?;
        self.record_key(&document, "destroyed", by)?;
        Ok(lost)
    }
}

/// The lowest number of a delivered secret's sealed message. Those of challenges count a member's sets of keys.
const DELIVERIES_FROM: u64 = 1 << 63;

fn no_such_secret(name: &SecretName) -> ControlError {
    refused("no_such_secret", format!("no secret {name} is stored; see `trader secret list`"))
}

fn no_such_domain(domain: &str) -> ControlError {
    refused("no_such_domain", format!("no domain {domain} has a key; see `trader keys domains`"))
}

/// What a version can still do, in one word.
fn state_of(key: &DomainKey, version: u32) -> &'static str {
    match key.versions().find(|known| known.version == version) {
        None => "destroyed",
        Some(known) if known.state == keys::envelope::State::Destroyed => "destroyed",
        Some(_) if version < key.minimum() => "below_minimum",
        Some(known) => known.state.as_str(),
    }
}

fn sealed_under(state: &State, domain: &str, under: impl Fn(u32) -> bool) -> Vec<SecretName> {
    let of_domain = state.secrets.values().filter(|secret| secret.purpose.domain() == domain);
    of_domain
        .filter(|secret| under(secret.ciphertext.key_version()))
        .map(|secret| secret.name.clone())
        .collect()
}

/// What a member may have a secret opened for now.
fn right(state: &State, peer: &Peer, secret: &StoredSecret) -> Right {
    match &secret.purpose {
        Purpose::Broker { desk } if *desk == peer.id && peer.class == PeerClass::Desk => Right::Holder,
        Purpose::Broker { .. } => Right::None,
        Purpose::Vendor { source } => {
            let holds = state.schedule.tasks().find(|task| {
                let held =
                    matches!(&task.state, TaskState::Taken { holder, .. } if *holder == peer.id.as_str());
                held && fetches(state, task.kind, task.portfolio.as_deref(), source)
            });
            holds.map_or(Right::None, |task| Right::Task(format!("{}#{}", task.id, task.attempt)))
        }
    }
}

/// Whether a task of this kind and portfolio fetches from a source.
fn fetches(state: &State, kind: TaskKind, portfolio: Option<&str>, source: &str) -> bool {
    let portfolios = &state.schedule.plan().portfolios;
    let of_source = portfolios.iter().find(|plan| Some(plan.name.as_str()) == portfolio);
    needs::of(kind).iter().any(|need| need.source) && of_source.is_some_and(|plan| plan.source == source)
}

/// The secret under its name and version, sealed to a member's key of the channel `data`.
fn seal(
    key: &str,
    peer: &Peer,
    sequence: u64,
    name: &str,
    version: u64,
    value: &[u8],
) -> Result<String, ControlError> {
    let malformed = |error: keys::sealing::SealError| refused("keys_malformed", error.to_string());
    let key = SealingPublicKey::from_hex(key).map_err(malformed)?;
    let context =
        Context { channel: Channel::Data, recipient: peer.id.as_str(), epoch: peer.epoch, sequence };
    let message = wire::secrets::message(name, version, value);
    let entropy = Zeroizing::new(random::<32>()?);
    Ok(key.seal(&entropy, &context, &message).map_err(malformed)?.to_text())
}
