//! Too few shares, the wrong ones, the same one twice, a mistyped one, a forged one.

use proptest::prelude::*;

use super::*;

const SECRET: [u8; 32] = [0x5e; 32];

fn three_of_five() -> Vec<Share> {
    split(&SECRET, 3, 5, &[1; 32]).unwrap()
}

fn again(share: &Share) -> Share {
    Share::parse(&share.to_text()).unwrap()
}

fn pick(shares: &[Share], which: &[usize]) -> Vec<Share> {
    which.iter().map(|index| again(&shares[*index])).collect()
}

#[test]
fn any_three_of_five_give_the_secret_in_any_order() {
    let shares = three_of_five();
    for a in 0..5 {
        for b in (0..5).filter(|b| *b != a) {
            for c in (0..5).filter(|c| *c != a && *c != b) {
                assert_eq!(*recover(&pick(&shares, &[a, b, c])).unwrap(), SECRET);
            }
        }
    }
    assert_eq!(*recover(&shares).unwrap(), SECRET);
}

#[test]
fn two_of_five_are_refused_and_none_too() {
    let shares = three_of_five();
    assert_eq!(recover(&pick(&shares, &[0, 4])), Err(ShareError::TooFew { given: 2, needed: 3 }));
    assert_eq!(recover(&[]), Err(ShareError::TooFew { given: 0, needed: 2 }));
}

#[test]
fn two_shares_that_claim_to_be_enough_are_refused() {
    let mut two = pick(&three_of_five(), &[0, 4]);
    two.iter_mut().for_each(|share| share.set.needed = 2);
    assert_eq!(recover(&two), Err(ShareError::Wrong));
    let (two, three) = (Set::of(&SECRET, [1; SALT], 2), Set::of(&SECRET, [1; SALT], 3));
    assert_ne!(two.commitment, three.commitment, "how many are needed is committed to as well");
}

#[test]
fn two_shares_tell_nothing_of_the_secret() {
    // For two shares and any secret there is a third share that fits: 256 of 256 possibilities stay open.
    let two = pick(&three_of_five(), &[0, 1]);
    let mut open = std::collections::BTreeSet::new();
    for byte in 0..=255 {
        let third = Share { set: two[0].set, index: 3, value: Zeroizing::new([byte; 32]) };
        open.insert(interpolate(&[again(&two[0]), again(&two[1]), third], 0)[0]);
    }
    assert_eq!(open.len(), 256);
}

#[test]
fn the_same_share_twice_is_refused() {
    let shares = three_of_five();
    assert_eq!(recover(&pick(&shares, &[0, 1, 1])), Err(ShareError::Twice { index: 2 }));
    assert_eq!(recover(&pick(&shares, &[0, 1, 2, 0])), Err(ShareError::Twice { index: 1 }));
}

#[test]
fn shares_of_different_sets_are_refused_even_of_the_same_secret() {
    let (shares, others) = (three_of_five(), split(&SECRET, 3, 5, &[2; 32]).unwrap());
    assert_ne!(shares[0].set_id(), others[0].set_id());
    let mixed = [again(&shares[0]), again(&shares[1]), again(&others[2])];
    assert_eq!(recover(&mixed), Err(ShareError::OtherSet { position: 3 }));
    // And were the set's name forged, the commitment would still not fit.
    let forged = Share { set: shares[0].set, index: 3, value: others[2].value.clone() };
    assert_eq!(recover(&[again(&shares[0]), again(&shares[1]), forged]), Err(ShareError::Wrong));
}

#[test]
fn a_forged_share_beyond_those_needed_is_noticed() {
    let mut shares = three_of_five();
    shares[4].value[7] ^= 1;
    assert_eq!(recover(&shares), Err(ShareError::Wrong));
    shares.swap(0, 4);
    assert_eq!(recover(&shares), Err(ShareError::Wrong));
}

