use std::cell::RefCell;
use std::rc::Rc;

use candle_core::Tensor;

use super::numbers::Random;
use super::products::stored;
use super::tables::ATTENTION;
use super::world::{Shape, World};
use crate::input::SequenceInput;
use crate::ops::{
    self, AttentionParams, AttentionPlan, Compute, Detail, Float, Matrix, PackedWeight, Pick, RowQuestion, WeightPart,
    Weights,
};
use crate::{
    BlockId, CausalLm, Decoder, KvCache, KvFormat, LoadOptions, ModelError, ModelInput, StoredDtype, demo_checkpoint,
    load_decoder, unwatched,
};

/// Inputs and outputs of one matrix of an 8B model's feed-forward network.
const MATRIX: [usize; 2] = [4096, 14_336];
/// Of the step that generates for one, and of one that reads prompts.
const ROWS: [usize; 2] = [1, 512];
/// Sequences that generate, and keys of each.
const GENERATING: [usize; 2] = [32, 1024];

/// Sequences of a step.
const GENERATED: [usize; 2] = [1, 64];

/// Rows of logits, and tokens of a vocabulary.
const CHOSEN: [usize; 2] = [64, 128_256];

type Op = Box<dyn Fn(&Compute) -> Result<Tensor, ModelError>>;

/// An op with work of known size, to be timed by whoever has a clock.
pub struct Load {
    pub what: &'static str,
    pub at: String,
    pub work: Work,
    compute: Compute,
    run: Op,
}

/// What an op cannot do with less.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Work {
    /// Read from memory.
    pub bytes: u64,
    /// Multiplications and additions.
    pub operations: u64,
}

impl Load {
    /// Once, to its end.
    pub fn run(&self) -> Result<(), ModelError> {
        (self.run)(&self.compute)?;
        Ok(self.compute.device().synchronize()?)
    }
}

impl std::fmt::Debug for Load {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Load").field("what", &self.what).field("at", &self.at).finish_non_exhaustive()
    }
}

/// The ops that take a step's time, with weights, keys and values in bf16: a product for one row, a product for many
/// (both with weights in q4_k, too), and attention of many sequences that generate. They take about half a gigabyte.
/// Where logits stay on the device, also choices of tokens there. Where steps are replayed, also steps of the bundled
/// model, which is so small that launches take their time.
///
/// Errors when memory is short.
pub fn loads(compute: &Compute) -> Result<Vec<Load>, ModelError> {
    let compute = &compute.for_kv_of(KvFormat::Bf16);
    let mut loads = products(compute)?;
    loads.push(attention(compute)?);
    if !compute.is_host() {
        loads.extend(choices(compute)?);
    }
    if compute.kernels().replays_steps() {
        loads.extend(steps(compute)?);
    }
    Ok(loads)
}

fn products(compute: &Compute) -> Result<Vec<Load>, ModelError> {
    let names = [
        (StoredDtype::Bf16, ["product for one row", "product for many rows"]),
        (StoredDtype::Q4K, ["product for one row, q4_k weights", "product for many rows, q4_k weights"]),
    ];
    let [inputs, outputs] = MATRIX;
    let mut loads = Vec::new();
    for (dtype, names) in names {
        let bytes = stored(dtype, inputs * outputs, &mut Random(1));
        let part = WeightPart { dtype, bytes: &bytes };
        let weight = std::sync::Arc::new(PackedWeight::pack(compute, None, inputs, &[part])?);
        for (rows, what) in ROWS.into_iter().zip(names) {
            let x = on(compute, &Random(2).tensor(&[rows, inputs], Float::Bf16))?;
            let weight = std::sync::Arc::clone(&weight);
            loads.push(Load {
                what,
                at: format!("[{rows}, {inputs}] x [{outputs}, {inputs}]"),
                work: Work { bytes: bytes.len() as u64, operations: 2 * (rows * inputs * outputs) as u64 },
                compute: compute.clone(),
                run: Box::new(move |compute| ops::linear(compute, &x, &weight, None)),
            });
        }
    }
    Ok(loads)
}

