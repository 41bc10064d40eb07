//! The old process: it waits for the next one, gives it the listening sockets, and lets it begin once that is ready.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::UnixStream;
use tokio::sync::watch;
use tokio::time::timeout;

use super::Door;
use super::link::{Message, Reader, VERSION, Writer, split};
use crate::client::bound::{ACCEPT_PAUSE, Accepted};
use crate::client::{BoundSocket, Shift};
use crate::config::Address;
use crate::upstream::Cluster;

/// Who connects says at once what it wants.
const HELLO_PATIENCE: Duration = Duration::from_secs(5);

/// To read secrets, to derive keys and to find a server may take a while.
const READY_PATIENCE: Duration = Duration::from_secs(120);

/// It begins at once, or hangs.
const BEGIN_PATIENCE: Duration = Duration::from_secs(10);

/// The next process, which accepts from now on.
pub(in crate::app) struct Relief {
    pub(super) reader: Reader,
    pub(super) writer: Writer,
    /// Listeners whose clients it goes on with.
    pub(in crate::app) takes_clients_of: Vec<Address>,
}

/// What this process stands for until it is relieved.
pub(in crate::app) struct Standing {
    pub(in crate::app) socket: Arc<BoundSocket>,
    pub(in crate::app) doors: Vec<Door>,
    pub(in crate::app) clusters: Vec<Arc<Cluster>>,
    pub(in crate::app) shift: watch::Sender<Shift>,
}

impl Standing {
    /// Waits for a process that takes over. One that does not get so far leaves everything as it was.
    ///
    /// # Cancel safety
    /// Safe: whoever negotiates sees the link break.
    pub(in crate::app) async fn until_relieved(&self) -> Relief {
        loop {
            let stream = match self.socket.accept().await {
                Ok(Accepted::Unix(stream)) => stream,
                Ok(Accepted::Tcp(..)) => continue,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept on the upgrade socket");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            match self.negotiate(stream).await {
                Ok(relief) => return relief,
                Err(error) => tracing::warn!(%error, "another process does not take over: this one goes on"),
            }
        }
    }

    async fn negotiate(&self, stream: UnixStream) -> io::Result<Relief> {
        let (mut reader, mut writer) = split(stream);
        match self.agree(&mut reader, &mut writer).await {
            Ok(takes_clients_of) => Ok(Relief { reader, writer, takes_clients_of }),
            Err(error) => {
                // One that heard nothing would take this process for gone, and begin beside it.
                if let Err(error) = writer.send(&Message::Refused(error.to_string()), None).await {
                    tracing::debug!(%error, "nobody is there to be told");
                }
                Err(error)
            }
        }
    }

    /// Returns the listeners whose clients the other process goes on with, once that accepts.
    async fn agree(&self, reader: &mut Reader, writer: &mut Writer) -> io::Result<Vec<Address>> {
        reader.check_peer()?;
        let pid = match within(HELLO_PATIENCE, reader).await? {
            Message::Hello { version: VERSION, pid } => pid,
            Message::Hello { version, .. } => {
                let why = format!("it speaks version {VERSION} of the protocol, not {version}");
                return Err(io::Error::other(why));
            }
            _ => return Err(io::Error::other("it does not say hello")),
        };
        tracing::info!(pid, "another process wants to take over");
        for door in &self.doors {
            let Some(socket) = door.socket.upgrade() else { continue };
            let (address, owns_file) = (socket.address().clone(), socket.owns_file());
            let listener = Message::Listener { role: door.role, address, owns_file };
            writer.send(&listener, Some(socket.duplicate()?)).await?;
        }
        writer.send(&Message::ThatIsAll, None).await?;
        let Message::Ready { usable, takes_clients_of, kept } = within(READY_PATIENCE, reader).await? else {
            return Err(io::Error::other("it does not say that it is ready"));
        };
        if !usable && self.clusters.iter().all(|cluster| cluster.not_ready().is_none()) {
            return Err(io::Error::other("it reaches no server that it can use, and this one does"));
        }
        writer.send(&Message::Go, None).await?;
        // One that has died meanwhile, or has given up, would leave nobody who accepts.
        if !matches!(within(BEGIN_PATIENCE, reader).await?, Message::Begun) {
            return Err(io::Error::other("it does not say that it begins"));
        }
        let ours = self.shift.send_if_modified(|shift| {
            let ours = *shift == Shift::Ours;
            if ours {
                *shift = Shift::Over;
            }
            ours
        });
        if !ours {
            return Err(io::Error::other("this process ends by itself"));
        }
        for socket in self.doors.iter().filter_map(|door| door.socket.upgrade()) {
            // Somebody goes on with it. Of the others it is removed as ever.
            if kept.contains(socket.address()) {
                socket.own_file(false);
            }
        }
        tracing::info!(pid, "the next process accepts from now on");
        Ok(takes_clients_of)
    }
}

async fn within(patience: Duration, reader: &mut Reader) -> io::Result<Message> {
    let received = timeout(patience, reader.receive()).await.map_err(|_| io::ErrorKind::TimedOut)??;
    received.map(|(message, _)| message).ok_or_else(|| io::Error::other("it ended before it was ready"))
}
