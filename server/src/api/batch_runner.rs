//! Runs batches: each request goes the way of any other, behind the same reader, ledger and queue, and its answer goes to
//! the batch's journal. A request that finds no room waits and is tried again; one that is refused is an answer too.

mod waits;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use tokio::task::{JoinError, JoinSet};
use tokio::time::sleep;

use super::errors::{ApiError, ErrorKind};
use super::generate::RequestContext;
use super::ids::random_id;
use super::routes::answers::{AnswerRoute, answer_body};
use super::routes::counted_model;
use super::routes::encoders::embed;
use super::routes::kept::on_disk;
use super::state::AppState;
use super::wire::parse_json;
use crate::batches::{
    Batch, BatchError, BatchId, BatchLine, BatchStatus, BatchStore, Counts, Endpoint, Journal, LineError, Outcome,
    read_input,
};
use crate::gateway::{Caller, Scope};
use crate::metrics::AnsweredRequest;
use waits::Waits;

/// Batches that run at the same time; the others wait.
const MAX_RUNNING_BATCHES: usize = 4;
/// Until a batch without room on the disk tries again, if nothing changes before.
const LOOK_AGAIN: Duration = Duration::from_secs(10);

/// Runs what there is, then waits for more. Once the server drains, nothing begins, and this ends with the requests that run;
/// what is left goes on at the next start.
pub async fn run_batches(state: AppState) {
    let Ok(store) = state.batches().cloned() else { return };
    let mut changes = state.watch_batches();
    let mut running = JoinSet::new();
    let mut taken: Vec<BatchId> = Vec::new();
    let mut ids = HashMap::new();
    loop {
        let is_draining = state.readiness().is_draining();
        if is_draining && running.is_empty() {
            return;
        }
        while !is_draining
            && running.len() < MAX_RUNNING_BATCHES
            && let Some(batch) = store.next_open(&taken)
        {
            taken.push(batch.id.clone());
            let id = batch.id.clone();
            let run = Run { state: state.clone(), store: Arc::clone(&store), batch };
            ids.insert(running.spawn(run.through()).id(), id);
        }
        tokio::select! {
            Some(ended) = running.join_next_with_id() => {
                let task = ended.as_ref().map_or_else(JoinError::id, |(task, _)| *task);
                let Some(id) = ids.remove(&task) else { continue };
                match ended {
                    Ok((_, Ok(()))) => taken.retain(|taken| *taken != id),
                    Ok((_, Err(error))) if state.readiness().is_draining() => {
                        tracing::warn!(batch = %id, error = error.label(), "a batch goes on at the next start");
                    }
                    // It stays taken: what a broken disk refuses now it would refuse again at once. The next start tries again.
                    Ok((_, Err(error))) => tracing::error!(batch = %id, error = error.label(), "a batch cannot go on"),
                    Err(_) => tracing::error!(batch = %id, "a batch panicked"),
                }
            }
            changed = changes.changed() => if changed.is_err() { return },
            () = state.readiness().drains(), if !is_draining => {}
        }
    }
}

/// Why a batch ends.
#[derive(Debug, Clone, Copy)]
enum End {
    Done,
    Cancelled,
    Expired,
}

/// What is said of requests that never ran.
#[derive(Debug, Clone, Copy)]
struct Unrun {
    code: &'static str,
    message: &'static str,
}

impl End {
    /// `None`: all have.
    fn of_those_that_never_ran(self) -> Option<Unrun> {
        let (code, message) = match self {
            Self::Done => return None,
            Self::Cancelled => ("batch_cancelled", "The batch was cancelled before this request had its answer."),
            Self::Expired => ("batch_expired", "The batch's time was over before this request had its answer."),
        };
        Some(Unrun { code, message })
    }
}

impl Unrun {
    fn line(self, custom_id: &str) -> String {
        let error = json!({"code": self.code, "message": self.message});
        json!({"id": random_id("batch_req_"), "custom_id": custom_id, "response": null, "error": error}).to_string()
    }
}

const KEY_IS_GONE: &str = "The key that made this batch is not accepted any more.";
const INPUT_IS_GONE: &str = "The batch's input file is not there any more.";

struct Run {
    state: AppState,
    store: Arc<BatchStore>,
    batch: Batch,
}

/// Shared with the threads that write it.
type SharedJournal = Arc<Mutex<Journal>>;

