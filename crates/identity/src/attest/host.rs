//! The attestor *x509pop*: a host proves that it holds the key of a certificate that somebody else gave it.
//!
//! INVARIANT: how many certificates there are, how large they are and what keys they have is checked before any signature
//! is; the name is read from the certificate whose key signed and whose chain was verified.

use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use rustls_pki_types::{CertificateDer, SignatureVerificationAlgorithm, UnixTime};
use serde::{Deserialize, Serialize};
use webpki::{EndEntityCert, KeyUsage, aws_lc_rs};
use x509_parser::oid_registry;
use x509_parser::public_key::PublicKey;

use super::{Facts, Unattested};
use crate::danger::{Defence, Switches};
use crate::entry::HostCertificate;
use crate::{IdentityError, leaf};

/// Most certificates that a host shows, its own first.
pub const CHAIN_MAX: usize = 3;

/// Most bytes of all of them together.
pub const CHAIN_BYTES_MAX: usize = 16 * 1024;

/// Sizes of RSA keys that are looked at. Bits.
const RSA_BITS: std::ops::RangeInclusive<usize> = 2048..=4096;

/// What a host shows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostEvidence {
    /// Its certificate and those between it and a root, DER in base64.
    pub chain: Vec<String>,
    /// By its key, over the challenge: ECDSA with SHA-256, Ed25519, or RSA-PSS with SHA-256; in base64.
    pub signature: String,
}

/// How certificates may be signed.
const CHAIN_ALGORITHMS: &[&dyn SignatureVerificationAlgorithm] = &[
    aws_lc_rs::ECDSA_P256_SHA256,
    aws_lc_rs::ECDSA_P256_SHA384,
    aws_lc_rs::ED25519,
    aws_lc_rs::RSA_PKCS1_2048_8192_SHA256,
    aws_lc_rs::RSA_PKCS1_2048_8192_SHA384,
    aws_lc_rs::RSA_PKCS1_2048_8192_SHA512,
];

/// How the challenge may be signed, by the kind of key: one way each.
const PROOF_ALGORITHMS: &[&dyn SignatureVerificationAlgorithm] =
    &[aws_lc_rs::ECDSA_P256_SHA256, aws_lc_rs::ED25519, aws_lc_rs::RSA_PSS_2048_8192_SHA256_LEGACY_KEY];

/// Accepts a certificate of a form, a size and a key that are worth verifying.
///
/// # Errors
/// [`IdentityError::Certificate`] or [`IdentityError::PublicKey`] when it is not.
pub(crate) fn check_certificate(der: &[u8]) -> Result<(), IdentityError> {
    let certificate = leaf::parse_certificate(der)?;
    let signed = &certificate.signature_algorithm.algorithm;
    let strong = [
        oid_registry::OID_SIG_ECDSA_WITH_SHA256,
        oid_registry::OID_SIG_ECDSA_WITH_SHA384,
        oid_registry::OID_SIG_ED25519,
        oid_registry::OID_PKCS1_SHA256WITHRSA,
        oid_registry::OID_PKCS1_SHA384WITHRSA,
        oid_registry::OID_PKCS1_SHA512WITHRSA,
    ];
    if !strong.contains(signed) {
        return Err(IdentityError::Certificate("signed in a way that is not accepted"));
    }
    let spki = certificate.public_key();
    if spki.algorithm.algorithm == oid_registry::OID_SIG_ED25519 {
        return Ok(());
    }
    match spki.parsed() {
        Ok(PublicKey::EC(_)) => leaf::check_p256(spki.raw),
        Ok(PublicKey::RSA(rsa)) if RSA_BITS.contains(&rsa.key_size()) => Ok(()),
        _ => Err(IdentityError::PublicKey("only P-256, Ed25519, and RSA from 2048 to 4096 bits")),
    }
}

/// Reads a chain, having counted and measured it.
fn read_chain(shown: &HostEvidence, switches: Switches) -> Result<Vec<CertificateDer<'static>>, Unattested> {
    let form = || Unattested::HostForm;
    if shown.chain.is_empty() {
        return Err(form());
    }
    let text: usize = shown.chain.iter().map(String::len).sum();
    let too_large = shown.chain.len() > CHAIN_MAX || text > CHAIN_BYTES_MAX / 3 * 4 + 4 * CHAIN_MAX;
    if too_large && switches.on(Defence::HostCaps) {
        return Err(form());
    }
    let decode = |text: &String| BASE64_STANDARD.decode(text).map_err(|_| form());
    let chain = shown.chain.iter().map(decode).collect::<Result<Vec<_>, _>>()?;
    if switches.on(Defence::HostCaps) {
        for certificate in &chain {
            check_certificate(certificate).map_err(|_| form())?;
        }
    }
    Ok(chain.into_iter().map(CertificateDer::from).collect())
}

/// Whether a host is the one that an entry demands. `bound` is what it must have signed, `now` in seconds since the Unix
/// epoch.
pub(super) fn is_host(
    demanded: &HostCertificate,
    shown: &HostEvidence,
    bound: &[u8; 32],
    now: i64,
    switches: Switches,
    facts: &mut Facts,
) -> Result<(), Unattested> {
    let chain = read_chain(shown, switches)?;
    let signature = BASE64_STANDARD.decode(&shown.signature).map_err(|_| Unattested::HostForm)?;
    let (first, between) = chain.split_first().ok_or(Unattested::HostForm)?;
    let leaf = EndEntityCert::try_from(first).map_err(|_| Unattested::HostForm)?;
    let roots = demanded.roots.iter().filter_map(|root| BASE64_STANDARD.decode(root).ok());
    let roots: Vec<CertificateDer<'static>> = roots.map(CertificateDer::from).collect();
    let anchors: Vec<_> =
        roots.iter().filter_map(|root| webpki::anchor_from_trusted_cert(root).ok()).collect();
    let time = UnixTime::since_unix_epoch(Duration::from_secs(u64::try_from(now).unwrap_or(0)));
    let usage = KeyUsage::client_auth();
    let path = leaf.verify_for_usage(CHAIN_ALGORITHMS, &anchors, between, time, usage, None, None);
    if path.is_err() && switches.on(Defence::HostChain) {
        return Err(Unattested::HostChain);
    }
    if !leaf.valid_dns_names().any(|name| name == demanded.name) && switches.on(Defence::HostName) {
        return Err(Unattested::HostName);
    }
    let signed = |algorithm: &&dyn SignatureVerificationAlgorithm| {
        leaf.verify_signature(*algorithm, bound, &signature).is_ok()
    };
    if !PROOF_ALGORITHMS.iter().any(signed) && switches.on(Defence::HostSignature) {
        return Err(Unattested::HostSignature);
    }
    facts.insert("x509pop.name".to_owned(), demanded.name.clone());
    facts.insert("x509pop.certificate".to_owned(), keys::Digest::of(first).to_string());
    Ok(())
}
