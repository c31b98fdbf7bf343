//! Attacks on the encoding: what is not the one encoding of claims that management signed is refused.

use ciborium::Value;
use keys::SigningKey;
use proptest::prelude::*;

use super::*;

pub(crate) const HOLDER: &str = "spiffe://trader.test/agent/collector/7f3c";

pub(crate) fn issuer() -> SigningKey {
    SigningKey::from_seed(&[1; 32])
}

pub(crate) fn day(text: &str) -> MarketDay {
    MarketDay::parse(text).unwrap()
}

/// Claims of a grant to place orders, with nothing wrong about them.
pub(crate) fn claims() -> Claims {
    Claims {
        grant: "00112233445566778899aabbccddeeff".into(),
        task: "rebalance-core-2010-03-16".into(),
        holder: HOLDER.into(),
        epoch: 3,
        holder_key: [9; 32],
        audience: Audience::Desk,
        actions: BTreeSet::from([Action::PlaceOrders]),
        portfolio: Some("core".into()),
        symbols: BTreeSet::from(["AAPL".to_owned(), "BRK.B".to_owned()]),
        sources: BTreeSet::new(),
        limits: Limits { notional: Some(1_000), order_notional: Some(600), orders: Some(3), rows: Some(10) },
        max_uses: 5,
        market_day: day("2010-03-16"),
        not_before: 1_000,
        expires: 1_300,
        policy: [4; 32],
        revision: 5,
    }
}

/// A message of the issuer's key with any header and payload: only the parser stands in its way.
fn forged(change: impl FnOnce(&mut CoseSign1), payload: Vec<u8>) -> Vec<u8> {
    let mut message = unsigned(&claims(), &issuer().verifying_key()).unwrap().payload(payload).build();
    change(&mut message);
    message.signature = issuer().sign(&message.tbs_data(&[])).to_vec();
    message.to_tagged_vec().unwrap()
}

fn encoded(value: &Value) -> Vec<u8> {
    let mut bytes = Vec::new();
    ciborium::into_writer(value, &mut bytes).unwrap();
    bytes
}

/// The good payload as a map, to be changed.
fn map() -> Vec<(Value, Value)> {
    let value: Value = ciborium::from_reader(payload(&claims()).unwrap().as_slice()).unwrap();
    value.into_map().unwrap()
}

fn verified(bytes: &[u8]) -> Result<Claims, GrantError> {
    verify(bytes, &[issuer().verifying_key()]).map(|grant| grant.claims)
}

fn verified_map(map: Vec<(Value, Value)>) -> Result<Claims, GrantError> {
    verified(&forged(|_| {}, encoded(&Value::Map(map))))
}

/// The grant with an unsigned header beside it: same claims, same signature, other bytes.
pub(crate) fn with_unsigned_header(claims: &Claims) -> SignedGrant {
    let signed = mint(claims, &issuer()).unwrap();
    let mut message = CoseSign1::from_tagged_slice(signed.bytes()).unwrap();
    message.unprotected.key_id = b"other".to_vec();
    SignedGrant::new(message.to_tagged_vec().unwrap())
}

/// A grant that names the issuer's key and is signed with another.
pub(crate) fn signed_by_a_stranger(claims: &Claims) -> SignedGrant {
    let stranger = SigningKey::from_seed(&[66; 32]);
    let message = unsigned(claims, &issuer().verifying_key()).unwrap();
    let message = message.create_signature(&[], |text| stranger.sign(text).to_vec()).build();
    SignedGrant::new(message.to_tagged_vec().unwrap())
}

#[test]
fn the_forger_of_these_tests_makes_good_grants_when_it_changes_nothing() {
    assert_eq!(verified_map(map()), Ok(claims()));
}

#[test]
fn a_grant_of_another_key_is_refused() {
    let stranger = SigningKey::from_seed(&[66; 32]);
    assert_eq!(verified(mint(&claims(), &stranger).unwrap().bytes()), Err(GrantError::UnknownKey));
    assert_eq!(verified(signed_by_a_stranger(&claims()).bytes()), Err(GrantError::Signature));
    assert_eq!(verify(mint(&claims(), &issuer()).unwrap().bytes(), &[]).unwrap_err(), GrantError::UnknownKey);
}

