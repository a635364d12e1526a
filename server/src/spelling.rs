//! What was probably meant by a name that nobody knows.

use std::collections::BTreeSet;

/// The only known name of the same words, some left out or added; else the one closest to `name`, if it is close enough to
/// be a slip of the pen; else the only one that begins so.
pub(crate) fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    const LONGEST: usize = 40;
    if name.chars().count() > LONGEST {
        return None;
    }
    let known: Vec<&str> = known.collect();
    of_the_same_words(name, &known).or_else(|| slip_of(name, &known)).or_else(|| abbreviated(name, &known))
}

/// `max_body` of `max_body_size`, `kv_cache_memory` of `kv_memory`. One word alone says too little.
fn of_the_same_words<'a>(name: &str, known: &[&'a str]) -> Option<&'a str> {
    const FEWEST: usize = 2;
    let written = words(name);
    only(known.iter().copied().filter(|candidate| {
        let known = words(candidate);
        let is_part = known.is_subset(&written) || written.is_subset(&known);
        is_part && known.len().min(written.len()) >= FEWEST
    }))
}

fn words(name: &str) -> BTreeSet<&str> {
    name.split('_').filter(|word| !word.is_empty()).collect()
}

fn slip_of<'a>(name: &str, known: &[&'a str]) -> Option<&'a str> {
    let allowed = (name.chars().count() / 3).clamp(1, 4);
    known
        .iter()
        .copied()
        .map(|candidate| (edit_distance(name, candidate), candidate))
        .filter(|(distance, _)| *distance <= allowed)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

fn abbreviated<'a>(name: &str, known: &[&'a str]) -> Option<&'a str> {
    const SHORTEST: usize = 3;
    only(known.iter().copied().filter(|candidate| candidate.starts_with(name))).filter(|_| name.len() >= SHORTEST)
}

fn only<'a>(mut meant: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    meant.next().filter(|_| meant.next().is_none())
}

/// Levenshtein distance, one row at a time.
fn edit_distance(left: &str, right: &str) -> usize {
    let right: Vec<char> = right.chars().collect();
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (i, a) in left.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, b) in right.iter().enumerate() {
            let substituted = diagonal + usize::from(a != *b);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[right.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_of_the_pen_is_recognised_and_another_word_is_not() {
        let nearest = |name: &str| nearest(name, ["listen", "data_dir", "drain_timeout"].into_iter());
        assert_eq!(nearest("listne"), Some("listen"));
        assert_eq!(nearest("drain_timout"), Some("drain_timeout"));
        assert_eq!(nearest("lost"), None);
        assert_eq!(nearest(&"listen".repeat(20)), None, "a long text costs nothing");
    }

    #[test]
    fn a_name_with_a_word_too_many_or_too_few_is_recognised_where_it_is_one_names_alone() {
        let known = ["kv_cache_memory", "kv_dtype", "max_file", "max_files", "max_queued_tokens", "max_batched_tokens"];
        let nearest = |name: &str| nearest(name, known.into_iter());
        assert_eq!(nearest("kv_memory"), Some("kv_cache_memory"));
        assert_eq!(nearest("max_file_size"), Some("max_file"), "and not the one that is fewer letters away");
        assert_eq!(nearest("max_size_of_files"), Some("max_files"), "in any order");
        assert_eq!((nearest("max_tokens"), nearest("kv_size"), nearest("max")), (None, None, None));
    }

    #[test]
    fn an_abbreviation_is_recognised_where_one_name_alone_begins_so() {
        let nearest = |name: &str| nearest(name, ["max_body", "max_tools", "memory", "tls_certificate"].into_iter());
        assert_eq!(nearest("mem"), Some("memory"));
        assert_eq!(nearest("tls_cert"), Some("tls_certificate"));
        assert_eq!((nearest("max"), nearest("tl"), nearest("")), (None, None, None));
    }
}
