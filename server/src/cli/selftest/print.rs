use std::cmp::Ordering::Equal;

use anyhow::Result;

use super::{Line, Report, Speed};
use crate::cli::output;

/// A line for each kind of check, and one for each that failed.
pub(super) fn print(report: &Report) -> Result<()> {
    for what in report.names(|_| true) {
        let alike: Vec<&Line> = report.checks.iter().filter(|check| check.what == what).collect();
        output::line(summary(what, &alike))?;
        for check in alike.iter().filter(|check| !check.passes) {
            output::line(failure(check))?;
        }
    }
    output::line(format_args!("{:<8}graphs: {}", "-", report.graphs))?;
    let passed = report.checks.iter().filter(|check| check.passes).count();
    output::line(format_args!("{}: {passed} of {} checks passed", report.device, report.checks.len()))?;
    output::line(format_args!(
        "{} threads; {:.1} GB/s from memory, {:.0} GFLOP/s",
        report.threads,
        report.memory_bytes_per_s / 1e9,
        report.multiply_add_flops_per_s / 1e9
    ))?;
    report.speed.iter().try_for_each(|speed| output::line(rate(speed)))?;
    output::line(format_args!("{:.0} seconds", report.seconds))
}

/// Of checks of one kind, with the one that is nearest to what it may be off by.
fn summary(what: &str, alike: &[&Line]) -> String {
    let verdict = if alike.iter().all(|check| check.passes) { "ok" } else { "FAILED" };
    let nearest = alike.iter().max_by(|one, other| one.nearness().partial_cmp(&other.nearness()).unwrap_or(Equal));
    let nearest = nearest.map_or_else(String::new, |check| match check.worst {
        Some(worst) => format!("off by {worst:.1e} of {:.1e} allowed at most", check.allowed),
        None => "no number".to_owned(),
    });
    format!("{verdict:<8}{what:<26}{:>3} compared, {nearest}", alike.len())
}

fn failure(check: &Line) -> String {
    let Line { at, bodies, against, worst, allowed, error, .. } = check;
    let found = match (error, worst) {
        (Some(error), _) => error.clone(),
        (None, Some(worst)) => format!("off by {worst:.3e}, {allowed:.3e} allowed"),
        (None, None) => "not a number".to_owned(),
    };
    format!("        {at}: {bodies} against {against}: {found}")
}

fn rate(speed: &Speed) -> String {
    let Speed { what, at, seconds, bytes_per_s, operations_per_s, share_of_limit } = speed;
    let (micros, gigabytes, gigaflops) = (seconds * 1e6, bytes_per_s / 1e9, operations_per_s / 1e9);
    let share = share_of_limit * 100.0;
    format!("{what:<22}{micros:>10.1} us{gigabytes:>8.1} GB/s{gigaflops:>10.1} GFLOP/s{share:>5.0}% of limit   {at}")
}

impl Line {
    /// What it is off by, over what it may be; where nothing is allowed, what it is off by.
    fn nearness(&self) -> (f32, f32) {
        match self.worst {
            Some(0.0) => (0.0, 0.0),
            Some(worst) => (worst / self.allowed, worst),
            None => (f32::INFINITY, f32::INFINITY),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn off_by(worst: f32, allowed: f32) -> Line {
        let [at, bodies, against] = ["1 row", "avx2", "reference"].map(str::to_owned);
        Line {
            what: "product",
            at,
            bodies,
            against,
            worst: Some(worst),
            allowed,
            error: None,
            passes: worst <= allowed,
        }
    }

    #[test]
    fn a_kind_of_checks_tells_the_furthest_of_them_also_where_nothing_is_allowed() {
        for (allowed, expected) in [(1e-5, "off by 2.0e-5 of 1.0e-5"), (0.0, "off by 2.0e-5 of 0.0e0")] {
            let lines = [off_by(1e-6, allowed), off_by(2e-5, allowed), off_by(5e-8, allowed)];
            let told = summary("product", &lines.iter().collect::<Vec<_>>());
            assert!(told.starts_with("FAILED") && told.contains(expected), "{told}");
        }
    }
}
