//! Log-ins of clients, where a listener asks for them: SCRAM in two or three rounds, PLAIN and certificates in one, and all of
//! them begun in a hello as well.
//!
//! Whoever has not logged in has little: a few small messages, the commands that servers serve then, and one conversation at a
//! time. What a log-in needs beside that is boxed and gone when it is over.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use bson::raw::{RawDocument, RawDocumentBuf, cstr};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;

use super::ends::Ends;
use super::failed_log_ins::{FailedLogIns, Origin};
use super::session::Session;
use crate::auth::identity::UserName;
use crate::auth::scram_server::{ClientFirst, Decoys, ScramServer, ServerNonce};
use crate::auth::users::{Proof, UserRecord, UserSource, UsersUnavailable};
use crate::auth::{Identity, Mechanism};
use crate::command::server_commands::is_known_to_servers;
use crate::command::{Command, LocalCommand};
use crate::config::limits::{FAILED_LOG_INS_LOGGED_PER_SECOND, MAX_USER_NAME_BYTES};
use crate::config::users_file::EXTERNAL;
use crate::reply::ErrorReply;
use crate::reply::local;
use crate::reply::log_in::{self as reply, Authenticate, Continue, Payload, Speculative, Start};
use crate::tasks::compute;
use crate::telemetry::labels::{LogInMechanism, LogInOutcome};
use crate::telemetry::metrics::Metrics;
use crate::upstream::pool::lock;
use crate::wire::Frame;
use crate::wire::document::find;

/// Where the clients of a listener log in.
pub struct LogIns {
    source: Arc<dyn UserSource>,
    decoys: Arc<Decoys>,
    /// How many log-ins from one address may fail in a row.
    most_failed: Option<u32>,
    failed: Mutex<FailedLogIns>,
    logged: Mutex<Logged>,
    metrics: Arc<Metrics>,
    began: Instant,
}

/// Failures that were told in the log within the second that began then.
struct Logged {
    since: Instant,
    count: u32,
}

impl LogIns {
    /// Of users that come from `source`.
    pub fn new(
        source: Arc<dyn UserSource>,
        decoys: Arc<Decoys>,
        most_failed: Option<u32>,
        metrics: Arc<Metrics>,
    ) -> Arc<Self> {
        let now = Instant::now();
        let (failed, logged) = (Mutex::default(), Mutex::new(Logged { since: now, count: 0 }));
        Arc::new(Self { source, decoys, most_failed, failed, logged, metrics, began: now })
    }

    /// Since when, for [`Knocks`](super::knocks::Knocks).
    pub(super) fn since_began(&self) -> Duration {
        self.began.elapsed()
    }

    fn is_paused(&self, ends: &Ends) -> bool {
        self.most_failed.is_some() && lock(&self.failed).is_paused(Origin::of(ends.host()), Instant::now())
    }

    fn count(&self, mechanism: LogInMechanism, outcome: LogInOutcome) {
        self.metrics.log_ins[(mechanism, outcome)].inc();
    }

    /// What the client of a log-in that fails is told: always the same.
    fn failed(&self, ends: &Ends, mechanism: LogInMechanism, user: &str, why: &dyn std::fmt::Display) -> ErrorReply {
        use crate::telemetry::labels::Label as _;

        self.count(mechanism, LogInOutcome::Failed);
        let now = Instant::now();
        let in_a_row = self
            .most_failed
            .map(|most| lock(&self.failed).failed(Origin::of(ends.host()), most, now))
            .unwrap_or_default();
        if self.may_log(now) {
            // Quoted, as a name may hold anything.
            let user = user.get(..user.floor_char_boundary(MAX_USER_NAME_BYTES)).unwrap_or_default();
            tracing::info!(peer = %ends, ?user, mechanism = mechanism.as_str(), %why, in_a_row, "a log-in failed");
        }
        reply::failed()
    }

    /// Refuses a log-in unseen.
    fn paused(&self, mechanism: LogInMechanism) -> ErrorReply {
        self.count(mechanism, LogInOutcome::Paused);
        reply::failed()
    }

    fn unavailable(&self, mechanism: LogInMechanism, why: &UsersUnavailable) -> ErrorReply {
        self.count(mechanism, LogInOutcome::Unavailable);
        if self.may_log(Instant::now()) {
            tracing::warn!(%why, "cannot log anybody in");
        }
        reply::unavailable(&why.0)
    }

