//! The parts of decoders and encoders. A layer knows shapes and the order of operations; it calls [`crate::ops`] for
//! arithmetic and never looks at the device.

mod attention;
mod block;
mod decoder;
mod embeddings;
mod encoder;
mod head;
mod linear;
mod mlp;
mod names;
mod norm;
mod positions;

pub use decoder::{Decoder, LayerObserver};
pub use encoder::TextEncoder;
pub(crate) use names::{ClassifierNames, EncoderNames, QkvNames, RotaryRows, WeightNames};
