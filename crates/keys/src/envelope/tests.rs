//! Attacks on records at rest: moved, spliced, replayed, destroyed, outdated, under a root that is gone or
//! another.

use proptest::prelude::*;

use super::domain::RESERVED_AT_ONCE;
use super::*;

const NOW: i64 = 1_616_000_000;

/// A root in a device that somebody pulls out.
struct Gone;

impl Wrap for Gone {
    fn wrap(&self, _: &[u8], _: &[u8], _: &[u8; 12]) -> Result<Vec<u8>, RootError> {
        Err(RootError::Unavailable("token removed".to_owned()))
    }

    fn unwrap(&self, _: &[u8], _: &[u8]) -> Result<Zeroizing<Vec<u8>>, RootError> {
        Err(RootError::Unavailable("token removed".to_owned()))
    }
}

/// A root that forgets what it wrapped.
struct Broken(WrappingKey);

impl Wrap for Broken {
    fn wrap(&self, aad: &[u8], _: &[u8], nonce: &[u8; 12]) -> Result<Vec<u8>, RootError> {
        self.0.wrap(aad, &[0; 32], nonce)
    }

    fn unwrap(&self, aad: &[u8], wrapped: &[u8]) -> Result<Zeroizing<Vec<u8>>, RootError> {
        self.0.unwrap(aad, wrapped)
    }
}

fn root() -> WrappingKey {
    WrappingKey::from_bytes(&[0x77; 32])
}

fn document() -> DomainKey {
    DomainKey::create("ledger", &root(), &[1; 32], NOW).unwrap()
}

fn ring() -> Keyring {
    Keyring::unlock(document(), &root()).unwrap()
}

fn place() -> Place<'static> {
    Place { domain: "ledger", table: "accounts", row: "DE-4711", version: 9 }
}

fn keys_in_memory(ring: &Keyring) -> usize {
    let shown = format!("{ring:?}");
    shown.rsplit_once(", ").unwrap().1.split_once(' ').unwrap().0.parse().unwrap()
}

fn edited(
    document: &DomainKey,
    edit: impl FnOnce(&mut serde_json::Value),
) -> Result<DomainKey, EnvelopeError> {
    let mut value: serde_json::Value = serde_json::from_str(&document.to_json()).unwrap();
    edit(&mut value);
    DomainKey::parse(&value.to_string())
}

#[test]
fn a_record_opens_where_it_was_sealed() {
    let mut ring = ring();
    let sealed = ring.seal(&place(), b"Ada Lovelace", &[2; 32]).unwrap();
    let sealed = Ciphertext::parse(&sealed.to_json()).unwrap();
    assert_eq!(ring.open(&place(), &sealed).unwrap().as_slice(), b"Ada Lovelace");
    let restarted = Keyring::unlock(DomainKey::parse(&ring.document().to_json()).unwrap(), &root()).unwrap();
    assert_eq!(restarted.open(&place(), &sealed).unwrap().as_slice(), b"Ada Lovelace");
}

#[test]
fn a_ciphertext_moved_to_another_place_opens_nowhere() {
    let mut ring = ring();
    let sealed = ring.seal(&place(), b"Ada Lovelace", &[2; 32]).unwrap();
    let moved = [
        Place { table: "account", ..place() },
        Place { table: "accountsd", ..place() },
        Place { row: "DE-4712", ..place() },
        Place { row: "e-4711", ..place() },
        Place { version: 8, ..place() },
        Place { version: 10, ..place() },
        Place { domain: "desk", ..place() },
    ];
    for other in moved {
        assert_eq!(ring.open(&other, &sealed), Err(EnvelopeError::WrongPlace), "{other:?}");
        assert_eq!(ring.rewrap(&other, &sealed, &[3; 32]), Err(EnvelopeError::WrongPlace), "{other:?}");
    }
}

