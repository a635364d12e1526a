//! Whom and what a request is for, as its caller says: written down beside what the request used, and nowhere else.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use sha2::{Digest, Sha256};

use super::account::AccountPath;
use crate::hex::hex;

/// `None` where nothing is said. The text never reaches a log, a metric or another account.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Attribution {
    /// The caller's own name for the user, at most [`MAX_USER_CHARS`] characters in one line; of any other its digest.
    pub user: Option<Arc<str>>,
    /// The caller's own pairs, as a JSON object of at most [`MAX_METADATA_BYTES`]; of a larger one its digest.
    pub metadata: Option<Arc<str>>,
    /// The gateway that asks for an account of its own.
    pub asker: Option<Asker>,
}

/// Another gateway's own words for a request that it makes here, by which its ledger and this one are matched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asker {
    pub reservation: Arc<str>,
    /// Which prompt of its request.
    pub part: u32,
    pub account: Option<AccountPath>,
}

/// As OpenAI bounds a `safety_identifier`. Some clients put a whole record there, which is told apart by its digest.
pub const MAX_USER_CHARS: usize = 64;
/// Room for 16 pairs of plain text, as long as OpenAI takes them. So much of each request may wait in memory for the disk.
pub const MAX_METADATA_BYTES: usize = 16 << 10;

impl Attribution {
    /// Of one prompt of the request.
    pub fn set_part(&mut self, part: u32) {
        if let Some(asker) = &mut self.asker {
            asker.part = part;
        }
    }

    pub fn new(user: Option<&str>, metadata: &BTreeMap<String, String>) -> Self {
        Self {
            user: user.filter(|user| !user.is_empty()).map(bounded),
            metadata: (!metadata.is_empty()).then(|| object(metadata)),
            asker: None,
        }
    }
}

fn bounded(user: &str) -> Arc<str> {
    if user.chars().count() <= MAX_USER_CHARS && !user.contains(char::is_control) {
        return user.into();
    }
    format!("sha256:{}", hex_digest(user)).into()
}

fn object(metadata: &BTreeMap<String, String>) -> Arc<str> {
    let object = serde_json::to_string(metadata).expect("pairs of texts are JSON");
    if object.len() <= MAX_METADATA_BYTES {
        return object.into();
    }
    format!(r#"{{"sha256":"{}"}}"#, hex_digest(&object)).into()
}

fn hex_digest(text: &str) -> String {
    hex(&Sha256::digest(text)[..])
}

/// Whether something is said, and not what.
impl fmt::Debug for Attribution {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (user, metadata) = (self.user.is_some(), self.metadata.is_some());
        f.debug_struct("Attribution").field("user", &user).field("metadata", &metadata).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(said: &str) -> Option<String> {
        Attribution::new(Some(said), &BTreeMap::new()).user.as_deref().map(str::to_owned)
    }

    #[test]
    fn a_user_is_kept_as_the_caller_wrote_it_and_a_longer_one_as_its_digest() {
        assert_eq!(user("alice@example.org").as_deref(), Some("alice@example.org"));
        assert_eq!(user(&"é".repeat(64)), Some("é".repeat(64)));
        assert_eq!(user(""), None);
        for odd in ["x".repeat(65), "two\nlines".to_owned()] {
            let kept = user(&odd).unwrap();
            assert!(kept.starts_with("sha256:") && kept.len() == 71 && Some(kept) == user(&odd), "{odd}");
        }
        assert_ne!(user(&"x".repeat(65)), user(&"x".repeat(66)));
    }

    #[test]
    fn metadata_as_long_as_openai_takes_it_is_kept_and_what_takes_more_room_as_its_digest() {
        let pairs = |value: &str| (10..26).map(|n| (format!("{n:k<64}"), value.repeat(512))).collect();
        let plain = Attribution::new(None, &pairs("v")).metadata.unwrap();
        assert!(plain.contains(&"v".repeat(512)) && serde_json::from_str::<serde_json::Value>(&plain).is_ok());
        let wide = Attribution::new(None, &pairs("\u{1F600}")).metadata.unwrap();
        assert!(wide.len() < 100 && wide.starts_with(r#"{"sha256":"#), "{wide}");
    }

    #[test]
    fn what_is_said_is_not_shown_by_accident() {
        let pairs = BTreeMap::from([("ticket".to_owned(), "secret".to_owned())]);
        let said = Attribution::new(Some("alice"), &pairs);
        assert_eq!(said.metadata.as_deref(), Some(r#"{"ticket":"secret"}"#));
        let shown = format!("{said:?}");
        assert!(!shown.contains("alice") && !shown.contains("secret"), "{shown}");
    }
}
