#![expect(unsafe_code, reason = "cache lines are viewed as the elements that they hold")]

//! Memory that starts on a cache line.

use std::marker::PhantomData;

use super::vector::Element;

/// Zeroed elements, the first on a cache line, so that a vector load of a packed row never touches two lines.
#[derive(Debug)]
pub(super) struct AlignedBuffer<E> {
    lines: Vec<CacheLine>,
    len: usize,
    element: PhantomData<E>,
}

#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
struct CacheLine([u8; 64]);

impl<E: Element> AlignedBuffer<E> {
    pub(super) fn zeroed(len: usize) -> Self {
        let lines = vec![CacheLine([0; 64]); (len * size_of::<E>()).div_ceil(64)];
        Self { lines, len, element: PhantomData }
    }

    pub(super) fn as_slice(&self) -> &[E] {
        // SAFETY: the lines hold at least `len` elements, initialised, aligned to more than any `Element` needs; every bit
        // pattern is an f32, f16 or bf16.
        unsafe { std::slice::from_raw_parts(self.lines.as_ptr().cast(), self.len) }
    }

    pub(super) fn as_mut_slice(&mut self) -> &mut [E] {
        // SAFETY: as above, and the borrow is exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.lines.as_mut_ptr().cast(), self.len) }
    }

    pub(super) fn size_bytes(&self) -> usize {
        self.lines.len() * size_of::<CacheLine>()
    }
}
