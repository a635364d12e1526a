//! A connection whose patience is bounded: a peer that takes nothing is cut, and one that still writes when its answer
//! is complete is given a moment, so that it reads the answer instead of a reset.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

/// How long a peer may go on writing after the last answer.
const LINGER: Duration = Duration::from_secs(1);
/// How much of it is read and thrown away.
const MAX_LINGER_BYTES: usize = 64 << 20;
const SCRATCH_BYTES: usize = 16 << 10;

/// The longest first bytes that tell HTTP/2 from HTTP/1.1.
const PREFACE_BYTES: usize = 24;

/// How long a peer is waited for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Patience {
    /// From the connection to the bytes that say which HTTP it speaks.
    pub(super) first_bytes: Duration,
    /// While it takes nothing of an answer.
    pub(super) write: Duration,
}

pub(super) struct Patient<S> {
    stream: S,
    write_timeout: Duration,
    opening: Opening,
    /// Runs while a write waits for the peer.
    stalled: Option<Pin<Box<Sleep>>>,
    closing: Closing,
}

/// Until it is known which HTTP a peer speaks, nobody else watches over it.
enum Opening {
    Waiting { until: Pin<Box<Sleep>>, seen: usize },
    Over,
}

enum Closing {
    Open,
    Lingering { until: Pin<Box<Sleep>>, thrown_away: usize },
}

impl<S> Patient<S> {
    pub(super) fn new(stream: S, patience: Patience) -> Self {
        let opening = Opening::Waiting { until: Box::pin(sleep(patience.first_bytes)), seen: 0 };
        Self { stream, write_timeout: patience.write, opening, stalled: None, closing: Closing::Open }
    }

    /// Passes on what a write came to, unless it has waited for too long.
    fn patiently<T>(&mut self, outcome: Poll<io::Result<T>>, context: &mut Context<'_>) -> Poll<io::Result<T>> {
        if outcome.is_ready() {
            self.stalled = None;
            return outcome;
        }
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(sleep(self.write_timeout)));
        ready!(stalled.as_mut().poll(context));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the reader takes nothing")))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Patient<S> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let outcome = Pin::new(&mut self.stream).poll_read(context, buf);
        let Opening::Waiting { until, seen } = &mut self.opening else { return outcome };
        match outcome {
            Poll::Ready(_) => {
                *seen += buf.filled().len() - before;
                if *seen >= PREFACE_BYTES {
                    self.opening = Opening::Over;
                }
                outcome
            }
            Poll::Pending => {
                ready!(until.as_mut().poll(context));
                Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the peer says nothing")))
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

    const PATIENCE: Patience = Patience { first_bytes: Duration::from_secs(3), write: Duration::from_secs(5) };

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_never_says_what_it_speaks_is_cut() {
        for said in ["", "PRI * HTTP/2"] {
            let (ours, mut theirs) = duplex(64);
            theirs.write_all(said.as_bytes()).await.unwrap();
            let error = Patient::new(ours, PATIENCE).read_exact(&mut [0; 24]).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::TimedOut, "{said}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_has_said_it_may_take_its_time() {
        let (ours, mut theirs) = duplex(64);
        let mut patient = Patient::new(ours, PATIENCE);
        theirs.write_all(&[b'x'; 24]).await.unwrap();
        patient.read_exact(&mut [0; 24]).await.unwrap();
        let later = async {
            sleep(10 * PATIENCE.first_bytes).await;
            theirs.write_all(b"y").await.unwrap();
        };
        let (read, ()) = tokio::join!(patient.read_u8(), later);
        assert_eq!(read.unwrap(), b'y');
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
