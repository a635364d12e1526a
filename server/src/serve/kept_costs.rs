//! What work cost when a model ran here before, kept in the data directory, so that a start runs no steps to find out while
//! somebody waits for it. The engine measures again once nobody asks, so what no longer holds does so until then.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use passerelle_engine::{CostModel, StepObserver, StepReport};
use passerelle_models::{ModelDigest, NUMERICS};
use serde::{Deserialize, Serialize};

use super::kept_file;

/// In the data directory.
const FILE: &str = "costs.json";
/// When there are more, all are forgotten and measured anew.
const MAX_KEPT: usize = 4096;

/// Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct KeptCosts {
    folder: PathBuf,
    kept: Arc<Mutex<BTreeMap<String, Entry>>>,
}

/// What the prices depend on.
#[derive(Debug, Clone)]
pub(crate) struct RanOn<'a> {
    pub(crate) model: ModelDigest,
    /// Of the weights as they are held.
    pub(crate) dtype: &'a str,
    /// A block of keys and values.
    pub(crate) block_bytes: usize,
    /// The device, and what computes there.
    pub(crate) kernels: &'a str,
    pub(crate) threads: usize,
}

/// In nanoseconds, as in [`CostModel`].
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct Entry {
    prompt_token_ns: f64,
    generated_token_ns: f64,
    context_token_ns: f64,
    /// 0 of versions that did not measure it.
    #[serde(default)]
    prompt_context_token_ns: f64,
    /// 0 of versions that did not measure it.
    #[serde(default)]
    lone_token_ns: f64,
}

impl KeptCosts {
    /// Those of earlier processes. What cannot be read is none.
    pub(crate) fn open(data_dir: &Path) -> Self {
        let kept = kept_file::read(data_dir, FILE).unwrap_or_else(|error| {
            tracing::warn!(%error, "{FILE} in the data directory cannot be read: what work costs is measured anew");
            BTreeMap::new()
        });
        Self { folder: data_dir.to_owned(), kept: Arc::new(Mutex::new(kept)) }
    }

    /// `None`: it has not run here, or what is kept cannot be.
    pub(super) fn find(&self, on: &RanOn<'_>) -> Option<CostModel> {
        self.lock().get(&on.key()).and_then(Entry::model)
    }

    /// Hears what `observer` hears, and keeps what work costs.
    pub(super) fn kept_by(&self, observer: Arc<dyn StepObserver>, on: &RanOn<'_>) -> Arc<dyn StepObserver> {
        Arc::new(Keeper { observer, costs: self.clone(), key: on.key() })
    }

