//! Puts counters ([`super::budget`]) into a template's source: behind the operands of `~`, `+` and `*`, behind filters and
//! slices, and before long raw text. Each is a filter or function that changes nothing, so a template reads and prints as
//! before; line numbers stay.

use super::budget::{COUNTED, FACTOR, RAW};

/// Shorter texts cannot add up to much in the steps that a rendering has.
const SHORT_BYTES: usize = 64;
/// Of one tag. The compiler goes as deep into an expression as it is long.
const MAX_TAG_TOKENS: usize = 4096;
/// Words that an expression may follow: what comes behind them is no operand of what stands before.
const KEYWORDS: [&str; 12] = ["and", "do", "elif", "else", "for", "if", "in", "is", "not", "or", "recursive", "set"];

/// A tag has more than [`MAX_TAG_TOKENS`] words and signs.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct TagTooLong;

/// The source with its counters. What is no template is left as it is, for the compiler to say what is wrong.
pub(super) fn instrument(source: &str) -> Result<String, TagTooLong> {
    let mut result = String::with_capacity(source.len() * 2);
    let mut rest = source;
    // How raw text is announced where `rest` begins; nothing needs to be at the start, which is printed once.
    let mut announce: Option<[&str; 2]> = None;
    loop {
        let at = next_tag(rest).unwrap_or(rest.len());
        if let Some([open, close]) = announce
            && at > SHORT_BYTES
        {
            result.push_str(&format!("{open} {RAW}({at}) {close}"));
        }
        result.push_str(&rest[..at]);
        rest = &rest[at..];
        if rest.is_empty() {
            return Ok(result);
        }
        let Some(length) = tag_length(rest) else { break };
        let (tag, after) = rest.split_at(length);
        announce = push_tag(tag, &mut result)?.or(announce.filter(|_| tag.starts_with("{#")));
        rest = after;
    }
    // Not even a tag: the compiler stops at its beginning.
    if Lexer::new(rest).nth(MAX_TAG_TOKENS).is_some() { Err(TagTooLong) } else { Ok(result + rest) }
}

fn next_tag(text: &str) -> Option<usize> {
    let opens = |at: &usize| ["{{", "{%", "{#"].iter().any(|open| text[*at..].starts_with(open));
    text.match_indices('{').map(|(at, _)| at).find(opens)
}

/// From its opening to its closing marker; for `raw`, to the end of the raw text.
fn tag_length(text: &str) -> Option<usize> {
    if text.starts_with("{#") {
        return text.find("#}").map(|at| at + 2);
    }
    let length = Lexer::new(text).last()?.end;
    if is_raw_block(text) {
        let end = length + text[length..].find("endraw")?;
        return text[end..].find("%}").map(|at| end + at + 2);
    }
    text[..length].ends_with(['}']).then_some(length)
}

fn is_raw_block(tag: &str) -> bool {
    tag.strip_prefix("{%").is_some_and(|inside| inside.trim_start_matches(['-', '+', ' ', '\n']).starts_with("raw"))
}

/// Writes a tag with its counters. Returns how raw text behind it can be announced without changing its white space.
fn push_tag(tag: &str, result: &mut String) -> Result<Option<[&'static str; 2]>, TagTooLong> {
    if tag.starts_with("{#") {
        result.push_str(tag);
        return Ok(None);
    }
    let is_raw = is_raw_block(tag);
    if is_raw && tag.len() > SHORT_BYTES {
        let open = ["{%-", "{%+", "{%"].into_iter().find(|open| tag.starts_with(open)).unwrap_or("{%");
        result.push_str(&format!("{open} do {RAW}({}) %}}", tag.len()));
    }
    let tokens: Vec<Token<'_>> = if is_raw { Vec::new() } else { Lexer::new(tag).collect() };
    if tokens.len() > MAX_TAG_TOKENS {
        return Err(TagTooLong);
    }
    let mut counters = counters(&tokens);
    counters.sort_unstable();
    counters.dedup();
    let mut written = 0;
    for (at, filter) in counters {
        result.push_str(&tag[written..at]);
        result.push_str(&format!("|{filter} "));
        written = at;
    }
    result.push_str(&tag[written..]);
    let closes = [("-%}", ["{% do", "-%}"]), ("+%}", ["{% do", "+%}"]), ("%}", ["{% do", "%}"])];
    let prints = [("-}}", ["{{", "-}}"]), ("}}", ["{{", "}}"])];
    Ok(closes.into_iter().chain(prints).find(|(end, _)| tag.ends_with(end)).map(|(_, announce)| announce))
}

