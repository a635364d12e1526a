use std::fmt;
use std::num::NonZeroUsize;
use std::str::FromStr;

use serde::{Deserialize, Deserializer};

use crate::units::ByteSize;

/// A device or a slice of one, and what models may take of it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Partition {
    pub device: Device,
    /// Threads that compute, of a CPU. `None`: one per physical core.
    pub threads: Option<NonZeroUsize>,
    /// Weights and KV caches of all models on it. `None`: what is free.
    pub memory: Option<ByteSize>,
}

/// Where models run: this machine's processor, or a device behind a driver.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Device {
    Cpu,
    Accelerator { backend: Backend, id: DeviceId },
}

/// Which of a backend's devices.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum DeviceId {
    /// By its place among those that are visible, from 0.
    Index(u32),
    /// A whole device or a slice of one, by its UUID as the driver writes it (`GPU-…`, `MIG-…`), or the beginning of it if
    /// no other begins so.
    Uuid(String),
}

/// The driver, libraries and kernels that devices of one kind are used through.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Backend {
    Cuda,
    Rocm,
}

/// `--device`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub enum DeviceChoice {
    /// The first visible device that this build runs models on, else the CPU.
    #[default]
    Auto,
    Named(Device),
}

/// Why something written is no partition.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PartitionError {
    #[error("`{written}` is no device; write {}", forms())]
    NoDevice { written: String },
    #[error("`{written}` does not say which device; write {written}:0")]
    NoIndex { written: String },
    #[error("`{written}` names no device by a whole number or by the beginning of a UUID, as `nvidia-smi -L` shows it")]
    NoUuid { written: String },
    #[error("{device} has no threads; threads are for a partition of the CPU")]
    ThreadsOfAccelerator { device: Device },
    #[error("{device} with no memory holds no model")]
    NoMemory { device: Device },
}

impl Partition {
    /// Errors when threads are given to a device that has none to give, and when there is no memory.
    pub fn new(
        device: Device,
        threads: Option<NonZeroUsize>,
        memory: Option<ByteSize>,
    ) -> Result<Self, PartitionError> {
        if threads.is_some() && device != Device::Cpu {
            return Err(PartitionError::ThreadsOfAccelerator { device });
        }
        if memory == Some(ByteSize(0)) {
            return Err(PartitionError::NoMemory { device });
        }
        Ok(Self { device, threads, memory })
    }

    /// All of a device.
    pub fn whole(device: Device) -> Self {
        Self { device, threads: None, memory: None }
    }
}

impl Device {
    /// The backend it is used through; the CPU needs none.
    pub fn backend(&self) -> Option<Backend> {
        match self {
            Self::Cpu => None,
            Self::Accelerator { backend, .. } => Some(*backend),
        }
    }
}

impl DeviceChoice {
    /// Of the device that was named; of one that is yet to be found, the CPU's.
    pub fn backend(&self) -> Option<Backend> {
        match self {
            Self::Auto => None,
            Self::Named(device) => device.backend(),
        }
    }
}

impl Backend {
    pub const ALL: [Self; 2] = [Self::Cuda, Self::Rocm];

    pub fn name(self) -> &'static str {
        match self {
            Self::Cuda => "cuda",
            Self::Rocm => "rocm",
        }
    }

    /// The environment variable that says which devices a process sees, and in which order.
    pub fn visibility(self) -> &'static str {
        match self {
            Self::Cuda => "CUDA_VISIBLE_DEVICES",
            Self::Rocm => "ROCR_VISIBLE_DEVICES",
        }
    }

    /// What a process finds in its environment so that it counts devices as the driver lists them; `None` where it does
    /// anyway. CUDA by itself counts the fastest first (CUDA C++ Programming Guide, "CUDA Environment Variables").
    pub fn counted_as_listed(self) -> Option<(&'static str, &'static str)> {
        match self {
            Self::Cuda => Some(("CUDA_DEVICE_ORDER", "PCI_BUS_ID")),
            Self::Rocm => None,
        }
    }

    /// What its UUIDs begin with.
    pub(super) fn uuid_marks(self) -> &'static [&'static str] {
        match self {
            Self::Cuda => &["GPU-", "MIG-"],
            Self::Rocm => &["GPU-"],
        }
    }

    /// Whether a build of this program runs models on its devices. For the others it plans.
    pub fn runs_models(self) -> bool {
        match self {
            Self::Cuda => true,
            Self::Rocm => false,
        }
    }

    /// Whether a UUID needs no `cuda:` before it. Where two backends mark theirs alike, the first has the short form.
    fn is_first_with(self, uuid: &str) -> bool {
        let marks = |backend: &Self| backend.uuid_marks().iter().any(|mark| uuid.starts_with(mark));
        Self::ALL.iter().find(|backend| marks(backend)) == Some(&self)
    }

    fn id(self, written: &str) -> Option<DeviceId> {
        if let Ok(index) = written.parse() {
            return Some(DeviceId::Index(index));
        }
        let rest = self.uuid_marks().iter().find_map(|mark| written.strip_prefix(mark))?;
        // Slashes: `MIG-GPU-UUID/3/0` is how older drivers write a slice.
        let is_uuid = !rest.is_empty() && rest.chars().all(|c| c.is_ascii_alphanumeric() || "-/".contains(c));
        is_uuid.then(|| DeviceId::Uuid(written.to_owned()))
    }
}

