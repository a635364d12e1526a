use super::*;
use crate::constraint::AnswerEnd;
use crate::fixtures::{request, sequence};

fn greedy() -> SamplingParams {
    SamplingParams { temperature: 0.0, ..SamplingParams::default() }
}

fn choice(params: &SamplingParams) -> Choice<'_> {
    Choice { index: 0, params, constraint: None, counts: None, generated: &[], seed: 0 }
}

fn token(row: &[f32], choice: &Choice<'_>) -> TokenId {
    Sampler::default().sample(&mut row.to_vec(), choice).unwrap().token
}

/// How often each token is drawn over `draws` positions.
fn histogram(row: &[f32], params: &SamplingParams, draws: usize) -> Vec<f64> {
    let mut sampler = Sampler::default();
    let mut counts = vec![0.0; row.len()];
    let generated = vec![0; draws];
    for so_far in 0..draws {
        let choice = Choice { generated: &generated[..so_far], seed: 42, ..choice(params) };
        counts[sampler.sample(&mut row.to_vec(), &choice).unwrap().token as usize] += 1.0;
    }
    counts
}

fn drawn(row: &[f32], params: &SamplingParams) -> Vec<usize> {
    let counts = histogram(row, params, 2000);
    (0..row.len()).filter(|&id| counts[id] > 0.0).collect()
}

/// Logits of the given probabilities.
fn row_of(probabilities: &[f32]) -> Vec<f32> {
    probabilities.iter().map(|probability| probability.ln()).collect()
}

#[test]
fn greedy_takes_the_lowest_id_among_equals() {
    assert_eq!(token(&[1.0, 5.0, 5.0, 2.0], &choice(&greedy())), 1);
    assert_eq!(token(&[-0.0, 0.0], &choice(&greedy())), 0);
}

#[test]
fn draws_follow_the_distribution() {
    let probabilities = [0.1, 0.2, 0.3, 0.4];
    let counts = histogram(&row_of(&probabilities), &SamplingParams::default(), 20_000);
    let chi_square: f64 = counts
        .iter()
        .zip(probabilities)
        .map(|(count, probability)| {
            (count - 20_000.0 * f64::from(probability)).powi(2) / (20_000.0 * f64::from(probability))
        })
        .sum();
    // 3 degrees of freedom: 16.3 is exceeded once in a thousand tries, and this try is fixed.
    assert!(chi_square < 16.3, "{chi_square}");
}

#[test]
fn temperature_sharpens_and_flattens() {
    let row = row_of(&[0.25, 0.75]);
    let share = |temperature| {
        let counts = histogram(&row, &SamplingParams { temperature, ..SamplingParams::default() }, 20_000);
        counts[1] / 20_000.0
    };
    // Odds of 3 become 3^2 at half the temperature and 3^0.5 at twice.
    assert!((share(0.5) - 0.9).abs() < 0.01);
    assert!((share(2.0) - 0.634).abs() < 0.01);
    assert!((share(1e-6) - 1.0).abs() < f64::EPSILON);
}

#[test]
fn top_k_keeps_k_and_the_lower_id_among_equals() {
    let row = [1.0, 2.0, 2.0, 2.0, 0.0];
    let params = |top_k| SamplingParams { top_k: Some(top_k), ..SamplingParams::default() };
    assert_eq!(drawn(&row, &params(1)), [1]);
    assert_eq!(drawn(&row, &params(2)), [1, 2]);
    assert_eq!(drawn(&row, &params(99)), [0, 1, 2, 3, 4]);
    assert_eq!(drawn(&[0.0; 300], &params(200)), (0..200).collect::<Vec<_>>(), "more than any list holds");
}

#[test]
fn top_p_keeps_the_fewest_tokens_that_reach_it() {
    let row = row_of(&[0.1, 0.4, 0.2, 0.3]);
    let params = |top_p| SamplingParams { top_p, ..SamplingParams::default() };
    assert_eq!(drawn(&row, &params(0.39)), [1]);
    assert_eq!(drawn(&row, &params(0.41)), [1, 3]);
    assert_eq!(drawn(&row, &params(0.89)), [1, 2, 3]);
    assert_eq!(drawn(&row, &params(1.0)), [0, 1, 2, 3]);
}

#[test]
fn top_p_looks_past_its_first_stretch() {
    let row = vec![0.0; 1000];
    assert_eq!(drawn(&row, &SamplingParams { top_p: 0.125, ..SamplingParams::default() }).last(), Some(&124));
}

