//! Correctness under load: at temperature 0 every answer is the answer given alone.

use std::collections::HashMap;

use crate::generate::{Call, generate};
use crate::http::Connect;
use crate::plan::{Plan, PlanError, Script};
use crate::record::Ending;
use crate::run::{RunOptions, run};
use crate::scenario::{Scenario, Workload};
use crate::session::Session;
use crate::verdict::Verdict;

/// How many differing answers are named.
const MAX_NAMED: usize = 5;

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
    let (mut same, mut unanswered, mut different) = (0, 0, Vec::new());
    for record in &done.records {
        let expected = &alone[&record.index];
        match record.ending {
            Ending::Finished if record.text == *expected => same += 1,
            Ending::Finished => different.push((record.index, common_chars(&record.text, expected))),
            _ => unanswered += 1,
        }
    }
    verdict.tried(format!("{} requests, each alone and then among the others", done.records.len()));
    verdict.figure("same answer", same.to_string());
    verdict.figure("different answer", different.len().to_string());
    verdict.figure("not answered under load", unanswered.to_string());
    for (index, common) in different.iter().take(MAX_NAMED) {
        verdict.require(false, || format!("request {index} differs after {common} characters"));
    }
    verdict.require(same > 0, || "no answer could be compared".to_owned());
    Ok(verdict)
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
