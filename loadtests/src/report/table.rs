//! The table at the end of a run.

use super::Report;
use crate::figures::{Figures, Quantiles, short};
use crate::process::shown_cores;

pub(super) fn render(report: &Report) -> String {
    let mut text = String::new();
    let figures = &report.figures;
    write_group(&mut text, "all", &figures.total);
    let parts = figures.traffic.iter().filter(|_| figures.traffic.len() > 1);
    for (name, part) in parts {
        write_group(&mut text, name, part);
    }
    let has_new_groups = figures.tenants.len() > 1 && figures.tenants.keys().ne(figures.traffic.keys());
    for (name, part) in figures.tenants.iter().filter(|_| has_new_groups) {
        write_group(&mut text, &format!("tenant {name}"), part);
    }
    write_surroundings(&mut text, report);
    text
}

fn write_group(text: &mut String, name: &str, figures: &Figures) {
    let mut line = |content: String| {
        text.push_str(content.trim_end());
        text.push('\n');
    };
    let cut_off = match figures.interrupted {
        0 => String::new(),
        count => format!(", {count} in flight when it was stopped"),
    };
    line(format!(
        "{name}: {} requests, {} finished, {} left, {} refused, {} errors{cut_off}",
        figures.requests,
        figures.finished,
        figures.left,
        figures.refused_count(),
        figures.error_count()
    ));
    line(format!("  {:<22}{:>10}{:>10}{:>10}{:>10}{:>10}", "ms", "p50", "p90", "p99", "max", "mean"));
    for (label, quantiles) in [
        ("time to first token", figures.ttft_ms),
        ("inter-token latency", figures.itl_ms),
        ("time per output token", figures.tpot_ms),
        ("end to end", figures.e2e_ms),
    ] {
        line(format!("  {label:<22}{}", cells(quantiles)));
    }
    line(format!(
        "  {:.2} requests/s, {:.1} tokens/s out, {}",
        figures.requests_per_s,
        figures.output_tokens_per_s,
        shown_prompts(figures)
    ));
    line(format!("  goodput {:.2} requests/s, {:.1} % of requests", figures.good_per_s, figures.good_share * 100.0));
    if figures.poison_refused > 0 {
        line(format!("  poison refused as it should be: {}", figures.poison_refused));
    }
    for (label, count) in &figures.refused {
        line(format!("  refused {label}: {count}"));
    }
    for (label, count) in &figures.errors {
        line(format!("  error {label}: {count}"));
    }
}

fn shown_prompts(figures: &Figures) -> String {
    if figures.prompt_tokens == 0 && figures.without_usage > 0 {
        return "tokens/s in unknown (the server told no usage)".to_owned();
    }
    format!(
        "{:.1} tokens/s in ({} of {} prompt tokens from a cache)",
        figures.prompt_tokens_per_s, figures.cached_tokens, figures.prompt_tokens
    )
}

fn cells(quantiles: Option<Quantiles>) -> String {
    let none = Quantiles { count: 0, mean: f64::NAN, p50: f64::NAN, p90: f64::NAN, p99: f64::NAN, max: f64::NAN };
    let Quantiles { p50, p90, p99, max, mean, .. } = quantiles.unwrap_or(none);
    [p50, p90, p99, max, mean].map(|value| format!("{:>10}", short(value))).concat()
}

fn write_surroundings(text: &mut String, report: &Report) {
    const MIB: f64 = 1024.0 * 1024.0;
    text.push_str(&format!("at most {} requests in flight\n", report.figures.peak_in_flight));
    let machine = &report.machine;
    if let (Some(cores), Some(start), Some(max)) =
        (machine.server_cpu_cores, machine.server_rss_start_bytes, machine.server_rss_max_bytes)
    {
        let (start, max) = (start as f64 / MIB, max as f64 / MIB);
        text.push_str(&format!(
            "server: {cores:.2} cores, resident {start:.0} MiB at the start, at most {max:.0} MiB\n"
        ));
    }
    let late = report.generator.lateness_ms.map_or(0.0, |lateness| lateness.p99);
    text.push_str(&format!(
        "generator: {} cores, {:.0} events/s, 99 % of requests at most {late:.2} ms late; other programs: {} of {} cores\n",
        shown_cores(report.generator.cpu_cores),
        report.generator.events_per_s,
        shown_cores(machine.foreign_cpu_cores),
        machine.cores
    ));
    for warning in &report.warnings {
        text.push_str(&format!("warning: {warning}\n"));
    }
}
