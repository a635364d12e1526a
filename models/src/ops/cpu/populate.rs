//! Memory that was asked for, taken before it is used, so that what a process holds is known soon after its start and
//! nobody's token waits for the system to clear a page. Beside models that compute without end it is taken at 0.2 GB/s,
//! and whoever needs a page before that has it cleared for himself.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use candle_core::{CpuStorage, Storage, Tensor};

use super::pool::OnProcessors;
use super::system::Memory;
use crate::Pulse;
use crate::ops::ProcessorSet;

/// What one call asks for, as much as a huge page: the system holds the process's memory map meanwhile, and whoever
/// wants to change that waits. So this thread must not be one of low priority, which is stopped in the middle of it for
/// long.
const CHUNK_BYTES: usize = 2 << 20;

/// Behind a piece, while a model computes. A piece takes a third or half of a millisecond, so this leaves the model all but a
/// twentieth of one processor; without a pause it is a third of two, where two threads compute.
const PAUSE: Duration = Duration::from_millis(10);

/// A thread that takes memory. Dropped, it is told to stop.
#[derive(Debug)]
pub(crate) struct Populating {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<io::Result<usize>>>,
}

/// In a thread of its own, on `processors` where some are given, without changing what the tensors hold; they may be
/// read and written meanwhile. Passes over what lies on a device, and ends early, with the reason, where the system
/// knows no such request (Linux before 5.14, others). While `pulse` beats, it is slow.
pub(crate) fn populate(tensors: Vec<Tensor>, processors: Option<ProcessorSet>, pulse: Pulse) -> io::Result<Populating> {
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = Arc::clone(&stop);
    let work = move || {
        let _here = OnProcessors::bind(processors.as_ref());
        take_all(&tensors, &stopped, Courtesy::to(pulse))
            .inspect_err(|error| tracing::debug!(%error, "the KV cache takes its memory when it is used"))
    };
    let thread = std::thread::Builder::new().name("populate".into()).spawn(work)?;
    Ok(Populating { stop, thread: Some(thread) })
}

/// How many pieces there were. The beginnings of all tensors first: the first blocks of a cache, which the first
/// sequences get, have a part in each.
fn take_all(tensors: &[Tensor], stopped: &AtomicBool, mut courtesy: Courtesy) -> io::Result<usize> {
    let mut left: Vec<_> = tensors.iter().filter_map(memory_of).map(|memory| memory.pieces(CHUNK_BYTES)).collect();
    let mut round = Vec::with_capacity(left.len());
    let mut taken = 0;
    loop {
        round.extend(left.iter_mut().filter_map(Iterator::next));
        if round.is_empty() {
            return Ok(taken);
        }
        for piece in round.drain(..) {
            if stopped.load(Ordering::Relaxed) {
                return Ok(taken);
            }
            piece.populate()?;
            taken += 1;
            courtesy.pause();
        }
    }
}

/// Tells whether models compute.
struct Courtesy {
    pulse: Pulse,
    seen: u64,
}

impl Courtesy {
    fn to(pulse: Pulse) -> Self {
        Self { seen: pulse.count(), pulse }
    }

    /// If they did since the last time, the pause after it included: a task may take longer than a piece. Whoever ends
    /// this thread wakes it.
    fn pause(&mut self) {
        if self.is_due() {
            std::thread::park_timeout(PAUSE);
        }
    }

    fn is_due(&mut self) -> bool {
        let before = std::mem::replace(&mut self.seen, self.pulse.count());
        before != self.seen
    }
}

impl Populating {
    /// Until all is taken, or cannot be.
    #[cfg(test)]
    pub(crate) fn wait(mut self) -> io::Result<()> {
        self.thread.take().map_or(Ok(()), |thread| thread.join().expect("taking memory does not panic").map(drop))
    }
}

impl Drop for Populating {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // What it holds is free once it is gone.
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            let _ = thread.join();
        }
    }
}

/// The tensor keeps it where it is.
pub(crate) fn memory_of(tensor: &Tensor) -> Option<Memory> {
    let (storage, _) = tensor.storage_and_layout();
    match &*storage {
        Storage::Cpu(CpuStorage::F32(values)) => Some(Memory::of(values.as_slice())),
        Storage::Cpu(CpuStorage::BF16(values)) => Some(Memory::of(values.as_slice())),
        Storage::Cpu(CpuStorage::U8(values)) => Some(Memory::of(values.as_slice())),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::*;

    #[test]
    fn a_pause_is_due_where_a_model_computed_since_the_last_look_and_nowhere_else() {
        let pulse = Pulse::default();
        pulse.beat();
        let mut courtesy = Courtesy::to(pulse.clone());
        let due = [0, 3, 0, 1, 1, 0].map(|beats| {
            (0..beats).for_each(|_| pulse.beat());
            courtesy.is_due()
        });
        assert_eq!(due, [false, true, false, true, true, false]);
    }

    #[test]
    fn who_is_told_to_stop_takes_nothing_more() {
        let tensor = Tensor::zeros(4 * CHUNK_BYTES + 4096, DType::U8, &Device::Cpu).unwrap();
        let taken = |stopped| {
            take_all(std::slice::from_ref(&tensor), &AtomicBool::new(stopped), Courtesy::to(Pulse::default()))
        };
        // Where the system knows no such request there is nothing to stop.
        if let Ok(pieces) = taken(false) {
            assert!(pieces >= 4, "{pieces}");
            assert_eq!(taken(true).unwrap(), 0);
        }
    }
}
