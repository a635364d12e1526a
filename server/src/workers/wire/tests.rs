use std::num::NonZeroU32;
use std::time::Duration;

use passerelle_engine::{
    CacheSalt, Class, EncodeRequest, Event as EngineEvent, EventFeed, FaultCounts, FinishReason, Request, RequestError,
    RequestId, SamplingParams, ShareKey, ShareWeight, StepReport, TokenEvent, TokenLogprobs, Usage,
};
use prost::Message;

use super::{
    CallId, Event, Failed, FromGateway, FromWorker, Heard, Hello, Malformed, Ordered, PROTOCOL, Report, Submission,
    Text, feed_events, from_gateway, from_worker,
};
use crate::workers::facts::{OfferedKind, OfferedModel, WorkerFacts};

/// As it comes out of the other end.
fn sent<M: Message + Default>(message: &M) -> M {
    M::decode(message.encode_to_vec().as_slice()).expect("it was just encoded")
}

/// No field has the value that it has when nobody sets it.
fn request() -> Request {
    let sampling = SamplingParams {
        max_tokens: 41,
        min_tokens: 2,
        temperature: 0.7,
        top_k: Some(9),
        top_p: 0.9,
        min_p: 0.05,
        typical_p: 0.8,
        frequency_penalty: -0.5,
        presence_penalty: 1.5,
        repetition_penalty: 1.1,
        logit_bias: vec![(3, 2.5), (4, f32::NEG_INFINITY)],
        bad_words: vec![vec![5, 6], vec![7]],
        seed: Some(u64::MAX),
        stop_token_ids: vec![0, 8],
        logprobs: Some(0),
        prompt_logprobs: Some(20),
    };
    Request {
        share_key: ShareKey(u64::MAX - 1),
        share_weight: ShareWeight(NonZeroU32::new(3).expect("not zero")),
        class: Class::Batch,
        cache_salt: CacheSalt(std::array::from_fn(|byte| byte as u8)),
        num_choices: NonZeroU32::new(2).expect("not zero"),
        granted_tokens: Some(16),
        ..Request::new(RequestId(77), vec![1, 0, 3], sampling)
    }
}

fn facts() -> WorkerFacts {
    let model = OfferedModel {
        name: "m".to_owned(),
        digest: "sha256:5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03".parse().expect("64 digits"),
        fingerprint: "fp_1".to_owned(),
        weights_bytes: 1,
        kv_cache_bytes: 2,
        input_vocab_size: 3,
        max_model_len: 4,
        max_waiting_requests: 5,
        max_waiting_tokens: 6,
        max_running: 7,
        kind: OfferedKind::Generator { vocab_size: 8 },
    };
    let encoder = OfferedModel { name: "e".to_owned(), kind: OfferedKind::Encoder, ..model.clone() };
    WorkerFacts {
        version: "1".to_owned(),
        partition: "left".to_owned(),
        device: "cpu".to_owned(),
        kernels: "cpu avx2".to_owned(),
        threads: 9,
        models: vec![model, encoder],
        ends_in: Some(Duration::from_millis(10)),
    }
}

#[test]
fn a_request_arrives_with_every_field() {
    for class in [Class::Interactive, Class::Standard, Class::Batch] {
        let request = Request { class, ..request() };
        let submission = sent(&Submission::of(CallId { call: 5, model: 1 }, request.clone(), Some(vec![1, 2]), 16));
        let Ordered { id, request: arrived, grammar } = submission.try_into().expect("it makes sense");
        assert_eq!((id, grammar), (CallId { call: 5, model: 1 }, Some(vec![1, 2])));
        assert_eq!(format!("{arrived:?}"), format!("{request:?}"));
    }
    let bare = Request::new(RequestId(0), Vec::new(), SamplingParams::default());
    let submission = sent(&Submission::of(CallId { call: 0, model: 0 }, bare.clone(), None, u32::MAX));
    let arrived = Ordered::try_from(submission).expect("it makes sense");
    assert_eq!(format!("{:?}", arrived.request), format!("{:?}", Request { granted_tokens: Some(u32::MAX), ..bare }));
    assert_eq!(arrived.grammar, None);
}

