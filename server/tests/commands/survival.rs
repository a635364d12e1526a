//! What ends a worker process ends nothing else: whoever it served is told to try again and pays nothing, the neighbours get
//! the very same bits, and the gateway serves.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde_json::{Value, json};

use super::binary::{Answer, Served, State, Whole, get_as, open_as, signal};
use super::cgroup::MemoryGroup;
use super::ledger::{entries, make_key};
use super::workers::{choices, demo, is_ready, on_partitions_from, question, wait_until, workers};

const CHAT: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";
const LONG: u32 = 1500;
/// What is struck lives until then.
const STRUCK: u32 = 1900;
/// Nothing else holds it, and a prompt may.
const POISON: &str = "~";
/// Its engine has given up by then.
const STEPS_THAT_FAIL: usize = 16;

/// `early` and `final`, each in a worker, behind a door with a key.
struct Stage {
    state: State,
    key: String,
    served: Served,
}

impl Stage {
    fn new() -> Self {
        Self::of(State::new(), &demo("early"))
    }

    fn of(state: State, early: &str) -> Self {
        let key = make_key(&state);
        let served = Served::start_logging(&state, &["--config", &on_partitions_from(&state, early)], "warn");
        Self { state, key, served }
    }

    /// The process that serves `early`.
    fn worker(&self) -> u32 {
        let [worker] = workers(&self.state, "left")[..] else { panic!("the partition has one worker") };
        worker
    }

    fn stream(&self, model: &str, max_tokens: u32) -> Answer {
        let mut body = question(model, max_tokens);
        body["stream"] = json!(true);
        body["logprobs"] = json!(true);
        open_as(&self.served.address, CHAT, &body, &self.key)
    }

    fn ask(&self, body: &Value) -> Whole {
        open_as(&self.served.address, COMPLETIONS, body, &self.key).whole()
    }

    fn is_healthy(&self) -> bool {
        get_as(&self.served.address, "/health", None).status == 200
    }

    /// As [`wait_until`], and the gateway must live meanwhile.
    fn wait_until(&self, what: &str, mut is_so: impl FnMut(&Self) -> bool) {
        wait_until(what, || {
            assert!(self.is_healthy(), "the gateway lives");
            is_so(self)
        });
    }

    /// Waits until as many reservations were settled and none is open.
    fn bills(&self, count: usize) -> Vec<Bill> {
        let open = "passerelle_ledger_reservations_open 0";
        self.wait_until("no reservation is open", |stage| {
            let metrics = get_as(&stage.served.address, "/metrics", Some(&stage.key));
            metrics.text().lines().any(|line| line == open)
        });
        let mut entries = entries(&self.state);
        self.wait_until("what was settled is written down", |stage| {
            entries = super::ledger::entries(&stage.state);
            entries.len() >= count
        });
        assert_eq!(entries.len(), count, "each request is settled once: {entries:?}");
        entries.iter().map(|entry| Bill::of(entry)).collect()
    }

    fn log(&self) -> String {
        fs::read_to_string(self.state.log()).expect("it is there")
    }
}

#[derive(Debug, Clone, PartialEq)]
struct Bill {
    model: String,
    end: String,
    prompt_tokens: u64,
    output_tokens: u64,
    gpu_micros: u64,
}

impl Bill {
    /// Of a line of the export.
    fn of(entry: &[String]) -> Self {
        let number = |column: usize| entry[column].parse().expect("a number");
        Self {
            model: entry[4].clone(),
            end: entry[16].clone(),
            prompt_tokens: number(11),
            output_tokens: number(13),
            gpu_micros: number(14),
        }
    }

    fn is_free(&self) -> bool {
        (self.prompt_tokens, self.output_tokens, self.gpu_micros) == (0, 0, 0)
    }
}

/// What became of the requests for `early` that ended its worker. Those that came when it was gone are not among them.
#[derive(Debug, Default)]
struct Troublemakers {
    lost: usize,
    /// On a busy machine some have their answer before the others come.
    answered: usize,
}

/// Both models run a stream when `trouble` begins, which ends the worker of `early`.
fn only_its_worker_ends(stage: &Stage, trouble: impl FnOnce(&Stage, u32) -> Troublemakers, how: &str) {
    let undisturbed = choices(&stage.stream("final", LONG).text());
    let worker = stage.worker();
    let (struck, spared) = (stage.stream("early", STRUCK), stage.stream("final", LONG));
    let (spared, struck) = (spared.wait_for_events(3), struck.wait_for_events(3));
    let troublemakers = trouble(stage, worker);
    let struck = struck.text();
    assert!(struck.contains("\"code\":\"worker_lost\"") && struck.contains("try again"), "{struck}");
    assert!(!struck.contains("\"finish_reason\":\"length\""), "{struck}");
    assert_eq!(choices(&spared.text()), undisturbed, "the neighbour computed the very same");
    let bills = stage.bills(3 + troublemakers.lost + troublemakers.answered);
    let (struck, spared): (Vec<&Bill>, Vec<&Bill>) = bills.iter().partition(|bill| bill.model == "early");
    let (lost, answered): (Vec<&Bill>, Vec<&Bill>) = struck.iter().partition(|bill| bill.end == "failed");
    assert_eq!((lost.len(), answered.len()), (1 + troublemakers.lost, troublemakers.answered), "{struck:?}");
    assert!(lost.iter().all(|bill| bill.is_free()) && !answered.iter().any(|bill| bill.is_free()), "{struck:?}");
    assert!(spared.iter().all(|bill| bill.output_tokens == u64::from(LONG)), "{spared:?}");
    stage.wait_until("another worker has come", |stage| is_ready(&stage.served));
    assert_ne!(stage.worker(), worker);
    assert!(stage.stream("early", 8).text().contains("\"finish_reason\":\"length\""));
    let log = stage.log();
    assert!(log.contains("a worker ended; another is started") && log.contains(how), "{log}");
}

