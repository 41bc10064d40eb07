//! Load that does not slow down with what it loads: commands are sent when they are due, over as many sockets as it takes,
//! and timed from then, whether or not anybody has been free to send them.
//!
//! Light, as it shares the machine with what it measures: a command costs one write, one read and one short task.

#![allow(clippy::cast_precision_loss, reason = "counts far below 2^52")]

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use bson::{RawDocument, doc};
use mongomux::config::Address;
use mongomux::tasks::Tasks;
use rand::RngExt;
use rand::rngs::SmallRng;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::{Duration, Instant, sleep, sleep_until};

use super::raw;

/// What drivers do with an answer that tells them to back off: so often they send again,
pub const RETRIES: u32 = 2;

/// after at most so long, doubled with each retry,
const BASE_BACKOFF: Duration = Duration::from_millis(100);

/// and never after more than this.
const MAX_BACKOFF: Duration = Duration::from_secs(10);

/// All replies are small.
const REPLY_BYTES: usize = 1024;

/// How a command was answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// By the server.
    Served,
    /// By the proxy, with the labels that make drivers back off.
    Refused {
        /// When.
        refusal: Refusal,
        /// `baseBackoffMS`, or what drivers take without it.
        backoff: Duration,
    },
    /// Some other error, or an answer to something else.
    Wrong(i32),
}

/// When a command was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// As soon as it came: it was not allowed to wait.
    AtOnce,
    /// When its queue stood and would have made it late.
    Standing,
    /// At the limit of all waits.
    AtTheLimit,
}

/// One command as it was sent.
#[derive(Debug, Clone, Copy)]
pub struct Attempt {
    /// When it should have been sent.
    pub due: Instant,
    /// How much later it was: the fault of the load itself.
    pub late: Duration,
    /// From `due` to the answer.
    pub took: Duration,
    /// 0 for the first, then those after a refusal.
    pub retry: u32,
    /// What was answered.
    pub answer: Answer,
}

impl Attempt {
    /// When the answer had come.
    pub fn answered(&self) -> Instant {
        self.due + self.took
    }
}

/// A socket with one command at a time.
pub struct Socket {
    stream: TcpStream,
    number: i32,
}

impl Socket {
    /// Opens one and says hello as `application`.
    pub async fn open(address: &Address, application: &str) -> Self {
        Self::greet(raw::connect(address).await, application).await
    }

    /// As [`Socket::open`], from an address of this machine that is chosen.
    pub async fn open_from(host: Ipv4Addr, address: &Address, application: &str) -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind((host, 0).into()).unwrap();
        let stream = socket.connect(address.to_string().parse().unwrap()).await.unwrap();
        stream.set_nodelay(true).unwrap();
        Self::greet(stream, application).await
    }

    async fn greet(mut stream: TcpStream, application: &str) -> Self {
        let metadata = doc! {
            "application": { "name": application }, "driver": { "name": "open loop", "version": "1" }, "os": { "type": "any" },
        };
        raw::exchange(&mut stream, &raw::command(doc! { "hello": 1, "client": metadata, "$db": "admin" })).await;
        Self { stream, number: 0 }
    }

    /// Sends a message of [`raw::command`] under a number of its own, and takes the answer.
    pub async fn exchange(&mut self, message: &[u8]) -> Answer {
        self.number = self.number.wrapping_add(1);
        let mut message = message.to_vec();
        message[4..8].copy_from_slice(&self.number.to_le_bytes());
        self.stream.write_all(&message).await.unwrap();
        message.clear();
        message.reserve(REPLY_BYTES);
        while message.first_chunk().is_none_or(|length| message.len() < u32::from_le_bytes(*length) as usize) {
            assert!(self.stream.read_buf(&mut message).await.unwrap() > 0, "a socket was closed");
        }
        if message[8..12] == self.number.to_le_bytes() { answer(&message[21..]) } else { Answer::Wrong(0) }
    }
}

fn answer(document: &[u8]) -> Answer {
    let document = RawDocument::from_bytes(document).unwrap();
    if document.get_f64("ok").is_ok_and(|ok| ok == 1.0) {
        return Answer::Served;
    }
    let code = document.get_i32("code").unwrap_or_default();
    let labels = document.get_array("errorLabels").into_iter().flatten();
    let overloaded = labels.flatten().any(|label| label.as_str() == Some("SystemOverloadedError"));
    if code != 462 || !overloaded {
        return Answer::Wrong(code);
    }
    let asked_for = document.get_i32("baseBackoffMS").ok().and_then(|millis| u64::try_from(millis).ok());
    let text = document.get_str("errmsg").unwrap();
    let refusal = match text.contains(": waited ") {
        false => Refusal::AtOnce,
        true if text.contains("in a queue that stands") => Refusal::Standing,
        true => Refusal::AtTheLimit,
    };
    Answer::Refused { refusal, backoff: asked_for.map_or(BASE_BACKOFF, Duration::from_millis) }
}

