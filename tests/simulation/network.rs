//! A network in memory: pipes with latency, cut messages, resets, standstills and ends that close, under the paused clock of tokio.
//!
//! It does what TCP may do and no more: bytes arrive in order or not at all, what was accepted for sending may be lost, and a
//! closed end is seen only later.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use mongomux::client::leaving::ClientStream;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep_until};

use crate::chance::Chance;

/// Who is at the far end of a link, as seen from the proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Far {
    /// The client of that number.
    Client(usize),
    /// The server of that number.
    Server(usize),
}

/// All links that there are.
pub(crate) struct Network {
    chance: Chance,
    /// Longest time that bytes take.
    latency_ms: u64,
    /// What a pipe holds, bytes; by chance if that is not said.
    capacity: Option<usize>,
    links: Mutex<Vec<(Far, Weak<Link>)>>,
}

struct Link {
    /// To the proxy, and from it.
    pipes: [Mutex<Pipe>; 2],
}

#[derive(Default)]
struct Pipe {
    /// What is on its way, and when it arrives.
    segments: VecDeque<(Instant, VecDeque<u8>)>,
    buffered: usize,
    /// Bytes that the sender got rid of, whatever became of them.
    accepted: Arc<AtomicU64>,
    /// The sender has closed, which is seen then.
    ended: Option<Instant>,
    /// The receiver has closed, which is felt then.
    unread_from: Option<Instant>,
    /// Nothing arrives before.
    stalled_until: Option<Instant>,
    reset: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

impl Pipe {
    fn wake(&mut self) {
        self.reader.take().into_iter().chain(self.writer.take()).for_each(Waker::wake);
    }

    fn next_arrival(&self, now: Instant, latency: Duration) -> Instant {
        let last = self.segments.back().map_or(now, |(due, _)| *due);
        last.max(now + latency)
    }
}

/// One end of a link.
pub(crate) struct End {
    link: Arc<Link>,
    /// Which of the pipes it reads.
    reads: usize,
    capacity: usize,
    latency_ms: u64,
    chance: Chance,
    timer: Option<Pin<Box<Sleep>>>,
}

const TO_PROXY: usize = 0;
const FROM_PROXY: usize = 1;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Network {
    pub(crate) fn new(chance: Chance, capacity: Option<usize>) -> Self {
        let latency_ms = chance.range(0..8);
        Self { chance, latency_ms, capacity, links: Mutex::default() }
    }

    /// A new link: the end of the proxy, and the far one.
    pub(crate) fn link(&self, far: Far) -> (End, End) {
        let link = Arc::new(Link { pipes: [Mutex::default(), Mutex::default()] });
        let mut links = lock(&self.links);
        links.retain(|(_, link)| link.strong_count() > 0);
        links.push((far, Arc::downgrade(&link)));
        let capacity = self.capacity.unwrap_or_else(|| self.chance.pick(&[300, 4_000, 70_000]));
        let end = |reads| End {
            link: link.clone(),
            reads,
            capacity,
            latency_ms: self.latency_ms,
            chance: self.chance.clone(),
            timer: None,
        };
        (end(TO_PROXY), end(FROM_PROXY))
    }

    /// How long something takes on its way now.
    pub(crate) fn latency(&self) -> Duration {
        Duration::from_millis(self.chance.range(0..self.latency_ms + 1))
    }

    /// Breaks links to `far`, each with that chance.
    pub(crate) fn reset(&self, far: Far, percent: u64) {
        self.each(far, |pipes| {
            if self.chance.percent(percent) {
                for mut pipe in pipes {
                    pipe.reset = true;
                    pipe.wake();
                }
            }
        });
    }

    /// Nothing arrives over links to `far` for so long, in either direction; each with that chance.
    pub(crate) fn stall(&self, far: Far, percent: u64, time: Duration) {
        let until = Instant::now() + time;
        self.each(far, |pipes| {
            if self.chance.percent(percent) {
                for mut pipe in pipes {
                    pipe.stalled_until = pipe.stalled_until.max(Some(until));
                    pipe.wake();
                }
            }
        });
    }

    /// Everything flows again.
    pub(crate) fn heal(&self) {
        for link in lock(&self.links).iter().filter_map(|(_, link)| link.upgrade()) {
            for pipe in &link.pipes {
                let mut pipe = lock(pipe);
                pipe.stalled_until = None;
                pipe.wake();
            }
        }
    }

    /// Links to `far` that the proxy has not closed, or so lately that a server cannot know yet.
    pub(crate) fn held_by_proxy(&self, far: Far) -> usize {
        let now = Instant::now();
        let links = lock(&self.links);
        let held = links.iter().filter(|(to, _)| *to == far).filter_map(|(_, link)| link.upgrade());
        held.filter(|link| {
            let pipe = lock(&link.pipes[FROM_PROXY]);
            !pipe.reset && pipe.ended.is_none_or(|seen| seen > now)
        })
        .count()
    }

    fn each(&self, far: Far, what: impl Fn([MutexGuard<'_, Pipe>; 2])) {
        let links: Vec<_> =
            lock(&self.links).iter().filter(|(to, _)| *to == far).map(|(_, link)| link.clone()).collect();
        for link in links.iter().filter_map(Weak::upgrade) {
            what([lock(&link.pipes[0]), lock(&link.pipes[1])]);
        }
    }
}

impl End {
    fn incoming(&self) -> MutexGuard<'_, Pipe> {
        lock(&self.link.pipes[self.reads])
    }

    fn outgoing(&self) -> MutexGuard<'_, Pipe> {
        lock(&self.link.pipes[1 - self.reads])
    }

    fn latency(&self) -> Duration {
        Duration::from_millis(self.chance.range(0..self.latency_ms + 1))
    }

    /// True when bytes have come that nobody has read.
    pub(crate) fn has_bytes(&self) -> bool {
        let now = Instant::now();
        self.incoming().segments.front().is_some_and(|(due, _)| *due <= now)
    }

    /// True when the other end is known to be gone.
    pub(crate) fn is_over(&self) -> bool {
        let pipe = self.incoming();
        pipe.reset || pipe.ended.is_some_and(|seen| seen <= Instant::now())
    }

    /// Counts the bytes that the other end has got rid of.
    pub(crate) fn sent_by_other(&self) -> Arc<AtomicU64> {
        self.incoming().accepted.clone()
    }

    /// Closes it as one does that has not read all: whatever is on its way is lost.
    pub(crate) fn abort(self) {
        for pipe in &self.link.pipes {
            let mut pipe = lock(pipe);
            pipe.reset = true;
            pipe.wake();
        }
    }

    /// Waits until `due`, or until something happens.
    fn wait(&mut self, due: Instant, context: &mut Context<'_>) -> Poll<()> {
        let timer = self.timer.insert(Box::pin(sleep_until(due)));
        timer.as_mut().poll(context)
    }
}

impl AsyncRead for End {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            let now = Instant::now();
            let due = {
                let chance = self.chance.clone();
                let mut pipe = self.incoming();
                if pipe.reset {
                    return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
                }
                let stalled = pipe.stalled_until.filter(|until| *until > now);
                let arrival = pipe.segments.front().map(|(due, _)| *due).or(pipe.ended);
                match (stalled, arrival) {
                    (None, Some(due)) if due <= now => {
                        let Some((_, bytes)) = pipe.segments.front_mut() else { return Poll::Ready(Ok(())) };
                        let mut count = bytes.len().min(buffer.remaining());
                        if count > 1 && chance.percent(20) {
                            count = chance.range(1..count as u64) as usize;
                        }
                        let (first, second) = bytes.as_slices();
                        let of_first = count.min(first.len());
                        buffer.put_slice(&first[..of_first]);
                        buffer.put_slice(&second[..count - of_first]);
                        bytes.drain(..count);
                        if bytes.is_empty() {
                            pipe.segments.pop_front();
                        }
                        pipe.buffered -= count;
                        pipe.writer.take().into_iter().for_each(Waker::wake);
                        return Poll::Ready(Ok(()));
                    }
                    (stalled, arrival) => {
                        pipe.reader = Some(context.waker().clone());
                        match (stalled, arrival) {
                            (None, None) => return Poll::Pending,
                            (stalled, arrival) => stalled.max(arrival),
                        }
                    }
                }
            };
            let Some(due) = due else { return Poll::Pending };
            if self.wait(due, context).is_pending() {
                return Poll::Pending;
            }
        }
    }
}

