//! What a thief can do who has taken all that one member has: nothing of another member's, and nothing of the past.

use std::sync::Arc;

use identity::{PeerClass, SpiffeId};
use keys::sealing::{Channel, Context, Sealed, SealingPublicKey};
use testkit::intruder::{Shown, knock};
use wire::client::Client;
use wire::renew::Membership;
use wire::tls::Identity;

use crate::rotation::{Open, role};

/// A secret on its way to a member, one for each channel.
fn sealed_to(identity: &Identity) -> Vec<(Channel, Sealed)> {
    let keys = identity.own_keys().public();
    let to =
        [(Channel::Control, &keys.control), (Channel::Data, &keys.data), (Channel::Alerts, &keys.alerts)];
    to.into_iter()
        .map(|(channel, key)| {
            let key = SealingPublicKey::from_hex(key).unwrap();
            let context = context(channel, identity.id(), identity.epoch());
            (channel, key.seal(&[channel.as_str().len() as u8; 32], &context, b"secret").unwrap())
        })
        .collect()
}

fn context(channel: Channel, id: &SpiffeId, epoch: u32) -> Context<'_> {
    Context { channel, recipient: id.as_str(), epoch, sequence: 7 }
}

/// How many of the messages the holder of an identity opens, whatever it says of channel and recipient.
fn opened(thief: &Identity, recipients: [&Identity; 2], messages: &[(Channel, Sealed)]) -> usize {
    let tries = |sealed: &Sealed| {
        let contexts = recipients.into_iter().flat_map(|recipient| {
            Channel::ALL.map(|channel| context(channel, recipient.id(), recipient.epoch()))
        });
        contexts.into_iter().any(|context| thief.own_keys().open(&context, sealed).is_ok())
    };
    messages.iter().filter(|(_, sealed)| tries(sealed)).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn k01_who_has_all_of_one_member_reads_nothing_of_another_and_nothing_of_before_the_last_rotation() {
    let open = Open::new(1).await;
    let home = tempfile::tempdir().unwrap();
    let (a, b) = (home.path().join("a"), home.path().join("b"));
    let old = open.enrol("agent-1", &a).await;
    let other = Arc::new(open.enrol("agent-2", &b).await);
    let (to_old, to_other) = (sealed_to(&old), sealed_to(&other));
    let copy = home.path().join("copy");
    old.save(&copy).unwrap();
    let member = Membership::resume(&a, open.members[0]).await.unwrap();
    member.renew(&mut |_| Ok(())).await.unwrap();

    // All that lies in the member's directory now; what is in its memory beside that: `k01_…` of testkit and trader.
    let stolen = Arc::new(Identity::load(&a).unwrap());
    assert_eq!(opened(&stolen, [&stolen, &other], &to_other), 0);
    assert_eq!(opened(&stolen, [&stolen, &old], &to_old), 0);
    // The thief does hold what opens the member's own messages; and who had kept the old keys would read the old ones.
    assert_eq!(opened(&stolen, [&stolen, &old], &sealed_to(&stolen)), 3);
    assert_eq!(opened(&Identity::load(&copy).unwrap(), [&stolen, &old], &to_old), 3);

    // As itself it gets in until it is revoked; as another, neither with the other's certificate nor with its own.
    let key = stolen.own_keys().tls_pkcs8();
    let address = open.members[0];
    let (own, theirs) = (stolen.certificate().to_vec(), other.certificate().to_vec());
    let knocks = tokio::task::spawn_blocking(move || {
        [knock(address, Shown::Borrowed(&own, &key)), knock(address, Shown::Borrowed(&theirs, &key))]
    });
    let [as_itself, as_another] = knocks.await.unwrap();
    assert!(as_itself.is_ok() && as_another.is_err(), "{as_itself:?} {as_another:?}");
    let thief = Client::new(&stolen, PeerClass::Management, None, address).unwrap();
    assert_eq!(role(&thief).await.unwrap()["id"], stolen.id().as_str());
}
