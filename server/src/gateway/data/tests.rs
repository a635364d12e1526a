use std::os::unix::fs::PermissionsExt;

use super::*;
use crate::gateway::journal::export::{verify_csv, write_csv};
use crate::gateway::journal::{Chain, UsageReader};

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}

fn set_version(directory: &DataDir, version: u32) {
    directory.connect().unwrap().pragma_update(None, "user_version", version).unwrap();
}

fn version(directory: &DataDir) -> u32 {
    directory.connect().unwrap().pragma_query_value(None, "user_version", |row| row.get(0)).unwrap()
}

/// A database as an earlier program made it.
fn database_of_format(format: u32, folder: &Path) -> Connection {
    let connection = Connection::open(folder.join(DATABASE)).unwrap();
    schema::STEPS[..format as usize].iter().for_each(|step| connection.execute_batch(step).unwrap());
    connection.pragma_update(None, "user_version", format).unwrap();
    connection
}

#[test]
fn only_the_owner_may_read_the_directory_and_each_of_its_files() {
    let folder = tempfile::tempdir().unwrap();
    let directory = DataDir::open(&folder.path().join("data")).unwrap();
    let _open = directory.connect().unwrap();
    assert_eq!(mode(directory.path()), 0o700);
    for entry in std::fs::read_dir(directory.path()).unwrap() {
        let path = entry.unwrap().path();
        assert_eq!(mode(&path), 0o600, "{}", path.display());
    }
}

/// A network file system tells only then that there is no room, or none left to this user.
#[test]
fn a_write_that_is_refused_when_it_is_brought_to_the_disk_is_for_want_of_room() {
    const SQLITE_IOERR_FSYNC: i32 = 10 | (4 << 8);
    const SQLITE_CONSTRAINT: i32 = 19;
    let failed = |code| rusqlite::Error::SqliteFailure(rusqlite::ffi::Error::new(code), None);
    assert!(cannot_write(&failed(SQLITE_IOERR_FSYNC)));
    assert!(!cannot_write(&failed(SQLITE_CONSTRAINT)));
}

#[test]
fn a_data_directory_that_cannot_be_made_is_named_with_what_names_it() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    std::fs::write(&file, "").unwrap();
    let error = DataDir::open(&file).unwrap_err().to_string();
    assert!(error.contains(&file.display().to_string()) && error.contains("--data-dir"), "{error}");
}

#[test]
fn a_newer_format_is_refused_and_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let directory = DataDir::open(folder.path()).unwrap();
    set_version(&directory, schema::FORMAT + 1);
    let error = DataDir::open(folder.path()).unwrap_err().to_string();
    assert!(error.contains("use the program that wrote it") && error.contains("passerelle.db"), "{error}");
    assert_eq!(version(&directory), schema::FORMAT + 1);
}

#[test]
fn the_format_does_not_change_under_a_server_that_runs() {
    let folder = tempfile::tempdir().unwrap();
    drop(database_of_format(3, folder.path()));
    let served = DataDir::of(folder.path());
    let is_refused = || matches!(DataDir::open(folder.path()), Err(DataError::InUse { .. }));
    let lock = served.lock_for_serving().unwrap();
    assert!(is_refused());
    assert_eq!(version(&served), 3);
    assert!(!folder.path().join("passerelle.db.format-3").exists());
    drop(lock);
    DataDir::open(folder.path()).unwrap();
    assert_eq!(version(&served), schema::FORMAT);
    let _lock = served.lock_for_serving().expect("it was given back");
    DataDir::open(folder.path()).expect("nothing is left to change");
    let keys = folder.path().join("keys.json");
    std::fs::write(&keys, r#"{"format_version":1,"keys":[]}"#).unwrap();
    assert!(is_refused());
    assert!(keys.exists());
}

#[test]
fn opening_twice_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let count = |directory: DataDir| {
        let connection = directory.connect().unwrap();
        connection.query_row("SELECT count(*) FROM accounts", [], |row| row.get::<_, u32>(0)).unwrap()
    };
    assert_eq!(count(DataDir::open(folder.path()).unwrap()), 1, "the root");
    assert_eq!(count(DataDir::open(folder.path()).unwrap()), 1);
}

