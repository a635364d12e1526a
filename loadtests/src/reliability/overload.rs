//! Overload: first the capacity, by users who wait for their answers; then a multiple of it, by users who do not.

use super::{CheckError, Context, milliseconds, require_answers};
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
/// Requests of the measurement of capacity, for each user.
const ROUNDS: usize = 3;

pub async fn check<C: Connect>(context: &Context<'_, C>) -> Result<Verdict, CheckError> {
    let options = &context.options;
    let mut verdict = Verdict::new(
        "overload",
        format!(
            "asked for {} times what it can do, the server keeps its throughput, serves the admitted in time, and \
             refuses the rest at once with 429 or 503",
            options.factor
        ),
    );
    let waiting = context.chats("capacity", Arrivals::Closed { concurrency: options.users }, options.lengths);
    let capacity = capacity(context, waiting).await?;
    let rate = capacity.requests_per_s * options.factor;
    let crowd = context.chats("crowd", Arrivals::Poisson { rate }, options.lengths);
    let (_, run, figures) = context.run(vec![crowd]).await?;
    verdict.tried(format!(
        "{} requests in {:.0} s, {rate:.2} per second",
        figures.total.requests,
        options.duration.as_secs_f64()
    ));
    judge(&mut verdict, &capacity, &figures.total, &run.records);
    context.require_alive(&mut verdict, "afterwards").await;
    Ok(verdict)
}

/// What users get who wait for their answers.
pub(super) async fn capacity<C: Connect>(context: &Context<'_, C>, mut users: Traffic) -> Result<Figures, CheckError> {
    users.requests = Some(context.options.users as usize * ROUNDS);
    let (_, _, figures) = context.run(vec![users]).await?;
    require_answers(&figures.total)?;
    Ok(figures.total)
}

/// Whoever is not admitted hears that there is no room, and nothing else.
pub(super) fn require_honest_refusals(verdict: &mut Verdict, crowd: &Figures) {
    let dishonest = crowd.refused.keys().find(|label| !label.starts_with("429") && !label.starts_with("503"));
    verdict.require(dishonest.is_none(), || format!("refused with {}", dishonest.map_or("", String::as_str)));
}

fn judge(verdict: &mut Verdict, capacity: &Figures, crowd: &Figures, records: &[Record]) {
    let admitted = crowd.requests - crowd.refused_count();
    let good_share = crowd.good as f64 / admitted.max(1) as f64;
    let left = crowd.output_tokens_per_s / capacity.output_tokens_per_s.max(f64::EPSILON);
    let refusals = records.iter().filter(|record| matches!(record.ending, Ending::Refused { .. }));
    let refusal_ms = Quantiles::of(refusals.map(|record| ms(record.end.saturating_sub(record.sent))));
    verdict.figure(
        "capacity",
        format!("{:.2} requests/s, {:.1} tokens/s", capacity.requests_per_s, capacity.output_tokens_per_s),
    );
    verdict.figure("admitted", format!("{admitted} of {}", crowd.requests));
    verdict
        .figure("goodput of the admitted", format!("{:.1} %, {:.2} requests/s", good_share * 100.0, crowd.good_per_s));
    verdict.figure("throughput left", format!("{:.0} % of the capacity", left * 100.0));
    verdict.figure("first token of the admitted, p99", milliseconds(crowd.ttft_ms.map(|ttft| ttft.p99)));
    verdict.figure("refusals", format!("{:?}", crowd.refused));
    verdict.figure("time to refuse, p99", milliseconds(refusal_ms.map(|taken| taken.p99)));
    verdict.require(crowd.error_count() == 0, || format!("errors: {:?}", crowd.errors));
    require_honest_refusals(verdict, crowd);
    verdict.require(good_share >= MIN_GOOD_OF_ADMITTED, || {
        format!("only {:.1} % of the admitted were served in time", good_share * 100.0)
    });
    verdict.require(left >= MIN_THROUGHPUT_LEFT, || format!("throughput fell to {:.0} %", left * 100.0));
    verdict.require(refusal_ms.is_none_or(|taken| taken.p99 <= MAX_REFUSAL_MS), || {
        format!("refusing took {}", milliseconds(refusal_ms.map(|taken| taken.p99)))
    });
}
