//! Attacks on the attestors, each with the one defence switched off that stops it. The TPM here is a few keys in memory
//! that say what a TPM would say, and what it never would; the real one is in `crates/management/tests/routes`.

use aws_lc_rs::agreement::{self, ECDH_P256, PrivateKey};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};

use super::challenge::{ChallengeBook, ChallengeRequest, Randomness, binding};
use super::host::HostEvidence;
use super::tpm::{TpmEvidence, TpmPublics};
use super::*;
use crate::entry::{HostCertificate, Pcrs, TpmState};
use crate::{EntryBook, Requirements};

const NOW: i64 = 1_800_000_000;
const NOW_MS: i64 = NOW * 1_000;
const TLS_KEY: [u8; 32] = [5; 32];

fn agent() -> SpiffeId {
    SpiffeId::agent("home.test", "agent-1").unwrap()
}

fn offered() -> KeySet {
    let key = |digit: &str| digit.repeat(64);
    let tls = keys::to_hex(&TLS_KEY);
    KeySet { tls, signing: key("a"), control: key("b"), data: key("c"), alerts: key("d") }
}

/// Judges what is shown by an entry with these demands.
fn judged(
    requires: Requirements,
    local: Option<LocalProgram>,
    challenge: Option<Challenge>,
    evidence: &Evidence,
    switches: Switches,
) -> Result<Attested, Unattested> {
    let mut book = EntryBook::new();
    book.create(&agent(), &[7; 32], requires, Limits::default(), (NOW, 60)).unwrap();
    let redeemed = book.redeem(&[7; 32], &agent(), NOW_MS).unwrap();
    let shown = Shown { tls_key: TLS_KEY, keys: &offered(), local, challenge, evidence };
    judge(redeemed, shown, NOW_MS, switches)
}

/// Refused for this reason, and let in when the one defence is off.
fn stops(defence: Defence, why: Unattested, attack: impl Fn(Switches) -> Result<Attested, Unattested>) {
    assert_eq!(attack(Switches::default()).unwrap_err(), why);
    assert!(attack(Switches::without(defence)).is_ok(), "{defence:?} is not what stops it");
}

fn issue(tpm: Option<TpmPublics>, nonce: u8) -> (Challenge, Option<String>) {
    let random = Randomness { nonce: [nonce; 32], secret: [2; 32], seed: [3; 32] };
    let (challenge, reply) = Challenge::issue(&random, &ChallengeRequest { tpm }, NOW_MS).unwrap();
    (challenge, reply.credential)
}

fn bound(nonce: u8) -> [u8; 32] {
    binding(&[nonce; 32], &agent(), &offered())
}

#[test]
fn e02_a_ticket_with_another_connections_key_is_refused() {
    let attack = |switches| {
        let mut book = EntryBook::new();
        book.create(&agent(), &[7; 32], Requirements::default(), Limits::default(), (NOW, 60)).unwrap();
        let redeemed = book.redeem(&[7; 32], &agent(), NOW_MS).unwrap();
        let (keys, evidence) = (offered(), Evidence::default());
        let shown =
            Shown { tls_key: [6; 32], keys: &keys, local: None, challenge: None, evidence: &evidence };
        judge(redeemed, shown, NOW_MS, switches)
    };
    stops(Defence::TlsKey, Unattested::TlsKey, attack);
}

fn unix(uid: u32, program: &[u8]) -> Requirements {
    let executables = [Digest::of(program).to_string()].into();
    Requirements { unix: Some(UnixProgram { uid, executables }), ..Requirements::default() }
}

#[test]
fn unix_another_program_or_another_user_is_refused() {
    let local = |uid, program| Some(LocalProgram { uid, executable: Digest::of(program) });
    let none = Evidence::default();
    let on = Switches::default();
    let attested = judged(unix(1, b"trader"), local(1, b"trader"), None, &none, on).unwrap();
    assert_eq!(attested.by(), ["ticket", "unix"]);
    assert_eq!(attested.facts()["unix.uid"], "1");
    stops(Defence::Executable, Unattested::UnixProgram, |switches| {
        judged(unix(1, b"trader"), local(1, b"other"), None, &none, switches)
    });
    stops(Defence::Uid, Unattested::UnixUser, |switches| {
        judged(unix(1, b"trader"), local(2, b"trader"), None, &none, switches)
    });
    let network = judged(unix(1, b"trader"), None, None, &none, on);
    assert_eq!(network.unwrap_err(), Unattested::UnixMissing);
}