#[test]
fn another_domain_of_the_same_root_opens_nothing() {
    let sealed = ring().seal(&place(), b"Ada Lovelace", &[2; 32]).unwrap();
    let desk = DomainKey::create("desk", &root(), &[1; 32], NOW).unwrap();
    let at_desk = Place { domain: "desk", ..place() };
    let desk_ring = Keyring::unlock(desk.clone(), &root()).unwrap();
    assert_eq!(desk_ring.open(&at_desk, &sealed), Err(EnvelopeError::WrongPlace));
    assert_eq!(desk_ring.open(&place(), &sealed), Err(EnvelopeError::WrongPlace));
    // The ledger's wrapped key put into the desk's document, and a document that changes its name.
    let stolen: serde_json::Value = serde_json::from_str(&document().to_json()).unwrap();
    let forged =
        edited(&desk, |it| it["versions"]["1"]["wrapped"] = stolen["versions"]["1"]["wrapped"].clone());
    assert_eq!(Keyring::unlock(forged.unwrap(), &root()).unwrap_err(), EnvelopeError::RootRefused);
    let renamed = edited(&document(), |it| it["domain"] = "desk".into()).unwrap();
    assert_eq!(Keyring::unlock(renamed, &root()).unwrap_err(), EnvelopeError::RootRefused);
}

#[test]
fn nothing_is_sealed_for_another_domain() {
    let mut ring = ring();
    let at_desk = Place { domain: "desk", ..place() };
    assert_eq!(ring.seal(&at_desk, b"x", &[2; 32]), Err(EnvelopeError::WrongPlace));
}

#[test]
fn a_payload_is_bound_to_its_place_by_itself() {
    // Whoever holds the domain's key could wrap the data key for another row; the payload still would not
    // open there.
    let mut ring = ring();
    let sealed = ring.seal(&place(), b"Ada Lovelace", &[2; 32]).unwrap();
    let other = Place { row: "DE-4712", ..place() };
    let data_key = ring.open_data_key(&place(), &sealed).unwrap();
    let (key_version, data_key) = ring.wrap_data_key(&other, &data_key, &[3; 32]).unwrap();
    let moved = Ciphertext { key_version, data_key, payload: sealed.payload };
    assert_eq!(ring.open(&other, &moved), Err(EnvelopeError::Tampered));
    assert_eq!(ring.open(&place(), &moved), Err(EnvelopeError::WrongPlace));
}

#[test]
fn what_is_bound_tells_purposes_versions_and_names_apart() {
    let all = [
        place().payload_aad(),
        place().data_key_aad(1),
        place().data_key_aad(2),
        Place { table: "accountsd", row: "e-4711", ..place() }.payload_aad(),
        Place { table: "account", row: "sDE-4711", ..place() }.payload_aad(),
        Place { domain: "ledgera", table: "ccounts", ..place() }.payload_aad(),
    ];
    assert_eq!(all.iter().collect::<std::collections::BTreeSet<_>>().len(), all.len());
}

#[test]
fn no_byte_of_a_ciphertext_can_be_changed_unseen() {
    let mut ring = ring();
    let sealed = ring.seal(&place(), b"Ada Lovelace", &[2; 32]).unwrap();
    for index in 0..sealed.data_key.len() {
        let mut changed = sealed.clone();
        changed.data_key[index] ^= 1;
        assert_eq!(ring.open(&place(), &changed), Err(EnvelopeError::WrongPlace), "data key, byte {index}");
    }
    for index in 0..sealed.payload.len() {
        let mut changed = sealed.clone();
        changed.payload[index] ^= 1;
        assert_eq!(ring.open(&place(), &changed), Err(EnvelopeError::Tampered), "payload, byte {index}");
        assert_eq!(ring.rewrap(&place(), &changed, &[3; 32]), Err(EnvelopeError::Tampered));
        changed.payload.truncate(index);
        assert_eq!(ring.open(&place(), &changed), Err(EnvelopeError::Tampered), "{index} bytes");
    }
    let text = sealed.to_json();
    for index in 0..text.len() {
        let mut bytes = text.clone().into_bytes();
        bytes[index] ^= 1;
        let opened = String::from_utf8(bytes).map_err(|_| EnvelopeError::Document("utf-8"));
        let opened = opened.and_then(|text| ring.open(&place(), &Ciphertext::parse(&text)?));
        assert!(opened.is_err(), "character {index}");
    }
}

