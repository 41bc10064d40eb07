//! Who has nothing to do with the trouble of a test, and must not notice it.

use bson::{Document, doc};
use futures_util::future::join_all;

use super::proxy::Proxy;
use super::{connect, first_batch};

const BYSTANDERS: i32 = 6;

/// For as long as it is polled, clients read what is theirs, each over its own socket. Fails on an error, on a closed
/// socket, and on what is somebody else's. They only ever `aggregate`: faults are to be made for other commands.
pub async fn stand_by(proxy: &Proxy) {
    let mut client = connect(proxy.address()).await;
    let own = |owner: i32| doc! { "_id": owner, "text": owner.to_string().repeat(100) };
    let documents: Vec<Document> = (0..BYSTANDERS).map(own).collect();
    client.command("bystanders", doc! { "insert": "own", "documents": documents }).await.unwrap();
    join_all((0..BYSTANDERS).map(async |owner| {
        let mut client = connect(proxy.address()).await;
        let read = doc! { "aggregate": "own", "pipeline": [{ "$match": { "_id": owner } }], "cursor": {} };
        loop {
            let reply = client.command("bystanders", read.clone()).await.expect("a bystander's reply");
            assert_eq!(first_batch(&reply), [own(owner)], "a bystander's own reply");
            tokio::task::yield_now().await;
        }
    }))
    .await;
}