/// Places in a tag and the filter that goes there.
fn counters(tokens: &[Token<'_>]) -> Vec<(usize, &'static str)> {
    let brackets = Brackets::of(tokens);
    let goes_on = |end: usize| tokens.get(end + 1).is_some_and(|next| matches!(next.text, "[" | "." | "("));
    let mut counters = Vec::new();
    for (index, token) in tokens.iter().enumerate() {
        let before = index.checked_sub(1).map(|before| &tokens[before]);
        match token.text {
            "~" | "+" | "*" if before.is_some_and(Token::ends_operand) => {
                let filter = if token.text == "*" { FACTOR } else { COUNTED };
                let operands = [before, brackets.operand_end(tokens, index + 1).and_then(|end| tokens.get(end))];
                let long = |operand: &&Token<'_>| filter == FACTOR || !operand.is_short_literal();
                counters.extend(operands.into_iter().flatten().filter(long).map(|operand| (operand.end, filter)));
            }
            "|" => {
                let end = brackets.filter_end(tokens, index);
                counters.extend(tokens.get(end).filter(|_| !goes_on(end)).map(|last| (last.end, COUNTED)));
            }
            "]" if brackets.is_slice(tokens, index) && !goes_on(index) => counters.push((token.end, COUNTED)),
            _ => {}
        }
    }
    counters
}

/// Which brackets of a tag belong together.
struct Brackets {
    /// For each bracket the index of its partner.
    partners: Vec<Option<usize>>,
    /// For each opening bracket, whether a colon stands in it and in no bracket inside.
    has_colon: Vec<bool>,
}

impl Brackets {
    fn of(tokens: &[Token<'_>]) -> Self {
        let (mut partners, mut has_colon) = (vec![None; tokens.len()], vec![false; tokens.len()]);
        let mut open: Vec<usize> = Vec::new();
        for (index, token) in tokens.iter().enumerate() {
            match (token.text, open.last()) {
                ("(" | "[" | "{", _) => open.push(index),
                (")" | "]" | "}", Some(&begin)) => {
                    partners[begin] = Some(index);
                    partners[index] = Some(begin);
                    open.pop();
                }
                (":", Some(&begin)) => has_colon[begin] = true,
                _ => {}
            }
        }
        Self { partners, has_colon }
    }

    /// Whether the bracket that closes at `index` cuts a part out of what stands before it.
    fn is_slice(&self, tokens: &[Token<'_>], index: usize) -> bool {
        let Some(open) = self.partners[index].filter(|open| *open > 0) else { return false };
        tokens[open].text == "[" && self.has_colon[open] && tokens[open - 1].ends_operand()
    }

    /// The last token of the operand that begins at `start`: a primary and what is done to it.
    fn operand_end(&self, tokens: &[Token<'_>], start: usize) -> Option<usize> {
        let first = (start..tokens.len()).find(|index| !matches!(tokens[*index].text, "-" | "+" | "not"))?;
        let mut end = self.closing(tokens, first)?;
        while let Some(next) = tokens.get(end + 1) {
            end = match next.text {
                "." => end + 2,
                "[" | "(" => self.closing(tokens, end + 1)?,
                "|" => self.filter_end(tokens, end + 1),
                _ => break,
            };
        }
        Some(end)
    }

    /// The last token of the filter whose `|` stands at `pipe`.
    fn filter_end(&self, tokens: &[Token<'_>], pipe: usize) -> usize {
        let mut end = pipe + 1;
        while tokens.get(end + 1).is_some_and(|next| next.text == ".") {
            end += 2;
        }
        match tokens.get(end + 1) {
            Some(next) if next.text == "(" => self.closing(tokens, end + 1).unwrap_or(end),
            _ => end,
        }
    }

    /// The bracket that closes the one at `index`; `index` itself for other tokens.
    fn closing(&self, tokens: &[Token<'_>], index: usize) -> Option<usize> {
        if matches!(tokens[index].text, "(" | "[" | "{") { self.partners[index] } else { Some(index) }
    }
}

/// A token of an expression: a word, a number, a string with its quotes, or an operator.
#[derive(Debug, Clone, Copy)]
struct Token<'t> {
    text: &'t str,
    /// In the tag.
    end: usize,
}

impl Token<'_> {
    fn ends_operand(&self) -> bool {
        let is_value =
            self.text.starts_with(|c: char| c.is_alphanumeric() || matches!(c, '_' | '"' | '\'' | ')' | ']' | '}'));
        is_value && !KEYWORDS.contains(&self.text)
    }

    fn is_short_literal(&self) -> bool {
        self.text.starts_with(['"', '\'']) && self.text.len() <= SHORT_BYTES
    }
}

/// The tokens of the tag that a text begins with; its closing marker is the last.
struct Lexer<'t> {
    text: &'t str,
    at: usize,
    depth: usize,
    ended: bool,
}

impl<'t> Lexer<'t> {
    fn new(text: &'t str) -> Self {
        Self { text, at: 2, depth: 0, ended: false }
    }

    fn length(&mut self, rest: &str) -> usize {
        let first = rest.chars().next().unwrap_or(' ');
        let word = |c: char| c.is_alphanumeric() || c == '_';
        match first {
            '"' | '\'' => string_length(rest, first),
            c if word(c) => rest.find(|c: char| !word(c)).unwrap_or(rest.len()),
            '(' | '[' | '{' => {
                self.depth += 1;
                1
            }
            ')' | ']' | '}' if self.depth > 0 => {
                self.depth -= 1;
                1
            }
            _ => {
                let twos = ["**", "//", "==", "!=", "<=", ">="];
                if twos.iter().any(|two| rest.starts_with(two)) { 2 } else { first.len_utf8() }
            }
        }
    }
}

impl<'t> Iterator for Lexer<'t> {
    type Item = Token<'t>;

    fn next(&mut self) -> Option<Token<'t>> {
        let rest = &self.text[self.at..];
        let skipped = rest.len() - rest.trim_start().len();
        let rest = &rest[skipped..];
        if self.ended || rest.is_empty() {
            return None;
        }
        let markers = ["-%}", "+%}", "%}", "-}}", "}}"];
        let marker = markers.iter().find(|marker| self.depth == 0 && rest.starts_with(**marker));
        self.ended = marker.is_some();
        let length = marker.map_or_else(|| self.length(rest), |marker| marker.len());
        self.at += skipped + length;
        Some(Token { text: &rest[..length], end: self.at })
    }
}

/// Of a quoted string, its quotes included.
fn string_length(text: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            c if c == quote => return at + c.len_utf8(),
            _ => {}
        }
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_stand_behind_what_can_grow_and_nowhere_else() {
        let cases = [
            ("{{ a ~ b.c[0](d) }}", "{{ a|C  ~ b.c[0](d)|C  }}"),
            ("{{ 'x' + a | trim }}", "{{ 'x' + a | trim|C  }}"),
            ("{{ (a ~ b)[1:] }}", "{{ (a|C  ~ b|C )[1:]|C  }}"),
            ("{{ a[:2].b }}{{ a[0] }}", "{{ a[:2].b }}{{ a[0] }}"),
            ("{{ '  ' * n }}", "{{ '  '|F  * n|F  }}"),
            ("{{- f(*a, **b) if not -c -}}", "{{- f(*a, **b) if not -c -}}"),
            ("{% for x in [+1, -2] %}{%+ if x is odd +%}", "{% for x in [+1, -2] %}{%+ if x is odd +%}"),
            ("{# a ~ b #}{{ '~' }}{{ \"a\\\" ~ b\" }}", "{# a ~ b #}{{ '~' }}{{ \"a\\\" ~ b\" }}"),
            ("{{ {'a': {'b': c ~ d}} }}}", "{{ {'a': {'b': c|C  ~ d|C }} }}}"),
            ("{% raw %}{{ a ~ b }}{% endraw %}{{ a ~ b", "{% raw %}{{ a ~ b }}{% endraw %}{{ a ~ b"),
            ("{{ 'endraw' ~ a }}", "{{ 'endraw' ~ a|C  }}"),
        ];
        for (source, expected) in cases {
            let expected = expected.replace("|C", &format!("|{COUNTED}")).replace("|F", &format!("|{FACTOR}"));
            assert_eq!(instrument(source), Ok(expected), "{source}");
        }
    }

    #[test]
    fn a_tag_without_end_is_refused() {
        for chain in [" ~ a", "|upper", "[", " + ("] {
            assert_eq!(instrument(&format!("{{{{ a{}", chain.repeat(MAX_TAG_TOKENS))), Err(TagTooLong), "{chain}");
            assert_eq!(instrument(&format!("{{{{ a{} }}}}", chain.repeat(MAX_TAG_TOKENS))), Err(TagTooLong), "{chain}");
        }
    }

    #[test]
    fn long_raw_text_is_announced_with_the_white_space_of_its_tag() {
        let raw = "x".repeat(SHORT_BYTES + 1);
        let announced = |open: &str, close: &str| format!("{open} {RAW}({}) {close}", raw.len());
        for (tag, announcement) in [
            ("{% if a -%}", announced("{% do", "-%}")),
            ("{% if a %}", announced("{% do", "%}")),
            ("{{ a }}", announced("{{", "}}")),
            ("{{ a -}}", announced("{{", "-}}")),
        ] {
            assert_eq!(instrument(&format!("{raw}{tag}{raw}")), Ok(format!("{raw}{tag}{announcement}{raw}")));
        }
    }
}