#[test]
fn an_older_data_key_or_payload_cannot_be_replayed() {
    let mut ring = ring();
    let older = ring.seal(&place(), b"limit 100", &[2; 32]).unwrap();
    let next = Place { version: 10, ..place() };
    let newer = ring.seal(&next, b"limit 5", &[3; 32]).unwrap();
    let spliced = Ciphertext { data_key: older.data_key.clone(), ..newer.clone() };
    assert_eq!(ring.open(&next, &spliced), Err(EnvelopeError::WrongPlace));
    let spliced = Ciphertext { payload: older.payload.clone(), ..newer.clone() };
    assert_eq!(ring.open(&next, &spliced), Err(EnvelopeError::Tampered));
    assert_eq!(ring.open(&next, &older), Err(EnvelopeError::WrongPlace));
    // Even at the same place and row version: two seals share no key.
    let again = ring.seal(&next, b"limit 7", &[4; 32]).unwrap();
    let spliced = Ciphertext { data_key: newer.data_key.clone(), ..again };
    assert_eq!(ring.open(&next, &spliced), Err(EnvelopeError::Tampered));
    // A wrap under an older version that says it is under the newer one, and the other way round.
    ring.rotate(&root(), &[5; 32], NOW + 1).unwrap();
    let wrapped_again = ring.rewrap(&next, &newer, &[6; 32]).unwrap();
    let relabelled = Ciphertext { key_version: 2, ..newer.clone() };
    assert_eq!(ring.open(&next, &relabelled), Err(EnvelopeError::WrongPlace));
    let relabelled = Ciphertext { key_version: 1, ..wrapped_again };
    assert_eq!(ring.open(&next, &relabelled), Err(EnvelopeError::WrongPlace));
    // The old wrap as it was, after the minimum was raised.
    ring.raise_minimum(2).unwrap();
    let refused = Err(EnvelopeError::BelowMinimum { version: 1, minimum: 2 });
    assert_eq!(ring.open(&next, &newer), refused);
}

#[test]
fn rotation_keeps_old_records_open_and_seals_new_ones_with_the_new_version() {
    let mut ring = ring();
    let old = ring.seal(&place(), b"old", &[2; 32]).unwrap();
    assert!(!ring.needs_rewrap(&old));
    assert_eq!(ring.rotate(&root(), &[3; 32], NOW + 5), Ok(2));
    let new = ring.seal(&place(), b"new", &[4; 32]).unwrap();
    assert_eq!((old.key_version(), new.key_version()), (1, 2));
    assert!(ring.needs_rewrap(&old) && !ring.needs_rewrap(&new));
    assert_eq!(ring.open(&place(), &old).unwrap().as_slice(), b"old");
    let states: Vec<_> = ring.document().versions().map(|it| (it.version, it.state, it.created)).collect();
    assert_eq!(states, [(1, State::DecryptOnly, NOW), (2, State::Active, NOW + 5)]);
}

#[test]
fn wrapping_again_leaves_the_payload_untouched() {
    let mut ring = ring();
    let old = ring.seal(&place(), b"old", &[2; 32]).unwrap();
    ring.rotate(&root(), &[3; 32], NOW).unwrap();
    let new = ring.rewrap(&place(), &old, &[4; 32]).unwrap();
    assert_eq!(new.key_version(), 2);
    assert_eq!(new.payload, old.payload);
    assert_ne!(new.data_key, old.data_key);
    assert_eq!(ring.open(&place(), &new).unwrap().as_slice(), b"old");
    ring.raise_minimum(2).unwrap();
    ring.destroy(1).unwrap();
    assert_eq!(ring.open(&place(), &new).unwrap().as_slice(), b"old");
    assert_eq!(ring.open(&place(), &old), Err(EnvelopeError::Destroyed(1)));
    assert_eq!(ring.rewrap(&place(), &old, &[5; 32]), Err(EnvelopeError::Destroyed(1)));
}

