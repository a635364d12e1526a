//! Names that stand for several models, each of which gets its part of the sessions: a new checkpoint is tried on a few
//! users before all have it.
//!
//! Weighted rendezvous hashing (Schindelhauer and Schomaker 2005, the logarithmic method): a session draws one number for
//! each model, which its weight stretches, and the largest wins. So one session gets the same model each time, on every
//! server; a model's part is its weight's; and when a weight changes, only as many sessions move as the parts change.

use std::num::NonZeroU32;

use super::chance::mix;

#[derive(Debug, Clone, PartialEq)]
pub struct Alias {
    targets: Vec<Target>,
}

#[derive(Debug, Clone, PartialEq)]
struct Target {
    model: String,
    weight: f64,
    seed: u64,
}

impl Alias {
    /// Models by name, with their weights.
    pub fn new(targets: impl IntoIterator<Item = (String, NonZeroU32)>) -> Self {
        let target = |(model, weight): (String, NonZeroU32)| {
            let seed = model.bytes().fold(0, |seed, byte| mix(seed ^ u64::from(byte)));
            Target { model, weight: f64::from(weight.get()), seed }
        };
        Self { targets: targets.into_iter().map(target).collect() }
    }

    /// Names of models, in the order in which they were given.
    pub fn models(&self) -> impl Iterator<Item = &str> {
        self.targets.iter().map(|target| target.model.as_str())
    }

    /// The model of a session, among those that are allowed. `None` if none is.
    pub fn choose(&self, session: u64, allows: impl Fn(&str) -> bool) -> Option<&str> {
        let allowed = self.targets.iter().filter(|target| allows(&target.model));
        let best = allowed.max_by(|one, other| one.stretch(session).total_cmp(&other.stretch(session)))?;
        Some(&best.model)
    }
}

impl Target {
    fn stretch(&self, session: u64) -> f64 {
        /// Halves of 2^53, the numbers that a float tells apart below 1.
        const STEPS: f64 = 9_007_199_254_740_992.0;
        let drawn = ((mix(session ^ self.seed) >> 11) as f64 + 0.5) / STEPS;
        self.weight / -drawn.ln()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SESSIONS: u64 = 20_000;

    fn alias(targets: &[(&str, u32)]) -> Alias {
        Alias::new(targets.iter().map(|(name, weight)| ((*name).to_owned(), NonZeroU32::new(*weight).unwrap())))
    }

    fn part(alias: &Alias, model: &str) -> f64 {
        let hits = (0..SESSIONS).filter(|session| alias.choose(mix(*session), |_| true) == Some(model)).count();
        hits as f64 / SESSIONS as f64
    }

    #[test]
    fn each_model_gets_its_weights_part_of_the_sessions() {
        let alias = alias(&[("old", 90), ("new", 10)]);
        // Five standard deviations of a share of a tenth over so many draws are 0.011.
        assert!((part(&alias, "new") - 0.1).abs() < 0.011, "{}", part(&alias, "new"));
        assert!((part(&alias, "old") + part(&alias, "new") - 1.0).abs() < 1e-9);
    }

    #[test]
    fn a_session_stays_where_it_is_while_a_canary_grows() {
        let (small, large) = (alias(&[("old", 95), ("new", 5)]), alias(&[("old", 80), ("new", 20)]));
        for session in (0..SESSIONS).map(mix) {
            let before = small.choose(session, |_| true);
            assert_eq!(before, small.choose(session, |_| true));
            if before == Some("new") {
                assert_eq!(large.choose(session, |_| true), Some("new"), "growing takes nobody's new model away");
            }
        }
    }

    #[test]
    fn only_what_is_allowed_is_chosen() {
        let alias = alias(&[("a", 1), ("b", 1000)]);
        assert_eq!(alias.choose(7, |model| model == "a"), Some("a"));
        assert_eq!(alias.choose(7, |_| false), None);
        assert_eq!(alias.models().collect::<Vec<_>>(), ["a", "b"]);
    }
}