#[test]
fn a_worker_that_aborts_ends_alone() {
    let aborts = |_: &Stage, worker: u32| {
        signal(worker, "ABRT");
        Troublemakers::default()
    };
    only_its_worker_ends(&Stage::new(), aborts, "signal: 6");
}

/// The system refuses it any further address space, and long prompts need some.
#[test]
fn a_worker_that_runs_out_of_memory_ends_alone() {
    let runs_out = |stage: &Stage, worker: u32| {
        let limit = ["--pid", &worker.to_string(), "--as=1048576"];
        assert!(Command::new("prlimit").args(limit).status().expect("util-linux has it").success());
        ask_until_it_ends(stage, worker)
    };
    // What it has freed would be enough, and goes back to the system at once.
    let options = "oversize_threshold:0,retain:false,dirty_decay_ms:0,muzzy_decay_ms:0";
    let state = State::new().with_environment("_RJEM_MALLOC_CONF", options);
    only_its_worker_ends(&Stage::of(state, &demo("early")), runs_out, "signal: 6");
}

/// Prompts that need more memory than there is.
fn ask_until_it_ends(stage: &Stage, worker: u32) -> Troublemakers {
    const PROMPTS: usize = 16;
    let prompt: Vec<u32> = (0..1900).map(|position| 300 + position % 1500).collect();
    let body = json!({"model": "early", "prompt": prompt, "max_tokens": 1, "prompt_logprobs": 20});
    let ask = |_| open_as(&stage.served.address, COMPLETIONS, &body, &stage.key);
    let mut told: Vec<Whole> = Vec::new();
    stage.wait_until("it has run out", |stage| {
        // Where they came one by one, all have their answer: so they come once more.
        if told.iter().all(|told| told.status == 200) {
            let asked: Vec<Answer> = (0..PROMPTS).map(ask).collect();
            told.extend(asked.into_iter().map(Answer::whole));
        }
        !workers(&stage.state, "left").contains(&worker)
    });
    let statuses: Vec<u16> = told.iter().map(|told| told.status).collect();
    assert!(statuses.contains(&503) && statuses.iter().all(|status| [200, 503].contains(status)), "{statuses:?}");
    Troublemakers {
        lost: told.iter().filter(|told| told.text().contains("\"worker_lost\"")).count(),
        answered: told.iter().filter(|told| told.status == 200).count(),
    }
}

/// As in a container: gateway, worker and a third process share a bound, which the worker's prompts go beyond.
#[test]
fn a_worker_that_the_kernel_kills_for_want_of_memory_ends_alone() {
    /// More than the worker holds, let alone the gateway: whoever is not marked goes after the third process. While the
    /// worker's memory is on its way back, the kernel may want that one's as well.
    const OF_A_THIRD_MIB: u64 = 160;
    /// The prompts need more.
    const SPARE_MIB: u64 = 1;
    let group = match MemoryGroup::new() {
        Ok(group) => group,
        Err(why) => return println!("not tested here: {why}"),
    };
    let stage = Stage::new();
    // A process has its memory from the group that it was started in, so the worker must be another.
    group.take_in(stage.served.process());
    let first = stage.worker();
    signal(first, "ABRT");
    stage.wait_until("another worker has come", |stage| {
        matches!(workers(&stage.state, "left")[..], [worker] if worker != first) && is_ready(&stage.served)
    });
    let _third = group.hold(OF_A_THIRD_MIB);
    let runs_out = |stage: &Stage, worker: u32| {
        group.bound_to(group.used_mib() + SPARE_MIB);
        let troublemakers = ask_until_it_ends(stage, worker);
        group.unbound();
        assert!(group.kills() > 0, "the kernel ended it");
        troublemakers
    };
    only_its_worker_ends(&stage, runs_out, "signal: 9");
}

#[test]
fn a_worker_goes_before_its_gateway_when_memory_runs_out() {
    let stage = Stage::new();
    let order = |process: u32| -> i32 {
        let order = fs::read_to_string(format!("/proc/{process}/oom_score_adj")).expect("Linux tells it");
        order.trim().parse().expect("a number")
    };
    assert_eq!(order(stage.worker()), 1000, "before whatever is not marked");
    assert!(order(stage.served.process()) < 1000);
}

