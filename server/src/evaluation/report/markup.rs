//! Text inside markup.

/// Safe between tags and inside a quoted attribute.
pub(super) fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            // HTML knows no control characters but white space.
            c if c.is_control() && !matches!(c, '\n' | '\t') => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

/// White space that is there is seen: a line's end as a sign before it.
pub(super) fn with_line_ends(text: &str) -> String {
    escaped(text).replace('\n', "<i class=\"end\">⏎</i>\n")
}

/// With a minus sign instead of a hyphen.
pub(super) fn number(value: f64, decimals: usize) -> String {
    format!("{value:.decimals$}").replace('-', "−")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_in_a_text_is_markup() {
        assert_eq!(
            escaped("<a href=\"x\" b='c'>&\u{0}\n"),
            "&lt;a href=&quot;x&quot; b=&#39;c&#39;&gt;&amp;\u{fffd}\n"
        );
    }
}
