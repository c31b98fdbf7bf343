//! Shares of a 32-byte secret among people: any k of n give it back, fewer give nothing (Shamir, over
//! GF(256)).
//!
//! Owns: splitting, the text that a person writes down, recovery. Refuses to know what the secret opens.
//! Randomness is handed in. The field's arithmetic takes the same time and touches the same memory whatever
//! it is given.
//!
//! INVARIANT: recovery gives the very secret that was split, or an error; never another one.

use std::fmt;

use zeroize::Zeroizing;

use crate::aead::{derive, join};
use crate::{Digest, equal_in_constant_time, to_hex};

/// Most shares of one secret.
pub const SHARES_MAX: u8 = 16;

/// Longest text of a share that is read, blanks around it included. Bytes.
pub const SHARE_TEXT_MAX: usize = 256;

const PREFIX: &str = "trader-share-1";
const SALT: usize = 8;
const COMMITMENT: usize = 16;

/// Why a secret was not split or recovered. Never says anything of a share's contents.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ShareError {
    /// Not 2 ≤ k ≤ n ≤ [`SHARES_MAX`].
    #[error("at least 2 shares must be needed, of {SHARES_MAX} at most")]
    Numbers,
    /// The text is no share.
    #[error("share {position} is not a share; one is {PREFIX}.<set>.<number>.<needed>.<share>.<check>")]
    Text {
        /// The share's place among those given, from 1.
        position: usize,
    },
    /// The text is a share that was mistyped.
    #[error("share {position} was mistyped; it says that it is number {index}")]
    Mistyped {
        /// The share's place among those given, from 1.
        position: usize,
        /// The number that it claims in its set.
        index: u8,
    },
    /// Fewer shares than are needed.
    #[error("{given} shares were given; {needed} are needed")]
    TooFew {
        /// How many were given.
        given: usize,
        /// How many are needed.
        needed: u8,
    },
    /// One share was given twice.
    #[error("share number {index} was given twice")]
    Twice {
        /// Its number in its set.
        index: u8,
    },
    /// A share belongs to another set than the first.
    #[error("share {position} belongs to another set than share 1")]
    OtherSet {
        /// The share's place among those given, from 1.
        position: usize,
    },
    /// The shares look right, but what they give is not what was split: one at least was forged.
    #[error("these shares do not give the secret that was split")]
    Wrong,
}

impl ShareError {
    /// The reason's one spelling in the log.
    #[must_use]
    pub fn code(self) -> &'static str {
        match self {
            Self::Numbers => "share_numbers",
            Self::Text { .. } => "share_unreadable",
            Self::Mistyped { .. } => "share_mistyped",
            Self::TooFew { .. } => "share_too_few",
            Self::Twice { .. } => "share_twice",
            Self::OtherSet { .. } => "share_other_set",
            Self::Wrong => "share_wrong",
        }
    }
}

/// Which splitting a share belongs to: a salt, and a commitment to the secret by which a wrong result is
/// noticed.
///
/// The commitment is a digest: it tells nothing of a secret of 256 random bits, and could be searched for a
/// weak one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Set {
    salt: [u8; SALT],
    commitment: [u8; COMMITMENT],
    needed: u8,
}

impl Set {
    fn of(secret: &[u8; 32], salt: [u8; SALT], needed: u8) -> Self {
        let committed = Zeroizing::new(join(&[PREFIX.as_bytes(), b"set", &salt, &[needed], secret]));
        let digest = Digest::of(&committed);
        let commitment = digest.0.first_chunk::<COMMITMENT>().copied().unwrap_or_default();
        Self { salt, commitment, needed }
    }

    fn id(&self) -> String {
        to_hex(&self.salt) + &to_hex(&self.commitment)
    }
}

/// One person's share of a secret. Erased from memory when dropped.
pub struct Share {
    set: Set,
    index: u8,
    value: Zeroizing<[u8; 32]>,
}

impl Share {
    /// Parses `trader-share-1.<set id>.<index>.<k>.<hex>.<check>`, blanks around it allowed. The check is the
    /// first 8 hexadecimal digits of the SHA-256 digest of all before its dot.
    ///
    /// # Errors
    /// [`ShareError::Text`] or, when everything but the check fits, [`ShareError::Mistyped`]; position 1 in
    /// both.
    pub fn parse(text: &str) -> Result<Self, ShareError> {
        Self::parse_at(text, 1)
    }

