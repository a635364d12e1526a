//! Answers that are written while they are sent: as large as they like, with a few chunks of them in memory.

use std::error::Error;
use std::fs::File;
use std::io::{self, Read, Write};
use std::task::Poll;

use axum::body::{Body, Bytes};
use axum::http::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderValue};
use axum::response::Response;
use futures_util::stream;
use tokio::sync::mpsc;

const CHUNK_BYTES: usize = 64 << 10;
/// Written, and not yet taken by whoever reads.
const PENDING_CHUNKS: usize = 4;

/// Hands on what is written to it in chunks, and waits while nobody reads.
#[derive(Debug)]
pub(crate) struct Chunks {
    sender: mpsc::Sender<Piece>,
    buffer: Vec<u8>,
}

#[derive(Debug)]
enum Piece {
    Chunk(Bytes),
    /// The answer is whole.
    End,
    /// It cannot go on.
    Broken(io::Error),
}

/// `write` runs on a thread that may wait. An error or a panic in it breaks the answer off, so that nobody takes it for a
/// whole one.
pub(crate) fn download<E: Error>(
    content_type: &'static str,
    write: impl FnOnce(&mut Chunks) -> Result<(), E> + Send + 'static,
) -> Response {
    let (sender, mut receiver) = mpsc::channel(PENDING_CHUNKS);
    tokio::task::spawn_blocking(move || {
        let mut chunks = Chunks { sender, buffer: Vec::with_capacity(CHUNK_BYTES) };
        let written = write(&mut chunks).map_err(|error| io::Error::other(error.to_string()));
        if let Err(error) = written.and_then(|()| chunks.end()) {
            tracing::warn!(%error, "an answer broke off");
            // Whoever reads may have left.
            let _ = chunks.send(Piece::Broken(error));
        }
    });
    let mut is_over = false;
    let body = stream::poll_fn(move |context| {
        if is_over {
            return Poll::Ready(None);
        }
        receiver.poll_recv(context).map(|piece| {
            is_over = !matches!(piece, Some(Piece::Chunk(_)));
            match piece {
                Some(Piece::Chunk(chunk)) => Some(Ok(chunk)),
                Some(Piece::End) => None,
                Some(Piece::Broken(error)) => Some(Err(error)),
                None => Some(Err(io::Error::other("the answer broke off"))),
            }
        })
    });
    let mut response = Response::new(Body::from_stream(body));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

impl Chunks {
    fn end(&mut self) -> io::Result<()> {
        self.flush()?;
        self.send(Piece::End)
    }

    fn send(&self, piece: Piece) -> io::Result<()> {
        self.sender.blocking_send(piece).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

impl Write for Chunks {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.buffer.extend_from_slice(bytes);
        if self.buffer.len() >= CHUNK_BYTES {
            self.flush()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let chunk = std::mem::replace(&mut self.buffer, Vec::with_capacity(CHUNK_BYTES));
        self.send(Piece::Chunk(chunk.into()))
    }
}

/// What a file holds, read as it is sent: whoever reads slowly holds a chunk of it and no thread.
pub(crate) fn of_file(content_type: &'static str, file: File, bytes: u64) -> Response {
    let chunks = stream::try_unfold(file, |mut file| async move {
        let read = move || {
            let mut chunk = vec![0; CHUNK_BYTES];
            let num_read = file.read(&mut chunk)?;
            chunk.truncate(num_read);
            Ok::<_, io::Error>((chunk, file))
        };
        let (chunk, file) = tokio::task::spawn_blocking(read).await.map_err(io::Error::other)??;
        Ok::<_, io::Error>((!chunk.is_empty()).then(|| (Bytes::from(chunk), file)))
    });
    let mut response = Response::new(Body::from_stream(chunks));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(bytes));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_larger_than_memory_may_hold_at_once_arrives_whole() {
        let line = [b'x'; 1000];
        let response = download("text/csv", move |out| (0..1000).try_for_each(|_| out.write_all(&line)));
        assert_eq!(response.headers()[CONTENT_TYPE], "text/csv");
        let bytes = axum::body::to_bytes(response.into_body(), 2 << 20).await.unwrap();
        assert_eq!(bytes.len(), 1_000_000);
    }

    #[tokio::test]
    async fn an_answer_that_cannot_be_written_to_its_end_does_not_look_complete() {
        let response = download("text/csv", |out| {
            out.write_all(b"a line")?;
            Err::<(), _>(io::Error::other("the disk"))
        });
        assert!(axum::body::to_bytes(response.into_body(), 1 << 20).await.is_err());
    }

    #[tokio::test]
    async fn an_answer_whose_writer_panics_does_not_look_complete() {
        let response = download::<io::Error>("text/csv", |out| {
            (0..CHUNK_BYTES).try_for_each(|_| out.write_all(b"xy"))?;
            panic!("for the test")
        });
        assert!(axum::body::to_bytes(response.into_body(), 1 << 20).await.is_err());
    }
}
