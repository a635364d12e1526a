//! What several commands take.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Args;
use passerelle_loadtests::http::{Client, Endpoint, Network, Trust};
use passerelle_loadtests::plan::{Keys, Vocabulary};
use passerelle_loadtests::process::ProcFs;
use passerelle_loadtests::report::{self, About, Measured};
use passerelle_loadtests::scenario::Scenario;
use passerelle_loadtests::session::Session;

use super::{numbers, say};

const DEFAULT_SCENARIO: &str = "steady-chat";
/// Where a key is looked for without a file of keys.
pub(super) const KEY_VARIABLE: &str = "OPENAI_API_KEY";

/// Which server.
#[derive(Debug, Args)]
pub(super) struct ServerArgs {
    /// The server, as http://HOST:PORT or https://HOST
    #[arg(long, default_value = "http://127.0.0.1:8080")]
    pub(super) url: String,
    #[command(flatten)]
    pub(super) common: CommonArgs,
    /// The server's process, for its CPU and memory [default: whoever listens on the port, on this machine]
    #[arg(long, value_name = "PID")]
    pub(super) server_pid: Option<u32>,
}

/// How to speak with servers.
#[derive(Debug, Args)]
pub(super) struct CommonArgs {
    /// The model's name [default: the first that the server lists]
    #[arg(long)]
    pub(super) model: Option<String>,
    /// A TOML file of API keys: `tenant = "key"`; `default` is for traffic without a tenant [default: OPENAI_API_KEY]
    #[arg(long, value_name = "FILE")]
    keys: Option<PathBuf>,
    /// Count tokens with this tokenizer.json instead of asking the server
    #[arg(long, value_name = "FILE")]
    tokenizer: Option<PathBuf>,
    /// Sent with every request; may be given several times. Its value is kept out of reports
    #[arg(long, value_name = "NAME: VALUE", value_parser = parse_header)]
    header: Vec<(String, String)>,
    /// Send only fields that OpenAI itself knows, to servers that refuse others: neither ignore_eos nor
    /// skip_special_tokens, and max_completion_tokens; answers may then be shorter than asked
    #[arg(long)]
    plain_openai: bool,
    /// Of HTTPS, believe the certificates of this PEM file [default: of the public authorities]
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// Threads of the generator
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=64))]
    pub(super) threads: u8,
}

/// Which load.
#[derive(Debug, Args)]
pub(super) struct ScenarioArgs {
    /// A scenario's name (see `scenarios`) or file [default: steady-chat; batched in `check correctness`]
    #[arg(long, short)]
    scenario: Option<String>,
    /// Every rate times this
    #[arg(long, value_name = "FACTOR", value_parser = numbers::rate_scale)]
    rate_scale: Option<f64>,
    /// Send for so many seconds
    #[arg(long, value_name = "SECONDS", value_parser = numbers::seconds)]
    duration: Option<f64>,
    /// Not counted at the start
    #[arg(long, value_name = "SECONDS", value_parser = numbers::warmup)]
    warmup: Option<f64>,
    /// Of words, lengths and times: another seed is another load of the same kind [default: the scenario's]
    #[arg(long)]
    seed: Option<u64>,
}

/// Where the figures go.
#[derive(Debug, Args)]
#[command(next_help_heading = "Output")]
pub(super) struct OutputArgs {
    /// Print JSON instead of the table
    #[arg(long)]
    json: bool,
    /// Also keep a dated report, in this folder
    #[arg(long, value_name = "FOLDER", num_args = 0..=1, default_missing_value = "loadtests/results")]
    save: Option<PathBuf>,
    /// Put this into the report
    #[arg(long, value_name = "TEXT")]
    note: Option<String>,
}

impl OutputArgs {
    /// Errors before anything is measured where nothing could be kept afterwards.
    pub(super) fn prepare(&self) -> anyhow::Result<()> {
        let Some(folder) = &self.save else { return Ok(()) };
        let trial = folder.join(format!(".passerelle-loadtests-{}", std::process::id()));
        std::fs::create_dir_all(folder)
            .and_then(|()| std::fs::File::create_new(&trial))
            .and_then(|_| std::fs::remove_file(&trial))
            .with_context(|| format!("nothing can be kept in {}", folder.display()))
    }

    /// Prints a result, and keeps it where that is asked for.
    pub(super) fn deliver(
        &self,
        about: About,
        text: &str,
        name: &str,
        result: serde_json::Value,
    ) -> anyhow::Result<()> {
        let about = About { note: self.note.clone(), ..about };
        let mut json = serde_json::json!({ "about": &about });
        json[name] = result;
        let json = format!("{json:#}");
        say(if self.json { &json } else { text.trim_end() });
        if let Some(folder) = &self.save {
            let path = report::save(folder, &about, text, &json).with_context(|| format!("{}", folder.display()))?;
            eprintln!("kept in {}", path.display());
        }
        Ok(())
    }
}

impl CommonArgs {
    pub(super) async fn open(&self, url: &str) -> anyhow::Result<Session<Network>> {
        let keys = self.keys()?;
        let session = Session::open(self.client(url)?, self.model.as_deref(), keys, self.tokenizer.as_deref()).await?;
        Ok(session.speaking(self.vocabulary()))
    }

    pub(super) fn client(&self, url: &str) -> anyhow::Result<Client<Network>> {
        let endpoint = Endpoint::parse(url).map_err(anyhow::Error::msg)?;
        let trust = self.ca.clone().map_or(Trust::PublicAuthorities, Trust::Only);
        let network = Network::to(&endpoint, &trust)?;
        Ok(Client::new(network, Endpoint { headers: self.header.clone(), ..endpoint }))
    }

    pub(super) fn tokenizer(&self) -> Option<&Path> {
        self.tokenizer.as_deref()
    }