#[test]
fn either_of_two_issuer_keys_is_found_by_its_identifier() {
    let next = SigningKey::from_seed(&[2; 32]);
    let keys = [issuer().verifying_key(), next.verifying_key()];
    for key in [issuer(), next] {
        let grant = verify(mint(&claims(), &key).unwrap().bytes(), &keys).unwrap();
        assert_eq!(grant.issuer_key(), &key.verifying_key());
    }
}

#[test]
fn a_header_that_says_anything_else_is_refused_even_when_signed() {
    let bytes = payload(&claims()).unwrap();
    let refused = |change: fn(&mut CoseSign1)| verified(&forged(change, bytes.clone())).unwrap_err();
    let es256 = |message: &mut CoseSign1| {
        message.protected.header.alg =
            Some(coset::RegisteredLabelWithPrivate::Assigned(iana::Algorithm::ES256));
    };
    assert_eq!(refused(es256), GrantError::Algorithm);
    assert_eq!(refused(|message| message.protected.header.alg = None), GrantError::Algorithm);
    assert_eq!(refused(|message| message.protected.header.content_type = None), GrantError::ContentType);
    assert_eq!(refused(|message| message.protected.header.key_id.clear()), GrantError::UnknownKey);
    assert_eq!(refused(|message| message.protected.header.key_id.push(0)), GrantError::UnknownKey);
    assert_eq!(refused(|message| message.protected.header.iv = vec![1]), GrantError::Encoding);
    assert_eq!(refused(|message| message.unprotected.key_id = vec![1]), GrantError::Encoding);
    assert_eq!(refused(|message| message.payload = None), GrantError::Envelope);
    assert_eq!(verified(with_unsigned_header(&claims()).bytes()), Err(GrantError::Encoding));
}

#[test]
fn every_claim_but_the_portfolio_is_needed() {
    for index in 0..map().len() {
        let mut map = map();
        let (key, _) = map.remove(index);
        let answer = verified_map(map);
        match key.as_integer().map(i128::from) {
            Some(-65_540) => assert_eq!(answer.unwrap().portfolio, None),
            _ => assert!(matches!(answer, Err(GrantError::Missing(_))), "{key:?}: {answer:?}"),
        }
    }
}

#[test]
fn a_claim_of_another_type_is_refused() {
    for index in 0..map().len() {
        for other in [Value::Null, Value::Bool(true), Value::Float(1.5), Value::Text("\u{e9}".into())] {
            let mut map = map();
            map[index].1 = other;
            assert!(matches!(verified_map(map.clone()), Err(GrantError::Claim(_))), "{:?}", map[index]);
        }
    }
}

#[test]
fn a_number_as_text_or_beyond_its_range_is_refused() {
    let change = |key: i64, value: Value| {
        let mut map = map();
        map.iter_mut().find(|entry| entry.0 == Value::from(key)).unwrap().1 = value;
        verified_map(map)
    };
    assert_eq!(change(EXPIRES, Value::Text("99999".into())), Err(GrantError::Claim("exp")));
    assert_eq!(change(EXPIRES, Value::from(u64::MAX)), Err(GrantError::Claim("exp")));
    assert_eq!(change(USES, Value::from(-1)), Err(GrantError::Claim("uses")));
    assert_eq!(change(USES, Value::from(0)), Err(GrantError::Claim("uses")));
    assert_eq!(change(EPOCH, Value::from(1_u64 << 32)), Err(GrantError::Claim("epoch")));
    assert_eq!(change(MARKET_DAY, Value::from(20_100_230)), Err(GrantError::Claim("market day")));
    assert_eq!(change(AUDIENCE, Value::from("Desk")), Err(GrantError::Claim("aud")));
    assert_eq!(change(ACTIONS, Value::Array(vec![])), Err(GrantError::Claim("actions")));
    assert_eq!(change(ACTIONS, Value::Array(vec!["*".into()])), Err(GrantError::Claim("actions")));
    assert_eq!(change(ISSUER, "spiffe://other.test/management".into()), Err(GrantError::Claim("iss")));
    let twice = Value::Array(vec!["place_orders".into(), "place_orders".into()]);
    assert_eq!(change(ACTIONS, twice), Err(GrantError::Encoding));
    let negative = Value::Map(vec![(Value::from(LIMIT_NOTIONAL), Value::from(-5))]);
    assert_eq!(change(LIMITS, negative), Err(GrantError::Claim("limits")));
    let unknown = Value::Map(vec![(Value::from(9), Value::from(1))]);
    assert_eq!(change(LIMITS, unknown.clone()), Err(GrantError::Claim("limits")));
    assert_eq!(change(CONFIRMATION, unknown), Err(GrantError::Missing("cnf")));
}

