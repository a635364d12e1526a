//! All at once, for long: more than the server can do, of every length, from people of whom some leave and some send
//! nonsense. Afterwards it holds nothing, has grown by nothing, and has told nobody anything else than he hears alone.

use std::collections::HashMap;

use super::{CheckError, Context, failures, leaving, overload, soak};
use crate::arrivals::Arrivals;
use crate::correctness::MAX_NAMED;
use crate::generate::generate;
use crate::http::Connect;
use crate::lengths::{Distribution, Lengths};
use crate::plan::{Plan, Script};
use crate::process::Watch;
use crate::record::{Ending, Record};
use crate::scenario::{Traffic, Workload};
use crate::verdict::Verdict;

const LEAVING_SHARE: f64 = 0.1;
const LEAVE_AFTER_EVENTS: u32 = 3;
const POISON_SHARE: f64 = 0.05;
/// Different questions. Each is asked alone in the end, so that every answer of the storm is compared.
const QUESTIONS: usize = 200;
const MAX_PROMPT_TOKENS: u32 = 160;
const MAX_OUTPUT_TOKENS: u32 = 96;

pub async fn check<C: Connect>(context: &Context<'_, C>) -> Result<Verdict, CheckError> {
    let options = &context.options;
    let [factor] = options.factors[..] else {
        return Err(CheckError::CannotTry("a storm has one factor (--factors)".to_owned()));
    };
    let mut verdict = Verdict::new(
        "storm",
        format!(
            "asked for {} times what it can do, {:.0} % of the users leaving and {:.0} % of the requests nonsense, the \
             server answers whom it admits as it answers him alone, and keeps nothing",
            factor,
            LEAVING_SHARE * 100.0,
            POISON_SHARE * 100.0
        ),
    );
    let (_, before) = context.settle().await?;
    if !before.is_idle() {
        return Err(CheckError::CannotTry(format!("the server is not idle: {before}")));
    }
    let capacity =
        overload::capacity(context, chats(context, "capacity", Arrivals::Closed { concurrency: options.users }))
            .await?;
    let rate = capacity.figures.requests_per_s * factor;
    let mut crowd = chats(context, "crowd", Arrivals::Poisson { rate: rate * (1.0 - POISON_SHARE) });
    crowd.leave = leaving(LEAVING_SHARE, LEAVE_AFTER_EVENTS);
    let poison = Traffic {
        workload: Workload::Poison,
        ..chats(context, "poison", Arrivals::Poisson { rate: rate * POISON_SHARE })
    };
    let mut plan = context.plan(vec![crowd, poison]).await?;
    repeat_questions(&mut plan);
    let watch = Watch::start(context.server_pid);
    let (run, figures) = context.carry_out(&plan).await;
    let (_, samples) = watch.finish();
    let (taken, after) = context.settle().await?;
    let total = &figures.total;
    verdict.tried(format!(
        "{} requests in {:.0} s, {rate:.2} per second",
        total.requests,
        options.duration.as_secs_f64()
    ));
    let (can_do, users) = (capacity.figures.requests_per_s, capacity.users);
    verdict.figure("capacity", format!("{can_do:.2} requests/s, reached with {users} users at once"));
    verdict.figure("answered, left, refused", format!("{}, {}, {:?}", total.finished, total.left, total.refused));
    verdict.figure("held after the last had ended", format!("{after} ({:.2} s later)", taken.as_secs_f64()));
    let failed = failures(&mut verdict, total);
    verdict.require(failed == 0, || format!("errors: {:?}", total.errors));
    overload::require_honest_refusals(&mut verdict, total);
    verdict.require(after.is_idle(), || format!("still held after {:.1} s: {after}", taken.as_secs_f64()));
    if context.server_pid.is_some() {
        soak::judge_size(&mut verdict, &samples)?;
    }
    compare_with_alone(context, &mut verdict, &plan, &run.records).await;
    context.require_alive(&mut verdict, "afterwards").await;
    Ok(verdict)
}

