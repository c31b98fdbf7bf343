//! Certificate authorities: the root that signs one authority for each class of peers, and what such an
//! authority signs.
//!
//! All are Ed25519 keys made from seeds that are handed in; leaves are P-256. There is no root certificate:
//! whoever needs the root has its public key, which comes with the ticket. An authority says its trust domain
//! and its class in its subject, as organisation and as common name `authority=<class>`, both under the
//! root's signature.
//!
//! INVARIANT: an authority issues only for ids of its own class and trust domain.

use std::sync::Arc;

use keys::{Signer, VerifyingKey};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyUsagePurpose, PublicKeyData, SanType, SerialNumber, SubjectPublicKeyInfo,
};
use time::OffsetDateTime;

use crate::bundle::{Bundle, SignedBundle};
use crate::leaf::{check_p256, epoch_name, parse_certificate};
use crate::spiffe::is_trust_domain;
use crate::{IdentityError, PeerClass, SpiffeId};

/// How far into the past a certificate's life is dated, because clocks differ. Seconds.
pub const BACKDATE_S: i64 = 30;

/// Longest life of a leaf. Seconds.
pub const LEAF_TTL_MAX_S: i64 = 24 * 3600;

/// Longest life of an authority. Seconds.
pub const AUTHORITY_TTL_MAX_S: i64 = 20 * 365 * 24 * 3600;

/// The ASN.1 object identifier of Ed25519 keys and signatures, 1.3.101.112 (RFC 8410, section 3), as it
/// stands in a SubjectPublicKeyInfo before the 32 bytes of the key.
const ED25519_SPKI_HEAD: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

/// The installation's root of trust: signs the authorities and the trust bundle, nothing else.
#[derive(Debug)]
pub struct Root {
    trust_domain: String,
    key: Arc<dyn Signer>,
}

impl Root {
    /// Takes the root's key, or whoever signs with it.
    ///
    /// # Errors
    /// [`IdentityError::SpiffeId`] when the trust domain is not well formed.
    pub fn new(trust_domain: &str, key: impl Into<Arc<dyn Signer>>) -> Result<Self, IdentityError> {
        if !is_trust_domain(trust_domain) {
            return Err(IdentityError::SpiffeId("the trust domain is not well formed"));
        }
        Ok(Self { trust_domain: trust_domain.to_owned(), key: key.into() })
    }

    /// The public half, which every ticket carries.
    #[must_use]
    pub fn verifying_key(&self) -> VerifyingKey {
        self.key.verifying_key()
    }

    /// The installation's trust domain.
    #[must_use]
    pub fn trust_domain(&self) -> &str {
        &self.trust_domain
    }

    /// Makes the authority of a class from its key. `now` and `ttl_s` in seconds; `serial` random.
    ///
    /// # Errors
    /// [`IdentityError::Lifetime`], or [`IdentityError::Make`] when the certificate cannot be encoded.
    pub fn authority(
        &self,
        class: PeerClass,
        key: impl Into<Arc<dyn Signer>>,
        now: i64,
        ttl_s: i64,
        serial: [u8; 16],
    ) -> Result<Authority, IdentityError> {
        let key = key.into();
        let mut params = params(now, ttl_s, AUTHORITY_TTL_MAX_S, serial)?;
        params.distinguished_name = authority_name(&self.trust_domain, class);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];

        let mut issuer = CertificateParams::default();
        issuer.distinguished_name = name(&self.trust_domain, "root");
        issuer.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let signer = Certifier::of(self.key.as_ref());
        let certificate = params
            .signed_by(&Certifier::of(key.as_ref()), &Issuer::from_params(&issuer, &signer))
            .map_err(|error| IdentityError::Make(error.to_string()))?;
        Authority::restore(key, certificate.der())
    }

    /// Signs the trust bundle.
    ///
    /// # Errors
    /// [`IdentityError::Bundle`] when the bundle is not one that a receiver would accept.
    pub fn sign_bundle(&self, bundle: &Bundle) -> Result<SignedBundle, IdentityError> {
        SignedBundle::sign(bundle, self.key.as_ref())
    }
}

/// The certificate authority of one class of peers.
#[derive(Debug)]
pub struct Authority {
    key: Arc<dyn Signer>,
    certificate: AuthorityCertificate,
}

