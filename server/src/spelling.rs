//! What was probably meant by a name that nobody knows.

/// The known name closest to `name`, if it is close enough to be a slip of the pen; else the only one that begins so.
pub(crate) fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    const LONGEST: usize = 40;
    if name.chars().count() > LONGEST {
        return None;
    }
    let known: Vec<&str> = known.collect();
    slip_of(name, &known).or_else(|| abbreviated(name, &known))
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
    let mut meant = known.iter().copied().filter(|candidate| candidate.starts_with(name));
    match (meant.next(), meant.next()) {
        (only, None) if name.len() >= SHORTEST => only,
        _ => None,
    }
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
    fn an_abbreviation_is_recognised_where_one_name_alone_begins_so() {
        let nearest = |name: &str| nearest(name, ["max_body", "max_tools", "memory", "tls_certificate"].into_iter());
        assert_eq!(nearest("mem"), Some("memory"));
        assert_eq!(nearest("tls_cert"), Some("tls_certificate"));
        assert_eq!((nearest("max"), nearest("tl"), nearest("")), (None, None, None));
    }
}
