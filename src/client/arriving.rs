//! Clients that come from the process before, with all that is known of them: to their drivers nothing has happened.

use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::sync::Arc;

use tokio::net::{TcpStream, UnixStream};

use super::desks::Desks;
use super::ends::Ends;
use super::leaving::{ClientStream, Departure, Traveller, TravellersEnds};
use super::listener::start;
use super::misfits::Doings;
use super::places::Places;
use super::session::Session;
use super::shared::ClientShared;
use crate::config::Address;
use crate::reply::{ClientMetadata, ClientState};
use crate::telemetry::labels::ClientClosed;
use crate::upstream::pool::lock;
use crate::wire::Compressor;

/// Where clients of the process before arrive.
pub struct Arrivals {
    listeners: Vec<Arc<ClientShared>>,
    places: Arc<Places>,
    tcp: Arc<Desks<TcpStream>>,
    unix: Arc<Desks<UnixStream>>,
}

impl Arrivals {
    /// At `listeners`, each at a place as if it had been accepted there.
    pub fn new(listeners: Vec<Arc<ClientShared>>, places: Arc<Places>) -> Self {
        Self { listeners, places, tcp: Arc::default(), unix: Arc::default() }
    }

    /// The listeners whose clients can come: those that do not log in.
    pub fn listeners(&self) -> impl Iterator<Item = &Address> {
        self.listeners.iter().filter(|shared| shared.log_ins.is_none()).map(|shared| &shared.listener)
    }

    /// Goes on with a client.
    pub fn arrive(&self, departure: Departure) {
        let Departure { socket, client } = departure;
        let Some(shared) = self.listeners.iter().find(|shared| shared.listener == client.listener) else {
            tracing::warn!(listener = %client.listener, "a client comes to a listener that is not there: closed");
            return;
        };
        let (shared, places) = (shared.clone(), self.places.clone());
        match client.ends.clone() {
            TravellersEnds::Tcp { peer, local } => {
                let revived = revive(socket, client, Ends::Tcp { peer, local }, shared.clone(), places);
                start(go_on(Box::pin(revived), self.tcp.clone()), &shared);
            }
            TravellersEnds::Unix(path) => {
                let revived = revive(socket, client, Ends::Unix(path), shared.clone(), places);
                start(go_on(Box::pin(revived), self.unix.clone()), &shared);
            }
        }
    }
}

/// A socket as the runtime knows it.
trait Revived: ClientStream {
    fn revive(socket: OwnedFd) -> std::io::Result<Self>;
}

impl Revived for TcpStream {
    fn revive(socket: OwnedFd) -> std::io::Result<Self> {
        Self::from_std(socket.into())
    }
}

impl Revived for UnixStream {
    fn revive(socket: OwnedFd) -> std::io::Result<Self> {
        Self::from_std(socket.into())
    }
}

/// A client on its way to its place. Boxed, as it is done with long before the client is.
type Reviving<S> = Pin<Box<dyn Future<Output = Result<Box<Session<S>>, ClientClosed>> + Send>>;

async fn go_on<S: ClientStream>(reviving: Reviving<S>, desks: Arc<Desks<S>>) -> ClientClosed {
    match reviving.await {
        Ok(session) => session.run(desks).await,
        Err(reason) => reason,
    }
}

async fn revive<S: Revived>(
    socket: OwnedFd,
    client: Traveller,
    ends: Ends,
    shared: Arc<ClientShared>,
    places: Arc<Places>,
) -> Result<Box<Session<S>>, ClientClosed> {
    let stream = S::revive(socket).map_err(|error| {
        tracing::warn!(%error, peer = %ends, "a client's socket cannot be gone on with");
        ClientClosed::Proxy
    })?;
    let place = places.take().await.of(ends.host()).ok_or(ClientClosed::MaxClientsPerAddress)?;
    let metadata = client.metadata.map(|metadata| {
        let (driver_name, driver_version, platform) =
            (metadata.driver_name, metadata.driver_version, metadata.platform);
        let metadata = ClientMetadata { application: metadata.application, driver_name, driver_version, platform };
        lock(&shared.metadata).intern(Arc::new(metadata))
    });
    let mut session = Session::new(stream, ends, shared, place);
    if let Some(name) = metadata.as_ref().and_then(|metadata| metadata.application.as_deref()) {
        session.application = session.shared.metrics.applications.named(name);
    }
    session.state = ClientState {
        metadata,
        hello_seen: client.hello_seen,
        load_balanced: false,
        backpressure: client.backpressure,
        compressors: client.compressors.iter().filter_map(|name| Compressor::from_name(name)).collect(),
    };
    (session.told, session.doings) = (client.told, Doings::before());
    session.socket.is_known();
    Ok(session)
}
