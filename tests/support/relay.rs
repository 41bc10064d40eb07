//! A relay between the proxy and a server that misbehaves as told: at the door, in the middle of a chosen command
//! ([`faults`]), or as a network does ([`network`]).
//!
//! The proxy's monitoring passes while the relay listens at all, unless trouble is said to be theirs as well. Trouble of
//! the server itself is told by a killed or paused one.

mod faults;
pub mod network;

use std::os::fd::AsFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use mongomux::config::Address;
use mongomux::tasks::Tasks;
use socket2::SockRef;
use tokio::io::{AsyncReadExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::{Duration, timeout};

pub use faults::Fault;
pub use network::Network;

use super::scripted;
use faults::Faults;

/// What becomes of a new connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Door {
    /// It reaches the server.
    Open,
    /// Nobody listens; connections that are there go on.
    Refuse,
    /// Accepted, greeted by the proxy, and closed.
    Close,
    /// Accepted, greeted by the proxy, and never answered.
    Hang,
    /// Not even accepted: the system does not answer, as the queue of those to be accepted is full.
    Unanswered,
}

/// How a connection ends that is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// Closed in both directions.
    Close,
    /// Reset.
    Reset,
    /// The server's side is gone and nobody told the proxy, which is answered with a reset when it sends something.
    HalfOpen,
    /// As [`End::HalfOpen`], and what the proxy sends is taken and never answered.
    HalfOpenSilent,
}

/// Whom trouble concerns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Concerns {
    /// Connections that carry commands.
    #[default]
    Data,
    /// Those of the proxy's monitoring as well.
    All,
}

impl Concerns {
    fn includes(self, monitor: bool) -> bool {
        self == Self::All || !monitor
    }
}

/// The relay; it ends with the test.
pub struct Relay {
    shared: Arc<Shared>,
    address: Address,
    door_in_force: watch::Receiver<Door>,
}

struct Shared {
    server: Address,
    door: watch::Sender<Door>,
    network: watch::Sender<Network>,
    end: watch::Sender<Option<(End, Concerns)>>,
    faults: Faults,
    hanging: Mutex<Vec<socket2::Socket>>,
    most_hanging: AtomicUsize,
    dials: AtomicUsize,
    monitors: AtomicUsize,
}

impl Relay {
    /// In front of the server at `server`.
    pub fn start(server: Address) -> Self {
        let (listener, port) = scripted::listen(None);
        let shared = Arc::new(Shared {
            server,
            door: watch::Sender::new(Door::Open),
            network: watch::Sender::default(),
            end: watch::Sender::default(),
            faults: Faults::default(),
            hanging: Mutex::default(),
            most_hanging: AtomicUsize::new(0),
            dials: AtomicUsize::new(0),
            monitors: AtomicUsize::new(0),
        });
        let (in_force, door_in_force) = watch::channel(Door::Open);
        Tasks::new().spawn("relay", accept(listener, port, shared.clone(), in_force));
        Self { shared, address: Address::tcp("127.0.0.1", port), door_in_force }
    }

    /// Where it listens.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// The connection string for the proxy.
    pub fn uri(&self) -> String {
        format!("mongodb://{}/?directConnection=true", self.address)
    }

    /// Treats new connections like this from now on; returns when that is in force.
    pub async fn set_door(&mut self, door: Door) {
        self.shared.door.send_replace(door);
        self.door_in_force.wait_for(|in_force| *in_force == door).await.expect("the relay runs");
    }

    /// The network is like this from now on, for connections that are open, too.
    pub fn set_network(&self, network: Network) {
        self.shared.network.send_replace(network);
    }

    /// Closes the data connections that are open.
    pub fn cut(&self) {
        self.end(End::Close, Concerns::Data);
    }

    /// Ends the connections that are open.
    pub fn end(&self, end: End, concerns: Concerns) {
        self.shared.end.send_replace(Some((end, concerns)));
    }

    /// Treats the next `times` commands of this name like this.
    pub fn next(&self, command: &str, fault: Fault, times: usize) {
        self.shared.faults.expect(command, fault, times);
    }

    /// Forgets the faults that have not happened yet; returns how many.
    pub fn forget_faults(&self) -> usize {
        self.shared.faults.forget()
    }

    /// Requests that came over a connection after a fault that leaves it unfit for any.
    pub fn reused(&self) -> usize {
        self.shared.faults.reused()
    }

    /// Data connections accepted so far.
    pub fn dials(&self) -> usize {
        self.shared.dials.load(Ordering::Relaxed)
    }

    /// Monitoring connections accepted so far.
    pub fn monitors(&self) -> usize {
        self.shared.monitors.load(Ordering::Relaxed)
    }

    /// The most connections that hung at [`Door::Hang`] at the same time.
    pub fn most_hanging(&self) -> usize {
        self.shared.most_hanging.load(Ordering::Relaxed)
    }
}

