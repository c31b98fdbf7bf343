//! What a listener turned away before anybody could be asked: handshakes that failed, and requests that no door sees.
//!
//! Owns the codes, each with one spelling, the counters of a listener, and the way of the counts to its journal: at once,
//! and then at most once a second, so that a flood of refusals makes neither the log long nor a handshake slow. Counting
//! is one addition; the journal is written elsewhere, and a journal that is slow makes counts larger, not waits longer.

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use audit::record::Record;
use identity::{IdentityError, PeerClass};
use rustls::{CertificateError, InvalidMessage, OtherError, PeerIncompatible};
use tokio::sync::{Notify, watch};

use crate::journal::{Journal, told};

/// Least time between two records of one listener.
pub const RECORD_EVERY: Duration = Duration::from_secs(1);

macro_rules! refusals {
    ($($(#[$doc:meta])* $name:ident = $text:literal,)+) => {
        /// Why a connection, or a request that reached no door, was refused.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Refusal { $($(#[$doc])* $name,)+ }

        impl Refusal {
            /// Every one of them.
            pub const ALL: &'static [Self] = &[$(Self::$name,)+];

            /// The code's one spelling.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text,)+ }
            }
        }
    };
}

refusals! {
    /// The peer shows no certificate.
    NoCertificate = "no_certificate",
    /// The certificate is for another class than the listener's.
    OtherClass = "other_class",
    /// The certificate is for another installation.
    OtherTrustDomain = "other_trust_domain",
    /// It is the right class and not the expected peer.
    OtherPeer = "other_peer",
    /// None of the class's authorities signed the certificate.
    UnknownAuthority = "unknown_authority",
    /// An authority of ours signed a name, or a form, that it may not sign: its key is in other hands.
    OutsideConstraint = "outside_constraint",
    /// The certificate's time is over.
    Expired = "expired",
    /// The certificate's time has not begun.
    NotYetValid = "not_yet_valid",
    /// The key is not of the one kind that is accepted.
    WeakKey = "weak_key",
    /// Too many certificates, or one that is too large.
    ChainTooLarge = "chain_too_large",
    /// The certificate does not have the one accepted form.
    MalformedCertificate = "malformed_certificate",
    /// The certificate is not for this side of a connection.
    WrongPurpose = "wrong_purpose",
    /// The peer does not hold the certificate's key.
    KeyNotProven = "key_not_proven",
    /// The peer does not offer TLS 1.3.
    TlsVersion = "tls_version",
    /// The peer offers no key exchange that is accepted; where the hybrid one is required, not that one.
    KeyExchange = "key_exchange",
    /// Nothing else in common: cipher suites, signatures, the protocol above.
    NothingInCommon = "nothing_in_common",
    /// What came is no TLS, or breaks its rules.
    NotTls = "not_tls",
    /// The peer did not accept us.
    PeerRefused = "peer_refused",
    /// The handshake took too long.
    Timeout = "timeout",
    /// The listener has as many connections as it takes.
    ConnectionLimit = "connection_limit",
    /// The peer has as many connections as it may.
    PeerLimit = "peer_limit",
    /// The connection was ended because its peer's certificate had.
    CertificateEnded = "certificate_expired",
    /// The head of a request could not be read, or is too large.
    BadHead = "bad_head",
    /// A request that names more than a path, or too long a one.
    BadTarget = "bad_target",
    /// A path of another spelling than the one accepted.
    BadPath = "bad_path",
    /// A body that is too large.
    BodyTooLarge = "body_too_large",
    /// At the newcomers' door: nothing is at this path.
    NoSuchRoute = "no_such_route",
    /// At the newcomers' door: what was sent is no request for enrolment.
    BadRequest = "bad_request",
}

/// A certificate that is refused, with the code for it.
#[derive(Debug)]
pub(crate) struct CertificateRefused {
    pub(crate) refusal: Refusal,
    /// Class of the authority that signed what it may not.
    pub(crate) signed_by: Option<PeerClass>,
    why: Box<dyn Error + Send + Sync>,
}

impl CertificateRefused {
    pub(crate) fn new(refusal: Refusal, why: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self { refusal, signed_by: None, why: why.into() }
    }
}

impl fmt::Display for CertificateRefused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.refusal.as_str(), self.why)
    }
}

impl Error for CertificateRefused {}

