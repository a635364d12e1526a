//! What a step's work costs: a model of its time, linear in prompt tokens, generated tokens and the context that they
//! attend. Accounts share the engine by this cost, and a long prompt is cut by it.

use std::fmt;
use std::time::Duration;

/// Modelled time, in nanoseconds.
pub(crate) type CostNs = u64;

/// Nanoseconds, each above zero, so that no work is free.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CostModel {
    /// A token of a prompt, its attention apart.
    pub prompt_token_ns: f64,
    /// A generated token, its attention apart, in a step that it shares with a few others.
    pub generated_token_ns: f64,
    /// A generated token that attends one other.
    pub context_token_ns: f64,
    /// A token of a prompt that attends one other: less than a generated one's where those of a prompt share what they read.
    pub prompt_context_token_ns: f64,
    /// A generated token that has its step alone, its attention apart.
    pub lone_token_ns: f64,
}

/// Generated tokens of a step in which one costs [`CostModel::generated_token_ns`], where as many may run.
pub(crate) const STREAMS_OF_PRICE: usize = 8;

impl Default for CostModel {
    /// For simulations: round figures of a small model.
    fn default() -> Self {
        Self {
            prompt_token_ns: 100_000.0,
            generated_token_ns: 1_000_000.0,
            context_token_ns: 100.0,
            prompt_context_token_ns: 100.0,
            lone_token_ns: 1_000_000.0,
        }
    }
}

impl fmt::Display for CostModel {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { prompt_token_ns, generated_token_ns, context_token_ns, prompt_context_token_ns, .. } = self;
        let [prompt, generated] = [prompt_token_ns, generated_token_ns].map(|ns| ns / 1e3);
        let [of_prompt, of_generated] = [prompt_context_token_ns, context_token_ns].map(|ns| ns / 1e3);
        write!(
            formatter,
            "prompt token {prompt:.1} µs and {of_prompt:.4} µs for each that it attends, \
             generated token {generated:.1} µs and {of_generated:.4} µs"
        )
    }
}

impl CostModel {
    /// A step that runs the `num_tokens` tokens after the first `num_computed` ones of a sequence. A single token costs
    /// what a generated one costs, wherever it stands.
    pub(crate) fn of_tokens(&self, num_computed: usize, num_tokens: usize) -> CostNs {
        let (token_ns, context_ns) = match num_tokens {
            1 => (self.generated_token_ns, self.context_token_ns),
            _ => (self.prompt_token_ns, self.prompt_context_token_ns),
        };
        let (computed, tokens) = (num_computed as f64, num_tokens as f64);
        // The first token attends itself and all before it, each further one a token more.
        let attended = tokens * (computed + (tokens + 1.0) / 2.0);
        (tokens * token_ns + attended * context_ns).ceil() as CostNs
    }

    /// What a step takes longer or shorter than the price of its generated tokens, given how many they are: a straight line
    /// through one and [`STREAMS_OF_PRICE`].
    pub(crate) fn beyond_price(&self, num_generated: usize) -> f64 {
        let beyond_of_one = self.lone_token_ns - self.generated_token_ns;
        beyond_of_one * (STREAMS_OF_PRICE as f64 - num_generated as f64) / (STREAMS_OF_PRICE as f64 - 1.0)
    }

    /// The most a sequence of `num_tokens` tokens can cost, however it is cut.
    pub(crate) fn of_sequence(&self, num_tokens: usize) -> CostNs {
        let dearest = self.prompt_token_ns.max(self.generated_token_ns);
        let dearest_context = self.prompt_context_token_ns.max(self.context_token_ns);
        let dear = Self {
            prompt_token_ns: dearest,
            generated_token_ns: dearest,
            context_token_ns: dearest_context,
            prompt_context_token_ns: dearest_context,
            ..*self
        };
        // Each cut may round up.
        dear.of_tokens(0, num_tokens) + num_tokens as CostNs
    }

