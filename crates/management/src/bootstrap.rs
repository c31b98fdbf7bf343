//! The first start: root, authorities, keys, operators.
//!
//! Makes what every later start only reads. The root key is used here and never while the system runs: its directory can be
//! taken off the machine afterwards.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use access::secret::SecretName;
use identity::{Authority, Bundle, PeerClass, Root, SignedBundle, SpiffeId};
use keys::envelope::Wrap as _;
use keys::{Signer, SigningKey, VerifyingKey};
use keystore::{KeyStore, Secret};
use serde::{Deserialize, Serialize};
use wire::files;
use wire::journal::unix_ms;
use wire::layout::{Layout, read_json};
use wire::own_keys::OwnKeys;

use crate::control::{ControlError, random};
use crate::database::{Database, Table, Writes};
use crate::run::NAME;
use crate::secrets::{Purpose, StoredSecret};
use crate::state::Authorities;
use crate::vault::Vault;

/// Life of the class authorities made at the first start, in seconds: two years.
const AUTHORITY_TTL_S: i64 = 2 * 365 * 24 * 3_600;
/// Life of a leaf certificate, in seconds.
pub const LEAF_TTL_S: i64 = 24 * 3_600;
/// The people for whom the first start makes an operator's identity each. Enabling takes two.
pub const FIRST_OPERATORS: [&str; 2] = ["owner", "second"];
/// The root key's name in its store.
const ROOT_LABEL: &str = "root";
/// The name under which the key of the account at the paper broker is stored.
pub const BROKER_SECRET: &str = "paper-broker";
/// Who stored what the first start made.
const FIRST_START: &str = "first start";
/// What the log's wrapped key is bound to.
const LOG_KEY_AAD: &[u8] = b"trader-log-key-1";
/// The release keys that the first start makes; both must sign what may run.
pub const RELEASE_KEYS: [&str; 2] = ["first", "second"];

