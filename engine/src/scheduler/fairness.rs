//! The bound that `policy` derives, measured from outside: accounts whose requests never end to come, of one choice or of
//! several, and of which some are cancelled, over random engines, requests and weights; and once more beside another class,
//! where some requests are parked again and again.

use std::collections::{BTreeMap, BTreeSet};

use passerelle_models::KvReach;

use super::*;
use crate::event_stream::EventStream;
use crate::fixtures::{kv_cache, request, sequence};
use crate::random::mix;
use crate::request::{Class, Request, ShareKey, ShareWeight};

const SEEDS: u64 = 60;
const STEPS: usize = 400;
const ACCOUNTS: u64 = 6;
/// The accounts below are standard, the others batch.
const STANDARD_ACCOUNTS: u64 = 4;
const BLOCK_SIZE: usize = 4;
const LONGEST: usize = 40;

/// What requests are like.
#[derive(Clone, Copy, PartialEq)]
enum Requests {
    /// Of the standard class, and granted all that they ask for.
    Plain,
    /// Of two classes, and some of them granted a token now and then.
    Mixed,
}

struct Market {
    state: u64,
    requests: Requests,
    now: Duration,
    scheduler: Scheduler,
    costs: CostModel,
    streams: BTreeMap<u64, EventStream>,
    waiting: BTreeMap<u64, BTreeSet<u64>>,
    /// Requests to come, and their tokens at the end.
    lengths: BTreeMap<u64, usize>,
    /// Tokens of each choice that its account has paid for.
    paid: BTreeMap<(u64, u32), usize>,
    /// Sequences of each request that have not ended.
    live: BTreeMap<u64, usize>,
    served: BTreeMap<u64, CostNs>,
    next_id: u64,
    num_forks: usize,
    num_cancelled: usize,
    num_parked: usize,
}

/// What happened in all markets together.
#[derive(Default)]
struct Seen {
    /// Of the bound.
    widest: f64,
    forks: usize,
    cancelled: usize,
    parked: usize,
    batch_pairs: usize,
}

#[test]
fn what_two_backlogged_accounts_are_served_differs_by_less_than_the_bound_at_every_step() {
    let Seen { widest, forks, cancelled, .. } = watch(Requests::Plain);
    // Markets without these would prove less.
    assert!(forks > SEEDS as usize && cancelled > SEEDS as usize, "{forks} forks, {cancelled} cancelled");
    // The bound is not empty words: a tenth of it is reached.
    assert!(widest > 0.1, "{widest}");
}

#[test]
fn the_bound_holds_in_each_of_two_classes_and_beside_requests_that_are_parked_and_come_again() {
    let Seen { parked, batch_pairs, .. } = watch(Requests::Mixed);
    assert!(parked > SEEDS as usize && batch_pairs > SEEDS as usize, "{parked} parked, {batch_pairs} pairs");
}

/// # Panics
/// If two accounts of one class drift further apart than they may.
fn watch(requests: Requests) -> Seen {
    let mut seen = Seen::default();
    for seed in 0..SEEDS {
        let mut market = Market::new(seed, requests);
        // What each pair had been served when both began to wait without a break.
        let mut starts: BTreeMap<(u64, u64), (CostNs, CostNs)> = BTreeMap::new();
        for step in 0..STEPS {
            market.cancel();
            // Whose last request in line was cancelled does not wait without a break, whatever comes next.
            let before = market.backlogged();
            market.arrive(step);
            market.step();
            let (_, bound) = market.scheduler.fairness();
            let backlogged: Vec<_> = before.intersection(&market.backlogged()).copied().collect();
            let pairs = backlogged.iter().flat_map(|&a| backlogged.iter().map(move |&b| (a, b)));
            let pairs: BTreeSet<_> = pairs.filter(|&(a, b)| a < b && class_of(a) == class_of(b)).collect();
            starts.retain(|pair, _| pairs.contains(pair));
            for (a, b) in pairs {
                let now = (market.served[&a], market.served[&b]);
                let start = *starts.entry((a, b)).or_insert(now);
                let gap = (now.0 - start.0).abs_diff(now.1 - start.1);
                assert!(gap <= 2 * bound, "seed {seed}, step {step}: {gap} of {bound}");
                seen.widest = seen.widest.max(gap as f64 / (2 * bound) as f64);
                seen.batch_pairs += usize::from(class_of(a) == Class::Batch);
            }
        }
        seen.forks += market.num_forks;
        seen.cancelled += market.num_cancelled;
        seen.parked += market.num_parked;
    }
    seen
}

