//! Attacks on sealed messages: another key, another context, another byte, a key that everybody has.

use proptest::prelude::*;

use super::*;

const ALICE: &str = "spiffe://trader.example/agent/analyst/5f0c";

fn context() -> Context<'static> {
    Context { channel: Channel::Data, recipient: ALICE, epoch: 3, sequence: 41 }
}

fn key() -> SealingKey {
    SealingKey::from_seed(&[5; 32])
}

#[test]
fn what_is_sealed_opens_with_its_key_in_its_context() {
    let sealed = key().public_key().seal(&[1; 32], &context(), b"vendor key").unwrap();
    assert_eq!(key().open(&context(), &sealed).unwrap().as_slice(), b"vendor key");
    let empty = key().public_key().seal(&[1; 32], &context(), b"").unwrap();
    assert_eq!(key().open(&context(), &empty).unwrap().as_slice(), b"");
}

#[test]
fn it_opens_for_no_other_agent_channel_epoch_or_sequence_number() {
    let sealed = key().public_key().seal(&[1; 32], &context(), b"vendor key").unwrap();
    let bob = "spiffe://trader.example/agent/analyst/5f0d";
    let others = [
        Context { recipient: bob, ..context() },
        Context { channel: Channel::Control, ..context() },
        Context { channel: Channel::Alerts, ..context() },
        Context { epoch: 2, ..context() },
        Context { epoch: 4, ..context() },
        Context { sequence: 40, ..context() },
        Context { sequence: 42, ..context() },
    ];
    for other in others {
        assert_eq!(key().open(&other, &sealed), Err(SealError::Refused), "{other:?}");
    }
    let stranger = SealingKey::from_seed(&[6; 32]);
    assert_eq!(stranger.open(&context(), &sealed), Err(SealError::Refused));
}

#[test]
fn parts_of_a_context_cannot_lend_each_other_bytes() {
    let shifted = |recipient, epoch, sequence| Context { recipient, epoch, sequence, ..context() }.info();
    assert_ne!(shifted("ab", 0, 0), shifted("a", 0x6200_0000, 0));
    assert_ne!(shifted("a", 1, 0), shifted("a", 0, 1 << 32));
    assert_eq!(shifted("", 0, 0), Err(SealError::Recipient));
    assert_eq!(shifted(&"a".repeat(RECIPIENT_MAX + 1), 0, 0), Err(SealError::Recipient));
}

#[test]
fn no_byte_can_be_changed_unseen() {
    let sealed = key().public_key().seal(&[1; 32], &context(), b"vendor key").unwrap();
    for index in 0..32 {
        for bit in 0..8 {
            let mut changed = sealed.clone();
            changed.encapsulated[index] ^= 1 << bit;
            assert_eq!(key().open(&context(), &changed), Err(SealError::Refused), "key, byte {index}");
        }
    }
    for index in 0..sealed.ciphertext.len() {
        let mut changed = sealed.clone();
        changed.ciphertext[index] ^= 1;
        assert_eq!(key().open(&context(), &changed), Err(SealError::Refused), "body, byte {index}");
        changed = sealed.clone();
        changed.ciphertext.truncate(index);
        assert_eq!(key().open(&context(), &changed), Err(SealError::Refused), "{index} bytes");
    }
}

#[test]
fn no_character_of_the_text_can_be_changed_unseen() {
    let text = key().public_key().seal(&[1; 32], &context(), b"vendor key").unwrap().to_text();
    for index in 0..text.len() {
        for other in *b"A_.z =\n" {
            let mut bytes = text.clone().into_bytes();
            if bytes[index] == other {
                continue;
            }
            bytes[index] = other;
            let opened = Sealed::parse(&String::from_utf8(bytes).unwrap())
                .and_then(|sealed| key().open(&context(), &sealed));
            assert!(opened.is_err(), "{index} as {other}");
        }
    }
}

