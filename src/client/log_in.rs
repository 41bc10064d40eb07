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
use super::shared::ClientLimits;
use crate::auth::identity::UserName;
use crate::auth::scram_server::{ClientFirst, Decoys, ScramServer, ServerNonce};
use crate::auth::users::{Proof, UserRecord, UserSource, UsersUnavailable};
use crate::auth::{Identity, Mechanism};
use crate::command::server_commands::is_known_to_servers;
use crate::command::{Command, Handling, LocalCommand};
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
    limits: Arc<ClientLimits>,
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
        limits: Arc<ClientLimits>,
        metrics: Arc<Metrics>,
    ) -> Arc<Self> {
        let now = Instant::now();
        let (failed, logged) = (Mutex::default(), Mutex::new(Logged { since: now, count: 0 }));
        Arc::new(Self { source, decoys, limits, failed, logged, metrics, began: now })
    }

    /// Since when, for [`Knocks`](super::knocks::Knocks).
    pub(super) fn since_began(&self) -> Duration {
        self.began.elapsed()
    }

    fn is_paused(&self, ends: &Ends) -> bool {
        self.limits.load().failed_log_ins.is_some()
            && lock(&self.failed).is_paused(Origin::of(ends.host()), Instant::now())
    }

    fn count(&self, mechanism: LogInMechanism, outcome: LogInOutcome) {
        self.metrics.log_ins[(mechanism, outcome)].inc();
    }

    /// What the client of a log-in that fails is told: always the same.
    /// `user` is who it would have been, where the client said so.
    fn failed(
        &self,
        ends: &Ends,
        mechanism: LogInMechanism,
        user: Option<&UserName>,
        why: &dyn std::fmt::Display,
    ) -> ErrorReply {
        use crate::telemetry::labels::Label as _;

        self.count(mechanism, LogInOutcome::Failed);
        let now = Instant::now();
        let in_a_row = self
            .limits
            .load()
            .failed_log_ins
            .map(|most| lock(&self.failed).failed(Origin::of(ends.host()), user, most, now))
            .unwrap_or_default();
        if self.may_log(now) {
            // Quoted, as a name may hold anything.
            let user = user.map(|user| &*user.name).unwrap_or_default();
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

    /// Looks a user up, unless no user has such a name: whoever comes may say any.
    async fn look_up(&self, user: &UserName) -> Result<Option<Arc<UserRecord>>, UsersUnavailable> {
        if user.database.len().max(user.name.len()) > MAX_USER_NAME_BYTES {
            return Ok(None);
        }
        self.source.find(user).await
    }

    async fn find(&self, mechanism: LogInMechanism, user: &UserName) -> Result<Option<Arc<UserRecord>>, ErrorReply> {
        self.look_up(user).await.map_err(|why| self.unavailable(mechanism, &why))
    }
}

/// A user as a client calls it. Of what is too long for a name so much is kept that it still is.
fn called(database: &str, name: &str) -> UserName {
    let kept = |text: &str| text.get(..text.ceil_char_boundary(MAX_USER_NAME_BYTES + 1)).unwrap_or_default().to_owned();
    UserName { database: kept(database), name: kept(name) }
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
            // Told once more who it was, and closed: but a monitor may ask what we are, and a log-in is what it is told to do.
            Some(identity) => {
                let hello_or_log_in = matches!(
                    command.spec.handling,
                    Handling::Local(LocalCommand::Hello | LocalCommand::SaslStart | LocalCommand::Authenticate)
                );
                (!hello_or_log_in).then(|| reply::revoked(&identity.user))
            }
            None if command.spec.needs_no_log_in() => None,
            None => {
                let name = command.name(frame);
                let known = !command.spec.name.is_empty() || is_known_to_servers(name);
                Some(if known { reply::requires_authentication(name) } else { reply::no_such_command(name) })
            }
        }
    }

    /// True when a client has sent more than one may that has still to log in. One whose user has gone has to as well.
    pub(super) fn knocks_too_often(&mut self, message_bytes: usize) -> bool {
        let Some(log_ins) = self.shared.log_ins.as_ref().filter(|_| !self.is_logged_in()) else { return false };
        // It may have been larger when this one was announced.
        self.socket.only_small(true);
        message_bytes > self.socket.max_message_bytes() || !self.knocks.admit(log_ins.since_began())
    }

    /// True when a log-in is not looked at: at this address too many have failed, or this socket does nothing else. Whatever one
    /// sends that has not logged in was counted already.
    fn is_paused(&mut self, log_ins: &LogIns) -> bool {
        let too_often = self.is_logged_in() && !self.knocks.admit(log_ins.since_began());
        too_often || log_ins.is_paused(&self.ends)
    }

    /// True when it has logged in, and is that user still.
    pub(super) fn is_logged_in(&self) -> bool {
        self.identity.as_ref().is_some_and(|identity| !identity.is_revoked())
    }

    /// True when the user was dropped, or has another password: what it has been told was the last.
    pub(super) fn is_revoked(&self) -> bool {
        self.identity.as_ref().is_some_and(|identity| identity.is_revoked())
    }

    /// Whoever is in the middle of a log-in has to go on.
    pub(super) fn hurry(&mut self) {
        if let Some(deadline) = self.log_in.as_ref().and_then(|log_in| log_in.deadline())
            && !self.is_logged_in()
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
                let paused = self.is_paused(&log_ins);
                let record = if paused { Ok(None) } else { log_ins.look_up(&called(database, user)).await };
                // Where it cannot be told, the client asks for what it would ask for without being told.
                record.ok().map(|record| mechanisms_of(record.as_deref()))
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
        if self.is_paused(log_ins) {
            return Err(log_ins.paused(label));
        }
        let first = ClientFirst::parse(start.payload.bytes.expose())
            .map_err(|why| log_ins.failed(&self.ends, label, None, &why))?;
        let user = called(database, first.user());
        let record = log_ins.find(label, &user).await?;
        // Drivers take what a hello has begun for the mechanism that they chose by `saslSupportedMechs`, so it must be one of those.
        if !in_earnest && record.as_ref().is_some_and(|record| record.verifier(mechanism).is_none()) {
            return Err(reply::failed());
        }
        let verifier = log_ins.decoys.verifier_of(record.as_deref(), mechanism, &user.to_string());
        let (server, payload) = first.challenge(&verifier, &ServerNonce::from_random(rand::random()));
        let deadline = Instant::now() + self.shared.limits.load().handshake_timeout;
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
        match conversation.stage {
            Stage::Proof(server, record) => {
                // Those that were begun before the pause do not go on within it.
                if log_ins.is_paused(&self.ends) {
                    return Err(log_ins.paused(label));
                }
                let proven = server.on_client_final(payload);
                let proven = proven.map_err(|why| log_ins.failed(&self.ends, label, Some(&conversation.user), &why))?;
                let Some(record) = record else {
                    return Err(log_ins.failed(&self.ends, label, Some(&conversation.user), &"no such user"));
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
            Stage::Empty(_) => {
                Err(log_ins.failed(&self.ends, label, Some(&conversation.user), &"a message where none is expected"))
            }
        }
    }

    /// A password in the clear. Deriving takes milliseconds of another thread, for those who are not known as well.
    async fn plain(&mut self, log_ins: &LogIns, payload: Payload, database: &str) -> Result<Turn, ErrorReply> {
        const LABEL: LogInMechanism = LogInMechanism::Plain;
        if database != EXTERNAL {
            return Err(reply::mechanism_of_another_database("PLAIN", database));
        }
        if self.is_paused(log_ins) {
            return Err(log_ins.paused(LABEL));
        }
        let text = str::from_utf8(payload.bytes.expose()).ok().filter(|text| text.len() <= 4 * MAX_USER_NAME_BYTES);
        let mut parts = text.unwrap_or_default().split('\0');
        let (_authorize, name, password, end) = (parts.next(), parts.next(), parts.next(), parts.next());
        let (Some(name), Some(password), None) = (name, password, end) else {
            return Err(log_ins.failed(&self.ends, LABEL, None, &"malformed message"));
        };
        let user = called(database, name);
        let record = log_ins.find(LABEL, &user).await?;
        let mechanism = match record.as_deref() {
            Some(UserRecord { sha256: None, sha1: Some(_), .. }) => Mechanism::Sha1,
            _ => Mechanism::Sha256,
        };
        let verifier = log_ins.decoys.verifier_of(record.as_deref(), mechanism, &user.to_string());
        let (user_name, password) = (name.to_owned(), zeroize::Zeroizing::new(password.to_owned()));
        let fits = compute(move || verifier.fits(&user_name, &password)).await.unwrap_or(false);
        let Some(record) = record.filter(|_| fits) else {
            return Err(log_ins.failed(&self.ends, LABEL, Some(&user), &"wrong user or password"));
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
        if self.is_paused(log_ins) {
            return Err(log_ins.paused(LABEL));
        }
        let subject = self.ends.certificate().map(|certificate| certificate.subject.clone());
        let Some(subject) = subject else { return Err(reply::no_certificate()) };
        let user = called(EXTERNAL, &subject);
        if asked.user.is_some_and(|user| user != subject) {
            return Err(log_ins.failed(&self.ends, LABEL, Some(&user), &"the certificate is of another user"));
        }
        let record = log_ins.find(LABEL, &user).await?.filter(|record| record.by_certificate);
        let Some(record) = record else {
            return Err(log_ins.failed(&self.ends, LABEL, Some(&user), &"no user has the name of the certificate"));
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
        lock(&log_ins.failed).succeeded(Origin::of(self.ends.host()), &identity.user);
        tracing::debug!(client = self.number(), peer = %self.ends, user = ?identity.user.name, database = ?identity.user.database, "logged in");
        self.socket.is_user(Some(identity.clone()));
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
        self.socket.is_user(None);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::users::Boxed;

    /// Writes down who it is asked for.
    #[derive(Default)]
    struct Asked(Mutex<Vec<UserName>>);

    impl UserSource for Asked {
        fn find<'a>(&'a self, user: &'a UserName) -> Boxed<'a, Result<Option<Arc<UserRecord>>, UsersUnavailable>> {
            lock(&self.0).push(user.clone());
            Box::pin(std::future::ready(Ok(Some(Arc::default()))))
        }

        fn admit(&self, _: &UserName, _: &UserRecord, _: Proof) -> Result<Arc<Identity>, UsersUnavailable> {
            Err(UsersUnavailable("nobody logs in here".to_owned()))
        }

        fn takes_other_than_scram(&self) -> bool {
            true
        }
    }

    #[tokio::test]
    async fn names_that_are_too_long_are_neither_kept_nor_looked_up() {
        let asked = Arc::new(Asked::default());
        let metrics = Metrics::new();
        let (config, _) = crate::config::Config::load(&crate::config::Sources::default()).unwrap();
        let limits = Arc::new(ClientLimits::from_pointee(config.client));
        let log_ins = LogIns::new(asked.clone(), Arc::new(Decoys::new([1; 32])), limits, metrics);
        let (most, more) = ("x".repeat(MAX_USER_NAME_BYTES), "x".repeat(MAX_USER_NAME_BYTES + 1));
        for (database, name) in [("admin", more.as_str()), (&more, "app"), ("admin", &"ä".repeat(40_000))] {
            let user = called(database, name);
            assert!(user.database.len().max(user.name.len()) <= MAX_USER_NAME_BYTES + 4);
            assert_eq!(log_ins.look_up(&user).await, Ok(None));
            assert_eq!(log_ins.find(LogInMechanism::ScramSha1, &user).await.ok(), Some(None));
        }
        assert_eq!(lock(&asked.0).len(), 0);
        assert_eq!(called(&most, &most), UserName { database: most.clone(), name: most.clone() });
        assert!(log_ins.look_up(&called(&most, &most)).await.is_ok_and(|record| record.is_some()));
    }
}
