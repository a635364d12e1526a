#![expect(unsafe_code, reason = "a job borrows from the caller's stack, which threads that outlive it cannot express")]

//! Threads that share the work of one op.
//!
//! An op takes microseconds, so a hand-off must too: threads look for the next job for some tens of microseconds before
//! they sleep, and no thread is waited for that did not come. A thread that another process keeps from running delays
//! only the task it had already claimed.
//!
//! One word of state carries a job from open to finished:
//!
//! ```text
//! [ epoch: 32 | open: 1 | active: 31 ]
//!
//! caller   epoch + 1, open, active 0  ->  works  ->  closes  ->  waits for active = 0
//! worker   sees a new epoch, open     ->  active + 1  ->  works  ->  active - 1
//! ```
//!
//! A worker that comes after the close is turned away by the same word, so the job may live on the caller's stack.

use std::any::Any;
use std::cell::UnsafeCell;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use super::places::{Places, Standing};
use super::system;
use super::task_ranges::TaskRanges;
use crate::Pulse;
use crate::ops::ProcessorSet;

/// A fixed set of threads. Dropping the pool joins them.
pub struct ComputePool {
    shared: Arc<Shared>,
    /// Held by the caller whose job runs; callers on other threads wait their turn.
    turn: Mutex<()>,
    workers: Vec<JoinHandle<()>>,
    processors: Option<ProcessorSet>,
}

/// While it lives, the thread that got it stays on the processors of a pool.
#[derive(Debug)]
#[must_use = "the thread stays where it should until this is dropped"]
pub struct OnProcessors {
    /// Where it goes back to. `None`: it was never bound.
    before: Option<ProcessorSet>,
}

/// Looks at the state word before sleeping, each with a pause: 20 to 50 microseconds on current CPUs.
const SPIN_ROUNDS: usize = 1000;

const OPEN: u64 = 1 << 31;
const ACTIVE: u64 = OPEN - 1;

type Task<'a> = dyn Fn(usize) + Sync + 'a;
/// Alive while its job is open, or a worker active.
type Job = *const Task<'static>;
type Panic = Box<dyn Any + Send>;

struct Shared {
    state: AtomicU64,
    job: UnsafeCell<Job>,
    ranges: TaskRanges,
    places: Places,
    /// A task panicked: those that are left are skipped.
    is_broken: AtomicBool,
    pulse: Pulse,
    panic: Mutex<Option<Panic>>,
    stop: AtomicBool,
    /// Workers that run.
    started: AtomicUsize,
    /// Workers that sleep, or are about to.
    sleepers: AtomicUsize,
    caller_sleeps: AtomicBool,
    lock: Mutex<()>,
    job_opened: Condvar,
    /// Or, before the first job, a worker runs.
    job_finished: Condvar,
}

// SAFETY: `job` is written only by the caller that holds `turn`, while the state word is closed with no active worker, and
// read only by workers counted as active. The task behind its pointer is `Sync`. Everything else is atomic or locked.
unsafe impl Sync for Shared {}
// SAFETY: as above; the pointer is only followed while the caller that owns the task waits.
unsafe impl Send for Shared {}

impl ComputePool {
    /// `num_threads` counts the thread that calls [`ComputePool::run`]; 0 is taken as 1.
    ///
    /// A thread that the system refuses to start is done without: the rest do the work.
    pub fn new(num_threads: usize) -> Self {
        Self::on(None, num_threads)
    }

    /// The same, whose own threads stay on `processors`, and those that call it while they hold what
    /// [`ComputePool::enter`] gives.
    pub(crate) fn on(processors: Option<ProcessorSet>, num_threads: usize) -> Self {
        let shared = Arc::new(Shared::new(processors.as_ref(), num_threads.max(1)));
        let workers = (1..num_threads)
            .map_while(|index| {
                let (shared, processors) = (Arc::clone(&shared), processors.clone());
                let work = move || {
                    shared.note_start();
                    let _here = OnProcessors::bind(processors.as_ref());
                    shared.work_until_stopped(index);
                };
                std::thread::Builder::new().name(format!("compute-{index}")).spawn(work).ok()
            })
            .collect::<Vec<_>>();
        shared.wait_for_starts(workers.len());
        Self { shared, turn: Mutex::new(()), workers, processors }
    }

    /// Brings the calling thread to the pool's processors, if it has any of its own.
    pub fn enter(&self) -> OnProcessors {
        OnProcessors::bind(self.processors.as_ref())
    }

    /// Beats with every task.
    pub fn pulse(&self) -> &Pulse {
        &self.shared.pulse
    }

