use passerelle_engine::FaultCounts;

use super::*;
use crate::gateway::LedgerTotals;
use crate::gateway::journal::ProofCounts;
use crate::gateway::quota::Unit;

fn metrics() -> Metrics {
    let info = BuildInfo { version: "1.2.3".into(), kernels: "cpu avx2".into() };
    let clock = Arc::new(passerelle_engine::clock::ManualClock::default());
    Metrics::new(&info, ["demo"], Hours::new(clock, "cpu", 1.0)).unwrap()
}

/// Everything that can be counted, counted once.
fn touch(metrics: &Metrics) {
    metrics.answered(AnsweredRequest { route: "/v1/models", status: 200, model: None });
    metrics.auth_failed(AuthError::Unknown);
    metrics.refused(LimitName::Rate(Unit::Tokens));
    metrics.upstream_tried("demo", "h:1", "answered");
    metrics.upstreams_are([("demo", "h:1", true)]);
    metrics.shadowed("chat", "compared");
    metrics.shadow_compared("chat", ShadowFigures { served: 0.2, candidate: 0.3, greedy_answers_are_equal: true });
    metrics.models_hold(ShelfMemory { limit_bytes: 9, held_bytes: 5, most_held_bytes: 7 });
    metrics.partition_is("left", WorkerSlotFigures { arrivals: 2, ends: 1, silence: Some(Duration::from_millis(500)) });
    let model = metrics.model("demo").unwrap();
    model.first_token(Duration::from_millis(30));
    model.next_token(Duration::from_millis(7));
    let used = Usage { prompt_tokens: 11, cached_tokens: 5, generated_tokens: 7, ..Usage::default() };
    model.ended(used, Duration::from_millis(900));
    metrics.engine("demo").step(&StepReport {
        duration: Duration::from_millis(4),
        num_sequences: 3,
        total_blocks: 100,
        free_blocks: 60,
        running: 3,
        failures: FaultCounts::of(Fault::NotFinite, 2) + FaultCounts::of(Fault::Panic, 1),
        ..StepReport::default()
    });
}

#[test]
fn every_metric_of_the_table_is_shown_with_its_sentence() {
    let metrics = metrics();
    touch(&metrics);
    let text = metrics.render(&LedgerFigures {
        totals: LedgerTotals { open: 2, settled: 9, ..LedgerTotals::default() },
        in_line: 3,
        proofs: ProofCounts { checked: 8, unproven: 1 },
    });
    for metric in table::ALL {
        assert!(text.contains(&format!("# HELP {} {}", metric.name, metric.help)), "{} in {text}", metric.name);
    }
    for line in [
        r#"passerelle_info{version="1.2.3",kernels="cpu avx2"} 1"#,
        r#"passerelle_requests_total{route="/v1/models",status="200",model=""} 1"#,
        r#"passerelle_prompt_tokens_total{model="demo"} 11"#,
        r#"passerelle_quota_refusals_total{limit="tokens_per_minute"} 1"#,
        r#"passerelle_quota_refusals_total{limit="requests_per_minute"} 0"#,
        r#"passerelle_partition_up{partition="left"} 1"#,
        r#"passerelle_kv_blocks_used{model="demo"} 40"#,
        r#"passerelle_engine_failures_total{model="demo",cause="nan"} 2"#,
        r#"passerelle_engine_failures_total{model="demo",cause="panic"} 1"#,
        r#"passerelle_engine_failures_total{model="demo",cause="memory"} 0"#,
        r#"passerelle_step_duration_seconds_bucket{model="demo",le="0.005"} 1"#,
        r#"passerelle_step_duration_seconds_bucket{model="demo",le="0.0025"} 0"#,
        r#"passerelle_shadowed_requests_total{alias="chat",outcome="compared"} 1"#,
        r#"passerelle_shadow_bits_per_byte_bucket{alias="chat",model="candidate",le="0.25"} 0"#,
        r#"passerelle_shadow_greedy_answers_total{alias="chat",equal="yes"} 1"#,
        "passerelle_ledger_reservations_open 2",
        "passerelle_ledger_waiting_requests 3",
        "passerelle_model_memory_bytes 5",
        "passerelle_model_memory_limit_bytes 9",
        "passerelle_ledger_reservations_settled_total 9",
        "passerelle_ledger_entries_checked_total 8",
        "passerelle_ledger_entries_unproven_total 1",
    ] {
        assert!(text.lines().any(|shown| shown == line), "{line} is missing in {text}");
    }
}

#[test]
fn a_client_cannot_make_series() {
    let metrics = metrics();
    for model in ["a", "b", "demo\"} 1\n"] {
        metrics.answered(AnsweredRequest { route: "/v1/completions", status: 404, model: Some(model) });
    }
    let text = metrics.render(&LedgerFigures::default());
    let shown: Vec<_> = text.lines().filter(|line| line.starts_with("passerelle_requests_total")).collect();
    assert_eq!(shown, [r#"passerelle_requests_total{route="/v1/completions",status="404",model="unknown"} 3"#]);
}

#[test]
fn models_that_come_and_go_for_years_do_not_make_series_without_end() {
    let metrics = metrics();
    for step in 0..MAX_NAMES + 10 {
        metrics.serve([format!("run@step-{step}").as_str()]);
    }
    assert_eq!(metrics.models.read().unwrap().len(), MAX_NAMES);
    metrics.engine("run@step-9999").step(&StepReport { running: 3, total_blocks: 1, ..StepReport::default() });
    assert!(metrics.render(&LedgerFigures::default()).contains("passerelle_running_sequences{model=\"other\"} 3"));
}

#[test]
fn two_servers_of_one_process_count_apart() {
    let (one, other) = (metrics(), metrics());
    one.refused(LimitName::ConcurrentRequests);
    let line = r#"passerelle_quota_refusals_total{limit="concurrent_requests"} 0"#;
    assert!(other.render(&LedgerFigures::default()).contains(line));
    assert!(!one.render(&LedgerFigures::default()).contains(line));
}

#[test]
fn names_follow_the_conventions_of_prometheus() {
    for metric in table::ALL {
        let is_total = metric.name.ends_with("_total");
        assert!(metric.name.starts_with("passerelle_"), "{}", metric.name);
        assert_eq!(is_total, metric.kind == MetricKind::Counter, "{}", metric.name);
        if let MetricKind::Histogram(buckets) = metric.kind {
            let has_unit = ["_seconds", "_bits_per_byte"].iter().any(|unit| metric.name.ends_with(unit));
            assert!(has_unit && buckets.is_sorted(), "{}", metric.name);
        }
    }
}
