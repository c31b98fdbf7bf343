//! Grants as bytes: a COSE_Sign1 (RFC 9052) around CWT claims (RFC 8392), signed with Ed25519.
//!
//! Owns: the one encoding of [`Claims`], its signature, and the parser that turns bytes from outside into a
//! [`VerifiedGrant`]. It refuses to know the time, the peer and the revocation log; the guard knows those.
//!
//! INVARIANT: one meaning has one encoding. After parsing, the grant is encoded again and must equal the
//! bytes received, which settles duplicate keys, trailing bytes, long integers, unsorted maps and unsigned
//! headers at once.
//!
//! The payload is a map with integer keys in the order of RFC 8949, section 4.2.1:
//!
//! | key | claim | form |
//! |---|---|---|
//! | 1 | iss | text, `spiffe://TRUST-DOMAIN/management` of the holder's trust domain |
//! | 2 | sub | text, SPIFFE ID of the holder |
//! | 3 | aud | text, an [`Audience`] |
//! | 4, 5 | exp, nbf | seconds since the Unix epoch |
//! | 7 | cti | 16 bytes, the grant's identifier |
//! | 8 | cnf | map, key 3 (kid, RFC 8747 section 3.4): SHA-256 of the holder's TLS public key |
//! | -65537 | task | text |
//! | -65538 | epoch | unsigned |
//! | -65539 | actions | array of text, each an [`Action`] |
//! | -65540 | portfolio | text; absent where the grant is for none |
//! | -65541 | symbols | array of text |
//! | -65542 | sources | array of text |
//! | -65543 | limits | map: 1 notional, 2 order notional, 3 orders, 4 rows; absent is none of it |
//! | -65544 | uses | unsigned |
//! | -65545 | market day | unsigned, yyyymmdd |
//! | -65546 | policy | 32 bytes |
//! | -65547 | revision | unsigned |

use std::collections::{BTreeMap, BTreeSet};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ciborium::Value;
use coset::{
    AsCborValue as _, CoseSign1, CoseSign1Builder, HeaderBuilder, TaggedCborSerializable as _, iana,
};
use keys::{Digest, Signer, VerifyingKey};

use crate::danger::{Defence, Switches};
use crate::vocabulary::{Action, Audience, Claims, Limits, MarketDay};

/// Longest grant in bytes.
pub const GRANT_BYTES_MAX: usize = 8 * 1024;
/// Longest grant as text.
pub const GRANT_TEXT_MAX: usize = GRANT_BYTES_MAX.div_ceil(3) * 4;
/// Longest text inside a grant, in bytes.
pub const TEXT_BYTES_MAX: usize = 256;
/// Most symbols, and most sources, inside a grant.
pub const MEMBERS_MAX: usize = 256;

/// How deep the CBOR of a grant may nest: tag, array, and room for nothing deeper than a header.
const DEPTH_MAX: usize = 6;
/// Content type in the protected header, so that no other signed thing of this key passes for a grant.
const CONTENT_TYPE: &str = "application/vnd.ai-stock-trader.grant+cwt";

const ISSUER: i64 = 1;
const SUBJECT: i64 = 2;
const AUDIENCE: i64 = 3;
const EXPIRES: i64 = 4;
const NOT_BEFORE: i64 = 5;
const GRANT: i64 = 7;
const CONFIRMATION: i64 = 8;
const TASK: i64 = -65_537;
const EPOCH: i64 = -65_538;
const ACTIONS: i64 = -65_539;
const PORTFOLIO: i64 = -65_540;
const SYMBOLS: i64 = -65_541;
const SOURCES: i64 = -65_542;
const LIMITS: i64 = -65_543;
const USES: i64 = -65_544;
const MARKET_DAY: i64 = -65_545;
const POLICY: i64 = -65_546;
const REVISION: i64 = -65_547;

const CONFIRMATION_KEY: i64 = 3;
const LIMIT_NOTIONAL: i64 = 1;
const LIMIT_ORDER_NOTIONAL: i64 = 2;
const LIMIT_ORDERS: i64 = 3;
const LIMIT_ROWS: i64 = 4;

