//! A frame read as a command: its name, its database, and only the fields that the proxy acts on.
//!
//! One walk over the names of the top level. Everything else in the command stays bytes, goes upstream as it came,
//! and is judged by the server.

use std::time::Duration;

use bson::RawDocument;
use bson::raw::cstr;

use super::kind::{self, CommandSpec, Effect, Handling};
use super::read_preference::{ReadPreference, ReadPreferenceMode, with_primary_preferred};
use super::session::{SessionFields, SessionId};
use crate::wire::document::{self, find};
use crate::wire::{Element, Elements, Frame, MalformedDocument, OpMsg, OpMsgError};

/// A message that is a command.
#[derive(Debug)]
pub struct Command {
    /// How it is treated.
    pub spec: &'static CommandSpec,
    /// The client waits for no reply.
    pub unacknowledged: bool,
    /// Session and transaction.
    pub session: SessionFields,
    /// `$readPreference`, when it is sound and not primary. Boxed, as most commands have none and every client has room for one.
    pub read_preference: Option<Box<ReadPreference>>,
    /// There is one that makes no sense; the server says so.
    unsound_preference: bool,
    /// The first pipeline stage is `$changeStream`, or the cursor is tailable and awaits data.
    pub awaits_data: bool,
    /// The first pipeline stage is `$changeStream`.
    pub opens_change_stream: bool,
    /// The cursor is to be kept for as long as its session.
    pub no_cursor_timeout: bool,
    max_time: Option<MaxTime>,
    /// Changes data, although most commands of its name do not.
    writes: bool,
    op_msg: OpMsg,
}

/// A read of one collection that asks for the primary, and that a secondary could answer with what it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PrimaryRead<'a> {
    /// `$db`
    pub database: &'a str,
    /// The collection.
    pub collection: &'a str,
    /// Other collections may be read with it, of the same database.
    pub joins: bool,
}

/// `maxTimeMS` and where it stands.
#[derive(Debug, Clone, Copy)]
struct MaxTime {
    milliseconds: i64,
    kind: u8,
    offset: usize,
}

