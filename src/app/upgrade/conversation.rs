//! What the two processes say to each other from the moment when the new one accepts until the old one has ended.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::after::Relief;
use super::link::{Message, Reader, Writer};
use crate::client::arriving::Arrivals;
use crate::client::leaving::Departure;
use crate::upstream::Cluster;
use crate::upstream::elsewhere::{Asking, Question, Told};
use crate::upstream::pool::lock;

/// Questions that wait to be sent. Beyond that a command goes on with what is known here.
const MAX_ASKING: usize = 1024;

/// Questions without an answer. Who asked has long gone on when there are so many.
const MAX_UNANSWERED: usize = 4096;

/// In one message.
const CURSORS_AT_ONCE: usize = 100;

/// To take leave takes no longer, or the other process does not read.
const FAREWELL: Duration = Duration::from_secs(2);

/// What this process does beside answering questions.
pub(in crate::app) enum Part {
    /// The new one: it goes on with clients.
    Takes(Arrivals),
    /// The old one: it hands clients over, until it is told that this was the last.
    Gives { departures: mpsc::Receiver<Departure>, last: oneshot::Receiver<()> },
}

/// The two sides of a link at work.
pub(in crate::app) struct Conversation {
    reader: Reader,
    writer: Writer,
    clusters: Vec<Arc<Cluster>>,
    unanswered: HashMap<u64, (Asking, Instant)>,
    last_number: u64,
}

impl Conversation {
    pub(in crate::app) fn new((reader, writer): (Reader, Writer), clusters: Vec<Arc<Cluster>>) -> Self {
        Self { reader, writer, clusters, unanswered: HashMap::new(), last_number: 0 }
    }

    pub(in crate::app) fn with_relief(relief: Relief, clusters: Vec<Arc<Cluster>>) -> Self {
        Self::new((relief.reader, relief.writer), clusters)
    }

    /// Goes on until the other process, or this one, has ended.
    pub(in crate::app) async fn run(mut self, mut part: Part) {
        let (asks, mut asking) = mpsc::channel(MAX_ASKING);
        self.clusters.iter().for_each(|cluster| cluster.elsewhere.set(Some(asks.clone())));
        drop(asks);
        let ended = self.converse(&mut asking, &mut part).await;
        self.clusters.iter().for_each(|cluster| cluster.elsewhere.set(None));
        match ended {
            Ok(()) => tracing::info!("the link between the two processes has ended"),
            Err(error) => tracing::warn!(%error, "the link between the two processes broke"),
        }
    }

    async fn converse(&mut self, asking: &mut mpsc::Receiver<Asking>, part: &mut Part) -> std::io::Result<()> {
        loop {
            // Nothing is lost when an arm loses: what has come is kept, in the link and in the channels.
            tokio::select! {
                received = self.reader.receive() => match received? {
                    None | Some((Message::Ended, _)) => return Ok(()),
                    Some((Message::Client(client), Some(socket))) => if let Part::Takes(arrivals) = part {
                        arrivals.arrive(Departure { socket, client: *client });
                    },
                    Some((message, _)) => self.hear(message).await?,
                },
                Some(asked) = asking.recv() => self.ask(asked).await?,
                given = next(part) => match given {
                    Some(Departure { socket, client }) => {
                        self.writer.send(&Message::Client(Box::new(client)), Some(socket)).await?;
                    }
                    None => return self.take_leave(part).await,
                },
            }
        }
    }

    async fn ask(&mut self, asked: Asking) -> std::io::Result<()> {
        if self.unanswered.len() >= MAX_UNANSWERED {
            self.unanswered.retain(|_, (asking, _)| !asking.answered.is_closed());
        }
        self.last_number += 1;
        let (number, cluster, question) = (self.last_number, asked.cluster.clone(), asked.question);
        self.unanswered.insert(number, (asked, Instant::now()));
        self.writer.send(&Message::Question { number, cluster, question }, None).await
    }

    async fn hear(&mut self, message: Message) -> std::io::Result<()> {
        match message {
            Message::Question { number, cluster, question } => {
                let told =
                    self.cluster(&cluster).map_or(Told::Nothing, |cluster| cluster.tell(question, Instant::now()));
                self.writer.send(&Message::Answer { number, told }, None).await?;
            }
            Message::Answer { number, told } => {
                let Some((asking, asked)) = self.unanswered.remove(&number) else { return Ok(()) };
                tracing::debug!(question = ?asking.question, ?told, took = ?asked.elapsed(), "the other process answered");
                if let Some(cluster) = self.cluster(&asking.cluster) {
                    cluster.heard(asking.question, told);
                }
                // Whoever waits for it goes on.
                drop(asking.answered);
            }
            Message::Cursors { cluster, cursors } => {
                let Some(cluster) = self.cluster(&cluster) else { return Ok(()) };
                for cursor in cursors {
                    if !lock(&cluster.pins).knows_cursor(cursor.id) {
                        cluster.heard(Question::Cursor(cursor.id), Told::Cursor(cursor));
                    }
                }
            }
            other => tracing::debug!(?other, "the other process says what was not asked"),
        }
        Ok(())
    }

    /// The old process ends: the other one remembers the cursors that are open still.
    async fn take_leave(&mut self, part: &mut Part) -> std::io::Result<()> {
        let farewell = async {
            // Those who have left and are not on their way yet.
            if let Part::Gives { departures, .. } = part {
                while let Ok(Departure { socket, client }) = departures.try_recv() {
                    self.writer.send(&Message::Client(Box::new(client)), Some(socket)).await?;
                }
            }
            for cluster in self.clusters.clone() {
                let cursors = lock(&cluster.pins).tell_cursors();
                for chunk in cursors.chunks(CURSORS_AT_ONCE) {
                    let (cluster, cursors) = (cluster.config().name.clone(), chunk.to_vec());
                    self.writer.send(&Message::Cursors { cluster, cursors }, None).await?;
                }
            }
            self.writer.send(&Message::Ended, None).await
        };
        tokio::time::timeout(FAREWELL, farewell).await.map_err(|_| std::io::ErrorKind::TimedOut)?
    }

    fn cluster(&self, name: &str) -> Option<Arc<Cluster>> {
        self.clusters.iter().find(|cluster| cluster.config().name == name).cloned()
    }
}

/// The next client to be handed over; `None` when there are no more.
async fn next(part: &mut Part) -> Option<Departure> {
    match part {
        Part::Takes(_) => std::future::pending().await,
        Part::Gives { departures, last } => tokio::select! {
            // Nothing is lost when an arm loses. Biased, so that all of them go before the end.
            biased;
            Some(departure) = departures.recv() => Some(departure),
            _ = last => None,
        },
    }
}
