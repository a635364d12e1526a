use std::path::{Path, PathBuf};

use super::checked::check_exists;
use super::{ConfigError, Listen};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

pub(super) fn check_tls(
    certificate: Option<PathBuf>,
    key: Option<PathBuf>,
    listen: &Listen,
) -> Result<Option<TlsFiles>, ConfigError> {
    let (certificate, key) = match (certificate, key) {
        (None, None) => return Ok(None),
        (Some(certificate), Some(key)) => (certificate, key),
        (None, Some(_)) => {
            return Err(ConfigError::value("server.tls_certificate", "is missing beside server.tls_key"));
        }
        (Some(_), None) => {
            return Err(ConfigError::value("server.tls_key", "is missing beside server.tls_certificate"));
        }
    };
    if matches!(listen, Listen::Unix(_)) {
        return Err(ConfigError::value("server.tls_certificate", "a Unix socket is served without TLS"));
    }
    check_exists("server.tls_certificate", &certificate, Path::is_file)?;
    check_exists("server.tls_key", &key, Path::is_file)?;
    Ok(Some(TlsFiles { certificate, key }))
}
