//! What is kept of answers that two served checkpoints were asked about: a folder for each pair, and in it a score file of
//! each, as `passerelle score` writes them.
//!
//! ```text
//! <folder>/<served>-<candidate>-<max_tokens>/<digest>.jsonl
//! ```
//!
//! The files hold answers. Only their owner may read them, and together they never exceed their bound: what does not fit is
//! not kept.

use std::collections::HashMap;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use passerelle_models::ModelDigest;
use serde::Serialize;

use super::score_file::{Header, Readers, ScoreFileError, ScoreWriter, Settings};
use super::scored::Scored;

/// Pairs whose files are open at the same time. Those of one that comes later are opened anew.
const MAX_OPEN_PAIRS: usize = 16;

#[derive(Debug)]
pub struct PairStore {
    folder: PathBuf,
    max_bytes: u64,
    /// The version of this program.
    binary: String,
    open: Mutex<Open>,
}

#[derive(Debug, Default)]
struct Open {
    stored_bytes: u64,
    writers: HashMap<PathBuf, [ScoreWriter; 2]>,
}

/// The model that was asked, and the candidate.
#[derive(Debug, Clone)]
pub struct Pair {
    pub digests: [ModelDigest; 2],
    pub names: [String; 2],
    /// Of each greedy answer.
    pub max_tokens: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kept {
    Whole,
    /// There is no room.
    Nothing,
}

impl PairStore {
    /// Makes the folder, or goes on with what is there.
    pub fn open(folder: &Path, max_bytes: u64, binary: &str) -> Result<Self, ScoreFileError> {
        let at = |error| ScoreFileError::Io { path: folder.to_owned(), error };
        private_folder(folder).map_err(at)?;
        let open = Mutex::new(Open { stored_bytes: stored_bytes(folder).map_err(at)?, ..Open::default() });
        Ok(Self { folder: folder.to_owned(), max_bytes, binary: binary.to_owned(), open })
    }

    /// Adds what each of the two made of one answer. Blocks.
    pub fn keep(&self, pair: &Pair, scored: &[Scored; 2]) -> Result<Kept, ScoreFileError> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let lines: u64 = scored.iter().map(line_bytes).sum();
        let has_room = |open: &Open, bytes: u64| open.stored_bytes.saturating_add(bytes) <= self.max_bytes;
        let folder = self.folder.join(pair.folder());
        if !open.writers.contains_key(&folder) {
            let headers = [0, 1].map(|side| pair.header(side, &self.binary));
            if !has_room(&open, lines + headers.iter().map(line_bytes).sum::<u64>()) {
                return Ok(Kept::Nothing);
            }
            let at = |error| ScoreFileError::Io { path: folder.clone(), error };
            private_folder(&folder).map_err(at)?;
            let [served, candidate] = headers.map(|header| ScoreWriter::open(&folder, &header, Readers::OwnerAlone));
            if open.writers.len() >= MAX_OPEN_PAIRS {
                open.writers.clear();
            }
            open.writers.insert(folder.clone(), [served?, candidate?]);
            open.stored_bytes = stored_bytes(&self.folder).map_err(at)?;
        }
        if !has_room(&open, lines) {
            return Ok(Kept::Nothing);
        }
        // Before it is written: what fails may have been written in part.
        open.stored_bytes += lines;
        for (writer, scored) in open.writers.get_mut(&folder).into_iter().flatten().zip(scored) {
            writer.append(scored)?;
        }
        Ok(Kept::Whole)
    }
}

impl Pair {
    fn folder(&self) -> String {
        let [served, candidate] = self.digests.map(|digest| digest.short());
        format!("{served}-{candidate}-{}", self.max_tokens)
    }

    fn header(&self, side: usize, binary: &str) -> Header {
        Header::new(self.digests[side], self.names[side].clone(), binary, self.settings())
    }

    /// The same for both, and for no other pair: what one was asked, no other was.
    fn settings(&self) -> Settings {
        let [served, candidate] = self.digests;
        Settings {
            data: format!("answers of {served}, beside {candidate}"),
            num_items: None,
            weights: "as served".to_owned(),
            keys_and_values: "as served".to_owned(),
            max_tokens: self.max_tokens,
            against: None,
            ran_on: None,
        }
    }
}

