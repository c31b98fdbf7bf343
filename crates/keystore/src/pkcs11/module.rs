//! A loaded PKCS#11 module and the links to its tokens: connecting, noticing that one has gone, coming back.
//!
//! Lives in the module's thread. It knows sessions, logins and slots; what is done in a session is its
//! parent's.
//!
//! A module may answer a search in a token that has gone with "nothing found", and may never see a token
//! again that came back until it is initialised anew (SoftHSM does both). So an odd answer is followed by a
//! look whether the token is there, and a link that cannot be made is tried once more with the module
//! initialised anew.
//!
//! INVARIANT: after a wrong PIN no link tries to log in again; otherwise a link tries once in
//! [`RECONNECT_EVERY`] at most.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::error::{Error, RvError};
use cryptoki::object::{Attribute, AttributeType, KeyType, ObjectClass, ObjectHandle};
use cryptoki::session::{Session, SessionState, UserType};
use cryptoki::slot::Slot;
use cryptoki::types::AuthPin;
use zeroize::Zeroizing;

use crate::KeyStoreError;

/// A lost token is looked for at most this often.
pub const RECONNECT_EVERY: Duration = Duration::from_secs(1);

/// Which token a link goes to, and with what.
pub(crate) struct Wanted {
    pub(crate) token_label: String,
    /// `None` while a store is made: then the label must name one token.
    pub(crate) token_serial: Option<String>,
    /// Label of the root key's object.
    pub(crate) root_label: String,
    /// Whether the root key must be there; not while a store is made.
    pub(crate) root_exists: bool,
    pub(crate) pin: Zeroizing<String>,
}

/// A session that is logged in.
pub(crate) struct Live {
    pub(crate) session: Session,
    slot: Slot,
    pub(crate) serial: String,
    /// The root key; `None` while a store is made.
    pub(crate) root: Option<ObjectHandle>,
    /// Handles of private keys by label, with their public keys.
    pub(crate) keys: BTreeMap<String, (ObjectHandle, [u8; 32])>,
}

struct Link {
    wanted: Wanted,
    live: Option<Live>,
    wrong_pin: bool,
    last_attempt: Option<Instant>,
    why: String,
    #[cfg(test)]
    logins: u32,
}

/// A module, loaded or not yet, and its links.
pub(crate) struct Module {
    path: PathBuf,
    library: Option<Pkcs11>,
    initialised: bool,
    /// Whether somebody else in this process initialised it: then it is not ours to do so anew.
    foreign: bool,
    links: BTreeMap<u64, Link>,
}

impl Module {
    pub(crate) fn new(path: PathBuf) -> Self {
        Self { path, library: None, initialised: false, foreign: false, links: BTreeMap::new() }
    }

    /// Makes a link and connects it. Its number must be new in this process.
    pub(crate) fn link(&mut self, id: u64, wanted: Wanted) -> Result<(), KeyStoreError> {
        let link = Link {
            wanted,
            live: None,
            wrong_pin: false,
            last_attempt: None,
            why: String::new(),
            #[cfg(test)]
            logins: 0,
        };
        self.links.insert(id, link);
        self.live(id).map(|_| ())
    }

    /// Ends a link and its session.
    pub(crate) fn unlink(&mut self, id: u64) {
        self.links.remove(&id);
    }

    /// From now on the link's root key must be there, in the token it is connected to.
    pub(crate) fn root_was_made(&mut self, id: u64, root: ObjectHandle) {
        if let Some(link) = self.links.get_mut(&id)
            && let Some(live) = &mut link.live
        {
            live.root = Some(root);
            link.wanted.root_exists = true;
            link.wanted.token_serial = Some(live.serial.clone());
        }
    }

    /// The link's session. Connects when there is none and the last attempt was long enough ago.
    pub(crate) fn live(&mut self, id: u64) -> Result<&mut Live, KeyStoreError> {
        let closed = || KeyStoreError::unavailable("the key store was closed");
        let link = self.links.get_mut(&id).ok_or_else(closed)?;
        if link.wrong_pin {
            return Err(KeyStoreError::WrongPin);
        }
        if link.live.is_none() {
            if link.last_attempt.is_some_and(|at| at.elapsed() < RECONNECT_EVERY) {
                return Err(KeyStoreError::unavailable(link.why.clone()));
            }
            link.last_attempt = Some(Instant::now());
            let connected = self.connect(id);
            let link = self.links.get_mut(&id).ok_or_else(closed)?;
            match connected {
                Ok(live) => link.live = Some(live),
                Err(error) => {
                    link.wrong_pin = matches!(error, KeyStoreError::WrongPin);
                    if let KeyStoreError::Unavailable { why } = &error {
                        link.why.clone_from(why);
                    } else {
                        link.why = error.to_string();
                    }
                    return Err(error);
                }
            }
        }
        self.links.get_mut(&id).and_then(|link| link.live.as_mut()).ok_or_else(closed)
    }

