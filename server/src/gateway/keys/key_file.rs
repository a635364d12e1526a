//! The fixed keys of `--api-key-file`: one a line, `#` comments, optionally `name:` before the key.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::secret::KeyDigest;
use super::{KeyFileError, io_error};
use crate::gateway::account::{AccountPath, PathError, is_name};

/// Anyone who guesses a key is in; these are often typed by people.
const MIN_KEY_CHARS: usize = 16;
/// Each look-up compares with all of them, so that its time tells nothing.
const MAX_KEYS: usize = 1_000;
const MAX_FILE_BYTES: u64 = 1 << 20;

/// A key known by its digest only.
#[derive(Debug, Clone)]
pub struct StaticKey {
    pub(super) digest: KeyDigest,
    /// Directly below the root; it need not have been made.
    pub(super) account: AccountPath,
}

/// Reads the keys of `path`, each for the account of its name. Only digests are kept.
///
/// Refuses a file that other users may read, a key that is short or could not stand in an HTTP header, a name or a key
/// that comes twice, and a file without keys.
pub fn read_key_file(path: &Path) -> Result<Vec<StaticKey>, KeyFileError> {
    let file = File::open(path).map_err(io_error("open", path))?;
    let mode = file.metadata().map_err(io_error("look at", path))?.mode() & 0o777;
    if mode & 0o004 != 0 {
        return Err(KeyFileError::Readable { path: path.to_owned(), mode });
    }
    let mut text = String::new();
    file.take(MAX_FILE_BYTES).read_to_string(&mut text).map_err(io_error("read", path))?;
    let mut keys: Vec<StaticKey> = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let number = index + 1;
        let refuse = |reason: String| KeyFileError::Line { path: path.to_owned(), line: number, reason };
        let Some(key) = parse_line(line, number).map_err(refuse)? else { continue };
        if keys.len() == MAX_KEYS {
            return Err(refuse(format!("more than {MAX_KEYS} keys: use `passerelle key create` for so many")));
        }
        if keys.iter().any(|earlier| earlier.account == key.account) {
            return Err(refuse(format!("the name '{}' comes twice", key.account)));
        }
        if keys.iter().any(|earlier| earlier.digest.matches(&key.digest)) {
            return Err(refuse("this key comes twice".to_owned()));
        }
        keys.push(key);
    }
    match keys.is_empty() {
        true => Err(KeyFileError::Empty { path: path.to_owned() }),
        false => Ok(keys),
    }
}

/// `None` for an empty line or a comment. A bearer token has no ':', so the first one ends a name.
fn parse_line(line: &str, number: usize) -> Result<Option<StaticKey>, String> {
    let line = line.trim();
    if line.is_empty() || line.starts_with('#') {
        return Ok(None);
    }
    let (name, key) = match line.split_once(':') {
        Some((name, key)) => (name.trim().to_owned(), key.trim()),
        None => (format!("line-{number}"), line),
    };
    if !is_name(&name) {
        return Err(format!("'{name}' is no name: use letters, digits, '.', '_' or '-'"));
    }
    if key.len() < MIN_KEY_CHARS {
        return Err(format!("the key has {} characters, at least {MIN_KEY_CHARS} are needed", key.len()));
    }
    if !key.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._~+/=".contains(&byte)) {
        return Err("a key is made of letters, digits and -._~+/= (RFC 6750)".to_owned());
    }
    let account = name.parse().map_err(|error: PathError| error.to_string())?;
    Ok(Some(StaticKey { digest: KeyDigest::of(key), account }))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn read(text: &str, mode: u32) -> Result<Vec<StaticKey>, String> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        std::fs::set_permissions(file.path(), PermissionsExt::from_mode(mode)).unwrap();
        read_key_file(file.path()).map_err(|error| error.to_string())
    }

    #[test]
    fn keys_are_read_with_names_comments_and_empty_lines() {
        let keys = read("# staff\nalice: correct-horse-battery\n\n  0123456789abcdef  \n", 0o600).unwrap();
        let names: Vec<_> = keys.iter().map(|key| key.account.as_str()).collect();
        assert_eq!(names, ["alice", "line-4"]);
        assert!(keys[0].digest.matches(&KeyDigest::of("correct-horse-battery")));
        assert!(!format!("{keys:?}").contains("correct-horse"));
    }

    #[test]
    fn a_file_that_others_may_read_is_refused_with_what_to_do() {
        let error = read("0123456789abcdef\n", 0o644).unwrap_err();
        assert!(error.contains("644") && error.contains("chmod 600"), "{error}");
        assert!(read("0123456789abcdef\n", 0o640).is_ok(), "a group may be let in on purpose");
    }

    #[test]
    fn a_bad_line_is_named_and_its_key_is_not_quoted() {
        let cases = [
            ("# x\nshort-secret\n", "line 2: the key has 12 characters, at least 16"),
            ("with space in the key\n", "line 1: a key is made of letters"),
            ("bad name!: 0123456789abcdef\n", "line 1: 'bad name!' is no name"),
            ("a: 0123456789abcdef\na: 0123456789abcdeg\n", "line 2: the name 'a' comes twice"),
            ("a: 0123456789abcdef\nb: 0123456789abcdef\n", "line 2: this key comes twice"),
            ("# nothing\n", "no key in it"),
        ];
        for (text, expected) in cases {
            let error = read(text, 0o600).unwrap_err();
            assert!(error.contains(expected), "{error}");
            assert!(!error.contains("short-secret") && !error.contains("0123456789"), "{error}");
        }
    }
}