/// With the line's end.
fn line_bytes(value: &impl Serialize) -> u64 {
    serde_json::to_vec(value).map_or(0, |line| line.len() as u64 + 1)
}

fn private_folder(folder: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(folder)
}

/// Of all pairs. What is no folder of a pair is somebody else's.
fn stored_bytes(folder: &Path) -> io::Result<u64> {
    let mut bytes = 0;
    for pair in fs::read_dir(folder)? {
        let pair = pair?.path();
        for file in pair.is_dir().then(|| fs::read_dir(&pair)).transpose()?.into_iter().flatten() {
            bytes += file?.metadata()?.len();
        }
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::evaluation::scored::{Answer, Continuation, Outcome, TokenScore, TokenScores};
    use crate::evaluation::{Comparison, Options, Resampling, score_file};

    fn pair(candidate: u8) -> Pair {
        let digest = |byte: u8| format!("sha256:{}", format!("{byte:02x}").repeat(32)).parse().unwrap();
        Pair { digests: [digest(1), digest(candidate)], names: ["old".into(), "new".into()], max_tokens: 8 }
    }

    fn scored(id: &str, logprob: f32) -> Scored {
        let mut tokens = TokenScores::default();
        tokens.push(5, "hi".into(), Some(TokenScore { logprob, rank: 1, entropy: 0.5 }));
        let answer = Answer::new(&[5], vec!["hi".into()], &[logprob]);
        let reference = Continuation { bytes: 2, tokens };
        Scored { id: id.into(), outcome: Outcome::Prompt { reference, wanted: "hi".into(), answer } }
    }

    fn both(id: &str) -> [Scored; 2] {
        [scored(id, -1.0), scored(id, -2.0)]
    }

    fn compare(folder: &Path) -> Comparison {
        let options = Options {
            rank_by: None,
            pair: None,
            steps: Vec::new(),
            resampling: Resampling { resamples: 100, seed: 0 },
            most_listed: 3,
        };
        Comparison::of(&score_file::find(&[folder.to_owned()]).unwrap(), &options).unwrap()
    }

    #[test]
    fn what_is_kept_of_a_pair_is_compared_as_any_other_scores_and_goes_on_after_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        for ids in [["a", "b"], ["c", "d"]] {
            let store = PairStore::open(&folder.path().join("kept"), 1 << 20, "test").unwrap();
            for id in ids {
                assert_eq!(store.keep(&pair(2), &both(id)).unwrap(), Kept::Whole);
            }
            assert_eq!(store.keep(&pair(3), &both(ids[0])).unwrap(), Kept::Whole, "another pair");
        }
        let comparison = compare(&folder.path().join("kept").join(pair(2).folder()));
        assert_eq!((comparison.num_compared, comparison.num_items), (4, None));
        assert_eq!(comparison.items(), "4 items");
        assert_eq!(comparison.ranking[0].name, "old");
    }

    #[test]
    fn what_is_kept_is_its_owners_alone_and_never_exceeds_its_bound() {
        let folder = tempfile::tempdir().unwrap();
        let kept = folder.path().join("kept");
        let bytes = || stored_bytes(&kept).unwrap();
        let store = PairStore::open(&kept, 4096, "test").unwrap();
        let whole = (0..100).take_while(|id| store.keep(&pair(2), &both(&id.to_string())).unwrap() == Kept::Whole);
        let whole = whole.count();
        assert!((2..100).contains(&whole) && bytes() <= 4096, "{whole} items in {} bytes", bytes());
        drop(store);
        let again = PairStore::open(&kept, 4096, "test").unwrap();
        assert_eq!(again.keep(&pair(2), &both("x")).unwrap(), Kept::Nothing, "what is there counts");
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        let inside = kept.join(pair(2).folder());
        assert_eq!((mode(&kept), mode(&inside)), (0o700, 0o700));
        for file in score_file::find(&[inside]).unwrap() {
            assert_eq!(mode(&file), 0o600);
        }
    }
}
