//! Bounds on what a `config.json` may ask for, checked before anything is allocated. They are far above any published
//! model; a value outside them is a damaged or hostile file.

use std::ops::RangeInclusive;

/// `config.json`, `generation_config.json` and the shard index.
pub(crate) const MAX_CONFIG_BYTES: u64 = 32 << 20;

pub(crate) const VOCAB_SIZE: RangeInclusive<usize> = 1..=4_194_304;
pub(crate) const HIDDEN_SIZE: RangeInclusive<usize> = 1..=131_072;
pub(crate) const INTERMEDIATE_SIZE: RangeInclusive<usize> = 1..=1_048_576;
pub(crate) const NUM_LAYERS: RangeInclusive<usize> = 1..=1_024;
pub(crate) const NUM_HEADS: RangeInclusive<usize> = 1..=1_024;
pub(crate) const HEAD_DIM: RangeInclusive<usize> = 2..=1_024;
pub(crate) const MAX_POSITION: RangeInclusive<usize> = 1..=16_777_216;
pub(crate) const NORM_EPS: RangeInclusive<f64> = 0.0..=0.1;
pub(crate) const WINDOW: RangeInclusive<usize> = 1..=16_777_216;
pub(crate) const ROPE_THETA: RangeInclusive<f64> = 2.0..=1e12;
pub(crate) const ROPE_FACTOR: RangeInclusive<f64> = 1e-3..=1e6;
/// Of the position temperature; published: 0.1.
pub(crate) const TEMPERATURE_BETA: RangeInclusive<f64> = 0.0..=100.0;
/// Rows of the table that tells the texts of a pair apart.
pub(crate) const TOKEN_TYPES: RangeInclusive<usize> = 0..=1_024;
/// Outputs of a classifier.
pub(crate) const MAX_LABELS: usize = 65_536;
pub(crate) const MAX_EOS_TOKENS: usize = 64;
