//! Requests of an alias that a candidate is asked too: what the operator learns, and what nobody else notices.

use std::num::NonZeroU32;
use std::path::Path;
use std::sync::Arc;

use passerelle::api::{ApiConfig, ShadowBounds};
use passerelle::evaluation::{Comparison, Options as Wanted, Outcome, Resampling, ScoreReader, Scored, score_file};
use passerelle::gateway::account::{ModelAccess, Scopes, ServiceClass};
use passerelle::gateway::directory::NewKey;
use passerelle::gateway::{AccountPath, DataDir, Directory, LedgerFigures, LedgerTotals, Limit, Quota, Scope};
use passerelle_engine::Class;
use passerelle_engine::clock::SystemClock;
use serde_json::{Value, json};

use crate::common::client::Client;
use crate::common::model::Gate;
use crate::common::{MODEL, Options, Rival, Seen, Server, Shadowed, Vocabulary, limit, until};

const CHAT: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";
const ALIAS: &str = "chat";
const RIVAL: &str = "test/rival";
/// Who asks, and who pays for the candidate.
const USER: &str = "acme";
const OPERATOR: &str = "ops";

struct Bench {
    server: Server,
    user: Client,
}

fn account(path: &str) -> AccountPath {
    path.parse().unwrap()
}

impl Bench {
    async fn start(options: Options) -> Self {
        Self::with_limits(options, Vec::new()).await
    }

    /// `limits`: of the account that pays for the candidate.
    async fn with_limits(options: Options, limits: Vec<Limit>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let data = DataDir::open(folder.path()).unwrap();
        let directory = Directory::open(&data, Arc::new(SystemClock::new()), "test").unwrap();
        directory.create_account(&account(USER), Quota::unlimited()).unwrap();
        directory.create_account(&account(OPERATOR), Quota::new(limits).unwrap()).unwrap();
        let (scopes, models, class) =
            (Scopes::new([Scope::Inference]).unwrap(), ModelAccess::All, ServiceClass::Standard);
        let new = NewKey { account: account(USER), name: "u".into(), scopes, models, class, valid_for: None };
        let key = directory.create_key(new).unwrap().0.reveal().to_owned();
        let rivals = vec![Rival { name: RIVAL, vocabulary: Vocabulary::Same }];
        let shadowed = options.shadowed.clone().unwrap_or_else(|| shadowed(None));
        let options = Options { administered: Some(folder), rivals, shadowed: Some(shadowed), ..options };
        let server = Server::with(options).await;
        let user = server.client().with("authorization", &format!("Bearer {key}"));
        Self { server, user }
    }

    fn totals(&self, path: &str) -> LedgerTotals {
        self.server.state.ledger().account_totals(&account(path))
    }

    fn fates(&self, fate: &str) -> u64 {
        let shown = self.server.state.metrics().render(&LedgerFigures::default());
        let series = format!("passerelle_shadowed_requests_total{{alias=\"{ALIAS}\",outcome=\"{fate}\"}} ");
        shown.lines().find_map(|line| line.strip_prefix(&series)?.parse().ok()).unwrap_or(0)
    }

    async fn wait_for(&self, fate: &str, count: u64) {
        until(|| self.fates(fate) >= count).await;
        assert_eq!(self.fates(fate), count);
    }
}

fn shadowed(folder: Option<&Path>) -> Shadowed {
    let folder = folder.map(Path::to_owned);
    Shadowed { alias: ALIAS, candidate: RIVAL, share: 1.0, account: OPERATOR, folder }
}

fn bounded(max_running: usize, max_waiting: usize) -> ApiConfig {
    let max_tokens = NonZeroU32::new(16).unwrap();
    ApiConfig { shadow: ShadowBounds { max_running, max_waiting, max_tokens }, ..ApiConfig::default() }
}

fn chat(model: &str, says: &str) -> Value {
    json!({"model": model, "messages": [{"role": "user", "content": format!("say:{says}")}], "max_tokens": 32})
}

/// Without what differs between any two answers.
fn without_names(mut answer: Value) -> Value {
    ["id", "created"].iter().for_each(|field| answer[*field] = Value::Null);
    answer
}

fn items(file: &Path) -> Vec<Scored> {
    let mut reader = ScoreReader::open(file).unwrap();
    std::iter::from_fn(|| reader.next_scored().unwrap()).collect()
}

#[tokio::test]
async fn the_tokenizer_of_an_alias_is_that_of_its_model() {
    let bench = Bench::start(Options::default()).await;
    let info = async |model: &str| bench.user.get(&format!("/tokenizer_info?model={model}")).await.json();
    let of_model = info(MODEL).await;
    assert!(of_model["vocab_size"].is_number());
    assert_eq!(info(ALIAS).await, of_model);
}

