//! What is planned for: what was named, another machine's devices, or this machine.

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::str::FromStr;

use anyhow::{Context, Result, bail, ensure};
use passerelle::config::{ByteSize, EngineConfig, PartitionConfig, WorkerPlace};
use passerelle::placement::{
    Backend, CardName, Cards, DEVICE_OVERHEAD, Device, DeviceChoice, DeviceList, KvBudget, PartitionRoom, Plan,
    Visible, find_visible,
};

use crate::serve::{FREE_MEMORY_PART, free_memory, listed_devices};

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
    Machine::new(engine)?.rest()
}

/// This machine, as its partitions are filled one after the other: what one takes, no other has.
pub(super) struct Machine<'a> {
    engine: &'a EngineConfig,
    /// `None`: no driver is loaded.
    devices: Option<DeviceList>,
    /// Of the CPU, before any of it was taken.
    free: ByteSize,
    taken: HashMap<Device, u64>,
    /// What the plan cannot be held to here.
    pub(super) notes: Vec<String>,
}

impl<'a> Machine<'a> {
    pub(super) fn new(engine: &'a EngineConfig) -> Result<Self> {
        let mut notes = Vec::new();
        let devices = listed_devices(engine).unwrap_or_else(|error| {
            notes.push(format!("the devices of this machine are not known: {error:#}"));
            None
        });
        Ok(Self { engine, devices, free: free_memory(), taken: HashMap::new(), notes })
    }

    /// One of `[[partitions]]`, as its worker shares it. One whose memory is stated may be another machine's; that it is not
    /// here is noted.
    pub(super) fn room(&mut self, partition: &PartitionConfig) -> Result<PartitionRoom> {
        let PartitionConfig { name, is, worker, .. } = partition;
        let room = match (&is.device, is.memory) {
            (_, None) if *worker == WorkerPlace::Remote => {
                bail!("state it: another machine's cannot be seen from here")
            }
            (Device::Cpu, None) => self.cpu(),
            (device, Some(memory)) => {
                let is_meant_here = *worker == WorkerPlace::Local && *device != Device::Cpu;
                let missing = if is_meant_here { self.find(device).err() } else { None };
                self.notes.extend(missing.map(|why| format!("{name}: planned for another machine: {why:#}")));
                PartitionRoom {
                    name: device.to_string(),
                    backend: device.backend(),
                    memory,
                    reserved: ByteSize(0),
                    kv: KvBudget::BesideWeights(self.engine.kv_cache_memory),
                }
            }
            (device, None) => {
                let found = self.find(device).context("state it")?;
                let room = visible(found, &Cards::known(), self.engine)?;
                self.left_of(&found.device(), room)
            }
        };
        Ok(PartitionRoom { name: format!("{name} ({})", room.name), ..room })
    }

    /// What a worker of this machine has loaded is taken from what the others find.
    pub(super) fn take(&mut self, partition: &PartitionConfig, plan: &Plan) {
        if partition.worker == WorkerPlace::Remote {
            return;
        }
        let device = match self.find(&partition.is.device) {
            Ok(found) => found.device(),
            Err(_) => partition.is.device.clone(),
        };
        *self.taken.entry(device).or_default() += plan.partitions.iter().map(|filled| filled.taken().0).sum::<u64>();
    }

    /// For models that name no partition: the device that was named, else what is visible, else the CPU.
    pub(super) fn rest(&self) -> Result<Vec<PartitionRoom>> {
        let of = |part: Visible<'_>| Ok(self.left_of(&part.device(), visible(part, &Cards::known(), self.engine)?));
        match &self.engine.device {
            DeviceChoice::Named(Device::Cpu) => Ok(vec![self.cpu()]),
            DeviceChoice::Named(device) => {
                let found = self.find(device).context("engine.device: for another machine, say --on or --devices")?;
                Ok(vec![of(found)?])
            }
            DeviceChoice::Auto if self.visible().is_empty() => Ok(vec![self.cpu()]),
            DeviceChoice::Auto => self.visible().into_iter().map(of).collect(),
        }
    }

    fn cpu(&self) -> PartitionRoom {
        self.left_of(&Device::Cpu, PartitionRoom { memory: self.free, ..cpu(None, self.engine) })
    }

    fn visible(&self) -> Vec<Visible<'_>> {
        let visible = self.devices.as_ref().map(|list| list.visible(self.engine.visible_devices.as_deref()));
        visible.unwrap_or_default()
    }

    fn find(&self, device: &Device) -> Result<Visible<'_>> {
        ensure!(self.devices.is_some(), "no driver here knows {device}");
        Ok(find_visible(device, &self.visible())?)
    }

    fn left_of(&self, device: &Device, room: PartitionRoom) -> PartitionRoom {
        let taken = self.taken.get(device).copied().unwrap_or_default();
        PartitionRoom { memory: ByteSize(room.memory.0.saturating_sub(taken)), ..room }
    }
}

fn named(flag: &RoomFlag, cards: &Cards, engine: &EngineConfig) -> Result<PartitionRoom> {
    match flag {
        RoomFlag::Cpu(size) => Ok(cpu(*size, engine)),
        RoomFlag::Card { written, name } => {
            let (backend, memory) = cards.find(name)?;
            Ok(device(written.clone(), backend, memory, engine))
        }
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
        let slice = part.slice.map_or_else(String::new, |slice| format!(" {}", slice.profile));
        format!(
            "the memory of {}{slice} is not known; name a card with --on, or plan a --config with a partition that states \
             its `device` and `memory`",
            part.card.name
        )
    })?;
    let device_name = part.device();
    let backend = device_name.backend().context("the CPU is listed by no driver")?;
    Ok(device(device_name.to_string(), backend, memory, engine))
}

fn device(name: String, backend: Backend, memory: ByteSize, engine: &EngineConfig) -> PartitionRoom {
    let kv = engine.kv_cache_memory.map_or(KvBudget::PartOfRest(1), KvBudget::Stated);
    PartitionRoom { name, backend: Some(backend), memory, reserved: DEVICE_OVERHEAD, kv }
}