/// Why bytes are no grant, or claims can't become one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GrantError {
    /// More bytes or text than any grant has.
    #[error("a grant is at most {GRANT_BYTES_MAX} bytes long")]
    TooLong,
    /// Whoever holds the key that grants are signed with does not sign.
    #[error(transparent)]
    Signer(keys::SignError),
    /// The text is not unpadded base64url.
    #[error("the grant's text is not unpadded base64url")]
    Text,
    /// The bytes are no COSE_Sign1, or nest too deep.
    #[error("the grant is no COSE_Sign1 message")]
    Envelope,
    /// The protected header names another algorithm than EdDSA, or none.
    #[error("the grant is not signed with EdDSA")]
    Algorithm,
    /// The protected header names another content type, or none.
    #[error("the signed message is no grant")]
    ContentType,
    /// No issuer key of that identifier is known.
    #[error("the grant's signing key is not known")]
    UnknownKey,
    /// The signature does not verify.
    #[error("the grant's signature does not verify")]
    Signature,
    /// The claims carry a key that no grant has.
    #[error("the grant carries a claim that no grant has")]
    UnknownClaim,
    /// A claim is missing.
    #[error("the grant lacks the claim {0}")]
    Missing(&'static str),
    /// A claim has the wrong type or a value that no grant has.
    #[error("the grant's claim {0} is not acceptable")]
    Claim(&'static str),
    /// The bytes are not the one encoding of what they say.
    #[error("the grant is not in its one deterministic encoding")]
    Encoding,
}

/// A grant on its way: bytes that claim to be one. Holding it proves nothing; see [`VerifiedGrant`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedGrant {
    bytes: Vec<u8>,
    digest: Digest,
}

impl SignedGrant {
    fn new(bytes: Vec<u8>) -> Self {
        let digest = Digest::of(&bytes);
        Self { bytes, digest }
    }

    /// The tagged COSE_Sign1 message.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// SHA-256 of the bytes, the name of this signed grant in the log.
    #[must_use]
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// The bytes as unpadded base64url, as they travel in a header.
    #[must_use]
    pub fn to_text(&self) -> String {
        URL_SAFE_NO_PAD.encode(&self.bytes)
    }

    /// Reads the text that [`SignedGrant::to_text`] wrote; nothing is verified.
    ///
    /// # Errors
    /// [`GrantError::TooLong`] or [`GrantError::Text`].
    pub fn from_text(text: &str) -> Result<Self, GrantError> {
        if text.len() > GRANT_TEXT_MAX {
            return Err(GrantError::TooLong);
        }
        let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| GrantError::Text)?;
        if bytes.len() > GRANT_BYTES_MAX { Err(GrantError::TooLong) } else { Ok(Self::new(bytes)) }
    }
}

/// A grant whose signature by a known issuer key has been verified, and whose every claim was understood.
///
/// It proves what management said, not that it still holds: time, peer and revocations are the guard's to
/// check. Only [`verify`] makes one.
#[derive(Debug)]
pub struct VerifiedGrant {
    claims: Claims,
    digest: Digest,
    issuer_key: VerifyingKey,
}

impl VerifiedGrant {
    /// What the grant says.
    #[must_use]
    pub fn claims(&self) -> &Claims {
        &self.claims
    }

    /// SHA-256 of the signed bytes.
    #[must_use]
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// The key that signed it.
    #[must_use]
    pub fn issuer_key(&self) -> &VerifyingKey {
        &self.issuer_key
    }
}

/// Signs claims. It writes what it is told: whether the grant may be issued is [`crate::policy`]'s to say,
/// and how long it may live is checked there and again by every guard.
///
/// # Errors
/// [`GrantError::Claim`] when a claim has a form that [`verify`] would refuse; [`GrantError::TooLong`] when
/// there are too many of them; [`GrantError::Signer`] when the key's holder does not sign.
pub fn mint(claims: &Claims, key: &dyn Signer) -> Result<SignedGrant, GrantError> {
    let message = unsigned(claims, &key.verifying_key())?
        .try_create_signature(&[], |message| key.sign(message).map(|signature| signature.to_vec()))
        .map_err(GrantError::Signer)?;
    let bytes = message.build().to_tagged_vec().map_err(|_| GrantError::Encoding)?;
    if bytes.len() > GRANT_BYTES_MAX { Err(GrantError::TooLong) } else { Ok(SignedGrant::new(bytes)) }
}

