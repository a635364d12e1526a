//! Names of a configuration as values of labels: reloads bring new ones for years, and series only come.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

/// Names of one kind that have series of their own, while the process lives.
pub(super) const MAX_NAMES: usize = 4096;
/// Stands for the names beyond.
pub(super) const OTHER: &str = "other";

/// The names of one kind that have series.
#[derive(Debug, Default)]
pub(super) struct Named(Mutex<BTreeSet<Vec<String>>>);

impl Named {
    /// `names` go together and count as one, since each combination makes series: themselves, or [`OTHER`] for each.
    pub(super) fn labels<'a, const N: usize>(&self, names: [&'a str; N]) -> [&'a str; N] {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let owned = names.map(str::to_owned).to_vec();
        let has_series = known.contains(&owned) || (known.len() < MAX_NAMES && known.insert(owned));
        if has_series { names } else { [OTHER; N] }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use passerelle_engine::clock::ManualClock;

    use super::*;
    use crate::gateway::LedgerFigures;
    use crate::gateway::tariff::Hours;
    use crate::metrics::{BuildInfo, Metrics};

    #[test]
    fn upstreams_and_aliases_that_come_and_go_for_years_do_not_make_series_without_end() {
        let info = BuildInfo { version: "1".into(), kernels: "cpu".into() };
        let metrics = Metrics::new(&info, [], Hours::new(Arc::new(ManualClock::default()), "cpu", 1.0)).unwrap();
        for reload in 0..MAX_NAMES + 10 {
            metrics.upstream_tried(&format!("m-{}", reload % 5), &format!("h:{reload}"), "answered");
            metrics.shadowed(&format!("chat-{reload}"), "compared");
        }
        metrics.upstream_tried("m-0", "h:0", "answered");
        let text = metrics.render(&LedgerFigures::default());
        for (series, beyond) in [
            ("passerelle_upstream_tries_total{", r#"{model="other",upstream="other",outcome="answered"} 10"#),
            ("passerelle_shadowed_requests_total{", r#"{alias="other",outcome="compared"} 10"#),
        ] {
            let shown: Vec<&str> = text.lines().filter(|line| line.starts_with(series)).collect();
            assert_eq!(shown.len(), MAX_NAMES + 1, "{series}");
            assert!(shown.iter().any(|line| line.ends_with(beyond)), "{beyond}");
        }
        assert!(text.contains(r#"{model="m-0",upstream="h:0",outcome="answered"} 2"#), "what is known goes on");
    }
}
