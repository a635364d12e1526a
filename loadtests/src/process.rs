//! What the server and the machine do meanwhile, from Linux's /proc: the server's processor time and resident size,
//! the generator's own, and everybody else's.

mod tree;

use std::collections::BTreeSet;
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

/// At one moment.
#[derive(Debug, Clone, Copy, Default)]
pub struct Sample {
    pub at_s: f64,
    /// Processor time so far, in seconds.
    pub server_cpu_s: f64,
    pub server_rss_bytes: u64,
    pub own_cpu_s: f64,
    /// All that ran on the machine.
    pub busy_cpu_s: f64,
}

/// Over a run. Processor use is in cores.
#[derive(Debug, Clone, Default, Serialize)]
pub struct MachineFigures {
    /// Those whose processes are known: one, but in a comparison.
    pub server_pids: Vec<u32>,
    pub server_cpu_cores: Option<f64>,
    pub server_rss_start_bytes: Option<u64>,
    pub server_rss_max_bytes: Option<u64>,
    pub own_cpu_cores: f64,
    /// Neither a server nor this program.
    pub foreign_cpu_cores: f64,
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
            server_cpu_s: family.iter().filter_map(|pid| self.cpu_s(*pid)).sum(),
            server_rss_bytes: family.iter().filter_map(|pid| self.rss_bytes(*pid)).sum(),
            own_cpu_s: self.cpu_s(std::process::id()).unwrap_or(0.0),
            busy_cpu_s: self.busy_cpu_s().unwrap_or(0.0),
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
        let server_cpu_s = last.server_cpu_s - first.server_cpu_s;
        let own_cpu_s = last.own_cpu_s - first.own_cpu_s;
        let foreign_cpu_s = last.busy_cpu_s - first.busy_cpu_s - server_cpu_s - own_cpu_s;
        let is_known = !server_pids.is_empty();
        Self {
            server_pids,
            server_cpu_cores: is_known.then_some(server_cpu_s / seconds),
            server_rss_start_bytes: is_known.then_some(first.server_rss_bytes),
            server_rss_max_bytes: samples.iter().map(|sample| sample.server_rss_bytes).max().filter(|_| is_known),
            own_cpu_cores: own_cpu_s / seconds,
            foreign_cpu_cores: (foreign_cpu_s / seconds).max(0.0),
            cores,
        }
    }
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
        assert_eq!(sample.server_cpu_s, 3.0, "the process and its child");
        assert_eq!(sample.server_rss_bytes, 3 * 1024 * 1024);
        assert_eq!((sample.busy_cpu_s, proc.cores()), (1.56, 2));
        assert_eq!(proc.sample(&[41, 43], Duration::ZERO).server_cpu_s, 12.0, "two servers that are compared");
    }

    #[test]
    fn what_is_neither_the_server_nor_the_generator_is_foreign() {
        let first = Sample::default();
        let last = Sample { at_s: 10.0, server_cpu_s: 8.0, server_rss_bytes: 5, own_cpu_s: 1.0, busy_cpu_s: 14.0 };
        let figures = MachineFigures::of(&[first, last], vec![1], 2);
        assert_eq!((figures.server_cpu_cores, figures.own_cpu_cores), (Some(0.8), 0.1));
        assert!((figures.foreign_cpu_cores - 0.5).abs() < 1e-9);
    }
}
