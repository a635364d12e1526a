//! A connection whose patience is bounded: a peer that takes nothing is cut, one whose first request does not come is told so,
//! and one that still writes when its answer is complete is given a moment, so that it reads the answer instead of a reset.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

use crate::api::errors::{ApiError, ErrorKind};

/// How long a peer may go on writing after the last answer.
const LINGER: Duration = Duration::from_secs(1);
/// How much of it is read and thrown away.
const MAX_LINGER_BYTES: usize = 64 << 20;
const SCRATCH_BYTES: usize = 16 << 10;

/// What a peer begins with that speaks HTTP/2 (RFC 9113, 3.4).
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// How long a peer is waited for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Patience {
    /// From the connection to the end of its first head.
    pub(super) first_head: Duration,
    /// While it takes nothing of an answer.
    pub(super) write: Duration,
}

pub(super) struct Patient<S> {
    stream: S,
    patience: Patience,
    opening: Opening,
    /// Runs while a write waits for the peer.
    stalled: Option<Pin<Box<Sleep>>>,
    closing: Closing,
}

/// Until the first head is there, nobody else answers for it: the HTTP library would hang up without a word, here as before
/// each later head, where that is how an idle connection ends.
enum Opening {
    Waiting { until: Pin<Box<Sleep>>, head: FirstHead },
    Over,
}

/// What was seen of it.
#[derive(Debug, Default)]
struct FirstHead {
    bytes: usize,
    /// So many of them are the preface's.
    of_preface: usize,
    /// Since the last line's end, but for a carriage return.
    is_line_empty: bool,
}

impl FirstHead {
    /// Whether it ends in these bytes: with an empty line, or with the preface of HTTP/2.
    fn ends_in(&mut self, bytes: &[u8]) -> bool {
        bytes.iter().any(|byte| {
            if self.speaks_http2() && PREFACE.get(self.bytes) == Some(byte) {
                self.of_preface += 1;
            }
            self.bytes += 1;
            let ends_line = *byte == b'\n';
            let is_over =
                if self.speaks_http2() { self.bytes == PREFACE.len() } else { ends_line && self.is_line_empty };
            self.is_line_empty = ends_line || (self.is_line_empty && *byte == b'\r');
            is_over
        })
    }

    fn speaks_http2(&self) -> bool {
        self.of_preface == self.bytes
    }
}

enum Closing {
    Open,
    Lingering { until: Pin<Box<Sleep>>, thrown_away: usize },
}

impl<S> Patient<S> {
    pub(super) fn new(stream: S, patience: Patience) -> Self {
        let opening = Opening::Waiting { until: Box::pin(sleep(patience.first_head)), head: FirstHead::default() };
        Self { stream, patience, opening, stalled: None, closing: Closing::Open }
    }

    /// Passes on what a write came to, unless it has waited for too long.
    fn patiently<T>(&mut self, outcome: Poll<io::Result<T>>, context: &mut Context<'_>) -> Poll<io::Result<T>> {
        if outcome.is_ready() {
            self.stalled = None;
            return outcome;
        }
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(sleep(self.patience.write)));
        ready!(stalled.as_mut().poll(context));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the reader takes nothing")))
    }
}

impl<S: AsyncWrite + Unpin> Patient<S> {
    /// Nothing was written yet, so there is room for it; a peer that does not take it is cut all the same.
    fn say_too_late(&mut self, context: &mut Context<'_>) {
        let answer = too_late(self.patience.first_head);
        if let Poll::Ready(Ok(_)) = Pin::new(&mut self.stream).poll_write(context, answer.as_bytes()) {
            let _: Poll<io::Result<()>> = Pin::new(&mut self.stream).poll_flush(context);
        }
    }
}

