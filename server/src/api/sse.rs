//! Server-sent events: how chunks are framed, and the bounded pipe between a generation and its reader.

use std::io;
use std::task::Poll;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::HeaderValue;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderName};
use axum::response::Response;
use tokio::sync::mpsc::{self, error::TrySendError};
use tokio::time::timeout;

use super::wire::answer::Part;

const X_ACCEL_BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");

/// Bounds of one event stream.
#[derive(Debug, Clone, Copy)]
pub struct SseConfig {
    /// Frames between the generation and the connection.
    pub max_pending_frames: usize,
    /// A reader that takes nothing for this long is cut.
    pub write_timeout: Duration,
    /// A comment is sent when nothing else was for this long, so that proxies keep the connection.
    pub keep_alive: Duration,
}

impl Default for SseConfig {
    fn default() -> Self {
        Self { max_pending_frames: 64, write_timeout: Duration::from_secs(60), keep_alive: Duration::from_secs(10) }
    }
}

/// The writing end of a stream. Dropping it before [`SseWriter::done`] breaks the connection, so that no reader takes a
/// part for the whole.
#[derive(Debug)]
pub(crate) struct SseWriter {
    frames: mpsc::Sender<Frame>,
    write_timeout: Duration,
}

#[derive(Debug)]
enum Frame {
    Event(Bytes),
    Done(StreamEnd),
}

/// How a stream shows that it is complete.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StreamEnd {
    /// With `data: [DONE]`.
    DoneMark,
    /// Its last event says so.
    Silent,
}

/// The reader has gone, or has stopped reading.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ReaderGone;

impl SseWriter {
    pub(crate) async fn part(&self, part: &Part) -> Result<(), ReaderGone> {
        self.send(Frame::Event(frame_of(part))).await
    }

    pub(crate) async fn done(&self, end: StreamEnd) -> Result<(), ReaderGone> {
        self.send(Frame::Done(end)).await
    }

    pub(crate) async fn keep_alive(&self) -> Result<(), ReaderGone> {
        self.send(Frame::Event(Bytes::from_static(b": waiting\n\n"))).await
    }

    /// Returns once the response was dropped.
    pub(crate) async fn reader_gone(&self) {
        self.frames.closed().await;
    }

    /// Sets no timer while there is room, which is nearly always.
    async fn send(&self, frame: Frame) -> Result<(), ReaderGone> {
        let frame = match self.frames.try_send(frame) {
            Ok(()) => return Ok(()),
            Err(TrySendError::Closed(_)) => return Err(ReaderGone),
            Err(TrySendError::Full(frame)) => frame,
        };
        match timeout(self.write_timeout, self.frames.send(frame)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) | Err(_) => Err(ReaderGone),
        }
    }
}

/// A streaming response and the end to write it with.
pub(crate) fn sse_response(config: &SseConfig) -> (SseWriter, Response) {
    let (frames, mut receiver) = mpsc::channel::<Frame>(config.max_pending_frames.max(1));
    let mut is_over = false;
    let stream = futures_util::stream::poll_fn(move |context| {
        if is_over {
            return Poll::Ready(None);
        }
        receiver.poll_recv(context).map(|frame| {
            is_over = !matches!(frame, Some(Frame::Event(_)));
            match frame {
                Some(Frame::Event(bytes)) => Some(Ok(bytes)),
                Some(Frame::Done(StreamEnd::DoneMark)) => Some(Ok(Bytes::from_static(b"data: [DONE]\n\n"))),
                Some(Frame::Done(StreamEnd::Silent)) => None,
                None => Some(Err(io::Error::other("the answer broke off"))),
            }
        })
    });
    let mut response = Response::new(Body::from_stream(stream));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    headers.insert(X_ACCEL_BUFFERING, HeaderValue::from_static("no"));
    (SseWriter { frames, write_timeout: config.write_timeout }, response)
}

/// JSON as serde_json writes it holds no raw line break, so one `data:` line is enough.
fn frame_of(part: &Part) -> Bytes {
    let Part { event, data } = part;
    let name = event.map_or(["", "", ""], |name| ["event: ", name, "\n"]);
    Bytes::from([name[0], name[1], name[2], "data: ", data, "\n\n"].concat())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn part(event: Option<&'static str>, data: &Value) -> Part {
        Part { event, data: data.to_string() }
    }

    #[test]
    fn a_line_break_in_the_text_stays_inside_one_data_line() {
        let frame = frame_of(&part(None, &json!({"text": "a\nb\r\n"})));
        assert_eq!(frame, "data: {\"text\":\"a\\nb\\r\\n\"}\n\n");
    }

    #[tokio::test]
    async fn the_stream_ends_when_the_writer_is_dropped() {
        let (writer, response) = sse_response(&SseConfig::default());
        writer.part(&part(None, &json!({"n": 1}))).await.unwrap();
        writer.done(StreamEnd::DoneMark).await.unwrap();
        drop(writer);
        assert_eq!(response.headers()["x-accel-buffering"], "no");
        let body = axum::body::to_bytes(response.into_body(), 1000).await.unwrap();
        assert_eq!(body, "data: {\"n\":1}\n\ndata: [DONE]\n\n");
    }

    #[tokio::test]
    async fn a_named_event_carries_its_name() {
        let (writer, response) = sse_response(&SseConfig::default());
        writer.part(&part(Some("a.b"), &json!({"n": 1}))).await.unwrap();
        writer.done(StreamEnd::Silent).await.unwrap();
        let body = axum::body::to_bytes(response.into_body(), 1000).await.unwrap();
        assert_eq!(body, "event: a.b\ndata: {\"n\":1}\n\n");
    }

    #[tokio::test]
    async fn a_stream_that_broke_off_does_not_look_complete() {
        let (writer, response) = sse_response(&SseConfig::default());
        writer.part(&part(None, &json!({"n": 1}))).await.unwrap();
        let task = tokio::spawn(async move {
            let _writer = writer;
            panic!("for the test");
        });
        task.await.unwrap_err();
        axum::body::to_bytes(response.into_body(), 1000).await.unwrap_err();
    }

    #[tokio::test(start_paused = true)]
    async fn a_reader_that_takes_nothing_is_cut() {
        let config = SseConfig { max_pending_frames: 1, ..SseConfig::default() };
        let (writer, _response) = sse_response(&config);
        writer.done(StreamEnd::DoneMark).await.unwrap();
        assert_eq!(writer.done(StreamEnd::DoneMark).await, Err(ReaderGone));
    }

    #[tokio::test]
    async fn a_reader_that_left_is_noticed() {
        let (writer, response) = sse_response(&SseConfig::default());
        drop(response);
        writer.reader_gone().await;
        assert_eq!(writer.done(StreamEnd::DoneMark).await, Err(ReaderGone));
    }
}
