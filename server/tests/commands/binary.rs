//! Starts the real binary and speaks plain HTTP to it.

#![allow(dead_code, clippy::allow_attributes, reason = "each test file uses a part of it")]

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Output, Stdio};

use serde_json::Value;
use tempfile::TempDir;

pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("server/ lies in the workspace")
}

/// A home of one's own: nothing of the user's configuration reaches the binary.
pub(crate) struct State {
    folder: TempDir,
    environment: Vec<(&'static str, &'static str)>,
}

impl State {
    pub(crate) fn new() -> Self {
        Self { folder: tempfile::tempdir().expect("a temporary folder"), environment: Vec::new() }
    }

    pub(crate) fn with_environment(mut self, name: &'static str, value: &'static str) -> Self {
        self.environment.push((name, value));
        self
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.folder.path().to_owned()
    }

    pub(crate) fn log(&self) -> PathBuf {
        self.folder.path().join("log")
    }

    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_passerelle"));
        let home = self.folder.path();
        command.args(arguments).env_clear().env("HOME", home).env("XDG_DATA_HOME", home).env("HF_HUB_OFFLINE", "1");
        command.envs(self.environment.iter().copied()).current_dir(home);
        command
    }
}

/// A running `passerelle serve`. Killed when dropped.
pub(crate) struct Served {
    /// `127.0.0.1:PORT` or `unix:PATH`.
    pub(crate) address: String,
    process: Child,
    output: BufReader<ChildStdout>,
}

impl Served {
    /// Returns once it is ready. Listens on a free loopback port unless the options say otherwise.
    pub(crate) fn start(state: &State, options: &[&str]) -> Self {
        Self::start_with(state, options, ("warn", Stdio::inherit()), |_| ())
    }

    /// `meanwhile` is told the process that is not ready yet.
    pub(crate) fn start_while(state: &State, options: &[&str], meanwhile: impl FnOnce(u32)) -> Self {
        Self::start_with(state, options, ("warn", Stdio::inherit()), meanwhile)
    }

    /// What it logs at `level` goes to `log` in the state's folder.
    pub(crate) fn start_logging(state: &State, options: &[&str], level: &str) -> Self {
        let log = File::create(state.log()).expect("the folder is writable");
        Self::start_with(state, options, (level, log.into()), |_| ())
    }

    /// Nothing that it logs at `level` can be written.
    pub(crate) fn start_unheard(state: &State, level: &str) -> Self {
        let full = File::options().write(true).open("/dev/full").expect("Linux has it");
        Self::start_with(state, &[], (level, full.into()), |_| ())
    }

    fn start_with(state: &State, options: &[&str], (level, log): (&str, Stdio), meanwhile: impl FnOnce(u32)) -> Self {
        let mut command = state.command(&["serve", "--log-level", level]);
        command.stderr(log);
        if !options.contains(&"--listen") {
            command.args(["--listen", "127.0.0.1:0"]);
        }
        let mut process = command.args(options).stdout(Stdio::piped()).spawn().expect("the binary runs");
        meanwhile(process.id());
        let mut output = BufReader::new(process.stdout.take().expect("it is piped"));
        let mut line = String::new();
        output.read_line(&mut line).expect("standard output is text");
        let url = line.trim_end().strip_prefix("ready: ").unwrap_or_else(|| panic!("no ready line, but {line:?}"));
        Self { address: url.trim_start_matches("http://").to_owned(), process, output }
    }

    pub(crate) fn process(&self) -> u32 {
        self.process.id()
    }

    /// The most memory that it has held at once.
    pub(crate) fn peak_memory_kib(&self) -> u64 {
        peak_kib(self.process.id()).expect("Linux tells it")
    }

    pub(crate) fn signal(&self, name: &str) {
        signal(self.process.id(), name);
    }

    pub(crate) fn exit_code(&mut self) -> Option<i32> {
        self.process.wait().expect("it was started here").code()
    }

    pub(crate) fn rest_of_output(&mut self) -> String {
        let mut rest = String::new();
        self.output.read_to_string(&mut rest).expect("standard output is text");
        rest
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        // It may have ended already, which is what most tests are about.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

pub(crate) fn signal(process: u32, name: &str) {
    let kill = Command::new("kill").args(["-s", name, &process.to_string()]).status();
    assert!(kill.expect("kill is part of every system").success());
}

/// Whether it asked the system for SIGHUP.
pub(crate) fn hears_hangups(process: u32) -> bool {
    const SIGHUP: u64 = 1;
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).expect("it runs");
    let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).expect("Linux tells it");
    u64::from_str_radix(caught.trim(), 16).expect("a number") & SIGHUP != 0
}

trait Connection: Read + Write {}
impl<T: Read + Write> Connection for T {}

/// A response of which the head may have been read.
pub(crate) struct Answer {
    reader: BufReader<Box<dyn Connection>>,
    seen: String,
}

/// A response that was read to its end.
#[derive(Debug)]
pub(crate) struct Whole {
    pub(crate) status: u16,
    body: String,
}