    pub fn num_threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Calls `task` once for each of `0..num_tasks`, on any thread and in any order, and returns when all are done.
    /// Must not be called from inside a task.
    ///
    /// # Panics
    /// With the payload of the first task that panicked; tasks not yet claimed are then skipped. The pool stays usable.
    pub fn run(&self, num_tasks: usize, task: &Task<'_>) {
        if num_tasks <= 1 || self.workers.is_empty() {
            for index in 0..num_tasks {
                task(index);
                self.shared.pulse.beat();
            }
            return;
        }
        let turn = lock(&self.turn);
        let panic = self.shared.execute(num_tasks, task);
        drop(turn);
        if let Some(panic) = panic {
            resume_unwind(panic);
        }
    }
}

impl OnProcessors {
    /// What the system refuses, after it was asked whether it can, is done without.
    pub(crate) fn bind(to: Option<&ProcessorSet>) -> Self {
        let bind = |to| -> std::io::Result<_> {
            let before = system::allowed_processors()?;
            system::bind_this_thread(to)?;
            Ok(before)
        };
        let before = to
            .and_then(|to| bind(to).inspect_err(|error| tracing::warn!(%error, "a thread runs on any processor")).ok());
        Self { before }
    }
}

impl Drop for OnProcessors {
    fn drop(&mut self) {
        if let Some(before) = &self.before {
            // Were it refused, the thread would stay where it may run, too.
            let _ = system::bind_this_thread(before);
        }
    }
}

impl Drop for ComputePool {
    fn drop(&mut self) {
        self.shared.stop.store(true, SeqCst);
        drop(lock(&self.shared.lock));
        self.shared.job_opened.notify_all();
        for worker in self.workers.drain(..) {
            // A worker cannot panic: tasks run under catch_unwind. Were it to, there is nothing to add here.
            let _ = worker.join();
        }
    }
}

impl fmt::Debug for ComputePool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ComputePool").field("num_threads", &self.num_threads()).finish()
    }
}

impl Shared {
    fn new(processors: Option<&ProcessorSet>, num_threads: usize) -> Self {
        Self {
            state: AtomicU64::new(0),
            job: UnsafeCell::new(&|_| ()),
            ranges: TaskRanges::new(num_threads),
            places: Places::new(processors, num_threads),
            is_broken: AtomicBool::new(false),
            pulse: Pulse::default(),
            panic: Mutex::new(None),
            stop: AtomicBool::new(false),
            started: AtomicUsize::new(0),
            sleepers: AtomicUsize::new(0),
            caller_sleeps: AtomicBool::new(false),
            lock: Mutex::new(()),
            job_opened: Condvar::new(),
            job_finished: Condvar::new(),
        }
    }

    fn note_start(&self) {
        let _guard = lock(&self.lock);
        self.started.fetch_add(1, SeqCst);
        self.job_finished.notify_one();
    }

    /// A thread's start asks the allocator and the system for this and that, which no job shall wait for.
    fn wait_for_starts(&self, num_workers: usize) {
        let mut guard = lock(&self.lock);
        while self.started.load(SeqCst) < num_workers {
            guard = wait(&self.job_finished, guard);
        }
    }

