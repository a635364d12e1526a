//! A light tenant beside a greedy one.
//!
//! Beside what the light one gets stands what the best of two kinds of servers would give, from what each tenant gets alone: one
//! that computes all that run in one step, so that whoever comes waits for the step that goes on and then has a token in
//! each step of the crowd; and one that gives each tenant half of its time.

use super::{CheckError, Context, milliseconds};
use crate::arrivals::Arrivals;
use crate::figures::{Figures, Quantiles};
use crate::http::Connect;
use crate::scenario::Traffic;
use crate::verdict::Verdict;

pub const LIGHT: &str = "light";
pub const GREEDY: &str = "greedy";
const NOISE_MS: f64 = 50.0;
const TENANTS: f64 = 2.0;

/// In milliseconds.
struct Latency {
    first_token: f64,
    end_to_end: f64,
}

pub async fn check<C: Connect>(context: &Context<'_, C>) -> Result<Verdict, CheckError> {
    let options = &context.options;
    let keys = &context.session.target.keys.by_tenant;
    if !(keys.contains_key(LIGHT) && keys.contains_key(GREEDY)) {
        return Err(CheckError::CannotTry(format!("it needs keys of two tenants, `{LIGHT}` and `{GREEDY}` (--keys)")));
    }
    let mut verdict = Verdict::new(
        "neighbour",
        format!("beside a greedy tenant, the light one's p99 is at most {} times what it is alone", options.max_ratio),
    );
    let light = || tenant(context, LIGHT, Arrivals::Constant { rate: options.rate });
    let greedy = || tenant(context, GREEDY, Arrivals::Closed { concurrency: options.users });
    let (_, _, alone) = context.run(vec![light()]).await?;
    let (_, _, crowd) = context.run(vec![greedy()]).await?;
    let (_, _, beside) = context.run(vec![light(), greedy()]).await?;
    let (light_alone, light_beside) = (&alone.tenants[LIGHT], &beside.tenants[LIGHT]);
    verdict.tried(format!(
        "{} requests of the light tenant alone, {} beside {} of the greedy one",
        light_alone.requests, light_beside.requests, beside.tenants[GREEDY].requests
    ));
    for (name, before, after) in [
        ("time to first token", light_alone.ttft_ms, light_beside.ttft_ms),
        ("end to end", light_alone.e2e_ms, light_beside.e2e_ms),
    ] {
        let both = |of: fn(Quantiles) -> f64| (before.map(of), after.map(of));
        let told = |(before, after)| format!("{} alone, {} beside", milliseconds(before), milliseconds(after));
        verdict.figure(format!("{name}, median"), told(both(|quantiles| quantiles.p50)));
        let p99 = both(|quantiles| quantiles.p99);
        verdict.figure(format!("{name}, p99"), told(p99));
        let (Some(before), Some(after)) = p99 else {
            verdict.require(false, || format!("the light tenant has no {name}"));
            continue;
        };
        verdict.require(after <= before * options.max_ratio || after - before <= NOISE_MS, || {
            format!("{name}: {:.1} times", after / before)
        });
    }
    show_ideals(&mut verdict, light_alone, &crowd.total, options.lengths.output_tokens);
    verdict.figure("greedy tenant", format!("{:.1} tokens/s out", beside.tenants[GREEDY].output_tokens_per_s));
    let unserved = light_beside.requests - light_beside.finished;
    verdict.require(unserved == 0, || format!("{unserved} of the light tenant's requests were not served"));
    Ok(verdict)
}

fn show_ideals(verdict: &mut Verdict, light: &Figures, crowd: &Figures, output_tokens: u32) {
    let ideals =
        [("in an ideal batch", in_one_batch(light, crowd, output_tokens)), ("of half a server", of_half(light))];
    for (name, ideal) in ideals {
        let Some(Latency { first_token, end_to_end }) = ideal else { continue };
        verdict.number(format!("time to first token, p99 {name}"), first_token, "ms");
        verdict.number(format!("end to end, p99 {name}"), end_to_end, "ms");
    }
}

fn in_one_batch(light: &Figures, crowd: &Figures, output_tokens: u32) -> Option<Latency> {
    let first_token = light.ttft_ms?.p99 + crowd.itl_ms?.p99;
    let end_to_end = first_token + crowd.tpot_ms?.p50 * f64::from(output_tokens.saturating_sub(1));
    Some(Latency { first_token, end_to_end })
}

fn of_half(light: &Figures) -> Option<Latency> {
    Some(Latency { first_token: light.ttft_ms?.p99 * TENANTS, end_to_end: light.e2e_ms?.p99 * TENANTS })
}

fn tenant<C: Connect>(context: &Context<'_, C>, name: &str, arrivals: Arrivals) -> Traffic {
    Traffic { tenant: Some(name.to_owned()), ..context.chats(name, arrivals, context.options.lengths) }
}