fn held(journal: &Mutex<Journal>) -> MutexGuard<'_, Journal> {
    journal.lock().unwrap_or_else(PoisonError::into_inner)
}

fn counts(journal: &Mutex<Journal>) -> Counts {
    held(journal).counts()
}

impl Run {
    async fn through(self) -> Result<(), ApiError> {
        if self.batch.ending.is_some() {
            // It was over before the server started.
            return self.end().await;
        }
        // One that runs goes on: what it has answered was paid for, and what is left is refused line by line.
        if !self.has_begun() && self.state.caller(&self.batch.owner, &self.batch.via).is_none() {
            return self.fail(vec![LineError { line: 0, message: KEY_IS_GONE.to_owned() }]).await;
        }
        let lines = match self.read_lines().await? {
            Ok(lines) => lines,
            Err(errors) => return self.fail(errors).await,
        };
        let (store, id, total) = (Arc::clone(&self.store), self.batch.id.clone(), lines.len());
        let journal = self.on_disk(move || store.journal(&id, total)).await?;
        let counts = journal.counts();
        let journal = Arc::new(Mutex::new(journal));
        self.store.count(&self.batch.id, counts);
        if self.batch.status == BatchStatus::Validating {
            self.reach(BatchStatus::InProgress, counts).await?;
        }
        match self.run_lines(lines, &journal).await? {
            Some(end) => self.finish(journal, end).await,
            None => Ok(()),
        }
    }

    /// Whether its input was read before, and found good.
    fn has_begun(&self) -> bool {
        self.batch.reached_at.contains_key(&BatchStatus::InProgress)
    }

