//! The store in a token: signing keys and the root key are made in it and never leave it.
//!
//! Objects are labelled `trader:<id of the store>:<label>`, the root key `trader:<id of the store>`, so that
//! several stores fit into one token and a label of ours meets no label of somebody else's. Signing keys are
//! Ed25519 (`CKM_EC_EDWARDS_KEY_PAIR_GEN`, `CKM_EDDSA`), the root key is AES-256 and wraps with
//! `CKM_AES_GCM`.
//!
//! INVARIANT: a signature is handed out only when it verifies under the signer's public key; a key is used
//! only when the token made it and it is neither readable nor extractable.

mod module;
mod worker;

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use cryptoki::error::Error;
use cryptoki::mechanism::Mechanism;
use cryptoki::mechanism::aead::GcmParams;
use cryptoki::mechanism::eddsa::{EddsaParams, EddsaSignatureScheme};
use cryptoki::object::{Attribute, AttributeType, KeyType, ObjectClass, ObjectHandle};
use cryptoki::session::Session;
use keys::{Digest, SignError, Signer, VerifyingKey};
use zeroize::Zeroizing;

use crate::pkcs11::module::{Live, Module, Wanted, check_kept, describe, says, says_or};
use crate::pkcs11::worker::Worker;
use crate::{FileError, KEYS_MAX, KeyStoreError, MESSAGE_BYTES_MAX};

pub use module::RECONNECT_EVERY;
pub use worker::CALL_WAIT;

/// The object identifier of Ed25519 (RFC 8410), in DER.
const ED25519: [u8; 5] = [0x06, 0x03, 0x2b, 0x65, 0x70];

const NONCE_BYTES: usize = 12;

const TAG_BITS: u64 = 128;

/// First byte of what the token wrapped.
const WRAPPED_1: u8 = 0x51;

/// Keys of one store in a token.
pub(crate) struct TokenStore {
    worker: Arc<Worker>,
    link: u64,
    module: PathBuf,
    prefix: String,
}

impl TokenStore {
    /// Makes the root key. Answers the token's serial number, too.
    pub(crate) fn create(
        module: &Path,
        token_label: &str,
        id: &str,
        pin: &str,
    ) -> Result<(Self, String), KeyStoreError> {
        let store = Self::connect(module, token_label, None, id, pin, false)?;
        let (link, label) = (store.link, root_label(id));
        let serial = store.worker.call(move |module| {
            let live = module.live(link)?;
            let serial = live.serial.clone();
            let root = make_root(&live.session, &label)?;
            module.root_was_made(link, root);
            Ok(serial)
        })?;
        Ok((store, serial))
    }

    pub(crate) fn open(
        module: &Path,
        token_label: &str,
        token_serial: &str,
        id: &str,
        pin: &str,
    ) -> Result<Self, KeyStoreError> {
        Self::connect(module, token_label, Some(token_serial), id, pin, true)
    }

