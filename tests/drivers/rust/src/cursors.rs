//! Cursors: batches, options, and their end.

use std::time::Duration;

use futures_util::{StreamExt, TryStreamExt};
use mongodb::bson::{Bson, Document, doc};
use mongodb::options::{Collation, CollationStrength, CursorType, Hint, IndexOptions};
use mongodb::{Collection, Cursor, IndexModel};

use crate::harness::{Result, Stage, all, fails, holds, ids, numbered, same};

fn collation_of(strength: CollationStrength) -> Collation {
    Collation::builder().locale("de").strength(strength).build()
}

async fn take(cursor: &mut Cursor<Document>, count: usize) -> Result<Vec<i32>> {
    let mut taken = Vec::new();
    while taken.len() < count {
        taken.push(cursor.next().await.ok_or("the cursor has ended")??);
    }
    Ok(ids(&taken))
}

pub async fn cursor(s: &Stage) -> Result {
    let documents = (0..2000).map(|i| doc! { "_id": i, "n": -i, "text": "x".repeat(50) }).collect();
    let c = s.collection("cursor", documents).await?;
    let find =
        c.find(doc! {}).projection(doc! { "text": 0 }).sort(doc! { "n": 1 }).skip(10).limit(1500).batch_size(100);
    let wanted: Vec<_> = (490..1990).rev().map(|i| doc! { "_id": i, "n": -i }).collect();
    same(all(find.into_future()).await?, wanted, "documents")
}

pub async fn cursor_close(s: &Stage) -> Result {
    let c = s.collection("cursor_close", numbered(0..100)).await?;
    let mut found = c.find(doc! {}).sort(doc! { "_id": 1 }).batch_size(10).await?;
    same(take(&mut found, 15).await?, (0..15).collect(), "ids")?;
    let cursor_id = s.view.seen().cursor_id;
    drop(found);
    s.gone(&c, cursor_id).await
}

pub async fn cursor_timeout_free(s: &Stage) -> Result {
    let c = s.collection("timeout_free", numbered(0..100)).await?;
    // The server keeps such a cursor for as long as its session lives.
    let mut session = s.client.start_session().await?;
    s.view.record("find");
    let find = c.find(doc! {}).no_cursor_timeout(true).sort(doc! { "_id": 1 }).batch_size(10);
    let mut cursor = find.session(&mut session).await?;
    let found: Vec<_> = cursor.stream(&mut session).try_collect().await?;
    same(ids(&found), (0..100).collect(), "ids")?;
    let sent: Vec<_> = s.view.recorded().iter().map(|find| find.get_bool("noCursorTimeout").ok()).collect();
    same(sent, vec![Some(true)], "noCursorTimeout sent")
}

pub async fn aggregate(s: &Stage) -> Result {
    let documents = (0..3000).map(|i| doc! { "_id": i, "group": i % 300, "n": i }).collect();
    let c = s.collection("aggregate", documents).await?;
    let pipeline = [doc! { "$group": { "_id": "$group", "sum": { "$sum": "$n" } } }, doc! { "$sort": { "_id": 1 } }];
    let wanted: Vec<_> = (0..300).map(|g| doc! { "_id": g, "sum": 13_500 + 10 * g }).collect();
    same(all(c.aggregate(pipeline.clone()).batch_size(50).into_future()).await?, wanted.clone(), "groups")?;
    let empty = c.aggregate(pipeline).allow_disk_use(true).batch_size(0);
    same(all(empty.into_future()).await?, wanted, "groups after an empty first batch")
}

pub async fn aggregate_out(s: &Stage) -> Result {
    let c = s.collection("aggregate_from", (0..300).map(|i| doc! { "_id": i, "group": i % 3 }).collect()).await?;
    let out = s.collection("aggregate_out", numbered(-1..0)).await?;
    let merged = s.collection("aggregate_merged", vec![doc! { "_id": 1, "old": 1 }]).await?;
    let group = doc! { "$match": { "group": 1 } };
    let none = all(c.aggregate([group.clone(), doc! { "$out": out.name() }]).into_future()).await?;
    same(none, vec![], "result of $out")?;
    same(out.count_documents(doc! {}).await?, 100, "count after $out")?;
    same(out.find_one(doc! { "_id": -1 }).await?, None, "what was there before")?;
    let merge = doc! { "$merge": { "into": merged.name(), "whenMatched": "merge" } };
    all(c.aggregate([group, merge]).into_future()).await?;
    same(merged.count_documents(doc! {}).await?, 100, "count after $merge")?;
    same(merged.find_one(doc! { "_id": 1 }).await?, Some(doc! { "_id": 1, "old": 1, "group": 1 }), "merged document")
}

