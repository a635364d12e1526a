//! What a checkpoint's author recommends to sample with: `generation_config.json`.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use passerelle::api::GenerationDefaults;
use passerelle_models::CheckpointFiles;
use serde::Deserialize;

const FILE: &str = "generation_config.json";
/// The largest that is read.
const MAX_BYTES: u64 = 1 << 20;
const GREEDY: f32 = 0.0;

/// The fields that a server honours; the others configure the reference implementation.
#[derive(Deserialize, Default)]
struct GenerationConfig {
    do_sample: Option<bool>,
    temperature: Option<f32>,
    top_p: Option<f32>,
    top_k: Option<u32>,
    min_p: Option<f32>,
    repetition_penalty: Option<f32>,
}

/// Nothing, where there is no file. A value that no request could use is refused here, by file and field: later it would
/// be every caller's error.
pub(super) fn read(files: &CheckpointFiles) -> Result<GenerationDefaults> {
    let Some(text) = files.read_text(FILE, MAX_BYTES)? else { return parse("{}", PathBuf::from(FILE)) };
    parse(&text, files.path_of(FILE))
}

fn parse(text: &str, file: PathBuf) -> Result<GenerationDefaults> {
    let written: GenerationConfig =
        serde_json::from_str(text).with_context(|| format!("{}: correct it or remove it", file.display()))?;
    if let Some((field, range)) = written.out_of_range() {
        bail!("{}: `{field}` must be {range}; correct it or remove it", file.display());
    }
    Ok(GenerationDefaults {
        temperature: if written.do_sample == Some(false) { Some(GREEDY) } else { written.temperature },
        top_p: written.top_p,
        // The reference implementation writes 0 for "all of them".
        top_k: written.top_k.filter(|k| *k > 0),
        min_p: written.min_p,
        repetition_penalty: written.repetition_penalty,
    })
}

impl GenerationConfig {
    /// The first field that the engine would refuse, and what it takes.
    fn out_of_range(&self) -> Option<(&'static str, &'static str)> {
        let fits = |value: Option<f32>, range: fn(f32) -> bool| value.is_none_or(range);
        let checks = [
            (fits(self.temperature, |t| t.is_finite() && t >= 0.0), "temperature", "at least 0"),
            (fits(self.top_p, |p| p > 0.0 && p <= 1.0), "top_p", "above 0 and at most 1"),
            (fits(self.min_p, |p| (0.0..=1.0).contains(&p)), "min_p", "from 0 to 1"),
            (fits(self.repetition_penalty, |r| r.is_finite() && r > 0.0), "repetition_penalty", "above 0"),
        ];
        checks.into_iter().find(|(fits, ..)| !fits).map(|(_, field, range)| (field, range))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_that_no_request_could_use_is_refused_by_file_and_field() {
        for (field, value) in
            [("temperature", "-1"), ("top_p", "0"), ("top_p", "1.5"), ("min_p", "2"), ("repetition_penalty", "0")]
        {
            let error = parse(&format!("{{\"{field}\": {value}}}"), FILE.into()).expect_err(field).to_string();
            assert!(error.contains(FILE) && error.contains(field), "{error}");
        }
        assert!(parse("{\"top_p\": \"high\"}", FILE.into()).is_err());
    }

    #[test]
    fn what_the_author_recommends_is_taken() {
        let defaults = parse("{\"temperature\": 0.6, \"top_k\": 0, \"top_p\": 1, \"pad_token_id\": 0}", FILE.into());
        let defaults = defaults.expect("all of it is in range");
        assert_eq!((defaults.temperature, defaults.top_k, defaults.top_p), (Some(0.6), None, Some(1.0)));
        let greedy = parse("{\"do_sample\": false, \"temperature\": 0.6}", FILE.into()).expect("in range");
        assert_eq!(greedy.temperature, Some(GREEDY));
    }
}
