use std::fmt;

use serde::{Deserialize, Serialize};

use crate::hex::hex;

const RANDOM_BYTES: usize = 12;

/// Makes a name that is safe as a file's name, and that nobody guesses.
macro_rules! random_name {
    ($name:ident, $prefix:literal) => {
        #[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// `None` if the system has no randomness to give.
            pub fn random() -> Option<Self> {
                let mut bytes = [0_u8; RANDOM_BYTES];
                getrandom::fill(&mut bytes).ok()?;
                Some(Self($prefix.to_owned() + &hex(&bytes)))
            }

            /// `None` unless it is one of ours.
            pub fn parse(text: &str) -> Option<Self> {
                let digits = text.strip_prefix($prefix)?;
                let fits = |c: u8| c.is_ascii_digit() || (b'a'..=b'f').contains(&c);
                (digits.len() == 2 * RANDOM_BYTES && digits.bytes().all(fits)).then(|| Self(text.to_owned()))
            }

            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $name {
            type Error = String;

            fn try_from(text: String) -> Result<Self, String> {
                Self::parse(&text).ok_or_else(|| format!("`{text}` is no name of this kind"))
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> Self {
                id.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

random_name!(FileId, "file-");
random_name!(BatchId, "batch_");