#[tokio::test]
async fn whoever_asked_is_answered_and_billed_as_if_no_candidate_was_asked_too() {
    let bench = Bench::start(Options::default()).await;
    // So that what comes after finds the same in the cache.
    assert_eq!(bench.user.post(CHAT, &chat(MODEL, "hello there")).await.status, 200);
    let mut bills = Vec::new();
    let mut answers = Vec::new();
    for model in [MODEL, ALIAS] {
        let before = bench.totals(USER);
        let whole = bench.user.post(CHAT, &chat(model, "hello there")).await;
        assert_eq!(whole.status, 200, "{}", whole.text());
        let mut streamed = chat(model, "hello there");
        streamed["stream"] = json!(true);
        let events = bench.user.stream(CHAT, &streamed).await.events().await;
        answers.push((without_names(whole.json()), events.into_iter().map(without_names).collect::<Vec<_>>()));
        let after = bench.totals(USER);
        bills.push((
            after.reservations_taken - before.reservations_taken,
            after.prompt_tokens - before.prompt_tokens,
            after.generated_tokens - before.generated_tokens,
        ));
    }
    assert_eq!(answers[0], answers[1]);
    bench.wait_for("compared", 2).await;
    assert_eq!(bills[0], bills[1]);
    let (user, operator) = (bench.totals(USER), bench.totals(OPERATOR));
    assert_eq!((user.reservations_taken, user.open), (5, 0), "the candidate is not on the user's bill");
    assert_eq!((operator.reservations_taken, operator.open), (8, 0), "two questions to each of two models, twice");
    assert!(operator.prompt_tokens > user.prompt_tokens && operator.generated_tokens > 0, "{operator:?}");
}

#[tokio::test]
async fn both_models_are_asked_in_the_class_batch_and_the_name_of_whoever_pays() {
    let seen = Seen::default();
    let bench = Bench::start(Options { seen: seen.clone(), ..Options::default() }).await;
    assert_eq!(bench.user.post(CHAT, &chat(ALIAS, "hi")).await.status, 200);
    bench.wait_for("compared", 1).await;
    let [original, copies @ ..] = &seen.take()[..] else { panic!("something was asked") };
    assert_eq!((original.class, copies.len()), (Class::Standard, 4));
    for copy in copies {
        assert_eq!(copy.class, Class::Batch);
        assert_ne!(copy.share_key, original.share_key);
    }
}

#[tokio::test]
async fn what_is_kept_is_what_the_models_say_of_the_answer_and_is_compared_as_any_scores() {
    let folder = tempfile::tempdir().unwrap();
    let kept = folder.path().join("kept");
    let bench = Bench::start(Options { shadowed: Some(shadowed(Some(&kept))), ..Options::default() }).await;
    let ask = json!({"model": ALIAS, "prompt": "Once upon a time", "max_tokens": 12, "return_token_ids": true});
    let served = bench.user.post(COMPLETIONS, &ask).await.json();
    bench.wait_for("compared", 1).await;
    for says in ["hello", "a longer answer", "ok"] {
        assert_eq!(bench.user.post(CHAT, &chat(ALIAS, says)).await.status, 200);
    }
    bench.wait_for("compared", 4).await;

    let pairs: Vec<_> = std::fs::read_dir(&kept).unwrap().map(|entry| entry.unwrap().path()).collect();
    let files = score_file::find(&pairs).unwrap();
    assert_eq!((pairs.len(), files.len()), (1, 2));
    let choice = &served["choices"][0];
    let text = [&choice["prompt_token_ids"], &choice["token_ids"]].map(|ids| ids.as_array().unwrap().clone()).concat();
    for file in &files {
        let model = ScoreReader::open(file).unwrap().header.name;
        let Outcome::Prompt { reference, wanted, answer } = &items(file)[0].outcome else { panic!("a prompt") };
        assert_eq!(json!(wanted), choice["text"]);
        assert_eq!(json!(reference.tokens.ids), choice["token_ids"]);
        assert_eq!(json!(answer.ids), choice["token_ids"], "both say the same");
        let scored = json!({"model": model, "prompt": text, "max_tokens": 0, "prompt_scores": true});
        let scored = bench.user.post(COMPLETIONS, &scored).await.json();
        let scores = scored["choices"][0]["prompt_scores"]["token_logprobs"].as_array().unwrap().clone();
        assert_eq!(json!(reference.tokens.logprobs), json!(scores[text.len() - 12..]), "{model}");
    }
    let wanted = Wanted {
        rank_by: None,
        pair: None,
        steps: Vec::new(),
        resampling: Resampling { resamples: 100, seed: 0 },
        most_listed: 4,
    };
    let comparison = Comparison::of(&files, &wanted).unwrap();
    assert_eq!((comparison.num_compared, comparison.pair.num_answers, comparison.pair.num_equal_answers), (4, 4, 4));
    assert_eq!(comparison.ranking.len(), 2);
    assert_eq!(comparison.pair.heat_maps.len(), 4, "token by token");
}