impl Authority {
    /// Takes an authority's key and certificate, as [`Root::authority`] made them.
    ///
    /// # Errors
    /// [`IdentityError::Certificate`] when the certificate is no authority's, [`IdentityError::PublicKey`]
    /// when it is for another key.
    pub fn restore(key: impl Into<Arc<dyn Signer>>, certificate_der: &[u8]) -> Result<Self, IdentityError> {
        let key = key.into();
        let certificate = AuthorityCertificate::parse(certificate_der)?;
        if certificate.key != *key.verifying_key().as_bytes() {
            return Err(IdentityError::PublicKey("the certificate is for another key"));
        }
        Ok(Self { key, certificate })
    }

    /// The class it issues for.
    #[must_use]
    pub fn class(&self) -> PeerClass {
        self.certificate.class
    }

    /// Its certificate, DER.
    #[must_use]
    pub fn certificate(&self) -> &[u8] {
        &self.certificate.der
    }

    /// The public half of its key.
    #[must_use]
    pub fn verifying_key(&self) -> VerifyingKey {
        self.key.verifying_key()
    }

    /// Issues a leaf certificate (DER) for a peer's public key (SubjectPublicKeyInfo, DER).
    ///
    /// `now` and `ttl_s` in seconds; `serial` random. The life begins [`BACKDATE_S`] before `now`.
    ///
    /// # Errors
    /// [`IdentityError::Class`] or [`IdentityError::TrustDomain`] when the id is not this authority's to
    /// certify, [`IdentityError::PublicKey`] when the key is not P-256, [`IdentityError::Lifetime`] when the
    /// life is too long or reaches past the authority's own.
    pub fn issue(
        &self,
        spki_der: &[u8],
        id: &SpiffeId,
        epoch: u32,
        now: i64,
        ttl_s: i64,
        serial: [u8; 16],
    ) -> Result<Vec<u8>, IdentityError> {
        let own = &self.certificate;
        if PeerClass::of(id) != Some(own.class) {
            return Err(IdentityError::Class { id: id.clone(), class: own.class.as_str() });
        }
        if id.trust_domain() != own.trust_domain {
            return Err(IdentityError::TrustDomain {
                id: id.clone(),
                trust_domain: own.trust_domain.clone(),
            });
        }
        check_p256(spki_der)?;
        let mut params = params(now, ttl_s, LEAF_TTL_MAX_S, serial)?;
        if now.saturating_add(ttl_s) > own.expires {
            return Err(IdentityError::Lifetime { ttl_s });
        }
        let uri = id.as_str().try_into().map_err(|_| IdentityError::SpiffeId("not ASCII"))?;
        params.subject_alt_names = vec![SanType::URI(uri)];
        params.distinguished_name.push(DnType::CommonName, epoch_name(epoch));
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];

        let mut issuer = CertificateParams::default();
        issuer.distinguished_name = authority_name(&own.trust_domain, own.class);
        issuer.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let key =
            SubjectPublicKeyInfo::from_der(spki_der).map_err(|_| IdentityError::PublicKey("unreadable"))?;
        let signer = Certifier::of(self.key.as_ref());
        let certificate = params
            .signed_by(&key, &Issuer::from_params(&issuer, &signer))
            .map_err(|error| IdentityError::Make(error.to_string()))?;
        Ok(certificate.der().to_vec())
    }
}

/// An authority's certificate, parsed strictly. Proves form only, until [`AuthorityCertificate::verify`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuthorityCertificate {
    der: Vec<u8>,
    class: PeerClass,
    trust_domain: String,
    key: [u8; 32],
    not_before: i64,
    expires: i64,
}

