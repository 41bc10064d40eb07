//! From an address to a connection that is ready for commands: dial, TLS, hello, log-in.
//!
//! The caller limits the time of all of it together (`connect_timeout_ms`).

use std::collections::HashMap;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bson::oid::ObjectId;
use bson::raw::{RawArrayBuf, RawDocument, RawDocumentBuf, cstr};
use bson::rawdoc;
use smallvec::SmallVec;
use tokio::net::{TcpStream, UnixStream, lookup_host};
use tokio::time::Instant;

use super::connection::{Connection, Greeting, ReceiveError, Stream};
use super::liveness::Liveness;
use super::pool::lock;
use super::tls::{TlsError, UpstreamTls};
use crate::admission::MemoryBudget;
use crate::auth::sasl::{self, AuthError, Conversation, Step};
use crate::auth::scram::{ClientNonce, KeyDerivation, KeyId, Mechanism as Scram, SaltedKeys, ScramError};
use crate::auth::{Identities, Identity, UpstreamLogin, UserId, UserKeys};
use crate::breaker::Failure;
use crate::config::Address;
use crate::config::uri::{Compression, Credential, Mechanism, Upstream};
use crate::topology::description::Hello;
use crate::topology::monitor::{Monitor, platform};
use crate::wire::{Compressor, Deflation, encode, op_msg};

/// Oldest wire version that is served: 4.4. Drivers leave error labels to servers from there on.
pub const MIN_WIRE_VERSION: i32 = 9;

/// Name of our connections on the server, unless the connection string says another.
pub const DEFAULT_APP_NAME: &str = "mongomux";

/// What servers are told that we are.
pub const DRIVER_NAME: &str = "mongomux";

/// Derived keys that are kept, so that not every connection costs thousands of hash rounds. One credential needs one
/// per mechanism and salt, and each user may have one.
const MAX_CACHED_KEYS: usize = 1_024;

/// Makes connections to a server.
pub trait Dialer: Send + Sync {
    /// Connects, greets and logs in for that user.
    ///
    /// # Cancel safety
    /// A future that is dropped leaves nothing behind.
    fn connect<'a>(
        &'a self,
        address: &'a Address,
        user: UserId,
    ) -> Pin<Box<dyn Future<Output = Result<Connection, ConnectError>> + Send + 'a>>;
}

