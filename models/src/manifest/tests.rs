use std::cell::Cell;
use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use tempfile::TempDir;

use super::*;
use crate::demo_checkpoint;

/// A checkpoint with a module, beside what is no part of one.
fn folder() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, content) in [
        ("config.json", "{}"),
        ("model.safetensors", "weights"),
        ("tokenizer.json", "words"),
        ("modules.json", "[]"),
        ("1_Pooling/config.json", "mean"),
        ("README.md", "read me"),
        ("optimizer.pt", "moments"),
        ("step-1/config.txt", "elsewhere"),
    ] {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
    folder
}

fn manifest(folder: &Path) -> Manifest {
    read(&CheckpointFiles::directory(folder).unwrap(), &NothingKnown)
}

fn read(files: &CheckpointFiles, known: &dyn KnownHashes) -> Manifest {
    Manifest::read(files, known, &|_| ControlFlow::Continue(())).unwrap()
}

#[test]
fn a_manifest_lists_what_is_served_by_name_size_and_hash() {
    let (one, other) = (folder(), folder());
    let text = manifest(one.path()).to_text();
    let lines: Vec<&str> = text.lines().collect();
    let names: Vec<_> = lines[1..].iter().map(|line| line.rsplit(' ').next().unwrap()).collect();
    assert_eq!(lines[0], "passerelle manifest 1");
    assert_eq!(names, ["1_Pooling/config.json", "config.json", "model.safetensors", "modules.json", "tokenizer.json"]);
    // As `printf '{}' | sha256sum` says.
    assert_eq!(lines[2], "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a 2 config.json");
    assert_eq!(manifest(one.path()).digest(), manifest(other.path()).digest(), "wherever it lies");
}

#[test]
fn every_byte_and_every_name_of_a_checkpoint_changes_its_digest_and_nothing_else_does() {
    let folder = folder();
    let before = manifest(folder.path()).digest();
    fs::write(folder.path().join("README.md"), "changed").unwrap();
    fs::write(folder.path().join("trainer_state.json"), "{}").unwrap();
    assert_eq!(manifest(folder.path()).digest(), before);
    let changes: [(&str, &str); 5] = [
        ("model.safetensors", "Weights"),
        ("1_Pooling/config.json", "max"),
        ("tokenizer.json", ""),
        ("generation_config.json", ""),
        ("more.safetensors", ""),
    ];
    for (name, content) in changes {
        let path = folder.path().join(name);
        let former = fs::read(&path).ok();
        fs::write(&path, content).unwrap();
        assert_ne!(manifest(folder.path()).digest(), before, "{name}");
        match former {
            Some(former) => fs::write(&path, former).unwrap(),
            None => fs::remove_file(&path).unwrap(),
        }
    }
    assert_eq!(manifest(folder.path()).digest(), before);
    fs::rename(folder.path().join("tokenizer.json"), folder.path().join("tokenizer_config.json")).unwrap();
    assert_ne!(manifest(folder.path()).digest(), before);
}

#[test]
fn the_bundled_demo_has_the_digest_of_its_folder() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("demo/final");
    assert_eq!(read(&demo_checkpoint(), &NothingKnown), manifest(&folder));
}

#[test]
fn a_gguf_file_is_the_same_model_under_any_name() {
    let folder = tempfile::tempdir().unwrap();
    let [one, other] = ["a.gguf", "b.Q4.gguf"].map(|name| {
        let path = folder.path().join(name);
        fs::write(&path, "GGUF and more").unwrap();
        read(&CheckpointFiles::gguf(path).unwrap(), &NothingKnown)
    });
    assert_eq!((one.files()[0].name.as_str(), &one), ("model.gguf", &other));
}

/// Counts what it is asked in vain.
#[derive(Default)]
struct Memory {
    known: Mutex<HashMap<PathBuf, (FileStamp, FileHash)>>,
    unknown: AtomicU64,
}

impl KnownHashes for Memory {
    fn find(&self, file: &FileStamp) -> Option<FileHash> {
        let known = self.known.lock().unwrap();
        let found = known.get(&file.path).filter(|(stamp, _)| stamp == file).map(|(_, hash)| *hash);
        self.unknown.fetch_add(u64::from(found.is_none()), Ordering::Relaxed);
        found
    }

    fn learn(&self, file: FileStamp, hash: FileHash) {
        self.known.lock().unwrap().insert(file.path.clone(), (file, hash));
    }
}

#[test]
fn a_file_is_hashed_once_until_somebody_writes_to_it() {
    let (folder, memory) = (folder(), Memory::default());
    let files = CheckpointFiles::directory(folder.path()).unwrap();
    let unknown = Cell::new(0);
    let newly_hashed = || {
        let total = memory.unknown.load(Ordering::Relaxed);
        total - unknown.replace(total)
    };
    let first = read(&files, &memory);
    assert_eq!((newly_hashed(), first.files().len()), (5, 5));
    assert_eq!(read(&files, &memory), first);
    assert_eq!(newly_hashed(), 0);
    // Another file in the same place, as an editor writes it.
    fs::write(folder.path().join("new"), "WEIGHTS").unwrap();
    fs::rename(folder.path().join("new"), folder.path().join("model.safetensors")).unwrap();
    assert_ne!(read(&files, &memory), first);
    assert_eq!(newly_hashed(), 1);
}

