//! Writing and reading documents, and what is said about them.

use mongodb::bson::{Bson, Document, doc};
use mongodb::options::{IndexOptions, InsertOneModel, ReturnDocument, UpdateManyModel, WriteModel};
use mongodb::{IndexModel, Namespace};

use crate::harness::{Lacking, Result, Stage, all, holds, ids, numbered, same};

const DOCUMENTS: i32 = 10_500;

pub async fn connect(s: &Stage) -> Result {
    same(s.admin(doc! { "ping": 1 }).await?.get_f64("ok")?, 1.0, "ok")?;
    holds(!s.admin(doc! { "buildInfo": 1 }).await?.get_str("version")?.is_empty(), "no version")?;
    Ok(s.db.drop().await?)
}

pub async fn compression(s: &Stage) -> Result {
    // A later hello that does not ask repeats what the connection negotiated in its handshake.
    let hello = s.admin(doc! { "hello": 1 }).await?;
    let wanted = s.compressor.as_ref().map(|name| Bson::from(vec![name.as_str()]));
    same(hello.get("compression"), wanted.as_ref(), "negotiated compression")
}

pub async fn crud(s: &Stage) -> Result {
    let c = s.collection("crud", vec![]).await?;
    same(c.insert_one(doc! { "_id": 1, "n": 1, "tag": "a" }).await?.inserted_id, Bson::from(1), "inserted id")?;
    let many = (2..11).map(|i| doc! { "_id": i, "n": i, "tag": if i % 2 == 0 { "a" } else { "b" } });
    same(c.insert_many(many).await?.inserted_ids.len(), 9, "inserted")?;
    let found = c.find_one(doc! { "_id": 7 }).await?.ok_or("7 is not found")?;
    same(found.get_i32("n")?, 7, "n")?;
    same(
        ids(&all(c.find(doc! { "n": { "$gte": 8 } }).sort(doc! { "_id": 1 }).into_future()).await?),
        vec![8, 9, 10],
        "found",
    )?;
    same(c.update_one(doc! { "_id": 1 }, doc! { "$inc": { "n": 10 } }).await?.modified_count, 1, "updated one")?;
    same(c.update_many(doc! { "tag": "b" }, doc! { "$set": { "seen": 1 } }).await?.modified_count, 4, "updated many")?;
    let upserted = c.update_one(doc! { "_id": 11 }, doc! { "$set": { "n": 11 } }).upsert(true).await?.upserted_id;
    same(upserted, Some(Bson::from(11)), "upserted id")?;
    same(c.replace_one(doc! { "_id": 2 }, doc! { "replaced": true }).await?.modified_count, 1, "replaced")?;
    same(c.find_one(doc! { "_id": 2 }).await?, Some(doc! { "_id": 2, "replaced": true }), "replaced document")?;
    same(c.delete_one(doc! { "_id": 3 }).await?.deleted_count, 1, "deleted one")?;
    same(c.delete_many(doc! { "_id": { "$in": [4, 5] } }).await?.deleted_count, 2, "deleted many")?;
    let after = ReturnDocument::After;
    let updated = c.find_one_and_update(doc! { "_id": 1 }, doc! { "$inc": { "n": 1 } }).return_document(after.clone());
    same(updated.await?.ok_or("nothing updated")?.get_i32("n")?, 12, "findAndModify")?;
    let replaced = c.find_one_and_replace(doc! { "_id": 6 }, doc! { "r": 1 }).return_document(after).await?;
    same(replaced, Some(doc! { "_id": 6, "r": 1 }), "find and replace")?;
    same(c.find_one_and_delete(doc! { "_id": 6 }).await?, Some(doc! { "_id": 6, "r": 1 }), "find and delete")?;
    same(c.count_documents(doc! {}).await?, 7, "count")?;
    same(c.estimated_document_count().await?, 7, "estimated count")?;
    same(c.distinct("tag", doc! {}).await?, vec![Bson::from("a"), Bson::from("b")], "distinct")
}

pub async fn catalog(s: &Stage) -> Result {
    let c = s.collection("catalog", (0..5).map(|i| doc! { "_id": i, "k": i }).collect()).await?;
    let unique = IndexOptions::builder().unique(true).build();
    let index = IndexModel::builder().keys(doc! { "k": 1 }).options(unique).build();
    same(c.create_index(index).await?.index_name.as_str(), "k_1", "index name")?;
    same(c.list_index_names().await?, vec!["_id_".to_owned(), "k_1".to_owned()], "indexes")?;
    holds(s.db.list_collection_names().await?.contains(&"catalog".to_owned()), "the collection is not listed")?;
    let databases = s.client.list_database_names().await?;
    holds(databases.contains(&s.db.name().to_owned()), "the database is not listed")?;
    let to = format!("{}.renamed", s.db.name());
    s.admin(doc! { "renameCollection": c.namespace().to_string(), "to": to, "dropTarget": true }).await?;
    same(s.db.collection::<Document>("renamed").count_documents(doc! {}).await?, 5, "count after rename")
}

pub async fn bulk_write(_: &Stage) -> Result {
    Err(Lacking("this driver has only that of the client".into()).into())
}

pub async fn bulk_write_client(s: &Stage) -> Result {
    let (a, b) = (s.collection("bulk_client_a", vec![]).await?, s.collection("bulk_client_b", vec![]).await?);
    let insert = |namespace: Namespace, i: i32| {
        WriteModel::InsertOne(InsertOneModel::builder().namespace(namespace).document(doc! { "_id": i }).build())
    };
    let mut models: Vec<_> = (0..500).flat_map(|i| [insert(a.namespace(), i), insert(b.namespace(), i)]).collect();
    let set = doc! { "$set": { "n": 1 } };
    let update = UpdateManyModel::builder().namespace(b.namespace()).filter(doc! {}).update(set).build();
    models.push(WriteModel::UpdateMany(update));
    let old = s.wire_version().await? < 25;
    match s.client.bulk_write(models).await {
        Err(refusal) if old => return Err(Lacking(format!("before 8.0: {refusal}")).into()),
        Ok(_) if old => return Err("a server before 8.0 took it".into()),
        outcome => {
            let done = outcome?;
            same((done.inserted_count, done.modified_count), (1000, 500), "inserted, modified")?;
        }
    }
    let marked = doc! { "n": 1 };
    let counts = (a.count_documents(marked.clone()).await?, b.count_documents(marked).await?);
    same(counts, (0, 500), "counts")
}

pub async fn batches(s: &Stage) -> Result {
    let c = s.collection("batches", vec![]).await?;
    let text = "x".repeat(200);
    let inserted = c.insert_many((0..DOCUMENTS).map(|i| doc! { "_id": i, "text": &text })).await?;
    same(inserted.inserted_ids.len(), DOCUMENTS as usize, "inserted")?;
    s.view.record("getMore");
    let found = all(c.find(doc! { "text": &text }).sort(doc! { "_id": 1 }).batch_size(1000).into_future()).await?;
    same(s.view.recorded().len(), 10, "getMores")?;
    same(ids(&found), ids(&numbered(0..DOCUMENTS)), "ids")
}
