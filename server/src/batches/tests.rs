use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write};
use std::sync::{Arc, Mutex};

use super::*;

const ENDPOINT: Endpoint = Endpoint::Chat;

/// Refuses what it has no room for, when half of it is there.
#[derive(Debug, Default)]
struct SmallDisk {
    /// Writes that still fit. `None`: all.
    room: Mutex<Option<usize>>,
}

impl SmallDisk {
    fn has_room_for(&self, writes: Option<usize>) {
        *self.room.lock().unwrap() = writes;
    }
}

impl Disk for SmallDisk {
    fn write(&self, file: &mut File, bytes: &[u8]) -> io::Result<()> {
        match &mut *self.room.lock().unwrap() {
            None => file.write_all(bytes),
            Some(0) => {
                file.write_all(&bytes[..bytes.len() / 2])?;
                Err(io::ErrorKind::StorageFull.into())
            }
            Some(left) => {
                *left -= 1;
                file.write_all(bytes)
            }
        }
    }
}

fn store(folder: &tempfile::TempDir) -> BatchStore {
    store_on(&Arc::default(), folder)
}

fn store_on(disk: &Arc<SmallDisk>, folder: &tempfile::TempDir) -> BatchStore {
    BatchStore::open_on(disk.clone(), folder.path(), BatchBounds::default()).unwrap()
}

fn num_files(folder: &tempfile::TempDir, kind: &str) -> usize {
    std::fs::read_dir(folder.path().join(kind)).unwrap().count()
}

fn file(store: &BatchStore, owner: &str, content: &[u8]) -> StoredFile {
    let mut upload = store.begin_upload(owner).unwrap();
    upload.write(content).unwrap();
    let (owner, filename, purpose) = (owner.to_owned(), "in.jsonl".to_owned(), Purpose::Batch);
    let stored = |id, bytes| StoredFile { id, owner, filename, purpose, bytes, created_at: 1, serial: 0 };
    store.keep(upload, stored).unwrap()
}

fn batch(input: &StoredFile) -> Batch {
    Batch {
        id: BatchId::random().unwrap(),
        owner: input.owner.clone(),
        via: String::new(),
        endpoint: ENDPOINT,
        input_file_id: input.id.clone(),
        metadata: BTreeMap::new(),
        status: BatchStatus::InProgress,
        errors: Vec::new(),
        counts: Counts::default(),
        output_file_id: None,
        error_file_id: None,
        created_at: 1,
        serial: 0,
        expires_at: 2,
        reached_at: BTreeMap::new(),
        ending: None,
    }
}

#[test]
fn what_came_within_one_second_is_listed_newest_first_also_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let first = store(&folder);
    let files: Vec<_> = (0..6).map(|_| file(&first, "a", b"x").id).collect();
    let batches: Vec<_> = (0..6).map(|_| first.add_batch(batch(&first.files("a")[0])).unwrap().id).collect();
    drop(first);
    let again = store(&folder);
    assert!(again.files("a").into_iter().map(|file| file.id).eq(files.into_iter().rev()));
    assert_eq!(again.next_open(&[]).map(|batch| batch.id).as_ref(), batches.first());
    assert!(again.batches("a").into_iter().map(|batch| batch.id).eq(batches.into_iter().rev()));
}

