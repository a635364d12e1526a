//! What a tokenizer puts around the texts that an encoder reads, found by looking at a sample: so a text can be cut to
//! length and still be framed, and a pair can be put together from two texts that were tokenised alone.

use super::TextError;
use super::tokenizer::{AddSpecialTokens, SpecialTokens, Tokenizer};

/// The frames of one text and of two.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TextFrame {
    before: Vec<u32>,
    after: Vec<u32>,
    pair: PairFrame,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct PairFrame {
    before: Vec<u32>,
    between: Vec<u32>,
    after: Vec<u32>,
    /// Where the tokenizer says that the second text begins, counted from its first token; `None` where it does not tell
    /// the two apart.
    second_text: Option<usize>,
}

/// Tokens as an encoder reads them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FramedText {
    pub tokens: Vec<u32>,
    /// The first token of the second text of a pair.
    pub second_text: Option<usize>,
}

/// Two different tokens, so that each text of the sample is found again.
const SAMPLE: [&str; 2] = ["a", "b"];

impl TextFrame {
    /// Errors when the frame depends on the text. Without a tokenizer there is no text to frame.
    pub fn of(tokenizer: &Tokenizer) -> Result<Self, TextError> {
        if tokenizer.is_absent() {
            return Ok(Self::default());
        }
        let bare = |text| tokenizer.encode(text, AddSpecialTokens::No, SpecialTokens::AsText);
        let (first, second) = (bare(SAMPLE[0])?, bare(SAMPLE[1])?);
        let framed = tokenizer.encode(SAMPLE[0], AddSpecialTokens::Yes, SpecialTokens::AsText)?;
        let at = find(&framed, &first, 0)?;
        let (pair, types) = tokenizer.encode_pair(SAMPLE[0], SAMPLE[1])?;
        let first_at = find(&pair, &first, 0)?;
        let first_end = first_at + first.len();
        let second_at = find(&pair, &second, first_end)?;
        let told = types.iter().position(|&text_type| text_type == 1).map(|at| at.max(first_end) - first_end);
        Ok(Self {
            before: framed[..at].to_vec(),
            after: framed[at + first.len()..].to_vec(),
            pair: PairFrame {
                before: pair[..first_at].to_vec(),
                between: pair[first_end..second_at].to_vec(),
                after: pair[second_at + second.len()..].to_vec(),
                second_text: told,
            },
        })
    }

    /// `text`, of which at most as many tokens are kept as fit into `most` with the frame.
    pub fn single(&self, mut text: Vec<u32>, most: Option<usize>) -> FramedText {
        if let Some(most) = most {
            text.truncate(most.saturating_sub(self.before.len() + self.after.len()));
        }
        FramedText { tokens: [&self.before[..], &text, &self.after].concat(), second_text: None }
    }

    /// A pair, of whose second text at most as many tokens are kept as fit into `most` with the rest; what the second
    /// text cannot give, the first one does.
    pub fn pair(&self, first: &[u32], second: &[u32], most: Option<usize>) -> FramedText {
        let PairFrame { before, between, after, second_text } = &self.pair;
        let room = most.map_or(usize::MAX, |most| most.saturating_sub(before.len() + between.len() + after.len()));
        let first = &first[..first.len().min(room)];
        let second = &second[..second.len().min(room - first.len())];
        let second_text = second_text.map(|offset| before.len() + first.len() + offset);
        FramedText { tokens: [&before[..], first, between, second, after].concat(), second_text }
    }
}

fn find(tokens: &[u32], wanted: &[u32], from: usize) -> Result<usize, TextError> {
    let found = tokens[from..].windows(wanted.len().max(1)).position(|window| window == wanted);
    found.map(|at| from + at).ok_or_else(|| TextError::Encode("its frame around a text depends on the text".into()))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// Letters, and a frame like BERT's.
    fn tokenizer(post_processor: Value) -> Tokenizer {
        let vocab: serde_json::Map<String, Value> = ["[CLS]", "[SEP]", "a", "b", "c"]
            .iter()
            .enumerate()
            .map(|(id, token)| ((*token).into(), json!(id)))
            .collect();
        let special = |id: u32, content: &str| {
            json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
                   "normalized": false, "special": true})
        };
        let file = json!({
            "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "decoder": null,
            "added_tokens": [special(0, "[CLS]"), special(1, "[SEP]")],
            "pre_tokenizer": {"type": "Whitespace"}, "post_processor": post_processor,
            "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "c"},
        });
        Tokenizer::from_bytes(file.to_string().as_bytes()).unwrap()
    }

    fn bert() -> Value {
        let special = |id: &str, text_type: u8| json!({"SpecialToken": {"id": id, "type_id": text_type}});
        let text = |id: &str, text_type: u8| json!({"Sequence": {"id": id, "type_id": text_type}});
        json!({
            "type": "TemplateProcessing",
            "single": [special("[CLS]", 0), text("A", 0), special("[SEP]", 0)],
            "pair": [special("[CLS]", 0), text("A", 0), special("[SEP]", 0), text("B", 1), special("[SEP]", 1)],
            "special_tokens": {
                "[CLS]": {"id": "[CLS]", "ids": [0], "tokens": ["[CLS]"]},
                "[SEP]": {"id": "[SEP]", "ids": [1], "tokens": ["[SEP]"]},
            },
        })
    }

    #[test]
    fn texts_are_framed_and_cut_inside_the_frame() {
        let frame = TextFrame::of(&tokenizer(bert())).unwrap();
        assert_eq!(frame.single(vec![2, 3, 4], None).tokens, [0, 2, 3, 4, 1]);
        assert_eq!(frame.single(vec![2, 3, 4], Some(4)).tokens, [0, 2, 3, 1]);
        assert_eq!(frame.single(vec![], None).tokens, [0, 1]);
        let pair = frame.pair(&[2, 2], &[3, 4, 4], None);
        assert_eq!((pair.tokens, pair.second_text), (vec![0, 2, 2, 1, 3, 4, 4, 1], Some(4)));
        let cut = frame.pair(&[2, 2], &[3, 4, 4], Some(6));
        assert_eq!((cut.tokens, cut.second_text), (vec![0, 2, 2, 1, 3, 1], Some(4)));
        assert_eq!(frame.pair(&[2, 2], &[3, 4, 4], Some(4)).tokens, [0, 2, 1, 1]);
    }

    #[test]
    fn a_tokenizer_without_a_frame_leaves_texts_alone() {
        let frame = TextFrame::of(&tokenizer(Value::Null)).unwrap();
        assert_eq!(frame.single(vec![2, 3], Some(1)).tokens, [2]);
        let pair = frame.pair(&[2], &[3], None);
        assert_eq!((pair.tokens, pair.second_text), (vec![2, 3], None));
    }
}