    /// The caller's side of one job. The caller holds `turn`.
    fn execute(&self, num_tasks: usize, task: &Task<'_>) -> Option<Panic> {
        // SAFETY: only the lifetime changes. The pointer is followed by this thread and by active workers, and this
        // function does not return before the state is closed and no worker is active.
        let job = unsafe { std::mem::transmute::<*const Task<'_>, Job>(task) };
        // SAFETY: the state is closed and no worker is active (the last job ended so), hence nobody reads `job`.
        unsafe { *self.job.get() = job };
        self.ranges.deal(u32::try_from(num_tasks).expect("an op has fewer tasks"));
        let epoch = (self.state.load(SeqCst) >> 32).wrapping_add(1) & u64::from(u32::MAX);
        self.places.open(epoch as u32);
        self.state.store(epoch << 32 | OPEN, SeqCst);
        // Either a worker counted itself before this load and is woken, or it sees the open state before it sleeps.
        if self.sleepers.load(SeqCst) > 0 {
            drop(lock(&self.lock));
            self.job_opened.notify_all();
        }
        self.claim_tasks(job, 0);
        self.state.fetch_and(!OPEN, SeqCst);
        self.wait_for_workers();
        let panic = lock(&self.panic).take();
        if panic.is_some() {
            self.is_broken.store(false, SeqCst);
        }
        panic
    }

    fn wait_for_workers(&self) {
        let finished = || self.state.load(SeqCst) & ACTIVE == 0;
        if spin_until(finished) {
            return;
        }
        self.caller_sleeps.store(true, SeqCst);
        let mut guard = lock(&self.lock);
        while !finished() {
            guard = wait(&self.job_finished, guard);
        }
        self.caller_sleeps.store(false, SeqCst);
    }

    fn work_until_stopped(&self, thread: usize) {
        let (mut last_epoch, mut standing) = (0, Standing::of(thread));
        while let Some(epoch) = self.wait_for_job(last_epoch) {
            last_epoch = epoch;
            // Before it joins: who goes elsewhere may have to wait there, and nobody should have to wait for him.
            self.places.arrive(&mut standing, epoch as u32);
            if self.join_job(epoch) {
                // SAFETY: this worker is counted as active, so the caller has published the job and still waits.
                let job = unsafe { *self.job.get() };
                self.claim_tasks(job, thread);
                self.leave_job();
            }
        }
    }

    /// The epoch of an open job other than the last one, or `None` when the pool stops.
    fn wait_for_job(&self, last_epoch: u64) -> Option<u64> {
        let ready = || self.stop.load(SeqCst) || is_new_job(self.state.load(SeqCst), last_epoch);
        if !spin_until(ready) {
            let mut guard = lock(&self.lock);
            self.sleepers.fetch_add(1, SeqCst);
            while !ready() {
                guard = wait(&self.job_opened, guard);
            }
            self.sleepers.fetch_sub(1, SeqCst);
        }
        let state = self.state.load(SeqCst);
        (!self.stop.load(SeqCst)).then_some(state >> 32)
    }

    fn join_job(&self, epoch: u64) -> bool {
        let joined = |state: u64| (state & OPEN != 0 && state >> 32 == epoch).then_some(state + 1);
        self.state.fetch_update(SeqCst, SeqCst, joined).is_ok()
    }

    fn leave_job(&self) {
        let before = self.state.fetch_sub(1, SeqCst);
        if before & ACTIVE == 1 && self.caller_sleeps.load(SeqCst) {
            drop(lock(&self.lock));
            self.job_finished.notify_one();
        }
    }

    fn claim_tasks(&self, job: Job, thread: usize) {
        // SAFETY: the caller of this function is the job's owner or an active worker, so the task is alive.
        let task = unsafe { &*job };
        while let Some(index) = self.ranges.claim(thread) {
            if self.is_broken.load(SeqCst) {
                continue;
            }
            if let Err(panic) = catch_unwind(AssertUnwindSafe(|| task(index as usize))) {
                self.is_broken.store(true, SeqCst);
                lock(&self.panic).get_or_insert(panic);
            }
            self.pulse.beat();
        }
    }
}

fn is_new_job(state: u64, last_epoch: u64) -> bool {
    state & OPEN != 0 && state >> 32 != last_epoch
}

fn spin_until(condition: impl Fn() -> bool) -> bool {
    for _ in 0..SPIN_ROUNDS {
        if condition() {
            return true;
        }
        std::hint::spin_loop();
    }
    condition()
}

/// No data is guarded that a panic could leave half-changed, so a poisoned lock is as good as another.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn wait<'a>(condvar: &Condvar, guard: MutexGuard<'a, ()>) -> MutexGuard<'a, ()> {
    condvar.wait(guard).unwrap_or_else(PoisonError::into_inner)
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    /// Where each of the pool's threads may run. The tasks wait for each other, so that each has a thread of its own.
    fn places(pool: &ComputePool) -> Vec<ProcessorSet> {
        let places = Mutex::new(Vec::new());
        pool.run(pool.num_threads(), &|_| {
            lock(&places).push(system::allowed_processors().expect("the system tells"));
            while lock(&places).len() < pool.num_threads() {
                std::thread::yield_now();
            }
        });
        places.into_inner().expect("no task panics")
    }

    #[test]
    fn threads_of_a_pool_stay_on_its_processors_and_the_caller_while_it_holds_a_ticket() {
        let all = system::allowed_processors().unwrap();
        let last = ProcessorSet::of(all.iter().last()).unwrap();
        let pool = ComputePool::on(Some(last.clone()), 3);
        let ticket = pool.enter();
        assert_eq!(places(&pool), vec![last; 3]);
        drop(ticket);
        assert_eq!(system::allowed_processors().unwrap(), all);
    }

    #[test]
    fn threads_of_a_pool_without_processors_run_where_the_system_puts_them() {
        let all = system::allowed_processors().unwrap();
        let pool = ComputePool::new(2);
        let _ticket = pool.enter();
        assert_eq!(places(&pool), vec![all; 2]);
    }
}