fn class_of(account: u64) -> Class {
    if account < STANDARD_ACCOUNTS { Class::Standard } else { Class::Batch }
}

impl Market {
    fn new(seed: u64, requests: Requests) -> Self {
        let mut state = mix(seed);
        let mut below = |bound: u64| {
            state = mix(state);
            state % bound
        };
        let costs = CostModel {
            prompt_token_ns: 50.0 + below(200) as f64,
            generated_token_ns: 100.0 + below(900) as f64,
            context_token_ns: 1.0 + below(20) as f64,
            prompt_context_token_ns: 1.0 + below(20) as f64,
            lone_token_ns: 1000.0,
        };
        let max_num_seqs = 1 + below(3) as usize;
        let config = EngineConfig {
            num_kv_blocks: LONGEST.div_ceil(BLOCK_SIZE) + below(12) as usize,
            max_num_seqs,
            max_num_batched_tokens: max_num_seqs + below(10) as usize,
            max_model_len: LONGEST,
            prefill_chunk_tokens: 1 + below(8) as usize,
            ..EngineConfig::default()
        };
        let class_patience = match requests {
            Requests::Plain => config.class_patience,
            Requests::Mixed => Duration::from_millis(below(40)),
        };
        let config = EngineConfig { class_patience, ..config };
        let served = (0..ACCOUNTS).map(|account| (account, 0)).collect();
        Self {
            state,
            requests,
            now: Duration::ZERO,
            scheduler: Scheduler::new(config, costs, kv_cache(BLOCK_SIZE, &[KvReach::Full])),
            costs,
            streams: BTreeMap::new(),
            waiting: BTreeMap::new(),
            lengths: BTreeMap::new(),
            paid: BTreeMap::new(),
            live: BTreeMap::new(),
            served,
            next_id: 0,
            num_forks: 0,
            num_cancelled: 0,
            num_parked: 0,
        }
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.state = mix(self.state);
        self.state % bound
    }

    /// The first account floods; others come and go.
    fn arrive(&mut self, step: usize) {
        let is_mixed = self.requests == Requests::Mixed;
        for account in 0..if is_mixed { ACCOUNTS } else { STANDARD_ACCOUNTS } {
            let queued = self.waiting.get(&account).map_or(0, BTreeSet::len);
            let comes_and_goes = 1 < account && account < STANDARD_ACCOUNTS;
            let is_away = comes_and_goes && (step / 50).is_multiple_of(account as usize);
            let wanted = if account == 0 { 6 } else { 2 };
            for _ in queued..if is_away { 0 } else { wanted } {
                let prompt_len = 1 + self.below(20) as u32;
                let length =
                    prompt_len as usize + 1 + self.below((LONGEST as u64 - 1) - u64::from(prompt_len)) as usize;
                let id = self.next_id * ACCOUNTS + account;
                self.next_id += 1;
                // A third of the prompts begin alike.
                let start = if self.below(3) == 0 { 0 } else { id as u32 * 1000 };
                let prompt: Vec<_> = (start..start + prompt_len).collect();
                let weight = ShareWeight((1 + account as u32 % 2).try_into().unwrap());
                let most_choices = self.scheduler.config.max_num_seqs as u64;
                let num_choices = if self.below(3) == 0 { 1 + self.below(most_choices) as u32 } else { 1 };
                let granted_tokens = (is_mixed && self.below(3) == 0).then(|| 1 + self.below(3) as u32);
                let asked = Request {
                    share_key: ShareKey(account),
                    share_weight: weight,
                    class: class_of(account),
                    granted_tokens,
                    num_choices: num_choices.try_into().unwrap(),
                    ..request(id, &prompt)
                };
                let (sequence, stream) = sequence(asked);
                self.scheduler.add(sequence);
                self.streams.insert(id, stream);
                self.live.insert(id, 1);
                self.waiting.entry(account).or_default().insert(id);
                self.lengths.insert(id, length);
            }
        }
    }

