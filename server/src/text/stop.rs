//! Stop strings in a stream of text.
//!
//! The match is the one that is complete first, and of those that are complete at the same character the longest. So the
//! result does not depend on how the text was cut into pushes. Each pattern is a Knuth-Morris-Pratt automaton: constant
//! time per byte and pattern, nothing is read twice.

/// What one push made certain.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct StopOutput {
    /// Text that cannot be part of a stop string any more.
    pub text: String,
    /// Index of the stop string that ended the text, if one did. Nothing follows it.
    pub stopped: Option<usize>,
}

/// Finds the first stop string in a text that arrives in pieces.
#[derive(Debug)]
pub struct StopMatcher {
    patterns: Vec<Pattern>,
    /// The end of the text so far that may begin a stop string: as long as the longest partial match.
    held: String,
    stopped: Option<usize>,
}

#[derive(Debug)]
struct Pattern {
    bytes: Vec<u8>,
    /// `fallback[n]`: length of the longest proper prefix that is also a suffix of the first `n + 1` bytes.
    fallback: Vec<usize>,
    matched: usize,
}

impl StopMatcher {
    /// How many and how long they may be is the caller's to bound. An empty one never matches.
    pub fn new(stops: &[String]) -> Self {
        let patterns = stops.iter().map(|stop| Pattern::new(stop)).collect();
        Self { patterns, held: String::new(), stopped: None }
    }

    /// Takes more text. After a stop, further text is ignored.
    pub fn push(&mut self, text: &str) -> StopOutput {
        if self.stopped.is_some() {
            return StopOutput { text: String::new(), stopped: self.stopped };
        }
        self.held.push_str(text);
        let begin = self.held.len() - text.len();
        for at in begin..self.held.len() {
            let byte = self.held.as_bytes()[at];
            self.patterns.iter_mut().for_each(|pattern| pattern.advance(byte));
            if let Some(index) = self.longest_match() {
                return self.stop(index, at + 1);
            }
        }
        let partial = self.patterns.iter().map(|pattern| pattern.matched).max().unwrap_or(0);
        let rest = self.held.split_off(self.held.len() - partial);
        StopOutput { text: std::mem::replace(&mut self.held, rest), stopped: None }
    }

    /// The text ends here: what was held back is only text.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    fn longest_match(&self) -> Option<usize> {
        let complete = self.patterns.iter().enumerate().filter(|(_, pattern)| pattern.is_complete());
        // Of equal stop strings, the first.
        complete.rev().max_by_key(|(_, pattern)| pattern.matched).map(|(index, _)| index)
    }

    fn stop(&mut self, index: usize, end: usize) -> StopOutput {
        self.held.truncate(end - self.patterns[index].bytes.len());
        self.stopped = Some(index);
        StopOutput { text: std::mem::take(&mut self.held), stopped: self.stopped }
    }
}

impl Pattern {
    fn new(stop: &str) -> Self {
        let bytes = stop.as_bytes().to_vec();
        let mut fallback = vec![0; bytes.len()];
        let mut length = 0;
        for at in 1..bytes.len() {
            while length > 0 && bytes[at] != bytes[length] {
                length = fallback[length - 1];
            }
            length += usize::from(bytes[at] == bytes[length]);
            fallback[at] = length;
        }
        Self { bytes, fallback, matched: 0 }
    }

    fn advance(&mut self, byte: u8) {
        if self.bytes.is_empty() {
            return;
        }
        while self.matched > 0 && self.bytes[self.matched] != byte {
            self.matched = self.fallback[self.matched - 1];
        }
        self.matched += usize::from(self.bytes[self.matched] == byte);
    }

    fn is_complete(&self) -> bool {
        self.matched > 0 && self.matched == self.bytes.len()
    }
}

#[cfg(test)]
mod tests;
