//! The little of an OpenAI-compatible client that a chat needs.

use std::io::{BufRead, BufReader, Read};
use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use passerelle::config::Secret;
use serde_json::Value;
use ureq::http::{Response, Uri};
use ureq::{Agent, Body};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// The longest line of an event stream, and the longest error, that is read.
const MAX_LINE_BYTES: u64 = 16 << 20;

#[derive(Debug)]
pub(super) struct Client {
    agent: Agent,
    /// Ends with `/v1`.
    base: String,
    key: Option<Secret>,
}

impl Client {
    /// `url` may end with `/v1`, as the SDKs want it, or not.
    pub(super) fn new(url: &str, key: Option<Secret>) -> Result<Self> {
        let root = url.trim_end_matches('/').trim_end_matches("/v1");
        if !root.starts_with("http://") && !root.starts_with("https://") {
            bail!("`{url}` is not a URL; write http://ADDR:PORT");
        }
        let mut config = Agent::config_builder().http_status_as_error(false).timeout_connect(Some(CONNECT_TIMEOUT));
        // What is said to this machine does not leave it, whatever HTTP_PROXY says.
        if is_loopback(root) {
            config = config.proxy(None);
        }
        Ok(Self { agent: config.build().into(), base: format!("{root}/v1"), key })
    }

    pub(super) fn first_model(&self) -> Result<String> {
        let request = self.agent.get(format!("{}/models", self.base)).header("authorization", self.bearer());
        let mut response = self.checked(request.call())?;
        let list = response.body_mut().read_to_string().context("the list of models broke off")?;
        let list: Value = serde_json::from_str(&list)
            .with_context(|| format!("{}/models answers no JSON, as no OpenAI-compatible server would", self.base))?;
        let name = list["data"][0]["id"].as_str().context("the server lists no model")?;
        Ok(name.to_owned())
    }

    /// Hands each piece of the answer to `show` as it comes, and returns the whole.
    pub(super) fn stream(&self, body: &Value, mut show: impl FnMut(&str) -> Result<()>) -> Result<String> {
        let request = self.agent.post(format!("{}/chat/completions", self.base)).header("authorization", self.bearer());
        let response = self.checked(request.content_type("application/json").send(body.to_string()))?;
        let mut events = BufReader::new(response.into_body().into_reader());
        let (mut answer, mut line) = (String::new(), String::new());
        loop {
            line.clear();
            if (&mut events).take(MAX_LINE_BYTES).read_line(&mut line).context("the answer broke off")? == 0 {
                bail!("the answer broke off");
            }
            let Some(data) = data_of(&line) else { continue };
            if data == "[DONE]" {
                return Ok(answer);
            }
            let piece = piece(data)?;
            show(&piece)?;
            answer.push_str(&piece);
        }
    }

    /// An open server ignores it.
    fn bearer(&self) -> String {
        format!("Bearer {}", self.key.as_ref().map_or("none", Secret::expose))
    }

    fn checked(&self, response: Result<Response<Body>, ureq::Error>) -> Result<Response<Body>> {
        let mut response = response.with_context(|| format!("cannot reach {}", self.base))?;
        if response.status().is_success() {
            return Ok(response);
        }
        let text = response.body_mut().with_config().limit(MAX_LINE_BYTES).read_to_string().unwrap_or_default();
        Err(anyhow!("{}: {}", response.status(), error_message(&text)))
    }
}

fn is_loopback(url: &str) -> bool {
    let url: Option<Uri> = url.parse().ok();
    let host = url.as_ref().and_then(Uri::host).unwrap_or_default().trim_matches(['[', ']']);
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.to_canonical().is_loopback())
}

/// What a line of an event stream holds, if it is not one of another kind. The space is as the server likes it.
fn data_of(line: &str) -> Option<&str> {
    line.strip_prefix("data:").map(str::trim)
}

/// The text of one event; an error in the middle of a stream is an event too.
fn piece(data: &str) -> Result<String> {
    let event: Value = serde_json::from_str(data).context("the server sent an event that is not JSON")?;
    if let Some(message) = event["error"]["message"].as_str() {
        bail!("{message}");
    }
    Ok(event["choices"][0]["delta"]["content"].as_str().unwrap_or_default().to_owned())
}

/// OpenAI's shape, else whatever a proxy in between wrote.
fn error_message(text: &str) -> String {
    let parsed: Option<Value> = serde_json::from_str(text).ok();
    parsed
        .and_then(|error| Some(error["error"]["message"].as_str()?.to_owned()))
        .unwrap_or_else(|| text.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_other_machines_are_spoken_to_through_a_proxy() {
        for url in ["http://127.0.0.1:1", "http://127.9.9.9", "http://[::1]:8080", "http://localhost:1"] {
            assert!(is_loopback(url), "{url}");
            assert!(Client::new(url, None).expect(url).agent.config().proxy().is_none(), "{url}");
        }
        for url in ["http://example.org", "https://10.0.0.1:1", "http://localhost.example.org", "http://[::2]:1"] {
            assert!(!is_loopback(url), "{url}");
        }
    }

    #[test]
    fn both_spellings_of_a_url_are_understood() {
        for url in ["http://127.0.0.1:1", "http://127.0.0.1:1/", "http://127.0.0.1:1/v1", "http://127.0.0.1:1/v1/"] {
            assert_eq!(Client::new(url, None).expect(url).base, "http://127.0.0.1:1/v1");
        }
        assert!(Client::new("127.0.0.1:1", None).is_err());
    }

    #[test]
    fn an_error_in_a_stream_is_not_taken_for_an_answer() {
        let error = piece(r#"{"error": {"message": "no more"}}"#).expect_err("it is an error");
        assert_eq!(error.to_string(), "no more");
        assert_eq!(piece(r#"{"choices": [{"delta": {"content": "a"}}]}"#).expect("a piece"), "a");
        assert_eq!(piece(r#"{"choices": []}"#).expect("usage alone"), "");
    }

    #[test]
    fn an_event_is_read_with_and_without_a_space_before_its_data() {
        assert_eq!([data_of("data: {}\r\n"), data_of("data:{}\n")], [Some("{}"); 2]);
        assert_eq!([data_of(": still here\n"), data_of("event: ping\n"), data_of("\n")], [None; 3]);
    }

    #[test]
    fn the_key_is_not_printed() {
        let client = Client::new("http://h", Some(Secret::new("sk-secret"))).expect("a URL");
        assert!(!format!("{client:?}").contains("sk-secret"));
    }
}
