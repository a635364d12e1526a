use anyhow::Result;
use passerelle::config::ByteSize;
use passerelle::placement::{FilledPartition, PlacedModel, Plan};
use serde_json::{Value, json};

use super::super::output;

pub(super) fn print(plan: &Plan, notes: &[String]) -> Result<()> {
    plan.partitions.iter().try_for_each(partition)?;
    notes.iter().try_for_each(output::line)?;
    plan.unplaced.iter().try_for_each(|model| {
        let text = model.shortage.to_string();
        output::line(format_args!("{}: no place: {text}", model.name))
    })
}

fn partition(is: &FilledPartition) -> Result<()> {
    let reserved = match is.room.reserved {
        ByteSize(0) => String::new(),
        reserved => format!(", {reserved} of it assumed for driver and libraries"),
    };
    output::line(format_args!("{}: {}{reserved}", is.room.name, is.room.memory))?;
    if is.models.is_empty() {
        return output::line("  nothing");
    }
    output::line(format_args!(
        "  {:<24}{:>12}{:>12}{:>12}  {}",
        "MODEL", "WEIGHTS", "KV CACHE", "KV TOKENS", "SEQUENCES AT ONCE"
    ))?;
    for model in &is.models {
        let (weights, kv) = (model.weights.to_string(), model.kv.to_string());
        output::line(format_args!(
            "  {:<24}{weights:>12}{kv:>12}{:>12}  {}",
            model.demand.name,
            model.kv_tokens,
            sequences(model)
        ))?;
    }
    output::line(format_args!("  activations {}, free {}", is.activations, is.free()))
}

fn sequences(model: &PlacedModel) -> String {
    match model.sequences {
        Some(count) => format!("{count} of {} tokens", model.demand.context),
        None => "an encoder keeps none".to_owned(),
    }
}

pub(super) fn as_json(plan: &Plan, notes: &[String]) -> Value {
    let unplaced = plan.unplaced.iter().map(|model| json!({"model": model.name, "reason": model.shortage.to_string()}));
    json!({
        "partitions": plan.partitions.iter().map(partition_json).collect::<Vec<_>>(),
        "unplaced": unplaced.collect::<Vec<_>>(),
        "notes": notes,
    })
}

fn partition_json(is: &FilledPartition) -> Value {
    json!({
        "partition": is.room.name,
        "backend": is.room.backend.map_or("cpu", |backend| backend.name()),
        "memory_bytes": is.room.memory.0,
        "reserved_bytes": is.room.reserved.0,
        "activation_bytes": is.activations.0,
        "free_bytes": is.free().0,
        "models": is.models.iter().map(model_json).collect::<Vec<_>>(),
    })
}

fn model_json(is: &PlacedModel) -> Value {
    json!({
        "model": is.demand.name,
        "weight_bytes": is.weights.0,
        "kv_bytes": is.kv.0,
        "kv_blocks": is.kv_blocks,
        "kv_tokens": is.kv_tokens,
        "context_tokens": is.demand.context,
        "sequences": is.sequences,
        "sequences_asked": is.demand.sequences,
    })
}