/// Why a message is no command. All of these are answered, and only the first kind may close the socket.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CommandError {
    /// The sections are wrong.
    #[error(transparent)]
    OpMsg(#[from] OpMsgError),
    /// The document is.
    #[error("invalid BSON in the command")]
    InvalidBson,
    /// No `$db`, or no field at all.
    #[error("OP_MSG requests require a $db argument")]
    NoDatabase,
    /// `$db` is no string.
    #[error("$db is no string")]
    DatabaseType,
    /// A field that only servers among themselves may send.
    #[error("the field `{0}` is reserved for servers")]
    InternalField(&'static str),
}

impl From<MalformedDocument> for CommandError {
    fn from(_: MalformedDocument) -> Self {
        Self::InvalidBson
    }
}

impl Command {
    /// Reads `frame`, an OP_MSG; verifies and strips its checksum on the way.
    ///
    /// # Errors
    /// [`CommandError`]. Whether the client waits for an answer is then to be seen with [`expects_reply`].
    pub fn parse(frame: &mut Frame) -> Result<Self, CommandError> {
        let op_msg = OpMsg::parse(frame)?;
        let document = op_msg.document(frame);
        let mut elements = Elements::new(document)?;
        let first = elements.next().ok_or(CommandError::NoDatabase)??;
        let mut command = Self {
            spec: kind::lookup(first.name),
            unacknowledged: op_msg.more_to_come(),
            session: SessionFields::default(),
            read_preference: None,
            unsound_preference: false,
            awaits_data: false,
            opens_change_stream: false,
            no_cursor_timeout: false,
            max_time: None,
            writes: false,
            op_msg,
        };
        let mut database = (first.name == b"$db").then_some(first.kind);
        let (mut tailable, mut await_data) = (false, false);
        for element in elements {
            let element = element?;
            match element.name {
                b"$db" => database = Some(element.kind),
                b"lsid" => command.session.session = session_id(&element),
                b"txnNumber" => command.session.transaction_number = element.as_i64(),
                b"startTransaction" => command.session.starts_transaction = element.as_truth() == Some(true),
                b"autocommit" => command.session.in_transaction = element.as_truth() == Some(false),
                b"$readPreference" => command.read_preference(&element),
                b"maxTimeMS" => command.max_time = MaxTime::of(&element),
                b"tailable" => tailable = element.as_truth() == Some(true),
                b"awaitData" => await_data = element.as_truth() == Some(true),
                b"noCursorTimeout" => command.no_cursor_timeout = element.as_truth() == Some(true),
                b"pipeline" => command.read_pipeline(&element),
                b"out" if command.spec.name.eq_ignore_ascii_case("mapReduce") => {
                    command.writes = element.as_document().is_none_or(|out| find(out, b"inline").is_none());
                }
                b"repair" | b"fixMultikey" if command.spec.name == "validate" => {
                    command.writes |= element.as_truth() != Some(false);
                }
                b"$audit" => return Err(CommandError::InternalField("$audit")),
                b"$client" => return Err(CommandError::InternalField("$client")),
                b"$configTime" => return Err(CommandError::InternalField("$configTime")),
                b"$configServerState" => return Err(CommandError::InternalField("$configServerState")),
                b"$replData" => return Err(CommandError::InternalField("$replData")),
                _ => {}
            }
        }
        // Which database it names is the server's business.
        match database {
            Some(document::kind::STRING) => {}
            Some(_) => return Err(CommandError::DatabaseType),
            None => return Err(CommandError::NoDatabase),
        }
        command.awaits_data |= tailable && await_data;
        Ok(command)
    }

    /// The document of the command.
    pub fn document<'a>(&self, frame: &'a Frame) -> &'a [u8] {
        self.op_msg.document(frame)
    }

    /// The name as the client wrote it.
    pub fn name<'a>(&self, frame: &'a Frame) -> &'a str {
        let first = Elements::new(self.document(frame)).ok().and_then(|mut elements| elements.next()?.ok());
        first.and_then(|element| std::str::from_utf8(element.name).ok()).unwrap_or_default()
    }

    /// `$db`
    pub fn database<'a>(&self, frame: &'a Frame) -> &'a str {
        find(self.document(frame), b"$db").and_then(|element| element.as_str()).unwrap_or_default()
    }

    /// The cursor that a `getMore` asks for; `None` when its first field is no 64-bit integer.
    pub fn cursor_id(&self, frame: &Frame) -> Option<i64> {
        Elements::new(self.document(frame)).ok()?.next()?.ok()?.as_i64()
    }

    /// The cursors that a `killCursors` names.
    pub fn cursors_to_kill(&self, frame: &Frame) -> Vec<i64> {
        let array = find(self.document(frame), b"cursors").and_then(|element| element.as_document());
        let items = array.and_then(|array| Elements::new(array).ok()).into_iter().flatten().map_while(Result::ok);
        items.filter_map(|item| item.as_i64()).collect()
    }

    /// The time the client grants the server. On a `getMore` it is the wait for data, not a limit, so it is not here.
    pub fn max_time(&self) -> Option<Duration> {
        if self.spec.handling == Handling::GetMore {
            return None;
        }
        let milliseconds = u64::try_from(self.max_time?.milliseconds).ok()?;
        // Zero means "no limit" on a server, too.
        (milliseconds > 0).then(|| Duration::from_millis(milliseconds))
    }

    /// How long the client of a `getMore` wants to wait for data; `None` for the server's default.
    pub fn await_time(&self) -> Option<Duration> {
        let milliseconds = u64::try_from(self.max_time?.milliseconds).ok()?;
        (self.spec.handling == Handling::GetMore && milliseconds > 0).then(|| Duration::from_millis(milliseconds))
    }

    /// May go to a server that its read preference names.
    pub fn secondary_ok(&self, frame: &Frame) -> bool {
        let explained = || match find(self.document(frame), b"explain").and_then(|element| element.as_document()) {
            Some(inner) => {
                Elements::new(inner).ok().and_then(|mut elements| elements.next()?.ok()).is_some_and(|first| {
                    kind::lookup(first.name).secondary_ok && !find(inner, b"pipeline").is_some_and(|p| stages(&p).1)
                })
            }
            None => true,
        };
        self.spec.secondary_ok
            && !self.writes
            && !self.session.in_transaction
            && (self.spec.name != "explain" || explained())
    }

    /// The read that the command is if it asks for the primary only because that is where reads go. `None` for all that
    /// would not be the same on a secondary: what insists on the newest writes, belongs to a transaction, or waits for data.
    pub fn primary_read<'a>(&self, frame: &'a Frame) -> Option<PrimaryRead<'a>> {
        let of_a_collection = matches!(self.spec.name, "find" | "aggregate" | "count" | "distinct");
        let asks_for_another = self.read_preference.is_some() || self.unsound_preference;
        if !of_a_collection || asks_for_another || self.awaits_data || !self.secondary_ok(frame) {
            return None;
        }
        let document = self.document(frame);
        // An aggregation of no collection has a number here: it reads the state of a server.
        let collection = Elements::new(document).ok()?.next()?.ok()?.as_str()?;
        if find(document, b"readConcern").is_some_and(|concern| wants_newest(&concern)) {
            return None;
        }
        let joins = find(document, b"pipeline").is_some_and(|pipeline| joins(pipeline.value));
        Some(PrimaryRead { database: self.database(frame), collection, joins })
    }

    /// Changes the message so that a secondary answers it. What was read from it stays as it was: the command goes on to
    /// ask for the primary.
    pub fn allow_secondary(&mut self, frame: &mut Frame) {
        let document = with_primary_preferred(self.document(frame));
        self.replace_document(frame, &document);
    }

    /// Takes `$clusterTime` out of the message.
    pub fn take_out_cluster_time(&mut self, frame: &mut Frame) {
        const NAME: &[u8] = b"$clusterTime";
        let document = self.document(frame);
        if find(document, NAME).is_none() {
            return;
        }
        let mut document = document.to_vec();
        if let Ok(length) = document::take_out(&mut document, &[NAME]) {
            document.truncate(length);
            self.replace_document(frame, &document);
        }
    }

    /// Puts another document with the same `maxTimeMS` in the place of the one that is there.
    fn replace_document(&mut self, frame: &mut Frame, document: &[u8]) {
        if let Some(max_time) = &mut self.max_time {
            let found = Elements::new(document).into_iter().flatten().map_while(Result::ok);
            // The last one counts, as it did when the command was read.
            if let Some(element) = found.filter(|element| element.name == b"maxTimeMS").last() {
                max_time.offset = element.offset;
            }
        }
        self.op_msg.replace_document(frame, document);
    }

    /// The documents of all sequences of the message, each with the name of its sequence.
    pub(super) fn sequence_documents<'a>(&self, frame: &'a Frame) -> impl Iterator<Item = (&'a [u8], &'a [u8])> {
        self.op_msg.sequence_documents(frame)
    }

    /// Why the proxy does not pass the command on although its name is allowed; `None` for almost all.
    pub fn refusal(&self, frame: &Frame) -> Option<&'static str> {
        let document = self.document(frame);
        match self.spec.name {
            // An empty list means all sessions of the user, who is everybody behind a shared credential.
            "killSessions" if find(document, b"killSessions").is_some_and(|list| is_empty_array(&list)) => {
                Some("killSessions with an empty list would end the sessions of all clients")
            }
            // A server may take for true what we cannot read.
            "usersInfo" if find(document, b"showCredentials").is_some_and(|flag| flag.as_truth() != Some(false)) => {
                Some("usersInfo with showCredentials is not allowed through the proxy")
            }
            _ => None,
        }
    }

    /// True for a command after which a user may be another one, or may have another password.
    pub fn changes_users(&self, frame: &Frame) -> bool {
        self.effect() == Effect::Other
            && matches!(
                self.name(frame),
                "createUser"
                    | "updateUser"
                    | "dropUser"
                    | "dropAllUsersFromDatabase"
                    | "grantRolesToUser"
                    | "revokeRolesFromUser"
            )
    }

    /// What running the command does, with its fields taken into account.
    pub fn effect(&self) -> Effect {
        if self.writes { Effect::Other } else { self.spec.effect }
    }

    /// True unless the command is known to change no data.
    pub fn may_write(&self) -> bool {
        match self.effect() {
            Effect::Read | Effect::Idempotent | Effect::Control => false,
            // A batch of a cursor may not come twice, and changes nothing for that.
            Effect::Write | Effect::Other => self.spec.handling != Handling::GetMore,
        }
    }

    /// True for a write that is acknowledged once a majority of the members has it: because it says so, or says nothing.
    pub fn awaits_majority(&self, frame: &Frame) -> bool {
        let concern = find(self.document(frame), b"writeConcern").and_then(|concern| concern.as_document());
        let w = concern.and_then(|concern| find(concern, b"w"));
        self.effect() == Effect::Write && w.is_none_or(|w| w.as_str() == Some("majority"))
    }

    /// True for a write of exactly one statement: a server that refuses it at the start has done nothing of it.
    pub fn has_one_statement(&self, frame: &Frame) -> bool {
        let field: &[u8] = match self.spec.name {
            "insert" => b"documents",
            "update" => b"updates",
            "delete" => b"deletes",
            "findAndModify" | "findandmodify" => return true,
            _ => return false,
        };
        let array = find(self.document(frame), field).and_then(|element| element.as_document());
        let in_document = array.and_then(|array| Elements::new(array).ok()).map_or(0, Iterator::count);
        in_document + self.op_msg.sequence_documents(frame).count() == 1
    }

    /// True when the batch of the reply holds results of a bulkWrite's statements, which are the server's words and not
    /// the application's documents.
    pub fn lists_bulk_results(&self, frame: &Frame) -> bool {
        let of_bulk_write = || find(self.document(frame), b"collection").and_then(|it| it.as_str());
        match self.spec.name {
            "bulkWrite" => true,
            "getMore" => of_bulk_write() == Some("$cmd.bulkWrite"),
            _ => false,
        }
    }

    /// Makes the message ready for an upstream connection: no flags, so that upstream answers exactly once.
    pub fn clear_flags(&self, frame: &mut Frame) {
        self.op_msg.clear_flags(frame);
    }

    /// Lowers `maxTimeMS` in the message to `remaining`, which keeps the client's deadline after a wait in our queue. What
    /// did not wait stays as it is: a begun millisecond counts as a whole one, as some replies repeat their command.
    pub fn shrink_max_time(&self, frame: &mut Frame, remaining: Duration) {
        // Zero means "no limit", and stays.
        let Some(MaxTime { milliseconds: granted @ 1.., .. }) = self.max_time else { return };
        let begun = remaining.as_nanos().div_ceil(1_000_000);
        let left = i64::try_from(begun).unwrap_or(i64::MAX).clamp(1, granted);
        self.write_max_time(frame, left);
    }

    /// Says how long the server is to wait for data, whatever the client's own time is. A message that says nothing of it
    /// becomes longer; one that says what a server refuses stays as it is.
    pub fn set_await_time(&mut self, frame: &mut Frame, wait: Duration) {
        if self.max_time.is_none() {
            if find(self.document(frame), b"maxTimeMS").is_some() {
                return;
            }
            let Ok(document) = RawDocument::from_bytes(self.document(frame)) else { return };
            let mut longer = document.to_owned();
            longer.append(cstr!("maxTimeMS"), 0_i64);
            self.op_msg.replace_document(frame, longer.as_bytes());
            let document = self.document(frame);
            self.max_time = find(document, b"maxTimeMS").and_then(|element| MaxTime::of(&element));
        }
        self.write_max_time(frame, i64::try_from(wait.as_millis()).unwrap_or(i64::MAX));
    }

    fn write_max_time(&self, frame: &mut Frame, wait: i64) {
        let Some(MaxTime { kind, offset, .. }) = self.max_time else { return };
        #[expect(clippy::cast_precision_loss, reason = "a wait of 2^53 milliseconds needs no exact number")]
        let bytes = match kind {
            document::kind::INT64 => wait.to_le_bytes(),
            document::kind::DOUBLE => (wait as f64).to_le_bytes(),
            _ => i64::from(i32::try_from(wait).unwrap_or(i32::MAX)).to_le_bytes(),
        };
        let width = if kind == document::kind::INT32 { 4 } else { 8 };
        let place = offset..offset + width;
        if self.op_msg.document(frame).get(place.clone()) == Some(&bytes[..width]) {
            return;
        }
        if let Some(place) = self.op_msg.document_mut(frame).get_mut(place) {
            place.copy_from_slice(&bytes[..width]);
        }
    }

    fn read_preference(&mut self, element: &Element<'_>) {
        let document = element.as_document().and_then(|bytes| RawDocument::from_bytes(bytes).ok());
        let preference = document.and_then(ReadPreference::parse);
        self.unsound_preference = preference.is_none();
        let not_primary = preference.filter(|preference| preference.mode != ReadPreferenceMode::Primary);
        self.read_preference = not_primary.map(Box::new);
    }

    fn read_pipeline(&mut self, pipeline: &Element<'_>) {
        let (change_stream, output) = stages(pipeline);
        self.opens_change_stream |= change_stream;
        self.awaits_data |= change_stream;
        self.writes |= output;
    }
}

