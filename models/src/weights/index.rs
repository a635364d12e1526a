//! Which tensor lies in which file, read from the headers alone.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::files::is_plain_name;
use super::safetensors::{StoredTensor, head_bytes, read_header};
use super::{CheckpointFiles, unsupported};
use crate::ModelError;
use crate::config::{CONFIG_FILE, limits, parse_object};

const SINGLE_FILE: &str = "model.safetensors";
const INDEX_FILE: &str = "model.safetensors.index.json";
const MAX_SHARDS: usize = 4096;

/// Every tensor of a checkpoint by name.
#[derive(Debug)]
pub(crate) struct TensorIndex {
    pub(super) shards: Vec<Shard>,
    pub(super) tensors: HashMap<String, LocatedTensor>,
    /// What says which tensors there must be.
    pub(super) described_by: &'static str,
}

#[derive(Debug)]
pub(super) struct Shard {
    pub(super) file: String,
    pub(super) path: PathBuf,
}

#[derive(Debug, Clone)]
pub(super) struct LocatedTensor {
    pub(super) shard: usize,
    pub(super) stored: StoredTensor,
}

impl TensorIndex {
    /// Errors name the file and the tensor: a missing shard, a header that breaks the format, a tensor that the index
    /// puts elsewhere, a name that occurs twice.
    pub(crate) fn read(files: &CheckpointFiles) -> Result<Self, ModelError> {
        let promised = if files.contains(SINGLE_FILE) { None } else { read_weight_map(files)? };
        let names = match &promised {
            Some(weight_map) => shard_names(weight_map),
            None if files.contains(SINGLE_FILE) => vec![SINGLE_FILE.to_owned()],
            None => return Err(unsupported::refuse(files)),
        };
        let shards = Vec::with_capacity(names.len());
        let mut index = Self { shards, tensors: HashMap::new(), described_by: CONFIG_FILE };
        for file in names {
            index.add_shard(files, file)?;
        }
        if let Some(weight_map) = promised {
            index.check_against(&files.path_of(INDEX_FILE), &weight_map)?;
        }
        Ok(index)
    }

    /// As [`Self::read`], of the folder of a module, of which a manifest lists no other weights than one file.
    pub(crate) fn of_module(files: &CheckpointFiles) -> Result<Self, ModelError> {
        if files.contains(INDEX_FILE) && !files.contains(SINGLE_FILE) {
            let problem = format!("a module's weights in several files are not read; save them as one {SINGLE_FILE}");
            return Err(ModelError::checkpoint(&files.path_of(INDEX_FILE), "weight_map", problem));
        }
        Self::read(files)
    }

    /// Whether weights are at hand: safetensors beside a `config.json`, or a GGUF file that holds all.
    pub(crate) fn has_files(files: &CheckpointFiles) -> Result<bool, ModelError> {
        if files.contains(SINGLE_FILE) || !files.contains(CONFIG_FILE) {
            return Ok(true);
        }
        // The index alone is no weights: it comes with what is fetched to describe a model.
        Ok(files.contains(INDEX_FILE) && files.names()?.iter().any(|name| name.ends_with(".safetensors")))
    }

    /// All in the one file of a GGUF checkpoint.
    pub(crate) fn of_gguf(files: &CheckpointFiles, tensors: Vec<StoredTensor>) -> Self {
        let path = files.root().to_owned();
        let file = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let located = |stored: StoredTensor| (stored.name.clone(), LocatedTensor { shard: 0, stored });
        let tensors = tensors.into_iter().map(located).collect();
        Self { shards: vec![Shard { file, path }], tensors, described_by: "its metadata" }
    }

