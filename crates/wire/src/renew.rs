//! Membership: the identity of a process for as long as it runs, and how its keys follow each other.
//!
//! Keys are replaced make-before-break. A new set is made, offered to management under the current identity, certified,
//! written beside the current one, proven, and only then put in its place; the old set is erased. A process that dies on
//! the way finds one or two identities when it starts again, and management knows which one is active.
//!
//! Owns the order of these steps on the member's side. When a new set is due is management's to say.
//!
//! INVARIANT: the identity file is replaced only after management made the new set active; a set is never in use that is
//! not on the disk.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use hyper::Method;
use identity::{IdentityError, PeerClass, SignedBundle, SpiffeId};
use keys::sealing::{Channel, Context, Sealed};
use tokio::sync::watch;

use crate::api::{KeyChallenge, KeyOffer, KeyProof, RoleReply, StatusReply};
use crate::client::{Client, ClientError, repeat};
use crate::files::{self, FileError};
use crate::journal::told;
use crate::own_keys::OwnKeys;
use crate::tls::{Credentials, IDENTITY_FILE, Identity, WireError};

/// Where a new set is offered; a POST of [`KeyOffer`], answered with [`KeyChallenge`].
pub const OFFER_PATH: &str = "/v1/keys/offer";

/// Where an offered set is proven, under its own identity; a POST of [`KeyProof`].
pub const ACTIVATE_PATH: &str = "/v1/keys/activate";

/// The directory, within an identity's, of the set that is to follow it.
const NEXT: &str = "next";

const TIMEOUT: Duration = Duration::from_secs(10);

/// Pause after a set could not be replaced.
const RENEW_AGAIN: Duration = Duration::from_secs(2);

/// Moments at which a member may die while its keys are replaced; a test dies at each of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// The new set is made, nobody knows of it.
    Made,
    /// Management has certified it.
    Offered,
    /// It lies beside the current one.
    Kept,
    /// Management has made it active.
    Activated,
    /// It lies in the place of the old one.
    Promoted,
}

impl Moment {
    /// In the order in which they come.
    pub const ALL: [Self; 5] = [Self::Made, Self::Offered, Self::Kept, Self::Activated, Self::Promoted];
}

/// What a process is within the installation.
#[derive(Debug)]
pub struct Membership {
    credentials: Credentials,
    management: Client,
    address: SocketAddr,
    directory: PathBuf,
    due: watch::Sender<bool>,
}

impl Membership {
    /// Takes up the identity that lies in a directory. `management` is where its class is listened to. When the process
    /// died while its keys were replaced, management is asked which of the two sets is active, for as long as it takes.
    ///
    /// # Errors
    /// [`WireError`] when there is no usable identity.
    pub async fn resume(directory: &Path, management: SocketAddr) -> Result<Self, WireError> {
        settle(directory, management).await?;
        let identity = Arc::new(Identity::load(directory)?);
        let credentials = Credentials::new(identity);
        let client = Client::new(&credentials, PeerClass::Management, None, management)?;
        Ok(Self {
            credentials,
            management: client,
            address: management,
            directory: directory.to_owned(),
            due: watch::Sender::new(false),
        })
    }

    /// The identity of the moment, for listeners and clients.
    #[must_use]
    pub fn credentials(&self) -> &Credentials {
        &self.credentials
    }

    /// The way to management.
    #[must_use]
    pub fn management(&self) -> &Client {
        &self.management
    }

    /// Takes in what management says of keys and authorities when it answers a report.
    pub fn heard(&self, reply: &StatusReply) {
        if let Some(signed) = &reply.bundle
            && let Err(error) = self.adopt(signed)
        {
            tracing::error!(%error, "the trust bundle that management sent is not taken");
        }
        self.due.send_if_modified(|due| std::mem::replace(due, reply.renew) != reply.renew);
    }

    /// Trusts whom a newer bundle names.
    fn adopt(&self, signed: &SignedBundle) -> Result<(), WireError> {
        let current = self.credentials.current();
        if *signed == *current.signed_bundle() {
            return Ok(());
        }
        let newer = current.with_bundle(signed.clone())?;
        newer.save(&self.directory)?;
        tracing::info!(version = newer.bundle().version, "a new trust bundle");
        self.credentials.replace(Arc::new(newer));
        Ok(())
    }

    /// Whether management asked for new keys.
    #[must_use]
    pub fn is_due(&self) -> bool {
        *self.due.borrow()
    }

    /// Replaces the keys, if management asked for it. Call it when nothing is under way that is bound to the old keys. A
    /// failure is no harm yet: the old keys hold, and management asks again.
    pub async fn renew_if_due(&self) {
        if !self.is_due() {
            return;
        }
        match self.renew(&mut |_| Ok(())).await {
            Ok(()) => {
                self.due.send_replace(false);
            }
            Err(error) => tracing::warn!(%error, "the keys could not be replaced; it will be tried again"),
        }
    }

    /// Replaces the keys whenever management asks for it, until told to stop: for who has nothing under way.
    pub async fn keep_renewed(&self, mut stop: watch::Receiver<bool>) {
        let mut due = self.due.subscribe();
        loop {
            tokio::select! {
                heard = due.wait_for(|due| *due) => if heard.is_err() { return },
                () = told(&mut stop) => return,
            }
            self.renew_if_due().await;
            if self.is_due() {
                tokio::time::sleep(RENEW_AGAIN).await;
            }
        }
    }

