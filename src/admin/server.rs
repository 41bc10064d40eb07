//! The admin port's connections: few at once, one request each, and each in little time.
//!
//! A client that stalls holds a socket and some kilobytes for [`ADMIN_EXCHANGE_TIMEOUT`], and nothing else.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Semaphore;

use super::{Access, Admin, Caller, router};
use crate::client::bound::{ACCEPT_PAUSE, Accepted, BoundSocket};
use crate::config::limits::{ADMIN_EXCHANGE_TIMEOUT, ADMIN_HEAD_BYTES, MAX_ADMIN_CONNECTIONS};
use crate::tasks::Tasks;

/// At the end of the program an answer that is on its way gets this long: the one to the order to drain, above all.
const GRACE: Duration = Duration::from_millis(250);

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

fn stream_and_caller(accepted: Accepted) -> (Box<dyn Stream>, Caller) {
    match accepted {
        Accepted::Tcp(stream, peer) => (Box::new(stream), Caller(peer.to_string().into())),
        Accepted::Unix(stream) => (Box::new(stream), Caller("unix socket".into())),
    }
}

/// Serves the admin port until the tasks are cancelled.
pub async fn serve(listener: BoundSocket, admin: Arc<Admin>, access: Access, tasks: Tasks) {
    let service = TowerToHyperService::new(router(admin, Arc::new(access)));
    let places = Arc::new(Semaphore::new(MAX_ADMIN_CONNECTIONS));
    loop {
        // Nothing is lost when an arm loses: neither a place that was not taken nor a socket that was not accepted.
        let next = async {
            let place = places.clone().acquire_owned().await.expect("the semaphore is never closed");
            (place, listener.accept().await)
        };
        let (place, accepted) = tokio::select! {
            next = next => next,
            () = tasks.cancelled() => return,
        };
        let (stream, caller) = match accepted {
            Ok(accepted) => stream_and_caller(accepted),
            Err(error) => {
                tracing::warn!(%error, "cannot accept on the admin port");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let service = service.clone();
        let service = service_fn(move |mut request: Request<Incoming>| {
            request.extensions_mut().insert(caller.clone());
            service.call(request)
        });
        // One request per connection: the time of a connection is then the time of a request, for which a bound is easy.
        let connection = http1::Builder::new()
            .keep_alive(false)
            .max_buf_size(ADMIN_HEAD_BYTES)
            .serve_connection(TokioIo::new(stream), service);
        let cancelled = tasks.clone();
        tasks.spawn("admin request", async move {
            let ended_early = async {
                cancelled.cancelled().await;
                tokio::time::sleep(GRACE).await;
            };
            // What is lost when the request loses is its answer, which is too late then.
            tokio::select! {
                served = tokio::time::timeout(ADMIN_EXCHANGE_TIMEOUT, connection) => match served {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => tracing::debug!(%error, "admin request failed"),
                    Err(_) => tracing::debug!("admin request took too long"),
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
    use tokio::time::Instant;

    use super::*;
    use crate::admission::MemoryBudget;
    use crate::config::Address;
    use crate::telemetry::Metrics;
    use crate::upstream::Liveness;

    const ORDER: &str = "POST /admin/drain HTTP/1.1\r\nHost: localhost\r\nX-Mongomux: 1\r\n\
                         Content-Type: application/json\r\n";
    const LIVENESS: Liveness = Liveness::UPSTREAM;

    fn admin() -> Arc<Admin> {
        Admin::new(Vec::new(), Vec::new(), Metrics::new(), MemoryBudget::plenty(), watch::Sender::default())
    }

    /// A port that is served, without any cluster.
    async fn served() -> (std::net::SocketAddr, Tasks) {
        let listener = BoundSocket::bind(&Address::tcp("127.0.0.1", 0), LIVENESS).await.unwrap();
        let address = listener.address().to_string().parse().unwrap();
        let tasks = Tasks::new();
        let access = Access::new(listener.address().clone(), false, None);
        tasks.spawn("admin", serve(listener, admin(), access, tasks.clone()));
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
        tasks.spawn("admin", serve(listener, admin(), access, tasks.clone()));
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
