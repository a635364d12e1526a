#![cfg_attr(target_os = "linux", expect(unsafe_code, reason = "advice on memory is given by its address"))]

//! Memory that was asked for, taken before it is used, so that what a process holds is known soon after its start and
//! nobody's token waits for the system to clear a page.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use candle_core::{CpuStorage, Storage, Tensor};

/// What one call asks for: the system holds the process's memory map meanwhile.
const CHUNK_BYTES: usize = 4 << 20;

/// A thread that takes memory. Dropped, it is told to stop.
#[derive(Debug)]
pub(crate) struct Populating {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<io::Result<()>>>,
}

/// In a thread of its own, without changing what the tensors hold; they may be read and written meanwhile. Passes over what
/// lies on a device, and ends early, with the reason, where the system knows no such request (Linux before 5.14, others).
pub(crate) fn populate(tensors: Vec<Tensor>) -> io::Result<Populating> {
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = Arc::clone(&stop);
    let work = move || tensors.into_iter().try_for_each(|tensor| take_all(&tensor, &stopped));
    let thread = std::thread::Builder::new().name("populate".into()).spawn(work)?;
    Ok(Populating { stop, thread: Some(thread) })
}

fn take_all(tensor: &Tensor, stopped: &AtomicBool) -> io::Result<()> {
    let Some((start, len)) = memory_of(tensor) else { return Ok(()) };
    let mut chunks = (0..len).step_by(CHUNK_BYTES).take_while(|_| !stopped.load(Ordering::Relaxed));
    chunks.try_for_each(|at| take(start + at, CHUNK_BYTES.min(len - at)))
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

/// Its address and its length in bytes. The tensor keeps it where it is.
fn memory_of(tensor: &Tensor) -> Option<(usize, usize)> {
    let (storage, _) = tensor.storage_and_layout();
    match &*storage {
        Storage::Cpu(CpuStorage::F32(values)) => Some((values.as_ptr() as usize, size_of_val(values.as_slice()))),
        Storage::Cpu(CpuStorage::BF16(values)) => Some((values.as_ptr() as usize, size_of_val(values.as_slice()))),
        _ => None,
    }
}

/// The pages that begin in these bytes.
#[cfg(target_os = "linux")]
fn take(start: usize, len: usize) -> io::Result<()> {
    use rustix::mm::{Advice, madvise};

    let page = rustix::param::page_size();
    let (first, end) = (start.next_multiple_of(page), (start + len) & !(page - 1));
    if first >= end {
        return Ok(());
    }
    // SAFETY: the pages lie within memory that the caller keeps; populating them changes nothing that is held in them.
    unsafe { madvise(first as *mut _, end - first, Advice::LinuxPopulateWrite) }.map_err(io::Error::from)
}

#[cfg(not(target_os = "linux"))]
fn take(_: usize, _: usize) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}
