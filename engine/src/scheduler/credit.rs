//! How the queue of a scheduler is made, and what its shares pay.

use crate::config::EngineConfig;
use crate::cost::{CostModel, CostNs};
use crate::policy::WaitingQueue;
use crate::sequence::Sequence;

/// One that nobody waits in, and how far its credits can drift apart, as `policy` derives it.
pub(super) fn queue(config: &EngineConfig, costs: &CostModel) -> (WaitingQueue<Sequence>, CostNs) {
    let quantum = costs.of_tokens(0, config.max_num_batched_tokens);
    let places = config.max_num_seqs as CostNs;
    let bound = quantum.saturating_add(places.saturating_mul(costs.of_sequence(config.max_model_len)));
    (WaitingQueue::new(quantum, config.class_patience), bound)
}

/// Takes the price of what a sequence computes for the first time from its share's credit.
pub(super) fn charge(waiting: &mut WaitingQueue<Sequence>, costs: &CostModel, sequence: &mut Sequence) {
    if let Some(unpaid) = sequence.charge_scheduled() {
        let price = costs.of_tokens(unpaid.start, unpaid.len());
        waiting.charge(sequence.share, sequence.share_weight, price);
    }
}
