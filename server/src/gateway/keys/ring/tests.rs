use std::path::Path;

use passerelle_engine::clock::ManualClock;

use super::super::read_key_file;
use super::super::store::NewKey;
use super::*;
use crate::gateway::quota::{Limit, Quota};

struct Bench {
    directory: tempfile::TempDir,
    clock: ManualClock,
    store: KeyStore,
    ring: KeyRing,
}

fn bench() -> Bench {
    let directory = tempfile::tempdir().unwrap();
    let clock = ManualClock::default();
    let store = KeyStore::open(directory.path(), Arc::new(clock.clone())).unwrap();
    let ring = KeyRing::new(Some(store.clone()), Vec::new(), Quota::unlimited(), Arc::new(clock.clone())).unwrap();
    Bench { directory, clock, store, ring }
}

impl Bench {
    fn create(&self, name: &str, valid_for: Option<Duration>) -> ApiKey {
        self.store.create(NewKey { name: name.into(), limits: Quota::unlimited(), valid_for }).unwrap().0
    }

    fn ask(&self, key: &str) -> Result<String, AuthError> {
        self.ring.authenticate(key).map(|account| account.name.clone())
    }

    fn a_second_passes(&self) {
        self.clock.advance(Duration::from_secs(1));
    }
}

#[test]
fn a_created_key_works_and_a_revoked_one_stops_within_a_second() {
    let bench = bench();
    assert!(bench.ring.is_empty());
    let key = bench.create("alice", None);
    bench.a_second_passes();
    assert_eq!(bench.ask(key.reveal()), Ok("alice".into()));
    assert!(!bench.ring.is_empty());
    bench.store.revoke("alice").unwrap();
    bench.a_second_passes();
    assert_eq!(bench.ask(key.reveal()), Err(AuthError::Revoked));
}

#[test]
fn taking_the_last_key_away_leaves_a_ring_that_refuses_and_not_an_empty_one() {
    let bench = bench();
    let key = bench.create("alice", None);
    bench.store.revoke("alice").unwrap();
    let clock = Arc::new(bench.clock.clone());
    let restarted = KeyRing::new(Some(bench.store.clone()), Vec::new(), Quota::unlimited(), clock).unwrap();
    assert!(!restarted.is_empty() && !restarted.has_active_key());
    assert_eq!(restarted.authenticate(key.reveal()).unwrap_err(), AuthError::Revoked);
}

#[test]
fn a_stored_key_gets_the_default_of_every_limit_that_it_does_not_state() {
    let rate = |n| std::num::NonZeroU32::new(n).unwrap();
    let bench = bench();
    let own = Quota::new(vec![Limit::RequestsPerMinute(rate(7))]).unwrap();
    let (key, _) = bench.store.create(NewKey { name: "alice".into(), limits: own, valid_for: None }).unwrap();
    let defaults = Quota::new(vec![Limit::RequestsPerMinute(rate(1)), Limit::ConcurrentRequests(rate(2))]).unwrap();
    let clock = Arc::new(bench.clock.clone());
    let ring = KeyRing::new(Some(bench.store.clone()), Vec::new(), defaults, clock).unwrap();
    let account = ring.authenticate(key.reveal()).unwrap();
    let limits = [Limit::RequestsPerMinute(rate(7)), Limit::ConcurrentRequests(rate(2))];
    assert_eq!(account.limits.limits(), limits);
    let bob = bench.create("bob", None);
    bench.a_second_passes();
    let limits = [Limit::RequestsPerMinute(rate(1)), Limit::ConcurrentRequests(rate(2))];
    assert_eq!(ring.authenticate(bob.reveal()).unwrap().limits.limits(), limits, "also when the file is read again");
}

#[test]
fn the_file_is_looked_at_no_more_often_than_twice_a_second() {
    let bench = bench();
    let key = bench.create("alice", None);
    bench.clock.advance(RELOAD_INTERVAL - Duration::from_nanos(1));
    assert_eq!(bench.ask(key.reveal()), Err(AuthError::Unknown));
    bench.clock.advance(Duration::from_nanos(1));
    assert_eq!(bench.ask(key.reveal()), Ok("alice".into()));
}

