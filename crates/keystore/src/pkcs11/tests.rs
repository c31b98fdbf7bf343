//! The store in a real token: SoftHSM2, in a process and a temporary directory of its own for each test.
//!
//! A module belongs to the process and SoftHSM2 is told its directory by an environment variable. So each test
//! starts this test program again for itself alone, with the variable set. Without SoftHSM2 the tests say so and
//! prove nothing.

use std::path::PathBuf;
use std::process::Command;
use std::sync::Barrier;
use std::time::Instant;

use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::object::AttributeInfo;
use cryptoki::session::UserType;
use cryptoki::types::AuthPin;
use keys::envelope::{RootError, Wrap as _};

use super::*;
use crate::{Config, KeyStore, Secret};

const DIRECTORY: &str = "TRADER_KEYSTORE_TEST_DIRECTORY";
const PIN: &str = "canary-pin-4711";
const LABEL: &str = "trader test";

fn find_module() -> Option<PathBuf> {
    let usual = [
        "/usr/lib/softhsm/libsofthsm2.so",
        "/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so",
        "/usr/lib/aarch64-linux-gnu/softhsm/libsofthsm2.so",
        "/usr/lib64/pkcs11/libsofthsm2.so",
        "/usr/lib64/libsofthsm2.so",
        "/usr/local/lib/softhsm/libsofthsm2.so",
        "/opt/homebrew/lib/softhsm/libsofthsm2.so",
    ];
    let named = std::env::var_os("TRADER_PKCS11_MODULE").map(PathBuf::from);
    named.into_iter().chain(usual.map(PathBuf::from)).find(|path| path.is_file())
}

/// Does a test's work when this process was started for it; otherwise starts one, with an empty token directory.
fn alone(name: &str, work: fn(&Bench)) {
    if let Some(home) = std::env::var_os(DIRECTORY) {
        return work(&Bench::new(home.into()));
    }
    if find_module().is_none() {
        println!(
            "skipped: no SoftHSM2; apt-get install softhsm2, or name its module in TRADER_PKCS11_MODULE"
        );
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let tokens = directory.path().join("tokens");
    std::fs::create_dir(&tokens).unwrap();
    let configuration = directory.path().join("softhsm2.conf");
    let text = format!("directories.tokendir = {}\nobjectstore.backend = file\n", tokens.display());
    std::fs::write(&configuration, text).unwrap();
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", &format!("pkcs11::tests::{name}"), "--nocapture"])
        .env("SOFTHSM2_CONF", &configuration)
        .env(DIRECTORY, directory.path())
        .output()
        .unwrap();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && out.contains("1 passed"), "{name}: {}\n{out}\n{err}", output.status);
    out.lines().filter(|line| line.starts_with("measured")).for_each(|line| println!("{line}"));
}

macro_rules! in_a_token {
    ($($name:ident by $inner:ident;)*) => { $(
        #[test]
        fn $name() {
            alone(stringify!($name), $inner);
        }
    )* };
}

in_a_token! {
    a_key_made_in_the_token_signs_and_is_found_again by create_and_reopen;
    no_private_value_can_be_read by read_values;
    without_its_token_everything_fails_and_with_it_works_again by away_and_back;
    a_wrong_pin_is_tried_once_and_never_again_by_itself by wrong_pin;
    a_pin_changed_behind_our_back_is_tried_once by changed_pin;
    a_pin_is_checked_even_when_the_process_is_logged_in by second_store;
    a_thousand_signatures_in_parallel_are_all_good by many_signatures;
    of_those_who_make_the_same_key_at_once_one_succeeds by create_race;
    what_the_root_wrapped_opens_only_with_its_data by wrapping;
    a_key_that_could_leave_the_token_is_not_used by unfit_keys;
    nobody_signs_with_another_key_than_the_one_asked_for by exchanged_keys;
    a_destroyed_key_is_gone_for_its_signers_too by destroyed;
    another_token_of_the_same_name_is_not_ours by other_token;
    nothing_secret_is_in_any_file by canaries;
}

/// What a test has to itself.
struct Bench {
    home: PathBuf,
    tokens: PathBuf,
    module: PathBuf,
}

impl Bench {
    fn new(home: PathBuf) -> Self {
        let bench = Self { tokens: home.join("tokens"), module: find_module().unwrap(), home };
        bench.make_token(LABEL);
        bench
    }

