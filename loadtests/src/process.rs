//! What the server and the machine do meanwhile, from Linux's /proc: the server's processor time and resident size,
//! the generator's own, and everybody else's.

mod tree;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::Serialize;
use tokio::task::JoinHandle;

use crate::clock::{Instant, now};

const SAMPLE_EVERY: Duration = Duration::from_millis(500);
/// What /proc counts processor time in, on every architecture that Linux shows to programs.
const TICKS_PER_S: f64 = 100.0;

/// /proc, or a test's copy of it.
#[derive(Debug, Clone)]
pub struct ProcFs {
    root: PathBuf,
}

/// At one moment. What could not be read is unknown: this program may have no file left to read /proc with.
#[derive(Debug, Clone, Copy, Default)]
pub struct Sample {
    pub at_s: f64,
    /// Processor time so far, in seconds.
    pub server_cpu_s: Option<f64>,
    pub server_rss_bytes: Option<u64>,
    pub own_cpu_s: Option<f64>,
    /// All that ran on the machine.
    pub busy_cpu_s: Option<f64>,
}

/// Over a run. Processor use is in cores.
#[derive(Debug, Clone, Default, Serialize)]
pub struct MachineFigures {
    /// Those whose processes are known: one, but in a comparison.
    pub server_pids: Vec<u32>,
    pub server_cpu_cores: Option<f64>,
    pub server_rss_start_bytes: Option<u64>,
    pub server_rss_max_bytes: Option<u64>,
    pub own_cpu_cores: Option<f64>,
    /// Neither a server nor this program.
    pub foreign_cpu_cores: Option<f64>,
    pub cores: usize,
}

/// Samples in the background until it is asked for what it saw.
#[derive(Debug)]
pub struct Watch {
    proc: ProcFs,
    servers: Vec<u32>,
    start: Instant,
    samples: Arc<Mutex<Vec<Sample>>>,
    task: JoinHandle<()>,
}

impl Default for ProcFs {
    fn default() -> Self {
        Self { root: PathBuf::from("/proc") }
    }
}

impl ProcFs {
    pub fn at(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    /// The servers' share counts their child processes too: some servers keep their engine in one.
    pub fn sample(&self, servers: &[u32], at: Duration) -> Sample {
        let family: BTreeSet<u32> = servers.iter().flat_map(|pid| self.family(*pid)).collect();
        Sample {
            at_s: at.as_secs_f64(),
            server_cpu_s: sum_of(&family, servers, |pid| self.cpu_s(pid)),
            server_rss_bytes: sum_of(&family, servers, |pid| self.rss_bytes(pid)),
            own_cpu_s: self.cpu_s(std::process::id()),
            busy_cpu_s: self.busy_cpu_s(),
        }
    }

    /// User and system time of a process, its waited-for children left out.
    fn cpu_s(&self, pid: u32) -> Option<f64> {
        let stat = self.read(&format!("{pid}/stat"))?;
        // The name in parentheses may hold anything, so fields are counted from its end: state is the first.
        let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
        let user: f64 = fields.nth(11)?.parse().ok()?;
        let system: f64 = fields.next()?.parse().ok()?;
        Some((user + system) / TICKS_PER_S)
    }

    fn rss_bytes(&self, pid: u32) -> Option<u64> {
        let status = self.read(&format!("{pid}/status"))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
        let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
        Some(kib * 1024)
    }

    /// user, nice, system, irq, softirq and steal, but neither idle nor waiting for disks.
    fn busy_cpu_s(&self) -> Option<f64> {
        let stat = self.read("stat")?;
        let fields: Vec<f64> =
            stat.lines().next()?.split_whitespace().skip(1).filter_map(|field| field.parse().ok()).collect();
        let busy = [0, 1, 2, 5, 6, 7].iter().filter_map(|index| fields.get(*index)).sum::<f64>();
        Some(busy / TICKS_PER_S)
    }

    fn cores(&self) -> usize {
        let stat = self.read("stat").unwrap_or_default();
        let is_core = |line: &&str| line.strip_prefix("cpu").is_some_and(|rest| rest.starts_with(char::is_numeric));
        stat.lines().filter(is_core).count()
    }

    fn read(&self, path: &str) -> Option<String> {
        std::fs::read_to_string(self.root.join(path)).ok()
    }
}

impl Watch {
    pub fn start(servers: impl IntoIterator<Item = u32>) -> Self {
        let servers: Vec<u32> = servers.into_iter().collect();
        let (proc, start) = (ProcFs::default(), now());
        let samples = Arc::new(Mutex::new(vec![proc.sample(&servers, Duration::ZERO)]));
        let task = tokio::spawn({
            let (proc, servers, samples) = (proc.clone(), servers.clone(), Arc::clone(&samples));
            async move {
                loop {
                    tokio::time::sleep(SAMPLE_EVERY).await;
                    let sample = proc.sample(&servers, now() - start);
                    samples.lock().unwrap_or_else(PoisonError::into_inner).push(sample);
                }
            }
        });
        Self { proc, servers, start, samples, task }
    }

