//! The house keeps its shape: this test reads the sources, as text, and names what breaks a rule of ARCHITECTURE.md.

use std::path::{Path, PathBuf};

#[path = "tidy/contract.rs"]
mod contract;
#[path = "tidy/kept_by.rs"]
mod kept_by;
#[path = "tidy/source.rs"]
mod source;

use source::{Source, rust_sources, tracked_files};

const MOST_LINES_OF_A_FILE: usize = 500;
const MOST_LINES_OF_A_FUNCTION: usize = 70;

/// What may be longer, and why. A line that is no longer needed fails the test, so the list shrinks.
const LONG_FILES: &[(&str, &str)] =
    &[("server/src/workers/wire/generated.rs", "written by the program in server/wire; nobody reads it")];
/// As `file::function`.
const LONG_FUNCTIONS: &[(&str, &str)] = &[];

/// The scripted server, which sleeps as its tests say, on their clocks.
const SLEEP_UNDER_A_CLOCK_PAUSED_ELSEWHERE: &str = "loadtests/tests/scripted/server.rs";

/// Code below `place` never names any of `never`.
struct Rule {
    place: &'static str,
    except: &'static [&'static str],
    never: &'static [&'static str],
    because: &'static str,
}

const RULES: &[Rule] = &[
    Rule {
        place: "models/",
        except: &[],
        never: &["tokio::", "axum::", "passerelle_engine::", "passerelle::"],
        because: "models turn tokens into logits and know no request, runtime or HTTP",
    },
    Rule {
        place: "engine/",
        except: &[],
        never: &[
            "axum::",
            "tokenizers::",
            "minijinja::",
            "serde_json::",
            "tokio::net",
            "tokio::spawn",
            "tokio::fs",
            "passerelle::",
        ],
        because: "the engine sees token ids, and of tokio only its channels",
    },
    Rule {
        place: "engine/src/",
        except: &["engine/src/model_runner.rs", "engine/src/engine.rs", "engine/src/testing.rs"],
        never: &["candle_core::"],
        because: "scheduling is bookkeeping, testable in microseconds",
    },
    Rule {
        place: "server/src/gateway/",
        except: &[],
        never: &[
            "crate::api",
            "crate::text",
            "crate::config",
            "crate::hub",
            "axum::",
            "candle_core::",
            "tokenizers::",
            "http::",
        ],
        because: "the gateway decides who may run what, and speaks neither HTTP nor text",
    },
    Rule {
        place: "server/src/text/",
        except: &[],
        never: &["crate::api", "crate::gateway", "crate::config", "crate::hub", "axum::", "candle_core::"],
        because: "text imports no other room",
    },
    Rule {
        place: "server/src/batches/",
        except: &[],
        never: &["crate::api", "crate::gateway", "crate::text", "crate::config", "crate::hub", "axum::", "tokio::"],
        because: "batches keeps files and runs nothing",
    },
    Rule {
        place: "server/src/evaluation/",
        except: &[],
        never: &[
            "crate::api",
            "crate::gateway",
            "crate::text",
            "crate::config",
            "crate::hub",
            "axum::",
            "tokio::",
            "passerelle_engine::",
        ],
        because: "evaluation reads what was scored, whoever scored it, and knows neither HTTP nor an engine",
    },
    Rule {
        place: "server/src/hub/",
        except: &[],
        never: &["crate::api", "crate::gateway", "crate::config", "crate::text", "axum::"],
        because: "the hub finds files and knows nobody who reads them",
    },
    Rule {
        place: "server/src/trust/",
        except: &[],
        never: &["crate::", "axum::", "tokio::"],
        because: "trust looks at files and keys, and imports no other room",
    },
    Rule {
        place: "server/src/placement/",
        except: &[],
        never: &[
            "crate::api",
            "crate::gateway",
            "crate::text",
            "crate::config",
            "crate::hub",
            "axum::",
            "tokio::",
            "std::fs",
        ],
        because: "what fits where is reckoned from what it is given",
    },
    Rule {
        place: "server/src/upstream/",
        except: &[],
        never: &["crate::api", "crate::config", "crate::text", "crate::hub", "axum::"],
        because: "upstreams are doors that the gateway is handed, and know nothing of who asks",
    },
    Rule {
        place: "server/src/workers/",
        except: &[],
        never: &["crate::api", "crate::config", "crate::text", "crate::hub", "axum::", "tokio::net", "tokio::process"],
        because: "workers is handed connections and processes, and knows doors to engines",
    },
    Rule {
        place: "server/src/config/",
        except: &[],
        never: &["crate::api", "crate::gateway", "crate::text", "axum::", "tokio::"],
        because: "rooms define their own settings; config only reads and checks",
    },
    Rule {
        place: "server/src/api/",
        except: &[],
        never: &["crate::config", "crate::hub", "candle_core::"],
        because: "the API is handed what it needs by serve",
    },
    Rule {
        place: "",
        except: &["server/src/api/"],
        never: &["StatusCode::", "http::StatusCode"],
        because: "only api knows a status code",
    },
    Rule {
        place: "",
        except: &["server/src/config/environment.rs", "loadtests/", "models/build.rs", "cuda-link/build.rs"],
        never: &["std::env::var", "env::var(", "env::var_os(", "env::vars("],
        because: "only config reads the environment, and what cargo tells a build script",
    },
    Rule {
        place: "",
        except: &["engine/src/clock.rs", "loadtests/"],
        never: &["Instant::now", "SystemTime::now", "UNIX_EPOCH"],
        because: "only clock reads time",
    },
    Rule {
        place: "",
        // The allocator of a test that counts allocations is an unsafe trait.
        except: &[
            "models/src/ops/cpu/",
            "models/src/ops/cuda/",
            "cuda-link/",
            "models/src/weights/mapped.rs",
            "engine/tests/allocations.rs",
        ],
        never: &["unsafe {", "unsafe fn", "unsafe impl", "unsafe extern"],
        because: "unsafe lives with the kernels, with the file that maps weights and with what finds CUDA's libraries",
    },
    Rule {
        place: "",
        except: &["server/src/main.rs", "server/src/cli/", "server/src/serve", "loadtests/"],
        never: &["anyhow::"],
        because: "rooms have errors of their own; only the binary collects them",
    },
    Rule {
        place: "",
        // The pause before a failed download is tried again, off the async threads.
        except: &["server/src/hub/download.rs"],
        never: &["thread::sleep"],
        because: "whoever waits waits for something, with a bound",
    },
    Rule {
        place: "",
        except: &[],
        never: &["unbounded_channel", "static mut "],
        because: "every queue has a bound, and nothing is global",
    },
];

