use std::borrow::Cow;
use std::collections::HashSet;
use std::io;
use std::ops::{ControlFlow, Range};

use candle_core::Tensor;

use super::index::LocatedTensor;
use super::mapped::FileBytes;
use super::{CheckpointFiles, TensorIndex};
use crate::ops::{Compute, PackedWeight, WeightPart, widened};
use crate::{LoadProgress, LoadWatch, ModelError, StoredDtype, WeightDtype};

/// Hands out a checkpoint's tensors by name, each once, checked against the shape that the model expects.
///
/// A shard is opened when its first tensor is asked for and let go of when its last one was. Of a file that is mapped, a load
/// so holds what it keeps and a few megabytes; one that may go away is read, and all of it is held meanwhile.
pub(crate) struct WeightLoader<'a> {
    files: &'a CheckpointFiles,
    compute: &'a Compute,
    index: TensorIndex,
    dtype: WeightDtype,
    maps: Vec<Option<FileBytes>>,
    remaining: Vec<usize>,
    taken: HashSet<String>,
    progress: LoadProgress,
    report: LoadWatch<'a>,
    /// What the model's names begin with and this checkpoint's do not.
    missing_prefix: &'static str,
}

/// Rows of a merged matrix: one tensor of the checkpoint, `[rows, in_features]`, or `[rows]` where a vector is wanted.
#[derive(Debug, Clone)]
pub(crate) struct MatrixPart {
    pub(crate) name: String,
    pub(crate) rows: usize,
    /// The tensor's rows in the order in which they are packed. Together they are all of its rows.
    pub(crate) pieces: Vec<Range<usize>>,
}

impl MatrixPart {
    /// All rows as they are stored.
    pub(crate) fn whole(name: String, rows: usize) -> Self {
        Self { name, rows, pieces: std::iter::once(0..rows).collect() }
    }

    /// `bytes` of the whole tensor, piece by piece.
    fn cut<'a>(&'a self, bytes: &'a [u8]) -> impl Iterator<Item = &'a [u8]> {
        let row_bytes = bytes.len() / self.rows;
        self.pieces.iter().map(move |piece| &bytes[piece.start * row_bytes..piece.end * row_bytes])
    }
}

impl<'a> WeightLoader<'a> {
    pub(crate) fn new(
        files: &'a CheckpointFiles,
        index: TensorIndex,
        compute: &'a Compute,
        dtype: WeightDtype,
        report: LoadWatch<'a>,
    ) -> Self {
        let mut remaining = vec![0; index.shards.len()];
        let mut bytes_total = 0;
        for tensor in index.tensors.values() {
            remaining[tensor.shard] += 1;
            bytes_total += tensor.stored.bytes.len() as u64;
        }
        Self {
            files,
            compute,
            dtype,
            maps: index.shards.iter().map(|_| None).collect(),
            remaining,
            index,
            taken: HashSet::new(),
            progress: LoadProgress { bytes_done: 0, bytes_total },
            report,
            missing_prefix: "",
        }
    }

    /// For checkpoints whose names leave off what the model's names begin with. `embedding` is the model's name of a tensor
    /// that every checkpoint has: where it is found only without `prefix`, all names are looked up without it.
    pub(crate) fn with_optional_prefix(mut self, prefix: &'static str, embedding: &str) -> Self {
        let holds = |name: &str| self.index.tensors.contains_key(&format!("{name}.weight"));
        if !holds(embedding) && embedding.strip_prefix(prefix).is_some_and(holds) {
            self.missing_prefix = prefix;
        }
        self
    }

    /// What matrices are held in.
    pub(crate) fn dtype(&self) -> WeightDtype {
        self.dtype
    }

