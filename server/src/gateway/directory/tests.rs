use std::thread;
use std::time::Duration;

use passerelle_engine::clock::ManualClock;

use super::*;
use crate::gateway::account::{ModelAccess, Scope, Scopes, ServiceClass};
use crate::gateway::quota::{Enforcement, Limit, Quota};

struct Bench {
    folder: tempfile::TempDir,
    clock: ManualClock,
    directory: Directory,
}

fn bench() -> Bench {
    let folder = tempfile::tempdir().unwrap();
    let clock = ManualClock::default();
    let data = DataDir::open(folder.path()).unwrap();
    let directory = Directory::open(&data, Arc::new(clock.clone()), "test").unwrap();
    directory.create_account(&path("acme"), Quota::unlimited()).unwrap();
    Bench { folder, clock, directory }
}

fn path(text: &str) -> AccountPath {
    text.parse().unwrap()
}

fn new_key(name: &str) -> NewKey {
    let (scopes, models) = (Scopes::default(), ModelAccess::All);
    NewKey { account: path("acme"), name: name.into(), scopes, models, class: ServiceClass::Standard, valid_for: None }
}

fn n(value: u64) -> std::num::NonZeroU64 {
    value.try_into().unwrap()
}

#[test]
fn a_key_is_shown_once_and_its_secret_is_nowhere_on_disk() {
    let bench = bench();
    let (key, info) = bench.directory.create_key(new_key("alice")).unwrap();
    let (rotated, _) = bench.directory.rotate_key("alice", Duration::from_secs(60)).unwrap();
    assert_eq!(bench.directory.list_keys().unwrap()[0].id, info.id);
    let secrets = [&key, &rotated].map(|key| key.reveal().rsplit('-').next().unwrap().as_bytes()[..12].to_owned());
    for entry in std::fs::read_dir(bench.folder.path()).unwrap() {
        let bytes = std::fs::read(entry.unwrap().path()).unwrap();
        assert!(secrets.iter().all(|secret| !bytes.windows(secret.len()).any(|window| window == secret.as_slice())));
    }
}

#[test]
fn scopes_models_and_expiry_survive_the_database() {
    let bench = bench();
    let scopes = Scopes::new([Scope::Batch, Scope::ReadOnly]).unwrap();
    let models = ModelAccess::Only(["demo".to_owned()].into());
    let valid_for = Some(Duration::from_secs(3600));
    let (_, info) = bench.directory.create_key(NewKey { scopes, models, valid_for, ..new_key("a") }).unwrap();
    let data = DataDir::open(bench.folder.path()).unwrap();
    let again = Directory::open(&data, Arc::new(bench.clock.clone()), "test").unwrap();
    assert_eq!(again.list_keys().unwrap(), std::slice::from_ref(&info));
    let now = UnixSeconds::of(bench.clock.wall());
    assert_eq!(info.status(UnixSeconds(now.0 + 3599)), KeyStatus::Active);
    assert_eq!(info.status(UnixSeconds(now.0 + 3600)), KeyStatus::Expired);
}

#[test]
fn a_key_is_revoked_by_id_or_name_and_its_name_is_free_again() {
    let Bench { directory, folder: _folder, .. } = bench();
    let (_, alice) = directory.create_key(new_key("alice")).unwrap();
    assert!(matches!(directory.create_key(new_key("alice")), Err(DirectoryError::NameTaken { .. })));
    assert!(directory.revoke_key(alice.id.as_str()).unwrap().revoked_at.is_some());
    assert!(directory.revoke_key(alice.id.as_str()).is_ok(), "twice is once");
    assert!(matches!(directory.revoke_key("alice"), Err(DirectoryError::UnknownKey(_))));
    assert!(matches!(directory.rotate_key(alice.id.as_str(), Duration::ZERO), Err(DirectoryError::KeyRevoked(_))));
    assert!(directory.create_key(new_key("alice")).is_ok());
    directory.create_account(&path("other"), Quota::unlimited()).unwrap();
    directory.create_key(NewKey { account: path("other"), ..new_key("alice") }).unwrap();
    assert!(matches!(directory.revoke_key("alice"), Err(DirectoryError::AmbiguousKey(_))));
    assert_eq!(directory.list_keys().unwrap().len(), 3);
}