    fn connect(
        module: &Path,
        token_label: &str,
        token_serial: Option<&str>,
        id: &str,
        pin: &str,
        root_exists: bool,
    ) -> Result<Self, KeyStoreError> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let module = check_module(module)?;
        let worker = Worker::of(&module)?;
        let wanted = Wanted {
            token_label: token_label.to_owned(),
            token_serial: token_serial.map(str::to_owned),
            root_label: root_label(id),
            root_exists,
            pin: Zeroizing::new(pin.to_owned()),
        };
        let link = NEXT.fetch_add(1, Ordering::Relaxed);
        // Made before it is connected: when that fails, or comes too late, the link is ended with the store.
        let store = Self { worker, link, module, prefix: format!("{}:", root_label(id)) };
        store.worker.call(move |module| module.link(link, wanted))?;
        Ok(store)
    }

    /// Removes the root key of a store that could not be made to the end.
    pub(crate) fn discard(&self) {
        let link = self.link;
        let _ = self.worker.call(move |module| {
            let live = module.live(link)?;
            if let Some(root) = live.root {
                let _ = live.session.destroy_object(root);
            }
            Ok(())
        });
    }

    /// Canonical path of the module.
    pub(crate) fn module(&self) -> &Path {
        &self.module
    }

    pub(crate) fn signer(self: &Arc<Self>, label: &str) -> Result<Arc<dyn Signer>, KeyStoreError> {
        let name = self.name(label);
        let public = self.run(move |live| {
            let (handle, public) = find_key(live, &name)?;
            live.keys.insert(name.object, (handle, *public.as_bytes()));
            Ok(public)
        })?;
        Ok(self.handle(label, public))
    }

    pub(crate) fn create_signer(self: &Arc<Self>, label: &str) -> Result<Arc<dyn Signer>, KeyStoreError> {
        let (name, prefix) = (self.name(label), self.prefix.clone());
        let public = self.run(move |live| {
            if !find(&live.session, ObjectClass::PRIVATE_KEY, &name)?.is_empty() {
                return Err(Fault::Sure(KeyStoreError::KeyExists { label: name.label }));
            }
            if all_labels(&live.session, &prefix)?.len() >= KEYS_MAX {
                return Err(Fault::Sure(KeyStoreError::TooMuch { what: "1024 signing keys" }));
            }
            // Left by a destruction that was cut short.
            for orphan in find(&live.session, ObjectClass::PUBLIC_KEY, &name)? {
                live.session.destroy_object(orphan).map_err(|error| Fault::token("tidying up", &error))?;
            }
            make_key(&live.session, &name)?;
            let (handle, public) = find_key(live, &name)?;
            live.keys.insert(name.object, (handle, *public.as_bytes()));
            Ok(public)
        })?;
        Ok(self.handle(label, public))
    }

    pub(crate) fn destroy_signer(&self, label: &str) -> Result<(), KeyStoreError> {
        let name = self.name(label);
        self.run(move |live| {
            live.keys.remove(&name.object);
            let private = find(&live.session, ObjectClass::PRIVATE_KEY, &name)?;
            if private.is_empty() {
                return Err(Fault::missing(&name));
            }
            // The private key first: half done, nothing can sign any more.
            for object in private.into_iter().chain(find(&live.session, ObjectClass::PUBLIC_KEY, &name)?) {
                let destroyed = live.session.destroy_object(object);
                destroyed.map_err(|error| Fault::token("destroying a key", &error))?;
            }
            Ok(())
        })
    }

    pub(crate) fn labels(&self) -> Result<Vec<String>, KeyStoreError> {
        let (link, prefix) = (self.link, self.prefix.clone());
        self.worker.call(move |module| {
            let found = all_labels(&module.live(link)?.session, &prefix);
            // A token that has gone may answer that it has nothing.
            match (module.gone(link, "listing keys"), found) {
                (Some(error), _) => Err(error),
                (None, Ok(labels)) => Ok(labels),
                (None, Err(fault)) => Err(fault.of_a_token_that_is_here()),
            }
        })
    }

    pub(crate) fn health(&self) -> Result<(), KeyStoreError> {
        let link = self.link;
        self.worker.call(move |module| {
            module.live(link)?;
            module.gone(link, "looking after the token").map_or(Ok(()), Err)
        })
    }

    /// Wraps a secret under the root key, in the token.
    pub(crate) fn wrap(
        &self,
        aad: &[u8],
        plain: &[u8],
        nonce: &[u8; NONCE_BYTES],
    ) -> Result<Vec<u8>, KeyStoreError> {
        let (aad, plain, mut nonce) = (aad.to_vec(), Zeroizing::new(plain.to_vec()), *nonce);
        self.run(move |live| {
            let root = live.root.ok_or_else(no_root)?;
            let params = gcm(&mut nonce, &aad)?;
            let sealed = live.session.encrypt(&Mechanism::AesGcm(params), root, &plain);
            let sealed = sealed.map_err(|error| Fault::token("wrapping", &error))?;
            // Read after the call: a token may insist on a nonce of its own and write it here.
            Ok([&[WRAPPED_1], nonce.as_slice(), sealed.as_slice()].concat())
        })
    }

    /// Unwraps what [`TokenStore::wrap`] wrapped with the same `aad`.
    pub(crate) fn unwrap(&self, aad: &[u8], wrapped: &[u8]) -> Result<Zeroizing<Vec<u8>>, KeyStoreError> {
        let refused = || KeyStoreError::Refused { what: "a key wrapped under the root key".to_owned() };
        let (head, sealed) = wrapped.split_first_chunk::<{ 1 + NONCE_BYTES }>().ok_or_else(refused)?;
        let [WRAPPED_1, nonce @ ..] = *head else { return Err(refused()) };
        let (sealed, aad) = (sealed.to_vec(), aad.to_vec());
        self.run(move |live| {
            let root = live.root.ok_or_else(no_root)?;
            let mut nonce: [u8; NONCE_BYTES] = nonce;
            let params = gcm(&mut nonce, &aad)?;
            let plain = live.session.decrypt(&Mechanism::AesGcm(params), root, &sealed);
            // A token that is here and does not decrypt has found the tag wrong; what it calls that differs
            // from one to the next.
            plain
                .map(Zeroizing::new)
                .map_err(|error| Fault::Unless { cause: describe("unwrapping", &error), here: refused() })
        })
    }

    fn sign(&self, label: &str, public: &VerifyingKey, message: &[u8]) -> Result<[u8; 64], KeyStoreError> {
        if message.len() > MESSAGE_BYTES_MAX {
            return Err(KeyStoreError::TooMuch { what: "messages of 1 MiB" });
        }
        let (name, wanted, copy) = (self.name(label), *public.as_bytes(), message.to_vec());
        let signature = self.run(move |live| {
            let mut failure = None;
            // Twice, since a handle may have gone stale under a key that is still there.
            for _ in 0..2 {
                let handle = match live.keys.get(&name.object) {
                    Some((handle, _)) => *handle,
                    None => {
                        let (handle, public) = find_key(live, &name)?;
                        live.keys.insert(name.object.clone(), (handle, *public.as_bytes()));
                        handle
                    }
                };
                if live.keys.get(&name.object).is_none_or(|(_, public)| *public != wanted) {
                    return Err(Fault::Sure(name.unfit("it is another key than the signer's")));
                }
                let pure = EddsaParams::new(EddsaSignatureScheme::Pure);
                match live.session.sign(&Mechanism::Eddsa(pure), handle, &copy) {
                    Ok(signature) => return Ok(signature),
                    Err(error) => {
                        live.keys.remove(&name.object);
                        failure = Some(Fault::token("signing", &error));
                    }
                }
            }
            Err(failure.unwrap_or_else(|| Fault::missing(&name)))
        })?;
        // A faulty or exchanged token: what it signed with is not the key we speak for.
        let unfit = || self.name(label).unfit("its signature does not verify");
        let signature: [u8; 64] = signature.try_into().map_err(|_| unfit())?;
        public.verify(message, &signature).map_err(|_| unfit())?;
        Ok(signature)
    }

    fn handle(self: &Arc<Self>, label: &str, public: VerifyingKey) -> Arc<dyn Signer> {
        Arc::new(TokenSigner { store: Arc::clone(self), label: label.to_owned(), public })
    }

    fn name(&self, label: &str) -> Name {
        Name { label: label.to_owned(), object: format!("{}{label}", self.prefix) }
    }

    /// Does something in the store's session; after a fault, looks whether the token is there at all.
    fn run<T, F>(&self, job: F) -> Result<T, KeyStoreError>
    where
        T: Send + 'static,
        F: FnOnce(&mut Live) -> Result<T, Fault> + Send + 'static,
    {
        let link = self.link;
        self.worker.call(move |module| {
            let done = job(module.live(link)?);
            done.map_err(|fault| match fault {
                Fault::Unless { cause, here } => module.gone(link, &cause).unwrap_or(here),
                Fault::Sure(error) => error,
            })
        })
    }
}

