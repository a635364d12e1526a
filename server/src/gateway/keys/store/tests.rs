use std::os::unix::fs::PermissionsExt;
use std::thread;

use passerelle_engine::clock::ManualClock;

use super::*;
use crate::gateway::quota::Limit;

fn store() -> (tempfile::TempDir, KeyStore) {
    let directory = tempfile::tempdir().unwrap();
    let store = KeyStore::open(&directory.path().join("data"), Arc::new(ManualClock::default())).unwrap();
    (directory, store)
}

fn new_key(name: &str) -> NewKey {
    NewKey { name: name.into(), limits: Quota::unlimited(), valid_for: None }
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn a_key_is_shown_once_and_its_secret_is_nowhere_on_disk() {
    let (directory, store) = store();
    let (key, info) = store.create(new_key("alice")).unwrap();
    assert_eq!(store.list().unwrap(), [info]);
    let secret = key.reveal().rsplit('-').next().unwrap();
    for entry in std::fs::read_dir(directory.path().join("data")).unwrap() {
        let text = std::fs::read_to_string(entry.unwrap().path()).unwrap();
        assert!(!text.contains(secret) && !text.contains(&secret[..12]), "{text}");
    }
}

#[test]
fn only_the_owner_may_read_and_no_temporary_file_stays() {
    let (directory, store) = store();
    store.create(new_key("alice")).unwrap();
    let data = directory.path().join("data");
    assert_eq!(mode(&data), 0o700);
    let mut names: Vec<_> = std::fs::read_dir(&data).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["keys.json", "keys.lock"]);
    assert_eq!((mode(&data.join("keys.json")), mode(&data.join("keys.lock"))), (0o600, 0o600));
}

#[test]
fn limits_and_expiry_survive_the_file() {
    let (directory, store) = store();
    let limits = Quota::new(vec![Limit::RequestsPerMinute(60.try_into().unwrap())]).unwrap();
    let valid_for = Some(Duration::from_secs(3600));
    let (_, info) = store.create(NewKey { name: "a".into(), limits, valid_for }).unwrap();
    let clock = ManualClock::default();
    let again = KeyStore::open(&directory.path().join("data"), Arc::new(clock.clone())).unwrap();
    assert_eq!(again.list().unwrap(), std::slice::from_ref(&info));
    let now = UnixSeconds(clock.wall().as_secs());
    assert_eq!(info.status(now), KeyStatus::Active);
    assert_eq!(info.status(UnixSeconds(now.0 + 3599)), KeyStatus::Active);
    assert_eq!(info.status(UnixSeconds(now.0 + 3600)), KeyStatus::Expired);
}

#[test]
fn a_key_is_revoked_by_id_or_name_and_its_name_is_free_again() {
    let (_directory, store) = store();
    let (_, alice) = store.create(new_key("alice")).unwrap();
    store.create(new_key("bob")).unwrap();
    assert!(matches!(store.create(new_key("alice")), Err(KeyError::NameTaken(_))));
    assert!(store.revoke(alice.id.as_str()).unwrap().revoked_at.is_some());
    assert!(store.revoke(alice.id.as_str()).is_ok(), "twice is once");
    assert!(matches!(store.revoke("alice"), Err(KeyError::NotFound(_))));
    assert_eq!(store.revoke("bob").unwrap().name, "bob");
    assert!(store.create(new_key("alice")).is_ok());
    assert_eq!(store.list().unwrap().len(), 3);
}

#[test]
fn concurrent_changes_lose_none() {
    let (_directory, store) = store();
    thread::scope(|scope| {
        for name in 0..16 {
            let store = &store;
            scope.spawn(move || store.create(new_key(&format!("key-{name}"))).unwrap());
        }
    });
    assert_eq!(store.list().unwrap().len(), 16);
}

#[test]
fn a_change_that_fails_leaves_the_file_untouched() {
    let (directory, store) = store();
    store.create(new_key("alice")).unwrap();
    let path = directory.path().join("data/keys.json");
    let before = (std::fs::read(&path).unwrap(), store.version().unwrap());
    store.create(new_key("alice")).unwrap_err();
    store.revoke("nobody").unwrap_err();
    store.create(new_key("no spaces")).unwrap_err();
    assert_eq!(before, (std::fs::read(&path).unwrap(), store.version().unwrap()));
}

#[test]
fn a_reader_during_changes_always_sees_a_whole_file() {
    let (_directory, store) = store();
    store.create(new_key("first")).unwrap();
    thread::scope(|scope| {
        let writer = scope.spawn(|| (0..50).for_each(|name| drop(store.create(new_key(&format!("k{name}"))).unwrap())));
        while !writer.is_finished() {
            assert_eq!(store.list().unwrap()[0].name, "first");
        }
    });
}

#[test]
fn a_newer_or_damaged_file_is_refused_and_kept() {
    let (directory, store) = store();
    let path = directory.path().join("data/keys.json");
    let cases = [
        (r#"{"format_version":2,"keys":"other"}"#, "format version 2, this program knows 1"),
        (r#"{"format_version":1,"keys":[{}]}"#, "not a file of keys"),
        (r#"{"format_version":1,"keys":["#, "not a file of keys"),
    ];
    for (text, expected) in cases {
        std::fs::write(&path, text).unwrap();
        let error = store.create(new_key("alice")).unwrap_err().to_string();
        assert!(error.contains(expected) && error.contains("keys.json"), "{error}");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
    }
}
