//! Which of several checkpoints is better, and where two of them differ.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

use passerelle_models::ModelDigest;
use serde::Serialize;

use super::bootstrap::{Interval, Resampled, Resampling};
use super::divergence::{AnswerPair, HeatMap, Largest, TextPair, TokenPair, heat_map, token_pairs};
use super::metric::{Better, Metric, Share};
use super::score_file::{Header, RanOn, ScoreFileError, ScoreReader};
use super::scored::{Continuation, Outcome, Scored};
use super::step;

/// What is wanted of a comparison.
#[derive(Debug, Clone)]
pub struct Options {
    /// `None`: the first of [`Metric::ALL`] that the items say something about.
    pub rank_by: Option<Metric>,
    /// Names or digests of the two that are looked at closely. `None`: the two files, if there are two; else the best and
    /// the next.
    pub pair: Option<[String; 2]>,
    /// By name: steps that names do not say.
    pub steps: Vec<(String, u64)>,
    pub resampling: Resampling,
    /// Documents, tokens and answers that are listed.
    pub most_listed: usize,
}

#[derive(Debug, thiserror::Error)]
pub enum ComparisonError {
    #[error(transparent)]
    File(#[from] ScoreFileError),
    #[error("give at least two score files, of two checkpoints")]
    TooFew,
    #[error("{} and {} are of the same checkpoint ({digest}); give one of them", .files[0].display(), .files[1].display())]
    Same { digest: ModelDigest, files: Box<[PathBuf; 2]> },
    #[error("{} and {} are of different data: their numbers do not compare", .0[0].display(), .0[1].display())]
    OtherData(Box<[PathBuf; 2]>),
    #[error("no item has been scored by all of these checkpoints yet")]
    NothingInCommon,
    #[error("no item says anything about `{0}`")]
    NoMetric(&'static str),
    #[error("`divergence`: not all of these were scored --against the same checkpoint")]
    OtherReference,
    #[error("no checkpoint here is called {name:?}; there are {}", .names.join(", "))]
    Unknown { name: String, names: Vec<String> },
    #[error("several checkpoints here are called {0:?}; write the digest")]
    Ambiguous(String),
}

/// All that is known, for whoever prints or draws it.
#[derive(Debug, Serialize)]
pub struct Comparison {
    /// Digest of the items.
    pub data: String,
    /// Items that every checkpoint has scored.
    pub num_compared: usize,
    /// All of them; `None` where there is no end to them.
    pub num_items: Option<usize>,
    pub resampling: Resampling,
    /// The checkpoint that divergences are to. `None` where not all were scored against the same one: those do not compare.
    pub against: Option<ModelDigest>,
    pub ranked_by: Metric,
    /// The best first.
    pub ranking: Vec<Ranked>,
    pub pair: PairComparison,
}

#[derive(Debug, Clone, Serialize)]
pub struct Ranked {
    pub name: String,
    pub digest: ModelDigest,
    pub step: Option<u64>,
    /// `None` where its file does not say.
    pub ran_on: Option<RanOn>,
    /// Place among the files as they were named.
    pub given: usize,
    pub metrics: Vec<Measured>,
}

#[derive(Debug, Clone, Copy, Serialize)]
pub struct Measured {
    pub metric: Metric,
    pub interval: Interval,
    /// Of this one less the one that is ranked next above it, over the same draws. None for the best.
    pub from_above: Option<Interval>,
}

/// Two checkpoints, item by item.
#[derive(Debug, Serialize)]
pub struct PairComparison {
    pub first: String,
    pub second: String,
    /// All that were compared, in the order of the first file.
    pub texts: Vec<TextPair>,
    pub texts_that_differ_most: Vec<TextPair>,
    pub tokens_that_differ_most: Vec<TokenPair>,
    /// Of the texts that differ most.
    pub heat_maps: Vec<HeatMap>,
    /// Prompts with greedy answers, and how many of those are equal.
    pub num_answers: usize,
    pub num_equal_answers: usize,
    pub answers_that_part: Vec<AnswerPair>,
}

/// One file, without its tokens.
struct Summary {
    path: PathBuf,
    header: Header,
    shares: HashMap<String, Vec<(Metric, Share)>>,
    order: Vec<String>,
}

impl Comparison {
    /// Reads the files once for the ranking, and those of the pair a second time, item by item.
    pub fn of(files: &[PathBuf], options: &Options) -> Result<Self, ComparisonError> {
        if files.len() < 2 {
            return Err(ComparisonError::TooFew);
        }
        let summaries = files.iter().map(|path| Summary::read(path)).collect::<Result<Vec<_>, _>>()?;
        check_together(&summaries)?;
        check_steps(&summaries, options)?;
        let common = in_common(&summaries);
        if common.is_empty() {
            return Err(ComparisonError::NothingInCommon);
        }
        let (ranked_by, ranking) = rank(&summaries, &common, options)?;
        let [first, second] = pair(&summaries, &ranking, options)?;
        let common: HashSet<&str> = common.into_iter().collect();
        let settings = &summaries[0].header.settings;
        Ok(Self {
            data: settings.data.clone(),
            num_compared: common.len(),
            num_items: settings.num_items,
            resampling: options.resampling,
            against: reference(&summaries),
            ranked_by,
            pair: PairComparison::of(&summaries[first], &summaries[second], &common, options.most_listed)?,
            ranking,
        })
    }

    /// How many were compared, for people.
    pub fn items(&self) -> String {
        let all = self.num_items.map_or_else(String::new, |all| format!(" of {all}"));
        format!("{}{all} items", self.num_compared)
    }

    /// Whether all numbers are of one device and of kernels of equal bits, as far as the files say.
    pub fn is_of_equal_bits(&self) -> bool {
        let mut ran_on = self.ranking.iter().filter_map(|ranked| ranked.ran_on.as_ref());
        let Some(first) = ran_on.next() else { return true };
        ran_on.all(|other| first.has_bits_of(other))
    }

    /// What a metric is called, for people; a divergence with what it is to.
    pub fn title(&self, metric: Metric) -> String {
        let title = metric.title();
        let Some(against) = self.against.filter(|_| metric == Metric::Divergence) else { return title.to_owned() };
        match self.ranking.iter().find(|ranked| ranked.digest == against) {
            Some(ranked) => format!("{title}, to {}", ranked.name),
            None => format!("{title}, to {}", against.short()),
        }
    }

    /// The metrics that the items say something about.
    pub fn metrics(&self) -> impl Iterator<Item = Metric> + '_ {
        self.ranking.first().into_iter().flat_map(|best| best.metrics.iter().map(|measured| measured.metric))
    }
}

impl Ranked {
    pub fn measured(&self, metric: Metric) -> Option<&Measured> {
        self.metrics.iter().find(|measured| measured.metric == metric)
    }
}

impl Summary {
    fn read(path: &Path) -> Result<Self, ScoreFileError> {
        let mut reader = ScoreReader::open(path)?;
        let (mut shares, mut order) = (HashMap::new(), Vec::new());
        while let Some(Scored { id, outcome }) = reader.next_scored()? {
            let of = Metric::ALL.into_iter().filter_map(|metric| Some((metric, metric.of(&outcome)?))).collect();
            if shares.insert(id.clone(), of).is_none() {
                order.push(id);
            }
        }
        Ok(Self { path: path.to_owned(), header: reader.header, shares, order })
    }

