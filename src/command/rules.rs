//! What the rules of a listener mean for a command: it may go on, or is refused by one of them.

use smallvec::{SmallVec, smallvec};

use super::kind::{Group, Handling, lookup};
use super::parse::Command;
use super::touches::Touches;
use crate::config::{CommandName, Commands, Namespaces, Rules};
use crate::telemetry::labels::RefusedReason;
use crate::wire::{Element, Elements, Frame};

/// The rule that a command breaks.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Forbidden {
    /// Of reading only.
    #[error("{0} is not allowed by read_only: this listener passes only what is known to read")]
    ReadOnly(String),
    /// One of the lists of commands.
    #[error("{command} is not allowed by {list} of this listener")]
    Command {
        /// As the client wrote it.
        command: String,
        /// Which list.
        list: &'static str,
    },
    /// One of the lists of namespaces.
    #[error("{command} is not allowed by {list} of this listener: it touches {touched}")]
    Namespace {
        /// As the client wrote it.
        command: String,
        /// Which list.
        list: &'static str,
        /// What the list does not let it touch.
        touched: String,
    },
}

impl Forbidden {
    /// What it is counted as.
    pub fn reason(&self) -> RefusedReason {
        match self {
            Self::ReadOnly(_) => RefusedReason::ReadOnly,
            Self::Command { .. } => RefusedReason::Command,
            Self::Namespace { .. } => RefusedReason::Namespace,
        }
    }
}

/// Whether `rules` let a command pass that goes upstream.
///
/// # Errors
/// The rule that it breaks.
pub fn judge(rules: &Rules, command: &Command, frame: &Frame) -> Result<(), Forbidden> {
    let continues = match command.spec.handling {
        // What ends something frees it.
        Handling::KillCursors | Handling::EndTransaction | Handling::EndSessions | Handling::Local(_) => return Ok(()),
        Handling::GetMore => true,
        Handling::Pass | Handling::Refuse | Handling::Internal => false,
    };
    if !continues {
        judge_command(rules, command, frame)?;
    }
    let (allowed, denied) = (&rules.allow_namespaces, &rules.deny_namespaces);
    if allowed.is_empty() && denied.is_empty() {
        return Ok(());
    }
    let touches = command.touches(frame);
    let forbidden = |list, touched| Forbidden::Namespace { command: name(command, frame), list, touched };
    denied_part(denied, &touches).map_or(Ok(()), |touched| Err(forbidden("deny_namespaces", touched)))?;
    part_not_allowed(allowed, &touches).map_or(Ok(()), |touched| Err(forbidden("allow_namespaces", touched)))
}

fn judge_command(rules: &Rules, command: &Command, frame: &Frame) -> Result<(), Forbidden> {
    if rules.read_only && may_write(command, frame) {
        return Err(Forbidden::ReadOnly(name(command, frame)));
    }
    let (allowed, denied) = (&rules.allow_commands, &rules.deny_commands);
    let forbidden = |list| Forbidden::Command { command: name(command, frame), list };
    if !denied.is_empty() && named(command, frame).iter().any(|it| it.is_on(denied)) {
        return Err(forbidden("deny_commands"));
    }
    if !allowed.is_empty() && !named(command, frame).iter().all(|it| it.is_on(allowed)) {
        return Err(forbidden("allow_commands"));
    }
    Ok(())
}

/// Only what is known to read does not.
fn may_write(command: &Command, frame: &Frame) -> bool {
    // A server puts a sequence in the place of a field, and reads have none.
    let hidden = || command.sequence_documents(frame).next().is_some();
    let piped = || command.spec.name == "aggregate" && command.touches(frame).writes;
    command.may_write() || piped() || hidden()
}

/// A name that lists of commands can mean, with its group.
struct Named<'a> {
    name: &'a str,
    group: Group,
}

/// The command, and what it explains.
fn named<'a>(command: &Command, frame: &'a Frame) -> SmallVec<[Named<'a>; 2]> {
    let group = match command.spec.group {
        Group::Read if may_write(command, frame) => Group::Write,
        group => group,
    };
    let mut names = smallvec![Named { name: command.name(frame), group }];
    if command.spec.name == "explain" {
        let inner = first_of(command.document(frame)).and_then(|first| first_of(first.as_document()?));
        let inner = inner.map_or(b"".as_slice(), |inner| inner.name);
        let group = match lookup(inner).group {
            // To explain a write writes nothing.
            Group::Write => Group::Read,
            group => group,
        };
        names.push(Named { name: std::str::from_utf8(inner).unwrap_or_default(), group });
    }
    names
}

