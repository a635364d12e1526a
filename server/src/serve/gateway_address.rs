//! The way from a worker to its gateway.

use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use passerelle::workers::{Credentials, Dialled, MutualTlsError, WorkerTls, dial};
use passerelle_engine::clock::Clock;
use tokio::net::{TcpStream, UnixStream};
use tokio::time::sleep;

const HOUR: Duration = Duration::from_secs(60 * 60);
/// A certificate whose time is over so soon is spoken of, and so often.
const NEARLY_OVER: Duration = Duration::from_secs(7 * 24 * 60 * 60);
const REMIND_EVERY: Duration = Duration::from_secs(24 * 60 * 60);

/// Where a worker's gateway is.
#[derive(Debug, Clone)]
pub(crate) enum GatewayAddress {
    /// On this machine, of the same user.
    Unix(PathBuf),
    /// HOST:PORT, and the folder of what both ends prove themselves with.
    Tcp { address: String, credentials: PathBuf },
}

impl GatewayAddress {
    /// Errors when no gateway would let a worker in that comes with this.
    pub(super) fn check(&self) -> Result<()> {
        match self {
            Self::Unix(_) => Ok(()),
            Self::Tcp { credentials, .. } => proof(credentials).map(|_| ()),
        }
    }

    pub(super) async fn dial(&self) -> Result<Dialled> {
        match self {
            Self::Unix(path) => {
                let stream = UnixStream::connect(path).await;
                Ok(dial(stream.with_context(|| format!("cannot reach {}", path.display()))?).await?)
            }
            Self::Tcp { address, credentials } => {
                let tls = proof(credentials)?;
                let stream = TcpStream::connect(address).await.with_context(|| format!("cannot reach {address}"))?;
                // Tokens are small and must not wait for each other.
                stream.set_nodelay(true)?;
                Ok(dial(tls.connect(stream).await?).await?)
            }
        }
    }

    /// Says once a day that the time of the worker's certificate is nearly over. A connection that is there outlives it,
    /// and the next one would be refused.
    pub(super) async fn remind(&self, partition: &str, clock: &dyn Clock) -> Infallible {
        loop {
            if let Some(said) = self.good_until().and_then(|end| reminder(end.saturating_sub(clock.wall()))) {
                tracing::warn!(partition, "{said}");
            }
            sleep(REMIND_EVERY).await;
        }
    }

    fn good_until(&self) -> Option<Duration> {
        match self {
            Self::Unix(_) => None,
            Self::Tcp { credentials, .. } => WorkerTls::good_until(&Credentials::read(credentials).ok()?),
        }
    }
}

/// Read anew for each dial: a worker that was enrolled anew into the same folder goes on without a restart.
fn proof(folder: &Path) -> Result<WorkerTls> {
    let credentials = Credentials::read(folder)?;
    WorkerTls::check(&credentials).context("--credentials")?;
    Ok(WorkerTls::new(&credentials)?)
}

/// Whether dialling again with the same certificate is of no use.
pub(super) fn needs_enrolment(error: &anyhow::Error) -> bool {
    let mut chain = error.chain();
    chain.any(|error| matches!(error.downcast_ref::<MutualTlsError>(), Some(MutualTlsError::NotEnrolled(_))))
}

/// Of a certificate that is good for so long.
fn reminder(left: Duration) -> Option<String> {
    let hours = left.as_secs() / HOUR.as_secs();
    let enrol = "enrol it anew with `passerelle worker enrol`, and put the files in the place of the old ones";
    if left.is_zero() {
        Some(format!("this worker's certificate is over: it serves until its connection ends, and no longer; {enrol}"))
    } else if left < NEARLY_OVER {
        Some(format!("this worker's certificate is good for {hours} hours more; {enrol}"))
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use passerelle::workers::{Authority, LastDay};

    use super::*;

    #[tokio::test]
    async fn a_certificate_whose_time_is_over_by_the_next_dial_ends_the_worker_and_a_new_one_in_its_place_is_taken() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let authority = Authority::open(folder.path()).expect("the folder is writable");
        let papers = folder.path().join("papers");
        let enrol = |year| {
            // The first time, there is nothing.
            let _ = fs::remove_dir_all(&papers);
            let made = authority.enrol("far", LastDay { year, month: 12, day: 31 });
            made.and_then(|made| made.write(&papers)).expect("the folder is writable");
        };
        // Bound, so that nobody else gets the port, and not listened on.
        let nobody = tokio::net::TcpSocket::new_v4().expect("a socket");
        nobody.bind(([127, 0, 0, 1], 0).into()).expect("a free port");
        let address = nobody.local_addr().expect("it is bound").to_string();
        let gateway = GatewayAddress::Tcp { address, credentials: papers.clone() };
        enrol(2999);
        gateway.check().expect("it is good");
        assert!(!needs_enrolment(&gateway.dial().await.expect_err("nobody is there")), "it is dialled again");
        enrol(1999);
        let error = gateway.dial().await.expect_err("its time is over");
        assert!(needs_enrolment(&error), "{error:#}");
        assert!(format!("{error:#}").contains("`passerelle worker enrol`"), "{error:#}");
        assert!(gateway.good_until().is_some_and(|end| end < Duration::from_secs(946_684_801)), "it ended with 1999");
        enrol(2999);
        assert!(!needs_enrolment(&gateway.dial().await.expect_err("nobody is there")));
    }

    #[test]
    fn a_certificate_is_spoken_of_a_week_before_its_end() {
        assert_eq!(reminder(NEARLY_OVER), None);
        let soon = reminder(49 * HOUR).expect("it is said");
        assert!(soon.contains("49 hours") && soon.contains("`passerelle worker enrol`"), "{soon}");
        let over = reminder(Duration::ZERO).expect("it is said");
        assert!(over.contains("is over") && over.contains("`passerelle worker enrol`"), "{over}");
    }
}