#[test]
fn top_p_is_taken_of_what_top_k_left() {
    let row = row_of(&[0.4, 0.3, 0.2, 0.1]);
    // Of the two kept, the first alone has 0.57.
    let params = SamplingParams { top_k: Some(2), top_p: 0.55, ..SamplingParams::default() };
    assert_eq!(drawn(&row, &params), [0]);
}

#[test]
fn min_p_drops_what_is_much_less_likely_than_the_best() {
    let row = row_of(&[0.6, 0.2, 0.15, 0.05]);
    let params = |min_p| SamplingParams { min_p, ..SamplingParams::default() };
    assert_eq!(drawn(&row, &params(0.3)), [0, 1]);
    assert_eq!(drawn(&row, &params(1.0)), [0]);
}

#[test]
fn bias_and_penalties_move_the_choice() {
    let biased = SamplingParams { logit_bias: vec![(0, 3.0), (77, 1.0)], ..greedy() };
    assert_eq!(token(&[1.0, 3.0, 0.0], &choice(&biased)), 0);
    let penalised = |params: SamplingParams, generated: &[TokenId]| {
        let (mut sequence, _stream) = sequence(crate::Request { sampling: params, ..request(0, &[1, 9]) });
        generated.iter().for_each(|&token| sequence.append(token).unwrap());
        let counts = sequence.counts();
        token(&[1.0, 3.0, 2.5], &Choice { counts, ..choice(&sequence.sampling) })
    };
    // Token 1 stands in the prompt, which only the repetition penalty looks at.
    assert_eq!(penalised(SamplingParams { presence_penalty: 2.0, ..greedy() }, &[]), 1);
    assert_eq!(penalised(SamplingParams { presence_penalty: 2.0, ..greedy() }, &[1]), 2);
    assert_eq!(penalised(SamplingParams { frequency_penalty: 0.3, ..greedy() }, &[1]), 1);
    assert_eq!(penalised(SamplingParams { frequency_penalty: 0.3, ..greedy() }, &[1, 1]), 2);
    assert_eq!(penalised(SamplingParams { repetition_penalty: 2.0, ..greedy() }, &[]), 2);
}

#[test]
fn a_repetition_penalty_makes_negative_logits_less_likely_too() {
    let params = SamplingParams { repetition_penalty: 2.0, ..greedy() };
    let (sequence, _stream) = sequence(crate::Request { sampling: params, ..request(0, &[0]) });
    let counts = sequence.counts();
    assert_eq!(token(&[-1.0, -1.5], &Choice { counts, ..choice(&sequence.sampling) }), 1);
}

#[test]
fn stop_tokens_wait_for_the_minimum_length() {
    let params = SamplingParams { min_tokens: 2, stop_token_ids: vec![1, 50], ..greedy() };
    let row = [0.0, 9.0, 1.0];
    assert_eq!(token(&row, &Choice { generated: &[0], ..choice(&params) }), 2);
    assert_eq!(token(&row, &Choice { generated: &[0, 0], ..choice(&params) }), 1);
}

#[test]
fn a_number_that_is_not_finite_is_the_models_fault_and_an_empty_choice_the_requests() {
    let all_masked = SamplingParams { min_tokens: 1, stop_token_ids: vec![0, 1], ..greedy() };
    for (row, params, error) in [
        ([0.0, 1.0], all_masked, RequestError::NothingAllowed),
        ([f32::NAN, 1.0], greedy(), RequestError::NotFinite),
        ([f32::INFINITY, 1.0], SamplingParams::default(), RequestError::NotFinite),
    ] {
        let result = Sampler::default().sample(&mut row.clone(), &choice(&params));
        assert_eq!(result, Err(error));
    }
}

#[test]
fn whatever_a_request_does_to_a_row_does_not_look_like_the_models_fault() {
    let biased = SamplingParams { logit_bias: vec![(0, f32::MAX)], ..greedy() };
    assert_eq!(token(&[f32::MAX, 1.0], &choice(&biased)), 0);
    let params = SamplingParams { repetition_penalty: f32::MIN_POSITIVE, ..greedy() };
    let (sequence, _stream) = sequence(crate::Request { sampling: params, ..request(0, &[0]) });
    let counts = sequence.counts();
    assert_eq!(token(&[30.0, 31.0], &Choice { counts, ..choice(&sequence.sampling) }), 0);
}

