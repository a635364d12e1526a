use std::fs::{File, OpenOptions};
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand, ValueEnum};
use passerelle::gateway::AccountPath;
use passerelle::gateway::journal::export::{Exported, verify_csv};
use passerelle::gateway::journal::{UsageSum, Used, UserSum};
use passerelle::gateway::tariff::{HourUse, TimeUse};
use serde_json::json;

use super::admin_client::AdminClient;
use super::output::{self, OutputArgs};
use super::state_args::StateArgs;

const EXAMPLES: &str = "\
Examples:
  passerelle usage                                       everybody, by account and model
  passerelle usage show acme --since 2026-11-01 --json
  passerelle usage show acme --by user                   by the users that requests name
  passerelle usage hours                                 where the server's time went, hour by hour
  passerelle usage export ledger.csv                     every request, chained by hash; prints the end of the chain
  passerelle usage export - | gzip >ledger.csv.gz
  passerelle usage verify ledger.csv                     offline: was anything changed?
  zcat ledger.csv.gz | passerelle usage verify -";

/// Show what was used, export the ledger, and verify an export.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct UsageArgs {
    #[command(subcommand)]
    command: Option<UsageCommand>,
    #[command(flatten)]
    state: StateArgs,
}

#[derive(Debug, Subcommand)]
enum UsageCommand {
    /// Sums by account and model, or by account and user.
    Show(ShowArgs),
    /// Show where the time of each partition of the server that runs went, hour by hour, in normalised GPU seconds:
    /// billed, computed but not billed (below nothing where batches are fuller than the tariff's), and idle. They add
    /// up to what elapsed.
    Hours(OutputArgs),
    /// Write every settled entry as CSV.
    Export {
        /// Where to: a file that must not exist, a pipe or device, or - [default: standard output].
        file: Option<PathBuf>,
    },
    /// Compute the chain of an export again. Needs nothing but the file.
    Verify {
        /// The export, or - for standard input.
        file: PathBuf,
        /// The end of the chain as it was printed by the export, which a file that was cut short does not have.
        #[arg(long, value_name = "HASH")]
        head: Option<String>,
        #[command(flatten)]
        output: OutputArgs,
    },
}