    fn library(&self) -> Pkcs11 {
        Pkcs11::new(&self.module).unwrap()
    }

    /// Makes a token, before any store is open in this process.
    fn make_token(&self, label: &str) {
        let library = self.library();
        library.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK)).unwrap();
        let officer = AuthPin::new("officer-pin".into());
        let blank = |slot: &_| !library.get_token_info(*slot).unwrap().token_initialized();
        let slot = library.get_slots_with_token().unwrap().into_iter().find(blank).unwrap();
        library.init_token(slot, &officer, label).unwrap();
        let session = library.open_rw_session(slot).unwrap();
        session.login(UserType::So, Some(&officer)).unwrap();
        session.init_pin(&AuthPin::new(PIN.into())).unwrap();
        drop(session);
        library.finalize().unwrap();
    }

    fn directory(&self) -> PathBuf {
        self.home.join("state")
    }

    fn config(&self) -> Config {
        Config::Pkcs11 { module: self.module.clone(), token_label: LABEL.to_owned() }
    }

    fn create(&self) -> KeyStore {
        KeyStore::create(&self.directory(), &self.config(), &secret(PIN)).unwrap()
    }

    fn open(&self, pin: &str) -> Result<KeyStore, KeyStoreError> {
        KeyStore::open(&self.directory(), &secret(pin))
    }

    /// A session of the test's own. The process is logged in while a store is open.
    fn session(&self) -> Session {
        let library = self.library();
        let slot = library
            .get_slots_with_initialized_token()
            .unwrap()
            .into_iter()
            .find(|slot| library.get_token_info(*slot).unwrap().label() == LABEL)
            .unwrap();
        library.open_rw_session(slot).unwrap()
    }

    fn take_token_away(&self) {
        std::fs::rename(&self.tokens, self.home.join("away")).unwrap();
    }

    fn put_token_back(&self) {
        std::fs::rename(self.home.join("away"), &self.tokens).unwrap();
    }
}

fn secret(text: &str) -> Secret {
    Secret::new(Zeroizing::new(text.to_owned()))
}

fn token(store: &KeyStore) -> &Arc<TokenStore> {
    match &store.place {
        crate::Opened::Token(token) => token,
        crate::Opened::File(_) => panic!("not a token"),
    }
}

fn logins(store: &KeyStore) -> u32 {
    token(store).worker.call(|module| Ok(module.logins())).unwrap()
}

fn wait_for_reconnect() {
    std::thread::sleep(RECONNECT_EVERY + std::time::Duration::from_millis(50));
}

fn unavailable<T>(result: Result<T, KeyStoreError>) -> String {
    match result {
        Err(KeyStoreError::Unavailable { why }) => why,
        Err(other) => panic!("{other:?}"),
        Ok(_) => panic!("it worked"),
    }
}

fn create_and_reopen(bench: &Bench) {
    let store = bench.create();
    let signer = store.create_signer("ca/agents").unwrap();
    let public = signer.verifying_key();
    for message in [&b""[..], b"message", &[7; 100_000]] {
        public.verify(message, &signer.sign(message).unwrap()).unwrap();
    }
    assert!(signer.sign(&vec![0; MESSAGE_BYTES_MAX + 1]).is_err());
    assert!(matches!(store.create_signer("ca/agents"), Err(KeyStoreError::KeyExists { .. })));
    assert!(matches!(store.signer("ca/desk"), Err(KeyStoreError::NoSuchKey { .. })));
    assert!(matches!(store.signer("CA"), Err(KeyStoreError::Label)));
    store.create_signer("a").unwrap();
    assert_eq!(store.labels().unwrap(), ["a", "ca/agents"]);
    store.health().unwrap();
    let description = store.describe();
    assert_eq!((description.kind, description.token_label.as_deref()), ("pkcs11", Some(LABEL)));
    assert!(!description.token_serial.clone().unwrap().is_empty());
    assert!(matches!(
        KeyStore::create(&bench.directory(), &bench.config(), &secret(PIN)),
        Err(KeyStoreError::StoreExists { .. })
    ));
    drop((store, signer));

    let again = bench.open(PIN).unwrap();
    assert_eq!(again.describe(), description);
    assert_eq!(again.labels().unwrap(), ["a", "ca/agents"]);
    let signer = again.signer("ca/agents").unwrap();
    assert_eq!(signer.verifying_key(), public);
    public.verify(b"again", &signer.sign(b"again").unwrap()).unwrap();

    // A second store in the same token has keys of its own.
    let other = KeyStore::create(&bench.home.join("other"), &bench.config(), &secret(PIN)).unwrap();
    assert!(other.labels().unwrap().is_empty());
    assert!(matches!(other.signer("ca/agents"), Err(KeyStoreError::NoSuchKey { .. })));
    assert_ne!(other.create_signer("ca/agents").unwrap().verifying_key(), public);
}

