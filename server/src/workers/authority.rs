//! The gateway's own authority over workers on other machines. It vouches for the gateway and for the worker of each
//! partition, so that neither talks to a stranger.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose, date_time_ymd};
use sha2::{Digest, Sha256};
use tempfile::NamedTempFile;

/// Under which the gateway proves itself, wherever it is.
pub(super) const GATEWAY_NAME: &str = "gateway.passerelle.internal";

const AUTHORITY_KEY: &str = "workers-ca.key";
const AUTHORITY_CERTIFICATE: &str = "workers-ca.pem";
/// In a folder of [`Credentials`].
const FILES: [&str; 3] = ["authority.pem", "certificate.pem", "key.pem"];
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// Whoever has its key can make workers.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: String,
}

/// What one end proves itself with, as PEM. The key is never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// Who vouches for both ends.
    pub(super) authority: String,
    pub(super) certificate: String,
    pub(super) key: String,
}

/// A day of the calendar, the last of a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LastDay {
    pub year: i32,
    pub month: u8,
    pub day: u8,
}

#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    #[error("{}: {error}", file.display())]
    File { file: PathBuf, error: io::Error },
    #[error(
        "{}: is missing, and {} is a certificate for it; bring it back, or remove that too and enrol the workers anew",
        key.display(),
        certificate.display()
    )]
    KeyIsLost { key: PathBuf, certificate: PathBuf },
    #[error("a certificate could not be made: {0}")]
    Certificate(#[from] rcgen::Error),
}

impl Authority {
    /// That of a data directory, made if there is none.
    pub fn open(data_dir: &Path) -> Result<Self, AuthorityError> {
        let (key_file, certificate_file) = (data_dir.join(AUTHORITY_KEY), data_dir.join(AUTHORITY_CERTIFICATE));
        if !key_file.exists() {
            if certificate_file.exists() {
                return Err(AuthorityError::KeyIsLost { key: key_file, certificate: certificate_file });
            }
            write_new(&key_file, &KeyPair::generate()?.serialize_pem())?;
        }
        let key = KeyPair::from_pem(&fs::read_to_string(&key_file).map_err(in_file(&key_file))?)?;
        if !certificate_file.exists() {
            write_new(&certificate_file, &authority_params().self_signed(&key)?.pem())?;
        }
        let certificate = fs::read_to_string(&certificate_file).map_err(in_file(&certificate_file))?;
        Ok(Self { issuer: Issuer::new(authority_params(), key), certificate })
    }

    /// For the worker of `partition`, and no other.
    pub fn enrol(&self, partition: &str, until: LastDay) -> Result<Credentials, AuthorityError> {
        self.vouch(&worker_name(partition), until)
    }

    /// For the gateway itself.
    pub fn gateway(&self, until: LastDay) -> Result<Credentials, AuthorityError> {
        self.vouch(GATEWAY_NAME, until)
    }

    fn vouch(&self, name: &str, until: LastDay) -> Result<Credentials, AuthorityError> {
        let mut params = CertificateParams::new(vec![name.to_owned()])?;
        params.distinguished_name.push(DnType::CommonName, name);
        // To the end of the day.
        params.not_after = date_time_ymd(until.year, until.month, until.day) + DAY;
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?.pem();
        Ok(Credentials { authority: self.certificate.clone(), certificate, key: key.serialize_pem() })
    }
}

impl Credentials {
    /// Into a folder, which is made. Errors when there are some already.
    pub fn write(&self, folder: &Path) -> Result<(), AuthorityError> {
        fs::create_dir_all(folder).map_err(in_file(folder))?;
        // All or none: papers of two enrolments do not fit each other.
        if FILES.iter().any(|file| folder.join(file).exists()) {
            let there = "an enrolment is there already; name another folder";
            return Err(in_file(folder)(io::Error::new(io::ErrorKind::AlreadyExists, there)));
        }
        let texts = [&self.authority, &self.certificate, &self.key];
        FILES.iter().zip(texts).try_for_each(|(file, text)| write_new(&folder.join(file), text))
    }

    pub fn read(folder: &Path) -> Result<Self, AuthorityError> {
        let read = |file: &str| {
            let file = folder.join(file);
            fs::read_to_string(&file).map_err(in_file(&file))
        };
        let [authority, certificate, key] = FILES;
        Ok(Self { authority: read(authority)?, certificate: read(certificate)?, key: read(key)? })
    }
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials").field("certificate", &self.certificate).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority").field("certificate", &self.certificate).finish_non_exhaustive()
    }
}

/// Under which the worker of a partition proves itself. A hash, because a partition may be called what no host may.
pub(super) fn worker_name(partition: &str) -> String {
    let hash: [u8; 32] = Sha256::digest(partition).into();
    hash[..16].iter().fold(String::new(), |text, byte| format!("{text}{byte:02x}")) + ".worker.passerelle.internal"
}

fn authority_params() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "Passerelle workers");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params
}

/// The file is there whole, or not at all.
fn write_new(file: &Path, text: &str) -> Result<(), AuthorityError> {
    let write = || {
        let folder = file.parent().unwrap_or(Path::new("."));
        // For its owner only, as every temporary file.
        let mut fresh = NamedTempFile::new_in(folder)?;
        fresh.write_all(text.as_bytes())?;
        fresh.as_file().sync_all()?;
        fresh.persist_noclobber(file)?;
        Ok(())
    };
    write().map_err(in_file(file))
}

fn in_file(file: &Path) -> impl Fn(io::Error) -> AuthorityError + use<> {
    let file = file.to_owned();
    move |error| AuthorityError::File { file: file.clone(), error }
}