/// Why the state directory could not be made or read.
#[derive(Debug, thiserror::Error)]
pub enum BootstrapError {
    /// A file.
    #[error(transparent)]
    Files(#[from] files::FileError),
    /// An identity.
    #[error(transparent)]
    Identity(#[from] identity::IdentityError),
    /// A key.
    #[error("{path}: {source}")]
    Key {
        /// The file.
        path: String,
        /// Why.
        source: keys::KeyError,
    },
    /// A connection's identity.
    #[error(transparent)]
    Wire(#[from] wire::tls::WireError),
    /// The store of keys.
    #[error(transparent)]
    Store(#[from] keystore::KeyStoreError),
    /// The root key of the store does not wrap or unwrap.
    #[error(transparent)]
    Root(#[from] keys::envelope::RootError),
    /// The configuration.
    #[error(transparent)]
    Config(#[from] wire::layout::ConfigError),
    /// Random bytes, or a later step.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// A file is there but says something else than it should.
    #[error("{0}")]
    Content(String),
}

fn read_key(path: &Path) -> Result<SigningKey, BootstrapError> {
    let bytes = zeroize::Zeroizing::new(files::read_private(path)?);
    let text = zeroize::Zeroizing::new(String::from_utf8_lossy(&bytes).into_owned());
    SigningKey::from_secret_text(&text)
        .map_err(|source| BootstrapError::Key { path: path.display().to_string(), source })
}

/// 32 random bytes that are to be secret: never anywhere but in the place that erases itself.
fn secret_bytes() -> Result<zeroize::Zeroizing<[u8; 32]>, BootstrapError> {
    let mut bytes = zeroize::Zeroizing::new([0; 32]);
    getrandom::fill(&mut *bytes).map_err(|error| ControlError::Random(error.to_string()))?;
    Ok(bytes)
}

fn make_key(path: &Path) -> Result<SigningKey, BootstrapError> {
    if let Some(parent) = path.parent() {
        files::create_private_dir(parent)?;
    }
    let key = SigningKey::from_seed(&*secret_bytes()?);
    files::write_private_atomic(path, key.to_secret_text().as_bytes())?;
    Ok(key)
}

/// Whether the first start has been finished here.
#[must_use]
pub fn is_done(layout: &Layout) -> bool {
    layout.bundle().exists()
}

/// What the first start may be told about keys.
#[derive(Debug, Clone)]
pub struct KeysAt {
    /// Where the authorities' keys live.
    pub store: keystore::Config,
    /// The file with the passphrase, or with the device's PIN; with none, a passphrase is made and kept in the state
    /// directory.
    pub secret_file: Option<PathBuf>,
    /// Whether no connection is made or taken without the hybrid post-quantum key exchange.
    pub require_pq: bool,
}

impl Default for KeysAt {
    fn default() -> Self {
        Self { store: keystore::Config::File, secret_file: None, require_pq: false }
    }
}

/// What `config/keys.json` says.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct KeysConfig {
    /// The file with the passphrase or PIN of the authorities' keys; from the state directory where it is not absolute.
    pub(crate) secret_file: PathBuf,
    /// The same of the root key.
    pub(crate) root_secret_file: PathBuf,
}

pub(crate) fn keys_config(layout: &Layout) -> PathBuf {
    layout.config().join("keys.json")
}

/// A passphrase of 256 random bits, in a file of the state directory that only its owner can read.
fn make_passphrase(layout: &Layout, file: &str) -> Result<PathBuf, BootstrapError> {
    let text = zeroize::Zeroizing::new(keys::to_hex(&*secret_bytes()?));
    files::write_private_atomic(&layout.root().join(file), text.as_bytes())?;
    Ok(PathBuf::from(file))
}

/// The secret in a file that is named absolutely, or from the state directory.
pub(crate) fn secret(layout: &Layout, file: &Path) -> Result<Secret, BootstrapError> {
    Ok(Secret::from_file(&layout.root().join(file))?)
}

/// Opens the store of the authorities' keys.
///
/// # Errors
/// When the secret or the device is not there, or not the right one.
pub fn open_store(layout: &Layout) -> Result<KeyStore, BootstrapError> {
    let config: KeysConfig = read_json(&keys_config(layout))?;
    Ok(KeyStore::open(&layout.authorities(), &secret(layout, &config.secret_file)?)?)
}

/// Opens the store of the root key, which is needed to replace an authority, and never while the system runs.
///
/// # Errors
/// When it was taken off the machine, or its secret is not there.
pub fn open_root(layout: &Layout) -> Result<Root, BootstrapError> {
    let config: KeysConfig = read_json(&keys_config(layout))?;
    let (_, bundle) = bundle(layout)?;
    let store = KeyStore::open(&layout.offline_root(), &secret(layout, &config.root_secret_file)?)?;
    Ok(Root::new(&bundle.trust_domain, store.signer(ROOT_LABEL)?)?)
}

/// Makes root, authorities, grant key, log key, release keys and the signed bundle. The bundle is written last: while it
/// is missing, the first start is not finished and is made again.
///
/// # Errors
/// When something cannot be written, or the device with the keys refuses.
pub fn create(layout: &Layout, keys_at: &KeysAt) -> Result<(), BootstrapError> {
    let now = unix_ms() / 1_000;
    // What an earlier first start left that was cut off is nobody's.
    for directory in [layout.offline_root(), layout.authorities()] {
        if directory.exists() {
            std::fs::remove_dir_all(&directory)
                .map_err(|error| BootstrapError::Content(format!("{}: {error}", directory.display())))?;
        }
    }
    for directory in [layout.root().to_owned(), layout.offline_root(), layout.authorities(), layout.config()]
    {
        files::create_private_dir(&directory)?;
    }
    let (secret_file, root_secret_file) = match &keys_at.secret_file {
        Some(path) => (path.clone(), path.clone()),
        None => (make_passphrase(layout, "passphrase")?, make_passphrase(layout, "offline-root/passphrase")?),
    };
    let root_store =
        KeyStore::create(&layout.offline_root(), &keys_at.store, &secret(layout, &root_secret_file)?)?;
    let store = KeyStore::create(&layout.authorities(), &keys_at.store, &secret(layout, &secret_file)?)?;
    let config = serde_json::to_vec_pretty(&KeysConfig { secret_file, root_secret_file })
        .map_err(|error| BootstrapError::Content(error.to_string()))?;
    files::write_private_atomic(&keys_config(layout), &config)?;

    let trust_domain = format!("trader-{}.internal", keys::to_hex(&random::<4>()?));
    let root = Root::new(&trust_domain, root_store.create_signer(ROOT_LABEL)?)?;
    let mut authorities = BTreeMap::new();
    for class in PeerClass::ALL {
        let authority = new_authority(&store, &root, class, 1, now)?;
        authorities.insert(class, vec![Bundle::encode(authority.certificate())]);
    }
    let grant_key = store.create_signer("grants/1")?.verifying_key();
    let log_key = make_log_key(layout, &store)?;
    let release_keys = RELEASE_KEYS
        .iter()
        .map(|name| make_key(&release_key_path(layout, name)).map(|key| key.verifying_key().to_hex()))
        .collect::<Result<Vec<_>, _>>()?;
    let bundle = Bundle {
        trust_domain: trust_domain.clone(),
        version: 1,
        authorities,
        grant_keys: vec![grant_key.to_hex()],
        log_key: log_key.verifying_key().to_hex(),
        release_threshold: 2,
        release_keys,
        require_pq: keys_at.require_pq,
    };
    files::write_private_atomic(&root_key_path(layout), root.verifying_key().to_hex().as_bytes())?;
    store_account_key(layout, Arc::new(store), &trust_domain, now)?;
    write_bundle(layout, &root.sign_bundle(&bundle)?)
}

/// Makes the key of the account at the paper broker, which only the desk is ever given, and stores it under the desk's domain
/// key. In the clear it was never on the disk.
fn store_account_key(
    layout: &Layout,
    store: Arc<KeyStore>,
    trust_domain: &str,
    now: i64,
) -> Result<(), BootstrapError> {
    let value = zeroize::Zeroizing::new(keys::to_hex(&*zeroize::Zeroizing::new(random::<32>()?)));
    let purpose = Purpose::Broker { desk: SpiffeId::desk(trust_domain, 1)? };
    let name = SecretName::parse(BROKER_SECRET).map_err(|why| BootstrapError::Content(why.to_string()))?;
    let vault = Vault::new(store);
    let mut unlocked = vault.unlock(purpose.domain(), now).map_err(ControlError::from)?;
    let by = (FIRST_START, now);
    let secret = StoredSecret::seal(&mut unlocked, name, purpose, 1, value.as_bytes(), by)
        .map_err(ControlError::from)?;
    vault.keep(&mut unlocked).map_err(ControlError::from)?;
    let mut writes = Writes::default();
    writes.put(Table::Secrets, secret.name.as_str(), &secret).map_err(ControlError::from)?;
    let database = Database::open(&layout.process(NAME).join("management.db")).map_err(ControlError::from)?;
    database.commit(&writes).map_err(ControlError::from)?;
    Ok(())
}

/// Makes the key of a class's authority in the store, and has the root certify it.
fn new_authority(
    store: &KeyStore,
    root: &Root,
    class: PeerClass,
    number: u64,
    now: i64,
) -> Result<Authority, BootstrapError> {
    let key = store.create_signer(&format!("authority/{class}/{number}"))?;
    Ok(root.authority(class, key, now, AUTHORITY_TTL_S, random::<16>()?)?)
}

/// The bundles by which a class's authority is replaced, in the order in which they are to be published. The new one is
/// trusted first, then it issues, and at last the old one is trusted no more.
///
/// # Errors
/// When the root is not at hand, or a key cannot be made.
pub fn replace_authority(layout: &Layout, class: PeerClass) -> Result<Vec<SignedBundle>, BootstrapError> {
    let (_, held) = bundle(layout)?;
    let root = open_root(layout)?;
    let store = open_store(layout)?;
    let prefix = format!("authority/{class}/");
    let numbers = store.labels()?.into_iter().filter_map(|label| label.strip_prefix(&prefix)?.parse().ok());
    let number: u64 = numbers.max().unwrap_or(0_u64).saturating_add(1);
    let new = Bundle::encode(new_authority(&store, &root, class, number, unix_ms() / 1_000)?.certificate());
    let old = held.authorities.get(&class).and_then(|all| all.first()).cloned().unwrap_or_default();
    let steps = [vec![old.clone(), new.clone()], vec![new.clone(), old], vec![new]];
    let mut version = held.version;
    let mut bundles = Vec::new();
    for step in steps {
        version = version.saturating_add(1);
        let mut next = held.clone();
        next.version = version;
        next.authorities.insert(class, step);
        bundles.push(root.sign_bundle(&next)?);
    }
    Ok(bundles)
}

/// The bundle by which the hybrid post-quantum key exchange is demanded, or is preferred only.
///
/// # Errors
/// When the root is not at hand.
pub fn require_pq(layout: &Layout, require: bool) -> Result<SignedBundle, BootstrapError> {
    let (_, held) = bundle(layout)?;
    let next = Bundle { version: held.version.saturating_add(1), require_pq: require, ..held };
    Ok(open_root(layout)?.sign_bundle(&next)?)
}

/// Writes the signed bundle to its place.
///
/// # Errors
/// When it cannot be written.
pub(crate) fn write_bundle(layout: &Layout, signed: &SignedBundle) -> Result<(), BootstrapError> {
    let text =
        serde_json::to_vec_pretty(signed).map_err(|error| BootstrapError::Content(error.to_string()))?;
    files::write_private_atomic(&layout.bundle(), &text)?;
    Ok(())
}

/// The log's key is not in the device: what happens while the device is gone must still be recorded. It lies in a file,
/// wrapped under the store's root key.
fn make_log_key(layout: &Layout, store: &KeyStore) -> Result<SigningKey, BootstrapError> {
    let seed = secret_bytes()?;
    let wrapped = store.root().wrap(LOG_KEY_AAD, &*seed, &random::<12>()?)?;
    files::write_private_atomic(&log_key_path(layout), keys::to_hex(&wrapped).as_bytes())?;
    Ok(SigningKey::from_seed(&seed))
}

fn log_key_path(layout: &Layout) -> PathBuf {
    layout.authorities().join("log.wrapped")
}

/// Where a release key is kept: each belongs to one person, off this machine as soon as there are two.
fn release_key_path(layout: &Layout, name: &str) -> std::path::PathBuf {
    layout.root().join("release-keys").join(name).join("release.key")
}

fn root_key_path(layout: &Layout) -> std::path::PathBuf {
    layout.root().join("root.pub")
}

/// The release keys of this machine, for signing the modules that were built on it.
///
/// # Errors
/// When one cannot be read.
pub fn release_keys(layout: &Layout) -> Result<Vec<SigningKey>, BootstrapError> {
    RELEASE_KEYS.iter().map(|name| read_key(&release_key_path(layout, name))).collect()
}

/// The public half of the root key.
///
/// # Errors
/// When it cannot be read.
pub fn root_key(layout: &Layout) -> Result<VerifyingKey, BootstrapError> {
    let path = root_key_path(layout);
    let text = files::read_private(&path)?;
    VerifyingKey::from_hex(String::from_utf8_lossy(&text).trim())
        .map_err(|source| BootstrapError::Key { path: path.display().to_string(), source })
}

/// The trust bundle, as signed and as verified.
///
/// # Errors
/// When it cannot be read, or the root did not sign it.
pub fn bundle(layout: &Layout) -> Result<(SignedBundle, Bundle), BootstrapError> {
    let bytes = files::read_private(&layout.bundle())?;
    let signed: SignedBundle = serde_json::from_slice(&bytes)
        .map_err(|error| BootstrapError::Content(format!("{}: {error}", layout.bundle().display())))?;
    let bundle = signed.verify(&root_key(layout)?, 0)?;
    Ok((signed, bundle))
}

/// Everything that management signs with.
///
/// # Errors
/// When the store cannot be opened, or a key is not in it.
pub fn authorities(layout: &Layout) -> Result<Authorities, BootstrapError> {
    let (signed, _) = bundle(layout)?;
    authorities_of(root_key(layout)?, Arc::new(open_store(layout)?), signed)
}

/// What a bundle says that management signs with, found in the store by its public half.
pub(crate) fn authorities_of(
    root: VerifyingKey,
    store: Arc<KeyStore>,
    signed: SignedBundle,
) -> Result<Authorities, BootstrapError> {
    let bundle = signed.verify(&root, 0)?;
    let labels = store.labels()?;
    let signer = |prefix: &str,
                  public: &dyn Fn(&VerifyingKey) -> bool|
     -> Result<Arc<dyn Signer>, BootstrapError> {
        for label in labels.iter().filter(|label| label.starts_with(prefix)) {
            let signer = store.signer(label)?;
            if public(&signer.verifying_key()) {
                return Ok(signer);
            }
        }
        Err(BootstrapError::Content(format!("the store of keys has no {prefix} key that the bundle names")))
    };
    let mut classes = BTreeMap::new();
    for class in PeerClass::ALL {
        let certificates = bundle.authorities(class);
        let Some(certificate) = certificates.first() else { continue };
        let key = signer(&format!("authority/{class}/"), &|key| certificate.is_of(key))?;
        classes.insert(class, Authority::restore(key, certificate.der())?);
    }
    let grant_key =
        signer("grants/", &|key| bundle.grant_keys.first().is_some_and(|first| *first == key.to_hex()))?;
    Ok(Authorities {
        trust_domain: bundle.trust_domain,
        classes,
        grant_key,
        root,
        bundle: signed,
        version: bundle.version,
        store,
    })
}

/// The key that signs the log's checkpoints.
///
/// # Errors
/// When it cannot be read or unwrapped.
pub fn log_key(layout: &Layout, store: &KeyStore) -> Result<SigningKey, BootstrapError> {
    let path = log_key_path(layout);
    let unreadable = || BootstrapError::Content(format!("{} is not what was written there", path.display()));
    let text = files::read_private(&path)?;
    let text = std::str::from_utf8(&text).map_err(|_| unreadable())?.trim().to_owned();
    let wrapped: Vec<u8> = (0..text.len())
        .step_by(2)
        .map(|at| text.get(at..at + 2).and_then(|two| u8::from_str_radix(two, 16).ok()))
        .collect::<Option<_>>()
        .ok_or_else(unreadable)?;
    keys::leaving_nothing(|| {
        let seed = store.root().unwrap(LOG_KEY_AAD, &wrapped)?;
        let seed: &[u8; 32] = seed.as_slice().try_into().map_err(|_| unreadable())?;
        Ok(SigningKey::from_seed(seed))
    })
}

/// Issues a fresh identity by the authority's own hand, for who cannot enrol: management itself, and the operators of this
/// machine.
///
/// # Errors
/// When it cannot be issued or stored.
pub fn issue_here(
    authorities: &Authorities,
    id: &SpiffeId,
    directory: &Path,
) -> Result<wire::tls::Identity, BootstrapError> {
    let identity = issue_for(authorities, id, unix_ms() / 1_000)?;
    identity.save(directory)?;
    Ok(identity)
}

/// The same for an operator. A note is left for management, which records that the certificate was issued: a certificate of
/// whose issue the log knows nothing is an alarm.
///
/// # Errors
/// As [`issue_here`].
pub fn issue_noted(
    layout: &Layout,
    authorities: &Authorities,
    id: &SpiffeId,
    directory: &Path,
) -> Result<wire::tls::Identity, BootstrapError> {
    let identity = issue_for(authorities, id, unix_ms() / 1_000)?;
    files::create_private_dir(&layout.issued())?;
    let note = layout.issued().join(format!("{}.der", keys::to_hex(&identity.key())));
    files::write_private_atomic(&note, identity.certificate())?;
    identity.save(directory)?;
    Ok(identity)
}

/// A fresh identity by the authority's own hand.
pub(crate) fn issue_for(
    authorities: &Authorities,
    id: &SpiffeId,
    now: i64,
) -> Result<wire::tls::Identity, BootstrapError> {
    let class = PeerClass::of(id).ok_or_else(|| BootstrapError::Content(format!("{id} is of no class")))?;
    let authority = authorities
        .classes
        .get(&class)
        .ok_or_else(|| BootstrapError::Content(format!("there is no authority for {class}")))?;
    let key = OwnKeys::generate()?;
    let certificate = authority.issue(&key.spki(), id, 1, now, LEAF_TTL_S, random::<16>()?)?;
    Ok(wire::tls::Identity::new(key, certificate, authorities.bundle.clone(), authorities.root)?)
}
