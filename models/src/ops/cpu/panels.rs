#![expect(unsafe_code, reason = "threads fill disjoint panels of one buffer")]

//! A weight matrix as the CPU bodies read it.
//!
//! ```text
//! matrix [n, k]  ->  panels [n / 16][k][16]     panel p, row k: the weights of outputs 16 p .. 16 p + 16 for input k
//! ```
//!
//! One step of `k` loads 16 neighbouring weights and feeds 16 outputs, each with its own running sum: no sum is ever taken
//! across lanes. The last panel is padded with zeros.
//!
//! Where the CPU multiplies bf16 by bf16, two neighbours along `k` stand together, as its instruction takes them:
//!
//! ```text
//! matrix [n, k]  ->  panels [n / 16][k / 2][16][2]
//! ```

use half::{bf16, f16};

use super::bf16_pairs::Bf16Pair;
use super::buffer::{PageBuffer, Plain};
use super::lanes::Element;
use super::launch::Output;
use super::packed::StackedRows;
use crate::ops::{Compute, Float, blocks};
use crate::{ModelError, StoredDtype};

/// Outputs of one panel.
pub(crate) const PANEL: usize = 16;

#[derive(Debug)]
pub(crate) struct Panels {
    pub(super) out_features: usize,
    pub(super) data: PanelData,
}

#[derive(Debug)]
pub(super) enum PanelData {
    F32(PageBuffer<f32>),
    F16(PageBuffer<f16>),
    Bf16(PageBuffer<bf16>),
    /// Meets activations that are rounded to bf16.
    Bf16Pairs(PageBuffer<Bf16Pair>),
}

/// What a panel is made of, column by column.
pub(super) trait Cell: Plain {
    type Element: Element;

    /// Neighbours along `k` that one cell holds.
    const LEN: usize;

    /// The elements of one of a panel's 16 columns, in the order of `k`.
    fn column(panel: &[Self], lane: usize) -> impl Iterator<Item = &Self::Element>;
    fn column_mut(panel: &mut [Self], lane: usize) -> impl Iterator<Item = &mut Self::Element>;
}

impl<E: Element> Cell for E {
    type Element = E;

    const LEN: usize = 1;

    fn column(panel: &[E], lane: usize) -> impl Iterator<Item = &E> {
        panel[lane..].iter().step_by(PANEL)
    }

    fn column_mut(panel: &mut [E], lane: usize) -> impl Iterator<Item = &mut E> {
        panel.as_chunks_mut::<PANEL>().0.iter_mut().map(move |cells| &mut cells[lane])
    }
}

impl Cell for Bf16Pair {
    type Element = bf16;

    const LEN: usize = 2;

    fn column(panel: &[Self], lane: usize) -> impl Iterator<Item = &bf16> {
        panel[lane..].iter().step_by(PANEL).flat_map(|pair| &pair.0)
    }

    fn column_mut(panel: &mut [Self], lane: usize) -> impl Iterator<Item = &mut bf16> {
        panel.as_chunks_mut::<PANEL>().0.iter_mut().flat_map(move |cells| &mut cells[lane].0)
    }
}

impl Panels {
    /// `dtype` is f32, f16 or bf16.
    pub(super) fn pack(compute: &Compute, dtype: StoredDtype, rows: &StackedRows<'_>) -> Result<Self, ModelError> {
        let data = match dtype {
            StoredDtype::F32 => PanelData::F32(pack(compute, dtype, rows)?),
            StoredDtype::F16 => PanelData::F16(pack(compute, dtype, rows)?),
            StoredDtype::Bf16 if compute.factors() == Float::Bf16 && rows.width.is_multiple_of(Bf16Pair::LEN) => {
                PanelData::Bf16Pairs(pack(compute, dtype, rows)?)
            }
            _ => PanelData::Bf16(pack(compute, dtype, rows)?),
        };
        Ok(Self { out_features: rows.num_rows, data })
    }

    /// Elements that a matrix takes, padding included.
    pub(super) fn len_of(rows: usize, columns: usize) -> usize {
        rows.next_multiple_of(PANEL) * columns
    }

    /// Whether they meet activations in bf16.
    pub(super) fn are_of_pairs(&self) -> bool {
        matches!(self.data, PanelData::Bf16Pairs(_))
    }