#[test]
fn what_is_below_the_minimum_is_refused_at_once_and_after_a_restart() {
    let mut ring = ring();
    let old = ring.seal(&place(), b"old", &[2; 32]).unwrap();
    ring.rotate(&root(), &[3; 32], NOW).unwrap();
    assert_eq!(ring.raise_minimum(3), Err(EnvelopeError::Minimum(3)));
    ring.raise_minimum(2).unwrap();
    assert_eq!(keys_in_memory(&ring), 1);
    assert_eq!(ring.raise_minimum(1), Err(EnvelopeError::Minimum(1)));
    let refused = Err(EnvelopeError::BelowMinimum { version: 1, minimum: 2 });
    assert_eq!(ring.open(&place(), &old), refused);
    assert_eq!(ring.rewrap(&place(), &old, &[4; 32]).map(|_| ()), refused.clone().map(|_| ()));
    let mut document = DomainKey::parse(&ring.into_document().to_json()).unwrap();
    let ring = Keyring::unlock(document.clone(), &root()).unwrap();
    assert_eq!(ring.open(&place(), &old), refused);
    assert_eq!(document.set_minimum(0), Err(EnvelopeError::Minimum(0)));
    document.set_minimum(1).unwrap();
    let ring = Keyring::unlock(document, &root()).unwrap();
    assert_eq!(ring.open(&place(), &old).unwrap().as_slice(), b"old");
}

#[test]
fn a_destroyed_version_is_gone_from_memory_and_document() {
    let mut ring = ring();
    let old = ring.seal(&place(), b"old", &[2; 32]).unwrap();
    assert_eq!(ring.destroy(1), Err(EnvelopeError::ActiveVersion(1)));
    assert_eq!(ring.destroy(2), Err(EnvelopeError::UnknownVersion(2)));
    ring.rotate(&root(), &[3; 32], NOW).unwrap();
    let before: serde_json::Value = serde_json::from_str(&ring.document().to_json()).unwrap();
    let material = before["versions"]["1"]["wrapped"].as_str().unwrap().to_owned();
    assert_eq!(keys_in_memory(&ring), 2);
    ring.destroy(1).unwrap();
    assert_eq!(keys_in_memory(&ring), 1);
    assert_eq!(ring.destroy(1), Ok(()), "once more changes nothing");
    assert_eq!(ring.open(&place(), &old), Err(EnvelopeError::Destroyed(1)));
    let after = ring.document().to_json();
    assert!(!after.contains(&material));
    let restarted = Keyring::unlock(DomainKey::parse(&after).unwrap(), &root()).unwrap();
    assert_eq!(restarted.open(&place(), &old), Err(EnvelopeError::Destroyed(1)));
    // To call it alive again does not bring it back.
    let revived = edited(restarted.document(), |it| it["versions"]["1"]["state"] = "decrypt_only".into());
    assert!(matches!(revived, Err(EnvelopeError::Document(_))));
}

#[test]
fn everything_destroyed_opens_nothing_until_a_new_version_seals_anew() {
    let mut ring = ring();
    let old = ring.seal(&place(), b"old", &[2; 32]).unwrap();
    ring.destroy_everything();
    assert_eq!(keys_in_memory(&ring), 0);
    assert_eq!(ring.open(&place(), &old), Err(EnvelopeError::Destroyed(1)));
    assert_eq!(ring.seal(&place(), b"x", &[3; 32]), Err(EnvelopeError::Destroyed(1)));
    assert!(ring.needs_rewrap(&old));
    let document = DomainKey::parse(&ring.into_document().to_json()).unwrap();
    assert_eq!(document.active(), None);
    let mut ring = Keyring::unlock(document, &root()).unwrap();
    assert_eq!(ring.rotate(&root(), &[4; 32], NOW), Ok(2));
    ring.seal(&place(), b"x", &[5; 32]).unwrap();
    assert_eq!(ring.open(&place(), &old), Err(EnvelopeError::Destroyed(1)));
}