#[test]
fn a_file_that_is_no_database_is_named_and_kept() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("passerelle.db");
    std::fs::write(&path, "not a database, but longer than the header of one, so that it is looked at").unwrap();
    let error = DataDir::open(folder.path()).unwrap_err().to_string();
    assert!(error.contains("passerelle.db"), "{error}");
    assert!(std::fs::read_to_string(&path).unwrap().starts_with("not a database"));
}

#[test]
fn keys_of_the_former_file_are_taken_in_once_each_with_an_account() {
    let folder = tempfile::tempdir().unwrap();
    let digest = "ab".repeat(32);
    let text = format!(
        r#"{{"format_version":1,"keys":[{{"id":"k1","name":"alice","limits":[{{"tokens_per_minute":5}}],
        "created_at":7,"expires_at":null,"revoked_at":9,"digest":"{digest}"}}]}}"#
    );
    for _ in 0..2 {
        std::fs::write(folder.path().join("keys.json"), &text).unwrap();
        let directory = DataDir::open(folder.path()).unwrap();
        let connection = directory.connect().unwrap();
        let row = connection.query_row(
            "SELECT account, revoked_at, limits FROM keys JOIN accounts ON path = account",
            [],
            |row| Ok((row.get::<_, String>(0)?, row.get::<_, u64>(1)?, row.get::<_, String>(2)?)),
        );
        let limits = r#"[{"limit":"tokens_per_minute","value":5.0}]"#.to_owned();
        assert_eq!(row.unwrap(), ("alice".to_owned(), 9, limits));
        assert!(!folder.path().join("keys.json").exists());
    }
}

