//! Clients behind slow lines: they ask for large documents, and take them a little at a time.

use std::io::{self, Read, Write};
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use socket2::{SockAddr, Socket as Stream, Type};
use tokio::time::Instant;

use super::cases::Command;
use super::crowd::is_whole;
use super::work::{Asked, Work};

/// How many there are, and what each takes in a second.
const READERS: usize = 200;
const PER_SECOND: usize = 64 << 10;

/// Taken at once.
const PIECE: usize = 16 << 10;

/// What the kernel keeps for a reader; by default much of a large document would be in there at once.
const RECEIVE_BUFFER: usize = 64 << 10;

/// What they ask for, and how long the replies are, roughly.
const COMMAND: &str = "find-1MB";
const REPLY_BYTES: usize = 1_000_000;

/// The longest wait until they are spread over their replies. Some may still have nothing by then, which is how it is.
const SPREADING: Duration = Duration::from_secs(10);

/// A pause after each look at all of them meanwhile.
const PAUSE: Duration = Duration::from_millis(1);

/// See the module. A thread of its own serves them until they are told to stop.
pub struct SlowReaders {
    stop: Sender<()>,
    thread: JoinHandle<io::Result<Got>>,
}

/// What they got from the moment on when they were spread.
pub struct Got {
    pub bytes: usize,
    pub seconds: f64,
    /// Whole replies that were not the right ones, since their start.
    pub wrong: usize,
}

impl SlowReaders {
    /// Lets all of them ask, and waits until they are spread evenly over their replies, as if they had been there for long:
    /// some have just begun, some are about to ask again.
    pub fn start(address: SockAddr) -> io::Result<Self> {
        let (stop, stopped) = channel();
        let (spread, is_spread) = channel();
        let thread = thread::spawn(move || read(&address, &spread, &stopped));
        match is_spread.recv() {
            Ok(()) => Ok(Self { stop, thread }),
            Err(_) => Err(join(thread).err().unwrap_or_else(|| io::Error::other("slow readers ended"))),
        }
    }

    /// Disconnects them.
    pub fn stop(self) -> io::Result<Got> {
        drop(self.stop);
        join(self.thread)
    }
}

/// What a thread has come to.
pub fn join<T>(thread: JoinHandle<io::Result<T>>) -> io::Result<T> {
    thread.join().map_err(|_| io::Error::other("a thread panicked"))?
}

fn read(address: &SockAddr, spread: &Sender<()>, stopped: &Receiver<()>) -> io::Result<Got> {
    let command = COMMAND.parse::<Command>().map_err(io::Error::other)?;
    let mut work = Work::new(command);
    let connect = |_| Reader::connect(address, &mut work);
    let mut readers = (0..READERS).map(connect).collect::<io::Result<Vec<_>>>()?;
    let mut ahead: Vec<usize> = (0..READERS).map(|index| index * REPLY_BYTES / READERS).collect();
    let latest = Instant::now() + SPREADING;
    while ahead.iter().any(|bytes| *bytes > 0) && Instant::now() < latest {
        for (reader, ahead) in readers.iter_mut().zip(&mut ahead) {
            *ahead -= reader.take(*ahead, &mut work)?;
        }
        thread::sleep(PAUSE);
    }
    spread.send(()).map_err(io::Error::other)?;
    let gap = Duration::from_secs_f64(PIECE as f64 / (PER_SECOND * READERS) as f64);
    let began = Instant::now();
    let (mut due, mut bytes) = (began, 0);
    for turn in (0..READERS).cycle() {
        bytes += readers[turn].take(PIECE, &mut work)?;
        if stopped.try_recv() == Err(TryRecvError::Disconnected) {
            break;
        }
        due += gap;
        thread::sleep(due.saturating_duration_since(Instant::now()));
    }
    let wrong = readers.iter().map(|reader| reader.wrong).sum();
    Ok(Got { bytes, seconds: began.elapsed().as_secs_f64(), wrong })
}

struct Reader {
    stream: Stream,
    asked: Asked,
    partial: Vec<u8>,
    wrong: usize,
}

impl Reader {
    fn connect(address: &SockAddr, work: &mut Work) -> io::Result<Self> {
        let mut stream = Stream::new(address.domain(), Type::STREAM.cloexec(), None)?;
        stream.set_recv_buffer_size(RECEIVE_BUFFER)?;
        stream.connect(address)?;
        stream.set_nonblocking(true)?;
        let asked = ask(&mut stream, work)?;
        Ok(Self { stream, asked, partial: Vec::new(), wrong: 0 })
    }

    /// Takes no more than so much of what is there; asks again at the end of a reply.
    fn take(&mut self, most: usize, work: &mut Work) -> io::Result<usize> {
        let (mut buffer, mut taken) = ([0; PIECE], 0);
        while taken < most {
            let read = match self.stream.read(&mut buffer[..PIECE.min(most - taken)]) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            };
            taken += read;
            self.partial.extend_from_slice(&buffer[..read]);
            if is_whole(&self.partial) {
                self.wrong += usize::from(!work.is_answer(self.asked, &self.partial));
                self.partial.clear();
                self.asked = ask(&mut self.stream, work)?;
            }
        }
        Ok(taken)
    }
}

/// A request is so small that an idle socket takes it whole.
fn ask(stream: &mut Stream, work: &mut Work) -> io::Result<Asked> {
    let (asked, request) = work.next();
    stream.write_all(request)?;
    Ok(asked)
}
