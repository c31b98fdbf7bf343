//! Who is let in: the judgement on a certificate, on either side of a connection.
//!
//! Owns the order of the checks: size, key, name, authority, times, and only then the authority's signature. The trust
//! anchors are the class's authorities in the signed bundle; whatever else a peer sends along is ignored.
//!
//! A certificate that is refused for its name is looked at once more: when an authority of ours has signed it all the
//! same, that authority's key is in other hands, and the refusal says so.

use identity::{AuthorityCertificate, IdentityError, Leaf, PeerClass, SpiffeId};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{WebPkiSupportedAlgorithms, aws_lc_rs};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, TrustAnchor, UnixTime};
use webpki::{EndEntityCert, KeyUsage};

use crate::danger::{Defence, Switches};
use crate::refusals::{CertificateRefused, Refusal};
use crate::tls::Credentials;

/// Most certificates that a peer may send: its own and its authority's.
pub const CHAIN_MAX: usize = 2;

/// Where the authorities come from that a verifier goes by.
#[derive(Debug)]
pub(crate) enum Trust {
    /// From the bundle of the moment.
    Current(Credentials),
    /// These.
    Fixed(Vec<AuthorityCertificate>),
}

impl Trust {
    fn of_class(&self, class: PeerClass) -> Vec<AuthorityCertificate> {
        match self {
            Self::Current(credentials) => credentials.current().bundle().authorities(class),
            Self::Fixed(authorities) => authorities.clone(),
        }
    }

    /// The authorities of every class.
    fn all(&self) -> Vec<AuthorityCertificate> {
        match self {
            Self::Current(credentials) => {
                let identity = credentials.current();
                PeerClass::ALL.iter().flat_map(|class| identity.bundle().authorities(*class)).collect()
            }
            Self::Fixed(authorities) => authorities.clone(),
        }
    }

    /// Looks a refused certificate over for what only a stolen authority's key can have made: one of our authorities
    /// signed it, and its name or form is not that authority's to sign.
    pub(crate) fn look_into(
        &self,
        mut refused: CertificateRefused,
        certificate: &[u8],
    ) -> CertificateRefused {
        let of_name = matches!(
            refused.refusal,
            Refusal::OtherClass
                | Refusal::OtherTrustDomain
                | Refusal::UnknownAuthority
                | Refusal::MalformedCertificate
        );
        if !of_name {
            return refused;
        }
        let authorities = self.all();
        let Some(signer) = authorities.iter().find(|authority| authority.has_signed(certificate)) else {
            return refused;
        };
        let is_its_own = Leaf::parse(certificate).is_ok_and(|leaf| {
            leaf.class == signer.class() && leaf.id.trust_domain() == signer.trust_domain()
        });
        if !is_its_own {
            refused.refusal = Refusal::OutsideConstraint;
            refused.signed_by = Some(signer.class());
        }
        refused
    }
}

/// Accepts certificates of one class's authorities, on either side of a connection.
#[derive(Debug)]
pub(crate) struct ClassVerifier {
    trust: Trust,
    class: PeerClass,
    id: Option<SpiffeId>,
    algorithms: WebPkiSupportedAlgorithms,
    switches: Switches,
}

impl ClassVerifier {
    pub(crate) fn new(trust: Trust, class: PeerClass, id: Option<SpiffeId>) -> Self {
        Self { trust, class, id, algorithms: algorithms(), switches: Switches::default() }
    }

    pub(crate) fn with_switches(self, switches: Switches) -> Self {
        Self { switches, ..self }
    }

    /// Judges a certificate.
    pub(crate) fn check(
        &self,
        end_entity: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        now: UnixTime,
        usage: KeyUsage,
    ) -> Result<(), CertificateRefused> {
        self.judge(end_entity, others, now, usage)
            .map_err(|refused| self.trust.look_into(refused, end_entity))
    }

    /// Form and size first, then who it is, then the signature: nothing is computed for what is refused
    /// anyway.
    fn judge(
        &self,
        end_entity: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        now: UnixTime,
        usage: KeyUsage,
    ) -> Result<(), CertificateRefused> {
        if self.switches.on(Defence::ChainSize) {
            check_chain_size(end_entity, others)?;
        }
        let leaf = leaf(end_entity, self.switches)?;
        let class = if self.switches.on(Defence::Class) { self.class } else { leaf.class };
        if leaf.class != class {
            return Err(IdentityError::Class { id: leaf.id, class: class.as_str() }.into());
        }
        if self.id.as_ref().is_some_and(|wanted| *wanted != leaf.id) {
            return Err(CertificateRefused::new(Refusal::OtherPeer, "it is for another peer"));
        }
        let authorities = self.authorities(class, others);
        let now = if self.switches.on(Defence::Validity) { now } else { start_of(&leaf) };
        let mut anchors: Vec<TrustAnchor<'_>> = Vec::new();
        let ders: Vec<CertificateDer<'_>> =
            authorities.iter().map(|authority| CertificateDer::from(authority.der())).collect();
        for (authority, der) in authorities.iter().zip(&ders) {
            let is_its_own = authority.class() == class && leaf.id.trust_domain() == authority.trust_domain();
            if self.switches.on(Defence::Constraint) && !is_its_own {
                let trust_domain = authority.trust_domain().to_owned();
                return Err(IdentityError::TrustDomain { id: leaf.id, trust_domain }.into());
            }
            if authority.valid_at(seconds(now)) {
                let anchor = webpki::anchor_from_trusted_cert(der)
                    .map_err(|_| IdentityError::Certificate("the authority is no trust anchor"))?;
                anchors.push(anchor);
            }
        }
        if anchors.is_empty() {
            return Err(CertificateRefused::new(Refusal::Expired, "no authority of the class is valid now"));
        }
        if !self.switches.on(Defence::Authority) {
            return Ok(());
        }
        // What else the peer sent is not looked at: the only issuers are the authorities of the bundle.
        EndEntityCert::try_from(end_entity)
            .and_then(|certificate| {
                certificate
                    .verify_for_usage(self.algorithms.all, &anchors, &[], now, usage, None, None)
                    .map(drop)
            })
            .map_err(from_webpki)
    }

