//! Credentials: a secret that only a TPM can open which holds two keys, the one that it was made for and the one that it
//! names (TPM 2.0 Library, Part 1, chapter 24, *Credential Protection*).
//!
//! All that is random is handed in, but for the padding of RSA, which the library draws by itself.

use aws_lc_rs::agreement::{self, ECDH_P256, PrivateKey};
use aws_lc_rs::cipher::{AES_128, EncryptingKey, EncryptionContext, UnboundCipherKey};
use aws_lc_rs::hmac::{self, HMAC_SHA256};
use aws_lc_rs::iv::FixedLength;
use aws_lc_rs::rsa::{OAEP_SHA256_MGF1SHA256, OaepPublicEncryptingKey, PublicEncryptingKey};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use keys::Digest;
use zeroize::Zeroizing;

use super::Unattested;
use super::tpm::{PublicKey, TpmKeys};

/// What a credential's seed is encrypted for; ends in a zero byte.
const IDENTITY: &[u8] = b"IDENTITY\0";

/// What stands before a credential in the files of the TPM tools: a magic number and version 1.
const FILE_HEAD: [u8; 8] = [0xba, 0xdc, 0xc0, 0xde, 0, 0, 0, 1];

/// Makes the credential for a TPM's two keys, as `tpm2_activatecredential` reads it, in base64.
pub(super) fn make(keys: &TpmKeys, secret: &[u8; 32], random: &[u8; 32]) -> Result<String, Unattested> {
    let (seed, encrypted_seed) = match &keys.ek {
        PublicKey::Rsa { modulus, exponent } => {
            (Zeroizing::new(*random), encrypted(modulus, exponent, random).ok_or(Unattested::TpmForm)?)
        }
        PublicKey::P256 { x, y } => agreed(x, y, random).ok_or(Unattested::TpmForm)?,
    };
    let identity = sealed(&*seed, &keys.ak_name, secret).ok_or(Unattested::TpmForm)?;
    let integrity = derived(&*seed, b"INTEGRITY\0", &[], 256);
    let outer =
        hmac::sign(&hmac::Key::new(HMAC_SHA256, &integrity), &[identity.as_slice(), &keys.ak_name].concat());
    let object = [sized(outer.as_ref()), identity].concat();
    Ok(BASE64_STANDARD.encode([&FILE_HEAD[..], &sized(&object), &sized(&encrypted_seed)].concat()))
}

/// Bytes with their length in front of them.
fn sized(bytes: &[u8]) -> Vec<u8> {
    let size = u16::try_from(bytes.len()).unwrap_or(u16::MAX);
    [&size.to_be_bytes()[..], bytes].concat()
}

/// KDFa (Part 1, 11.4.10.2) for at most 256 bits, which one round gives.
fn derived(key: &[u8], label: &[u8], context: &[u8], bits: u32) -> Zeroizing<Vec<u8>> {
    let message = [&1_u32.to_be_bytes()[..], label, context, &bits.to_be_bytes()].concat();
    let tag = hmac::sign(&hmac::Key::new(HMAC_SHA256, key), &message);
    let bytes = usize::try_from(bits / 8).unwrap_or(0);
    Zeroizing::new(tag.as_ref().iter().copied().take(bytes).collect())
}

/// The secret under a key from the seed, bound to the AK's name.
fn sealed(seed: &[u8], name: &[u8], secret: &[u8; 32]) -> Option<Vec<u8>> {
    let key = derived(seed, b"STORAGE\0", name, 128);
    let key = UnboundCipherKey::new(&AES_128, &key).ok()?;
    let mut bytes = sized(secret);
    // The seed is used once, so a vector of zeros is, too.
    let context = EncryptionContext::Iv128(FixedLength::from(&[0; 16]));
    EncryptingKey::cfb128(key).ok()?.less_safe_encrypt(&mut bytes, context).ok()?;
    Some(bytes)
}

/// A seed under an RSA key.
fn encrypted(modulus: &[u8], exponent: &[u8], seed: &[u8; 32]) -> Option<Vec<u8>> {
    let key = PublicEncryptingKey::from_der(&rsa_spki(modulus, exponent)).ok()?;
    let key = OaepPublicEncryptingKey::new(key).ok()?;
    let mut out = vec![0; key.ciphertext_size()];
    let written = key.encrypt(&OAEP_SHA256_MGF1SHA256, seed, &mut out, Some(IDENTITY)).ok()?;
    Some(written.to_vec())
}

/// A seed that follows from a key of the moment and the EK, and the public half of the key of the moment.
fn agreed(x: &[u8; 32], y: &[u8; 32], random: &[u8; 32]) -> Option<(Zeroizing<[u8; 32]>, Vec<u8>)> {
    let own = PrivateKey::from_private_key(&ECDH_P256, random).ok()?;
    let public = own.compute_public_key().ok()?;
    let (own_x, own_y) = public.as_ref().get(1..)?.split_at_checked(32)?;
    let peer = agreement::UnparsedPublicKey::new(&ECDH_P256, PublicKey::point(x, y));
    let seed = agreement::agree(&own, peer, (), |shared| {
        // KDFe (Part 1, 11.4.10.3): one round.
        let parts: [&[u8]; 5] = [&1_u32.to_be_bytes(), shared, IDENTITY, own_x, x];
        Ok(Zeroizing::new(Digest::of_parts(&parts).0))
    });
    Some((seed.ok()?, [sized(own_x), sized(own_y)].concat()))
}

/// SubjectPublicKeyInfo of an RSA key (RFC 8017, A.1).
fn rsa_spki(modulus: &[u8], exponent: &[u8]) -> Vec<u8> {
    const RSA_ENCRYPTION: [u8; 15] =
        [0x30, 0x0d, 0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01, 0x05, 0x00];
    let integer = |bytes: &[u8]| {
        let high = bytes.first().is_some_and(|first| first & 0x80 != 0);
        der(0x02, &[if high { &[0][..] } else { &[] }, bytes].concat())
    };
    let key = der(0x30, &[integer(modulus), integer(exponent)].concat());
    der(0x30, &[&RSA_ENCRYPTION[..], &der(0x03, &[&[0], key.as_slice()].concat())].concat())
}

/// Tag, length and contents in DER.
fn der(tag: u8, contents: &[u8]) -> Vec<u8> {
    let length = contents.len().to_be_bytes();
    let significant: Vec<u8> = length.iter().copied().skip_while(|byte| *byte == 0).collect();
    let mut out = vec![tag];
    match (contents.len(), u8::try_from(significant.len())) {
        (..128, _) => out.push(significant.first().copied().unwrap_or(0)),
        (_, Ok(count)) => {
            out.push(0x80 | count);
            out.extend(significant);
        }
        (_, Err(_)) => {}
    }
    out.extend_from_slice(contents);
    out
}