impl AuthorityCertificate {
    /// Parses an authority's certificate.
    ///
    /// # Errors
    /// [`IdentityError::Certificate`] or [`IdentityError::PublicKey`] when it does not have the one accepted
    /// form.
    pub fn parse(der: &[u8]) -> Result<Self, IdentityError> {
        let certificate = parse_certificate(der)?;
        let wrong = || IdentityError::Certificate("the subject must be a trust domain and authority=<class>");

        let constraints = certificate
            .basic_constraints()
            .map_err(|_| IdentityError::Certificate("its basic constraints cannot be parsed"))?;
        match constraints {
            Some(found) if found.value.ca && found.value.path_len_constraint == Some(0) => {}
            _ => return Err(IdentityError::Certificate("no authority with a path length of 0")),
        }
        let spki = certificate.public_key().raw;
        let key = spki
            .strip_prefix(&ED25519_SPKI_HEAD)
            .and_then(|key| <[u8; 32]>::try_from(key).ok())
            .ok_or(IdentityError::PublicKey("an authority's key must be Ed25519"))?;

        let mut attributes = certificate.subject().iter_attributes();
        let (Some(organisation), Some(common_name), None) =
            (attributes.next(), attributes.next(), attributes.next())
        else {
            return Err(wrong());
        };
        if organisation.attr_type() != &x509_parser::oid_registry::OID_X509_ORGANIZATION_NAME
            || common_name.attr_type() != &x509_parser::oid_registry::OID_X509_COMMON_NAME
        {
            return Err(wrong());
        }
        let trust_domain = organisation.as_str().map_err(|_| wrong())?.to_owned();
        let class = common_name.as_str().ok().and_then(|text| text.strip_prefix("authority="));
        let class = class.and_then(PeerClass::parse).ok_or_else(wrong)?;
        if !is_trust_domain(&trust_domain) {
            return Err(wrong());
        }
        let not_before = certificate.validity().not_before.timestamp();
        let expires = certificate.validity().not_after.timestamp();
        Ok(Self { class, trust_domain, key, not_before, expires, der: der.to_vec() })
    }

    /// Checks that the root signed it and that it is valid at `now`, in seconds since the Unix epoch.
    ///
    /// # Errors
    /// [`IdentityError::Certificate`] when not.
    pub fn verify(&self, root: &VerifyingKey, now: i64) -> Result<(), IdentityError> {
        self.verify_signature(root)?;
        if self.valid_at(now) {
            Ok(())
        } else {
            Err(IdentityError::Certificate("the authority has expired or is not valid yet"))
        }
    }

    /// Whether `now`, in seconds since the Unix epoch, is within its life.
    #[must_use]
    pub fn valid_at(&self, now: i64) -> bool {
        (self.not_before..=self.expires).contains(&now)
    }

    pub(crate) fn verify_signature(&self, root: &VerifyingKey) -> Result<(), IdentityError> {
        let certificate = parse_certificate(&self.der)?;
        root.verify(certificate.tbs_certificate.as_ref(), &certificate.signature_value.data)
            .map_err(|_| IdentityError::Certificate("the root did not sign the authority"))
    }

    /// Whether this authority's key signed a certificate (DER), whatever the certificate says.
    #[must_use]
    pub fn has_signed(&self, certificate_der: &[u8]) -> bool {
        let Ok(certificate) = parse_certificate(certificate_der) else { return false };
        if certificate.signature_algorithm.algorithm != x509_parser::oid_registry::OID_SIG_ED25519 {
            return false;
        }
        let signature = &certificate.signature_value.data;
        VerifyingKey::from_bytes(&self.key)
            .is_ok_and(|key| key.verify(certificate.tbs_certificate.as_ref(), signature).is_ok())
    }

    /// Whether it is for this key.
    #[must_use]
    pub fn is_of(&self, key: &VerifyingKey) -> bool {
        self.key == *key.as_bytes()
    }

    /// The certificate, DER.
    #[must_use]
    pub fn der(&self) -> &[u8] {
        &self.der
    }

    /// The class it may issue for.
    #[must_use]
    pub fn class(&self) -> PeerClass {
        self.class
    }

    /// The trust domain it belongs to.
    #[must_use]
    pub fn trust_domain(&self) -> &str {
        &self.trust_domain
    }
}

fn params(
    now: i64,
    ttl_s: i64,
    ttl_max_s: i64,
    serial: [u8; 16],
) -> Result<CertificateParams, IdentityError> {
    let moment = |seconds: Option<i64>| {
        seconds
            .and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok())
            .ok_or(IdentityError::Lifetime { ttl_s })
    };
    if !(1..=ttl_max_s).contains(&ttl_s) {
        return Err(IdentityError::Lifetime { ttl_s });
    }
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.not_before = moment(now.checked_sub(BACKDATE_S))?;
    params.not_after = moment(now.checked_add(ttl_s))?;
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

