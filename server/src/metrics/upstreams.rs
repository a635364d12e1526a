//! Which upstreams are asked at this moment.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use super::named::MAX_NAMES;
use super::{Metrics, register_gauge, table};

/// Those that were ever told of, by model and name: one that a reload took away is told to be gone.
#[derive(Debug, Default)]
pub(super) struct ToldUpstreams(Mutex<BTreeSet<(String, String)>>);

impl Metrics {
    /// All there are: model and name, as configured, and whether they would be asked now.
    pub fn upstreams_are<'a>(&self, upstreams: impl IntoIterator<Item = (&'a str, &'a str, bool)>) {
        let mut told = self.told_upstreams.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut up = BTreeSet::new();
        for (model, name, is_up) in upstreams {
            let upstream = (model.to_owned(), name.to_owned());
            if is_up {
                up.insert(upstream.clone());
            }
            if told.len() < MAX_NAMES {
                told.insert(upstream);
            }
        }
        for upstream in &*told {
            let is_up = f64::from(u8::from(up.contains(upstream)));
            register_gauge(&self.recorder, table::UPSTREAM_UP, &[&upstream.0, &upstream.1]).set(is_up);
        }
    }
}
