//! `account apply`: accounts as a file has them.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::path::Path;

use anyhow::{Context, Result, bail};
use passerelle::gateway::quota::{Calendar, WrittenLimit};
use passerelle::gateway::{AccountPath, Limit, Quota};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::office::Office;
use super::output;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AccountsFile {
    accounts: Vec<FileAccount>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileAccount {
    path: AccountPath,
    #[serde(default = "one")]
    weight: NonZeroU32,
    #[serde(default)]
    limits: Vec<FileLimit>,
}

/// What the server is sent.
#[derive(Debug, PartialEq, Serialize)]
struct WantedAccount {
    path: AccountPath,
    weight: NonZeroU32,
    limits: Quota,
}

/// A [`WrittenLimit`] with dates.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileLimit {
    limit: String,
    value: f64,
    model: Option<String>,
    from: Option<String>,
    until: Option<String>,
    #[serde(default)]
    dry_run: bool,
}

/// The columns of a CSV file, one limit a line. A line without a limit is an account.
const COLUMNS: &str = "path,limit,value,model,from,until,dry_run";

pub(super) fn apply(office: &Office, file: &Path, dry_run: bool) -> Result<()> {
    let name = file.display();
    let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {name}"))?;
    let is_csv = file.extension().is_some_and(|extension| extension == "csv");
    let accounts = if is_csv { from_csv(&text) } else { from_toml(&text) }.with_context(|| name.to_string())?;
    let wanted: Vec<_> = accounts.into_iter().map(|account| account.wanted(&office.calendar)).collect::<Result<_>>()?;
    let answer = office.post("/admin/v1/apply", &json!({"accounts": wanted, "dry_run": dry_run}))?;
    let changes: Vec<String> = office.rows(answer)?;
    changes.iter().try_for_each(output::line)?;
    match (changes.len(), dry_run) {
        (0, _) => eprintln!("Nothing to change."),
        (count, true) => eprintln!("{count} changes, none of them made: this is a dry run."),
        (count, false) => eprintln!("{count} changes made."),
    }
    Ok(())
}

fn from_toml(text: &str) -> Result<Vec<FileAccount>> {
    Ok(toml::from_str::<AccountsFile>(text)?.accounts)
}

/// Names, numbers and dates hold no comma, so none is quoted.
fn from_csv(text: &str) -> Result<Vec<FileAccount>> {
    let mut lines = text.lines();
    if lines.next().map(str::trim) != Some(COLUMNS) {
        bail!("the first line must be `{COLUMNS}`");
    }
    let mut accounts: BTreeMap<AccountPath, FileAccount> = BTreeMap::new();
    for (line, number) in lines.zip(2..).filter(|(line, _)| !line.trim().is_empty()) {
        let fields: Vec<&str> = line.split(',').map(str::trim).collect();
        let &[path, limit, value, model, from, until, dry_run] = fields.as_slice() else {
            bail!("line {number} has {} fields, not 7", fields.len());
        };
        let path: AccountPath = path.parse().with_context(|| format!("line {number}"))?;
        let empty = FileAccount { path: path.clone(), weight: NonZeroU32::MIN, limits: Vec::new() };
        let account = accounts.entry(path).or_insert(empty);
        if limit.is_empty() {
            continue;
        }
        let stated = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
        account.limits.push(FileLimit {
            limit: limit.to_owned(),
            value: value.parse().with_context(|| format!("line {number}: `{value}` is no number"))?,
            model: stated(model),
            from: stated(from),
            until: stated(until),
            dry_run: dry_run == "true",
        });
    }
    Ok(accounts.into_values().collect())
}

impl FileAccount {
    fn wanted(self, calendar: &Calendar) -> Result<WantedAccount> {
        let limits: Result<Vec<Limit>> = self.limits.into_iter().map(|limit| limit.checked(calendar)).collect();
        let limits = limits.and_then(|limits| Ok(Quota::new(limits)?)).with_context(|| self.path.to_string())?;
        Ok(WantedAccount { path: self.path, weight: self.weight, limits })
    }
}

impl FileLimit {
    fn checked(self, calendar: &Calendar) -> Result<Limit> {
        let instant = |date: Option<String>| date.map(|date| calendar.start_of(&date).map(|at| at.0)).transpose();
        let (from, until) = (instant(self.from)?, instant(self.until)?);
        let Self { limit, value, model, dry_run, .. } = self;
        Ok(WrittenLimit { limit, value, model, from, until, dry_run }.try_into()?)
    }
}

fn one() -> NonZeroU32 {
    NonZeroU32::MIN
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn toml_and_csv_say_the_same() {
        let toml = "[[accounts]]\npath = \"acme\"\nlimits = [{ limit = \"gpu_seconds_granted\", value = 60, \
                    until = \"2027-01-01\" }, { limit = \"tokens_per_day\", value = 5, model = \"demo\" }]\n\
                    [[accounts]]\npath = \"acme/vision\"\n";
        let csv = format!(
            "{COLUMNS}\nacme,gpu_seconds_granted,60,,,2027-01-01,\nacme,tokens_per_day,5,demo,,,false\nacme/vision,,,,,,\n"
        );
        let wanted = |accounts: Vec<FileAccount>| -> Vec<WantedAccount> {
            accounts.into_iter().map(|account| account.wanted(&Calendar::utc()).expect("valid")).collect()
        };
        let (toml, csv) = (from_toml(toml).expect("TOML"), from_csv(&csv).expect("CSV"));
        assert_eq!(wanted(toml), wanted(csv));
    }

    #[test]
    fn what_is_wrong_is_said_with_its_line() {
        for (text, reason) in [
            ("path,limit\n", "the first line must be"),
            (&*format!("{COLUMNS}\na,b\n"), "line 2 has 2 fields"),
            (&*format!("{COLUMNS}\na,tokens_per_day,much,,,,\n"), "line 2: `much` is no number"),
        ] {
            let error = format!("{:#}", from_csv(text).err().expect(text));
            assert!(error.contains(reason), "{error}");
        }
        assert!(from_toml("[[accounts]]\npath = \"a b\"\n").is_err());
    }
}