/// Sockets to send over, and what to send.
#[derive(Clone)]
pub struct Crowd {
    idle: Arc<Mutex<Vec<Socket>>>,
    messages: Arc<[Vec<u8>]>,
    retries: u32,
}

impl Crowd {
    /// Opens `size` sockets as `application`. Each command is one of `messages`; who is told to back off sends it again up to
    /// `retries` times.
    pub async fn open(address: &Address, application: &str, size: usize, messages: Vec<Vec<u8>>, retries: u32) -> Self {
        let mut sockets = Vec::with_capacity(size);
        for _ in 0..size {
            sockets.push(Socket::open(address, application).await);
        }
        Self { idle: Arc::new(Mutex::new(sockets)), messages: messages.into(), retries }
    }

    /// Sends `rate` commands a second for `length`, at random moments that do not depend on each other (a Poisson process).
    /// Returns when the last was sent for the first time, not when it was answered.
    pub async fn send(&self, rate: f64, length: Duration, random: &mut SmallRng) -> Flow {
        let (began, ended) = (Instant::now(), Instant::now() + length);
        let flow = Flow { began, ended, tasks: Tasks::new(), sent: Arc::default(), unsent: Arc::default() };
        let mut due = began;
        for message in (0..self.messages.len()).cycle() {
            due += Duration::from_secs_f64(-f64::ln(1.0 - random.random::<f64>()) / rate);
            if due >= ended {
                break;
            }
            // A command that is late already is sent at once: then this does not wait.
            sleep_until(due).await;
            let jitter = (0..self.retries).map(|_| random.random()).collect();
            flow.tasks.spawn("command", self.clone().run(message, due, jitter, flow.sent.clone(), flow.unsent.clone()));
        }
        sleep_until(ended).await;
        flow
    }

    /// Commands over so many of the sockets, each of which sends the next when it has got an answer: how long those took that
    /// were served.
    pub async fn saturate(&self, sockets: usize, length: Duration) -> Vec<Duration> {
        let (ended, served) = (Instant::now() + length, Arc::<Mutex<Vec<Duration>>>::default());
        let tasks = Tasks::new();
        for _ in 0..sockets {
            let (crowd, served) = (self.clone(), served.clone());
            let mut socket = self.idle.lock().unwrap().pop().expect("more sockets");
            tasks.spawn("closed loop", async move {
                for message in crowd.messages.iter().cycle() {
                    let asked = Instant::now();
                    let answer = socket.exchange(message).await;
                    if Instant::now() >= ended {
                        break;
                    }
                    if answer == Answer::Served {
                        served.lock().unwrap().push(asked.elapsed());
                    }
                }
                crowd.idle.lock().unwrap().push(socket);
            });
        }
        assert_eq!(tasks.join_all(length + super::PATIENCE).await, 0, "commands without an answer");
        std::mem::take(&mut *served.lock().unwrap())
    }

    async fn run(
        self,
        message: usize,
        mut due: Instant,
        jitter: Vec<f64>,
        sent: Arc<Mutex<Vec<Attempt>>>,
        unsent: Arc<AtomicUsize>,
    ) {
        let mut jitter = jitter.into_iter();
        for retry in 0.. {
            let Some(mut socket) = self.idle.lock().unwrap().pop() else {
                unsent.fetch_add(1, Ordering::Relaxed);
                return;
            };
            let late = due.elapsed();
            let answer = socket.exchange(&self.messages[message]).await;
            self.idle.lock().unwrap().push(socket);
            sent.lock().unwrap().push(Attempt { due, late, took: due.elapsed(), retry, answer });
            let Answer::Refused { backoff, .. } = answer else { return };
            let Some(jitter) = jitter.next() else { return };
            let pause = MAX_BACKOFF.min(backoff * (2 << retry)).mul_f64(jitter);
            due = Instant::now() + pause;
            sleep(pause).await;
        }
    }
}

/// What was sent in a time.
pub struct Flow {
    /// When the first could have been due.
    pub began: Instant,
    /// When nothing new was due any more.
    pub ended: Instant,
    tasks: Tasks,
    sent: Arc<Mutex<Vec<Attempt>>>,
    unsent: Arc<AtomicUsize>,
}

impl Flow {
    /// Waits until nothing of it is on its way; all that was answered, in this order, and how many found no socket.
    pub async fn settled(self) -> (Vec<Attempt>, usize) {
        assert_eq!(self.tasks.join_all(super::PATIENCE).await, 0, "commands without an answer");
        let sent = std::mem::take(&mut *self.sent.lock().unwrap());
        (sent, self.unsent.load(Ordering::Relaxed))
    }
}
