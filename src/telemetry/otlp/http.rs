//! One request at a time to a collector, each over a connection of its own: there is one every few seconds.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::client::conn::http1;
use hyper::header::{CONTENT_TYPE, HOST, HeaderValue};
use hyper::{Request, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, InvalidDnsNameError, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::settings::Target;

/// Why a batch was not taken.
#[derive(Debug, thiserror::Error)]
pub(super) enum PostError {
    #[error("cannot connect: {0}")]
    Connect(#[from] io::Error),
    #[error("no name for TLS: {0}")]
    Name(#[from] InvalidDnsNameError),
    #[error("the connection broke: {0}")]
    Http(#[from] hyper::Error),
    #[error("the request makes no sense: {0}")]
    Request(#[from] hyper::http::Error),
    #[error("no answer within {} ms", .0.as_millis())]
    Timeout(Duration),
    #[error("answered {0}")]
    Status(StatusCode),
}

impl PostError {
    /// True where the same batch may be taken later, by the OTLP specification.
    pub(super) fn may_pass(&self) -> bool {
        match self {
            Self::Connect(_) | Self::Http(_) | Self::Timeout(_) => true,
            Self::Status(status) => matches!(status.as_u16(), 429 | 502 | 503 | 504),
            Self::Name(_) | Self::Request(_) => false,
        }
    }
}

/// Trusts those authorities, or the ones that everybody trusts.
pub(super) fn connector(certificate: Option<&Path>) -> Result<TlsConnector, String> {
    let mut roots = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
    if let Some(file) = certificate {
        roots = RootCertStore::empty();
        let told = |error: &dyn std::fmt::Display| format!("{}: {error}", file.display());
        for certificate in CertificateDer::pem_file_iter(file).map_err(|error| told(&error))? {
            roots.add(certificate.map_err(|error| told(&error))?).map_err(|error| told(&error))?;
        }
    }
    let builder = ClientConfig::builder_with_provider(crate::tls::provider()).with_safe_default_protocol_versions();
    let builder = builder.map_err(|error| error.to_string())?;
    Ok(TlsConnector::from(Arc::new(builder.with_root_certificates(roots).with_no_client_auth())))
}

/// Hands a batch over.
///
/// # Cancel safety
/// None is needed: what becomes of a batch whose request was dropped is unknown, as it is after a timeout.
pub(super) async fn post(target: &Target, tls: &TlsConnector, body: Bytes) -> Result<(), PostError> {
    let posted = tokio::time::timeout(target.timeout, post_once(target, tls, body)).await;
    posted.unwrap_or(Err(PostError::Timeout(target.timeout)))
}

async fn post_once(target: &Target, tls: &TlsConnector, body: Bytes) -> Result<(), PostError> {
    let encrypted = target.url.scheme_str() == Some("https");
    let host = target.url.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']').to_owned();
    let port = target.url.port_u16().unwrap_or(if encrypted { 443 } else { 80 });
    let stream = TcpStream::connect((host.as_str(), port)).await?;
    if encrypted {
        let stream = tls.connect(ServerName::try_from(host)?, stream).await?;
        exchange(target, stream, body).await
    } else {
        exchange(target, stream, body).await
    }
}

async fn exchange(
    target: &Target,
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    body: Bytes,
) -> Result<(), PostError> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let path = target.url.path_and_query().map_or("/", |path| path.as_str());
    let host = target.url.authority().map(|authority| authority.as_str()).unwrap_or_default();
    let mut request = Request::post(Uri::try_from(path).map_err(hyper::http::Error::from)?)
        .header(HOST, host)
        .header(CONTENT_TYPE, HeaderValue::from_static("application/x-protobuf"))
        .body(Full::new(body))?;
    for (name, value) in &target.headers {
        request.headers_mut().insert(name, value.clone());
    }
    let mut response = std::pin::pin!(sender.send_request(request));
    // Either may end first. What the collector says beside its status is of no use, and ends with the connection.
    let status = tokio::select! {
        answered = &mut response => answered?.status(),
        // An answer may have come with the end: a batch that was taken is not to be sent again.
        ended = connection => match response.await {
            Ok(answered) => answered.status(),
            Err(error) => return Err(ended.err().unwrap_or(error).into()),
        },
    };
    if status.is_success() { Ok(()) } else { Err(PostError::Status(status)) }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;
    use tokio_rustls::TlsAcceptor;

    use super::*;

    /// Takes one request over TLS, answers it and returns it.
    async fn collector(listener: TcpListener, acceptor: TlsAcceptor) -> io::Result<String> {
        let mut stream = acceptor.accept(listener.accept().await?.0).await?;
        let mut request = Vec::new();
        while !request.ends_with(b"spans") {
            stream.read_buf(&mut request).await?;
        }
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await?;
        Ok(String::from_utf8(request).unwrap())
    }

    #[tokio::test]
    async fn https_trusts_the_named_authority_and_nobody_else() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("ca.pem");
        let own = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        std::fs::write(&file, own.cert.pem()).unwrap();
        let builder = rustls::ServerConfig::builder_with_provider(crate::tls::provider());
        let builder = builder.with_safe_default_protocol_versions().unwrap().with_no_client_auth();
        let key = rustls::pki_types::PrivateKeyDer::try_from(own.signing_key.serialize_der()).unwrap();
        let acceptor =
            TlsAcceptor::from(Arc::new(builder.with_single_cert(vec![own.cert.der().clone()], key).unwrap()));
        for (certificate, taken) in [(Some(file.as_path()), true), (None, false)] {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let url = format!("https://localhost:{}/v1/traces?a=b", listener.local_addr().unwrap().port());
            let headers = vec![("x-token".parse().unwrap(), HeaderValue::from_static("t"))];
            let target = Target { url: url.parse().unwrap(), headers, timeout: Duration::from_secs(10) };
            let tls = connector(certificate).unwrap();
            let posted = post(&target, &tls, Bytes::from_static(b"spans"));
            let (posted, came) = tokio::join!(posted, collector(listener, acceptor.clone()));
            assert_eq!((posted.is_ok(), came.is_ok()), (taken, taken), "{posted:?} {came:?}");
            if let Ok(request) = came {
                let request = request.to_ascii_lowercase();
                assert!(request.starts_with("post /v1/traces?a=b http/1.1\r\n"), "{request}");
                assert!(
                    request.contains("\r\nx-token: t\r\n") && request.contains("\r\nhost: localhost:"),
                    "{request}"
                );
            } else {
                // As a collector may have its certificate renewed.
                assert!(posted.unwrap_err().may_pass());
            }
        }
        assert!(connector(Some(Path::new("/no/such/file"))).is_err());
    }
}
