//! Processes whose memory the kernel bounds together, where this machine lets us make such a group. Both versions of cgroups.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::{fs, process};

const MIB: u64 = 1 << 20;

/// Gone when dropped; whoever is still in it goes on outside.
#[derive(Debug)]
pub(super) struct MemoryGroup {
    root: &'static Path,
    folder: PathBuf,
    files: &'static Files,
}

/// A process that holds memory until it is dropped.
#[derive(Debug)]
pub(super) struct Holder(Child);

/// What a version calls them.
#[derive(Debug)]
struct Files {
    root: &'static str,
    used: &'static str,
    bound: &'static str,
    no_bound: &'static str,
    /// With a line `oom_kill COUNT`.
    kills: &'static str,
    /// Set to 0, nothing is moved to a disk instead.
    swap: &'static str,
}

static VERSIONS: [Files; 2] = [
    Files {
        root: "/sys/fs/cgroup",
        used: "memory.current",
        bound: "memory.max",
        no_bound: "max",
        kills: "memory.events",
        swap: "memory.swap.max",
    },
    Files {
        root: "/sys/fs/cgroup/memory",
        used: "memory.usage_in_bytes",
        bound: "memory.limit_in_bytes",
        no_bound: "-1",
        kills: "memory.oom_control",
        swap: "memory.swappiness",
    },
];

impl MemoryGroup {
    /// Errors with why there is none.
    pub(super) fn new() -> Result<Self, &'static str> {
        let made = VERSIONS.iter().filter_map(|files| {
            let root = Path::new(files.root);
            let folder = root.join(format!("passerelle-test-{}", process::id()));
            fs::create_dir(&folder).ok()?;
            Some(Self { root, folder, files })
        });
        let mut useful = made.filter(|group| group.folder.join(group.files.bound).exists());
        let group = useful.next().ok_or("no group with bounded memory can be made")?;
        // Not every kernel swaps.
        let _ = fs::write(group.folder.join(group.files.swap), "0");
        Ok(group)
    }

    /// What it holds already is counted where it was.
    pub(super) fn take_in(&self, process: u32) {
        self.write("cgroup.procs", &process.to_string());
    }

    pub(super) fn bound_to(&self, mib: u64) {
        self.write(self.files.bound, &(mib * MIB).to_string());
    }

    pub(super) fn unbound(&self) {
        self.write(self.files.bound, self.files.no_bound);
    }

    pub(super) fn used_mib(&self) -> u64 {
        self.read(self.files.used).trim().parse::<u64>().expect("a number").div_ceil(MIB)
    }

    /// Processes of it that the kernel has killed for want of memory.
    pub(super) fn kills(&self) -> u64 {
        let said = self.read(self.files.kills);
        let count = said.lines().find_map(|line| line.strip_prefix("oom_kill "));
        count.expect("the kernel counts them").parse().expect("a number")
    }

    /// A process in the group that holds so much.
    pub(super) fn hold(&self, mib: u64) -> Holder {
        let group = self.folder.join("cgroup.procs");
        // The last so many bytes of what does not end.
        let hold = format!("echo $$ >{}; exec tail -c {mib}M >/dev/null", group.display());
        let mut process = Command::new("sh");
        let mut holder = process.args(["-c", &hold]).stdin(Stdio::piped()).spawn().expect("every system has a shell");
        let filled = holder.stdin.as_mut().expect("it is piped").write_all(&vec![0_u8; (mib * MIB) as usize]);
        filled.expect("it keeps all that it has read");
        Holder(holder)
    }

    fn read(&self, file: &str) -> String {
        fs::read_to_string(self.folder.join(file)).expect("the group is ours")
    }

    fn write(&self, file: &str, what: &str) {
        fs::write(self.folder.join(file), what).unwrap_or_else(|error| panic!("{file}: {error}"));
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        // The kernel may have ended it.
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

impl Drop for MemoryGroup {
    fn drop(&mut self) {
        let inside = fs::read_to_string(self.folder.join("cgroup.procs")).unwrap_or_default();
        // Whoever has ended meanwhile needs no place.
        inside.lines().for_each(|process| _ = fs::write(self.root.join("cgroup.procs"), process));
        let _ = fs::remove_dir(&self.folder);
    }
}
