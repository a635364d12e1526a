//! Wakes an engine that sleeps, for those who have nothing to send: a reader that leaves or grants more tokens, a shutdown.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::SyncSender;

use crate::step::Command;

/// However often it is rung, at most one ring stands in the command queue, whose other places belong to waiting requests.
#[derive(Clone)]
pub(crate) enum Doorbell {
    Engine {
        commands: SyncSender<Command>,
        rung: RungFlag,
    },
    /// Of an engine elsewhere.
    Elsewhere(Arc<dyn Fn() + Send + Sync>),
}

/// The engine's end.
#[derive(Debug, Clone, Default)]
pub(crate) struct RungFlag(Arc<AtomicBool>);

impl Doorbell {
    pub(crate) fn new(commands: SyncSender<Command>, rung: RungFlag) -> Self {
        Self::Engine { commands, rung }
    }

    /// What the ringer changed before is seen by the engine after.
    pub(crate) fn ring(&self) {
        match self {
            Self::Elsewhere(ring) => ring(),
            Self::Engine { commands, rung } if !rung.0.swap(true, Ordering::AcqRel) => {
                // Fails only if the engine is gone.
                let _ = commands.try_send(Command::Wake);
            }
            Self::Engine { .. } => {}
        }
    }
}

impl fmt::Debug for Doorbell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Doorbell")
    }
}

impl RungFlag {
    /// The engine heard the ring and is about to look; from now on the next one counts.
    pub(crate) fn clear(&self) {
        // Reads what it overwrites: whoever rang just before, and sent nothing since a ring was on its way, is seen by this look.
        self.0.swap(false, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::sync_channel;

    use super::*;

    #[test]
    fn many_rings_take_one_place_until_the_engine_has_looked() {
        let (sender, commands) = sync_channel(1);
        let rung = RungFlag::default();
        let bell = Doorbell::new(sender, rung.clone());
        (0..3).for_each(|_| bell.ring());
        assert!(matches!(commands.try_recv(), Ok(Command::Wake)));
        assert!(commands.try_recv().is_err());
        rung.clear();
        bell.ring();
        assert!(matches!(commands.try_recv(), Ok(Command::Wake)));
    }
}