async fn accept(listener: TcpListener, port: u16, shared: Arc<Shared>, in_force: watch::Sender<Door>) {
    let mut listener = Some(listener);
    let mut wanted = shared.door.subscribe();
    let tasks = Tasks::new();
    let mut crowd = Vec::new();
    loop {
        let door = *wanted.borrow_and_update();
        crowd.clear();
        match (door, &listener) {
            (Door::Refuse, _) => listener = None,
            (_, None) => listener = Some(scripted::listen(Some(port)).0),
            (Door::Unanswered, Some(listener)) => crowd = fill_backlog(listener, port).await,
            (_, Some(listener)) => {
                SockRef::from(listener).listen(scripted::BACKLOG).expect("it listens already");
            }
        }
        let listening = async {
            match &listener {
                Some(listener) if door != Door::Unanswered => listener.accept().await,
                _ => std::future::pending().await,
            }
        };
        in_force.send_replace(door);
        tokio::select! {
            accepted = listening => {
                let (stream, _) = accepted.expect("accepting");
                tasks.spawn("relayed connection", connection(stream, shared.clone()));
            }
            changed = wanted.changed() => if changed.is_err() { return },
        }
    }
}

/// Leaves no room for those to be accepted; returns who takes it. The system ignores who else wants to connect.
async fn fill_backlog(listener: &TcpListener, port: u16) -> Vec<TcpStream> {
    SockRef::from(listener).listen(0).expect("it listens already");
    let mut crowd = Vec::new();
    while let Ok(stream) = timeout(Duration::from_millis(100), TcpStream::connect(("127.0.0.1", port))).await {
        crowd.push(stream.expect("somebody listens"));
    }
    crowd
}

async fn connection(mut proxy: TcpStream, shared: Arc<Shared>) {
    let Some(hello) = scripted::read_message(&mut proxy).await else { return };
    proxy.set_nodelay(true).expect("a TCP socket");
    let monitor = scripted::is_monitor(&scripted::document(&hello));
    if monitor {
        shared.monitors.fetch_add(1, Ordering::Relaxed);
    } else {
        shared.dials.fetch_add(1, Ordering::Relaxed);
        let door = *shared.door.borrow();
        match door {
            Door::Close => return,
            Door::Hang => return hang(proxy, &shared).await,
            Door::Open | Door::Refuse | Door::Unanswered => {}
        }
    }
    let told = told_to_end(shared.end.subscribe(), monitor);
    let end = tokio::select! {
        end = converse(&mut proxy, hello, monitor, &shared) => end.unwrap_or(End::Close),
        end = told => end,
    };
    match end {
        End::Close => {}
        End::Reset => reset(&proxy),
        End::HalfOpen => {
            if proxy.read(&mut [0; 64]).await.is_ok_and(|read| read > 0) {
                reset(&proxy);
            }
        }
        End::HalfOpenSilent => while proxy.read(&mut [0; 4096]).await.is_ok_and(|read| read > 0) {},
    }
}

async fn told_to_end(mut ends: watch::Receiver<Option<(End, Concerns)>>, monitor: bool) -> End {
    loop {
        ends.changed().await.expect("the relay lives as long as its connections");
        match *ends.borrow_and_update() {
            Some((end, concerns)) if concerns.includes(monitor) => return end,
            _ => {}
        }
    }
}

/// The next close of this socket tells the other side that everything is lost.
fn reset(socket: &TcpStream) {
    SockRef::from(socket).set_linger(Some(Duration::ZERO)).expect("a TCP socket");
}

/// Everything that is said over one connection, through the network as it is; `None` when a side has closed it.
async fn converse(proxy: &mut TcpStream, hello: Vec<u8>, monitor: bool, shared: &Shared) -> Option<End> {
    let server = async |near: &mut tokio::io::DuplexStream| {
        let mut server = dial(&shared.server).await.ok()?;
        if monitor {
            // An end is an end, whatever caused it.
            drop(copy_bidirectional(near, &mut server).await);
            return None;
        }
        faults::relay(near, &mut server, &shared.faults).await
    };
    network::through(proxy, hello, shared.network.subscribe(), monitor, server).await
}

async fn dial(server: &Address) -> std::io::Result<TcpStream> {
    let Address::Tcp { host, port } = server else { panic!("{server} is no TCP address") };
    let stream = TcpStream::connect((host.as_str(), *port)).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Keeps the connection without a word, and counts how many the proxy holds like that at once.
async fn hang(mut proxy: TcpStream, shared: &Shared) {
    {
        let mut hanging = shared.hanging.lock().expect("nobody panics holding it");
        // Those that the proxy has given up do not count: asked of the system, as their tasks may not know yet.
        hanging.retain(|socket| !matches!(socket.peek(&mut [std::mem::MaybeUninit::uninit()]), Ok(0)));
        let fd = proxy.as_fd().try_clone_to_owned().expect("a descriptor");
        hanging.push(socket2::Socket::from(fd));
        shared.most_hanging.fetch_max(hanging.len(), Ordering::Relaxed);
    }
    while proxy.read(&mut [0; 64]).await.is_ok_and(|read| read > 0) {}
}
