//! Which devices a process may use: those that the driver lists, as the backend's environment variable narrows them.

use super::{Backend, Device, DeviceId};

/// What a driver lists, in its order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceList {
    pub backend: Backend,
    pub devices: Vec<ListedDevice>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedDevice {
    /// As the driver calls the card.
    pub name: String,
    pub uuid: String,
    /// A card that is cut is used by its slices alone.
    pub slices: Vec<ListedSlice>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedSlice {
    /// Such as `3g.40gb`.
    pub profile: String,
    pub uuid: String,
}

/// A device or a slice that models can run on, each in a process of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Visible<'a> {
    backend: Backend,
    pub card: &'a ListedDevice,
    /// Of a card that is cut.
    pub slice: Option<&'a ListedSlice>,
}

/// Why a device that was named is none of those.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotVisible {
    #[error("no device {device} is visible; {}", among(.visible))]
    None { device: Device, visible: Vec<String> },
    #[error("{device} is the beginning of several: {}", .visible.join(", "))]
    Several { device: Device, visible: Vec<String> },
}

impl DeviceList {
    /// What `nvidia-smi -L` prints. Lines of another form are passed over.
    ///
    /// ```text
    /// GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-8932f937-…)
    ///   MIG 3g.40gb     Device  0: (UUID: MIG-5f36b2a0-…)
    /// ```
    pub fn of_nvidia_smi(text: &str) -> Self {
        let mut devices: Vec<ListedDevice> = Vec::new();
        for line in text.lines().map(str::trim) {
            let Some(uuid) = uuid_of(line) else { continue };
            if let Some((_, name)) = line.strip_prefix("GPU ").and_then(|rest| rest.split_once(": ")) {
                let name = name.split(" (UUID").next().unwrap_or(name).trim().to_owned();
                devices.push(ListedDevice { name, uuid, slices: Vec::new() });
            } else if let (Some(rest), Some(card)) = (line.strip_prefix("MIG "), devices.last_mut()) {
                let profile = rest.split_whitespace().next().unwrap_or_default().to_owned();
                card.slices.push(ListedSlice { profile, uuid });
            }
        }
        Self { backend: Backend::Cuda, devices }
    }

    /// The devices that a process sees whose environment has `variable`, in its order.
    ///
    /// As CUDA reads `CUDA_VISIBLE_DEVICES` (CUDA C++ Programming Guide, "CUDA Environment Variables"): a list of
    /// numbers and of UUIDs or beginnings of them that are one device's alone. The first that is none ends the list,
    /// and so does one that was there already; an empty list shows nothing, none shows all. Of a card that is cut, a
    /// number or the card's UUID stands for all of its slices. CUDA itself shows one process the first of several
    /// slices only, which is why each has a process of its own.
    pub fn visible(&self, variable: Option<&str>) -> Vec<Visible<'_>> {
        let Some(variable) = variable else {
            return self.devices.iter().flat_map(|card| self.parts(card)).collect();
        };
        let mut visible: Vec<Visible<'_>> = Vec::new();
        for entry in variable.split(',').map(str::trim) {
            let parts = self.named(entry);
            if parts.is_empty() || parts.iter().any(|part| visible.contains(part)) {
                break;
            }
            visible.extend(parts);
        }
        visible
    }

    /// What one entry stands for; nothing where it is invalid.
    fn named(&self, entry: &str) -> Vec<Visible<'_>> {
        if let Ok(index) = entry.parse::<usize>() {
            return self.devices.get(index).map(|card| self.parts(card)).unwrap_or_default();
        }
        if !self.backend.uuid_marks().iter().any(|mark| entry.strip_prefix(mark).is_some_and(|rest| !rest.is_empty())) {
            return Vec::new();
        }
        let cards: Vec<_> = self.devices.iter().filter(|card| card.uuid.starts_with(entry)).collect();
        let all = self.devices.iter().flat_map(|card| self.parts(card));
        let slices: Vec<_> = all.filter(|part| part.slice.is_some_and(|slice| slice.uuid.starts_with(entry))).collect();
        match (cards.as_slice(), slices.as_slice()) {
            ([card], []) => self.parts(card),
            ([], [slice]) => vec![*slice],
            _ => Vec::new(),
        }
    }

    fn parts<'a>(&self, card: &'a ListedDevice) -> Vec<Visible<'a>> {
        let whole = Visible { backend: self.backend, card, slice: None };
        if card.slices.is_empty() {
            return vec![whole];
        }
        card.slices.iter().map(|slice| Visible { slice: Some(slice), ..whole }).collect()
    }
}