    /// How many tokens of a prompt after the first `num_computed` take at most `time`.
    ///
    /// `n` tokens take `n a + n^2 c / 2`, where `c` is the price of what a prompt's token attends and `a` that of the
    /// first token with its context and half a `c`; this is the larger root, in the form that divides by no difference.
    pub(crate) fn tokens_within(&self, num_computed: usize, time: CostNs) -> usize {
        let (c, time) = (self.prompt_context_token_ns, time as f64);
        let a = self.prompt_token_ns + c * (num_computed as f64 + 0.5);
        (2.0 * time / (a + (a * a + 2.0 * c * time).sqrt())) as usize
    }
}

/// What a calibration measured.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Measurements {
    /// A step of one token without context.
    pub(crate) one_token: Duration,
    /// A step of that many tokens of one prompt.
    pub(crate) chunk: (usize, Duration),
    /// A step of one token for each of that many sequences.
    pub(crate) batch: (usize, Duration),
    /// A step of one token that attends that many.
    pub(crate) context: (usize, Duration),
    /// The chunk once more, behind so many tokens, where that was seen.
    pub(crate) behind: Option<(usize, Duration)>,
}

impl Measurements {
    /// The smallest price: a clock that stands still must not make work free.
    const LEAST_NS: f64 = 0.01;
    /// A step reads at least so many times more for a token of its own than for one that it attends: a model's weights are
    /// some thousand times larger than the keys and values of a token.
    const LEAST_RATIO: f64 = 512.0;

    /// A token of a prompt costs no less than so small a part of what it has of its chunk: how much longer that takes than one
    /// token is a difference of two times, of which either may have been held up.
    const LEAST_PART_OF_CHUNK: f64 = 1.0 / 16.0;
    /// Of what a generated token pays for each that it attends, what one of a prompt is taken to pay before that was seen:
    /// those of a prompt share what they read. A decoder of 0.6 B parameters showed a tenth to a seventh on a CPU. It holds until
    /// the first idle second.
    const PART_OF_PROMPTS: f64 = 1.0 / 8.0;

    /// Each was disturbed or not, and whatever disturbs a step makes it longer. So one token takes no longer than any of
    /// the others, which do more; and no token is dearer than one alone.
    pub(crate) fn model(&self) -> CostModel {
        let behind_time = self.behind.map_or(Duration::MAX, |(_, time)| time);
        let others = [self.chunk.1, self.batch.1, self.context.1, behind_time];
        let one_token = others.into_iter().fold(self.one_token, Duration::min);
        let alone_ns = (one_token.as_nanos() as f64).max(Self::LEAST_NS);
        let beyond_one = |(count, time): (usize, Duration)| {
            time.saturating_sub(one_token).as_nanos() as f64 / count.saturating_sub(1).max(1) as f64
        };
        let dearest_ns = (alone_ns / Self::LEAST_RATIO).max(Self::LEAST_NS);
        let chunk_time = self.chunk.1.min(behind_time);
        let context_token_ns = beyond_one(self.context).clamp(Self::LEAST_NS, dearest_ns);
        let (context_token_ns, prompt_context_token_ns) = match self.behind {
            None => (context_token_ns, (context_token_ns * Self::PART_OF_PROMPTS).max(Self::LEAST_NS)),
            // Behind fewer tokens than it has, what a chunk takes longer tells nothing.
            Some((before, _)) if before < self.chunk.0 => (context_token_ns, context_token_ns),
            Some((before, time)) => {
                let beyond_chunk = (time - chunk_time).as_nanos() as f64;
                // All of a chunk read at least what one of them would; and one that shares what it reads with no other, and
                // whose context is a small part of its step, takes no less than one that does.
                let least = (context_token_ns / self.chunk.0 as f64).max(Self::LEAST_NS);
                let of_prompt = (beyond_chunk / (self.chunk.0 * before) as f64).clamp(least, dearest_ns);
                (context_token_ns.max(of_prompt), of_prompt)
            }
        };
        // The attention within the chunk is paid for apart.
        let attended = (self.chunk.0 as f64 + 1.0) / 2.0 * prompt_context_token_ns;
        let (batch, batch_time) = self.batch;
        let of_chunk = chunk_time.as_nanos() as f64 / self.chunk.0.max(1) as f64;
        let least_of_chunk = (of_chunk * Self::LEAST_PART_OF_CHUNK).clamp(Self::LEAST_NS, alone_ns);
        CostModel {
            prompt_token_ns: (beyond_one((self.chunk.0, chunk_time)) - attended).clamp(least_of_chunk, alone_ns),
            generated_token_ns: (batch_time.as_nanos() as f64 / batch.max(1) as f64).clamp(Self::LEAST_NS, alone_ns),
            context_token_ns,
            prompt_context_token_ns,
            lone_token_ns: alone_ns,
        }
    }
}

