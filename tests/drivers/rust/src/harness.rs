//! What the checks share: comparing, and watching what the driver says about itself.

use std::error::Error;
use std::fmt::{self, Debug};
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use futures_util::TryStreamExt;
use mongodb::bson::{Document, doc};
use mongodb::error::{Error as DriverError, ErrorKind, WriteFailure};
use mongodb::event::EventHandler;
use mongodb::event::cmap::CmapEvent;
use mongodb::event::command::CommandEvent;
use mongodb::event::sdam::SdamEvent;
use mongodb::options::ClientOptions;
use mongodb::{Client, Collection, Cursor, Database};
use tokio::sync::watch;
use tokio::time::Instant;

pub type Result<T = ()> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

/// The driver or the server has no such thing: the check is "n/a".
#[derive(Debug)]
pub struct Lacking(pub String);

impl fmt::Display for Lacking {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Error for Lacking {}

pub fn same<T: PartialEq + Debug>(found: T, wanted: T, what: &str) -> Result {
    let short = |value: &T| format!("{value:?}").chars().take(200).collect::<String>();
    if found == wanted { Ok(()) } else { Err(format!("{what} is {}, not {}", short(&found), short(&wanted)).into()) }
}

pub fn holds(condition: bool, what: &str) -> Result {
    if condition { Ok(()) } else { Err(what.into()) }
}

pub fn code(error: &DriverError) -> Option<i32> {
    match error.kind.as_ref() {
        ErrorKind::Command(command) => Some(command.code),
        ErrorKind::Write(WriteFailure::WriteError(write)) => Some(write.code),
        ErrorKind::Write(WriteFailure::WriteConcernError(concern)) => Some(concern.code),
        ErrorKind::InsertMany(many) => {
            many.write_errors.as_ref().and_then(|errors| errors.first()).map(|error| error.code)
        }
        _ => None,
    }
}

/// The operation must fail with this server code; returns the error.
pub async fn fails<T>(wanted: i32, operation: impl Future<Output = mongodb::error::Result<T>>) -> Result<DriverError> {
    match operation.await {
        Ok(_) => Err(format!("no error, code {wanted} was due").into()),
        Err(error) => {
            same(code(&error), Some(wanted), &format!("code of {error}"))?;
            Ok(error)
        }
    }
}

pub async fn all(
    cursor: impl Future<Output = mongodb::error::Result<Cursor<Document>>>,
) -> mongodb::error::Result<Vec<Document>> {
    cursor.await?.try_collect().await
}

pub fn numbered(range: std::ops::Range<i32>) -> Vec<Document> {
    range.map(|i| doc! { "_id": i }).collect()
}

pub fn ids(documents: &[Document]) -> Vec<i32> {
    documents.iter().map(|document| document.get_i32("_id").unwrap_or(i32::MIN)).collect()
}

/// What one client tells about itself.
#[derive(Default)]
pub struct Seen {
    pub pools_cleared: usize,
    pub servers_lost: Vec<String>,
    pub heartbeats: usize,
    pub heartbeats_failed: Vec<String>,
    pub topology: String,
    pub servers: Vec<String>,
    /// Of the last find or aggregate that left one open.
    pub cursor_id: i64,
    recording: Option<&'static str>,
    recorded: Vec<Document>,
}

#[derive(Clone)]
pub struct View {
    seen: Arc<Mutex<Seen>>,
    get_mores: watch::Sender<u64>,
}

impl View {
    fn attach(options: &mut ClientOptions) -> Self {
        let view = Self { seen: Arc::default(), get_mores: watch::Sender::new(0) };
        let (commands, pools, servers) = (view.clone(), view.clone(), view.clone());
        options.command_event_handler = Some(EventHandler::callback(move |event| commands.command(event)));
        options.cmap_event_handler = Some(EventHandler::callback(move |event| {
            if matches!(event, CmapEvent::PoolCleared(_)) {
                pools.seen().pools_cleared += 1;
            }
        }));
        options.sdam_event_handler = Some(EventHandler::callback(move |event| servers.server(event)));
        view
    }

    pub fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().expect("nothing panics while it is held")
    }

    fn command(&self, event: CommandEvent) {
        match event {
            CommandEvent::Started(started) => {
                if started.command_name == "getMore" {
                    self.get_mores.send_modify(|count| *count += 1);
                }
                let mut seen = self.seen();
                if seen.recording == Some(started.command_name.as_str()) {
                    seen.recorded.push(started.command);
                }
            }
            CommandEvent::Succeeded(succeeded) if ["find", "aggregate"].contains(&succeeded.command_name.as_str()) => {
                let id = succeeded.reply.get_document("cursor").and_then(|cursor| cursor.get_i64("id"));
                match id {
                    Ok(0) | Err(_) => {}
                    Ok(id) => self.seen().cursor_id = id,
                }
            }
            _ => {}
        }
    }

