//! A replica that computes nothing: every generation gets as many tokens as it asks for, at a stated pace. What a gateway
//! takes is what a client waits longer through it than without it.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::sleep_until;

use crate::clock::now;

/// What it calls its model.
pub const MODEL: &str = "mock";

/// When tokens come, counted from the request: one that is late does not make the later ones late.
#[derive(Debug, Clone, Copy, Default)]
pub struct Pace {
    pub first: Duration,
    /// Between two tokens.
    pub gap: Duration,
}

impl Pace {
    /// Of the token of this number, after the request.
    fn of(self, number: u32) -> Duration {
        self.first + self.gap * number
    }
}

const MAX_REQUEST_BYTES: usize = 16 << 20;
const MAX_HEADERS: usize = 64;
const STREAM_HEAD: &str = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";

/// Answers until it is dropped. `pace` is asked for each generation, with its number.
pub async fn serve(listener: TcpListener, pace: impl Fn(usize) -> Pace + Clone + Send + 'static) -> io::Result<()> {
    let generations = Arc::new(AtomicUsize::new(0));
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let (pace, generations) = (pace.clone(), Arc::clone(&generations));
        let next_pace = move || pace(generations.fetch_add(1, Ordering::Relaxed));
        // A client that breaks off is no concern of the others.
        tokio::spawn(async move { converse(stream, next_pace).await.ok() });
    }
}

/// One connection, request after request.
async fn converse(mut stream: TcpStream, next_pace: impl Fn() -> Pace) -> io::Result<()> {
    let mut bytes = Vec::new();
    while let Some(asked) = next_request(&mut stream, &mut bytes).await? {
        let is_chat = asked.path.ends_with("/chat/completions");
        if is_chat || asked.path.ends_with("/completions") {
            let answer = Answer { is_chat, tokens: asked.tokens(), prompt_tokens: asked.prompt_tokens() };
            let (began, pace) = (now(), next_pace());
            match asked.body["stream"] == true {
                true => answer.stream(&mut stream, pace).await?,
                false => {
                    sleep_until(began + pace.of(answer.tokens.saturating_sub(1))).await;
                    whole(&mut stream, 200, &answer.whole()).await?;
                }
            }
        } else if asked.path == "/tokenize" {
            let tokens: Vec<u32> = words(&asked.body["prompt"]).map(token).collect();
            whole(&mut stream, 200, &json!({"count": tokens.len(), "tokens": tokens})).await?;
        } else if asked.path.ends_with("/models") {
            let models = json!({"object": "list", "data": [{"id": MODEL, "object": "model"}]});
            whole(&mut stream, 200, &models).await?;
        } else {
            whole(&mut stream, 404, &json!({"error": {"message": "not here"}})).await?;
        }
    }
    Ok(())
}

struct Asked {
    path: String,
    body: Value,
}

impl Asked {
    fn tokens(&self) -> u32 {
        let stated = ["max_completion_tokens", "max_tokens"].iter().find_map(|name| self.body[*name].as_u64());
        stated.and_then(|tokens| tokens.try_into().ok()).unwrap_or(16)
    }

    /// The tokens of its texts, as `/tokenize` counts them; ids count themselves.
    fn prompt_tokens(&self) -> usize {
        match (&self.body["prompt"], &self.body["messages"]) {
            (Value::Array(ids), _) if ids.iter().all(Value::is_number) => ids.len(),
            (Value::Array(prompts), _) => prompts.iter().flat_map(words).count(),
            (prompt @ Value::String(_), _) => words(prompt).count(),
            (_, Value::Array(messages)) => messages.iter().map(|message| count_content(&message["content"])).sum(),
            _ => 0,
        }
    }
}

/// A text, or parts of which some have one.
fn count_content(content: &Value) -> usize {
    match content {
        Value::Array(parts) => parts.iter().flat_map(|part| words(&part["text"])).count(),
        text => words(text).count(),
    }
}

/// Its tokens are words.
fn words(text: &Value) -> impl Iterator<Item = &str> {
    text.as_str().unwrap_or_default().split_whitespace()
}

/// The same word is the same token.
fn token(word: &str) -> u32 {
    word.bytes().fold(7, |hash: u32, byte| hash.wrapping_mul(31).wrapping_add(byte.into()))
}

/// `None` when the connection ends.
async fn next_request(stream: &mut TcpStream, bytes: &mut Vec<u8>) -> io::Result<Option<Asked>> {
    loop {
        if let Some((asked, length)) = parse(bytes)? {
            bytes.drain(..length);
            return Ok(Some(asked));
        }
        if bytes.len() > MAX_REQUEST_BYTES {
            return Err(io::ErrorKind::InvalidData.into());
        }
        if stream.read_buf(bytes).await? == 0 {
            return Ok(None);
        }
    }
}

/// A whole request at the start of `bytes`, and its length.
fn parse(bytes: &[u8]) -> io::Result<Option<(Asked, usize)>> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut request = httparse::Request::new(&mut headers);
    let head = match request.parse(bytes).map_err(io::Error::other)? {
        httparse::Status::Complete(head) => head,
        httparse::Status::Partial => return Ok(None),
    };
    let is_length = |header: &&httparse::Header<'_>| header.name.eq_ignore_ascii_case("content-length");
    let stated = request.headers.iter().find(is_length).and_then(|header| std::str::from_utf8(header.value).ok());
    let length: usize = stated.map_or(Ok(0), |length| length.trim().parse()).map_err(io::Error::other)?;
    let Some(body) = bytes.get(head..head.saturating_add(length)) else { return Ok(None) };
    let path = request.path.unwrap_or_default().to_owned();
    Ok(Some((Asked { path, body: serde_json::from_slice(body).unwrap_or_default() }, head + length)))
}

