//! Stored secrets: who may have them opened, how often, and what is left of them when their key is destroyed.

use std::path::Path;
use std::time::{Duration, Instant};

use access::secret::SecretName;
use audit::record::Record;
use identity::{PeerClass, SpiffeId};
use keys::envelope::EnvelopeError;
use management::control::ControlError;
use management::secrets::{Purpose, StoredSecret};
use management::vault::Vault;
use wire::api::TaskEnd;
use wire::client::ClientError;
use wire::journal::unix_ms;
use wire::tls::WireError;

use crate::rotation::{Open, PATIENCE, bytes_below, contains};
use crate::world::{World, operator};

/// What must be found nowhere.
const CANARY: &str = "canary-4f1d8e07b3";

fn name(text: &str) -> SecretName {
    SecretName::parse(text).unwrap()
}

fn desk(world: &World, number: u32) -> SpiffeId {
    SpiffeId::desk(&world.control.authorities().trust_domain, number).unwrap()
}

fn store(world: &World, text: &str, purpose: &Purpose) {
    world.control.put_secret(&name(text), purpose, CANARY.as_bytes(), operator("owner").as_str()).unwrap();
}

/// Stores a broker's key for the first desk, which is the one that enrols here.
fn store_for_the_desk(world: &World) {
    store(world, "broker", &Purpose::Broker { desk: desk(world, 1) });
}

fn code(error: WireError) -> String {
    match error {
        WireError::Secret { source: ClientError::Refused(problem), .. } => problem.code,
        error => panic!("{error}"),
    }
}

