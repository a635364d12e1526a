//! `account apply`: accounts as a file has them.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use passerelle::config;
use passerelle::gateway::quota::{Calendar, WrittenLimit};
use passerelle::gateway::{AccountPath, Limit, Quota};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::admin_client::AdminClient;
use super::output::{self, OutputArgs};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AccountsFile {
    accounts: Vec<FileAccount>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileAccount {
    path: AccountPath,
    /// `None`: as it is.
    weight: Option<NonZeroU32>,
    #[serde(default)]
    limits: Vec<FileLimit>,
}

/// What the server is sent.
#[derive(Debug, PartialEq, Serialize)]
struct WantedAccount {
    path: AccountPath,
    weight: Option<NonZeroU32>,
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

/// The columns that a CSV file may have, one limit a line. A line without a limit is an account.
const COLUMNS: [&str; 8] = ["path", "limit", "value", "model", "from", "until", "dry_run", "weight"];

/// The first line of a CSV file: which columns it has, in its order.
struct Header<'a>(Vec<&'a str>);

/// How a file is applied.
#[derive(Debug, clap::Args)]
pub(super) struct ApplyArgs {
    /// A TOML file, or a CSV file if its name ends so.
    file: PathBuf,
    /// Show what would change, and change nothing.
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    output: OutputArgs,
}

/// One line of a CSV file, under its header.
struct Line<'a> {
    header: &'a Header<'a>,
    fields: Vec<&'a str>,
}

pub(super) fn apply(admin: &AdminClient, ApplyArgs { file, dry_run, output }: &ApplyArgs) -> Result<()> {
    let name = file.display();
    let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {name}"))?;
    // Spreadsheets begin a file in UTF-8 with a mark.
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
    let is_csv = file.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("csv"));
    let accounts = if is_csv { from_csv(text).with_context(|| name.to_string())? } else { from_toml(file, text)? };
    let wanted: Vec<_> = accounts.into_iter().map(|account| account.wanted(&admin.calendar)).collect::<Result<_>>()?;
    let answer = admin.post("/admin/v1/apply", &json!({"accounts": wanted, "dry_run": dry_run}))?;
    if output.json {
        return output::json(&answer);
    }
    let changes: Vec<String> = admin.rows(answer)?;
    changes.iter().try_for_each(output::line)?;
    match (changes.len(), *dry_run) {
        (0, _) => tell!("Nothing to change."),
        (count, true) => tell!("changes: {count}, none of them made: this is a dry run"),
        (count, false) => tell!("changes made: {count}"),
    }
    Ok(())
}

fn from_toml(file: &Path, text: &str) -> Result<Vec<FileAccount>> {
    Ok(config::parse::<AccountsFile>(file, text)?.accounts)
}

/// Names, numbers and dates hold neither a comma nor a quotation mark, so that a quoted field is one between two of these.
fn from_csv(text: &str) -> Result<Vec<FileAccount>> {
    let mut lines = text.lines();
    let header = Header::of(lines.next().unwrap_or_default())?;
    let mut accounts: BTreeMap<AccountPath, FileAccount> = BTreeMap::new();
    for (line, number) in lines.zip(2..).filter(|(line, _)| !line.trim().is_empty()) {
        add(&mut accounts, &header, line).with_context(|| format!("line {number}"))?;
    }
    Ok(accounts.into_values().collect())
}

fn add(accounts: &mut BTreeMap<AccountPath, FileAccount>, header: &Header<'_>, line: &str) -> Result<()> {
    let line = header.line(line)?;
    let path: AccountPath = line.field("path").parse()?;
    let weight =
        line.stated("weight").map(|text| text.parse::<NonZeroU32>().with_context(|| format!("`{text}` is no weight")));
    let weight = weight.transpose()?;
    let account = match accounts.entry(path) {
        Entry::Vacant(vacant) => {
            let path = vacant.key().clone();
            vacant.insert(FileAccount { path, weight, limits: Vec::new() })
        }
        Entry::Occupied(occupied) => occupied.into_mut(),
    };
    if weight.is_some_and(|weight| *account.weight.get_or_insert(weight) != weight) {
        bail!("another line gives `{}` another weight", account.path);
    }
    account.limits.extend(line.limit()?);
    Ok(())
}

fn field(written: &str) -> &str {
    let written = written.trim();
    let quoted = written.strip_prefix('"').and_then(|rest| rest.strip_suffix('"'));
    quoted.map_or(written, str::trim)
}

impl<'a> Header<'a> {
    fn of(line: &'a str) -> Result<Self> {
        let names: Vec<&str> = line.split(',').map(field).collect();
        let is_known = |name: &&str| COLUMNS.contains(name);
        let is_once = |name: &&str| names.iter().filter(|other| *other == name).count() == 1;
        if !names.contains(&"path") || !names.iter().all(|name| is_known(name) && is_once(name)) {
            bail!("the first line must name `path` and others of the columns `{}`", COLUMNS.join(","));
        }
        Ok(Self(names))
    }

    fn line(&'a self, line: &'a str) -> Result<Line<'a>> {
        let fields: Vec<&str> = line.split(',').map(field).collect();
        if fields.len() != self.0.len() {
            bail!("{} fields, not {}", fields.len(), self.0.len());
        }
        Ok(Line { header: self, fields })
    }
}

