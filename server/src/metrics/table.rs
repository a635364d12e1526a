//! Every metric: its name, its kind, its labels, and one sentence on what it counts. Units are in the names.
//!
//! Every label takes few values: routes and statuses are the API's own, models the configured ones, limits the kinds
//! there are. Nothing that a client sends becomes a label.

/// One series of `/metrics`.
#[derive(Debug, Clone, Copy)]
pub struct Metric {
    pub name: &'static str,
    pub kind: MetricKind,
    pub labels: &'static [&'static str],
    pub help: &'static str,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum MetricKind {
    Counter,
    Gauge,
    /// With the upper bounds of its buckets.
    Histogram(&'static [f64]),
}

pub const INFO: Metric =
    gauge("passerelle_info", &["version", "kernels"], "Always 1; what is running is in the labels.");

pub const REQUESTS: Metric = counter(
    "passerelle_requests_total",
    &["route", "status", "model"],
    "HTTP requests answered; `model` is empty where a route has none and `unknown` where no such model is served.",
);
pub const REQUEST_DURATION: Metric = histogram(
    "passerelle_request_duration_seconds",
    &["model"],
    "From a request's arrival to the last byte of its answer.",
    &[0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0],
);
pub const TIME_TO_FIRST_TOKEN: Metric = histogram(
    "passerelle_time_to_first_token_seconds",
    &["model"],
    "From a request's arrival to its first generated token.",
    &[0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 60.0],
);
pub const INTER_TOKEN_LATENCY: Metric = histogram(
    "passerelle_inter_token_latency_seconds",
    &["model"],
    "Between two generated tokens of one request.",
    &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 1.0, 2.5],
);
pub const PROMPT_TOKENS: Metric =
    counter("passerelle_prompt_tokens_total", &["model"], "Prompt tokens of requests that ended, as settled.");
pub const CACHED_TOKENS: Metric = counter(
    "passerelle_cached_tokens_total",
    &["model"],
    "Those of the prompt tokens whose K/V came from the prefix cache.",
);
pub const GENERATED_TOKENS: Metric =
    counter("passerelle_generated_tokens_total", &["model"], "Generated tokens of requests that ended, as settled.");

pub const AUTH_FAILURES: Metric = counter(
    "passerelle_auth_failures_total",
    &["cause"],
    "Requests answered 401, by the cause that only the log tells.",
);
pub const REFUSALS: Metric = counter("passerelle_quota_refusals_total", &["limit"], "Requests that a limit refused.");
pub const UPSTREAM_TRIES: Metric = counter(
    "passerelle_upstream_tries_total",
    &["model", "upstream", "outcome"],
    "Requests sent to an upstream, by what came of it before the first event: answered, or how it failed; and answers that it broke \
     off in later.",
);
pub const UPSTREAM_UP: Metric = gauge(
    "passerelle_upstream_up",
    &["model", "upstream"],
    "1 while the upstream would be asked; 0 while it rests, and once a reload took it away.",
);
pub const SHADOWED: Metric = counter(
    "passerelle_shadowed_requests_total",
    &["alias", "outcome"],
    "Requests of an alias that were drawn for its candidate, by what came of that: compared, or why not.",
);
pub const SHADOW_BITS_PER_BYTE: Metric = histogram(
    "passerelle_shadow_bits_per_byte",
    &["alias", "model"],
    "How likely an answer was to the model that gave it (served) and to the candidate: its bits over its bytes.",
    &[0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0],
);
pub const SHADOW_ANSWERS: Metric = counter(
    "passerelle_shadow_greedy_answers_total",
    &["alias", "equal"],
    "Greedy answers of a candidate to what others asked, by whether they are those of the model that was asked.",
);
pub const RESERVATIONS_OPEN: Metric =
    gauge("passerelle_ledger_reservations_open", &[], "Reservations taken and not yet settled.");
pub const RESERVATIONS_SETTLED: Metric =
    counter("passerelle_ledger_reservations_settled_total", &[], "Reservations settled, on whatever way out.");
pub const ENTRIES_CHECKED: Metric = counter(
    "passerelle_ledger_entries_checked_total",
    &[],
    "Entries of the ledger that were held against what the engines counted, once they were written.",
);
pub const ENTRIES_UNPROVEN: Metric = counter(
    "passerelle_ledger_entries_unproven_total",
    &[],
    "Of them, those that are not what the engines counted less what nobody pays for: more than 0 is a fault of Passerelle.",
);
pub const IN_LINE: Metric =
    gauge("passerelle_ledger_waiting_requests", &[], "Requests that wait in line for a limit to have room for them.");

pub const MODEL_MEMORY: Metric =
    gauge("passerelle_model_memory_bytes", &[], "What models that come and go hold: weights and KV caches.");
pub const MODEL_MEMORY_LIMIT: Metric =
    gauge("passerelle_model_memory_limit_bytes", &[], "What passerelle_model_memory_bytes never exceeds.");

