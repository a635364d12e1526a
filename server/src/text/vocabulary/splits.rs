//! How byte-level vocabularies split text before merges are looked for, by the names that GGUF files give them
//! (`llama-vocab.cpp` of ggml-org/llama.cpp). The patterns are those of the models' own `tokenizer.json`.

use serde_json::{Value, json};

use super::fault;
use crate::text::TextError;

const KEY: &str = "tokenizer.ggml.pre";
/// llama.cpp's name for a file that gives none.
const UNNAMED: &str = "default";

/// One way to split.
#[derive(Debug, Clone, Copy)]
pub(super) struct Split {
    names: &'static [&'static str],
    parts: &'static [Part],
    /// Whether text is composed first (NFC).
    composes: bool,
    /// Whether a word that is a token is taken whole, whatever its merges.
    pub(super) ignores_merges: bool,
    /// Whether text begins with BOS where the file does not say.
    pub(super) adds_bos: bool,
}

#[derive(Debug, Clone, Copy)]
enum Part {
    /// Each match is a word, and what is between matches is one.
    Pattern(&'static str),
    Digits,
    /// GPT-2's own pattern, which the library has.
    Gpt2,
}

const LLAMA_3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN_2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const BLOOM: &str = r" ?[^(\s|[.,!?…。，、।۔،])]+";

const PLAIN: Split =
    Split { names: &[], parts: &[Part::Gpt2], composes: false, ignores_merges: false, adds_bos: false };

const SPLITS: &[Split] = &[
    Split { names: &["gpt-2", "gpt2", "phi-2", "olmo"], ..PLAIN },
    Split {
        names: &[UNNAMED],
        parts: &[
            Part::Pattern(r"[\p{P}\$\+<=>\^~\|]+"),
            Part::Pattern(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"),
            Part::Pattern(r"\p{N}+"),
            Part::Pattern("[0-9][0-9][0-9]"),
        ],
        ..PLAIN
    },
    Split {
        names: &["llama-bpe", "llama3", "llama-v3", "pixtral", "lfm2"],
        parts: &[Part::Pattern(LLAMA_3)],
        ignores_merges: true,
        adds_bos: true,
        ..PLAIN
    },
    Split { names: &["qwen2", "deepseek-r1-qwen"], parts: &[Part::Pattern(QWEN_2)], composes: true, ..PLAIN },
    Split { names: &["tekken"], parts: &[Part::Pattern(TEKKEN)], ignores_merges: true, adds_bos: true, ..PLAIN },
    Split {
        names: &["smollm", "starcoder", "refact", "codeshell", "minerva-7b"],
        parts: &[Part::Digits, Part::Gpt2],
        ..PLAIN
    },
    Split { names: &["bloom", "poro-chat", "gpt3-finnish"], parts: &[Part::Pattern(BLOOM)], ..PLAIN },
    Split { names: &["viking"], parts: &[Part::Pattern(BLOOM), Part::Digits], ..PLAIN },
];

/// The split of that name. An unknown name is refused: another split gives other tokens, and a model that was not trained on
/// them.
pub(super) fn find(name: Option<&str>) -> Result<Split, TextError> {
    let name = name.unwrap_or(UNNAMED);
    SPLITS.iter().find(|split| split.names.contains(&name)).copied().ok_or_else(|| {
        let known: Vec<_> = SPLITS.iter().flat_map(|split| split.names).copied().collect();
        fault(KEY, format!("{name:.80} is not supported; supported: {}", known.join(", ")))
    })
}

impl Split {
    pub(super) fn normalizer(&self) -> Value {
        if self.composes { json!({"type": "NFC"}) } else { Value::Null }
    }

    pub(super) fn pre_tokenizer(&self) -> Value {
        let byte_level = |use_regex: bool| json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex});
        let splits = self.parts.iter().filter_map(|part| match part {
            Part::Gpt2 => None,
            Part::Digits => Some(json!({"type": "Digits", "individual_digits": true})),
            Part::Pattern(pattern) => {
                Some(json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false}))
            }
        });
        let own_pattern = self.parts.iter().any(|part| matches!(part, Part::Gpt2));
        json!({"type": "Sequence", "pretokenizers": splits.chain([byte_level(own_pattern)]).collect::<Vec<_>>()})
    }
}
