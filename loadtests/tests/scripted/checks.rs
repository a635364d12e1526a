//! Checks of reliability: each holds for a server that keeps its promise and falls short for one that does not.

use std::io::{Read, Write};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use passerelle_loadtests::ballast::{BallastError, Disk};
use passerelle_loadtests::plan::Keys;
use passerelle_loadtests::reliability::{
    CheckError, CheckOptions, Context, bombs, disconnects, full_disk, idle_connections, ledger, long_prompts,
    neighbour, overload, poison, rolling_restart, slow_readers, soak,
};
use passerelle_loadtests::servers::{Fleet, ServerError};
use passerelle_loadtests::session::Session;
use passerelle_loadtests::verdict::{Outcome, Verdict};
use serde_json::json;

use crate::server::{Fault, Reply, Scripted, Seen, steady, virtual_time};

const MS: Duration = Duration::from_millis(1);

fn options() -> CheckOptions {
    CheckOptions { users: 8, connections: 50, rate: 2.0, run: virtual_time(), ..CheckOptions::default() }
}

fn context(session: &Session<Scripted>) -> Context<'_, Scripted> {
    Context::new(session, options(), None)
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
    let figure = |name: &str| verdict.figures.iter().find(|figure| figure.name == name).expect("it is reported");
    let capacity = figure("capacity").measured.expect("it is a number").number;
    // Eight users, 48 tokens of 16 ms each.
    assert!((capacity / (8.0 / 0.768) - 1.0).abs() < 0.1, "{capacity} requests/s");
    assert_eq!(figure("in time is").value, "first token within 5000 ms, each further token within 250 ms");
    for factor in [2, 4, 10] {
        let left = figure(&format!("{factor} times: throughput left of the capacity")).measured.expect("a number");
        assert!(left.number > 80.0, "{}", verdict.render());
    }
    let takes_all = Scripted::new(|seen| shared(seen, seen.in_flight));
    let session = takes_all.session().await;
    // Enough to be seen: with everybody admitted, ten times the capacity takes a while to work off.
    let options = CheckOptions { factors: vec![4.0], ..options() };
    let verdict = overload::check(&Context::new(&session, options, None)).await.unwrap();
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
    // Whole answers in one piece: nobody can leave in the middle.
    let text = json!({"choices": [{"delta": {"content": "w "}}]});
    let said = format!("data: {text}\n\n").repeat(9) + "data: [DONE]\n\n";
    let at_once = Scripted::new(move |_| Reply::Raw(said.clone()));
    let verdict = disconnects::check(&context(&at_once.session().await)).await.unwrap();
    assert_eq!(verdict.outcome(), Outcome::CannotTell, "{}", verdict.render());
    assert!(verdict.undecided[0].contains("nobody left in the middle of an answer"), "{}", verdict.render());
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
async fn idle_connections_must_be_held_and_leave_the_server_serving() {
    // The server hangs up on who owes it a head for 15 s.
    let judged = |fault: Option<Fault>, kept: u64| async move {
        let server = Scripted::new(steady(20 * MS, 10 * MS));
        let server = fault.into_iter().fold(server, Scripted::with);
        let session = server.session().await;
        let options = CheckOptions { kept: Duration::from_secs(kept), ..options() };
        idle_connections::check(&Context::new(&session, options, None)).await.unwrap()
    };
    let verdict = judged(None, 14).await;
    assert!(verdict.holds() && verdict.tried.starts_with("50 connections"), "{}", verdict.render());
    assert_falls_short(&judged(None, 16).await, "the server closed 50 within 16 s");
    assert_falls_short(&judged(Some(Fault::Full(30)), 14).await, "afterwards");
    let bounded = judged(Some(Fault::Places(30)), 14).await;
    assert_eq!(bounded.outcome(), Outcome::CannotTell, "{}", bounded.render());
    assert!(bounded.undecided[0].contains("raise its bound"), "{}", bounded.render());
}