pub const PARTITION_UP: Metric =
    gauge("passerelle_partition_up", &["partition"], "1 while a worker takes requests for the partition's models.");
pub const WORKER_ARRIVALS: Metric = counter(
    "passerelle_worker_arrivals_total",
    &["partition"],
    "Workers that came with the partition's models loaded: the first, and all that took the place of another.",
);
pub const WORKER_ENDS: Metric = counter(
    "passerelle_worker_ends_total",
    &["partition"],
    "Worker processes of this machine that ended without having said that they leave.",
);
pub const WORKER_SILENCE: Metric = gauge(
    "passerelle_worker_silence_seconds",
    &["partition"],
    "Since the partition's worker gave a sign of life; 0 while it has none.",
);

pub const GPU_TIME: Metric = gauge(
    "passerelle_gpu_time_seconds",
    &["partition", "part"],
    "Normalised GPU time since the start; of a partition, billed, under_use (may be negative) and idle add up to elapsed.",
);

pub const WAITING: Metric = gauge(
    "passerelle_waiting_requests",
    &["model"],
    "Requests that wait for their first step, and sequences that wait to run again, after the last step.",
);
pub const RUNNING: Metric =
    gauge("passerelle_running_sequences", &["model"], "Sequences that hold KV blocks, after the last step.");
pub const KV_BLOCKS_USED: Metric =
    gauge("passerelle_kv_blocks_used", &["model"], "KV blocks that sequences hold, after the last step.");
pub const KV_BLOCKS: Metric = gauge("passerelle_kv_blocks", &["model"], "KV blocks of the cache.");
pub const PREFIX_QUERY_TOKENS: Metric =
    counter("passerelle_prefix_query_tokens_total", &["model"], "Prompt tokens looked up in the prefix cache.");
pub const PREFIX_HIT_TOKENS: Metric =
    counter("passerelle_prefix_hit_tokens_total", &["model"], "Prompt tokens found in the prefix cache.");
pub const PREEMPTIONS: Metric =
    counter("passerelle_preemptions_total", &["model"], "Sequences that gave up their KV blocks to another.");
pub const ENGINE_FAILURES: Metric = counter(
    "passerelle_engine_failures_total",
    &["model", "cause"],
    "Requests that failed in the engine by no fault of their own: a number that is not finite (nan), a panic, no memory, \
     another error of the device or of the model, a grammar that got lost, or a worker that is gone.",
);
pub const FAIR_SHARE_GAP: Metric = gauge(
    "passerelle_fair_share_gap_seconds",
    &["model"],
    "Modelled compute time by which the account that waits with the most credit leads the one with the least.",
);
pub const FAIR_SHARE_BOUND: Metric = gauge(
    "passerelle_fair_share_gap_bound_seconds",
    &["model"],
    "What passerelle_fair_share_gap_seconds never exceeds.",
);
pub const STEP_DURATION: Metric = histogram(
    "passerelle_step_duration_seconds",
    &["model"],
    "One step of the engine, from its turn on the threads to the last token; what is noted and told after it is not in it.",
    &[0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0],
);

pub const ALL: [Metric; 36] = [
    INFO,
    REQUESTS,
    REQUEST_DURATION,
    TIME_TO_FIRST_TOKEN,
    INTER_TOKEN_LATENCY,
    PROMPT_TOKENS,
    CACHED_TOKENS,
    GENERATED_TOKENS,
    AUTH_FAILURES,
    REFUSALS,
    UPSTREAM_TRIES,
    UPSTREAM_UP,
    SHADOWED,
    SHADOW_BITS_PER_BYTE,
    SHADOW_ANSWERS,
    RESERVATIONS_OPEN,
    RESERVATIONS_SETTLED,
    ENTRIES_CHECKED,
    ENTRIES_UNPROVEN,
    MODEL_MEMORY,
    MODEL_MEMORY_LIMIT,
    PARTITION_UP,
    WORKER_ARRIVALS,
    WORKER_ENDS,
    WORKER_SILENCE,
    WAITING,
    RUNNING,
    KV_BLOCKS_USED,
    KV_BLOCKS,
    PREFIX_QUERY_TOKENS,
    PREFIX_HIT_TOKENS,
    PREEMPTIONS,
    ENGINE_FAILURES,
    FAIR_SHARE_GAP,
    FAIR_SHARE_BOUND,
    STEP_DURATION,
];

const fn counter(name: &'static str, labels: &'static [&'static str], help: &'static str) -> Metric {
    Metric { name, kind: MetricKind::Counter, labels, help }
}

const fn gauge(name: &'static str, labels: &'static [&'static str], help: &'static str) -> Metric {
    Metric { name, kind: MetricKind::Gauge, labels, help }
}

const fn histogram(
    name: &'static str,
    labels: &'static [&'static str],
    help: &'static str,
    buckets: &'static [f64],
) -> Metric {
    Metric { name, kind: MetricKind::Histogram(buckets), labels, help }
}
