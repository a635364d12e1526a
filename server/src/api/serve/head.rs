//! What was seen of a request's head, of which the HTTP library says nothing before it is whole.

/// What a peer begins with that speaks HTTP/2 (RFC 9113, 3.4).
pub(super) const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A head that is waited for.
#[derive(Debug)]
pub(super) struct Awaited {
    bytes: usize,
    /// So many of them are the preface's, if it can be one.
    of_preface: Option<usize>,
    /// Since the last line's end, but for a carriage return.
    is_line_empty: bool,
}

impl Awaited {
    /// A connection's first, which may be the preface of HTTP/2.
    pub(super) fn first() -> Self {
        Self { bytes: 0, of_preface: Some(0), is_line_empty: false }
    }

    /// On a connection that spoke HTTP/1 before.
    pub(super) fn later() -> Self {
        Self { of_preface: None, ..Self::first() }
    }

    /// Whether it ends in these bytes: with an empty line, or with the preface of HTTP/2.
    pub(super) fn ends_in(&mut self, bytes: &[u8]) -> bool {
        bytes.iter().any(|byte| {
            self.of_preface = self.of_preface.filter(|seen| PREFACE.get(*seen) == Some(byte)).map(|seen| seen + 1);
            self.bytes += 1;
            let ends_line = *byte == b'\n';
            let is_over = match self.of_preface {
                Some(seen) => seen == PREFACE.len(),
                None => ends_line && self.is_line_empty,
            };
            self.is_line_empty = ends_line || (self.is_line_empty && *byte == b'\r');
            is_over
        })
    }

    /// As far as can be seen.
    pub(super) fn speaks_http2(&self) -> bool {
        self.of_preface.is_some()
    }

    /// Whoever has said nothing, or speaks HTTP/2, would not read an answer of HTTP/1.1.
    pub(super) fn is_half_of_http1(&self) -> bool {
        self.bytes > 0 && !self.speaks_http2()
    }
}
