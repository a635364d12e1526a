//! The Slurm jobs of `configs/slurm` renew themselves, with commands in the path that stand for Slurm's and for the server.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use super::binary;

/// A job as somebody submits it.
struct Job {
    file: &'static str,
    arguments: &'static [&'static str],
    /// What it runs.
    command: &'static str,
}

const SERVE: Job =
    Job { file: "serve.sbatch", arguments: &["site.toml"], command: "serve --config site.toml --threads 3" };
const WORKER: Job = Job {
    file: "worker.sbatch",
    arguments: &["far", "gateway:9443", "papers", "site.toml"],
    command: "worker --partition far --connect gateway:9443 --credentials papers --config site.toml --threads 3",
};

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

    fn start(&self, job: &Job) -> Child {
        let path = format!("{}:/usr/bin:/bin", self.folder.path().display());
        let variables = [("PATH", path.as_str()), ("SLURM_JOB_ID", "7"), ("SLURM_CPUS_PER_TASK", "3")];
        Command::new("bash")
            .arg(binary::root().join("configs/slurm").join(job.file))
            .args(job.arguments)
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

/// Sends `signal` to a job whose server is ready; what the job printed after that, and its code.
fn signalled(stage: &Stage, job: &Job, signal: &str) -> (String, Option<i32>) {
    let mut running = stage.start(job);
    let mut lines = BufReader::new(running.stdout.take().expect("it is piped")).lines().map_while(Result::ok);
    let ready = lines.by_ref().find(|line| line.starts_with("ready"));
    assert_eq!(ready, Some(format!("ready: {}", job.command)));
    let sent = Command::new("kill").args(["-s", signal, &running.id().to_string()]).status();
    assert!(sent.expect("kill is there").success());
    let said = lines.collect::<Vec<_>>().join("\n");
    (said, running.wait().expect("it ends").code())
}

#[test]
fn a_job_queues_its_successor_and_drains_before_its_end() {
    for job in [SERVE, WORKER] {
        let stage = Stage::new(SERVER);
        let (said, code) = signalled(&stage, &job, "USR1");
        assert_eq!((said.contains("drained"), code), (true, Some(0)), "{said}");
        let calls = stage.calls();
        assert!(calls.contains("--dependency=afterany:7"), "{calls}");
        let successor = format!("/submitted/from/configs/slurm/{} {}", job.file, job.arguments.join(" "));
        assert!(calls.contains(&successor), "{calls}");
        assert!(!calls.contains("scancel"), "its successor stays: {calls}");
    }
}

#[test]
fn a_job_that_is_ended_ends_the_chain() {
    for job in [SERVE, WORKER] {
        let stage = Stage::new(SERVER);
        let (said, code) = signalled(&stage, &job, "TERM");
        assert_eq!((said.contains("drained"), code), (true, Some(0)), "{said}");
        assert!(stage.calls().contains("scancel 42"), "{}", stage.calls());
    }
}

#[test]
fn a_server_that_fails_has_no_successor() {
    let stage = Stage::new("exit 3");
    let output = stage.start(&SERVE).wait_with_output().expect("it ends");
    assert_eq!(output.status.code(), Some(3));
    assert!(stage.calls().contains("scancel 42"), "{}", stage.calls());
}

/// Whatever waits, waits no time here.
#[test]
fn a_worker_that_dies_is_started_again_each_time_later_and_after_five_ends_nothing_follows() {
    let stage = Stage::new("echo \"$*\" >>\"$CALLS\"; exit 3");
    stage.script("sleep", "echo \"sleep $*\" >>\"$CALLS\"");
    let output = stage.start(&WORKER).wait_with_output().expect("it ends");
    assert_eq!(output.status.code(), Some(3));
    let calls = stage.calls();
    let after_the_first: Vec<&str> = calls.lines().skip(1).collect();
    let pauses = ["sleep 10", "sleep 20", "sleep 40", "sleep 80"].into_iter().flat_map(|pause| [WORKER.command, pause]);
    let expected: Vec<&str> = pauses.chain([WORKER.command, "scancel 42"]).collect();
    assert_eq!(after_the_first, expected, "{calls}");
}

#[test]
fn a_job_that_cannot_queue_its_successor_serves_all_the_same() {
    let stage = Stage::new(SERVER);
    stage.script("sbatch", "echo 'sbatch: error: QOSMaxSubmitJobPerUserLimit' >&2; exit 1");
    let (said, code) = signalled(&stage, &SERVE, "TERM");
    assert_eq!((said.contains("drained"), code), (true, Some(0)), "{said}");
    assert_eq!(stage.calls(), "", "nobody is to be cancelled");
}

/// The server is told first, and whoever manages the queue is asked again.
#[test]
fn a_successor_that_cannot_be_cancelled_at_once_keeps_no_server_from_draining() {
    for job in [SERVE, WORKER] {
        let stage = Stage::new(SERVER.replace("drained", "drained; echo drained >>\"$CALLS\"").as_str());
        let first = stage.folder.path().join("asked");
        stage.script(
            "scancel",
            &format!("[ -e {0} ] && echo \"scancel $*\" >>\"$CALLS\" || {{ touch {0}; exit 1; }}", first.display()),
        );
        let (said, code) = signalled(&stage, &job, "TERM");
        assert_eq!((said.contains("drained"), code), (true, Some(0)), "{said}");
        let calls = stage.calls();
        let at = |call: &str| calls.find(call).unwrap_or_else(|| panic!("no {call}: {calls}"));
        assert!(at("drained") < at("scancel 42"), "{calls}");
    }
}

#[test]
fn the_jobs_are_well_formed() {
    let folder: &Path = &binary::root().join("configs/slurm");
    for entry in fs::read_dir(folder).expect("it is part of the repository") {
        let path = entry.expect("it is readable").path();
        assert!(Command::new("bash").arg("-n").arg(&path).status().expect("bash is there").success(), "{path:?}");
    }
}
