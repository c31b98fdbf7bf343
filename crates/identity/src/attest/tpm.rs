//! The attestor *tpm2*: a TPM 2.0 proves that it is a certain one, and in which state its machine started.
//!
//! Three steps, after the TCG's *TPM 2.0 Library*: the endorsement key (EK) is the one that the entry names; a credential
//! made for it and for the attestation key (AK) was opened, so both are in one TPM; a quote signed by the AK is about this
//! challenge, and over the registers that the entry names.
//!
//! INVARIANT: what a quote says is read from the very bytes whose signature was verified, after it was.

use std::collections::BTreeSet;

use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, RSA_PKCS1_2048_8192_SHA256, RsaPublicKeyComponents, UnparsedPublicKey,
};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use keys::Digest;
use serde::{Deserialize, Serialize};

use super::challenge::Challenge;
use super::{Facts, Unattested};
use crate::danger::{Defence, Switches};
use crate::entry::TpmState;

/// Longest of anything that a TPM says, in bytes.
pub const BYTES_MAX: usize = 2048;

// Numbers of the TCG algorithm registry and of Part 2 of the library.
const RSA: u16 = 0x0001;
const AES: u16 = 0x0006;
pub(super) const SHA256: u16 = 0x000b;
const NULL: u16 = 0x0010;
const RSASSA: u16 = 0x0014;
const ECDSA: u16 = 0x0018;
const ECC: u16 = 0x0023;
const CFB: u16 = 0x0043;
const NIST_P256: u16 = 0x0003;
const GENERATED: u32 = 0xff54_4347;
const ATTEST_QUOTE: u16 = 0x8018;

const FIXED_TPM: u32 = 1 << 1;
const FIXED_PARENT: u32 = 1 << 4;
const SENSITIVE_DATA_ORIGIN: u32 = 1 << 5;
const RESTRICTED: u32 = 1 << 16;
const DECRYPT: u32 = 1 << 17;
const SIGN: u32 = 1 << 18;
const BOUND: u32 = FIXED_TPM | FIXED_PARENT | SENSITIVE_DATA_ORIGIN | RESTRICTED;

/// Public halves of a TPM's keys, each a `TPM2B_PUBLIC` as the TPM tools write it, in base64.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TpmPublics {
    /// Endorsement key.
    pub ek: String,
    /// Attestation key.
    pub ak: String,
}

/// What a TPM shows for a challenge.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TpmEvidence {
    /// The secret out of the credential, 64 hexadecimal digits.
    pub secret: String,
    /// The quote (`TPMS_ATTEST`), in base64.
    pub quote: String,
    /// The AK's signature over it (`TPMT_SIGNATURE`), in base64.
    pub signature: String,
}

/// A public key of a TPM.
#[derive(PartialEq, Eq)]
pub(super) enum PublicKey {
    /// Modulus and exponent, big end first.
    Rsa { modulus: Vec<u8>, exponent: Vec<u8> },
    /// Coordinates on P-256, each 32 bytes.
    P256 { x: [u8; 32], y: [u8; 32] },
}

impl PublicKey {
    /// The point of a P-256 key, uncompressed.
    pub(super) fn point(x: &[u8; 32], y: &[u8; 32]) -> Vec<u8> {
        [&[4], &x[..], &y[..]].concat()
    }
}

/// The keys of a TPM that asks for a challenge, of a form in which they can attest.
#[derive(PartialEq, Eq)]
pub(super) struct TpmKeys {
    /// SHA-256 of the EK as it was shown.
    ek_digest: String,
    pub(super) ek: PublicKey,
    ak: PublicKey,
    /// Attributes of the AK were those of a key that never leaves its TPM.
    ak_is_bound: bool,
    /// The AK's name: the algorithm, and the digest of its public area.
    pub(super) ak_name: Vec<u8>,
}

