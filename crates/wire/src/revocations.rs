//! A guard's ear: follows management's revocation feed, and keeps the guard's lease alive for as long as it hears.
//!
//! Each poll acknowledges what the guard enforces and is answered as soon as there is something new, at the latest after
//! [`POLL_WAIT`]. The lease runs from the moment the answered poll was *sent*, by this process's own clock, so that
//! management, which counts from when it received the poll, always outlives it.

use std::sync::Arc;
use std::time::Duration;

use access::revocation::FeedReply;
use access::vocabulary::RevocationKind;
use tokio::sync::watch;

use crate::api::RevocationPoll;
use crate::client::Client;
use crate::guard::GrantDoor;
use crate::journal::told;
use crate::server::Connections;

/// How long management holds a poll when nothing is new.
pub const POLL_WAIT: Duration = Duration::from_millis(250);
/// How long to wait before asking again after a failure; far below the lease.
const RETRY: Duration = Duration::from_millis(50);

/// Follows the feed until told to stop. Connections of a revoked agent are cut; `on_kill` is called once when everything
/// is revoked.
pub async fn follow(
    management: Client,
    door: Arc<GrantDoor>,
    connections: Arc<Connections>,
    on_kill: impl Fn() + Send + 'static,
    mut stop: watch::Receiver<bool>,
) {
    loop {
        tokio::select! {
            heard = poll(&management, &door, &connections, &on_kill) => {
                if !heard {
                    tokio::time::sleep(RETRY).await;
                }
            }
            () = told(&mut stop) => return,
        }
    }
}

async fn poll(management: &Client, door: &GrantDoor, connections: &Connections, on_kill: &impl Fn()) -> bool {
    let sent_at_ms = door.mono_ms();
    let Some(acknowledged) = door.with(|guard| guard.revision()) else { return false };
    let poll = RevocationPoll { acknowledged, wait_ms: u64::try_from(POLL_WAIT.as_millis()).unwrap_or(0) };
    let reply: FeedReply = match management
        .call_json(hyper::Method::POST, "/v1/revocations", &[], Some(&poll), POLL_WAIT * 4)
        .await
    {
        Ok(reply) => reply,
        Err(error) => {
            tracing::debug!(%error, "the revocation feed does not answer; the lease runs on");
            return false;
        }
    };
    match door.with(|guard| guard.hear(sent_at_ms, &reply)) {
        Some(Ok(())) => door.note_heard(),
        Some(Err(error)) => {
            tracing::error!(%error, "the revocation feed is not to be believed; the guard stays closed");
            return false;
        }
        None => return false,
    }
    for entry in &reply.entries {
        match entry.kind {
            RevocationKind::Agent => {
                let id = entry.id.split('#').next().unwrap_or_default();
                if let Ok(id) = id.parse() {
                    connections.cut(&id);
                }
            }
            RevocationKind::Everything => on_kill(),
            RevocationKind::Grant
            | RevocationKind::Task
            | RevocationKind::Key
            | RevocationKind::Clearance => {}
        }
    }
    true
}