impl AsyncWrite for End {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let (now, latency) = (Instant::now(), self.latency());
        let mut pipe = self.outgoing();
        if pipe.reset || pipe.unread_from.is_some_and(|felt| felt <= now) {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        if pipe.unread_from.is_some() {
            pipe.accepted.fetch_add(bytes.len() as u64, Ordering::Relaxed);
            return Poll::Ready(Ok(bytes.len()));
        }
        let room = self.capacity - pipe.buffered.min(self.capacity);
        if room == 0 {
            pipe.writer = Some(context.waker().clone());
            return Poll::Pending;
        }
        let mut count = bytes.len().min(room);
        if count > 1 && self.chance.percent(20) {
            count = self.chance.range(1..count as u64) as usize;
        }
        let due = pipe.next_arrival(now, latency);
        pipe.segments.push_back((due, bytes[..count].iter().copied().collect()));
        pipe.buffered += count;
        pipe.accepted.fetch_add(count as u64, Ordering::Relaxed);
        pipe.reader.take().into_iter().for_each(Waker::wake);
        Poll::Ready(Ok(count))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let (now, latency) = (Instant::now(), self.latency());
        let mut pipe = self.outgoing();
        if pipe.ended.is_none() {
            pipe.ended = Some(pipe.next_arrival(now, latency));
        }
        pipe.wake();
        Poll::Ready(Ok(()))
    }
}

impl Drop for End {
    fn drop(&mut self) {
        let (now, latency) = (Instant::now(), self.latency());
        {
            let mut pipe = self.outgoing();
            if pipe.ended.is_none() {
                pipe.ended = Some(pipe.next_arrival(now, latency));
            }
            pipe.wake();
        }
        let mut pipe = self.incoming();
        pipe.unread_from = Some(now + latency);
        pipe.segments.clear();
        pipe.buffered = 0;
        pipe.wake();
    }
}

impl ClientStream for End {
    const IS_PLAIN: bool = false;

    fn duplicate(&self) -> Option<OwnedFd> {
        None
    }

    fn has_unread(&self) -> bool {
        true
    }
}
