//! A model that leaves its logits elsewhere, as on a GPU, answers as one that hands them over.

use std::num::NonZeroU32;

use passerelle_engine::testing::{Mishap, StubModel};
use passerelle_engine::{EngineConfig, Event, EventStream, Request, RequestError, SamplingParams, TokenLogprobs};

use crate::common::{config, events, greedy, request, run_to_end, step_loop};

/// More than the likely tokens that can be asked for.
const VOCAB: usize = 1000;
const POISON: u32 = 999;

fn model() -> StubModel {
    StubModel::new(VOCAB, 4).with_mishap(POISON, Mishap::Nan)
}

/// Requests whose rows are asked about, and requests whose rows are needed whole.
fn requests() -> Vec<Request> {
    let plain = SamplingParams { max_tokens: 6, seed: Some(7), ..SamplingParams::default() };
    let sampled = [
        greedy(6),
        SamplingParams { logprobs: Some(3), ..greedy(6) },
        plain.clone(),
        SamplingParams { logprobs: Some(0), min_p: 0.2, ..plain.clone() },
        SamplingParams { top_k: Some(9), top_p: 0.8, ..plain.clone() },
        SamplingParams { top_k: Some(500), ..plain.clone() },
        // Of so flat a row the likely tokens are sometimes enough.
        SamplingParams { top_p: 0.3, temperature: 0.5, logprobs: Some(2), ..plain.clone() },
        SamplingParams { top_p: 0.95, temperature: 2.0, ..plain.clone() },
        SamplingParams { typical_p: 0.7, ..plain.clone() },
        SamplingParams { frequency_penalty: 1.5, ..greedy(6) },
        SamplingParams { logit_bias: vec![(3, 9.0)], ..plain.clone() },
        SamplingParams { prompt_logprobs: Some(2), ..plain.clone() },
        SamplingParams { prompt_logprobs: Some(0), max_tokens: 0, ..greedy(0) },
    ];
    let prompts = (1..).map(|first| (first..first + 7).collect::<Vec<u32>>());
    let mut requests: Vec<_> = prompts.zip(sampled).map(|(prompt, sampling)| request(&prompt, sampling)).collect();
    requests.push(Request { num_choices: NonZeroU32::MIN.saturating_add(2), ..request(&[5, 6, 7], plain) });
    requests.push(request(&[1, POISON, 2], greedy(6)));
    requests
}

/// Of all requests in one batch.
fn answers(model: StubModel) -> Vec<Vec<Event>> {
    let (mut step_loop, handle) = step_loop(model, EngineConfig { num_kv_blocks: 256, max_num_seqs: 32, ..config() });
    let submit = |request| handle.submit(request).expect("the tests' own figures are possible");
    let mut streams: Vec<EventStream> = requests().into_iter().map(submit).collect();
    run_to_end(&mut step_loop);
    streams.iter_mut().map(events).collect()
}

fn assert_alike(got: &TokenLogprobs, want: &TokenLogprobs) {
    let ids = |logprobs: &TokenLogprobs| logprobs.top.iter().map(|(id, _)| *id).collect::<Vec<_>>();
    assert_eq!((got.token, got.rank, ids(got)), (want.token, want.rank, ids(want)));
    let numbers = |logprobs: &TokenLogprobs| {
        let top = logprobs.top.iter().map(|(_, logprob)| *logprob);
        [logprobs.logprob, logprobs.entropy].into_iter().chain(top).collect::<Vec<_>>()
    };
    assert!(numbers(got).iter().zip(numbers(want)).all(|(got, want)| (got - want).abs() < 1e-5));
}

#[test]
fn a_mixed_batch_hears_the_same_wherever_its_logits_lie() {
    let (here, elsewhere) = (answers(model()), answers(model().with_logits_elsewhere()));
    for (index, (want, got)) in here.iter().zip(&elsewhere).enumerate() {
        assert_eq!(got.len(), want.len(), "request {index}: {got:?}");
        for (got, want) in got.iter().zip(want) {
            match (got, want) {
                (Event::Token(got), Event::Token(want)) => {
                    assert_eq!((got.choice, got.token), (want.choice, want.token), "request {index}");
                    assert_eq!(got.logprobs.is_some(), want.logprobs.is_some());
                    got.logprobs.iter().zip(&want.logprobs).for_each(|(got, want)| assert_alike(got, want));
                }
                (Event::PromptLogprobs(got), Event::PromptLogprobs(want)) => {
                    assert_eq!(got.len(), want.len());
                    got.iter().flatten().zip(want.iter().flatten()).for_each(|(got, want)| assert_alike(got, want));
                }
                // Times are measured.
                (Event::Finished { reason: got, .. }, Event::Finished { reason: want, .. }) => assert_eq!(got, want),
                _ => assert_eq!(got, want),
            }
        }
    }
    let failed = elsewhere.last().unwrap().last();
    assert!(matches!(failed, Some(Event::Failed { error: RequestError::NotFinite, .. })));
}