#[test]
fn a_mistyped_share_is_named() {
    let mut texts: Vec<String> = three_of_five().iter().map(|share| share.to_text().to_string()).collect();
    assert_eq!(*recover_from_texts(&texts).unwrap(), SECRET);
    let typed = &mut texts[3];
    let at = typed.len() - 20;
    let other = if typed.as_bytes()[at] == b'0' { "1" } else { "0" };
    typed.replace_range(at..=at, other);
    assert_eq!(recover_from_texts(&texts), Err(ShareError::Mistyped { position: 4, index: 4 }));
    texts[1] = "trader-share-1.?".to_owned();
    assert_eq!(recover_from_texts(&texts), Err(ShareError::Text { position: 2 }));
    assert_eq!(recover_from_texts(&vec!["x"; 17]), Err(ShareError::Numbers));
}

#[test]
fn no_character_of_a_share_can_be_changed_unseen() {
    let text = three_of_five()[2].to_text();
    for index in 0..text.len() {
        for other in *b"0f.3F-" {
            let mut bytes = text.as_bytes().to_vec();
            if bytes[index] == other {
                continue;
            }
            bytes[index] = other;
            assert!(Share::parse(&String::from_utf8(bytes).unwrap()).is_err(), "{index} as {other}");
        }
    }
    assert!(Share::parse(&format!("  {}\n", text.as_str())).is_ok());
    assert!(Share::parse(&" ".repeat(SHARE_TEXT_MAX + 1)).is_err());
}

#[test]
fn a_made_up_share_with_a_fitting_check_is_still_read_strictly() {
    let good = three_of_five()[2].to_text();
    let body = good.rsplit_once('.').unwrap().0;
    let with_check = |body: &str| Share::parse(&format!("{body}.{}", check(body)));
    assert!(with_check(body).is_ok());
    for (from, to) in [(".3.3.", ".3.1."), (".3.3.", ".03.3."), (".3.3.", ".17.3."), (".3.3.", ".0.3.")] {
        assert!(with_check(&body.replacen(from, to, 1)).is_err(), "{to}");
    }
    assert!(with_check(&body.to_uppercase().replace("TRADER-SHARE", "trader-share")).is_err());
    assert!(with_check(&format!("{body}00")).is_err());
}

#[test]
fn numbers_that_make_no_sense_are_refused() {
    for (needed, count) in [(0, 0), (0, 5), (1, 5), (6, 5), (2, 17), (17, 17), (255, 255)] {
        let refused = split(&SECRET, needed, count, &[1; 32]).map(|shares| shares.len());
        assert_eq!(refused, Err(ShareError::Numbers), "{needed} of {count}");
    }
}

#[test]
fn the_field_is_the_one_of_aes() {
    assert_eq!(multiply(0x57, 0x83), 0xc1, "FIPS 197, section 4.2");
    assert_eq!(multiply(0x57, 0x13), 0xfe, "FIPS 197, section 4.2.1");
    for value in 1..=255 {
        assert_eq!(multiply(value, invert(value)), 1);
        assert_eq!(multiply(value, 1), value);
        assert_eq!(multiply(value, 0), 0);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_k_of_n_give_the_secret_and_fewer_do_not(
        secret: [u8; 32], entropy: [u8; 32],
        (needed, count) in (2u8..=16).prop_flat_map(|n| (2..=n, Just(n))),
        order in Just((0..16usize).collect::<Vec<_>>()).prop_shuffle(),
    ) {
        let shares = split(&secret, needed, count, &entropy).unwrap();
        let chosen: Vec<usize> = order.into_iter().filter(|index| *index < usize::from(count)).collect();
        let enough = pick(&shares, &chosen[..usize::from(needed)]);
        prop_assert_eq!(*recover(&enough).unwrap(), secret);
        let fewer = pick(&shares, &chosen[..usize::from(needed) - 1]);
        let too_few = matches!(recover(&fewer), Err(ShareError::TooFew { .. }));
        prop_assert!(too_few);
    }

    #[test]
    fn no_text_makes_the_parser_fall_over(text in "\\PC{0,120}") {
        prop_assert!(Share::parse(&text).is_err());
        let made_up = format!("{PREFIX}.{text}");
        let with_check = format!("{made_up}.{}", check(&made_up));
        prop_assert!(Share::parse(&with_check).is_err());
    }
}
