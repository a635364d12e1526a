//! TLS in which both ends prove themselves, and nobody else's authority counts.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::rustls::client::verify_server_name;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::{self, PemObject};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use tokio_rustls::rustls::server::{
    NoServerSessionStorage, ParsedCertificate, VerifierBuilderError, WebPkiClientVerifier,
};
use tokio_rustls::rustls::version::TLS13;
use tokio_rustls::rustls::{self, CertificateError, ClientConfig, RootCertStore, ServerConfig};
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};

use super::authority::{Credentials, GATEWAY_NAME, worker_name};

const HTTP2: &[u8] = b"h2";

/// The gateway's end.
#[derive(Clone)]
pub struct GatewayTls(TlsAcceptor);

/// A worker's end.
#[derive(Clone)]
pub struct WorkerTls(TlsConnector);

/// Who dialled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Peer {
    /// A process of the gateway's own user.
    Owner,
    /// Proved itself with this certificate of the gateway's authority.
    Certified(CertificateDer<'static>),
}

#[derive(Debug, thiserror::Error)]
pub enum MutualTlsError {
    #[error("what a worker or gateway proves itself with cannot be read: {0}")]
    Pem(#[from] pem::Error),
    #[error("what a worker or gateway proves itself with cannot be used: {0}")]
    Tls(#[from] rustls::Error),
    #[error("the authority over workers cannot be used: {0}")]
    Authority(#[from] VerifierBuilderError),
    /// Trying again is of no use.
    #[error(
        "the gateway and this worker's certificate do not belong together, or its time is over ({0}): enrol it anew with \
         `passerelle worker enrol`, where the gateway's data directory is"
    )]
    NotEnrolled(rustls::Error),
    #[error("no connection: {0}")]
    Io(#[from] io::Error),
}

impl GatewayTls {
    pub fn new(credentials: &Credentials) -> Result<Self, MutualTlsError> {
        let (roots, chain, key) = parse(credentials)?;
        let provider = Arc::new(ring::default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider)).build()?;
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13])?
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain, key)?;
        config.alpn_protocols = vec![HTTP2.to_vec()];
        // A session that is taken up again brings its certificate along, and nobody looks whether its time is over.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(Self(TlsAcceptor::from(Arc::new(config))))
    }

    /// Shakes hands with a worker.
    pub async fn accept<C: AsyncRead + AsyncWrite + Unpin>(
        &self,
        connection: C,
    ) -> Result<(server::TlsStream<C>, Peer), MutualTlsError> {
        let stream = self.0.accept(connection).await?;
        let certificate = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
        let certificate = certificate.ok_or(rustls::Error::NoCertificatesPresented)?.clone().into_owned();
        Ok((stream, Peer::Certified(certificate)))
    }
}

impl WorkerTls {
    pub fn new(credentials: &Credentials) -> Result<Self, MutualTlsError> {
        let (roots, chain, key) = parse(credentials)?;
        let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_protocol_versions(&[&TLS13])?
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, key)?;
        config.alpn_protocols = vec![HTTP2.to_vec()];
        Ok(Self(TlsConnector::from(Arc::new(config))))
    }

    /// Errors when no gateway of their authority would let a worker in with these now.
    pub fn check(credentials: &Credentials) -> Result<(), MutualTlsError> {
        let verdict = as_a_gateway_would(credentials, UnixTime::now())?;
        verdict.map_err(MutualTlsError::NotEnrolled)
    }

    /// When, since 1970, the time of their certificate is over. `None` where they cannot be read.
    pub fn good_until(credentials: &Credentials) -> Option<Duration> {
        // Asked at the end of all time, the answer names the end of the certificate's.
        let verdict = as_a_gateway_would(credentials, UnixTime::since_unix_epoch(Duration::MAX)).ok()?;
        match verdict {
            Err(rustls::Error::InvalidCertificate(CertificateError::ExpiredContext { not_after, .. })) => {
                Some(Duration::from_secs(not_after.as_secs()))
            }
            _ => None,
        }
    }

    /// Shakes hands with the gateway, whatever it is called in the network.
    pub async fn connect<C: AsyncRead + AsyncWrite + Unpin>(
        &self,
        connection: C,
    ) -> Result<client::TlsStream<C>, MutualTlsError> {
        let gateway = ServerName::try_from(GATEWAY_NAME).map_err(|_| rustls::Error::UnsupportedNameType)?;
        self.0.connect(gateway, connection).await.map_err(not_connected)
    }
}