/// Why there is no connection. Nothing of any command was sent.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// No socket: name, route, or nobody listens.
    #[error("{0}")]
    Dial(#[source] std::io::Error),
    /// No TLS.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// All of it took too long.
    #[error("no connection within {} ms", .0.as_millis())]
    Timeout(Duration),
    /// The socket broke while greeting.
    #[error("handshake: {0}")]
    Broken(#[from] ReceiveError),
    /// What the server said makes no sense, or is an error.
    #[error("handshake: {0}")]
    Hello(String),
    /// Too old for what we promise to clients.
    #[error("the server speaks wire version {found}, at least {MIN_WIRE_VERSION} (MongoDB 4.4) is needed")]
    TooOld {
        /// Its `maxWireVersion`.
        found: i32,
    },
    /// The server does not want our credential.
    #[error("authentication as `{user}` failed: {error}")]
    Auth {
        /// Who we said we are.
        user: String,
        /// What it said.
        error: AuthError,
        /// Who has logged in with us as that user.
        identity: Option<Arc<Identity>>,
    },
}

impl ConnectError {
    /// As the breaker counts it.
    pub fn failure(&self) -> Failure {
        match self {
            Self::Dial(_) | Self::Tls(_) | Self::Timeout(_) => Failure::Connect,
            Self::Broken(_) | Self::Hello(_) | Self::TooOld { .. } | Self::Auth { .. } => Failure::Handshake,
        }
    }

    /// A user of our clients that the server does not take, while it takes others: dropped, or with another password.
    pub fn refused_user(&self) -> Option<&Arc<Identity>> {
        let Self::Auth { error, identity, .. } = self else { return None };
        let of_the_user = match error {
            AuthError::Refused { code, .. } => !is_of_the_server(*code),
            AuthError::Scram(_) | AuthError::NotLoggedIn => true,
            AuthError::Protocol(_) => false,
        };
        identity.as_ref().filter(|_| of_the_user)
    }

    /// True when there never was a socket, or the server has seen its end.
    pub fn left_nothing(&self) -> bool {
        matches!(self, Self::Dial(_)) || self.refused_user().is_some()
    }
}

/// Codes that say nothing about who logs in: the server stops, is not what it was, cannot be reached, or has too much to do.
fn is_of_the_server(code: i32) -> bool {
    matches!(code, 6 | 7 | 89 | 91 | 189 | 262 | 462 | 9001 | 10107 | 10058 | 11600 | 11602 | 13435 | 13436)
}

/// How far a connection has come that is being made.
#[derive(Debug, Clone, Copy)]
pub enum Reached<'a> {
    /// The name of the host has an address.
    Resolved,
    /// There is a socket.
    Connected,
    /// There is TLS; told where there is to be some.
    Encrypted,
    /// The server has said what it is.
    Greeted(&'a RawDocument),
    /// The server knows who we are; told where somebody logs in.
    LoggedIn,
}

/// Is told how far a connection has come.
pub type Reach<'a> = &'a mut (dyn FnMut(Reached<'_>) + Send);

/// Who logs in.
enum Who {
    /// Nobody.
    Nobody,
    /// Whoever the configuration names.
    Credential(Credential),
    /// A user that has logged in with us, by what it has proven to know.
    Keys(Arc<Identity>, UserKeys),
}

/// The dialer for real servers.
pub struct UpstreamDialer {
    app_name: String,
    /// What tells this program from others like it, to whoever looks at a server's connections.
    platform: String,
    is_srv: bool,
    compression: Compression,
    /// Knows the credential: with SRV, DNS may tell where the user lives.
    monitor: Monitor,
    /// Those who have logged in with us.
    identities: Arc<Identities>,
    /// Who the service is now, where that may change.
    service: Mutex<Option<Credential>>,
    tls: Option<Arc<UpstreamTls>>,
    memory: Arc<MemoryBudget>,
    max_message_bytes: usize,
    /// What passwords became, each with what it became that from.
    keys: Mutex<HashMap<KeyId, (KeyDerivation, Arc<SaltedKeys>)>>,
}

impl UpstreamDialer {
    /// For the servers of one connection string; `tls` is made of its options.
    pub fn new(
        upstream: &Upstream,
        tls: Option<Arc<UpstreamTls>>,
        monitor: Monitor,
        identities: Arc<Identities>,
        memory: Arc<MemoryBudget>,
        max_message_bytes: usize,
    ) -> Self {
        Self {
            app_name: upstream.app_name.clone().unwrap_or_else(|| DEFAULT_APP_NAME.to_owned()),
            platform: platform(ObjectId::new()),
            is_srv: upstream.is_srv,
            compression: upstream.compression.clone(),
            monitor,
            identities,
            service: Mutex::default(),
            tls,
            memory,
            max_message_bytes,
            keys: Mutex::default(),
        }
    }

    /// Of a program that has several dialers, which is one to servers.
    #[must_use]
    pub fn of_instance(mut self, id: ObjectId) -> Self {
        self.platform = platform(id);
        self
    }

    /// Who the service is from now on; with SRV, the database stays what DNS has told.
    pub fn log_in_as(&self, mut credential: Credential) {
        if let Some(told) = self.monitor.credential().filter(|_| self.is_srv) {
            credential.source = told.source;
        }
        // Derived from the password of before.
        lock(&self.keys).clear();
        *lock(&self.service) = Some(credential);
    }

    /// How connections are encrypted, if they are.
    pub fn tls(&self) -> Option<&Arc<UpstreamTls>> {
        self.tls.as_ref()
    }

    async fn dial(&self, address: &Address, reached: Reach<'_>) -> Result<Box<dyn Stream>, ConnectError> {
        match address {
            Address::Unix(path) => {
                let stream = UnixStream::connect(path).await.map_err(ConnectError::Dial)?;
                reached(Reached::Connected);
                Ok(Box::new(stream))
            }
            Address::Tcp { host, port } => {
                let found = lookup_host((host.as_str(), *port)).await.map_err(ConnectError::Dial)?;
                let found: SmallVec<[SocketAddr; 4]> = found.collect();
                reached(Reached::Resolved);
                let stream = TcpStream::connect(found.as_slice()).await.map_err(ConnectError::Dial)?;
                reached(Reached::Connected);
                stream.set_nodelay(true).map_err(ConnectError::Dial)?;
                Liveness::UPSTREAM.watch(&stream).map_err(ConnectError::Dial)?;
                match &self.tls {
                    Some(tls) => {
                        let stream = tls.connect(host, stream).await?;
                        reached(Reached::Encrypted);
                        Ok(Box::new(stream))
                    }
                    None => Ok(Box::new(stream)),
                }
            }
        }
    }

    /// Who logs in for a user, and whose connection it becomes; the latter is `None` for the service's own.
    fn who(&self, user: UserId) -> Result<(Who, Option<Arc<Identity>>), ConnectError> {
        if user == UserId::SERVICE {
            let credential = lock(&self.service).clone().or_else(|| self.monitor.credential());
            return Ok((credential.map_or(Who::Nobody, Who::Credential), None));
        }
        let identity = self.identities.of(user);
        let gone = || ConnectError::Auth {
            user: identity.as_ref().map_or_else(|| format!("number {user}"), |identity| identity.shown.clone()),
            error: AuthError::NotLoggedIn,
            identity: identity.clone(),
        };
        let identity = identity.clone().ok_or_else(gone)?;
        let who = match self.identities.login_of(user).as_deref() {
            Some(UpstreamLogin::Credential(credential)) => Who::Credential((**credential).clone()),
            Some(UpstreamLogin::Keys(keys)) => Who::Keys(identity.clone(), keys.clone()),
            Some(UpstreamLogin::Service) | None => return Err(gone()),
        };
        Ok((who, Some(identity)))
    }

    /// As [`Dialer::connect`], for the service itself, and tells how far it has come.
    ///
    /// # Errors
    /// [`ConnectError`]
    ///
    /// # Cancel safety
    /// A future that is dropped leaves nothing behind.
    pub async fn connect_telling(&self, address: &Address, reached: Reach<'_>) -> Result<Connection, ConnectError> {
        self.establish(address, UserId::SERVICE, reached).await
    }

    /// As [`Dialer::connect`], over a socket that is there already.
    ///
    /// # Errors
    /// [`ConnectError`]
    ///
    /// # Cancel safety
    /// A future that is dropped leaves nothing behind.
    pub async fn connect_over(&self, stream: Box<dyn Stream>, user: UserId) -> Result<Connection, ConnectError> {
        let (who, identity) = self.who(user)?;
        let login = Login::new(&who).map_err(|error| of_user(auth_error(&who, error.into()), &identity))?;
        self.greet(stream, login, identity, &mut |_| {}).await
    }

    async fn establish(&self, address: &Address, user: UserId, reached: Reach<'_>) -> Result<Connection, ConnectError> {
        let (who, identity) = self.who(user)?;
        let login = Login::new(&who).map_err(|error| of_user(auth_error(&who, error.into()), &identity))?;
        let in_the_clear = self.tls.is_none() && matches!(address, Address::Tcp { .. });
        if in_the_clear && matches!(&who, Who::Credential(it) if it.mechanism == Some(Mechanism::Plain)) {
            let shown = AuthError::Protocol("PLAIN would show the password: it needs TLS");
            return Err(of_user(auth_error(&who, shown), &identity));
        }
        let stream = self.dial(address, reached).await?;
        self.greet(stream, login, identity, reached).await
    }

    /// Greets and logs in.
    async fn greet(
        &self,
        stream: Box<dyn Stream>,
        login: Option<Login<'_>>,
        identity: Option<Arc<Identity>>,
        reached: Reach<'_>,
    ) -> Result<Connection, ConnectError> {
        let mut connection = Connection::new(stream, self.memory.clone(), self.max_message_bytes);
        connection.identity = identity.clone();
        let hello = self.hello(login.as_ref());
        let (greeting, reply) = hello_exchange(&mut connection, &hello).await?;
        connection.greeting = greeting;
        reached(Reached::Greeted(&reply));
        if let Some(login) = login {
            if let Err(error) = self.log_in(&mut connection, login, &reply).await {
                let error = of_user(error, &identity);
                // The server is well: it is waited for until it has seen the end, so that the place is free then.
                if error.refused_user().is_some() {
                    connection.close().await;
                }
                return Err(error);
            }
            reached(Reached::LoggedIn);
        }
        // From now on only: what was said so far is never compressed.
        connection.compression = agreed(&self.compression, &reply);
        Ok(connection)
    }

    /// The first message of a connection: what it is told about us holds for all its life.
    fn hello(&self, login: Option<&Login<'_>>) -> RawDocumentBuf {
        let mut hello = rawdoc! {
            "hello": 1,
            "helloOk": true,
            "backpressure": "2",
            "client": {
                "application": {"name": self.app_name.as_str()},
                "driver": {"name": DRIVER_NAME, "version": env!("CARGO_PKG_VERSION")},
                "platform": self.platform.as_str(),
                "os": {"type": std::env::consts::OS, "architecture": std::env::consts::ARCH},
            },
        };
        if let Some(login) = login {
            if let Some(query) = &login.mechanisms_query {
                hello.append(cstr!("saslSupportedMechs"), query.as_str());
            }
            if let Some(speculative) = login.conversation.as_ref().and_then(Conversation::speculative) {
                hello.append(cstr!("speculativeAuthenticate"), speculative);
            }
        }
        if !self.compression.compressors.is_empty() {
            let names = self.compression.compressors.iter().map(|compressor| compressor.name());
            hello.append(cstr!("compression"), names.collect::<RawArrayBuf>());
        }
        hello.append(cstr!("$db"), "admin");
        hello
    }

    async fn log_in(
        &self,
        connection: &mut Connection,
        login: Login<'_>,
        hello: &RawDocument,
    ) -> Result<(), ConnectError> {
        let who = login.who;
        let fail = |error: AuthError| auth_error(who, error);
        let speculated = matches!(hello.get("speculativeAuthenticate"), Ok(Some(_)));
        let (mut conversation, mut step) = match login.conversation {
            Some(mut conversation) if speculated || login.mechanisms_query.is_none() => {
                let step = conversation.on_hello(hello).map_err(fail)?;
                (conversation, step)
            }
            // The guess was wrong, or there was none: the server has said by now which mechanisms this user has.
            _ => {
                let conversation = login.credential.map(|credential| Login::scram(credential, sasl::negotiate(hello)));
                let conversation = conversation.ok_or_else(|| fail(AuthError::Protocol("no credential")))?;
                let conversation = conversation.map_err(|error| fail(error.into()))?;
                let start = conversation.start().ok_or_else(|| fail(AuthError::Protocol("no first message")))?;
                (conversation, Step::Send(start))
            }
        };
        loop {
            step = match step {
                Step::Done => return Ok(()),
                Step::Send(command) => {
                    let reply = exchange(connection, &command).await?;
                    conversation.on_reply(&reply).map_err(fail)?
                }
                Step::Derive(derivation) => {
                    let keys = match who {
                        Who::Keys(_, known) if known.id == *derivation.id() => known.keys.clone(),
                        Who::Keys(..) => return Err(fail(ScramError::OtherSalt.into())),
                        Who::Nobody | Who::Credential(_) => self.derive(derivation).await,
                    };
                    conversation.on_keys(&keys).map_err(fail)?
                }
            };
        }
    }

    /// Thousands of hash rounds: on a thread that may block, and once per credential and salt.
    async fn derive(&self, derivation: KeyDerivation) -> Arc<SaltedKeys> {
        let cached = lock(&self.keys).get(derivation.id()).cloned();
        // Of the same password: another one, with the same salt, was a mistake that has been corrected.
        if let Some((_, keys)) = cached.filter(|(of, _)| *of == derivation) {
            return keys;
        }
        let cached = derivation.clone();
        let keys = tokio::task::spawn_blocking(move || Arc::new(derivation.derive()));
        let keys = keys.await.expect("deriving a key does not panic, and blocking tasks are not aborted");
        let mut cache = lock(&self.keys);
        if cache.len() >= MAX_CACHED_KEYS {
            cache.clear();
        }
        cache.insert(cached.id().clone(), (cached, keys.clone()));
        keys
    }
}

impl Dialer for UpstreamDialer {
    fn connect<'a>(
        &'a self,
        address: &'a Address,
        user: UserId,
    ) -> Pin<Box<dyn Future<Output = Result<Connection, ConnectError>> + Send + 'a>> {
        Box::pin(async move { self.establish(address, user, &mut |_| {}).await })
    }
}

/// The error of somebody who logs in, with who that is with us.
fn of_user(error: ConnectError, identity: &Option<Arc<Identity>>) -> ConnectError {
    match error {
        ConnectError::Auth { user, error, .. } => ConnectError::Auth { user, error, identity: identity.clone() },
        other => other,
    }
}

/// A log-in that is about to begin.
struct Login<'a> {
    who: &'a Who,
    /// Where that is a credential.
    credential: Option<&'a Credential>,
    /// Begun with the mechanism that is configured, else with the likely one.
    conversation: Option<Conversation>,
    /// Asks for the user's mechanisms, when none is configured.
    mechanisms_query: Option<String>,
}

