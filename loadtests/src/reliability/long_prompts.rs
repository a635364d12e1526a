//! Streams beside long prompts: how much longer the gaps between their tokens get.

use super::{ChatLengths, CheckError, Context, milliseconds, require_answers};
use crate::arrivals::Arrivals;
use crate::figures::Figures;
use crate::http::Connect;
use crate::scenario::Traffic;
use crate::verdict::Verdict;

const STREAMS: &str = "streams";
const LONG: &str = "long prompts";
/// Of a stream, so that most of its gaps lie beside a prompt.
const OUTPUT_TOKENS: u32 = 256;
/// With fewer, a p99 of the gaps need not have met one.
const MIN_PROMPTS: u64 = 10;

pub async fn check<C: Connect>(context: &Context<'_, C>) -> Result<Verdict, CheckError> {
    let (users, most_ms) = (context.options.users, context.options.max_added_ms);
    let long_tokens = context.options.long_prompt_tokens;
    let mut verdict = Verdict::new(
        "long-prompts",
        format!(
            "prompts of {long_tokens} tokens, one after the other, make the p99 of a stream's gaps at most {most_ms} ms longer"
        ),
    );
    let (_, _, alone) = context.run(vec![streams(context)]).await?;
    let (_, _, beside) = context.run(vec![streams(context), long_prompts(context)]).await?;
    let (alone, prompts, beside) = (&alone.traffic[STREAMS], &beside.traffic[LONG], &beside.traffic[STREAMS]);
    [alone, beside].into_iter().try_for_each(require_answers)?;
    verdict.tried(format!(
        "{users} streams at once of {OUTPUT_TOKENS} tokens, {} alone and {} beside {} prompts",
        alone.finished, beside.finished, prompts.finished
    ));
    for (name, of) in [("alone", alone), ("beside long prompts", beside)] {
        let gaps = |quantile: fn(crate::figures::Quantiles) -> f64| milliseconds(of.itl_ms.map(quantile));
        let (p50, p90, p99, max) = (gaps(|of| of.p50), gaps(|of| of.p90), gaps(|of| of.p99), gaps(|of| of.max));
        verdict.figure(format!("gaps {name}"), format!("{p50} p50, {p90} p90, {p99} p99, {max} at most"));
    }
    verdict.milliseconds("a long prompt's first token, p50", prompts.ttft_ms.map(|ttft| ttft.p50));
    let p99 = |of: &Figures| of.itl_ms.map(|gaps| gaps.p99);
    let added = p99(beside).zip(p99(alone)).map(|(beside, alone)| beside - alone);
    verdict.milliseconds("added to the p99", added);
    verdict.require(added.is_some_and(|added| added <= most_ms), || format!("{} were added", milliseconds(added)));
    let unserved = beside.requests - beside.finished;
    verdict.require(unserved == 0, || format!("{unserved} streams were not served beside long prompts"));
    if prompts.finished < MIN_PROMPTS {
        verdict.cannot_tell(format!("only {} long prompts came: give a longer --duration", prompts.finished));
    }
    Ok(verdict)
}

fn streams<C: Connect>(context: &Context<'_, C>) -> Traffic {
    let lengths = ChatLengths { output_tokens: OUTPUT_TOKENS, ..context.options.lengths };
    context.chats(STREAMS, Arrivals::Closed { concurrency: context.options.users }, lengths)
}

fn long_prompts<C: Connect>(context: &Context<'_, C>) -> Traffic {
    let lengths = ChatLengths { prompt_tokens: context.options.long_prompt_tokens, output_tokens: 1 };
    context.chats(LONG, Arrivals::Closed { concurrency: 1 }, lengths)
}