    /// Looks whether the link's token is there and logged in. If it is not, the session is given up and this
    /// is the error to return.
    pub(crate) fn gone(&mut self, id: u64, cause: &str) -> Option<KeyStoreError> {
        let link = self.links.get_mut(&id)?;
        let here = match (&link.live, &self.library) {
            (Some(live), Some(library)) => is_here(library, live, &link.wanted.root_label),
            _ => Err("there is no session".to_owned()),
        };
        let why = format!("{cause}: {}", here.err()?);
        link.live = None;
        link.why.clone_from(&why);
        Some(KeyStoreError::Unavailable { why })
    }

    /// Gives up every session.
    pub(crate) fn disconnect_all(&mut self, why: &str) {
        for link in self.links.values_mut() {
            if link.live.take().is_some() {
                why.clone_into(&mut link.why);
                // It was not this link that failed: it may come back at once.
                link.last_attempt = None;
            }
        }
    }

    fn connect(&mut self, id: u64) -> Result<Live, KeyStoreError> {
        let fresh = !self.initialised;
        self.initialise()?;
        match self.connect_once(id) {
            Err(KeyStoreError::Unavailable { .. }) if !fresh && !self.foreign => {
                self.finalise();
                self.initialise()?;
                self.connect_once(id)
            }
            other => other,
        }
    }

    fn initialise(&mut self) -> Result<(), KeyStoreError> {
        if self.initialised {
            return Ok(());
        }
        let library = match &self.library {
            Some(library) => library,
            None => self.library.insert(Pkcs11::new(&self.path).map_err(|error| says("loading", &error))?),
        };
        match library.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK)) {
            Ok(()) => self.foreign = false,
            Err(Error::Pkcs11(RvError::CryptokiAlreadyInitialized, _)) => self.foreign = true,
            Err(error) => return Err(says("initialising", &error)),
        }
        self.initialised = true;
        Ok(())
    }

    fn finalise(&mut self) {
        self.disconnect_all("the module was initialised anew");
        if let Some(library) = &self.library {
            // It may say that it is not initialised, and then is what it should be.
            let _ = library.clone().finalize();
        }
        self.initialised = false;
    }

    fn connect_once(&mut self, id: u64) -> Result<Live, KeyStoreError> {
        let closed = || KeyStoreError::unavailable("the key store was closed");
        let link = self.links.get(&id).ok_or_else(closed)?;
        let library = self.library.as_ref().ok_or_else(closed)?;
        let (slot, serial) = find_token(library, &link.wanted)?;
        let siblings: Vec<_> = self
            .links
            .iter()
            .filter(|(other, link)| {
                **other != id && link.live.as_ref().is_some_and(|live| live.serial == serial)
            })
            .map(|(_, link)| keys::equal_in_constant_time(link.wanted.pin.as_bytes(), self.pin(id)))
            .collect();
        if siblings.contains(&false) {
            // A token is logged in to for the whole process, and then looks at no further PIN. The one that
            // it took is another: this one is wrong.
            return Err(KeyStoreError::WrongPin);
        }
        let session = library.open_rw_session(slot).map_err(|error| says("opening a session", &error))?;
        if siblings.is_empty() {
            let pin = AuthPin::new(link.wanted.pin.as_str().into());
            let login = session.login(UserType::User, Some(&pin));
            #[cfg(test)]
            if let Some(link) = self.links.get_mut(&id) {
                link.logins += 1;
            }
            login.map_err(|error| match &error {
                Error::Pkcs11(RvError::PinIncorrect | RvError::PinInvalid | RvError::PinLenRange, _) => {
                    KeyStoreError::WrongPin
                }
                // Also when it says that somebody has logged in already: with which PIN, we cannot know.
                _ => says("logging in", &error),
            })?;
        }
        let link = self.links.get(&id).ok_or_else(closed)?;
        let mut live = Live { session, slot, serial, root: None, keys: BTreeMap::new() };
        if link.wanted.root_exists {
            live.root = Some(find_root(&live.session, &link.wanted.root_label)?);
        }
        Ok(live)
    }

    fn pin(&self, id: u64) -> &[u8] {
        self.links.get(&id).map(|link| link.wanted.pin.as_bytes()).unwrap_or_default()
    }

    #[cfg(test)]
    pub(crate) fn logins(&self) -> u32 {
        self.links.values().map(|link| link.logins).sum()
    }
}

