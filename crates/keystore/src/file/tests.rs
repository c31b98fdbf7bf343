//! The store in files, and those who alter, move, exchange and read them.
//!
//! Each test has a store in a temporary directory of its own, sealed at the least cost that is accepted. A
//! second store opened on the same files stands for a second process.

use std::fs::Permissions;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::sync::Barrier;

use keys::envelope::RootError;

use super::*;
use crate::{Config, KeyStore, Secret};

const PASSPHRASE: &str = "canary passphrase of a test";

fn secret(text: &str) -> Secret {
    Secret::new(Zeroizing::new(text.to_owned()))
}

struct Home(tempfile::TempDir);

impl Home {
    fn new() -> (Self, KeyStore) {
        let home = Self(tempfile::tempdir().unwrap());
        let store = KeyStore::create(&home.path(), &Config::File, &secret(PASSPHRASE)).unwrap();
        (home, store)
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("state/keys")
    }

    fn open(&self) -> Result<KeyStore, KeyStoreError> {
        KeyStore::open(&self.path(), &secret(PASSPHRASE))
    }

    /// All files of the store.
    fn files(&self) -> Vec<PathBuf> {
        let (mut files, mut directories) = (Vec::new(), vec![self.path()]);
        while let Some(directory) = directories.pop() {
            for entry in directory.read_dir().unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() { directories.push(path) } else { files.push(path) }
            }
        }
        files.sort();
        files
    }
}

#[test]
fn a_key_signs_and_is_found_again() {
    let (home, store) = Home::new();
    let signer = store.create_signer("ca/agents").unwrap();
    let public = signer.verifying_key();
    public.verify(b"x", &signer.sign(b"x").unwrap()).unwrap();
    assert!(signer.sign(&vec![0; MESSAGE_BYTES_MAX + 1]).is_err());
    assert!(matches!(store.create_signer("ca/agents"), Err(KeyStoreError::KeyExists { .. })));
    assert!(matches!(store.signer("ca"), Err(KeyStoreError::NoSuchKey { .. })));
    assert!(matches!(store.signer("../x_y"), Err(KeyStoreError::Label)));
    for odd in ["..", "/", ".hidden", "-"] {
        store.create_signer(odd).unwrap();
    }
    assert_eq!(store.labels().unwrap(), ["-", "..", ".hidden", "/", "ca/agents"]);
    store.health().unwrap();
    assert_eq!(store.describe().kind, "file");
    let wrapped = store.root().wrap(b"aad", b"plain", &[1; 12]).unwrap();
    let again = home.open().unwrap();
    assert_eq!(again.describe(), store.describe());
    drop((store, signer));
    assert_eq!(again.signer("ca/agents").unwrap().verifying_key(), public);
    assert_eq!(again.root().unwrap(b"aad", &wrapped).unwrap().as_slice(), b"plain");
    assert_eq!(again.root().unwrap(b"AAD", &wrapped).unwrap_err(), RootError::Refused);
    let second = KeyStore::create(&home.path(), &Config::File, &secret(PASSPHRASE));
    assert!(matches!(second, Err(KeyStoreError::StoreExists { .. })));
}

#[test]
fn only_the_passphrase_opens_the_store() {
    let (home, _store) = Home::new();
    for wrong in ["canary passphrase of a tesT", "canary passphrase of a test ", "another passphrase"] {
        let opened = KeyStore::open(&home.path(), &secret(wrong));
        assert!(matches!(opened, Err(KeyStoreError::WrongPassphrase)), "{opened:?}");
    }
    assert!(matches!(KeyStore::open(&home.path(), &secret("short")), Err(KeyStoreError::Secret(_))));
    let directory = tempfile::tempdir().unwrap();
    let weak = KeyStore::create(&directory.path().join("x"), &Config::File, &secret("elevenchars"));
    assert!(matches!(weak, Err(KeyStoreError::Secret(_))));
}

#[test]
fn a_flipped_bit_in_any_file_is_noticed() {
    let (home, store) = Home::new();
    let public = store.create_signer("a").unwrap().verifying_key();
    drop(store);
    let files = home.files();
    assert_eq!(files.len(), 4, "{files:?}");
    for path in files {
        let content = std::fs::read(&path).unwrap();
        // Opening the store takes a while, so only a sample of what that reads.
        let key = path.extension().is_some_and(|end| end == "key");
        let opened = home.open().unwrap();
        for at in (0..content.len()).step_by(if key { 1 } else { 5 }) {
            let mut altered = content.clone();
            altered[at] ^= 1 << (at % 8);
            std::fs::write(&path, &altered).unwrap();
            let signer =
                if key { opened.signer("a") } else { home.open().and_then(|store| store.signer("a")) };
            assert!(signer.is_err(), "byte {at} of {}", path.display());
        }
        std::fs::write(&path, &content[..content.len() - 1]).unwrap();
        let cut = home.open().and_then(|store| store.signer("a"));
        // The newline at the end of a JSON text means nothing.
        assert!(cut.is_err() || content.ends_with(b"\n"), "{} cut", path.display());
        std::fs::write(&path, &content).unwrap();
    }
    assert_eq!(home.open().unwrap().signer("a").unwrap().verifying_key(), public);
}

