#![cfg_attr(target_os = "linux", expect(unsafe_code, reason = "memory is spoken of by its address"))]

//! What only some systems do: threads that stay on processors, and wishes about memory. Whatever it is, elsewhere it is an
//! error of the kind `Unsupported`, and whoever asks decides whether he can do without.

use std::io;

use crate::ops::ProcessorSet;

/// Memory that its owner keeps where it is, and of it only whole pages.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Memory {
    start: usize,
    len: usize,
}

impl Memory {
    /// The pages that lie wholly in these bytes, which outlive whatever is done with them.
    pub(crate) fn of<T>(values: &[T]) -> Self {
        Self::within(values.as_ptr() as usize, size_of_val(values))
    }

    fn within(start: usize, len: usize) -> Self {
        let page = page_size();
        let first = start.next_multiple_of(page);
        let end = (start + len) & !(page - 1);
        Self { start: first, len: end.saturating_sub(first) }
    }

    /// Pieces of `bytes`, and what is left.
    pub(crate) fn pieces(self, bytes: usize) -> impl Iterator<Item = Self> {
        let Self { start, len } = self;
        (0..len).step_by(bytes).map(move |at| Self::within(start + at, bytes.min(len - at)))
    }
}

#[cfg(target_os = "linux")]
mod linux {
    use std::collections::BTreeSet;
    use std::path::Path;

    use libc::{c_long, c_ulong};
    use rustix::mm::{Advice, madvise};

    use super::*;

    const WORD_BITS: usize = c_ulong::BITS as usize;
    /// A bit for each processor, or for each of the system's memories, of which there are 1024 at most.
    type Mask = [c_ulong; ProcessorSet::MOST / WORD_BITS];
    /// Of a mask of memories the system takes one bit fewer than it is told.
    const NUM_NODE_BITS: usize = ProcessorSet::MOST + 1;
    /// `MPOL_F_MEMS_ALLOWED` of <linux/mempolicy.h>: asks for the mask alone.
    const MEMS_ALLOWED: usize = 1 << 2;
    const THIS_THREAD: usize = 0;

    pub(super) fn page_size() -> usize {
        rustix::param::page_size()
    }

    pub(crate) fn allowed_processors() -> io::Result<ProcessorSet> {
        let mask = mask_of_this_thread()?;
        let is_set = |number: &usize| mask[number / WORD_BITS] >> (number % WORD_BITS) & 1 == 1;
        ProcessorSet::of((0..ProcessorSet::MOST).filter(is_set)).ok_or_else(|| io::ErrorKind::Unsupported.into())
    }

    fn mask_of_this_thread() -> io::Result<Mask> {
        let mut mask = Mask::default();
        // SAFETY: writes no more than the mask's bytes.
        done(unsafe { libc::syscall(libc::SYS_sched_getaffinity, THIS_THREAD, size_of::<Mask>(), mask.as_mut_ptr()) })?;
        Ok(mask)
    }

    fn bind_to_mask(mask: &Mask) -> io::Result<()> {
        // SAFETY: reads the mask.
        done(unsafe { libc::syscall(libc::SYS_sched_setaffinity, THIS_THREAD, size_of::<Mask>(), mask.as_ptr()) })
    }

    fn mask_of(processors: impl Iterator<Item = usize>) -> Mask {
        let mut mask = Mask::default();
        processors.for_each(|number| mask[number / WORD_BITS] |= 1 << (number % WORD_BITS));
        mask
    }

    pub(crate) fn cores_of(processors: &ProcessorSet) -> io::Result<usize> {
        cores_listed(Path::new("/sys/devices/system/cpu"), processors)
    }

    /// By what the files of `folder` say of each processor: which ones are threads of its core.
    pub(super) fn cores_listed(folder: &Path, processors: &ProcessorSet) -> io::Result<usize> {
        let threads_of_core = |number| folder.join(format!("cpu{number}/topology/thread_siblings_list"));
        let cores = processors.iter().map(|number| std::fs::read_to_string(threads_of_core(number)));
        Ok(cores.collect::<io::Result<BTreeSet<_>>>()?.len())
    }