fn read_values(bench: &Bench) {
    let store = bench.create();
    store.create_signer("a").unwrap();
    let session = bench.session();
    for class in [ObjectClass::PRIVATE_KEY, ObjectClass::SECRET_KEY] {
        let found = session.find_objects(&[Attribute::Class(class)]).unwrap();
        assert_eq!(found.len(), 1, "{class}");
        let told = session.get_attribute_info(found[0], &[AttributeType::Value]).unwrap();
        assert!(matches!(told.as_slice(), [AttributeInfo::Sensitive]), "{told:?}");
        let told = session.get_attributes(found[0], &[AttributeType::Value]).unwrap();
        assert!(told.is_empty(), "{told:?}");
        // Nor can it be made readable afterwards.
        for attribute in [Attribute::Sensitive(false), Attribute::Extractable(true)] {
            assert!(session.update_attributes(found[0], &[attribute]).is_err());
        }
    }
}

fn away_and_back(bench: &Bench) {
    let store = bench.create();
    let signer = store.create_signer("a").unwrap();
    let root = store.root();
    let wrapped = root.wrap(b"aad", b"domain key", &[1; 12]).unwrap();
    for round in 0..2 {
        bench.take_token_away();
        // In turns, each is the first to meet the token gone.
        if round == 0 {
            unavailable(store.labels());
        } else {
            assert!(signer.sign(b"x").unwrap_err().why.contains("unavailable"));
        }
        for _ in 0..50 {
            assert!(signer.sign(b"x").unwrap_err().why.contains("unavailable"));
            unavailable(store.signer("a"));
            unavailable(store.signer("no-such-key"));
            unavailable(store.create_signer("b"));
            unavailable(store.destroy_signer("a"));
            unavailable(store.labels());
            unavailable(store.health());
            assert!(matches!(root.wrap(b"aad", b"x", &[2; 12]), Err(RootError::Unavailable(_))));
            assert!(matches!(root.unwrap(b"aad", &wrapped), Err(RootError::Unavailable(_))));
        }
        wait_for_reconnect();
        unavailable(store.health());
        bench.put_token_back();
        assert!(signer.sign(b"x").is_err(), "within the same second it is not looked for again");
        wait_for_reconnect();
        signer.verifying_key().verify(b"x", &signer.sign(b"x").unwrap()).unwrap();
        assert_eq!(root.unwrap(b"aad", &wrapped).unwrap().as_slice(), b"domain key");
        assert_eq!(store.labels().unwrap(), ["a"]);
        store.health().unwrap();
    }
    // Gone and back before anybody looked: at worst a moment's trouble.
    bench.take_token_away();
    bench.put_token_back();
    let _ = signer.sign(b"x");
    wait_for_reconnect();
    signer.sign(b"x").unwrap();
    drop((signer, root, store));

    bench.take_token_away();
    unavailable(bench.open(PIN));
    bench.put_token_back();
    assert_eq!(bench.open(PIN).unwrap().labels().unwrap(), ["a"]);
}

fn wrong_pin(bench: &Bench) {
    let error = KeyStore::create(&bench.directory(), &bench.config(), &secret("wrong")).unwrap_err();
    assert!(matches!(error, KeyStoreError::WrongPin), "{error:?}");
    assert!(!bench.directory().join("keystore.json").exists());
    drop(bench.create());
    assert!(matches!(bench.open("canary-pin-4712"), Err(KeyStoreError::WrongPin)));
    assert!(matches!(bench.open(""), Err(KeyStoreError::Secret(_))));
    bench.open(PIN).unwrap().health().unwrap();
}

