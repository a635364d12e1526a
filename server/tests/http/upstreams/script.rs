//! A server on a port of its own that answers as a test tells it to, and remembers what it was asked.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// What comes of one request.
#[derive(Debug, Clone)]
pub(crate) enum Act {
    /// These events, and the end.
    Say(Vec<Value>),
    /// These events, and then the connection breaks.
    SayAndBreak(Vec<Value>),
    /// These events, and then nothing until the other side leaves.
    SayAndWait(Vec<Value>),
    /// A status, header lines and a body.
    Refuse(u16, &'static str, &'static str),
    /// A status and header lines, and of the body nothing until the other side leaves.
    RefuseAndWait(u16, &'static str),
    /// Nothing: the connection breaks.
    Break,
}

/// A request as it arrived.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    pub(crate) head: String,
    pub(crate) body: Value,
}

pub(crate) struct Scripted {
    pub(crate) address: SocketAddr,
    state: Arc<State>,
}

type Answering = dyn Fn(usize, &Value) -> Act + Send + Sync;

struct State {
    act: Box<Answering>,
    asked: Mutex<Vec<Asked>>,
    /// How many clients left before they had their answer.
    left: watch::Sender<usize>,
}

impl Scripted {
    /// Each request is answered by what `act` says to its number, from 0.
    pub(crate) async fn start(act: impl Fn(usize) -> Act + Send + Sync + 'static) -> Self {
        Self::answering(move |number, _| act(number)).await
    }

    /// The same, to what it asks for.
    pub(crate) async fn by_body(act: impl Fn(&Value) -> Act + Send + Sync + 'static) -> Self {
        Self::answering(move |_, body| act(body)).await
    }

    async fn answering(act: impl Fn(usize, &Value) -> Act + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(State { act: Box::new(act), asked: Mutex::default(), left: watch::channel(0).0 });
        tokio::spawn(accept(listener, Arc::clone(&state)));
        Self { address, state }
    }

    pub(crate) async fn always(act: Act) -> Self {
        Self::start(move |_| act.clone()).await
    }

    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.state.asked.lock().unwrap().clone()
    }

    /// Returns once so many clients have left before they had their answer.
    pub(crate) async fn until_left(&self, count: usize) {
        self.state.left.subscribe().wait_for(|left| *left >= count).await.unwrap();
    }
}

async fn accept(listener: TcpListener, state: Arc<State>) {
    while let Ok((connection, _)) = listener.accept().await {
        tokio::spawn(answer(connection, Arc::clone(&state)));
    }
}

/// A connection that ends early is the test's business, and no error here.
async fn answer(connection: TcpStream, state: Arc<State>) -> std::io::Result<()> {
    let mut connection = BufReader::new(connection);
    let asked = read_request(&mut connection).await?;
    if asked.head.starts_with("GET ") {
        return connection.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}").await;
    }
    let body = asked.body.clone();
    let number = {
        let mut all = state.asked.lock().unwrap();
        all.push(asked);
        all.len() - 1
    };
    match (state.act)(number, &body) {
        Act::Break => Ok(()),
        Act::Refuse(status, headers, body) => {
            let length = body.len();
            let head =
                format!("HTTP/1.1 {status} No\r\n{headers}connection: close\r\ncontent-length: {length}\r\n\r\n");
            connection.write_all((head + body).as_bytes()).await
        }
        Act::RefuseAndWait(status, headers) => {
            let head = format!("HTTP/1.1 {status} No\r\n{headers}connection: close\r\ncontent-length: 99\r\n\r\n");
            connection.write_all(head.as_bytes()).await?;
            connection.read(&mut [0]).await.map(drop)
        }
        Act::Say(events) => {
            say(&mut connection, &events).await?;
            connection.write_all(&chunk("data: [DONE]\n\n")).await?;
            connection.write_all(b"0\r\n\r\n").await
        }
        Act::SayAndBreak(events) => say(&mut connection, &events).await,
        Act::SayAndWait(events) => {
            say(&mut connection, &events).await?;
            let end = connection.read(&mut [0]).await;
            state.left.send_modify(|left| *left += 1);
            end.map(drop)
        }
    }
}

async fn say(connection: &mut BufReader<TcpStream>, events: &[Value]) -> std::io::Result<()> {
    let head =
        "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n";
    connection.write_all(head.as_bytes()).await?;
    for event in events {
        connection.write_all(&chunk(&format!("data: {event}\n\n"))).await?;
    }
    connection.flush().await
}

fn chunk(text: &str) -> Vec<u8> {
    format!("{:x}\r\n{text}\r\n", text.len()).into_bytes()
}

async fn read_request(connection: &mut BufReader<TcpStream>) -> std::io::Result<Asked> {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if connection.read_line(&mut head).await? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
    }
    let head = head.to_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok()).unwrap_or(0);
    let mut body = vec![0; length];
    connection.read_exact(&mut body).await?;
    Ok(Asked { head: head.replace("get ", "GET "), body: serde_json::from_slice(&body).unwrap_or_default() })
}

/// A conversation's answer in so many pieces, with its end and its usage.
pub(crate) fn chat_answer(pieces: &[&str], prompt_tokens: u32) -> Vec<Value> {
    let mut events = vec![
        json!({"id": "theirs", "model": "theirs", "choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]}),
    ];
    events.extend(pieces.iter().map(|piece| chat_piece(piece)));
    events.push(json!({"id": "theirs", "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}));
    let usage = json!({"prompt_tokens": prompt_tokens, "completion_tokens": pieces.len()});
    events.push(json!({"id": "theirs", "choices": [], "usage": usage}));
    events
}

pub(crate) fn chat_piece(text: &str) -> Value {
    json!({"id": "theirs", "model": "theirs", "choices": [{"index": 0, "delta": {"content": text}}]})
}

/// The same for a completion.
pub(crate) fn completion_answer(text: &str, prompt_tokens: u32) -> Vec<Value> {
    let usage = json!({"prompt_tokens": prompt_tokens, "completion_tokens": 1});
    vec![
        json!({"choices": [{"index": 0, "text": text, "finish_reason": null}]}),
        json!({"choices": [{"index": 0, "text": "", "finish_reason": "length"}]}),
        json!({"choices": [], "usage": usage}),
    ]
}