    pub(super) fn dtype(&self) -> StoredDtype {
        match &self.data {
            PanelData::F32(_) => StoredDtype::F32,
            PanelData::F16(_) => StoredDtype::F16,
            PanelData::Bf16(_) | PanelData::Bf16Pairs(_) => StoredDtype::Bf16,
        }
    }

    pub(super) fn size_bytes(&self) -> usize {
        match &self.data {
            PanelData::F32(buffer) => buffer.size_bytes(),
            PanelData::F16(buffer) => buffer.size_bytes(),
            PanelData::Bf16(buffer) => buffer.size_bytes(),
            PanelData::Bf16Pairs(buffer) => buffer.size_bytes(),
        }
    }
}

/// Cells of `dtype`.
fn pack<C: Cell>(compute: &Compute, dtype: StoredDtype, rows: &StackedRows<'_>) -> Result<PageBuffer<C>, ModelError> {
    let (n, k) = (rows.num_rows, rows.width);
    let mut buffer = PageBuffer::zeroed(Panels::len_of(n, k) / C::LEN, compute.host().memory)?;
    let output = Output::new(buffer.as_mut_slice());
    rows.for_each_panel(compute, PANEL, &|panel| {
        let cells = PANEL * k / C::LEN;
        // SAFETY: each task takes its own panel, and the buffer outlives the run.
        let panel_data: &mut [C] = unsafe { output.part(panel * cells, cells) };
        let lanes = 0..PANEL.min(n - panel * PANEL);
        let rows: Vec<_> = lanes.map(|lane| rows.row(panel * PANEL + lane)).collect();
        match words_of(dtype, &rows) {
            Some(rows) => transpose(panel_data, &rows),
            None => convert(panel_data, &rows),
        }
    });
    Ok(buffer)
}

/// What is copied of each row at a time.
type Word = [u8; size_of::<u64>()];

/// The rows of a panel, where none is missing and all are of `dtype`.
fn words_of<'a>(dtype: StoredDtype, rows: &[(StoredDtype, &'a [u8])]) -> Option<[&'a [Word]; PANEL]> {
    let words = |&(stored, row): &(StoredDtype, &'a [u8])| {
        let (words, rest) = row.as_chunks();
        (stored == dtype && rest.is_empty()).then_some(words)
    };
    rows.iter().map(words).collect::<Option<Vec<_>>>()?.try_into().ok()
}

/// Copies rows bit for bit.
fn transpose<C: Cell>(panel: &mut [C], rows: &[&[Word]; PANEL]) {
    let cells_of_word = size_of::<Word>() / size_of::<C>();
    for (index, cells) in panel.chunks_exact_mut(PANEL * cells_of_word).enumerate() {
        // Loops, as `array::map` may be a function that is called for each word.
        let mut words = [0; PANEL];
        words.iter_mut().zip(rows).for_each(|(word, row)| *word = u64::from_le_bytes(row[index]));
        for (place, cells) in cells.as_chunks_mut::<PANEL>().0.iter_mut().enumerate() {
            let shift = place * size_of::<C>() * u8::BITS as usize;
            cells.iter_mut().zip(words).for_each(|(cell, word)| *cell = first_of(word >> shift));
        }
    }
}

/// The cell in the lowest bytes of `word`.
fn first_of<C: Cell>(word: u64) -> C {
    const { assert!(size_of::<C>() <= size_of::<u64>()) };
    // SAFETY: no more than the word is read, and every bit pattern is a cell.
    unsafe { std::mem::transmute_copy(&word.to_le()) }
}

/// Elements of each row that are converted before any row goes on, whole blocks of every dtype: their cells stay in the
/// nearest cache until all rows have filled them, while those of a whole panel would not.
const STRIPE: usize = 256;

/// Rounds rows of any dtypes.
fn convert<C: Cell>(panel: &mut [C], rows: &[(StoredDtype, &[u8])]) {
    let mut values = [0.0; STRIPE];
    for (stripe, cells) in panel.chunks_mut(PANEL * STRIPE / C::LEN).enumerate() {
        let values = &mut values[..cells.len() / PANEL * C::LEN];
        for (lane, &(dtype, row)) in rows.iter().enumerate() {
            let bytes = |elements: usize| elements / dtype.block_len() * dtype.block_bytes();
            blocks::decode(dtype, &row[bytes(stripe * STRIPE)..][..bytes(values.len())], values);
            C::column_mut(cells, lane).zip(&*values).for_each(|(to, value)| *to = C::Element::from_f32(*value));
        }
    }
}
