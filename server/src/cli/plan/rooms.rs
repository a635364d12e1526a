//! What is planned for: what was named, another machine's devices, or this machine.

use std::fs;
use std::path::Path;
use std::str::FromStr;

use anyhow::{Context, Result, bail, ensure};
use passerelle::config::{ByteSize, EngineConfig, PartitionConfig, WorkerPlace};
use passerelle::placement::{
    Backend, CardName, Cards, Device, DeviceList, KvBudget, PartitionRoom, Visible, find_visible,
};

use crate::serve::{FREE_MEMORY_PART, free_memory, listed_devices};

/// For the driver's context, modules and libraries on a device. Assumed: nobody has measured it yet.
const RESERVED_ON_DEVICES: ByteSize = ByteSize(1 << 30);

/// `--on`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum RoomFlag {
    /// With so much of its memory; without, as `serve` takes it.
    Cpu(Option<ByteSize>),
    Card {
        written: String,
        name: CardName,
    },
}

impl FromStr for RoomFlag {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            None if text == "cpu" => Ok(Self::Cpu(None)),
            Some(("cpu", size)) => Ok(Self::Cpu(Some(size.parse()?))),
            _ => {
                let Ok(name) = text.parse();
                Ok(Self::Card { written: text.to_owned(), name })
            }
        }
    }
}

/// In the order in which models are tried on them.
pub(super) fn rooms(on: &[RoomFlag], devices: Option<&Path>, engine: &EngineConfig) -> Result<Vec<PartitionRoom>> {
    let cards = Cards::known();
    if !on.is_empty() {
        return on.iter().map(|flag| named(flag, &cards, engine)).collect();
    }
    if let Some(file) = devices {
        let list = DeviceList::of_nvidia_smi(&fs::read_to_string(file).with_context(|| file.display().to_string())?);
        ensure!(!list.devices.is_empty(), "{}: lists no device; write what `nvidia-smi -L` prints", file.display());
        return list.visible(None).into_iter().map(|part| visible(part, &cards, engine)).collect();
    }
    let list = listed_devices(engine)?;
    let visible_here = list.as_ref().map(|list| list.visible(engine.visible_devices.as_deref())).unwrap_or_default();
    if visible_here.is_empty() {
        return Ok(vec![cpu(None, engine)]);
    }
    visible_here.into_iter().map(|part| visible(part, &cards, engine)).collect()
}

/// One of `[[partitions]]`, as its worker shares it.
pub(super) fn of_partition(partition: &PartitionConfig, engine: &EngineConfig) -> Result<PartitionRoom> {
    let PartitionConfig { name, is, worker, .. } = partition;
    let room = match (&is.device, is.memory) {
        (_, None) if *worker == WorkerPlace::Remote => bail!("state it: another machine's cannot be seen from here"),
        (Device::Cpu, None) => cpu(None, engine),
        (device, Some(memory)) => PartitionRoom {
            name: device.to_string(),
            backend: device.backend(),
            memory,
            reserved: ByteSize(0),
            kv: KvBudget::BesideWeights(engine.kv_cache_memory),
        },
        (device, None) => {
            let list = listed_devices(engine)?.with_context(|| format!("state it: no driver here knows {device}"))?;
            let all = list.visible(engine.visible_devices.as_deref());
            visible(find_visible(device, &all)?, &Cards::known(), engine)?
        }
    };
    Ok(PartitionRoom { name: format!("{name} ({})", room.name), ..room })
}

fn named(flag: &RoomFlag, cards: &Cards, engine: &EngineConfig) -> Result<PartitionRoom> {
    match flag {
        RoomFlag::Cpu(size) => Ok(cpu(*size, engine)),
        RoomFlag::Card { written, name } => Ok(device(written.clone(), cards.find(name)?, engine)),
    }
}

fn cpu(size: Option<ByteSize>, engine: &EngineConfig) -> PartitionRoom {
    let rest = KvBudget::PartOfRest(if size.is_some() { 1 } else { FREE_MEMORY_PART });
    PartitionRoom {
        name: "cpu".into(),
        backend: None,
        memory: size.unwrap_or_else(free_memory),
        reserved: ByteSize(0),
        kv: engine.kv_cache_memory.map_or(rest, KvBudget::Stated),
    }
}

fn visible(part: Visible<'_>, cards: &Cards, engine: &EngineConfig) -> Result<PartitionRoom> {
    let memory = cards.of_listed(part.card, part.slice).with_context(|| {
        let profile = part.slice.map_or("", |slice| slice.profile.as_str());
        format!("the memory of {} {profile} is not known; name a card with --on", part.card.name)
    })?;
    let device_name = part.device();
    let backend = device_name.backend().context("the CPU is listed by no driver")?;
    Ok(device(device_name.to_string(), (backend, memory), engine))
}

fn device(name: String, (backend, memory): (Backend, ByteSize), engine: &EngineConfig) -> PartitionRoom {
    let kv = engine.kv_cache_memory.map_or(KvBudget::PartOfRest(1), KvBudget::Stated);
    PartitionRoom { name, backend: Some(backend), memory, reserved: RESERVED_ON_DEVICES, kv }
}
