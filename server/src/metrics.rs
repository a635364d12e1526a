//! What `/metrics` shows. Every name is in [`table`]; handles to the series are made once and held here, so that there
//! is no recorder of the whole process and a test has its own.

mod clock;
mod named;
pub mod table;
mod upstreams;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use metrics::{Counter, Gauge, Histogram, Key, KeyName, Label, Level, Metadata, Recorder};
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder};
use passerelle_engine::{Fault, StepObserver, StepReport, Usage};

use crate::gateway::shelf::ShelfMemory;
use crate::gateway::tariff::{Hours, PartitionHours, TimeUse};
use crate::gateway::{AuthError, LedgerFigures, LimitName};
use crate::workers::WorkerSlotFigures;
pub use clock::set_clock_beside;
use named::{MAX_NAMES, Named, OTHER};
use table::{Metric, MetricKind};
use upstreams::ToldUpstreams;

/// Samples of histograms are folded into their buckets after this many requests, also if nobody reads `/metrics`.
const REQUESTS_BETWEEN_UPKEEP: u64 = 64;
/// Stands for every name of a model that is not served, so that clients cannot make series.
const UNKNOWN_MODEL: &str = "unknown";

#[derive(Debug)]
pub struct Metrics {
    recorder: PrometheusRecorder,
    exporter: PrometheusHandle,
    hours: Arc<Hours>,
    models: RwLock<BTreeMap<String, Arc<ModelMetrics>>>,
    /// Of models at upstreams.
    upstreams: Named,
    aliases: Named,
    refusals: BTreeMap<LimitName, Counter>,
    told_upstreams: ToldUpstreams,
    reservations_open: Gauge,
    in_line: Gauge,
    reservations_settled: Counter,
    entries_checked: Counter,
    entries_unproven: Counter,
    requests_counted: AtomicU64,
}

/// What the info series says.
#[derive(Debug, Clone)]
pub struct BuildInfo {
    pub version: String,
    /// The bodies of the ops that run, for example `cpu avx2`.
    pub kernels: String,
}

/// One answered request.
#[derive(Debug, Clone, Copy)]
pub struct AnsweredRequest<'a> {
    /// The route's pattern, not its path.
    pub route: &'static str,
    pub status: u16,
    /// As the client wrote it; `None` where a route has no model.
    pub model: Option<&'a str>,
}

/// An answer that was given, under the model that gave it and under a candidate: bits per byte.
#[derive(Debug, Clone, Copy)]
pub struct ShadowFigures {
    pub served: f64,
    pub candidate: f64,
    pub greedy_answers_are_equal: bool,
}

/// The series of one served model that its requests feed.
#[derive(Debug)]
pub struct ModelMetrics {
    time_to_first_token: Histogram,
    inter_token_latency: Histogram,
    request_duration: Histogram,
    prompt_tokens: Counter,
    cached_tokens: Counter,
    generated_tokens: Counter,
}

/// The series of one served model that its engine feeds.
#[derive(Debug)]
pub struct EngineMetrics {
    waiting: Gauge,
    running: Gauge,
    kv_blocks_used: Gauge,
    kv_blocks: Gauge,
    prefix_query_tokens: Counter,
    prefix_hit_tokens: Counter,
    preemptions: Counter,
    /// In the order of [`Fault::ALL`].
    failures: [Counter; Fault::ALL.len()],
    fair_share_gap: Gauge,
    fair_share_bound: Gauge,
    hours: Arc<PartitionHours>,
    step_duration: Histogram,
}