#[test]
fn a_root_that_is_gone_is_said_to_be_gone_and_nothing_takes_its_place() {
    let gone = EnvelopeError::RootUnavailable("token removed".to_owned());
    assert_eq!(DomainKey::create("ledger", &Gone, &[1; 32], NOW).unwrap_err(), gone);
    assert_eq!(Keyring::unlock(document(), &Gone).unwrap_err(), gone);
    let mut ring = ring();
    let before = ring.document().clone();
    assert_eq!(ring.rotate(&Gone, &[2; 32], NOW), Err(gone.clone()));
    assert_eq!(ring.document(), &before);
    let mut document = document();
    assert_eq!(document.change_root(&root(), &Gone, &[2; 32]), Err(gone));
    assert_eq!(document, before);
    // To narrow and to destroy needs no root.
    document.destroy_everything();
    assert_eq!(document.active(), None);
}

#[test]
fn another_root_opens_nothing_and_cannot_be_mixed_in() {
    let other = WrappingKey::from_bytes(&[0x78; 32]);
    assert_eq!(Keyring::unlock(document(), &other).unwrap_err(), EnvelopeError::RootRefused);
    let mut mixed = document();
    assert_eq!(mixed.rotate(&other, &[2; 32], NOW), Err(EnvelopeError::RootRefused));
    assert_eq!(mixed, document());
    let broken = Broken(root());
    assert_eq!(DomainKey::create("ledger", &broken, &[1; 32], NOW).unwrap_err(), EnvelopeError::RootRefused);
}

#[test]
fn a_root_can_be_changed_and_the_old_one_opens_nothing_then() {
    let mut ring = ring();
    let sealed = ring.seal(&place(), b"old", &[2; 32]).unwrap();
    ring.rotate(&root(), &[3; 32], NOW).unwrap();
    let mut document = ring.into_document();
    let other = WrappingKey::from_bytes(&[0x78; 32]);
    document.change_root(&root(), &other, &[4; 32]).unwrap();
    assert_eq!(Keyring::unlock(document.clone(), &root()).unwrap_err(), EnvelopeError::RootRefused);
    let ring = Keyring::unlock(document, &other).unwrap();
    assert_eq!(ring.open(&place(), &sealed).unwrap().as_slice(), b"old");
}

#[test]
fn a_version_seals_two_to_the_32_times_and_no_more() {
    let nearly = edited(&document(), |it| it["versions"]["1"]["uses"] = (USES_MAX - 2).into()).unwrap();
    let mut ring = Keyring::unlock(nearly, &root()).unwrap();
    let sealed = ring.seal(&place(), b"x", &[2; 32]).unwrap();
    ring.rewrap(&place(), &sealed, &[3; 32]).unwrap();
    assert_eq!(ring.seal(&place(), b"x", &[4; 32]), Err(EnvelopeError::Exhausted(1)));
    assert_eq!(ring.rewrap(&place(), &sealed, &[4; 32]), Err(EnvelopeError::Exhausted(1)));
    assert_eq!(ring.document().versions().next().unwrap().uses, USES_MAX);
    let mut again = Keyring::unlock(ring.document().clone(), &root()).unwrap();
    assert_eq!(again.seal(&place(), b"x", &[4; 32]), Err(EnvelopeError::Exhausted(1)));
    again.rotate(&root(), &[5; 32], NOW).unwrap();
    again.seal(&place(), b"x", &[6; 32]).unwrap();
    let over = edited(&document(), |it| it["versions"]["1"]["uses"] = (USES_MAX + 1).into());
    assert!(matches!(over, Err(EnvelopeError::Document(_))));
}

#[test]
fn seals_are_counted_in_the_document_before_they_happen() {
    let mut ring = ring();
    let uses = |ring: &Keyring| ring.document().versions().last().unwrap().uses;
    let stored = ring.document().revision();
    assert_eq!(uses(&ring), 0);
    ring.seal(&place(), b"x", &[2; 32]).unwrap();
    assert_eq!(uses(&ring), RESERVED_AT_ONCE);
    assert_eq!(ring.document().revision(), stored + 1);
    ring.seal(&place(), b"y", &[3; 32]).unwrap();
    assert_eq!(ring.document().revision(), stored + 1, "nothing new to store");
    let mut crashed = Keyring::unlock(ring.document().clone(), &root()).unwrap();
    crashed.seal(&place(), b"z", &[4; 32]).unwrap();
    assert_eq!(uses(&crashed), 2 * RESERVED_AT_ONCE);
}

