//! A connection whose patience is bounded: a peer that takes nothing is cut, one whose request does not come is told so, one
//! that writes no more is answered if that can be done at once, and one that still writes when its answer is complete
//! is given a moment, so that it reads the answer instead of a reset.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

use super::head::Awaited;
use super::turns::Turns;
use crate::api::errors::{ApiError, ErrorKind};

/// How long a peer may go on writing after the last answer.
const LINGER: Duration = Duration::from_secs(1);
/// How much of it is read and thrown away.
const MAX_LINGER_BYTES: usize = 64 << 20;
const SCRATCH_BYTES: usize = 16 << 10;

/// How long a peer is waited for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Patience {
    /// From the connection, or the end of the previous answer, to the end of a request's head.
    pub(super) head: Duration,
    /// With the answer to a peer that writes no more.
    pub(super) half_closed: Duration,
    /// While it takes nothing of an answer.
    pub(super) write: Duration,
}

pub(super) struct Patient<S> {
    stream: S,
    patience: Patience,
    turns: Turns,
    head: Head,
    /// Runs while the end of what the peer writes is kept from the HTTP library, which would drop what it answers.
    half_closed: Option<Pin<Box<Sleep>>>,
    /// Runs while a write waits for the peer.
    stalled: Option<Pin<Box<Sleep>>>,
    closing: Closing,
}

enum Closing {
    Open,
    Lingering { until: Pin<Box<Sleep>>, thrown_away: usize },
}

/// Until a head is there, nobody else answers for it: the HTTP library would hang up without a word.
enum Head {
    Waiting {
        until: Pin<Box<Sleep>>,
        awaited: Awaited,
    },
    /// The next one is waited for when an answer beyond these has ended.
    There {
        ended: usize,
    },
    /// HTTP/2 has frames from here on.
    Framed,
}

impl<S> Patient<S> {
    /// `turns` are those of the requests that are read from `stream`.
    pub(super) fn new(stream: S, patience: Patience, turns: Turns) -> Self {
        let head = Head::Waiting { until: Box::pin(sleep(patience.head)), awaited: Awaited::first() };
        Self { stream, patience, turns, head, half_closed: None, stalled: None, closing: Closing::Open }
    }

    fn await_next_head(&mut self) {
        if let Head::There { ended } = self.head
            && self.turns.ended() > ended
            // One that came before the last answer had ended is begun without a further read.
            && !self.turns.is_any_running()
        {
            let until = Box::pin(sleep(self.patience.head));
            self.head = Head::Waiting { until, awaited: Awaited::later() };
        }
    }

    fn look_for_head(&mut self, bytes: &[u8]) {
        if let Head::Waiting { awaited, .. } = &mut self.head
            && awaited.ends_in(bytes)
        {
            let ended = self.turns.ended();
            self.head = if awaited.speaks_http2() { Head::Framed } else { Head::There { ended } };
        }
    }