impl Drop for TokenStore {
    /// Waits for the end of the session, [`CALL_WAIT`] at most: a module that is still at work while the
    /// process ends and takes it down crashes.
    fn drop(&mut self) {
        let link = self.link;
        self.worker.end(move |module: &mut Module| module.unlink(link));
    }
}

struct TokenSigner {
    store: Arc<TokenStore>,
    label: String,
    public: VerifyingKey,
}

impl Signer for TokenSigner {
    fn verifying_key(&self) -> VerifyingKey {
        self.public
    }

    fn sign(&self, message: &[u8]) -> Result<[u8; 64], SignError> {
        self.store
            .sign(&self.label, &self.public, message)
            .map_err(|error| SignError { key: self.public.id(), why: error.to_string() })
    }
}

/// A key's label, and that of its objects in the token.
struct Name {
    label: String,
    object: String,
}

impl Name {
    fn unfit(&self, why: &'static str) -> KeyStoreError {
        KeyStoreError::Unfit { label: self.label.clone(), why }
    }
}

/// Why something was not done.
enum Fault {
    /// The token has gone, for this cause; unless it is here, then it is this error.
    Unless { cause: String, here: KeyStoreError },
    /// This, whether the token is here or not.
    Sure(KeyStoreError),
}

impl Fault {
    fn token(doing: &str, error: &Error) -> Self {
        Self::Unless { cause: describe(doing, error), here: says(doing, error) }
    }

