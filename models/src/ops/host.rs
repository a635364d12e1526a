//! Which of the host's processors compute, and how its memory is shared out.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use super::cpu::system;

/// What of the host the ops use. The default leaves both to the system.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostPlacement {
    pub processors: Option<ProcessorSet>,
    pub memory: MemoryPlacement,
}

/// Where weights and KV caches lie on a host with several memories (NUMA nodes).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum MemoryPlacement {
    /// Each page where the thread runs that first writes it, as the system does by itself.
    #[default]
    FirstWriter,
    /// Page by page in turn on all that this process may use. Each thread works through tasks of its own and takes half
    /// of what another has left when its own are done, but weights are packed by whichever thread is free, so no
    /// thread's weights lie beside it; this way all memories are read at once, and none more than others.
    Interleaved,
}

/// Processors by the system's numbers, at least one, written like `0-7,16-23`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProcessorSet(BTreeSet<usize>);

/// Why a text names no processors.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidProcessors {
    #[error("`{0}` is no list of processors like 0-7,16-23")]
    NoList(String),
    #[error("processor {0} is beyond {most}, the highest that can be named", most = ProcessorSet::MOST - 1)]
    TooHigh(usize),
}

/// Why the host does not do what was asked for.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    #[error("this process may run on {allowed}, and not on {missing}")]
    NotAllowed { allowed: ProcessorSet, missing: ProcessorSet },
    #[error("threads cannot be bound to processors on this system")]
    NoBinding(#[source] std::io::Error),
    #[error("memory cannot be interleaved on this system")]
    NoInterleaving(#[source] std::io::Error),
}

/// Physical cores that `processors` are threads of; of those that this process may run on, where none are named. `None` where
/// the system does not tell.
pub fn physical_cores(processors: Option<&ProcessorSet>) -> Option<usize> {
    match processors {
        Some(processors) => system::cores_of(processors).ok(),
        None => system::cores_of(&system::allowed_processors().ok()?).ok(),
    }
}

impl HostPlacement {
    /// Errors when this process may not run on all of the processors, or its memory cannot be placed.
    pub fn check(&self) -> Result<(), HostError> {
        if let Some(processors) = &self.processors {
            let allowed = system::allowed_processors().map_err(HostError::NoBinding)?;
            let missing: BTreeSet<_> = processors.0.difference(&allowed.0).copied().collect();
            if !missing.is_empty() {
                return Err(HostError::NotAllowed { allowed, missing: ProcessorSet(missing) });
            }
        }
        match self.memory {
            MemoryPlacement::FirstWriter => Ok(()),
            MemoryPlacement::Interleaved => system::can_interleave().map_err(HostError::NoInterleaving),
        }
    }
}

impl ProcessorSet {
    /// More than any system that this runs on tells apart.
    pub const MOST: usize = 1024;

    /// `None` of no numbers. Those that cannot be named are left out.
    pub(super) fn of(numbers: impl IntoIterator<Item = usize>) -> Option<Self> {
        let numbers: BTreeSet<_> = numbers.into_iter().filter(|number| *number < Self::MOST).collect();
        (!numbers.is_empty()).then_some(Self(numbers))
    }

    /// How many: at least 1.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    pub fn iter(&self) -> impl Iterator<Item = usize> + '_ {
        self.0.iter().copied()
    }
}

impl FromStr for ProcessorSet {
    type Err = InvalidProcessors;

    fn from_str(text: &str) -> Result<Self, InvalidProcessors> {
        let no_list = || InvalidProcessors::NoList(text.to_owned());
        let mut numbers = BTreeSet::new();
        for part in text.split(',') {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let number = |digits: &str| match digits.bytes().all(|byte| byte.is_ascii_digit()) {
                true => digits.parse::<usize>().map_err(|_| no_list()),
                false => Err(no_list()),
            };
            let (first, last) = (number(first)?, number(last)?);
            if first > last {
                return Err(no_list());
            }
            if last >= Self::MOST {
                return Err(InvalidProcessors::TooHigh(last));
            }
            numbers.extend(first..=last);
        }
        Ok(Self(numbers))
    }
}

impl fmt::Display for ProcessorSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut numbers = self.iter().peekable();
        let mut comma = "";
        while let Some(first) = numbers.next() {
            let mut last = first;
            while let Some(next) = numbers.next_if_eq(&(last + 1)) {
                last = next;
            }
            match last - first {
                0 => write!(f, "{comma}{first}")?,
                _ => write!(f, "{comma}{first}-{last}")?,
            }
            comma = ",";
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processors_are_shown_as_they_are_written_in_order_and_each_once() {
        for (written, shown) in
            [("0", "0"), ("0-7,16-23", "0-7,16-23"), ("3,1,2,1,9", "1-3,9"), ("4-4,6", "4,6"), ("1023", "1023")]
        {
            assert_eq!(written.parse::<ProcessorSet>().unwrap().to_string(), shown);
        }
        assert_eq!("0-7,16-23".parse::<ProcessorSet>().unwrap().count(), 16);
    }

    #[test]
    fn what_is_no_list_of_processors_is_refused_and_repeated() {
        for text in ["", "-", "1-", "-1", "2-1", "0,", "0 1", "a", "+1", "0x1", "1.5", "99999999999999999999"] {
            let refused = text.parse::<ProcessorSet>().expect_err(text);
            assert_eq!(refused, InvalidProcessors::NoList(text.to_owned()));
        }
        assert_eq!("0-1024".parse::<ProcessorSet>(), Err(InvalidProcessors::TooHigh(1024)));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_processor_that_this_process_may_not_use_is_named_in_the_refusal() {
        let allowed = system::allowed_processors().unwrap();
        let on = |processors: ProcessorSet| HostPlacement { processors: Some(processors), ..HostPlacement::default() };
        assert!(on(allowed.clone()).check().is_ok());
        let Some(beyond) = (0..ProcessorSet::MOST).rev().find(|number| !allowed.0.contains(number)) else { return };
        let refused = on(ProcessorSet::of(allowed.iter().chain([beyond])).unwrap()).check().unwrap_err().to_string();
        assert_eq!(refused, format!("this process may run on {allowed}, and not on {beyond}"));
    }
}