#[test]
fn an_unknown_a_double_and_an_unsorted_claim_are_refused() {
    let mut more = map();
    more.push((Value::from(-65_999), Value::from(1)));
    assert_eq!(verified_map(more), Err(GrantError::UnknownClaim));
    let mut textual = map();
    textual.push((Value::from("admin"), Value::from(true)));
    assert_eq!(verified_map(textual), Err(GrantError::UnknownClaim));
    let mut double = map();
    double.push(double[3].clone());
    assert_eq!(verified_map(double), Err(GrantError::UnknownClaim));
    let mut unsorted = map();
    unsorted.swap(3, 4);
    assert_eq!(verified_map(unsorted), Err(GrantError::Encoding));
}

#[test]
fn another_encoding_of_the_same_claims_is_refused() {
    // `exp` 1300 is 04 19 0514; the same number in four bytes is 04 1a 00000514.
    let bytes = payload(&claims()).unwrap();
    let at = bytes.windows(4).position(|window| window == [0x04, 0x19, 0x05, 0x14]).unwrap();
    let long = [&bytes[..at], &[0x04, 0x1a, 0, 0, 0x05, 0x14], &bytes[at + 4..]].concat();
    assert_eq!(verified(&forged(|_| {}, long)), Err(GrantError::Encoding));
    // A map of indefinite length.
    assert_eq!(bytes[0], 0xb2);
    let indefinite = [&[0xbf], &bytes[1..], &[0xff]].concat();
    assert_eq!(verified(&forged(|_| {}, indefinite)), Err(GrantError::Encoding));
    let trailing = [bytes.as_slice(), &[0]].concat();
    assert_eq!(verified(&forged(|_| {}, trailing)), Err(GrantError::Encoding));
}

#[test]
fn what_is_cut_lengthened_untagged_deep_or_long_is_refused() {
    let good = mint(&claims(), &issuer()).unwrap();
    for length in 0..good.bytes().len() {
        assert!(verified(&good.bytes()[..length]).is_err(), "cut to {length}");
    }
    assert_eq!(verified(&[good.bytes(), &[0]].concat()), Err(GrantError::Encoding));
    assert_eq!(verified(&good.bytes()[1..]), Err(GrantError::Envelope));
    assert_eq!(verified(&[[0x81; 4_000].as_slice(), &[0]].concat()), Err(GrantError::Envelope));
    assert_eq!(verified(&[0; GRANT_BYTES_MAX + 1]), Err(GrantError::TooLong));
    let deep = [[0x81; 4_000].as_slice(), &[0]].concat();
    assert_eq!(verified(&forged(|_| {}, deep)), Err(GrantError::Envelope));
}

#[test]
fn text_and_bytes_of_a_grant_are_the_same_thing() {
    let good = mint(&claims(), &issuer()).unwrap();
    assert_eq!(SignedGrant::from_text(&good.to_text()), Ok(good.clone()));
    assert_eq!(SignedGrant::from_text(&format!("{}=", good.to_text())), Err(GrantError::Text));
    assert_eq!(SignedGrant::from_text(&format!(" {}", good.to_text())), Err(GrantError::Text));
    assert_eq!(SignedGrant::from_text("AB"), Err(GrantError::Text), "bits that no byte holds");
    assert_eq!(SignedGrant::from_text(&"A".repeat(GRANT_TEXT_MAX + 1)), Err(GrantError::TooLong));
}

