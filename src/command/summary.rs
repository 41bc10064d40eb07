//! What may be said of a command where others read it: its name, its namespace, and which options it has. Values stay out of
//! it: they are what applications store and look for.

use std::fmt::Write as _;

use super::kind::{Group, Handling};
use super::parse::Command;
use crate::wire::{Elements, Frame};

/// As many option names are told: known commands have fewer.
const MAX_NAMES: usize = 24;

/// A name that is longer is none of an option.
const MAX_NAME_BYTES: usize = 32;

/// Names of commands, databases and collections are told up to here: servers take no longer ones, and clients may send any.
const MAX_TOLD_BYTES: usize = 255;

/// Every command has these, or they are told otherwise.
const NOT_TOLD: [&[u8]; 4] = [b"$db", b"lsid", b"$clusterTime", b"txnNumber"];

/// Commands that carry what lets somebody in, by the drivers' logging specification. Servers take all of them in any case.
const SENSITIVE: [&str; 9] = [
    "authenticate",
    "saslStart",
    "saslContinue",
    "getnonce",
    "createUser",
    "updateUser",
    "copydbgetnonce",
    "copydbsaslstart",
    "copydb",
];

/// A name that a client has sent, no longer than it is told.
fn told(name: &str) -> &str {
    &name[..name.floor_char_boundary(MAX_TOLD_BYTES)]
}

impl Command {
    /// The collection that it is for, where it is known to name one; as it is told.
    pub fn collection<'a>(&self, frame: &'a Frame) -> Option<&'a str> {
        let mut elements = Elements::new(self.document(frame)).ok()?.map_while(Result::ok);
        match self.spec.handling {
            Handling::GetMore => elements.find(|element| element.name == b"collection")?.as_str().map(told),
            // What stands first in others may be the name of a user.
            _ if self.spec.group == Group::Admin && self.spec.handling != Handling::KillCursors => None,
            _ => elements.next()?.as_str().map(told),
        }
    }

    /// Its name, as it is told.
    pub fn told_name<'a>(&self, frame: &'a Frame) -> &'a str {
        told(self.name(frame))
    }

    /// Its database, as it is told.
    pub fn told_database<'a>(&self, frame: &'a Frame) -> &'a str {
        told(self.database(frame))
    }

    /// Nothing but its name may be told.
    pub fn is_sensitive(&self, frame: &Frame) -> bool {
        let name = self.name(frame);
        SENSITIVE.iter().any(|sensitive| name.eq_ignore_ascii_case(sensitive))
    }

    /// The names of its options, in their order, as `filter,sort,limit`.
    pub fn option_names(&self, frame: &Frame) -> String {
        let mut names = String::new();
        if self.is_sensitive(frame) {
            return names;
        }
        let elements = Elements::new(self.document(frame)).into_iter().flatten().map_while(Result::ok).skip(1);
        for (count, element) in elements.filter(|element| !NOT_TOLD.contains(&element.name)).enumerate() {
            let separator = if count == 0 { "" } else { "," };
            let is_option = element.name.len() <= MAX_NAME_BYTES
                && element.name.iter().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'$' | b'_'));
            let name = if is_option { std::str::from_utf8(element.name).unwrap_or("?") } else { "?" };
            let name = if count == MAX_NAMES { "..." } else { name };
            write!(names, "{separator}{name}").expect("a string takes it");
            if count == MAX_NAMES {
                break;
            }
        }
        names
    }
}

#[cfg(test)]
mod tests {
    use bson::{RawDocumentBuf, rawdoc};

    use super::*;
    use crate::wire::encode;

    fn parsed(document: &RawDocumentBuf) -> (Command, Frame) {
        let mut frame = encode::op_msg(1, 0, document);
        (Command::parse(&mut frame).unwrap(), frame)
    }

    #[test]
    fn collections_are_told_and_users_are_not() {
        for (document, collection) in [
            (rawdoc! {"find": "orders", "filter": {}, "$db": "shop"}, Some("orders")),
            (rawdoc! {"getMore": 5_i64, "collection": "orders", "$db": "shop"}, Some("orders")),
            (rawdoc! {"killCursors": "orders", "cursors": [5_i64], "$db": "shop"}, Some("orders")),
            (rawdoc! {"aggregate": 1, "pipeline": [], "$db": "shop"}, None),
            (rawdoc! {"createUser": "bob", "pwd": "x", "$db": "shop"}, None),
            (rawdoc! {"nobodyKnows": "this", "$db": "shop"}, None),
        ] {
            let (command, frame) = parsed(&document);
            assert_eq!(command.collection(&frame), collection, "{document:?}");
        }
    }

    #[test]
    fn names_are_told_up_to_where_servers_take_them() {
        let (long, other) = ("ä".repeat(100_000), "b".repeat(1_000));
        for (sent, length) in [(long.as_str(), MAX_TOLD_BYTES - 1), (&other, MAX_TOLD_BYTES), ("orders", 6)] {
            let mut document = RawDocumentBuf::new();
            document.append(bson::raw::CString::try_from(sent).unwrap(), 1);
            document.append(bson::raw::cstr!("$db"), sent);
            let (command, frame) = parsed(&document);
            assert_eq!((command.told_name(&frame).len(), command.told_database(&frame).len()), (length, length));
            let (command, frame) = parsed(&rawdoc! {"find": sent, "$db": "shop"});
            assert_eq!(command.collection(&frame).map(str::len), Some(length));
            let (command, frame) = parsed(&rawdoc! {"getMore": 5_i64, "collection": sent, "$db": "shop"});
            assert_eq!(command.collection(&frame).map(str::len), Some(length));
        }
    }

    #[test]
    fn options_are_told_by_name_and_values_never() {
        let find =
            rawdoc! {"find": "orders", "lsid": {}, "filter": {"card": "secret"}, "sort": {"secret": 1}, "$db": "shop"};
        let strange = rawdoc! {"find": "orders", "a secret, with spaces": 1, "limit": 1, "$db": "shop"};
        let user = rawdoc! {"createUser": "bob", "pwd": "secret", "$db": "shop"};
        let mut many = rawdoc! {"find": "orders", "$db": "shop"};
        (0..100).for_each(|number| many.append(bson::raw::CString::try_from(format!("o{number}")).unwrap(), 1));
        for (document, names) in [(find, "filter,sort"), (strange, "?,limit"), (user, "")] {
            let (command, frame) = parsed(&document);
            assert_eq!(command.option_names(&frame), names);
        }
        let (command, frame) = parsed(&many);
        let names = command.option_names(&frame);
        assert!(names.starts_with("o0,o1,") && names.ends_with(",o23,..."), "{names}");
    }
}
