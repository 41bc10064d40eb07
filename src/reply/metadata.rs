//! Who a client says it is: the `client` field of its first hello.
//!
//! That it comes once and in the first hello is checked by `hello`. An upstream never hears of it: it is shown in our own
//! list of clients.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::errors::{self, ErrorReply};
use crate::wire::document::{Element, find, kind};

/// Largest `client` document, bytes: what a mongod takes; drivers keep to 512.
const MAX_METADATA_BYTES: usize = 1024;
/// Longest `client.application.name`, bytes.
const MAX_APP_NAME_BYTES: usize = 128;

/// Different [`ClientMetadata`] that are kept once for all their clients.
const MAX_SHARED_METADATA: usize = 1000;

/// Who a client says it is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ClientMetadata {
    /// `appName` of the connection string, at most 128 bytes.
    pub application: Option<Box<str>>,
    /// Name of the driver; together with the other fields at most 1024 bytes.
    pub driver_name: Box<str>,
    /// Version of the driver.
    pub driver_version: Box<str>,
    /// The language's runtime, as the driver tells it.
    pub platform: Option<Box<str>>,
}

impl ClientMetadata {
    /// Reads the `client` field of a hello.
    ///
    /// # Errors
    /// 183 without a required part, 184 and 185 for what is too long, 14 for a wrong type.
    pub fn parse(client: &Element<'_>) -> Result<Self, ErrorReply> {
        if client.kind != kind::DOCUMENT {
            return Err(errors::type_mismatch("client", "object"));
        }
        let document = client.value;
        if document.len() > MAX_METADATA_BYTES {
            return Err(errors::metadata_too_large(document.len(), MAX_METADATA_BYTES));
        }
        let mut application = None;
        if let Some(part) = part(document, "application")?
            && let Some(name) = text(part, "application.name", b"name")?
        {
            if name.len() > MAX_APP_NAME_BYTES {
                return Err(errors::metadata_app_name_too_large(name.len(), MAX_APP_NAME_BYTES));
            }
            application = Some(name.into());
        }
        let missing = errors::metadata_missing;
        let driver = part(document, "driver")?.ok_or_else(|| missing("driver"))?;
        let driver_name = text(driver, "driver.name", b"name")?.ok_or_else(|| missing("driver.name"))?.into();
        let driver_version =
            text(driver, "driver.version", b"version")?.ok_or_else(|| missing("driver.version"))?.into();
        let system = part(document, "os")?.ok_or_else(|| missing("os"))?;
        text(system, "os.type", b"type")?.ok_or_else(|| missing("os.type"))?;
        // Not judged by servers either: of another type it is as if it were not there.
        let platform = find(document, b"platform").and_then(|element| element.as_str()).map(Box::from);
        Ok(Self { application, driver_name, driver_version, platform })
    }
}

/// Lets clients of the same application share one [`ClientMetadata`].
#[derive(Debug, Default)]
pub struct MetadataPool {
    shared: BTreeSet<Arc<ClientMetadata>>,
}

impl MetadataPool {
    /// The shared equal of `metadata`. Beyond 1000 different ones in use, clients keep their own.
    pub fn intern(&mut self, metadata: Arc<ClientMetadata>) -> Arc<ClientMetadata> {
        if let Some(shared) = self.shared.get(&metadata) {
            return Arc::clone(shared);
        }
        if self.shared.len() >= MAX_SHARED_METADATA {
            self.shared.retain(|shared| Arc::strong_count(shared) > 1);
        }
        if self.shared.len() < MAX_SHARED_METADATA {
            self.shared.insert(Arc::clone(&metadata));
        }
        metadata
    }
}

/// A sub-document of the metadata.
fn part<'a>(document: &'a [u8], name: &str) -> Result<Option<&'a [u8]>, ErrorReply> {
    match find(document, name.as_bytes()) {
        None => Ok(None),
        Some(element) if element.kind == kind::DOCUMENT => Ok(Some(element.value)),
        Some(_) => Err(errors::type_mismatch(&format!("client.{name}"), "object")),
    }
}