    pub(crate) fn bind_this_thread(processors: &ProcessorSet) -> io::Result<()> {
        bind_to_mask(&mask_of(processors.iter()))
    }

    /// Of the thread that asks, which may be on another one by now.
    pub(crate) fn current_processor() -> Option<usize> {
        // SAFETY: takes nothing, and returns a number, negative where it does not know.
        usize::try_from(unsafe { libc::sched_getcpu() }).ok()
    }

    /// Brings this thread, which may be on all of `processors`, to one that is not taken, and lets it go on from there
    /// wherever it could before. Which one that is; `None` where all are taken, or somebody else has said meanwhile
    /// where it may be.
    pub(crate) fn leave_processors(
        processors: &ProcessorSet,
        is_taken: impl Fn(usize) -> bool,
    ) -> io::Result<Option<usize>> {
        let all = mask_of(processors.iter());
        let free = mask_of(processors.iter().filter(|number| !is_taken(*number)));
        if free == Mask::default() || mask_of_this_thread()? != all {
            return Ok(None);
        }
        bind_to_mask(&free)?;
        let there = current_processor();
        bind_to_mask(&all)?;
        Ok(there)
    }

    /// What a system call returns that returns no more than whether it succeeded.
    fn done(result: c_long) -> io::Result<()> {
        if result >= 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    impl Memory {
        /// Takes it from the system now. Linux from 5.14.
        pub(crate) fn populate(self) -> io::Result<()> {
            self.advise(Advice::LinuxPopulateWrite)
        }

        /// In huge pages, where the system has them for whoever asks: one entry of its table for 2 MiB instead of 512.
        pub(crate) fn use_huge_pages(self) -> io::Result<()> {
            self.advise(Advice::LinuxHugepage)
        }

        /// Pages not yet taken lie in turn on all memories that this process may use.
        pub(crate) fn interleave(self) -> io::Result<()> {
            let memories = allowed_memories()?;
            if self.len == 0 {
                return Ok(());
            }
            let (call, policy, flags) = (libc::SYS_mbind, libc::MPOL_INTERLEAVE as usize, 0_usize);
            // SAFETY: where a page lies changes nothing that is held in it; the mask has as many bits as are told.
            done(unsafe { libc::syscall(call, self.start, self.len, policy, memories.as_ptr(), NUM_NODE_BITS, flags) })
        }

        fn advise(self, advice: Advice) -> io::Result<()> {
            if self.len == 0 {
                return Ok(());
            }
            // SAFETY: the pages lie within memory that their owner keeps; this advice changes nothing that is held in them.
            Ok(unsafe { madvise(self.start as *mut _, self.len, advice) }?)
        }
    }

    pub(crate) fn can_interleave() -> io::Result<()> {
        allowed_memories().map(drop)
    }

    fn allowed_memories() -> io::Result<Mask> {
        let mut mask = Mask::default();
        let (call, no_mode, no_address) = (libc::SYS_get_mempolicy, 0_usize, 0_usize);
        // SAFETY: writes the mask, which has as many bits as are told, and nothing else.
        done(unsafe { libc::syscall(call, no_mode, mask.as_mut_ptr(), NUM_NODE_BITS, no_address, MEMS_ALLOWED) })?;
        Ok(mask)
    }
}

#[cfg(not(target_os = "linux"))]
mod elsewhere {
    use super::*;

    pub(super) fn page_size() -> usize {
        4096
    }

    pub(crate) fn allowed_processors() -> io::Result<ProcessorSet> {
        Err(io::ErrorKind::Unsupported.into())
    }

    pub(crate) fn cores_of(_: &ProcessorSet) -> io::Result<usize> {
        Err(io::ErrorKind::Unsupported.into())
    }

    pub(crate) fn bind_this_thread(_: &ProcessorSet) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    pub(crate) fn current_processor() -> Option<usize> {
        None
    }

    pub(crate) fn leave_processors(_: &ProcessorSet, _: impl Fn(usize) -> bool) -> io::Result<Option<usize>> {
        Err(io::ErrorKind::Unsupported.into())
    }