impl Named<'_> {
    fn is_on(&self, list: &Commands) -> bool {
        list.iter().any(|entry| match entry {
            CommandName::Read => self.group == Group::Read,
            CommandName::Write => self.group == Group::Write,
            CommandName::Admin => self.group == Group::Admin,
            CommandName::Named(name) => only_name(name).eq_ignore_ascii_case(only_name(self.name)),
        })
    }
}

/// One name for a command that has two.
fn only_name(name: &str) -> &str {
    if name.eq_ignore_ascii_case("deleteIndexes") { "dropIndexes" } else { name }
}

fn first_of(document: &[u8]) -> Option<Element<'_>> {
    Elements::new(document).ok()?.next()?.ok()
}

/// What of `touches` is on the list, if anything is.
fn denied_part(list: &Namespaces, touches: &Touches<'_>) -> Option<String> {
    if list.is_empty() {
        return None;
    }
    let collection = touches.collections.iter().find(|(database, collection)| list.names(database, collection));
    let collection = collection.map(|(database, collection)| format!("{database}.{collection}"));
    let whole = || touches.databases.iter().find(|database| list.names_any_of(database));
    let described = || touches.described.iter().find(|database| list.names_all_of(database));
    collection
        .or_else(|| whole().or_else(described).map(|database| format!("{database}.*")))
        .or_else(|| touches.everything.then(|| "*".to_owned()))
}

/// What of `touches` is not on the list, if anything is not.
fn part_not_allowed(list: &Namespaces, touches: &Touches<'_>) -> Option<String> {
    if list.is_empty() {
        return None;
    }
    let collection = touches.collections.iter().find(|(database, collection)| !list.names(database, collection));
    let collection = collection.map(|(database, collection)| format!("{database}.{collection}"));
    let whole = || touches.databases.iter().find(|database| !list.names_all_of(database));
    let described = || touches.described.iter().find(|database| !list.names_any_of(database));
    collection
        .or_else(|| whole().or_else(described).map(|database| format!("{database}.*")))
        .or_else(|| (touches.everything && !list.names_everything()).then(|| "*".to_owned()))
}

/// As the client wrote it, short enough for an error.
fn name(command: &Command, frame: &Frame) -> String {
    command.name(frame).chars().take(100).collect()
}

#[cfg(test)]
mod tests {
    use bson::{Bson, Document, doc};

    use super::*;
    use crate::wire::{OpCode, encode};

    fn judged(rules: &Rules, document: &Document) -> Result<(), Forbidden> {
        let mut frame = encode::op_msg(1, 0, &bson::RawDocumentBuf::try_from(document).unwrap());
        judge(rules, &Command::parse(&mut frame).unwrap(), &frame)
    }

    fn commands(names: &[&str]) -> Commands {
        names.iter().map(|name| name.parse().unwrap()).collect::<Vec<_>>().into()
    }

    fn namespaces(names: &[&str]) -> Namespaces {
        names.iter().map(|name| name.parse().unwrap()).collect::<Vec<_>>().into()
    }

    /// Splits commands by whether they pass.
    fn check(rules: &Rules, pass: &[Document], refused: &[Document]) {
        for (document, expected) in pass.iter().map(|it| (it, true)).chain(refused.iter().map(|it| (it, false))) {
            let mut document = document.clone();
            if !document.contains_key("$db") {
                document.insert("$db", "shop");
            }
            let judged = judged(rules, &document);
            assert_eq!(judged.is_ok(), expected, "{document}: {judged:?}");
        }
    }

    fn pipeline(stages: Vec<Document>) -> Document {
        doc! {"aggregate": "c", "pipeline": stages, "cursor": {}}
    }