    fn backlogged(&self) -> BTreeSet<u64> {
        self.waiting.iter().filter(|(_, ids)| !ids.is_empty()).map(|(&account, _)| account).collect()
    }

    /// Now and then a reader leaves, or gives one of its choices up, wherever the request is.
    fn cancel(&mut self) {
        let ids: Vec<u64> = self.streams.keys().copied().collect();
        if !ids.is_empty() && self.below(4) == 0 {
            let id = ids[self.below(ids.len() as u64) as usize];
            match self.below(2) {
                0 => _ = self.streams[&id].abort_choice(0),
                _ => _ = self.streams[&id].abort(),
            }
        }
        for sequence in self.scheduler.extract(|sequence| sequence.events.is_aborted()) {
            self.waiting.entry(sequence.id.arrival % ACCOUNTS).or_default().remove(&sequence.id.arrival);
            self.num_cancelled += 1;
            self.forget(sequence.id.arrival);
        }
        self.scheduler.check_integrity();
    }

    fn step(&mut self) {
        if self.requests == Requests::Mixed {
            self.now += Duration::from_millis(1);
            self.grant();
        }
        let batch = self.scheduler.schedule(self.now);
        self.scheduler.check_integrity();
        self.num_parked += self.scheduler.num_parked();
        for scheduled in &batch.sequences {
            self.pay(scheduled);
            let samples = self.scheduler.sequence(scheduled.id).unwrap().samples_next();
            let sequence = self.scheduler.advance(scheduled.id).unwrap();
            if samples {
                let further = sequence.events.take_further_choices();
                let forks = further.into_iter().map(|events| self.scheduler.fork(scheduled.id, events).unwrap());
                let forks: Vec<_> = forks.collect();
                self.num_forks += forks.len();
                *self.live.get_mut(&scheduled.id.arrival).unwrap() += forks.len();
                for fork in forks {
                    self.paid.insert((fork.arrival, fork.choice), self.paid[&(fork.arrival, 0)]);
                    self.append(fork);
                }
                self.append(scheduled.id);
            }
        }
    }

    /// A token, to every third.
    fn grant(&mut self) {
        let ids: Vec<u64> = self.streams.keys().copied().collect();
        for id in ids {
            if self.below(3) == 0 {
                self.streams[&id].grant(1);
            }
        }
    }

    /// What this account has to pay for of the step.
    fn pay(&mut self, scheduled: &ScheduledSequence) {
        let (id, account) = (scheduled.id.arrival, scheduled.id.arrival % ACCOUNTS);
        self.waiting.entry(account).or_default().remove(&id);
        let sequence = self.scheduler.sequence(scheduled.id).unwrap();
        let (start, end) = (sequence.num_computed, sequence.num_computed + scheduled.num_tokens);
        let weight = CostNs::from(sequence.share_weight.0.get());
        let paid = self.paid.entry((id, scheduled.id.choice)).or_default();
        let unpaid = start.max(*paid);
        if unpaid < end {
            let price = self.costs.of_tokens(unpaid, end - unpaid);
            *self.served.entry(account).or_default() += price.div_ceil(weight);
            *paid = end;
        }
    }

    /// The next token of a sequence, which may be its last. Choices differ in length.
    fn append(&mut self, id: SequenceId) {
        let sequence = self.scheduler.sequence_mut(id).unwrap();
        let length = sequence.tokens().len() + 1;
        sequence.append(900_000 + length as u32).unwrap();
        if length >= LONGEST.min(self.lengths[&id.arrival] + 2 * id.choice as usize) {
            self.scheduler.remove(id, Prefixes::Keep).unwrap();
            self.forget(id.arrival);
        }
    }

    /// One sequence of the request has ended.
    fn forget(&mut self, arrival: u64) {
        let live = self.live.get_mut(&arrival).unwrap();
        *live -= 1;
        if *live == 0 {
            self.streams.remove(&arrival);
        }
    }
}
