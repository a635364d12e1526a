//! One generation over an OpenAI-compatible route: sent, streamed, every event stamped.

mod content;

use std::time::Duration;

use serde::Deserialize;

use crate::clock::{Instant, now};
use crate::http::{Client, Connect, HttpError, Request, Response};
use crate::record::{Delivery, Ending, ErrorKind, Expect, Usage};
use crate::sse::SseParser;
use content::Content;

/// What a stream's connection gets to end after the answer's last event; one that takes longer is closed.
const LINGER: Duration = Duration::from_millis(100);
/// The system's EMFILE and ENFILE: this program, or the machine, has no file left for a connection.
const OUT_OF_FILES: [i32; 2] = [24, 23];

/// Both routes that generate text.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize, Default)]
#[serde(rename_all = "snake_case")]
pub enum Route {
    #[default]
    Chat,
    Completions,
}

/// One request, ready to be sent.
#[derive(Debug, Clone)]
pub struct Call {
    pub route: Route,
    pub body: String,
    pub api_key: Option<String>,
    /// Close the connection after so many events with text.
    pub leave_after: Option<u32>,
    pub timeout: Duration,
    pub expect: Expect,
}

/// What came back, with the moment of each event that carried text.
#[derive(Debug)]
pub struct Answer {
    pub sent: Instant,
    pub events: Vec<Instant>,
    /// Of a finished stream its last event: what a server does after it is no part of the answer.
    pub end: Instant,
    pub ending: Ending,
    pub delivery: Delivery,
    pub usage: Option<Usage>,
    pub finish_reason: Option<String>,
    pub text: String,
}

impl Route {
    pub fn path(self) -> &'static str {
        match self {
            Self::Chat => "/v1/chat/completions",
            Self::Completions => "/v1/completions",
        }
    }
}

impl Answer {
    /// Of a request of which nothing came.
    pub fn none(sent: Instant, ending: Ending) -> Self {
        Self {
            sent,
            events: Vec::new(),
            end: now(),
            ending,
            delivery: Delivery::Streamed,
            usage: None,
            finish_reason: None,
            text: String::new(),
        }
    }
}

/// Sends `call` and reads its answer to the end, to the moment of leaving, or to the timeout.
pub async fn generate<C: Connect>(client: &Client<C>, call: &Call) -> Answer {
    let mut answer = Answer::none(now(), Ending::Failed(ErrorKind::Timeout));
    let mut open = None;
    if let Ok(exchanged) = tokio::time::timeout(call.timeout, exchange(client, call, &mut answer, &mut open)).await {
        answer.ending = exchanged.unwrap_or_else(|error| Ending::Failed(kind_of(&error)));
    }
    if answer.ending != Ending::Finished {
        answer.end = now();
    }
    answer.ending = call.expect.judge(answer.ending, answer.finish_reason.as_deref(), &answer.text);
    if answer.ending == Ending::Finished && answer.events.is_empty() {
        answer.ending = Ending::Failed(ErrorKind::EmptyAnswer);
    }
    if let Some(response) = open {
        client.give_back_within(LINGER, response).await;
    }
    answer
}

/// How the answer ended; a stream that said its last is left in `open`, for its connection may not be at its end.
async fn exchange<C: Connect>(
    client: &Client<C>,
    call: &Call,
    answer: &mut Answer,
    open: &mut Option<Response<C::Stream>>,
) -> Result<Ending, HttpError> {
    let request = Request {
        method: "POST",
        path: call.route.path(),
        api_key: call.api_key.as_deref(),
        body: call.body.as_bytes(),
    };
    let mut response = client.open(&request).await?;
    if response.head.status != 200 {
        let status = response.head.status;
        let body = response.read_to_end().await?;
        client.give_back(response);
        return Ok(Ending::Refused { status, code: error_code(&body) });
    }
    if !response.head.event_stream {
        let body = response.read_to_end().await?;
        client.give_back(response);
        return Ok(read_whole(&body, answer));
    }
    let mut stream = EventStream::default();
    let mut bytes = Vec::new();
    while response.next(&mut bytes).await? {
        stream.read(&bytes, answer);
        bytes.clear();
        // Nobody leaves what is over already, and no error is hidden by leaving after it.
        let is_over = stream.is_done || stream.error.is_some();
        if !is_over && call.leave_after.is_some_and(|count| answer.events.len() >= count as usize) {
            return Ok(Ending::Left);
        }
        if is_over {
            break;
        }
    }
    // Whoever is told of an error knows nothing of the connection.
    if stream.is_done {
        *open = Some(response);
    }
    Ok(stream.ending(answer.finish_reason.is_some()))
}

/// What a stream has said so far.
#[derive(Debug, Default)]
struct EventStream {
    parser: SseParser,
    is_done: bool,
    error: Option<ErrorKind>,
}

impl EventStream {
    fn read(&mut self, bytes: &[u8], answer: &mut Answer) {
        let at = now();
        let (is_done, error) = (&mut self.is_done, &mut self.error);
        let pushed = self.parser.push(bytes, |event| {
            answer.end = at;
            if event.is_error {
                *error = Some(ErrorKind::StreamError);
                return;
            }
            match read_event(event.data, answer) {
                Ok(Event::Text) => answer.events.push(at),
                Ok(Event::Other) => {}
                Ok(Event::Done) => *is_done = true,
                Err(kind) => *error = Some(kind),
            }
        });
        if pushed.is_err() {
            self.error = Some(ErrorKind::Malformed);
        }
    }

