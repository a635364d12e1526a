//! The comparison for a terminal.

use anyhow::Result;
use passerelle::evaluation::Comparison;
use passerelle::evaluation::comparison::{PairComparison, Ranked};
use passerelle::evaluation::metric::Metric;

use crate::cli::output::line;

/// Characters of a text that one line shows.
const SHOWN: usize = 60;

pub(super) fn print(comparison: &Comparison) -> Result<()> {
    let (items, ranked_by) = (comparison.items(), comparison.ranked_by.name());
    line(format_args!("{items}, ranked by {ranked_by}; 95 % intervals"))?;
    if comparison.ranking.len() > 1 {
        line("each value, then its difference from the one above; `not apart`: the difference may be 0")?;
    }
    if !comparison.is_of_equal_bits() {
        let of = comparison.ranking.iter().filter_map(|ranked| Some((&ranked.name, ranked.ran_on.as_ref()?)));
        let of: Vec<String> = of.map(|(name, ran_on)| format!("{name} on {ran_on}")).collect();
        line(format_args!("scored by kernels of different bits, which differences may be of too: {}", of.join(", ")))?;
    }
    let metrics: Vec<Metric> = comparison.metrics().collect();
    metrics.iter().try_for_each(|metric| ranking(comparison, *metric))?;
    pair(&comparison.pair)
}

fn ranking(comparison: &Comparison, metric: Metric) -> Result<()> {
    line(format_args!("\n{}", comparison.title(metric)))?;
    let width = comparison.ranking.iter().map(|ranked| ranked.name.chars().count()).max().unwrap_or(0);
    comparison.ranking.iter().enumerate().try_for_each(|(place, ranked)| row(place + 1, width, ranked, metric))
}

fn row(place: usize, width: usize, ranked: &Ranked, metric: Metric) -> Result<()> {
    let Some(measured) = ranked.measured(metric) else { return Ok(()) };
    let shown = |value| metric.shown(value);
    let interval = measured.interval;
    let above = measured.from_above.map_or_else(String::new, |above| {
        let shown = |value| metric.shown_difference(value);
        let doubt = if above.excludes_zero() { "" } else { "  not apart" };
        format!("   {} {}{doubt}", shown(above.value), above.shown(shown))
    });
    let digest = ranked.digest.short();
    line(format_args!(
        "{place:>3}  {:<width$}  {digest}  {:>8} {}{above}",
        ranked.name,
        shown(interval.value),
        interval.shown(shown)
    ))
}

fn pair(pair: &PairComparison) -> Result<()> {
    let PairComparison { first, second, .. } = pair;
    if !pair.texts_that_differ_most.is_empty() {
        line(format_args!("\nTexts that differ most, in bits per byte: {first}, {second}"))?;
    }
    for text in &pair.texts_that_differ_most {
        line(format_args!("  {:<16} {:.3}  {:.3}", short(&text.id), text.first, text.second))?;
    }
    if !pair.tokens_that_differ_most.is_empty() {
        line(format_args!("\nTokens that differ most, by log-probability: {first}, {second}"))?;
    }
    for token in &pair.tokens_that_differ_most {
        let place = format!("{}:{}", token.item, token.position);
        let shown = format!("{:?} after {:?}", token.token, end_of(&token.before));
        line(format_args!("  {:<16} {:>8.3} {:>8.3}  {shown}", short(&place), token.first, token.second))?;
    }
    if pair.num_answers > 0 {
        let (all, equal) = (pair.num_answers, pair.num_equal_answers);
        line(format_args!("\nGreedy answers: {equal} of {all} are equal; the others part first at"))?;
    }
    for answer in &pair.answers_that_part {
        line(format_args!("  {}: token {}, after {:?}", answer.id, answer.position, end_of(&answer.common)))?;
        let right = |is_right| if is_right { "right" } else { "     " };
        line(format_args!("    {} {first}: {:?}", right(answer.first_is_right), short(&answer.first)))?;
        line(format_args!("    {} {second}: {:?}", right(answer.second_is_right), short(&answer.second)))?;
    }
    Ok(())
}

fn short(text: &str) -> String {
    if text.chars().count() <= SHOWN { text.to_owned() } else { text.chars().take(SHOWN).chain(['…']).collect() }
}

fn end_of(text: &str) -> String {
    let skipped = text.chars().count().saturating_sub(SHOWN / 2);
    text.chars().skip(skipped).collect()
}
