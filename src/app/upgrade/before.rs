//! The new process: it finds the one before, takes its listening sockets, and relieves it once everything is there.

use std::io;
use std::path::Path;
use std::time::Duration;

use tokio::net::UnixStream;
use tokio::time::{Instant, timeout};

use super::UpgradeError;
use super::link::{Message, Reader, Role, VERSION, Writer, split};
use crate::client::{GivenSocket, GivenSockets};
use crate::config::Address;

/// The process before may itself have one before it that has not ended: it answers when that has.
const ANSWER_GRACE: Duration = Duration::from_secs(30);

/// To decide takes no time.
const GO_PATIENCE: Duration = Duration::from_secs(10);

/// So long a server that can be used is waited for. Where there is none even then, the process before decides.
pub(in crate::app) const USABLE_PATIENCE: Duration = Duration::from_secs(20);

/// The process before.
pub(in crate::app) struct Before {
    reader: Reader,
    writer: Writer,
    socket: String,
    /// Of its listeners, those whose files go with them.
    owned_files: Vec<Address>,
    /// Where the next process will look for this one.
    pub(in crate::app) upgrade: Option<GivenSocket>,
}

/// Looks for a process that listens at `path`, and adds its listening sockets to `given`.
///
/// # Errors
/// There is one, and it cannot be taken over from.
pub(in crate::app) async fn find(
    path: &Path,
    given: &mut GivenSockets,
    drain_timeout: Duration,
) -> Result<Option<Before>, UpgradeError> {
    let Ok(stream) = UnixStream::connect(path).await else { return Ok(None) };
    let socket = path.display().to_string();
    let broken = |error| UpgradeError::Link { socket: socket.clone(), error };
    let (mut reader, mut writer) = split(stream);
    reader.check_peer().map_err(broken)?;
    writer.send(&Message::Hello { version: VERSION, pid: std::process::id() }, None).await.map_err(broken)?;
    tracing::info!(%socket, "another process is there: taking over from it");
    let (mut owned_files, mut upgrade) = (Vec::new(), None);
    loop {
        let received = timeout(drain_timeout + ANSWER_GRACE, reader.receive()).await;
        let received = received.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())).map_err(broken)?;
        match received {
            Some((Message::Listener { role, address, owns_file }, Some(listener))) => {
                if owns_file {
                    owned_files.push(address.clone());
                }
                let listener = GivenSocket::new(listener, address, String::new()).map_err(broken)?;
                if role == Role::Upgrade { upgrade = Some(listener) } else { given.push(listener) }
            }
            Some((Message::ThatIsAll, _)) => return Ok(Some(Before { reader, writer, socket, owned_files, upgrade })),
            Some((Message::Refused(why), _)) => return Err(UpgradeError::Refused { socket, why }),
            Some(_) => return Err(broken(io::Error::other("it says what was not asked"))),
            // It has ended just now: there is nothing to take over.
            None => return Ok(None),
        }
    }
}

impl Before {
    /// Waits until `usable` says that there is a server, or for [`USABLE_PATIENCE`]; returns which. Ends early when the process
    /// before has gone.
    ///
    /// # Errors
    /// The process before does not wait any longer, and goes on.
    pub(in crate::app) async fn until_usable(&mut self, usable: impl Fn() -> bool) -> Result<bool, UpgradeError> {
        let deadline = Instant::now() + USABLE_PATIENCE;
        while !usable() {
            // Nothing is lost when an arm loses: what has come is kept, and it is looked again.
            tokio::select! {
                received = self.reader.receive() => match received {
                    Ok(Some((Message::Refused(why), _))) => return Err(self.refused(why)),
                    _ => return Ok(usable()),
                },
                () = tokio::time::sleep(crate::app::QUIET_LOOK) => {}
            }
            if Instant::now() >= deadline {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// This process is ready, and begins once this returns; the one before accepts nobody any more then. Returns the link to it, unless it
    /// has gone, and the addresses of listeners whose files go with this process from now on.
    ///
    /// # Errors
    /// It goes on, and this one is not to begin.
    pub(in crate::app) async fn relieve(
        mut self,
        usable: bool,
        takes_clients_of: Vec<Address>,
        kept: Vec<Address>,
    ) -> Result<(Option<(Reader, Writer)>, Vec<Address>), UpgradeError> {
        let ready = Message::Ready { usable, takes_clients_of, kept };
        if let Err(error) = self.writer.send(&ready, None).await {
            // Whether it has ended or does not wait any longer is what it has said last.
            tracing::debug!(%error, "the process before does not listen");
        }
        match timeout(GO_PATIENCE, self.reader.receive()).await {
            Ok(Ok(Some((Message::Go, _)))) => match self.writer.send(&Message::Begun, None).await {
                Ok(()) => Ok((Some((self.reader, self.writer)), self.owned_files)),
                // It has ended just now.
                Err(_) => Ok((None, self.owned_files)),
            },
            Ok(Ok(Some((Message::Refused(why), _)))) => Err(self.refused(why)),
            Ok(Ok(Some(_))) => {
                Err(UpgradeError::Link { socket: self.socket, error: io::Error::other("it says what was not asked") })
            }
            Err(_) => Err(UpgradeError::Link { socket: self.socket, error: io::ErrorKind::TimedOut.into() }),
            Ok(Ok(None) | Err(_)) => {
                tracing::warn!("the process before has ended by itself");
                Ok((None, self.owned_files))
            }
        }
    }

    fn refused(&self, why: String) -> UpgradeError {
        UpgradeError::Refused { socket: self.socket.clone(), why }
    }
}
