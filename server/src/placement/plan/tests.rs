use passerelle_models::{CheckpointFiles, LoadOptions, WeightDtype, WeightLayout, footprint};

use super::*;
use crate::placement::{CardName, Cards};

const GIB: u64 = 1 << 30;

/// A model of a published shape, of which only `config.json` is here.
fn model(name: &str, context: usize, sequences: usize) -> ModelDemand {
    let folder = format!("{}/../models/tests/fixtures/shapes/{name}", env!("CARGO_MANIFEST_DIR"));
    let files = CheckpointFiles::directory(folder).expect("the fixture is there");
    let options = LoadOptions { max_model_len: Some(context), ..LoadOptions::default() };
    let held = |dtype| {
        let options = LoadOptions { dtype, ..options };
        let bytes = |layout| footprint(&files, &options, layout).expect("it can be described").weight_bytes;
        HeldBytes { cpu: bytes(WeightLayout::Panels), accelerator: bytes(WeightLayout::Rows) }
    };
    let is = footprint(&files, &options, WeightLayout::Rows).expect("it can be described");
    ModelDemand {
        name: name.to_owned(),
        weights: held(WeightDtype::Auto),
        smaller: vec![("q8_0", held(WeightDtype::Q8_0)), ("q4_0", held(WeightDtype::Q4_0))],
        context: is.max_position,
        sequences,
        max_sequences: 256,
        step_tokens: 2048,
        activations: is.activations.bytes(2048, 256),
        kv: is.kv,
        activation_dtype: ActivationDtype::Int16,
    }
}

fn room(card: &str) -> PartitionRoom {
    let Ok(name) = card.parse::<CardName>();
    let (backend, memory) = Cards::known().find(&name).expect("the card is listed");
    let kv = KvBudget::PartOfRest(1);
    PartitionRoom { name: card.to_owned(), backend: Some(backend), memory, reserved: ByteSize(GIB), kv }
}

/// Where each partition's models are, by name.
fn places(plan: &Plan) -> Vec<Vec<&str>> {
    plan.partitions.iter().map(|is| is.models.iter().map(|model| model.demand.name.as_str()).collect()).collect()
}

#[test]
fn weights_of_published_shapes_are_their_published_parameters_in_half_precision() {
    // Parameters as their publishers count them; norms are held in f32.
    for (name, parameters) in [
        ("qwen3-0.6b", 596_049_920),
        ("llama-3.1-8b", 8_030_261_248),
        ("qwen3-32b", 32_762_123_264),
        ("llama-3.3-70b", 70_553_706_496),
    ] {
        let bytes = model(name, 4096, 1).weights.accelerator;
        let halves = 2 * parameters;
        assert!(bytes >= halves && bytes - halves < halves / 1000, "{name}: {bytes} beside {halves}");
    }
    // 2 x 32 layers x 8 heads x 128 in bf16 are 128 KiB a token.
    assert_eq!(model("llama-3.1-8b", 1024, 1).kv_bytes(1), 1024 * (128 << 10));
}

#[test]
fn published_shapes_fit_the_cards_that_they_are_known_to_fit() {
    let fits = |name: &str, context, card: &str| plan(&[model(name, context, 1)], &[room(card)]).unplaced.is_empty();
    for card in ["h100", "h200", "a100-80gb", "a100-40gb", "l40s", "mi300x", "mi430x", "h100:3g.40gb"] {
        assert!(fits("llama-3.1-8b", 32_768, card), "{card}");
    }
    for (card, small) in [("h100:1g.10gb", true), ("a100-40gb:1g.5gb", true), ("h200:1g.18gb", true)] {
        assert_eq!(fits("qwen3-0.6b", 8192, card), small, "{card}");
    }
    assert!(!fits("llama-3.1-8b", 1024, "h100:1g.10gb"), "15 GiB of weights in 10");
    assert!(!fits("llama-3.1-8b", 1024, "a100-40gb:2g.10gb"));
    assert!(fits("llama-3.1-8b", 8192, "h100:1g.20gb"));
    assert!(fits("qwen3-32b", 16_384, "h100") && !fits("qwen3-32b", 1024, "l40s"));
    assert!(!fits("llama-3.3-70b", 1024, "h100") && !fits("llama-3.3-70b", 1024, "a100-80gb"));
    assert!(fits("llama-3.3-70b", 8192, "mi300x") && fits("llama-3.3-70b", 8192, "h200"));
    assert!(fits("llama-3.3-70b", 131_072, "mi430x"));
}

