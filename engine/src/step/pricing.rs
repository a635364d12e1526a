//! Better prices, from steps that nobody asked for. They run while nothing else does, also in the engines that share the
//! threads, so that nobody waits for more than one of them, and prices change only when there is nobody to be fair to: a bound
//! between two accounts never spans two prices. They run in the blocks that a new sequence would get; where all carry prefixes,
//! those of the least recently used are lost.

use std::sync::mpsc::{RecvError, RecvTimeoutError};
use std::time::Duration;

use super::{Command, StepLoop};
use crate::admission::Phase;
use crate::calibration::{Calibration, Probe};
use crate::clock::Clock;
use crate::config::EngineConfig;
use crate::cost::CostModel;
use crate::error::EngineError;
use crate::model_runner::ModelRunner;

/// Without a command before a step that nobody asked for: whoever sends one request after the other seldom meets one.
const REST: Duration = Duration::from_secs(1);
/// The same before the next one: prices are right some seconds after a start, and who comes meanwhile waits for one step as ever.
const SHORT_REST: Duration = Duration::from_millis(100);

/// What work costs as far as is known before the first request, and what is still to be measured.
pub(super) fn at_start(
    runner: &mut ModelRunner,
    clock: &dyn Clock,
    config: &EngineConfig,
) -> Result<(CostModel, Option<Calibration>), EngineError> {
    match (config.costs, config.former_costs) {
        (Some(costs), _) => Ok((costs, None)),
        (None, Some(former)) => {
            let calibration = Calibration::resume(runner, clock, config).map_err(EngineError::Calibration)?;
            Ok((former, Some(calibration)))
        }
        (None, None) => {
            let (calibration, costs) = Calibration::begin(runner, clock, config).map_err(EngineError::Calibration)?;
            Ok((costs, Some(calibration)))
        }
    }
}

impl StepLoop {
    /// What comes next. Errors when nobody can ask any more.
    pub(super) fn wait(&mut self) -> Result<Command, RecvError> {
        let mut rest = REST;
        while self.calibration.is_some() {
            match self.commands.recv_timeout(rest) {
                Ok(command) => return Ok(command),
                Err(RecvTimeoutError::Disconnected) => return Err(RecvError),
                Err(RecvTimeoutError::Timeout) => self.refine_costs(),
            }
            rest = SHORT_REST;
        }
        self.commands.recv()
    }