/// What a gateway of their authority makes of a worker's certificate at that time. Errors when they cannot be read.
fn as_a_gateway_would(credentials: &Credentials, at: UnixTime) -> Result<Result<(), rustls::Error>, MutualTlsError> {
    let (roots, chain, _) = parse(credentials)?;
    let provider = Arc::new(ring::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build()?;
    let certificate = chain.first().ok_or(rustls::Error::NoCertificatesPresented)?;
    Ok(verifier.verify_client_cert(certificate, &[], at).map(|_| ()))
}

/// A gateway of another authority stays one.
fn not_connected(error: io::Error) -> MutualTlsError {
    use CertificateError::{BadSignature, UnknownIssuer};
    let of_tls = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match of_tls {
        Some(reason @ rustls::Error::InvalidCertificate(BadSignature | UnknownIssuer)) => {
            MutualTlsError::NotEnrolled(reason.clone())
        }
        _ => MutualTlsError::Io(error),
    }
}

impl Peer {
    /// Whether it may serve this partition.
    pub(super) fn may_serve(&self, partition: &str) -> bool {
        let Self::Certified(certificate) = self else { return true };
        let name = ServerName::try_from(worker_name(partition));
        let parsed = ParsedCertificate::try_from(certificate);
        matches!((parsed, name), (Ok(parsed), Ok(name)) if verify_server_name(&parsed, &name).is_ok())
    }
}

type Parsed = (RootCertStore, Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

fn parse(credentials: &Credentials) -> Result<Parsed, MutualTlsError> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(credentials.authority.as_bytes())?)?;
    let chain = vec![CertificateDer::from_pem_slice(credentials.certificate.as_bytes())?];
    Ok((roots, chain, PrivateKeyDer::from_pem_slice(credentials.key.as_bytes())?))
}

impl std::fmt::Debug for GatewayTls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("GatewayTls")
    }
}