impl FromStr for Device {
    type Err = PartitionError;

    fn from_str(text: &str) -> Result<Self, PartitionError> {
        if text == "cpu" {
            return Ok(Self::Cpu);
        }
        if Backend::ALL.iter().any(|backend| backend.name() == text) {
            return Err(PartitionError::NoIndex { written: text.to_owned() });
        }
        let named = text.split_once(':');
        let named = named.and_then(|(name, id)| Some((Backend::ALL.into_iter().find(|is| is.name() == name)?, id)));
        let bare = || Some((Backend::ALL.into_iter().find(|is| is.is_first_with(text))?, text));
        let no_device = || PartitionError::NoDevice { written: text.to_owned() };
        let (backend, id) = named.or_else(bare).ok_or_else(no_device)?;
        let id = backend.id(id).ok_or_else(|| PartitionError::NoUuid { written: text.to_owned() })?;
        Ok(Self::Accelerator { backend, id })
    }
}

impl FromStr for DeviceChoice {
    type Err = PartitionError;

    fn from_str(text: &str) -> Result<Self, PartitionError> {
        if text == "auto" { Ok(Self::Auto) } else { text.parse().map(Self::Named) }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::Accelerator { backend, id: DeviceId::Index(index) } => write!(f, "{backend}:{index}"),
            Self::Accelerator { backend, id: DeviceId::Uuid(uuid) } if backend.is_first_with(uuid) => f.write_str(uuid),
            Self::Accelerator { backend, id: DeviceId::Uuid(uuid) } => write!(f, "{backend}:{uuid}"),
        }
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl<'de> Deserialize<'de> for Device {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

impl<'de> Deserialize<'de> for DeviceChoice {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

fn forms() -> String {
    let run = Backend::ALL.into_iter().filter(|backend| backend.runs_models());
    let indexed = run.map(|backend| format!("{backend}:0")).collect::<Vec<_>>().join(", ");
    format!("cpu, {indexed}, or a UUID like MIG-… or GPU-…")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(text: &str) -> Device {
        text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    #[test]
    fn a_device_is_read_as_it_is_written() {
        let texts = [
            "cpu",
            "cuda:0",
            "cuda:11",
            "MIG-5f36b2a0-5f9e-5b0d-9f3a-8d1a1a3c2b11",
            "GPU-8932f937",
            "MIG-GPU-8932f937-d72c-4106-c12f-20bd9faed9f6/1/2",
            "rocm:3",
            "rocm:GPU-3d8a1c0f2b7e4d55",
        ];
        for text in texts {
            assert_eq!(device(text).to_string(), text);
        }
        assert_eq!(device("cuda:GPU-8932f937"), device("GPU-8932f937"), "the long form means the same");
        assert_ne!(device("rocm:GPU-8932f937"), device("GPU-8932f937"), "of another backend it is another device");
    }

    #[test]
    fn every_backend_has_devices_by_index_and_by_uuid() {
        for backend in Backend::ALL {
            for id in [DeviceId::Index(2), DeviceId::Uuid(format!("{}1a2b", backend.uuid_marks()[0]))] {
                let is = Device::Accelerator { backend, id };
                assert_eq!(device(&is.to_string()), is);
                assert_eq!(is.backend(), Some(backend));
            }
        }
        assert_eq!(Device::Cpu.backend(), None);
    }

    #[test]
    fn what_is_no_device_is_refused_with_what_to_write() {
        let hints = [
            ("tpu", "write cpu, cuda:0, or a UUID"),
            ("CPU", "cpu, cuda:0"),
            ("", "cpu, cuda:0"),
            ("cuda", "write cuda:0"),
            ("cuda:", "nvidia-smi -L"),
            ("cuda:-1", "nvidia-smi -L"),
            ("cuda:x", "nvidia-smi -L"),
            ("cuda:99999999999", "nvidia-smi -L"),
            ("MIG-", "nvidia-smi -L"),
            ("MIG-a b", "nvidia-smi -L"),
            ("mig-12", "cpu, cuda:0"),
            ("auto", "cpu, cuda:0"),
        ];
        for (text, hint) in hints {
            let problem = text.parse::<Device>().expect_err(text).to_string();
            assert!(problem.contains(hint) && problem.contains(text) && !problem.contains('\n'), "{problem}");
        }
    }

    #[test]
    fn auto_is_a_choice_and_no_device() {
        assert_eq!("auto".parse(), Ok(DeviceChoice::Auto));
        assert_eq!("cuda:1".parse(), Ok(DeviceChoice::Named(device("cuda:1"))));
        assert!("automatic".parse::<DeviceChoice>().is_err());
    }

    #[test]
    fn a_partition_has_threads_on_a_cpu_alone_and_memory_everywhere() {
        let (threads, memory) = (NonZeroUsize::new(2), Some(ByteSize(1 << 30)));
        assert!(Partition::new(Device::Cpu, threads, memory).is_ok());
        assert!(Partition::new(device("cuda:0"), None, memory).is_ok());
        let refused = Partition::new(device("MIG-1a"), threads, memory).expect_err("threads on a slice");
        assert!(refused.to_string().contains("MIG-1a"), "{refused}");
        assert!(Partition::new(Device::Cpu, None, Some(ByteSize(0))).is_err());
    }
}
