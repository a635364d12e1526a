//! Partitions of one machine: each on processors of its own, and together in one memory.

use std::fs;

use super::binary::{Served, State, request};
use super::workers::{demo, question, workers};

/// A server with the demo model on each of `partitions`: name and processors.
fn configuration(state: &State, partitions: &[(&str, &str)]) -> String {
    let text: String = partitions
        .iter()
        .map(|(name, processors)| {
            format!(
                "[[partitions]]\nname = \"{name}\"\nthreads = 2\nmemory = \"64MiB\"\ncpu_affinity = \"{processors}\"\n\
                 [[models]]\nname = \"on-{name}\"\nsource = \"{}\"\npartition = \"{name}\"\n",
                demo("final")
            )
        })
        .collect();
    let file = state.path().join("placed.toml");
    fs::write(&file, text).expect("the folder is writable");
    file.to_str().expect("a plain path").to_owned()
}

/// What the system lets a thread run on, as it writes it.
fn allowed(status: &str) -> &str {
    let line = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
    line.expect("Linux says it of every thread").trim()
}

/// Name and processors of a process's threads.
fn threads(process: u32) -> Vec<(String, String)> {
    let tasks = fs::read_dir(format!("/proc/{process}/task")).expect("the process runs");
    let of_task = |task: fs::DirEntry| {
        let read = |file| fs::read_to_string(task.path().join(file)).ok();
        Some((read("comm")?.trim().to_owned(), allowed(&read("status")?).to_owned()))
    };
    tasks.filter_map(|task| of_task(task.ok()?)).collect()
}

#[test]
fn each_partition_runs_its_models_on_its_own_processors() {
    let state = State::new();
    let here = fs::read_to_string("/proc/self/status").expect("Linux has it");
    let mut numbers = allowed(&here).split([',', '-']);
    let first = numbers.clone().next().expect("one at least");
    let last = numbers.next_back().expect("one at least");
    let config = configuration(&state, &[("left", first), ("right", last)]);
    let served = Served::start(&state, &["--config", &config]);
    for (partition, processors) in [("left", first), ("right", last)] {
        let answer = request(&served.address, "POST", "/v1/chat/completions", &question(&format!("on-{partition}"), 4));
        assert_eq!(answer.status, 200);
        let threads: Vec<_> = workers(&state, partition).into_iter().flat_map(threads).collect();
        let that_compute = |name: &str| name.starts_with("compute-") || name.starts_with("engine ");
        let placed: Vec<_> = threads.iter().filter(|(name, _)| that_compute(name)).collect();
        assert_eq!(placed.len(), 2, "{threads:?}");
        assert!(placed.iter().all(|(_, allowed)| allowed == processors), "{partition}: {threads:?}");
        let free = |(name, on): &&(String, String)| !that_compute(name) && on == allowed(&here);
        assert!(threads.iter().any(|thread| free(&thread)), "HTTP and the rest run on any: {threads:?}");
    }
}

#[test]
fn processors_of_a_partition_that_this_machine_does_not_have_are_refused_by_their_key() {
    let state = State::new();
    let config = configuration(&state, &[("wide", "0-1023")]);
    let refused = state.command(&["serve", "--listen", "127.0.0.1:0", "--config", &config]).output();
    let refused = refused.expect("the binary runs");
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success() && refused.stdout.is_empty(), "{said}");
    assert!(
        said.contains("placed.toml:5:1: partitions[0].cpu_affinity: `wide`: ") && said.contains("and not on"),
        "{said}"
    );
    assert!(!said.contains("a worker is started"), "{said}");
}

#[test]
fn partitions_that_may_take_more_than_the_machine_has_are_said_at_the_start_and_in_the_plan() {
    let state = State::new();
    let part = |name: &str, memory: &str| {
        let source = demo("final");
        format!(
            "[[partitions]]\nname = \"{name}\"\nthreads = 1\nmemory = \"{memory}\"\n\
             [[models]]\nname = \"on-{name}\"\nsource = \"{source}\"\npartition = \"{name}\"\n"
        )
    };
    let config = state.path().join("wide.toml");
    fs::write(&config, part("left", "900TiB") + &part("right", "64MiB")).expect("the folder is writable");
    let config = config.display().to_string();
    let plan = state.command(&["plan", "--config", &config]).output().expect("the binary runs");
    let plan = String::from_utf8_lossy(&plan.stdout).into_owned();
    drop(Served::start_logging(&state, &["--config", &config], "warn"));
    let log = fs::read_to_string(state.log()).expect("it is there");
    for said in [plan, log] {
        assert!(said.contains("cpu: partition `left`, `right` may take 921600.06 GiB"), "{said}");
    }
}
