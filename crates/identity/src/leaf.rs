//! What a leaf certificate says, parsed once and strictly.
//!
//! A leaf has a P-256 key, one URI name (the SPIFFE ID), no other name, and a subject of one common name,
//! `epoch=<n>`: the enrolment epoch stands there because X.509 has no field for it and a private extension
//! would say no more. Parsing proves form only; the signature chain and the times are the verifier's to
//! check.

use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::oid_registry::{OID_SIG_ECDSA_WITH_SHA256, OID_SIG_ED25519};
use x509_parser::prelude::FromDer as _;
use x509_parser::x509::X509Name;

use crate::{IdentityError, PeerClass, SpiffeId};

/// Largest certificate that is looked at, in bytes.
pub const CERTIFICATE_BYTES_MAX: usize = 8 * 1024;

/// A P-256 SubjectPublicKeyInfo up to its 64 bytes of coordinates (RFC 5480, section 2): named curve,
/// uncompressed point.
const P256_SPKI_HEAD: [u8; 27] = [
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86,
    0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00, 0x04,
];
const P256_SPKI_BYTES: usize = P256_SPKI_HEAD.len() + 64;

/// The facts of a leaf certificate. Holding one proves its form, not that anybody vouched for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leaf {
    /// Whom the certificate names.
    pub id: SpiffeId,
    /// The class that the id's path says.
    pub class: PeerClass,
    /// SHA-256 of the public key (SubjectPublicKeyInfo, DER).
    pub key: [u8; 32],
    /// Enrolment epoch.
    pub epoch: u32,
    /// Valid from, in seconds since the Unix epoch.
    pub not_before: i64,
    /// Valid until, in seconds since the Unix epoch.
    pub expires: i64,
}

impl Leaf {
    /// Parses a leaf certificate.
    ///
    /// # Errors
    /// [`IdentityError::Certificate`], [`IdentityError::PublicKey`], [`IdentityError::SpiffeId`] or
    /// [`IdentityError::Class`] when it does not have the one accepted form.
    pub fn parse(der: &[u8]) -> Result<Self, IdentityError> {
        let certificate = parse_certificate(der)?;
        check_signature_algorithm(&certificate)?;
        let spki = certificate.public_key().raw;
        check_p256(spki)?;
        let id = svid_of(&certificate)?;
        let class = match PeerClass::of(&id) {
            Some(class) => class,
            None => return Err(IdentityError::Class { id, class: "peers" }),
        };
        Ok(Self {
            id,
            class,
            key: keys::Digest::of(spki).0,
            epoch: parse_epoch(the_one_common_name(certificate.subject())?)?,
            not_before: certificate.validity().not_before.timestamp(),
            expires: certificate.validity().not_after.timestamp(),
        })
    }
}

/// Whom a certificate names by the rules of X.509-SVIDs (SPIFFE, X509-SVID, sections 2 and 4): no authority, a key that
/// signs handshakes and nothing else, one URI.
fn svid_of(certificate: &X509Certificate<'_>) -> Result<SpiffeId, IdentityError> {
    if certificate.is_ca() {
        return Err(IdentityError::Certificate("an authority's certificate is no peer's"));
    }
    let usage = certificate.key_usage().ok().flatten();
    let usage = usage.ok_or(IdentityError::Certificate("it does not say what its key is for"))?.value;
    if !usage.digital_signature() || usage.key_cert_sign() || usage.crl_sign() {
        return Err(IdentityError::Certificate("its key must sign handshakes, and no certificates"));
    }
    SpiffeId::parse(the_one_uri(certificate)?)
}

/// The public key of a self-signed certificate, as a newcomer shows it: it claims no name, only the key.
///
/// # Errors
/// [`IdentityError::Certificate`] or [`IdentityError::PublicKey`] when it is not self-issued with a P-256
/// key.
pub fn newcomer_key(der: &[u8]) -> Result<Vec<u8>, IdentityError> {
    let certificate = parse_certificate(der)?;
    if certificate.is_ca() || certificate.issuer().as_raw() != certificate.subject().as_raw() {
        return Err(IdentityError::Certificate("a newcomer's certificate must be its own issuer's"));
    }
    check_signature_algorithm(&certificate)?;
    let spki = certificate.public_key().raw;
    check_p256(spki)?;
    Ok(spki.to_vec())
}

/// The common name under which a leaf carries its epoch.
pub(crate) fn epoch_name(epoch: u32) -> String {
    format!("epoch={epoch}")
}

fn parse_epoch(text: &str) -> Result<u32, IdentityError> {
    let wrong = IdentityError::Certificate("the subject must be epoch=<number>");
    let Some(Ok(epoch)) = text.strip_prefix("epoch=").map(str::parse::<u32>) else { return Err(wrong) };
    if epoch_name(epoch) == text { Ok(epoch) } else { Err(wrong) }
}

/// Accepts exactly one encoding of a P-256 key, so that a key has one digest.
pub(crate) fn check_p256(spki_der: &[u8]) -> Result<(), IdentityError> {
    if spki_der.len() == P256_SPKI_BYTES && spki_der.starts_with(&P256_SPKI_HEAD) {
        Ok(())
    } else {
        Err(IdentityError::PublicKey("only P-256, named curve, uncompressed"))
    }
}

