use passerelle_engine::clock::ManualClock;

use super::super::read_key_file;
use super::*;
use crate::gateway::account::AccountPath;
use crate::gateway::data::DataDir;
use crate::gateway::directory::NewKey;
use crate::gateway::quota::Limit;

struct Bench {
    folder: tempfile::TempDir,
    clock: ManualClock,
    directory: Directory,
    ring: KeyRing,
}

fn bench() -> Bench {
    let folder = tempfile::tempdir().unwrap();
    let clock = ManualClock::default();
    let data = DataDir::open(folder.path()).unwrap();
    let directory = Directory::open(&data, Arc::new(clock.clone()), "test").unwrap();
    directory.create_account(&acme(), Quota::unlimited()).unwrap();
    let ring = ring(&directory, &clock, Vec::new(), Quota::unlimited());
    Bench { folder, clock, directory, ring }
}

fn ring(directory: &Directory, clock: &ManualClock, fixed: Vec<StaticKey>, defaults: Quota) -> KeyRing {
    KeyRing::new(Some(directory.clone()), fixed, defaults, Arc::new(clock.clone())).unwrap()
}

fn acme() -> AccountPath {
    "acme".parse().unwrap()
}

fn n(value: u64) -> std::num::NonZeroU64 {
    value.try_into().unwrap()
}

impl Bench {
    fn create(&self, name: &str, valid_for: Option<Duration>) -> ApiKey {
        let (scopes, models) = (Scopes::default(), ModelAccess::All);
        self.directory
            .create_key(NewKey {
                account: acme(),
                name: name.into(),
                scopes,
                models,
                class: ServiceClass::Standard,
                valid_for,
            })
            .unwrap()
            .0
    }

    fn ask(&self, key: &str) -> Result<String, AuthError> {
        self.ask_on(UnixSeconds(0), key)
    }

