//! Large messages, limits, trouble, and what the connection says about itself.

use std::collections::BTreeSet;
use std::time::Duration;

use futures_util::future::try_join_all;
use futures_util::io::{AsyncReadExt, AsyncWriteExt};
use mongodb::ClientSession;
use mongodb::bson::spec::BinarySubtype;
use mongodb::bson::{Binary, Bson, Document, doc};
use mongodb::error::{ErrorKind, WriteFailure};
use mongodb::options::{Acknowledgment, CollectionOptions, ServerApi, ServerApiVersion, WriteConcern};
use rand::RngExt;

use crate::harness::{Lacking, Result, Stage, all, code, fails, holds, numbered, same};

const LARGE: usize = 15 * 1024 * 1024;
const FILE: usize = 20 * 1024 * 1024;
const MEGABYTE: usize = 1_000_000;
/// Retryable, but not a change of the server's state, which would make a driver without proxy drop its pool.
const HOST_UNREACHABLE: i32 = 6;

fn random(length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    rand::rng().fill(&mut bytes[..]);
    bytes
}

fn binary(bytes: Vec<u8>) -> Binary {
    Binary { subtype: BinarySubtype::Generic, bytes }
}

pub async fn large_document(s: &Stage) -> Result {
    let c = s.collection("large", vec![]).await?;
    let document = doc! { "_id": 1, "data": binary(random(LARGE)) };
    c.insert_one(&document).await?;
    holds(c.find_one(doc! {}).await? == Some(document), "the document came back different")
}

pub async fn large_bulk(s: &Stage) -> Result {
    let c = s.collection("large_bulk", vec![]).await?;
    // What repeats compresses fast, and a document that came back as another one would show.
    let large = |i: i32| doc! { "_id": i, "data": binary(random(1000).repeat(MEGABYTE / 1000)) };
    let documents: Vec<_> = (0..47).map(large).collect();
    s.view.record("insert");
    same(c.insert_many(&documents).await?.inserted_ids.len(), 47, "inserted")?;
    same(s.view.recorded().len(), 1, "messages")?;
    let found = all(c.find(doc! {}).sort(doc! { "_id": 1 }).into_future()).await?;
    holds(found == documents, "the documents came back different")?;
    Ok(c.drop().await?)
}

pub async fn gridfs(s: &Stage) -> Result {
    let bucket = s.db.gridfs_bucket(None);
    let data = random(FILE);
    let mut upload = bucket.open_upload_stream("file").await?;
    upload.write_all(&data).await?;
    upload.close().await?;
    let mut read = Vec::new();
    bucket.open_download_stream(upload.id().clone()).await?.read_to_end(&mut read).await?;
    holds(read == data, "the file came back different")?;
    bucket.delete(upload.id().clone()).await?;
    same(s.db.collection::<Document>("fs.chunks").count_documents(doc! {}).await?, 0, "chunks left")
}

pub async fn unacknowledged_write(s: &Stage) -> Result {
    s.collection("unacknowledged", vec![]).await?;
    // One socket only: the read comes right behind the write.
    let (client, view) = s.other(|options| options.max_pool_size = Some(1))?;
    let c = client.database(s.db.name()).collection::<Document>("unacknowledged");
    let none = WriteConcern::builder().w(Acknowledgment::Nodes(0)).build();
    let silent = CollectionOptions::builder().write_concern(none).build();
    let silent = client.database(s.db.name()).collection_with_options::<Document>("unacknowledged", silent);
    for i in 0..100 {
        match silent.insert_one(doc! { "_id": i }).await {
            Err(error) if matches!(*error.kind, ErrorKind::InvalidArgument { .. }) => {
                return Err(Lacking(error.to_string()).into());
            }
            outcome => outcome?,
        };
        same(c.find_one(doc! { "_id": i }).await?, Some(doc! { "_id": i }), "own write")?;
    }
    silent.insert_one(doc! { "_id": 1 }).await?;
    silent.update_many(doc! {}, doc! { "$set": { "n": 1 } }).await?;
    same(c.count_documents(doc! { "n": 1 }).await?, 100, "count")?;
    view.verify_calm()?;
    client.shutdown().await;
    Ok(())
}

pub async fn stable_api(s: &Stage) -> Result {
    let name = s.collection("stable_api", numbered(0..10)).await?.name().to_owned();
    let strict = ServerApi::builder().version(ServerApiVersion::V1).strict(true).deprecation_errors(true).build();
    let (client, _) = s.other(|options| options.server_api = Some(strict))?;
    let db = client.database(s.db.name());
    let c = db.collection::<Document>(&name);
    db.run_command(doc! { "ping": 1 }).await?;
    same(all(c.find(doc! {}).batch_size(3).into_future()).await?.len(), 10, "found")?;
    c.insert_one(doc! { "_id": 10 }).await?;
    let work = async |session: &mut ClientSession| c.insert_one(doc! { "_id": 11 }).session(session).await;
    client.start_session().await?.start_transaction().and_run2(work).await?;
    same(c.count_documents(doc! {}).await?, 12, "count")?;
    // What the server would refuse, and what a proxy answers itself.
    for command in ["dbStats", "whatsmyuri", "connPoolStats", "isMaster"] {
        fails(323, db.run_command(doc! { command: 1 }).into_future()).await?;
    }
    fails(323, c.distinct("_id", doc! {}).into_future()).await?;
    client.shutdown().await;
    Ok(())
}

