//! Wrong passphrases, changed documents, and documents made to hurt whoever opens them.

use super::*;

const SECRET: [u8; 32] = [0x5e; 32];
const PASSPHRASE: &str = "correct horse battery staple";

fn sealed() -> SealedFile {
    SealedFile::seal(&SECRET, PASSPHRASE, Cost::least(), &[1; 16], &[2; 12]).unwrap()
}

#[test]
fn the_passphrase_opens_it_and_no_other_does() {
    let file = SealedFile::parse(&sealed().to_json()).unwrap();
    assert_eq!(file, sealed());
    assert_eq!(*file.open(PASSPHRASE).unwrap(), SECRET);
    for wrong in ["", "correct horse battery stable", "Correct horse battery staple"] {
        assert_eq!(file.open(wrong), Err(SealedFileError::Refused));
    }
    assert_eq!(file.open(&"x".repeat(PASSPHRASE_MAX + 1)), Err(SealedFileError::Passphrase));
}

#[test]
fn the_usual_cost_is_64_mib_and_three_passes() {
    let cost = Cost::default();
    assert_eq!(cost.to_string(), "64 MiB, 3 passes, 1 lanes");
    let file = SealedFile::seal(&SECRET, PASSPHRASE, cost, &[1; 16], &[2; 12]).unwrap();
    assert_eq!(*file.open(PASSPHRASE).unwrap(), SECRET);
}

#[test]
fn a_weak_or_endless_passphrase_seals_nothing() {
    for wrong in ["", "elevenchars", &"x".repeat(PASSPHRASE_MAX + 1)] {
        let refused = SealedFile::seal(&SECRET, wrong, Cost::least(), &[1; 16], &[2; 12]);
        assert_eq!(refused, Err(SealedFileError::Passphrase));
    }
}

#[test]
fn no_byte_of_it_can_be_changed_unseen_and_the_error_is_that_of_a_wrong_passphrase() {
    let wrong_passphrase = sealed().open("not the passphrase").unwrap_err();
    for index in [0, 9, 15] {
        let mut changed = sealed();
        changed.salt[index] ^= 1;
        assert_eq!(changed.open(PASSPHRASE).unwrap_err(), wrong_passphrase, "salt, byte {index}");
    }
    let (file, key) = (sealed(), stretch(PASSPHRASE, Cost::least(), &[1; 16]).unwrap());
    assert_eq!(*file.open_with(&key).unwrap(), SECRET);
    for index in 0..file.salt.len() {
        // Even with the key that the right salt makes.
        let mut changed = file.clone();
        changed.salt[index] ^= 1;
        assert_eq!(changed.open_with(&key).unwrap_err(), wrong_passphrase, "salt, byte {index}");
    }
    for index in 0..file.sealed.len() {
        let mut changed = file.clone();
        changed.sealed[index] ^= 1;
        assert_eq!(changed.open_with(&key).unwrap_err(), wrong_passphrase, "sealed, byte {index}");
    }
    let mut costs = [Cost::least(); 3];
    costs[0].memory_kib += 1;
    costs[1].passes += 1;
    costs[2].lanes += 1;
    for cost in costs {
        let changed = SealedFile { cost, ..sealed() };
        assert_eq!(changed.open(PASSPHRASE).unwrap_err(), wrong_passphrase, "{cost:?}");
    }
}

#[test]
fn the_parameters_are_bound_to_what_they_sealed() {
    // With the key that fits, so that nothing but the associated data can refuse.
    let key = stretch(PASSPHRASE, Cost::least(), &[1; 16]).unwrap();
    let changed = SealedFile { cost: Cost::default(), ..sealed() };
    assert_eq!(changed.open_with(&key), Err(SealedFileError::Refused));
}

#[test]
fn a_forged_document_can_neither_exhaust_nor_weaken() {
    let with = |name: &str, value: u64| {
        let mut document: serde_json::Value = serde_json::from_str(&sealed().to_json()).unwrap();
        document[name] = value.into();
        SealedFile::parse(&document.to_string())
    };
    let forged = [
        ("memory_kib", 0),
        ("memory_kib", 8),
        ("memory_kib", 19 * 1024 - 1),
        ("memory_kib", 1024 * 1024 + 1),
        ("memory_kib", u64::from(u32::MAX)),
        ("passes", 0),
        ("passes", 1),
        ("passes", 11),
        ("passes", u64::from(u32::MAX)),
        ("lanes", 0),
        ("lanes", 5),
        ("lanes", 1 << 24),
    ];
    for (name, value) in forged {
        assert_eq!(with(name, value), Err(SealedFileError::Parameters), "{name} {value}");
    }
    assert_eq!(with("memory_kib", 1 << 40), Err(SealedFileError::Document));
    assert!(with("memory_kib", 1024 * 1024).is_ok());
    assert!(with("passes", 10).is_ok());
}

#[test]
fn only_our_own_documents_are_read() {
    let good = sealed().to_json();
    let wrong = [
        String::new(),
        "{}".to_owned(),
        good.replace("argon2id", "argon2i"),
        good.replace("trader-sealed-root-1", "trader-sealed-root-2"),
        good.replacen('{', "{\"more\": 1,", 1),
        good.replacen("\"lanes\"", "\"passes\": 2, \"lanes\"", 1),
        good.replace("\"salt\": \"", "\"salt\": \"AA"),
        good.replace("\"sealed\": \"", "\"sealed\": \"AAAA"),
        format!("{good}x"),
        format!("{good}{}", " ".repeat(DOCUMENT_MAX)),
    ];
    for document in wrong {
        assert_eq!(SealedFile::parse(&document), Err(SealedFileError::Document), "{document}");
    }
}

#[test]
fn the_key_is_the_one_that_argon2id_makes() {
    // By another program, OpenSSL: 19456 KiB, 2 iterations, 1 lane, salt of 16 bytes 01.
    let key = stretch(PASSPHRASE, Cost::least(), &[1; 16]).unwrap();
    assert_eq!(crate::to_hex(&*key), "eb641d1b946edf14c62d7dca0578e4dc9236cb4aaf2bfe103e9751bc8ac66242");
}
