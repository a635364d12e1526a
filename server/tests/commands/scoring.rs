//! `passerelle score` and `passerelle compare`, with the three checkpoints of the demo's run and with random ones.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};

use super::binary::{Served, State, request, root, watched};

const DEMO: [&str; 3] = ["early", "middle", "final"];

fn demo(name: &str) -> String {
    root().join("models/demo").join(name).display().to_string()
}

/// Every so many of the items that models/demo/comparison.py made, which the checkpoints have not seen.
fn heldout(state: &State, every: usize) -> String {
    let items = fs::read_to_string(root().join("models/demo/comparison.jsonl")).expect("the demo is there");
    let lines: Vec<&str> = items.lines().step_by(every).collect();
    write(state, "heldout.jsonl", &lines.join("\n"))
}

fn write(state: &State, name: &str, text: &str) -> String {
    let path = state.path().join(name);
    fs::write(&path, text).expect("the folder is writable");
    path.display().to_string()
}

fn run(command: &mut Command) -> Output {
    let output = command.output().expect("the binary runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output
}

fn score(state: &State, data: &str, sources: &[&str]) -> Command {
    // One thread, because other tests run beside this one.
    let options = ["score", "--offline", "--threads", "1", "--data", data, "--out", "scores"];
    state.command(&[&options[..], sources].concat())
}

/// Every score file, by the name in its header.
fn score_files(state: &State) -> Vec<(String, PathBuf)> {
    let entries = fs::read_dir(state.path().join("scores")).expect("scores were written");
    let files = entries.map(|entry| entry.expect("the folder is readable").path());
    let named = files.filter(|path| path.extension().is_some_and(|extension| extension == "jsonl")).map(|path| {
        let header = lines(&path).remove(0);
        (header["name"].as_str().expect("a name").to_owned(), path)
    });
    let mut found: Vec<_> = named.collect();
    found.sort();
    found
}

fn lines(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).expect("the file is readable");
    text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

/// Every line of every score file after its header, by the name in the header.
fn scores(state: &State) -> Vec<(String, Vec<Value>)> {
    score_files(state).into_iter().map(|(name, path)| (name, lines(&path).split_off(1))).collect()
}

#[test]
fn log_probabilities_are_those_of_the_completions_route_to_the_last_bit() {
    let state = State::new();
    let texts = ["Bonjour, je m'appelle Léa.\n12 + 7 = 19", "<|im_start|>user\nWhat is 3 + 4?<|im_end|>\n", "a"];
    let prompt = "<|im_start|>user\nWhat is 12 + 7?<|im_end|>\n<|im_start|>assistant\n";
    let documents = texts.iter().map(|text| json!({"text": text}));
    let asked = json!({"prompt": prompt, "reference": "12 + 7 = 19."});
    let lines: Vec<String> = documents.chain([asked]).map(|item| item.to_string()).collect();
    let data = write(&state, "data.jsonl", &lines.join("\n"));
    run(&mut score(&state, &data, &[&demo("final")]));
    let (_, scored) = scores(&state).remove(0);

    let model = format!("final={}", demo("final"));
    let served = Served::start(&state, &["--model", &model]);
    let ask = |body: Value| request(&served.address, "POST", "/v1/completions", &body).json()["choices"][0].clone();
    for (line, text) in scored.iter().zip(texts) {
        let body = json!({"model": "final", "prompt": text, "max_tokens": 0, "echo": true, "logprobs": 1,
            "prompt_scores": true});
        let (choice, tokens) = (ask(body), &line["outcome"]["document"]["tokens"]);
        assert_eq!(tokens["logprobs"], choice["logprobs"]["token_logprobs"], "{text}");
        assert_eq!(tokens["ranks"], choice["prompt_scores"]["ranks"], "{text}");
        assert_eq!(tokens["entropies"], choice["prompt_scores"]["entropies"], "{text}");
        let joined: String = tokens["texts"].as_array().expect("a list").iter().filter_map(Value::as_str).collect();
        assert_eq!(joined, text);
    }
    let outcome = &scored[3]["outcome"]["prompt"];
    let said = ask(json!({"model": "final", "prompt": prompt, "max_tokens": 64, "temperature": 0, "logprobs": 1}));
    assert_eq!(outcome["answer"]["text"], said["text"]);
    assert!(said["text"].as_str().is_some_and(|text| text.contains("19")), "{said}");
    let whole = ask(json!({"model": "final", "prompt": format!("{prompt}12 + 7 = 19."), "max_tokens": 0, "echo": true,
        "logprobs": 1}));
    let whole = whole["logprobs"]["token_logprobs"].as_array().expect("a list");
    let reference = outcome["reference"]["tokens"]["logprobs"].as_array().expect("a list");
    assert!(!reference.is_empty() && whole.ends_with(reference), "{reference:?}");
}

#[test]
fn the_demo_s_checkpoints_are_ranked_as_they_were_trained_with_intervals_apart() {
    let state = State::new();
    let data = heldout(&state, 4);
    // Not in the order of the ranking.
    let sources = [demo("middle"), demo("final"), demo("early")];
    run(&mut score(&state, &data, &sources.each_ref().map(String::as_str)));
    let compared = run(&mut state.command(&["compare", "scores", "--json", "--html", "report.html"]));
    let compared: Value = serde_json::from_slice(&compared.stdout).expect("JSON");
    let ranking = compared["ranking"].as_array().expect("a list");
    let names: Vec<_> = ranking.iter().filter_map(|ranked| ranked["name"].as_str()).collect();
    assert_eq!(names, ["final", "middle", "early"]);
    for metric in ranking[0]["metrics"].as_array().expect("a list").iter().map(|measured| &measured["metric"]) {
        let interval = |ranked: &Value| {
            let measured = ranked["metrics"].as_array().expect("a list").iter().find(|of| of["metric"] == *metric);
            let interval = &measured.expect("every checkpoint has it")["interval"];
            ["low", "high"].map(|end| interval[end].as_f64().expect("a number"))
        };
        for pair in ranking.windows(2) {
            let [better, worse] = [interval(&pair[0]), interval(&pair[1])];
            assert!(better[1] < worse[0] || worse[1] < better[0], "{metric}: {better:?} {worse:?}");
        }
    }
    let page = fs::read_to_string(state.path().join("report.html")).expect("it was written");
    assert!(page.starts_with("<!doctype html>") && page.contains("Token by token"), "{}", &page[..200]);
    let csv = run(&mut state.command(&["compare", "scores", "--csv"]));
    assert_eq!(String::from_utf8_lossy(&csv.stdout).lines().count(), 1 + DEMO.len() * 4);
}

#[test]
fn a_run_that_was_killed_goes_on_and_ends_with_the_same_files() {
    let state = State::new();
    let data = heldout(&state, 8);
    let whole = State::new();
    run(&mut score(&whole, &data, &[&demo("early")]));

    let mut killed = score(&state, &data, &[&demo("early")]).stderr(Stdio::null()).spawn().expect("the binary runs");
    let folder = state.path().join("scores");
    let begun = || {
        let files = fs::read_dir(&folder).ok()?.filter_map(Result::ok);
        let texts = files.filter_map(|file| fs::read(file.path()).ok());
        texts.map(|text| text.iter().filter(|byte| **byte == b'\n').count()).max()
    };
    while begun().unwrap_or(0) < 3 {
        // Who was held up since the last look may find it at its end; a line is torn below all the same.
        let is_over = killed.try_wait().expect("it was started here").is_some();
        assert!(!is_over || begun().unwrap_or(0) >= 3, "it ended before it had begun");
        std::thread::yield_now();
    }
    killed.kill().expect("it runs");
    killed.wait().expect("it was started here");
    let lines = begun().expect("a file");
    // As if the kill had hit in the middle of a line.
    let torn = fs::read_dir(&folder).expect("a folder").next().expect("a file").expect("the folder is readable").path();
    let text = fs::read(&torn).expect("the file is readable");
    fs::write(&torn, &text[..text.len() - 5]).expect("the file is writable");

    let again = run(&mut score(&state, &data, &[&demo("early")]));
    let said = String::from_utf8_lossy(&again.stderr).into_owned();
    assert!(!said.contains(": 0 of") && lines > 2, "it began anew: {said}");
    assert_eq!(scores(&state), scores(&whole));
    let third = run(&mut score(&state, &data, &[&demo("early")]));
    let summaries = [again, third].map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
    assert_eq!(summaries[0], summaries[1], "a run with nothing to do says the same");
}

/// The demo's files with weights of its own.
fn random_checkpoint(folder: &Path, seed: u64) {
    fs::create_dir_all(folder).expect("the folder is writable");
    let source = root().join("models/demo/early");
    for file in ["config.json", "tokenizer.json", "tokenizer_config.json"] {
        fs::copy(source.join(file), folder.join(file)).expect("the folder is writable");
    }
    let mut weights = fs::read(source.join("model.safetensors")).expect("the demo is there");
    let header = u64::from_le_bytes(weights[..8].try_into().expect("8 bytes")) as usize;
    let mut state = seed;
    for value in weights[8 + header..].chunks_exact_mut(2) {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let small = ((state >> 40) as f32 / (1 << 24) as f32 - 0.5) * 0.1;
        value.copy_from_slice(&small.to_le_bytes()[2..]);
    }
    fs::write(folder.join("model.safetensors"), weights).expect("the folder is writable");
}

#[test]
fn forty_checkpoints_run_in_the_memory_of_one() {
    /// Beside what one takes: less than the weights of five of them.
    const MOST_KIB: u64 = 20 << 10;
    let state = State::new();
    let data = write(&state, "data.jsonl", "{\"text\": \"Bonjour, je m'appelle Passerelle.\"}\n");
    let runs = state.path().join("run");
    for seed in 0..40 {
        random_checkpoint(&runs.join(format!("step-{seed:03}")), seed);
    }
    let peak = |source: &Path, out: &str| {
        let source = source.display().to_string();
        let arguments = ["score", "--offline", "--data", &data, "--out", out, "--threads", "1", &source];
        let mut command = state.command(&arguments);
        let (output, peak) = watched(command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("it runs"));
        assert!(output.status.success());
        (String::from_utf8_lossy(&output.stdout).lines().count() - 1, peak)
    };
    let (one, peak_of_one) = peak(&runs.join("step-000"), "one");
    let (forty, peak_of_forty) = peak(&runs, "forty");
    assert_eq!((one, forty), (1, 40));
    assert!(peak_of_forty < peak_of_one + MOST_KIB, "{peak_of_forty} KiB, and one takes {peak_of_one} KiB");
    assert_eq!(
        fs::read_dir(state.path().join("forty")).expect("a folder").count(),
        2 * 40,
        "each has files of its own"
    );
}

/// The demo's weights, under a tokenizer of which one token is spelt in another way.
fn respelt_checkpoint(folder: &Path) {
    random_checkpoint(folder, 1);
    let file = folder.join("tokenizer.json");
    let mut tokenizer: Value =
        serde_json::from_slice(&fs::read(&file).expect("it was copied")).expect("it is what the demo has");
    let vocabulary = tokenizer["model"]["vocab"].as_object_mut().expect("a vocabulary");
    // Of a single character, so that no merge is made of it.
    let id = vocabulary.remove("~").expect("every printable character has a token");
    vocabulary.insert("\u{20ac}".to_owned(), id);
    fs::write(file, tokenizer.to_string()).expect("the folder is writable");
}

#[test]
fn a_checkpoint_of_another_vocabulary_is_not_compared_token_by_token() {
    let state = State::new();
    let data = write(&state, "data.jsonl", "{\"text\": \"abc\"}");
    let respelt = state.path().join("respelt");
    respelt_checkpoint(&respelt);
    let output = score(&state, &data, &[&demo("early")]).arg("--against").arg(respelt).output();
    let output = output.expect("the binary runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("another vocabulary than what --against names"), "{said}");
}

#[test]
fn what_cannot_be_scored_is_refused_by_line_item_or_file() {
    let state = State::new();
    let refused = |data: &str, wanted: &str| {
        let data = write(&state, "data.jsonl", data);
        let output = score(&state, &data, &[&demo("early")]).output().expect("the binary runs");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && said.contains(wanted), "{said}");
    };
    refused("{\"text\": \"a\"}\n{\"txt\": \"b\"}", "line 2");
    refused("", "no item");
    let long = json!({"id": "long", "prompt": "1 ".repeat(3000), "reference": "2"}).to_string();
    refused(&long, "item \"long\"");
    let data = write(&state, "good.jsonl", "{\"text\": \"abc\"}");
    run(&mut score(&state, &data, &[&demo("early")]));
    refused("{\"text\": \"other\"}", "other data or settings");
    // What computed the rest would have to compute the same bits.
    let (_, file) = score_files(&state).remove(0);
    let text = fs::read_to_string(&file).expect("the file is readable");
    assert!(text.starts_with('{') && text.contains("\"ran_on\":{\"device\":\"cpu\",\"kernels\":\""), "{text}");
    fs::write(&file, text.replace("\"device\":\"cpu\"", "\"device\":\"NVIDIA H100\"")).expect("the file is writable");
    refused("{\"text\": \"abc\"}", "`device` is NVIDIA H100 there and cpu here");
}

#[test]
fn a_checkpoint_that_cannot_be_read_keeps_no_other_from_being_scored() {
    let state = State::new();
    let data = write(&state, "data.jsonl", "{\"text\": \"Once upon a time\"}");
    fs::create_dir_all(state.path().join("run/bad")).expect("the folder is writable");
    fs::write(state.path().join("run/bad/config.json"), "{").expect("the folder is writable");
    random_checkpoint(&state.path().join("run/good"), 1);
    let output = score(&state, &data, &["./run"]).output().expect("the binary runs");
    let said = String::from_utf8(output.stderr).expect("text");
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(
        said.contains("error: 1 of 2 could not be scored: checkpoint `bad`") && said.contains("config.json"),
        "{said}"
    );
    let place = |text: &str| said.find(text).unwrap_or_else(|| panic!("{text} is not in {said}"));
    assert!(place("[1/2] bad: not scored: ") < place("[2/2] good: "), "it is said before the others are run: {said}");
    let scored = scores(&state);
    assert_eq!((scored.len(), scored[0].0.as_str(), scored[0].1.len()), (1, "good", 1));
}
