//! What a run says at its end: a table for people, JSON for scripts, and both in a dated file on request.

mod rows;
mod table;

use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::clock;
use crate::figures::{Quantiles, RunFigures, ms};
use crate::plan::Plan;
use crate::process::MachineFigures;
use crate::progress::Counts;
use crate::record::{Ending, ErrorKind, Record};
use crate::run::Run;
use crate::scenario::{Objectives, Scenario};

pub use rows::write as write_rows;

/// A generator of which more than 1 % leaves later than this has measured itself.
pub const LATE_MS: f64 = 5.0;
const LATE_REQUESTS: f64 = 0.01;
/// The same, as a share of the time to the first token.
const LATE_SHARE: f64 = 0.05;
const BUSY_SHARE: f64 = 0.8;
const FOREIGN_SHARE: f64 = 0.1;

#[derive(Debug, Serialize)]
pub struct Report {
    pub load: Load,
    pub figures: RunFigures,
    pub machine: MachineFigures,
    pub generator: Overhead,
    /// Why the figures may not be the server's.
    pub warnings: Vec<String>,
}

/// What was asked, where the scenario's name does not say it.
#[derive(Debug, Serialize)]
pub struct Load {
    pub description: String,
    pub seed: u64,
    pub rate_scale: f64,
    pub duration_s: f64,
    pub warmup_s: f64,
    pub objectives: Objectives,
}

/// Where a figure comes from.
#[derive(Debug, Clone, Serialize)]
pub struct About {
    pub scenario: String,
    pub url: String,
    pub model: String,
    /// What the server says that it is.
    pub server: String,
    pub date: String,
    pub machine: String,
    /// Of the checkout that this program was run in. Neither the server's nor surely the program's own: `server` and
    /// `note` say what was measured.
    pub commit: String,
    pub command: String,
    /// What the reader of the figures should know besides.
    pub note: Option<String>,
}

/// Whose figures they are.
#[derive(Debug, Clone)]
pub struct Measured {
    pub url: String,
    pub model: String,
    pub server: String,
}

/// The generator's own part.
#[derive(Debug, Clone, Serialize)]
pub struct Overhead {
    pub lateness_ms: Option<Quantiles>,
    pub cpu_cores: Option<f64>,
    pub events_per_s: f64,
    pub threads: usize,
    /// Requests for which it could open no connection.
    pub out_of_files: usize,
}

impl Overhead {
    pub fn of(run: &Run, machine: &MachineFigures, threads: usize) -> Self {
        let events: usize = run.records.iter().map(|record| record.events.len()).sum();
        Self {
            lateness_ms: Quantiles::of(run.records.iter().map(|record| ms(record.lateness()))),
            cpu_cores: machine.own_cpu_cores,
            events_per_s: events as f64 / run.wall.as_secs_f64().max(f64::EPSILON),
            threads,
            out_of_files: count_out_of_files(&run.records),
        }
    }

    /// Why the figures may be the generator's; `first_token_ms`: what it measured.
    pub(crate) fn warnings(&self, first_token_ms: f64) -> Vec<String> {
        let mut warnings = Vec::new();
        let late = self.lateness_ms.map_or(0.0, |lateness| lateness.p99);
        if late > LATE_MS && late > LATE_SHARE * first_token_ms {
            warnings
                .push(format!("the generator is the bottleneck: 1 % of its requests left {late:.1} ms late or later"));
        }
        warnings.extend(busy(self.cpu_cores, self.threads));
        warnings.extend(out_of_files(self.out_of_files as u64));
        warnings
    }
}

/// Why a verdict may be the generator's: `counts` are of all that it sent, while `machine` was watched.
pub fn bottlenecks(counts: Counts, machine: &MachineFigures, threads: usize) -> Vec<String> {
    let Counts { sent, late, out_of_files: lost, .. } = counts;
    let is_late = late as f64 > LATE_REQUESTS * sent as f64;
    let too_late = is_late.then(|| {
        format!("the generator is the bottleneck: {late} of its {sent} requests left more than {LATE_MS} ms late")
    });
    too_late.into_iter().chain(busy(machine.own_cpu_cores, threads)).chain(out_of_files(lost)).collect()
}

pub(crate) fn count_out_of_files(records: &[Record]) -> usize {
    records.iter().filter(|record| record.ending == Ending::Failed(ErrorKind::OutOfFiles)).count()
}

fn out_of_files(requests: u64) -> Option<String> {
    (requests > 0).then(|| {
        format!(
            "the generator is the bottleneck: it could open no connection for {requests} requests; raise `ulimit -Hn`"
        )
    })
}

