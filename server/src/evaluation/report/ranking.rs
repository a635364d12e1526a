//! Every checkpoint's place, with its interval drawn on one scale for each metric.

use std::fmt::Write;

use super::is_clear;
use super::markup::escaped;
use super::plot::Scale;
use crate::evaluation::bootstrap::Interval;
use crate::evaluation::comparison::{Comparison, Measured, Ranked};
use crate::evaluation::metric::{Better, Metric};

const WIDTH: f64 = 220.0;
const HEIGHT: f64 = 22.0;

pub(super) fn section(comparison: &Comparison) -> String {
    let by = comparison.ranked_by;
    let others: Vec<Metric> = comparison.metrics().filter(|metric| *metric != by).collect();
    let scales: Vec<(Metric, Scale)> =
        std::iter::once(by).chain(others.iter().copied()).map(|metric| (metric, scale(comparison, metric))).collect();
    let mut rows = String::new();
    for (place, ranked) in comparison.ranking.iter().enumerate() {
        rows.push_str(&row(place + 1, ranked, by, &scales));
    }
    let mut heads =
        format!("<th class=\"n\"></th><th>Checkpoint</th><th>{}</th><th>From above</th>", head(comparison, by));
    for metric in &others {
        let _ = write!(heads, "<th>{}</th>", head(comparison, *metric));
    }
    format!(
        "<section>\n<h2>Ranking</h2>\n<p class=\"note\">The dot is the value, the bar where it lies with 95 % confidence. \
         “From above” is the paired difference from the checkpoint in the row above.</p>\n<div class=\"wide\"><table \
         class=\"ranking\">\n<thead><tr>{heads}</tr></thead>\n<tbody>\n{rows}</tbody>\n</table></div>\n</section>\n"
    )
}

fn head(comparison: &Comparison, metric: Metric) -> String {
    let arrow = match metric.better() {
        Better::Lower => "↓",
        Better::Higher => "↑",
    };
    format!("{} {arrow}", escaped(&comparison.title(metric)))
}

fn scale(comparison: &Comparison, metric: Metric) -> Scale {
    let measured = comparison.ranking.iter().filter_map(|ranked| ranked.measured(metric));
    Scale::over(measured.flat_map(|of| of.interval.span()), (4.0, WIDTH - 4.0))
}

fn row(place: usize, ranked: &Ranked, by: Metric, scales: &[(Metric, Scale)]) -> String {
    let step = ranked.step.map_or_else(String::new, |step| format!("step {step} · "));
    let name = escaped(&ranked.name);
    let mut cells = String::new();
    for (metric, scale) in scales {
        let Some(measured) = ranked.measured(*metric) else { continue };
        let _ = write!(cells, "<td>{}</td>", value(measured, scale));
        if *metric == by {
            let _ = write!(cells, "<td class=\"above\">{}</td>", from_above(ranked, measured));
        }
    }
    format!(
        "<tr><td class=\"n\">{place}</td><th scope=\"row\">{name}<small>{step}<code>{}</code></small></th>{cells}</tr>\n",
        ranked.digest.short()
    )
}

fn value(measured: &Measured, scale: &Scale) -> String {
    let (metric, interval) = (measured.metric, measured.interval);
    format!(
        "<span class=\"value\">{}</span> <small>{}</small>{}",
        metric.shown(interval.value),
        interval.shown(|value| metric.shown(value)),
        whisker(interval, scale)
    )
}

fn whisker(interval: Interval, scale: &Scale) -> String {
    let ([low, high], value) = (interval.span().map(|end| scale.at(end)), scale.at(interval.value));
    let y = HEIGHT / 2.0;
    format!(
        "<svg class=\"whisker\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" aria-hidden=\"true\"><line class=\"track\" x1=\"0\" \
         x2=\"{WIDTH}\" y1=\"{y}\" y2=\"{y}\"/><line class=\"bar\" x1=\"{low:.1}\" x2=\"{high:.1}\" y1=\"{y}\" \
         y2=\"{y}\"/><circle class=\"dot\" cx=\"{value:.1}\" cy=\"{y}\" r=\"5\"/></svg>"
    )
}

fn from_above(ranked: &Ranked, measured: &Measured) -> String {
    let Some(above) = measured.from_above else { return String::new() };
    let metric = measured.metric;
    let (class, word) = if is_clear(ranked, metric) { ("sure", "clear") } else { ("unsure", "not told apart") };
    format!(
        "<span class=\"value\">{}</span> <small class=\"{class}\">{word}</small><br><small>{}</small>",
        metric.shown_difference(above.value),
        above.shown(|value| metric.shown_difference(value))
    )
}