#[test]
fn an_account_stands_below_one_that_exists_and_goes_only_when_nothing_needs_it() {
    let Bench { directory, folder: _folder, .. } = bench();
    let create = |text: &str| directory.create_account(&path(text), Quota::unlimited());
    assert!(matches!(create("nobody/vision"), Err(DirectoryError::UnknownAccount(parent)) if parent == path("nobody")));
    create("acme/vision").unwrap();
    assert!(matches!(create("acme/vision"), Err(DirectoryError::AccountExists(_))));
    let (_, key) = directory.create_key(NewKey { account: path("acme/vision"), ..new_key("k") }).unwrap();
    for busy in ["/", "acme", "acme/vision"] {
        assert!(matches!(directory.remove_account(&path(busy)), Err(DirectoryError::AccountInUse(_))), "{busy}");
    }
    directory.revoke_key(key.id.as_str()).unwrap();
    directory.remove_account(&path("acme/vision")).unwrap();
    directory.remove_account(&path("acme")).unwrap();
    assert_eq!(directory.snapshot().unwrap().accounts.len(), 1, "the root stays");
}

#[test]
fn limits_are_set_changed_and_taken_away_one_by_one() {
    let Bench { directory, folder: _folder, .. } = bench();
    let acme = path("acme");
    directory.set_limit(&acme, Limit::requests_per_minute(n(1))).unwrap();
    directory.set_limit(&acme, Limit::tokens_per_minute(n(5))).unwrap();
    directory.set_limit(&acme, Limit::requests_per_minute(n(2))).unwrap();
    directory.remove_limit(&acme, Limit::tokens_per_minute(n(5)).name(), None, Enforcement::Refuse).unwrap();
    let limits = directory.snapshot().unwrap().accounts[1].limits.clone();
    assert_eq!(limits.limits(), [Limit::requests_per_minute(n(2))]);
    let absent = directory.remove_limit(&acme, Limit::tokens_per_minute(n(5)).name(), None, Enforcement::Refuse);
    assert!(matches!(absent, Err(DirectoryError::NoSuchLimit(..))));
}

#[test]
fn concurrent_changes_lose_none_and_each_raises_the_generation() {
    let bench = bench();
    let before = bench.directory.generation().unwrap();
    thread::scope(|scope| {
        for name in 0..16 {
            let data = DataDir::open(bench.folder.path()).unwrap();
            let directory = Directory::open(&data, Arc::new(bench.clock.clone()), "test").unwrap();
            scope.spawn(move || directory.create_key(new_key(&format!("key-{name}"))).unwrap());
        }
    });
    assert_eq!(bench.directory.list_keys().unwrap().len(), 16);
    assert_eq!(bench.directory.generation().unwrap(), before + 16);
}

#[test]
fn a_change_that_fails_leaves_no_trace() {
    let Bench { directory, folder: _folder, .. } = bench();
    directory.create_key(new_key("alice")).unwrap();
    let before = (directory.generation().unwrap(), directory.audit_log().unwrap());
    directory.create_key(new_key("alice")).unwrap_err();
    directory.create_key(new_key("no spaces")).unwrap_err();
    directory.revoke_key("nobody").unwrap_err();
    directory.create_account(&path("acme"), Quota::unlimited()).unwrap_err();
    assert_eq!(before, (directory.generation().unwrap(), directory.audit_log().unwrap()));
}

#[test]
fn an_audit_log_with_an_entry_changed_or_taken_out_does_not_hold_together() {
    let Bench { directory, folder: _folder, .. } = bench();
    directory.acting_as("key abc").create_key(new_key("alice")).unwrap();
    directory.revoke_key("alice").unwrap();
    let log = directory.audit_log().unwrap();
    let acts: Vec<_> = log.iter().map(|entry| (entry.actor.as_str(), entry.act.as_str())).collect();
    assert_eq!(acts, [("test", "account create"), ("key abc", "key create"), ("test", "key revoke")]);
    assert!(AuditEntry::are_chained(&log));
    let mut changed = log.clone();
    changed[1].actor = "somebody else".into();
    let without = [log[0].clone(), log[2].clone()];
    assert!(!AuditEntry::are_chained(&changed) && !AuditEntry::are_chained(&without));
}

/// The database may not grow beyond what it has.
fn fill(directory: &Directory) {
    let connection = directory.connection.lock().unwrap();
    let pages: u32 = connection.pragma_query_value(None, "page_count", |row| row.get(0)).unwrap();
    connection.pragma_update(None, "max_page_count", pages).unwrap();
    drop(connection);
    while directory.note("fill", "page", "x").is_ok() {}
}

