//! Who goes first where the system has no memory left.

use std::fs;

/// Of this process. Linux kills whoever holds the most, to which it adds so many thousandths of all memory.
const ORDER: &str = "/proc/self/oom_score_adj";
/// Before every process that does not say the same.
const FIRST: &str = "1000";

/// A worker goes before the server that started it, which starts another. Where nobody can be told, the largest goes.
pub(super) fn go_first() {
    if let Err(error) = fs::write(ORDER, FIRST) {
        tracing::debug!(%error, "the system chooses by size alone who goes when memory runs out");
    }
}
