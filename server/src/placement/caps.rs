//! Whether a device has what its partitions may take.

use super::{Backend, DEVICE_OVERHEAD};
use crate::units::ByteSize;

/// A device of this machine, and the partitions whose workers share it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SharedDevice {
    pub name: String,
    pub backend: Option<Backend>,
    pub memory: ByteSize,
    pub partitions: Vec<Cap>,
}

/// What the models of a partition may take. Without memory: what is free.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cap {
    pub partition: String,
    pub memory: Option<ByteSize>,
}

impl SharedDevice {
    /// A sentence where the partitions may take more than there is.
    pub fn too_much(&self) -> Option<String> {
        let all = self.taken();
        (all > self.memory.0).then(|| {
            let (name, all, memory) = (&self.name, ByteSize(all), self.memory);
            let partitions = names(self.partitions.iter());
            format!("{name}: {partitions} may take {all}{}, and it has {memory}", self.beside())
        })
    }

    /// A sentence that names the partitions whose worker finds no room beside itself, as its successor must while it hands
    /// over.
    pub fn no_room_for_two(&self) -> Option<String> {
        let left = self.memory.0.checked_sub(self.taken())?;
        let fills = |cap: &&Cap| {
            // An accelerator's worker takes all that is free; of the CPU's memory it takes a part.
            cap.memory.map_or(self.backend.is_some(), |memory| self.of_worker(memory) > left)
        };
        let tight: Vec<&Cap> = self.partitions.iter().filter(fills).collect();
        (!tight.is_empty()).then(|| {
            format!(
                "{}: {} has no room for two workers at once, as at a hand-over: a successor gets what is left, or fails \
                 until the one before has ended",
                self.name,
                names(tight.into_iter())
            )
        })
    }

    fn taken(&self) -> u64 {
        let stated = self.partitions.iter().filter_map(|cap| cap.memory);
        stated.fold(0, |sum, memory| sum.saturating_add(self.of_worker(memory)))
    }

    fn of_worker(&self, memory: ByteSize) -> u64 {
        memory.0.saturating_add(self.backend.map_or(0, |_| DEVICE_OVERHEAD.0))
    }

    fn beside(&self) -> String {
        let driver = |_| format!(" with {DEVICE_OVERHEAD} for each worker's driver and libraries");
        self.backend.map_or_else(String::new, driver)
    }
}

fn names<'a>(caps: impl Iterator<Item = &'a Cap>) -> String {
    let names: Vec<String> = caps.map(|cap| format!("`{}`", cap.partition)).collect();
    format!("partition {}", names.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    fn device(backend: Option<Backend>, gib: u64, caps: &[(&str, Option<u64>)]) -> SharedDevice {
        let cap = |(name, gib): &(&str, Option<u64>)| Cap {
            partition: (*name).to_owned(),
            memory: gib.map(|gib| ByteSize(gib * GIB)),
        };
        let partitions = caps.iter().map(cap).collect();
        SharedDevice { name: "here".to_owned(), backend, memory: ByteSize(gib * GIB), partitions }
    }

    #[test]
    fn partitions_that_may_take_more_than_a_device_has_are_named_with_both_sizes() {
        let said = device(None, 16, &[("a", Some(10)), ("b", Some(7))]).too_much().expect("17 of 16");
        for part in ["here", "`a`, `b`", "17.00 GiB", "16.00 GiB"] {
            assert!(said.contains(part), "{said}");
        }
        assert_eq!(device(None, 16, &[("a", Some(10)), ("b", Some(6))]).too_much(), None);
        assert_eq!(device(None, 16, &[("a", None), ("b", Some(16))]).too_much(), None, "`a` takes what is free");
        let with_driver = device(Some(Backend::Cuda), 80, &[("a", Some(79))]).too_much().expect("80.5 of 80");
        assert!(with_driver.contains("1.50 GiB"), "{with_driver}");
        assert!(device(None, 1, &[("a", Some(u64::MAX / GIB)), ("b", Some(2))]).too_much().is_some());
    }

    #[test]
    fn a_partition_whose_worker_finds_no_room_beside_itself_is_named_and_no_other() {
        let said = device(None, 100, &[("a", Some(60)), ("b", Some(20))]).no_room_for_two().expect("60 of 20");
        assert!(said.contains("`a`") && !said.contains("`b`"), "{said}");
        assert_eq!(device(None, 100, &[("a", Some(50)), ("b", None)]).no_room_for_two(), None);
        let said = device(Some(Backend::Cuda), 80, &[("a", None)]).no_room_for_two().expect("it takes what is free");
        assert!(said.contains("`a`"), "{said}");
        assert_eq!(device(Some(Backend::Cuda), 80, &[("a", Some(38))]).no_room_for_two(), None);
        assert!(device(Some(Backend::Cuda), 80, &[("a", Some(39))]).no_room_for_two().is_some(), "two drivers too");
    }
}