/// A whole answer of HTTP/1.1.
fn too_late(patience: Duration) -> String {
    let message = format!("The head of the request did not arrive within {} seconds.", patience.as_secs_f64());
    let error = ApiError::new(ErrorKind::HeadTimeout, message);
    let body = error.body().to_string();
    format!(
        "HTTP/1.1 {}\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
        error.status(),
        body.len()
    )
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Patient<S> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let outcome = Pin::new(&mut self.stream).poll_read(context, buf);
        let Opening::Waiting { until, head } = &mut self.opening else { return outcome };
        match outcome {
            Poll::Ready(_) => {
                if head.ends_in(&buf.filled()[before..]) {
                    self.opening = Opening::Over;
                }
                outcome
            }
            Poll::Pending => {
                ready!(until.as_mut().poll(context));
                // Who has said nothing, or speaks HTTP/2, would not read it.
                if !head.speaks_http2() {
                    self.say_too_late(context);
                }
                Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the first request does not come")))
            }
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Patient<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.patiently(outcome, context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.stream).poll_write_vectored(context, bufs);
        self.patiently(outcome, context)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let outcome = Pin::new(&mut self.stream).poll_flush(context);
        self.patiently(outcome, context)
    }

    /// Says that nothing more comes, then reads what the peer is still sending. Closing at once would make the system
    /// reset the connection, and the peer could lose an answer (413, say) that it has not read yet.
    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if matches!(this.closing, Closing::Open) {
            ready!(Pin::new(&mut this.stream).poll_shutdown(context))?;
            this.closing = Closing::Lingering { until: Box::pin(sleep(LINGER)), thrown_away: 0 };
        }
        let Closing::Lingering { until, thrown_away } = &mut this.closing else { return Poll::Ready(Ok(())) };
        let mut scratch = [0; SCRATCH_BYTES];
        while until.as_mut().poll(context).is_pending() && *thrown_away < MAX_LINGER_BYTES {
            let mut buf = ReadBuf::new(&mut scratch);
            match ready!(Pin::new(&mut this.stream).poll_read(context, &mut buf)) {
                Ok(()) if !buf.filled().is_empty() => *thrown_away += buf.filled().len(),
                Ok(()) | Err(_) => break,
            }
        }
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    const PATIENCE: Patience = Patience { first_head: Duration::from_secs(3), write: Duration::from_secs(5) };

    #[tokio::test(start_paused = true)]
    async fn a_peer_whose_first_request_does_not_come_is_told_so_and_cut() {
        for (said, is_told) in
            [("", false), ("PRI * HTTP/2", false), ("GET / HTTP/1.1\r\nhost: x\r\n", true), ("P", false)]
        {
            let (ours, mut theirs) = duplex(1024);
            theirs.write_all(said.as_bytes()).await.unwrap();
            let error = Patient::new(ours, PATIENCE).read_exact(&mut [0; 64]).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::TimedOut, "{said}");
            let mut told = String::new();
            theirs.read_to_string(&mut told).await.unwrap();
            assert_eq!(told.starts_with("HTTP/1.1 408 Request Timeout\r\n"), is_told, "{said}: {told}");
            assert_eq!(told.contains("head_timeout"), is_told);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_whose_first_head_is_there_may_take_its_time() {
        let http1 = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n".as_slice();
        for head in [http1, PREFACE, b"GET / HTTP/1.1\n\n"] {
            let (ours, mut theirs) = duplex(64);
            let mut patient = Patient::new(ours, PATIENCE);
            theirs.write_all(head).await.unwrap();
            patient.read_exact(&mut vec![0; head.len()]).await.unwrap();
            let later = async {
                sleep(10 * PATIENCE.first_head).await;
                theirs.write_all(b"y").await.unwrap();
            };
            let (read, ()) = tokio::join!(patient.read_u8(), later);
            assert_eq!(read.unwrap(), b'y');
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_takes_nothing_is_cut() {
        let (ours, _theirs) = duplex(8);
        let mut patient = Patient::new(ours, PATIENCE);
        let error = patient.write_all(&[0; 64]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_peer_that_makes_progress_is_not() {
        let (ours, mut theirs) = duplex(8);
        let mut patient = Patient::new(ours, PATIENCE);
        let reader = async {
            let mut read = [0; 8];
            for _ in 0..8 {
                sleep(Duration::from_secs(4)).await;
                theirs.read_exact(&mut read).await.unwrap();
            }
        };
        let (written, ()) = tokio::join!(patient.write_all(&[0; 64]), reader);
        written.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_still_writes_gets_to_read_its_answer() {
        let (ours, mut theirs) = duplex(8);
        let mut patient = Patient::new(ours, PATIENCE);
        patient.write_all(b"413").await.unwrap();
        let peer = async {
            theirs.write_all(&[0; 64]).await.unwrap();
            let mut answer = [0; 3];
            theirs.read_exact(&mut answer).await.unwrap();
            drop(theirs);
            answer
        };
        let (closed, answer) = tokio::join!(patient.shutdown(), peer);
        closed.unwrap();
        assert_eq!(&answer, b"413");
    }
}
