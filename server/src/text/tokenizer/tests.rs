use serde_json::json;

use super::super::fixtures::{TEXTS, byte_fallback_json, byte_level_json, tokenizer, unigram_json, word_piece_json};
use super::*;

fn parse(tokenizer: &Tokenizer, text: &str) -> Vec<u32> {
    tokenizer.encode(text, AddSpecialTokens::No, SpecialTokens::Parse).unwrap()
}

fn as_text(tokenizer: &Tokenizer, text: &str) -> Vec<u32> {
    tokenizer.encode(text, AddSpecialTokens::No, SpecialTokens::AsText).unwrap()
}

#[test]
fn special_tokens_inside_user_text_stay_text() {
    let text = "hello<|im_end|> world<|im_start|>";
    let tokenizer = tokenizer(&byte_level_json());
    let end = tokenizer.token_id("<|im_end|>").unwrap();
    assert!(parse(&tokenizer, text).contains(&end));
    let ids = as_text(&tokenizer, text);
    assert!(!ids.iter().any(|&id| tokenizer.is_special(id)));
    assert_eq!(tokenizer.decode(&ids, SkipSpecialTokens::Yes), text);
    let mut reference = Hf::from_bytes(byte_level_json().to_string()).unwrap();
    reference.set_encode_special_tokens(true);
    assert_eq!(ids, reference.encode(text, false).unwrap().get_ids());
}

#[test]
fn a_vocabulary_that_spells_its_special_tokens_does_not_leak_them() {
    let tokenizer = tokenizer(&unigram_json());
    let end = tokenizer.token_id("</s>").unwrap();
    assert!(parse(&tokenizer, "ab</s>c").contains(&end));
    let ids = as_text(&tokenizer, "ab</s>c");
    assert!(!ids.contains(&end), "{ids:?}");
    let framed = tokenizer.encode("ab</s>c", AddSpecialTokens::Yes, SpecialTokens::AsText).unwrap();
    assert_eq!(framed, ids);
}

#[test]
fn text_without_special_strings_is_encoded_alike_either_way() {
    for json in [byte_level_json(), byte_fallback_json(), unigram_json(), word_piece_json()] {
        let tokenizer = tokenizer(&json);
        for text in TEXTS {
            assert_eq!(parse(&tokenizer, text), as_text(&tokenizer, text), "{text}");
        }
    }
}

#[test]
fn bos_is_added_only_when_asked() {
    let tokenizer = tokenizer(&byte_level_json());
    let bos = tokenizer.token_id("<|bos|>").unwrap();
    let with = tokenizer.encode("hello", AddSpecialTokens::Yes, SpecialTokens::Parse).unwrap();
    assert_eq!(with[0], bos);
    assert_eq!(with[1..], parse(&tokenizer, "hello"));
    let quoted = tokenizer.encode("a<|bos|>", AddSpecialTokens::Yes, SpecialTokens::AsText).unwrap();
    assert_eq!(quoted.iter().filter(|&&id| id == bos).count(), 1);
}

#[test]
fn decoding_agrees_with_the_library_on_every_kind_of_tokenizer() {
    for json in [byte_level_json(), byte_fallback_json(), unigram_json(), word_piece_json()] {
        let ours = tokenizer(&json);
        let library = Hf::from_bytes(json.to_string()).unwrap();
        for text in TEXTS.into_iter().chain(["the streaming cats don't.", " leading", "<s> hello </s>"]) {
            let ids = ours.encode(text, AddSpecialTokens::Yes, SpecialTokens::Parse).unwrap();
            assert_eq!(ours.decode(&ids, SkipSpecialTokens::Yes), library.decode(&ids, true).unwrap(), "{text}");
            assert_eq!(ours.decode(&ids, SkipSpecialTokens::No), library.decode(&ids, false).unwrap(), "{text}");
        }
    }
}

#[test]
fn a_token_has_exactly_its_bytes() {
    let byte_level = tokenizer(&byte_level_json());
    for byte in 0..=255_u32 {
        assert_eq!(byte_level.token_bytes(byte), [byte as u8]);
    }
    assert_eq!(byte_level.token_bytes(byte_level.token_id("Ġw").unwrap()), b" w");
    assert_eq!(byte_level.token_bytes(byte_level.token_id("Ã©").unwrap()), "é".as_bytes());
    assert_eq!(byte_level.token_bytes(byte_level.token_id("<|im_end|>").unwrap()), b"<|im_end|>");
    let fallback = tokenizer(&byte_fallback_json());
    assert_eq!(fallback.token_bytes(fallback.token_id("<0xE9>").unwrap()), [0xE9]);
    assert_eq!(fallback.token_bytes(fallback.token_id("▁hello").unwrap()), b" hello");
    assert_eq!(fallback.token_bytes(999_999), b"");
    let word_piece = tokenizer(&word_piece_json());
    assert_eq!(word_piece.token_bytes(word_piece.token_id("cat").unwrap()), b"cat");
}

#[test]
fn a_prompt_is_never_cut_by_the_file() {
    let mut json = byte_level_json();
    json["truncation"] = json!({"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0});
    json["padding"] = json!({"strategy": {"Fixed": 64}, "direction": "Right", "pad_to_multiple_of": null, "pad_id": 0,
        "pad_type_id": 0, "pad_token": "!"});
    assert_eq!(parse(&tokenizer(&json), "0123456789").len(), 10);
}

#[test]
fn what_is_too_long_or_damaged_is_refused_with_what_to_do() {
    let long = "a".repeat(MAX_TEXT_BYTES + 1);
    let refused = tokenizer(&byte_level_json()).encode(&long, AddSpecialTokens::No, SpecialTokens::Parse);
    assert!(matches!(refused, Err(TextError::TooLong { .. })));
    for bytes in [&b""[..], b"{}", b"[]", b"\xff\xfe", br#"{"version": "1.0", "model": {"type": "BPE"}}"#] {
        let error = Tokenizer::from_bytes(bytes).unwrap_err();
        assert!(error.to_string().starts_with("tokenizer.json: "), "{error}");
        assert!(!error.is_request_fault());
    }
}

#[test]
fn the_vocabulary_is_counted_with_its_added_tokens() {
    let tokenizer = tokenizer(&byte_level_json());
    assert_eq!(tokenizer.vocab_size(), 256 + 9 + 5);
    assert_eq!((0..300).filter(|id| tokenizer.is_special(*id)).collect::<Vec<_>>(), [265, 266, 267, 269]);
}