#[test]
fn a_key_expires_at_its_second() {
    let bench = bench();
    let key = bench.create("alice", Some(Duration::from_secs(60)));
    bench.clock.advance(Duration::from_secs(59));
    assert_eq!(bench.ask(key.reveal()), Ok("alice".into()));
    bench.a_second_passes();
    assert_eq!(bench.ask(key.reveal()), Err(AuthError::Expired));
}

#[test]
fn mistyped_unknown_and_wrong_secrets_are_told_apart_for_the_log() {
    let bench = bench();
    let key = bench.create("alice", None);
    bench.store.revoke("alice").unwrap();
    bench.a_second_passes();
    let stranger = ApiKey::generate().unwrap();
    assert_eq!(bench.ask(stranger.reveal()), Err(AuthError::Unknown));
    assert_eq!(bench.ask("sk-of-another-server"), Err(AuthError::Unknown));
    assert_eq!(bench.ask(""), Err(AuthError::Unknown));
    assert_eq!(bench.ask(&key.reveal()[..key.reveal().len() - 1]), Err(AuthError::Malformed));
    assert_eq!(bench.ask(&"x".repeat(MAX_KEY_BYTES + 1)), Err(AuthError::Malformed));
}

/// A key with a known public id and another secret, well formed: only the digest tells, and it tells nothing of the
/// key's fate.
#[test]
fn a_known_public_id_with_another_secret_is_unknown_even_if_the_key_was_revoked() {
    let bench = bench();
    let key = bench.create("alice", None);
    bench.store.revoke("alice").unwrap();
    let file = bench.directory.path().join("keys.json");
    let other = KeyDigest::of("another secret");
    let digest = |digest: &KeyDigest| serde_json::to_string(digest).unwrap();
    replace_in(&file, &digest(&key.digest()), &digest(&other));
    bench.a_second_passes();
    assert_eq!(bench.ask(key.reveal()), Err(AuthError::Unknown));
}

#[test]
fn a_file_that_makes_no_sense_changes_nothing_and_one_that_is_gone_holds_no_keys() {
    let bench = bench();
    let key = bench.create("alice", None);
    bench.a_second_passes();
    assert!(bench.ask(key.reveal()).is_ok());
    let file = bench.directory.path().join("keys.json");
    std::fs::write(&file, "{").unwrap();
    bench.a_second_passes();
    assert!(bench.ask(key.reveal()).is_ok());
    std::fs::remove_file(&file).unwrap();
    bench.a_second_passes();
    assert_eq!(bench.ask(key.reveal()), Err(AuthError::Unknown));
}

#[test]
fn keys_of_a_file_work_beside_stored_ones_each_with_its_account() {
    let bench = bench();
    let path = bench.directory.path().join("static");
    std::fs::write(&path, "bob: 0123456789abcdef\ncarol: fedcba9876543210\n").unwrap();
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let fixed = read_key_file(&path, &Quota::unlimited()).unwrap();
    let (store, clock) = (bench.store.clone(), Arc::new(bench.clock.clone()));
    let ring = KeyRing::new(Some(store), fixed, Quota::unlimited(), clock).unwrap();
    let key = bench.create("alice", None);
    bench.a_second_passes();
    let name = |key: &str| ring.authenticate(key).map(|account| account.name.clone());
    assert_eq!(name("0123456789abcdef"), Ok("bob".into()));
    assert_eq!(name("fedcba9876543210"), Ok("carol".into()));
    assert_eq!(name(key.reveal()), Ok("alice".into()));
    assert_eq!(name("0123456789abcdeF"), Err(AuthError::Unknown));
}

/// Timing cannot be tested soundly; that only the constant-time comparison exists can.
#[test]
fn digests_are_compared_by_subtle_and_cannot_be_compared_otherwise() {
    let source = include_str!("../secret.rs");
    let declaration = source.split("pub struct KeyDigest").next().unwrap();
    let derives = declaration.rsplit("#[derive(").next().unwrap();
    assert!(derives.starts_with("Clone)]"), "KeyDigest derives {derives}");
    assert!(source.contains("ct_eq(&other.0)"));
    assert!(!source.contains("impl PartialEq for KeyDigest"));
}

fn replace_in(path: &Path, old: &str, new: &str) {
    let text = std::fs::read_to_string(path).unwrap();
    assert!(text.contains(old));
    std::fs::write(path, text.replace(old, new)).unwrap();
}