/// What the module said, in one line.
pub(crate) fn says(doing: &str, error: &Error) -> KeyStoreError {
    KeyStoreError::unavailable(describe(doing, error))
}

/// As [`says`], as text.
pub(crate) fn describe(doing: &str, error: &Error) -> String {
    match error {
        Error::Pkcs11(code, function) => format!("{doing}: {function:?} answered {code:?}"),
        Error::LibraryLoading(_) => format!("{doing}: the module cannot be loaded"),
        other => format!("{doing}: {other}"),
    }
}

fn find_token(library: &Pkcs11, wanted: &Wanted) -> Result<(Slot, String), KeyStoreError> {
    let slots = library.get_slots_with_token().map_err(|error| says("listing tokens", &error))?;
    let mut found = Vec::new();
    for slot in slots {
        // Another slot's trouble is not ours.
        let Ok(info) = library.get_token_info(slot) else { continue };
        let serial = wanted.token_serial.as_deref().unwrap_or(info.serial_number());
        if info.token_initialized() && info.label() == wanted.token_label && info.serial_number() == serial {
            found.push((slot, info));
        }
    }
    let (Some((slot, info)), None) = (found.pop(), found.pop()) else {
        return Err(KeyStoreError::unavailable(format!(
            "not exactly one token is labelled {:?}{}",
            wanted.token_label,
            wanted.token_serial.as_ref().map(|serial| format!(" with serial {serial:?}")).unwrap_or_default()
        )));
    };
    if info.user_pin_locked() {
        return Err(KeyStoreError::unavailable("the token has locked its PIN"));
    }
    if info.user_pin_final_try() {
        return Err(KeyStoreError::unavailable(
            "one more wrong PIN would lock the token: log in once with its maker's tool",
        ));
    }
    Ok((slot, info.serial_number().to_owned()))
}

fn is_here(library: &Pkcs11, live: &Live, root_label: &str) -> Result<(), String> {
    let info =
        library.get_token_info(live.slot).map_err(|error| describe("looking for the token", &error))?;
    if info.serial_number() != live.serial {
        return Err("another token is in its slot".to_owned());
    }
    let session =
        live.session.get_session_info().map_err(|error| describe("looking at the session", &error))?;
    if session.session_state() != SessionState::RwUser {
        return Err("the session is logged out".to_owned());
    }
    if live.root.is_some() {
        find_root(&live.session, root_label).map_err(|error| error.to_string())?;
    }
    Ok(())
}

fn find_root(session: &Session, label: &str) -> Result<ObjectHandle, KeyStoreError> {
    let unfit = |why| KeyStoreError::Unfit { label: label.to_owned(), why };
    let template = [
        Attribute::Class(ObjectClass::SECRET_KEY),
        Attribute::KeyType(KeyType::AES),
        Attribute::Label(label.as_bytes().to_vec()),
    ];
    let found = session.find_objects(&template).map_err(|error| says("looking for the root key", &error))?;
    match found.as_slice() {
        [] => Err(KeyStoreError::unavailable("the root key is not in the token")),
        [root] => check_kept(session, *root).map_err(says_or(unfit)).map(|()| *root),
        _ => Err(unfit("there are several")),
    }
}

/// Why a key is not used: the token is in trouble, or the key is.
pub(crate) enum NotKept {
    Trouble(Error),
    Unfit(&'static str),
}

pub(crate) fn says_or(unfit: impl Fn(&'static str) -> KeyStoreError) -> impl Fn(NotKept) -> KeyStoreError {
    move |fault| match fault {
        NotKept::Trouble(error) => says("looking at a key", &error),
        NotKept::Unfit(why) => unfit(why),
    }
}

/// Refuses a private or secret key that the token did not make itself or could ever have let out.
pub(crate) fn check_kept(session: &Session, key: ObjectHandle) -> Result<(), NotKept> {
    let asked = [
        AttributeType::Local,
        AttributeType::Sensitive,
        AttributeType::AlwaysSensitive,
        AttributeType::Extractable,
        AttributeType::NeverExtractable,
    ];
    let told = session.get_attributes(key, &asked).map_err(NotKept::Trouble)?;
    for (wanted, why) in [
        (Attribute::Local(true), "it was not made in the token"),
        (Attribute::Sensitive(true), "its value can be read"),
        (Attribute::AlwaysSensitive(true), "its value could once be read"),
        (Attribute::Extractable(false), "it can leave the token"),
        (Attribute::NeverExtractable(true), "it could once leave the token"),
    ] {
        if !told.contains(&wanted) {
            return Err(NotKept::Unfit(why));
        }
    }
    Ok(())
}
