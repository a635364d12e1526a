//! Who goes first where the system has no memory left.

use std::process::{Child, Command};
use std::{fs, io};

/// Linux kills whoever holds the most, to which it adds so many thousandths of all memory: this one goes before every process
/// that does not say the same.
const FIRST: &str = "1000";

/// Starts a worker, which goes before the server that starts it and can start another. Its server says so: where there is no
/// memory to start in, the worker itself would say it too late. Where nobody can be told, the largest goes.
pub(super) fn spawn_first_to_go(worker: &mut Command) -> io::Result<Child> {
    let child = worker.spawn()?;
    if let Err(error) = fs::write(format!("/proc/{}/oom_score_adj", child.id()), FIRST) {
        tracing::debug!(%error, "the system chooses by size alone who goes when memory runs out");
    }
    Ok(child)
}

#[cfg(test)]
mod tests {
    use std::process::Stdio;

    use super::*;

    #[test]
    fn a_worker_goes_first_from_its_start_on_and_its_server_as_before() {
        let order = |process: &str| -> String {
            let said = fs::read_to_string(format!("/proc/{process}/oom_score_adj")).expect("Linux tells it");
            said.trim().to_owned()
        };
        let own = order("self");
        // It ends with its input.
        let mut worker = spawn_first_to_go(Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::null()))
            .expect("every system has it");
        let said = order(&worker.id().to_string());
        drop(worker.stdin.take());
        worker.wait().expect("it was started here");
        assert_eq!((said.as_str(), order("self")), (FIRST, own));
    }
}
