use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use sha2::{Digest, Sha256};
use tempfile::TempDir;

use super::*;
use crate::hex::hex;
use crate::hub::tests::{COMMIT, cache_with, hub_source, options};
use crate::hub::{Network, resolve};

/// A hub with one repository, on a free port, that can break transfers.
struct FakeHub {
    endpoint: String,
    /// Request lines with their Range header.
    requests: Arc<Mutex<Vec<String>>>,
}

#[derive(Default)]
struct Repository {
    files: BTreeMap<&'static str, Vec<u8>>,
    /// The first full transfer of the weights breaks after so many bytes.
    break_weights_after: Option<usize>,
    /// The weights are always sent with their first byte changed.
    damages_weights: bool,
    /// Everything is answered with this status.
    status: Option<&'static str>,
    /// Instead of the digest of a file.
    etag: Option<&'static str>,
    /// Instead of the commit that was asked for.
    commit: Option<&'static str>,
    /// But to the question how long a file is.
    ignores_ranges: bool,
}

impl FakeHub {
    fn start(mut repository: Repository) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let requests = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&requests);
        // The thread ends with the process: it owns nothing but its socket.
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let _ = repository.answer(&stream, &log);
            }
        });
        Self { endpoint, requests }
    }

    fn requests_for(&self, file: &str) -> Vec<String> {
        self.requests.lock().unwrap().iter().filter(|request| request.contains(file)).cloned().collect()
    }
}

impl Repository {
    fn new(weights: &[u8]) -> Self {
        let files = [
            ("config.json", b"{}".to_vec()),
            ("tokenizer.json", b"{\"t\": 1}".to_vec()),
            ("README.md", b"words".to_vec()),
            ("pytorch_model.bin", b"pickle".to_vec()),
            ("model.safetensors", weights.to_vec()),
        ];
        Self { files: BTreeMap::from(files), ..Self::default() }
    }