    fn parse_at(text: &str, position: usize) -> Result<Self, ShareError> {
        let unreadable = ShareError::Text { position };
        if text.len() > SHARE_TEXT_MAX {
            return Err(unreadable);
        }
        let (body, check) = text.trim().rsplit_once('.').ok_or(unreadable)?;
        let mut parts = body.split('.');
        let (Some(PREFIX), Some(set), Some(index), Some(needed), Some(value), None) =
            (parts.next(), parts.next(), parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(unreadable);
        };
        let index = number(index).ok_or(unreadable)?;
        let mistyped = ShareError::Mistyped { position, index };
        if !equal_in_constant_time(check.as_bytes(), self::check(body).as_bytes()) {
            return Err(mistyped);
        }
        // Only what we wrote has a check that fits, so anything that is wrong from here on was made up.
        let needed = number(needed).filter(|needed| *needed >= 2).ok_or(unreadable)?;
        let (salt, commitment) = set.split_at_checked(SALT * 2).ok_or(unreadable)?;
        let salt = hex(salt).ok_or(unreadable)?;
        let commitment = hex(commitment).ok_or(unreadable)?;
        let value = Zeroizing::new(hex(value).ok_or(unreadable)?);
        Ok(Self { set: Set { salt, commitment, needed }, index, value })
    }

    /// The share as text, as [`Share::parse`] reads it. A secret: for one person only.
    #[must_use]
    pub fn to_text(&self) -> Zeroizing<String> {
        let value = Zeroizing::new(to_hex(&*self.value));
        let (set, index, needed) = (self.set.id(), self.index, self.set.needed);
        let body = Zeroizing::new(format!("{PREFIX}.{set}.{index}.{needed}.{}", value.as_str()));
        Zeroizing::new(format!("{}.{}", body.as_str(), check(&body)))
    }

    /// The set's identifier: the same in all shares of one splitting.
    #[must_use]
    pub fn set_id(&self) -> String {
        self.set.id()
    }

    /// The share's number in its set, from 1.
    #[must_use]
    pub fn index(&self) -> u8 {
        self.index
    }

    /// How many shares are needed.
    #[must_use]
    pub fn needed(&self) -> u8 {
        self.set.needed
    }
}

impl fmt::Debug for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Share(number {} of set {}, {} needed)", self.index, self.set.id(), self.set.needed)
    }
}

/// Splits a secret into `count` shares, any `needed` of which give it back. `entropy` is 32 random bytes.
///
/// # Errors
/// [`ShareError::Numbers`] unless 2 ≤ `needed` ≤ `count` ≤ [`SHARES_MAX`].
pub fn split(secret: &[u8; 32], needed: u8, count: u8, entropy: &[u8; 32]) -> Result<Vec<Share>, ShareError> {
    if needed < 2 || needed > count || count > SHARES_MAX {
        return Err(ShareError::Numbers);
    }
    let drawn = |what: &str, degree: u8| derive(entropy, what, &[&[degree, needed, count], secret]);
    let salt = drawn("trader-share-1 salt", 0).first_chunk::<SALT>().copied().unwrap_or_default();
    let set = Set::of(secret, salt, needed);
    // One polynomial for each byte; its constant is the secret's byte, its other coefficients are random.
    let coefficients: Vec<_> =
        (1..needed).rev().map(|degree| drawn("trader-share-1 coefficient", degree)).collect();
    let share = |index: u8| {
        let mut value = Zeroizing::new([0; 32]);
        for coefficient in coefficients.iter().map(|drawn| &**drawn).chain([secret]) {
            for (byte, coefficient) in value.iter_mut().zip(coefficient) {
                *byte = multiply(*byte, index) ^ coefficient;
            }
        }
        Share { set, index, value }
    };
    Ok((1..=count).map(share).collect())
}