#[test]
fn every_change_of_a_document_raises_its_revision() {
    let mut document = document();
    let mut last = document.revision();
    let mut changed = |document: &DomainKey| {
        assert!(document.revision() > last);
        last = document.revision();
    };
    document.rotate(&root(), &[2; 32], NOW).unwrap();
    changed(&document);
    document.set_minimum(2).unwrap();
    changed(&document);
    document.destroy(1).unwrap();
    changed(&document);
    document.change_root(&root(), &root(), &[3; 32]).unwrap();
    changed(&document);
    document.destroy_everything();
    changed(&document);
}

#[test]
fn a_document_that_contradicts_itself_is_refused() {
    let mut good = document();
    good.rotate(&root(), &[2; 32], NOW).unwrap();
    type Edit = fn(&mut serde_json::Value);
    let wrong: [Edit; 17] = [
        |it| it["format"] = "trader-domain-key-2".into(),
        |it| it["domain"] = "Ledger".into(),
        |it| it["domain"] = "".into(),
        |it| it["more"] = 1.into(),
        |it| it["versions"]["2"]["more"] = 1.into(),
        |it| it["versions"]["1"]["state"] = "active".into(),
        |it| it["versions"]["2"]["state"] = "decrypt_only".into(),
        |it| it["versions"]["2"]["state"] = "destroyed".into(),
        |it| it["versions"]["2"]["wrapped"] = serde_json::Value::Null,
        |it| it["versions"]["2"]["wrapped"] = "".into(),
        |it| {
            it["versions"]["1"] =
                serde_json::json!({"state": "destroyed", "created": 0, "uses": 0, "wrapped": ""})
        },
        |it| it["versions"] = serde_json::json!({}),
        |it| it["versions"]["4"] = it["versions"]["1"].clone(),
        |it| it["minimum"] = 0.into(),
        |it| it["minimum"] = 3.into(),
        |it| it["revision"] = u64::MAX.into(),
        |it| it["versions"]["1"]["wrapped"] = "AAAA".repeat(1000).into(),
    ];
    assert_eq!(edited(&good, |_| ()), Ok(good.clone()));
    for (number, edit) in wrong.into_iter().enumerate() {
        assert!(matches!(edited(&good, edit), Err(EnvelopeError::Document(_))), "edit {number}");
    }
    let text = good.to_json();
    let twice = text.replace("\"2\": {", "\"1\": {");
    assert_ne!(text, twice);
    assert!(matches!(DomainKey::parse(&twice), Err(EnvelopeError::Document(_))));
    assert!(matches!(DomainKey::parse(&format!("{text}x")), Err(EnvelopeError::Document(_))));
    // Its age is bound: a version cannot be made younger.
    let younger = edited(&good, |it| it["versions"]["2"]["created"] = (NOW + 9).into()).unwrap();
    assert_eq!(Keyring::unlock(younger, &root()).unwrap_err(), EnvelopeError::RootRefused);
}

#[test]
fn a_ciphertext_is_read_strictly() {
    let good = ring().seal(&place(), b"x", &[2; 32]).unwrap().to_json();
    let edit = |name: &str, value: serde_json::Value| {
        let mut document: serde_json::Value = serde_json::from_str(&good).unwrap();
        document[name] = value;
        Ciphertext::parse(&document.to_string())
    };
    assert!(Ciphertext::parse(&good).is_ok());
    let wrong = [
        edit("format", "trader-envelope-2".into()),
        edit("more", 1.into()),
        edit("key_version", 0.into()),
        edit("key_version", (-1).into()),
        edit("key_version", "1".into()),
        edit("data_key", "AAAA".into()),
        edit("data_key", "A".repeat(84).into()),
        edit("payload", "AAAA".into()),
        edit("payload", "not base64!".into()),
        Ciphertext::parse(&good.replacen('{', "{\"key_version\":1,", 1)),
        Ciphertext::parse(&" ".repeat(CIPHERTEXT_JSON_MAX + 1)),
    ];
    for (number, read) in wrong.into_iter().enumerate() {
        assert!(matches!(read, Err(EnvelopeError::Document(_))), "{number}");
    }
}

