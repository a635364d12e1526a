use anyhow::Result;
use clap::Args;
use serde_json::{Value, json};

use super::output::{self, OutputArgs};
use super::state_args::StateArgs;

const EXAMPLES: &str = "\
Examples:
  passerelle reload             what changed, and what needs a restart
  passerelle reload --json      the same, for scripts";

/// Have the running server read its configuration again. One that is wrong changes nothing.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct ReloadArgs {
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    state: StateArgs,
}

impl ReloadArgs {
    pub(crate) fn run(self) -> Result<()> {
        let answer = self.state.admin_client()?.post("/admin/v1/reload", &json!({}))?;
        if self.output.json {
            return output::json(&answer);
        }
        let names = |field: &str| {
            let names: Vec<_> = answer[field].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
            if names.is_empty() { "nothing".to_owned() } else { names.join(", ") }
        };
        output::line(format_args!("changed: {}", names("changed")))?;
        output::line(format_args!("needs a restart: {}", names("needs_restart")))
    }
}
