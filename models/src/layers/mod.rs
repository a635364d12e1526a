//! The parts of a decoder. A layer knows shapes and the order of operations; it calls [`crate::ops`] for arithmetic and
//! never looks at the device.

mod attention;
mod decoder;
mod linear;
mod mlp;
mod names;
mod norm;
mod positions;

pub use decoder::{Decoder, LayerObserver};
pub(crate) use names::{QkvNames, RotaryRows, WeightNames};