    fn server(&self, event: SdamEvent) {
        let mut seen = self.seen();
        match event {
            SdamEvent::ServerHeartbeatSucceeded(_) => seen.heartbeats += 1,
            SdamEvent::ServerHeartbeatFailed(failed) => seen.heartbeats_failed.push(failed.failure.to_string()),
            SdamEvent::ServerDescriptionChanged(changed) => {
                if let Some(error) = changed.new_description.error() {
                    seen.servers_lost.push(error.to_string());
                }
            }
            SdamEvent::TopologyDescriptionChanged(changed) => {
                let topology = &changed.new_description;
                let servers = topology.servers().into_values().map(|server| format!("{:?}", server.server_type()));
                seen.servers = servers.collect();
                seen.topology = format!("{:?}", topology.topology_type());
            }
            _ => {}
        }
    }

    /// Records the commands of this name; `recorded` ends it.
    pub fn record(&self, name: &'static str) {
        self.seen().recording = Some(name);
    }

    pub fn recorded(&self) -> Vec<Document> {
        let mut seen = self.seen();
        seen.recording = None;
        std::mem::take(&mut seen.recorded)
    }

    /// The next getMore that is sent after this call, not after the future's first poll.
    pub fn next_get_more(&self) -> impl Future<Output = Result> + use<> {
        let mut sent = self.get_mores.subscribe();
        async move {
            tokio::time::timeout(Duration::from_secs(10), sent.changed()).await??;
            Ok(())
        }
    }

    pub fn verify_calm(&self) -> Result {
        let seen = self.seen();
        same(&seen.servers_lost, &vec![], "servers lost")?;
        same(seen.pools_cleared, 0, "pools cleared")?;
        same(&seen.heartbeats_failed, &vec![], "heartbeats failed")
    }
}

pub struct Stage {
    options: ClientOptions,
    pub view_name: String,
    pub compressor: Option<String>,
    pub view: View,
    pub client: Client,
    pub db: Database,
}

impl Stage {
    pub async fn open(uri: &str, view_name: String, compressor: Option<String>) -> Result<Self> {
        let mut uri = uri.to_owned();
        if let Some(compressor) = &compressor {
            uri = format!("{uri}{}compressors={compressor}", if uri.contains('?') { '&' } else { '?' });
        }
        let mut options = ClientOptions::parse(&uri).await?;
        options.server_selection_timeout = Some(Duration::from_secs(10));
        let (client, view) = Self::connect(options.clone(), |_| {})?;
        let db = client.database("drivers_rust");
        Ok(Self { options, view_name, compressor, view, client, db })
    }

    fn connect(mut options: ClientOptions, change: impl FnOnce(&mut ClientOptions)) -> Result<(Client, View)> {
        let view = View::attach(&mut options);
        change(&mut options);
        Ok((Client::with_options(options)?, view))
    }

    /// Whom the connection string names.
    pub fn user(&self) -> Option<&str> {
        self.options.credential.as_ref()?.username.as_deref()
    }

    /// Another client.
    pub fn other(&self, change: impl FnOnce(&mut ClientOptions)) -> Result<(Client, View)> {
        Self::connect(self.options.clone(), change)
    }

    /// An empty collection that exists, or one with these documents.
    pub async fn collection(&self, name: &str, documents: Vec<Document>) -> Result<Collection<Document>> {
        let collection = self.db.collection(name);
        collection.drop().await?;
        self.db.create_collection(name).await?;
        if !documents.is_empty() {
            collection.insert_many(documents).await?;
        }
        Ok(collection)
    }

    pub async fn admin(&self, command: Document) -> mongodb::error::Result<Document> {
        self.client.database("admin").run_command(command).await
    }

    pub async fn wire_version(&self) -> Result<i32> {
        Ok(self.admin(doc! { "hello": 1 }).await?.get_i32("maxWireVersion")?)
    }

    /// The cursor must no longer exist on the server, as soon as the driver, which kills what is dropped, has done so;
    /// one that does would answer 50738 to this session.
    pub async fn gone(&self, collection: &Collection<Document>, cursor_id: i64) -> Result {
        let until = Instant::now() + Duration::from_secs(5);
        loop {
            let found = self.db.run_command(doc! { "getMore": cursor_id, "collection": collection.name() }).await;
            let found = found.err().as_ref().and_then(code);
            if found == Some(43) {
                return Ok(());
            }
            holds(Instant::now() < until, &format!("the cursor was not killed: {found:?}, not 43"))?;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// The server fails commands on the collection meanwhile. A fail point has no other owner: one driver at a time.
    pub async fn failing<T>(
        &self,
        collection: &Collection<Document>,
        mode: impl Into<mongodb::bson::Bson>,
        mut data: Document,
        operation: impl Future<Output = T>,
    ) -> Result<T> {
        data.insert("namespace", collection.namespace().to_string());
        self.admin(doc! { "configureFailPoint": "failCommand", "mode": mode.into(), "data": data }).await?;
        let outcome = operation.await;
        self.admin(doc! { "configureFailPoint": "failCommand", "mode": "off" }).await?;
        Ok(outcome)
    }
}
