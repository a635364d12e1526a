//! The disk under the data directory fills up while a server runs: it refuses clearly, resumes, and loses nothing.

use std::time::Duration;

use super::billed::Billed;
use super::ledger::MARK_TOKENS;
use super::{CheckError, Context};
use crate::ballast::Disk;
use crate::clock::{Instant, now};
use crate::generate::{Answer, Call, generate};
use crate::http::Connect;
use crate::record::{Ending, ErrorKind};
use crate::servers::Fleet;
use crate::verdict::Verdict;

const RECOVERY: Duration = Duration::from_secs(5);
/// Answers and refusals come sooner.
const PATIENCE: Duration = Duration::from_secs(10);
/// Between two askings whether it serves again.
const ASK_EVERY: Duration = Duration::from_millis(100);

/// One chat, asked for again and again.
#[derive(Debug)]
struct Asked {
    call: Call,
    finished: u64,
    tokens: u64,
    refused: u64,
    /// Of the refused: streams that could not go on.
    cut_short: u64,
    /// Neither answered nor refused in order.
    broken: Vec<Ending>,
}

pub async fn check<C: Connect>(
    context: &Context<'_, C>,
    fleet: &mut impl Fleet,
    disk: &mut impl Disk,
) -> Result<Verdict, CheckError> {
    let promise = format!(
        "on a full disk requests are refused in words, within {} s of room they are served, and nothing settled is lost",
        RECOVERY.as_secs()
    );
    let mut verdict = Verdict::new("full-disk", promise);
    let before = Billed::read(context).await?;
    // Made before: its prompt is counted by the server.
    let call = Call { timeout: PATIENCE, ..context.call(context.options.lengths, 0).await? };
    let mut asked = Asked { call, finished: 0, tokens: 0, refused: 0, cut_short: 0, broken: Vec::new() };
    asked.one(context).await;
    verdict.require(asked.finished == 1, || format!("before, a chat ends with {:?}", asked.broken));
    disk.fill().map_err(|error| CheckError::CannotTry(error.to_string()))?;
    let enough = u64::from(context.options.users);
    asked.until(context, now() + context.options.duration, |asked| asked.refused >= enough).await;
    let while_full = (asked.finished - 1, asked.refused);
    disk.free().map_err(|error| CheckError::CannotTry(error.to_string()))?;
    let freed = now();
    let answered = asked.finished;
    asked.until(context, freed + RECOVERY, |asked| asked.finished > answered).await;
    let resumed = freed.elapsed();
    verdict.tried(format!("{} chats, {} of them on a full disk", asked.count(), while_full.0 + while_full.1));
    verdict.figure("refused on a full disk", while_full.1.to_string());
    verdict.figure("answered all the same", while_full.0.to_string());
    verdict.figure("served again after", format!("{:.2} s", resumed.as_secs_f64()));
    verdict.require(while_full.1 > 0, || "nothing was refused: is --fill where the server keeps its data?".to_owned());
    verdict.require(asked.finished > answered, || format!("not served again within {} s", RECOVERY.as_secs()));
    verdict.require(asked.broken.is_empty(), || format!("neither answered nor refused: {:?}", asked.broken));
    fleet.crash(0).await.map_err(|error| CheckError::CannotTry(error.to_string()))?;
    let billed = Billed::read(context).await?.since(before);
    verdict.figure("tokens received, and billed after a kill", format!("{}, {}", asked.tokens, billed.output_tokens));
    let missing = asked.tokens.saturating_sub(billed.output_tokens);
    verdict.require(missing <= MARK_TOKENS * while_full.0, || {
        format!("{missing} tokens that were answered are not billed")
    });
    let excess = billed.output_tokens.saturating_sub(asked.tokens);
    verdict.require(excess <= MARK_TOKENS * asked.cut_short, || {
        format!("{excess} tokens that nobody received are billed, and {} streams were cut short", asked.cut_short)
    });
    context.require_alive(&mut verdict, "afterwards").await;
    Ok(verdict)
}

impl Asked {
    async fn until<C: Connect>(
        &mut self,
        context: &Context<'_, C>,
        deadline: Instant,
        is_enough: impl Fn(&Self) -> bool,
    ) {
        while !is_enough(self) && now() < deadline {
            self.one(context).await;
            tokio::time::sleep(ASK_EVERY).await;
        }
    }

    async fn one<C: Connect>(&mut self, context: &Context<'_, C>) {
        let answer = generate(&context.session.client, &self.call).await;
        self.take(answer);
    }

    fn take(&mut self, answer: Answer) {
        self.tokens += answer.usage.map_or(answer.events.len() as u64, |usage| usage.output_tokens);
        match answer.ending {
            Ending::Finished => self.finished += 1,
            Ending::Refused { status: 503, .. } => self.refused += 1,
            // A stream that cannot go on says so in an event.
            Ending::Failed(ErrorKind::StreamError) => {
                self.refused += 1;
                self.cut_short += 1;
            }
            other => self.broken.push(other),
        }
    }

    fn count(&self) -> u64 {
        self.finished + self.refused + self.broken.len() as u64
    }
}
