//! Greedy answers, and where they part.

use super::markup::{escaped, with_line_ends};
use crate::evaluation::comparison::PairComparison;
use crate::evaluation::divergence::AnswerPair;

pub(super) fn section(pair: &PairComparison) -> String {
    if pair.num_answers == 0 {
        return String::new();
    }
    let (all, equal) = (pair.num_answers, pair.num_equal_answers);
    let names = (escaped(&pair.first), escaped(&pair.second));
    let answers: String = pair.answers_that_part.iter().map(|answer| parting(answer, &names.0, &names.1)).collect();
    let shown = pair.answers_that_part.len();
    format!(
        "<section>\n<h2>Where greedy answers part</h2>\n<p class=\"note\">{equal} of {all} answers are the same, token for \
         token. Here are {shown} of the others: first those where one is right and the other is not.</p>\n<div \
         class=\"answers\">\n{answers}</div>\n</section>\n"
    )
}

fn parting(answer: &AnswerPair, first: &str, second: &str) -> String {
    let said = |class: &str, name: &str, rest: &str, is_right: bool| {
        let (mark, word) = if is_right { ("✓", "right") } else { ("✗", "wrong") };
        let rest = if rest.is_empty() { "<i class=\"end\">ends here</i>".to_owned() } else { with_line_ends(rest) };
        format!(
            "<dt class=\"{class}\">{name} <span class=\"{word}\" title=\"{word}\">{mark}</span></dt><dd><span \
             class=\"before\">{}</span><mark class=\"{class}\">{rest}</mark></dd>",
            with_line_ends(&answer.common)
        )
    };
    format!(
        "<article><h3>{} <small>parts at token {}</small></h3>\n<dl>{}{}<dt>reference</dt><dd>{}</dd></dl></article>\n",
        escaped(&answer.id),
        answer.position,
        said("a", first, &answer.first, answer.first_is_right),
        said("b", second, &answer.second, answer.second_is_right),
        with_line_ends(&answer.wanted)
    )
}
