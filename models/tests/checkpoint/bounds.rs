//! What loading or refusing any file of these tests may take.

use std::time::{Duration, Instant};

const MOST_TIME: Duration = Duration::from_secs(5);
/// For the process as a whole, its largest files included: the tests of this program run beside each other.
#[cfg(target_os = "linux")]
const MOST_MEMORY_KIB: u64 = 200 << 10;

/// What `work` returns, if it was done in time and in little memory.
#[expect(clippy::disallowed_methods, reason = "how long a refusal takes is what is promised")]
pub(crate) fn within_bounds<T>(work: impl FnOnce() -> T) -> T {
    let began = Instant::now();
    let done = work();
    assert!(began.elapsed() < MOST_TIME, "{:?}", began.elapsed());
    #[cfg(target_os = "linux")]
    assert!(peak_kib() < MOST_MEMORY_KIB, "{} KiB", peak_kib());
    done
}

/// The most memory that this process has held at once.
#[cfg(target_os = "linux")]
fn peak_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}
