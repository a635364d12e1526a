//! What several commands take.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Args;
use passerelle_loadtests::http::{Client, Endpoint, Network, Trust};
use passerelle_loadtests::plan::Keys;
use passerelle_loadtests::process::ProcFs;
use passerelle_loadtests::report::{self, About, Measured};
use passerelle_loadtests::scenario::Scenario;
use passerelle_loadtests::session::Session;

use super::say;

const DEFAULT_SCENARIO: &str = "steady-chat";

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
    #[arg(long, value_name = "FACTOR")]
    rate_scale: Option<f64>,
    /// Send for so many seconds
    #[arg(long, value_name = "SECONDS")]
    duration: Option<f64>,
    /// Not counted at the start
    #[arg(long, value_name = "SECONDS")]
    warmup: Option<f64>,
    #[arg(long)]
    seed: Option<u64>,
}

/// Where the figures go.
#[derive(Debug, Args)]
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
    /// Prints a result, and keeps it where that is asked for.
    pub(super) fn deliver(
        &self,
        about: About,
        (text, name, result): (&str, &str, serde_json::Value),
    ) -> anyhow::Result<()> {
        let about = About { note: self.note.clone(), ..about };
        let mut json = serde_json::json!({ "about": &about });
        json[name] = result;
        let json = format!("{json:#}");
        say(if self.json { &json } else { text.trim_end() });
        if let Some(folder) = &self.save {
            let path = report::save(folder, &about, (text, &json)).with_context(|| format!("{}", folder.display()))?;
            eprintln!("kept in {}", path.display());
        }
        Ok(())
    }
}

impl CommonArgs {
    pub(super) async fn open(&self, url: &str) -> anyhow::Result<Session<Network>> {
        let endpoint = Endpoint::parse(url).map_err(anyhow::Error::msg)?;
        let trust = self.ca.clone().map_or(Trust::PublicAuthorities, Trust::Only);
        let network = Network::to(&endpoint, &trust)?;
        let client = Client::new(network, Endpoint { headers: self.header.clone(), ..endpoint });
        let keys = self.keys()?;
        Ok(Session::open(client, self.model.as_deref(), keys, self.tokenizer.as_deref()).await?)
    }

    pub(super) fn runtime(&self) -> anyhow::Result<tokio::runtime::Runtime> {
        let threads = usize::from(self.threads);
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        builder.worker_threads(threads).enable_all().build().context("the runtime did not start")
    }

    fn keys(&self) -> anyhow::Result<Keys> {
        let Some(file) = &self.keys else {
            return Ok(Keys { default: std::env::var("OPENAI_API_KEY").ok(), by_tenant: BTreeMap::new() });
        };
        let text = std::fs::read_to_string(file).with_context(|| format!("{}", file.display()))?;
        let mut by_tenant: BTreeMap<String, String> =
            toml::from_str(&text).with_context(|| format!("{} is not a table of keys", file.display()))?;
        Ok(Keys { default: by_tenant.remove("default"), by_tenant })
    }
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