#[derive(Debug, Args)]
struct ShowArgs {
    /// This account and everything below it [default: everybody].
    #[arg(default_value = "/", hide_default_value = true)]
    account: AccountPath,
    /// The first day that counts [default: from the beginning].
    #[arg(long, value_name = "DATE")]
    since: Option<String>,
    /// The first day that no longer counts [default: to the end].
    #[arg(long, value_name = "DATE")]
    until: Option<String>,
    /// What is summed up by, beside the account: the model, or the user that requests name in `user` or `safety_identifier`.
    #[arg(long, value_enum, default_value_t = By::Model)]
    by: By,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum By {
    Model,
    User,
}

impl UsageArgs {
    pub(crate) fn run(self) -> Result<()> {
        match self.command {
            None => {
                let output = OutputArgs { json: false };
                let (account, since, until, by) = (AccountPath::root(), None, None, By::Model);
                let all = ShowArgs { account, since, until, by, output };
                show(&self.state.admin_client()?, all)
            }
            Some(UsageCommand::Show(args)) => show(&self.state.admin_client()?, args),
            Some(UsageCommand::Hours(output)) => hours(&self.state.admin_client()?, output),
            Some(UsageCommand::Export { file }) => export(&self.state.admin_client()?, file),
            Some(UsageCommand::Verify { file, head, output }) => verify(&file, head.as_deref(), output),
        }
    }
}

fn show(admin: &AdminClient, args: ShowArgs) -> Result<()> {
    let instant = |name: &str, date: Option<String>| -> Result<String> {
        let at = date.map(|date| admin.calendar.start_of(&date)).transpose()?;
        Ok(at.map_or_else(String::new, |at| format!("&{name}={}", at.0)))
    };
    let (since, until) = (instant("since", args.since)?, instant("until", args.until)?);
    let by = match args.by {
        By::Model => "model",
        By::User => "user",
    };
    let answer = admin.get(&format!("/admin/v1/usage?account={}&by={by}{since}{until}", args.account))?;
    if args.output.json {
        return output::json(&answer["data"]);
    }
    let rows: Vec<(String, String, Used)> = match args.by {
        By::Model => {
            admin.rows::<UsageSum>(answer)?.into_iter().map(|sum| (sum.account, sum.model, sum.used)).collect()
        }
        By::User => {
            let user = |sum: &UserSum| sum.user.clone().unwrap_or_else(|| "-".to_owned());
            admin.rows::<UserSum>(answer)?.into_iter().map(|sum| (sum.account.clone(), user(&sum), sum.used)).collect()
        }
    };
    if rows.is_empty() {
        tell!("Nothing was used. Only requests with a key are counted.");
        return Ok(());
    }
    let heading = ["REQUESTS", "INPUT", "CACHED", "OUTPUT", "GPU SECONDS"];
    let [requests, input, cached, generated, gpu] = heading;
    let line = format!("{requests:>10}{input:>12}{cached:>12}{generated:>12}{gpu:>16}");
    output::line(format_args!("{:<32}{:<24}{line}", "ACCOUNT", by.to_uppercase()))?;
    rows.iter().try_for_each(|(account, by, used)| {
        let Used { requests, input_tokens, cached_tokens, output_tokens, billed_gpu_us, .. } = used;
        let gpu_seconds = *billed_gpu_us as f64 / 1e6;
        let tokens = format!("{requests:>10}{input_tokens:>12}{cached_tokens:>12}{output_tokens:>12}");
        output::line(format_args!("{account:<32}{by:<24}{tokens}{gpu_seconds:>16.6}"))
    })
}

fn hours(admin: &AdminClient, output: OutputArgs) -> Result<()> {
    let answer = admin.get("/admin/v1/usage/hours")?;
    if output.json {
        return output::json(&answer);
    }
    let [billed, under_use, idle, elapsed] = ["BILLED", "UNDER-USE", "IDLE", "ELAPSED"];
    output::line(format_args!(
        "{:<12}{:<28}{billed:>14}{under_use:>14}{idle:>14}{elapsed:>14}",
        "PARTITION", "HOUR FROM"
    ))?;
    admin.rows(answer)?.iter().try_for_each(|HourUse { partition, hour, used }| {
        let (from, TimeUse { billed, under_use, idle, elapsed }) = (admin.calendar.show(*hour), used);
        output::line(format_args!(
            "{partition:<12}{from:<28}{billed:>14.3}{under_use:>14.3}{idle:>14.3}{elapsed:>14.3}"
        ))
    })
}

/// What comes is verified while it is written.
fn export(admin: &AdminClient, file: Option<PathBuf>) -> Result<()> {
    let ledger = admin.download("/admin/v1/usage/export")?;
    let is_stdout = |path: &PathBuf| ["-", "/dev/stdout"].iter().any(|name| path == Path::new(name));
    let exported = match &file.filter(|file| !is_stdout(file)) {
        None => verify_csv(BufReader::new(Tee { from: ledger, to: io::stdout().lock() }))?,
        Some(path) => write_new(path, ledger)?,
    };
    tell!("{} entries; the chain ends at {}", exported.entries, exported.head.hex());
    Ok(())
}

/// Of a file, all or nothing: half an export would be in the way of the next one.
fn write_new(path: &Path, ledger: impl Read) -> Result<Exported> {
    let named = || format!("cannot write {}", path.display());
    let mut out = BufWriter::new(open_new(path).with_context(named)?);
    let verified = verify_csv(BufReader::new(Tee { from: ledger, to: &mut out })).map_err(anyhow::Error::from);
    let exported = verified.and_then(|exported| out.flush().map(|()| exported).with_context(named));
    if exported.is_err() && path.is_file() {
        std::fs::remove_file(path).with_context(named)?;
    }
    exported
}

/// An earlier export is what a later one is compared with, so a file must be new; a pipe or a device is there before.
fn open_new(path: &Path) -> io::Result<File> {
    match File::create_new(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && !path.metadata()?.is_file() => {
            OpenOptions::new().write(true).open(path)
        }
        opened => opened.map_err(output::must_be_new),
    }
}

/// Writes down what is read through it.
struct Tee<R, W> {
    from: R,
    to: W,
}

impl<R: Read, W: Write> Read for Tee<R, W> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let read = self.from.read(into)?;
        self.to.write_all(&into[..read])?;
        Ok(read)
    }
}

fn verify(file: &Path, head: Option<&str>, output: OutputArgs) -> Result<()> {
    let Exported { entries, head: found } = if file == Path::new("-") {
        verify_csv(io::stdin().lock())?
    } else {
        let open = File::open(file).with_context(|| format!("cannot read {}", file.display()))?;
        verify_csv(BufReader::new(open))?
    };
    if head.is_some_and(|head| head != found.hex()) {
        bail!(
            "every line follows from those before it, but the chain ends at {}: the file was cut short, or --head is \
             of another export",
            found.hex()
        );
    }
    if output.json {
        return output::json(&json!({"entries": entries, "head": found.hex()}));
    }
    output::line(format_args!("{entries} entries, unbroken; the chain ends at {}", found.hex()))
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Breaks;

    impl Read for Breaks {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::Error::other("the server is gone"))
        }
    }

    #[test]
    fn an_export_that_breaks_off_leaves_no_half_of_one_and_touches_nothing_that_was_there() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("ledger.csv");
        let error = write_new(&path, Breaks).expect_err("it broke off");
        assert!(format!("{error:#}").contains("the server is gone"), "{error:#}");
        assert!(!path.exists(), "the next export may have the name");
        write_new(&path, &b"what is no export\n"[..]).expect_err("and has no use");
        assert!(!path.exists());
        std::fs::write(&path, "an earlier one").expect("the folder is writable");
        write_new(&path, Breaks).expect_err("it is there");
        assert_eq!(std::fs::read_to_string(&path).expect("it is there"), "an earlier one");
        write_new(Path::new("/dev/null"), Breaks).expect_err("it broke off");
        assert!(Path::new("/dev/null").exists());
    }
}
