//! One connection: bytes out, heads and bodies in.

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::{Framing, HttpError};

const READ_BYTES: usize = 16 * 1024;
const MAX_HEAD_BYTES: usize = 64 * 1024;
const MAX_HEADERS: usize = 64;

/// What an answer's head says that matters here.
#[derive(Debug, Clone, Default)]
pub struct Head {
    pub status: u16,
    pub content_length: Option<u64>,
    pub chunked: bool,
    pub keep_alive: bool,
    pub event_stream: bool,
}

#[derive(Debug)]
pub struct Connection<S> {
    stream: S,
    /// Bytes that were read and not yet used.
    unread: Vec<u8>,
    has_read: bool,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Connection<S> {
    pub fn new(stream: S) -> Self {
        Self { stream, unread: Vec::new(), has_read: false }
    }

    /// Sends a request and reads the head of its answer. The answer may come before the request is sent whole: a
    /// server that refuses a large body answers and closes, which breaks the sending.
    pub async fn exchange(&mut self, request: &[u8]) -> Result<Head, HttpError> {
        let sent = self.send(request).await;
        match (self.read_head().await, sent) {
            (Ok(head), _) => Ok(head),
            (Err(_), Err(error)) => Err(error),
            (Err(error), Ok(())) => Err(error),
        }
    }

    pub async fn send(&mut self, bytes: &[u8]) -> Result<(), HttpError> {
        self.stream.write_all(bytes).await?;
        Ok(self.stream.flush().await?)
    }

    /// The head of the next answer; interim answers (1xx) are passed over.
    pub async fn read_head(&mut self) -> Result<Head, HttpError> {
        loop {
            if let Some((head, length)) = parse_head(&self.unread)? {
                self.unread.drain(..length);
                if head.status >= 200 {
                    return Ok(head);
                }
                continue;
            }
            if self.unread.len() > MAX_HEAD_BYTES {
                return Err(HttpError::Malformed("the head is too long".to_owned()));
            }
            if self.fill().await? == 0 {
                return Err(HttpError::Cut);
            }
        }
    }

    /// Appends what there is of the body to `out`, reading once where there is nothing; false at the body's end.
    pub async fn read_body(&mut self, framing: &mut Framing, out: &mut Vec<u8>) -> Result<bool, HttpError> {
        let before = out.len();
        while !framing.is_done() && out.len() == before {
            if self.unread.is_empty() && self.fill().await? == 0 {
                if matches!(framing, Framing::UntilClose) {
                    *framing = Framing::Closed;
                    return Ok(false);
                }
                return Err(HttpError::Cut);
            }
            let taken = framing.decode(&self.unread, out).map_err(|error| HttpError::Malformed(error.to_string()))?;
            self.unread.drain(..taken);
        }
        Ok(out.len() > before)
    }

    /// Reads once; the number of bytes, 0 at the connection's end.
    pub async fn fill(&mut self) -> Result<usize, HttpError> {
        self.unread.reserve(READ_BYTES);
        let count = self.stream.read_buf(&mut self.unread).await?;
        self.has_read |= count > 0;
        Ok(count)
    }

    pub(super) fn has_read(&self) -> bool {
        self.has_read
    }

    pub(super) fn forget_reads(&mut self) {
        self.has_read = false;
    }
}

/// The head at the start of `bytes` and its length; `None` until it is whole.
fn parse_head(bytes: &[u8]) -> Result<Option<(Head, usize)>, HttpError> {
    if bytes.is_empty() {
        return Ok(None);
    }
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut response = httparse::Response::new(&mut headers);
    let status = response.parse(bytes).map_err(|error| HttpError::Malformed(error.to_string()))?;
    let httparse::Status::Complete(length) = status else { return Ok(None) };
    let mut head =
        Head { status: response.code.unwrap_or(0), keep_alive: response.version == Some(1), ..Head::default() };
    for header in response.headers.iter() {
        let value = String::from_utf8_lossy(header.value).trim().to_ascii_lowercase();
        match header.name.to_ascii_lowercase().as_str() {
            "content-length" => head.content_length = value.parse().ok(),
            "transfer-encoding" => head.chunked = value.ends_with("chunked"),
            "connection" => head.keep_alive = !value.contains("close"),
            "content-type" => head.event_stream = value.starts_with("text/event-stream"),
            _ => {}
        }
    }
    Ok(Some((head, length)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_head_split_anywhere_is_read_and_the_body_follows() {
        let answer = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 429 Too Many\r\nContent-Length: 3\r\n\r\nabc";
        for cut in 0..answer.len() {
            let stream = tokio_pieces(&[&answer[..cut], &answer[cut..]]);
            let mut connection = Connection::new(stream);
            let head = connection.read_head().await.unwrap();
            assert_eq!((head.status, head.content_length, head.keep_alive), (429, Some(3), true));
            let (mut framing, mut body) = (Framing::of(&head), Vec::new());
            while connection.read_body(&mut framing, &mut body).await.unwrap() {}
            assert_eq!(body, b"abc", "cut at {cut}");
        }
    }

    #[tokio::test]
    async fn an_answer_that_ends_early_is_an_error() {
        let mut connection = Connection::new(tokio_pieces(&[b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc"]));
        let head = connection.read_head().await.unwrap();
        let (mut framing, mut body) = (Framing::of(&head), Vec::new());
        assert!(connection.read_body(&mut framing, &mut body).await.unwrap());
        assert!(matches!(connection.read_body(&mut framing, &mut body).await, Err(HttpError::Cut)));
    }

    /// A stream whose other end wrote `pieces` and closed.
    fn tokio_pieces(pieces: &[&[u8]]) -> tokio::io::DuplexStream {
        let (near, mut far) = tokio::io::duplex(4096);
        let pieces: Vec<Vec<u8>> = pieces.iter().map(|piece| piece.to_vec()).collect();
        tokio::spawn(async move {
            for piece in pieces {
                far.write_all(&piece).await.expect("the reader is there");
                tokio::task::yield_now().await;
            }
        });
        near
    }
}
