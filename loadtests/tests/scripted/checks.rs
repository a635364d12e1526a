//! Checks of reliability: each holds for a server that keeps its promise and falls short for one that does not.

use std::time::Duration;

use passerelle_loadtests::plan::Keys;
use passerelle_loadtests::reliability::{
    CheckError, CheckOptions, Context, bombs, disconnects, idle_connections, neighbour, overload, poison,
    rolling_restart, slow_readers, soak,
};
use passerelle_loadtests::servers::ServerError;
use passerelle_loadtests::session::Session;
use passerelle_loadtests::verdict::Verdict;
use serde_json::json;

use crate::server::{Fault, Reply, Scripted, Seen, steady, virtual_time};

const MS: Duration = Duration::from_millis(1);

fn options() -> CheckOptions {
    CheckOptions { users: 8, connections: 50, rate: 2.0, run: virtual_time(), ..CheckOptions::default() }
}

fn context(session: &Session<Scripted>) -> Context<'_, Scripted> {
    Context { session, options: options(), server_pid: None }
}

fn assert_falls_short(verdict: &Verdict, why: &str) {
    assert!(verdict.broken.iter().any(|broken| broken.contains(why)), "{}", verdict.render());
}

/// Tokens come slower the more are served at once, as on one processor.
fn shared(seen: &Seen, in_flight: usize) -> Reply {
    let each = MS * 2 * in_flight as u32;
    steady(each, each)(seen)
}

#[tokio::test(start_paused = true)]
async fn overload_needs_admission() {
    let admits = Scripted::new(|seen| match seen.in_flight {
        0..=8 => shared(seen, 8),
        _ => Reply::Status { status: 429, body: json!({"error": {"code": "busy"}}).to_string() },
    });
    let verdict = overload::check(&context(&admits.session().await)).await.unwrap();
    assert!(verdict.holds(), "{}", verdict.render());
    let takes_all = Scripted::new(|seen| shared(seen, seen.in_flight));
    let verdict = overload::check(&context(&takes_all.session().await)).await.unwrap();
    assert_falls_short(&verdict, "of the admitted were served in time");
}

#[tokio::test(start_paused = true)]
async fn what_the_gone_held_must_be_given_back() {
    let server = Scripted::new(steady(20 * MS, 10 * MS));
    let verdict = disconnects::check(&context(&server.session().await)).await.unwrap();
    assert!(verdict.holds(), "{}", verdict.render());
    let leaky = Scripted::new(steady(20 * MS, 10 * MS)).with(Fault::Leaks);
    let verdict = disconnects::check(&context(&leaky.session().await)).await.unwrap();
    assert_falls_short(&verdict, "still held");
}

#[tokio::test(start_paused = true)]
async fn stuck_readers_must_not_hold_the_others_up() {
    let server = Scripted::new(steady(20 * MS, 10 * MS));
    let verdict = slow_readers::check(&context(&server.session().await)).await.unwrap();
    assert!(verdict.holds(), "{}", verdict.render());
    let stalls = Scripted::new(|seen| {
        // The others' requests are short; after the first phase they wait for nothing good.
        let waits = seen.body["max_tokens"] == 48 && (48..130).contains(&seen.number);
        steady(if waits { 900 * MS } else { 20 * MS }, 10 * MS)(seen)
    });
    let verdict = slow_readers::check(&context(&stalls.session().await)).await.unwrap();
    assert_falls_short(&verdict, "the others waited");
}

#[tokio::test(start_paused = true)]
async fn idle_connections_must_leave_the_server_serving() {
    let server = Scripted::new(steady(20 * MS, 10 * MS));
    let verdict = idle_connections::check(&context(&server.session().await)).await.unwrap();
    assert!(verdict.holds(), "{}", verdict.render());
    assert!(server.connections() >= 50);
    let full = Scripted::new(steady(20 * MS, 10 * MS)).with(Fault::Full(30));
    let verdict = idle_connections::check(&context(&full.session().await)).await.unwrap();
    assert_falls_short(&verdict, "the others waited longer, or were not served");
}

#[tokio::test(start_paused = true)]
async fn bombs_must_be_refused() {
    let server = Scripted::new(steady(20 * MS, 10 * MS));
    let verdict = bombs::check(&context(&server.session().await)).await.unwrap();
    assert!(verdict.holds(), "{}", verdict.render());
    let patient = Scripted::new(steady(20 * MS, 10 * MS)).with(Fault::Patient);
    let verdict = bombs::check(&context(&patient.session().await)).await.unwrap();
    assert_falls_short(&verdict, "a head that never ends was not refused");
}

