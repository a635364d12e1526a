//! Many connections that say nothing: the others are served.

use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};

use super::{CheckError, Context};
use crate::arrivals::Arrivals;
use crate::clock::now;
use crate::generate::generate;
use crate::http::{Connect, Connection, HttpError};
use crate::plan::Plan;
use crate::process::ProcFs;
use crate::record::Ending;
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
    let rss = || context.server_pid.and_then(|pid| ProcFs::default().sample(&[pid], Duration::ZERO).server_rss_bytes);
    // Planned before anything is held: making prompts asks the server, too.
    let users = context.chats("users", Arrivals::Constant { rate: context.options.rate }, context.options.lengths);
    let plan = context.plan(vec![users]).await?;
    let stranger = context.probe(CONNECT_TIMEOUT).await?;
    let quiet = p99(context, &plan).await;
    let before = rss();
    let start = now();
    let (mut idle, mut why_no_more) = hold(context).await?;
    context.session.client.forget_idle();
    let answer = generate(&context.session.client, &stranger).await.ending;
    if answer != Ending::Finished {
        why_no_more.get_or_insert_with(|| format!("after {}: a chat ends with {answer:?}", idle.len()));
    }
    let busy = if why_no_more.is_none() { p99(context, &plan).await } else { None };
    let after = rss();
    let (held, open) = (idle.len(), count_open(&mut idle).await);
    let seconds = start.elapsed().as_secs_f64();
    verdict.tried(format!("{held} connections held open, half of them with half a request"));
    verdict.number("still open at the end", open as f64, "connections");
    verdict.milliseconds("p99 without them", quiet);
    verdict.milliseconds("p99 beside them", busy);
    if let (Some(before), Some(after)) = (before, after) {
        let each = after.saturating_sub(before) as f64 / held.max(1) as f64;
        verdict.number("resident size of a connection", each, "bytes");
        verdict.require(each <= MAX_BYTES_PER_CONNECTION, || format!("each cost {each:.0} bytes"));
    }
    match why_no_more {
        // A server that serves again afterwards has a bound and keeps it.
        Some(why) => verdict.cannot_tell(format!(
            "{wanted} connections: the server takes no further one {why}; raise its bound (Passerelle's \
             `max_connections`) above {wanted}"
        )),
        None => {
            verdict.require(open == held, || format!("the server closed {} within {seconds:.0} s", held - open));
            verdict.require(!fell_behind(quiet, busy), || "the others waited longer, or were not served".to_owned());
        }
    }
    drop(idle);
    context.require_alive(&mut verdict, "afterwards").await;
    Ok(verdict)
}

fn fell_behind(quiet: Option<f64>, busy: Option<f64>) -> bool {
    match (quiet, busy) {
        (Some(quiet), Some(busy)) => busy > quiet * MAX_RATIO && busy - quiet > NOISE_MS,
        _ => true,
    }
}

/// Those that the server has neither closed nor said anything on.
async fn count_open<S: AsyncRead + AsyncWrite + Unpin>(idle: &mut [Connection<S>]) -> usize {
    let mut open = 0;
    for connection in idle {
        // Each in a turn of its own: the runtime lets one task read only so often before it says that there is nothing.
        tokio::task::yield_now().await;
        open += usize::from(tokio::time::timeout(Duration::ZERO, connection.fill()).await.is_err());
    }
    open
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
                    return Ok((idle, Some(format!("after {number}: closed at once"))));
                }
                idle.push(connection);
            }
            Ok(Err(HttpError::Connect(error))) if is_own_limit(&error) => {
                return Err(CheckError::CannotTry(format!("{error}; raise `ulimit -n` above {wanted}")));
            }
            Ok(Err(error)) => return Ok((idle, Some(format!("after {number}: {error}")))),
            Err(_) => {
                return Ok((idle, Some(format!("after {number}: not accepted for {} s", CONNECT_TIMEOUT.as_secs()))));
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