    /// What the disk has no room for is tried again until it has, or the server drains.
    async fn on_disk<T: Send + 'static>(
        &self,
        work: impl Fn() -> Result<T, BatchError> + Clone + Send + 'static,
    ) -> Result<T, ApiError> {
        self.on_disk_unless(self.state.readiness().drains(), work).await
    }

    /// The same, until there is room or it is `given_up`.
    async fn on_disk_unless<T: Send + 'static>(
        &self,
        given_up: impl Future<Output = ()>,
        work: impl Fn() -> Result<T, BatchError> + Clone + Send + 'static,
    ) -> Result<T, ApiError> {
        let mut given_up = std::pin::pin!(given_up);
        let mut changes = self.state.watch_batches();
        loop {
            match on_disk(&self.state, work.clone()).await {
                Err(error) if error.kind() == ErrorKind::StorageFull => {
                    tracing::warn!(batch = %self.batch.id, error = error.label(), "a batch waits");
                    tokio::select! {
                        // A file may have been deleted.
                        _ = changes.changed() => {}
                        () = sleep(LOOK_AGAIN) => {}
                        () = &mut given_up => return Err(error),
                    }
                }
                done => return done,
            }
        }
    }

    async fn read_lines(&self) -> Result<Result<Vec<BatchLine>, Vec<LineError>>, ApiError> {
        let store = Arc::clone(&self.store);
        let (owner, endpoint) = (self.batch.owner.clone(), self.batch.endpoint);
        let input = self.batch.input_file_id.clone();
        // A limit that is lowered holds for those that come.
        let most = if self.has_begun() { usize::MAX } else { self.store.bounds().max_requests };
        let read = move || match store.file(&owner, input.as_str()).and_then(|file| store.content(&file)) {
            Ok(content) => Ok(read_input(&content, endpoint, most)),
            Err(error) if error.is_for_want_of_the_file() => {
                Ok(Err(vec![LineError { line: 0, message: INPUT_IS_GONE.to_owned() }]))
            }
            Err(error) => Err(error),
        };
        self.on_disk(read).await
    }

    /// `None`: the server ends before the batch does.
    async fn run_lines(&self, lines: Vec<BatchLine>, journal: &SharedJournal) -> Result<Option<End>, ApiError> {
        let ids: Vec<String> = lines.iter().map(|line| line.custom_id.clone()).collect();
        let end = self.run_until_an_end(lines, journal).await?;
        if let Some(why) = end.and_then(End::of_those_that_never_ran) {
            self.note_unrun(journal, ids, why).await?;
        }
        Ok(end)
    }

    async fn run_until_an_end(&self, lines: Vec<BatchLine>, journal: &SharedJournal) -> Result<Option<End>, ApiError> {
        let (mut changes, readiness) = (self.state.watch_batches(), self.state.readiness());
        let now = self.state.clock().wall().as_secs();
        if now >= self.batch.expires_at {
            return Ok(Some(End::Expired));
        }
        let mut expiry = std::pin::pin!(sleep(Duration::from_secs(self.batch.expires_at.saturating_sub(now))));
        let is_left = |line: &BatchLine| !held(journal).is_done(&line.custom_id);
        let left: Vec<BatchLine> = lines.into_iter().filter(is_left).collect();
        let (mut left, mut num_put_off) = (left.into_iter(), 0);
        let mut running = JoinSet::new();
        let asker = Arc::new(Asker::of(&self.batch));
        loop {
            if self.store.is_cancelling(&self.batch.id) {
                return Ok(Some(End::Cancelled));
            }
            let is_draining = readiness.is_draining();
            while !is_draining
                && running.len() < self.store.bounds().max_running_requests
                && let Some(line) = left.next()
            {
                running.spawn(run_line(self.state.clone(), Arc::clone(&asker), line));
            }
            tokio::select! {
                ended = running.join_next() => match ended {
                    None => return Ok((left.len() + num_put_off == 0).then_some(End::Done)),
                    Some(Ok(Some(answer))) => self.note(journal, answer).await?,
                    Some(Ok(None)) => num_put_off += 1,
                    Some(Err(_)) => return Err(ApiError::new(ErrorKind::Internal, "A request of a batch panicked.")),
                },
                // Whatever it was, the loop looks again whether the batch is to end.
                _ = changes.changed() => {}
                () = readiness.drains(), if !is_draining => {}
                () = &mut expiry => return Ok(Some(End::Expired)),
            }
        }
    }

    async fn note(&self, journal: &SharedJournal, answer: LineAnswer) -> Result<(), ApiError> {
        let (shared, answer) = (Arc::clone(journal), Arc::new(answer));
        let write = move || Ok(held(&shared).append(&answer.custom_id, answer.outcome, &answer.line)?);
        // It is paid for: who drains waits as long as for requests.
        self.on_disk_unless(std::future::pending(), write).await?;
        self.store.count(&self.batch.id, counts(journal));
        Ok(())
    }

    /// A line for each request that has no answer, as OpenAI writes it.
    async fn note_unrun(&self, journal: &SharedJournal, ids: Vec<String>, why: Unrun) -> Result<(), ApiError> {
        let (shared, ids) = (Arc::clone(journal), Arc::new(ids));
        let write = move || {
            let mut journal = held(&shared);
            for id in ids.iter() {
                if !journal.is_done(id) {
                    journal.append(id, Outcome::Failed, &why.line(id))?;
                }
            }
            Ok(())
        };
        self.on_disk(write).await
    }

    async fn finish(&self, journal: SharedJournal, end: End) -> Result<(), ApiError> {
        if matches!(end, End::Done) {
            self.reach(BatchStatus::Finalizing, counts(&journal)).await?;
        }
        let status = match end {
            End::Done => BatchStatus::Completed,
            End::Cancelled => BatchStatus::Cancelled,
            End::Expired => BatchStatus::Expired,
        };
        self.finish_as(journal, status).await
    }

    async fn finish_as(&self, journal: SharedJournal, status: BatchStatus) -> Result<(), ApiError> {
        let (store, id, now) = (Arc::clone(&self.store), self.batch.id.clone(), self.state.clock().wall().as_secs());
        self.on_disk(move || store.finish(&id, &held(&journal), status, now)).await?;
        Ok(())
    }

    async fn end(&self) -> Result<(), ApiError> {
        let (store, id) = (Arc::clone(&self.store), self.batch.id.clone());
        self.on_disk(move || store.end(&id)).await?;
        Ok(())
    }

    async fn reach(&self, status: BatchStatus, counts: Counts) -> Result<(), ApiError> {
        let now = self.state.clock().wall().as_secs();
        self.change(move |batch| {
            batch.counts = counts;
            // Whoever cancels in this moment is not overruled.
            if batch.status != BatchStatus::Cancelling {
                batch.reach(status, now);
            }
        })
        .await
    }

    /// What was answered before becomes files all the same.
    async fn fail(&self, errors: Vec<LineError>) -> Result<(), ApiError> {
        let (store, id, total) = (Arc::clone(&self.store), self.batch.id.clone(), self.batch.counts.total);
        let journal = self.on_disk(move || store.journal(&id, total)).await?;
        self.change(move |batch| batch.errors.clone_from(&errors)).await?;
        self.finish_as(Arc::new(Mutex::new(journal)), BatchStatus::Failed).await
    }

    async fn change(&self, change: impl Fn(&mut Batch) + Clone + Send + 'static) -> Result<(), ApiError> {
        let (store, id) = (Arc::clone(&self.store), self.batch.id.clone());
        self.on_disk(move || store.change(&id, &change)).await?;
        Ok(())
    }
}