#[derive(Debug, thiserror::Error)]
#[error("cannot set up metrics: {0}")]
pub struct MetricsError(#[from] BuildError);

impl Metrics {
    /// `models` are the names of the served ones. Only these, and those that are served later, are values of a `model`
    /// label.
    pub fn new<'a>(
        info: &BuildInfo,
        models: impl IntoIterator<Item = &'a str>,
        hours: Hours,
    ) -> Result<Self, MetricsError> {
        let recorder = build_recorder()?;
        describe_all(&recorder);
        register_gauge(&recorder, table::INFO, &[&info.version, &info.kernels]).set(1.0);
        let refusal = |limit: LimitName| (limit, register_counter(&recorder, table::REFUSALS, &[limit.as_str()]));
        let metrics = Self {
            hours: Arc::new(hours),
            models: RwLock::default(),
            upstreams: Named::default(),
            aliases: Named::default(),
            refusals: LimitName::all().map(refusal).collect(),
            told_upstreams: ToldUpstreams::default(),
            reservations_open: register_gauge(&recorder, table::RESERVATIONS_OPEN, &[]),
            in_line: register_gauge(&recorder, table::IN_LINE, &[]),
            reservations_settled: register_counter(&recorder, table::RESERVATIONS_SETTLED, &[]),
            entries_checked: register_counter(&recorder, table::ENTRIES_CHECKED, &[]),
            entries_unproven: register_counter(&recorder, table::ENTRIES_UNPROVEN, &[]),
            requests_counted: AtomicU64::new(0),
            exporter: recorder.handle(),
            recorder,
        };
        metrics.serve(models);
        Ok(metrics)
    }

    /// These models are served from now on. Those that no longer are keep their series.
    pub fn serve<'a>(&self, names: impl IntoIterator<Item = &'a str>) {
        let mut models = self.models.write().unwrap_or_else(PoisonError::into_inner);
        for name in names {
            if models.len() >= MAX_NAMES {
                return;
            }
            models.entry(name.to_owned()).or_insert_with(|| Arc::new(ModelMetrics::new(&self.recorder, name)));
        }
    }

    /// The text of `/metrics`, with the ledger as it is now.
    pub fn render(&self, ledger: &LedgerFigures) -> String {
        let LedgerFigures { totals, in_line, proofs } = ledger;
        self.in_line.set(*in_line as f64);
        self.reservations_open.set(totals.open as f64);
        self.reservations_settled.absolute(totals.settled);
        self.entries_checked.absolute(proofs.checked);
        self.entries_unproven.absolute(proofs.unproven);
        self.tell_hours();
        self.exporter.render()
    }

    /// At one instant for each partition, so that its parts add up.
    fn tell_hours(&self) {
        for (partition, TimeUse { billed, under_use, idle, elapsed }) in self.hours.in_all() {
            for (part, seconds) in [("billed", billed), ("under_use", under_use), ("idle", idle), ("elapsed", elapsed)]
            {
                register_gauge(&self.recorder, table::GPU_TIME, &[partition.partition(), part]).set(seconds);
            }
        }
    }

    /// What models that come and go hold at this moment.
    pub fn models_hold(&self, memory: ShelfMemory) {
        register_gauge(&self.recorder, table::MODEL_MEMORY, &[]).set(memory.held_bytes as f64);
        register_gauge(&self.recorder, table::MODEL_MEMORY_LIMIT, &[]).set(memory.limit_bytes as f64);
    }

    /// How a partition is served at this moment; its name is a configured one.
    pub fn partition_is(&self, partition: &str, figures: WorkerSlotFigures) {
        let WorkerSlotFigures { arrivals, ends, silence } = figures;
        let gauge = |metric| register_gauge(&self.recorder, metric, &[partition]);
        gauge(table::PARTITION_UP).set(if silence.is_some() { 1.0 } else { 0.0 });
        gauge(table::WORKER_SILENCE).set(silence.unwrap_or_default().as_secs_f64());
        register_counter(&self.recorder, table::WORKER_ARRIVALS, &[partition]).absolute(arrivals);
        register_counter(&self.recorder, table::WORKER_ENDS, &[partition]).absolute(ends);
    }

    pub fn answered(&self, request: AnsweredRequest<'_>) {
        let model = match request.model {
            None => "",
            Some(name) if self.model(name).is_some() => name,
            Some(_) => UNKNOWN_MODEL,
        };
        let status = request.status.to_string();
        register_counter(&self.recorder, table::REQUESTS, &[request.route, &status, model]).increment(1);
        if self.requests_counted.fetch_add(1, Ordering::Relaxed).is_multiple_of(REQUESTS_BETWEEN_UPKEEP) {
            self.exporter.run_upkeep();
        }
    }

    pub fn refused(&self, by: LimitName) {
        if let Some(counter) = self.refusals.get(&by) {
            counter.increment(1);
        }
    }

    /// `model` and `upstream` are configured names, and `outcome` one of a few.
    pub fn upstream_tried(&self, model: &str, upstream: &str, outcome: &'static str) {
        let [model, upstream] = self.upstreams.labels([model, upstream]);
        register_counter(&self.recorder, table::UPSTREAM_TRIES, &[model, upstream, outcome]).increment(1);
    }

    /// `alias` is a configured name, and `outcome` one of a few.
    pub fn shadowed(&self, alias: &str, outcome: &'static str) {
        let [alias] = self.aliases.labels([alias]);
        register_counter(&self.recorder, table::SHADOWED, &[alias, outcome]).increment(1);
    }

    /// What was found out about an answer that was given for `alias`.
    pub fn shadow_compared(&self, alias: &str, found: ShadowFigures) {
        let [alias] = self.aliases.labels([alias]);
        for (model, bits_per_byte) in [("served", found.served), ("candidate", found.candidate)] {
            register_histogram(&self.recorder, table::SHADOW_BITS_PER_BYTE, &[alias, model]).record(bits_per_byte);
        }
        let equal = if found.greedy_answers_are_equal { "yes" } else { "no" };
        register_counter(&self.recorder, table::SHADOW_ANSWERS, &[alias, equal]).increment(1);
    }

    pub fn auth_failed(&self, error: AuthError) {
        register_counter(&self.recorder, table::AUTH_FAILURES, &[error.label()]).increment(1);
    }

    /// `None` for a model that is not served.
    pub fn model(&self, name: &str) -> Option<Arc<ModelMetrics>> {
        self.models.read().unwrap_or_else(PoisonError::into_inner).get(name).cloned()
    }

    /// Where the time of each partition went.
    pub fn hours(&self) -> &Arc<Hours> {
        &self.hours
    }

    /// For the engine of a served model to report its steps to.
    pub fn engine(&self, model: &str) -> EngineMetrics {
        self.serve([model]);
        let label = if self.model(model).is_some() { model } else { OTHER };
        EngineMetrics::new(&self.recorder, label, self.hours.of_model(model))
    }
}

