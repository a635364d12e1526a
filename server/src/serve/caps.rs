//! What is said of the memory of partitions, before it is used.

use passerelle::config::{ByteSize, Config, PartitionConfig, WorkerPlace};
use passerelle::placement::{Backend, Cap, Cards, Device, DeviceList, SharedDevice, find_visible};

use super::devices::listed_devices;
use super::memory::machine_memory;

/// A device, and how much it has.
struct Whole {
    name: String,
    backend: Option<Backend>,
    memory: ByteSize,
}

/// The devices of this machine that partitions share, as far as their memory is known here.
pub(crate) fn shared_devices(config: &Config) -> Vec<SharedDevice> {
    let here: Vec<_> = config.partitions.iter().filter(|partition| partition.worker == WorkerPlace::Local).collect();
    let asks_driver = here.iter().any(|partition| partition.is.device != Device::Cpu);
    // What is wrong with the list is told where a device is looked up that must be there.
    let listed = if asks_driver { listed_devices(&config.engine).ok().flatten() } else { None };
    let visible = config.engine.visible_devices.as_deref();
    let mut shared: Vec<SharedDevice> = Vec::new();
    for partition in here {
        let Some(Whole { name, backend, memory }) = whole(partition, listed.as_ref(), visible) else { continue };
        let cap = Cap { partition: partition.name.clone(), memory: partition.is.memory };
        match shared.iter_mut().find(|device| device.name == name) {
            Some(device) => device.partitions.push(cap),
            None => shared.push(SharedDevice { name, backend, memory, partitions: vec![cap] }),
        }
    }
    shared
}

fn whole(partition: &PartitionConfig, listed: Option<&DeviceList>, visible: Option<&str>) -> Option<Whole> {
    let device = &partition.is.device;
    if *device == Device::Cpu {
        return Some(Whole { name: device.to_string(), backend: None, memory: machine_memory()? });
    }
    let found = find_visible(device, &listed?.visible(visible)).ok()?;
    let memory = Cards::known().of_listed(found.card, found.slice)?;
    Some(Whole { name: found.device().to_string(), backend: device.backend(), memory })
}

/// Says at the start which partitions may take more than there is, and which have no room to hand over.
pub(super) fn say(config: &Config) {
    for device in shared_devices(config) {
        if let Some(said) = device.too_much() {
            tracing::warn!("{said}");
        }
        if let Some(said) = device.no_room_for_two() {
            tracing::info!("{said}");
        }
    }
}
