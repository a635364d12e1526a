//! Where inside the texts the two differ: each token coloured by the difference of its log-probabilities.

use super::markup::{escaped, number, with_line_ends};
use crate::evaluation::comparison::PairComparison;
use crate::evaluation::divergence::{CellScores, HeatCell, HeatMap, TokenPair};

/// Differences, in nats, at which the colour gets stronger.
const LEVELS: [f64; 5] = [0.1, 0.5, 1.0, 2.0, 4.0];

pub(super) fn section(pair: &PairComparison) -> String {
    if pair.heat_maps.is_empty() {
        return String::new();
    }
    let (first, second) = (escaped(&pair.first), escaped(&pair.second));
    let maps: String = pair.heat_maps.iter().map(|map| heat(map, &first, &second)).collect();
    format!(
        "<section>\n<h2>Token by token</h2>\n<p class=\"note\">The texts that differ most. A token is coloured by how much \
         likelier one checkpoint finds it than the other, in nats; its numbers show under the pointer.</p>\n{}\n{maps}{}\
         </section>\n",
        legend(&first, &second),
        table(pair, &first, &second)
    )
}

fn legend(first: &str, second: &str) -> String {
    let steps = |side: char, order: &[usize]| -> String {
        let step = |level: &usize| format!("<span class=\"t {side}{level}\">{}</span>", LEVELS[level - 1]);
        order.iter().map(step).collect()
    };
    let (down, up) = (steps('b', &[5, 4, 3, 2, 1]), steps('a', &[1, 2, 3, 4, 5]));
    format!(
        "<p class=\"legend\"><b class=\"b\">{second}</b> likelier by {down}<span class=\"t\">same</span>{up} \
         <b class=\"a\">{first}</b> likelier</p>"
    )
}

fn heat(map: &HeatMap, first: &str, second: &str) -> String {
    let cells: String = map.cells.iter().map(|cell| token(cell, first, second)).collect();
    let gain: f64 = map.cells.iter().filter_map(|cell| cell.scores).map(|scores| scores.gain()).sum();
    let (likelier, class) = if gain >= 0.0 { (first, 'a') } else { (second, 'b') };
    format!(
        "<article><h3>{} <small>likelier for <b class=\"{class}\">{likelier}</b> by {} nats in all</small></h3>\n<p \
         class=\"heat\">{cells}</p></article>\n",
        escaped(&map.item),
        number(gain.abs(), 1)
    )
}

fn token(cell: &HeatCell, first: &str, second: &str) -> String {
    let text = with_line_ends(&cell.token);
    let Some(scores) = &cell.scores else { return format!("<span class=\"t unscored\">{text}</span>") };
    let CellScores { first_rank, second_rank, .. } = scores;
    format!(
        "<span class=\"t {}\" title=\"{first}: {} (rank {first_rank})&#10;{second}: {} (rank {second_rank})\">{text}</span>",
        class(scores.gain()),
        number(scores.first, 3),
        number(scores.second, 3)
    )
}

fn class(gain: f64) -> String {
    let level = LEVELS.iter().take_while(|least| gain.abs() >= **least).count();
    match level {
        0 => String::new(),
        _ if gain > 0.0 => format!("a{level}"),
        _ => format!("b{level}"),
    }
}

fn table(pair: &PairComparison, first: &str, second: &str) -> String {
    let rows: String = pair.tokens_that_differ_most.iter().map(row).collect();
    format!(
        "<table class=\"figures\">\n<caption>Tokens that differ most, over all texts</caption>\n<thead><tr><th>Where</th>\
         <th>Token, after what stands before it</th><th class=\"n\">{first}</th><th class=\"n\">{second}</th></tr></thead>\n\
         <tbody>\n{rows}</tbody>\n</table>\n"
    )
}

fn row(token: &TokenPair) -> String {
    format!(
        "<tr><th scope=\"row\">{}:{}</th><td class=\"text\"><span class=\"before\">{}</span><span class=\"t {}\">{}</span></td>\
         <td class=\"n\">{}</td><td class=\"n\">{}</td></tr>\n",
        escaped(&token.item),
        token.position,
        with_line_ends(&token.before),
        class(token.gain()),
        with_line_ends(&token.token),
        number(token.first, 2),
        number(token.second, 2)
    )
}