/// An authority of hosts.
struct Root {
    issuer: Issuer<'static, KeyPair>,
    der: String,
}

fn params(name: &str, ca: bool) -> CertificateParams {
    let mut params = CertificateParams::new(if ca { vec![] } else { vec![name.to_owned()] }).unwrap();
    params.is_ca = if ca { IsCa::Ca(BasicConstraints::Unconstrained) } else { IsCa::NoCa };
    params.distinguished_name.push(rcgen::DnType::CommonName, name);
    params
}

fn root(name: &str) -> Root {
    let key = KeyPair::generate().unwrap();
    let certificate = params(name, true).self_signed(&key).unwrap();
    let der = BASE64_STANDARD.encode(certificate.der());
    Root { issuer: Issuer::new(params(name, true), key), der }
}

fn demands(root: &Root) -> Requirements {
    let host = HostCertificate { roots: [root.der.clone()].into(), name: "node-1.test".into() };
    Requirements { host: Some(host), ..Requirements::default() }
}

/// Evidence with a chain, signed by a key over some bytes.
fn host_evidence(chain: Vec<String>, key: &KeyPair, message: &[u8]) -> Evidence {
    let own =
        EcdsaKeyPair::from_pkcs8(&aws_lc_rs::signature::ECDSA_P256_SHA256_ASN1_SIGNING, &key.serialize_der());
    let signature = own.unwrap().sign(&SystemRandom::new(), message).unwrap();
    let signature = BASE64_STANDARD.encode(signature);
    Evidence { host: Some(HostEvidence { chain, signature }), ..Evidence::default() }
}

fn certified(root: &Root, name: &str, key: &KeyPair) -> String {
    BASE64_STANDARD.encode(params(name, false).signed_by(key, &root.issuer).unwrap().der())
}

#[test]
fn x509pop_a_host_proves_its_certificate_and_nobody_elses() {
    let (ours, theirs) = (root("Ours"), root("Theirs"));
    let key = KeyPair::generate().unwrap();
    let own = certified(&ours, "node-1.test", &key);
    let ask = |evidence: &Evidence, switches| {
        judged(demands(&ours), None, Some(issue(None, 1).0), evidence, switches)
    };
    let good = host_evidence(vec![own.clone()], &key, &bound(1));
    let attested = ask(&good, Switches::default()).unwrap();
    assert_eq!(
        (attested.by(), attested.facts()["x509pop.name"].as_str()),
        (vec!["ticket", "x509pop"], "node-1.test")
    );

    let foreign = host_evidence(vec![certified(&theirs, "node-1.test", &key)], &key, &bound(1));
    stops(Defence::HostChain, Unattested::HostChain, |switches| ask(&foreign, switches));
    let own_root = params("node-1.test", false).self_signed(&key).unwrap();
    let alone = host_evidence(vec![BASE64_STANDARD.encode(own_root.der())], &key, &bound(1));
    stops(Defence::HostChain, Unattested::HostChain, |switches| ask(&alone, switches));
    let other = host_evidence(vec![certified(&ours, "node-2.test", &key)], &key, &bound(1));
    stops(Defence::HostName, Unattested::HostName, |switches| ask(&other, switches));
    let wild = host_evidence(vec![certified(&ours, "*.test", &key)], &key, &bound(1));
    assert_eq!(ask(&wild, Switches::default()).unwrap_err(), Unattested::HostName);
    // Over another challenge, and by a key that is not the certificate's.
    let old = host_evidence(vec![own.clone()], &key, &bound(9));
    stops(Defence::HostSignature, Unattested::HostSignature, |switches| ask(&old, switches));
    let stolen = host_evidence(vec![own.clone()], &KeyPair::generate().unwrap(), &bound(1));
    stops(Defence::HostSignature, Unattested::HostSignature, |switches| ask(&stolen, switches));
    // A certificate that a host made for itself out of its own, as if it were an authority.
    let nested = Issuer::new(params("node-1.test", false), key);
    let child = KeyPair::generate().unwrap();
    let leaf = params("node-1.test", false).signed_by(&child, &nested).unwrap();
    let nested = host_evidence(vec![BASE64_STANDARD.encode(leaf.der()), own.clone()], &child, &bound(1));
    assert_eq!(ask(&nested, Switches::default()).unwrap_err(), Unattested::HostChain);
    // Nothing shown, nothing asked for, and no challenge.
    assert_eq!(ask(&Evidence::default(), Switches::default()).unwrap_err(), Unattested::HostMissing);
    stops(Defence::Surplus, Unattested::Surplus, |switches| {
        judged(Requirements::default(), None, Some(issue(None, 1).0), &good, switches)
    });
    let none = judged(demands(&ours), None, None, &good, Switches::default());
    assert_eq!(none.unwrap_err(), Unattested::NotFresh);
}

