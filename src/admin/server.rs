//! The admin port's connections: few at once, one request each, and each in little time, in which a TLS handshake is included.
//!
//! A client that stalls holds a socket and some kilobytes for [`ADMIN_EXCHANGE_TIMEOUT`], and nothing else: it shakes hands in its
//! own task, and what is hard about that is done beside the thread that serves the others.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;

use super::access::Caller;
use super::{Access, Admin, router};
use crate::client::bound::{ACCEPT_PAUSE, Accepted, BoundSocket};
use crate::client::shift::Shift;
use crate::client::tls::{ClientTls, HandshakeError};
use crate::config::limits::{ADMIN_EXCHANGE_TIMEOUT, ADMIN_HEAD_BYTES, MAX_ADMIN_CONNECTIONS};
use crate::tasks::Tasks;
use crate::telemetry::seldom::Seldom;

/// At the end of the program an answer that is on its way gets this long: the one to the order to drain, above all.
const GRACE: Duration = Duration::from_millis(250);

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// What every connection is served with.
#[derive(Clone)]
struct Served {
    service: TowerToHyperService<Router>,
    /// Where there is TLS.
    tls: Option<Arc<ClientTls>>,
    refused: Arc<Seldom>,
}

impl Served {
    /// One request per connection: the time of a connection is then the time of a request, for which a bound is easy.
    async fn exchange(self, accepted: Accepted) {
        let Some((stream, caller)) = self.secured(accepted).await else { return };
        let service = service_fn(move |mut request: Request<Incoming>| {
            request.extensions_mut().insert(caller.clone());
            self.service.call(request)
        });
        let connection = http1::Builder::new()
            .keep_alive(false)
            .max_buf_size(ADMIN_HEAD_BYTES)
            .serve_connection(TokioIo::new(stream), service);
        if let Err(error) = connection.await {
            tracing::debug!(%error, "admin request failed");
        }
    }

    /// The caller, once it has shaken hands where that is asked for.
    async fn secured(&self, accepted: Accepted) -> Option<(Box<dyn Stream>, Caller)> {
        let (stream, peer) = match accepted {
            Accepted::Tcp(stream, peer) => (stream, peer),
            Accepted::Unix(stream) => {
                return Some((Box::new(stream), Caller { from: "unix socket".into(), certificate: None }));
            }
        };
        let from: Arc<str> = peer.to_string().into();
        let Some(tls) = &self.tls else { return Some((Box::new(stream), Caller { from, certificate: None })) };
        match tls.accept(stream, ADMIN_EXCHANGE_TIMEOUT).await {
            Ok((stream, shown)) => {
                let certificate = shown.map(|certificate| certificate.subject.into());
                Some((Box::new(stream), Caller { from, certificate }))
            }
            // As a probe that only looks whether somebody listens.
            Err(HandshakeError::Left(error)) => {
                tracing::debug!(%peer, %error, "left the admin port before the handshake was over");
                None
            }
            Err(error) => {
                if let Some(callers) = self.refused.happened(Instant::now()) {
                    tracing::warn!(%peer, callers, %error, "TLS handshakes with the admin port fail");
                }
                None
            }
        }
    }
}