/// Parses and verifies a grant against the issuer's keys.
///
/// # Errors
/// A [`GrantError`] that says what is wrong; no part of a refused grant is given out.
pub fn verify(bytes: &[u8], keys: &[VerifyingKey]) -> Result<VerifiedGrant, GrantError> {
    verify_with(bytes, keys, Switches::default())
}

pub(crate) fn verify_with(
    bytes: &[u8],
    keys: &[VerifyingKey],
    switches: Switches,
) -> Result<VerifiedGrant, GrantError> {
    if bytes.len() > GRANT_BYTES_MAX {
        return Err(GrantError::TooLong);
    }
    let message = envelope(bytes)?;
    let header = &message.protected.header;
    if header.alg != Some(coset::RegisteredLabelWithPrivate::Assigned(iana::Algorithm::EdDSA)) {
        return Err(GrantError::Algorithm);
    }
    if header.content_type != Some(coset::ContentType::Text(CONTENT_TYPE.to_owned())) {
        return Err(GrantError::ContentType);
    }
    let issuer_key =
        *keys.iter().find(|key| key_id(key).as_slice() == header.key_id).ok_or(GrantError::UnknownKey)?;
    if switches.on(Defence::Signature) {
        message
            .verify_signature(&[], |signature, text| issuer_key.verify(text, signature))
            .map_err(|_| GrantError::Signature)?;
    }
    let claims = Fields::parse(message.payload.as_deref().ok_or(GrantError::Envelope)?)?.into_claims()?;
    let again = unsigned(&claims, &issuer_key)?.signature(message.signature).build();
    let again = again.to_tagged_vec().map_err(|_| GrantError::Encoding)?;
    if switches.on(Defence::Canonical) && again != bytes {
        return Err(GrantError::Encoding);
    }
    Ok(VerifiedGrant { claims, digest: Digest::of(bytes), issuer_key })
}

/// Parses the tag and the four parts, to a bounded depth.
fn envelope(bytes: &[u8]) -> Result<CoseSign1, GrantError> {
    let value: Value =
        ciborium::de::from_reader_with_recursion_limit(bytes, DEPTH_MAX).map_err(|_| GrantError::Envelope)?;
    match value {
        Value::Tag(CoseSign1::TAG, message) => {
            CoseSign1::from_cbor_value(*message).map_err(|_| GrantError::Envelope)
        }
        _ => Err(GrantError::Envelope),
    }
}

/// The message that carries the claims, without its signature.
fn unsigned(claims: &Claims, key: &VerifyingKey) -> Result<CoseSign1Builder, GrantError> {
    let protected = HeaderBuilder::new()
        .algorithm(iana::Algorithm::EdDSA)
        .content_type(CONTENT_TYPE.to_owned())
        .key_id(key_id(key).to_vec())
        .build();
    Ok(CoseSign1Builder::new().protected(protected).payload(payload(claims)?))
}

/// The key's identifier as bytes: the first eight of its SHA-256 digest.
fn key_id(key: &VerifyingKey) -> [u8; 8] {
    let mut id = [0; 8];
    id.iter_mut().zip(Digest::of(key.as_bytes()).0).for_each(|(to, from)| *to = from);
    id
}

/// `spiffe://TRUST-DOMAIN/management` for a holder of that trust domain.
fn issuer_of(holder: &str) -> Option<String> {
    let (domain, path) = holder.strip_prefix("spiffe://")?.split_once('/')?;
    (!domain.is_empty() && !path.is_empty()).then(|| format!("spiffe://{domain}/management"))
}