pub async fn max_time(s: &Stage) -> Result {
    let c = s.collection("max_time", numbered(0..3)).await?;
    let slow = doc! { "$where": "sleep(1000) || true" };
    fails(50, all(c.find(slow.clone()).max_time(Duration::from_millis(50)).into_future())).await?;
    let count = doc! { "count": c.name(), "query": slow, "maxTimeMS": 50 };
    fails(50, s.db.run_command(count).into_future()).await?;
    let in_time = c.find(doc! {}).max_time(Duration::from_secs(10)).batch_size(2);
    same(all(in_time.into_future()).await?.len(), 3, "found in time")
}

pub async fn write_concern(s: &Stage) -> Result {
    let c = s.collection("write_concern", vec![]).await?;
    let mut majority = WriteConcern::majority();
    majority.w_timeout = Some(Duration::from_secs(10));
    c.insert_one(doc! { "_id": 1 }).write_concern(majority).await?;
    let journaled = WriteConcern::builder().w(Acknowledgment::Nodes(1)).journal(true).build();
    c.insert_one(doc! { "_id": 2 }).write_concern(journaled).await?;
    // The set has one member.
    let two = WriteConcern::builder().w(Acknowledgment::Nodes(2)).w_timeout(Duration::from_millis(500)).build();
    let error = fails(100, c.insert_one(doc! { "_id": 3 }).write_concern(two).into_future()).await?;
    let concern = matches!(*error.kind, ErrorKind::Write(WriteFailure::WriteConcernError(_)));
    holds(concern, &format!("no write concern error: {error}"))?;
    same(c.count_documents(doc! {}).await?, 3, "count: the write itself is done")
}

pub async fn retryable_reads(s: &Stage) -> Result {
    let c = s.collection("retryable_reads", numbered(0..10)).await?;
    let read = async |name: &'static str| -> mongodb::error::Result<usize> {
        Ok(match name {
            "find" => all(c.find(doc! {}).into_future()).await?.len(),
            "aggregate" => all(c.aggregate([doc! { "$match": {} }]).into_future()).await?.len(),
            _ => c.distinct("_id", doc! {}).await?.len(),
        })
    };
    for name in ["find", "aggregate", "distinct"] {
        for error_code in [HOST_UNREACHABLE, 89, 9001] {
            s.view.record(name);
            let failure = doc! { "failCommands": [name], "errorCode": error_code };
            let found = s.failing(&c, doc! { "times": 1 }, failure, read(name)).await??;
            let attempts = s.view.recorded().len();
            same((found, attempts), (10, 2), &format!("found, attempts of {name} after {error_code}"))?;
        }
    }
    let failure = doc! { "failCommands": ["find"], "errorCode": HOST_UNREACHABLE };
    let outcome = s.failing(&c, "alwaysOn", failure, read("find")).await?;
    same(outcome.err().as_ref().and_then(code), Some(HOST_UNREACHABLE), "code when it does not end")
}

pub async fn retryable_writes(s: &Stage) -> Result {
    let c = s.collection("retryable_writes", (0..10).map(|i| doc! { "_id": i, "n": 0 }).collect()).await?;
    let increment = || doc! { "$inc": { "n": 1 } };
    let write = async |name: &'static str| -> mongodb::error::Result<()> {
        match name {
            "update" => _ = c.update_one(doc! { "_id": 1 }, increment()).await?,
            "findAndModify" => _ = c.find_one_and_update(doc! { "_id": 2 }, increment()).await?,
            "insert" => _ = c.insert_one(doc! { "of": "insert" }).await?,
            _ => _ = c.delete_one(doc! { "_id": { "$gte": 5 } }).await?,
        }
        Ok(())
    };
    let labels = ["RetryableWriteError"].to_vec();
    let before = doc! { "errorCode": HOST_UNREACHABLE, "errorLabels": labels.clone() };
    let concern = doc! { "code": HOST_UNREACHABLE, "errmsg": "x", "errorLabels": labels };
    // Once before the write is done and once after: its statement number keeps it from being done again.
    for failure in [before, doc! { "writeConcernError": concern }] {
        for name in ["update", "findAndModify", "insert", "delete"] {
            s.view.record(name);
            let mut failure = failure.clone();
            failure.insert("failCommands", vec![name]);
            s.failing(&c, doc! { "times": 1 }, failure, write(name)).await??;
            let sent = s.view.recorded();
            let numbers: BTreeSet<_> = sent.iter().filter_map(|command| command.get_i64("txnNumber").ok()).collect();
            same((sent.len(), numbers.len()), (2, 1), &format!("attempts and numbers of {name}"))?;
        }
    }
    for i in [1, 2] {
        let found = c.find_one(doc! { "_id": i }).await?;
        same(found, Some(doc! { "_id": i, "n": 2 }), "increments")?;
    }
    same(c.count_documents(doc! { "of": "insert" }).await?, 2, "inserts")?;
    same(c.count_documents(doc! { "_id": { "$type": "number" } }).await?, 8, "what two deletes left")?;
    // What cannot be retried is told.
    let failure = doc! { "failCommands": ["update"], "errorCode": HOST_UNREACHABLE };
    let update = c.update_many(doc! {}, increment()).into_future();
    let outcome = s.failing(&c, doc! { "times": 1 }, failure, update).await?;
    same(outcome.err().as_ref().and_then(code), Some(HOST_UNREACHABLE), "code of what cannot be retried")
}

