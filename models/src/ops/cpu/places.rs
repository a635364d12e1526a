//! On which processors the threads of a pool stand. Whoever waits for a thread that another process has pushed aside sleeps, and
//! the system brings that thread to the processor that is free then, where it ends its task soon. But there it stays, beside the
//! thread that has waited, for as long as the system sees no reason to move either. So a thread that finds another one of the
//! same job where it stands goes to a processor where none is.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use super::system;

/// For each processor, who was there last.
#[derive(Debug)]
pub(super) struct Places(Box<[Place]>);

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
    /// Those of a pool of `num_threads`, if there are as many processors; else, and where the system does not tell, none.
    pub(super) fn new(num_threads: usize) -> Self {
        let allowed = system::allowed_processors().ok().filter(|allowed| allowed.iter().count() >= num_threads);
        let count = allowed.and_then(|allowed| allowed.iter().max()).map_or(0, |highest| highest + 1);
        Self((0..count).map(|_| Place::default()).collect())
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
        let there = system::leave_processors(|processor| self.thread_at(processor, epoch).is_some());
        // Where all others are taken, or the system refuses, two work at one place.
        Some(self.note(there.ok().flatten().filter(|there| *there < self.0.len()).unwrap_or(here), standing, epoch))
    }

    fn here(&self) -> Option<usize> {
        // Asked only where there are places.
        let here = if self.0.is_empty() { None } else { system::current_processor() };
        here.filter(|here| *here < self.0.len())
    }

    fn note(&self, processor: usize, standing: &Standing, epoch: u32) -> usize {
        self.0[processor].0.store(u64::from(epoch) << 32 | u64::from(standing.thread), Relaxed);
        processor
    }

    /// Who was last at `processor`, if that was for job `epoch`.
    fn thread_at(&self, processor: usize, epoch: u32) -> Option<u32> {
        let word = self.0.get(processor)?.0.load(Relaxed);
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
        let places = Places::new(2);
        let _stays = OnProcessors::bind(Some(&set(&[first])));
        let (mut caller, mut worker) = (Standing::of(0), Standing::of(1));
        assert_eq!(places.arrive(&mut caller, 40), Some(first));
        assert_eq!(places.arrive(&mut worker, 40), Some(first), "it may be nowhere else");
        assert_eq!(places.arrive(&mut caller, 100), Some(first));
        let _moves = OnProcessors::bind(Some(&set(&[first, second])));
        system::leave_processors(|processor| processor == second).unwrap();
        assert_eq!(places.arrive(&mut worker, 100), Some(second));
        assert_eq!(system::allowed_processors().unwrap(), set(&[first, second]), "and may go back");
    }

    #[test]
    fn who_has_just_gone_elsewhere_stays_and_so_does_who_is_there_for_another_job() {
        let Some([first, second]) = two() else { return };
        let places = Places::new(2);
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
    fn more_threads_than_processors_have_no_places() {
        let places = Places::new(1 + system::allowed_processors().unwrap().iter().count());
        assert_eq!(places.arrive(&mut Standing::of(0), 1), None);
    }
}