#[test]
fn a_text_has_one_spelling_and_a_longest_length() {
    let sealed = key().public_key().seal(&[1; 32], &context(), &[7; PLAINTEXT_MAX]).unwrap();
    let text = sealed.to_text();
    assert!(text.len() <= SEALED_TEXT_MAX, "{}", text.len());
    assert_eq!(Sealed::parse(&text), Ok(sealed));
    let more = [7; PLAINTEXT_MAX + 1];
    assert_eq!(key().public_key().seal(&[1; 32], &context(), &more), Err(SealError::TooLong));
    assert_eq!(Sealed::parse(&"a".repeat(SEALED_TEXT_MAX + 1)), Err(SealError::Text));
    assert_eq!(Sealed::new([1; 32], vec![0; PLAINTEXT_MAX + TAG + 1]), Err(SealError::Text));
    assert_eq!(Sealed::new([1; 32], vec![0; TAG - 1]), Err(SealError::Text));
    let short = key().public_key().seal(&[1; 32], &context(), b"x").unwrap().to_text();
    let worse = [
        format!(" {short}"),
        format!("{short}\n"),
        format!("{short}="),
        format!("{short}.AA"),
        short.replace("trader-sealed-1", "trader-sealed-2"),
        short.replacen('.', "..", 1),
        String::new(),
        "trader-sealed-1..".to_owned(),
    ];
    for wrong in worse {
        assert_eq!(Sealed::parse(&wrong), Err(SealError::Text), "{wrong}");
    }
}