#[test]
fn x509pop_a_long_chain_a_large_one_and_a_weak_key_are_refused_before_any_signature_is_verified() {
    let ours = root("Ours");
    let key = KeyPair::generate().unwrap();
    let own = certified(&ours, "node-1.test", &key);
    let ask = |evidence: &Evidence, switches| {
        judged(demands(&ours), None, Some(issue(None, 1).0), evidence, switches)
    };
    // The chain is good, and one certificate too long.
    let long = vec![own.clone(), ours.der.clone(), ours.der.clone(), ours.der.clone()];
    let long = host_evidence(long, &key, &bound(1));
    stops(Defence::HostCaps, Unattested::HostForm, |switches| ask(&long, switches));
    let mut large = params("node-1.test", false);
    large.custom_extensions =
        vec![rcgen::CustomExtension::from_oid_content(&[1, 3, 6, 1, 4, 1, 9], vec![0; 17_000])];
    let large = BASE64_STANDARD.encode(large.signed_by(&key, &ours.issuer).unwrap().der());
    let large = host_evidence(vec![large], &key, &bound(1));
    stops(Defence::HostCaps, Unattested::HostForm, |switches| ask(&large, switches));
    // A certificate of an RSA key of 1024 bits, made with OpenSSL and self-signed: its form alone is refused.
    let weak = include_str!("tests/rsa1024.der.b64").trim().to_owned();
    let weak = host_evidence(vec![weak], &key, &bound(1));
    assert_eq!(ask(&weak, Switches::default()).unwrap_err(), Unattested::HostForm);
    assert_eq!(ask(&weak, Switches::without(Defence::HostCaps)).unwrap_err(), Unattested::HostChain);
    let p384 = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
    let curve = host_evidence(vec![certified(&ours, "node-1.test", &p384)], &key, &bound(1));
    assert_eq!(ask(&curve, Switches::default()).unwrap_err(), Unattested::HostForm);
    for nonsense in [vec![], vec!["%".to_owned()], vec![String::new()], vec!["AAAA".to_owned()]] {
        let nonsense = host_evidence(nonsense, &key, &bound(1));
        assert_eq!(ask(&nonsense, Switches::default()).unwrap_err(), Unattested::HostForm);
    }
}

/// A TPM in memory: it says whatever it is told to.
struct Tpm {
    ek: PrivateKey,
    ak: EcdsaKeyPair,
    attributes: u32,
}

/// What an attestation key of a TPM says of itself; without `fixedTPM`, what one says that was brought into it.
const FIXED: u32 = 0x0005_0072;
const LOOSE: u32 = 0x0005_0040;

fn sized(bytes: &[u8]) -> Vec<u8> {
    [&u16::try_from(bytes.len()).unwrap().to_be_bytes()[..], bytes].concat()
}

/// The registers 0 and 7, as a selection of three bytes.
const REGISTERS: [u8; 3] = [0b1000_0001, 0, 0];