/// Bytes that are read once, from the front.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], Unattested> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or(Unattested::TpmForm)?;
        self.0 = rest;
        Ok(taken)
    }

    fn number<const N: usize>(&mut self) -> Result<[u8; N], Unattested> {
        self.take(N)?.try_into().map_err(|_| Unattested::TpmForm)
    }

    fn u16(&mut self) -> Result<u16, Unattested> {
        self.number().map(u16::from_be_bytes)
    }

    fn u32(&mut self) -> Result<u32, Unattested> {
        self.number().map(u32::from_be_bytes)
    }

    fn is(&mut self, expected: u16) -> Result<(), Unattested> {
        if self.u16()? == expected { Ok(()) } else { Err(Unattested::TpmForm) }
    }

    /// Bytes with their length in front of them.
    fn sized(&mut self) -> Result<&'a [u8], Unattested> {
        let size = self.u16()?;
        self.take(usize::from(size))
    }

    fn end(self) -> Result<(), Unattested> {
        if self.0.is_empty() { Ok(()) } else { Err(Unattested::TpmForm) }
    }
}

fn decode(text: &str) -> Result<Vec<u8>, Unattested> {
    if text.len() > BYTES_MAX * 2 {
        return Err(Unattested::TpmForm);
    }
    let bytes = BASE64_STANDARD.decode(text).map_err(|_| Unattested::TpmForm)?;
    if bytes.len() > BYTES_MAX { Err(Unattested::TpmForm) } else { Ok(bytes) }
}

/// A number of at most 32 bytes, filled up in front.
fn coordinate(bytes: &[u8]) -> Result<[u8; 32], Unattested> {
    let mut full = [0; 32];
    let from = full.len().checked_sub(bytes.len()).ok_or(Unattested::TpmForm)?;
    full.get_mut(from..).ok_or(Unattested::TpmForm)?.copy_from_slice(bytes);
    Ok(full)
}

/// What a public area is read as.
enum Kind {
    /// A storage key that opens credentials.
    Endorsement,
    /// A key that signs.
    Attestation,
}

/// Reads a `TPMT_PUBLIC` (Part 2, 12.2.4): its attributes and its key.
fn public_area(area: &[u8], kind: &Kind) -> Result<(u32, PublicKey), Unattested> {
    let mut reader = Reader(area);
    let algorithm = reader.u16()?;
    reader.is(SHA256)?;
    let attributes = reader.u32()?;
    reader.sized()?;
    match kind {
        Kind::Endorsement => {
            reader.is(AES)?;
            reader.is(128)?;
            reader.is(CFB)?;
            reader.is(NULL)?;
        }
        Kind::Attestation => {
            reader.is(NULL)?;
            reader.is(if algorithm == RSA { RSASSA } else { ECDSA })?;
            reader.is(SHA256)?;
        }
    }
    let key = match algorithm {
        RSA => {
            let bits = reader.u16()?;
            let exponent = match reader.u32()? {
                0 | 65_537 => vec![1, 0, 1],
                _ => return Err(Unattested::TpmForm),
            };
            let modulus = reader.sized()?;
            if !matches!(bits, 2048 | 3072 | 4096) || modulus.len() * 8 != usize::from(bits) {
                return Err(Unattested::TpmForm);
            }
            PublicKey::Rsa { modulus: modulus.to_vec(), exponent }
        }
        ECC => {
            reader.is(NIST_P256)?;
            reader.is(NULL)?;
            PublicKey::P256 { x: coordinate(reader.sized()?)?, y: coordinate(reader.sized()?)? }
        }
        _ => return Err(Unattested::TpmForm),
    };
    reader.end()?;
    Ok((attributes, key))
}

/// The public area within a `TPM2B_PUBLIC`.
fn unwrapped(bytes: &[u8]) -> Result<&[u8], Unattested> {
    let mut reader = Reader(bytes);
    let area = reader.sized()?;
    reader.end()?;
    Ok(area)
}

impl TpmKeys {
    /// Reads the keys that a TPM shows.
    pub(super) fn parse(publics: &TpmPublics) -> Result<Self, Unattested> {
        let (ek, ak) = (decode(&publics.ek)?, decode(&publics.ak)?);
        let ek_digest = Digest::of(&ek).to_string();
        let (attributes, ek) = public_area(unwrapped(&ek)?, &Kind::Endorsement)?;
        if attributes & (BOUND | DECRYPT | SIGN) != BOUND | DECRYPT {
            return Err(Unattested::TpmForm);
        }
        let area = unwrapped(&ak)?;
        let ak_name = [&SHA256.to_be_bytes()[..], &Digest::of(area).0].concat();
        let (attributes, ak) = public_area(area, &Kind::Attestation)?;
        let ak_is_bound = attributes & (BOUND | DECRYPT | SIGN) == BOUND | SIGN;
        Ok(Self { ek_digest, ek, ak, ak_is_bound, ak_name })
    }
}