/// True when the client that sent `frame` waits for an answer, whatever else is wrong with the message.
pub fn expects_reply(frame: &Frame) -> bool {
    frame
        .body()
        .first_chunk()
        .is_none_or(|flags| u32::from_le_bytes(*flags) & crate::wire::op_msg::flag::MORE_TO_COME == 0)
}

impl MaxTime {
    /// `None` for what a server refuses, so that it stays as it is: a whole number of 31 bits is good.
    fn of(element: &Element<'_>) -> Option<Self> {
        let milliseconds = element.as_number().filter(|number| (0..=i64::from(i32::MAX)).contains(number))?;
        #[expect(clippy::cast_precision_loss, reason = "31 bits fit")]
        let is_whole = element.as_double().is_none_or(|number| number == milliseconds as f64);
        is_whole.then_some(Self { milliseconds, kind: element.kind, offset: element.offset })
    }
}

fn is_empty_array(element: &Element<'_>) -> bool {
    element.as_document().and_then(|array| Elements::new(array).ok()).is_some_and(|mut items| items.next().is_none())
}

/// Whether only a server that has seen certain writes, or all of them, may answer.
fn wants_newest(concern: &Element<'_>) -> bool {
    let Some(concern) = concern.as_document() else { return true };
    let level = find(concern, b"level");
    level.is_some_and(|level| level.as_str() == Some("linearizable"))
        || find(concern, b"afterClusterTime").is_some()
        || find(concern, b"atClusterTime").is_some()
}

