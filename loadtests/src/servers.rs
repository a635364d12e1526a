//! Servers that a drill starts, stops and kills itself.

use std::process::Stdio;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::process::{Child, Command};

use crate::clock::now;
use crate::http::{Client, Endpoint, Request};

/// From its start to its first answer; a large model may be read from a slow disk.
const START_TIMEOUT: Duration = Duration::from_secs(300);
/// From SIGTERM to its end: what runs may finish.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(120);
const POLL_EVERY: Duration = Duration::from_millis(20);

/// How a server is started. `{port}` in an argument becomes a free port of this machine, `{index}` the server's number.
#[derive(Debug, Clone)]
pub struct Launch {
    command: Vec<String>,
}

/// A server that answers. Killed when dropped.
#[derive(Debug)]
pub struct RunningServer {
    child: Child,
    endpoint: Endpoint,
}

/// Several servers of which each can be replaced by a new one.
pub trait Fleet: Send {
    fn size(&self) -> usize;

    /// Ends the server at `index` in the orderly way while the others serve, and starts its successor. Errors when
    /// either did not go in the orderly way.
    fn replace(&mut self, index: usize) -> impl Future<Output = Result<(), ServerError>> + Send;

    /// Kills the server at `index` in the middle of whatever it does, and starts its successor on the same data.
    fn crash(&mut self, index: usize) -> impl Future<Output = Result<(), ServerError>> + Send;
}

#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    #[error("no argument of the server's command holds {{port}}")]
    NoPort,
    #[error("`{program}` does not start: {source}")]
    Start { program: String, source: std::io::Error },
    #[error("the server ended before it answered ({0}); start it by hand to see why")]
    Ended(std::process::ExitStatus),
    #[error("the server did not answer within {} s", START_TIMEOUT.as_secs())]
    Silent,
    #[error("the server did not end within {} s of SIGTERM", DRAIN_TIMEOUT.as_secs())]
    Stuck,
    #[error("the server ended with {0} after SIGTERM")]
    Unclean(std::process::ExitStatus),
    #[error("{0}")]
    Io(#[from] std::io::Error),
}

impl Launch {
    /// Errors when nothing in `command` says which port the server is to listen on.
    pub fn new(command: Vec<String>) -> Result<Self, ServerError> {
        if command.iter().skip(1).any(|argument| argument.contains("{port}")) {
            Ok(Self { command })
        } else {
            Err(ServerError::NoPort)
        }
    }

    /// Starts the server and waits until it lists its models.
    pub async fn start(&self, index: usize) -> Result<RunningServer, ServerError> {
        let port = free_port().await?;
        let (program, arguments) = self.command.split_first().ok_or(ServerError::NoPort)?;
        let fill =
            |argument: &String| argument.replace("{port}", &port.to_string()).replace("{index}", &index.to_string());
        let child = Command::new(program)
            .args(arguments.iter().map(fill))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .map_err(|source| ServerError::Start { program: program.clone(), source })?;
        let endpoint = Endpoint::at(format!("127.0.0.1:{port}"));
        let mut server = RunningServer { child, endpoint };
        server.wait_until_it_answers().await?;
        Ok(server)
    }
}

impl RunningServer {
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    pub fn pid(&self) -> Option<u32> {
        self.child.id()
    }

    /// SIGTERM, then its end with status 0.
    pub async fn terminate(mut self) -> Result<(), ServerError> {
        let Some(pid) = self.child.id() else { return Ok(()) };
        // The standard library sends no other signal than SIGKILL.
        Command::new("kill").args(["-TERM", &pid.to_string()]).status().await?;
        let ended = tokio::time::timeout(DRAIN_TIMEOUT, self.child.wait()).await.map_err(|_| ServerError::Stuck)??;
        if ended.success() { Ok(()) } else { Err(ServerError::Unclean(ended)) }
    }

    /// SIGKILL, and its end.
    pub async fn kill(mut self) -> Result<(), ServerError> {
        Ok(self.child.kill().await?)
    }

    /// Any answer will do: without a key a server may say no, but it says it.
    async fn wait_until_it_answers(&mut self) -> Result<(), ServerError> {
        let client = Client::plain(self.endpoint.clone());
        let models = Request { method: "GET", path: "/v1/models", api_key: None, body: b"" };
        let start = now();
        while start.elapsed() < START_TIMEOUT {
            if let Some(status) = self.child.try_wait()? {
                return Err(ServerError::Ended(status));
            }
            if client.fetch(&models).await.is_ok_and(|(status, _)| status < 500) {
                return Ok(());
            }
            tokio::time::sleep(POLL_EVERY).await;
        }
        Err(ServerError::Silent)
    }
}

/// Another program could take it before the server does; then the server does not start, and says so.
async fn free_port() -> std::io::Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0").await?.local_addr()?.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_without_a_port_is_refused() {
        let command = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect();
        assert!(matches!(Launch::new(command(&["server", "--listen", "here"])), Err(ServerError::NoPort)));
        assert!(Launch::new(command(&["server", "--listen", "127.0.0.1:{port}"])).is_ok());
    }

    #[tokio::test]
    async fn a_server_that_ends_at_once_is_told_from_a_slow_one() {
        let launch = Launch::new(vec!["false".to_owned(), "{port}".to_owned()]).unwrap();
        assert!(matches!(launch.start(0).await, Err(ServerError::Ended(status)) if !status.success()));
        let launch = Launch::new(vec!["no-such-program".to_owned(), "{port}".to_owned()]).unwrap();
        assert!(matches!(launch.start(0).await, Err(ServerError::Start { .. })));
    }
}