#[test]
fn a_torn_last_line_is_cut_off_and_its_request_runs_again() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(&folder);
    let id = BatchId::random().unwrap();
    let mut journal = store.journal(&id, 3).unwrap();
    journal.append("a", Outcome::Completed, r#"{"custom_id":"a"}"#).unwrap();
    journal.append("b", Outcome::Failed, r#"{"custom_id":"b"}"#).unwrap();
    drop(journal);
    let path = folder.path().join(format!("batches/{id}.out"));
    let whole = std::fs::read(&path).unwrap();
    for torn in [&br#"{"custom_id":"c""#[..], b"{\"custom", b"\n", b"no json\n"] {
        std::fs::write(&path, [&whole[..], torn].concat()).unwrap();
        let journal = store.journal(&id, 3).unwrap();
        assert!(journal.is_done("a") && journal.is_done("b") && !journal.is_done("c"));
        assert_eq!(journal.counts(), Counts { total: 3, completed: 1, failed: 1 });
        assert_eq!(std::fs::read(&path).unwrap(), whole);
    }
}

#[test]
fn everything_is_found_again_and_belongs_to_its_owner() {
    let folder = tempfile::tempdir().unwrap();
    let first = store(&folder);
    let input = file(&first, "ada", b"x");
    let batch = first.add_batch(batch(&input)).unwrap();
    assert!(matches!(first.delete_file("ada", input.id.as_str()), Err(BatchError::FileInUse)));
    let journal = first.journal(&batch.id, 0).unwrap();
    let ended = first.finish(&batch.id, &journal, BatchStatus::Completed, 9).unwrap();
    assert_eq!((ended.output_file_id.clone(), ended.error_file_id.clone()), (None, None), "empty files are none");
    let second = store(&folder);
    assert_eq!(second.files("ada"), std::slice::from_ref(&input));
    assert_eq!(second.batches("ada"), [ended]);
    assert!(second.files("eve").is_empty() && second.batches("eve").is_empty());
    assert!(matches!(second.file("eve", input.id.as_str()), Err(BatchError::NoFile)));
    assert!(matches!(second.batch("eve", batch.id.as_str()), Err(BatchError::NoBatch)));
    assert!(second.next_open(&[]).is_none());
    assert!(matches!(second.cancel("ada", batch.id.as_str(), 10), Err(BatchError::Over(BatchStatus::Completed))));
}

/// A crash may come at any of the steps, of which the first makes the end certain.
#[test]
fn a_batch_that_a_crash_interrupts_while_its_answers_become_files_is_ended_and_not_run_again() {
    for files_moved in 0..3 {
        let folder = tempfile::tempdir().unwrap();
        let first = store(&folder);
        let batch = first.add_batch(batch(&file(&first, "ada", b"x"))).unwrap();
        let mut journal = first.journal(&batch.id, 2).unwrap();
        journal.append("a", Outcome::Completed, r#"{"custom_id":"a"}"#).unwrap();
        journal.append("b", Outcome::Failed, r#"{"custom_id":"b"}"#).unwrap();
        first.decide_end(&batch.id, &journal, BatchStatus::Completed, 9).unwrap();
        let ending = first.batch("ada", batch.id.as_str()).unwrap().ending.unwrap();
        let files = [("out", ending.output.clone()), ("err", ending.errors.clone())];
        for (kind, file) in files.iter().take(files_moved) {
            let content = folder.path().join(format!("files/{}.data", file.as_ref().unwrap()));
            std::fs::rename(folder.path().join(format!("batches/{}.{kind}", batch.id)), content).unwrap();
        }
        drop(first);

        let second = store(&folder);
        assert!(second.next_open(&[]).is_none(), "nothing is run again");
        let ended = second.batch("ada", batch.id.as_str()).unwrap();
        assert_eq!(
            (ended.status, ended.counts),
            (BatchStatus::Completed, Counts { total: 2, completed: 1, failed: 1 })
        );
        for (file, line) in [(ended.output_file_id, "a"), (ended.error_file_id, "b")] {
            let file = second.file("ada", file.unwrap().as_str()).unwrap();
            let content = second.content(&file).unwrap();
            assert_eq!(String::from_utf8(content).unwrap(), format!("{{\"custom_id\":\"{line}\"}}\n"));
        }
        assert_eq!(num_files(&folder, "batches"), 1, "its record alone");
    }
}

#[test]
fn a_line_without_room_leaves_nothing_and_can_be_written_once_there_is() {
    let (folder, disk) = (tempfile::tempdir().unwrap(), Arc::default());
    let store = store_on(&disk, &folder);
    let id = BatchId::random().unwrap();
    let mut journal = store.journal(&id, 2).unwrap();
    let written = || std::fs::read_to_string(folder.path().join(format!("batches/{id}.out"))).unwrap();
    let [first, second] = ["a", "b"].map(|name| format!(r#"{{"custom_id":"{name}"}}"#));
    journal.append("a", Outcome::Completed, &first).unwrap();
    disk.has_room_for(Some(0));
    for _ in 0..2 {
        let refused = journal.append("b", Outcome::Completed, &second).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::StorageFull);
        assert_eq!((journal.is_done("b"), journal.counts().completed), (false, 1));
        assert_eq!(written(), format!("{first}\n"));
    }
    disk.has_room_for(None);
    journal.append("b", Outcome::Completed, &second).unwrap();
    assert_eq!(written(), format!("{first}\n{second}\n"));
}

#[test]
fn what_cannot_be_written_down_has_not_happened() {
    let (folder, disk) = (tempfile::tempdir().unwrap(), Arc::default());
    let first = store_on(&disk, &folder);
    let input = file(&first, "ada", b"x");
    let batch = first.add_batch(batch(&input)).unwrap();
    disk.has_room_for(Some(0));
    let refusals = [
        first.cancel("ada", batch.id.as_str(), 9).unwrap_err(),
        first.add_batch(Batch { id: BatchId::random().unwrap(), ..batch.clone() }).unwrap_err(),
        first.begin_upload("ada").unwrap().write(b"content").unwrap_err(),
    ];
    assert!(refusals.iter().all(BatchError::is_for_want_of_room), "{refusals:?}");
    disk.has_room_for(Some(1));
    let mut upload = first.begin_upload("ada").unwrap();
    upload.write(b"content").unwrap();
    assert!(first.keep(upload, |id, _| StoredFile { id, ..input.clone() }).unwrap_err().is_for_want_of_room());
    assert_eq!((num_files(&folder, "files"), num_files(&folder, "batches")), (2, 1), "the input and its batch");
    for store in [&first, &store(&folder)] {
        assert_eq!(store.batches("ada"), std::slice::from_ref(&batch));
        assert_eq!(store.files("ada"), std::slice::from_ref(&input));
    }
}

#[test]
fn an_end_without_room_goes_on_where_it_was_also_after_a_restart() {
    for (room, restarts) in (0..4).flat_map(|room| [(room, false), (room, true)]) {
        let (folder, disk) = (tempfile::tempdir().unwrap(), Arc::default());
        let first = store_on(&disk, &folder);
        let batch = first.add_batch(batch(&file(&first, "ada", b"x"))).unwrap();
        first.change(&batch.id, |batch| batch.reach(BatchStatus::InProgress, 8)).unwrap();
        let mut journal = first.journal(&batch.id, 2).unwrap();
        journal.append("a", Outcome::Completed, r#"{"custom_id":"a"}"#).unwrap();
        journal.append("b", Outcome::Failed, r#"{"custom_id":"b"}"#).unwrap();
        disk.has_room_for(Some(room));
        let refused = first.finish(&batch.id, &journal, BatchStatus::Completed, 9).unwrap_err();
        assert!(refused.is_for_want_of_room(), "{refused}");
        let (second, journal) = if restarts && room > 0 {
            drop((first, journal));
            disk.has_room_for(Some(0));
            let second = store_on(&disk, &folder);
            let found = second.next_open(&[]).unwrap();
            assert!(found.ending.is_some(), "whoever runs batches has to end it");
            (second, None)
        } else {
            (first, Some(journal))
        };
        disk.has_room_for(None);
        let ended = match journal {
            Some(journal) => second.finish(&batch.id, &journal, BatchStatus::Completed, 9).unwrap(),
            None => second.end(&batch.id).unwrap(),
        };
        assert_eq!(
            (ended.status, ended.counts),
            (BatchStatus::Completed, Counts { total: 2, completed: 1, failed: 1 })
        );
        for (kept, line) in [(ended.output_file_id, "a"), (ended.error_file_id, "b")] {
            let kept = second.file("ada", kept.unwrap().as_str()).unwrap();
            let content = String::from_utf8(second.content(&kept).unwrap()).unwrap();
            assert_eq!(content, format!("{{\"custom_id\":\"{line}\"}}\n"), "{room}");
        }
        assert_eq!((num_files(&folder, "files"), num_files(&folder, "batches")), (6, 1), "nothing beside them");
    }
}

#[test]
fn an_upload_that_breaks_off_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(&folder);
    let mut upload = store.begin_upload("ada").unwrap();
    upload.write(b"half").unwrap();
    drop(upload);
    assert_eq!(num_files(&folder, "files"), 0);
}

#[test]
fn what_a_killed_process_left_half_written_is_gone_after_the_next_start() {
    let folder = tempfile::tempdir().unwrap();
    let first = store(&folder);
    let input = file(&first, "ada", b"x");
    let mut upload = first.begin_upload("ada").unwrap();
    upload.write(b"half").unwrap();
    std::mem::forget(upload);
    std::fs::write(folder.path().join("batches/.tmpQ3kz1a"), "{").unwrap();
    let unreadable = FileId::random().unwrap();
    for (kind, content) in [("json", "{"), ("data", "kept")] {
        std::fs::write(folder.path().join(format!("files/{unreadable}.{kind}")), content).unwrap();
    }
    drop(first);
    let second = store(&folder);
    assert_eq!(second.files("ada"), std::slice::from_ref(&input));
    assert_eq!(second.content(&input).unwrap(), b"x");
    assert_eq!((num_files(&folder, "files"), num_files(&folder, "batches")), (4, 0), "what cannot be read is kept");
}

#[test]
fn batches_that_are_over_are_forgotten_the_first_to_end_first() {
    let folder = tempfile::tempdir().unwrap();
    let bounds = BatchBounds { max_ended: 2, ..BatchBounds::default() };
    let store = BatchStore::open(folder.path(), bounds).unwrap();
    let input = file(&store, "ada", b"x");
    let late = store.add_batch(batch(&input)).unwrap();
    let end = |id: &BatchId, at| {
        let journal = store.journal(id, 0).unwrap();
        store.finish(id, &journal, BatchStatus::Completed, at).unwrap().id
    };
    let ended: Vec<_> = (0..4).map(|at| end(&store.add_batch(batch(&input)).unwrap().id, at)).collect();
    // It was made first and ends last.
    end(&late.id, 9);
    let kept = |store: &BatchStore| store.batches("ada").into_iter().map(|batch| batch.id).collect::<Vec<_>>();
    assert_eq!((kept(&store), num_files(&folder, "batches")), (vec![ended[3].clone(), late.id], 2));
    drop(store);
    let bounds = BatchBounds { max_ended: 1, ..bounds };
    assert_eq!(kept(&BatchStore::open(folder.path(), bounds).unwrap()).len(), 1, "a bound that is lowered holds");
}

#[test]
fn a_file_that_is_deleted_before_its_batch_is_made_makes_none() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(&folder);
    let input = file(&store, "ada", b"x");
    store.delete_file("ada", input.id.as_str()).unwrap();
    assert!(matches!(store.add_batch(batch(&input)), Err(BatchError::NoFile)));
}

#[test]
fn a_broken_record_is_left_out_and_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    drop(store(&folder));
    let broken = folder.path().join("batches/batch_1.json");
    std::fs::write(&broken, "{").unwrap();
    assert!(store(&folder).batches("ada").is_empty());
    assert!(broken.exists());
}

#[test]
fn names_of_others_are_no_paths() {
    for name in
        ["", "file-", "file-../../../../../etc/pass", "file-00000000000000000000000G", "batch_000000000000000000000000"]
    {
        assert!(FileId::parse(name).is_none(), "{name}");
    }
    let id = FileId::random().unwrap();
    assert_eq!(FileId::parse(id.as_str()), Some(id));
}

#[test]
fn an_input_has_a_bound() {
    let line =
        |id: usize| format!(r#"{{"custom_id":"{id}","method":"POST","url":"{}","body":{{}}}}"#, ENDPOINT.as_str());
    let text: Vec<String> = (0..3).map(line).collect();
    assert_eq!(read_input(text.join("\n").as_bytes(), ENDPOINT, 3).unwrap().len(), 3);
    assert_eq!(read_input(text.join("\n").as_bytes(), ENDPOINT, 2).unwrap_err()[0].line, 3);
    assert_eq!(read_input(b"\n \n", ENDPOINT, 2).unwrap_err().len(), 1);
}

#[test]
fn a_line_is_an_object_and_no_list_of_what_it_would_hold() {
    let list = format!(r#"["a","POST","{}",{{}}]"#, ENDPOINT.as_str());
    let errors = read_input(list.as_bytes(), ENDPOINT, 3).unwrap_err();
    assert_eq!((errors[0].line, errors[0].message.as_str()), (1, "a line must be a JSON object"));
}
