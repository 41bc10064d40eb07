//! Client sockets to one address, and one thread for all of them: what a request costs here must be little, and the same
//! whoever answers.

use std::io::{self, Read, Write};
use std::mem;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::buffer::spare_capacity;
use rustix::event::{Timespec, epoll};
use rustix::io::Errno;
use socket2::{SockAddr, Socket as Stream, Type};
use tokio::time::Instant;

use super::work::{Asked, Work, hello, ping};

/// Read at once; all but the largest replies fit.
const BUFFER_BYTES: usize = 256 << 10;

/// Sockets that are told of at once.
const EVENTS: usize = 256;

/// The longest that nothing at all may happen while somebody waits for a reply.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// See the module.
pub struct Crowd {
    epoll: OwnedFd,
    events: Vec<epoll::Event>,
    sockets: Vec<Socket>,
    buffer: Vec<u8>,
    /// Buffers for replies that came in pieces, as many as there were at once.
    spare: Vec<Vec<u8>>,
    turn: usize,
}

struct Socket {
    stream: Stream,
    /// What is in flight, and since when.
    asked: Option<(Asked, Instant)>,
    unsent: Vec<u8>,
    /// The beginning of a reply.
    partial: Vec<u8>,
}

/// How far a new socket is.
enum Stage {
    Dialled,
    Greeted,
    Asked,
    Served,
}

