//! `compare`.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, ensure};
use clap::Args;
use passerelle_loadtests::compare::{CompareError, CompareOptions, Contender, compare};
use passerelle_loadtests::http::{Endpoint, Network};
use passerelle_loadtests::plan::Keys;
use passerelle_loadtests::report::{About, Measured};
use passerelle_loadtests::run::RunOptions;
use passerelle_loadtests::session::Session;

use super::EXIT_COULD_NOT_TRY;
use super::interrupt::Stopper;
use super::options::{CommonArgs, KEY_VARIABLE, OutputArgs, ScenarioArgs, listener, measured, read_keys};
use super::watch::ProgressLine;

#[derive(Debug, Args)]
pub(super) struct CompareArgs {
    /// The servers, as NAME=http://HOST:PORT; ratios are to the first
    #[arg(required = true, num_args = 2.., value_name = "NAME=URL", value_parser = parse_server)]
    servers: Vec<(String, String)>,
    /// How often each server gets the scenario
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(2..=1000))]
    rounds: u16,
    /// How far the servers' token counts of one request may be apart
    #[arg(long, default_value_t = 0, value_name = "TOKENS")]
    token_tolerance: u64,
    /// The model's name at one of the servers; may be given for several
    #[arg(long, value_name = "NAME=MODEL", value_parser = parse_server)]
    server_model: Vec<(String, String)>,
    /// The file of keys for one of the servers; may be given for several
    #[arg(long, value_name = "NAME=FILE", value_parser = parse_server)]
    server_keys: Vec<(String, String)>,
    #[command(flatten)]
    scenario: ScenarioArgs,
    #[command(flatten)]
    common: CommonArgs,
    #[command(flatten)]
    output: OutputArgs,
}

impl CompareArgs {
    pub(super) fn execute(self) -> anyhow::Result<ExitCode> {
        self.common.runtime()?.block_on(self.run())
    }

    async fn run(self) -> anyhow::Result<ExitCode> {
        let scenario = self.scenario.load()?;
        self.output.prepare()?;
        let contenders = self.open_all().await?;
        let options = CompareOptions {
            rounds: usize::from(self.rounds),
            token_tolerance: self.token_tolerance,
            run: RunOptions::default(),
            threads: usize::from(self.common.threads),
        };
        let seconds = scenario.duration_s * f64::from(self.rounds) * contenders.len() as f64;
        eprintln!("{} rounds of {} servers: {seconds:.0} s or a little more", self.rounds, contenders.len());
        let line = ProgressLine::show(options.run.progress.clone());
        let stopper = Stopper::listen(Arc::clone(&options.run.stop))?;
        let compared = compare(&contenders, &scenario, &options).await;
        drop(line);
        let asked = stopper.asked().map(|asked| ExitCode::from(asked.exit_code()));
        let comparison = match (compared, asked) {
            (Err(CompareError::Interrupted), Some(code)) => {
                eprintln!("no round is whole: there is nothing to compare");
                return Ok(code);
            }
            (compared, _) => compared?,
        };
        let about = About::now(&format!("compare-{}", self.scenario.name()), self.measured(&contenders).await);
        self.output.deliver(about, &comparison.table(), "comparison", serde_json::json!(&comparison))?;
        Ok(match (&comparison.stopped, asked) {
            (None, _) => ExitCode::SUCCESS,
            (Some(_), Some(code)) => code,
            (Some(_), None) => ExitCode::from(EXIT_COULD_NOT_TRY),
        })
    }

    /// The first server's tokenizer, or that of the command line, counts for all.
    async fn open_all(&self) -> anyhow::Result<Vec<Contender<Network>>> {
        let names: BTreeSet<&str> = self.servers.iter().map(|(name, _)| name.as_str()).collect();
        ensure!(names.len() == self.servers.len(), "two servers have the same name");
        for (name, _) in self.server_model.iter().chain(&self.server_keys) {
            ensure!(self.servers.iter().any(|(server, _)| server == name), "there is no server `{name}`");
        }
        let mut contenders: Vec<Contender<Network>> = Vec::with_capacity(self.servers.len());
        for (name, url) in &self.servers {
            let opened = self.open(name, url, contenders.first()).await;
            let session = opened.with_context(|| name.clone())?.speaking(self.common.vocabulary());
            contenders.push(Contender { name: name.clone(), pid: listener(&session), session });
        }
        Ok(contenders)
    }

    async fn open(
        &self,
        name: &str,
        url: &str,
        first: Option<&Contender<Network>>,
    ) -> anyhow::Result<Session<Network>> {
        let client = self.common.client(url)?;
        let keys = self.keys_for(name)?;
        let model = of_server(&self.server_model, name).or(self.common.model.as_deref());
        Ok(match first {
            None => Session::open(client, model, keys, self.common.tokenizer()).await?,
            Some(first) => Session::beside(first.session.maker.clone(), client, model, keys).await?,
        })
    }

    fn keys_for(&self, name: &str) -> anyhow::Result<Keys> {
        if let Some(file) = of_server(&self.server_keys, name) {
            return read_keys(Path::new(file));
        }
        let keys = self.common.keys()?;
        let is_of_environment = !self.common.has_keys_file() && keys.default.is_some();
        ensure!(
            !is_of_environment || self.have_one_host(),
            "{KEY_VARIABLE} would go to servers on several hosts; say which keys each gets with --server-keys \
             NAME=FILE, or --keys for all (an empty file is no key)"
        );
        Ok(keys)
    }

    fn have_one_host(&self) -> bool {
        let hosts: BTreeSet<Option<String>> =
            self.servers.iter().map(|(_, url)| Endpoint::parse(url).ok().map(|at| at.host().to_owned())).collect();
        hosts.len() == 1
    }
    /// All servers, in one line each.
    async fn measured(&self, contenders: &[Contender<Network>]) -> Measured {
        let mut all = Vec::with_capacity(contenders.len());
        for (contender, (name, url)) in contenders.iter().zip(&self.servers) {
            let Measured { url, model, server } = measured(&contender.session, url).await;
            all.push(Measured { url: format!("{name}={url}"), model, server });
        }
        let joined = |part: fn(&Measured) -> &str| all.iter().map(part).collect::<Vec<_>>().join(", ");
        Measured { url: joined(|one| &one.url), model: joined(|one| &one.model), server: joined(|one| &one.server) }
    }
}

/// What `given` says of the server `name`.
fn of_server<'a>(given: &'a [(String, String)], name: &str) -> Option<&'a str> {
    given.iter().find(|(server, _)| server == name).map(|(_, value)| value.as_str())
}

fn parse_server(text: &str) -> Result<(String, String), String> {
    let (name, url) = text.split_once('=').ok_or("expected NAME=...")?;
    if name.is_empty() { Err("the name is empty".to_owned()) } else { Ok((name.to_owned(), url.to_owned())) }
}