    /// Ends the watch.
    pub fn finish(self) -> (MachineFigures, Vec<Sample>) {
        self.task.abort();
        let mut samples = std::mem::take(&mut *self.samples.lock().unwrap_or_else(PoisonError::into_inner));
        samples.push(self.proc.sample(&self.servers, now() - self.start));
        (MachineFigures::of(&samples, self.servers, self.proc.cores()), samples)
    }
}

impl MachineFigures {
    /// `samples` holds at least a first and a last.
    fn of(samples: &[Sample], server_pids: Vec<u32>, cores: usize) -> Self {
        let (first, last) = (samples[0], samples[samples.len() - 1]);
        let seconds = (last.at_s - first.at_s).max(f64::EPSILON);
        // Where a process ended meanwhile, its time is gone from the sum.
        let in_cores = |of: fn(&Sample) -> Option<f64>| {
            let spent_s = of(&last)? - of(&first)?;
            (spent_s >= 0.0).then_some(spent_s / seconds)
        };
        let server = in_cores(|sample| sample.server_cpu_s);
        let own = in_cores(|sample| sample.own_cpu_s);
        let others = if server_pids.is_empty() { Some(0.0) } else { server };
        let foreign = in_cores(|sample| sample.busy_cpu_s)
            .zip(own.zip(others))
            .map(|(busy, (own, server))| (busy - server - own).max(0.0));
        Self {
            server_pids,
            server_cpu_cores: server,
            server_rss_start_bytes: first.server_rss_bytes,
            server_rss_max_bytes: samples.iter().filter_map(|sample| sample.server_rss_bytes).max(),
            own_cpu_cores: own,
            foreign_cpu_cores: foreign,
            cores,
        }
    }
}

/// Of `servers` and what they started; unknown where there are none, or one of them could not be read.
fn sum_of<T: Copy + std::iter::Sum>(
    family: &BTreeSet<u32>,
    servers: &[u32],
    read: impl Fn(u32) -> Option<T>,
) -> Option<T> {
    let known: BTreeMap<u32, T> = family.iter().filter_map(|pid| Some((*pid, read(*pid)?))).collect();
    let is_known = !servers.is_empty() && servers.iter().all(|pid| known.contains_key(pid));
    is_known.then(|| known.into_values().sum())
}

/// For people: cores with two decimals, or `?`.
pub fn shown_cores(cores: Option<f64>) -> String {
    cores.map_or_else(|| "?".to_owned(), |cores| format!("{cores:.2}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processor_time_and_size_are_read_from_proc() {
        let folder = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = folder.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        write("stat", "cpu  100 10 40 5000 7 1 2 3 0 0\ncpu0 1\ncpu1 1\nintr 5\n");
        write("41/stat", "41 (odd) name) S 1 2 3 4 5 6 7 8 9 10 150 50 9 9\n");
        write("41/status", "Name:\tx\nVmRSS:\t    2048 kB\n");
        write("42/stat", "42 (child) S 41 2 3 4 5 6 7 8 9 10 100 0 9 9\n");
        write("42/status", "VmRSS:\t1024 kB\n");
        write("43/stat", "43 (other) S 1 2 3 4 5 6 7 8 9 10 900 0 9 9\n");
        let proc = ProcFs::at(folder.path());
        let sample = proc.sample(&[41], Duration::from_secs(1));
        assert_eq!(sample.server_cpu_s, Some(3.0), "the process and its child");
        assert_eq!(sample.server_rss_bytes, Some(3 * 1024 * 1024));
        assert_eq!((sample.busy_cpu_s, proc.cores()), (Some(1.56), 2));
        assert_eq!(proc.sample(&[41, 43], Duration::ZERO).server_cpu_s, Some(12.0), "two servers that are compared");
    }

    #[test]
    fn what_is_neither_the_server_nor_the_generator_is_foreign() {
        let figures = MachineFigures::of(&[sample(0.0, [0.0; 3]), sample(10.0, [8.0, 1.0, 14.0])], vec![1], 2);
        assert_eq!((figures.server_cpu_cores, figures.own_cpu_cores), (Some(0.8), Some(0.1)));
        assert!((figures.foreign_cpu_cores.unwrap() - 0.5).abs() < 1e-9);
    }

    #[test]
    fn what_could_not_be_read_is_unknown_and_not_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let unread = ProcFs::at(folder.path()).sample(&[41], Duration::from_secs(10));
        assert_eq!((unread.server_cpu_s, unread.server_rss_bytes, unread.busy_cpu_s), (None, None, None));
        let figures = MachineFigures::of(&[sample(0.0, [4.0, 1.0, 14.0]), unread], vec![41], 2);
        assert_eq!((figures.server_cpu_cores, figures.own_cpu_cores, figures.foreign_cpu_cores), (None, None, None));
        let ended = MachineFigures::of(&[sample(0.0, [4.0, 1.0, 14.0]), sample(10.0, [3.0, 2.0, 20.0])], vec![41], 2);
        assert_eq!((ended.server_cpu_cores, ended.foreign_cpu_cores), (None, None), "a child has ended");
        assert_eq!(shown_cores(ended.server_cpu_cores), "?");
    }

    /// Seconds of the server, of this program, and of all.
    fn sample(at_s: f64, [server, own, busy]: [f64; 3]) -> Sample {
        Sample {
            at_s,
            server_cpu_s: Some(server),
            server_rss_bytes: Some(5),
            own_cpu_s: Some(own),
            busy_cpu_s: Some(busy),
        }
    }
}