#[test]
fn the_kv_cache_takes_what_weights_and_a_step_leave_and_no_more() {
    for card in ["h100", "h200:3g.71gb", "a100-40gb", "l40s", "mi300x"] {
        let plan = plan(&[model("llama-3.1-8b", 8192, 4)], &[room(card)]);
        let filled = &plan.partitions[0];
        let placed = &filled.models[0];
        let taken = filled.room.reserved.0 + placed.weights.0 + filled.activations.0 + placed.kv.0;
        assert_eq!(taken + filled.free().0, filled.room.memory.0, "{card}");
        assert!(filled.free().0 < 64 << 20, "{card} leaves {}", filled.free());
        let found = placed.sequences.expect("it generates");
        assert_eq!(found, placed.kv_tokens / 8192, "{card}");
        assert!(found >= 4, "{card}");
    }
}

#[test]
fn the_largest_goes_first_and_small_ones_fill_what_is_left() {
    let models = [model("qwen3-0.6b", 4096, 8), model("qwen3-32b", 8192, 4), model("llama-3.1-8b", 8192, 8)];
    let on = |rooms: &[&str]| {
        let rooms: Vec<_> = rooms.iter().map(|card| room(card)).collect();
        plan(&models, &rooms)
    };
    let small_first = on(&["a100-40gb", "h100"]);
    assert_eq!(places(&small_first), [vec!["llama-3.1-8b", "qwen3-0.6b"], vec!["qwen3-32b"]]);
    assert_eq!(small_first, on(&["a100-40gb", "h100"]), "always the same");
    let one = on(&["h200"]);
    assert_eq!(places(&one), [vec!["qwen3-32b", "llama-3.1-8b", "qwen3-0.6b"]]);
    assert!(one.partitions[0].models.iter().all(|is| is.sequences >= Some(is.demand.sequences)));
}

#[test]
fn models_that_share_a_partition_share_one_budget() {
    let models = [model("llama-3.1-8b", 8192, 4), model("qwen3-0.6b", 8192, 4)];
    let plan = plan(&models, &[room("h100:3g.40gb")]);
    let filled = &plan.partitions[0];
    assert_eq!(filled.models.len(), 2);
    let taken: u64 = filled.models.iter().map(|is| is.weights.0 + is.kv.0).sum();
    assert!(taken + filled.activations.0 + filled.room.reserved.0 <= filled.room.memory.0);
    assert_eq!(filled.activations.0, models[0].activations.max(models[1].activations), "engines take turns");
    let cpu = PartitionRoom { backend: None, ..room("h100") };
    let on_cpu = super::plan(&models, &[cpu]);
    assert_eq!(on_cpu.partitions[0].activations.0, models[0].activations + models[1].activations, "each keeps its own");
}

#[test]
fn what_does_not_fit_says_why_and_what_would_make_it_fit() {
    let on_h100 = |demand: ModelDemand| {
        let plan = plan(&[demand], &[room("h100")]);
        plan.unplaced.into_iter().next().expect("it has no place").shortage
    };
    let large = on_h100(model("llama-3.3-70b", 8192, 1));
    assert!(matches!(large.fits, Fits::Nothing { .. }), "{large}");
    assert!(matches!(large.remedies[..], [Remedy::Dtype("q8_0"), Remedy::Partition { .. }]), "{large}");
    let weights = model("llama-3.3-70b", 8192, 1);
    let quantised = ModelDemand { weights: weights.smaller[0].1, ..weights.clone() };
    assert_eq!(plan(&[quantised], &[room("h100")]).unplaced, [], "the remedy helps");

    let cpu = PartitionRoom { backend: None, memory: ByteSize(96 * GIB), ..room("h100") };
    let on_cpu = &plan(&[weights], &[cpu]).unplaced[0].shortage;
    assert_eq!(on_cpu.remedies[0], Remedy::Dtype("q8_0"), "{on_cpu}");

    let long = on_h100(model("llama-3.1-8b", 131_072, 8));
    let Fits::Sequences { found, asked: 8, context: 131_072 } = long.fits else { panic!("{long}") };
    assert_eq!(long.remedies[0], Remedy::FewerSequences(found));
    let Remedy::ShorterContext(shorter) = long.remedies[1] else { panic!("{long}") };
    let again = |sequences, context| plan(&[model("llama-3.1-8b", context, sequences)], &[room("h100")]).unplaced;
    assert_eq!(again(found, 131_072), [], "the first remedy helps");
    assert_ne!(again(found + 1, 131_072), [], "and one more is too many");
    assert_eq!(again(8, shorter), [], "the second helps");
    assert_ne!(again(8, shorter + 16), [], "and a longer one does not");
    let Some(remedy @ Remedy::Partition { at_least }) = long.remedies.last() else { panic!("{long}") };
    let said = remedy.to_string();
    let typed = said.split(' ').find_map(|word| word.parse::<ByteSize>().ok()).expect("a size that can be typed");
    let larger = PartitionRoom { memory: typed, ..room("h100") };
    assert_eq!(plan(&[model("llama-3.1-8b", 131_072, 8)], &[larger]).unplaced, [], "{said} is enough");
    let smaller = PartitionRoom { memory: ByteSize(at_least.0 - (1 << 20)), ..room("h100") };
    assert_ne!(plan(&[model("llama-3.1-8b", 131_072, 8)], &[smaller]).unplaced, [], "and needed");
}