fn make_room(directory: &Directory) {
    directory.connection.lock().unwrap().pragma_update(None, "max_page_count", u32::MAX - 1).unwrap();
}

#[test]
fn an_act_that_a_full_disk_has_no_room_for_is_written_before_the_next_and_the_chain_is_whole() {
    let bench = bench();
    fill(&bench.directory);
    let error = bench.directory.note("restore", "everything", "done").unwrap_err();
    assert!(error.is_for_want_of_room(), "{error}");
    let copier = bench.directory.acting_as("copier");
    let then = bench.directory.now();
    assert_eq!(copier.note_when_it_can("back up", "everything", "asked").unwrap(), Noted::Owed);
    assert_eq!(copier.note_when_it_can("back up", "everything", "done").unwrap(), Noted::Owed);
    let has_it = |log: &[AuditEntry]| log.iter().any(|entry| entry.act == "back up");
    assert!(!has_it(&bench.directory.audit_log().unwrap()));
    assert!(bench.directory.create_account(&path("later"), Quota::unlimited()).is_err(), "there is no room for it");

    make_room(&bench.directory);
    bench.clock.advance(Duration::from_secs(1_000));
    bench.directory.create_account(&path("later"), Quota::unlimited()).unwrap();
    let log = bench.directory.audit_log().unwrap();
    assert!(AuditEntry::are_chained(&log));
    let [.., asked, done, created] = log.as_slice() else { panic!("{log:?}") };
    assert_eq!((asked.actor.as_str(), asked.at, asked.act.as_str()), ("copier", then, "back up"));
    assert!(asked.detail.starts_with("asked (written later") && done.detail.starts_with("done ("), "{log:?}");
    assert_eq!((created.subject.as_str(), created.at), ("later", bench.directory.now()));
    assert_eq!(bench.directory.audit_log().unwrap().len(), log.len(), "each is written once");
}

#[test]
fn whoever_reads_the_audit_log_finds_what_was_owed_to_it_and_how_much_nobody_wrote_down() {
    let bench = bench();
    fill(&bench.directory);
    let before = bench.directory.audit_log().unwrap().len();
    for _ in 0..300 {
        assert_eq!(bench.directory.note_when_it_can("export", "ledger", "asked").unwrap(), Noted::Owed);
    }
    make_room(&bench.directory);
    let log = bench.directory.audit_log().unwrap();
    assert_eq!(log.len(), before + 257);
    assert!(AuditEntry::are_chained(&log));
    assert!(log.last().unwrap().detail.contains("and 43 further acts"), "{:?}", log.last());
}

fn wanted(text: &str) -> WantedAccount {
    let limits = Quota::new(vec![Limit::requests_per_minute(n(5))]).unwrap();
    WantedAccount { path: path(text), weight: std::num::NonZeroU32::new(2), limits }
}

#[test]
fn accounts_of_a_file_are_made_all_or_none_and_a_rehearsal_finds_what_cannot_be() {
    let Bench { directory, folder: _folder, .. } = bench();
    let before = (directory.snapshot().unwrap().accounts, directory.audit_log().unwrap());
    let unchanged = || before == (directory.snapshot().unwrap().accounts, directory.audit_log().unwrap());
    for making in [Making::Rehearsal, Making::Real] {
        let orphan = [wanted("acme"), wanted("acme/vision"), wanted("nobody/x/y")];
        assert!(matches!(directory.apply(&orphan, making), Err(DirectoryError::UnknownAccount(_))), "{making:?}");
        let twice = [wanted("acme/vision"), wanted("acme"), wanted("acme/vision")];
        assert!(matches!(directory.apply(&twice, making), Err(DirectoryError::NamedTwice(_))), "{making:?}");
        assert!(unchanged(), "{making:?}");
    }
    let file = [wanted("acme/vision"), wanted("acme")];
    let rehearsed = directory.apply(&file, Making::Rehearsal).unwrap();
    assert!(unchanged(), "a rehearsal leaves nothing");
    assert_eq!(directory.apply(&file, Making::Real).unwrap(), rehearsed);
    let acts: Vec<_> = directory.audit_log().unwrap().into_iter().map(|entry| entry.act).collect();
    assert_eq!(acts[1..], ["quota set", "account weight", "account create", "account weight"], "each is written down");
    assert!(AuditEntry::are_chained(&directory.audit_log().unwrap()));
    assert_eq!(directory.apply(&file, Making::Real).unwrap(), [], "twice is once");
}
