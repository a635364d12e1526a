//! How close the CPU ops come to the machine: `cargo bench -p passerelle-models --bench ops [-- THREADS] [PART..] [SHAPE..]`,
//! where a part is one of those in [`PARTS`] and without any all are run. Shapes take the place of the usual ones:
//!
//! ```text
//! bf16:1024x3072    a weight of linear: dtype, inputs and outputs
//! rows:1,6,72       rows that meet it
//! heads:8x2x128     of attention: K/V heads, query heads for each, and their width
//! tokens:1x8192x1   sequences, tokens of each, and how many of these are queries
//! ```
//!
//! A row alone is bound by memory, so its product, and its attention to the keys and values before it, are held against the
//! measured read bandwidth. Many rows are bound by arithmetic, so theirs is given in operations per second, beside those of
//! multiply-adds alone. Each figure is the best of several runs.
//!
//! The C library gives a cache memory that was in use before, in small pages, unless `MALLOC_MMAP_THRESHOLD_=1048576` tells it not
//! to; the server has huge ones. It takes the memory of large outputs from the system anew for each product, and rows then wait
//! for pages, unless `MALLOC_TRIM_THRESHOLD_=4000000000 MALLOC_TOP_PAD_=67108864` tell it to keep it; the server's workspace does.

#![expect(clippy::print_stdout, reason = "the table is the purpose")]

use std::hint::black_box;
use std::time::{Duration, Instant};

use candle_core::{Device, Tensor};
use half::bf16;
use passerelle_models::input::SequenceInput;
use passerelle_models::ops::{
    AttentionParams, AttentionPlan, Compute, Gate, PackedWeight, WeightPart, gate_mul, linear, multiply_add,
    paged_attention, read_through, rms_norm, store_kv,
};
use passerelle_models::{BlockId, KvCache, KvCacheSpec, KvFormat, KvGroup, ModelError, ModelInput, Slot, StoredDtype};

/// Larger than any last-level cache that this will meet on a laptop.
const BANDWIDTH_BYTES: usize = 512 << 20;

const PARTS: [&str; 3] = ["linear", "attention", "elementwise"];

const MIN_RUNS: usize = 4;
const MIN_TIME: Duration = Duration::from_millis(100);

fn main() -> Result<(), ModelError> {
    let asked = Asked::of(std::env::args().skip(1));
    let threads = asked.threads.or_else(|| std::thread::available_parallelism().ok().map(Into::into)).unwrap_or(1);
    let compute = Compute::cpu(threads).for_kv_of(KvFormat::Bf16);
    let bandwidth = read_bandwidth(&compute);
    println!("{} kernels, {threads} threads, memory reads at {:.1} GB/s", compute.kernels(), bandwidth / 1e9);
    println!("multiply-adds between registers: {:.0} GFLOP/s", multiply_add_rate(&compute) / 1e9);
    for part in PARTS.into_iter().filter(|part| asked.parts.is_empty() || asked.parts.iter().any(|asked| asked == part))
    {
        match part {
            "linear" => bench_linear(&compute, &asked, bandwidth)?,
            "attention" => {
                bench_attention(&compute, KvFormat::Bf16, &asked, bandwidth)?;
                bench_attention(&compute, KvFormat::Int8, &asked, bandwidth)?;
            }
            _ => bench_elementwise(&compute)?,
        }
    }
    Ok(())
}

/// What the command line says. Empty lists stand for the usual ones.
#[derive(Default)]
struct Asked {
    threads: Option<usize>,
    parts: Vec<String>,
    /// Dtype, outputs and inputs.
    weights: Vec<(StoredDtype, usize, usize)>,
    rows: Vec<usize>,
    heads: Vec<[usize; 3]>,
    tokens: Vec<[usize; 3]>,
}

impl Asked {
    fn of(args: impl Iterator<Item = String>) -> Self {
        let mut asked = Self::default();
        // Cargo passes `--bench` to a bench.
        for arg in args.filter(|arg| arg != "--bench") {
            asked.take(&arg).unwrap_or_else(|| panic!("{arg} is neither threads, a part nor a shape"));
        }
        asked
    }

    fn take(&mut self, arg: &str) -> Option<()> {
        match arg.split_once(':') {
            None if PARTS.contains(&arg) => self.parts.push(arg.to_owned()),
            None => self.threads = Some(arg.parse().ok()?),
            Some(("rows", rows)) => self.rows = numbers(rows, ',')?,
            Some(("heads", heads)) => self.heads.push(numbers(heads, 'x')?.try_into().ok()?),
            Some(("tokens", tokens)) => self.tokens.push(numbers(tokens, 'x')?.try_into().ok()?),
            Some((dtype, shape)) => {
                let dtype = StoredDtype::ALL.into_iter().find(|known| known.to_string() == dtype)?;
                let [k, n] = numbers(shape, 'x')?.try_into().ok()?;
                self.weights.push((dtype, n, k));
            }
        }
        Some(())
    }
}

