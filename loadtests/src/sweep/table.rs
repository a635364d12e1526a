//! The table of a sweep.

use super::{Level, Sweep};
use crate::figures::{Figures, Quantiles, short};
use crate::process::shown_cores;

type Column = (&'static str, fn(&Figures) -> f64);

const COLUMNS: [Column; 10] = [
    ("finished/s", |figures| figures.requests_per_s),
    ("tokens/s", |figures| figures.output_tokens_per_s),
    ("TTFT p50", |figures| of(figures.ttft_ms, |ttft| ttft.p50)),
    ("TTFT p99", |figures| of(figures.ttft_ms, |ttft| ttft.p99)),
    ("TPOT p50", |figures| of(figures.tpot_ms, |tpot| tpot.p50)),
    ("TPOT p99", |figures| of(figures.tpot_ms, |tpot| tpot.p99)),
    ("E2E p50", |figures| of(figures.e2e_ms, |e2e| e2e.p50)),
    ("E2E p99", |figures| of(figures.e2e_ms, |e2e| e2e.p99)),
    ("good %", |figures| figures.good_share * 100.0),
    ("unserved", |figures| (figures.requests - figures.finished) as f64),
];

impl Sweep {
    pub fn table(&self) -> String {
        let mut text = format!("{:>12}", self.of);
        for (name, _) in COLUMNS {
            text.push_str(&format!("{name:>11}"));
        }
        text.push_str("  server\n");
        self.levels.iter().for_each(|level| text.push_str(&level.row()));
        text.push_str(
            "TTFT: time to first token, TPOT: time per output token, E2E: end to end, all in ms; server: its cores\n",
        );
        for level in &self.levels {
            if let Some(why) = &level.saturated {
                text.push_str(&format!("at {} {} the server does not keep up: {why}\n", short(level.offered), self.of));
            }
        }
        match self.best.map(|best| &self.levels[best]) {
            Some(best) => text.push_str(&format!(
                "best: {} {}, with {} tokens/s\n",
                short(best.offered),
                self.of,
                short(best.output())
            )),
            None => text.push_str("the server keeps up with none of these\n"),
        }
        if self.levels.iter().all(|level| level.saturated.is_none()) {
            text.push_str("it was not saturated: there may be more in it\n");
        }
        for level in &self.levels {
            for warning in &level.report.warnings {
                text.push_str(&format!("warning: at {} {}: {warning}\n", short(level.offered), self.of));
            }
        }
        if self.was_stopped {
            text.push_str("warning: stopped in the middle of a level, which is left out\n");
        }
        text
    }
}

impl Level {
    fn row(&self) -> String {
        let figures = &self.report.figures.total;
        let cells = COLUMNS.map(|(_, of)| format!("{:>11}", short(of(figures)))).concat();
        format!("{:>12}{cells}  {}\n", short(self.offered), shown_cores(self.report.machine.server_cpu_cores))
    }
}

fn of(quantiles: Option<Quantiles>, value: fn(Quantiles) -> f64) -> f64 {
    quantiles.map_or(f64::NAN, value)
}