#[tokio::test]
async fn a_candidate_that_hangs_holds_nobody_up_and_what_has_no_room_is_dropped() {
    let (seen, gate) = (Seen::default(), Gate::closed());
    let options =
        Options { seen: seen.clone(), rival_gate: Some(gate.clone()), api: bounded(1, 1), ..Options::default() };
    let bench = Bench::start(options).await;
    let mut said = Value::Null;
    for _ in 0..2 {
        // The second time, as every time after, the prompt's beginning is cached.
        said = without_names(bench.user.post(CHAT, &chat(MODEL, "hello")).await.json());
    }
    seen.take();
    let mut asked = 0;
    assert_eq!(without_names(bench.user.post(CHAT, &chat(ALIAS, "hello")).await.json()), said);
    // The original, two questions to its model, and one to the candidate, which stands at the gate.
    let reaches_the_gate = async {
        while asked < 4 {
            asked += seen.take().len();
            tokio::task::yield_now().await;
        }
    };
    reaches_the_gate.await;
    for _ in 0..4 {
        assert_eq!(without_names(bench.user.post(CHAT, &chat(ALIAS, "hello")).await.json()), said);
    }
    bench.wait_for("full", 3).await;
    gate.release();
    bench.wait_for("compared", 2).await;
}

#[tokio::test]
async fn a_candidate_that_fails_fails_nobody_else() {
    let bench = Bench::start(Options::default()).await;
    let answer = bench.user.post(COMPLETIONS, &json!({"model": ALIAS, "prompt": "break: it", "max_tokens": 8})).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    bench.wait_for("failed", 1).await;
    assert_eq!(bench.user.post(CHAT, &chat(ALIAS, "hi")).await.status, 200);
    bench.wait_for("compared", 1).await;
    assert_eq!(bench.server.state.ledger().totals().open, 0);
}

#[tokio::test]
async fn a_limit_of_whoever_pays_stops_the_candidate_and_not_the_user() {
    let limits = vec![limit(Limit::requests_per_minute, 1)];
    let bench = Bench::with_limits(Options::default(), limits).await;
    for count in 1..=3 {
        assert_eq!(bench.user.post(CHAT, &chat(ALIAS, "hi")).await.status, 200);
        bench.wait_for("refused", count).await;
    }
    let nobody = Shadowed { account: "nobody", ..shadowed(None) };
    let bench = Bench::start(Options { shadowed: Some(nobody), ..Options::default() }).await;
    assert_eq!(bench.user.post(CHAT, &chat(ALIAS, "hi")).await.status, 200);
    bench.wait_for("absent", 1).await;
}

#[tokio::test]
async fn several_answers_to_one_prompt_and_answers_that_never_ended_are_not_asked_about() {
    let gate = Gate::closed();
    let bench = Bench::start(Options { gate: gate.clone(), ..Options::default() }).await;
    let mut endless = json!({"model": ALIAS, "prompt": "on and on", "max_tokens": 1500, "stream": true});
    let mut left = bench.user.stream(COMPLETIONS, &endless).await;
    gate.let_one_pass();
    left.read_events(1).await;
    drop(left);
    // However fast the model is, it stands until the server has heard that the reader is gone.
    until(|| bench.totals(USER).open == 0).await;
    gate.release();
    let mut several = chat(ALIAS, "hi");
    several["n"] = json!(2);
    assert_eq!(bench.user.post(CHAT, &several).await.status, 200);
    bench.wait_for("unsuited", 1).await;
    endless["max_tokens"] = json!(3);
    bench.user.stream(COMPLETIONS, &endless).await.events().await;
    bench.wait_for("compared", 1).await;
    assert_eq!(bench.totals(OPERATOR).reservations_taken, 4, "of the answer that ended alone");
}

#[tokio::test]
async fn a_model_that_is_asked_by_its_own_name_has_no_candidate() {
    let bench = Bench::start(Options::default()).await;
    assert_eq!(bench.user.post(CHAT, &chat(MODEL, "hi")).await.status, 200);
    assert_eq!(bench.user.post(CHAT, &chat(ALIAS, "hi")).await.status, 200);
    bench.wait_for("compared", 1).await;
    bench.server.settle().await;
    let taken = [USER, OPERATOR].map(|path| bench.totals(path).reservations_taken);
    assert_eq!(taken, [2, 4], "two questions to each of two models, once");
    bench.wait_for("compared", 1).await;
}
