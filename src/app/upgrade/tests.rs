//! One of the two processes dies, or gives up, at each point of the way: there is always one that goes on.

use std::path::PathBuf;
use std::time::Duration;

use tempfile::TempDir;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;

use super::link::{Message, Reader, VERSION, Writer, split};
use super::*;
use crate::client::{GivenSockets, Shift};

/// The old process, with one listener, and no cluster that could be usable or not.
struct Old {
    directory: TempDir,
    shift: watch::Sender<Shift>,
    listener: Arc<BoundSocket>,
}

impl Old {
    async fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let address = Address::Unix(directory.path().join("clients.sock"));
        let listener = Arc::new(BoundSocket::bind(&address, Liveness::UPSTREAM).await.unwrap());
        Self { directory, shift: watch::Sender::new(Shift::Ours), listener }
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("upgrade.sock")
    }

    async fn standing(&self) -> Standing {
        let doors = vec![Door::new(Role::Clients, &self.listener)];
        Standing { socket: bind(&self.path()).await.unwrap(), doors, clusters: Vec::new(), shift: self.shift.clone() }
    }

    /// What it does beside `new`; returns whether it was relieved until that had ended.
    async fn beside(&self, new: impl Future<Output = ()>) -> bool {
        let standing = self.standing().await;
        let relieved = tokio::select! {
            biased;
            _ = standing.until_relieved() => true,
            () = new => false,
        };
        assert_eq!(*self.shift.borrow() == Shift::Over, relieved);
        relieved
    }
}

async fn heard(reader: &mut Reader) -> Message {
    reader.receive().await.unwrap().expect("it is there still").0
}

/// A new process that is ready.
async fn ready(old: &Old) -> (Reader, Writer) {
    let (mut reader, mut writer) = split(UnixStream::connect(old.path()).await.unwrap());
    writer.send(&Message::Hello { version: VERSION, pid: 1 }, None).await.unwrap();
    assert!(matches!(heard(&mut reader).await, Message::Listener { role: Role::Clients, .. }));
    assert!(matches!(heard(&mut reader).await, Message::ThatIsAll));
    let kept = vec![old.listener.address().clone()];
    writer.send(&Message::Ready { usable: true, takes_clients_of: Vec::new(), kept }, None).await.unwrap();
    (reader, writer)
}

/// The old process has seen the end of the link when it listens to the next one.
async fn is_seen(old: &Old) {
    let (mut reader, mut writer) = split(UnixStream::connect(old.path()).await.unwrap());
    writer.send(&Message::Hello { version: VERSION, pid: 2 }, None).await.unwrap();
    assert!(matches!(heard(&mut reader).await, Message::Listener { .. }));
}

#[tokio::test]
async fn the_old_one_goes_on_when_the_new_one_dies_before_it_begins() {
    let old = Old::new().await;
    let dies = async {
        // Before it has heard that it may begin, and after.
        drop(ready(&old).await);
        is_seen(&old).await;
        let (mut reader, writer) = ready(&old).await;
        assert!(matches!(heard(&mut reader).await, Message::Go));
        drop((reader, writer));
        is_seen(&old).await;
    };
    assert!(!old.beside(dies).await, "nobody has begun");
    assert!(old.listener.owns_file());
    let begins = async {
        let (mut reader, mut writer) = ready(&old).await;
        assert!(matches!(heard(&mut reader).await, Message::Go));
        assert_eq!(*old.shift.borrow(), Shift::Ours, "there is always one that accepts");
        writer.send(&Message::Begun, None).await.unwrap();
        std::future::pending().await
    };
    assert!(old.beside(begins).await);
    assert!(!old.listener.owns_file(), "somebody else listens there");
}

#[tokio::test]
async fn the_new_one_is_told_when_the_old_one_goes_on() {
    let old = Old::new().await;
    let confused = async {
        let (mut reader, mut writer) = split(UnixStream::connect(old.path()).await.unwrap());
        writer.send(&Message::Go, None).await.unwrap();
        assert!(matches!(heard(&mut reader).await, Message::Refused(_)));
        let (mut reader, mut writer) = ready(&old).await;
        assert!(matches!(heard(&mut reader).await, Message::Go));
        writer.send(&Message::Ended, None).await.unwrap();
        assert!(matches!(heard(&mut reader).await, Message::Refused(_)));
    };
    assert!(!old.beside(confused).await);
}

/// An old process that ends by itself in the middle has not been relieved.
#[tokio::test]
async fn a_process_that_ends_is_not_relieved() {
    let old = Old::new().await;
    let begins = async {
        let (mut reader, mut writer) = ready(&old).await;
        assert!(matches!(heard(&mut reader).await, Message::Go));
        old.shift.send_replace(Shift::Ending);
        writer.send(&Message::Begun, None).await.unwrap();
        assert!(matches!(heard(&mut reader).await, Message::Refused(_)));
    };
    assert!(!old.beside(begins).await);
    assert_eq!(*old.shift.borrow(), Shift::Ending);
}

/// What a new process finds whose old one says `last` once it has given everything, and closes its end.
async fn found(last: Option<Message>, directory: &TempDir) -> Before {
    let path = directory.path().join("old.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let old = async {
        let (mut reader, mut writer) = split(listener.accept().await.unwrap().0);
        assert!(matches!(heard(&mut reader).await, Message::Hello { .. }));
        writer.send(&Message::ThatIsAll, None).await.unwrap();
        if let Some(last) = last {
            writer.send(&last, None).await.unwrap();
        }
    };
    let mut given = GivenSockets::default();
    let (found, ()) = tokio::join!(find(&path, &mut given, Duration::ZERO), old);
    std::fs::remove_file(&path).unwrap();
    found.unwrap().expect("there was one")
}

#[tokio::test]
async fn the_new_one_begins_when_the_old_one_has_gone_and_not_when_it_goes_on() {
    let directory = tempfile::tempdir().unwrap();
    let relieve = async |before: Before| before.relieve(true, Vec::new(), Vec::new()).await;
    let gives_up = || Some(Message::Refused("it takes too long".to_owned()));

    let mut before = found(gives_up(), &directory).await;
    let waited = before.until_usable(|| false).await;
    assert!(matches!(&waited, Err(UpgradeError::Refused { why, .. }) if why == "it takes too long"), "{waited:?}");
    let relieved = relieve(found(gives_up(), &directory).await).await;
    assert!(matches!(relieved, Err(UpgradeError::Refused { .. })));

    for last in [None, Some(Message::Go)] {
        let mut before = found(last, &directory).await;
        if before.until_usable(|| true).await.unwrap() {
            let (link, _) = relieve(before).await.unwrap();
            assert!(link.is_none(), "nobody is there any more");
        }
    }
}
