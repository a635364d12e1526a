//! Server-sent events, as they come in pieces of any size.

use std::mem;
use std::ops::Range;

use memchr::memchr;

/// Longest event that is read. One with the log-probabilities of a long prompt is far below it.
const MAX_EVENT_BYTES: usize = 8 << 20;

/// What has come and was not yet handed out.
#[derive(Debug, Default)]
pub(super) struct EventReader {
    bytes: Vec<u8>,
    /// Of `bytes`: what was read as lines.
    read: usize,
    /// Of `bytes`: what holds no end of a line.
    searched: usize,
    data: String,
    has_data: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum EventError {
    #[error("an event is longer than {MAX_EVENT_BYTES} bytes")]
    TooLong,
    #[error("an event is not UTF-8")]
    NotText,
}

impl EventReader {
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.searched -= self.read.min(self.searched);
        self.bytes.drain(..mem::take(&mut self.read));
        self.bytes.extend_from_slice(bytes);
    }

    /// The data of the next whole event. Fields other than `data` say nothing here.
    pub(super) fn next_event(&mut self) -> Result<Option<String>, EventError> {
        while let Some(line) = self.next_line() {
            let line = std::str::from_utf8(&self.bytes[line]).map_err(|_| EventError::NotText)?;
            // Some servers write a byte order mark before the first line.
            let line = line.strip_prefix('\u{feff}').unwrap_or(line);
            if line.is_empty() {
                if mem::take(&mut self.has_data) {
                    return Ok(Some(mem::take(&mut self.data)));
                }
            } else if let Some(data) = line.strip_prefix("data:") {
                if mem::replace(&mut self.has_data, true) {
                    self.data.push('\n');
                }
                self.data.push_str(data.strip_prefix(' ').unwrap_or(data));
            }
        }
        let held = self.bytes.len() - self.read + self.data.len();
        if held > MAX_EVENT_BYTES { Err(EventError::TooLong) } else { Ok(None) }
    }

    /// Where it is, without its end, which is a line feed, with or without a carriage return before it.
    fn next_line(&mut self) -> Option<Range<usize>> {
        let (start, from) = (self.read, self.read.max(self.searched));
        let Some(length) = memchr(b'\n', &self.bytes[from..]) else {
            self.searched = self.bytes.len();
            return None;
        };
        let end = from + length;
        self.read = end + 1;
        Some(start..if self.bytes[start..end].ends_with(b"\r") { end - 1 } else { end })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn events(pieces: &[&[u8]]) -> Vec<String> {
        let mut reader = EventReader::default();
        let mut events = Vec::new();
        for piece in pieces {
            reader.push(piece);
            while let Some(event) = reader.next_event().unwrap() {
                events.push(event);
            }
        }
        events
    }

    #[test]
    fn events_are_the_same_however_they_are_cut() {
        let whole =
            "data: {\"a\": \"é\"}\r\n\r\n: waiting\n\nevent: x\ndata: one\ndata:two\n\ndata: [DONE]\n\n".as_bytes();
        let expected = ["{\"a\": \"é\"}", "one\ntwo", "[DONE]"];
        assert_eq!(events(&[whole]), expected);
        for size in 1..whole.len() {
            assert_eq!(events(&whole.chunks(size).collect::<Vec<_>>()), expected, "in pieces of {size}");
        }
    }

    #[test]
    fn a_byte_order_mark_costs_no_event() {
        assert_eq!(events(&["\u{feff}data: one\n\ndata: two\n\n".as_bytes()]), ["one", "two"]);
    }

    #[test]
    fn an_event_that_never_ends_is_refused_and_not_collected() {
        let mut reader = EventReader::default();
        let mut pushed = 0;
        let error = loop {
            reader.push(&[b'x'; 64 << 10]);
            pushed += 64 << 10;
            if let Err(error) = reader.next_event() {
                break error;
            }
        };
        assert_eq!(error, EventError::TooLong);
        assert!(pushed <= MAX_EVENT_BYTES + (64 << 10));
    }

    #[test]
    fn what_is_not_text_is_refused() {
        let mut reader = EventReader::default();
        reader.push(b"data: \xff\n\n");
        assert_eq!(reader.next_event(), Err(EventError::NotText));
    }
}