    fn missing(name: &Name) -> Self {
        Self::Unless {
            cause: "a key was not found".to_owned(),
            here: KeyStoreError::no_such_key(&name.label),
        }
    }

    fn of_a_token_that_is_here(self) -> KeyStoreError {
        match self {
            Self::Unless { here, .. } | Self::Sure(here) => here,
        }
    }
}

fn root_label(id: &str) -> String {
    format!("trader:{id}")
}

fn no_root() -> Fault {
    Fault::Sure(KeyStoreError::unavailable("the root key is not in the token"))
}

/// Refuses a module that others could exchange: it runs in this process and is shown the PIN.
fn check_module(path: &Path) -> Result<PathBuf, KeyStoreError> {
    let why = |error| KeyStoreError::unavailable(format!("the module {}: {error}", path.display()));
    if !path.is_absolute() {
        return Err(KeyStoreError::unavailable(format!(
            "the module {}: not an absolute path",
            path.display()
        )));
    }
    let path = path.canonicalize().map_err(why)?;
    let metadata = path.metadata().map_err(|error| KeyStoreError::unavailable(error.to_string()))?;
    if !metadata.is_file() {
        return Err(FileError::WrongKind { path, wanted: "a regular file" }.into());
    }
    let mode = metadata.mode() & 0o777;
    if mode & 0o022 != 0 {
        return Err(FileError::OpenToOthers { path, mode, wanted: 0o755 }.into());
    }
    Ok(path)
}

/// Nonce and additional data for the root key.
fn gcm<'a>(nonce: &'a mut [u8; NONCE_BYTES], aad: &'a [u8]) -> Result<GcmParams<'a>, Fault> {
    GcmParams::new(nonce, aad, TAG_BITS.into()).map_err(|error| Fault::token("preparing AES-GCM", &error))
}

fn find(session: &Session, class: ObjectClass, name: &Name) -> Result<Vec<ObjectHandle>, Fault> {
    let template = [
        Attribute::Class(class),
        Attribute::KeyType(KeyType::EC_EDWARDS),
        Attribute::Label(name.object.as_bytes().to_vec()),
    ];
    session.find_objects(&template).map_err(|error| Fault::token("looking for a key", &error))
}

/// The private key of a name and its public key; exactly one pair, made and kept in the token.
fn find_key(live: &Live, name: &Name) -> Result<(ObjectHandle, VerifyingKey), Fault> {
    let session = &live.session;
    let sure = |why| Fault::Sure(name.unfit(why));
    let private = match find(session, ObjectClass::PRIVATE_KEY, name)?.as_slice() {
        [] => return Err(Fault::missing(name)),
        [private] => *private,
        _ => return Err(sure("there are several")),
    };
    check_kept(session, private).map_err(|fault| match fault {
        module::NotKept::Trouble(error) => Fault::token("looking at a key", &error),
        module::NotKept::Unfit(why) => sure(why),
    })?;
    let unfit = |why| Fault::Unless { cause: "a public key was not found".to_owned(), here: name.unfit(why) };
    let [public] = *find(session, ObjectClass::PUBLIC_KEY, name)?.as_slice() else {
        return Err(unfit("its public key is not there exactly once"));
    };
    let asked = session.get_attributes(public, &[AttributeType::EcPoint]);
    let told = asked.map_err(|error| Fault::token("reading a public key", &error))?;
    let Some(Attribute::EcPoint(point)) = told.first() else {
        return Err(unfit("its public key cannot be read"));
    };
    // An octet string in DER as the standard has it, or the bare 32 bytes.
    let bare = point.strip_prefix(&[0x04, 0x20]).filter(|bare| bare.len() == 32).unwrap_or(point);
    let point: &[u8; 32] = bare.try_into().map_err(|_| sure("its public key is not of Ed25519"))?;
    let public = VerifyingKey::from_bytes(point).map_err(|_| sure("its public key is not of Ed25519"))?;
    Ok((private, public))
}

