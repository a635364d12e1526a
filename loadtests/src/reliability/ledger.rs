//! A server is killed in the middle of streams, again and again: its ledger neither forgets nor bills twice.

use std::time::Duration;

use super::billed::Billed;
use super::{ChatLengths, CheckError, Context};
use crate::arrivals::Arrivals;
use crate::clock::now;
use crate::http::Connect;
use crate::record::{Ending, Record};
use crate::rng::Rng;
use crate::scenario::RequestFields;
use crate::servers::Fleet;
use crate::verdict::Verdict;

/// The server writes a mark at least this often.
pub(super) const MARK_TOKENS: u64 = 16;
/// What a stream's connections may hold that the server sent and nobody read: some 64 KiB, at 256 bytes a token.
const UNREAD_TOKENS: u64 = 256;
/// Long enough that most streams are cut.
const OUTPUT_TOKENS: u32 = 1024;
/// From the first request to the kill, at random.
const KILL_AFTER: std::ops::Range<f64> = 0.05..1.0;

/// What came of one kill.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Toll {
    sent: u64,
    /// That the clients read something of.
    streams: u64,
    /// Of these, the ones that did not come to their end.
    cut: u64,
    received: u64,
    billed: Billed,
}

pub async fn check<C: Connect>(
    context: &Context<'_, C>,
    fleet: &mut impl Fleet,
    kills: usize,
) -> Result<Verdict, CheckError> {
    let mut verdict = Verdict::new(
        "ledger",
        format!("kill -9 during streams: nothing is billed twice, and at most {MARK_TOKENS} tokens a stream unbilled"),
    );
    let mut rng = Rng::new(1);
    let (mut tolls, mut longest) = (Vec::new(), Duration::ZERO);
    for round in 0..kills {
        let after = Duration::from_secs_f64(KILL_AFTER.start + rng.unit() * (KILL_AFTER.end - KILL_AFTER.start));
        let (toll, down) = kill_once(context, fleet, after).await?;
        eprintln!("kill {} of {kills}: {toll:?}", round + 1);
        longest = longest.max(down);
        tolls.push(toll);
    }
    let before = Billed::read(context).await?;
    fleet.crash(0).await.map_err(|error| CheckError::CannotTry(error.to_string()))?;
    let again = Billed::read(context).await?.since(before);
    verdict.require(again == Billed::default(), || format!("a kill of an idle server billed {again:?} more"));
    judge(&mut verdict, &tolls);
    verdict.figure("longest time from the kill to answers", format!("{:.1} s", longest.as_secs_f64()));
    context.require_alive(&mut verdict, "afterwards").await;
    Ok(verdict)
}

async fn kill_once<C: Connect>(
    context: &Context<'_, C>,
    fleet: &mut impl Fleet,
    after: Duration,
) -> Result<(Toll, Duration), CheckError> {
    let lengths = ChatLengths { output_tokens: OUTPUT_TOKENS, ..context.options.lengths };
    let burst = Arrivals::Burst { size: context.options.users, every_s: f64::from(u32::MAX) };
    let mut streams = context.chats("streams", burst, lengths);
    // Without it, what a cut stream had brought would be known only by its events.
    let usage = toml::toml! { stream_options = { include_usage = true, continuous_usage_stats = true } };
    streams.request = RequestFields { extra: usage, ..streams.request };
    let plan = context.plan(vec![streams]).await?;
    // Counting the prompts' tokens is billed as requests too.
    let before = Billed::at_rest(context).await?;
    let kill = async {
        tokio::time::sleep(after).await;
        let start = now();
        fleet.crash(0).await.map(|()| start.elapsed())
    };
    let ((run, _), down) = tokio::join!(context.carry_out(&plan), kill);
    let down = down.map_err(|error| CheckError::CannotTry(error.to_string()))?;
    let billed = Billed::read(context).await?.since(before);
    let read: Vec<&Record> = run.records.iter().filter(|record| record.output_tokens() > 0).collect();
    let (sent, streams) = (run.records.len() as u64, read.len() as u64);
    let cut = read.iter().filter(|record| record.ending != Ending::Finished).count() as u64;
    let received = read.iter().map(|record| record.output_tokens()).sum();
    Ok((Toll { sent, streams, cut, received, billed }, down))
}