#[test]
fn a_text_arrives_with_every_field() {
    let whole = EncodeRequest { id: RequestId(9), tokens: vec![2, 0], second_text: Some(1), share_key: ShareKey(4) };
    for text in [whole.clone(), EncodeRequest { second_text: None, ..whole }] {
        let arrived = EncodeRequest::try_from(sent(&Text::of(CallId { call: 3, model: 2 }, text.clone())))
            .expect("it makes sense");
        assert_eq!(format!("{arrived:?}"), format!("{text:?}"));
    }
}

#[test]
fn a_worker_is_known_by_everything_that_it_says() {
    assert_eq!(WorkerFacts::try_from(sent(&Hello::from(&facts()))), Ok(facts()));
}

#[test]
fn a_step_is_told_with_every_figure() {
    let report = StepReport {
        duration: Duration::from_nanos(1),
        num_sequences: 2,
        prompt_tokens: 3,
        generated_tokens: 4,
        preemptions: 5,
        failures: FaultCounts::from_each([61, 62, 63, 64, 65, 66, 67]),
        running: 7,
        waiting: 8,
        fair_share_gap: Duration::from_nanos(9),
        fair_share_bound: Duration::from_nanos(10),
        free_blocks: 11,
        total_blocks: 12,
        prefix_query_tokens: 13,
        prefix_hit_tokens: 14,
    };
    assert_eq!(StepReport::from(sent(&Report::from(report.clone()))), report);
}

#[test]
fn what_a_request_hears_arrives_to_the_bit_and_in_order() {
    let entry = TokenLogprobs {
        token: 7,
        logprob: -0.1,
        rank: 2,
        entropy: 1.25,
        top: vec![(6, -0.05), (7, f32::from_bits(0xbdcc_cccd))],
    };
    let usage = Usage::default();
    let token = |logprobs| EngineEvent::Token(TokenEvent { choice: 1, token: 7, logprobs });
    let said = [
        EngineEvent::PromptLogprobs(vec![None, Some(entry.clone()), None]),
        token(Some(entry)),
        token(None),
        EngineEvent::Finished { choice: 0, reason: FinishReason::Stop, usage },
        EngineEvent::Finished { choice: 1, reason: FinishReason::Length, usage },
    ];
    let (mut feed, mut stream) = EventFeed::open(&request(), 100, std::sync::Arc::new(|| {}));
    feed.start(0);
    let events = said.iter().cloned().map(|event| sent(&Event::from(event))).collect();
    feed_events(events, &mut feed).expect("an engine says this");
    let heard: Vec<_> = std::iter::from_fn(|| stream.try_next()).collect();
    assert_eq!(heard[..3], said[..3]);
    assert!(matches!(heard[3], EngineEvent::Finished { choice: 0, reason: FinishReason::Stop, .. }));
    assert!(matches!(heard[4], EngineEvent::Finished { choice: 1, reason: FinishReason::Length, .. }));
}

#[test]
fn a_log_probability_that_is_no_number_is_refused_and_one_of_what_was_ruled_out_is_not() {
    let entry = TokenLogprobs { token: 7, logprob: -0.1, rank: 1, entropy: 0.5, top: vec![(7, -0.1)] };
    let arrived = |entry: TokenLogprobs| TokenLogprobs::try_from(sent(&super::Logprobs::from(entry)));
    for odd in [
        TokenLogprobs { logprob: f32::NAN, ..entry.clone() },
        TokenLogprobs { entropy: f32::NAN, ..entry.clone() },
        TokenLogprobs { top: vec![(7, -0.1), (8, f32::NAN)], ..entry.clone() },
    ] {
        assert_eq!(arrived(odd), Err(Malformed("logprob")));
    }
    let ruled_out = TokenLogprobs { logprob: f32::NEG_INFINITY, top: vec![(8, f32::NEG_INFINITY)], ..entry };
    assert_eq!(arrived(ruled_out.clone()), Ok(ruled_out));
}

