//! Which commands go upstream compressed, where that was agreed on.

use super::kind::{Effect, Handling};
use super::parse::Command;
use crate::wire::Frame;

/// Requests below this are not worth it by themselves, bytes. Of 500 bytes zlib and zstd leave 320 and take 4 to 20 us on
/// either end; 200 bytes fewer are 16 us on a line of 100 Mbit/s and 2 us on one of 1 Gbit/s.
const MIN_COMPRESSED_BYTES: usize = 512;

/// When a request is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compressing {
    /// Whatever its size: a server compresses the reply as it found the request, and this one's may be large.
    Always,
    /// From so many bytes on that it is worth it.
    IfLarge,
    /// Never: it may carry what lets an observer of lengths guess a secret.
    Never,
}

impl Compressing {
    /// How it is for `command`.
    pub fn of(command: &Command, frame: &Frame) -> Self {
        match command.name(frame) {
            "hello" | "isMaster" | "ismaster" => Self::Never,
            _ if command.is_sensitive(frame) => Self::Never,
            "ping" => Self::IfLarge,
            _ if command.spec.handling == Handling::GetMore || command.spec.effect == Effect::Read => Self::Always,
            _ => Self::IfLarge,
        }
    }

    /// Whether a request of so many bytes is compressed.
    pub fn applies(self, bytes: usize) -> bool {
        match self {
            Self::Always => true,
            Self::IfLarge => bytes >= MIN_COMPRESSED_BYTES,
            Self::Never => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use bson::RawDocumentBuf;

    use super::*;
    use crate::wire::encode;

    fn of(name: &str) -> Compressing {
        let mut document = RawDocumentBuf::new();
        document.append(bson::raw::CString::try_from(name).unwrap(), 1);
        document.append(bson::raw::cstr!("$db"), "admin");
        let mut frame = encode::op_msg(1, 0, &document);
        let command = Command::parse(&mut frame).unwrap();
        Compressing::of(&command, &frame)
    }

    #[test]
    fn secrets_stay_as_they_are_and_reads_bring_large_replies() {
        for name in ["createUser", "updateUser", "copydb", "copydbgetnonce", "copydbsaslstart", "SaslStart", "hello"] {
            assert_eq!(of(name), Compressing::Never, "{name}");
        }
        for name in ["find", "aggregate", "getMore", "distinct", "listCollections"] {
            assert_eq!(of(name), Compressing::Always, "{name}");
        }
        for name in ["insert", "update", "commitTransaction", "ping", "notYetInvented"] {
            assert_eq!(of(name), Compressing::IfLarge, "{name}");
        }
        assert!(!Compressing::Never.applies(usize::MAX) && Compressing::Always.applies(1));
        assert!(Compressing::IfLarge.applies(512) && !Compressing::IfLarge.applies(511));
    }
}
