//! A relay between the proxy and a server that misbehaves as told: at the door, or in the middle of a chosen command.
//!
//! The proxy's monitoring always passes while the relay listens at all, as trouble that monitoring sees as well is told
//! by a killed or paused server.

use std::collections::VecDeque;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use mongomux::config::Address;
use mongomux::tasks::Tasks;
use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use super::scripted::{self, NAME_BYTES};

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
}

/// What becomes of one command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Only the first bytes are read before the connection is reset: the server never hears of it.
    CutRequest,
    /// Executed; the connection closes without a reply.
    NoReply,
    /// Executed; the connection closes in the middle of the reply.
    HalfReply,
    /// Executed; a second passes between the halves of the reply.
    LateHalf,
    /// Executed; the reply claims to answer another request.
    WrongResponseTo,
    /// Executed; the reply is followed by bytes that nobody asked for.
    TrailingBytes,
    /// Executed; the reply is of another kind than every reply has been for years.
    WrongOpCode,
    /// Executed; the reply announces more bytes than a message may have.
    WrongLength,
    /// Executed; neither a reply nor an end of the connection.
    Silence,
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
    cut: watch::Sender<u32>,
    faults: Mutex<VecDeque<(String, Fault, usize)>>,
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
            cut: watch::Sender::new(0),
            faults: Mutex::default(),
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

    /// Closes the data connections that are open.
    pub fn cut(&self) {
        self.shared.cut.send_modify(|cuts| *cuts += 1);
    }

    /// Treats the next `times` commands of this name like this.
    pub fn next(&self, command: &str, fault: Fault, times: usize) {
        self.shared.faults.lock().expect("nobody panics holding it").push_back((command.to_owned(), fault, times));
    }

    /// Forgets the faults that have not happened yet; returns how many.
    pub fn forget_faults(&self) -> usize {
        self.shared.faults.lock().expect("nobody panics holding it").drain(..).map(|(_, _, times)| times).sum()
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
    loop {
        let door = *wanted.borrow_and_update();
        match door {
            Door::Refuse => listener = None,
            _ if listener.is_none() => listener = Some(scripted::listen(Some(port)).0),
            _ => {}
        }
        let listening = async {
            match &listener {
                Some(listener) => listener.accept().await,
                None => std::future::pending().await,
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

async fn connection(mut proxy: TcpStream, shared: Arc<Shared>) {
    let Some(hello) = scripted::read_message(&mut proxy).await else { return };
    proxy.set_nodelay(true).expect("a TCP socket");
    if scripted::is_monitor(&scripted::document(&hello)) {
        shared.monitors.fetch_add(1, Ordering::Relaxed);
        let Ok(mut server) = dial(&shared.server).await else { return };
        if server.write_all(&hello).await.is_ok() {
            // An end is an end, whatever caused it.
            drop(tokio::io::copy_bidirectional(&mut proxy, &mut server).await);
        }
        return;
    }
    shared.dials.fetch_add(1, Ordering::Relaxed);
    let door = *shared.door.borrow();
    match door {
        Door::Close => return,
        Door::Hang => return hang(proxy, &shared).await,
        Door::Open | Door::Refuse => {}
    }
    let Ok(mut server) = dial(&shared.server).await else { return };
    let mut cut = shared.cut.subscribe();
    tokio::select! {
        _ = relay(&mut proxy, &mut server, hello, &shared) => {}
        _ = cut.changed() => {}
    }
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

/// Request and reply, one after the other; `None` at the end of the connection.
async fn relay(proxy: &mut TcpStream, server: &mut TcpStream, first: Vec<u8>, shared: &Shared) -> Option<()> {
    let mut request = first;
    loop {
        let fault = shared.fault_for(&scripted::command_name(&request));
        if fault == Some(Fault::CutRequest) {
            SockRef::from(&*proxy).set_linger(Some(std::time::Duration::ZERO)).expect("a TCP socket");
            return None;
        }
        let request_whole = scripted::read_rest(proxy, request, usize::MAX).await?;
        server.write_all(&request_whole).await.ok()?;
        if !scripted::is_unacknowledged(&request_whole) {
            let mut reply = scripted::read_message(server).await?;
            match fault {
                Some(Fault::NoReply) => return None,
                Some(Fault::HalfReply) => {
                    reply.truncate(reply.len() / 2);
                    proxy.write_all(&reply).await.ok()?;
                    return None;
                }
                Some(Fault::LateHalf) => {
                    let rest = reply.split_off(reply.len() / 2);
                    proxy.write_all(&reply).await.ok()?;
                    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
                    reply = rest;
                }
                Some(Fault::Silence) => {
                    while proxy.read(&mut [0; 64]).await.ok()? > 0 {}
                    return None;
                }
                Some(Fault::WrongResponseTo) => reply[8] ^= 0x55,
                Some(Fault::TrailingBytes) => reply.extend_from_slice(b"more"),
                Some(Fault::WrongOpCode) => reply[12..16].copy_from_slice(&1_i32.to_le_bytes()),
                Some(Fault::WrongLength) => reply[..4].copy_from_slice(&48_000_001_i32.to_le_bytes()),
                Some(Fault::CutRequest) | None => {}
            }
            proxy.write_all(&reply).await.ok()?;
        }
        request = scripted::read_rest(proxy, Vec::new(), NAME_BYTES).await?;
    }
}

impl Shared {
    fn fault_for(&self, command: &str) -> Option<Fault> {
        let mut faults = self.faults.lock().expect("nobody panics holding it");
        let index = faults.iter().position(|(name, _, times)| name == command && *times > 0)?;
        let (_, fault, times) = &mut faults[index];
        let fault = *fault;
        *times -= 1;
        if *times == 0 {
            faults.remove(index);
        }
        Some(fault)
    }
}