    #[test]
    fn a_listener_for_reading_passes_what_is_known_to_read() {
        let rules = Rules { read_only: true, ..Rules::default() };
        check(
            &rules,
            &[
                doc! {"find": "c"},
                doc! {"count": "c"},
                pipeline(vec![doc! {"$match": {}}, doc! {"$lookup": {"from": "d", "pipeline": [{"$sort": {"a": 1}}]}}]),
                pipeline(vec![doc! {"$changeStream": {}}]),
                doc! {"aggregate": 1, "pipeline": [{"$currentOp": {}}], "$db": "admin"},
                doc! {"getMore": 5_i64, "collection": "c"},
                doc! {"killCursors": "c", "cursors": [5_i64]},
                doc! {"commitTransaction": 1, "$db": "admin"},
                doc! {"abortTransaction": 1, "$db": "admin"},
                doc! {"explain": {"delete": "c", "deletes": []}},
                doc! {"explain": pipeline(vec![doc! {"$out": "d"}])},
                doc! {"mapReduce": "c", "out": {"inline": 1}},
                doc! {"find": "c", "startTransaction": true, "autocommit": false},
                doc! {"ping": 1},
                doc! {"usersInfo": 1},
                doc! {"endSessions": []},
                doc! {"killOp": 1, "op": 5},
            ],
            &[
                doc! {"insert": "c"},
                doc! {"update": "c"},
                doc! {"delete": "c"},
                doc! {"findAndModify": "c"},
                doc! {"findandmodify": "c"},
                doc! {"bulkWrite": 1},
                pipeline(vec![doc! {"$out": "d"}]),
                pipeline(vec![doc! {"$match": {}}, doc! {"$merge": "d"}]),
                pipeline(vec![doc! {"$facet": {"a": [{"$out": "d"}]}}]),
                pipeline(vec![doc! {"$lookup": {"from": "d", "pipeline": [{"$merge": "e"}]}}]),
                pipeline(vec![doc! {"$somethingNew": {}}]),
                doc! {"mapReduce": "c", "out": "d"},
                doc! {"mapreduce": "c", "out": {"merge": "d"}},
                doc! {"create": "c"},
                doc! {"createIndexes": "c"},
                doc! {"drop": "c"},
                doc! {"dropIndexes": "c"},
                doc! {"deleteIndexes": "c"},
                doc! {"dropDatabase": 1},
                doc! {"collMod": "c"},
                doc! {"renameCollection": "shop.c", "to": "shop.d"},
                doc! {"createUser": "u"},
                doc! {"dropAllUsersFromDatabase": 1},
                doc! {"grantRolesToUser": "u"},
                doc! {"applyOps": []},
                doc! {"setParameter": 1},
                doc! {"profile": 2},
                doc! {"madeUp": 1},
                doc! {"FIND": "c"},
                doc! {"insert": "c", "startTransaction": true, "autocommit": false},
                doc! {"validate": "c", "repair": true},
            ],
        );
        let told = judged(&rules, &doc! {"insert": "c", "$db": "shop"}).unwrap_err();
        assert_eq!(
            told.to_string(),
            "insert is not allowed by read_only: this listener passes only what is known to read"
        );
        assert_eq!(told.reason(), RefusedReason::ReadOnly);
    }

    /// A command with a document in a sequence of that name.
    fn with_sequence(command: &Document, name: &str, document: &Document) -> (Command, Frame) {
        let mut body = vec![0; 5];
        body.extend(command.to_vec().unwrap());
        let content = [name.as_bytes(), &[0], &document.to_vec().unwrap()].concat();
        body.push(1);
        body.extend(i32::try_from(content.len() + 4).unwrap().to_le_bytes());
        body.extend(content);
        let mut frame = Frame::build(1, 0, OpCode::Msg, &body);
        (Command::parse(&mut frame).unwrap(), frame)
    }

    #[test]
    fn a_read_with_a_sequence_is_no_read() {
        let read = doc! {"aggregate": "c", "cursor": {}, "$db": "shop"};
        let (command, frame) = with_sequence(&read, "pipeline", &doc! {"$out": "d"});
        let rules = Rules { read_only: true, ..Rules::default() };
        assert!(judge(&rules, &command, &frame).is_err());
        assert_eq!(judge(&Rules::default(), &command, &frame), Ok(()));
    }

    #[test]
    fn a_sequence_that_is_not_known_may_name_anything() {
        let rules = Rules { deny_namespaces: namespaces(&["shop.secrets"]), ..Rules::default() };
        let read = doc! {"aggregate": "c", "cursor": {}, "$db": "shop"};
        let (command, frame) = with_sequence(&read, "pipeline", &doc! {"$unionWith": "secrets"});
        assert!(judge(&rules, &command, &frame).is_err());
        let (command, frame) =
            with_sequence(&doc! {"insert": "c", "$db": "shop"}, "documents", &doc! {"from": "secrets"});
        assert_eq!(judge(&rules, &command, &frame), Ok(()));
    }

    #[test]
    fn a_flag_that_cannot_be_read_counts_as_set() {
        let rules = Rules { read_only: true, ..Rules::default() };
        let decimal = Bson::Decimal128("1".parse().unwrap());
        for flag in ["repair", "fixMultikey"] {
            let with = |value: Bson| doc! {"validate": "c", flag: value};
            check(&rules, &[with(false.into()), with(0.into())], &[with(true.into()), with(decimal.clone())]);
        }
    }