/// A text of the metadata; `path` names it from the top.
fn text<'a>(document: &'a [u8], path: &str, name: &[u8]) -> Result<Option<&'a str>, ErrorReply> {
    match find(document, name) {
        None => Ok(None),
        Some(element) => match element.as_str() {
            Some(text) => Ok(Some(text)),
            None => Err(errors::type_mismatch(&format!("client.{path}"), "string")),
        },
    }
}

#[cfg(test)]
mod tests {
    use bson::{Bson, Document, doc};

    use super::*;

    fn client() -> Document {
        doc! {"application": {"name": "shop"}, "driver": {"name": "PyMongo", "version": "4.20"}, "os": {"type": "Linux"}}
    }

    fn parse(metadata: Bson) -> Result<ClientMetadata, i32> {
        let document = doc! {"client": metadata}.to_vec().unwrap();
        ClientMetadata::parse(&find(&document, b"client").unwrap()).map_err(|error| error.code.number)
    }

    #[test]
    fn the_texts_are_kept() {
        let metadata = parse(client().into()).unwrap();
        assert_eq!(metadata.platform, None);
        let mut with_platform = client();
        with_platform.insert("platform", "CPython 3.12");
        assert_eq!(parse(with_platform.clone().into()).unwrap().platform.as_deref(), Some("CPython 3.12"));
        with_platform.insert("platform", 7);
        assert_eq!(parse(with_platform.into()).unwrap().platform, None);
        assert_eq!(metadata.application.as_deref(), Some("shop"));
        assert_eq!((&*metadata.driver_name, &*metadata.driver_version), ("PyMongo", "4.20"));
    }

    #[test]
    fn metadata_faults_have_the_codes_of_the_server() {
        let changed = |path: &str, value: Bson| {
            let mut metadata = client();
            match path.split_once('.') {
                Some((part, name)) => drop(metadata.get_document_mut(part).unwrap().insert(name, value)),
                None => drop(metadata.insert(path, value)),
            }
            parse(metadata.into()).map_or_else(|code| code, |_| 0)
        };
        assert_eq!(changed("application.name", "a".repeat(128).into()), 0);
        assert_eq!(changed("application.name", "a".repeat(129).into()), 184);
        assert_eq!(changed("application", doc! {}.into()), 0);
        assert_eq!(changed("application", 1.into()), 14);
        assert_eq!(changed("application.name", 1.into()), 14);
        assert_eq!(changed("driver", "x".into()), 14);
        assert_eq!(changed("driver", doc! {}.into()), 183);
        assert_eq!(changed("driver", doc! {"name": "x"}.into()), 183);
        assert_eq!(changed("driver.name", 1.into()), 14);
        assert_eq!(changed("os", doc! {"name": "x"}.into()), 183);
        assert_eq!(changed("os.type", 1.into()), 14);
        assert_eq!(parse(Bson::Null), Err(14));
        for missing in ["driver", "os"] {
            let mut metadata = client();
            metadata.remove(missing);
            assert_eq!(parse(metadata.into()), Err(183));
        }
    }

    #[test]
    fn metadata_of_1024_bytes_passes_and_one_more_does_not() {
        for (size, expected) in [(1024, Ok(())), (1025, Err(185))] {
            let mut metadata = client();
            metadata.insert("platform", "");
            let rest = size - metadata.to_vec().unwrap().len();
            metadata.insert("platform", "p".repeat(rest));
            assert_eq!(parse(metadata.into()).map(|_| ()), expected);
        }
    }

    #[test]
    fn clients_of_one_application_share_their_metadata() {
        let metadata = |application: usize| {
            let application = Some(application.to_string().into());
            Arc::new(ClientMetadata {
                application,
                driver_name: "d".into(),
                driver_version: "1".into(),
                platform: None,
            })
        };
        let mut pool = MetadataPool::default();
        let first = pool.intern(metadata(0));
        assert!(Arc::ptr_eq(&first, &pool.intern(metadata(0))));
        let held: Vec<_> = (1..2 * MAX_SHARED_METADATA).map(|number| pool.intern(metadata(number))).collect();
        assert_eq!(pool.shared.len(), MAX_SHARED_METADATA);
        drop(held);
        pool.intern(metadata(usize::MAX));
        assert_eq!(pool.shared.len(), 2, "what nobody uses makes room");
        assert!(Arc::ptr_eq(&first, &pool.intern(metadata(0))));
    }
}
