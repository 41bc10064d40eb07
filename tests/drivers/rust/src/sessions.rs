//! Reads with guarantees, sessions and transactions.

use std::collections::BTreeSet;
use std::time::Duration;

use futures_util::TryStreamExt;
use futures_util::future::try_join_all;
use mongodb::bson::{Bson, Document, doc};
use mongodb::error::{Error, ErrorKind, TRANSIENT_TRANSACTION_ERROR};
use mongodb::options::{CollectionOptions, ReadConcern, ReadPreference, SelectionCriteria, WriteConcern};
use mongodb::{ClientSession, Collection};

use crate::harness::{Result, Stage, all, fails, holds, ids, numbered, same};

pub async fn read_options(s: &Stage) -> Result {
    let c = s.collection("read_options", numbered(1..2)).await?;
    let levels = [ReadConcern::local(), ReadConcern::available(), ReadConcern::majority(), ReadConcern::linearizable()];
    for level in levels {
        let find = c.find_one(doc! {}).read_concern(level.clone());
        same(find.await?, Some(doc! { "_id": 1 }), &format!("document under {level:?}"))?;
        let aggregate = c.aggregate([doc! { "$match": {} }]).read_concern(level.clone());
        same(all(aggregate.into_future()).await?.len(), 1, &format!("aggregate under {level:?}"))?;
    }
    Ok(())
}

pub async fn read_preferences(s: &Stage) -> Result {
    let c = s.collection("read_preferences", numbered(0..50)).await?;
    let modes = [
        ReadPreference::Primary,
        ReadPreference::PrimaryPreferred { options: None },
        ReadPreference::SecondaryPreferred { options: None },
        ReadPreference::Nearest { options: None },
    ];
    for mode in modes {
        let criteria = SelectionCriteria::ReadPreference(mode.clone());
        let find = c.find(doc! {}).selection_criteria(criteria.clone()).batch_size(20);
        same(all(find.into_future()).await?.len(), 50, &format!("found under {mode:?}"))?;
        let count = c.count_documents(doc! {}).selection_criteria(criteria);
        same(count.await?, 50, &format!("count under {mode:?}"))?;
    }
    // The only member is the primary: a driver finds that out itself, and through the proxy it is told.
    let (client, _) = s.other(|options| {
        options.server_selection_timeout = Some(Duration::from_millis(500));
        options.retry_reads = Some(false);
    })?;
    let c = client.database(s.db.name()).collection::<Document>(c.name());
    let secondary = SelectionCriteria::ReadPreference(ReadPreference::Secondary { options: None });
    let read = c.find_one(doc! {}).selection_criteria(secondary);
    if s.view_name == "replicaset" {
        let error = read.await.err().ok_or("there is no secondary, and no error")?;
        holds(matches!(*error.kind, ErrorKind::ServerSelection { .. }), &error.to_string())?;
    } else {
        fails(6, read.into_future()).await?;
    }
    client.shutdown().await;
    Ok(())
}

pub async fn causal_reads(s: &Stage) -> Result {
    s.collection("causal", vec![]).await?;
    let majority = CollectionOptions::builder()
        .read_concern(ReadConcern::majority())
        .write_concern(WriteConcern::majority())
        .build();
    let c = s.db.collection_with_options::<Document>("causal", majority);
    let nearest = || SelectionCriteria::ReadPreference(ReadPreference::Nearest { options: None });
    let mut session = s.client.start_session().causal_consistency(true).await?;
    s.view.record("find");
    for i in 0..10 {
        c.insert_one(doc! { "_id": i }).session(&mut session).await?;
        let own = c.find_one(doc! { "_id": i }).selection_criteria(nearest()).session(&mut session).await?;
        same(own, Some(doc! { "_id": i }), "own write")?;
    }
    for find in s.view.recorded() {
        find.get_document("readConcern")?.get_timestamp("afterClusterTime")?;
    }
    let latest = session.operation_time().ok_or("the session has learned no time")?;
    let time = session.cluster_time().ok_or("the session has learned no cluster time")?.clone();
    let mut session = s.client.start_session().causal_consistency(true).await?;
    session.advance_cluster_time(&time);
    session.advance_operation_time(latest);
    let count = c.count_documents(doc! {}).selection_criteria(nearest()).session(&mut session);
    same(count.await?, 10, "count in a session that was told the time")
}

