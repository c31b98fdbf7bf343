//! Attacks on the ticket, each with the one defence switched off that stops it.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};

use super::*;

const NOW: i64 = 1_800_000_000;
const NOW_MS: i64 = NOW * 1_000;
const RIGHT: [u8; 32] = [7; 32];
const WRONG: [u8; 32] = [8; 32];

fn agent() -> SpiffeId {
    SpiffeId::agent("home.test", "agent-1").unwrap()
}

fn with_entry(mut book: EntryBook) -> EntryBook {
    make(&mut book, &agent(), &RIGHT, NOW, TICKET_TTL_S).unwrap();
    book
}

fn make(
    book: &mut EntryBook,
    id: &SpiffeId,
    secret: &[u8; 32],
    now: i64,
    ttl_s: i64,
) -> Result<Entry, IdentityError> {
    book.create(id, secret, Requirements::default(), Limits::default(), (now, ttl_s))
}

fn book() -> EntryBook {
    with_entry(EntryBook::new())
}

/// How many of a thousand tries by ten threads at the same time succeed.
fn race(book: EntryBook) -> u32 {
    let (book, redeemed) = (Mutex::new(book), AtomicU32::new(0));
    std::thread::scope(|scope| {
        for _ in 0..10 {
            scope.spawn(|| {
                for _ in 0..100 {
                    if book.lock().unwrap().redeem(&RIGHT, &agent(), NOW_MS).is_ok() {
                        redeemed.fetch_add(1, Ordering::SeqCst);
                    }
                }
            });
        }
    });
    redeemed.load(Ordering::SeqCst)
}

#[test]
fn e01_of_a_thousand_redeems_at_once_exactly_one_succeeds() {
    assert_eq!(race(book()), 1);
    // The throttle alone must not be what holds it.
    assert_eq!(race(with_entry(EntryBook::without(Defence::Throttle))), 1);
    let mut both = with_entry(EntryBook::without(Defence::SingleUse));
    assert!(both.redeem(&RIGHT, &agent(), NOW_MS).is_ok());
    assert!(both.redeem(&RIGHT, &agent(), NOW_MS + TRY_PAUSE_MS).is_ok(), "single use is what stops it");
}

#[test]
fn e01_a_redeemed_ticket_stays_redeemed_across_a_restart() {
    let mut book = book();
    book.redeem(&RIGHT, &agent(), NOW_MS).unwrap();
    let text = serde_json::to_string(&book).unwrap();
    assert!(!text.contains(&keys::to_hex(&RIGHT)), "the book holds the secret");
    let mut book: EntryBook = serde_json::from_str(&text).unwrap();
    assert_eq!(book.redeem(&RIGHT, &agent(), NOW_MS), Err(Refusal::Used));
}

#[test]
fn e02_a_ticket_is_for_one_entry_for_a_while() {
    let other = SpiffeId::agent("home.test", "agent-2").unwrap();
    let late = NOW_MS + TICKET_TTL_S * 1_000;
    assert_eq!(book().redeem(&RIGHT, &other, NOW_MS), Err(Refusal::Unknown));
    assert_eq!(book().redeem(&RIGHT, &agent(), late), Err(Refusal::Expired));
    let redeemed = book().redeem(&RIGHT, &agent(), late - 1).unwrap();
    assert_eq!((&redeemed.entry().id, redeemed.entry().class), (&agent(), PeerClass::Agents));
    // Each defence alone is what stops it.
    assert!(with_entry(EntryBook::without(Defence::Expiry)).redeem(&RIGHT, &agent(), late).is_ok());
    assert!(with_entry(EntryBook::without(Defence::ForItsEntry)).redeem(&RIGHT, &other, NOW_MS).is_ok());
}

#[test]
fn e03_a_hundred_thousand_guesses_are_five_and_lock_the_entry() {
    let tried = |book: EntryBook| {
        let mut book = book;
        let (mut looked_at, mut last) = (0_u32, Refusal::Unknown);
        for number in 0..100_000_u32 {
            let mut guess = [0; 32];
            guess[..4].copy_from_slice(&number.to_le_bytes());
            // A hundred guesses a second.
            last = book.redeem(&guess, &agent(), NOW_MS + i64::from(number) * 10).unwrap_err();
            looked_at += u32::from(last == Refusal::WrongSecret);
        }
        (looked_at, last, book)
    };
    let (looked_at, _, mut locked) = tried(book());
    assert_eq!(looked_at, FAILURES_MAX);
    assert_eq!(locked.redeem(&RIGHT, &agent(), NOW_MS + 2_000_000), Err(Refusal::Locked));
    // Without the lock it is one guess a second; without the throttle the lock comes after five all the same.
    let (looked_at, ..) = tried(with_entry(EntryBook::without(Defence::LockOut)));
    assert_eq!(looked_at, 1_000);
    let (looked_at, last, _) = tried(with_entry(EntryBook::without(Defence::Throttle)));
    assert_eq!((looked_at, last), (FAILURES_MAX, Refusal::Locked));
}

#[test]
fn e03_a_try_within_a_second_of_the_last_is_not_looked_at() {
    let mut throttled = book();
    assert_eq!(throttled.redeem(&WRONG, &agent(), NOW_MS), Err(Refusal::WrongSecret));
    assert_eq!(throttled.redeem(&RIGHT, &agent(), NOW_MS + TRY_PAUSE_MS - 1), Err(Refusal::Throttled));
    assert!(
        throttled.redeem(&RIGHT, &agent(), NOW_MS + TRY_PAUSE_MS).is_ok(),
        "it does not push the pause on"
    );
    // A clock that was set back does not shut the entry.
    let mut back = book();
    assert!(back.redeem(&WRONG, &agent(), NOW_MS).is_err());
    assert!(back.redeem(&RIGHT, &agent(), NOW_MS - 10_000).is_ok());
}

