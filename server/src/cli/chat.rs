use std::io::{self, BufRead, IsTerminal, Write};
use std::num::NonZeroUsize;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use clap::Args;
use passerelle::config::{Config, DEMO, Environment, Listen, Secret, WrittenModel};
use serde_json::{Value, json};

use super::model_args::ModelArgs;
use crate::serve::{self, Door};
use client::Client;

mod client;

const EXAMPLES: &str = "\
Examples:
  passerelle chat                                    the bundled demo model, loaded in this process
  passerelle chat --model ./checkpoint
  passerelle chat --url http://127.0.0.1:8080 --name mine

Inside: /reset forgets the conversation, /quit (or end of input) leaves.
Where input is no terminal, an answer that failed gives status 1.
With --url the key is read from OPENAI_API_KEY or --api-key-file.";

/// Talk to a model in this terminal.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct ChatArgs {
    /// The model to load: a directory, a .gguf file, a hub id[@revision] [default: demo].
    #[arg(long, value_name = "SOURCE", conflicts_with = "url")]
    model: Option<String>,
    /// An OpenAI-compatible server to talk to instead.
    // That server has loaded its model already.
    #[arg(long, value_name = "URL", conflicts_with = "ModelArgs")]
    url: Option<String>,
    /// The model's name on that server [default: the first it lists].
    #[arg(long, value_name = "NAME", requires = "url")]
    name: Option<String>,
    /// A file whose first key is for that server: a line `key` or `name: key`, after any `#` comments.
    #[arg(long, value_name = "FILE", requires = "url")]
    api_key_file: Option<PathBuf>,
    /// What the model is told first.
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    /// 0 always takes the likeliest token [default: the model's choice].
    #[arg(long, value_name = "T")]
    temperature: Option<f32>,
    /// Longest answer, in tokens [default: what the context leaves].
    #[arg(long, value_name = "TOKENS")]
    max_tokens: Option<u32>,
    #[command(flatten)]
    model_args: ModelArgs,
}

impl ChatArgs {
    pub(crate) fn run(self) -> Result<()> {
        let environment = Environment::read();
        match &self.url {
            Some(url) => {
                let key = self.key(&environment)?;
                let client = Client::new(url, key)?;
                self.talk(&client)
            }
            None => self.talk_in_process(&environment),
        }
    }

    /// Serves the model on a loopback port that nobody else is told, and talks to that: there is one way to chat.
    fn talk_in_process(&self, environment: &Environment) -> Result<()> {
        let config = self.config(environment)?;
        let runtime = serve::runtime()?;
        let server = serve::start(&config, Door::Open, &runtime)?;
        server.serve_while(&runtime, |url| self.talk(&Client::new(url, None)?))
    }

    fn config(&self, environment: &Environment) -> Result<Config> {
        let mut written = self.model_args.clone().written();
        written.server.listen = Some(Listen::ANY_LOOPBACK_PORT);
        written.models = Some(vec![WrittenModel::of(self.model.as_deref().unwrap_or(DEMO))]);
        // One person talks; room for their words and no more.
        written.engine.max_num_seqs = written.engine.max_num_seqs.or(Some(NonZeroUsize::MIN));
        Ok(Config::check(written, environment)?)
    }

    fn key(&self, environment: &Environment) -> Result<Option<Secret>> {
        let Some(file) = &self.api_key_file else { return Ok(environment.openai_api_key.clone()) };
        let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
        let key = first_key(&text).with_context(|| format!("{}: holds no key", file.display()))?;
        Ok(Some(Secret::new(key)))
    }

    fn talk(&self, client: &Client) -> Result<()> {
        let model = match &self.name {
            Some(name) => name.clone(),
            None => client.first_model()?,
        };
        tell!("{model}: /reset forgets, /quit leaves.");
        let mut messages = self.beginning();
        let mut num_failed = 0_usize;
        let mut lines = io::stdin().lock().lines();
        loop {
            prompt()?;
            let Some(line) = lines.next().transpose().context("cannot read standard input")? else { break };
            match line.trim() {
                "" => {}
                "/quit" | "/exit" => break,
                "/reset" => messages = self.beginning(),
                command if command.starts_with('/') => {
                    tell!("{command} is not a command: /reset forgets, /quit leaves.");
                }
                said => num_failed += usize::from(!self.exchange(client, &model, &mut messages, said)?),
            }
        }
        // Whoever types has seen it; a script sees the status.
        ensure!(num_failed == 0 || io::stdin().is_terminal(), "answers that failed: {num_failed}");
        Ok(())
    }

    fn beginning(&self) -> Vec<Value> {
        self.system.iter().map(|text| message("system", text)).collect()
    }

    /// One question and its answer; whether there was one. A refusal is shown and forgotten, so that the conversation can
    /// go on.
    fn exchange(&self, client: &Client, model: &str, messages: &mut Vec<Value>, said: &str) -> Result<bool> {
        messages.push(message("user", said));
        let mut body = json!({"model": model, "messages": messages, "stream": true});
        if let Some(max_tokens) = self.max_tokens {
            body["max_tokens"] = json!(max_tokens);
        }
        if let Some(temperature) = self.temperature {
            body["temperature"] = json!(temperature);
        }
        let mut out = io::stdout().lock();
        let answer = client.stream(&body, |piece| {
            write!(out, "{piece}").and_then(|()| out.flush()).context("cannot write to standard output")
        });
        Ok(match answer {
            Ok(text) => {
                writeln!(out)?;
                messages.push(message("assistant", &text));
                true
            }
            Err(error) => {
                messages.pop();
                tell!("{error:#}");
                false
            }
        })
    }
}

fn message(role: &str, content: &str) -> Value {
    json!({"role": role, "content": content})
}

/// As `serve --api-key-file` reads the same file: a bearer token has no `:`, so the first one ends a name.
fn first_key(text: &str) -> Option<&str> {
    let line = text.lines().map(str::trim).find(|line| !line.is_empty() && !line.starts_with('#'))?;
    let key = line.split_once(':').map_or(line, |(_, key)| key.trim());
    (!key.is_empty()).then_some(key)
}

/// A sign to type, where somebody types.
fn prompt() -> Result<()> {
    if io::stdin().is_terminal() {
        let mut stderr = io::stderr().lock();
        write!(stderr, "> ").and_then(|()| stderr.flush()).context("cannot write to standard error")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_s_own_file_of_keys_can_be_used_to_talk_to_it() {
        assert_eq!(first_key("# staff\n\nalice: correct-horse-battery\nbob: x\n"), Some("correct-horse-battery"));
        assert_eq!(first_key("  0123456789abcdef  \n"), Some("0123456789abcdef"));
        assert_eq!(first_key("# nothing\nalice:\n"), None);
    }
}
