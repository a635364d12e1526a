//! The table of a comparison.

use super::{Comparison, PromptTokens, Ratio, Row, Stopped};
use crate::figures::short;
use crate::process::{MachineFigures, shown_cores};

const MIB: f64 = 1024.0 * 1024.0;

impl Comparison {
    pub fn table(&self) -> String {
        let mut text = format!("{:<32}", "");
        for (which, name) in self.contenders.iter().enumerate() {
            text.push_str(&format!("{name:>12}"));
            if which > 0 {
                text.push_str(&format!("{:>26}", format!("{name}/{}", self.contenders[0])));
            }
        }
        text.push('\n');
        self.rows.iter().for_each(|row| text.push_str(&row.line()));
        text.push_str(&plain_line("requests not answered", self.unanswered.iter().map(usize::to_string)));
        text.push_str(&plain_line("prompt tokens from a cache, %", self.prompts.iter().map(PromptTokens::shown)));
        if self.servers.iter().any(|server| server.cpu_cores.is_some()) {
            let cores = self.servers.iter().map(|server| shown_cores(server.cpu_cores));
            text.push_str(&plain_line("the server's cores", cores));
            let sizes =
                self.servers.iter().map(|server| server.rss_max_bytes.map_or(f64::NAN, |size| size as f64 / MIB));
            text.push_str(&plain_line("its resident size, max MiB", sizes.map(short)));
        }
        for (name, rows) in self.tenants.iter().filter(|_| self.tenants.len() > 1) {
            text.push_str(&format!("tenant {name}\n"));
            rows.iter().for_each(|row| text.push_str(&row.line()));
        }
        text.push_str(&format!(
            "{} requests in {} rounds; ratios with 95 % intervals (each round left out once, Student's t)\n",
            self.requests, self.rounds
        ));
        if let Some(Stopped { round, why }) = &self.stopped {
            text.push_str(&format!("warning: ended in round {round}, which is left out: {why}\n"));
        }
        for (name, endings) in self.contenders.iter().zip(&self.endings).filter(|(_, endings)| !endings.is_empty()) {
            let kinds: Vec<String> = endings.iter().map(|(ending, count)| format!("{ending}: {count}")).collect();
            let kinds = kinds.join(", ");
            text.push_str(&format!(
                "warning: {name} did not answer all ({kinds}); what one did not is left out for all\n"
            ));
        }
        for name in &self.without_usage {
            text.push_str(&format!("warning: {name} told no usage; its answers were counted by the tokenizer\n"));
        }
        let generator = &self.generator;
        text.push_str(&format!(
            "generator: {} cores with {} threads, {:.0} events/s; other programs: {}\n",
            shown_cores(generator.cpu_cores),
            generator.threads,
            generator.events_per_s,
            self.machine.as_ref().map_or("not known, for a server's process is not".to_owned(), |machine| {
                format!("{} of {} cores", shown_cores(machine.foreign_cpu_cores), machine.cores)
            })
        ));
        let first_token_ms = self.rows.first().and_then(|row| row.values.first()).copied().unwrap_or(f64::INFINITY);
        let foreign = self.machine.as_ref().and_then(MachineFigures::warning);
        for warning in generator.warnings(first_token_ms).into_iter().chain(foreign) {
            text.push_str(&format!("warning: {warning}\n"));
        }
        text
    }
}

impl PromptTokens {
    fn shown(&self) -> String {
        short(self.cached as f64 / self.all as f64 * 100.0)
    }
}

impl Row {
    fn line(&self) -> String {
        let mut line = format!("{:<32}", self.figure);
        for (which, value) in self.values.iter().enumerate() {
            line.push_str(&format!("{:>12}", short(*value)));
            if which > 0 {
                line.push_str(&format!("{:>26}", shown(self.ratios[which - 1])));
            }
        }
        line.push('\n');
        line
    }
}

/// Without ratios.
fn plain_line(name: &str, values: impl Iterator<Item = String>) -> String {
    let mut line = format!("{name:<32}");
    for (which, value) in values.enumerate() {
        line.push_str(&format!("{value:>12}{:>width$}", "", width = if which > 0 { 26 } else { 0 }));
    }
    line.truncate(line.trim_end().len());
    line.push('\n');
    line
}

fn shown(ratio: Option<Ratio>) -> String {
    ratio.filter(|ratio| ratio.estimate.is_finite()).map_or_else(|| "-".to_owned(), |ratio| ratio.to_string())
}