fn payload(claims: &Claims) -> Result<Vec<u8>, GrantError> {
    check(claims)?;
    let texts = |set: &BTreeSet<String>| Value::Array(set.iter().cloned().map(Value::Text).collect());
    let limits = [
        (LIMIT_NOTIONAL, claims.limits.notional.map(Value::from)),
        (LIMIT_ORDER_NOTIONAL, claims.limits.order_notional.map(Value::from)),
        (LIMIT_ORDERS, claims.limits.orders.map(Value::from)),
        (LIMIT_ROWS, claims.limits.rows.map(Value::from)),
    ];
    let limits = limits.into_iter().filter_map(|(key, limit)| Some((Value::from(key), limit?))).collect();
    let cti: [u8; 16] = keys::from_hex(&claims.grant).map_err(|_| GrantError::Claim("cti"))?;
    let confirmation = vec![(Value::from(CONFIRMATION_KEY), Value::Bytes(claims.holder_key.to_vec()))];
    let actions = claims.actions.iter().map(|action| Value::from(action.as_str())).collect();
    // In the order of their encodings: unsigned keys upwards, then negative keys downwards.
    let mut map = vec![
        (ISSUER, issuer_of(&claims.holder).map(Value::Text)),
        (SUBJECT, Some(Value::from(claims.holder.as_str()))),
        (AUDIENCE, Some(Value::from(claims.audience.as_str()))),
        (EXPIRES, Some(Value::from(claims.expires))),
        (NOT_BEFORE, Some(Value::from(claims.not_before))),
        (GRANT, Some(Value::Bytes(cti.to_vec()))),
        (CONFIRMATION, Some(Value::Map(confirmation))),
        (TASK, Some(Value::from(claims.task.as_str()))),
        (EPOCH, Some(Value::from(claims.epoch))),
        (ACTIONS, Some(Value::Array(actions))),
    ];
    map.extend([
        (PORTFOLIO, claims.portfolio.clone().map(Value::Text)),
        (SYMBOLS, Some(texts(&claims.symbols))),
        (SOURCES, Some(texts(&claims.sources))),
        (LIMITS, Some(Value::Map(limits))),
        (USES, Some(Value::from(claims.max_uses))),
        (MARKET_DAY, Some(Value::from(claims.market_day.number()))),
        (POLICY, Some(Value::Bytes(claims.policy.to_vec()))),
        (REVISION, Some(Value::from(claims.revision))),
    ]);
    let map = map.into_iter().filter_map(|(key, value)| Some((Value::from(key), value?))).collect();
    let mut bytes = Vec::new();
    ciborium::into_writer(&Value::Map(map), &mut bytes).map_err(|_| GrantError::Encoding)?;
    Ok(bytes)
}

/// What every grant must be, on its way out and on its way in.
fn check(claims: &Claims) -> Result<(), GrantError> {
    let text = |name, text: &str| match text.len() {
        1..=TEXT_BYTES_MAX if text.bytes().all(|byte| byte.is_ascii_graphic()) => Ok(()),
        _ => Err(GrantError::Claim(name)),
    };
    let texts = |name, set: &BTreeSet<String>| match set.len() {
        0..=MEMBERS_MAX => set.iter().try_for_each(|member| text(name, member)),
        _ => Err(GrantError::Claim(name)),
    };
    let demand = |name, holds: bool| if holds { Ok(()) } else { Err(GrantError::Claim(name)) };
    text("task", &claims.task)?;
    text("sub", &claims.holder)?;
    claims.portfolio.as_deref().map_or(Ok(()), |portfolio| text("portfolio", portfolio))?;
    texts("symbols", &claims.symbols)?;
    texts("sources", &claims.sources)?;
    let lower_hex = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    demand("cti", claims.grant.len() == 32 && claims.grant.bytes().all(lower_hex))?;
    demand("sub", issuer_of(&claims.holder).is_some())?;
    demand("actions", !claims.actions.is_empty())?;
    demand("uses", claims.max_uses > 0)?;
    demand("nbf", claims.not_before >= 0)?;
    demand("exp", claims.expires > claims.not_before)?;
    demand("limits", claims.limits.notional.is_none_or(|notional| notional >= 0))?;
    demand("limits", claims.limits.order_notional.is_none_or(|notional| notional >= 0))
}

/// The claims of a payload by key, each to be taken exactly once.
struct Fields(BTreeMap<i64, Value>);

impl Fields {
    fn parse(payload: &[u8]) -> Result<Self, GrantError> {
        let value: Value = ciborium::de::from_reader_with_recursion_limit(payload, DEPTH_MAX)
            .map_err(|_| GrantError::Envelope)?;
        Self::from_map(value).ok_or(GrantError::UnknownClaim)
    }

    /// `None` when it is no map, a key is no integer, or a key occurs twice.
    fn from_map(value: Value) -> Option<Self> {
        let mut fields = BTreeMap::new();
        for (key, value) in value.into_map().ok()? {
            let key = i64::try_from(i128::from(key.as_integer()?)).ok()?;
            if fields.insert(key, value).is_some() {
                return None;
            }
        }
        Some(Self(fields))
    }

    fn take(&mut self, key: i64, name: &'static str) -> Result<Value, GrantError> {
        self.0.remove(&key).ok_or(GrantError::Missing(name))
    }