impl Visible<'_> {
    pub fn uuid(&self) -> &str {
        self.slice.map_or(self.card.uuid.as_str(), |slice| slice.uuid.as_str())
    }

    /// By UUID, which stays what it is in every process.
    pub fn device(&self) -> Device {
        Device::Accelerator { backend: self.backend, id: DeviceId::Uuid(self.uuid().to_owned()) }
    }
}

/// The one of `visible` that `device` names.
pub fn find_visible<'a>(device: &Device, visible: &[Visible<'a>]) -> Result<Visible<'a>, NotVisible> {
    let Device::Accelerator { backend, id } = device else { return Err(none(device, visible)) };
    let of_backend: Vec<_> = visible.iter().filter(|part| part.backend == *backend).collect();
    let fitting: Vec<Visible<'a>> = match id {
        DeviceId::Index(index) => of_backend.get(*index as usize).map(|part| **part).into_iter().collect(),
        DeviceId::Uuid(uuid) => of_backend.into_iter().filter(|part| part.uuid().starts_with(uuid)).copied().collect(),
    };
    match fitting.as_slice() {
        [one] => Ok(*one),
        [] => Err(none(device, visible)),
        several => Err(NotVisible::Several { device: device.clone(), visible: names(several) }),
    }
}

fn none(device: &Device, visible: &[Visible<'_>]) -> NotVisible {
    NotVisible::None { device: device.clone(), visible: names(visible) }
}

fn names(visible: &[Visible<'_>]) -> Vec<String> {
    visible.iter().map(|part| part.uuid().to_owned()).collect()
}

fn among(visible: &[String]) -> String {
    if visible.is_empty() { "none is".to_owned() } else { format!("those that are: {}", visible.join(", ")) }
}

fn uuid_of(line: &str) -> Option<String> {
    let (_, rest) = line.split_once("(UUID: ")?;
    let (uuid, _) = rest.split_once(')')?;
    Some(uuid.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Three cards, the second of them cut.
    const LIST: &str = "\
GPU 0: NVIDIA A100-SXM4-80GB (UUID: GPU-8932f937-d72c-4106-c12f-20bd9faed9f6)
GPU 1: NVIDIA H100 80GB HBM3 (UUID: GPU-11aa22bb-0000-4106-c12f-20bd9faed9f7)
  MIG 3g.40gb     Device  0: (UUID: MIG-5f36b2a0-5f9e-5b0d-9f3a-8d1a1a3c2b11)
  MIG 1g.10gb+me  Device  1: (UUID: MIG-5f36b2a0-6000-5b0d-9f3a-8d1a1a3c2b12)
GPU 2: NVIDIA L40S (UUID: GPU-8932f000-d72c-4106-c12f-20bd9faed9f8)
";
    const WHOLE_0: &str = "GPU-8932f937-d72c-4106-c12f-20bd9faed9f6";
    const SLICE_0: &str = "MIG-5f36b2a0-5f9e-5b0d-9f3a-8d1a1a3c2b11";
    const SLICE_1: &str = "MIG-5f36b2a0-6000-5b0d-9f3a-8d1a1a3c2b12";
    const WHOLE_2: &str = "GPU-8932f000-d72c-4106-c12f-20bd9faed9f8";

    fn visible(variable: Option<&str>) -> Vec<String> {
        let list = DeviceList::of_nvidia_smi(LIST);
        names(&list.visible(variable))
    }

    #[test]
    fn cards_and_their_slices_are_read_from_the_drivers_list() {
        let list = DeviceList::of_nvidia_smi(LIST);
        assert_eq!(
            list.devices.iter().map(|card| card.name.as_str()).collect::<Vec<_>>()[1..],
            ["NVIDIA H100 80GB HBM3", "NVIDIA L40S"]
        );
        assert_eq!(list.devices[1].slices[1].profile, "1g.10gb+me");
        for odd in ["", "No devices found.", "MIG 3g.40gb Device 0: (UUID: MIG-1)", "GPU 0: x (UUID: GPU-1"] {
            assert_eq!(DeviceList::of_nvidia_smi(odd).devices, [], "{odd}");
        }
    }

    #[test]
    fn without_the_variable_all_are_visible_and_an_empty_one_hides_them() {
        assert_eq!(visible(None), [WHOLE_0, SLICE_0, SLICE_1, WHOLE_2]);
        assert_eq!(visible(Some("")), [""; 0]);
        assert_eq!(visible(Some("-1")), [""; 0]);
    }

    #[test]
    fn numbers_uuids_and_beginnings_of_them_name_devices_in_their_order() {
        assert_eq!(visible(Some("2,0")), [WHOLE_2, WHOLE_0]);
        assert_eq!(visible(Some(WHOLE_2)), [WHOLE_2]);
        assert_eq!(visible(Some("GPU-8932f9, 2")), [WHOLE_0, WHOLE_2]);
        assert_eq!(visible(Some(&format!("{SLICE_1},{SLICE_0}"))), [SLICE_1, SLICE_0]);
        assert_eq!(visible(Some("MIG-5f36b2a0-6")), [SLICE_1]);
    }

    #[test]
    fn a_card_that_is_cut_stands_for_its_slices() {
        assert_eq!(visible(Some("1")), [SLICE_0, SLICE_1]);
        assert_eq!(visible(Some("GPU-11aa")), [SLICE_0, SLICE_1]);
    }

    #[test]
    fn the_first_entry_that_is_invalid_or_comes_again_ends_the_list() {
        for (variable, seen) in [
            ("0,7,2", vec![WHOLE_0]),
            ("0,-1,2", vec![WHOLE_0]),
            ("0,cuda:1,2", vec![WHOLE_0]),
            ("0,,2", vec![WHOLE_0]),
            ("2,GPU-ffff,0", vec![WHOLE_2]),
            ("0,GPU-,2", vec![WHOLE_0]),
            ("0,GPU-8932f9", vec![WHOLE_0]),
            ("0,1,MIG-5f36b2a0-6", vec![WHOLE_0, SLICE_0, SLICE_1]),
        ] {
            assert_eq!(visible(Some(variable)), seen, "{variable}");
        }
        assert_eq!(visible(Some("GPU-8932f,1")), [""; 0], "the beginning of two UUIDs");
        assert_eq!(visible(Some("MIG-5f36b2a0")), [""; 0], "the beginning of two slices' UUIDs");
    }

    #[test]
    fn a_named_device_is_one_of_the_visible_ones() {
        let list = DeviceList::of_nvidia_smi(LIST);
        let visible = list.visible(Some("2,1"));
        let find = |text: &str| {
            let device = text.parse().unwrap_or_else(|error| panic!("{text}: {error}"));
            find_visible(&device, &visible).map(|part| part.uuid().to_owned())
        };
        assert_eq!(find("cuda:0").as_deref(), Ok(WHOLE_2));
        assert_eq!(find("cuda:2").as_deref(), Ok(SLICE_1), "counted among those that are visible");
        assert_eq!(find("MIG-5f36b2a0-5").as_deref(), Ok(SLICE_0));
        let hidden = find(WHOLE_0).expect_err("it is not in the variable").to_string();
        assert!(hidden.contains(WHOLE_0) && hidden.contains(WHOLE_2), "{hidden}");
        assert!(find("MIG-5f").expect_err("two begin so").to_string().contains(SLICE_1));
        assert!(find("cuda:3").is_err() && find("rocm:0").is_err() && find("cpu").is_err());
    }
}
