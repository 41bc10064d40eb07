//! What clients ask for when they log in, and the words in which servers answer: `saslStart`, `saslContinue`, `authenticate`,
//! and the same inside of `hello`.
//!
//! Codes, texts and the order of fields are the server's. The conversation itself is the client session's business.

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use bson::raw::{RawArrayBuf, RawDocument, RawDocumentBuf, cstr};
use bson::spec::BinarySubtype;
use bson::{Binary, rawdoc};

use super::errors::{self, ErrorReply, code};
use crate::auth::{Secret, UserName};
use crate::wire::document::{Element, Elements, find, kind};

/// Fields that any command may have.
const GENERIC: [&str; 12] = [
    "apiVersion",
    "apiStrict",
    "apiDeprecationErrors",
    "lsid",
    "txnNumber",
    "autocommit",
    "startTransaction",
    "comment",
    "maxTimeMS",
    "readConcern",
    "writeConcern",
    "help",
];

/// What a client sends within a conversation.
pub struct Payload {
    /// It may hold a password.
    pub bytes: Secret,
    /// It came as base64, and so goes the answer.
    pub as_text: bool,
}

/// `saslStart`
pub struct Start<'a> {
    /// As the client wrote it.
    pub mechanism: &'a str,
    /// The first message.
    pub payload: Payload,
    /// The client does without the round in which nothing is said.
    pub skip_empty_exchange: bool,
}

/// `saslContinue`
pub struct Continue {
    /// Which conversation.
    pub conversation_id: i32,
    /// The next message.
    pub payload: Payload,
}

/// `authenticate`
pub struct Authenticate<'a> {
    /// As the client wrote it.
    pub mechanism: &'a str,
    /// Who it says it is.
    pub user: Option<&'a str>,
}

/// The log-in that a hello begins.
pub enum Speculative<'a> {
    /// `saslStart`, with the database that it names.
    Start(Start<'a>, &'a str),
    /// `authenticate`
    Authenticate(Authenticate<'a>),
}

impl<'a> Start<'a> {
    /// Reads the command.
    ///
    /// # Errors
    /// Those of the server.
    pub fn read(document: &'a [u8]) -> Result<Self, ErrorReply> {
        let fields = Fields::read(document, "saslStart", &["mechanism", "payload", "options", "autoAuthorize", "db"])?;
        let mechanism = fields.text("mechanism")?;
        if let Some(flag) = fields.get("autoAuthorize").filter(|flag| flag.as_truth().is_none()) {
            return Err(fields.wrong(&flag, "types '[bool, long, int, decimal, double']"));
        }
        let mut skip_empty_exchange = false;
        if let Some(options) = fields.get("options") {
            let inside = options.as_document().filter(|_| options.kind == kind::DOCUMENT);
            let inside = inside.ok_or_else(|| fields.wrong(&options, "type 'object'"))?;
            if let Some(skip) = find(inside, b"skipEmptyExchange") {
                if skip.kind != kind::BOOL {
                    return Err(ErrorReply::of_server(code::BAD_VALUE, "skipEmptyExchange must be boolean"));
                }
                skip_empty_exchange = skip.as_truth() == Some(true);
            }
        }
        let payload = fields.payload()?;
        Ok(Self { mechanism, payload, skip_empty_exchange })
    }
}

impl Continue {
    /// Reads the command.
    ///
    /// # Errors
    /// Those of the server.
    pub fn read(document: &[u8]) -> Result<Self, ErrorReply> {
        let fields = Fields::read(document, "saslContinue", &["conversationId", "payload"])?;
        let id = fields.get("conversationId").ok_or_else(|| fields.missing("conversationId"))?;
        let conversation_id = Some(id).filter(|id| id.kind == kind::INT32).and_then(|id| id.as_number());
        let conversation_id =
            conversation_id.and_then(|id| id.try_into().ok()).ok_or_else(|| fields.wrong(&id, "type 'int'"))?;
        Ok(Self { conversation_id, payload: fields.payload()? })
    }
}

impl<'a> Authenticate<'a> {
    /// Reads the command.
    ///
    /// # Errors
    /// Those of the server.
    pub fn read(document: &'a [u8]) -> Result<Self, ErrorReply> {
        let fields = Fields::read(document, "authenticate", &["mechanism", "user", "db"])?;
        let mechanism = fields.text("mechanism")?;
        let user = fields.get("user").map(|_| fields.text("user")).transpose()?;
        Ok(Self { mechanism, user })
    }
}