    pub(crate) fn can_interleave() -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    impl Memory {
        pub(crate) fn populate(self) -> io::Result<()> {
            Err(io::ErrorKind::Unsupported.into())
        }

        pub(crate) fn use_huge_pages(self) -> io::Result<()> {
            Err(io::ErrorKind::Unsupported.into())
        }

        pub(crate) fn interleave(self) -> io::Result<()> {
            Err(io::ErrorKind::Unsupported.into())
        }
    }
}

#[cfg(not(target_os = "linux"))]
use elsewhere::page_size;
#[cfg(not(target_os = "linux"))]
pub(crate) use elsewhere::{
    allowed_processors, bind_this_thread, can_interleave, cores_of, current_processor, leave_processors,
};
#[cfg(target_os = "linux")]
use linux::page_size;
#[cfg(target_os = "linux")]
pub(crate) use linux::{
    allowed_processors, bind_this_thread, can_interleave, cores_of, current_processor, leave_processors,
};

#[cfg(all(test, target_os = "linux"))]
impl Memory {
    /// Whether the system was asked for huge pages there.
    pub(crate) fn is_for_huge_pages(self) -> bool {
        let maps = std::fs::read_to_string("/proc/self/smaps").expect("Linux has it");
        let mut is_here = false;
        maps.lines().any(|line| {
            let range = line.split_once(' ').and_then(|(range, _)| range.split_once('-'));
            let hex = |number| usize::from_str_radix(number, 16).ok();
            if let Some((start, end)) = range.and_then(|(start, end)| Some((hex(start)?, hex(end)?))) {
                is_here = (start..end).contains(&self.start);
            }
            is_here && line.starts_with("VmFlags:") && line.split(' ').any(|flag| flag == "hg")
        })
    }

    /// Whether its pages are to lie in turn on several memories; `None` where the system does not tell.
    pub(crate) fn is_interleaved(self) -> Option<bool> {
        let maps = std::fs::read_to_string("/proc/self/numa_maps").ok()?;
        let begins_before = |line: &&str| {
            let start = line.split(' ').next().and_then(|start| usize::from_str_radix(start, 16).ok());
            start.is_some_and(|start| start <= self.start)
        };
        let policy = maps.lines().take_while(begins_before).last()?.split(' ').nth(1)?;
        Some(policy.starts_with("interleave"))
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn interleaved_memory_is_interleaved_and_holds_what_is_written() {
        if can_interleave().is_err() {
            return;
        }
        let mut pages = memmap2::MmapMut::map_anon(3 * page_size()).unwrap();
        Memory::of(&pages[..]).interleave().unwrap();
        assert_ne!(Memory::of(&pages[..]).is_interleaved(), Some(false));
        pages.fill(7);
        assert!(pages.iter().all(|byte| *byte == 7));
    }

    #[test]
    fn threads_of_one_core_are_one_core() {
        let folder = tempfile::tempdir().unwrap();
        for (processor, siblings) in [(0, "0,4"), (1, "1,5"), (4, "0,4"), (5, "1,5")] {
            let topology = folder.path().join(format!("cpu{processor}/topology"));
            std::fs::create_dir_all(&topology).unwrap();
            std::fs::write(topology.join("thread_siblings_list"), format!("{siblings}\n")).unwrap();
        }
        let cores = |processors: &str| linux::cores_listed(folder.path(), &processors.parse().unwrap());
        assert_eq!(["0", "0,4", "0-1", "0-1,4-5"].map(|processors| cores(processors).unwrap()), [1, 1, 2, 2]);
        assert!(cores("0,7").is_err());
    }

    #[test]
    fn only_pages_that_lie_wholly_in_memory_are_spoken_of() {
        let page = page_size();
        let pages = memmap2::MmapMut::map_anon(4 * page).unwrap();
        let start = pages.as_ptr() as usize;
        let bounds = |bytes: &[u8]| (Memory::of(bytes).start, Memory::of(bytes).len);
        assert_eq!(bounds(&pages[1..3 * page + 1]), (start + page, 2 * page));
        assert_eq!(bounds(&pages[1..page]).1, 0);
        let lens = Memory::of(&pages[..]).pieces(3 * page).map(|piece| piece.len).collect::<Vec<_>>();
        assert_eq!(lens, [3 * page, page]);
    }
}