impl std::fmt::Debug for WorkerTls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("WorkerTls")
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;
    use crate::workers::{Authority, LastDay};

    const LAST_DAY: LastDay = LastDay { year: 2999, month: 12, day: 31 };
    const LONG_AGO: LastDay = LastDay { year: 1999, month: 12, day: 31 };

    fn authority() -> Authority {
        let folder = tempfile::tempdir().expect("a temporary folder");
        Authority::open(folder.path()).expect("the folder is writable")
    }

    /// Whom the gateway sees, if both ends take each other for what they should be.
    async fn meet(gateway: &Credentials, worker: &Credentials) -> Result<Peer, MutualTlsError> {
        let (here, there) = duplex(1 << 14);
        let worker = WorkerTls::new(worker)?;
        let dialled = tokio::spawn(async move {
            let mut stream = worker.connect(there).await?;
            stream.write_all(b"x").await?;
            // The gateway's verdict on the certificate comes after the handshake, as far as a client can tell.
            stream.read_u8().await?;
            Ok::<_, MutualTlsError>(())
        });
        let (mut stream, peer) = GatewayTls::new(gateway)?.accept(here).await?;
        stream.read_u8().await?;
        stream.write_all(b"y").await?;
        stream.flush().await?;
        dialled.await.expect("no panic")?;
        Ok(peer)
    }

    #[tokio::test]
    async fn an_enrolled_worker_may_serve_its_partition_and_no_other() {
        let authority = authority();
        let [gateway, worker] =
            [authority.gateway(LAST_DAY), authority.enrol("Größe a/b", LAST_DAY)].map(|made| made.expect("made"));
        let peer = meet(&gateway, &worker).await.expect("they know each other");
        assert!(peer.may_serve("Größe a/b"));
        assert!(!peer.may_serve("b") && !peer.may_serve(""));
        assert!(Peer::Owner.may_serve("b"));
    }

    #[tokio::test]
    async fn the_certificate_of_a_worker_that_was_there_before_is_looked_at_anew() {
        let authority = authority();
        let made = |made: Result<Credentials, _>| made.expect("made");
        let gateway = GatewayTls::new(&made(authority.gateway(LAST_DAY))).expect("usable");
        let worker = WorkerTls::new(&made(authority.enrol("a", LAST_DAY))).expect("usable");
        for _ in 0..2 {
            let (here, there) = duplex(1 << 14);
            let worker = worker.clone();
            let dialled = tokio::spawn(async move {
                let mut stream = worker.connect(there).await?;
                stream.write_all(b"x").await?;
                // What a session could be taken up again with comes before this.
                stream.read_u8().await?;
                Ok::<_, MutualTlsError>(())
            });
            let (mut stream, _) = gateway.accept(here).await.expect("it is known");
            assert_ne!(stream.get_ref().1.handshake_kind(), Some(rustls::HandshakeKind::Resumed));
            stream.read_u8().await.expect("it says something");
            stream.write_all(b"y").await.expect("it listens");
            stream.flush().await.expect("it listens");
            dialled.await.expect("no panic").expect("it is let in");
        }
    }

    #[tokio::test]
    async fn a_stranger_and_one_whose_time_is_over_are_not_let_in_and_no_worker_serves_a_stranger() {
        let (authority, other) = (self::authority(), self::authority());
        let made = |made: Result<Credentials, _>| made.expect("made");
        let (gateway, worker) = (made(authority.gateway(LAST_DAY)), made(authority.enrol("a", LAST_DAY)));
        let stranger = Credentials { authority: gateway.authority.clone(), ..made(other.enrol("a", LAST_DAY)) };
        assert!(meet(&gateway, &stranger).await.is_err());
        assert!(meet(&gateway, &made(authority.enrol("a", LONG_AGO))).await.is_err());
        let impostor = Credentials { authority: gateway.authority.clone(), ..made(other.gateway(LAST_DAY)) };
        let today = jiff::Timestamp::now().to_zoned(jiff::tz::TimeZone::UTC).date();
        let (month, day) = (today.month().unsigned_abs(), today.day().unsigned_abs());
        let today = LastDay { year: i32::from(today.year()), month, day };
        assert!(meet(&gateway, &made(authority.enrol("a", today))).await.is_ok(), "good to the end of its last day");
        assert!(meet(&impostor, &worker).await.is_err());
        assert!(meet(&worker, &made(authority.enrol("b", LAST_DAY))).await.is_err(), "a worker is no gateway");
    }

    #[tokio::test]
    async fn papers_that_can_never_work_are_told_from_a_gateway_that_is_away() {
        let (authority, other) = (self::authority(), self::authority());
        let made = |made: Result<Credentials, _>| made.expect("made");
        let worker = made(authority.enrol("a", LAST_DAY));
        WorkerTls::check(&worker).expect("they are good");
        let is_final = |error| matches!(error, MutualTlsError::NotEnrolled(_));
        let refused = |papers: &Credentials| WorkerTls::check(papers).is_err_and(is_final);
        assert!(refused(&made(authority.enrol("a", LONG_AGO))), "its time is over");
        assert!(refused(&Credentials { authority: worker.authority.clone(), ..made(other.enrol("a", LAST_DAY)) }));
        let (here, there) = duplex(1 << 14);
        let gateway = GatewayTls::new(&made(other.gateway(LAST_DAY))).expect("usable");
        let accepts = tokio::spawn(async move { gateway.accept(here).await.is_err() });
        let error = WorkerTls::new(&worker).expect("usable").connect(there).await.expect_err("of another authority");
        assert!(is_final(error) && accepts.await.expect("no panic"));
        let (_, nobody) = duplex(1);
        let error = WorkerTls::new(&worker).expect("usable").connect(nobody).await.expect_err("nobody is there");
        assert!(!is_final(error));
    }

    #[test]
    fn the_end_of_a_certificates_time_is_known_beforehand_and_afterwards_it_is_said_what_to_type() {
        let authority = authority();
        let made = |last_day| authority.enrol("a", last_day).expect("made");
        // `date --utc --date 3000-01-01 +%s` and `2000-01-01`: a last day counts whole.
        assert_eq!(WorkerTls::good_until(&made(LAST_DAY)), Some(Duration::from_secs(32_503_680_000)));
        assert_eq!(WorkerTls::good_until(&made(LONG_AGO)), Some(Duration::from_secs(946_684_800)));
        let torn = Credentials { certificate: String::new(), ..made(LAST_DAY) };
        assert_eq!(WorkerTls::good_until(&torn), None);
        let said = WorkerTls::check(&made(LONG_AGO)).expect_err("its time is over").to_string();
        assert!(said.contains("`passerelle worker enrol`"), "{said}");
    }

    #[test]
    fn the_authority_of_a_data_directory_stays_the_same_and_its_keys_are_for_its_owner_only() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().expect("a temporary folder");
        let made = Authority::open(folder.path()).expect("the folder is writable");
        let worker = made.enrol("a", LAST_DAY).expect("made");
        let again = Authority::open(folder.path()).expect("it is there").enrol("a", LAST_DAY).expect("made");
        assert_eq!(worker.authority, again.authority);
        let papers = folder.path().join("papers");
        worker.write(&papers).expect("the folder is writable");
        assert_eq!(Credentials::read(&papers).expect("they are there"), worker);
        assert!(again.write(&papers).is_err(), "nothing is written over");
        for file in ["workers-ca.key", "papers/key.pem"] {
            let mode = folder.path().join(file).metadata().expect("it is there").permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{file}");
        }
    }

    #[test]
    fn an_authority_that_lost_its_key_says_which_file_is_missing() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        Authority::open(folder.path()).expect("the folder is writable");
        std::fs::remove_file(folder.path().join("workers-ca.key")).expect("it is there");
        let said = Authority::open(folder.path()).expect_err("another key would not fit").to_string();
        assert!(said.contains("workers-ca.key: is missing") && said.contains("workers-ca.pem is a cert"), "{said}");
    }
}