    pub(crate) fn compute(&self) -> &'a Compute {
        self.compute
    }

    /// `parts` one below the other as one packed weight of `in_features` columns.
    pub(crate) fn matrix(&mut self, in_features: usize, parts: &[MatrixPart]) -> Result<PackedWeight, ModelError> {
        let mut located = Vec::with_capacity(parts.len());
        for part in parts {
            located.push(self.take(&part.name, &[part.rows, in_features])?);
        }
        for tensor in &located {
            self.open(tensor.shard)?;
        }
        let read = located.iter().map(|tensor| self.bytes(tensor)).collect::<Result<Vec<_>, _>>()?;
        let mut pieces = Vec::with_capacity(parts.len());
        for (part, (tensor, bytes)) in parts.iter().zip(located.iter().zip(&read)) {
            let dtype = tensor.stored.dtype;
            pieces.extend(part.cut(bytes).map(|bytes| WeightPart { dtype, bytes }));
        }
        let copied = |bytes: &[u8]| self.maps.iter().flatten().for_each(|map| map.release(bytes));
        let dtype = packed_dtype(self.dtype, in_features);
        let packed = PackedWeight::pack_telling(self.compute, dtype, in_features, &pieces, &copied)?;
        for tensor in &located {
            self.done(tensor)?;
        }
        Ok(packed)
    }

    /// `[len]` f32: a norm's weights or a bias, or several biases one after the other.
    pub(crate) fn vector(&mut self, parts: &[MatrixPart]) -> Result<Tensor, ModelError> {
        let mut values = Vec::new();
        for part in parts {
            let tensor = self.take(&part.name, &[part.rows])?;
            self.open(tensor.shard)?;
            for piece in part.cut(&self.bytes(&tensor)?) {
                values.extend(widened(tensor.stored.dtype, piece));
            }
            self.done(&tensor)?;
        }
        let len = values.len();
        Ok(Tensor::from_vec(values, len, self.compute.device())?)
    }

    /// One number, stored as `[]` or `[1]`.
    pub(crate) fn scalar(&mut self, name: &str) -> Result<f32, ModelError> {
        let stored = self.index.tensors.get(&self.stored_name(name)).map(|tensor| tensor.stored.shape.is_empty());
        let tensor = self.take(name, if stored == Some(true) { &[][..] } else { &[1][..] })?;
        self.open(tensor.shard)?;
        let value = widened(tensor.stored.dtype, &self.bytes(&tensor)?)[0];
        self.done(&tensor)?;
        Ok(value)
    }

    /// As [`Self::scalar`], `None` where the checkpoint has no such tensor.
    pub(crate) fn optional_scalar(&mut self, name: &str) -> Result<Option<f32>, ModelError> {
        let stored = self.index.tensors.contains_key(&self.stored_name(name));
        stored.then(|| self.scalar(name)).transpose()
    }

    /// Errors when the checkpoint holds a tensor that the model did not take and that `expendable` does not excuse.
    pub(crate) fn finish(mut self, expendable: impl Fn(&str) -> bool) -> Result<(), ModelError> {
        let left = |name: &&String| !self.taken.contains(*name) && !expendable(name);
        match self.index.tensors.keys().filter(left).min() {
            Some(name) => {
                let file = &self.index.shards[self.index.tensors[name].shard].path;
                let problem = format!(
                    "the configuration does not describe this tensor, so it cannot be honoured; use the {} that belongs to \
                     these weights",
                    self.index.described_by
                );
                Err(ModelError::checkpoint(file, name, problem))
            }
            None => {
                self.progress.bytes_done = self.progress.bytes_total;
                self.tell()
            }
        }
    }

    fn take(&mut self, name: &str, shape: &[usize]) -> Result<LocatedTensor, ModelError> {
        let name = &self.stored_name(name);
        let Some(tensor) = self.index.tensors.get(name) else {
            let config = self.index.described_by;
            let problem = format!("missing, although {config} describes it; fetch the weights that belong to {config}");
            return Err(ModelError::checkpoint(self.files.root(), name, problem));
        };
        if tensor.stored.shape != shape {
            let (stored, config) = (&tensor.stored.shape, self.index.described_by);
            let problem = format!("shape {stored:?}, but {config} asks for {shape:?}");
            return Err(ModelError::checkpoint(&self.index.shards[tensor.shard].path, name, problem));
        }
        assert!(self.taken.insert(name.to_owned()), "a model asks for each of its tensors once");
        Ok(tensor.clone())
    }

    fn stored_name(&self, name: &str) -> String {
        name.strip_prefix(self.missing_prefix).unwrap_or(name).to_owned()
    }

    fn open(&mut self, shard: usize) -> Result<(), ModelError> {
        if self.maps[shard].is_none() {
            self.maps[shard] = Some(self.files.map(&self.index.shards[shard].file)?);
        }
        Ok(())
    }

    /// As its dtype has them.
    fn bytes(&self, tensor: &LocatedTensor) -> Result<Cow<'_, [u8]>, ModelError> {
        let map = self.maps[tensor.shard].as_ref().expect("the caller opened the shard");
        let stored = map.as_slice().get(tensor.stored.bytes.clone()).ok_or_else(|| {
            let file = &self.index.shards[tensor.shard].path;
            ModelError::checkpoint(file, &tensor.stored.name, "the file became shorter while it was being loaded")
        })?;
        Ok(tensor.stored.coding.read(stored))
    }

    fn done(&mut self, tensor: &LocatedTensor) -> Result<(), ModelError> {
        if let Some(map) = &self.maps[tensor.shard]
            && let Some(bytes) = map.as_slice().get(tensor.stored.bytes.clone())
        {
            map.release(bytes);
        }
        self.remaining[tensor.shard] -= 1;
        if self.remaining[tensor.shard] == 0 {
            self.maps[tensor.shard] = None;
        }
        self.progress.bytes_done += tensor.stored.bytes.len() as u64;
        self.tell()
    }

    fn tell(&mut self) -> Result<(), ModelError> {
        match (self.report)(self.progress) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => {
                Err(ModelError::Io { file: self.files.root().to_owned(), source: io::ErrorKind::Interrupted.into() })
            }
        }
    }
}

impl std::fmt::Debug for WeightLoader<'_> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("WeightLoader").field("progress", &self.progress).finish_non_exhaustive()
    }
}

/// `None` keeps what is stored. Rows that are no whole number of blocks cannot be quantised, and keep it too.
pub(crate) fn packed_dtype(wanted: WeightDtype, in_features: usize) -> Option<StoredDtype> {
    let wanted = match wanted {
        WeightDtype::Auto => return None,
        WeightDtype::F32 => StoredDtype::F32,
        WeightDtype::F16 => StoredDtype::F16,
        WeightDtype::Bf16 => StoredDtype::Bf16,
        WeightDtype::Q8_0 => StoredDtype::Q8_0,
        WeightDtype::Q4_0 => StoredDtype::Q4_0,
    };
    wanted.bytes_of(in_features).map(|_| wanted)
}
