//! Correctness under load: at temperature 0 every answer is the answer given alone.

use std::collections::HashMap;

use crate::figures::peak_in_flight;
use crate::generate::{Call, generate};
use crate::http::Connect;
use crate::plan::{Plan, PlanError, Script};
use crate::record::{Ending, ErrorKind, Record};
use crate::run::{RunOptions, run};
use crate::scenario::{Scenario, Workload};
use crate::session::Session;
use crate::verdict::Verdict;

/// How many differing answers are named.
pub(crate) const MAX_NAMED: usize = 5;
/// With fewer at once nothing is batched, and nothing is tried.
const MIN_IN_FLIGHT: usize = 2;

#[derive(Debug, thiserror::Error)]
pub enum CorrectnessError {
    #[error(transparent)]
    Plan(#[from] PlanError),
    #[error("traffic `{0}` is a conversation: its questions depend on its answers, so they cannot be asked alone")]
    Conversation(String),
    #[error("request {index} was not answered even alone: {ending:?}")]
    NotAnswered { index: usize, ending: Ending },
}

/// Asks everything one by one, then all at the scenario's times, and compares the texts.
pub async fn check<C: Connect>(
    session: &Session<C>,
    scenario: &Scenario,
    options: &RunOptions,
) -> Result<Verdict, CorrectnessError> {
    let plan = session.plan_watched(&deterministic(scenario)?, &options.progress).await?;
    let alone = ask_alone(session, &plan).await?;
    let done = run(&session.client, &plan, options).await;
    let mut verdict = Verdict::new("correctness", "at temperature 0, load does not change a single answer");
    verdict.tried(format!("{} requests, each alone and then among the others", done.records.len()));
    judge(&mut verdict, &done.records, &alone);
    Ok(verdict)
}

fn judge(verdict: &mut Verdict, records: &[Record], alone: &HashMap<usize, String>) {
    let (mut same, mut unasked, mut wrong) = (0, 0, Vec::new());
    for record in records {
        match Finding::of(record, &alone[&record.index]) {
            Finding::Same => same += 1,
            Finding::NotAnswered => unasked += 1,
            Finding::Wrong(how) => wrong.push(format!("request {} {how}", record.index)),
        }
    }
    let peak = peak_in_flight(records);
    verdict.figure("same answer", same.to_string());
    verdict.figure("different or cut answer", wrong.len().to_string());
    verdict.figure("refused under load", unasked.to_string());
    verdict.figure("most requests in flight", peak.to_string());
    for how in wrong.iter().take(MAX_NAMED) {
        verdict.require(false, || how.clone());
    }
    if unasked > 0 {
        verdict.cannot_tell(format!("what {unasked} refused requests would have been told: give a smaller load"));
    }
    if peak < MIN_IN_FLIGHT {
        verdict
            .cannot_tell(format!("what a batch changes: at most {peak} requests were in flight; give a larger load"));
    }
}

/// What one answer under load is, beside the answer given alone.
enum Finding {
    Same,
    /// Refused, or not sent.
    NotAnswered,
    Wrong(String),
}

impl Finding {
    fn of(record: &Record, expected: &str) -> Self {
        let common = common_chars(&record.text, expected);
        match &record.ending {
            Ending::Refused { .. }
            | Ending::Failed(ErrorKind::NotSent | ErrorKind::OutOfFiles)
            | Ending::Interrupted => Self::NotAnswered,
            Ending::Finished if record.text == expected => Self::Same,
            Ending::Failed(kind) if expected.starts_with(&record.text) => {
                Self::Wrong(format!("ends after {common} characters: {}", kind.name()))
            }
            _ => Self::Wrong(format!("differs after {common} characters")),
        }
    }
}

/// The scenario without what makes answers differ by right.
fn deterministic(scenario: &Scenario) -> Result<Scenario, CorrectnessError> {
    let mut scenario = scenario.clone();
    for traffic in &mut scenario.traffic {
        if matches!(traffic.workload, Workload::MultiTurn { .. }) {
            return Err(CorrectnessError::Conversation(traffic.name.clone()));
        }
        traffic.request.temperature = Some(0.0);
        traffic.leave = None;
    }
    scenario.traffic.retain(|traffic| !matches!(traffic.workload, Workload::Poison));
    Ok(scenario)
}

/// The text of each request by its index; the same request is asked once.
async fn ask_alone<C: Connect>(session: &Session<C>, plan: &Plan) -> Result<HashMap<usize, String>, CorrectnessError> {
    let mut by_body: HashMap<&str, String> = HashMap::new();
    let mut by_index = HashMap::new();
    for job in plan.jobs() {
        let Script::Single(call) = &job.script else { unreachable!("conversations were refused above") };
        if !by_body.contains_key(call.body.as_str()) {
            by_body.insert(&call.body, answer_of(session, call, job.index).await?);
        }
        by_index.insert(job.index, by_body[call.body.as_str()].clone());
    }
    Ok(by_index)
}

async fn answer_of<C: Connect>(session: &Session<C>, call: &Call, index: usize) -> Result<String, CorrectnessError> {
    let answer = generate(&session.client, call).await;
    match answer.ending {
        Ending::Finished => Ok(answer.text),
        ending => Err(CorrectnessError::NotAnswered { index, ending }),
    }
}

fn common_chars(left: &str, right: &str) -> usize {
    left.chars().zip(right.chars()).take_while(|(left, right)| left == right).count()
}
