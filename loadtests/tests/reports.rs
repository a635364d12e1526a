//! Figures in the documentation are those of the reports that are kept here.
//!
//! A figure names its source right behind it, in a comment: the file below `loadtests/` and the place in it, as in
//! `11.8<!-- results/x.json#/report/figures/total/ttft_ms/p99 -->`; of a report in prose, the file alone, or with what
//! stands in the figure's line, as in `1.58<!-- results/x.md#135M, 16 users -->`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use passerelle_loadtests::scenario::BUILTIN;
use serde_json::Value;

const MARK: &str = "<!-- results/";

fn here() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The comments of `text` that name a source, with the number before each.
fn figures(text: &str) -> Vec<(String, String)> {
    let mut figures = Vec::new();
    for (at, _) in text.match_indices(MARK) {
        let source = text[at + "<!-- ".len()..].split(" -->").next().unwrap_or_default();
        let before = text[..at].trim_end();
        let number: String = before.chars().rev().take_while(|character| is_part_of_number(*character)).collect();
        figures.push((number.chars().rev().collect(), source.to_owned()));
    }
    figures
}

/// What is wrong with a figure, if anything.
fn wrong(number: &str, source: &str) -> Option<String> {
    let (file, place) = source.split_once('#').map_or((source, None), |(file, place)| (file, Some(place)));
    let Some(pointer) = place.filter(|_| !file.ends_with(".md")) else { return wrong_in_prose(number, file, place) };
    let report = std::fs::read_to_string(here().join(file)).ok();
    let report: Option<Value> = report.and_then(|text| serde_json::from_str(&text).ok());
    let value = report.as_ref().and_then(|report| report.pointer(pointer)?.as_f64());
    let Some(value) = value else { return Some(format!("{source} is not a number of a report")) };
    let expected = rounded(value, number);
    (number != expected).then(|| format!("{number} should be {expected}: {source}"))
}

/// Some number of the report is this one, or rounds to it: in any line, or in those that hold the label.
fn wrong_in_prose(number: &str, file: &str, label: Option<&str>) -> Option<String> {
    let Ok(report) = std::fs::read_to_string(here().join(file)) else { return Some(format!("{file} is no report")) };
    let label = label.unwrap_or_default();
    let lines = report.lines().filter(|line| line.contains(label));
    let mut numbers = lines.flat_map(|line| line.split(|character| !is_part_of_number(character)));
    let is_there = numbers.any(|word| word.parse::<f64>().is_ok_and(|value| rounded(value, number) == number));
    (!is_there).then(|| format!("{number} is not in {file}, in a line with `{label}`"))
}

fn is_part_of_number(character: char) -> bool {
    character.is_ascii_digit() || character == '.'
}

/// With as many decimals as `number` has.
fn rounded(value: f64, number: &str) -> String {
    let decimals = number.split_once('.').map_or(0, |(_, decimals)| decimals.len());
    format!("{value:.decimals$}")
}

#[test]
fn a_speed_in_the_documentation_names_its_report() {
    let path = here().parent().expect("the workspace").join("README.md");
    let text = std::fs::read_to_string(path).expect("the documentation is there");
    let words: Vec<&str> = text.split_whitespace().collect();
    let bare = |index: usize| words[index - 1].parse::<f64>().is_ok();
    let is_speed =
        |index: usize| matches!(words[index..], ["tokens", "per", "second", ..] | ["tokens/s" | "tok/s", ..]);
    let unnamed: Vec<String> = (1..words.len())
        .filter(|at| is_speed(*at) && bare(*at))
        .map(|at| words[at - 1..].iter().take(4).copied().collect::<Vec<_>>().join(" "))
        .collect();
    assert!(unnamed.is_empty(), "without a report behind the number: {unnamed:#?}");
}

/// The cells of a table of results in which a number has no source behind it.
fn unsourced_cells(table: &str) -> Vec<String> {
    const OF_THE_ROW: [&str; 3] = ["", "machine", "shape"];
    let cells =
        |line: &str| -> Vec<String> { line.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect() };
    let mut rows = table.lines().map(cells);
    let head = rows.next().unwrap_or_default();
    let results = rows.flat_map(|row| head.iter().cloned().zip(row).collect::<Vec<_>>());
    let results = results.filter(|(column, _)| !OF_THE_ROW.contains(&column.as_str())).map(|(_, cell)| cell);
    results.filter(|cell| !cell.starts_with('[') && !is_sourced(cell)).collect()
}

/// Whether every number of a cell has its source behind it. What stands before a colon says what was measured.
fn is_sourced(cell: &str) -> bool {
    let cell = cell.split_once(": ").map_or(cell, |(_, result)| result);
    let mut texts: Vec<&str> =
        cell.split(MARK).map(|piece| piece.split_once(" -->").map_or(piece, |(_, text)| text)).collect();
    let last = texts.pop().unwrap_or_default();
    let has_number = |text: &str| text.contains(|character: char| character.is_ascii_digit());
    !has_number(last) && !texts.iter().any(|text| has_number(text.trim_end_matches(is_part_of_number)))
}

#[test]
fn a_result_in_a_table_of_the_documentation_names_its_report() {
    let path = here().parent().expect("the workspace").join("README.md");
    let text = std::fs::read_to_string(path).expect("the documentation is there");
    let section = text.split("\n## ").find(|section| section.starts_with("What was measured\n"));
    let tables = section.expect("the README has it").split("\n\n").filter(|part| part.starts_with('|'));
    let tables: Vec<&str> = tables.collect();
    assert!(!tables.is_empty(), "results stand in tables");
    let unsourced: Vec<String> = tables.into_iter().flat_map(unsourced_cells).collect();
    assert!(unsourced.is_empty(), "without a report behind a number: {unsourced:#?}");
    let table = "| shape | users |\n| --- | --- |\n| 0.6B | 1.5<!-- results/x.md --> to 1.7 |\n\
                 | 8B | 16: 3<!-- results/x.md --> |";
    assert_eq!(unsourced_cells(table), ["1.5<!-- results/x.md --> to 1.7"]);
}