pub(crate) fn request(address: &str, method: &str, path: &str, body: &Value) -> Whole {
    open(address, method, path, body).whole()
}

pub(crate) fn get_as(address: &str, path: &str, bearer: Option<&str>) -> Whole {
    let key = bearer.map(|key| format!("authorization: Bearer {key}\r\n")).unwrap_or_default();
    send(address, &format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n{key}\r\n")).whole()
}

/// Sends a request and returns at once. A body of `null` is none.
pub(crate) fn open(address: &str, method: &str, path: &str, body: &Value) -> Answer {
    let body = if body.is_null() { String::new() } else { body.to_string() };
    let head = format!("{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n");
    let length = format!("content-type: application/json\r\ncontent-length: {}\r\n\r\n", body.len());
    send(address, &format!("{head}{length}{body}"))
}

/// [`open`] with a key.
pub(crate) fn open_as(address: &str, path: &str, body: &Value, key: &str) -> Answer {
    let body = body.to_string();
    let head =
        format!("POST {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\nauthorization: Bearer {key}\r\n");
    let length = format!("content-type: application/json\r\ncontent-length: {}\r\n\r\n", body.len());
    send(address, &format!("{head}{length}{body}"))
}

/// Sends `text` as it is and returns at once.
pub(crate) fn send(address: &str, text: &str) -> Answer {
    let mut stream: Box<dyn Connection> = match address.strip_prefix("unix:") {
        Some(path) => Box::new(UnixStream::connect(path).expect("the server listens")),
        None => Box::new(TcpStream::connect(address).expect("the server listens")),
    };
    stream.write_all(text.as_bytes()).expect("the server reads");
    Answer { reader: BufReader::new(stream), seen: String::new() }
}

impl Answer {
    /// Reads up to the first event of a stream.
    pub(crate) fn wait_for_event(self) -> Self {
        self.wait_for_events(1)
    }

    pub(crate) fn wait_for_events(mut self, count: usize) -> Self {
        while self.seen.matches("data: ").count() < count {
            let read = self.reader.read_line(&mut self.seen).expect("the answer is text");
            assert!(read > 0, "the answer ended without an event: {}", self.seen);
        }
        self
    }

    /// Everything, head and chunk lengths included, with the chunks of a stream put together.
    pub(crate) fn text(mut self) -> String {
        self.reader.read_to_string(&mut self.seen).expect("the answer is text");
        match self.seen.split_once("\r\n\r\n") {
            Some((head, body)) if head.to_lowercase().contains("transfer-encoding: chunked") => unchunk(body),
            Some((_, body)) => body.to_owned(),
            None => panic!("no whole head: {}", self.seen),
        }
    }

    pub(crate) fn text_with_head(mut self) -> String {
        self.reader.read_to_string(&mut self.seen).expect("the answer is text");
        self.seen
    }

    pub(crate) fn whole(mut self) -> Whole {
        self.reader.read_line(&mut self.seen).expect("the answer is text");
        let status = self.seen.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("a status line");
        Whole { status, body: self.text() }
    }
}

impl Whole {
    /// What a refused request is told.
    pub(crate) fn refusal(&self) -> String {
        assert_eq!(self.status, 400, "{}", self.body);
        self.error()
    }

    /// What a request is told that was not answered.
    pub(crate) fn error(&self) -> String {
        let error: Value = serde_json::from_str(&self.body).expect("JSON");
        error["error"]["message"].as_str().expect("a message").to_owned()
    }

    pub(crate) fn text(&self) -> &str {
        &self.body
    }

    pub(crate) fn json(&self) -> Value {
        assert_eq!(self.status, 200, "{}", self.body);
        serde_json::from_str(&self.body).expect("JSON")
    }
}

fn unchunk(mut rest: &str) -> String {
    let mut body = String::new();
    while let Some((length, tail)) = rest.split_once("\r\n") {
        let length = usize::from_str_radix(length.trim(), 16).expect("a chunk's length");
        if length == 0 {
            return body;
        }
        body.push_str(&tail[..length]);
        rest = tail[length..].trim_start_matches("\r\n");
    }
    panic!("the answer broke off after: {body}")
}

/// `None` for a process that has ended.
fn peak_kib(process: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

/// What a command that says little has said when it ends, and the most memory that it was seen to hold.
pub(crate) fn watched(mut process: Child) -> (Output, u64) {
    let mut peak = 0;
    while process.try_wait().expect("it was started here").is_none() {
        peak = peak.max(peak_kib(process.id()).unwrap_or(0));
        std::thread::yield_now();
    }
    (process.wait_with_output().expect("it was started here"), peak)
}

pub(crate) fn with_input(command: &mut Command, input: &str) -> Output {
    let mut process =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the binary runs");
    process.stdin.take().expect("it is piped").write_all(input.as_bytes()).expect("the command reads");
    process.wait_with_output().expect("it was started here")
}