fn busy(cpu_cores: Option<f64>, threads: usize) -> Option<String> {
    let cpu_cores = cpu_cores?;
    (cpu_cores > BUSY_SHARE * threads as f64)
        .then(|| format!("the generator is the bottleneck: it used {cpu_cores:.2} cores with {threads} threads"))
}

impl MachineFigures {
    /// Why the figures may be other programs'.
    pub fn warning(&self) -> Option<String> {
        let foreign = self.foreign_cpu_cores?;
        (foreign > FOREIGN_SHARE * self.cores as f64)
            .then(|| format!("other programs used {foreign:.2} of this machine's {} cores", self.cores))
    }
}

impl Report {
    /// `plan` was made of `scenario`.
    pub fn of(run: &Run, scenario: &Scenario, plan: &Plan, machine: MachineFigures, threads: usize) -> Self {
        let figures = RunFigures::of(run, plan);
        let generator = Overhead::of(run, &machine, threads);
        let mut warnings = warnings(&figures, &machine, &generator);
        if run.was_stopped {
            warnings.push("the run was stopped before its end".to_owned());
        }
        Self { load: Load::of(scenario), figures, machine, generator, warnings }
    }

    pub fn table(&self) -> String {
        table::render(self)
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::json!(self)
    }
}

impl Load {
    fn of(scenario: &Scenario) -> Self {
        let Scenario { description, seed, rate_scale, duration_s, warmup_s, objectives, .. } = scenario.clone();
        Self { description, seed, rate_scale, duration_s, warmup_s, objectives }
    }
}

impl About {
    pub fn now(scenario: &str, measured: Measured) -> Self {
        let Measured { url, model, server } = measured;
        Self {
            scenario: scenario.to_owned(),
            url,
            model,
            server,
            date: clock::utc(clock::wall()),
            machine: machine(),
            commit: commit(),
            command: command(std::env::args()),
            note: None,
        }
    }

    pub fn markdown(&self) -> String {
        let Self { scenario: _, url, model, server, date, machine, commit, command, note } = self;
        format!(
            "- date: {date}\n- machine: {machine}\n- commit: {commit} (of the folder that this was run in)\n- server: {url}, `{server}`, model `{model}`\n\
             - command: `{command}`\n{}",
            note.as_ref().map(|note| format!("- note: {note}\n")).unwrap_or_default()
        )
    }
}

/// Writes `<date>-<name>.md` and `.json` into `folder`; the path of the first.
pub fn save(folder: &Path, about: &About, text: &str, json: &str) -> std::io::Result<PathBuf> {
    std::fs::create_dir_all(folder)?;
    let moment: String = about.date.chars().filter(|character| *character != ':').collect();
    let name = Path::new(&about.scenario).file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let path = folder.join(format!("{moment}-{name}.md"));
    std::fs::write(&path, format!("# {name}\n\n{}\n```text\n{text}```\n", about.markdown()))?;
    std::fs::write(path.with_extension("json"), format!("{json}\n"))?;
    Ok(path)
}

/// The arguments, as a shell takes them: without the program's folder, and without the note, which stands by itself.
/// Keys are read from files, so none is among them.
fn command(mut args: impl Iterator<Item = String>) -> String {
    let program = args.next().unwrap_or_default();
    let mut words = vec![Path::new(&program).file_name().unwrap_or_default().to_string_lossy().into_owned()];
    while let Some(word) = args.next() {
        match word.as_str() {
            "--note" => drop(args.next()),
            // A header may hold a secret.
            "--header" => {
                let header = args.next().unwrap_or_default();
                let name = header.split(':').next().unwrap_or_default();
                words.extend([word, quoted(&format!("{name}: ..."))]);
            }
            _ if word.starts_with("--header=") => words.push("--header=...".to_owned()),
            _ if word.starts_with("--note=") => {}
            _ => words.push(quoted(&word)),
        }
    }
    words.join(" ")
}

/// As a shell takes it for one word and nothing else.
fn quoted(word: &str) -> String {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_./:=,@%+".contains(&byte);
    match !word.is_empty() && word.bytes().all(is_plain) {
        true => word.to_owned(),
        false => format!("'{}'", word.replace('\'', r"'\''")),
    }
}

fn machine() -> String {
    let cpus = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let value = |line: &str| line.split_once(':').map(|(_, value)| value.trim().to_owned());
    let model = cpus.lines().find(|line| line.starts_with("model name")).and_then(value);
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let memory = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib = memory.lines().find(|line| line.starts_with("MemTotal")).and_then(value);
    let kib: u64 = kib.and_then(|value| value.split(' ').next()?.parse().ok()).unwrap_or(0);
    format!("{}, {cores} cores, {} GiB", model.unwrap_or_else(|| std::env::consts::ARCH.to_owned()), kib >> 20)
}

