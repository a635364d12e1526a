//! One address before several servers, as an operator's load balancer is: it knows connections, not requests.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use crate::clock::now;
use crate::http::Endpoint;

/// How long a new connection waits for a server that takes it.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);
const RETRY_EVERY: Duration = Duration::from_millis(10);

/// Listens on a port of its own until it is dropped.
#[derive(Debug)]
pub struct Balancer {
    endpoint: Endpoint,
    servers: Servers,
    listening: JoinHandle<()>,
}

/// Where connections go. A place holds `None` while its server is away.
#[derive(Debug, Clone)]
struct Servers {
    addresses: Arc<Mutex<Vec<Option<String>>>>,
    next: Arc<AtomicUsize>,
}

impl Balancer {
    /// Places for `count` servers, all empty.
    pub async fn bind(count: usize) -> std::io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let endpoint = Endpoint::at(listener.local_addr()?.to_string());
        let servers = Servers { addresses: Arc::new(Mutex::new(vec![None; count])), next: Arc::default() };
        let listening = tokio::spawn(listen(listener, servers.clone()));
        Ok(Self { endpoint, servers, listening })
    }

    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// New connections may go to `authority` (`host:port`).
    pub fn put(&self, index: usize, authority: &str) {
        self.servers.set(index, Some(authority.to_owned()));
    }

    /// No new connection goes there; those that are open stay.
    pub fn take_out(&self, index: usize) {
        self.servers.set(index, None);
    }
}

impl Drop for Balancer {
    fn drop(&mut self) {
        self.listening.abort();
    }
}

impl Servers {
    fn set(&self, index: usize, address: Option<String>) {
        self.addresses.lock().unwrap_or_else(PoisonError::into_inner)[index] = address;
    }

    /// The servers that are there, beginning with another one each time.
    fn in_turn(&self) -> Vec<String> {
        let addresses = self.addresses.lock().unwrap_or_else(PoisonError::into_inner);
        let mut present: Vec<String> = addresses.iter().flatten().cloned().collect();
        if !present.is_empty() {
            let first = self.next.fetch_add(1, Ordering::Relaxed) % present.len();
            present.rotate_left(first);
        }
        present
    }

    async fn connect(&self) -> Option<TcpStream> {
        let start = now();
        while start.elapsed() < CONNECT_TIMEOUT {
            for address in self.in_turn() {
                if let Ok(stream) = TcpStream::connect(&address).await {
                    return Some(stream);
                }
            }
            tokio::time::sleep(RETRY_EVERY).await;
        }
        None
    }
}

async fn listen(listener: TcpListener, servers: Servers) {
    while let Ok((client, _)) = listener.accept().await {
        tokio::spawn(carry(client, servers.clone()));
    }
}

/// Bytes in both directions until either side ends. Without a server the client's connection is closed.
async fn carry(mut client: TcpStream, servers: Servers) {
    let Some(mut server) = servers.connect().await else { return };
    // Nagle's algorithm would hold back the small events of a stream.
    let _ = client.set_nodelay(true).and(server.set_nodelay(true));
    // How a connection ends is for the two ends to judge.
    let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;

    use super::*;

    /// Says its name to everybody who connects.
    async fn named(name: &'static str) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::io::AsyncWriteExt::write_all(&mut stream, name.as_bytes()).await.unwrap();
            }
        });
        address
    }

    async fn who_answers(balancer: &Balancer) -> String {
        let mut stream = TcpStream::connect(&balancer.endpoint().authority).await.unwrap();
        let mut name = String::new();
        stream.read_to_string(&mut name).await.unwrap();
        name
    }

    #[tokio::test]
    async fn connections_go_to_the_servers_that_are_there() {
        let balancer = Balancer::bind(2).await.unwrap();
        balancer.put(0, &named("a").await);
        balancer.put(1, &named("b").await);
        let mut both = [who_answers(&balancer).await, who_answers(&balancer).await];
        both.sort();
        assert_eq!(both, ["a", "b"]);
        balancer.take_out(0);
        assert_eq!([who_answers(&balancer).await, who_answers(&balancer).await], ["b", "b"]);
    }

    #[tokio::test]
    async fn a_server_that_refuses_is_passed_over() {
        let balancer = Balancer::bind(2).await.unwrap();
        let gone = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().to_string();
        balancer.put(0, &gone);
        balancer.put(1, &named("b").await);
        assert_eq!([who_answers(&balancer).await, who_answers(&balancer).await], ["b", "b"]);
    }
}
