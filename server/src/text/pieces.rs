//! Which bytes each token stands for, where the tokenizer's decoder says so token by token.
//!
//! Byte-level BPE, sentencepiece with byte fallback and plain metaspace decoders all map one token to bytes and then at
//! most drop leading spaces of the whole text. For these, text is the bytes joined, and a stream needs no window.
//! One deliberate difference from the `tokenizers` library: a run of byte-fallback tokens that is not UTF-8 as a whole
//! keeps the characters that are valid, where the library replaces the whole run; a stream could not take them back.

use serde_json::Value;
use tokenizers::Tokenizer as Hf;

/// What happens to spaces at the very start of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LeadingSpaces {
    Keep,
    /// At most so many leading spaces are dropped from the text.
    Strip(usize),
    /// The first token loses all its spaces.
    DropFromFirstToken,
}

/// The bytes of every token, and the rule for the start of a text.
#[derive(Debug)]
pub(super) struct Pieces {
    bytes: Vec<u8>,
    /// Token `id` owns `bytes[ends[id - 1]..ends[id]]`.
    ends: Vec<u32>,
    pub(super) leading: LeadingSpaces,
}

/// How one token's string becomes bytes.
#[derive(Debug, PartialEq, Eq)]
enum Rule {
    ByteLevel,
    Fallback { replacements: Vec<(String, String)>, byte_tokens: bool },
}

impl Pieces {
    /// `None` when the decoder looks at more than one token at a time.
    pub(super) fn new(hf: &Hf, vocab_size: usize) -> Option<Self> {
        let decoder = serde_json::to_value(hf.get_decoder()?).ok()?;
        let (rule, leading) = rule_of(&decoder)?;
        let byte_of = byte_level_alphabet();
        let mut bytes = Vec::new();
        let mut ends = Vec::with_capacity(vocab_size);
        for id in 0..u32::try_from(vocab_size).ok()? {
            // As the library decodes: an added token goes through its own map first.
            let token = hf.get_added_vocabulary().simple_id_to_token(id).or_else(|| hf.id_to_token(id));
            if let Some(token) = token {
                rule.append(&token, &byte_of, &mut bytes);
            }
            ends.push(u32::try_from(bytes.len()).ok()?);
        }
        Some(Self { bytes, ends, leading })
    }

    pub(super) fn bytes(&self, id: u32) -> &[u8] {
        let id = id as usize;
        let Some(&end) = self.ends.get(id) else { return &[] };
        let begin = if id == 0 { 0 } else { self.ends[id - 1] };
        &self.bytes[begin as usize..end as usize]
    }
}

impl Rule {
    fn append(&self, token: &str, byte_of: &[Option<u8>], out: &mut Vec<u8>) {
        match self {
            Self::ByteLevel => {
                let decoded: Option<Vec<u8>> =
                    token.chars().map(|c| byte_of.get(c as usize).copied().flatten()).collect();
                out.extend(decoded.unwrap_or_else(|| token.as_bytes().to_vec()));
            }
            Self::Fallback { replacements, byte_tokens } => {
                let replaced = replacements.iter().fold(token.to_owned(), |text, (from, to)| text.replace(from, to));
                match byte_token(&replaced).filter(|_| *byte_tokens) {
                    Some(byte) => out.push(byte),
                    None => out.extend_from_slice(replaced.as_bytes()),
                }
            }
        }
    }
}

/// The value of a token written `<0xE9>`.
fn byte_token(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    if digits.len() == 2 { u8::from_str_radix(digits, 16).ok() } else { None }
}

fn rule_of(decoder: &Value) -> Option<(Rule, LeadingSpaces)> {
    match kind(decoder) {
        "ByteLevel" => Some((Rule::ByteLevel, LeadingSpaces::Keep)),
        "Metaspace" => {
            let replacement = decoder["replacement"].as_str()?.to_owned();
            let keeps = decoder["prepend_scheme"].as_str() == Some("never");
            let leading = if keeps { LeadingSpaces::Keep } else { LeadingSpaces::DropFromFirstToken };
            let replacements = vec![(replacement, " ".to_owned())];
            Some((Rule::Fallback { replacements, byte_tokens: false }, leading))
        }
        "Sequence" => sequence_rule(decoder["decoders"].as_array()?),
        _ => None,
    }
}

/// `Replace* ByteFallback? (Fuse Strip?)?`, the shape of every converted sentencepiece model; or a lone other decoder.
fn sequence_rule(decoders: &[Value]) -> Option<(Rule, LeadingSpaces)> {
    if let [only] = decoders
        && matches!(kind(only), "ByteLevel" | "Metaspace")
    {
        return rule_of(only);
    }
    let mut rest = decoders.iter().peekable();
    let mut replacements = Vec::new();
    while let Some(replace) = rest.next_if(|decoder| kind(decoder) == "Replace") {
        replacements.push((replace["pattern"]["String"].as_str()?.to_owned(), replace["content"].as_str()?.to_owned()));
    }
    let byte_tokens = rest.next_if(|decoder| kind(decoder) == "ByteFallback").is_some();
    let mut leading = LeadingSpaces::Keep;
    if rest.next_if(|decoder| kind(decoder) == "Fuse").is_some()
        && let Some(strip) = rest.next_if(|decoder| kind(decoder) == "Strip")
    {
        if strip["content"].as_str() != Some(" ") || strip["stop"].as_u64() != Some(0) {
            return None;
        }
        leading = LeadingSpaces::Strip(usize::try_from(strip["start"].as_u64()?).ok()?);
    }
    rest.next().is_none().then_some((Rule::Fallback { replacements, byte_tokens }, leading))
}

fn kind(decoder: &Value) -> &str {
    decoder["type"].as_str().unwrap_or_default()
}

/// GPT-2's printable stand-ins for bytes, by code point: printable Latin-1 stands for itself, the others follow from 256.
fn byte_level_alphabet() -> Vec<Option<u8>> {
    let mut byte_of = vec![None; 512];
    let mut next_stand_in = 256;
    for byte in 0..=u8::MAX {
        let printable = matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
        let stand_in = if printable { usize::from(byte) } else { next_stand_in };
        next_stand_in += usize::from(!printable);
        byte_of[stand_in] = Some(byte);
    }
    byte_of
}