async fn incidents(world: &World) -> Vec<(String, String)> {
    world.join().await;
    let state = world.control.state();
    state.incidents.values().map(|incident| (incident.rule.clone(), incident.subject.clone())).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn e04_a_secret_is_opened_once_for_each_set_of_keys_and_a_second_opening_is_an_incident() {
    let open = Open::new(1).await;
    store_for_the_desk(&open.world);
    let home = tempfile::tempdir().unwrap();
    let at = open.listen(PeerClass::Desk).await;
    let id = desk(&open.world, 1);
    let member = open.member(&id, at, &home.path().join("desk-1")).await;

    let opened = wire::secrets::open(&member, "broker").await.unwrap();
    assert_eq!(opened.bytes(), CANARY.as_bytes());
    let again = wire::secrets::open(&member, "broker").await.unwrap_err();
    assert_eq!(code(again), "already_opened");
    let deadline = Instant::now() + PATIENCE;
    let expected = vec![("secret_reopened".to_owned(), id.to_string())];
    while incidents(&open.world).await != expected {
        assert!(Instant::now() < deadline, "no incident");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }

    // New keys open it once more: this is how whoever starts anew gets it.
    member.renew(&mut |_| Ok(())).await.unwrap();
    assert_eq!(wire::secrets::open(&member, "broker").await.unwrap().bytes(), CANARY.as_bytes());

    // The memory of openings is what stops the second: without it the same request is answered.
    assert_eq!(code(wire::secrets::open(&member, "broker").await.unwrap_err()), "already_opened");
    open.world.control.state().secrets.get_mut(&name("broker")).unwrap().opened.clear();
    assert_eq!(wire::secrets::open(&member, "broker").await.unwrap().bytes(), CANARY.as_bytes());

    // Neither the answers nor the files ever showed it, the desk's own included.
    let files = bytes_below(open.world.layout.root());
    assert!(!contains(&files, CANARY) && !contains(&bytes_below(home.path()), CANARY));
    assert!(contains(&files, "secret_opened"), "the scan reads what is there");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_brokers_key_is_opened_for_its_own_desk_and_for_nobody_else() {
    let open = Open::new(1).await;
    store_for_the_desk(&open.world);
    let home = tempfile::tempdir().unwrap();
    let at = open.listen(PeerClass::Desk).await;
    let other = open.member(&desk(&open.world, 2), at, &home.path().join("desk-2")).await;
    let agent = open.member(&open.id("agent-1"), open.members[0], &home.path().join("agent-1")).await;
    for (who, stranger, why) in [("another desk", &other, "not_permitted"), ("an agent", &agent, "forbidden")]
    {
        assert_eq!(code(wire::secrets::open(stranger, "broker").await.unwrap_err()), why, "{who}");
        assert_eq!(
            code(wire::secrets::open(stranger, "nothing").await.unwrap_err()),
            "not_permitted",
            "{who}"
        );
    }
    let refused = |record: &Record| matches!(record, Record::Decision { action, allowed: false, .. } if action == "open_secret");
    assert_eq!(open.world.records().iter().filter(|record| refused(record)).count(), 4);
    // Nor can it be stored for anybody else.
    let id = open.id("agent-1").to_string();
    let text = format!(r#"{{"kind":"broker","holder":"{id}"}}"#);
    assert!(serde_json::from_str::<Purpose>(&text).is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vendors_key_is_opened_for_the_agent_whose_task_needs_it_and_only_as_long() {
    let open = Open::new(1).await;
    let control = &open.world.control;
    store(&open.world, "vendor", &Purpose::Vendor { source: "sample".into() });
    store(&open.world, "other", &Purpose::Vendor { source: "elsewhere".into() });
    control.announce_tasks(&control.state()).unwrap();
    let home = tempfile::tempdir().unwrap();
    let member =
        async |name: &str| open.member(&open.id(name), open.members[0], &home.path().join(name)).await;
    let (busy, idle) = (member("agent-1").await, member("agent-2").await);
    assert_eq!(code(wire::secrets::open(&busy, "vendor").await.unwrap_err()), "not_permitted", "no task yet");
    let ask = wire::api::QueueRequest { wait_ms: 0 };
    let reply: wire::api::QueueReply = busy
        .management()
        .call_json(wire::http::Method::POST, "/v1/queue", &[], Some(&ask), PATIENCE)
        .await
        .unwrap();
    let task = reply.task.unwrap();
    assert_eq!(task.kind, "collect");

    assert_eq!(wire::secrets::open(&busy, "vendor").await.unwrap().bytes(), CANARY.as_bytes());
    assert_eq!(code(wire::secrets::open(&busy, "vendor").await.unwrap_err()), "already_opened");
    assert_eq!(code(wire::secrets::open(&busy, "other").await.unwrap_err()), "not_permitted");
    assert_eq!(code(wire::secrets::open(&idle, "vendor").await.unwrap_err()), "not_permitted");

    let end = TaskEnd { task: task.id, attempt: task.attempt, done: true, detail: serde_json::json!({}) };
    let report = wire::api::StatusReport { ended: Some(end), ..wire::api::StatusReport::default() };
    let _: wire::api::StatusReply = busy
        .management()
        .call_json(wire::http::Method::POST, "/v1/status", &[], Some(&report), PATIENCE)
        .await
        .unwrap();
    assert_eq!(
        code(wire::secrets::open(&busy, "vendor").await.unwrap_err()),
        "not_permitted",
        "it has ended"
    );
}

/// A copy of what the database has of a secret.
fn backup(world: &World, text: &str) -> StoredSecret {
    world.control.state().secrets[&name(text)].clone()
}

fn open_with(world: &World, secret: &StoredSecret) -> Result<Vec<u8>, EnvelopeError> {
    let vault = Vault::new(world.control.authorities().store.clone());
    let mut unlocked = vault.unlock(secret.purpose.domain(), unix_ms() / 1_000).unwrap();
    secret.open(&mut unlocked).map(|value| value.to_vec())
}

#[test]
fn k10_what_a_destroyed_key_sealed_opens_for_nobody_not_even_from_a_backup() {
    let world = World::new();
    store_for_the_desk(&world);
    let (owner, control) = (operator("owner").to_string(), &world.control);
    let copy = backup(&world, "broker");
    assert_eq!(copy.ciphertext.key_version(), 1);

    // Wrapped again, the older version opens nothing more; the minimum alone stops it.
    let (active, wrapped) = control.rewrap_domain("desk", &owner).unwrap();
    assert_eq!((active, wrapped), (2, 2), "this one, and the one of the first start");
    assert_eq!(open_with(&world, &copy), Err(EnvelopeError::BelowMinimum { version: 1, minimum: 2 }));
    assert_eq!(open_with(&world, &backup(&world, "broker")).unwrap(), CANARY.as_bytes());

    // As long as the version is there, whoever lowers the minimum reads the backup; destroyed, nobody does.
    let vault = Vault::new(control.authorities().store.clone());
    let lower = |vault: &Vault| {
        let mut document = vault.find("desk").unwrap().unwrap();
        document.set_minimum(1).unwrap();
        vault.write(&document).unwrap();
    };
    lower(&vault);
    assert_eq!(open_with(&world, &copy).unwrap(), CANARY.as_bytes(), "not destroyed yet");
    assert_eq!(control.destroy_key("desk", Some(1), &owner).unwrap(), 0, "nothing of today is lost");
    lower(&vault);
    assert_eq!(open_with(&world, &copy), Err(EnvelopeError::Destroyed(1)));
    assert_eq!(open_with(&world, &backup(&world, "broker")).unwrap(), CANARY.as_bytes());

    // All of it: then today's is gone, too, and the operators see it.
    assert!(matches!(
        control.destroy_key("desk", Some(2), &owner),
        Err(ControlError::Refused { code: "active_version", .. })
    ));
    assert_eq!(control.destroy_key("desk", None, &owner).unwrap(), 2);
    assert_eq!(open_with(&world, &backup(&world, "broker")), Err(EnvelopeError::Destroyed(2)));
    assert!(control.secrets().unwrap().iter().all(|secret| !secret.readable));
    // And what is stored from now on is sealed under a new version.
    store_for_the_desk(&world);
    assert_eq!(open_with(&world, &backup(&world, "broker")).unwrap(), CANARY.as_bytes());
}

#[test]
fn an_older_key_of_a_domain_that_is_put_back_keeps_management_from_starting() {
    let world = World::new();
    let documents = world.layout.authorities().join("domains");
    let older = std::fs::read(documents.join("desk.json")).unwrap();
    world.control.rewrap_domain("desk", operator("owner").as_str()).unwrap();
    world.control.destroy_key("desk", Some(1), operator("owner").as_str()).unwrap();
    for record in world.records() {
        world.control.projection().apply(0, "management", &record);
    }
    world.control.check_domain_keys(false).unwrap();
    let newest = std::fs::read(documents.join("desk.json")).unwrap();
    std::fs::write(documents.join("desk.json"), older).unwrap();
    assert!(matches!(world.control.check_domain_keys(false), Err(ControlError::Unavailable(_))));
    // Nor is it taken while management runs.
    let owner = operator("owner").to_string();
    let purpose = Purpose::Broker { desk: desk(&world, 1) };
    let put = world.control.put_secret(&name("broker"), &purpose, CANARY.as_bytes(), &owner);
    assert!(matches!(put, Err(ControlError::Unavailable(_))), "{put:?}");
    assert!(world.control.rewrap_domain("desk", &owner).is_err());
    assert!(world.control.destroy_key("desk", None, &owner).is_err());
    std::fs::write(documents.join("desk.json"), newest).unwrap();
    world.control.check_domain_keys(false).unwrap();
    // A writer that died between its two renames has lost nothing.
    std::fs::rename(documents.join("desk.json"), documents.join("desk.next")).unwrap();
    world.control.check_domain_keys(false).unwrap();
    world.control.domain_keys().unwrap();
    let vault = Vault::new(world.control.authorities().store.clone());
    assert!(vault.find("desk").unwrap().is_some_and(|key| key.active() == Some(2)));
    std::fs::remove_file(documents.join("desk.json")).unwrap();
    assert!(matches!(world.control.check_domain_keys(false), Err(ControlError::Unavailable(_))));
}

#[test]
fn a_secret_that_is_moved_to_another_holder_in_the_database_opens_for_nobody() {
    let world = World::new();
    store_for_the_desk(&world);
    let good = backup(&world, "broker");
    assert_eq!(open_with(&world, &good).unwrap(), CANARY.as_bytes());
    let moved = StoredSecret { purpose: Purpose::Broker { desk: desk(&world, 2) }, ..good.clone() };
    let renamed = StoredSecret { name: name("vendor"), ..good.clone() };
    let older = StoredSecret { version: good.version + 1, ..good };
    for secret in [moved, renamed, older] {
        assert_eq!(open_with(&world, &secret), Err(EnvelopeError::WrongPlace));
    }
}

#[test]
fn k11_two_of_five_shares_open_nothing_and_three_open_the_store_which_is_noticed() {
    use management::custody::{Custody, recover, shares};
    let world = World::new();
    let layout = &world.layout;
    let texts: Vec<String> = shares(layout, Custody::Authorities, 3, 5)
        .unwrap()
        .iter()
        .map(|share| share.to_text().to_string())
        .collect();
    let passphrase = layout.root().join("new-passphrase");
    wire::files::write_private_atomic(&passphrase, b"a new passphrase of some length").unwrap();
    let before = world.control.authorities().store.describe();
    assert!(recover(layout, Custody::Authorities, &texts[..2], &passphrase).is_err());
    let doubled = [&texts[0], &texts[1], &texts[1]];
    assert!(recover(layout, Custody::Authorities, &doubled, &passphrase).is_err());
    // Shares of the other store do not open this one.
    let of_root = shares(layout, Custody::Root, 3, 5).unwrap();
    let of_root: Vec<String> = of_root.iter().map(|share| share.to_text().to_string()).collect();
    assert!(recover(layout, Custody::Authorities, &of_root[..3], &passphrase).is_err());
    assert_eq!(management::bootstrap::open_store(layout).unwrap().describe().seal, before.seal);

    let three = [&texts[4], &texts[0], &texts[2]];
    recover(layout, Custody::Authorities, &three, &passphrase).unwrap();
    let after = management::bootstrap::open_store(layout).unwrap().describe();
    assert_eq!(after.id, before.id);
    assert_ne!(after.seal, before.seal);
    management::bootstrap::authorities(layout).unwrap();
    // The old passphrase opens it no more, and the next start opens an incident.
    let old = keystore::Secret::from_file(&layout.root().join("passphrase")).unwrap();
    assert!(keystore::KeyStore::open(&layout.authorities(), &old).is_err());
    let opened = |seal: Option<String>| Record::KeyStoreOpened { store: before.id.clone(), seal };
    let thresholds = std::fs::read_to_string(policy_file("sentinel.toml")).unwrap();
    let mut sentinel = sentinel::Sentinel::new(sentinel::Config::parse(&thresholds).unwrap());
    assert!(sentinel.observe(0, "management", &opened(before.seal.clone())).is_empty());
    assert!(sentinel.observe(1, "management", &opened(before.seal.clone())).is_empty());
    assert!(sentinel.observe(2, "unit-market-1", &opened(after.seal.clone())).is_empty(), "not its to say");
    let found = sentinel.observe(3, "management", &opened(after.seal));
    assert_eq!(found.iter().map(|finding| finding.rule.as_str()).collect::<Vec<_>>(), ["key_store_resealed"]);
}

fn policy_file(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../policies").join(name)
}
