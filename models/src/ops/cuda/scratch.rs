use candle_core::{DType, Device, Tensor};
use half::bf16;

use crate::ModelError;

/// Memory that quantised weights are dequantised to, one after the other, before they are multiplied. It is as large as the
/// largest piece that any of them needs once they are all loaded, and stays where it is: what is recorded holds its address.
#[derive(Debug, Default)]
pub(super) struct Scratch(Option<Tensor>);

impl Scratch {
    /// The first `len` elements, bf16, whatever they hold.
    #[expect(unsafe_code, reason = "memory is taken without clearing it")]
    pub(super) fn at_least(&mut self, len: usize, device: &Device) -> Result<Tensor, ModelError> {
        if self.0.as_ref().is_none_or(|memory| memory.elem_count() < len) {
            // Given back first, so that both are never held.
            self.0 = None;
            // SAFETY: whoever asks writes it before anything reads it.
            self.0 = Some(unsafe { Tensor::empty(len, DType::BF16, device) }?);
        }
        let memory = self.0.as_ref().expect("it was just made");
        Ok(memory.narrow(0, 0, len)?)
    }

    pub(super) fn size_bytes(&self) -> usize {
        self.0.as_ref().map_or(0, Tensor::elem_count) * size_of::<bf16>()
    }
}
