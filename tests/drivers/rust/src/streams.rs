//! Change streams.

use std::time::Duration;

use futures_util::future::{join_all, try_join_all};
use mongodb::bson::{Bson, Document, doc};
use mongodb::change_stream::ChangeStream;
use mongodb::change_stream::event::ChangeStreamEvent;
use tokio::time::Instant;

use crate::harness::{Result, Stage, holds, numbered, same};

type Changes = ChangeStream<ChangeStreamEvent<Document>>;

const AWAIT: Duration = Duration::from_millis(500);

/// So many events, or what has come after 20 s.
async fn next_events(stream: &mut Changes, count: usize) -> Result<Vec<ChangeStreamEvent<Document>>> {
    let mut seen = Vec::new();
    let until = Instant::now() + Duration::from_secs(20);
    while seen.len() < count && Instant::now() < until {
        seen.extend(stream.next_if_any().await?);
    }
    Ok(seen)
}

fn keys(events: &[ChangeStreamEvent<Document>]) -> Vec<Bson> {
    events.iter().filter_map(|event| event.document_key.as_ref()?.get("_id").cloned()).collect()
}

fn numbers(range: std::ops::Range<i32>) -> Vec<Bson> {
    range.map(Bson::from).collect()
}

pub async fn change_stream(s: &Stage) -> Result {
    let c = s.collection("change_stream", vec![]).await?;
    let mut stream = c.watch().max_await_time(AWAIT).await?;
    let cursor_id = s.view.seen().cursor_id;
    let waiting = s.view.next_get_more();
    let writing = async {
        waiting.await?;
        for document in numbered(0..20) {
            c.insert_one(document).await?;
        }
        Result::Ok(())
    };
    let (seen, written) = tokio::join!(next_events(&mut stream, 20), writing);
    written?;
    let seen = seen?;
    let inserted: Vec<_> = seen.iter().filter_map(|event| event.full_document.clone()).collect();
    same(inserted, numbered(0..20), "inserts seen")?;
    drop(stream);
    s.gone(&c, cursor_id).await?;
    let mut resumed = c.watch().resume_after(seen[9].id.clone()).max_await_time(AWAIT).await?;
    same(keys(&next_events(&mut resumed, 10).await?), numbers(10..20), "inserts after resuming")
}

pub async fn change_stream_resume(s: &Stage) -> Result {
    let c = s.collection("change_stream_resume", vec![]).await?;
    s.view.record("aggregate");
    let mut stream = c.watch().max_await_time(AWAIT).batch_size(5).await?;
    holds(stream.next_if_any().await?.is_none(), "something before all changes")?;
    for first in [0, 10, 20] {
        c.insert_many(numbered(first..first + 8)).await?;
        let seen = keys(&next_events(&mut stream, 4).await?);
        same(seen, numbers(first..first + 4), "before the cursor is killed")?;
        let cursor_id = s.view.seen().cursor_id;
        s.db.run_command(doc! { "killCursors": c.name(), "cursors": [cursor_id] }).await?;
        c.insert_many(numbered(first + 8..first + 10)).await?;
        let seen = keys(&next_events(&mut stream, 6).await?);
        same(seen, numbers(first + 4..first + 10), "after the cursor was killed")?;
    }
    holds(stream.next_if_any().await?.is_none(), "something after all changes")?;
    let mut resumed = Vec::new();
    for aggregate in s.view.recorded() {
        let stage = aggregate.get_array("pipeline")?.first().and_then(Bson::as_document).cloned();
        resumed.push(stage.unwrap_or_default().get_document("$changeStream")?.contains_key("resumeAfter"));
    }
    same(resumed, vec![false, true, true, true], "streams opened with a token")
}

pub async fn change_stream_many(s: &Stage) -> Result {
    let (mut collections, mut streams) = (Vec::new(), Vec::new());
    for i in 0..8 {
        let c = s.collection(&format!("change_stream_{i}"), vec![]).await?;
        let mut stream = c.watch().max_await_time(AWAIT).await?;
        holds(stream.next_if_any().await?.is_none(), "something before all changes")?;
        collections.push(c);
        streams.push(stream);
    }
    let reading = join_all(streams.iter_mut().map(|stream| next_events(stream, 20)));
    let writing = async {
        for n in 0..20 {
            let inserts = collections
                .iter()
                .enumerate()
                .map(|(i, c)| async move { c.insert_one(doc! { "_id": format!("{i}:{n}") }).await });
            try_join_all(inserts).await?;
        }
        Result::Ok(())
    };
    let (seen, written) = tokio::join!(reading, writing);
    written?;
    for (i, seen) in seen.into_iter().enumerate() {
        let wanted: Vec<_> = (0..20).map(|n| Bson::from(format!("{i}:{n}"))).collect();
        same(keys(&seen?), wanted, &format!("changes in stream {i}"))?;
    }
    Ok(())
}