#[tokio::test(start_paused = true)]
async fn a_greedy_neighbour_must_not_be_felt() {
    let keys = || {
        let by_tenant = ["light", "greedy"].map(|name| (name.to_owned(), format!("key-{name}")));
        Keys { default: None, by_tenant: by_tenant.into() }
    };
    let fair = Scripted::new(steady(20 * MS, 10 * MS));
    let verdict = neighbour::check(&context(&fair.session_with(keys()).await)).await.unwrap();
    assert!(verdict.holds(), "{}", verdict.render());
    let unfair = Scripted::new(|seen| shared(seen, seen.in_flight));
    let verdict = neighbour::check(&context(&unfair.session_with(keys()).await)).await.unwrap();
    assert_falls_short(&verdict, "times");
    let without_keys = neighbour::check(&context(&fair.session().await)).await;
    assert!(matches!(without_keys, Err(CheckError::CannotTry(_))));
}

/// Two servers that take a second to be replaced.
struct Replaceable {
    replace: fn() -> Result<(), ServerError>,
}

impl rolling_restart::Fleet for Replaceable {
    fn size(&self) -> usize {
        2
    }

    async fn replace(&mut self, _index: usize) -> Result<(), ServerError> {
        tokio::time::sleep(1000 * MS).await;
        (self.replace)()
    }
}

#[tokio::test(start_paused = true)]
async fn a_replaced_server_must_end_in_order_and_lose_nothing() {
    let server = Scripted::new(steady(20 * MS, 10 * MS));
    let session = server.session().await;
    let mut fleet = Replaceable { replace: || Ok(()) };
    let verdict = rolling_restart::check(&context(&session), &mut fleet, 10).await.unwrap();
    assert!(verdict.holds(), "{}", verdict.render());
    let verdict = rolling_restart::check(&context(&session), &mut fleet, 1000).await.unwrap();
    assert_falls_short(&verdict, "servers were replaced before the load ended");
    let mut stuck = Replaceable { replace: || Err(ServerError::Stuck) };
    let verdict = rolling_restart::check(&context(&session), &mut stuck, 10).await.unwrap();
    assert_falls_short(&verdict, "replacement 1: the server did not end");
    let cuts = Scripted::new(|seen| match seen.number % 7 {
        3 => Reply::Raw("data: {".to_owned()),
        _ => steady(20 * MS, 10 * MS)(seen),
    });
    let verdict = rolling_restart::check(&context(&cuts.session().await), &mut fleet, 10).await.unwrap();
    assert_falls_short(&verdict, "were lost");
}

#[tokio::test(start_paused = true)]
async fn poison_must_be_refused_one_by_one() {
    let is_poison =
        |seen: &Seen| seen.body["messages"][0]["content"] == "Hello" || !seen.body["messages"][0].is_object();
    let strict = Scripted::new(move |seen| match is_poison(seen) {
        true => Reply::Status { status: 400, body: "{}".to_owned() },
        false => steady(20 * MS, 10 * MS)(seen),
    });
    let verdict = poison::check(&context(&strict.session().await)).await.unwrap();
    assert!(verdict.holds(), "{}", verdict.render());
    let lax = Scripted::new(|_| Reply::Tokens { delays: vec![MS], text: "w".to_owned() });
    let verdict = poison::check(&context(&lax.session().await)).await.unwrap();
    assert_falls_short(&verdict, "an unknown model: Finished");
}

#[tokio::test(start_paused = true)]
async fn a_soak_sees_a_latency_that_creeps() {
    let soaked = |creep: Duration| async move {
        let server = Scripted::new(move |seen| steady(100 * MS + creep * seen.number as u32, MS)(seen));
        let session = server.session().await;
        let options = CheckOptions { duration: Duration::from_secs(120), ..options() };
        let server_pid = Some(std::process::id());
        soak::check(&Context { session: &session, options, server_pid }).await.unwrap()
    };
    let steady = soaked(Duration::ZERO).await;
    assert!(!steady.broken.iter().any(|broken| broken.contains("p99")), "{}", steady.render());
    assert_falls_short(&soaked(MS).await, "p99 grows");
}
