//! This instrument against a server whose delays are known, over a socket and in real time.

use std::time::Duration;

use crate::arrivals::Arrivals;
use crate::figures::{Quantiles, ms, quantile, short};
use crate::http::Connect;
use crate::lengths::Lengths;
use crate::mock::Pace;
use crate::plan::PlanError;
use crate::process::Watch;
use crate::run::RunOptions;
use crate::scenario::{RequestFields, Scenario, Traffic, Workload};
use crate::session::Session;
use crate::verdict::Verdict;

const REQUESTS: usize = 400;
const RATE: f64 = 25.0;
const OUTPUT_TOKENS: u32 = 21;
/// So that the last of the requests have surely arrived.
const DURATION_S: f64 = 60.0;
/// How far a percentile may be off.
const TOLERANCE: f64 = 0.02;
const MS: Duration = Duration::from_millis(1);

/// Of the server's generation of this number: first tokens after 200 to 599 ms, gaps of 20 to 59 ms, each of 400 once in
/// an order that the arrivals do not know.
pub fn pace(number: usize) -> Pace {
    let rank = (number * 149 % REQUESTS) as u32;
    Pace { first: MS * (200 + rank), gap: MS * (20 + rank / 10) }
}

/// `session` is with a server that has answered no generation yet and keeps [`pace`].
pub async fn check<C: Connect>(session: &Session<C>, options: &RunOptions) -> Result<Verdict, PlanError> {
    let percent = TOLERANCE * 100.0;
    let promise = format!("against a server of known delays, percentiles are right within {percent} %");
    let mut verdict = Verdict::new("self-check", promise);
    let watch = Watch::start(None);
    let (_, _, figures) = session.run(&scenario(), options).await?;
    let (machine, _) = watch.finish();
    let figures = figures.total;
    verdict.tried(format!("{} requests that arrive by chance, {RATE} a second", figures.requests));
    verdict.require(figures.finished == REQUESTS as u64, || format!("only {} were answered", figures.finished));
    let gaps = OUTPUT_TOKENS - 1;
    let known = |of: &dyn Fn(Pace) -> Duration| sorted((0..REQUESTS).map(|number| ms(of(pace(number)))));
    for (name, measured, known) in [
        ("time to first token", figures.ttft_ms, known(&|pace| pace.first)),
        // Each request has as many.
        ("inter-token latency", figures.itl_ms, known(&|pace| pace.gap)),
        ("time per output token", figures.tpot_ms, known(&|pace| pace.gap)),
        ("end to end", figures.e2e_ms, known(&|pace| pace.first + pace.gap * gaps)),
    ] {
        let Some(measured) = measured else {
            verdict.require(false, || format!("there is no {name}"));
            continue;
        };
        for (share, measured, known) in percentiles(measured, &known) {
            let off = measured / known - 1.0;
            let told = format!("{} ms, {} ms known, {:+.2} %", short(measured), short(known), off * 100.0);
            verdict.figure(format!("{name}, {share}"), &told);
            let is_right = off.abs() <= TOLERANCE;
            match machine.warning().filter(|_| !is_right) {
                // A program that had to wait for others is late, and so is the server.
                Some(disturbed) => verdict.cannot_tell(format!("{name}, {share}: {told}, but {disturbed}")),
                None => verdict.require(is_right, || format!("{name}, {share}: {told}")),
            }
        }
    }
    Ok(verdict)
}

fn scenario() -> Scenario {
    let traffic = Traffic {
        name: "known".to_owned(),
        tenant: None,
        arrivals: Arrivals::Poisson { rate: RATE },
        requests: Some(REQUESTS),
        workload: Workload::Chat { prompt_tokens: Lengths::fixed(8), output_tokens: Lengths::fixed(OUTPUT_TOKENS) },
        request: RequestFields { temperature: Some(0.0), ignore_eos: true, ..RequestFields::default() },
        leave: None,
    };
    Scenario::of("known delays", DURATION_S, traffic)
}

fn percentiles(measured: Quantiles, known: &[f64]) -> [(&'static str, f64, f64); 3] {
    [
        ("median", measured.p50, quantile(known, 0.5)),
        ("p90", measured.p90, quantile(known, 0.9)),
        ("p99", measured.p99, quantile(known, 0.99)),
    ]
}

fn sorted(values: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values
}