    /// Replaces the keys now. `at` is told of each [`Moment`], and ends the work there when it fails: a test's way to die.
    ///
    /// # Errors
    /// [`WireError`]; the old keys hold unless the new ones are active already, and [`Membership::resume`] finds out.
    pub async fn renew(
        &self,
        at: &mut (dyn FnMut(Moment) -> Result<(), WireError> + Send),
    ) -> Result<(), WireError> {
        let current = self.credentials.current();
        let keys = OwnKeys::generate()?;
        at(Moment::Made)?;
        let offer = KeyOffer {
            keys: keys.public(),
            spki: BASE64_STANDARD.encode(keys.spki()),
            proof: keys.proof(current.id()),
            endorsement: Some(keys::to_hex(&current.own_keys().sign(&keys.public().statement(current.id())))),
        };
        let ask = || self.management.call_json(Method::POST, OFFER_PATH, &[], Some(&offer), TIMEOUT);
        let challenge: KeyChallenge = ask().await.map_err(WireError::Renewal)?;
        at(Moment::Offered)?;
        let certificate = decode(&challenge.certificate)?;
        let next = Identity::new(keys, certificate, current.signed_bundle().clone(), *current.root())?;
        if next.id() != current.id() {
            return Err(IdentityError::Certificate("the new certificate is for another id").into());
        }
        next.save(&self.directory.join(NEXT))?;
        at(Moment::Kept)?;
        let next = Arc::new(next);
        activate(&next, self.address, &challenge).await?;
        at(Moment::Activated)?;
        promote(&self.directory)?;
        at(Moment::Promoted)?;
        self.credentials.replace(next);
        Ok(())
    }
}

fn decode(certificate: &str) -> Result<Vec<u8>, WireError> {
    BASE64_STANDARD
        .decode(certificate)
        .map_err(|_| IdentityError::Certificate("the reply's certificate is unreadable").into())
}

/// Proves an offered set under its own identity. Repeated until there is an answer: said twice it changes nothing.
pub(crate) async fn activate(
    next: &Arc<Identity>,
    address: SocketAddr,
    challenge: &KeyChallenge,
) -> Result<(), WireError> {
    let open = |channel: Channel, sealed: &str| -> Result<String, WireError> {
        let context = Context {
            channel,
            recipient: next.id().as_str(),
            epoch: next.epoch(),
            sequence: challenge.sequence,
        };
        let sealed = Sealed::parse(sealed).map_err(|error| WireError::Key(error.to_string()))?;
        let opened = next.own_keys().open(&context, &sealed);
        opened.map(|bytes| keys::to_hex(&bytes)).map_err(|error| WireError::Key(error.to_string()))
    };
    let proof = KeyProof {
        control: open(Channel::Control, &challenge.control)?,
        data: open(Channel::Data, &challenge.data)?,
        alerts: open(Channel::Alerts, &challenge.alerts)?,
    };
    let client = Client::new(next, PeerClass::Management, None, address)?;
    let ask = || client.call_json(Method::POST, ACTIVATE_PATH, &[], Some(&proof), TIMEOUT);
    repeat(ask).await.map_err(WireError::Renewal)
}

/// Puts the next identity in the place of the current one, whose file is overwritten before it goes.
fn promote(directory: &Path) -> Result<(), WireError> {
    let (current, next) = (directory.join(IDENTITY_FILE), directory.join(NEXT).join(IDENTITY_FILE));
    files::erase(&current)?;
    files::rename_durably(&next, &current)?;
    Ok(())
}

/// Finds out which of two identities is active, and leaves that one.
async fn settle(directory: &Path, management: SocketAddr) -> Result<(), WireError> {
    let beside = directory.join(NEXT);
    let next = match Identity::load(&beside) {
        Ok(next) => Arc::new(next),
        Err(WireError::File(FileError::Missing { .. })) => return Ok(()),
        // Torn or of an older version: nobody was told that it is complete.
        Err(_) => return Ok(files::erase(&beside.join(IDENTITY_FILE))?),
    };
    let client = Client::new(&next, PeerClass::Management, None, management)?;
    loop {
        let role: Result<RoleReply, ClientError> =
            client.call_json(Method::GET, "/v1/role", &[], None::<&()>, TIMEOUT).await;
        match role {
            Ok(_) => return promote(directory),
            // Management knows better: the set was never made active.
            Err(ClientError::Refused(problem)) if problem.status == 403 && !problem.retryable => {
                return Ok(files::erase(&beside.join(IDENTITY_FILE))?);
            }
            Err(error @ (ClientError::Handshake { .. } | ClientError::Unusable(_))) => {
                return Err(WireError::Renewal(error));
            }
            Err(error) => {
                tracing::debug!(%error, "management does not say yet which keys are active");
                tokio::time::sleep(RENEW_AGAIN / 10).await;
            }
        }
    }
}

/// What a newcomer or a member shows of a set that it made.
pub(crate) fn first_offer(keys: &OwnKeys, id: &SpiffeId) -> KeyOffer {
    KeyOffer {
        keys: keys.public(),
        spki: BASE64_STANDARD.encode(keys.spki()),
        proof: keys.proof(id),
        endorsement: None,
    }
}