#[test]
fn figures_in_the_documentation_are_those_of_the_reports() {
    let documents = [here().join("README.md"), here().parent().expect("the workspace").join("README.md")];
    let texts = documents.map(|path| std::fs::read_to_string(path).expect("the documentation is there"));
    let all: Vec<(String, String)> = texts.iter().flat_map(|text| figures(text)).collect();
    assert!(!all.is_empty(), "this crate's README shows figures");
    let breaches: Vec<String> = all.iter().filter_map(|(number, source)| wrong(number, source)).collect();
    assert!(breaches.is_empty(), "{breaches:#?}");
}

#[test]
fn a_figure_that_differs_from_its_report_is_found() {
    let source = reports().first().map(|path| path.file_name().expect("a file").to_string_lossy().into_owned());
    let source = source.expect("reports are kept");
    assert!(wrong("1", &format!("results/{source}#/about/none")).is_some());
    assert!(wrong("1", "results/none.md").is_some());
    let decoded = "results/2026-11-26-gpu-h200.json#/suite/shapes/1/sweep/0/decode_tokens_per_s";
    assert_eq!(["207", "207.1", "208", ""].map(|number| wrong(number, decoded).is_none()), [true, true, false, false]);
    let told = "results/2026-11-28-in-the-order-of-addresses.md";
    assert_eq!(["1.58", "1.59"].map(|number| wrong(number, told).is_none()), [true, false]);
    let row = format!("{told}#135M, 16 users");
    assert_eq!(["1.58", "1.50"].map(|number| wrong(number, &row).is_none()), [true, false]);
    assert!(wrong("1.50", told).is_none() && wrong("1.58", &format!("{told}#no such row")).is_some());
    let text = "p99 11.8<!-- results/x.json#/a/b --> ms";
    assert_eq!(figures(text), [("11.8".to_owned(), "results/x.json#/a/b".to_owned())]);
}

#[test]
fn every_report_says_where_it_comes_from() {
    for path in reports() {
        let report: Value = serde_json::from_str(&std::fs::read_to_string(&path).expect("it is text")).expect("JSON");
        for field in ["date", "machine", "commit", "command"] {
            let value = report["about"][field].as_str().unwrap_or_default();
            assert!(!value.is_empty(), "{}: {field}", path.display());
        }
        assert!(path.with_extension("md").exists(), "{} has no table", path.display());
    }
}

/// A scenario by its name, a check and a drill by its row in the README.
#[test]
fn every_scenario_check_and_drill_has_a_report() {
    let kept: BTreeSet<String> = reports().iter().filter_map(|path| scenario_of(path)).collect();
    let text = std::fs::read_to_string(here().join("README.md")).expect("the documentation is there");
    let rows = |heading: &str, kind: &str| -> Vec<String> {
        let section = text.split("\n## ").find(|section| section.starts_with(heading)).expect("the README has it");
        let names = section.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next());
        names.map(|name| format!("{kind}-{name}")).collect()
    };
    let (checks, drills) = (rows("Checks\n", "check"), rows("Drills\n", "drill"));
    assert!(checks.len() > 5 && drills.len() > 1, "{checks:?} {drills:?}");
    let scenarios = BUILTIN.iter().map(|(name, _)| (*name).to_owned());
    let without: Vec<String> = scenarios.chain(checks).chain(drills).filter(|name| !kept.contains(name)).collect();
    assert!(without.is_empty(), "without a report: {without:?}");
}

/// Of each check and drill the latest report counts.
#[test]
fn the_readme_names_what_falls_short_and_nothing_else() {
    let mut paths = reports();
    paths.sort();
    let mut latest = BTreeMap::new();
    for path in paths {
        let report: Value = serde_json::from_str(&std::fs::read_to_string(&path).expect("it is text")).expect("JSON");
        if let (Some(name), Some(holds)) = (report["about"]["scenario"].as_str(), report["verdict"]["holds"].as_bool())
        {
            latest.insert(name.to_owned(), holds);
        }
    }
    let short = latest.iter().filter(|(_, holds)| !**holds);
    let short: BTreeSet<&str> =
        short.map(|(name, _)| name.trim_start_matches("check-").trim_start_matches("drill-")).collect();
    let text = std::fs::read_to_string(here().join("README.md")).expect("the documentation is there");
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let told = text.split_once("Of the latest of the checks and drills, ").map(|(_, rest)| rest);
    let told = told.and_then(|rest| rest.split_once(" fall short")).expect("the README says which fall short").0;
    let named: BTreeSet<&str> = told.split('`').skip(1).step_by(2).collect();
    assert_eq!(named, short, "in the README, and by the latest reports");
}

fn scenario_of(report: &Path) -> Option<String> {
    let report: Value = serde_json::from_str(&std::fs::read_to_string(report).ok()?).ok()?;
    report["about"]["scenario"].as_str().map(str::to_owned)
}

fn reports() -> Vec<PathBuf> {
    let entries = std::fs::read_dir(here().join("results")).expect("reports are kept in results/");
    let paths = entries.map(|entry| entry.expect("the folder is readable").path());
    paths.filter(|path| path.extension().is_some_and(|extension| extension == "json")).collect()
}
