//! A light tenant beside a greedy one.

use super::{CheckError, Context, milliseconds};
use crate::arrivals::Arrivals;
use crate::http::Connect;
use crate::scenario::Traffic;
use crate::verdict::Verdict;

pub const LIGHT: &str = "light";
pub const GREEDY: &str = "greedy";
const NOISE_MS: f64 = 50.0;

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
    let greedy = tenant(context, GREEDY, Arrivals::Closed { concurrency: options.users });
    let (_, _, alone) = context.run(vec![light()]).await?;
    let (_, _, beside) = context.run(vec![light(), greedy]).await?;
    let (light_alone, light_beside) = (&alone.tenants[LIGHT], &beside.tenants[LIGHT]);
    verdict.tried(format!(
        "{} requests of the light tenant alone, {} beside {} of the greedy one",
        light_alone.requests, light_beside.requests, beside.tenants[GREEDY].requests
    ));
    let p99 = |quantiles: Option<crate::figures::Quantiles>| quantiles.map(|quantiles| quantiles.p99);
    for (name, before, after) in [
        ("time to first token", p99(light_alone.ttft_ms), p99(light_beside.ttft_ms)),
        ("end to end", p99(light_alone.e2e_ms), p99(light_beside.e2e_ms)),
    ] {
        verdict
            .figure(format!("{name}, p99"), format!("{} alone, {} beside", milliseconds(before), milliseconds(after)));
        let (Some(before), Some(after)) = (before, after) else {
            verdict.require(false, || format!("the light tenant has no {name}"));
            continue;
        };
        verdict.require(after <= before * options.max_ratio || after - before <= NOISE_MS, || {
            format!("{name}: {:.1} times", after / before)
        });
    }
    verdict.figure("greedy tenant", format!("{:.1} tokens/s out", beside.tenants[GREEDY].output_tokens_per_s));
    let unserved = light_beside.requests - light_beside.finished;
    verdict.require(unserved == 0, || format!("{unserved} of the light tenant's requests were not served"));
    Ok(verdict)
}

fn tenant<C: Connect>(context: &Context<'_, C>, name: &str, arrivals: Arrivals) -> Traffic {
    Traffic { tenant: Some(name.to_owned()), ..context.chats(name, arrivals, context.options.lengths) }
}