    fn ask_on(&self, today: UnixSeconds, key: &str) -> Result<String, AuthError> {
        self.ring.authenticate(key, today).map(|caller| caller.account.path.to_string())
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
    assert_eq!(bench.ask(key.reveal()), Ok("acme".into()));
    assert!(!bench.ring.is_empty());
    bench.directory.revoke_key("alice").unwrap();
    bench.a_second_passes();
    assert_eq!(bench.ask(key.reveal()), Err(AuthError::Revoked));
}

#[test]
fn taking_the_last_key_away_leaves_a_ring_that_refuses_and_not_an_empty_one() {
    let bench = bench();
    let key = bench.create("alice", None);
    bench.directory.revoke_key("alice").unwrap();
    let restarted = ring(&bench.directory, &bench.clock, Vec::new(), Quota::unlimited());
    assert!(!restarted.is_empty() && !restarted.has_active_key());
    assert_eq!(restarted.authenticate(key.reveal(), UnixSeconds(0)).unwrap_err(), AuthError::Revoked);
}

#[test]
fn both_secrets_of_a_rotated_key_work_until_the_overlap_is_over() {
    let bench = bench();
    let former = bench.create("alice", None);
    let (key, _) = bench.directory.rotate_key("alice", Duration::from_secs(60)).unwrap();
    bench.a_second_passes();
    assert!(bench.ask(former.reveal()).is_ok() && bench.ask(key.reveal()).is_ok());
    bench.clock.advance(Duration::from_secs(59));
    assert_eq!(bench.ask(former.reveal()), Err(AuthError::Unknown));
    assert!(bench.ask(key.reveal()).is_ok());
}

#[test]
fn a_changed_limit_is_known_within_a_second() {
    let bench = bench();
    let key = bench.create("alice", None);
    bench.directory.set_limit(&acme(), Limit::requests_per_minute(n(7))).unwrap();
    bench.a_second_passes();
    let caller = bench.ring.authenticate(key.reveal(), UnixSeconds(0)).unwrap();
    let limits: Vec<_> = caller.account.limits().map(|(_, limit)| limit.clone()).collect();
    assert_eq!(limits, [Limit::requests_per_minute(n(7))]);
}

#[test]
fn the_directory_is_looked_at_no_more_often_than_twice_a_second() {
    let bench = bench();
    let key = bench.create("alice", None);
    bench.clock.advance(RELOAD_INTERVAL - Duration::from_nanos(1));
    assert_eq!(bench.ask(key.reveal()), Err(AuthError::Unknown));
    bench.clock.advance(Duration::from_nanos(1));
    assert_eq!(bench.ask(key.reveal()), Ok("acme".into()));
}

#[test]
fn who_changes_the_directory_and_has_it_looked_at_waits_for_nothing() {
    let bench = bench();
    let key = bench.create("alice", None);
    bench.ring.look();
    assert_eq!(bench.ask(key.reveal()), Ok("acme".into()));
    bench.directory.revoke_key("alice").unwrap();
    bench.ring.look();
    assert_eq!(bench.ask(key.reveal()), Err(AuthError::Revoked));
}

#[test]
fn a_key_that_is_revoked_while_a_configuration_is_read_does_not_come_back_with_it() {
    let bench = bench();
    let key = bench.create("alice", None);
    let regiven = bench.ring.regive(Vec::new(), Quota::unlimited()).unwrap();
    bench.directory.revoke_key("alice").unwrap();
    bench.ring.adopt(regiven);
    assert_eq!(bench.ask(key.reveal()), Err(AuthError::Revoked));
}

#[test]
fn a_key_expires_at_its_second() {
    let bench = bench();
    let key = bench.create("alice", Some(Duration::from_secs(60)));
    bench.clock.advance(Duration::from_secs(59));
    assert_eq!(bench.ask(key.reveal()), Ok("acme".into()));
    bench.a_second_passes();
    assert_eq!(bench.ask(key.reveal()), Err(AuthError::Expired));
}

#[test]
fn a_key_that_expired_and_a_secret_that_was_rotated_out_do_not_come_back_with_a_clock_that_is_set_back() {
    let bench = bench();
    let now = UnixSeconds::of(bench.clock.wall());
    let expiring = bench.create("alice", Some(Duration::from_secs(60)));
    let former = bench.create("bob", None);
    bench.directory.rotate_key("bob", Duration::from_secs(60)).unwrap();
    bench.a_second_passes();
    let (before, after) = (now.after(Duration::from_secs(59)), now.after(Duration::from_secs(60)));
    assert!(bench.ask_on(before, expiring.reveal()).is_ok() && bench.ask_on(before, former.reveal()).is_ok());
    // The wall clock still stands a minute before.
    assert_eq!(bench.ask_on(after, expiring.reveal()), Err(AuthError::Expired));
    assert_eq!(bench.ask_on(after, former.reveal()), Err(AuthError::Unknown));
    let info = bench.directory.find_key("alice").unwrap();
    let still = |today| bench.ring.caller("acme", info.id.as_str(), today).is_some();
    assert_eq!([before, after].map(still), [true, false]);
}

#[test]
fn mistyped_unknown_and_wrong_secrets_are_told_apart_for_the_log() {
    let bench = bench();
    let key = bench.create("alice", None);
    bench.directory.revoke_key("alice").unwrap();
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
    bench.directory.revoke_key("alice").unwrap();
    bench.a_second_passes();
    let guess = ApiKey::generate_for(key.id()).unwrap();
    assert_eq!(bench.ask(guess.reveal()), Err(AuthError::Unknown));
}

#[test]
fn a_directory_that_cannot_be_read_changes_nothing() {
    let bench = bench();
    let key = bench.create("alice", None);
    bench.a_second_passes();
    assert!(bench.ask(key.reveal()).is_ok());
    let data = DataDir::open(bench.folder.path()).unwrap();
    data.connect().unwrap().execute_batch("ALTER TABLE meta RENAME TO gone").unwrap();
    bench.a_second_passes();
    assert!(bench.ask(key.reveal()).is_ok());
}

#[test]
fn keys_of_a_file_work_beside_stored_ones_each_with_its_account() {
    let bench = bench();
    let path = bench.folder.path().join("static");
    std::fs::write(&path, "bob: 0123456789abcdef\ncarol: fedcba9876543210\n").unwrap();
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let defaults = Quota::new(vec![Limit::requests_per_minute(n(7))]).unwrap();
    let ring = ring(&bench.directory, &bench.clock, read_key_file(&path).unwrap(), defaults);
    let key = bench.create("alice", None);
    bench.a_second_passes();
    let name = |key: &str| ring.authenticate(key, UnixSeconds(0)).map(|caller| caller.account.path.to_string());
    assert_eq!(name("0123456789abcdef"), Ok("bob".into()));
    assert_eq!(name("fedcba9876543210"), Ok("carol".into()));
    assert_eq!(name(key.reveal()), Ok("acme".into()));
    assert_eq!(name("0123456789abcdeF"), Err(AuthError::Unknown));
    assert_eq!(ring.authenticate("0123456789abcdef", UnixSeconds(0)).unwrap().account.limits().count(), 1);
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