#[test]
fn hashing_says_how_far_it_is_and_ends_when_it_is_told() {
    let folder = folder();
    let files = CheckpointFiles::directory(folder.path()).unwrap();
    let most = AtomicU64::new(0);
    let watch = |LoadProgress { bytes_done, bytes_total }| {
        most.fetch_max(bytes_done, Ordering::Relaxed);
        assert!(bytes_done <= bytes_total && bytes_total == 2 + 7 + 5 + 2 + 4);
        ControlFlow::Continue(())
    };
    Manifest::read(&files, &NothingKnown, &watch).unwrap();
    assert_eq!(most.into_inner(), 20);
    let error = Manifest::read(&files, &NothingKnown, &|_| ControlFlow::Break(())).unwrap_err();
    assert!(matches!(error, ModelError::Io { source, .. } if source.kind() == std::io::ErrorKind::Interrupted));
}

#[test]
fn a_manifest_is_read_as_it_is_written_and_in_no_other_spelling() {
    let folder = folder();
    let manifest = manifest(folder.path());
    let text = manifest.to_text();
    assert_eq!(Manifest::from_text(&text), Ok(manifest));
    let line = |number: usize| text.lines().nth(number).unwrap().to_owned();
    let odd = [
        String::new(),
        text.replace("manifest 1", "manifest 2"),
        text.trim_end().to_owned(),
        text.replace('\n', "\r\n"),
        text.replace(" 2 config.json", " 02 config.json"),
        text.replace("config.json", "../config.json"),
        text.replace(" tokenizer.json", " a b"),
        text.replace(" tokenizer.json", " a/b/c"),
        text.replace(" tokenizer.json", " /etc"),
        text.replace(" tokenizer.json", " .hidden"),
        [line(0), line(2), line(1), String::new()].join("\n"),
        [line(0), line(1), line(1), String::new()].join("\n"),
        text.replace("44136", "4413"),
    ];
    for odd in odd {
        assert!(Manifest::from_text(&odd).is_err(), "{odd}");
    }
}

#[test]
fn a_copy_has_the_manifest_of_what_was_copied_and_holds_nothing_else() {
    let (source, target) = (folder(), tempfile::tempdir().unwrap());
    let files = CheckpointFiles::directory(source.path()).unwrap();
    let copied = Manifest::copy(&files, target.path(), &mut |_| ControlFlow::Continue(())).unwrap();
    assert_eq!(copied, manifest(source.path()));
    let there = CheckpointFiles::directory(target.path()).unwrap();
    copied.check(&there, &[], &NothingKnown, &|_| ControlFlow::Continue(())).unwrap();
    assert!(!target.path().join("README.md").exists());
    // Nothing is written over.
    assert!(Manifest::copy(&files, target.path(), &mut |_| ControlFlow::Continue(())).is_err());
    let (elsewhere, demo) = (tempfile::tempdir().unwrap(), demo_checkpoint());
    let copied = Manifest::copy(&demo, elsewhere.path(), &mut |_| ControlFlow::Continue(())).unwrap();
    assert_eq!(copied, read(&demo, &NothingKnown));
}

#[test]
fn what_is_changed_missing_or_extra_is_named() {
    let source = folder();
    let written = manifest(source.path());
    let (copy, other) = (tempfile::tempdir().unwrap(), source.path().join("README.md"));
    let files = CheckpointFiles::directory(source.path()).unwrap();
    Manifest::copy(&files, copy.path(), &mut |_| ControlFlow::Continue(())).unwrap();
    let check = |folder: &Path| {
        let files = CheckpointFiles::directory(folder).unwrap();
        written
            .check(&files, &["passerelle.manifest"], &NothingKnown, &|_| ControlFlow::Continue(()))
            .map_err(|error| error.to_string())
    };
    assert_eq!(check(copy.path()), Ok(()));
    fs::write(copy.path().join("passerelle.manifest"), "beside").unwrap();
    assert_eq!(check(copy.path()), Ok(()));
    assert!(check(source.path()).unwrap_err().contains(other.to_str().unwrap()), "README.md is extra");
    for name in ["model.safetensors", "1_Pooling/config.json", "config.json", "tokenizer.json"] {
        let path = copy.path().join(name);
        let former = fs::read(&path).unwrap();
        let mut changed = former.clone();
        changed[0] ^= 1;
        fs::write(&path, changed).unwrap();
        let said = check(copy.path()).unwrap_err();
        assert!(said.starts_with(&format!("{}: is not what the manifest says", path.display())), "{said}");
        fs::remove_file(&path).unwrap();
        let said = check(copy.path()).unwrap_err();
        assert!(said.starts_with(&format!("{}: the manifest has it", path.display())), "{said}");
        fs::write(&path, former).unwrap();
    }
    for name in ["extra.safetensors", "notes.txt", "1_Pooling/more.json", "2_More/config.json"] {
        let path = copy.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, "x").unwrap();
        let said = check(copy.path()).unwrap_err();
        assert!(said.starts_with(&format!("{}: the manifest does not have it", path.display())), "{said}");
        fs::remove_file(&path).unwrap();
    }
    let config = copy.path().join("config.json");
    fs::rename(&config, source.path().join("moved")).unwrap();
    std::os::unix::fs::symlink("nowhere", &config).unwrap();
    let said = check(copy.path()).unwrap_err();
    assert!(said.starts_with(&format!("{}: the manifest has it, and what lies there", config.display())), "{said}");
    fs::rename(source.path().join("moved"), &config).unwrap();
    std::os::unix::fs::symlink(source.path(), copy.path().join("linked")).unwrap();
    assert!(check(copy.path()).unwrap_err().contains("linked: the manifest does not have it"));
}