    #[test]
    fn commands_are_meant_by_name_in_any_case_by_alias_and_by_group() {
        let deny = |names: &[&str]| Rules { deny_commands: commands(names), ..Rules::default() };
        check(
            &deny(&["findAndModify", "dropIndexes", "aggregate"]),
            &[doc! {"find": "c"}, doc! {"explain": {"find": "c"}}, doc! {"getMore": 5_i64, "collection": "c"}],
            &[
                doc! {"findandmodify": "c"},
                doc! {"deleteIndexes": "c"},
                doc! {"AGGREGATE": "c"},
                doc! {"explain": pipeline(vec![])},
                doc! {"explain": {"findandmodify": "c"}},
            ],
        );
        check(
            &deny(&["write"]),
            &[doc! {"find": "c"}, pipeline(vec![]), doc! {"explain": {"insert": "c"}}, doc! {"serverStatus": 1}],
            &[doc! {"insert": "c"}, doc! {"drop": "c"}, pipeline(vec![doc! {"$out": "d"}]), doc! {"create": "c"}],
        );
        check(
            &deny(&["admin"]),
            &[doc! {"find": "c"}, doc! {"insert": "c"}, doc! {"startSession": 1}],
            &[doc! {"createUser": "u"}, doc! {"currentOp": 1}, doc! {"madeUp": 1}, doc! {"killOp": 1}],
        );
        let allow = Rules { allow_commands: commands(&["find", "explain"]), ..Rules::default() };
        check(
            &allow,
            &[
                doc! {"find": "c"},
                doc! {"explain": {"find": "c"}},
                doc! {"getMore": 5_i64, "collection": "c"},
                doc! {"commitTransaction": 1},
            ],
            &[doc! {"count": "c"}, doc! {"explain": {"count": "c"}}, doc! {"explain": 5}, doc! {"ping": 1}],
        );
        let told = judged(&allow, &doc! {"count": "c", "$db": "shop"}).unwrap_err();
        assert_eq!(told.to_string(), "count is not allowed by allow_commands of this listener");
        assert_eq!(told.reason(), RefusedReason::Command);
    }