impl Tpm {
    fn new(seed: u8) -> Self {
        let ak = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap();
        let ek = PrivateKey::from_private_key(&ECDH_P256, &[seed; 32]).unwrap();
        Self { ek, ak, attributes: FIXED }
    }

    fn ak_area(&self) -> Vec<u8> {
        let point = self.ak.public_key().as_ref();
        let head = [&[0, 0x23, 0, 0x0b][..], &self.attributes.to_be_bytes(), &[0, 0]].concat();
        let scheme = [0, 0x10, 0, 0x18, 0, 0x0b, 0, 3, 0, 0x10];
        [&head[..], &scheme, &sized(&point[1..33]), &sized(&point[33..])].concat()
    }

    fn ek_file(&self) -> Vec<u8> {
        let public = self.ek.compute_public_key().unwrap();
        let point = public.as_ref();
        let head = [0, 0x23, 0, 0x0b, 0, 3, 0, 0xb2, 0, 0, 0, 6, 0, 128, 0, 0x43, 0, 0x10, 0, 3, 0, 0x10];
        sized(&[&head[..], &sized(&point[1..33]), &sized(&point[33..])].concat())
    }

    fn publics(&self) -> TpmPublics {
        let ak = BASE64_STANDARD.encode(sized(&self.ak_area()));
        TpmPublics { ek: BASE64_STANDARD.encode(self.ek_file()), ak }
    }

    fn state(&self, pcrs: Option<&[u8]>) -> Requirements {
        let pcrs =
            pcrs.map(|values| Pcrs { selection: [0, 7].into(), digest: Digest::of(values).to_string() });
        let tpm = Some(TpmState { ek: Digest::of(&self.ek_file()).to_string(), pcrs });
        Requirements { tpm, ..Requirements::default() }
    }

    fn quote(&self, about: &[u8; 32], values: &[u8]) -> (Vec<u8>, Vec<u8>) {
        let head =
            [&[0xff, 0x54, 0x43, 0x47, 0x80, 0x18][..], &sized(b"signer"), &sized(about), &[0; 25]].concat();
        let registers = [&[0, 0, 0, 1, 0, 0x0b, 3][..], &REGISTERS].concat();
        let said = [head, registers, sized(&Digest::of(values).0)].concat();
        let signed = self.ak.sign(&SystemRandom::new(), &said).unwrap();
        let (r, s) = signed.as_ref().split_at(32);
        (said, [&[0, 0x18, 0, 0x0b][..], &sized(r), &sized(s)].concat())
    }

    fn shows(&self, about: &[u8; 32], values: &[u8], secret: [u8; 32]) -> Evidence {
        let (quote, signature) = self.quote(about, values);
        let tpm = TpmEvidence {
            secret: keys::to_hex(&secret),
            quote: BASE64_STANDARD.encode(quote),
            signature: BASE64_STANDARD.encode(signature),
        };
        Evidence { tpm: Some(tpm), ..Evidence::default() }
    }

    /// Opens a credential as a TPM does, if it is for these two keys.
    fn opens(&self, credential: &str) -> Option<[u8; 32]> {
        use aws_lc_rs::{cipher, hmac};
        let file = BASE64_STANDARD.decode(credential).unwrap();
        let (object, point) = file[8..].split_at(2 + usize::from(u16::from_be_bytes([file[8], file[9]])));
        let (tag, identity) = (&object[4..36], &object[36..]);
        let (x, y) = (&point[4..36], &point[38..70]);
        let peer = agreement::UnparsedPublicKey::new(&ECDH_P256, [&[4], x, y].concat());
        let public = self.ek.compute_public_key().unwrap();
        let seed = agreement::agree(&self.ek, peer, (), |shared| {
            let own = &public.as_ref()[1..33];
            Ok(Digest::of_parts(&[&[0, 0, 0, 1], shared, b"IDENTITY\0", x, own]).0)
        });
        let kdf = |label: &[u8], context: &[u8], bits: u32| {
            let message = [&[0, 0, 0, 1][..], label, context, &bits.to_be_bytes()].concat();
            hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &seed.unwrap()), &message)
        };
        let name = [&[0, 0x0b][..], &Digest::of(&self.ak_area()).0].concat();
        let integrity = kdf(b"INTEGRITY\0", &[], 256);
        let key = hmac::Key::new(hmac::HMAC_SHA256, integrity.as_ref());
        hmac::verify(&key, &[identity, &name].concat(), tag).ok()?;
        let key = kdf(b"STORAGE\0", &name, 128);
        let key = cipher::UnboundCipherKey::new(&cipher::AES_128, &key.as_ref()[..16]).unwrap();
        let vector = cipher::DecryptionContext::Iv128(aws_lc_rs::iv::FixedLength::from(&[0; 16]));
        let mut bytes = identity.to_vec();
        cipher::DecryptingKey::cfb128(key).unwrap().decrypt(&mut bytes, vector).unwrap();
        bytes[2..].try_into().ok()
    }
}