    fn text(&mut self, key: i64, name: &'static str) -> Result<String, GrantError> {
        self.take(key, name)?.into_text().map_err(|_| GrantError::Claim(name))
    }

    fn number<T: TryFrom<i128>>(&mut self, key: i64, name: &'static str) -> Result<T, GrantError> {
        let number = self.take(key, name)?.as_integer().ok_or(GrantError::Claim(name))?;
        T::try_from(i128::from(number)).map_err(|_| GrantError::Claim(name))
    }

    fn optional<T: TryFrom<i128>>(&mut self, key: i64, name: &'static str) -> Result<Option<T>, GrantError> {
        if self.0.contains_key(&key) { self.number(key, name).map(Some) } else { Ok(None) }
    }

    fn bytes<const N: usize>(&mut self, key: i64, name: &'static str) -> Result<[u8; N], GrantError> {
        let bytes = self.take(key, name)?.into_bytes().map_err(|_| GrantError::Claim(name))?;
        bytes.try_into().map_err(|_| GrantError::Claim(name))
    }

    fn map(&mut self, key: i64, name: &'static str) -> Result<Fields, GrantError> {
        Self::from_map(self.take(key, name)?).ok_or(GrantError::Claim(name))
    }

    fn texts(&mut self, key: i64, name: &'static str) -> Result<BTreeSet<String>, GrantError> {
        let array = self.take(key, name)?.into_array().map_err(|_| GrantError::Claim(name))?;
        array.into_iter().map(|text| text.into_text().map_err(|_| GrantError::Claim(name))).collect()
    }

    fn end(&self, otherwise: GrantError) -> Result<(), GrantError> {
        if self.0.is_empty() { Ok(()) } else { Err(otherwise) }
    }

    fn into_claims(mut self) -> Result<Claims, GrantError> {
        let issuer = self.text(ISSUER, "iss")?;
        let audience = Audience::parse(&self.text(AUDIENCE, "aud")?).ok_or(GrantError::Claim("aud"))?;
        let mut confirmation = self.map(CONFIRMATION, "cnf")?;
        let mut limits = self.map(LIMITS, "limits")?;
        let actions = self.texts(ACTIONS, "actions")?;
        let actions: Option<BTreeSet<Action>> = actions.iter().map(|action| Action::parse(action)).collect();
        let market_day = MarketDay::from_number(self.number(MARKET_DAY, "market day")?);
        let portfolio = match self.0.contains_key(&PORTFOLIO) {
            true => Some(self.text(PORTFOLIO, "portfolio")?),
            false => None,
        };
        let claims = Claims {
            grant: keys::to_hex(&self.bytes::<16>(GRANT, "cti")?),
            task: self.text(TASK, "task")?,
            holder: self.text(SUBJECT, "sub")?,
            epoch: self.number(EPOCH, "epoch")?,
            holder_key: confirmation.bytes(CONFIRMATION_KEY, "cnf")?,
            audience,
            actions: actions.ok_or(GrantError::Claim("actions"))?,
            portfolio,
            symbols: self.texts(SYMBOLS, "symbols")?,
            sources: self.texts(SOURCES, "sources")?,
            limits: Limits {
                notional: limits.optional(LIMIT_NOTIONAL, "limits")?,
                order_notional: limits.optional(LIMIT_ORDER_NOTIONAL, "limits")?,
                orders: limits.optional(LIMIT_ORDERS, "limits")?,
                rows: limits.optional(LIMIT_ROWS, "limits")?,
            },
            max_uses: self.number(USES, "uses")?,
            market_day: market_day.ok_or(GrantError::Claim("market day"))?,
            not_before: self.number(NOT_BEFORE, "nbf")?,
            expires: self.number(EXPIRES, "exp")?,
            policy: self.bytes(POLICY, "policy")?,
            revision: self.number(REVISION, "revision")?,
        };
        confirmation.end(GrantError::Claim("cnf"))?;
        limits.end(GrantError::Claim("limits"))?;
        self.end(GrantError::UnknownClaim)?;
        if issuer_of(&claims.holder) != Some(issuer) {
            return Err(GrantError::Claim("iss"));
        }
        check(&claims)?;
        Ok(claims)
    }
}

#[cfg(test)]
pub(crate) mod tests;
