use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use passerelle::config::{
    self, ByteSize, Config, Environment, Listen, LogFormat, LogLevel, ModelFlag, Written, WrittenLog, WrittenModel,
};

use super::model_args::ModelArgs;
use crate::serve::WorkerCommand;

const EXAMPLES: &str = "\
Examples:
  passerelle serve                                     the bundled demo model, open to this machine only
  passerelle serve --model mine=./checkpoint           a folder, under the name `mine`
  passerelle serve --model org/name@v1.0 --offline     a hub model that was downloaded before
  passerelle serve --models-dir ./runs --model-memory 16GiB   every checkpoint in a folder, as many at once as fit
  passerelle serve --listen unix:/run/passerelle.sock  a socket that only this user can open

Open to other machines, with a key:
  passerelle key create alice
  passerelle serve --listen 0.0.0.0:8080

One line is printed on standard output, `ready: http://ADDR:PORT`, when the first request can be answered; all else goes
to standard error. SIGTERM finishes what runs and exits with 0.";

/// Serve models over an OpenAI-compatible HTTP API.
#[derive(Debug, Clone, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct ServeArgs {
    /// A model to serve, more than once for several. SOURCE is a directory, a .gguf file, a hub id[@revision], or `demo`.
    #[arg(long = "model", value_name = "[NAME=]SOURCE")]
    models: Vec<ModelFlag>,
    /// Serve every checkpoint in DIR when somebody asks for it: DIR/a as `a`, DIR/a/step-900 as `a@step-900`.
    #[arg(long, value_name = "DIR")]
    models_dir: Option<PathBuf>,
    /// Serve only what this public key has signed (see `passerelle sign`); more than once for several keys.
    #[arg(long, value_name = "FILE")]
    trust: Vec<PathBuf>,
    /// Weights and KV caches of those in memory at once, like 16GiB [default: half of the free memory].
    #[arg(long, value_name = "SIZE")]
    model_memory: Option<ByteSize>,
    /// Where requests come in: ADDR:PORT or unix:PATH [default: 127.0.0.1:8080].
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<Listen>,
    /// Further keys, one a line as `name: key`, beside those made with `passerelle key`. Their limits: [limits].
    #[arg(long, value_name = "FILE")]
    api_key_file: Option<PathBuf>,
    /// A configuration file; what stands on the command line wins over it.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    model_args: ModelArgs,
    #[arg(long, value_name = "FORMAT", help_heading = "Logging")]
    log_format: Option<LogFormat>,
    #[arg(long, value_name = "LEVEL", help_heading = "Logging")]
    log_level: Option<LogLevel>,
}

impl ServeArgs {
    pub(crate) fn run(self) -> Result<()> {
        let config = self.clone().config(&Environment::read())?;
        // Behind the program and the command.
        let command = WorkerCommand::of_this_program(std::env::args_os().skip(2));
        crate::serve::run(&config, command, Box::new(move || self.clone().config(&Environment::read())))
    }

    pub(super) fn config(self, environment: &Environment) -> Result<Config> {
        let file = self.config.as_deref().map(config::read).transpose()?.unwrap_or_default();
        Ok(Config::check(self.written().over(file), environment)?)
    }

    fn written(self) -> Written {
        let models =
            self.models.into_iter().map(|flag| WrittenModel { name: flag.name, ..WrittenModel::of(&flag.source) });
        let models: Vec<_> = models.collect();
        let mut written = self.model_args.written();
        written.models = (!models.is_empty()).then_some(models);
        written.server.listen = self.listen;
        written.server.api_key_file = self.api_key_file;
        written.server.models_dir = self.models_dir;
        written.server.trust = (!self.trust.is_empty()).then_some(self.trust);
        written.shelf.memory = self.model_memory;
        written.log = WrittenLog { format: self.log_format, level: self.log_level };
        written
    }
}
