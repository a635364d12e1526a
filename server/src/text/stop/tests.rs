use super::super::fixtures::Random;
use super::*;

fn matcher(stops: &[&str], stop_text: StopText) -> StopMatcher {
    StopMatcher::new(&stops.iter().map(|&stop| stop.to_owned()).collect::<Vec<_>>(), stop_text).unwrap()
}

fn run(matcher: &mut StopMatcher, pieces: &[&str]) -> (String, Option<usize>) {
    let mut text = String::new();
    for piece in pieces {
        let output = matcher.push(piece);
        text.push_str(&output.text);
        if output.stopped.is_some() {
            return (text, output.stopped);
        }
    }
    (text + &matcher.finish(), None)
}

/// The definition: the match that ends first, the longest of those that end together.
fn whole_text_search(stops: &[&str], text: &str) -> (String, Option<usize>) {
    let found = stops.iter().enumerate().filter_map(|(n, stop)| text.find(stop).map(|at| (at + stop.len(), at, n)));
    match found.min() {
        Some((_, start, index)) => (text[..start].to_owned(), Some(index)),
        None => (text.to_owned(), None),
    }
}

#[test]
fn any_cut_of_the_text_gives_what_searching_the_whole_gives() {
    let sets: [&[&str]; 6] = [
        &["ab"],
        &["aab", "aaab", "b a"],
        &["abcabd", "bc", "cab"],
        &["é", "日本", "aé日"],
        &["\n\n", "a\n", "\n\na"],
        &["abab", "ab", "abab"],
    ];
    let alphabet = ["a", "b", "c", "d", "é", "日", "本", "\n", " "];
    let mut random = Random::new(3);
    for round in 0..3000 {
        let stops = sets[round % sets.len()];
        let length = random.below(30);
        let text: String = (0..length).map(|_| alphabet[random.below(alphabet.len())]).collect();
        let pieces = random.cut(&text);
        assert_eq!(
            run(&mut matcher(stops, StopText::Cut), &pieces),
            whole_text_search(stops, &text),
            "{stops:?} {pieces:?}"
        );
    }
}

#[test]
fn only_what_may_be_a_stop_string_is_held_back() {
    let mut matcher = matcher(&["STOP"], StopText::Cut);
    assert_eq!(matcher.push("aST").text, "a");
    assert_eq!(matcher.push("x").text, "STx");
    assert_eq!(matcher.push("SSTO").text, "S");
    assert_eq!(matcher.push("P tail"), StopOutput { text: String::new(), stopped: Some(0) });
    assert_eq!(matcher.push("more"), StopOutput { text: String::new(), stopped: Some(0) });
    assert_eq!(matcher.finish(), "");
}

#[test]
fn the_stop_string_is_kept_when_asked() {
    assert_eq!(run(&mut matcher(&["."], StopText::Keep), &["One", ". Two"]), ("One.".to_owned(), Some(0)));
}

#[test]
fn without_stop_strings_text_passes_at_once() {
    assert_eq!(matcher(&[], StopText::Cut).push("abc").text, "abc");
}

#[test]
fn too_many_and_unusable_stop_strings_are_refused() {
    let many = vec!["x".to_owned(); MAX_STOP_STRINGS + 1];
    assert!(matches!(StopMatcher::new(&many, StopText::Cut), Err(TextError::TooManyStopStrings { .. })));
    for unusable in [String::new(), "x".repeat(MAX_STOP_STRING_BYTES + 1)] {
        assert!(matches!(StopMatcher::new(&[unusable], StopText::Cut), Err(TextError::StopStringLength { .. })));
    }
}
