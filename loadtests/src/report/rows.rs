//! One line of JSON for each request, for whoever wants to draw more than percentiles.

use std::fs::File;
use std::io::{BufWriter, Write};

use serde::Serialize;

use crate::figures::ms;
use crate::plan::Plan;
use crate::record::Record;
use crate::run::Run;

/// Times in seconds count from the start of the run, those in milliseconds from the intended start.
#[derive(Serialize)]
struct Row<'a> {
    index: usize,
    /// How often closed users had asked it before.
    lap: usize,
    turn: usize,
    traffic: &'a str,
    tenant: Option<&'a str>,
    intended_s: f64,
    late_ms: f64,
    ttft_ms: Option<f64>,
    /// Between two events.
    itl_ms: Vec<f64>,
    e2e_ms: f64,
    prompt_tokens: Option<u64>,
    output_tokens: u64,
    ending: String,
}

/// Every request of `run`, those of the warm-up too, in the order in which they ended.
pub fn write(file: File, run: &Run, plan: &Plan) -> std::io::Result<()> {
    let mut file = BufWriter::new(file);
    for record in &run.records {
        serde_json::to_writer(&mut file, &Row::of(record, plan))?;
        file.write_all(b"\n")?;
    }
    file.flush()
}

impl<'a> Row<'a> {
    fn of(record: &Record, plan: &'a Plan) -> Self {
        let label = &plan.traffic[record.traffic];
        Self {
            index: record.index,
            lap: record.lap,
            turn: record.turn,
            traffic: &label.name,
            tenant: label.tenant.as_deref(),
            intended_s: record.intended.as_secs_f64(),
            late_ms: ms(record.lateness()),
            ttft_ms: record.time_to_first_token().map(ms),
            itl_ms: record.inter_token_gaps().map(ms).collect(),
            e2e_ms: ms(record.end_to_end()),
            prompt_tokens: record.usage.map(|usage| usage.prompt_tokens),
            output_tokens: record.output_tokens(),
            ending: record.ending.to_string(),
        }
    }
}
