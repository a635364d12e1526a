#![expect(unsafe_code, reason = "tasks fill disjoint parts of one list")]

//! A long sequence is attended in spans of keys, each with sums of its own, which are added in order: whether one thread
//! goes through all of them or several through one each, a row's bits are the same.

use std::ops::Range;

use super::super::instructions::Instructions;
use super::super::launch::{Kernel, Output, Start, launch};
use super::Attention;
use super::heads::HeadSums;
use super::paired::Cached;
use super::visit::TILES_OF_VISIT;
use crate::kv_cache::KV_TILE;
use crate::ops::Compute;
use crate::ops::attention::{KEY_SPAN, RowChunk};

const TILES: usize = KEY_SPAN / KV_TILE;

/// A visit reaches back into no other span.
const _: () = assert!(TILES.is_multiple_of(TILES_OF_VISIT));

/// With fewer tasks for each thread, spans are tasks: of four, the last one to be done keeps the others waiting for a quarter
/// of the time at most.
const TASKS_PER_THREAD: usize = 4;

/// Of a chunk with fewer, each thread would get one at most, and the second hand-off takes what that saves.
const FEWEST_SPANS: usize = 3;

/// Every chunk has room for as many spans as the longest. Where most of it would stay empty, the longest goes through its own.
const MOST_SLOTS_OF_A_SPAN: usize = 4;

/// All spans' sums together, at most: nobody reckons with them beside what a step takes. Chunks of many tokens behind a very
/// long context have their spans gone through by one thread.
const MOST_BYTES: usize = 32 << 20;

/// The spans of `tiles`. They start at absolute positions, so that a row's do not depend on its chunk.
pub(super) fn spans(tiles: Range<usize>) -> impl Iterator<Item = Range<usize>> {
    let starts = (tiles.start / TILES * TILES..tiles.end).step_by(TILES);
    starts.map(move |start| start.max(tiles.start)..(start + TILES).min(tiles.end))
}

pub(super) fn run<E: Cached>(compute: &Compute, mut attention: Attention<'_, E>) {
    let (num_heads, num_threads) = (attention.layer.num_kv_heads(), compute.num_threads());
    let chunks = attention.plan.chunks();
    let most_rows = chunks.iter().map(|chunk| chunk.num_rows).max().unwrap_or(0);
    let len = attention.sums_len(most_rows);
    let num_tasks = attention.num_tasks();
    let wanted = if num_threads > 1 { TASKS_PER_THREAD * num_threads } else { 1 };
    let tiles = |chunk: &RowChunk| attention.tiles(*chunk).len();
    let alone = || chunks.iter().filter(|chunk| chunk.num_rows == 1);
    let (tiles_alone, longest) = (alone().map(tiles).sum::<usize>(), alone().map(tiles).max().unwrap_or(0));
    // As many tasks of all heads of a token as there would be, were they all as long as the longest.
    let fewest = tiles_alone / longest.max(1) + (chunks.len() - alone().count()) * num_heads;
    let most_spans = if fewest < wanted { attention.most_spans() } else { 1 };
    // Were they all full.
    let num_spans = chunks.iter().map(tiles).sum::<usize>() / TILES;
    let can_split = most_spans >= FEWEST_SPANS
        && chunks.len() * most_spans <= MOST_SLOTS_OF_A_SPAN * num_spans
        && num_tasks * most_spans * len * size_of::<f32>() <= MOST_BYTES;
    let is_split = can_split && (num_spans >= wanted || num_tasks < wanted);
    // As many heads together as leave enough tasks.
    let even = if is_split { tiles_alone / TILES * num_heads } else { tiles_alone * num_heads / longest.max(1) };
    attention.step.heads_at_once = (even / wanted).clamp(1, num_heads);
    let heads_of_a_task = if longest > 0 { attention.heads_at_once } else { 1 };
    if !is_split {
        let num_sums = chunks.iter().map(|chunk| attention.num_sums(*chunk)).max().unwrap_or(0);
        let len_of = |num_tokens| attention.numbers_len(num_tokens, num_sums);
        let numbers = len_of(most_rows).max(heads_of_a_task * len_of(1));
        compute.workspace().prepare::<f32>(num_threads.min(num_tasks), numbers);
        E::Start::launch(compute, num_tasks, &HeadByHead(&attention));
        return;
    }
    let mut numbers = compute.workspace().unwritten(num_tasks * most_spans * len);
    let states = attention.state_len(most_rows).max(heads_of_a_task * attention.state_len(1));
    compute.workspace().prepare::<f32>(num_threads, states);
    let split = Split { attention: &attention, most_spans, len, numbers: numbers.output() };
    E::Start::launch(compute, num_tasks * most_spans, &Apart(&split));
    launch(compute, num_tasks, &Together(&split));
}