/// Labels of all private keys of a store, sorted.
fn all_labels(session: &Session, prefix: &str) -> Result<Vec<String>, Fault> {
    let template = [
        Attribute::Class(ObjectClass::PRIVATE_KEY),
        Attribute::KeyType(KeyType::EC_EDWARDS),
        Attribute::Private(true),
    ];
    let found = session.find_objects(&template).map_err(|error| Fault::token("listing keys", &error))?;
    let mut labels = Vec::new();
    for object in found {
        let told = session.get_attributes(object, &[AttributeType::Label]);
        let told = told.map_err(|error| Fault::token("listing keys", &error))?;
        let Some(Attribute::Label(label)) = told.into_iter().next() else { continue };
        let Ok(label) = String::from_utf8(label) else { continue };
        if let Some(label) = label.strip_prefix(prefix)
            && crate::label::check(label).is_ok()
        {
            labels.push(label.to_owned());
        }
    }
    labels.sort_unstable();
    Ok(labels)
}

/// Identifier of an object, for tools that want one: made of its label.
fn object_id(label: &str) -> Vec<u8> {
    Digest::of(label.as_bytes()).0.get(..16).unwrap_or_default().to_vec()
}

fn make_key(session: &Session, name: &Name) -> Result<(), Fault> {
    let both = [
        Attribute::Token(true),
        // The public half too: without the PIN nobody exchanges it.
        Attribute::Private(true),
        Attribute::Modifiable(false),
        Attribute::Label(name.object.as_bytes().to_vec()),
        Attribute::Id(object_id(&name.object)),
    ];
    let public = [&both[..], &[Attribute::Verify(true), Attribute::EcParams(ED25519.to_vec())]].concat();
    let private = [
        &both[..],
        &[
            Attribute::Sensitive(true),
            Attribute::Extractable(false),
            Attribute::Sign(true),
            Attribute::Derive(false),
            Attribute::Unwrap(false),
            Attribute::Decrypt(false),
        ],
    ]
    .concat();
    let made = session.generate_key_pair(&Mechanism::EccEdwardsKeyPairGen, &public, &private);
    let (public, private) = made.map_err(|error| Fault::token("making a key", &error))?;
    let forget = || {
        let _ = session.destroy_object(private);
        let _ = session.destroy_object(public);
    };
    if let Err(fault) = check_kept(session, private) {
        forget();
        return Err(Fault::Sure(says_or(|why| name.unfit(why))(fault)));
    }
    // Another process may have made one at the same moment, and a token does not mind two of one label.
    if find(session, ObjectClass::PRIVATE_KEY, name)?.len() != 1 {
        forget();
        return Err(Fault::Sure(KeyStoreError::KeyExists { label: name.label.clone() }));
    }
    Ok(())
}

fn make_root(session: &Session, label: &str) -> Result<ObjectHandle, KeyStoreError> {
    let template = [
        Attribute::Token(true),
        Attribute::Private(true),
        Attribute::Modifiable(false),
        Attribute::Sensitive(true),
        Attribute::Extractable(false),
        Attribute::Encrypt(true),
        Attribute::Decrypt(true),
        Attribute::Wrap(false),
        Attribute::Unwrap(false),
        Attribute::Sign(false),
        Attribute::Derive(false),
        Attribute::ValueLen(32.into()),
        Attribute::Label(label.as_bytes().to_vec()),
        Attribute::Id(object_id(label)),
    ];
    let made = session.generate_key(&Mechanism::AesKeyGen, &template);
    let root = made.map_err(|error| says("making the root key", &error))?;
    check_kept(session, root).map_err(|fault| {
        let _ = session.destroy_object(root);
        says_or(|why| KeyStoreError::Unfit { label: label.to_owned(), why })(fault)
    })?;
    Ok(root)
}

#[cfg(test)]
mod tests;