#[test]
fn claims_that_no_guard_would_accept_are_not_signed() {
    let refused = |change: fn(&mut Claims)| {
        let mut claims = claims();
        change(&mut claims);
        mint(&claims, &issuer()).unwrap_err()
    };
    assert_eq!(refused(|claims| claims.grant = "XY".into()), GrantError::Claim("cti"));
    assert_eq!(refused(|claims| claims.grant = claims.grant.to_uppercase()), GrantError::Claim("cti"));
    assert_eq!(refused(|claims| claims.holder = "agent-1".into()), GrantError::Claim("sub"));
    assert_eq!(refused(|claims| claims.actions.clear()), GrantError::Claim("actions"));
    assert_eq!(refused(|claims| claims.max_uses = 0), GrantError::Claim("uses"));
    assert_eq!(refused(|claims| claims.expires = claims.not_before), GrantError::Claim("exp"));
    assert_eq!(refused(|claims| claims.task = "a b".into()), GrantError::Claim("task"));
    assert_eq!(refused(|claims| claims.limits.notional = Some(-1)), GrantError::Claim("limits"));
    let many = |claims: &mut Claims| claims.symbols = (0..300).map(|number| format!("S{number}")).collect();
    assert_eq!(refused(many), GrantError::Claim("symbols"));
    let long =
        |claims: &mut Claims| claims.symbols = (0..200).map(|number| format!("{number:0>200}")).collect();
    assert_eq!(refused(long), GrantError::TooLong);
}

fn any_claims() -> impl Strategy<Value = Claims> {
    let texts = || proptest::collection::btree_set("[!-~]{1,12}", 0..6);
    let limits = (any::<Option<u32>>(), any::<Option<u64>>(), any::<Option<i64>>(), any::<Option<i64>>());
    let what = (
        0..5_usize,
        proptest::collection::btree_set(0..10_usize, 1..4),
        any::<Option<u8>>(),
        texts(),
        texts(),
    );
    let who = ("[0-9a-f]{32}", "[!-~]{1,40}", "[!-~]{1,40}", any::<u32>(), any::<[u8; 32]>());
    let when = (0..i64::MAX - 1, 1..i64::MAX, 1_900_u32..=2_999, 1_u32..=12, 1_u32..=28);
    (who, what, limits, when, (1..=u32::MAX, any::<[u8; 32]>(), any::<u64>())).prop_map(
        |(who, what, limits, when, rest)| Claims {
            grant: who.0,
            task: who.1,
            holder: format!("spiffe://trader.test/{}", who.2),
            epoch: who.3,
            holder_key: who.4,
            audience: Audience::ALL[what.0],
            actions: what.1.into_iter().map(|index| Action::ALL[index]).collect(),
            portfolio: what.2.map(|number| format!("portfolio-{number}")),
            symbols: what.3,
            sources: what.4,
            limits: Limits {
                orders: limits.0,
                rows: limits.1,
                notional: limits.2.map(|number| number & i64::MAX),
                order_notional: limits.3.map(|number| number & i64::MAX),
            },
            max_uses: rest.0,
            market_day: MarketDay::from_number(when.2 * 10_000 + when.3 * 100 + when.4).unwrap(),
            not_before: when.0,
            expires: when.0.saturating_add(when.1),
            policy: rest.1,
            revision: rest.2,
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn what_was_minted_is_what_is_verified(claims in any_claims()) {
        let signed = mint(&claims, &issuer()).unwrap();
        let grant = verify(signed.bytes(), &[issuer().verifying_key()]).unwrap();
        prop_assert_eq!(grant.claims(), &claims);
        prop_assert_eq!(grant.digest(), signed.digest());
        prop_assert_eq!(mint(grant.claims(), &issuer()).unwrap(), signed);
    }

    #[test]
    fn a_grant_with_one_byte_changed_is_refused(at in any::<prop::sample::Index>(), by in 1..=255_u8) {
        let mut bytes = mint(&claims(), &issuer()).unwrap().bytes().to_vec();
        let at = at.index(bytes.len());
        bytes[at] ^= by;
        prop_assert!(verified(&bytes).is_err());
    }

    #[test]
    fn bytes_of_any_kind_are_an_error_and_no_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        prop_assert!(verified(&bytes).is_err());
        let wrapped = forged(|_| {}, bytes);
        prop_assert!(verified(&wrapped).is_err());
    }
}

#[test]
fn every_bit_of_a_grant_counts() {
    let good = mint(&claims(), &issuer()).unwrap();
    for bit in 0..good.bytes().len() * 8 {
        let mut bytes = good.bytes().to_vec();
        bytes[bit / 8] ^= 1 << (bit % 8);
        assert!(verified(&bytes).is_err(), "bit {bit}");
    }
}