pub async fn sessions(s: &Stage) -> Result {
    let c = s.collection("sessions", numbered(0..30)).await?;
    let worker = async |i: i32| -> Result<String> {
        let mut session = s.client.start_session().await?;
        let id = session.id().to_string();
        let mark = doc! { "$set": { "lsid": &id } };
        c.update_one(doc! { "_id": i }, mark).session(&mut session).await?;
        let find = c.find(doc! { "_id": { "$gte": i } }).sort(doc! { "_id": 1 }).batch_size(2);
        let mut cursor = find.session(&mut session).await?;
        let found: Vec<Document> = cursor.stream(&mut session).try_collect().await?;
        same((found[0].get_str("lsid")?, found.len()), (&*id, (30 - i) as usize), "own write, count")?;
        Ok(id)
    };
    s.view.record("find");
    let used: BTreeSet<_> = try_join_all((0..30).map(worker)).await?.into_iter().collect();
    let sent: BTreeSet<_> =
        s.view.recorded().iter().filter_map(|find| find.get_document("lsid").ok()).map(Document::to_string).collect();
    same(&sent, &used, "sessions sent")?;
    let admin = s.client.database("admin");
    let listed = admin.aggregate([doc! { "$listLocalSessions": {} }]);
    let mut known = BTreeSet::new();
    for session in all(listed.into_future()).await? {
        known.insert(doc! { "id": session.get_document("_id")?.get("id").cloned() }.to_string());
    }
    same(used.difference(&known).collect(), Vec::<&String>::new(), "sessions the server does not know")?;
    let (other, _) = s.other(|_| {})?;
    let mut foreign = other.start_session().await?;
    holds(c.find_one(doc! {}).session(&mut foreign).await.is_err(), "the session of another client was taken")?;
    drop(foreign);
    other.shutdown().await;
    Ok(())
}

pub async fn snapshot_reads(s: &Stage) -> Result {
    let c = s.collection("snapshot", vec![]).await?;
    let documents = (0..50).map(|i| doc! { "_id": i, "n": 1 });
    c.insert_many(documents).write_concern(WriteConcern::majority()).await?;
    let mut session = s.client.start_session().snapshot(true).await?;
    let found = async |session: &mut ClientSession| -> Result<usize> {
        let mut cursor = c.find(doc! {}).batch_size(20).session(&mut *session).await?;
        Ok(cursor.stream(session).try_collect::<Vec<_>>().await?.len())
    };
    same(found(&mut session).await?, 50, "found first")?;
    c.insert_one(doc! { "_id": 50, "n": 2 }).await?;
    c.delete_one(doc! { "_id": 0 }).await?;
    same(found(&mut session).await?, 50, "found after a write")?;
    let mut counted = c.aggregate([doc! { "$count": "n" }]).session(&mut session).await?;
    same(counted.stream(&mut session).try_collect().await?, vec![doc! { "n": 50 }], "counted")?;
    same(c.distinct("n", doc! {}).session(&mut session).await?, vec![Bson::from(1)], "distinct")?;
    same(c.distinct("n", doc! {}).await?, vec![Bson::from(1), Bson::from(2)], "distinct without the session")
}

pub async fn transaction_commit(s: &Stage) -> Result {
    let (a, b) = (s.collection("commit_a", vec![]).await?, s.collection("commit_b", vec![]).await?);
    let mut session = s.client.start_session().await?;
    let work = async |session: &mut ClientSession| {
        a.insert_one(doc! { "_id": 1 }).session(&mut *session).await?;
        b.insert_one(doc! { "_id": 2 }).session(&mut *session).await?;
        Ok((a.count_documents(doc! {}).session(session).await?, a.count_documents(doc! {}).await?))
    };
    same(session.start_transaction().and_run2(work).await?, (1, 0), "counts inside and outside before the commit")?;
    let second = async |session: &mut ClientSession| a.insert_one(doc! { "_id": 3 }).session(session).await;
    session.start_transaction().and_run2(second).await?;
    let counts = (a.count_documents(doc! {}).await?, b.count_documents(doc! {}).await?);
    same(counts, (2, 1), "counts after the commit")
}