    /// Where there is no data directory nothing is kept, and none is made for this.
    fn keep(&self, key: &str, costs: &CostModel) {
        let mut kept = self.lock();
        // Another process may have kept more since.
        for (of_another, entry) in kept_file::read::<BTreeMap<String, Entry>>(&self.folder, FILE).unwrap_or_default() {
            kept.entry(of_another).or_insert(entry);
        }
        if kept.len() >= MAX_KEPT {
            kept.clear();
        }
        kept.insert(key.to_owned(), Entry::of(costs));
        if !self.folder.is_dir() {
            return;
        }
        if let Err(error) = kept_file::write(&self.folder, FILE, &*kept) {
            tracing::warn!(%error, "what work costs cannot be kept in the data directory");
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Entry>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl RanOn<'_> {
    fn key(&self) -> String {
        let Self { model, dtype, block_bytes, kernels, threads } = self;
        let build = if cfg!(debug_assertions) { "debug" } else { env!("CARGO_PKG_VERSION") };
        format!("{model} {dtype} {block_bytes} {kernels} {NUMERICS} {threads} {build}")
    }
}

impl Entry {
    fn of(costs: &CostModel) -> Self {
        let &CostModel {
            prompt_token_ns,
            generated_token_ns,
            context_token_ns,
            prompt_context_token_ns,
            lone_token_ns,
        } = costs;
        Self { prompt_token_ns, generated_token_ns, context_token_ns, prompt_context_token_ns, lone_token_ns }
    }

    /// No work is free, no token takes an hour, and none that is only looked at a second.
    fn model(&self) -> Option<CostModel> {
        const HOUR_NS: f64 = 3.6e12;
        const SECOND_NS: f64 = 1e9;
        let &Self { prompt_token_ns, generated_token_ns, context_token_ns, prompt_context_token_ns, lone_token_ns } =
            self;
        let all = [prompt_token_ns, generated_token_ns, context_token_ns, prompt_context_token_ns, lone_token_ns];
        let can_be = all.iter().all(|ns| *ns > 0.0 && *ns < HOUR_NS)
            && [context_token_ns, prompt_context_token_ns].iter().all(|ns| *ns < SECOND_NS);
        can_be.then_some(CostModel {
            prompt_token_ns,
            generated_token_ns,
            context_token_ns,
            prompt_context_token_ns,
            lone_token_ns,
        })
    }
}

struct Keeper {
    observer: Arc<dyn StepObserver>,
    costs: KeptCosts,
    key: String,
}

impl StepObserver for Keeper {
    fn step(&self, report: &StepReport) {
        self.observer.step(report);
    }

    fn concluded(&self) {
        self.observer.concluded();
    }

    fn costs_measured(&self, costs: &CostModel) {
        self.observer.costs_measured(costs);
        self.costs.keep(&self.key, costs);
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use passerelle_engine::NullObserver;

    use super::*;

    const COSTS: CostModel = CostModel {
        prompt_token_ns: 3e6,
        generated_token_ns: 4e7,
        context_token_ns: 812.5,
        prompt_context_token_ns: 90.0,
        lone_token_ns: 2e8,
    };

    fn on(digest: char) -> RanOn<'static> {
        let model = format!("sha256:{}", String::from(digest).repeat(64)).parse().expect("it is a digest");
        RanOn { model, dtype: "bf16", block_bytes: 4096, kernels: "cpu avx2", threads: 2 }
    }

    fn learn(folder: &Path, on: &RanOn<'_>) {
        KeptCosts::open(folder).kept_by(Arc::new(NullObserver), on).costs_measured(&COSTS);
    }

    #[test]
    fn what_work_cost_in_one_process_the_next_one_knows_where_everything_is_as_it_was() {
        let data = tempfile::tempdir().expect("a temporary folder");
        let [first, second] = [(); 2].map(|()| KeptCosts::open(data.path()));
        for (process, on) in [(first, on('a')), (second, on('b'))] {
            process.kept_by(Arc::new(NullObserver), &on).costs_measured(&COSTS);
        }
        let next = KeptCosts::open(data.path());
        assert_eq!([next.find(&on('a')), next.find(&on('b'))], [Some(COSTS); 2]);
        for other in [
            on('c'),
            RanOn { dtype: "q8_0", ..on('a') },
            RanOn { block_bytes: 2048, ..on('a') },
            RanOn { kernels: "cpu avx512", ..on('a') },
            RanOn { threads: 1, ..on('a') },
        ] {
            assert_eq!(next.find(&other), None, "{other:?}");
        }
    }

    #[test]
    fn a_file_of_costs_that_cannot_be_true_costs_time_and_nothing_else() {
        let data = tempfile::tempdir().expect("a temporary folder");
        for damage in ["[]", "{\"a\": 7", "0.0", "-1", "1e300"] {
            learn(data.path(), &on('a'));
            let path = data.path().join(FILE);
            let whole = fs::read_to_string(&path).expect("it was kept");
            let is_price = damage.parse::<f64>().is_ok();
            let damaged = if is_price { whole.replace("812.5", damage) } else { damage.to_owned() };
            assert_ne!(damaged, whole);
            fs::write(&path, damaged).expect("the folder is writable");
            assert_eq!(KeptCosts::open(data.path()).find(&on('a')), None, "{damage}");
        }
    }

    #[test]
    fn costs_of_a_version_that_did_not_measure_all_of_them_are_measured_anew() {
        let data = tempfile::tempdir().expect("a temporary folder");
        for later in ["lone_token_ns", "prompt_context_token_ns"] {
            learn(data.path(), &on('a'));
            let path = data.path().join(FILE);
            let whole = fs::read_to_string(&path).expect("it was kept");
            fs::write(&path, whole.replace(later, "another")).expect("the folder is writable");
            assert_eq!(KeptCosts::open(data.path()).find(&on('a')), None, "{later}");
        }
    }

    #[test]
    fn no_data_directory_is_made_for_costs() {
        let data = tempfile::tempdir().expect("a temporary folder");
        let nowhere = data.path().join("nowhere");
        learn(&nowhere, &on('a'));
        assert!(!nowhere.exists());
    }
}
