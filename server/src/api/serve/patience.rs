//! A connection whose patience is bounded: a peer that takes nothing is cut, one whose request does not come is told so, one
//! that writes no more is answered unless it turns out to be gone, and one that still writes when its answer is complete
//! is given a moment, so that it reads the answer instead of a reset.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

use super::head::Awaited;
use super::turns::{Stage, Turns};
use crate::api::errors::{ApiError, ErrorKind};

/// How long a peer may go on writing after the last answer.
const LINGER: Duration = Duration::from_secs(1);
/// How much of it is read and thrown away.
const MAX_LINGER_BYTES: usize = 64 << 20;
const SCRATCH_BYTES: usize = 16 << 10;
/// What an answer may be announced with as often as one likes (RFC 9110, 15.2).
const INTERIM: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";
/// How often a peer that writes no more is asked whether it is there.
const ASK_AGAIN_AT_LEAST: Duration = Duration::from_millis(1);
const ASK_AGAIN_AT_MOST: Duration = Duration::from_secs(1);

/// How long a peer is waited for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Patience {
    /// From the connection, or the end of the previous answer, to the end of a request's head.
    pub(super) head: Duration,
    /// Before a peer that writes no more is asked whether it is there; twice as long before it is asked again, and so on.
    pub(super) half_closed: Duration,
    /// While it takes nothing of an answer.
    pub(super) write: Duration,
}

pub(super) struct Patient<S> {
    stream: S,
    patience: Patience,
    turns: Turns,
    head: Head,
    /// Lasts while the end of what the peer writes is kept from the HTTP library, which would drop what it answers.
    half_closed: Option<HalfClosed>,
    /// Runs while a write waits for the peer.
    stalled: Option<Pin<Box<Sleep>>>,
    closing: Closing,
}

struct HalfClosed {
    ask_again: Pin<Box<Sleep>>,
    period: Duration,
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

impl HalfClosed {
    fn new(period: Duration) -> Self {
        Self { ask_again: Box::pin(sleep(period)), period }
    }

    /// Whoever was there is asked ever more rarely.
    fn put_off(&mut self) {
        *self = Self::new((self.period * 2).clamp(ASK_AGAIN_AT_LEAST, ASK_AGAIN_AT_MOST));
    }
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
    /// Ready when the HTTP library is to know that the peer writes no more.
    ///
    /// A peer that is gone looks the same, but its system refuses what is written to it. So something is written that says
    /// nothing, and what comes of it is seen at the next attempt. Requests that are not all there, or of HTTP/2, are not
    /// waited for.
    fn poll_half_closed(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        // What is still to be written of an answer that has ended is taken or cut with the write that waits.
        if self.stalled.is_some() {
            return Poll::Pending;
        }
        let stage = match self.turns.stage() {
            Stage::Idle => return Poll::Ready(Ok(())),
            _ if matches!(self.head, Head::Framed) => Stage::Asked,
            stage => stage,
        };
        let mut held = self.half_closed.take().unwrap_or_else(|| HalfClosed::new(self.patience.half_closed));
        let mut end = Poll::Pending;
        while end.is_pending() && held.ask_again.as_mut().poll(context).is_ready() {
            end = self.ask(stage, context);
            if end.is_pending() {
                held.put_off();
            }
        }
        self.half_closed = Some(held);
        end
    }

    /// Ready where nothing can be asked, and where nobody is there any more.
    fn ask(&mut self, stage: Stage, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match stage {
            Stage::Idle | Stage::Asked => Poll::Ready(Ok(())),
            Stage::Silent => match self.say_wait(context) {
                Ok(()) => Poll::Pending,
                Err(error) => Poll::Ready(Err(error)),
            },
            Stage::Answering => {
                self.turns.prod();
                Poll::Pending
            }
        }
    }

    fn say_wait(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        // There is room for so little; whoever takes nothing at all is asked again.
        let Poll::Ready(written) = Pin::new(&mut self.stream).poll_write(context, INTERIM) else { return Ok(()) };
        if written? < INTERIM.len() {
            return Err(io::ErrorKind::WriteZero.into());
        }
        match Pin::new(&mut self.stream).poll_flush(context) {
            Poll::Ready(flushed) => flushed,
            Poll::Pending => Ok(()),
        }
    }

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
                ready!(self.poll_half_closed(context))?;
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
    use axum::http::Version;
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

    async fn send_head(peer: &mut (impl AsyncWrite + Unpin), patient: &mut (impl AsyncRead + Unpin)) {
        peer.write_all(HEAD.as_bytes()).await.unwrap();
        patient.read_exact(&mut [0; HEAD.len()]).await.unwrap();
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
            send_head(&mut theirs, &mut patient).await;
            drop(turns.begin(Version::HTTP_11));
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
    async fn the_end_of_half_a_request_or_of_one_that_cannot_be_told_to_wait_is_seen_a_moment_later() {
        for (version, is_whole) in [(Version::HTTP_11, false), (Version::HTTP_10, true)] {
            let (ours, mut theirs) = duplex(1024);
            let (mut patient, turns) = patient(ours);
            send_head(&mut theirs, &mut patient).await;
            let turn = turns.begin(version);
            if is_whole {
                turn.hear();
            }
            theirs.shutdown().await.unwrap();
            let begin = Instant::now();
            assert_eq!(patient.read(&mut [0; 8]).await.unwrap(), 0);
            assert_eq!(begin.elapsed(), PATIENCE.half_closed);
            drop(turn);
            assert_eq!(patient.read(&mut [0; 8]).await.unwrap(), 0);
            assert_eq!(begin.elapsed(), PATIENCE.half_closed, "nothing runs any more");
            drop(patient);
            assert_eq!(read_all(theirs).await, "");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_writes_no_more_is_told_to_wait_until_it_is_answered() {
        let (ours, mut theirs) = duplex(1024);
        let (mut patient, turns) = patient(ours);
        send_head(&mut theirs, &mut patient).await;
        let turn = turns.begin(Version::HTTP_11);
        turn.hear();
        theirs.shutdown().await.unwrap();
        let waited = timeout(Duration::from_secs(2), patient.read(&mut [0; 8])).await;
        assert!(waited.is_err(), "it is not answered yet: {waited:?}");
        drop(turn);
        assert_eq!(patient.read(&mut [0; 8]).await.unwrap(), 0);
        drop(patient);
        let told = read_all(theirs).await;
        let interim = std::str::from_utf8(INTERIM).unwrap();
        let times = told.matches(interim).count();
        assert_eq!(told, interim.repeat(times));
        assert!((2..10).contains(&times), "ever more rarely: {told}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_is_gone_is_found_out_when_it_is_told_to_wait() {
        let (ours, mut theirs) = duplex(1024);
        let (mut patient, turns) = patient(ours);
        send_head(&mut theirs, &mut patient).await;
        let turn = turns.begin(Version::HTTP_11);
        turn.hear();
        drop(theirs);
        let begin = Instant::now();
        let error = patient.read(&mut [0; 8]).await.unwrap_err();
        assert_eq!((error.kind(), begin.elapsed()), (io::ErrorKind::BrokenPipe, PATIENCE.half_closed));
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
        let (first, second) = (turns.begin(Version::HTTP_11), turns.begin(Version::HTTP_11));
        drop(first);
        let further = timeout(10 * PATIENCE.head, patient.read(&mut bytes)).await;
        assert!(further.is_err(), "the second is still answered: {further:?}");
        drop(second);
        let error = patient.read(&mut bytes).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut, "a third does not come");
    }
}