#[test]
fn typical_p_keeps_what_surprises_as_usual_and_drops_the_most_likely() {
    // Entropy 1.62 nats: a fifth surprises by 1.61, the most likely by 1.05, the others by 2.3 and 3.0.
    let row = row_of(&[0.35, 0.2, 0.2, 0.1, 0.1, 0.05]);
    let params = |typical_p| SamplingParams { typical_p, ..SamplingParams::default() };
    assert_eq!(drawn(&row, &params(0.19)), [1]);
    assert_eq!(drawn(&row, &params(0.39)), [1, 2]);
    assert_eq!(drawn(&row, &params(0.7)), [0, 1, 2]);
    assert_eq!(drawn(&row, &params(1.0)), [0, 1, 2, 3, 4, 5]);
    let narrowed = SamplingParams { top_k: Some(1), ..params(0.2) };
    assert_eq!(drawn(&row, &narrowed), [0]);
}

#[test]
fn a_bad_word_is_cut_off_before_its_last_token() {
    let params = SamplingParams { bad_words: vec![vec![2], vec![0, 1]], ..greedy() };
    let row = [0.0, 3.0, 9.0];
    assert_eq!(token(&row, &choice(&params)), 1);
    assert_eq!(token(&row, &Choice { generated: &[1, 0], ..choice(&params) }), 0);
    assert_eq!(token(&row, &Choice { generated: &[0, 1], ..choice(&params) }), 1);
}

#[test]
fn a_constraint_stands_above_bias_and_temperature() {
    let allowed = Allowed { tokens: &[0b10], end: AnswerEnd::NotHere };
    let params = SamplingParams { logit_bias: vec![(0, 90.0)], temperature: 2.0, ..SamplingParams::default() };
    let constrained = Choice { constraint: Some(allowed), ..choice(&params) };
    assert_eq!(token(&[9.0, -9.0, 9.0], &constrained), 1);
}

#[test]
fn a_stop_token_waits_for_the_end_that_the_constraint_sees() {
    let params = SamplingParams { stop_token_ids: vec![2], ..greedy() };
    let row = [0.0, 1.0, 9.0];
    for (end, expected) in [(AnswerEnd::NotHere, 1), (AnswerEnd::Here, 2)] {
        let constraint = Some(Allowed { tokens: &[0b11], end });
        assert_eq!(token(&row, &Choice { constraint, ..choice(&params) }), expected);
    }
}

#[test]
fn the_stop_tokens_of_a_constrained_answer_may_come_in_any_order() {
    let sampling = SamplingParams { stop_token_ids: vec![69, 5, 1 << 20, 69], ..greedy() };
    let (sequence, _stream) = sequence(crate::Request { sampling, ..request(0, &[0]) });
    let constraint = Some(Allowed { tokens: &[0b11], end: AnswerEnd::Here });
    for likeliest in [5, 69] {
        let mut row = [0.0; 70];
        row[likeliest] = 9.0;
        let choice = Choice { constraint, ..choice(&sequence.sampling) };
        assert_eq!(token(&row, &choice), likeliest as TokenId);
    }
}

#[test]
fn logprobs_of_a_constrained_choice_are_still_the_models_own() {
    let params = SamplingParams { logprobs: Some(1), ..greedy() };
    let constraint = Some(Allowed { tokens: &[0b1], end: AnswerEnd::NotHere });
    let choice = Choice { constraint, ..choice(&params) };
    let event = Sampler::default().sample(&mut row_of(&[0.25, 0.75]), &choice).unwrap();
    let logprobs = event.logprobs.unwrap();
    assert_eq!((event.token, logprobs.rank, logprobs.top[0].0), (0, 2, 1));
    assert!((logprobs.logprob - 0.25_f32.ln()).abs() < 1e-6);
}

#[test]
fn a_masked_token_is_never_drawn() {
    let row = [f32::NEG_INFINITY, 0.0, f32::NEG_INFINITY, 0.0];
    assert_eq!(drawn(&row, &SamplingParams::default()), [1, 3]);
}

#[test]
fn logprobs_are_of_the_models_own_distribution() {
    let params = SamplingParams { logit_bias: vec![(0, 50.0)], logprobs: Some(1), ..greedy() };
    let event = Sampler::default().sample(&mut row_of(&[0.25, 0.75]), &choice(&params)).unwrap();
    let logprobs = event.logprobs.unwrap();
    assert_eq!((event.token, logprobs.token, logprobs.rank), (0, 0, 2));
    assert!((logprobs.logprob - 0.25_f32.ln()).abs() < 1e-6);
    assert_eq!(logprobs.top[0].0, 1);
}
