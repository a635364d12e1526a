//! Readers who ask and then do not read: the others are served as if they read.

use super::{ChatLengths, CheckError, Context, milliseconds};
use crate::arrivals::Arrivals;
use crate::figures::{Quantiles, ms};
use crate::http::{Connect, Connection, Request};
use crate::plan::Plan;
use crate::run::Run;
use crate::verdict::Verdict;

/// Much for a socket's buffer, so that the server has to keep or cut.
const OUTPUT_TOKENS: u32 = 256;
const OTHERS: &str = "others";
const MAX_RATIO: f64 = 1.5;
/// Below it a ratio says more about the machine's noise than about the server.
const NOISE_MS: f64 = 50.0;

pub async fn check<C: Connect>(context: &Context<'_, C>) -> Result<Verdict, CheckError> {
    let users = context.options.users;
    let mut verdict = Verdict::new(
        "slow-readers",
        format!("{users} readers who do not read cost the others no more than {users} who do"),
    );
    let (mut beside_readers, mut beside_stuck) = (Others::default(), Others::default());
    // Each twice and in both orders, so that a machine that gets slower or quicker meanwhile favours neither.
    readers(context, &mut beside_readers).await?;
    let first = stuck_readers(context, &mut beside_stuck).await?;
    let second = stuck_readers(context, &mut beside_stuck).await?;
    let settled = context.settle().await;
    readers(context, &mut beside_readers).await?;
    let stuck = first.len() + second.len();
    let (read, unread) = (beside_readers.p90(), beside_stuck.p90());
    verdict.tried(format!(
        "{stuck} streams of {OUTPUT_TOKENS} tokens whose reader never reads, beside {} requests",
        beside_stuck.taken_ms.len()
    ));
    verdict.figure("others' p90 beside readers", milliseconds(read));
    verdict.figure("others' p90 beside stuck readers", milliseconds(unread));
    match settled {
        Ok((taken, held)) => {
            verdict.figure("held while they are still stuck", format!("{held} ({:.2} s later)", taken.as_secs_f64()));
            verdict.require(held.is_idle(), || format!("stuck readers still hold {held}"));
        }
        Err(error) => verdict.cannot_tell(format!("what stuck readers hold: {error}")),
    }
    let fell_behind = match (read, unread) {
        (Some(read), Some(unread)) => unread > read * MAX_RATIO && unread - read > NOISE_MS,
        _ => true,
    };
    verdict.require(!fell_behind, || {
        format!("the others waited {} instead of {}", milliseconds(unread), milliseconds(read))
    });
    verdict.require(beside_stuck.unserved == 0, || format!("{} of the others were not served", beside_stuck.unserved));
    drop((first, second));
    context.require_alive(&mut verdict, "afterwards").await;
    Ok(verdict)
}

/// How those fared who should not notice.
#[derive(Default)]
struct Others {
    taken_ms: Vec<f64>,
    unserved: usize,
}

impl Others {
    fn add(&mut self, plan: &Plan, run: &Run) {
        let theirs = run.records.iter().filter(|record| plan.traffic[record.traffic].name == OTHERS);
        for record in theirs {
            if record.is_finished() {
                self.taken_ms.push(ms(record.end_to_end()));
            } else {
                self.unserved += 1;
            }
        }
    }

    fn p90(&self) -> Option<f64> {
        Quantiles::of(self.taken_ms.iter().copied()).map(|quantiles| quantiles.p90)
    }
}

async fn readers<C: Connect>(context: &Context<'_, C>, others: &mut Others) -> Result<(), CheckError> {
    let burst = Arrivals::Burst { size: context.options.users, every_s: context.options.duration.as_secs_f64() };
    let reading = context.chats("readers", burst, long(context));
    let (plan, run, _) = context.run(vec![reading, chats_of_others(context)]).await?;
    others.add(&plan, &run);
    Ok(())
}

/// The connections are still held when the others are done.
async fn stuck_readers<C: Connect>(
    context: &Context<'_, C>,
    others: &mut Others,
) -> Result<Vec<Connection<C::Stream>>, CheckError> {
    let stuck = ask_and_do_not_read(context, long(context)).await?;
    let (plan, run, _) = context.run(vec![chats_of_others(context)]).await?;
    others.add(&plan, &run);
    Ok(stuck)
}

fn long<C: Connect>(context: &Context<'_, C>) -> ChatLengths {
    ChatLengths { output_tokens: OUTPUT_TOKENS, ..context.options.lengths }
}

fn chats_of_others<C: Connect>(context: &Context<'_, C>) -> crate::scenario::Traffic {
    context.chats(OTHERS, Arrivals::Constant { rate: context.options.rate }, context.options.lengths)
}

/// Connections with a question asked, of whose answer not a byte is read.
async fn ask_and_do_not_read<C: Connect>(
    context: &Context<'_, C>,
    lengths: ChatLengths,
) -> Result<Vec<Connection<C::Stream>>, CheckError> {
    let client = &context.session.client;
    let mut stuck = Vec::new();
    for number in 0..context.options.users {
        let call = context.call(lengths, number.into()).await?;
        let request = Request {
            method: "POST",
            path: call.route.path(),
            api_key: call.api_key.as_deref(),
            body: call.body.as_bytes(),
        };
        let mut connection = client.connect_narrow().await?;
        connection.send(&client.endpoint().encode(&request)).await?;
        stuck.push(connection);
    }
    Ok(stuck)
}