    /// Looks again at what one kind of step takes, if nothing runs, waits or is parked, here and in the engines that share
    /// the threads, and nobody is about to stop the engine.
    pub(super) fn refine_costs(&mut self) {
        let Some(calibration) = &mut self.calibration else { return };
        let is_open = self.shared.admission.phase() == Phase::Open;
        if !is_open || !self.scheduler.is_empty() {
            return;
        }
        let turns = self.turns.clone();
        let Some(turn) = turns.take_if_free() else { return };
        let blocks = self.scheduler.evict(calibration.num_blocks());
        // Blocks that nothing was written to stand in no memory yet, and would be read in no time.
        let cleared = self.runner.clear_blocks(&blocks);
        let mut probe = Probe { runner: &mut self.runner, clock: self.clock.as_ref(), blocks: &blocks };
        let looked = cleared.and_then(|()| calibration.look_again(&mut probe));
        drop(turn);
        if let Err(error) = looked {
            tracing::warn!(%error, "what work costs is not measured again");
            self.calibration = None;
            return;
        }
        let (costs, is_done) = (calibration.costs(), calibration.is_done());
        let Some(costs) = costs else { return };
        self.scheduler.set_costs(costs);
        self.publish();
        if is_done {
            tracing::debug!(%costs, "what work costs, measured again");
            self.observer.0.costs_measured(&costs);
            self.calibration = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::sync::{Arc, Mutex};

    use super::*;
    use crate::clock::ManualClock;
    use crate::engine::{EngineHandle, EngineParts};
    use crate::event::Event;
    use crate::fixtures::request;
    use crate::stats::{StepObserver, StepReport};
    use crate::testing::{Pace, StubModel, parts};

    const STEP: Duration = Duration::from_millis(50);
    const FURTHER_TOKEN: Duration = Duration::from_millis(5);

    /// While it is busy, each look at it takes a second, as on a processor that others use.
    #[derive(Debug, Default)]
    struct BusyClock {
        clock: ManualClock,
        is_busy: AtomicBool,
    }

    impl Clock for BusyClock {
        fn now(&self) -> Duration {
            if self.is_busy.load(Ordering::Relaxed) {
                self.clock.advance(Duration::from_secs(1));
            }
            self.clock.now()
        }

        fn wall(&self) -> Duration {
            self.clock.wall()
        }
    }

    fn model() -> StubModel {
        StubModel::new(32, 4)
    }

    /// What an engine found worth keeping.
    #[derive(Debug, Default)]
    struct Kept(Mutex<Vec<CostModel>>);

    impl StepObserver for Kept {
        fn step(&self, _: &StepReport) {}

        fn costs_measured(&self, costs: &CostModel) {
            self.0.lock().expect("nobody panicked").push(*costs);
        }
    }

    fn measured_on(clock: &Arc<BusyClock>) -> (StepLoop, EngineHandle) {
        started_with(clock, None, Arc::default())
    }

    fn started_with(
        clock: &Arc<BusyClock>,
        former_costs: Option<CostModel>,
        kept: Arc<Kept>,
    ) -> (StepLoop, EngineHandle) {
        started_at(STEP, clock, former_costs, kept)
    }

    /// Of a model whose steps take `step`.
    fn started_at(
        step: Duration,
        clock: &Arc<BusyClock>,
        former_costs: Option<CostModel>,
        kept: Arc<Kept>,
    ) -> (StepLoop, EngineHandle) {
        let pace = Pace { clock: clock.clock.clone(), step, further_token: FURTHER_TOKEN };
        let config = EngineConfig {
            num_kv_blocks: 64,
            max_model_len: 200,
            costs: None,
            former_costs,
            ..EngineConfig::default()
        };
        let parts = parts(model().with_pace(pace), config);
        let parts = EngineParts { clock: Arc::<BusyClock>::clone(clock), observer: kept, ..parts };
        StepLoop::new(parts).expect("the stub runs every step")
    }

    /// As the engine's thread does while nobody asks.
    fn rest(step_loop: &mut StepLoop) -> usize {
        let mut looks = 0;
        while step_loop.calibration.is_some() {
            step_loop.refine_costs();
            looks += 1;
            assert!(looks < 100, "it is never content");
        }
        looks
    }

    #[test]
    fn all_kinds_of_steps_but_the_longest_run_once_before_the_first_request_of_a_model_that_takes_its_time() {
        let clock = Arc::new(BusyClock::default());
        let (mut step_loop, _handle) = measured_on(&clock);
        // The first and five others, one of which has 40 tokens: as many as take 250 ms at the pace of a batch of eight.
        assert_eq!(clock.now(), 6 * STEP + 39 * FURTHER_TOKEN);
        assert_eq!(rest(&mut step_loop), 12, "and twice more when there is time, or three times one of more tokens");
        let after = clock.now();
        step_loop.refine_costs();
        assert_eq!(clock.now(), after, "then never again");
    }

    #[test]
    fn a_start_of_a_slow_model_still_runs_enough_tokens_to_tell_their_price() {
        let clock = Arc::new(BusyClock::default());
        let step = 8 * STEP;
        let (_step_loop, _handle) = started_at(step, &clock, None, Arc::default());
        // Five of them would be surely done in 250 ms at the pace of a batch of eight, and six in 300 ms.
        assert_eq!(clock.now(), 6 * step + 5 * FURTHER_TOKEN);
    }

    #[test]
    fn a_start_that_knows_former_prices_runs_a_single_step_and_finds_the_same_in_idle_moments() {
        let kept = Arc::<Kept>::default();
        let (mut first, first_handle) = started_with(&Arc::default(), None, Arc::clone(&kept));
        rest(&mut first);
        let costs = kept.0.lock().unwrap().pop().expect("they are worth keeping");
        let clock = Arc::new(BusyClock::default());
        let (mut second, second_handle) = started_with(&clock, Some(costs), Arc::clone(&kept));
        assert_eq!(clock.now(), STEP, "the model runs");
        let bounds = |second: &mut StepLoop| {
            second.step();
            [&first_handle, &second_handle].map(|handle| handle.stats().fair_share_bound)
        };
        first.step();
        let [right, at_once] = bounds(&mut second);
        assert_eq!(at_once, right);
        rest(&mut second);
        assert_eq!(bounds(&mut second)[1], right);
        assert_eq!(*kept.0.lock().unwrap(), [costs]);
    }

    #[test]
    fn former_prices_hold_until_new_ones_are_worth_as_much() {
        let former = CostModel {
            prompt_token_ns: 7e6,
            generated_token_ns: 7e7,
            context_token_ns: 7e3,
            prompt_context_token_ns: 7e3,
            lone_token_ns: 7e7,
        };
        let clock = Arc::new(BusyClock::default());
        let (mut step_loop, handle) = started_with(&clock, Some(former), Arc::default());
        let bound = |step_loop: &mut StepLoop| {
            step_loop.step();
            handle.stats().fair_share_bound
        };
        let of_former = bound(&mut step_loop);
        clock.is_busy.store(true, Ordering::Relaxed);
        (0..5).for_each(|_| step_loop.refine_costs());
        clock.is_busy.store(false, Ordering::Relaxed);
        assert_eq!(bound(&mut step_loop), of_former, "each kind of step ran once, and was held up");
        rest(&mut step_loop);
        assert_ne!(bound(&mut step_loop), of_former);
    }

    #[test]
    fn prices_hold_while_a_longer_chunk_is_yet_to_be_seen_behind_a_context() {
        let clock = Arc::new(BusyClock::default());
        clock.is_busy.store(true, Ordering::Relaxed);
        let (mut step_loop, handle) = measured_on(&clock);
        step_loop.refine_costs();
        clock.is_busy.store(false, Ordering::Relaxed);
        let mut bound_after_a_look = || {
            step_loop.refine_costs();
            step_loop.step();
            handle.stats().fair_share_bound
        };
        // A token alone takes less than was thought, so the next look is at a chunk of more of them.
        let before = bound_after_a_look();
        assert_eq!(bound_after_a_look(), before, "the longer chunk alone was seen");
        assert_ne!(bound_after_a_look(), before);
    }

    #[test]
    fn prices_of_a_start_that_was_held_up_are_put_right_when_nobody_asks() {
        let (calm, busy) = (Arc::new(BusyClock::default()), Arc::new(BusyClock::default()));
        busy.is_busy.store(true, Ordering::Relaxed);
        let [(mut true_prices, calm_handle), (mut wrong_prices, busy_handle)] = [&calm, &busy].map(measured_on);
        let bounds = || [&calm_handle, &busy_handle].map(|handle| handle.stats().fair_share_bound);
        true_prices.step();
        wrong_prices.step();
        let [right, wrong] = bounds();
        assert!(wrong > 5 * right, "{wrong:?} {right:?}");
        busy.is_busy.store(false, Ordering::Relaxed);
        [&mut true_prices, &mut wrong_prices].into_iter().for_each(|step_loop| _ = rest(step_loop));
        let [right, mended] = bounds();
        assert_eq!(mended, right);
    }

    #[test]
    fn no_step_is_run_for_prices_while_a_request_is_inside() {
        let clock = Arc::new(BusyClock::default());
        let (mut step_loop, handle) = measured_on(&clock);
        let stream = handle.submit(request(0, &[1, 2, 3])).unwrap();
        step_loop.step();
        let before = clock.now();
        step_loop.refine_costs();
        assert_eq!(clock.now(), before);
        drop(stream);
        step_loop.step();
        let turns = step_loop.turns.clone();
        let of_another = turns.take();
        step_loop.refine_costs();
        assert_eq!(clock.now(), before, "another engine computes");
        drop(of_another);
        step_loop.refine_costs();
        let after = clock.now();
        assert_eq!(after, before + STEP + 47 * FURTHER_TOKEN, "as many tokens as take 300 ms");
        handle.drain();
        step_loop.refine_costs();
        assert_eq!(clock.now(), after, "nobody will ask any more");
    }

    #[test]
    fn prices_are_looked_at_again_in_a_cache_full_of_prefixes_and_the_last_used_ones_stay() {
        const PROMPTS: u32 = 8;
        let (mut step_loop, handle) = measured_on(&Arc::new(BusyClock::default()));
        // Ten blocks each.
        let ask = |step_loop: &mut StepLoop, id: u32| {
            let prompt: Vec<u32> = (0..40).map(|token| (token + id) % 31).collect();
            let stream = handle.submit(request(id.into(), &prompt)).unwrap();
            step_loop.step();
            drop(stream);
            step_loop.step();
        };
        (0..PROMPTS).for_each(|id| ask(&mut step_loop, id));
        let num_blocks = step_loop.calibration.as_ref().unwrap().num_blocks();
        let stats = handle.stats();
        assert!(stats.free_blocks == 64 && 64 - stats.cached_blocks < num_blocks, "{stats:?}");
        rest(&mut step_loop);
        step_loop.check_integrity();
        ask(&mut step_loop, PROMPTS - 1);
        assert_eq!(handle.stats().prefix_hit_tokens_total, 39, "all but the last token");
    }

    #[test]
    fn steps_that_are_run_for_prices_leave_cached_prefixes_as_they_are() {
        let (mut step_loop, handle) = measured_on(&Arc::new(BusyClock::default()));
        let prompt: Vec<u32> = (1..13).collect();
        let answer = |step_loop: &mut StepLoop, id| {
            let mut asked = request(id, &prompt);
            (asked.sampling.max_tokens, asked.sampling.temperature) = (4, 0.0);
            let mut stream = handle.submit(asked).unwrap();
            (0..8).for_each(|_| _ = step_loop.step());
            let events = std::iter::from_fn(|| stream.try_next());
            events.filter_map(|event| if let Event::Token(token) = event { Some(token.token) } else { None }).collect()
        };
        let first: Vec<u32> = answer(&mut step_loop, 0);
        assert_eq!(first, model().greedy(&prompt, 4));
        rest(&mut step_loop);
        assert_eq!(answer(&mut step_loop, 1), first);
        assert_eq!(handle.stats().prefix_hit_tokens_total, 11);
        step_loop.check_integrity();
    }
}
