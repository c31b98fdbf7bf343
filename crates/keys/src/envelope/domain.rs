//! One domain's key through its versions: made, rotated, used, raised, destroyed.
//!
//! [`DomainKey`] is the document that is stored: its key material is wrapped by the root, and all it can do
//! without the root is to be narrowed or destroyed. [`Keyring`] is the same with its keys in memory. Where a
//! document is stored, and that nobody puts back an older one, is the caller's care; [`DomainKey::revision`]
//! is there to be pinned.
//!
//! INVARIANT: only the newest version seals; a destroyed version's material is in no document and no keyring.

use std::collections::BTreeMap;
use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::de::{Error as _, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use zeroize::Zeroizing;

use super::{Ciphertext, EnvelopeError, PLAINTEXT_MAX, Place, USES_MAX, Wrap, WrappingKey};
use super::{check_name, from_base64};
use crate::aead::{self, derive, join, nonce};
use crate::equal_in_constant_time;

/// Most versions of one domain's key, the destroyed ones included: eleven years of daily rotation.
pub const VERSIONS_MAX: usize = 4096;

/// Longest JSON of one [`DomainKey`] that is read. Bytes.
pub const DOMAIN_KEY_JSON_MAX: usize = 16 * 1024 * 1024;

/// Seals that a keyring notes in its document at once, before the first of them. A crash counts them all as
/// used.
pub const RESERVED_AT_ONCE: u64 = 1 << 16;

/// Longest wrapped key that a root may hand back. Bytes.
const WRAPPED_MAX: usize = 1024;

/// Highest revision that is read: far from the end of its type, so that counting on cannot overflow.
const REVISION_MAX: u64 = 1 << 48;

/// What a document says it is.
const FORMAT: &str = "trader-domain-key-1";

/// What a version of a domain's key may still do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// It seals and opens. One version at most.
    Active,
    /// It opens what was sealed under it.
    DecryptOnly,
    /// It is gone.
    Destroyed,
}

impl State {
    /// The state's one spelling.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::DecryptOnly => "decrypt_only",
            Self::Destroyed => "destroyed",
        }
    }
}

/// What may be told of one version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VersionInfo {
    /// Its number, from 1.
    pub version: u32,
    /// What it may still do.
    pub state: State,
    /// When it was made. Seconds since the Unix epoch.
    pub created: i64,
    /// How many seals are counted as used; at most [`USES_MAX`].
    pub uses: u64,
}

#[derive(Clone, PartialEq, Eq)]
struct Version {
    state: State,
    created: i64,
    uses: u64,
    wrapped: Vec<u8>,
}

/// A domain's key as it is stored: every version, its material wrapped by the root.
///
/// The document is as trustworthy as its store: states and the minimum are not signed. What is wrapped opens
/// only as the domain, version and age that it was made for.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Document", into = "Document")]
pub struct DomainKey {
    domain: String,
    revision: u64,
    minimum: u32,
    versions: BTreeMap<u32, Version>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    format: String,
    domain: String,
    revision: u64,
    minimum: u32,
    #[serde(deserialize_with = "each_version_once")]
    versions: BTreeMap<u32, Line>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    state: State,
    created: i64,
    uses: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    wrapped: Option<String>,
}

impl DomainKey {
    /// Makes a domain's key with its first version. `entropy` is 32 random bytes, `now` seconds since the
    /// Unix epoch.
    ///
    /// # Errors
    /// [`EnvelopeError::Name`], [`EnvelopeError::RootUnavailable`], [`EnvelopeError::RootRefused`].
    pub fn create(
        domain: &str,
        root: &dyn Wrap,
        entropy: &[u8; 32],
        now: i64,
    ) -> Result<Self, EnvelopeError> {
        check_name(domain, "a domain")?;
        let (version, _) = fresh(domain, 1, root, entropy, now)?;
        let versions = BTreeMap::from([(1, version)]);
        Ok(Self { domain: domain.to_owned(), revision: 1, minimum: 1, versions })
    }

