//! Users who go away: what they held is given back, and those who stay do not notice.

use super::{ChatLengths, CheckError, Context, failures, leaving};
use crate::arrivals::Arrivals;
use crate::http::Connect;
use crate::verdict::Verdict;

const LEAVE_AFTER_EVENTS: u32 = 4;
const BURST_EVERY_S: f64 = 5.0;
/// Long enough that whoever leaves leaves in the middle.
const OUTPUT_TOKENS: u32 = 160;

pub async fn check<C: Connect>(context: &Context<'_, C>) -> Result<Verdict, CheckError> {
    let options = &context.options;
    let mut verdict = Verdict::new(
        "disconnects",
        format!(
            "whoever disconnects holds nothing after {:.1} s, and the others get their answers",
            options.settle.as_secs_f64()
        ),
    );
    let (_, before) = context.settle().await?;
    if !before.is_idle() {
        return Err(CheckError::CannotTry(format!("the server is not idle: {before}")));
    }
    let burst = Arrivals::Burst { size: options.users, every_s: BURST_EVERY_S };
    let lengths = ChatLengths { output_tokens: OUTPUT_TOKENS, ..options.lengths };
    let mut half = context.chats("half leave", burst.clone(), lengths);
    half.leave = leaving(0.5, LEAVE_AFTER_EVENTS);
    let (_, _, mixed) = context.run(vec![half]).await?;
    let mut all = context.chats("all leave", burst, lengths);
    all.leave = leaving(1.0, LEAVE_AFTER_EVENTS);
    let (_, _, gone) = context.run(vec![all]).await?;
    let (taken, after) = context.settle().await?;
    let left = mixed.total.left + gone.total.left;
    verdict.tried(format!("{} requests, of which {left} left after {LEAVE_AFTER_EVENTS} events", {
        mixed.total.requests + gone.total.requests
    }));
    verdict.figure("stayed and were answered", mixed.total.finished.to_string());
    verdict.figure("held after the last had left", format!("{after} ({:.2} s later)", taken.as_secs_f64()));
    verdict.require(after.is_idle(), || format!("still held after {:.1} s: {after}", taken.as_secs_f64()));
    if left == 0 {
        verdict.cannot_tell("what the gone hold: nobody left in the middle of an answer");
    }
    let lost = failures(&mut verdict, &mixed.total) + failures(&mut verdict, &gone.total);
    verdict.require(lost == 0, || format!("{lost} errors: {:?} {:?}", mixed.total.errors, gone.total.errors));
    let refused = mixed.total.refused_count() + gone.total.refused_count();
    verdict.require(refused == 0, || format!("{refused} were refused: what the gone held was not given back"));
    context.require_alive(&mut verdict, "afterwards").await;
    Ok(verdict)
}
