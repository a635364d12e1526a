use super::super::fixtures::{
    Random, TEXTS, byte_fallback_json, byte_level_json, tokenizer, unigram_json, word_piece_json,
};
use super::super::tokenizer::{AddSpecialTokens, SpecialTokens};
use super::*;

fn stream(tokenizer: &Tokenizer, skip: SkipSpecialTokens, ids: &[u32]) -> Vec<String> {
    let mut detokenizer = Detokenizer::new(tokenizer, skip);
    let mut pieces: Vec<String> = ids.iter().map(|&id| detokenizer.push(id)).collect();
    pieces.push(detokenizer.finish());
    pieces
}

#[test]
fn a_stream_of_any_bytes_is_the_library_s_whole_text() {
    let ours = tokenizer(&byte_level_json());
    let library = tokenizers::Tokenizer::from_bytes(byte_level_json().to_string()).unwrap();
    let mut random = Random::new(7);
    for _ in 0..500 {
        let length = random.below(40);
        let ids: Vec<u32> = (0..length).map(|_| random.below(ours.vocab_size()) as u32).collect();
        for skip in [SkipSpecialTokens::Yes, SkipSpecialTokens::No] {
            let whole = library.decode(&ids, skip == SkipSpecialTokens::Yes).unwrap();
            assert_eq!(stream(&ours, skip, &ids).concat(), whole, "{ids:?}");
        }
    }
}

#[test]
fn a_character_is_given_out_only_whole() {
    for json in [byte_level_json(), byte_fallback_json()] {
        let tokenizer = tokenizer(&json);
        for text in TEXTS {
            let ids = tokenizer.encode(text, AddSpecialTokens::No, SpecialTokens::Parse).unwrap();
            let pieces = stream(&tokenizer, SkipSpecialTokens::Yes, &ids);
            assert!(pieces.iter().all(|piece| !piece.contains('\u{FFFD}')), "{pieces:?}");
            assert_eq!(pieces.concat(), text);
        }
    }
}

#[test]
fn every_prefix_of_a_stream_is_a_prefix_of_the_text() {
    let tokenizer = tokenizer(&byte_fallback_json());
    let mut random = Random::new(11);
    for _ in 0..300 {
        let length = random.below(30);
        let ids: Vec<u32> = (0..length).map(|_| random.below(tokenizer.vocab_size()) as u32).collect();
        let whole = tokenizer.decode(&ids, SkipSpecialTokens::Yes);
        let mut so_far = String::new();
        for piece in stream(&tokenizer, SkipSpecialTokens::Yes, &ids) {
            so_far.push_str(&piece);
            assert!(whole.starts_with(&so_far));
        }
        assert_eq!(so_far, whole);
    }
}

#[test]
fn decoders_that_look_at_neighbours_stream_too() {
    let tokenizer = tokenizer(&word_piece_json());
    let ids = tokenizer.encode("the streaming cats don't . ", AddSpecialTokens::No, SpecialTokens::Parse).unwrap();
    let many: Vec<u32> = ids.iter().copied().cycle().take(ids.len() * 20).collect();
    assert_eq!(
        stream(&tokenizer, SkipSpecialTokens::Yes, &many).concat(),
        tokenizer.decode(&many, SkipSpecialTokens::Yes)
    );
}

#[test]
fn a_leading_space_belongs_to_what_goes_on_and_not_to_what_begins() {
    for (json, word) in [(byte_fallback_json(), "▁w"), (unigram_json(), "▁")] {
        let tokenizer = tokenizer(&json);
        let word = tokenizer.token_id(word).unwrap();
        let begins = Detokenizer::new(&tokenizer, SkipSpecialTokens::Yes).push(word);
        let goes_on = Detokenizer::after(&tokenizer, SkipSpecialTokens::Yes, &[word]).push(word);
        assert_eq!(format!(" {begins}"), goes_on);
    }
    let word_piece = tokenizer(&word_piece_json());
    let [the, cat] = ["the", "cat"].map(|word| word_piece.token_id(word).unwrap());
    assert_eq!(Detokenizer::after(&word_piece, SkipSpecialTokens::Yes, &[the]).push(cat), " cat");
}

#[test]
fn an_unfinished_character_ends_as_a_replacement() {
    let tokenizer = tokenizer(&byte_level_json());
    let mut detokenizer = Detokenizer::new(&tokenizer, SkipSpecialTokens::Yes);
    assert_eq!(detokenizer.push(0xF0), "");
    assert_eq!(detokenizer.push(0x9F), "");
    assert_eq!(detokenizer.finish(), "\u{FFFD}");
    assert_eq!(detokenizer.finish(), "");
}
