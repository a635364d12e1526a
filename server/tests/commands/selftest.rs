//! `passerelle selftest`: what it says, and that it can fail.

use serde_json::Value;

use super::binary::State;

fn run(args: &[&str]) -> (Option<i32>, String, String) {
    let output = State::new().command(args).output().expect("it runs");
    let text = |bytes| String::from_utf8(bytes).expect("text");
    (output.status.code(), text(output.stdout), text(output.stderr))
}

#[test]
fn the_cpu_passes_its_self_test_and_says_what_was_compared_and_how_fast_it_is() {
    let (code, stdout, stderr) = run(&["selftest", "--device", "cpu", "--threads", "2", "--json"]);
    assert_eq!(code, Some(0), "{stderr}");
    let report: Value = serde_json::from_str(&stdout).expect("it is JSON");
    let checks = report["checks"].as_array().expect("a list");
    assert!(report["passes"] == true && report["device"] == "cpu" && checks.len() > 150, "{} checks", checks.len());
    for what in
        ["product, q4_k weights", "attention with flags", "queries, keys and values", "parity, bloom", "parity, demo"]
    {
        assert!(checks.iter().any(|check| check["what"] == what && check["passes"] == true), "{what}");
    }
    assert!(report["graphs"].as_str().is_some_and(|graphs| graphs.starts_with("none")), "{}", report["graphs"]);
    let speed = report["speed"].as_array().expect("a list");
    assert!(speed.len() == 5 && speed.iter().all(|is| is["share_of_limit"].as_f64() > Some(0.0)), "{speed:?}");
}

#[test]
fn what_differs_by_more_than_it_may_is_named_and_ends_with_an_error() {
    let (code, stdout, stderr) = run(&["selftest", "--device", "cpu", "--threads", "2", "--allow", "0"]);
    assert_eq!(code, Some(1), "{stdout}");
    let error = stderr.lines().last().unwrap_or_default();
    assert!(error.contains("product, f32 weights") && error.contains("parity, demo"), "{stderr}");
    assert!(stdout.lines().any(|line| line.starts_with("FAILED  product, f32 weights")), "{stdout}");
    assert!(stdout.contains("portable against reference: off by"), "{stdout}");
}

#[test]
fn a_device_that_cannot_be_used_fails_in_one_line() {
    let (code, stdout, stderr) = run(&["selftest", "--device", "cuda:0"]);
    assert_eq!((code, stdout.as_str()), (Some(1), ""));
    assert!(stderr.lines().count() == 1 && stderr.contains("cuda:0"), "{stderr}");
}
