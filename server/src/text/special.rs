//! The strings that are special tokens, and where they occur in a text.

use std::collections::HashSet;
use std::ops::Range;

/// Every special token's string, ready to be searched for in time that grows with the text alone.
#[derive(Debug, Default)]
pub struct SpecialStrings {
    /// Sorted, so that the strings that go on with a given byte are neighbours.
    strings: Vec<String>,
    /// What is left of the strings when they are cut in two anywhere: starts and ends.
    heads: HashSet<String>,
    tails: HashSet<String>,
    longest: usize,
}

impl SpecialStrings {
    pub fn new(strings: impl IntoIterator<Item = String>) -> Self {
        let mut strings: Vec<String> = strings.into_iter().filter(|string| !string.is_empty()).collect();
        strings.sort_unstable();
        strings.dedup();
        let splits = || strings.iter().flat_map(|string| proper_splits(string));
        let heads = splits().map(|(head, _)| head.to_owned()).collect();
        let tails = splits().map(|(_, tail)| tail.to_owned()).collect();
        let longest = strings.iter().map(String::len).max().unwrap_or(0);
        Self { heads, tails, longest, strings }
    }

    pub fn occurs_in(&self, text: &str) -> bool {
        self.find_from(text, 0).is_some()
    }

    /// The first occurrence at or after byte `from`; the longest of those that start there.
    pub fn find_from(&self, text: &str, from: usize) -> Option<Range<usize>> {
        (from..text.len()).find_map(|at| Some(at..at + self.longest_at(&text.as_bytes()[at..])?))
    }

    /// The longest end of `text` that begins, but does not finish, a special string.
    pub fn unfinished_end<'t>(&self, text: &'t str) -> &'t str {
        let first = text.len().saturating_sub(self.longest);
        let ends = (first..text.len()).filter_map(|at| text.get(at..));
        ends.into_iter().find(|end| self.heads.contains(*end)).unwrap_or("")
    }

    /// The longest start of `text` that finishes, but does not begin, a special string.
    pub fn unbegun_start<'t>(&self, text: &'t str) -> &'t str {
        let last = text.len().min(self.longest);
        let starts = (1..=last).rev().filter_map(|at| text.get(..at));
        starts.into_iter().find(|start| self.tails.contains(*start)).unwrap_or("")
    }

    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.strings.iter().map(String::as_str)
    }

    /// Length of the longest special string that `bytes` starts with.
    fn longest_at(&self, bytes: &[u8]) -> Option<usize> {
        let mut candidates = self.strings.as_slice();
        let mut longest = None;
        for (depth, byte) in bytes.iter().enumerate() {
            let next = |string: &String| string.as_bytes().get(depth).copied();
            let begin = candidates.partition_point(|string| next(string) < Some(*byte));
            let end = candidates.partition_point(|string| next(string) <= Some(*byte));
            candidates = &candidates[begin..end];
            // Of strings with the same start, the start itself is sorted first.
            match candidates.first() {
                None => break,
                Some(first) if first.len() == depth + 1 => longest = Some(depth + 1),
                Some(_) => {}
            }
        }
        longest
    }
}

/// Every way to cut a string into two parts that are not empty.
fn proper_splits(string: &str) -> impl Iterator<Item = (&str, &str)> {
    string.char_indices().skip(1).map(|(at, _)| string.split_at(at))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn specials() -> SpecialStrings {
        SpecialStrings::new(["<s>", "<s>>", "<|end|>", ""].map(String::from))
    }

    #[test]
    fn the_leftmost_longest_occurrence_is_found() {
        assert_eq!(specials().find_from("a<s>>b", 0), Some(1..5));
        assert_eq!(specials().find_from("a<s> <|end|>", 2), Some(5..12));
        assert_eq!(specials().find_from("é<", 0), None);
    }

    #[test]
    fn parts_at_the_edges_of_a_text_are_found() {
        assert_eq!(specials().unfinished_end("x <|en"), "<|en");
        assert_eq!(specials().unfinished_end("x"), "");
        assert_eq!(specials().unbegun_start("d|> x"), "d|>");
        assert_eq!(specials().unbegun_start("bonjour"), "");
    }
}
