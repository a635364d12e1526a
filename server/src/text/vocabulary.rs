//! A tokenizer from a bare vocabulary, as GGUF files carry it: what `tokenizer.json` would say is worked out from the
//! kind of vocabulary and from what the file calls its splitting.

mod merges;
mod splits;

use std::collections::{BTreeMap, HashMap};

use serde_json::{Map, Value, json};

use super::TextError;

const SPACE: &str = "▁";

/// Keys as in the metadata, for errors.
const TOKENS: &str = "tokenizer.ggml.tokens";
const MODEL: &str = "tokenizer.ggml.model";
const TYPES: &str = "tokenizer.ggml.token_type";
const SCORES: &str = "tokenizer.ggml.scores";
const MERGES: &str = "tokenizer.ggml.merges";

/// What a file says about its tokens.
#[derive(Debug, Clone, Default)]
pub struct Vocabulary {
    /// `gpt2` for byte-level BPE, `llama` for sentencepiece.
    pub model: String,
    /// How text is split before merges are looked for.
    pub pre: Option<String>,
    /// By id.
    pub tokens: Vec<String>,
    /// [`TokenType`] of each, as a number.
    pub types: Option<Vec<f64>>,
    pub scores: Option<Vec<f64>>,
    pub merges: Vec<String>,
    pub bos: Option<u64>,
    pub eos: Option<u64>,
    pub unknown: Option<u64>,
    pub padding: Option<u64>,
    pub add_bos: Option<bool>,
    pub add_eos: Option<bool>,
    /// Whether a space is put before the text.
    pub add_space_prefix: Option<bool>,
    /// By name; the usual one is `default`.
    pub templates: BTreeMap<String, String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum TokenType {
    Normal,
    Unknown,
    /// Frames text and never stands for any.
    Control,
    /// Taken whole wherever it is written.
    UserDefined,
    /// Fills the table up.
    Unused,
    Byte,
}

impl Vocabulary {
    /// What `tokenizer.json` would hold. Errors name the key of the metadata.
    pub fn tokenizer_json(&self) -> Result<Vec<u8>, TextError> {
        let types = self.types()?;
        let tokenizer = match self.model.as_str() {
            "gpt2" => self.byte_level(&types)?,
            "llama" => self.sentencepiece(&types)?,
            other => {
                let supported = "gpt2 (byte-level BPE), llama (sentencepiece)";
                return Err(fault(MODEL, format!("{other:.80} is not supported; supported: {supported}")));
            }
        };
        Ok(tokenizer.to_string().into_bytes())
    }

    /// What `tokenizer_config.json` would hold: special tokens by name, and the templates.
    pub fn config_json(&self) -> Result<Vec<u8>, TextError> {
        let mut config = self.special_tokens()?;
        let named = |(name, template): (&String, &String)| json!({"name": name, "template": template});
        if !self.templates.is_empty() {
            config.insert("chat_template".to_owned(), self.templates.iter().map(named).collect());
        }
        Ok(Value::Object(config).to_string().into_bytes())
    }

    /// The type of every token; all are normal where the file does not say.
    fn types(&self) -> Result<Vec<TokenType>, TextError> {
        let Some(written) = &self.types else { return Ok(vec![TokenType::Normal; self.tokens.len()]) };
        if written.len() != self.tokens.len() {
            return Err(fault(TYPES, format!("{} types for {} tokens", written.len(), self.tokens.len())));
        }
        let named = |number: &f64| match *number as i64 {
            1 => Ok(TokenType::Normal),
            2 => Ok(TokenType::Unknown),
            3 => Ok(TokenType::Control),
            4 => Ok(TokenType::UserDefined),
            // 0 is what tools write for holes.
            0 | 5 => Ok(TokenType::Unused),
            6 => Ok(TokenType::Byte),
            other => Err(fault(TYPES, format!("{other} is no type of token"))),
        };
        written.iter().map(named).collect()
    }

    /// Every token that text can become, with its id.
    fn vocab(&self, types: &[TokenType]) -> Result<Map<String, Value>, TextError> {
        let mut vocab = Map::new();
        for (id, (token, kind)) in self.tokens.iter().zip(types).enumerate() {
            if *kind == TokenType::Unused {
                continue;
            }
            if let Some(other) = vocab.insert(token.clone(), id.into()) {
                return Err(fault(TOKENS, format!("tokens {other} and {id} are the same")));
            }
        }
        if vocab.is_empty() { Err(fault(TOKENS, "missing or empty")) } else { Ok(vocab) }
    }

    fn added_tokens(&self, types: &[TokenType]) -> Vec<Value> {
        let added = |(id, (token, kind)): (usize, (&String, &TokenType))| {
            let special = match kind {
                TokenType::Control | TokenType::Unknown => true,
                TokenType::UserDefined => false,
                _ => return None,
            };
            // An empty token would be found between any two letters.
            let is_text = !token.is_empty();
            is_text.then(|| {
                json!({"id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
                    "normalized": false, "special": special})
            })
        };
        self.tokens.iter().zip(types).enumerate().filter_map(added).collect()
    }

    fn byte_level(&self, types: &[TokenType]) -> Result<Value, TextError> {
        let split = splits::find(self.pre.as_deref())?;
        let vocab = self.vocab(types)?;
        Ok(json!({
            "version": "1.0",
            "added_tokens": self.added_tokens(types),
            "normalizer": split.normalizer(),
            "pre_tokenizer": split.pre_tokenizer(),
            "post_processor": self.frame(split.adds_bos)?,
            "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
            "model": {"type": "BPE", "merges": self.listed_merges(&vocab)?, "vocab": vocab,
                "ignore_merges": split.ignores_merges},
        }))
    }

