//! A scenario: who asks what, when, and what counts as good. Read from TOML; unknown keys are refused.

mod builtin;
mod workload;

use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use builtin::{BUILTIN, find};
pub use workload::{Leave, RequestFields, Workload};

use crate::arrivals::Arrivals;

/// A month.
pub const MAX_DURATION_S: f64 = 31.0 * 86_400.0;
/// And its inverse the least.
pub const MAX_RATE_SCALE: f64 = 1e6;

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scenario {
    pub description: String,
    /// How long requests are sent; those in flight then are waited for.
    pub duration_s: f64,
    /// What is sent in the first seconds is not counted.
    #[serde(default)]
    pub warmup_s: f64,
    #[serde(default = "default_seed")]
    pub seed: u64,
    /// Another number is other words of the same lengths at the same times, where answers' lengths do not hang on them.
    #[serde(skip)]
    pub wording: u64,
    /// Of one request, from its sending to its end.
    #[serde(default = "default_timeout_s")]
    pub timeout_s: f64,
    /// Every rate times this; also given on the command line.
    #[serde(default = "default_rate_scale")]
    pub rate_scale: f64,
    #[serde(default)]
    pub objectives: Objectives,
    pub traffic: Vec<Traffic>,
}

/// What a request must keep to count as good; absent means any.
#[derive(Debug, Clone, Copy, Default, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Objectives {
    pub ttft_ms: Option<f64>,
    pub tpot_ms: Option<f64>,
    pub e2e_ms: Option<f64>,
}

/// One kind of user with arrivals of its own.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Traffic {
    pub name: String,
    /// Whose API key it uses, by its name in the file of keys.
    #[serde(default)]
    pub tenant: Option<String>,
    pub arrivals: Arrivals,
    /// At most so many. Closed users without it ask until the scenario's end.
    #[serde(default)]
    pub requests: Option<usize>,
    pub workload: Workload,
    #[serde(default)]
    pub request: RequestFields,
    /// Users who go away before the end.
    #[serde(default)]
    pub leave: Option<Leave>,
}

#[derive(Debug, thiserror::Error)]
pub enum ScenarioError {
    #[error("no scenario `{name}`: neither a file nor one of {}", builtin::names())]
    Unknown { name: String },
    #[error("{path}: {source}")]
    Unreadable { path: String, source: std::io::Error },
    #[error("{name}: {source}")]
    Malformed { name: String, source: Box<toml::de::Error> },
    #[error("{name}: {what}")]
    Wrong { name: String, what: String },
}

impl Scenario {
    /// `name` is a file, or one of the scenarios that come with this program.
    pub fn load(name: &str) -> Result<Self, ScenarioError> {
        let text = match find(name) {
            Some(text) => text.to_owned(),
            None if Path::new(name).exists() => std::fs::read_to_string(name)
                .map_err(|source| ScenarioError::Unreadable { path: name.to_owned(), source })?,
            None => return Err(ScenarioError::Unknown { name: name.to_owned() }),
        };
        Self::parse(name, &text)
    }

    pub fn parse(name: &str, text: &str) -> Result<Self, ScenarioError> {
        let scenario: Self = toml::from_str(text)
            .map_err(|source| ScenarioError::Malformed { name: name.to_owned(), source: Box::new(source) })?;
        scenario.check().map_err(|what| ScenarioError::Wrong { name: name.to_owned(), what })?;
        Ok(scenario)
    }

    /// One kind of traffic, and everything else as it is where a file says nothing.
    pub fn of(description: &str, duration_s: f64, traffic: Traffic) -> Self {
        Self {
            description: description.to_owned(),
            duration_s,
            warmup_s: 0.0,
            seed: default_seed(),
            wording: 0,
            timeout_s: default_timeout_s(),
            rate_scale: default_rate_scale(),
            objectives: Objectives::default(),
            traffic: vec![traffic],
        }
    }

    pub fn duration(&self) -> Duration {
        Duration::from_secs_f64(self.duration_s)
    }

    pub fn timeout(&self) -> Duration {
        Duration::from_secs_f64(self.timeout_s)
    }

    /// The names of tenants, in the order in which they are first named.
    pub fn tenants(&self) -> Vec<String> {
        let mut tenants: Vec<String> = Vec::new();
        for tenant in self.traffic.iter().filter_map(|traffic| traffic.tenant.as_ref()) {
            if !tenants.contains(tenant) {
                tenants.push(tenant.clone());
            }
        }
        tenants
    }