impl ModelMetrics {
    fn new(recorder: &PrometheusRecorder, model: &str) -> Self {
        let counter = |metric| register_counter(recorder, metric, &[model]);
        let histogram = |metric| register_histogram(recorder, metric, &[model]);
        Self {
            time_to_first_token: histogram(table::TIME_TO_FIRST_TOKEN),
            inter_token_latency: histogram(table::INTER_TOKEN_LATENCY),
            request_duration: histogram(table::REQUEST_DURATION),
            prompt_tokens: counter(table::PROMPT_TOKENS),
            cached_tokens: counter(table::CACHED_TOKENS),
            generated_tokens: counter(table::GENERATED_TOKENS),
        }
    }

    pub fn first_token(&self, since_arrival: Duration) {
        self.time_to_first_token.record(since_arrival);
    }

    pub fn next_token(&self, since_last_token: Duration) {
        self.inter_token_latency.record(since_last_token);
    }

    /// Once per request that had a replica, with what its reservation settles.
    pub fn ended(&self, used: Usage, since_arrival: Duration) {
        self.request_duration.record(since_arrival);
        self.prompt_tokens.increment(u64::from(used.prompt_tokens));
        self.cached_tokens.increment(u64::from(used.cached_tokens));
        self.generated_tokens.increment(u64::from(used.generated_tokens));
    }
}

