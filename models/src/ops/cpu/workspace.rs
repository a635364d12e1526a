#![expect(unsafe_code, reason = "memory is taken without clearing it, and viewed as the elements that it holds")]

//! Memory that a step computes in, kept for the next one: a step like the one before it asks the allocator for nothing.
//! Steps of changing sizes hold about as much as the largest of them: one that is larger than the step before begins
//! with nothing, since pieces that are a little too small would stay beside its own; and what else is new takes the
//! place of what the step before has left.

use std::fmt;
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::buffer::Plain;
use super::launch::Output;

/// More buffers than a step usually has: the list of them does not grow in its midst.
const ROOM: usize = 64;

/// What nobody uses at the moment, of what the step that runs has used and the one before it.
#[derive(Default)]
pub(crate) struct Workspace {
    idle: Mutex<Idle>,
}

#[derive(Default)]
struct Idle {
    step: u64,
    size: StepSize,
    /// The smallest first, so that what is prepared is what tasks take.
    buffers: Vec<IdleBuffer>,
}

/// Of which a step computes so many.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct StepSize {
    pub(crate) tokens: usize,
    /// Of logits.
    pub(crate) rows: usize,
}

struct IdleBuffer {
    lines: Lines,
    /// In which it came back.
    step: u64,
}

/// Elements that go back to their workspace when they are dropped. They begin on a cache line.
pub(crate) struct Buffer<T> {
    lines: Lines,
    len: usize,
    home: Arc<Workspace>,
    element: PhantomData<T>,
}

/// What the tasks of a launch write, all of it, before anybody reads of it. It is not zeroed first. Where the build checks
/// itself, it begins as numbers that are none, so that a gap is seen, and so is a use of what went back to the workspace.
pub(super) struct Unwritten<T>(Buffer<T>);

/// Its capacity counts, not its length.
type Lines = Vec<MaybeUninit<Line>>;

#[derive(Clone, Copy)]
#[repr(align(64))]
struct Line {
    _bytes: [u8; 64],
}

impl Workspace {
    /// `len` elements that are yet to be written.
    pub(super) fn unwritten<T: Plain>(self: &Arc<Self>, len: usize) -> Unwritten<T> {
        const { assert!(align_of::<T>() <= align_of::<Line>()) };
        let mut lines = self.take(lines_of::<T>(len));
        if cfg!(debug_assertions) {
            // SAFETY: within the capacity, which nobody has read yet.
            unsafe { lines.as_mut_ptr().cast::<T>().write_bytes(0xff, len) };
        }
        Unwritten(Buffer { lines, len, home: Arc::clone(self), element: PhantomData })
    }

    /// A copy of `values`.
    pub(crate) fn copy_of<T: Plain>(self: &Arc<Self>, values: impl ExactSizeIterator<Item = T>) -> Buffer<T> {
        let mut copy = self.unwritten::<T>(values.len());
        let output = copy.output();
        let mut written = 0;
        for (index, value) in values.enumerate().take(copy.0.len) {
            // SAFETY: below the length, and nobody else has the output.
            unsafe { output.at(index).write(value) };
            written = index + 1;
        }
        // An iterator may be wrong about its length.
        assert_eq!(written, copy.0.len, "as many values as there were said to be");
        // SAFETY: all of them, just now.
        unsafe { copy.written() }
    }

    /// Has as many buffers of `len` elements at hand, for tasks that take one each, so many at a time.
    pub(super) fn prepare<T: Plain>(&self, count: usize, len: usize) {
        let lines = lines_of::<T>(len);
        let mut idle = self.idle();
        let step = idle.step;
        let mut ready = 0;
        // Kept also if fewer tasks than that come at a time, so that the next step has them too.
        let first = idle.first_of(lines);
        for buffer in idle.buffers[first..].iter_mut().take(count) {
            buffer.step = step;
            ready += 1;
        }
        for _ in ready..count {
            let new = idle.allocate(lines);
            idle.give_back(new);
        }
    }

    /// What the step that ends did not need is given up, and all of it if the step that begins is larger.
    pub(crate) fn begin_step(&self, size: StepSize) {
        let mut idle = self.idle();
        let is_larger = size.tokens > idle.size.tokens || size.rows > idle.size.rows;
        let ended = idle.step;
        idle.buffers.retain(|buffer| buffer.step >= ended && !is_larger);
        let missing = ROOM.saturating_sub(idle.buffers.len());
        idle.buffers.reserve(missing);
        (idle.step, idle.size) = (ended + 1, size);
    }

    /// The smallest that is large enough.
    fn take(&self, lines: usize) -> Lines {
        if lines == 0 {
            return Lines::new();
        }
        let mut idle = self.idle();
        match idle.first_of(lines) {
            index if index < idle.buffers.len() => idle.buffers.remove(index).lines,
            _ => idle.allocate(lines),
        }
    }

    /// Whatever a panic left is as good as before.
    fn idle(&self) -> MutexGuard<'_, Idle> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Idle {
    /// For as much, what the present step has not used yet is given up, the largest first: all of it was too small.
    fn allocate(&mut self, lines: usize) -> Lines {
        let mut given_up = 0;
        while given_up < lines {
            let Some(index) = self.buffers.iter().rposition(|buffer| buffer.step < self.step) else { break };
            given_up += self.buffers.remove(index).lines.capacity();
        }
        Lines::with_capacity(lines)
    }

