//! Names for answers, tool calls and requests: random, so that nobody guesses another's.

const ID_BYTES: usize = 12;

/// What some chat templates accept as the id of a tool call.
const SHORT_ID_CHARS: usize = 9;

/// `prefix` and 24 random hexadecimal digits. `None` if the system has no randomness to give.
pub(crate) fn random_id(prefix: &str) -> Option<String> {
    let mut bytes = [0_u8; ID_BYTES];
    getrandom::fill(&mut bytes).ok()?;
    Some(bytes.iter().fold(prefix.to_owned(), |id, byte| format!("{id}{byte:02x}")))
}

/// Nine random hexadecimal digits.
pub(crate) fn random_short_id() -> Option<String> {
    let mut id = random_id("")?;
    id.truncate(SHORT_ID_CHARS);
    Some(id)
}

#[cfg(test)]
mod tests {
    use super::random_id;

    #[test]
    fn ids_differ() {
        let id = random_id("call_").unwrap();
        assert_eq!(id.len(), "call_".len() + 24);
        assert_ne!(Some(id), random_id("call_"));
    }
}