fn changed_pin(bench: &Bench) {
    let store = bench.create();
    let signer = store.create_signer("a").unwrap();
    let (old, new) = (AuthPin::new(PIN.into()), AuthPin::new("another-pin".into()));
    bench.session().set_pin(&old, &new).unwrap();
    signer.sign(b"still logged in").unwrap();
    bench.take_token_away();
    signer.sign(b"x").unwrap_err();
    bench.put_token_back();
    assert_eq!(logins(&store), 1);
    wait_for_reconnect();
    for round in 0..3 {
        for _ in 0..100 {
            assert!(signer.sign(b"x").is_err());
            assert!(matches!(store.health(), Err(KeyStoreError::WrongPin)), "round {round}");
            assert!(matches!(store.create_signer("b"), Err(KeyStoreError::WrongPin)));
        }
        wait_for_reconnect();
    }
    assert_eq!(logins(&store), 2, "the old PIN was tried once and never again");
    drop(signer);
    drop(store);
    assert!(matches!(bench.open(PIN), Err(KeyStoreError::WrongPin)));
    let store = bench.open("another-pin").unwrap();
    store.signer("a").unwrap().sign(b"x").unwrap();
}

fn second_store(bench: &Bench) {
    let first = bench.create();
    first.create_signer("a").unwrap();
    assert!(matches!(bench.open("wrong"), Err(KeyStoreError::WrongPin)));
    let second = bench.open(PIN).unwrap();
    let signer = second.signer("a").unwrap();
    drop(first);
    signer.sign(b"the other's end is not ours").unwrap();
    drop((second, signer));
    assert!(matches!(bench.open("wrong"), Err(KeyStoreError::WrongPin)));
}

fn many_signatures(bench: &Bench) {
    let store = bench.create();
    let signers: Vec<_> = (0..4).map(|n| store.create_signer(&format!("k{n}")).unwrap()).collect();
    let started = Instant::now();
    std::thread::scope(|scope| {
        for thread in 0..20 {
            let signer = Arc::clone(&signers[thread % signers.len()]);
            scope.spawn(move || {
                for n in 0..50 {
                    let message = format!("{thread}/{n}");
                    let signature = signer.sign(message.as_bytes()).unwrap();
                    signer.verifying_key().verify(message.as_bytes(), &signature).unwrap();
                }
            });
        }
    });
    println!("measured: {} us a signature, 20 threads, verified twice", started.elapsed().as_micros() / 1000);
    let started = Instant::now();
    for _ in 0..1000 {
        signers[0].sign(&[7; 600]).unwrap();
    }
    println!("measured: {} us a signature, one thread", started.elapsed().as_micros() / 1000);
    let (label, link) = (format!("{}k0", token(&store).prefix), token(&store).link);
    let micros = token(&store).worker.call(move |module| {
        let session = &module.live(link)?.session;
        let key = session
            .find_objects(&[Attribute::Class(ObjectClass::PRIVATE_KEY), Attribute::Label(label.into_bytes())])
            .unwrap()[0];
        let started = Instant::now();
        for _ in 0..1000 {
            let pure = EddsaParams::new(EddsaSignatureScheme::Pure);
            session.sign(&Mechanism::Eddsa(pure), key, &[7; 600]).unwrap();
        }
        Ok(started.elapsed().as_micros() / 1000)
    });
    println!("measured: {} us a signature, C_SignInit and C_Sign alone", micros.unwrap());
}

fn create_race(bench: &Bench) {
    let store = bench.create();
    let second = bench.open(PIN).unwrap();
    for round in 0..10 {
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
        let lost = made.iter().filter(|made| matches!(made, Err(KeyStoreError::KeyExists { .. }))).count();
        assert_eq!(lost, 15);
        assert_eq!(store.signer(&label).unwrap().verifying_key(), won[0].verifying_key());
    }
    assert_eq!(second.labels().unwrap().len(), 10);
}

