//! Readers who ask and then do not read: the others are served as if they read.

use super::{ChatLengths, CheckError, Context, milliseconds};
use crate::arrivals::Arrivals;
use crate::figures::RunFigures;
use crate::http::{Connect, Connection, Request};
use crate::record::Ending;
use crate::verdict::Verdict;

/// Much for a socket's buffer, so that the server has to keep or cut.
const OUTPUT_TOKENS: u32 = 256;
const MAX_RATIO: f64 = 1.5;
/// Below it a ratio says more about the machine's noise than about the server.
const NOISE_MS: f64 = 50.0;

pub async fn check<C: Connect>(context: &Context<'_, C>) -> Result<Verdict, CheckError> {
    let users = context.options.users;
    let mut verdict = Verdict::new(
        "slow-readers",
        format!("{users} readers who do not read cost the others no more than {users} who do"),
    );
    let lengths = ChatLengths { output_tokens: OUTPUT_TOKENS, ..context.options.lengths };
    let burst = Arrivals::Burst { size: users, every_s: context.options.duration.as_secs_f64() };
    let reading = context.chats("readers", burst, lengths);
    let (_, _, with_readers) = context.run(vec![reading, others(context)]).await?;
    let stuck = ask_and_do_not_read(context, lengths).await?;
    let (_, _, with_stuck) = context.run(vec![others(context)]).await?;
    let settled = context.settle().await.ok();
    let (read, unread) = (p99(&with_readers), p99(&with_stuck));
    verdict.tried(format!(
        "{} streams of {OUTPUT_TOKENS} tokens whose reader never reads, beside {} requests",
        stuck.len(),
        with_stuck.total.requests
    ));
    verdict.figure("others' p99 beside readers", milliseconds(read));
    verdict.figure("others' p99 beside stuck readers", milliseconds(unread));
    if let Some((taken, held)) = settled {
        verdict.figure("held while they are still stuck", format!("{held} ({:.2} s later)", taken.as_secs_f64()));
        verdict.require(held.is_idle(), || format!("stuck readers still hold {held}"));
    }
    let fell_behind = match (read, unread) {
        (Some(read), Some(unread)) => unread > read * MAX_RATIO && unread - read > NOISE_MS,
        _ => true,
    };
    verdict.require(!fell_behind, || {
        format!("the others waited {} instead of {}", milliseconds(unread), milliseconds(read))
    });
    let errors = &with_stuck.traffic["others"].errors;
    verdict.require(errors.is_empty(), || format!("the others saw errors: {errors:?}"));
    drop(stuck);
    let probe = context.probe().await?;
    verdict.require(probe.ending == Ending::Finished, || format!("afterwards a chat ends with {:?}", probe.ending));
    Ok(verdict)
}

fn others<C: Connect>(context: &Context<'_, C>) -> crate::scenario::Traffic {
    context.chats("others", Arrivals::Constant { rate: context.options.rate }, context.options.lengths)
}

fn p99(figures: &RunFigures) -> Option<f64> {
    figures.traffic["others"].e2e_ms.map(|taken| taken.p99)
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
