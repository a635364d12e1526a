//! How a model's source is written.

use std::fmt;
use std::path::{Path, PathBuf};

use super::HubError;

const MAX_NAME_BYTES: usize = 128;

/// A model as `--model` names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceSpec {
    /// The name that requests use.
    pub name: String,
    pub source: Source,
}

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

impl SourceSpec {
    /// `NAME=SOURCE`; a bare SOURCE is named after its last part.
    pub fn parse(written: &str) -> Result<Self, HubError> {
        let (name, source) = match written.split_once('=') {
            Some((name, source)) => (name.to_owned(), Source::parse(source)?),
            None => {
                let source = Source::parse(written)?;
                (source.default_name(), source)
            }
        };
        let allowed = |c: char| c.is_ascii_alphanumeric() || "._:/-".contains(c);
        if name.is_empty() || name.len() > MAX_NAME_BYTES || !name.chars().all(allowed) {
            let problem =
                format!("the name {name:?} is not made of 1 to {MAX_NAME_BYTES} letters, digits and . _ : / -");
            return Err(wrong(written, &problem));
        }
        Ok(Self { name, source })
    }
}

impl Source {
    /// A path that exists or looks like one is a path; anything else of the form `org/name[@revision]` is a hub id.
    pub fn parse(written: &str) -> Result<Self, HubError> {
        let path = Path::new(written);
        if written.is_empty() {
            return Err(wrong(written, "it is empty"));
        }
        if path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf")) {
            return Ok(Self::Gguf(path.to_owned()));
        }
        let looks_like_path = path.is_absolute() || written.starts_with('.') || written.ends_with('/');
        if looks_like_path || path.is_dir() {
            return Ok(Self::Directory(path.to_owned()));
        }
        HubId::parse(written).map(Self::Hub)
    }

    fn default_name(&self) -> String {
        match self {
            Self::Directory(path) => path.file_name().unwrap_or_default().to_string_lossy().into_owned(),
            Self::Gguf(path) => path.file_stem().unwrap_or_default().to_string_lossy().into_owned(),
            Self::Hub(id) => id.repo.rsplit('/').next().unwrap_or_default().to_owned(),
        }
    }
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
            ("small=org/name", "small", hub("org/name", None)),
            ("small=org/name@v1.0", "small", hub("org/name", Some("v1.0"))),
            ("org/Name-1B", "Name-1B", hub("org/Name-1B", None)),
            ("a=org/name@refs/pr/3", "a", hub("org/name", Some("refs/pr/3"))),
            ("a=/models/x", "a", Source::Directory("/models/x".into())),
            ("./models/x", "x", Source::Directory("./models/x".into())),
            ("a=models/x.Q4.gguf", "a", Source::Gguf("models/x.Q4.gguf".into())),
        ];
        for (written, name, source) in cases {
            assert_eq!(SourceSpec::parse(written).unwrap(), SourceSpec { name: name.into(), source }, "{written}");
        }
    }

    #[test]
    fn what_is_no_source_is_refused_with_what_to_write() {
        for written in
            ["", "=org/name", "a=", "na me=org/name", "a=b", "a=b/c/d", "a=../..x/y@z", "a=o/n@../x", "a=o/n@"]
        {
            match SourceSpec::parse(written) {
                Err(error) => assert!(error.to_string().contains("NAME=SOURCE"), "{written}: {error}"),
                Ok(spec) => assert!(matches!(spec.source, Source::Directory(_)), "{written} became {spec:?}"),
            }
        }
    }
}