    pub(super) fn vocabulary(&self) -> Vocabulary {
        if self.plain_openai { Vocabulary::Plain } else { Vocabulary::Extended }
    }

    pub(super) fn runtime(&self) -> anyhow::Result<tokio::runtime::Runtime> {
        let threads = usize::from(self.threads);
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        builder.worker_threads(threads).enable_all().build().context("the runtime did not start")
    }

    /// Of the file, or else of the environment.
    pub(super) fn keys(&self) -> anyhow::Result<Keys> {
        match &self.keys {
            Some(file) => read_keys(file),
            None => Ok(Keys { default: std::env::var(KEY_VARIABLE).ok(), by_tenant: BTreeMap::new() }),
        }
    }

    pub(super) fn has_keys_file(&self) -> bool {
        self.keys.is_some()
    }
}

pub(super) fn read_keys(file: &Path) -> anyhow::Result<Keys> {
    let text = std::fs::read_to_string(file).with_context(|| format!("{}", file.display()))?;
    parse_keys(&text).map_err(|what| anyhow::anyhow!("{}: {what}", file.display()))
}

/// The parser's own words are not told: they show the line, and with it a key.
fn parse_keys(text: &str) -> Result<Keys, String> {
    let mut by_tenant: BTreeMap<String, String> = toml::from_str(text).map_err(|error: toml::de::Error| {
        let start = error.span().map_or(0, |span| span.start.min(text.len()));
        let line = 1 + text.as_bytes()[..start].iter().filter(|byte| **byte == b'\n').count();
        format!("line {line} is not `tenant = \"key\"`, or its tenant is there twice")
    })?;
    Ok(Keys { default: by_tenant.remove("default"), by_tenant })
}

/// What is known of the server behind `url`.
pub(super) async fn measured(session: &Session<Network>, url: &str) -> Measured {
    let server = session.server_version().await.unwrap_or_else(|| "of unknown version".to_owned());
    Measured { url: url.to_owned(), model: session.target.model.clone(), server }
}

impl ServerArgs {
    /// The process to watch, where there is one on this machine.
    pub(super) fn watched_pid(&self, session: &Session<Network>) -> Option<u32> {
        self.server_pid.or_else(|| listener(session))
    }
}

/// Whoever listens where `session` goes to, on this machine.
pub(super) fn listener(session: &Session<Network>) -> Option<u32> {
    let endpoint = session.client.endpoint();
    let port = endpoint.port().filter(|_| endpoint.is_loopback())?;
    ProcFs::default().listener(port)
}

impl ScenarioArgs {
    /// The duration that the command line asks for.
    pub(super) fn duration(&self) -> Option<f64> {
        self.duration
    }

    /// The scenario's name, without a folder.
    pub(super) fn name(&self) -> String {
        let scenario = self.scenario.as_deref().unwrap_or(DEFAULT_SCENARIO);
        Path::new(scenario).file_stem().unwrap_or_default().to_string_lossy().into_owned()
    }

    pub(super) fn load(&self) -> anyhow::Result<Scenario> {
        self.load_or(DEFAULT_SCENARIO)
    }

    /// `default` is the name of a scenario that comes with this program.
    pub(super) fn load_or(&self, default: &str) -> anyhow::Result<Scenario> {
        self.adjust(Scenario::load(self.scenario.as_deref().unwrap_or(default))?)
    }

    /// `scenario` with what the command line says of it.
    pub(super) fn adjust(&self, mut scenario: Scenario) -> anyhow::Result<Scenario> {
        scenario.rate_scale = self.rate_scale.unwrap_or(scenario.rate_scale);
        scenario.duration_s = self.duration.unwrap_or(scenario.duration_s);
        scenario.warmup_s = self.warmup.unwrap_or(scenario.warmup_s);
        scenario.seed = self.seed.unwrap_or(scenario.seed);
        scenario.check().map_err(anyhow::Error::msg)?;
        Ok(scenario)
    }
}

fn parse_header(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once(':').ok_or("expected NAME: VALUE")?;
    let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    if name.is_empty() || !name.bytes().all(is_token) {
        return Err("the name of a header is letters, digits and `-`".to_owned());
    }
    if value.chars().any(char::is_control) {
        return Err("the value of a header is one line".to_owned());
    }
    Ok((name.to_owned(), value.trim().to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_keys_that_is_wrong_is_told_by_its_line_and_shows_no_key() {
        for (text, line) in [
            ("light = sk-secret", 1),
            ("a = \"sk-1\"\nlight = 424242\n", 2),
            ("[light]\nkey = \"sk-secret\"", 1),
            ("a = \"sk-1\"\n\na = \"sk-2\"", 3),
        ] {
            let error = parse_keys(text).expect_err("it is wrong");
            assert!(error.starts_with(&format!("line {line} is not")), "{text}: {error}");
            assert!(!error.contains("sk-") && !error.contains("424242"), "{error}");
        }
        let keys = parse_keys("default = \"d\"\nlight = \"l\"").expect("it is right");
        assert_eq!((keys.default.as_deref(), keys.by_tenant["light"].as_str()), (Some("d"), "l"));
    }

    #[test]
    fn a_folder_that_nothing_can_be_kept_in_is_told_before_the_run() {
        let folder = tempfile::tempdir().expect("there is room for a folder");
        let output = |save: PathBuf| OutputArgs { json: false, save: Some(save), note: None };
        let new = folder.path().join("new");
        output(new.clone()).prepare().expect("it can be made");
        assert_eq!(std::fs::read_dir(&new).map(Iterator::count).ok(), Some(0), "nothing is left there");
        let file = folder.path().join("file");
        std::fs::write(&file, "").expect("there is room for a file");
        assert!(output(file.join("below")).prepare().is_err());
    }
}
