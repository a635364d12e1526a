//! What models can run on, and what fits where. Pure: it asks no driver and opens nothing.
//!
//! No vendor is known to the types: a card of another maker is a row of [`Backend`], and the ops' bodies for it.

mod caps;
mod cards;
mod kv;
mod partition;
mod plan;
mod visible;

pub use caps::{Cap, SharedDevice};
pub use cards::{Card, CardError, CardName, Cards, Slice};
pub use kv::{DEVICE_OVERHEAD, KvDemand, TooLittleForKv, share_kv_memory};
pub use partition::{Backend, Device, DeviceChoice, DeviceId, Partition, PartitionError};
pub use plan::{
    FilledPartition, Fits, HeldBytes, KvBudget, ModelDemand, PartitionRoom, PlacedModel, Plan, Remedy, Shortage,
    UnplacedModel, plan,
};
pub use visible::{DeviceList, ListedDevice, ListedSlice, NotVisible, Visible, find_visible};
