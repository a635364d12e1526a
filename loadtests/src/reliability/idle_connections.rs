//! Many connections that say nothing: the others are served.

use super::{CheckError, Context, milliseconds};
use crate::arrivals::Arrivals;
use crate::http::{Connect, HttpError};
use crate::process::ProcFs;
use crate::record::Ending;
use crate::verdict::Verdict;

/// What one idle connection may cost the server.
const MAX_BYTES_PER_CONNECTION: f64 = 64.0 * 1024.0;
const MAX_RATIO: f64 = 1.5;
const NOISE_MS: f64 = 50.0;
/// Every other connection has begun a request and goes no further.
const HALF_A_REQUEST: &[u8] = b"POST /v1/chat/completions HTTP/1.1\r\nHost: ";

pub async fn check<C: Connect>(context: &Context<'_, C>) -> Result<Verdict, CheckError> {
    let wanted = context.options.connections;
    let mut verdict = Verdict::new("idle-connections", format!("{wanted} idle connections leave the server serving"));
    let rss = || context.server_pid.map(|pid| ProcFs::default().sample(Some(pid), Default::default()).server_rss_bytes);
    let quiet = p99(context).await?;
    let before = rss();
    let mut idle = Vec::with_capacity(wanted);
    for number in 0..wanted {
        match context.session.client.connect().await {
            Ok(mut connection) => {
                if number % 2 == 1 {
                    connection.send(HALF_A_REQUEST).await?;
                }
                idle.push(connection);
            }
            Err(HttpError::Connect(error)) if is_own_limit(&error) => {
                return Err(CheckError::CannotTry(format!("{error}; raise `ulimit -n` above {wanted}")));
            }
            Err(error) => {
                verdict.figure("refused to connect after", format!("{number} connections: {error}"));
                break;
            }
        }
    }
    let busy = p99(context).await;
    let after = rss();
    verdict.tried(format!("{} connections held open, half of them with half a request", idle.len()));
    verdict.figure("p99 without them", milliseconds(quiet));
    verdict.figure("p99 beside them", milliseconds(busy.as_ref().ok().copied().flatten()));
    if let (Some(before), Some(after)) = (before, after) {
        let each = after.saturating_sub(before) as f64 / idle.len().max(1) as f64;
        verdict.figure("resident bytes a connection", format!("{each:.0}"));
        verdict.require(each <= MAX_BYTES_PER_CONNECTION, || format!("each cost {each:.0} bytes"));
    }
    let fell_behind = match (quiet, busy) {
        (Some(quiet), Ok(Some(busy))) => busy > quiet * MAX_RATIO && busy - quiet > NOISE_MS,
        _ => true,
    };
    verdict.require(!fell_behind, || "the others waited longer, or were not served".to_owned());
    drop(idle);
    let probe = context.probe().await?;
    verdict.require(probe.ending == Ending::Finished, || format!("afterwards a chat ends with {:?}", probe.ending));
    Ok(verdict)
}

async fn p99<C: Connect>(context: &Context<'_, C>) -> Result<Option<f64>, CheckError> {
    let users = context.chats("users", Arrivals::Constant { rate: context.options.rate }, context.options.lengths);
    let (_, _, figures) = context.run(vec![users]).await?;
    let served_all = figures.total.finished == figures.total.requests;
    Ok(figures.total.e2e_ms.filter(|_| served_all).map(|taken| taken.p99))
}

/// Too many open files, in this process or on this machine.
fn is_own_limit(error: &std::io::Error) -> bool {
    const EMFILE: i32 = 24;
    const ENFILE: i32 = 23;
    matches!(error.raw_os_error(), Some(EMFILE | ENFILE))
}