impl<'a> Speculative<'a> {
    /// Reads `speculativeAuthenticate`; `None` for one that nothing can come of.
    pub fn read(document: &'a [u8]) -> Option<Self> {
        let first = Elements::new(document).ok()?.next()?.ok()?;
        match first.name {
            b"saslStart" => {
                let database = find(document, b"db")?.as_str()?;
                Start::read(document).ok().map(|start| Self::Start(start, database))
            }
            b"authenticate" => Authenticate::read(document).ok().map(Self::Authenticate),
            _ => None,
        }
    }
}

/// The fields of a command by name.
struct Fields<'a> {
    document: &'a [u8],
    command: &'static str,
}

impl<'a> Fields<'a> {
    fn read(document: &'a [u8], command: &'static str, known: &[&str]) -> Result<Self, ErrorReply> {
        for element in Elements::new(document).map_err(|_| errors::invalid_bson())?.skip(1) {
            let element = element.map_err(|_| errors::invalid_bson())?;
            let name = String::from_utf8_lossy(element.name);
            let generic = name.starts_with('$') || GENERIC.contains(&&*name);
            if !generic && !known.contains(&&*name) {
                let message = format!("BSON field '{command}.{name}' is an unknown field.");
                return Err(ErrorReply::of_server(code::UNKNOWN_FIELD, &message));
            }
        }
        Ok(Self { document, command })
    }

    fn get(&self, name: &str) -> Option<Element<'a>> {
        find(self.document, name.as_bytes())
    }

    fn text(&self, name: &str) -> Result<&'a str, ErrorReply> {
        let field = self.get(name).ok_or_else(|| self.missing(name))?;
        field.as_str().ok_or_else(|| self.wrong(&field, "type 'string'"))
    }

    fn payload(&self) -> Result<Payload, ErrorReply> {
        let field = self.get("payload").ok_or_else(|| self.missing("payload"))?;
        if let Some(text) = field.as_str() {
            let refuse = || ErrorReply::of_server(code::INVALID_BASE64, "Failed decoding SASL payload: invalid base64");
            let bytes = Secret::from(BASE64.decode(text).map_err(|_| refuse())?);
            return Ok(Payload { bytes, as_text: true });
        }
        let bytes = Some(field).filter(|field| field.kind == kind::BINARY).and_then(|field| field.value.get(5..));
        match bytes {
            Some(bytes) => Ok(Payload { bytes: bytes.to_vec().into(), as_text: false }),
            None => {
                let found = type_name(field.kind);
                let message = format!("Invalid SASLPayload type. Expected Base64 or BinData, got: {found}");
                Err(ErrorReply::of_server(code::BAD_VALUE, &message))
            }
        }
    }

    fn missing(&self, name: &str) -> ErrorReply {
        let message = format!("BSON field '{}.{name}' is missing but a required field", self.command);
        ErrorReply::of_server(code::MISSING_FIELD, &message)
    }

    fn wrong(&self, field: &Element<'_>, expected: &str) -> ErrorReply {
        wrong_type(self.command, field, expected)
    }
}

fn wrong_type(command: &str, field: &Element<'_>, expected: &str) -> ErrorReply {
    let (name, found) = (String::from_utf8_lossy(field.name), type_name(field.kind));
    let message = format!("BSON field '{command}.{name}' is the wrong type '{found}', expected {expected}");
    ErrorReply::of_server(code::TYPE_MISMATCH, &message)
}

/// The name that servers have for a BSON type.
fn type_name(kind: u8) -> &'static str {
    match kind {
        kind::DOUBLE => "double",
        kind::STRING => "string",
        kind::DOCUMENT => "object",
        kind::ARRAY => "array",
        kind::BINARY => "binData",
        kind::UNDEFINED => "undefined",
        kind::OBJECT_ID => "objectId",
        kind::BOOL => "bool",
        0x09 => "date",
        kind::NULL => "null",
        0x0B => "regex",
        0x0D => "javascript",
        0x0E => "symbol",
        kind::INT32 => "int",
        kind::TIMESTAMP => "timestamp",
        kind::INT64 => "long",
        0x13 => "decimal",
        _ => "unknown",
    }
}

