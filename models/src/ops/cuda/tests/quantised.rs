use candle_core::Tensor;
use half::bf16;

use super::host::{Buffer, Host, in_both_orders};
use super::{Random, assert_close, reference, tolerance};
use crate::StoredDtype;
use crate::ops::block_planes::{BlockPlanes, FEW_ROWS};
use crate::ops::cuda::args::blocks::{Blocks, DequantiseArgs, QuantisedArgs, Which};
use crate::ops::cuda::launch::{Address, Float};
use crate::ops::{PackedWeight, WeightPart, linear, widened};
use crate::selftest::products::stored;

/// Of each dtype: less than a warp takes at a time, rows that end within a warp's turn, and outputs that fill no block.
fn shapes(dtype: StoredDtype) -> [[usize; 2]; 3] {
    match dtype {
        StoredDtype::Q8_0 | StoredDtype::Q4_0 => [[3, 32], [9, 352], [17, 2080]],
        _ => [[3, 256], [9, 768], [17, 2304]],
    }
}

/// Each quantised dtype at each of its shapes.
fn cases() -> impl Iterator<Item = (StoredDtype, [usize; 2])> {
    let dtypes = StoredDtype::ALL.into_iter().filter(|dtype| dtype.is_quantised());
    dtypes.flat_map(|dtype| shapes(dtype).map(|shape| (dtype, shape)))
}

/// Blocks as a file has them, and as a kernel reads them.
struct Weight {
    planes: BlockPlanes,
    file: Vec<u8>,
    bytes: Vec<u8>,
}

impl Weight {
    fn random(dtype: StoredDtype, [rows, columns]: [usize; 2]) -> Self {
        let planes = BlockPlanes { dtype, rows, columns };
        let file = stored(dtype, rows * columns, &mut Random((rows + columns) as u64));
        let mut bytes = vec![0; planes.size_bytes()];
        // In two goes, as of a weight that is stacked of two tensors.
        let (first, second) = file.split_at(file.len() / rows);
        planes.put(&mut bytes, 0, first);
        planes.put(&mut bytes, columns / dtype.block_len(), second);
        Self { planes, file, bytes }
    }

