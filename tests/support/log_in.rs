//! Logging in over a raw socket, message by message, as a driver does.

use bson::spec::BinarySubtype;
use bson::{Binary, Bson, Document, doc};
use mongomux::auth::{ClientNonce, Mechanism, scram::ScramClient};
use mongomux::config::Address;
use mongomux::sandbox::wire_client::WireClient;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Duration, timeout};

use super::raw;

/// How a client logs in.
#[derive(Debug, Clone, Copy)]
pub struct Way {
    /// By which mechanism.
    pub mechanism: Mechanism,
    /// Without the round in which nothing is said.
    pub skip_empty: bool,
    /// Over OP_QUERY.
    pub legacy: bool,
    /// Payloads as base64.
    pub text: bool,
}

/// As drivers of today do.
pub const USUAL: Way = Way { mechanism: Mechanism::Sha256, skip_empty: true, legacy: false, text: false };

/// A socket that speaks OP_MSG and OP_QUERY.
pub struct Caller(TcpStream);

impl Caller {
    /// Connects, and says nothing yet.
    pub async fn to(address: &Address) -> Self {
        Self(TcpStream::connect(address.to_string()).await.unwrap())
    }

    /// Sends bytes.
    pub async fn send(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).await.unwrap();
    }

    /// The document that answers; `None` when the socket was closed instead.
    pub async fn answer(&mut self) -> Option<Document> {
        let read = async {
            let mut header = [0; 16];
            self.0.read_exact(&mut header).await.ok()?;
            let length = usize::try_from(i32::from_le_bytes(header[..4].try_into().unwrap())).unwrap();
            let mut body = vec![0; length - 16];
            self.0.read_exact(&mut body).await.ok()?;
            let start = if i32::from_le_bytes(header[12..].try_into().unwrap()) == raw::OP_MSG { 5 } else { 20 };
            Some(Document::from_reader(&body[start..]).unwrap())
        };
        timeout(Duration::from_secs(120), read).await.expect("an answer, or the end")
    }

    /// Sends a command and reads its answer.
    pub async fn command(&mut self, database: &str, mut command: Document) -> Document {
        command.insert("$db", database);
        self.send(&raw::command(command)).await;
        self.answer().await.expect("an answer")
    }

    /// The same as OP_QUERY.
    pub async fn query(&mut self, database: &str, command: Document) -> Document {
        self.send(&raw::query(&format!("{database}.$cmd"), &command)).await;
        self.answer().await.expect("an answer")
    }

    /// Logs in; all answers.
    pub async fn log_in(&mut self, user: &str, password: &str, way: Way) -> Vec<Document> {
        let (database, user) = user.split_once('.').unwrap();
        let client = ScramClient::new(way.mechanism, user, password, ClientNonce::from_random([3; 24])).unwrap();
        let mut start = doc! { "saslStart": 1, "mechanism": way.mechanism.name() };
        start.insert("payload", payload(&client.client_first(), way.text));
        if way.skip_empty {
            start.insert("options", doc! { "skipEmptyExchange": true });
        }
        let mut answers = vec![self.either(database, start, way).await];
        if answers[0].get_f64("ok").unwrap() == 1.0 {
            self.go_on(client, database, &mut answers, way).await;
        }
        answers
    }

    /// Goes on after the server's first message, which is the last of `answers`.
    pub async fn go_on(&mut self, client: ScramClient, database: &str, answers: &mut Vec<Document>, way: Way) {
        let challenge = client.on_server_first(&message_of(answers.last().unwrap())).unwrap();
        let keys = challenge.derivation().derive();
        let (proof, signature) = challenge.client_final(&keys);
        let next = doc! { "saslContinue": 1, "conversationId": 1, "payload": payload(&proof, way.text) };
        let answer = self.either(database, next, way).await;
        let done = answer.get_bool("done").ok();
        if done.is_some() {
            signature.verify(&message_of(&answer)).expect("the server's proof");
        }
        answers.push(answer);
        if done == Some(false) {
            let next = doc! { "saslContinue": 1, "conversationId": 1, "payload": payload(b"", way.text) };
            answers.push(self.either(database, next, way).await);
        }
    }

    async fn either(&mut self, database: &str, command: Document, way: Way) -> Document {
        if way.legacy { self.query(database, command).await } else { self.command(database, command).await }
    }
}

/// Opens a socket and logs in, which has to succeed.
pub async fn logged_in(address: &Address, user: &str, password: &str) -> Caller {
    let mut caller = Caller::to(address).await;
    let answers = caller.log_in(user, password, USUAL).await;
    assert_eq!(answers.last().unwrap().get_bool("done").ok(), Some(true), "{answers:?}");
    caller
}

/// Logs a socket in that is one already.
pub async fn log_in(client: &mut WireClient, user: &str, password: &str) -> Document {
    let (database, user) = user.split_once('.').unwrap();
    let scram = ScramClient::new(Mechanism::Sha256, user, password, ClientNonce::from_random([3; 24])).unwrap();
    let mut start = doc! { "saslStart": 1, "mechanism": "SCRAM-SHA-256", "options": { "skipEmptyExchange": true } };
    start.insert("payload", payload(&scram.client_first(), false));
    let first = client.reply(database, start).await.unwrap();
    let challenge = scram.on_server_first(&message_of(&first)).unwrap();
    let keys = challenge.derivation().derive();
    let (proof, _) = challenge.client_final(&keys);
    let next = doc! { "saslContinue": 1, "conversationId": 1, "payload": payload(&proof, false) };
    client.reply(database, next).await.unwrap()
}

/// A message in either form.
pub fn payload(bytes: &[u8], text: bool) -> Bson {
    use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
    if text {
        return BASE64.encode(bytes).into();
    }
    Bson::Binary(Binary { subtype: BinarySubtype::Generic, bytes: bytes.to_vec() })
}

fn message_of(answer: &Document) -> Vec<u8> {
    use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
    match answer.get("payload") {
        Some(Bson::Binary(binary)) => binary.bytes.clone(),
        Some(Bson::String(text)) => BASE64.decode(text).unwrap(),
        other => panic!("{other:?} in {answer}"),
    }
}