/// Whether a stage that reads other collections stands anywhere in `pipeline`, however deep. Looks at bytes and not at
/// structure: whoever has such a word in a text is taken for one that joins, which costs at most a wait.
fn joins(pipeline: &[u8]) -> bool {
    const STAGES: [&[u8]; 3] = [b"$lookup\0", b"$graphLookup\0", b"$unionWith\0"];
    STAGES.iter().any(|stage| pipeline.windows(stage.len()).any(|bytes| bytes == *stage))
}

fn session_id(lsid: &Element<'_>) -> Option<SessionId> {
    find(lsid.as_document()?, b"id")?.as_uuid().map(SessionId::from)
}

/// Whether the first stage of `pipeline` is `$changeStream`, and whether the last one is `$out` or `$merge`.
fn stages(pipeline: &Element<'_>) -> (bool, bool) {
    let names = || {
        let stages = Elements::new(pipeline.as_document()?).ok()?.map_while(Result::ok);
        Some(stages.filter_map(|stage| Some(Elements::new(stage.as_document()?).ok()?.next()?.ok()?.name)))
    };
    let change_stream = names().and_then(|mut names| names.next()) == Some(b"$changeStream");
    let last = names().and_then(Iterator::last);
    (change_stream, matches!(last, Some(b"$out" | b"$merge")))
}

