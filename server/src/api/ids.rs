//! Names for answers, tool calls and requests: random, so that nobody guesses another's.

const ID_BYTES: usize = 12;

/// What some chat templates accept as the id of a tool call.
const SHORT_ID_CHARS: usize = 9;

/// `prefix` and 24 random hexadecimal digits. `None` if the system has no randomness to give.
pub(crate) fn random_id(prefix: &str) -> Option<String> {
    const DIGITS: [char; 16] = ['0', '1', '2', '3', '4', '5', '6', '7', '8', '9', 'a', 'b', 'c', 'd', 'e', 'f'];
    let mut bytes = [0_u8; ID_BYTES];
    getrandom::fill(&mut bytes).ok()?;
    let mut id = String::with_capacity(prefix.len() + 2 * ID_BYTES);
    id.push_str(prefix);
    id.extend(bytes.iter().flat_map(|byte| [byte >> 4, byte & 0xf]).map(|digit| DIGITS[usize::from(digit)]));
    Some(id)
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
        assert!(id["call_".len()..].bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')), "{id}");
        assert_ne!(Some(id), random_id("call_"));
    }
}
