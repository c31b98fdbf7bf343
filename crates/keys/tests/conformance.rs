//! Our cryptography against other people's vectors: Wycheproof, RFC 9180, and CCTV's edge cases of Ed25519.
//!
//! AES-GCM runs through [`keys::envelope::WrappingKey`], X25519 and HPKE through
//! [`keys::sealing::SealingKey`]: for these a second HPKE is written out here, held against the RFC's
//! vectors, and then used to seal what ours must open. The vectors are not part of this repository; without
//! them each test says so and passes.

#[cfg(test)]
mod conformance {
    use std::collections::BTreeMap;
    use std::io::Read as _;
    use std::path::PathBuf;

    use keys::envelope::{RootError, Wrap as _, WrappingKey};
    use keys::sealing::{Channel, Context, SealError, Sealed, SealingKey, SealingPublicKey};
    use keys::{KeyError, SigningKey, VerifyingKey, to_hex};
    use serde_json::Value;
    use sha2::{Digest as _, Sha256};

    fn load(name: &str) -> Option<Value> {
        let beside = concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared/data");
        let root =
            std::env::var_os("TRADER_SHARED_DATA").map_or_else(|| PathBuf::from(beside), PathBuf::from);
        let Ok(packed) = std::fs::File::open(root.join("conformance").join(name)) else {
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

    fn array<const N: usize>(value: &Value) -> [u8; N] {
        bytes(value).try_into().unwrap()
    }

    fn flags(case: &Value) -> Vec<&str> {
        case["flags"].as_array().into_iter().flatten().map(|flag| flag.as_str().unwrap()).collect()
    }

    /// Every case of every group.
    fn cases(file: &Value) -> impl Iterator<Item = (&Value, &Value)> {
        let groups = file["testGroups"].as_array().unwrap();
        groups
            .iter()
            .flat_map(|group| group["tests"].as_array().unwrap().iter().map(move |case| (group, case)))
    }

    #[test]
    fn wycheproof_ed25519() {
        let Some(file) = load("wycheproof/ed25519_test.json.gz") else { return };
        let mut seen = 0;
        for (group, case) in cases(&file) {
            let key = VerifyingKey::from_bytes(&array(&group["publicKey"]["pk"])).unwrap();
            let verified = key.verify(&bytes(&case["msg"]), &bytes(&case["sig"]));
            let expected = if case["result"] == "valid" { Ok(()) } else { Err(KeyError::Signature) };
            assert_eq!(verified, expected, "case {}", case["tcId"]);
            seen += 1;
        }
        assert_eq!(seen, file["numberOfTests"]);
    }

    /// The rule that we follow is the strictest in use: the equation without the cofactor (so a low-order
    /// residue is refused), no public key and no R of low order, and no point or scalar that is not in its
    /// one canonical form. What is left to accept: points that have a component of low order beside their
    /// own, when the equation holds.
    #[test]
    fn cctv_ed25519_edge_cases_follow_the_strict_rule() {
        let Some(file) = load("ed25519_cctv/ed25519vectors.json.gz") else { return };
        let harmless = ["low_order_component_A", "low_order_component_R"];
        let (mut accepted, mut refused) = (0, 0);
        let mut refused_for = BTreeMap::new();
        for case in file.as_array().unwrap() {
            let key = VerifyingKey::from_bytes(&array(&case["key"]));
            let verified = key
                .and_then(|key| key.verify(case["msg"].as_str().unwrap().as_bytes(), &bytes(&case["sig"])));
            let harmful: Vec<_> = flags(case).into_iter().filter(|flag| !harmless.contains(flag)).collect();
            assert_eq!(verified.is_ok(), harmful.is_empty(), "case {}: {harmful:?}", case["number"]);
            if harmful.is_empty() {
                accepted += 1
            } else {
                refused += 1
            }
            for flag in harmful {
                *refused_for.entry(flag.to_owned()).or_insert(0) += 1;
            }
            if flags(case).contains(&"low_order_A") {
                assert_eq!(verified, Err(KeyError::PublicKey), "case {}", case["number"]);
            }
        }
        assert_eq!((accepted, refused), (43, 871));
        let seen: Vec<_> = refused_for.keys().map(String::as_str).collect();
        let all = [
            "low_order_A",
            "low_order_R",
            "low_order_residue",
            "non_canonical_A",
            "non_canonical_R",
            "reencoded_k",
        ];
        assert_eq!(seen, all);
    }

    #[test]
    fn wycheproof_aes_256_gcm() {
        let Some(file) = load("wycheproof/aes_gcm_test.json.gz") else { return };
        let (mut valid, mut invalid) = (0, 0);
        for (group, case) in cases(&file) {
            if group["keySize"] != 256 || group["ivSize"] != 96 {
                continue;
            }
            let key = WrappingKey::from_bytes(&array(&case["key"]));
            let (nonce, aad, plaintext) = (array(&case["iv"]), bytes(&case["aad"]), bytes(&case["msg"]));
            let sealed = [nonce.to_vec(), bytes(&case["ct"]), bytes(&case["tag"])].concat();
            if case["result"] == "valid" {
                valid += 1;
                assert_eq!(key.wrap(&aad, &plaintext, &nonce).unwrap(), sealed, "case {}", case["tcId"]);
                assert_eq!(key.unwrap(&aad, &sealed).unwrap().as_slice(), plaintext, "case {}", case["tcId"]);
            } else {
                invalid += 1;
                assert_eq!(key.unwrap(&aad, &sealed), Err(RootError::Refused), "case {}", case["tcId"]);
            }
        }
        assert_eq!(valid + invalid, 66);
        assert!(invalid > 20, "{invalid}");
    }

    fn hmac(key: &[u8], message: &[u8]) -> Vec<u8> {
        let mut block = [0; 64];
        block[..key.len()].copy_from_slice(key);
        let inner =
            Sha256::new().chain_update(block.map(|byte| byte ^ 0x36)).chain_update(message).finalize();
        Sha256::new().chain_update(block.map(|byte| byte ^ 0x5c)).chain_update(inner).finalize().to_vec()
    }

    /// RFC 9180, section 4: the two labelled functions.
    struct Suite(Vec<u8>);

    impl Suite {
        /// DHKEM(X25519, HKDF-SHA256).
        fn kem() -> Self {
            Self(b"KEM\x00\x20".to_vec())
        }

        /// With HKDF-SHA256 and AES-256-GCM.
        fn hpke() -> Self {
            Self(b"HPKE\x00\x20\x00\x01\x00\x02".to_vec())
        }

        fn extract(&self, salt: &[u8], label: &str, key: &[u8]) -> Vec<u8> {
            hmac(salt, &[b"HPKE-v1", &self.0[..], label.as_bytes(), key].concat())
        }

        /// At most 32 bytes, so one block.
        fn expand(&self, key: &[u8], label: &str, info: &[u8], length: u8) -> Vec<u8> {
            let labelled = [&[0, length], &b"HPKE-v1"[..], &self.0, label.as_bytes(), info, &[1]].concat();
            hmac(key, &labelled)[..usize::from(length)].to_vec()
        }
    }

    fn kem_secret(exchanged: &[u8], encapsulated: &[u8], recipient: &[u8]) -> Vec<u8> {
        let suite = Suite::kem();
        let prk = suite.extract(b"", "eae_prk", exchanged);
        suite.expand(&prk, "shared_secret", &[encapsulated, recipient].concat(), 32)
    }

    /// The key and the first nonce, in base mode.
    fn key_schedule(shared: &[u8], info: &[u8]) -> ([u8; 32], [u8; 12]) {
        let suite = Suite::hpke();
        let context =
            [vec![0], suite.extract(b"", "psk_id_hash", b""), suite.extract(b"", "info_hash", info)].concat();
        let secret = suite.extract(shared, "secret", b"");
        let key = suite.expand(&secret, "key", &context, 32).try_into().unwrap();
        let nonce = suite.expand(&secret, "base_nonce", &context, 12).try_into().unwrap();
        (key, nonce)
    }

    fn context() -> Context<'static> {
        Context { channel: Channel::Alerts, recipient: "spiffe://t/agent/a/1", epoch: 7, sequence: 1 << 40 }
    }

    /// What another program would seal for this exchange, in our context.
    fn sealed_by_another(exchanged: &[u8], encapsulated: [u8; 32], recipient: &[u8; 32]) -> Sealed {
        let shared = kem_secret(exchanged, &encapsulated, recipient);
        let (key, nonce) = key_schedule(&shared, &context().info().unwrap());
        let sealed = WrappingKey::from_bytes(&key).wrap(b"", b"by another", &nonce).unwrap();
        Sealed::new(encapsulated, sealed[12..].to_vec()).unwrap()
    }

    #[test]
    fn rfc_9180_in_base_mode() {
        let Some(file) = load("hpke_rfc9180/test_vectors.json.gz") else { return };
        let ours = |case: &&Value| {
            ["mode", "kem_id", "kdf_id", "aead_id"].map(|id| case[id].as_u64().unwrap()) == [0, 32, 1, 2]
        };
        let case = file.as_array().unwrap().iter().find(ours).unwrap();
        let (encapsulated, recipient) = (array(&case["enc"]), array(&case["pkRm"]));
        // Our derivation of keys.
        let key = SealingKey::from_seed(&array(&case["ikmR"]));
        // The vector's private key is not clamped yet.
        let published = SealingKey::from_secret_text(case["skRm"].as_str().unwrap()).unwrap();
        assert_eq!(key.to_secret_text(), published.to_secret_text());
        assert_eq!(key.public_key(), SealingPublicKey::from_bytes(&recipient).unwrap());
        assert_eq!(SealingKey::from_seed(&array(&case["ikmE"])).public_key().as_bytes(), &encapsulated);
        // The second HPKE, to the end.
        let shared: Vec<u8> = bytes(&case["shared_secret"]);
        let (aead_key, nonce) = key_schedule(&shared, &bytes(&case["info"]));
        assert_eq!(to_hex(&aead_key), case["key"].as_str().unwrap());
        assert_eq!(to_hex(&nonce), case["base_nonce"].as_str().unwrap());
        let first = &case["encryptions"][0];
        let sealed = WrappingKey::from_bytes(&aead_key)
            .wrap(&bytes(&first["aad"]), &bytes(&first["pt"]), &nonce)
            .unwrap();
        assert_eq!(to_hex(&sealed[12..]), first["ct"].as_str().unwrap());
        // Ours opens what it seals in our context, from the vector's shared secret.
        let (aead_key, nonce) = key_schedule(&shared, &context().info().unwrap());
        let sealed = WrappingKey::from_bytes(&aead_key).wrap(b"", b"by another", &nonce).unwrap();
        let sealed = Sealed::new(encapsulated, sealed[12..].to_vec()).unwrap();
        assert_eq!(key.open(&context(), &sealed).unwrap().as_slice(), b"by another");
    }

    #[test]
    fn wycheproof_x25519() {
        let Some(file) = load("wycheproof/x25519_test.json.gz") else { return };
        let (mut opened, mut refused) = (0, 0);
        for (_, case) in cases(&file) {
            let key = SealingKey::from_secret_text(case["private"].as_str().unwrap()).unwrap();
            let (public, exchanged) = (array(&case["public"]), bytes(&case["shared"]));
            let sealed = sealed_by_another(&exchanged, public, key.public_key().as_bytes());
            let plaintext = key.open(&context(), &sealed);
            let (flags, parsed) = (flags(case), SealingPublicKey::from_bytes(&public));
            if flags.contains(&"ZeroSharedSecret") {
                refused += 1;
                assert_eq!(plaintext, Err(SealError::Refused), "case {}", case["tcId"]);
                assert_eq!(parsed, Err(SealError::PublicKey), "case {}", case["tcId"]);
            } else {
                opened += 1;
                assert_eq!(plaintext.unwrap().as_slice(), b"by another", "case {}", case["tcId"]);
                // As a recipient's key it must be in its one spelling; as a passing one it need not.
                assert_eq!(parsed.is_err(), flags.contains(&"NonCanonicalPublic"), "case {}", case["tcId"]);
            }
        }
        assert_eq!(opened + refused, file["numberOfTests"].as_u64().unwrap());
        assert!(refused > 25, "{refused}");
    }

    #[test]
    fn a_signature_is_the_one_that_rfc_8032_says() {
        // Section 7.1, test 2.
        let seed = "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb";
        let key = SigningKey::from_secret_text(seed).unwrap();
        assert_eq!(
            key.verifying_key().to_hex(),
            "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c"
        );
        assert_eq!(
            to_hex(&key.sign(&[0x72])),
            "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da\
             085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00"
        );
    }
}
