//! Ed25519 keys as everybody keeps them: PKCS #8 and SubjectPublicKeyInfo in PEM (RFC 8410), as `openssl genpkey -algorithm
//! ed25519` writes them too.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ring::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use tokio_rustls::rustls::pki_types::pem::{self, PemObject};
use tokio_rustls::rustls::pki_types::{PrivatePkcs8KeyDer, SubjectPublicKeyInfoDer};

/// What stands before the 32 bytes of a private key (RFC 8410, section 7).
const PRIVATE_HEAD: [u8; 16] = [0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20];
/// What stands before the 32 bytes of a public key (RFC 8410, section 4).
const PUBLIC_HEAD: [u8; 12] = [0x30, 0x2a, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 3, 0x21, 0];
const KEY_BYTES: usize = 32;
const PEM_LINE: usize = 64;

/// Signs. Its file is for its owner alone.
pub struct SigningKey(Ed25519KeyPair);

/// Tells what the other half has signed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublicKey([u8; KEY_BYTES]);

#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    #[error("{}: is no {half} key in PEM: {problem}", file.display())]
    Pem { file: PathBuf, half: &'static str, problem: pem::Error },
    #[error("{}: holds no {half} key in PEM", file.display())]
    NotInside { file: PathBuf, half: &'static str },
    #[error("{}: is not an Ed25519 key; `passerelle sign --new-key FILE` makes one", .0.display())]
    OtherKind(PathBuf),
    #[error("{}", file.display())]
    Io { file: PathBuf, source: io::Error },
    #[error("{} is there already, so neither key was written; give another name, or sign with --key", .0.display())]
    Exists(PathBuf),
    #[error("the system gave no random numbers: {0}")]
    Random(getrandom::Error),
}

impl SigningKey {
    pub fn load(file: &Path) -> Result<Self, KeyError> {
        let der = PrivatePkcs8KeyDer::from_pem_file(file).map_err(|problem| of_pem(file, "private", problem))?;
        let pair = Ed25519KeyPair::from_pkcs8_maybe_unchecked(der.secret_pkcs8_der());
        pair.map(Self).map_err(|_| KeyError::OtherKind(file.to_owned()))
    }

    /// A new one, in `file` and, its public half, in `file.pub`; neither must exist. Returns where that half is. An error
    /// leaves neither behind.
    pub fn create(file: &Path) -> Result<PathBuf, KeyError> {
        let mut seed = [0; KEY_BYTES];
        getrandom::fill(&mut seed).map_err(KeyError::Random)?;
        let pair = Ed25519KeyPair::from_seed_unchecked(&seed).map_err(|_| KeyError::OtherKind(file.to_owned()))?;
        let mut public = file.as_os_str().to_owned();
        public.push(".pub");
        let public = PathBuf::from(public);
        // Also a link to nowhere.
        if let Some(there) = [file, &public].into_iter().find(|path| path.symlink_metadata().is_ok()) {
            return Err(KeyError::Exists(there.to_owned()));
        }
        write_pem(file, 0o600, "PRIVATE KEY", &[&PRIVATE_HEAD[..], &seed].concat())?;
        let written = write_pem(&public, 0o644, "PUBLIC KEY", &[&PUBLIC_HEAD[..], pair.public_key().as_ref()].concat());
        // A private key without the other half is of no use to anybody but a thief.
        written.inspect_err(|_| drop(fs::remove_file(file)))?;
        Ok(public)
    }

    pub(super) fn sign(&self, message: &[u8]) -> Vec<u8> {
        self.0.sign(message).as_ref().to_vec()
    }
}

impl PublicKey {
    pub fn load(file: &Path) -> Result<Self, KeyError> {
        let der = SubjectPublicKeyInfoDer::from_pem_file(file).map_err(|problem| of_pem(file, "public", problem))?;
        let key = der.as_ref().strip_prefix(&PUBLIC_HEAD[..]).and_then(|key| key.try_into().ok());
        key.map(Self).ok_or_else(|| KeyError::OtherKind(file.to_owned()))
    }

    pub(super) fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        UnparsedPublicKey::new(&ED25519, &self.0).verify(message, signature).is_ok()
    }
}

impl std::fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SigningKey")
    }
}

/// `half`: the one that was looked for.
fn of_pem(file: &Path, half: &'static str, problem: pem::Error) -> KeyError {
    let file = file.to_owned();
    match problem {
        pem::Error::Io(source) => KeyError::Io { file, source },
        pem::Error::NoItemsFound => KeyError::NotInside { file, half },
        problem => KeyError::Pem { file, half, problem },
    }
}

fn write_pem(file: &Path, mode: u32, label: &str, der: &[u8]) -> Result<(), KeyError> {
    let encoded = STANDARD.encode(der);
    let lines: Vec<&str> =
        encoded.as_bytes().chunks(PEM_LINE).filter_map(|line| std::str::from_utf8(line).ok()).collect();
    let text = format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"));
    let at = |source| KeyError::Io { file: file.to_owned(), source };
    let mut created = OpenOptions::new().write(true).create_new(true).mode(mode).open(file).map_err(at)?;
    let written = created.write_all(text.as_bytes()).and_then(|()| created.sync_all());
    written.inspect_err(|_| drop(fs::remove_file(file))).map_err(at)
}
