//! The messages of the Workload API's X.509 profile, as its protocol buffers number their fields.
//!
//! Written by hand: they are few, fixed for good by the specification, and so need neither a compiler nor a
//! build script. What JWT methods say has no place here, for they are refused before their message is read.
//!
//! INVARIANT: no message that holds a private key can be printed, and each erases it when dropped. What the
//! encoder has copied into buffers that go to the kernel is out of reach.

use std::collections::BTreeMap;
use std::fmt;

use zeroize::Zeroize as _;

use crate::workload::Svid;

/// Every request of the profile: none has a field.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Nothing {}

/// What `FetchX509SVID` answers.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct SvidResponse {
    /// One for each identity; here there is one.
    #[prost(message, repeated, tag = "1")]
    svids: Vec<SvidMessage>,
}

/// One identity.
#[derive(Clone, PartialEq, prost::Message)]
#[prost(skip_debug)]
pub(super) struct SvidMessage {
    #[prost(string, tag = "1")]
    spiffe_id: String,
    /// Certificates one after the other, leaf first.
    #[prost(bytes = "vec", tag = "2")]
    chain: Vec<u8>,
    /// PKCS #8.
    #[prost(bytes = "vec", tag = "3")]
    key: Vec<u8>,
    /// Certificates one after the other.
    #[prost(bytes = "vec", tag = "4")]
    bundle: Vec<u8>,
}

impl Drop for SvidMessage {
    fn drop(&mut self) {
        self.key.zeroize();
    }
}

impl fmt::Debug for SvidMessage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SvidMessage({})", self.spiffe_id)
    }
}

/// What `FetchX509Bundles` answers.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct BundlesResponse {
    /// By the trust domain's own id.
    #[prost(btree_map = "string, bytes", tag = "2")]
    bundles: BTreeMap<String, Vec<u8>>,
}

impl From<&Svid> for SvidResponse {
    fn from(svid: &Svid) -> Self {
        let message = SvidMessage {
            spiffe_id: svid.spiffe_id.as_str().to_owned(),
            chain: svid.chain_der.concat(),
            key: svid.key_pkcs8.to_vec(),
            bundle: svid.bundle_der.concat(),
        };
        Self { svids: vec![message] }
    }
}

impl From<&Svid> for BundlesResponse {
    fn from(svid: &Svid) -> Self {
        let domain = format!("spiffe://{}", svid.spiffe_id.trust_domain());
        Self { bundles: BTreeMap::from([(domain, svid.bundle_der.concat())]) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_with_a_private_key_does_not_print_it() {
        let id = "spiffe://house.test/agent/a".to_owned();
        let message = SvidMessage { spiffe_id: id, chain: vec![1], key: vec![222; 32], bundle: vec![2] };
        let printed = format!("{:?}", SvidResponse { svids: vec![message] });
        assert!(printed.contains("agent/a") && !printed.contains("222"), "{printed}");
    }
}
