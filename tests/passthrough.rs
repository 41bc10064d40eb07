//! The Rust driver in front of the proxy, unchanged but for its connection string.
#![allow(clippy::unwrap_used, reason = "a test, its helpers included")]

mod support;

use bson::{Document, doc};
use support::proxy::proxy;

#[tokio::test]
async fn the_rust_driver_connects_and_sees_a_mongos() {
    let deployment = support::replica_set(1).await;
    let proxy = proxy(&deployment.uri(), "").await;
    let client = mongodb::Client::with_uri_str(proxy.uri()).await.unwrap();
    let hello = client.database("admin").run_command(doc! {"hello": 1}).await.unwrap();
    assert_eq!(hello.get_str("msg").unwrap(), "isdbgrid");
    let things = client.database("test").collection::<Document>("things");
    things.insert_one(doc! {"_id": 1, "word": "one"}).await.unwrap();
    assert_eq!(things.find_one(doc! {"_id": 1}).await.unwrap(), Some(doc! {"_id": 1, "word": "one"}));
}
