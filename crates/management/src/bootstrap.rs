//! The first start: root, authorities, keys, operators.
//!
//! Makes what every later start only reads. The root key is used here and never while the system runs: its directory can be
//! taken off the machine afterwards.

use std::collections::BTreeMap;
use std::path::Path;

use identity::{Authority, Bundle, PeerClass, Root, SignedBundle, SpiffeId};
use keys::{SigningKey, VerifyingKey};
use wire::files;
use wire::journal::unix_ms;
use wire::layout::Layout;

use crate::control::{ControlError, random};
use crate::state::Authorities;

/// Life of the class authorities made at the first start, in seconds: two years.
const AUTHORITY_TTL_S: i64 = 2 * 365 * 24 * 3_600;
/// Life of a leaf certificate, in seconds.
pub const LEAF_TTL_S: i64 = 24 * 3_600;
/// The people for whom the first start makes an operator's identity each. Enabling takes two.
pub const FIRST_OPERATORS: [&str; 2] = ["owner", "second"];
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
    /// Random bytes, or a later step.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// A file is there but says something else than it should.
    #[error("{0}")]
    Content(String),
}

fn read_key(path: &Path) -> Result<SigningKey, BootstrapError> {
    let bytes = files::read_private(path)?;
    let text = zeroize::Zeroizing::new(String::from_utf8_lossy(&bytes).into_owned());
    SigningKey::from_secret_text(&text)
        .map_err(|source| BootstrapError::Key { path: path.display().to_string(), source })
}

fn make_key(path: &Path) -> Result<SigningKey, BootstrapError> {
    if let Some(parent) = path.parent() {
        files::create_private_dir(parent)?;
    }
    let key = SigningKey::from_seed(&random::<32>()?);
    files::write_private_atomic(path, key.to_secret_text().as_bytes())?;
    Ok(key)
}

/// Whether the first start has been finished here.
#[must_use]
pub fn is_done(layout: &Layout) -> bool {
    layout.bundle().exists()
}

/// Makes root, authorities, grant key, log key, release keys and the signed bundle. The bundle is written last: while it
/// is missing, the first start is not finished and is made again.
///
/// # Errors
/// When something cannot be written.
pub fn create(layout: &Layout) -> Result<(), BootstrapError> {
    let now = unix_ms() / 1_000;
    for directory in [layout.root().to_owned(), layout.offline_root(), layout.authorities(), layout.config()]
    {
        files::create_private_dir(&directory)?;
    }
    let trust_domain = format!("trader-{}.internal", keys::to_hex(&random::<4>()?));
    let root = Root::new(&trust_domain, make_key(&layout.offline_root().join("root.key"))?)?;
    let mut authorities = BTreeMap::new();
    for class in PeerClass::ALL {
        let key = make_key(&layout.authorities().join(format!("{class}.key")))?;
        let authority = root.authority(class, key, now, AUTHORITY_TTL_S, random::<16>()?)?;
        files::write_private_atomic(
            &layout.authorities().join(format!("{class}.crt")),
            authority.certificate(),
        )?;
        authorities.insert(class, Bundle::encode(authority.certificate()));
    }
    let grant_key = make_key(&layout.authorities().join("grants.key"))?;
    let log_key = make_key(&layout.authorities().join("log.key"))?;
    let release_keys = RELEASE_KEYS
        .iter()
        .map(|name| make_key(&release_key_path(layout, name)).map(|key| key.verifying_key().to_hex()))
        .collect::<Result<Vec<_>, _>>()?;
    let bundle = Bundle {
        trust_domain,
        version: 1,
        authorities,
        grant_keys: vec![grant_key.verifying_key().to_hex()],
        log_key: log_key.verifying_key().to_hex(),
        release_threshold: 2,
        release_keys,
    };
    files::write_private_atomic(&root_key_path(layout), root.verifying_key().to_hex().as_bytes())?;
    let signed = serde_json::to_vec_pretty(&root.sign_bundle(&bundle)?)
        .map_err(|error| BootstrapError::Content(error.to_string()))?;
    files::write_private_atomic(&layout.bundle(), &signed)?;
    Ok(())
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
/// When a key cannot be read or does not belong to its certificate.
pub fn authorities(layout: &Layout) -> Result<Authorities, BootstrapError> {
    let (signed, bundle) = bundle(layout)?;
    let mut classes = BTreeMap::new();
    for class in PeerClass::ALL {
        let key = read_key(&layout.authorities().join(format!("{class}.key")))?;
        let certificate = files::read_private(&layout.authorities().join(format!("{class}.crt")))?;
        classes.insert(class, Authority::restore(key, &certificate)?);
    }
    Ok(Authorities {
        trust_domain: bundle.trust_domain,
        classes,
        grant_key: read_key(&layout.authorities().join("grants.key"))?,
        root: root_key(layout)?,
        bundle: signed,
    })
}

/// The key that signs the log's checkpoints.
///
/// # Errors
/// When it cannot be read.
pub fn log_key(layout: &Layout) -> Result<SigningKey, BootstrapError> {
    read_key(&layout.authorities().join("log.key"))
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
    let class = PeerClass::of(id).ok_or_else(|| BootstrapError::Content(format!("{id} is of no class")))?;
    let authority = authorities
        .classes
        .get(&class)
        .ok_or_else(|| BootstrapError::Content(format!("there is no authority for {class}")))?;
    let key = wire::tls::new_key()?;
    let now = unix_ms() / 1_000;
    let certificate = authority.issue(&key.spki(), id, 1, now, LEAF_TTL_S, random::<16>()?)?;
    let identity = wire::tls::Identity::new(key, certificate, authorities.bundle.clone(), authorities.root)?;
    identity.save(directory)?;
    Ok(identity)
}