fn judge(verdict: &mut Verdict, tolls: &[Toll]) {
    let sum = |of: fn(&Toll) -> u64| tolls.iter().map(of).sum::<u64>();
    verdict.tried(format!("{} kills, {} streams that were read", tolls.len(), sum(|toll| toll.streams)));
    verdict.figure("tokens received", sum(|toll| toll.received).to_string());
    verdict.figure("tokens billed", sum(|toll| toll.billed.output_tokens).to_string());
    let worst = tolls.iter().map(|toll| toll.unbilled() as f64 / toll.streams.max(1) as f64).fold(0.0, f64::max);
    verdict.figure("unbilled tokens a stream, worst kill", format!("{worst:.1}"));
    verdict.require(sum(|toll| toll.received) > 0, || "no stream brought anything before its kill".to_owned());
    let midway = tolls.iter().filter(|toll| toll.cut > 0).count();
    if 2 * midway < tolls.len() {
        let kills = tolls.len();
        verdict
            .cannot_tell(format!("what a kill does to streams: {midway} of {kills} cut one; try on a machine at rest"));
    }
    for (kill, toll) in tolls.iter().enumerate() {
        let (unbilled, bound) = (toll.unbilled(), MARK_TOKENS * toll.streams);
        verdict.require(unbilled <= bound, || format!("kill {}: {unbilled} tokens are unbilled: {toll:?}", kill + 1));
        let (sent, requests) = (toll.sent, toll.billed.requests);
        verdict.require(requests <= sent, || format!("kill {}: {requests} requests billed of {sent} sent", kill + 1));
        let beyond = toll.billed.output_tokens.saturating_sub(toll.received);
        let bound = UNREAD_TOKENS * toll.streams;
        verdict.require(beyond <= bound, || format!("kill {}: {beyond} tokens too many: {toll:?}", kill + 1));
    }
}

impl Toll {
    fn unbilled(&self) -> u64 {
        self.received.saturating_sub(self.billed.output_tokens)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verdict::Outcome;

    fn judged(received: u64, output_tokens: u64) -> Verdict {
        let mut verdict = Verdict::new("ledger", "");
        judge(&mut verdict, &[toll(received, Billed { requests: 2, output_tokens })]);
        verdict
    }

    fn toll(received: u64, billed: Billed) -> Toll {
        Toll { sent: 2, streams: 2, cut: 2, received, billed }
    }

    #[test]
    fn kills_between_streams_tell_nothing_of_those_that_are_cut() {
        let midway = toll(20, Billed { requests: 2, output_tokens: 20 });
        let outcome = |cuts: [u64; 3]| {
            let mut verdict = Verdict::new("ledger", "");
            judge(&mut verdict, &cuts.map(|cut| Toll { cut, ..midway }));
            verdict.outcome()
        };
        assert_eq!([outcome([2, 0, 1]), outcome([0, 0, 2])], [Outcome::Holds, Outcome::CannotTell]);
    }

    #[test]
    fn a_request_that_is_billed_twice_falls_short_however_few_its_tokens() {
        let mut verdict = Verdict::new("ledger", "");
        judge(&mut verdict, &[toll(20, Billed { requests: 3, output_tokens: 40 })]);
        assert_eq!(verdict.broken, ["kill 1: 3 requests billed of 2 sent"]);
    }

    #[test]
    fn a_ledger_that_forgets_or_bills_twice_falls_short() {
        assert!(judged(100, 100).holds() && judged(100, 68).holds() && judged(100, 228).holds());
        assert!(!judged(100, 67).holds(), "more than a mark of each stream is lost");
        assert!(!judged(1000, 2000).holds(), "everything is billed twice");
        assert!(!judged(0, 0).holds(), "nothing was tried");
    }
}