    fn may_log(&self, now: Instant) -> bool {
        let mut logged = lock(&self.logged);
        if now.saturating_duration_since(logged.since) >= Duration::from_secs(1) {
            *logged = Logged { since: now, count: 0 };
        }
        logged.count += 1;
        logged.count <= FAILED_LOG_INS_LOGGED_PER_SECOND
    }

    async fn find(&self, mechanism: LogInMechanism, user: &UserName) -> Result<Option<Arc<UserRecord>>, ErrorReply> {
        self.source.find(user).await.map_err(|why| self.unavailable(mechanism, &why))
    }
}

/// What one socket has beside its identity; only while there is something to say.
#[derive(Default)]
pub(super) struct LogIn {
    conversation: Option<Conversation>,
}

impl LogIn {
    /// When a conversation has to be over.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.conversation.as_ref().map(|conversation| conversation.deadline)
    }
}

struct Conversation {
    mechanism: Mechanism,
    user: UserName,
    skip_empty_exchange: bool,
    deadline: Instant,
    stage: Stage,
}

enum Stage {
    /// Waits for the proof. Without a record there is nothing that would be right.
    Proof(ScramServer, Option<Arc<UserRecord>>),
    /// The proof was right; a client that does not skip it says nothing once more.
    Empty(Arc<Identity>),
}

/// Our part of a round.
struct Turn {
    done: bool,
    payload: Vec<u8>,
    as_text: bool,
}

impl Turn {
    fn document(&self) -> RawDocumentBuf {
        reply::turn(self.done, &self.payload, self.as_text)
    }
}

impl From<Mechanism> for LogInMechanism {
    fn from(mechanism: Mechanism) -> Self {
        match mechanism {
            Mechanism::Sha1 => Self::ScramSha1,
            Mechanism::Sha256 => Self::ScramSha256,
        }
    }
}