fn numbers(text: &str, between: char) -> Option<Vec<usize>> {
    text.split(between).map(|number| number.parse().ok()).collect()
}

/// What was asked for, or the usual.
fn or_usual<T: Copy>(asked: &[T], usual: &[T]) -> Vec<T> {
    if asked.is_empty() { usual } else { asked }.to_vec()
}

/// Seconds of the fastest of some runs.
#[expect(clippy::disallowed_methods, reason = "a bench measures time")]
fn seconds(mut run: impl FnMut()) -> f64 {
    let begin = Instant::now();
    let mut fastest = f64::INFINITY;
    let mut runs = 0;
    while runs < MIN_RUNS || begin.elapsed() < MIN_TIME {
        let start = Instant::now();
        run();
        fastest = fastest.min(start.elapsed().as_secs_f64());
        runs += 1;
    }
    fastest
}

/// Bytes per second that all threads read together from memory.
fn read_bandwidth(compute: &Compute) -> f64 {
    let values = vec![1.0; BANDWIDTH_BYTES / size_of::<f32>()];
    BANDWIDTH_BYTES as f64 / seconds(|| read_through(compute, &values))
}

/// Floating-point operations per second of multiply-adds between registers, on all threads.
fn multiply_add_rate(compute: &Compute) -> f64 {
    let mut operations = 0;
    let time = seconds(|| operations = multiply_add(compute));
    operations as f64 / time
}

fn filled(shape: &[usize]) -> Result<Tensor, ModelError> {
    let len: usize = shape.iter().product();
    let values: Vec<f32> = (0..len).map(|i| (i % 251) as f32 / 251.0 - 0.5).collect();
    Ok(Tensor::from_vec(values, shape, &Device::Cpu)?)
}

fn weight(compute: &Compute, dtype: StoredDtype, n: usize, k: usize) -> Result<PackedWeight, ModelError> {
    if matches!(dtype, StoredDtype::Q4K | StoredDtype::Q6K) {
        // Nothing rounds to these: blocks with a pattern instead, of which only the speed matters.
        let num_bytes = n * k / dtype.block_len() * dtype.block_bytes();
        let bytes: Vec<u8> = (0..num_bytes).map(|i| (i % 61) as u8).collect();
        return PackedWeight::pack(compute, None, k, &[WeightPart { dtype, bytes: &bytes }]);
    }
    let bytes: Vec<u8> =
        (0..n * k).flat_map(|i| bf16::from_f32((i % 509) as f32 / 509.0 - 0.5).to_le_bytes()).collect();
    PackedWeight::pack(compute, Some(dtype), k, &[WeightPart { dtype: StoredDtype::Bf16, bytes: &bytes }])
}

fn bench_linear(compute: &Compute, asked: &Asked, bandwidth: f64) -> Result<(), ModelError> {
    println!("\n{:<26} {:>5} {:>10} {:>8} {:>9} {:>9}", "linear", "rows", "us", "GB/s", "of reads", "GFLOP/s");
    let usual = [
        (StoredDtype::Bf16, 576, 576),
        (StoredDtype::Bf16, 4864, 896),
        (StoredDtype::Bf16, 49152, 576),
        (StoredDtype::Bf16, 28672, 4096),
        (StoredDtype::F16, 28672, 4096),
        (StoredDtype::F32, 14336, 4096),
        (StoredDtype::Q8_0, 28672, 4096),
        (StoredDtype::Q4_0, 28672, 4096),
        (StoredDtype::Q4K, 28672, 4096),
        (StoredDtype::Q6K, 28672, 4096),
    ];
    for (dtype, n, k) in or_usual(&asked.weights, &usual) {
        let weight = weight(compute, dtype, n, k)?;
        for m in or_usual(&asked.rows, &[1, 2, 4, 8, 16, 64, 256]) {
            if asked.rows.is_empty() && m > 16 && n * k > 60_000_000 {
                continue;
            }
            let x = filled(&[m, k])?;
            let time = seconds(|| {
                black_box(linear(compute, &x, &weight, None).is_ok());
            });
            let rate = weight.size_bytes() as f64 / time;
            println!(
                "{:<26} {m:>5} {:>10.1} {:>8.1} {:>8.0}% {:>9.1}",
                format!("{dtype} {k} -> {n}"),
                time * 1e6,
                rate / 1e9,
                100.0 * rate / bandwidth,
                2.0 * (m * n * k) as f64 / time / 1e9
            );
        }
    }
    Ok(())
}