/// The demo, but that two rows of its embeddings are no numbers. What it says next has a matrix of its own, so that only prompts
/// that hold [`POISON`] come to grief, and what an engine runs before it gives up: a token 0, which no text holds.
fn write_poisonable(folder: &Path) -> u32 {
    const NOT_A_NUMBER: [u8; 2] = 0x7fc0_u16.to_le_bytes();
    let (source, embedding) = (demo("early"), "model.embed_tokens.weight");
    let source = Path::new(&source);
    fs::create_dir(folder).expect("the folder is writable");
    for file in ["generation_config.json", "tokenizer.json", "tokenizer_config.json"] {
        fs::copy(source.join(file), folder.join(file)).expect("the demo has it");
    }
    let json = |file: &str| -> Value {
        serde_json::from_slice(&fs::read(source.join(file)).expect("the demo has it")).expect("it is JSON")
    };
    let mut config = json("config.json");
    config["tie_word_embeddings"] = json!(false);
    fs::write(folder.join("config.json"), config.to_string()).expect("the folder is writable");
    let token = json("tokenizer.json")["model"]["vocab"][POISON].as_u64().expect("it is a token");
    let weights = fs::read(source.join("model.safetensors")).expect("the demo has it");
    let tensors = SafeTensors::deserialize(&weights).expect("it can be read");
    let head = tensors.tensor(embedding).expect("it has embeddings");
    assert_eq!(head.dtype(), Dtype::BF16);
    let (mut poisoned, width) = (head.data().to_vec(), 2 * head.shape()[1]);
    for token in [0, token as usize] {
        let row = token * width..(token + 1) * width;
        poisoned[row].chunks_exact_mut(2).for_each(|value| value.copy_from_slice(&NOT_A_NUMBER));
    }
    let poisoned = TensorView::new(Dtype::BF16, head.shape().to_vec(), &poisoned).expect("it is as large");
    let others = tensors.iter().filter(|(name, _)| *name != embedding);
    let all = others.chain([(embedding, poisoned), ("lm_head.weight", head)]);
    safetensors::serialize_to_file(all, None, &folder.join("model.safetensors")).expect("the folder is writable");
    token as u32
}

/// As on a device whose context is lost: whatever it runs fails, until the process is another.
#[test]
fn a_worker_whose_every_step_fails_ends_alone_and_the_next_one_is_well() {
    let state = State::new();
    let checkpoint = state.path().join("poisonable");
    let poison = write_poisonable(&checkpoint);
    let stage = Stage::of(state, checkpoint.to_str().expect("a plain path"));
    let well = choices(&stage.stream("early", 24).text());
    let undisturbed = choices(&stage.stream("final", LONG).text());
    let spared = stage.stream("final", LONG).wait_for_events(3);
    let worker = stage.worker();
    let body = json!({"model": "early", "prompt": [poison], "max_tokens": 4});
    for _ in 0..STEPS_THAT_FAIL {
        let failed = stage.ask(&body);
        assert!(failed.status == 500 && failed.text().contains("\"engine_failed\""), "{failed:?}");
    }
    stage.wait_until("the worker has ended", |stage| !workers(&stage.state, "left").contains(&worker));
    assert_eq!(choices(&spared.text()), undisturbed, "the neighbour computed the very same");
    stage.wait_until("another worker has come", |stage| is_ready(&stage.served));
    assert_eq!(choices(&stage.stream("early", 24).text()), well, "a new process knows nothing of it");
    let bills = stage.bills(2 + 2 + STEPS_THAT_FAIL);
    let failed: Vec<&Bill> = bills.iter().filter(|bill| bill.end == "failed").collect();
    assert!(failed.len() == STEPS_THAT_FAIL && failed.iter().all(|bill| bill.is_free()), "{bills:?}");
    let log = stage.log();
    assert!(log.contains("a worker ended; another is started") && log.contains("exit status: 1"), "{log}");
}

#[test]
fn a_worker_that_stands_still_is_unready_within_two_seconds_and_goes_on_where_it_stood() {
    let stage = Stage::new();
    let undisturbed = choices(&stage.stream("early", LONG).text());
    let worker = stage.worker();
    let unready_after = || {
        let stream = stage.stream("early", LONG).wait_for_events(3);
        signal(worker, "STOP");
        let unready_after = wait_until("the replica is unready", || !is_ready(&stage.served));
        assert!(stage.is_healthy());
        assert!(stage.stream("final", 8).text().contains("\"finish_reason\":\"length\""));
        signal(worker, "CONT");
        wait_until("it gets on", || is_ready(&stage.served));
        assert_eq!(choices(&stream.text()), undisturbed);
        unready_after
    };
    // The best of a few, because other processes hold up this one too.
    let fastest = (0..3).map(|_| unready_after()).min().expect("three tries");
    assert!(fastest < Duration::from_secs(2), "{fastest:?}");
    assert_eq!(stage.worker(), worker, "it was stopped for less than the longest silence");
}
