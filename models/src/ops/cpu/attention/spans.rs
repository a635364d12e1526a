#![expect(unsafe_code, reason = "tasks fill disjoint parts of one list")]

//! A long sequence is attended in spans of keys, each with sums of its own, which are added in order: whether one thread
//! goes through all of them or several through one each, a row's bits are the same.

use std::ops::Range;

use super::super::cache_element::CacheElement;
use super::super::instructions::Instructions;
use super::super::launch::{Kernel, Output, launch};
use super::Attention;
use super::row_sums::RowSums;
use crate::kv_cache::KV_TILE;
use crate::ops::Compute;
use crate::ops::attention::KEY_SPAN;

const TILES: usize = KEY_SPAN / KV_TILE;

/// With fewer tasks for each thread, spans are tasks: of four, the last one to be done keeps the others waiting for a quarter
/// of the time at most.
const TASKS_PER_THREAD: usize = 4;

/// Of a chunk with fewer, each thread would get one at most, and the second hand-off takes what that saves.
const FEWEST_SPANS: usize = 3;

/// All spans' sums together, at most: nobody reckons with them beside what a step takes. Those of a token alone are far
/// fewer; a chunk of many tokens behind a very long context has its spans gone through by one thread.
const MOST_BYTES: usize = 32 << 20;

/// The spans of `tiles`. They start at absolute positions, so that a row's do not depend on its chunk.
pub(super) fn spans(tiles: Range<usize>) -> impl Iterator<Item = Range<usize>> {
    let starts = (tiles.start / TILES * TILES..tiles.end).step_by(TILES);
    starts.map(move |start| start.max(tiles.start)..(start + TILES).min(tiles.end))
}

pub(super) fn run<E: CacheElement>(compute: &Compute, attention: Attention<'_, E>) {
    let (num_tasks, num_threads) = (attention.num_tasks(), compute.num_threads());
    let is_scarce = num_threads > 1 && num_tasks < TASKS_PER_THREAD * num_threads;
    let most_spans = if is_scarce { attention.most_spans() } else { 1 };
    let most_rows = attention.plan.chunks().iter().map(|chunk| chunk.num_rows).max().unwrap_or(0);
    let len = attention.sums_len(most_rows);
    let (num_numbers, state_len) = (num_tasks * most_spans * len, attention.state_len(most_rows));
    if most_spans < FEWEST_SPANS || num_numbers * size_of::<f32>() > MOST_BYTES {
        compute.workspace().prepare::<f32>(num_threads.min(num_tasks), 2 * len + state_len);
        launch(compute, num_tasks, &attention);
        return;
    }
    let mut numbers = compute.workspace().unwritten(num_numbers);
    compute.workspace().prepare::<f32>(num_threads, state_len);
    let split = Split { attention: &attention, most_spans, len, numbers: numbers.output() };
    launch(compute, num_tasks * most_spans, &Apart(&split));
    launch(compute, num_tasks, &Together(&split));
}

/// The tasks of an [`Attention`], span by span.
struct Split<'a, 'b, E> {
    attention: &'a Attention<'b, E>,
    /// Of the chunk that has most.
    most_spans: usize,
    /// Numbers in which the sums of a task's span lie, at most.
    len: usize,
    /// `[tasks, most_spans, len]`
    numbers: Output<f32>,
}

/// Each span alone.
struct Apart<'a, 'b, E>(&'a Split<'a, 'b, E>);

/// The spans of each task, in order, when all of them are done.
struct Together<'a, 'b, E>(&'a Split<'a, 'b, E>);

impl<E: CacheElement> Attention<'_, E> {
    fn most_spans(&self) -> usize {
        self.plan.chunks().iter().map(|chunk| spans(self.tiles(*chunk)).count()).max().unwrap_or(0)
    }
}

impl<E: CacheElement> Split<'_, '_, E> {
    /// # Safety
    /// Nobody else may hold the sums of this span.
    #[inline(always)]
    unsafe fn sums(&self, task: usize, span: usize) -> RowSums<'_> {
        // SAFETY: a part for each span of each task, of which the caller vouches for this one.
        let numbers = unsafe { self.numbers.part((task * self.most_spans + span) * self.len, self.len) };
        self.attention.sums(numbers, self.attention.work(task).chunk)
    }
}

impl<E: CacheElement> Kernel for Apart<'_, '_, E> {
    #[inline(always)]
    unsafe fn run<I: Instructions>(&self, task: usize) {
        let Split { attention, most_spans, .. } = *self.0;
        let (task, index) = (task / most_spans, task % most_spans);
        let work = attention.work(task);
        let Some(span) = spans(attention.tiles(work.chunk)).nth(index) else { return };
        let state_len = attention.state_len(work.chunk.num_rows);
        let mut numbers = attention.compute.workspace().unwritten(state_len);
        let numbers = numbers.output();
        // SAFETY: passed on; the numbers live to the end of the task, and the sums belong to this span's task alone.
        unsafe {
            let mut state = attention.start(work, numbers.part(0, state_len), self.0.sums(task, index));
            attention.attend_span::<I>(&mut state, work, span);
        }
    }
}

impl<E: CacheElement> Kernel for Together<'_, '_, E> {
    #[inline(always)]
    unsafe fn run<I: Instructions>(&self, task: usize) {
        let attention = self.0.attention;
        let work = attention.work(task);
        // SAFETY: passed on; the sums of a task's spans belong to it alone, and those before have been set.
        unsafe {
            let mut total = self.0.sums(task, 0);
            for span in 1..spans(attention.tiles(work.chunk)).count() {
                total.add::<I::Vector>(&self.0.sums(task, span));
            }
            attention.finish(work, &total);
        }
    }
}
