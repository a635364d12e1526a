use super::super::fixtures::Random;
use super::*;

/// Reasoning and content of a text pushed in pieces.
fn split(format: ReasoningFormat, start: ReasoningStart, pieces: &[&str]) -> (String, String) {
    let mut splitter = ReasoningSplitter::new(format, start);
    let mut deltas: Vec<AnswerDelta> = pieces.iter().flat_map(|piece| splitter.push(piece)).collect();
    deltas.extend(splitter.finish());
    let (mut reasoning, mut content) = (String::new(), String::new());
    for delta in deltas {
        match delta {
            AnswerDelta::Reasoning(text) => reasoning.push_str(&text),
            AnswerDelta::Content(text) => content.push_str(&text),
            other => panic!("{other:?}"),
        }
    }
    (reasoning, content)
}

fn think(text: &str) -> (String, String) {
    split(ReasoningFormat::Think, ReasoningStart::Outside, &[text])
}

fn parts(reasoning: &str, content: &str) -> (String, String) {
    (reasoning.to_owned(), content.to_owned())
}

#[test]
fn reasoning_and_answer_are_parted_without_their_markers() {
    assert_eq!(think("<think>\nA sum.\n\nEasy.\n</think>\n\n19 \n"), parts("A sum.\n\nEasy.", "19 \n"));
    assert_eq!(think("\n<think>\n\n</think>\n\n19"), parts("", "19"));
    let magistral = "[THINK]un < deux[/THINK]Bonjour [THINK]encore[/THINK] fin";
    let (format, start) = (ReasoningFormat::Mistral, ReasoningStart::Outside);
    assert_eq!(split(format, start, &[magistral]), parts("un < deuxencore", "Bonjour fin"));
    let apertus = "<|inner_prefix|>hmm<|inner_suffix|>Grüezi";
    assert_eq!(split(ReasoningFormat::Apertus, start, &[apertus]), parts("hmm", "Grüezi"));
}

#[test]
fn an_answer_without_reasoning_is_left_as_it_is() {
    for text in
        ["", " \n", "19", "  19\n", "<thin", "<thinking>", "</think>", "The tag <think> opens, </think> closes."]
    {
        assert_eq!(think(text), parts("", text));
    }
}

#[test]
fn an_answer_may_begin_inside() {
    let inside = |text| split(ReasoningFormat::Think, ReasoningStart::Inside, &[text]);
    assert_eq!(inside("\nhm </thin </think>\n\nyes"), parts("hm </thin", "yes"));
    assert_eq!(inside("never closed </thi"), parts("never closed </thi", ""));
    assert_eq!(inside("never closed \n"), parts("never closed", ""));
}

#[test]
fn where_an_answer_begins_is_seen_from_what_is_before_it() {
    let format = ReasoningFormat::Think;
    let starts =
        ["<|im_start|>assistant\n<think>\n", "assistant\n<think>\n\n</think>\n\n", "<think> </think> assistant\n"]
            .map(|end| format.start_after(end) == ReasoningStart::Inside);
    assert_eq!(starts, [true, false, false]);
    let goes_on = ["<think>Let me", "<think>Let me</think>", "Let me"].map(|text| format.start_within(text));
    assert_eq!(goes_on, [ReasoningStart::Inside, ReasoningStart::Outside, ReasoningStart::Outside]);
}

#[test]
fn any_cut_of_the_text_gives_the_same_parts() {
    let mut random = Random::new(3);
    for format in ReasoningFormat::ALL {
        let [open, close] = format.markers();
        let fragments =
            [open, close, open, close, "<thi", "[TH", "<|inner", "nk>", " ", "\n", "é", "👍", "<", "[", "/", "a b"];
        let mut with_reasoning = 0;
        for _ in 0..2000 {
            let length = random.below(9);
            let text: String = (0..length).map(|_| fragments[random.below(fragments.len())]).collect();
            let start = [ReasoningStart::Outside, ReasoningStart::Inside][random.below(2)];
            let whole = split(format, start, &[&text]);
            with_reasoning += usize::from(!whole.0.is_empty());
            assert_eq!(split(format, start, &random.cut(&text)), whole, "{text:?}");
        }
        assert!(with_reasoning > 300, "{with_reasoning}");
    }
}
