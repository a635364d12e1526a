//! Which thread runs which tasks of a job. Neighbouring tasks read what stands side by side in memory, so each thread has a range
//! of its own and works through it in order: what it asks memory for at the end of one task is what its next one begins with.
//! Whoever is done with its range takes the second half of the longest that is left, so a thread that does not come, or that
//! another process keeps from running, delays nothing but a task that it has begun, or what it is just taking.

use std::ops::Range;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

/// A range for each thread.
#[derive(Debug)]
pub(super) struct TaskRanges(Box<[TaskRange]>);

/// The first task that is left in the upper half, the end in the lower. Each has the cache lines that a thread fetches at a time
/// to itself.
///
/// The order of these words and of others does not matter: a job begins and ends by another word, and in between all that counts
/// is that no two threads get the same task.
#[derive(Debug, Default)]
#[repr(align(128))]
struct TaskRange(AtomicU64);

impl TaskRanges {
    pub(super) fn new(num_threads: usize) -> Self {
        Self((0..num_threads).map(|_| TaskRange::default()).collect())
    }

    /// Deals `0..num_tasks` out. Nobody may be claiming any.
    pub(super) fn deal(&self, num_tasks: u32) {
        let (tasks, threads) = (u64::from(num_tasks), self.0.len() as u64);
        // Thread 0 has one wherever there is one: it is the caller, who is there already.
        let start = |thread: u64| (tasks * thread).div_ceil(threads) as u32;
        for (thread, range) in (0..).zip(&self.0) {
            range.set(start(thread)..start(thread + 1));
        }
    }

    /// The next task of `thread`. `None`: others have all that is left, or are about to.
    pub(super) fn claim(&self, thread: usize) -> Option<u32> {
        let own = &self.0[thread];
        let first = |left: Range<u32>| (left.start, left.start + 1..left.end);
        own.take(first).or_else(|| {
            loop {
                let longest = self.0.iter().max_by_key(|range| range.left().len())?;
                if longest.left().is_empty() {
                    return None;
                }
                // Of one task, that one.
                let second_half = |left: Range<u32>| {
                    let middle = left.start + (left.end - left.start) / 2;
                    (middle..left.end, left.start..middle)
                };
                // `None`: the last one is gone meanwhile.
                if let Some(taken) = longest.take(second_half) {
                    own.set(taken.start + 1..taken.end);
                    return Some(taken.start);
                }
            }
        })
    }
}

impl TaskRange {
    fn left(&self) -> Range<u32> {
        unpacked(self.0.load(Relaxed))
    }

    fn set(&self, range: Range<u32>) {
        self.0.store(packed(range), Relaxed);
    }

    /// What `part` takes of what is left, if anything is: it gives that, and the rest.
    fn take<T>(&self, part: impl Fn(Range<u32>) -> (T, Range<u32>)) -> Option<T> {
        let mut word = self.0.load(Relaxed);
        loop {
            let left = unpacked(word);
            if left.is_empty() {
                return None;
            }
            let (taken, rest) = part(left);
            match self.0.compare_exchange_weak(word, packed(rest), Relaxed, Relaxed) {
                Ok(_) => return Some(taken),
                Err(now) => word = now,
            }
        }
    }
}

fn packed(range: Range<u32>) -> u64 {
    u64::from(range.start) << 32 | u64::from(range.end)
}

fn unpacked(word: u64) -> Range<u32> {
    (word >> 32) as u32..word as u32
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    fn claims(ranges: &TaskRanges, thread: usize, count: usize) -> Vec<u32> {
        (0..count).map_while(|_| ranges.claim(thread)).collect()
    }

    #[test]
    fn each_thread_works_through_tasks_that_follow_each_other() {
        let ranges = TaskRanges::new(3);
        ranges.deal(8);
        assert_eq!(claims(&ranges, 0, 3), [0, 1, 2]);
        assert_eq!(claims(&ranges, 2, 2), [6, 7]);
        assert_eq!(claims(&ranges, 1, 9), [3, 4, 5]);
        assert_eq!([0, 1, 2].map(|thread| ranges.claim(thread)), [None; 3]);
    }

    #[test]
    fn who_is_done_takes_half_of_what_another_has_left() {
        let ranges = TaskRanges::new(2);
        ranges.deal(20);
        assert_eq!(claims(&ranges, 1, 10), (10..20).collect::<Vec<_>>());
        assert_eq!(claims(&ranges, 0, 2), [0, 1]);
        assert_eq!(claims(&ranges, 1, 4), [6, 7, 8, 9]);
        assert_eq!(claims(&ranges, 0, 3), [2, 3, 4]);
        assert_eq!((ranges.claim(1), ranges.claim(0), ranges.claim(1)), (Some(5), None, None));
    }

    #[test]
    fn fewer_tasks_than_threads_are_the_callers_first() {
        let ranges = TaskRanges::new(8);
        ranges.deal(2);
        assert_eq!([0, 3].map(|thread| ranges.claim(thread)), [Some(0), Some(1)]);
        assert_eq!(ranges.claim(4), None);
    }

    #[test]
    fn every_task_is_claimed_once_whoever_is_faster() {
        const THREADS: usize = 4;
        const TASKS: u32 = 10_000;
        let ranges = TaskRanges::new(THREADS);
        ranges.deal(TASKS);
        let claimed = Mutex::new(Vec::new());
        std::thread::scope(|scope| {
            for thread in 0..THREADS {
                let (ranges, claimed) = (&ranges, &claimed);
                scope.spawn(move || {
                    let mine: Vec<_> = std::iter::from_fn(|| ranges.claim(thread)).collect();
                    claimed.lock().expect("nobody panics").extend(mine);
                });
            }
        });
        let mut claimed = claimed.into_inner().expect("nobody panics");
        claimed.sort_unstable();
        assert_eq!(claimed, (0..TASKS).collect::<Vec<_>>());
    }
}
