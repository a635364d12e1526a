#![expect(unsafe_code, reason = "bytes are viewed as the elements that they hold")]

//! Memory for packed weights.

use std::marker::PhantomData;

use memmap2::MmapMut;

use super::bf16_pairs::Bf16Pair;
use super::lanes::Element;
use super::system::Memory;
use crate::ModelError;
use crate::ops::MemoryPlacement;

/// What pages of zeros may hold: every bit pattern is a value.
pub(super) trait Plain: Copy + Send + Sync + 'static {}

impl<E: Element> Plain for E {}
impl Plain for Bf16Pair {}
impl Plain for u8 {}

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