#[test]
fn what_others_can_read_is_refused_with_the_remedy() {
    let (home, store) = Home::new();
    store.create_signer("a").unwrap();
    for path in home.files() {
        assert_eq!(path.metadata().unwrap().mode() & 0o777, 0o600, "{}", path.display());
        for mode in [0o640, 0o604, 0o620] {
            std::fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            let error = home.open().and_then(|store| store.signer("a")).err().unwrap();
            assert!(error.to_string().contains("chmod 600"), "{error}");
        }
        std::fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
    }
    for path in [home.path(), home.path().join(KEYS)] {
        assert_eq!(path.metadata().unwrap().mode() & 0o777, 0o700);
        std::fs::set_permissions(&path, Permissions::from_mode(0o750)).unwrap();
        for error in [home.open().map(|_| ()), store.health()] {
            let error = error.unwrap_err();
            assert!(error.to_string().contains("chmod 700"), "{error}");
        }
        std::fs::set_permissions(&path, Permissions::from_mode(0o700)).unwrap();
    }
    store.health().unwrap();
}

#[test]
fn a_key_file_opens_under_no_other_label_and_in_no_other_store() {
    let (home, store) = Home::new();
    store.create_signer("a").unwrap();
    store.create_signer("b").unwrap();
    let file = |label: &str| home.path().join(KEYS).join(label::file_name(label));
    std::fs::rename(file("a"), file("c")).unwrap();
    assert!(matches!(store.signer("c"), Err(KeyStoreError::Refused { .. })));
    std::fs::rename(file("c"), file("b")).unwrap();
    assert!(matches!(store.signer("b"), Err(KeyStoreError::Refused { .. })));

    // The same root key in a store of another name: its files are not these either.
    let (other_home, other) = Home::new();
    other.create_signer("d").unwrap();
    std::fs::copy(other_home.path().join(KEYS).join("d.key"), file("d")).unwrap();
    assert!(matches!(store.signer("d"), Err(KeyStoreError::Refused { .. })));
    let root = |home: &Home, store: &KeyStore| root_path(&home.path(), &store.describe().id);
    std::fs::copy(root(&other_home, &other), root(&home, &store)).unwrap();
    assert!(matches!(home.open(), Err(KeyStoreError::Refused { .. })));
    assert!(matches!(store.health(), Err(KeyStoreError::Refused { .. })));
}

#[test]
fn a_store_whose_files_are_gone_is_unavailable_not_empty() {
    let (home, store) = Home::new();
    store.create_signer("a").unwrap();
    let away = home.0.path().join("away");
    std::fs::rename(home.path(), &away).unwrap();
    assert!(!matches!(store.signer("a").map(|_| ()), Ok(()) | Err(KeyStoreError::NoSuchKey { .. })));
    assert!(store.labels().is_err() && store.create_signer("b").is_err() && store.health().is_err());
    assert!(!matches!(store.destroy_signer("a"), Ok(()) | Err(KeyStoreError::NoSuchKey { .. })));
    std::fs::rename(&away, home.path()).unwrap();
    store.signer("a").unwrap().sign(b"x").unwrap();
    store.health().unwrap();
    std::fs::remove_file(root_path(&home.path(), &store.describe().id)).unwrap();
    assert!(matches!(store.health(), Err(KeyStoreError::Unavailable { .. })));
    assert!(matches!(store.signer("none").map(|_| ()), Err(KeyStoreError::Unavailable { .. })));
}

#[test]
fn a_document_that_changed_is_unhealthy() {
    let (home, store) = Home::new();
    let path = home.path().join("keystore.json");
    let text = std::fs::read_to_string(&path).unwrap();
    let id = store.describe().id;
    std::fs::write(&path, text.replace(&id, "0123456789abcdef")).unwrap();
    assert!(matches!(store.health(), Err(KeyStoreError::Document { .. })));
    std::fs::remove_file(&path).unwrap();
    assert!(matches!(store.health(), Err(KeyStoreError::Document { .. })));
    assert!(matches!(home.open(), Err(KeyStoreError::Document { .. })));
}

#[test]
fn a_destroyed_key_signs_no_more_anywhere() {
    let (_home, store) = Home::new();
    let made = store.create_signer("a").unwrap();
    let found = store.signer("a").unwrap();
    store.destroy_signer("a").unwrap();
    assert!(made.sign(b"x").is_err() && found.sign(b"x").is_err());
    assert!(matches!(store.signer("a"), Err(KeyStoreError::NoSuchKey { .. })));
    assert!(matches!(store.destroy_signer("a"), Err(KeyStoreError::NoSuchKey { .. })));
    let new = store.create_signer("a").unwrap();
    assert_ne!(new.verifying_key(), made.verifying_key());
    assert!(made.sign(b"x").is_err() && new.sign(b"x").is_ok());
}

