//! Memory that was asked for, taken before it is used, so that what a process holds is known soon after its start and
//! nobody's token waits for the system to clear a page.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use candle_core::{CpuStorage, Storage, Tensor};

use super::pool::OnProcessors;
use super::system::{Memory, give_way};
use crate::ops::ProcessorSet;

/// What one call asks for, a huge page: the system holds the process's memory map meanwhile, and whoever wants to change that waits for
/// a thread that gives way to all others.
const CHUNK_BYTES: usize = 2 << 20;

/// A thread that takes memory. Dropped, it is told to stop.
#[derive(Debug)]
pub(crate) struct Populating {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<io::Result<()>>>,
}

/// In a thread of its own, on `processors` where some are given, without changing what the tensors hold; they may be read and written meanwhile. Passes over what
/// lies on a device, and ends early, with the reason, where the system knows no such request (Linux before 5.14, others).
pub(crate) fn populate(tensors: Vec<Tensor>, processors: Option<ProcessorSet>) -> io::Result<Populating> {
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = Arc::clone(&stop);
    let work = move || {
        let _here = OnProcessors::bind(processors.as_ref());
        // Beside the first answers it would take a third of two processors for seconds. Where it cannot, it takes its share.
        let _ = give_way();
        take_all(&tensors, &stopped)
    };
    let thread = std::thread::Builder::new().name("populate".into()).spawn(work)?;
    Ok(Populating { stop, thread: Some(thread) })
}

/// The beginnings of all tensors first: the first blocks of a cache, which the first sequences get, have a part in each.
fn take_all(tensors: &[Tensor], stopped: &AtomicBool) -> io::Result<()> {
    let mut left: Vec<_> = tensors.iter().filter_map(memory_of).map(|memory| memory.pieces(CHUNK_BYTES)).collect();
    let mut round = Vec::with_capacity(left.len());
    loop {
        round.extend(left.iter_mut().filter_map(Iterator::next));
        if round.is_empty() {
            return Ok(());
        }
        for piece in round.drain(..) {
            if stopped.load(Ordering::Relaxed) {
                return Ok(());
            }
            piece.populate()?;
        }
    }
}

impl Populating {
    /// Until all is taken, or cannot be.
    #[cfg(test)]
    pub(crate) fn wait(mut self) -> io::Result<()> {
        self.thread.take().map_or(Ok(()), |thread| thread.join().expect("taking memory does not panic"))
    }
}

impl Drop for Populating {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // What it holds is free once it is gone.
        if let Some(thread) = self.thread.take() {
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
