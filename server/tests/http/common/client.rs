//! A small HTTP/1.1 client that hides nothing: one connection a request, headers as they came, chunks as they came.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::{KEY, PATIENCE};

#[derive(Debug, Clone)]
pub(crate) struct Client {
    address: SocketAddr,
    /// Sent with every request; later ones win.
    headers: BTreeMap<String, String>,
}

#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: BTreeMap<String, String>,
    pub(crate) body: Vec<u8>,
}

/// An answer that is read as it comes.
pub(crate) struct Stream {
    pub(crate) status: u16,
    pub(crate) headers: BTreeMap<String, String>,
    reader: BufReader<TcpStream>,
    text: Vec<u8>,
}

impl Client {
    pub(crate) fn new(address: SocketAddr) -> Self {
        let client = Self { address, headers: BTreeMap::new() };
        client.with("host", &address.to_string()).with("content-type", "application/json")
    }

    pub(crate) fn with(mut self, name: &str, value: &str) -> Self {
        self.headers.insert(name.to_owned(), value.to_owned());
        self
    }

    pub(crate) fn without(mut self, name: &str) -> Self {
        self.headers.remove(name);
        self
    }

    pub(crate) fn with_key(self) -> Self {
        self.with("authorization", &format!("Bearer {KEY}"))
    }

    pub(crate) async fn get(&self, path: &str) -> Reply {
        self.send("GET", path, b"").await.whole().await
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> Reply {
        self.send("POST", path, body.to_string().as_bytes()).await.whole().await
    }

    pub(crate) async fn post_raw(&self, path: &str, body: &[u8]) -> Reply {
        self.send("POST", path, body).await.whole().await
    }

    pub(crate) async fn stream(&self, path: &str, body: &Value) -> Stream {
        self.send("POST", path, body.to_string().as_bytes()).await
    }

    pub(crate) async fn send(&self, method: &str, path: &str, body: &[u8]) -> Stream {
        timeout(PATIENCE, self.exchange(method, path, body)).await.expect("the server answers")
    }

    async fn exchange(&self, method: &str, path: &str, body: &[u8]) -> Stream {
        let mut connection = TcpStream::connect(self.address).await.unwrap();
        let headers: String = self.headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        let length = body.len();
        let head =
            format!("{method} {path} HTTP/1.1\r\n{headers}connection: close\r\ncontent-length: {length}\r\n\r\n");
        connection.write_all(head.as_bytes()).await.unwrap();
        // A server that refuses a large body may stop reading it; its answer is still there.
        let _ = connection.write_all(body).await;
        Stream::open(connection).await
    }
}

impl Reply {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// OpenAI's error code, after checking the error's shape.
    pub(crate) fn error_code(&self) -> String {
        let json = self.json();
        let error = json["error"].as_object().unwrap_or_else(|| panic!("no error in {json}"));
        let names: Vec<_> = error.keys().map(String::as_str).collect();
        // A refusal by a limit tells of the limit, too.
        let of_limit = names.strip_suffix(&["limit"]).filter(|_| error["limit"].is_object());
        assert_eq!(of_limit.unwrap_or(&names), ["message", "type", "param", "code"]);
        assert!(error["message"].is_string() && error["type"].is_string());
        error["code"].as_str().expect("every error has a code").to_owned()
    }

    pub(crate) fn message(&self) -> String {
        self.json()["error"]["message"].as_str().unwrap().to_owned()
    }

    pub(crate) fn param(&self) -> Option<String> {
        self.json()["error"]["param"].as_str().map(str::to_owned)
    }
}

impl Stream {
    async fn open(connection: TcpStream) -> Self {
        let mut reader = BufReader::new(connection);
        let mut lines = Vec::new();
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).await.unwrap();
            if line.trim().is_empty() {
                break;
            }
            lines.push(line.trim().to_owned());
        }
        let status = lines[0].split(' ').nth(1).and_then(|code| code.parse().ok()).expect("a status line");
        let header = |line: &String| line.split_once(": ").map(|(name, value)| (name.to_lowercase(), value.to_owned()));
        Self { status, headers: lines[1..].iter().filter_map(header).collect(), reader, text: Vec::new() }
    }

    pub(crate) async fn whole(mut self) -> Reply {
        timeout(PATIENCE, async { while self.read_chunk().await {} }).await.expect("the answer ends");
        Reply { status: self.status, headers: self.headers, body: self.text }
    }

    /// Every `data:` of the stream up to `[DONE]`, which must be the last.
    pub(crate) async fn events(self) -> Vec<Value> {
        let reply = self.whole().await;
        assert_eq!(reply.status, 200, "{}", reply.text());
        let text = String::from_utf8(reply.body).expect("a stream is UTF-8");
        let mut data: Vec<&str> = text.split("\n\n").filter_map(|event| event.strip_prefix("data: ")).collect();
        assert_eq!(data.pop(), Some("[DONE]"), "{text}");
        data.into_iter().map(|data| serde_json::from_str(data).expect("an event is JSON")).collect()
    }

    /// Reads until this many events have come, and no further.
    pub(crate) async fn read_events(&mut self, count: usize) {
        let enough = |text: &[u8]| text.windows(6).filter(|window| *window == b"data: ").count() >= count;
        let reading = async { while !enough(&self.text) && self.read_chunk().await {} };
        timeout(PATIENCE, reading).await.expect("the stream goes on");
        assert!(enough(&self.text), "fewer than {count} events: {}", String::from_utf8_lossy(&self.text));
    }

    /// Reads until `sign` has come, and forgets what came before.
    pub(crate) async fn read_until(&mut self, sign: &[u8]) {
        let seen = |text: &[u8]| text.windows(sign.len()).any(|window| window == sign);
        let reading = async { while !seen(&self.text) && self.read_chunk().await {} };
        timeout(PATIENCE, reading).await.expect("the sign comes");
        assert!(seen(&self.text), "it ended before the sign: {}", String::from_utf8_lossy(&self.text));
        self.text.clear();
    }

    /// False at the end.
    async fn read_chunk(&mut self) -> bool {
        match self.headers.get("transfer-encoding").map(String::as_str) {
            Some("chunked") => self.read_one_chunk().await,
            _ => {
                let length = self.headers.get("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
                self.text.resize(length, 0);
                self.reader.read_exact(&mut self.text).await.unwrap();
                false
            }
        }
    }

    async fn read_one_chunk(&mut self) -> bool {
        let mut size = String::new();
        self.reader.read_line(&mut size).await.unwrap();
        let size = usize::from_str_radix(size.trim(), 16).expect("a chunk begins with its size");
        let mut chunk = vec![0; size + 2];
        self.reader.read_exact(&mut chunk).await.unwrap();
        self.text.extend_from_slice(&chunk[..size]);
        size > 0
    }
}
