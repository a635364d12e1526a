use super::super::fixtures::Random;
use super::*;

fn matcher(stops: &[&str]) -> StopMatcher {
    StopMatcher::new(&stops.iter().map(|&stop| stop.to_owned()).collect::<Vec<_>>())
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
        assert_eq!(run(&mut matcher(stops), &pieces), whole_text_search(stops, &text), "{stops:?} {pieces:?}");
    }
}

#[test]
fn only_what_may_be_a_stop_string_is_held_back() {
    let mut matcher = matcher(&["STOP"]);
    assert_eq!(matcher.push("aST").text, "a");
    assert_eq!(matcher.push("x").text, "STx");
    assert_eq!(matcher.push("SSTO").text, "S");
    assert_eq!(matcher.push("P tail"), StopOutput { text: String::new(), stopped: Some(0) });
    assert_eq!(matcher.push("more"), StopOutput { text: String::new(), stopped: Some(0) });
    assert_eq!(matcher.finish(), "");
}

#[test]
fn without_stop_strings_text_passes_at_once() {
    assert_eq!(matcher(&[]).push("abc").text, "abc");
}

#[test]
fn an_empty_stop_string_never_matches_and_a_long_one_does() {
    let long = "xy".repeat(5000);
    let text = format!("a{long}b");
    assert_eq!(run(&mut matcher(&["", &long]), &[&text]), ("a".to_owned(), Some(1)));
}
