//! The very code that verifies handshakes and certificates, and derives the keys of connections, against Wycheproof's
//! vectors. They are not part of this repository; without them each test says so and passes.

use std::io::Read as _;
use std::path::PathBuf;

use identity::{PeerClass, Root, SpiffeId};
use rustls::SupportedCipherSuite;
use rustls::crypto::tls13::OkmBlock;
use rustls::internal::msgs::codec::Codec as _;
use serde_json::Value;

use super::*;

fn load(name: &str) -> Option<Value> {
    let beside = concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared/data");
    let root = std::env::var_os("TRADER_SHARED_DATA").map_or_else(|| PathBuf::from(beside), PathBuf::from);
    let Ok(packed) = std::fs::File::open(root.join("conformance/wycheproof").join(name)) else {
        println!("skipped: {name} is not here; set TRADER_SHARED_DATA");
        return None;
    };
    let mut text = String::new();
    flate2::read::GzDecoder::new(packed).read_to_string(&mut text).unwrap();
    Some(serde_json::from_str(&text).unwrap())
}

fn bytes(value: &Value) -> Vec<u8> {
    let text = value.as_str().unwrap();
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
}

fn cases(file: &Value) -> impl Iterator<Item = (&Value, &Value)> {
    let groups = file["testGroups"].as_array().unwrap();
    groups.iter().flat_map(|group| group["tests"].as_array().unwrap().iter().map(move |case| (group, case)))
}

fn is_valid(case: &Value) -> bool {
    match case["result"].as_str().unwrap() {
        "valid" => true,
        "invalid" => false,
        other => panic!("case {} is {other}", case["tcId"]),
    }
}

/// As a handshake says it: scheme, length, signature.
fn said(scheme: SignatureScheme, signature: &[u8]) -> DigitallySignedStruct {
    let mut text = u16::from(scheme).to_be_bytes().to_vec();
    text.extend((signature.len() as u16).to_be_bytes());
    text.extend(signature);
    DigitallySignedStruct::read_bytes(&text).unwrap()
}

#[test]
fn wycheproof_ecdsa_p256_in_handshakes() {
    let Some(file) = load("ecdsa_secp256r1_sha256_test.json.gz") else { return };
    let root = Root::new("home.test", keys::SigningKey::from_seed(&[1; 32])).unwrap();
    let now = 1_800_000_000;
    let key = keys::SigningKey::from_seed(&[2; 32]);
    let authority = root.authority(PeerClass::Agents, key, now, 86_400, [1; 16]).unwrap();
    let agent = SpiffeId::agent("home.test", "agent-1").unwrap();
    let mut seen = 0;
    for (group, case) in cases(&file) {
        let spki = bytes(&group["publicKeyDer"]);
        let certificate = authority.issue(&spki, &agent, 1, now, 600, [2; 16]).unwrap().into();
        let signature = said(SignatureScheme::ECDSA_NISTP256_SHA256, &bytes(&case["sig"]));
        let verified = verify_signature(&bytes(&case["msg"]), &certificate, &signature);
        assert_eq!(verified.is_ok(), is_valid(case), "case {}", case["tcId"]);
        seen += 1;
    }
    assert_eq!(seen, file["numberOfTests"]);
}

#[test]
fn wycheproof_ed25519_in_certificates() {
    let Some(file) = load("ed25519_test.json.gz") else { return };
    let all = algorithms();
    let (_, ed25519) =
        all.mapping.iter().find(|(scheme, _)| *scheme == SignatureScheme::ED25519).copied().unwrap();
    let mut seen = 0;
    for (group, case) in cases(&file) {
        let key = bytes(&group["publicKey"]["pk"]);
        let verified = ed25519[0].verify_signature(&key, &bytes(&case["msg"]), &bytes(&case["sig"]));
        assert_eq!(verified.is_ok(), is_valid(case), "case {}", case["tcId"]);
        seen += 1;
    }
    assert_eq!(seen, file["numberOfTests"]);
}

/// The key derivation of a connection's suites, by its hash.
fn hkdf(hash: rustls::crypto::hash::HashAlgorithm) -> &'static dyn rustls::crypto::tls13::Hkdf {
    let provider = crate::tls::provider(crate::tls::Groups::HybridFirst);
    let mut suites = provider.cipher_suites.iter().filter_map(SupportedCipherSuite::tls13);
    let suite = suites.find(|suite| suite.common.hash_provider.algorithm() == hash);
    suite.unwrap().hkdf_provider
}

#[test]
fn wycheproof_hkdf_sha256_in_connections() {
    let Some(file) = load("hkdf_sha256_test.json.gz") else { return };
    let hkdf = hkdf(rustls::crypto::hash::HashAlgorithm::SHA256);
    let mut seen = 0;
    for (_, case) in cases(&file) {
        let salt = bytes(&case["salt"]);
        let salt = (!salt.is_empty()).then_some(salt.as_slice());
        let mut derived = vec![0; usize::try_from(case["size"].as_u64().unwrap()).unwrap()];
        let expander = hkdf.extract_from_secret(salt, &bytes(&case["ikm"]));
        let expanded = expander.expand_slice(&[&bytes(&case["info"])], &mut derived);
        assert_eq!(expanded.is_ok(), is_valid(case), "case {}", case["tcId"]);
        if is_valid(case) {
            assert_eq!(derived, bytes(&case["okm"]), "case {}", case["tcId"]);
        }
        seen += 1;
    }
    assert_eq!(seen, file["numberOfTests"]);
}

#[test]
fn wycheproof_hmac_in_connections() {
    for (name, hash, tag_bits) in [
        ("hmac_sha256_test.json.gz", rustls::crypto::hash::HashAlgorithm::SHA256, 256),
        ("hmac_sha384_test.json.gz", rustls::crypto::hash::HashAlgorithm::SHA384, 384),
    ] {
        let Some(file) = load(name) else { return };
        let hkdf = hkdf(hash);
        let (mut right, mut wrong) = (0, 0);
        for (group, case) in cases(&file) {
            let key = bytes(&case["key"]);
            // Tags are never cut short here, and no key of a connection is longer than a block.
            if group["tagSize"] != tag_bits || key.len() > OkmBlock::MAX_LEN {
                continue;
            }
            let tag = hkdf.hmac_sign(&OkmBlock::new(&key), &bytes(&case["msg"]));
            let same = tag.as_ref() == bytes(&case["tag"]);
            assert_eq!(same, is_valid(case), "case {} of {name}", case["tcId"]);
            if same { right += 1 } else { wrong += 1 }
        }
        assert!(right > 20 && wrong > 20, "{name}: {right} and {wrong}");
    }
}