/// Accepts the algorithms that anybody here signs certificates with: Ed25519, and what a newcomer signs its own with. Any
/// other is refused before a signature is looked at.
fn check_signature_algorithm(certificate: &X509Certificate<'_>) -> Result<(), IdentityError> {
    let accepted = [OID_SIG_ED25519, OID_SIG_ECDSA_WITH_SHA256];
    if accepted.contains(&certificate.signature_algorithm.algorithm) {
        Ok(())
    } else {
        Err(IdentityError::PublicKey("it is signed with an algorithm that is not accepted"))
    }
}

/// Parses an X.509 v3 certificate that fills its bytes and is not too large.
pub(crate) fn parse_certificate(der: &[u8]) -> Result<X509Certificate<'_>, IdentityError> {
    if der.len() > CERTIFICATE_BYTES_MAX {
        return Err(IdentityError::Certificate("larger than 8 KiB"));
    }
    let (rest, certificate) =
        X509Certificate::from_der(der).map_err(|_| IdentityError::Certificate("it cannot be parsed"))?;
    if !rest.is_empty() {
        return Err(IdentityError::Certificate("bytes follow it"));
    }
    if certificate.version() != x509_parser::x509::X509Version::V3 {
        return Err(IdentityError::Certificate("only version 3"));
    }
    Ok(certificate)
}

/// The only attribute of a name, which must be a common name.
pub(crate) fn the_one_common_name<'a>(name: &'a X509Name<'_>) -> Result<&'a str, IdentityError> {
    let wrong = || IdentityError::Certificate("the subject must be one common name");
    let mut attributes = name.iter_attributes();
    let (first, second) = (attributes.next().ok_or_else(wrong)?, attributes.next());
    if second.is_some() || first.attr_type() != &x509_parser::oid_registry::OID_X509_COMMON_NAME {
        return Err(wrong());
    }
    first.as_str().map_err(|_| wrong())
}

fn the_one_uri<'a>(certificate: &'a X509Certificate<'_>) -> Result<&'a str, IdentityError> {
    let mut names =
        certificate.extensions().iter().filter_map(|extension| match extension.parsed_extension() {
            ParsedExtension::SubjectAlternativeName(names) => Some(names),
            _ => None,
        });
    let (Some(names), None) = (names.next(), names.next()) else {
        return Err(IdentityError::Certificate("it must have one list of names"));
    };
    match names.general_names.as_slice() {
        [GeneralName::URI(uri)] => Ok(uri),
        _ => Err(IdentityError::Certificate("its only name must be one URI")),
    }
}

#[cfg(test)]
mod conformance {
    use std::path::PathBuf;

    use base64::Engine as _;
    use base64::prelude::BASE64_STANDARD;

    use super::*;
    use crate::{AuthorityCertificate, SignedBundle};

    /// The SPIFFE project's own examples. They are not part of this repository; without them each test says so and passes.
    fn load(name: &str) -> Option<String> {
        let beside = concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared/data");
        let root =
            std::env::var_os("TRADER_SHARED_DATA").map_or_else(|| PathBuf::from(beside), PathBuf::from);
        let text = std::fs::read_to_string(root.join("conformance/spiffe").join(name)).ok();
        if text.is_none() {
            println!("skipped: {name} is not here; set TRADER_SHARED_DATA");
        }
        text
    }

    /// The certificates of a PEM file, as far as they can be decoded.
    fn certificates(pem: &str) -> Vec<Vec<u8>> {
        let blocks = pem.split("-----BEGIN CERTIFICATE-----").skip(1);
        blocks
            .map(|block| block.split("-----").next().unwrap().split_whitespace().collect::<String>())
            .filter_map(|text| BASE64_STANDARD.decode(text).ok())
            .collect()
    }

    #[test]
    fn the_svids_of_the_spiffe_project_are_judged_as_it_judges_them() {
        for (name, good) in [
            ("good-key-and-cert", true),
            ("wrong-leaf-ca-true", false),
            ("wrong-leaf-cert-sign", false),
            ("wrong-leaf-crl-sign", false),
            ("wrong-leaf-empty-id", false),
            ("wrong-leaf-no-digital-signature", false),
        ] {
            let Some(pem) = load(&format!("svid/x509svid/{name}.pem")) else { return };
            let der = certificates(&pem).remove(0);
            let id = svid_of(&parse_certificate(&der).unwrap());
            let expected = good.then(|| SpiffeId::parse("spiffe://example.org/workload-1").unwrap());
            assert_eq!(id.ok(), expected, "{name}");
            // None is a peer of ours: the id is of no class, and the key of another kind.
            assert!(Leaf::parse(&der).is_err(), "{name}");
        }
    }

    #[test]
    fn foreign_or_corrupt_bundles_are_refused_without_a_panic() {
        for name in ["certs", "corrupted", "empty", "not-pem"] {
            let Some(pem) = load(&format!("bundle/x509bundle/{name}.pem")) else { return };
            for der in certificates(&pem) {
                assert!(AuthorityCertificate::parse(&der).is_err(), "{name}");
                assert!(Leaf::parse(&der).is_err(), "{name}");
            }
            assert!(AuthorityCertificate::parse(pem.as_bytes()).is_err(), "{name}");
        }
        for name in ["spiffebundle_valid_1", "spiffebundle_no_keys", "spiffebundle_missing_kid"] {
            let Some(json) = load(&format!("bundle/spiffebundle/{name}.json")) else { return };
            assert!(serde_json::from_str::<SignedBundle>(&json).is_err(), "{name} is none of ours");
        }
    }
}
