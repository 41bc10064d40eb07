//! TLS toward the servers, as the connection string asks for it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::config::uri::TlsOptions;

/// Why there is no TLS.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file of the options cannot be read or holds no PEM of the kind.
    #[error("{file}: {reason}", file = file.display())]
    File {
        /// Which one.
        file: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Key and certificate do not fit, or the like.
    #[error("TLS settings: {0}")]
    Settings(#[from] rustls::Error),
    /// The host is no name that a certificate can have.
    #[error("`{0}` is no name for TLS")]
    Name(String),
    /// Server and we did not agree.
    #[error("TLS handshake: {0}")]
    Handshake(#[source] std::io::Error),
}

/// TLS settings that were read and checked.
pub struct UpstreamTls(TlsConnector);

impl UpstreamTls {
    /// Reads the files that the options name.
    ///
    /// # Errors
    /// [`TlsError::File`] or [`TlsError::Settings`].
    pub fn new(options: &TlsOptions) -> Result<Self, TlsError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions()?;
        let builder = if options.allow_invalid_certificates {
            builder.dangerous().with_custom_certificate_verifier(Arc::new(AcceptAny(provider)))
        } else {
            builder.with_root_certificates(roots(options.ca_file.as_deref())?)
        };
        let config = match &options.cert_key_file {
            Some(file) => {
                let key = PrivateKeyDer::from_pem_file(file).map_err(|error| bad_file(file, &error))?;
                builder.with_client_auth_cert(certificates(file)?, key)?
            }
            None => builder.with_no_client_auth(),
        };
        Ok(Self(TlsConnector::from(Arc::new(config))))
    }

    /// Turns a fresh socket into a TLS stream.
    ///
    /// # Errors
    /// [`TlsError::Name`] or [`TlsError::Handshake`].
    pub async fn connect(&self, host: &str, stream: TcpStream) -> Result<TlsStream<TcpStream>, TlsError> {
        let name = ServerName::try_from(host.to_owned()).map_err(|_| TlsError::Name(host.to_owned()))?;
        self.0.connect(name, stream).await.map_err(TlsError::Handshake)
    }
}

fn roots(ca_file: Option<&Path>) -> Result<RootCertStore, TlsError> {
    let Some(file) = ca_file else {
        return Ok(RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() });
    };
    let mut store = RootCertStore::empty();
    for certificate in certificates(file)? {
        store.add(certificate)?;
    }
    Ok(store)
}

fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let read = CertificateDer::pem_file_iter(file).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let certificates = read.map_err(|error| bad_file(file, &error))?;
    if certificates.is_empty() {
        return Err(TlsError::File { file: file.to_owned(), reason: "holds no certificate in PEM form".to_owned() });
    }
    Ok(certificates)
}

fn bad_file(file: &Path, error: &rustls::pki_types::pem::Error) -> TlsError {
    TlsError::File { file: file.to_owned(), reason: error.to_string() }
}

/// `tlsAllowInvalidCertificates`: takes any certificate, though not any signature.
#[derive(Debug)]
struct AcceptAny(Arc<CryptoProvider>);

impl ServerCertVerifier for AcceptAny {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