/// The tasks of an [`Attention`], those of a head one after the other: while the chunks of a prompt are attended, its keys
/// and values stay in the second-level cache.
struct HeadByHead<'a, 'b, E>(&'a Attention<'b, E>);

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

impl<E: Cached> Attention<'_, E> {
    fn most_spans(&self) -> usize {
        self.plan.chunks().iter().map(|chunk| spans(self.tiles(*chunk)).count()).max().unwrap_or(0)
    }
}

impl<E: Cached> Split<'_, '_, E> {
    /// Of `chunk`'s K/V heads from that of `task` on.
    fn sums(&self, chunk: RowChunk, task: usize, span: usize) -> HeadSums<'_> {
        let first = (task * self.most_spans + span) * self.len;
        HeadSums::of(&self.numbers, first, self.len, self.attention.rows_of(chunk)).apart(self.most_spans * self.len)
    }
}

impl<E: Cached> Kernel for HeadByHead<'_, '_, E> {
    #[inline(always)]
    unsafe fn run<I: Instructions>(&self, task: usize) {
        let (num_chunks, num_heads) = (self.0.plan.chunks().len(), self.0.layer.num_kv_heads());
        let chunk_by_chunk = |task: usize| task % num_chunks * num_heads + task / num_chunks;
        // That of this thread, while all threads go at the same pace.
        let next = task + self.0.compute.num_threads();
        let next = (next < self.0.num_tasks()).then(|| chunk_by_chunk(next));
        // SAFETY: passed on.
        unsafe { self.0.run::<I>(chunk_by_chunk(task), next) }
    }
}

impl<E: Cached> Kernel for Apart<'_, '_, E> {
    #[inline(always)]
    unsafe fn run<I: Instructions>(&self, task: usize) {
        let Split { attention, most_spans, .. } = *self.0;
        let (task, index) = (task / most_spans, task % most_spans);
        let Some(work) = attention.work(task) else { return };
        let Some(span) = spans(attention.tiles(work.chunk)).nth(index) else { return };
        let states_len = work.kv_heads.len() * attention.state_len(work.chunk.num_rows);
        let mut numbers = attention.compute.workspace().unwritten(states_len);
        let numbers = numbers.output();
        // SAFETY: passed on; the numbers live to the end of the task, and the sums belong to this span's task alone.
        unsafe {
            let sums = self.0.sums(work.chunk, task, index);
            let mut states = attention.start::<I::Vector>(&work, numbers.part(0, states_len), sums);
            attention.attend_span::<I>(&mut states, &work, span);
        }
    }
}

impl<E: Cached> Kernel for Together<'_, '_, E> {
    #[inline(always)]
    unsafe fn run<I: Instructions>(&self, task: usize) {
        let attention = self.0.attention;
        let num_heads = attention.layer.num_kv_heads();
        let chunk = attention.plan.chunks()[task / num_heads];
        let sums = |span| self.0.sums(chunk, task, span);
        // SAFETY: passed on; the sums of a head's spans belong to this task alone, and those before have been set.
        unsafe {
            let mut total = sums(0).head(0);
            for span in 1..spans(attention.tiles(chunk)).count() {
                total.add::<I::Vector>(&sums(span).head(0));
            }
            attention.finish::<I::Vector>(chunk, task % num_heads, &total);
        }
    }
}
