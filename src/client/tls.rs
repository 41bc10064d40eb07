//! TLS toward clients, and toward those who call the admin port: what a listener shows them, what it asks of them, and the handshake.
//!
//! Keys and authorities are read again without anybody noticing: a handshake uses what is in force when it begins, and open
//! sockets keep what theirs was made with. With new files no old ticket is accepted.
//!
//! What takes the processor long, a key exchange and a signature, is done where others need not wait for it, in the order in
//! which clients come ([`compute`]); waiting for a client holds nobody up.

use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, SystemTime};

use rustls::crypto::CryptoProvider;
use rustls::crypto::ring::Ticketer;
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{Acceptor, NoServerSessionStorage, WebPkiClientVerifier};
use rustls::sign::SingleCertAndKey;
use rustls::{DEFAULT_VERSIONS, ServerConfig};
use tokio::net::TcpStream;
use tokio_rustls::LazyConfigAcceptor;

use super::tls_socket::{Records, TlsSocket};
use crate::config::{ClientCertificates, ListenerTls, TlsVersion};
use crate::tasks::compute;
use crate::tls::{FileError, FileErrors, files, provider, subject};
use crate::upstream::pool::lock;

/// Encrypted bytes that a socket may keep while its client does not take them: one record. Nobody charges them to the memory
/// budget, so this times `max_clients` is what they come to at most.
const UNSENT_BYTES: usize = 16 * 1024;

/// Tickets that a new client gets, to be quicker the next time: it uses one up, and has the next one then. They are kept by
/// the clients, so they cost no memory here.
const TICKETS: usize = 1;

/// What is known of the certificate that a client has shown, which was verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerCertificate {
    /// Its subject, as MongoDB names the user.
    pub subject: String,
}

/// Why there is no TLS for clients.
#[derive(Debug, thiserror::Error)]
pub enum ClientTlsError {
    /// Files are not what they should be.
    #[error(transparent)]
    Files(#[from] FileErrors),
    /// What we ask of rustls cannot be.
    #[error("TLS settings: {0}")]
    Settings(#[from] rustls::Error),
}

/// Why a client is not served.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// It went, or its socket broke.
    #[error("the client left: {0}")]
    Left(io::Error),
    /// It does not speak TLS.
    #[error("what came is no TLS: the client connects without")]
    NotTls,
    /// It does not want us, or we do not want it.
    #[error(transparent)]
    Refused(rustls::Error),
}

/// TLS of one listener, or of the admin port.
pub struct ClientTls {
    settings: ListenerTls,
    current: Mutex<Current>,
}

#[derive(Clone)]
struct Current {
    config: Arc<ServerConfig>,
    expires: SystemTime,
}

impl ClientTls {
    /// Reads the files.
    ///
    /// # Errors
    /// [`ClientTlsError`] says which file is not what it should be.
    pub fn new(settings: &ListenerTls) -> Result<Self, ClientTlsError> {
        Ok(Self { settings: settings.clone(), current: Mutex::new(read(settings)?) })
    }

    /// Reads the files again, for handshakes that begin from now on.
    ///
    /// # Errors
    /// As [`Self::new`]; what was read before stays in force then.
    pub fn reload(&self) -> Result<(), ClientTlsError> {
        let read = read(&self.settings)?;
        *lock(&self.current) = read;
        Ok(())
    }

    /// The files that it is made of.
    pub fn files(&self) -> Vec<PathBuf> {
        self.settings.files()
    }

    /// Until when clients accept our certificate.
    pub fn expires(&self) -> SystemTime {
        lock(&self.current).expires
    }

    /// Shakes hands with a client; what it has told of itself, as far as it was verified. Who lets a record wait for its end
    /// for `stall_timeout` is gone later on.
    ///
    /// # Errors
    /// [`HandshakeError`].
    pub async fn accept(
        &self,
        stream: TcpStream,
        stall_timeout: Duration,
    ) -> Result<(TlsSocket, Option<PeerCertificate>), HandshakeError> {
        let hello = LazyConfigAcceptor::new(Acceptor::default(), Records::new(stream)).await.map_err(|error| {
            match HandshakeError::from(error) {
                HandshakeError::Refused(rustls::Error::InvalidMessage(_)) => HandshakeError::NotTls,
                error => error,
            }
        })?;
        let config = lock(&self.current).config.clone();
        let mut accept =
            Box::new(hello.into_stream_with(config, |connection| connection.set_buffer_limit(Some(UNSENT_BYTES))));
        // The hello is there, so the first poll does all that is hard, and then waits for the client.
        let begin = move || {
            let polled = Pin::new(&mut accept).poll(&mut Context::from_waker(Waker::noop()));
            (accept, polled)
        };
        let (accept, polled) =
            compute(begin).await.expect("a handshake does not panic, and is not aborted while it is waited for");
        let stream = match polled {
            Poll::Ready(stream) => stream?,
            Poll::Pending => accept.await?,
        };
        let shown = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
        let certificate = shown.and_then(subject::of).map(|subject| PeerCertificate { subject });
        Ok((TlsSocket::new(stream, stall_timeout), certificate))
    }
}

impl From<io::Error> for HandshakeError {
    fn from(error: io::Error) -> Self {
        match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
            Some(refused) => Self::Refused(refused.clone()),
            None => Self::Left(error),
        }
    }
}

fn read(settings: &ListenerTls) -> Result<Current, ClientTlsError> {
    let provider = provider();
    let own = files::identification(&settings.certificate_key_file, &settings.key_file, None, &provider);
    let (own, verifier) = files::both(own, verifier(&settings.client_certificates, provider.clone()))?;
    let versions = match settings.min_version {
        TlsVersion::V1_2 => DEFAULT_VERSIONS,
        TlsVersion::V1_3 => &[&rustls::version::TLS13],
    };
    let builder = ServerConfig::builder_with_provider(provider).with_protocol_versions(versions)?;
    let resolver = Arc::new(SingleCertAndKey::from(own.key));
    let mut config = match verifier {
        Some(verifier) => builder.with_client_cert_verifier(verifier).with_cert_resolver(resolver),
        None => builder.with_no_client_auth().with_cert_resolver(resolver),
    };
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    if settings.client_certificates == ClientCertificates::None {
        config.ticketer = Ticketer::new()?;
        config.send_tls13_tickets = TICKETS;
    }
    // Else each handshake looks at the certificate again: a ticket would outlive it.
    Ok(Current { config: Arc::new(config), expires: own.expires })
}

fn verifier(
    settings: &ClientCertificates,
    provider: Arc<CryptoProvider>,
) -> Result<Option<Arc<dyn ClientCertVerifier>>, FileErrors> {
    let ClientCertificates::Asked { ca_file, crl_file, required } = settings else { return Ok(None) };
    let lists = crl_file.as_ref().map(|file| files::revocations(file)).transpose();
    let (roots, lists) = files::both(files::authorities(ca_file), lists)?;
    let mut builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
    if let Some(lists) = lists {
        // As mongod does: of the client's own certificate, and a list that is out of date says nothing.
        builder = builder.with_crls(lists).only_check_end_entity_revocation();
        builder = builder.enforce_revocation_expiration();
    }
    if !required {
        builder = builder.allow_unauthenticated();
    }
    let blamed = crl_file.as_ref().unwrap_or(ca_file);
    let built = builder.build().map_err(|error| FileError::new(blamed, error.to_string()));
    Ok(Some(built?))
}
