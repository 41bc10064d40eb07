//! The fixed work: clients that send always the same when the program rests.

use std::fs;

use mongomux::config::Address;
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::support::canned::{self, LARGE, SMALL};
use crate::support::{PATIENCE, raw};

/// Clients that send at once where many do: more than there are connections, and few enough for all to be served before any of
/// them counts as waiting for long, which costs a timer.
const CROWD: usize = 20;

/// One kind of work; what is counted is its cost per command, or per client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Case {
    Ping,
    #[value(name = "find_100")]
    Find100,
    #[value(name = "find_16k")]
    Find16k,
    #[value(name = "insert_100")]
    Insert100,
    #[value(name = "insert_16k")]
    Insert16k,
    /// Finds of 100 bytes by 20 clients at once, on ten connections: half of them wait for one.
    #[value(name = "find_100_crowd")]
    Find100Crowd,
    /// A client that connects, greets, pings and leaves.
    Visit,
}

impl Case {
    /// As it is written.
    pub(crate) fn name(self) -> String {
        clap::ValueEnum::to_possible_value(&self).expect("none is skipped").get_name().to_owned()
    }

    /// How often it is done between two dumps; a whole number of times by each client.
    pub(crate) fn count(self) -> usize {
        match self {
            Self::Find100Crowd => 30 * CROWD,
            Self::Visit => 200,
            _ => 400,
        }
    }

    fn request(self) -> Vec<u8> {
        match self {
            Self::Ping | Self::Visit => canned::ping(),
            Self::Find100 | Self::Find100Crowd => canned::find(SMALL),
            Self::Find16k => canned::find(LARGE),
            Self::Insert100 => canned::insert(SMALL),
            Self::Insert16k => canned::insert(LARGE),
        }
    }
}

/// The clients of one case.
pub(crate) struct Clients {
    case: Case,
    address: Address,
    program: u32,
    request: Vec<u8>,
    sockets: Vec<TcpStream>,
}

impl Clients {
    /// Connects and greets as many as the case takes, to the program that listens at `address`.
    pub(crate) async fn connect(case: Case, address: &Address, program: u32) -> Self {
        let number = match case {
            Case::Visit => 0,
            Case::Find100Crowd => CROWD,
            _ => 1,
        };
        let mut clients =
            Self { case, address: address.clone(), program, request: case.request(), sockets: Vec::new() };
        for _ in 0..number {
            let socket = clients.greet().await;
            clients.sockets.push(socket);
        }
        clients
    }

    /// Does the work as often as [`Case::count`] says.
    pub(crate) async fn work(&mut self) {
        for _ in 0..self.case.count() / self.sockets.len().max(1) {
            match self.case {
                Case::Visit => self.visit().await,
                Case::Find100Crowd => self.burst().await,
                _ => self.command().await,
            }
        }
    }

    async fn command(&mut self) {
        let socket = &mut self.sockets[0];
        socket.write_all(&self.request).await.expect("a socket that the program keeps open");
        let length = reply(socket).await.len();
        assert_eq!(length > 16 * 1024, self.case == Case::Find16k, "a reply of {length} bytes");
        self.rest().await;
    }

    async fn burst(&mut self) {
        // It finds them all at once, however fast it is.
        self.signal(Signal::STOP);
        for socket in &mut self.sockets {
            socket.write_all(&self.request).await.expect("a socket that the program keeps open");
        }
        self.signal(Signal::CONT);
        for socket in &mut self.sockets {
            reply(socket).await;
        }
        self.rest().await;
    }

    async fn visit(&self) {
        let mut socket = self.greet().await;
        socket.write_all(&self.request).await.expect("a socket that the program keeps open");
        reply(&mut socket).await;
        self.rest().await;
        socket.shutdown().await.expect("an open socket");
        // It has nothing to say any more, and closes as well.
        assert!(raw::ends(&mut socket).await, "an answer to nothing");
        self.rest().await;
    }

    /// A new socket, at rest after its hello.
    async fn greet(&self) -> TcpStream {
        let mut socket = raw::connect(&self.address).await;
        self.rest().await;
        socket.write_all(&canned::hello()).await.expect("a new socket");
        reply(&mut socket).await;
        self.rest().await;
        socket
    }

    fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.program).ok().and_then(Pid::from_raw);
        kill_process(pid.expect("a running program"), signal).expect("a child of ours");
    }

    /// Until the program sleeps: what is sent earlier is read in the same turn or in the next one, as it happens. Whatever wakes it
    /// has done so when the call that does returns, so it sleeps when it has done all.
    async fn rest(&self) {
        let sleeps = async {
            let file = format!("/proc/{}/stat", self.program);
            // The name in parentheses may hold anything; the state follows it.
            while !fs::read_to_string(&file).expect("a running program").contains(") S ") {
                tokio::task::yield_now().await;
            }
        };
        timeout(PATIENCE, sleeps).await.expect("the program comes to rest");
    }
}

/// Reads one reply and fails unless it says that all is well.
async fn reply(socket: &mut TcpStream) -> Vec<u8> {
    let message = timeout(PATIENCE, raw::next_message(socket)).await.expect("a reply");
    assert_eq!(message[8..12], raw::REQUEST.to_le_bytes(), "a reply to somebody else");
    let document = raw::document_of(&message);
    assert!(document.get_f64("ok").is_ok_and(|ok| ok == 1.0), "{document}");
    message
}