impl From<IdentityError> for CertificateRefused {
    fn from(error: IdentityError) -> Self {
        let refusal = match &error {
            IdentityError::PublicKey(_) => Refusal::WeakKey,
            IdentityError::Class { .. } => Refusal::OtherClass,
            IdentityError::TrustDomain { .. } => Refusal::OtherTrustDomain,
            _ => Refusal::MalformedCertificate,
        };
        Self::new(refusal, error)
    }
}

/// The alerts that peers get tell what the standard's codes can tell; our own code travels inside.
impl From<CertificateRefused> for rustls::Error {
    fn from(refused: CertificateRefused) -> Self {
        match refused.refusal {
            Refusal::Expired => CertificateError::Expired,
            Refusal::NotYetValid => CertificateError::NotValidYet,
            Refusal::UnknownAuthority => CertificateError::UnknownIssuer,
            Refusal::WrongPurpose => CertificateError::InvalidPurpose,
            Refusal::OtherPeer => CertificateError::NotValidForName,
            _ => CertificateError::Other(OtherError(Arc::new(refused))),
        }
        .into()
    }
}

/// Why a handshake failed, and whose authority's doing it is; `None` when nobody refused anybody: the connection just
/// ended, as those of a balancer do that looks whether anybody listens.
pub(crate) fn of_handshake(error: &std::io::Error) -> Option<(Refusal, Option<PeerClass>)> {
    let inner = error.get_ref()?.downcast_ref::<rustls::Error>()?;
    Some(match inner {
        rustls::Error::InvalidCertificate(CertificateError::Other(other)) => {
            match other.0.downcast_ref::<CertificateRefused>() {
                Some(refused) => (refused.refusal, refused.signed_by),
                None => (Refusal::MalformedCertificate, None),
            }
        }
        error => (of_tls(error), None),
    })
}

fn of_tls(error: &rustls::Error) -> Refusal {
    match error {
        rustls::Error::NoCertificatesPresented => Refusal::NoCertificate,
        rustls::Error::InvalidCertificate(error) => of_certificate(error),
        rustls::Error::PeerIncompatible(error) => of_offer(error),
        rustls::Error::NoApplicationProtocol => Refusal::NothingInCommon,
        rustls::Error::AlertReceived(_) => Refusal::PeerRefused,
        rustls::Error::InvalidMessage(error) => match error {
            InvalidMessage::CertificatePayloadTooLarge | InvalidMessage::HandshakePayloadTooLarge => {
                Refusal::ChainTooLarge
            }
            InvalidMessage::UnknownProtocolVersion => Refusal::TlsVersion,
            _ => Refusal::NotTls,
        },
        _ => Refusal::NotTls,
    }
}

fn of_certificate(error: &CertificateError) -> Refusal {
    match error {
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => Refusal::Expired,
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => Refusal::NotYetValid,
        CertificateError::UnknownIssuer => Refusal::UnknownAuthority,
        CertificateError::InvalidPurpose => Refusal::WrongPurpose,
        CertificateError::NotValidForName => Refusal::OtherPeer,
        // The chain's own signatures have a code of their own, so this is the handshake's.
        CertificateError::BadSignature => Refusal::KeyNotProven,
        _ => Refusal::MalformedCertificate,
    }
}

fn of_offer(error: &PeerIncompatible) -> Refusal {
    match error {
        PeerIncompatible::SupportedVersionsExtensionRequired
        | PeerIncompatible::Tls12NotOffered
        | PeerIncompatible::Tls12NotOfferedOrEnabled
        | PeerIncompatible::ServerDoesNotSupportTls12Or13
        | PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig => Refusal::TlsVersion,
        PeerIncompatible::NoKxGroupsInCommon
        | PeerIncompatible::NamedGroupsExtensionRequired
        | PeerIncompatible::KeyShareExtensionRequired => Refusal::KeyExchange,
        _ => Refusal::NothingInCommon,
    }
}

/// The refusals of one listener, on their way to its process's journal.
pub struct Refusals {
    listener: String,
    journal: Arc<Journal>,
    counts: Vec<AtomicU64>,
    /// Classes of the authorities that signed what they may not.
    signed_by: Mutex<BTreeSet<PeerClass>>,
    counted: Notify,
}

impl fmt::Debug for Refusals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Refusals({})", self.listener)
    }
}

impl Refusals {
    /// Counters of a listener, named as the topology names it: `management/agents`, `market/desk`.
    #[must_use]
    pub fn new(listener: &str, journal: Arc<Journal>) -> Arc<Self> {
        Arc::new(Self {
            listener: listener.to_owned(),
            journal,
            counts: Refusal::ALL.iter().map(|_| AtomicU64::new(0)).collect(),
            signed_by: Mutex::default(),
            counted: Notify::new(),
        })
    }