#[test]
fn names_and_sizes_have_limits() {
    let mut ring = ring();
    let long = "a".repeat(ROW_MAX + 1);
    let wrong = [
        Place { table: "", ..place() },
        Place { table: "Accounts", ..place() },
        Place { table: "a.b", ..place() },
        Place { table: &long, ..place() },
        Place { row: "", ..place() },
        Place { row: &long, ..place() },
        Place { domain: " ledger", ..place() },
    ];
    for place in wrong {
        assert!(matches!(ring.seal(&place, b"x", &[2; 32]), Err(EnvelopeError::Name(_))), "{place:?}");
    }
    let most = vec![7; PLAINTEXT_MAX];
    let sealed = ring.seal(&place(), &most, &[2; 32]).unwrap();
    assert_eq!(Ciphertext::parse(&sealed.to_json()), Ok(sealed));
    let more = vec![7; PLAINTEXT_MAX + 1];
    assert_eq!(ring.seal(&place(), &more, &[2; 32]), Err(EnvelopeError::TooLong));
}

#[test]
fn the_same_entropy_twice_shares_no_key_and_no_nonce() {
    let mut ring = ring();
    let one = ring.seal(&place(), b"buy ", &[2; 32]).unwrap();
    let other = ring.seal(&place(), b"sell", &[2; 32]).unwrap();
    assert_ne!(one.payload[..12], other.payload[..12]);
    assert_ne!(one.data_key[..12], other.data_key[..12]);
    assert_eq!(
        ring.open(&place(), &Ciphertext { payload: other.payload, ..one }),
        Err(EnvelopeError::Tampered)
    );
}

#[test]
fn every_reason_has_a_code_of_its_own() {
    let all = [
        EnvelopeError::Name(""),
        EnvelopeError::TooLong,
        EnvelopeError::Document(""),
        EnvelopeError::WrongPlace,
        EnvelopeError::Tampered,
        EnvelopeError::UnknownVersion(1),
        EnvelopeError::Destroyed(1),
        EnvelopeError::BelowMinimum { version: 1, minimum: 2 },
        EnvelopeError::ActiveVersion(1),
        EnvelopeError::Minimum(1),
        EnvelopeError::Exhausted(1),
        EnvelopeError::TooManyVersions,
        EnvelopeError::RootUnavailable(String::new()),
        EnvelopeError::RootRefused,
    ];
    let codes: std::collections::BTreeSet<_> = all.iter().map(EnvelopeError::code).collect();
    assert_eq!(codes.len(), all.len());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn every_record_comes_back_at_its_place_and_at_no_other(
        plaintext in prop::collection::vec(any::<u8>(), 0..200), entropy: [u8; 32],
        row in "\\PC{1,40}", other in "\\PC{1,40}", version: u64, rotations in 0u8..4,
    ) {
        let mut ring = ring();
        let place = Place { row: &row, version, ..place() };
        let mut sealed = ring.seal(&place, &plaintext, &entropy).unwrap();
        for turn in 0..rotations {
            ring.rotate(&root(), &[turn; 32], NOW).unwrap();
            if turn % 2 == 0 {
                sealed = ring.rewrap(&place, &sealed, &entropy).unwrap();
            }
        }
        prop_assert_eq!(ring.open(&place, &sealed).unwrap().to_vec(), plaintext);
        if other != row {
            let elsewhere = Place { row: &other, ..place };
            prop_assert_eq!(ring.open(&elsewhere, &sealed), Err(EnvelopeError::WrongPlace));
        }
        let elsewhere = Place { version: version.wrapping_add(1), ..place };
        prop_assert_eq!(ring.open(&elsewhere, &sealed), Err(EnvelopeError::WrongPlace));
    }

    #[test]
    fn no_text_makes_the_parsers_fall_over(text in "\\PC{0,200}") {
        prop_assert!(Ciphertext::parse(&text).is_err());
        prop_assert!(DomainKey::parse(&text).is_err());
    }
}