fn wrapping(bench: &Bench) {
    let store = bench.create();
    let root = store.root();
    let wrapped = root.wrap(b"domain/market/1", &[0xc5; 32], &[9; 12]).unwrap();
    assert!(!wrapped.windows(8).any(|window| window == [0xc5; 8]));
    assert_eq!(root.unwrap(b"domain/market/1", &wrapped).unwrap().as_slice(), [0xc5; 32]);
    for aad in [&b"domain/market/2"[..], b"domain/market/1 ", b""] {
        assert_eq!(root.unwrap(aad, &wrapped).unwrap_err(), RootError::Refused);
    }
    for at in 0..wrapped.len() {
        let mut altered = wrapped.clone();
        altered[at] ^= 1;
        assert_eq!(root.unwrap(b"domain/market/1", &altered).unwrap_err(), RootError::Refused, "byte {at}");
        assert_eq!(root.unwrap(b"domain/market/1", &wrapped[..at]).unwrap_err(), RootError::Refused);
    }
    assert_eq!(logins(&store), 1, "a refusal costs nobody the session");
    let empty = root.wrap(b"", b"", &[9; 12]).unwrap();
    assert!(root.unwrap(b"", &empty).unwrap().is_empty());
    let large = vec![0; crate::WRAPPED_BYTES_MAX + 1];
    assert_eq!(root.wrap(b"", &large, &[9; 12]).unwrap_err(), RootError::Refused);
    // Another store's root in the same token does not open it.
    let other = KeyStore::create(&bench.home.join("other"), &bench.config(), &secret(PIN)).unwrap();
    assert_eq!(other.root().unwrap(b"domain/market/1", &wrapped).unwrap_err(), RootError::Refused);
    drop((root, store));
    let root = bench.open(PIN).unwrap().root();
    assert_eq!(root.unwrap(b"domain/market/1", &wrapped).unwrap().as_slice(), [0xc5; 32]);
}

/// Makes a key pair as somebody else would, with our label.
fn plant(session: &Session, object: &str, extractable: bool) -> (ObjectHandle, ObjectHandle) {
    let label = Attribute::Label(object.as_bytes().to_vec());
    let public = [Attribute::Token(true), Attribute::EcParams(ED25519.to_vec()), label.clone()];
    let private = [
        Attribute::Token(true),
        Attribute::Private(true),
        Attribute::Sensitive(true),
        Attribute::Extractable(extractable),
        Attribute::Sign(true),
        label,
    ];
    session.generate_key_pair(&Mechanism::EccEdwardsKeyPairGen, &public, &private).unwrap()
}

fn unfit_keys(bench: &Bench) {
    let store = bench.create();
    let prefix = token(&store).prefix.clone();
    let session = bench.session();
    let reason = |label: &str| match store.signer(label).map(|_| ()) {
        Err(KeyStoreError::Unfit { why, .. }) => why,
        other => panic!("{other:?}"),
    };
    plant(&session, &format!("{prefix}extractable"), true);
    assert_eq!(reason("extractable"), "it can leave the token");
    plant(&session, &format!("{prefix}twice"), false);
    assert!(store.signer("twice").is_ok(), "planted keys are otherwise as ours");
    plant(&session, &format!("{prefix}twice"), false);
    assert_eq!(reason("twice"), "there are several");
    let (public, _) = plant(&session, &format!("{prefix}half"), false);
    session.destroy_object(public).unwrap();
    assert_eq!(reason("half"), "its public key is not there exactly once");
    assert!(matches!(store.create_signer("half"), Err(KeyStoreError::KeyExists { .. })));
    for label in ["extractable", "twice", "half"] {
        store.destroy_signer(label).unwrap();
    }
    assert!(store.labels().unwrap().is_empty());
    // Half destroyed before: the way is free again.
    let (_, private) = plant(&session, &format!("{prefix}orphan"), false);
    session.destroy_object(private).unwrap();
    store.create_signer("orphan").unwrap().sign(b"x").unwrap();

    // A root key that can leave the token is no root key.
    let root_label = prefix.trim_end_matches(':').as_bytes().to_vec();
    let root = session.find_objects(&[Attribute::Class(ObjectClass::SECRET_KEY)]).unwrap()[0];
    session.destroy_object(root).unwrap();
    unavailable(bench.open(PIN));
    let template = [
        Attribute::Token(true),
        Attribute::Extractable(true),
        Attribute::ValueLen(32.into()),
        Attribute::Label(root_label),
    ];
    // The failed opening initialised the module anew; this session is another.
    store.labels().unwrap_err();
    drop(session);
    let library = bench.library();
    let slot = library.get_slots_with_initialized_token().unwrap()[0];
    let session = library.open_rw_session(slot).unwrap();
    let _ = session.login(UserType::User, Some(&AuthPin::new(PIN.into())));
    session.generate_key(&Mechanism::AesKeyGen, &template).unwrap();
    session.logout().unwrap();
    drop(session);
    assert!(matches!(bench.open(PIN), Err(KeyStoreError::Unfit { .. })));
}