/// What a quote says.
struct Quote<'a> {
    about: &'a [u8],
    registers: BTreeSet<u8>,
    digest: &'a [u8],
}

/// Reads a quote (`TPMS_ATTEST`, Part 2, 10.12.8) over registers of the SHA-256 bank.
fn read_quote(bytes: &[u8]) -> Result<Quote<'_>, Unattested> {
    let mut reader = Reader(bytes);
    if reader.u32()? != GENERATED {
        return Err(Unattested::TpmForm);
    }
    reader.is(ATTEST_QUOTE)?;
    reader.sized()?;
    let about = reader.sized()?;
    // Clock, resets, restarts, whether the clock is safe; and the firmware's version.
    reader.take(8 + 4 + 4 + 1 + 8)?;
    if reader.u32()? != 1 {
        return Err(Unattested::TpmForm);
    }
    reader.is(SHA256)?;
    let [size] = reader.number()?;
    let mut registers = BTreeSet::new();
    for (byte, bits) in (0_u8..).zip(reader.take(usize::from(size.min(4)))?) {
        registers.extend((0..8).filter(|bit| bits & (1 << bit) != 0).map(|bit| byte * 8 + bit));
    }
    let digest = reader.sized()?;
    reader.end()?;
    Ok(Quote { about, registers, digest })
}

/// Whether a key signed a message, by a `TPMT_SIGNATURE` (Part 2, 11.3.4).
fn is_signed(key: &PublicKey, message: &[u8], signature: &[u8]) -> Result<bool, Unattested> {
    let mut reader = Reader(signature);
    match key {
        PublicKey::Rsa { modulus, exponent } => {
            reader.is(RSASSA)?;
            reader.is(SHA256)?;
            let signature = reader.sized()?;
            reader.end()?;
            let key = RsaPublicKeyComponents { n: modulus, e: exponent };
            Ok(key.verify(&RSA_PKCS1_2048_8192_SHA256, message, signature).is_ok())
        }
        PublicKey::P256 { x, y } => {
            reader.is(ECDSA)?;
            reader.is(SHA256)?;
            let (r, s) = (coordinate(reader.sized()?)?, coordinate(reader.sized()?)?);
            reader.end()?;
            let key = UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, PublicKey::point(x, y));
            Ok(key.verify(message, &[r, s].concat()).is_ok())
        }
    }
}

/// Whether a TPM is the one that an entry demands, in the state that it demands. `bound` is what its quote must be about.
pub(super) fn is_tpm(
    demanded: &TpmState,
    shown: &TpmEvidence,
    challenge: &Challenge,
    bound: &[u8; 32],
    switches: Switches,
    facts: &mut Facts,
) -> Result<(), Unattested> {
    let tpm = challenge.tpm.as_ref().ok_or(Unattested::TpmMissing)?;
    if tpm.keys.ek_digest != demanded.ek && switches.on(Defence::PinnedEk) {
        return Err(Unattested::TpmEk);
    }
    if !tpm.keys.ak_is_bound && switches.on(Defence::Attributes) {
        return Err(Unattested::TpmAk);
    }
    let opened: [u8; 32] = keys::from_hex(&shown.secret).map_err(|_| Unattested::TpmForm)?;
    if !keys::equal_in_constant_time(&opened, &*tpm.secret) && switches.on(Defence::Activation) {
        return Err(Unattested::TpmActivation);
    }
    let (quote, signature) = (decode(&shown.quote)?, decode(&shown.signature)?);
    if !is_signed(&tpm.keys.ak, &quote, &signature)? && switches.on(Defence::QuoteSignature) {
        return Err(Unattested::TpmSignature);
    }
    let said = read_quote(&quote)?;
    if said.about != bound && switches.on(Defence::QuoteChallenge) {
        return Err(Unattested::TpmChallenge);
    }
    if let Some(pcrs) = &demanded.pcrs
        && (said.registers != pcrs.selection || keys::to_hex(said.digest) != pcrs.digest)
        && switches.on(Defence::Pcrs)
    {
        return Err(Unattested::TpmPcrs);
    }
    facts.insert("tpm2.ek".to_owned(), tpm.keys.ek_digest.clone());
    facts.insert("tpm2.pcrs".to_owned(), keys::to_hex(said.digest));
    Ok(())
}
