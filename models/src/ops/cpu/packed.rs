//! A weight matrix as the CPU bodies hold it: one part below the other, each in its own dtype.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

use half::bf16;

use super::block_panels::BlockPanels;
use super::panels::Panels;
use super::rounded_rows::UnitFacts;
use crate::ops::blocks::UNIT;
use crate::ops::{Compute, Copied, Float, RoundedUnit, WeightPart};
use crate::{ActivationDtype, ModelError, StoredDtype};

/// Some outputs of a weight, all of one dtype.
#[derive(Debug)]
pub(crate) enum PackedPart {
    Floats(Panels),
    Blocks(BlockPanels),
}

impl PackedPart {
    /// `parts` hold whole rows of `in_features` elements, at least one, and are rounded to `dtype` where they differ.
    pub(crate) fn pack(
        compute: &Compute,
        dtype: StoredDtype,
        in_features: usize,
        parts: &[WeightPart<'_>],
        copied: Copied<'_>,
    ) -> Result<Self, ModelError> {
        let rows = StackedRows::new(in_features, parts, copied);
        Ok(if dtype.is_quantised() {
            Self::Blocks(BlockPanels::pack(compute, dtype, &rows)?)
        } else {
            Self::Floats(Panels::pack(compute, dtype, &rows)?)
        })
    }

    /// What [`Self::size_bytes`] is of a matrix `[rows, columns]`, with rows of whole blocks.
    pub(crate) fn size_of(dtype: StoredDtype, rows: usize, columns: usize) -> usize {
        if dtype.is_quantised() {
            BlockPanels::len_of(dtype, rows, columns)
        } else {
            Panels::len_of(rows, columns) * dtype.block_bytes()
        }
    }

    pub(crate) fn out_features(&self) -> usize {
        match self {
            Self::Floats(panels) => panels.out_features,
            Self::Blocks(panels) => panels.out_features,
        }
    }

    pub(crate) fn dtype(&self) -> StoredDtype {
        match self {
            Self::Floats(panels) => panels.dtype(),
            Self::Blocks(panels) => panels.dtype,
        }
    }

    pub(crate) fn size_bytes(&self) -> usize {
        match self {
            Self::Floats(panels) => panels.size_bytes(),
            Self::Blocks(panels) => panels.size_bytes(),
        }
    }
}

impl RoundedUnit {
    /// Where activations meet weights that are held as `held`: rounded to `factors` before bf16 ones, to `integers` before
    /// quantised ones.
    pub(crate) fn on_cpu(held: StoredDtype, factors: Float, integers: ActivationDtype) -> Self {
        let floats = Self { gates_stay: true, ..Self::default() };
        let integers_of = |bytes| Self { element_bytes: UNIT * bytes, facts_bytes: size_of::<UnitFacts>(), ..floats };
        match (held, integers) {
            (StoredDtype::Bf16, _) if factors == Float::Bf16 => {
                Self { element_bytes: UNIT * size_of::<bf16>(), is_handed_on: true, ..floats }
            }
            (StoredDtype::F32 | StoredDtype::F16 | StoredDtype::Bf16, _) => floats,
            (_, ActivationDtype::Int8) => integers_of(size_of::<i8>()),
            (_, ActivationDtype::Int16) => integers_of(size_of::<i16>()),
        }
    }
}

/// The rows of stacked parts, found by their number.
pub(super) struct StackedRows<'a> {
    pub(super) width: usize,
    pub(super) num_rows: usize,
    parts: &'a [WeightPart<'a>],
    /// The number of each part's first row.
    starts: Vec<usize>,
    copied: Copied<'a>,
}

impl<'a> StackedRows<'a> {
    fn new(width: usize, parts: &'a [WeightPart<'a>], copied: Copied<'a>) -> Self {
        let mut starts = Vec::with_capacity(parts.len());
        let mut num_rows = 0;
        for part in parts {
            starts.push(num_rows);
            num_rows += part.dtype.elements_in(part.bytes.len()) / width;
        }
        Self { width, num_rows, parts, starts, copied }
    }

    /// Calls `task` with the number of every panel of `panel` rows, on as many of the pool's threads as are to pack, and tells
    /// after every few megabytes that their rows were copied.
    pub(super) fn for_each_panel(&self, compute: &Compute, panel: usize, task: &(dyn Fn(usize) + Sync)) {
        const SLICE_BYTES: usize = 16 << 20;
        let row_bytes = self.parts.iter().map(|part| self.row_bytes(part)).max().unwrap_or(1);
        let slice = (SLICE_BYTES / (panel * row_bytes)).max(1);
        let num_panels = self.num_rows.div_ceil(panel);
        for first in (0..num_panels).step_by(slice) {
            let panels = first..(first + slice).min(num_panels);
            let next = AtomicUsize::new(panels.start);
            compute.pool().run(compute.packing_threads(), &|_| {
                let claim = || Some(next.fetch_add(1, Ordering::Relaxed)).filter(|panel| panels.contains(panel));
                std::iter::from_fn(claim).for_each(task);
            });
            self.tell_copied(panels.start * panel..(panels.end * panel).min(self.num_rows));
        }
    }

    /// Of parts of a few rows nothing is said: a matrix that is made of such is not large.
    fn tell_copied(&self, rows: Range<usize>) {
        const WORTH_TELLING: usize = 1 << 20;
        for (part, &start) in self.parts.iter().zip(&self.starts) {
            let row_bytes = self.row_bytes(part);
            let end = start + part.bytes.len() / row_bytes;
            let (from, to) = (rows.start.clamp(start, end) - start, rows.end.clamp(start, end) - start);
            if (to - from) * row_bytes >= WORTH_TELLING {
                (self.copied)(&part.bytes[from * row_bytes..to * row_bytes]);
            }
        }
    }

    fn row_bytes(&self, part: &WeightPart<'_>) -> usize {
        self.width / part.dtype.block_len() * part.dtype.block_bytes()
    }

    /// A row's dtype and bytes.
    pub(super) fn row(&self, row: usize) -> (StoredDtype, &'a [u8]) {
        let index = self.starts.partition_point(|start| *start <= row) - 1;
        let part = &self.parts[index];
        let row_bytes = self.row_bytes(part);
        (part.dtype, &part.bytes[(row - self.starts[index]) * row_bytes..][..row_bytes])
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::sync::atomic::AtomicBool;
    use std::sync::{Arc, Mutex};
    use std::thread;

    use super::*;

    #[test]
    fn who_packs_leaves_a_thread_while_another_is_busy_and_packs_all() {
        const PANELS: usize = 64;
        let busy = Arc::new(AtomicBool::new(true));
        let compute = Compute::cpu(2).beside(Arc::clone(&busy));
        let bytes = vec![0; PANELS * 2];
        let parts = [WeightPart { dtype: StoredDtype::Bf16, bytes: &bytes }];
        let rows = StackedRows::new(1, &parts, &|_| ());
        let (packed, threads) = (Mutex::new(Vec::new()), Mutex::new(HashSet::new()));
        rows.for_each_panel(&compute, 1, &|panel| {
            packed.lock().unwrap().push(panel);
            threads.lock().unwrap().insert(thread::current().id());
        });
        assert_eq!(threads.into_inner().unwrap().len(), 1);
        let mut packed = packed.into_inner().unwrap();
        packed.sort_unstable();
        assert_eq!(packed, (0..PANELS).collect::<Vec<_>>());
        busy.store(false, Ordering::Relaxed);
        assert_eq!(compute.packing_threads(), 2);
        assert_eq!(Compute::cpu(1).beside(Arc::new(AtomicBool::new(true))).packing_threads(), 1);
    }
}
