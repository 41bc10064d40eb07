//! Commands on `admin` that name databases in their fields.

use super::parse::Command;
use crate::wire::document::find;
use crate::wire::{Element, Elements, Frame};

impl Command {
    /// The databases that the command itself names; empty for almost all, which are about `$db`.
    pub fn named_databases<'a>(&self, frame: &'a Frame) -> Vec<&'a str> {
        let document = self.document(frame);
        match self.spec.name {
            "renameCollection" => {
                let first = Elements::new(document).ok().and_then(|mut elements| elements.next()?.ok());
                [first, find(document, b"to")].into_iter().flatten().filter_map(|name| database(&name)).collect()
            }
            "bulkWrite" => {
                let listed = find(document, b"nsInfo").and_then(|list| list.as_document());
                let listed = listed.into_iter().flat_map(|list| Elements::new(list).into_iter().flatten());
                let listed = listed.map_while(Result::ok).filter_map(|item| item.as_document());
                let sequence = self.sequence_documents(frame).filter(|(name, _)| *name == b"nsInfo");
                let all = listed.chain(sequence.map(|(_, document)| document));
                all.filter_map(|namespace| database(&find(namespace, b"ns")?)).collect()
            }
            _ => Vec::new(),
        }
    }
}

/// The database in a namespace.
fn database<'a>(namespace: &Element<'a>) -> Option<&'a str> {
    namespace.as_str()?.split_once('.').map(|(database, _)| database)
}

#[cfg(test)]
mod tests {
    use bson::{Document, doc};

    use super::*;
    use crate::wire::OpCode;

    fn named(document: &Document, sequences: &[(&str, Document)]) -> Vec<String> {
        let mut body = vec![0; 5];
        body.extend(document.to_vec().unwrap());
        for (name, document) in sequences {
            let document = document.to_vec().unwrap();
            let length = 4 + name.len() + 1 + document.len();
            body.push(1);
            body.extend(i32::try_from(length).unwrap().to_le_bytes());
            body.extend([name.as_bytes(), b"\0", &document].concat());
        }
        let mut frame = Frame::build(1, 0, OpCode::Msg, &body);
        let command = Command::parse(&mut frame).unwrap();
        command.named_databases(&frame).into_iter().map(str::to_owned).collect()
    }

    #[test]
    fn a_rename_names_both_ends() {
        let rename = doc! {"renameCollection": "a.x.y", "to": "b.z", "$db": "admin"};
        assert_eq!(named(&rename, &[]), ["a", "b"]);
        assert_eq!(named(&doc! {"renameCollection": 5, "to": "nowhere", "$db": "admin"}, &[]), [""; 0]);
    }

    #[test]
    fn a_bulk_write_names_them_in_its_body_or_in_a_sequence() {
        let namespaces =
            doc! {"bulkWrite": 1, "ops": [], "nsInfo": [{"ns": "a.x"}, {"ns": "b.y"}, 5, {}], "$db": "admin"};
        assert_eq!(named(&namespaces, &[]), ["a", "b"]);
        let sequences = [("ops", doc! {"ns": "not.this"}), ("nsInfo", doc! {"ns": "c.z"})];
        assert_eq!(named(&doc! {"bulkWrite": 1, "$db": "admin"}, &sequences), ["c"]);
        assert_eq!(named(&doc! {"find": "x", "nsInfo": [{"ns": "a.x"}], "$db": "d"}, &[]), [""; 0]);
    }
}
