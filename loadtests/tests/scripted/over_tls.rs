//! HTTPS: whom the instrument believes, and whom not.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use passerelle_loadtests::figures::RunFigures;
use passerelle_loadtests::http::{Client, Endpoint, Network, Trust};
use passerelle_loadtests::plan::Keys;
use passerelle_loadtests::run::{RunOptions, run};
use passerelle_loadtests::session::{Session, SessionError};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::PrivatePkcs8KeyDer;

use crate::figures::{MS, scenario};
use crate::server::{Scripted, steady};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_tls_the_same_load_is_served_as_in_the_clear() {
    let folder = tempfile::tempdir().unwrap();
    let served = Served::start(folder.path(), "localhost").await;
    let session = served.session("localhost", Trust::Only(served.certificate.clone())).await.unwrap();
    let plan = session.plan(&scenario("{ kind = 'burst', size = 8, every_s = 1.0 }", 1, "")).await.unwrap();
    let done = run(&session.client, &plan, &RunOptions::default()).await;
    let figures = RunFigures::of(&done, &plan).total;
    assert_eq!((figures.finished, figures.output_tokens), (8, 168), "{:?}", figures.errors);
}

#[tokio::test]
async fn a_certificate_that_is_not_believed_or_has_another_name_is_refused_in_words() {
    let folder = tempfile::tempdir().unwrap();
    let served = Served::start(folder.path(), "localhost").await;
    let refused = |error: SessionError| match error {
        SessionError::Unreachable { source, .. } => source.to_string(),
        other => panic!("{other}"),
    };
    let unknown = refused(served.session("localhost", Trust::PublicAuthorities).await.unwrap_err());
    assert!(unknown.contains("UnknownIssuer"), "{unknown}");
    let misnamed = refused(served.session("127.0.0.1", Trust::Only(served.certificate.clone())).await.unwrap_err());
    assert!(misnamed.contains("not valid for name"), "{misnamed}");
}

#[test]
fn a_file_without_certificates_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("ca.pem");
    std::fs::write(&file, "no certificate").unwrap();
    let endpoint = Endpoint::parse("https://localhost").unwrap();
    let error = Network::to(&endpoint, &Trust::Only(file)).unwrap_err().to_string();
    assert!(error.contains("ca.pem") && error.contains("holds no certificate"), "{error}");
}

/// The scripted server behind TLS, with a certificate of its own for one name.
struct Served {
    port: u16,
    certificate: PathBuf,
}

impl Served {
    async fn start(folder: &Path, name: &str) -> Self {
        let made = rcgen::generate_simple_self_signed([name.to_owned()]).expect("the name is plain");
        let certificate = folder.join("certificate.pem");
        std::fs::write(&certificate, made.cert.pem()).expect("the folder is writable");
        let key = PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("ring speaks TLS 1.2 and 1.3")
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key.into())
            .expect("the key is the certificate's");
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let port = listener.local_addr().expect("it is bound").port();
        let server = Scripted::new(steady(4 * MS, MS));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, server) = (acceptor.clone(), server.clone());
                tokio::spawn(async move {
                    if let Ok(stream) = acceptor.accept(stream).await {
                        server.serve(stream).await;
                    }
                });
            }
        });
        Self { port, certificate }
    }

    async fn session(&self, host: &str, trust: Trust) -> Result<Session<Network>, SessionError> {
        let endpoint = Endpoint::parse(&format!("https://{host}:{}", self.port)).expect("it is a URL");
        let client = Client::new(Network::to(&endpoint, &trust).expect("the file holds a certificate"), endpoint);
        Session::open(client, None, Keys::default(), None).await
    }
}
