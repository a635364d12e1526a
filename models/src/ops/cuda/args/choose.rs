use crate::ops::choose::{Detail, MOST_BEST, Pick, PickedToken, RowAnswer, RowQuestion, SoftmaxSums, Weights};
use crate::ops::cuda::launch::{Address, Float, Launch, WARP};

/// `ChooseArgs` of `choose.cu`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(crate) struct ChooseArgs {
    pub(crate) logits: Address,
    pub(crate) questions: Address,
    pub(crate) answers: Address,
    pub(crate) best: Address,
    pub(crate) vocab_size: i32,
    pub(crate) most_best: i32,
}

/// Questions as the kernel reads them, and where its answers stand in one list of words:
///
/// ```text
/// answers: ANSWER_WORDS for each question | best: most_best places of two words for each question
/// ```
#[derive(Debug)]
pub(crate) struct ChooseWords {
    pub(crate) questions: Vec<u32>,
    lists: Vec<usize>,
    most_best: usize,
    vocab_size: usize,
}

pub(super) const WARPS: u32 = 16;
const QUESTION_WORDS: usize = 10;
const ANSWER_WORDS: usize = 10;

// A block has room for as many places as it has threads, and a bound for as many as it has groups of lanes.
const _: () = assert!(MOST_BEST <= (WARPS * WARP / 2) as usize);

impl ChooseArgs {
    /// A block for each question.
    pub(crate) fn launch(self, num_questions: usize, logits: Float) -> Launch<Self> {
        let kernel = format!("choose_{}", logits.name());
        Launch { kernel, grid: [num_questions as u32, 1, 1], threads: WARPS * WARP, shared_bytes: 0, args: self }
    }
}

impl ChooseWords {
    /// Checked by the caller.
    pub(crate) fn new(questions: &[(usize, RowQuestion)], vocab_size: usize) -> Self {
        let lists: Vec<usize> = questions.iter().map(|(_, question)| question.best.min(vocab_size)).collect();
        Self {
            questions: questions.iter().zip(&lists).flat_map(|((row, is), best)| words(*row, is, *best)).collect(),
            most_best: lists.iter().copied().max().unwrap_or_default(),
            lists,
            vocab_size,
        }
    }

    /// Of the list of answers.
    pub(crate) fn answers_len(&self) -> usize {
        self.best_start() + self.lists.len() * self.most_best * 2
    }

    /// With addresses for the questions, and for the answers, which are `answers_len` words.
    pub(crate) fn args(&self, logits: Address, questions: Address, answers: Address) -> ChooseArgs {
        ChooseArgs {
            logits,
            questions,
            answers,
            best: Address(answers.0 + (self.best_start() * size_of::<u32>()) as u64),
            vocab_size: self.vocab_size as i32,
            most_best: self.most_best as i32,
        }
    }

    /// `words`: what the kernel has written.
    pub(crate) fn answers(&self, words: &[u32]) -> Vec<RowAnswer> {
        let (answers, best) = words.split_at(self.best_start());
        let places = best.as_chunks::<2>().0.chunks(self.most_best.max(1));
        let answers = answers.as_chunks::<ANSWER_WORDS>().0.iter().zip(places).zip(&self.lists);
        answers.map(|((words, places), &list)| answer(words, &places[..list])).collect()
    }

    fn best_start(&self) -> usize {
        self.lists.len() * ANSWER_WORDS
    }
}

/// `Question` of `choose.cu`.
fn words(row: usize, question: &RowQuestion, best: usize) -> [u32; QUESTION_WORDS] {
    let plain = Weights { temperature: 1.0, floor: 0.0 };
    let (pick, weights, point, token) = match question.pick {
        Pick::Best => (0, plain, 0.0, 0),
        Pick::Drawn { weights, point } => (1, weights, point, 0),
        Pick::Given(token) => (2, plain, 0.0, token),
        Pick::BestOf(weights) => (3, weights, 0.0, 0),
    };
    let point = f64::to_bits(point);
    // Infinity times the most likely token's zero would be no number.
    let scale = (std::f64::consts::LOG2_E / f64::from(weights.temperature)).min(f64::from(f32::MAX)) as f32;
    let with_logprobs = u32::from(question.detail == Detail::Logprobs);
    let halves = [point as u32, (point >> 32) as u32];
    let [scale, floor] = [scale, weights.floor].map(f32::to_bits);
    [halves[0], halves[1], scale, floor, row as u32, best as u32, pick, token, with_logprobs, 0]
}

/// `Answer` of `choose.cu`, and the places of the likeliest tokens.
fn answer(words: &[u32; ANSWER_WORDS], places: &[[u32; 2]]) -> RowAnswer {
    let number = |index: usize| f64::from_bits(u64::from(words[index]) | u64::from(words[index + 1]) << 32);
    let [token, logit, rank, largest] = [words[6], words[7], words[8], words[9]];
    let largest = f32::from_bits(largest);
    // Of other rows the kernel writes no places.
    let places = if largest.is_finite() { places } else { &[] };
    RowAnswer {
        largest,
        best: places.iter().map(|place| token_and_logit(*place)).collect(),
        picked: PickedToken { token, logit: f32::from_bits(logit), rank },
        mass: number(4),
        sums: SoftmaxSums { sum: number(0), weighted: number(2) },
    }
}

/// Of a `Place` of `choose.cu`.
fn token_and_logit([low, high]: [u32; 2]) -> (u32, f32) {
    let bits = if high >> 31 == 1 { high & 0x7fff_ffff } else { !high };
    (!low, f32::from_bits(bits))
}
