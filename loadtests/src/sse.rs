//! Server-sent events, read from bytes that may be split anywhere (HTML living standard, section 9.2).

/// An event longer than this is a server gone wrong.
pub const MAX_EVENT_BYTES: usize = 16 << 20;

/// Bytes in, events out. Ids and comments are not needed here and skipped.
#[derive(Debug, Default)]
pub struct SseParser {
    line: Vec<u8>,
    data: Vec<u8>,
    has_data: bool,
    is_error: bool,
    after_cr: bool,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SseEvent<'a> {
    pub data: &'a [u8],
    /// Its name is `error`; no other name tells anything here.
    pub is_error: bool,
}

#[derive(Debug, thiserror::Error, PartialEq)]
#[error("an event is longer than {MAX_EVENT_BYTES} bytes")]
pub struct EventTooLong;

impl SseParser {
    /// Hands each event that `bytes` complete to `on_event`.
    pub fn push(&mut self, mut bytes: &[u8], mut on_event: impl FnMut(SseEvent<'_>)) -> Result<(), EventTooLong> {
        while let Some(&first) = bytes.first() {
            if self.after_cr && first == b'\n' {
                bytes = &bytes[1..];
            }
            self.after_cr = false;
            let Some(end) = bytes.iter().position(|byte| matches!(byte, b'\n' | b'\r')) else {
                self.line.extend_from_slice(bytes);
                break;
            };
            self.line.extend_from_slice(&bytes[..end]);
            self.after_cr = bytes[end] == b'\r';
            bytes = &bytes[end + 1..];
            self.end_line(&mut on_event);
        }
        if self.line.len() + self.data.len() > MAX_EVENT_BYTES { Err(EventTooLong) } else { Ok(()) }
    }

    fn end_line(&mut self, on_event: &mut impl FnMut(SseEvent<'_>)) {
        if self.line.is_empty() {
            let is_error = std::mem::take(&mut self.is_error);
            if std::mem::take(&mut self.has_data) {
                on_event(SseEvent { data: &self.data, is_error });
                self.data.clear();
            }
            return;
        }
        if let Some(value) = self.line.strip_prefix(b"data:") {
            if std::mem::replace(&mut self.has_data, true) {
                self.data.push(b'\n');
            }
            self.data.extend_from_slice(value.strip_prefix(b" ").unwrap_or(value));
        } else if let Some(name) = self.line.strip_prefix(b"event:") {
            self.is_error = name.strip_prefix(b" ").unwrap_or(name) == b"error";
        }
        self.line.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STREAM: &[u8] = b": comment\n\ndata: {\"a\":1}\n\nevent: x\r\ndata: one\r\ndata:two\r\n\r\nid: 3\n\ndata: \xc3\xa9\r\rdata: [DONE]\n\ndata: cut";

    fn events(pieces: &[&[u8]]) -> Vec<Vec<u8>> {
        let mut parser = SseParser::default();
        let mut events = Vec::new();
        for piece in pieces {
            parser.push(piece, |event| events.push(event.data.to_vec())).unwrap();
        }
        events
    }

    #[test]
    fn events_are_what_the_standard_says() {
        let expected: [&[u8]; 4] = [b"{\"a\":1}", b"one\ntwo", "é".as_bytes(), b"[DONE]"];
        assert_eq!(events(&[STREAM]), expected);
    }

    #[test]
    fn however_the_bytes_are_split_the_events_are_the_same() {
        let whole = events(&[STREAM]);
        for first in 0..STREAM.len() {
            for second in first..STREAM.len() {
                let pieces = [&STREAM[..first], &STREAM[first..second], &STREAM[second..]];
                assert_eq!(events(&pieces), whole, "split at {first} and {second}");
            }
        }
        let bytes: Vec<&[u8]> = STREAM.chunks(1).collect();
        assert_eq!(events(&bytes), whole);
    }

    #[test]
    fn an_events_name_is_its_own() {
        let mut names = Vec::new();
        let stream =
            b"event: error\r\ndata: {}\r\n\r\ndata: {}\n\nevent:error\n\ndata: {}\n\nevent: errors\ndata: {}\n\n";
        SseParser::default().push(stream, |event| names.push(event.is_error)).unwrap();
        assert_eq!(names, [true, false, false, false]);
    }

    #[test]
    fn an_event_without_end_is_refused() {
        let mut parser = SseParser::default();
        let block = vec![b'x'; 1 << 20];
        let refused = (0..32).find_map(|_| parser.push(&block, |_| {}).err());
        assert_eq!(refused, Some(EventTooLong));
    }
}