fn ok(mut document: RawDocumentBuf) -> RawDocumentBuf {
    document.append(cstr!("ok"), 1.0);
    document
}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Session<S> {
    /// Why a command is refused before anything is looked at; `None` for all where nobody has to log in.
    pub(super) fn locked_out(&self, command: &Command, frame: &Frame) -> Option<ErrorReply> {
        self.shared.log_ins.as_ref()?;
        match &self.identity {
            Some(identity) if !identity.is_revoked() => None,
            _ if command.spec.needs_no_log_in() => None,
            Some(identity) => Some(reply::revoked(&identity.user)),
            None => {
                let name = command.name(frame);
                let known = !command.spec.name.is_empty() || is_known_to_servers(name);
                Some(if known { reply::requires_authentication(name) } else { reply::no_such_command(name) })
            }
        }
    }

    /// True when a client has sent more than one may that has still to log in.
    pub(super) fn knocks_too_often(&mut self) -> bool {
        match &self.shared.log_ins {
            Some(log_ins) if self.identity.is_none() => !self.knocks.admit(log_ins.since_began()),
            _ => false,
        }
    }

    /// True when the user was dropped, or has another password: what it has been told was the last.
    pub(super) fn is_revoked(&self) -> bool {
        self.identity.as_ref().is_some_and(|identity| identity.is_revoked())
    }

    /// Whoever is in the middle of a log-in has to go on.
    pub(super) fn hurry(&mut self) {
        if let Some(deadline) = self.log_in.as_ref().and_then(|log_in| log_in.deadline())
            && self.identity.is_none()
        {
            self.socket.expect_by(deadline);
        }
    }

    /// A command about log-ins.
    pub(super) async fn log_in_command(
        &mut self,
        command: LocalCommand,
        (name, document, database): (&str, &[u8], &str),
    ) -> Result<RawDocumentBuf, ErrorReply> {
        local::check_api(document, name)?;
        let Some(log_ins) = self.shared.log_ins.clone() else { return Err(local::login(name)) };
        if self.is_revoked() && matches!(command, LocalCommand::SaslStart | LocalCommand::Authenticate) {
            self.forget();
        }
        match command {
            LocalCommand::SaslStart => {
                self.end_conversation();
                let start = Start::read(document)?;
                self.sasl_start(&log_ins, start, database, true).await.map(|turn| ok(turn.document()))
            }
            LocalCommand::SaslContinue => {
                let asked = Continue::read(document)?;
                self.sasl_continue(&log_ins, &asked).map(|turn| ok(turn.document()))
            }
            LocalCommand::Authenticate => {
                let asked = Authenticate::read(document)?;
                self.authenticate(&log_ins, &asked).await.map(|user| ok(reply::known_by_certificate(&user)))
            }
            LocalCommand::Logout => self.log_out(database),
            _ => self.connection_status(&log_ins, document).await,
        }
    }

    /// The answer to a hello, with what it asks about log-ins.
    pub(super) async fn with_log_in(
        &mut self,
        hello: &RawDocument,
        name: &str,
        document: &[u8],
    ) -> Result<RawDocumentBuf, ErrorReply> {
        let (mechanisms, speculative) = reply::in_hello(document, name)?;
        let Some(log_ins) = self.shared.log_ins.clone() else { return Ok(hello.to_owned()) };
        let mechanisms = match mechanisms.and_then(|user| user.split_once('.')) {
            // Of those who are known elsewhere nothing is to be chosen.
            Some((database, user)) if !database.is_empty() && database != EXTERNAL && !user.is_empty() => {
                let user = UserName { database: database.to_owned(), name: user.to_owned() };
                // Where it cannot be told, the client asks for what it would ask for without being told.
                log_ins.source.find(&user).await.ok().map(|record| mechanisms_of(record.as_deref()))
            }
            _ => None,
        };
        // Whatever is wrong with it is told when the client tries in earnest.
        let begun = match speculative.and_then(Speculative::read) {
            Some(Speculative::Start(start, database)) => {
                self.end_conversation();
                self.sasl_start(&log_ins, start, database, false).await.ok().map(|turn| turn.document())
            }
            Some(Speculative::Authenticate(asked)) => {
                self.authenticate(&log_ins, &asked).await.ok().map(|user| reply::known_by_certificate(&user))
            }
            None => None,
        };
        Ok(reply::into_hello(hello, mechanisms.as_deref(), begun))
    }

    /// Begins a log-in. `in_earnest` is false in a hello, where a password in the clear has no business.
    async fn sasl_start(
        &mut self,
        log_ins: &Arc<LogIns>,
        start: Start<'_>,
        database: &str,
        in_earnest: bool,
    ) -> Result<Turn, ErrorReply> {
        let mechanism = match start.mechanism {
            "SCRAM-SHA-1" => Mechanism::Sha1,
            "SCRAM-SHA-256" => Mechanism::Sha256,
            "PLAIN" if in_earnest && log_ins.source.takes_other_than_scram() && self.is_private() => {
                return self.plain(log_ins, start.payload, database).await;
            }
            other => return Err(reply::mechanism_not_enabled(other)),
        };
        if database == EXTERNAL {
            return Err(reply::mechanism_of_another_database(start.mechanism, database));
        }
        let label = mechanism.into();
        if log_ins.is_paused(&self.ends) {
            return Err(log_ins.paused(label));
        }
        let first = ClientFirst::parse(start.payload.bytes.expose())
            .map_err(|why| log_ins.failed(&self.ends, label, "", &why))?;
        let user = UserName { database: database.to_owned(), name: first.user().to_owned() };
        let record = log_ins.find(label, &user).await?;
        // Drivers take what a hello has begun for the mechanism that they chose by `saslSupportedMechs`, so it must be one of those.
        if !in_earnest && record.as_ref().is_some_and(|record| record.verifier(mechanism).is_none()) {
            return Err(reply::failed());
        }
        let verifier = log_ins.decoys.verifier_of(record.as_deref(), mechanism, &user.to_string());
        let (server, payload) = first.challenge(&verifier, &ServerNonce::from_random(rand::random()));
        let deadline = Instant::now() + self.shared.limits.handshake_timeout;
        let stage = Stage::Proof(server, record);
        let skip_empty_exchange = start.skip_empty_exchange;
        self.log_in.get_or_insert_default().conversation =
            Some(Conversation { mechanism, user, skip_empty_exchange, deadline, stage });
        Ok(Turn { done: false, payload, as_text: start.payload.as_text })
    }

    fn sasl_continue(&mut self, log_ins: &LogIns, asked: &Continue) -> Result<Turn, ErrorReply> {
        let conversation = self.log_in.as_mut().and_then(|log_in| log_in.conversation.take());
        self.tidy();
        let Some(mut conversation) = conversation else { return Err(reply::no_conversation()) };
        if asked.conversation_id != 1 {
            return Err(reply::other_conversation());
        }
        let (payload, as_text) = (asked.payload.bytes.expose(), asked.payload.as_text);
        let label = conversation.mechanism.into();
        let name = conversation.user.name.clone();
        match conversation.stage {
            Stage::Proof(server, record) => {
                // Those that were begun before the pause do not go on within it.
                if log_ins.is_paused(&self.ends) {
                    return Err(log_ins.paused(label));
                }
                let proven = server.on_client_final(payload);
                let proven = proven.map_err(|why| log_ins.failed(&self.ends, label, &name, &why))?;
                let Some(record) = record else {
                    return Err(log_ins.failed(&self.ends, label, &name, &"no such user"));
                };
                let proof = Proof::Scram { id: proven.id, client_key: proven.client_key };
                let identity = self.admit(log_ins, label, &conversation.user, &record, proof)?;
                if conversation.skip_empty_exchange {
                    self.logged_in(log_ins, label, identity);
                } else {
                    conversation.stage = Stage::Empty(identity);
                    self.log_in.get_or_insert_default().conversation = Some(conversation);
                    return Ok(Turn { done: false, payload: proven.server_final, as_text });
                }
                Ok(Turn { done: true, payload: proven.server_final, as_text })
            }
            Stage::Empty(identity) if payload.is_empty() => {
                self.logged_in(log_ins, label, identity);
                Ok(Turn { done: true, payload: Vec::new(), as_text })
            }
            Stage::Empty(_) => Err(log_ins.failed(&self.ends, label, &name, &"a message where none is expected")),
        }
    }

    /// A password in the clear. Deriving takes milliseconds of another thread, for those who are not known as well.
    async fn plain(&mut self, log_ins: &LogIns, payload: Payload, database: &str) -> Result<Turn, ErrorReply> {
        const LABEL: LogInMechanism = LogInMechanism::Plain;
        if database != EXTERNAL {
            return Err(reply::mechanism_of_another_database("PLAIN", database));
        }
        if log_ins.is_paused(&self.ends) {
            return Err(log_ins.paused(LABEL));
        }
        let text = str::from_utf8(payload.bytes.expose()).ok().filter(|text| text.len() <= 4 * MAX_USER_NAME_BYTES);
        let mut parts = text.unwrap_or_default().split('\0');
        let (_authorize, name, password, end) = (parts.next(), parts.next(), parts.next(), parts.next());
        let (Some(name), Some(password), None) = (name, password, end) else {
            return Err(log_ins.failed(&self.ends, LABEL, "", &"malformed message"));
        };
        let user = UserName { database: database.to_owned(), name: name.to_owned() };
        let record = log_ins.find(LABEL, &user).await?;
        let mechanism = match record.as_deref() {
            Some(UserRecord { sha256: None, sha1: Some(_), .. }) => Mechanism::Sha1,
            _ => Mechanism::Sha256,
        };
        let verifier = log_ins.decoys.verifier_of(record.as_deref(), mechanism, &user.to_string());
        let (user_name, password) = (name.to_owned(), zeroize::Zeroizing::new(password.to_owned()));
        let fits = compute(move || verifier.fits(&user_name, &password)).await.unwrap_or(false);
        let Some(record) = record.filter(|_| fits) else {
            return Err(log_ins.failed(&self.ends, LABEL, name, &"wrong user or password"));
        };
        let identity = self.admit(log_ins, LABEL, &user, &record, Proof::Password)?;
        self.logged_in(log_ins, LABEL, identity);
        Ok(Turn { done: true, payload: Vec::new(), as_text: payload.as_text })
    }

    async fn authenticate(&mut self, log_ins: &LogIns, asked: &Authenticate<'_>) -> Result<UserName, ErrorReply> {
        const LABEL: LogInMechanism = LogInMechanism::X509;
        match asked.mechanism {
            "MONGODB-X509" if log_ins.source.takes_other_than_scram() => {}
            "SCRAM-SHA-1" | "SCRAM-SHA-256" => return Err(reply::mechanism_of_another_command(asked.mechanism)),
            other => return Err(reply::mechanism_not_enabled(other)),
        }
        if log_ins.is_paused(&self.ends) {
            return Err(log_ins.paused(LABEL));
        }
        let subject = self.ends.certificate().map(|certificate| certificate.subject.clone());
        let Some(subject) = subject else { return Err(reply::no_certificate()) };
        if asked.user.is_some_and(|user| user != subject) {
            return Err(log_ins.failed(&self.ends, LABEL, &subject, &"the certificate is of another user"));
        }
        let user = UserName { database: EXTERNAL.to_owned(), name: subject.clone() };
        let record = log_ins.find(LABEL, &user).await?.filter(|record| record.by_certificate);
        let Some(record) = record else {
            return Err(log_ins.failed(&self.ends, LABEL, &subject, &"no user has the name of the certificate"));
        };
        let identity = self.admit(log_ins, LABEL, &user, &record, Proof::Certificate)?;
        self.logged_in(log_ins, LABEL, identity);
        Ok(user)
    }

    /// A user that has proven who it is, unless another one is logged in on this socket.
    fn admit(
        &self,
        log_ins: &LogIns,
        mechanism: LogInMechanism,
        user: &UserName,
        record: &UserRecord,
        proof: Proof,
    ) -> Result<Arc<Identity>, ErrorReply> {
        if let Some(current) = self.identity.as_ref().filter(|current| current.user != *user) {
            return Err(reply::another_user(&current.user, user));
        }
        log_ins.source.admit(user, record, proof).map_err(|why| log_ins.unavailable(mechanism, &why))
    }

    fn logged_in(&mut self, log_ins: &LogIns, mechanism: LogInMechanism, identity: Arc<Identity>) {
        log_ins.count(mechanism, LogInOutcome::Succeeded);
        lock(&log_ins.failed).succeeded(Origin::of(self.ends.host()));
        tracing::debug!(peer = %self.ends, user = ?identity.user.name, database = ?identity.user.database, "logged in");
        self.identity = Some(identity);
        self.socket.only_small(false);
        self.end_conversation();
    }

    fn log_out(&mut self, database: &str) -> Result<RawDocumentBuf, ErrorReply> {
        let Some(identity) = &self.identity else { return Err(reply::requires_authentication("logout")) };
        // Users of other databases stay, as on a server.
        if identity.user.database == database {
            self.forget();
        }
        Ok(local::ok())
    }

    fn forget(&mut self) {
        self.identity = None;
        self.socket.only_small(true);
    }

    async fn connection_status(&mut self, log_ins: &LogIns, document: &[u8]) -> Result<RawDocumentBuf, ErrorReply> {
        let Some(identity) = self.identity.clone().filter(|identity| !identity.is_revoked()) else {
            return Ok(local::connection_status(document));
        };
        // That nobody can tell its roles is no reason to fail.
        let record = log_ins.source.find(&identity.user).await.ok().flatten();
        let roles = record.as_ref().map(|record| record.roles.as_slice()).unwrap_or_default();
        let privileges = find(document, b"showPrivileges").and_then(|flag| flag.as_truth()) == Some(true);
        Ok(reply::connection_status(&identity.user, roles, privileges))
    }

    /// Nobody between us and the client reads along.
    fn is_private(&self) -> bool {
        matches!(self.ends, Ends::Unix(_)) || self.ends.is_encrypted()
    }

    fn end_conversation(&mut self) {
        if let Some(log_in) = &mut self.log_in {
            log_in.conversation = None;
        }
        self.tidy();
    }

    /// Gives the box back where there is nothing in it.
    fn tidy(&mut self) {
        self.log_in.take_if(|log_in| log_in.conversation.is_none());
    }
}

/// What a user may log in with, best first. Of one that there is not, what users have usually.
fn mechanisms_of(record: Option<&UserRecord>) -> Vec<&'static str> {
    let both = [Mechanism::Sha256, Mechanism::Sha1];
    match record {
        Some(record) => both.into_iter().filter(|it| record.verifier(*it).is_some()).map(Mechanism::name).collect(),
        None => both.into_iter().map(Mechanism::name).collect(),
    }
}
