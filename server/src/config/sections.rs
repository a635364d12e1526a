//! Under which header of a file a key is known, which only the types that read it can tell.

use serde::de::DeserializeOwned;

/// A key that nobody knows.
const NOBODYS: &str = "nobodys_key";

/// The headers under which what reads `T` knows `key`, as they are written.
pub(super) fn knowing<T: DeserializeOwned>(key: &str) -> Vec<String> {
    let is_bare = key.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    let sections = if is_bare { sections::<T>() } else { Vec::new() };
    let headers = sections.iter().filter_map(|section| {
        let mut written = [format!("[{section}]"), format!("[[{section}]]")].into_iter();
        // Under a table of any keys, nobody's is known as well.
        written.find(|header| is_known::<T>(header, key) && !is_known::<T>(header, NOBODYS))
    });
    headers.collect()
}

/// Whether `[[name]]` begins one of several tables, though more may have to be written in each.
pub(super) fn is_list<T: DeserializeOwned>(name: &str) -> bool {
    may_be::<T>(&format!("[[{name}]]\n"))
}

/// Whether `[name]` begins the one table of this name.
pub(super) fn is_table<T: DeserializeOwned>(name: &str) -> bool {
    may_be::<T>(&format!("[{name}]\n"))
}

fn may_be<T: DeserializeOwned>(header: &str) -> bool {
    toml::from_str::<T>(header).err().is_none_or(|error| error.message().starts_with("missing field"))
}

/// All names at the top of a file, which serde lists where it meets another one.
fn sections<T: DeserializeOwned>() -> Vec<String> {
    let Err(error) = toml::from_str::<T>(&format!("{NOBODYS} = 0")) else { return Vec::new() };
    let names = error.message().split('`').skip(1).step_by(2);
    names.filter(|name| *name != NOBODYS).map(str::to_owned).collect()
}

/// A known key may have a value of another kind, and other keys may be missing.
fn is_known<T: DeserializeOwned>(header: &str, key: &str) -> bool {
    let Err(error) = toml::from_str::<T>(&format!("{header}\n{key} = 0\n")) else { return true };
    let is_of_key = error.span().is_some_and(|span| span.start > header.len());
    !error.message().starts_with("unknown field") && (is_of_key || error.message().starts_with("missing field"))
}