#[cfg(test)]
mod tests {
    use bson::{Bson, Document, doc};

    use super::*;
    use crate::wire::{OpCode, encode};

    fn frame(document: &Document) -> Frame {
        encode::op_msg(1, 0, &bson::RawDocumentBuf::try_from(document).unwrap())
    }

    fn parse(document: Document) -> (Command, Frame) {
        let mut frame = frame(&document);
        (Command::parse(&mut frame).unwrap(), frame)
    }

    #[test]
    fn reads_the_fields_it_acts_on() {
        let lsid = bson::Uuid::from_bytes([9; 16]);
        let (command, frame) = parse(doc! {
            "find": "things", "filter": {"lsid": 1}, "maxTimeMS": 250, "$db": "shop", "lsid": {"id": lsid},
            "txnNumber": 5_i64, "startTransaction": true, "autocommit": false,
            "$readPreference": {"mode": "secondary"},
        });
        assert_eq!((command.spec.name, command.name(&frame), command.database(&frame)), ("find", "find", "shop"));
        assert_eq!(command.max_time(), Some(Duration::from_millis(250)));
        let transaction = command.session.transaction().unwrap();
        assert_eq!((transaction.session, transaction.number), ([9; 16].into(), 5));
        assert!(command.session.starts_transaction && command.read_preference.is_some());
        assert!(!command.secondary_ok(&frame), "a transaction runs on the primary");
    }

    #[test]
    fn cluster_time_is_taken_out_and_the_time_limit_is_still_found() {
        let time = doc! {"clusterTime": bson::Timestamp { time: 9, increment: 1 }, "signature": {"keyId": 1_i64}};
        let (mut command, mut frame) = parse(
            doc! {"find": "c", "$clusterTime": time, "filter": {"$clusterTime": 1}, "maxTimeMS": 900, "$db": "d"},
        );
        command.take_out_cluster_time(&mut frame);
        command.shrink_max_time(&mut frame, Duration::from_millis(5));
        let left = Document::from_reader(command.document(&frame)).unwrap();
        assert_eq!(left, doc! {"find": "c", "filter": {"$clusterTime": 1}, "maxTimeMS": 5, "$db": "d"});
        let before = frame.bytes().to_vec();
        command.take_out_cluster_time(&mut frame);
        assert_eq!(frame.bytes(), before, "without one nothing changes");
    }

    #[test]
    fn cursors_to_kill_are_listed() {
        let (command, frame) = parse(doc! {"killCursors": "c", "cursors": [1_i64, 2, 3_i64], "$db": "d"});
        assert_eq!(command.cursors_to_kill(&frame), [1, 3], "a cursor's number has 64 bits");
        let (command, frame) = parse(doc! {"killCursors": "c", "$db": "d"});
        assert_eq!(command.cursors_to_kill(&frame), [0; 0]);
    }

    #[test]
    fn faults_are_told_apart() {
        let fault = |document: Document| Command::parse(&mut frame(&document)).unwrap_err();
        assert_eq!(fault(doc! {}), CommandError::NoDatabase);
        assert_eq!(fault(doc! {"ping": 1}), CommandError::NoDatabase);
        assert_eq!(fault(doc! {"ping": 1, "$db": 5}), CommandError::DatabaseType);
        assert_eq!(fault(doc! {"ping": 1, "$client": {}, "$db": "a"}), CommandError::InternalField("$client"));
        let mut damaged = frame(&doc! {"ping": 1, "$db": "admin"}).bytes().to_vec();
        damaged[25] = 0x66;
        let mut damaged = Frame::copy_into(bytes::BytesMut::with_capacity, &damaged, 1000).unwrap().unwrap();
        assert_eq!(Command::parse(&mut damaged).unwrap_err(), CommandError::InvalidBson);
    }

