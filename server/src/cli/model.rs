use anyhow::Result;
use clap::{Args, Subcommand};
use passerelle::config::ByteSize;
use serde::Deserialize;
use serde_json::{Value, json};

use super::admin_client::AdminClient;
use super::output::{self, OutputArgs};
use super::state_args::StateArgs;

const EXAMPLES: &str = "\
Examples:
  passerelle model list                    what is in memory, what could be, and what cannot be and why
  passerelle model load run@step-900       before anybody asks for it; waits until it is there
  passerelle model pin run@step-900        and keep it there
  passerelle model unload run@step-800     if no request uses it";

/// See and change which models of the running server are in memory.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct ModelArgs {
    #[command(subcommand)]
    act: Act,
    #[command(flatten)]
    state: StateArgs,
}

#[derive(Debug, Subcommand)]
enum Act {
    /// Every model, with its state and what it holds.
    List(OutputArgs),
    /// Bring a model into memory, also one that failed.
    Load(Named),
    /// Take a model out of memory, if no request uses it and it is not pinned.
    Unload(Named),
    /// Never evict a model; one that is not in memory is not loaded by this.
    Pin(Named),
    /// Let a model be evicted again.
    Unpin(Named),
}

#[derive(Debug, Args)]
struct Named {
    /// As `passerelle model list` shows it.
    model: String,
    #[command(flatten)]
    output: OutputArgs,
}

/// As the server shows a model.
#[derive(Debug, Deserialize)]
struct Row {
    model: String,
    state: String,
    error: Option<String>,
    pinned: Option<bool>,
    requests: Option<u64>,
    bytes: Option<u64>,
}

impl ModelArgs {
    pub(crate) fn run(self) -> Result<()> {
        let admin = self.state.admin_client()?;
        let (act, Named { model, output }) = match self.act {
            Act::List(output) => return list(&admin, &output),
            Act::Load(named) => ("load", named),
            Act::Unload(named) => ("unload", named),
            Act::Pin(named) => ("pin", named),
            Act::Unpin(named) => ("unpin", named),
        };
        let answer = admin.post(&format!("/admin/v1/models/{act}"), &json!({"model": model}))?;
        if output.json {
            return output::json(&answer);
        }
        let row: Row = serde_json::from_value(answer)?;
        output::line(format_args!("{}: {}", row.model, row.shown()))
    }
}

fn list(admin: &AdminClient, output: &OutputArgs) -> Result<()> {
    let answer = admin.get("/admin/v1/models")?;
    if output.json {
        return output::json(&answer);
    }
    let memory = answer["memory"].clone();
    print(&admin.rows(answer)?, &memory)
}

fn print(rows: &[Row], memory: &Value) -> Result<()> {
    let width = rows.iter().map(|row| row.model.len()).max().unwrap_or(0);
    for row in rows {
        output::line(format_args!("{:<width$}  {}", row.model, row.shown()))?;
    }
    let bytes = |field: &str| memory[field].as_u64().map(ByteSize);
    match (bytes("held_bytes"), bytes("most_held_bytes"), bytes("limit_bytes")) {
        (Some(held), Some(most), Some(limit)) => {
            output::line(format_args!("those that come and go hold {held} of {limit}, and held {most} at most"))
        }
        _ => Ok(()),
    }
}

impl Row {
    fn shown(&self) -> String {
        let pinned = self.pinned.unwrap_or(false).then(|| "pinned".to_owned());
        let requests = self.requests.filter(|requests| *requests > 0);
        let requests = requests.map(|requests| format!("{requests} request{}", if requests == 1 { "" } else { "s" }));
        let bytes = self.bytes.filter(|bytes| *bytes > 0).map(|bytes| ByteSize(bytes).to_string());
        let parts = [Some(self.state.clone()), bytes, pinned, requests, self.error.clone()];
        parts.into_iter().flatten().collect::<Vec<_>>().join(", ")
    }
}