    /// Reads what [`DomainKey::to_json`] wrote.
    ///
    /// # Errors
    /// [`EnvelopeError::Document`] when the text is anything else, contradicts itself, or is longer than
    /// [`DOMAIN_KEY_JSON_MAX`].
    pub fn parse(json: &str) -> Result<Self, EnvelopeError> {
        if json.len() > DOMAIN_KEY_JSON_MAX {
            return Err(EnvelopeError::Document("a domain's key is never that long"));
        }
        serde_json::from_str(json).map_err(|_| EnvelopeError::Document("not a domain's key"))
    }

    /// The document as JSON. No secret is in it, but whoever has it and the root has the domain's key.
    #[must_use]
    pub fn to_json(&self) -> String {
        // Strings and integers only, and keys that are numbers: there is nothing that could not be written.
        serde_json::to_string_pretty(self).unwrap_or_default()
    }

    /// Makes a new active version; the one before only opens from now on. Gives the new version's number.
    ///
    /// # Errors
    /// [`EnvelopeError::RootRefused`] when the root is not the one that wrapped the active version;
    /// [`EnvelopeError::RootUnavailable`], [`EnvelopeError::TooManyVersions`]. The key is as before then.
    pub fn rotate(&mut self, root: &dyn Wrap, entropy: &[u8; 32], now: i64) -> Result<u32, EnvelopeError> {
        self.rotated(root, entropy, now).map(|(number, _)| number)
    }

    fn rotated(
        &mut self,
        root: &dyn Wrap,
        entropy: &[u8; 32],
        now: i64,
    ) -> Result<(u32, WrappingKey), EnvelopeError> {
        if self.versions.len() >= VERSIONS_MAX {
            return Err(EnvelopeError::TooManyVersions);
        }
        // A second root among the versions would be noticed too late: at the next start.
        if let Some(active) = self.active() {
            self.unwrap_version(active, root)?;
        }
        let number = self.newest() + 1;
        let (version, key) = fresh(&self.domain, number, root, entropy, now)?;
        for older in self.versions.values_mut().filter(|older| older.state == State::Active) {
            older.state = State::DecryptOnly;
        }
        self.versions.insert(number, version);
        self.revision += 1;
        Ok((number, key))
    }

    /// Sets the lowest version that opens, up or down. A keyring goes up only.
    ///
    /// # Errors
    /// [`EnvelopeError::Minimum`] when it is 0 or above the newest version.
    pub fn set_minimum(&mut self, version: u32) -> Result<(), EnvelopeError> {
        if version == 0 || version > self.newest() {
            return Err(EnvelopeError::Minimum(version));
        }
        if version != self.minimum {
            self.minimum = version;
            self.revision += 1;
        }
        Ok(())
    }

    /// Destroys a version: removes its wrapped material from this document for ever. Copies of the document
    /// elsewhere, backups for one, still have it. Destroying a version again does nothing.
    ///
    /// # Errors
    /// [`EnvelopeError::ActiveVersion`], [`EnvelopeError::UnknownVersion`].
    pub fn destroy(&mut self, version: u32) -> Result<(), EnvelopeError> {
        let found = self.versions.get_mut(&version).ok_or(EnvelopeError::UnknownVersion(version))?;
        match found.state {
            State::Active => return Err(EnvelopeError::ActiveVersion(version)),
            State::Destroyed => return Ok(()),
            State::DecryptOnly => found.destroy(),
        }
        self.revision += 1;
        Ok(())
    }

    /// Destroys every version, the active one included. Nothing that was sealed for this domain opens
    /// afterwards.
    pub fn destroy_everything(&mut self) {
        self.versions.values_mut().for_each(Version::destroy);
        self.revision += 1;
    }

    /// Wraps every version under another root. Nothing else changes; on an error nothing at all does.
    ///
    /// # Errors
    /// [`EnvelopeError::RootUnavailable`], [`EnvelopeError::RootRefused`].
    pub fn change_root(
        &mut self,
        from: &dyn Wrap,
        to: &dyn Wrap,
        entropy: &[u8; 32],
    ) -> Result<(), EnvelopeError> {
        let mut versions = self.versions.clone();
        for (number, version) in versions.iter_mut().filter(|(_, version)| version.state != State::Destroyed)
        {
            let key = self.unwrap_version(*number, from)?;
            version.wrapped = wrapped(&self.domain, *number, version.created, &key, to, entropy)?;
        }
        self.versions = versions;
        self.revision += 1;
        Ok(())
    }

