#![expect(unsafe_code, reason = "bytes are viewed as the elements that they hold")]

//! Memory for packed weights.

use std::marker::PhantomData;

use half::{bf16, f16};
use memmap2::MmapMut;

use super::bf16_pairs::Bf16Pair;
use super::system::Memory;
use crate::ModelError;
use crate::ops::MemoryPlacement;

/// What pages of zeros may hold.
///
/// # Safety
/// Every bit pattern is a value.
pub(crate) unsafe trait Plain: Copy + Send + Sync + 'static {}

// SAFETY, for each of them: integers, floats, and structs and arrays of these without padding.
unsafe impl Plain for f32 {}
unsafe impl Plain for i32 {}
unsafe impl Plain for bf16 {}
unsafe impl Plain for f16 {}
unsafe impl Plain for i8 {}
unsafe impl Plain for u8 {}
unsafe impl Plain for i16 {}
unsafe impl<T: Plain, const N: usize> Plain for [T; N] {}
unsafe impl Plain for Bf16Pair {}

/// Zeroed elements in pages of their own, huge ones where the system has them: a product walks several panels at once,
/// which small pages make expensive to translate. Starts on a page, so a vector load of a packed row never touches two
/// cache lines. Address space that is short
/// is an error; pages are backed when they are first written, so a system that overcommits may still end the process.
#[derive(Debug)]
pub(super) struct PageBuffer<E> {
    pages: MmapMut,
    len: usize,
    element: PhantomData<E>,
}

impl<E: Plain> PageBuffer<E> {
    /// `len` is not 0.
    pub(super) fn zeroed(len: usize, placement: MemoryPlacement) -> Result<Self, ModelError> {
        let bytes = len * size_of::<E>();
        let pages = MmapMut::map_anon(bytes)
            .map_err(|error| ModelError::device(format!("no memory for a weight of {bytes} bytes: {error}")))?;
        if let Err(error) = Memory::of(&pages[..]).use_huge_pages() {
            tracing::debug!(%error, "weights in small pages");
        }
        if placement == MemoryPlacement::Interleaved {
            let placed = Memory::of(&pages[..]).interleave();
            placed.map_err(|error| ModelError::Input(format!("a weight cannot be interleaved: {error}")))?;
        }
        Ok(Self { pages, len, element: PhantomData })
    }

    pub(super) fn as_slice(&self) -> &[E] {
        // SAFETY: the pages hold `len` elements, initialised with zeros, aligned to more than any `Plain` needs; every
        // bit pattern is a value.
        unsafe { std::slice::from_raw_parts(self.pages.as_ptr().cast(), self.len) }
    }

    pub(super) fn as_mut_slice(&mut self) -> &mut [E] {
        // SAFETY: as above, and the borrow is exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.pages.as_mut_ptr().cast(), self.len) }
    }

    pub(super) fn size_bytes(&self) -> usize {
        self.len * size_of::<E>()
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::super::system::can_interleave;
    use super::*;

    const LEN: usize = 1 << 20;

    #[test]
    fn weights_lie_in_huge_pages_where_the_system_has_them() {
        let elsewhere = MmapMut::map_anon(4 << 20).unwrap();
        // Some systems are built without them.
        let has_them = Memory::of(&elsewhere[..]).use_huge_pages().is_ok();
        let weights = PageBuffer::<f32>::zeroed(LEN, MemoryPlacement::FirstWriter).unwrap();
        assert_eq!(Memory::of(weights.as_slice()).is_for_huge_pages(), has_them);
    }

    #[test]
    fn weights_are_interleaved_where_that_is_asked_for_and_can_be() {
        if can_interleave().is_err() {
            return;
        }
        let interleaved = PageBuffer::<f32>::zeroed(LEN, MemoryPlacement::Interleaved).unwrap();
        let first_written = PageBuffer::<f32>::zeroed(LEN, MemoryPlacement::FirstWriter).unwrap();
        // Where the system does not tell, neither is known.
        let is_interleaved = |weights: &PageBuffer<f32>| Memory::of(weights.as_slice()).is_interleaved();
        let found = [&interleaved, &first_written].map(is_interleaved);
        assert!(found == [Some(true), Some(false)] || found == [None, None], "{found:?}");
    }
}