#[test]
fn a_damaged_or_newer_former_file_is_refused_and_kept() {
    let folder = tempfile::tempdir().unwrap();
    for (text, expected) in [("{", "not a file of keys"), (r#"{"format_version":2,"keys":[]}"#, "format version 2")] {
        std::fs::write(folder.path().join("keys.json"), text).unwrap();
        let error = DataDir::open(folder.path()).unwrap_err().to_string();
        assert!(error.contains(expected) && error.contains("keys.json"), "{error}");
        assert_eq!(std::fs::read_to_string(folder.path().join("keys.json")).unwrap(), text);
    }
}

/// An entry as an earlier program wrote it.
struct Former {
    format: u32,
    row: &'static str,
    /// Of its export.
    columns: &'static str,
    line: &'static str,
    /// What of the line the chain covers.
    covered: &'static str,
}

const COLUMNS_OF_3: &str = "seq,reservation,account,key,model,model_digest,partition,tariff,binary,opened_at,settled_at,\
                            input_tokens,cached_tokens,output_tokens,billed_gpu_us,measured_gpu_us,finish";
const COLUMNS_OF_4: &str = "seq,reservation,account,key,model,model_digest,partition,tariff,binary,opened_at,settled_at,\
                            input_tokens,cached_tokens,output_tokens,billed_gpu_us,measured_gpu_us,finish,answers,\
                            told_model_digest,told_site,told_billed_gpu_us";
const COLUMNS_OF_5: &str = "seq,reservation,account,key,model,model_digest,partition,tariff,binary,opened_at,settled_at,\
                            input_tokens,cached_tokens,output_tokens,billed_gpu_us,measured_gpu_us,finish,answers,\
                            told_model_digest,told_site,told_billed_gpu_us,user,metadata";
const COLUMNS_OF_6: &str = "seq,reservation,account,key,model,model_digest,partition,tariff,binary,opened_at,settled_at,\
                            input_tokens,cached_tokens,output_tokens,billed_gpu_us,measured_gpu_us,finish,answers,\
                            told_model_digest,told_site,told_billed_gpu_us,user,metadata,bill";
const FORMER: [Former; 5] = [
    Former {
        format: 3,
        row: "7, 1, 'acme', 'k', 'm', 'fp_1', 'cpu', '1', '0.1.0', 1000, 1001, 5, 5, 0, 3, 7, 3, 'stop', ?1",
        columns: COLUMNS_OF_3,
        line: "1,7,acme,k,m,fp_1,cpu,1,0.1.0,1000,1001,5,0,3,7,3,stop",
        covered: "1,7,acme,k,m,fp_1,cpu,1,0.1.0,1000,1001,5,0,3,7,3,stop",
    },
    Former {
        format: 4,
        row: "7, 1, 'acme', 'k', 'm', 'fp_1', 'cpu', '1', '0.1.0', 1000, 1001, 5, 5, 0, 3, 7, 3, 'stop', ?1, 1, \
              NULL, NULL, NULL",
        columns: COLUMNS_OF_4,
        line: "1,7,acme,k,m,fp_1,cpu,1,0.1.0,1000,1001,5,0,3,7,3,stop,1,,,",
        covered: "1,7,acme,k,m,fp_1,cpu,1,0.1.0,1000,1001,5,0,3,7,3,stop",
    },
    Former {
        format: 4,
        row: "7, 1, 'acme', 'k', 'm', 'fp_1', 'cpu', '1', '0.1.0', 1000, 1001, 5, 5, 0, 3, 7, 3, 'stop', ?1, 2, \
              'd', 's', 9",
        columns: COLUMNS_OF_4,
        line: "1,7,acme,k,m,fp_1,cpu,1,0.1.0,1000,1001,5,0,3,7,3,stop,2,d,s,9",
        covered: "1,7,acme,k,m,fp_1,cpu,1,0.1.0,1000,1001,5,0,3,7,3,stop,2,d,s,9",
    },
    Former {
        format: 5,
        row: "7, 1, 'acme', 'k', 'm', 'fp_1', 'cpu', '1', '0.1.0', 1000, 1001, 5, 5, 0, 3, 7, 3, 'stop', ?1, 1, \
              NULL, NULL, NULL, 'u', NULL",
        columns: COLUMNS_OF_5,
        line: "1,7,acme,k,m,fp_1,cpu,1,0.1.0,1000,1001,5,0,3,7,3,stop,1,,,,u,",
        covered: "1,7,acme,k,m,fp_1,cpu,1,0.1.0,1000,1001,5,0,3,7,3,stop,1,,,,u,",
    },
    Former {
        format: 6,
        row: "7, 1, 'acme', 'k', 'm', 'fp_1', 'cpu', '1', '0.1.0', 1000, 1001, 5, 5, 0, 3, 7, 3, 'stop', ?1, 1, \
              NULL, NULL, NULL, NULL, NULL, 6",
        columns: COLUMNS_OF_6,
        line: "1,7,acme,k,m,fp_1,cpu,1,0.1.0,1000,1001,5,0,3,7,3,stop,1,,,,,,6",
        covered: "1,7,acme,k,m,fp_1,cpu,1,0.1.0,1000,1001,5,0,3,7,3,stop,1,,,,,,6",
    },
];

/// The chain of an earlier program's entries goes on over those of this one.
#[test]
fn a_ledger_of_a_former_format_is_kept_beside_and_its_chain_still_verifies() {
    for Former { format, row, columns, line, covered } in FORMER {
        let folder = tempfile::tempdir().unwrap();
        let connection = database_of_format(format, folder.path());
        let chain = Chain::default().then(covered);
        connection.execute(&format!("INSERT INTO entries VALUES ({row})"), [chain.0.as_slice()]).unwrap();
        drop(connection);
        let data = DataDir::open(folder.path()).unwrap();
        assert!(folder.path().join(format!("passerelle.db.format-{format}")).exists());
        let mut csv = Vec::new();
        let exported = write_csv(&UsageReader::open(&data).unwrap(), &mut csv).unwrap();
        assert_eq!((exported.entries, exported.head), (1, chain));
        assert_eq!(verify_csv(csv.as_slice()).unwrap(), exported);
        let former = format!("{columns},hash\n{line},{}\n", chain.hex());
        assert_eq!(verify_csv(former.as_bytes()).unwrap(), exported, "an export of the earlier program");
    }
}
