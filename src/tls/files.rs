//! PEM files: certificates, private keys, authorities and revocation lists. Every mistake names its file, and says what is
//! wrong with it; where several files make one thing, all of them are told of.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use pkcs8::EncryptedPrivateKeyInfoRef;
use pkcs8::der::Document;
use rustls::RootCertStore;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::{Error as PemError, PemObject};
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::sign::CertifiedKey;
use x509_parser::parse_x509_certificate;
use zeroize::Zeroizing;

/// Larger than any chain, and than most bundles of all public authorities; a file that is much larger is something else.
const MAX_FILE_BYTES: u64 = 4 * 1024 * 1024;

/// How PEM calls a key that needs a password.
const ENCRYPTED_KEY: &str = "ENCRYPTED PRIVATE KEY";

/// What is wrong with a file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{file}: {reason}", file = file.display())]
pub struct FileError {
    /// Which one.
    pub file: PathBuf,
    /// What it lacks, or what the system says.
    pub reason: String,
}

impl FileError {
    pub(crate) fn new(file: &Path, reason: impl Into<String>) -> Self {
        Self { file: file.to_owned(), reason: reason.into() }
    }
}

/// What is wrong with files that belong together; at least one of them.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.iter().map(FileError::to_string).collect::<Vec<_>>().join("; "))]
pub struct FileErrors(pub Vec<FileError>);

impl From<FileError> for FileErrors {
    fn from(error: FileError) -> Self {
        Self(vec![error])
    }
}

/// Two that are needed together, or what is wrong with both.
///
/// # Errors
/// Those of either.
pub fn both<A, B>(
    first: Result<A, impl Into<FileErrors>>,
    second: Result<B, impl Into<FileErrors>>,
) -> Result<(A, B), FileErrors> {
    match (first, second) {
        (Ok(first), Ok(second)) => Ok((first, second)),
        (Err(first), Err(second)) => {
            let mut errors = first.into().0;
            errors.extend(second.into().0);
            // Of a file that has both parts and cannot be opened.
            errors.dedup();
            Err(FileErrors(errors))
        }
        (Err(error), _) => Err(error.into()),
        (_, Err(error)) => Err(error.into()),
    }
}

/// Who we are: a certificate, those that vouch for it, and the key.
#[derive(Debug)]
pub struct Identification {
    /// For rustls.
    pub key: CertifiedKey,
    /// From when on nobody accepts it any more.
    pub expires: SystemTime,
}

/// Reads our own certificate and its key.
///
/// # Errors
/// A file cannot be read, has no PEM of the kind, or the two do not belong together.
pub fn identification(
    certificate_file: &Path,
    key_file: &Path,
    password: Option<&[u8]>,
    provider: &CryptoProvider,
) -> Result<Identification, FileErrors> {
    let (chain, key) = both(certificates(certificate_file), private_key(key_file, password))?;
    let expires = expiry(&chain[0]).map_err(|reason| FileError::new(certificate_file, reason))?;
    let key = CertifiedKey::from_der(chain, key, provider).map_err(|error| match error {
        rustls::Error::InconsistentKeys(_) if key_file == certificate_file => {
            FileError::new(key_file, "the private key does not belong to the first certificate in it")
        }
        rustls::Error::InconsistentKeys(_) => {
            let certificate = certificate_file.display();
            FileError::new(
                key_file,
                format!("the private key does not belong to the first certificate of {certificate}"),
            )
        }
        error => FileError::new(key_file, format!("the private key cannot be used: {error}")),
    })?;
    Ok(Identification { key, expires })
}

/// The authorities of a file, of which there is at least one.
///
/// # Errors
/// The file cannot be read, or what is in it cannot be trusted with anything.
pub fn authorities(file: &Path) -> Result<RootCertStore, FileError> {
    let mut store = RootCertStore::empty();
    for (index, certificate) in certificates(file)?.into_iter().enumerate() {
        let added = store.add(certificate);
        added.map_err(|error| FileError::new(file, format!("certificate {}: {error}", index + 1)))?;
    }
    Ok(store)
}

/// The revocation lists of a file, of which there is at least one.
///
/// # Errors
/// The file cannot be read, or holds none.
pub fn revocations(file: &Path) -> Result<Vec<CertificateRevocationListDer<'static>>, FileError> {
    let text = read(file)?;
    let lists: Result<Vec<_>, _> = CertificateRevocationListDer::pem_slice_iter(&text).collect();
    let lists = lists.map_err(|error| bad_pem(file, &error))?;
    if lists.is_empty() {
        return Err(FileError::new(file, "holds no certificate revocation list in PEM form"));
    }
    Ok(lists)
}

fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, FileError> {
    let text = read(file)?;
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    let certificates = certificates.map_err(|error| bad_pem(file, &error))?;
    if certificates.is_empty() {
        return Err(FileError::new(file, "holds no certificate in PEM form"));
    }
    Ok(certificates)
}

fn private_key(file: &Path, password: Option<&[u8]>) -> Result<PrivateKeyDer<'static>, FileError> {
    let text = read(file)?;
    match PrivateKeyDer::from_pem_slice(&text) {
        Ok(key) => Ok(key),
        Err(PemError::NoItemsFound) => match encrypted_key(&text) {
            Some(section) => decrypt(section, password).map_err(|reason| FileError::new(file, reason)),
            None => Err(FileError::new(file, "holds no private key in PEM form")),
        },
        Err(error) => Err(bad_pem(file, &error)),
    }
}

/// The section of a key that needs a password.
fn encrypted_key(text: &[u8]) -> Option<&str> {
    let text = std::str::from_utf8(text).ok()?;
    let end = format!("-----END {ENCRYPTED_KEY}-----");
    let from = text.find(&format!("-----BEGIN {ENCRYPTED_KEY}-----"))?;
    let length = text[from..].find(&end)? + end.len();
    Some(&text[from..from + length])
}

fn decrypt(section: &str, password: Option<&[u8]>) -> Result<PrivateKeyDer<'static>, String> {
    let password = password.ok_or("the private key is encrypted, and there is no password for it")?;
    let (_, document) = Document::from_pem(section).map_err(|error| format!("the encrypted private key: {error}"))?;
    let encrypted = EncryptedPrivateKeyInfoRef::try_from(document.as_bytes());
    let encrypted = encrypted.map_err(|error| format!("the encrypted private key: {error}"))?;
    let key = encrypted.decrypt(password);
    let key = key.map_err(|_| "the private key cannot be decrypted: a wrong password, or an old way of encryption")?;
    Ok(PrivatePkcs8KeyDer::from(key.as_bytes().to_vec()).into())
}

fn expiry(certificate: &CertificateDer<'_>) -> Result<SystemTime, String> {
    let (_, parsed) = parse_x509_certificate(certificate).map_err(|error| format!("the first certificate: {error}"))?;
    let seconds = u64::try_from(parsed.validity().not_after.timestamp()).unwrap_or(0);
    Ok(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds))
}

/// Wiped when it is dropped, as there may be a key in it.
fn read(file: &Path) -> Result<Zeroizing<Vec<u8>>, FileError> {
    let failed = |error: std::io::Error| FileError::new(file, error.to_string());
    let bytes = std::fs::metadata(file).map_err(failed)?.len();
    if bytes > MAX_FILE_BYTES {
        return Err(FileError::new(file, format!("{bytes} bytes, at most {MAX_FILE_BYTES} are read")));
    }
    std::fs::read(file).map(Zeroizing::new).map_err(failed)
}

fn bad_pem(file: &Path, error: &PemError) -> FileError {
    FileError::new(file, format!("no valid PEM: {error}"))
}
