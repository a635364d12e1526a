//! Two checkpoints, text by text.

use std::fmt::Write;

use super::markup::{escaped, number};
use super::plot::{Frame, Scale};
use crate::evaluation::comparison::PairComparison;
use crate::evaluation::divergence::TextPair;

const FRAME: Frame = Frame { left: 62.0, top: 14.0, right: 502.0, bottom: 434.0 };
/// Beyond so many texts a page of points gets slow to draw; the first are drawn.
const MOST_POINTS: usize = 5000;

pub(super) fn section(pair: &PairComparison) -> String {
    if pair.texts.is_empty() {
        return String::new();
    }
    let (first, second) = (escaped(&pair.first), escaped(&pair.second));
    let better = pair.texts.iter().filter(|text| text.gain() > 0.0).count();
    let all = pair.texts.len();
    format!(
        "<section>\n<h2>Text by text</h2>\n<p class=\"note\">Each point is a document, or a reference after its prompt, in \
         bits per byte. Below the diagonal <b class=\"a\">{first}</b> is better, above it <b class=\"b\">{second}</b>. {first} \
         is better on {better} of {all}.</p>\n<div class=\"beside\">\n{}{}</div>\n</section>\n",
        scatter(pair, &first, &second),
        table(pair, &first, &second)
    )
}

/// Across: the second. Up: the first, so that what is low is good for the first.
fn scatter(pair: &PairComparison, first: &str, second: &str) -> String {
    let drawn = &pair.texts[..pair.texts.len().min(MOST_POINTS)];
    let values = drawn.iter().flat_map(|text| [text.first, text.second]);
    let up = Scale::over(values, FRAME.upwards()).not_below(0.0);
    let across = up.with_places(FRAME.across());
    let (low, high) = up.ends();
    let marks: Vec<_> = across.marks(5).into_iter().map(|mark| (across.at(mark), number(mark, 1))).collect();
    let mut points = String::new();
    for text in drawn {
        let class = if text.gain() >= 0.0 { "a" } else { "b" };
        let _ = write!(
            points,
            "<circle class=\"point {class}\" cx=\"{:.1}\" cy=\"{:.1}\" r=\"4\"><title>{}: {} and {}</title></circle>",
            across.at(text.second),
            up.at(text.first),
            escaped(&text.id),
            number(text.first, 3),
            number(text.second, 3)
        );
    }
    format!(
        "<figure class=\"scatter\"><svg viewBox=\"0 0 516 484\" role=\"img\">{}{}<line class=\"diagonal\" x1=\"{:.1}\" \
         y1=\"{:.1}\" x2=\"{:.1}\" y2=\"{:.1}\"/>{points}<text class=\"axis\" x=\"{:.1}\" y=\"474\" \
         text-anchor=\"middle\">{second}</text><text class=\"axis\" transform=\"translate(16 {:.1}) rotate(-90)\" \
         text-anchor=\"middle\">{first}</text></svg></figure>\n",
        FRAME.step_axis(&marks),
        FRAME.value_axis(&up, |value| number(value, 1)),
        across.at(low),
        up.at(low),
        across.at(high),
        up.at(high),
        (FRAME.left + FRAME.right) / 2.0,
        (FRAME.top + FRAME.bottom) / 2.0
    )
}

fn table(pair: &PairComparison, first: &str, second: &str) -> String {
    let rows: String = pair.texts_that_differ_most.iter().map(row).collect();
    format!(
        "<table class=\"figures\">\n<caption>Texts that differ most</caption>\n<thead><tr><th>Item</th><th \
         class=\"n\">{first}</th><th class=\"n\">{second}</th><th class=\"n\">Difference</th></tr></thead>\n<tbody>\n{rows}\
         </tbody>\n</table>\n"
    )
}

fn row(text: &TextPair) -> String {
    let class = if text.gain() >= 0.0 { "a" } else { "b" };
    format!(
        "<tr><th scope=\"row\">{}</th><td class=\"n\">{}</td><td class=\"n\">{}</td><td class=\"n {class}\">{}</td></tr>\n",
        escaped(&text.id),
        number(text.first, 3),
        number(text.second, 3),
        number(text.first - text.second, 3)
    )
}
