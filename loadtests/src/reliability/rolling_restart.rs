//! Servers behind one address are replaced one after the other while streams run: nobody's request is lost.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::{ChatLengths, CheckError, Context, failures, milliseconds};
use crate::arrivals::Arrivals;
use crate::clock::now;
use crate::http::Connect;
use crate::servers::{Fleet, ServerError};
use crate::verdict::Verdict;

/// Long enough that replacements meet streams.
const OUTPUT_TOKENS: u32 = 1024;

#[derive(Debug, Default)]
struct Replaced {
    count: usize,
    longest: Duration,
    /// Ends the replacing.
    failure: Option<ServerError>,
}

/// Of fewer than `handovers` servers that were replaced while `context`'s load ran, it cannot tell.
pub async fn check<C: Connect>(
    context: &Context<'_, C>,
    fleet: &mut impl Fleet,
    handovers: usize,
) -> Result<Verdict, CheckError> {
    let options = &context.options;
    let mut verdict = Verdict::new(
        "rolling-restart",
        format!("{handovers} servers are replaced under streaming load, and no request is lost"),
    );
    let lengths = ChatLengths { output_tokens: OUTPUT_TOKENS, ..options.lengths };
    let users = context.chats("users", Arrivals::Poisson { rate: options.rate }, lengths);
    let plan = context.plan(vec![users]).await?;
    let load_is_over = AtomicBool::new(false);
    let load = async {
        let done = context.carry_out(&plan).await;
        load_is_over.store(true, Ordering::Relaxed);
        done
    };
    let ((_, figures), replaced) = tokio::join!(load, replace_in_turn(fleet, &load_is_over));
    let total = &figures.total;
    verdict.tried(format!(
        "{} streamed chats over {:.0} s, {} servers behind one address",
        total.requests,
        options.duration.as_secs_f64(),
        fleet.size()
    ));
    verdict.figure("servers replaced meanwhile", replaced.count.to_string());
    verdict.figure("longest replacement", format!("{:.1} s", replaced.longest.as_secs_f64()));
    verdict.figure("answered in full", total.finished.to_string());
    verdict.figure("time to first token, p99", milliseconds(total.ttft_ms.as_ref().map(|ttft| ttft.p99)));
    if let Some(failure) = &replaced.failure {
        verdict.require(false, || format!("replacement {}: {failure}", replaced.count + 1));
    }
    if replaced.count < handovers && replaced.failure.is_none() {
        let count = replaced.count;
        verdict
            .cannot_tell(format!("only {count} servers were replaced before the load ended: give a longer --duration"));
    }
    let lost = failures(&mut verdict, total);
    verdict.require(lost == 0, || format!("{lost} were lost: {:?}", total.errors));
    verdict.require(total.refused_count() == 0, || format!("{} were refused", total.refused_count()));
    context.require_alive(&mut verdict, "afterwards").await;
    Ok(verdict)
}

/// A replacement that began is finished also when the load is over.
async fn replace_in_turn(fleet: &mut impl Fleet, load_is_over: &AtomicBool) -> Replaced {
    let mut replaced = Replaced::default();
    while !load_is_over.load(Ordering::Relaxed) {
        let start = now();
        if let Err(failure) = fleet.replace(replaced.count % fleet.size()).await {
            replaced.failure = Some(failure);
            break;
        }
        replaced.count += 1;
        replaced.longest = replaced.longest.max(start.elapsed());
    }
    replaced
}