    /// Of each row, as bf16.
    fn rounded_rows(&self) -> Vec<Vec<f32>> {
        let values: Vec<f32> = widened(self.planes.dtype, &self.file);
        let rounded: Vec<f32> = values.iter().map(|value| bf16::from_f32(*value).to_f32()).collect();
        rounded.chunks(self.planes.columns).map(<[f32]>::to_vec).collect()
    }
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

#[test]
fn dequantised_rows_are_the_rounded_weights_bit_for_bit() {
    let Some(host) = Host::get() else { return };
    for (dtype, shape) in cases() {
        let weight = Weight::random(dtype, shape);
        let (rows, columns) = (weight.rounded_rows(), shape[1]);
        let run = |count: usize, which: &dyn Fn(&mut Option<Buffer>) -> Which| {
            in_both_orders(|order| {
                let (mut planes, mut named) = (Buffer::of_bytes(&weight.bytes), None);
                let mut out = Buffer::unwritten(count * columns * size_of::<bf16>());
                let which = which(&mut named);
                let args = DequantiseArgs::new((planes.address(), weight.planes), which, out.address());
                host.run(&args.launch(count, dtype), order);
                out.values(Float::Bf16)
            })
        };
        let found = run(shape[0] - 1, &|_| Which::From(1));
        assert_eq!(bits(&found), bits(&rows[1..].concat()), "{dtype} {shape:?}");
        // The weight has rows from 5 on; what others have is left to them.
        let asked = [4, 6, 5, shape[0] as u32 + 4, shape[0] as u32 + 5, 6];
        let found = run(asked.len(), &|named| {
            let buffer = named.insert(Buffer::of_words(&asked));
            Which::Named(buffer.address(), 5)
        });
        for (asked, found) in asked.iter().zip(found.chunks(columns)) {
            match asked.checked_sub(5).and_then(|row| rows.get(row as usize)) {
                Some(row) => assert_eq!(bits(found), bits(row), "{dtype} {shape:?}, row {asked}"),
                None => assert!(found.iter().all(|value| value.is_nan()), "{dtype} {shape:?}, row {asked} is not here"),
            }
        }
    }
}

/// What the first rows of `x` give, one behind the other.
fn product(
    host: Host,
    weight: &Weight,
    (x, bias, rows): (&Tensor, Option<&Tensor>, usize),
    float: Float,
) -> Vec<Vec<f32>> {
    let BlockPlanes { dtype, rows: outputs, columns: inputs } = weight.planes;
    // The weight is the middle part of one that has others.
    let (before, stride) = (2, outputs + 5);
    let y = in_both_orders(|order| {
        let (mut planes, mut x) = (Buffer::of_bytes(&weight.bytes), Buffer::of(&x.narrow(0, 0, rows).unwrap(), float));
        let mut bias = bias.map(|bias| Buffer::of(bias, Float::F32));
        let mut y = Buffer::unwritten(rows * stride * float.dtype().size_in_bytes());
        let args = QuantisedArgs {
            weight: Blocks::at(planes.address(), weight.planes),
            x: x.address(),
            bias: bias.as_mut().map_or(Address::NULL, Buffer::address),
            y: y.address().behind(before * float.dtype().size_in_bytes()),
            inputs: inputs as i32,
            outputs: outputs as i32,
            rows: rows as i32,
            stride: stride as i32,
        };
        host.run(&args.launch(dtype, float), order);
        y.values(float)
    });
    let rows = y.chunks(stride).map(|row| {
        let (own, others) = (&row[before..before + outputs], [&row[..before], &row[before + outputs..]].concat());
        assert!(others.iter().all(|value| value.is_nan()), "{dtype}: columns of other parts were written");
        own.to_vec()
    });
    rows.collect()
}

#[test]
fn products_of_few_rows_are_those_of_the_dequantised_weights() {
    let Some(host) = Host::get() else { return };
    for (dtype, [outputs, inputs]) in cases() {
        for float in [Float::F32, Float::Bf16] {
            let weight = Weight::random(dtype, [outputs, inputs]);
            let x = Random(inputs as u64).tensor(&[FEW_ROWS, inputs], float);
            let bias = (inputs % 3 != 0).then(|| Random(2).tensor(&[outputs], Float::F32));
            let part = WeightPart { dtype, bytes: &weight.file };
            let packed = PackedWeight::pack(&reference(), None, inputs, &[part]).unwrap();
            let want = linear(&reference(), &x, &packed, bias.as_ref()).unwrap();
            let got = product(host, &weight, (&x, bias.as_ref(), FEW_ROWS), float).concat();
            // Sums of as many terms of about 1, in another order.
            let allowed = tolerance(float) * if float == Float::F32 { (inputs as f32).sqrt() } else { 1.0 };
            assert_close(&format!("{dtype} [{outputs}, {inputs}] {float:?}"), &got, &want, allowed);
        }
    }
}

#[test]
fn a_row_s_product_has_the_same_bits_in_any_company() {
    let Some(host) = Host::get() else { return };
    for (dtype, shape) in cases().filter(|(_, shape)| shape[0] == 9) {
        let weight = Weight::random(dtype, shape);
        let x = Random(3).tensor(&[FEW_ROWS, shape[1]], Float::F32);
        let all = product(host, &weight, (&x, None, FEW_ROWS), Float::F32);
        for rows in 1..FEW_ROWS {
            let some = product(host, &weight, (&x, None, rows), Float::F32);
            assert_eq!(bits(&some.concat()), bits(&all[..rows].concat()), "{dtype}, {rows} of {FEW_ROWS} rows");
        }
    }
}
