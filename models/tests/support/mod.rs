//! Fixtures as directories that a test may change, and their golden tensors.

use std::fs;
use std::path::{Path, PathBuf};

use passerelle_models::CheckpointFiles;
use safetensors::SafeTensors;
use safetensors::tensor::TensorView;
use serde_json::Value;
use tempfile::TempDir;

/// A private copy of one fixture.
#[derive(Debug)]
pub(crate) struct Fixture {
    pub(crate) directory: TempDir,
    golden: Golden,
}

/// What a reference implementation computed.
#[derive(Debug)]
pub(crate) struct Golden(Vec<u8>);

impl Golden {
    pub(crate) fn read(path: &Path) -> Self {
        Self(fs::read(path).unwrap())
    }

    pub(crate) fn ids(&self, name: &str) -> Vec<u32> {
        let golden = SafeTensors::deserialize(&self.0).unwrap();
        words(&golden.tensor(name).unwrap()).map(u32::from_le_bytes).collect()
    }

    pub(crate) fn floats(&self, name: &str) -> Vec<f32> {
        let golden = SafeTensors::deserialize(&self.0).unwrap();
        words(&golden.tensor(name).unwrap()).map(f32::from_le_bytes).collect()
    }
}

impl Fixture {
    /// A fixture without weights of its own has those of `plain`.
    pub(crate) fn copy(name: &str) -> Self {
        let source = fixtures().join(name);
        let directory = TempDir::new().unwrap();
        fs::copy(fixtures().join("plain/model.safetensors"), directory.path().join("model.safetensors")).unwrap();
        for entry in fs::read_dir(&source).unwrap() {
            let entry = entry.unwrap();
            if entry.file_name().to_string_lossy().ends_with(".index.json") {
                fs::remove_file(directory.path().join("model.safetensors")).unwrap();
            }
        }
        copy_files(&source, directory.path());
        Self { directory, golden: Golden::read(&source.join("golden.safetensors")) }
    }

    pub(crate) fn files(&self) -> CheckpointFiles {
        CheckpointFiles::directory(self.directory.path()).unwrap()
    }

    pub(crate) fn ids(&self, name: &str) -> Vec<u32> {
        self.golden.ids(name)
    }

    pub(crate) fn floats(&self, name: &str) -> Vec<f32> {
        self.golden.floats(name)
    }

    pub(crate) fn edit_config(&self, edit: impl FnOnce(&mut serde_json::Map<String, Value>)) {
        self.edit_json("config.json", |config| edit(config.as_object_mut().unwrap()));
    }

    pub(crate) fn edit_json(&self, file: &str, edit: impl FnOnce(&mut Value)) {
        let path = self.directory.path().join(file);
        let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        edit(&mut config);
        fs::write(path, config.to_string()).unwrap();
    }

    /// Rewrites, in place, the bytes of every tensor of `model.safetensors` whose name ends with `suffix`.
    pub(crate) fn edit_tensors(&self, suffix: &str, edit: impl Fn(&mut [u8])) {
        let path = self.directory.path().join("model.safetensors");
        let mut bytes = fs::read(&path).unwrap();
        for (_, range) in tensor_ranges(&bytes).into_iter().filter(|(name, _)| name.ends_with(suffix)) {
            edit(&mut bytes[range]);
        }
        fs::write(path, bytes).unwrap();
    }

    /// Rewrites the names of all tensors of `model.safetensors`.
    pub(crate) fn rename_tensors(&self, rename: impl Fn(&str) -> String) {
        let path = self.directory.path().join("model.safetensors");
        let bytes = fs::read(&path).unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        let renamed: Vec<_> = tensors.iter().map(|(name, tensor)| (rename(name), tensor)).collect();
        fs::write(path, safetensors::serialize(renamed, None).unwrap()).unwrap();
    }

    /// Exchanges the bytes of each pair of tensors whose names differ in `one` and `other` only.
    pub(crate) fn swap_tensors(&self, one: &str, other: &str) {
        let path = self.directory.path().join("model.safetensors");
        let mut bytes = fs::read(&path).unwrap();
        let before = bytes.clone();
        let ranges = tensor_ranges(&bytes);
        for (name, range) in ranges.iter().filter(|(name, _)| name.contains(one)) {
            let (_, partner) = ranges.iter().find(|(partner, _)| *partner == name.replace(one, other)).unwrap();
            bytes[range.clone()].copy_from_slice(&before[partner.clone()]);
            bytes[partner.clone()].copy_from_slice(&before[range.clone()]);
        }
        fs::write(path, bytes).unwrap();
    }
}

fn copy_files(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            fs::create_dir(&target).unwrap();
            copy_files(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

fn words<'a>(tensor: &TensorView<'a>) -> impl Iterator<Item = [u8; 4]> + use<'a> {
    tensor.data().as_chunks::<4>().0.iter().copied()
}

fn tensor_ranges(bytes: &[u8]) -> Vec<(String, std::ops::Range<usize>)> {
    let (header, metadata) = SafeTensors::read_metadata(bytes).unwrap();
    let start = 8 + header;
    let ranges = metadata.tensors().into_iter().map(|(name, info)| {
        let (from, to) = info.data_offsets;
        (name, start + from..start + to)
    });
    ranges.collect()
}