impl Crowd {
    /// Nobody yet.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            events: Vec::with_capacity(EVENTS),
            sockets: Vec::new(),
            buffer: vec![0; BUFFER_BYTES],
            spare: Vec::new(),
            turn: 0,
        })
    }

    /// How many sockets there are.
    pub fn len(&self) -> usize {
        self.sockets.len()
    }

    /// Connects until there are `count`, no more than `at_once` at a time: each says hello as `application` and has its first
    /// command, a ping, answered.
    pub fn grow(&mut self, count: usize, address: &SockAddr, application: &str, at_once: usize) -> io::Result<()> {
        let (mut hello, mut ping) = (hello(application), ping());
        let first = self.len();
        let (mut stages, mut served, mut ready) = (Vec::new(), 0, Vec::new());
        while served < count - first {
            while self.len() < count && stages.len() - served < at_once {
                self.dial(address)?;
                stages.push(Stage::Dialled);
            }
            self.wait(None, &mut ready)?;
            for &index in &ready {
                // There may be late news of those who were there before, which is none.
                let Some(stage) = index.checked_sub(first).map(|number| &mut stages[number]) else { continue };
                match stage {
                    Stage::Dialled => {
                        self.sockets[index].stream.take_error()?.map_or(Ok(()), Err)?;
                        self.send(index, &mut hello, Instant::now())?;
                        *stage = Stage::Greeted;
                    }
                    Stage::Greeted if self.right_answer(index, &mut hello)? => {
                        self.send(index, &mut ping, Instant::now())?;
                        *stage = Stage::Asked;
                    }
                    Stage::Asked if self.right_answer(index, &mut ping)? => {
                        served += 1;
                        *stage = Stage::Served;
                    }
                    Stage::Greeted | Stage::Asked | Stage::Served => {}
                }
            }
        }
        Ok(())
    }

    /// True once the reply is whole; a wrong one is an error.
    fn right_answer(&mut self, index: usize, work: &mut Work) -> io::Result<bool> {
        match self.answer(index, work)? {
            Some((_, false)) => Err(io::Error::other("a wrong reply to a new client")),
            answer => Ok(answer.is_some()),
        }
    }

    fn dial(&mut self, address: &SockAddr) -> io::Result<()> {
        let stream = Stream::new(address.domain(), Type::STREAM.nonblocking().cloexec(), None)?;
        if !address.is_unix() {
            stream.set_tcp_nodelay(true)?;
        }
        match stream.connect(address) {
            Err(error) if error.raw_os_error() != Some(Errno::INPROGRESS.raw_os_error()) => return Err(error),
            _ => {}
        }
        // Told of once for all that happens: what has been told of is dealt with at once, to the end.
        let edges = epoll::EventFlags::IN | epoll::EventFlags::OUT | epoll::EventFlags::ET;
        epoll::add(&self.epoll, &stream, epoll::EventData::new_u64(self.sockets.len() as u64), edges)?;
        self.sockets.push(Socket { stream, asked: None, unsent: Vec::new(), partial: Vec::new() });
        Ok(())
    }

    /// Waits until something happens, or until then; tells which sockets there is news of.
    pub fn wait(&mut self, until: Option<Instant>, ready: &mut Vec<usize>) -> io::Result<()> {
        let longest = until.map_or(PATIENCE, |until| until.saturating_duration_since(Instant::now()));
        let longest = Timespec::try_from(longest).map_err(io::Error::other)?;
        self.events.clear();
        epoll::wait(&self.epoll, spare_capacity(&mut self.events), Some(&longest))?;
        if self.events.is_empty() && until.is_none() {
            return Err(io::Error::new(io::ErrorKind::TimedOut, format!("no reply for {PATIENCE:?}")));
        }
        ready.clear();
        ready.extend(self.events.iter().map(|event| event.data.u64() as usize));
        Ok(())
    }

    /// The next socket that has nothing in flight.
    pub fn next_idle(&mut self) -> Option<usize> {
        for _ in 0..self.len() {
            self.turn = (self.turn + 1) % self.len();
            if self.sockets[self.turn].asked.is_none() {
                return Some(self.turn);
            }
        }
        None
    }

    /// Sends the next request of `work`, which was due then.
    pub fn send(&mut self, index: usize, work: &mut Work, due: Instant) -> io::Result<()> {
        let socket = &mut self.sockets[index];
        let (asked, bytes) = work.next();
        debug_assert!(socket.asked.is_none() && socket.unsent.is_empty());
        socket.asked = Some((asked, due));
        let sent = write(&mut socket.stream, bytes)?;
        socket.unsent.extend_from_slice(&bytes[sent..]);
        Ok(())
    }

    /// Deals with news of a socket. Once the reply is whole: since when it was due, and whether it is right.
    pub fn answer(&mut self, index: usize, work: &mut Work) -> io::Result<Option<(Instant, bool)>> {
        let socket = &mut self.sockets[index];
        if !socket.unsent.is_empty() {
            let sent = write(&mut socket.stream, &socket.unsent)?;
            socket.unsent.drain(..sent);
        }
        loop {
            let read = match socket.stream.read(&mut self.buffer) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) => return Err(error),
            };
            let news = &self.buffer[..read];
            let message = if socket.partial.is_empty() && is_whole(news) {
                news
            } else {
                if socket.partial.capacity() == 0 {
                    socket.partial = self.spare.pop().unwrap_or_default();
                }
                socket.partial.extend_from_slice(news);
                &socket.partial
            };
            if is_whole(message) {
                let (asked, due) =
                    socket.asked.take().ok_or_else(|| io::Error::other("a reply that nobody asked for"))?;
                let right = work.is_answer(asked, message);
                if socket.partial.capacity() > 0 {
                    let mut buffer = mem::take(&mut socket.partial);
                    buffer.clear();
                    self.spare.push(buffer);
                }
                return Ok(Some((due, right)));
            }
        }
    }
}

/// True when all of the message is there, or more than that, which makes it a wrong one.
pub fn is_whole(bytes: &[u8]) -> bool {
    bytes.first_chunk().is_some_and(|length| bytes.len() >= u32::from_le_bytes(*length) as usize)
}

/// Writes what the socket takes.
fn write(stream: &mut Stream, bytes: &[u8]) -> io::Result<usize> {
    let mut sent = 0;
    while sent < bytes.len() {
        match stream.write(&bytes[sent..]) {
            Ok(more) => sent += more,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) => return Err(error),
        }
    }
    Ok(sent)
}