impl<'a> Login<'a> {
    fn new(who: &'a Who) -> Result<Option<Self>, ScramError> {
        match who {
            Who::Nobody => Ok(None),
            Who::Credential(credential) => Self::of_credential(who, credential).map(Some),
            Who::Keys(identity, keys) => {
                let (user, nonce) = (&identity.user, ClientNonce::from_random(rand::random()));
                let conversation =
                    Conversation::scram_with_keys(keys.id.mechanism(), &user.database, &user.name, nonce);
                Ok(Some(Self { who, credential: None, conversation: Some(conversation), mechanisms_query: None }))
            }
        }
    }

    fn of_credential(who: &'a Who, credential: &'a Credential) -> Result<Self, ScramError> {
        let (username, password) = texts(credential);
        let conversation = match credential.mechanism {
            Some(Mechanism::ScramSha1) => Some(Self::scram(credential, Scram::Sha1)?),
            Some(Mechanism::ScramSha256) => Some(Self::scram(credential, Scram::Sha256)?),
            Some(Mechanism::X509) => Some(Conversation::x509(credential.username.as_deref())),
            Some(Mechanism::Plain) => Some(Conversation::plain(&credential.source, username, password)),
            // A password that SHA-256 cannot take may still be one of SHA-1.
            None => Self::scram(credential, Scram::Sha256).ok(),
        };
        let mechanisms_query =
            credential.mechanism.is_none().then(|| sasl::supported_mechs_query(&credential.source, username));
        Ok(Self { who, credential: Some(credential), conversation, mechanisms_query })
    }