fn authority_name(trust_domain: &str, class: PeerClass) -> DistinguishedName {
    name(trust_domain, &format!("authority={class}"))
}

fn name(trust_domain: &str, common_name: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::OrganizationName, trust_domain);
    name.push(DnType::CommonName, common_name);
    name
}

/// One of our keys in the shape that the certificate writer asks for.
struct Certifier<'a> {
    key: &'a dyn Signer,
    public: VerifyingKey,
}

impl<'a> Certifier<'a> {
    fn of(key: &'a dyn Signer) -> Self {
        Self { key, public: key.verifying_key() }
    }
}

impl PublicKeyData for Certifier<'_> {
    fn der_bytes(&self) -> &[u8] {
        self.public.as_bytes()
    }

    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        &rcgen::PKCS_ED25519
    }
}

impl rcgen::SigningKey for Certifier<'_> {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        self.key.sign(message).map(|signature| signature.to_vec()).map_err(|_| rcgen::Error::RemoteKeyError)
    }
}

#[cfg(test)]
mod tests {
    use keys::SigningKey;

    use super::*;
    use crate::leaf::{Leaf, newcomer_key};

    const NOW: i64 = 1_800_000_000;

    fn root() -> Root {
        Root::new("home.test", SigningKey::from_seed(&[1; 32])).unwrap()
    }

    fn agents() -> Authority {
        root()
            .authority(PeerClass::Agents, SigningKey::from_seed(&[2; 32]), NOW, 86_400 * 365, [9; 16])
            .unwrap()
    }

    fn spki() -> Vec<u8> {
        rcgen::KeyPair::generate().unwrap().subject_public_key_info()
    }

    fn agent() -> SpiffeId {
        SpiffeId::agent("home.test", "agent-1").unwrap()
    }

    #[test]
    fn a_leaf_says_what_it_was_issued_for() {
        let spki = spki();
        let leaf = Leaf::parse(&agents().issue(&spki, &agent(), 3, NOW, 600, [0xff; 16]).unwrap()).unwrap();
        assert_eq!(leaf.id, agent());
        assert_eq!(leaf.class, PeerClass::Agents);
        assert_eq!(leaf.epoch, 3);
        assert_eq!(leaf.key, keys::Digest::of(&spki).0);
        assert_eq!((leaf.not_before, leaf.expires), (NOW - 30, NOW + 600));
    }

    #[test]
    fn an_authority_refuses_what_is_not_its_own_to_certify() {
        let agents = agents();
        let issue = |id: &SpiffeId, ttl_s| agents.issue(&spki(), id, 1, NOW, ttl_s, [1; 16]);
        let management = SpiffeId::management("home.test").unwrap();
        let stranger = SpiffeId::agent("away.test", "agent-1").unwrap();
        let nobody = SpiffeId::parse("spiffe://home.test/agent/a/b").unwrap();
        assert!(matches!(issue(&management, 60), Err(IdentityError::Class { .. })));
        assert!(matches!(issue(&nobody, 60), Err(IdentityError::Class { .. })));
        assert!(matches!(issue(&stranger, 60), Err(IdentityError::TrustDomain { .. })));
        for ttl_s in [0, -1, LEAF_TTL_MAX_S + 1, i64::MAX] {
            assert_eq!(issue(&agent(), ttl_s), Err(IdentityError::Lifetime { ttl_s }));
        }
        let late = agents.issue(&spki(), &agent(), 1, NOW + 86_400 * 365, 60, [1; 16]);
        assert_eq!(late, Err(IdentityError::Lifetime { ttl_s: 60 }));
    }

    #[test]
    fn only_a_p256_key_is_certified() {
        let other = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
        let mut long = spki();
        long.push(0);
        for spki in [other.subject_public_key_info(), long, spki()[..90].to_vec(), Vec::new()] {
            let refused = agents().issue(&spki, &agent(), 1, NOW, 60, [1; 16]);
            assert!(matches!(refused, Err(IdentityError::PublicKey(_))));
        }
    }