    #[test]
    fn output_stages_and_change_streams_are_seen_where_they_count() {
        let stage = |pipeline: Vec<Document>| parse(doc! {"aggregate": "c", "pipeline": pipeline, "$db": "d"});
        let (out, frame) = stage(vec![doc! {"$match": {}}, doc! {"$out": "x"}]);
        assert!(!out.secondary_ok(&frame));
        assert_eq!(out.effect(), Effect::Other);
        let (inner, frame) = stage(vec![doc! {"$match": {"$out": 1}}]);
        assert!(inner.secondary_ok(&frame));
        assert!(stage(vec![doc! {"$changeStream": {}}]).0.awaits_data);
        assert!(!stage(vec![doc! {"$match": {}}, doc! {"$changeStream": {}}]).0.awaits_data);
        assert!(parse(doc! {"find": "c", "tailable": true, "awaitData": true, "$db": "d"}).0.awaits_data);
        assert!(parse(doc! {"find": "c", "noCursorTimeout": true, "$db": "d"}).0.no_cursor_timeout);
        let (explain, frame) = parse(doc! {"explain": {"findAndModify": "c"}, "$db": "d"});
        assert!(!explain.secondary_ok(&frame));
        let (inline, frame) = parse(doc! {"mapReduce": "c", "out": {"inline": 1}, "$db": "d"});
        assert!(inline.secondary_ok(&frame));
        let (output, frame) = parse(doc! {"mapReduce": "c", "out": "x", "$db": "d"});
        assert!(!output.secondary_ok(&frame));
        let (repair, _) = parse(doc! {"validate": "c", "repair": true, "$db": "d"});
        assert_eq!(repair.effect(), Effect::Other);
        assert_eq!(parse(doc! {"validate": "c", "repair": false, "$db": "d"}).0.effect(), Effect::Read);
    }

    #[test]
    fn reads_of_the_primary_are_told_from_those_that_insist_on_it() {
        let read = |document: Document| {
            let (command, frame) = parse(document);
            command.primary_read(&frame).map(|it| (it.database.to_owned(), it.collection.to_owned(), it.joins))
        };
        let plain = |name: &str| doc! {name: "c.d", "$db": "shop"};
        let of = |joins| Some(("shop".to_owned(), "c.d".to_owned(), joins));
        for name in ["find", "aggregate", "count", "distinct"] {
            assert_eq!(read(plain(name)), of(false), "{name}");
        }
        for name in ["insert", "findAndModify", "listIndexes", "collStats", "explain", "mapReduce", "madeUp"] {
            assert_eq!(read(plain(name)), None, "{name}");
        }
        assert_eq!(read(doc! {"aggregate": 1, "pipeline": [{"$currentOp": {}}], "$db": "shop"}), None);
        let with = |more: Document| {
            let mut document = plain("find");
            document.extend(more);
            read(document)
        };
        for still in [
            doc! {"$readPreference": {"mode": "primary"}},
            doc! {"readConcern": {"level": "majority"}},
            doc! {"readConcern": {}, "lsid": {"id": bson::Uuid::from_bytes([9; 16])}},
            doc! {"filter": {"readConcern": {"afterClusterTime": 1}, "$lookup": 1}},
        ] {
            assert_eq!(with(still.clone()), of(false), "{still}");
        }
        let time = bson::Timestamp { time: 1, increment: 1 };
        for not in [
            doc! {"$readPreference": {"mode": "primaryPreferred"}},
            doc! {"readConcern": {"level": "linearizable"}},
            doc! {"readConcern": {"level": "local", "afterClusterTime": time}},
            doc! {"readConcern": {"level": "snapshot", "atClusterTime": time}},
            doc! {"readConcern": "local"},
            doc! {"autocommit": false},
            doc! {"tailable": true, "awaitData": true},
        ] {
            assert_eq!(with(not.clone()), None, "{not}");
        }
        let piped = |pipeline: Vec<Document>| read(doc! {"aggregate": "c.d", "pipeline": pipeline, "$db": "shop"});
        assert_eq!(piped(vec![doc! {"$match": {"a": "lookup"}}]), of(false));
        for stage in ["$lookup", "$graphLookup", "$unionWith"] {
            assert_eq!(piped(vec![doc! {"$match": {}}, doc! {stage: {}}]), of(true), "{stage}");
            assert_eq!(piped(vec![doc! {"$facet": {"f": [{stage: {}}]}}]), of(true), "{stage}");
        }
        for stage in ["$out", "$merge", "$changeStream"] {
            assert_eq!(piped(vec![doc! {stage: "x"}]), None, "{stage}");
        }
    }