/// Notes to self belong in an issue, not in the tree. Spelt in halves, because this file is read too.
const NOTES: [&str; 4] = [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X:"), concat!("HA", "CK:")];
/// Words that praise instead of saying what is.
const PRAISE: [&str; 8] = [
    "blazing",
    "seamless",
    "cutting-edge",
    "world-class",
    "state-of-the-art",
    "effortless",
    "revolutionary",
    "lightning-fast",
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("server/ lies in the workspace").to_owned()
}

fn assert_none(heading: &str, breaches: &[String]) {
    assert!(breaches.is_empty(), "{heading}:\n  {}", breaches.join("\n  "));
}

/// Checks a list of exceptions against what really is too long.
fn assert_exceptions_match(kind: &str, long: &[(String, usize)], exceptions: &[(&str, &str)]) {
    let mut breaches = Vec::new();
    for (name, lines) in long {
        if !exceptions.iter().any(|(exception, _)| exception == name) {
            breaches.push(format!("{name} has {lines} lines: split it, or list it with a reason"));
        }
    }
    for (exception, reason) in exceptions {
        assert!(reason.len() > 10, "{exception} needs a reason");
        if !long.iter().any(|(name, _)| name == exception) {
            breaches.push(format!("{exception} is short enough now: take it off the list"));
        }
    }
    assert_none(kind, &breaches);
}

#[test]
fn files_are_short() {
    let lines = |source: &Source| (source.path.clone(), source.text.lines().count());
    let long: Vec<_> =
        rust_sources(&root()).iter().map(lines).filter(|(_, lines)| *lines > MOST_LINES_OF_A_FILE).collect();
    assert_exceptions_match("files that are too long", &long, LONG_FILES);
}

#[test]
fn functions_are_short() {
    let sources = rust_sources(&root());
    let all = sources.iter().flat_map(|source| {
        source.functions().into_iter().map(move |(name, lines)| (format!("{}::{name}", source.path), lines))
    });
    let long: Vec<_> = all.filter(|(_, lines)| *lines > MOST_LINES_OF_A_FUNCTION).collect();
    assert_exceptions_match("functions that are too long", &long, LONG_FUNCTIONS);
}

#[test]
fn rooms_import_only_what_they_may_know() {
    let mut breaches = Vec::new();
    for source in rust_sources(&root()).iter().filter(|source| !source.is_test()) {
        let applies = |rule: &&Rule| {
            source.path.starts_with(rule.place) && !rule.except.iter().any(|place| source.path.starts_with(place))
        };
        for rule in RULES.iter().filter(applies) {
            for (line, text) in source.product_code() {
                if let Some(name) = rule.never.iter().find(|name| text.contains(**name)) {
                    breaches.push(format!("{}:{line} names {name}: {}", source.path, rule.because));
                }
            }
        }
    }
    assert_none("rooms that know too much", &breaches);
}

/// A rule about a file that was renamed guards nothing.
#[test]
fn the_rules_speak_of_places_that_exist() {
    let places = RULES.iter().flat_map(|rule| rule.except.iter().chain([&rule.place]));
    let missing = |place: &&&str| !root().join(place).exists() && !place.ends_with("serve");
    let missing: Vec<String> = places.filter(missing).map(|place| (*place).to_owned()).collect();
    assert_none("rules about places that do not exist", &missing);
}

#[test]
fn a_test_that_is_skipped_says_why() {
    let mut breaches = Vec::new();
    for source in rust_sources(&root()) {
        for (line, text) in source.code() {
            if text.contains("#[ignore]") {
                breaches.push(format!("{}:{line}: #[ignore] without a reason", source.path));
            }
            if text.contains("fn test_") || text.contains("fn it_works") {
                breaches.push(format!("{}:{line}: a test is named after the promise that it keeps", source.path));
            }
        }
    }
    assert_none("tests", &breaches);
}

/// Whoever sleeps is slow where the machine is fast, and wrong where it is slow. Under a paused clock it takes no time.
#[test]
fn no_test_sleeps_in_real_time() {
    let mut breaches = Vec::new();
    for source in rust_sources(&root()) {
        let is_paused = source.text.contains("start_paused") || SLEEP_UNDER_A_CLOCK_PAUSED_ELSEWHERE == source.path;
        let sleeps = |text: &str| text.contains("thread::sleep") || text.contains("sleep(") && !is_paused;
        let lines = source.code_of_tests().filter(|(_, text)| sleeps(text));
        breaches.extend(lines.map(|(line, text)| format!("{}:{line}: {}", source.path, text.trim())));
    }
    assert_none("tests that sleep: wait for what they wait for, with a bound", &breaches);
}

#[test]
fn the_tree_holds_no_notes_to_self_and_no_praise() {
    let mut breaches = Vec::new();
    for path in tracked_files(&root(), &["rs", "md", "toml", "py", "cu", "cuh", "cpp", "h"]) {
        let text = std::fs::read_to_string(root().join(&path)).expect("the tree is readable");
        for (index, line) in text.lines().enumerate() {
            let is_praise = path.ends_with(".md") && PRAISE.iter().any(|word| line.to_lowercase().contains(word));
            if is_praise || NOTES.iter().any(|word| line.contains(word)) {
                breaches.push(format!("{path}:{}: {}", index + 1, line.trim()));
            }
        }
    }
    assert_none("words", &breaches);
}

#[test]
fn links_in_the_documentation_lead_somewhere() {
    let mut breaches = Vec::new();
    for path in tracked_files(&root(), &["md"]) {
        let text = std::fs::read_to_string(root().join(&path)).expect("the tree is readable");
        let folder = root().join(&path).parent().expect("a file lies in a folder").to_owned();
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let (target, place) = link.split_once('#').unwrap_or((link, ""));
            let file = if target.is_empty() { root().join(&path) } else { folder.join(target) };
            let leads = target.contains("://") || file.exists() && (place.is_empty() || has_heading(&file, place));
            if !leads {
                breaches.push(format!("{path}: {link}"));
            }
        }
    }
    assert_none("links to nothing", &breaches);
}