impl EngineMetrics {
    fn new(recorder: &PrometheusRecorder, model: &str, hours: Arc<PartitionHours>) -> Self {
        let counter = |metric| register_counter(recorder, metric, &[model]);
        let gauge = |metric| register_gauge(recorder, metric, &[model]);
        Self {
            waiting: gauge(table::WAITING),
            running: gauge(table::RUNNING),
            kv_blocks_used: gauge(table::KV_BLOCKS_USED),
            kv_blocks: gauge(table::KV_BLOCKS),
            prefix_query_tokens: counter(table::PREFIX_QUERY_TOKENS),
            prefix_hit_tokens: counter(table::PREFIX_HIT_TOKENS),
            preemptions: counter(table::PREEMPTIONS),
            failures: Fault::ALL
                .map(|fault| register_counter(recorder, table::ENGINE_FAILURES, &[model, fault.label()])),
            fair_share_gap: gauge(table::FAIR_SHARE_GAP),
            fair_share_bound: gauge(table::FAIR_SHARE_BOUND),
            hours,
            step_duration: register_histogram(recorder, table::STEP_DURATION, &[model]),
        }
    }
}

impl StepObserver for EngineMetrics {
    fn step(&self, report: &StepReport) {
        // A report of what was lost with a worker tells of no engine; one of an encoder has no blocks.
        if report.num_sequences > 0 || report.total_blocks > 0 {
            self.waiting.set(report.waiting as f64);
        }
        if report.total_blocks > 0 {
            self.running.set(report.running as f64);
            self.kv_blocks_used.set(report.total_blocks.saturating_sub(report.free_blocks) as f64);
            self.kv_blocks.set(report.total_blocks as f64);
            self.fair_share_gap.set(report.fair_share_gap.as_secs_f64());
            self.fair_share_bound.set(report.fair_share_bound.as_secs_f64());
        }
        self.prefix_query_tokens.increment(report.prefix_query_tokens);
        self.prefix_hit_tokens.increment(report.prefix_hit_tokens);
        self.preemptions.increment(report.preemptions as u64);
        self.failures.iter().zip(report.failures.each()).for_each(|(counter, count)| counter.increment(*count));
        if report.num_sequences > 0 {
            self.step_duration.record(report.duration);
        }
        self.hours.step(report);
    }
}

fn build_recorder() -> Result<PrometheusRecorder, BuildError> {
    let mut builder = PrometheusBuilder::new();
    for metric in table::ALL {
        if let MetricKind::Histogram(buckets) = metric.kind {
            builder = builder.set_buckets_for_metric(Matcher::Full(metric.name.to_owned()), buckets)?;
        }
    }
    Ok(builder.build_recorder())
}

fn describe_all(recorder: &PrometheusRecorder) {
    for metric in table::ALL {
        let name = KeyName::from_const_str(metric.name);
        match metric.kind {
            MetricKind::Counter => recorder.describe_counter(name, None, metric.help.into()),
            MetricKind::Gauge => recorder.describe_gauge(name, None, metric.help.into()),
            MetricKind::Histogram(_) => recorder.describe_histogram(name, None, metric.help.into()),
        }
    }
}

const METADATA: Metadata<'static> = Metadata::new("passerelle", Level::INFO, None);

fn register_counter(recorder: &PrometheusRecorder, metric: Metric, values: &[&str]) -> Counter {
    recorder.register_counter(&key(metric, values), &METADATA)
}

fn register_gauge(recorder: &PrometheusRecorder, metric: Metric, values: &[&str]) -> Gauge {
    recorder.register_gauge(&key(metric, values), &METADATA)
}

fn register_histogram(recorder: &PrometheusRecorder, metric: Metric, values: &[&str]) -> Histogram {
    recorder.register_histogram(&key(metric, values), &METADATA)
}

/// `values` in the order of the metric's labels.
fn key(metric: Metric, values: &[&str]) -> Key {
    assert_eq!(metric.labels.len(), values.len(), "{} takes the labels {:?}", metric.name, metric.labels);
    let label = |(name, value): (&&'static str, &&str)| Label::new(*name, (*value).to_owned());
    Key::from_parts(metric.name, metric.labels.iter().zip(values).map(label).collect::<Vec<_>>())
}

#[cfg(test)]
mod tests;