    #[test]
    fn a_message_that_a_secondary_may_answer_is_the_same_otherwise() {
        for (before, after) in [
            (doc! {"find": "c", "maxTimeMS": 900}, doc! {"find": "c", "maxTimeMS": 345}),
            (
                doc! {"find": "c", "$readPreference": {"mode": "primary"}, "maxTimeMS": 900_i64, "filter": {"a": 1}},
                doc! {"find": "c", "maxTimeMS": 345_i64, "filter": {"a": 1}},
            ),
            (doc! {"find": "c"}, doc! {"find": "c"}),
        ] {
            let (mut before, mut after) = (before, after);
            before.insert("$db", "d");
            after.extend(doc! {"$db": "d", "$readPreference": {"mode": "primaryPreferred"}});
            let (mut command, mut message) = parse(before);
            message.set_request_id(77);
            command.allow_secondary(&mut message);
            command.shrink_max_time(&mut message, Duration::from_millis(345));
            assert_eq!(message.header().length, message.bytes().len());
            assert_eq!(message.header().request_id, 77);
            let document = bson::RawDocument::from_bytes(command.document(&message)).unwrap();
            assert_eq!(Document::try_from(document).unwrap(), after);
            assert!(command.primary_read(&message).is_some(), "it goes on to ask for the primary");
            // A second time changes nothing more.
            let once = message.bytes().to_vec();
            command.allow_secondary(&mut message);
            assert_eq!(message.bytes(), once);
        }
    }

    #[test]
    fn statements_are_counted_where_they_stand() {
        let one = |document: Document| {
            let (command, frame) = parse(document);
            command.has_one_statement(&frame)
        };
        assert!(one(doc! {"insert": "c", "documents": [{}], "$db": "d"}));
        assert!(one(doc! {"findAndModify": "c", "$db": "d"}));
        assert!(!one(doc! {"insert": "c", "documents": [{}, {}], "$db": "d"}));
        assert!(!one(doc! {"update": "c", "updates": [], "$db": "d"}));
        assert!(!one(doc! {"create": "c", "$db": "d"}) && !one(doc! {"bulkWrite": 1, "ops": [{}], "$db": "admin"}));
        for (documents, expected) in [(1, true), (2, false)] {
            let mut body = vec![0; 5];
            body.extend(doc! {"delete": "c", "$db": "d"}.to_vec().unwrap());
            let content = [b"deletes\0".to_vec(), [5, 0, 0, 0, 0].repeat(documents)].concat();
            body.push(1);
            body.extend(i32::try_from(content.len() + 4).unwrap().to_le_bytes());
            body.extend(content);
            let mut frame = Frame::build(1, 0, OpCode::Msg, &body);
            assert_eq!(Command::parse(&mut frame).unwrap().has_one_statement(&frame), expected);
        }
    }

    #[test]
    fn writes_by_majority_are_told_from_others() {
        let awaits = |document: Document| {
            let (command, frame) = parse(document);
            command.awaits_majority(&frame)
        };
        assert!(awaits(doc! {"insert": "c", "documents": [{}], "$db": "d"}));
        assert!(awaits(doc! {"delete": "c", "writeConcern": {"w": "majority", "j": true}, "$db": "d"}));
        assert!(awaits(doc! {"update": "c", "writeConcern": {"wtimeout": 5}, "$db": "d"}));
        assert!(!awaits(doc! {"insert": "c", "documents": [{}], "writeConcern": {"w": 1}, "$db": "d"}));
        assert!(!awaits(doc! {"find": "c", "$db": "d"}));
    }

    #[test]
    fn results_of_bulk_writes_are_told_from_documents() {
        let lists = |document: Document| {
            let (command, frame) = parse(document);
            command.lists_bulk_results(&frame)
        };
        assert!(lists(doc! {"bulkWrite": 1, "ops": [], "$db": "admin"}));
        assert!(lists(doc! {"getMore": 5_i64, "collection": "$cmd.bulkWrite", "$db": "admin"}));
        assert!(!lists(doc! {"getMore": 5_i64, "collection": "c", "$db": "admin"}));
        assert!(!lists(doc! {"find": "$cmd.bulkWrite", "$db": "admin"}));
    }

    #[test]
    fn a_time_that_a_server_refuses_stays_as_it_is() {
        let beyond = i64::from(i32::MAX) + 1;
        let odd = [
            Bson::Int32(-1),
            beyond.into(),
            i64::MAX.into(),
            90_000.5.into(),
            1e300.into(),
            f64::NAN.into(),
            "5".into(),
        ];
        for value in odd {
            let document = doc! {"find": "c", "maxTimeMS": value, "$db": "d"};
            let (command, mut message) = parse(document.clone());
            assert_eq!(command.max_time(), None, "{document}");
            command.shrink_max_time(&mut message, Duration::from_millis(345));
            assert_eq!(message.bytes(), frame(&document).bytes(), "{document}");
            let mut get_more = doc! {"getMore": 77_i64, "collection": "c"};
            get_more.extend(document);
            let (mut command, mut message) = parse(get_more.clone());
            command.set_await_time(&mut message, Duration::from_millis(345));
            assert_eq!(message.bytes(), frame(&get_more).bytes(), "{get_more}");
        }
    }

