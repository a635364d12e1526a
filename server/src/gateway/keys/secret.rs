//! The text of a key: `sk-psl-<public id>-<secret><checksum>`, letters and digits only.
//!
//! The public id names the key in logs, lists and quota scopes; the secret is 43 uniformly drawn characters of 62
//! (256 bits); the checksum tells a typing error from an unknown key without a look-up. Only a digest is ever stored:
//! plain SHA-256, because 256 random bits cannot be guessed and so need no slow or keyed hash.

use std::borrow::Borrow;
use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, de::Error as _};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

const PREFIX: &str = "sk-psl-";
const ALPHABET: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
const ID_CHARS: usize = 12;
/// The least number of base-62 characters that hold 256 bits.
const SECRET_CHARS: usize = 43;
const CHECKSUM_CHARS: usize = 6;

/// A key with its secret. Neither `Debug` nor `Display` shows it; [`ApiKey::reveal`] does.
pub struct ApiKey {
    id: KeyId,
    text: String,
}

/// The public half of a key.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct KeyId(String);

/// SHA-256 of a whole key. Compared in constant time only, so there is no `PartialEq`.
#[derive(Clone)]
pub struct KeyDigest([u8; 32]);

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyFormatError {
    #[error("not a key of this server's form")]
    OtherForm,
    #[error("a key with characters missing, added or changed")]
    Mistyped,
}

/// A `String` and its `str` hash alike.
impl Borrow<str> for KeyId {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl ApiKey {
    pub fn generate() -> Result<Self, getrandom::Error> {
        Self::generate_for(&KeyId(random_text(ID_CHARS)?))
    }

    /// Another secret for a public id that exists.
    pub fn generate_for(id: &KeyId) -> Result<Self, getrandom::Error> {
        let body = format!("{PREFIX}{id}-{}", random_text(SECRET_CHARS)?);
        let text = format!("{body}{}", checksum(&body));
        Ok(Self::parse(&text).expect("a generated key has the form that parse checks"))
    }

    pub fn parse(text: &str) -> Result<Self, KeyFormatError> {
        let rest = text.strip_prefix(PREFIX).ok_or(KeyFormatError::OtherForm)?;
        let (id, secret) = rest.split_once('-').ok_or(KeyFormatError::Mistyped)?;
        let is_ours = |part: &str, chars| part.len() == chars && part.bytes().all(|byte| byte.is_ascii_alphanumeric());
        if !is_ours(id, ID_CHARS) || !is_ours(secret, SECRET_CHARS + CHECKSUM_CHARS) {
            return Err(KeyFormatError::Mistyped);
        }
        let (body, stated) = text.split_at(text.len() - CHECKSUM_CHARS);
        if checksum(body) != stated {
            return Err(KeyFormatError::Mistyped);
        }
        Ok(Self { id: KeyId(id.to_owned()), text: text.to_owned() })
    }

    pub fn id(&self) -> &KeyId {
        &self.id
    }

    pub fn digest(&self) -> KeyDigest {
        KeyDigest::of(&self.text)
    }

    /// The secret itself, to be shown once to whoever will hold it.
    pub fn reveal(&self) -> &str {
        &self.text
    }
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ApiKey({PREFIX}{}-...)", self.id)
    }
}

impl KeyId {
    /// As it was stored.
    pub(in crate::gateway) fn stored(id: &str) -> Self {
        Self(id.to_owned())
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl KeyDigest {
    pub fn of(key: &str) -> Self {
        Self(Sha256::digest(key).into())
    }

    /// As it was stored.
    pub(in crate::gateway) fn stored(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    pub(in crate::gateway) fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// In time that does not depend on where two digests differ.
    pub fn matches(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl fmt::Debug for KeyDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeyDigest(...)")
    }
}

/// From hexadecimal digits, as the former file of keys has them.
impl<'de> Deserialize<'de> for KeyDigest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let hex = String::deserialize(deserializer)?;
        if hex.len() != 64 || !hex.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(D::Error::custom("a digest is 64 hexadecimal digits"));
        }
        let byte_at = |index: usize| u8::from_str_radix(&hex[2 * index..2 * index + 2], 16);
        let mut digest = [0; 32];
        for (index, byte) in digest.iter_mut().enumerate() {
            *byte = byte_at(index).map_err(D::Error::custom)?;
        }
        Ok(Self(digest))
    }
}

