//! The two primitives under everything here that encrypts: AES-256-GCM, and HMAC-SHA256 as a derivation.
//!
//! Private to the crate. Knows bytes only: no document, no place, no meaning. It draws no randomness; nonces
//! come from the caller or are derived from the caller's entropy.
//!
//! INVARIANT: nothing decrypted is handed out before its tag was verified, and what is handed out erases
//! itself.

use aes_gcm::aead::{AeadInOut as _, KeyInit as _};
use aes_gcm::{Aes256Gcm, Nonce, Tag};
use sha2::{Digest as _, Sha256};
use zeroize::{Zeroize as _, Zeroizing};

/// Length of a nonce. Bytes.
pub(crate) const NONCE: usize = 12;

/// Length of a tag. Bytes.
pub(crate) const TAG: usize = 16;

/// Block of SHA-256, which is what HMAC pads its key to. Bytes.
const BLOCK: usize = 64;

/// The cipher refused: a wrong key, wrong associated data, changed bytes, or too many of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Refused;

/// Encrypts to `nonce ‖ ciphertext ‖ tag`.
pub(crate) fn encrypt(
    key: &[u8; 32],
    nonce: &[u8; NONCE],
    aad: &[u8],
    plaintext: &[u8],
) -> Result<Vec<u8>, Refused> {
    let cipher = Aes256Gcm::new(key.into());
    let mut sealed = Vec::with_capacity(NONCE + plaintext.len() + TAG);
    sealed.extend_from_slice(nonce);
    sealed.extend_from_slice(plaintext);
    let body = sealed.get_mut(NONCE..).ok_or(Refused)?;
    let tag = cipher.encrypt_inout_detached(&Nonce::from(*nonce), aad, body.into());
    let Ok(tag) = tag else {
        sealed.zeroize();
        return Err(Refused);
    };
    sealed.extend_from_slice(&tag);
    Ok(sealed)
}

/// Decrypts what [`encrypt`] made.
pub(crate) fn decrypt(key: &[u8; 32], aad: &[u8], sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, Refused> {
    let (nonce, rest) = sealed.split_first_chunk::<NONCE>().ok_or(Refused)?;
    let (body, tag) = rest.split_last_chunk::<TAG>().ok_or(Refused)?;
    let cipher = Aes256Gcm::new(key.into());
    let mut plaintext = Zeroizing::new(body.to_vec());
    let tag = Tag::from(*tag);
    cipher
        .decrypt_inout_detached(&Nonce::from(*nonce), aad, plaintext.as_mut_slice().into(), &tag)
        .map_err(|_| Refused)?;
    Ok(plaintext)
}

/// Pieces as one string of bytes that no other pieces make: each behind its length in eight bytes.
pub(crate) fn join(pieces: &[&[u8]]) -> Vec<u8> {
    let mut joined = Vec::with_capacity(pieces.iter().map(|piece| piece.len() + 8).sum());
    for piece in pieces {
        joined.extend_from_slice(&(piece.len() as u64).to_be_bytes());
        joined.extend_from_slice(piece);
    }
    joined
}

/// 32 bytes that depend on all of the entropy, the label and the context (HMAC-SHA256, RFC 2104).
///
/// The context carries whatever must not meet the same result twice, the plaintext included: a caller who
/// hands in the same entropy again gets other keys and nonces for other contents, instead of a broken cipher.
pub(crate) fn derive(entropy: &[u8; 32], label: &str, context: &[&[u8]]) -> Zeroizing<[u8; 32]> {
    let mut pad = Zeroizing::new([0u8; BLOCK]);
    for (padded, byte) in pad.iter_mut().zip(entropy) {
        *padded = *byte;
    }
    let masked = |mask: u8| Zeroizing::new(pad.map(|byte| byte ^ mask));
    let mut inner = Sha256::new();
    inner.update(masked(0x36).as_slice());
    for piece in std::iter::once(&label.as_bytes()).chain(context) {
        inner.update((piece.len() as u64).to_be_bytes());
        inner.update(piece);
    }
    let inner = Zeroizing::new(<[u8; 32]>::from(inner.finalize()));
    let mut outer = Sha256::new();
    outer.update(masked(0x5c).as_slice());
    outer.update(inner.as_slice());
    Zeroizing::new(outer.finalize().into())
}

/// A nonce from derived bytes.
pub(crate) fn nonce(derived: &[u8; 32]) -> [u8; NONCE] {
    derived.first_chunk::<NONCE>().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_encrypted_is_decrypted_only_with_the_same_key_and_data() {
        let sealed = encrypt(&[1; 32], &[2; NONCE], b"aad", b"plain").unwrap();
        assert_eq!(sealed.len(), NONCE + 5 + TAG);
        assert_eq!(decrypt(&[1; 32], b"aad", &sealed).unwrap().as_slice(), b"plain");
        assert_eq!(decrypt(&[3; 32], b"aad", &sealed), Err(Refused));
        assert_eq!(decrypt(&[1; 32], b"AAD", &sealed), Err(Refused));
        for short in 0..sealed.len() {
            assert_eq!(decrypt(&[1; 32], b"aad", &sealed[..short]), Err(Refused));
        }
    }

    #[test]
    fn the_derivation_is_hmac_sha256() {
        // HMAC-SHA256 with key 07…07 over (8 bytes length 5)"label"(8 bytes length 7)"context", by another
        // program.
        let derived = derive(&[7; 32], "label", &[b"context"]);
        assert_eq!(
            crate::to_hex(&*derived),
            "93dd8d1bbde8c8d31d609d0498b5ba2e955d85d29ef0140c2b482ec9849c0d2a"
        );
    }

    #[test]
    fn pieces_that_join_alike_are_alike() {
        assert_ne!(join(&[b"ab", b"c"]), join(&[b"a", b"bc"]));
        assert_ne!(join(&[b"abc"]), join(&[b"abc", b""]));
        assert_ne!(derive(&[7; 32], "l", &[b"ab", b"c"]), derive(&[7; 32], "l", &[b"a", b"bc"]));
        assert_ne!(derive(&[7; 32], "la", &[b"b"]), derive(&[7; 32], "l", &[b"ab"]));
    }
}