pub async fn collation(s: &Stage) -> Result {
    let c = s.collection("collation", ["b", "A", "a", "B", "ä"].map(|word| doc! { "_id": word }).to_vec()).await?;
    let folding = || collation_of(CollationStrength::Secondary);
    let mut equal: Vec<_> = all(c.find(doc! { "_id": "a" }).collation(folding()).into_future()).await?;
    equal.sort_by_key(|document| document.to_string());
    same(equal, vec![doc! { "_id": "A" }, doc! { "_id": "a" }], "equal but for case")?;
    let sorted = c.find(doc! {}).sort(doc! { "_id": 1 }).collation(collation_of(CollationStrength::Primary));
    let sorted = all(sorted.into_future()).await?;
    holds("Aaä".contains(sorted[0].get_str("_id")?), "sorted without collation")?;
    same(c.count_documents(doc! { "_id": "B" }).collation(folding()).await?, 2, "count")?;
    same(c.delete_many(doc! { "_id": "b" }).collation(folding()).await?.deleted_count, 2, "deleted")?;
    same(c.distinct("_id", doc! { "_id": "A" }).collation(folding()).await?, vec![Bson::from("A")], "distinct")?;
    s.db.collection::<Document>("collation_default").drop().await?;
    s.db.create_collection("collation_default").collation(folding()).await?;
    let folded = s.db.collection::<Document>("collation_default");
    folded.insert_one(doc! { "_id": "x" }).await?;
    same(folded.find_one(doc! { "_id": "X" }).await?, Some(doc! { "_id": "x" }), "by the collection's own collation")
}

/// This driver has no `explain` of its own.
async fn explained(s: &Stage, command: Document) -> Result<Document> {
    let explained = s.db.run_command(doc! { "explain": command, "verbosity": "executionStats" }).await?;
    same(explained.get_f64("ok")?, 1.0, "ok")?;
    Ok(explained)
}

pub async fn explain(s: &Stage) -> Result {
    let c = s.collection("explain", (0..5).map(|i| doc! { "_id": i, "k": i }).collect()).await?;
    let find = explained(s, doc! { "find": c.name(), "filter": { "k": 3 } }).await?;
    same(find.get_document("executionStats")?.get_i32("nReturned")?, 1, "nReturned")?;
    let pipeline = [doc! { "$match": { "k": { "$gte": 3 } } }].to_vec();
    let aggregate = explained(s, doc! { "aggregate": c.name(), "pipeline": pipeline, "cursor": {} }).await?;
    same(aggregate.get_document("executionStats")?.get_i32("totalDocsExamined")?, 5, "totalDocsExamined")
}

pub async fn let_and_comment(s: &Stage) -> Result {
    let c = s.collection("comment", (0..10).map(|i| doc! { "_id": i, "n": i }).collect()).await?;
    s.db.run_command(doc! { "profile": 2 }).await?;
    let outcome = commented(&c).await;
    s.db.run_command(doc! { "profile": 0 }).await?;
    outcome?;
    let profile: Collection<Document> = s.db.collection("system.profile");
    let entries = all(profile.find(doc! { "ns": c.namespace().to_string() }).into_future()).await?;
    let mut comments = Vec::new();
    for entry in entries {
        comments.push(entry.get_document("command")?.get("comment").map(ToString::to_string).unwrap_or_default());
    }
    comments.sort();
    // A getMore carries the comment of its find.
    let strings = ["tag delete", "tag find", "tag find", "tag insert", "tag update"];
    let mut wanted: Vec<_> = strings.map(|text| Bson::from(text).to_string()).to_vec();
    wanted.push(Bson::from(doc! { "tag": "aggregate" }).to_string());
    wanted.sort();
    same(comments, wanted, "comments in the profile")
}

async fn commented(c: &Collection<Document>) -> Result {
    let greater = doc! { "$expr": { "$gt": ["$n", "$$limit"] } };
    let limit = |n: i32| doc! { "limit": n };
    let find = c.find(greater.clone()).let_vars(limit(6)).comment("tag find").batch_size(2);
    let mut found = ids(&all(find.into_future()).await?);
    found.sort_unstable();
    same(found, vec![7, 8, 9], "found with let")?;
    let update = c.update_many(greater.clone(), doc! { "$set": { "seen": 1 } });
    same(update.let_vars(limit(5)).comment(Bson::from("tag update")).await?.modified_count, 4, "updated with let")?;
    let delete = c.delete_many(greater.clone()).let_vars(limit(7)).comment(Bson::from("tag delete"));
    same(delete.await?.deleted_count, 2, "deleted with let")?;
    let count = c.aggregate([doc! { "$match": greater }, doc! { "$count": "n" }]).let_vars(limit(4));
    let counted = all(count.comment(Bson::from(doc! { "tag": "aggregate" })).into_future()).await?;
    same(counted, vec![doc! { "n": 3 }], "counted with let")?;
    c.insert_one(doc! { "_id": 11 }).comment(Bson::from("tag insert")).await?;
    Ok(())
}

