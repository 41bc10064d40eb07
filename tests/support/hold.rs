//! Commands held on the server until a test lets them go, and waits for what can only be looked at.

use std::time::Duration;

use bson::{Bson, doc};
use mongomux::sandbox::mongod::Mongod;

use super::{client, fail_point, first_batch};

/// Longest wait for anything here; a machine that is busy with other builds needs seconds.
const PATIENCE: Duration = Duration::from_secs(20);

/// How often is looked.
const LOOK: Duration = Duration::from_millis(5);

const NAMESPACE_EXISTS: i32 = 48;

/// Looks until `holds` does, and fails loudly when it never does.
pub async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let look = async {
        while !holds().await {
            tokio::time::sleep(LOOK).await;
        }
    };
    assert!(tokio::time::timeout(PATIENCE, look).await.is_ok(), "not within {PATIENCE:?}: {what}");
}

/// Commands of one kind on one collection are held by the server until [`Hold::release`], or until their connection is
/// closed if the server interrupts that kind.
pub struct Hold<'a> {
    server: &'a Mongod,
    point: &'static str,
}

/// Holds every `find` on `namespace`.
pub async fn hold_finds<'a>(server: &'a Mongod, namespace: &str) -> Hold<'a> {
    hold(server, "waitInFindBeforeMakingBatch", namespace, true).await
}

/// As [`hold_finds`], and nothing interrupts them: the server does not even notice that a connection was closed.
pub async fn hold_finds_whatever_happens<'a>(server: &'a Mongod, namespace: &str) -> Hold<'a> {
    hold(server, "waitInFindBeforeMakingBatch", namespace, false).await
}

/// Holds every `insert` into `namespace`.
pub async fn hold_inserts<'a>(server: &'a Mongod, namespace: &str) -> Hold<'a> {
    hold(server, "hangDuringBatchInsert", namespace, true).await
}

async fn hold<'a>(server: &'a Mongod, point: &'static str, namespace: &str, interruptible: bool) -> Hold<'a> {
    let (database, collection) = namespace.split_once('.').expect("a database and a collection");
    // Of a collection that does not exist nothing is read, and nothing held.
    match client(server).await.command(database, doc! { "create": collection }).await {
        Ok(_) => {}
        Err(error) => assert_eq!(error.code(), Some(NAMESPACE_EXISTS), "{error}"),
    }
    let data = doc! { "nss": namespace, "shouldCheckForInterrupt": interruptible };
    fail_point(server, point, Bson::from("alwaysOn"), data).await;
    Hold { server, point }
}

impl Hold<'_> {
    /// How many commands it holds now.
    pub async fn count(&self) -> usize {
        let held = doc! { "$match": { "failpointMsg": self.point } };
        let pipeline = [doc! { "$currentOp": { "allUsers": true } }, held];
        let aggregate = doc! { "aggregate": 1, "pipeline": &pipeline[..], "cursor": { "batchSize": 1000 } };
        first_batch(&client(self.server).await.command("admin", aggregate).await.expect("$currentOp")).len()
    }

    /// Waits until it holds `count` commands.
    pub async fn reaches(&self, count: usize) {
        eventually(&format!("the server holds {count} commands"), async || self.count().await == count).await;
    }

    /// Lets all go, those that come later, too.
    pub async fn release(self) {
        fail_point(self.server, self.point, Bson::from("off"), doc! {}).await;
    }
}