/// Cuts a duration into shares in proportion to costs. They add up to the duration, to the nanosecond.
#[derive(Debug)]
pub(crate) struct Shares {
    duration_ns: u128,
    total_cost: u128,
    cost: u128,
    given_ns: u128,
}

impl Shares {
    pub(crate) fn of(duration: Duration, total_cost: CostNs) -> Self {
        Self { duration_ns: duration.as_nanos(), total_cost: u128::from(total_cost).max(1), cost: 0, given_ns: 0 }
    }

    /// The share of whoever costs `cost`. Over all of them the costs add up to the total.
    pub(crate) fn next(&mut self, cost: CostNs) -> u64 {
        self.cost += u128::from(cost);
        let until_here = self.duration_ns * self.cost / self.total_cost;
        let share = until_here - self.given_ns;
        self.given_ns = until_here;
        share as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prices_are_shown_in_rounded_microseconds() {
        let model = CostModel {
            prompt_token_ns: 258_815.0,
            generated_token_ns: 1_012_345.678,
            context_token_ns: 31.26,
            prompt_context_token_ns: 5.0,
            ..CostModel::default()
        };
        let shown =
            "prompt token 258.8 µs and 0.0050 µs for each that it attends, generated token 1012.3 µs and 0.0313 µs";
        assert_eq!(model.to_string(), shown);
    }

    #[test]
    fn a_chunk_costs_its_tokens_and_every_token_that_they_attend() {
        let model = CostModel {
            prompt_token_ns: 100.0,
            generated_token_ns: 1000.0,
            context_token_ns: 3.0,
            prompt_context_token_ns: 1.0,
            ..CostModel::default()
        };
        // Tokens 10, 11 and 12 attend 11, 12 and 13 tokens.
        assert_eq!(model.of_tokens(10, 3), 300 + 36);
        assert_eq!(model.of_tokens(12, 1), 1000 + 13 * 3);
    }

    #[test]
    fn a_sequence_costs_no_more_than_its_bound_however_it_is_cut() {
        let model = CostModel {
            prompt_token_ns: 70.3,
            generated_token_ns: 913.7,
            context_token_ns: 1.9,
            prompt_context_token_ns: 0.7,
            ..CostModel::default()
        };
        let dear_prompts = CostModel { context_token_ns: 0.7, prompt_context_token_ns: 1900.0, ..model };
        for (model, cut) in
            [model, dear_prompts].into_iter().flat_map(|model| [1, 2, 3, 16, 100].map(|cut| (model, cut)))
        {
            let ends = (0..100).step_by(cut).map(|start| (start, cut.min(100 - start)));
            let cost: CostNs = ends.map(|(start, tokens)| model.of_tokens(start, tokens)).sum();
            assert!(cost <= model.of_sequence(100), "{cut}: {cost}");
        }
    }

    #[test]
    fn a_chunk_within_a_time_is_the_longest_that_is() {
        let model = CostModel {
            prompt_token_ns: 70.3,
            generated_token_ns: 70.3,
            context_token_ns: 90.0,
            prompt_context_token_ns: 1.9,
            ..CostModel::default()
        };
        for (computed, time) in [(0, 5_000), (1000, 100_000), (77, 1)] {
            let tokens = model.tokens_within(computed, time);
            assert!(tokens == 0 || model.of_tokens(computed, tokens) <= time + 1);
            assert!(model.of_tokens(computed, tokens + 1) > time);
        }
    }

    #[test]
    fn a_calibration_finds_the_prices_behind_its_measurements() {
        let truth = CostModel {
            prompt_token_ns: 50_000.0,
            generated_token_ns: 0.0,
            context_token_ns: 100.0,
            prompt_context_token_ns: 20.0,
            ..CostModel::default()
        };
        let step = Duration::from_micros(500);
        let prompt = |computed, tokens| step + Duration::from_nanos(truth.of_tokens(computed, tokens));
        let one = |context: usize| step + Duration::from_nanos(50_000 + 100 * context as u64);
        let measured = Measurements {
            one_token: one(1),
            chunk: (64, prompt(0, 64)),
            batch: (8, step + 8 * Duration::from_micros(50)),
            context: (513, one(513)),
            behind: Some((512, prompt(512, 64))),
        };
        let model = measured.model();
        assert!((model.prompt_token_ns / 50_000.0 - 1.0).abs() < 0.05, "{model:?}");
        assert_eq!((model.generated_token_ns, model.context_token_ns), (112_500.0, 100.0));
        assert_eq!(model.prompt_context_token_ns, 20.0);
        let short = Measurements { behind: Some((0, measured.chunk.1 + Duration::from_millis(1))), ..measured };
        let prices = [short.model().context_token_ns, short.model().prompt_context_token_ns];
        assert_eq!(prices, [100.0; 2], "no prompt is as long, and what is not attended has no price");
        let unseen = Measurements { behind: None, ..measured }.model();
        assert_eq!(
            [unseen.context_token_ns, unseen.prompt_context_token_ns],
            [100.0, 12.5],
            "a part, until it is seen"
        );
        assert!((unseen.prompt_token_ns / 50_000.0 - 1.0).abs() < 0.05, "{unseen:?}");
        let held_up = Measurements { chunk: (64, Duration::from_secs(3)), ..measured };
        assert_eq!(held_up.model().prompt_context_token_ns, 100.0 / 64.0, "never as good as free");
        // A step of one and a step of eight take what was measured, one of fifteen as much longer as seven more do.
        let step_of = |count: usize| (model.generated_token_ns * count as f64 + model.beyond_price(count)).round();
        assert_eq!([1, 8, 15].map(step_of), [550_100.0, 900_000.0, 1_249_900.0]);
    }

    #[test]
    fn a_step_that_was_held_up_makes_no_token_dearer_than_one_alone() {
        let ms = Duration::from_millis;
        let undisturbed = Measurements {
            one_token: ms(50),
            chunk: (6, ms(75)),
            batch: (8, ms(80)),
            context: (513, ms(50)),
            behind: Some((512, ms(75))),
        };
        let chunk_held_up = Measurements { chunk: (6, ms(3000)), ..undisturbed };
        assert_eq!(chunk_held_up.model(), undisturbed.model(), "behind a context it was not");
        let (chunk, batch, behind) = ((6, ms(3000)), (8, ms(3000)), Some((512, ms(3000))));
        let held_up = Measurements { chunk, batch, behind, ..undisturbed };
        let model = held_up.model();
        assert_eq!((model.prompt_token_ns, model.generated_token_ns), (5e7, 5e7));
        let context_held_up =
            Measurements { context: (513, ms(3000)), behind: Some((512, ms(6000))), ..undisturbed }.model();
        assert!(context_held_up.tokens_within(1_000, 250_000_000) > 0, "{context_held_up:?}");
        let none_longer = Measurements { chunk: (64, ms(48)), one_token: ms(50), ..undisturbed }.model();
        assert_eq!(none_longer.prompt_token_ns, 48e6 / 64.0 / 16.0, "prompts are never as good as free");
        let first_held_up = Measurements { one_token: ms(3000), ..undisturbed };
        assert_eq!(first_held_up.model(), undisturbed.model());
        assert_eq!(undisturbed.model().generated_token_ns, 1e7);
    }

    #[test]
    fn shares_add_up_to_the_nanosecond_and_follow_the_costs() {
        let costs = [3, 1, 0, 7, 1];
        let mut shares = Shares::of(Duration::from_nanos(1001), costs.iter().sum());
        let given: Vec<_> = costs.iter().map(|&cost| shares.next(cost)).collect();
        assert_eq!(given.iter().sum::<u64>(), 1001);
        assert_eq!(given, [250, 83, 0, 584, 84]);
    }
}