#[test]
fn a_model_that_others_leave_no_room_says_so() {
    let models = [model("qwen3-32b", 8192, 1), model("llama-3.1-8b", 8192, 1)];
    let plan = plan(&models, &[room("h100")]);
    assert_eq!(places(&plan), [vec!["qwen3-32b"]]);
    assert!(matches!(plan.unplaced[0].shortage.fits, Fits::Alone { .. }), "{}", plan.unplaced[0].shortage);
    let nowhere = super::plan(&models[..1], &[]).unplaced.remove(0).shortage;
    assert_eq!(nowhere.nearest, None);
    assert!(nowhere.to_string().contains("no partition"), "{nowhere}");
}

/// As models are refused when they are loaded there, whose bound is told in their own crate alone.
#[test]
fn heads_that_are_longer_than_kernels_for_gpus_take_have_a_place_on_cpus_alone() {
    let bound = format!("MOST_GPU_HEAD_DIM: usize = {MOST_HEAD_DIM};");
    assert!(include_str!("../../../../models/src/kv_cache_spec.rs").contains(&bound));
    let of = |head_dim: usize| {
        let model = model("qwen3-0.6b", 1024, 1);
        let kv = model.kv.clone().map(|kv| KvCacheSpec { head_dim, ..kv });
        ModelDemand { kv, ..model }
    };
    let cpu = PartitionRoom { backend: None, ..room("h100") };
    assert_eq!(plan(&[of(MOST_HEAD_DIM)], &[room("h100")]).unplaced, []);
    let longer = of(MOST_HEAD_DIM + 1);
    let shortage = plan(std::slice::from_ref(&longer), &[room("h100")]).unplaced.remove(0).shortage;
    assert_eq!(shortage.fits, Fits::LongHeads(257));
    assert!(matches!(shortage.remedies[..], [Remedy::Cpu { .. }]), "{shortage}");
    let said = shortage.to_string();
    let why = "heads of 257 elements are for models on a CPU; on a GPU there are at most 256";
    assert!(said.starts_with(why), "{said}");
    assert_eq!(places(&plan(&[longer], &[room("h100"), cpu])), [vec![], vec!["qwen3-0.6b"]]);
}

#[test]
fn a_stated_kv_budget_is_what_there_is() {
    let stated = |gib: u64| PartitionRoom { kv: KvBudget::Stated(ByteSize(gib * GIB)), ..room("h100") };
    let of_two = plan(&[model("llama-3.1-8b", 8192, 2)], &[stated(2)]);
    assert_eq!(of_two.partitions[0].models[0].sequences, Some(2));
    // 1 GiB each.
    for (sequences, gib, fits) in [(3, 2, "3072MiB"), (1, 78, "1024MiB")] {
        let shortage = plan(&[model("llama-3.1-8b", 8192, sequences)], &[stated(gib)]).unplaced.remove(0).shortage;
        assert!(shortage.to_string().contains(&format!("--kv-cache-memory {fits}")), "{gib} GiB: {shortage}");
        assert!(!shortage.to_string().contains("of its own"), "no larger partition: {shortage}");
    }
    let beside = [model("qwen3-32b", 4096, 1), model("llama-3.1-8b", 4096, 1)];
    let shortage = plan(&beside, &[stated(2)]).unplaced.remove(0).shortage.to_string();
    assert!(shortage.contains("of its own") && !shortage.contains("--kv-cache-memory"), "weights fill it: {shortage}");
}
