//! `self-check`.

use std::process::ExitCode;

use anyhow::Context;
use clap::Args;
use passerelle_loadtests::http::{Client, Endpoint};
use passerelle_loadtests::mock::{MODEL, serve};
use passerelle_loadtests::plan::Keys;
use passerelle_loadtests::process::{Watch, shown_cores};
use passerelle_loadtests::report::{About, Measured, bottlenecks};
use passerelle_loadtests::run::RunOptions;
use passerelle_loadtests::self_check::{check, pace};
use passerelle_loadtests::session::Session;

use super::options::OutputArgs;
use super::watch::ProgressLine;

#[derive(Debug, Args)]
pub(super) struct SelfCheckArgs {
    #[command(flatten)]
    output: OutputArgs,
}

impl SelfCheckArgs {
    /// As `run` does it: one thread of the generator, and the server on another.
    pub(super) fn execute(self) -> anyhow::Result<ExitCode> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        runtime.block_on(self.run())
    }

    async fn run(self) -> anyhow::Result<ExitCode> {
        self.output.prepare()?;
        let url = start_server()?;
        let client = Client::plain(Endpoint::parse(&url).map_err(anyhow::Error::msg)?);
        let session = Session::open(client, None, Keys::default(), None).await?;
        let options = RunOptions::default();
        let line = ProgressLine::show(options.progress.clone());
        let watch = Watch::start(None);
        let mut verdict = check(&session, &options).await?;
        let (machine, _) = watch.finish();
        drop(line);
        verdict
            .figure("this program meanwhile, its server too", format!("{} cores", shown_cores(machine.own_cpu_cores)));
        let foreign = format!("{} of this machine's {} cores", shown_cores(machine.foreign_cpu_cores), machine.cores);
        verdict.figure("other programs meanwhile", foreign);
        let warnings = bottlenecks(options.progress.counts(), &machine, 2);
        warnings.into_iter().chain(machine.warning()).for_each(|why| verdict.warn(why));
        let server = "of this program, with delays that are known".to_owned();
        let about = About::now("self-check", Measured { url, model: MODEL.to_owned(), server });
        self.output.deliver(about, &verdict.render(), "verdict", verdict.json())?;
        Ok(super::exit_code(&verdict))
    }
}

/// On a thread of its own until this program ends; its URL.
fn start_server() -> anyhow::Result<String> {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").context("loopback has no free port")?;
    listener.set_nonblocking(true)?;
    let url = format!("http://{}", listener.local_addr()?);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    std::thread::spawn(move || {
        runtime.block_on(async move { serve(tokio::net::TcpListener::from_std(listener)?, pace).await })
    });
    Ok(url)
}