/// Gives back the secret that was split. All shares given are used: one that does not fit the others is
/// noticed.
///
/// # Errors
/// [`ShareError::TooFew`], [`ShareError::Twice`], [`ShareError::OtherSet`]; [`ShareError::Wrong`] when the
/// shares pass for one set but don't give what was split.
pub fn recover(shares: &[Share]) -> Result<Zeroizing<[u8; 32]>, ShareError> {
    let Some(first) = shares.first() else {
        return Err(ShareError::TooFew { given: 0, needed: 2 });
    };
    for (place, share) in shares.iter().enumerate() {
        if share.set != first.set {
            return Err(ShareError::OtherSet { position: place + 1 });
        }
        if shares.iter().take(place).any(|earlier| earlier.index == share.index) {
            return Err(ShareError::Twice { index: share.index });
        }
    }
    let needed = first.set.needed;
    if shares.len() < usize::from(needed) {
        return Err(ShareError::TooFew { given: shares.len(), needed });
    }
    let (basis, spare) = shares.split_at_checked(usize::from(needed)).ok_or(ShareError::Wrong)?;
    let secret = interpolate(basis, 0);
    let found = Set::of(&secret, first.set.salt, needed);
    let spare_fits = |share: &Share| equal_in_constant_time(&*interpolate(basis, share.index), &*share.value);
    if !equal_in_constant_time(&found.commitment, &first.set.commitment) || !spare.iter().all(spare_fits) {
        return Err(ShareError::Wrong);
    }
    Ok(secret)
}

/// As [`recover`], from shares as people typed them; an error names the one that is at fault.
///
/// # Errors
/// As [`recover`], and [`ShareError::Text`] and [`ShareError::Mistyped`].
pub fn recover_from_texts<T: AsRef<str>>(texts: &[T]) -> Result<Zeroizing<[u8; 32]>, ShareError> {
    if texts.len() > usize::from(SHARES_MAX) {
        return Err(ShareError::Numbers);
    }
    let parse = |(place, text): (usize, &T)| Share::parse_at(text.as_ref(), place + 1);
    recover(&texts.iter().enumerate().map(parse).collect::<Result<Vec<_>, _>>()?)
}

/// The value at `x` of the polynomials that go through the shares (Lagrange). The shares' numbers are all
/// different.
fn interpolate(shares: &[Share], x: u8) -> Zeroizing<[u8; 32]> {
    let mut result = Zeroizing::new([0; 32]);
    for share in shares {
        let weight = shares.iter().filter(|other| other.index != share.index).fold(1, |weight, other| {
            multiply(weight, multiply(x ^ other.index, invert(share.index ^ other.index)))
        });
        for (byte, value) in result.iter_mut().zip(share.value.iter()) {
            *byte ^= multiply(*value, weight);
        }
    }
    result
}

/// A product in GF(256) with the polynomial x⁸+x⁴+x³+x+1: no branch and no table depends on the factors.
fn multiply(left: u8, right: u8) -> u8 {
    let (mut shifted, mut product) = (left, 0);
    for bit in 0..8 {
        product ^= shifted & ((right >> bit) & 1).wrapping_neg();
        shifted = (shifted << 1) ^ (0x1b & (shifted >> 7).wrapping_neg());
    }
    product
}

/// The inverse in GF(256): the 254th power. Zero has none and gives zero; it is never asked for.
fn invert(value: u8) -> u8 {
    // 254 = 2 + 4 + … + 128.
    let (mut square, mut product) = (value, 1);
    for _ in 0..7 {
        square = multiply(square, square);
        product = multiply(product, square);
    }
    product
}

/// The check of a share's text.
fn check(body: &str) -> String {
    to_hex(Digest::of(body.as_bytes()).0.get(..4).unwrap_or_default())
}

/// A number from 1 to [`SHARES_MAX`], in its one spelling.
fn number(text: &str) -> Option<u8> {
    text.parse().ok().filter(|number: &u8| (1..=SHARES_MAX).contains(number) && number.to_string() == text)
}

/// Lower-case hexadecimal digits only: a share has one spelling.
fn hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    crate::from_hex(text).ok().filter(|_| !text.bytes().any(|byte| byte.is_ascii_uppercase()))
}

#[cfg(test)]
mod tests;
