use tempfile::TempDir;

use super::*;
use crate::evaluation::score_file::{Readers, ScoreWriter, Settings};
use crate::evaluation::scored::{Answer, Continuation, TokenScores};

/// One for each name.
fn digest(name: &str) -> ModelDigest {
    let digits: String = name.bytes().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{digits:0<64}").parse().unwrap()
}

fn options() -> Options {
    let resampling = Resampling { resamples: 500, seed: 1 };
    Options { rank_by: None, pair: None, steps: Vec::new(), resampling, most_listed: 3 }
}

fn text(logprob: f64) -> Continuation {
    let tokens = TokenScores {
        ids: vec![1, 2, 3],
        texts: vec!["a ".into(), "b ".into(), "c".into()],
        logprobs: vec![None, Some(logprob), Some(-1.0)],
        ranks: vec![None, Some(1), Some(2)],
        entropies: vec![None, Some(1.0), Some(1.0)],
        kls: Vec::new(),
    };
    Continuation { bytes: 5, tokens }
}

fn answer(says: &str) -> Answer {
    let ids = says.bytes().map(u32::from).collect();
    Answer { text: says.into(), ids, texts: says.chars().map(String::from).collect(), logprobs: Vec::new() }
}

/// Documents d0, d1, .. of which d1 differs most, and one prompt.
fn scores(folder: &TempDir, of: (&str, f64), documents: (usize, &str)) -> PathBuf {
    scores_against(folder, of, documents, None)
}

/// The same, with divergences to the checkpoint `against`.
fn scores_against(
    folder: &TempDir,
    (name, logprob): (&str, f64),
    (documents, data): (usize, &str),
    against: Option<&str>,
) -> PathBuf {
    let settings = Settings {
        data: data.into(),
        num_items: Some(21),
        weights: "bf16".into(),
        keys_and_values: "auto".into(),
        max_tokens: 8,
        against: against.map(digest),
        ran_on: None,
    };
    let header = Header::new(digest(name), name.into(), "test", settings);
    let mut writer = ScoreWriter::open(folder.path(), &header, Readers::AsUsual).unwrap();
    for index in 0..documents {
        let hard = if index == 1 { 3.0 * logprob } else { logprob };
        let mut document = text(hard - index as f64 / 100.0);
        document.tokens.kls = against.map_or_else(Vec::new, |_| vec![None, Some(-logprob), Some(0.5)]);
        let outcome = Outcome::Document(document);
        writer.append(&Scored { id: format!("d{index}"), outcome }).unwrap();
    }
    let says = if logprob > -2.0 { "19" } else { "12" };
    let outcome = Outcome::Prompt { reference: text(logprob), wanted: "19".into(), answer: answer(says) };
    writer.append(&Scored { id: "p".into(), outcome }).unwrap();
    writer.path().to_owned()
}

#[test]
fn checkpoints_are_ranked_with_intervals_and_looked_at_in_pairs() {
    let folder = tempfile::tempdir().unwrap();
    let files = [("step-100", -3.0), ("step-300", -1.0), ("step-200", -2.5)].map(|of| scores(&folder, of, (20, "x")));
    let found = Comparison::of(&files, &options()).unwrap();
    assert_eq!((found.ranked_by, found.num_compared, found.num_items), (Metric::BitsPerByte, 21, Some(21)));
    let names: Vec<_> = found.ranking.iter().map(|ranked| (ranked.name.as_str(), ranked.step)).collect();
    assert_eq!(names, [("step-300", Some(300)), ("step-200", Some(200)), ("step-100", Some(100))]);
    let above = found.ranking[1].measured(Metric::BitsPerByte).unwrap().from_above.unwrap();
    assert!(above.value > 0.0 && above.excludes_zero(), "{above:?}");
    let pair = &found.pair;
    assert_eq!((pair.first.as_str(), pair.second.as_str()), ("step-300", "step-200"));
    assert_eq!((pair.texts.len(), pair.texts_that_differ_most[0].id.as_str()), (21, "d1"));
    assert_eq!((pair.tokens_that_differ_most[0].item.as_str(), pair.tokens_that_differ_most[0].position), ("d1", 1));
    assert_eq!((pair.num_answers, pair.num_equal_answers), (1, 0));
    assert_eq!((pair.answers_that_part[0].position, pair.answers_that_part[0].common.as_str()), (1, "1"));
}

