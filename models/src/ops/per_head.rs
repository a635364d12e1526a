use std::ops::Deref;
use std::sync::Arc;

/// A number for each query head. Copies share it.
#[derive(Debug, Clone)]
pub struct PerHead {
    values: Arc<[f32]>,
    /// On the GPU that first asked for it: what is uploaded at every step would cost more than the kernel that reads it.
    #[cfg(feature = "cuda")]
    on_device: Arc<std::sync::OnceLock<candle_core::Tensor>>,
}

impl PerHead {
    /// `[num_heads]` on `device`, which is the same at every call.
    #[cfg(feature = "cuda")]
    pub(super) fn on_device(&self, device: &candle_core::Device) -> Result<&candle_core::Tensor, crate::ModelError> {
        if let Some(values) = self.on_device.get() {
            return Ok(values);
        }
        let values = candle_core::Tensor::new(&*self.values, device)?;
        Ok(self.on_device.get_or_init(|| values))
    }
}

impl From<Vec<f32>> for PerHead {
    fn from(values: Vec<f32>) -> Self {
        Self {
            values: values.into(),
            #[cfg(feature = "cuda")]
            on_device: Arc::default(),
        }
    }
}

impl Deref for PerHead {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        &self.values
    }
}

impl PartialEq for PerHead {
    fn eq(&self, other: &Self) -> bool {
        self.values == other.values
    }
}