    /// Whether a ciphertext was sealed under another version than the active one.
    #[must_use]
    pub fn needs_rewrap(&self, ciphertext: &Ciphertext) -> bool {
        self.active() != Some(ciphertext.key_version)
    }

    /// The domain that the key is for.
    #[must_use]
    pub fn domain(&self) -> &str {
        &self.domain
    }

    /// Higher after every change of the document. Whoever pins the last one notices when an older document is
    /// put back.
    #[must_use]
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// The lowest version that opens.
    #[must_use]
    pub fn minimum(&self) -> u32 {
        self.minimum
    }

    /// The version that seals; none after everything was destroyed.
    #[must_use]
    pub fn active(&self) -> Option<u32> {
        let (number, newest) = self.versions.last_key_value()?;
        (newest.state == State::Active).then_some(*number)
    }

    /// Every version, the oldest first.
    pub fn versions(&self) -> impl Iterator<Item = VersionInfo> + '_ {
        self.versions.iter().map(|(number, version)| VersionInfo {
            version: *number,
            state: version.state,
            created: version.created,
            uses: version.uses,
        })
    }

    fn newest(&self) -> u32 {
        self.versions.last_key_value().map_or(0, |(number, _)| *number)
    }

    /// Unwraps one version's key.
    fn unwrap_version(&self, number: u32, root: &dyn Wrap) -> Result<WrappingKey, EnvelopeError> {
        let version = self.versions.get(&number).ok_or(EnvelopeError::UnknownVersion(number))?;
        if version.state == State::Destroyed {
            return Err(EnvelopeError::Destroyed(number));
        }
        let key = root.unwrap(&aad(&self.domain, number, version.created), &version.wrapped)?;
        WrappingKey::from_slice(&key).ok_or(EnvelopeError::RootRefused)
    }

    /// Refuses a version that may not open.
    fn check_opens(&self, number: u32) -> Result<(), EnvelopeError> {
        let version = self.versions.get(&number).ok_or(EnvelopeError::UnknownVersion(number))?;
        if version.state == State::Destroyed {
            return Err(EnvelopeError::Destroyed(number));
        }
        if number < self.minimum {
            return Err(EnvelopeError::BelowMinimum { version: number, minimum: self.minimum });
        }
        Ok(())
    }
}

impl fmt::Debug for DomainKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (domain, active) = (&self.domain, self.active());
        write!(f, "DomainKey({domain}, revision {}, active {active:?})", self.revision)
    }
}

impl Version {
    fn destroy(&mut self) {
        self.state = State::Destroyed;
        zeroize::Zeroize::zeroize(&mut self.wrapped);
        self.wrapped = Vec::new();
    }
}

/// Makes and wraps a version's key.
fn fresh(
    domain: &str,
    number: u32,
    root: &dyn Wrap,
    entropy: &[u8; 32],
    now: i64,
) -> Result<(Version, WrappingKey), EnvelopeError> {
    let context: &[&[u8]] = &[domain.as_bytes(), &number.to_be_bytes(), &now.to_be_bytes()];
    let key = WrappingKey::from_bytes(&derive(entropy, "trader-domain-key-1 key", context));
    let wrapped = wrapped(domain, number, now, &key, root, entropy)?;
    Ok((Version { state: State::Active, created: now, uses: 0, wrapped }, key))
}

