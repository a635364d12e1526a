//! Any answer, cut anywhere: the same reasoning, content and tool calls as of the whole.
#![no_main]

use libfuzzer_sys::fuzz_target;
use passerelle::text::{AnswerDelta, AnswerParser, ReasoningFormat, ReasoningStart, ToolFormat};

/// The pieces, those of one kind that follow each other joined.
fn parse(tools: ToolFormat, reasoning: ReasoningFormat, pieces: &[&str]) -> Vec<AnswerDelta> {
    let mut parser = AnswerParser::new()
        .with_tools(tools, ["add".to_owned()])
        .with_reasoning(reasoning, ReasoningStart::Outside);
    let mut deltas: Vec<AnswerDelta> = pieces.iter().flat_map(|piece| parser.push(piece)).collect();
    deltas.extend(parser.finish());
    AnswerDelta::joined(deltas)
}

fuzz_target!(|input: (&str, Vec<u8>)| {
    let (text, cuts) = input;
    let mut pieces = Vec::new();
    let mut rest = text;
    for cut in cuts {
        let end = rest.char_indices().nth(usize::from(cut)).map_or(rest.len(), |(at, _)| at);
        let (piece, after) = rest.split_at(end);
        pieces.push(piece);
        rest = after;
    }
    pieces.push(rest);
    for tools in ToolFormat::ALL {
        for reasoning in ReasoningFormat::ALL {
            assert_eq!(parse(tools, reasoning, &pieces), parse(tools, reasoning, &[text]));
        }
    }
});