    fn answer(&mut self, stream: &TcpStream, log: &Mutex<Vec<String>>) -> std::io::Result<()> {
        let lines: Vec<String> =
            BufReader::new(stream).lines().map_while(Result::ok).take_while(|line| !line.is_empty()).collect();
        let path = lines[0].split(' ').nth(1).unwrap_or_default().to_owned();
        let range = lines.iter().find_map(|line| line.to_lowercase().strip_prefix("range: bytes=").map(str::to_owned));
        log.lock().unwrap().push(format!("{path} {}", range.as_deref().unwrap_or("whole")));
        let mut stream = stream;
        if let Some(status) = self.status {
            return write!(stream, "HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
        }
        if path.starts_with("/api/models/org/name/revision/") {
            let siblings: Vec<_> = self.files.keys().map(|file| serde_json::json!({"rfilename": file})).collect();
            let body = serde_json::json!({"sha": COMMIT, "siblings": siblings}).to_string();
            return write!(
                stream,
                "HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
                body.len()
            );
        }
        let name = path.rsplit('/').next().unwrap_or_default();
        self.send(stream, name, &range.unwrap_or_else(|| "0-".to_owned()))
    }

    fn send(&mut self, mut stream: &TcpStream, name: &str, range: &str) -> std::io::Result<()> {
        let content = &self.files[name];
        let etag = self.etag.map_or_else(|| digest(content), str::to_owned);
        let commit = self.commit.unwrap_or(COMMIT);
        let is_ignored = self.ignores_ranges && range != "0-0";
        let (range, status) = if is_ignored { ("0-", "200 OK") } else { (range, "206 Partial Content") };
        let (begin, end) = range.split_once('-').unwrap();
        let begin: usize = begin.parse().unwrap();
        let end = end.parse::<usize>().map_or(content.len(), |last| last + 1);
        if begin >= content.len() {
            return write!(
                stream,
                "HTTP/1.1 416 Range Not Satisfiable\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
            );
        }
        write!(
            stream,
            "HTTP/1.1 {status}\r\netag: \"{etag}\"\r\nx-repo-commit: {commit}\r\ncontent-length: {}\r\n\
             content-range: bytes {begin}-{}/{}\r\nconnection: close\r\n\r\n",
            end - begin,
            end - 1,
            content.len()
        )?;
        let mut body = content[begin..end].to_vec();
        if name == "model.safetensors" && range != "0-0" {
            if self.damages_weights {
                body[0] ^= 1;
            }
            body.truncate(self.break_weights_after.take().unwrap_or(body.len()));
        }
        stream.write_all(&body)
    }
}

fn digest(content: &[u8]) -> String {
    hex(&Sha256::digest(content)[..])
}

fn weights() -> Vec<u8> {
    (0..300_000_u32).map(|n| (n % 251) as u8).collect()
}

#[test]
fn a_model_is_downloaded_once_with_only_what_serving_needs() {
    let hub = FakeHub::start(Repository::new(&weights()));
    let cache = TempDir::new().unwrap();
    let online = options(cache.path(), Network::Allowed, Some(hub.endpoint.clone()));
    let local = resolve(&hub_source("org/name"), &online).unwrap();
    assert_eq!(local.commit.as_deref(), Some(COMMIT));
    assert_eq!(fs::read(local.path.join("model.safetensors")).unwrap(), weights());
    assert!(hub.requests_for("pytorch_model.bin").is_empty() && hub.requests_for("README").is_empty());

    let transfers = hub.requests_for("/resolve/").len();
    assert_eq!(resolve(&hub_source("org/name"), &online).unwrap(), local);
    assert_eq!(hub.requests_for("/resolve/").len(), transfers, "a second start fetches nothing");
    assert_eq!(resolve(&hub_source("org/name"), &options(cache.path(), Network::Offline, None)).unwrap(), local);
}

#[test]
fn a_broken_transfer_goes_on_where_it_stopped() {
    let hub = FakeHub::start(Repository { break_weights_after: Some(100_000), ..Repository::new(&weights()) });
    let cache = TempDir::new().unwrap();
    let online = options(cache.path(), Network::Allowed, Some(hub.endpoint.clone()));
    let local = resolve(&hub_source("org/name"), &online).unwrap();
    assert_eq!(fs::read(local.path.join("model.safetensors")).unwrap(), weights());
    let requests = hub.requests_for("model.safetensors");
    assert!(requests.iter().any(|request| request.ends_with(" 100000-")), "{requests:?}");
}

/// A cache in which so much of the weights lies under that name.
fn cache_with_blob(name: &str, content: &[u8]) -> TempDir {
    let cache = TempDir::new().unwrap();
    let blobs = cache.path().join("models--org--name/blobs");
    fs::create_dir_all(&blobs).unwrap();
    fs::write(blobs.join(name), content).unwrap();
    cache
}

/// The weights of the model, once it was resolved, and the ranges of them that the hub was asked for.
fn weights_through(cache: &Path, hub: &FakeHub) -> (Vec<u8>, Vec<String>) {
    let online = options(cache, Network::Allowed, Some(hub.endpoint.clone()));
    let local = resolve(&hub_source("org/name"), &online).unwrap();
    let asked = hub.requests_for("model.safetensors");
    let ranges = asked.iter().filter_map(|request| request.rsplit(' ').next()).map(str::to_owned).collect();
    (fs::read(local.path.join("model.safetensors")).unwrap(), ranges)
}

#[test]
fn a_partial_file_of_an_earlier_start_is_gone_on_with_and_a_full_one_is_taken_if_it_is_right() {
    let (right, part) = (weights(), format!("{}.part", digest(&weights())));
    let mut wrong = right.clone();
    wrong[7] ^= 1;
    let longer = [&right[..], b"more"].concat();
    let cases: [(&[u8], &[&str]); 4] = [
        (&right[..120_000], &["0-0", "120000-"]),
        (&right, &["0-0"]),
        (&wrong, &["0-0", "0-0", "0-"]),
        (&longer, &["0-0", "0-"]),
    ];
    for (kept, expected) in cases {
        let hub = FakeHub::start(Repository::new(&right));
        let (arrived, ranges) = weights_through(cache_with_blob(&part, kept).path(), &hub);
        assert!(arrived == right, "after {} bytes", kept.len());
        assert_eq!(ranges, expected, "after {} bytes", kept.len());
    }
}

#[test]
fn a_blob_that_is_there_is_taken_only_if_it_is_whole() {
    let (right, name) = (weights(), digest(&weights()));
    let cases: [(&[u8], &[&str]); 2] = [(&right, &["0-0"]), (&right[..1000], &["0-0", "0-"])];
    for (there, expected) in cases {
        let hub = FakeHub::start(Repository::new(&right));
        let (arrived, ranges) = weights_through(cache_with_blob(&name, there).path(), &hub);
        assert!(arrived == right);
        assert_eq!(ranges, expected);
    }
}

#[test]
fn a_hub_that_sends_a_file_from_its_beginning_is_not_appended_to_what_is_there() {
    let part = format!("{}.part", digest(&weights()));
    let hub = FakeHub::start(Repository { ignores_ranges: true, ..Repository::new(&weights()) });
    let (arrived, _) = weights_through(cache_with_blob(&part, &weights()[..1000]).path(), &hub);
    assert!(arrived == weights());
}

#[test]
fn a_file_whose_blob_somebody_removed_is_fetched_again() {
    let hub = FakeHub::start(Repository::new(&weights()));
    let cache = TempDir::new().unwrap();
    weights_through(cache.path(), &hub);
    fs::remove_file(cache.path().join("models--org--name/blobs").join(digest(&weights()))).unwrap();
    assert!(weights_through(cache.path(), &hub).0 == weights());
}

#[test]
fn what_a_hub_calls_a_file_leads_nowhere_outside_of_the_cache() {
    let outside = TempDir::new().unwrap();
    let cache = outside.path().join("hub");
    let hub = FakeHub::start(Repository { etag: Some("../../../escaped"), ..Repository::new(b"w") });
    assert_eq!(weights_through(&cache, &hub).0, b"w");
    let beside: Vec<_> = fs::read_dir(outside.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(beside, ["hub"]);
}

#[test]
fn a_file_of_another_commit_than_was_asked_for_is_refused() {
    let hub = FakeHub::start(Repository { commit: Some("../../elsewhere"), ..Repository::new(&weights()) });
    let cache = TempDir::new().unwrap();
    let online = options(cache.path(), Network::Allowed, Some(hub.endpoint.clone()));
    let refused = resolve(&hub_source("org/name"), &online).expect_err("versions are not mixed").to_string();
    assert!(refused.contains("x-repo-commit"), "{refused}");
}

#[test]
fn a_hub_that_is_asked_too_often_is_replaced_by_a_complete_cache() {
    let hub = FakeHub::start(Repository { status: Some("429 Too Many Requests"), ..Repository::default() });
    let cache = cache_with(&[("config.json", "{}"), ("tokenizer.json", "{}"), ("model.safetensors", "w")]);
    let online = options(cache.path(), Network::Allowed, Some(hub.endpoint));
    assert_eq!(resolve(&hub_source("org/name"), &online).unwrap().commit.as_deref(), Some(COMMIT));
}

#[test]
fn a_hub_that_takes_a_question_and_says_nothing_is_as_good_as_away() {
    // The system takes connections for it, and nobody answers.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", silent.local_addr().unwrap());
    let cache = cache_with(&[("config.json", "{}"), ("tokenizer.json", "{}"), ("model.safetensors", "w")]);
    let options = options(cache.path(), Network::Allowed, Some(endpoint));
    let id = HubId::parse("org/name").unwrap();
    let api = api(&id, &options, None).unwrap();
    let error = info(&api.repo(repo(&id, id.revision())), Duration::from_millis(50)).expect_err("nobody answers");
    assert_eq!(cached_if_unreachable(&id, &options, &error).unwrap().commit.as_deref(), Some(COMMIT));
}

#[test]
fn damaged_weights_are_never_used() {
    let hub = FakeHub::start(Repository { damages_weights: true, ..Repository::new(&weights()) });
    let cache = TempDir::new().unwrap();
    let error = resolve(&hub_source("org/name"), &options(cache.path(), Network::Allowed, Some(hub.endpoint.clone())));
    assert!(matches!(error, Err(HubError::Damaged { file, .. }) if file == "model.safetensors"));
    let offline = resolve(&hub_source("org/name@main"), &options(cache.path(), Network::Offline, None));
    assert!(matches!(offline, Err(HubError::NotCached { .. } | HubError::Incomplete { .. })));
}

#[test]
fn the_hub_s_refusals_say_what_to_do() {
    for (status, expected) in
        [("404 Not Found", "check the id"), ("401 Unauthorized", "HF_TOKEN"), ("403 Forbidden", "accept its terms")]
    {
        let hub = FakeHub::start(Repository { status: Some(status), ..Repository::default() });
        let cache = cache_with(&[("config.json", "{}"), ("tokenizer.json", "{}"), ("model.safetensors", "w")]);
        let error =
            resolve(&hub_source("org/name"), &options(cache.path(), Network::Allowed, Some(hub.endpoint))).unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
    }
}

#[test]
fn a_repository_without_safetensors_is_refused_with_what_to_do() {
    let mut repository = Repository::new(b"w");
    repository.files.remove("model.safetensors");
    let hub = FakeHub::start(repository);
    let cache = TempDir::new().unwrap();
    let error =
        resolve(&hub_source("org/name"), &options(cache.path(), Network::Allowed, Some(hub.endpoint))).unwrap_err();
    assert!(error.to_string().contains("convert its weights to safetensors"), "{error}");
}

#[test]
fn a_hub_that_does_not_answer_is_replaced_by_a_complete_cache() {
    // Bound, so that nobody else gets the port, and not listened on.
    let closed = tokio::net::TcpSocket::new_v4().unwrap();
    closed.bind(([127, 0, 0, 1], 0).into()).unwrap();
    let endpoint = format!("http://{}", closed.local_addr().unwrap());
    let cache = cache_with(&[("config.json", "{}"), ("tokenizer.json", "{}"), ("model.safetensors", "w")]);
    let online = options(cache.path(), Network::Allowed, Some(endpoint));
    assert_eq!(resolve(&hub_source("org/name"), &online).unwrap().commit.as_deref(), Some(COMMIT));
    assert!(matches!(resolve(&hub_source("org/other"), &online), Err(HubError::Transfer { .. })));
}