    /// A peer that is gone looks the same as one that only writes no more, so this is short.
    fn poll_half_closed(&mut self, context: &mut Context<'_>) -> Poll<()> {
        // What is still to be written of an answer that has ended is taken or cut with the write that waits.
        if self.stalled.is_some() {
            return Poll::Pending;
        }
        if !self.turns.is_any_running() {
            return Poll::Ready(());
        }
        let held = self.half_closed.get_or_insert_with(|| Box::pin(sleep(self.patience.half_closed)));
        held.as_mut().poll(context)
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
    /// Answers for a head of which only a part came. Not where that part may be HTTP/2, nor while an earlier answer is
    /// still on its way. There is room for so little; a peer that does not take it is cut all the same.
    fn say_of_half_a_head(&mut self, context: &mut Context<'_>, error: &ApiError) {
        let Head::Waiting { awaited, .. } = &self.head else { return };
        if !awaited.is_half_of_http1() || self.stalled.is_some() {
            return;
        }
        if let Poll::Ready(Ok(_)) = Pin::new(&mut self.stream).poll_write(context, whole_answer(error).as_bytes()) {
            let _: Poll<io::Result<()>> = Pin::new(&mut self.stream).poll_flush(context);
        }
    }
}

fn too_late(patience: Duration) -> ApiError {
    let message = format!("The head of the request did not arrive within {} seconds.", patience.as_secs_f64());
    ApiError::new(ErrorKind::HeadTimeout, message)
}

fn too_short() -> ApiError {
    ApiError::new(ErrorKind::IncompleteHead, "The head of the request ended too early.")
}

/// In HTTP/1.1.
fn whole_answer(error: &ApiError) -> String {
    let body = error.body().to_string();
    format!(
        "HTTP/1.1 {}\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
        error.status(),
        body.len()
    )
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Patient<S> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.await_next_head();
        let before = buf.filled().len();
        let outcome = Pin::new(&mut self.stream).poll_read(context, buf);
        match outcome {
            Poll::Ready(Ok(())) if buf.filled().len() > before => self.look_for_head(&buf.filled()[before..]),
            Poll::Ready(Ok(())) if buf.remaining() > 0 => {
                ready!(self.poll_half_closed(context));
                self.say_of_half_a_head(context, &too_short());
            }
            Poll::Pending => {
                let Head::Waiting { until, .. } = &mut self.head else { return Poll::Pending };
                ready!(until.as_mut().poll(context));
                let error = too_late(self.patience.head);
                self.say_of_half_a_head(context, &error);
                return Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the next request does not come")));
            }
            Poll::Ready(_) => {}
        }
        outcome
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
    use tokio::time::{Instant, timeout};

    use super::super::head::PREFACE;
    use super::*;

    const PATIENCE: Patience = Patience {
        head: Duration::from_secs(3),
        half_closed: Duration::from_millis(20),
        write: Duration::from_secs(5),
    };
    const HEAD: &str = "GET / HTTP/1.1\r\nhost: x\r\n\r\n";

    fn patient<S>(stream: S) -> (Patient<S>, Turns) {
        let turns = Turns::default();
        (Patient::new(stream, PATIENCE, turns.clone()), turns)
    }

    async fn read_all(mut peer: impl AsyncRead + Unpin) -> String {
        let mut told = String::new();
        peer.read_to_string(&mut told).await.unwrap();
        told
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_whose_request_does_not_come_is_told_so_and_cut() {
        for (said, is_told) in
            [("", false), ("PRI * HTTP/2", false), ("GET / HTTP/1.1\r\nhost: x\r\n", true), ("P", false)]
        {
            let (ours, mut theirs) = duplex(1024);
            theirs.write_all(said.as_bytes()).await.unwrap();
            let error = patient(ours).0.read_exact(&mut [0; 64]).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::TimedOut, "{said}");
            let told = read_all(theirs).await;
            assert_eq!(told.starts_with("HTTP/1.1 408 Request Timeout\r\n"), is_told, "{said}: {told}");
            assert_eq!(told.contains("head_timeout"), is_told);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_later_request_that_does_not_come_whole_is_told_so_and_silence_is_not() {
        for (said, is_told) in [("", false), ("P", true), ("GET / HTTP/1.1\r\n", true)] {
            let (ours, mut theirs) = duplex(1024);
            let (mut patient, turns) = patient(ours);
            theirs.write_all(HEAD.as_bytes()).await.unwrap();
            patient.read_exact(&mut [0; HEAD.len()]).await.unwrap();
            drop(turns.begin());
            theirs.write_all(said.as_bytes()).await.unwrap();
            let error = patient.read_exact(&mut [0; 64]).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::TimedOut, "{said}");
            drop(patient);
            assert_eq!(read_all(theirs).await.contains("head_timeout"), is_told, "{said}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_whose_head_is_there_may_take_its_time() {
        for head in [HEAD.as_bytes(), PREFACE, b"GET / HTTP/1.1\n\n"] {
            let (ours, mut theirs) = duplex(64);
            let mut patient = patient(ours).0;
            theirs.write_all(head).await.unwrap();
            patient.read_exact(&mut vec![0; head.len()]).await.unwrap();
            let later = async {
                sleep(10 * PATIENCE.head).await;
                theirs.write_all(b"y").await.unwrap();
            };
            let (read, ()) = tokio::join!(patient.read_u8(), later);
            assert_eq!(read.unwrap(), b'y');
        }
    }

    #[tokio::test(start_paused = true)]
    async fn half_a_head_and_no_more_is_answered_at_once() {
        let (ours, mut theirs) = duplex(1024);
        theirs.write_all(b"GET / HTTP/1.1\r\nhost: x").await.unwrap();
        theirs.shutdown().await.unwrap();
        let (mut patient, _turns) = patient(ours);
        let begin = Instant::now();
        patient.read_to_end(&mut Vec::new()).await.unwrap();
        assert_eq!(begin.elapsed(), Duration::ZERO);
        drop(patient);
        let told = read_all(theirs).await;
        assert!(told.starts_with("HTTP/1.1 400 Bad Request\r\n") && told.contains("incomplete_head"), "{told}");
    }

    #[tokio::test(start_paused = true)]
    async fn the_end_of_what_a_peer_writes_is_seen_a_moment_later_while_a_request_runs() {
        let (ours, mut theirs) = duplex(1024);
        let (mut patient, turns) = patient(ours);
        theirs.write_all(HEAD.as_bytes()).await.unwrap();
        patient.read_exact(&mut [0; HEAD.len()]).await.unwrap();
        let turn = turns.begin();
        theirs.shutdown().await.unwrap();
        let begin = Instant::now();
        assert_eq!(patient.read(&mut [0; 8]).await.unwrap(), 0);
        assert_eq!(begin.elapsed(), PATIENCE.half_closed);
        drop(turn);
        assert_eq!(patient.read(&mut [0; 8]).await.unwrap(), 0);
        assert_eq!(begin.elapsed(), PATIENCE.half_closed, "nothing runs any more");
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_takes_nothing_is_cut() {
        let (ours, _theirs) = duplex(8);
        let mut patient = patient(ours).0;
        let error = patient.write_all(&[0; 64]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_peer_that_makes_progress_is_not() {
        let (ours, mut theirs) = duplex(8);
        let mut patient = patient(ours).0;
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
        let mut patient = patient(ours).0;
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

    #[tokio::test(start_paused = true)]
    async fn a_request_that_came_before_the_last_answer_had_ended_is_not_waited_for() {
        let (ours, mut theirs) = duplex(1024);
        let (mut patient, turns) = patient(ours);
        let heads = HEAD.repeat(2);
        let mut bytes = vec![0; heads.len()];
        theirs.write_all(heads.as_bytes()).await.unwrap();
        patient.read_exact(&mut bytes).await.unwrap();
        let (first, second) = (turns.begin(), turns.begin());
        drop(first);
        let further = timeout(10 * PATIENCE.head, patient.read(&mut bytes)).await;
        assert!(further.is_err(), "the second is still answered: {further:?}");
        drop(second);
        let error = patient.read(&mut bytes).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut, "a third does not come");
    }
}
