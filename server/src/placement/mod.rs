//! What models can run on, and what fits where. Pure: it asks no driver and opens nothing.
//!
//! No vendor is known to the types: a card of another maker is a row of [`Backend`], and the ops' bodies for it.

mod partition;

pub use partition::{Backend, Device, DeviceChoice, DeviceId, Partition, PartitionError};
