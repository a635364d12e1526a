//! What a quota decision costs: four levels of three limits each, all of which must have room, taken and settled.
//!
//! `cargo bench -p passerelle --bench quota`

#![expect(clippy::print_stdout, clippy::unwrap_used, reason = "a bench prints its figures, and may fail")]

use std::num::{NonZeroU32, NonZeroU64};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use passerelle::gateway::account::Node;
use passerelle::gateway::quota::{Bound, Period, Unit};
use passerelle::gateway::{Account, AccountPath, Ask, Caller, Ledger, Limit, Quota, Reserve};
use passerelle_engine::clock::{Clock, SystemClock};

const DECISIONS: usize = 200_000;
const GOAL: Duration = Duration::from_micros(2);

fn main() -> ExitCode {
    let clock = Arc::new(SystemClock::new());
    let ledger = Ledger::without_past(Arc::clone(&clock) as Arc<dyn Clock>);
    let caller = Arc::new(Caller::at_open_door(account()));
    let ask = Ask { reserve: Reserve::InParts, ..Ask::new("m", 10, 500) };
    let mut decisions = Vec::with_capacity(DECISIONS);
    let mut extensions = Vec::with_capacity(DECISIONS);
    let mut settlements = Vec::with_capacity(DECISIONS);
    for _ in 0..DECISIONS {
        let at = [clock.now()];
        let mut reservation = ledger.reserve(&caller, &ask).unwrap();
        let at = [at[0], clock.now()];
        reservation.extend(1, 64).unwrap();
        let at = [at[0], at[1], clock.now()];
        drop(reservation);
        decisions.push(at[1] - at[0]);
        extensions.push(at[2] - at[1]);
        settlements.push(clock.now() - at[2]);
    }
    let decision = report("a decision", &mut decisions);
    report("an extension", &mut extensions);
    report("a settlement", &mut settlements);
    println!("the goal of a decision is {GOAL:?} at p99");
    if decision <= GOAL { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn account() -> Account {
    let node = |path: &str| {
        let many = NonZeroU64::new(1 << 50).unwrap();
        let month = Bound::Budget { unit: Unit::Tokens, amount: many, period: Period::Month };
        let limits = vec![Limit::requests_per_minute(many), Limit::tokens_per_minute(many), Limit::of(month)];
        let path: AccountPath = path.parse().unwrap();
        Node { path, limits: Arc::new(Quota::new(limits).unwrap()) }
    };
    Account::new(["acme/vision/alice", "acme/vision", "acme", "/"].map(node).into(), NonZeroU32::MIN)
}

/// The clock is read once in each. Returns the 99th percentile.
fn report(what: &str, times: &mut [Duration]) -> Duration {
    times.sort_unstable();
    let at = |part: f64| times[(times.len() as f64 * part) as usize];
    println!("{what} over four levels of three limits: p50 {:?}, p99 {:?}, p99.9 {:?}", at(0.5), at(0.99), at(0.999));
    at(0.99)
}
