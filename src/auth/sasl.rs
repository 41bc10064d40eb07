//! One login on one connection: given the server's reply, what to send next.
//!
//! ```text
//!               ┌─ Derive ─▶ on_keys ─┐
//! start ─▶ on_reply ─▶ Send ─▶ ... ◀──┘ ─▶ Done
//! ```
//!
//! The caller sends each document, reads its reply and hands it back, until [`Step::Done`] or an error; either ends the
//! conversation. It takes at most three round trips. To save the first, the caller puts [`Conversation::speculative`]
//! into its `hello` and continues with [`Conversation::on_hello`].
//!
//! MONGODB-AWS, MONGODB-OIDC and GSSAPI are absent.

use bson::{
    Binary,
    raw::{RawBson, RawBsonRef, RawDocument, RawDocumentBuf, cstr},
    spec::BinarySubtype,
};

use super::{
    Secret,
    scram::{Challenge, ClientNonce, KeyDerivation, Mechanism, SaltedKeys, ScramClient, ScramError, ServerSignature},
};

/// Where users live that MongoDB itself does not store.
const EXTERNAL: &str = "$external";

/// Longest server text kept in an error.
const MAX_MESSAGE_CHARS: usize = 512;

/// Why a login failed. The connection must be closed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AuthError {
    /// The server refused: 18 for a wrong user or password, 334 for a mechanism it does not offer.
    #[error("login refused with code {code}: {message}")]
    Refused {
        /// The server's error code, 0 if it told none.
        code: i32,
        /// The server's text, cut at 512 characters.
        message: String,
    },
    /// The SCRAM messages inside the replies are wrong.
    #[error(transparent)]
    Scram(#[from] ScramError),
    /// The user is not logged in with us any more.
    #[error("the user is not logged in any more")]
    NotLoggedIn,
    /// The reply is not what this step of the conversation expects.
    #[error("unexpected reply during login: {0}")]
    Protocol(&'static str),
}

/// What the caller does next.
#[derive(Debug)]
pub enum Step {
    /// Send this command and hand its reply to [`Conversation::on_reply`].
    Send(RawDocumentBuf),
    /// Find the keys under its id or derive them, on a thread that may block, and hand them to
    /// [`Conversation::on_keys`].
    Derive(KeyDerivation),
    /// Logged in.
    Done,
}

/// One login in progress.
#[derive(Debug)]
pub struct Conversation {
    /// The database that holds the user.
    source: String,
    /// As the server named it, sent back as it came.
    id: RawBson,
    state: State,
}

#[derive(Debug)]
enum State {
    /// Waits for the server's salt.
    First(ScramClient),
    /// Waits for the keys.
    Keys(Challenge),
    /// Waits for the server's signature.
    Signature(ServerSignature),
    /// The signature was right; a server that does not know `skipEmptyExchange` wants one more, empty, round.
    Empty,
    Plain {
        payload: Secret,
    },
    X509 {
        username: Option<String>,
    },
    /// Done or failed.
    Ended,
}

impl Conversation {
    /// A login by SCRAM. `source` is the database that holds the user, `admin` by default.
    ///
    /// # Errors
    /// [`ScramError::Password`] when the password cannot be one of SCRAM-SHA-256. It can still be one of SCRAM-SHA-1: where
    /// the connection string names no mechanism, `hello` goes out without speculation then, to [`negotiate`].
    pub fn scram(
        mechanism: Mechanism,
        source: &str,
        username: &str,
        password: &str,
        nonce: ClientNonce,
    ) -> Result<Self, ScramError> {
        let client = ScramClient::new(mechanism, username, password, nonce)?;
        Ok(Self::new(source, State::First(client)))
    }

    /// A login by SCRAM with keys that are known: what [`Step::Derive`] names is to be looked up.
    pub fn scram_with_keys(mechanism: Mechanism, source: &str, username: &str, nonce: ClientNonce) -> Self {
        Self::new(source, State::First(ScramClient::with_keys(mechanism, username, nonce)))
    }

    /// A login by PLAIN (LDAP). It sends the password as it is: the caller makes sure of TLS or a unix socket.
    pub fn plain(source: &str, username: &str, password: &str) -> Self {
        let payload = format!("\0{username}\0{password}").into_bytes().into();
        Self::new(source, State::Plain { payload })
    }

    /// A login by the certificate of this connection; without a name the server takes it from the certificate.
    pub fn x509(username: Option<&str>) -> Self {
        Self::new(EXTERNAL, State::X509 { username: username.map(str::to_owned) })
    }

    fn new(source: &str, state: State) -> Self {
        Self { source: source.to_owned(), id: RawBson::Int32(1), state }
    }

    /// The first command. `None` once the conversation is under way.
    pub fn start(&self) -> Option<RawDocumentBuf> {
        let mut command = self.opening()?;
        command.append(cstr!("$db"), self.source.as_str());
        Some(command)
    }

    /// The value of `speculativeAuthenticate` for `hello`. `None` where the mechanism has none (PLAIN would show the
    /// password before the server has shown anything) or the conversation is under way.
    pub fn speculative(&self) -> Option<RawDocumentBuf> {
        if matches!(self.state, State::Plain { .. }) {
            return None;
        }
        let mut command = self.opening()?;
        command.append(cstr!("db"), self.source.as_str());
        Some(command)
    }

    fn opening(&self) -> Option<RawDocumentBuf> {
        match &self.state {
            State::First(client) => {
                let mut command = sasl_start(client.mechanism().name(), &client.client_first());
                let mut options = RawDocumentBuf::new();
                options.append(cstr!("skipEmptyExchange"), true);
                command.append(cstr!("options"), options);
                Some(command)
            }
            State::Plain { payload } => Some(sasl_start("PLAIN", &payload.0)),
            State::X509 { username } => {
                let mut command = RawDocumentBuf::new();
                command.append(cstr!("authenticate"), 1);
                command.append(cstr!("mechanism"), "MONGODB-X509");
                if let Some(username) = username {
                    command.append(cstr!("user"), username.as_str());
                }
                Some(command)
            }
            State::Keys(_) | State::Signature(_) | State::Empty | State::Ended => None,
        }
    }

    /// Takes the reply to a `hello` that carried [`Self::speculative`]. Whatever made the server leave its answer out,
    /// the login starts over in the ordinary way, which tells the reason if there is one.
    ///
    /// # Errors
    /// As [`Self::on_reply`].
    pub fn on_hello(&mut self, hello: &RawDocument) -> Result<Step, AuthError> {
        match hello.get("speculativeAuthenticate") {
            Ok(Some(RawBsonRef::Document(reply))) => self.advance(reply),
            _ => self.start().map(Step::Send).ok_or(AuthError::Protocol("hello in the middle of a login")),
        }
    }

    /// Takes the reply to the last command that was sent.
    ///
    /// # Errors
    /// When the server refuses, breaks the protocol or fails to prove itself.
    pub fn on_reply(&mut self, reply: &RawDocument) -> Result<Step, AuthError> {
        if !is_ok(reply) {
            self.state = State::Ended;
            return Err(refusal(reply));
        }
        self.advance(reply)
    }

    /// Takes the keys that [`Step::Derive`] asked for.
    ///
    /// # Errors
    /// [`AuthError::Protocol`] when none were asked for.
    pub fn on_keys(&mut self, keys: &SaltedKeys) -> Result<Step, AuthError> {
        let State::Keys(challenge) = std::mem::replace(&mut self.state, State::Ended) else {
            return Err(AuthError::Protocol("keys that were not asked for"));
        };
        let (payload, signature) = challenge.client_final(keys);
        self.state = State::Signature(signature);
        Ok(Step::Send(self.sasl_continue(&payload)))
    }

    /// An answer inside `hello` has no `ok`, so that is checked before.
    fn advance(&mut self, reply: &RawDocument) -> Result<Step, AuthError> {
        // Every error below leaves the conversation ended.
        match std::mem::replace(&mut self.state, State::Ended) {
            State::First(client) => {
                // Done here would be a server that never proved to know the user.
                if is_done(reply) {
                    return Err(AuthError::Protocol("done before the server has proved itself"));
                }
                self.id = conversation_id(reply)?;
                let challenge = client.on_server_first(payload(reply)?)?;
                let derivation = challenge.derivation().clone();
                self.state = State::Keys(challenge);
                Ok(Step::Derive(derivation))
            }
            State::Signature(signature) => {
                signature.verify(payload(reply)?)?;
                if is_done(reply) {
                    return Ok(Step::Done);
                }
                self.state = State::Empty;
                Ok(Step::Send(self.sasl_continue(&[])))
            }
            State::Empty | State::Plain { .. } if is_done(reply) => Ok(Step::Done),
            State::Empty | State::Plain { .. } => Err(AuthError::Protocol("one more round than the mechanism has")),
            State::X509 { .. } => Ok(Step::Done),
            State::Keys(_) => Err(AuthError::Protocol("reply before the keys")),
            State::Ended => Err(AuthError::Protocol("reply after the end")),
        }
    }

    fn sasl_continue(&self, payload: &[u8]) -> RawDocumentBuf {
        let mut command = RawDocumentBuf::new();
        command.append(cstr!("saslContinue"), 1);
        command.append(cstr!("conversationId"), &self.id);
        command.append(cstr!("payload"), binary(payload));
        command.append(cstr!("$db"), self.source.as_str());
        command
    }
}

/// The value of `saslSupportedMechs` for `hello`: asks which mechanisms this user has.
pub fn supported_mechs_query(source: &str, username: &str) -> String {
    format!("{source}.{username}")
}

/// The mechanism for a user whose connection string names none, from the reply to `hello`: SCRAM-SHA-256 where listed,
/// else SCRAM-SHA-1, also when the server lists nothing (unknown user, old server).
pub fn negotiate(hello: &RawDocument) -> Mechanism {
    let listed = hello.get_array("saslSupportedMechs").is_ok_and(|mechanisms| {
        mechanisms.into_iter().any(|item| item.is_ok_and(|name| name.as_str() == Some(Mechanism::Sha256.name())))
    });
    if listed { Mechanism::Sha256 } else { Mechanism::Sha1 }
}

fn sasl_start(mechanism: &str, payload: &[u8]) -> RawDocumentBuf {
    let mut command = RawDocumentBuf::new();
    command.append(cstr!("saslStart"), 1);
    command.append(cstr!("mechanism"), mechanism);
    command.append(cstr!("payload"), binary(payload));
    command
}

fn binary(bytes: &[u8]) -> Binary {
    Binary { subtype: BinarySubtype::Generic, bytes: bytes.to_vec() }
}

fn is_ok(reply: &RawDocument) -> bool {
    match reply.get("ok") {
        Ok(Some(RawBsonRef::Double(ok))) => ok == 1.0,
        Ok(Some(RawBsonRef::Int32(ok))) => ok == 1,
        Ok(Some(RawBsonRef::Int64(ok))) => ok == 1,
        Ok(Some(RawBsonRef::Boolean(ok))) => ok,
        _ => false,
    }
}

fn refusal(reply: &RawDocument) -> AuthError {
    let message = reply.get_str("errmsg").unwrap_or("no reason given");
    AuthError::Refused {
        code: reply.get_i32("code").unwrap_or(0),
        message: message.chars().take(MAX_MESSAGE_CHARS).collect(),
    }
}

fn is_done(reply: &RawDocument) -> bool {
    reply.get_bool("done").unwrap_or(false)
}

fn payload(reply: &RawDocument) -> Result<&[u8], AuthError> {
    reply.get_binary("payload").map(|binary| binary.bytes).map_err(|_| AuthError::Protocol("no payload"))
}

fn conversation_id(reply: &RawDocument) -> Result<RawBson, AuthError> {
    match reply.get("conversationId") {
        Ok(Some(id)) => Ok(id.into()),
        _ => Err(AuthError::Protocol("no conversationId")),
    }
}

#[cfg(test)]
mod tests {
    use bson::rawdoc;

    use super::*;

    const SERVER_FIRST: &str = "r=AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAserver,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096";

    fn scram() -> Conversation {
        let nonce = ClientNonce::from_random([0; 24]);
        Conversation::scram(Mechanism::Sha256, "admin", "user", "pencil", nonce).unwrap()
    }

    fn reply(done: bool, payload: &str) -> RawDocumentBuf {
        rawdoc! { "conversationId": 7, "done": done, "payload": binary(payload.as_bytes()), "ok": 1.0 }
    }

    /// The message that the recorded server would end with, taken from the same conversation.
    fn server_final() -> String {
        use base64::{Engine as _, engine::general_purpose::STANDARD};
        use hmac::{Hmac, KeyInit as _, Mac as _};
        let salt = STANDARD.decode("W22ZaJ0SNY7soEsUEjb6gQ==").unwrap();
        let salted = pbkdf2::pbkdf2_hmac_array::<sha2::Sha256, 32>(b"pencil", &salt, 4096);
        let hmac = |key: &[u8], data: &[u8]| {
            Hmac::<sha2::Sha256>::new_from_slice(key).unwrap().chain_update(data).finalize().into_bytes()
        };
        let nonce = &SERVER_FIRST[2..SERVER_FIRST.find(',').unwrap()];
        let signed = format!("n=user,r={},{SERVER_FIRST},c=biws,r={nonce}", "A".repeat(32));
        format!("v={}", STANDARD.encode(hmac(&hmac(&salted, b"Server Key"), signed.as_bytes())))
    }

    /// Takes a fresh conversation to where it waits for the server's signature.
    fn proved() -> (Conversation, RawDocumentBuf) {
        let mut conversation = scram();
        let Step::Derive(derivation) = conversation.on_reply(&reply(false, SERVER_FIRST)).unwrap() else { panic!() };
        let Step::Send(command) = conversation.on_keys(&derivation.derive()).unwrap() else { panic!() };
        (conversation, command)
    }

    #[test]
    fn scram_in_two_rounds() {
        let start = scram().start().unwrap();
        let expected = rawdoc! {
            "saslStart": 1, "mechanism": "SCRAM-SHA-256",
            "payload": binary(format!("n,,n=user,r={}", "A".repeat(32)).as_bytes()),
            "options": { "skipEmptyExchange": true }, "$db": "admin",
        };
        assert_eq!(start, expected);
        let (mut conversation, command) = proved();
        let keys: Vec<&str> = command.iter().map(|item| item.unwrap().0.as_str()).collect();
        assert_eq!(keys, ["saslContinue", "conversationId", "payload", "$db"]);
        assert_eq!(command.get_i32("conversationId").unwrap(), 7);
        assert!(command.get_binary("payload").unwrap().bytes.starts_with(b"c=biws,r=AAAA"));
        assert!(matches!(conversation.on_reply(&reply(true, &server_final())), Ok(Step::Done)));
        assert!(conversation.on_reply(&reply(true, "")).is_err());
    }

    #[test]
    fn a_server_that_wants_the_empty_round_gets_it_once() {
        for ends in [true, false] {
            let (mut conversation, _) = proved();
            let step = conversation.on_reply(&reply(false, &server_final())).unwrap();
            let Step::Send(command) = step else { panic!("{step:?}") };
            assert_eq!(command.get_binary("payload").unwrap().bytes, b"");
            assert_eq!(matches!(conversation.on_reply(&reply(ends, "")), Ok(Step::Done)), ends);
        }
    }

    #[test]
    fn a_server_cannot_skip_its_proof() {
        assert!(matches!(scram().on_reply(&reply(true, SERVER_FIRST)), Err(AuthError::Protocol(_))));
        assert!(matches!(scram().on_reply(&reply(true, "")), Err(AuthError::Protocol(_))));
        let (mut conversation, _) = proved();
        assert!(matches!(conversation.on_reply(&reply(true, "")), Err(AuthError::Scram(_))));
        let (mut conversation, _) = proved();
        let wrong = "v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=";
        assert_eq!(conversation.on_reply(&reply(true, wrong)).unwrap_err(), ScramError::Signature.into());
        let (mut conversation, _) = proved();
        let no_payload = rawdoc! { "conversationId": 7, "done": true, "ok": 1.0 };
        assert!(matches!(conversation.on_reply(&no_payload), Err(AuthError::Protocol(_))));
    }

    #[test]
    fn speculative_answers_count_and_missing_ones_start_over() {
        let speculative = scram().speculative().unwrap();
        assert_eq!(speculative.get_str("db").unwrap(), "admin");
        assert!(speculative.get("$db").unwrap().is_none());

        let mut answered = scram();
        let inner = rawdoc! { "conversationId": 7, "done": false, "payload": binary(SERVER_FIRST.as_bytes()) };
        let hello = rawdoc! { "speculativeAuthenticate": inner, "ok": 1.0 };
        assert!(matches!(answered.on_hello(&hello), Ok(Step::Derive(_))));

        let mut unanswered = scram();
        let step = unanswered.on_hello(&rawdoc! { "ok": 1.0 }).unwrap();
        let Step::Send(command) = step else { panic!("{step:?}") };
        assert_eq!(command, scram().start().unwrap());
        assert!(matches!(unanswered.on_reply(&reply(false, SERVER_FIRST)), Ok(Step::Derive(_))));
    }

    #[test]
    fn refusals_carry_code_and_text() {
        let refused = rawdoc! { "ok": 0.0, "errmsg": "Authentication failed.", "code": 18 };
        let expected = AuthError::Refused { code: 18, message: "Authentication failed.".to_owned() };
        assert_eq!(scram().on_reply(&refused).unwrap_err(), expected);
        let (mut conversation, _) = proved();
        assert_eq!(conversation.on_reply(&refused).unwrap_err(), expected);
        // A refusal ends it: what comes next cannot log in.
        assert!(conversation.on_reply(&reply(true, &server_final())).is_err());
        let bare = AuthError::Refused { code: 0, message: "no reason given".to_owned() };
        assert_eq!(scram().on_reply(&rawdoc! {}).unwrap_err(), bare);
    }

    #[test]
    fn plain() {
        let mut conversation = Conversation::plain("$external", "user", "pencil");
        assert!(conversation.speculative().is_none());
        let start = conversation.start().unwrap();
        assert_eq!(start.get_str("mechanism").unwrap(), "PLAIN");
        assert_eq!(start.get_binary("payload").unwrap().bytes, b"\0user\0pencil");
        assert_eq!(start.get_str("$db").unwrap(), "$external");
        assert!(!format!("{conversation:?}").contains("pencil"));
        assert!(matches!(conversation.on_reply(&reply(true, "")), Ok(Step::Done)));
        let mut conversation = Conversation::plain("$external", "user", "pencil");
        assert!(conversation.on_reply(&reply(false, "")).is_err());
    }

    #[test]
    fn x509() {
        let mut conversation = Conversation::x509(Some("CN=a,O=b"));
        let expected =
            rawdoc! { "authenticate": 1, "mechanism": "MONGODB-X509", "user": "CN=a,O=b", "$db": "$external" };
        assert_eq!(conversation.start().unwrap(), expected);
        let expected = rawdoc! { "authenticate": 1, "mechanism": "MONGODB-X509", "db": "$external" };
        assert_eq!(Conversation::x509(None).speculative().unwrap(), expected);
        let inner = rawdoc! { "dbname": "$external", "user": "CN=a,O=b" };
        let hello = rawdoc! { "speculativeAuthenticate": inner, "ok": 1.0 };
        assert!(matches!(conversation.on_hello(&hello), Ok(Step::Done)));
    }

    #[test]
    fn mechanism_is_negotiated() {
        assert_eq!(supported_mechs_query("admin", "a.b"), "admin.a.b");
        let both = rawdoc! { "saslSupportedMechs": ["SCRAM-SHA-1", "SCRAM-SHA-256"] };
        assert_eq!(negotiate(&both), Mechanism::Sha256);
        assert_eq!(negotiate(&rawdoc! { "saslSupportedMechs": ["SCRAM-SHA-1"] }), Mechanism::Sha1);
        assert_eq!(negotiate(&rawdoc! { "saslSupportedMechs": 1 }), Mechanism::Sha1);
        assert_eq!(negotiate(&rawdoc! {}), Mechanism::Sha1);
    }
}