#[test]
fn e07_a_tpm_attests_and_a_replayed_quote_another_key_drift_and_another_tpm_do_not() {
    let tpm = Tpm::new(11);
    let (started, drifted) = (&b"as it should be"[..], &b"otherwise"[..]);
    let opened = tpm.opens(&issue(Some(tpm.publics()), 1).1.unwrap()).unwrap();
    assert_eq!(opened, [2; 32], "the credential is for this TPM");
    let ask = |evidence: &Evidence, challenge, switches| {
        judged(tpm.state(Some(started)), None, challenge, evidence, switches)
    };
    let fresh = || Some(issue(Some(tpm.publics()), 1).0);
    let attested = ask(&tpm.shows(&bound(1), started, opened), fresh(), Switches::default()).unwrap();
    assert_eq!(attested.by(), ["ticket", "tpm2"]);

    // A quote for an old nonce.
    stops(Defence::QuoteChallenge, Unattested::TpmChallenge, |switches| {
        ask(&tpm.shows(&bound(9), started, opened), fresh(), switches)
    });
    // By a key that is not in this TPM.
    let other = Tpm::new(12);
    stops(Defence::QuoteSignature, Unattested::TpmSignature, |switches| {
        ask(&other.shows(&bound(1), started, opened), fresh(), switches)
    });
    // The machine started otherwise; where the entry does not say how, that is no reason.
    let drift = tpm.shows(&bound(1), drifted, opened);
    stops(Defence::Pcrs, Unattested::TpmPcrs, |switches| ask(&drift, fresh(), switches));
    assert!(judged(tpm.state(None), None, fresh(), &drift, Switches::default()).is_ok());
    // Another TPM with a key of its own.
    let theirs = other.opens(&issue(Some(other.publics()), 1).1.unwrap()).unwrap();
    stops(Defence::PinnedEk, Unattested::TpmEk, |switches| {
        ask(&other.shows(&bound(1), started, theirs), Some(issue(Some(other.publics()), 1).0), switches)
    });
    // A key of another TPM under the name of this one: the credential is for both, and neither opens it.
    let mixed = TpmPublics { ek: tpm.publics().ek, ak: other.publics().ak };
    let credential = issue(Some(mixed.clone()), 1).1.unwrap();
    assert_eq!((tpm.opens(&credential), other.opens(&credential)), (None, None));
    stops(Defence::Activation, Unattested::TpmActivation, |switches| {
        ask(&other.shows(&bound(1), started, [0; 32]), Some(issue(Some(mixed.clone()), 1).0), switches)
    });
    // A key that may leave its TPM, or sign what did not come from it.
    let loose = Tpm { attributes: LOOSE, ..Tpm::new(11) };
    let opened = loose.opens(&issue(Some(loose.publics()), 1).1.unwrap()).unwrap();
    stops(Defence::Attributes, Unattested::TpmAk, |switches| {
        ask(&loose.shows(&bound(1), started, opened), Some(issue(Some(loose.publics()), 1).0), switches)
    });
}