#[test]
fn a_key_of_low_order_is_refused() {
    // The points of order 1, 2, 4 and 8 of the curve and its twist, in their shortest spelling.
    let low = [
        "0000000000000000000000000000000000000000000000000000000000000000",
        "0100000000000000000000000000000000000000000000000000000000000000",
        "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
        "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
        "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    ];
    for point in low {
        assert_eq!(SealingPublicKey::from_hex(point), Err(SealError::PublicKey), "{point}");
    }
    let sealed = Sealed::new([0; 32], vec![0; 40]).unwrap();
    assert_eq!(key().open(&context(), &sealed), Err(SealError::Refused));
}

#[test]
fn a_public_key_has_one_spelling() {
    let nine = |last: u8| {
        let mut bytes = [0; 32];
        bytes[0] = 9;
        bytes[31] = last;
        SealingPublicKey::from_bytes(&bytes)
    };
    assert!(nine(0).is_ok());
    assert_eq!(nine(0x80), Err(SealError::PublicKey), "the bit that X25519 ignores");
    let mut nine_and_prime = [0xff; 32];
    (nine_and_prime[0], nine_and_prime[31]) = (0xed + 9, 0x7f);
    assert_eq!(SealingPublicKey::from_bytes(&nine_and_prime), Err(SealError::PublicKey));
    let public = key().public_key();
    assert_eq!(SealingPublicKey::from_hex(&public.to_hex()), Ok(public));
    assert_eq!(SealingPublicKey::from_hex("09"), Err(SealError::PublicKey));
    assert_eq!(public.id().len(), 16);
}

#[test]
fn text_and_key_are_the_same_thing() {
    let again = SealingKey::from_secret_text(&key().to_secret_text()).unwrap();
    assert_eq!(again.public_key(), key().public_key());
    assert!(matches!(SealingKey::from_secret_text("07"), Err(SealError::SecretText)));
}

#[test]
fn the_same_entropy_twice_makes_two_keys_for_two_messages() {
    let public = key().public_key();
    let one = public.seal(&[1; 32], &context(), b"buy ").unwrap();
    let other = public.seal(&[1; 32], &context(), b"sell").unwrap();
    assert_ne!(one.encapsulated, other.encapsulated);
    let later = public.seal(&[1; 32], &Context { sequence: 42, ..context() }, b"buy ").unwrap();
    assert_ne!(one.encapsulated, later.encapsulated);
    assert_eq!(one, public.seal(&[1; 32], &context(), b"buy ").unwrap());
}

#[test]
fn what_is_handed_in_is_handed_on_and_never_runs_dry() {
    let mut source = HandedIn::new(Zeroizing::new([9; 32]));
    let (mut first, mut second) = ([0; 32], [0; 32]);
    source.try_fill_bytes(&mut first).unwrap();
    source.try_fill_bytes(&mut second).unwrap();
    assert_eq!(first, [9; 32]);
    assert_ne!(second, first);
}

#[test]
fn channels_have_one_spelling() {
    for channel in Channel::ALL {
        assert_eq!(Channel::parse(channel.as_str()), Ok(channel));
    }
    for wrong in ["", "Data", " data", "DATA", "alert"] {
        assert_eq!(Channel::parse(wrong), Err(SealError::Channel));
    }
}

/// RFC 9180, appendix A.1's suite with AES-256-GCM: the vectors, through the very functions that seal and
/// open.
#[test]
fn the_published_vector_is_sealed_and_opened_as_published() {
    let beside = concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared/data");
    let root = std::env::var("TRADER_SHARED_DATA").unwrap_or_else(|_| beside.to_owned());
    let Ok(packed) = std::fs::File::open(format!("{root}/conformance/hpke_rfc9180/test_vectors.json.gz"))
    else {
        println!("skipped: the HPKE vectors are not here; set TRADER_SHARED_DATA");
        return;
    };
    let vectors: Vec<serde_json::Value> =
        serde_json::from_reader(flate2::read::GzDecoder::new(packed)).unwrap();
    let mut seen = 0;
    for vector in &vectors {
        if ["mode", "kem_id", "kdf_id", "aead_id"].map(|id| vector[id].as_u64().unwrap()) != [0, 32, 1, 2] {
            continue;
        }
        seen += 1;
        let bytes = |value: &serde_json::Value| -> Vec<u8> {
            let text = value.as_str().unwrap();
            (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
        };
        let array = |value| -> [u8; 32] { bytes(value).try_into().unwrap() };
        let key = SealingKey::from_seed(&array(&vector["ikmR"]));
        // The vector's private key is not clamped yet.
        let published = SealingKey::from_secret_text(vector["skRm"].as_str().unwrap()).unwrap();
        assert_eq!(key.to_secret_text(), published.to_secret_text());
        assert_eq!(key.public_key().to_hex(), vector["pkRm"].as_str().unwrap());
        let (info, message) = (bytes(&vector["info"]), &vector["encryptions"][0]);
        let (aad, plaintext) = (bytes(&message["aad"]), bytes(&message["pt"]));
        let ephemeral = Zeroizing::new(array(&vector["ikmE"]));
        let sealed = key.public_key().seal_raw(ephemeral, &info, &aad, &plaintext).unwrap();
        assert_eq!(to_hex(sealed.encapsulated()), vector["enc"].as_str().unwrap());
        assert_eq!(to_hex(sealed.ciphertext()), message["ct"].as_str().unwrap());
        assert_eq!(key.open_raw(&info, &aad, &sealed).unwrap().as_slice(), plaintext);
        assert_eq!(key.open_raw(&info, b"", &sealed), Err(SealError::Refused));
    }
    assert_eq!(seen, 1);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn every_message_comes_back_and_only_to_its_key(
        seed: [u8; 32], other: [u8; 32], entropy: [u8; 32], epoch: u32, sequence: u64,
        plaintext in prop::collection::vec(any::<u8>(), 0..300),
    ) {
        prop_assume!(seed != other);
        let key = SealingKey::from_seed(&seed);
        let context = Context { epoch, sequence, ..context() };
        let sealed = key.public_key().seal(&entropy, &context, &plaintext).unwrap();
        let sealed = Sealed::parse(&sealed.to_text()).unwrap();
        prop_assert_eq!(key.open(&context, &sealed).unwrap().to_vec(), plaintext);
        prop_assert!(SealingKey::from_seed(&other).open(&context, &sealed).is_err());
    }

    #[test]
    fn no_text_makes_the_parser_fall_over(text in "\\PC{0,120}") {
        prop_assert!(Sealed::parse(&text).is_err());
        let with_prefix = format!("{PREFIX}.{text}");
        prop_assert!(Sealed::parse(&with_prefix).is_err());
        prop_assert!(SealingKey::from_secret_text(&text).is_err());
    }
}