    #[test]
    fn an_authority_is_known_by_the_roots_signature() {
        let agents = agents();
        let certificate = AuthorityCertificate::parse(agents.certificate()).unwrap();
        assert_eq!(certificate.class(), PeerClass::Agents);
        assert_eq!(certificate.trust_domain(), "home.test");
        assert_eq!(certificate.verify(&root().verifying_key(), NOW), Ok(()));
        assert!(certificate.verify(&root().verifying_key(), NOW + 86_400 * 366).is_err());
        assert!(certificate.verify(&root().verifying_key(), NOW - 60).is_err());
        assert!(certificate.verify(&agents.verifying_key(), NOW).is_err());
        let mut forged = agents.certificate().to_vec();
        let place = forged.windows(6).position(|window| window == b"agents").unwrap();
        forged[place..place + 6].copy_from_slice(b"ledger");
        // The first occurrence is the subject, since the issuer is the root.
        let forged = AuthorityCertificate::parse(&forged).unwrap();
        assert_eq!(forged.class(), PeerClass::Ledger);
        assert!(forged.verify(&root().verifying_key(), NOW).is_err());
    }

    #[test]
    fn a_leaf_is_no_authority_and_an_authority_is_no_leaf() {
        let leaf = agents().issue(&spki(), &agent(), 1, NOW, 60, [1; 16]).unwrap();
        assert!(AuthorityCertificate::parse(&leaf).is_err());
        assert!(Leaf::parse(agents().certificate()).is_err());
        assert!(newcomer_key(&leaf).is_err());
        assert!(newcomer_key(agents().certificate()).is_err());
    }

    #[test]
    fn an_authority_is_restored_only_with_its_own_key() {
        let certificate = agents().certificate().to_vec();
        assert!(Authority::restore(SigningKey::from_seed(&[2; 32]), &certificate).is_ok());
        assert!(Authority::restore(SigningKey::from_seed(&[3; 32]), &certificate).is_err());
    }

    #[test]
    fn a_leaf_of_any_other_form_is_refused() {
        let key = rcgen::KeyPair::generate().unwrap();
        let make = |change: &dyn Fn(&mut CertificateParams)| {
            let mut params = params(NOW, 60, 60, [1; 16]).unwrap();
            params.distinguished_name.push(DnType::CommonName, "epoch=1");
            params.subject_alt_names = vec![SanType::URI("spiffe://home.test/agent/a".try_into().unwrap())];
            params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
            change(&mut params);
            Leaf::parse(params.self_signed(&key).unwrap().der())
        };
        assert!(make(&|_| ()).is_ok());
        assert!(make(&|params| params.key_usages.clear()).is_err());
        assert!(make(&|params| params.key_usages.push(KeyUsagePurpose::KeyCertSign)).is_err());
        let uri = |text: &str| SanType::URI(text.try_into().unwrap());
        assert!(make(&|params| params.subject_alt_names.clear()).is_err());
        assert!(make(&|params| params.subject_alt_names.push(uri("spiffe://home.test/management"))).is_err());
        assert!(
            make(&|params| params.subject_alt_names.push(SanType::DnsName("a".try_into().unwrap()))).is_err()
        );
        assert!(make(&|params| params.subject_alt_names = vec![uri("https://home.test/agent/a")]).is_err());
        assert!(make(&|params| params.subject_alt_names = vec![uri("spiffe://home.test/other")]).is_err());
        assert!(make(&|params| params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained)).is_err());
        for subject in ["", "epoch=", "epoch=01", "epoch=+1", "epoch=-1", "epoch=4294967296", "1", "epoch=1 "]
        {
            let change = |params: &mut CertificateParams| {
                params.distinguished_name = DistinguishedName::new();
                params.distinguished_name.push(DnType::CommonName, subject);
            };
            assert!(make(&change).is_err(), "{subject:?} was accepted");
        }
        assert!(make(&|params| params.distinguished_name.push(DnType::OrganizationName, "x")).is_err());
        assert!(make(&|params| params.distinguished_name = DistinguishedName::new()).is_err());
        let leaf = agents().issue(&spki(), &agent(), 1, NOW, 60, [1; 16]).unwrap();
        assert!(Leaf::parse(&[leaf.as_slice(), &[0]].concat()).is_err());
        assert!(Leaf::parse(&vec![0x30; 9000]).is_err());
        assert!(Leaf::parse(&[]).is_err());
    }
}