/// A heading of `file` is `place`, as links spell it: in small letters, with hyphens for spaces and without other marks.
fn has_heading(file: &Path, place: &str) -> bool {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    text.lines().filter(|line| line.starts_with('#')).any(|line| {
        let heading = line.trim_start_matches('#').trim().to_lowercase().replace(' ', "-");
        heading.chars().filter(|letter| letter.is_alphanumeric() || "-_".contains(*letter)).eq(place.chars())
    })
}

/// ARCHITECTURE.md and docs/ send newcomers to files by name; these exist.
#[test]
fn files_that_the_documentation_names_exist() {
    const ROOTS: [&str; 6] = ["models/", "engine/", "server/", "loadtests/", "configs/", ".ci/"];
    let mut breaches = Vec::new();
    let is_guide = |path: &String| {
        ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md"].contains(&path.as_str()) || path.starts_with("docs/")
    };
    for path in tracked_files(&root(), &["md"]).into_iter().filter(is_guide) {
        let text = std::fs::read_to_string(root().join(&path)).expect("the documentation is part of the repository");
        for name in text.split('`').skip(1).step_by(2) {
            let is_path = ROOTS.iter().any(|start| name.starts_with(start)) && !name.contains([' ', '<', '*', '{']);
            let file = name.split("::").next().unwrap_or(name);
            if is_path && !root().join(file).exists() {
                breaches.push(format!("{path}: {name}"));
            }
        }
    }
    assert_none("files that the documentation names but that do not exist", &breaches);
}