/// A line of a batch's output or errors.
struct LineAnswer {
    custom_id: String,
    outcome: Outcome,
    line: String,
}

/// Whose requests a batch's are, and where they go.
struct Asker {
    owner: String,
    via: String,
    endpoint: Endpoint,
}

impl Asker {
    fn of(batch: &Batch) -> Self {
        Self { owner: batch.owner.clone(), via: batch.via.clone(), endpoint: batch.endpoint }
    }
}

/// Asks until there is an answer that trying again would not change. A batch runs for long: whose it is, with which limits, and
/// whether its key is still accepted, is looked at each time. `None`: the server ends first, and another start asks again.
async fn run_line(state: AppState, asker: Arc<Asker>, line: BatchLine) -> Option<LineAnswer> {
    let mut waits = Waits::default();
    while !state.readiness().is_draining() {
        let today = state.caller(&asker.owner, &asker.via);
        let answered = match &today {
            Some(caller) => ask(&state, caller, asker.endpoint, &line).await,
            None => Err(ApiError::new(ErrorKind::InvalidApiKey, KEY_IS_GONE)),
        };
        let answer = answered.unwrap_or_else(IntoResponse::into_response);
        match answer.status() {
            StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => {
                tokio::select! {
                    () = sleep(waits.before_next(&answer)) => {}
                    () = state.readiness().drains() => {}
                }
            }
            // What fails while the server drains may fail because of that.
            status if status.is_server_error() && state.readiness().is_draining() => {}
            _ => {
                count(&state, asker.endpoint, &answer);
                return Some(write_line(line.custom_id, answer).await);
            }
        }
    }
    None
}

/// As a request that came by itself is counted.
fn count(state: &AppState, endpoint: Endpoint, answer: &Response) {
    let model = counted_model(answer);
    let (route, status) = (endpoint.as_str(), answer.status().as_u16());
    state.metrics().answered(AnsweredRequest { route, status, model });
}

async fn ask(
    state: &AppState,
    caller: &Arc<Caller>,
    endpoint: Endpoint,
    line: &BatchLine,
) -> Result<Response, ApiError> {
    let body = parse_json(line.body.as_bytes())?;
    if body.get("stream").is_some_and(|stream| *stream != Value::Bool(false) && !stream.is_null()) {
        return Err(super::fields::unsupported("stream", "a batch's answers are whole"));
    }
    let (caller, place, arrived) = (Arc::clone(caller), state.take_place()?, state.clock().now());
    let context = RequestContext { caller, place, arrived, scope: Scope::Batch, origin: None, shadow: None };
    let route = match endpoint {
        Endpoint::Chat => AnswerRoute::Chat,
        Endpoint::Completions => AnswerRoute::Completions,
        Endpoint::Responses => AnswerRoute::Responses,
        Endpoint::Embeddings => return embed(state, &context, body).await,
    };
    answer_body(state, context, body, route).await
}

async fn write_line(custom_id: String, answer: Response) -> LineAnswer {
    let status = answer.status();
    let outcome = if status.is_success() { Outcome::Completed } else { Outcome::Failed };
    let bytes = axum::body::to_bytes(answer.into_body(), usize::MAX).await.unwrap_or_default();
    let body: Value = serde_json::from_slice(&bytes).unwrap_or_default();
    let line = json!({
        "id": random_id("batch_req_"),
        "custom_id": custom_id,
        "response": {"status_code": status.as_u16(), "request_id": random_id("req_"), "body": body},
        "error": null,
    });
    LineAnswer { custom_id, outcome, line: line.to_string() }
}
