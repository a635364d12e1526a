//! docs/quota-contract.md says which test keeps which clause; these tests exist.

use std::collections::BTreeSet;

use super::kept_by::runs;
use super::source::rust_sources;
use super::{assert_none, root};

const CLAUSES: usize = 15;
/// Named beside tests that every run includes, and so long that `.ci/full` alone runs them.
const ALSO_BY_THE_FULL_RUN: [&str; 1] = ["two_hundred_kills_bill_nothing_twice"];

#[test]
fn every_clause_of_the_quota_contract_names_tests_that_exist() {
    let text = std::fs::read_to_string(root().join("docs/quota-contract.md")).expect("the contract is documented");
    let sources = rust_sources(&root());
    let mut breaches = Vec::new();
    let mut clauses = BTreeSet::new();
    for row in text.lines().filter_map(|line| line.strip_prefix("| ")) {
        let cells: Vec<&str> = row.split(" | ").collect();
        let Some(clause) = cells[0].split(' ').next().and_then(|number| number.parse::<usize>().ok()) else { continue };
        clauses.insert(clause);
        let named: Vec<&str> = cells[2..].iter().flat_map(|cell| cell.split('`').skip(1).step_by(2)).collect();
        let is_run = |name: &&str| sources.iter().any(|source| runs(&source.text, name));
        let (run, idle): (Vec<&str>, Vec<&str>) = named.into_iter().partition(is_run);
        if run.is_empty() {
            breaches.push(format!("{row}: names no test"));
        }
        let idle = idle.iter().filter(|name| !ALSO_BY_THE_FULL_RUN.contains(name));
        breaches.extend(idle.map(|name| format!("{clause}: {name}")));
    }
    assert_eq!(clauses, (1..=CLAUSES).collect(), "each clause has a row");
    assert_none("tests of the contract that do not exist, or that no run of the tests includes", &breaches);
}