#[tokio::test(start_paused = true)]
async fn bombs_must_be_refused() {
    let server = Scripted::new(steady(20 * MS, 10 * MS));
    let verdict = bombs::check(&context(&server.session().await)).await.unwrap();
    assert_eq!((verdict.outcome(), verdict.broken.len()), (Outcome::CannotTell, 0), "{}", verdict.render());
    assert!(verdict.undecided[0].contains("give its --server-pid"), "{}", verdict.render());
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
    let number = |name: &str| {
        let figure = verdict.figures.iter().find(|figure| figure.name == name).expect("it is reported");
        figure.measured.expect("it is a number").number
    };
    // One step of 10 ms is waited for, and 47 follow the first token.
    assert!((number("time to first token, p99 in an ideal batch") - 30.0).abs() < 3.0, "{}", verdict.render());
    assert!((number("end to end, p99 in an ideal batch") - 500.0).abs() < 5.0, "{}", verdict.render());
    assert!((number("end to end, p99 of half a server") - 980.0).abs() < 5.0, "{}", verdict.render());
    let unfair = Scripted::new(|seen| shared(seen, seen.in_flight));
    let verdict = neighbour::check(&context(&unfair.session_with(keys()).await)).await.unwrap();
    assert_falls_short(&verdict, "times");
    let without_keys = neighbour::check(&context(&fair.session().await)).await;
    assert!(matches!(without_keys, Err(CheckError::CannotTry(_))));
}

#[tokio::test(start_paused = true)]
async fn long_prompts_must_not_hold_streams_up() {
    // A ninth request is a long prompt, beside the eight streams.
    let gap = |beside: Duration| {
        Scripted::new(move |seen| steady(20 * MS, if seen.in_flight > 8 { beside } else { 10 * MS })(seen))
    };
    let judged = |server: Scripted| async move {
        let session = server.session().await;
        long_prompts::check(&context(&session)).await.unwrap()
    };
    let verdict = judged(gap(210 * MS)).await;
    assert!(verdict.holds(), "{}", verdict.render());
    let added =
        verdict.figures.iter().find(|figure| figure.name == "added to the p99").and_then(|figure| figure.measured);
    assert!((added.expect("it is a number").number - 200.0).abs() < 1.0, "{}", verdict.render());
    assert_falls_short(&judged(gap(270 * MS)).await, "260 ms were added");
}

/// Two servers that take a second to be replaced.
struct Replaceable {
    replace: fn() -> Result<(), ServerError>,
}

impl Fleet for Replaceable {
    fn size(&self) -> usize {
        2
    }

    async fn replace(&mut self, _index: usize) -> Result<(), ServerError> {
        tokio::time::sleep(1000 * MS).await;
        (self.replace)()
    }