/// Short and long prompts, short and long answers.
fn chats<C: Connect>(context: &Context<'_, C>, name: &str, arrivals: Arrivals) -> Traffic {
    let up_to = |to| Lengths(Distribution::Uniform { from: 4, to });
    Traffic {
        workload: Workload::Chat { prompt_tokens: up_to(MAX_PROMPT_TOKENS), output_tokens: up_to(MAX_OUTPUT_TOKENS) },
        ..context.chats(name, arrivals, context.options.lengths)
    }
}

/// The crowd asks [`QUESTIONS`] questions over and over.
fn repeat_questions(plan: &mut Plan) {
    let mut bodies: Vec<String> = Vec::new();
    let mut asked = 0;
    for job in plan.open.iter_mut().filter(|job| job.traffic == 0) {
        let Script::Single(call) = &mut job.script else { continue };
        match bodies.get(asked % QUESTIONS) {
            Some(body) => call.body.clone_from(body),
            None => bodies.push(call.body.clone()),
        }
        asked += 1;
    }
}

/// Whoever was answered heard what the question is answered alone, and whoever left heard the beginning of it.
async fn compare_with_alone<C: Connect>(
    context: &Context<'_, C>,
    verdict: &mut Verdict,
    plan: &Plan,
    records: &[Record],
) {
    let calls: HashMap<usize, _> = plan.jobs().map(|job| (job.index, job)).collect();
    let mut alone: HashMap<&str, Option<String>> = HashMap::new();
    let (mut compared, mut different) = (0, Vec::new());
    for record in records.iter().filter(|record| matches!(record.ending, Ending::Finished | Ending::Left)) {
        let Script::Single(call) = &calls[&record.index].script else { continue };
        if !alone.contains_key(call.body.as_str()) {
            let undisturbed = crate::generate::Call { leave_after: None, ..call.clone() };
            let answer = generate(&context.session.client, &undisturbed).await;
            alone.insert(&call.body, (answer.ending == Ending::Finished).then_some(answer.text));
        }
        let is_right = alone[call.body.as_str()].as_ref().is_some_and(|expected| match record.ending {
            Ending::Finished => record.text == *expected,
            _ => expected.starts_with(&record.text),
        });
        compared += 1;
        if !is_right {
            different.push(record.index);
        }
    }
    verdict.figure("compared with what is said alone", format!("{compared}, of which {} differ", different.len()));
    verdict.require(compared > 0, || "no answer could be compared".to_owned());
    for index in different.iter().take(MAX_NAMED) {
        verdict.require(false, || format!("request {index} was told something else"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::generate::{Call, Route};
    use crate::plan::Job;
    use crate::record::Expect;
    use crate::scenario::Objectives;
    use std::time::Duration;

    fn job(index: usize, traffic: usize) -> Job {
        let call = Call {
            route: Route::Chat,
            body: index.to_string(),
            api_key: None,
            leave_after: None,
            timeout: Duration::ZERO,
            expect: Expect::Answer,
        };
        Job { index, traffic, at: Duration::ZERO, script: Script::Single(call) }
    }

    #[test]
    fn the_crowd_repeats_its_questions_and_poison_stays_what_it_is() {
        let open = (0..QUESTIONS + 3).map(|index| job(index, 0)).chain([job(999, 1)]).collect();
        let (warmup, duration, objectives) = (Duration::ZERO, Duration::ZERO, Objectives::default());
        let mut plan = Plan { traffic: Vec::new(), open, closed: Vec::new(), warmup, duration, objectives };
        repeat_questions(&mut plan);
        let bodies: Vec<_> = plan
            .jobs()
            .map(|job| match &job.script {
                Script::Single(call) => call.body.clone(),
                Script::Conversation(_) => String::new(),
            })
            .collect();
        assert_eq!(bodies[..3], bodies[QUESTIONS..QUESTIONS + 3]);
        assert_eq!((bodies[QUESTIONS - 1].as_str(), bodies[QUESTIONS + 3].as_str()), ("199", "999"));
    }
}
