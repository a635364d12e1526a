//! A decoder's layers for people: neighbours that are alike, counted and described.

use super::mixer::{Kept, MixerSpec};
use super::rope::RopeScaling;
use super::spec::{
    Activation, AttentionSpec, FfnSpec, GateActivation, LayerSpec, NormPlacement, PositionSpec, QkNormScope,
};

/// Layers that follow each other and have the same record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerRun {
    pub count: usize,
    /// What one of them is, in a few words.
    pub layer: String,
}

/// The runs in order; their counts sum to the number of layers.
pub(crate) fn layer_runs(layers: &[LayerSpec]) -> Vec<LayerRun> {
    let alike = layers.chunk_by(|one, next| one == next);
    alike.map(|run| LayerRun { count: run.len(), layer: describe(&run[0]) }).collect()
}

fn describe(layer: &LayerSpec) -> String {
    let mut parts = match &layer.mixer {
        MixerSpec::Attention(is) => attention(is),
        other => vec![described(other)],
    };
    parts.push(ffn(&layer.ffn));
    match layer.placement {
        NormPlacement::Pre => {}
        NormPlacement::PreFfnOnly => parts.push("no norm before attention".to_owned()),
        NormPlacement::Post => parts.push("norms after each block".to_owned()),
        NormPlacement::OnSum => parts.push("norms of each sum".to_owned()),
    }
    parts.join(", ")
}

fn described(mixer: &MixerSpec) -> String {
    let kept = match mixer.keeps() {
        Kept::KeysAndValues { num_kv_heads, head_dim } => {
            format!("{num_kv_heads} keys and values of {head_dim} a token")
        }
        Kept::Latents { width } => format!("{width} numbers a token"),
        Kept::State { elements } => format!("{elements} numbers a sequence"),
    };
    format!("{} that keeps {kept}", mixer.name())
}

fn attention(is: &AttentionSpec) -> Vec<String> {
    let reach = is.window.map_or("full attention".to_owned(), |window| format!("attention to {window} tokens"));
    let position = match &is.position {
        PositionSpec::Rope(rope) => {
            let scaling = match &rope.scaling {
                RopeScaling::Default => "",
                RopeScaling::Linear { .. } => ", scaled linearly",
                RopeScaling::Llama3 { .. } | RopeScaling::Divided { .. } => ", scaled as Llama 3",
                RopeScaling::Yarn(_) => ", scaled by YaRN",
            };
            format!("rotary on {} of {} elements, base {}{scaling}", rope.dim, is.head_dim, rope.theta)
        }
        PositionSpec::Unencoded => "no rotary positions".to_owned(),
        PositionSpec::Alibi => "ALiBi".to_owned(),
    };
    let mut parts = vec![reach, position];
    if let Some(norm) = &is.qk_norm {
        let scope = match norm.scope {
            QkNormScope::Head => "each head",
            QkNormScope::Token => "all heads",
        };
        parts.push(format!("query and key norms over {scope}"));
    }
    if is.temperature.is_some() {
        parts.push("temperature by position".to_owned());
    }
    parts
}

fn ffn(is: &FfnSpec) -> String {
    match is {
        FfnSpec::Gated { intermediate_size, activation, .. } => {
            let activation = match activation {
                GateActivation::Silu => "SiLU",
                GateActivation::GeluErf | GateActivation::GeluTanh => "GELU",
            };
            format!("gated {activation} of {intermediate_size}")
        }
        FfnSpec::Plain { intermediate_size, activation, .. } => {
            let activation = match activation {
                Activation::Relu2 => "squared ReLU",
                Activation::GeluTanh | Activation::GeluErf => "GELU",
                Activation::Relu => "ReLU",
                Activation::Silu => "SiLU",
                Activation::Tanh => "tanh",
                Activation::Xielu => "xIELU",
            };
            format!("{activation} of {intermediate_size}")
        }
    }
}