    /// Of a stream that ended in order. Not every server says `[DONE]`, but the reason to finish says as much.
    fn ending(self, has_finish_reason: bool) -> Ending {
        match (self.error, self.is_done || has_finish_reason) {
            (Some(kind), _) => Ending::Failed(kind),
            (None, true) => Ending::Finished,
            (None, false) => Ending::Failed(ErrorKind::StreamCut),
        }
    }
}

enum Event {
    /// It carries text, or another part of the answer.
    Text,
    Other,
    Done,
}

/// A chunk of either route; what is not measured is not decoded.
#[derive(Deserialize)]
struct Chunk {
    /// Some servers put `null` beside the usage.
    #[serde(default)]
    choices: Option<Vec<Choice>>,
    #[serde(default)]
    usage: Option<WireUsage>,
    #[serde(default)]
    error: Option<serde::de::IgnoredAny>,
}

#[derive(Deserialize)]
struct Choice {
    #[serde(default)]
    delta: Option<Piece>,
    #[serde(default)]
    message: Option<Piece>,
    #[serde(default)]
    text: Option<String>,
    #[serde(default)]
    finish_reason: Option<String>,
}

#[derive(Deserialize, Default)]
struct Piece {
    #[serde(default)]
    content: Content,
    /// The same under two names; there are servers that send both.
    #[serde(default)]
    reasoning_content: Option<String>,
    #[serde(default)]
    reasoning: Option<String>,
    #[serde(default)]
    tool_calls: Option<Vec<serde::de::IgnoredAny>>,
}

#[derive(Deserialize)]
struct WireUsage {
    #[serde(default)]
    prompt_tokens: u64,
    #[serde(default)]
    completion_tokens: u64,
    #[serde(default)]
    prompt_tokens_details: Option<PromptDetails>,
}

#[derive(Deserialize)]
struct PromptDetails {
    #[serde(default)]
    cached_tokens: Option<u64>,
}

#[derive(Deserialize)]
struct ErrorBody {
    error: ErrorFields,
}

#[derive(Deserialize)]
struct ErrorFields {
    #[serde(default)]
    code: Option<serde_json::Value>,
    #[serde(default, rename = "type")]
    kind: Option<String>,
}

fn read_event(data: &[u8], answer: &mut Answer) -> Result<Event, ErrorKind> {
    if data == b"[DONE]" {
        return Ok(Event::Done);
    }
    let chunk: Chunk = serde_json::from_slice(data).map_err(|_| ErrorKind::Malformed)?;
    if chunk.error.is_some() {
        return Err(ErrorKind::StreamError);
    }
    Ok(if read_chunk(chunk, answer) { Event::Text } else { Event::Other })
}

/// Whether the chunk carried a part of the answer.
fn read_chunk(chunk: Chunk, answer: &mut Answer) -> bool {
    let mut has_text = false;
    for choice in chunk.choices.into_iter().flatten() {
        let piece = choice.delta.or(choice.message).unwrap_or_default();
        let reasoning = piece.reasoning_content.filter(|text| !text.is_empty()).or(piece.reasoning);
        for text in [choice.text, Some(piece.content.0), reasoning].into_iter().flatten() {
            has_text |= !text.is_empty();
            answer.text.push_str(&text);
        }
        has_text |= piece.tool_calls.is_some_and(|calls| !calls.is_empty());
        answer.finish_reason = choice.finish_reason.or(answer.finish_reason.take());
    }
    if let Some(usage) = chunk.usage {
        answer.usage = Some(Usage {
            prompt_tokens: usage.prompt_tokens,
            cached_tokens: usage.prompt_tokens_details.and_then(|details| details.cached_tokens).unwrap_or(0),
            output_tokens: usage.completion_tokens,
        });
    }
    has_text
}

/// A server that did not stream: one event, at the end, which is no first token.
fn read_whole(body: &[u8], answer: &mut Answer) -> Ending {
    match serde_json::from_slice::<Chunk>(body) {
        Ok(chunk) if chunk.choices.as_ref().is_some_and(|choices| !choices.is_empty()) => {
            (answer.end, answer.delivery) = (now(), Delivery::Whole);
            if read_chunk(chunk, answer) {
                answer.events.push(answer.end);
            }
            Ending::Finished
        }
        _ => Ending::Failed(ErrorKind::Malformed),
    }
}

/// The error's code, or else its type: a name from the server's short list, never a message.
fn error_code(body: &[u8]) -> Option<String> {
    let ErrorFields { code, kind } = serde_json::from_slice::<ErrorBody>(body).ok()?.error;
    match code {
        Some(serde_json::Value::String(code)) => Some(code),
        _ => kind,
    }
}

fn kind_of(error: &HttpError) -> ErrorKind {
    match error {
        HttpError::Connect(error) if error.raw_os_error().is_some_and(|code| OUT_OF_FILES.contains(&code)) => {
            ErrorKind::OutOfFiles
        }
        HttpError::Connect(_) => ErrorKind::Connect,
        HttpError::Timeout => ErrorKind::Timeout,
        HttpError::Broken(_) | HttpError::Cut => ErrorKind::StreamCut,
        HttpError::Malformed(_) | HttpError::TooLong => ErrorKind::Malformed,
    }
}
