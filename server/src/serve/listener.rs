//! Takes the address before the models are loaded, so that a taken one is found out at once, and listens after.

use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener as StdUnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use passerelle::api::{Listener, Tls, UnixSocket};
use passerelle::config::Listen;
use tokio::net::{TcpSocket, UnixListener};

/// Connections that the system queues while none is accepted.
const BACKLOG: u32 = 1024;
const OWNER_ONLY: u32 = 0o600;
/// After a failed `accept` (no file descriptors left), so that the loop does not spin.
pub(super) const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// An address that nobody else can take any more. Nothing listens on it yet.
pub(crate) enum Reserved {
    Tcp(TcpSocket),
    Unix(PathBuf),
}

pub(crate) fn reserve(listen: &Listen) -> Result<Reserved> {
    match listen {
        Listen::Tcp(address) => bind(*address).map(Reserved::Tcp).map_err(|error| {
            let mend = match error.kind() {
                io::ErrorKind::AddrNotAvailable => "choose an address that this machine has",
                io::ErrorKind::PermissionDenied => "choose a port above 1023",
                _ => "stop what uses it, or choose another port",
            };
            anyhow!(error).context(format!("server.listen (--listen): cannot take {address}; {mend}"))
        }),
        Listen::Unix(path) => {
            let folder = folder_of(path);
            if !folder.is_dir() {
                bail!(
                    "server.listen (--listen): there is no folder {}; make it, or choose another path",
                    folder.display()
                );
            }
            clear(path)?;
            Ok(Reserved::Unix(path.clone()))
        }
    }
}

impl Reserved {
    /// Inside the runtime. Returns what clients write.
    pub(crate) fn listen(self, tls: Option<Tls>) -> Result<(Listener, String)> {
        match self {
            Self::Tcp(socket) => {
                let listener = socket.listen(BACKLOG).context("cannot listen")?;
                let address = listener.local_addr()?;
                Ok(match tls {
                    None => (Listener::Tcp(listener), format!("http://{address}")),
                    Some(tls) => (Listener::Tls(listener, tls), format!("https://{address}")),
                })
            }
            Self::Unix(path) => {
                let listener = listen_unix(&path).with_context(|| format!("cannot listen on {}", path.display()))?;
                let url = format!("unix:{}", path.display());
                Ok((Listener::Unix(UnixSocket::new(listener, path)?), url))
            }
        }
    }
}

fn bind(address: SocketAddr) -> io::Result<TcpSocket> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    // A restart must not wait until the connections of the last run are forgotten.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    Ok(socket)
}

fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Removes the socket that a killed server left; refuses to touch anything else.
fn clear(path: &Path) -> Result<()> {
    let metadata = match path.symlink_metadata() {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error).with_context(|| format!("cannot look at {}", path.display())),
    };
    if !metadata.file_type().is_socket() {
        bail!("server.listen (--listen): {} exists and is no socket; choose another path", path.display());
    }
    if UnixStream::connect(path).is_ok() {
        bail!(
            "server.listen (--listen): a server listens on {} already; stop it, or choose another path",
            path.display()
        );
    }
    std::fs::remove_file(path).with_context(|| format!("cannot remove the old socket {}", path.display()))
}

/// A socket for connections of this process's own user. What is at `path` may be taken away: whoever calls holds the
/// right to the folder, so it was left by a process that is no more.
pub(super) fn listen_to_owner(path: &Path) -> io::Result<Listener> {
    remove_left_over(path)?;
    Ok(Listener::Owner(UnixSocket::new(listen_unix(path)?, path.to_owned())?))
}

/// Of a process that is no more. No file is no error.
pub(super) fn remove_left_over(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// The socket is made in a folder that only its owner can enter and linked to its place when its mode is right, so that
/// there is no moment in which somebody else could connect. A link, because it fails where another server's socket is.
pub(super) fn listen_unix(path: &Path) -> io::Result<UnixListener> {
    let private = tempfile::Builder::new().prefix(".p").rand_bytes(4).tempdir_in(folder_of(path))?;
    let made = private.path().join("s");
    let listener = StdUnixListener::bind(&made)?;
    std::fs::set_permissions(&made, PermissionsExt::from_mode(OWNER_ONLY))?;
    std::fs::hard_link(&made, path)?;
    listener.set_nonblocking(true)?;
    UnixListener::from_std(listener)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_taken_port_is_refused_before_anything_is_loaded() {
        let other = std::net::TcpListener::bind("127.0.0.1:0").expect("loopback has free ports");
        let address = other.local_addr().expect("it is bound");
        let error = reserve(&Listen::Tcp(address)).err().expect("the port is taken");
        assert!(error.to_string().contains("--listen"), "{error}");
    }

    #[test]
    fn a_socket_without_a_folder_is_refused_before_anything_is_loaded() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("nowhere/p.sock");
        let error = reserve(&Listen::Unix(path)).err().expect("the folder is not there").to_string();
        assert!(error.contains("--listen") && error.contains("nowhere"), "{error}");
    }

    #[tokio::test]
    async fn a_socket_is_for_its_owner_only_and_removed_at_the_end() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("p.sock");
        let (listener, url) =
            reserve(&Listen::Unix(path.clone())).and_then(|reserved| reserved.listen(None)).expect("the path is free");
        assert_eq!(url, format!("unix:{}", path.display()));
        assert_eq!(path.metadata().expect("it is there").permissions().mode() & 0o777, 0o600);
        assert!(UnixStream::connect(&path).is_ok());
        assert_eq!(std::fs::read_dir(folder.path()).expect("readable").count(), 1, "nothing else is left behind");
        drop(listener);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn of_two_servers_that_start_together_one_gets_the_path_and_keeps_it() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("p.sock");
        let [first, second] = [0; 2].map(|_| reserve(&Listen::Unix(path.clone())).expect("nobody listens there yet"));
        let (first, _) = first.listen(None).expect("the path is free");
        assert!(second.listen(None).is_err());
        assert!(UnixStream::connect(&path).is_ok(), "the second took nothing away");
        std::fs::remove_file(&path).expect("the folder is writable");
        let successor = StdUnixListener::bind(&path).expect("the path is free");
        drop(first);
        assert!(path.exists(), "what somebody else put there is not removed");
        drop(successor);
    }

    #[tokio::test]
    async fn an_administration_socket_is_for_its_owner_and_replaces_what_a_killed_server_left() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("admin.sock");
        drop(StdUnixListener::bind(&path).expect("the path is free"));
        let listener = listen_to_owner(&path).expect("nobody listens there");
        assert_eq!(path.metadata().expect("it is there").permissions().mode() & 0o777, 0o600);
        assert!(UnixStream::connect(&path).is_ok());
        drop(listener);
        assert!(!path.exists());
    }

    #[test]
    fn a_dead_socket_is_replaced_and_a_living_one_is_not() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("p.sock");
        let living = StdUnixListener::bind(&path).expect("the path is free");
        assert!(reserve(&Listen::Unix(path.clone())).is_err());
        drop(living);
        assert!(path.exists(), "a killed server leaves its socket");
        reserve(&Listen::Unix(path.clone())).expect("nobody listens there");
    }

    #[test]
    fn a_file_is_never_replaced_by_a_socket() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("thesis.txt");
        std::fs::write(&path, "years of work").expect("the folder is writable");
        assert!(reserve(&Listen::Unix(path.clone())).is_err());
        assert_eq!(std::fs::read_to_string(&path).expect("it is still there"), "years of work");
    }
}