    async fn crash(&mut self, index: usize) -> Result<(), ServerError> {
        self.replace(index).await
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
    assert_eq!(verdict.outcome(), Outcome::CannotTell, "{}", verdict.render());
    assert!(verdict.undecided[0].contains("servers were replaced before the load ended"), "{}", verdict.render());
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

/// Streams are cut after 20 tokens; the server says that this many of each were billed.
async fn cut_and_billed(each: u64) -> Verdict {
    let events = |_: &Seen| {
        let chunk =
            |tokens: u64| json!({"choices": [{"delta": {"content": "w"}}], "usage": {"completion_tokens": tokens}});
        Reply::Raw((1..=20).map(|tokens| format!("data: {}\n\n", chunk(tokens))).collect())
    };
    let server = Scripted::new(events).billing(each);
    let mut fleet = Replaceable { replace: || Ok(()) };
    ledger::check(&context(&server.session().await), &mut fleet, 3).await.expect("the server tells what was used")
}

#[tokio::test(start_paused = true)]
async fn what_cut_streams_brought_must_be_billed_once() {
    // The streams of this server are cut for ever, so that the closing chat is too.
    let broken = |verdict: &Verdict| verdict.broken.iter().filter(|broken| !broken.starts_with("afterwards")).count();
    let verdict = cut_and_billed(20).await;
    assert_eq!(broken(&verdict), 0, "{}", verdict.render());
    assert_falls_short(&cut_and_billed(0).await, "are unbilled");
    assert_falls_short(&cut_and_billed(300).await, "too many");
}

/// Full or not.
#[derive(Clone, Default)]
struct FakeDisk(Arc<AtomicBool>);

impl Disk for FakeDisk {
    fn fill(&mut self) -> Result<(), BallastError> {
        self.0.store(true, Ordering::SeqCst);
        Ok(())
    }

    fn free(&mut self) -> Result<(), BallastError> {
        self.0.store(false, Ordering::SeqCst);
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn a_full_disk_must_be_refused_and_got_over() {
    let disk = FakeDisk::default();
    let tried = |on_full: fn() -> Reply, billed: u64| {
        let mut disk = disk.clone();
        let full = Arc::clone(&disk.0);
        async move {
            let server = Scripted::new(move |seen| match full.load(Ordering::SeqCst) {
                true => on_full(),
                false => steady(20 * MS, 10 * MS)(seen),
            });
            let (server, mut fleet) = (server.billing(billed), Replaceable { replace: || Ok(()) });
            full_disk::check(&context(&server.session().await), &mut fleet, &mut disk).await
        }
    };
    let refuse = || Reply::Status { status: 503, body: "{}".to_owned() };
    let verdict = tried(refuse, 48).await.unwrap();
    assert!(verdict.holds(), "{}", verdict.render());
    assert_falls_short(&tried(refuse, 0).await.unwrap(), "not billed");
    assert_falls_short(&tried(refuse, 480).await.unwrap(), "that nobody received are billed");
    let cut = || Reply::Raw("data: {".to_owned());
    assert_falls_short(&tried(cut, 48).await.unwrap(), "neither answered nor refused");
    let careless = || Reply::Tokens { delays: vec![MS], text: "w".to_owned() };
    assert_falls_short(&tried(careless, 48).await.unwrap(), "nothing was refused");
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

/// A process whose size stays as it is, whatever the other tests of this one do.
struct Idle(Child);

impl Idle {
    fn start() -> Self {
        let spawned = Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let mut child = spawned.expect("cat starts");
        child.stdin.as_mut().expect("it is piped").write_all(b"x").expect("it reads");
        child.stdout.as_mut().expect("it is piped").read_exact(&mut [0]).expect("it runs");
        Self(child)
    }
}

impl Drop for Idle {
    fn drop(&mut self) {
        let _: std::io::Result<()> = self.0.kill();
        let _: std::io::Result<std::process::ExitStatus> = self.0.wait();
    }
}

/// Two minutes of it, with a process that stands for the server's.
async fn soaked(server: Scripted) -> Verdict {
    let session = server.session().await;
    let options = CheckOptions { duration: Duration::from_secs(120), ..options() };
    let idle = Idle::start();
    soak::check(&Context::new(&session, options, Some(idle.0.id()))).await.expect("a verdict")
}

#[tokio::test(start_paused = true)]
async fn a_soak_sees_a_latency_that_creeps() {
    let creeping =
        |creep: Duration| soaked(Scripted::new(move |seen| steady(100 * MS + creep * seen.number as u32, MS)(seen)));
    let steady = creeping(Duration::ZERO).await;
    assert!(!steady.broken.iter().any(|broken| broken.contains("p99")), "{}", steady.render());
    assert_falls_short(&creeping(MS).await, "p99 grows");
}

#[tokio::test(start_paused = true)]
async fn a_soak_in_which_users_are_refused_cannot_tell() {
    let refuses = Scripted::new(|seen| match seen.number % 3 {
        2 => Reply::Status { status: 503, body: "{}".to_owned() },
        _ => steady(100 * MS, MS)(seen),
    });
    let verdict = soaked(refuses).await;
    assert!(verdict.undecided.iter().any(|what| what.contains("who were refused")), "{}", verdict.render());
}