#[derive(Debug, Clone, Copy)]
struct Answer {
    is_chat: bool,
    tokens: u32,
    prompt_tokens: usize,
}

impl Answer {
    fn piece(self, text: &str, finish_reason: Option<&str>) -> Value {
        let choice = match (self.is_chat, finish_reason) {
            (true, None) => json!({"index": 0, "delta": {"content": text}, "finish_reason": null}),
            (true, Some(reason)) => json!({"index": 0, "delta": {}, "finish_reason": reason}),
            (false, reason) => json!({"index": 0, "text": text, "finish_reason": reason}),
        };
        let object = if self.is_chat { "chat.completion.chunk" } else { "text_completion" };
        json!({"id": "mock-1", "object": object, "created": 1, "model": MODEL, "choices": [choice]})
    }

    fn usage(self) -> Value {
        let total = self.prompt_tokens + self.tokens as usize;
        json!({"prompt_tokens": self.prompt_tokens, "completion_tokens": self.tokens, "total_tokens": total})
    }

    async fn stream(self, stream: &mut TcpStream, pace: Pace) -> io::Result<()> {
        let began = now();
        let (token, mut pending) = (event(&self.piece("word ", None)), STREAM_HEAD.to_owned());
        for number in 0..self.tokens {
            let due = began + pace.of(number);
            if due > now() {
                stream.write_all(std::mem::take(&mut pending).as_bytes()).await?;
                sleep_until(due).await;
            }
            pending += &token;
        }
        let mut last = self.piece("", None);
        (last["choices"], last["usage"]) = (json!([]), self.usage());
        pending += &event(&self.piece("", Some("length")));
        pending += &event(&last);
        pending += "e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n";
        stream.write_all(pending.as_bytes()).await
    }

    fn whole(self) -> Value {
        let text = "word ".repeat(self.tokens as usize);
        let mut answer = self.piece("", Some("length"));
        answer["choices"][0] = match self.is_chat {
            true => json!({"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "length"}),
            false => json!({"index": 0, "text": text, "finish_reason": "length"}),
        };
        answer["usage"] = self.usage();
        answer
    }
}

/// As one chunk.
fn event(data: &Value) -> String {
    let event = format!("data: {data}\n\n");
    format!("{:x}\r\n{event}\r\n", event.len())
}

async fn whole(stream: &mut TcpStream, status: u16, body: &Value) -> io::Result<()> {
    let body = body.to_string();
    let length = body.len();
    let head = format!("HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n");
    stream.write_all((head + &body).as_bytes()).await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(body: &str) -> Vec<u8> {
        let head = "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: ";
        format!("{head}{}\r\n\r\n{body}", body.len()).into_bytes()
    }

    #[test]
    fn a_request_is_whole_when_its_body_is() {
        let bytes = asked(r#"{"max_tokens": 3, "prompt": "a b"}"#);
        for part in 0..bytes.len() {
            assert!(parse(&bytes[..part]).expect("no nonsense").is_none());
        }
        let (asked, length) = parse(&[&bytes[..], b"POST"].concat()).expect("no nonsense").expect("a request");
        assert_eq!((asked.tokens(), asked.prompt_tokens(), length), (3, 2, bytes.len()));
        assert!(parse(b"nonsense\r\n\r\n").is_err());
    }

    #[test]
    fn a_prompt_has_the_tokens_that_are_counted_for_its_texts() {
        for (body, tokens) in [
            (json!({"prompt": "one two  three"}), 3),
            (json!({"prompt": [5, 6]}), 2),
            (json!({"messages": [{"role": "system", "content": "one"}, {"role": "user", "content": "two three"}]}), 3),
            (json!({"messages": [{"content": [{"type": "text", "text": "one two"}, {"type": "image"}]}]}), 2),
            (json!({}), 0),
        ] {
            assert_eq!(Asked { path: String::new(), body: body.clone() }.prompt_tokens(), tokens, "{body}");
        }
        assert_eq!(token("word"), token("word"));
        assert_ne!(token("word"), token("other"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_generation_gets_as_many_tokens_as_it_asks_for_at_the_stated_pace() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback has free ports");
        let address = listener.local_addr().expect("it is bound");
        let pace = Pace { first: Duration::from_secs(20), gap: Duration::from_secs(10) };
        let serving = tokio::spawn(serve(listener, move |_| pace));
        let mut client = TcpStream::connect(address).await.expect("it listens");
        let began = tokio::time::Instant::now();
        client.write_all(&asked(r#"{"max_tokens": 3, "stream": true, "messages": []}"#)).await.expect("it reads");
        let mut said = String::new();
        while !said.ends_with("0\r\n\r\n") {
            let mut part = [0; 4096];
            let read = client.read(&mut part).await.expect("it answers");
            said += std::str::from_utf8(&part[..read]).expect("text");
        }
        assert_eq!(said.matches("word ").count(), 3);
        assert!(said.contains(r#""completion_tokens":3"#) && said.contains("data: [DONE]"), "{said}");
        assert!(began.elapsed() >= Duration::from_secs(40), "{:?}", began.elapsed());
        serving.abort();
    }
}