/// `chars` characters, each of the 62 equally likely.
fn random_text(chars: usize) -> Result<String, getrandom::Error> {
    // 248 is the largest multiple of 62 below 256: larger bytes would favour the first letters and are drawn again.
    const FAIR_BELOW: u8 = 248;
    let mut text = String::with_capacity(chars);
    let mut drawn = [0; 64];
    while text.len() < chars {
        getrandom::fill(&mut drawn)?;
        let fair = drawn.iter().filter(|byte| **byte < FAIR_BELOW);
        text.extend(fair.take(chars - text.len()).map(|byte| char::from(ALPHABET[usize::from(byte % 62)])));
    }
    Ok(text)
}

fn checksum(body: &str) -> String {
    let [b0, b1, b2, b3, b4, b5, b6, b7, ..] = <[u8; 32]>::from(Sha256::digest(format!("checksum of {body}")));
    let mut rest = u64::from_le_bytes([b0, b1, b2, b3, b4, b5, b6, b7]);
    let next = |_| {
        let digit = ALPHABET[(rest % 62) as usize];
        rest /= 62;
        char::from(digit)
    };
    (0..CHECKSUM_CHARS).map(next).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_generated_key_reads_back_and_no_two_are_alike() {
        let (one, two) = (ApiKey::generate().unwrap(), ApiKey::generate().unwrap());
        assert_eq!(ApiKey::parse(one.reveal()).unwrap().id(), one.id());
        assert_eq!(one.reveal().len(), PREFIX.len() + ID_CHARS + 1 + SECRET_CHARS + CHECKSUM_CHARS);
        assert_ne!(one.id(), two.id());
        assert!(!one.digest().matches(&two.digest()));
        assert!(one.digest().matches(&KeyDigest::of(one.reveal())));
    }

    #[test]
    fn any_one_changed_character_is_told_apart_from_an_unknown_key() {
        let key = ApiKey::generate().unwrap();
        for position in PREFIX.len()..key.reveal().len() {
            let mut typed = key.reveal().as_bytes().to_vec();
            typed[position] = if typed[position] == b'x' { b'y' } else { b'x' };
            let typed = String::from_utf8(typed).unwrap();
            assert_eq!(ApiKey::parse(&typed).unwrap_err(), KeyFormatError::Mistyped, "position {position}");
        }
        assert_eq!(ApiKey::parse(&key.reveal()[..40]).unwrap_err(), KeyFormatError::Mistyped);
        assert_eq!(ApiKey::parse(&format!("{}é", key.reveal())).unwrap_err(), KeyFormatError::Mistyped);
        assert_eq!(ApiKey::parse("sk-other").unwrap_err(), KeyFormatError::OtherForm);
        assert_eq!(ApiKey::parse("").unwrap_err(), KeyFormatError::OtherForm);
    }

    #[test]
    fn debug_output_never_shows_a_secret() {
        let key = ApiKey::generate().unwrap();
        let secret = &key.reveal()[PREFIX.len() + ID_CHARS + 1..];
        let shown = format!("{key:?} {:?}", key.digest());
        assert!(shown.contains(key.id().as_str()));
        assert!(!shown.contains(secret) && !shown.contains(&secret[..8]));
    }

    #[test]
    fn a_rotated_key_keeps_its_id_and_gets_another_secret() {
        let key = ApiKey::generate().unwrap();
        let rotated = ApiKey::generate_for(key.id()).unwrap();
        assert_eq!((rotated.id(), ApiKey::parse(rotated.reveal()).unwrap().id()), (key.id(), key.id()));
        assert!(!rotated.digest().matches(&key.digest()));
    }

    #[test]
    fn a_digest_is_read_from_hexadecimal_digits_and_a_damaged_one_is_refused() {
        let digest = ApiKey::generate().unwrap().digest();
        let hex: String = digest.as_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
        let text = format!("{hex:?}");
        assert!(serde_json::from_str::<KeyDigest>(&text).unwrap().matches(&digest));
        for damaged in ["\"\"", "\"zz\"", &text.replacen(|c: char| c.is_ascii_hexdigit(), "g", 1)] {
            assert!(serde_json::from_str::<KeyDigest>(damaged).is_err(), "{damaged}");
        }
    }
}
