//! The command line.

mod adhoc;
mod check;
mod compare;
mod drill;
mod interrupt;
mod load;
mod mock;
mod numbers;
mod options;
mod self_check;
mod sweep;
mod watch;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use passerelle_loadtests::scenario::{BUILTIN, Scenario};
use passerelle_loadtests::verdict::{Outcome, Verdict};

/// The measurement or the check could not be made at all; 1 is a verdict.
pub(crate) const EXIT_COULD_NOT_TRY: u8 = 2;

/// Measures and judges OpenAI-compatible servers under load.
#[derive(Debug, Parser)]
#[command(version, arg_required_else_help = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Send a scenario to a server and report its figures
    Run(Box<load::RunArgs>),
    /// Send one kind of load at rising levels, until the server no longer keeps up
    Sweep(Box<sweep::SweepArgs>),
    /// Send a scenario to several servers, in turns, and compare their figures
    Compare(Box<compare::CompareArgs>),
    /// Try to break a promise of a server; exits 1 where it falls short, 2 where that could not be tried or told
    Check(Box<check::CheckArgs>),
    /// Try to break a promise of servers that are started for it; exits as `check` does
    Drill(Box<drill::DrillArgs>),
    /// Measure a server of this program whose delays are known; exits as `check` does
    SelfCheck(self_check::SelfCheckArgs),
    /// Be a replica that computes nothing, to measure what a gateway before it adds; prints `ready: URL`
    Mock(mock::MockArgs),
    /// List the scenarios that come with this program
    Scenarios,
}

impl Cli {
    pub(crate) fn execute(self) -> anyhow::Result<ExitCode> {
        match self.command {
            Command::Run(args) => args.execute(),
            Command::Sweep(args) => args.execute(),
            Command::Compare(args) => args.execute(),
            Command::Check(args) => args.execute(),
            Command::Drill(args) => args.execute(),
            Command::SelfCheck(args) => args.execute(),
            Command::Mock(args) => args.execute(),
            Command::Scenarios => list_scenarios(),
        }
    }
}

fn list_scenarios() -> anyhow::Result<ExitCode> {
    for (name, _) in BUILTIN {
        say(&format!("{name:<26}{}", Scenario::load(name)?.description));
    }
    Ok(ExitCode::SUCCESS)
}

fn exit_code(verdict: &Verdict) -> ExitCode {
    match verdict.outcome() {
        Outcome::Holds => ExitCode::SUCCESS,
        Outcome::FallsShort => ExitCode::FAILURE,
        Outcome::CannotTell => ExitCode::from(EXIT_COULD_NOT_TRY),
    }
}

/// A line of the answer, on standard output. A reader who has gone, as `head` does, wanted no more of it.
fn say(text: &str) {
    use std::io::Write;
    let _ = writeln!(std::io::stdout(), "{text}");
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn every_command_and_every_option_says_what_it_is() {
        for command in Cli::command().get_subcommands() {
            assert!(command.get_about().is_some(), "{}", command.get_name());
            for argument in command.get_arguments() {
                assert!(argument.get_help().is_some(), "{} {}", command.get_name(), argument.get_id());
            }
        }
    }

    #[test]
    fn where_figures_go_stands_under_a_heading_of_its_own() {
        let command = Cli::command();
        let heading = |name: &str, option: &str| {
            let command = command.find_subcommand(name).expect("it is a command");
            let option = command.get_arguments().find(|argument| argument.get_id() == option).expect("it is an option");
            option.get_help_heading().map(str::to_owned)
        };
        for name in ["run", "sweep", "compare", "check", "drill"] {
            for option in ["json", "save", "note"] {
                assert_eq!(heading(name, option).as_deref(), Some("Output"), "{name} --{option}");
            }
            assert_ne!(heading(name, "tokenizer").as_deref(), Some("Output"), "{name}");
        }
        assert_eq!(heading("run", "per_request").as_deref(), Some("Output"));
        assert_eq!(heading("drill", "command"), None);
        command.clone().debug_assert();
    }
}