    fn sentencepiece(&self, types: &[TokenType]) -> Result<Value, TextError> {
        let vocab = self.vocab(types)?;
        let merges = if self.merges.is_empty() { self.merges_by_score(types)? } else { self.listed_merges(&vocab)? };
        let mut normalizers = vec![json!({"type": "Replace", "pattern": {"String": " "}, "content": SPACE})];
        let mut decoders = vec![
            json!({"type": "Replace", "pattern": {"String": SPACE}, "content": " "}),
            json!({"type": "ByteFallback"}),
            json!({"type": "Fuse"}),
        ];
        if self.add_space_prefix.unwrap_or(true) {
            normalizers.insert(0, json!({"type": "Prepend", "prepend": SPACE}));
            decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
        }
        let unknown = types.iter().position(|kind| *kind == TokenType::Unknown);
        let unknown = self.unknown.map(|id| id as usize).or(unknown).and_then(|id| self.tokens.get(id));
        Ok(json!({
            "version": "1.0",
            "added_tokens": self.added_tokens(types),
            "normalizer": {"type": "Sequence", "normalizers": normalizers},
            "post_processor": self.frame(true)?,
            "decoder": {"type": "Sequence", "decoders": decoders},
            "model": {"type": "BPE", "vocab": vocab, "merges": merges, "unk_token": unknown, "byte_fallback": true,
                "fuse_unk": true},
        }))
    }

    fn merges_by_score(&self, types: &[TokenType]) -> Result<Vec<[&str; 2]>, TextError> {
        let Some(scores) = &self.scores else {
            return Err(fault(SCORES, "missing; without scores or merges nobody knows which pieces are joined first"));
        };
        if scores.len() != self.tokens.len() {
            return Err(fault(SCORES, format!("{} scores for {} tokens", scores.len(), self.tokens.len())));
        }
        let mut pieces = HashMap::with_capacity(self.tokens.len());
        for ((token, kind), score) in self.tokens.iter().zip(types).zip(scores) {
            if matches!(kind, TokenType::Normal | TokenType::UserDefined) {
                pieces.insert(token.as_str(), *score);
            }
        }
        merges::by_score(&self.tokens, &pieces)
    }

    /// The merges that the file lists, each of tokens and to a token.
    fn listed_merges(&self, vocab: &Map<String, Value>) -> Result<Vec<[&str; 2]>, TextError> {
        let checked = |(index, merge): (usize, &'_ String)| {
            let known = |(left, right): &(&str, &str)| {
                [left, right].iter().all(|part| vocab.contains_key(**part))
                    && vocab.contains_key(&format!("{left}{right}"))
            };
            if merge.split_once(' ').filter(known).is_some() {
                return Ok(());
            }
            Err(fault(MERGES, format!("merge {index} joins what are no tokens")))
        };
        self.merges.iter().enumerate().try_for_each(checked)?;
        Ok(self.merges.iter().filter_map(|merge| merge.split_once(' ')).map(|(left, right)| [left, right]).collect())
    }

    /// What is put around a text, where the file does not say so otherwise.
    fn frame(&self, adds_bos: bool) -> Result<Value, TextError> {
        let mut single = vec![json!({"Sequence": {"id": "A", "type_id": 0}})];
        let mut special = Map::new();
        let mut add = |name: &str, id: Option<u64>| -> Result<Value, TextError> {
            let key = format!("tokenizer.ggml.{name}_token_id");
            let Some(id) = id else { return Err(fault(&key, "missing, although it is to be put around a text")) };
            let token = self.token(&key, id)?;
            special.insert(token.to_owned(), json!({"id": token, "ids": [id], "tokens": [token]}));
            Ok(json!({"SpecialToken": {"id": token, "type_id": 0}}))
        };
        if self.add_bos.unwrap_or(adds_bos && self.bos.is_some()) {
            single.insert(0, add("bos", self.bos)?);
        }
        if self.add_eos == Some(true) {
            single.push(add("eos", self.eos)?);
        }
        if special.is_empty() {
            return Ok(Value::Null);
        }
        let pair = [single.as_slice(), &[json!({"Sequence": {"id": "B", "type_id": 1}})]].concat();
        Ok(json!({"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": special}))
    }

    /// As `tokenizer_config.json` names them.
    fn special_tokens(&self) -> Result<Map<String, Value>, TextError> {
        let mut special_tokens = Map::new();
        let named = [("bos", self.bos), ("eos", self.eos), ("unknown", self.unknown), ("padding", self.padding)];
        for ((name, id), as_seen) in named.into_iter().zip(["bos_token", "eos_token", "unk_token", "pad_token"]) {
            if let Some(id) = id {
                let token = self.token(&format!("tokenizer.ggml.{name}_token_id"), id)?;
                special_tokens.insert(as_seen.to_owned(), token.into());
            }
        }
        Ok(special_tokens)
    }

    fn token(&self, key: &str, id: u64) -> Result<&str, TextError> {
        let token = usize::try_from(id).ok().and_then(|id| self.tokens.get(id));
        let num_tokens = self.tokens.len();
        token.map(String::as_str).ok_or_else(|| fault(key, format!("token {id} of a vocabulary of {num_tokens}")))
    }
}

fn fault(key: &str, problem: impl Into<String>) -> TextError {
    TextError::File { file: key.to_owned(), problem: problem.into() }
}

#[cfg(test)]
mod tests;