fn bench_attention(compute: &Compute, format: KvFormat, asked: &Asked, bandwidth: f64) -> Result<(), ModelError> {
    const BLOCK_SIZE: usize = 16;
    let title = format!("attention, {format} cache");
    println!("\n{title:<40} {:>10} {:>8} {:>9} {:>9}", "us", "GB/s", "of reads", "GFLOP/s");
    for heads in or_usual(&asked.heads, &[[1, 4, 256], [3, 3, 64], [8, 2, 128], [8, 4, 128]]) {
        let [num_kv_heads, group, head_dim] = heads;
        for tokens in or_usual(&asked.tokens, &[[1, 512, 1], [1, 8192, 1], [16, 1024, 1], [1, 2048, 512]]) {
            let [num_sequences, context, query_len] = tokens;
            let num_blocks = num_sequences * context / BLOCK_SIZE;
            let of_layers = |num_layers| KvCacheSpec {
                groups: vec![KvGroup::full(num_layers)],
                num_kv_heads,
                head_dim,
                format,
                block_size: BLOCK_SIZE,
            };
            let layer_bytes = num_blocks * of_layers(1).block_bytes();
            // One token reads one layer after the other, as in a step, so that none of them is still in a cache.
            let num_layers = if query_len == 1 { BANDWIDTH_BYTES.div_ceil(layer_bytes) } else { 1 };
            let spec = of_layers(num_layers);
            let mut cache = KvCache::new(spec, num_blocks, compute.device())?;
            let kv = filled(&[num_blocks * BLOCK_SIZE, num_kv_heads * head_dim])?;
            let slots: Vec<_> = (0..num_blocks * BLOCK_SIZE).map(|slot| Slot(slot as u32)).collect();
            for layer in 0..num_layers {
                store_kv(compute, &kv, &kv, &slots, cache.layer_mut(layer))?;
            }
            // Neighbouring blocks of a sequence stand apart, as in a cache that has been used for a while.
            let blocks: Vec<Vec<BlockId>> = (0..num_sequences)
                .map(|i| (i..num_blocks).step_by(num_sequences).map(|block| BlockId(block as u32)).collect())
                .collect();
            let tokens = vec![0; query_len];
            let inputs: Vec<_> = blocks
                .iter()
                .map(|table| SequenceInput {
                    tokens: &tokens,
                    num_computed: context - query_len,
                    block_tables: std::slice::from_ref(table),
                    sample: &[],
                })
                .collect();
            let input = ModelInput::new(BLOCK_SIZE, &inputs)?;
            let q = filled(&[num_sequences * query_len, num_kv_heads * group, head_dim])?;
            let params = AttentionParams::causal(0.1);
            let of_all = seconds(|| {
                let plan = AttentionPlan::new(&input);
                for layer in 0..num_layers {
                    black_box(paged_attention(compute, &q, cache.layer_mut(layer), &plan, &params).is_ok());
                }
            });
            let time = of_all / num_layers as f64;
            let rate = layer_bytes as f64 / time;
            let keys = (0..query_len).map(|i| context - i).sum::<usize>() * num_sequences;
            println!(
                "{:<40} {:>10.1} {:>8.1} {:>8.0}% {:>9.1}",
                format!("{num_sequences} x {query_len} of {context}, {num_kv_heads} x {group} heads of {head_dim}"),
                time * 1e6,
                rate / 1e9,
                100.0 * rate / bandwidth,
                4.0 * (keys * num_kv_heads * group * head_dim) as f64 / time / 1e9
            );
        }
    }
    Ok(())
}

fn bench_elementwise(compute: &Compute) -> Result<(), ModelError> {
    println!("\n{:<26} {:>5} {:>10}", "elementwise, width 4096", "rows", "us");
    let norm = filled(&[4096])?;
    for m in [1, 16, 256] {
        let x = filled(&[m, 4096])?;
        let time = seconds(|| {
            black_box(rms_norm(compute, &x, &norm, 1e-5).is_ok());
        });
        println!("{:<26} {m:>5} {:>10.1}", "rms_norm", time * 1e6);
        let time = seconds(|| {
            black_box(gate_mul(compute, &x, Gate::Silu).is_ok());
        });
        println!("{:<26} {m:>5} {:>10.1}", "gate_mul (to 2048)", time * 1e6);
    }
    Ok(())
}
