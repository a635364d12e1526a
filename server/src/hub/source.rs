//! How a model's source is written.

use std::fmt;
use std::path::{Path, PathBuf};

use super::HubError;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    Directory(PathBuf),
    Gguf(PathBuf),
    Hub(HubId),
}

/// `org/name` on the hub, at a branch, tag or commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubId {
    repo: String,
    revision: Option<String>,
}

impl Source {
    /// A path that exists or looks like one is a path; anything else of the form `org/name[@revision]` is a hub id.
    pub fn parse(written: &str) -> Result<Self, HubError> {
        let path = Path::new(written);
        if written.is_empty() {
            return Err(wrong(written, "it is empty"));
        }
        if is_gguf(path) {
            return Ok(Self::Gguf(path.to_owned()));
        }
        if path.is_file() {
            return Err(wrong(written, "it is a file; give the folder that holds it"));
        }
        let looks_like_path = path.is_absolute() || written.starts_with('.') || written.ends_with('/');
        if looks_like_path || path.is_dir() {
            return Ok(Self::Directory(path.to_owned()));
        }
        HubId::parse(written).map(Self::Hub)
    }
}

/// By its name, in capitals too.
pub fn is_gguf(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf"))
}

impl HubId {
    pub fn parse(written: &str) -> Result<Self, HubError> {
        let (repo, revision) = match written.split_once('@') {
            Some((repo, revision)) => (repo, Some(revision)),
            None => (written, None),
        };
        let part = |part: &str| {
            let allowed = part.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c));
            allowed && part.starts_with(|c: char| c.is_ascii_alphanumeric()) && !part.contains("..")
        };
        if repo.split('/').count() != 2 || !repo.split('/').all(part) {
            return Err(wrong(written, "no directory has this name, and it does not have the form org/name"));
        }
        // A revision becomes a path in the cache, so each of its parts must be a plain name.
        if revision.is_some_and(|revision| !revision.split('/').all(part)) {
            return Err(wrong(written, "the revision is not a branch, tag or commit"));
        }
        Ok(Self { repo: repo.to_owned(), revision: revision.map(str::to_owned) })
    }

    /// `org/name`.
    pub fn repo(&self) -> &str {
        &self.repo
    }

    pub fn revision(&self) -> &str {
        self.revision.as_deref().unwrap_or("main")
    }

    /// What follows `hf download`.
    pub(super) fn download_arguments(&self) -> String {
        match &self.revision {
            Some(revision) => format!("{} --revision {revision}", self.repo),
            None => self.repo.clone(),
        }
    }
}

impl fmt::Display for HubId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.revision {
            Some(revision) => write!(f, "{}@{revision}", self.repo),
            None => f.write_str(&self.repo),
        }
    }
}

fn wrong(written: &str, problem: &str) -> HubError {
    HubError::Source { written: written.to_owned(), problem: problem.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hub(repo: &str, revision: Option<&str>) -> Source {
        Source::Hub(HubId { repo: repo.into(), revision: revision.map(Into::into) })
    }

    #[test]
    fn every_kind_of_source_is_recognised() {
        let cases = [
            ("org/name", hub("org/name", None)),
            ("org/name@v1.0", hub("org/name", Some("v1.0"))),
            ("org/name@refs/pr/3", hub("org/name", Some("refs/pr/3"))),
            ("/models/x", Source::Directory("/models/x".into())),
            ("./models/x=1@2", Source::Directory("./models/x=1@2".into())),
            ("models/x.Q4.gguf", Source::Gguf("models/x.Q4.gguf".into())),
            ("models/X.GGUF", Source::Gguf("models/X.GGUF".into())),
        ];
        for (written, source) in cases {
            assert_eq!(Source::parse(written).unwrap(), source, "{written}");
        }
    }

    #[test]
    fn a_file_of_a_checkpoint_is_refused_as_a_file() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let error = Source::parse(file.path().to_str().unwrap()).expect_err("no folder").to_string();
        assert!(error.contains("it is a file; give the folder that holds it"), "{error}");
    }

    #[test]
    fn what_is_no_source_is_refused_with_what_to_write() {
        for written in ["", "b", "b/c/d", "o/n@../x", "o/n@", "o n/x"] {
            let error = Source::parse(written).expect_err(written).to_string();
            assert!(error.contains("NAME=SOURCE"), "{written}: {error}");
        }
    }
}