#[test]
fn e07_a_challenge_is_good_once_for_one_key_for_a_minute() {
    let tpm = Tpm::new(11);
    let ask = |at: i64, switches| {
        let random = Randomness { nonce: [1; 32], secret: [2; 32], seed: [3; 32] };
        let request = ChallengeRequest { tpm: Some(tpm.publics()) };
        let (challenge, _) = Challenge::issue(&random, &request, NOW_MS - at).unwrap();
        judged(tpm.state(None), None, Some(challenge), &tpm.shows(&bound(1), b"", [2; 32]), switches)
    };
    assert!(ask(challenge::CHALLENGE_TTL_MS - 1, Switches::default()).is_ok());
    stops(Defence::Fresh, Unattested::NotFresh, |switches| ask(challenge::CHALLENGE_TTL_MS, switches));
    let mut book = ChallengeBook::default();
    book.put([1; 32], issue(None, 1).0);
    assert!(book.take(&[2; 32]).is_none() && book.take(&[1; 32]).is_some() && book.take(&[1; 32]).is_none());
    for number in 0..challenge::CHALLENGES_MAX + 100 {
        let mut key = [0; 32];
        key[..8].copy_from_slice(&number.to_le_bytes());
        book.put(key, issue(None, 1).0);
    }
    assert_eq!(book.waiting(), challenge::CHALLENGES_MAX);
}

#[test]
fn e07_what_a_tpm_says_is_read_strictly() {
    let tpm = Tpm::new(11);
    let evidence = tpm.shows(&bound(1), b"", [2; 32]);
    let ask = |publics: TpmPublics, evidence: &TpmEvidence| {
        let random = Randomness { nonce: [1; 32], secret: [2; 32], seed: [3; 32] };
        let (challenge, _) = Challenge::issue(&random, &ChallengeRequest { tpm: Some(publics) }, NOW_MS)?;
        let evidence = Evidence { tpm: Some(evidence.clone()), ..Evidence::default() };
        // Also what is not signed must be read without harm.
        judged(tpm.state(None), None, Some(challenge), &evidence, Switches::without(Defence::QuoteSignature))
    };
    let good = evidence.tpm.unwrap();
    assert!(ask(tpm.publics(), &good).is_ok());
    let quote = BASE64_STANDARD.decode(&good.quote).unwrap();
    let signature = BASE64_STANDARD.decode(&good.signature).unwrap();
    for end in 0..quote.len() {
        let cut = TpmEvidence { quote: BASE64_STANDARD.encode(&quote[..end]), ..good.clone() };
        assert_eq!(ask(tpm.publics(), &cut).unwrap_err(), Unattested::TpmForm, "{end}");
    }
    let longer = [&quote[..], &[0]].concat();
    let certified = {
        // The same kind of statement as `TPM2_Certify` makes.
        let mut other = quote.clone();
        other[5] = 0x17;
        other
    };
    for wrong in [longer, certified] {
        let wrong = TpmEvidence { quote: BASE64_STANDARD.encode(wrong), ..good.clone() };
        assert_eq!(ask(tpm.publics(), &wrong).unwrap_err(), Unattested::TpmForm);
    }
    for end in 0..signature.len() {
        let cut = TpmEvidence { signature: BASE64_STANDARD.encode(&signature[..end]), ..good.clone() };
        assert_eq!(ask(tpm.publics(), &cut).unwrap_err(), Unattested::TpmForm, "{end}");
    }
    let ek = tpm.ek_file();
    for end in 0..ek.len() {
        let cut = TpmPublics { ek: BASE64_STANDARD.encode(&ek[..end]), ..tpm.publics() };
        assert_eq!(ask(cut, &good).unwrap_err(), Unattested::TpmForm, "{end}");
    }
    let mut off_curve = tpm.ek_file();
    *off_curve.last_mut().unwrap() ^= 1;
    let off_curve = TpmPublics { ek: BASE64_STANDARD.encode(off_curve), ..tpm.publics() };
    assert_eq!(ask(off_curve, &good).unwrap_err(), Unattested::TpmForm);
    let swapped = TpmPublics { ek: tpm.publics().ak, ak: tpm.publics().ek };
    assert_eq!(ask(swapped, &good).unwrap_err(), Unattested::TpmForm);
}