    /// Whose signatures count.
    fn authorities(&self, class: PeerClass, others: &[CertificateDer<'_>]) -> Vec<AuthorityCertificate> {
        let mut authorities =
            if self.switches.on(Defence::Constraint) { self.trust.of_class(class) } else { self.trust.all() };
        if !self.switches.on(Defence::PinnedAuthorities)
            && let Trust::Current(credentials) = &self.trust
        {
            let root = *credentials.current().root();
            let sent = others.iter().filter_map(|der| AuthorityCertificate::parse(der).ok());
            authorities.extend(sent.filter(|sent| sent.verify(&root, crate::tls::unix_now()).is_ok()));
        }
        authorities
    }
}

/// What a certificate says.
pub(crate) fn leaf(certificate: &[u8], switches: Switches) -> Result<Leaf, IdentityError> {
    #[cfg(test)]
    if !switches.on(Defence::KeyStrength) {
        return crate::danger::leaf_of_any_key(certificate)
            .ok_or(IdentityError::Certificate("it says nothing"));
    }
    let _ = switches;
    Leaf::parse(certificate)
}

fn start_of(leaf: &Leaf) -> UnixTime {
    UnixTime::since_unix_epoch(std::time::Duration::from_secs(leaf.not_before.unsigned_abs()))
}

impl ClientCertVerifier for ClassVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.check(end_entity, intermediates, now, KeyUsage::client_auth())?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(no_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        if !self.switches.on(Defence::Possession) {
            return Ok(HandshakeSignatureValid::assertion());
        }
        verify_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        match self.switches.on(Defence::KeyStrength) {
            true => schemes(),
            false => self.algorithms.supported_schemes(),
        }
    }
}

impl ServerCertVerifier for ClassVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.check(end_entity, intermediates, now, KeyUsage::server_auth())?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(no_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        schemes()
    }
}

/// Refuses a chain that is too long or too large, before anything is computed from it.
pub(crate) fn check_chain_size(
    end_entity: &CertificateDer<'_>,
    others: &[CertificateDer<'_>],
) -> Result<(), CertificateRefused> {
    let too_large =
        |certificate: &CertificateDer<'_>| certificate.len() > identity::leaf::CERTIFICATE_BYTES_MAX;
    if others.len() >= CHAIN_MAX || too_large(end_entity) || others.iter().any(too_large) {
        let why = "at most two certificates of 8 KiB are looked at";
        return Err(CertificateRefused::new(Refusal::ChainTooLarge, why));
    }
    Ok(())
}

/// Checks that the peer holds the key of its certificate.
pub(crate) fn verify_signature(
    message: &[u8],
    certificate: &CertificateDer<'_>,
    signature: &DigitallySignedStruct,
) -> Result<HandshakeSignatureValid, rustls::Error> {
    rustls::crypto::verify_tls13_signature(message, certificate, signature, &algorithms())
}

/// Leaves have P-256 keys; authorities sign with Ed25519.
pub(crate) fn schemes() -> Vec<SignatureScheme> {
    vec![SignatureScheme::ECDSA_NISTP256_SHA256, SignatureScheme::ED25519]
}

pub(crate) fn no_tls12() -> rustls::Error {
    rustls::Error::General("TLS 1.2 is not spoken".to_owned())
}

/// An identity that is not acceptable, in the words of the TLS library.
pub(crate) fn refused(error: IdentityError) -> rustls::Error {
    CertificateRefused::from(error).into()
}

pub(crate) fn seconds(time: UnixTime) -> i64 {
    i64::try_from(time.as_secs()).unwrap_or(i64::MAX)
}

/// Every algorithm that a signature is verified with.
pub(crate) fn algorithms() -> WebPkiSupportedAlgorithms {
    aws_lc_rs::default_provider().signature_verification_algorithms
}

fn from_webpki(error: webpki::Error) -> CertificateRefused {
    let refusal = match error {
        webpki::Error::CertExpired { .. } => Refusal::Expired,
        webpki::Error::CertNotValidYet { .. } => Refusal::NotYetValid,
        webpki::Error::UnknownIssuer | webpki::Error::InvalidSignatureForPublicKey => {
            Refusal::UnknownAuthority
        }
        webpki::Error::RequiredEkuNotFoundContext(_) => Refusal::WrongPurpose,
        _ => Refusal::MalformedCertificate,
    };
    CertificateRefused::new(refusal, error)
}

#[cfg(test)]
mod conformance;