    /// Counts one. Never waits.
    pub(crate) fn count(&self, refusal: Refusal, signed_by: Option<PeerClass>) {
        if let Some(class) = signed_by {
            self.signed_by.lock().unwrap_or_else(PoisonError::into_inner).insert(class);
        }
        if let Some(count) = self.counts.get(refusal as usize) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        self.counted.notify_one();
    }

    /// What was counted since it was last asked; nothing when nothing was.
    fn taken(&self) -> Option<Record> {
        let taken = |(refusal, count): (&Refusal, &AtomicU64)| {
            let count = count.swap(0, Ordering::Relaxed);
            (count > 0).then(|| (refusal.as_str().to_owned(), count))
        };
        let reasons: BTreeMap<String, u64> =
            Refusal::ALL.iter().zip(&self.counts).filter_map(taken).collect();
        let signed_by = std::mem::take(&mut *self.signed_by.lock().unwrap_or_else(PoisonError::into_inner));
        let signed_by = signed_by.into_iter().map(|class| class.as_str().to_owned()).collect();
        (!reasons.is_empty()).then(|| Record::HandshakesRefused {
            listener: self.listener.clone(),
            reasons,
            signed_by,
        })
    }

    /// Journals what was counted, elsewhere than where connections are served.
    pub(crate) async fn write(self: &Arc<Self>) {
        let own = self.clone();
        let writing = tokio::task::spawn_blocking(move || match own.taken() {
            // A journal that fails ends the process; there is nothing to undo here.
            Some(record) => own.journal.record(&record).map(drop),
            None => Ok(()),
        });
        if let Ok(Err(error)) = writing.await {
            tracing::error!(%error, listener = self.listener, "refused connections could not be journalled");
        }
    }

    /// Journals as it is counted, until told to stop; the caller writes what is left.
    pub(crate) async fn keep(self: Arc<Self>, mut stop: watch::Receiver<bool>) {
        loop {
            tokio::select! {
                () = self.counted.notified() => self.write().await,
                () = told(&mut stop) => return,
            }
            tokio::select! {
                () = tokio::time::sleep(RECORD_EVERY) => {}
                () = told(&mut stop) => return,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_has_one_spelling_and_a_place_of_its_own() {
        let spellings: BTreeSet<&str> = Refusal::ALL.iter().map(|refusal| refusal.as_str()).collect();
        assert_eq!(spellings.len(), Refusal::ALL.len());
        for (place, refusal) in Refusal::ALL.iter().enumerate() {
            assert_eq!(*refusal as usize, place);
        }
    }

    #[test]
    fn a_flood_of_refusals_makes_one_record_and_loses_none() {
        let directory = tempfile::tempdir().unwrap();
        let journal = Journal::open(directory.path(), "unit-market-1").unwrap();
        let refusals = Refusals::new("market/agents", journal);
        assert_eq!(refusals.taken(), None);
        std::thread::scope(|threads| {
            for _ in 0..4 {
                threads.spawn(|| {
                    for _ in 0..25_000 {
                        refusals.count(Refusal::NoCertificate, None);
                    }
                });
            }
        });
        refusals.count(Refusal::OutsideConstraint, Some(PeerClass::Desk));
        let expected = Record::HandshakesRefused {
            listener: "market/agents".into(),
            reasons: BTreeMap::from([
                ("no_certificate".to_owned(), 100_000),
                ("outside_constraint".to_owned(), 1),
            ]),
            signed_by: vec!["desk".into()],
        };
        assert_eq!(refusals.taken(), Some(expected));
        assert_eq!(refusals.taken(), None);
    }

    #[tokio::test]
    async fn the_first_refusal_is_journalled_at_once_and_the_next_a_second_later() {
        let directory = tempfile::tempdir().unwrap();
        let journal = Journal::open(directory.path(), "desk-1").unwrap();
        let refusals = Refusals::new("desk/agents", journal.clone());
        let (stop, stopped) = watch::channel(false);
        let keeping = tokio::spawn(refusals.clone().keep(stopped));
        let begun = std::time::Instant::now();
        for written in 1..=2 {
            refusals.count(Refusal::Timeout, None);
            for _ in 0..1_000 {
                if journal.unjoined_count() >= written {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            assert_eq!(journal.unjoined_count(), written);
        }
        assert!(begun.elapsed() >= RECORD_EVERY, "two records within {:?}", begun.elapsed());
        stop.send(true).unwrap();
        keeping.await.unwrap();
    }
}