    fn share(&self, id: &str, metric: Metric) -> Option<Share> {
        self.shares.get(id)?.iter().find(|(of, _)| *of == metric).map(|(_, share)| *share)
    }

    fn step(&self, options: &Options) -> Option<u64> {
        let stated = options.steps.iter().find(|(name, _)| self.is_called(name)).map(|(_, step)| *step);
        stated.or_else(|| step::of_name(&self.header.name))
    }

    fn is_called(&self, name: &str) -> bool {
        let digest = self.header.digest.to_string();
        self.header.name == name || digest == name || digest.rsplit(':').next() == Some(name)
    }
}

fn check_together(summaries: &[Summary]) -> Result<(), ComparisonError> {
    let mut seen: HashMap<ModelDigest, &Summary> = HashMap::new();
    for summary in summaries {
        let digest = summary.header.digest;
        if let Some(other) = seen.insert(digest, summary) {
            let files = Box::new([other.path.clone(), summary.path.clone()]);
            return Err(ComparisonError::Same { digest, files });
        }
        if summary.header.settings.data != summaries[0].header.settings.data {
            let files = [summaries[0].path.clone(), summary.path.clone()];
            return Err(ComparisonError::OtherData(Box::new(files)));
        }
    }
    Ok(())
}

/// What all were scored against.
fn reference(summaries: &[Summary]) -> Option<ModelDigest> {
    let mut all = summaries.iter().map(|summary| summary.header.settings.against);
    let first = all.next()??;
    all.all(|other| other == Some(first)).then_some(first)
}

fn in_common(summaries: &[Summary]) -> Vec<&str> {
    let in_all = |id: &&String| summaries.iter().all(|summary| summary.shares.contains_key(*id));
    summaries[0].order.iter().filter(in_all).map(String::as_str).collect()
}

/// Every metric in the order of the one that ranks.
fn rank(summaries: &[Summary], common: &[&str], options: &Options) -> Result<(Metric, Vec<Ranked>), ComparisonError> {
    let has_reference = reference(summaries).is_some();
    if options.rank_by == Some(Metric::Divergence) && !has_reference {
        return Err(ComparisonError::OtherReference);
    }
    let known: Vec<(Metric, Resampled)> = Metric::ALL
        .into_iter()
        .filter(|metric| *metric != Metric::Divergence || has_reference)
        .filter_map(|metric| Some((metric, resampled(summaries, common, metric, options.resampling)?)))
        .collect();
    let ranked_by = options.rank_by.or_else(|| known.first().map(|(metric, _)| *metric));
    let ranked_by = ranked_by.ok_or(ComparisonError::NothingInCommon)?;
    let (_, ranks) =
        known.iter().find(|(metric, _)| *metric == ranked_by).ok_or(ComparisonError::NoMetric(ranked_by.name()))?;
    let mut order: Vec<usize> = (0..summaries.len()).collect();
    order.sort_by(|&one, &other| {
        let (one, other) = (ranks.interval(one).value, ranks.interval(other).value);
        match ranked_by.better() {
            Better::Lower => one.total_cmp(&other),
            Better::Higher => other.total_cmp(&one),
        }
    });
    let ranked = |(place, &given): (usize, &usize)| {
        let above = place.checked_sub(1).map(|above| order[above]);
        let metrics = known.iter().map(|(metric, of)| Measured {
            metric: *metric,
            interval: of.interval(given),
            from_above: above.map(|above| of.difference(given, above)),
        });
        let Header { name, digest, settings, .. } = summaries[given].header.clone();
        let (step, ran_on) = (summaries[given].step(options), settings.ran_on);
        Ranked { name, digest, step, ran_on, given, metrics: metrics.collect() }
    };
    Ok((ranked_by, order.iter().enumerate().map(ranked).collect()))
}

/// Over the items that say something about the metric for every checkpoint; `None` where there are none.
fn resampled(summaries: &[Summary], common: &[&str], metric: Metric, by: Resampling) -> Option<Resampled> {
    let has_all = |id: &&&str| summaries.iter().all(|summary| summary.share(id, metric).is_some());
    let items: Vec<&&str> = common.iter().filter(has_all).collect();
    let of = |summary: &Summary| items.iter().filter_map(|id| summary.share(id, metric)).collect();
    (!items.is_empty()).then(|| Resampled::new(&summaries.iter().map(of).collect::<Vec<_>>(), by))
}

fn check_steps(summaries: &[Summary], options: &Options) -> Result<(), ComparisonError> {
    let is_known = |name: &str| summaries.iter().any(|summary| summary.is_called(name));
    match options.steps.iter().find(|(name, _)| !is_known(name)) {
        Some((name, _)) => Err(unknown(summaries, name)),
        None => Ok(()),
    }
}

fn unknown(summaries: &[Summary], name: &str) -> ComparisonError {
    let names = summaries.iter().map(|summary| summary.header.name.clone()).collect();
    ComparisonError::Unknown { name: name.to_owned(), names }
}

fn pair(summaries: &[Summary], ranking: &[Ranked], options: &Options) -> Result<[usize; 2], ComparisonError> {
    let find = |name: &String| {
        let mut called = summaries.iter().enumerate().filter(|(_, summary)| summary.is_called(name));
        match (called.next(), called.next()) {
            (Some((at, _)), None) => Ok(at),
            (None, _) => Err(unknown(summaries, name)),
            (Some(_), Some(_)) => Err(ComparisonError::Ambiguous(name.clone())),
        }
    };
    match &options.pair {
        Some([first, second]) => Ok([find(first)?, find(second)?]),
        None if summaries.len() == 2 => Ok([0, 1]),
        None => Ok([ranking[0].given, ranking[1].given]),
    }
}

impl PairComparison {
    fn of(first: &Summary, second: &Summary, common: &HashSet<&str>, most: usize) -> Result<Self, ScoreFileError> {
        let mut others: HashMap<String, Outcome> = HashMap::new();
        let mut reader = ScoreReader::open(&second.path)?;
        while let Some(Scored { id, outcome }) = reader.next_scored()? {
            if common.contains(id.as_str()) {
                others.insert(id, outcome);
            }
        }
        let mut found = Found::new(most);
        let mut reader = ScoreReader::open(&first.path)?;
        while let Some(Scored { id, outcome }) = reader.next_scored()? {
            if let Some(other) = others.remove(&id) {
                found.look_at(&id, &outcome, &other);
            }
        }
        Ok(found.into_comparison([first.header.name.clone(), second.header.name.clone()], most))
    }
}

/// What was found so far.
struct Found {
    texts: Vec<TextPair>,
    maps: Largest<(TextPair, Option<HeatMap>)>,
    tokens: Largest<TokenPair>,
    num_answers: usize,
    answers: Vec<AnswerPair>,
}

impl Found {
    fn new(most: usize) -> Self {
        let (maps, tokens) = (Largest::new(most), Largest::new(most));
        Self { texts: Vec::new(), maps, tokens, num_answers: 0, answers: Vec::new() }
    }