/// Wraps a version's key and reads it back: a key that a broken root would not give back is not put to use.
fn wrapped(
    domain: &str,
    number: u32,
    created: i64,
    key: &WrappingKey,
    root: &dyn Wrap,
    entropy: &[u8; 32],
) -> Result<Vec<u8>, EnvelopeError> {
    let aad = aad(domain, number, created);
    let once = nonce(&derive(entropy, "trader-domain-key-1 nonce", &[&aad, key.bytes()]));
    let wrapped = root.wrap(&aad, key.bytes(), &once)?;
    let again = root.unwrap(&aad, &wrapped)?;
    if !(1..=WRAPPED_MAX).contains(&wrapped.len()) || !equal_in_constant_time(&again, key.bytes()) {
        return Err(EnvelopeError::RootRefused);
    }
    Ok(wrapped)
}

/// What a version's key is bound to under the root.
fn aad(domain: &str, number: u32, created: i64) -> Vec<u8> {
    join(&[FORMAT.as_bytes(), domain.as_bytes(), &number.to_be_bytes(), &created.to_be_bytes()])
}

impl TryFrom<Document> for DomainKey {
    type Error = EnvelopeError;

    fn try_from(document: Document) -> Result<Self, EnvelopeError> {
        let wrong = |why| Err(EnvelopeError::Document(why));
        if document.format != FORMAT {
            return wrong("not a domain's key of this format");
        }
        check_name(&document.domain, "a domain")?;
        let mut versions = BTreeMap::new();
        for (expected, (number, line)) in (1..).zip(document.versions) {
            let gone = line.state == State::Destroyed;
            let empty = line.wrapped.as_deref().unwrap_or_default().is_empty();
            if number != expected || line.wrapped.is_none() != gone || empty != gone || line.uses > USES_MAX {
                return wrong("a version is missing or contradicts itself");
            }
            let wrapped = match &line.wrapped {
                Some(text) => from_base64(text, WRAPPED_MAX)?,
                None => Vec::new(),
            };
            let Line { state, created, uses, .. } = line;
            versions.insert(number, Version { state, created, uses, wrapped });
        }
        let Document { domain, revision, minimum, .. } = document;
        let key = Self { domain, revision, minimum, versions };
        let all_gone = key.versions.values().all(|version| version.state == State::Destroyed);
        let actives = key.versions.values().filter(|version| version.state == State::Active).count();
        if key.versions.is_empty() || actives > 1 || key.active().is_some() == all_gone {
            return wrong("the newest version, and no other, must be the active one");
        }
        if revision > REVISION_MAX {
            return wrong("no key was changed that often");
        }
        if minimum == 0 || minimum > key.newest() {
            return wrong("the minimum is no version");
        }
        Ok(key)
    }
}

impl From<DomainKey> for Document {
    fn from(key: DomainKey) -> Self {
        let line = |version: Version| Line {
            state: version.state,
            created: version.created,
            uses: version.uses,
            wrapped: (!version.wrapped.is_empty()).then(|| URL_SAFE_NO_PAD.encode(&version.wrapped)),
        };
        Self {
            format: FORMAT.to_owned(),
            domain: key.domain,
            revision: key.revision,
            minimum: key.minimum,
            versions: key.versions.into_iter().map(|(number, version)| (number, line(version))).collect(),
        }
    }
}

/// Reads the versions, refusing one that is there twice: a map would silently keep the second.
fn each_version_once<'de, D: Deserializer<'de>>(source: D) -> Result<BTreeMap<u32, Line>, D::Error> {
    struct Versions;

    impl<'de> Visitor<'de> for Versions {
        type Value = BTreeMap<u32, Line>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("versions by their numbers")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Self::Value, A::Error> {
            let mut versions = BTreeMap::new();
            while let Some((number, line)) = entries.next_entry()? {
                if versions.insert(number, line).is_some() || versions.len() > VERSIONS_MAX {
                    return Err(A::Error::custom("a version twice, or too many"));
                }
            }
            Ok(versions)
        }
    }

    source.deserialize_map(Versions)
}

/// A domain's key with its keys in memory, erased when dropped.
///
/// After any call that changes [`DomainKey::revision`] of its document, the document is stored before the
/// call's result is put to use. A seal changes it once in [`RESERVED_AT_ONCE`] times.
pub struct Keyring {
    document: DomainKey,
    keys: BTreeMap<u32, WrappingKey>,
    /// Seals that the document already counts as used.
    reserved: u64,
}