    fn scram(credential: &Credential, mechanism: Scram) -> Result<Conversation, ScramError> {
        let (username, password) = texts(credential);
        let nonce = ClientNonce::from_random(rand::random());
        Conversation::scram(mechanism, &credential.source, username, password, nonce)
    }
}

/// The first of our compressors that the server names; `None` when it names none.
fn agreed(ours: &Compression, hello: &RawDocument) -> Option<Deflation> {
    let theirs = hello.get_array("compression").ok()?;
    let named = |name: &str| theirs.into_iter().flatten().any(|item| item.as_str() == Some(name));
    let compressor = ours.compressors.iter().find(|compressor| named(compressor.name()))?;
    let deflation = Deflation::from(Compressor::from(*compressor));
    Some(Deflation { zlib_level: ours.zlib_level.unwrap_or(deflation.zlib_level), ..deflation })
}

fn texts(credential: &Credential) -> (&str, &str) {
    (
        credential.username.as_deref().unwrap_or_default(),
        credential.password.as_ref().map(|password| password.as_str()).unwrap_or_default(),
    )
}

/// Asks a server that is connected already what it is now.
///
/// # Errors
/// [`ConnectError`]; the connection is not usable when the socket is at fault.
///
/// # Cancel safety
/// A connection whose future was dropped is in the middle of a message, and says so.
pub(super) async fn greet(connection: &mut Connection) -> Result<Greeting, ConnectError> {
    hello_exchange(connection, &rawdoc! {"hello": 1, "$db": "admin"}).await.map(|(greeting, _)| greeting)
}

