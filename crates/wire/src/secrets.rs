//! A member's way to a secret that management keeps for it.
//!
//! INVARIANT: what is taken for a secret was sealed to this member's own key, for this moment, under the name and the
//! version that were asked for.

use std::fmt;
use std::time::Duration;

use hyper::Method;
use keys::sealing::{Channel, Context, Sealed};
use zeroize::Zeroizing;

use crate::api::{SecretReply, SecretRequest};
use crate::client::ClientError;
use crate::renew::Membership;
use crate::tls::WireError;

/// Where a secret is opened; a POST of [`SecretRequest`], answered with [`SecretReply`].
pub const OPEN_PATH: &str = "/v1/secrets/open";

const TIMEOUT: Duration = Duration::from_secs(10);

/// A secret in the clear. Erased when dropped, and shown by nothing.
pub struct OpenedSecret(Zeroizing<Vec<u8>>);

impl OpenedSecret {
    /// Its bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for OpenedSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OpenedSecret")
    }
}

/// What stands before a secret in the message that is sealed.
#[must_use]
pub fn heading(name: &str, version: u64) -> String {
    format!("{name}\n{version}\n")
}

/// What is sealed: the heading and the secret. In a buffer that never grows, for one that does leaves copies behind.
#[must_use]
pub fn message(name: &str, version: u64, value: &[u8]) -> Zeroizing<Vec<u8>> {
    let heading = heading(name, version);
    let mut message = Zeroizing::new(Vec::with_capacity(heading.len() + value.len()));
    message.extend_from_slice(heading.as_bytes());
    message.extend_from_slice(value);
    message
}

/// Has a secret opened, once: the keys that are in use then never open it again. Whoever starts anew replaces its keys
/// first, see [`Membership::renew`].
///
/// # Errors
/// [`WireError::Secret`] when management refuses, does not answer, or answers something else.
pub async fn open(membership: &Membership, name: &str) -> Result<OpenedSecret, WireError> {
    let failed = |source: ClientError| WireError::Secret { name: name.to_owned(), source };
    let unusable = || failed(ClientError::Unusable("the sealed secret is not what was asked for"));
    let identity = membership.credentials().current();
    let request = SecretRequest { name: name.to_owned() };
    let reply: SecretReply = membership
        .management()
        .call_json(Method::POST, OPEN_PATH, &[], Some(&request), TIMEOUT)
        .await
        .map_err(failed)?;
    let context = Context {
        channel: Channel::Data,
        recipient: identity.id().as_str(),
        epoch: identity.epoch(),
        sequence: reply.sequence,
    };
    let sealed = Sealed::parse(&reply.sealed).map_err(|_| unusable())?;
    let message = identity.own_keys().open(&context, &sealed).map_err(|_| unusable())?;
    let heading = heading(name, reply.version);
    let value = message.strip_prefix(heading.as_bytes()).ok_or_else(unusable)?;
    Ok(OpenedSecret(Zeroizing::new(value.to_vec())))
}
