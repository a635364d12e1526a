//! The program itself, stopped by a signal.

use std::io::{BufRead, BufReader, Read};
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::time::Duration;

use passerelle_loadtests::clock::now;

const PROGRAM: &str = env!("CARGO_BIN_EXE_passerelle-loadtests");
/// For what takes no time on an idle machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// Its servers are replicas that compute nothing, and write their ports into a file.
#[test]
fn a_drill_that_is_stopped_leaves_no_server_behind() {
    let folder = tempfile::tempdir().unwrap();
    let ports = folder.path().join("ports");
    let server = format!("echo {{port}} >> '{}'; exec '{PROGRAM}' mock --listen 127.0.0.1:{{port}}", ports.display());
    let mut drill = Command::new(PROGRAM)
        .args(["drill", "rolling-restart", "--duration", "3600", "--rate", "50", "--", "sh", "-c", &server])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut told = BufReader::new(drill.stderr.take().unwrap()).lines();
    assert!(told.any(|line| line.unwrap().contains("server 2 of 2 answers")));
    assert!(Command::new("kill").args(["-TERM", &drill.id().to_string()]).status().unwrap().success());
    let mut verdict = String::new();
    drill.stdout.take().unwrap().read_to_string(&mut verdict).unwrap();
    assert_eq!(drill.wait().unwrap().code(), Some(143), "as shells show an end by SIGTERM");
    assert!(verdict.starts_with("rolling-restart\n") && verdict.ends_with("  cannot tell\n"), "{verdict}");
    let ports = std::fs::read_to_string(ports).unwrap();
    let ports: Vec<u16> = ports.lines().map(|port| port.parse().unwrap()).collect();
    assert!(ports.len() >= 2, "{ports:?}");
    let start = now();
    while ports.iter().any(|port| TcpStream::connect(("127.0.0.1", *port)).is_ok()) {
        assert!(start.elapsed() < PATIENCE, "a server still listens");
        std::thread::yield_now();
    }
}

#[test]
fn a_file_that_cannot_be_written_is_told_before_anything_is_asked() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("nowhere/rows.jsonl");
    let file = file.to_str().unwrap();
    // Port 1 answers nobody: that it is asked would be told.
    let done = Command::new(PROGRAM)
        .args(["run", "--rate", "1", "--url", "http://127.0.0.1:1", "--per-request", file])
        .output()
        .unwrap();
    let told = String::from_utf8(done.stderr).unwrap();
    assert!(told.contains("nowhere/rows.jsonl") && !told.contains("127.0.0.1:1"), "{told}");
    assert_eq!(done.status.code(), Some(2));
}
