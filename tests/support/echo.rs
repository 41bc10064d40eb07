//! A scripted server that repeats every command, and says which server it is. What else it answers, a command says in its
//! `comment`; as what it presents itself, the test says.

use std::sync::{Arc, Mutex};

use bson::{Document, doc};
use mongomux::tasks::Tasks;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::sync::watch;

use super::scripted;

/// A running server. It ends with its test, or by [`Echo::end`].
pub struct Echo {
    pub port: u16,
    shared: Arc<Shared>,
    ended: watch::Sender<bool>,
    /// Lets nobody in but monitoring.
    pub shut: watch::Sender<bool>,
}

struct Shared {
    port: u16,
    /// All commands, hellos aside.
    seen: Mutex<Vec<Document>>,
    hello: Mutex<Document>,
}

impl Echo {
    /// One that is a mongos.
    pub fn mongos() -> Self {
        Self::start(scripted::mongos_hello())
    }

    /// One that says `hello`, in front of nothing.
    pub fn start(hello: Document) -> Self {
        let (listener, port) = scripted::listen(None);
        let (ended, shut) = (watch::Sender::new(false), watch::Sender::new(false));
        let shared = Arc::new(Shared { port, seen: Mutex::default(), hello: Mutex::new(hello) });
        let server = Self { port, shared: shared.clone(), ended, shut };
        let (mut ended, shut) = (server.ended.subscribe(), server.shut.subscribe());
        let tasks = Tasks::new();
        tasks.clone().spawn("echo", async move {
            loop {
                let accepted = tokio::select! {
                    accepted = listener.accept() => accepted,
                    _ = ended.wait_for(|ended| *ended) => return,
                };
                let (stream, shared, mut ended, shut) =
                    (accepted.unwrap().0, shared.clone(), ended.clone(), shut.clone());
                tasks.spawn("echo connection", async move {
                    tokio::select! {
                        () = serve(stream, &shared, shut) => {}
                        _ = ended.wait_for(|ended| *ended) => {}
                    }
                });
            }
        });
        server
    }

    /// Closes all sockets, and takes no more.
    pub fn end(&self) {
        self.ended.send_replace(true);
    }

    /// What the next hellos say beside, or instead of, what they said so far.
    pub fn says(&self, more: Document) {
        self.shared.hello.lock().unwrap().extend(more);
    }

    /// How many commands of this name it got.
    pub fn seen(&self, command: &str) -> usize {
        self.commands(command).len()
    }

    /// The commands of this name that it got.
    pub fn commands(&self, command: &str) -> Vec<Document> {
        let seen = self.shared.seen.lock().unwrap();
        seen.iter().filter(|document| document.keys().next().is_some_and(|name| name == command)).cloned().collect()
    }
}

/// A connection string of all of them.
pub fn uri(servers: &[Echo]) -> String {
    let hosts: Vec<String> = servers.iter().map(|server| format!("127.0.0.1:{}", server.port)).collect();
    format!("mongodb://{}/", hosts.join(","))
}

async fn serve(mut stream: TcpStream, shared: &Shared, mut shut: watch::Receiver<bool>) {
    while let Some(message) = scripted::read_message(&mut stream).await {
        let document = scripted::document(&message);
        let reply = if scripted::is_hello(&scripted::command_name(&message)) {
            if !scripted::is_monitor(&document) {
                shut.wait_for(|shut| !*shut).await.unwrap();
            }
            shared.hello.lock().unwrap().clone()
        } else {
            shared.seen.lock().unwrap().push(document.clone());
            let more = document.get_document("comment").cloned().unwrap_or_default();
            let mut reply = doc! { "echo": document, "server": i32::from(shared.port), "ok": 1.0 };
            reply.extend(more);
            reply
        };
        if stream.write_all(&scripted::answer(&message, &reply)).await.is_err() {
            return;
        }
    }
}
