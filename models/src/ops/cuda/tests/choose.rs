use std::cell::RefCell;

use candle_core::Tensor;

use super::host::{Buffer, Host, Order, in_both_orders};
use super::{Random, reference};
use crate::ops::cuda::args::choose::ChooseWords;
use crate::ops::{Detail, Float, Pick, RowAnswer, RowQuestion, Weights, choose};
use crate::selftest::choose::{SUMS, sums, tokens};
use crate::selftest::tables::LOGITS;
use crate::selftest::trial::furthest;

type Questions = [(usize, RowQuestion)];

/// As the launcher does it on a GPU.
fn on_host(host: Host, logits: &Tensor, float: Float, questions: &Questions, order: Order) -> Vec<RowAnswer> {
    let words = ChooseWords::new(questions, logits.dim(1).unwrap());
    let (mut logits, mut asked) = (Buffer::of(logits, float), Buffer::of_words(&words.questions));
    let mut answers = Buffer::unwritten(words.answers_len() * size_of::<u32>());
    let args = words.args(logits.address(), asked.address(), answers.address());
    host.run(&args.launch(questions.len(), float), order);
    words.answers(&answers.words())
}

#[test]
fn the_answers_about_rows_of_logits_equal_the_reference() {
    let Some(host) = Host::get() else { return };
    for case in LOGITS {
        let logits = case.logits().unwrap();
        let questions = case.questions(&logits, 1).unwrap();
        assert!(questions.len() >= 6 * case.rows, "{case:?}: {} questions", questions.len());
        let want = choose(&reference(), &logits, &questions).unwrap();
        let got = RefCell::new(Vec::new());
        in_both_orders(|order| {
            let answers = on_host(host, &logits, case.float, &questions, order);
            *got.borrow_mut() = answers;
            [tokens(&got.borrow()), sums(&got.borrow())].concat()
        });
        let got = got.into_inner();
        assert_eq!(unequal_answer(&got, &want, &questions), None, "{case:?}");
        let off = furthest(&sums(&got), &sums(&want));
        assert!(off <= SUMS, "{case:?}: sums are off by {off}");
    }
}

/// The first answer with other tokens, logits or ranks.
fn unequal_answer<'a>(
    got: &'a [RowAnswer],
    want: &'a [RowAnswer],
    questions: &'a Questions,
) -> Option<(&'a (usize, RowQuestion), &'a RowAnswer, &'a RowAnswer)> {
    let is_unequal = |(got, want): (&RowAnswer, &RowAnswer)| {
        furthest(&tokens(std::slice::from_ref(got)), &tokens(std::slice::from_ref(want))) != 0.0
    };
    let index = got.iter().zip(want).position(is_unequal)?;
    Some((&questions[index], &got[index], &want[index]))
}

/// Over random rows, and points that are anywhere: one that is not equal must lie on the border of two tokens.
#[test]
fn a_draw_is_that_of_the_reference_except_on_a_border() {
    let Some(host) = Host::get() else { return };
    const VOCAB: usize = 3000;
    let mut random = Random(77);
    let logits = (random.tensor(&[4, VOCAB], Float::F32) * 4.0).unwrap();
    let drawn = |temperature, point| {
        let pick = Pick::Drawn { weights: Weights { temperature, floor: 0.0 }, point };
        RowQuestion { pick, detail: Detail::Token, ..RowQuestion::BEST }
    };
    let mut point = || (random.next() >> 11) as f64 / (1_u64 << 53) as f64;
    let asked: Vec<_> = (0..60).map(|index| (index % 4, ([0.5, 1.0, 2.0][index % 3], point()))).collect();
    let picked = |shift: f64| {
        let questions = asked.iter().map(|(row, (temperature, point))| (*row, drawn(*temperature, point + shift)));
        questions.collect::<Vec<_>>()
    };
    let got = on_host(host, &logits, Float::F32, &picked(0.0), Order::Forwards);
    let [low, want, high] = [-1e-6, 0.0, 1e-6].map(|shift| choose(&reference(), &logits, &picked(shift)).unwrap());
    let mut num_equal = 0;
    for (index, got) in got.iter().map(|answer| answer.picked.token).enumerate() {
        let near = low[index].picked.token..=high[index].picked.token;
        assert!(near.contains(&got), "{:?}: {got}, not one of {near:?}", asked[index]);
        num_equal += usize::from(got == want[index].picked.token);
    }
    assert!(num_equal >= 58, "{num_equal} of 60");
}
