//! Connections over the network, with TLS where the URL says so.

use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use super::{Client, Connect, Endpoint, Scheme};

/// What a socket holds for a reader who does not read; the system doubles it.
const NARROW_BUFFER_BYTES: u32 = 2048;

/// Whose certificates are believed.
#[derive(Debug, Clone, Default, PartialEq)]
pub enum Trust {
    /// Mozilla's list.
    #[default]
    PublicAuthorities,
    /// The certificates of one PEM file and no others.
    Only(PathBuf),
}

#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    #[error("{}: {reason}", file.display())]
    File { file: PathBuf, reason: String },
    #[error("`{0}` is no name that a certificate could have")]
    Name(String),
}

/// To one server.
#[derive(Debug, Clone)]
pub struct Network {
    address: String,
    tls: Option<Tls>,
}

#[derive(Clone)]
struct Tls {
    connector: TlsConnector,
    name: ServerName<'static>,
}

#[derive(Debug)]
pub enum Wire {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Network {
    /// Reads `trust` only where the endpoint speaks TLS.
    pub fn to(endpoint: &Endpoint, trust: &Trust) -> Result<Self, TrustError> {
        let tls = match endpoint.scheme {
            Scheme::Http => None,
            Scheme::Https => Some(Tls::new(endpoint.host(), trust)?),
        };
        Ok(Self { address: endpoint.authority.clone(), tls })
    }

    fn plain(endpoint: &Endpoint) -> Self {
        Self { address: endpoint.authority.clone(), tls: None }
    }

    async fn dress(&self, stream: TcpStream) -> io::Result<Wire> {
        let Some(Tls { connector, name }) = &self.tls else { return Ok(Wire::Plain(stream)) };
        Ok(Wire::Tls(Box::new(connector.connect(name.clone(), stream).await?)))
    }
}

impl Client<Network> {
    /// Without TLS.
    pub fn plain(endpoint: Endpoint) -> Self {
        Self::new(Network::plain(&endpoint), endpoint)
    }
}

impl Connect for Network {
    type Stream = Wire;

    async fn connect(&self) -> io::Result<Wire> {
        let stream = TcpStream::connect(&self.address).await?;
        stream.set_nodelay(true)?;
        self.dress(stream).await
    }

    async fn connect_narrow(&self) -> io::Result<Wire> {
        let mut addresses = tokio::net::lookup_host(&self.address).await?;
        let address = addresses.next().ok_or(io::ErrorKind::NotFound)?;
        let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        socket.set_recv_buffer_size(NARROW_BUFFER_BYTES)?;
        self.dress(socket.connect(address).await?).await
    }
}

impl Tls {
    fn new(host: &str, trust: &Trust) -> Result<Self, TrustError> {
        let name = ServerName::try_from(host.to_owned()).map_err(|_| TrustError::Name(host.to_owned()))?;
        // HTTP/1.1 is what this instrument speaks, also to servers that would rather have HTTP/2.
        let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("ring speaks TLS 1.2 and 1.3")
            .with_root_certificates(trust.authorities()?)
            .with_no_client_auth();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self { connector: TlsConnector::from(Arc::new(config)), name })
    }
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, formatter: &mut std::fmt::Formatter) -> std::fmt::Result {
        formatter.debug_struct("Tls").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Trust {
    fn authorities(&self) -> Result<RootCertStore, TrustError> {
        match self {
            Self::PublicAuthorities => Ok(RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() }),
            Self::Only(file) => {
                read_authorities(file).map_err(|reason| TrustError::File { file: file.clone(), reason })
            }
        }
    }
}

fn read_authorities(file: &Path) -> Result<RootCertStore, String> {
    let mut store = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(file).map_err(|error| error.to_string())? {
        store.add(certificate.map_err(|error| error.to_string())?).map_err(|error| error.to_string())?;
    }
    if store.is_empty() { Err("holds no certificate".to_owned()) } else { Ok(store) }
}

impl AsyncRead for Wire {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context, buffer: &mut ReadBuf) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(context, buffer),
            Self::Tls(stream) => Pin::new(stream).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for Wire {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(context, bytes),
            Self::Tls(stream) => Pin::new(stream).poll_write(context, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(context),
            Self::Tls(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(context),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }
}
