//! Overload: first the capacity, by users who wait for their answers; then a multiple of it, by users who do not.

use super::{CheckError, Context, failures, milliseconds, require_answers};
use crate::arrivals::Arrivals;
use crate::figures::{Figures, Quantiles, ms};
use crate::http::Connect;
use crate::record::{Ending, Record};
use crate::scenario::Traffic;
use crate::verdict::Verdict;

/// Of the admitted, so many must be served within the objectives.
const MIN_GOOD_OF_ADMITTED: f64 = 0.9;
/// Of the capacity, so much must be left while overloaded.
const MIN_THROUGHPUT_LEFT: f64 = 0.8;
/// A refusal that takes longer is no honest refusal.
const MAX_REFUSAL_MS: f64 = 1000.0;
/// Of one measurement of capacity, at most.
const CAPACITY_S: f64 = 10.0;
/// Twice as many users must gain so much, or there were enough of them.
const MIN_GAIN: f64 = 0.1;
const MAX_USERS: u32 = 1024;

/// What a server can do, and how many users at once it needs for it.
pub(super) struct Capacity {
    pub users: u32,
    pub figures: Figures,
}

pub async fn check<C: Connect>(context: &Context<'_, C>) -> Result<Verdict, CheckError> {
    let options = &context.options;
    let factors: Vec<String> = options.factors.iter().map(f64::to_string).collect();
    let factors = factors.join(", ");
    let mut verdict = Verdict::new(
        "overload",
        format!(
            "asked for {factors} times what it can do, the server keeps its throughput, serves the admitted in time, and \
             refuses the rest at once with 429 or 503"
        ),
    );
    let waiting = context.chats("capacity", Arrivals::Closed { concurrency: options.users }, options.lengths);
    let Capacity { users, figures: capacity } = capacity(context, waiting).await?;
    verdict.number("capacity", capacity.requests_per_s, "requests/s");
    verdict.number("capacity in tokens", capacity.output_tokens_per_s, "tokens/s");
    verdict.figure("reached with", format!("{users} users at once"));
    verdict.figure("in time is", options.objectives.to_string());
    let mut sent = 0;
    for factor in &options.factors {
        let rate = capacity.requests_per_s * factor;
        let crowd = context.chats("crowd", Arrivals::Poisson { rate }, options.lengths);
        let (_, run, figures) = context.run(vec![crowd]).await?;
        sent += figures.total.requests;
        judge(&mut verdict, *factor, &capacity, &figures.total, &run.records);
    }
    let seconds = options.duration.as_secs_f64();
    verdict.tried(format!("{sent} requests, {factors} times the capacity for {seconds:.0} s each"));
    context.require_alive(&mut verdict, "afterwards").await;
    Ok(verdict)
}

/// What users get who wait for their answers, and twice as many of them as long as that gains anything: a server that
/// batches can do more than a few users ask of it.
pub(super) async fn capacity<C: Connect>(context: &Context<'_, C>, traffic: Traffic) -> Result<Capacity, CheckError> {
    let mut users = context.options.users;
    let mut best = Capacity { users, figures: served_to(context, &traffic, users).await? };
    require_answers(&best.figures)?;
    while users < MAX_USERS {
        users *= 2;
        let figures = served_to(context, &traffic, users).await?;
        let gain = figures.output_tokens_per_s / best.figures.output_tokens_per_s - 1.0;
        if gain > 0.0 {
            best = Capacity { users, figures };
        }
        if gain < MIN_GAIN {
            break;
        }
    }
    Ok(best)
}

async fn served_to<C: Connect>(context: &Context<'_, C>, traffic: &Traffic, users: u32) -> Result<Figures, CheckError> {
    let traffic = Traffic { arrivals: Arrivals::Closed { concurrency: users }, ..traffic.clone() };
    let mut scenario = context.scenario(vec![traffic]);
    scenario.duration_s = scenario.duration_s.min(CAPACITY_S);
    let plan = context.session.plan_watched(&scenario, &context.options.run.progress).await?;
    Ok(context.carry_out(&plan).await.1.total)
}

/// Whoever is not admitted hears that there is no room, and nothing else.
pub(super) fn require_honest_refusals(verdict: &mut Verdict, crowd: &Figures) {
    let dishonest = crowd.refused.keys().find(|label| !label.starts_with("429") && !label.starts_with("503"));
    verdict.require(dishonest.is_none(), || format!("refused with {}", dishonest.map_or("", String::as_str)));
}

fn judge(verdict: &mut Verdict, factor: f64, capacity: &Figures, crowd: &Figures, records: &[Record]) {
    let failed = failures(verdict, crowd);
    let admitted = crowd.requests - crowd.refused_count() - crowd.own_errors;
    let good_share = crowd.good as f64 / admitted.max(1) as f64;
    let left = crowd.output_tokens_per_s / capacity.output_tokens_per_s.max(f64::EPSILON);
    let refusals = records.iter().filter(|record| matches!(record.ending, Ending::Refused { .. }));
    let refusal_ms = Quantiles::of(refusals.map(|record| ms(record.end.saturating_sub(record.sent))));
    let named = |what: &str| format!("{factor} times: {what}");
    verdict.figure(named("admitted"), format!("{admitted} of {}", crowd.requests));
    verdict.number(named("goodput of the admitted"), good_share * 100.0, "%");
    verdict.number(named("goodput"), crowd.good_per_s, "requests/s");
    verdict.number(named("throughput left of the capacity"), left * 100.0, "%");
    verdict.milliseconds(named("first token of the admitted, p99"), crowd.ttft_ms.map(|ttft| ttft.p99));
    verdict.figure(named("refusals"), format!("{:?}", crowd.refused));
    verdict.milliseconds(named("time to refuse, p99"), refusal_ms.map(|taken| taken.p99));
    verdict.require(failed == 0, || named(&format!("errors: {:?}", crowd.errors)));
    require_honest_refusals(verdict, crowd);
    verdict.require(good_share >= MIN_GOOD_OF_ADMITTED, || {
        named(&format!("only {:.1} % of the admitted were served in time", good_share * 100.0))
    });
    verdict.require(left >= MIN_THROUGHPUT_LEFT, || named(&format!("throughput fell to {:.0} %", left * 100.0)));
    verdict.require(refusal_ms.is_none_or(|taken| taken.p99 <= MAX_REFUSAL_MS), || {
        named(&format!("refusing took {}", milliseconds(refusal_ms.map(|taken| taken.p99))))
    });
}