    fn give_back(&mut self, lines: Lines) {
        if lines.capacity() == 0 {
            return;
        }
        let index = self.first_of(lines.capacity());
        self.buffers.insert(index, IdleBuffer { lines, step: self.step });
    }

    /// Where those begin that are large enough for as much.
    fn first_of(&self, lines: usize) -> usize {
        self.buffers.partition_point(|buffer| buffer.lines.capacity() < lines)
    }
}

impl fmt::Debug for Workspace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Workspace").field("idle", &self.idle().buffers.len()).finish()
    }
}

fn lines_of<T>(len: usize) -> usize {
    len.checked_mul(size_of::<T>()).expect("fewer bytes than there are addresses").div_ceil(size_of::<Line>())
}

impl<T: Plain> Unwritten<T> {
    /// `self` must outlive the launch.
    pub(super) fn output(&mut self) -> Output<T> {
        Output::of_raw(self.0.lines.as_mut_ptr().cast(), self.0.len)
    }

    /// # Safety
    /// Every element has been written.
    pub(super) unsafe fn written(self) -> Buffer<T> {
        self.0
    }
}

impl<T: Plain> Deref for Buffer<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: within the capacity, aligned, and written before there was a buffer.
        unsafe { std::slice::from_raw_parts(self.lines.as_ptr().cast(), self.len) }
    }
}

impl<T: Plain> DerefMut for Buffer<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as above, and the borrow is exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.lines.as_mut_ptr().cast(), self.len) }
    }
}

impl<T> Drop for Buffer<T> {
    fn drop(&mut self) {
        let lines = std::mem::take(&mut self.lines);
        self.home.idle().give_back(lines);
    }
}

impl<T> fmt::Debug for Buffer<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Buffer").field("len", &self.len).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn capacities(workspace: &Workspace) -> Vec<usize> {
        let mut capacities: Vec<_> =
            workspace.idle().buffers.iter().map(|buffer| buffer.lines.capacity() * 16).collect();
        capacities.sort_unstable();
        capacities
    }

    fn taken(workspace: &Arc<Workspace>, len: usize) -> Buffer<f32> {
        workspace.copy_of(vec![1.0; len].into_iter())
    }

    #[test]
    fn what_comes_back_is_used_again_the_smallest_that_fits_first() {
        let workspace = Arc::new(Workspace::default());
        drop([64, 640, 6400].map(|len| taken(&workspace, len)));
        let fits = taken(&workspace, 600);
        assert_eq!(capacities(&workspace), [64, 6400]);
        drop(fits);
        assert_eq!(capacities(&workspace), [64, 640, 6400]);
    }

    fn size(tokens: usize) -> StepSize {
        StepSize { tokens, rows: 1 }
    }

    #[test]
    fn what_a_step_did_not_need_is_given_up_when_the_next_begins() {
        let workspace = Arc::new(Workspace::default());
        workspace.begin_step(size(2));
        drop([64, 640].map(|len| taken(&workspace, len)));
        workspace.begin_step(size(2));
        assert_eq!(capacities(&workspace), [64, 640]);
        drop(taken(&workspace, 32));
        workspace.begin_step(size(2));
        assert_eq!(capacities(&workspace), [64]);
    }

    #[test]
    fn a_step_that_is_larger_than_the_one_before_begins_with_nothing() {
        let workspace = Arc::new(Workspace::default());
        workspace.begin_step(size(2));
        drop([64, 640].map(|len| taken(&workspace, len)));
        workspace.begin_step(StepSize { tokens: 2, rows: 2 });
        assert!(capacities(&workspace).is_empty());
    }

    #[test]
    fn what_is_new_takes_the_place_of_what_the_step_before_left() {
        let workspace = Arc::new(Workspace::default());
        workspace.begin_step(size(1));
        drop([64, 320, 640].map(|len| taken(&workspace, len)));
        workspace.begin_step(size(1));
        let _used = taken(&workspace, 640);
        drop(taken(&workspace, 352));
        assert_eq!(capacities(&workspace), [352], "320 and 64 for 352");
    }

    #[test]
    fn a_workspace_has_at_hand_what_it_prepared() {
        let workspace = Arc::new(Workspace::default());
        drop(taken(&workspace, 640));
        workspace.prepare::<f32>(3, 320);
        assert_eq!(capacities(&workspace), [320, 320, 640]);
    }

    #[test]
    fn what_is_prepared_is_what_tasks_will_take_and_stays_if_they_take_less() {
        let workspace = Arc::new(Workspace::default());
        workspace.begin_step(size(1));
        drop([6400, 320, 640, 320].map(|len| taken(&workspace, len)));
        workspace.begin_step(size(1));
        workspace.prepare::<f32>(2, 320);
        workspace.begin_step(size(1));
        assert_eq!(capacities(&workspace), [320, 320], "the smallest that are large enough");
    }

    #[test]
    fn elements_of_every_size_begin_on_a_cache_line() {
        let workspace = Arc::new(Workspace::default());
        let bytes = workspace.copy_of([7u8; 3].into_iter());
        let numbers = taken(&workspace, 5);
        assert_eq!((&bytes[..], &numbers[..]), (&[7u8; 3][..], &[1.0; 5][..]));
        assert_eq!((bytes.as_ptr().addr() % 64, numbers.as_ptr().addr() % 64), (0, 0));
    }
}
