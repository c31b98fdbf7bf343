//! Canaries: no secret shows in what is printed, serialised or said in an error.

#[cfg(test)]
mod secrets {
    use keys::envelope::{DomainKey, Keyring, Place, Wrap as _, WrappingKey};
    use keys::sealed_file::{Cost, SealedFile};
    use keys::sealing::{Channel, Context, Sealed, SealingKey};
    use keys::shares::{self, Share};
    use keys::{Signer, SigningKey, to_hex};

    /// 32 bytes that are easy to find again, in each of the spellings that one might print.
    const CANARY: [u8; 32] = *b"canary-canary-canary-canary-32!!";

    fn assert_silent(what: &str, shown: &str, secrets: &[&[u8]]) {
        for secret in secrets {
            let piece = &secret[..secret.len().min(6)];
            let listed = format!("{piece:?}");
            let hexadecimal = to_hex(piece);
            let base64 = base64_of(piece);
            for spelling in
                [listed.trim_matches(['[', ']']), &hexadecimal, &hexadecimal.to_uppercase(), &base64]
            {
                assert!(!shown.contains(spelling), "{what} shows a secret: {shown}");
            }
            assert!(!shown.contains(&*String::from_utf8_lossy(piece)), "{what} shows a secret: {shown}");
        }
    }

    /// Six bytes are eight characters of base64, with nothing left over.
    fn base64_of(bytes: &[u8]) -> String {
        use base64::Engine as _;
        base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(bytes.get(..bytes.len() / 3 * 3).unwrap())
    }

    #[test]
    fn the_canary_is_found_where_it_is_shown() {
        let shown =
            [format!("{CANARY:?}"), to_hex(&CANARY), base64_of(&CANARY[..30]), "canary-canary".to_owned()];
        for shown in shown {
            assert!(
                std::panic::catch_unwind(|| assert_silent("a test", &shown, &[&CANARY])).is_err(),
                "{shown}"
            );
        }
    }

    #[test]
    fn keys_show_their_identifiers_only() {
        let signing = SigningKey::from_seed(&CANARY);
        assert_silent("a signing key", &format!("{signing:?}"), &[&CANARY]);
        let signer: &dyn Signer = &signing;
        assert_silent("a signer", &format!("{signer:?}"), &[&CANARY]);
        let sealing = SealingKey::from_secret_text(&to_hex(&CANARY)).unwrap();
        let clamped = sealing.to_secret_text();
        let shown = format!("{sealing:?} {:?} {}", sealing.public_key(), sealing.public_key().to_hex());
        assert_silent("a sealing key", &shown, &[&CANARY, clamped.as_bytes()]);
        assert_silent("a wrapping key", &format!("{:?}", WrappingKey::from_bytes(&CANARY)), &[&CANARY]);
    }

    #[test]
    fn a_sealed_message_shows_neither_plaintext_nor_entropy() {
        let key = SealingKey::from_seed(&[7; 32]);
        let context = Context { channel: Channel::Data, recipient: "agent", epoch: 1, sequence: 1 };
        for (plaintext, entropy) in [(CANARY, [9; 32]), ([9; 32], CANARY)] {
            let sealed = key.public_key().seal(&entropy, &context, &plaintext).unwrap();
            let json = serde_json::to_string(&sealed).unwrap();
            assert_eq!(serde_json::from_str::<Sealed>(&json).unwrap(), sealed);
            assert_silent("a sealed message", &format!("{sealed:?} {json}"), &[&CANARY]);
        }
    }

    #[test]
    fn documents_and_ciphertexts_show_no_key_and_no_plaintext() {
        let root = WrappingKey::from_bytes(&CANARY);
        let document = DomainKey::create("ledger", &root, &[1; 32], 0).unwrap();
        // The domain's key itself, as the root unwraps it.
        let value: serde_json::Value = serde_json::from_str(&document.to_json()).unwrap();
        let mut ring = Keyring::unlock(document, &root).unwrap();
        let place = Place { domain: "ledger", table: "people", row: "1", version: 1 };
        let sealed = ring.seal(&place, &CANARY, &[2; 32]).unwrap();
        let shown = format!("{ring:?} {:?} {value} {sealed:?} {}", ring.document(), sealed.to_json());
        assert_silent("a keyring", &shown, &[&CANARY]);
        let wrong = ring.open(&Place { row: "2", ..place }, &sealed).unwrap_err();
        assert_silent("an error", &format!("{wrong:?} {wrong}"), &[&CANARY]);
        let refused = root.unwrap(b"", &CANARY).unwrap_err();
        assert_silent("an error", &format!("{refused:?} {refused}"), &[&CANARY]);
    }

    #[test]
    fn entropy_is_not_what_a_document_or_ciphertext_shows() {
        let root = WrappingKey::from_bytes(&[1; 32]);
        let mut document = DomainKey::create("ledger", &root, &CANARY, 0).unwrap();
        document.rotate(&root, &CANARY, 0).unwrap();
        let mut ring = Keyring::unlock(document, &root).unwrap();
        let place = Place { domain: "ledger", table: "people", row: "1", version: 1 };
        let sealed = ring.seal(&place, b"", &CANARY).unwrap();
        assert_silent(
            "a document",
            &format!("{} {}", ring.document().to_json(), sealed.to_json()),
            &[&CANARY],
        );
    }

    #[test]
    fn a_share_shows_its_number_and_set_only() {
        let shares = shares::split(&CANARY, 2, 3, &[1; 32]).unwrap();
        for share in &shares {
            let text = share.to_text();
            let value = text.split('.').nth(4).unwrap();
            let shown = format!("{share:?}");
            assert!(!shown.contains(&value[..12]), "{shown}");
            assert_silent("a share", &format!("{shown} {}", text.as_str()), &[&CANARY]);
            let mistyped = text.replacen(&value[..2], if &value[..2] == "00" { "11" } else { "00" }, 1);
            let error = Share::parse(&mistyped).unwrap_err();
            assert!(!format!("{error:?} {error}").contains(&value[2..12]), "{error}");
        }
    }

    #[test]
    fn a_sealed_file_shows_neither_secret_nor_passphrase() {
        let file = SealedFile::seal(&CANARY, "a passphrase here", Cost::least(), &[1; 16], &[2; 12]).unwrap();
        let error = file.open("another passphrase").unwrap_err();
        let shown = format!("{file:?} {} {error:?} {error}", file.to_json());
        assert_silent("a sealed file", &shown, &[&CANARY, b"a passphrase here", b"another passphrase"]);
    }

    #[test]
    fn errors_do_not_repeat_what_they_refuse() {
        let text = format!("{}zz", to_hex(&CANARY));
        let errors = [
            SealingKey::from_secret_text(&text).unwrap_err().to_string(),
            SigningKey::from_secret_text(&text).unwrap_err().to_string(),
            Sealed::parse(&text).unwrap_err().to_string(),
            Share::parse(&text).unwrap_err().to_string(),
            DomainKey::parse(&format!("{{\"{text}\": 1}}")).unwrap_err().to_string(),
            SealedFile::parse(&format!("{{\"{text}\": 1}}")).unwrap_err().to_string(),
            serde_json::from_str::<Sealed>(&format!("\"{text}\"")).unwrap_err().to_string(),
        ];
        for error in errors {
            assert_silent("an error", &error, &[&CANARY]);
        }
    }
}