    #[test]
    fn a_denied_collection_is_denied_however_it_is_named() {
        let uuid = bson::Binary { subtype: bson::spec::BinarySubtype::Uuid, bytes: vec![7; 16] };
        let rules = Rules { deny_namespaces: namespaces(&["shop.secrets", "vault.*"]), ..Rules::default() };
        check(
            &rules,
            &[
                doc! {"find": "c"},
                doc! {"find": "secrets", "$db": "other"},
                doc! {"find": "secrets.x"},
                doc! {"find": "b.secrets"},
                doc! {"dropDatabase": 1, "$db": "other"},
                doc! {"listCollections": 1},
                doc! {"ping": 1, "$db": "admin"},
                pipeline(vec![doc! {"$lookup": {"from": "d", "as": "x"}}, doc! {"$unionWith": {"coll": "d"}}]),
                doc! {"getMore": 5_i64, "collection": "c"},
                doc! {"getMore": 5_i64, "collection": "$cmd.aggregate"},
                doc! {"killCursors": "secrets", "cursors": [5_i64]},
                doc! {"renameCollection": "shop.c", "to": "shop.d", "$db": "admin"},
            ],
            &[
                doc! {"find": "secrets"},
                doc! {"find": uuid.clone()},
                doc! {"count": uuid},
                doc! {"find": bson::Bson::Symbol("secrets".into())},
                doc! {"find": "system.buckets.secrets"},
                doc! {"explain": {"find": "secrets"}},
                doc! {"explain": {"explain": {"find": "c"}}},
                doc! {"insert": "system.views"},
                doc! {"aggregate": "secrets", "pipeline": []},
                doc! {"aggregate": 1, "pipeline": [{"$changeStream": {}}]},
                doc! {"aggregate": "c", "pipeline": [{"$changeStream": {"allChangesForCluster": true}}]},
                pipeline(vec![doc! {"$lookup": {"from": "secrets", "as": "x"}}]),
                pipeline(vec![doc! {"$lookup": {"from": {"db": "vault", "coll": "x"}, "as": "x"}}]),
                pipeline(vec![doc! {"$lookup": {"from": "c", "pipeline": [{"$unionWith": "secrets"}], "as": "x"}}]),
                pipeline(vec![doc! {"$facet": {"a": [], "b": [{"$graphLookup": {"from": "secrets"}}]}}]),
                pipeline(vec![doc! {"$unionWith": "secrets"}]),
                pipeline(vec![doc! {"$unionWith": {"coll": "secrets", "pipeline": []}}]),
                pipeline(vec![doc! {"$out": "secrets"}]),
                pipeline(vec![doc! {"$out": {"db": "vault", "coll": "x"}}]),
                pipeline(vec![doc! {"$merge": "secrets"}]),
                pipeline(vec![doc! {"$merge": {"into": "secrets"}}]),
                pipeline(vec![doc! {"$merge": {"into": {"db": "vault", "coll": "x"}}}]),
                pipeline(vec![doc! {"$somethingNew": 1}]),
                doc! {"create": "view", "viewOn": "secrets", "pipeline": []},
                doc! {"create": "view", "viewOn": "c", "pipeline": [{"$unionWith": "secrets"}]},
                doc! {"collMod": "view", "viewOn": "secrets", "pipeline": []},
                doc! {"mapReduce": "c", "out": "secrets"},
                doc! {"mapReduce": "c", "out": {"replace": "x", "db": "vault"}},
                doc! {"getMore": 5_i64, "collection": "secrets"},
                doc! {"renameCollection": "shop.secrets", "to": "shop.d", "$db": "admin"},
                doc! {"renameCollection": "shop.c", "to": "vault.d", "$db": "admin"},
                doc! {"dataSize": "shop.secrets"},
                doc! {"cloneCollectionAsCapped": "c", "toCollection": "secrets"},
                doc! {"bulkWrite": 1, "ops": [], "nsInfo": [{"ns": "shop.c"}, {"ns": "shop.secrets"}], "$db": "admin"},
                doc! {"dropDatabase": 1},
                doc! {"listCollections": 1, "$db": "vault"},
                doc! {"createUser": "u"},
                doc! {"applyOps": [{"op": "i", "ns": "shop.secrets"}], "$db": "admin"},
                doc! {"currentOp": 1, "$db": "admin"},
                doc! {"aggregate": 1, "pipeline": [{"$currentOp": {}}], "$db": "admin"},
            ],
        );
        let told = judged(&rules, &doc! {"find": "secrets", "$db": "shop"}).unwrap_err();
        assert_eq!(
            told.to_string(),
            "find is not allowed by deny_namespaces of this listener: it touches shop.secrets"
        );
        assert_eq!(told.reason(), RefusedReason::Namespace);
    }

    #[test]
    fn only_what_touches_nothing_else_is_allowed() {
        let rules = Rules { allow_namespaces: namespaces(&["shop.c", "cms.*"]), ..Rules::default() };
        check(
            &rules,
            &[
                doc! {"find": "c"},
                doc! {"find": "any", "$db": "cms"},
                doc! {"listCollections": 1},
                doc! {"dropDatabase": 1, "$db": "cms"},
                doc! {"aggregate": 1, "pipeline": [{"$changeStream": {}}], "$db": "cms"},
                pipeline(vec![doc! {"$merge": {"into": {"db": "cms", "coll": "x"}}}]),
                doc! {"ping": 1, "$db": "admin"},
            ],
            &[
                doc! {"find": "d"},
                doc! {"find": "c", "$db": "other"},
                doc! {"listCollections": 1, "$db": "other"},
                doc! {"dropDatabase": 1},
                doc! {"aggregate": 1, "pipeline": [{"$changeStream": {}}]},
                pipeline(vec![doc! {"$lookup": {"from": "d"}}]),
                doc! {"createUser": "u", "$db": "cms"},
                doc! {"find": "system.users", "$db": "admin"},
            ],
        );
        check(
            &Rules { allow_namespaces: namespaces(&["*"]), ..Rules::default() },
            &[doc! {"createUser": "u"}, doc! {"madeUp": 1}],
            &[],
        );
    }

    #[test]
    fn pipelines_that_are_too_deep_touch_everything() {
        let nested = |depth: usize| {
            (0..depth).fold(doc! {"$match": {}}, |inner, _| doc! {"$unionWith": {"coll": "c", "pipeline": [inner]}})
        };
        let rules = Rules { deny_namespaces: namespaces(&["shop.secrets"]), ..Rules::default() };
        check(&rules, &[pipeline(vec![nested(20)])], &[pipeline(vec![nested(60)])]);
    }
}