/// Of the checkout that the program is run from, with a plus where files are changed.
fn commit() -> String {
    let git = |args: &[&str]| {
        let output = std::process::Command::new("git").args(args).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let Some(commit) = git(&["rev-parse", "--short=12", "HEAD"]) else { return "unknown".to_owned() };
    let is_changed = git(&["status", "--porcelain", "--untracked-files=no"]).is_some_and(|files| !files.is_empty());
    if is_changed { format!("{commit}+") } else { commit }
}

fn warnings(figures: &RunFigures, machine: &MachineFigures, generator: &Overhead) -> Vec<String> {
    let mut warnings = generator.warnings(figures.total.ttft_ms.map_or(f64::INFINITY, |ttft| ttft.p50));
    warnings.extend(machine.warning());
    if let Some(unsent) = figures.total.errors.get(ErrorKind::NotSent.name()) {
        warnings.push(format!("the generator is the bottleneck: it had too much in flight to send {unsent} requests"));
    }
    if figures.total.without_usage > 0 {
        warnings.push(format!(
            "{} answers came without usage: their tokens are counted by events",
            figures.total.without_usage
        ));
    }
    warnings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::figures::Figures;

    fn warned(lateness_ms: f64, own_cores: f64, foreign_cores: f64) -> Vec<String> {
        let quantiles = |value| Quantiles::of([value].into_iter());
        let total = Figures { ttft_ms: quantiles(50.0), ..Figures::default() };
        let figures = RunFigures { wall_s: 1.0, peak_in_flight: 1, total, traffic: [].into(), tenants: [].into() };
        let machine = MachineFigures { foreign_cpu_cores: Some(foreign_cores), cores: 2, ..MachineFigures::default() };
        let generator = Overhead {
            lateness_ms: quantiles(lateness_ms),
            cpu_cores: Some(own_cores),
            events_per_s: 1.0,
            threads: 1,
            out_of_files: 0,
        };
        warnings(&figures, &machine, &generator)
    }

    #[test]
    fn a_generator_that_measures_itself_says_so() {
        assert!(warned(1.0, 0.1, 0.0).is_empty());
        assert!(warned(9.0, 0.1, 0.0)[0].contains("9.0 ms late"));
        assert!(warned(1.0, 0.9, 0.0)[0].contains("0.90 cores"));
        assert!(warned(1.0, 0.1, 0.8)[0].contains("other programs"));
    }

    #[test]
    fn a_verdict_hears_of_a_generator_that_is_late_or_busy() {
        let warned = |late, own_cpu_cores| {
            let machine = MachineFigures { own_cpu_cores: Some(own_cpu_cores), ..MachineFigures::default() };
            bottlenecks(Counts { sent: 1000, late, ..Counts::default() }, &machine, 1)
        };
        assert!(warned(10, 0.8).is_empty());
        assert!(warned(11, 0.1)[0].contains("11 of its 1000 requests left more than 5 ms late"));
        assert!(warned(0, 0.9)[0].contains("0.90 cores"));
    }

    #[test]
    fn a_generator_without_a_file_left_says_so() {
        let counts = Counts { sent: 1000, out_of_files: 3, ..Counts::default() };
        let warnings = bottlenecks(counts, &MachineFigures::default(), 1);
        assert!(warnings[0].contains("no connection for 3 requests; raise `ulimit -Hn`"), "{warnings:?}");
    }

    #[test]
    fn the_command_means_the_same_to_a_shell() {
        let args = ["x", "run", "--output-tokens", "{ kind = 'fixed', tokens = 4 }", "$(true)", "", "a=/b:8,c"];
        let kept = command(args.into_iter().map(str::to_owned));
        let words = r"x run --output-tokens '{ kind = '\''fixed'\'', tokens = 4 }' '$(true)' '' a=/b:8,c";
        assert_eq!(kept, words);
    }

    #[test]
    fn the_command_is_kept_without_its_folder_and_note() {
        let args = [
            "/somewhere/passerelle-loadtests",
            "run",
            "--note",
            "a note",
            "--header",
            "X-Key: secret",
            "--scenario",
            "my own.toml",
        ];
        let command = command(args.into_iter().map(str::to_owned));
        assert_eq!(command, "passerelle-loadtests run --header 'X-Key: ...' --scenario 'my own.toml'");
    }
}
