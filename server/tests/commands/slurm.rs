//! The Slurm job of `configs/slurm` renews itself, with commands in the path that stand for Slurm's and for the server.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use super::binary;

/// What stands for each command; every call is written down in `calls`.
struct Stage {
    folder: tempfile::TempDir,
}

impl Stage {
    fn new(server: &str) -> Self {
        let stage = Self { folder: tempfile::tempdir().expect("a folder for the test") };
        stage.script("sbatch", "echo \"sbatch $*\" >>\"$CALLS\"; echo 42");
        stage.script("scancel", "echo \"scancel $*\" >>\"$CALLS\"");
        stage.script("passerelle", server);
        stage
    }

    fn script(&self, name: &str, body: &str) {
        let path = self.folder.path().join(name);
        fs::write(&path, format!("#!/usr/bin/env bash\n{body}\n")).expect("the folder is writable");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("the file is ours");
    }

    fn calls(&self) -> String {
        fs::read_to_string(self.folder.path().join("calls")).unwrap_or_default()
    }

    fn start(&self) -> Child {
        let path = format!("{}:/usr/bin:/bin", self.folder.path().display());
        let variables = [("PATH", path.as_str()), ("SLURM_JOB_ID", "7"), ("SLURM_CPUS_PER_TASK", "3")];
        Command::new("bash")
            .arg(job())
            .arg("site.toml")
            .env_clear()
            .envs(variables)
            .env("CALLS", self.folder.path().join("calls"))
            .env("SLURM_SUBMIT_DIR", "/submitted/from")
            .stdout(Stdio::piped())
            .spawn()
            .expect("bash is there")
    }
}

/// Says that it is ready, and ends well when it is told to.
const SERVER: &str = "trap 'echo drained; exit 0' TERM\necho \"ready: $*\"\nwhile :; do sleep 1 & wait $!; done";

fn job() -> PathBuf {
    binary::root().join("configs/slurm/serve.sbatch")
}

/// Sends `signal` to a job whose server is ready; what the job printed after that, and its code.
fn signalled(stage: &Stage, signal: &str) -> (String, Option<i32>) {
    let mut running = stage.start();
    let mut lines = BufReader::new(running.stdout.take().expect("it is piped")).lines().map_while(Result::ok);
    let ready = lines.by_ref().find(|line| line.starts_with("ready"));
    assert_eq!(ready.as_deref(), Some("ready: serve --config site.toml --threads 3"));
    let sent = Command::new("kill").args(["-s", signal, &running.id().to_string()]).status();
    assert!(sent.expect("kill is there").success());
    let said = lines.collect::<Vec<_>>().join("\n");
    (said, running.wait().expect("it ends").code())
}

#[test]
fn a_job_queues_its_successor_and_drains_before_its_end() {
    let stage = Stage::new(SERVER);
    let (said, code) = signalled(&stage, "USR1");
    assert_eq!((said.contains("drained"), code), (true, Some(0)), "{said}");
    let calls = stage.calls();
    assert!(calls.contains("--dependency=afterany:7"), "{calls}");
    assert!(calls.contains("/submitted/from/configs/slurm/serve.sbatch site.toml"), "{calls}");
    assert!(!calls.contains("scancel"), "its successor stays: {calls}");
}

#[test]
fn a_job_that_is_ended_ends_the_chain() {
    let stage = Stage::new(SERVER);
    let (said, code) = signalled(&stage, "TERM");
    assert_eq!((said.contains("drained"), code), (true, Some(0)), "{said}");
    assert!(stage.calls().contains("scancel 42"), "{}", stage.calls());
}

#[test]
fn a_server_that_fails_has_no_successor() {
    let stage = Stage::new("exit 3");
    let output = stage.start().wait_with_output().expect("it ends");
    assert_eq!(output.status.code(), Some(3));
    assert!(stage.calls().contains("scancel 42"), "{}", stage.calls());
}

#[test]
fn a_job_that_cannot_queue_its_successor_serves_all_the_same() {
    let stage = Stage::new(SERVER);
    stage.script("sbatch", "echo 'sbatch: error: QOSMaxSubmitJobPerUserLimit' >&2; exit 1");
    let (said, code) = signalled(&stage, "TERM");
    assert_eq!((said.contains("drained"), code), (true, Some(0)), "{said}");
    assert_eq!(stage.calls(), "", "nobody is to be cancelled");
}

/// The server is told first, and whoever manages the queue is asked again.
#[test]
fn a_successor_that_cannot_be_cancelled_at_once_keeps_no_server_from_draining() {
    let stage = Stage::new(SERVER.replace("drained", "drained; echo drained >>\"$CALLS\"").as_str());
    let first = stage.folder.path().join("asked");
    stage.script(
        "scancel",
        &format!("[ -e {0} ] && echo \"scancel $*\" >>\"$CALLS\" || {{ touch {0}; exit 1; }}", first.display()),
    );
    let (said, code) = signalled(&stage, "TERM");
    assert_eq!((said.contains("drained"), code), (true, Some(0)), "{said}");
    let calls = stage.calls();
    let at = |call: &str| calls.find(call).unwrap_or_else(|| panic!("no {call}: {calls}"));
    assert!(at("drained") < at("scancel 42"), "{calls}");
}

#[test]
fn the_jobs_are_well_formed() {
    let folder: &Path = &binary::root().join("configs/slurm");
    for entry in fs::read_dir(folder).expect("it is part of the repository") {
        let path = entry.expect("it is readable").path();
        assert!(Command::new("bash").arg("-n").arg(&path).status().expect("bash is there").success(), "{path:?}");
    }
}
