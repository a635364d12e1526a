//! docs/quota-contract.md says which test keeps which clause; these tests exist.

use std::collections::BTreeSet;

use super::source::rust_sources;
use super::{assert_none, root};

const CLAUSES: usize = 15;

/// The names of functions that are marked as tests.
fn tests_of_the_tree() -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for source in rust_sources(&root()) {
        let mut is_marked = false;
        for line in source.text.lines().map(str::trim) {
            if line.starts_with("#[test]") || line.starts_with("#[tokio::test") {
                is_marked = true;
            } else if let Some(rest) = line.strip_prefix("async fn ").or_else(|| line.strip_prefix("fn ")) {
                if is_marked {
                    names.extend(rest.split('(').next().map(str::to_owned));
                }
                is_marked = false;
            }
        }
    }
    names
}

#[test]
fn every_clause_of_the_quota_contract_names_tests_that_exist() {
    let text = std::fs::read_to_string(root().join("docs/quota-contract.md")).expect("the contract is documented");
    let known = tests_of_the_tree();
    let mut breaches = Vec::new();
    let mut clauses = BTreeSet::new();
    for row in text.lines().filter_map(|line| line.strip_prefix("| ")) {
        let cells: Vec<&str> = row.split(" | ").collect();
        let Some(clause) = cells[0].split(' ').next().and_then(|number| number.parse::<usize>().ok()) else { continue };
        clauses.insert(clause);
        let named: Vec<&str> = cells[2..].iter().flat_map(|cell| cell.split('`').skip(1).step_by(2)).collect();
        if named.is_empty() {
            breaches.push(format!("{row}: names no test"));
        }
        breaches.extend(named.iter().filter(|name| !known.contains(**name)).map(|name| format!("{clause}: {name}")));
    }
    assert_eq!(clauses, (1..=CLAUSES).collect(), "each clause has a row");
    assert_none("tests of the contract that do not exist", &breaches);
}