#[test]
fn of_those_who_make_the_same_key_at_once_one_succeeds() {
    let (home, store) = Home::new();
    // Another store object on the same files stands for another process: no lock is shared.
    let second = home.open().unwrap();
    for round in 0..20 {
        let label = format!("key-{round}");
        let barrier = Barrier::new(16);
        let made: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..16)
                .map(|n| {
                    let (store, label, barrier) =
                        (if n % 2 == 0 { &store } else { &second }, &label, &barrier);
                    scope.spawn(move || {
                        barrier.wait();
                        store.create_signer(label)
                    })
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        let won: Vec<_> = made.iter().filter_map(|made| made.as_ref().ok()).collect();
        assert_eq!(won.len(), 1);
        assert!(made.iter().all(|made| matches!(made, Ok(_) | Err(KeyStoreError::KeyExists { .. }))));
        assert_eq!(home.open().unwrap().signer(&label).unwrap().verifying_key(), won[0].verifying_key());
    }
    assert_eq!(home.files().len(), 3 + 20, "nothing half-made is left");
}

#[test]
fn of_those_who_make_the_same_store_at_once_one_succeeds() {
    let directory = tempfile::tempdir().unwrap();
    let home = Home(directory);
    let barrier = Barrier::new(8);
    let made: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8)
            .map(|_| {
                scope.spawn(|| {
                    barrier.wait();
                    KeyStore::create(&home.path(), &Config::File, &secret(PASSPHRASE))
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(made.iter().filter(|made| made.is_ok()).count(), 1);
    assert!(
        made.iter().all(|made| matches!(made, Ok(_) | Err(KeyStoreError::StoreExists { .. }))),
        "{made:?}"
    );
    home.open().unwrap().health().unwrap();
    assert_eq!(home.files().len(), 3, "{:?}", home.files());
}

#[test]
fn shares_of_the_root_key_replace_a_lost_passphrase() {
    let (home, store) = Home::new();
    let public = store.create_signer("a").unwrap().verifying_key();
    assert!(matches!(
        store.root_shares(&secret("not the passphrase"), 3, 5),
        Err(KeyStoreError::WrongPassphrase)
    ));
    assert!(matches!(store.root_shares(&secret(PASSPHRASE), 1, 5), Err(KeyStoreError::Shares(_))));
    let shares = store.root_shares(&secret(PASSPHRASE), 3, 5).unwrap();
    assert_eq!(shares.len(), 5);
    drop(store);
    let root = keys::shares::recover(&shares[1..4]).unwrap();
    let new = secret("the new passphrase");
    // Another store's root key would leave this one without any.
    let (other_home, other) = Home::new();
    assert!(matches!(KeyStore::recover(&other_home.path(), &root, &new), Err(KeyStoreError::Refused { .. })));
    drop(other);
    other_home.open().unwrap();

    let store = KeyStore::recover(&home.path(), &root, &new).unwrap();
    assert_eq!(store.signer("a").unwrap().verifying_key(), public);
    store.health().unwrap();
    assert!(matches!(home.open(), Err(KeyStoreError::WrongPassphrase)), "the old passphrase is no more");
    let again = KeyStore::open(&home.path(), &new).unwrap();
    assert_eq!(again.signer("a").unwrap().verifying_key(), public);
    assert_eq!(home.files().len(), 4, "{:?}", home.files());
    assert!(matches!(
        KeyStore::recover(&home.path(), &root, &secret("short")),
        Err(KeyStoreError::Secret(_))
    ));
}

#[test]
fn no_file_has_a_seed_the_root_key_or_the_passphrase() {
    let (home, store) = Home::new();
    store.create_signer("a").unwrap();
    let crate::Opened::File(files) = &store.place else { panic!("not in files") };
    let seed = files.read("a").unwrap().to_secret_text();
    let text = files::read_private(&root_path(&home.path(), &store.describe().id)).unwrap();
    let root = sealed::open(PASSPHRASE, &text).unwrap();
    let raw: [u8; 32] = keys::from_hex(&seed).unwrap();
    let (root_hex, pass_hex) = (keys::to_hex(&*root), keys::to_hex(PASSPHRASE.as_bytes()));
    let canaries: [&[u8]; 6] = [
        PASSPHRASE.as_bytes(),
        pass_hex.as_bytes(),
        seed.as_bytes(),
        &raw[..16],
        &root[..16],
        root_hex.as_bytes(),
    ];
    let files = home.files();
    assert_eq!(files.len(), 4);
    for path in files {
        let content = std::fs::read(&path).unwrap();
        for canary in canaries {
            let leaks = content.windows(canary.len()).any(|window| window == canary);
            assert!(!leaks, "{}", path.display());
        }
    }
    let wrong = KeyStore::open(&home.path(), &secret("canary passphrase of a tesT")).unwrap_err();
    let said = format!("{store:?} {:?} {wrong:?} {wrong} {:?}", store.root(), store.signer("a").unwrap());
    assert!(!said.contains("canary") && !said.contains(seed.as_str()), "{said}");
}
