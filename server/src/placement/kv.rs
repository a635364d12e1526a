//! How the KV cache of several models shares one memory.

use passerelle_models::KvCacheSpec;

use crate::units::ByteSize;

/// Of a device's memory, for its driver, libraries, and what recorded steps keep: of a small model 1.4 GiB of an H200
/// (`loadtests/results/2026-11-26-gpu-h200.md`), and some megabytes more for each recording of a larger one.
pub const DEVICE_OVERHEAD: ByteSize = ByteSize(3 << 29);

/// What one model asks of the KV cache.
#[derive(Debug, Clone)]
pub struct KvDemand {
    pub spec: KvCacheSpec,
    /// What all its sequences at their longest hold.
    pub most_blocks: usize,
}

/// Less than every model needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{budget} is less than one block for each model (there are {models}), all together {}", .least.written_up())]
pub struct TooLittleForKv {
    budget: ByteSize,
    models: usize,
    /// A block for every group of layers, of each of them.
    least: ByteSize,
}

/// Blocks for each model, in order: every model gets room for the same number of tokens, but none more than it can use.
pub fn share_kv_memory(budget: ByteSize, demands: &[KvDemand]) -> Result<Vec<usize>, TooLittleForKv> {
    let mut blocks = vec![0; demands.len()];
    let mut left = budget.0;
    // The most modest first: what they leave over is shared by the others.
    let mut order: Vec<usize> = (0..demands.len()).collect();
    order.sort_by_key(|&model| demands[model].most_tokens());
    for (position, &model) in order.iter().enumerate() {
        let bytes_per_token: u64 = order[position..].iter().map(|&other| demands[other].token_bytes()).sum();
        let fitting = demands[model].blocks_of(left / bytes_per_token);
        if fitting == 0 {
            let least = demands.iter().map(|demand| demand.token_bytes() * demand.spec.block_size as u64).sum();
            return Err(TooLittleForKv { budget, models: demands.len(), least: ByteSize(least) });
        }
        blocks[model] = fitting;
        left = left.saturating_sub(fitting as u64 * demands[model].spec.block_bytes() as u64);
    }
    Ok(blocks)
}

impl KvDemand {
    /// Of so many tokens, every group of layers keeps the keys and values.
    fn most_tokens(&self) -> usize {
        self.most_blocks / self.spec.groups.len() * self.spec.block_size
    }

    fn token_bytes(&self) -> u64 {
        let bytes = self.spec.groups.len() * self.spec.block_bytes();
        (bytes as u64).div_ceil(self.spec.block_size as u64).max(1)
    }

    /// Blocks for `tokens` in every group of layers, but no more than can be used.
    fn blocks_of(&self, tokens: u64) -> usize {
        let blocks = tokens / self.spec.block_size as u64 * self.spec.groups.len() as u64;
        self.most_blocks.min(blocks as usize)
    }
}

#[cfg(test)]
mod tests {
    use passerelle_models::{KvFormat, KvGroup, KvReach};

    use super::*;

    /// `units` of 64 bytes for each token, in blocks of 16.
    fn demand(units: usize, most_tokens: usize) -> KvDemand {
        let (groups, format, block_size) = (vec![KvGroup::full(units)], KvFormat::Bf16, 16);
        let spec = KvCacheSpec { groups, num_kv_heads: 1, head_dim: 16, format, block_size };
        assert_eq!(spec.block_bytes(), units * BLOCK as usize);
        KvDemand { most_blocks: spec.most_blocks(most_tokens, 1), spec }
    }

    /// Bytes of a block of one unit.
    const BLOCK: u64 = 16 * 64;

    #[test]
    fn every_model_gets_the_same_number_of_tokens() {
        let blocks = share_kv_memory(ByteSize(300 * BLOCK), &[demand(1, 1 << 20), demand(2, 1 << 20)]);
        assert_eq!(blocks.expect("there is room"), [100, 100]);
    }

    #[test]
    fn what_a_modest_model_leaves_over_goes_to_the_others() {
        let demands = [demand(1, 1 << 20), demand(1, 160)];
        assert_eq!(share_kv_memory(ByteSize(100 * BLOCK), &demands).expect("there is room"), [90, 10]);
    }

    #[test]
    fn a_model_with_windows_is_given_what_its_windows_use() {
        let mut windowed = demand(1, 0);
        let window = KvReach::Window(33.try_into().expect("not zero"));
        windowed.spec.groups = KvGroup::of_layers([KvReach::Full, window, window, window].into_iter());
        windowed.most_blocks = windowed.spec.most_blocks(1600, 32);
        assert_eq!(windowed.most_blocks, 100 + 3 * 5);
        assert_eq!(share_kv_memory(ByteSize(1 << 40), &[windowed.clone()]).expect("there is room"), [115]);
        // Where memory is short, a token is reckoned with all its layers.
        let demands = [windowed, demand(4, 1 << 20)];
        assert_eq!(share_kv_memory(ByteSize(160 * BLOCK), &demands).expect("there is room"), [80, 20]);
    }

    #[test]
    fn no_model_gets_more_than_it_can_use() {
        assert_eq!(share_kv_memory(ByteSize(1 << 40), &[demand(1, 1000)]).expect("there is room"), [63]);
    }

    #[test]
    fn the_budget_is_never_exceeded() {
        for budget in [9 * BLOCK, 10 * BLOCK + 1, 77_777, 1_000_000] {
            let demands = [demand(1, 400), demand(3, 1 << 20), demand(2, 90)];
            let blocks = share_kv_memory(ByteSize(budget), &demands).expect("there is room for a block each");
            let used: u64 = blocks.iter().zip(&demands).map(|(n, d)| *n as u64 * d.spec.block_bytes() as u64).sum();
            assert!(used <= budget, "{used} of {budget}");
        }
    }

    #[test]
    fn a_budget_without_room_is_refused() {
        let error = share_kv_memory(ByteSize(BLOCK - 1), &[demand(1, 1000)]).expect_err("less than a block");
        assert!(error.to_string().ends_with("each model (there are 1), all together 1MiB"), "{error}");
    }
}
