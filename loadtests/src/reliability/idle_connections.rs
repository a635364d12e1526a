//! Many connections that say nothing: the others are served.

use std::time::Duration;

use super::{CheckError, Context, milliseconds};
use crate::arrivals::Arrivals;
use crate::http::{Connect, Connection, HttpError};
use crate::plan::Plan;
use crate::process::ProcFs;
use crate::verdict::Verdict;

/// What one idle connection may cost the server.
const MAX_BYTES_PER_CONNECTION: f64 = 64.0 * 1024.0;
const MAX_RATIO: f64 = 1.5;
const NOISE_MS: f64 = 50.0;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Every other connection has begun a request and goes no further.
const HALF_A_REQUEST: &[u8] = b"POST /v1/chat/completions HTTP/1.1\r\nHost: ";

pub async fn check<C: Connect>(context: &Context<'_, C>) -> Result<Verdict, CheckError> {
    let wanted = context.options.connections;
    let mut verdict = Verdict::new("idle-connections", format!("{wanted} idle connections leave the server serving"));
    let rss = || context.server_pid.map(|pid| ProcFs::default().sample(&[pid], Duration::ZERO).server_rss_bytes);
    // Planned before anything is held: making prompts asks the server, too.
    let users = context.chats("users", Arrivals::Constant { rate: context.options.rate }, context.options.lengths);
    let plan = context.plan(vec![users]).await?;
    let quiet = p99(context, &plan).await;
    let before = rss();
    let (idle, why_no_more) = hold(context).await?;
    if let Some(why) = why_no_more {
        verdict.figure("no further connection", why);
    }
    let busy = p99(context, &plan).await;
    let after = rss();
    verdict.tried(format!("{} connections held open, half of them with half a request", idle.len()));
    verdict.figure("p99 without them", milliseconds(quiet));
    verdict.figure("p99 beside them", milliseconds(busy));
    if let (Some(before), Some(after)) = (before, after) {
        let each = after.saturating_sub(before) as f64 / idle.len().max(1) as f64;
        verdict.figure("resident bytes a connection", format!("{each:.0}"));
        verdict.require(each <= MAX_BYTES_PER_CONNECTION, || format!("each cost {each:.0} bytes"));
    }
    let fell_behind = match (quiet, busy) {
        (Some(quiet), Some(busy)) => busy > quiet * MAX_RATIO && busy - quiet > NOISE_MS,
        _ => true,
    };
    verdict.require(!fell_behind, || "the others waited longer, or were not served".to_owned());
    drop(idle);
    context.require_alive(&mut verdict, "afterwards").await;
    Ok(verdict)
}

/// As many connections as are wanted or can be had, and why there are no more.
async fn hold<C: Connect>(
    context: &Context<'_, C>,
) -> Result<(Vec<Connection<C::Stream>>, Option<String>), CheckError> {
    let wanted = context.options.connections;
    let mut idle = Vec::with_capacity(wanted);
    for number in 0..wanted {
        match tokio::time::timeout(CONNECT_TIMEOUT, context.session.client.connect()).await {
            Ok(Ok(mut connection)) => {
                if number % 2 == 1 && connection.send(HALF_A_REQUEST).await.is_err() {
                    return Ok((idle, Some(format!("closed at once after {number}"))));
                }
                idle.push(connection);
            }
            Ok(Err(HttpError::Connect(error))) if is_own_limit(&error) => {
                return Err(CheckError::CannotTry(format!("{error}; raise `ulimit -n` above {wanted}")));
            }
            Ok(Err(error)) => return Ok((idle, Some(format!("after {number}: {error}")))),
            Err(_) => {
                return Ok((idle, Some(format!("not accepted for {} s after {number}", CONNECT_TIMEOUT.as_secs()))));
            }
        }
    }
    Ok((idle, None))
}

/// Of users who come as strangers, where all are served: a connection from before would not show that new ones are taken.
async fn p99<C: Connect>(context: &Context<'_, C>, plan: &Plan) -> Option<f64> {
    context.session.client.forget_idle();
    let (_, figures) = context.carry_out(plan).await;
    let served_all = figures.total.finished == figures.total.requests;
    figures.total.e2e_ms.filter(|_| served_all).map(|taken| taken.p99)
}

/// Too many open files, in this process or on this machine.
fn is_own_limit(error: &std::io::Error) -> bool {
    const EMFILE: i32 = 24;
    const ENFILE: i32 = 23;
    matches!(error.raw_os_error(), Some(EMFILE | ENFILE))
}