/// What a hello says about log-ins: whose mechanisms it wants to know, and the log-in that it begins.
///
/// # Errors
/// Of the wrong type, as on a server.
pub fn in_hello<'a>(document: &'a [u8], name: &str) -> Result<(Option<&'a str>, Option<&'a [u8]>), ErrorReply> {
    let mechanisms = match find(document, b"saslSupportedMechs") {
        Some(field) if field.kind == kind::DOCUMENT => None,
        Some(field) => Some(field.as_str().ok_or_else(|| wrong_type(name, &field, "types '[string, object']"))?),
        None => None,
    };
    if mechanisms.is_some_and(|user| !user.contains('.')) {
        let message = "UserName must contain a '.' separated database.user pair";
        return Err(ErrorReply::of_server(code::BAD_VALUE, message));
    }
    let speculative = match find(document, b"speculativeAuthenticate") {
        Some(field) if field.kind == kind::DOCUMENT => Some(field.value),
        Some(field) => return Err(wrong_type(name, &field, "type 'object'")),
        None => None,
    };
    Ok((mechanisms, speculative))
}

/// A hello's answer with what it says about log-ins, which stands last.
pub fn into_hello(
    hello: &RawDocument,
    mechanisms: Option<&[&'static str]>,
    speculative: Option<RawDocumentBuf>,
) -> RawDocumentBuf {
    let mut document = RawDocumentBuf::new();
    for (name, value) in hello.iter().map_while(Result::ok).filter(|(name, _)| name.as_str() != "ok") {
        document.append(name, value);
    }
    if let Some(mechanisms) = mechanisms {
        document.append(cstr!("saslSupportedMechs"), mechanisms.iter().copied().collect::<RawArrayBuf>());
    }
    if let Some(speculative) = speculative {
        document.append(cstr!("speculativeAuthenticate"), speculative);
    }
    document.append(cstr!("ok"), 1.0);
    document
}

/// Our next message within a conversation, without `ok`.
pub fn turn(done: bool, payload: &[u8], as_text: bool) -> RawDocumentBuf {
    let mut document = rawdoc! {"conversationId": 1, "done": done};
    if as_text {
        document.append(cstr!("payload"), BASE64.encode(payload));
    } else {
        document.append(cstr!("payload"), Binary { subtype: BinarySubtype::Generic, bytes: payload.to_vec() });
    }
    document
}

/// The answer to a certificate that names a user, without `ok`.
pub fn known_by_certificate(user: &UserName) -> RawDocumentBuf {
    rawdoc! {"dbname": &*user.database, "user": &*user.name}
}

/// `connectionStatus` of a client that has logged in.
pub fn connection_status(user: &UserName, roles: &[(String, String)], privileges: bool) -> RawDocumentBuf {
    let roles: RawArrayBuf = roles.iter().map(|(role, db)| rawdoc! {"role": &**role, "db": &**db}).collect();
    let users: RawArrayBuf = [rawdoc! {"user": &*user.name, "db": &*user.database}].into_iter().collect();
    let mut identity = rawdoc! {"authenticatedUsers": users, "authenticatedUserRoles": roles};
    if privileges {
        identity.append(cstr!("authenticatedUserPrivileges"), RawArrayBuf::new());
    }
    rawdoc! {"authInfo": identity, "ok": 1.0}
}

/// The one answer to every log-in that fails: why is nobody's business but the operator's.
pub fn failed() -> ErrorReply {
    ErrorReply::of_server(code::AUTHENTICATION_FAILED, "Authentication failed.")
}

/// A certificate is asked for, and none was shown.
pub fn no_certificate() -> ErrorReply {
    ErrorReply::of_server(code::AUTHENTICATION_FAILED, "No verified subject name available from client")
}

/// A mechanism that nobody logs in with here.
pub fn mechanism_not_enabled(mechanism: &str) -> ErrorReply {
    let message = format!("Received authentication for mechanism {mechanism} which is not enabled");
    ErrorReply::of_server(code::MECHANISM_UNAVAILABLE, &message)
}

/// A mechanism that the users of another database log in with.
pub fn mechanism_of_another_database(mechanism: &str, database: &str) -> ErrorReply {
    let message = format!("Unsupported mechanism '{mechanism}' on authentication database '{database}'");
    ErrorReply::of_server(code::MECHANISM_UNAVAILABLE, &message)
}

/// A mechanism of `saslStart` in an `authenticate`.
pub fn mechanism_of_another_command(mechanism: &str) -> ErrorReply {
    ErrorReply::of_server(code::BAD_VALUE, &format!("Unsupported mechanism: {mechanism}"))
}

/// `saslContinue` without a conversation.
pub fn no_conversation() -> ErrorReply {
    ErrorReply::of_server(code::PROTOCOL_ERROR, "No SASL session state found")
}

/// `saslContinue` of a conversation that there is not.
pub fn other_conversation() -> ErrorReply {
    ErrorReply::of_server(code::PROTOCOL_ERROR, "sasl: Mismatched conversation id")
}

/// Another user is logged in on this socket.
pub fn another_user(current: &UserName, wanted: &UserName) -> ErrorReply {
    if current.database == wanted.database {
        let message =
            format!("Client has attempted to authenticate on multiple databases.Already authenticated as: {current}");
        return ErrorReply::of_server(code::ANOTHER_USER, &message);
    }
    let message =
        format!("Each client connection may only be authenticated once. Previously authenticated as: {current}");
    ErrorReply::of_server(code::ANOTHER_USER_OF_ANOTHER_DATABASE, &message)
}

/// A command of a client that has still to log in.
pub fn requires_authentication(name: &str) -> ErrorReply {
    ErrorReply::of_server(code::UNAUTHORIZED, &format!("command {name} requires authentication"))
}

/// A command that no server knows.
pub fn no_such_command(name: &str) -> ErrorReply {
    ErrorReply::of_server(code::COMMAND_NOT_FOUND, &format!("no such command: '{name}'"))
}

/// A command of a client whose user was dropped, or has another password now.
pub fn revoked(user: &UserName) -> ErrorReply {
    errors::unauthorized(&format!("{user} was removed or has another password now: log in again"))
}

/// Users cannot be looked up, or there is no room for another one. It says nothing about this one.
pub fn unavailable(why: &str) -> ErrorReply {
    ErrorReply::new(code::HOST_UNREACHABLE, &format!("cannot log anybody in: {why}"))
}

#[cfg(test)]
mod tests {
    use bson::{Bson, Document, doc};

    use super::*;

    fn start(fields: Document) -> Result<(String, usize, bool, bool), (i32, String)> {
        let mut command = doc! {"saslStart": 1};
        command.extend(fields);
        let bytes = command.to_vec().unwrap();
        let read = Start::read(&bytes).map_err(|error| (error.code.number, error.message))?;
        let Start { mechanism, payload, skip_empty_exchange } = read;
        Ok((mechanism.to_owned(), payload.bytes.expose().len(), payload.as_text, skip_empty_exchange))
    }

    fn binary(bytes: &[u8]) -> Bson {
        Bson::Binary(Binary { subtype: BinarySubtype::Generic, bytes: bytes.to_vec() })
    }

    #[test]
    fn payloads_come_as_bytes_or_as_text() {
        let fields = doc! {"mechanism": "X", "payload": binary(b"abc"), "autoAuthorize": 1, "$db": "a", "comment": 1};
        assert_eq!(start(fields), Ok(("X".to_owned(), 3, false, false)));
        let options = doc! {"skipEmptyExchange": true, "other": 1};
        let fields = doc! {"mechanism": "X", "payload": "YWJj", "options": options};
        assert_eq!(start(fields), Ok(("X".to_owned(), 3, true, true)));
        assert_eq!(turn(true, b"abc", true).get_str("payload").ok(), Some("YWJj"));
        assert_eq!(turn(false, b"abc", false).get_binary("payload").unwrap().bytes, b"abc");
    }

    #[test]
    fn damaged_commands_never_cause_a_panic() {
        let whole = doc! {
            "saslStart": 1, "mechanism": "X", "payload": binary(b"abc"), "options": {"skipEmptyExchange": true},
        };
        let whole = whole.to_vec().unwrap();
        for position in 0..whole.len() {
            for value in [0, 1, 0x7F, 0x80, 0xFF] {
                let mut damaged = whole.clone();
                damaged[position] = value;
                drop((Start::read(&damaged), Continue::read(&damaged), Authenticate::read(&damaged)));
                drop(Speculative::read(&damaged));
                drop(in_hello(&damaged, "hello"));
            }
            drop(Start::read(&whole[..position]));
        }
    }

    #[test]
    fn what_a_hello_learns_stands_before_ok() {
        let hello = rawdoc! {"isWritablePrimary": true, "ok": 1.0};
        let told = into_hello(&hello, Some(&["A", "B"]), Some(turn(false, b"", false)));
        let names: Vec<String> = Document::try_from(told).unwrap().keys().cloned().collect();
        assert_eq!(names, ["isWritablePrimary", "saslSupportedMechs", "speculativeAuthenticate", "ok"]);
        assert_eq!(into_hello(&hello, None, None), hello);
    }
}
