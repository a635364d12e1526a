//! Which step of its run a checkpoint is from, as far as its name says.

/// The last number in the name: `checkpoint-2000`, `step_000512`, `run7/iter.40000`. None in `final`.
pub fn of_name(name: &str) -> Option<u64> {
    let digits = |c: &char| c.is_ascii_digit();
    let from_end = name.chars().rev().skip_while(|c| !c.is_ascii_digit());
    let last: String = from_end.take_while(digits).collect();
    last.chars().rev().collect::<String>().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::of_name;

    #[test]
    fn the_step_is_the_last_number_of_a_name() {
        for (name, step) in [
            ("checkpoint-2000", Some(2000)),
            ("step_000512", Some(512)),
            ("run7-iter.40000-hf", Some(40000)),
            ("final", None),
            ("", None),
            ("x-99999999999999999999999", None),
        ] {
            assert_eq!(of_name(name), step, "{name}");
        }
    }
}
