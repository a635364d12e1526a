//! `encrypted_content` of an item of reasoning: its text in a form that clients hand back without reading it.
//!
//! Nothing is stored here, and many clients keep no other part of such an item, so the text itself travels. It is not
//! encrypted: whoever may read the answer may read it.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// Tells it from what other servers write there.
const MARK: &str = "text.";

pub(crate) fn carried(reasoning: &str) -> String {
    format!("{MARK}{}", STANDARD.encode(reasoning))
}

/// `None`: no server of this kind wrote it.
pub(crate) fn read_carried(written: &str) -> Option<String> {
    String::from_utf8(STANDARD.decode(written.strip_prefix(MARK)?).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasoning_comes_back_as_it_was_and_what_others_wrote_does_not() {
        for text in ["", "hm", "A sum, \u{e9}t\u{e9}.\n\u{1f600}"] {
            assert_eq!(read_carried(&carried(text)).as_deref(), Some(text));
        }
        for other in ["", "text", "gAAAAABn", "aG0=", "text.a", "text./w=="] {
            assert_eq!(read_carried(other), None, "{other}");
        }
    }
}