    fn look_at(&mut self, id: &str, one: &Outcome, other: &Outcome) {
        if let (Some(one), Some(other)) = (one.text(), other.text())
            && one.is_scored()
            && other.is_scored()
        {
            self.look_at_text(id, one, other);
        }
        if let (Outcome::Prompt { answer: one, wanted, .. }, Outcome::Prompt { answer: other, .. }) = (one, other) {
            self.num_answers += 1;
            self.answers.extend(AnswerPair::new(id, wanted, one, other));
        }
    }

    fn look_at_text(&mut self, id: &str, one: &Continuation, other: &Continuation) {
        let (pair, map) = (TextPair::new(id, one, other), heat_map(id, one, other));
        for token in map.iter().flat_map(token_pairs) {
            self.tokens.push(token.gain().abs(), token);
        }
        self.maps.push(pair.gain().abs(), (pair.clone(), map));
        self.texts.push(pair);
    }

    fn into_comparison(mut self, [first, second]: [String; 2], most: usize) -> PairComparison {
        let num_equal_answers = self.num_answers - self.answers.len();
        self.answers.sort_by_key(AnswerPair::order);
        self.answers.truncate(most);
        let (texts_that_differ_most, maps): (Vec<_>, Vec<_>) = self.maps.into_items().into_iter().unzip();
        PairComparison {
            first,
            second,
            texts: self.texts,
            texts_that_differ_most,
            tokens_that_differ_most: self.tokens.into_items(),
            heat_maps: maps.into_iter().flatten().collect(),
            num_answers: self.num_answers,
            num_equal_answers,
            answers_that_part: self.answers,
        }
    }
}

#[cfg(test)]
mod tests;