pub async fn transaction_abort(s: &Stage) -> Result {
    let c = s.collection("abort", vec![]).await?;
    let mut session = s.client.start_session().await?;
    let work = async |session: &mut ClientSession| -> mongodb::error::Result<()> {
        c.insert_one(doc! { "_id": 1 }).session(&mut *session).await?;
        Err(Error::custom(c.count_documents(doc! {}).session(session).await?))
    };
    let error = session.start_transaction().and_run2(work).await.err().ok_or("the error was swallowed")?;
    same(error.get_custom::<u64>(), Some(&1), "count inside")?;
    same(c.count_documents(doc! {}).await?, 0, "count after the abort")?;
    session.start_transaction().await?;
    c.insert_one(doc! { "_id": 2 }).session(&mut session).await?;
    session.abort_transaction().await?;
    same(c.count_documents(doc! {}).await?, 0, "count after the second abort")
}

async fn increment(c: &Collection<Document>, session: &mut ClientSession) -> mongodb::error::Result<()> {
    let found = c.find_one(doc! { "_id": 1 }).session(&mut *session).await?;
    let n = found.and_then(|found| found.get_i32("n").ok()).ok_or_else(|| Error::custom("no number"))?;
    c.update_one(doc! { "_id": 1 }, doc! { "$set": { "n": n + 1 } }).session(session).await?;
    Ok(())
}

pub async fn transaction_conflict(s: &Stage) -> Result {
    // Write conflicts reach the driver with their label, or it would not start over.
    let c = s.collection("conflict", vec![doc! { "_id": 1, "n": 0 }]).await?;
    let worker = async |_| -> Result {
        let mut session = s.client.start_session().await?;
        for _ in 0..3 {
            session
                .start_transaction()
                .and_run2(async |session: &mut ClientSession| increment(&c, session).await)
                .await?;
        }
        Ok(())
    };
    try_join_all((0..4).map(worker)).await?;
    let found = c.find_one(doc! { "_id": 1 }).await?;
    same(found, Some(doc! { "_id": 1, "n": 12 }), "sum of all increments")
}

pub async fn transaction_cursor(s: &Stage) -> Result {
    let c = s.collection("transaction_cursor", numbered(0..500)).await?;
    let mut session = s.client.start_session().await?;
    session.start_transaction().await?;
    let mut cursor = c.find(doc! {}).sort(doc! { "_id": 1 }).batch_size(50).session(&mut session).await?;
    let found: Vec<_> = cursor.stream(&mut session).try_collect().await?;
    session.commit_transaction().await?;
    same(ids(&found), (0..500).collect(), "ids")
}

pub async fn transaction_errors(s: &Stage) -> Result {
    let c = s.collection("transaction_errors", numbered(1..2)).await?;
    let mut session = s.client.start_session().await?;
    session.start_transaction().await?;
    c.insert_one(doc! { "_id": 2 }).session(&mut session).await?;
    let error = fails(11000, c.insert_one(doc! { "_id": 1 }).session(&mut session).into_future()).await?;
    holds(!error.contains_label(TRANSIENT_TRANSACTION_ERROR), "a duplicate key is transient")?;
    let error = fails(251, c.insert_one(doc! { "_id": 3 }).session(&mut session).into_future()).await?;
    holds(error.contains_label(TRANSIENT_TRANSACTION_ERROR), "the next statement has no transient label")?;
    session.abort_transaction().await?;
    let work = async |session: &mut ClientSession| {
        c.insert_one(doc! { "_id": 4 }).session(&mut *session).await?;
        c.insert_one(doc! { "_id": 1 }).session(session).await
    };
    fails(11000, session.start_transaction().and_run2(work)).await?;
    same(ids(&all(c.find(doc! {}).into_future()).await?), vec![1], "documents")?;
    let good = async |session: &mut ClientSession| c.insert_one(doc! { "_id": 5 }).session(session).await;
    session.start_transaction().and_run2(good).await?;
    same(c.count_documents(doc! {}).await?, 2, "count after a good transaction in the same session")
}
