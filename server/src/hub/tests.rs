use std::fs;
use std::path::Path;

use tempfile::TempDir;

use super::*;

pub(super) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

pub(super) fn options(cache: &Path, network: Network, endpoint: Option<String>) -> HubOptions {
    let (progress, retry_pause) = (ProgressOutput::Silent, Duration::ZERO);
    let wanted = Wanted::Checkpoint;
    HubOptions { network, wanted, cache_dir: cache.to_owned(), token: None, endpoint, progress, retry_pause }
}

pub(super) fn hub_source(id: &str) -> Source {
    Source::Hub(HubId::parse(id).unwrap())
}

/// A cache as other tools leave it: `main` means COMMIT, whose snapshot has `files`.
pub(super) fn cache_with(files: &[(&str, &str)]) -> TempDir {
    let cache = TempDir::new().unwrap();
    let repo = cache.path().join("models--org--name");
    let snapshot = repo.join("snapshots").join(COMMIT);
    fs::create_dir_all(&snapshot).unwrap();
    fs::create_dir_all(repo.join("refs")).unwrap();
    fs::write(repo.join("refs/main"), format!("{COMMIT}\n")).unwrap();
    for (name, content) in files {
        fs::write(snapshot.join(name), content).unwrap();
    }
    cache
}

const INDEX: &str = r#"{"weight_map": {"a": "model-1-of-2.safetensors", "b": "model-2-of-2.safetensors"}}"#;

#[test]
fn a_complete_cache_is_enough_offline() {
    let cache = cache_with(&[("config.json", "{}"), ("tokenizer.json", "{}"), ("model.safetensors", "w")]);
    let options = options(cache.path(), Network::Offline, None);
    for id in ["org/name", "org/name@main", &format!("org/name@{COMMIT}")] {
        let local = resolve(&hub_source(id), &options).unwrap();
        assert_eq!(local.commit.as_deref(), Some(COMMIT));
        assert_eq!(fs::read(local.path.join("model.safetensors")).unwrap(), b"w");
    }
}

#[test]
fn offline_says_what_is_missing_where_and_how_to_get_it() {
    let cache = cache_with(&[
        ("config.json", "{}"),
        ("model.safetensors.index.json", INDEX),
        ("model-1-of-2.safetensors", "w"),
    ]);
    let options = options(cache.path(), Network::Offline, None);
    let incomplete = resolve(&hub_source("org/name"), &options).unwrap_err().to_string();
    for part in ["tokenizer.json, model-2-of-2.safetensors", COMMIT, "hf download org/name", "--offline"] {
        assert!(incomplete.contains(part), "{incomplete}");
    }
    let absent = resolve(&hub_source("org/other@v2"), &options).unwrap_err().to_string();
    for part in ["org/other@v2", "models--org--other", "hf download org/other --revision v2"] {
        assert!(absent.contains(part), "{absent}");
    }
}

#[test]
fn a_tokenizer_alone_and_a_checkpoint_without_one_are_complete_where_that_is_wanted() {
    let complete = |files: &[(&str, &str)], wanted| {
        let cache = cache_with(files);
        let options = HubOptions { wanted, ..options(cache.path(), Network::Offline, None) };
        resolve(&hub_source("org/name"), &options).is_ok()
    };
    let tokenizer = [("tokenizer.json", "{}")];
    let weights = [("config.json", "{}"), ("model.safetensors", "w")];
    let all = [Wanted::Checkpoint, Wanted::CheckpointWithoutTokenizer, Wanted::Tokenizer];
    assert_eq!(all.map(|wanted| complete(&tokenizer, wanted)), [false, false, true]);
    assert_eq!(all.map(|wanted| complete(&weights, wanted)), [false, true, false]);
}

#[test]
fn a_directory_or_a_file_is_taken_as_it_is() {
    let directory = TempDir::new().unwrap();
    let options = options(directory.path(), Network::Offline, None);
    let local = resolve(&Source::Directory(directory.path().to_owned()), &options).unwrap();
    assert_eq!(local, LocalCheckpoint { path: directory.path().to_owned(), commit: None });
    let missing = Source::Directory(directory.path().join("nothing"));
    assert!(matches!(resolve(&missing, &options), Err(HubError::NoDirectory(_))));
    let file = directory.path().join("x.gguf");
    assert!(matches!(resolve(&Source::Gguf(file.clone()), &options), Err(HubError::NoFile(_))));
    fs::write(&file, b"GGUF").unwrap();
    assert_eq!(resolve(&Source::Gguf(file.clone()), &options).unwrap().path, file);
}

#[test]
fn a_token_is_not_shown_in_debug_output() {
    let mut options = options(Path::new("c"), Network::Allowed, None);
    options.token = Some("hf_secret".into());
    assert!(!format!("{options:?}").contains("hf_secret"));
}

#[cfg(not(feature = "hub"))]
#[test]
fn a_binary_without_the_hub_takes_what_the_cache_holds_and_says_so() {
    let cache = cache_with(&[("config.json", "{}"), ("tokenizer.json", "{}"), ("model.safetensors", "w")]);
    let options = options(cache.path(), Network::Allowed, None);
    assert!(resolve(&hub_source("org/name"), &options).is_ok());
    let refused = resolve(&hub_source("org/other"), &options).unwrap_err().to_string();
    assert!(refused.contains("org/other is not in the hub cache") && refused.contains("feature `hub`"), "{refused}");
}