fn attention(compute: &Compute) -> Result<Load, ModelError> {
    let [sequences, keys] = GENERATING;
    let shape = Shape { num_kv_heads: 8, group: 4, head_dim: 128, cache: Float::Bf16, ..ATTENTION[1] };
    let world = World::new(shape, &vec![keys - 1..keys; sequences])?.with_keys(&mut Random(3))?;
    let mut world = world.on(compute.device())?;
    let q = on(compute, &Random(4).tensor(&[sequences, shape.num_heads(), shape.head_dim], Float::Bf16))?;
    let (input, layer) = (world.input.clone(), world.layer().clone());
    let elements = (2 * sequences * keys * shape.kv_width()) as u64;
    Ok(Load {
        what: "attention",
        at: format!(
            "{sequences} tokens over {keys} keys each, {} heads over {}",
            shape.num_heads(),
            shape.num_kv_heads
        ),
        work: Work { bytes: elements * 2, operations: elements * 2 * shape.group as u64 },
        compute: compute.clone(),
        run: Box::new(move |compute| {
            let params = AttentionParams::causal(shape.scale());
            ops::paged_attention(compute, &q, &layer, &AttentionPlan::new(&input), &params)
        }),
    })
}

/// Each batch replayed, and launch by launch.
fn steps(compute: &Compute) -> Result<Vec<Load>, ModelError> {
    let (model, _) = load_decoder(&demo_checkpoint(), compute, &LoadOptions::default(), &mut unwatched)?;
    let (bytes, model) = (model.size_bytes() as u64, Rc::new(model));
    let spec = model.kv_cache_spec();
    let most = GENERATED.into_iter().max().unwrap_or(1);
    let cache = Rc::new(RefCell::new(model.new_kv_cache(most * spec.groups.len())?));
    let run = |what, batch: usize, step: fn(&Decoder, &ModelInput, &mut KvCache) -> Result<Matrix, ModelError>| {
        let mut free = (0..).map(BlockId);
        let tables: Vec<Vec<Vec<BlockId>>> =
            (0..batch).map(|_| spec.groups.iter().map(|_| free.by_ref().take(1).collect()).collect()).collect();
        let sequences = tables.iter().map(|block_tables| SequenceInput {
            tokens: &[0],
            num_computed: 0,
            block_tables,
            sample: &[0],
        });
        let input = ModelInput::new(spec.block_size, &sequences.collect::<Vec<_>>())?;
        let (owned, cache) = (Rc::clone(&model), Rc::clone(&cache));
        Ok(Load {
            what,
            at: format!("{batch} sequences of the bundled model"),
            work: Work { bytes, operations: bytes * batch as u64 },
            compute: model.compute().clone(),
            run: Box::new(move |_| step(&owned, &input, &mut cache.borrow_mut())?.into_tensor()),
        })
    };
    let both =
        |batch| [run("step, replayed", batch, Decoder::replayed), run("step, launched", batch, Decoder::launched)];
    GENERATED.into_iter().flat_map(both).collect()
}

/// The most that is asked of a row, and the least.
fn choices(compute: &Compute) -> Result<[Load; 2], ModelError> {
    let [rows, vocab_size] = CHOSEN;
    let logits = on(compute, &(Random(5).tensor(&CHOSEN, Float::Bf16) * 9.0)?)?;
    let elements = (rows * vocab_size) as u64;
    let load = |what, question: RowQuestion| {
        let (logits, questions) = (logits.clone(), Vec::from_iter((0..rows).map(|row| (row, question))));
        Load {
            what,
            at: format!("{rows} rows of {vocab_size}"),
            work: Work { bytes: elements * 2, operations: elements },
            compute: compute.clone(),
            run: Box::new(move |compute| ops::choose(compute, &logits, &questions).map(|_| logits.clone())),
        }
    };
    let pick = Pick::Drawn { weights: Weights { temperature: 0.8, floor: 0.0 }, point: 0.5 };
    let drawn = RowQuestion { best: 20, pick, detail: Detail::Logprobs };
    Ok([load("likeliest token", RowQuestion::BEST), load("draw and log-probabilities", drawn)])
}

/// In bf16 where the device holds activations in it.
fn on(compute: &Compute, x: &Tensor) -> Result<Tensor, ModelError> {
    super::trial::placed(compute, x, Float::Bf16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_is_measured_both_ways_at_each_size() {
        let steps = steps(&Compute::cpu(1)).unwrap();
        assert_eq!(steps.len(), 2 * GENERATED.len());
        for step in steps {
            step.run().unwrap();
            assert!(step.work.bytes > 0 && step.work.operations >= step.work.bytes);
        }
    }
}