async fn hello_exchange(
    connection: &mut Connection,
    hello: &RawDocument,
) -> Result<(Greeting, RawDocumentBuf), ConnectError> {
    let asked = Instant::now();
    let reply = exchange(connection, hello).await?;
    let round_trip_time = Some(asked.elapsed());
    if reply.get_f64("ok").ok() != Some(1.0) {
        return Err(ConnectError::Hello(format!("hello was refused: {}", error_text(&reply))));
    }
    let max_wire_version = reply.get_i32("maxWireVersion").unwrap_or_default();
    if max_wire_version < MIN_WIRE_VERSION {
        return Err(ConnectError::TooOld { found: max_wire_version });
    }
    let connection_id = match reply.get("connectionId") {
        Ok(Some(id)) => id.as_i64().or_else(|| id.as_i32().map(i64::from)).unwrap_or_default(),
        _ => 0,
    };
    Ok((Greeting { connection_id, hello: Hello::read(&reply), max_wire_version, round_trip_time }, reply))
}

async fn exchange(connection: &mut Connection, command: &RawDocument) -> Result<RawDocumentBuf, ConnectError> {
    let message = encode::op_msg(connection.next_request_id(), 0, command);
    let reply = connection.exchange(message.bytes()).await?;
    let document =
        op_msg::reply_document(reply).and_then(|(_, document)| RawDocumentBuf::from_bytes(document.to_vec()).ok());
    connection.clear_reply();
    document.ok_or_else(|| ConnectError::Hello("the reply is no document".to_owned()))
}

fn auth_error(who: &Who, error: AuthError) -> ConnectError {
    let user = match who {
        Who::Nobody => None,
        Who::Credential(credential) => credential.username.clone(),
        Who::Keys(identity, _) => Some(identity.user.to_string()),
    };
    ConnectError::Auth { user: user.unwrap_or_else(|| "(certificate)".to_owned()), error, identity: None }
}

fn error_text(reply: &RawDocument) -> String {
    let code = reply.get_i32("code").unwrap_or_default();
    format!("{} (code {code})", reply.get_str("errmsg").unwrap_or("no reason given"))
}
