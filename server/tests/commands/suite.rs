//! `passerelle bench --suite gpu`, on a shape of no model.

use serde_json::Value;

use super::binary::State;

#[test]
fn the_suite_measures_batches_prompts_and_a_server_and_leaves_no_weights_behind() {
    let state = State::new();
    let options = "bench --suite gpu --shape tiny --sweep 1,4 --prompts 64,200 --context 32 --answer 8 --streams 3";
    let mut options: Vec<&str> = options.split(' ').collect();
    options.extend(["--device", "cpu", "--threads", "2", "--json"]);
    let output = state.command(&options).output().expect("it runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).expect("it is JSON");
    let shape = &report["shapes"][0];
    let all_above_0 = |rows: &Value, name: &str, count: usize| {
        let rows = rows.as_array().expect("a list");
        rows.len() == count && rows.iter().all(|row| row[name].as_f64() > Some(0.0))
    };
    assert!(all_above_0(&shape["sweep"], "decode_share_of_limit", 2), "{shape}");
    assert!(all_above_0(&shape["prefill"], "tokens_per_s", 2), "{shape}");
    let saturation = &shape["saturation"];
    assert_eq!((&saturation["requests"], &saturation["generated_tokens"]), (&6.into(), &48.into()));
    assert_eq!(saturation["prompt_tokens"], 6 * 32);
    let data = state.path().join("passerelle");
    let folders = std::fs::read_dir(&data)
        .expect("it was made")
        .filter(|entry| entry.as_ref().is_ok_and(|entry| entry.path().join("model.safetensors").exists()));
    assert_eq!(folders.count(), 0);
}

#[test]
fn what_is_too_large_is_refused_by_the_option_that_asked_for_it() {
    let state = State::new();
    let refusal = |options: &str| {
        let all = format!("bench --suite gpu --shape tiny --device cpu --threads 1 --streams 1 --answer 8 {options}");
        let output = state.command(&all.split(' ').collect::<Vec<_>>()).output().expect("it runs");
        assert!(!output.status.success(), "{options}");
        let said = String::from_utf8(output.stderr).expect("text");
        said.lines().find(|line| line.starts_with("error: ")).expect("a reason").to_owned()
    };
    let cases = [
        ("--context 100000000 --sweep 1 --prompts 64", "error: --context: with the answer 100000008 tokens"),
        ("--context 1000 --sweep 1 --prompts 64 --kv-cache-memory 64KiB", "error: --context: 1008 tokens take"),
        (
            "--context 32 --sweep 4096 --prompts 64 --kv-cache-memory 1MiB",
            "error: --sweep: no batch of it fits 1.0 MiB",
        ),
        ("--context 32 --sweep 1 --prompts 100000000 --kv-cache-memory 1000GiB", "error: --prompts: 100000000 tokens"),
    ];
    for (options, said) in cases {
        assert!(refusal(options).starts_with(said), "{options}: {}", refusal(options));
    }
}

#[test]
fn what_does_not_fit_is_left_out_and_said() {
    let state = State::new();
    let options = "bench --suite gpu --shape tiny --sweep 1,512 --prompts 64 --context 32 --answer 8 --streams 1";
    let mut options: Vec<&str> = options.split(' ').collect();
    options.extend(["--device", "cpu", "--threads", "1", "--kv-cache-memory", "1MiB"]);
    let output = state.command(&options).output().expect("it runs");
    let said = String::from_utf8(output.stdout).expect("text");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(said.contains("left out: batch of 512: ") && said.contains("room for 1.0 MiB"), "{said}");
}
