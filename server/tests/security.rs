//! docs/security.md says what is true: each test that it leans on exists, and the log fields that it lists are those of the
//! source.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

#[path = "tidy/kept_by.rs"]
mod kept_by;

use kept_by::runs;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("server/ lies in the workspace")
}

fn document() -> String {
    fs::read_to_string(root().join("docs/security.md")).expect("the document is part of the repository")
}

/// Every Rust file below a folder of the repository.
fn sources(folder: &str) -> Vec<String> {
    let mut waiting: Vec<PathBuf> = vec![root().join(folder)];
    let mut texts = Vec::new();
    while let Some(path) = waiting.pop() {
        if path.is_dir() {
            waiting.extend(fs::read_dir(&path).expect("a folder").map(|entry| entry.expect("an entry").path()));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            texts.push(fs::read_to_string(&path).expect("a source is text"));
        }
    }
    texts
}

/// The cells of each row of the tables under a heading, without the two lines that head a table.
fn rows_under(heading: &str) -> Vec<Vec<String>> {
    let document = document();
    let section = document.split(&format!("\n## {heading}\n")).nth(1).expect(heading);
    let section = section.split("\n## ").next().expect("a section");
    let lines = section.lines().filter(|line| line.starts_with('|')).skip(2);
    lines.map(|line| line.trim_matches('|').split(" | ").map(|cell| cell.trim().to_owned()).collect()).collect()
}

fn quoted(cell: &str) -> Option<&str> {
    cell.strip_prefix('`')?.strip_suffix('`')
}

/// Of a test, and of nothing else that the document quotes.
fn is_test_name(quoted: &str) -> bool {
    quoted.matches('_').count() >= 3 && quoted.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
}

#[test]
fn each_line_is_held_by_a_test_that_is_run_or_is_marked_as_a_statement() {
    let tests: Vec<String> = ["server", "engine", "models"].into_iter().flat_map(sources).collect();
    let headings = ["Flows", "Privileges and processes", "Algorithms", "What is kept, where, and how long"];
    for row in headings.into_iter().flat_map(rows_under) {
        let held_by = row.last().expect("a cell");
        if held_by == "*statement*" {
            continue;
        }
        let is_test = quoted(held_by).is_some_and(is_test_name);
        assert!(is_test, "{row:?} names neither a test nor a statement");
    }
    let text = document();
    let named: BTreeSet<&str> = text.split('`').skip(1).step_by(2).filter(|quoted| is_test_name(quoted)).collect();
    assert!(named.len() > 30, "{named:?}");
    for name in named {
        assert!(tests.iter().any(|source| runs(source, name)), "no test `{name}` is run");
    }
}

#[test]
fn a_function_that_is_no_test_or_one_that_is_left_out_holds_no_line() {
    let source = "#[test]\n#[ignore = \"slow\"]\nfn a_b_c_d() {\n}\n\n\
                  #[tokio::test]\nasync fn e_f_g_h() {\n}\nfn i_j_k_l() {}\n";
    assert_eq!(
        ["a_b_c_d", "e_f_g_h", "i_j_k_l", "m_n_o_p"].map(|name| runs(source, name)),
        [false, true, false, false]
    );
}

#[test]
fn the_log_fields_listed_are_those_of_the_source() {
    let rows = rows_under("What is logged");
    let listed: BTreeSet<String> = rows.iter().map(|row| quoted(&row[0]).expect("a field").to_owned()).collect();
    let logged: BTreeSet<String> = ["server/src", "engine/src", "models/src"]
        .into_iter()
        .flat_map(sources)
        .flat_map(|text| logged_fields(&text))
        .collect();
    assert!(logged.len() > 20, "the source is not read as it should be: {logged:?}");
    assert_eq!(listed, logged, "docs/security.md lists other log fields than the source writes");
}

#[test]
fn fields_are_found_in_every_form_that_a_log_line_has() {
    let line = r#"tracing::warn!(%error, model = name, left = f(a, b), ?changed, "a, b {x}"); tracing::info!("x")"#;
    assert_eq!(logged_fields(line), ["error", "model", "left", "changed"]);
}

/// What the tracing macros in a source are given beside their message.
fn logged_fields(text: &str) -> Vec<String> {
    const MACROS: [&str; 5] = ["error!(", "warn!(", "info!(", "debug!(", "trace!("];
    let calls = text.split("tracing::").skip(1);
    let arguments = calls.filter_map(|call| MACROS.iter().find_map(|name| call.strip_prefix(name)));
    arguments.flat_map(top_level_arguments).filter_map(|argument| field_of(&argument)).collect()
}

/// Up to the parenthesis that closes the call.
fn top_level_arguments(call: &str) -> Vec<String> {
    let (mut arguments, mut depth, mut in_text, mut escaped) = (vec![String::new()], 0_u32, false, false);
    for character in call.chars() {
        let is_quote = character == '"' && !escaped;
        escaped = in_text && character == '\\' && !escaped;
        match character {
            _ if is_quote => in_text = !in_text,
            _ if in_text => {}
            '(' | '[' | '{' => depth += 1,
            ')' | ']' | '}' if depth == 0 => break,
            ')' | ']' | '}' => depth -= 1,
            ',' if depth == 0 => {
                arguments.push(String::new());
                continue;
            }
            _ => {}
        }
        arguments.last_mut().expect("one at least").push(character);
    }
    arguments
}

/// `name = value`, `%name`, `?name` or `name`; a message is none.
fn field_of(argument: &str) -> Option<String> {
    let name = argument.trim().trim_start_matches(['%', '?']);
    let name: String = name.chars().take_while(|c| c.is_ascii_alphanumeric() || "_.".contains(*c)).collect();
    (!name.is_empty()).then_some(name)
}