#[test]
fn every_failure_arrives_as_it_was_but_for_that_of_the_worker_itself() {
    use passerelle_engine::ConstraintError::{Lost, TooComplex};
    let arrived = |error: RequestError| RequestError::try_from(sent(&Failed::from(error))).expect("it makes sense");
    for error in [
        RequestError::Step("x".to_owned()),
        RequestError::Panic,
        RequestError::Memory("x".to_owned()),
        RequestError::Device("x".to_owned()),
        RequestError::NotFinite,
        RequestError::NothingAllowed,
        RequestError::Constraint(TooComplex),
        RequestError::Constraint(Lost),
        RequestError::WorkerLost,
    ] {
        assert_eq!(arrived(error.clone()), error);
    }
    assert_eq!(arrived(RequestError::ShuttingDown), RequestError::WorkerLost, "the server does not shut down");
}

#[test]
fn what_makes_no_sense_is_named() {
    let good = Submission::of(CallId { call: 0, model: 0 }, request(), None, 1);
    let problem = |broken: Submission| Ordered::try_from(broken).expect_err("it makes no sense").0;
    assert_eq!(problem(Submission { sampling: None, ..good.clone() }), "sampling");
    assert_eq!(problem(Submission { class: 9, ..good.clone() }), "class");
    assert_eq!(problem(Submission { cache_salt: vec![0; 31], ..good.clone() }), "cache_salt");
    assert_eq!(problem(Submission { share_weight: 0, ..good.clone() }), "share_weight");
    assert_eq!(problem(Submission { num_choices: 0, ..good.clone() }), "num_choices");
    let mut many = good;
    many.sampling.as_mut().expect("it is there").logprobs = Some(256);
    assert_eq!(problem(many), "logprobs");
    let hello = Hello { protocol: PROTOCOL + 1, ..Hello::from(&facts()) };
    assert_eq!(WorkerFacts::try_from(hello), Err(Malformed("protocol")));
}

/// Whatever bytes come in.
#[test]
fn hostile_messages_are_refused_and_never_panic() {
    let submission = Submission::of(CallId { call: 5, model: 1 }, request(), Some(vec![1, 2]), 16);
    let orders = super::Orders { submissions: vec![submission], ..Default::default() };
    let from_gateway = FromGateway { what: Some(from_gateway::What::Orders(orders)) }.encode_to_vec();
    let hello = FromWorker { what: Some(from_worker::What::Hello(Hello::from(&facts()))) }.encode_to_vec();
    let events = vec![Event::from(EngineEvent::Token(TokenEvent { choice: 0, token: 1, logprobs: None }))];
    let heard = vec![Heard { call: 0, cached_tokens: Some(1), measured_ns: 7, events }];
    let step = super::Step { heard, ..Default::default() };
    let step = FromWorker { what: Some(from_worker::What::Step(step)) }.encode_to_vec();
    // Weyl's sequence: every place and every bit gets its turn.
    let mut random = 1_u64;
    for _ in 0..20_000 {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        for message in [&from_gateway, &hello, &step] {
            let mut bytes = message.clone();
            let place = (random >> 33) as usize % bytes.len();
            bytes[place] ^= 1 << (random >> 24 & 7);
            bytes.truncate(bytes.len() - (random >> 16) as usize % 3);
            read_as_worker(&bytes);
            read_as_gateway(&bytes);
        }
    }
}

fn read_as_worker(bytes: &[u8]) {
    let Ok(FromGateway { what: Some(from_gateway::What::Orders(orders)) }) = FromGateway::decode(bytes) else { return };
    orders.submissions.into_iter().for_each(|submission| _ = Ordered::try_from(submission));
    orders.texts.into_iter().for_each(|text| _ = EncodeRequest::try_from(text));
}

fn read_as_gateway(bytes: &[u8]) {
    match FromWorker::decode(bytes).ok().and_then(|message| message.what) {
        Some(from_worker::What::Hello(hello)) => _ = WorkerFacts::try_from(hello),
        Some(from_worker::What::Step(step)) => {
            let (mut feed, _stream) = EventFeed::open(&request(), 100, std::sync::Arc::new(|| {}));
            feed.start(0);
            step.heard.into_iter().for_each(|heard| _ = feed_events(heard.events, &mut feed));
            step.reports.into_iter().for_each(|report| _ = StepReport::from(report));
        }
        _ => {}
    }
}