    /// The bytes, as its dtype has them, of a tensor that is read before the weights are, of at most a few kilobytes.
    pub(crate) fn copy_small(&self, files: &CheckpointFiles, tensor: &StoredTensor) -> Result<Vec<u8>, ModelError> {
        const MAX_BYTES: usize = 1 << 16;
        let refuse = |problem: &str| ModelError::checkpoint(files.root(), &tensor.name, problem);
        if tensor.bytes.len() > MAX_BYTES {
            return Err(refuse("longer than any model needs"));
        }
        let bytes = files.read_range(&self.shards[0].file, tensor.bytes.clone())?;
        if bytes.len() < tensor.bytes.len() {
            return Err(refuse("the file became shorter while it was being read"));
        }
        Ok(tensor.coding.read(&bytes).into_owned())
    }

    pub(crate) fn shape(&self, name: &str) -> Option<&[usize]> {
        self.tensors.get(name).map(|tensor| tensor.stored.shape.as_slice())
    }

    /// Tensors as stored, in no particular order.
    pub(crate) fn tensors(&self) -> impl Iterator<Item = &StoredTensor> {
        self.tensors.values().map(|tensor| &tensor.stored)
    }

    fn add_shard(&mut self, files: &CheckpointFiles, file: String) -> Result<(), ModelError> {
        let path = files.path_of(&file);
        if !files.contains(&file) {
            return Err(ModelError::checkpoint(&path, "shard", "not found; finish the download"));
        }
        let (head, file_bytes) = files.head(&file, head_bytes)?;
        let shard = self.shards.len();
        for stored in read_header(&path, &head, file_bytes)? {
            match self.tensors.entry(stored.name.clone()) {
                Entry::Vacant(entry) => entry.insert(LocatedTensor { shard, stored }),
                Entry::Occupied(entry) => {
                    let other = &self.shards[entry.get().shard].file;
                    return Err(ModelError::checkpoint(
                        &path,
                        stored.name,
                        format!("also in {other}; which is meant?"),
                    ));
                }
            };
        }
        self.shards.push(Shard { file, path });
        Ok(())
    }

    fn check_against(&self, path: &Path, weight_map: &HashMap<String, String>) -> Result<(), ModelError> {
        for (name, file) in weight_map {
            let found = self.tensors.get(name).map(|tensor| &self.shards[tensor.shard].file);
            if found != Some(file) {
                let place = found.map_or("in no file".to_owned(), |found| format!("in {found}"));
                return Err(ModelError::checkpoint(path, name, format!("said to be in {file}, but is {place}")));
            }
        }
        match self.tensors.iter().find(|(name, _)| !weight_map.contains_key(*name)) {
            Some((name, tensor)) => {
                let file = &self.shards[tensor.shard].path;
                Err(ModelError::checkpoint(file, name, format!("not listed in {INDEX_FILE}")))
            }
            None => Ok(()),
        }
    }
}

fn shard_names(weight_map: &HashMap<String, String>) -> Vec<String> {
    let mut names: Vec<String> = weight_map.values().cloned().collect();
    names.sort_unstable();
    names.dedup();
    names
}

fn read_weight_map(files: &CheckpointFiles) -> Result<Option<HashMap<String, String>>, ModelError> {
    let Some(bytes) = files.read(INDEX_FILE, limits::MAX_CONFIG_BYTES)? else { return Ok(None) };
    let path = files.path_of(INDEX_FILE);
    let refuse = |what: &str, problem: String| ModelError::checkpoint(&path, what, problem);
    let root = parse_object(&path, &bytes)?;
    let Some(Value::Object(written)) = root.get("weight_map") else {
        return Err(refuse("weight_map", "expected an object from tensor names to file names".into()));
    };
    let mut weight_map = HashMap::with_capacity(written.len());
    for (name, file) in written {
        match file.as_str() {
            Some(file) if is_plain_name(file) => weight_map.insert(name.clone(), file.to_owned()),
            _ => {
                let problem = format!("{file} is not a plain file name; shards lie beside the index");
                return Err(refuse(&format!("weight_map.{name}"), problem));
            }
        };
    }
    let num_shards = shard_names(&weight_map).len();
    if num_shards > MAX_SHARDS {
        return Err(refuse("weight_map", format!("{num_shards} files, at most {MAX_SHARDS} are accepted")));
    }
    Ok(Some(weight_map))
}