#[test]
fn an_entry_may_ask_for_fewer_tries() {
    let mut book = EntryBook::new();
    let limits = Limits { tries: 1, ..Limits::default() };
    book.create(&agent(), &RIGHT, Requirements::default(), limits, (NOW, 60)).unwrap();
    assert_eq!(book.redeem(&WRONG, &agent(), NOW_MS), Err(Refusal::WrongSecret));
    assert_eq!(book.redeem(&RIGHT, &agent(), NOW_MS + 1_000), Err(Refusal::Locked));
}

#[test]
fn a_new_ticket_replaces_the_old_one_and_a_struck_entry_is_gone() {
    let mut book = book();
    make(&mut book, &agent(), &[9; 32], NOW + 1, 60).unwrap();
    assert_eq!(book.redeem(&RIGHT, &agent(), NOW_MS), Err(Refusal::WrongSecret));
    let state = |book: &EntryBook, now| book.entries(now).map(|(_, state)| state).collect::<Vec<_>>();
    assert_eq!(state(&book, NOW), [EntryState::Open]);
    assert_eq!(state(&book, NOW + 61), [EntryState::Expired]);
    assert!(book.redeem(&[9; 32], &agent(), NOW_MS + 1_000).is_ok());
    assert_eq!(state(&book, NOW), [EntryState::Used]);
    assert!(book.void(&agent()) && !book.void(&agent()));
    assert_eq!(book.redeem(&[9; 32], &agent(), NOW_MS + 9_000), Err(Refusal::Unknown));
}

#[test]
fn an_entry_has_limits() {
    let mut book = EntryBook::new();
    let nobody = SpiffeId::parse("spiffe://home.test/nobody").unwrap();
    assert!(make(&mut book, &nobody, &[1; 32], NOW, 60).is_err());
    for ttl_s in [0, -1, TICKET_TTL_S + 1, i64::MAX] {
        assert!(make(&mut book, &agent(), &[1; 32], NOW, ttl_s).is_err());
    }
    for limits in [
        Limits { tries: 0, ..Limits::default() },
        Limits { tries: FAILURES_MAX + 1, ..Limits::default() },
        Limits { certificate_ttl_s: CERTIFICATE_TTL_MAX_S + 1, ..Limits::default() },
        Limits { certificate_ttl_s: 0, ..Limits::default() },
    ] {
        assert!(
            book.create(&agent(), &RIGHT, Requirements::default(), limits, (NOW, 60)).is_err(),
            "{limits:?}"
        );
    }
    for number in 0..ENTRIES_MAX {
        let id = SpiffeId::agent("h", &number.to_string()).unwrap();
        make(&mut book, &id, &[1; 32], NOW, 60).unwrap();
    }
    assert!(make(&mut book, &agent(), &[1; 32], NOW, 60).is_err());
    assert!(make(&mut book, &agent(), &[1; 32], NOW + 60, 60).is_ok());
}

#[test]
fn what_nobody_can_show_is_no_entry() {
    let digest = "ab".repeat(32);
    let unix = |executables: &[&str]| Requirements {
        unix: Some(UnixProgram {
            uid: 1,
            executables: executables.iter().map(|text| (*text).to_owned()).collect(),
        }),
        ..Requirements::default()
    };
    let host = |name: &str, roots: &[&str]| Requirements {
        host: Some(HostCertificate {
            roots: roots.iter().map(|text| (*text).to_owned()).collect(),
            name: name.to_owned(),
        }),
        ..Requirements::default()
    };
    let tpm = |ek: &str, selection: &[u8]| Requirements {
        tpm: Some(TpmState {
            ek: ek.to_owned(),
            pcrs: Some(Pcrs { selection: selection.iter().copied().collect(), digest: digest.clone() }),
        }),
        ..Requirements::default()
    };
    let create = |requires| EntryBook::new().create(&agent(), &RIGHT, requires, Limits::default(), (NOW, 60));
    assert!(create(unix(&[&digest])).is_ok() && create(tpm(&digest, &[0, 23])).is_ok());
    for wrong in [
        unix(&[]),
        unix(&["", &digest]),
        unix(&[&digest.to_uppercase()]),
        host("node-1.test", &[]),
        host("node-1.test", &["%"]),
        host("node-1.test", &["AAAA"]),
        host("Node-1.test", &["AAAA"]),
        tpm("", &[0]),
        tpm(&digest, &[]),
        tpm(&digest, &[24]),
    ] {
        assert!(create(wrong.clone()).is_err(), "{wrong:?}");
    }
}

#[test]
fn a_book_from_before_entries_demanded_anything_is_read() {
    let line = format!(
        r#"{{"entries":{{"{}":{{"secret_digest":"{}","expires":{},"failures":0,"used":false}}}}}}"#,
        agent(),
        keys::Digest::of(&RIGHT),
        NOW + 60
    );
    let mut book: EntryBook = serde_json::from_str(&line).unwrap();
    let redeemed = book.redeem(&RIGHT, &agent(), NOW_MS).unwrap();
    assert_eq!(
        (redeemed.entry().requires.names(), redeemed.entry().limits),
        (vec!["ticket"], Limits::default())
    );
}