    /// What is wrong with the numbers, if anything.
    pub fn check(&self) -> Result<(), String> {
        let within = |name: &str, value: f64, most: f64| match value > 0.0 && value <= most {
            true => Ok(()),
            false => Err(format!("`{name}` must be above 0 and at most {most}, not {value}")),
        };
        within("duration_s", self.duration_s, MAX_DURATION_S)?;
        within("timeout_s", self.timeout_s, MAX_DURATION_S)?;
        within("rate_scale", self.rate_scale, MAX_RATE_SCALE)?;
        within("1 / rate_scale", 1.0 / self.rate_scale, MAX_RATE_SCALE)?;
        if !(0.0..self.duration_s).contains(&self.warmup_s) {
            return Err("`warmup_s` must be below `duration_s`".to_owned());
        }
        if self.traffic.is_empty() {
            return Err("`traffic` must hold at least one entry".to_owned());
        }
        let in_traffic = |traffic: &Traffic| {
            traffic.check(self.rate_scale).map_err(|what| format!("traffic `{}`: {what}", traffic.name))
        };
        self.traffic.iter().try_for_each(in_traffic)
    }
}

impl Traffic {
    fn check(&self, rate_scale: f64) -> Result<(), String> {
        self.arrivals.check()?;
        self.arrivals.scaled(rate_scale).check().map_err(|what| format!("at {rate_scale} times its rate, {what}"))?;
        self.workload.check()?;
        if self.requests == Some(0) {
            return Err("`requests` must be above 0".to_owned());
        }
        if matches!(self.arrivals, Arrivals::Trace) != matches!(self.workload, Workload::Trace { .. }) {
            return Err("a trace is both the arrivals and the workload".to_owned());
        }
        self.leave.as_ref().map_or(Ok(()), Leave::check)
    }
}

fn default_seed() -> u64 {
    1
}

fn default_timeout_s() -> f64 {
    300.0
}

fn default_rate_scale() -> f64 {
    1.0
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: &str = r#"
        description = "small"
        duration_s = 2
        [[traffic]]
        name = "chat"
        arrivals = { kind = "constant", rate = 2.0 }
        workload = { kind = "chat", prompt_tokens = 8, output_tokens = 4 }
    "#;

    fn error_of(text: &str) -> String {
        Scenario::parse("x", text).expect_err("it must be refused").to_string()
    }

    #[test]
    fn every_scenario_of_the_folder_is_built_in_and_loads() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/scenarios");
        let mut found = 0;
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
            let text = std::fs::read_to_string(&path).unwrap();
            assert_eq!(find(&name), Some(text.as_str()), "{name} is not built in");
            Scenario::load(&name).unwrap();
            found += 1;
        }
        assert_eq!(found, BUILTIN.len());
    }

    #[test]
    fn a_misspelt_key_is_named() {
        assert!(error_of(&SMALL.replace("duration_s", "durations")).contains("durations"));
        assert!(error_of(&SMALL.replace("output_tokens", "output_token")).contains("output_token"));
        assert!(error_of(&SMALL.replace("rate =", "speed =")).contains("speed"));
    }

    #[test]
    fn numbers_that_make_no_load_are_refused() {
        assert!(error_of(&SMALL.replace("duration_s = 2", "duration_s = 0")).contains("duration_s"));
        assert!(error_of(&SMALL.replace("rate = 2.0", "rate = 0.0")).contains("rate"));
        assert!(error_of(&SMALL.replace("duration_s = 2", "duration_s = 1e300")).contains("at most 2678400"));
        assert!(error_of(&SMALL.replace("duration_s = 2", "duration_s = nan")).contains("duration_s"));
        assert!(error_of(&SMALL.replace("rate = 2.0", "rate = 1e15")).contains("rate"));
        let scaled = |scale: &str| SMALL.replace("duration_s = 2", &format!("duration_s = 2\nrate_scale = {scale}"));
        assert!(error_of(&scaled("1e12")).contains("rate_scale") && error_of(&scaled("1e-300")).contains("rate_scale"));
        assert!(error_of(&scaled("999999.0")).contains("at 999999 times its rate, `rate`"));
        assert!(error_of(&SMALL.replace("prompt_tokens = 8", "prompt_tokens = 4000000000")).contains("4000000000"));
        assert!(error_of(&SMALL.replace("prompt_tokens = 8", "prompt_tokens = 0")).contains("at least one token"));
        let completions = SMALL.replace("kind = \"chat\"", "kind = \"completions\", shared_tokens = 4");
        assert!(error_of(&completions).contains("`token_ids = true`"));
        let many = completions.replace("shared_tokens = 4", "token_ids = true, shared_tokens = 4000000000");
        assert!(error_of(&many).contains("`shared_tokens` must be at most"));
        let none = SMALL.replace("name =", "requests = 0\nname =");
        assert!(error_of(&none).contains("`requests` must be above 0"));
    }

    #[test]
    fn an_unknown_scenario_names_those_that_exist() {
        let error = Scenario::load("no-such").expect_err("there is none").to_string();
        assert!(error.contains("steady-chat"), "{error}");
    }
}