impl Keyring {
    /// Has the root unwrap every version that may open something.
    ///
    /// # Errors
    /// [`EnvelopeError::RootUnavailable`], [`EnvelopeError::RootRefused`].
    pub fn unlock(document: DomainKey, root: &dyn Wrap) -> Result<Self, EnvelopeError> {
        let mut keys = BTreeMap::new();
        for number in document.versions.keys().filter(|number| document.check_opens(**number).is_ok()) {
            keys.insert(*number, document.unwrap_version(*number, root)?);
        }
        Ok(Self { document, keys, reserved: 0 })
    }

    /// The document as it has to be stored.
    #[must_use]
    pub fn document(&self) -> &DomainKey {
        &self.document
    }

    /// The document, the keys in memory erased.
    #[must_use]
    pub fn into_document(self) -> DomainKey {
        self.document
    }

    /// As [`DomainKey::rotate`].
    ///
    /// # Errors
    /// As [`DomainKey::rotate`].
    pub fn rotate(&mut self, root: &dyn Wrap, entropy: &[u8; 32], now: i64) -> Result<u32, EnvelopeError> {
        let (number, key) = self.document.rotated(root, entropy, now)?;
        self.keys.insert(number, key);
        self.reserved = 0;
        Ok(number)
    }

    /// Raises the lowest version that opens, and erases the keys below it from memory.
    ///
    /// # Errors
    /// [`EnvelopeError::Minimum`] when it would go down or above the newest version.
    pub fn raise_minimum(&mut self, version: u32) -> Result<(), EnvelopeError> {
        if version < self.document.minimum {
            return Err(EnvelopeError::Minimum(version));
        }
        self.document.set_minimum(version)?;
        self.keys.retain(|number, _| *number >= version);
        Ok(())
    }

    /// As [`DomainKey::destroy`], and erases the key from memory.
    ///
    /// # Errors
    /// As [`DomainKey::destroy`].
    pub fn destroy(&mut self, version: u32) -> Result<(), EnvelopeError> {
        self.document.destroy(version)?;
        self.keys.remove(&version);
        Ok(())
    }

    /// As [`DomainKey::destroy_everything`], and erases the keys from memory.
    pub fn destroy_everything(&mut self) {
        self.document.destroy_everything();
        self.keys.clear();
    }

    /// Seals a record under a data key of its own. `entropy` is 32 random bytes, used for this record only.
    ///
    /// # Errors
    /// [`EnvelopeError::Name`], [`EnvelopeError::WrongPlace`] for another domain's place,
    /// [`EnvelopeError::TooLong`], [`EnvelopeError::Exhausted`], [`EnvelopeError::Destroyed`] when everything
    /// was destroyed.
    pub fn seal(
        &mut self,
        place: &Place<'_>,
        plaintext: &[u8],
        entropy: &[u8; 32],
    ) -> Result<Ciphertext, EnvelopeError> {
        self.check_place(place)?;
        if plaintext.len() > PLAINTEXT_MAX {
            return Err(EnvelopeError::TooLong);
        }
        let aad = place.payload_aad();
        let record = derive(entropy, "trader-envelope-1 record", &[&aad, plaintext]);
        let data_key = WrappingKey::from_bytes(&derive(&record, "data key", &[]));
        let once = nonce(&derive(&record, "payload nonce", &[]));
        let payload =
            aead::encrypt(data_key.bytes(), &once, &aad, plaintext).map_err(|_| EnvelopeError::TooLong)?;
        let (key_version, data_key) = self.wrap_data_key(place, &data_key, entropy)?;
        Ok(Ciphertext { key_version, data_key, payload })
    }