pub async fn error_codes(s: &Stage) -> Result {
    let c = s.collection("error_codes", vec![doc! { "_id": 1, "n": 1 }]).await?;
    fails(11000, c.insert_one(doc! { "_id": 1 }).into_future()).await?;
    let many = [2, 1, 3].map(|i| doc! { "_id": i });
    let error = fails(11000, c.insert_many(many).ordered(false).into_future()).await?;
    let ErrorKind::InsertMany(many) = error.kind.as_ref() else {
        return Err(format!("no InsertManyError: {error}").into());
    };
    let errors: Vec<_> = many.write_errors.iter().flatten().map(|error| (error.index, error.code)).collect();
    same(errors, vec![(1, 11000)], "write errors")?;
    fails(59, s.db.run_command(doc! { "noSuchCommand": 1 }).into_future()).await?;
    fails(2, c.find(doc! { "$noSuchOperator": 1 }).into_future()).await?;
    same(c.count_documents(doc! {}).await?, 3, "count")
}

pub async fn commands(s: &Stage) -> Result {
    let stats = s.admin(doc! { "connPoolStats": 1 }).await?;
    let hosts = stats.get_document("hosts")?;
    holds(stats.get("totalCreated").is_some(), "connPoolStats has no totalCreated")?;
    let me = s.admin(doc! { "whatsmyuri": 1 }).await?;
    holds(me.get_str("you")?.starts_with("127.0.0.1:"), "whatsmyuri")?;
    let status = s.admin(doc! { "connectionStatus": 1 }).await?;
    let user = s.user().map(|user| Bson::from(doc! { "user": user, "db": "admin" }));
    same(status.get_document("authInfo")?.get_array("authenticatedUsers")?, &Vec::from_iter(user), "users")?;
    let hello = s.admin(doc! { "hello": 1 }).await?;
    same(hello.get_bool("isWritablePrimary")?, true, "isWritablePrimary")?;
    if s.view_name == "replicaset" {
        same(hello.get_str("setName")?, "rs0", "setName")?;
    } else {
        same(hello.get_str("msg")?, "isdbgrid", "msg")?;
        for key in ["setName", "hosts", "me", "primary"] {
            same(hello.get(key), None, key)?;
        }
        holds(!hosts.is_empty(), "connPoolStats names no server")?;
    }
    same(s.admin(doc! { "isMaster": 1 }).await?.get_bool("ismaster")?, true, "ismaster")?;
    same(s.admin(doc! { "buildInfo": 1 }).await?.get_f64("ok")?, 1.0, "buildInfo")?;
    same(s.db.run_command(doc! { "dbStats": 1 }).await?.get_str("db")?, s.db.name(), "dbStats")
}

pub async fn concurrency(s: &Stage) -> Result {
    // Every reply carries the token of its request: one that went to the wrong task shows.
    let text = |i: i32| format!("document {i}").repeat(20);
    let c = s.collection("concurrency", (0..50).map(|i| doc! { "_id": i, "text": text(i) }).collect()).await?;
    let worker = async |i: i32| -> Result {
        for n in 0..20 {
            let token = format!("{i}:{n}:{}", rand::random::<u64>());
            let projection = doc! { "text": 1, "token": { "$literal": &token } };
            let found = c.find_one(doc! { "_id": i }).projection(projection).await?;
            same(found, Some(doc! { "_id": i, "text": text(i), "token": token }), "reply")?;
        }
        Ok(())
    };
    try_join_all((0..50).map(worker)).await?;
    Ok(())
}

pub async fn monitoring_quiet(s: &Stage) -> Result {
    s.view.verify_calm()?;
    // Behind a load balancer there is nobody to monitor.
    same(s.view.seen().heartbeats > 0, s.view_name != "loadbalanced", "there were heartbeats")
}

pub async fn view(s: &Stage) -> Result {
    let (topology, server) = match s.view_name.as_str() {
        "replicaset" => ("ReplicaSetWithPrimary", "RsPrimary"),
        "loadbalanced" => ("LoadBalanced", "LoadBalancer"),
        _ => ("Sharded", "Mongos"),
    };
    let seen = s.view.seen();
    same(seen.topology.as_str(), topology, "topology type")?;
    same(&seen.servers, &vec![server.to_owned()], "server types")
}

pub async fn close(s: &Stage) -> Result {
    s.db.drop().await?;
    s.client.clone().shutdown().await;
    holds(s.admin(doc! { "ping": 1 }).await.is_err(), "a closed client works")
}