fn exchanged_keys(bench: &Bench) {
    let store = bench.create();
    let prefix = token(&store).prefix.clone();
    let session = bench.session();
    // The public key of another pair under our label: whoever believes it would trust the wrong key.
    let (public, _) = plant(&session, &format!("{prefix}a"), false);
    let (other, _) = plant(&session, "other", false);
    session.destroy_object(public).unwrap();
    session.copy_object(other, &[Attribute::Label(format!("{prefix}a").into_bytes())]).unwrap();
    let why = store.signer("a").unwrap().sign(b"x").unwrap_err().why;
    assert!(why.contains("does not verify"), "{why}");

    // A key of the same label made after ours was destroyed elsewhere.
    let signer = store.create_signer("b").unwrap();
    let second = bench.open(PIN).unwrap();
    second.destroy_signer("b").unwrap();
    let new = second.create_signer("b").unwrap();
    assert!(signer.sign(b"x").unwrap_err().why.contains("another key"));
    new.sign(b"x").unwrap();
    store.signer("b").unwrap().sign(b"x").unwrap();
}

fn destroyed(bench: &Bench) {
    let store = bench.create();
    let signer = store.create_signer("a").unwrap();
    store.destroy_signer("a").unwrap();
    assert!(signer.sign(b"x").unwrap_err().why.contains("no key a"));
    assert!(matches!(store.signer("a"), Err(KeyStoreError::NoSuchKey { .. })));
    assert!(matches!(store.destroy_signer("a"), Err(KeyStoreError::NoSuchKey { .. })));
    assert!(bench.session().find_objects(&[Attribute::KeyType(KeyType::EC_EDWARDS)]).unwrap().is_empty());
    let new = store.create_signer("a").unwrap();
    assert!(signer.sign(b"x").unwrap_err().why.contains("another key"));
    new.sign(b"x").unwrap();
}

fn other_token(bench: &Bench) {
    drop(bench.create());
    std::fs::rename(&bench.tokens, bench.home.join("ours")).unwrap();
    std::fs::create_dir(&bench.tokens).unwrap();
    let mut fresh = Command::new("softhsm2-util");
    fresh.args(["--init-token", "--free", "--label", LABEL, "--so-pin", "officer-pin", "--pin", PIN]);
    if !fresh.output().is_ok_and(|output| output.status.success()) {
        println!("skipped: no softhsm2-util; apt-get install softhsm2");
        return;
    }
    let why = unavailable(bench.open(PIN));
    assert!(why.contains("serial"), "{why}");
    // Beside ours it does no harm; but a new store would not know which is meant.
    for entry in bench.home.join("ours").read_dir().unwrap() {
        let entry = entry.unwrap();
        std::fs::rename(entry.path(), bench.tokens.join(entry.file_name())).unwrap();
    }
    bench.open(PIN).unwrap().health().unwrap();
    let why = unavailable(KeyStore::create(&bench.home.join("new"), &bench.config(), &secret(PIN)));
    assert!(why.contains("exactly one"), "{why}");
    for module in ["relative.so", "/nonexistent/module.so"] {
        let config = Config::Pkcs11 { module: module.into(), token_label: LABEL.to_owned() };
        unavailable(KeyStore::create(&bench.home.join("new"), &config, &secret(PIN)));
    }
}

fn canaries(bench: &Bench) {
    let store = bench.create();
    store.create_signer("a").unwrap();
    let names: Vec<_> = crate::files::names(&bench.directory()).unwrap();
    assert_eq!(names, ["keystore.json"]);
    let mut directories = vec![bench.home.clone()];
    while let Some(directory) = directories.pop() {
        for entry in directory.read_dir().unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                directories.push(path);
            } else {
                let content = std::fs::read(&path).unwrap();
                let leaks = content.windows(PIN.len()).any(|window| window == PIN.as_bytes());
                assert!(!leaks, "{} has the PIN", path.display());
            }
        }
    }
    let said = format!("{store:?} {:?} {:?}", store.root(), bench.open("canary-pin-4712").unwrap_err());
    assert!(!said.contains("canary"), "{said}");
}