/// Serves the admin port in this process's turn, until the tasks are cancelled; with `tls` its TCP sockets are encrypted.
pub async fn serve(
    listener: Arc<BoundSocket>,
    admin: Arc<Admin>,
    access: Access,
    tls: Option<Arc<ClientTls>>,
    mut shift: watch::Receiver<Shift>,
    tasks: Tasks,
) {
    tokio::select! {
        () = Shift::until(&mut shift, |shift| shift != Shift::Before) => {}
        () = tasks.cancelled() => return,
    }
    let service = TowerToHyperService::new(router(admin, Arc::new(access)));
    let served = Served { service, tls, refused: Arc::default() };
    let places = Arc::new(Semaphore::new(MAX_ADMIN_CONNECTIONS));
    loop {
        // Nothing is lost when an arm loses: neither a place that was not taken nor a socket that was not accepted.
        let next = async {
            let place = places.clone().acquire_owned().await.expect("the semaphore is never closed");
            (place, listener.accept().await)
        };
        let (place, accepted) = tokio::select! {
            next = next => next,
            () = Shift::until(&mut shift, |shift| !shift.accepts_admin()) => return,
            () = tasks.cancelled() => return,
        };
        let exchange = match accepted {
            Ok(accepted) => served.clone().exchange(accepted),
            Err(error) => {
                tracing::warn!(%error, "cannot accept on the admin port");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let cancelled = tasks.clone();
        tasks.spawn("admin request", async move {
            let ended_early = async {
                cancelled.cancelled().await;
                tokio::time::sleep(GRACE).await;
            };
            // What is lost when the request loses is its answer, which is too late then.
            tokio::select! {
                served = tokio::time::timeout(ADMIN_EXCHANGE_TIMEOUT, exchange) => if served.is_err() {
                    tracing::debug!("admin request took too long");
                },
                () = ended_early => {}
            }
            drop(place);
        });
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::{TcpStream, UnixStream};
    use tokio::sync::watch;

    use super::*;
    use crate::admin::fixture::idle_admin;
    use crate::config::{Address, ClientCertificates, ListenerTls, TlsVersion};
    use crate::upstream::Liveness;

    const ORDER: &str = "POST /admin/drain HTTP/1.1\r\nHost: localhost\r\nX-Mongomux: 1\r\n\
                         Content-Type: application/json\r\n";
    const LIVENESS: Liveness = Liveness::UPSTREAM;

    /// A port that is served, without any cluster.
    async fn served() -> (std::net::SocketAddr, Tasks) {
        served_with(None).await
    }

    async fn served_with(tls: Option<Arc<ClientTls>>) -> (std::net::SocketAddr, Tasks) {
        let listener = BoundSocket::bind(&Address::tcp("127.0.0.1", 0), LIVENESS).await.unwrap();
        let address = listener.address().to_string().parse().unwrap();
        let tasks = Tasks::new();
        let access = Access::new(listener.address().clone(), false, None);
        let shift = watch::channel(Shift::Ours).1;
        tasks.spawn("admin", serve(Arc::new(listener), idle_admin(), access, tls, shift, tasks.clone()));
        (address, tasks)
    }

    async fn answer(stream: impl AsyncRead + AsyncWrite + Unpin, request: &str) -> String {
        let (mut reader, mut writer) = tokio::io::split(stream);
        writer.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        reader.read_to_string(&mut answer).await.unwrap();
        answer
    }

    async fn end(tasks: Tasks) {
        tasks.cancel();
        assert_eq!(tasks.join_all(Duration::from_secs(5)).await, 0);
    }

    #[tokio::test]
    async fn one_request_is_answered_and_the_socket_closed() {
        let (address, tasks) = served().await;
        let stream = TcpStream::connect(address).await.unwrap();
        let text = answer(stream, "GET /readyz HTTP/1.1\r\nHost: a\r\n\r\n").await;
        assert!(text.starts_with("HTTP/1.1 200 OK\r\n") && text.ends_with("\r\n\r\nready\n"), "{text}");
        assert!(text.contains("connection: close"), "{text}");
        end(tasks).await;
    }

    #[tokio::test]
    async fn bodies_are_not_waited_for_and_heads_are_bounded() {
        let (address, tasks) = served().await;
        let stream = TcpStream::connect(address).await.unwrap();
        let text = answer(stream, &format!("{ORDER}Content-Length: 4000000000\r\n\r\n")).await;
        assert!(text.starts_with("HTTP/1.1 202"), "{text}");
        let stream = TcpStream::connect(address).await.unwrap();
        let head = format!("GET /livez HTTP/1.1\r\nX: {}", "x".repeat(ADMIN_HEAD_BYTES));
        let text = answer(stream, &head).await;
        assert!(text.starts_with("HTTP/1.1 431"), "{text}");
        end(tasks).await;
    }

    #[tokio::test(start_paused = true)]
    async fn stalled_clients_give_their_places_back() {
        let (address, tasks) = served().await;
        let started = Instant::now();
        let mut stalled = Vec::new();
        for _ in 0..MAX_ADMIN_CONNECTIONS {
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.write_all(b"GET /liv").await.unwrap();
            stalled.push(stream);
        }
        let late = TcpStream::connect(address).await.unwrap();
        let text = answer(late, "GET /livez HTTP/1.1\r\nHost: a\r\n\r\n").await;
        assert!(text.ends_with("alive\n"), "{text}");
        let waited = started.elapsed();
        assert!(waited >= ADMIN_EXCHANGE_TIMEOUT, "all places were taken");
        assert!(waited < 2 * ADMIN_EXCHANGE_TIMEOUT, "{waited:?}");
        for mut stream in stalled {
            assert_eq!(stream.read(&mut [0; 1]).await.unwrap(), 0, "closed by the time it took");
        }
        end(tasks).await;
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_waits_for_those_who_do_not_shake_hands() {
        let directory = tempfile::tempdir().unwrap();
        let own = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let file = directory.path().join("own.pem");
        std::fs::write(&file, own.cert.pem() + &own.signing_key.serialize_pem()).unwrap();
        let settings = ListenerTls {
            certificate_key_file: file.clone(),
            key_file: file,
            client_certificates: ClientCertificates::None,
            min_version: TlsVersion::V1_2,
        };
        let (address, tasks) = served_with(Some(Arc::new(ClientTls::new(&settings).unwrap()))).await;
        let mut roots = rustls::RootCertStore::empty();
        roots.add(own.cert.der().clone()).unwrap();
        let builder = rustls::ClientConfig::builder_with_provider(crate::tls::provider());
        let builder = builder.with_safe_default_protocol_versions().unwrap().with_root_certificates(roots);
        let connector = tokio_rustls::TlsConnector::from(Arc::new(builder.with_no_client_auth()));
        let started = Instant::now();
        // All places but one.
        let mut silent = Vec::new();
        for index in 1..MAX_ADMIN_CONNECTIONS {
            let mut stream = TcpStream::connect(address).await.unwrap();
            if index % 2 == 0 {
                stream.write_all(&[0x16, 3, 1, 2, 0, 1]).await.unwrap();
            }
            silent.push(stream);
        }
        let stream = TcpStream::connect(address).await.unwrap();
        let stream = connector.connect("localhost".try_into().unwrap(), stream).await.unwrap();
        let text = answer(stream, "GET /livez HTTP/1.1\r\nHost: a\r\n\r\n").await;
        assert!(text.ends_with("alive\n"), "{text}");
        assert!(started.elapsed() < ADMIN_EXCHANGE_TIMEOUT, "{:?}", started.elapsed());
        for mut stream in silent {
            assert_eq!(stream.read(&mut [0; 1]).await.unwrap(), 0, "closed by the time it took");
        }
        assert!(started.elapsed() < 2 * ADMIN_EXCHANGE_TIMEOUT, "{:?}", started.elapsed());
        end(tasks).await;
    }

    #[tokio::test(start_paused = true)]
    async fn the_end_does_not_wait_for_a_stalled_client() {
        let (address, tasks) = served().await;
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(b"GET ").await.unwrap();
        while tasks.running() < 2 {
            tokio::task::yield_now().await;
        }
        let cancelled = Instant::now();
        end(tasks).await;
        assert!(cancelled.elapsed() < 2 * GRACE);
    }

    #[tokio::test]
    async fn a_taken_port_is_named() {
        let (address, tasks) = served().await;
        let error = BoundSocket::bind(&Address::tcp("127.0.0.1", address.port()), LIVENESS).await.unwrap_err();
        let said = error.to_string();
        assert!(said.starts_with(&format!("cannot listen on {address}: ")), "{said}");
        end(tasks).await;
    }

    #[tokio::test]
    async fn a_unix_socket_is_served_and_leaves_with_its_listener() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("admin.sock");
        let address = Address::Unix(path.clone());
        // As a process that was killed leaves it.
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let listener = BoundSocket::bind(&address, LIVENESS).await.expect("the dead socket is replaced");
        let tasks = Tasks::new();
        let access = Access::new(address.clone(), false, None);
        let shift = watch::channel(Shift::Ours).1;
        tasks.spawn("admin", serve(Arc::new(listener), idle_admin(), access, None, shift, tasks.clone()));
        let stream = UnixStream::connect(&path).await.unwrap();
        let text = answer(stream, "GET /stats HTTP/1.1\r\nHost: a\r\n\r\n").await;
        assert!(text.starts_with("HTTP/1.1 200"), "a unix socket counts as loopback: {text}");
        assert!(BoundSocket::bind(&address, LIVENESS).await.is_err(), "a living socket is left alone");
        end(tasks).await;
        assert!(!path.exists());
        std::fs::write(&path, "somebody's file").unwrap();
        assert!(BoundSocket::bind(&address, LIVENESS).await.is_err());
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "somebody's file");
    }
}
