//! Accepting clients. At the limit nobody is turned away, because a driver that is closed right after it connected takes the
//! server for dead: a few more are accepted, to be told that there is no room, and the next ones wait in the backlog of the
//! system.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use futures_util::FutureExt as _;
use tokio::io::AsyncRead;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::Instant;

use super::bound::{ACCEPT_PAUSE, Accepted, BoundSocket};
use super::desks::Desks;
use super::ends::Ends;
use super::leaving::ClientStream;
use super::places::{Place, Places};
use super::proxy_header;
use super::session::Session;
use super::shared::ClientShared;
use super::shift::Shift;
use super::tls::{ClientTls, HandshakeError};
use super::tls_socket::TlsSocket;
use crate::config::Address;
use crate::telemetry::labels::{ClientClosed, ClientState};

/// So many are accepted before those that are connected have their turn. A storm of thousands brings each turn a third of a
/// millisecond more, and is over in a second all the same.
const ACCEPTS_PER_TURN: usize = 16;

/// Accepts clients while it is this process's turn; then lets go of the socket and leaves its clients alone. Each takes one of
/// `places` as long as it is open. `proxied` says that each begins with a header of the PROXY protocol; then, where there is
/// `tls`, comes that.
pub async fn serve(
    socket: Arc<BoundSocket>,
    proxied: bool,
    tls: Option<Arc<ClientTls>>,
    shared: Arc<ClientShared>,
    places: Arc<Places>,
    mut shift: watch::Receiver<Shift>,
) {
    Shift::until(&mut shift, |shift| shift != Shift::Before).await;
    let (tcp, encrypted, unix) = (Arc::default(), Arc::default(), Arc::default());
    for accepted in 1_usize.. {
        if accepted % ACCEPTS_PER_TURN == 0 {
            tokio::task::yield_now().await;
        }
        // Before a place is taken, so that a listener without clients keeps none from the others. Where there is none, one
        // connection waits here as the others do in the backlog.
        let accepted = tokio::select! {
            // Nothing is lost when an arm loses: what was not accepted stays in the system's queue, for the next process if
            // there is one. Biased, as that one accepts from the moment it is told to.
            biased;
            () = Shift::until(&mut shift, |shift| !shift.accepts_clients()) => return,
            accepted = socket.accept() => accepted,
        };
        match accepted {
            Ok(Accepted::Tcp(stream, peer)) => {
                if let Err(error) = stream.set_nodelay(true) {
                    tracing::debug!(%peer, %error, "cannot set TCP_NODELAY");
                }
                // A socket without ends is one that is gone already.
                if let Ok(local) = stream.local_addr() {
                    let (ends, place) = (Ends::Tcp { peer, local }, places.take().await);
                    // That of a load balancer says nothing about its clients.
                    let host = if proxied { None } else { ends.host() };
                    let Some(place) = place.of(host) else {
                        OpenClient::new(shared.clone()).closed(ClientClosed::MaxClientsPerAddress);
                        continue;
                    };
                    match &tls {
                        Some(tls) => {
                            let newcomer = Newcomer { stream, ends, shared: shared.clone(), place };
                            start(secured(newcomer, proxied, tls.clone(), Arc::clone(&encrypted)), &shared);
                        }
                        None => begin(stream, ends, proxied, &shared, place, &tcp),
                    }
                }
            }
            Ok(Accepted::Unix(stream)) => {
                let path = match socket.address() {
                    Address::Unix(path) => path.clone(),
                    Address::Tcp { .. } => PathBuf::new(),
                };
                begin(stream, Ends::Unix(path), proxied, &shared, places.take().await, &unix);
            }
            Err(error) => {
                tracing::warn!(listener = %socket.address(), %error, "cannot accept");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

fn begin<S>(stream: S, ends: Ends, proxied: bool, shared: &Arc<ClientShared>, place: Place, desks: &Arc<Desks<S>>)
where
    S: ClientStream,
{
    if proxied {
        start(after_header(stream, ends, shared.clone(), place, desks.clone()), shared);
    } else {
        start(Session::new(stream, ends, shared.clone(), place).run(desks.clone()), shared);
    }
}

/// A session that begins once a load balancer has told whose it is. That and the first message have one time together.
async fn after_header<S>(
    mut stream: S,
    ends: Ends,
    shared: Arc<ClientShared>,
    place: Place,
    desks: Arc<Desks<S>>,
) -> ClientClosed
where
    S: ClientStream,
{
    let deadline = Instant::now() + shared.limits.load().handshake_timeout;
    // Boxed, as it is done with long before the client is.
    let header = Box::pin(tokio::time::timeout_at(deadline, told_ends(&mut stream, ends))).await;
    let ends = match header {
        Ok(Ok(ends)) => ends,
        Ok(Err(reason)) => return reason,
        Err(_) => return ClientClosed::HandshakeTimeout,
    };
    let Some(place) = place.of(ends.host()) else { return ClientClosed::MaxClientsPerAddress };
    let mut session = Session::new(stream, ends, shared, place);
    session.socket.handshake_until(deadline);
    session.run(desks).await
}

/// The ends as a load balancer tells them.
async fn told_ends(stream: &mut (impl AsyncRead + Unpin), ends: Ends) -> Result<Ends, ClientClosed> {
    match proxy_header::take(stream).await {
        Ok(told) => Ok(told.map_or(ends, |told| Ends::Tcp { peer: told.source, local: told.destination })),
        Err(error) => {
            tracing::debug!(peer = %ends, %error, "closing a connection that does not say whose it is");
            Err(ClientClosed::ProxyHeader)
        }
    }
}

/// A socket that was accepted, and no session yet.
struct Newcomer {
    stream: TcpStream,
    ends: Ends,
    shared: Arc<ClientShared>,
    place: Place,
}

/// A session that begins once the client has shaken hands. That, the header of a load balancer and the first message have one
/// time together.
async fn secured(newcomer: Newcomer, proxied: bool, tls: Arc<ClientTls>, desks: Arc<Desks<TlsSocket>>) -> ClientClosed {
    let deadline = Instant::now() + newcomer.shared.limits.load().handshake_timeout;
    // Boxed, as it is done with long before the client is.
    let session = match Box::pin(tokio::time::timeout_at(deadline, secure(newcomer, proxied, tls))).await {
        Ok(Ok(mut session)) => {
            session.socket.handshake_until(deadline);
            session
        }
        Ok(Err(reason)) => return reason,
        Err(_) => return ClientClosed::HandshakeTimeout,
    };
    session.run(desks).await
}

async fn secure(
    newcomer: Newcomer,
    proxied: bool,
    tls: Arc<ClientTls>,
) -> Result<Box<Session<TlsSocket>>, ClientClosed> {
    let Newcomer { mut stream, mut ends, shared, mut place } = newcomer;
    if proxied {
        ends = told_ends(&mut stream, ends).await?;
        place = place.of(ends.host()).ok_or(ClientClosed::MaxClientsPerAddress)?;
    }
    match tls.accept(stream, shared.limits.load().stall_timeout).await {
        Ok((stream, certificate)) => Ok(Session::new(stream, ends.secured(certificate), shared, place)),
        Err(HandshakeError::Left(_)) => Err(ClientClosed::ClientLeft),
        Err(error @ HandshakeError::NotTls) => {
            if let Some(clients) = shared.plain_on_tls.happened(Instant::now()) {
                tracing::warn!(peer = %ends, clients, "{error}: closed");
            }
            Err(ClientClosed::Tls)
        }
        Err(error @ HandshakeError::Refused(_)) => {
            if let Some(clients) = shared.tls_refused.happened(Instant::now()) {
                tracing::warn!(peer = %ends, clients, %error, "TLS handshakes fail");
            }
            Err(ClientClosed::Tls)
        }
    }
}

/// Runs a session in a task of its own, and counts it.
pub(super) fn start(session: impl Future<Output = ClientClosed> + Send + 'static, shared: &Arc<ClientShared>) {
    let open = OpenClient::new(shared.clone());
    shared.activity.sessions.spawn("client", session.map(move |reason| open.closed(reason)));
}

/// Counts a client from accept to close.
struct OpenClient {
    shared: Arc<ClientShared>,
    reason: ClientClosed,
}

impl OpenClient {
    fn new(shared: Arc<ClientShared>) -> Self {
        shared.metrics.client_connections_opened.inc();
        shared.metrics.client_connections[ClientState::Idle].inc();
        for cluster in shared.clusters.all() {
            cluster.clients.fetch_add(1, Ordering::Relaxed);
        }
        if !shared.clusters.are_several() {
            shared.clusters.default().clients_opened.fetch_add(1, Ordering::Relaxed);
        }
        shared.activity.clients.fetch_add(1, Ordering::Relaxed);
        Self { shared, reason: ClientClosed::Proxy }
    }

    fn closed(mut self, reason: ClientClosed) {
        self.reason = reason;
    }
}

impl Drop for OpenClient {
    fn drop(&mut self) {
        self.shared.metrics.client_connections[ClientState::Idle].dec();
        self.shared.metrics.client_connections_closed[self.reason].inc();
        for cluster in self.shared.clusters.all() {
            cluster.clients.fetch_sub(1, Ordering::Relaxed);
        }
        self.shared.activity.clients.fetch_sub(1, Ordering::Relaxed);
        self.shared.activity.left.notify_waiters();
    }
}
