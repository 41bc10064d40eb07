//! TLS toward the servers, as the connection string asks for it.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_cert_signed_by_trust_anchor};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::sign::SingleCertAndKey;
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::pool::lock;
use crate::config::uri::TlsOptions;
use crate::tls::{FileErrors, files, provider};

/// Why there is no TLS.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// Files of the options cannot be read or hold no PEM of the kind.
    #[error(transparent)]
    Files(#[from] FileErrors),
    /// What we ask of rustls cannot be.
    #[error("TLS settings: {0}")]
    Settings(#[from] rustls::Error),
    /// The host is no name that a certificate can have.
    #[error("`{0}` is no name for TLS")]
    Name(String),
    /// Server and we did not agree.
    #[error("TLS handshake: {0}")]
    Handshake(#[source] std::io::Error),
}

/// TLS settings that were read and checked, and can be read again: connections that are open keep those they began with.
pub struct UpstreamTls {
    options: TlsOptions,
    current: Mutex<Current>,
}

#[derive(Clone)]
struct Current {
    connector: TlsConnector,
    expires: Option<SystemTime>,
}

impl UpstreamTls {
    /// Reads the files that the options name.
    ///
    /// # Errors
    /// [`TlsError::Files`] or [`TlsError::Settings`].
    pub fn new(options: &TlsOptions) -> Result<Self, TlsError> {
        Ok(Self { options: options.clone(), current: Mutex::new(read(options)?) })
    }

    /// Reads the files again, for connections that are made from now on.
    ///
    /// # Errors
    /// As [`Self::new`]; what was read before stays in force then.
    pub fn reload(&self) -> Result<(), TlsError> {
        let read = read(&self.options)?;
        *lock(&self.current) = read;
        Ok(())
    }

    /// The files that it is made of.
    pub fn files(&self) -> Vec<PathBuf> {
        self.options.ca_file.iter().chain(&self.options.cert_key_file).cloned().collect()
    }

    /// Until when our own certificate is good for something; `None` if we have none.
    pub fn expires(&self) -> Option<SystemTime> {
        lock(&self.current).expires
    }

    /// Turns a fresh socket into a TLS stream.
    ///
    /// # Errors
    /// [`TlsError::Name`] or [`TlsError::Handshake`].
    pub async fn connect(&self, host: &str, stream: TcpStream) -> Result<TlsStream<TcpStream>, TlsError> {
        let name = ServerName::try_from(host.to_owned()).map_err(|_| TlsError::Name(host.to_owned()))?;
        let connector = lock(&self.current).connector.clone();
        connector.connect(name, stream).await.map_err(TlsError::Handshake)
    }
}

fn read(options: &TlsOptions) -> Result<Current, TlsError> {
    let provider = provider();
    let roots = match &options.ca_file {
        Some(file) => files::authorities(file),
        None => Ok(RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() }),
    };
    let password = options.key_password.as_ref().map(|password| password.expose().as_bytes());
    let own = options.cert_key_file.as_ref().map(|file| files::identification(file, file, password, &provider));
    let (roots, own) = files::both(roots, own.transpose())?;
    let builder = ClientConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions()?;
    let builder = if options.allow_invalid_certificates {
        builder
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Lenient { provider: provider.clone(), roots: None }))
    } else if options.allow_invalid_hostnames {
        let verifier = Lenient { provider: provider.clone(), roots: Some(roots) };
        builder.dangerous().with_custom_certificate_verifier(Arc::new(verifier))
    } else {
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider.clone()).build();
        builder.with_webpki_verifier(verifier.map_err(|error| rustls::Error::General(error.to_string()))?)
    };
    let (config, expires) = match own {
        Some(own) => (builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(own.key))), Some(own.expires)),
        None => (builder.with_no_client_auth(), None),
    };
    Ok(Current { connector: TlsConnector::from(Arc::new(config)), expires })
}

/// For what the connection string allows by name: certificates of other hosts (`tlsAllowInvalidHostnames`), or any at all
/// (`tlsAllowInvalidCertificates`). Not any signature.
#[derive(Debug)]
struct Lenient {
    provider: Arc<CryptoProvider>,
    /// Who is to have signed them; `None` for whoever.
    roots: Option<RootCertStore>,
}

impl ServerCertVerifier for Lenient {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if let Some(roots) = &self.roots {
            let certificate = ParsedCertificate::try_from(certificate)?;
            let algorithms = self.provider.signature_verification_algorithms.all;
            verify_server_cert_signed_by_trust_anchor(&certificate, roots, intermediates, now, algorithms)?;
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
