//! Many connections that say nothing: the others are served.
//!
//! Servers rightly hang up on who owes them a request's head for too long, so that the promise has an age: whoever has been
//! idle for less is not hung up on. (That half a head is not waited for without end is a promise of `bombs`.)

use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};

use super::{CheckError, Context};
use crate::arrivals::Arrivals;
use crate::clock::{Instant, now};
use crate::files;
use crate::generate::generate;
use crate::http::{Connect, Connection, Framing, HttpError, Request};
use crate::plan::Plan;
use crate::process::ProcFs;
use crate::record::Ending;
use crate::scenario::Scenario;
use crate::verdict::Verdict;

/// What one idle connection may cost the server.
const MAX_BYTES_PER_CONNECTION: f64 = 64.0 * 1024.0;
const MAX_RATIO: f64 = 1.5;
const NOISE_MS: f64 = 50.0;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Looked at later than this, a connection may have been idle for longer than was promised.
const LOOKED_AT_LATE: Duration = Duration::from_secs(1);
const HALF_A_REQUEST: &[u8] = b"POST /v1/chat/completions HTTP/1.1\r\nHost: ";

/// One connection that is held.
struct Idle<S> {
    connection: Connection<S>,
    /// Of its last answer, or else of the connection.
    since: Instant,
}

/// What became of those that are held.
#[derive(Debug, Default)]
struct Held {
    open: usize,
    /// Sooner than was promised.
    closed: usize,
    /// By when they were looked at, the server might do so.
    unsure: usize,
}

pub async fn check<C: Connect>(context: &Context<'_, C>) -> Result<Verdict, CheckError> {
    let (wanted, kept) = (context.options.connections, context.options.kept);
    let seconds = kept.as_secs_f64();
    let mut verdict = Verdict::new(
        "idle-connections",
        format!(
            "{wanted} idle connections leave the server serving, and none is closed before it was idle for {seconds:.0} s"
        ),
    );
    let rss = || context.server_pid.and_then(|pid| ProcFs::default().sample(&[pid], Duration::ZERO).server_rss_bytes);
    // Planned before anything is held: making prompts asks the server, too.
    let plan = plan_users(context).await?;
    let stranger = context.probe(CONNECT_TIMEOUT).await?;
    let quiet = p99(context, &plan).await;
    let before = rss();
    let (mut idle, mut why_no_more) = hold(context).await?;
    context.session.client.forget_idle();
    let answer = generate(&context.session.client, &stranger).await.ending;
    if answer != Ending::Finished {
        why_no_more.get_or_insert_with(|| format!("after {}: a chat ends with {answer:?}", idle.len()));
    }
    let busy = if why_no_more.is_none() { p99(context, &plan).await } else { None };
    let after = rss();
    let held = idle.len();
    verdict.tried(format!(
        "{held} connections held: a third never said a word, a third had an answer, a third sent half a request"
    ));
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
            let held = look_at(&mut idle, kept).await;
            verdict.number("open after being idle that long", held.open as f64, "connections");
            verdict.require(held.closed == 0, || format!("the server closed {} within {seconds:.0} s", held.closed));
            if held.unsure > 0 {
                verdict.cannot_tell(format!(
                    "whether {} were closed too soon: they were looked at late; give fewer --connections",
                    held.unsure
                ));
            }
            verdict.require(!fell_behind(quiet, busy), || "the others waited longer, or were not served".to_owned());
        }
    }
    drop(idle);
    context.require_alive(&mut verdict, "afterwards").await;
    Ok(verdict)
}

/// The users whom the idle must not disturb. They are done when half of the time is over, or the idle would have gone.
async fn plan_users<C: Connect>(context: &Context<'_, C>) -> Result<Plan, CheckError> {
    let options = &context.options;
    let users = context.chats("users", Arrivals::Constant { rate: options.rate }, options.lengths);
    let scenario = context.scenario(vec![users]);
    let duration_s = scenario.duration_s.min(options.kept.as_secs_f64() / 2.0);
    let scenario = Scenario { duration_s, ..scenario };
    Ok(context.session.plan_watched(&scenario, &options.run.progress).await?)
}

fn fell_behind(quiet: Option<f64>, busy: Option<f64>) -> bool {
    match (quiet, busy) {
        (Some(quiet), Some(busy)) => busy > quiet * MAX_RATIO && busy - quiet > NOISE_MS,
        _ => true,
    }
}

/// Each when it has been idle for `kept`: whether the server has neither closed it nor said anything on it.
async fn look_at<S: AsyncRead + AsyncWrite + Unpin>(idle: &mut [Idle<S>], kept: Duration) -> Held {
    let mut held = Held::default();
    for Idle { connection, since } in idle {
        tokio::time::sleep_until(*since + kept).await;
        // Each in a turn of its own: the runtime lets one task read only so often before it says that there is nothing.
        tokio::task::yield_now().await;
        let is_late = since.elapsed() > kept + LOOKED_AT_LATE;
        // Not by a time-out: the shortest one takes a millisecond, and thousands of them more than the server waits.
        let mut reading = pin!(connection.fill());
        match poll_fn(|context| Poll::Ready(reading.as_mut().poll(context))).await {
            Poll::Pending => held.open += 1,
            Poll::Ready(_) if is_late => held.unsure += 1,
            Poll::Ready(_) => held.closed += 1,
        }
    }
    held
}

/// As many connections as are wanted or can be had, and why there are no more.
async fn hold<C: Connect>(context: &Context<'_, C>) -> Result<(Vec<Idle<C::Stream>>, Option<String>), CheckError> {
    let wanted = context.options.connections;
    let whole = whole_request(context)?;
    let mut idle = Vec::with_capacity(wanted);
    for number in 0..wanted {
        match tokio::time::timeout(CONNECT_TIMEOUT, context.session.client.connect()).await {
            Ok(Ok(mut connection)) => {
                let begun = match number % 3 {
                    0 => Ok(()),
                    1 => connection.send(HALF_A_REQUEST).await,
                    _ => be_answered(&mut connection, &whole).await,
                };
                if begun.is_err() {
                    return Ok((idle, Some(format!("after {number}: closed at once"))));
                }
                idle.push(Idle { connection, since: now() });
            }
            Ok(Err(HttpError::Connect(error))) if is_own_limit(&error) => {
                return Err(CheckError::CannotTry(format!("{error}; {}", files::remedy(wanted))));
            }
            Ok(Err(error)) => return Ok((idle, Some(format!("after {number}: {error}")))),
            Err(_) => {
                return Ok((idle, Some(format!("after {number}: not accepted for {} s", CONNECT_TIMEOUT.as_secs()))));
            }
        }
    }
    Ok((idle, None))
}

/// A request that costs the server nothing.
fn whole_request<C: Connect>(context: &Context<'_, C>) -> Result<Vec<u8>, CheckError> {
    let key = context.session.target.keys.of(None)?;
    let request = Request { method: "GET", path: "/v1/models", api_key: key.as_deref(), body: b"" };
    Ok(context.session.client.endpoint().encode(&request))
}

/// Whatever the answer is: what counts is that the connection is between two requests.
async fn be_answered<S: AsyncRead + AsyncWrite + Unpin>(
    connection: &mut Connection<S>,
    request: &[u8],
) -> Result<(), HttpError> {
    let answering = async {
        let head = connection.exchange(request).await?;
        let (mut framing, mut body) = (Framing::of(&head), Vec::new());
        while connection.read_body(&mut framing, &mut body).await? {}
        Ok(())
    };
    tokio::time::timeout(CONNECT_TIMEOUT, answering).await.unwrap_or(Err(HttpError::Cut))
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
