//! The hours of every partition of a server, each apart: what runs on one does not make another busy, nor is it billed there.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

use passerelle_engine::clock::Clock;

use super::hours::{HourUse, PartitionHours, TimeUse};

/// Time of the server's own process, and of each partition that has a worker.
#[derive(Debug)]
pub struct Hours {
    clock: Arc<dyn Clock>,
    own: Arc<PartitionHours>,
    placed: RwLock<Placed>,
}

#[derive(Debug, Default)]
struct Placed {
    partitions: Vec<Arc<PartitionHours>>,
    by_model: BTreeMap<String, Arc<PartitionHours>>,
}

impl Hours {
    /// `kind`: of the device that models on no partition run on. `factor`: normalised GPU time in a unit of its time.
    pub fn new(clock: Arc<dyn Clock>, kind: &str, factor: f64) -> Self {
        let own = Arc::new(PartitionHours::new(Arc::clone(&clock), kind, factor));
        Self { clock, own, placed: RwLock::default() }
    }

    /// These models run on a partition of this name, from now on and for good.
    pub fn place(&self, partition: &str, factor: f64, models: impl IntoIterator<Item = String>) {
        let mut placed = self.placed.write().unwrap_or_else(PoisonError::into_inner);
        let hours = Arc::new(PartitionHours::new(Arc::clone(&self.clock), partition, factor));
        placed.by_model.extend(models.into_iter().map(|model| (model, Arc::clone(&hours))));
        placed.partitions.push(hours);
    }

    /// Of the server's own process.
    pub fn own(&self) -> &Arc<PartitionHours> {
        &self.own
    }

    /// Of the partition that a model runs on.
    pub fn of_model(&self, model: &str) -> Arc<PartitionHours> {
        let placed = self.placed.read().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(placed.by_model.get(model).unwrap_or(&self.own))
    }

    /// A request of a model ended now, that costs so many normalised microseconds.
    pub fn billed(&self, model: &str, micros: u64) {
        self.of_model(model).billed(micros);
    }

    /// Every hour of every partition since the start, or of the last week; of each, the one that runs comes last.
    pub fn rows(&self) -> Vec<HourUse> {
        self.shown().iter().flat_map(|partition| partition.rows()).collect()
    }

    /// Of each partition, since the start.
    pub fn in_all(&self) -> Vec<(Arc<PartitionHours>, TimeUse)> {
        self.shown().into_iter().map(|partition| (Arc::clone(&partition), partition.in_all())).collect()
    }

    /// A server all of whose models lie on partitions has no time of its own to account for.
    fn shown(&self) -> Vec<Arc<PartitionHours>> {
        let placed = self.placed.read().unwrap_or_else(PoisonError::into_inner);
        let own = (placed.partitions.is_empty() || self.own.is_used()).then_some(&self.own);
        own.into_iter().chain(&placed.partitions).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use passerelle_engine::clock::ManualClock;

    use super::*;

    #[test]
    fn of_two_partitions_each_adds_up_by_itself() {
        let clock = ManualClock::default();
        let hours = Hours::new(Arc::new(clock.clone()), "cpu", 1.0);
        hours.place("left", 1.0, ["a".to_owned(), "b".to_owned()]);
        hours.place("right", 0.5, ["c".to_owned()]);
        clock.advance(Duration::from_secs(100));
        // Both at the same time: more than one process could compute.
        hours.of_model("a").computed(Duration::from_secs(80));
        hours.of_model("c").computed(Duration::from_secs(60));
        hours.billed("a", 30_000_000);
        hours.billed("b", 10_000_000);
        hours.billed("c", 50_000_000);
        let shown: Vec<(String, TimeUse)> = hours.rows().into_iter().map(|row| (row.partition, row.used)).collect();
        let left = TimeUse { billed: 40.0, under_use: 40.0, idle: 20.0, elapsed: 100.0 };
        let right = TimeUse { billed: 50.0, under_use: -20.0, idle: 20.0, elapsed: 50.0 };
        assert_eq!(shown, [("left".to_owned(), left), ("right".to_owned(), right)]);
        let in_all: Vec<TimeUse> = hours.in_all().into_iter().map(|(_, used)| used).collect();
        assert_eq!(in_all, [left, right]);
    }

    #[test]
    fn what_lies_on_no_partition_is_the_servers_own_and_shown_once_there_is_any() {
        let hours = Hours::new(Arc::new(ManualClock::default()), "cpu", 1.0);
        let names = || hours.rows().iter().map(|row| row.partition.clone()).collect::<Vec<_>>();
        assert_eq!(names(), ["cpu"]);
        hours.place("left", 1.0, ["a".to_owned()]);
        assert_eq!(names(), ["left"]);
        hours.billed("own", 1);
        assert_eq!(names(), ["cpu", "left"]);
    }
}