pub async fn hint(s: &Stage) -> Result {
    let c = s.collection("hint", (0..20).map(|i| doc! { "_id": i, "a": i, "b": i }).collect()).await?;
    c.create_index(IndexModel::builder().keys(doc! { "a": 1 }).build()).await?;
    let named = IndexOptions::builder().name("by_b".to_owned()).build();
    c.create_index(IndexModel::builder().keys(doc! { "b": 1 }).options(named).build()).await?;
    let query = doc! { "a": 3, "b": 3 };
    let by_b = || Hint::Name("by_b".into());
    let hints = [("by_b", by_b()), ("a_1", Hint::Keys(doc! { "a": 1 })), ("_id_", Hint::Keys(doc! { "_id": 1 }))];
    for (wanted, hint) in hints {
        s.view.record("find");
        let found = all(c.find(query.clone()).hint(hint).into_future()).await?;
        same(found, vec![doc! { "_id": 3, "a": 3, "b": 3 }], "found")?;
        let sent = s.view.recorded().pop().ok_or("no find was sent")?;
        let hint = sent.get("hint").ok_or("no hint was sent")?;
        let plan = explained(s, doc! { "find": c.name(), "filter": query.clone(), "hint": hint }).await?;
        let plan = plan.get_document("queryPlanner")?.get_document("winningPlan")?.to_string();
        holds(plan.contains(&format!("\"indexName\": \"{wanted}\"")), &format!("{wanted} is not in {plan}"))?;
    }
    let update = c.update_one(query.clone(), doc! { "$set": { "n": 1 } }).hint(by_b());
    same(update.await?.modified_count, 1, "updated")?;
    same(c.delete_one(query.clone()).hint(Hint::Keys(doc! { "a": 1 })).await?.deleted_count, 1, "deleted")?;
    fails(2, c.find(query).hint(Hint::Name("no_such_index".into())).into_future()).await?;
    Ok(())
}

pub async fn list_cursors(s: &Stage) -> Result {
    let names: Vec<_> = (10..34).map(|i| format!("list_{i}")).collect();
    for name in &names {
        s.db.collection(name).insert_one(doc! {}).await?;
    }
    s.view.record("getMore");
    let listed = s.db.list_collections().filter(doc! { "name": { "$regex": "^list_" } }).batch_size(7).await?;
    let mut listed: Vec<_> = listed.map_ok(|found| found.name).try_collect().await?;
    holds(s.view.recorded().len() >= 3, "not several batches of collections")?;
    listed.sort();
    same(&listed, &names, "collections")?;
    let c = s.db.collection::<Document>(&names[0]);
    let index = |i: i32| {
        let options = IndexOptions::builder().name(i.to_string()).build();
        IndexModel::builder().keys(doc! { format!("k{i}"): 1 }).options(options).build()
    };
    c.create_indexes((0..12).map(index)).await?;
    s.view.record("getMore");
    let listed = c.list_indexes().batch_size(4).await?;
    let listed: Vec<_> = listed.map_ok(|found| found.options.and_then(|o| o.name)).try_collect().await?;
    holds(s.view.recorded().len() >= 3, "not several batches of indexes")?;
    let wanted = std::iter::once("_id_".to_owned()).chain((0..12).map(|i| i.to_string())).map(Some).collect();
    same(listed, wanted, "indexes")
}

pub async fn kill_cursors(s: &Stage) -> Result {
    let c = s.collection("kill_cursors", numbered(0..100)).await?;
    let mut found = Vec::new();
    let mut killed = Vec::new();
    for _ in 0..3 {
        let mut cursor = c.find(doc! {}).batch_size(10).await?;
        take(&mut cursor, 1).await?;
        found.push(cursor);
        killed.push(s.view.seen().cursor_id);
    }
    let unknown = 1_234_567_i64;
    killed.truncate(2);
    let command = doc! { "killCursors": c.name(), "cursors": [killed[0], unknown, killed[1]] };
    let reply = s.db.run_command(command).await?;
    let of = |name: &str| -> Result<Vec<i64>> {
        let mut of: Vec<_> = reply.get_array(name)?.iter().filter_map(Bson::as_i64).collect();
        of.sort_unstable();
        Ok(of)
    };
    killed.sort_unstable();
    same((of("cursorsKilled")?, of("cursorsNotFound")?), (killed, vec![unknown]), "killed, not found")?;
    same((of("cursorsAlive")?, of("cursorsUnknown")?), (vec![], vec![]), "alive, unknown")?;
    let alive = found.pop().ok_or("three were opened")?;
    for cursor in found {
        fails(43, cursor.try_collect::<Vec<_>>()).await?;
    }
    same(alive.try_collect::<Vec<_>>().await?.len(), 99, "the rest of the cursor that lives")
}

pub async fn tailable(s: &Stage) -> Result {
    let c = s.db.collection::<Document>("tailable");
    c.drop().await?;
    s.db.create_collection(c.name()).capped(true).size(100_000_u64).await?;
    c.insert_many(numbered(0..5)).await?;
    let find = c.find(doc! {}).cursor_type(CursorType::TailableAwait).max_await_time(Duration::from_millis(500));
    let mut found = find.batch_size(2).await?;
    let cursor_id = s.view.seen().cursor_id;
    same(take(&mut found, 5).await?, (0..5).collect(), "what is there")?;
    let waiting = s.view.next_get_more();
    let writing = async {
        waiting.await?;
        for document in numbered(5..10) {
            c.insert_one(document).await?;
        }
        Result::Ok(())
    };
    let (seen, written) = tokio::join!(take(&mut found, 5), writing);
    written?;
    same(seen?, (5..10).collect(), "what came while it waited")?;
    drop(found);
    s.gone(&c, cursor_id).await
}