#[test]
fn only_what_all_have_scored_is_compared() {
    let folder = tempfile::tempdir().unwrap();
    let files = [scores(&folder, ("a", -1.0), (20, "x")), scores(&folder, ("b", -2.0), (7, "x"))];
    assert_eq!(Comparison::of(&files, &options()).unwrap().num_compared, 8);
}

#[test]
fn a_pair_and_a_metric_can_be_chosen_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let files = [("a", -1.0), ("b", -2.0), ("c", -3.0)].map(|of| scores(&folder, of, (20, "x")));
    let chosen = Options {
        pair: Some(["c".into(), digest("a").to_string()]),
        rank_by: Some(Metric::ExactMatch),
        steps: vec![("c".into(), 9)],
        ..options()
    };
    let found = Comparison::of(&files, &chosen).unwrap();
    assert_eq!((found.pair.first.as_str(), found.pair.second.as_str()), ("c", "a"));
    assert_eq!((found.ranking[0].name.as_str(), found.ranked_by), ("a", Metric::ExactMatch));
    assert!(found.ranking.iter().any(|ranked| ranked.name == "c" && ranked.step == Some(9)));
}

#[test]
fn divergences_compare_only_where_they_are_to_one_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    let by_divergence = Options { rank_by: Some(Metric::Divergence), ..options() };
    let of =
        |name: &str, logprob: f64, against: &str| scores_against(&folder, (name, logprob), (3, "x"), Some(against));
    let (a, b, c) = (of("a", -2.0, "a"), of("b", -1.0, "a"), of("c", -1.0, "b"));
    let found = Comparison::of(&[a, b.clone()], &by_divergence).unwrap();
    assert_eq!((found.ranking[0].name.as_str(), found.against), ("b", Some(digest("a"))));
    assert_eq!(found.title(Metric::Divergence), format!("{}, to a", Metric::Divergence.title()));
    let elsewhere = Comparison::of(&[b.clone(), of("d", -3.0, "a")], &options()).unwrap();
    assert!(elsewhere.title(Metric::Divergence).ends_with(&digest("a").short()), "it is not among them");
    let found = Comparison::of(&[b.clone(), c.clone()], &options()).unwrap();
    assert!(found.against.is_none() && found.metrics().all(|metric| metric != Metric::Divergence));
    let refused = Comparison::of(&[b, c], &by_divergence).unwrap_err().to_string();
    assert!(refused.contains("scored --against the same checkpoint"), "{refused}");
}

#[test]
fn what_cannot_be_compared_is_refused_with_its_reason() {
    let folder = tempfile::tempdir().unwrap();
    let one = scores(&folder, ("a", -1.0), (20, "x"));
    let elsewhere = tempfile::tempdir().unwrap();
    let other = scores(&elsewhere, ("b", -2.0), (20, "y"));
    let refused = |files: &[PathBuf], options: &Options| Comparison::of(files, options).unwrap_err().to_string();
    assert!(refused(std::slice::from_ref(&one), &options()).contains("at least two"));
    assert!(refused(&[one.clone(), one.clone()], &options()).contains("same checkpoint"));
    assert!(refused(&[one.clone(), other], &options()).contains("different data"));
    let same = scores(&folder, ("b", -2.0), (20, "x"));
    let unknown = Options { pair: Some(["a".into(), "z".into()]), ..options() };
    assert!(refused(&[one.clone(), same.clone()], &unknown).contains("\"z\"; there are a, b"));
    let stepless = Options { steps: vec![("y".into(), 4)], ..options() };
    assert!(refused(&[one.clone(), same.clone()], &stepless).contains("\"y\"; there are a, b"));
    let unmeasured = Options { rank_by: Some(Metric::Accuracy), ..options() };
    assert!(refused(&[one, same], &unmeasured).contains("accuracy"));
}