impl Line<'_> {
    /// Empty where there is no such column.
    fn field(&self, name: &str) -> &str {
        self.header.0.iter().position(|column| *column == name).map_or("", |at| self.fields[at])
    }

    fn stated(&self, name: &str) -> Option<&str> {
        Some(self.field(name)).filter(|text| !text.is_empty())
    }

    fn limit(&self) -> Result<Option<FileLimit>> {
        let Some(limit) = self.stated("limit") else { return Ok(None) };
        let owned = |name: &str| self.stated(name).map(str::to_owned);
        let value = self.field("value");
        Ok(Some(FileLimit {
            limit: limit.to_owned(),
            value: value.parse().with_context(|| format!("`{value}` is no number"))?,
            model: owned("model"),
            from: owned("from"),
            until: owned("until"),
            dry_run: truth(self.field("dry_run"))?,
        }))
    }
}

/// As spreadsheets write it. A word that is neither must not make a limit real, nor a trial of it.
fn truth(text: &str) -> Result<bool> {
    match text.to_ascii_lowercase().as_str() {
        "true" => Ok(true),
        "false" | "" => Ok(false),
        _ => bail!("dry_run is `true` or `false`, not `{text}`"),
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn in_toml(text: &str) -> Result<Vec<FileAccount>> {
        from_toml(Path::new("accounts.toml"), text)
    }

    #[test]
    fn toml_and_csv_say_the_same() {
        let toml = "[[accounts]]\npath = \"acme\"\nlimits = [{ limit = \"gpu_seconds_granted\", value = 60, \
                    until = \"2027-01-01\" }, { limit = \"tokens_per_day\", value = 5, model = \"demo\" }]\n\
                    [[accounts]]\npath = \"acme/vision\"\n";
        let csv = "path,limit,value,model,from,until,dry_run\nacme,gpu_seconds_granted,60,,,2027-01-01,\n\
                   acme,tokens_per_day,5,demo,,,false\nacme/vision,,,,,,\n";
        let wanted = |accounts: Vec<FileAccount>| -> Vec<WantedAccount> {
            accounts.into_iter().map(|account| account.wanted(&Calendar::utc()).expect("valid")).collect()
        };
        let (toml, csv) = (in_toml(toml).expect("TOML"), from_csv(csv).expect("CSV"));
        assert_eq!(wanted(toml), wanted(csv));
    }

    #[test]
    fn what_is_wrong_is_said_with_its_line() {
        for (text, reason) in [
            ("limit,value\n", "the first line must name `path`"),
            ("path,limmit\n", "the first line must name"),
            ("path,path\n", "the first line must name"),
            ("path,limit,value\na,b\n", "line 2: 2 fields, not 3"),
            ("path,limit,value\na,tokens_per_day,much\n", "line 2: `much` is no number"),
            ("path,weight\na,1\nb,much\n", "line 3: `much` is no weight"),
            ("path,weight\na,1\na,2\n", "line 3: another line gives `a` another weight"),
            ("path,limit,value,dry_run\na,tokens_per_day,5,yes\n", "line 2: dry_run is `true` or `false`, not `yes`"),
        ] {
            let error = format!("{:#}", from_csv(text).err().expect(text));
            assert!(error.contains(reason), "{error}");
        }
        for (text, reason) in [
            ("[[accounts]]\npath = \"a b\"\n", "accounts.toml:2:8: path: 'a b' is no account"),
            ("[[accounts]]\npth = \"a\"\n", "accounts.toml:2:1: unknown field `pth`"),
            ("[[accounts]]\npth = \"a\"\n", "did you mean `path`?"),
            ("[accounts]\npath = \"a\"\n", "accounts.toml:1:1: `accounts` is a list: write [[accounts]]"),
        ] {
            let error = format!("{:#}", in_toml(text).err().expect(text));
            assert!(error.contains(reason), "{error}");
        }
    }

    #[test]
    fn what_a_spreadsheet_writes_is_read() {
        let trial = |word: &str| {
            let csv = format!("path,limit,value,dry_run\r\na,tokens_per_day,5,{word}\r\n");
            from_csv(&csv).expect("CSV")[0].limits[0].dry_run
        };
        assert!(["true", "TRUE", "True"].into_iter().all(trial));
        assert!(!["false", "FALSE", ""].into_iter().any(trial));
        assert!(trial("\"TRUE\"") && !trial("\"\""));
        let quoted = from_csv("\"path\",\"limit\",\"value\"\r\n\"a/b\",\"tokens_per_day\",\"5\"\r\n").expect("CSV");
        assert_eq!((quoted[0].path.as_str(), quoted[0].limits[0].value), ("a/b", 5.0));
        assert!(from_csv("path\n\"a\n").is_err(), "a mark that nothing closes");
    }

    #[test]
    fn a_weight_is_read_where_it_stands_and_left_alone_where_it_does_not() {
        let weight = |csv: &str| from_csv(csv).expect("CSV")[0].weight.map(NonZeroU32::get);
        assert_eq!(weight("path,limit,value\na,,\n"), None);
        assert_eq!(weight("weight,path\n3,a\n,a\n"), Some(3));
        let toml = in_toml("[[accounts]]\npath = \"a\"\n").expect("TOML");
        assert_eq!(toml[0].weight, None);
    }
}