    /// Opens a record.
    ///
    /// # Errors
    /// [`EnvelopeError::WrongPlace`], [`EnvelopeError::Tampered`], [`EnvelopeError::Destroyed`],
    /// [`EnvelopeError::BelowMinimum`], [`EnvelopeError::UnknownVersion`], [`EnvelopeError::Name`].
    pub fn open(
        &self,
        place: &Place<'_>,
        ciphertext: &Ciphertext,
    ) -> Result<Zeroizing<Vec<u8>>, EnvelopeError> {
        let data_key = self.open_data_key(place, ciphertext)?;
        aead::decrypt(data_key.bytes(), &place.payload_aad(), &ciphertext.payload)
            .map_err(|_| EnvelopeError::Tampered)
    }

    /// As [`DomainKey::needs_rewrap`].
    #[must_use]
    pub fn needs_rewrap(&self, ciphertext: &Ciphertext) -> bool {
        self.document.needs_rewrap(ciphertext)
    }

    /// Wraps a record's data key under the active version; the payload stays as it is. Counts as a seal.
    ///
    /// # Errors
    /// As [`Keyring::open`] and [`Keyring::seal`].
    pub fn rewrap(
        &mut self,
        place: &Place<'_>,
        ciphertext: &Ciphertext,
        entropy: &[u8; 32],
    ) -> Result<Ciphertext, EnvelopeError> {
        let data_key = self.open_data_key(place, ciphertext)?;
        // A payload that was swapped must not come out of this with a newer key, as if it had been checked.
        aead::decrypt(data_key.bytes(), &place.payload_aad(), &ciphertext.payload)
            .map_err(|_| EnvelopeError::Tampered)?;
        let (key_version, data_key) = self.wrap_data_key(place, &data_key, entropy)?;
        Ok(Ciphertext { key_version, data_key, payload: ciphertext.payload.clone() })
    }

    fn check_place(&self, place: &Place<'_>) -> Result<(), EnvelopeError> {
        place.check()?;
        if place.domain == self.document.domain { Ok(()) } else { Err(EnvelopeError::WrongPlace) }
    }

    pub(super) fn open_data_key(
        &self,
        place: &Place<'_>,
        ciphertext: &Ciphertext,
    ) -> Result<WrappingKey, EnvelopeError> {
        self.check_place(place)?;
        let number = ciphertext.key_version;
        self.document.check_opens(number)?;
        let key = self.keys.get(&number).ok_or(EnvelopeError::UnknownVersion(number))?;
        let data_key = aead::decrypt(key.bytes(), &place.data_key_aad(number), &ciphertext.data_key)
            .map_err(|_| EnvelopeError::WrongPlace)?;
        WrappingKey::from_slice(&data_key).ok_or(EnvelopeError::WrongPlace)
    }

    pub(super) fn wrap_data_key(
        &mut self,
        place: &Place<'_>,
        data_key: &WrappingKey,
        entropy: &[u8; 32],
    ) -> Result<(u32, Vec<u8>), EnvelopeError> {
        let number = self.document.active().ok_or(EnvelopeError::Destroyed(self.document.newest()))?;
        self.count_use(number)?;
        let key = self.keys.get(&number).ok_or(EnvelopeError::UnknownVersion(number))?;
        let aad = place.data_key_aad(number);
        let once = nonce(&derive(entropy, "trader-envelope-1 wrap nonce", &[&aad, data_key.bytes()]));
        let wrapped =
            aead::encrypt(key.bytes(), &once, &aad, data_key.bytes()).map_err(|_| EnvelopeError::TooLong)?;
        Ok((number, wrapped))
    }

    /// Counts one use of a version, reserving many in the document at a time.
    fn count_use(&mut self, number: u32) -> Result<(), EnvelopeError> {
        if self.reserved == 0 {
            let version =
                self.document.versions.get_mut(&number).ok_or(EnvelopeError::UnknownVersion(number))?;
            let reserved = RESERVED_AT_ONCE.min(USES_MAX.saturating_sub(version.uses));
            if reserved == 0 {
                return Err(EnvelopeError::Exhausted(number));
            }
            version.uses += reserved;
            self.document.revision += 1;
            self.reserved = reserved;
        }
        self.reserved -= 1;
        Ok(())
    }
}

impl fmt::Debug for Keyring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Keyring({:?}, {} keys)", self.document, self.keys.len())
    }
}
