//! On which processors the threads of a pool stand. Whoever waits for a thread that another process has pushed aside sleeps, and
//! the system brings that thread to the processor that is free then, where it ends its task soon. But there it stays, beside the
//! thread that has waited, for as long as the system sees no reason to move either. So a thread that finds another one of the
//! same job where it stands goes to a processor where none is.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use super::system;
use crate::ops::ProcessorSet;

/// For each processor, who was there last.
#[derive(Debug)]
pub(super) struct Places {
    /// Where the threads may be, as many as they are.
    processors: Option<ProcessorSet>,
    last: Box<[Place]>,
}

/// The job in the upper half, the thread in the lower. Each has the cache lines that a processor fetches at a time to itself.
///
/// The order of these words and of others does not matter: they are hints.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Place(AtomicU64);

/// One of a pool's threads.
#[derive(Debug)]
pub(super) struct Standing {
    thread: u32,
    /// The job at which it last went elsewhere.
    moved_at: u32,
}

/// Jobs before a thread goes elsewhere once more: some milliseconds. Going takes as long as a small job.
const JOBS_OF_REST: u32 = 32;

impl Standing {
    pub(super) fn of(thread: usize) -> Self {
        Self { thread: thread as u32, moved_at: 0 }
    }
}

impl Places {
    /// Those of a pool of `num_threads` on `processors`, or on all that this process may use. There are none unless these are as
    /// many: where there are more, the system has some to choose from, and knows better than we which are idle.
    pub(super) fn new(processors: Option<&ProcessorSet>, num_threads: usize) -> Self {
        let processors = processors.cloned().or_else(|| system::allowed_processors().ok());
        let processors = processors.filter(|processors| processors.iter().count() == num_threads);
        let count = processors.as_ref().and_then(|all| all.iter().max()).map_or(0, |highest| highest + 1);
        Self { processors, last: (0..count).map(|_| Place::default()).collect() }
    }

    /// Thread 0 opens job `epoch`.
    pub(super) fn open(&self, epoch: u32) {
        if let Some(here) = self.here() {
            self.note(here, &Standing::of(0), epoch);
        }
    }

    /// The thread is about to work at job `epoch`. Where another one stands that does, it goes elsewhere first, if it may and
    /// has not just done so. Where it stands then, as far as that is known.
    pub(super) fn arrive(&self, standing: &mut Standing, epoch: u32) -> Option<usize> {
        let here = self.here()?;
        let is_free = self.thread_at(here, epoch).is_none_or(|other| other == standing.thread);
        if is_free || epoch.wrapping_sub(standing.moved_at) < JOBS_OF_REST {
            return Some(self.note(here, standing, epoch));
        }
        standing.moved_at = epoch;
        let is_taken = |processor| self.thread_at(processor, epoch).is_some();
        let there = self.processors.as_ref().and_then(|all| system::leave_processors(all, is_taken).ok().flatten());
        // Where all others are taken, or the system refuses, two work at one place.
        Some(self.note(there.filter(|there| *there < self.last.len()).unwrap_or(here), standing, epoch))
    }

    fn here(&self) -> Option<usize> {
        // Asked only where there are places.
        let here = self.processors.as_ref().and_then(|_| system::current_processor());
        here.filter(|here| *here < self.last.len())
    }

    fn note(&self, processor: usize, standing: &Standing, epoch: u32) -> usize {
        self.last[processor].0.store(u64::from(epoch) << 32 | u64::from(standing.thread), Relaxed);
        processor
    }

    /// Who was last at `processor`, if that was for job `epoch`.
    fn thread_at(&self, processor: usize, epoch: u32) -> Option<u32> {
        let word = self.last.get(processor)?.0.load(Relaxed);
        ((word >> 32) as u32 == epoch).then_some(word as u32)
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::super::pool::OnProcessors;
    use super::*;
    use crate::ops::ProcessorSet;

    fn set(processors: &[usize]) -> ProcessorSet {
        ProcessorSet::of(processors.iter().copied()).expect("some are named")
    }

    /// Two processors that this process may use, or `None` where there is one.
    fn two() -> Option<[usize; 2]> {
        let allowed = system::allowed_processors().expect("Linux tells");
        allowed.iter().collect::<Vec<_>>().first_chunk().copied()
    }

    #[test]
    fn a_thread_leaves_the_processor_of_another_that_works_at_the_same_job() {
        let Some([first, second]) = two() else { return };
        let both = set(&[first, second]);
        let places = Places::new(Some(&both), 2);
        let (mut caller, mut worker) = (Standing::of(0), Standing::of(1));
        let _moves = OnProcessors::bind(Some(&both));
        system::leave_processors(&both, |processor| processor == second).unwrap();
        {
            let _stays = OnProcessors::bind(Some(&set(&[first])));
            assert_eq!(places.arrive(&mut caller, 40), Some(first));
            assert_eq!(places.arrive(&mut worker, 40), Some(first), "whoever bound it since wants it here");
            assert_eq!(places.arrive(&mut caller, 100), Some(first));
        }
        assert_eq!(places.arrive(&mut worker, 100), Some(second));
        assert_eq!(system::allowed_processors().unwrap(), both, "and may go back");
    }

    #[test]
    fn who_has_just_gone_elsewhere_stays_and_so_does_who_is_there_for_another_job() {
        let Some([first, second]) = two() else { return };
        let places = Places::new(Some(&set(&[first, second])), 2);
        let _here = OnProcessors::bind(Some(&set(&[first])));
        let (mut caller, mut worker) = (Standing::of(0), Standing::of(1));
        places.note(first, &caller, 40);
        places.note(second, &worker, 40);
        assert_eq!(places.arrive(&mut worker, 41), Some(first));
        assert_eq!(worker.moved_at, 0, "nobody is at that job there");
        worker.moved_at = 42;
        places.arrive(&mut caller, 42 + JOBS_OF_REST - 1);
        places.arrive(&mut worker, 42 + JOBS_OF_REST - 1);
        assert_eq!(worker.moved_at, 42);
        places.arrive(&mut caller, 42 + JOBS_OF_REST);
        places.arrive(&mut worker, 42 + JOBS_OF_REST);
        assert_eq!(worker.moved_at, 42 + JOBS_OF_REST);
    }

    #[test]
    fn more_or_fewer_threads_than_processors_have_no_places() {
        let Some([first, second]) = two() else { return };
        let _here = OnProcessors::bind(Some(&set(&[first, second])));
        let where_it_is = |processors: Option<&ProcessorSet>, threads| {
            Places::new(processors, threads).arrive(&mut Standing::of(0), 1)
        };
        assert_eq!([1, 3].map(|threads| where_it_is(None, threads)), [None; 2]);
        assert_eq!(where_it_is(Some(&set(&[first])), 2), None);
        assert!(where_it_is(None, 2).is_some());
    }
}
