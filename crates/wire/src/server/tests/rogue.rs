//! What the pinned root of a ticket stops: the same newcomer, trusting whoever answers.

use super::*;

/// Trusts whoever answers.
#[derive(Debug)]
struct TrustsAnybody;

impl rustls::client::danger::ServerCertVerifier for TrustsAnybody {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: rustls_pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        crate::tls::schemes()
    }
}

#[tokio::test]
async fn e09_without_the_pinned_root_a_rogue_management_gets_the_ticket() {
    let (house, rogue) = (Arc::new(House::home()), Arc::new(House::new("home.test", 50)));
    let tls = enrolment_server_config(rogue.identity(&rogue.management())).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (_, asked) = newcomers_door(&house, tls, listener).await;
    let keys = crate::own_keys::OwnKeys::generate().unwrap();
    let client = crate::enrol::newcomers_client(Arc::new(TrustsAnybody), &keys, address.into()).unwrap();
    let request = EnrolRequest {
        ticket: Ticket::new([1; 32], house.root.verifying_key()).to_text().to_string(),
        id: house.agent(),
        offer: crate::renew::first_offer(&keys, &house.agent()),
        evidence: identity::attest::Evidence::default(),
    };
    let _ = client.call_json::<_, EnrolReply>(Method::POST, ENROL_PATH, &[], Some(&request), PATIENCE).await;
    assert_eq!(asked.load(Ordering::SeqCst), 1, "the pinned root is what stops it");
}