    #[test]
    fn a_preference_that_a_server_refuses_goes_to_the_primary_and_nowhere_else() {
        let (command, _) = parse(doc! {"find": "c", "$readPreference": {"mode": "somewhere"}, "$db": "d"});
        assert_eq!(command.read_preference, None);
        let primary = doc! {"find": "c", "$readPreference": {"mode": "primary"}, "$db": "d"};
        let odd = doc! {"find": "c", "$readPreference": {"mode": "secondary", "maxStalenessSeconds": 89}, "$db": "d"};
        for (document, may_be_degraded) in [(primary, true), (odd, false)] {
            let (command, frame) = parse(document);
            assert_eq!(command.primary_read(&frame).is_some(), may_be_degraded, "its fault would be repaired");
        }
    }

    #[test]
    fn max_time_shrinks_in_its_own_type() {
        for value in [bson::Bson::Int32(900), bson::Bson::Int64(900), bson::Bson::Double(900.0)] {
            let mut message = frame(&doc! {"find": "c", "maxTimeMS": value, "$db": "d"});
            let before = message.bytes().len();
            let command = Command::parse(&mut message).unwrap();
            command.shrink_max_time(&mut message, Duration::from_millis(345));
            assert_eq!(message.bytes().len(), before);
            assert_eq!(Command::parse(&mut message).unwrap().max_time(), Some(Duration::from_millis(345)));
            command.shrink_max_time(&mut message, Duration::from_micros(344_001));
            assert_eq!(Command::parse(&mut message).unwrap().max_time(), Some(Duration::from_millis(345)));
            command.shrink_max_time(&mut message, Duration::from_secs(100));
            assert_eq!(Command::parse(&mut message).unwrap().max_time(), Some(Duration::from_millis(900)));
        }
        let (unlimited, mut message) = parse(doc! {"find": "c", "maxTimeMS": 0, "$db": "d"});
        let before = message.bytes().to_vec();
        unlimited.shrink_max_time(&mut message, Duration::from_millis(345));
        assert_eq!(message.bytes(), before);
    }

    #[test]
    fn the_wait_of_a_get_more_is_no_deadline() {
        let (command, frame) = parse(doc! {"getMore": 77_i64, "collection": "c", "maxTimeMS": 5, "$db": "d"});
        assert_eq!((command.max_time(), command.cursor_id(&frame)), (None, Some(77)));
        assert_eq!(command.await_time(), Some(Duration::from_millis(5)));
        let (find, _) = parse(doc! {"find": "c", "maxTimeMS": 5, "$db": "d"});
        assert_eq!(find.await_time(), None);
    }

    #[test]
    fn the_wait_of_a_get_more_is_set_whether_it_was_given_or_not() {
        let get_more = doc! {"getMore": 77_i64, "collection": "c", "$db": "d", "lsid": {"x": 1}};
        for given in [None, Some(bson::bson!(5)), Some(bson::bson!(5_i64)), Some(bson::bson!(5.0))] {
            let mut document = get_more.clone();
            if let Some(given) = given {
                document.insert("maxTimeMS", given);
            }
            let (mut command, mut message) = parse(document);
            for wait in [0, 1, 400] {
                command.set_await_time(&mut message, Duration::from_millis(wait));
                assert_eq!(message.header().length, message.bytes().len());
                let (again, copy) = {
                    let mut copy =
                        Frame::copy_into(bytes::BytesMut::with_capacity, message.bytes(), usize::MAX).unwrap().unwrap();
                    (Command::parse(&mut copy).unwrap(), copy)
                };
                let set = find(again.document(&copy), b"maxTimeMS").and_then(|element| element.as_number());
                assert_eq!(set, Some(i64::try_from(wait).unwrap()));
                let mut rest = Document::from_reader(again.document(&copy)).unwrap();
                rest.remove("maxTimeMS");
                assert_eq!(rest, get_more);
            }
        }
    }

    #[test]
    fn a_client_that_expects_no_reply_is_known_even_from_a_bad_message() {
        let bad = Frame::build(1, 0, OpCode::Msg, &[2, 0, 0, 0]);
        assert!(!expects_reply(&bad));
        assert!(expects_reply(&Frame::build(1, 0, OpCode::Msg, &[0, 0, 0, 0])));
    }
}
