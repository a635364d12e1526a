//! Every crate in the tree carries a licence that deny.toml allows, and none is banned there. `cargo deny` in `.ci/full`
//! goes further (advisories, sources, other platforms); this needs neither network nor another tool.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::process::Command;

use serde::Deserialize;

#[derive(Deserialize)]
struct Deny {
    licenses: Licenses,
    bans: Bans,
}

#[derive(Deserialize)]
struct Licenses {
    allow: HashSet<String>,
    exceptions: Vec<Exception>,
}

#[derive(Deserialize)]
struct Exception {
    #[serde(rename = "crate")]
    name: String,
    allow: HashSet<String>,
}

#[derive(Deserialize)]
struct Bans {
    deny: Vec<Ban>,
}

#[derive(Deserialize)]
struct Ban {
    name: String,
    reason: String,
}

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
    resolve: Resolve,
}

#[derive(Deserialize)]
struct Package {
    id: String,
    name: String,
    version: String,
    license: Option<String>,
}

#[derive(Deserialize)]
struct Resolve {
    nodes: Vec<Node>,
}

#[derive(Deserialize)]
struct Node {
    id: String,
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("server/ lies in the workspace")
}

fn deny() -> Deny {
    let text = std::fs::read_to_string(root().join("deny.toml")).expect("deny.toml is part of the repository");
    toml::from_str(&text).expect("deny.toml is valid")
}

/// The crates that are really built on this platform.
fn packages() -> Vec<Package> {
    const PLATFORM: &str =
        if cfg!(target_arch = "aarch64") { "aarch64-unknown-linux-gnu" } else { "x86_64-unknown-linux-gnu" };
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--locked", "--offline", "--filter-platform", PLATFORM])
        .current_dir(root())
        .output()
        .expect("cargo runs this test, so it exists");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Metadata = serde_json::from_slice(&output.stdout).expect("cargo prints JSON");
    let mut packages: HashMap<_, _> =
        metadata.packages.into_iter().map(|package| (package.id.clone(), package)).collect();
    let packages: Vec<_> = metadata.resolve.nodes.iter().filter_map(|node| packages.remove(&node.id)).collect();
    assert!(packages.len() > 100, "only {} crates were found", packages.len());
    packages
}

/// An SPDX expression: `OR` binds weaker than `AND`, `/` is the old way to write `OR`, `WITH` belongs to its licence.
fn is_allowed(expression: &str, allowed: &HashSet<String>) -> bool {
    let spaced = expression.replace('(', " ( ").replace(')', " ) ").replace('/', " OR ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let (value, rest) = any_of(&words, allowed);
    assert!(rest.is_empty(), "cannot read the licence expression `{expression}`");
    value
}

fn any_of<'w, 'a>(words: &'w [&'a str], allowed: &HashSet<String>) -> (bool, &'w [&'a str]) {
    let (mut value, mut rest) = all_of(words, allowed);
    while let ["OR", tail @ ..] = rest {
        let (next, tail) = all_of(tail, allowed);
        (value, rest) = (value || next, tail);
    }
    (value, rest)
}

fn all_of<'w, 'a>(words: &'w [&'a str], allowed: &HashSet<String>) -> (bool, &'w [&'a str]) {
    let (mut value, mut rest) = one(words, allowed);
    while let ["AND", tail @ ..] = rest {
        let (next, tail) = one(tail, allowed);
        (value, rest) = (value && next, tail);
    }
    (value, rest)
}

fn one<'w, 'a>(words: &'w [&'a str], allowed: &HashSet<String>) -> (bool, &'w [&'a str]) {
    match words {
        ["(", inner @ ..] => match any_of(inner, allowed) {
            (value, [")", rest @ ..]) => (value, rest),
            (_, rest) => (false, rest),
        },
        [licence, "WITH", exception, rest @ ..] => (allowed.contains(&format!("{licence} WITH {exception}")), rest),
        [licence, rest @ ..] => (allowed.contains(*licence), rest),
        [] => (false, words),
    }
}

#[test]
fn every_crate_has_an_allowed_licence() {
    let licenses = deny().licenses;
    let is_fine = |package: &Package| {
        let exception = licenses.exceptions.iter().find(|exception| exception.name == package.name);
        let allowed = exception.map_or(&licenses.allow, |exception| &exception.allow);
        package.license.as_deref().is_some_and(|license| is_allowed(license, allowed))
    };
    let refused: Vec<String> = packages()
        .iter()
        .filter(|package| !is_fine(package))
        .map(|package| format!("{} {}: {:?}", package.name, package.version, package.license))
        .collect();
    assert!(refused.is_empty(), "not allowed by deny.toml:\n{}", refused.join("\n"));
}

#[test]
fn no_exception_outlives_its_crate() {
    let packages = packages();
    for exception in deny().licenses.exceptions {
        assert!(packages.iter().any(|package| package.name == exception.name), "{} is gone", exception.name);
    }
}

#[test]
fn no_banned_crate_is_in_the_tree() {
    let packages = packages();
    for ban in deny().bans.deny {
        let found = packages.iter().find(|package| package.name == ban.name);
        assert!(found.is_none(), "{} is banned: {}", ban.name, ban.reason);
    }
}

#[test]
fn the_tree_stays_lean() {
    const MOST_CRATES: usize = 352;
    let crates = packages().len();
    assert!(crates <= MOST_CRATES, "{crates} crates; look for a feature to switch off before raising this");
}

#[test]
fn licence_expressions_are_read_as_spdx_reads_them() {
    let allowed = HashSet::from(["MIT".to_owned(), "Zlib".into(), "Apache-2.0 WITH LLVM-exception".into()]);
    for good in ["MIT", "MIT OR GPL-3.0", "GPL-3.0/MIT", "(GPL-3.0 OR Zlib) AND MIT", "Apache-2.0 WITH LLVM-exception"]
    {
        assert!(is_allowed(good, &allowed), "{good}");
    }
    for bad in
        ["GPL-3.0", "MIT AND GPL-3.0", "GPL-3.0 OR MIT AND AGPL-3.0", "Apache-2.0", "(MIT AND GPL-3.0) OR LGPL-2.1"]
    {
        assert!(!is_allowed(bad, &allowed), "{bad}");
    }
}
