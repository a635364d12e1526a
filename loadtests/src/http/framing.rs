//! Where an answer's body ends (RFC 9112, section 6).

use super::Head;

/// A chunk's size line, and the trailers together, are at most this long.
const MAX_CHUNK_LINE_BYTES: usize = 16 * 1024;

#[derive(Debug)]
pub enum Framing {
    /// So many bytes are left.
    Length(u64),
    Chunked(ChunkedDecoder),
    UntilClose,
    Closed,
}

/// `Transfer-Encoding: chunked`, from bytes that may be split anywhere.
#[derive(Debug, Default)]
pub struct ChunkedDecoder {
    state: State,
    left: u64,
    line_bytes: usize,
}

#[derive(Debug, Default, Clone, Copy, PartialEq)]
enum State {
    #[default]
    Size,
    Extension,
    Data,
    /// The line end that follows a chunk's data.
    DataEnd,
    /// At the start of a line after the last chunk.
    TrailerStart,
    Trailer,
    Done,
}

#[derive(Debug, thiserror::Error, PartialEq)]
#[error("a chunk is not framed as RFC 9112 says")]
pub struct BadChunk;

impl Framing {
    pub fn of(head: &Head) -> Self {
        match (head.status, head.chunked, head.content_length) {
            (204 | 304, ..) => Self::Length(0),
            (_, true, _) => Self::Chunked(ChunkedDecoder::default()),
            (_, false, Some(length)) => Self::Length(length),
            (_, false, None) => Self::UntilClose,
        }
    }

    pub fn is_done(&self) -> bool {
        match self {
            Self::Length(left) => *left == 0,
            Self::Chunked(decoder) => decoder.is_done(),
            Self::UntilClose => false,
            Self::Closed => true,
        }
    }

    /// Moves the body's bytes of `input` to `out`; returns how many bytes of `input` it took.
    pub fn decode(&mut self, input: &[u8], out: &mut Vec<u8>) -> Result<usize, BadChunk> {
        let taken = match self {
            Self::Length(left) => {
                let taken = input.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
                *left -= taken as u64;
                taken
            }
            Self::Chunked(decoder) => return decoder.decode(input, out),
            Self::UntilClose => input.len(),
            Self::Closed => 0,
        };
        out.extend_from_slice(&input[..taken]);
        Ok(taken)
    }
}

impl ChunkedDecoder {
    pub fn is_done(&self) -> bool {
        self.state == State::Done
    }

    pub fn decode(&mut self, input: &[u8], out: &mut Vec<u8>) -> Result<usize, BadChunk> {
        let mut at = 0;
        while at < input.len() && self.state != State::Done {
            if self.state == State::Data {
                let taken = (input.len() - at).min(usize::try_from(self.left).unwrap_or(usize::MAX));
                out.extend_from_slice(&input[at..at + taken]);
                self.left -= taken as u64;
                at += taken;
                if self.left == 0 {
                    self.state = State::DataEnd;
                }
                continue;
            }
            self.line_bytes += 1;
            if self.line_bytes > MAX_CHUNK_LINE_BYTES {
                return Err(BadChunk);
            }
            self.state = self.step(input[at])?;
            at += 1;
        }
        Ok(at)
    }

    /// The state after one byte outside of a chunk's data.
    fn step(&mut self, byte: u8) -> Result<State, BadChunk> {
        Ok(match (self.state, byte) {
            (State::Size | State::Extension, b'\n') if self.line_bytes > 1 => {
                self.line_bytes = 0;
                if self.left == 0 { State::TrailerStart } else { State::Data }
            }
            (State::Size, b';' | b' ' | b'\t' | b'\r') => State::Extension,
            (State::Size, digit) => {
                let digit = (digit as char).to_digit(16).ok_or(BadChunk)?;
                self.left = self.left.checked_mul(16).ok_or(BadChunk)? + u64::from(digit);
                State::Size
            }
            (State::Extension, _) => State::Extension,
            (State::DataEnd, b'\r') => State::DataEnd,
            (State::DataEnd, b'\n') => {
                self.line_bytes = 0;
                State::Size
            }
            (State::TrailerStart, b'\r') => State::TrailerStart,
            (State::TrailerStart, b'\n') => State::Done,
            (State::Trailer, b'\n') => State::TrailerStart,
            (State::TrailerStart | State::Trailer, _) => State::Trailer,
            _ => return Err(BadChunk),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BODY: &[u8] = b"5\r\nhello\r\n1;ext=1\r\n \r\nA\r\n0123456789\r\n0\r\nTrailer: x\r\n\r\nNEXT";

    #[test]
    fn however_the_bytes_are_split_the_body_is_the_same() {
        for cut in 0..BODY.len() {
            let mut decoder = ChunkedDecoder::default();
            let mut body = Vec::new();
            let mut taken = decoder.decode(&BODY[..cut], &mut body).unwrap();
            taken += decoder.decode(&BODY[taken..], &mut body).unwrap();
            assert!(decoder.is_done());
            assert_eq!((body.as_slice(), &BODY[taken..]), (&b"hello 0123456789"[..], &b"NEXT"[..]), "cut at {cut}");
        }
    }

    #[test]
    fn what_is_no_chunk_is_refused() {
        for bytes in [&b"xyz\r\n"[..], b"\n", b"3\r\nabcd", b"fffffffffffffffff\r\n"] {
            assert_eq!(ChunkedDecoder::default().decode(bytes, &mut Vec::new()), Err(BadChunk), "{bytes:?}");
        }
    }
}
