//! The comparison as one page to look at: plots and tables, in light and dark, that load nothing and run nothing. It holds
//! texts of the data and of the answers, which are escaped wherever they stand.

mod answers;
mod curves;
mod markup;
mod plot;
mod ranking;
mod texts;
mod tokens;

use std::fmt::Write;

use super::comparison::{Comparison, Ranked};
use super::metric::{Better, Metric};
use markup::escaped;

const STYLE: &str = include_str!("report.css");

/// Of more checkpoints than this the curves say more at first sight than the table, and come first.
const MOST_AT_A_GLANCE: usize = 8;

/// A whole HTML document.
pub fn html(comparison: &Comparison) -> String {
    let mut overview = [ranking::section(comparison), curves::section(comparison)];
    if comparison.ranking.len() > MOST_AT_A_GLANCE {
        overview.reverse();
    }
    let sections = [
        overview.concat(),
        texts::section(&comparison.pair),
        tokens::section(&comparison.pair),
        answers::section(&comparison.pair),
    ];
    let names: Vec<String> = comparison.ranking.iter().map(|ranked| escaped(&ranked.name)).collect();
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n<title>{} checkpoints compared</title>\n\
         <style>\n{STYLE}</style>\n</head>\n<body>\n{}<main>\n{}</main>\n{}</body>\n</html>\n",
        names.len(),
        header(comparison),
        sections.concat(),
        footer(comparison),
    )
}

fn header(comparison: &Comparison) -> String {
    format!(
        "<header>\n<p class=\"kicker\">Passerelle · {} checkpoints, {} items</p>\n<h1>{}</h1>\n<p class=\"lead\">{}</p>\n{}</header>\n",
        comparison.ranking.len(),
        comparison.num_compared,
        headline(comparison),
        lead(comparison),
        caution(comparison)
    )
}

/// What differences may be of beside the weights.
fn caution(comparison: &Comparison) -> &'static str {
    if comparison.is_of_equal_bits() {
        return "";
    }
    "<p class=\"lead\"><b>Scored by kernels of different bits</b>, which differences may be of too: “Weights and data”, at the \
     end, says which.</p>\n"
}

/// What the ranking says, in one sentence.
fn headline(comparison: &Comparison) -> String {
    let [best, next, ..] = &comparison.ranking[..] else { return "Nothing to compare".to_owned() };
    let sure = is_clear(next, comparison.ranked_by);
    let best = escaped(&best.name);
    if sure {
        format!("<b>{best}</b> is ahead")
    } else {
        format!("<b>{best}</b> and <b>{}</b> are not told apart", escaped(&next.name))
    }
}

fn lead(comparison: &Comparison) -> String {
    let metric = comparison.ranked_by;
    let [best, next, ..] = &comparison.ranking[..] else { return String::new() };
    let (Some(value), Some(above)) = (best.measured(metric), next.measured(metric).and_then(|next| next.from_above))
    else {
        return String::new();
    };
    let direction = match metric.better() {
        Better::Lower => "lower is better",
        Better::Higher => "higher is better",
    };
    format!(
        "{} at {} ({direction}). The next, {}, is at a distance of {} {}.",
        escaped(&comparison.title(metric)),
        metric.shown(value.interval.value),
        escaped(&next.name),
        metric.shown_difference(above.value),
        above.shown(|value| metric.shown_difference(value))
    )
}

/// Whether a checkpoint's distance from the one above it has a sure sign.
fn is_clear(ranked: &Ranked, metric: Metric) -> bool {
    ranked.measured(metric).and_then(|measured| measured.from_above).is_some_and(|above| above.excludes_zero())
}

fn footer(comparison: &Comparison) -> String {
    let mut digests = String::new();
    for ranked in &comparison.ranking {
        let (name, digest) = (escaped(&ranked.name), ranked.digest);
        let ran_on = ranked.ran_on.as_ref().map_or_else(String::new, |ran_on| escaped(&ran_on.to_string()));
        let _ = writeln!(digests, "<tr><td>{name}</td><td><code>{digest}</code></td><td>{ran_on}</td></tr>");
    }
    format!(
        "<footer>\n<p><b>This page holds texts of the data set and of the checkpoints' answers.</b> Pass it on as you would \
         pass on those.</p>\n<p>{} were scored by every checkpoint and are compared here. \
         Intervals are of 95 %, from {} paired resamples of the items (seed {}): every checkpoint gets the same draws. Two \
         intervals may overlap and the difference still be sure, because what makes an item hard for one makes it hard for \
         the other; the column “from above” says so.</p>\n<details><summary>Weights and data</summary>\n<table \
         class=\"digests\">\n{digests}<tr><td>data</td><td><code>{}</code></td></tr>\n</table>\n</details>\n</footer>\n",
        comparison.items(),
        comparison.resampling.resamples,
        comparison.resampling.seed,
        escaped(&comparison.data)
    )
}

#[cfg(test)]
mod tests;
