//! Keys: how many leaf certificates an authority makes, and how many members replace all their keys, in a second.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use audit::record::Record;
use identity::{PeerClass, SpiffeId};
use management::bootstrap;
use serde_json::{Value, json};
use wire::journal::{Journal, unix_ms};
use wire::own_keys::OwnKeys;
use wire::renew::Membership;

use crate::rotation::{Open, role};
use crate::{Request, floor, median, openbao, rate};

/// Members that replace their keys at the same moment.
const AT_ONCE: usize = 32;
/// Listeners of management.
const PLACES: usize = 4;
/// Requests of each member while it replaces its keys.
const REQUESTS: usize = 4;

/// Measures, says it as a table, and returns it.
pub(crate) fn run(request: &Request) -> Value {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let rounds = request.rounds;
    let (p256, ed25519) = (floor::p256_signs(rounds), floor::ed25519_signs(rounds));
    let floor = floor::rotations(rounds);
    let (leaves, made, recorded) = runtime.block_on(leaf_rates(rounds));
    let peer = if request.peer { runtime.block_on(openbao::issued(rounds)) } else { None };
    if peer.is_none() {
        eprintln!("left out: OpenBao, which is not here and cannot be installed with pip, or was not wanted");
    }
    let (rotated, sent, failed) = runtime.block_on(rotation_rate(request));
    let ceiling = floor * cores as f64;
    let row = |what: &str, figure: f64, ratio: &str| eprintln!("{what:<64} {figure:>10.0}  {ratio}");
    eprintln!("medians of {rounds} rounds, a second; {cores} cores; {} members\n", request.agents);
    row("floor: P-256 signature, one thread", p256, "");
    row("floor: Ed25519 signature, one thread", ed25519, "");
    row(
        "leaf certificate for a key that is shown, one thread",
        leaves,
        &format!("{:.2} of the Ed25519 floor", leaves / ed25519),
    );
    row("leaf certificate, its P-256 key made too, one thread", made, "");
    row("leaf certificate, synced to the journal one by one", recorded, "bound by the disk");
    if let Some(peer) = peer {
        row("OpenBao pki/issue over HTTP, 4 connections, in memory", peer, "");
        eprintln!("{:>88}", format!("ours, key made too, to OpenBao's: {:.1}", made / peer));
    }
    row("floor: cryptography of a rotation, every core", ceiling, "");
    row(
        "rotations of all five keys over TLS, with requests",
        rotated,
        &format!("{:.2} of the floor", rotated / ceiling),
    );
    eprintln!("{sent} requests meanwhile, {failed} failed");
    json!({
        "cores": cores, "rounds": rounds, "agents": request.agents,
        "per_second": {
            "p256_sign_floor": p256, "ed25519_sign_floor": ed25519, "leaf": leaves, "key_and_leaf": made,
            "leaf_journalled": recorded, "openbao_issue": peer, "rotation_floor": ceiling, "rotation": rotated,
        },
        "ratio": {
            "leaf_to_p256_floor": leaves / p256, "leaf_to_ed25519_floor": leaves / ed25519,
            "key_and_leaf_to_openbao": peer.map(|peer| made / peer), "rotation_to_floor": rotated / ceiling,
        },
        "requests": sent, "failed_requests": failed,
    })
}

/// Leaves a second: for keys that are shown, with the key made too, and with the record that management syncs first.
async fn leaf_rates(rounds: usize) -> (f64, f64, f64) {
    let world = crate::world::World::new();
    let authorities = world.control.authorities();
    let authority = &authorities.classes[&PeerClass::Agents];
    let id = SpiffeId::agent(&authorities.trust_domain, "agent-1").unwrap();
    let spki = OwnKeys::generate().unwrap().spki();
    let now = unix_ms() / 1_000;
    let issue = |spki: &[u8]| authority.issue(spki, &id, 1, now, bootstrap::LEAF_TTL_S, [7; 16]).unwrap();
    let leaves = rate(rounds, || {
        issue(&spki);
    });
    let made = rate(rounds, || {
        let key = rcgen::KeyPair::generate().unwrap();
        issue(&rcgen::PublicKeyData::subject_public_key_info(&key));
    });
    let home = tempfile::tempdir().unwrap();
    let journal = Journal::open(home.path(), "management").unwrap();
    let recorded = rate(rounds, || {
        issue(&spki);
        let keys = ["tls", "signing"].map(|usage| (usage.to_owned(), "0123456789abcdef".to_owned()));
        let record = Record::KeysCertified {
            id: id.to_string(),
            epoch: 1,
            sequence: 1,
            keys: keys.into(),
            expires: now,
        };
        journal.record_durably(&record).unwrap();
    });
    (leaves, made, recorded)
}

/// Rotations a second, and requests that were sent and that failed meanwhile, of all rounds together.
async fn rotation_rate(request: &Request) -> (f64, usize, usize) {
    let open = Open::new(PLACES).await;
    let homes = tempfile::tempdir().unwrap();
    let authorities = open.world.control.authorities();
    let mut members = Vec::new();
    for number in 0..request.agents {
        let directory = homes.path().join(number.to_string());
        let id = open.id(&format!("agent-{number}"));
        open.world.register(&bootstrap::issue_here(&authorities, &id, &directory).unwrap());
        let address = open.members[number % open.members.len()];
        members.push(Arc::new(Membership::resume(&directory, address).await.unwrap()));
    }
    let failed = Arc::new(AtomicUsize::new(0));
    let mut rates = Vec::new();
    for _ in 0..request.rounds {
        let turns = Arc::new(tokio::sync::Semaphore::new(AT_ONCE));
        let begun = Instant::now();
        let mut working = tokio::task::JoinSet::new();
        for member in &members {
            let (member, turns, failed) = (member.clone(), turns.clone(), failed.clone());
            working.spawn(async move {
                let _turn = turns.acquire().await.unwrap();
                let asking = async {
                    for _ in 0..REQUESTS {
                        if role(member.management()).await.is_err() {
                            failed.fetch_add(1, Ordering::SeqCst);
                        }
                        tokio::time::sleep(Duration::from_millis(1)).await;
                    }
                };
                let (renewed, ()) = tokio::join!(renew(&member), asking);
                renewed.unwrap();
            });
        }
        working.join_all().await;
        rates.push(request.agents as f64 / begun.elapsed().as_secs_f64());
    }
    let sent = request.agents * request.rounds * REQUESTS;
    (median(rates), sent, failed.load(Ordering::SeqCst))
}

async fn renew(member: &Membership) -> Result<(), wire::tls::WireError> {
    member.renew(&mut |_| Ok(())).await
}
