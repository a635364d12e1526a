use candle_core::Tensor;

use super::host::{Buffer, Host, in_both_orders};
use super::{Random, assert_close, reference, tolerance, values};
use crate::StoredDtype;
use crate::ops::cuda::args::one_row::OneRowArgs;
use crate::ops::cuda::launch::{Address, Float};
use crate::ops::{PackedWeight, WeightPart, linear};

fn bytes(x: &Tensor) -> Vec<u8> {
    values(x).iter().flat_map(|value| half::bf16::from_f32(*value).to_le_bytes()).collect()
}

#[test]
fn the_product_of_one_row_equals_the_reference() {
    let Some(host) = Host::get() else { return };
    // Less than one load of a warp, many of them, and outputs that fill no block.
    for (inputs, outputs, has_bias) in [(8, 9, true), (256, 8, false), (1032, 35, true), (2056, 3, false)] {
        let mut random = Random(inputs as u64);
        let [x, weight] = [[1, inputs], [outputs, inputs]].map(|shape| random.tensor(&shape, Float::Bf16));
        let bias = has_bias.then(|| random.tensor(&[outputs], Float::F32));
        let part = WeightPart { dtype: StoredDtype::Bf16, bytes: &bytes(&weight) };
        let packed = PackedWeight::pack(&reference(), None, inputs, &[part]).unwrap();
        let want = linear(&reference(), &x, &packed, bias.as_ref()).unwrap();
        let got = in_both_orders(|order| {
            let [mut x, mut weight] = [&x, &weight].map(|x| Buffer::of(x, Float::Bf16));
            let mut bias = bias.as_ref().map(|bias| Buffer::of(bias, Float::F32));
            let mut y = Buffer::of_values(&vec![f32::NAN; outputs], Float::Bf16);
            let args = OneRowArgs {
                x: x.address(),
                weight: weight.address(),
                bias: bias.as_mut().map_or(Address::NULL, Buffer::address),
                y: y.address(),
                inputs: inputs as i32,
                outputs: outputs as i32,
            };
            host.run(&args.launch(), order);
            y.values(Float::Bf16)
        });
        assert_close(&format!("[{outputs}, {inputs}]"), &got, &want, tolerance(Float::Bf16));
    }
}

#[test]
fn a_row_of_broken_loads_is_left_to_others() {
    assert!(OneRowArgs::takes(1032) && !OneRowArgs::takes(1028));
}
