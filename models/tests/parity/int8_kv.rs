//! What keys and values in 8 bits and in bf16 cost in exactness, over models of every family.

use passerelle_models::KvDtype;

use crate::footprint::DECODERS;
use crate::gguf::mean_kl;
use crate::runner::Runner;
use crate::support::Fixture;

/// Of the mean divergence from the same model with keys and values in f32. Over these checkpoints it is 5.9e-5 to 6.3e-4.
const MAX_MEAN_KL: f64 = 2e-3;

#[test]
fn logits_over_keys_and_values_in_8_bits_and_in_bf16_stay_close_to_those_over_f32() {
    for name in DECODERS {
        let fixture = Fixture::copy(name);
        let ids = fixture.ids("input_70");
        let logits = |kv_dtype| Runner::load(&fixture, kv_dtype).alone(&ids);
        let exact = logits(KvDtype::F32).concat();
        let kl = mean_kl(&logits(KvDtype::Int8), &exact);
        let of_bf16 = mean_kl(&logits(KvDtype::Bf16), &exact);
        eprintln!("{name}: {kl:e}, bf16 {of_bf16:e}");
        assert!(kl > 0.0 && kl < MAX_MEAN_KL && of_bf16 < MAX_MEAN_KL, "{name}: {kl:e}, bf16 {of_bf16:e}");
    }
}
